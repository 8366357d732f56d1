//! Which proxies have caches: those with a stream, and those whose stream broke.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::access::Member;

/// Proxies that are remembered after their streams broke: as many as there may be streams.
pub const MAX_LOST: usize = 10_000;

/// A process of a proxy: replicas may share a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// Whose it is.
    pub member: Member,
    /// Which one.
    pub instance: u64,
}

#[derive(Debug, Default)]
pub(super) struct Roster(BTreeMap<Holder, Presence>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// With so many streams: the next one may be there before the last one is seen to be broken.
    Open(u32),
    /// Since then.
    Lost(Duration),
}

impl Roster {
    pub(super) fn opened(&mut self, holder: &Holder) {
        // A process of the same name that broke off has most likely become this one.
        self.0.retain(|known, presence| {
            known.member != holder.member
                || known.instance == holder.instance
                || matches!(presence, Presence::Open(_))
        });
        let before = self.0.get(holder);
        let streams = if let Some(Presence::Open(streams)) = before { streams + 1 } else { 1 };
        self.0.insert(holder.clone(), Presence::Open(streams));
    }

    /// `done`: it has no caches any more.
    pub(super) fn closed(&mut self, holder: &Holder, done: bool, now: Duration) {
        let Some(Presence::Open(streams)) = self.0.get(holder) else { return };
        match (streams.saturating_sub(1), done) {
            (0, true) => drop(self.0.remove(holder)),
            (0, false) => {
                self.0.insert(holder.clone(), Presence::Lost(now));
                self.forget();
            }
            (left, _) => drop(self.0.insert(holder.clone(), Presence::Open(left))),
        }
    }

    /// Whether it is expected to obey.
    pub(super) fn has(&self, holder: &Holder) -> bool {
        self.0.contains_key(holder)
    }

    /// Those of `members`.
    pub(super) fn among(&self, members: &BTreeSet<Member>) -> BTreeSet<Holder> {
        self.0.keys().filter(|holder| members.contains(&holder.member)).cloned().collect()
    }

    /// How many have a stream.
    pub(super) fn open(&self) -> usize {
        self.0.values().filter(|presence| matches!(presence, Presence::Open(_))).count()
    }

    fn forget(&mut self) {
        let lost = self.0.iter().filter_map(|(holder, presence)| match presence {
            Presence::Lost(since) => Some((*since, holder)),
            Presence::Open(_) => None,
        });
        if lost.clone().count() > MAX_LOST
            && let Some(oldest) = lost.min().map(|(_, holder)| holder.clone())
        {
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn holder(name: &str, instance: u64) -> Holder {
        Holder { member: name.into(), instance }
    }

    fn known(roster: &Roster, names: &[&str]) -> Vec<(String, u64)> {
        let members = names.iter().map(|name| Member::from(*name)).collect();
        let known = roster.among(&members).into_iter();
        known.map(|holder| (holder.member.name, holder.instance)).collect()
    }

    #[test]
    fn a_broken_stream_is_waited_for_and_one_that_ended_is_not() {
        let mut roster = Roster::default();
        let (a, b) = (holder("a", 1), holder("b", 1));
        roster.opened(&a);
        roster.opened(&b);
        assert_eq!(roster.open(), 2);
        roster.closed(&a, false, NOW);
        roster.closed(&b, true, NOW);
        roster.closed(&b, true, NOW);
        assert_eq!(known(&roster, &["a", "b"]), [("a".into(), 1)]);
        assert_eq!(known(&roster, &["b", "c"]), []);
        assert_eq!(roster.open(), 0);
    }

    #[test]
    fn a_new_stream_may_come_before_the_old_one_is_seen_to_break() {
        let mut roster = Roster::default();
        let a = holder("a", 1);
        roster.opened(&a);
        roster.opened(&a);
        roster.closed(&a, false, NOW);
        assert_eq!(roster.open(), 1);
        roster.closed(&a, true, NOW);
        assert_eq!(known(&roster, &["a"]), []);
    }

    #[test]
    fn a_process_takes_the_place_of_one_that_broke_off_and_not_of_one_that_is_there() {
        let mut roster = Roster::default();
        for instance in [1, 2] {
            roster.opened(&holder("a", instance));
        }
        roster.closed(&holder("a", 1), false, NOW);
        roster.opened(&holder("b", 9));
        assert_eq!(known(&roster, &["a"]), [("a".into(), 1), ("a".into(), 2)]);
        roster.opened(&holder("a", 3));
        assert_eq!(known(&roster, &["a"]), [("a".into(), 2), ("a".into(), 3)]);
    }

    #[test]
    fn as_many_are_remembered_as_there_may_be_streams() {
        let mut roster = Roster::default();
        for number in 0..MAX_LOST as u64 + 2 {
            let one = holder(&format!("p{number}"), 1);
            roster.opened(&one);
            roster.closed(&one, false, Duration::from_millis(number));
        }
        assert_eq!(roster.0.len(), MAX_LOST);
        assert_eq!(known(&roster, &["p0", "p1", "p2"]), [("p2".into(), 1)]);
    }
}

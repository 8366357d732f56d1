//! Leases, by a clock that is handed in.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::store::Key;

/// Who is here, and until when unless renewed.
#[derive(Debug, Default)]
pub(super) struct Leases {
    leases: HashMap<Key, Lease>,
    /// Held leases by their end, the next one first.
    ends: BTreeSet<(Instant, Key)>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    /// `None` once it has lapsed and until its object is gone: it cannot be renewed any more, only
    /// granted anew.
    end: Option<Instant>,
    /// The revision of the object for which it was granted.
    content: u64,
}

impl Leases {
    /// Holds an object, as written at revision `content`, for `ttl` from now.
    pub(super) fn grant(&mut self, key: &Key, ttl: Duration, content: u64, now: Instant) {
        let earlier = self.leases.remove(key);
        if let Some(end) = earlier.as_ref().and_then(|lease| lease.end) {
            self.ends.remove(&(end, key.clone()));
        }
        let content = content.max(earlier.map_or(0, |lease| lease.content));
        let end = now + ttl;
        self.ends.insert((end, key.clone()));
        self.leases.insert(key.clone(), Lease { ttl, end: Some(end), content });
    }

    /// Extends a held lease to its full length from now; `false` where there is none.
    pub(super) fn renew(&mut self, key: &Key, now: Instant) -> bool {
        let held = self.leases.get(key).filter(|lease| lease.end.is_some_and(|end| end > now));
        let Some(Lease { ttl, content, .. }) = held else { return false };
        let (ttl, content) = (*ttl, *content);
        self.grant(key, ttl, content, now);
        true
    }

    /// Forgets a lease: its object is gone, or is to stay for good.
    pub(super) fn release(&mut self, key: &Key) {
        if let Some(end) = self.leases.remove(key).and_then(|lease| lease.end) {
            self.ends.remove(&(end, key.clone()));
        }
    }

    /// The leases that have ended by now. Each is told once; it then waits for [`Self::release`],
    /// or to be granted anew.
    pub(super) fn lapse(&mut self, now: Instant) -> Vec<Key> {
        let mut lapsed = Vec::new();
        while self.next_end().is_some_and(|end| end <= now) {
            let Some((_, key)) = self.ends.pop_first() else { break };
            if let Some(lease) = self.leases.get_mut(&key) {
                lease.end = None;
            }
            lapsed.push(key);
        }
        lapsed
    }

    /// Whether the lease has lapsed and its object is about to go.
    pub(super) fn is_lapsing(&self, key: &Key) -> bool {
        self.leases.get(key).is_some_and(|lease| lease.end.is_none())
    }

    /// The revision for which a lapsed lease had been granted: an object written later is not the
    /// one that lapsed.
    pub(super) fn lapsing_content(&self, key: &Key) -> Option<u64> {
        self.leases.get(key).filter(|lease| lease.end.is_none()).map(|lease| lease.content)
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.leases.keys()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn key(name: &str) -> Key {
        Key::new("leno.dev", "workloads", "shop", name)
    }

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_lease_lapses_at_its_end_and_is_told_once() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.grant(&key("a"), TTL, 1, start);
        leases.grant(&key("b"), TTL * 2, 2, start);
        assert_eq!(leases.next_end(), Some(start + TTL));
        assert!(leases.lapse(start + TTL - Duration::from_nanos(1)).is_empty());
        assert_eq!(leases.lapse(start + TTL), [key("a")]);
        assert!(leases.lapse(start + TTL).is_empty());
        assert_eq!(leases.next_end(), Some(start + TTL * 2));
        assert_eq!(leases.len(), 1);
    }

    #[test]
    fn renewal_extends_by_the_full_length() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.grant(&key("a"), TTL, 1, start);
        assert!(leases.renew(&key("a"), start + seconds(9)));
        assert!(leases.lapse(start + seconds(18)).is_empty());
        assert_eq!(leases.lapse(start + seconds(19)), [key("a")]);
        assert!(!leases.renew(&key("never"), start));
    }

    #[test]
    fn what_has_lapsed_is_not_renewed_but_may_be_granted_anew() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.grant(&key("a"), TTL, 4, start);
        assert!(!leases.renew(&key("a"), start + TTL), "too late even before anyone looked");
        leases.lapse(start + TTL);
        assert!(leases.is_lapsing(&key("a")));
        assert_eq!(leases.lapsing_content(&key("a")), Some(4));
        assert!(!leases.renew(&key("a"), start + TTL));
        leases.grant(&key("a"), TTL, 3, start + TTL);
        assert!(!leases.is_lapsing(&key("a")));
        leases.lapse(start + TTL * 2);
        assert_eq!(leases.lapsing_content(&key("a")), Some(4), "a late report takes nothing back");
        leases.release(&key("a"));
        assert!(!leases.is_lapsing(&key("a")));
    }

    proptest! {
        /// At any moment exactly those are held whose last grant or renewal is less than a lease ago.
        #[test]
        fn agrees_with_a_plain_list(steps in prop::collection::vec((0u8..4, 0u8..4, 0u64..15), 1..60)) {
            let (mut leases, start) = (Leases::default(), Instant::now());
            let mut ends: HashMap<u8, u64> = HashMap::new();
            let mut clock = 0;
            for (action, who, wait) in steps {
                clock += wait;
                let now = start + seconds(clock);
                let name = key(&who.to_string());
                match action {
                    0 => {
                        leases.grant(&name, TTL, 1, now);
                        ends.insert(who, clock + 10);
                    }
                    1 => {
                        let held = ends.get(&who).is_some_and(|end| *end > clock);
                        prop_assert_eq!(leases.renew(&name, now), held);
                        if held {
                            ends.insert(who, clock + 10);
                        }
                    }
                    2 => {
                        leases.release(&name);
                        ends.remove(&who);
                    }
                    _ => {
                        let mut lapsed = leases.lapse(now);
                        lapsed.sort();
                        let mut expected: Vec<_> =
                            ends.iter().filter(|(_, end)| **end <= clock).map(|(who, _)| *who).collect();
                        expected.sort_unstable();
                        ends.retain(|_, end| *end > clock);
                        prop_assert_eq!(lapsed, expected.iter().map(|n| key(&n.to_string())).collect::<Vec<_>>());
                    }
                }
                prop_assert_eq!(leases.len(), ends.len());
                let next = ends.values().min().map(|end| start + seconds(*end));
                prop_assert_eq!(leases.next_end(), next);
            }
        }
    }
}

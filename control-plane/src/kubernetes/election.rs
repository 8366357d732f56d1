//! Who of several replicas writes to Kubernetes: whoever holds the Lease. Pure; the clock is handed in.
//!
//! As client-go does it: another's claim counts from when *we* saw it last change, so clocks need not agree; whoever leads
//! stops by itself before others may take over.

use std::time::{Duration, Instant};

/// How long a claim holds unless it is renewed.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// Who could not renew for this long leads no more: a third before others may.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
pub(super) const PERIOD: Duration = Duration::from_secs(2);

/// What the Lease in Kubernetes says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) holder: Option<String>,
    pub(super) renewed: Option<String>,
    pub(super) transitions: i32,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Write it with our name; `anew` where we did not hold it.
    Claim { anew: bool },
    /// Somebody else holds it.
    Wait,
}

#[derive(Debug)]
pub(super) struct Election {
    identity: String,
    observed: Option<(Record, Instant)>,
    /// When our claim was last known to be written.
    claimed: Option<Instant>,
}

impl Election {
    pub(super) fn new(identity: String) -> Self {
        Self { identity, observed: None, claimed: None }
    }

    /// Takes note of the Lease; `None`: there is none.
    pub(super) fn see(&mut self, record: Option<Record>, now: Instant) -> Step {
        let Some(record) = record else {
            self.observed = None;
            return Step::Claim { anew: true };
        };
        if self.observed.as_ref().is_none_or(|(before, _)| *before != record) {
            self.observed = Some((record.clone(), now));
        }
        match record.holder.as_deref().filter(|holder| !holder.is_empty()) {
            None => Step::Claim { anew: true },
            Some(holder) if holder == self.identity => Step::Claim { anew: false },
            Some(_) => {
                // Somebody else's word; ours is worth nothing any more.
                self.claimed = None;
                let since = self.observed.as_ref().map_or(now, |(_, since)| *since);
                match now.saturating_duration_since(since) >= LEASE {
                    true => Step::Claim { anew: true },
                    false => Step::Wait,
                }
            }
        }
    }

    /// Our claim was written; it counts from before it was sent.
    pub(super) fn claimed(&mut self, sent: Instant) {
        self.claimed = Some(sent);
    }

    /// Whether we lead at `now`.
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.claimed.is_some_and(|claimed| now.saturating_duration_since(claimed) < DEADLINE)
    }

    /// When we stop leading unless something happens.
    pub(super) fn ends(&self) -> Option<Instant> {
        self.claimed.map(|claimed| claimed + DEADLINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, renewed: u32) -> Option<Record> {
        let renewed = Some(renewed.to_string());
        Some(Record { holder: Some(holder.into()), renewed, transitions: 0 })
    }

    fn seconds(start: Instant, number: u64) -> Instant {
        start + Duration::from_secs(number)
    }

    #[test]
    fn a_lease_that_nobody_has_is_taken() {
        let start = Instant::now();
        for nobody in [None, Some(Record::default()), record("", 1)] {
            let mut election = Election::new("a".into());
            assert_eq!(election.see(nobody, start), Step::Claim { anew: true });
            assert!(!election.leads(start), "not before it is written");
            election.claimed(start);
            assert!(election.leads(seconds(start, 9)));
            assert!(!election.leads(seconds(start, 10)), "it could not renew");
        }
    }

    #[test]
    fn another_is_left_alone_as_long_as_it_renews() {
        let start = Instant::now();
        let mut election = Election::new("a".into());
        for second in 0..60 {
            let now = seconds(start, second);
            let renewed = u32::try_from(second / 10).unwrap();
            assert_eq!(election.see(record("b", renewed), now), Step::Wait, "{second}");
        }
        // The last change was at 50 s.
        assert_eq!(election.see(record("b", 5), seconds(start, 64)), Step::Wait);
        assert_eq!(election.see(record("b", 5), seconds(start, 65)), Step::Claim { anew: true });
    }

    #[test]
    fn there_are_never_two_leaders() {
        // b sees a's last renewal as soon as it is written; a counts from before it sent it.
        let start = Instant::now();
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        assert_eq!(a.see(None, start), Step::Claim { anew: true });
        a.claimed(start);
        for second in 1..100 {
            let now = seconds(start, second);
            if b.see(record("a", 1), now) != Step::Wait {
                assert!(!a.leads(now));
                b.claimed(now);
                assert_eq!(a.see(record("b", 2), now), Step::Wait);
                return;
            }
        }
        panic!("b never took over");
    }

    #[test]
    fn who_sees_another_name_leads_no_more() {
        let start = Instant::now();
        let mut election = Election::new("a".into());
        election.see(None, start);
        election.claimed(start);
        election.see(record("b", 1), seconds(start, 1));
        assert!(!election.leads(seconds(start, 1)));
        assert_eq!(election.ends(), None);
    }
}

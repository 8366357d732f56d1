//! The generic cell rate algorithm: of each caller only the moment is kept at which all its requests so far
//! would have been due, had they come evenly.

/// So many requests in such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nanoseconds between requests that come evenly.
    interval: u64,
    /// How far a caller may be ahead.
    ahead: u64,
    /// Requests that may come at once.
    burst: u32,
}

/// What a request is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may pass.
    Allowed {
        /// What to keep for the caller.
        due: u64,
        /// Requests that could follow at once.
        remaining: u32,
    },
    /// It may not.
    Limited {
        /// Nanoseconds after which one could pass.
        wait: u64,
    },
}

impl Quota {
    /// `requests` in `period` nanoseconds, `burst` of them at once. `None` if that is more than one in a
    /// nanosecond.
    pub fn new(requests: u32, period: u64, burst: u32) -> Option<Self> {
        let interval = period / u64::from(requests).max(1);
        let ahead = interval.saturating_mul(u64::from(burst));
        (interval > 0).then_some(Self { interval, ahead, burst })
    }

    /// Requests that may come at once.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// Decides on a request at `now` nanoseconds of the wall clock; `due` is what was kept.
    pub fn decide(&self, due: Option<u64>, now: u64) -> Decision {
        let end = now.saturating_add(self.ahead);
        // A clock that was set back must not lock a caller out for as long as it was wrong.
        let due = due.unwrap_or(now).clamp(now, end);
        let next = due.saturating_add(self.interval);
        if next > end {
            return Decision::Limited { wait: next - end };
        }
        let remaining = (end - next) / self.interval;
        Decision::Allowed { due: next, remaining: u32::try_from(remaining).unwrap_or(u32::MAX) }
    }

    /// Milliseconds for which a number at `due` means anything.
    pub fn life(due: u64, now: u64) -> u64 {
        due.saturating_sub(now) / 1_000_000 + 1
    }
}

/// Whole seconds for `retry-after`: never too early.
pub fn retry_after(wait: u64) -> u64 {
    wait.div_ceil(1_000_000_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_one_by_one() {
        let quota = Quota::new(2, SECOND, 3).unwrap();
        let mut due = None;
        for remaining in [2, 1, 0] {
            let Decision::Allowed { due: next, remaining: found } = quota.decide(due, 10 * SECOND)
            else {
                panic!("limited with {remaining} to go");
            };
            assert_eq!(found, remaining);
            due = Some(next);
        }
        let half = SECOND / 2;
        assert_eq!(quota.decide(due, 10 * SECOND), Decision::Limited { wait: half });
        assert_eq!(quota.decide(due, 10 * SECOND + half - 1), Decision::Limited { wait: 1 });
        let later = quota.decide(due, 10 * SECOND + half);
        assert!(matches!(later, Decision::Allowed { remaining: 0, .. }), "{later:?}");
    }

    /// Whatever the pattern, no more than burst + elapsed / interval pass; and an idle caller gets all back.
    #[test]
    fn never_more_than_the_quota() {
        for step in [1, SECOND / 1000, SECOND / 7, SECOND / 3, 2 * SECOND] {
            let quota = Quota::new(5, SECOND, 5).unwrap();
            let (mut due, mut passed, start) = (None, 0, 100 * SECOND);
            let mut now = start;
            for _ in 0..2_000 {
                if let Decision::Allowed { due: next, .. } = quota.decide(due, now) {
                    due = Some(next);
                    passed += 1;
                }
                let most = 5 + (now - start) * 5 / SECOND;
                assert!(passed <= most, "step {step}: {passed} of {most}");
                now += step;
            }
            let idle = quota.decide(due, now + SECOND);
            assert!(matches!(idle, Decision::Allowed { remaining: 4, .. }), "{idle:?}");
        }
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out() {
        let quota = Quota::new(1, SECOND, 1).unwrap();
        let decision = quota.decide(Some(1_000_000 * SECOND), 10 * SECOND);
        assert_eq!(decision, Decision::Limited { wait: SECOND });
    }

    #[test]
    fn waits_are_rounded_up() {
        assert_eq!([1, SECOND, SECOND + 1].map(retry_after), [1, 1, 2]);
        assert_eq!(Quota::life(5 * SECOND, 3 * SECOND), 2_001);
        assert_eq!(Quota::new(1_000_000_000, SECOND / 2, 1), None);
    }
}

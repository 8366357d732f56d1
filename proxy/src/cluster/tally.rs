//! What one endpoint has under way and how its attempts ended, in one atomic word: all the traffic between workers that
//! a request causes is one addition when it begins and one when it ends.

use std::sync::atomic::{AtomicU64, Ordering};

use super::window::Batch;

/// Attempts one endpoint may have under way from this proxy. The field holds 65,535; the rest is room for the threads
/// that pass the check at the same moment.
pub const MAX_ACTIVE: u32 = 61_440;

const ACTIVE: u64 = 0xffff;
/// Bits of `active`, behind which the counters begin.
const COUNTERS: u32 = 16;
/// Bits of each counter.
const COUNTER: u32 = 24;
const SUCCESS: u64 = 1 << COUNTERS;
const FAILURE: u64 = 1 << (COUNTERS + COUNTER);

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint did its part.
    Success,
    /// It did not.
    Failure,
    /// Nobody can tell: the downstream went away, or we rejected it ourselves.
    Neither,
}

/// Counters of one endpoint: bits 0..16 attempts under way, 16..40 successes, 40..64 failures; the counters wrap.
///
/// It has a cache line of its own, so that counting does not slow down who only reads the endpoint.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Tally(AtomicU64);

/// What a [`Tally`] said at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading(u64);

impl Tally {
    /// Begins an attempt, which has to [`end`](Self::end); `false` where [`MAX_ACTIVE`] are under way.
    #[must_use = "an attempt that did not begin must not end"]
    pub fn begin(&self) -> bool {
        if self.active() >= MAX_ACTIVE {
            return false;
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Ends an attempt.
    pub fn end(&self, verdict: Verdict) {
        let counted = match verdict {
            Verdict::Success => SUCCESS,
            Verdict::Failure => FAILURE,
            Verdict::Neither => 0,
        };
        self.0.fetch_add(counted.wrapping_sub(1), Ordering::Relaxed);
    }

    /// Attempts under way.
    pub fn active(&self) -> u32 {
        self.read().active()
    }

    /// All of it, consistent in itself.
    pub fn read(&self) -> Reading {
        Reading(self.0.load(Ordering::Relaxed))
    }
}

impl Reading {
    /// Attempts under way.
    pub fn active(self) -> u32 {
        (self.0 & ACTIVE) as u32
    }

    /// What ended since `before`. Exact while fewer than 16 million did: a counter that runs over carries into the
    /// next, and the difference of both as one number takes that back.
    pub fn since(self, before: Self) -> Batch {
        let mask = (1 << (2 * COUNTER)) - 1;
        let ended = (self.0 >> COUNTERS).wrapping_sub(before.0 >> COUNTERS) & mask;
        Batch {
            successes: ended & ((1 << COUNTER) - 1),
            failures: ended >> COUNTER,
            ..Batch::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_more_begin_than_fit() {
        let tally = Tally::default();
        assert!((0..MAX_ACTIVE).all(|_| tally.begin()));
        assert!(!tally.begin());
        assert_eq!(tally.active(), MAX_ACTIVE);
        tally.end(Verdict::Neither);
        assert!(tally.begin());
        assert_eq!(tally.read().since(Reading::default()), Batch::default());
    }

    #[test]
    fn threads_lose_nothing() {
        let tally = Tally::default();
        thread::scope(|scope| {
            for verdict in [Verdict::Success, Verdict::Failure, Verdict::Neither, Verdict::Success]
            {
                let tally = &tally;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        assert!(tally.begin());
                        tally.end(verdict);
                    }
                });
            }
        });
        let ended = tally.read().since(Reading::default());
        assert_eq!((ended.successes, ended.failures, tally.active()), (20_000, 10_000, 0));
    }

    proptest! {
        /// Wherever the counters stand, differences are what was counted.
        #[test]
        fn differences_are_exact(
            start in prop_oneof![any::<u64>(), Just(u64::MAX << 16), Just(0xff_ffff << 16)],
            verdicts in proptest::collection::vec(0u8..4, 0..200),
        ) {
            let tally = Tally(AtomicU64::new(start & !ACTIVE));
            let before = tally.read();
            let (mut active, mut successes, mut failures) = (0, 0, 0);
            for verdict in verdicts {
                match verdict {
                    0 => {
                        prop_assert!(tally.begin());
                        active += 1;
                    }
                    _ if active == 0 => {}
                    1 => {
                        tally.end(Verdict::Success);
                        (active, successes) = (active - 1, successes + 1);
                    }
                    2 => {
                        tally.end(Verdict::Failure);
                        (active, failures) = (active - 1, failures + 1);
                    }
                    _ => {
                        tally.end(Verdict::Neither);
                        active -= 1;
                    }
                }
                prop_assert_eq!(tally.active(), active);
                let ended = tally.read().since(before);
                prop_assert_eq!((ended.successes, ended.failures), (successes, failures));
            }
        }
    }
}

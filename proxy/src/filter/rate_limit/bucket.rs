//! The token bucket: so many requests at once, and so many more in a time. Implemented as the generic cell rate
//! algorithm (GCRA; ITU-T I.371, "virtual scheduling"), which keeps one number instead of a count and a time: the
//! theoretical arrival time, at which the bucket will be full again. All workers share it; taking is one
//! compare-and-swap.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// No sum of a time and a bucket overflows: times end after 292 years, and no bucket takes longer to fill than half of
/// that.
const LAST: u64 = u64::MAX >> 1;
const LONGEST: u64 = u64::MAX >> 2;

/// How much is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    requests: u32,
    per: Duration,
    /// Nanoseconds between two requests; `None` where nothing is let through.
    interval: Option<u64>,
    /// Nanoseconds in which an empty bucket fills.
    depth: u64,
}

/// One bucket; full when new.
#[derive(Debug, Default)]
pub struct Bucket {
    /// Nanoseconds: when it will be full.
    full_at: AtomicU64,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request is let through.
    pub verdict: Verdict,
    /// How many more would be let through now.
    pub remaining: u64,
    /// In what time there will be one more; `None` where there are as many as there can be.
    pub more_in: Option<Duration>,
}

/// Whether a request is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Admitted,
    /// It is not; it would be after this time, or `None`: never, since it asks for more than there can be.
    Limited(Option<Duration>),
}

impl Rate {
    /// `requests` in the time of `per`, and up to `burst` at once. The intervals are rounded up to nanoseconds: of more
    /// than a million requests a second fewer than said are let through, never more. 0 requests or a burst of 0 let
    /// nothing through.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Self {
        let nanos = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let interval = (requests > 0 && burst > 0)
            .then(|| nanos.div_ceil(u64::from(requests)).clamp(1, LONGEST));
        let depth = interval.unwrap_or(0).saturating_mul(u64::from(burst)).min(LONGEST);
        Self { requests, per, interval, depth }
    }

    /// How many in the time of [`per`](Self::per).
    pub fn requests(&self) -> u32 {
        self.requests
    }

    /// In what time.
    pub fn per(&self) -> Duration {
        self.per
    }
}

impl Bucket {
    /// Takes `cost` units, or none.
    pub fn take(&self, rate: &Rate, now: Duration, cost: u32) -> Decision {
        let Some(interval) = rate.interval else {
            return Decision { verdict: Verdict::Limited(None), remaining: 0, more_in: None };
        };
        let now = nanos(now);
        let price = interval.saturating_mul(u64::from(cost));
        let mut seen = self.full_at.load(Ordering::Relaxed);
        loop {
            let used = seen.saturating_sub(now);
            let wanted = used.saturating_add(price);
            if wanted > rate.depth {
                let wait = (price <= rate.depth)
                    .then(|| Duration::from_nanos(wanted.saturating_sub(rate.depth)));
                return Decision { verdict: Verdict::Limited(wait), ..rate.left(interval, used) };
            }
            let full_at = seen.max(now) + price;
            match self.full_at.compare_exchange_weak(
                seen,
                full_at,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return rate.left(interval, wanted),
                Err(newer) => seen = newer,
            }
        }
    }

    /// Gives `cost` units back that were just taken, because another limit refused the same request.
    pub fn give_back(&self, rate: &Rate, cost: u32) {
        let price = rate.interval.unwrap_or(0).saturating_mul(u64::from(cost));
        let less = |full_at: u64| Some(full_at.saturating_sub(price));
        _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Goes over to another rate: what share of the bucket was used stays used.
    pub fn change(&self, old: &Rate, new: &Rate, now: Duration) {
        let now = nanos(now);
        let scale = |full_at: u64| {
            let used = u128::from(full_at.saturating_sub(now).min(old.depth));
            let scaled = used * u128::from(new.depth) / u128::from(old.depth.max(1));
            Some(now + u64::try_from(scaled).unwrap_or(LONGEST))
        };
        _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, scale);
    }

    /// When it will be full, in nanoseconds since the fixed start: the lower, the fuller.
    pub(super) fn full_at(&self) -> u64 {
        self.full_at.load(Ordering::Relaxed)
    }
}

impl Rate {
    fn left(&self, interval: u64, used: u64) -> Decision {
        let left = self.depth.saturating_sub(used);
        // After a step back of the clock, or another rate, more may be in use than there is.
        let over = used.saturating_sub(self.depth);
        let more_in = (used > 0)
            .then(|| Duration::from_nanos((interval - left % interval).saturating_add(over)));
        Decision { verdict: Verdict::Admitted, remaining: left / interval, more_in }
    }
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(LAST).min(LAST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn is_admitted(decision: Decision) -> bool {
        decision.verdict == Verdict::Admitted
    }

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate::new(10, Duration::from_secs(1), 3);
        let bucket = Bucket::default();
        let start = at(5_000);
        for remaining in [2, 1, 0] {
            let more_in = Some(at(100));
            let decision = bucket.take(&rate, start, 1);
            assert_eq!(decision, Decision { verdict: Verdict::Admitted, remaining, more_in });
        }
        let refused = bucket.take(&rate, start, 1);
        let verdict = Verdict::Limited(Some(at(100)));
        assert_eq!(refused, Decision { verdict, remaining: 0, more_in: Some(at(100)) });
        let half = bucket.take(&rate, start + at(50), 1);
        assert_eq!((half.verdict, half.more_in), (Verdict::Limited(Some(at(50))), Some(at(50))));
        assert!(is_admitted(bucket.take(&rate, start + at(100), 1)));
        assert_eq!(bucket.take(&rate, start + at(60_000), 0).remaining, 3);
        let full = bucket.take(&rate, start + at(60_000), 0);
        assert_eq!((full.remaining, full.more_in), (3, None));
    }

    #[test]
    fn a_cost_is_paid_whole_or_not_at_all() {
        let rate = Rate::new(1, Duration::from_secs(1), 5);
        let bucket = Bucket::default();
        assert_eq!(bucket.take(&rate, at(0), 3).remaining, 2);
        let wait = Verdict::Limited(Some(at(1000)));
        assert_eq!(bucket.take(&rate, at(0), 3).verdict, wait);
        assert_eq!(bucket.take(&rate, at(0), 6).verdict, Verdict::Limited(None));
        assert_eq!(bucket.take(&rate, at(0), 2).remaining, 0);
        bucket.give_back(&rate, 2);
        assert_eq!(bucket.take(&rate, at(0), 0).remaining, 2);
    }

    #[test]
    fn nothing_is_nothing() {
        for (requests, burst) in [(0, 10), (10, 0), (0, 0)] {
            let rate = Rate::new(requests, Duration::from_secs(1), burst);
            let decision = Bucket::default().take(&rate, at(1), 1);
            assert_eq!(decision.verdict, Verdict::Limited(None));
        }
    }

    #[test]
    fn another_rate_keeps_what_was_used() {
        let (small, large) = (
            Rate::new(10, Duration::from_secs(1), 10),
            Rate::new(100, Duration::from_secs(1), 100),
        );
        let bucket = Bucket::default();
        bucket.take(&small, at(1000), 5);
        bucket.change(&small, &large, at(1000));
        assert_eq!(bucket.take(&large, at(1000), 0).remaining, 50);
        bucket.change(&large, &small, at(1000));
        assert_eq!(bucket.take(&small, at(1000), 0).remaining, 5);
        let none = Rate::new(0, Duration::ZERO, 0);
        bucket.change(&small, &none, at(1000));
        bucket.change(&none, &large, at(1000));
        assert_eq!(bucket.take(&large, at(1000), 0).remaining, 100);
    }

    #[test]
    fn a_clock_set_back_lets_nobody_through_twice() {
        let rate = Rate::new(10, Duration::from_secs(1), 5);
        let bucket = Bucket::default();
        assert_eq!((0..10).filter(|_| is_admitted(bucket.take(&rate, at(10_000), 1))).count(), 5);
        let back = bucket.take(&rate, at(9_000), 1);
        assert_eq!((back.verdict, back.remaining), (Verdict::Limited(Some(at(1_100))), 0));
        assert_eq!(back.more_in, Some(at(1_100)));
    }

    #[test]
    fn workers_share_one_bucket() {
        let rate = Rate::new(1, Duration::from_secs(3600), 1000);
        let bucket = Bucket::default();
        let admitted: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| {
                    let take = || is_admitted(bucket.take(&rate, at(1), 1));
                    scope.spawn(move || (0..1000).filter(|_| take()).count())
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!(admitted, 1000);
    }

    proptest! {
        /// Over any time, whatever the clock does: never more than the burst and what the time brought.
        #[test]
        fn never_more_than_burst_and_rate(
            requests in 1u32..1000,
            per in 1u64..10_000,
            burst in 1u32..100,
            steps in proptest::collection::vec((-200i64..400, 0u32..5), 1..400),
        ) {
            let per = at(per);
            let rate = Rate::new(requests, per, burst);
            let bucket = Bucket::default();
            let (mut now, start) = (1_000_000i64, 1_000_000i64);
            let mut admitted = 0u64;
            let mut latest = start;
            for (step, cost) in steps {
                now = (now + step).max(start);
                latest = latest.max(now);
                if is_admitted(bucket.take(&rate, at(now as u64), cost)) {
                    admitted += u64::from(cost);
                }
                let passed = u128::from((latest - start) as u64) * 1_000_000;
                let most = u128::from(burst) + passed * u128::from(requests) / per.as_nanos();
                prop_assert!(u128::from(admitted) <= most, "{} of {}", admitted, most);
            }
        }

        /// Who comes as often as allowed is always let through, and who waits as told is let through then.
        #[test]
        fn who_keeps_to_it_is_never_refused(
            requests in 1u32..1000,
            per in 1u64..10_000,
            burst in 1u32..100,
            extra in 0u32..200,
        ) {
            let rate = Rate::new(requests, at(per), burst);
            let bucket = Bucket::default();
            let interval = Duration::from_nanos((per * 1_000_000).div_ceil(requests.into()));
            for turn in 0..200 {
                prop_assert!(is_admitted(bucket.take(&rate, interval * turn, 1)));
            }
            let now = interval * 200;
            for _ in 0..extra {
                if let Verdict::Limited(wait) = bucket.take(&rate, now, 1).verdict {
                    let wait = wait.unwrap();
                    let early = bucket.take(&rate, now + wait - Duration::from_nanos(1), 1);
                    prop_assert!(!is_admitted(early));
                    prop_assert!(is_admitted(bucket.take(&rate, now + wait, 1)));
                    break;
                }
            }
        }

        #[test]
        fn nothing_panics(
            rates in proptest::collection::vec((any::<u32>(), any::<u64>(), any::<u32>()), 1..4),
            steps in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<usize>()), 0..100),
        ) {
            let rates: Vec<_> = rates
                .into_iter()
                .map(|(requests, per, burst)| Rate::new(requests, Duration::from_secs(per), burst))
                .collect();
            let bucket = Bucket::default();
            for (now, cost, pick) in steps {
                let (old, new) = (&rates[pick % rates.len()], &rates[(pick / 7) % rates.len()]);
                let now = Duration::from_secs(now);
                bucket.take(old, now, cost);
                bucket.change(old, new, now);
                bucket.give_back(new, cost);
                bucket.take(new, Duration::MAX, cost);
            }
        }
    }
}

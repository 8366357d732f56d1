//! After which time most of a service's answers begin, from counts in buckets that grow by a fifth. Pure.

use std::time::Duration;

/// Buckets per doubling, as a power of two: what is said is at most a quarter too long.
const FINENESS: u32 = 2;
/// Doublings of a microsecond: to 134 s. What takes longer is as good as that.
const DOUBLINGS: usize = 27;
const BUCKETS: usize = DOUBLINGS << FINENESS;
/// Of fewer nothing is said: the slowest of a handful says nothing about one in twenty.
const LEAST: u32 = 20;
/// When so many have come together, all counts are halved, so that the past fades.
const MOST: u32 = 1024;

/// Latencies of one service, as one worker sees them.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Box<[u16; BUCKETS]>,
    total: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0 }
    }
}

impl Latencies {
    /// Takes one in.
    pub fn observe(&mut self, latency: Duration) {
        if self.total >= MOST {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().copied().map(u32::from).sum();
        }
        // Never more than `MOST` in all, so that none can overflow.
        self.counts[bucket(latency)] += 1;
        self.total += 1;
    }

    /// The time within which `percent` of them were; `None` while there are too few to say.
    pub fn within(&self, percent: u32) -> Option<Duration> {
        if self.total < LEAST {
            return None;
        }
        let beyond = u64::from(self.total) * u64::from(100 - percent.min(100)) / 100;
        let mut above = 0;
        let slowest = self.counts.iter().enumerate().rev().find(|(_, count)| {
            above += u64::from(**count);
            above > beyond
        });
        slowest.map(|(at, _)| upper_end(at))
    }
}

fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).clamp(1, 1 << DOUBLINGS);
    let doubling = micros.ilog2();
    let rest = (micros << FINENESS >> doubling) - (1 << FINENESS);
    (((doubling as usize) << FINENESS) + rest as usize).min(BUCKETS - 1)
}

/// The shortest time that is in a later bucket.
fn upper_end(bucket: usize) -> Duration {
    let (doubling, rest) = (bucket >> FINENESS, bucket % (1 << FINENESS));
    Duration::from_micros((((1 << FINENESS) + rest as u64 + 1) << doubling).div_ceil(1 << FINENESS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        millis.into_iter().for_each(|it| latencies.observe(Duration::from_millis(it)));
        latencies
    }

    fn millis(latencies: &Latencies) -> f64 {
        latencies.within(95).unwrap().as_secs_f64() * 1000.0
    }

    #[test]
    fn a_handful_says_nothing() {
        assert_eq!(of([1; 19]).within(95), None);
        assert!(of([1; 20]).within(95).is_some());
    }

    #[test]
    fn one_in_twenty_is_beyond() {
        let slow_at = |slow: usize| of((0..100).map(|at| if at < slow { 1000 } else { 10 }));
        assert!((10.0..13.0).contains(&millis(&slow_at(5))));
        assert!((1000.0..1250.0).contains(&millis(&slow_at(6))));
    }

    #[test]
    fn the_past_fades() {
        let mut latencies = of([1000; 5000]);
        (0..5000).for_each(|_| latencies.observe(Duration::from_millis(10)));
        assert!((10.0..13.0).contains(&millis(&latencies)));
        assert!(latencies.total <= MOST);
    }

    proptest! {
        /// What is said is not below the true quantile, and at most a quarter (or a microsecond) above.
        #[test]
        fn it_is_right_within_a_quarter(
            mut micros in proptest::collection::vec(0u64..100_000_000, 20..1000),
            percent in 1u32..=99,
        ) {
            let mut latencies = Latencies::default();
            micros.iter().for_each(|it| latencies.observe(Duration::from_micros(*it)));
            micros.sort_unstable();
            let beyond = micros.len() * (100 - percent as usize) / 100;
            let exact = micros[micros.len() - 1 - beyond];
            let said = latencies.within(percent).unwrap().as_micros() as u64;
            prop_assert!(said >= exact && said <= exact + exact / 4 + 2, "{} for {}", said, exact);
        }

        #[test]
        fn nothing_panics(millis in proptest::collection::vec(any::<u64>(), 0..3000), percent: u32) {
            let _said = of(millis).within(percent);
        }
    }
}

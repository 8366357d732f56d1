//! A latency histogram of fixed size: 8 buckets per power of two of microseconds, so that a figure
//! read from it is at most an eighth too high.

use std::time::Duration;

const STEPS: u64 = 8;
const STEP_BITS: u32 = STEPS.ilog2();
/// Enough for 2^27 microseconds, over two minutes; what takes longer counts as that.
const BUCKETS: usize = 25 * STEPS as usize;

#[derive(Clone, Debug)]
pub struct Latency {
    counts: [u64; BUCKETS],
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: [0; BUCKETS] }
    }
}

impl Latency {
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros)] += 1;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time within which `percent` of the orders were answered; nothing if there were none.
    pub fn percentile(&self, percent: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(Duration::from_micros(upper_bound(index)));
            }
        }
        None
    }

    pub fn p50(&self) -> Option<Duration> {
        self.percentile(50.0)
    }

    pub fn p99(&self) -> Option<Duration> {
        self.percentile(99.0)
    }

    pub(super) fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (count, then) in counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(then);
        }
        Self { counts }
    }
}

/// The first 8 buckets are 0 to 7 microseconds; after them each power of two has 8 equal steps.
fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let power = micros.ilog2() - STEP_BITS;
    let index = u64::from(power) * STEPS + (micros >> power);
    (index as usize).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper_bound(index: usize) -> u64 {
    let index = index as u64;
    if index < STEPS {
        return index;
    }
    let power = index / STEPS - 1;
    ((index % STEPS + STEPS + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_is_told_at_most_an_eighth_too_high() {
        for micros in (0..5_000).chain((5_000..100_000_000).step_by(9_973)) {
            let index = bucket(micros);
            let upper = upper_bound(index);
            assert!(upper >= micros && upper <= micros + micros / 8, "{micros} told as {upper}");
            assert!(index == 0 || upper_bound(index - 1) < micros, "{micros} fits a lower bucket");
        }
    }

    #[test]
    fn percentiles_of_one_to_a_thousand_milliseconds() {
        let mut latency = Latency::default();
        assert_eq!(latency.p50(), None);
        for millis in 1..=1_000 {
            latency.record(Duration::from_millis(millis));
        }
        let millis = |percent| latency.percentile(percent).unwrap().as_millis();
        assert!((500..=563).contains(&millis(50.0)));
        assert!((990..=1_114).contains(&millis(99.0)));
    }

    #[test]
    fn a_difference_counts_only_what_came_after_and_the_longest_fits() {
        let mut latency = Latency::default();
        latency.record(Duration::from_millis(1));
        let earlier = latency.clone();
        latency.record(Duration::MAX);
        let later = latency.since(&earlier);
        assert_eq!(later.count(), 1);
        assert!(later.p50() > Some(Duration::from_secs(100)));
    }
}

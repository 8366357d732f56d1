//! Results of the last seconds: a sliding window of fixed buckets. Pure: `now` is the time since any fixed start, and
//! where it goes backwards no time has passed.

use std::{fmt, time::Duration};

/// The window moves by a tenth of its length: it holds the last nine tenths for certain, and what is older than its
/// length never. Finer buckets would cost memory per endpoint and decide nothing otherwise.
pub const BUCKETS: usize = 10;
/// No window is shorter: a bucket must last as long as the 100 ms after which the workers' results arrive.
pub const MIN_LENGTH: Duration = Duration::from_secs(1);
/// No window is longer: what happened an hour ago says nothing about now.
pub const MAX_LENGTH: Duration = Duration::from_secs(3600);

/// How an attempt ended, as far as the endpoint is to be judged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Answered, and not with an error of its own.
    Success,
    /// Answered with 5xx but for those of a gateway, or a gRPC status that is the server's fault.
    Error,
    /// Answered with 502, 503 or 504.
    Gateway,
    /// No answer: not connected, reset, timed out.
    Local,
    /// Refused, as it has enough to do: no success, and nothing that is held against it. Where all are at their limit,
    /// those that refuse would be ejected one after the other, and the rest drown.
    Busy,
}

/// Results, counted. All are sums and never wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Attempts that succeeded.
    pub successes: u64,
    /// Attempts that failed, of whatever kind.
    pub failures: u64,
    /// Those of `failures` that were 502, 503 or 504.
    pub gateway: u64,
    /// Those of `failures` that brought no answer.
    pub local: u64,
    /// Those of `count` that took longer than the breaker's threshold.
    pub slow: u64,
    /// Latencies, added up.
    pub latency_sum: Duration,
    /// How many attempts `latency_sum` is of: those answered, and those that timed out.
    pub count: u64,
}

/// The results of the last `length`.
#[derive(Clone, Debug)]
pub struct Window {
    length: Duration,
    latest: u64,
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Of which slice of time since the start it is.
    slice: u64,
    batch: Batch,
}

impl Batch {
    /// A single result; `latency` where the attempt was answered or timed out. [`Kind::Busy`] is none.
    pub fn one(kind: Kind, latency: Option<Duration>, slow: bool) -> Self {
        if kind == Kind::Busy {
            return Self::default();
        }
        let failed = kind != Kind::Success;
        Self {
            successes: u64::from(!failed),
            failures: u64::from(failed),
            gateway: u64::from(kind == Kind::Gateway),
            local: u64::from(kind == Kind::Local),
            slow: u64::from(slow && latency.is_some()),
            latency_sum: latency.unwrap_or_default(),
            count: u64::from(latency.is_some()),
        }
    }

    /// Adds `other`.
    pub fn merge(&mut self, other: &Self) {
        self.successes = self.successes.saturating_add(other.successes);
        self.failures = self.failures.saturating_add(other.failures);
        self.gateway = self.gateway.saturating_add(other.gateway);
        self.local = self.local.saturating_add(other.local);
        self.slow = self.slow.saturating_add(other.slow);
        self.latency_sum = self.latency_sum.saturating_add(other.latency_sum);
        self.count = self.count.saturating_add(other.count);
    }

    /// Attempts that ended.
    pub fn total(&self) -> u64 {
        self.successes.saturating_add(self.failures)
    }

    /// The mean latency; `None` where none was measured.
    pub fn mean_latency(&self) -> Option<Duration> {
        let nanos = self.latency_sum.as_nanos().checked_div(u128::from(self.count))?;
        // No more than the sum, which is a `Duration`.
        Some(Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32))
    }
}

impl Window {
    /// An empty window over `length`, which is clamped to [`MIN_LENGTH`] and [`MAX_LENGTH`].
    pub fn new(length: Duration) -> Self {
        let length = length.clamp(MIN_LENGTH, MAX_LENGTH);
        Self { length, latest: 0, buckets: [Bucket::default(); BUCKETS] }
    }

    /// What it covers at most.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Adds results that arrived at `now`.
    pub fn push(&mut self, now: Duration, batch: &Batch) {
        let slice = self.slice(now);
        self.latest = slice;
        let bucket = &mut self.buckets[(slice % BUCKETS as u64) as usize];
        if bucket.slice != slice {
            *bucket = Bucket { slice, batch: Batch::default() };
        }
        bucket.batch.merge(batch);
    }

    /// What arrived within `length` before `now`.
    pub fn totals(&self, now: Duration) -> Batch {
        let current = self.slice(now);
        let mut totals = Batch::default();
        for bucket in &self.buckets {
            if current - bucket.slice < BUCKETS as u64 {
                totals.merge(&bucket.batch);
            }
        }
        totals
    }

    /// Forgets all results, but not how late it is.
    pub fn clear(&mut self) {
        self.buckets = [Bucket::default(); BUCKETS];
    }

    /// The slice of time that `now` is in, never before one that was seen.
    fn slice(&self, now: Duration) -> u64 {
        let slice = now.as_nanos() / (self.length.as_nanos() / BUCKETS as u128);
        u64::try_from(slice).unwrap_or(u64::MAX).max(self.latest)
    }
}

/// A time in words: `80 ms`, `2.5 s`, `300 s`.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match (millis / 1000, millis % 1000 / 100) {
            (0, _) if millis == 0 => write!(f, "{} µs", self.0.as_micros()),
            (0, _) => write!(f, "{millis} ms"),
            (seconds, 0) => write!(f, "{seconds} s"),
            (seconds, tenths) => write!(f, "{seconds}.{tenths} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn successes(successes: u64) -> Batch {
        Batch { successes, ..Batch::default() }
    }

    #[test]
    fn a_single_result_is_a_batch_of_one() {
        let latency = Duration::from_millis(30);
        let gateway = Batch::one(Kind::Gateway, Some(latency), true);
        let expected = Batch {
            failures: 1,
            gateway: 1,
            slow: 1,
            latency_sum: latency,
            count: 1,
            ..Batch::default()
        };
        assert_eq!(gateway, expected);
        assert_eq!(
            Batch::one(Kind::Local, None, true),
            Batch { failures: 1, local: 1, ..Batch::default() }
        );
        assert_eq!(Batch::one(Kind::Success, None, false), successes(1));
        assert_eq!(Batch::one(Kind::Busy, Some(latency), true), Batch::default());
        assert_eq!(Batch::default().mean_latency(), None);
        assert_eq!(gateway.mean_latency(), Some(latency));
        let most = Batch { latency_sum: Duration::MAX, count: 1, ..Batch::default() };
        assert_eq!(most.mean_latency(), Some(Duration::MAX));
    }

    #[test]
    fn what_is_older_than_the_window_is_gone() {
        let mut window = Window::new(Duration::from_secs(10));
        window.push(Duration::from_millis(500), &successes(1));
        window.push(Duration::from_millis(9_999), &successes(2));
        assert_eq!(window.totals(Duration::from_millis(9_999)).successes, 3);
        assert_eq!(window.totals(Duration::from_millis(10_000)).successes, 2);
        assert_eq!(window.totals(Duration::from_millis(19_000)).successes, 0);
        window.push(Duration::from_millis(19_000), &successes(4));
        window.clear();
        assert_eq!(window.totals(Duration::from_millis(19_000)).successes, 0);
    }

    #[test]
    fn lengths_are_clamped() {
        assert_eq!(Window::new(Duration::ZERO).length(), MIN_LENGTH);
        assert_eq!(Window::new(Duration::MAX).length(), MAX_LENGTH);
    }

    #[test]
    fn times_read_well() {
        let text = |micros| Span(Duration::from_micros(micros)).to_string();
        assert_eq!(
            [text(0), text(999), text(80_000), text(2_500_000), text(300_020_000)],
            ["0 µs", "999 µs", "80 ms", "2.5 s", "300 s"]
        );
    }

    fn any_time() -> impl Strategy<Value = Duration> {
        prop_oneof![
            8 => (0u64..60_000).prop_map(Duration::from_millis),
            1 => any::<u64>().prop_map(Duration::from_nanos),
            1 => Just(Duration::MAX),
        ]
    }

    proptest! {
        /// The same as a list of all results, whatever the clock does.
        #[test]
        fn nothing_is_lost_or_counted_twice(
            millis in 0u64..30_000,
            steps in proptest::collection::vec((any_time(), any::<u8>()), 1..60),
            end in any_time(),
        ) {
            let mut window = Window::new(Duration::from_millis(millis));
            let slice = window.length() / BUCKETS as u32;
            let slice_of = |time: Duration| time.as_nanos() / slice.as_nanos();
            let mut pushed: Vec<(u128, u64)> = Vec::new();
            let mut latest = 0;
            for (now, count) in &steps {
                latest = slice_of(*now).min(u128::from(u64::MAX)).max(latest);
                window.push(*now, &successes(u64::from(*count)));
                pushed.push((latest, u64::from(*count)));
            }
            let current = slice_of(end).min(u128::from(u64::MAX)).max(latest);
            let expected: u64 = pushed
                .iter()
                .filter(|(at, _)| current - at < BUCKETS as u128)
                .map(|(_, count)| count)
                .sum();
            prop_assert_eq!(window.totals(end).successes, expected);
        }

        /// Sums stop at their end instead of beginning anew.
        #[test]
        fn sums_never_wrap(one: [u64; 2], other: [u64; 2]) {
            let batch = |[successes, failures]: [u64; 2]| Batch {
                successes,
                failures,
                latency_sum: Duration::MAX,
                ..Batch::default()
            };
            let mut sum = batch(one);
            sum.merge(&batch(other));
            prop_assert!(sum.total() >= sum.successes.max(sum.failures));
            prop_assert!(sum.successes >= one[0].max(other[0]));
        }
    }
}

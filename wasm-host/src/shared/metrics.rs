//! Metrics that plugins define: counters, gauges, histograms, common to all instances.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::abi::{MetricKind, Status};

/// The metrics of any number of plugins, by kind and name. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit: usize,
    defined: Mutex<Defined>,
}

#[derive(Debug, Default)]
struct Defined {
    /// By kind and name, so that exposition has them in order.
    by_name: BTreeMap<(u32, Box<str>), Arc<Metric>>,
    /// How many of them are whose.
    by_plugin: HashMap<Box<str>, usize>,
}

/// One metric. Changing it takes no lock.
#[derive(Debug)]
pub struct Metric {
    name: Box<str>,
    value: MetricValue,
}

/// What a metric has counted.
#[derive(Debug)]
pub enum MetricValue {
    /// The sum of what was added.
    Counter(AtomicU64),
    /// What was set last.
    Gauge(AtomicU64),
    /// How values are distributed.
    Histogram(Box<Histogram>),
}

/// Counts of values by powers of two: bucket `n` has the values up to `2^n`, the last all others.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; Self::BUCKETS],
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// How many buckets there are: up to 2^32, which is 71 minutes in microseconds.
    pub const BUCKETS: usize = 34;

    /// Counts and their upper bounds; the last bucket has none.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        self.buckets.iter().enumerate().map(|(exponent, count)| {
            let bound = (exponent + 1 < Self::BUCKETS).then(|| 1 << exponent);
            (bound, count.load(Relaxed))
        })
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }

    fn record(&self, value: u64) {
        let exponent = value.saturating_sub(1).checked_ilog2().map_or(0, |log| log as usize + 1);
        if let Some(bucket) = self.buckets.get(exponent.min(Self::BUCKETS - 1)) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }
}

/// Bytes of a metric's name. Prometheus has no bound; a name longer than this is a mistake.
const NAME_BYTES: usize = 256;

impl Default for Metrics {
    /// At most 10,000 metrics: what a scrape can still carry.
    fn default() -> Self {
        Self::new(10_000)
    }
}

impl Metrics {
    /// None yet; at most `limit`.
    pub fn new(limit: usize) -> Self {
        Self { inner: Arc::new(Inner { limit, defined: Mutex::default() }) }
    }

    /// The metric of this kind and name. If it is new it is made, and is one of at most `most` of `plugin`, whose instances
    /// come and go.
    ///
    /// # Errors
    /// [`Status::BadArgument`] for a name that is empty, too long or not UTF-8,
    /// [`Status::InternalFailure`] if there are too many metrics.
    pub fn define(
        &self,
        plugin: &str,
        most: usize,
        kind: MetricKind,
        name: &[u8],
    ) -> Result<Arc<Metric>, Status> {
        let name = std::str::from_utf8(name).map_err(|_| Status::BadArgument)?;
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(Status::BadArgument);
        }
        let mut defined = self.lock();
        let Defined { by_name, by_plugin } = &mut *defined;
        let key = (kind as u32, name.into());
        if let Some(metric) = by_name.get(&key) {
            return Ok(metric.clone());
        }
        let own = by_plugin.get(plugin).copied().unwrap_or(0);
        if by_name.len() >= self.inner.limit || own >= most {
            return Err(Status::InternalFailure);
        }
        let metric = Arc::new(Metric::new(kind, name));
        by_name.insert(key, metric.clone());
        by_plugin.insert(plugin.into(), own + 1);
        Ok(metric)
    }

    /// All metrics, by kind and name, for exposition.
    pub fn all(&self) -> Vec<Arc<Metric>> {
        self.lock().by_name.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Defined> {
        self.inner.defined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metric {
    fn new(kind: MetricKind, name: &str) -> Self {
        let value = match kind {
            MetricKind::Counter => MetricValue::Counter(AtomicU64::new(0)),
            MetricKind::Gauge => MetricValue::Gauge(AtomicU64::new(0)),
            MetricKind::Histogram => MetricValue::Histogram(Box::default()),
        };
        Self { name: name.into(), value }
    }

    /// The name that the plugin gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has counted.
    pub fn value(&self) -> &MetricValue {
        &self.value
    }

    /// `proxy_increment_metric`: counters only grow, histograms are only recorded.
    pub(crate) fn increment(&self, delta: i64) -> Result<(), Status> {
        match &self.value {
            MetricValue::Counter(counter) if delta > 0 => {
                counter.fetch_add(delta.unsigned_abs(), Relaxed);
            }
            MetricValue::Gauge(gauge) => {
                gauge.fetch_add(delta.cast_unsigned(), Relaxed);
            }
            MetricValue::Counter(_) | MetricValue::Histogram(_) => return Err(Status::BadArgument),
        }
        Ok(())
    }

    /// `proxy_record_metric`: sets a gauge, adds to a counter, counts in a histogram.
    pub(crate) fn record(&self, value: u64) {
        match &self.value {
            MetricValue::Counter(counter) => {
                counter.fetch_add(value, Relaxed);
            }
            MetricValue::Gauge(gauge) => gauge.store(value, Relaxed),
            MetricValue::Histogram(histogram) => histogram.record(value),
        }
    }

    /// `proxy_get_metric`
    pub(crate) fn read(&self) -> Result<u64, Status> {
        match &self.value {
            MetricValue::Counter(value) | MetricValue::Gauge(value) => Ok(value.load(Relaxed)),
            MetricValue::Histogram(_) => Err(Status::BadArgument),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_take_what_suits_them() {
        let metrics = Metrics::default();
        let counter = metrics.define("p", 100, MetricKind::Counter, b"m").unwrap();
        assert_eq!(counter.increment(3), Ok(()));
        assert_eq!(counter.increment(0), Err(Status::BadArgument));
        assert_eq!(counter.increment(-1), Err(Status::BadArgument));
        counter.record(10);
        assert_eq!(counter.read(), Ok(13));
        let gauge = metrics.define("p", 100, MetricKind::Gauge, b"m").unwrap();
        assert_eq!(gauge.increment(3), Ok(()));
        assert_eq!(gauge.increment(-1), Ok(()));
        assert_eq!(gauge.read(), Ok(2));
        gauge.record(10);
        assert_eq!(gauge.read(), Ok(10));
        let histogram = metrics.define("p", 100, MetricKind::Histogram, b"m").unwrap();
        assert_eq!(histogram.increment(3), Err(Status::BadArgument));
        assert_eq!(histogram.read(), Err(Status::BadArgument));
    }

    #[test]
    fn histograms_count_by_powers_of_two() {
        let histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 5, 1 << 32, u64::MAX >> 1] {
            histogram.record(value);
        }
        let filled: Vec<_> = histogram.buckets().filter(|(_, count)| *count > 0).collect();
        let expected =
            [(Some(1), 2), (Some(2), 1), (Some(4), 2), (Some(8), 1), (Some(1 << 32), 1), (None, 1)];
        assert_eq!(filled, expected);
    }

    #[test]
    fn names_are_shared_and_bounded() {
        let metrics = Metrics::new(2);
        let first = metrics.define("p", 100, MetricKind::Counter, b"a").unwrap();
        first.record(1);
        assert_eq!(metrics.define("p", 100, MetricKind::Counter, b"a").unwrap().read(), Ok(1));
        metrics.define("p", 100, MetricKind::Gauge, b"a").unwrap();
        let third = metrics.define("p", 100, MetricKind::Gauge, b"b").map(|_| ());
        assert_eq!(third, Err(Status::InternalFailure));
        for name in [&b""[..], &[255], &[b'x'; 257]] {
            let refused = metrics.define("p", 100, MetricKind::Counter, name).map(|_| ());
            assert_eq!(refused, Err(Status::BadArgument));
        }
        assert_eq!(metrics.all().len(), 2);
    }

    #[test]
    fn one_plugin_leaves_room_for_others() {
        let metrics = Metrics::new(3);
        let define =
            |plugin, name| metrics.define(plugin, 2, MetricKind::Counter, name).map(|_| ());
        assert_eq!((define("a", b"1"), define("a", b"2")), (Ok(()), Ok(())));
        assert_eq!(define("a", b"3"), Err(Status::InternalFailure));
        assert_eq!(define("a", b"1"), Ok(()), "it is there already");
        assert_eq!(define("b", b"3"), Ok(()));
        assert_eq!(define("c", b"4"), Err(Status::InternalFailure));
        assert_eq!(define("c", b"3"), Ok(()), "everybody's");
    }
}

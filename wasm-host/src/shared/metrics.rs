//! Metrics that plugins define: counters, gauges, histograms, common to all instances.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::abi::{MetricKind, Status};

/// The metrics of any number of plugins, by kind and name. Clones are the same metrics, defined by the same plugin.
#[derive(Clone, Debug)]
pub struct Metrics {
    definer: Arc<Definer>,
}

/// One version of a plugin with all of its instances, or whoever made the metrics. What it defined goes with it, but for
/// what others have defined, too.
#[derive(Debug)]
struct Definer {
    id: u64,
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
    by_name: BTreeMap<(u32, Box<str>), Entry>,
    /// Of which plugin they are, and how many metrics they have defined.
    definers: HashMap<u64, (Box<str>, usize)>,
    last_definer: u64,
}

#[derive(Debug)]
struct Entry {
    metric: Arc<Metric>,
    definers: Vec<u64>,
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
        Self::by(Arc::new(Inner { limit, defined: Mutex::default() }), "")
    }

    fn by(inner: Arc<Inner>, plugin: &str) -> Self {
        let mut defined = inner.lock();
        defined.last_definer += 1;
        let id = defined.last_definer;
        defined.definers.insert(id, (plugin.into(), 0));
        drop(defined);
        Self { definer: Arc::new(Definer { id, inner }) }
    }

    /// The same metrics for a version of `plugin`: what it defines is there until all clones of what this returns are gone.
    pub(crate) fn of_plugin(&self, plugin: &str) -> Self {
        Self::by(self.definer.inner.clone(), plugin)
    }

    /// For an instance that is only to show that it starts: it finds as much room as there is, but what it defines and counts
    /// is nobody's.
    pub fn on_trial(&self) -> Self {
        let inner = &self.definer.inner;
        let defined = inner.lock();
        let copy = |(key, entry): (&(u32, Box<str>), &Entry)| {
            let metric = Arc::new(entry.metric.at_its_beginning());
            (key.clone(), Entry { metric, definers: entry.definers.clone() })
        };
        let copied = Defined {
            by_name: defined.by_name.iter().map(copy).collect(),
            definers: defined.definers.clone(),
            last_definer: defined.last_definer,
        };
        drop(defined);
        Self::by(Arc::new(Inner { limit: inner.limit, defined: Mutex::new(copied) }), "")
    }

    /// The metric of this kind and name; if it is new it is made. It is one of at most `most` of a version of a plugin, whose
    /// instances come and go.
    ///
    /// # Errors
    /// [`Status::BadArgument`] for a name that is empty, too long or not UTF-8,
    /// [`Status::InternalFailure`] if there are too many metrics.
    pub fn define(
        &self,
        most: usize,
        kind: MetricKind,
        name: &[u8],
    ) -> Result<Arc<Metric>, Status> {
        let name = std::str::from_utf8(name).map_err(|_| Status::BadArgument)?;
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(Status::BadArgument);
        }
        let Definer { id, inner } = &*self.definer;
        let mut defined = inner.lock();
        let key = (kind as u32, name.into());
        let known = defined.by_name.get(&key);
        if let Some(own) = known.filter(|entry| entry.definers.contains(id)) {
            return Ok(own.metric.clone());
        }
        let full = known.is_none() && !defined.has_room(*id, inner.limit);
        let Defined { by_name, definers, .. } = &mut *defined;
        let (_, own) = definers.get_mut(id).ok_or(Status::InternalFailure)?;
        if full || *own >= most {
            return Err(Status::InternalFailure);
        }
        *own += 1;
        let entry = by_name.entry(key).or_insert_with(|| Entry {
            metric: Arc::new(Metric::new(kind, name)),
            definers: Vec::new(),
        });
        entry.definers.push(*id);
        Ok(entry.metric.clone())
    }

    /// All metrics, by kind and name, for exposition.
    pub fn all(&self) -> Vec<Arc<Metric>> {
        self.definer.inner.lock().by_name.values().map(|entry| entry.metric.clone()).collect()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Defined> {
        self.defined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Defined {
    /// Whether there may be one more. What other versions of the plugin have defined does not count: it goes with them.
    fn has_room(&self, id: u64, limit: usize) -> bool {
        let known = self.by_name.len();
        if known < limit {
            return true;
        }
        let plugin = self.definers.get(&id).map(|(plugin, _)| plugin);
        let others = self.definers.iter().filter(|(other, _)| **other != id);
        let of_versions: usize = others
            .filter(|(_, (other, _))| plugin == Some(other))
            .map(|(_, (_, metrics))| metrics)
            .sum();
        known.saturating_sub(of_versions) < limit
    }
}

impl Drop for Definer {
    fn drop(&mut self) {
        let mut defined = self.inner.lock();
        let own = defined.definers.remove(&self.id);
        if own.is_none_or(|(_, metrics)| metrics == 0) {
            return;
        }
        defined.by_name.retain(|_, entry| {
            entry.definers.retain(|definer| *definer != self.id);
            !entry.definers.is_empty()
        });
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

    /// The same without what it has counted.
    fn at_its_beginning(&self) -> Self {
        let kind = match self.value {
            MetricValue::Counter(_) => MetricKind::Counter,
            MetricValue::Gauge(_) => MetricKind::Gauge,
            MetricValue::Histogram(_) => MetricKind::Histogram,
        };
        Self::new(kind, &self.name)
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
        let counter = metrics.define(100, MetricKind::Counter, b"m").unwrap();
        assert_eq!(counter.increment(3), Ok(()));
        assert_eq!(counter.increment(0), Err(Status::BadArgument));
        assert_eq!(counter.increment(-1), Err(Status::BadArgument));
        counter.record(10);
        assert_eq!(counter.read(), Ok(13));
        let gauge = metrics.define(100, MetricKind::Gauge, b"m").unwrap();
        assert_eq!(gauge.increment(3), Ok(()));
        assert_eq!(gauge.increment(-1), Ok(()));
        assert_eq!(gauge.read(), Ok(2));
        gauge.record(10);
        assert_eq!(gauge.read(), Ok(10));
        let histogram = metrics.define(100, MetricKind::Histogram, b"m").unwrap();
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
        let first = metrics.define(100, MetricKind::Counter, b"a").unwrap();
        first.record(1);
        assert_eq!(metrics.define(100, MetricKind::Counter, b"a").unwrap().read(), Ok(1));
        metrics.define(100, MetricKind::Gauge, b"a").unwrap();
        let third = metrics.define(100, MetricKind::Gauge, b"b").map(|_| ());
        assert_eq!(third, Err(Status::InternalFailure));
        for name in [&b""[..], &[255], &[b'x'; 257]] {
            let refused = metrics.define(100, MetricKind::Counter, name).map(|_| ());
            assert_eq!(refused, Err(Status::BadArgument));
        }
        assert_eq!(metrics.all().len(), 2);
    }

    fn define(metrics: &Metrics, name: &[u8]) -> Result<(), Status> {
        metrics.define(2, MetricKind::Counter, name).map(|_| ())
    }

    #[test]
    fn one_plugin_leaves_room_for_others() {
        let metrics = Metrics::new(3);
        let [a, b, c] = ["a", "b", "c"].map(|plugin| metrics.of_plugin(plugin));
        assert_eq!((define(&a, b"1"), define(&a, b"2")), (Ok(()), Ok(())));
        assert_eq!(define(&a, b"3"), Err(Status::InternalFailure));
        assert_eq!(define(&a, b"1"), Ok(()), "it is there already");
        assert_eq!(define(&b, b"3"), Ok(()));
        assert_eq!(define(&c, b"4"), Err(Status::InternalFailure));
        assert_eq!(define(&c, b"3"), Ok(()), "everybody's");
    }

    #[test]
    fn another_version_has_room_for_metrics_of_its_own() {
        let metrics = Metrics::new(3);
        let (old, other) = (metrics.of_plugin("a"), metrics.of_plugin("b"));
        for (definer, name) in [(&old, b"1"), (&old, b"2"), (&other, b"3")] {
            define(definer, name).unwrap();
        }
        let new = metrics.of_plugin("a");
        assert_eq!((define(&new, b"2"), define(&new, b"4")), (Ok(()), Ok(())));
        assert_eq!(define(&other, b"5"), Err(Status::InternalFailure), "four are there");
        drop(old);
        let names: Vec<_> = metrics.all().iter().map(|metric| metric.name().to_owned()).collect();
        assert_eq!(names, ["2", "3", "4"]);
        drop(new);
        assert_eq!(define(&other, b"5"), Ok(()));
    }

    #[test]
    fn what_is_on_trial_finds_the_room_that_there_is_and_takes_none() {
        let metrics = Metrics::new(2);
        let live = metrics.of_plugin("a");
        live.define(2, MetricKind::Counter, b"1").unwrap().record(7);
        let trial = metrics.on_trial().of_plugin("b");
        trial.define(2, MetricKind::Counter, b"1").unwrap().record(1);
        assert_eq!(define(&trial, b"2"), Ok(()));
        assert_eq!(live.all().len(), 1);
        assert_eq!(live.define(2, MetricKind::Counter, b"1").unwrap().read(), Ok(7));
        let other = metrics.of_plugin("c");
        assert_eq!(define(&other, b"2"), Ok(()));
        let tried = |plugin| define(&metrics.on_trial().of_plugin(plugin), b"3");
        assert_eq!((tried("b"), tried("a")), (Err(Status::InternalFailure), Ok(())));
    }
}

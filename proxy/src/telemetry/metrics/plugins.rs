//! Of plugins: what they did, and what they count themselves. Read when they are asked for: plugins come and go, and
//! their figures with them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto,
};

/// One version of a plugin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// `shop/tag`.
    pub plugin: String,
    /// As on the admin port.
    pub version: String,
    /// Whether it is on trial.
    pub canary: bool,
    /// Exchanges and connections that it was to see.
    pub exchanges: u64,
    /// Those that got its failure policy.
    pub failures: u64,
    /// Calls into it.
    pub calls: u64,
    /// Time spent in them.
    pub seconds: f64,
    /// Faults but overruns.
    pub traps: u64,
    /// Calls that ran longer than the deadline.
    pub overruns: u64,
    /// Instances that took the place of one that broke.
    pub restarts: u64,
    /// Instances now.
    pub instances: i64,
    /// Bytes of their memories now.
    pub memory_bytes: i64,
    /// Bytes of bodies that it holds now.
    pub held_bytes: i64,
}

/// A metric that a plugin defined.
#[derive(Clone, Debug, PartialEq)]
pub struct Defined {
    /// As the plugin named it.
    pub name: String,
    /// What it has counted.
    pub value: Value,
}

/// What a metric has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Only grows.
    Counter(u64),
    /// Set.
    Gauge(u64),
    /// Counts by upper bound, the last without one; and the sum of all values.
    Histogram(Vec<(Option<u64>, u64)>, u64),
}

/// Everything there is to show.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// By plugin.
    pub samples: Vec<Sample>,
    /// By name.
    pub defined: Vec<Defined>,
    /// Plugins whose newest version is not live.
    pub failed: usize,
}

type Read = Box<dyn Fn() -> Shown + Send + Sync>;

/// The families; empty until somebody says what is to be shown.
#[derive(Clone, Default)]
pub struct Plugins {
    read: Arc<OnceLock<Read>>,
}

/// Names that are ours: a plugin's metric of such a name gets another one.
const RESERVED: [&str; 3] = ["istio_", "leno_", "process_"];

type Figure = fn(&Sample) -> f64;

const COUNTERS: [(&str, &str, Figure); 7] = [
    ("leno_plugin_exchanges_total", "Exchanges and connections a plugin was to see.", |sample| {
        sample.exchanges as f64
    }),
    ("leno_plugin_failures_total", "Those in which it failed.", |sample| sample.failures as f64),
    ("leno_plugin_calls_total", "Calls into a plugin.", |sample| sample.calls as f64),
    ("leno_plugin_call_seconds_total", "Time spent in them.", |sample| sample.seconds),
    ("leno_plugin_traps_total", "Faults of a plugin but overruns.", |sample| sample.traps as f64),
    ("leno_plugin_overruns_total", "Calls that ran longer than the deadline.", |sample| {
        sample.overruns as f64
    }),
    ("leno_plugin_restarts_total", "Instances that took the place of a broken one.", |sample| {
        sample.restarts as f64
    }),
];
const GAUGES: [(&str, &str, Figure); 4] = [
    ("leno_plugin_instances", "Instances of a plugin now.", |sample| sample.instances as f64),
    ("leno_plugin_memory_bytes", "Bytes of their memories.", |sample| sample.memory_bytes as f64),
    ("leno_plugin_held_body_bytes", "Bytes of bodies that a plugin holds.", |sample| {
        sample.held_bytes as f64
    }),
    ("leno_plugin_canary", "1 for a version on trial.", |sample| {
        f64::from(u8::from(sample.canary))
    }),
];

impl Plugins {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let plugins = Self::default();
        registry.register(Box::new(plugins.clone()))?;
        Ok(plugins)
    }

    /// What `read` gives is shown from now on; only the first one counts.
    pub fn show(&self, read: impl Fn() -> Shown + Send + Sync + 'static) {
        let _ = self.read.set(Box::new(read));
    }
}

impl Collector for Plugins {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let Some(read) = self.read.get() else { return Vec::new() };
        families(&read())
    }
}

fn families(shown: &Shown) -> Vec<proto::MetricFamily> {
    let mut families = Vec::new();
    if !shown.samples.is_empty() {
        for (name, help, figure) in COUNTERS {
            let metrics = shown.samples.iter().map(|sample| {
                let mut counter = proto::Counter::default();
                counter.set_value(figure(sample));
                let mut metric = proto::Metric::from_label(labels(sample));
                metric.set_counter(counter);
                metric
            });
            let metrics = metrics.collect();
            families.push(family(name, help, proto::MetricType::COUNTER, metrics));
        }
        for (name, help, figure) in GAUGES {
            let metrics = shown.samples.iter().map(|sample| {
                let mut metric = proto::Metric::from_label(labels(sample));
                metric.set_gauge(gauge(figure(sample)));
                metric
            });
            let metrics = metrics.collect();
            families.push(family(name, help, proto::MetricType::GAUGE, metrics));
        }
    }
    if !shown.samples.is_empty() || shown.failed > 0 {
        let mut metric = proto::Metric::from_label(Vec::new());
        metric.set_gauge(gauge(shown.failed as f64));
        let help = "Plugins whose newest version is not live.";
        let kind = proto::MetricType::GAUGE;
        families.push(family("leno_plugins_failed", help, kind, vec![metric]));
    }
    families.extend(defined(&shown.defined));
    families
}

/// Each under the name that its plugin gave it, as far as Prometheus knows such names. Of two kinds under one name the
/// later ones say their kind.
fn defined(all: &[Defined]) -> impl Iterator<Item = proto::MetricFamily> {
    let mut named: BTreeMap<String, &Value> = BTreeMap::new();
    for Defined { name, value } in all {
        let name = exposed(name);
        let kind = match value {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(..) => "histogram",
        };
        let free = [name.clone(), format!("{name}_{kind}")];
        if let Some(name) = free.into_iter().find(|name| !named.contains_key(name)) {
            named.insert(name, value);
        }
    }
    named.into_iter().map(|(name, value)| {
        let mut metric = proto::Metric::from_label(Vec::new());
        let kind = match value {
            Value::Counter(count) => {
                let mut counter = proto::Counter::default();
                counter.set_value(*count as f64);
                metric.set_counter(counter);
                proto::MetricType::COUNTER
            }
            Value::Gauge(value) => {
                metric.set_gauge(gauge(*value as f64));
                proto::MetricType::GAUGE
            }
            Value::Histogram(buckets, sum) => {
                metric.set_histogram(histogram(buckets, *sum));
                proto::MetricType::HISTOGRAM
            }
        };
        family(&name, "Defined by a plugin.", kind, vec![metric])
    })
}

fn histogram(buckets: &[(Option<u64>, u64)], sum: u64) -> proto::Histogram {
    let mut below = 0;
    let mut bounded = Vec::new();
    for (bound, count) in buckets {
        below += count;
        if let Some(bound) = bound {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound as f64);
            bucket.set_cumulative_count(below);
            bounded.push(bucket);
        }
    }
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(bounded);
    histogram.set_sample_count(below);
    histogram.set_sample_sum(sum as f64);
    histogram
}

/// `[a-zA-Z_:][a-zA-Z0-9_:]*`, and none of ours.
fn exposed(name: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() || "_:".contains(c) { c } else { '_' };
    let name: String = name.chars().map(good).collect();
    let ours = RESERVED.iter().any(|reserved| name.starts_with(reserved));
    if ours || name.starts_with(|first: char| first.is_ascii_digit()) {
        return format!("plugin_{name}");
    }
    name
}

pub(super) fn gauge(value: f64) -> proto::Gauge {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(value);
    gauge
}

pub(super) fn family(
    name: &str,
    help: &str,
    kind: proto::MetricType,
    metrics: Vec<proto::Metric>,
) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labels(sample: &Sample) -> Vec<proto::LabelPair> {
    let pairs = [("plugin", &sample.plugin), ("version", &sample.version)];
    let label = |(name, value): (&str, &String)| {
        let mut label = proto::LabelPair::default();
        label.set_name(name.to_owned());
        label.set_value(value.clone());
        label
    };
    pairs.into_iter().map(label).collect()
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugins").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(shown: &Shown) -> String {
        let registry = Registry::new();
        let (plugins, shown) = (Plugins::register(&registry).unwrap(), shown.clone());
        plugins.show(move || shown.clone());
        let mut text = String::new();
        prometheus::TextEncoder::new().encode_utf8(&registry.gather(), &mut text).unwrap();
        text
    }

    #[test]
    fn nothing_is_shown_of_no_plugins() {
        assert_eq!(text(&Shown::default()), "");
        let registry = Registry::new();
        Plugins::register(&registry).unwrap();
        assert!(registry.gather().is_empty());
    }

    #[test]
    fn every_version_has_its_series() {
        let sample = Sample {
            plugin: "shop/tag".to_owned(),
            version: "ab-cd".to_owned(),
            calls: 7,
            seconds: 0.5,
            memory_bytes: 65_536,
            held_bytes: 9,
            ..Sample::default()
        };
        let canary = Sample { version: "ef-01".to_owned(), canary: true, ..sample.clone() };
        let text = text(&Shown { samples: vec![sample, canary], failed: 1, ..Shown::default() });
        for line in [
            r#"leno_plugin_calls_total{plugin="shop/tag",version="ab-cd"} 7"#,
            r#"leno_plugin_calls_total{plugin="shop/tag",version="ef-01"} 7"#,
            r#"leno_plugin_call_seconds_total{plugin="shop/tag",version="ab-cd"} 0.5"#,
            r#"leno_plugin_memory_bytes{plugin="shop/tag",version="ab-cd"} 65536"#,
            r#"leno_plugin_canary{plugin="shop/tag",version="ef-01"} 1"#,
            "leno_plugins_failed 1",
            "# TYPE leno_plugin_traps_total counter",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn what_plugins_define_keeps_its_name_where_it_can() {
        let defined = |name: &str, value| Defined { name: name.to_owned(), value };
        let text = text(&Shown {
            defined: vec![
                defined("requests.seen", Value::Counter(3)),
                defined("requests_seen", Value::Gauge(4)),
                defined("istio_requests_total", Value::Counter(5)),
                defined("1st", Value::Gauge(6)),
                defined("size", Value::Histogram(vec![(Some(1), 2), (Some(2), 1), (None, 1)], 9)),
            ],
            ..Shown::default()
        });
        for line in [
            "requests_seen 3",
            "requests_seen_gauge 4",
            "plugin_istio_requests_total 5",
            "plugin_1st 6",
            r#"size_bucket{le="1"} 2"#,
            r#"size_bucket{le="2"} 3"#,
            r#"size_bucket{le="+Inf"} 4"#,
            "size_sum 9",
            "size_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.lines().any(|line| line.starts_with("istio_")));
    }
}

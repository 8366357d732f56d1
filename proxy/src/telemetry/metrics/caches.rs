//! Of what is kept of responses, by policy. Read when they are asked for: the caches count, and go with their figures.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto,
};

use super::plugins::{family, gauge};

/// One policy's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// `shop/catalogue`.
    pub policy: String,
    /// Requests answered with what was kept and fresh.
    pub hits: u64,
    /// Requests that went to the origin for want of an answer.
    pub misses: u64,
    /// Requests answered with what was not fresh any more.
    pub stale: u64,
    /// Requests answered by another one's fetch.
    pub collapsed: u64,
    /// Answers of an origin that what is kept is still good.
    pub validated: u64,
    /// Responses purged.
    pub purged: u64,
    /// URLs that had to make room.
    pub evicted: u64,
    /// Bytes of bodies that the origin did not send.
    pub saved_bytes: u64,
    /// Bytes kept.
    pub bytes: u64,
    /// Bytes that may be kept.
    pub most_bytes: u64,
    /// URLs for which something is kept.
    pub urls: u64,
    /// Of its second tier, if it has one.
    pub remote: Option<Remote>,
}

/// A second tier's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// Requests for which there was a response.
    pub hits: u64,
    /// Requests for which there was none.
    pub misses: u64,
    /// Questions, and connections, that failed.
    pub errors: u64,
    /// Responses not written.
    pub dropped: u64,
    /// 0 in use, 1 being tried, 2 left alone.
    pub state: u64,
}

type Read = Box<dyn Fn() -> Vec<Sample> + Send + Sync>;
type Figure = fn(&Sample) -> u64;

/// The families; empty until somebody says what is to be shown.
#[derive(Clone)]
pub struct Caches {
    read: Arc<OnceLock<Read>>,
    /// Tells the registry this collector from others that say nothing of themselves.
    desc: Arc<Desc>,
}

/// `shop/catalogue`.
const LABEL: &str = "policy";

const COUNTERS: [(&str, &str, Figure); 8] = [
    ("leno_cache_hits_total", "Requests answered with what was kept and fresh.", |sample| {
        sample.hits
    }),
    ("leno_cache_misses_total", "Requests that went on for want of an answer.", |sample| {
        sample.misses
    }),
    ("leno_cache_stale_total", "Requests answered with what was fresh no longer.", |sample| {
        sample.stale
    }),
    ("leno_cache_collapsed_total", "Requests answered by another one's fetch.", |sample| {
        sample.collapsed
    }),
    ("leno_cache_validated_total", "Requests for which the origin was asked (304).", |sample| {
        sample.validated
    }),
    ("leno_cache_purged_total", "Responses purged.", |sample| sample.purged),
    ("leno_cache_evicted_total", "URLs that had to make room for others.", |sample| sample.evicted),
    ("leno_cache_saved_bytes_total", "Bytes of bodies not sent by the origin.", |sample| {
        sample.saved_bytes
    }),
];
const GAUGES: [(&str, &str, Figure); 3] = [
    ("leno_cache_bytes", "Bytes that are kept.", |sample| sample.bytes),
    ("leno_cache_max_bytes", "Bytes that may be kept.", |sample| sample.most_bytes),
    ("leno_cache_urls", "URLs for which something is kept.", |sample| sample.urls),
];

type RemoteFigure = fn(&Remote) -> u64;

const REMOTE_COUNTERS: [(&str, &str, RemoteFigure); 4] = [
    ("leno_cache_remote_hits_total", "Requests for which Redis had a response.", |remote| {
        remote.hits
    }),
    ("leno_cache_remote_misses_total", "Requests for which it had none.", |remote| remote.misses),
    ("leno_cache_remote_errors_total", "Questions to Redis that failed.", |remote| remote.errors),
    ("leno_cache_remote_dropped_total", "Responses not written there.", |remote| remote.dropped),
];
const REMOTE_STATE: (&str, &str) = (
    "leno_cache_remote_state",
    "The breaker of Redis: 0 closed (in use), 1 half-open (being tried), 2 open (left alone).",
);

impl Caches {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let (name, help, _) = GAUGES[0];
        let desc = Desc::new(name.into(), help.into(), vec![LABEL.into()], HashMap::new())?;
        let caches = Self { read: Arc::default(), desc: Arc::new(desc) };
        registry.register(Box::new(caches.clone()))?;
        Ok(caches)
    }

    /// What `read` gives is shown from now on; only the first one counts.
    pub fn show(&self, read: impl Fn() -> Vec<Sample> + Send + Sync + 'static) {
        let _ = self.read.set(Box::new(read));
    }
}

impl Collector for Caches {
    fn desc(&self) -> Vec<&Desc> {
        vec![&*self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let samples = self.read.get().map(|read| read()).unwrap_or_default();
        if samples.is_empty() {
            return Vec::new();
        }
        let counters = COUNTERS.iter().map(|(name, help, figure)| {
            let metrics = samples.iter().map(|sample| {
                let mut counter = proto::Counter::default();
                counter.set_value(figure(sample) as f64);
                let mut metric = labelled(sample);
                metric.set_counter(counter);
                metric
            });
            family(name, help, proto::MetricType::COUNTER, metrics.collect())
        });
        let gauges = GAUGES.iter().map(|(name, help, figure)| {
            let metrics = samples.iter().map(|sample| {
                let mut metric = labelled(sample);
                metric.set_gauge(gauge(figure(sample) as f64));
                metric
            });
            family(name, help, proto::MetricType::GAUGE, metrics.collect())
        });
        counters.chain(gauges).chain(remote(&samples)).collect()
    }
}

fn remote(samples: &[Sample]) -> Vec<proto::MetricFamily> {
    let remotes = samples.iter().filter_map(|sample| Some((sample, sample.remote?)));
    let remotes: Vec<_> = remotes.collect();
    if remotes.is_empty() {
        return Vec::new();
    }
    let counters = REMOTE_COUNTERS.iter().map(|(name, help, figure)| {
        let metrics = remotes.iter().map(|(sample, remote)| {
            let mut counter = proto::Counter::default();
            counter.set_value(figure(remote) as f64);
            let mut metric = labelled(sample);
            metric.set_counter(counter);
            metric
        });
        family(name, help, proto::MetricType::COUNTER, metrics.collect())
    });
    let states = remotes.iter().map(|(sample, remote)| {
        let mut metric = labelled(sample);
        metric.set_gauge(gauge(remote.state as f64));
        metric
    });
    let (name, help) = REMOTE_STATE;
    let states = family(name, help, proto::MetricType::GAUGE, states.collect());
    counters.chain([states]).collect()
}

fn labelled(sample: &Sample) -> proto::Metric {
    let mut label = proto::LabelPair::default();
    label.set_name(LABEL.to_owned());
    label.set_value(sample.policy.clone());
    proto::Metric::from_label(vec![label])
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_has_its_series_as_long_as_it_is_there() {
        let registry = Registry::new();
        let caches = Caches::register(&registry).unwrap();
        // Of that kind, too.
        super::super::plugins::Plugins::register(&registry).unwrap();
        let text = || {
            let mut text = String::new();
            prometheus::TextEncoder::new().encode_utf8(&registry.gather(), &mut text).unwrap();
            text
        };
        assert_eq!(text(), "");
        let shown = Arc::new(std::sync::Mutex::new(Vec::new()));
        let read = shown.clone();
        caches.show(move || read.lock().unwrap().clone());
        assert_eq!(text(), "", "no cache, no series");
        let sample = |policy: &str, hits| Sample {
            policy: policy.to_owned(),
            hits,
            purged: 7,
            bytes: 2048,
            ..Sample::default()
        };
        let mut first = sample("shop/a", 3);
        first.remote = Some(Remote { hits: 5, state: 2, ..Remote::default() });
        *shown.lock().unwrap() = vec![first, sample("shop/b", 0)];
        let all = text();
        assert!(!all.contains("leno_cache_remote_hits_total{policy=\"shop/b\"}"), "{all}");
        for line in [
            "# TYPE leno_cache_hits_total counter",
            "leno_cache_hits_total{policy=\"shop/a\"} 3",
            "leno_cache_hits_total{policy=\"shop/b\"} 0",
            "leno_cache_purged_total{policy=\"shop/a\"} 7",
            "# TYPE leno_cache_bytes gauge",
            "leno_cache_bytes{policy=\"shop/a\"} 2048",
            "leno_cache_urls{policy=\"shop/b\"} 0",
            "leno_cache_remote_hits_total{policy=\"shop/a\"} 5",
            "leno_cache_remote_state{policy=\"shop/a\"} 2",
        ] {
            assert!(all.lines().any(|found| found == line), "{line}: {all}");
        }
        shown.lock().unwrap().remove(0);
        assert!(!text().contains("shop/a"));
    }
}

//! What plugins count themselves, for exposition.

use std::sync::atomic::Ordering::Relaxed;

use leno_wasm_host::MetricValue;

use super::Runtime;
use crate::telemetry::metrics::plugins::{Defined, Value};

impl Runtime {
    /// Every metric that plugins have defined.
    pub fn defined(&self) -> Vec<Defined> {
        let metrics = self.metrics().all();
        let metrics = metrics.iter().map(|metric| {
            let value = match metric.value() {
                MetricValue::Counter(count) => Value::Counter(count.load(Relaxed)),
                MetricValue::Gauge(value) => Value::Gauge(value.load(Relaxed)),
                MetricValue::Histogram(histogram) => {
                    Value::Histogram(histogram.buckets().collect(), histogram.sum())
                }
            };
            Defined { name: metric.name().to_owned(), value }
        });
        metrics.collect()
    }
}

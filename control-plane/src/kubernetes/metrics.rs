//! What can be seen of the Kubernetes source from outside.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

#[derive(Debug, Clone)]
pub struct Metrics {
    pub objects: IntGaugeVec,
    pub left_out: IntGauge,
    pub watch_errors: IntCounterVec,
    pub statuses: IntCounterVec,
    pub leads: IntGauge,
    pub reviews: IntCounterVec,
    pub config_maps: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// When a metric of the same name is there already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let objects = Opts::new("leno_kubernetes_objects", "Objects of Kubernetes that are known.");
        let objects = IntGaugeVec::new(objects, &["kind"])?;
        registry.register(Box::new(objects.clone()))?;
        Ok(Self {
            objects,
            left_out: gauge(
                "leno_kubernetes_objects_left_out",
                "Objects of Kubernetes that cannot be used as they are now.",
            )?,
            watch_errors: counters(
                "leno_kubernetes_watch_errors_total",
                "Times a watch of Kubernetes failed, by kind; each is tried again.",
                "kind",
            )?,
            statuses: counters(
                "leno_kubernetes_status_writes_total",
                "Statuses written to Kubernetes, by result: ok, failed.",
                "result",
            )?,
            leads: gauge(
                "leno_kubernetes_leader",
                "1 where this replica writes to Kubernetes, 0 where another does.",
            )?,
            reviews: counters(
                "leno_kubernetes_token_reviews_total",
                "Service-account tokens that Kubernetes was asked about, by result: proven, refused, unavailable, cached.",
                "result",
            )?,
            config_maps: counters(
                "leno_kubernetes_roots_writes_total",
                "ConfigMaps and webhook configurations written with trusted roots, by result: ok, failed.",
                "result",
            )?,
        })
    }
}

//! What the webhooks are asked, and how long they take.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

/// Seconds; the promise is 5 ms.
const BUCKETS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub requests: IntCounterVec,
    pub seconds: HistogramVec,
    pub expiry: IntGauge,
}

impl Metrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let requests = IntCounterVec::new(
            Opts::new(
                "leno_webhook_requests_total",
                "Admission reviews, by webhook and result: injected, passed, failed (no sidecar although one was wanted), valid, refused, bad.",
            ),
            &["webhook", "result"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "leno_webhook_duration_seconds",
                "From the end of a review's body to its answer.",
            )
            .buckets(BUCKETS.to_vec()),
            &["webhook"],
        )?;
        let expiry = IntGauge::new(
            "leno_webhook_certificate_expiry_seconds",
            "When the certificate of the webhook's port ends, in Unix seconds.",
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(expiry.clone()))?;
        Ok(Self { requests, seconds, expiry })
    }
}

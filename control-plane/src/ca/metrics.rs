//! What can be seen of the authority from outside.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Debug, Clone)]
pub struct Metrics {
    pub issued: IntCounter,
    pub refused: IntCounterVec,
    pub reloads: IntCounterVec,
    pub issuer_expiry: IntGauge,
    pub serving_expiry: IntGauge,
    pub roots: IntGauge,
    pub publish_failures: IntCounter,
}

impl Metrics {
    /// # Errors
    /// Never while the names below are well formed.
    pub fn new() -> prometheus::Result<Self> {
        let labelled = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label])
        };
        Ok(Self {
            issued: IntCounter::new("leno_ca_certificates_issued_total", "Certificates issued.")?,
            refused: labelled(
                "leno_ca_requests_refused_total",
                "Requests for certificates refused, by reason: proof, identity, request, rate, internal.",
                "reason",
            )?,
            reloads: labelled(
                "leno_ca_reloads_total",
                "Times the user's certificate files changed, by result: ok, failed.",
                "result",
            )?,
            issuer_expiry: IntGauge::new(
                "leno_ca_issuer_expiry_timestamp_seconds",
                "When the issuing certificate or its root ends, whichever is first.",
            )?,
            serving_expiry: IntGauge::new(
                "leno_ca_serving_expiry_timestamp_seconds",
                "When the certificate of the control plane's own ports ends.",
            )?,
            roots: IntGauge::new("leno_ca_trusted_roots", "Roots that are trusted now.")?,
            publish_failures: IntCounter::new(
                "leno_ca_bundle_write_failures_total",
                "Times the trust bundle could not be stored.",
            )?,
        })
    }

    /// # Errors
    /// When a metric of the same name is there already.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.issued.clone()))?;
        registry.register(Box::new(self.refused.clone()))?;
        registry.register(Box::new(self.reloads.clone()))?;
        registry.register(Box::new(self.issuer_expiry.clone()))?;
        registry.register(Box::new(self.serving_expiry.clone()))?;
        registry.register(Box::new(self.roots.clone()))?;
        registry.register(Box::new(self.publish_failures.clone()))
    }
}

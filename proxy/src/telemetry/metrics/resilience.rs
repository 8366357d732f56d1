//! Of breakers and ejections.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::New;
pub use concurrency::Concurrency;

mod concurrency;

/// Why endpoints are ejected.
pub const EJECTION_CAUSES: [&str; 5] = [
    "consecutive_5xx",
    "consecutive_gateway_errors",
    "consecutive_local_errors",
    "success_rate",
    "latency",
];

/// By service port: `shop/orders:80`.
#[derive(Debug)]
pub struct Resilience {
    /// Endpoints ejected so far, by service and cause.
    pub ejections: IntCounterVec,
    /// Endpoints ejected now, by service.
    pub endpoints_ejected: IntGaugeVec,
    /// Where error-rate and slow-call breakers are, by service: 0 closed, 1 half-open, 2 open.
    pub circuit_state: IntGaugeVec,
    /// What they rejected, by service.
    pub circuit_rejected: IntCounterVec,
    /// What the application beside us is given at once.
    pub concurrency: Concurrency,
}

impl Resilience {
    pub(super) fn register(new: &New<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            ejections: new.counters(
                "leno_outlier_ejections_total",
                "Endpoints taken out of service for a while.",
                &["service", "cause"],
            )?,
            endpoints_ejected: new.gauges(
                "leno_endpoints_ejected",
                "Endpoints that are out of service now.",
                &["service"],
            )?,
            circuit_state: new.gauges(
                "leno_circuit_state",
                "The error-rate and slow-call breaker: 0 closed, 1 half-open, 2 open.",
                &["service"],
            )?,
            circuit_rejected: new.counters(
                "leno_circuit_rejected_total",
                "Requests rejected by the error-rate and slow-call breaker.",
                &["service"],
            )?,
            concurrency: Concurrency::register(new)?,
        })
    }

    /// Takes a service port that is no more out of the registry.
    pub fn forget_cluster(&self, name: &str) {
        self.forget_circuit(name);
        let _ = self.endpoints_ejected.remove_label_values(&[name]);
        for cause in EJECTION_CAUSES {
            let _ = self.ejections.remove_label_values(&[name, cause]);
        }
    }

    /// The same for a breaker that is no more. One that never mattered has no series.
    pub fn forget_circuit(&self, name: &str) {
        let _ = self.circuit_state.remove_label_values(&[name]);
        let _ = self.circuit_rejected.remove_label_values(&[name]);
    }
}

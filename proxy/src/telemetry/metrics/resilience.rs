//! Of breakers and ejections, of limits and of faults on purpose.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::New;
pub use concurrency::Concurrency;
pub use limiting::Limiting;
pub use retries::Retries;

mod concurrency;
mod limiting;
mod retries;

/// Why endpoints are ejected.
pub const EJECTION_CAUSES: [&str; 5] = [
    "consecutive_5xx",
    "consecutive_gateway_errors",
    "consecutive_local_errors",
    "success_rate",
    "latency",
];

/// How health checks end; the last is no fault of the endpoint.
pub const HEALTH_RESULTS: [&str; 3] = ["success", "failure", "unasked"];

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
    /// Where each endpoint has a breaker of its own: how many are not closed, by service.
    pub endpoint_circuits_open: IntGaugeVec,
    /// Active health checks, by service and result.
    pub health_checks: IntCounterVec,
    /// Endpoints that fail them now, by service.
    pub endpoints_unhealthy: IntGaugeVec,
    /// What the application beside us is given at once.
    pub concurrency: Concurrency,
    /// What is sent again, and what is not.
    pub retries: Retries,
    /// Limits on what the application beside us is asked for, and faults on purpose.
    pub limiting: Limiting,
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
            endpoint_circuits_open: new.gauges(
                "leno_endpoint_circuits_open",
                "Endpoints whose own breaker is not closed.",
                &["service"],
            )?,
            health_checks: new.counters(
                "leno_health_checks_total",
                "Active health checks of endpoints.",
                &["service", "result"],
            )?,
            endpoints_unhealthy: new.gauges(
                "leno_endpoints_unhealthy",
                "Endpoints that fail their active health checks.",
                &["service"],
            )?,
            concurrency: Concurrency::register(new)?,
            retries: Retries::register(new)?,
            limiting: Limiting::register(new)?,
        })
    }

    /// Takes a service port that is no more out of the registry.
    pub fn forget_cluster(&self, name: &str) {
        self.retries.forget(name);
        self.forget_circuit(name);
        self.forget_checks(name);
        let _ = self.endpoints_ejected.remove_label_values(&[name]);
        for cause in EJECTION_CAUSES {
            let _ = self.ejections.remove_label_values(&[name, cause]);
        }
    }

    /// The same for a breaker that is no more. One that never mattered has no series.
    pub fn forget_circuit(&self, name: &str) {
        let _ = self.circuit_state.remove_label_values(&[name]);
        let _ = self.circuit_rejected.remove_label_values(&[name]);
        let _ = self.endpoint_circuits_open.remove_label_values(&[name]);
    }

    /// The same for health checks.
    pub fn forget_checks(&self, name: &str) {
        let _ = self.endpoints_unhealthy.remove_label_values(&[name]);
        for result in HEALTH_RESULTS {
            let _ = self.health_checks.remove_label_values(&[name, result]);
        }
    }
}

//! Of what is sent again, and of what is not.

use prometheus::IntCounterVec;

use super::New;

/// Why what was asked for is not made.
const REASONS: [&str; 9] = [
    "not_asked",
    "may_be_processed",
    "body_not_kept",
    "attempts",
    "asked_to_wait",
    "deadline",
    "over_budget",
    "limit",
    "breaker",
];
/// How hedged exchanges end.
const RESULTS: [&str; 4] = ["won", "lost", "failed", "denied"];

/// By service port: `shop/orders:80`.
#[derive(Debug)]
pub struct Retries {
    /// Attempts that somebody asked for and that were not made, by reason.
    pub denied: IntCounterVec,
    /// Exchanges with hedged attempts, by how they ended: `won`, `lost`, `failed`; and `denied` ones.
    pub hedges: IntCounterVec,
}

impl Retries {
    pub(super) fn register(new: &New<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            denied: new.counters(
                "leno_retries_denied_total",
                "Retries and hedged attempts that were asked for and not made.",
                &["service", "reason"],
            )?,
            hedges: new.counters(
                "leno_hedges_total",
                "Hedged exchanges: won or lost by the later attempt, failed, or denied.",
                &["service", "result"],
            )?,
        })
    }

    /// Takes a service port that is no more out of the registry.
    pub(super) fn forget(&self, service: &str) {
        for reason in REASONS {
            let _ = self.denied.remove_label_values(&[service, reason]);
        }
        for result in RESULTS {
            let _ = self.hedges.remove_label_values(&[service, result]);
        }
    }
}

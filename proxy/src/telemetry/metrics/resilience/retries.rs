//! Of what is sent again, and of what is not.

use prometheus::IntCounterVec;

use super::New;

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
}

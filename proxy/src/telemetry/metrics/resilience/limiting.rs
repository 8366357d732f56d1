//! Of limits on what the application beside us is asked for, and of faults on purpose.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::New;

/// What faults are.
pub const FAULTS: [&str; 2] = ["delay", "abort"];
/// What identifies a rate limit.
const LABELS: [&str; 3] = ["service", "policy", "limit"];

/// There are none where no policy asks for limits or faults.
#[derive(Debug)]
pub struct Limiting {
    /// Requests above a rate limit, by policy and limit.
    pub limited: IntCounterVec,
    /// Keys of a rate limit that are remembered now.
    pub keys: IntGaugeVec,
    /// Keys that were forgotten before their buckets were full.
    pub forgotten: IntGaugeVec,
    /// Of global limits: 1 while the control plane grants a share, 0 while there is the local one only.
    pub leased: IntGaugeVec,
    /// Faults that were injected, by policy and kind: delay or abort.
    pub injected: IntCounterVec,
    /// Delays that were left out, since too many are under way.
    pub skipped: IntCounterVec,
}

impl Limiting {
    pub(super) fn register(new: &New<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            limited: new.counters(
                "leno_rate_limited_total",
                "Requests refused since they were above a rate limit.",
                &["policy", "limit"],
            )?,
            keys: new.gauges(
                "leno_rate_limit_keys",
                "Callers, addresses or values that a rate limit counts now, each by itself.",
                &LABELS,
            )?,
            forgotten: new.gauges(
                "leno_rate_limit_keys_forgotten",
                "Of these, how many were forgotten too early, since there were too many.",
                &LABELS,
            )?,
            leased: new.gauges(
                "leno_rate_limit_leased",
                "Global limits: 1 with a share from the control plane, 0 with the local share.",
                &LABELS,
            )?,
            injected: new.counters(
                "leno_faults_injected_total",
                "Requests that were delayed or aborted on purpose.",
                &["policy", "kind"],
            )?,
            skipped: new.counters(
                "leno_faults_skipped_total",
                "Requests that were not delayed on purpose, since too many are delayed already.",
                &["policy"],
            )?,
        })
    }

    /// Takes a rate limit that is no more out of the registry; `last`: no other service has it either.
    pub fn forget(&self, service: &str, policy: &str, limit: &str, last: bool) {
        let labels = [service, policy, limit];
        for family in [&self.keys, &self.forgotten, &self.leased] {
            let _ = family.remove_label_values(&labels);
        }
        if last {
            let _ = self.limited.remove_label_values(&[policy, limit]);
        }
    }

    /// The same for a policy of faults.
    pub fn forget_faults(&self, policy: &str) {
        for kind in FAULTS {
            let _ = self.injected.remove_label_values(&[policy, kind]);
        }
        let _ = self.skipped.remove_label_values(&[policy]);
    }
}

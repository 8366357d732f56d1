//! `FaultPolicy`: how a service fails on purpose.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{matching::RequestMatch, reference::TargetRef};

/// `spec` of a `FaultPolicy`: what callers of a service get to see of it, so that what protects them can be tested.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultPolicySpec {
    /// The services it applies to, 1 to 16, in its own namespace.
    pub target_refs: Vec<TargetRef>,
    /// 1 to 32; for each request the first that matches.
    pub rules: Vec<FaultRule>,
}

/// One fault: `delay`, `abort` or both, first the delay.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultRule {
    /// Any of these is enough, 1 to 32; every request when left out.
    pub matches: Option<Vec<RequestMatch>>,
    /// Of the requests that match, 0 to 100 with at most four decimals; 100 when left out.
    pub percent: Option<f64>,
    /// Wait before the request goes on; 1ms to 1h.
    pub delay: Option<String>,
    /// Answer instead of the service.
    pub abort: Option<Abort>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// With this status; 200 to 599.
    pub status: Option<i64>,
    /// With 200 and this `grpc-status`; 1 to 16.
    pub grpc_status: Option<i64>,
}

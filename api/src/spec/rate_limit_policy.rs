//! `RateLimitPolicy`: how much a service takes from whom.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    matching::RequestMatch,
    reference::TargetRef,
    traffic_policy::{Empty, Named},
};

/// `spec` of a `RateLimitPolicy`. Limits hold at the sidecars of the service's workloads; a request must be within all
/// that apply to it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitPolicySpec {
    /// The services it applies to, 1 to 16, in its own namespace.
    pub target_refs: Vec<TargetRef>,
    /// 1 to 32.
    pub limits: Vec<Limit>,
}

/// So many requests in a time; more are answered with 429, `Retry-After` and `RateLimit`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// For headers, logs and metrics: a DNS label, unique within the policy.
    pub name: String,
    /// 1 to 10,000,000.
    pub requests: i64,
    /// In which time; 100ms to 24h.
    pub per: String,
    /// How many may come at once; 1 to 10,000,000, as many as `requests` when left out.
    pub burst: Option<i64>,
    /// What has a count of its own, 1 to 4 together; all requests share one when left out.
    pub by: Option<Vec<LimitKey>>,
    /// Any of these is enough, 1 to 32; every request when left out.
    pub matches: Option<Vec<RequestMatch>>,
    /// `Local` when left out.
    pub scope: Option<LimitScope>,
    /// Status of the answer above the limit; 400 to 599, 429 when left out.
    pub status: Option<i64>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitKey {
    /// The caller's identity.
    pub caller: Option<Empty>,
    /// The value of a header.
    pub header: Option<Named>,
    /// The address of the connection's peer.
    pub source_ip: Option<Empty>,
    /// The path without query.
    pub path: Option<Empty>,
}

/// Where requests are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum LimitScope {
    /// At each workload alone.
    #[default]
    Local,
    /// At all workloads of the service together.
    Global,
}

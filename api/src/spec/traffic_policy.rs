//! `TrafficPolicy`: how callers treat a service.

use schemars::JsonSchema;
use serde::Deserialize;

use super::reference::TargetRef;

/// `spec` of a `TrafficPolicy`. Limits are per proxy.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// The services it applies to, 1 to 16, in its own namespace.
    pub target_refs: Vec<TargetRef>,
    /// Which endpoint gets the next request.
    pub balancer: Option<Balancer>,
    /// Bounds on time.
    pub timeouts: Option<Timeouts>,
    /// Limits above which requests are rejected at once (503, flag UO).
    pub breaker: Option<Breaker>,
    /// Connections kept open for later requests.
    pub pool: Option<Pool>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Balancer {
    /// In turn, by weight.
    pub round_robin: Option<Empty>,
    /// The less busy of two chosen at random (the default).
    pub least_request: Option<Empty>,
    /// At random, by weight.
    pub random: Option<Empty>,
}

/// No settings.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// Durations as `500ms`, `1h30m`; `0s` means none.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// For a connection to be made; 1 s when left out.
    pub connect: Option<String>,
    /// For a whole exchange, where the route says nothing; none when left out.
    pub request: Option<String>,
    /// For an open TCP connection or tunnel without a byte in either direction; 1 h when left out.
    pub idle: Option<String>,
}

/// Limits per proxy and service port.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Breaker {
    /// Open connections; 1,024 when left out.
    pub max_connections: Option<i64>,
    /// Requests waiting for a connection; 1,024 when left out.
    pub max_pending: Option<i64>,
    /// Exchanges at once; 65,536 when left out.
    pub max_exchanges: Option<i64>,
}

/// Idle connections per worker and endpoint.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pool {
    /// Idle connections kept; 64 when left out.
    pub max_idle: Option<i64>,
    /// How long an idle connection is kept; 50 s when left out.
    pub idle_timeout: Option<String>,
}

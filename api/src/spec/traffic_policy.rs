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
    /// Takes endpoints that fail out for a while. On by default.
    pub outlier_detection: Option<OutlierDetection>,
    /// Connections kept open for later requests.
    pub pool: Option<Pool>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Balancer {
    /// The cheaper of two chosen at random, by latency and load (the default).
    pub peak_ewma: Option<PeakEwma>,
    /// The less busy of two chosen at random, by weight.
    pub least_request: Option<Empty>,
    /// In turn, by weight.
    pub round_robin: Option<Empty>,
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

/// The latency of an endpoint as a moving average that takes peaks at once.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeakEwma {
    /// After which time a measurement counts for about a third; 100ms to 10m, 10s when left out.
    pub decay: Option<String>,
}

/// Limits per proxy and service port, and when no more is sent to what fails.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Breaker {
    /// Open connections; 1,024 when left out.
    pub max_connections: Option<i64>,
    /// Requests waiting for a connection; 1,024 when left out.
    pub max_pending: Option<i64>,
    /// Exchanges at once; 65,536 when left out.
    pub max_exchanges: Option<i64>,
    /// Opens the breaker by the share of failures. Not at all when left out.
    pub error_rate: Option<ErrorRate>,
    /// Opens the breaker by the share of slow answers. Not at all when left out.
    pub slow_calls: Option<SlowCalls>,
    /// How long it is open at first; 100ms to 1h, 5s when left out. Each time in a row it is twice as long.
    pub open_for: Option<String>,
    /// How long it is open at most; `openFor` to 1h, 1m when left out.
    pub max_open_for: Option<String>,
    /// How many requests pass then to see whether it may close; 1 to 100, 3 when left out.
    pub probes: Option<i64>,
}

/// Failures among the requests of a sliding window.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ErrorRate {
    /// Length of the window, of slow calls too; 1s to 1h, 10s when left out.
    pub window: Option<String>,
    /// Requests below which nothing is judged, of slow calls too; 1 to 10,000,000, 20 when left out.
    pub minimum: Option<i64>,
    /// Failures from which on it opens; 1 to 100, 50 when left out.
    pub percent: Option<i64>,
}

/// Slow answers among the requests of the same window.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowCalls {
    /// What is slow; 1ms to 1h, 1s when left out.
    pub threshold: Option<String>,
    /// Slow answers from which on it opens; 1 to 100, 50 when left out.
    pub percent: Option<i64>,
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

/// Whether something that is on by default is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Mode {
    /// On.
    #[default]
    Enabled,
    /// Off.
    Disabled,
}

/// When an endpoint is ejected: left out for a while because of how it answers.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// `Enabled` when left out.
    pub mode: Option<Mode>,
    /// Failures in a row, of whatever kind (answers of 500 to 599, or none); 0 to 1,000, 5 when left out, 0 for never.
    #[serde(rename = "consecutive5xx")]
    pub consecutive_5xx: Option<i64>,
    /// Answers of 502, 503 and 504 in a row; 0 to 1,000, never when left out or 0.
    pub consecutive_gateway_errors: Option<i64>,
    /// Failures to connect, resets and timeouts in a row; 0 to 1,000, 5 when left out, 0 for never.
    pub consecutive_local_errors: Option<i64>,
    /// Endpoints that fail more than the others. On by default.
    pub success_rate: Option<SuccessRate>,
    /// Endpoints that are slower than the others. Not judged when left out.
    pub latency: Option<LatencyOutlier>,
    /// Over how long endpoints are compared; 1s to 1h, 10s when left out.
    pub interval: Option<String>,
    /// How long an endpoint is ejected at first; 100ms to 1h, 30s when left out. Each time in a row adds as much.
    pub base_ejection: Option<String>,
    /// How long an endpoint is ejected at most; `baseEjection` to 24h, 5m when left out.
    pub max_ejection: Option<String>,
    /// Endpoints ejected at once; 1 to 100, 50 when left out. Never all of them.
    pub max_ejected_percent: Option<i64>,
    /// Healthy endpoints below which all of them get requests again; 0 to 100, 50 when left out, 0 for never.
    pub panic_percent: Option<i64>,
}

/// Ejects whose success rate is below the average less so many standard deviations.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRate {
    /// `Enabled` when left out.
    pub mode: Option<Mode>,
    /// Endpoints with enough requests below which nothing is compared; 3 to 10,000, 5 when left out.
    pub minimum_hosts: Option<i64>,
    /// Requests of an endpoint within an interval below which it is not compared; 1 to 10,000,000, 100 when left out.
    pub minimum_requests: Option<i64>,
    /// 0.1 to 10; 1.9 when left out.
    pub standard_deviations: Option<f64>,
}

/// Ejects whose mean latency is so many times the median of the others.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LatencyOutlier {
    /// 1.5 to 1,000; 3 when left out.
    pub factor: Option<f64>,
    /// Endpoints with enough requests below which nothing is compared; 3 to 10,000, 3 when left out.
    pub minimum_hosts: Option<i64>,
    /// Requests of an endpoint within an interval below which it is not compared; 1 to 10,000,000, 20 when left out.
    pub minimum_requests: Option<i64>,
}

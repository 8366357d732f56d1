//! `TrafficPolicy`: how callers treat a service.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{matching::HeaderMatch, quantity::Bytes, reference::TargetRef};

/// `spec` of a `TrafficPolicy`. Limits are per proxy.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// The services it applies to, 1 to 16, in its own namespace.
    pub target_refs: Vec<TargetRef>,
    /// Which endpoint gets the next request; `peakEwma` when left out.
    pub balancer: Option<Balancer>,
    /// How much more than its share an endpoint takes; only beside `ringHash` and `maglev`.
    pub bounded_load: Option<BoundedLoad>,
    /// Whether endpoints in the caller's zone go first.
    pub zones: Option<Zones>,
    /// How new and returning endpoints come up to their share.
    pub slow_start: Option<SlowStart>,
    /// Bounds on time.
    pub timeouts: Option<Timeouts>,
    /// Limits above which requests are rejected at once (503, flag UO), and the breaker that opens on errors.
    pub breaker: Option<Breaker>,
    /// Connections kept open for later requests.
    pub pool: Option<Pool>,
    /// When an endpoint is left out for a while because of how it answers. On by default.
    pub outlier_detection: Option<OutlierDetection>,
    /// What is sent again. What cannot have been processed always is.
    pub retry: Option<Retry>,
    /// How many retries and hedged attempts there may be, whatever routes ask for.
    pub retry_budget: Option<RetryBudget>,
    /// Sends a second attempt of an idempotent request while the first is still waiting.
    pub hedging: Option<Hedging>,
    /// Asks every endpoint how it is.
    pub health_check: Option<HealthCheck>,
    /// At the service's own sidecar: how many requests the application gets at once.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// Which requests go first where `adaptiveConcurrency` makes them wait; the first that matches counts. At most 32.
    pub priorities: Option<Vec<Priority>>,
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
    /// The same endpoint for the same key, by a ring of hashes.
    pub ring_hash: Option<RingHash>,
    /// The same endpoint for the same key, by Maglev's table: evener than a ring, with a little more moved at a change.
    pub maglev: Option<Maglev>,
}

/// No settings.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// The latency of an endpoint as a moving average that takes peaks at once.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeakEwma {
    /// After which time a measurement counts for about a third; 100ms to 10m, 10s when left out.
    pub decay: Option<String>,
}

/// A ring of hashes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RingHash {
    /// What the key is made of, 1 to 8; the first that the request has. At random for requests that have none.
    pub hash_on: Vec<HashOn>,
    /// Points on the ring, at least; 64 to 1,048,576, 1,024 when left out.
    pub minimum_size: Option<i64>,
}

/// Maglev's table.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Maglev {
    /// What the key is made of, 1 to 8; the first that the request has. At random for requests that have none.
    pub hash_on: Vec<HashOn>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashOn {
    /// The value of a header.
    pub header: Option<Named>,
    /// The value of a cookie.
    pub cookie: Option<HashCookie>,
    /// The address of the connection's peer.
    pub source_ip: Option<Empty>,
    /// The value of a query parameter.
    pub query: Option<Named>,
}

/// Something with a name.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Case does not matter in names of headers.
    pub name: String,
}

/// A cookie that keeps a user at an endpoint.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashCookie {
    /// A token (RFC 6265 section 4.1.1).
    pub name: String,
    /// Makes the proxy set the cookie where it is missing: `0s` for the session, at most 8760h. Never set when left out.
    pub ttl: Option<String>,
    /// `Path` of the cookie that the proxy sets; needs `ttl`, `/` when left out.
    pub path: Option<String>,
}

/// How much more than its share an endpoint takes before its keys go to others; up to eight requests are never too many.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BoundedLoad {
    /// Of the average load; 101 to 1,000, 125 when left out.
    pub percent: Option<i64>,
}

/// Endpoints by zone.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Zones {
    /// Whether endpoints in the caller's zone go first; true when left out.
    pub prefer: Option<bool>,
    /// Below this share of healthy endpoints the zone sends a part elsewhere; 1 to 100, 70 when left out.
    pub minimum_healthy_percent: Option<i64>,
}

/// How endpoints come up to their share.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowStart {
    /// Until they have all of it; 1s to 1h, 30s when left out.
    pub window: Option<String>,
    /// What they begin with; 1 to 100, 10 when left out. 100 is no slow start.
    pub minimum_percent: Option<i64>,
}

/// Durations as `500ms`, `1h30m`; `0s` means none.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// For a connection to be made; 1 s when left out.
    pub connect: Option<String>,
    /// For a whole exchange, where the route says nothing; none when left out.
    pub request: Option<String>,
    /// For one attempt, where the route says nothing; none when left out. At most `request`.
    pub attempt: Option<String>,
    /// For an open TCP connection or tunnel without a byte in either direction; 1 h when left out.
    pub idle: Option<String>,
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
    /// Retries and hedged attempts at once; 0 to 10,000,000, 1,024 when left out.
    pub max_retries: Option<i64>,
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
    /// What is closed and opened as one; `Service` when left out.
    pub per: Option<Per>,
}

/// What a breaker is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Per {
    /// The whole service, seen from one proxy.
    #[default]
    Service,
    /// Each endpoint alone.
    Endpoint,
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

/// What is sent again, and when. What may have been processed is only sent again if its method is idempotent (RFC 9110
/// section 9.2.2), or as `idempotencyKey` says.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// `Enabled` when left out. `Disabled` sends nothing again, whatever routes say.
    pub mode: Option<Mode>,
    /// Retries of one request, at most; 1 to 10, 2 when left out. A route's `retry.attempts` goes before it.
    pub attempts: Option<i64>,
    /// After what, beside `connect-failure` and `refused-stream`, which count always; at most 16.
    pub on: Option<Vec<RetryOn>>,
    /// Which codes `retriable-status` is, 400 to 599; 1 to 32.
    pub statuses: Option<Vec<i64>>,
    /// After which codes of gRPC; 1 to 5.
    pub grpc: Option<Vec<GrpcCode>>,
    /// How long to wait.
    pub backoff: Option<Backoff>,
    /// A longer `Retry-After` of the upstream is not waited for: the answer goes to the caller; 0s to 1h, 1s when left
    /// out.
    pub max_retry_after: Option<String>,
    /// Whether a request with an `Idempotency-Key` header counts as idempotent; false when left out.
    pub idempotency_key: Option<bool>,
    /// How much of a request's body is kept to be sent again, in bytes or as `64Ki`; 0 to 16Mi, 64Ki when left out.
    #[serde(default)]
    #[schemars(with = "Bytes")]
    pub replay_buffer: Option<Bytes>,
}

/// After what a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RetryOn {
    /// No connection was made; counts always.
    #[serde(rename = "connect-failure")]
    ConnectFailure,
    /// The upstream refused the stream (RFC 9113 section 8.7); counts always.
    #[serde(rename = "refused-stream")]
    RefusedStream,
    /// The connection or stream ended before the response began, or an attempt took too long.
    #[serde(rename = "reset")]
    Reset,
    /// Answers of 500 to 599.
    #[serde(rename = "5xx")]
    ServerError,
    /// Answers of 502, 503 and 504.
    #[serde(rename = "gateway-error")]
    GatewayError,
    /// Answers of 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// Answers with one of `statuses`.
    #[serde(rename = "retriable-status")]
    RetriableStatus,
}

/// A status of gRPC after which a call may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GrpcCode {
    /// 1.
    Cancelled,
    /// 4.
    DeadlineExceeded,
    /// 8.
    ResourceExhausted,
    /// 13.
    Internal,
    /// 14.
    Unavailable,
}

/// How long to wait before a retry: at random up to `base`, then up to twice as long each time.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// 1ms to 1m; 25ms when left out.
    pub base: Option<String>,
    /// `base` to 1h; 250ms, or ten times `base` where that is more, when left out.
    pub max: Option<String>,
}

/// Retries and hedged attempts per proxy and service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Of the exchanges under way; 0 to 100, 20 when left out.
    pub percent: Option<i64>,
    /// So many are allowed however little is under way; 0 to 10,000, 10 when left out.
    pub minimum_per_second: Option<i64>,
}

/// Exactly one of `after` and `p95` is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hedging {
    /// After this time without a response; 1ms to 1m.
    pub after: Option<String>,
    /// After the time in which 95 % of the service's responses begin.
    pub p95: Option<Empty>,
    /// Further attempts, at most; 1 to 3, 1 when left out.
    pub attempts: Option<i64>,
}

/// How endpoints are asked how they are. Exactly one of `http`, `grpc` and `tcp` is set.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// `GET` of a path.
    pub http: Option<HttpHealthCheck>,
    /// `grpc.health.v1.Health/Check`.
    pub grpc: Option<GrpcHealthCheck>,
    /// A connection.
    pub tcp: Option<Empty>,
    /// How often; 100ms to 1h, 5s when left out.
    pub interval: Option<String>,
    /// After which time without an answer it has failed; 1ms to `interval`, 1s (at most `interval`) when left out.
    pub timeout: Option<String>,
    /// Good answers in a row after which an unhealthy endpoint is healthy; 1 to 100, 2 when left out.
    pub healthy: Option<i64>,
    /// Failures in a row after which a healthy endpoint is unhealthy; 1 to 100, 3 when left out.
    pub unhealthy: Option<i64>,
    /// Another port of the endpoint than that for requests.
    pub port: Option<i64>,
}

/// A health check by HTTP.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHealthCheck {
    /// Path, with a query if need be: `/healthz`.
    pub path: String,
    /// `Host` of the request; the service's name when left out.
    pub host: Option<String>,
    /// Good answers, 1 to 32 of 100 to 599; 200 to 299 when left out.
    pub statuses: Option<Vec<i64>>,
}

/// A health check by gRPC.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcHealthCheck {
    /// Which service is asked for; the server as a whole when left out.
    pub service: Option<String>,
}

/// A limit on requests at once that follows the application's latency, and the queue before it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdaptiveConcurrency {
    /// The limit is never lower; 3 to 100,000, 4 when left out. Each of the proxy's workers has at least 3 of it.
    pub minimum: Option<i64>,
    /// The limit is never higher; `minimum` to 100,000, 1,000 when left out.
    pub maximum: Option<i64>,
    /// The limit to begin with; `minimum` to `maximum`, 20 when left out.
    pub initial: Option<i64>,
    /// Where requests above the limit wait.
    pub queue: Option<Queue>,
}

/// A queue that drops when waiting has become the rule (CoDel, RFC 8289).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Queue {
    /// Requests that wait in each of the proxy's workers, at most; 0 to 100,000, 1,000 when left out.
    pub length: Option<i64>,
    /// The wait that is acceptable; 1ms to 10s, 5ms when left out.
    pub target: Option<String>,
    /// How long the wait may be above `target`; `target` to 1m, 100ms when left out.
    pub interval: Option<String>,
}

/// How important some requests are. At least one of `header` and `pathPrefix` is set; all that are must match.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Priority {
    /// A header of the request.
    pub header: Option<HeaderMatch>,
    /// Whole segments of the path, from the start.
    pub path_prefix: Option<String>,
    /// How important.
    pub priority: PriorityLevel,
}

/// How important a request is. Health checks go before all of them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema,
)]
pub enum PriorityLevel {
    /// Dropped last.
    Critical,
    /// What no entry matches.
    #[default]
    Normal,
    /// Dropped first.
    Sheddable,
}

//! `TrafficPolicy`.

mod balancer;
mod circuit;
mod concurrency;
mod health_check;
mod outlier;
pub(crate) mod retry;

pub use balancer::{Balancer, BoundedLoad, HashCookie, HashKey, SlowStart, Zones};
pub use circuit::{Circuit, Per, SlowCalls};
pub use concurrency::{AdaptiveConcurrency, Priority, PriorityLevel, Queue};
pub use health_check::{HealthCheck, Probe};
pub use outlier::{LatencyOutlier, OutlierDetection, SuccessRate};
pub use retry::{
    Backoff, Conditions, GrpcCode, HedgeAfter, Hedging, Retry, RetryBudget, grpc_number,
};

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        backend::is_service,
        http_route::{check_count, parse_duration},
        name::check_subdomain,
        range::Fields,
    },
    resource::read,
    spec::{reference::TargetRef, traffic_policy as raw},
};

const MAX_TARGETS: usize = 16;
/// Of connections, requests and the like: far above what one proxy can have.
const MAX_LIMIT: u32 = 10_000_000;

/// How callers treat some services. Limits are per proxy and service port.
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown. The older of two policies for one target wins.
    pub created: String,
    /// At least one.
    pub targets: Vec<Target>,
    /// What it says.
    pub settings: Arc<Settings>,
}

/// A service, or one port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which service.
    pub service: ObjectName,
    /// Only this port, by name.
    pub section: Option<String>,
}

/// How a service is treated; the defaults are those of a service without a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Which endpoint gets the next request.
    pub balancer: Balancer,
    /// How much more than its share an endpoint takes, where the balancer hashes.
    pub bounded_load: BoundedLoad,
    /// Whether endpoints in the caller's zone go first.
    pub zones: Zones,
    /// How new and returning endpoints come up to their share.
    pub slow_start: SlowStart,
    /// For a connection to be made.
    pub connect_timeout: Duration,
    /// For a whole exchange; `ZERO` is none.
    pub request_timeout: Duration,
    /// For one attempt; `ZERO` is none.
    pub attempt_timeout: Duration,
    /// For a TCP connection or tunnel without a byte; `ZERO` is none.
    pub idle_timeout: Duration,
    /// Open connections.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending: u32,
    /// Exchanges at once.
    pub max_exchanges: u32,
    /// Retries and hedged attempts at once.
    pub max_retries: u32,
    /// When no more is sent to what fails.
    pub circuit: Circuit,
    /// When an endpoint is ejected.
    pub outlier_detection: OutlierDetection,
    /// What is sent again.
    pub retry: Retry,
    /// How many retries and hedged attempts there may be.
    pub retry_budget: RetryBudget,
    /// Second attempts while the first is still waiting.
    pub hedging: Option<Hedging>,
    /// How endpoints are asked how they are.
    pub health_check: Option<HealthCheck>,
    /// At the service's own sidecar: how many requests the application gets at once.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// Idle connections kept per worker and endpoint.
    pub max_idle: u32,
    /// How long an idle connection is kept.
    pub pool_idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            balancer: Balancer::default(),
            bounded_load: BoundedLoad::default(),
            zones: Zones::default(),
            slow_start: SlowStart::default(),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::ZERO,
            attempt_timeout: Duration::ZERO,
            idle_timeout: Duration::from_secs(3600),
            max_connections: 1024,
            max_pending: 1024,
            max_exchanges: 65_536,
            max_retries: 1024,
            circuit: Circuit::default(),
            outlier_detection: OutlierDetection::default(),
            retry: Retry::default(),
            retry_budget: RetryBudget::default(),
            hedging: None,
            health_check: None,
            adaptive_concurrency: None,
            max_idle: 64,
            // Below the 60 s after which servers commonly close: a connection must not be used as it ends.
            pool_idle_timeout: Duration::from_secs(50),
        }
    }
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let mut raw: raw::TrafficPolicySpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let target_refs = std::mem::take(&mut raw.target_refs);
    let targets = parse_targets(&at.field("targetRefs"), target_refs, &name, problems);
    let settings = parse_settings(at, raw, problems).into();
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::TrafficPolicy(TrafficPolicy { name, created, targets, settings }.into()))
}

fn parse_settings(at: Path<'_>, raw: raw::TrafficPolicySpec, problems: &mut Problems) -> Settings {
    let balancer = match raw.balancer {
        Some(raw) => balancer::parse_balancer(at.field("balancer"), raw, problems),
        None => Balancer::default(),
    };
    let bounded_at = at.field("boundedLoad");
    let check_at = at.field("healthCheck");
    let mut settings = Settings {
        bounded_load: balancer::parse_bounded_load(
            bounded_at,
            raw.bounded_load,
            &balancer,
            problems,
        ),
        balancer,
        zones: balancer::parse_zones(at.field("zones"), raw.zones, problems),
        slow_start: balancer::parse_slow_start(at.field("slowStart"), raw.slow_start, problems),
        outlier_detection: outlier::parse_outlier_detection(
            at.field("outlierDetection"),
            raw.outlier_detection,
            problems,
        ),
        retry: retry::parse_retry(at.field("retry"), raw.retry, problems),
        retry_budget: retry::parse_retry_budget(
            at.field("retryBudget"),
            raw.retry_budget,
            problems,
        ),
        hedging: raw.hedging.map(|raw| retry::parse_hedging(at.field("hedging"), &raw, problems)),
        health_check: raw
            .health_check
            .map(|raw| health_check::parse_health_check(check_at, raw, problems)),
        adaptive_concurrency: concurrency::parse_concurrency(
            at,
            raw.adaptive_concurrency,
            raw.priorities,
            problems,
        ),
        ..Settings::default()
    };
    if let Some(raw) = raw.timeouts {
        parse_timeouts(&at.field("timeouts"), raw, &mut settings, problems);
    }
    if let Some(raw) = raw.breaker {
        parse_breaker(at.field("breaker"), &raw, &mut settings, problems);
    }
    if let Some(raw) = raw.pool {
        parse_pool(at.field("pool"), &raw, &mut settings, problems);
    }
    settings
}

fn parse_timeouts(
    at: &Path<'_>,
    raw: raw::Timeouts,
    settings: &mut Settings,
    problems: &mut Problems,
) {
    let mut set = |field: &str, raw: Option<String>, slot: &mut Duration| {
        if let Some(duration) = parse_duration(&at.field(field), raw.as_deref(), problems) {
            *slot = duration;
        }
    };
    set("connect", raw.connect, &mut settings.connect_timeout);
    set("request", raw.request, &mut settings.request_timeout);
    set("attempt", raw.attempt, &mut settings.attempt_timeout);
    set("idle", raw.idle, &mut settings.idle_timeout);
    if settings.connect_timeout.is_zero() {
        problems.add(
            at.field("connect"),
            "must be more than zero: a connection that never comes must end",
        );
    }
    if !settings.request_timeout.is_zero() && settings.attempt_timeout > settings.request_timeout {
        problems.add(at.field("attempt"), "must not be longer than timeouts.request");
    }
}

fn parse_breaker(
    at: Path<'_>,
    raw: &raw::Breaker,
    settings: &mut Settings,
    problems: &mut Problems,
) {
    settings.circuit = circuit::parse_circuit(at, raw, problems);
    let mut fields = Fields::new(at, problems);
    let mut set = |field: &str, raw: Option<i64>, least: u32, slot: &mut u32| {
        *slot = fields.number(field, raw, least..=MAX_LIMIT, *slot);
    };
    set("maxConnections", raw.max_connections, 1, &mut settings.max_connections);
    set("maxPending", raw.max_pending, 0, &mut settings.max_pending);
    set("maxExchanges", raw.max_exchanges, 1, &mut settings.max_exchanges);
    set("maxRetries", raw.max_retries, 0, &mut settings.max_retries);
}

fn parse_pool(at: Path<'_>, raw: &raw::Pool, settings: &mut Settings, problems: &mut Problems) {
    let idle = parse_duration(&at.field("idleTimeout"), raw.idle_timeout.as_deref(), problems);
    settings.pool_idle_timeout = idle.unwrap_or(settings.pool_idle_timeout);
    let mut fields = Fields::new(at, problems);
    settings.max_idle = fields.number("maxIdle", raw.max_idle, 0..=MAX_LIMIT, settings.max_idle);
}

pub(crate) fn parse_targets(
    at: &Path<'_>,
    raw: Vec<TargetRef>,
    policy: &ObjectName,
    problems: &mut Problems,
) -> Vec<Target> {
    check_count(at, raw.len(), 1, MAX_TARGETS, problems);
    let mut targets = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let here = at.index(i);
        if !is_service(&raw.group, &raw.kind) {
            problems.add(here.field("kind"), "must be a Service (group \"\" or leno.dev)");
        } else if problems.take(&here.field("name"), check_subdomain(&raw.name)).is_some() {
            let service = ObjectName::new(&policy.namespace, &raw.name);
            targets.push(Target { service, section: raw.section_name });
        }
    }
    targets
}

#[cfg(test)]
mod tests;

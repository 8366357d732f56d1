//! `TrafficPolicy`.

mod balancer;
mod circuit;
mod outlier;

pub use balancer::Balancer;
pub use circuit::{Circuit, SlowCalls};
pub use outlier::{LatencyOutlier, OutlierDetection, SuccessRate};

use std::time::Duration;

use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        backend::is_service,
        http_route::{check_count, parse_duration},
        name::check_subdomain,
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
    pub settings: Settings,
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
    /// For a connection to be made.
    pub connect_timeout: Duration,
    /// For a whole exchange; `ZERO` is none.
    pub request_timeout: Duration,
    /// For a TCP connection or tunnel without a byte; `ZERO` is none.
    pub idle_timeout: Duration,
    /// Open connections.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending: u32,
    /// Exchanges at once.
    pub max_exchanges: u32,
    /// When no more is sent to what fails.
    pub circuit: Circuit,
    /// When an endpoint is ejected.
    pub outlier_detection: OutlierDetection,
    /// Idle connections kept per worker and endpoint.
    pub max_idle: u32,
    /// How long an idle connection is kept.
    pub pool_idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            balancer: Balancer::default(),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::ZERO,
            idle_timeout: Duration::from_secs(3600),
            max_connections: 1024,
            max_pending: 1024,
            max_exchanges: 65_536,
            circuit: Circuit::default(),
            outlier_detection: OutlierDetection::default(),
            max_idle: 64,
            // Below the 60 s after which servers commonly close: a connection must not be used as it ends.
            pool_idle_timeout: Duration::from_secs(50),
        }
    }
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::TrafficPolicySpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let targets = parse_targets(&at.field("targetRefs"), raw.target_refs, &name, problems);
    let mut settings = Settings::default();
    if let Some(balancer) = raw.balancer {
        settings.balancer = balancer::parse_balancer(at.field("balancer"), balancer, problems);
    }
    settings.outlier_detection = outlier::parse_outlier_detection(
        at.field("outlierDetection"),
        raw.outlier_detection,
        problems,
    );
    if let Some(timeouts) = raw.timeouts {
        let here = at.field("timeouts");
        let mut set = |field: &str, raw: Option<String>, slot: &mut Duration| {
            if let Some(duration) = parse_duration(&here.field(field), raw.as_deref(), problems) {
                *slot = duration;
            }
        };
        set("connect", timeouts.connect, &mut settings.connect_timeout);
        set("request", timeouts.request, &mut settings.request_timeout);
        set("idle", timeouts.idle, &mut settings.idle_timeout);
        if settings.connect_timeout.is_zero() {
            problems.add(
                here.field("connect"),
                "must be more than zero: a connection that never comes must end",
            );
        }
    }
    if let Some(breaker) = raw.breaker {
        let here = at.field("breaker");
        settings.circuit = circuit::parse_circuit(here, &breaker, problems);
        limit(
            &here.field("maxConnections"),
            breaker.max_connections,
            1,
            &mut settings.max_connections,
            problems,
        );
        limit(
            &here.field("maxPending"),
            breaker.max_pending,
            0,
            &mut settings.max_pending,
            problems,
        );
        limit(
            &here.field("maxExchanges"),
            breaker.max_exchanges,
            1,
            &mut settings.max_exchanges,
            problems,
        );
    }
    if let Some(pool) = raw.pool {
        let here = at.field("pool");
        limit(&here.field("maxIdle"), pool.max_idle, 0, &mut settings.max_idle, problems);
        let idle =
            parse_duration(&here.field("idleTimeout"), pool.idle_timeout.as_deref(), problems);
        settings.pool_idle_timeout = idle.unwrap_or(settings.pool_idle_timeout);
    }
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::TrafficPolicy(TrafficPolicy { name, created, targets, settings }.into()))
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

fn limit(at: &Path<'_>, raw: Option<i64>, least: i64, slot: &mut u32, problems: &mut Problems) {
    let Some(number) = raw else { return };
    match u32::try_from(number).ok().filter(|_| (least..=i64::from(MAX_LIMIT)).contains(&number)) {
        Some(number) => *slot = number,
        None => problems.add(at, format!("must be {least} to {MAX_LIMIT}")),
    }
}

#[cfg(test)]
mod tests;

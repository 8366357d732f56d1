//! How endpoints and breakers are shown.

use std::{sync::Arc, time::Duration};

use leno_api::model::traffic_policy::Probe;
use serde_json::{Value, json};

use crate::cluster::{
    Cluster, Endpoint, circuit::State, health::Checked, outlier::Factor, vitals::Vitals,
};

/// Of one endpoint: `factor` is which share of what its weight says it gets, 0 to 1.
pub(super) fn endpoint(endpoint: &Endpoint, now: Duration) -> Value {
    let Some(vitals) = endpoint.known_vitals() else {
        return json!({
            "factor": 1.0, "ejected": null, "latencyMs": null, "successes": 0, "failures": 0,
            "check": null, "circuit": null,
        });
    };
    let totals = vitals.totals();
    let ejected = vitals.ejected().map(|(until, cause)| {
        json!({ "forSeconds": seconds(until.saturating_sub(now)), "cause": cause.to_string() })
    });
    json!({
        "factor": rounded(vitals.factor()), "ejected": ejected,
        "latencyMs": vitals.latency().map(millis),
        "successes": totals.successes, "failures": totals.failures,
        "check": vitals.checked().map(|checked| check(&checked, now)),
        "circuit": breaker(vitals).map(|state| circuit_json(&state, now)),
    })
}

fn check(checked: &Checked, now: Duration) -> Value {
    json!({
        "healthy": checked.healthy, "sinceSeconds": seconds(now.saturating_sub(checked.since)),
        "agoSeconds": seconds(now.saturating_sub(checked.at)), "error": checked.error.as_deref(),
    })
}

/// Where the endpoint's own breaker is, if it has one.
fn breaker(vitals: &Vitals) -> Option<Arc<State>> {
    vitals.breaker()?.state.load_full()
}

fn circuit_json(state: &State, now: Duration) -> Value {
    let (since, open_for, cause) = figures(state, now);
    json!({
        "state": state.to_string(), "sinceSeconds": seconds(now.saturating_sub(since)),
        "openForSeconds": open_for.map(seconds), "cause": cause,
    })
}

/// Of the error-rate and slow-call breaker of the service; `null` where there is none. One that nobody had to do with is
/// closed.
pub(super) fn circuit(cluster: &Cluster, now: Duration) -> Value {
    let mut shown = match cluster.state.circuit.load_full() {
        Some(state) => circuit_json(&state, now),
        None if cluster.settings.circuit.is_on() && !cluster.has_breakers() => {
            json!({ "state": "closed", "sinceSeconds": null, "openForSeconds": null, "cause": null })
        }
        None => return Value::Null,
    };
    shown["rejected"] = cluster.state.gate.rejected().into();
    shown
}

/// How endpoints are asked how they are; `null` where they are not.
pub(super) fn check_policy(cluster: &Cluster) -> Value {
    let Some(check) = &cluster.settings.health_check else { return Value::Null };
    let probe = match &check.probe {
        Probe::Http { path, .. } => format!("http {path}"),
        Probe::Grpc { service } => format!("grpc {service}"),
        Probe::Tcp => "tcp".to_owned(),
    };
    json!({
        "probe": probe.trim_end(), "port": check.port, "intervalSeconds": seconds(check.interval),
        "healthy": check.healthy, "unhealthy": check.unhealthy,
    })
}

/// Of one endpoint, as the ends of Envoy-like lines.
pub(super) fn endpoint_lines(endpoint: &Endpoint, now: Duration) -> Vec<String> {
    let Some(vitals) = endpoint.known_vitals() else {
        let unknown = ["health_flags::healthy", "factor::1", "rq_success::0", "rq_error::0"];
        return unknown.map(str::to_owned).into();
    };
    let totals = vitals.totals();
    let (ejected, checked) = (vitals.ejected(), vitals.checked());
    let fails = checked.as_ref().is_some_and(|checked| !checked.healthy);
    let flags = match (fails, ejected.is_some()) {
        (true, true) => "/failed_active_hc/failed_outlier_check",
        (true, false) => "/failed_active_hc",
        (false, true) => "/failed_outlier_check",
        (false, false) => "healthy",
    };
    let mut lines = vec![
        format!("health_flags::{flags}"),
        format!("factor::{}", rounded(vitals.factor())),
        format!("rq_success::{}", totals.successes),
        format!("rq_error::{}", totals.failures),
    ];
    lines.extend(vitals.latency().map(|latency| format!("latency_ms::{}", millis(latency))));
    if let Some((until, cause)) = ejected {
        lines.push(format!("ejected_for_s::{}", seconds(until.saturating_sub(now))));
        lines.push(format!("ejected_because::{cause}"));
    }
    if let Some(Checked { since, error, .. }) = checked {
        lines.push(format!("check::since_s::{}", seconds(now.saturating_sub(since))));
        lines.extend(error.map(|error| format!("check::error::{error}")));
    }
    if let Some(state) = breaker(vitals) {
        let (since, open_for, cause) = figures(&state, now);
        lines.push(format!("circuit::state::{state}"));
        lines.push(format!("circuit::since_s::{}", seconds(now.saturating_sub(since))));
        lines.extend(open_for.map(|time| format!("circuit::open_for_s::{}", seconds(time))));
        lines.extend(cause.map(|cause| format!("circuit::cause::{cause}")));
    }
    lines
}

/// Of the breaker, likewise; none where there is none.
pub(super) fn circuit_lines(cluster: &Cluster, now: Duration) -> Vec<String> {
    let Some(state) = cluster.state.circuit.load_full() else { return Vec::new() };
    let (since, open_for, cause) = figures(&state, now);
    let mut lines = vec![
        format!("circuit::state::{state}"),
        format!("circuit::since_s::{}", seconds(now.saturating_sub(since))),
        format!("circuit::rejected::{}", cluster.state.gate.rejected()),
    ];
    lines.extend(open_for.map(|time| format!("circuit::open_for_s::{}", seconds(time))));
    lines.extend(cause.map(|cause| format!("circuit::cause::{cause}")));
    lines
}

/// Since when, for how much longer it is open, and why it is, or was.
fn figures(state: &State, now: Duration) -> (Duration, Option<Duration>, Option<String>) {
    match state {
        State::Closed { since } => (*since, None, None),
        State::Open { since, until, cause, .. } => {
            (*since, Some(until.saturating_sub(now)), Some(cause.to_string()))
        }
        State::HalfOpen { since, cause, .. } => (*since, None, Some(cause.to_string())),
    }
}

fn rounded(factor: Factor) -> f64 {
    (factor.share() * 100.0).round() / 100.0
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

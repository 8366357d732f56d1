//! How endpoints and breakers are shown.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, Endpoint, circuit::State, outlier::Factor};

/// Of one endpoint: `factor` is which share of what its weight says it gets, 0 to 1.
pub(super) fn endpoint(endpoint: &Endpoint, now: Duration) -> Value {
    let vitals = &endpoint.vitals;
    let totals = vitals.totals();
    let ejected = vitals.ejected().map(|(until, cause)| {
        json!({ "forSeconds": seconds(until.saturating_sub(now)), "cause": cause.to_string() })
    });
    json!({
        "factor": rounded(vitals.factor()), "ejected": ejected,
        "latencyMs": vitals.latency().map(millis),
        "successes": totals.successes, "failures": totals.failures,
    })
}

/// Of the error-rate and slow-call breaker; `null` where there is none.
pub(super) fn circuit(cluster: &Cluster, now: Duration) -> Value {
    let Some(state) = cluster.state.circuit.load_full() else { return Value::Null };
    let (since, open_for, cause) = figures(&state, now);
    json!({
        "state": state.to_string(), "sinceSeconds": seconds(now.saturating_sub(since)),
        "openForSeconds": open_for.map(seconds), "cause": cause,
        "rejected": cluster.state.gate.rejected(),
    })
}

/// Of one endpoint, as the ends of Envoy-like lines.
pub(super) fn endpoint_lines(endpoint: &Endpoint, now: Duration) -> Vec<String> {
    let vitals = &endpoint.vitals;
    let totals = vitals.totals();
    let ejected = vitals.ejected();
    let flags = if ejected.is_some() { "/failed_outlier_check" } else { "healthy" };
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

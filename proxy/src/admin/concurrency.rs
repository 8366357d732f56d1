//! How the limit on what the own application is given at once is shown.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, admission::PRIORITY_NAMES};

/// Of how much the own application is given at once; `null` where there is no limit.
pub(super) fn page(cluster: &Cluster) -> Value {
    let admission = &cluster.state.admission;
    let Some(found) = admission.found.load_full() else { return Value::Null };
    let totals = admission.totals();
    let dropped: Map<String, Value> = PRIORITY_NAMES
        .into_iter()
        .zip(totals.dropped)
        .map(|(priority, dropped)| (priority.to_owned(), dropped.into()))
        .collect();
    json!({
        "limit": found.limit, "probing": found.probing, "unloadedMs": found.unloaded.map(millis),
        "running": totals.running, "waiting": totals.waiting,
        "waited": totals.waited, "waitSeconds": totals.wait.as_secs_f64(), "dropped": dropped,
    })
}

/// The same as the ends of Envoy-like lines; none where there is no limit.
pub(super) fn lines(cluster: &Cluster) -> Vec<String> {
    let admission = &cluster.state.admission;
    let Some(found) = admission.found.load_full() else { return Vec::new() };
    let totals = admission.totals();
    let mut lines = vec![
        format!("concurrency::limit::{}", found.limit),
        format!("concurrency::running::{}", totals.running),
        format!("concurrency::waiting::{}", totals.waiting),
    ];
    let unloaded = found.unloaded.map(millis);
    lines.extend(unloaded.map(|unloaded| format!("concurrency::unloaded_ms::{unloaded}")));
    for (priority, dropped) in PRIORITY_NAMES.into_iter().zip(totals.dropped) {
        lines.push(format!("concurrency::dropped_{priority}::{dropped}"));
    }
    lines
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

//! The status of a resource, in Kubernetes' words, and the task that writes it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leno_api::Key;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::{
    Running,
    tally::{Reason, Report},
};
use crate::{
    objects::timestamp,
    plan::ProxyId,
    store::{self, Operation, Store},
    telemetry::Metrics,
};

/// How long to wait after the disk refused.
const RETRY: Duration = Duration::from_secs(5);

/// A report, and what the proxies named in it are called.
pub(super) type Reports = (Vec<Report>, HashMap<ProxyId, String>);

/// Writes reports until there will be no more. One transaction for all that are due together.
pub(super) async fn write(
    store: Arc<dyn Store>,
    mut reports: mpsc::Receiver<Reports>,
    metrics: Arc<Metrics>,
) {
    while let Some((reports, names)) = reports.recv().await {
        let now = timestamp::rfc3339(SystemTime::now());
        let transaction: Vec<_> = reports
            .iter()
            .filter_map(|report| operation(store.as_ref(), report, &names, &now))
            .collect();
        metrics.status_writes.inc_by(u64::try_from(transaction.len()).unwrap_or(0));
        while let Err(error) = store.commit(transaction.clone()).await {
            match error {
                store::Error::Closed => return,
                // The disk may get better; meanwhile the tally keeps what comes, at most one report each.
                store::Error::Disk { .. } => {
                    tracing::warn!(%error, "cannot write the status of resources; trying again");
                    tokio::time::sleep(RETRY).await;
                }
                _ => {
                    tracing::error!(%error, "the status of resources cannot be written");
                    break;
                }
            }
        }
    }
}

/// The place of an object in the store.
pub(super) fn store_key(key: &Key) -> store::Key {
    store::Key {
        group: key.kind.group.into(),
        plural: key.kind.plural.into(),
        namespace: key.name.namespace.clone(),
        name: key.name.name.clone(),
    }
}

fn operation(
    store: &dyn Store,
    report: &Report,
    names: &HashMap<ProxyId, String>,
    now: &str,
) -> Option<Operation> {
    let key = store_key(&report.key);
    let mut object = store.get(&key)?.json().ok()?;
    let before = object.get_mut("status").map(Value::take).unwrap_or_default();
    let status = status(report, names, before.clone(), now);
    // Nothing that is the same is written: each write is a change that everybody who watches the resource hears of.
    if status == before {
        return None;
    }
    Some(Operation::Status { key, generation: report.generation, status })
}

/// What `status` says, given what it said before: foreign fields stay, and a condition that did not change
/// keeps the time of its last change.
pub(super) fn status(
    report: &Report,
    names: &HashMap<ProxyId, String>,
    before: Value,
    now: &str,
) -> Value {
    let mut status = match before {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let conditions = [accepted(report), live(report)]
        .into_iter()
        .map(|words| condition(report.generation, &words, status.get("conditions"), now))
        .collect();
    let rejected: Vec<_> = report
        .named
        .iter()
        .map(|(proxy, reason)| json!({"proxy": names.get(proxy), "reason": reason}))
        .collect();
    let reasons: Vec<_> = report
        .reasons
        .iter()
        .map(|Reason { reason, proxies, example }| {
            json!({"reason": reason, "proxies": proxies, "example": names.get(example)})
        })
        .collect();
    let proxies = json!({
        "connected": report.connected, "live": report.live, "rejected": rejected, "reasons": reasons,
    });
    status.insert("observedGeneration".into(), report.generation.into());
    status.insert("conditions".into(), Value::Array(conditions));
    status.insert("proxies".into(), proxies);
    // Only what is code has versions of its own.
    if report.key.kind.kind == "WasmPlugin" {
        status.insert("versions".into(), report.versions.iter().map(version).collect());
    }
    Value::Object(status)
}

fn version((running, proxies): &(Arc<Running>, usize)) -> Value {
    let mut shown = json!({
        "version": running.version, "digest": format!("sha256:{}", running.digest), "proxies": proxies,
    });
    if let Some(trial) = &running.trial {
        shown["trial"] = trial.as_str().into();
    }
    shown
}

struct Words {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn accepted(report: &Report) -> Words {
    let (status, reason, message) = match &report.unusable {
        None => ("True", "Accepted", "valid".to_owned()),
        Some(why) => ("False", "Invalid", why.clone()),
    };
    Words { kind: "Accepted", status, reason, message }
}

fn live(report: &Report) -> Words {
    let Report { connected, live, rejected, .. } = *report;
    let on = format!("live on {live} of {connected} connected proxies that use it");
    let (status, reason, message) = if report.unusable.is_some() {
        ("False", "Invalid", "not sent to any proxy".to_owned())
    } else if connected == 0 {
        ("Unknown", "NotUsed", "no connected proxy uses it".to_owned())
    } else if let Some((_, first)) = report.named.first() {
        ("False", "Rejected", format!("{on}, rejected by {rejected}: {first}"))
    } else if live == connected {
        ("True", "Live", on)
    } else {
        ("False", "Pending", on)
    };
    Words { kind: "Live", status, reason, message }
}

fn condition(generation: u64, words: &Words, before: Option<&Value>, now: &str) -> Value {
    let before = before.and_then(Value::as_array).into_iter().flatten();
    let same = before.into_iter().find(|condition| {
        condition.get("type").and_then(Value::as_str) == Some(words.kind)
            && condition.get("status").and_then(Value::as_str) == Some(words.status)
    });
    let since = same.and_then(|condition| condition.get("lastTransitionTime")?.as_str());
    json!({
        "type": words.kind,
        "status": words.status,
        "reason": words.reason,
        "message": words.message,
        "observedGeneration": generation,
        "lastTransitionTime": since.unwrap_or(now),
    })
}

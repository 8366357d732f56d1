//! The status of a resource, in Kubernetes' words, and the task that writes it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leno_daemon::background;
use serde_json::{Map, Value, json};
use tokio::{
    sync::mpsc,
    task::JoinError,
    time::{MissedTickBehavior, interval},
};

use super::{
    Running,
    tally::{Reason, Report},
};
use crate::{
    findings::{Findings, Said},
    objects::timestamp,
    plan::ProxyId,
    store::{self, Key, Operation, Store, Transaction},
    telemetry::Metrics,
};

/// How long to wait after the disk refused.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether something has become odd, or is so no longer, by a change of something else.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Resources looked at then; the others wait for the next time.
const LOOKED_AT: usize = 500;
/// Statuses in one transaction: a write that comes meanwhile waits until that is on disk.
const SLICE: usize = 50;
/// Of the threads that find out what is to be written.
const THREAD: &str = "status";
/// Findings that a status shows.
const MAX_FINDINGS: usize = 10;

/// A report, and what the proxies named in it are called.
pub(super) type Reports = (Vec<Report>, HashMap<ProxyId, String>);

/// Writes the status of resources.
pub(super) struct Writer {
    pub(super) store: Arc<dyn Store>,
    pub(super) findings: Arc<Findings>,
    pub(super) metrics: Arc<Metrics>,
}

/// What becomes of statuses, and where they come from.
struct Desk {
    store: Arc<dyn Store>,
    findings: Arc<Findings>,
}

impl Writer {
    /// Writes reports until there will be no more. Looking at resources beside each other takes what time there is, a few
    /// at a time: changes of configuration, and whoever makes them, go before.
    pub(super) async fn run(self, mut reports: mpsc::Receiver<Reports>) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked_at = None;
        loop {
            let going_on = tokio::select! {
                received = reports.recv() => match received {
                    Some(reports) => self.write_reports(reports).await,
                    None => return,
                },
                _ = look.tick() => self.write_stirred(&mut looked_at).await,
            };
            if !going_on {
                return;
            }
        }
    }

    async fn write_reports(&self, (mut reports, names): Reports) -> bool {
        let names = Arc::new(names);
        while !reports.is_empty() {
            let slice = reports.split_off(reports.len().saturating_sub(SLICE));
            let (desk, names) = (self.desk(), names.clone());
            if !self.write(move || desk.of_reports(&slice, &names)).await {
                return false;
            }
        }
        true
    }

    /// For those whose findings may have changed by a change of something else; `looked_at` is the revision up to which
    /// there are none.
    async fn write_stirred(&self, looked_at: &mut Option<u64>) -> bool {
        let revision = self.store.revision();
        if *looked_at == Some(revision) {
            return true;
        }
        let desk = self.desk();
        let stirred = background::run(THREAD, move || desk.stirred()).await;
        let Ok(mut stirred) = stirred.inspect_err(failed) else { return false };
        // Of those that wait, some may be odd since before.
        *looked_at = (stirred.len() < LOOKED_AT).then_some(revision);
        while !stirred.is_empty() {
            let slice = stirred.split_off(stirred.len().saturating_sub(SLICE));
            let desk = self.desk();
            if !self.write(move || desk.of_stirred(slice)).await {
                return false;
            }
        }
        true
    }

    fn desk(&self) -> Desk {
        Desk { store: self.store.clone(), findings: self.findings.clone() }
    }

    /// Whether there is any use in going on.
    async fn write(&self, make: impl FnOnce() -> Transaction + Send + 'static) -> bool {
        match background::run(THREAD, make).await {
            Ok(transaction) => transaction.is_empty() || self.commit(transaction).await,
            Err(error) => {
                failed(&error);
                false
            }
        }
    }

    async fn commit(&self, transaction: Transaction) -> bool {
        self.metrics.status_writes.inc_by(u64::try_from(transaction.len()).unwrap_or(0));
        while let Err(error) = self.store.commit(transaction.clone()).await {
            match error {
                store::Error::Closed => return false,
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
        true
    }
}

fn failed(error: &JoinError) {
    tracing::error!("the status of resources is written no more: {error}");
}

impl Desk {
    fn of_reports(&self, reports: &[Report], names: &HashMap<ProxyId, String>) -> Transaction {
        let now = timestamp::rfc3339(SystemTime::now());
        let write = |report: &Report| {
            let key = store_key(&report.key);
            // What cannot even be read is not beside the others; its report says why.
            let said = self.said(&key).unwrap_or_default();
            let (_, before) = self.stored(&key)?;
            let status = status(report, names, &said, before.clone(), &now);
            operation(key, report.generation, before, status)
        };
        reports.iter().filter_map(write).collect()
    }

    fn stirred(&self) -> Vec<Key> {
        self.findings.stirred(LOOKED_AT).unwrap_or_else(|error| {
            tracing::warn!(%error, "resources are not looked at beside each other");
            Vec::new()
        })
    }

    /// Those without a status get their first with the first report.
    fn of_stirred(&self, stirred: Vec<Key>) -> Transaction {
        let now = timestamp::rfc3339(SystemTime::now());
        let write = |key: Key| {
            let (generation, before) = self.stored(&key)?;
            let generation = generation?;
            if !is_reported(&before, generation) {
                return None;
            }
            let status = analysed(&self.said(&key)?, generation, before.clone(), &now);
            operation(key, generation, before, status)
        };
        stirred.into_iter().filter_map(write).collect()
    }

    /// What is odd about a resource; nothing where that cannot be found out, which is logged.
    fn said(&self, key: &Key) -> Option<Said> {
        self.findings.of(key).unwrap_or_else(|error| {
            tracing::warn!(%key, %error, "a resource is not looked at beside the others");
            None
        })
    }

    /// The generation of a stored object, and its status.
    fn stored(&self, key: &Key) -> Option<(Option<u64>, Value)> {
        let mut object = self.store.get(key)?.json().ok()?;
        let status = object.get_mut("status").map(Value::take).unwrap_or_default();
        Some((object["metadata"]["generation"].as_u64(), status))
    }
}

/// Nothing that is the same is written: each write is a change that everybody who watches the resource hears of.
fn operation(key: Key, generation: u64, before: Value, status: Value) -> Option<Operation> {
    (status != before).then_some(Operation::Status { key, generation, status })
}

/// Whether a status is about this generation. What is not will be reported about, and the report says what is odd, too.
fn is_reported(status: &Value, generation: u64) -> bool {
    status["observedGeneration"] == generation
}

/// The place of an object in the store.
pub(super) fn store_key(key: &leno_api::Key) -> Key {
    Key {
        group: key.kind.group.into(),
        plural: key.kind.plural.into(),
        namespace: key.name.namespace.clone(),
        name: key.name.name.clone(),
    }
}

/// What `status` says, given what it said before: foreign fields stay, and a condition that did not change
/// keeps the time of its last change.
pub(super) fn status(
    report: &Report,
    names: &HashMap<ProxyId, String>,
    said: &[(String, String)],
    before: Value,
    now: &str,
) -> Value {
    let mut status = match before {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let conditions = [accepted(report), live(report), passed(said)]
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
    status.insert("findings".into(), shown(said));
    status.insert("proxies".into(), proxies);
    // Only what is code has versions of its own.
    if report.key.kind.kind == "WasmPlugin" {
        status.insert("versions".into(), report.versions.iter().map(version).collect());
    }
    Value::Object(status)
}

/// A status with what is odd now, and otherwise as it was. A resource that has not been reported about in its
/// `generation` stays as it is: the report will say this, too.
pub(super) fn analysed(
    said: &[(String, String)],
    generation: u64,
    before: Value,
    now: &str,
) -> Value {
    let mut status = before;
    if !is_reported(&status, generation) {
        return status;
    }
    let conditions = status["conditions"].take();
    let new = condition(generation, &passed(said), Some(&conditions), now);
    let mut all = match conditions {
        Value::Array(conditions) => conditions,
        _ => Vec::new(),
    };
    match all.iter_mut().find(|condition| condition["type"] == new["type"]) {
        Some(old) => *old = new,
        None => all.push(new),
    }
    status["conditions"] = Value::Array(all);
    status["findings"] = shown(said);
    status
}

fn shown(said: &[(String, String)]) -> Value {
    let finding = |(path, message): &(String, String)| json!({"path": path, "message": message});
    said.iter().take(MAX_FINDINGS).map(finding).collect()
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

/// What is odd beside other resources: references to nothing, places that an older one has, settings without effect.
fn passed(said: &[(String, String)]) -> Words {
    let (status, reason, message) = match said {
        [] => {
            ("True", "NoFindings", "nothing is odd about it beside the other resources".to_owned())
        }
        [(path, message)] => ("False", "Findings", format!("{path}: {message}")),
        [(path, message), more @ ..] => {
            ("False", "Findings", format!("{path}: {message} (and {} more)", more.len()))
        }
    };
    Words { kind: "PassedAnalysis", status, reason, message }
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

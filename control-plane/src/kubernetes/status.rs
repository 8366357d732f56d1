//! What Kubernetes is told about a user's object. Pure.
//!
//! Our own kinds have the status as our API shows it. A route's status is Gateway API's: one entry per parent and
//! controller, of which those of other controllers are left as they are.

use leno_api::{GATEWAY_GROUP, LENO_GROUP};
use serde_json::{Map, Value, json};

use super::watch::Seen;
use crate::store::Key;

/// How we call ourselves among the controllers of a route.
pub(super) const CONTROLLER: &str = "leno.dev/control-plane";
/// The most entries that a route's status may have.
const MAX_PARENTS: usize = 32;
/// Longest message of a condition that Kubernetes takes.
const MAX_MESSAGE: usize = 32_768;

/// The status as it should be; `None` where nothing is to be said, or it stands there already.
pub(super) fn wanted(
    key: &Key,
    seen: &Seen,
    reported: Option<&Value>,
    refusal: Option<&str>,
    now: &str,
) -> Option<Value> {
    let own = match (refusal, reported) {
        (Some(reason), _) => refused(seen, reason, now),
        (None, Some(reported)) => reported.clone(),
        (None, None) => return None,
    };
    let status = match *key.group == *GATEWAY_GROUP {
        true => route(key, seen, &own, now)?,
        false => own,
    };
    (status != seen.status).then_some(status)
}

/// The control plane cannot use the object.
fn refused(seen: &Seen, reason: &str, now: &str) -> Value {
    let message: String = reason.chars().take(MAX_MESSAGE).collect();
    let before = conditions(&seen.status);
    let condition = |kind: &str, message: &str| {
        condition(
            before,
            kind,
            &json!({"status": "False", "reason": "Invalid", "message": message}),
            seen,
            now,
        )
    };
    json!({
        "observedGeneration": seen.generation,
        "conditions": [condition("Accepted", &message), condition("Live", "not sent to any proxy; the last good version stays, if there was one")],
    })
}

fn condition(before: &[Value], kind: &str, words: &Value, seen: &Seen, now: &str) -> Value {
    let same = before.iter().find(|condition| {
        condition.get("type").and_then(Value::as_str) == Some(kind)
            && condition.get("status") == words.get("status")
    });
    let since = same.and_then(|condition| condition.get("lastTransitionTime")?.as_str());
    json!({
        "type": kind, "status": words["status"], "reason": words["reason"], "message": words["message"],
        "observedGeneration": seen.generation, "lastTransitionTime": since.unwrap_or(now),
    })
}

fn conditions(status: &Value) -> &[Value] {
    status.get("conditions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// One entry for each Service among the parents. `None` where there is none and was none.
fn route(key: &Key, seen: &Seen, own: &Value, now: &str) -> Option<Value> {
    let before = seen.status.get("parents").and_then(Value::as_array);
    let before: &[Value] = before.map_or(&[], Vec::as_slice);
    let parents = seen.parents.as_array().map_or(&[][..], Vec::as_slice);
    let entries = parents.iter().enumerate().filter_map(|(at, parent)| {
        let reference = reference(key, parent)?;
        let said = before.iter().find(|entry| ours(entry) && entry["parentRef"] == reference);
        let said = said.map_or(&[][..], conditions);
        let conditions: Vec<Value> = of_parent(own, at)
            .iter()
            .map(|words| {
                let kind = words.get("type").and_then(Value::as_str).unwrap_or_default();
                condition(said, kind, words, seen, now)
            })
            .collect();
        Some(
            json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions}),
        )
    });
    let mut all = in_place(before, entries.collect());
    all.truncate(MAX_PARENTS);
    (!all.is_empty() || !before.is_empty()).then(|| json!({"parents": all}))
}

/// The conditions for the parent at this place: what is odd about a reference is what Gateway API has words for.
fn of_parent(own: &Value, at: usize) -> Vec<Value> {
    let mut all = conditions(own).to_vec();
    let Some(findings) = own.get("findings").and_then(Value::as_array) else { return all };
    let text = |finding: &Value, field: &str| {
        finding.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let here = format!("spec.parentRefs[{at}]");
    if let Some(lost) = findings.iter().find(|finding| text(finding, "path") == here)
        && let Some(accepted) = all.iter_mut().find(|condition| condition["type"] == "Accepted")
        && accepted["status"] == "True"
    {
        *accepted = json!({"type": "Accepted", "status": "False", "reason": "NoMatchingParent",
                           "message": text(lost, "message")});
    }
    let dangling = findings.iter().find(|finding| text(finding, "path").contains(".backendRef"));
    all.push(match dangling {
        Some(finding) => {
            json!({"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound",
            "message": format!("{}: {}", text(finding, "path"), text(finding, "message"))})
        }
        None => json!({"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs",
                       "message": "all backends are there"}),
    });
    all
}

fn ours(entry: &Value) -> bool {
    entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER)
}

/// Everything where it stands, ours as they should be now, and what is new at the end. Two controllers that each had a
/// place for their own would move them about for ever.
fn in_place(before: &[Value], mut entries: Vec<Value>) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::with_capacity(before.len() + entries.len());
    for entry in before {
        if !ours(entry) {
            all.push(entry.clone());
        } else if let Some(at) =
            entries.iter().position(|new| new["parentRef"] == entry["parentRef"])
        {
            all.push(entries.remove(at));
        }
    }
    all.append(&mut entries);
    all
}

/// The reference as Gateway API fills it in; `None` where it is no Service.
fn reference(key: &Key, parent: &Value) -> Option<Value> {
    let text = |field| parent.get(field).and_then(Value::as_str);
    let group = text("group").filter(|group| ["", "core", LENO_GROUP].contains(group))?;
    if text("kind") != Some("Service") {
        return None;
    }
    let mut reference = Map::new();
    reference.insert("group".into(), group.into());
    reference.insert("kind".into(), "Service".into());
    reference.insert("name".into(), text("name")?.into());
    reference.insert("namespace".into(), text("namespace").unwrap_or(&key.namespace).into());
    for field in ["sectionName", "port"] {
        if let Some(value) = parent.get(field).filter(|value| !value.is_null()) {
            reference.insert(field.into(), value.clone());
        }
    }
    Some(Value::Object(reference))
}

#[cfg(test)]
mod tests;

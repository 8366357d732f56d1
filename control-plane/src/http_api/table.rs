//! Tables, as `kubectl get` prints them.

use std::time::{SystemTime, UNIX_EPOCH};

use leno_api::KindInfo;
use serde_json::{Value, json};

use crate::objects::timestamp;

/// More of a list in one cell helps nobody.
const MAX_CELL_CHARACTERS: usize = 60;

pub(super) fn table(kind: &KindInfo, metadata: Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns(kind), "rows": rows,
    })
}

pub(super) fn cells(kind: &KindInfo, object: &Value, now: SystemTime) -> Vec<Value> {
    let name = object.pointer("/metadata/name").cloned().unwrap_or_default();
    let own = kind.columns.iter().map(|column| Value::from(cell(object, column.pointer)));
    std::iter::once(name).chain(own).chain([age(object, now).into()]).collect()
}

fn columns(kind: &KindInfo) -> Vec<Value> {
    let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let own = kind.columns.iter().map(|c| column(c.name, "", c.pointer));
    let name = column("Name", "name", "unique within its namespace");
    let age = column("Age", "", "time since creation");
    std::iter::once(name).chain(own).chain([age]).collect()
}

/// What stands at a pointer in which `*` is every element of a list.
fn cell(object: &Value, pointer: &str) -> String {
    let mut found = Vec::new();
    let segments: Vec<_> = pointer.split('/').skip(1).collect();
    collect(object, &segments, &mut found);
    let mut text = found.join(",");
    if text.chars().count() > MAX_CELL_CHARACTERS {
        text = text.chars().take(MAX_CELL_CHARACTERS).chain(['…']).collect();
    }
    text
}

fn collect(value: &Value, segments: &[&str], found: &mut Vec<String>) {
    match (segments, value) {
        ([], Value::Array(items)) => items.iter().for_each(|item| collect(item, &[], found)),
        ([], Value::String(text)) => found.push(text.clone()),
        ([], other) => found.push(other.to_string()),
        (["*", rest @ ..], Value::Array(items)) => {
            items.iter().for_each(|item| collect(item, rest, found));
        }
        (["*", rest @ ..], Value::Object(fields)) => {
            fields.values().for_each(|field| collect(field, rest, found));
        }
        ([name, rest @ ..], value) => {
            if let Some(field) = value.get(name) {
                collect(field, rest, found);
            }
        }
    }
}

fn age(object: &Value, now: SystemTime) -> String {
    let created = object.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match created.and_then(timestamp::parse) {
        Some(created) => timestamp::age(now.saturating_sub(created)),
        None => "<unknown>".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn cells_follow_the_columns_of_the_kind() {
        let kind = leno_api::kind("leno.dev", "v1alpha1", "services").unwrap();
        let object = json!({
            "metadata": {"name": "orders", "creationTimestamp": "1970-01-01T00:01:00Z"},
            "spec": {"hosts": ["a", "b"], "ports": [{"port": 80}, {"port": 443}]},
        });
        let now = UNIX_EPOCH + Duration::from_secs(90);
        assert_eq!(cells(kind, &object, now), ["orders", "a,b", "80,443", "30s"]);
        assert_eq!(columns(kind).len(), 4);
        assert_eq!(
            cells(kind, &json!({}), now),
            [json!(null), json!(""), json!(""), json!("<unknown>")]
        );
    }

    #[test]
    fn long_lists_are_cut() {
        let hosts: Vec<_> = (0..40).map(|n| format!("host-{n}")).collect();
        let text = cell(&json!({"spec": {"hosts": hosts}}), "/spec/hosts");
        assert_eq!(text.chars().count(), 61);
        assert!(text.ends_with('…'));
    }
}

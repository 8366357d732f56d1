//! The definitions of Leno's kinds for Kubernetes, made from the same types that the API and the proxies read.

use leno_api::{GATEWAY_GROUP, KINDS, KindInfo, LENO_GROUP};
use serde_json::{Value, json};

use super::structural::structural;

/// Kubernetes wants to be told that a group of its own community is not taken by mistake.
const APPROVAL: &str = "api-approved.kubernetes.io";
const NOT_UPSTREAM: &str =
    "unapproved, Leno's definition of Gateway API's fields for clusters without Gateway API";
/// Helm leaves what has this alone: with a definition all its objects would go.
const KEEP: &str = "helm.sh/resource-policy";

/// Places of which exactly one field must be set. None is in a list, whose length Kubernetes would have to bound.
const UNIONS: &[(&str, &str, &[&str])] = &[
    (
        "TrafficPolicy",
        "/balancer",
        &["peakEwma", "leastRequest", "roundRobin", "random", "ringHash", "maglev"],
    ),
    ("TrafficPolicy", "/hedging", &["after", "p95"]),
    ("TrafficPolicy", "/healthCheck", &["http", "grpc", "tcp"]),
    ("CachePolicy", "/key/query", &["include", "exclude"]),
];

/// Leno's own kinds that people write.
pub fn own() -> Vec<Value> {
    of_group(LENO_GROUP)
}

/// The routes of Gateway API, for clusters where nobody has installed it.
pub fn gateway() -> Vec<Value> {
    let mut definitions = of_group(GATEWAY_GROUP);
    for definition in &mut definitions {
        definition["metadata"]["annotations"][APPROVAL] = NOT_UPSTREAM.into();
    }
    definitions
}

fn of_group(group: &str) -> Vec<Value> {
    // What only the control plane writes never is an object of Kubernetes.
    let kinds = KINDS.iter().filter(|kind| kind.group == group && !kind.read_only);
    kinds.map(definition).collect()
}

/// One definition.
pub fn definition(kind: &KindInfo) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name(kind), "annotations": {KEEP: "keep"}},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": kind.short_names,
                // Not `all`: there it would stand between Deployments and Pods of every application.
                "categories": ["leno"],
            },
            "versions": [{
                "name": kind.version,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema(kind)},
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns(kind),
            }],
        },
    })
}

/// `services.leno.dev`.
pub fn name(kind: &KindInfo) -> String {
    format!("{}.{}", kind.plural, kind.group)
}

fn schema(kind: &KindInfo) -> Value {
    let mut spec = structural(&(kind.schema)());
    for (_, pointer, fields) in UNIONS.iter().filter(|(of, ..)| *of == kind.kind) {
        let place = pointer.replace('/', "/properties/");
        if let Some(place) = spec.pointer_mut(&place) {
            place["x-kubernetes-validations"] = json!([exactly_one(fields)]);
        }
    }
    json!({
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status(),
        },
    })
}

fn exactly_one(fields: &[&str]) -> Value {
    let set: Vec<_> = fields.iter().map(|field| format!("(has(self.{field}) ? 1 : 0)")).collect();
    json!({
        "rule": format!("{} == 1", set.join(" + ")),
        "message": format!("set exactly one of {}", fields.join(", ")),
    })
}

fn status() -> Value {
    json!({
        "type": "object",
        "description": "On how many proxies the resource is live, and which rejected it and why. Written by the control plane.",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64"},
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status"],
                    "properties": {
                        "type": {"type": "string"},
                        "status": {"type": "string"},
                        "observedGeneration": {"type": "integer", "format": "int64"},
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                        "reason": {"type": "string"},
                        "message": {"type": "string"},
                    },
                },
            },
        },
    })
}

fn columns(kind: &KindInfo) -> Value {
    let mut columns: Vec<_> = kind
        .columns
        .iter()
        .map(|column| {
            let path = column.pointer.replace("/*", "[*]").replace('/', ".");
            json!({"name": column.name, "type": "string", "jsonPath": path})
        })
        .collect();
    // A route has a status for each of its parents.
    let of = if kind.group == GATEWAY_GROUP { ".status.parents[*]" } else { ".status" };
    let live = |field: &str| format!("{of}.conditions[?(@.type==\"Live\")].{field}");
    columns.push(json!({"name": "Live", "type": "string", "jsonPath": live("status")}));
    columns
        .push(json!({"name": "Why", "type": "string", "priority": 1, "jsonPath": live("message")}));
    columns.push(json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}));
    columns.into()
}

#[cfg(test)]
mod tests;

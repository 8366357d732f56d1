//! Namespaces, as far as kubectl wants to see them: a namespace is there when something is in it.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::{Api, Failure};
use crate::store::Selection;

pub(super) async fn list(State(api): State<Arc<Api>>) -> Json<Value> {
    let listing = api.store.list(&Selection::all());
    let mut names: BTreeSet<&str> = listing.items.iter().map(|o| &*o.key.namespace).collect();
    names.insert("default");
    Json(json!({
        "kind": "NamespaceList", "apiVersion": "v1",
        "metadata": {"resourceVersion": listing.revision.to_string()},
        "items": names.into_iter().map(namespace).collect::<Vec<_>>(),
    }))
}

/// Any namespace can be used at any time, hence each exists.
pub(super) async fn read(Path(name): Path<String>) -> Json<Value> {
    Json(namespace(&name))
}

pub(super) async fn refuse() -> Failure {
    Failure::not_possible(
        "namespaces are neither made nor deleted: one is there when something is in it",
    )
}

fn namespace(name: &str) -> Value {
    json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "status": {"phase": "Active"},
    })
}

//! Which kinds there are, in the forms in which clients ask: group lists, resource lists, and
//! both at once («aggregated»).

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, header};
use leno_api::{KINDS, KindInfo};
use serde_json::{Value, json};

use super::{Api, Failure, rendering::accepted};

const VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Of kinds that only we write.
const READING: [&str; 3] = ["get", "list", "watch"];
/// Names under which `kubectl get` shows several kinds at once.
const CATEGORIES: [&str; 2] = ["all", "leno"];
/// What Kubernetes clients take this server for: they look at it to choose among dialects.
const MAJOR: &str = "1";
const MINOR: &str = "32";

/// `/api`: the core group.
pub(super) async fn core(headers: HeaderMap) -> Response {
    if let Some(version) = aggregated_version(&headers) {
        let namespaces = json!({
            "resource": "namespaces", "responseKind": {"group": "", "version": "v1", "kind": "Namespace"},
            "scope": "Cluster", "singularResource": "namespace", "verbs": ["get", "list"], "shortNames": ["ns"],
        });
        let versions =
            json!([{"version": "v1", "freshness": "Current", "resources": [namespaces]}]);
        return aggregated(version, json!([{"metadata": {"name": ""}, "versions": versions}]));
    }
    Json(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
        .into_response()
}

/// `/api/v1`
pub(super) async fn core_resources() -> Json<Value> {
    Json(json!({
        "kind": "APIResourceList", "groupVersion": "v1",
        "resources": [{
            "name": "namespaces", "singularName": "namespace", "namespaced": false,
            "kind": "Namespace", "verbs": ["get", "list"], "shortNames": ["ns"],
        }],
    }))
}

/// `/apis`
pub(super) async fn groups(headers: HeaderMap) -> Response {
    if let Some(version) = aggregated_version(&headers) {
        return aggregated(version, group_names().into_iter().map(group_discovery).collect());
    }
    let groups: Vec<_> = group_names().into_iter().map(group_json).collect();
    Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})).into_response()
}

/// `/apis/{group}`
pub(super) async fn group(Path(group): Path<String>) -> Result<Json<Value>, Failure> {
    let name = group_names().into_iter().find(|name| **name == group);
    let mut answer = group_json(name.ok_or_else(Failure::no_such_path)?);
    answer["kind"] = "APIGroup".into();
    answer["apiVersion"] = "v1".into();
    Ok(Json(answer))
}

/// `/apis/{group}/{version}`
pub(super) async fn resources(
    Path((group, version)): Path<(String, String)>,
) -> Result<Json<Value>, Failure> {
    let resources: Vec<_> = kinds_of(&group, &version).flat_map(resource_entries).collect();
    if resources.is_empty() {
        return Err(Failure::no_such_path());
    }
    Ok(Json(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{group}/{version}"), "resources": resources,
    })))
}

/// `/version`
pub(super) async fn version(State(_): State<Arc<Api>>) -> Json<Value> {
    let version = env!("CARGO_PKG_VERSION");
    Json(json!({
        "major": MAJOR, "minor": MINOR, "gitVersion": format!("v{MAJOR}.{MINOR}.0+leno-{version}"),
        "gitCommit": "", "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    }))
}

pub(super) fn group_names() -> BTreeSet<&'static str> {
    KINDS.iter().map(|kind| kind.group).collect()
}

/// Versions of a group, best first: stable before alpha, as Kubernetes sorts them.
pub(super) fn versions_of(group: &str) -> Vec<&'static str> {
    let names: BTreeSet<_> = KINDS.iter().filter(|k| k.group == group).map(|k| k.version).collect();
    let mut versions: Vec<_> = names.into_iter().collect();
    versions.sort_by_key(|version| (version.contains("alpha"), version.contains("beta")));
    versions
}

pub(super) fn kinds_of<'a>(
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'static KindInfo> + 'a {
    KINDS.iter().filter(move |kind| kind.group == group && kind.version == version)
}

fn group_json(group: &str) -> Value {
    let version =
        |version| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let versions: Vec<_> = versions_of(group).into_iter().map(version).collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn resource_entries(kind: &'static KindInfo) -> Vec<Value> {
    let part = |name: &str, verbs: Value| {
        json!({
            "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": true,
            "kind": kind.kind, "verbs": verbs,
        })
    };
    let whole = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": true, "kind": kind.kind,
        "verbs": verbs(kind), "shortNames": kind.short_names, "categories": CATEGORIES,
    });
    let parts = parts(kind).into_iter().map(|(name, verbs)| part(name, verbs));
    std::iter::once(whole).chain(parts).collect()
}

fn verbs(kind: &KindInfo) -> &'static [&'static str] {
    if kind.read_only { &READING } else { &VERBS }
}

/// Subresources with what can be done to them.
fn parts(kind: &KindInfo) -> Vec<(&'static str, Value)> {
    let mut parts = vec![("status", json!(["get"]))];
    if kind.kind == "Workload" {
        parts.push(("lease", json!(["update"])));
    }
    parts
}

fn group_discovery(group: &'static str) -> Value {
    let versions = versions_of(group).into_iter().map(|version| {
        let resources: Vec<_> = kinds_of(group, version).map(resource_discovery).collect();
        json!({"version": version, "freshness": "Current", "resources": resources})
    });
    json!({"metadata": {"name": group}, "versions": versions.collect::<Vec<_>>()})
}

fn resource_discovery(kind: &'static KindInfo) -> Value {
    let response = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let part =
        |(name, verbs)| json!({"subresource": name, "responseKind": response, "verbs": verbs});
    let subresources: Vec<_> = parts(kind).into_iter().map(part).collect();
    json!({
        "resource": kind.plural, "responseKind": response, "scope": "Namespaced",
        "singularResource": kind.singular, "verbs": verbs(kind), "shortNames": kind.short_names,
        "categories": CATEGORIES, "subresources": subresources,
    })
}

/// The version of the aggregated form that a client prefers to the plain one, if it does.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    accepted(headers).iter().find_map(|range| {
        let aggregated = range.parameter("as") == Some("APIGroupDiscoveryList")
            && range.parameter("g") == Some("apidiscovery.k8s.io");
        match range.parameter("v") {
            Some("v2") if aggregated => Some(Some("v2")),
            Some("v2beta1") if aggregated => Some(Some("v2beta1")),
            // The plain form comes first in the client's list.
            None if range.is_json() && range.parameter("as").is_none() => Some(None),
            _ => None,
        }
    })?
}

fn aggregated(version: &str, items: Value) -> Response {
    let body = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    });
    let mut response = Json(body).into_response();
    let media_type =
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(media_type) = HeaderValue::from_str(&media_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    }
    response
}

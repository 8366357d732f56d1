//! From Kubernetes' objects to ours. Pure; what is not valid is said, not thrown away unseen.
//!
//! | Kubernetes | ours |
//! |---|---|
//! | `Service` | `Service`: addresses are its cluster IPs, a port's protocol is its `appProtocol`, else the prefix of its name |
//! | `Pod` with the endpoints that name it | `Workload` of the pod's name; weight 0 while it is not ready or on its way out |
//! | an endpoint without a pod | `Workload` named `<service>.<address>` |
//! | our kinds, routes | as they are, without what only Kubernetes needs |

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use leno_api::{
    GATEWAY_GROUP, Invalid, KindInfo, LENO_GROUP, Resource,
    model::{ObjectName, workload::LEASE_ANNOTATION},
    spec::service::Protocol,
};
use serde_json::{Map, Value, json};

use super::facts::{Identity, PodFacts, PortFacts, ServiceFacts, dashed};
use crate::inject::names;

/// What kubectl notes about itself: as long as the object, and nothing to anybody else.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What is known of one service at one place: from one EndpointSlice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Membership<'a> {
    pub(super) service: &'a Arc<str>,
    pub(super) ports: &'a BTreeMap<String, i64>,
    pub(super) ready: bool,
    pub(super) zone: Option<&'a Arc<str>>,
}

/// `None` where there is nothing that callers could use: a name of somebody else, no TCP port.
pub(super) fn service(name: &ObjectName, facts: &ServiceFacts) -> Option<Value> {
    if facts.external_name || facts.ports.is_empty() {
        return None;
    }
    let ports: Vec<Value> = facts
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "port": port.port, "protocol": protocol(port)}))
        .collect();
    let mut spec = json!({"ports": ports});
    if !facts.addresses.is_empty() {
        spec["addresses"] = facts.addresses.iter().map(IpAddr::to_string).collect();
    }
    Some(object("Service", name, &facts.identity, spec))
}

/// What is spoken on a port: `appProtocol` where it says something that is known, else the name up to its first dash.
fn protocol(port: &PortFacts) -> Protocol {
    let said = port.app_protocol.as_deref().and_then(named);
    let prefix = port.name.split_once('-').map_or(&*port.name, |(prefix, _)| prefix);
    said.or_else(|| named(prefix)).unwrap_or_default()
}

/// <https://kubernetes.io/docs/concepts/services-networking/service/#application-protocol> and the prefixes that
/// Istio's users know.
fn named(word: &str) -> Option<Protocol> {
    Some(match word.to_ascii_lowercase().as_str() {
        "http" | "http1" | "ws" | "kubernetes.io/ws" => Protocol::Http,
        "http2" | "h2c" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "tcp" | "tls" | "https" | "wss" | "kubernetes.io/wss" | "mongo" | "mysql" | "redis"
        | "postgres" | "postgresql" | "kafka" | "amqp" => Protocol::Tcp,
        _ => return None,
    })
}

/// `None` where it is nobody's endpoint and has no sidecar, or cannot be reached: no address yet, or ended.
pub(super) fn workload(
    name: &ObjectName,
    pod: &PodFacts,
    memberships: &[Membership<'_>],
) -> Option<Value> {
    let address = pod.address.filter(|_| !pod.finished)?;
    if memberships.is_empty() && !pod.sidecar {
        return None;
    }
    let mut spec = place(address, memberships);
    spec["serviceAccount"] = pod.service_account.as_str().into();
    if pod.terminating {
        spec["weight"] = 0.into();
    }
    if pod.sidecar {
        spec["sidecar"] = json!({"port": names::INBOUND_PORT, "mutualTls": true});
    }
    Some(object("Workload", name, &pod.identity, spec))
}

/// An endpoint that is no pod: a machine outside the cluster.
pub(super) fn outsider(
    namespace: &str,
    address: IpAddr,
    membership: &[Membership<'_>],
) -> Option<Value> {
    let name = outsider_name(namespace, membership.first()?.service, address);
    Some(object("Workload", &name, &Identity::default(), place(address, membership)))
}

pub(super) fn outsider_name(namespace: &str, service: &str, address: IpAddr) -> ObjectName {
    ObjectName::new(namespace, &format!("{service}.{}", dashed(address)))
}

fn place(address: IpAddr, memberships: &[Membership<'_>]) -> Value {
    let mut services: Vec<&str> = memberships.iter().map(|one| &**one.service).collect();
    services.sort_unstable();
    services.dedup();
    let mut spec = json!({
        "services": services, "address": address.to_string(), "ports": ports(memberships),
    });
    // One that is not ready anywhere is called nowhere: a pod has one state, whoever selects it.
    if memberships.iter().any(|one| !one.ready) {
        spec["weight"] = 0.into();
    }
    if let Some(zone) = memberships.iter().find_map(|one| one.zone) {
        spec["zone"] = (**zone).into();
    }
    spec
}

/// By the name of the service's port, and with the service where two services mean different ports by it.
fn ports(memberships: &[Membership<'_>]) -> Map<String, Value> {
    let mut by_name: BTreeMap<&str, BTreeMap<&str, i64>> = BTreeMap::new();
    for one in memberships {
        for (name, port) in one.ports {
            by_name.entry(name).or_default().entry(one.service).or_insert(*port);
        }
    }
    let mut ports = Map::new();
    for (name, services) in by_name {
        let mut numbers = services.values();
        let first = numbers.next().copied();
        match first.filter(|first| numbers.all(|number| number == first)) {
            Some(number) => _ = ports.insert(name.to_owned(), number.into()),
            None => ports.extend(
                services
                    .iter()
                    .map(|(service, port)| (format!("{service}.{name}"), (*port).into())),
            ),
        }
    }
    ports
}

fn object(kind: &str, name: &ObjectName, identity: &Identity, spec: Value) -> Value {
    let mut metadata = json!({"name": &*name.name, "namespace": &*name.namespace});
    if !identity.labels.is_empty() {
        metadata["labels"] = json!(identity.labels);
    }
    for (field, value) in [("uid", &identity.uid), ("creationTimestamp", &identity.created)] {
        if let Some(value) = value {
            metadata[field] = value.as_str().into();
        }
    }
    json!({
        "apiVersion": format!("{LENO_GROUP}/v1alpha1"), "kind": kind, "metadata": metadata, "spec": spec,
    })
}

/// What a user's object is to the mesh.
#[derive(Debug)]
pub(super) enum Reading {
    /// As the store keeps it.
    Valid(Value),
    Invalid(Invalid),
    /// It says nothing about services: a route of a Gateway only.
    NotOurs,
}

/// Reads an object of one of our kinds or a route. `body` is all but its metadata.
pub(super) fn custom(
    kind: &KindInfo,
    name: &ObjectName,
    metadata: &Metadata<'_>,
    body: &Value,
) -> Reading {
    if kind.group == GATEWAY_GROUP && !has_service_parent(body) {
        return Reading::NotOurs;
    }
    let object = json!({
        "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": metadata.json(name),
        "spec": body.get("spec").cloned().unwrap_or_else(|| json!({})),
    });
    match unknown(body).map_or_else(|| Resource::from_json(object.clone()).map(|_| ()), Err) {
        Ok(()) => Reading::Valid(object),
        Err(invalid) => Reading::Invalid(invalid),
    }
}

/// Beside what every object has.
fn unknown(body: &Value) -> Option<Invalid> {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let unknown = body.as_object()?.keys().find(|field| !known.contains(&field.as_str()))?;
    Some(Invalid::one(unknown, "unknown field; an object has metadata, spec and status"))
}

fn has_service_parent(body: &Value) -> bool {
    let parents = body.pointer("/spec/parentRefs").and_then(Value::as_array);
    parents.into_iter().flatten().any(|parent| {
        let text = |field| parent.get(field).and_then(Value::as_str);
        text("kind") == Some("Service") && matches!(text("group"), Some("" | "core" | LENO_GROUP))
    })
}

/// Of a user's object, as far as it concerns anybody but Kubernetes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Metadata<'a> {
    pub(super) uid: Option<&'a str>,
    pub(super) created: Option<&'a str>,
    pub(super) generation: Option<i64>,
    pub(super) labels: Option<&'a BTreeMap<String, String>>,
    pub(super) annotations: Option<&'a BTreeMap<String, String>>,
}

impl Metadata<'_> {
    fn json(&self, name: &ObjectName) -> Value {
        let mut metadata = json!({
            "name": &*name.name, "namespace": &*name.namespace,
            "generation": self.generation.unwrap_or(1),
        });
        if let Some(labels) = self.labels.filter(|labels| !labels.is_empty()) {
            metadata["labels"] = json!(labels);
        }
        // A lease is for who registers here; what Kubernetes has, it removes itself.
        let kept = self.annotations.into_iter().flatten();
        let kept: Map<String, Value> = kept
            .filter(|(key, _)| ![LAST_APPLIED, LEASE_ANNOTATION].contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        if !kept.is_empty() {
            metadata["annotations"] = Value::Object(kept);
        }
        for (field, value) in [("uid", self.uid), ("creationTimestamp", self.created)] {
            if let Some(value) = value {
                metadata[field] = value.into();
            }
        }
        metadata
    }
}

#[cfg(test)]
mod tests;

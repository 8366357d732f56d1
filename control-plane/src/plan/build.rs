//! An object of the store, made ready for every proxy at once: parsed, linked, serialised.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use leno_api::{
    Invalid, KINDS, Key, Resource,
    model::{
        Model, ObjectName, applies::Applies, backend::Parent, filter::Filter,
        http_route::HttpRoute, service::Service, wasm_plugin::WasmPlugin, workload::Workload,
    },
};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// One version of one object. Shared by all proxies that have it, its bytes included.
#[derive(Debug)]
pub struct Item {
    pub key: Key,
    /// `shop/orders`, as on the wire.
    pub name: Arc<str>,
    /// Opaque to proxies: the revision, and a digest of the body, so that a control plane whose store was
    /// replaced (revisions begin anew) is never taken for the one before.
    pub version: Arc<str>,
    /// The store's revision that last wrote anything but the status.
    pub revision: u64,
    /// `metadata.generation`.
    pub generation: u64,
    /// The object's JSON without `status` and `metadata.managedFields`.
    pub body: Bytes,
    pub(super) links: Links,
}

/// What an object is about: services, a namespace, the workloads behind a proxy, or the whole mesh.
#[derive(Debug)]
pub(super) enum Links {
    Service(Arc<Service>),
    Workload {
        workload: Arc<Workload>,
        services: Vec<ObjectName>,
    },
    Route {
        parents: Vec<ObjectName>,
        backends: Vec<ObjectName>,
    },
    Policy {
        targets: Vec<ObjectName>,
        /// Whether it is for those who serve a target, too, or for its callers alone.
        served: bool,
        /// It is for those, too, who have one of these in scope.
        routes: Vec<Key>,
    },
    /// How the workloads of its namespace are spoken to: for them and for whoever calls them.
    Peers,
    /// What is let in to some workloads of its namespace: for their own proxies alone.
    Guard(Applies),
    /// What runs at some workloads, in either direction, or wherever `callees` are called.
    Plugin {
        plugin: Arc<WasmPlugin>,
        callees: Vec<ObjectName>,
    },
    /// For every proxy there is.
    Mesh,
}

impl Item {
    /// Reads an object as the store has it. `revision` is the one that last wrote anything but its status.
    ///
    /// # Errors
    /// [`Invalid`] where this version of Leno does not accept the object: only a store written by another
    /// version can hold such.
    pub fn from_json(mut object: Value, revision: u64) -> Result<Self, Invalid> {
        strip(&mut object, revision);
        let body = Bytes::from(object.to_string());
        let resource = Resource::from_json(object)?;
        let key = resource.key();
        let generation = resource.metadata.generation.and_then(|number| u64::try_from(number).ok());
        Ok(Self {
            name: key.name.to_string().into(),
            version: version(revision, &body).into(),
            revision,
            generation: generation.unwrap_or(0),
            links: Links::of(&resource),
            key,
            body,
        })
    }
}

/// What proxies do not need, and what would make every status write look like a change.
fn strip(object: &mut Value, revision: u64) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.remove("status");
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

fn version(revision: u64, body: &[u8]) -> String {
    let digest = Sha256::digest(body);
    let short = digest.iter().take(4).fold(0_u32, |sum, byte| (sum << 8) | u32::from(*byte));
    format!("{revision}-{short:08x}")
}

impl Links {
    fn of(resource: &Resource) -> Self {
        match &resource.model {
            Model::Service(service) => Self::Service(service.clone()),
            Model::Workload(workload) => Self::Workload {
                services: distinct(workload.services.iter()),
                workload: workload.clone(),
            },
            Model::HttpRoute(route) => Self::Route {
                parents: parents(&route.parents),
                backends: distinct(http_backends(route)),
            },
            Model::TcpRoute(route) => Self::Route {
                parents: parents(&route.parents),
                backends: distinct(route.backends.iter().map(|backend| &backend.service)),
            },
            // What of it concerns those who serve, they know.
            Model::TrafficPolicy(policy) => Self::Policy {
                targets: distinct(policy.targets.iter().map(|target| &target.service)),
                served: true,
                routes: Vec::new(),
            },
            Model::PeerAuthentication(_) => Self::Peers,
            Model::AuthorizationPolicy(policy) => Self::Guard(policy.applies.clone()),
            Model::RequestAuthentication(policy) => Self::Guard(policy.applies.clone()),
            // Limits hold at the service's own sidecars, faults at its callers'.
            Model::RateLimitPolicy(policy) => {
                Self::Guard(Applies::Services(policy.targets.clone()))
            }
            Model::FaultPolicy(policy) => Self::Policy {
                targets: distinct(policy.targets.iter().map(|target| &target.service)),
                served: false,
                routes: Vec::new(),
            },
            // Callers keep what they got.
            Model::CachePolicy(policy) => Self::Policy {
                targets: distinct(policy.services().map(|target| &target.service)),
                served: false,
                routes: http_routes(distinct(policy.routes().map(|(route, _)| route))),
            },
            Model::WasmPlugin(plugin) => {
                let targets = plugin.applies.targets().iter().filter(|_| plugin.is_client());
                let callees = distinct(targets.map(|target| &target.service));
                Self::Plugin { plugin: plugin.clone(), callees }
            }
            Model::TrustBundle(_) => Self::Mesh,
        }
    }
}

fn parents(parents: &[Parent]) -> Vec<ObjectName> {
    distinct(parents.iter().map(|parent| &parent.service))
}

/// Where the rules of a route send requests or copies of them.
fn http_backends(route: &HttpRoute) -> impl Iterator<Item = &ObjectName> {
    route.rules.iter().flat_map(|rule| {
        let mirrors = rule.filters.iter().filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(&mirror.backend.service),
            _ => None,
        });
        rule.backends.iter().map(|share| &share.backend.service).chain(mirrors)
    })
}

fn http_routes(names: Vec<ObjectName>) -> Vec<Key> {
    let kind = KINDS.iter().find(|info| info.kind == "HTTPRoute");
    kind.map(|kind| names.into_iter().map(|name| Key { kind, name }).collect()).unwrap_or_default()
}

fn distinct<'a>(names: impl Iterator<Item = &'a ObjectName>) -> Vec<ObjectName> {
    names.collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

#[cfg(test)]
impl Item {
    /// The services to which a route sends.
    pub(crate) fn backends(&self) -> &[ObjectName] {
        match &self.links {
            Links::Route { backends, .. } => backends,
            _ => &[],
        }
    }
}

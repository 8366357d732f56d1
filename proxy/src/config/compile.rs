//! Resources to a snapshot. Pure: the previous snapshot comes in, and what did not change is carried over by key,
//! together with its counters, pools and metrics.

mod caches;
mod cluster;
mod inbound;
mod limits;
mod plugins;
mod rule;

use std::{collections::BTreeSet, sync::Arc};

use leno_api::model::{
    ObjectName, fault_policy::FaultPolicy, identity::TrustDomain, workload::Workload,
};
use rustc_hash::FxHashMap;

use super::{
    inputs::{Dirty, Inputs, RouteChanges},
    prepare::Slots,
};
use crate::{
    cluster::ClusterKey,
    filter::jwt::KeyCache,
    snapshot::{Hosts, Port, Service, Snapshot},
    telemetry::scope::Party,
};

/// Who this proxy is.
#[derive(Clone, Debug)]
pub struct Own {
    /// Decides how short host names resolve and which consumer routes apply.
    pub namespace: String,
    /// For metrics.
    pub party: Party,
    /// The workload beside which it stands, if any.
    pub workload: Option<Arc<Workload>>,
    /// Where it is, for callees that prefer callers of their zone.
    pub zone: Option<Arc<str>>,
    /// Where the application listens.
    pub application: std::net::IpAddr,
    /// How it proves who it is.
    pub proof: Proof,
    /// Keys of those who issue tokens to callers.
    pub issuer_keys: Arc<KeyCache>,
}

/// What is known of our own certificate. Every change concerns every cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Whether there is a source of certificates: then nothing is said in plain where TLS is due, also not before the
    /// first one has come.
    pub expected: bool,
    /// Ours and that of everybody we call.
    pub trust_domain: Option<TrustDomain>,
    /// `spiffe://...`, for metrics.
    pub id: Option<Arc<str>>,
}

/// Which names callers can use.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Those of every service.
    Everything,
    /// These: a service may be known only as somebody's backend, without its own routes.
    Asked(&'a BTreeSet<String>),
}

/// Makes the next snapshot, with plugins as they are in `slots`. `dirty` says what changed since `previous` was made from the same `inputs`.
pub fn compile(
    previous: &Snapshot,
    inputs: &Inputs,
    dirty: &Dirty,
    own: &Own,
    slots: &Slots,
    known: Known<'_>,
) -> Snapshot {
    let mut clusters = previous.clusters.clone();
    for service in &dirty.clusters {
        cluster::rebuild(&mut clusters, inputs, service, own);
    }
    let mut changed = dirty.routes.clone();
    for callee in &dirty.clusters {
        changed.insert(callee.clone());
        changed.extend(inputs.callers_of(callee).cloned());
    }
    let caches = match dirty.caches {
        true => Arc::new(caches::hold(&previous.caches, inputs)),
        false => previous.caches.clone(),
    };
    let parts = Parts { inputs, clusters: &clusters, caches: &caches, own, slots };
    let kept: FxHashMap<&ObjectName, &Arc<Service>> =
        previous.services.iter().map(|service| (&service.name, service)).collect();
    let services = inputs.services().values().map(|service| {
        let kept = kept.get(&service.name).filter(|_| !changed.contains(&service.name));
        match (kept, dirty.single_routes.get(&service.name)) {
            (Some(kept), None) => (*kept).clone(),
            (Some(kept), Some(routes)) if !inputs.has_foreign_routes(&service.name) => {
                Arc::new(build_service(service, parts, Some((kept, routes))))
            }
            _ => Arc::new(build_service(service, parts, None)),
        }
    });
    let services: Vec<_> = services.collect();
    let hosts = if dirty.hosts {
        Arc::new(build_hosts(inputs, own, known))
    } else {
        previous.hosts.clone()
    };
    let inbound = inbound::build(&previous.inbound, inputs, own, slots, &mut clusters);
    let faults = match dirty.faults || dirty.hosts {
        true => Arc::new(faults(inputs)),
        false => previous.faults.clone(),
    };
    Snapshot {
        generation: previous.generation + 1,
        loaded: true,
        hosts,
        services,
        clusters,
        inbound: Arc::new(inbound),
        faults,
        caches,
        absent: previous.absent.clone(),
    }
}

fn faults(inputs: &Inputs) -> FxHashMap<ClusterKey, Arc<FaultPolicy>> {
    let ports =
        inputs.faulty().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let policies = ports.filter_map(|(service, port)| {
        let policy = inputs.faults_of(&service.name, &port.name)?;
        Some((ClusterKey::Service(service.name.clone(), port.port), policy.clone()))
    });
    policies.collect()
}

type Clusters = std::collections::BTreeMap<ClusterKey, Arc<crate::cluster::Cluster>>;

/// What services are built of.
#[derive(Clone, Copy)]
struct Parts<'a> {
    inputs: &'a Inputs,
    clusters: &'a Clusters,
    caches: &'a caches::Caches,
    own: &'a Own,
    slots: &'a Slots,
}

/// Where it is one of the `kept` and nothing but some of its routes changed, the others stay as they are.
fn build_service(
    service: &leno_api::model::service::Service,
    parts: Parts<'_>,
    kept: Option<(&Arc<Service>, &RouteChanges)>,
) -> Service {
    let Parts { inputs, clusters, caches, own, slots } = parts;
    let ports = service.ports.iter().filter_map(|port| {
        let cluster = clusters.get(&ClusterKey::Service(service.name.clone(), port.port))?;
        let cache = caches::OfPort::new(caches, inputs, service, port);
        let routes = rule::Routes { service, port, cache: &cache, parts };
        let kept = kept.and_then(|(kept, changes)| {
            let mut ports = kept.ports.iter();
            Some((ports.find(|kept| kept.number == port.port)?, changes))
        });
        Some(Port {
            number: port.port,
            name: port.name.clone(),
            protocol: port.protocol,
            routes: match kept {
                Some((kept, changes)) => routes.changed(&kept.routes, changes),
                None => routes.table(),
            },
            tcp: rule::tcp(service, port, inputs, clusters, own),
            cluster: cluster.clone(),
            plugins: plugins::outbound(inputs, own, slots, service, port),
            cache: cache.rules,
        })
    });
    // Most services have one port, and a vector that grows begins with room for four.
    let mut exact = Vec::with_capacity(service.ports.len());
    exact.extend(ports);
    Service { name: service.name.clone(), ports: exact }
}

fn build_hosts(inputs: &Inputs, own: &Own, known: Known<'_>) -> Hosts {
    let all = all_hosts(inputs, own);
    match known {
        Known::Everything => all,
        Known::Asked(asked) => {
            let found =
                asked.iter().filter_map(|host| Some((host.as_str().into(), all.find(host)?)));
            Hosts { exact: found.collect(), wildcards: Vec::new() }
        }
    }
}

/// Names as seen from our namespace. Where two services claim one name, the service of our namespace wins, then the
/// first by namespace and name; `<name>.<namespace>` always belongs to its service.
fn all_hosts(inputs: &Inputs, own: &Own) -> Hosts {
    let mut hosts = Hosts::default();
    let numbered = || inputs.services().values().zip(0u32..);
    for (service, at) in numbered() {
        let (name, namespace) = (&service.name.name, &service.name.namespace);
        for qualified in [
            format!("{name}.{namespace}"),
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}.svc.cluster.local"),
        ] {
            hosts.exact.insert(qualified.into(), at);
        }
    }
    let ours =
        |service: &leno_api::model::service::Service| *service.name.namespace == *own.namespace;
    for (service, at) in numbered() {
        for address in &service.addresses {
            hosts.exact.entry(address.to_string().into()).or_insert(at);
        }
    }
    for (service, at) in numbered().filter(|(service, _)| ours(service)) {
        hosts.exact.entry((*service.name.name).into()).or_insert(at);
    }
    let mut by_nearness: Vec<_> = numbered().collect();
    by_nearness.sort_by_key(|(service, _)| !ours(service));
    for (service, at) in by_nearness {
        for host in service.hosts.iter().filter(|host| ours(service) || host.as_str().contains('.'))
        {
            match host.as_str().strip_prefix('*') {
                None => _ = hosts.exact.entry(host.as_str().into()).or_insert(at),
                Some(suffix) if !hosts.wildcards.iter().any(|(known, _)| **known == *suffix) => {
                    hosts.wildcards.push((suffix.into(), at));
                }
                Some(_) => {}
            }
        }
    }
    hosts.wildcards.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
    hosts
}

#[cfg(test)]
mod tests;

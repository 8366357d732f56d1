//! The resources in force, indexed by what they refer to, so that a change costs in proportion to what it concerns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use leno_api::{
    Key, Resource,
    model::{
        Model, ObjectName,
        http_route::HttpRoute,
        service::Service,
        tcp_route::TcpRoute,
        traffic_policy::{Settings, TrafficPolicy},
        workload::Workload,
    },
};
use rustc_hash::{FxHashMap, FxHashSet};

/// All resources, by kind and by reference.
#[derive(Debug, Default)]
pub struct Inputs {
    resources: BTreeMap<Key, Arc<Resource>>,
    services: BTreeMap<ObjectName, Arc<Service>>,
    by_name: FxHashMap<ObjectName, Arc<Workload>>,
    /// For each service: the workloads that serve it.
    workloads: Index<Workload>,
    /// For each service: the routes attached to it.
    routes: Index<HttpRoute>,
    tcp_routes: Index<TcpRoute>,
    /// For each service: the policies that target it.
    policies: Index<TrafficPolicy>,
    /// For each service: the services whose routes send traffic to it (with how many routes do).
    callers: FxHashMap<ObjectName, BTreeMap<ObjectName, usize>>,
}

type Index<T> = FxHashMap<ObjectName, BTreeMap<Key, Arc<T>>>;

/// What changed since the last compilation.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Services whose clusters are to be built anew.
    pub clusters: FxHashSet<ObjectName>,
    /// Services whose routes are to be built anew.
    pub routes: FxHashSet<ObjectName>,
    /// Whether services came, went or changed their names.
    pub hosts: bool,
}

impl Dirty {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.routes.is_empty() && !self.hosts
    }
}

impl Inputs {
    /// Takes a resource in, instead of the one of that key.
    pub fn insert(&mut self, resource: Arc<Resource>, dirty: &mut Dirty) {
        let key = resource.key();
        self.remove(&key, dirty);
        self.link(&key, &resource.model, dirty);
        self.resources.insert(key, resource);
    }

    /// Takes a resource out.
    pub fn remove(&mut self, key: &Key, dirty: &mut Dirty) {
        if let Some(old) = self.resources.remove(key) {
            self.unlink(key, &old.model, dirty);
        }
    }

    /// Every resource.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// All services, by name.
    pub fn services(&self) -> &BTreeMap<ObjectName, Arc<Service>> {
        &self.services
    }

    /// The workload of that name.
    pub fn workload(&self, name: &ObjectName) -> Option<&Arc<Workload>> {
        self.by_name.get(name)
    }

    /// Workloads that serve `service`, in a stable order.
    pub fn workloads_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// HTTP and gRPC routes attached to `service`.
    pub fn routes_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<HttpRoute>> {
        self.routes.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// TCP routes attached to `service`.
    pub fn tcp_routes_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<TcpRoute>> {
        self.tcp_routes.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// Services whose routes send traffic to `service`.
    pub fn callers_of(&self, service: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        self.callers.get(service).into_iter().flat_map(BTreeMap::keys)
    }

    /// How callers treat a port of `service`: the policy for that port, else the one for the service; of several the
    /// oldest.
    pub fn settings_of(&self, service: &ObjectName, port: &str) -> Settings {
        let mut best: Option<(bool, bool, &str, &ObjectName, &TrafficPolicy)> = None;
        for policy in self.policies.get(service).into_iter().flat_map(BTreeMap::values) {
            for target in policy.targets.iter().filter(|target| target.service == *service) {
                let whole = match target.section.as_deref() {
                    Some(section) if section != port => continue,
                    section => section.is_none(),
                };
                let rank = (whole, policy.created.is_empty(), &*policy.created, &policy.name);
                if best.is_none_or(|(a, b, c, d, _)| rank < (a, b, c, d)) {
                    best = Some((rank.0, rank.1, rank.2, rank.3, policy));
                }
            }
        }
        best.map(|(.., policy)| policy.settings.clone()).unwrap_or_default()
    }

    fn link(&mut self, key: &Key, model: &Model, dirty: &mut Dirty) {
        match model {
            Model::Service(service) => {
                self.services.insert(service.name.clone(), service.clone());
                dirty.hosts = true;
            }
            Model::Workload(workload) => {
                self.by_name.insert(workload.name.clone(), workload.clone());
                for service in &workload.services {
                    self.workloads
                        .entry(service.clone())
                        .or_default()
                        .insert(key.clone(), workload.clone());
                }
            }
            Model::HttpRoute(route) => {
                for parent in &route.parents {
                    self.routes
                        .entry(parent.service.clone())
                        .or_default()
                        .insert(key.clone(), route.clone());
                }
            }
            Model::TcpRoute(route) => {
                for parent in &route.parents {
                    self.tcp_routes
                        .entry(parent.service.clone())
                        .or_default()
                        .insert(key.clone(), route.clone());
                }
            }
            Model::TrafficPolicy(policy) => {
                for target in &policy.targets {
                    self.policies
                        .entry(target.service.clone())
                        .or_default()
                        .insert(key.clone(), policy.clone());
                }
            }
        }
        for (callee, caller) in calls(model) {
            *self.callers.entry(callee).or_default().entry(caller).or_default() += 1;
        }
        mark(model, dirty);
    }

    fn unlink(&mut self, key: &Key, model: &Model, dirty: &mut Dirty) {
        match model {
            Model::Service(service) => {
                self.services.remove(&service.name);
                dirty.hosts = true;
            }
            Model::Workload(workload) => {
                self.by_name.remove(&workload.name);
                unlink_all(&mut self.workloads, key, &workload.services);
            }
            Model::HttpRoute(route) => {
                unlink_all(
                    &mut self.routes,
                    key,
                    route.parents.iter().map(|parent| &parent.service),
                );
            }
            Model::TcpRoute(route) => {
                unlink_all(
                    &mut self.tcp_routes,
                    key,
                    route.parents.iter().map(|parent| &parent.service),
                );
            }
            Model::TrafficPolicy(policy) => {
                unlink_all(
                    &mut self.policies,
                    key,
                    policy.targets.iter().map(|target| &target.service),
                );
            }
        }
        for (callee, caller) in calls(model) {
            let Some(callers) = self.callers.get_mut(&callee) else { continue };
            if let Some(count) = callers.get_mut(&caller) {
                *count -= 1;
                if *count == 0 {
                    callers.remove(&caller);
                }
            }
            if callers.is_empty() {
                self.callers.remove(&callee);
            }
        }
        mark(model, dirty);
    }
}

/// What `model` being there or not has an effect on.
fn mark(model: &Model, dirty: &mut Dirty) {
    match model {
        Model::Service(service) => {
            dirty.clusters.insert(service.name.clone());
            dirty.routes.insert(service.name.clone());
        }
        Model::Workload(workload) => dirty.clusters.extend(workload.services.iter().cloned()),
        Model::HttpRoute(route) => {
            dirty.routes.extend(route.parents.iter().map(|parent| parent.service.clone()))
        }
        Model::TcpRoute(route) => {
            dirty.routes.extend(route.parents.iter().map(|parent| parent.service.clone()))
        }
        Model::TrafficPolicy(policy) => {
            dirty.clusters.extend(policy.targets.iter().map(|target| target.service.clone()));
        }
    }
}

/// Pairs (callee, parent) of a route: the parent's routes hold clusters of the callee.
fn calls(model: &Model) -> BTreeSet<(ObjectName, ObjectName)> {
    use leno_api::model::filter::Filter;
    let mut callees: BTreeSet<&ObjectName> = BTreeSet::new();
    let parents = match model {
        Model::HttpRoute(route) => {
            for rule in &route.rules {
                callees.extend(rule.backends.iter().map(|backend| &backend.backend.service));
                callees.extend(rule.filters.iter().filter_map(|filter| match filter {
                    Filter::Mirror(mirror) => Some(&mirror.backend.service),
                    _ => None,
                }));
            }
            &route.parents
        }
        Model::TcpRoute(route) => {
            callees.extend(route.backends.iter().map(|backend| &backend.service));
            &route.parents
        }
        _ => return BTreeSet::new(),
    };
    let pairs = |callee: &ObjectName| {
        parents.iter().map(|parent| (callee.clone(), parent.service.clone())).collect::<Vec<_>>()
    };
    callees.into_iter().flat_map(pairs).collect()
}

fn unlink_all<'a, T>(
    index: &mut Index<T>,
    key: &Key,
    services: impl IntoIterator<Item = &'a ObjectName>,
) {
    for service in services {
        if let Some(members) = index.get_mut(service) {
            members.remove(key);
            if members.is_empty() {
                index.remove(service);
            }
        }
    }
}

//! The resources in force, indexed by what they refer to, so that a change costs in proportion to what it concerns.

mod caches;
mod dirty;
mod index;
mod links;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use leno_api::{
    KINDS, Key, KindInfo,
    model::{
        Model, ObjectName,
        authorization_policy::AuthorizationPolicy,
        fault_policy::FaultPolicy,
        http_route::HttpRoute,
        peer_authentication::{self, PeerAuthentication, TlsMode},
        rate_limit_policy::RateLimitPolicy,
        request_authentication::RequestAuthentication,
        service::{Service, ServicePort},
        tcp_route::TcpRoute,
        traffic_policy::{Settings, TrafficPolicy},
        wasm_plugin::WasmPlugin,
        workload::Workload,
    },
};
use rustc_hash::FxHashMap;

use super::{
    pack::{self, Meaning},
    text::Text,
};
use caches::Caches;
pub use dirty::{Dirty, RouteChanges};
use index::{
    ByNamespace, Claim, Index, attach, detach, file, first_of, in_force, unfile, unlink_all,
};
use links::{calls, mark, mark_plugin, mark_route};

/// All resources, by kind and by reference.
#[derive(Debug, Default)]
pub struct Inputs {
    resources: BTreeMap<Key, Held>,
    services: BTreeMap<ObjectName, Arc<Service>>,
    /// For each service: the workloads that serve it, by name. There may be ten thousand.
    workloads: FxHashMap<ObjectName, Vec<Arc<Workload>>>,
    /// For each service: the routes attached to it.
    routes: Index<HttpRoute>,
    tcp_routes: Index<TcpRoute>,
    /// For each service: the policies that target it.
    policies: Index<TrafficPolicy>,
    rate_limits: Index<RateLimitPolicy>,
    faults: Index<FaultPolicy>,
    caches: Caches,
    /// Who may call and how, by the policy's own namespace.
    peer_authentications: ByNamespace<PeerAuthentication>,
    authorization_policies: ByNamespace<AuthorizationPolicy>,
    request_authentications: ByNamespace<RequestAuthentication>,
    /// There are few, and each may concern everything.
    plugins: BTreeMap<ObjectName, Arc<WasmPlugin>>,
    /// For each service: the services whose routes send traffic to it (with how many routes do).
    callers: FxHashMap<ObjectName, BTreeMap<ObjectName, usize>>,
    /// For each service: those that are a part of it.
    subsets: FxHashMap<ObjectName, BTreeSet<ObjectName>>,
    /// How callers treat what no policy is about.
    usual: Arc<Settings>,
}

/// A resource: what it means, and the text it was read from. Its metadata are in the text only.
#[derive(Debug)]
struct Held {
    model: Model,
    text: Text,
}

impl Inputs {
    /// Takes a resource in, read from `text`, instead of the one of that key.
    pub fn insert(
        &mut self,
        resource: impl Into<Meaning>,
        text: impl Into<Text>,
        dirty: &mut Dirty,
    ) {
        let (Meaning { kind, mut model }, text) = (resource.into(), text.into());
        let old = self.take(&Key { kind, name: model.name().clone() }, dirty);
        match (&mut model, old) {
            // Often only its metadata have changed; endpoints hold it, too.
            (Model::Workload(workload), Some(Model::Workload(same))) if same == *workload => {
                *workload = same;
            }
            (model, _) => self.share(model),
        }
        let key = Key { kind, name: model.name().clone() };
        let text = match self.sibling_of(&model).or_else(|| self.neighbour_of(&key)) {
            Some(held) => text.unless_like(&held.text),
            None => text,
        };
        self.link(&key, &model, dirty);
        self.resources.insert(key, Held { model, text });
    }

    /// Keeps what `model` says as another one does once.
    fn share(&self, model: &mut Model) {
        if let Some(sibling) = self.sibling_of(model) {
            pack::share(model, &sibling.model);
        }
    }

    /// Takes a resource out.
    pub fn remove(&mut self, key: &Key, dirty: &mut Dirty) {
        self.take(key, dirty);
    }

    fn take(&mut self, key: &Key, dirty: &mut Dirty) -> Option<Model> {
        let old = self.resources.remove(key)?;
        self.unlink(key, &old.model, dirty);
        Some(old.model)
    }

    /// The kind and model of every resource, in a stable order.
    pub fn models(&self) -> impl Iterator<Item = (&'static KindInfo, &Model)> {
        self.resources.iter().map(|(key, held)| (key.kind, &held.model))
    }

    /// What every resource was read from, in the same order.
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        self.resources.values().map(|held| &held.text)
    }

    /// Another workload of the same service, where it is one: they mostly say the same.
    fn sibling_of(&self, model: &Model) -> Option<&Held> {
        let Model::Workload(workload) = model else { return None };
        let sibling = self.workloads.get(workload.services.first()?)?.first()?;
        self.resources.get(&Key { kind: workload_kind()?, name: sibling.name.clone() })
    }

    /// The resource before it of the same kind: of those with names alike, most have the same form.
    fn neighbour_of(&self, key: &Key) -> Option<&Held> {
        let (before, held) = self.resources.range(..key).next_back()?;
        std::ptr::eq(before.kind, key.kind).then_some(held)
    }

    /// Closes the gaps that inserting one after the other leaves: in what is sorted up to half of the room. Takes as long
    /// as it takes to look at everything.
    pub fn pack(&mut self) {
        self.resources = std::mem::take(&mut self.resources).into_iter().collect();
        self.services = std::mem::take(&mut self.services).into_iter().collect();
        self.workloads.values_mut().for_each(Vec::shrink_to_fit);
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// All services, by name.
    pub fn services(&self) -> &BTreeMap<ObjectName, Arc<Service>> {
        &self.services
    }

    /// The workload of that name.
    pub fn workload(&self, name: &ObjectName) -> Option<&Arc<Workload>> {
        let key = Key { kind: workload_kind()?, name: name.clone() };
        match &self.resources.get(&key)?.model {
            Model::Workload(workload) => Some(workload),
            _ => None,
        }
    }

    /// Workloads that serve `service`, in a stable order.
    pub fn workloads_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.get(service).into_iter().flatten()
    }

    /// The parts of `service` that `workload`, one of its own, is in; in a stable order.
    pub fn parts_of<'a>(
        &'a self,
        service: &ObjectName,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let parts = self.subsets.get(service).into_iter().flatten();
        let parts = parts.filter_map(|part| self.services.get(part));
        parts.filter(|part| part.subset.as_ref().is_some_and(|subset| subset.has(workload)))
    }

    /// HTTP and gRPC routes attached to `service`.
    pub fn routes_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<HttpRoute>> {
        self.routes.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// One of them.
    pub fn route_of(&self, service: &ObjectName, route: &Key) -> Option<&Arc<HttpRoute>> {
        self.routes.get(service)?.get(route)
    }

    /// Whether any of them is of another namespace.
    pub fn has_foreign_routes(&self, service: &ObjectName) -> bool {
        let mut routes = self.routes.get(service).into_iter().flat_map(BTreeMap::keys);
        routes.any(|route| route.name.namespace != service.namespace)
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
    pub fn settings_of(&self, service: &ObjectName, port: &str) -> Arc<Settings> {
        let policies = self.policies.get(service).into_iter().flat_map(BTreeMap::values);
        first_of(policies, |policy| Claim::new(&policy.targets, &policy.created, (service, port)))
            .map_or(&self.usual, |policy| &policy.settings)
            .clone()
    }

    /// How a port of `service` fails on purpose: of several policies as [`Self::settings_of`] says.
    pub fn faults_of(&self, service: &ObjectName, port: &str) -> Option<&Arc<FaultPolicy>> {
        let policies = self.faults.get(service).into_iter().flat_map(BTreeMap::values);
        first_of(policies, |policy| Claim::new(&policy.targets, &policy.created, (service, port)))
    }

    /// Services that fail on purpose.
    pub fn faulty(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.faults.keys().filter_map(|service| self.services.get(service))
    }

    /// Limits on what `service` takes, in a stable order: a request must be within all of them.
    pub fn rate_limits_of(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = &Arc<RateLimitPolicy>> {
        self.rate_limits.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// Which connections `workload` takes for a port of `service`, where a policy says so.
    pub fn tls_mode(
        &self,
        workload: &Workload,
        service: &Service,
        port: &ServicePort,
    ) -> Option<TlsMode> {
        // 0 where the application has no such port: no policy can name that.
        let app_port = workload.app_port(&service.name.name, &port.name).unwrap_or(0);
        let at = Some((&service.name, &*port.name));
        let namespace = &workload.name.namespace;
        let policies = || in_force(&self.peer_authentications, namespace);
        let says = |policy: &Arc<PeerAuthentication>| {
            let namespace = &policy.name.namespace;
            policy.says(app_port).is_some()
                && policy.applies.covers_port(namespace, workload, at, app_port, &self.services)
        };
        policies().any(says).then(|| {
            let policies = policies().map(|policy| &**policy);
            peer_authentication::mode_of(policies, workload, at, app_port, &self.services)
        })
    }

    /// The same for a port of `workload`'s application that no service has.
    pub fn tls_mode_undeclared(&self, workload: &Workload, app_port: u16) -> Option<TlsMode> {
        let namespace = &workload.name.namespace;
        let policies = || in_force(&self.peer_authentications, namespace);
        let says = |policy: &Arc<PeerAuthentication>| {
            let namespace = &policy.name.namespace;
            policy.says(app_port).is_some()
                && policy.applies.covers_port(namespace, workload, None, app_port, &self.services)
        };
        policies().any(says).then(|| {
            let policies = policies().map(|policy| &**policy);
            peer_authentication::mode_of(policies, workload, None, app_port, &self.services)
        })
    }

    /// Ports of applications of which policies for workloads of `namespace` say something.
    pub fn tls_mode_ports(&self, namespace: &str) -> impl Iterator<Item = u16> {
        let policies = in_force(&self.peer_authentications, namespace);
        policies.flat_map(|policy| policy.ports.keys().copied())
    }

    /// Policies that may say who may call workloads of `namespace`.
    pub fn authorization_policies(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        in_force(&self.authorization_policies, namespace)
    }

    /// Policies that may say whose tokens workloads of `namespace` accept.
    pub fn request_authentications(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        in_force(&self.request_authentications, namespace)
    }

    /// Plugins, by name.
    pub fn plugins(&self) -> &BTreeMap<ObjectName, Arc<WasmPlugin>> {
        &self.plugins
    }

    /// What depends on a plugin is to be built anew: it can be used now, or in another way.
    pub fn touch_plugin(&self, name: &ObjectName, dirty: &mut Dirty) {
        if let Some(plugin) = self.plugins.get(name) {
            mark_plugin(&self.services, plugin, dirty);
        }
    }

    fn link(&mut self, key: &Key, model: &Model, dirty: &mut Dirty) {
        match model {
            Model::Service(service) => {
                self.services.insert(service.name.clone(), service.clone());
                if let Some(subset) = &service.subset {
                    let parts = self.subsets.entry(subset.of.clone()).or_default();
                    parts.insert(service.name.clone());
                }
                dirty.hosts = true;
            }
            Model::Workload(workload) => {
                for service in &*workload.services {
                    let members = self.workloads.entry(service.clone()).or_default();
                    match members.binary_search_by(|member| member.name.cmp(&workload.name)) {
                        Ok(at) => members[at] = workload.clone(),
                        Err(at) => members.insert(at, workload.clone()),
                    }
                }
            }
            Model::HttpRoute(route) => {
                for parent in &route.parents {
                    self.routes
                        .entry(parent.service.clone())
                        .or_default()
                        .insert(key.clone(), route.clone());
                }
                mark_route(key, route, false, dirty);
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
                attach(&mut self.policies, key, &policy.targets, policy);
            }
            Model::RateLimitPolicy(policy) => {
                attach(&mut self.rate_limits, key, &policy.targets, policy);
            }
            Model::FaultPolicy(policy) => attach(&mut self.faults, key, &policy.targets, policy),
            Model::CachePolicy(policy) => self.caches.insert(key, policy),
            Model::PeerAuthentication(policy) => {
                file(&mut self.peer_authentications, key, &policy.name, policy);
            }
            Model::AuthorizationPolicy(policy) => {
                file(&mut self.authorization_policies, key, &policy.name, policy);
            }
            Model::RequestAuthentication(policy) => {
                file(&mut self.request_authentications, key, &policy.name, policy);
            }
            Model::WasmPlugin(plugin) => {
                self.plugins.insert(plugin.name.clone(), plugin.clone());
            }
            // For the certificates, not for what is compiled.
            Model::TrustBundle(_) => {}
        }
        for (callee, caller) in calls(model) {
            *self.callers.entry(callee).or_default().entry(caller).or_default() += 1;
        }
        mark(&self.services, model, dirty);
        self.mark_subsets(model, dirty);
        self.mark_cached_routes(model, dirty);
    }

    fn unlink(&mut self, key: &Key, model: &Model, dirty: &mut Dirty) {
        match model {
            Model::Service(service) => {
                self.services.remove(&service.name);
                if let Some(subset) = &service.subset
                    && let Some(parts) = self.subsets.get_mut(&subset.of)
                {
                    parts.remove(&service.name);
                    if parts.is_empty() {
                        self.subsets.remove(&subset.of);
                    }
                }
                dirty.hosts = true;
            }
            Model::Workload(workload) => {
                for service in &*workload.services {
                    let Some(members) = self.workloads.get_mut(service) else { continue };
                    members.retain(|member| member.name != workload.name);
                    if members.is_empty() {
                        self.workloads.remove(service);
                    }
                }
            }
            Model::HttpRoute(route) => {
                unlink_all(
                    &mut self.routes,
                    key,
                    route.parents.iter().map(|parent| &parent.service),
                );
                mark_route(key, route, true, dirty);
            }
            Model::TcpRoute(route) => {
                unlink_all(
                    &mut self.tcp_routes,
                    key,
                    route.parents.iter().map(|parent| &parent.service),
                );
            }
            Model::TrafficPolicy(policy) => detach(&mut self.policies, key, &policy.targets),
            Model::RateLimitPolicy(policy) => detach(&mut self.rate_limits, key, &policy.targets),
            Model::FaultPolicy(policy) => detach(&mut self.faults, key, &policy.targets),
            Model::CachePolicy(policy) => self.caches.remove(key, policy),
            Model::PeerAuthentication(policy) => {
                unfile(&mut self.peer_authentications, key, &policy.name);
            }
            Model::AuthorizationPolicy(policy) => {
                unfile(&mut self.authorization_policies, key, &policy.name);
            }
            Model::RequestAuthentication(policy) => {
                unfile(&mut self.request_authentications, key, &policy.name);
            }
            Model::WasmPlugin(plugin) => {
                self.plugins.remove(&plugin.name);
            }
            Model::TrustBundle(_) => {}
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
        mark(&self.services, model, dirty);
        self.mark_subsets(model, dirty);
        self.mark_cached_routes(model, dirty);
    }
}

fn workload_kind() -> Option<&'static KindInfo> {
    KINDS.iter().find(|kind| kind.kind == "Workload")
}

impl Inputs {
    /// Parts of a service change with its workloads and ports.
    fn mark_subsets(&self, model: &Model, dirty: &mut Dirty) {
        let wholes = match model {
            Model::Service(service) => std::slice::from_ref(&service.name),
            Model::Workload(workload) => &*workload.services,
            _ => &[],
        };
        for parts in wholes.iter().filter_map(|whole| self.subsets.get(whole)) {
            dirty.clusters.extend(parts.iter().cloned());
        }
    }
}

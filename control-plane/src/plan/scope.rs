//! What is in one proxy's scope, and why.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
    sync::Arc,
};

use leno_api::{
    Key, SYSTEM_NAMESPACE,
    model::{
        ObjectName, applies::Applies, service::Subsets, wasm_plugin::WasmPlugin, workload::Workload,
    },
};

use super::{
    Delta, Identity, Item, ProxyId, Wish,
    build::Links,
    index::{Index, whole},
    interest::Interest,
};

#[derive(Debug)]
pub(super) struct Scope {
    id: ProxyId,
    identity: Identity,
    pub(super) wishes: HashSet<Wish>,
    /// By how many wishes each service is asked for.
    frontends: Counts<ObjectName>,
    /// By how many frontends (itself), routes in scope and parts of it each service is needed.
    backends: Counts<ObjectName>,
    /// The whole services that backends are a part of.
    wholes: HashMap<ObjectName, ObjectName>,
    /// By how many backends each namespace is spoken to; its own and the mesh's once more.
    namespaces: Counts<Arc<str>>,
    /// As it is now, if it is there.
    own: Option<Arc<Workload>>,
    /// Served by the own workload.
    served: Vec<ObjectName>,
    members: HashSet<Member>,
    pub(super) delta: Delta,
}

#[derive(Debug)]
struct Counts<K>(HashMap<K, u32>);

/// An object in scope, found by its key. There is one for each object of each proxy: the key is in the object already.
#[derive(Debug)]
struct Member(Arc<Item>);

/// What all scopes share.
pub(super) struct Shared<'a> {
    pub(super) index: &'a Index,
    pub(super) interest: &'a mut Interest,
}

impl Borrow<Key> for Member {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl Hash for Member {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Member {}

impl Scope {
    pub(super) fn new(id: ProxyId, identity: Identity, shared: &mut Shared<'_>) -> Self {
        let mut scope = Self {
            id,
            identity,
            wishes: HashSet::new(),
            frontends: Counts::default(),
            backends: Counts::default(),
            wholes: HashMap::new(),
            namespaces: Counts::default(),
            own: None,
            served: Vec::new(),
            members: HashSet::new(),
            delta: Delta::default(),
        };
        let index = shared.index;
        index.mesh().for_each(|key| scope.reconsider(key, shared));
        for namespace in scope.policy_namespaces() {
            scope.add_namespace(&namespace, shared);
            shared.interest.guarded.add(&namespace, id);
        }
        if let Some(workload) = &scope.identity.workload {
            shared.interest.own.add(workload, id);
            let own = index.workload(workload).map(|item| item.key.clone());
            own.into_iter().for_each(|key| scope.reconsider(&key, shared));
        }
        scope.reconsider_guards(shared);
        scope
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.members.contains(key)
    }

    /// Takes the scope out of all that is shared, and names what it held.
    pub(super) fn dissolve(self, interest: &mut Interest) -> Vec<Key> {
        for service in self.frontends.0.keys() {
            interest.frontends.remove(service, self.id);
        }
        for service in self.backends.0.keys() {
            interest.backends.remove(service, self.id);
        }
        for service in &self.served {
            interest.served.remove(service, self.id);
        }
        for namespace in self.namespaces.0.keys() {
            interest.peers.remove(namespace, self.id);
        }
        for namespace in self.policy_namespaces() {
            interest.guarded.remove(&namespace, self.id);
        }
        if let Some(workload) = &self.identity.workload {
            interest.own.remove(workload, self.id);
        }
        for Member(item) in &self.members {
            interest.left(&item.key);
        }
        self.members.into_iter().map(|Member(item)| item.key.clone()).collect()
    }

    pub(super) fn add_frontend(&mut self, service: &ObjectName, shared: &mut Shared<'_>) {
        if !self.frontends.add(service) {
            return;
        }
        shared.interest.frontends.add(service, self.id);
        self.add_backend(service, shared);
        let index = shared.index;
        for route in index.routes_of(service) {
            self.reconsider(route, shared);
        }
    }

    pub(super) fn remove_frontend(&mut self, service: &ObjectName, shared: &mut Shared<'_>) {
        if !self.frontends.remove(service) {
            return;
        }
        shared.interest.frontends.remove(service, self.id);
        let index = shared.index;
        for route in index.routes_of(service) {
            self.reconsider(route, shared);
        }
        self.remove_backend(service, shared);
    }

    fn add_backend(&mut self, service: &ObjectName, shared: &mut Shared<'_>) {
        if self.backends.add(service) {
            shared.interest.backends.add(service, self.id);
            self.add_namespace(&service.namespace, shared);
            self.reconsider_parts(service, shared);
            self.follow_whole(service, shared);
        }
    }

    fn remove_backend(&mut self, service: &ObjectName, shared: &mut Shared<'_>) {
        if self.backends.remove(service) {
            shared.interest.backends.remove(service, self.id);
            self.follow_whole(service, shared);
            self.reconsider_parts(service, shared);
            self.remove_namespace(&service.namespace, shared);
        }
    }

    /// A backend that is a part of another service needs that, too: its workloads and ports. A part that is here only
    /// for the sake of the whole needs nothing more.
    fn follow_whole(&mut self, service: &ObjectName, shared: &mut Shared<'_>) {
        let index = shared.index;
        let subset = index.subset(service).filter(|_| self.backends.has(service));
        let now = subset.map(|subset| subset.of.clone());
        if now.as_ref() == self.wholes.get(service) {
            return;
        }
        let before = match &now {
            Some(whole) => self.wholes.insert(service.clone(), whole.clone()),
            None => self.wholes.remove(service),
        };
        now.iter().for_each(|whole| self.add_backend(whole, shared));
        before.iter().for_each(|whole| self.remove_backend(whole, shared));
    }

    /// A part of a service came, went or has other labels: other policies may hold here.
    pub(super) fn reconsider_subset(&mut self, subset: &ObjectName, shared: &mut Shared<'_>) {
        let index = shared.index;
        for policy in index.policies_of(subset) {
            self.reconsider(policy, shared);
        }
        self.reconsider_guards(shared);
    }

    fn add_namespace(&mut self, namespace: &Arc<str>, shared: &mut Shared<'_>) {
        if self.namespaces.add(namespace) {
            shared.interest.peers.add(namespace, self.id);
            self.reconsider_peers(namespace, shared);
        }
    }

    fn remove_namespace(&mut self, namespace: &Arc<str>, shared: &mut Shared<'_>) {
        if self.namespaces.remove(namespace) {
            shared.interest.peers.remove(namespace, self.id);
            self.reconsider_peers(namespace, shared);
        }
    }

    fn reconsider_peers(&mut self, namespace: &Arc<str>, shared: &mut Shared<'_>) {
        let index = shared.index;
        for policy in index.peers_of(namespace) {
            self.reconsider(policy, shared);
        }
    }

    /// What the own workload is decides which policies guard it.
    fn reconsider_guards(&mut self, shared: &mut Shared<'_>) {
        let index = shared.index;
        for namespace in self.policy_namespaces() {
            for policy in index.guards_of(&namespace) {
                self.reconsider(policy, shared);
            }
        }
    }

    /// Where policies for the proxy's own workload may be: its namespace, and the mesh's.
    fn policy_namespaces(&self) -> [Arc<str>; 2] {
        [self.identity.namespace.clone(), SYSTEM_NAMESPACE.into()]
    }

    fn reconsider_parts(&mut self, service: &ObjectName, shared: &mut Shared<'_>) {
        let index = shared.index;
        for part in index.parts_of(service) {
            self.reconsider(part, shared);
        }
    }

    /// Decides again whether the object belongs here, and notes what that changes.
    pub(super) fn reconsider(&mut self, key: &Key, shared: &mut Shared<'_>) {
        let now = shared.index.get(key).filter(|item| self.wants(item, shared.index)).cloned();
        let before = self.members.get(key).map(|Member(item)| item.clone());
        match (&before, &now) {
            (None, None) => return,
            (Some(before), Some(now)) if Arc::ptr_eq(before, now) => return,
            (Some(_), Some(_)) => {}
            (None, Some(_)) => shared.interest.entered(key),
            (Some(_), None) => shared.interest.left(key),
        }
        match &now {
            Some(item) => _ = self.members.replace(Member(item.clone())),
            None => _ = self.members.remove(key),
        }
        self.delta.items.insert(key.clone(), now.clone());
        self.follow(before.as_deref(), now.as_deref(), shared);
        if before.is_some() != now.is_some() {
            let index = shared.index;
            for policy in index.policies_of_route(key) {
                self.reconsider(policy, shared);
            }
        }
    }

    /// What an object drags in with it: a route its backends, the own workload the services it serves.
    fn follow(&mut self, before: Option<&Item>, now: Option<&Item>, shared: &mut Shared<'_>) {
        let (added, removed) = (backends(now), backends(before));
        added.iter().for_each(|service| self.add_backend(service, shared));
        removed.iter().for_each(|service| self.remove_backend(service, shared));
        if let Some(Links::Service(service)) = now.or(before).map(|item| &item.links) {
            self.follow_whole(&service.name, shared);
        }
        if now.or(before).is_some_and(|item| self.is_own(item)) {
            self.own = now.and_then(workload).cloned();
            self.serve(served(now), shared);
            self.reconsider_guards(shared);
        }
    }

    fn serve(&mut self, services: &[ObjectName], shared: &mut Shared<'_>) {
        let before = std::mem::replace(&mut self.served, services.to_vec());
        for service in &before {
            shared.interest.served.remove(service, self.id);
        }
        for service in services {
            shared.interest.served.add(service, self.id);
        }
        let index = shared.index;
        for service in before.iter().chain(services) {
            for key in index.frame_of(service) {
                self.reconsider(key, shared);
            }
        }
    }

    fn wants(&self, item: &Item, index: &Index) -> bool {
        let needed = |services: &[ObjectName]| services.iter().any(|name| self.backends.has(name));
        match &item.links {
            // Policies for a part concern the workloads of the whole.
            Links::Service(service) => {
                let has = |name| self.backends.has(name) || self.served.contains(name);
                has(&service.name) || whole(service).iter().any(has)
            }
            Links::Workload { services, .. } => self.is_own(item) || needed(services),
            Links::Policy { targets, served, routes } => {
                needed(targets)
                    || *served && targets.iter().any(|name| self.serves(name, index))
                    || routes.iter().any(|route| self.members.contains(route))
            }
            Links::Peers => self.namespaces.has(&item.key.name.namespace),
            Links::Guard(applies) => self.is_guarded(&item.key.name.namespace, applies, index),
            Links::Plugin { plugin, callees } => needed(callees) || self.runs(plugin, index),
            Links::Mesh => true,
            Links::Route { parents, .. } => {
                let namespace = &item.key.name.namespace;
                parents.iter().any(|parent| {
                    let visible =
                        *namespace == parent.namespace || *namespace == self.identity.namespace;
                    visible && self.frontends.has(parent)
                })
            }
        }
    }

    /// Whether the own workload serves `service`, or is in it as a part of what it serves.
    fn serves(&self, service: &ObjectName, index: &Index) -> bool {
        let is_in = |own: &Arc<Workload>| {
            let subset = index.subset(service);
            subset.is_some_and(|subset| self.served.contains(&subset.of) && subset.has(own))
        };
        self.served.contains(service) || self.own.as_ref().is_some_and(is_in)
    }

    /// Whether a policy of `namespace` may guard the own workload. As long as nothing is known of that, all
    /// that might do: too many are harmless, since the proxy looks again, one missing would be a hole.
    fn is_guarded(&self, namespace: &Arc<str>, applies: &Applies, index: &Index) -> bool {
        let near = *namespace == self.identity.namespace || **namespace == *SYSTEM_NAMESPACE;
        if self.identity.workload.is_none() || !near {
            return false;
        }
        self.own.as_ref().is_none_or(|own| applies.covers(namespace, own, None, index))
    }

    /// Whether a plugin may run here for what it is, not for what is called. As with policies, too many are harmless.
    fn runs(&self, plugin: &WasmPlugin, index: &Index) -> bool {
        let namespace = &plugin.name.namespace;
        let near = *namespace == self.identity.namespace || **namespace == *SYSTEM_NAMESPACE;
        let sends = match &plugin.applies {
            Applies::Namespace => near,
            Applies::Labels(_) => self.is_guarded(namespace, &plugin.applies, index),
            Applies::Services(_) => false,
        };
        (plugin.is_client() && sends)
            || (plugin.is_server() && self.is_guarded(namespace, &plugin.applies, index))
    }

    fn is_own(&self, item: &Item) -> bool {
        matches!(item.links, Links::Workload { .. })
            && self.identity.workload.as_ref() == Some(&item.key.name)
    }
}

fn backends(item: Option<&Item>) -> &[ObjectName] {
    match item.map(|item| &item.links) {
        Some(Links::Route { backends, .. }) => backends,
        _ => &[],
    }
}

fn served(item: Option<&Item>) -> &[ObjectName] {
    match item.map(|item| &item.links) {
        Some(Links::Workload { services, .. }) => services,
        _ => &[],
    }
}

fn workload(item: &Item) -> Option<&Arc<Workload>> {
    match &item.links {
        Links::Workload { workload, .. } => Some(workload),
        _ => None,
    }
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash> Counts<K> {
    fn has(&self, what: &K) -> bool {
        self.0.contains_key(what)
    }

    /// Whether this is the first reason.
    fn add(&mut self, what: &K) -> bool {
        let count = self.0.entry(what.clone()).or_default();
        *count += 1;
        *count == 1
    }

    /// Whether that was the last reason.
    fn remove(&mut self, what: &K) -> bool {
        let Some(count) = self.0.get_mut(what) else { return false };
        *count = count.saturating_sub(1);
        let last = *count == 0;
        if last {
            self.0.remove(what);
        }
        last
    }
}

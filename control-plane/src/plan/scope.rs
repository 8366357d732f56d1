//! What is in one proxy's scope, and why.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use leno_api::{Key, model::ObjectName};

use super::{Delta, Identity, Item, ProxyId, Wish, build::Links, index::Index, interest::Interest};

#[derive(Debug)]
pub(super) struct Scope {
    id: ProxyId,
    identity: Identity,
    pub(super) wishes: HashSet<Wish>,
    /// By how many wishes each service is asked for.
    frontends: Counts,
    /// By how many frontends (itself) and routes in scope each service is needed.
    backends: Counts,
    /// Served by the own workload.
    served: Vec<ObjectName>,
    members: HashMap<Key, Arc<Item>>,
    pub(super) delta: Delta,
}

#[derive(Debug, Default)]
struct Counts(HashMap<ObjectName, u32>);

/// What all scopes share.
pub(super) struct Shared<'a> {
    pub(super) index: &'a Index,
    pub(super) interest: &'a mut Interest,
}

impl Scope {
    pub(super) fn new(id: ProxyId, identity: Identity, shared: &mut Shared<'_>) -> Self {
        let mut scope = Self {
            id,
            identity,
            wishes: HashSet::new(),
            frontends: Counts::default(),
            backends: Counts::default(),
            served: Vec::new(),
            members: HashMap::new(),
            delta: Delta::default(),
        };
        if let Some(workload) = &scope.identity.workload {
            shared.interest.own.add(workload, id);
            let own = shared.index.workload(workload).map(|item| item.key.clone());
            own.into_iter().for_each(|key| scope.reconsider(&key, shared));
        }
        scope
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
        if let Some(workload) = &self.identity.workload {
            interest.own.remove(workload, self.id);
        }
        for key in self.members.keys() {
            interest.left(key);
        }
        self.members.into_keys().collect()
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
            self.reconsider_parts(service, shared);
        }
    }

    fn remove_backend(&mut self, service: &ObjectName, shared: &mut Shared<'_>) {
        if self.backends.remove(service) {
            shared.interest.backends.remove(service, self.id);
            self.reconsider_parts(service, shared);
        }
    }

    fn reconsider_parts(&mut self, service: &ObjectName, shared: &mut Shared<'_>) {
        let index = shared.index;
        for part in index.parts_of(service) {
            self.reconsider(part, shared);
        }
    }

    /// Decides again whether the object belongs here, and notes what that changes.
    pub(super) fn reconsider(&mut self, key: &Key, shared: &mut Shared<'_>) {
        let now = shared.index.get(key).filter(|item| self.wants(item)).cloned();
        let before = self.members.get(key).cloned();
        match (&before, &now) {
            (None, None) => return,
            (Some(before), Some(now)) if Arc::ptr_eq(before, now) => return,
            (Some(_), Some(_)) => {}
            (None, Some(_)) => shared.interest.entered(key),
            (Some(_), None) => shared.interest.left(key),
        }
        match &now {
            Some(item) => self.members.insert(key.clone(), item.clone()),
            None => self.members.remove(key),
        };
        self.delta.items.insert(key.clone(), now.clone());
        self.follow(before.as_deref(), now.as_deref(), shared);
    }

    /// What an object drags in with it: a route its backends, the own workload the services it serves.
    fn follow(&mut self, before: Option<&Item>, now: Option<&Item>, shared: &mut Shared<'_>) {
        let (added, removed) = (backends(now), backends(before));
        added.iter().for_each(|service| self.add_backend(service, shared));
        removed.iter().for_each(|service| self.remove_backend(service, shared));
        if now.or(before).is_some_and(|item| self.is_own(item)) {
            self.serve(served(now), shared);
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
            if let Some(item) = index.service(service) {
                self.reconsider(&item.key, shared);
            }
        }
    }

    fn wants(&self, item: &Item) -> bool {
        let needed = |services: &[ObjectName]| services.iter().any(|name| self.backends.has(name));
        match &item.links {
            Links::Service(service) => {
                self.backends.has(&service.name) || self.served.contains(&service.name)
            }
            Links::Workload { services } => self.is_own(item) || needed(services),
            Links::Policy { targets } => needed(targets),
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
        Some(Links::Workload { services }) => services,
        _ => &[],
    }
}

impl Counts {
    fn has(&self, service: &ObjectName) -> bool {
        self.0.contains_key(service)
    }

    /// Whether this is the first reason.
    fn add(&mut self, service: &ObjectName) -> bool {
        let count = self.0.entry(service.clone()).or_default();
        *count += 1;
        *count == 1
    }

    /// Whether that was the last reason.
    fn remove(&mut self, service: &ObjectName) -> bool {
        let Some(count) = self.0.get_mut(service) else { return false };
        *count = count.saturating_sub(1);
        let last = *count == 0;
        if last {
            self.0.remove(service);
        }
        last
    }
}

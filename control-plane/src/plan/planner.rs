//! All scopes, kept up to date change by change.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use leno_api::{
    Key,
    model::{ObjectName, service::Subsets},
};

use super::{
    Delta, Identity, Item, ProxyId, Wish,
    build::Links,
    index::{Index, whole},
    interest::{Answered, Hosts, Interest},
    scope::{Scope, Shared},
};

/// Knows every object and every connected proxy; says what changes for whom.
#[derive(Debug, Default)]
pub struct Planner {
    index: Index,
    interest: Interest,
    hosts: Hosts,
    scopes: HashMap<ProxyId, Scope>,
    dirty: HashSet<ProxyId>,
}

impl Planner {
    /// An object appeared or changed.
    pub fn put(&mut self, item: Arc<Item>) {
        let old = self.index.put(&item);
        self.changed(&item.key, old.as_deref(), Some(&item));
    }

    /// An object is gone.
    pub fn remove(&mut self, key: &Key) {
        if let Some(old) = self.index.remove(key) {
            self.changed(key, Some(&old), None);
        }
    }

    pub fn item(&self, key: &Key) -> Option<&Arc<Item>> {
        self.index.get(key)
    }

    pub fn items(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.index.items()
    }

    /// How many connected proxies have the object in scope.
    pub fn holders(&self, key: &Key) -> u32 {
        self.interest.holders.get(key).copied().unwrap_or(0)
    }

    /// The connected proxies that have the object in scope. Looks at all of them.
    pub fn in_scope(&self, key: &Key) -> impl Iterator<Item = ProxyId> {
        self.scopes.iter().filter(move |(_, scope)| scope.has(key)).map(|(id, _)| *id)
    }

    /// Whether a proxy has the object in scope.
    pub fn has(&self, id: ProxyId, key: &Key) -> bool {
        self.scopes.get(&id).is_some_and(|scope| scope.has(key))
    }

    pub fn connect(&mut self, id: ProxyId, identity: Identity) {
        let mut shared = Shared { index: &self.index, interest: &mut self.interest };
        self.scopes.insert(id, Scope::new(id, identity, &mut shared));
        self.dirty.insert(id);
    }

    /// Forgets a proxy, and names the objects that it had in scope.
    pub fn disconnect(&mut self, id: ProxyId) -> Vec<Key> {
        self.dirty.remove(&id);
        let Some(scope) = self.scopes.remove(&id) else { return Vec::new() };
        for wish in &scope.wishes {
            self.hosts.remove(wish, id);
        }
        scope.dissolve(&mut self.interest)
    }

    /// A proxy asks for a service. Asking again for what it asks for already is answered again.
    pub fn subscribe(&mut self, id: ProxyId, wish: &Wish) {
        let Some(scope) = self.scopes.get_mut(&id) else { return };
        let mut shared = Shared { index: &self.index, interest: &mut self.interest };
        let new = scope.wishes.insert(wish.clone());
        let services = match wish {
            Wish::Name(name) => vec![name.clone()],
            Wish::Host { .. } => self.hosts.add(wish, id, &self.index),
        };
        if new {
            services.iter().for_each(|service| scope.add_frontend(service, &mut shared));
        }
        let there = |name: &ObjectName| self.index.service(name).is_some();
        scope.delta.answers.insert(wish.clone(), services.into_iter().filter(there).collect());
        self.dirty.insert(id);
    }

    pub fn unsubscribe(&mut self, id: ProxyId, wish: &Wish) {
        let Some(scope) = self.scopes.get_mut(&id) else { return };
        if !scope.wishes.remove(wish) {
            return;
        }
        let mut shared = Shared { index: &self.index, interest: &mut self.interest };
        let services = match wish {
            Wish::Name(name) => vec![name.clone()],
            Wish::Host { .. } => self.hosts.remove(wish, id),
        };
        services.iter().for_each(|service| scope.remove_frontend(service, &mut shared));
        scope.delta.answers.remove(wish);
        self.dirty.insert(id);
    }

    /// What changed since the last call, for each proxy concerned.
    pub fn take(&mut self) -> Vec<(ProxyId, Delta)> {
        let dirty = std::mem::take(&mut self.dirty);
        let deltas = dirty.into_iter().filter_map(|id| {
            let scope = self.scopes.get_mut(&id)?;
            Some((id, std::mem::take(&mut scope.delta)))
        });
        deltas.filter(|(_, delta)| !delta.is_empty()).collect()
    }

    fn changed(&mut self, key: &Key, old: Option<&Item>, new: Option<&Item>) {
        for id in self.concerned(key, old, new) {
            let Some(scope) = self.scopes.get_mut(&id) else { continue };
            let mut shared = Shared { index: &self.index, interest: &mut self.interest };
            scope.reconsider(key, &mut shared);
            self.dirty.insert(id);
        }
        if is_service(old) || is_service(new) {
            self.service_changed(key, old, new);
        }
    }

    /// The proxies for which the change may matter.
    fn concerned(&self, key: &Key, old: Option<&Item>, new: Option<&Item>) -> HashSet<ProxyId> {
        let mut proxies = HashSet::new();
        for item in old.into_iter().chain(new) {
            match &item.links {
                Links::Service(service) => {
                    for name in [&service.name].into_iter().chain(whole(service)) {
                        proxies.extend(self.interest.backends.of(name));
                        proxies.extend(self.interest.served.of(name));
                    }
                }
                Links::Workload { services, .. } => {
                    proxies
                        .extend(services.iter().flat_map(|name| self.interest.backends.of(name)));
                    proxies.extend(self.interest.own.of(&key.name));
                }
                Links::Policy { targets, served, routes } => {
                    proxies.extend(routes.iter().flat_map(|route| self.callers_by(route)));
                    proxies.extend(targets.iter().flat_map(|name| self.interest.backends.of(name)));
                    for name in targets.iter().filter(|_| *served) {
                        let whole = self.index.subset(name).map(|subset| &subset.of);
                        let names = [name].into_iter().chain(whole);
                        proxies.extend(names.flat_map(|name| self.interest.served.of(name)));
                    }
                }
                Links::Route { parents, .. } => {
                    proxies
                        .extend(parents.iter().flat_map(|name| self.interest.frontends.of(name)));
                }
                Links::Peers => proxies.extend(self.interest.peers.of(&key.name.namespace)),
                Links::Guard(_) => proxies.extend(self.interest.guarded.of(&key.name.namespace)),
                Links::Plugin { callees, .. } => {
                    proxies.extend(self.interest.guarded.of(&key.name.namespace));
                    proxies.extend(callees.iter().flat_map(|name| self.interest.backends.of(name)));
                }
                Links::Mesh => proxies.extend(self.scopes.keys().copied()),
            }
        }
        proxies
    }

    /// The proxies that may have a route in scope.
    fn callers_by(&self, route: &Key) -> impl Iterator<Item = ProxyId> {
        let parents = match self.index.get(route).map(|item| &item.links) {
            Some(Links::Route { parents, .. }) => &parents[..],
            _ => &[],
        };
        parents.iter().flat_map(|name| self.interest.frontends.of(name))
    }

    /// A service may answer to other hosts than before, or to its name for the first or last time.
    fn service_changed(&mut self, key: &Key, old: Option<&Item>, new: Option<&Item>) {
        for item in old.into_iter().chain(new) {
            let Links::Service(service) = &item.links else { continue };
            for id in whole(service)
                .iter()
                .flat_map(|whole| self.interest.served.of(whole))
                .collect::<Vec<_>>()
            {
                let Some(scope) = self.scopes.get_mut(&id) else { continue };
                let mut shared = Shared { index: &self.index, interest: &mut self.interest };
                scope.reconsider_subset(&service.name, &mut shared);
                self.dirty.insert(id);
            }
            for answered in self.hosts.resolve_again(service, &self.index) {
                self.answer(&answered);
            }
        }
        if old.is_some() == new.is_some() {
            return;
        }
        let wish = Wish::Name(key.name.clone());
        let answer: Vec<_> = new.iter().map(|item| item.key.name.clone()).collect();
        for id in self.interest.frontends.of(&key.name) {
            let Some(scope) = self.scopes.get_mut(&id) else { continue };
            if scope.wishes.contains(&wish) {
                scope.delta.answers.insert(wish.clone(), answer.clone());
                self.dirty.insert(id);
            }
        }
    }

    fn answer(&mut self, answered: &Answered) {
        for id in &answered.proxies {
            let Some(scope) = self.scopes.get_mut(id) else { continue };
            let mut shared = Shared { index: &self.index, interest: &mut self.interest };
            // First what is new, so that what both have never leaves in between.
            for service in &answered.now {
                scope.add_frontend(service, &mut shared);
            }
            for service in &answered.before {
                scope.remove_frontend(service, &mut shared);
            }
            scope.delta.answers.insert(answered.wish.clone(), answered.now.clone());
            self.dirty.insert(*id);
        }
    }
}

fn is_service(item: Option<&Item>) -> bool {
    item.is_some_and(|item| matches!(item.links, Links::Service(_)))
}

#[cfg(test)]
impl Planner {
    /// Whether nothing is kept of any proxy.
    pub(super) fn is_forgotten(&self) -> bool {
        self.scopes.is_empty() && self.interest.is_empty() && self.hosts.is_empty()
    }
}

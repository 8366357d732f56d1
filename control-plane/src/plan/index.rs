//! Every object, by the services or the namespace it is about.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::Hash,
    slice,
    sync::Arc,
};

use leno_api::{
    Key,
    model::{
        ObjectName,
        service::{Service, Subset, Subsets},
    },
};

use super::{Item, build::Links};

#[derive(Debug, Default)]
pub(super) struct Index {
    items: HashMap<Key, Arc<Item>>,
    services: HashMap<ObjectName, Arc<Item>>,
    workloads: HashMap<ObjectName, Arc<Item>>,
    /// Routes by parent.
    routes: KeysBy<ObjectName>,
    /// Services by the service that they are a part of.
    subsets: KeysBy<ObjectName>,
    /// Workloads by service served.
    members: KeysBy<ObjectName>,
    /// Policies by the service that they target.
    policies: KeysBy<ObjectName>,
    /// Policies by the route that they target.
    route_policies: KeysBy<Key>,
    /// Plugins of callers, by callee.
    plugins: KeysBy<ObjectName>,
    /// How workloads are spoken to, by namespace.
    peers: KeysBy<Arc<str>>,
    /// What is let in to workloads, and what runs at them, by namespace.
    guards: KeysBy<Arc<str>>,
    /// What every proxy gets.
    mesh: HashSet<Key>,
    /// Services by the hosts and addresses that they name, wildcards as they are written.
    hosts: HashMap<String, BTreeSet<ObjectName>>,
}

#[derive(Debug)]
struct KeysBy<K>(HashMap<K, HashSet<Key>>);

impl<K> Default for KeysBy<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

/// What a service names itself by, beside its own name.
fn written(service: &Service) -> impl Iterator<Item = String> {
    let hosts = service.hosts.iter().map(|host| host.as_str().to_owned());
    hosts.chain(service.addresses.iter().map(ToString::to_string))
}

impl Index {
    /// Takes up an item and hands back the one it replaces.
    pub(super) fn put(&mut self, item: &Arc<Item>) -> Option<Arc<Item>> {
        let old = self.remove(&item.key);
        match &item.links {
            Links::Service(service) => {
                self.services.insert(item.key.name.clone(), item.clone());
                self.subsets.add(whole(service), &item.key);
                for host in written(service) {
                    self.hosts.entry(host).or_default().insert(item.key.name.clone());
                }
            }
            Links::Workload { services, .. } => {
                self.workloads.insert(item.key.name.clone(), item.clone());
                self.members.add(services, &item.key);
            }
            Links::Route { parents, .. } => self.routes.add(parents, &item.key),
            Links::Policy { targets, routes, .. } => {
                self.policies.add(targets, &item.key);
                self.route_policies.add(routes, &item.key);
            }
            Links::Peers => self.peers.add(slice::from_ref(&item.key.name.namespace), &item.key),
            Links::Guard(_) => {
                self.guards.add(slice::from_ref(&item.key.name.namespace), &item.key);
            }
            Links::Plugin { callees, .. } => {
                self.guards.add(slice::from_ref(&item.key.name.namespace), &item.key);
                self.plugins.add(callees, &item.key);
            }
            Links::Mesh => {
                self.mesh.insert(item.key.clone());
            }
        }
        self.items.insert(item.key.clone(), item.clone());
        old
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Item>> {
        let old = self.items.remove(key)?;
        match &old.links {
            Links::Service(service) => {
                self.services.remove(&key.name);
                self.subsets.remove(whole(service), key);
                self.remove_hosts(service);
            }
            Links::Workload { services, .. } => {
                self.workloads.remove(&key.name);
                self.members.remove(services, key);
            }
            Links::Route { parents, .. } => self.routes.remove(parents, key),
            Links::Policy { targets, routes, .. } => {
                self.policies.remove(targets, key);
                self.route_policies.remove(routes, key);
            }
            Links::Peers => self.peers.remove(slice::from_ref(&key.name.namespace), key),
            Links::Guard(_) => self.guards.remove(slice::from_ref(&key.name.namespace), key),
            Links::Plugin { callees, .. } => {
                self.guards.remove(slice::from_ref(&key.name.namespace), key);
                self.plugins.remove(callees, key);
            }
            Links::Mesh => {
                self.mesh.remove(key);
            }
        }
        Some(old)
    }

    fn remove_hosts(&mut self, service: &Service) {
        for host in written(service) {
            let Some(named) = self.hosts.get_mut(&host) else { continue };
            named.remove(&service.name);
            if named.is_empty() {
                self.hosts.remove(&host);
            }
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Item>> {
        self.items.get(key)
    }

    pub(super) fn items(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.items.values()
    }

    pub(super) fn service(&self, name: &ObjectName) -> Option<&Arc<Item>> {
        self.services.get(name)
    }

    pub(super) fn workload(&self, name: &ObjectName) -> Option<&Arc<Item>> {
        self.workloads.get(name)
    }

    pub(super) fn routes_of(&self, service: &ObjectName) -> impl Iterator<Item = &Key> {
        self.routes.of(service)
    }

    /// Policies that target a route.
    pub(super) fn policies_of_route(&self, route: &Key) -> impl Iterator<Item = &Key> {
        self.route_policies.of(route)
    }

    /// The service itself, its policies, its callers' plugins, its workloads and the services that are a part of it.
    pub(super) fn parts_of(&self, service: &ObjectName) -> impl Iterator<Item = &Key> {
        let own = self.services.get(service).map(|item| &item.key);
        let framed = own.into_iter().chain(self.policies.of(service));
        let whole = framed.chain(self.plugins.of(service)).chain(self.members.of(service));
        whole.chain(self.subsets.of(service))
    }

    /// The service itself, its policies, the services that are a part of it and theirs.
    pub(super) fn frame_of(&self, service: &ObjectName) -> impl Iterator<Item = &Key> {
        let own = self.services.get(service).map(|item| &item.key);
        let subsets = self.subsets.of(service);
        let theirs = subsets.clone().flat_map(|subset| self.policies.of(&subset.name));
        own.into_iter().chain(self.policies.of(service)).chain(subsets).chain(theirs)
    }

    /// The policies of a service.
    pub(super) fn policies_of(&self, service: &ObjectName) -> impl Iterator<Item = &Key> {
        self.policies.of(service)
    }

    /// Objects that say how the workloads of a namespace are spoken to.
    pub(super) fn peers_of(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Key> {
        self.peers.of(namespace)
    }

    /// Objects of a namespace that say what is let in to workloads, or run at them.
    pub(super) fn guards_of(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Key> {
        self.guards.of(namespace)
    }

    /// Objects for every proxy.
    pub(super) fn mesh(&self) -> impl Iterator<Item = &Key> {
        self.mesh.iter()
    }

    /// The services that answer to `host` when it is said in `namespace`, in order of their names. What
    /// decides is [`Service::answers_to`]; the lookups here only find who might.
    pub(super) fn answering(&self, namespace: &str, host: &str) -> Vec<ObjectName> {
        let mut candidates = BTreeSet::new();
        candidates.insert(ObjectName::new(namespace, host));
        for suffix in ["", ".svc", ".svc.cluster.local"] {
            let qualified = host.strip_suffix(suffix).and_then(|rest| rest.rsplit_once('.'));
            candidates.extend(qualified.map(|(name, namespace)| ObjectName::new(namespace, name)));
        }
        candidates.extend(self.hosts.get(host).into_iter().flatten().cloned());
        for (dot, _) in host.match_indices('.') {
            let wildcard = format!("*{}", host.get(dot..).unwrap_or_default());
            candidates.extend(self.hosts.get(&wildcard).into_iter().flatten().cloned());
        }
        candidates.retain(|name| {
            self.services.get(name).is_some_and(|item| match &item.links {
                Links::Service(service) => service.answers_to(host, namespace),
                _ => false,
            })
        });
        candidates.into_iter().collect()
    }
}

impl Subsets for Index {
    fn subset(&self, service: &ObjectName) -> Option<&Subset> {
        match &self.services.get(service)?.links {
            Links::Service(service) => service.subset.as_deref(),
            _ => None,
        }
    }
}

/// Of what a service is a part.
pub(super) fn whole(service: &Service) -> &[ObjectName] {
    service.subset.as_ref().map_or(&[], |subset| slice::from_ref(&subset.of))
}

impl<K: Clone + Eq + Hash> KeysBy<K> {
    fn add(&mut self, subjects: &[K], key: &Key) {
        for subject in subjects {
            self.0.entry(subject.clone()).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, subjects: &[K], key: &Key) {
        for subject in subjects {
            let Some(keys) = self.0.get_mut(subject) else { continue };
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(subject);
            }
        }
    }

    fn of(&self, subject: &K) -> impl Iterator<Item = &Key> + Clone {
        self.0.get(subject).into_iter().flatten()
    }
}

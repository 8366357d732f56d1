//! Every object, by the services it is about.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use leno_api::{
    Key,
    model::{ObjectName, service::Service},
};

use super::{Item, build::Links};

#[derive(Debug, Default)]
pub(super) struct Index {
    items: HashMap<Key, Arc<Item>>,
    services: HashMap<ObjectName, Arc<Item>>,
    workloads: HashMap<ObjectName, Arc<Item>>,
    /// Routes by parent.
    routes: ByService,
    /// Policies by target, workloads by service served.
    dependants: ByService,
    /// Services by the hosts that they name, wildcards as they are written.
    hosts: HashMap<String, BTreeSet<ObjectName>>,
}

#[derive(Debug, Default)]
struct ByService(HashMap<ObjectName, HashSet<Key>>);

impl Index {
    /// Takes up an item and hands back the one it replaces.
    pub(super) fn put(&mut self, item: &Arc<Item>) -> Option<Arc<Item>> {
        let old = self.remove(&item.key);
        match &item.links {
            Links::Service(service) => {
                self.services.insert(item.key.name.clone(), item.clone());
                for host in &service.hosts {
                    let named = self.hosts.entry(host.as_str().to_owned()).or_default();
                    named.insert(item.key.name.clone());
                }
            }
            Links::Workload { services } => {
                self.workloads.insert(item.key.name.clone(), item.clone());
                self.dependants.add(services, &item.key);
            }
            Links::Route { parents, .. } => self.routes.add(parents, &item.key),
            Links::Policy { targets } => self.dependants.add(targets, &item.key),
        }
        self.items.insert(item.key.clone(), item.clone());
        old
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Item>> {
        let old = self.items.remove(key)?;
        match &old.links {
            Links::Service(service) => {
                self.services.remove(&key.name);
                self.remove_hosts(service);
            }
            Links::Workload { services } => {
                self.workloads.remove(&key.name);
                self.dependants.remove(services, key);
            }
            Links::Route { parents, .. } => self.routes.remove(parents, key),
            Links::Policy { targets } => self.dependants.remove(targets, key),
        }
        Some(old)
    }

    fn remove_hosts(&mut self, service: &Service) {
        for host in &service.hosts {
            let Some(named) = self.hosts.get_mut(host.as_str()) else { continue };
            named.remove(&service.name);
            if named.is_empty() {
                self.hosts.remove(host.as_str());
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

    /// The service itself, its policies and its workloads.
    pub(super) fn parts_of(&self, service: &ObjectName) -> impl Iterator<Item = &Key> {
        let own = self.services.get(service).map(|item| &item.key);
        own.into_iter().chain(self.dependants.of(service))
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

impl ByService {
    fn add(&mut self, services: &[ObjectName], key: &Key) {
        for service in services {
            self.0.entry(service.clone()).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, services: &[ObjectName], key: &Key) {
        for service in services {
            let Some(keys) = self.0.get_mut(service) else { continue };
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(service);
            }
        }
    }

    fn of(&self, service: &ObjectName) -> impl Iterator<Item = &Key> {
        self.0.get(service).into_iter().flatten()
    }
}

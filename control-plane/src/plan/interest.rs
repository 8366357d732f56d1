//! Which proxies a change concerns.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use leno_api::{
    Key,
    model::{ObjectName, service::Service},
};

use super::{ProxyId, Wish, index::Index};

#[derive(Debug, Default)]
pub(super) struct Interest {
    /// Proxies that have a service as a frontend: its routes concern them.
    pub(super) frontends: Watchers<ObjectName>,
    /// Proxies that have a service as a backend: it, its policies and workloads concern them.
    pub(super) backends: Watchers<ObjectName>,
    /// Proxies that serve a service themselves.
    pub(super) served: Watchers<ObjectName>,
    /// Proxies by their own workload.
    pub(super) own: Watchers<ObjectName>,
    /// Proxies that speak to or stand beside workloads of a namespace.
    pub(super) peers: Watchers<Arc<str>>,
    /// Proxies that the policies of a namespace may guard, or its plugins run at.
    pub(super) guarded: Watchers<Arc<str>>,
    /// How many scopes hold an object.
    pub(super) holders: HashMap<Key, u32>,
}

#[derive(Debug)]
pub(super) struct Watchers<K>(HashMap<K, HashSet<ProxyId>>);

impl<K> Default for Watchers<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash> Watchers<K> {
    pub(super) fn add(&mut self, what: &K, proxy: ProxyId) {
        self.0.entry(what.clone()).or_default().insert(proxy);
    }

    pub(super) fn remove(&mut self, what: &K, proxy: ProxyId) {
        let Some(proxies) = self.0.get_mut(what) else { return };
        proxies.remove(&proxy);
        if proxies.is_empty() {
            self.0.remove(what);
        }
    }

    pub(super) fn of(&self, what: &K) -> impl Iterator<Item = ProxyId> {
        self.0.get(what).into_iter().flatten().copied()
    }
}

impl Interest {
    pub(super) fn entered(&mut self, key: &Key) {
        *self.holders.entry(key.clone()).or_default() += 1;
    }

    pub(super) fn left(&mut self, key: &Key) {
        if let Some(count) = self.holders.get_mut(key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.holders.remove(key);
            }
        }
    }
}

/// The hosts that proxies asked for, each resolved once however many asked.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    entries: HashMap<Wish, HostEntry>,
    /// The namespaces from which a host is asked for.
    namespaces: HashMap<Arc<str>, HashSet<Arc<str>>>,
}

#[derive(Debug, Default)]
struct HostEntry {
    services: Vec<ObjectName>,
    proxies: HashSet<ProxyId>,
}

/// A host whose answer changed, for these proxies.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) wish: Wish,
    pub(super) before: Vec<ObjectName>,
    pub(super) now: Vec<ObjectName>,
    pub(super) proxies: Vec<ProxyId>,
}

impl Hosts {
    /// Notes that `proxy` asks for the host, and says which services answer.
    pub(super) fn add(&mut self, wish: &Wish, proxy: ProxyId, index: &Index) -> Vec<ObjectName> {
        let Wish::Host { namespace, host } = wish else { return Vec::new() };
        let entry = self.entries.entry(wish.clone()).or_insert_with(|| {
            self.namespaces.entry(host.clone()).or_default().insert(namespace.clone());
            HostEntry { services: index.answering(namespace, host), proxies: HashSet::new() }
        });
        entry.proxies.insert(proxy);
        entry.services.clone()
    }

    /// Forgets it, and says which services answered.
    pub(super) fn remove(&mut self, wish: &Wish, proxy: ProxyId) -> Vec<ObjectName> {
        let Some(entry) = self.entries.get_mut(wish) else { return Vec::new() };
        entry.proxies.remove(&proxy);
        let services = entry.services.clone();
        if entry.proxies.is_empty() {
            self.entries.remove(wish);
            self.forget(wish);
        }
        services
    }

    fn forget(&mut self, wish: &Wish) {
        let Wish::Host { namespace, host } = wish else { return };
        if let Some(namespaces) = self.namespaces.get_mut(host) {
            namespaces.remove(namespace);
            if namespaces.is_empty() {
                self.namespaces.remove(host);
            }
        }
    }

    /// Resolves again every host that `service` answered to or may answer to now.
    pub(super) fn resolve_again(&mut self, service: &Service, index: &Index) -> Vec<Answered> {
        let mut changed = Vec::new();
        for wish in self.concerned(service) {
            let (Some(entry), Wish::Host { namespace, host }) =
                (self.entries.get_mut(&wish), &wish)
            else {
                continue;
            };
            let now = index.answering(namespace, host);
            if now == entry.services {
                continue;
            }
            let before = std::mem::replace(&mut entry.services, now.clone());
            let proxies = entry.proxies.iter().copied().collect();
            changed.push(Answered { wish, before, now, proxies });
        }
        changed
    }

    fn concerned(&self, service: &Service) -> Vec<Wish> {
        let name = &service.name;
        let mut hosts: Vec<Arc<str>> = vec![name.name.clone()];
        for suffix in ["", ".svc", ".svc.cluster.local"] {
            hosts.push(format!("{}.{}{suffix}", name.name, name.namespace).into());
        }
        for host in &service.hosts {
            if host.is_wildcard() {
                // Rare, and the only way to find them.
                hosts.extend(self.namespaces.keys().filter(|asked| host.matches(asked)).cloned());
            } else {
                hosts.push(host.as_str().into());
            }
        }
        hosts.extend(service.addresses.iter().map(|address| address.to_string().into()));
        hosts.sort_unstable();
        hosts.dedup();
        let wishes = hosts.into_iter().flat_map(|host| {
            let namespaces = self.namespaces.get(&host).into_iter().flatten();
            namespaces
                .map(move |namespace| Wish::Host {
                    namespace: namespace.clone(),
                    host: host.clone(),
                })
                .collect::<Vec<_>>()
        });
        wishes.collect()
    }
}

#[cfg(test)]
impl Interest {
    pub(super) fn is_empty(&self) -> bool {
        [&self.frontends, &self.backends, &self.served, &self.own]
            .iter()
            .all(|all| all.0.is_empty())
            && [&self.peers, &self.guarded].iter().all(|all| all.0.is_empty())
            && self.holders.is_empty()
    }
}

#[cfg(test)]
impl Hosts {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.namespaces.is_empty()
    }
}

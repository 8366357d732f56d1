//! What Kubernetes has, as far as it concerns the mesh, and which of our objects follow from it. Pure: one change in, the
//! changes of our objects out; each costs what it touches, never the whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use leno_api::{GATEWAY_GROUP, KINDS, KindInfo, LENO_GROUP, Resource, model::ObjectName};
use serde_json::Value;

use super::{
    facts::{Behind, EndpointFacts, NamespaceFacts, PodFacts, ServiceFacts, SliceFacts},
    mapping::{self, Membership, Reading},
};
use crate::store::Key;

/// What a watch is of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Namespaces,
    Services,
    EndpointSlices,
    Pods,
    /// One of our kinds, or of the routes.
    Custom(&'static KindInfo),
}

/// One object, read.
#[derive(Debug)]
pub(super) enum Fact {
    Namespace(NamespaceFacts),
    Service(ServiceFacts),
    Slice(SliceFacts),
    Pod(PodFacts),
    Custom(Reading),
}

/// What becomes of one of our objects.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub(super) key: Key,
    /// `None`: it is gone.
    pub(super) object: Option<Value>,
}

/// What the control plane itself could not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) key: Key,
    pub(super) reason: String,
}

#[derive(Debug, Default)]
pub(super) struct World {
    namespaces: BTreeMap<ObjectName, NamespaceFacts>,
    services: HashMap<ObjectName, ServiceFacts>,
    slices: HashMap<ObjectName, SliceFacts>,
    pods: HashMap<ObjectName, PodFacts>,
    /// Slices by what stands behind their endpoints; an address only with the namespace that names it.
    behind: HashMap<Place, BTreeSet<ObjectName>>,
    /// Objects that people wrote, which come before what is derived under the same name.
    custom: HashMap<Key, Value>,
    /// Names of everything that is there, by source: what a new list lacks is gone.
    names: HashMap<&'static str, HashSet<ObjectName>>,
    refusals: Vec<Refusal>,
}

/// A pod, or an address as an endpoint of one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    Pod(ObjectName),
    Outside { namespace: Arc<str>, service: Arc<str>, address: std::net::IpAddr },
}

impl Place {
    fn is(&self, of: &str, by: &str, behind: &Behind) -> bool {
        match (self, behind) {
            // A slice speaks for pods of its own namespace only.
            (Self::Pod(name), Behind::Pod(pod)) => *name.namespace == *of && name == pod,
            (Self::Outside { namespace, service, address }, Behind::Address(other)) => {
                (&**namespace, &**service, address) == (of, by, other)
            }
            _ => false,
        }
    }
}

impl Source {
    /// Everything that is watched.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let own = [Self::Namespaces, Self::Services, Self::EndpointSlices, Self::Pods];
        // What the authority writes stays with it.
        let custom = KINDS.iter().filter(|kind| !kind.read_only).map(Self::Custom);
        own.into_iter().chain(custom)
    }

    /// For metrics and logs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Namespaces => "Namespace",
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Pods => "Pod",
            Self::Custom(kind) if kind.kind == "Service" => "leno.dev/Service",
            Self::Custom(kind) => kind.kind,
        }
    }
}

impl World {
    /// An object is there, or has changed.
    pub(super) fn put(&mut self, source: Source, name: ObjectName, fact: Fact) -> Vec<Change> {
        self.names.entry(source.label()).or_default().insert(name.clone());
        match fact {
            Fact::Namespace(facts) => {
                self.namespaces.insert(name, facts);
                Vec::new()
            }
            Fact::Service(facts) => {
                if self.services.get(&name) == Some(&facts) {
                    return Vec::new();
                }
                self.services.insert(name.clone(), facts);
                self.service(&name).into_iter().collect()
            }
            Fact::Pod(facts) => {
                if self.pods.get(&name) == Some(&facts) {
                    return Vec::new();
                }
                self.pods.insert(name.clone(), facts);
                self.workload(&Place::Pod(name)).into_iter().collect()
            }
            Fact::Slice(facts) => self.put_slice(&name, Some(facts)),
            Fact::Custom(reading) => self.put_custom(source, &name, reading),
        }
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, source: Source, name: &ObjectName) -> Vec<Change> {
        if let Some(names) = self.names.get_mut(source.label()) {
            names.remove(name);
        }
        match source {
            Source::Namespaces => {
                self.namespaces.remove(name);
                Vec::new()
            }
            Source::Services => {
                self.services.remove(name);
                self.service(name).into_iter().collect()
            }
            Source::Pods => {
                self.pods.remove(name);
                self.workload(&Place::Pod(name.clone())).into_iter().collect()
            }
            Source::EndpointSlices => self.put_slice(name, None),
            Source::Custom(kind) => {
                let key = key(kind, name);
                self.custom.remove(&key);
                vec![self.derived(key, name)]
            }
        }
    }

    /// A whole list has been read: whatever of `source` in these namespaces is not in it is gone.
    pub(super) fn retain(
        &mut self,
        source: Source,
        namespace: Option<&str>,
        there: &HashSet<ObjectName>,
    ) -> Vec<Change> {
        let known = self.names.get(source.label()).into_iter().flatten();
        let inside = |name: &&ObjectName| namespace.is_none_or(|only| *name.namespace == *only);
        let gone: Vec<ObjectName> =
            known.filter(inside).filter(|name| !there.contains(name)).cloned().collect();
        gone.iter().flat_map(|name| self.remove(source, name)).collect()
    }

    /// Namespaces whose pods need the roots: labelled for injection, or with a sidecar already. Not those that end: there
    /// nothing can be made any more, and no pod starts.
    pub(super) fn meshed(&self) -> BTreeSet<Arc<str>> {
        let labelled = self.namespaces.iter().filter(|(_, facts)| facts.labelled);
        let labelled = labelled.map(|(name, _)| name.name.clone());
        let pods = self.pods.iter().filter(|(_, pod)| pod.sidecar && !pod.finished);
        let mut meshed: BTreeSet<_> =
            labelled.chain(pods.map(|(name, _)| name.namespace.clone())).collect();
        for (name, _) in self.namespaces.iter().filter(|(_, facts)| facts.ending) {
            meshed.remove(&name.name);
        }
        meshed
    }

    /// How many objects of a source there are.
    pub(super) fn count(&self, source: Source) -> usize {
        self.names.get(source.label()).map_or(0, HashSet::len)
    }

    /// What could not be used since this was asked last.
    pub(super) fn take_refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refusals)
    }

    fn put_slice(&mut self, name: &ObjectName, facts: Option<SliceFacts>) -> Vec<Change> {
        if facts.is_some() && self.slices.get(name) == facts.as_ref() {
            return Vec::new();
        }
        let now: BTreeSet<Place> =
            facts.iter().flat_map(|facts| places(&name.namespace, facts)).collect();
        let old = match facts {
            Some(facts) => self.slices.insert(name.clone(), facts),
            None => self.slices.remove(name),
        };
        let before: BTreeSet<Place> =
            old.iter().flat_map(|facts| places(&name.namespace, facts)).collect();
        for place in before.difference(&now) {
            if let Some(slices) = self.behind.get_mut(place) {
                slices.remove(name);
                if slices.is_empty() {
                    self.behind.remove(place);
                }
            }
        }
        for place in now.difference(&before) {
            self.behind.entry(place.clone()).or_default().insert(name.clone());
        }
        before.union(&now).filter_map(|place| self.workload(place)).collect()
    }

    fn put_custom(&mut self, source: Source, name: &ObjectName, reading: Reading) -> Vec<Change> {
        let Source::Custom(kind) = source else { return Vec::new() };
        let key = key(kind, name);
        match reading {
            Reading::Valid(object) => {
                if self.custom.get(&key) == Some(&object) {
                    return Vec::new();
                }
                self.custom.insert(key.clone(), object.clone());
                vec![Change { key, object: Some(object) }]
            }
            Reading::NotOurs => {
                self.custom.remove(&key);
                vec![Change { key, object: None }]
            }
            // The last good version stays, if there was one.
            Reading::Invalid(_) => Vec::new(),
        }
    }

    /// What is derived under a name now that nobody writes it any more.
    fn derived(&mut self, key: Key, name: &ObjectName) -> Change {
        let derived = match (&*key.group, &*key.plural) {
            (LENO_GROUP, "services") => self.service(name),
            (LENO_GROUP, "workloads") => self.workload(&Place::Pod(name.clone())),
            _ => None,
        };
        // What stands there is what was written, which must not outlive whoever wrote it.
        derived.unwrap_or(Change { key, object: None })
    }

    fn service(&mut self, name: &ObjectName) -> Option<Change> {
        let derived = self.services.get(name).and_then(|facts| mapping::service(name, facts));
        self.decide(own_key("services", name), derived)
    }

    fn workload(&mut self, place: &Place) -> Option<Change> {
        let memberships = self.memberships(place);
        let (name, derived) = match place {
            Place::Pod(name) => {
                let pod = self.pods.get(name);
                (name.clone(), pod.and_then(|pod| mapping::workload(name, pod, &memberships)))
            }
            Place::Outside { namespace, service, address } => (
                mapping::outsider_name(namespace, service, *address),
                mapping::outsider(namespace, *address, &memberships),
            ),
        };
        self.decide(own_key("workloads", &name), derived)
    }

    fn memberships(&self, place: &Place) -> Vec<Membership<'_>> {
        let slices = self.behind.get(place).into_iter().flatten();
        let slices = slices.filter_map(|name| Some((name, self.slices.get(name)?)));
        let memberships = slices.flat_map(|(name, slice)| {
            let here = move |endpoint: &&EndpointFacts| {
                place.is(&name.namespace, &slice.service, &endpoint.behind)
            };
            slice.endpoints.iter().filter(here).map(|endpoint| Membership {
                service: &slice.service,
                ports: &slice.ports,
                ready: endpoint.ready,
                zone: endpoint.zone.as_ref(),
            })
        });
        memberships.collect()
    }

    /// What people wrote comes first. What is derived is checked as if they had written it; `None` where it is not
    /// valid: its last good version stays, if there was one.
    fn decide(&mut self, key: Key, derived: Option<Value>) -> Option<Change> {
        if let Some(written) = self.custom.get(&key) {
            return Some(Change { object: Some(written.clone()), key });
        }
        if let Some(Err(invalid)) = derived.clone().map(Resource::from_json) {
            self.refusals.push(Refusal { key, reason: invalid.to_string() });
            return None;
        }
        Some(Change { key, object: derived })
    }
}

/// Where an object of ours is stored.
pub(super) fn key(kind: &KindInfo, name: &ObjectName) -> Key {
    Key::new(kind.group, kind.plural, &name.namespace, &name.name)
}

/// Whether it is a route, whose status Gateway API describes.
pub(super) fn is_route(key: &Key) -> bool {
    *key.group == *GATEWAY_GROUP
}

fn own_key(plural: &str, name: &ObjectName) -> Key {
    Key::new(LENO_GROUP, plural, &name.namespace, &name.name)
}

fn places(namespace: &Arc<str>, slice: &SliceFacts) -> Vec<Place> {
    let endpoints = slice.endpoints.iter();
    endpoints.map(|endpoint| place(namespace, &slice.service, &endpoint.behind)).collect()
}

fn place(namespace: &Arc<str>, service: &Arc<str>, behind: &Behind) -> Place {
    match behind {
        Behind::Pod(name) => Place::Pod(name.clone()),
        Behind::Address(address) => Place::Outside {
            namespace: namespace.clone(),
            service: service.clone(),
            address: *address,
        },
    }
}

#[cfg(test)]
mod tests;

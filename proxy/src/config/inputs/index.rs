//! Resources by what they are about, and which of several counts.

use std::{collections::BTreeMap, sync::Arc};

use leno_api::{
    Key, SYSTEM_NAMESPACE,
    model::{ObjectName, traffic_policy::Target},
};
use rustc_hash::FxHashMap;

pub(super) type Index<T> = FxHashMap<ObjectName, BTreeMap<Key, Arc<T>>>;
pub(super) type ByNamespace<T> = FxHashMap<Arc<str>, BTreeMap<Key, Arc<T>>>;

/// How much a policy has to say about a port of a service: the lower, the more.
pub(super) struct Claim<'a>(Option<(bool, bool, &'a str)>);

impl<'a> Claim<'a> {
    pub(super) fn new(
        targets: &'a [Target],
        created: &'a str,
        (service, port): (&ObjectName, &str),
    ) -> Self {
        let about = targets.iter().filter(|target| target.service == *service);
        Self::among(about.map(|target| target.section.as_deref()), created, Some(port))
    }

    /// Of a policy that is for these parts of something (`None`: all of it) on the part that is called `name`.
    pub(super) fn among(
        parts: impl Iterator<Item = Option<&'a str>>,
        created: &'a str,
        name: Option<&str>,
    ) -> Self {
        let fitting = parts.filter(|part| part.is_none() || *part == name);
        let whole = fitting.map(|part| part.is_none()).min();
        Self(whole.map(|whole| (whole, created.is_empty(), created)))
    }
}

/// Of several policies the one for the port, then the oldest, then the first by name.
pub(super) fn first_of<'a, T>(
    policies: impl Iterator<Item = &'a Arc<T>>,
    claim: impl Fn(&'a T) -> Claim<'a>,
) -> Option<&'a Arc<T>> {
    let claims = policies.filter_map(|policy| Some((claim(policy).0?, policy)));
    // They come by name, and the first of equals is taken.
    claims.min_by_key(|(claim, _)| *claim).map(|(_, policy)| policy)
}

/// Policies of `namespace` and of the whole mesh.
pub(super) fn in_force<'a, T>(
    policies: &'a ByNamespace<T>,
    namespace: &str,
) -> impl Iterator<Item = &'a Arc<T>> + use<'a, T> {
    let own = policies.get(namespace);
    let mesh = policies.get(SYSTEM_NAMESPACE).filter(|_| namespace != SYSTEM_NAMESPACE);
    own.into_iter().chain(mesh).flat_map(BTreeMap::values)
}

pub(super) fn file<T>(
    policies: &mut ByNamespace<T>,
    key: &Key,
    name: &ObjectName,
    policy: &Arc<T>,
) {
    let namespace = policies.entry(name.namespace.clone()).or_default();
    namespace.insert(key.clone(), policy.clone());
}

pub(super) fn unfile<T>(policies: &mut ByNamespace<T>, key: &Key, name: &ObjectName) {
    if let Some(namespace) = policies.get_mut(&name.namespace) {
        namespace.remove(key);
        if namespace.is_empty() {
            policies.remove(&name.namespace);
        }
    }
}

pub(super) fn attach<T>(index: &mut Index<T>, key: &Key, targets: &[Target], policy: &Arc<T>) {
    for target in targets {
        index.entry(target.service.clone()).or_default().insert(key.clone(), policy.clone());
    }
}

pub(super) fn detach<T>(index: &mut Index<T>, key: &Key, targets: &[Target]) {
    unlink_all(index, key, targets.iter().map(|target| &target.service));
}

pub(super) fn unlink_all<'a, T>(
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

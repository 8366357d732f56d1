//! What is no more goes out of the metrics' registry, its counts to whoever takes its place.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::Applier;
use crate::{
    cluster::Endpoint,
    snapshot::{Inbound, LimitId, Snapshot},
    telemetry::scope::{Scope, ScopeLabels},
};

impl Applier {
    /// Takes the metrics of rate limits that are no more out of the registry.
    fn retire_limits(&self, previous: &Inbound, next: &Inbound) {
        for id in previous.limits.keys().filter(|id| !next.limits.contains_key(id)) {
            let same = |other: &LimitId| (&other.policy, &other.name) == (&id.policy, &id.name);
            let last = !next.limits.keys().any(same);
            let (service, policy) = (id.service.to_string(), id.policy.to_string());
            self.families.resilience.limiting.forget(&service, &policy, &id.name, last);
        }
    }

    /// Takes the metrics of endpoints that are no more out of the registry.
    pub(super) fn retire(&self, previous: &Snapshot, next: &Snapshot) {
        self.retire_limits(&previous.inbound, &next.inbound);
        for (key, old) in &previous.clusters {
            let new = next.clusters.get(key);
            if new.is_some_and(|new| Arc::ptr_eq(new, old)) {
                continue;
            }
            let kept: FxHashSet<u64> = new
                .into_iter()
                .flat_map(|new| new.endpoints.known().unwrap_or_default())
                .map(|endpoint| endpoint.id)
                .collect();
            let known = old.endpoints.known().unwrap_or_default();
            let gone: Vec<_> =
                known.iter().filter(|endpoint| !kept.contains(&endpoint.id)).collect();
            let state_kept = new.is_some_and(|new| Arc::ptr_eq(&new.state, &old.state));
            let callers = if state_kept { Vec::new() } else { old.state.callers.retire() };
            let own = new.is_none().then(|| old.state.known_scope().cloned()).flatten();
            let shared: Vec<_> = callers.into_iter().chain(own).collect();
            if gone.is_empty() && shared.is_empty() {
                continue;
            }
            // Ports of one service, and an endpoint that moved, share their labels and so their series.
            let mut heirs: FxHashMap<ScopeLabels, Heir> = FxHashMap::default();
            for cluster in next.of_service(key) {
                let endpoints = cluster.endpoints.iter();
                heirs.extend(endpoints.map(|heir| (heir.labels(), Heir::Endpoint(heir))));
                let scopes =
                    cluster.state.callers.all().into_iter().chain([cluster.scope().clone()]);
                heirs.extend(scopes.map(|heir| (heir.labels().clone(), Heir::Scope(heir))));
            }
            for endpoint in gone {
                match heirs.get(&endpoint.labels()).map(Heir::scope) {
                    // One that was never called counts for its heir should that happen now.
                    Some(heir) if Arc::ptr_eq(endpoint.scope_or(heir), heir) => {}
                    heir => self.families.retire(endpoint.scope(), heir.map(|heir| &**heir)),
                }
            }
            for scope in shared {
                let heir = heirs.get(scope.labels()).map(|heir| &**heir.scope());
                self.families.retire(&scope, heir);
            }
        }
    }
}

/// Who keeps the series of an endpoint that is no more.
enum Heir<'a> {
    Endpoint(&'a Endpoint),
    Scope(Arc<Scope>),
}

impl Heir<'_> {
    fn scope(&self) -> &Arc<Scope> {
        match self {
            Self::Endpoint(endpoint) => endpoint.scope(),
            Self::Scope(scope) => scope,
        }
    }
}

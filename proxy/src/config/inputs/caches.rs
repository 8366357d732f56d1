//! What is kept of responses: the policies by what they are about.

use std::{collections::BTreeMap, sync::Arc};

use leno_api::{
    KINDS, Key,
    model::{Model, ObjectName, cache_policy::CachePolicy, http_route::HttpRoute},
};

use super::{
    Dirty, Inputs,
    index::{Claim, Index, first_of, unlink_all},
};

/// All cache policies.
#[derive(Debug, Default)]
pub(super) struct Caches {
    all: BTreeMap<ObjectName, Arc<CachePolicy>>,
    /// For each service: the policies that target it.
    services: Index<CachePolicy>,
    /// For each HTTP route: the policies that target it.
    routes: Index<CachePolicy>,
}

impl Caches {
    pub(super) fn insert(&mut self, key: &Key, policy: &Arc<CachePolicy>) {
        self.all.insert(policy.name.clone(), policy.clone());
        let add = |index: &mut Index<CachePolicy>, name: &ObjectName| {
            index.entry(name.clone()).or_default().insert(key.clone(), policy.clone());
        };
        policy.services().for_each(|target| add(&mut self.services, &target.service));
        policy.routes().for_each(|(route, _)| add(&mut self.routes, route));
    }

    pub(super) fn remove(&mut self, key: &Key, policy: &CachePolicy) {
        self.all.remove(&policy.name);
        unlink_all(&mut self.services, key, policy.services().map(|target| &target.service));
        unlink_all(&mut self.routes, key, policy.routes().map(|(route, _)| route));
    }
}

impl Inputs {
    /// All cache policies, by name.
    pub fn caches(&self) -> &BTreeMap<ObjectName, Arc<CachePolicy>> {
        &self.caches.all
    }

    /// What is kept of the responses of a port of `service`: the policy for that port, else the one for the service; of
    /// several the oldest.
    pub fn cache_of(&self, service: &ObjectName, port: &str) -> Option<&Arc<CachePolicy>> {
        let policies = self.caches.services.get(service).into_iter().flat_map(BTreeMap::values);
        first_of(policies, |policy| {
            let sections = policy.services().filter(|target| target.service == *service);
            let sections = sections.map(|target| target.section.as_deref());
            Claim::among(sections, &policy.created, Some(port))
        })
    }

    /// What is kept of the responses of a rule of `route`, where a policy speaks of it: the one for the rule, else the
    /// one for the route; of several the oldest.
    pub fn cache_of_rule(
        &self,
        route: &HttpRoute,
        rule: Option<&str>,
    ) -> Option<&Arc<CachePolicy>> {
        // A GRPCRoute may have the same name.
        let named = self.caches.routes.get(&route.name).filter(|_| route.kind == "HTTPRoute");
        first_of(named.into_iter().flat_map(BTreeMap::values), |policy| {
            let rules = policy.routes().filter(|(name, _)| **name == route.name);
            Claim::among(rules.map(|(_, rule)| rule), &policy.created, rule)
        })
    }

    /// Rules of the routes that a cache policy targets hold what is kept.
    pub(super) fn mark_cached_routes(&self, model: &Model, dirty: &mut Dirty) {
        let Model::CachePolicy(policy) = model else { return };
        let Some(kind) = KINDS.iter().find(|info| info.kind == "HTTPRoute") else { return };
        for (route, _) in policy.routes() {
            let held = self.resources.get(&Key { kind, name: route.clone() });
            if let Some(Model::HttpRoute(route)) = held.map(|held| &held.model) {
                dirty.routes.extend(route.parents.iter().map(|parent| parent.service.clone()));
            }
        }
    }
}

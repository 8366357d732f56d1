//! What is kept of responses, and where.

use std::{collections::BTreeMap, sync::Arc};

use leno_api::model::{
    ObjectName,
    cache_policy::CachePolicy,
    http_route::{HttpRoute, HttpRule},
    service::{Protocol, Service, ServicePort},
};

use super::Inputs;
use crate::{
    cache::{Cache, Rules},
    cluster::ClusterKey,
};

/// By the name of their policies.
pub(super) type Caches = BTreeMap<ObjectName, Arc<Cache>>;

/// One for every policy that keeps anything. That of a policy which says the same is carried over; one that says
/// something else keeps what the cache before it has.
pub(super) fn hold(previous: &Caches, inputs: &Inputs) -> Caches {
    let enabled = inputs.caches().values().filter(|policy| policy.enabled);
    let caches = enabled.map(|policy| {
        let old = previous.get(&policy.name);
        let same = old.filter(|old| old.policy() == policy).cloned();
        let cache =
            same.unwrap_or_else(|| Arc::new(Cache::new(policy.clone(), old.map(|old| &**old))));
        (policy.name.clone(), cache)
    });
    caches.collect()
}

/// How the requests of one port are cached, by its own policy and by those of its routes.
pub(super) struct OfPort<'a> {
    caches: &'a Caches,
    inputs: &'a Inputs,
    /// `shop/products:80`.
    service: Arc<str>,
    /// For requests of which no route says otherwise.
    pub(super) rules: Option<Arc<Rules>>,
}

impl<'a> OfPort<'a> {
    pub(super) fn new(
        caches: &'a Caches,
        inputs: &'a Inputs,
        service: &Service,
        port: &ServicePort,
    ) -> Self {
        let name = ClusterKey::Service(service.name.clone(), port.port).to_string().into();
        let mut built = Self { caches, inputs, service: name, rules: None };
        // Of plain bytes nobody knows where one response ends.
        if port.protocol != Protocol::Tcp {
            built.rules = built.rules_of(inputs.cache_of(&service.name, &port.name));
        }
        built
    }

    /// How the requests of a rule are cached. A policy for its route wins, also one that says not at all.
    pub(super) fn of_rule(&self, route: &HttpRoute, rule: &HttpRule) -> Option<Arc<Rules>> {
        match self.inputs.cache_of_rule(route, rule.name.as_deref()) {
            Some(policy) => self.rules_of(Some(policy)),
            None => self.rules.clone(),
        }
    }

    fn rules_of(&self, policy: Option<&Arc<CachePolicy>>) -> Option<Arc<Rules>> {
        let cache = self.caches.get(&policy?.name)?.clone();
        Some(Arc::new(Rules { cache, service: self.service.clone() }))
    }
}

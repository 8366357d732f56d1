//! What resources have to do with each other: what one that comes or goes has an effect on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use leno_api::{
    SYSTEM_NAMESPACE,
    model::{Model, ObjectName, applies::Applies, service::Service, wasm_plugin::WasmPlugin},
};

use super::Dirty;

/// What `model` being there or not has an effect on.
pub(super) fn mark(
    services: &BTreeMap<ObjectName, Arc<Service>>,
    model: &Model,
    dirty: &mut Dirty,
) {
    match model {
        Model::Service(service) => {
            dirty.clusters.insert(service.name.clone());
            // A policy for a part says how workloads of the whole are spoken to.
            dirty.clusters.extend(service.subset.as_ref().map(|subset| subset.of.clone()));
            dirty.routes.insert(service.name.clone());
        }
        Model::Workload(workload) => dirty.clusters.extend(workload.services.iter().cloned()),
        Model::HttpRoute(route) => {
            dirty.routes.extend(route.parents.iter().map(|parent| parent.service.clone()))
        }
        Model::TcpRoute(route) => {
            dirty.routes.extend(route.parents.iter().map(|parent| parent.service.clone()))
        }
        Model::TrafficPolicy(policy) => {
            dirty.clusters.extend(policy.targets.iter().map(|target| target.service.clone()));
        }
        // Workloads serve services of their own namespace only.
        Model::PeerAuthentication(policy) => {
            dirty.inbound = true;
            let namespace = &policy.name.namespace;
            let concerned = |service: &&ObjectName| {
                **namespace == *SYSTEM_NAMESPACE || service.namespace == *namespace
            };
            dirty.clusters.extend(services.keys().filter(concerned).cloned());
        }
        Model::AuthorizationPolicy(_)
        | Model::RequestAuthentication(_)
        | Model::RateLimitPolicy(_) => dirty.inbound = true,
        Model::WasmPlugin(plugin) => mark_plugin(services, plugin, dirty),
        Model::FaultPolicy(_) => dirty.faults = true,
        Model::CachePolicy(policy) => {
            dirty.caches = true;
            dirty.routes.extend(policy.services().map(|target| target.service.clone()));
        }
        Model::TrustBundle(_) => {}
    }
}

/// Those of a caller are part of the routes that they see requests before.
pub(super) fn mark_plugin(
    services: &BTreeMap<ObjectName, Arc<Service>>,
    plugin: &WasmPlugin,
    dirty: &mut Dirty,
) {
    dirty.inbound |= plugin.is_server();
    if !plugin.is_client() {
        return;
    }
    match &plugin.applies {
        Applies::Services(targets) => {
            dirty.routes.extend(targets.iter().map(|target| target.service.clone()));
        }
        Applies::Namespace | Applies::Labels(_) => dirty.routes.extend(services.keys().cloned()),
    }
}

/// Pairs (callee, parent) of a route: the parent's routes hold clusters of the callee.
pub(super) fn calls(model: &Model) -> BTreeSet<(ObjectName, ObjectName)> {
    use leno_api::model::filter::Filter;
    let mut callees: BTreeSet<&ObjectName> = BTreeSet::new();
    let parents = match model {
        Model::HttpRoute(route) => {
            for rule in &route.rules {
                callees.extend(rule.backends.iter().map(|backend| &backend.backend.service));
                callees.extend(rule.filters.iter().filter_map(|filter| match filter {
                    Filter::Mirror(mirror) => Some(&mirror.backend.service),
                    _ => None,
                }));
            }
            &route.parents
        }
        Model::TcpRoute(route) => {
            callees.extend(route.backends.iter().map(|backend| &backend.service));
            &route.parents
        }
        _ => return BTreeSet::new(),
    };
    let pairs = |callee: &ObjectName| {
        parents.iter().map(|parent| (callee.clone(), parent.service.clone())).collect::<Vec<_>>()
    };
    callees.into_iter().flat_map(pairs).collect()
}

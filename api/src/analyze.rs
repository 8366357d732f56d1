//! Problems that only show when several resources are seen together: references to nothing, collisions.
//!
//! None of them makes a resource invalid (the other one may be on its way), so they are findings,
//! shown as warnings by the API and the command line.

mod access;
mod claims;
mod ports;
mod protocol;
mod routes;

use std::collections::{BTreeMap, HashMap};

pub use access::without_tokens;
pub use claims::{Claim, claims};

use crate::{
    KINDS, Key, Path, Resource,
    model::{
        Model, ObjectName,
        backend::{Backend, Parent},
        cache_policy::CacheTarget,
        filter::Filter,
        http_route::HttpRoute,
        service::Service,
        traffic_policy::Target,
    },
};

/// What becomes of a policy for a service that is not there.
const NO_EFFECT: &str = "the policy has no effect";

/// A reference to a service, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `spec.rules[0].backendRefs[1]`.
    pub path: String,
    /// The service meant.
    pub service: ObjectName,
    /// The port meant.
    pub port: Option<u16>,
    /// The port meant, by name.
    pub section: Option<String>,
    /// Whether it means one port, so that one must be named where there are several.
    pub one_port: bool,
    /// What happens while it is missing.
    pub effect: &'static str,
}

/// Something odd about a resource, seen beside the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which resource.
    pub key: Key,
    /// Where in it.
    pub path: String,
    /// What, and what happens because of it.
    pub message: String,
}

/// Every reference to a service in `resource`.
pub fn references(resource: &Resource) -> Vec<Reference> {
    let spec = Path::root("spec");
    let mut found = Vec::new();
    match &resource.model {
        Model::Service(service) => subset_references(&spec, service, &mut found),
        Model::Workload(workload) => {
            let at = spec.field("services");
            for (i, service) in workload.services.iter().enumerate() {
                found.push(reference(&at.index(i), service, None, None, "nobody is sent there"));
            }
        }
        Model::HttpRoute(route) => http_references(&spec, route, &mut found),
        Model::TcpRoute(route) => {
            parent_references(&spec, &route.parents, &mut found);
            let rules = spec.field("rules");
            let rule = rules.index(0);
            let at = rule.field("backendRefs");
            for (i, backend) in route.backends.iter().enumerate() {
                found.push(backend_reference(
                    &at.index(i),
                    backend,
                    "its share of connections is closed",
                ));
            }
        }
        Model::TrafficPolicy(policy) => {
            target_references(&spec, &policy.targets, NO_EFFECT, &mut found)
        }
        Model::PeerAuthentication(policy) => {
            target_references(&spec, policy.applies.targets(), NO_EFFECT, &mut found);
        }
        Model::AuthorizationPolicy(policy) => {
            target_references(&spec, policy.applies.targets(), NO_EFFECT, &mut found);
        }
        Model::RequestAuthentication(policy) => {
            target_references(&spec, policy.applies.targets(), NO_EFFECT, &mut found);
        }
        Model::WasmPlugin(plugin) => {
            let effect = "the plugin does not run there";
            target_references(&spec, plugin.applies.targets(), effect, &mut found);
        }
        Model::RateLimitPolicy(policy) => {
            target_references(&spec, &policy.targets, NO_EFFECT, &mut found);
        }
        Model::FaultPolicy(policy) => {
            target_references(&spec, &policy.targets, NO_EFFECT, &mut found);
        }
        Model::CachePolicy(policy) => {
            let at = spec.field("targetRefs");
            for (i, target) in policy.targets.iter().enumerate() {
                if let CacheTarget::Service(Target { service, section }) = target {
                    let section = section.clone();
                    found.push(reference(&at.index(i), service, None, section, NO_EFFECT));
                }
            }
        }
        Model::TrustBundle(_) => {}
    }
    found
}

/// Every resource that `resource` refers to, whether it is there or not: with these it is to be seen together.
pub fn referents(resource: &Resource) -> Vec<Key> {
    let services = references(resource).into_iter().map(|found| ("Service", found.service));
    let routes = routes::references(resource).map(|found| ("HTTPRoute", found.route.clone()));
    let all = services.chain(routes);
    all.filter_map(|(kind, name)| {
        let kind = KINDS.iter().find(|info| info.kind == kind)?;
        Some(Key { kind, name })
    })
    .collect()
}

/// A subset needs the whole service, and its port for each of its own.
fn subset_references(spec: &Path<'_>, service: &Service, found: &mut Vec<Reference>) {
    let Some(subset) = &service.subset else { return };
    let at = spec.field("subset");
    for port in &service.ports {
        let section = Some(port.name.clone());
        found.push(reference(&at.field("of"), &subset.of, None, section, "nobody is sent there"));
    }
}

/// What is odd about `reference`, given the service it names (if there is one).
pub fn check_reference(reference: &Reference, service: Option<&Service>) -> Option<String> {
    let Some(service) = service else {
        return Some(format!("there is no Service {}; {}", reference.service, reference.effect));
    };
    let effect = reference.effect;
    match (reference.port, &reference.section) {
        (Some(port), _) if service.port(port).is_none() => {
            Some(format!("Service {} has no port {port}; {effect}", reference.service))
        }
        (_, Some(name)) if !service.ports.iter().any(|port| port.name == *name) => {
            Some(format!("Service {} has no port named `{name}`; {effect}", reference.service))
        }
        (None, None) if reference.one_port && service.resolve_port(None).is_none() => {
            let count = service.ports.len();
            let name = &reference.service;
            Some(format!("Service {name} has {count} ports; name one by `port`; {effect}"))
        }
        _ => None,
    }
}

/// Everything odd about a whole configuration: what [`findings`] says, and what is odd only because nothing else is
/// there, such as a policy that asks for tokens where no token is read.
pub fn findings_of_all(resources: &[Resource]) -> Vec<Finding> {
    let mut found = findings(resources);
    access::find_unmatched(resources, &mut found);
    access::find_unselected(resources, &mut found);
    found
}

/// Everything odd about `resources`, seen beside each other, in their order. They may be a part of a configuration
/// only, as long as the services they refer to are among them.
pub fn findings(resources: &[Resource]) -> Vec<Finding> {
    let services = services_of(resources);
    let mut found = Vec::new();
    for resource in resources {
        for reference in references(resource) {
            let service = services.get(&reference.service).copied();
            if let Some(message) = check_reference(&reference, service) {
                found.push(Finding { key: resource.key(), path: reference.path, message });
            }
        }
    }
    routes::find_missing(resources, &mut found);
    routes::find_idle(resources, &services, &mut found);
    find_doubles(resources, &mut found);
    claims::find_lost(resources, &services, &mut found);
    ports::find_unserved(resources, &services, &mut found);
    access::find_empty(resources, &mut found);
    protocol::find_unfit(resources, &services, &mut found);
    found
}

type Services<'a> = HashMap<ObjectName, &'a Service>;

fn services_of(resources: &[Resource]) -> Services<'_> {
    let services = resources.iter().filter_map(|resource| match &resource.model {
        Model::Service(service) => Some((service.name.clone(), &**service)),
        _ => None,
    });
    services.collect()
}

fn find_doubles(resources: &[Resource], found: &mut Vec<Finding>) {
    let mut seen = BTreeMap::new();
    for resource in resources {
        if seen.insert(resource.key(), ()).is_some() {
            let message = "stands twice; the later one counts".to_owned();
            found.push(Finding { key: resource.key(), path: "metadata.name".to_owned(), message });
        }
    }
}

fn http_references(spec: &Path<'_>, route: &HttpRoute, found: &mut Vec<Reference>) {
    let effect = "its share of requests is answered with 500";
    parent_references(spec, &route.parents, found);
    let rules = spec.field("rules");
    for (rule_at, rule) in route.rules.iter().enumerate() {
        let here = rules.index(rule_at);
        let at = here.field("backendRefs");
        for (i, backend) in rule.backends.iter().enumerate() {
            found.push(backend_reference(&at.index(i), &backend.backend, effect));
        }
        let at = here.field("filters");
        for (i, filter) in rule.filters.iter().enumerate() {
            if let Filter::Mirror(mirror) = filter {
                let here = at.index(i);
                let here = here.field("requestMirror");
                found.push(backend_reference(
                    &here.field("backendRef"),
                    &mirror.backend,
                    "no copy is sent",
                ));
            }
        }
    }
}

fn parent_references(spec: &Path<'_>, parents: &[Parent], found: &mut Vec<Reference>) {
    let at = spec.field("parentRefs");
    for (i, parent) in parents.iter().enumerate() {
        let section = parent.section.clone();
        found.push(reference(
            &at.index(i),
            &parent.service,
            parent.port,
            section,
            "the route has no effect",
        ));
    }
}

fn target_references(
    spec: &Path<'_>,
    targets: &[Target],
    effect: &'static str,
    found: &mut Vec<Reference>,
) {
    let at = spec.field("targetRefs");
    for (i, target) in targets.iter().enumerate() {
        let section = target.section.clone();
        found.push(reference(&at.index(i), &target.service, None, section, effect));
    }
}

fn backend_reference(path: &Path<'_>, backend: &Backend, effect: &'static str) -> Reference {
    let found = reference(path, &backend.service, backend.port, None, effect);
    Reference { one_port: true, ..found }
}

fn reference(
    path: &Path<'_>,
    service: &ObjectName,
    port: Option<u16>,
    section: Option<String>,
    effect: &'static str,
) -> Reference {
    Reference {
        path: path.to_string(),
        service: service.clone(),
        port,
        section,
        one_port: false,
        effect,
    }
}

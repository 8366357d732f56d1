//! References to routes.

use std::collections::HashMap;

use super::{Finding, NO_EFFECT};
use crate::{
    Resource,
    model::{Model, ObjectName, cache_policy::CacheTarget, http_route::HttpRoute},
};

/// A reference to an HTTP route, with its place.
pub(super) struct Reference<'a> {
    pub(super) path: String,
    pub(super) route: &'a ObjectName,
    /// The rule meant, by name.
    rule: Option<&'a str>,
}

/// Every reference to a route in `resource`.
pub(super) fn references(resource: &Resource) -> impl Iterator<Item = Reference<'_>> {
    let targets = match &resource.model {
        Model::CachePolicy(policy) => &policy.targets[..],
        _ => &[],
    };
    targets.iter().enumerate().filter_map(|(i, target)| match target {
        CacheTarget::Service(_) => None,
        CacheTarget::Route { route, rule } => {
            let path = format!("spec.targetRefs[{i}]");
            Some(Reference { path, route, rule: rule.as_deref() })
        }
    })
}

/// References to routes, or rules of them, that are not there.
pub(super) fn find_missing(resources: &[Resource], found: &mut Vec<Finding>) {
    let routes: HashMap<&ObjectName, &HttpRoute> = resources
        .iter()
        .filter_map(|resource| match &resource.model {
            // The model of a GRPCRoute is the same; its name is another.
            Model::HttpRoute(route) if route.kind == "HTTPRoute" => Some((&route.name, &**route)),
            _ => None,
        })
        .collect();
    for resource in resources {
        for reference in references(resource) {
            if let Some(message) = check(&reference, routes.get(reference.route).copied()) {
                found.push(Finding { key: resource.key(), path: reference.path, message });
            }
        }
    }
}

fn check(reference: &Reference<'_>, route: Option<&HttpRoute>) -> Option<String> {
    let name = reference.route;
    let Some(route) = route else {
        return Some(format!("there is no HTTPRoute {name}; {NO_EFFECT}"));
    };
    let rule = reference.rule?;
    let known = route.rules.iter().any(|other| other.name.as_deref() == Some(rule));
    (!known).then(|| format!("HTTPRoute {name} has no rule named `{rule}`; {NO_EFFECT}"))
}

//! References to routes, and what of a route has no effect.

use std::collections::HashMap;

use super::{Finding, NO_EFFECT, Services};
use crate::{
    Resource,
    model::{
        Model, ObjectName,
        cache_policy::CacheTarget,
        filter::Filter,
        http_route::{HttpRoute, HttpRule},
    },
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

/// What a route says that nothing comes of.
pub(super) fn find_idle(resources: &[Resource], services: &Services<'_>, found: &mut Vec<Finding>) {
    for resource in resources {
        let Model::HttpRoute(route) = &resource.model else { continue };
        let mut note = |path: String, message: &str| {
            found.push(Finding { key: resource.key(), path, message: message.to_owned() });
        };
        for (path, message) in foreign_hostnames(route, services) {
            note(path, &message);
        }
        for path in &route.repeated {
            note(
                path.clone(),
                "has a condition of the same name before it, and only the first counts (Gateway API); write one expression",
            );
        }
        for (i, rule) in route.rules.iter().enumerate() {
            for place in beside_redirect(rule) {
                note(
                    format!("spec.rules[{i}].{place}"),
                    "has no effect in a rule that redirects: nothing is sent anywhere",
                );
            }
        }
    }
}

/// Hostnames by which nobody means the route's services.
fn foreign_hostnames(route: &HttpRoute, services: &Services<'_>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut parents: Vec<&ObjectName> = Vec::new();
    for parent in &route.parents {
        let Some(service) = services.get(&parent.service) else { continue };
        if parents.contains(&&parent.service) {
            continue;
        }
        parents.push(&parent.service);
        let answers: Vec<bool> =
            route.hostnames.iter().map(|host| service.may_answer_to(host)).collect();
        // They are for the Gateway.
        if route.has_other_parents && !answers.contains(&true) {
            continue;
        }
        let effect = match answers.contains(&true) {
            true => "so no call in the mesh is for it",
            false => {
                "nor to any other of the list, so the list is left to Gateways (GEP-1426) and the route takes every call of the service"
            }
        };
        let foreign = answers.iter().enumerate().filter(|(_, answers)| !**answers);
        let name = &service.name;
        found.extend(foreign.map(|(i, _)| {
            let message = format!("Service {name} does not answer to it, {effect}; a name of its own belongs into its spec.hosts");
            (format!("spec.hostnames[{i}]"), message)
        }));
    }
    found
}

/// What of a rule that redirects is for requests that are sent somewhere.
fn beside_redirect(rule: &HttpRule) -> Vec<String> {
    if !rule.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_))) {
        return Vec::new();
    }
    let filters = rule.filters.iter().enumerate();
    let idle = filters
        .filter(|(_, filter)| matches!(filter, Filter::RequestHeaders(_) | Filter::Mirror(_)));
    let mut places: Vec<_> = idle.map(|(i, _)| format!("filters[{i}]")).collect();
    for (place, set) in [
        ("timeouts", rule.request_timeout.is_some() || rule.attempt_timeout.is_some()),
        ("retry", rule.retry.is_some()),
    ] {
        places.extend(set.then(|| place.to_owned()));
    }
    places
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{Resource, analyze};

    fn paths(rule: &Value) -> Vec<String> {
        paths_under(rule, &[])
    }

    fn paths_under(rule: &Value, hostnames: &[&str]) -> Vec<String> {
        let object = |api: &str, kind: &str, spec: Value| {
            let object = json!({"apiVersion": api, "kind": kind, "metadata": {"name": "orders"}, "spec": spec});
            Resource::from_json(object).unwrap()
        };
        let parent = json!({"group": "", "kind": "Service", "name": "orders"});
        let resources = [
            object("leno.dev/v1alpha1", "Service", json!({"ports": [{"port": 80}]})),
            object(
                "gateway.networking.k8s.io/v1",
                "HTTPRoute",
                json!({"parentRefs": [parent], "hostnames": hostnames, "rules": [rule]}),
            ),
        ];
        analyze::findings(&resources).into_iter().map(|finding| finding.path).collect()
    }

    #[test]
    fn hostnames_that_nobody_calls_the_service_by_are_told() {
        let rule = json!({"backendRefs": [{"name": "orders", "port": 80}]});
        for (hostnames, expected) in [
            (&["orders.default", "orders"][..], &[][..]),
            (&["orders.default", "x.example.com"], &["spec.hostnames[1]"]),
            (&["*.example.com"], &["spec.hostnames[0]"]),
        ] {
            assert_eq!(paths_under(&rule, hostnames), expected, "{hostnames:?}");
        }
    }

    #[test]
    fn what_stands_beside_a_redirect_is_told() {
        let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}});
        let headers = |side: &str| {
            let lower = format!("{}{}", side[..1].to_lowercase(), &side[1..]);
            json!({"type": side, (lower): {"set": [{"name": "x", "value": "y"}]}})
        };
        let (request, response) =
            (headers("RequestHeaderModifier"), headers("ResponseHeaderModifier"));
        let mirror =
            json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "orders"}}});
        let backends = json!([{"name": "orders", "port": 80}]);
        for (rule, expected) in [
            (json!({"filters": [redirect, response]}), &[][..]),
            (json!({"filters": [request, mirror], "backendRefs": backends}), &[]),
            (json!({"filters": [redirect, request]}), &["spec.rules[0].filters[1]"]),
            (json!({"filters": [mirror, redirect]}), &["spec.rules[0].filters[0]"]),
            (
                json!({"filters": [redirect], "timeouts": {"request": "1s"}, "retry": {"attempts": 1}}),
                &["spec.rules[0].timeouts", "spec.rules[0].retry"],
            ),
        ] {
            assert_eq!(paths(&rule), expected, "{rule}");
        }
    }

    #[test]
    fn a_second_condition_of_one_name_is_told() {
        let rule = |matches: Value| json!({"matches": [matches], "backendRefs": [{"name": "orders", "port": 80}]});
        let named = |names: &[&str]| -> Value {
            names.iter().map(|name| json!({"name": name, "value": "1"})).collect()
        };
        for (matches, expected) in [
            (json!({"headers": named(&["x", "y"])}), &[][..]),
            (json!({"headers": named(&["x", "y", "X"])}), &["spec.rules[0].matches[0].headers[2]"]),
            (json!({"queryParams": named(&["x", "X"])}), &[]),
            (
                json!({"queryParams": named(&["x", "x"])}),
                &["spec.rules[0].matches[0].queryParams[1]"],
            ),
        ] {
            assert_eq!(paths(&rule(matches.clone())), expected, "{matches}");
        }
    }
}

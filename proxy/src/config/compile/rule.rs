//! Routes of a service port.

use std::sync::Arc;

use http::{HeaderValue, uri::Authority};
use leno_api::model::{
    ObjectName,
    backend::{Backend as BackendRef, Parent},
    filter::{Filter, HeaderChanges},
    http_route::{HttpMatch, HttpRoute, HttpRule, PathMatch, Pattern},
    service::{Service, ServicePort},
};

use super::{Clusters, Inputs, Own, Parts, caches::OfPort};
use crate::{
    cluster::{Cluster, ClusterKey},
    route::{
        split::Split,
        table::{Entry, Table},
    },
    snapshot::{Backend, Mirror, Rule},
};

/// The HTTP and gRPC routes that apply to calls from our namespace to this port. A consumer route (of our namespace, for
/// a service of another) is used instead of the producer's, as GAMMA says (GEP-1426).
pub(super) fn table(
    service: &Service,
    port: &ServicePort,
    cache: &OfPort<'_>,
    Parts { inputs, clusters, own, .. }: Parts<'_>,
) -> Table<Arc<Rule>> {
    let applies = |parents: &[Parent]| parents.iter().any(|parent| is_for(parent, service, port));
    let routes: Vec<_> =
        inputs.routes_of(&service.name).filter(|route| applies(&route.parents)).collect();
    let consumer = |route: &&&Arc<HttpRoute>| {
        *route.name.namespace != *service.name.namespace && *route.name.namespace == *own.namespace
    };
    let producer = |route: &&&Arc<HttpRoute>| route.name.namespace == service.name.namespace;
    let chosen: Vec<_> = match routes.iter().any(|route| consumer(&route)) {
        true => routes.iter().filter(consumer).collect(),
        false => routes.iter().filter(producer).collect(),
    };
    let mut entries = Vec::new();
    for route in chosen {
        add_entries(&mut entries, (service, route), cache, inputs, clusters);
    }
    Table::new(entries)
}

/// Where connections to this port go: the oldest TCPRoute decides.
pub(super) fn tcp(
    service: &Service,
    port: &ServicePort,
    inputs: &Inputs,
    clusters: &Clusters,
    own: &Own,
) -> Option<Split<Backend>> {
    let applies = |parents: &[Parent]| parents.iter().any(|parent| is_for(parent, service, port));
    let routes = inputs.tcp_routes_of(&service.name).filter(|route| applies(&route.parents));
    let from =
        |namespace: &str| namespace == &*service.name.namespace || namespace == own.namespace;
    let route = routes.filter(|route| from(&route.name.namespace)).min_by_key(|route| {
        (
            route.name.namespace == service.name.namespace,
            route.created.is_empty(),
            &route.created,
            &route.name,
        )
    })?;
    let backends = route.backends.iter().map(|reference| {
        let (name, cluster) = resolve(reference, inputs, clusters);
        (
            reference.weight,
            Backend { name, cluster, request_headers: Vec::new(), response_headers: Vec::new() },
        )
    });
    Some(Split::new(backends))
}

fn is_for(parent: &Parent, service: &Service, port: &ServicePort) -> bool {
    parent.service == service.name
        && parent.port.is_none_or(|number| number == port.port)
        && parent.section.as_ref().is_none_or(|section| *section == port.name)
}

fn add_entries(
    entries: &mut Vec<Entry<Arc<Rule>>>,
    (service, route): (&Service, &HttpRoute),
    cache: &OfPort<'_>,
    inputs: &Inputs,
    clusters: &Clusters,
) {
    let name: Arc<str> = format!("{} {}", route.kind, route.name).into();
    let (created, full_name): (Arc<str>, Arc<str>) =
        (route.created.as_str().into(), route.name.to_string().into());
    // Hostnames of which none means the service are for the route's Gateways (GEP-1426): taken at their word here they
    // would leave every call of the service without a route.
    let hostnames = match route.hostnames.iter().any(|host| service.may_answer_to(host)) {
        true => &route.hostnames[..],
        false => &[],
    };
    for (rule_at, rule) in route.rules.iter().enumerate() {
        let mut compiled = build(&name, rule_at, rule, inputs, clusters);
        compiled.cache = cache.of_rule(route, rule);
        let compiled = Arc::new(compiled);
        for (match_at, condition) in rule.matches.iter().enumerate() {
            let rank = (created.is_empty(), created.clone(), full_name.clone(), rule_at, match_at);
            let entry = |hostname: Option<Arc<str>>| Entry {
                hostname,
                condition: condition.clone(),
                rank: rank.clone(),
                rule: compiled.clone(),
            };
            match hostnames {
                [] => entries.push(entry(None)),
                hosts => {
                    entries.extend(hosts.iter().map(|host| entry(Some(host.as_str().into()))));
                }
            }
        }
    }
}

fn build(
    route: &Arc<str>,
    at: usize,
    rule: &HttpRule,
    inputs: &Inputs,
    clusters: &Clusters,
) -> Rule {
    let mut built = Rule {
        route: route.clone(),
        name: rule.name.clone().unwrap_or_else(|| at.to_string()),
        matches: rule.matches.iter().map(describe).collect(),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        redirect: None,
        authority: None,
        path: None,
        mirrors: Vec::new(),
        backends: Split::new([]),
        request_timeout: rule.request_timeout,
        attempt_timeout: rule.attempt_timeout,
        retry: rule.retry.clone(),
        cache: None,
    };
    for filter in &rule.filters {
        match filter {
            Filter::RequestHeaders(changes) => built.request_headers.push(changes.clone()),
            Filter::ResponseHeaders(changes) => built.response_headers.push(changes.clone()),
            Filter::Redirect(redirect) => built.redirect = Some(redirect.clone()),
            Filter::Rewrite(rewrite) => {
                built.path.clone_from(&rewrite.path);
                // A host name is always an authority and a header value.
                built.authority = rewrite.hostname.as_ref().and_then(|host| {
                    Authority::try_from(host.as_str())
                        .ok()
                        .zip(HeaderValue::from_str(host.as_str()).ok())
                });
            }
            Filter::Mirror(mirror) => {
                let (_, cluster) = resolve(&mirror.backend, inputs, clusters);
                built.mirrors.extend(cluster.map(|cluster| Mirror {
                    cluster,
                    numerator: mirror.numerator,
                    denominator: mirror.denominator,
                }));
            }
        }
    }
    let backends = rule.backends.iter().map(|backend| {
        let (name, cluster) = resolve(&backend.backend, inputs, clusters);
        let (request_headers, response_headers) = header_filters(&backend.filters);
        (backend.backend.weight, Backend { name, cluster, request_headers, response_headers })
    });
    built.backends = Split::new(backends);
    built
}

fn header_filters(filters: &[Filter]) -> (Vec<HeaderChanges>, Vec<HeaderChanges>) {
    let (mut request, mut response) = (Vec::new(), Vec::new());
    for filter in filters {
        match filter {
            Filter::RequestHeaders(changes) => request.push(changes.clone()),
            Filter::ResponseHeaders(changes) => response.push(changes.clone()),
            // The model lets nothing else stand at a backend.
            Filter::Mirror(_) | Filter::Redirect(_) | Filter::Rewrite(_) => {}
        }
    }
    (request, response)
}

/// The cluster a reference means, with the name under which it is reported.
fn resolve(
    reference: &BackendRef,
    inputs: &Inputs,
    clusters: &Clusters,
) -> (Arc<str>, Option<Arc<Cluster>>) {
    let port = |service: &ObjectName| inputs.services().get(service)?.resolve_port(reference.port);
    match port(&reference.service) {
        Some(port) => {
            let key = ClusterKey::Service(reference.service.clone(), port.port);
            (key.to_string().into(), clusters.get(&key).cloned())
        }
        None => {
            let number = reference.port.map(|port| format!(":{port}")).unwrap_or_default();
            (format!("{}{number}", reference.service).into(), None)
        }
    }
}

/// For people: `PathPrefix /v1, POST, header x-user: vip`.
fn describe(condition: &HttpMatch) -> String {
    let value = |pattern: &Pattern| match pattern {
        Pattern::Exact(text) => text.clone(),
        Pattern::Regex(regex) => format!("~{}", regex.as_str()),
    };
    let mut parts = vec![match &condition.path {
        PathMatch::Exact(path) => format!("Exact {path}"),
        PathMatch::Prefix(prefix) => {
            format!("PathPrefix {}", if prefix.is_empty() { "/" } else { prefix })
        }
        PathMatch::Regex(regex) => format!("RegularExpression {}", regex.as_str()),
    }];
    parts.extend(condition.method.as_ref().map(ToString::to_string));
    parts.extend(
        condition
            .headers
            .iter()
            .map(|(name, pattern)| format!("header {name}: {}", value(pattern))),
    );
    parts.extend(
        condition.query.iter().map(|(name, pattern)| format!("query {name}={}", value(pattern))),
    );
    parts.join(", ")
}

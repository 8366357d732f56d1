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

use super::{Clusters, Inputs, Own, Parts, RouteChanges, caches::OfPort};
use crate::{
    cluster::{Cluster, ClusterKey},
    route::{
        split::Split,
        table::{Entry, Gone, Origin, Place, Rank, Table},
    },
    snapshot::{Backend, Mirror, Rule},
};

/// The routes of one port, and what they are built of.
#[derive(Clone, Copy)]
pub(super) struct Routes<'a> {
    pub(super) service: &'a Service,
    pub(super) port: &'a ServicePort,
    pub(super) cache: &'a OfPort<'a>,
    pub(super) parts: Parts<'a>,
}

impl Routes<'_> {
    /// The HTTP and gRPC routes that apply to calls from our namespace to this port. A consumer route (of our namespace, for
    /// a service of another) is used instead of the producer's, as GAMMA says (GEP-1426).
    pub(super) fn table(self) -> Table<Arc<Rule>> {
        let Self { service, parts: Parts { inputs, own, .. }, .. } = self;
        let routes: Vec<_> =
            inputs.routes_of(&service.name).filter(|route| self.applies(route)).collect();
        let consumer = |route: &&&Arc<HttpRoute>| {
            *route.name.namespace != *service.name.namespace
                && *route.name.namespace == *own.namespace
        };
        let producer = |route: &&&Arc<HttpRoute>| route.name.namespace == service.name.namespace;
        let chosen: Vec<_> = match routes.iter().any(|route| consumer(&route)) {
            true => routes.iter().filter(consumer).collect(),
            false => routes.iter().filter(producer).collect(),
        };
        let mut entries = Vec::new();
        for route in chosen {
            self.add_entries(&mut entries, route);
        }
        Table::new(entries)
    }

    /// The same where it was `kept` before these changes, all of them of producers: there are no others.
    pub(super) fn changed(
        self,
        kept: &Table<Arc<Rule>>,
        changes: &RouteChanges,
    ) -> Table<Arc<Rule>> {
        let before: Vec<_> = changes.values().flatten().collect();
        let names: Vec<String> = before.iter().map(|route| route.name.to_string()).collect();
        let places = before.iter().flat_map(|route| {
            let conditions = route.rules.iter().flat_map(|rule| &rule.matches);
            let hosts = hostnames(self.service, route);
            conditions.flat_map(move |condition| {
                hosts.clone().into_iter().map(|host| Place::new(host, condition))
            })
        });
        let gone = Gone {
            places: places.collect(),
            routes: before.iter().zip(&names).map(|(route, name)| (route.kind, &**name)).collect(),
        };
        let mut entries = Vec::new();
        for key in changes.keys() {
            let now = self.parts.inputs.route_of(&self.service.name, key);
            if let Some(route) = now.filter(|route| self.applies(route)) {
                self.add_entries(&mut entries, route);
            }
        }
        kept.replace(gone, entries)
    }

    fn applies(self, route: &HttpRoute) -> bool {
        route.parents.iter().any(|parent| is_for(parent, self.service, self.port))
    }

    fn add_entries(self, entries: &mut Vec<Entry<Arc<Rule>>>, route: &HttpRoute) {
        let Self { service, cache, parts: Parts { inputs, clusters, .. }, .. } = self;
        let name: Arc<str> = format!("{} {}", route.kind, route.name).into();
        let origin = Arc::new(Origin {
            undated: route.created.is_empty(),
            created: route.created.as_str().into(),
            name: route.name.to_string().into(),
            kind: route.kind,
        });
        let hosts = hostnames(service, route);
        for (rule, rule_at) in route.rules.iter().zip(0..) {
            let mut compiled = build(&name, rule_at, rule, inputs, clusters);
            compiled.cache = cache.of_rule(route, rule);
            let compiled = Arc::new(compiled);
            for (condition, at) in rule.matches.iter().zip(0..) {
                entries.extend(hosts.iter().map(|hostname| Entry {
                    hostname: hostname.clone(),
                    condition: condition.clone(),
                    rank: Rank { origin: origin.clone(), rule: rule_at, at },
                    rule: compiled.clone(),
                }));
            }
        }
    }
}

/// The hosts under which a route holds; `None` is any.
fn hostnames(service: &Service, route: &HttpRoute) -> Vec<Option<Arc<str>>> {
    // Hostnames of which none means the service are for the route's Gateways (GEP-1426): taken at their word here they
    // would leave every call of the service without a route.
    match route.hostnames.iter().any(|host| service.may_answer_to(host)) {
        true => route.hostnames.iter().map(|host| Some(host.as_str().into())).collect(),
        false => vec![None],
    }
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

fn build(route: &Arc<str>, at: u32, rule: &HttpRule, inputs: &Inputs, clusters: &Clusters) -> Rule {
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

//! Routes, policies and plugins for ports on which there is nothing of what they are about: Leno does not look into the
//! bytes of a `tcp` port, and takes nothing but requests on one of `http`, `http2` or `grpc`.

use super::{Finding, Services};
use crate::{
    Resource,
    model::{
        Model, ObjectName,
        backend::Parent,
        service::{Protocol, Service, ServicePort},
        traffic_policy::{HashKey, Settings, Target},
        wasm_plugin::{PluginType, WasmPlugin},
    },
};

/// What something is about.
#[derive(Clone, Copy)]
enum About {
    Requests,
    Connections,
    /// Requests that may be answered from a store.
    Get,
}

/// Ports of a service that something is for.
struct Meant<'a> {
    /// What has no effect where there is nothing of it.
    path: String,
    service: &'a ObjectName,
    section: Option<&'a str>,
    /// These only; all when empty.
    numbers: Vec<u16>,
}

impl About {
    fn is_on(self, protocol: Protocol) -> bool {
        match self {
            Self::Requests => protocol != Protocol::Tcp,
            Self::Connections => matches!(protocol, Protocol::Tcp | Protocol::Auto),
            Self::Get => !matches!(protocol, Protocol::Tcp | Protocol::Grpc),
        }
    }

    /// What is said where there is nothing of it on `ports`.
    fn message(self, ports: &str, service: &ObjectName, bytes: bool) -> String {
        match self {
            Self::Requests | Self::Get if bytes => format!(
                "is about requests, and {ports} of Service {service} takes plain bytes (tcp), so it has no effect there"
            ),
            Self::Connections => format!(
                "is about connections, and {ports} of Service {service} takes requests, so it has an effect on tunnels (CONNECT) at most; declare the port as tcp or auto"
            ),
            _ => format!(
                "is about what may be kept, and {ports} of Service {service} takes gRPC, of which nothing ever is, so it has no effect there"
            ),
        }
    }
}

/// Places where the resource, or a part of it, has no effect because of what is spoken there.
pub(super) fn find_unfit(
    resources: &[Resource],
    services: &Services<'_>,
    found: &mut Vec<Finding>,
) {
    for resource in resources {
        let (about, meant) = meant(resource);
        for place in meant {
            let Some(service) = services.get(place.service) else { continue };
            let Some((ports, bytes)) = place.unfit(service, about) else { continue };
            let message = about.message(&ports, &service.name, bytes);
            found.push(Finding { key: resource.key(), path: place.path, message });
        }
    }
}

/// What a resource is about, and where.
fn meant(resource: &Resource) -> (About, Vec<Meant<'_>>) {
    match &resource.model {
        Model::HttpRoute(route) => (About::Requests, parents(&route.parents)),
        Model::TcpRoute(route) => (About::Connections, parents(&route.parents)),
        Model::TrafficPolicy(policy) => {
            let lost = needs_requests(&policy.settings);
            (About::Requests, lost.iter().flat_map(|path| targets(path, &policy.targets)).collect())
        }
        Model::RateLimitPolicy(policy) => {
            (About::Requests, targets("spec.limits", &policy.targets).collect())
        }
        Model::FaultPolicy(policy) => {
            (About::Requests, targets("spec.rules", &policy.targets).collect())
        }
        Model::RequestAuthentication(policy) => {
            (About::Requests, targets("spec.jwtRules", policy.applies.targets()).collect())
        }
        Model::CachePolicy(policy) => {
            let targets = policy.services().map(|target| of_target("spec.targetRefs", target));
            (About::Get, targets.collect())
        }
        Model::WasmPlugin(plugin) => of_plugin(plugin),
        _ => (About::Requests, Vec::new()),
    }
}

fn parents(parents: &[Parent]) -> Vec<Meant<'_>> {
    let parents = parents.iter().enumerate().map(|(i, parent)| Meant {
        path: format!("spec.parentRefs[{i}]"),
        service: &parent.service,
        section: parent.section.as_deref(),
        numbers: parent.port.into_iter().collect(),
    });
    parents.collect()
}

fn targets<'a>(path: &'a str, targets: &'a [Target]) -> impl Iterator<Item = Meant<'a>> {
    targets.iter().map(move |target| of_target(path, target))
}

fn of_target<'a>(path: &str, target: &'a Target) -> Meant<'a> {
    let section = target.section.as_deref();
    Meant { path: path.to_owned(), service: &target.service, section, numbers: Vec::new() }
}

/// A plugin is for all ports that one of its `match` names.
fn of_plugin(plugin: &WasmPlugin) -> (About, Vec<Meant<'_>>) {
    let about = match plugin.kind {
        PluginType::Http => About::Requests,
        PluginType::Network => About::Connections,
    };
    let every = plugin.matches.iter().any(|side| side.ports.is_empty());
    let all = || plugin.matches.iter().flat_map(|side| side.ports.iter().copied()).collect();
    let numbers: Vec<u16> = if every { Vec::new() } else { all() };
    let meant = targets("spec.targetRefs", plugin.applies.targets());
    (about, meant.map(|place| Meant { numbers: numbers.clone(), ..place }).collect())
}

/// What is said of requests and cannot be done with connections.
fn needs_requests(settings: &Settings) -> Vec<&'static str> {
    let defaults = Settings::default();
    let keys = settings.balancer.keys();
    let hashes = !keys.is_empty() && !keys.contains(&HashKey::SourceIp);
    let parts = [
        ("spec.balancer", hashes),
        ("spec.timeouts.request", !settings.request_timeout.is_zero()),
        ("spec.timeouts.attempt", !settings.attempt_timeout.is_zero()),
        ("spec.breaker.slowCalls", settings.circuit.slow_calls.is_some()),
        ("spec.hedging", settings.hedging.is_some()),
        ("spec.adaptiveConcurrency", settings.adaptive_concurrency.is_some()),
        ("spec.breaker.maxPending", settings.max_pending != defaults.max_pending),
        ("spec.breaker.maxExchanges", settings.max_exchanges != defaults.max_exchanges),
        ("spec.breaker.maxRetries", settings.max_retries != defaults.max_retries),
        ("spec.retryBudget", settings.retry_budget != defaults.retry_budget),
        ("spec.retry.on", settings.retry.on != defaults.retry.on),
        ("spec.retry.statuses", !settings.retry.statuses.is_empty()),
        ("spec.retry.grpc", !settings.retry.grpc.is_empty()),
        ("spec.retry.backoff", settings.retry.backoff != defaults.retry.backoff),
    ];
    parts.into_iter().filter(|(_, set)| *set).map(|(path, _)| path).collect()
}

impl Meant<'_> {
    /// What is meant of `service`, where nothing of it fits: "port `db`", "every port"; and whether that is bytes only.
    fn unfit(&self, service: &Service, about: About) -> Option<(String, bool)> {
        let meant = |port: &&ServicePort| {
            self.section.is_none_or(|section| section == port.name)
                && (self.numbers.is_empty() || self.numbers.contains(&port.port))
        };
        let ports: Vec<_> = service.ports.iter().filter(meant).collect();
        if ports.is_empty() || ports.iter().any(|port| about.is_on(port.protocol)) {
            return None;
        }
        let bytes = ports.iter().all(|port| port.protocol == Protocol::Tcp);
        let text = match &ports[..] {
            [port] if service.ports.len() > 1 || self.section.is_some() => {
                format!("port `{}`", port.name)
            }
            _ if ports.len() < service.ports.len() => "every port that it is for".to_owned(),
            _ => "every port".to_owned(),
        };
        Some((text, bytes))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{Resource, analyze};

    fn findings(kind: &str, section: Option<&str>, fields: &[(&str, Value)]) -> Vec<String> {
        let mut target = json!({"kind": "Service", "name": "orders"});
        if let Some(section) = section {
            target["sectionName"] = json!(section);
        }
        let mut spec = json!({"targetRefs": [target]});
        for (field, value) in fields {
            spec[*field] = value.clone();
        }
        let object = |kind: &str, spec: Value| json!({"apiVersion": "leno.dev/v1alpha1", "kind": kind, "metadata": {"name": "orders"}, "spec": spec});
        let ports = json!([
            {"name": "db", "port": 5432, "protocol": "tcp"}, {"name": "http", "port": 80},
        ]);
        let objects = [object("Service", json!({"ports": ports})), object(kind, spec)];
        let resources = objects.map(|object| Resource::from_json(object).unwrap());
        let found = analyze::findings(&resources);
        found.into_iter().map(|finding| format!("{}: {}", finding.path, finding.message)).collect()
    }

    #[test]
    fn what_is_about_requests_does_nothing_on_a_port_of_bytes() {
        let limits = [("limits", json!([{"name": "a", "requests": 1, "per": "1s"}]))];
        let rules = [("rules", json!([{"delay": "1s"}]))];
        let message = "is about requests, and port `db` of Service default/orders takes plain bytes (tcp), so it has \
                       no effect there";
        let found = findings("RateLimitPolicy", Some("db"), &limits);
        assert_eq!(found, [format!("spec.limits: {message}")]);
        let found = findings("FaultPolicy", Some("db"), &rules);
        assert_eq!(found, [format!("spec.rules: {message}")]);
        for section in [None, Some("http")] {
            assert_eq!(findings("RateLimitPolicy", section, &limits), Vec::<String>::new());
            assert_eq!(findings("FaultPolicy", section, &rules), Vec::<String>::new());
        }
    }

    #[test]
    fn of_a_traffic_policy_the_part_is_named() {
        let hash =
            |key: &str, value: Value| ("balancer", json!({"maglev": {"hashOn": [{key: value}]}}));
        let rows: [(_, &[&str]); 5] = [
            (vec![], &[]),
            (vec![hash("sourceIp", json!({})), ("breaker", json!({"errorRate": {}}))], &[]),
            (vec![hash("header", json!({"name": "x"}))], &["spec.balancer"]),
            (
                vec![
                    ("hedging", json!({"p95": {}})),
                    ("timeouts", json!({"idle": "1s", "request": "1s"})),
                ],
                &["spec.timeouts.request", "spec.hedging"],
            ),
            (
                vec![("adaptiveConcurrency", json!({})), ("breaker", json!({"slowCalls": {}}))],
                &["spec.breaker.slowCalls", "spec.adaptiveConcurrency"],
            ),
        ];
        for (fields, paths) in rows {
            let found = findings("TrafficPolicy", Some("db"), &fields);
            let found: Vec<_> = found.iter().filter_map(|text| text.split(':').next()).collect();
            assert_eq!(found, paths, "{fields:?}");
            assert!(findings("TrafficPolicy", Some("http"), &fields).is_empty());
        }
    }

    #[test]
    fn what_is_for_a_port_of_another_kind_is_told() {
        let service = |protocol: &str| {
            json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Service", "metadata": {"name": "orders"},
                   "spec": {"ports": [{"name": "main", "port": 80, "protocol": protocol}]}})
        };
        let route = |kind: &str, version: &str| {
            let parent = json!({"group": "", "kind": "Service", "name": "orders"});
            let rules = json!([{"backendRefs": [{"name": "orders", "port": 80}]}]);
            json!({"apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": kind,
                   "metadata": {"name": "r"}, "spec": {"parentRefs": [parent], "rules": rules}})
        };
        let policy = |kind: &str, fields: Value| {
            let mut spec = json!({"targetRefs": [{"kind": "Service", "name": "orders"}]});
            spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            json!({"apiVersion": "leno.dev/v1alpha1", "kind": kind, "metadata": {"name": "p"}, "spec": spec})
        };
        let plugin = |kind: &str, port: u16| {
            let fields =
                json!({"url": "file:///a", "type": kind, "match": [{"ports": [{"number": port}]}]});
            policy("WasmPlugin", fields)
        };
        let tokens = json!({"jwtRules": [{"issuer": "i", "jwksUri": "https://i/k"}]});
        let [auto, http, grpc, tcp] = ["auto", "http", "grpc", "tcp"];
        let rows: [(Value, &[&str], &str); 8] = [
            (route("HTTPRoute", "v1"), &[tcp], "spec.parentRefs[0]"),
            (route("GRPCRoute", "v1"), &[tcp], "spec.parentRefs[0]"),
            (route("TCPRoute", "v1alpha2"), &[http, grpc], "spec.parentRefs[0]"),
            (plugin("HTTP", 80), &[tcp], "spec.targetRefs"),
            (plugin("NETWORK", 80), &[http, grpc], "spec.targetRefs"),
            // It is for none of these ports: something else.
            (plugin("NETWORK", 81), &[], ""),
            (policy("RequestAuthentication", tokens), &[tcp], "spec.jwtRules"),
            (policy("CachePolicy", json!({})), &[grpc, tcp], "spec.targetRefs"),
        ];
        for (object, unfit, path) in rows {
            for protocol in [auto, http, grpc, tcp] {
                let both = [service(protocol), object.clone()];
                let both = both.map(|object| Resource::from_json(object).unwrap());
                let found = analyze::findings(&both);
                let paths: Vec<_> = found.iter().map(|finding| &*finding.path).collect();
                let expected: &[&str] = if unfit.contains(&protocol) { &[path] } else { &[] };
                assert_eq!(paths, expected, "{protocol} {object}");
            }
        }
    }

    #[test]
    fn limits_and_retries_of_requests_do_nothing_for_connections() {
        let fields = [
            ("breaker", json!({"maxExchanges": 5, "maxPending": 1, "maxConnections": 3})),
            ("retry", json!({"attempts": 4, "on": ["reset"]})),
        ];
        let found = findings("TrafficPolicy", Some("db"), &fields);
        let found: Vec<_> = found.iter().filter_map(|text| text.split(':').next()).collect();
        assert_eq!(
            found,
            ["spec.breaker.maxPending", "spec.breaker.maxExchanges", "spec.retry.on"]
        );
    }
}

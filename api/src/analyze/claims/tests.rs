use serde_json::{Value, json};

use crate::{Resource, analyze};

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    let gateway = ["HTTPRoute", "GRPCRoute", "TCPRoute"].contains(&kind);
    let version = match kind {
        "TCPRoute" => "gateway.networking.k8s.io/v1alpha2",
        _ if gateway => "gateway.networking.k8s.io/v1",
        _ => "leno.dev/v1alpha1",
    };
    json!({
        "apiVersion": version, "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": "shop"},
    })
}

fn orders() -> Value {
    let ports = json!([
        {"name": "http", "port": 80, "protocol": "auto"},
        {"name": "admin", "port": 81, "protocol": "auto"},
    ]);
    object("Service", "orders", &json!({"ports": ports}))
}

fn findings(objects: Vec<Value>) -> Vec<String> {
    let resources = objects.into_iter().map(|object| Resource::from_json(object).unwrap());
    let found = analyze::findings(&resources.collect::<Vec<_>>());
    let text = |finding: analyze::Finding| {
        format!("{} {}: {}", finding.key.name.name, finding.path, finding.message)
    };
    found.into_iter().map(text).collect()
}

/// One finding for each of `starts`, in that order.
fn assert_found(found: &[String], parts: &[&str], what: &str) {
    assert_eq!(found.len(), parts.len(), "{what}: {found:#?}");
    for (found, part) in found.iter().zip(parts) {
        assert!(found.contains(part), "{what}: {found}");
    }
}

#[test]
fn of_two_equal_peer_authentications_the_younger_is_told() {
    let (strict, ports) = (
        json!({"mtls": {"mode": "STRICT"}}),
        json!({"portLevelMtls": {"9001": {"mode": "DISABLE"}}}),
    );
    let selected = json!({"selector": {"matchLabels": {"a": "b"}}, "mtls": {"mode": "STRICT"}});
    let other = json!({"portLevelMtls": {"9002": {"mode": "DISABLE"}}});
    let rows: [(&Value, &Value, &[&str]); 6] = [
        (&strict, &strict, &["p1 spec.mtls: PeerAuthentication shop/p0 is older"]),
        (&strict, &ports, &["p1 spec.portLevelMtls.9001: PeerAuthentication shop/p0"]),
        (&ports, &ports, &["p1 spec.portLevelMtls.9001"]),
        (&ports, &other, &[]),
        // It decides wherever the other says nothing.
        (&ports, &strict, &[]),
        (&strict, &selected, &[]),
    ];
    for (first, second, expected) in rows {
        let objects = vec![
            object("PeerAuthentication", "p0", first),
            object("PeerAuthentication", "p1", second),
        ];
        assert_found(&findings(objects), expected, &format!("{first} {second}"));
    }
}

#[test]
fn matches_that_never_match_are_told_however_they_are_spelled() {
    let route = |name: &str, parents: Value, conditions: Value| {
        let rules =
            json!([{"matches": conditions, "backendRefs": [{"name": "orders", "port": 80}]}]);
        object("HTTPRoute", name, &json!({"parentRefs": parents, "rules": rules}))
    };
    let parent = |fields: Value| {
        let mut parent = json!({"group": "", "kind": "Service", "name": "orders"});
        parent.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        parent
    };
    let (any, http, number, admin) = (
        json!([parent(json!({}))]),
        json!([parent(json!({"sectionName": "http"}))]),
        json!([parent(json!({"port": 80}))]),
        json!([parent(json!({"sectionName": "admin"}))]),
    );
    let path = |path: &str| json!([{"path": {"value": path}}]);
    let headers = |names: [&str; 2]| {
        let headers = names.map(|name| json!({"name": name, "value": "1"}));
        json!([{"headers": headers}])
    };
    let rows: [(&str, Vec<Value>, &[&str]); 7] = [
        (
            "same",
            vec![route("a", any.clone(), path("/x")), route("b", any.clone(), path("/x/"))],
            &["b spec.rules[0].matches[0]: HTTPRoute shop/a is older"],
        ),
        (
            "name and number",
            vec![route("a", http.clone(), path("/x")), route("b", number, path("/x"))],
            &["b spec.rules[0].matches[0]: HTTPRoute shop/a is older"],
        ),
        (
            "one of two ports",
            vec![route("a", http.clone(), path("/x")), route("b", any.clone(), path("/x"))],
            &["b spec.rules[0].matches[0]: on port `http`: HTTPRoute shop/a is older"],
        ),
        ("other ports", vec![route("a", http, path("/x")), route("b", admin, path("/x"))], &[]),
        (
            "order",
            vec![
                route("a", any.clone(), headers(["x", "y"])),
                route("b", any.clone(), headers(["Y", "X"])),
            ],
            &["b spec.rules[0].matches[0]"],
        ),
        (
            "within one",
            vec![route(
                "a",
                any.clone(),
                json!([{"path": {"value": "/x"}}, {"path": {"value": "/x"}}]),
            )],
            &["a spec.rules[0].matches[1]: spec.rules[0].matches[0] matches the same requests"],
        ),
        ("others", vec![route("a", any.clone(), path("/x")), route("b", any, path("/y"))], &[]),
    ];
    for (what, mut objects, expected) in rows {
        objects.insert(0, orders());
        assert_found(&findings(objects), expected, what);
    }
}

#[test]
fn of_two_routes_for_connections_to_a_port_the_younger_is_told() {
    let route = |name: &str, port: Option<u16>| {
        let mut parent = json!({"group": "", "kind": "Service", "name": "orders"});
        if let Some(port) = port {
            parent["port"] = json!(port);
        }
        let rules = json!([{"backendRefs": [{"name": "orders", "port": 80}]}]);
        object("TCPRoute", name, &json!({"parentRefs": [parent], "rules": rules}))
    };
    for (first, second, expected) in [
        (None, None, &["b spec.parentRefs[0]: TCPRoute shop/a is older"][..]),
        (Some(80), None, &["b spec.parentRefs[0]: on port `http`: TCPRoute shop/a is older"]),
        (None, Some(81), &["b spec.parentRefs[0]: TCPRoute shop/a is older"]),
        (Some(80), Some(81), &[]),
    ] {
        let objects = vec![orders(), route("a", first), route("b", second)];
        assert_found(&findings(objects), expected, &format!("{first:?} {second:?}"));
    }
}

#[test]
fn names_and_addresses_belong_to_one_service() {
    let service = |name: &str, hosts: &[&str], addresses: &[&str]| {
        let spec = json!({"ports": [{"port": 80}], "hosts": hosts, "addresses": addresses});
        object("Service", name, &spec)
    };
    let rows: [(Value, Value, &[&str]); 6] = [
        (
            service("a", &["x.example.com"], &[]),
            service("b", &["X.example.com"], &[]),
            &["b spec.hosts[0]: Service shop/a has that name"],
        ),
        (
            service("a", &["x"], &[]),
            service("b", &["x"], &[]),
            &["b spec.hosts[0]: Service shop/a"],
        ),
        (
            service("a", &[], &["10.0.0.1"]),
            service("b", &[], &["10.0.0.1"]),
            &["b spec.addresses[0]: Service shop/a has that address"],
        ),
        // A service's own name comes before what others write down, whatever their names.
        (
            service("a", &["b.shop"], &[]),
            service("b", &[], &[]),
            &["a spec.hosts[0]: Service shop/b"],
        ),
        (service("a", &["b"], &[]), service("b", &[], &[]), &["a spec.hosts[0]: Service shop/b"]),
        (service("a", &["a", "a.shop", "*.x.com"], &[]), service("b", &["*.y.com"], &[]), &[]),
    ];
    for (one, other, expected) in rows {
        let what = format!("{one} {other}");
        assert_found(&findings(vec![other, one]), expected, &what);
    }
}

#[test]
fn a_policy_for_a_port_stands_instead_of_the_one_for_all() {
    let policy = |name: &str, section: Option<&str>| {
        let mut target = json!({"kind": "Service", "name": "orders"});
        if let Some(section) = section {
            target["sectionName"] = json!(section);
        }
        object("TrafficPolicy", name, &json!({"targetRefs": [target], "hedging": {"p95": {}}}))
    };
    let rows: [(Option<&str>, Option<&str>, &[&str]); 4] = [
        (
            None,
            Some("http"),
            &["b spec.targetRefs[0]: replaces all of TrafficPolicy shop/a on port `http`"],
        ),
        (
            Some("http"),
            None,
            &["a spec.targetRefs[0]: replaces all of TrafficPolicy shop/b on port `http`"],
        ),
        (Some("http"), Some("http"), &["b spec.targetRefs[0]: TrafficPolicy shop/a is older"]),
        (Some("http"), Some("admin"), &[]),
    ];
    for (first, second, expected) in rows {
        let objects = vec![orders(), policy("a", first), policy("b", second)];
        assert_found(&findings(objects), expected, &format!("{first:?} {second:?}"));
    }
}

#[test]
fn a_reference_that_means_one_port_names_it() {
    for (kind, ports, found) in
        [("HTTPRoute", 1, 0), ("HTTPRoute", 2, 2), ("TCPRoute", 1, 0), ("TCPRoute", 2, 1)]
    {
        let mut all = orders();
        all["spec"]["ports"].as_array_mut().unwrap().truncate(ports);
        let mut rule = json!({"backendRefs": [{"name": "orders"}]});
        if kind == "HTTPRoute" {
            rule["filters"] = json!([{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "orders"}}}]);
        }
        let parents = json!([{"group": "", "kind": "Service", "name": "orders"}]);
        let route = object(kind, "r", &json!({"parentRefs": parents, "rules": [rule]}));
        let messages = findings(vec![all, route]);
        assert_eq!(messages.len(), found, "{kind}: {messages:?}");
        for message in messages {
            assert!(message.contains("has 2 ports; name one by `port`"), "{message}");
        }
    }
}

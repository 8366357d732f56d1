use std::time::Duration;

use serde_json::json;

use super::*;
use crate::{analyze, model::http_route::RouteRetry, yaml};

/// A valid object of each kind; each row below breaks one thing.
const GOOD: &str = r#"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {hosts: [orders], ports: [{name: http, port: 80, protocol: http}, {name: db, port: 5432, protocol: tcp}]}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop, labels: {version: v1}}
spec: {services: [orders], address: 127.0.0.1, ports: {http: 9001}, serviceAccount: orders, zone: a, weight: 2, sidecar: {port: 15008}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, port: 80}]
  hostnames: [orders]
  rules:
  - matches: [{path: {type: PathPrefix, value: /v1}, method: GET, headers: [{name: x-user, value: a}], queryParams: [{type: RegularExpression, name: q, value: 'a+'}]}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: b}], remove: [x-c]}}
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}
    backendRefs: [{name: orders, port: 80, weight: 90}]
    timeouts: {request: 10s, backendRequest: 2s}
    retry: {codes: [503, 502], attempts: 3, backoff: 100ms}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: products, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{matches: [{method: {service: shop.v1.Products, method: Reserve}}], backendRefs: [{name: orders, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: db, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, sectionName: db}]
  rules: [{backendRefs: [{name: orders, port: 5432}]}]
---
apiVersion: leno.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  balancer: {roundRobin: {}}
  timeouts: {connect: 1s, request: 10s}
  breaker: {maxConnections: 100}
---
apiVersion: leno.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: orders, namespace: shop}
spec:
  selector: {matchLabels: {version: v1}}
  mtls: {mode: STRICT}
  portLevelMtls: {9001: {mode: PERMISSIVE}}
---
apiVersion: leno.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders, sectionName: http}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/users]}}]
    to: [{operation: {methods: [GET], paths: ['/v1/*']}}]
    when: [{key: 'request.headers[x-user]', values: ['*']}]
---
apiVersion: leno.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  jwtRules: [{issuer: 'https://issuer.example', jwksUri: 'https://issuer.example/keys'}]
---
apiVersion: leno.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders, sectionName: http}]
  limits: [{name: per-caller, requests: 100, per: 1s, by: [{caller: {}}], scope: Global}]
---
apiVersion: leno.dev/v1alpha1
kind: FaultPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders, sectionName: http}]
  rules: [{matches: [{headers: [{name: x-chaos, present: {}}]}], percent: 0.5, delay: 2s, abort: {status: 503}}]
---
apiVersion: leno.dev/v1alpha1
kind: CachePolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs:
  - {group: '', kind: Service, name: orders, sectionName: http}
  - {group: gateway.networking.k8s.io, kind: HTTPRoute, name: orders}
  maxBytes: 16Mi
  defaultTtl: 30s
  key: {headers: [x-tenant], query: {exclude: [utm_source]}}
---
apiVersion: leno.dev/v1alpha1
kind: WasmPlugin
metadata: {name: tag, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  url: https://modules.example/tag.wasm
  sha256: 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a
  phase: AUTHN
  priority: 10
  match: [{mode: CLIENT_AND_SERVER, ports: [{number: 80}]}]
  pluginName: tag
  pluginConfig: {header: x-tag}
  vmConfig: {env: [{name: A, value: b}]}
  limits: {memory: 64Mi, deadline: 50ms, startDeadline: 2s}
  failurePolicy: Open
  capabilities: [proxy_log, fd_write]
  canary: {percent: 10, maxFailurePercent: 1, minimumRequests: 100, window: 1m}
---
apiVersion: leno.dev/v1alpha1
kind: TrustBundle
metadata: {name: mesh, namespace: leno-system}
spec:
  trustDomain: cluster.local
  roots: ["-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"]
  signer: 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a
"#;

fn good() -> Vec<Value> {
    yaml::documents(GOOD).unwrap().into_iter().map(|document| document.value).collect()
}

#[test]
fn every_kind_has_a_valid_example() {
    let resources: Vec<_> =
        good().into_iter().map(|value| Resource::from_json(value).unwrap()).collect();
    let kinds: Vec<_> = resources.iter().map(|resource| resource.kind.kind).collect();
    assert_eq!(kinds, KINDS.iter().map(|info| info.kind).collect::<Vec<_>>());
    assert_eq!(analyze::findings(&resources), []);
}

#[test]
fn schemas_are_closed_and_name_every_field() {
    for info in KINDS {
        let schema = (info.schema)();
        assert_eq!(schema["type"], "object", "{}: {schema}", info.kind);
        assert_eq!(schema["additionalProperties"], false, "{}", info.kind);
        assert!(!schema.to_string().contains("\"$ref\""), "{}: {schema}", info.kind);
    }
}

#[expect(clippy::too_many_lines, reason = "one row per rule")]
#[test]
fn each_broken_rule_is_named_with_its_path() {
    // (document, JSON pointer, new value, path of the problem, part of the message)
    let rows = [
        (0, "/kind", json!("Sevice"), "kind", "unknown kind Sevice; known are Service"),
        (0, "/apiVersion", json!("v1"), "apiVersion", "leno.dev/v1alpha1"),
        (0, "/metadata/name", json!("Bad_Name"), "metadata.name", "lower-case"),
        (0, "/metadata/labels", json!({"a b": "c"}), "metadata.labels.a b", "not a label name"),
        (0, "/spec/ports", json!([]), "spec.ports", "1 to 64"),
        (0, "/spec/ports/0/port", json!(0), "spec.ports[0].port", "1 to 65535"),
        (0, "/spec/ports/1/port", json!(80), "spec.ports[1].port", "80 is used twice"),
        (0, "/spec/ports/0/port", json!("80"), "spec.ports[0].port", "invalid type: string"),
        (
            0,
            "/spec/ports/0/protocol",
            json!("HTTP"),
            "spec.ports[0].protocol",
            "unknown variant `HTTP`",
        ),
        (0, "/spec/hosts/0", json!("http://orders"), "spec.hosts[0]", "without scheme"),
        (0, "/spec/hots", json!(["x"]), "spec.hots", "unknown field `hots`"),
        (1, "/spec/address", json!("orders.internal"), "spec.address", "not an IP address"),
        (1, "/spec/weight", json!(-1), "spec.weight", "0 to 1000"),
        (2, "/spec/parentRefs", json!([]), "spec.parentRefs", "is needed"),
        (2, "/spec/parentRefs/0", json!({"name": "gw"}), "spec.parentRefs", "names no Service"),
        (
            2,
            "/spec/rules/0/matches/0/path/value",
            json!("v1"),
            "spec.rules[0].matches[0].path.value",
            "must be a path",
        ),
        (
            2,
            "/spec/rules/0/matches/0/path/type",
            json!("Exact"),
            "spec.rules[0].matches",
            "PathPrefix",
        ),
        (
            2,
            "/spec/rules/0/matches/0/method",
            json!("get"),
            "spec.rules[0].matches[0].method",
            "capitals",
        ),
        (
            2,
            "/spec/rules/0/matches/0/queryParams/0/value",
            json!("("),
            "spec.rules[0].matches[0].queryParams[0].value",
            "regular expression",
        ),
        (
            2,
            "/spec/rules/0/filters/0/type",
            json!("ResponseHeaderModifier"),
            "spec.rules[0].filters[0].requestHeaderModifier",
            "does not belong",
        ),
        (
            2,
            "/spec/rules/0/filters/0/requestHeaderModifier/set/0/name",
            json!("content-length"),
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name",
            "frames the message",
        ),
        (
            2,
            "/spec/rules/0/backendRefs/0/weight",
            json!(1_000_001),
            "spec.rules[0].backendRefs[0].weight",
            "0 to 1000000",
        ),
        (
            2,
            "/spec/rules/0/backendRefs/0/namespace",
            json!("other"),
            "spec.rules[0].backendRefs[0].namespace",
            "ReferenceGrant",
        ),
        (
            2,
            "/spec/rules/0/timeouts/request",
            json!("1"),
            "spec.rules[0].timeouts.request",
            "not a duration",
        ),
        (
            2,
            "/spec/rules/0/timeouts/backendRequest",
            json!("11s"),
            "spec.rules[0].timeouts.backendRequest",
            "longer",
        ),
        (2, "/spec/rules/0/retries", json!({}), "spec.rules[0].retries", "unknown field `retries`"),
        (
            2,
            "/spec/rules/0/retry/codes",
            json!([503, 399]),
            "spec.rules[0].retry.codes[1]",
            "400 to 599",
        ),
        (
            2,
            "/spec/rules/0/retry/codes",
            json!(vec![503; 33]),
            "spec.rules[0].retry.codes",
            "0 to 32",
        ),
        (
            2,
            "/spec/rules/0/retry/codes/0",
            json!(600),
            "spec.rules[0].retry.codes[0]",
            "400 to 599",
        ),
        (2, "/spec/rules/0/retry/attempts", json!(0), "spec.rules[0].retry.attempts", "1 to 10"),
        (
            2,
            "/spec/rules/0/retry/attempts",
            json!(1_000_000),
            "spec.rules[0].retry.attempts",
            "1 to 10",
        ),
        (2, "/spec/rules/0/retry/backoff", json!("61s"), "spec.rules[0].retry.backoff", "0s to 1m"),
        (
            2,
            "/spec/rules/0/retry/backoff",
            json!("1"),
            "spec.rules[0].retry.backoff",
            "not a duration",
        ),
        (3, "/spec/rules/0/retry", json!({}), "spec.rules[0].retry", "unknown field `retry`"),
        (
            3,
            "/spec/rules/0/matches/0/method",
            json!({}),
            "spec.rules[0].matches[0].method",
            "a service, a method",
        ),
        (4, "/spec/rules", json!([]), "spec.rules", "1 to 1"),
        (
            5,
            "/spec/balancer",
            json!({"random": {}, "roundRobin": {}}),
            "spec.balancer",
            "exactly one",
        ),
        (
            5,
            "/spec/targetRefs/0/kind",
            json!("HTTPRoute"),
            "spec.targetRefs[0].kind",
            "must be a Service",
        ),
        (
            5,
            "/spec/breaker/maxConnections",
            json!(0),
            "spec.breaker.maxConnections",
            "1 to 10000000",
        ),
        (5, "/spec/timeouts/connect", json!("0s"), "spec.timeouts.connect", "more than zero"),
        (
            6,
            "/spec/portLevelMtls",
            json!({"0": {"mode": "STRICT"}}),
            "spec.portLevelMtls.0",
            "is not a port",
        ),
        (6, "/spec/targetRefs", json!([]), "spec.targetRefs", "and selector exclude each other"),
        (7, "/spec/rules/0/from", json!([]), "spec.rules[0].from", "is empty"),
        (7, "/spec/action", json!("CUSTOM"), "spec.action", "unknown variant `CUSTOM`"),
        (
            8,
            "/spec/jwtRules/0/jwksUri",
            json!("issuer.example"),
            "spec.jwtRules[0].jwksUri",
            "must be an http or https URL",
        ),
        (9, "/spec/limits", json!([]), "spec.limits", "1 to 32"),
        (10, "/spec/rules", json!([{}]), "spec.rules[0]", "needs delay, abort or both"),
        (11, "/spec/maxBytes", json!("64"), "spec.maxBytes", "1Mi to 64Gi"),
        (12, "/spec/url", json!("tag.wasm"), "spec.url", "has no scheme"),
        (12, "/spec/failStrategy", json!("FAIL_OPEN"), "spec.failStrategy", "unknown field"),
        (13, "/spec/trustDomain", json!("Mesh"), "spec.trustDomain", "is not a trust domain"),
        (13, "/metadata/name", json!("other"), "metadata.name", "one trust bundle only"),
    ];
    for (document, pointer, value, path, message) in rows {
        let mut object = good().swap_remove(document);
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        match object.pointer_mut(parent).unwrap() {
            Value::Object(fields) => drop(fields.insert(field.to_owned(), value)),
            Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
            other => panic!("{other}"),
        }
        let problems = Resource::from_json(object).expect_err(pointer).problems;
        let hit = problems
            .iter()
            .any(|problem| problem.path == path && problem.message.contains(message));
        assert!(hit, "{pointer}: {problems:#?}");
    }
}

#[test]
fn findings_name_what_is_missing_and_what_follows() {
    let mut objects = good();
    objects.remove(0);
    let resources: Vec<_> =
        objects.into_iter().map(|value| Resource::from_json(value).unwrap()).collect();
    let messages: Vec<_> =
        analyze::findings(&resources).iter().map(|f| format!("{} {}", f.path, f.message)).collect();
    assert!(messages.iter().any(|m| m == "spec.rules[0].backendRefs[0] there is no Service shop/orders; its share of requests is answered with 500"), "{messages:#?}");
    let ineffective = messages.iter().filter(|m| m.ends_with("the policy has no effect"));
    assert_eq!(ineffective.count(), 6, "{messages:#?}");
}

#[test]
fn the_younger_of_two_equal_routes_is_found() {
    let mut objects = good();
    let mut twin = objects[2].clone();
    twin["metadata"]["name"] = json!("aaa");
    twin["metadata"]["creationTimestamp"] = json!("2026-01-02T00:00:00Z");
    objects[2]["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    objects.push(twin);
    let resources: Vec<_> =
        objects.into_iter().map(|value| Resource::from_json(value).unwrap()).collect();
    let found = analyze::findings(&resources);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].key.to_string(), "HTTPRoute shop/aaa");
}

#[test]
fn users_write_every_kind_but_the_trust_bundle() {
    let read_only: Vec<_> = KINDS.iter().filter(|info| info.read_only).collect();
    assert_eq!(read_only.len(), 1);
    assert_eq!(read_only[0].kind, "TrustBundle");
}

#[test]
fn a_sidecar_takes_mutual_tls_only_when_it_says_so() {
    let read = |sidecar: Value| {
        let mut object = good().swap_remove(1);
        object["spec"]["sidecar"] = sidecar;
        match Resource::from_json(object).unwrap().model {
            Model::Workload(workload) => (workload.sidecar_port, workload.sidecar_tls),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read(json!({"port": 15008})), (Some(15008), false));
    assert_eq!(read(json!({"port": 15008, "mutualTls": true})), (Some(15008), true));
    assert_eq!(read(Value::Null), (None, false));
}

#[test]
fn a_route_says_what_is_sent_again() {
    let read = |retry: Value| {
        let mut object = good().swap_remove(2);
        object["spec"]["rules"][0]["retry"] = retry;
        match Resource::from_json(object).unwrap().model {
            Model::HttpRoute(route) => route.rules[0].retry.clone(),
            other => panic!("{other:?}"),
        }
    };
    let all = RouteRetry {
        codes: vec![502, 503],
        attempts: Some(3),
        backoff: Some(Duration::from_millis(100)),
    };
    let written = json!({"codes": [503, 502, 503], "attempts": 3, "backoff": "100ms"});
    assert_eq!(read(written), Some(all));
    assert_eq!(read(json!({})), Some(RouteRetry::default()));
    assert_eq!(read(json!({"backoff": "0s"})).unwrap().backoff, Some(Duration::ZERO));
    assert_eq!(read(Value::Null), None);
}

#[test]
fn of_two_policies_for_a_service_only_limits_add_up() {
    for (document, lost) in [(5, 1), (9, 0), (10, 1), (11, 2)] {
        let mut objects = good();
        let mut twin = objects[document].clone();
        twin["metadata"]["name"] = json!("younger");
        objects.push(twin);
        let resources: Vec<_> =
            objects.into_iter().map(|value| Resource::from_json(value).unwrap()).collect();
        let found = analyze::findings(&resources);
        assert_eq!(found.len(), lost, "{found:?}");
        assert!(found.iter().all(|finding| finding.message.contains("already applies there")));
    }
}

#[test]
fn schemas_say_what_kubernetes_takes_for_bytes() {
    let policy = KINDS.iter().find(|info| info.kind == "TrafficPolicy").unwrap();
    let schema = (policy.schema)();
    let retry = &schema["properties"]["retry"];
    let retry = retry.pointer("/anyOf/0").unwrap_or(retry);
    let buffer = &retry["properties"]["replayBuffer"];
    assert_eq!(buffer["x-kubernetes-int-or-string"], true, "{retry}");
    assert_eq!(retry["required"], Value::Null, "{retry}");
}

#[test]
fn null_is_not_everybody() {
    let targets = || serde_json::json!([{"kind": "Service", "name": "orders"}]);
    let limit = || serde_json::json!({"name": "a", "requests": 1, "per": "1s"});
    let rows = [
        (
            "AuthorizationPolicy",
            serde_json::json!({"rules": [{"from": null}]}),
            "spec.rules[0].from",
        ),
        ("AuthorizationPolicy", serde_json::json!({"rules": [{"to": null}]}), "spec.rules[0].to"),
        ("AuthorizationPolicy", serde_json::json!({"selector": null}), "spec.selector"),
        ("AuthorizationPolicy", serde_json::json!({"targetRefs": null}), "spec.targetRefs"),
        ("PeerAuthentication", serde_json::json!({"selector": null}), "spec.selector"),
        (
            "RequestAuthentication",
            serde_json::json!({"jwtRules": [{"issuer": "i", "jwksUri": "https://i/k", "audiences": null}]}),
            "spec.jwtRules[0].audiences",
        ),
        (
            "RateLimitPolicy",
            {
                let mut limit = limit();
                limit["matches"] = serde_json::Value::Null;
                serde_json::json!({"targetRefs": targets(), "limits": [limit]})
            },
            "spec.limits[0].matches",
        ),
        (
            "FaultPolicy",
            serde_json::json!({"targetRefs": targets(), "rules": [{"delay": "1s", "matches": null}]}),
            "spec.rules[0].matches",
        ),
        ("WasmPlugin", serde_json::json!({"url": "file:///a", "match": null}), "spec.match"),
    ];
    for (kind, mut spec, path) in rows {
        let parse = |spec: &serde_json::Value| {
            Resource::from_json(serde_json::json!({
                "apiVersion": "leno.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": spec,
            }))
        };
        let problems = parse(&spec).expect_err(path).problems;
        assert!(
            problems.iter().any(|p| p.path == path && p.message.starts_with("is null")),
            "{path}: {problems:?}"
        );
        remove_nulls(&mut spec);
        assert!(parse(&spec).is_ok(), "{kind} {spec}");
    }
    let config = serde_json::json!({"url": "file:///a", "pluginConfig": {"a": null}});
    let plugin = serde_json::json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "WasmPlugin", "metadata": {"name": "a"}, "spec": config,
    });
    assert!(Resource::from_json(plugin).is_ok());
}

fn remove_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

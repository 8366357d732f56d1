use serde_json::json;

use super::*;
use crate::{Invalid, Resource, analyze};

fn target() -> Value {
    json!([{"kind": "Service", "name": "products"}])
}

/// A policy for `targets` (those of [`target`] where nothing is said) with these fields beside.
fn object(name: &str, fields: &Value) -> Value {
    let mut spec = json!({"targetRefs": target()});
    for (field, value) in fields.as_object().unwrap() {
        spec[field.as_str()] = value.clone();
    }
    json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "CachePolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    })
}

fn policy(fields: &Value) -> Result<CachePolicy, Invalid> {
    match Resource::from_json(object("p", fields))?.model {
        Model::CachePolicy(policy) => Ok((*policy).clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_left_out_has_safe_defaults() {
    let expected = CachePolicy {
        name: ObjectName::new("shop", "p"),
        created: String::new(),
        targets: vec![CacheTarget::Service(Target {
            service: ObjectName::new("shop", "products"),
            section: None,
        })],
        enabled: true,
        max_bytes: 64 << 20,
        max_object_bytes: 1 << 20,
        default_ttl: None,
        negative_ttl: None,
        force_ttl: None,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        get: true,
        head: true,
        statuses: None,
        key: CacheKey::default(),
        tags_header: None,
        collapse_wait: Duration::from_secs(5),
        redis: None,
    };
    assert_eq!(policy(&json!({})).unwrap(), expected);
    let empty = json!({"key": {}, "collapse": {}});
    assert_eq!(policy(&empty).unwrap(), expected);
}

#[test]
fn reads_every_field() {
    let read = policy(&json!({
        "targetRefs": [
            {"group": "core", "kind": "Service", "name": "products", "sectionName": "http"},
            {"group": GATEWAY_GROUP, "kind": "HTTPRoute", "name": "catalogue"},
            {"group": GATEWAY_GROUP, "kind": "HTTPRoute", "name": "catalogue", "sectionName": "search"},
        ],
        "enabled": false,
        "maxBytes": "1Gi",
        "maxObjectBytes": 65536,
        "defaultTtl": "30s",
        "negativeTtl": "5s",
        "forceTtl": "10m",
        "staleWhileRevalidate": "10s",
        "staleIfError": "8760h",
        "methods": ["GET"],
        "statuses": [404, 200, 200],
        "key": {
            "headers": ["X-Tenant", "accept-language"],
            "cookies": ["lang", "Lang"],
            "query": {"include": ["page", "id", "id"]},
        },
        "tagsHeader": "X-Tags",
        "collapse": {"wait": "0s"},
        "redis": {
            "address": "redis.shop:6379", "tls": true, "username": "leno",
            "passwordFile": "/etc/leno/redis", "timeout": "20ms",
        },
    }));
    let route = ObjectName::new("shop", "catalogue");
    let (service, section) = (ObjectName::new("shop", "products"), Some("http".to_owned()));
    let seconds = Duration::from_secs;
    let expected = CachePolicy {
        name: ObjectName::new("shop", "p"),
        created: String::new(),
        targets: vec![
            CacheTarget::Service(Target { service, section }),
            CacheTarget::Route { route: route.clone(), rule: None },
            CacheTarget::Route { route, rule: Some("search".to_owned()) },
        ],
        enabled: false,
        max_bytes: 1 << 30,
        max_object_bytes: 65_536,
        default_ttl: Some(seconds(30)),
        negative_ttl: Some(seconds(5)),
        force_ttl: Some(seconds(600)),
        stale_while_revalidate: seconds(10),
        stale_if_error: seconds(365 * 24 * 3600),
        get: true,
        head: false,
        statuses: Some(vec![200, 404]),
        key: CacheKey {
            headers: ["x-tenant", "accept-language"].map(HeaderName::from_static).into(),
            cookies: vec!["lang".to_owned(), "Lang".to_owned()],
            query: QueryKey::Only(vec!["id".to_owned(), "page".to_owned()]),
        },
        tags_header: Some(HeaderName::from_static("x-tags")),
        collapse_wait: Duration::ZERO,
        redis: Some(Redis {
            address: "redis.shop:6379".to_owned(),
            tls: true,
            username: Some("leno".to_owned()),
            password_file: Some("/etc/leno/redis".into()),
            timeout: Duration::from_millis(20),
        }),
    };
    assert_eq!(read.unwrap(), expected);
}

#[test]
fn the_largest_response_follows_the_whole() {
    let largest = |fields| policy(&fields).map(|policy| policy.max_object_bytes);
    assert_eq!(largest(json!({"maxBytes": "1Mi"})), Ok(128 << 10));
    assert_eq!(largest(json!({"maxBytes": "8Mi"})), Ok(1 << 20));
    assert_eq!(largest(json!({"maxBytes": "64Gi"})), Ok(1 << 20));
    assert_eq!(largest(json!({"maxBytes": "64Gi", "maxObjectBytes": "8Gi"})), Ok(8 << 30));
    assert_eq!(largest(json!({"maxObjectBytes": "8Mi"})), Ok(8 << 20));
    assert_eq!(largest(json!({"maxObjectBytes": "1Ki"})), Ok(1 << 10));
}

#[test]
fn of_the_query_all_some_or_nothing_counts() {
    let key = |query| policy(&json!({"key": {"query": query}})).map(|policy| policy.key.query);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(key(json!({"include": []})), Ok(QueryKey::Only(Vec::new())));
    assert_eq!(key(json!({"exclude": ["b", "a"]})), Ok(QueryKey::Except(names(&["a", "b"]))));
    assert_eq!(
        key(json!({"include": ["a%20b", "c[]"]})),
        Ok(QueryKey::Only(names(&["a%20b", "c[]"])))
    );
}

#[test]
fn redis_has_a_host_and_a_port() {
    let address = |address: &str| policy(&json!({"redis": {"address": address}}));
    for good in ["redis:6379", "redis.shop:1", "10.0.0.1:65535", "[::1]:6379"] {
        let redis = address(good).unwrap().redis.unwrap();
        assert_eq!((redis.address.as_str(), redis.tls), (good, false));
        assert_eq!((redis.username, redis.password_file), (None, None));
        assert_eq!(redis.timeout, Duration::from_millis(50));
    }
    let bad = [
        "",
        ":6379",
        "redis",
        "redis:",
        "redis:0",
        "redis:65536",
        "redis:+1",
        "::1:6379",
        "redis://redis:6379",
        "user@redis:6379",
        "[redis]:6379",
        "[10.0.0.1]:1",
        "a b:1",
        "redis:6379/0",
        "redis\n:6379",
    ];
    for bad in bad {
        let problem = address(bad).unwrap_err().problems.remove(0);
        assert_eq!(problem.path, "spec.redis.address", "{bad}");
        assert!(problem.message.contains("write host:port") && !problem.message.contains('\n'));
    }
}

#[test]
fn refuses_what_means_nothing() {
    let targets = |target: Value| json!({"targetRefs": [target]});
    let key = |field: &str, value: Value| json!({"key": {field: value}});
    let query = |value: Value| json!({"key": {"query": value}});
    let redis =
        |field: &str, value: Value| json!({"redis": {"address": "redis:6379", field: value}});
    let year = "must be 1s to 8760h";
    let rows = [
        (json!({"targetRefs": []}), "spec.targetRefs", "1 to 16"),
        (json!({"targetRefs": vec![target()[0].clone(); 17]}), "spec.targetRefs", "1 to 16"),
        (json!({"targetRefs": null}), "spec.targetRefs", "invalid type"),
        (
            targets(json!({"kind": "HTTPRoute", "name": "a"})),
            "spec.targetRefs[0].group",
            "must be gateway.networking.k8s.io for an HTTPRoute",
        ),
        (
            targets(json!({"group": GATEWAY_GROUP, "kind": "GRPCRoute", "name": "a"})),
            "spec.targetRefs[0].kind",
            "must be a Service (group \"\" or leno.dev) or an HTTPRoute (group gateway",
        ),
        (
            targets(json!({"group": GATEWAY_GROUP, "kind": "Service", "name": "a"})),
            "spec.targetRefs[0].kind",
            "must be a Service (group \"\"",
        ),
        (targets(json!({"kind": "Service", "name": "A"})), "spec.targetRefs[0].name", "lower-case"),
        (
            targets(json!({"kind": "Service", "name": "a", "namespace": "b"})),
            "spec.targetRefs[0].namespace",
            "unknown field",
        ),
        (json!({"enabled": "no"}), "spec.enabled", "invalid type"),
        (json!({"maxBytes": 1_048_575}), "spec.maxBytes", "must be 1Mi to 64Gi bytes"),
        (json!({"maxBytes": "65Gi"}), "spec.maxBytes", "must be 1Mi to 64Gi bytes"),
        (json!({"maxBytes": -1}), "spec.maxBytes", "must be 1Mi to 64Gi bytes"),
        (json!({"maxBytes": "64MB"}), "spec.maxBytes", "is not a number of bytes"),
        (json!({"maxBytes": 1.5}), "spec.maxBytes", "expected a number of bytes"),
        (json!({"maxObjectBytes": "1023"}), "spec.maxObjectBytes", "must be 1Ki to 8Gi bytes"),
        (
            json!({"maxBytes": "8Mi", "maxObjectBytes": "1025Ki"}),
            "spec.maxObjectBytes",
            "must be at most an eighth of maxBytes, which is 1Mi",
        ),
        (json!({"maxObjectBytes": "9Mi"}), "spec.maxObjectBytes", "which is 8Mi"),
        (json!({"defaultTtl": "0s"}), "spec.defaultTtl", year),
        (json!({"defaultTtl": 30}), "spec.defaultTtl", "invalid type"),
        (json!({"negativeTtl": "999ms"}), "spec.negativeTtl", year),
        (json!({"forceTtl": "8760h1ms"}), "spec.forceTtl", year),
        (json!({"forceTtl": "1d"}), "spec.forceTtl", "is not a duration"),
        (json!({"staleWhileRevalidate": "8761h"}), "spec.staleWhileRevalidate", "0s to 8760h"),
        (json!({"staleIfError": "-1s"}), "spec.staleIfError", "is not a duration"),
        (json!({"methods": []}), "spec.methods", "write `enabled: false`"),
        (json!({"methods": ["GET", "GET"]}), "spec.methods", "names a method twice"),
        (json!({"methods": ["HEAD"]}), "spec.methods", "keeps nothing"),
        (json!({"methods": ["POST"]}), "spec.methods[0]", "unknown variant `POST`"),
        (json!({"statuses": []}), "spec.statuses", "1 to 64"),
        (json!({"statuses": [200, 199]}), "spec.statuses[1]", "200 to 599"),
        (json!({"statuses": [600]}), "spec.statuses[0]", "200 to 599"),
        (json!({"statuses": [200, 206]}), "spec.statuses[1]", "206 is no whole response"),
        (json!({"statuses": [304]}), "spec.statuses[0]", "304 is no whole response"),
        (key("headers", json!(vec!["a"; 17])), "spec.key.headers", "0 to 16"),
        (key("headers", json!(["a b"])), "spec.key.headers[0]", "is not a header name"),
        (key("headers", json!(["a", "A"])), "spec.key.headers[1]", "`a` stands twice"),
        (key("headers", json!(["Cookie"])), "spec.key.headers[0]", "in key.cookies"),
        (key("headers", json!(["range"])), "spec.key.headers[0]", "cannot be a part of the key"),
        (key("cookies", json!(["a=b"])), "spec.key.cookies[0]", "is not a name of a cookie"),
        (key("cookies", json!(["a", "a"])), "spec.key.cookies[1]", "`a` stands twice"),
        (key("cookies", json!(vec!["a"; 17])), "spec.key.cookies", "0 to 16"),
        (key("host", json!([])), "spec.key.host", "unknown field"),
        (query(json!({})), "spec.key.query", "exactly one of include, exclude"),
        (query(json!({"include": [], "exclude": ["a"]})), "spec.key.query", "exactly one"),
        (query(json!({"exclude": []})), "spec.key.query.exclude", "1 to 64"),
        (query(json!({"include": vec!["a"; 65]})), "spec.key.query.include", "0 to 64"),
        (query(json!({"include": ["a=b"]})), "spec.key.query.include[0]", "not a name of a para"),
        (query(json!({"exclude": ["a", ""]})), "spec.key.query.exclude[1]", "1 to 256 characters"),
        (query(json!({"exclude": ["a b"]})), "spec.key.query.exclude[0]", "as they stand in the"),
        (json!({"tagsHeader": "a,b"}), "spec.tagsHeader", "is not a header name"),
        (json!({"collapse": {"wait": "61s"}}), "spec.collapse.wait", "must be 0s to 1m"),
        (json!({"redis": {}}), "spec.redis", "missing field `address`"),
        (redis("username", json!("leno")), "spec.redis.username", "needs passwordFile"),
        (redis("username", json!("a b")), "spec.redis.username", "without spaces"),
        (redis("passwordFile", json!("redis")), "spec.redis.passwordFile", "absolute path"),
        (redis("password", json!("secret")), "spec.redis.password", "unknown field"),
        (redis("timeout", json!("1001ms")), "spec.redis.timeout", "must be 1ms to 1s"),
        (json!({"ttl": "1s"}), "spec.ttl", "unknown field `ttl`"),
    ];
    for (fields, path, message) in rows {
        let problems = policy(&fields).expect_err(&fields.to_string()).problems;
        let hit = problems
            .iter()
            .any(|problem| problem.path == path && problem.message.contains(message));
        assert!(hit, "{fields}: {problems:#?}");
    }
}

fn findings(objects: Vec<Value>) -> Vec<String> {
    let service = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "products", "namespace": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80}, {"name": "db", "port": 1, "protocol": "tcp"}]},
    });
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "catalogue", "namespace": "shop"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "products"}],
            "rules": [{"name": "search", "backendRefs": [{"name": "products", "port": 80}]}],
        },
    });
    let mut grpc = route.clone();
    grpc["kind"] = json!("GRPCRoute");
    grpc["metadata"]["name"] = json!("calls");
    let all = objects.into_iter().chain([service, route, grpc]);
    let resources: Vec<_> = all.map(|object| Resource::from_json(object).unwrap()).collect();
    let found = analyze::findings(&resources);
    let found = found
        .into_iter()
        .map(|finding| format!("{} {}: {}", finding.key, finding.path, finding.message));
    found.collect()
}

#[test]
fn targets_that_are_not_there_are_named() {
    let route = |name: &str, section: Value| json!({"group": GATEWAY_GROUP, "kind": "HTTPRoute", "name": name, "sectionName": section});
    let service = |name: &str, section: Value| json!({"kind": "Service", "name": name, "sectionName": section});
    let rows = [
        (service("products", json!("http")), None),
        (route("catalogue", json!("search")), None),
        (route("catalogue", Value::Null), None),
        (service("nobody", Value::Null), Some("there is no Service shop/nobody")),
        (
            service("products", json!("grpc")),
            Some("Service shop/products has no port named `grpc`"),
        ),
        (route("nowhere", Value::Null), Some("there is no HTTPRoute shop/nowhere")),
        (route("calls", Value::Null), Some("there is no HTTPRoute shop/calls")),
        (route("catalogue", json!("0")), Some("HTTPRoute shop/catalogue has no rule named `0`")),
    ];
    for (target, expected) in rows {
        let found = findings(vec![object("p", &json!({"targetRefs": [target]}))]);
        let expected = expected.map(|what| {
            format!("CachePolicy shop/p spec.targetRefs[0]: {what}; the policy has no effect")
        });
        assert_eq!(found, Vec::from_iter(expected));
    }
    let found =
        findings(vec![object("p", &json!({"targetRefs": [service("products", json!("db"))]}))]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("spec.targetRefs: is about requests, and port `db`"), "{found:?}");
}

#[test]
fn each_target_has_one_policy() {
    let route = |section: Value| json!({"group": GATEWAY_GROUP, "kind": "HTTPRoute", "name": "catalogue", "sectionName": section});
    let service = target()[0].clone();
    // What the older and the younger are for, and how many of its targets the younger loses.
    let rows = [
        (json!([service]), json!([service]), 1),
        (json!([service]), json!([route(Value::Null)]), 0),
        (json!([route(Value::Null)]), json!([route(json!("search"))]), 0),
        (json!([service, route(json!("search"))]), json!([route(json!("search")), service]), 2),
    ];
    for (older, younger, lost) in rows {
        let dated = |name: &str, targets: &Value, date: &str| {
            let mut object = object(name, &json!({"targetRefs": targets}));
            object["metadata"]["creationTimestamp"] = json!(date);
            object
        };
        let objects = vec![
            dated("a-younger", &younger, "2026-01-02T00:00:00Z"),
            dated("older", &older, "2026-01-01T00:00:00Z"),
        ];
        let found = findings(objects);
        assert_eq!(found.len(), lost, "{found:?}");
        let message =
            "CachePolicy shop/older is older and already applies there, so this one does not";
        for finding in found {
            assert!(
                finding.starts_with("CachePolicy shop/a-younger spec.targetRefs["),
                "{finding}"
            );
            assert!(finding.ends_with(message), "{finding}");
        }
    }
}

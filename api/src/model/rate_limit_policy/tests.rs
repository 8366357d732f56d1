use serde_json::json;

use super::*;
use crate::{Invalid, Resource};

fn read_limits(limits: Value) -> Result<RateLimitPolicy, Invalid> {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "RateLimitPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "orders"}], "limits": limits},
    });
    match Resource::from_json(object)?.model {
        Model::RateLimitPolicy(policy) => Ok((*policy).clone()),
        other => panic!("{other:?}"),
    }
}

/// The least a limit has to say, and one field more.
fn with(field: &str, value: Value) -> Value {
    let mut limit = json!({"name": "all", "requests": 10, "per": "1s"});
    limit[field] = value;
    json!([limit])
}

#[test]
fn a_plain_limit_is_local_and_for_everybody() {
    let policy = read_limits(json!([{"name": "all", "requests": 10, "per": "1m"}])).unwrap();
    let [limit] = &policy.limits[..] else { panic!("{policy:?}") };
    assert_eq!((&*limit.name, limit.requests, limit.burst), ("all", 10, 10));
    assert_eq!((limit.per, limit.status), (Duration::from_secs(60), 429));
    assert_eq!((&limit.by[..], limit.scope), (&[][..], LimitScope::Local));
    assert!(limit.applies(&Method::PUT, "/", &HeaderMap::new()));
    assert_eq!(policy.targets[0].service, ObjectName::new("shop", "orders"));
}

#[test]
fn reads_every_field() {
    let policy = read_limits(json!([{
        "name": "orders", "requests": 10_000_000, "per": "24h", "burst": 1,
        "by": [{"caller": {}}, {"header": {"name": "X-Api-Key"}}, {"sourceIp": {}}, {"path": {}}],
        "matches": [{"path": {"type": "Exact", "value": "/orders"}, "method": "POST"}, {"method": "DELETE"}],
        "scope": "Global", "status": 503,
    }]));
    let policy = policy.unwrap();
    let limit = &policy.limits[0];
    let header = LimitKey::Header(HeaderName::from_static("x-api-key"));
    assert_eq!(limit.by, [LimitKey::Caller, header, LimitKey::SourceIp, LimitKey::Path]);
    assert_eq!((limit.requests, limit.burst), (10_000_000, 1));
    assert_eq!((limit.scope, limit.status), (LimitScope::Global, 503));
    let applies = |method: Method, path: &str| limit.applies(&method, path, &HeaderMap::new());
    assert!(applies(Method::POST, "/orders") && applies(Method::DELETE, "/"));
    assert!(!applies(Method::GET, "/orders") && !applies(Method::POST, "/orders/1"));
}

#[test]
fn refuses_what_is_no_limit() {
    let one = json!({"name": "a", "requests": 1, "per": "1s"});
    let requests = "must be 1 to 10000000";
    let rows = [
        (json!([]), "spec.limits", "1 to 32"),
        (json!(vec![one.clone(); 33]), "spec.limits", "1 to 32"),
        (json!([one, one]), "spec.limits[1].name", "`a` is used twice"),
        (with("name", json!("")), "spec.limits[0].name", "lower-case"),
        (with("name", json!("a b")), "spec.limits[0].name", "lower-case"),
        (with("requests", json!(0)), "spec.limits[0].requests", requests),
        (with("requests", json!(-1)), "spec.limits[0].requests", requests),
        (with("requests", json!(10_000_001)), "spec.limits[0].requests", requests),
        (with("burst", json!(0)), "spec.limits[0].burst", requests),
        (with("burst", json!(i64::MAX)), "spec.limits[0].burst", requests),
        (with("per", json!("0s")), "spec.limits[0].per", "must be 100ms to 24h"),
        (with("per", json!("25h")), "spec.limits[0].per", "must be 100ms to 24h"),
        (with("per", json!("second")), "spec.limits[0].per", "is not a duration"),
        (with("status", json!(200)), "spec.limits[0].status", "400 to 599"),
        (with("status", json!(600)), "spec.limits[0].status", "400 to 599"),
        (with("scope", json!("Mesh")), "spec.limits[0].scope", "unknown variant `Mesh`"),
        (with("by", json!([])), "spec.limits[0].by", "1 to 4"),
        (
            with("by", json!([{}])),
            "spec.limits[0].by[0]",
            "exactly one of caller, header, sourceIp",
        ),
        (with("by", json!([{"caller": {}, "path": {}}])), "spec.limits[0].by[0]", "exactly one"),
        (
            with("by", json!([{"header": {"name": "X"}}, {"header": {"name": "x"}}])),
            "spec.limits[0].by[1]",
            "stands twice",
        ),
        (
            with("by", json!([{"header": {"name": "a:b"}}])),
            "spec.limits[0].by[0].header.name",
            "is not a header name",
        ),
        (with("matches", json!([])), "spec.limits[0].matches", "1 to 32"),
        (with("unit", json!("s")), "spec.limits[0].unit", "unknown field"),
    ];
    for (limits, path, message) in rows {
        let problems = read_limits(limits.clone()).expect_err(path).problems;
        let hit = problems
            .iter()
            .any(|problem| problem.path == path && problem.message.contains(message));
        assert!(hit, "{limits}: {problems:#?}");
    }
}

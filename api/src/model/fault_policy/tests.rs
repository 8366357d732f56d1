use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Invalid, Resource};

fn read_rules(rules: Value) -> Result<FaultPolicy, Invalid> {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "FaultPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "orders"}], "rules": rules},
    });
    match Resource::from_json(object)?.model {
        Model::FaultPolicy(policy) => Ok((*policy).clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_rule_that_matches_is_meant() {
    let policy = read_rules(json!([
        {"matches": [{"headers": [{"name": "x-chaos", "exact": "slow"}]}], "delay": "2s"},
        {
            "matches": [{"headers": [{"name": "x-chaos", "present": {}}]}, {"path": {"value": "/chaos"}, "method": "GET"}],
            "percent": 12.5, "abort": {"status": 503},
        },
        {"percent": 0.01, "delay": "10ms", "abort": {"grpcStatus": 14}},
    ]));
    let policy = policy.unwrap();
    let rule = |method: Method, path: &str, chaos: Option<&'static str>| {
        let value = chaos.map(http::HeaderValue::from_static);
        let headers = value.map(|value| (http::HeaderName::from_static("x-chaos"), value));
        let found = policy.rule(&method, path, &headers.into_iter().collect()).unwrap();
        (found.share.percent(), found.delay, found.abort)
    };
    let slow = (100.0, Some(Duration::from_secs(2)), None);
    let failing = (12.5, None, Some(Abort::Status(503)));
    let rare = (0.01, Some(Duration::from_millis(10)), Some(Abort::Grpc(14)));
    assert_eq!(rule(Method::GET, "/chaos", Some("slow")), slow);
    assert_eq!(rule(Method::PUT, "/", Some("")), failing);
    assert_eq!(rule(Method::GET, "/chaos/1", None), failing);
    assert_eq!(rule(Method::PUT, "/chaos/1", None), rare);
}

#[test]
fn without_a_rule_that_matches_nothing_fails() {
    let policy = read_rules(json!([{"matches": [{"method": "GET"}], "delay": "1s"}])).unwrap();
    assert!(policy.rule(&Method::PUT, "/", &HeaderMap::new()).is_none());
}

#[test]
fn refuses_what_is_no_fault() {
    let rule = |field: &str, value: Value| json!([{"delay": "1s", field: value}]);
    let abort = |value: Value| json!([{"abort": value}]);
    let matches = |value: Value| json!([{"delay": "1s", "matches": [value]}]);
    let percent = "must be 0 to 100, with at most four decimals";
    let rows = [
        (json!([]), "spec.rules", "1 to 32"),
        (json!(vec![json!({"delay": "1s"}); 33]), "spec.rules", "1 to 32"),
        (json!([{}]), "spec.rules[0]", "needs delay, abort or both"),
        (rule("percent", json!(-0.1)), "spec.rules[0].percent", percent),
        (rule("percent", json!(100.0001)), "spec.rules[0].percent", percent),
        (rule("percent", json!(0.00001)), "spec.rules[0].percent", percent),
        (rule("percent", json!(1e300)), "spec.rules[0].percent", percent),
        (rule("percent", json!("5")), "spec.rules[0].percent", "invalid type"),
        (rule("delay", json!("0s")), "spec.rules[0].delay", "must be 1ms to 1h"),
        (rule("delay", json!("61m")), "spec.rules[0].delay", "must be 1ms to 1h"),
        (rule("matches", json!([])), "spec.rules[0].matches", "1 to 32"),
        (rule("match", json!([])), "spec.rules[0].match", "unknown field"),
        (abort(json!({})), "spec.rules[0].abort", "exactly one of status, grpcStatus"),
        (abort(json!({"status": 500, "grpcStatus": 1})), "spec.rules[0].abort", "exactly one"),
        (abort(json!({"status": 101})), "spec.rules[0].abort.status", "200 to 599"),
        (abort(json!({"status": 600})), "spec.rules[0].abort.status", "200 to 599"),
        (abort(json!({"grpcStatus": 0})), "spec.rules[0].abort.grpcStatus", "1 to 16"),
        (abort(json!({"grpcStatus": 17})), "spec.rules[0].abort.grpcStatus", "1 to 16"),
        (matches(json!({"method": "get"})), "spec.rules[0].matches[0].method", "capitals"),
        (
            matches(json!({"path": {"value": "a"}})),
            "spec.rules[0].matches[0].path.value",
            "must be a path",
        ),
        (
            matches(json!({"headers": [{"name": "x"}]})),
            "spec.rules[0].matches[0].headers[0]",
            "exactly one of exact, present",
        ),
        (
            matches(json!({"headers": [{"name": "", "present": {}}]})),
            "spec.rules[0].matches[0].headers[0].name",
            "is not a header name",
        ),
        (
            matches(json!({"headers": vec![json!({"name": "x", "present": {}}); 17]})),
            "spec.rules[0].matches[0].headers",
            "0 to 16",
        ),
    ];
    for (rules, path, message) in rows {
        let problems = read_rules(rules.clone()).expect_err(path).problems;
        let hit = problems
            .iter()
            .any(|problem| problem.path == path && problem.message.contains(message));
        assert!(hit, "{rules}: {problems:#?}");
    }
}

#[test]
fn none_and_all_are_exact() {
    let share = |percent: f64| Share::parse(percent).unwrap();
    for random in [0, 1, 999_999, 1_000_000, u64::MAX] {
        assert!(share(100.0).takes(random) && Share::ALL.takes(random));
        assert!(!share(0.0).takes(random));
    }
    assert_eq!(share(100.0), Share::ALL);
    assert_eq!(format!("{:?}", share(33.3333)), "33.3333 %");
    assert_eq!(Share::parse(f64::NAN), None);
}

proptest! {
    #[test]
    fn a_share_takes_as_many_as_it_says(millionths in 0..=1_000_000_u32) {
        let share = Share::parse(f64::from(millionths) / 10_000.0).unwrap();
        prop_assert_eq!(share, Share { millionths });
        // Each remainder comes once.
        prop_assert_eq!(share.takes(u64::from(millionths)), false);
        prop_assert_eq!(share.takes(u64::from(millionths.saturating_sub(1))), millionths > 0);
    }
}

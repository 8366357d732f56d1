use serde_json::json;

use super::*;

fn states(findings: &[Finding]) -> Vec<State> {
    findings.iter().map(|finding| finding.state).collect()
}

#[test]
fn old_clusters_are_refused() {
    let version = |major: &str, minor: &str| {
        cluster(&json!({"serverVersion": {"major": major, "minor": minor}})).state
    };
    assert_eq!(version("1", "30"), State::Ok);
    assert_eq!(version("1", "32+"), State::Ok);
    assert_eq!(version("2", "0"), State::Ok);
    assert_eq!(version("1", "29"), State::Wrong);
    assert_eq!(cluster(&json!({"clientVersion": {}})).state, State::Wrong, "no server answered");
}

#[test]
fn rights_that_are_missing_are_named() {
    let findings = [Ok(true), Ok(false), Err("no".to_owned())].map(|may| right(RIGHTS[1], may));
    assert_eq!(states(&findings), [State::Ok, State::Wrong, State::Wrong]);
    assert_eq!(findings[1].what, "right to make customresourcedefinitions");
}

#[test]
fn gateway_api_is_wanted_not_needed() {
    let version = |name: &str, served: bool| json!({"spec": {"versions": [{"name": name, "served": served}]}});
    assert_eq!(routes(&Ok(Value::Null)).state, State::Warning);
    assert_eq!(routes(&Ok(version("v1", true))).state, State::Ok);
    assert_eq!(routes(&Ok(version("v1", false))).state, State::Wrong);
    assert_eq!(routes(&Ok(version("v1beta1", true))).state, State::Wrong);
}

#[test]
fn a_control_plane_is_judged_by_its_replicas() {
    let of = |wanted: u64, available: u64| {
        control_plane(
            &json!({"spec": {"replicas": wanted}, "status": {"availableReplicas": available}}),
        )
        .state
    };
    assert_eq!(control_plane(&Value::Null).hint, Some(NOT_INSTALLED));
    assert_eq!((of(1, 0), of(3, 2), of(3, 3)), (State::Wrong, State::Warning, State::Ok));
    assert_eq!(control_plane(&json!({"spec": {}})).state, State::Wrong);
}

#[test]
fn definitions_must_be_served() {
    let item = |definition: Value, status: &str| json!({"metadata": definition["metadata"], "status": {"conditions": [{"type": "Established", "status": status}]}});
    let mut items: Vec<_> =
        crds::own().into_iter().map(|definition| item(definition, "True")).collect();
    assert_eq!(definitions(&Ok(json!({"items": items}))).state, State::Ok);
    items[0]["status"]["conditions"][0]["status"] = "False".into();
    let finding = definitions(&Ok(json!({"items": items})));
    assert_eq!(finding.state, State::Wrong);
    assert_eq!(finding.because, "not served: services.leno.dev");
}

#[test]
fn a_webhook_must_know_whom_to_trust() {
    let of = |bundle: Value| {
        webhook("w", &Ok(json!({"webhooks": [{"clientConfig": {"caBundle": bundle}}]}))).state
    };
    assert_eq!(
        (of("LS0t".into()), of("".into()), of(Value::Null)),
        (State::Ok, State::Wrong, State::Wrong)
    );
    assert_eq!(webhook("w", &Ok(Value::Null)).hint, Some(NOT_INSTALLED));
}

#[test]
fn pods_without_a_sidecar_are_counted() {
    let list = json!({"items": [
        {"spec": {"initContainers": [{"name": "leno-proxy"}], "containers": [{"name": "a"}]}},
        {"spec": {"containers": [{"name": "leno-proxy"}, {"name": "a"}]}},
        {"spec": {"containers": [{"name": "a"}]}},
    ]});
    let finding = pods("shop", &Ok(list));
    assert_eq!(
        (finding.state, finding.because.as_str()),
        (State::Warning, "2 of 3 have a sidecar")
    );
    let roots = Ok(json!({"items": [{"metadata": {"namespace": "shop"}}]}));
    assert_eq!(has_roots("shop", &roots), None);
    assert_eq!(has_roots("other", &roots).unwrap().state, State::Wrong);
}

use serde_json::json;

use super::*;
use crate::{Resource, model::Model};

fn workload() -> Workload {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": "orders-1", "namespace": "shop", "labels": {"app": "orders", "version": "v1"}},
        "spec": {
            "services": ["orders", "orders-admin"],
            "address": "127.0.0.1",
            "ports": {"http": 9001, "admin": 9002},
        },
    });
    match Resource::from_json(object).unwrap().model {
        Model::Workload(workload) => (*workload).clone(),
        other => panic!("{other:?}"),
    }
}

fn labels(pairs: &[(&str, &str)]) -> Applies {
    Applies::Labels(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

fn service(namespace: &str, name: &str, section: Option<&str>) -> Applies {
    let section = section.map(str::to_owned);
    Applies::Services(vec![Target { service: ObjectName::new(namespace, name), section }])
}

#[test]
fn covers_by_namespace_and_labels() {
    let rows = [
        (Applies::Namespace, "shop", true),
        (Applies::Namespace, "other", false),
        (Applies::Namespace, SYSTEM_NAMESPACE, true),
        (labels(&[("app", "orders")]), "shop", true),
        (labels(&[("app", "orders"), ("version", "v1")]), "shop", true),
        (labels(&[("app", "orders"), ("version", "v2")]), "shop", false),
        (labels(&[("zone", "a")]), "shop", false),
        (labels(&[("app", "orders")]), "other", false),
        (labels(&[("app", "orders")]), SYSTEM_NAMESPACE, true),
        (labels(&[("app", "users")]), SYSTEM_NAMESPACE, false),
    ];
    let orders = ObjectName::new("shop", "orders");
    for (applies, namespace, covers) in rows {
        for port in [None, Some((&orders, "http"))] {
            assert_eq!(applies.covers(namespace, &workload(), port), covers, "{applies:?}");
            assert_eq!(applies.covers_port(namespace, &workload(), port, 9001), covers);
        }
    }
}

#[test]
fn covers_services_as_far_as_they_are_reached_as_such() {
    let (orders, admin) =
        (ObjectName::new("shop", "orders"), ObjectName::new("shop", "orders-admin"));
    let rows = [
        (service("shop", "orders", None), None, true),
        (service("shop", "orders", None), Some((&orders, "http")), true),
        (service("shop", "orders", None), Some((&admin, "http")), false),
        (service("shop", "orders", Some("http")), Some((&orders, "http")), true),
        (service("shop", "orders", Some("http")), Some((&orders, "admin")), false),
        (service("shop", "orders", Some("admin")), None, true),
        (service("shop", "users", None), None, false),
        (service("other", "orders", None), None, false),
    ];
    for (applies, port, covers) in rows {
        assert_eq!(applies.covers("shop", &workload(), port), covers, "{applies:?} {port:?}");
    }
}

#[test]
fn a_named_port_is_found_behind_an_unknown_service() {
    let admin = service("shop", "orders", Some("admin"));
    assert!(admin.covers_port("shop", &workload(), None, 9002));
    assert!(!admin.covers_port("shop", &workload(), None, 9001));
    assert!(service("shop", "orders", None).covers_port("shop", &workload(), None, 9001));
}

#[test]
fn workloads_come_before_namespaces_before_the_mesh() {
    assert_eq!(labels(&[("a", "b")]).rank("shop"), 0);
    assert_eq!(labels(&[("a", "b")]).rank(SYSTEM_NAMESPACE), 0);
    assert_eq!(service("shop", "orders", None).rank("shop"), 0);
    assert_eq!(Applies::Namespace.rank("shop"), 1);
    assert_eq!(Applies::Namespace.rank(SYSTEM_NAMESPACE), 2);
}

#[test]
fn reads_selectors_and_targets() {
    let parse = |spec: serde_json::Value| -> Result<Applies, String> {
        let object = json!({
            "apiVersion": "leno.dev/v1alpha1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": spec,
        });
        match Resource::from_json(object).map_err(|invalid| invalid.to_string())?.model {
            Model::PeerAuthentication(policy) => Ok(policy.applies.clone()),
            other => panic!("{other:?}"),
        }
    };
    let target = json!([{"group": "", "kind": "Service", "name": "orders", "sectionName": "http"}]);
    assert_eq!(parse(json!({})), Ok(Applies::Namespace));
    assert_eq!(parse(json!({"selector": {}})), Ok(Applies::Namespace));
    assert_eq!(parse(json!({"selector": {"matchLabels": {}}})), Ok(Applies::Namespace));
    assert_eq!(
        parse(json!({"selector": {"matchLabels": {"app": "orders"}}})),
        Ok(labels(&[("app", "orders")]))
    );
    assert_eq!(parse(json!({"targetRefs": target})), Ok(service("shop", "orders", Some("http"))));
    let refused = |spec, message: &str| {
        let error = parse(spec).unwrap_err();
        assert!(error.contains(message), "{error}");
    };
    refused(json!({"selector": {}, "targetRefs": target}), "spec.targetRefs: and selector exclude");
    refused(json!({"targetRefs": []}), "spec.targetRefs: has 0 entries");
    refused(
        json!({"selector": {"matchLabels": {"a b": "c"}}}),
        "spec.selector.matchLabels.a b: `a b` is not a label name",
    );
    refused(json!({"selector": {"matchExpressions": []}}), "unknown field `matchExpressions`");
    refused(
        json!({"targetRefs": [{"kind": "Gateway", "name": "x"}]}),
        "spec.targetRefs[0].kind: must be a Service",
    );
}

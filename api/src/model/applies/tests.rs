use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::{
    Resource,
    model::{Model, service::Service},
};

/// No service is a part of another.
fn none() -> BTreeMap<ObjectName, Arc<Service>> {
    BTreeMap::new()
}

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
            assert_eq!(
                applies.covers(namespace, &workload(), port, &none()),
                covers,
                "{applies:?}"
            );
            assert_eq!(applies.covers_port(namespace, &workload(), port, 9001, &none()), covers);
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
        assert_eq!(
            applies.covers("shop", &workload(), port, &none()),
            covers,
            "{applies:?} {port:?}"
        );
    }
}

#[test]
fn a_named_port_is_found_behind_an_unknown_service() {
    let admin = service("shop", "orders", Some("admin"));
    assert!(admin.covers_port("shop", &workload(), None, 9002, &none()));
    assert!(!admin.covers_port("shop", &workload(), None, 9001, &none()));
    assert!(service("shop", "orders", None).covers_port("shop", &workload(), None, 9001, &none()));
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

#[test]
fn a_policy_for_a_part_is_for_those_of_the_whole_that_are_in_it() {
    let part = |name: &str, of: &str, version: &str| {
        let object = json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {
                "ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}],
                "subset": {"of": of, "matchLabels": {"version": version}},
            },
        });
        match Resource::from_json(object).unwrap().model {
            Model::Service(service) => (service.name.clone(), service),
            other => panic!("{other:?}"),
        }
    };
    let services: BTreeMap<_, _> = [
        part("v1", "orders", "v1"),
        part("v2", "orders", "v2"),
        part("users-v1", "users", "v1"),
        part("v1-again", "v1", "v1"),
    ]
    .into();
    let (orders, other) = (ObjectName::new("shop", "orders"), ObjectName::new("shop", "v1"));
    let rows = [
        ("v1", None, None, 9001, true),
        ("v1", None, Some((&orders, "http")), 9001, true),
        ("v1", Some("http"), Some((&orders, "http")), 9001, true),
        ("v1", Some("admin"), Some((&orders, "http")), 9001, false),
        ("v1", Some("admin"), None, 9002, true),
        ("v1", Some("admin"), None, 9001, false),
        ("v1", None, Some((&other, "http")), 9001, false),
        ("v2", None, None, 9001, false),
        ("v2", None, Some((&orders, "http")), 9001, false),
        ("users-v1", None, None, 9001, false),
        ("v1-again", None, None, 9001, false),
    ];
    for (name, section, port, app_port, covers) in rows {
        let applies = service("shop", name, section);
        let found = applies.covers_port("shop", &workload(), port, app_port, &services);
        assert_eq!(found, covers, "{name} {section:?} {port:?} {app_port}");
    }
}

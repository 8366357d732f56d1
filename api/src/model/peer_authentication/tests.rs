use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Resource, SYSTEM_NAMESPACE, model::traffic_policy::Target};

use TlsMode::{Disable, Permissive, Strict};

/// No service is a part of another.
fn none() -> BTreeMap<ObjectName, std::sync::Arc<crate::model::service::Service>> {
    BTreeMap::new()
}

fn workload() -> Workload {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": "orders-1", "namespace": "shop", "labels": {"app": "orders"}},
        "spec": {"services": ["orders"], "address": "127.0.0.1", "ports": {"http": 9001, "admin": 9002}},
    });
    match Resource::from_json(object).unwrap().model {
        Model::Workload(workload) => (*workload).clone(),
        other => panic!("{other:?}"),
    }
}

fn orders() -> Applies {
    Applies::Labels([("app".to_owned(), "orders".to_owned())].into())
}

fn target(section: Option<&str>) -> Applies {
    let service = ObjectName::new("shop", "orders");
    Applies::Services(vec![Target { service, section: section.map(str::to_owned) }])
}

fn policy(
    name: &str,
    created: &str,
    applies: Applies,
    mode: Option<TlsMode>,
    ports: &[(u16, TlsMode)],
) -> PeerAuthentication {
    PeerAuthentication {
        name: ObjectName::parse(name).unwrap(),
        created: created.to_owned(),
        applies,
        mode,
        ports: ports.iter().copied().collect(),
    }
}

#[test]
fn strict_is_the_default() {
    assert_eq!(mode_of([], &workload(), None, 9001, &none()), Strict);
    let other = policy("other/p", "1", Applies::Namespace, Some(Disable), &[]);
    assert_eq!(mode_of([&other], &workload(), None, 9001, &none()), Strict);
}

#[test]
fn the_most_specific_policy_that_says_something_decides() {
    let mesh = format!("{SYSTEM_NAMESPACE}/mesh");
    let mesh = policy(&mesh, "1", Applies::Namespace, Some(Disable), &[]);
    let namespace = policy("shop/all", "2", Applies::Namespace, Some(Permissive), &[]);
    let unset = policy("shop/unset", "3", orders(), None, &[(9002, Disable)]);
    let chosen = policy("shop/orders", "4", orders(), Some(Strict), &[]);
    let mode = |policies: &[&PeerAuthentication], port| {
        let forward = mode_of(policies.iter().copied(), &workload(), None, port, &none());
        let backward = mode_of(policies.iter().rev().copied(), &workload(), None, port, &none());
        assert_eq!(forward, backward);
        forward
    };
    assert_eq!(mode(&[&mesh], 9001), Disable);
    assert_eq!(mode(&[&mesh, &namespace], 9001), Permissive);
    assert_eq!(mode(&[&mesh, &namespace, &chosen], 9001), Strict);
    // One without a mode leaves it to the next, but for the port it names.
    assert_eq!(mode(&[&mesh, &namespace, &unset], 9001), Permissive);
    assert_eq!(mode(&[&mesh, &namespace, &unset], 9002), Disable);
    assert_eq!(mode(&[&mesh, &namespace, &unset, &chosen], 9001), Strict);
}

#[test]
fn a_port_goes_before_the_policys_own_mode() {
    let ports = policy("shop/p", "1", orders(), Some(Strict), &[(9001, Permissive)]);
    assert_eq!(mode_of([&ports], &workload(), None, 9001, &none()), Permissive);
    assert_eq!(mode_of([&ports], &workload(), None, 9002, &none()), Strict);
    // Being specific about the port does not make up for being less specific about the workload.
    let broad = policy("shop/q", "1", Applies::Namespace, None, &[(9002, Disable)]);
    assert_eq!(mode_of([&ports, &broad], &workload(), None, 9002, &none()), Strict);
}

#[test]
fn of_equally_specific_policies_the_oldest_decides_then_the_name() {
    let old = policy("shop/z", "2026-01-01T00:00:00Z", orders(), Some(Permissive), &[]);
    let young = policy("shop/a", "2026-01-02T00:00:00Z", orders(), Some(Disable), &[]);
    let undated = policy("shop/0", "", orders(), Some(Strict), &[]);
    assert_eq!(mode_of([&young, &old, &undated], &workload(), None, 9001, &none()), Permissive);
    let twin = policy("shop/b", "2026-01-02T00:00:00Z", orders(), Some(Strict), &[]);
    assert_eq!(mode_of([&twin, &young], &workload(), None, 9001, &none()), Disable);
}

#[test]
fn one_port_of_a_service_goes_before_the_whole() {
    let whole = policy("shop/a", "1", target(None), Some(Strict), &[]);
    let admin = policy("shop/b", "2", target(Some("admin")), Some(Permissive), &[]);
    let service = ObjectName::new("shop", "orders");
    let mode = |port, app_port| mode_of([&whole, &admin], &workload(), port, app_port, &none());
    assert_eq!(mode(Some((&service, "admin")), 9002), Permissive);
    assert_eq!(mode(Some((&service, "http")), 9001), Strict);
    assert_eq!((mode(None, 9002), mode(None, 9001)), (Permissive, Strict));
}

fn read_spec(spec: Value) -> Result<PeerAuthentication, String> {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    });
    match Resource::from_json(object).map_err(|invalid| invalid.to_string())?.model {
        Model::PeerAuthentication(policy) => Ok((*policy).clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_istios_fields() {
    let policy = read_spec(json!({
        "mtls": {"mode": "STRICT"},
        "portLevelMtls": {"9001": {"mode": "DISABLE"}, "9002": {"mode": "UNSET"}, "9003": {}},
    }));
    let policy = policy.unwrap();
    assert_eq!((policy.mode, policy.ports), (Some(Strict), [(9001, Disable)].into()));
    for unset in [json!({}), json!({"mtls": {}}), json!({"mtls": {"mode": "UNSET"}})] {
        assert_eq!(read_spec(unset).unwrap().mode, None);
    }
    assert_eq!(read_spec(json!({"mtls": {"mode": "PERMISSIVE"}})).unwrap().mode, Some(Permissive));
}

#[test]
fn refuses_what_is_no_port_or_mode() {
    for port in ["0", "http", "65536", "+80", "080", ""] {
        let error = read_spec(json!({"portLevelMtls": {port: {"mode": "STRICT"}}})).unwrap_err();
        assert!(error.contains("is not a port"), "{port}: {error}");
    }
    let error = read_spec(json!({"mtls": {"mode": "strict"}})).unwrap_err();
    assert!(error.contains("spec.mtls.mode: unknown variant `strict`"), "{error}");
    let error = read_spec(json!({"portLevelMtls": {}})).unwrap_err();
    assert!(error.contains("spec.portLevelMtls: is empty"), "{error}");
    let error = read_spec(json!({"mtls": {"mod": "STRICT"}})).unwrap_err();
    assert!(error.contains("unknown field `mod`"), "{error}");
}

fn any_policy() -> impl Strategy<Value = PeerAuthentication> {
    let modes = prop::sample::select(vec![Strict, Permissive, Disable]);
    let applies = prop::sample::select(vec![
        Applies::Namespace,
        orders(),
        Applies::Labels([("app".to_owned(), "users".to_owned())].into()),
        target(None),
        target(Some("admin")),
    ]);
    let namespaces = prop::sample::select(vec!["shop", "other", SYSTEM_NAMESPACE]);
    let ports = prop::collection::btree_map(9001_u16..9003, modes.clone(), 0..2);
    (namespaces, "[a-c]", "[0-3]?", applies, prop::option::of(modes), ports).prop_map(
        |(namespace, name, created, applies, mode, ports)| PeerAuthentication {
            name: ObjectName::new(namespace, &name),
            created,
            applies,
            mode,
            ports,
        },
    )
}

proptest! {
    /// Whatever the order in which they arrive, and no policy that does not cover the port has a say.
    #[test]
    fn neither_order_nor_strangers_matter(
        policies in prop::collection::vec(any_policy(), 0..6),
        app_port in 9001_u16..9003,
    ) {
        let mut named = std::collections::BTreeMap::new();
        for policy in policies {
            named.insert(policy.name.clone(), policy);
        }
        let workload = workload();
        let mode = mode_of(named.values(), &workload, None, app_port, &none());
        prop_assert_eq!(mode_of(named.values().rev(), &workload, None, app_port, &none()), mode);
        let covering = named.values().filter(|policy| {
            policy.applies.covers_port(&policy.name.namespace, &workload, None, app_port, &none())
        });
        let said: Vec<_> = covering.filter_map(|policy| policy.says(app_port)).collect();
        prop_assert!(said.contains(&mode) || (said.is_empty() && mode == Strict));
    }
}

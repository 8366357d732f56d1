use serde_json::json;

use super::*;
use crate::kubernetes::{
    facts::{Identity, NamespaceFacts},
    mapping::Metadata,
};

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

fn service(port: u16) -> Fact {
    let body = json!({"spec": {"ports": [{"name": "http", "port": port}]}});
    Fact::Service(ServiceFacts::read(Identity::default(), &body).unwrap())
}

fn pod(address: &str) -> Fact {
    let body = json!({"status": {"podIP": address}});
    Fact::Pod(PodFacts::read(Identity::default(), false, false, &body).unwrap())
}

fn sidecar() -> Fact {
    Fact::Pod(PodFacts::read(Identity::default(), true, false, &json!({})).unwrap())
}

fn slice(service: &str, pods: &[&str]) -> Fact {
    let labels = [("kubernetes.io/service-name".to_owned(), service.to_owned())].into();
    let identity = Identity { labels, ..Identity::default() };
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| json!({"addresses": [], "targetRef": {"kind": "Pod", "name": pod}}))
        .collect();
    let body = json!({"endpoints": endpoints, "ports": [{"name": "http", "port": 9001}]});
    Fact::Slice(SliceFacts::read("shop", &identity, &body).unwrap())
}

fn written(kind: &'static str, object: Value) -> (Source, Fact) {
    let kind = KINDS.iter().find(|info| info.kind == kind).unwrap();
    let reading = mapping::custom(kind, &name("shop/orders"), &Metadata::default(), &object);
    (Source::Custom(kind), Fact::Custom(reading))
}

fn keys(changes: &[Change]) -> Vec<(String, bool)> {
    changes.iter().map(|change| (change.key.to_string(), change.object.is_some())).collect()
}

#[test]
fn a_workload_needs_its_pod_and_its_endpoint_in_either_order() {
    let one = || (Source::Pods, name("shop/a"), pod("10.0.0.1"));
    let other = || (Source::EndpointSlices, name("shop/s"), slice("orders", &["a"]));
    for facts in [[one(), other()], [other(), one()]] {
        let mut world = World::default();
        let [first, second] = facts;
        let changes = world.put(first.0, first.1, first.2);
        assert_eq!(keys(&changes), [("workloads/shop/a".to_owned(), false)]);
        let changes = world.put(second.0, second.1, second.2);
        assert_eq!(keys(&changes), [("workloads/shop/a".to_owned(), true)]);
    }
}

#[test]
fn nothing_changes_where_the_same_is_said_again() {
    let mut world = World::default();
    for again in [false, true] {
        let mut changes = world.put(Source::Services, name("shop/orders"), service(80));
        changes.extend(world.put(Source::Pods, name("shop/a"), pod("10.0.0.1")));
        changes.extend(world.put(Source::EndpointSlices, name("shop/s"), slice("orders", &["a"])));
        assert_eq!(changes.is_empty(), again);
    }
}

#[test]
fn an_endpoint_that_leaves_its_slice_takes_its_workload_along() {
    let mut world = World::default();
    world.put(Source::Pods, name("shop/a"), pod("10.0.0.1"));
    world.put(Source::Pods, name("shop/b"), pod("10.0.0.2"));
    world.put(Source::EndpointSlices, name("shop/s"), slice("orders", &["a", "b"]));
    let changes = world.put(Source::EndpointSlices, name("shop/s"), slice("orders", &["b"]));
    let expected = [("workloads/shop/a".to_owned(), false), ("workloads/shop/b".to_owned(), true)];
    assert_eq!(keys(&changes), expected);
    // Moved to another slice: it never leaves in between where the new one comes first.
    let changes = world.put(Source::EndpointSlices, name("shop/t"), slice("orders", &["b"]));
    assert_eq!(keys(&changes), [("workloads/shop/b".to_owned(), true)]);
    let changes = world.remove(Source::EndpointSlices, &name("shop/s"));
    assert_eq!(keys(&changes), [("workloads/shop/b".to_owned(), true)]);
}

#[test]
fn what_a_new_list_lacks_is_gone() {
    let mut world = World::default();
    for text in ["shop/a", "shop/b", "other/c"] {
        world.put(Source::Services, name(text), service(80));
    }
    let there = [name("shop/a")].into();
    let changes = world.retain(Source::Services, Some("shop"), &there);
    assert_eq!(keys(&changes), [("services/shop/b".to_owned(), false)]);
    assert_eq!(world.count(Source::Services), 2, "another namespace's list is another");
    let changes = world.retain(Source::Services, None, &there);
    assert_eq!(keys(&changes), [("services/other/c".to_owned(), false)]);
}

#[test]
fn what_people_wrote_comes_before_what_is_derived_and_gives_it_back() {
    let mut world = World::default();
    world.put(Source::Services, name("shop/orders"), service(80));
    let (source, fact) =
        written("Service", json!({"spec": {"ports": [{"name": "http", "port": 81}]}}));
    let port = |changes: &[Change]| {
        changes[0].object.as_ref().unwrap()["spec"]["ports"][0]["port"].clone()
    };
    assert_eq!(port(&world.put(source, name("shop/orders"), fact)), 81);
    assert_eq!(port(&world.put(Source::Services, name("shop/orders"), service(82))), 81);
    assert_eq!(port(&world.remove(source, &name("shop/orders"))), 82);
}

#[test]
fn an_invalid_object_leaves_its_last_good_version() {
    let mut world = World::default();
    let good = json!({"spec": {"ports": [{"port": 81}]}});
    let (source, fact) = written("Service", good.clone());
    assert_eq!(world.put(source, name("shop/orders"), fact).len(), 1);
    let (_, bad) = written("Service", json!({"spec": {"ports": []}}));
    assert_eq!(world.put(source, name("shop/orders"), bad), []);
    let (_, same) = written("Service", good);
    assert_eq!(world.put(source, name("shop/orders"), same), [], "it was never away");
    assert_eq!(
        keys(&world.remove(source, &name("shop/orders"))),
        [("services/shop/orders".to_owned(), false)]
    );
}

/// With more ports than a service of ours may have.
fn invalid_service() -> Fact {
    let ports: Vec<Value> =
        (1..=65).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let body = json!({"spec": {"ports": ports}});
    Fact::Service(ServiceFacts::read(Identity::default(), &body).unwrap())
}

#[test]
fn what_follows_but_is_not_valid_changes_nothing_and_is_said() {
    let mut world = World::default();
    assert_eq!(world.put(Source::Services, name("shop/orders"), service(80)).len(), 1);
    assert_eq!(world.put(Source::Services, name("shop/orders"), invalid_service()), []);
    let refusals = world.take_refusals();
    assert!(refusals[0].reason.contains("spec.ports"), "{refusals:?}");
    assert_eq!(world.take_refusals(), []);
    let changes = world.put(Source::Services, name("shop/orders"), service(81));
    assert_eq!(keys(&changes), [("services/shop/orders".to_owned(), true)], "mended");
    world.put(Source::Services, name("shop/orders"), invalid_service());
    let changes = world.remove(Source::Services, &name("shop/orders"));
    assert_eq!(keys(&changes), [("services/shop/orders".to_owned(), false)], "gone is gone");
}

#[test]
fn what_people_wrote_ends_with_them_where_nothing_valid_is_derived() {
    let mut world = World::default();
    let (source, fact) = written("Service", json!({"spec": {"ports": [{"port": 81}]}}));
    world.put(source, name("shop/orders"), fact);
    world.put(Source::Services, name("shop/orders"), invalid_service());
    let changes = world.remove(source, &name("shop/orders"));
    assert_eq!(keys(&changes), [("services/shop/orders".to_owned(), false)]);
}

#[test]
fn a_slice_of_another_namespace_changes_no_pod() {
    let mut world = World::default();
    world.put(Source::Pods, name("shop/a"), pod("10.0.0.1"));
    world.put(Source::EndpointSlices, name("shop/s"), slice("orders", &["a"]));
    let mut facts = SliceFacts { service: "orders".into(), ..SliceFacts::default() };
    let behind = Behind::Pod(name("shop/a"));
    facts.endpoints.push(EndpointFacts { behind, ready: false, zone: None });
    for change in world.put(Source::EndpointSlices, name("evil/s"), Fact::Slice(facts)) {
        let spec = &change.object.unwrap()["spec"];
        assert_eq!(spec.get("weight"), None, "it takes traffic as before");
        assert_eq!(spec["ports"], json!({"http": 9001}));
    }
}

#[test]
fn roots_are_needed_where_sidecars_are_or_will_be() {
    let mut world = World::default();
    world.put(Source::Namespaces, name_of_namespace("shop"), namespace(true, false));
    world.put(Source::Namespaces, name_of_namespace("other"), namespace(false, false));
    world.put(Source::Pods, name("third/a"), sidecar());
    world.put(Source::Pods, name("other/b"), pod("10.0.0.1"));
    let meshed: Vec<String> = world.meshed().iter().map(ToString::to_string).collect();
    assert_eq!(meshed, ["shop", "third"]);
    world.remove(Source::Pods, &name("third/a"));
    world.put(Source::Namespaces, name_of_namespace("shop"), namespace(false, false));
    assert!(world.meshed().is_empty());
}

#[test]
fn nothing_can_be_made_in_a_namespace_that_ends() {
    let mut world = World::default();
    for name in ["shop", "third"] {
        world.put(Source::Namespaces, name_of_namespace(name), namespace(true, true));
    }
    world.put(Source::Pods, name("third/a"), sidecar());
    assert!(world.meshed().is_empty());
    // Made anew under its name.
    world.put(Source::Namespaces, name_of_namespace("shop"), namespace(true, false));
    assert_eq!(world.meshed().len(), 1);
}

fn namespace(labelled: bool, ending: bool) -> Fact {
    Fact::Namespace(NamespaceFacts { labelled, ending })
}

fn name_of_namespace(name: &str) -> ObjectName {
    ObjectName::new("", name)
}

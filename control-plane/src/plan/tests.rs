//! The planner against the definition of a scope, on random histories; and each rule by itself.

use std::collections::{BTreeMap, BTreeSet};

use leno_api::Key;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{build::Links, *};

/// Everything that exists, for the definition to look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) items: BTreeMap<Key, Arc<Item>>,
    revision: u64,
}

/// A change of the world: an object written, or the one of that kind and name deleted.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Put(Value),
    Delete(Value),
}

const NAMESPACES: [&str; 2] = ["shop", "other"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const HOSTS: [&str; 4] = ["a", "x.example.com", "*.example.com", "b.other"];

fn object(api: &str, kind: &str, name: &str, spec: &Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "apiVersion": api, "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
    })
}

pub(crate) fn service(name: &str, hosts: &[&str]) -> Value {
    let spec = json!({"hosts": hosts, "ports": [{"port": 80}]});
    object("leno.dev/v1alpha1", "Service", name, &spec)
}

pub(crate) fn workload(name: &str, services: &[&str]) -> Value {
    let spec = json!({"services": services, "address": "127.0.0.1", "ports": {"http": 1}});
    object("leno.dev/v1alpha1", "Workload", name, &spec)
}

pub(crate) fn policy(name: &str, target: &str) -> Value {
    let spec = json!({"targetRefs": [{"group": "", "kind": "Service", "name": target}]});
    object("leno.dev/v1alpha1", "TrafficPolicy", name, &spec)
}

/// Parents are full names, backends are in the route's namespace, the last one gets copies only.
pub(crate) fn route(name: &str, parents: &[&str], backends: &[&str]) -> Value {
    let parent = |full: &&str| {
        let (namespace, name) = full.split_once('/').unwrap();
        json!({"group": "", "kind": "Service", "namespace": namespace, "name": name})
    };
    let parents: Vec<_> = parents.iter().map(parent).collect();
    let (mirror, shares) = backends.split_last().unwrap();
    let shares: Vec<_> = shares.iter().map(|name| json!({"name": name, "port": 80})).collect();
    let mirror = json!({
        "type": "RequestMirror", "requestMirror": {"backendRef": {"name": mirror, "port": 80}},
    });
    let spec =
        json!({"parentRefs": parents, "rules": [{"backendRefs": shares, "filters": [mirror]}]});
    object("gateway.networking.k8s.io/v1", "HTTPRoute", name, &spec)
}

pub(crate) fn tcp_route(name: &str, parent: &str, backend: &str) -> Value {
    let spec = json!({
        "parentRefs": [{"group": "", "kind": "Service", "name": parent}],
        "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
    });
    object("gateway.networking.k8s.io/v1alpha2", "TCPRoute", name, &spec)
}

pub(crate) fn item(object: Value, revision: u64) -> Arc<Item> {
    Arc::new(Item::from_json(object, revision).unwrap())
}

pub(crate) fn key(text: &str) -> Key {
    let (kind, name) = text.split_once(' ').unwrap();
    let kind = leno_api::KINDS.iter().find(|info| info.kind == kind).unwrap();
    Key { kind, name: ObjectName::parse(name).unwrap() }
}

pub(crate) fn identity(namespace: &str, workload: Option<&str>) -> Identity {
    Identity { namespace: namespace.into(), workload: workload.and_then(ObjectName::parse) }
}

pub(crate) fn named(name: &str) -> Wish {
    Wish::Name(ObjectName::parse(name).unwrap())
}

pub(crate) fn host(namespace: &str, host: &str) -> Wish {
    Wish::Host { namespace: namespace.into(), host: host.into() }
}

impl World {
    /// Makes the change here and in the planner.
    pub(crate) fn edit(&mut self, planner: &mut Planner, edit: Edit) {
        self.revision += 1;
        match edit {
            Edit::Put(object) => {
                let item = item(object, self.revision);
                self.items.insert(item.key.clone(), item.clone());
                planner.put(item);
            }
            Edit::Delete(object) => {
                let key = item(object, self.revision).key.clone();
                self.items.remove(&key);
                planner.remove(&key);
            }
        }
    }

    /// The services that answer to a wish.
    pub(crate) fn answers(&self, wish: &Wish) -> Vec<ObjectName> {
        let services = self.items.values().filter_map(|item| match &item.links {
            Links::Service(service) => Some(service),
            _ => None,
        });
        let answering = services.filter(|service| match wish {
            Wish::Name(name) => service.name == *name,
            Wish::Host { namespace, host } => service.answers_to(host, namespace),
        });
        answering.map(|service| service.name.clone()).collect()
    }

    /// The definition of a scope, word for word and with no regard for cost.
    pub(crate) fn scope(
        &self,
        identity: &Identity,
        wishes: &BTreeSet<Wish>,
    ) -> BTreeMap<Key, Arc<Item>> {
        let frontends: BTreeSet<_> = wishes.iter().flat_map(|wish| self.answers(wish)).collect();
        let names = wishes.iter().filter_map(|wish| match wish {
            Wish::Name(name) => Some(name.clone()),
            Wish::Host { .. } => None,
        });
        let frontends: BTreeSet<_> = frontends.into_iter().chain(names).collect();
        let mut backends = frontends.clone();
        let mut members = BTreeMap::new();
        let mut served = Vec::new();
        for (key, item) in &self.items {
            if let Links::Route { parents, backends: links } = &item.links
                && parents.iter().any(|parent| {
                    frontends.contains(parent)
                        && (key.name.namespace == parent.namespace
                            || key.name.namespace == identity.namespace)
                })
            {
                backends.extend(links.iter().cloned());
                members.insert(key.clone(), item.clone());
            }
            if let Links::Workload { services } = &item.links
                && identity.workload.as_ref() == Some(&key.name)
            {
                served.extend(services.iter().cloned());
                members.insert(key.clone(), item.clone());
            }
        }
        for (key, item) in &self.items {
            let belongs = match &item.links {
                Links::Service(_) => backends.contains(&key.name) || served.contains(&key.name),
                Links::Workload { services } => services.iter().any(|name| backends.contains(name)),
                Links::Policy { targets } => targets.iter().any(|name| backends.contains(name)),
                Links::Route { .. } => false,
            };
            if belongs {
                members.insert(key.clone(), item.clone());
            }
        }
        members
    }
}

pub(crate) fn edits() -> impl Strategy<Value = Edit> {
    let name = || (prop::sample::select(&NAMESPACES), prop::sample::select(&NAMES));
    let full = move || name().prop_map(|(namespace, name)| format!("{namespace}/{name}"));
    let short = || prop::collection::vec(prop::sample::select(&NAMES), 1..3);
    let object = prop_oneof![
        (full(), prop::collection::vec(prop::sample::select(&HOSTS), 0..2))
            .prop_map(|(name, hosts)| service(&name, &hosts)),
        (full(), short()).prop_map(|(name, services)| workload(&name, &services)),
        (full(), prop::sample::select(&NAMES)).prop_map(|(name, target)| policy(&name, target)),
        (full(), prop::collection::vec(full(), 1..3), short()).prop_map(
            |(name, parents, backends)| {
                let parents: Vec<_> = parents.iter().map(String::as_str).collect();
                route(&name, &parents, &backends)
            }
        ),
        (full(), prop::sample::select(&NAMES), prop::sample::select(&NAMES))
            .prop_map(|(name, parent, backend)| tcp_route(&name, parent, backend)),
    ];
    (object, 0..4).prop_map(
        |(object, chance)| if chance == 0 { Edit::Delete(object) } else { Edit::Put(object) },
    )
}

pub(crate) fn wishes() -> impl Strategy<Value = Wish> {
    let asked =
        ["a", "b.other", "c.shop.svc.cluster.local", "x.example.com", "y.x.example.com", "no"];
    prop_oneof![
        (prop::sample::select(&NAMESPACES), prop::sample::select(&NAMES))
            .prop_map(|(namespace, name)| named(&format!("{namespace}/{name}"))),
        (prop::sample::select(&NAMESPACES), prop::sample::select(asked.to_vec()))
            .prop_map(|(namespace, asked)| host(namespace, asked)),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Edit(Edit),
    Subscribe(usize, Wish),
    Unsubscribe(usize, Wish),
    Reconnect(usize),
    Take,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => edits().prop_map(Step::Edit),
        3 => (0..3_usize, wishes()).prop_map(|(proxy, wish)| Step::Subscribe(proxy, wish)),
        1 => (0..3_usize, wishes()).prop_map(|(proxy, wish)| Step::Unsubscribe(proxy, wish)),
        1 => (0..3_usize).prop_map(Step::Reconnect),
        2 => Just(Step::Take),
    ]
}

/// One proxy as the planner's deltas describe it.
#[derive(Default)]
struct Told {
    id: u64,
    wishes: BTreeSet<Wish>,
    items: BTreeMap<Key, Arc<Item>>,
    answers: BTreeMap<Wish, Vec<ObjectName>>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn deltas_add_up_to_the_definition(steps in prop::collection::vec(steps(), 1..60)) {
        let identities =
            [identity("shop", Some("shop/a")), identity("other", None), identity("shop", None)];
        let (mut world, mut planner) = (World::default(), Planner::default());
        let mut proxies: Vec<Told> = Vec::new();
        let mut next = 0;
        for identity in &identities {
            next += 1;
            planner.connect(ProxyId(next), identity.clone());
            proxies.push(Told { id: next, ..Told::default() });
        }
        for step in steps.into_iter().chain([Step::Take]) {
            match step {
                Step::Edit(edit) => world.edit(&mut planner, edit),
                Step::Subscribe(at, wish) => {
                    planner.subscribe(ProxyId(proxies[at].id), &wish);
                    proxies[at].wishes.insert(wish);
                }
                Step::Unsubscribe(at, wish) => {
                    planner.unsubscribe(ProxyId(proxies[at].id), &wish);
                    proxies[at].wishes.remove(&wish);
                    proxies[at].answers.remove(&wish);
                }
                Step::Reconnect(at) => {
                    next += 1;
                    planner.disconnect(ProxyId(proxies[at].id));
                    planner.connect(ProxyId(next), identities[at].clone());
                    proxies[at] = Told { id: next, ..Told::default() };
                }
                Step::Take => {
                    for (id, delta) in planner.take() {
                        let told = proxies.iter_mut().find(|told| told.id == id.0).unwrap();
                        for (key, item) in delta.items {
                            match item {
                                Some(item) => told.items.insert(key, item),
                                None => told.items.remove(&key),
                            };
                        }
                        told.answers.extend(delta.answers);
                    }
                }
            }
        }
        let mut holders: BTreeMap<Key, u32> = BTreeMap::new();
        for (told, identity) in proxies.iter().zip(&identities) {
            let expected = world.scope(identity, &told.wishes);
            let versions = |items: &BTreeMap<Key, Arc<Item>>| -> Vec<_> {
                items.iter().map(|(key, item)| (key.to_string(), item.version.clone())).collect()
            };
            prop_assert_eq!(versions(&told.items), versions(&expected));
            for wish in &told.wishes {
                prop_assert_eq!(&told.answers[wish], &world.answers(wish), "{:?}", wish);
            }
            for key in expected.keys() {
                *holders.entry(key.clone()).or_default() += 1;
            }
        }
        for key in world.items.keys() {
            prop_assert_eq!(planner.holders(key), holders.get(key).copied().unwrap_or(0));
        }
        for told in &proxies {
            planner.disconnect(ProxyId(told.id));
        }
        prop_assert!(planner.is_forgotten(), "something of a proxy stays after it left");
    }
}

fn names(delta: &Delta) -> Vec<String> {
    let mut names: Vec<_> = delta
        .items
        .iter()
        .map(|(key, item)| format!("{}{key}", if item.is_some() { "+" } else { "-" }))
        .collect();
    names.sort_unstable();
    names
}

fn planner(objects: Vec<Value>) -> (World, Planner) {
    let (mut world, mut planner) = (World::default(), Planner::default());
    for object in objects {
        world.edit(&mut planner, Edit::Put(object));
    }
    (world, planner)
}

fn taken(planner: &mut Planner, id: ProxyId) -> Vec<String> {
    planner
        .take()
        .iter()
        .find(|(taken, _)| *taken == id)
        .map(|(_, delta)| names(delta))
        .unwrap_or_default()
}

#[test]
fn a_service_brings_its_routes_and_what_they_send_to_but_not_the_routes_of_that() {
    let (mut world, mut planner) = planner(vec![
        service("shop/a", &[]),
        service("shop/b", &[]),
        service("shop/c", &[]),
        service("shop/d", &[]),
        route("shop/a", &["shop/a"], &["b", "c"]),
        route("shop/b", &["shop/b"], &["d"]),
        workload("shop/b-1", &["b"]),
        workload("shop/d-1", &["d"]),
        policy("shop/c", "c"),
        policy("shop/d", "d"),
    ]);
    let id = ProxyId(1);
    planner.connect(id, identity("shop", None));
    planner.subscribe(id, &named("shop/a"));
    let scope = [
        "+HTTPRoute shop/a",
        "+Service shop/a",
        "+Service shop/b",
        "+Service shop/c",
        "+TrafficPolicy shop/c",
        "+Workload shop/b-1",
    ];
    assert_eq!(taken(&mut planner, id), scope);
    // One object changes: one object is told, and only if it concerns the proxy.
    world.edit(&mut planner, Edit::Put(workload("shop/d-1", &["d"])));
    assert_eq!(planner.take().len(), 0);
    world.edit(&mut planner, Edit::Put(workload("shop/b-1", &["b"])));
    assert_eq!(taken(&mut planner, id), ["+Workload shop/b-1"]);
    world.edit(&mut planner, Edit::Put(route("shop/a", &["shop/a"], &["b", "d"])));
    let changed = [
        "+HTTPRoute shop/a",
        "+Service shop/d",
        "+TrafficPolicy shop/d",
        "+Workload shop/d-1",
        "-Service shop/c",
        "-TrafficPolicy shop/c",
    ];
    assert_eq!(taken(&mut planner, id), changed);
}

#[test]
fn a_consumer_route_is_for_proxies_of_its_namespace_alone() {
    let (_, mut planner) = planner(vec![
        service("shop/a", &[]),
        service("other/b", &[]),
        route("other/a", &["shop/a"], &["b"]),
    ]);
    let (near, far) = (ProxyId(1), ProxyId(2));
    for (id, namespace) in [(near, "other"), (far, "third")] {
        planner.connect(id, identity(namespace, None));
        planner.subscribe(id, &host(namespace, "a.shop"));
    }
    let mut all: BTreeMap<_, _> = planner.take().into_iter().collect();
    assert_eq!(
        names(&all.remove(&near).unwrap()),
        ["+HTTPRoute other/a", "+Service other/b", "+Service shop/a"]
    );
    assert_eq!(names(&all.remove(&far).unwrap()), ["+Service shop/a"]);
}

#[test]
fn a_proxy_gets_its_own_workload_and_the_bare_services_that_it_serves() {
    let (mut world, mut planner) = planner(vec![
        service("shop/a", &[]),
        route("shop/a", &["shop/a"], &["b"]),
        workload("shop/a-1", &["a"]),
        workload("shop/a-2", &["a"]),
    ]);
    let id = ProxyId(1);
    planner.connect(id, identity("shop", Some("shop/a-1")));
    assert_eq!(taken(&mut planner, id), ["+Service shop/a", "+Workload shop/a-1"]);
    world.edit(&mut planner, Edit::Delete(workload("shop/a-1", &[])));
    assert_eq!(taken(&mut planner, id), ["-Service shop/a", "-Workload shop/a-1"]);
}

#[test]
fn bytes_are_shared_and_hold_neither_status_nor_field_owners() {
    let mut object = service("shop/a", &[]);
    object["status"] = json!({"proxies": {"live": 1}});
    object["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let written = item(object.clone(), 7);
    let body: Value = serde_json::from_slice(&written.body).unwrap();
    assert_eq!(body["metadata"]["resourceVersion"], "7");
    assert!(body.get("status").is_none() && body["metadata"].get("managedFields").is_none());
    // Another store may have given another object the same revision.
    assert_ne!(written.version, item(service("shop/a", &["x"]), 7).version);
    object["status"] = json!({});
    assert_eq!(written.version, item(object, 7).version);
}

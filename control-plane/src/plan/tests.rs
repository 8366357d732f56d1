//! The planner against the definition of a scope, on random histories; and each rule by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use leno_api::{
    Key,
    model::{applies::Applies, workload::Workload},
};
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
const POLICY_NAMESPACES: [&str; 3] = ["shop", "other", "leno-system"];
const LABELS: [&str; 2] = ["v1", "v2"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const HOSTS: [&str; 5] = ["a", "x.example.com", "*.example.com", "b.other", "10.0.0.7"];

fn object(api: &str, kind: &str, name: &str, spec: &Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "apiVersion": api, "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
    })
}

pub(crate) fn service(name: &str, hosts: &[&str]) -> Value {
    let (addresses, hosts): (Vec<&str>, Vec<&str>) =
        hosts.iter().partition(|host| host.parse::<std::net::IpAddr>().is_ok());
    let spec = json!({"hosts": hosts, "addresses": addresses, "ports": [{"port": 80}]});
    object("leno.dev/v1alpha1", "Service", name, &spec)
}

pub(crate) fn workload(name: &str, services: &[&str]) -> Value {
    let spec = json!({"services": services, "address": "127.0.0.1", "ports": {"http": 1}});
    object("leno.dev/v1alpha1", "Workload", name, &spec)
}

/// A workload that label selectors can find.
pub(crate) fn labelled(name: &str, services: &[&str], version: &str) -> Value {
    let mut workload = workload(name, services);
    workload["metadata"]["labels"] = json!({"version": version});
    workload
}

/// Which workloads a policy is for; nothing is all of its namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whom<'a> {
    All,
    Version(&'a str),
    Service(&'a str),
}

/// A policy about workloads, of one of the four kinds that say whom they are for in the same words.
pub(crate) fn guard(kind: &str, name: &str, whom: Whom<'_>) -> Value {
    let mut spec = match whom {
        Whom::All => json!({}),
        Whom::Version(version) => json!({"selector": {"matchLabels": {"version": version}}}),
        Whom::Service(name) => {
            json!({"targetRefs": [{"group": "", "kind": "Service", "name": name}]})
        }
    };
    match kind {
        "WasmPlugin" => {
            spec["url"] = json!("file:///plugin.wasm");
            // Some of either side, told apart by their names.
            let mode = match name.rsplit('/').next() {
                Some("a") => "SERVER",
                Some("b") => "CLIENT",
                _ => "CLIENT_AND_SERVER",
            };
            spec["match"] = json!([{"mode": mode}]);
        }
        "PeerAuthentication" => spec["mtls"] = json!({"mode": "STRICT"}),
        "RequestAuthentication" => {
            let jwks = "http://127.0.0.1/jwks";
            spec["jwtRules"] = json!([{"issuer": "a", "jwksUri": jwks}]);
        }
        _ => spec["rules"] = json!([{}]),
    }
    object("leno.dev/v1alpha1", kind, name, &spec)
}

/// Whom to trust, with a root of its own.
pub(crate) fn trust_bundle() -> Value {
    static ROOT: LazyLock<String> = LazyLock::new(|| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.self_signed(&key).unwrap().pem()
    });
    let spec = json!({
        "trustDomain": "cluster.local", "roots": [&*ROOT], "signer": "0".repeat(64),
    });
    object("leno.dev/v1alpha1", "TrustBundle", "leno-system/mesh", &spec)
}

pub(crate) fn policy(name: &str, target: &str) -> Value {
    let spec = json!({"targetRefs": [{"group": "", "kind": "Service", "name": target}]});
    object("leno.dev/v1alpha1", "TrafficPolicy", name, &spec)
}

pub(crate) fn fault(name: &str, target: &str) -> Value {
    let spec = json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": target}],
        "rules": [{"abort": {"status": 503}}],
    });
    object("leno.dev/v1alpha1", "FaultPolicy", name, &spec)
}

/// For a service, a route of its own namespace, or both.
fn cache(name: &str, service: Option<&str>, route: Option<&str>) -> Value {
    let service = service.map(|name| json!({"kind": "Service", "name": name}));
    let group = leno_api::GATEWAY_GROUP;
    let route = route.map(|name| json!({"group": group, "kind": "HTTPRoute", "name": name}));
    let targets: Vec<_> = service.into_iter().chain(route).collect();
    object("leno.dev/v1alpha1", "CachePolicy", name, &json!({"targetRefs": targets}))
}

fn rate_limit(name: &str, target: &str) -> Value {
    let spec = json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": target}],
        "limits": [{"name": "all", "requests": 1, "per": "1s"}],
    });
    object("leno.dev/v1alpha1", "RateLimitPolicy", name, &spec)
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
        let (mut served, mut own) = (Vec::new(), None);
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
            if let Links::Workload { services, workload } = &item.links
                && identity.workload.as_ref() == Some(&key.name)
            {
                own = Some(workload);
                served.extend(services.iter().cloned());
                members.insert(key.clone(), item.clone());
            }
        }
        for (key, item) in &self.items {
            let belongs = match &item.links {
                Links::Service(_) => backends.contains(&key.name) || served.contains(&key.name),
                Links::Workload { services, .. } => {
                    services.iter().any(|name| backends.contains(name))
                }
                Links::Policy { targets, served: at_home, routes } => {
                    routes.iter().any(|route| members.contains_key(route))
                        || targets.iter().any(|name| {
                            backends.contains(name) || *at_home && served.contains(name)
                        })
                }
                Links::Route { .. } => false,
                Links::Peers => {
                    let spoken_to = backends.iter().map(|name| &*name.namespace);
                    spoken_to
                        .chain([&*identity.namespace, "leno-system"])
                        .any(|namespace| namespace == &*key.name.namespace)
                }
                Links::Guard(applies) => {
                    identity.workload.is_some()
                        && [&*identity.namespace, "leno-system"].contains(&&*key.name.namespace)
                        && own.is_none_or(|own| may_apply(applies, own))
                }
                Links::Plugin { plugin, .. } => {
                    let near =
                        [&*identity.namespace, "leno-system"].contains(&&*key.name.namespace);
                    let here = identity.workload.is_some()
                        && near
                        && own.is_none_or(|own| may_apply(&plugin.applies, own));
                    let called = match &plugin.applies {
                        Applies::Namespace => near,
                        Applies::Labels(_) => here,
                        Applies::Services(targets) => {
                            targets.iter().any(|target| backends.contains(&target.service))
                        }
                    };
                    plugin.is_server() && here || plugin.is_client() && called
                }
                Links::Mesh => true,
            };
            if belongs {
                members.insert(key.clone(), item.clone());
            }
        }
        members
    }
}

fn may_apply(applies: &Applies, own: &Workload) -> bool {
    match applies {
        Applies::Namespace => true,
        Applies::Labels(labels) => {
            labels.iter().all(|(name, value)| own.labels.get(name) == Some(value))
        }
        Applies::Services(targets) => {
            targets.iter().any(|target| own.services.contains(&target.service))
        }
    }
}

fn guards() -> impl Strategy<Value = Value> {
    let kinds =
        ["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication", "WasmPlugin"];
    let whom = prop_oneof![
        Just(Whom::All),
        prop::sample::select(&LABELS).prop_map(Whom::Version),
        prop::sample::select(&NAMES).prop_map(Whom::Service),
    ];
    let name = (prop::sample::select(&POLICY_NAMESPACES), prop::sample::select(&NAMES));
    (prop::sample::select(kinds.to_vec()), name, whom).prop_map(
        |(kind, (namespace, name), whom)| guard(kind, &format!("{namespace}/{name}"), whom),
    )
}

pub(crate) fn edits() -> impl Strategy<Value = Edit> {
    let name = || (prop::sample::select(&NAMESPACES), prop::sample::select(&NAMES));
    let full = move || name().prop_map(|(namespace, name)| format!("{namespace}/{name}"));
    let short = || prop::collection::vec(prop::sample::select(&NAMES), 1..3);
    let object = prop_oneof![
        (full(), prop::collection::vec(prop::sample::select(&HOSTS), 0..2))
            .prop_map(|(name, hosts)| service(&name, &hosts)),
        (full(), short(), prop::sample::select(&LABELS))
            .prop_map(|(name, services, version)| labelled(&name, &services, version)),
        guards(),
        Just(()).prop_map(|()| trust_bundle()),
        (full(), prop::sample::select(&NAMES)).prop_map(|(name, target)| policy(&name, target)),
        (full(), prop::sample::select(&NAMES)).prop_map(|(name, target)| fault(&name, target)),
        (full(), prop::sample::select(&NAMES), prop::sample::select(&NAMES), 0..3).prop_map(
            |(name, service, route, which)| {
                cache(&name, (which > 0).then_some(service), (which < 2).then_some(route))
            }
        ),
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
    let asked = [
        "a",
        "b.other",
        "c.shop.svc.cluster.local",
        "x.example.com",
        "y.x.example.com",
        "10.0.0.7",
        "no",
    ];
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

/// Callers of the consumer's namespace have both and use the consumer's (`proxy/src/config/compile/rule.rs`); nobody else
/// hears of it, whatever becomes of it.
#[test]
fn a_consumer_route_comes_and_goes_beside_the_producers_route() {
    let consumer = || route("other/a", &["shop/a"], &["b"]);
    let (mut world, mut planner) = planner(vec![
        service("shop/a", &[]),
        service("shop/v2", &[]),
        service("other/b", &[]),
        route("shop/a", &["shop/a"], &["v2"]),
    ]);
    let (near, own, far) = (ProxyId(1), ProxyId(2), ProxyId(3));
    for (id, namespace) in [(near, "other"), (own, "shop"), (far, "third")] {
        planner.connect(id, identity(namespace, None));
        planner.subscribe(id, &host(namespace, "a.shop"));
        let all = ["+HTTPRoute shop/a", "+Service shop/a", "+Service shop/v2"];
        assert_eq!(taken(&mut planner, id), all, "{namespace}");
    }
    for (edit, change) in [
        (Edit::Put(consumer()), ["+HTTPRoute other/a", "+Service other/b"]),
        (Edit::Delete(consumer()), ["-HTTPRoute other/a", "-Service other/b"]),
    ] {
        world.edit(&mut planner, edit);
        let all: BTreeMap<_, _> = planner.take().into_iter().collect();
        assert_eq!(all.keys().collect::<Vec<_>>(), [&near]);
        assert_eq!(names(&all[&near]), change);
    }
}

#[test]
fn a_proxy_gets_its_own_workload_and_the_services_that_it_serves_with_their_policies() {
    let (mut world, mut planner) = planner(vec![
        service("shop/a", &[]),
        service("shop/b", &[]),
        policy("shop/a", "a"),
        policy("shop/b", "b"),
        fault("shop/a", "a"),
        route("shop/a", &["shop/a"], &["b"]),
        workload("shop/a-1", &["a"]),
        workload("shop/a-2", &["a"]),
    ]);
    let id = ProxyId(1);
    planner.connect(id, identity("shop", Some("shop/a-1")));
    let scope = ["+Service shop/a", "+TrafficPolicy shop/a", "+Workload shop/a-1"];
    assert_eq!(taken(&mut planner, id), scope);
    world.edit(&mut planner, Edit::Put(policy("shop/a-too", "a")));
    world.edit(&mut planner, Edit::Put(policy("shop/b-too", "b")));
    assert_eq!(taken(&mut planner, id), ["+TrafficPolicy shop/a-too"]);
    world.edit(&mut planner, Edit::Delete(policy("shop/a-too", "a")));
    assert_eq!(taken(&mut planner, id), ["-TrafficPolicy shop/a-too"]);
    world.edit(&mut planner, Edit::Put(workload("shop/a-1", &["b"])));
    let moved = [
        "+Service shop/b",
        "+TrafficPolicy shop/b",
        "+TrafficPolicy shop/b-too",
        "+Workload shop/a-1",
        "-Service shop/a",
        "-TrafficPolicy shop/a",
    ];
    assert_eq!(taken(&mut planner, id), moved);
    world.edit(&mut planner, Edit::Delete(workload("shop/a-1", &[])));
    assert_eq!(taken(&mut planner, id).len(), 4);
    // Faults are for its callers alone.
    planner.subscribe(id, &named("shop/a"));
    assert!(taken(&mut planner, id).contains(&"+FaultPolicy shop/a".to_owned()));
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

#[test]
fn policies_for_a_workload_reach_its_own_proxy_and_no_other() {
    let guards = |kind: &str| {
        vec![
            guard(kind, "shop/all", Whom::All),
            guard(kind, "shop/v1", Whom::Version("v1")),
            guard(kind, "shop/v2", Whom::Version("v2")),
            guard(kind, "shop/a", Whom::Service("a")),
            guard(kind, "shop/b", Whom::Service("b")),
            guard(kind, "other/all", Whom::All),
            guard(kind, "leno-system/all", Whom::All),
            guard(kind, "leno-system/v2", Whom::Version("v2")),
        ]
    };
    for kind in ["AuthorizationPolicy", "RequestAuthentication"] {
        let (mut world, mut planner) = planner(guards(kind));
        world.edit(&mut planner, Edit::Put(labelled("shop/a-1", &["a"], "v1")));
        let (own, bare) = (ProxyId(1), ProxyId(2));
        planner.connect(own, identity("shop", Some("shop/a-1")));
        planner.connect(bare, identity("shop", None));
        let taken: Vec<_> =
            taken(&mut planner, own).into_iter().map(|name| name.replace(kind, "")).collect();
        let expected =
            ["+ leno-system/all", "+ shop/a", "+ shop/all", "+ shop/v1", "+Workload shop/a-1"];
        assert_eq!(taken, expected);
        // Relabelled, it is guarded by others; a policy elsewhere is no business of its.
        world.edit(&mut planner, Edit::Put(labelled("shop/a-1", &["b"], "v2")));
        let moved = planner.take();
        assert_eq!(moved.len(), 1, "only its own proxy");
        let moved: Vec<_> = names(&moved[0].1).iter().map(|name| name.replace(kind, "")).collect();
        let expected = [
            "+ leno-system/v2",
            "+ shop/b",
            "+ shop/v2",
            "+Workload shop/a-1",
            "- shop/a",
            "- shop/v1",
        ];
        assert_eq!(moved, expected);
        world.edit(&mut planner, Edit::Put(guard(kind, "other/new", Whom::All)));
        world.edit(&mut planner, Edit::Put(guard(kind, "shop/new", Whom::Version("v1"))));
        assert!(planner.take().is_empty());
    }
}

/// A service's limits hold at its own sidecars, its faults are for its callers.
#[test]
fn limits_reach_those_who_serve_and_faults_those_who_call() {
    let (mut world, mut planner) = planner(vec![service("shop/a", &[]), service("shop/b", &[])]);
    world.edit(&mut planner, Edit::Put(workload("shop/a-1", &["a"])));
    let (own, caller) = (ProxyId(1), ProxyId(2));
    planner.connect(own, identity("shop", Some("shop/a-1")));
    planner.connect(caller, identity("shop", None));
    planner.subscribe(caller, &named("shop/a"));
    planner.take();
    for edit in [rate_limit("shop/limit-a", "a"), rate_limit("shop/limit-b", "b")] {
        world.edit(&mut planner, Edit::Put(edit));
    }
    let limited = planner.take();
    let (who, delta) = &limited[0];
    assert_eq!(
        (limited.len(), *who, names(delta)),
        (1, own, vec!["+RateLimitPolicy shop/limit-a".to_owned()])
    );
    for edit in [fault("shop/fault-a", "a"), fault("shop/fault-b", "b")] {
        world.edit(&mut planner, Edit::Put(edit));
    }
    let faulty = planner.take();
    let (who, delta) = &faulty[0];
    assert_eq!(
        (faulty.len(), *who, names(delta)),
        (1, caller, vec!["+FaultPolicy shop/fault-a".to_owned()])
    );
    // It serves another: the limits on that are its own now.
    world.edit(&mut planner, Edit::Put(workload("shop/a-1", &["b"])));
    let moved = planner.take();
    let delta = moved.iter().find(|(who, _)| *who == own).map(|(_, delta)| names(delta)).unwrap();
    assert!(delta.contains(&"+RateLimitPolicy shop/limit-b".to_owned()), "{delta:?}");
    assert!(delta.contains(&"-RateLimitPolicy shop/limit-a".to_owned()), "{delta:?}");
}

/// What a service's responses may be kept for is for its callers; for a route, for those who have that route.
#[test]
fn cache_policies_reach_callers_and_those_who_have_the_route() {
    let (mut world, mut planner) = planner(vec![
        service("shop/a", &[]),
        service("shop/b", &[]),
        workload("shop/a-1", &["a"]),
        route("shop/far", &["shop/b"], &["b"]),
        cache("shop/service", Some("a"), None),
        cache("shop/early", None, Some("near")),
        cache("shop/far", None, Some("far")),
    ]);
    let (own, caller) = (ProxyId(1), ProxyId(2));
    planner.connect(own, identity("shop", Some("shop/a-1")));
    planner.connect(caller, identity("shop", None));
    planner.subscribe(caller, &named("shop/a"));
    let mut told: BTreeMap<_, _> = planner.take().into_iter().collect();
    assert_eq!(names(&told.remove(&own).unwrap()), ["+Service shop/a", "+Workload shop/a-1"]);
    let calls = ["+CachePolicy shop/service", "+Service shop/a", "+Workload shop/a-1"];
    assert_eq!(names(&told.remove(&caller).unwrap()), calls);
    let mut edited = |edit: Edit| {
        world.edit(&mut planner, edit);
        let taken = planner.take();
        assert!(taken.iter().all(|(who, _)| *who == caller));
        taken.first().map(|(_, delta)| names(delta)).unwrap_or_default()
    };
    // The route comes, and with it what was said of it before.
    let near = |parents: &[&str]| Edit::Put(route("shop/near", parents, &["a"]));
    let both = ["+CachePolicy shop/early", "+HTTPRoute shop/near"];
    assert_eq!(edited(near(&["shop/a"])), both);
    assert_eq!(edited(near(&["shop/b", "shop/a"])), ["+HTTPRoute shop/near"]);
    let later = || cache("shop/later", Some("b"), Some("near"));
    assert_eq!(edited(Edit::Put(later())), ["+CachePolicy shop/later"]);
    assert_eq!(edited(Edit::Put(cache("shop/none", Some("b"), Some("far")))), [""; 0]);
    // A route of that name which is no HTTPRoute is another.
    assert_eq!(edited(Edit::Put(tcp_route("shop/far", "a", "a"))), ["+TCPRoute shop/far"]);
    let gone = ["-CachePolicy shop/early", "-CachePolicy shop/later", "-HTTPRoute shop/near"];
    assert_eq!(edited(near(&["shop/b"])), gone);
    assert_eq!(edited(Edit::Delete(later())), [""; 0]);
    assert_eq!(edited(near(&["shop/a"])), both);
    assert_eq!(
        edited(Edit::Delete(cache("shop/service", Some("a"), None))),
        ["-CachePolicy shop/service"]
    );
}

#[test]
fn until_a_workload_is_known_every_policy_that_may_guard_it_is_there() {
    let kind = "AuthorizationPolicy";
    let (mut world, mut planner) = planner(vec![
        guard(kind, "shop/v1", Whom::Version("v1")),
        guard(kind, "shop/v2", Whom::Version("v2")),
        guard(kind, "other/all", Whom::All),
    ]);
    let id = ProxyId(1);
    planner.connect(id, identity("shop", Some("shop/a-1")));
    let scope = ["+AuthorizationPolicy shop/v1", "+AuthorizationPolicy shop/v2"];
    assert_eq!(taken(&mut planner, id), scope);
    world.edit(&mut planner, Edit::Put(labelled("shop/a-1", &["a"], "v1")));
    assert_eq!(taken(&mut planner, id), ["+Workload shop/a-1", "-AuthorizationPolicy shop/v2"]);
}

#[test]
fn how_workloads_are_spoken_to_is_for_those_who_speak_to_them() {
    let kind = "PeerAuthentication";
    let (mut world, mut planner) = planner(vec![
        service("shop/a", &[]),
        service("other/b", &[]),
        route("other/a", &["shop/a"], &["b"]),
        guard(kind, "shop/a", Whom::Service("a")),
        guard(kind, "other/a", Whom::All),
        guard(kind, "third/a", Whom::All),
        guard(kind, "leno-system/a", Whom::All),
    ]);
    let id = ProxyId(1);
    planner.connect(id, identity("third", None));
    let always = ["+PeerAuthentication leno-system/a", "+PeerAuthentication third/a"];
    assert_eq!(taken(&mut planner, id), always);
    planner.subscribe(id, &named("shop/a"));
    assert_eq!(taken(&mut planner, id), ["+PeerAuthentication shop/a", "+Service shop/a"]);
    world.edit(&mut planner, Edit::Put(guard(kind, "other/a", Whom::Version("v1"))));
    assert!(planner.take().is_empty(), "its consumer route is for namespace other alone");
    planner.unsubscribe(id, &named("shop/a"));
    assert_eq!(taken(&mut planner, id), ["-PeerAuthentication shop/a", "-Service shop/a"]);
}

#[test]
fn whom_to_trust_is_for_everybody() {
    let (mut world, mut planner) = planner(Vec::new());
    planner.connect(ProxyId(1), identity("shop", None));
    world.edit(&mut planner, Edit::Put(trust_bundle()));
    planner.connect(ProxyId(2), identity("other", Some("other/a")));
    let told = planner.take();
    assert_eq!(told.len(), 2);
    for (_, delta) in &told {
        assert_eq!(names(delta), ["+TrustBundle leno-system/mesh"]);
    }
    assert_eq!(planner.holders(&key("TrustBundle leno-system/mesh")), 2);
}

/// A plugin on one side or both, for the workloads of its namespace or for calls to a service.
fn plugin(name: &str, mode: &str, whom: Whom<'_>) -> Value {
    let mut plugin = guard("WasmPlugin", name, whom);
    plugin["spec"]["match"] = json!([{"mode": mode}]);
    plugin
}

#[test]
fn plugins_reach_the_proxies_at_which_they_run_and_no_other() {
    let (mut world, mut planner) = planner(vec![
        service("shop/a", &[]),
        workload("shop/a-1", &["a"]),
        plugin("shop/p1", "SERVER", Whom::Service("a")),
        plugin("shop/p2", "CLIENT", Whom::Service("a")),
        plugin("shop/p3", "SERVER", Whom::All),
        plugin("shop/p4", "CLIENT", Whom::All),
        plugin("shop/p5", "CLIENT_AND_SERVER", Whom::Version("v1")),
        plugin("leno-system/p6", "CLIENT", Whom::All),
    ]);
    // The callee: what runs on its side, and on its way out.
    let (callee, caller, bare) = (ProxyId(1), ProxyId(2), ProxyId(3));
    planner.connect(callee, identity("shop", Some("shop/a-1")));
    assert_eq!(
        taken(&mut planner, callee),
        [
            "+Service shop/a",
            "+WasmPlugin leno-system/p6",
            "+WasmPlugin shop/p1",
            "+WasmPlugin shop/p3",
            "+WasmPlugin shop/p4",
            "+Workload shop/a-1",
        ]
    );
    // A caller from elsewhere: what its callee wants to run there.
    planner.connect(caller, identity("other", None));
    assert_eq!(taken(&mut planner, caller), ["+WasmPlugin leno-system/p6"]);
    planner.subscribe(caller, &host("other", "a.shop"));
    assert_eq!(
        taken(&mut planner, caller),
        ["+Service shop/a", "+WasmPlugin shop/p2", "+Workload shop/a-1"]
    );
    // A proxy beside nothing has no labels and serves nothing.
    planner.connect(bare, identity("shop", None));
    assert_eq!(taken(&mut planner, bare), ["+WasmPlugin leno-system/p6", "+WasmPlugin shop/p4"]);
    // A change of one reaches those that run it.
    world.edit(&mut planner, Edit::Put(plugin("shop/p2", "CLIENT", Whom::Service("a"))));
    assert_eq!(taken(&mut planner, caller), ["+WasmPlugin shop/p2"]);
    world.edit(&mut planner, Edit::Put(plugin("shop/p2", "SERVER", Whom::Service("a"))));
    let told: BTreeMap<_, _> = planner.take().into_iter().collect();
    assert_eq!(names(&told[&caller]), ["-WasmPlugin shop/p2"]);
    assert_eq!(names(&told[&callee]), ["+WasmPlugin shop/p2"]);
    assert_eq!(told.len(), 2);
}

#[test]
fn a_part_of_a_service_brings_the_whole_with_it() {
    let mut part = service("shop/a-v2", &[]);
    part["spec"]["subset"] = json!({"of": "a", "matchLabels": {"version": "v2"}});
    let (mut world, mut planner) = planner(vec![
        part.clone(),
        service("shop/a", &[]),
        service("shop/b", &[]),
        labelled("shop/a-1", &["a"], "v2"),
        policy("shop/a", "a"),
        policy("shop/a-v2", "a-v2"),
    ]);
    let id = ProxyId(1);
    planner.connect(id, identity("shop", None));
    planner.subscribe(id, &named("shop/a-v2"));
    let scope = [
        "+Service shop/a",
        "+Service shop/a-v2",
        "+TrafficPolicy shop/a",
        "+TrafficPolicy shop/a-v2",
        "+Workload shop/a-1",
    ];
    assert_eq!(taken(&mut planner, id), scope);
    world.edit(&mut planner, Edit::Put(labelled("shop/a-2", &["a"], "v1")));
    assert_eq!(taken(&mut planner, id), ["+Workload shop/a-2"], "its labels may change");
    part["spec"]["subset"]["of"] = json!("b");
    world.edit(&mut planner, Edit::Put(part));
    let gone = [
        "+Service shop/a-v2",
        "+Service shop/b",
        "-Service shop/a",
        "-TrafficPolicy shop/a",
        "-Workload shop/a-1",
        "-Workload shop/a-2",
    ];
    assert_eq!(taken(&mut planner, id), gone);
    planner.unsubscribe(id, &named("shop/a-v2"));
    let rest = ["-Service shop/a-v2", "-Service shop/b", "-TrafficPolicy shop/a-v2"];
    assert_eq!(taken(&mut planner, id), rest);
}

#[test]
fn policies_for_a_part_reach_those_who_are_in_it_and_nothing_else_comes_with_them() {
    let part = |version: &str| {
        let mut part = service("shop/a-v2", &[]);
        part["spec"]["subset"] = json!({"of": "a", "matchLabels": {"version": version}});
        part
    };
    let (mut world, mut planner) = planner(vec![
        service("shop/a", &[]),
        labelled("shop/a-1", &["a"], "v2"),
        labelled("shop/a-2", &["a"], "v1"),
        policy("shop/a-v2", "a-v2"),
        guard("AuthorizationPolicy", "shop/closed", Whom::Service("a-v2")),
    ]);
    let [inside, outside, caller] = [1, 2, 3].map(ProxyId);
    planner.connect(inside, identity("shop", Some("shop/a-1")));
    planner.connect(outside, identity("shop", Some("shop/a-2")));
    planner.connect(caller, identity("shop", None));
    planner.subscribe(caller, &named("shop/a"));
    assert_eq!(taken(&mut planner, inside), ["+Service shop/a", "+Workload shop/a-1"]);
    let guarded =
        ["+AuthorizationPolicy shop/closed", "+Service shop/a-v2", "+TrafficPolicy shop/a-v2"];
    // Callers of the whole learn of its parts, since a PeerAuthentication may be for one.
    for (edit, expected) in [
        (Edit::Put(part("v2")), [&guarded[..], &["+Service shop/a-v2"], &["+Service shop/a-v2"]]),
        (
            Edit::Put(part("v1")),
            [
                &[
                    "+Service shop/a-v2",
                    "-AuthorizationPolicy shop/closed",
                    "-TrafficPolicy shop/a-v2",
                ],
                &guarded,
                &["+Service shop/a-v2"],
            ],
        ),
        (
            Edit::Delete(part("v1")),
            [
                &["-Service shop/a-v2"],
                &[
                    "-AuthorizationPolicy shop/closed",
                    "-Service shop/a-v2",
                    "-TrafficPolicy shop/a-v2",
                ],
                &["-Service shop/a-v2"],
            ],
        ),
    ] {
        world.edit(&mut planner, edit);
        let deltas: std::collections::HashMap<_, _> = planner.take().into_iter().collect();
        for (id, expected) in [inside, outside, caller].into_iter().zip(expected) {
            assert_eq!(names(&deltas[&id]), expected, "{id:?}");
        }
    }
    planner.unsubscribe(caller, &named("shop/a"));
    for id in [inside, outside, caller] {
        planner.disconnect(id);
    }
    assert!(planner.is_forgotten());
}

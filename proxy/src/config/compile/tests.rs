mod caches;
mod limits;
mod overload;
mod plugins;
mod security;

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, Method};
use leno_api::{Resource, model::Model, yaml};
use proptest::prelude::*;

use super::*;
use crate::{filter::jwt::Timing, route::table, snapshot::Rule};

const MESH: &str = r"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {hosts: [orders, orders.example.com, '*.orders.example.com'], ports: [{port: 80, protocol: http}]}
---
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders-v2, namespace: shop}
spec: {ports: [{port: 80, protocol: http}]}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop}
spec: {services: [orders], address: 10.0.0.1, ports: {default: 9001}}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-2, namespace: shop}
spec: {services: [orders-v2], address: 10.0.0.2, ports: {default: 9001}, sidecar: {port: 15008}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: orders, port: 80, weight: 90}, {name: orders-v2, weight: 10}, {name: gone, port: 80, weight: 5}]}]
---
apiVersion: leno.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders}], breaker: {maxConnections: 7}}
";

fn resources(text: &str) -> Vec<Arc<Resource>> {
    let (good, bad) = yaml::resources(text);
    assert!(bad.is_empty(), "{bad:?}");
    good.into_iter().map(Arc::new).collect()
}

fn own() -> Own {
    Own {
        namespace: "shop".to_owned(),
        party: Party::default(),
        workload: None,
        zone: None,
        application: IpAddr::V4(Ipv4Addr::LOCALHOST),
        proof: Proof::default(),
        issuer_keys: KeyCache::new(Timing::default()),
    }
}

/// Inputs that grow and shrink, and the snapshots made of them.
struct Bench {
    inputs: Inputs,
    snapshot: Snapshot,
    slots: Slots,
    own: Own,
}

impl Bench {
    fn new(own: Own) -> Self {
        let (inputs, slots) = (Inputs::default(), Slots::new());
        Self { inputs, snapshot: Snapshot::default(), slots, own }
    }

    fn of(text: &str, own: Own) -> Self {
        let mut bench = Self::new(own);
        bench.put(&resources(text));
        bench
    }

    fn put(&mut self, resources: &[Arc<Resource>]) {
        let mut dirty = Dirty::default();
        for resource in resources {
            self.inputs.insert((**resource).clone(), "", &mut dirty);
        }
        self.compile(&dirty);
    }

    fn remove(&mut self, resource: &Resource) {
        let mut dirty = Dirty::default();
        self.inputs.remove(&resource.key(), &mut dirty);
        self.compile(&dirty);
    }

    fn compile(&mut self, dirty: &Dirty) {
        let (snapshot, inputs) = (&self.snapshot, &self.inputs);
        self.snapshot = compile(snapshot, inputs, dirty, &self.own, &self.slots, Known::Everything);
    }

    fn rule(&self, host: &str) -> Option<Arc<Rule>> {
        let port = &self.snapshot.service(host)?.ports[0];
        let request = table::Request {
            host,
            method: &Method::GET,
            path: "/",
            query: None,
            headers: &HeaderMap::new(),
        };
        port.routes.find(request).map(|found| found.rule.clone())
    }
}

/// A proxy may know ten thousand workloads: each byte here is 10 KB.
#[test]
fn what_workloads_say_alike_is_kept_once() {
    let another = "---\napiVersion: leno.dev/v1alpha1\nkind: Workload\nmetadata: {name: orders-3, namespace: shop}\n\
                   spec: {services: [orders], address: 10.0.0.3, ports: {default: 9001}}\n";
    let mut bench = Bench::of(&format!("{MESH}{another}"), own());
    let orders = ObjectName::new("shop", "orders");
    let both = |bench: &Bench| bench.inputs.workloads_of(&orders).cloned().collect::<Vec<_>>();
    let before = both(&bench);
    let (one, other) = (&before[0], &before[1]);
    assert!(one.address != other.address && Arc::ptr_eq(&one.services, &other.services));
    assert!(Arc::ptr_eq(&one.ports, &other.ports) && Arc::ptr_eq(&one.labels, &other.labels));
    // A renewal brings other metadata only: endpoints and inputs go on with one copy.
    bench.put(&resources(&another.replace("namespace: shop", "namespace: shop, uid: x")));
    assert!(before.iter().zip(both(&bench)).all(|(before, after)| Arc::ptr_eq(before, &after)));
    assert!(size_of::<Workload>() <= 144 && size_of::<crate::cluster::Endpoint>() <= 128);
}

#[test]
fn names_resolve_as_seen_from_the_own_namespace() {
    let bench = Bench::of(MESH, own());
    let name = |host: &str| bench.snapshot.service(host).map(|service| service.name.to_string());
    for host in [
        "orders",
        "orders.shop",
        "orders.shop.svc.cluster.local",
        "orders.example.com",
        "a.orders.example.com",
    ] {
        assert_eq!(name(host).as_deref(), Some("shop/orders"), "{host}");
    }
    assert_eq!(name("orders.other"), None);
    let elsewhere = Bench::of(MESH, Own { namespace: "other".to_owned(), ..own() });
    assert!(elsewhere.snapshot.service("orders").is_none());
    assert!(elsewhere.snapshot.service("orders.shop").is_some());
}

#[test]
fn backends_keep_their_share_when_they_are_missing() {
    let bench = Bench::of(MESH, own());
    let rule = bench.rule("orders").unwrap();
    let shares: Vec<_> = rule
        .backends
        .iter()
        .map(|(weight, backend)| (weight, backend.name.to_string(), backend.cluster.is_some()))
        .collect();
    let expected = [
        (90, "shop/orders:80".to_owned(), true),
        (10, "shop/orders-v2:80".to_owned(), true),
        (5, "shop/gone:80".to_owned(), false),
    ];
    assert_eq!(shares, expected);
    let orders = &bench.snapshot.service("orders").unwrap().ports[0].cluster;
    assert_eq!(orders.settings.max_connections, 7);
    let canary =
        rule.backends.iter().nth(1).and_then(|(_, backend)| backend.cluster.clone()).unwrap();
    assert_eq!(canary.endpoints[0].address().to_string(), "10.0.0.2:15008");
    assert!(canary.endpoints[0].via_sidecar);
}

#[test]
fn what_did_not_change_is_carried_over() {
    let mut bench = Bench::of(MESH, own());
    let before = bench.snapshot.service("orders").unwrap().clone();
    let endpoint = before.ports[0].cluster.endpoints[0].clone();
    let extra = MESH
        .split("---")
        .nth(2)
        .unwrap()
        .replace("orders-1", "orders-9")
        .replace("10.0.0.1", "10.0.0.9");
    bench.put(&resources(&extra));
    let after = bench.snapshot.service("orders").unwrap();
    assert_eq!(after.ports[0].cluster.endpoints.len(), 2);
    assert!(Arc::ptr_eq(&after.ports[0].cluster.endpoints[0], &endpoint));
    assert!(Arc::ptr_eq(&after.ports[0].cluster.state, &before.ports[0].cluster.state));
    // The route's backend is the new cluster, too.
    let rule = bench.rule("orders").unwrap();
    let (_, backend) = rule.backends.iter().next().unwrap();
    assert!(Arc::ptr_eq(backend.cluster.as_ref().unwrap(), &after.ports[0].cluster));
    let unrelated = bench.snapshot.service("orders-v2").unwrap().clone();
    bench.put(&resources(&extra.replace("10.0.0.9", "10.0.0.10")));
    assert!(Arc::ptr_eq(bench.snapshot.service("orders-v2").unwrap(), &unrelated));
}

#[test]
fn consumer_routes_concern_their_own_namespace_only() {
    let consumer = MESH
        .split("---")
        .nth(4)
        .unwrap()
        .replace("name: canary, namespace: shop", "name: mine, namespace: other")
        .replace("kind: Service, name: orders}", "kind: Service, name: orders, namespace: shop}");
    let text = format!("{MESH}---\n{consumer}");
    let route = |own| Bench::of(&text, own).rule("orders.shop").unwrap().route.to_string();
    assert_eq!(route(own()), "HTTPRoute shop/canary");
    assert_eq!(route(Own { namespace: "other".to_owned(), ..own() }), "HTTPRoute other/mine");
}

#[test]
fn inbound_ports_are_those_of_the_own_workload() {
    let resources = resources(MESH);
    let workload = resources.iter().find_map(|resource| match &resource.model {
        Model::Workload(workload) if workload.sidecar_port.is_some() => Some(workload.clone()),
        _ => None,
    });
    let bench = Bench::of(MESH, Own { workload, ..own() });
    let inbound = &bench.snapshot.inbound;
    assert_eq!(inbound.by_destination["shop/orders-v2:80"].address.to_string(), "127.0.0.1:9001");
    assert!(!inbound.by_destination.contains_key("shop/orders:80"));
    assert!(inbound.only_http.is_some() && inbound.only_tcp.is_none());
}

/// Everything that a snapshot says, as text.
fn describe(snapshot: &Snapshot) -> String {
    let mut lines = Vec::new();
    for (host, at) in &snapshot.hosts.exact {
        lines.push(format!("{host} -> {}", snapshot.services[*at as usize].name));
    }
    for service in &snapshot.services {
        for port in &service.ports {
            let cluster = &port.cluster;
            let endpoints: Vec<_> =
                cluster.endpoints.iter().map(|endpoint| endpoint.address()).collect();
            lines.push(format!("{} {:?} {endpoints:?}", cluster.name, cluster.settings));
            for rule in port.routes.rules() {
                let backends: Vec<_> = rule
                    .backends
                    .iter()
                    .map(|(weight, backend)| {
                        let at = backend.cluster.as_ref().map(|cluster| {
                            cluster
                                .endpoints
                                .iter()
                                .map(|endpoint| endpoint.address())
                                .collect::<Vec<_>>()
                        });
                        format!("{weight} {} {at:?}", backend.name)
                    })
                    .collect();
                lines.push(format!("{} {} {backends:?}", cluster.name, rule.route));
            }
        }
    }
    lines.extend(snapshot.clusters.keys().map(ToString::to_string));
    lines.sort();
    lines.join("\n")
}

proptest! {
    /// Whatever comes and goes in whatever order, compiling step by step ends where compiling at once ends.
    #[test]
    fn steps_lead_where_one_leap_leads(steps in proptest::collection::vec((0..6usize, any::<bool>()), 0..24)) {
        let all = resources(MESH);
        let mut bench = Bench::new(own());
        let mut present = [false; 6];
        for (at, put) in steps {
            present[at] = put;
            if put {
                bench.put(std::slice::from_ref(&all[at]));
            } else {
                bench.remove(&all[at]);
            }
        }
        let mut leap = Bench::new(own());
        let kept: Vec<_> = all.iter().zip(present).filter(|(_, kept)| *kept).map(|(resource, _)| resource.clone()).collect();
        leap.put(&kept);
        prop_assert_eq!(describe(&bench.snapshot), describe(&leap.snapshot));
    }
}

const SUBSETS: &str = r"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}]}
---
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders-v2, namespace: shop}
spec: {ports: [{name: http, port: 8080}, {name: admin, port: 81}], subset: {of: orders, matchLabels: {version: v2}}}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop, labels: {version: v1}}
spec: {services: [orders], address: 10.0.0.1, ports: {http: 9001}}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-2, namespace: shop, labels: {version: v2}}
spec: {services: [orders], address: 10.0.0.2, ports: {http: 9001, admin: 9002}, sidecar: {port: 15008}}
";

#[test]
fn a_part_of_a_service_has_those_of_its_workloads_that_have_the_labels() {
    let mut bench = Bench::of(SUBSETS, own());
    let members = |bench: &Bench, port: u16| {
        let key = ClusterKey::Service(ObjectName::new("shop", "orders-v2"), port);
        let cluster = bench.snapshot.clusters[&key].clone();
        let names = cluster.endpoints.iter().map(|endpoint| endpoint.workload());
        (names.collect::<Vec<_>>().join(" "), cluster.destination.clone())
    };
    let (names, destination) = members(&bench, 8080);
    assert_eq!(names, "shop/orders-2");
    assert_eq!(destination.unwrap(), "shop/orders:80", "as its sidecar knows itself");
    assert_eq!(members(&bench, 81), (String::new(), None), "the whole has no such port");
    // Labels change, workloads go, the whole goes and comes again.
    let relabelled = SUBSETS.replace("{version: v1}", "{version: v2, x: y}");
    let both = resources(&relabelled);
    bench.put(&both[2..3]);
    assert_eq!(members(&bench, 8080).0, "shop/orders-1 shop/orders-2");
    bench.remove(&both[3]);
    assert_eq!(members(&bench, 8080).0, "shop/orders-1");
    bench.remove(&both[0]);
    assert_eq!(members(&bench, 8080).0, "");
    bench.put(&both[..1]);
    assert_eq!(members(&bench, 8080).0, "shop/orders-1");
    bench.remove(&both[1]);
    assert!(bench.snapshot.clusters.len() == 1 && bench.inputs.services().len() == 1);
}

//! What policies of limits and faults make of ports and clusters, and what a change of them leaves alone.

use super::*;
use crate::snapshot::InboundPort;

const MESH: &str = r"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}, {name: admin, port: 81, protocol: http}]}
---
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: users, namespace: shop}
spec: {ports: [{port: 80, protocol: http}]}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop}
spec: {services: [orders], address: 10.0.0.1, ports: {http: 9001, admin: 9002}}
";

fn beside_orders() -> Bench {
    let workload = resources(MESH).iter().find_map(|resource| match &resource.model {
        Model::Workload(workload) => Some(workload.clone()),
        _ => None,
    });
    Bench::of(MESH, Own { workload, ..own() })
}

fn policy(kind: &str, name: &str, target: &str, fields: &str) -> String {
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, {target}}}], {fields}}}\n"
    )
}

fn limit(name: &str, target: &str, requests: u32) -> String {
    let fields = format!("limits: [{{name: all, requests: {requests}, per: 1s}}]");
    policy("RateLimitPolicy", name, target, &fields)
}

fn port(bench: &Bench, number: u16) -> Arc<InboundPort> {
    bench.snapshot.inbound.by_destination[&*format!("shop/orders:{number}")].clone()
}

/// Policies of the limits on a port.
fn limits(bench: &Bench, number: u16) -> Vec<String> {
    port(bench, number).limits.iter().map(|limit| limit.policy.to_string()).collect()
}

#[test]
fn limits_are_for_the_ports_they_name_and_ports_of_a_service_share_them() {
    let mut bench = beside_orders();
    assert!(limits(&bench, 80).is_empty());
    bench.put(&resources(&limit("whole", "name: orders", 5)));
    bench.put(&resources(&limit("one", "name: orders, sectionName: admin", 5)));
    bench.put(&resources(&limit("other", "name: users", 5)));
    assert_eq!(limits(&bench, 80), ["shop/whole"]);
    assert_eq!(limits(&bench, 81), ["shop/one", "shop/whole"]);
    assert!(Arc::ptr_eq(&port(&bench, 80).limits[0], &port(&bench, 81).limits[1]));
    // Only of what the workload serves.
    assert_eq!(bench.snapshot.inbound.limits.len(), 2);
    bench.remove(&resources(&limit("whole", "name: orders", 5))[0]);
    assert!(limits(&bench, 80).is_empty() && bench.snapshot.inbound.limits.len() == 1);
}

#[test]
fn what_is_counted_outlives_every_change() {
    let mut bench = beside_orders();
    bench.put(&resources(&limit("whole", "name: orders", 5)));
    let first = port(&bench, 80).limits[0].clone();
    bench.put(&resources(&limit("unrelated", "name: users", 5)));
    assert!(Arc::ptr_eq(&first, &port(&bench, 80).limits[0]), "the same limit");
    bench.put(&resources(&limit("whole", "name: orders", 7)));
    let second = port(&bench, 80).limits[0].clone();
    assert_eq!((first.rate.requests(), second.rate.requests()), (5, 7));
    assert!(Arc::ptr_eq(&first.counter, &second.counter), "the same counts");
}

#[test]
fn faults_are_of_the_port_then_the_oldest_and_touch_nothing_else() {
    let fault =
        |name: &str, target: &str| policy("FaultPolicy", name, target, "rules: [{delay: 1s}]");
    let aged = |name: &str, target: &str, created: &str| {
        let text = fault(name, target);
        text.replace(
            "namespace: shop}",
            &format!("namespace: shop, creationTimestamp: '{created}'}}"),
        )
    };
    let mut bench = beside_orders();
    assert!(bench.snapshot.faults.is_empty());
    let before = bench.snapshot.service("orders").unwrap().clone();
    let of = |bench: &Bench, port: u16| {
        let key = ClusterKey::Service(ObjectName::new("shop", "orders"), port);
        bench.snapshot.faults.get(&key).map(|policy| policy.name.name.to_string())
    };
    bench.put(&resources(&aged("new", "name: orders", "2026-02-01T00:00:00Z")));
    bench.put(&resources(&aged("old", "name: orders", "2026-01-01T00:00:00Z")));
    bench.put(&resources(&aged(
        "port",
        "name: orders, sectionName: admin",
        "2026-03-01T00:00:00Z",
    )));
    assert_eq!((of(&bench, 80), of(&bench, 81)), (Some("old".into()), Some("port".into())));
    assert!(Arc::ptr_eq(&before, bench.snapshot.service("orders").unwrap()), "nothing is rebuilt");
    let kept = bench.snapshot.faults.clone();
    bench.put(&resources(&limit("whole", "name: orders", 5)));
    assert!(Arc::ptr_eq(&kept, &bench.snapshot.faults));
    bench.remove(&resources(&fault("old", "name: orders"))[0]);
    assert_eq!(of(&bench, 80), Some("new".into()));
    // Policies may come before their service.
    let mut early = Bench::new(own());
    early.put(&resources(&fault("early", "name: orders")));
    assert!(early.snapshot.faults.is_empty());
    early.put(&resources(MESH));
    assert_eq!(of(&early, 80), Some("early".into()));
}

//! What a service's policy says to the sidecar that serves it.

use std::time::Duration;

use super::*;
use crate::cluster::Cluster;

const POLICY: &str = r"
apiVersion: leno.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {connect: 300ms, idle: 2h, request: 3s}
  breaker: {maxExchanges: 7}
  adaptiveConcurrency: {initial: 33}
  priorities: [{pathPrefix: /batch, priority: Sheddable}]
";

fn beside_orders() -> Bench {
    let own_workload = resources(MESH).iter().find_map(|resource| match &resource.model {
        Model::Workload(workload) => Some(workload.clone()),
        _ => None,
    });
    Bench::of(MESH, Own { workload: own_workload, ..own() })
}

fn application(bench: &Bench) -> Arc<Cluster> {
    bench.snapshot.inbound.by_destination["shop/orders:80"].cluster.clone()
}

#[test]
fn the_limit_and_the_connection_timeouts_hold_where_the_service_is_served() {
    let mut bench = beside_orders();
    let before = application(&bench);
    assert!(before.settings.adaptive_concurrency.is_none());
    bench.put(&resources(POLICY));
    let limited = application(&bench);
    let settings = &limited.settings;
    let concurrency = settings.adaptive_concurrency.as_ref().unwrap();
    assert_eq!((concurrency.initial, concurrency.priorities.len()), (33, 1));
    assert_eq!(settings.connect_timeout, Duration::from_millis(300));
    assert_eq!(settings.idle_timeout, Duration::from_secs(7200));
    // These are for callers.
    assert_eq!((settings.request_timeout, settings.max_exchanges), (Duration::ZERO, 65_536));
    assert!(Arc::ptr_eq(&limited.state, &before.state), "who is under way stays counted");
    assert!(Arc::ptr_eq(&limited.endpoints[0], &before.endpoints[0]));
    // Another configuration that says the same.
    bench.compile(&Dirty::default());
    assert!(Arc::ptr_eq(&application(&bench), &limited));
    bench.remove(&resources(POLICY)[0]);
    assert!(application(&bench).settings.adaptive_concurrency.is_none());
    assert!(Arc::ptr_eq(&application(&bench).state, &before.state));
}

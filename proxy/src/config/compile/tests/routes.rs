//! Routes that change one by one.

use super::*;

fn route(number: usize, namespace: &str, path: &str, host: Option<&str>) -> Arc<Resource> {
    let hosts = host.map(|host| format!("hostnames: ['{host}'], ")).unwrap_or_default();
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{number}, namespace: {namespace}}}\n\
         spec: {{{hosts}parentRefs: [{{group: '', kind: Service, name: orders, namespace: shop}}], \
         rules: [{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: orders-v2, port: 80}}]}}]}}\n"
    );
    resources(&text).remove(0)
}

/// Which rule each of some requests gets.
fn outcome(snapshot: &Snapshot) -> Vec<Option<String>> {
    let mut found = Vec::new();
    for host in ["orders.shop", "orders.example.com"] {
        for path in ["/", "/a", "/b", "/a/b"] {
            let headers = HeaderMap::new();
            let request =
                table::Request { host, method: &Method::GET, path, query: None, headers: &headers };
            let port = &snapshot.service("orders.shop").unwrap().ports[0];
            found.push(port.routes.find(request).map(|found| found.rule.route.to_string()));
        }
    }
    found
}

/// The same built of nothing but the inputs.
fn anew(bench: &Bench) -> Snapshot {
    let clusters = bench.inputs.services().keys().cloned().collect();
    let dirty = Dirty { clusters, hosts: true, inbound: true, ..Dirty::default() };
    let nothing = Snapshot::default();
    compile(&nothing, &bench.inputs, &dirty, &bench.own, &bench.slots, Known::Everything)
}

proptest! {
    #[test]
    fn they_end_where_building_anew_does(
        steps in prop::collection::vec((0..4usize, 0..5usize, 0..3usize, 0..8u8, any::<bool>()), 1..20),
    ) {
        let mut bench = Bench::of(MESH, Own { namespace: "web".to_owned(), ..own() });
        for (number, path, host, namespace, remove) in steps {
            // Now and then one of a consumer, ours or not.
            let namespace = ["web", "elsewhere", "shop"][usize::from(namespace.min(2))];
            let path = ["/", "/a", "/b", "/a/b", "/"][path];
            let host = [None, Some("orders.example.com"), Some("gateway.only")][host];
            let resource = route(number, namespace, path, host);
            match remove {
                true => bench.remove(&resource),
                false => bench.put(&[resource]),
            }
            prop_assert_eq!(outcome(&bench.snapshot), outcome(&anew(&bench)));
        }
    }
}

#[test]
fn what_did_not_change_is_the_same() {
    let mut bench = Bench::of(MESH, own());
    bench.put(&[route(1, "shop", "/a", None), route(2, "shop", "/b", None)]);
    let rules = |bench: &Bench| {
        let ports = &bench.snapshot.service("orders.shop").unwrap().ports;
        let mut rules: Vec<_> = ports[0].routes.rules().cloned().collect();
        rules.sort_by(|one, other| one.route.cmp(&other.route));
        rules
    };
    let before = rules(&bench);
    bench.put(&[route(2, "shop", "/c", None)]);
    let after = rules(&bench);
    let same: Vec<bool> =
        before.iter().zip(&after).map(|(one, other)| Arc::ptr_eq(one, other)).collect();
    assert_eq!(same, [true, true, false], "{after:?}");
    // A cluster that is another one is in all of them.
    let (workloads, _) = yaml::resources(
        "apiVersion: leno.dev/v1alpha1\nkind: Workload\nmetadata: {name: orders-9, namespace: shop}\n\
         spec: {services: [orders-v2], address: 10.0.0.9, ports: {default: 9001}}\n",
    );
    bench.put(&workloads.into_iter().map(Arc::new).collect::<Vec<_>>());
    assert!(rules(&bench).iter().zip(&after).all(|(one, other)| !Arc::ptr_eq(one, other)));
}

//! What cache policies make of ports and rules, and what a change of them leaves alone.

use leno_api::GATEWAY_GROUP;

use super::*;
use crate::{
    cache::{Cache, Rules},
    snapshot::{Port, Service},
};

const MESH: &str = r"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: products, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}, {name: admin, port: 81}, {name: db, port: 82, protocol: tcp}]}
---
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: users, namespace: shop}
spec: {ports: [{port: 80, protocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalogue, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: products, port: 80}]
  rules:
  - {name: search, matches: [{path: {value: /search}}], backendRefs: [{name: products, port: 80}]}
  - {matches: [{path: {value: /rest}}], backendRefs: [{name: users, port: 80}]}
";
const SERVICE: &str = "{kind: Service, name: products}";

fn route(section: &str) -> String {
    format!("{{group: {GATEWAY_GROUP}, kind: HTTPRoute, name: catalogue{section}}}")
}

fn policy(name: &str, target: &str, fields: &str) -> Vec<Arc<Resource>> {
    aged(name, target, fields, "")
}

fn aged(name: &str, target: &str, fields: &str, created: &str) -> Vec<Arc<Resource>> {
    resources(&format!(
        "apiVersion: leno.dev/v1alpha1\nkind: CachePolicy\n\
         metadata: {{name: {name}, namespace: shop{created}}}\n\
         spec: {{targetRefs: [{target}]{fields}}}\n"
    ))
}

fn service(bench: &Bench, name: &str) -> Arc<Service> {
    bench.snapshot.service(name).unwrap().clone()
}

fn port(bench: &Bench, number: u16) -> Option<Arc<Rules>> {
    let products = service(bench, "products");
    let port: &Port = products.port(Some(number)).unwrap();
    port.cache.clone()
}

fn rule(bench: &Bench, path: &str) -> Option<Arc<Rules>> {
    let request = table::Request {
        host: "products",
        method: &Method::GET,
        path,
        query: None,
        headers: &HeaderMap::new(),
    };
    let products = service(bench, "products");
    products.ports[0].routes.find(request).unwrap().rule.cache.clone()
}

/// The policy by which something is kept, and where.
fn names(rules: Option<Arc<Rules>>) -> Option<(String, String)> {
    rules.map(|rules| (rules.cache.policy().name.name.to_string(), rules.service.to_string()))
}

fn by(policy: &str, port: &str) -> Option<(String, String)> {
    Some((policy.to_owned(), format!("shop/products:{port}")))
}

fn held(bench: &Bench, name: &str) -> Option<Arc<Cache>> {
    bench.snapshot.caches.get(&ObjectName::new("shop", name)).cloned()
}

#[test]
fn a_policy_of_the_service_is_for_its_ports_and_all_rules_there() {
    let mut bench = Bench::of(MESH, own());
    assert!(port(&bench, 80).is_none() && rule(&bench, "/search").is_none());
    bench.put(&policy("whole", SERVICE, ""));
    assert_eq!(names(port(&bench, 80)), by("whole", "80"));
    assert_eq!(names(port(&bench, 81)), by("whole", "81"));
    assert!(port(&bench, 82).is_none(), "plain bytes");
    for path in ["/search", "/rest"] {
        let (rule, port) = (rule(&bench, path).unwrap(), port(&bench, 80).unwrap());
        assert!(Arc::ptr_eq(&rule, &port), "{path}");
    }
    // Both ports share the memory of the policy.
    let whole = held(&bench, "whole").unwrap();
    assert!(Arc::ptr_eq(&whole, &port(&bench, 81).unwrap().cache));
    bench.put(&policy("port", "{kind: Service, name: products, sectionName: admin}", ""));
    assert_eq!(
        (names(port(&bench, 80)), names(port(&bench, 81))),
        (by("whole", "80"), by("port", "81"))
    );
    bench.remove(&policy("whole", SERVICE, "")[0]);
    assert_eq!((names(port(&bench, 80)), names(port(&bench, 81))), (None, by("port", "81")));
    assert!(rule(&bench, "/rest").is_none() && held(&bench, "whole").is_none());
}

#[test]
fn a_policy_of_the_route_wins_and_one_of_the_rule_over_that() {
    let mut bench = Bench::of(MESH, own());
    let both = |bench: &Bench| (names(rule(bench, "/search")), names(rule(bench, "/rest")));
    bench.put(&policy("route", &route(""), ""));
    assert_eq!(both(&bench), (by("route", "80"), by("route", "80")));
    assert_eq!(names(port(&bench, 80)), None, "what no route takes");
    bench.put(&policy("service", SERVICE, ""));
    assert_eq!(both(&bench), (by("route", "80"), by("route", "80")));
    assert_eq!(names(port(&bench, 80)), by("service", "80"));
    bench.put(&policy("rule", &route(", sectionName: search"), ""));
    assert_eq!(both(&bench), (by("rule", "80"), by("route", "80")));
    // Rules without a name have none, also not their number.
    bench.put(&policy("number", &route(", sectionName: '1'"), ""));
    assert_eq!(both(&bench), (by("rule", "80"), by("route", "80")));
    bench.remove(&policy("route", &route(""), "")[0]);
    assert_eq!(both(&bench), (by("rule", "80"), by("service", "80")));
}

#[test]
fn what_is_off_is_off_whatever_is_said_of_more() {
    let mut bench = Bench::of(MESH, own());
    bench.put(&policy("service", SERVICE, ""));
    bench.put(&policy("off", &route(", sectionName: search"), ", enabled: false"));
    assert_eq!(
        (names(rule(&bench, "/search")), names(rule(&bench, "/rest"))),
        (None, by("service", "80"))
    );
    assert_eq!(names(port(&bench, 80)), by("service", "80"));
    assert!(held(&bench, "off").is_none(), "it takes no memory");
    bench.put(&policy(
        "admin",
        "{kind: Service, name: products, sectionName: admin}",
        ", enabled: false",
    ));
    assert_eq!((names(port(&bench, 80)), names(port(&bench, 81))), (by("service", "80"), None));
    // And the other way round: on for one rule only.
    bench.put(&policy("service", SERVICE, ", enabled: false"));
    bench.put(&policy("off", &route(", sectionName: search"), ", enabled: true"));
    assert_eq!(
        (names(rule(&bench, "/search")), names(rule(&bench, "/rest"))),
        (by("off", "80"), None)
    );
    assert!(port(&bench, 80).is_none() && held(&bench, "service").is_none());
}

#[test]
fn of_several_the_oldest_counts() {
    let dated = |name: &str, target: &str, month: u32| {
        aged(name, target, "", &format!(", creationTimestamp: '2026-{month:02}-01T00:00:00Z'"))
    };
    for target in [SERVICE.to_owned(), route(""), route(", sectionName: search")] {
        let mut bench = Bench::of(MESH, own());
        bench.put(&policy("a-undated", &target, ""));
        bench.put(&dated("b-new", &target, 2));
        bench.put(&dated("c-old", &target, 1));
        assert_eq!(names(rule(&bench, "/search")), by("c-old", "80"), "{target}");
    }
}

#[test]
fn what_is_kept_outlives_every_change() {
    let mut bench = Bench::of(MESH, own());
    bench.put(&policy("p", SERVICE, ""));
    let first = held(&bench, "p").unwrap();
    let all = bench.snapshot.caches.clone();
    bench.put(&resources(&MESH.replace("/search}", "/find}")));
    assert!(Arc::ptr_eq(&all, &bench.snapshot.caches), "no policy changed");
    // Another one; the same once more, as after a reconnection; the target's Service anew.
    bench.put(&policy("other", "{kind: Service, name: users}", ""));
    bench.put(&policy("p", SERVICE, ""));
    assert!(Arc::ptr_eq(&first, &held(&bench, "p").unwrap()));
    assert!(Arc::ptr_eq(&first, &port(&bench, 80).unwrap().cache));
    bench.put(&policy("p", SERVICE, ", defaultTtl: 30s"));
    let second = port(&bench, 80).unwrap().cache.clone();
    assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&second, &held(&bench, "p").unwrap()));
    assert_eq!(second.policy().default_ttl, Some(std::time::Duration::from_secs(30)));
    assert!(std::ptr::eq(first.store(), second.store()), "the same store");
}

#[test]
fn a_change_of_a_policy_concerns_what_it_targets_and_nothing_else() {
    let mut bench = Bench::of(MESH, own());
    let concerned = |bench: &mut Bench, change: &dyn Fn(&mut Bench)| {
        let names = ["products", "users"];
        let before = names.map(|name| (service(bench, name), bench.snapshot.clusters.clone()));
        change(bench);
        let rebuilt = names.iter().zip(before).filter_map(|(name, (old, clusters))| {
            let new = service(bench, name);
            assert!(
                clusters.iter().all(|(key, old)| Arc::ptr_eq(old, &bench.snapshot.clusters[key]))
            );
            (!Arc::ptr_eq(&old, &new)).then_some(*name)
        });
        rebuilt.collect::<Vec<_>>()
    };
    let users = "{kind: Service, name: users}";
    let rows = [
        (users.to_owned(), &["users"][..]),
        (SERVICE.to_owned(), &["products"]),
        (route(""), &["products"]),
        (format!("{users}, {}", route(", sectionName: search")), &["products", "users"]),
        (route("").replace("catalogue", "nowhere"), &[]),
        ("{kind: Service, name: nobody}".to_owned(), &[]),
    ];
    for (target, expected) in rows {
        let put = |bench: &mut Bench| bench.put(&policy("p", &target, ""));
        assert_eq!(concerned(&mut bench, &put), expected, "{target}");
        let change = |bench: &mut Bench| bench.put(&policy("p", &target, ", defaultTtl: 1s"));
        assert_eq!(concerned(&mut bench, &change), expected, "{target}");
        let remove = |bench: &mut Bench| bench.remove(&policy("p", &target, "")[0]);
        assert_eq!(concerned(&mut bench, &remove), expected, "{target}");
    }
    // Of two targets one is dropped: that, too, is told.
    bench.put(&policy("p", &format!("{users}, {SERVICE}"), ""));
    let narrower = |bench: &mut Bench| bench.put(&policy("p", SERVICE, ""));
    assert_eq!(concerned(&mut bench, &narrower), ["products", "users"]);
    assert!(service(&bench, "users").ports[0].cache.is_none());
}

#[test]
fn policies_may_come_before_what_they_target() {
    let mut bench = Bench::new(own());
    bench.put(&policy("route", &route(", sectionName: search"), ""));
    bench.put(&policy("service", SERVICE, ""));
    assert_eq!(bench.snapshot.caches.len(), 2);
    for document in MESH.split("---") {
        bench.put(&resources(document));
    }
    assert_eq!(names(rule(&bench, "/search")), by("route", "80"));
    assert_eq!(names(rule(&bench, "/rest")), by("service", "80"));
}

#[test]
fn a_grpc_route_of_that_name_is_another() {
    let mut bench = Bench::of(MESH, own());
    bench.put(&policy("route", &route(""), ""));
    let calls = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\n\
                 metadata: {name: catalogue, namespace: shop}\n\
                 spec: {parentRefs: [{group: '', kind: Service, name: products, port: 81}], rules: [{backendRefs: [{name: users, port: 80}]}]}\n";
    bench.put(&resources(calls));
    let products = service(&bench, "products");
    let request = table::Request {
        host: "products",
        method: &Method::POST,
        path: "/a.B/C",
        query: None,
        headers: &HeaderMap::new(),
    };
    let found = products.ports[1].routes.find(request).unwrap();
    assert_eq!(&*found.rule.route, "GRPCRoute shop/catalogue");
    assert!(found.rule.cache.is_none());
}

/// What is kept where, as text; by caches that are those of the snapshot and no older ones.
fn described(snapshot: &Snapshot) -> Vec<String> {
    let text = |rules: &Option<Arc<Rules>>| {
        rules.as_ref().map(|rules| {
            let policy = rules.cache.policy();
            assert!(Arc::ptr_eq(&rules.cache, &snapshot.caches[&policy.name]), "{}", policy.name);
            format!("{} {} {:?}", rules.service, policy.name, policy.default_ttl)
        })
    };
    let ports = snapshot.services.iter().flat_map(|service| &service.ports);
    let mut lines: Vec<_> = ports
        .flat_map(|port| {
            let rules = port.routes.rules().map(|rule| (rule.name.clone(), text(&rule.cache)));
            let mut rules: Vec<_> = rules.collect();
            rules.sort();
            [format!("{} {:?} {rules:?}", port.cluster.name, text(&port.cache))]
        })
        .collect();
    let caches = snapshot.caches.iter();
    lines.extend(caches.map(|(name, cache)| format!("{name} {:?}", cache.policy())));
    lines
}

proptest! {
    /// Whatever comes, changes and goes in whatever order.
    #[test]
    fn steps_lead_where_one_leap_leads(steps in proptest::collection::vec((0..7usize, 0..3usize), 0..30)) {
        let mut versions: Vec<Vec<Arc<Resource>>> = resources(MESH).into_iter().map(|one| vec![one]).collect();
        versions[2].extend(resources(&MESH.replace("port: 80}]\n  rules", "port: 81}]\n  rules").replace("search", "find")).pop());
        let both = |name: &str, targets: [&str; 2], fields: [&str; 2]| {
            let versions = targets.into_iter().zip(fields);
            versions.flat_map(|(target, fields)| policy(name, target, fields)).collect::<Vec<_>>()
        };
        let (route, rule) = (route(""), route(", sectionName: search"));
        versions.push(both("a", [SERVICE, SERVICE], ["", ", defaultTtl: 1s"]));
        versions.push(both("b", [&route, &rule], ["", ""]));
        versions.push(both("c", [&rule, SERVICE], [", enabled: false", ""]));
        versions.push(both("d", [&format!("{SERVICE}, {rule}"), "{kind: Service, name: users}"], [", enabled: false", ""]));
        let mut bench = Bench::new(own());
        let mut present: [Option<Arc<Resource>>; 7] = Default::default();
        for (at, version) in steps {
            present[at] = versions[at].get(version).cloned();
            match &present[at] {
                Some(resource) => bench.put(std::slice::from_ref(resource)),
                None => bench.remove(&versions[at][0]),
            }
            described(&bench.snapshot);
        }
        let mut leap = Bench::new(own());
        leap.put(&present.into_iter().flatten().collect::<Vec<_>>());
        prop_assert_eq!(described(&bench.snapshot), described(&leap.snapshot));
    }
}

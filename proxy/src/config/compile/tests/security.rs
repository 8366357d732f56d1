//! What identities and policies make of endpoints and of our own ports.

use leno_api::model::peer_authentication::TlsMode;

use super::*;
use crate::{cluster::Security, snapshot::InboundPort};

const MESH: &str = r"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}, {name: raw, port: 5432, protocol: tcp}]}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop, labels: {app: orders}}
spec:
  services: [orders]
  address: 10.0.0.1
  ports: {http: 9001, raw: 9002}
  serviceAccount: orders
  sidecar: {port: 15008, mutualTls: true}
";

fn peer_authentication(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: leno.dev/v1alpha1\nkind: PeerAuthentication\n\
         metadata: {{name: a-{}, namespace: {namespace}}}\nspec: {spec}\n",
        spec.bytes().map(u32::from).sum::<u32>()
    )
}

fn proof(trust_domain: Option<&str>) -> Proof {
    let trust_domain = trust_domain.map(|name| TrustDomain::parse(name).unwrap());
    Proof { expected: true, trust_domain, id: None }
}

fn beside_orders(text: &str, proof: Proof) -> Bench {
    let workload = resources(text).iter().find_map(|resource| match &resource.model {
        Model::Workload(workload) => Some(workload.clone()),
        _ => None,
    });
    Bench::of(text, Own { workload, proof, ..own() })
}

fn port(bench: &Bench, destination: &str) -> Arc<InboundPort> {
    bench.snapshot.inbound.by_destination[destination].clone()
}

/// How the endpoint behind each of the two ports is spoken to.
fn secured(bench: &Bench) -> [String; 2] {
    let ports = &bench.snapshot.service("orders").unwrap().ports;
    let text = |at: usize| match &ports[at].cluster.endpoints[0].security {
        Security::Plain => "plain".to_owned(),
        Security::Unavailable(why) => why.as_str().to_owned(),
        Security::Mutual(target) => target.expected().to_string(),
    };
    [text(0), text(1)]
}

#[test]
fn hops_are_secured_where_both_ends_can_and_nobody_says_otherwise() {
    const ORDERS: &str = "spiffe://mesh/ns/shop/sa/orders";
    let known = || proof(Some("mesh"));
    let policy = peer_authentication;
    let without = MESH.replace(", mutualTls: true", "");
    let alone = MESH.replace("sidecar: {port: 15008, mutualTls: true}", "weight: 1");
    for (what, text, proof, expected) in [
        ("no identity", MESH.to_owned(), Proof::default(), ["plain"; 2]),
        ("not yet", MESH.to_owned(), proof(None), ["no certificate yet"; 2]),
        ("both can", MESH.to_owned(), known(), [ORDERS; 2]),
        ("the other cannot", without, known(), ["plain"; 2]),
        ("the other has no sidecar", alone, known(), ["plain"; 2]),
        (
            "permissive",
            MESH.to_owned() + &policy("shop", "{mtls: {mode: PERMISSIVE}}"),
            known(),
            [ORDERS; 2],
        ),
        (
            "disabled",
            MESH.to_owned() + &policy("shop", "{mtls: {mode: DISABLE}}"),
            proof(None),
            ["plain"; 2],
        ),
        (
            "disabled for one port",
            MESH.to_owned() + &policy("shop", "{portLevelMtls: {'9002': {mode: DISABLE}}}"),
            known(),
            [ORDERS, "plain"],
        ),
        (
            "disabled elsewhere",
            MESH.to_owned() + &policy("other", "{mtls: {mode: DISABLE}}"),
            known(),
            [ORDERS; 2],
        ),
        (
            "disabled for the mesh, but not here",
            MESH.to_owned()
                + &policy("leno-system", "{mtls: {mode: DISABLE}}")
                + &policy("shop", "{mtls: {mode: STRICT}}"),
            known(),
            [ORDERS; 2],
        ),
    ] {
        assert_eq!(secured(&Bench::of(&text, Own { proof, ..own() })), expected, "{what}");
    }
}

#[test]
fn own_ports_take_what_policies_say_and_else_what_can_be_proven() {
    use TlsMode::{Disable, Permissive, Strict};
    let policy = peer_authentication;
    for (what, policies, proof, modes, only_tls) in [
        ("no identity", String::new(), Proof::default(), [Disable, Disable], false),
        ("an identity to come", String::new(), proof(None), [Strict, Strict], true),
        (
            "asked for without an identity",
            policy("shop", "{mtls: {mode: STRICT}}"),
            Proof::default(),
            [Strict, Strict],
            true,
        ),
        (
            "one port",
            policy("shop", "{portLevelMtls: {'9001': {mode: PERMISSIVE}}}"),
            proof(None),
            [Permissive, Strict],
            false,
        ),
        (
            "chosen by labels",
            policy("shop", "{selector: {matchLabels: {app: orders}}, mtls: {mode: DISABLE}}"),
            proof(None),
            [Disable, Disable],
            false,
        ),
        (
            "somebody else's labels",
            policy("shop", "{selector: {matchLabels: {app: users}}, mtls: {mode: DISABLE}}"),
            proof(None),
            [Strict, Strict],
            true,
        ),
    ] {
        let expected = proof.expected;
        let bench = beside_orders(&(MESH.to_owned() + &policies), proof);
        let found = ["shop/orders:80", "shop/orders:5432"].map(|name| port(&bench, name).mode);
        assert_eq!((found, bench.snapshot.inbound.only_tls), (modes, only_tls), "{what}");
        assert_eq!(bench.snapshot.inbound.tls, expected || modes != [Disable; 2], "{what}");
    }
}

#[test]
fn endpoints_are_made_anew_when_what_is_proven_changes() {
    let mut bench = Bench::of(MESH, Own { proof: proof(None), ..own() });
    let endpoint = |bench: &Bench| {
        bench.snapshot.service("orders").unwrap().ports[0].cluster.endpoints[0].clone()
    };
    let everything = |bench: &Bench| Dirty {
        clusters: bench.inputs.services().keys().cloned().collect(),
        ..Dirty::default()
    };
    let waiting = endpoint(&bench);
    bench.own.proof = proof(Some("mesh"));
    bench.compile(&everything(&bench));
    let known = endpoint(&bench);
    assert_ne!(waiting.id, known.id);
    assert_eq!(known.peer().map(|peer| &**peer), Some("spiffe://mesh/ns/shop/sa/orders"));
    bench.compile(&everything(&bench));
    assert!(Arc::ptr_eq(&known, &endpoint(&bench)), "the same is kept, with its connections");
    // Another account behind the same address is somebody else.
    bench.put(&resources(&MESH.replace("serviceAccount: orders", "serviceAccount: other")));
    assert_ne!(known.id, endpoint(&bench).id);
}

const POLICIES: &str = r"
---
apiVersion: leno.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders}], action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: leno.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: users, namespace: shop}
spec: {targetRefs: [{kind: Service, name: users}], action: DENY, rules: [{}]}
---
apiVersion: leno.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: elsewhere, namespace: other}
spec: {action: DENY, rules: [{}]}
---
apiVersion: leno.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: tokens, namespace: leno-system}
spec: {jwtRules: [{issuer: me, jwksUri: 'https://keys.example.com/'}]}
";

#[test]
fn guards_are_those_of_the_port_and_kept_while_they_are_the_same() {
    let mut bench = beside_orders(&(MESH.to_owned() + POLICIES), Proof::default());
    let guards = |bench: &Bench| port(bench, "shop/orders:80").guards.clone();
    let before = guards(&bench).unwrap();
    let (jwt, authz) = &before.policies;
    assert_eq!(
        jwt.iter().map(|policy| policy.name.to_string()).collect::<Vec<_>>(),
        ["leno-system/tokens"]
    );
    assert_eq!(
        authz.iter().map(|policy| policy.name.to_string()).collect::<Vec<_>>(),
        ["shop/readers"]
    );
    assert!(!before.jwt.is_empty() && !before.authz.is_empty());
    bench.put(&resources(&peer_authentication("shop", "{mtls: {mode: PERMISSIVE}}")));
    assert!(Arc::ptr_eq(&before, &guards(&bench).unwrap()));
    let readers = POLICIES.split("---").nth(1).unwrap();
    bench.put(&resources(&readers.replace("GET", "HEAD")));
    assert!(!Arc::ptr_eq(&before, &guards(&bench).unwrap()));
    for resource in resources(POLICIES) {
        bench.remove(&resource);
    }
    assert!(guards(&bench).is_none());
}

/// Everything about identity that a snapshot says.
fn describe(bench: &Bench) -> Vec<String> {
    let clusters = bench.snapshot.clusters.values().flat_map(|cluster| {
        let name = cluster.name.clone();
        let line = move |endpoint: &Arc<crate::cluster::Endpoint>| {
            let security = match &endpoint.security {
                Security::Mutual(target) => target.expected().to_string(),
                other => format!("{other:?}"),
            };
            format!("{name} {} {security}", endpoint.address())
        };
        cluster.endpoints.iter().map(line).collect::<Vec<_>>()
    });
    let inbound = &bench.snapshot.inbound;
    let ports = inbound.by_destination.values().map(|port| {
        let policies = port.guards.as_ref().map(|guards| {
            let names = guards.policies.1.iter().map(|policy| policy.name.to_string());
            names.collect::<Vec<_>>()
        });
        format!("{} {:?} {policies:?} {}", port.destination, port.mode, inbound.only_tls)
    });
    let mut lines: Vec<_> = clusters.chain(ports).collect();
    lines.sort();
    lines
}

proptest! {
    /// As for routes: steps lead where one leap leads, whatever comes first.
    #[test]
    fn policies_count_whenever_they_come(steps in proptest::collection::vec((0..8usize, any::<bool>()), 0..24)) {
        let text = MESH.to_owned() + &POLICIES.replace("elsewhere, namespace: other", "here, namespace: shop")
            + &peer_authentication("shop", "{portLevelMtls: {'9001': {mode: DISABLE}}}")
            + &peer_authentication("leno-system", "{mtls: {mode: PERMISSIVE}}");
        let all = resources(&text);
        prop_assert_eq!(all.len(), 8);
        let start = || beside_orders(MESH, proof(Some("mesh")));
        let (mut bench, mut leap) = (start(), start());
        let mut present = [true, true, false, false, false, false, false, false];
        for (at, put) in steps {
            present[at] = put;
            if put {
                bench.put(std::slice::from_ref(&all[at]));
            } else {
                bench.remove(&all[at]);
            }
        }
        for (resource, present) in all.iter().zip(present) {
            if !present {
                leap.remove(resource);
            }
        }
        let kept: Vec<_> = all.iter().zip(present).filter(|(_, kept)| *kept).map(|(resource, _)| resource.clone()).collect();
        leap.put(&kept);
        prop_assert_eq!(describe(&bench), describe(&leap));
    }
}

/// `orders` and a part of it, each with a policy of every kind that works beside the called application.
const PARTS: &str = r"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}]}
---
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders-v2, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}], subset: {of: orders, matchLabels: {version: v2}}}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop, labels: {version: VERSION}}
spec: {services: [orders], address: 10.0.0.1, ports: {http: 9001}, sidecar: {port: 15008, mutualTls: true}}
---
apiVersion: leno.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders-v2}], action: DENY, rules: [{}]}
---
apiVersion: leno.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders-v2}], jwtRules: [{issuer: i, jwksUri: 'https://i/k'}]}
---
apiVersion: leno.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: plain, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders-v2}], mtls: {mode: DISABLE}}
---
apiVersion: leno.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: few, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders-v2}], limits: [{name: all, requests: 5, per: 1s}]}
---
apiVersion: leno.dev/v1alpha1
kind: WasmPlugin
metadata: {name: tag, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders-v2}], url: 'file:///tag.wasm', match: [{mode: SERVER}]}
---
apiVersion: leno.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: calm, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders-v2}], adaptiveConcurrency: {}}
";

#[test]
fn policies_for_a_part_hold_at_those_workloads_of_the_whole_that_are_in_it() {
    for (version, inside) in [("v2", true), ("v1", false)] {
        let text = PARTS.replace("VERSION", version);
        let mut bench = beside_orders(&text, proof(Some("mesh")));
        let held = |bench: &Bench| {
            let port = port(bench, "shop/orders:80");
            let guards = port.guards.as_ref();
            let guards =
                guards.map_or((0, 0), |held| (held.policies.0.len(), held.policies.1.len()));
            let adaptive = port.cluster.settings.adaptive_concurrency.is_some();
            let plain = port.mode == TlsMode::Disable;
            (guards, port.limits.len(), port.plugins.is_some(), adaptive, plain)
        };
        let all = ((1, 1), 1, true, true, true);
        let none = ((0, 0), 0, false, false, false);
        assert_eq!(held(&bench), if inside { all } else { none }, "{version}");
        let called = |bench: &Bench| {
            let ports = &bench.snapshot.service("orders").unwrap().ports;
            matches!(ports[0].cluster.endpoints[0].security, Security::Plain)
        };
        assert_eq!(called(&bench), inside, "callers know how it is spoken to");
        // The part has other labels, and comes and goes, while the rest stays.
        let part = &resources(&text)[1];
        bench.remove(part);
        assert_eq!((held(&bench), called(&bench)), (none, false), "{version}");
        bench.put(
            &resources(&text.replace("{version: v2}", &format!("{{version: {version}}}")))[1..2],
        );
        assert_eq!((held(&bench), called(&bench)), (all, true), "{version}");
    }
}

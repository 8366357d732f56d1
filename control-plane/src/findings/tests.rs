use serde_json::{Value, json};

use super::*;
use crate::store::{Expect, MemoryStore};

fn key(plural: &str, name: &str) -> Key {
    let group = match plural {
        "httproutes" => "gateway.networking.k8s.io",
        _ => "leno.dev",
    };
    Key::new(group, plural, "shop", name)
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Service",
           "metadata": {"name": name, "namespace": "shop"},
           "spec": {"ports": [{"name": "http", "port": 80, "protocol": "http"}]}})
}

fn route(name: &str, backend: &str) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
           "metadata": {"name": name, "namespace": "shop"},
           "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders"}],
                    "rules": [{"backendRefs": [{"name": backend, "port": 80}]}]}})
}

fn policy(name: &str, created: &str) -> Value {
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": "TrafficPolicy",
           "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
           "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "orders"}],
                    "timeouts": {"request": "1s"}}})
}

struct Bench {
    store: Arc<MemoryStore>,
    findings: Arc<Findings>,
}

impl Bench {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        Self { findings: Findings::new(store.clone()), store }
    }

    async fn put(&self, plural: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.store.put(key(plural, name), object.to_string().into(), Expect::Any).await.unwrap();
    }

    async fn delete(&self, plural: &str, name: &str) {
        let delete =
            crate::store::Operation::Delete { key: key(plural, name), expect: Expect::Exists };
        self.store.commit(vec![delete]).await.unwrap();
    }

    /// The places where something is odd.
    fn odd(&self, plural: &str, name: &str) -> Vec<String> {
        let said = self.findings.of(&key(plural, name)).unwrap().unwrap();
        said.into_iter().map(|(path, _)| path).collect()
    }

    fn stirred(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.findings.stirred(100).unwrap().iter().map(|key| key.name.to_string()).collect();
        names.sort_unstable();
        names
    }
}

#[tokio::test]
async fn what_is_missing_and_comes_and_goes() {
    let bench = Bench::new();
    bench.put("services", &service("orders")).await;
    bench.put("httproutes", &route("canary", "next")).await;
    assert_eq!(bench.odd("httproutes", "canary"), ["spec.rules[0].backendRefs[0]"]);
    assert_eq!(bench.stirred(), ["canary", "orders"]);
    assert_eq!(bench.stirred(), [""; 0]);

    bench.put("services", &service("next")).await;
    assert_eq!(bench.stirred(), ["canary", "next"]);
    assert_eq!(bench.odd("httproutes", "canary"), [""; 0]);

    bench.delete("services", "next").await;
    assert_eq!(bench.stirred(), ["canary"]);
    assert_eq!(bench.odd("httproutes", "canary"), ["spec.rules[0].backendRefs[0]"]);
    assert!(bench.findings.of(&key("services", "next")).unwrap().is_none());
}

#[tokio::test]
async fn the_younger_of_two_loses_until_the_older_goes() {
    let bench = Bench::new();
    bench.put("services", &service("orders")).await;
    bench.put("trafficpolicies", &policy("new", "2026-02-01T00:00:00Z")).await;
    assert_eq!(bench.odd("trafficpolicies", "new"), [""; 0]);
    bench.stirred();

    bench.put("trafficpolicies", &policy("old", "2026-01-01T00:00:00Z")).await;
    assert_eq!(bench.stirred(), ["new", "old"]);
    assert_eq!(bench.odd("trafficpolicies", "new"), ["spec.targetRefs[0]"]);
    assert_eq!(bench.odd("trafficpolicies", "old"), [""; 0]);

    bench.delete("trafficpolicies", "old").await;
    assert_eq!(bench.stirred(), ["new"]);
    assert_eq!(bench.odd("trafficpolicies", "new"), [""; 0]);
}

#[tokio::test]
async fn few_at_a_time_and_none_is_forgotten() {
    let bench = Bench::new();
    for name in ["a", "b", "c"] {
        bench.put("services", &service(name)).await;
    }
    let mut seen = Vec::new();
    for _ in 0..3 {
        let some = bench.findings.stirred(1).unwrap();
        assert_eq!(some.len(), 1);
        seen.extend(some);
    }
    seen.sort_unstable();
    assert_eq!(seen, ["a", "b", "c"].map(|name| key("services", name)));
    assert!(bench.findings.stirred(1).unwrap().is_empty());
}

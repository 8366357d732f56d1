//! Kubernetes as the source of truth: real processes of the control plane and of proxies, and an API server in this process
//! that speaks Kubernetes' wire formats ([`api_server`]).

mod api_server;
mod faults;
mod replicas;

use std::{fs, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;

use self::api_server::ApiServer;
use crate::{
    client,
    control_plane::ControlPlane,
    mesh::{Mesh, Proxy, until},
    origin::Origin,
};

const HTTP_ROUTES: &str = "apis/gateway.networking.k8s.io/v1/httproutes";
const CONFIG_MAPS: &str = "api/v1/configmaps";

/// An API server and what points to it.
struct Cluster {
    server: ApiServer,
    folder: TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let server = ApiServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", server.address)}}],
        });
        fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let cluster = Self { server, folder };
        cluster.server.put(namespace("shop", "enabled"));
        cluster
    }

    /// A control plane that takes everything from here.
    async fn control_plane(&self, more: &[&str]) -> ControlPlane {
        let config = self.folder.path().join("kubeconfig").display().to_string();
        let flags = ["--kubernetes", "--kubernetes-config", &config, "--log", "info"];
        ControlPlane::start(&[&flags, more].concat()).await
    }

    /// The sidecar of a pod: proves itself by the token that Kubernetes has mounted there.
    fn sidecar(&self, control_plane: &ControlPlane, account: &str, pod: &str) -> Mesh {
        let token = format!("{account}.token.x");
        self.server.token(&token, reviewed("shop", account, pod));
        let file = self.folder.path().join(format!("{pod}.token"));
        fs::write(&file, token).unwrap();
        Mesh::default().arguments(&[
            "--control-plane",
            &control_plane.xds.to_string(),
            "--ca-file",
            &control_plane.data().join("root.pem").display().to_string(),
            "--token-file",
            &file.display().to_string(),
            "--namespace",
            "shop",
            "--service-account",
            account,
            "--name",
            pod,
        ])
    }

    /// A service with one port, `http`, and a ready pod without a sidecar for each origin.
    fn service(&self, name: &str, origins: &[&Origin]) {
        self.server.put(service(name));
        let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
        for (at, address) in addresses.iter().enumerate() {
            let pod = format!("{name}-{at}");
            self.server.put(pod_at(&pod, address.ip().to_string(), &["app"]));
            self.server.put(slice(&pod, name, *address, json!({"ready": true})));
        }
    }

    fn live(&self, name: &str) -> Option<Value> {
        let route = self.server.get(HTTP_ROUTES, "shop", name)?;
        let conditions = route["status"]["parents"][0]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|condition| condition["type"] == "Live")
    }
}

fn namespace(name: &str, inject: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
           "metadata": {"name": name, "labels": {"leno.dev/inject": inject}}})
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "None", "selector": {"app": name},
                 "ports": [{"name": "http", "port": 80, "targetPort": "web"}]},
    })
}

fn pod_at(name: &str, address: String, containers: &[&str]) -> Value {
    let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"pod": name}},
        "spec": {"serviceAccountName": "orders", "containers": containers},
        "status": {"phase": "Running", "podIP": address},
    })
}

fn slice(pod: &str, service: &str, address: SocketAddr, conditions: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": pod, "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"addresses": [address.ip().to_string()], "conditions": conditions,
                       "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"}}],
        "ports": [{"name": "http", "port": address.port(), "protocol": "TCP"}],
    })
}

/// All requests for `service` go to `backend`.
fn route(service: &str, backend: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": service, "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": service}],
                 "rules": [{"backendRefs": [{"name": backend, "port": 80}]}]},
    })
}

fn reviewed(namespace: &str, account: &str, pod: &str) -> Value {
    json!({"authenticated": true, "audiences": ["leno"], "user": {
        "username": format!("system:serviceaccount:{namespace}:{account}"),
        "extra": {"authentication.kubernetes.io/pod-name": [pod]}}})
}

/// Waits until calls of a host are answered by this origin.
async fn answered_by(proxy: &Proxy, host: &str, origin: &str) {
    until("an answer of the right origin", async || {
        let answer = client::get(proxy.outbound, host, "/").await;
        (answer.status == 200 && answer.header("x-origin") == Some(origin)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pods_are_called_and_routes_obeyed_as_kubernetes_has_them() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    cluster.service("orders-v2", &[&b]);
    let control_plane = cluster.control_plane(&[]).await;
    let proxy = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    // What is there before anybody asks is known at the first request.
    let answer = client::get(proxy.outbound, "orders", "/").await;
    assert_eq!((answer.status, answer.header("x-origin")), (200, Some("a")));
    cluster.server.put(route("orders", "orders-v2"));
    answered_by(&proxy, "orders", "b").await;
    // And Kubernetes hears what became of it.
    let live = until("the status of the route", async || {
        cluster.live("orders").filter(|live| live["status"] == "True")
    })
    .await;
    assert!(live["message"].as_str().unwrap().contains("live on 1 of 1"), "{live}");
    cluster.server.delete(HTTP_ROUTES, "shop", "orders");
    answered_by(&proxy, "orders", "a").await;
    // A pod that is not ready any more takes nothing; with no other, nobody does.
    cluster.server.put(slice("orders-0", "orders", a.address, json!({"ready": false})));
    until("no endpoint", async || {
        (client::get(proxy.outbound, "orders", "/").await.status == 503).then_some(())
    })
    .await;
    cluster.server.put(slice("orders-0", "orders", b.address, json!({"ready": true})));
    answered_by(&proxy, "orders", "b").await;
}

#[tokio::test]
async fn two_sidecars_prove_themselves_by_their_pods_tokens() {
    let app = Origin::echo("app").await;
    let cluster = Cluster::start().await;
    // The sidecar's port is the same in every pod, so each needs an address of its own.
    let unique = rand_byte();
    let address = format!("127.15.{unique}.{}", rand_byte());
    cluster.server.put(service("orders"));
    cluster.server.put(pod_at("orders-1", address.clone(), &["app", "leno-proxy"]));
    let behind = SocketAddr::new(address.parse().unwrap(), app.address.port());
    cluster.server.put(slice("orders-1", "orders", behind, json!({"ready": true})));
    let control_plane = cluster.control_plane(&[]).await;
    let callee = cluster.sidecar(&control_plane, "orders", "orders-1");
    let callee = callee.arguments(&["--inbound", &format!("{address}:15006")]).start().await;
    let caller = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    until("a call between the sidecars", async || {
        (client::get(caller.outbound, "orders", "/").await.status == 200).then_some(())
    })
    .await;
    let line = callee.access_log(1).await.pop().unwrap();
    assert_eq!(line["downstream_peer"], "spiffe://cluster.local/ns/shop/sa/caller", "{line}");
    assert_eq!(app.requests().len(), 1);
}

#[tokio::test]
async fn a_token_that_kubernetes_does_not_know_proves_nothing() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane(&[]).await;
    let mesh = cluster.sidecar(&control_plane, "caller", "caller-1");
    cluster.server.token("caller.token.x", json!({"authenticated": false, "error": "expired"}));
    let proxy = mesh.start().await;
    until("the refusal", async || {
        proxy.errors().contains("Kubernetes does not accept the token: expired").then_some(())
    })
    .await;
    // Of another account, it is good for that one only.
    cluster.server.token("other.token.x", reviewed("shop", "other", "other-1"));
    let file = cluster.folder.path().join("caller-1.token");
    fs::write(file, "other.token.x").unwrap();
    until("the other refusal", async || proxy.errors().contains("ns/shop/sa/other").then_some(()))
        .await;
    assert!(!control_plane.errors().contains("token.x"), "a token in the log");
}

#[tokio::test]
async fn people_write_to_kubernetes_and_only_read_here() {
    let cluster = Cluster::start().await;
    cluster.server.put(service("orders"));
    let control_plane = cluster.control_plane(&[]).await;
    let path = "/apis/leno.dev/v1alpha1/namespaces/shop/services";
    let answer = control_plane.call("GET", &format!("{path}/orders"), &Value::Null).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let object: Value = serde_json::from_str(&answer.text()).unwrap();
    for (method, path) in [
        ("POST", path.to_owned()),
        ("PUT", format!("{path}/orders")),
        ("DELETE", format!("{path}/orders")),
        ("POST", "/apis/leno.dev/v1alpha1/apply".to_owned()),
    ] {
        let answer = control_plane.call(method, &path, &object).await;
        assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text());
        assert!(answer.text().contains("kubectl apply"), "{}", answer.text());
    }
}

#[tokio::test]
async fn every_namespace_with_sidecars_has_the_roots() {
    let cluster = Cluster::start().await;
    cluster.server.put(namespace("other", "disabled"));
    let control_plane = cluster.control_plane(&[]).await;
    let root = fs::read_to_string(control_plane.data().join("root.pem")).unwrap();
    let roots = |namespace: &str| {
        let map = cluster.server.get(CONFIG_MAPS, namespace, "leno-root")?;
        map["data"]["root.pem"].as_str().map(str::to_owned)
    };
    let there = until("the roots", async || roots("shop")).await;
    assert_eq!(there.trim(), root.trim());
    // Deleted and changed ones come back.
    cluster.server.delete(CONFIG_MAPS, "shop", "leno-root");
    until("the roots again", async || roots("shop")).await;
    cluster.server.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "leno-root", "namespace": "shop"}, "data": {"root.pem": "x"}}));
    until("the right roots", async || roots("shop").filter(|roots| roots.trim() == root.trim()))
        .await;
    assert_eq!(roots("other"), None);
    // A pod that was injected by hand needs them as well.
    let mut pod = pod_at("by-hand", "127.0.0.1".into(), &["leno-proxy"]);
    pod["metadata"]["namespace"] = "other".into();
    cluster.server.put(pod);
    until("the roots of another namespace", async || roots("other")).await;
}

fn rand_byte() -> u8 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) % 250) as u8 + 1
}

/// Long enough that whatever would happen has.
const A_WHILE: Duration = Duration::from_secs(2);

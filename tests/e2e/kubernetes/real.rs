//! Against a real API server, with the rights that docs/kubernetes-source.md names and no others. It takes a binary that no
//! package has: `tests/kube-apiserver.sh` builds one from Debian's source package, in about ten minutes of a core. Where
//! `LENO_KUBE_APISERVER` does not name it the test says so and proves nothing.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use kube::{
    Api, Client, Config,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{answered_by, namespace, pod_at, route, service, slice};
use crate::{
    client,
    control_plane::ControlPlane,
    mesh::{Mesh, until},
    origin::Origin,
};

struct RealCluster {
    processes: Vec<Child>,
    folder: TempDir,
    port: u16,
}

impl Drop for RealCluster {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("api-server.log"));
            let log = log.unwrap_or_default();
            eprintln!("the API server said last:\n{}", &log[log.len().saturating_sub(3000)..]);
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl RealCluster {
    async fn start(binary: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let etcd = Command::new("etcd")
            .args(["--data-dir", &at("etcd"), "--listen-client-urls", &etcd_url])
            .args(["--advertise-client-urls", &etcd_url, "--listen-peer-urls", &peer_url])
            .stdin(Stdio::null())
            .stdout(fs::File::create(at("etcd.log")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts; Debian's package is etcd-server");
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(at("sa.key"), key.serialize_pem()).unwrap();
        fs::write(at("sa.pub"), key.public_key_pem()).unwrap();
        let users = "admin-token,admin,admin,system:masters\nleno-token,leno,leno\n";
        fs::write(at("users.csv"), users).unwrap();
        let api_server = Command::new(binary)
            .args(["--etcd-servers", &etcd_url, "--secure-port", &port.to_string()])
            .args(["--cert-dir", &at("certs"), "--token-auth-file", &at("users.csv")])
            .args(["--service-account-key-file", &at("sa.pub")])
            .args(["--service-account-signing-key-file", &at("sa.key")])
            .args(["--service-account-issuer", "https://kubernetes.test"])
            .args(["--service-cluster-ip-range", "10.96.0.0/16", "--authorization-mode", "RBAC"])
            .args(["--bind-address", "127.0.0.1", "--disable-admission-plugins", "ServiceAccount"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("api-server.log")).unwrap())
            .spawn()
            .expect("the API server starts");
        let cluster = Self { processes: vec![etcd, api_server], folder, port };
        for user in ["admin", "leno"] {
            cluster.write_kubeconfig(user);
        }
        let client = cluster.client().await;
        let namespaces: Api<DynamicObject> = Api::all_with(client, &resource("v1", "Namespace"));
        // It takes its time to make what every cluster has.
        for _ in 0..10 {
            let ready = tokio::time::timeout(crate::mesh::PATIENCE, async {
                while namespaces.get("default").await.is_err() {
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            });
            if ready.await.is_ok() {
                return cluster;
            }
        }
        panic!("the API server never became ready");
    }

    fn kubeconfig(&self, user: &str) -> std::path::PathBuf {
        self.folder.path().join(format!("{user}.kubeconfig"))
    }

    fn write_kubeconfig(&self, user: &str) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "users": [{"name": user, "user": {"token": format!("{user}-token")}}],
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "insecure-skip-tls-verify": true}}],
        });
        fs::write(self.kubeconfig(user), config.to_string()).unwrap();
    }

    async fn client(&self) -> Client {
        let config = Kubeconfig::read_from(self.kubeconfig("admin")).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
        Client::try_from(config.unwrap()).unwrap()
    }

    /// Applies as kubectl does; the status, too, where there is one.
    async fn apply(&self, object: Value) {
        let client = self.client().await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = resource(&text(&object["apiVersion"]), &text(&object["kind"]));
        let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let name = text(&object["metadata"]["name"]);
        let parameters = PatchParams::apply("test").force();
        api.patch(&name, &parameters, &Patch::Apply(&object)).await.unwrap();
        if object.get("status").is_some() {
            let status = json!({"status": object["status"]});
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        }
    }

    async fn get(&self, version: &str, kind: &str, name: &str) -> Option<Value> {
        let client = self.client().await;
        let api: Api<DynamicObject> =
            Api::namespaced_with(client, "shop", &resource(version, kind));
        api.get_opt(name).await.unwrap().map(|object| serde_json::to_value(object).unwrap())
    }

    /// As the kubelet gets it for a pod.
    async fn token(&self, account: &str) -> String {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                             "spec": {"audiences": ["leno"], "expirationSeconds": 3600}});
        let client = self.client().await;
        let accounts: Api<DynamicObject> =
            Api::namespaced_with(client, "shop", &resource("v1", "ServiceAccount"));
        let body = request.to_string().into_bytes();
        let made: Value = accounts
            .create_subresource("token", account, &PostParams::default(), body)
            .await
            .unwrap();
        made["status"]["token"].as_str().unwrap().to_owned()
    }
}

fn resource(version: &str, kind: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn crd(group: &str, version: &str, kind: &str, plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}"),
                     "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
        "spec": {"group": group, "scope": "Namespaced",
                 "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind},
                 "versions": [{"name": version, "served": true, "storage": true,
                               "subresources": {"status": {}},
                               "schema": {"openAPIV3Schema": {
                                   "type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    })
}

/// What docs/kubernetes-source.md says that the control plane needs.
fn rights() -> [Value; 2] {
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let read = ["get", "list", "watch"];
    let routes = "gateway.networking.k8s.io";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "leno"},
        "rules": [
            rule(&[""], &["namespaces", "services", "pods"], &read),
            rule(&["discovery.k8s.io"], &["endpointslices"], &read),
            rule(&["leno.dev", routes], &["*"], &read),
            rule(&["leno.dev", routes], &["*/status"], &["patch"]),
            rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
            rule(&["coordination.k8s.io"], &["leases"], &["get", "create", "update"]),
            rule(&[""], &["configmaps"], &["get", "list", "watch", "create", "patch"]),
            rule(&["admissionregistration.k8s.io"],
                 &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
                 &["get", "list", "watch", "update"]),
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "leno"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "leno"},
        "subjects": [{"kind": "User", "name": "leno", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    [role, binding]
}

#[tokio::test]
async fn a_real_api_server() {
    let Ok(binary) = std::env::var("LENO_KUBE_APISERVER") else {
        eprintln!(
            "skipped: LENO_KUBE_APISERVER names no kube-apiserver (tests/kube-apiserver.sh builds one)"
        );
        return;
    };
    let cluster = RealCluster::start(&binary).await;
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    for right in rights() {
        cluster.apply(right).await;
    }
    for name in ["shop", "leno-system"] {
        cluster.apply(namespace(name, "enabled")).await;
    }
    cluster.apply(crd("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes")).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                         "metadata": {"name": "caller", "namespace": "shop"}});
    cluster.apply(account).await;
    for (name, origin) in [("orders", &a), ("orders-v2", &b)] {
        let pod = format!("{name}-0");
        cluster.apply(service(name)).await;
        let mut object = pod_at(&pod, origin.address.ip().to_string(), &["app"]);
        object["spec"]["containers"][0]["image"] = "app".into();
        cluster.apply(object).await;
        let mut object = slice(&pod, name, origin.address, json!({"ready": true}));
        // The newest that Debian's source has is older than `v1`.
        object["apiVersion"] = "discovery.k8s.io/v1beta1".into();
        // A real one lets no slice name a loopback address; the pod's own is what counts.
        object["endpoints"][0]["addresses"] = json!(["10.1.2.3"]);
        cluster.apply(object).await;
    }
    let config = cluster.kubeconfig("leno").display().to_string();
    let control_plane =
        ControlPlane::start(&["--kubernetes", "--kubernetes-config", &config]).await;
    let token = cluster.folder.path().join("token");
    fs::write(&token, cluster.token("caller").await).unwrap();
    let proxy = Mesh::default().arguments(&[
        "--control-plane",
        &control_plane.xds.to_string(),
        "--ca-file",
        &control_plane.data().join("root.pem").display().to_string(),
        "--token-file",
        &token.display().to_string(),
        "--namespace",
        "shop",
        "--service-account",
        "caller",
        "--name",
        "caller-1",
    ]);
    let proxy = proxy.start().await;
    answered_by(&proxy, "orders", "a").await;
    cluster.apply(route("orders", "orders-v2")).await;
    answered_by(&proxy, "orders", "b").await;
    let version = "gateway.networking.k8s.io/v1";
    until("the status", async || {
        let route = cluster.get(version, "HTTPRoute", "orders").await?;
        let conditions = route["status"]["parents"][0]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|said| said["type"] == "Live" && said["status"] == "True")
    })
    .await;
    let map = until("the roots", async || cluster.get("v1", "ConfigMap", "leno-root").await).await;
    assert!(map["data"]["root.pem"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    let answer = client::get(control_plane.metrics, "127.0.0.1", "/metrics").await.text();
    for line in
        ["leno_kubernetes_leader 1", "leno_kubernetes_token_reviews_total{result=\"proven\"} 1"]
    {
        assert!(answer.lines().any(|found| found == line), "{line}: {answer}");
    }
    // What is not installed is said; nothing that is may be refused.
    let said = control_plane.errors();
    assert!(said.contains("not installed") && !said.contains("does not let us"), "{said}");
}

//! The control plane against an API server that speaks Kubernetes' wire formats, without proxies: what it reads, writes
//! back, and survives.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod api_server;

use std::{fs, net::SocketAddr, time::Duration};

use api_server::ApiServer;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use leno_control_plane::{Running, Settings, start};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};
use tonic::{Code, Request, Status};

const PATIENCE: Duration = Duration::from_secs(30);
const ROUTES: &str = "apis/gateway.networking.k8s.io/v1/httproutes";

struct Bench {
    server: ApiServer,
    directory: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let server = ApiServer::start().await;
        let directory = TempDir::new().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", server.address)}}],
        });
        fs::write(directory.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        server.put(json!({"apiVersion": "v1", "kind": "Namespace",
                          "metadata": {"name": "shop", "labels": {"leno.dev/inject": "enabled"}}}));
        server.put(service("orders"));
        server.put(pod());
        server.put(slice(true));
        Self { server, directory }
    }

    fn settings(&self, name: &str) -> Settings {
        let mut settings = Settings::ephemeral(self.directory.path().join(name));
        settings.kubernetes = true;
        settings.kubernetes_config = Some(self.directory.path().join("kubeconfig"));
        settings
    }

    async fn start(&self, name: &str) -> Running {
        start(self.settings(name)).await.unwrap()
    }

    /// A condition of the route `orders`, as Kubernetes has it.
    fn said(&self, kind: &str) -> Option<Value> {
        let route = self.server.get(ROUTES, "shop", "orders")?;
        let conditions = route["status"]["parents"][0]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|condition| condition["type"] == kind)
    }
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}})
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orders-1", "namespace": "shop"},
           "spec": {"serviceAccountName": "orders", "containers": [{"name": "leno-proxy"}]},
           "status": {"phase": "Running", "podIP": "10.0.0.7"}})
}

fn slice(ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "orders-x", "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": "orders"}},
        "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": ready},
                       "targetRef": {"kind": "Pod", "name": "orders-1", "namespace": "shop"}}],
        "ports": [{"name": "http", "port": 9001}],
    })
}

fn route(backend: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders"}],
                 "rules": [{"backendRefs": [{"name": "orders", "port": backend}]}]},
    })
}

/// Status and JSON body of one call of the API.
async fn call(api: SocketAddr, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {api}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(api).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or_default())
}

async fn get(running: &Running, plural: &str, name: &str) -> Option<Value> {
    let path = format!("/apis/leno.dev/v1alpha1/namespaces/shop/{plural}/{name}");
    let (status, object) = call(running.addresses.api, "GET", &path, &Value::Null).await;
    (status == 200).then_some(object)
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubernetes_has_is_there_from_the_first_answer_on() {
    let bench = Bench::new().await;
    let running = bench.start("one").await;
    let object = get(&running, "services", "orders").await.unwrap();
    let port = json!({"name": "http", "port": 80, "protocol": "http"});
    assert_eq!(object["spec"], json!({"ports": [port], "addresses": ["10.96.0.7"]}));
    let object = get(&running, "workloads", "orders-1").await.unwrap();
    let expected = json!({"services": ["orders"], "address": "10.0.0.7", "ports": {"http": 9001},
        "serviceAccount": "orders", "sidecar": {"port": 15006, "mutualTls": true}});
    assert_eq!(object["spec"], expected);
    bench.server.put(slice(false));
    until("the pod to take nothing", async || {
        let object = get(&running, "workloads", "orders-1").await?;
        (object["spec"]["weight"] == 0 && object["metadata"]["generation"] == 2).then_some(())
    })
    .await;
    bench.server.delete("api/v1/pods", "shop", "orders-1");
    until("the pod to be gone", async || {
        get(&running, "workloads", "orders-1").await.is_none().then_some(())
    })
    .await;
    let path = "/apis/leno.dev/v1alpha1/namespaces/shop/services/orders";
    let (status, refusal) = call(running.addresses.api, "DELETE", path, &Value::Null).await;
    assert_eq!(status, 405);
    assert!(refusal["message"].as_str().unwrap().contains("kubectl"), "{refusal}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_and_roots_are_written_back() {
    let bench = Bench::new().await;
    bench.server.put(route(&80.into()));
    let running = bench.start("one").await;
    let accepted = until("the status", async || bench.said("Accepted")).await;
    assert_eq!(accepted["status"], "True");
    assert_eq!(bench.said("Live").unwrap()["reason"], "NotUsed");
    bench.server.put(route(&"eighty".into()));
    let refused = until("the refusal", async || {
        bench.said("Accepted").filter(|accepted| accepted["status"] == "False")
    })
    .await;
    assert!(refused["message"].as_str().unwrap().contains("port"), "{refused}");
    // The last good version stays.
    let path = format!("/{ROUTES}").replace("httproutes", "namespaces/shop/httproutes/orders");
    let (status, object) = call(running.addresses.api, "GET", &path, &Value::Null).await;
    assert_eq!((status, &object["spec"]["rules"][0]["backendRefs"][0]["port"]), (200, &80.into()));
    let map =
        until("the roots", async || bench.server.get("api/v1/configmaps", "shop", "leno-root"))
            .await;
    assert!(map["data"]["root.pem"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_was_gone_or_forgot_is_read_again() {
    let mut bench = Bench::new().await;
    let running = bench.start("one").await;
    bench.server.stop();
    bench.server.put(service("late"));
    bench.server.delete("api/v1/services", "shop", "orders");
    assert!(get(&running, "services", "orders").await.is_some(), "nothing is lost meanwhile");
    bench.server.resume().await;
    until("what came meanwhile", async || get(&running, "services", "late").await).await;
    until("what went meanwhile", async || {
        get(&running, "services", "orders").await.is_none().then_some(())
    })
    .await;
    bench.server.put_unseen(service("unseen"));
    until("what no watch told of", async || get(&running, "services", "unseen").await).await;
    for line in ["{\"type\": \"MODIFIED\", \"object\": 7}\n", "not json\n", "{}\n"] {
        bench.server.garbage("api/v1/services", line);
    }
    bench.server.put(service("after"));
    until("what came after garbage", async || get(&running, "services", "after").await).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_holds_up_nothing_else() {
    let bench = Bench::new().await;
    bench.server.absent("apis/leno.dev/v1alpha1/trafficpolicies");
    bench.server.forbid(ROUTES, Some("secret"));
    let mut odd = pod();
    odd["metadata"]["name"] = "odd".into();
    odd["spec"]["containers"] = "none".into();
    bench.server.put(odd);
    let mut settings = bench.settings("one");
    settings.kubernetes_namespaces = vec!["shop".into(), "secret".into()];
    let running = start(settings).await.unwrap();
    assert!(get(&running, "workloads", "orders-1").await.is_some());
    assert!(get(&running, "workloads", "odd").await.is_none());
    let reference = json!({"group": "", "kind": "Service", "name": "orders"});
    bench.server.put(json!({"apiVersion": "leno.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "late", "namespace": "shop"}, "spec": {"targetRefs": [reference]}}));
    bench.server.install("apis/leno.dev/v1alpha1/trafficpolicies");
    until("what was installed late", async || get(&running, "trafficpolicies", "late").await).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_pods_that_it_may_not_read() {
    let bench = Bench::new().await;
    bench.server.forbid("api/v1/pods", None);
    let mut starting = Box::pin(start(bench.settings("one")));
    let asked = || (bench.server.requests("/api/v1/pods") >= 4).then_some(());
    tokio::select! {
        _ = &mut starting => panic!("proxies would be told that their pods are gone"),
        () = until("pods to be asked for again and again", async || asked()) => {}
    }
    bench.server.allow("api/v1/pods", None);
    let running = starting.await.unwrap();
    assert!(get(&running, "workloads", "orders-1").await.is_some());
    running.stop().await;
}

/// An API server that has just started does not know its roles yet: policies must not seem to be gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_believe_the_first_refusal() {
    let bench = Bench::new().await;
    let reference = json!({"group": "", "kind": "Service", "name": "orders"});
    bench.server.put(json!({"apiVersion": "leno.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "early", "namespace": "shop"}, "spec": {"targetRefs": [reference]}}));
    bench.server.forbid("apis/leno.dev/v1alpha1/trafficpolicies", None);
    let mut starting = Box::pin(start(bench.settings("one")));
    let asked = || (bench.server.requests("/trafficpolicies") >= 2).then_some(());
    tokio::select! {
        _ = &mut starting => panic!("proxies would be told that their policies are gone"),
        () = until("policies to be asked for again", async || asked()) => {}
    }
    bench.server.allow("apis/leno.dev/v1alpha1/trafficpolicies", None);
    let running = starting.await.unwrap();
    assert!(get(&running, "trafficpolicies", "early").await.is_some());
    running.stop().await;
}

/// Leadership, renewed every 2 s, is the clock: what fails is asked for ever more rarely meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_asked_for_ever_more_rarely() {
    let bench = Bench::new().await;
    bench.server.forbid("api/v1/pods", None);
    let mut starting = Box::pin(start(bench.settings("one")));
    let renewals =
        || bench.server.requests("PUT /apis/coordination.k8s.io/v1/namespaces/leno-system/leases");
    tokio::select! {
        _ = &mut starting => panic!("proxies would be told that their pods are gone"),
        () = until("leadership", async || (renewals() >= 4).then_some(())) => {}
    }
    let asked = bench.server.requests("/api/v1/pods");
    assert!((2..20).contains(&asked), "{asked} times within four renewals");
}

/// Opens a stream as a proxy with this token; why it may not.
async fn admitted(running: &Running, token: &str) -> Result<(), Status> {
    let address = format!("http://{}", running.addresses.xds);
    let mut client = AggregatedDiscoveryServiceClient::connect(address).await.unwrap();
    let mut request = Request::new(tokio_stream::pending::<DeltaDiscoveryRequest>());
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    client.delta_aggregated_resources(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_says_whose_a_token_is() {
    let bench = Bench::new().await;
    let running = bench.start("one").await;
    let user = json!({"username": "system:serviceaccount:shop:orders"});
    let proven = json!({"authenticated": true, "audiences": ["leno"], "user": user});
    bench.server.token("good.token.x", proven);
    let other = json!({"authenticated": true, "audiences": ["else"], "user": user});
    bench.server.token("other.token.x", other);
    admitted(&running, "good.token.x").await.unwrap();
    for (token, reason) in [
        ("unknown.token.x", "Kubernetes does not accept the token"),
        ("other.token.x", "another audience"),
        ("no-jwt", "not known"),
    ] {
        let refused = admitted(&running, token).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        assert!(refused.message().contains(reason), "{refused}");
    }
    // Asked once for each; what was proven a moment ago holds while nobody answers, and nothing new is.
    assert_eq!(bench.server.requests("tokenreviews"), 3);
    bench.server.mute(true);
    admitted(&running, "good.token.x").await.unwrap();
    let refused = admitted(&running, "late.token.x").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("API server does not answer"), "{refused}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_one_writes() {
    let bench = Bench::new().await;
    let first = bench.start("one").await;
    let holder = || {
        let lease = bench.server.get(
            "apis/coordination.k8s.io/v1/leases",
            "leno-system",
            "leno-control-plane",
        )?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    };
    let leader = until("a leader", async || holder()).await;
    let second = bench.start("two").await;
    let renewed = |lease: Option<Value>| lease.map(|lease| lease["spec"]["renewTime"].clone());
    let lease = || {
        bench.server.get("apis/coordination.k8s.io/v1/leases", "leno-system", "leno-control-plane")
    };
    let before = renewed(lease());
    until("a renewal", async || (renewed(lease()) != before).then_some(())).await;
    assert_eq!(holder().as_ref(), Some(&leader), "the other one waits");
    first.stop().await;
    // Its claim holds for 15 s.
    until("the other to take over", async || holder().filter(|holder| *holder != leader)).await;
    bench.server.put(route(&80.into()));
    until("the new leader's word", async || bench.said("Accepted")).await;
    second.stop().await;
}

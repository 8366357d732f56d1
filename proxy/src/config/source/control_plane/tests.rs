//! The source against a real control plane, over real sockets; and against one that talks nonsense.

mod nonsense;
mod purge;

use std::{net::SocketAddr, time::Instant as Clock};

use leno_api::model::Model;
use leno_control_plane::{
    Running, Settings,
    access::{NewToken, Role, TokenFile},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::*;
use crate::{identity, telemetry::metrics::Families};

const PATIENCE: Duration = Duration::from_secs(60);
/// Of a workload whose stream has broken off.
const LEASE: Duration = Duration::from_secs(1);
const SERVICES: &str = "/apis/leno.dev/v1alpha1/namespaces/shop/services";
const WORKLOADS: &str = "/apis/leno.dev/v1alpha1/namespaces/shop/workloads";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";

/// A control plane in this process.
struct Plane {
    running: Running,
    directory: TempDir,
}

impl Plane {
    async fn start() -> Self {
        Self::with(TempDir::new().unwrap(), |_| {}).await
    }

    async fn with(directory: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::ephemeral(directory.path().into());
        change(&mut settings);
        let asked = Clock::now();
        loop {
            match leno_control_plane::start(settings.clone()).await {
                Ok(running) => return Self { running, directory },
                // The one before in this process may still be writing its last words.
                Err(error)
                    if asked.elapsed() < PATIENCE && error.to_string().contains("is using") =>
                {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn xds(&self) -> SocketAddr {
        self.running.addresses.xds
    }

    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.running.addresses.api).await.unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        let body = text.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Creates an object and waits until it is planned: from then on whoever asks gets it.
    async fn create(&self, path: &str, object: Value) {
        let (status, answer) = self.call("POST", path, Some(&object)).await;
        assert_eq!(status, 201, "{answer}");
        let name = object["metadata"]["name"].as_str().unwrap();
        self.status(&format!("{path}/{name}"), "planned", Value::is_object).await;
    }

    /// Writes another `spec`, however often somebody else writes the status in between.
    async fn respec(&self, path: &str, spec: Value) {
        loop {
            let (_, mut object) = self.call("GET", path, None).await;
            object["spec"] = spec.clone();
            match self.call("PUT", path, Some(&object)).await {
                (200, _) => return,
                (status, answer) => assert_eq!(status, 409, "{answer}"),
            }
        }
    }

    /// Waits until the status of an object says so.
    async fn status(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) {
        let asked = Clock::now();
        loop {
            let (_, object) = self.call("GET", path, None).await;
            if wanted(&object["status"]) {
                return;
            }
            assert!(asked.elapsed() < PATIENCE, "{what}: {}", object["status"]);
            sleep(Duration::from_millis(20)).await;
        }
    }
}

struct Proxy {
    link: Link,
    /// What the mesh trusts, which everybody gets unasked.
    bundle: Option<Item>,
}

impl Proxy {
    fn start(address: SocketAddr, adjust: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            address: address.to_string(),
            access: Access::Plain { token_file: None },
            id: "shop/p1".to_owned(),
            namespace: "shop".to_owned(),
            workload: None,
            lease: LEASE,
            services: Vec::new(),
            held: Vec::new(),
            hosts: Vec::new(),
        };
        adjust(&mut options);
        let (source, link) = ControlPlaneSource::new(options);
        tokio::spawn(source.run());
        Self { link, bundle: None }
    }

    async fn update(&mut self) -> Update {
        timeout(PATIENCE, self.link.updates.recv()).await.expect("in time").expect("open")
    }

    /// The next change that is about more than the trust bundle.
    async fn change(&mut self) -> Change {
        loop {
            if let Update::Changed(change) = self.update().await
                && let Some(change) = self.without_bundle(change).await
            {
                return change;
            }
        }
    }

    /// The trust bundle, when nothing else comes with it.
    async fn trusted(&mut self) -> Item {
        while self.bundle.is_none() {
            if let Update::Changed(change) = self.update().await {
                assert!(self.without_bundle(change).await.is_none());
            }
        }
        self.bundle.clone().unwrap()
    }

    /// What else a change is about. One that is about the bundle alone is made live.
    async fn without_bundle(&mut self, mut change: Change) -> Option<Change> {
        let is_bundle = |item: &Item| matches!(item.resource.model, Model::TrustBundle(_));
        let Some(bundle) = change.upserts.iter().position(is_bundle) else { return Some(change) };
        self.bundle = Some(change.upserts.remove(bundle));
        let hosts = change.present_hosts.len() + change.absent_hosts.len();
        if change.upserts.len() + change.removed.len() + hosts > 0 {
            return Some(change);
        }
        self.verdict(&change, &[]).await;
        None
    }

    /// The next change, made live.
    async fn accepted(&mut self) -> Change {
        let change = self.change().await;
        self.verdict(&change, &[]).await;
        change
    }

    async fn verdict(&self, change: &Change, rejected: &[(Key, &str)]) {
        let rejected = rejected.iter().map(|(key, reason)| (key.clone(), (*reason).to_owned()));
        self.say(Command::Verdict { id: change.id, rejected: rejected.collect() }).await;
    }

    async fn ask(&self, host: &str) {
        self.say(Command::Subscribe { host: host.to_owned() }).await;
    }

    async fn say(&self, command: Command) {
        self.link.commands.send(command).await.unwrap();
    }

    async fn connected(&mut self) {
        while !matches!(self.update().await, Update::Connected) {}
    }

    async fn disconnected(&mut self) -> String {
        loop {
            if let Update::Disconnected { reason } = self.update().await {
                return reason;
            }
        }
    }
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]},
    })
}

fn workload(name: &str, service: &str) -> Value {
    json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"services": [service], "address": "127.0.0.1", "ports": {"default": 9001}},
    })
}

fn route_spec(backend: &str) -> Value {
    json!({
        "parentRefs": [{"group": "", "kind": "Service", "name": "orders"}],
        "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
    })
}

fn route(backend: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "orders"}, "spec": route_spec(backend),
    })
}

fn names(change: &Change) -> Vec<String> {
    change.upserts.iter().map(|item| item.resource.key().to_string()).collect()
}

fn removed(change: &Change) -> Vec<String> {
    change.removed.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_comes_at_first_use_with_its_closure_and_then_each_change_by_itself() {
    let plane = Plane::start().await;
    for name in ["orders", "orders-v2", "unrelated"] {
        plane.create(SERVICES, service(name)).await;
    }
    plane.create(ROUTES, route("orders-v2")).await;
    let mut proxy = Proxy::start(plane.xds(), |_| {});
    proxy.ask("orders").await;
    let change = proxy.accepted().await;
    let closure = ["Service shop/orders", "Service shop/orders-v2", "HTTPRoute shop/orders"];
    assert_eq!(names(&change), closure);
    assert_eq!(change.present_hosts, ["orders"]);

    // A host that nobody answers to is answered, too, and its service comes once there is one.
    proxy.ask("later").await;
    let change = proxy.accepted().await;
    assert_eq!((names(&change).len(), &change.absent_hosts[..]), (0, &["later".to_owned()][..]));
    plane.create(SERVICES, service("later")).await;
    let change = proxy.accepted().await;
    assert_eq!(names(&change), ["Service shop/later"]);
    assert_eq!(change.present_hosts, ["later"]);

    // Another name of what is here already is answered as well.
    proxy.ask("orders.shop").await;
    assert_eq!(proxy.accepted().await.present_hosts, ["orders.shop"]);

    plane.respec(&format!("{ROUTES}/orders"), route_spec("orders")).await;
    let change = proxy.accepted().await;
    assert_eq!(names(&change), ["HTTPRoute shop/orders"]);
    assert_eq!(removed(&change), ["Service shop/orders-v2"]);
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_where_it_is_live_and_who_rejected_it_and_why() {
    let plane = Plane::start().await;
    let path = format!("{SERVICES}/orders");
    plane.create(SERVICES, service("orders")).await;
    let declared =
        |options: &mut Options| options.services = vec![ObjectName::new("shop", "orders")];
    let mut first = Proxy::start(plane.xds(), |options| {
        declared(options);
        options.id = "shop/first".to_owned();
    });
    let mut second = Proxy::start(plane.xds(), declared);
    first.accepted().await;
    let change = second.change().await;
    let live = |live: u64, of: u64| {
        move |status: &Value| {
            status["proxies"]["live"] == live && status["proxies"]["connected"] == of
        }
    };
    plane.status(&path, "live on one, the other has not answered", live(1, 2)).await;
    second.verdict(&change, &[(change.upserts[0].resource.key(), "no\nroom")]).await;
    plane
        .status(&path, "rejected by one", |status| {
            status["proxies"]["rejected"] == json!([{"proxy": "shop/p1", "reason": "no room"}])
                && status["conditions"][1]["reason"] == "Rejected"
                && status["observedGeneration"] == 1
        })
        .await;
    // What was rejected is not sent again; the next version is, and stands by itself.
    plane.respec(&path, json!({"ports": [{"port": 81}]})).await;
    assert_eq!(names(&first.accepted().await), ["Service shop/orders"]);
    assert_eq!(names(&second.accepted().await), ["Service shop/orders"]);
    plane
        .status(&path, "live on both", |status| {
            live(2, 2)(status)
                && status["conditions"][1]["status"] == "True"
                && status["observedGeneration"] == 2
        })
        .await;
    // None of the writes of its status was a change, neither of the object nor for the proxies.
    let (_, object) = plane.call("GET", &path, None).await;
    assert_eq!(object["metadata"]["generation"], 2);
    assert!(timeout(Duration::from_millis(300), first.link.updates.recv()).await.is_err());
    drop(second.link);
    plane.status(&path, "one has left", live(1, 1)).await;
    drop(first.link);
    plane
        .status(&path, "both have left", |status| {
            live(0, 0)(status) && status["conditions"][1]["status"] == "Unknown"
        })
        .await;
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_which_version_of_a_plugin_runs_where() {
    const PLUGINS: &str = "/apis/leno.dev/v1alpha1/namespaces/shop/wasmplugins";
    let plane = Plane::start().await;
    let path = format!("{PLUGINS}/tag");
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "WasmPlugin",
        "metadata": {"name": "tag", "namespace": "shop"}, "spec": {"url": "file:///tag.wasm"},
    });
    plane.create(PLUGINS, object).await;
    let running = |version: &str, trial: Option<&str>| {
        let digest = "ab".repeat(32);
        let running = crate::config::prepare::Running {
            version: version.into(),
            digest,
            trial: trial.map(Into::into),
        };
        // Of what the proxy was never sent, nothing is believed.
        let names = [ObjectName::new("shop", "tag"), ObjectName::new("other", "tag")];
        Command::Running { plugins: names.map(|name| (name, running.clone())).into() }
    };
    let named = |id: &str| {
        let id = id.to_owned();
        move |options: &mut Options| options.id = id
    };
    let mut first = Proxy::start(plane.xds(), named("shop/first"));
    let mut second = Proxy::start(plane.xds(), named("shop/second"));
    // One says so before it has heard of the plugin, as after a restart.
    first.say(running("0a-01", None)).await;
    assert_eq!(names(&first.accepted().await), ["WasmPlugin shop/tag"]);
    let change = second.change().await;
    second.verdict(&change, &[(change.upserts[0].resource.key(), "its log: no field")]).await;
    second.say(running("0b-02", None)).await;
    let version = |version: &str, proxies: u32| json!({"version": version, "digest": format!("sha256:{}", "ab".repeat(32)), "proxies": proxies});
    let versions = |versions: Value| move |status: &Value| status["versions"] == versions;
    let both = versions(json!([version("0a-01", 1), version("0b-02", 1)]));
    plane
        .status(&path, "each another one", |status| {
            let reason =
                json!([{"reason": "its log: no field", "proxies": 1, "example": "shop/second"}]);
            both(status) && status["proxies"]["reasons"] == reason
        })
        .await;
    second.say(running("0a-01", Some("0c-03"))).await;
    let mut trial = version("0a-01", 1);
    trial["trial"] = "0c-03".into();
    let trial = versions(json!([version("0a-01", 1), trial]));
    plane.status(&path, "one tries another one", trial).await;
    second.say(running("0a-01", None)).await;
    plane.status(&path, "both the same", versions(json!([version("0a-01", 2)]))).await;
    second.say(Command::Running { plugins: BTreeMap::new() }).await;
    plane.status(&path, "one runs none", versions(json!([version("0a-01", 1)]))).await;
    drop(first.link);
    plane.status(&path, "the other has left", versions(json!([]))).await;
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_is_the_lease_of_its_workload() {
    let plane = Plane::start().await;
    let path = format!("{WORKLOADS}/p1");
    let own = |options: &mut Options| options.workload = Some(workload("p1", "orders"));
    let exists = async || plane.call("GET", &path, None).await.0 == 200;
    let mut proxy = Proxy::start(plane.xds(), own);
    assert_eq!(names(&proxy.accepted().await), ["Workload shop/p1"]);
    // Held by the stream for longer than the lease.
    sleep(Duration::from_millis(1500)).await;
    assert!(exists().await);
    // Deleted by somebody, it comes back: its sidecar is still there.
    assert_eq!(plane.call("DELETE", &path, None).await.0, 200);
    let deleted = Clock::now();
    while !exists().await {
        assert!(deleted.elapsed() < PATIENCE, "it stayed away");
        sleep(Duration::from_millis(20)).await;
    }
    // Said goodbye: gone at once.
    proxy.say(Command::Goodbye).await;
    while timeout(PATIENCE, proxy.link.updates.recv()).await.unwrap().is_some() {}
    assert!(!exists().await);
    // Broke off: gone when the lease is over, and not before.
    let mut proxy = Proxy::start(plane.xds(), own);
    proxy.accepted().await;
    let broke = Clock::now();
    drop(proxy);
    sleep(LEASE / 3).await;
    let (there, after) = (exists().await, broke.elapsed());
    assert!(there || after >= LEASE, "it went before its lease, after {after:?}");
    while exists().await {
        assert!(broke.elapsed() < PATIENCE, "it outlived its lease");
        sleep(Duration::from_millis(50)).await;
    }
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_control_plane_only_differences_travel() {
    let plane = Plane::with(TempDir::new().unwrap(), |settings| settings.memory = false).await;
    for name in ["orders", "users"] {
        plane.create(SERVICES, service(name)).await;
    }
    let mut proxy = Proxy::start(plane.xds(), |_| {});
    for host in ["orders", "users", "nobody"] {
        proxy.ask(host).await;
        proxy.accepted().await;
    }
    let xds = plane.xds();
    let Plane { running, directory } = plane;
    running.stop().await;
    proxy.disconnected().await;
    // Asked for while nobody is there to answer.
    proxy.ask("missed").await;
    let plane = Plane::with(directory, |settings| {
        settings.memory = false;
        settings.xds = xds;
    })
    .await;
    proxy.connected().await;
    let change = proxy.accepted().await;
    assert_eq!((names(&change), removed(&change)), (vec![], vec![]), "nothing changed");
    let mut absent = change.absent_hosts;
    if absent.len() < 2 {
        absent.extend(proxy.accepted().await.absent_hosts);
    }
    absent.sort();
    assert_eq!(absent, ["missed", "nobody"]);
    plane.respec(&format!("{SERVICES}/users"), json!({"ports": [{"port": 81}]})).await;
    assert_eq!(names(&proxy.accepted().await), ["Service shop/users"]);
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_store_at_the_same_revisions_is_not_taken_for_the_one_before() {
    let plane = Plane::start().await;
    for name in ["orders", "users"] {
        plane.create(SERVICES, service(name)).await;
    }
    let mut proxy = Proxy::start(plane.xds(), |_| {});
    for host in ["orders", "users"] {
        proxy.ask(host).await;
        proxy.accepted().await;
    }
    let xds = plane.xds();
    plane.running.stop().await;
    let listener = TcpListener::bind(xds).await.unwrap();
    proxy.disconnected().await;
    drop(listener);
    // Nothing is kept: a store that begins anew, with the first service changed and the other one gone.
    let plane = Plane::with(TempDir::new().unwrap(), |settings| settings.xds = xds).await;
    let mut changed = service("orders");
    changed["spec"]["ports"] = json!([{"port": 99}]);
    plane.create(SERVICES, changed).await;
    let (mut came, mut went) = (Vec::new(), Vec::new());
    while came.is_empty() || went.is_empty() {
        let change = proxy.accepted().await;
        came.extend(names(&change));
        went.extend(removed(&change).into_iter().filter(|name| name == "Service shop/users"));
    }
    assert_eq!((&came[0][..], &went[0][..]), ("Service shop/orders", "Service shop/users"));
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_token_for_its_namespace_lets_a_proxy_in() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let issue = |name: &str, role, namespace| {
        let file = directory.path().join(name);
        let new =
            NewToken { name, role, namespace, service_account: None, expires: None, once: false };
        let token = tokens.issue(new).unwrap();
        std::fs::write(&file, format!("{token}\n")).unwrap();
        file
    };
    let own = issue("own", Role::Workload, Some("shop"));
    let foreign = issue("foreign", Role::Workload, Some("other"));
    let viewer = issue("viewer", Role::Viewer, None);
    let missing = directory.path().join("missing");
    let plane = Plane::with(directory, |settings| settings.require_token = true).await;
    let rows = [
        (None, "no bearer token was sent"),
        (Some(foreign), "may not speak for a proxy in namespace"),
        (Some(viewer), "is not a proxy"),
        (Some(missing), "cannot read the token file"),
    ];
    for (token_file, message) in rows {
        let mut proxy = Proxy::start(plane.xds(), |options| {
            options.access = Access::Plain { token_file };
        });
        let reason = proxy.disconnected().await;
        assert!(reason.contains(message), "{reason}");
    }
    let mut proxy = Proxy::start(plane.xds(), |options| {
        options.access = Access::Plain { token_file: Some(own) };
        options.workload = Some(workload("p1", "orders"));
    });
    assert_eq!(names(&proxy.accepted().await), ["Workload shop/p1"]);
    plane.running.stop().await;
}

/// Over TLS a proxy is who its certificate says it is; the token was for the certificate only.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_says_who_the_proxy_is() {
    let directory = TempDir::new().unwrap();
    let new = NewToken {
        name: "orders",
        role: Role::Workload,
        namespace: Some("shop"),
        service_account: Some("orders"),
        expires: None,
        once: true,
    };
    let token = TokenFile::open(directory.path()).unwrap().issue(new).unwrap();
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, &token).unwrap();
    let plane = Plane::with(directory, |settings| settings.require_token = true).await;
    let families = Families::register(prometheus::Registry::new()).unwrap();
    let ca_file = plane.running.roots.clone();
    let source = identity::Source::ControlPlane(identity::control_plane::Options {
        address: plane.xds().to_string(),
        ca_file: ca_file.clone(),
        token_file: Some(token_file),
        namespace: "shop".to_owned(),
        service_account: "orders".to_owned(),
        proxy: "shop/p1".to_owned(),
        ttl: None,
    });
    let (identity, keeping) = identity::start(source, &families).unwrap();
    // Its certificate is waited for.
    let start = |account: &str| {
        let mut own = workload("p1", "orders");
        own["spec"]["serviceAccount"] = account.into();
        let (identity, ca_file) = (identity.clone(), Some(ca_file.clone()));
        Proxy::start(plane.xds(), |options| {
            let connector = Connector::new(identity.clone(), ca_file);
            options.access = Access::Secured { identity, connector };
            options.workload = Some(own);
        })
    };
    let mut proxy = start("orders");
    tokio::spawn(keeping);
    assert_eq!(names(&proxy.accepted().await), ["Workload shop/p1"]);
    let certificate = identity.current().unwrap();
    assert_eq!(certificate.id().principal(), "cluster.local/ns/shop/sa/orders");
    let Model::TrustBundle(bundle) = proxy.trusted().await.resource.model else { panic!() };
    assert_eq!(bundle.trust_domain, *certificate.trust_domain());
    drop(proxy);
    let reason = start("somebody-else").disconnected().await;
    assert!(reason.contains("somebody-else"), "{reason}");
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_not_there_is_tried_again_and_not_too_often() {
    // Bound all the time, so that nobody else gets the port in between.
    let place = tokio::net::TcpSocket::new_v4().unwrap();
    place.set_reuseaddr(true).unwrap();
    place.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = place.local_addr().unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let mut proxy = Proxy::start(address, |_| {});
    // It accepts and hangs up.
    let count = async {
        let mut attempts = 0;
        loop {
            listener.accept().await.unwrap();
            attempts += 1;
            if attempts > 20 {
                return attempts;
            }
        }
    };
    let counted = timeout(Duration::from_secs(2), count).await;
    assert!(counted.is_err(), "a busy loop");
    drop(listener);
    let reason = proxy.disconnected().await;
    assert!(reason.contains(&address.to_string()) || reason.contains("broke"), "{reason}");
    let plane = Plane::with(TempDir::new().unwrap(), |settings| settings.xds = address).await;
    proxy.connected().await;
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_last_run_held_is_not_sent_again() {
    let plane = Plane::start().await;
    plane.create(SERVICES, service("orders")).await;
    let mut proxy = Proxy::start(plane.xds(), |_| {});
    proxy.ask("orders").await;
    let change = proxy.accepted().await;
    let bundle = proxy.trusted().await;
    let held = change.upserts.iter().chain([&bundle]);
    let held = held.map(|item| (item.resource.key(), item.version.to_string())).collect();
    drop(proxy);
    let mut proxy = Proxy::start(plane.xds(), |options| {
        options.held = held;
        options.hosts = vec!["orders".to_owned()];
    });
    proxy.connected().await;
    assert!(timeout(Duration::from_millis(300), proxy.link.updates.recv()).await.is_err());
    plane
        .status(&format!("{SERVICES}/orders"), "live", |status| status["proxies"]["live"] == 1)
        .await;
    plane.create(ROUTES, route("orders")).await;
    assert_eq!(names(&proxy.accepted().await), ["HTTPRoute shop/orders"]);
    plane.running.stop().await;
}

#[test]
fn the_wait_doubles_up_to_ten_seconds_and_half_of_it_is_chance() {
    let seconds = |failures, random| backoff(failures, random).as_secs_f64();
    assert!((seconds(0, 0.0) - 0.05).abs() < 1e-9 && (seconds(0, 1.0) - 0.1).abs() < 1e-9);
    assert!((seconds(3, 1.0) - 0.8).abs() < 1e-9);
    for failures in [7, 20, u32::MAX] {
        assert!((seconds(failures, 0.0) - 5.0).abs() < 1e-9);
        assert!((seconds(failures, 1.0) - 10.0).abs() < 1e-9);
    }
}

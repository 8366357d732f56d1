//! TLS on the control plane's ports: who gets in, as whom, and how a root is replaced under clients that stay.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod client;
mod mint;
mod webhook;

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use leno_control_plane::{
    Running, Settings,
    access::{NewToken, Role, TokenFile},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use self::{
    client::{Held, PATIENCE, Stream, Trust, http_over, issue, node},
    mint::Mint,
};

const ORDERS: (&str, &str) = ("shop", "orders");

struct Plane {
    running: Running,
    directory: TempDir,
    trust: Trust,
}

impl Plane {
    async fn start(change: impl FnOnce(&Path, &mut Settings)) -> Self {
        let directory = TempDir::new().unwrap();
        let mut settings = Settings::ephemeral(directory.path().into());
        change(directory.path(), &mut settings);
        let running = leno_control_plane::start(settings).await.unwrap();
        let roots = fs::read_to_string(&running.roots).unwrap();
        Self { running, directory, trust: Trust::of_pem(&roots) }
    }

    fn xds(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.running.addresses.xds.port()))
    }

    fn api(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.running.addresses.api.port()))
    }

    fn token(&self, role: Role, workload: Option<(&str, &str)>, once: bool) -> String {
        let new = NewToken {
            name: "test",
            role,
            namespace: workload.map(|(namespace, _)| namespace),
            service_account: workload.map(|(_, account)| account),
            expires: None,
            once,
        };
        TokenFile::open(self.directory.path()).unwrap().issue(new).unwrap()
    }

    /// A certificate of the usual kind.
    async fn certificate(&self, who: (&str, &str), proxy: &str) -> Held {
        let token = self.token(Role::Workload, Some(who), false);
        let issued = issue(self.trust.channel(self.xds()), Some(&token), who, proxy).await;
        issued.unwrap().0
    }

    async fn metrics(&self) -> String {
        let stream = TcpStream::connect(self.running.addresses.metrics).await.unwrap();
        let (_, text) = http_over(stream, "GET", "/metrics", None, "").await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits for a metric: what is counted may be counted a moment after the other side knows.
    async fn counted(&self, line: &str) {
        let mut seen = String::new();
        for _ in 0..6_000 {
            seen = self.metrics().await;
            if seen.lines().any(|found| found.starts_with(line)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {line} in\n{seen}");
    }

    /// What is trusted by now.
    fn current(&self) -> Trust {
        let roots = fs::read_to_string(&self.running.roots).unwrap();
        Trust { held: self.trust.held.clone(), ..Trust::of_pem(&roots) }
    }

    async fn rotate(&self, action: &str, force: bool) -> (u16, Value) {
        let body = json!({"action": action, "force": force}).to_string();
        self.current().http(self.api(), "POST", "/ca/rotation", None, &body).await
    }

    /// A step that is possible; answers with the generation of the bundle that says so.
    async fn taken(&self, action: &str, step: &str, force: bool) -> Value {
        let (code, status) = self.rotate(action, force).await;
        assert_eq!((code, &status["step"]), (200, &json!(step)), "{status}");
        status["generation"].clone()
    }

    /// A step that waits, in the end for just that: what proxies say takes a moment to be known.
    async fn until_blocked(&self, action: &str, reason: &str) {
        let mut said = Value::Null;
        for _ in 0..6_000 {
            let (code, status) = self.rotate(action, false).await;
            assert_eq!((code, &status["reason"]), (409, &json!("Conflict")), "{status}");
            said = status["message"].clone();
            if said.as_str().unwrap().contains(reason) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {reason:?}: {said}");
    }

    /// Takes a step as soon as all are ready for it.
    async fn until_done(&self, action: &str) -> Value {
        for _ in 0..6_000 {
            let (code, status) = self.rotate(action, false).await;
            if code == 200 {
                return status["generation"].clone();
            }
            assert_eq!(code, 409, "{status}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("they never become ready for {action}");
    }
}

fn workload(name: &str, account: &str) -> Value {
    json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "services": ["orders"], "address": "127.0.0.1", "ports": {"http": 9001},
            "serviceAccount": account,
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_becomes_a_certificate_and_that_opens_the_stream() {
    let plane = Plane::start(|_, settings| settings.require_token = true).await;
    let token = plane.token(Role::Workload, Some(ORDERS), true);
    let channel = plane.trust.channel(plane.xds());
    let denied = issue(channel.clone(), None, ORDERS, "orders-1").await.err().unwrap();
    assert_eq!(denied.code(), Code::Unauthenticated, "{denied}");
    // It proves nobody else, and a failed attempt does not use it up.
    for other in [("shop", "web"), ("other", "orders")] {
        let denied = issue(channel.clone(), Some(&token), other, "x").await.err().unwrap();
        assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    }
    // Nor does it open a stream by itself.
    let refused = Stream::open(channel.clone(), Some(&token), node("orders-1", "shop", None)).await;
    let refused = refused.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("connect with"), "{refused}");

    let (held, response) = issue(channel.clone(), Some(&token), ORDERS, "orders-1").await.unwrap();
    assert_eq!(response.trust_domain, "cluster.local");
    let again = issue(channel, Some(&token), ORDERS, "orders-1").await.err().unwrap();
    assert_eq!(again.code(), Code::Unauthenticated, "{again}");

    let certified = plane.trust.with(&held).channel(plane.xds());
    let node = node("orders-1", "shop", Some(workload("orders-1", "orders")));
    let mut stream = Stream::open(certified.clone(), None, node).await.unwrap();
    let (_, bundle) = stream.bundle().await;
    assert_eq!(bundle["spec"]["trustDomain"], "cluster.local");
    assert_eq!(bundle["spec"]["signer"], response.signer);
    // What is still good renews itself, and nobody else.
    issue(certified.clone(), None, ORDERS, "orders-1").await.unwrap();
    let denied = issue(certified, None, ("shop", "web"), "orders-1").await.err().unwrap();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_good_for_its_own_namespace_and_account() {
    let plane = Plane::start(|_, settings| settings.require_token = true).await;
    let held = plane.certificate(ORDERS, "orders-1").await;
    let token = plane.token(Role::Workload, Some(ORDERS), false);
    let certified = plane.trust.with(&held).channel(plane.xds());
    let bare = plane.trust.channel(plane.xds());
    // Whoever has shown a certificate is who it names: an administrator's token changes nothing.
    let admin = plane.token(Role::Admin, None, false);
    for (channel, token) in [(&certified, None), (&certified, Some(&admin)), (&bare, Some(&token))]
    {
        let rows = [
            (node("p", "other", None), "may not speak for a proxy in namespace \"other\""),
            (
                node("p", "shop", Some(workload("p", "web"))),
                "may not register a workload of the service account \"web\"",
            ),
        ];
        for (node, reason) in rows {
            let stream = Stream::open(channel.clone(), token.map(String::as_str), node).await;
            let ended = stream.unwrap().ending().await;
            assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
            assert!(ended.message().contains(reason), "{ended}");
        }
    }
    let nobody = Stream::open(bare, None, node("p", "shop", None)).await.err().unwrap();
    assert_eq!(nobody.code(), Code::Unauthenticated, "{nobody}");
    // On the API the same identity writes workloads of its account, and nothing else.
    let path = "/apis/leno.dev/v1alpha1/namespaces/shop/workloads";
    let mut leased = workload("w", "web");
    leased["metadata"]["annotations"] = json!({"leno.dev/lease": "30s"});
    let trust = plane.trust.with(&held);
    let (code, status) = trust.http(plane.api(), "POST", path, None, &leased.to_string()).await;
    assert_eq!(code, 403, "{status}");
    assert!(status["message"].as_str().unwrap().contains("service account"), "{status}");
    leased["spec"]["serviceAccount"] = "orders".into();
    let (code, status) = trust.http(plane.api(), "POST", path, None, &leased.to_string()).await;
    assert_eq!(code, 201, "{status}");
    for (path, code) in [("/ca/status", 403), ("/ca/certificates", 403), ("/ca/bundle", 200)] {
        assert_eq!(trust.http(plane.api(), "GET", path, None, "").await.0, code, "{path}");
    }
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_the_place_of_another_account() {
    let plane = Plane::start(|_, settings| settings.require_token = true).await;
    let (web, orders) = (("shop", "web"), ORDERS);
    let owner = plane.trust.with(&plane.certificate(web, "web-1").await).channel(plane.xds());
    let registration = node("shop/web-1", "shop", Some(workload("web-1", "web")));
    let mut owner = Stream::open(owner, None, registration).await.unwrap();
    owner.bundle().await;
    let thief = plane.certificate(orders, "orders-1").await;
    let certified = plane.trust.with(&thief).channel(plane.xds());
    let token = plane.token(Role::Workload, Some(orders), false);
    let bare = plane.trust.channel(plane.xds());
    for (channel, token) in [(&certified, None), (&bare, Some(&*token))] {
        // Neither by registering over it nor by calling itself like it.
        for node in [
            node("shop/web-1", "shop", Some(workload("web-1", "orders"))),
            node("shop/web-1", "shop", None),
        ] {
            let stream = Stream::open(channel.clone(), token, node).await.unwrap();
            let ended = stream.ending().await;
            assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
            assert!(ended.message().contains("of the service account \"web\""), "{ended}");
        }
    }
    let path = "/apis/leno.dev/v1alpha1/namespaces/shop/workloads/web-1";
    let trust = plane.trust.with(&thief);
    assert_eq!(trust.http(plane.api(), "DELETE", path, None, "").await.0, 403);
    let (_, object) = trust.http(plane.api(), "GET", path, None, "").await;
    assert_eq!(object["spec"]["serviceAccount"], "web", "{object}");
    plane.running.stop().await;
}

/// Whoever stole a root and is connected already is not served for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_nobodys_once_its_root_is_dropped() {
    let plane = Plane::start(|_, _| {}).await;
    let held = plane.certificate(ORDERS, "orders-1").await;
    let trust = plane.trust.with(&held);
    let channel = trust.channel(plane.xds());
    let mut before = Stream::open(channel.clone(), None, node("o", "shop", None)).await.unwrap();
    before.bundle().await;
    let early = trust.dial(plane.api(), b"http/1.1").await.unwrap();
    for (action, step) in [("add", "added"), ("switch", "switched"), ("drop", "idle")] {
        plane.taken(action, step, true).await;
    }
    let refused = Stream::open(channel, None, node("o", "shop", None)).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let path = "/apis/leno.dev/v1alpha1/namespaces/shop/workloads";
    let (code, status) = http_over(early, "GET", path, None, "").await;
    assert_eq!(code, 401, "{status}");
    plane.running.stop().await;
}

/// Who has the certificate of another account may choose every name, and still counts as nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_waits_for_the_real_one_whatever_others_call_themselves() {
    let plane = Plane::start(|_, _| {}).await;
    let mut real = Member::join(&plane, "one", "a").await;
    let mut fake = Member::join(&plane, "one", "b").await;
    real.learn(&json!(1)).await;
    fake.learn(&json!(1)).await;
    let added = plane.taken("add", "added", false).await;
    fake.learn(&added).await;
    let lagging = "1 of 2 proxies have the roots of the step before, wait for: one (spiffe://cluster.local/ns/shop/sa/a)";
    plane.until_blocked("switch", lagging).await;
    real.learn(&added).await;
    let switched = plane.until_done("switch").await;
    real.learn(&switched).await;
    fake.learn(&switched).await;
    fake.renew(&plane).await;
    let in_use = "1 of 2 proxies have a certificate of the other root, wait for: one (spiffe://cluster.local/ns/shop/sa/a)";
    plane.until_blocked("drop", in_use).await;
    real.renew(&plane).await;
    plane.until_done("drop").await;
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_loopback_plain_text_and_tls_share_each_port() {
    let plane = Plane::start(|_, _| {}).await;
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{}", plane.xds()));
    let plain = plain.unwrap().connect().await.unwrap();
    let mut stream = Stream::open(plain.clone(), None, node("p", "shop", None)).await.unwrap();
    stream.bundle().await;
    // Whoever listens in would have the token: nothing is issued there.
    let token = plane.token(Role::Workload, Some(ORDERS), true);
    let refused = issue(plain, Some(&token), ORDERS, "p").await.err().unwrap();
    assert_ne!(refused.code(), Code::Ok);
    assert!(refused.message().contains("TLS"), "{refused}");
    issue(plane.trust.channel(plane.xds()), Some(&token), ORDERS, "p").await.unwrap();

    let stream = TcpStream::connect(plane.api()).await.unwrap();
    assert_eq!(http_over(stream, "GET", "/version", None, "").await.0, 200);
    assert_eq!(plane.trust.http(plane.api(), "GET", "/version", None, "").await.0, 200);
    plane.counted("leno_tls_handshakes_total{result=\"ok\"").await;
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn elsewhere_plain_text_is_closed_and_tls_is_served() {
    let plane = Plane::start(|_, settings| {
        settings.xds = SocketAddr::from(([0, 0, 0, 0], 0));
        settings.api = SocketAddr::from(([0, 0, 0, 0], 0));
    })
    .await;
    for address in [plane.xds(), plane.api()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
    }
    plane.counted("leno_tls_handshakes_total{result=\"plain\",side=\"server\"} 2").await;
    // Without a token nobody is anybody, but the roots are for everybody.
    assert_eq!(plane.trust.http(plane.api(), "GET", "/version", None, "").await.0, 401);
    let (code, bundle) = plane.trust.http(plane.api(), "GET", "/ca/bundle", None, "").await;
    assert_eq!(code, 200, "{bundle}");
    assert_eq!(Trust::of_pem(bundle.as_str().unwrap()).roots, plane.trust.roots);
    let viewer = plane.token(Role::Viewer, None, false);
    let (code, status) =
        plane.trust.http(plane.api(), "GET", "/ca/status", Some(&viewer), "").await;
    assert_eq!((code, &status["step"]), (200, &json!("idle")), "{status}");
    let rotation = json!({"action": "add"}).to_string();
    let (code, status) =
        plane.trust.http(plane.api(), "POST", "/ca/rotation", Some(&viewer), &rotation).await;
    assert_eq!(code, 403, "{status}");
    let held = plane.certificate(ORDERS, "orders-1").await;
    let (_, list) =
        plane.trust.http(plane.api(), "GET", "/ca/certificates", Some(&viewer), "").await;
    assert_eq!(list[0]["spiffeId"], "spiffe://cluster.local/ns/shop/sa/orders", "{list}");
    assert_eq!(list[0]["proxy"], "orders-1");
    let channel = plane.trust.with(&held).channel(plane.xds());
    Stream::open(channel, None, node("orders-1", "shop", None)).await.unwrap().bundle().await;
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_another_root_goes_away() {
    let plane = Plane::start(|_, _| {}).await;
    let stranger = Trust { roots: vec![Mint::new().root()], held: None };
    for address in [plane.xds(), plane.api()] {
        let error = stranger.dial(address, b"h2").await.unwrap_err().to_string();
        assert!(error.contains("UnknownIssuer"), "{error}");
    }
    plane.counted("leno_tls_handshakes_total{result=\"alert\",side=\"server\"} 2").await;
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_name_nobody_of_this_mesh_are_refused() {
    let mint = Mint::new();
    let plane = Plane::start(|directory, settings| mint.install(directory, settings)).await;
    let orders = "spiffe://cluster.local/ns/shop/sa/orders";
    let unchanged = |_: &mut rcgen::CertificateParams| {};
    let good = plane.trust.with(&mint.leaf(&[orders], unchanged));
    assert!(good.refusal(plane.xds()).await.is_none());

    let long_ago = rcgen::date_time_ymd(2020, 1, 1);
    let foreign = Mint::new();
    let rows: [(&str, Held, &str); 9] = [
        ("domain", mint.leaf(&["spiffe://other.test/ns/shop/sa/orders"], unchanged), "identity"),
        ("two names", mint.leaf(&[orders, orders], unchanged), "identity"),
        ("no SPIFFE ID", mint.leaf(&["https://cluster.local/"], unchanged), "identity"),
        (
            "a DNS name only",
            mint.leaf(&[], |params| {
                params.subject_alt_names =
                    vec![rcgen::SanType::DnsName("orders.shop".try_into().unwrap())];
            }),
            "identity",
        ),
        (
            "an authority as leaf",
            mint.leaf(&[orders], |params| {
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            }),
            "certificate",
        ),
        ("expired", mint.leaf(&[orders], |params| params.not_after = long_ago), "certificate"),
        (
            "not yet valid",
            mint.leaf(&[orders], |params| params.not_before = rcgen::date_time_ymd(2090, 1, 1)),
            "certificate",
        ),
        (
            "for servers only",
            mint.leaf(&[orders], |params| {
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
            }),
            "certificate",
        ),
        ("another authority", foreign.leaf(&[orders], unchanged), "certificate"),
    ];
    let mut counts = std::collections::BTreeMap::new();
    for (what, held, reason) in rows {
        assert!(plane.trust.with(&held).refusal(plane.xds()).await.is_some(), "{what}");
        *counts.entry(reason).or_insert(0) += 1;
        let count = counts[reason];
        let line =
            format!("leno_tls_handshakes_total{{result=\"{reason}\",side=\"server\"}} {count}");
        plane.counted(&line).await;
    }
    plane.running.stop().await;
}

/// A proxy in the middle of a rotation.
struct Member {
    who: (&'static str, &'static str),
    name: &'static str,
    held: Held,
    stream: Stream,
}

impl Member {
    async fn join(plane: &Plane, name: &'static str, account: &'static str) -> Self {
        let who = ("shop", account);
        let held = plane.certificate(who, name).await;
        let channel = plane.trust.with(&held).channel(plane.xds());
        let stream = Stream::open(channel, None, node(name, "shop", None)).await.unwrap();
        Self { who, name, held, stream }
    }

    /// Takes bundles until this generation (those in between may be skipped); says how many roots it has and which
    /// of them signs.
    async fn learn(&mut self, generation: &Value) -> (usize, String) {
        loop {
            let (response, bundle) = self.stream.bundle().await;
            self.stream.accept(&response).await;
            if bundle["metadata"]["generation"] == *generation {
                let spec = &bundle["spec"];
                let signer = spec["signer"].as_str().unwrap().to_owned();
                return (spec["roots"].as_array().unwrap().len(), signer);
            }
        }
    }

    /// Renews on the strength of the certificate that it has.
    async fn renew(&mut self, plane: &Plane) -> String {
        let channel = plane.current().with(&self.held).channel(plane.xds());
        let (held, response) = issue(channel, None, self.who, self.name).await.unwrap();
        self.held = held;
        response.signer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_replaced_when_every_proxy_is_ready_or_by_force() {
    let plane = Plane::start(|_, _| {}).await;
    let mut one = Member::join(&plane, "one", "a").await;
    let mut two = Member::join(&plane, "two", "b").await;
    let (count, old) = one.learn(&json!(1)).await;
    assert_eq!((count, &old), (1, &two.learn(&json!(1)).await.1));

    let added = plane.taken("add", "added", false).await;
    assert_eq!(one.learn(&added).await, (2, old.clone()));
    // The other one has not answered: nobody signs with the new root yet.
    let (late, _) = two.stream.bundle().await;
    plane
        .until_blocked("switch", "1 of 2 proxies have the roots of the step before, wait for: two")
        .await;

    // An administrator may know better, and may find out that they did not.
    plane.taken("switch", "switched", true).await;
    let undone = plane.taken("undo", "added", false).await;
    two.stream.accept(&late).await;
    for member in [&mut one, &mut two] {
        assert_eq!(member.learn(&undone).await, (2, old.clone()));
    }

    let switched = plane.until_done("switch").await;
    let (_, new) = one.learn(&switched).await;
    assert_ne!(new, old);
    assert_eq!(two.learn(&switched).await, (2, new.clone()));
    plane.until_blocked("drop", "0 of 2 proxies have a certificate of the other root").await;
    let outdated = plane.current().with(&one.held);
    for member in [&mut one, &mut two] {
        assert_eq!(member.renew(&plane).await, new);
    }
    // Until it is dropped, what the old root vouched for is good.
    assert!(outdated.refusal(plane.xds()).await.is_none());
    let dropped = plane.until_done("drop").await;
    assert_eq!(one.learn(&dropped).await, (1, new.clone()));
    assert!(outdated.refusal(plane.xds()).await.is_some());
    assert!(plane.current().with(&one.held).refusal(plane.xds()).await.is_none());
    assert_eq!(plane.current().roots.len(), 1);

    let undone = plane.taken("undo", "switched", false).await;
    assert_eq!(one.learn(&undone).await, (2, new));
    assert!(outdated.refusal(plane.xds()).await.is_none());
    plane.running.stop().await;
}

//! Certificates and roots are replaced under load, and nobody notices (FAULTS 34).

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Request;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinError, JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{
    certificates,
    client::{self, Wire},
    control_plane::ControlPlane,
    http2,
    mesh::{Mesh, PATIENCE, Proxy, until},
    mtls::{echo_bytes, tunnel},
    origin::Origin,
    secrets::{PKCS8_P256, assert_hidden},
};

/// Of each of two proxies.
const RENEWALS: usize = 30;
/// What the authority allows one proxy at once, and a second after that; one is for the first certificate.
const BURST: usize = 5;
const PACE: Duration = Duration::from_secs(1);

/// Requests under way of one caller; a machine that is too slow for the clock would only measure our limits.
const MOST_AT_ONCE: usize = 8;

/// Callers that begin requests by the clock, 1,000 a second together, however long each answer takes.
#[derive(Default)]
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    /// Panics of requests.
    failures: Arc<Mutex<Vec<String>>>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    async fn begin(caller: &Proxy) -> Self {
        let mut load = Self::default();
        let idle = Arc::default();
        for _ in 0..20 {
            load.spawn(Duration::from_millis(40), (caller.outbound, Arc::clone(&idle)), http1);
        }
        for _ in 0..2 {
            let sender = http2::connect(caller).await;
            load.spawn(Duration::from_micros(4200), sender, |sender| async move {
                let request = Request::post("http://orders/pay").body(()).unwrap();
                let response = http2::ask(&sender, request, b"money").await;
                assert_eq!(response.status(), 200, "{:?}", response.into_body());
            });
        }
        // Each of these is a connection of its own from sidecar to sidecar, with its handshake.
        load.spawn(Duration::from_millis(50), caller.outbound, |outbound| async move {
            let mut wire = tunnel(outbound, "store").await;
            wire.send("deposit").await;
            wire.finish().await;
            assert_eq!(wire.rest().await, b"deposit");
        });
        load
    }

    /// Begins a request at every tick.
    fn spawn<C: Clone + Send + 'static, F: Future<Output = ()> + Send + 'static>(
        &mut self,
        period: Duration,
        caller: C,
        request: impl Fn(C) -> F + Send + 'static,
    ) {
        let (stop, answered) = (self.stop.clone(), self.answered.clone());
        let failures = self.failures.clone();
        let ended = move |result: Result<(), JoinError>| match result {
            Ok(()) => _ = answered.fetch_add(1, Ordering::Relaxed),
            Err(error) => failures.lock().unwrap().push(error.to_string()),
        };
        self.callers.push(tokio::spawn(async move {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut under_way = JoinSet::new();
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                if under_way.len() >= MOST_AT_ONCE
                    && let Some(result) = under_way.join_next().await
                {
                    ended(result);
                }
                let request = request(caller.clone());
                under_way.spawn(async move {
                    timeout(PATIENCE, request).await.expect("an answer in time");
                });
                while let Some(result) = under_way.try_join_next() {
                    ended(result);
                }
            }
            while let Some(result) = under_way.join_next().await {
                ended(result);
            }
        }));
    }

    /// How many requests were answered, and why others were not.
    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        let failures = std::mem::take(&mut *self.failures.lock().unwrap());
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

/// On a connection that lies idle, or a new one.
async fn http1((outbound, idle): (SocketAddr, Arc<Mutex<Vec<Wire>>>)) {
    let kept = idle.lock().unwrap().pop();
    let mut wire = match kept {
        Some(wire) => wire,
        None => Wire::connect(outbound).await,
    };
    let request = "POST /buy HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbook";
    let answer = wire.ask(request).await;
    assert_eq!((answer.status, &answer.echo()["body"]), (200, &"book".into()), "{}", answer.text());
    idle.lock().unwrap().push(wire);
}

/// One connection for the whole time; says how many bytes came back.
async fn one_stream(mut wire: Wire, stop: Arc<AtomicBool>, count: Arc<AtomicUsize>) -> usize {
    let mut turns = 0;
    while !stop.load(Ordering::Relaxed) {
        let line = format!("turn {turns}\n");
        wire.send(&line).await;
        let echoed = wire.exactly(line.len()).await.expect("the stream goes on");
        assert_eq!(echoed, line.as_bytes());
        turns += 1;
        count.store(turns, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    turns
}

async fn serial(proxy: &Proxy) -> Option<String> {
    let shown = proxy.json("/certs").await;
    shown["serial"].as_str().map(str::to_owned)
}

/// Asks for a new certificate and waits until it is in use.
async fn renew(proxy: &Proxy) -> String {
    let before = serial(proxy).await;
    let request =
        format!("POST /certs/renew HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n", proxy.admin);
    assert_eq!(client::ask(proxy.admin, request).await.status, 202);
    until("another certificate", async || {
        serial(proxy).await.filter(|now| Some(now) != before.as_ref())
    })
    .await
}

async fn renew_again_and_again(proxy: &Proxy) -> Vec<String> {
    let mut serials = Vec::new();
    for at in 0..RENEWALS {
        // So does the authority count.
        let pace = async {
            if at >= BURST {
                tokio::time::sleep(PACE).await;
            }
        };
        serials.push(tokio::join!(renew(proxy), pace).0);
    }
    serials
}

/// The root is replaced step by step in the midst of it all, each step as soon as everybody is ready for it.
async fn replace_the_root(control_plane: &ControlPlane, load: &Load, turns: &AtomicUsize) {
    for action in ["add", "switch", "drop"] {
        let answered = || load.answered.load(Ordering::Relaxed);
        let before = answered();
        let turned = turns.load(Ordering::Relaxed);
        until("traffic between two steps", async || {
            let turned = turns.load(Ordering::Relaxed) > turned + 5;
            (answered() > before + 350 && turned).then_some(())
        })
        .await;
        control_plane.rotate(action).await;
    }
}

async fn mesh(origins: [&Origin; 3]) -> (ControlPlane, Proxy, Proxy) {
    let mut control_plane = ControlPlane::start(&["--certificate-ttl", "30s"]).await;
    let services = [("shop", "http"), ("orders", "http2"), ("store", "tcp")];
    for (name, protocol) in services {
        let spec = json!({"ports": [{"name": name, "port": 80, "protocol": protocol}]});
        control_plane.create("leno.dev/v1alpha1", "services", named("Service", name, &spec)).await;
        // The machine may be busy; how fast connections are is not what this is about.
        let spec = json!({
            "targetRefs": [{"group": "", "kind": "Service", "name": name}],
            "timeouts": {"connect": "15s"},
        });
        let policy = named("TrafficPolicy", name, &spec);
        control_plane.create("leno.dev/v1alpha1", "trafficpolicies", policy).await;
    }
    let mut callee = Mesh::default().managed(&mut control_plane, "callee");
    for ((name, _), origin) in services.iter().zip(origins) {
        let port = format!("{name}={}", origin.address.port());
        callee = callee.arguments(&["--service", name, "--app", &port]);
    }
    let callee = callee.start().await;
    let caller = Mesh::default().managed(&mut control_plane, "caller").start().await;
    for proxy in [&callee, &caller] {
        until("a certificate", async || serial(proxy).await).await;
    }
    until("all services", async || {
        let answers = [
            client::get(caller.outbound, "shop", "/").await,
            client::get(caller.outbound, "orders", "/").await,
        ];
        let listed = callee.page("/listeners").await;
        (answers.iter().all(|answer| answer.status == 200) && listed.contains("store"))
            .then_some(())
    })
    .await;
    (control_plane, callee, caller)
}

fn named(kind: &str, name: &str, spec: &serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

/// Whether the callee answers a caller that connects with `config`.
async fn is_served(callee: &Proxy, config: &Arc<rustls::ClientConfig>) -> bool {
    let stream = TcpStream::connect(callee.inbound).await.unwrap();
    let name = "80.shop.default.leno".try_into().unwrap();
    let connected = TlsConnector::from(config.clone()).connect(name, stream);
    let Ok(mut stream) = timeout(PATIENCE, connected).await.unwrap() else { return false };
    let request = b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
    let mut answer = Vec::new();
    let _ = stream.write_all(request).await;
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    answer.starts_with(b"HTTP/1.1 200")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_certificates_and_a_root_are_replaced_under_load() {
    let (shop, orders, store) =
        (Origin::echo("shop").await, Origin::echo_http2("orders").await, echo_bytes(b"").await);
    let (control_plane, callee, caller) = mesh([&shop, &orders, &store]).await;
    let old_root = control_plane.stolen_root();
    let old = Arc::new(certificates::config("leno-http/1.1", Some(&old_root.issue("caller"))));
    assert!(is_served(&callee, &old).await);
    let first_roots = callee.json("/certs").await["roots"].clone();
    let load = Load::begin(&caller).await;
    let stream = tunnel(caller.outbound, "store").await;
    let turns = Arc::new(AtomicUsize::new(0));
    let stream = tokio::spawn(one_stream(stream, load.stop.clone(), turns.clone()));
    let (of_callee, of_caller, ()) = tokio::join!(
        renew_again_and_again(&callee),
        renew_again_and_again(&caller),
        replace_the_root(&control_plane, &load, &turns),
    );
    // Once more, all of it under the new root.
    renew(&callee).await;
    renew(&caller).await;
    let turned = turns.load(Ordering::Relaxed);
    until("the stream to go on", async || (turns.load(Ordering::Relaxed) > turned).then_some(()))
        .await;
    let (answered, failures) = load.end().await;
    let turns = stream.await.unwrap();
    assert!(
        failures.is_empty(),
        "{} of {answered} failed: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    assert!(answered > 1000 && turns > 15, "{answered} requests, {turns} turns");
    for serials in [&of_callee, &of_caller] {
        let different: std::collections::BTreeSet<_> = serials.iter().collect();
        assert_eq!((serials.len(), different.len()), (RENEWALS, RENEWALS));
    }
    // The old root proves nothing any more, not by a session that it once began either.
    for proxy in [&callee, &caller] {
        let roots = proxy.json("/certs").await["roots"].clone();
        assert!(roots.as_array().unwrap().len() == 1 && roots != first_roots, "{roots}");
    }
    let refused = [("side", "server"), ("result", "unknown_ca")];
    let before = callee.metric("leno_tls_handshakes_total", &refused).await.unwrap_or(0.0);
    assert!(!is_served(&callee, &old).await);
    callee.counts("leno_tls_handshakes_total", &refused, before + 1.0).await;
    let stranger = certificates::config("leno-http/1.1", Some(&old_root.issue("caller")));
    assert!(!is_served(&callee, &Arc::new(stranger)).await);
    for proxy in [&callee, &caller] {
        let not_ok = proxy.metric("leno_certificate_renewals_total", &[("result", "ok")]).await;
        assert!(not_ok.unwrap() >= f64::from(u32::try_from(RENEWALS).unwrap()));
    }
    // Workers hand in what they have counted from time to time, also between two looks.
    until("nothing to have failed in between either", async || {
        let good = callee.metric("istio_requests_total", &[("response_flags", "-")]).await;
        (good == callee.metric("istio_requests_total", &[]).await).then_some(())
    })
    .await;
    // Nobody has been told a secret.
    let mut secrets: Vec<Vec<u8>> =
        control_plane.tokens.iter().map(|it| it.clone().into()).collect();
    secrets.extend([b"PRIVATE KEY".to_vec(), PKCS8_P256.to_vec()]);
    assert_hidden("the callee", &callee.shown().await, &secrets);
    assert_hidden("the caller", &caller.shown().await, &secrets);
    assert_hidden("the control plane", control_plane.errors().as_bytes(), &secrets);
}

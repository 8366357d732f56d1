//! Limits on what a service takes: at one sidecar, and at all of a service together.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    certificates,
    client::{Answer, Wire},
    control_plane::ControlPlane,
    http2,
    mesh::{Mesh, PATIENCE, Proxy, until},
    mtls::{Pair, pair},
    origin::Origin,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

fn limits(limits: &str) -> String {
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: RateLimitPolicy\n\
         metadata: {{name: shop, namespace: default}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: shop}}], limits: [{limits}]}}"
    )
}

/// A sidecar beside `application`, which serves `shop`.
fn sidecar(application: &Origin, protocol: &str, policy: &str) -> Mesh {
    Mesh::default()
        .yaml(&format!(
            "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {{name: shop, namespace: default}}\n\
             spec: {{ports: [{{name: main, port: 80, protocol: {protocol}}}]}}"
        ))
        .yaml(&format!(
            "apiVersion: leno.dev/v1alpha1\nkind: Workload\nmetadata: {{name: shop-1, namespace: default}}\n\
             spec: {{services: [shop], address: 127.0.0.1, ports: {{main: {}}}}}",
            application.address.port()
        ))
        .yaml(policy)
        .arguments(&["--name", "shop-1"])
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")
}

async fn statuses(wire: &mut Wire, requests: &[String]) -> Vec<u16> {
    let mut statuses = Vec::new();
    for request in requests {
        statuses.push(wire.ask(request).await.status);
    }
    statuses
}

#[tokio::test]
async fn above_the_limit_callers_are_told_when_to_come_back() {
    let shop = Origin::echo("shop").await;
    let policy = limits("{name: few, requests: 2, per: 1h}, {name: many, requests: 100, per: 1s}");
    let proxy = sidecar(&shop, "http", &policy).start().await;
    let mut wire = Wire::connect(proxy.inbound).await;
    for left in [1, 0] {
        let answer = wire.ask(GET).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"few\";q=2;w=3600"));
        let told = answer.header("ratelimit").unwrap();
        assert!(told.starts_with(&format!("\"few\";r={left};t=1")), "{told}");
    }
    let refused: Answer = wire.ask(GET).await;
    assert_eq!((refused.status, refused.text().as_str()), (429, "over a rate limit (RL)\n"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1_700..=1_800).contains(&wait), "{wait}");
    assert_eq!(refused.header("ratelimit"), Some(&*format!("\"few\";r=0;t={wait}")));
    assert_eq!(shop.requests().len(), 2);
    assert_eq!(proxy.last_outcome(3).await, (429, "RL".to_owned()));
    let log = proxy.access_log(3).await;
    let detail = log[2]["response_code_details"].as_str().unwrap();
    assert_eq!(detail, "RateLimitPolicy default/shop: over the limit `few`");
    assert_eq!(log[2]["upstream_cluster"], log[0]["upstream_cluster"]);
    let labels = [("policy", "default/shop"), ("limit", "few")];
    proxy.counts("leno_rate_limited_total", &labels, 1.0).await;
    let requests = [("response_code", "429"), ("response_flags", "RL")];
    proxy.counts("istio_requests_total", &requests, 1.0).await;
    let page = proxy.page("/clusters").await;
    assert!(page.contains("::rate_limit::default/shop/few::2 per 3600s, Local"), "{page}");
    // Gone with the policy, and so are its figures.
    proxy.rewrite(sidecar(&shop, "http", "").text());
    until("the limit to be gone", async || (wire.ask(GET).await.status == 200).then_some(())).await;
    until("its figures to be gone", async || {
        proxy.metric("leno_rate_limited_total", &labels).await.is_none().then_some(())
    })
    .await;
    assert_eq!(wire.ask(GET).await.header("ratelimit"), None);
}

#[tokio::test]
async fn what_matches_and_what_has_a_count_of_its_own() {
    let shop = Origin::echo("shop").await;
    let policy = limits(
        "{name: tenant, requests: 1, per: 1h, by: [{header: {name: x-tenant}}], \
           matches: [{path: {type: PathPrefix, value: /api}, method: GET}]}, \
         {name: path, requests: 2, per: 1h, by: [{path: {}}, {sourceIp: {}}], status: 503, \
           matches: [{path: {type: PathPrefix, value: /slow}}]}",
    );
    let proxy = sidecar(&shop, "http", &policy).start().await;
    let mut wire = Wire::connect(proxy.inbound).await;
    let requests = [
        (get("/api/x", "x-tenant: a\r\n"), 200),
        (get("/api/y", "x-tenant: a\r\n"), 429),
        (get("/api/y", "x-tenant: b\r\n"), 200),
        (get("/api/y", "x-tenant: b\r\nx-tenant: a\r\n"), 200),
        (get("/api/y", ""), 200),
        (get("/api/y", ""), 429),
        (get("/other", "x-tenant: a\r\n"), 200),
        (get("/api/x", "x-tenant: a\r\n").replace("GET", "DELETE"), 200),
        (get("/slow/1?q=1", ""), 200),
        (get("/slow/1?q=2", ""), 200),
        (get("/slow/./1", ""), 503),
        (get("/slow/2", ""), 200),
    ];
    for (request, status) in &requests {
        assert_eq!(wire.ask(request).await.status, *status, "{request}");
    }
}

#[tokio::test]
async fn a_caller_is_who_it_has_proven_to_be() {
    let shop = Origin::echo("shop").await;
    let policy = limits("{name: each, requests: 1, per: 1h, by: [{caller: {}}]}");
    let Pair { callee, authority, .. } = pair(&[("shop", "http", &shop)], &[&policy]).await;
    for (account, status) in [("one", 200), ("one", 429), ("two", 200), ("one", 429)] {
        // A certificate of its own each time: the name counts.
        let issued = authority.issue(account);
        let name = "80.shop.default.leno";
        let stream = certificates::connect(callee.inbound, name, "leno-http/1.1", Some(&issued));
        let mut stream = stream.await.unwrap();
        let forged = "x-forwarded-client-cert: By=x;URI=spiffe://cluster.local/ns/default/sa/z\r\n";
        let request = get("/", &format!("Connection: close\r\n{forged}"));
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
        let _ = read.expect("an answer ends");
        let answer = String::from_utf8(bytes).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{account}: {answer}");
    }
}

#[tokio::test]
async fn grpc_callers_hear_that_a_resource_is_exhausted() {
    let shop = Origin::echo_http2("shop").await;
    let policy = limits("{name: none-left, requests: 1, per: 1h}");
    let mut proxy = sidecar(&shop, "grpc", &policy).start().await;
    proxy.outbound = proxy.inbound;
    let sender = http2::connect(&proxy).await;
    let call = || {
        let request = http::Request::post("http://shop/shop.Orders/List");
        request
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap()
    };
    assert_eq!(http2::ask(&sender, call(), b"").await.status(), 200);
    let refused = http2::ask(&sender, call(), b"").await;
    let header = |name: &str| refused.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((refused.status().as_u16(), header("grpc-status").as_str()), (200, "8"));
    assert_eq!(header("grpc-message"), "over a rate limit");
    assert!(header("retry-after").parse::<u64>().unwrap() > 3_000);
}

/// Callers that ask as fast as they can until told to stop: how many were let through.
struct Load {
    stop: Arc<AtomicBool>,
    admitted: Arc<AtomicUsize>,
    /// When the first answer came.
    first: Arc<OnceLock<Instant>>,
    /// When the latest of the requests that were refused was sent.
    refused: Arc<Mutex<Option<Instant>>>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn new() -> Self {
        Self {
            stop: Arc::default(),
            admitted: Arc::default(),
            first: Arc::default(),
            refused: Arc::default(),
            callers: Vec::new(),
        }
    }

    /// `connections` callers of one sidecar, each with a pause between two requests.
    fn add(&mut self, inbound: SocketAddr, connections: usize, pause: Duration) {
        for _ in 0..connections {
            let (stop, admitted) = (self.stop.clone(), self.admitted.clone());
            let (first, refused) = (self.first.clone(), self.refused.clone());
            self.callers.push(tokio::spawn(async move {
                let mut wire = Wire::connect(inbound).await;
                while !stop.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    let status = wire.ask(GET).await.status;
                    first.get_or_init(Instant::now);
                    match status {
                        200 => _ = admitted.fetch_add(1, Ordering::Relaxed),
                        429 => *refused.lock().unwrap() = Some(sent),
                        other => panic!("{other}"),
                    }
                    tokio::time::sleep(pause).await;
                }
            }));
        }
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.admitted.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_limit_is_exact_however_many_workers_share_it() {
    let shop = Origin::canned("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    // However long the machine stands still, what came in meanwhile is not lost: there is room for 40 s.
    let policy = limits("{name: all, requests: 50, per: 1s, burst: 2000}");
    let proxy = sidecar(&shop, "http", &policy).arguments(&["--workers", "2"]).start().await;
    let mut load = Load::new();
    let begun = Instant::now();
    load.add(proxy.inbound, 16, Duration::ZERO);
    until("more than there was in the beginning", async || {
        let refused = load.refused.lock().unwrap().is_some();
        (refused && load.admitted.load(Ordering::Relaxed) >= 2_100).then_some(())
    })
    .await;
    let (first, refused) = (load.first.clone(), load.refused.clone());
    let admitted = load.end().await as f64;
    let most = 2_000.0 + 50.0 * begun.elapsed().as_secs_f64();
    assert!(admitted <= most + 1.0, "{admitted} of at most {most}");
    // Whoever was refused found nothing left: all that had come in by then was used.
    let used = refused.lock().unwrap().unwrap().duration_since(*first.get().unwrap());
    let least = 2_000.0 + 50.0 * used.as_secs_f64();
    assert!(admitted >= least - 1.0, "{admitted} of at least {least}");
}

/// Values that a caller invents cannot fill the memory, and whoever was there before is still limited, and served.
#[tokio::test]
async fn a_flood_of_keys_changes_nothing_for_others() {
    const FLOOD: usize = 100_000;
    const CALLERS: usize = 8;
    let shop = Origin::echo("shop").await;
    let policy = limits(
        "{name: key, requests: 4, per: 24h, by: [{header: {name: x-key}}], \
          matches: [{headers: [{name: x-key, present: {}}]}]}, \
         {name: closed, requests: 1, per: 24h, matches: [{method: DELETE}]}",
    );
    let proxy = sidecar(&shop, "http", &policy).arguments(&["--workers", "2"]).start().await;
    let mut wire = Wire::connect(proxy.inbound).await;
    let legitimate = vec![get("/", "x-key: legitimate\r\n"); 3];
    assert_eq!(statuses(&mut wire, &legitimate).await, [200; 3]);
    // One that is refused by the second limit costs the application nothing, but has its key.
    assert_eq!(wire.ask(get("/", "").replace("GET", "DELETE")).await.status, 200);
    let flood = |from: usize, to: usize| {
        let inbound = proxy.inbound;
        let callers = (0..CALLERS).map(move |caller| {
            tokio::spawn(async move {
                let mut wire = Wire::connect(inbound).await;
                for number in (from..to).skip(caller).step_by(CALLERS) {
                    let request = get("/", &format!("x-key: {number}\r\n"));
                    let status = wire.ask(request.replace("GET", "DELETE")).await.status;
                    assert_eq!(status, 429);
                }
            })
        });
        let callers: Vec<_> = callers.collect();
        async move {
            for caller in callers {
                caller.await.unwrap();
            }
        }
    };
    // What a flood costs anyway: connections, buffers, full tables.
    flood(0, FLOOD / 2).await;
    let before = proxy.resident();
    flood(FLOOD / 2, FLOOD).await;
    let after = proxy.resident();
    assert!(after < before + (4 << 20), "{before} {after}");
    // The first connection may have been idle for too long meanwhile.
    let mut wire = Wire::connect(proxy.inbound).await;
    assert_eq!(statuses(&mut wire, &legitimate[..2]).await, [200, 429]);
    assert_eq!(wire.ask(get("/", "x-key: late\r\n")).await.status, 200);
}

#[tokio::test]
async fn a_reload_keeps_the_counts_and_takes_up_other_numbers() {
    let shop = Origin::echo("shop").await;
    let with = |requests: u32| {
        sidecar(&shop, "http", &limits(&format!("{{name: all, requests: {requests}, per: 1h}}")))
    };
    let proxy = with(2).start().await;
    let mut wire = Wire::connect(proxy.inbound).await;
    let requests = vec![GET.to_owned(); 3];
    assert_eq!(statuses(&mut wire, &requests).await, [200, 200, 429]);
    let generation = proxy.metric("leno_config_generation", &[]).await;
    let changed = async || {
        until("the change to be in force", async || {
            (proxy.metric("leno_config_generation", &[]).await != generation).then_some(())
        })
        .await;
    };
    let other = with(2).service("other", "http", &[shop.address]);
    proxy.rewrite(other.text());
    changed().await;
    assert_eq!(wire.ask(GET).await.status, 429, "the same policy goes on");
    proxy.rewrite(with(1_000_000).text());
    until("more to be let through", async || (wire.ask(GET).await.status == 200).then_some(()))
        .await;
}

#[tokio::test]
async fn a_global_limit_needs_a_control_plane() {
    let shop = Origin::echo("shop").await;
    let policy = limits("{name: all, requests: 2, per: 1h, scope: Global}");
    let (status, errors) = sidecar(&shop, "http", &policy).fail().await;
    assert!(!status.success());
    assert!(
        errors.contains("spec.limits[0].scope") && errors.contains("control plane"),
        "{errors}"
    );
}

/// Two sidecars of one service, all of the load at one of them; then the control plane is gone.
#[tokio::test]
async fn a_global_limit_is_shared_by_demand_and_outlives_the_control_plane() {
    let shop = Origin::canned("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let mut control_plane = ControlPlane::start(&[]).await;
    let service = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Service", "metadata": {"name": "shop"},
        "spec": {"ports": [{"name": "main", "port": 80, "protocol": "http"}]},
    });
    control_plane.create("leno.dev/v1alpha1", "services", service).await;
    let mode = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": {"name": "mode"},
        "spec": {"mtls": {"mode": "PERMISSIVE"}},
    });
    control_plane.create("leno.dev/v1alpha1", "peerauthentications", mode).await;
    let policy = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "RateLimitPolicy", "metadata": {"name": "shop"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "shop"}],
            "limits": [{"name": "all", "requests": 200, "per": "1s", "burst": 20, "scope": "Global"}],
        },
    });
    control_plane.create("leno.dev/v1alpha1", "ratelimitpolicies", policy).await;
    let port = format!("main={}", shop.address.port());
    let mut sidecars = Vec::new();
    for account in ["shop-1", "shop-2", "shop-3"] {
        let flags = ["--service", "shop", "--app", &port];
        sidecars.push(
            Mesh::default().managed(&mut control_plane, account).arguments(&flags).start().await,
        );
    }
    let labels = [("policy", "default/shop"), ("limit", "all")];
    for sidecar in &sidecars {
        sidecar.counts("leno_rate_limit_leased", &labels, 1.0).await;
    }
    let path = "/apis/leno.dev/v1alpha1/namespaces/default/ratelimitpolicies/shop";
    until("the policy to be live", async || {
        let answer = control_plane.call("GET", path, &json!(null)).await.text();
        answer.contains("live on 3 of 3 connected proxies").then_some(())
    })
    .await;
    // Alone with its demand.
    reaches(&[(&sidecars[0], 8)], 0.85..=1.1).await;
    // Uneven: the second is asked for a tenth of what the first is.
    reaches(&[(&sidecars[0], 6), (&sidecars[1], 1), (&sidecars[2], 1)], 0.85..=1.1).await;
    // Without the control plane everybody has a third: one of them has no more, and no less.
    drop(control_plane);
    for sidecar in &sidecars {
        sidecar.counts("leno_rate_limit_leased", &labels, 0.0).await;
    }
    reaches(&[(&sidecars[0], 8)], 0.28..=0.40).await;
    reaches(&[(&sidecars[0], 3), (&sidecars[1], 3), (&sidecars[2], 3)], 0.85..=1.12).await;
    assert!(sidecars[0].errors().contains("going on with an equal part"));
    assert!(sidecars[0].errors().contains("grants no share in global rate limits"));
}

/// Waits until in a second such a part of the limit is let through, by sidecar and number of connections: shares take a
/// moment to settle, and a machine that has no time for the callers lets through less for a while.
async fn reaches(load: &[(&Proxy, usize)], part: std::ops::RangeInclusive<f64>) {
    const LIMIT: f64 = 200.0;
    let mut callers = Load::new();
    for (sidecar, connections) in load {
        callers.add(sidecar.inbound, *connections, Duration::from_millis(2));
    }
    let mut seen = Vec::new();
    let begun = Instant::now();
    loop {
        let (before, second) = (callers.admitted.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = callers.admitted.load(Ordering::Relaxed);
        seen.push((after - before) as f64 / second.elapsed().as_secs_f64() / LIMIT);
        if seen.last().is_some_and(|last| part.contains(last)) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{part:?} of the limit is not reached: {seen:?}");
    }
    callers.end().await;
}

/// One gRPC call of the quota service, as bytes: its `grpc-status`.
async fn lease(control_plane: &ControlPlane, token: Option<&str>, namespace: &str) -> String {
    // LeaseRequest { proxy, limits: [LimitDemand { namespace, service, policy, limit }] }
    let field = |number: u8, value: &[u8]| {
        let length = u8::try_from(value.len()).unwrap();
        [&[number << 3 | 2, length], value].concat()
    };
    let names = [namespace, "shop", "shop", "all"];
    let limit: Vec<u8> =
        (1..).zip(names).flat_map(|(number, name)| field(number, name.as_bytes())).collect();
    let message = [field(1, b"somebody"), field(2, &limit)].concat();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body: &'static [u8] = Box::leak([&[0], &length[..], &message].concat().into_boxed_slice());
    let stream = tokio::net::TcpStream::connect(control_plane.xds).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://control-plane/leno.quota.v1.Quota/Lease")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    let mut sender = sender.ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    stream.send_data(bytes::Bytes::from_static(body), true).unwrap();
    let response = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
    let status = |headers: &http::HeaderMap| {
        headers.get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
    };
    if let Some(status) = status(response.headers()) {
        return status;
    }
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    status(&body.trailers().await.unwrap().unwrap()).unwrap()
}

/// Who may not have the configuration of a proxy in a namespace has no part in its limits.
#[tokio::test]
async fn shares_are_for_proxies_of_the_namespace() {
    let mut control_plane = ControlPlane::start(&["--require-token"]).await;
    control_plane.flags("shop");
    let token = control_plane.tokens[0].clone();
    for (token, namespace, status) in [
        (Some(&*token), "default", "0"),
        (Some(&*token), "other", "7"),
        (Some(&*token), "", "3"),
        (Some("forged"), "default", "16"),
        (None, "default", "16"),
    ] {
        assert_eq!(lease(&control_plane, token, namespace).await, status, "{token:?} {namespace}");
    }
}

//! Endpoints that are asked how they are.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpListener};

use crate::{
    client,
    http2::serve,
    mesh::{Mesh, Proxy, until},
    mtls::{Pair, authorization, pair},
    origin::{self, Origin},
};

const CLUSTER: &str = "default/shop:80";
/// Long enough for a machine that stands still now and then.
const OFTEN: &str = "interval: 500ms, timeout: 500ms, healthy: 2, unhealthy: 2";

/// What the check of an endpoint says.
async fn check(proxy: &Proxy, place: usize) -> Value {
    proxy.cluster(CLUSTER).await["endpoints"][place]["health"]["check"].clone()
}

async fn becomes(proxy: &Proxy, place: usize, healthy: bool) -> Value {
    until("the check to say so", async || {
        let check = check(proxy, place).await;
        (check["healthy"] == healthy).then_some(check)
    })
    .await
}

/// Answers 200 to all but `/healthz?deep`, which says how it is.
async fn application(name: &'static str) -> (Origin, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let shared = well.clone();
    let origin = Origin::raw(move |mut stream, _| {
        let well = shared.clone();
        async move {
            while let Some((head, _)) = origin::read_request(&mut stream).await {
                let asked = head.starts_with("get /healthz?deep http/1.1\r\n");
                let status = match asked && !well.load(Ordering::Relaxed) {
                    true => "500 Failed\r\nContent-Length: 11\r\n\r\nno database",
                    false => "200 OK\r\nContent-Length: 0\r\n\r\n",
                };
                let (line, rest) = status.split_once("\r\n").unwrap();
                let answer = format!("HTTP/1.1 {line}\r\nx-origin: {name}\r\n{rest}");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    (origin.await, well)
}

async fn owners(proxy: &Proxy, count: usize) -> Vec<String> {
    let mut owners = Vec::new();
    for _ in 0..count {
        let answer = client::get(proxy.outbound, "shop", "/").await;
        assert_eq!(answer.status, 200);
        owners.push(answer.header("x-origin").unwrap().to_owned());
    }
    owners.sort();
    owners.dedup();
    owners
}

#[tokio::test]
async fn who_says_that_it_is_not_well_gets_nothing_until_it_is() {
    let (one, other) = (application("0").await, application("1").await);
    let policy = format!(
        "healthCheck: {{http: {{path: '/healthz?deep'}}, {OFTEN}}}\nbalancer: {{roundRobin: {{}}}}\n\
         slowStart: {{minimumPercent: 100}}"
    );
    let mesh = Mesh::default().service("shop", "http", &[one.0.address, other.0.address]);
    let without = mesh_text(&[one.0.address, other.0.address]);
    let proxy = mesh.policy("shop", &policy).start().await;
    // Checked although nobody has called it yet.
    becomes(&proxy, 0, true).await;
    assert_eq!(owners(&proxy, 10).await, ["0", "1"]);

    one.1.store(false, Ordering::Relaxed);
    let shown = becomes(&proxy, 0, false).await;
    assert_eq!(shown["error"], "answered 500: no database");
    proxy.counts("leno_endpoints_unhealthy", &[("service", CLUSTER)], 1.0).await;
    assert_eq!(owners(&proxy, 20).await, ["1"]);
    let failed = [("service", CLUSTER), ("result", "failure")];
    assert!(proxy.metric("leno_health_checks_total", &failed).await >= Some(2.0));
    let page = proxy.page("/clusters").await;
    assert!(page.contains("::health_flags::/failed_active_hc\n"), "{page}");
    assert!(page.contains("::check::error::answered 500: no database\n"), "{page}");
    let errors = proxy.errors();
    assert!(errors.contains("failed 2 health checks in a row: answered 500"), "{errors}");

    // With both unhealthy too few are left to be choosy.
    other.1.store(false, Ordering::Relaxed);
    becomes(&proxy, 1, false).await;
    until("both to be used", async || (owners(&proxy, 10).await == ["0", "1"]).then_some(())).await;
    for (_, well) in [&one, &other] {
        well.store(true, Ordering::Relaxed);
    }
    becomes(&proxy, 0, true).await;
    becomes(&proxy, 1, true).await;
    assert_eq!(owners(&proxy, 20).await, ["0", "1"]);
    assert!(proxy.errors().contains("passes its health checks again after"));

    // Nobody is asked any more, and nobody is out.
    one.1.store(false, Ordering::Relaxed);
    becomes(&proxy, 0, false).await;
    proxy.rewrite(&without);
    until("the checks to be gone", async || check(&proxy, 0).await.is_null().then_some(())).await;
    assert_eq!(owners(&proxy, 10).await, ["0", "1"]);
    assert_eq!(proxy.metric("leno_health_checks_total", &[]).await, None);
}

fn mesh_text(addresses: &[SocketAddr]) -> String {
    let mesh = Mesh::default().service("shop", "http", addresses);
    mesh.policy("shop", "balancer: {roundRobin: {}}").text().to_owned()
}

/// A `grpc.health.v1.Health` that knows one service.
async fn grpc(well: Arc<AtomicBool>) -> Origin {
    Origin::raw(move |stream, _| {
        let well = well.clone();
        async move {
            let mut connection = serve(stream).await;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let well = well.clone();
                tokio::spawn(async move {
                    let response = Response::builder().header("content-type", "application/grpc");
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let mut body = request.into_body();
                    let mut asked = Vec::new();
                    while let Some(Ok(data)) = body.data().await {
                        asked.extend(data);
                    }
                    assert_eq!(asked, b"\0\0\0\0\x08\x0a\x06orders");
                    let status = if well.load(Ordering::Relaxed) { 1 } else { 2 };
                    let mut stream =
                        respond.send_response(response.body(()).unwrap(), false).unwrap();
                    let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    if stream.send_data(message, false).is_ok() {
                        let _ = stream.send_trailers(trailers);
                    }
                });
            }
        }
    })
    .await
}

#[tokio::test]
async fn grpc_servers_are_asked_in_their_own_way() {
    let well = Arc::new(AtomicBool::new(true));
    let (able, unable) = (grpc(well.clone()).await, Origin::echo_http2("x").await);
    let policy = format!("healthCheck: {{grpc: {{service: orders}}, {OFTEN}}}");
    let mesh = Mesh::default().service("shop", "grpc", &[able.address, unable.address]);
    let proxy = mesh.policy("shop", &policy).start().await;
    becomes(&proxy, 0, true).await;
    let shown = becomes(&proxy, 1, false).await;
    assert_eq!(shown["error"], "answered with something that is not a HealthCheckResponse");
    well.store(false, Ordering::Relaxed);
    assert_eq!(becomes(&proxy, 0, false).await["error"], "says NOT_SERVING");
    well.store(true, Ordering::Relaxed);
    becomes(&proxy, 0, true).await;
}

#[tokio::test]
async fn tcp_checks_see_who_listens_and_another_port_speaks_for_an_endpoint() {
    let (origin, _) = application("0").await;
    let spokesman = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = spokesman.local_addr().unwrap();
    let policy = format!("healthCheck: {{tcp: {{}}, port: {}, {OFTEN}}}", address.port());
    let mesh = Mesh::default().service("shop", "http", &[origin.address]);
    let proxy = mesh.policy("shop", &policy).start().await;
    becomes(&proxy, 0, true).await;
    drop(spokesman);
    let shown = becomes(&proxy, 0, false).await;
    assert!(shown["error"].as_str().unwrap().contains("refused"), "{shown}");
    let _spokesman = TcpListener::bind(address).await.unwrap();
    becomes(&proxy, 0, true).await;
}

#[tokio::test]
async fn who_does_not_answer_in_time_is_not_well() {
    let silent = Origin::raw(|mut stream, _| async move {
        origin::drain(&mut stream).await;
    });
    let silent = silent.await;
    let policy = format!("healthCheck: {{http: {{path: /}}, {OFTEN}}}");
    let mesh = Mesh::default().service("shop", "http", &[silent.address]);
    let proxy = mesh.policy("shop", &policy).start().await;
    assert_eq!(becomes(&proxy, 0, false).await["error"], "no answer within 500ms");
}

fn policy(check: &str) -> String {
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: shop, namespace: default}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: shop}}], \
         healthCheck: {{{check}, interval: 500ms, timeout: 500ms, unhealthy: 2}}}}"
    )
}

#[tokio::test]
async fn checks_go_through_sidecars_as_traffic_does() {
    let (origin, well) = application("0").await;
    let policy = policy("http: {path: '/healthz?deep'}");
    let Pair { caller, callee, .. } = pair(&[("shop", "http", &origin)], &[&policy]).await;
    becomes(&caller, 0, true).await;
    well.store(false, Ordering::Relaxed);
    assert_eq!(becomes(&caller, 0, false).await["error"], "answered 500: no database");
    well.store(true, Ordering::Relaxed);
    becomes(&caller, 0, true).await;
    let asked = callee.access_log(1).await;
    assert!(asked.iter().any(|line| line["path"] == "/healthz?deep"), "{asked:?}");
}

#[tokio::test]
async fn a_check_that_policies_refuse_says_so() {
    let (origin, _) = application("0").await;
    let policy = policy("http: {path: '/healthz?deep'}");
    let allowed = "{rules: [{to: [{operation: {paths: [/else]}}]}]}";
    let allow = authorization("only-else", allowed);
    let Pair { caller, callee: _callee, .. } =
        pair(&[("shop", "http", &origin)], &[&policy, &allow]).await;
    let shown = becomes(&caller, 0, false).await;
    let error = shown["error"].as_str().unwrap();
    assert!(error.starts_with("answered 403"), "{error}");
    assert!(error.ends_with("(do the service's policies let this proxy in?)"), "{error}");
}

#[tokio::test]
async fn a_tcp_check_through_a_sidecar_is_of_the_application() {
    let origin = crate::mtls::echo_bytes(b"hello").await;
    let policy = policy("tcp: {}");
    let Pair { caller, callee: _callee, .. } = pair(&[("shop", "tcp", &origin)], &[&policy]).await;
    becomes(&caller, 0, true).await;
    drop(origin);
    let shown = becomes(&caller, 0, false).await;
    assert!(shown["error"].as_str().unwrap().contains("its sidecar"), "{shown}");
}

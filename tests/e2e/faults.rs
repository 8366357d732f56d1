//! Failing on purpose, at the callers of a service.

use http::Request;

use crate::{
    client::{self, Wire},
    http2,
    mesh::{Mesh, Proxy, at_any_pace, until},
    origin::Origin,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

fn faults(rules: &str) -> String {
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: FaultPolicy\nmetadata: {{name: chaos, namespace: default}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: shop}}], rules: [{rules}]}}"
    )
}

fn mesh(shop: &Origin, rules: &str) -> Mesh {
    Mesh::default().service("shop", "http", &[shop.address]).yaml(&faults(rules))
}

async fn injected(proxy: &Proxy, kind: &str, count: f64) {
    let labels = [("policy", "default/chaos"), ("kind", kind)];
    proxy.counts("leno_faults_injected_total", &labels, count).await;
}

#[tokio::test]
async fn an_abort_reaches_nobody_and_is_held_against_nobody() {
    let (shop, copies) = (Origin::echo("shop").await, Origin::echo("copies").await);
    let rules = "{matches: [{headers: [{name: x-fail, exact: 'yes'}]}], abort: {status: 503}}, \
                 {matches: [{path: {type: Exact, value: /gone}}], abort: {status: 410}}, \
                 {matches: [{path: {type: Exact, value: /empty}}], abort: {status: 204}}, \
                 {matches: [{path: {type: Exact, value: /bad}}], abort: {status: 400}}";
    let policy = "retry: {on: [5xx]}\nbreaker: {errorRate: {percent: 50, minimum: 5}}\n\
                  outlierDetection: {consecutive5xx: 3}";
    let route = "- filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copies, port: 80}}}]\n  \
                   backendRefs: [{name: shop, port: 80}]";
    let mesh = mesh(&shop, rules)
        .service("copies", "http", &[copies.address])
        .policy("shop", policy)
        .http_route("shop", route);
    let proxy = mesh.start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..20 {
        let answer = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\nx-fail: yes\r\n\r\n").await;
        assert_eq!((answer.status, &*answer.text()), (503, "a fault is injected here (FI)\n"));
    }
    for (path, status) in [("/gone", 410), ("/empty", 204), ("/bad", 400), ("/", 200)] {
        // The connection lives on after each of them.
        let answer = wire.ask(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{path}");
    }
    until("the copy of the one that was not aborted", async || {
        (copies.requests().len() == 1).then_some(())
    })
    .await;
    assert_eq!(shop.requests().len(), 1);
    injected(&proxy, "abort", 23.0).await;
    let log = proxy.access_log(24).await;
    assert_eq!((&log[0]["response_flags"], &log[0]["attempts"]), (&"FI".into(), &0.into()));
    let detail = log[0]["response_code_details"].as_str().unwrap();
    assert_eq!(detail, "FaultPolicy default/chaos: aborted on purpose");
    assert_eq!(log[0]["upstream_cluster"], "default/shop:80");
    let cluster = until("the breaker to be there", async || {
        let cluster = proxy.cluster("default/shop:80").await;
        (!cluster["circuit"].is_null()).then_some(cluster)
    })
    .await;
    assert_eq!(cluster["circuit"]["state"], "closed", "{cluster}");
    assert!(cluster["endpoints"][0]["health"]["ejected"].is_null(), "{cluster}");
    proxy.counts("istio_requests_total", &[("response_flags", "FI")], 23.0).await;
}

#[tokio::test]
async fn grpc_callers_get_the_status_that_is_asked_for() {
    let shop = Origin::echo_http2("shop").await;
    let rules = "{matches: [{path: {type: PathPrefix, value: /a.B}}], abort: {grpcStatus: 8}}, \
                 {abort: {status: 404}}";
    let proxy =
        Mesh::default().service("shop", "grpc", &[shop.address]).yaml(&faults(rules)).start().await;
    let sender = http2::connect(&proxy).await;
    for (path, grpc, status) in
        [("/a.B/C", true, "8"), ("/x.Y/Z", true, "12"), ("/a.B/C", false, "8")]
    {
        let request = Request::post(format!("http://shop{path}"));
        let kind = if grpc { "application/grpc" } else { "text/plain" };
        let request = request.header("content-type", kind).body(()).unwrap();
        let answer = http2::ask(&sender, request, b"").await;
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["grpc-status"].to_str().unwrap()),
            (200, status)
        );
    }
    assert!(shop.requests().is_empty());
}

#[tokio::test]
async fn a_share_of_requests_fails() {
    let shop = Origin::canned("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = mesh(&shop, "{percent: 50, abort: {status: 500}}").start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let mut failed = 0;
    for _ in 0..400 {
        failed += usize::from(wire.ask(GET).await.status == 500);
    }
    // Six standard deviations to either side.
    assert!((140..=260).contains(&failed), "{failed} of 400");
}

#[tokio::test]
async fn a_delay_comes_first_and_shows_in_the_log() {
    at_any_pace(delays).await;
}

async fn delays(slower: u32) {
    let shop = Origin::echo("shop").await;
    let delay = 300 * slower;
    let rules = format!(
        "{{matches: [{{path: {{type: Exact, value: /both}}}}], delay: {delay}ms, abort: {{status: 500}}}}, \
         {{matches: [{{path: {{type: Exact, value: /slow}}}}], delay: {delay}ms}}"
    );
    // Neither attempts nor requests time out by it.
    let policy = format!("timeouts: {{request: {}ms}}", 250 * slower);
    let proxy = mesh(&shop, &rules).policy("shop", &policy).start().await;
    for (path, status, flag) in [("/slow", 200, "DI"), ("/both", 500, "FI"), ("/", 200, "-")] {
        assert_eq!(client::get(proxy.outbound, "shop", path).await.status, status, "{path}");
        let lines = if path == "/slow" {
            1
        } else if path == "/both" {
            2
        } else {
            3
        };
        let log = proxy.access_log(lines).await;
        let line = &log[lines - 1];
        assert_eq!(line["response_flags"], flag, "{line}");
        assert!(path == "/" || line["duration"].as_f64().unwrap() >= f64::from(delay), "{line}");
    }
    assert_eq!(shop.requests().len(), 2);
    injected(&proxy, "delay", 2.0).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_its_delay() {
    let shop = Origin::echo("shop").await;
    let proxy = mesh(&shop, "{delay: 1h}").start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send(GET).await;
    injected(&proxy, "delay", 1.0).await;
    drop(wire);
    assert_eq!(proxy.last_outcome(1).await, (0, "DC".to_owned()));
    let sender = http2::connect(&proxy).await;
    let request = Request::get("http://shop/").body(()).unwrap();
    let mut ready = sender.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(request, true).unwrap();
    injected(&proxy, "delay", 2.0).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(response);
    assert_eq!(proxy.last_outcome(2).await, (0, "DC".to_owned()));
    assert!(shop.requests().is_empty());
}

#[tokio::test]
async fn faults_come_and_go_with_their_policy() {
    let shop = Origin::echo("shop").await;
    let proxy = mesh(&shop, "{abort: {status: 418}}").start().await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 418);
    injected(&proxy, "abort", 1.0).await;
    let without = Mesh::default().service("shop", "http", &[shop.address]);
    proxy.rewrite(without.text());
    until("the policy to be gone", async || {
        (client::get(proxy.outbound, "shop", "/").await.status == 200).then_some(())
    })
    .await;
    until("its figures to be gone", async || {
        proxy.metric("leno_faults_injected_total", &[]).await.is_none().then_some(())
    })
    .await;
    // An older policy for the port beats a newer one for the whole service.
    let again = without.yaml(&faults("{abort: {status: 500}}")).yaml(
        "apiVersion: leno.dev/v1alpha1\nkind: FaultPolicy\nmetadata: {name: port, namespace: default}\n\
         spec: {targetRefs: [{group: '', kind: Service, name: shop, sectionName: main}], \
                rules: [{abort: {status: 502}}]}",
    );
    proxy.rewrite(again.text());
    until("the policy for the port", async || {
        (client::get(proxy.outbound, "shop", "/").await.status == 502).then_some(())
    })
    .await;
}

/// A copy is a request like any other: in the form that its upstream needs, and within that service's limits.
#[tokio::test]
async fn copies_are_formed_as_requests_and_fail_nobody() {
    let (shop, copies) = (Origin::echo("shop").await, Origin::echo("copies").await);
    let route = "- filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copies, port: 80}}}]\n  \
                   backendRefs: [{name: shop, port: 80}]";
    // Faults are for calls, and nobody called this one.
    let other = faults("{abort: {status: 503}}").replace("name: shop", "name: copies");
    let proxy = Mesh::default()
        .service("shop", "http", &[shop.address])
        .service("copies", "http", &[copies.address])
        .http_route("shop", route)
        .yaml(&other)
        .start()
        .await;
    let sender = http2::connect(&proxy).await;
    let request = Request::get("http://shop/x?y=1").header("cookie", "a=1").header("cookie", "b=2");
    assert_eq!(http2::ask(&sender, request.body(()).unwrap(), b"").await.status(), 200);
    let copy = until("the copy", async || copies.requests().first().cloned()).await;
    assert_eq!(copy["headers"]["cookie"], serde_json::json!(["a=1; b=2"]), "{copy}");
    assert_eq!(copy["headers"]["host"], serde_json::json!(["shop"]), "{copy}");
    assert_eq!(copy["headers"]["cookie"], shop.requests()[0]["headers"]["cookie"]);
    assert_eq!(client::get(proxy.outbound, "copies", "/").await.status, 503);
}

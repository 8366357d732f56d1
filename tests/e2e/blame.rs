//! What is a caller's doing, or our own, is not held against endpoints: else one caller could have them ejected and
//! breakers opened for all others.

use std::sync::Arc;

use tokio::{io::AsyncWriteExt, sync::Notify};

use crate::{
    client::{self, Wire},
    mesh::{Mesh, Proxy, at_any_pace},
    origin::{self, Origin},
};

const CLUSTER: &str = "default/shop:80";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Opens upon fewer failures than the tests make.
const TOUCHY: &str = "breaker: {errorRate: {percent: 50, minimum: 4}}\nretry: {mode: Disabled}";
const TIMES: usize = 6;

/// Answers `/quick` at once, and everything else when told so.
async fn application() -> (Origin, Arc<Notify>) {
    let told = Arc::new(Notify::new());
    let shared = told.clone();
    let origin = Origin::raw(move |mut stream, _| {
        let told = shared.clone();
        async move {
            while let Some((head, _)) = origin::read_request(&mut stream).await {
                if !head.contains(" /quick ") {
                    told.notified().await;
                }
                if stream.write_all(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    (origin.await, told)
}

async fn is_not_blamed(proxy: &Proxy) {
    let answer = client::get(proxy.outbound, "shop", "/quick").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let shown = proxy.cluster(CLUSTER).await;
    assert_eq!(shown["endpoints"][0]["health"]["failures"], 0, "{shown}");
    assert_eq!(proxy.metric("leno_circuit_state", &[]).await.unwrap_or(0.0), 0.0, "{shown}");
}

#[tokio::test]
async fn a_deadline_that_nobody_can_meet_is_its_callers() {
    let (shop, _told) = application().await;
    let mesh = Mesh::default().service("shop", "http", &[shop.address]);
    let proxy = mesh.policy("shop", TOUCHY).start().await;
    for _ in 0..TIMES {
        let call = "POST /slow HTTP/1.1\r\nHost: shop\r\nContent-Type: application/grpc\r\n\
                    TE: trailers\r\ngrpc-timeout: 20m\r\nContent-Length: 0\r\n\r\n";
        let answer = client::ask(proxy.outbound, call).await;
        assert_eq!(answer.header("grpc-status"), Some("4"));
    }
    is_not_blamed(&proxy).await;
}

#[tokio::test]
async fn an_upload_that_comes_slowly_is_its_callers() {
    at_any_pace(slow_upload).await;
}

async fn slow_upload(slower: u32) {
    let (shop, _told) = application().await;
    let policy = format!("{TOUCHY}\ntimeouts: {{attempt: {}ms}}", 100 * slower);
    let mesh = Mesh::default().service("shop", "http", &[shop.address]);
    let proxy = mesh.policy("shop", &policy).start().await;
    for _ in 0..TIMES {
        let half = "PUT /quick HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhalf";
        assert_eq!(client::ask(proxy.outbound, half).await.status, 504);
    }
    is_not_blamed(&proxy).await;
}

#[tokio::test]
async fn an_endpoint_that_is_slow_itself_is_blamed() {
    at_any_pace(slow_endpoint).await;
}

async fn slow_endpoint(slower: u32) {
    let (shop, _told) = application().await;
    let policy = format!("{TOUCHY}\ntimeouts: {{attempt: {}ms}}", 100 * slower);
    let mesh = Mesh::default().service("shop", "http", &[shop.address]);
    let proxy = mesh.policy("shop", &policy).start().await;
    for _ in 0..4 {
        let whole = "PUT /slow HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nwhole";
        assert_eq!(client::ask(proxy.outbound, whole).await.status, 504);
    }
    let shown = proxy.cluster(CLUSTER).await;
    assert_eq!(shown["endpoints"][0]["health"]["failures"], 4, "{shown}");
}

#[tokio::test]
async fn waiting_for_a_connection_of_ours_is_our_own_doing() {
    at_any_pace(waiting_for_a_connection).await;
}

async fn waiting_for_a_connection(slower: u32) {
    let (shop, told) = application().await;
    let policy = format!(
        "breaker: {{maxConnections: 1, errorRate: {{percent: 50, minimum: 4}}}}\n\
         retry: {{mode: Disabled}}\ntimeouts: {{attempt: {}ms}}",
        100 * slower
    );
    let rules = "- matches: [{path: {type: PathPrefix, value: /slow}}]\n  \
                 timeouts: {backendRequest: 0s}\n  backendRefs: [{name: shop, port: 80}]\n\
                 - backendRefs: [{name: shop, port: 80}]";
    let mesh = Mesh::default().service("shop", "http", &[shop.address]);
    let proxy = mesh.http_route("shop", rules).policy("shop", &policy).start().await;
    let mut holder = Wire::connect(proxy.outbound).await;
    holder.send("GET /slow HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    crate::mesh::until("it to have the connection", async || (shop.accepted() == 1).then_some(()))
        .await;
    for _ in 0..TIMES {
        assert_eq!(client::get(proxy.outbound, "shop", "/quick").await.status, 504);
    }
    told.notify_one();
    assert_eq!(holder.answer().await.status, 200);
    is_not_blamed(&proxy).await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_passed_on_is_its_endpoints() {
    for head in
        ["200 OK\r\nTransfer-Encoding: gzip, chunked", "101 Switching Protocols\r\nUpgrade: a"]
    {
        let shop = Origin::canned(format!("HTTP/1.1 {head}\r\n\r\n0\r\n\r\n")).await;
        let mesh = Mesh::default().service("shop", "http", &[shop.address]);
        let proxy = mesh.policy("shop", TOUCHY).start().await;
        for turn in 1..=4 {
            assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 502, "{head}");
            assert_eq!(proxy.last_outcome(turn).await, (502, "UPE".to_owned()), "{head}");
        }
        let shown = proxy.cluster(CLUSTER).await;
        assert_eq!(shown["endpoints"][0]["health"]["failures"], 4, "{shown}");
    }
}

/// The answer has begun; what breaks off then is the request, and the rest of the answer only because of it.
#[tokio::test]
async fn an_upload_that_breaks_off_late_is_its_callers() {
    let shop = Origin::raw(|mut stream, _| async move {
        // Of a body in chunks no more than the head is waited for.
        while let Some((head, _)) = origin::read_request(&mut stream).await {
            let answer = match head.contains(" /quick ") {
                true => OK,
                false => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            if answer != OK {
                origin::drain(&mut stream).await;
                return;
            }
        }
    })
    .await;
    let mesh = Mesh::default().service("shop", "http", &[shop.address]);
    let proxy = mesh.policy("shop", TOUCHY).start().await;
    for turn in 1..=TIMES {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(
            "POST /slow HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
        )
        .await;
        assert_eq!(wire.head().await.unwrap().status, 200);
        wire.send("no chunk\r\n").await;
        assert_eq!(proxy.last_outcome(turn).await, (200, "DPE".to_owned()));
    }
    is_not_blamed(&proxy).await;
}

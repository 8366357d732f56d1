//! How long things may take, and that whoever is too slow is told to stop.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

use crate::{
    client,
    http2::{connect, serve},
    mesh::{Mesh, PATIENCE, Proxy, at_any_pace, until},
    origin::{self, Origin},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

/// Reads a request, never answers, and tells when the connection ends.
async fn silent() -> (Origin, mpsc::UnboundedReceiver<&'static str>) {
    let (told, heard) = mpsc::unbounded_channel();
    let origin = Origin::raw(move |mut stream, _| {
        let told = told.clone();
        async move {
            if origin::read_request(&mut stream).await.is_some() {
                let _ = told.send("asked");
                origin::drain(&mut stream).await;
                let _ = told.send("closed");
            }
        }
    })
    .await;
    (origin, heard)
}

async fn next<T>(heard: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(PATIENCE, heard.recv()).await.expect("to be told").unwrap()
}

/// The same where it may never come, since the time was up before anybody was asked: less patiently.
async fn reached<T>(heard: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(Duration::from_secs(20), heard.recv()).await.expect("to be reached").unwrap()
}

#[tokio::test]
async fn a_timeout_closes_the_connection_of_its_attempt() {
    at_any_pace(async |slower| {
        let limit = 200 * slower;
        for policy in [
            format!("timeouts: {{request: {limit}ms}}"),
            format!("timeouts: {{attempt: {limit}ms}}"),
            format!("timeouts: {{attempt: {limit}ms, request: 1h}}"),
        ] {
            let (origin, mut heard) = silent().await;
            let mesh = Mesh::default().service("shop", "http", &[origin.address]);
            let proxy = mesh.policy("shop", &policy).start().await;
            let answer = client::ask(proxy.outbound, GET).await;
            assert_eq!(answer.status, 504, "{policy}");
            assert_eq!((reached(&mut heard).await, next(&mut heard).await), ("asked", "closed"));
            assert_eq!(proxy.last_outcome(1).await, (504, "UT".to_owned()), "{policy}");
            proxy.quiet("default/shop:80").await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_route_says_it_for_its_own_requests() {
    let (origin, _heard) = silent().await;
    let rule = |timeouts: &str| {
        format!("- backendRefs: [{{name: shop, port: 80}}]\n  timeouts: {timeouts}")
    };
    for (route, policy, status) in [
        ("{backendRequest: 200ms}", "timeouts: {attempt: 1h}", 504),
        ("{request: 200ms}", "timeouts: {attempt: 1h}", 504),
        // `0s` is none, whatever the policy says: then the other one counts.
        ("{backendRequest: 0s}", "timeouts: {attempt: 1ms, request: 400ms}", 504),
    ] {
        let proxy = Mesh::default()
            .service("shop", "http", &[origin.address])
            .http_route("shop", &rule(route))
            .policy("shop", policy)
            .start()
            .await;
        assert_eq!(client::ask(proxy.outbound, GET).await.status, status, "{route} {policy}");
        let line = &proxy.access_log(1).await[0];
        let detail = line["response_code_details"].as_str().unwrap();
        let expected = if route.contains("0s") { "400ms" } else { "200ms" };
        assert!(detail.contains(expected), "{route} {policy}: {detail}");
    }
}

/// A stream of HTTP/2 is cancelled; its connection goes on.
#[tokio::test]
async fn a_timeout_cancels_the_stream_of_its_attempt() {
    at_any_pace(cancels_a_stream).await;
}

async fn cancels_a_stream(slower: u32) {
    let (told, mut heard) = mpsc::unbounded_channel();
    let origin = Origin::raw(move |stream, number| {
        let told = told.clone();
        async move {
            let mut connection = serve(stream).await;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if request.uri().path() == "/still-there" {
                    respond.send_response(Response::new(()), true).unwrap();
                    continue;
                }
                let told = told.clone();
                tokio::spawn(async move {
                    let reset = std::future::poll_fn(|context| respond.poll_reset(context)).await;
                    let _ = told.send((number, reset.unwrap()));
                    drop(request);
                });
            }
        }
    })
    .await;
    let proxy = Mesh::default()
        .service("shop", "http2", &[origin.address])
        .policy("shop", &format!("timeouts: {{attempt: {}ms}}", 200 * slower))
        .start()
        .await;
    for body in [0, 1_000_000] {
        let request = format!(
            "PUT / HTTP/1.1\r\nHost: shop\r\nContent-Length: {body}\r\n\r\n{}",
            "x".repeat(body)
        );
        let answer = client::ask(proxy.outbound, request).await;
        assert_eq!(answer.status, 504, "{body}");
        assert_eq!(reached(&mut heard).await, (1, h2::Reason::CANCEL), "{body}");
    }
    proxy.serves("shop").await;
    assert_eq!(origin.accepted(), 1);
    proxy.quiet("default/shop:80").await;
}

/// It takes the connection and then nothing: neither the upload nor its place is held for it.
#[tokio::test]
async fn an_upstream_that_accepts_and_never_reads_is_given_up() {
    at_any_pace(gives_up_who_never_reads).await;
}

async fn gives_up_who_never_reads(slower: u32) {
    let (told, mut heard) = mpsc::unbounded_channel::<Arc<tokio::sync::Notify>>();
    let origin = Origin::raw(move |mut stream, _| {
        let told = told.clone();
        async move {
            let read = Arc::new(tokio::sync::Notify::new());
            let _ = told.send(read.clone());
            read.notified().await;
            origin::drain(&mut stream).await;
        }
    })
    .await;
    let proxy = Mesh::default()
        .service("shop", "http", &[origin.address])
        .policy(
            "shop",
            &format!("timeouts: {{attempt: {}ms}}\nretry: {{on: [reset, 5xx]}}", 300 * slower),
        )
        .start()
        .await;
    let body = "x".repeat(16 << 20);
    let mut wire = client::Wire::connect(proxy.outbound).await;
    let head = format!("PUT / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", body.len());
    wire.send(head).await;
    let (mut reading, mut writing) = wire.stream.into_split();
    let sending = tokio::spawn(async move { writing.write_all(body.as_bytes()).await });
    let mut answer = vec![0; 64];
    let read = timeout(PATIENCE, reading.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 504 "), "{answer:?}");
    assert_eq!(proxy.last_outcome(1).await, (504, "UT,RO".to_owned()));
    proxy.quiet("default/shop:80").await;
    reached(&mut heard).await.notify_one();
    until("the connection to end", async || (origin.open() == 0).then_some(())).await;
    sending.abort();
}

/// A gRPC server: `Slow` never answers, everything else answers at once. Tells every `grpc-timeout` and every reset.
async fn grpc() -> (Origin, mpsc::UnboundedReceiver<String>) {
    let (told, heard) = mpsc::unbounded_channel();
    let origin = Origin::raw(move |stream, _| {
        let told = told.clone();
        async move {
            let mut connection = serve(stream).await;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let limit = request.headers().get("grpc-timeout");
                let limit = limit.map_or("-", |value| value.to_str().unwrap());
                let _ = told.send(limit.to_owned());
                let head = Response::builder().header("content-type", "application/grpc");
                match request.uri().path().rsplit('/').next().unwrap() {
                    "Slow" => {
                        let told = told.clone();
                        tokio::spawn(async move {
                            let reset =
                                std::future::poll_fn(|context| respond.poll_reset(context)).await;
                            let _ = told.send(format!("{:?}", reset.unwrap()));
                            drop(request);
                        });
                    }
                    "Gone" => {
                        let head = head.header("grpc-status", "14").body(()).unwrap();
                        respond.send_response(head, true).unwrap();
                    }
                    "Begins" => {
                        let told = told.clone();
                        let mut stream =
                            respond.send_response(head.body(()).unwrap(), false).unwrap();
                        stream.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
                        tokio::spawn(async move {
                            let reset =
                                std::future::poll_fn(|context| stream.poll_reset(context)).await;
                            let _ = told.send(format!("{:?}", reset.unwrap()));
                            drop(request);
                        });
                    }
                    _ => {
                        let head = head.header("grpc-status", "0").body(()).unwrap();
                        respond.send_response(head, true).unwrap();
                    }
                }
            }
        }
    })
    .await;
    (origin, heard)
}

async fn call(proxy: &Proxy, method: &str, limit: Option<&str>) -> Response<h2::RecvStream> {
    let mut request = Request::post(format!("http://shop/shop.v1.Orders/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(limit) = limit {
        request = request.header("grpc-timeout", limit);
    }
    let mut sender = connect(proxy).await.ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).unwrap();
    timeout(PATIENCE, response).await.unwrap().unwrap()
}

/// As gRPC writes it.
fn duration(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().unwrap();
    match unit {
        "n" => Duration::from_nanos(number),
        "u" => Duration::from_micros(number),
        "m" => Duration::from_millis(number),
        "S" => Duration::from_secs(number),
        "M" => Duration::from_secs(number * 60),
        _ => Duration::from_secs(number * 3600),
    }
}

async fn grpc_before(policy: &str) -> (Origin, mpsc::UnboundedReceiver<String>, Proxy) {
    let (origin, heard) = grpc().await;
    let mesh = Mesh::default().service("shop", "grpc", &[origin.address]);
    let proxy = if policy.is_empty() { mesh } else { mesh.policy("shop", policy) }.start().await;
    (origin, heard, proxy)
}

#[tokio::test]
async fn the_deadline_of_a_call_is_kept_and_passed_on_shortened() {
    let (_origin, mut heard, proxy) = grpc_before("").await;
    call(&proxy, "Get", Some("1H")).await;
    let told = duration(&next(&mut heard).await);
    let hour = Duration::from_secs(3600);
    assert!(told < hour && told > hour - PATIENCE, "{told:?}");
    // What is none is the server's to judge, and none where there is none.
    for odd in ["soon", "1", "123456789m", "-1S"] {
        call(&proxy, "Get", Some(odd)).await;
        assert_eq!(next(&mut heard).await, odd);
    }
    call(&proxy, "Get", None).await;
    assert_eq!(next(&mut heard).await, "-");
    // No time at all: nobody is asked.
    let response = call(&proxy, "Get", Some("0n")).await;
    assert_eq!(response.headers()["grpc-status"], "4");
    call(&proxy, "Get", None).await;
    assert_eq!(next(&mut heard).await, "-");
}

#[tokio::test]
async fn a_call_ends_with_its_deadline() {
    at_any_pace(async |slower| {
        let (_origin, mut heard, proxy) = grpc_before("").await;
        let limit = 300 * slower;
        let response = call(&proxy, "Slow", Some(&format!("{limit}m"))).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["grpc-status"]),
            (200, &"4".parse().unwrap())
        );
        let told = duration(&reached(&mut heard).await);
        assert!(told <= Duration::from_millis(limit.into()), "{told:?}");
        assert_eq!(next(&mut heard).await, "CANCEL");
        assert_eq!(proxy.last_outcome(1).await.1, "UT");
    })
    .await;
}

#[tokio::test]
async fn the_shorter_limit_counts_and_every_attempt_is_told_what_is_left() {
    let policy = "timeouts: {request: 10m, attempt: 5m}\n\
                  retry: {grpc: [unavailable], attempts: 1, backoff: {base: 1ms, max: 1ms}}";
    let (_origin, mut heard, proxy) = grpc_before(policy).await;
    call(&proxy, "Get", Some("1H")).await;
    assert!(duration(&next(&mut heard).await) <= Duration::from_secs(300));
    let response = call(&proxy, "Gone", Some("1M")).await;
    assert_eq!(response.headers()["grpc-status"], "14");
    let (first, second) = (duration(&next(&mut heard).await), duration(&next(&mut heard).await));
    assert!(second < first && first <= Duration::from_secs(60), "{first:?} {second:?}");
}

/// After the first message it is trailers that say that the time is up.
#[tokio::test]
async fn a_deadline_in_the_middle_of_an_answer_is_told_in_trailers() {
    at_any_pace(deadline_in_the_middle).await;
}

async fn deadline_in_the_middle(slower: u32) {
    let (_origin, mut heard, proxy) = grpc_before("").await;
    let response = call(&proxy, "Begins", Some(&format!("{}m", 300 * slower))).await;
    assert!(!response.headers().contains_key("grpc-status"));
    let mut body = response.into_body();
    while let Some(data) = timeout(PATIENCE, body.data()).await.unwrap() {
        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    let trailers = timeout(PATIENCE, body.trailers()).await.unwrap().unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "4");
    reached(&mut heard).await;
    assert_eq!(next(&mut heard).await, "CANCEL");
    let line = &proxy.access_log(1).await[0];
    assert_eq!((&line["grpc_status"], &line["response_flags"]), (&4.into(), &"UT".into()));
}

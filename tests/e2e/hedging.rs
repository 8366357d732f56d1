//! A second attempt while the first is late.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use http::Response;
use tokio::io::AsyncWriteExt;

use crate::{
    client,
    http2::serve,
    mesh::{Mesh, Proxy, at_any_pace, until},
    origin::{self, Origin},
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PLAIN: &str = "balancer: {roundRobin: {}}\noutlierDetection: {mode: Disabled}";

/// Bodies of requests as they came.
type Bodies = Arc<Mutex<Vec<Vec<u8>>>>;

/// Answers while it may; else it takes requests and says nothing until they are given up.
async fn moody(answers: bool) -> (Origin, Bodies, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (bodies, lively) = (Bodies::default(), Arc::new(AtomicBool::new(answers)));
    let given_up = Arc::new(AtomicUsize::new(0));
    let shared = (bodies.clone(), lively.clone(), given_up.clone());
    let origin = Origin::raw(move |mut stream, _| {
        let (bodies, lively, given_up) = shared.clone();
        async move {
            while let Some((_, body)) = origin::read_request(&mut stream).await {
                bodies.lock().unwrap().push(body);
                if !lively.load(Ordering::Relaxed) {
                    origin::drain(&mut stream).await;
                    given_up.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                if stream.write_all(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, bodies, lively, given_up)
}

async fn before(origins: &[&Origin], policy: &str) -> Proxy {
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let mesh = Mesh::default().service("shop", "http", &addresses);
    mesh.policy("shop", &format!("{PLAIN}\n{policy}")).start().await
}

fn request(method: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_late_answer_is_not_waited_for() {
    at_any_pace(late_answer).await;
}

async fn late_answer(slower: u32) {
    let (silent, asked, _, given_up) = moody(false).await;
    let (good, answered, ..) = moody(true).await;
    let policy = format!("hedging: {{after: {}ms}}\nretryBudget: {{percent: 100}}", 50 * slower);
    let proxy = before(&[&silent, &good], &policy).await;
    for (method, body) in [("GET", ""), ("PUT", "whole"), ("GET", ""), ("PUT", "whole")] {
        let answer = client::ask(proxy.outbound, request(method, body)).await;
        assert_eq!(answer.status, 200, "{method}");
    }
    // In turn, so that some went to the silent one first, and nobody waits for it.
    let late = asked.lock().unwrap().len();
    assert!(late >= 2, "{late}");
    assert_eq!(answered.lock().unwrap().len(), 4);
    until("what was late to be given up", async || {
        (given_up.load(Ordering::Relaxed) == late).then_some(())
    })
    .await;
    proxy.quiet("default/shop:80").await;
    let log = proxy.access_log(4).await;
    let (good, hedged) =
        (good.address.to_string(), |line: &&serde_json::Value| line["attempts"] == 2);
    assert!(log.iter().all(|line| line["upstream_host"] == good), "{log:?}");
    assert_eq!(log.iter().filter(hedged).count(), late);
    proxy.counts("leno_hedges_total", &[("result", "won")], late as f64).await;
    // That it was given up says nothing against it.
    let shown = proxy.cluster("default/shop:80").await;
    assert_eq!(shown["endpoints"][0]["health"]["failures"], 0, "{shown}");
}

#[tokio::test]
async fn only_what_may_be_sent_twice_is() {
    at_any_pace(sent_twice).await;
}

async fn sent_twice(slower: u32) {
    let (silent, asked, ..) = moody(false).await;
    let (other, more, ..) = moody(false).await;
    let policy = format!(
        "hedging: {{after: {}ms}}\nretryBudget: {{percent: 100}}\ntimeouts: {{request: {}ms}}",
        20 * slower,
        400 * slower
    );
    let proxy = before(&[&silent, &other], &policy).await;
    let total = || asked.lock().unwrap().len() + more.lock().unwrap().len();
    assert_eq!(client::ask(proxy.outbound, request("POST", "pay")).await.status, 504);
    assert_eq!(total(), 1);
    assert_eq!(client::ask(proxy.outbound, request("GET", "")).await.status, 504);
    assert_eq!(total(), 3);
    let large = "x".repeat(100_000);
    assert_eq!(client::ask(proxy.outbound, request("PUT", &large)).await.status, 504);
    assert_eq!(total(), 4, "its body is gone");
}

#[tokio::test]
async fn over_budget_and_without_another_endpoint_there_is_none() {
    at_any_pace(no_hedges).await;
}

async fn no_hedges(slower: u32) {
    let (silent, asked, ..) = moody(false).await;
    let (other, more, ..) = moody(false).await;
    let limit = format!(
        "timeouts: {{request: {}ms}}\nhedging: {{after: {}ms, attempts: 3}}",
        300 * slower,
        20 * slower
    );
    for (budget, reason) in [
        ("retryBudget: {percent: 0, minimumPerSecond: 0}", "retry over budget"),
        ("breaker: {maxRetries: 0}", "too many retries"),
    ] {
        let proxy = before(&[&silent, &other], &format!("{limit}\n{budget}")).await;
        assert_eq!(client::ask(proxy.outbound, request("GET", "")).await.status, 504);
        assert_eq!(proxy.access_log(1).await[0]["retry_denied"], reason);
        proxy.counts("leno_hedges_total", &[("result", "denied")], 1.0).await;
    }
    assert_eq!(asked.lock().unwrap().len() + more.lock().unwrap().len(), 2);
    let proxy = before(&[&silent], &limit).await;
    assert_eq!(client::ask(proxy.outbound, request("GET", "")).await.status, 504);
    assert_eq!(proxy.access_log(1).await[0]["attempts"], 1);
}

/// After the time in which most answers begin, as seen so far.
#[tokio::test]
async fn the_usual_time_is_learnt() {
    let (first, asked, lively, given_up) = moody(true).await;
    let (second, ..) = moody(true).await;
    let policy = "hedging: {p95: {}}\nretryBudget: {percent: 100}\ntimeouts: {request: 15s}";
    let proxy = before(&[&first, &second], policy).await;
    for _ in 0..60 {
        assert_eq!(client::ask(proxy.outbound, request("GET", "")).await.status, 200);
    }
    lively.store(false, Ordering::Relaxed);
    let before = asked.lock().unwrap().len();
    for _ in 0..4 {
        assert_eq!(client::ask(proxy.outbound, request("GET", "")).await.status, 200);
    }
    assert!(asked.lock().unwrap().len() > before);
    assert!(proxy.metric("leno_hedges_total", &[("result", "won")]).await >= Some(1.0));
    until("what was late to be given up", async || {
        (given_up.load(Ordering::Relaxed) >= 1).then_some(())
    })
    .await;
}

/// A first answer that is no good does not win, and a stream of HTTP/2 that lost is cancelled.
#[tokio::test]
async fn a_failure_does_not_win_and_losing_streams_are_reset() {
    at_any_pace(losing_streams).await;
}

async fn losing_streams(slower: u32) {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let origin = |name: &'static str| {
        let told = told.clone();
        Origin::raw(move |stream, _| {
            let told = told.clone();
            async move {
                let mut connection = serve(stream).await;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let told = told.clone();
                    tokio::spawn(async move {
                        let answer = |status| Response::builder().status(status).body(()).unwrap();
                        match name {
                            "fails" => drop(respond.send_response(answer(503), true)),
                            "good" => drop(respond.send_response(answer(200), true)),
                            _ => {
                                let reset =
                                    std::future::poll_fn(|context| respond.poll_reset(context))
                                        .await;
                                let _ = told.send(reset.unwrap());
                            }
                        }
                        drop(request);
                    });
                }
            }
        })
    };
    let (silent, fails, good) =
        (origin("silent").await, origin("fails").await, origin("good").await);
    let addresses = [silent.address, fails.address, good.address];
    let policy = format!(
        "{PLAIN}\nretry: {{on: [5xx], attempts: 1}}\nhedging: {{after: {}ms, attempts: 2}}\n\
         retryBudget: {{percent: 100}}",
        50 * slower
    );
    let proxy =
        Mesh::default().service("shop", "http2", &addresses).policy("shop", &policy).start().await;
    for _ in 0..3 {
        assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 200);
    }
    let patience = std::time::Duration::from_secs(20);
    let reset = tokio::time::timeout(patience, heard.recv()).await.unwrap();
    assert_eq!(reset, Some(h2::Reason::CANCEL));
    proxy.quiet("default/shop:80").await;
}

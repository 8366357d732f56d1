//! What is sent again, and what never is.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    client::{self, Wire},
    frames,
    http2::{connect, serve},
    mesh::{Mesh, PATIENCE, Proxy, at_any_pace, until},
    origin::{self, Origin},
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const UNAVAILABLE: &str =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\nX-Whose: origin\r\n\r\nbusy\n";
/// Waits are short, so that tests are.
const SOON: &str = "backoff: {base: 1ms, max: 2ms}";

/// What an origin does with a request.
#[derive(Clone, Copy)]
enum Does {
    Answers(&'static str),
    Closes,
    Resets,
    Hangs,
}

/// Requests as an origin got them, with their bodies.
type Heard = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// An origin that does these with its first requests, whatever connection they come on, and then answers 200.
async fn plays(script: &[Does]) -> (Origin, Heard) {
    let (script, heard) = (script.to_vec(), Heard::default());
    let shared = heard.clone();
    let origin = Origin::raw(move |mut stream, _| {
        let (script, heard) = (script.clone(), shared.clone());
        async move {
            while let Some(request) = origin::read_request(&mut stream).await {
                let at = {
                    let mut heard = heard.lock().unwrap();
                    heard.push(request);
                    heard.len() - 1
                };
                let answer = match script.get(at).copied().unwrap_or(Does::Answers(OK)) {
                    Does::Answers(answer) => answer,
                    Does::Closes => return,
                    Does::Resets => return stream.set_zero_linger().unwrap(),
                    Does::Hangs => {
                        origin::drain(&mut stream).await;
                        return;
                    }
                };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, heard)
}

fn count(heard: &Heard) -> usize {
    heard.lock().unwrap().len()
}

fn header(heard: &Heard, at: usize, name: &str) -> Option<String> {
    let heard = heard.lock().unwrap();
    let prefix = format!("{name}:");
    let line = heard[at].0.lines().find_map(|line| line.strip_prefix(&prefix))?;
    Some(line.trim().to_owned())
}

async fn before(endpoints: &[SocketAddr], policy: &str) -> Proxy {
    let mesh = Mesh::default().service("shop", "http", endpoints);
    if policy.is_empty() { mesh.start().await } else { mesh.policy("shop", policy).start().await }
}

fn request(method: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} / HTTP/1.1\r\nHost: shop\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
}

async fn last(proxy: &Proxy, lines: usize) -> Value {
    proxy.access_log(lines).await[lines - 1].clone()
}

#[tokio::test]
async fn every_condition_is_tried_again_where_it_is_named_and_only_there() {
    at_any_pace(every_condition).await;
}

async fn every_condition(slower: u32) {
    let limit = format!("timeouts: {{attempt: {}ms}}", 300 * slower);
    let status = |answer: &'static str| Does::Answers(answer);
    let conflict = status("HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n");
    let many = status("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n");
    let error = status("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    let busy = status(UNAVAILABLE);
    let garbage = status("this is no HTTP\r\n\r\n");
    for (name, fault, on, otherwise) in [
        ("closed", Does::Closes, "on: [reset]", 503),
        ("reset", Does::Resets, "on: [reset]", 503),
        ("reset is 5xx", Does::Resets, "on: [5xx]", 503),
        ("garbage", garbage, "on: [gateway-error]", 502),
        ("slow", Does::Hangs, "on: [reset]", 504),
        ("slow is a gateway error", Does::Hangs, "on: [gateway-error]", 504),
        ("500", error, "on: [5xx]", 500),
        ("503", busy, "on: [5xx]", 503),
        ("503 is a gateway error", busy, "on: [gateway-error]", 503),
        ("409", conflict, "on: [retriable-4xx]", 409),
        ("429", many, "on: [retriable-status], statuses: [429]", 429),
    ] {
        // One endpoint only: a retry goes to it again.
        for (policy, expected, requests) in [
            (format!("retry: {{{on}, {SOON}}}\n{limit}"), 200, 2),
            (limit.clone(), otherwise, 1),
            (format!("retry: {{mode: Disabled}}\n{limit}"), otherwise, 1),
        ] {
            let (origin, heard) = plays(&[fault]).await;
            let proxy = before(&[origin.address], &policy).await;
            let answer = client::get(proxy.outbound, "shop", "/").await;
            assert_eq!(answer.status, expected, "{name} {policy}: {}", answer.text());
            assert_eq!(count(&heard), requests, "{name} {policy}");
            let line = last(&proxy, 1).await;
            assert_eq!(line["attempts"], requests, "{name}");
            proxy.quiet("default/shop:80").await;
        }
    }
}

#[tokio::test]
async fn what_another_status_says_is_left_alone() {
    let error = Does::Answers("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    let (origin, heard) = plays(&[error]).await;
    let proxy = before(&[origin.address], "retry: {on: [gateway-error, retriable-4xx]}").await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 500);
    assert_eq!(count(&heard), 1);
    let line = last(&proxy, 1).await;
    assert!(line["retry_denied"].is_null() && line["response_flags"] == "-", "{line}");
}

#[tokio::test]
async fn retries_are_numbered_and_a_callers_own_number_is_removed() {
    let busy = Does::Answers(UNAVAILABLE);
    let (origin, heard) = plays(&[busy, busy]).await;
    let policy = format!("retry: {{on: [5xx], attempts: 2, {SOON}}}");
    let proxy = before(&[origin.address], &policy).await;
    let fields = "X-Retry-Attempt: 7\r\nX-Retry-Attempt: 8\r\n";
    let answer = client::get_with(proxy.outbound, "shop", "/", fields).await;
    assert_eq!(answer.status, 200);
    let numbers: Vec<_> = (0..3).map(|at| header(&heard, at, "x-retry-attempt")).collect();
    assert_eq!(numbers, [None, Some("1".to_owned()), Some("2".to_owned())]);
    // Said once, however often it was sent.
    for at in 0..3 {
        let forwarded = header(&heard, at, "x-forwarded-for").unwrap();
        assert_eq!(forwarded.split(',').count(), 1, "{forwarded}");
    }
    assert_eq!(proxy.metric("leno_retries_total", &[("result", "5xx")]).await, Some(2.0));
    let line = last(&proxy, 1).await;
    assert_eq!((&line["attempts"], &line["response_flags"]), (&3.into(), &"-".into()));
}

#[tokio::test]
async fn when_all_attempts_fail_the_last_answer_is_the_callers() {
    let (origin, heard) = plays(&[Does::Answers(UNAVAILABLE); 9]).await;
    let policy = format!("retry: {{on: [5xx], attempts: 3, {SOON}}}");
    let proxy = before(&[origin.address], &policy).await;
    let answer = client::get(proxy.outbound, "shop", "/").await;
    assert_eq!((answer.status, answer.header("x-whose")), (503, Some("origin")));
    assert_eq!(count(&heard), 4);
    let line = last(&proxy, 1).await;
    assert_eq!((&line["attempts"], &line["response_flags"]), (&4.into(), &"URX".into()));
    assert_eq!(line["retry_denied"], "attempts exhausted");
}

#[tokio::test]
async fn what_may_have_been_processed_needs_leave() {
    at_any_pace(needs_leave).await;
}

async fn needs_leave(slower: u32) {
    let limit = format!("timeouts: {{attempt: {}ms}}", 300 * slower);
    let all = "on: [5xx, reset, gateway-error]";
    for (method, fields, extra, sent) in [
        ("GET", "", "", 2),
        ("PUT", "", "", 2),
        ("DELETE", "", "", 2),
        ("POST", "", "", 1),
        ("PATCH", "", "", 1),
        // A key alone is not enough, and neither is a policy that trusts keys without one.
        ("POST", "Idempotency-Key: \"k1\"\r\n", "", 1),
        ("POST", "", ", idempotencyKey: true", 1),
        ("POST", "Idempotency-Key: \"k1\"\r\n", ", idempotencyKey: true", 2),
        ("POST", "Idempotency-Key: a\r\nIdempotency-Key: b\r\n", ", idempotencyKey: true", 1),
    ] {
        for fault in [Does::Answers(UNAVAILABLE), Does::Resets, Does::Closes, Does::Hangs] {
            let (origin, heard) = plays(&[fault]).await;
            let policy = format!("retry: {{{all}, {SOON}{extra}}}\n{limit}");
            let proxy = before(&[origin.address], &policy).await;
            let answer = client::ask(proxy.outbound, request(method, fields, "pay 5")).await;
            let what = format!("{method} {fields} {extra}");
            assert_eq!(count(&heard), sent, "{what}");
            assert_eq!(answer.status == 200, sent == 2, "{what}");
            let bodies: Vec<_> =
                heard.lock().unwrap().iter().map(|(_, body)| body.clone()).collect();
            assert!(bodies.iter().all(|body| body == b"pay 5"), "{what}: {bodies:?}");
            let line = last(&proxy, 1).await;
            let denied = if sent == 2 { Value::Null } else { "may have been processed".into() };
            assert_eq!(line["retry_denied"], denied, "{what}");
        }
    }
}

#[tokio::test]
async fn bodies_are_sent_again_as_long_as_they_fit() {
    for (length, extra, sent) in [
        (0, "", 2),
        (1, "", 2),
        (65_536, "", 2),
        (65_537, "", 1),
        (100, ", replayBuffer: 99", 1),
        (100, ", replayBuffer: 100", 2),
        (1, ", replayBuffer: 0", 1),
        (500_000, ", replayBuffer: 1Mi", 2),
    ] {
        let (origin, heard) = plays(&[Does::Answers(UNAVAILABLE)]).await;
        let policy = format!("retry: {{on: [5xx], {SOON}{extra}}}");
        let proxy = before(&[origin.address], &policy).await;
        let body: String = (0..length).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        let answer = client::ask(proxy.outbound, request("PUT", "", &body)).await;
        assert_eq!(count(&heard), sent, "{length}{extra}");
        assert!(heard.lock().unwrap().iter().all(|(_, got)| got == body.as_bytes()), "{length}");
        let line = last(&proxy, 1).await;
        match sent {
            2 => assert_eq!((answer.status, &line["response_flags"]), (200, &"-".into())),
            _ => {
                assert_eq!((answer.status, answer.header("x-whose")), (503, Some("origin")));
                assert_eq!(line["response_flags"], "RO", "{length}{extra}");
                assert_eq!(line["retry_denied"], "body over replay buffer");
                let reason = [("reason", "body_not_kept")];
                proxy.counts("leno_retries_denied_total", &reason, 1.0).await;
            }
        }
        assert_eq!(line["bytes_received"], length, "counted once");
    }
}

/// What the caller has not sent when an attempt fails goes to the next one, after what was kept.
#[tokio::test]
async fn a_body_still_on_its_way_goes_on_to_the_next_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let shared = attempts.clone();
    let origin = Origin::raw(move |mut stream, _| {
        let (attempts, told) = (shared.clone(), told.clone());
        async move {
            if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
                // Says no as soon as it has seen the beginning.
                let mut seen = vec![0; 64 * 1024];
                let mut got = Vec::new();
                while !got.ends_with(b"first\r\n") {
                    let read = stream.read(&mut seen).await.unwrap();
                    got.extend_from_slice(&seen[..read]);
                }
                let _ = told.send(String::new());
                stream.write_all(UNAVAILABLE.as_bytes()).await.unwrap();
                origin::drain(&mut stream).await;
                return;
            }
            let mut got = Vec::new();
            let mut chunk = vec![0; 64 * 1024];
            while !got.ends_with(b"0\r\n\r\n") {
                let read = stream.read(&mut chunk).await.unwrap();
                got.extend_from_slice(&chunk[..read]);
            }
            let text = String::from_utf8(got).unwrap();
            let _ = told.send(text.split("\r\n\r\n").skip(1).collect::<Vec<_>>().join("\r\n\r\n"));
            stream.write_all(OK.as_bytes()).await.unwrap();
            origin::drain(&mut stream).await;
        }
    })
    .await;
    let proxy = before(&[origin.address], &format!("retry: {{on: [5xx], {SOON}}}")).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("PUT / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await;
    assert_eq!(timeout(PATIENCE, heard.recv()).await.unwrap(), Some(String::new()));
    until("the second attempt", async || (attempts.load(Ordering::Relaxed) == 2).then_some(()))
        .await;
    wire.send("6\r\nsecond\r\n0\r\n\r\n").await;
    assert_eq!(wire.answer().await.status, 200);
    let body = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
    assert!(body.contains("first") && body.contains("second"), "{body:?}");
    assert_eq!(last(&proxy, 1).await["bytes_received"], 11);
}

#[tokio::test]
async fn a_retry_goes_to_another_endpoint() {
    let (bad, refusals) = plays(&[Does::Answers(UNAVAILABLE); 100]).await;
    let (good, heard) = plays(&[]).await;
    let policy = format!(
        "retry: {{on: [5xx], attempts: 1, {SOON}}}\nbalancer: {{roundRobin: {{}}}}\n\
         outlierDetection: {{mode: Disabled}}\nretryBudget: {{percent: 100}}"
    );
    let proxy = before(&[bad.address, good.address], &policy).await;
    for _ in 0..10 {
        assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 200);
    }
    // A retry takes a turn, too.
    assert!(count(&refusals) >= 5 && count(&heard) == 10, "{}", count(&refusals));
    let log = proxy.access_log(10).await;
    let good = good.address.to_string();
    assert!(log.iter().all(|line| line["upstream_host"] == good), "{log:?}");
}

#[tokio::test]
async fn retry_after_is_kept_or_the_answer_is_the_callers() {
    let at = |seconds: &'static str| {
        let answer = match seconds {
            "0" => "HTTP/1.1 503 No\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
            "1" => "HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 503 No\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n",
        };
        Does::Answers(answer)
    };
    for (seconds, sent) in [("0", 2), ("1", 2), ("2", 1)] {
        let (origin, heard) = plays(&[at(seconds)]).await;
        let proxy = before(&[origin.address], &format!("retry: {{on: [5xx], {SOON}}}")).await;
        let answer = client::get(proxy.outbound, "shop", "/").await;
        assert_eq!((answer.status == 200, count(&heard)), (sent == 2, sent), "{seconds}");
        let line = last(&proxy, 1).await;
        if sent == 1 {
            assert_eq!(line["retry_denied"], "asked to wait");
        } else if seconds == "1" {
            assert!(line["duration"].as_f64().unwrap() >= 1000.0, "{line}");
        }
    }
}

/// Whoever has gone is not served: the wait before a retry ends with the caller.
#[tokio::test]
async fn a_caller_that_goes_away_while_we_wait_cancels_the_retry() {
    let answer = "HTTP/1.1 503 No\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n";
    let (origin, heard) = plays(&[Does::Answers(answer)]).await;
    let proxy = before(&[origin.address], "retry: {on: [5xx], maxRetryAfter: 1h}").await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    until("the first attempt", async || (count(&heard) == 1).then_some(())).await;
    drop(wire);
    assert_eq!(proxy.last_outcome(1).await.1, "DC");
    proxy.quiet("default/shop:80").await;
    assert_eq!(count(&heard), 1);
}

#[tokio::test]
async fn a_short_answer_leaves_its_connection_usable_and_a_long_one_does_not() {
    let long: &'static str = Box::leak(
        format!("HTTP/1.1 503 No\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000))
            .into_boxed_str(),
    );
    let chunked = "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
    let endless = "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n";
    for (name, answer, connections) in [
        ("short", UNAVAILABLE, 1),
        ("chunked", chunked, 1),
        ("long", long, 2),
        ("endless", endless, 2),
    ] {
        let (origin, heard) = plays(&[Does::Answers(answer)]).await;
        // Long enough for what is left of the answer to be read.
        let proxy = before(
            &[origin.address],
            "retry: {on: [5xx], backoff: {base: 1s, max: 1s}}\ntimeouts: {request: 1m}",
        )
        .await;
        let route = client::get(proxy.outbound, "shop", "/").await;
        assert_eq!((route.status, count(&heard)), (200, 2), "{name}");
        if connections == 2 {
            assert_eq!(origin.accepted(), 2, "{name}");
        }
        until("one connection to be left", async || (origin.open() <= 1).then_some(())).await;
    }
}

/// The share of those that are sent again, beside requests that all fail.
async fn amplification(policy: &str, requests: usize) -> (usize, Proxy) {
    let mut origins = Vec::new();
    let counts: Vec<Heard> = {
        let mut counts = Vec::new();
        for _ in 0..3 {
            let (origin, heard) = plays(&[Does::Answers(UNAVAILABLE); 10_000]).await;
            origins.push(origin);
            counts.push(heard);
        }
        counts
    };
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let all = format!(
        "retry: {{on: [5xx], attempts: 10, {SOON}}}\noutlierDetection: {{mode: Disabled}}\n{policy}"
    );
    let proxy = before(&addresses, &all).await;
    let callers = (0..10).map(|_| {
        let outbound = proxy.outbound;
        tokio::spawn(async move {
            let mut wire = Wire::connect(outbound).await;
            for _ in 0..requests / 10 {
                let answer = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
                assert_eq!((answer.status, answer.header("x-whose")), (503, Some("origin")));
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    (counts.iter().map(count).sum(), proxy)
}

#[tokio::test]
async fn retries_amplify_by_a_fifth_at_most() {
    let (sent, proxy) = amplification("retryBudget: {minimumPerSecond: 0}", 2000).await;
    assert!(sent > 2000 && sent <= 2400, "{sent}");
    // What ten callers pay in may all go to one, who then has had its ten.
    let line = last(&proxy, 2000).await;
    let why = line["retry_denied"].as_str().unwrap();
    assert!(["retry over budget", "attempts exhausted"].contains(&why), "{why}");
    proxy.counts("leno_retries_denied_total", &[], 2000.0).await;
    let denied = [("reason", "over_budget")];
    let over_budget = proxy.metric("leno_retries_denied_total", &denied).await.unwrap();
    assert!(over_budget > 1900.0, "{over_budget}");
}

#[tokio::test]
async fn budgets_of_nothing_and_of_everything() {
    let (sent, _proxy) = amplification("retryBudget: {percent: 0, minimumPerSecond: 0}", 100).await;
    assert_eq!(sent, 100);
    let (sent, _proxy) =
        amplification("retryBudget: {percent: 100, minimumPerSecond: 0}", 200).await;
    assert!(sent > 200 && sent <= 400, "{sent}");
    let (sent, proxy) = amplification("breaker: {maxRetries: 0}", 100).await;
    assert_eq!(sent, 100);
    assert_eq!(last(&proxy, 100).await["retry_denied"], "too many retries");
}

#[tokio::test]
async fn a_route_adds_to_the_policy() {
    let teapot = Does::Answers("HTTP/1.1 418 I am\r\nContent-Length: 0\r\n\r\n");
    let rule = "- backendRefs: [{name: shop, port: 80}]\n  \
                retry: {codes: [418], attempts: 3, backoff: 1ms}";
    let (origin, heard) = plays(&[teapot; 3]).await;
    let mesh = || Mesh::default().service("shop", "http", &[origin.address]);
    let proxy = mesh().http_route("shop", rule).start().await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 200);
    assert_eq!(count(&heard), 4);
    // Not against the service's will.
    heard.lock().unwrap().clear();
    let proxy =
        mesh().http_route("shop", rule).policy("shop", "retry: {mode: Disabled}").start().await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 418);
    assert_eq!(count(&heard), 1);
}

#[tokio::test]
async fn without_an_endpoint_there_is_nothing_to_try() {
    let proxy = before(&[], "retry: {on: [5xx]}").await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 503);
    assert_eq!(proxy.last_outcome(1).await, (503, "UH".to_owned()));
    assert_eq!(last(&proxy, 1).await["attempts"], 0);
}

/// Once the caller has the head there is no way back.
#[tokio::test]
async fn a_body_cut_off_is_not_asked_for_again() {
    let (origin, heard) = plays(&[Does::Answers(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense",
    )])
    .await;
    let proxy = before(&[origin.address], &format!("retry: {{on: [5xx, reset], {SOON}}}")).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    let cut = wire.try_answer().await.unwrap_err();
    assert_eq!((cut.answer.status, &cut.answer.body[..]), (200, &b"half"[..]));
    assert_eq!(proxy.last_outcome(1).await, (200, "UC".to_owned()));
    assert_eq!(count(&heard), 1);
}

/// A large upload passes through a policy that would have it sent again, and nobody holds it.
#[tokio::test]
async fn an_upload_far_over_the_buffer_stays_flat_in_memory() {
    const TOTAL: usize = 200 << 20;
    let origin = Origin::raw(|mut stream, _| async move {
        let mut total = 0;
        let mut chunk = vec![0; 256 * 1024];
        while total < TOTAL {
            match stream.read(&mut chunk).await {
                Ok(read @ 1..) => total += read,
                _ => return,
            }
        }
        stream.write_all(UNAVAILABLE.as_bytes()).await.unwrap();
        origin::drain(&mut stream).await;
    })
    .await;
    let proxy = before(&[origin.address], &format!("retry: {{on: [5xx], {SOON}}}")).await;
    let small = client::ask(proxy.outbound, "GET /x HTTP/1.1\r\nHost: nobody\r\n\r\n").await;
    assert_eq!(small.status, 404);
    let before = proxy.resident();
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send(format!("PUT / HTTP/1.1\r\nHost: shop\r\nContent-Length: {TOTAL}\r\n\r\n")).await;
    let piece = vec![b'x'; 1 << 20];
    let mut most = 0;
    for _ in 0..TOTAL / piece.len() {
        wire.send(&piece).await;
        most = most.max(proxy.resident());
    }
    assert_eq!(wire.answer().await.status, 503);
    assert!(most < before + (24 << 20), "{} KiB more", (most - before) / 1024);
    let line = last(&proxy, 2).await;
    assert_eq!((&line["attempts"], &line["response_flags"]), (&1.into(), &"RO".into()));
    assert_eq!(line["bytes_received"], TOTAL);
}

/// What an HTTP/2 upstream did not process is sent again, body and all, whatever the method.
#[tokio::test]
async fn refused_streams_and_goodbyes_take_their_bodies_along() {
    for name in ["refused", "goodbye"] {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let shared = bodies.clone();
        let origin = Origin::raw(move |stream, number| {
            let bodies = shared.clone();
            async move {
                if number == 1 {
                    return turn_away(stream, name).await;
                }
                let mut connection = serve(stream).await;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let bodies = bodies.clone();
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut whole = Vec::new();
                        while let Some(Ok(data)) = body.data().await {
                            body.flow_control().release_capacity(data.len()).unwrap();
                            whole.extend_from_slice(&data);
                        }
                        bodies.lock().unwrap().push(whole);
                        respond.send_response(Response::new(()), true).unwrap();
                    });
                }
            }
        })
        .await;
        let proxy = Mesh::default().service("shop", "http2", &[origin.address]).start().await;
        let body = "pay".repeat(5000);
        let answer = client::ask(proxy.outbound, request("POST", "", &body)).await;
        assert_eq!(answer.status, 200, "{name}");
        assert_eq!(*bodies.lock().unwrap(), [body.into_bytes()], "{name}");
        assert!(last(&proxy, 1).await["attempts"].as_u64().unwrap() >= 2, "{name}");
    }
}

/// Reads some of the first call and says that it was not processed.
async fn turn_away(mut stream: TcpStream, how: &str) {
    let mut all = vec![0; frames::PREFACE.len()];
    stream.read_exact(&mut all).await.unwrap();
    stream.write_all(&frames::settings(&[]).bytes()).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        if head[3] == frames::DATA {
            break;
        }
    }
    let goaway =
        |last: u32| frames::Frame::new(frames::GOAWAY, 0, 0, [last.to_be_bytes(), [0; 4]].concat());
    let said = match how {
        "refused" => {
            [frames::rst_stream(1, frames::REFUSED_STREAM).bytes(), goaway(1).bytes()].concat()
        }
        _ => goaway(0).bytes(),
    };
    stream.write_all(&said).await.unwrap();
    origin::drain(&mut stream).await;
}

/// A gRPC server whose first calls end with these heads, and the others well. Counts calls.
async fn grpc(
    answers: &'static [&'static [(&'static str, &'static str)]],
) -> (Origin, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let origin = Origin::raw(move |stream, _| {
        let count = counted.clone();
        async move {
            let mut connection = serve(stream).await;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let at = count.fetch_add(1, Ordering::Relaxed);
                let mut head = Response::builder().header("content-type", "application/grpc");
                for (name, value) in answers.get(at).copied().unwrap_or(&[("grpc-status", "0")]) {
                    head = head.header(*name, *value);
                }
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        body.flow_control().release_capacity(data.len()).unwrap();
                    }
                    let _ = respond.send_response(head.body(()).unwrap(), true);
                });
            }
        }
    })
    .await;
    (origin, count)
}

#[tokio::test]
async fn grpc_calls_are_made_again_after_the_codes_that_are_named() {
    const GONE: &[(&str, &str)] = &[("grpc-status", "14")];
    const SPENT: &[(&str, &str)] = &[("grpc-status", "8")];
    const STOP: &[(&str, &str)] = &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")];
    const LATER: &[(&str, &str)] = &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "20")];
    for (answers, policy, status, calls) in [
        (&[GONE][..], "retry: {grpc: [unavailable]}", "0", 2),
        (&[LATER], "retry: {grpc: [unavailable]}", "0", 2),
        (&[SPENT], "retry: {grpc: [unavailable]}", "8", 1),
        (&[SPENT], "retry: {grpc: [unavailable, resource-exhausted]}", "0", 2),
        (&[STOP], "retry: {grpc: [unavailable]}", "14", 1),
        (&[GONE], "retry: {on: [5xx]}", "14", 1),
        (&[GONE, GONE, GONE], "retry: {grpc: [unavailable], attempts: 2}", "14", 3),
    ] {
        let (origin, count) = grpc(answers).await;
        let proxy = Mesh::default()
            .service("shop", "grpc", &[origin.address])
            .policy("shop", policy)
            .start()
            .await;
        let sender = connect(&proxy).await;
        let request = Request::post("http://shop/shop.v1.Orders/Get")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), true).unwrap();
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.headers()["grpc-status"], status, "{answers:?} {policy}");
        assert_eq!(count.load(Ordering::Relaxed), calls, "{answers:?} {policy}");
    }
}

//! HTTP/1.1 and 1.0, and what becomes of them over HTTP/2 upstream (RFC 9110, 9112).

use tokio::io::AsyncWriteExt;

use crate::{
    client::{self, Wire},
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

async fn before(origin: &Origin) -> Proxy {
    Mesh::default().service("shop", "http", &[origin.address]).start().await
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for turn in 0..5 {
        let answer = wire.ask(format!("GET /{turn} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
        assert_eq!(answer.echo()["path"], format!("/{turn}"));
    }
    assert_eq!(echo.accepted(), 1);
    let last = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert!(wire.is_closed().await);
    assert_eq!(echo.accepted(), 1, "the caller's close is not the upstream connection's");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let post = |turn: usize| {
        format!("POST /{turn} HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\nabc")
    };
    wire.send((0..20).map(post).collect::<String>()).await;
    for turn in 0..20 {
        assert_eq!(wire.answer().await.echo()["path"], format!("/{turn}"));
    }
}

/// An answer is not held back because a part of the next request has come already.
#[tokio::test]
async fn half_a_request_does_not_delay_the_answer_before_it() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("GET /1 HTTP/1.1\r\nHost: shop\r\n\r\nGET /2 HT").await;
    assert_eq!(wire.answer().await.echo()["path"], "/1");
    let second = wire.ask("TP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_eq!(second.echo()["path"], "/2");
}

#[tokio::test]
async fn http_1_0_callers_get_a_message_they_understand() {
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec();
    let (echo, chunks) = (Origin::echo("a").await, Origin::canned(chunked).await);
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .service("chunks", "http", &[chunks.address])
        .start()
        .await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let answer = wire.ask("GET / HTTP/1.0\r\nHost: shop\r\n\r\n").await;
    assert_eq!(answer.echo()["version"], "HTTP/1.1");
    assert!(wire.is_closed().await, "1.0 without keep-alive");

    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..2 {
        let kept = "GET / HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\n\r\n";
        let answer = wire.ask(kept).await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
    }

    let mut wire = Wire::connect(proxy.outbound).await;
    let answer = wire.ask("GET / HTTP/1.0\r\nHost: chunks\r\n\r\n").await;
    assert_eq!(answer.header("transfer-encoding"), None, "1.0 knows no chunks");
    assert_eq!(answer.text(), "hello");
}

#[tokio::test]
async fn absolute_form_wins_over_host() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let request = "GET http://shop/path?x=1 HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n";
    let seen = client::ask(proxy.outbound, request).await.echo();
    assert_eq!(seen["path"], "/path?x=1");
    assert_eq!(seen["headers"]["host"], serde_json::json!(["shop"]));
    let empty = client::ask(proxy.outbound, "GET http://shop HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_eq!(empty.echo()["path"], "/");
    let star = client::ask(proxy.outbound, "OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_eq!((star.status, &star.echo()["path"]), (200, &"*".into()));
}

#[tokio::test]
async fn what_concerns_one_hop_goes_no_further() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let fields = "Connection: x-hop, keep-alive, content-type\r\nx-hop: 1\r\nKeep-Alive: 5\r\n\
                  Proxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nContent-Type: text/x\r\n";
    let request = format!("GET / HTTP/1.1\r\nHost: shop\r\n{fields}\r\n");
    let seen = client::ask(proxy.outbound, request).await.echo();
    for name in ["x-hop", "keep-alive", "proxy-connection", "connection"] {
        assert!(seen["headers"].get(name).is_none(), "{name} was passed on: {seen}");
    }
    assert_eq!(seen["headers"]["te"], serde_json::json!(["trailers"]));
    assert_eq!(seen["headers"]["content-type"], serde_json::json!(["text/x"]));

    let hop = "HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
               X-Kept: 1\r\nContent-Length: 0\r\n\r\n";
    let canned = Origin::canned(hop).await;
    let proxy = before(&canned).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let answer = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_eq!(answer.header("x-kept"), Some("1"));
    for name in ["x-hop", "keep-alive", "connection"] {
        assert_eq!(answer.header(name), None);
    }
}

#[tokio::test]
async fn requests_are_given_an_identity_and_a_trace() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let first = client::get(proxy.outbound, "shop", "/").await.echo();
    let headers = &first["headers"];
    assert_eq!(headers["x-request-id"][0].as_str().unwrap().len(), 36);
    assert_eq!(headers["traceparent"][0].as_str().unwrap().len(), 55);
    assert!(headers.get("x-leno-destination").is_none(), "for sidecars only");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fields = format!("x-request-id: mine\r\ntraceparent: {trace}\r\ntracestate: a=b\r\n");
    let kept = client::get_with(proxy.outbound, "shop", "/", &fields).await.echo();
    assert_eq!(kept["headers"]["x-request-id"][0], "mine");
    assert_eq!(kept["headers"]["traceparent"][0], trace);
    assert_eq!(kept["headers"]["tracestate"][0], "a=b");
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let chunked = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n4;extension=1\r\ndefg\r\n0\r\nx-sum: 7\r\n\r\n";
    let (echo, chunks) = (Origin::echo("a").await, Origin::canned(chunked).await);
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .service("chunks", "http", &[chunks.address])
        .start()
        .await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..2 {
        let request = "GET / HTTP/1.1\r\nHost: chunks\r\nTE: trailers\r\n\r\n";
        let answer = wire.ask(request).await;
        assert_eq!(answer.text(), "abcdefg");
        assert_eq!(answer.trailers, [("x-sum".to_owned(), "7".to_owned())]);
    }
    let request = "POST / HTTP/1.1\r\nHost: shop\r\nTrailer: x-end\r\nTransfer-Encoding: chunked\r\n\r\n\
                   2\r\nab\r\n1;x=\"y\"\r\nc\r\n0\r\nx-end: done\r\n\r\n";
    let seen = wire.ask(request).await.echo();
    assert_eq!((&seen["body"], &seen["trailers"]["x-end"]), (&"abc".into(), &"done".into()));
}

#[tokio::test]
async fn responses_without_body_may_state_a_length() {
    let bodiless = Origin::raw(|mut stream, _| async move {
        while let Some((head, _)) = origin::read_request(&mut stream).await {
            let status = match head.split(' ').nth(1).unwrap() {
                "/304" => "304 Not Modified",
                "/204" => "204 No Content",
                _ => "200 OK",
            };
            let length = if status.starts_with("204") { "" } else { "Content-Length: 1234\r\n" };
            let answer = format!("HTTP/1.1 {status}\r\n{length}ETag: \"x\"\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = before(&bodiless).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..2 {
        wire.send("HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        let head = wire.head().await.unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some("1234")));
        let answer = wire.ask("GET /304 HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        // A length may be left out (RFC 9110 section 8.6), but never be a wrong one.
        assert!(
            answer.status == 304
                && answer.header("content-length").is_none_or(|length| length == "1234")
        );
        let answer = wire.ask("GET /204 HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert_eq!((answer.status, answer.header("transfer-encoding")), (204, None));
    }
    assert_eq!(bodiless.accepted(), 1, "such responses leave the connection usable");
}

#[tokio::test]
async fn continue_is_said_before_a_body_that_waits_for_it() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let head = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    wire.send(head).await;
    assert_eq!(wire.head().await.unwrap().status, 100);
    let seen = wire.ask("body").await.echo();
    assert_eq!(seen["body"], "body");
    wire.send(format!("{head}body")).await;
    assert_eq!(wire.answer().await.echo()["body"], "body");
}

/// A request that is refused never asks for its body.
#[tokio::test]
async fn a_final_answer_can_come_instead_of_continue() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let head =
        "POST / HTTP/1.1\r\nHost: nowhere\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    wire.send(head).await;
    assert_eq!(wire.head().await.unwrap().status, 404);
}

#[tokio::test]
async fn interim_responses_do_not_become_the_answer() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
                   HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok";
    let origin = Origin::canned(interim).await;
    let proxy = before(&origin).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..2 {
        let answer = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert_eq!((answer.status, answer.text().as_str()), (201, "ok"));
    }
}

#[tokio::test]
async fn the_date_is_the_origins() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let response = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n");
    let origin = Origin::canned(response).await;
    let answer = client::get(before(&origin).await.outbound, "shop", "/").await;
    assert_eq!(answer.header("date"), Some(date));
    // An origin with a clock sends one; where it is missing the first recipient adds it (RFC 9110 section 6.6.1).
    let origin = Origin::canned("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let answer = client::get(before(&origin).await.outbound, "shop", "/").await;
    assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")));
}

/// Repeated fields stay apart and in order, above all `Set-Cookie`; odd but legal values arrive as they are.
#[tokio::test]
async fn fields_pass_unchanged() {
    let response =
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\nX-Bytes: \xfc\xff\r\nSet-Cookie: b=2\r\n\
                     X-Empty:\r\nContent-Length: 0\r\n\r\n"
            .to_vec();
    let origin = Origin::canned(response).await;
    let proxy = before(&origin).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
    let bytes = wire.rest().await;
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let first = text.find("set-cookie: a=1; path=/").unwrap();
    assert!(first < text.find("set-cookie: b=2").unwrap());
    assert!(bytes.windows(2).any(|pair| pair == b"\xfc\xff"));
    assert!(text.contains("x-empty:"));
}

/// FAULTS 25: a pooled connection that its peer closed in the meantime costs an idempotent request nothing.
#[tokio::test]
async fn a_connection_closed_while_idle_is_replaced() {
    let hasty = Origin::raw(|mut stream, _| async move {
        if origin::read_request(&mut stream).await.is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let proxy = before(&hasty).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for turn in 1..=20 {
        assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
        crate::mesh::until("the close", async || (hasty.open() == 0).then_some(())).await;
        assert_eq!(hasty.accepted(), turn);
    }
}

/// hyper's buffers alone are over 16 KiB for each; 3.5 KiB are left of a connection once it is idle.
#[tokio::test]
async fn idle_connections_take_little() {
    const CONNECTIONS: u64 = 1_000;
    const EACH: u64 = 6 << 10;
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let ask = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    Wire::connect(proxy.outbound).await.ask(ask).await;
    let before = proxy.held();
    let mut wires = Vec::new();
    for _ in 0..CONNECTIONS {
        wires.push(Wire::connect(proxy.outbound).await);
        assert_eq!(wires.last_mut().unwrap().ask(ask).await.status, 200);
    }
    until("the memory of idle connections is given back", async || {
        (proxy.held().saturating_sub(before) < CONNECTIONS * EACH).then_some(())
    })
    .await;
    for wire in &mut wires {
        assert_eq!(wire.ask(ask).await.status, 200, "it is as good as new");
    }
}

//! Requests that are ambiguous, oversized, slow or not HTTP at all (FAULTS 15, 17, 20): each is answered or closed, and
//! the proxy goes on serving.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::{
    client::Wire,
    mesh::{Mesh, Proxy, until},
    origin::Origin,
};

async fn before(echo: &Origin) -> Proxy {
    Mesh::default()
        .service("shop", "http", &[echo.address])
        .arguments(&["--head-timeout", "1"])
        .start()
        .await
}

/// The answer to a bad request: its status, or `None` when the connection was closed without one. The connection must
/// be closed after it, and nothing else may have been answered.
async fn refusal(proxy: &Proxy, request: &[u8]) -> Option<u16> {
    let mut wire = Wire::connect(proxy.outbound).await;
    let _ = wire.try_send(request).await;
    let status = wire.try_answer().await.ok().map(|answer| answer.status);
    assert!(wire.is_closed().await, "open after {}", request.escape_ascii());
    status
}

#[tokio::test]
async fn ambiguous_framing_is_refused_and_the_connection_closed() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        "Content-Length: 3, 5\r\n\r\nabcde",
        "Content-Length: +3\r\n\r\nabc",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 0x3\r\n\r\nabc",
        "Content-Length: 3 3\r\n\r\nabc",
        "Content-Length: 99999999999999999999999\r\n\r\n",
        "Content-Length: \r\n\r\n",
        "Transfer-Encoding: gzip\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Content-Length : 3\r\n\r\nabc",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: shop\r\n{framing}{smuggled}");
        let status = refusal(&proxy, request.as_bytes()).await;
        assert!(matches!(status, Some(400 | 501) | None), "{framing:?}: {status:?}");
    }
    let old = format!(
        "POST / HTTP/1.0\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
    );
    assert!(matches!(refusal(&proxy, old.as_bytes()).await, Some(400) | None), "chunked in 1.0");
    assert!(echo.requests().is_empty(), "{:?}", echo.requests());
    proxy.serves("shop").await;
}

#[tokio::test]
async fn malformed_chunks_never_become_a_whole_request() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    for chunks in [
        "x\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "fffffffffffffffff\r\nabc",
        "3;\nabc\r\n0\r\n\r\n",
        "\r\n\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let status = refusal(&proxy, request.as_bytes()).await;
        assert!(matches!(status, Some(400 | 408) | None), "{chunks:?}: {status:?}");
    }
    // A chunk extension and trailers without end are no way round the limits.
    let head = "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n";
    for filler in
        [format!("1;{}", "x".repeat(1 << 20)), format!("0\r\n{}", "x: y\r\n".repeat(100_000))]
    {
        let status = refusal(&proxy, format!("{head}{filler}").as_bytes()).await;
        assert!(matches!(status, Some(400 | 413 | 431) | None), "{status:?}");
    }
    assert!(echo.requests().is_empty(), "{:?}", echo.requests());
    proxy.quiet("default/shop:80").await;
    proxy.serves("shop").await;
}

#[tokio::test]
async fn malformed_heads_are_refused() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let cases: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nHost: shop\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nHost: other\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: sh op\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop, other\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@shop\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop:80x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop:999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: shop\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nx-a: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nx-a: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nx-a: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nx a: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\nx\x80: b\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /a\\b HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /../up HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /%2e%2e/up HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET shop HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: shop\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: shop\r\n\r\n",
        b"GET / HTTP/11\r\nHost: shop\r\n\r\n",
        b"GET / http/1.1\r\nHost: shop\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET\r\n\r\n",
        b"G@T{} / HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"CONNECT shop HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.0\r\n",
        b"\0\0\0\0\0\0\0\0",
    ];
    for request in cases {
        let status = refusal(&proxy, request).await;
        assert!(
            matches!(status, Some(400 | 404 | 405 | 501 | 505) | None),
            "{}: {status:?}",
            request.escape_ascii()
        );
    }
    assert!(echo.requests().is_empty(), "{:?}", echo.requests());
    proxy.serves("shop").await;
}

/// What is unusual but right must pass.
#[tokio::test]
async fn unusual_heads_are_understood() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    for request in [
        "\r\nGET / HTTP/1.1\r\nHost: shop\r\n\r\n",
        "GET / HTTP/1.1\r\nhOsT:shop\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \t shop \t\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: SHOP.:80\r\n\r\n",
        "PURGE-ALL /x?y=/../z HTTP/1.1\r\nHost: shop\r\n\r\n",
        "GET /a/./b/../c HTTP/1.1\r\nHost: shop\r\n\r\n",
        "GET /caf%C3%A9?q=%00 HTTP/1.1\r\nHost: shop\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 000\r\n\r\n",
    ] {
        let answer = Wire::connect(proxy.outbound).await.ask(request).await;
        assert_eq!(answer.status, 200, "{request:?}");
    }
}

/// What a policy or route has matched is what the application gets: no fragment, no dots.
#[tokio::test]
async fn paths_mean_the_same_to_everybody() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    for (path, seen) in [
        ("/a#/../b", "/a"),
        ("/a/./b/../c", "/a/c"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a//b", "/a//b"),
        ("/a;x=1/b", "/a;x=1/b"),
        ("/a%2fb", "/a%2fb"),
        ("/a?x=../..", "/a?x=../.."),
    ] {
        let answer = crate::client::get(proxy.outbound, "shop", path).await;
        assert_eq!(answer.echo()["path"], seen, "{path}");
    }
}

#[tokio::test]
async fn oversized_heads_are_refused_without_being_read_whole() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let resident = proxy.resident();
    let megabyte = "x".repeat(1 << 20);
    let many = (0..10_000).map(|at| format!("x-{at}: y\r\n")).collect::<String>();
    for (request, name) in [
        (format!("GET / HTTP/1.1\r\nHost: shop\r\nx-large: {megabyte}\r\n\r\n"), "field"),
        (format!("GET / HTTP/1.1\r\nHost: shop\r\n{many}\r\n"), "fields"),
        (format!("GET /{megabyte} HTTP/1.1\r\nHost: shop\r\n\r\n"), "target"),
        (format!("{megabyte} / HTTP/1.1\r\nHost: shop\r\n\r\n"), "method"),
    ] {
        let status = refusal(&proxy, request.as_bytes()).await;
        // A reset can overtake the answer when the rest of the request was never read.
        assert!(matches!(status, Some(400 | 414 | 431) | None), "{name}: {status:?}");
    }
    let within = format!("GET / HTTP/1.1\r\nHost: shop\r\nx-large: {}\r\n\r\n", "x".repeat(60_000));
    assert_eq!(Wire::connect(proxy.outbound).await.ask(within).await.status, 200);
    let just_over =
        format!("GET / HTTP/1.1\r\nHost: shop\r\nx-large: {}\r\n\r\n", "x".repeat(65_536));
    assert_eq!(refusal(&proxy, just_over.as_bytes()).await, Some(431));
    let fields = (0..200).map(|at| format!("x-{at}: y\r\n")).collect::<String>();
    let too_many = format!("GET / HTTP/1.1\r\nHost: shop\r\n{fields}\r\n");
    assert_eq!(refusal(&proxy, too_many.as_bytes()).await, Some(431));
    assert_eq!(echo.requests().len(), 1);
    let grown = proxy.resident().saturating_sub(resident);
    assert!(grown < 32 << 20, "{grown} bytes grown");
}

#[tokio::test]
async fn a_head_that_drips_is_given_up() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    for opening in ["GET /pa", "GET / HTTP/1.1\r\nHost: sh", ""] {
        let wire = Wire::connect(proxy.outbound).await;
        let (mut read, mut write) = wire.stream.into_split();
        // A byte now and then must not keep it alive for ever.
        let drip = tokio::spawn(async move {
            let _ = write.write_all(opening.as_bytes()).await;
            while !opening.is_empty() && write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            std::future::pending::<()>().await;
        });
        let mut rest = Vec::new();
        let ended = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut rest);
        let _ = tokio::time::timeout(crate::mesh::PATIENCE, ended).await.expect("closed");
        drip.abort();
        let text = String::from_utf8_lossy(&rest);
        assert!(rest.is_empty() || text.starts_with("HTTP/1.1 408"), "{opening:?}: {text}");
    }
    assert!(echo.requests().is_empty());
    proxy.serves("shop").await;
    let listener = [("listener", "outbound")];
    until("the count", async || {
        let refused = proxy.metric("leno_downstream_connections_refused_total", &listener).await;
        (refused >= Some(2.0)).then_some(())
    })
    .await;
}

/// An idle kept connection is closed after its time, too.
#[tokio::test]
async fn an_idle_connection_is_closed() {
    let echo = Origin::echo("a").await;
    let proxy = before(&echo).await;
    let mut wire = Wire::connect(proxy.outbound).await;
    assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
    let rest = wire.rest().await;
    assert!(rest.is_empty(), "{}", rest.escape_ascii());
}

/// FAULTS 17: thousands that say nothing cost little and stop nobody.
#[tokio::test]
async fn silent_connections_cost_little() {
    const SILENT: usize = 2000;
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    proxy.serves("shop").await;
    let resident = proxy.resident();
    let mut silent = Vec::new();
    for at in 0..SILENT {
        let mut wire = Wire::connect(proxy.outbound).await;
        if at % 2 == 0 {
            wire.send("GET / HTTP/1.1\r\nHo").await;
        }
        silent.push(wire);
    }
    until("all of them to be accepted", async || {
        let open = proxy.metric("leno_downstream_connections", &[("listener", "outbound")]).await;
        (open >= Some(SILENT as f64)).then_some(())
    })
    .await;
    proxy.serves("shop").await;
    let each = proxy.resident().saturating_sub(resident) / SILENT as u64;
    assert!(each < 24 * 1024, "{each} bytes for each connection");
    drop(silent);
    until("them to be forgotten", async || {
        let open = proxy.metric("leno_downstream_connections", &[("listener", "outbound")]).await;
        (open == Some(0.0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_above_the_limit_are_reset_and_counted() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .arguments(&["--max-connections", "3"])
        .start()
        .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::connect(proxy.outbound).await;
        assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
        held.push(wire);
    }
    for _ in 0..5 {
        // Already the attempt to connect may see the reset.
        if let Ok(stream) = tokio::net::TcpStream::connect(proxy.outbound).await {
            assert!(Wire { stream, unread: Vec::new() }.is_closed().await);
        }
    }
    let labels = [("listener", "outbound"), ("reason", "limit")];
    proxy.counts("leno_downstream_connections_refused_total", &labels, 5.0).await;
    assert_eq!(held[0].ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
    held.clear();
    until("room", async || {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.try_send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        wire.try_answer().await.is_ok().then_some(())
    })
    .await;
}

/// Headers by which sidecars talk to each other mean nothing when an application sends them (FAULTS 13).
#[tokio::test]
async fn internal_headers_of_callers_are_not_believed() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let proxy = Mesh::default()
        .service("shop", "http", &[a.address])
        .service("other", "http", &[b.address])
        .start()
        .await;
    let answer = crate::client::get_with(
        proxy.outbound,
        "shop",
        "/",
        "x-leno-destination: default/other:80\r\n",
    )
    .await;
    assert_eq!(answer.echo()["origin"], "a");
    assert!(answer.echo()["headers"].get("x-leno-destination").is_none());
}

//! Upstreams that refuse, vanish, lie or never answer (FAULTS 22): the caller gets a status, the log the right letters.

use tokio::io::AsyncWriteExt;

use crate::{
    client::{self, Wire},
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

async fn before(origin: &Origin) -> Proxy {
    within("1m", origin).await
}

/// The same; whoever never answers is given up after `limit`.
async fn within(limit: &str, origin: &Origin) -> Proxy {
    Mesh::default()
        .service("shop", "http", &[origin.address])
        .policy("shop", &format!("timeouts: {{request: {limit}}}"))
        .start()
        .await
}

#[tokio::test]
async fn refused_and_reset_connections() {
    let resets = Origin::raw(|stream, _| async move { stream.set_zero_linger().unwrap() }).await;
    let closes = Origin::raw(|_, _| async {}).await;
    let proxy = Mesh::default()
        .service("refused", "http", &[origin::nobody()])
        .service("resets", "http", &[resets.address])
        .service("closes", "http", &[closes.address])
        .start()
        .await;
    for (at, (host, flags)) in
        [("refused", &["UF,URX"][..]), ("resets", &["UC", "UF,URX"]), ("closes", &["UC", "UC,URX"])]
            .into_iter()
            .enumerate()
    {
        let answer = client::get(proxy.outbound, host, "/").await;
        assert_eq!(answer.status, 503, "{host}");
        assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
        let (status, flag) = proxy.last_outcome(at + 1).await;
        assert!(status == 503 && flags.contains(&flag.as_str()), "{host}: {status} {flag}");
        proxy.quiet(&format!("default/{host}:80")).await;
    }
}

/// Of several endpoints the living one is found: nothing was sent to the others.
#[tokio::test]
async fn a_dead_endpoint_costs_nobody_a_request() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[origin::nobody(), echo.address, origin::nobody()])
        .start()
        .await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..50 {
        let request = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(wire.ask(request).await.echo()["body"], "body");
    }
    assert_eq!(echo.requests().len(), 50);
    assert!(proxy.metric("leno_retries_total", &[("result", "UF")]).await > Some(0.0));
}

/// A request that may have been processed is not sent twice (FAULTS 25).
#[tokio::test]
async fn a_post_is_never_sent_twice() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::raw(move |mut stream, _| {
        let told = told.clone();
        async move {
            // Answers the first request of a connection and drops the second after reading it.
            for answered in [true, false] {
                let Some((head, _)) = origin::read_request(&mut stream).await else { return };
                let _ = told.send(head.lines().next().unwrap().to_owned());
                if answered {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                }
            }
        }
    })
    .await;
    let proxy = before(&origin).await;
    let post = "POST /pay HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\n1";
    assert_eq!(client::ask(proxy.outbound, post).await.status, 200);
    assert_eq!(client::ask(proxy.outbound, post).await.status, 503);
    assert_eq!(proxy.last_outcome(2).await, (503, "UC".to_owned()));
    let mut requests = Vec::new();
    while let Ok(line) = heard.try_recv() {
        requests.push(line);
    }
    assert_eq!(requests.len(), 2, "{requests:?}");
}

#[tokio::test]
async fn what_is_not_http_is_a_bad_gateway() {
    for (response, name) in [
        ("garbage that is no status line\r\n\r\n", "prose"),
        ("\0\x01\x02\x03\x04\x05\x06\x07\r\n\r\n", "bytes"),
        ("HTTP/1.1 abc OK\r\n\r\n", "status"),
        ("HTTP/3.7 200 OK\r\n\r\n", "version"),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "field"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "two lengths"),
    ] {
        let origin = Origin::canned_once(response).await;
        let proxy = before(&origin).await;
        let answer = client::get(proxy.outbound, "shop", "/").await;
        assert_eq!(answer.status, 502, "{name}: {}", answer.text());
        assert_eq!(proxy.last_outcome(1).await, (502, "UPE".to_owned()), "{name}");
        proxy.quiet("default/shop:80").await;
    }
}

/// A response with two ways to tell its length is one that two readers understand differently (RFC 9112 section 6.3).
#[tokio::test]
async fn ambiguous_responses_are_not_reused() {
    let ambiguous = "HTTP/1.1 200 OK\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n\
                     2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let origin = Origin::canned(ambiguous).await;
    let proxy = before(&origin).await;
    for _ in 0..3 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        if let Ok(answer) = wire.try_answer().await {
            assert_eq!(answer.headers_named("content-length").len(), 0);
            assert!(answer.status == 502 || answer.text() == "ok", "{answer:?}");
        }
    }
}

/// Bytes after a response belong to nobody: they must not become the answer to the next request.
#[tokio::test]
async fn surplus_bytes_are_nobodys_answer() {
    let surplus = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let origin = Origin::canned(surplus).await;
    let proxy = before(&origin).await;
    for _ in 0..5 {
        let answer = client::get(proxy.outbound, "shop", "/").await;
        assert!(!answer.text().contains("evil"), "{}", answer.text());
    }
}

#[tokio::test]
async fn endless_interim_responses_are_given_up() {
    let origin = Origin::raw(|mut stream, _| async move {
        if origin::read_request(&mut stream).await.is_some() {
            let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(1000);
            while stream.write_all(interim.as_bytes()).await.is_ok() {}
        }
    })
    .await;
    let proxy = before(&origin).await;
    let resident = proxy.resident();
    let answer = client::get(proxy.outbound, "shop", "/").await;
    assert_eq!(answer.status, 502);
    assert_eq!(proxy.last_outcome(1).await, (502, "UPE".to_owned()));
    assert!(proxy.resident().saturating_sub(resident) < 32 << 20);
    until("the connection to close", async || (origin.open() == 0).then_some(())).await;
}

#[tokio::test]
async fn endless_heads_are_given_up() {
    for field in ["x-a: b\r\n", "xxxxxxxxxxxxxxxx"] {
        let origin = Origin::raw(move |mut stream, _| async move {
            if origin::read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
                let filler = field.repeat(4096);
                while stream.write_all(filler.as_bytes()).await.is_ok() {}
            }
        })
        .await;
        let proxy = before(&origin).await;
        let resident = proxy.resident();
        assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 502, "{field:?}");
        assert!(proxy.resident().saturating_sub(resident) < 32 << 20);
        until("the connection to close", async || (origin.open() == 0).then_some(())).await;
    }
}

#[tokio::test]
async fn a_head_that_never_ends_times_out() {
    let origin = Origin::raw(|mut stream, _| async move {
        if origin::read_request(&mut stream).await.is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-").await;
            origin::drain(&mut stream).await;
        }
    })
    .await;
    let proxy = within("2s", &origin).await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 504);
    assert_eq!(proxy.last_outcome(1).await, (504, "UT".to_owned()));
}

#[tokio::test]
async fn a_head_that_is_cut_off_is_unavailable() {
    let origin = Origin::canned_once("HTTP/1.1 200 OK\r\nContent-").await;
    let proxy = before(&origin).await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 503);
    assert_eq!(proxy.last_outcome(1).await, (503, "UC".to_owned()));
}

/// FAULTS 20: an upstream that speaks the other version of HTTP.
#[tokio::test]
async fn the_wrong_protocol_upstream_is_a_bad_gateway() {
    let (old, new) = (Origin::echo("a").await, Origin::echo_http2("a").await);
    let proxy = Mesh::default()
        .service("old", "http2", &[old.address])
        .service("new", "http", &[new.address])
        .policy("old", "timeouts: {request: 1m}")
        .policy("new", "timeouts: {request: 1m}")
        .start()
        .await;
    for host in ["old", "new"] {
        let answer = client::get(proxy.outbound, host, "/").await;
        assert!([502, 503].contains(&answer.status), "{host}: {}", answer.status);
        proxy.quiet(&format!("default/{host}:80")).await;
    }
}

#[tokio::test]
async fn limits_of_the_breaker_answer_at_once() {
    let silent = Origin::raw(|mut stream, _| async move {
        origin::drain(&mut stream).await;
    })
    .await;
    let proxy = Mesh::default()
        .service("shop", "http", &[silent.address])
        .policy("shop", "breaker: {maxExchanges: 2}")
        .service("tight", "http", &[silent.address])
        .policy("tight", "breaker: {maxConnections: 1, maxPending: 0}")
        .start()
        .await;
    let mut held = Vec::new();
    for (host, count) in [("shop", 2), ("tight", 1)] {
        for _ in 0..count {
            let mut wire = Wire::connect(proxy.outbound).await;
            wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            held.push(wire);
            let expected = held.len();
            until("the call", async || (silent.open() == expected).then_some(())).await;
        }
        let answer = client::get(proxy.outbound, host, "/").await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{host}");
        let shown = proxy.cluster(&format!("default/{host}:80")).await;
        assert_eq!(shown["rejected"], 1, "{host}");
    }
    let log = proxy.access_log(2).await;
    assert!(log.iter().all(|line| line["response_flags"] == "UO"), "{log:?}");
    drop(held);
    for host in ["shop", "tight"] {
        proxy.quiet(&format!("default/{host}:80")).await;
    }
}

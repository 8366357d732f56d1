//! Those who want others to get what they have made up, or to see what is not theirs, or to have nobody served.

use http::Request;

use super::{
    assert_hit, get, get_with, is_hit, mesh, proxy, told,
    upstream::{FRESH, PUBLIC, Upstream, path, response},
};
use crate::{
    client::{self, Wire},
    http2,
    mesh::{Mesh, until},
    origin::{self, Origin},
};

/// Two requests that an origin might answer differently are never one key.
#[tokio::test]
async fn what_differs_for_the_origin_differs_here() {
    let upstream = Upstream::answering(|head, _| {
        let host = head.lines().find(|line| line.starts_with("host:")).unwrap_or_default();
        response(FRESH, &format!("{} {host}", path(head)))
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    // What the origin says where nothing is kept: the sidecar itself removes dot segments, and refuses some targets.
    let plain = Mesh::default().service("shop", "http", &[upstream.address()]).start().await;
    let targets = [
        "/a?x",
        "/a%3fx",
        "/a%3Fx",
        "/a",
        "/a/",
        "//a",
        "/a?",
        "/A",
        "/%61",
        "/./a",
        "/b/../a",
        "/a%2fb",
        "/a/b",
        "/a;x",
        "/a?x;y",
        "/a?x&y",
        "/a?y&x",
        "/a?x&",
        "/a?x=",
        "/a%00",
        "/a%20",
        "/a+",
        "/%2e/a",
        "/a%2F..%2Fb",
        "/a?http://x/",
        "/a.css",
        "/a%0d%0aX:1",
    ];
    for round in 0..2 {
        for target in targets {
            let expected = get(&plain, target).await;
            let answer = get(&proxy, target).await;
            assert_eq!(answer.status, expected.status, "{target}");
            if answer.status == 200 {
                assert_eq!(answer.text(), expected.text(), "{target}");
                assert!(is_hit(&answer) || round == 0, "{target}");
            }
        }
    }
}

/// Names of the host that all lead to the service are told apart as the origin may tell them apart.
#[tokio::test]
async fn hosts_are_told_apart() {
    let upstream = Upstream::answering(|head, _| {
        let host = head.lines().find(|line| line.starts_with("host:")).unwrap_or_default();
        response(FRESH, host)
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    for host in ["shop", "shop.default", "shop.default.svc.cluster.local"] {
        let first = client::get(proxy.outbound, host, "/").await;
        if first.status != 200 {
            continue;
        }
        assert!(!is_hit(&first), "{host}: {}", first.text());
        assert_hit(&client::get(proxy.outbound, host, "/").await, &format!("host: {host}"));
    }
    // The target's authority is the one that counts, on the way and in the key.
    let absolute = "GET http://shop/abs HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n";
    let answer = client::ask(proxy.outbound, absolute).await;
    assert!(answer.status == 400 || answer.text() == "host: shop", "{}", answer.text());
    let answer = get(&proxy, "/abs").await;
    assert_eq!(answer.text(), "host: shop");
    // Two hosts are no host.
    let two = "GET /two HTTP/1.1\r\nHost: shop\r\nHost: evil\r\nConnection: close\r\n\r\n";
    assert_eq!(client::ask(proxy.outbound, two).await.status, 400);
    assert_eq!(get(&proxy, "/two").await.text(), "host: shop");
}

/// A body with a GET reaches the origin and nobody's memory: the origin may answer by it.
#[tokio::test]
async fn a_get_with_a_body_is_not_kept() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = proxy(&upstream, "").await;
    for request in [
        "GET / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nConnection: close\r\n\r\nevil",
        "GET / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
    ] {
        let answer = client::ask(proxy.outbound, request).await;
        if answer.status == 200 {
            assert!(told(&answer).starts_with("leno; fwd=bypass"), "{}", told(&answer));
        }
        if upstream.count() == 1 {
            assert!(!is_hit(&get(&proxy, "/").await));
        }
    }
}

/// Those who wait for another's fetch never get what was that one's own.
#[tokio::test]
async fn nobody_who_waits_gets_a_cookie_or_what_credentials_bought() {
    for (leader, fields) in [
        ("", "Set-Cookie: session=leader\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
        ("", "Cache-Control: private, max-age=600\r\n"),
        ("", "Cache-Control: no-store, max-age=600\r\n"),
        ("Authorization: Basic YTpi\r\n", "Cache-Control: max-age=600\r\n"),
        ("", "Vary: *\r\nCache-Control: max-age=600\r\n"),
        ("X-A: leader\r\n", "Vary: X-A\r\nCache-Control: max-age=600\r\n"),
    ] {
        let upstream = Upstream::held(move |_, number| response(fields, &number.to_string())).await;
        let proxy = proxy(&upstream, "collapse: {wait: 1m}\ndefaultTtl: 10m").await;
        let outbound = proxy.outbound;
        let first =
            tokio::spawn(async move { client::get_with(outbound, "shop", "/", leader).await });
        upstream.asked(1).await;
        let others: Vec<_> = (0..10)
            .map(|_| tokio::spawn(async move { client::get(outbound, "shop", "/").await }))
            .collect();
        upstream.open();
        assert_eq!(first.await.unwrap().text(), "1");
        for other in others {
            assert_ne!(other.await.unwrap().text(), "1", "{fields}");
        }
    }
}

/// What an enemy writes into fields that are no part of the key reaches the origin once, and then nobody's memory of
/// another: the origin says by `Vary` what it depends on.
#[tokio::test]
async fn fields_that_the_origin_names_are_part_of_the_key() {
    let upstream = Upstream::answering(|head, _| {
        let host = head.lines().find_map(|line| line.strip_prefix("x-forwarded-host: "));
        response(&format!("{FRESH}Vary: X-Forwarded-Host\r\n"), host.unwrap_or("none"))
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    assert_eq!(get_with(&proxy, "/", "X-Forwarded-Host: evil\r\n").await.status, 200);
    assert!(!get(&proxy, "/").await.text().contains("evil"));
}

/// An answer cannot be split: what is kept is sent as it was checked.
#[tokio::test]
async fn stored_fields_do_not_split_answers() {
    for fields in [
        "X-A: a\rX-Evil: 1\r\n",
        "X-A: a\0b\r\n",
        "X-A : a\r\n",
        " X-A: folded\r\n",
        "Content-Length: 3\r\n",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{FRESH}{fields}\r\n1");
        let upstream = Upstream::answering(move |_, _| text.clone()).await;
        let proxy = proxy(&upstream, "").await;
        for _ in 0..2 {
            let answer = get(&proxy, "/").await;
            assert!(answer.header("x-evil").is_none(), "{fields}");
            if answer.status == 200 {
                assert_eq!(answer.text(), "1");
                assert!(
                    !answer.headers.iter().any(|(_, value)| value.contains(['\r', '\n', '\0'])),
                    "{fields}"
                );
            } else {
                assert_eq!(answer.status, 502, "{fields}");
            }
        }
    }
}

#[tokio::test]
async fn upgrades_pass_it_by() {
    let chat = Origin::raw(|mut stream, _| async move {
        use tokio::io::AsyncWriteExt as _;
        if origin::read_request(&mut stream).await.is_some() {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                           Cache-Control: max-age=600\r\n\r\nwelcome";
            stream.write_all(answer).await.unwrap();
            origin::drain(&mut stream).await;
        }
    })
    .await;
    let mesh = Mesh::default().service("shop", "http", &[chat.address]).yaml(&super::policy(""));
    let proxy = mesh.start().await;
    let upgrade =
        "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    for _ in 0..3 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(upgrade).await;
        assert_eq!(wire.head().await.unwrap().status, 101);
        assert_eq!(wire.exactly(7).await.unwrap(), b"welcome");
    }
    assert_eq!(chat.accepted(), 3);
}

/// A thousand parts of one byte are not a thousand answers.
#[tokio::test]
async fn many_ranges_are_no_amplifier() {
    let upstream = Upstream::answering(|_, _| response(FRESH, &"x".repeat(10_000))).await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    let all = vec!["0-"; 500].join(",");
    let one = (0..500).map(|at| format!("{at}-{at}")).collect::<Vec<_>>().join(",");
    for ranges in [all, one] {
        let answer = get_with(&proxy, "/", &format!("Range: bytes={ranges}\r\n")).await;
        assert!(is_hit(&answer) && matches!(answer.status, 200 | 206 | 416), "{}", answer.status);
        assert!(answer.body.len() <= 20_000, "{}", answer.body.len());
    }
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn callers_and_origins_of_both_versions_share_what_is_kept() {
    for protocol in ["http", "http2"] {
        let new = Origin::raw(|stream, _| async move {
            let mut connection = http2::serve(stream).await;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let body = request.uri().path().to_owned();
                let response = http::Response::builder().header("cache-control", "max-age=600");
                let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
                stream.send_data(body.into(), true).unwrap();
            }
        })
        .await;
        let old = Upstream::answering(|head, _| response(FRESH, path(head))).await;
        let address = if protocol == "http" { old.address() } else { new.address };
        let mesh = Mesh::default().service("shop", protocol, &[address]).yaml(&super::policy(""));
        let proxy = mesh.start().await;
        assert_eq!(get(&proxy, "/one").await.text(), "/one");
        let sender = http2::connect(&proxy).await;
        let request = || Request::get("http://shop/one").body(()).unwrap();
        let answer = http2::ask(&sender, request(), b"").await;
        assert_eq!(answer.body(), b"/one", "{protocol}");
        let told = answer.headers()["cache-status"].to_str().unwrap();
        assert!(told.starts_with("leno; hit"), "{protocol}: {told}");
        // Connections that wait for many things at once.
        let mut asking = Vec::new();
        for at in 0..100 {
            let sender = sender.clone();
            asking.push(tokio::spawn(async move {
                let request = Request::get(format!("http://shop/{}", at % 5)).body(()).unwrap();
                (at % 5, http2::ask(&sender, request, b"").await)
            }));
        }
        for asked in asking {
            let (at, answer) = asked.await.unwrap();
            assert_eq!(answer.body(), format!("/{at}").as_bytes());
        }
    }
}

/// The configuration changes while something is fetched: nothing breaks, and nothing is served by rules that are gone.
#[tokio::test]
async fn the_configuration_may_change_during_a_fetch() {
    let upstream = Upstream::held(|_, number| response(FRESH, &number.to_string())).await;
    let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
    let outbound = proxy.outbound;
    let early: Vec<_> = (0..10)
        .map(|_| tokio::spawn(async move { client::get(outbound, "shop", "/").await }))
        .collect();
    upstream.asked(1).await;
    let generation = proxy.metric("leno_config_generation", &[]).await.unwrap();
    proxy.rewrite(Mesh::default().service("shop", "http", &[upstream.address()]).text());
    until("no policy", async || {
        (proxy.metric("leno_config_generation", &[]).await > Some(generation)).then_some(())
    })
    .await;
    upstream.open();
    for early in early {
        assert_eq!(early.await.unwrap().status, 200);
    }
    assert_eq!(get(&proxy, "/").await.header("cache-status"), None);
    proxy.rewrite(mesh(&upstream, "key: {headers: [x-a]}").text());
    until("a policy", async || get(&proxy, "/").await.header("cache-status").map(drop)).await;
}

/// The sidecar is told to end during a fetch: who asked and who waits get their answers.
#[tokio::test]
async fn a_drain_lets_fetches_end() {
    let upstream = Upstream::held(|_, number| response(PUBLIC, &number.to_string())).await;
    let mesh = mesh(&upstream, "collapse: {wait: 1m}");
    let mut proxy = mesh.arguments(&["--drain", "20"]).start().await;
    let mut wires = Vec::new();
    for _ in 0..10 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        wires.push(wire);
    }
    upstream.asked(1).await;
    client::get(proxy.outbound, "nobody", "/").await;
    proxy.signal(rustix::process::Signal::TERM);
    upstream.open();
    for mut wire in wires {
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "1"));
    }
    assert!(proxy.ended().await.success());
}

/// An origin that never ends its body keeps one fetch busy, and nobody else.
#[tokio::test]
async fn an_endless_body_harms_only_who_asked_for_it() {
    use tokio::io::AsyncWriteExt as _;
    let origin = Origin::raw(|mut stream, _| async move {
        while let Some((head, _)) = origin::read_request(&mut stream).await {
            if path(&head) != "/endless" {
                let _ = stream.write_all(response(FRESH, "x").as_bytes()).await;
                continue;
            }
            let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{FRESH}\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            let piece = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
            while stream.write_all(piece.as_bytes()).await.is_ok() {}
            return;
        }
    })
    .await;
    let mesh = Mesh::default().service("shop", "http", &[origin.address]);
    let policy = super::policy("maxBytes: 8Mi\ncollapse: {wait: 1m}");
    let proxy = mesh.yaml(&policy).start().await;
    let before = proxy.resident();
    let mut wires = Vec::new();
    for _ in 0..5 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET /endless HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        wires.push(wire);
    }
    for wire in &mut wires {
        assert_eq!(wire.head().await.unwrap().status, 200);
        wire.exactly(4 << 20).await.unwrap();
    }
    assert!(proxy.resident().saturating_sub(before) < 24 << 20, "{}", proxy.resident());
    get(&proxy, "/").await;
    assert_hit(&get(&proxy, "/").await, "x");
    drop(wires);
    // Nobody reads it any more: the origin is let go.
    until("the origin to be let go", async || (origin.open() <= 1).then_some(())).await;
}

//! Bytes instead of HTTP: `CONNECT`, upgrades, and opaque TCP on the inbound port (FAULTS 19 to 21).

use tokio::io::AsyncWriteExt;

use crate::{
    client::Wire,
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

/// Sends back every byte, and closes its half when the caller has closed the other.
async fn echo_bytes() -> Origin {
    Origin::raw(|mut stream, _| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

async fn tunnel(proxy: &Proxy, host: &str) -> Wire {
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send(format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\n")).await;
    let head = wire.head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, None));
    assert_eq!(head.header("transfer-encoding"), None, "RFC 9110 section 9.3.6");
    wire
}

#[tokio::test]
async fn connect_makes_a_tunnel_with_half_close() {
    let echo = echo_bytes().await;
    let proxy = Mesh::default().service("store", "tcp", &[echo.address]).start().await;
    let mut wire = tunnel(&proxy, "store").await;
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let (sent, back) = {
        let (mut read, mut write) = wire.stream.split();
        let send = async {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (sent, _) =
            tokio::join!(send, tokio::io::AsyncReadExt::read_to_end(&mut read, &mut back));
        (sent, back)
    };
    let () = sent;
    assert!(back == bytes, "{} of {} bytes came back", back.len(), bytes.len());
    let line = &proxy.access_log(1).await[0];
    assert_eq!(
        (&line["bytes_received"], &line["bytes_sent"]),
        (&1_000_000.into(), &1_000_000.into())
    );
    assert_eq!(line["response_flags"], "-");
    proxy.quiet("default/store:80").await;
}

/// The server is done first; the caller's bytes still arrive.
#[tokio::test]
async fn the_server_may_close_its_half_first() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let closes = Origin::raw(move |mut stream, _| {
        let told = told.clone();
        async move {
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = told.send(origin::drain(&mut stream).await);
        }
    })
    .await;
    let proxy = Mesh::default().service("store", "tcp", &[closes.address]).start().await;
    let mut wire = tunnel(&proxy, "store").await;
    assert_eq!(wire.rest().await, b"bye");
    wire.send(vec![7; 300_000]).await;
    wire.finish().await;
    assert_eq!(heard.recv().await, Some(300_000));
}

/// Bytes sent right behind the request, before its answer, belong to the tunnel.
#[tokio::test]
async fn bytes_behind_a_connect_are_the_tunnels() {
    let echo = echo_bytes().await;
    let proxy = Mesh::default().service("store", "tcp", &[echo.address]).start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("CONNECT store:80 HTTP/1.1\r\nHost: store:80\r\n\r\nearly").await;
    assert_eq!(wire.head().await.unwrap().status, 200);
    assert_eq!(wire.exactly(5).await.unwrap(), b"early");
}

#[tokio::test]
async fn connect_to_nothing_is_an_error_and_no_tunnel() {
    let echo = echo_bytes().await;
    let proxy = Mesh::default()
        .service("store", "tcp", &[echo.address])
        .service("dead", "tcp", &[origin::nobody()])
        .service("empty", "tcp", &[])
        .start()
        .await;
    for (target, status) in
        [("dead:80", 503), ("empty:80", 503), ("nowhere:80", 404), ("store:81", 404)]
    {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
        assert_eq!(wire.head().await.unwrap().status, status, "{target}");
    }
}

/// FAULTS 19: either side goes away without a word.
#[tokio::test]
async fn a_reset_on_one_side_ends_the_other() {
    let (resets, holds) = (
        Origin::raw(|mut stream, _| async move {
            let _ = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
            stream.set_zero_linger().unwrap();
        })
        .await,
        echo_bytes().await,
    );
    let proxy = Mesh::default()
        .service("resets", "tcp", &[resets.address])
        .service("holds", "tcp", &[holds.address])
        .start()
        .await;
    let mut wire = tunnel(&proxy, "resets").await;
    wire.send("x").await;
    wire.rest().await;
    let wire = tunnel(&proxy, "holds").await;
    until("the tunnel", async || (holds.open() == 1).then_some(())).await;
    wire.stream.set_zero_linger().unwrap();
    drop(wire);
    until("its end", async || (holds.open() == 0).then_some(())).await;
    proxy.quiet("default/holds:80").await;
}

/// What broke off must not look like a whole: half of it may mean something else.
#[tokio::test]
async fn what_breaks_off_is_not_taken_for_its_end() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let hears = Origin::raw(move |mut stream, _| {
        let told = told.clone();
        async move {
            let mut bytes = Vec::new();
            let end = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes).await;
            let _ = told.send((bytes, end.is_err()));
        }
    })
    .await;
    let breaks = Origin::raw(|mut stream, _| async move {
        stream.write_all(b"half").await.unwrap();
        let _ = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let proxy = Mesh::default()
        .service("hears", "tcp", &[hears.address])
        .service("breaks", "tcp", &[breaks.address])
        .start()
        .await;
    let mut wire = tunnel(&proxy, "hears").await;
    wire.send("half").await;
    until("the bytes", async || (hears.accepted() == 1).then_some(())).await;
    wire.stream.set_zero_linger().unwrap();
    drop(wire);
    assert!(heard.recv().await.unwrap().1, "the application took it for whole");
    let mut wire = tunnel(&proxy, "breaks").await;
    assert_eq!(wire.exactly(4).await.unwrap(), b"half");
    wire.send("x").await;
    let end = tokio::io::AsyncReadExt::read_u8(&mut wire.stream).await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n";

/// Agrees to the upgrade when asked for `/chat`, refuses it with that status otherwise.
async fn chat() -> Origin {
    Origin::raw(|mut stream, _| async move {
        while let Some((head, _)) = origin::read_request(&mut stream).await {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            if path == "/chat" && head.contains("\r\nupgrade: websocket\r\n") {
                assert!(head.contains("connection: upgrade\r\n"), "{head}");
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                               Sec-WebSocket-Accept: HSmrc0sMlYUkAGmm5OPpG2HaGWk=\r\n\r\nwelcome";
                stream.write_all(answer).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
                return;
            }
            let status = path.trim_start_matches('/').parse().unwrap_or(200);
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nno");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn an_agreed_upgrade_is_a_tunnel() {
    let chat = chat().await;
    let proxy = Mesh::default().service("shop", "http", &[chat.address]).start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send(UPGRADE).await;
    let head = wire.head().await.unwrap();
    assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")));
    assert_eq!(head.header("sec-websocket-accept"), Some("HSmrc0sMlYUkAGmm5OPpG2HaGWk="));
    assert_eq!(wire.exactly(7).await.unwrap(), b"welcome");
    wire.send(b"\x81\x02hi").await;
    assert_eq!(wire.exactly(4).await.unwrap(), b"\x81\x02hi");
    wire.finish().await;
    assert!(wire.is_closed().await);
    let line = &proxy.access_log(1).await[0];
    assert_eq!((&line["response_code"], &line["bytes_sent"]), (&101.into(), &11.into()));
    proxy.quiet("default/shop:80").await;
}

/// FAULTS 21: a refusal leaves an HTTP connection; what follows is the next request, not tunnel bytes.
#[tokio::test]
async fn a_refused_upgrade_is_no_tunnel() {
    let chat = chat().await;
    let proxy = Mesh::default().service("shop", "http", &[chat.address]).start().await;
    for status in [200, 403] {
        let mut wire = Wire::connect(proxy.outbound).await;
        let request = UPGRADE.replace("/chat", &format!("/{status}"));
        assert_eq!(wire.ask(request).await.status, status);
        let next = wire.ask("GET /next HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert_eq!((next.status, next.text().as_str()), (200, "no"));
    }
    proxy.quiet("default/shop:80").await;
}

/// An origin that switches protocols unasked must not get a tunnel into the caller's connection.
#[tokio::test]
async fn an_upgrade_nobody_asked_for_is_an_error() {
    let switches = Origin::canned_once(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nevil",
    )
    .await;
    let proxy = Mesh::default().service("shop", "http", &[switches.address]).start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let answer = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_eq!(answer.status, 502);
    assert!(!answer.text().contains("evil"));
    assert_eq!(proxy.last_outcome(1).await, (502, "UPE".to_owned()));
}

/// The sidecar beside a database in which the server speaks first.
async fn beside(application: &Origin, protocol: &str) -> Proxy {
    Mesh::default()
        .service("store", protocol, &[application.address])
        .arguments(&["--name", "store-0"])
        .start()
        .await
}

#[tokio::test]
async fn a_tcp_port_passes_server_first_protocols() {
    for protocol in ["tcp", "auto"] {
        let greets = Origin::raw(|mut stream, _| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await;
        let proxy = beside(&greets, protocol).await;
        let mut wire = Wire::connect(proxy.inbound).await;
        assert_eq!(wire.line().await.as_deref(), Some("220 ready"), "{protocol}");
        wire.send("quit\r\n").await;
        wire.finish().await;
        assert_eq!(wire.rest().await, b"quit\r\n", "{protocol}");
        let labels = [("reporter", "destination"), ("destination_service_name", "store")];
        proxy.counts("istio_tcp_connections_closed_total", &labels, 1.0).await;
        proxy.counts("istio_tcp_sent_bytes_total", &labels, 17.0).await;
    }
}

#[tokio::test]
async fn an_auto_port_tells_http_from_the_rest() {
    let echo = Origin::echo("a").await;
    let proxy = beside(&echo, "auto").await;
    let answer = crate::client::get(proxy.inbound, "store", "/x").await;
    assert_eq!(answer.echo()["path"], "/x");
    let bytes = echo_bytes().await;
    let proxy = beside(&bytes, "auto").await;
    for (at, opening) in
        [&b"*1\r\n$4\r\nPING\r\n"[..], b"\x16\x03\x01\x00\x05hello", b"ehlo me\r\n"]
            .into_iter()
            .enumerate()
    {
        let mut wire = Wire::connect(proxy.inbound).await;
        wire.send(opening).await;
        wire.finish().await;
        assert_eq!(wire.rest().await, opening, "{at}");
    }
}

/// The application beside the sidecar is called through two sidecars, as in a mesh.
#[tokio::test]
async fn inbound_calls_reach_the_application() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .arguments(&["--name", "shop-0"])
        .start()
        .await;
    let seen =
        crate::client::get_with(proxy.inbound, "shop", "/in", "x-forwarded-for: 10.1.1.1\r\n")
            .await
            .echo();
    assert_eq!(seen["path"], "/in");
    assert_eq!(seen["headers"]["x-forwarded-for"][0], "10.1.1.1, 127.0.0.1");
    assert_eq!(seen["headers"]["x-forwarded-proto"][0], "http");
    let labels = [("reporter", "destination"), ("response_code", "200")];
    proxy.counts("istio_requests_total", &labels, 1.0).await;
    let refused = crate::client::ask(
        proxy.inbound,
        "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(refused.status, 405);
}

/// `CONNECT` on a stream of HTTP/2 (RFC 9113 section 8.5): the stream is the tunnel, its siblings go on.
#[tokio::test]
async fn connect_over_http2_is_a_tunnel_too() {
    let (echo, shop) = (echo_bytes().await, Origin::echo("a").await);
    let proxy = Mesh::default()
        .service("store", "tcp", &[echo.address])
        .service("shop", "http", &[shop.address])
        .start()
        .await;
    let sender = crate::http2::connect(&proxy).await;
    let mut tunnel = sender.clone().ready().await.unwrap();
    let request = http::Request::connect("store:80").body(()).unwrap();
    let (response, mut send) = tunnel.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let mut back = response.into_body();
    for text in ["first", "second"] {
        send.send_data(bytes::Bytes::from_static(text.as_bytes()), false).unwrap();
        let data = back.data().await.unwrap().unwrap();
        assert_eq!(data, text);
    }
    let request = http::Request::get("http://shop/").body(()).unwrap();
    assert_eq!(crate::http2::ask(&sender, request, b"").await.status(), 200);
    send.send_data(bytes::Bytes::new(), true).unwrap();
    assert!(back.data().await.is_none_or(|data| data.is_ok_and(|data| data.is_empty())));
    proxy.quiet("default/store:80").await;
}

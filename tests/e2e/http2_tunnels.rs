//! `CONNECT` over HTTP/2: a stream that is a tunnel, beside others on its connection (RFC 9113 section 8.5).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    frames::{self, *},
    http2,
    mesh::{Mesh, PATIENCE, until},
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

/// A tunnel to `host`, as a stream of `sender`'s connection.
async fn tunnel(
    sender: &SendRequest<Bytes>,
    host: &str,
) -> Result<(SendStream<Bytes>, RecvStream), u16> {
    let mut sender = sender.clone().ready().await.unwrap();
    let request = Request::connect(format!("{host}:80")).body(()).unwrap();
    let (response, outgoing) = sender.send_request(request, false).unwrap();
    let response = timeout(PATIENCE, response).await.expect("an answer").unwrap();
    if response.status() != 200 {
        return Err(response.status().as_u16());
    }
    for name in ["content-length", "transfer-encoding"] {
        assert!(!response.headers().contains_key(name), "RFC 9110 section 9.3.6: {name}");
    }
    Ok((outgoing, response.into_body()))
}

/// Sends all of `bytes`, as fast as there is room, and then the end.
async fn send(mut outgoing: SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        outgoing.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|context| outgoing.poll_capacity(context)).await;
        let room = room.expect("the stream lives").unwrap().min(bytes.len());
        outgoing.send_data(bytes.split_to(room), false).unwrap();
    }
    outgoing.send_data(Bytes::new(), true).unwrap();
}

/// What comes until END_STREAM.
async fn receive(incoming: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = timeout(PATIENCE, incoming.data()).await.expect("more of it") {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all)
}

#[tokio::test]
async fn tunnels_share_a_connection_and_close_by_halves() {
    const LENGTH: usize = 1_000_000;
    let echo = echo_bytes().await;
    let proxy = Mesh::default().service("store", "tcp", &[echo.address]).start().await;
    let sender = http2::connect(&proxy).await;
    let one = async |first: u8| {
        let (outgoing, mut incoming) = tunnel(&sender, "store").await.unwrap();
        let bytes: Vec<u8> = (first..=250).cycle().take(LENGTH).collect();
        let (back, ()) =
            tokio::join!(receive(&mut incoming), send(outgoing, Bytes::from(bytes.clone())));
        let back = back.unwrap();
        assert!(back == bytes, "{} of {LENGTH} bytes came back", back.len());
    };
    tokio::join!(one(0), one(7), one(9));
    for line in proxy.access_log(3).await {
        assert_eq!(line["bytes_received"], LENGTH, "{line}");
        assert_eq!(line["bytes_sent"], LENGTH, "{line}");
        assert_eq!((&line["response_flags"], &line["response_code"]), (&"-".into(), &200.into()));
    }
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
    let sender = http2::connect(&proxy).await;
    let (outgoing, mut incoming) = tunnel(&sender, "store").await.unwrap();
    assert_eq!(receive(&mut incoming).await.unwrap(), b"bye");
    send(outgoing, vec![7; 300_000].into()).await;
    assert_eq!(heard.recv().await, Some(300_000));
}

/// CONNECT, by the frame.
fn begin(stream: u32, flags: u8, more: &[(&str, &str)]) -> Frame {
    let fields = [&[(":method", "CONNECT"), (":authority", "store:80")], more].concat();
    headers(stream, flags, &fields)
}

/// Bytes sent right behind the request, before its answer, belong to the tunnel; so does its end.
#[tokio::test]
async fn what_comes_behind_a_connect_is_the_tunnels() {
    let echo = echo_bytes().await;
    let proxy = Mesh::default().service("store", "tcp", &[echo.address]).start().await;
    for (name, sent) in [
        ("bytes", vec![begin(1, 0, &[]), data(1, 0, "ear"), data(1, END_STREAM, "ly")]),
        ("an end", vec![begin(1, END_STREAM, &[])]),
    ] {
        let mut raw = Raw::connect(&proxy).await;
        raw.send_bytes(&sent.iter().flat_map(Frame::bytes).collect::<Vec<u8>>()).await;
        assert_eq!(raw.status(1).await, Some(200), "{name}");
        let mut back = Vec::new();
        loop {
            let frame = raw.until(|frame| frame.kind == DATA).await;
            back.extend(frame.payload);
            if frame.flags & END_STREAM != 0 {
                break;
            }
        }
        assert_eq!(back, if name == "bytes" { &b"early"[..] } else { b"" });
    }
    proxy.quiet("default/store:80").await;
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
    let sender = http2::connect(&proxy).await;
    for (host, status) in [("dead", 503), ("empty", 503), ("nowhere", 404)] {
        assert_eq!(tunnel(&sender, host).await.err(), Some(status), "{host}");
    }
    assert!(tunnel(&sender, "store").await.is_ok(), "the connection lives");
}

/// A length would make bytes of the tunnel a body; a path makes it something else than CONNECT.
#[tokio::test]
async fn a_connect_that_is_none_goes_nowhere() {
    let echo = echo_bytes().await;
    let proxy = Mesh::default().service("store", "tcp", &[echo.address]).start().await;
    for more in [
        &[("content-length", "3")][..],
        &[(":path", "/")],
        &[(":scheme", "http")],
        &[(":scheme", "http"), (":path", "/")],
        &[(":scheme", "http"), (":path", "/"), (":protocol", "websocket")],
    ] {
        let mut raw = Raw::connect(&proxy).await;
        raw.send(&begin(1, 0, more)).await;
        // Its round trip may be over before the proxy has looked at the request.
        let reaction = match raw.reaction().await {
            Reaction::Pong => raw.reaction().await,
            reaction => reaction,
        };
        let refused = match reaction {
            Reaction::Head { status, .. } => status.is_none_or(|status| status >= 400),
            Reaction::Pong => false,
            Reaction::Reset { .. } | Reaction::ConnectionEnds(_) => true,
        };
        assert!(refused, "{more:?}: {reaction:?}");
    }
    assert_eq!(echo.accepted(), 0);
}

/// What broke off must not look like a whole, to neither side; whatever code the reset has.
#[tokio::test]
async fn what_breaks_off_is_not_taken_for_its_end() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let hears = Origin::raw(move |mut stream, _| {
        let told = told.clone();
        async move {
            let mut bytes = Vec::new();
            let end = stream.read_to_end(&mut bytes).await;
            let _ = told.send((bytes, end.is_err()));
        }
    })
    .await;
    let breaks = Origin::raw(|mut stream, _| async move {
        stream.write_all(b"half").await.unwrap();
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let proxy = Mesh::default()
        .service("store", "tcp", &[hears.address])
        .service("breaks", "tcp", &[breaks.address])
        .start()
        .await;
    for code in [NO_ERROR, 8] {
        let mut raw = Raw::connect(&proxy).await;
        raw.send(&begin(1, 0, &[])).await;
        assert_eq!(raw.status(1).await, Some(200));
        for frame in [data(1, 0, "half"), rst_stream(1, code)] {
            raw.send(&frame).await;
        }
        assert!(heard.recv().await.unwrap().1, "code {code}: the application took it for whole");
    }
    let sender = http2::connect(&proxy).await;
    let (mut outgoing, mut incoming) = tunnel(&sender, "breaks").await.unwrap();
    let half = timeout(PATIENCE, incoming.data()).await.unwrap().unwrap().unwrap();
    assert_eq!(half, "half");
    outgoing.send_data(Bytes::from_static(b"x"), false).unwrap();
    let error = receive(&mut incoming).await.expect_err("half taken for whole");
    assert!(error.is_reset() && error.reason() != Some(h2::Reason::NO_ERROR), "{error}");
}

/// The connection goes, and with it all its tunnels.
#[tokio::test]
async fn tunnels_end_with_their_connection() {
    let echo = echo_bytes().await;
    let proxy = Mesh::default().service("store", "tcp", &[echo.address]).start().await;
    let mut raw = Raw::connect(&proxy).await;
    for stream in [1, 3, 5] {
        raw.send(&begin(stream, 0, &[])).await;
        assert_eq!(raw.status(stream).await, Some(200));
    }
    until("the tunnels", async || (echo.open() == 3).then_some(())).await;
    drop(raw);
    until("their end", async || (echo.open() == 0).then_some(())).await;
    proxy.quiet("default/store:80").await;
}

/// A tunnel whose caller reads nothing stops its sender, and no other stream.
#[tokio::test]
async fn a_tunnel_that_nobody_reads_stops_only_itself() {
    const MOST: u64 = 32 << 20;
    let moved = Arc::new(AtomicU64::new(0));
    let counter = moved.clone();
    let fountain = Origin::raw(move |mut stream, _| {
        let counter = counter.clone();
        async move {
            while stream.write_all(&[0; 16 * 1024]).await.is_ok() {
                counter.fetch_add(16 * 1024, Ordering::Relaxed);
            }
        }
    })
    .await;
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("store", "tcp", &[fountain.address])
        .service("shop", "http", &[echo.address])
        .start()
        .await;
    let mut raw = Raw::connect(&proxy).await;
    raw.send(&begin(1, 0, &[])).await;
    assert_eq!(raw.status(1).await, Some(200));
    // The window of the stream is 65,535 bytes; that of the connection opens again for others.
    raw.send(&window_update(0, 1 << 20)).await;
    let mut last = u64::MAX;
    until("the fountain to stand still", async || {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = moved.load(Ordering::Relaxed);
        (std::mem::replace(&mut last, now) == now && now > 0).then_some(())
    })
    .await;
    assert!(last < MOST, "{last} bytes for a caller that reads nothing");
    raw.send(&frames::get(3)).await;
    assert_eq!(raw.status(3).await, Some(200));
    raw.send(&rst_stream(1, 8)).await;
    until("its end", async || (fountain.open() == 0).then_some(())).await;
}

/// Draining waits for tunnels as long as it waits for anything, and tells that there are no others.
#[tokio::test]
async fn draining_lets_tunnels_end() {
    let echo = echo_bytes().await;
    let mut proxy = Mesh::default().service("store", "tcp", &[echo.address]).start().await;
    let sender = http2::connect(&proxy).await;
    let (mut outgoing, mut incoming) = tunnel(&sender, "store").await.unwrap();
    proxy.signal(rustix::process::Signal::TERM);
    until("the farewell", async || sender.clone().ready().await.is_err().then_some(())).await;
    outgoing.send_data(Bytes::from_static(b"still"), true).unwrap();
    assert_eq!(receive(&mut incoming).await.unwrap(), b"still");
    drop(sender);
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert_eq!(proxy.last_outcome(1).await, (200, "-".to_owned()));
}

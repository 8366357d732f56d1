//! Bodies that are large, slow, cut off, or answered before they are complete (FAULTS 19, 22, 27).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    client::Wire,
    frames::{self, RST_STREAM, Raw},
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

const SIZE: u64 = 64 << 20;
/// What a proxy may hold more than before while a slow reader has it by the throat: buffers and windows of one
/// exchange are some 100 KiB; the rest is the allocator's.
const GROWTH: u64 = 32 << 20;
const CHUNK: usize = 64 * 1024;

/// Answers with 64 MiB as fast as they are taken, counting them.
async fn fountain() -> (Origin, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let origin = Origin::raw(move |mut stream, _| {
        let counter = counter.clone();
        async move {
            if origin::read_request(&mut stream).await.is_none() {
                return;
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let chunk = vec![b'x'; CHUNK];
            for _ in 0..SIZE / CHUNK as u64 {
                if stream.write_all(&chunk).await.is_err() {
                    return;
                }
                counter.fetch_add(CHUNK as u64, Ordering::Relaxed);
            }
            origin::drain(&mut stream).await;
        }
    })
    .await;
    (origin, sent)
}

/// Waits until nothing moves any more, and tells how much had moved by then.
async fn stalled(moved: &AtomicU64) -> u64 {
    let mut last = u64::MAX;
    until("backpressure", async || {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = moved.load(Ordering::Relaxed);
        (now == std::mem::replace(&mut last, now)).then_some(now)
    })
    .await
}

async fn before(origin: &Origin, protocol: &str) -> Proxy {
    Mesh::default().service("shop", protocol, &[origin.address]).start().await
}

#[tokio::test]
async fn a_slow_reader_of_a_response_costs_no_memory() {
    let (origin, sent) = fountain().await;
    let proxy = before(&origin, "http").await;
    proxy.page("/ready").await;
    let resident = proxy.resident();
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_eq!(wire.head().await.unwrap().status, 200);
    let ahead = stalled(&sent).await;
    assert!(ahead < SIZE, "the origin was never made to wait");
    let grown = proxy.resident().saturating_sub(resident);
    assert!(grown < GROWTH, "{grown} bytes grown with {ahead} under way");
    let mut received = wire.unread.len() as u64;
    let mut chunk = vec![0; CHUNK];
    while received < SIZE {
        received += wire.stream.read(&mut chunk).await.unwrap() as u64;
    }
    let grown = proxy.resident().saturating_sub(resident);
    assert!(grown < GROWTH, "{grown} bytes grown");
    proxy.quiet("default/shop:80").await;
    assert_eq!(proxy.access_log(1).await[0]["bytes_sent"], SIZE);
}

#[tokio::test]
async fn a_slow_reader_of_a_request_costs_no_memory() {
    let (go, gone) = tokio::sync::watch::channel(false);
    let origin = Origin::raw(move |mut stream, _| {
        let mut gone = gone.clone();
        async move {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            gone.wait_for(|go| *go).await.unwrap();
            let (mut chunk, mut total) = (vec![0; CHUNK], 0);
            while total < SIZE {
                total += stream.read(&mut chunk).await.unwrap() as u64;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            origin::drain(&mut stream).await;
        }
    })
    .await;
    let proxy = before(&origin, "http").await;
    proxy.page("/ready").await;
    let resident = proxy.resident();
    let stream = TcpStream::connect(proxy.outbound).await.unwrap();
    let (read, mut write) = stream.into_split();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let sending = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {SIZE}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let chunk = vec![b'x'; CHUNK];
        for _ in 0..SIZE / CHUNK as u64 {
            write.write_all(&chunk).await.unwrap();
            counter.fetch_add(CHUNK as u64, Ordering::Relaxed);
        }
        write
    });
    let ahead = stalled(&sent).await;
    assert!(ahead < SIZE, "the caller was never made to wait");
    let grown = proxy.resident().saturating_sub(resident);
    assert!(grown < GROWTH, "{grown} bytes grown with {ahead} under way");
    go.send_replace(true);
    let write = sending.await.unwrap();
    let mut wire = Wire { stream: read.reunite(write).unwrap(), unread: Vec::new() };
    assert_eq!(wire.answer().await.status, 200);
    let grown = proxy.resident().saturating_sub(resident);
    assert!(grown < GROWTH, "{grown} bytes grown");
    assert_eq!(proxy.access_log(1).await[0]["bytes_received"], SIZE);
}

/// One stream that nobody reads must neither fill memory nor stop its siblings.
#[tokio::test]
async fn a_slow_stream_stops_only_itself() {
    let (origin, sent) = fountain().await;
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[origin.address])
        .service("echo", "http", &[echo.address])
        .start()
        .await;
    let sender = crate::http2::connect(&proxy).await;
    let resident = proxy.resident();
    let mut unread = Vec::new();
    for _ in 0..4 {
        let mut sender = sender.clone().ready().await.unwrap();
        let request = http::Request::get("http://shop/").body(()).unwrap();
        unread.push(sender.send_request(request, true).unwrap().0.await.unwrap());
    }
    assert!(stalled(&sent).await < 4 * SIZE);
    let request = http::Request::get("http://echo/").body(()).unwrap();
    let answer = crate::http2::ask(&crate::http2::connect(&proxy).await, request, b"").await;
    assert_eq!(answer.status(), 200);
    let grown = proxy.resident().saturating_sub(resident);
    assert!(grown < GROWTH, "{grown} bytes grown");
    drop(unread);
    proxy.quiet("default/shop:80").await;
    until("the connections to close", async || (origin.open() == 0).then_some(())).await;
}

/// Many callers share one upstream connection: those that do not read must leave room on it for those that do.
#[tokio::test]
async fn slow_readers_share_a_connection_with_fast_ones() {
    let origin = Origin::raw(|stream, _| async move {
        let mut connection = crate::http2::serve(stream).await;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let length = if request.uri().path() == "/large" { 4 << 20 } else { 10 };
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(vec![0; length].into(), true).unwrap();
        }
    })
    .await;
    let proxy = before(&origin, "http2").await;
    let mut slow = Vec::new();
    for _ in 0..16 {
        let mut wire = crate::http2::connect(&proxy).await.ready().await.unwrap();
        let request = http::Request::get("http://shop/large").body(()).unwrap();
        slow.push(wire.send_request(request, true).unwrap().0.await.unwrap());
    }
    for _ in 0..3 {
        let request = http::Request::get("http://shop/small").body(()).unwrap();
        let answer = crate::http2::ask(&crate::http2::connect(&proxy).await, request, b"").await;
        assert_eq!(answer.body().len(), 10);
    }
    assert_eq!(origin.accepted(), 1);
}

/// As many callers as share a connection, and none of them reads a byte: there is still room on it for one that does.
#[tokio::test]
async fn a_connection_full_of_callers_that_read_nothing_serves_one_more() {
    const UNREAD: u64 = 99;
    const WINDOW: u64 = 64 * 1024;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let origin = Origin::raw(move |stream, _| {
        let counter = counter.clone();
        async move {
            let mut connection = crate::http2::serve(stream).await;
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                if request.uri().path() != "/large" {
                    stream.send_data(vec![0; 10].into(), true).unwrap();
                    continue;
                }
                let counter = counter.clone();
                tokio::spawn(async move {
                    stream.reserve_capacity(4 << 20);
                    while let Some(Ok(room)) =
                        std::future::poll_fn(|context| stream.poll_capacity(context)).await
                    {
                        counter.fetch_add(room as u64, Ordering::Relaxed);
                        stream.send_data(vec![0; room].into(), false).unwrap();
                    }
                });
            }
        }
    })
    .await;
    let proxy = before(&origin, "http2").await;
    let sender = crate::http2::connect(&proxy).await;
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        let mut sender = sender.clone().ready().await.unwrap();
        let request = http::Request::get("http://shop/large").body(()).unwrap();
        unread.push(sender.send_request(request, true).unwrap().0.await.unwrap());
    }
    let held = stalled(&sent).await;
    assert!(
        held >= UNREAD * WINDOW,
        "{held} bytes: the connection was full before its streams were"
    );
    let request = http::Request::get("http://shop/small").body(()).unwrap();
    let answer = crate::http2::ask(&crate::http2::connect(&proxy).await, request, b"").await;
    assert_eq!(answer.body().len(), 10);
    assert_eq!(origin.accepted(), 1);
}

/// A caller that asks and takes nothing holds what is held upstream for it until its deadline, and never for ever.
#[tokio::test]
async fn an_answer_that_nobody_takes_ends() {
    crate::mesh::at_any_pace(ends_what_nobody_takes).await;
}

async fn ends_what_nobody_takes(slower: u32) {
    for (seconds, timeout) in [(slower, "300"), (3600, "1")] {
        let (origin, _) = fountain().await;
        let proxy = Mesh::default()
            .service("shop", "http", &[origin.address])
            .policy("shop", &format!("timeouts: {{request: {seconds}s}}"))
            .arguments(&["--send-timeout", timeout])
            .start()
            .await;
        for http2 in [true, false] {
            let mut raw = None;
            let mut wire = None;
            match http2 {
                true => {
                    let caller = raw.insert(Raw::with_settings(&proxy, &[(4, 0)]).await);
                    caller.send(&frames::get(1)).await;
                    assert_eq!(caller.status(1).await, Some(200));
                    caller.until(|frame| (frame.kind, frame.stream) == (RST_STREAM, 1)).await;
                }
                false => {
                    let caller = wire.insert(Wire::connect(proxy.outbound).await);
                    caller.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
                    assert_eq!(caller.head().await.unwrap().status, 200);
                }
            }
            until("the upstream connection to close", async || (origin.open() == 0).then_some(()))
                .await;
            let turn = if http2 { 1 } else { 2 };
            assert_eq!(
                proxy.last_outcome(turn).await,
                (200, "DT".to_owned()),
                "{seconds} {timeout}"
            );
            proxy.quiet("default/shop:80").await;
            let shown = proxy.cluster("default/shop:80").await;
            assert_eq!(shown["endpoints"][0]["health"]["failures"], 0, "{shown}");
        }
    }
}

/// Small messages that nobody reads: many frames, few bytes. They are held back, not answered by an end of the
/// connection that other calls share.
#[tokio::test]
async fn small_messages_wait_for_a_slow_reader() {
    const MESSAGES: usize = 60_000;
    let origin = Origin::raw(|stream, _| async move {
        let mut connection = crate::http2::serve(stream).await;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let response = http::Response::new(());
            let mut stream = respond.send_response(response, false).unwrap();
            tokio::spawn(async move {
                for _ in 0..MESSAGES {
                    stream.reserve_capacity(10);
                    let capacity = std::future::poll_fn(|context| stream.poll_capacity(context));
                    if !matches!(capacity.await, Some(Ok(_))) {
                        return;
                    }
                    stream.send_data(bytes::Bytes::from_static(b"0123456789"), false).unwrap();
                    tokio::task::yield_now().await;
                }
                let _ = stream.send_data(bytes::Bytes::new(), true);
            });
        }
    })
    .await;
    let proxy = before(&origin, "http2").await;
    let mut sender = crate::http2::connect(&proxy).await.ready().await.unwrap();
    let request = http::Request::get("http://shop/").body(()).unwrap();
    let mut body = sender.send_request(request, true).unwrap().0.await.unwrap().into_body();
    // Long enough for every buffer on the way to fill, were it not for the windows.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap_or_else(|error| panic!("after {received} bytes: {error}"));
        body.flow_control().release_capacity(data.len()).unwrap();
        received += data.len();
    }
    assert_eq!(received, MESSAGES * 10);
    assert_eq!(proxy.last_outcome(1).await, (200, "-".to_owned()));
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_arrives() {
    let hasty = Origin::raw(|mut stream, _| async move {
        let mut some = [0; 1024];
        let _ = stream.read(&mut some).await;
        let answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!";
        stream.write_all(answer).await.unwrap();
        origin::drain(&mut stream).await;
    })
    .await;
    let proxy = before(&hasty, "http").await;
    for _ in 0..3 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(format!(
            "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {SIZE}\r\n\r\nbeginning"
        ))
        .await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (413, "no!"));
    }
    proxy.quiet("default/shop:80").await;
    assert_eq!(hasty.accepted(), 3, "a connection with half a request on it is not used again");
}

/// As above, but the origin keeps its connection open: what is left of the request must not become the next one.
#[tokio::test]
async fn half_a_request_is_never_read_as_the_next_one() {
    let hasty = Origin::raw(|mut stream, number| async move {
        let mut some = [0; 64 * 1024];
        while let Ok(read @ 1..) = stream.read(&mut some).await {
            let text = String::from_utf8_lossy(&some[..read]);
            assert!(!text.contains("/smuggled") || number > 1, "{text}");
            if text.contains("HTTP/1.1\r\n") {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
            }
        }
    })
    .await;
    let proxy = before(&hasty, "http").await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\nbeginning").await;
    assert_eq!(wire.answer().await.status, 200);
    let mut other = Wire::connect(proxy.outbound).await;
    assert_eq!(other.ask("GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
    assert_eq!(hasty.accepted(), 2);
}

#[tokio::test]
async fn a_caller_that_gives_up_in_its_body_leaves_nothing_behind() {
    let origin = Origin::raw(|mut stream, number| async move {
        if number == 1 {
            origin::drain(&mut stream).await;
        } else {
            while origin::read_request(&mut stream).await.is_some() {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        }
    })
    .await;
    let proxy = before(&origin, "http").await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\nbeginning").await;
    until("the request", async || (origin.open() == 1).then_some(())).await;
    drop(wire);
    until("the upstream connection to close", async || (origin.open() == 0).then_some(())).await;
    proxy.quiet("default/shop:80").await;
    let (status, flag) = proxy.last_outcome(1).await;
    assert!(["DC", "DPE"].contains(&flag.as_str()), "{status} {flag}: the caller's doing");
    proxy.serves("shop").await;
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn a_caller_that_gives_up_in_the_response_leaves_nothing_behind() {
    let (origin, _) = fountain().await;
    let proxy = before(&origin, "http").await;
    for reset in [false, true] {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert_eq!(wire.head().await.unwrap().status, 200);
        if reset {
            wire.stream.set_zero_linger().unwrap();
        }
        drop(wire);
        until("the upstream connection to close", async || (origin.open() == 0).then_some(()))
            .await;
        proxy.quiet("default/shop:80").await;
    }
    for line in proxy.access_log(2).await {
        assert_eq!(line["response_flags"], "DC");
    }
    let cluster = proxy.cluster("default/shop:80").await;
    assert_eq!(cluster["connections"], 0);
}

#[tokio::test]
async fn a_caller_that_gives_up_while_waiting_leaves_nothing_behind() {
    let silent = Origin::raw(|mut stream, _| async move {
        origin::drain(&mut stream).await;
    })
    .await;
    let proxy = before(&silent, "http").await;
    for (turn, reset) in [false, true].into_iter().enumerate() {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        until("the request", async || (silent.open() == 1).then_some(())).await;
        if reset {
            wire.stream.set_zero_linger().unwrap();
        }
        drop(wire);
        until("the upstream connection to close", async || (silent.open() == 0).then_some(()))
            .await;
        proxy.quiet("default/shop:80").await;
        assert_eq!(proxy.last_outcome(turn + 1).await.1, "DC");
    }
}

/// FAULTS 22: a truncated response is never passed on as a complete one, in whatever way it told its length.
#[tokio::test]
async fn truncation_is_visible_to_the_caller() {
    for (response, name) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this", "length"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n", "chunks"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly", "in a chunk"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n0\r\n",
            "last chunk",
        ),
    ] {
        let origin = Origin::canned_once(response).await;
        let proxy = before(&origin, "http").await;
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        let cut = wire.try_answer().await.expect_err(name);
        // A head that was not sent yet when the body broke off need not be sent at all.
        assert!([0, 200].contains(&cut.answer.status), "{name}: {}", cut.answer.status);
        assert_eq!(proxy.last_outcome(1).await, (200, "UC".to_owned()), "{name}");

        let mut sender = crate::http2::connect(&proxy).await.ready().await.unwrap();
        let request = http::Request::get("http://shop/").body(()).unwrap();
        // Here, too, the stream may be reset before its head has left.
        let Ok(response) = sender.send_request(request, true).unwrap().0.await else { continue };
        let mut body = response.into_body();
        let end = loop {
            match body.data().await {
                Some(Ok(_)) => continue,
                end => break end,
            }
        };
        assert!(matches!(end, Some(Err(_))), "{name}: the stream ended as if complete");
    }
}

/// A body without a length ends with its connection; that is all its sender can say.
#[tokio::test]
async fn a_response_that_ends_with_its_connection_is_complete() {
    let origin = Origin::canned_once("HTTP/1.1 200 OK\r\n\r\nall of it").await;
    let proxy = before(&origin, "http").await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let answer = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_eq!(answer.text(), "all of it");
    assert_eq!(proxy.last_outcome(1).await, (200, "-".to_owned()));
}

/// A request that is cut off must never look complete to the origin.
#[tokio::test]
async fn a_truncated_request_is_visible_to_the_origin() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::raw(move |mut stream, _| {
        let told = told.clone();
        async move {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            let _ = told.send(String::from_utf8(bytes).unwrap());
        }
    })
    .await;
    let proxy = before(&origin, "http").await;
    for framing in
        ["Content-Length: 10\r\n\r\n12345", "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"]
    {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: shop\r\n{framing}")).await;
        wire.finish().await;
        let seen = heard.recv().await.unwrap();
        assert!(!seen.ends_with("\r\n0\r\n\r\n"), "{seen:?}");
        assert!(seen.is_empty() || seen.contains("12345") && !seen.contains("content-length: 5"));
    }
}

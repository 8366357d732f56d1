//! HTTP/2 upstreams that say goodbye, refuse, or break the protocol (FAULTS 26), frame by frame.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    client,
    frames::*,
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

/// What an upstream sends once it has been asked for something, given the connection's number.
type Script = Arc<dyn Fn(usize) -> Vec<Frame> + Send + Sync>;

/// Reads the preface, sends settings, waits for the first HEADERS, then plays the script.
async fn scripted(
    settings_sent: Frame,
    script: impl Fn(usize) -> Vec<Frame> + Send + Sync + 'static,
) -> Origin {
    let script: Script = Arc::new(script);
    Origin::raw(move |stream, number| {
        let (script, hello) = (script.clone(), settings_sent.clone());
        async move {
            // Whatever goes wrong here is the proxy's good right: it may close at any time.
            let _ = play(stream, number, &script, &hello).await;
        }
    })
    .await
}

async fn play(
    mut stream: TcpStream,
    number: usize,
    script: &Script,
    hello: &Frame,
) -> std::io::Result<()> {
    stream.read_exact(&mut [0; PREFACE.len()]).await?;
    stream.write_all(&hello.bytes()).await?;
    stream.write_all(&Frame::new(SETTINGS, ACK, 0, []).bytes()).await?;
    let mut calls = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        stream.read_exact(&mut vec![0; length]).await?;
        if head[3] != HEADERS {
            continue;
        }
        calls += 1;
        let called = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        // Later calls on the same connection are answered: only the first one meets the fault.
        let answer = if calls == 1 { script(number) } else { ok(called) };
        for frame in answer {
            stream.write_all(&frame.bytes()).await?;
        }
    }
}

fn ok(stream: u32) -> Vec<Frame> {
    vec![Frame::new(HEADERS, END_HEADERS, stream, [0x88]), data(stream, END_STREAM, "ok")]
}

fn goaway(last: u32, code: u32) -> Frame {
    Frame::new(GOAWAY, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
}

async fn before(origin: &Origin) -> Proxy {
    within("1m", origin).await
}

/// The same; whoever never answers is given up after `limit`.
async fn within(limit: &str, origin: &Origin) -> Proxy {
    Mesh::default()
        .service("shop", "http2", &[origin.address])
        .policy("shop", &format!("timeouts: {{request: {limit}}}"))
        .start()
        .await
}

/// What was certainly not processed is asked again, on a new connection.
#[tokio::test]
async fn unprocessed_requests_move_on() {
    for (name, first) in [
        ("goodbye", vec![goaway(0, 0)]),
        ("refused", vec![rst_stream(1, REFUSED_STREAM), goaway(0, 0)]),
    ] {
        let origin = scripted(settings(&[]), move |number| match number {
            1 => first.clone(),
            _ => ok(1),
        })
        .await;
        let proxy = before(&origin).await;
        let answer = client::get(proxy.outbound, "shop", "/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{name}");
        let line = &proxy.access_log(1).await[0];
        assert_eq!(line["response_flags"], "-", "{name}");
        // A third when the goodbye had not been read by the time of the second.
        assert!([2, 3].contains(&line["attempts"].as_u64().unwrap()), "{name}: {line}");
    }
}

/// What may have been processed is not; the caller gets an error and the next one a new connection.
#[tokio::test]
async fn broken_upstreams_fail_their_own_call_only() {
    for (name, first) in [
        ("calm", vec![goaway(0, ENHANCE_YOUR_CALM)]),
        ("cancelled", vec![rst_stream(1, 8), goaway(1, 0)]),
        ("internal", vec![rst_stream(1, 2), goaway(1, 0)]),
        ("DATA before HEADERS", vec![data(1, 0, "x")]),
        ("no status", vec![Frame::new(HEADERS, END_HEADERS, 1, block(&[("x-a", "b")]))]),
        (
            "pushed",
            vec![Frame::new(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                [&2u32.to_be_bytes()[..], &block(&GET)].concat(),
            )],
        ),
        ("a stream of its own", ok(2)),
        ("HPACK", vec![Frame::new(HEADERS, END_HEADERS, 1, [0xff, 0xff, 0xff])]),
        ("frame size", vec![Frame::new(DATA, 0, 1, vec![0; 20_000])]),
    ] {
        let origin = scripted(settings(&[]), move |number| match number {
            1 => first.clone(),
            _ => ok(1),
        })
        .await;
        let proxy = before(&origin).await;
        let answer = client::get(proxy.outbound, "shop", "/").await;
        assert!([502, 503].contains(&answer.status), "{name}: {}", answer.status);
        let (_, flag) = proxy.last_outcome(1).await;
        assert!(["UC", "UPE"].contains(&flag.as_str()), "{name}: {flag}");
        proxy.quiet("default/shop:80").await;
        assert_eq!(
            client::get(proxy.outbound, "shop", "/").await.status,
            200,
            "{name}: the next call"
        );
    }
}

/// After the head only the end of the connection can tell the caller.
#[tokio::test]
async fn a_reset_in_the_body_is_visible() {
    for code in [2, NO_ERROR] {
        let origin = scripted(settings(&[]), move |_| {
            let head = Frame::new(HEADERS, END_HEADERS, 1, [0x88]);
            vec![head, data(1, 0, "half"), rst_stream(1, code)]
        })
        .await;
        let proxy = before(&origin).await;
        let mut wire = client::Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        let cut = wire.try_answer().await.expect_err("half an answer");
        // A head that was not sent yet when the body broke off need not be sent at all.
        assert!([0, 200].contains(&cut.answer.status), "{}", cut.answer.status);
        assert_eq!(proxy.last_outcome(1).await, (200, "UC".to_owned()), "code {code}");
    }
}

/// The same for a caller over HTTP/2: a reset that says that something is wrong, whatever the upstream has said.
#[tokio::test]
async fn half_an_answer_is_an_error_to_callers_of_http2() {
    let head = || Frame::new(HEADERS, END_HEADERS, 1, [0x88]);
    let stated = || headers(1, 0, &[(":status", "200"), ("content-length", "10")]);
    for (name, rest) in [
        ("cancelled", vec![head(), data(1, 0, "half"), rst_stream(1, 8)]),
        ("no error", vec![head(), data(1, 0, "half"), rst_stream(1, NO_ERROR)]),
        ("disowned", vec![head(), data(1, 0, "half"), goaway(0, NO_ERROR)]),
        ("calm", vec![head(), data(1, 0, "half"), goaway(0, ENHANCE_YOUR_CALM)]),
        ("too short", vec![stated(), data(1, END_STREAM, "half")]),
        ("too long", vec![stated(), data(1, END_STREAM, "more than ten bytes")]),
        ("trailers too soon", vec![stated(), headers(1, END_STREAM, &[("x-end", "1")])]),
    ] {
        let script = rest.clone();
        let origin = scripted(settings(&[]), move |_| script.clone()).await;
        let proxy = before(&origin).await;
        let mut raw = Raw::connect(&proxy).await;
        raw.send(&get(1)).await;
        let end = raw
            .until(|frame| {
                frame.stream == 1 && (frame.kind == RST_STREAM || frame.flags & END_STREAM != 0)
            })
            .await;
        let told = match end.kind {
            RST_STREAM => end.code() != NO_ERROR,
            // Nothing had been sent yet: an answer of our own.
            _ => proxy.last_outcome(1).await.0 >= 500,
        };
        assert!(told, "{name}: {end:?}");
        let (_, flag) = proxy.last_outcome(1).await;
        assert!(["UC", "UPE"].contains(&flag.as_str()), "{name}: {flag}");
        proxy.quiet("default/shop:80").await;
    }
}

/// A goodbye that names the stream lets it end; later calls take another connection.
#[tokio::test]
async fn a_goodbye_in_the_body_lets_it_end() {
    let origin = scripted(settings(&[]), |number| match number {
        1 => vec![
            Frame::new(HEADERS, END_HEADERS, 1, [0x88]),
            data(1, 0, "o"),
            goaway(1, NO_ERROR),
            data(1, END_STREAM, "k"),
        ],
        _ => ok(1),
    })
    .await;
    let proxy = before(&origin).await;
    for turn in 1..=2 {
        let answer = client::get(proxy.outbound, "shop", "/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        assert_eq!(proxy.last_outcome(turn).await, (200, "-".to_owned()));
    }
    until("the first connection to close", async || (origin.accepted() == 2).then_some(())).await;
}

/// Trailers need no body before them.
#[tokio::test]
async fn trailers_may_follow_the_head() {
    let head = Frame::new(HEADERS, END_HEADERS, 1, [0x88]);
    for body in [vec![], vec![data(1, 0, [])], vec![data(1, 0, "ok")]] {
        let answer = [vec![head.clone()], body.clone()].concat();
        let trailers = headers(1, END_STREAM, &[("x-end", "1")]);
        let script = [answer, vec![trailers]].concat();
        let origin = scripted(settings(&[]), move |_| script.clone()).await;
        let proxy = before(&origin).await;
        let mut raw = Raw::connect(&proxy).await;
        raw.send(&get(1)).await;
        assert_eq!(raw.status(1).await, Some(200));
        let end = raw.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;
        assert_eq!(end.kind, HEADERS, "{body:?}: the trailers are the end");
        assert_eq!(proxy.last_outcome(1).await, (200, "-".to_owned()), "{body:?}");
    }
}

/// Whoever has answered in full may say that it does not want the rest of the request (RFC 9113 section 8.1).
#[tokio::test]
async fn a_reset_after_the_end_takes_nothing_away() {
    for (name, answer) in [
        ("data", ok(1)),
        ("no body", vec![Frame::new(HEADERS, END_HEADERS | END_STREAM, 1, [0x88])]),
        (
            "trailers",
            vec![
                Frame::new(HEADERS, END_HEADERS, 1, [0x88]),
                data(1, 0, "ok"),
                headers(1, END_STREAM, &[("x-end", "1")]),
            ],
        ),
    ] {
        let origin = scripted(settings(&[]), move |_| {
            [answer.clone(), vec![rst_stream(1, NO_ERROR)]].concat()
        })
        .await;
        let proxy = before(&origin).await;
        let mut wire = client::Wire::connect(proxy.outbound).await;
        wire.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nhalf").await;
        assert_eq!(wire.answer().await.status, 200, "{name}");
        assert_eq!(proxy.last_outcome(1).await, (200, "-".to_owned()), "{name}");
    }
}

/// An upstream that lets nobody in: no streams, no window, no answer.
#[tokio::test]
async fn closed_doors_time_out() {
    for (name, hello, request) in [
        ("no streams", settings(&[(3, 0)]), "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"),
        (
            "no window",
            settings(&[(4, 0)]),
            "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody",
        ),
        ("no answer", settings(&[]), "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"),
    ] {
        let origin = scripted(hello, |_| Vec::new()).await;
        let proxy = within("2s", &origin).await;
        let answer = client::ask(proxy.outbound, request).await;
        assert!([503, 504].contains(&answer.status), "{name}: {}", answer.status);
        proxy.quiet("default/shop:80").await;
    }
}

/// Floods from upstream: the connection ends or they are ignored; memory stays, others are served.
#[tokio::test]
async fn floods_from_upstream_are_bounded() {
    for frame in [
        Frame::new(PING, 0, 0, [0; 8]),
        settings(&[(3, 100)]),
        Frame::new(HEADERS, END_HEADERS, 1, block(&[(":status", "103"), ("link", "</x>")])),
        data(1, 0, []),
    ] {
        let flooding = Origin::raw({
            let frame = frame.clone();
            move |mut stream, _| {
                let burst: Vec<u8> = std::iter::repeat_n(frame.bytes(), 500).flatten().collect();
                async move {
                    let mut preface = [0; PREFACE.len()];
                    let _ = stream.read_exact(&mut preface).await;
                    let _ = stream.write_all(&settings(&[]).bytes()).await;
                    let mut head = vec![0; 65_536];
                    let _ = stream.read(&mut head).await;
                    for _ in 0..200 {
                        if stream.write_all(&burst).await.is_err() {
                            return;
                        }
                    }
                    origin::drain(&mut stream).await;
                }
            }
        })
        .await;
        let echo = Origin::echo("a").await;
        let proxy = Mesh::default()
            .service("shop", "http2", &[flooding.address])
            .policy("shop", "timeouts: {request: 2s}")
            .service("echo", "http", &[echo.address])
            .start()
            .await;
        proxy.serves("echo").await;
        let resident = proxy.resident();
        let answer = client::get(proxy.outbound, "shop", "/").await;
        assert!([502, 503, 504].contains(&answer.status), "{}: {}", frame.kind, answer.status);
        proxy.serves("echo").await;
        let grown = proxy.resident().saturating_sub(resident);
        assert!(grown < 32 << 20, "{grown} bytes grown by frames of type {}", frame.kind);
        until("the call to end", async || {
            (proxy.cluster("default/shop:80").await["active"] == 0).then_some(())
        })
        .await;
    }
}

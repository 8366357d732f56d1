//! RFC 9113 (and RFC 7541) as a table: what is sent, and how the proxy must react. The cases are those that the public
//! conformance suites check, stated anew by the sections of the standard.

use std::time::Duration;

use crate::{
    frames::*,
    mesh::{Mesh, Proxy},
    origin::Origin,
};

/// What must come of it.
enum Must {
    /// The connection ends; when a code is told it is one of these.
    EndConnection(&'static [u32]),
    /// The stream is reset, or the connection ends, with one of these codes.
    EndStream(u32, &'static [u32]),
    /// The stream is answered with 200.
    Answer(u32),
    /// Nothing happens; the connection lives.
    Ignore,
    /// As a caller's leave is taken: the connection lives on, or ends in peace.
    Farewell,
}
use Must::*;

struct Case {
    name: &'static str,
    send: Vec<u8>,
    must: Must,
}

fn case(name: &'static str, send: impl IntoIterator<Item = Frame>, must: Must) -> Case {
    Case { name, send: send.into_iter().flat_map(|frame| frame.bytes()).collect(), must }
}

fn bytes(name: &'static str, send: Vec<u8>, must: Must) -> Case {
    Case { name, send, must }
}

/// Plays every case on a connection of its own and tells which fail.
async fn play(cases: Vec<Case>) {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    let mut failures = Vec::new();
    for case in cases {
        if let Err(reaction) = play_one(&proxy, &case).await {
            failures.push(format!("{}: {reaction}", case.name));
        }
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
    proxy.serves("shop").await;
}

async fn play_one(proxy: &Proxy, case: &Case) -> Result<(), String> {
    let mut raw = Raw::connect(proxy).await;
    raw.send_bytes(&case.send).await;
    let mut pongs = 0;
    loop {
        let reaction = raw.reaction().await;
        let good = match (&case.must, &reaction) {
            (EndConnection(_) | EndStream(..), Reaction::ConnectionEnds(None)) => true,
            (EndConnection(codes) | EndStream(_, codes), Reaction::ConnectionEnds(Some(code))) => {
                // h2 says PROTOCOL_ERROR for some errors for which the standard has a name of its own.
                codes.contains(code) || *code == PROTOCOL_ERROR
            }
            (EndStream(stream, codes), Reaction::Reset { stream: reset, code }) => {
                stream == reset && codes.contains(code)
            }
            (Answer(stream), Reaction::Head { stream: answered, status }) => {
                if stream != answered {
                    continue;
                }
                *status == Some(200)
            }
            // An answer to a request of the case's own preparation, or one that is still on its way.
            (EndConnection(_), Reaction::Head { .. } | Reaction::Reset { .. }) => continue,
            (EndStream(stream, _), Reaction::Head { stream: answered, .. })
                if stream != answered =>
            {
                continue;
            }
            // A PING's answer may overtake others; a while later they must have come.
            (Answer(_) | EndConnection(_) | EndStream(..), Reaction::Pong) if pongs < PONGS => {
                pongs += 1;
                pause(pongs).await;
                continue;
            }
            (Ignore | Farewell, Reaction::Pong) => true,
            (Farewell, Reaction::ConnectionEnds(code)) => matches!(code, None | Some(NO_ERROR)),
            (Ignore, Reaction::Head { .. }) => continue,
            _ => false,
        };
        return match (good, &case.must) {
            (true, EndConnection(_)) if !raw.ends().await => {
                Err("the connection stays open".to_owned())
            }
            (true, _) => Ok(()),
            (false, _) => Err(format!("{reaction:?}")),
        };
    }
}

/// So often it is looked again for what a PING's answer overtook: for a minute in all.
const PONGS: u64 = 300;

async fn pause(pongs: u64) {
    tokio::time::sleep(Duration::from_millis((10 * pongs).min(200))).await;
}

/// How the peer reacts but for pongs, which may overtake what was sent before.
async fn real_reaction(raw: &mut Raw) -> Reaction {
    for pongs in 0..PONGS {
        match raw.reaction().await {
            Reaction::Pong => pause(pongs).await,
            reaction => return reaction,
        }
    }
    Reaction::Pong
}

const LIMIT: usize = 16_384;

fn begin(stream: u32) -> Frame {
    Frame::new(HEADERS, END_STREAM, stream, block(&GET))
}

fn rest(flags: u8, stream: u32) -> Frame {
    Frame::new(CONTINUATION, flags, stream, block(&[("x-a", "b")]))
}

fn priority(stream: u32, depends: u32) -> Frame {
    Frame::new(PRIORITY, 0, stream, [&depends.to_be_bytes()[..], &[255]].concat())
}

#[tokio::test]
async fn frames() {
    let large = Frame::new(DATA, 0, 1, vec![0; LIMIT + 1]);
    let reserved = {
        let mut bytes = Frame::new(PING, 0, 0, [0; 8]).bytes();
        bytes[5] |= 0x80;
        bytes
    };
    let odd_flags = Frame::new(HEADERS, END_STREAM | END_HEADERS | 0x50, 1, block(&GET));
    let long = block(&[("x-long", &"y".repeat(LIMIT))]);
    let self_dependent = [&1u32.to_be_bytes()[..], &[255], &block(&GET)].concat();
    let padded = [&[200], &block(&GET)[..]].concat();
    play(vec![
        case("4.1 an unknown type is ignored", [Frame::new(0x16, 0, 0, [0; 8])], Ignore),
        case("4.1 unknown flags are ignored", [Frame::new(PING, 0x16, 0, [0; 8])], Ignore),
        bytes("4.1 the reserved bit is ignored", reserved, Ignore),
        case(
            "4.2 DATA of the largest size",
            [post(1), data(1, END_STREAM, vec![0; LIMIT])],
            Answer(1),
        ),
        case("4.2 DATA that is too large", [post(1), large], EndStream(1, &[FRAME_SIZE_ERROR])),
        case(
            "4.2 HEADERS that are too large",
            [Frame::new(HEADERS, 5, 1, long)],
            EndConnection(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "5.3.1 HEADERS that depend on themselves",
            [Frame::new(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, self_dependent)],
            EndStream(1, &[PROTOCOL_ERROR]),
        ),
        case(
            "5.3.1 PRIORITY that depends on itself",
            [priority(3, 3)],
            EndStream(3, &[PROTOCOL_ERROR]),
        ),
        case("6.1 DATA on no stream", [data(0, 0, "x")], EndConnection(&[PROTOCOL_ERROR])),
        case(
            "6.1 padding that is too long",
            [post(1), data(1, PADDED | END_STREAM, [20, 0, 0])],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case("6.1 padding", [post(1), data(1, PADDED | END_STREAM, [2, b'x', 0, 0])], Answer(1)),
        case("6.2 HEADERS on no stream", [get(0)], EndConnection(&[PROTOCOL_ERROR])),
        case(
            "6.2 HEADERS padded too long",
            [Frame::new(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, padded)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.2 HEADERS too short for their padding",
            [Frame::new(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, [])],
            EndConnection(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR]),
        ),
        case("6.3 PRIORITY", [priority(1, 0), get(1)], Answer(1)),
        case("6.3 PRIORITY on no stream", [priority(0, 1)], EndConnection(&[PROTOCOL_ERROR])),
        case(
            "6.3 PRIORITY of another length",
            [get(1), Frame::new(PRIORITY, 0, 1, [0; 4])],
            EndStream(1, &[FRAME_SIZE_ERROR]),
        ),
        case("6.4 RST_STREAM on no stream", [rst_stream(0, 8)], EndConnection(&[PROTOCOL_ERROR])),
        case(
            "6.4 RST_STREAM on an idle stream",
            [rst_stream(1, 8)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.4 RST_STREAM of another length",
            [post(1), Frame::new(RST_STREAM, 0, 1, [0; 3])],
            EndConnection(&[FRAME_SIZE_ERROR]),
        ),
        bytes("4.1 fields with a flag nobody knows", odd_flags.bytes(), Answer(1)),
    ])
    .await;
}

/// Sections 4.3 and 6.10: a header block is one unit, whatever comes between its frames.
#[tokio::test]
async fn header_blocks() {
    play(vec![
        case(
            "4.3 PRIORITY within a block",
            [begin(1), priority(1, 0), rest(END_HEADERS, 1)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "4.3 another stream within a block",
            [begin(1), begin(3)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "5.5 an extension within a block",
            [begin(1), Frame::new(0x16, 0, 0, []), rest(END_HEADERS, 1)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.10 blocks in several frames",
            [begin(1), rest(0, 1), rest(END_HEADERS, 1)],
            Answer(1),
        ),
        case(
            "6.10 DATA within a block",
            [begin(1), rest(0, 1), data(1, 0, "x")],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.10 CONTINUATION on no stream",
            [begin(1), rest(END_HEADERS, 0)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.10 CONTINUATION behind a whole block",
            [post(1), rest(END_HEADERS, 1)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.10 CONTINUATION behind the last one",
            [Frame::new(HEADERS, 0, 1, block(&POST)), rest(END_HEADERS, 1), rest(END_HEADERS, 1)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.10 CONTINUATION behind DATA",
            [post(1), data(1, 0, "x"), rest(END_HEADERS, 1)],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.6 PUSH_PROMISE from a client",
            [
                get(1),
                Frame::new(
                    PUSH_PROMISE,
                    END_HEADERS,
                    1,
                    [&2u32.to_be_bytes()[..], &block(&GET)].concat(),
                ),
            ],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
    ])
    .await;
}

#[tokio::test]
async fn compression() {
    let with = |bytes: &[u8]| [Frame::new(HEADERS, 5, 1, [&block(&GET)[..], bytes].concat())];
    play(vec![
        case(
            "4.3 a block that is no HPACK",
            [Frame::new(HEADERS, 5, 1, [0x40, 1, 0x80])],
            EndConnection(&[COMPRESSION_ERROR]),
        ),
        case(
            "RFC 7541 2.3.3 an index beyond the table",
            with(&[0xff, 0x80, 1]),
            EndConnection(&[COMPRESSION_ERROR]),
        ),
        case(
            "RFC 7541 4.2 an update at the end of a block",
            with(&[0x20]),
            EndConnection(&[COMPRESSION_ERROR]),
        ),
        case(
            "RFC 7541 5.2 padding of zeros",
            with(b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"),
            EndConnection(&[COMPRESSION_ERROR]),
        ),
        case(
            "RFC 7541 5.2 padding of more than 7 bits",
            with(b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"),
            EndConnection(&[COMPRESSION_ERROR]),
        ),
        case("RFC 7541 6.1 index 0", with(&[0x80]), EndConnection(&[COMPRESSION_ERROR])),
        case(
            "RFC 7541 6.3 a table larger than allowed",
            [Frame::new(HEADERS, 5, 1, [&[0x3f, 0xe1, 0xff, 3][..], &block(&GET)].concat())],
            EndConnection(&[COMPRESSION_ERROR]),
        ),
    ])
    .await;
}

#[tokio::test]
async fn stream_states() {
    let finished = || [get(1)];
    let reset = || [post(1), rst_stream(1, 8)];
    let rest = Frame::new(CONTINUATION, END_HEADERS, 1, block(&[("x-a", "b")]));
    let then = |before: &[Frame], frame: Frame| [before, &[frame]].concat();
    play(vec![
        case("5.1 idle: DATA", [data(1, END_STREAM, "x")], EndConnection(&[PROTOCOL_ERROR])),
        case("5.1 idle: RST_STREAM", [rst_stream(1, 8)], EndConnection(&[PROTOCOL_ERROR])),
        case("5.1 idle: WINDOW_UPDATE", [window_update(1, 100)], EndConnection(&[PROTOCOL_ERROR])),
        case("5.1 idle: CONTINUATION", [rest.clone()], EndConnection(&[PROTOCOL_ERROR])),
        case(
            "5.1 half-closed: DATA",
            then(&finished(), data(1, END_STREAM, "x")),
            EndStream(1, &[STREAM_CLOSED]),
        ),
        case("5.1 half-closed: HEADERS", then(&finished(), get(1)), EndStream(1, &[STREAM_CLOSED])),
        case(
            "5.1 half-closed: CONTINUATION",
            then(&finished(), rest.clone()),
            EndConnection(&[PROTOCOL_ERROR, STREAM_CLOSED]),
        ),
        case(
            "5.1 reset: DATA",
            then(&reset(), data(1, END_STREAM, "x")),
            EndStream(1, &[STREAM_CLOSED]),
        ),
        case("5.1 reset: HEADERS", then(&reset(), get(1)), EndStream(1, &[STREAM_CLOSED])),
        case(
            "5.1 reset: CONTINUATION",
            then(&reset(), rest.clone()),
            EndConnection(&[PROTOCOL_ERROR, STREAM_CLOSED]),
        ),
        case("5.1.1 an even number", [get(2)], EndConnection(&[PROTOCOL_ERROR])),
        case("5.1.1 a number below the last", [get(5), get(3)], EndConnection(&[PROTOCOL_ERROR])),
        case(
            "6.1 DATA behind the end",
            then(&finished(), data(1, 0, "x")),
            EndStream(1, &[STREAM_CLOSED]),
        ),
        case(
            "7 an unknown error code in RST_STREAM",
            [post(1), rst_stream(1, 0xff), get(3)],
            Answer(3),
        ),
        case(
            "7 an unknown error code in GOAWAY",
            [Frame::new(GOAWAY, 0, 0, [0, 0, 0, 0, 0, 0, 0, 0xff])],
            Farewell,
        ),
        case(
            "8.1 a second head that ends nothing",
            [post(1), headers(1, 0, &[("x-a", "b")])],
            EndStream(1, &[PROTOCOL_ERROR]),
        ),
    ])
    .await;
}

/// As above, once the response has been sent: the stream is closed on both sides.
#[tokio::test]
async fn closed_streams() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    for (frame, name) in [
        (data(1, END_STREAM, "x"), "DATA"),
        (get(1), "HEADERS"),
        (Frame::new(CONTINUATION, END_HEADERS, 1, block(&[("x-a", "b")])), "CONTINUATION"),
    ] {
        let mut raw = Raw::connect(&proxy).await;
        raw.send(&get(1)).await;
        raw.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;
        raw.send(&frame).await;
        let reaction = real_reaction(&mut raw).await;
        assert!(
            matches!(
                reaction,
                Reaction::ConnectionEnds(None | Some(STREAM_CLOSED | PROTOCOL_ERROR))
                    | Reaction::Reset { stream: 1, code: STREAM_CLOSED }
            ),
            "5.1 closed: {name}: {reaction:?}"
        );
    }
    // These may still be under way when a stream ends, and mean nothing then.
    let mut raw = Raw::connect(&proxy).await;
    raw.send(&get(1)).await;
    raw.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;
    for frame in
        [window_update(1, 10), rst_stream(1, 8), Frame::new(PRIORITY, 0, 1, [0, 0, 0, 0, 1])]
    {
        raw.send(&frame).await;
        assert_eq!(raw.reaction().await, Reaction::Pong);
    }
}

#[tokio::test]
async fn settings_pings_and_windows() {
    play(vec![
        case(
            "6.5 SETTINGS",
            [settings(&[(1, 4096), (2, 0), (3, 100), (4, 65535), (5, 16384), (6, 100)])],
            Ignore,
        ),
        case(
            "6.5 an ACK with a payload",
            [Frame::new(SETTINGS, ACK, 0, [0; 6])],
            EndConnection(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "6.5 SETTINGS on a stream",
            [Frame::new(SETTINGS, 0, 1, [0, 3, 0, 0, 0, 1])],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.5 SETTINGS of another length",
            [Frame::new(SETTINGS, 0, 0, [0; 3])],
            EndConnection(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "6.5.2 ENABLE_PUSH is 0 or 1",
            [settings(&[(2, 2)])],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.5.2 a window above the largest",
            [settings(&[(4, 1 << 31)])],
            EndConnection(&[FLOW_CONTROL_ERROR]),
        ),
        case(
            "6.5.2 frames below the smallest",
            [settings(&[(5, 16_383)])],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.5.2 frames above the largest",
            [settings(&[(5, 1 << 24)])],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case("6.5.2 an unknown setting", [settings(&[(0xff, 1)])], Ignore),
        case(
            "6.7 PING on a stream",
            [Frame::new(PING, 0, 1, [0; 8])],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.7 PING of another length",
            [Frame::new(PING, 0, 0, [0; 6])],
            EndConnection(&[FRAME_SIZE_ERROR]),
        ),
        case("6.7 an ACK nobody waits for", [Frame::new(PING, ACK, 0, *b"unwanted")], Ignore),
        case(
            "6.8 GOAWAY on a stream",
            [Frame::new(GOAWAY, 0, 1, [0; 8])],
            EndConnection(&[PROTOCOL_ERROR]),
        ),
        case(
            "6.8 GOAWAY of another length",
            [Frame::new(GOAWAY, 0, 0, [0; 4])],
            EndConnection(&[FRAME_SIZE_ERROR]),
        ),
        case("6.9 no increment", [window_update(0, 0)], EndConnection(&[PROTOCOL_ERROR])),
        case(
            "6.9 no increment of a stream",
            [post(1), window_update(1, 0)],
            EndStream(1, &[PROTOCOL_ERROR]),
        ),
        case(
            "6.9 WINDOW_UPDATE of another length",
            [Frame::new(WINDOW_UPDATE, 0, 0, [0; 3])],
            EndConnection(&[FRAME_SIZE_ERROR]),
        ),
        case(
            "6.9.1 a window that overflows",
            [window_update(0, 0x7fff_ffff), window_update(0, 0x7fff_ffff)],
            EndConnection(&[FLOW_CONTROL_ERROR]),
        ),
        case(
            "6.9.1 a stream's window that overflows",
            [post(1), window_update(1, 0x7fff_ffff), window_update(1, 0x7fff_ffff)],
            EndStream(1, &[FLOW_CONTROL_ERROR]),
        ),
        case(
            "6.9.2 a window that overflows by a setting",
            [post(1), window_update(1, 0x7fff_ffff - 65_535), settings(&[(4, 0x7fff_ffff)])],
            EndConnection(&[FLOW_CONTROL_ERROR]),
        ),
    ])
    .await;
}

/// 3.4, 6.5.3, 6.7: what a peer owes at once.
#[tokio::test]
async fn settings_and_pings_are_acknowledged_in_order() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    let mut raw = Raw::connect(&proxy).await;
    raw.send(&settings(&[(3, 50), (4, 100), (4, 1)])).await;
    raw.until(|frame| frame.kind == SETTINGS && frame.flags == ACK).await;
    raw.send(&Frame::new(PING, 0, 0, *b"h2spec!!")).await;
    let pong = raw.until(|frame| frame.kind == PING).await;
    assert_eq!((pong.flags, pong.payload.as_slice()), (ACK, &b"h2spec!!"[..]));
    // 6.9.1, 6.5.3: the last of the two windows counts, so the body comes by the byte.
    raw.send(&get(1)).await;
    assert_eq!(raw.status(1).await, Some(200));
    let first = raw.until(|frame| frame.kind == DATA).await;
    assert_eq!(first.payload.len(), 1);
    raw.send(&window_update(1, 2)).await;
    assert_eq!(raw.until(|frame| frame.kind == DATA).await.payload.len(), 2);
}

/// 6.9.2: a smaller initial window can make a stream's negative; data flows again only when it is positive.
#[tokio::test]
async fn windows_may_become_negative() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    let mut raw = Raw::with_settings(&proxy, &[(4, 3)]).await;
    raw.send(&get(1)).await;
    assert_eq!(raw.until(|frame| frame.kind == DATA).await.payload.len(), 3);
    raw.send(&settings(&[(4, 2)])).await;
    raw.send(&window_update(1, 1)).await;
    assert_eq!(raw.reaction().await, Reaction::Pong, "the window is 0 now");
    raw.send(&window_update(1, 1)).await;
    assert_eq!(raw.until(|frame| frame.kind == DATA).await.payload.len(), 1);
    raw.send(&settings(&[(4, 1002)])).await;
    raw.until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;
}

/// 5.1.2, section 10.5: streams above the limit are refused or end the connection.
#[tokio::test]
async fn streams_above_the_limit_are_refused() {
    let silent = Origin::raw(|mut stream, _| async move {
        crate::origin::drain(&mut stream).await;
    })
    .await;
    let proxy = Mesh::default().service("shop", "http", &[silent.address]).start().await;
    let mut raw = Raw::connect(&proxy).await;
    for at in 0..257 {
        raw.send(&get(2 * at + 1)).await;
    }
    let reaction = real_reaction(&mut raw).await;
    assert!(
        matches!(
            reaction,
            Reaction::Reset { stream: 513, code: REFUSED_STREAM | PROTOCOL_ERROR }
                | Reaction::ConnectionEnds(_)
        ),
        "{reaction:?}"
    );
}

#[tokio::test]
async fn malformed_messages() {
    let with = |extra: &[(&'static str, &'static str)]| {
        headers(1, END_STREAM, &[&GET[..], extra].concat())
    };
    let without = |name: &str| {
        let fields: Vec<_> = GET.into_iter().filter(|(other, _)| *other != name).collect();
        headers(1, END_STREAM, &fields)
    };
    let with_path = |path: &str| headers(1, END_STREAM, &[GET[0], GET[1], (":path", path), GET[3]]);
    let posted = |length: &'static str, bodies: &[&str]| {
        let fields = [&POST[..], &[("content-length", length)]].concat();
        let mut frames = vec![headers(1, 0, &fields)];
        for (at, body) in bodies.iter().enumerate() {
            let flags = if at + 1 == bodies.len() { END_STREAM } else { 0 };
            frames.push(data(1, flags, *body));
        }
        frames
    };
    let malformed = || EndStream(1, &[PROTOCOL_ERROR]);
    let mut cases = vec![
        case("8.2.1 a name in upper case", [with(&[("X-A", "b")])], malformed()),
        case("8.2.1 a name with a space", [with(&[("x a", "b")])], malformed()),
        case("8.2.1 a name with a colon", [with(&[("x:a", "b")])], malformed()),
        case("8.2.1 a value with a line break", [with(&[("x-a", "b\r\nc: d")])], malformed()),
        case("8.2.1 a value with NUL", [with(&[("x-a", "b\0c")])], malformed()),
        case("8.2.1 a value with a line feed", [with(&[("x-a", "b\nc")])], malformed()),
        case("8.3 an unknown pseudo-field", [with(&[(":x-a", "b")])], malformed()),
        case("8.3 a response's pseudo-field", [with(&[(":status", "200")])], malformed()),
        case(
            "8.3 a pseudo-field behind others",
            [headers(1, END_STREAM, &[("x-a", "b"), GET[0], GET[1], GET[2], GET[3]])],
            malformed(),
        ),
        case(
            "8.3.1 an empty path",
            [headers(1, END_STREAM, &[GET[0], GET[1], (":path", ""), GET[3]])],
            malformed(),
        ),
        case(
            "8.3.1 a path without a slash",
            [headers(1, END_STREAM, &[GET[0], GET[1], (":path", "shop"), GET[3]])],
            EndStream(1, &[PROTOCOL_ERROR]),
        ),
        case(
            "8.3.1 a path that is more",
            [with_path("/ HTTP/1.1\r\nx-a: b\r\n\r\nGET /evil")],
            malformed(),
        ),
        case("8.3.1 a path with a space", [with_path("/a b")], malformed()),
        case(
            "8.3.1 a method that is more",
            [headers(
                1,
                END_STREAM,
                &[(":method", "GET /evil HTTP/1.1\r\n"), GET[1], GET[2], GET[3]],
            )],
            malformed(),
        ),
        case(
            "8.3.1 an authority that is more",
            [headers(1, END_STREAM, &[GET[0], GET[1], GET[2], (":authority", "shop\r\nx-a: b")])],
            malformed(),
        ),
        case("8.3.1 no method", [without(":method")], malformed()),
        case("8.3.1 no scheme", [without(":scheme")], malformed()),
        case("8.3.1 no path", [without(":path")], malformed()),
        case("8.3.1 two methods", [with(&[(":method", "GET")])], malformed()),
        case("8.3.1 two schemes", [with(&[(":scheme", "http")])], malformed()),
        case("8.3.1 two paths", [with(&[(":path", "/")])], malformed()),
        case("8.3.1 two authorities", [with(&[(":authority", "shop")])], malformed()),
        case("8.2.2 TE: trailers", [with(&[("te", "trailers")])], Answer(1)),
        case("8.2.2 TE: anything else", [with(&[("te", "trailers, deflate")])], malformed()),
        case("8.1.1 a length that is too short", posted("1", &["abc"]), malformed()),
        case("8.1.1 a length that is too long", posted("10", &["abc"]), malformed()),
        case("8.1.1 a length over several frames", posted("1", &["a", "bc"]), malformed()),
        case("8.1.1 a length without a body", [with(&[("content-length", "5")])], malformed()),
        case("8.1.1 a length that is right", posted("3", &["a", "bc"]), Answer(1)),
        case("8.1.1 a length that is none", posted("x", &["abc"]), malformed()),
        case(
            "8.1 trailers",
            [post(1), data(1, 0, "x"), headers(1, END_STREAM, &[("x-end", "1")])],
            Answer(1),
        ),
    ];
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        let fields = [&GET[..], &[(name, "x")]].concat();
        let case = Case { name, send: headers(1, END_STREAM, &fields).bytes(), must: malformed() };
        cases.push(case);
    }
    play(cases).await;
}

/// 3.4: a preface that is none.
#[tokio::test]
async fn a_broken_preface_ends_the_connection() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    for preface in [
        &b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..],
        b"INVALID CONNECTION PREFACE\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nno frame at all, and long enough to be one",
    ] {
        let mut wire = crate::client::Wire::connect(proxy.outbound).await;
        wire.send(preface).await;
        wire.rest().await;
    }
    proxy.serves("shop").await;
}

/// Section 8.1 wants a stream error for pseudo-fields in trailers; h2 drops them. What must not happen is that they
/// get any further.
#[tokio::test]
async fn pseudo_fields_in_trailers_go_nowhere() {
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    let mut raw = Raw::connect(&proxy).await;
    raw.send(&post(1)).await;
    raw.send(&headers(1, END_STREAM, &[(":path", "/evil"), ("x-end", "1")])).await;
    raw.ends_or_answers(1).await;
    for seen in echo.requests() {
        assert_eq!(seen["path"], "/");
        assert!(!seen["trailers"].to_string().contains("evil"), "{seen}");
    }
}

//! HTTP/2 peers that keep a server busy with frames that cost them nothing: rapid reset (CVE-2023-44487), resets that
//! they provoke (CVE-2025-8671), CONTINUATION, SETTINGS, PING, empty and tiny frames, windows that never open. Each ends
//! in a closed connection or is harmless, costs bounded memory, and others are served meanwhile.

use crate::{
    frames::*,
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

/// What a flood may cost while it lasts.
const GROWTH: u64 = 32 << 20;

struct Flooded {
    proxy: Proxy,
    resident: u64,
    _echo: Origin,
}

impl Flooded {
    async fn new() -> Self {
        let echo = Origin::echo("a").await;
        let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
        proxy.serves("shop").await;
        Self { resident: proxy.resident(), proxy, _echo: echo }
    }

    /// Sends `frames` again and again, up to `times` times. Tells whether the connection was closed, and with which
    /// code as far as it was told.
    async fn flood(
        &self,
        raw: Raw,
        times: usize,
        mut frames: impl FnMut(u32) -> Vec<Frame>,
    ) -> (bool, Option<u32>) {
        let (mut reader, mut writer) = raw.split();
        // A peer that does not read would be stopped by its own socket before anything else.
        let reading = tokio::spawn(async move {
            let mut code = None;
            while let Some(frame) = reader.next().await {
                if frame.kind == GOAWAY {
                    code = Some(frame.code());
                }
            }
            code
        });
        let mut closed = false;
        for at in 0..times {
            let turn = u32::try_from(at).unwrap();
            let bytes: Vec<u8> = frames(turn).iter().flat_map(Frame::bytes).collect();
            if tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes).await.is_err() {
                closed = true;
                break;
            }
            if at % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        self.proxy.serves("shop").await;
        let grown = self.proxy.resident().saturating_sub(self.resident);
        assert!(grown < GROWTH, "{grown} bytes grown");
        drop(writer);
        let code = tokio::time::timeout(crate::mesh::PATIENCE, reading).await;
        let code = code.expect("the connection ends").unwrap();
        (closed || code.is_some_and(|code| code != 0), code)
    }

    async fn settled(&self) {
        self.proxy.quiet("default/shop:80").await;
        until("the connections to be forgotten", async || {
            let open = self.proxy.metric("leno_downstream_connections", &[]).await;
            (open == Some(0.0)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn rapid_resets() {
    let flooded = Flooded::new().await;
    let raw = Raw::connect(&flooded.proxy).await;
    let flood = |at| vec![get(2 * at + 1), rst_stream(2 * at + 1, 8)];
    let (closed, code) = flooded.flood(raw, 100_000, flood).await;
    assert!(closed, "100,000 resets were accepted");
    assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{code:?}");
    flooded.settled().await;
}

/// The peer makes us reset its streams: by a window that overflows, by no increment, by bytes behind the end.
#[tokio::test]
async fn provoked_resets() {
    let flooded = Flooded::new().await;
    for kind in 0..3 {
        let raw = Raw::connect(&flooded.proxy).await;
        let flood = |at| {
            let stream = 2 * at + 1;
            let provocation = match kind {
                0 => window_update(stream, 0x7fff_ffff),
                1 => window_update(stream, 0),
                _ => headers(stream, 0, &[("x-a", "b")]),
            };
            vec![post(stream), provocation]
        };
        let (closed, _) = flooded.flood(raw, 100_000, flood).await;
        assert!(closed, "kind {kind}");
    }
    flooded.settled().await;
}

#[tokio::test]
async fn endless_header_blocks() {
    let flooded = Flooded::new().await;
    for filler in [vec![], block(&[("x-a", &"y".repeat(4000))])] {
        let raw = Raw::connect(&flooded.proxy).await;
        let flood = |at| match at {
            0 => vec![Frame::new(HEADERS, END_STREAM, 1, block(&GET))],
            _ => vec![Frame::new(CONTINUATION, 0, 1, filler.clone())],
        };
        let (closed, _) = flooded.flood(raw, 100_000, flood).await;
        assert!(closed, "{} bytes each", filler.len());
    }
    flooded.settled().await;
}

/// A small block that means a large head: thousands of references to one long field (the "HPACK bomb").
#[tokio::test]
async fn compressed_heads_count_by_what_they_mean() {
    let flooded = Flooded::new().await;
    let mut raw = Raw::connect(&flooded.proxy).await;
    // Literal with indexing (0x40), then the entry by its number, 62, again and again.
    let mut bomb = block(&GET);
    let mut entry = block(&[("x-bomb", &"y".repeat(3900))]);
    entry[0] = 0x40;
    bomb.extend(entry);
    bomb.extend(std::iter::repeat_n(0xbe, 10_000));
    raw.send(&Frame::new(HEADERS, END_STREAM | END_HEADERS, 1, bomb)).await;
    let reaction = raw.reaction().await;
    assert!(
        matches!(
            reaction,
            Reaction::Head { status: Some(431), .. }
                | Reaction::Reset { .. }
                | Reaction::ConnectionEnds(_)
                | Reaction::Pong
        ),
        "{reaction:?}"
    );
    drop(raw);
    let grown = flooded.proxy.resident().saturating_sub(flooded.resident);
    assert!(grown < GROWTH, "{grown} bytes grown");
    flooded.settled().await;
    assert!(flooded._echo.requests().iter().all(|seen| seen["headers"].get("x-bomb").is_none()));
}

/// Thousands of small fields (CVE-2026-47774 and its kin).
#[tokio::test]
async fn heads_with_too_many_fields_go_nowhere() {
    let flooded = Flooded::new().await;
    let mut raw = Raw::connect(&flooded.proxy).await;
    let fields: Vec<String> = (0..30_000).map(|at| format!("{at:x}")).collect();
    let pairs: Vec<(&str, &str)> = fields.iter().map(|name| (name.as_str(), "")).collect();
    let whole = [block(&GET), block(&pairs)].concat();
    let mut pieces = whole.chunks(16_000).peekable();
    let first = pieces.next().unwrap();
    raw.send(&Frame::new(HEADERS, END_STREAM, 1, first)).await;
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        if !raw.send(&Frame::new(CONTINUATION, flags, 1, piece)).await {
            break;
        }
    }
    let reaction = raw.reaction().await;
    assert!(!matches!(reaction, Reaction::Head { status: Some(200), .. }), "{reaction:?}");
    flooded.proxy.serves("shop").await;
    // The same, within the limit of bytes but above that of fields.
    let mut raw = Raw::connect(&flooded.proxy).await;
    let some = [&GET[..], &pairs[..900]].concat();
    raw.send(&headers(1, END_STREAM, &some)).await;
    let reaction = raw.reaction().await;
    assert!(!matches!(reaction, Reaction::Head { status: Some(200), .. }), "{reaction:?}");
}

/// Frames that must be answered: the answers may not pile up when nobody reads them.
#[tokio::test]
async fn settings_and_pings_nobody_reads_the_answers_of() {
    let flooded = Flooded::new().await;
    for frame in [settings(&[(3, 100)]), Frame::new(PING, 0, 0, *b"flooding")] {
        let mut raw = Raw::connect(&flooded.proxy).await;
        let burst: Vec<u8> = std::iter::repeat_n(frame.bytes(), 1000).flatten().collect();
        // Until the proxy stops reading, or closes: both are bounds.
        for _ in 0..1000 {
            let sent = raw.send_bytes(&burst);
            match tokio::time::timeout(std::time::Duration::from_millis(300), sent).await {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
        flooded.proxy.serves("shop").await;
        let grown = flooded.proxy.resident().saturating_sub(flooded.resident);
        assert!(grown < GROWTH, "{grown} bytes grown by frames of type {}", frame.kind);
    }
    flooded.settled().await;
}

#[tokio::test]
async fn frames_that_carry_nothing() {
    let flooded = Flooded::new().await;
    for (name, frame) in [
        ("empty DATA", data(1, 0, [])),
        ("padding", data(1, PADDED, [0])),
        ("tiny DATA", data(1, 0, "x")),
        ("PRIORITY", Frame::new(PRIORITY, 0, 1, [0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", window_update(1, 1)),
        ("SETTINGS", settings(&[])),
        ("PING", Frame::new(PING, 0, 0, [0; 8])),
        ("unknown frames", Frame::new(0x42, 0, 0, [])),
    ] {
        let raw = Raw::connect(&flooded.proxy).await;
        let flood = |at| if at == 0 { vec![post(1)] } else { vec![frame.clone(); 100] };
        // Some of these are legal for ever; none may cost memory or stop others, which `flood` checks.
        let (closed, code) = flooded.flood(raw, 500, flood).await;
        println!("{name}: closed {closed}, code {code:?}");
    }
    flooded.settled().await;
}

/// A peer that asks for much and never takes it.
#[tokio::test]
async fn windows_that_never_open() {
    let large = Origin::raw(|mut stream, _| async move {
        while origin::read_request(&mut stream).await.is_some() {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 4194304\r\n\r\n";
            let body = vec![0; 4 << 20];
            if tokio::io::AsyncWriteExt::write_all(&mut stream, head).await.is_err()
                || tokio::io::AsyncWriteExt::write_all(&mut stream, &body).await.is_err()
            {
                return;
            }
        }
    })
    .await;
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[large.address])
        .service("echo", "http", &[echo.address])
        .start()
        .await;
    proxy.serves("echo").await;
    let resident = proxy.resident();
    let mut raw = Raw::with_settings(&proxy, &[(4, 0)]).await;
    for at in 0..100 {
        assert!(raw.send(&get(2 * at + 1)).await);
    }
    for _ in 0..100 {
        let frame = raw.until(|frame| frame.kind == HEADERS || frame.kind == DATA).await;
        assert_eq!(frame.kind, HEADERS, "data without a window");
    }
    proxy.serves("echo").await;
    let grown = proxy.resident().saturating_sub(resident);
    // A hundred streams; each may hold a read buffer and a piece of its body.
    assert!(grown < 100 << 20, "{grown} bytes grown");
    drop(raw);
    proxy.quiet("default/shop:80").await;
    until("the connections to close", async || (large.open() == 0).then_some(())).await;
}

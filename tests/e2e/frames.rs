//! HTTP/2 by the frame (RFC 9113 section 4): nothing is checked before it is sent.

use tokio::time::timeout;

use crate::{client::Wire, mesh::PATIENCE, mesh::Proxy};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// `END_STREAM` of DATA and HEADERS; `ACK` of SETTINGS and PING.
pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const WITH_PRIORITY: u8 = 0x20;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as it is on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The error code of RST_STREAM and GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// The settings of one SETTINGS frame.
pub fn settings(pairs: &[(u16, u32)]) -> Frame {
    let payload: Vec<u8> = pairs
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    Frame::new(SETTINGS, 0, 0, payload)
}

pub fn window_update(stream: u32, increment: u32) -> Frame {
    Frame::new(WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
}

pub fn rst_stream(stream: u32, code: u32) -> Frame {
    Frame::new(RST_STREAM, 0, stream, code.to_be_bytes())
}

pub fn data(stream: u32, flags: u8, bytes: impl Into<Vec<u8>>) -> Frame {
    Frame::new(DATA, flags, stream, bytes)
}

/// A header block of literals without indexing (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// An integer with a 7-bit prefix (RFC 7541 section 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        return block.push(u8::try_from(length).unwrap());
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// What every request begins with.
pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "shop")];
pub const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "shop")];

/// HEADERS with a whole block.
pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Frame {
    Frame::new(HEADERS, flags | END_HEADERS, stream, block(fields))
}

pub fn get(stream: u32) -> Frame {
    headers(stream, END_STREAM, &GET)
}

/// A POST whose body is still to come.
pub fn post(stream: u32) -> Frame {
    headers(stream, 0, &POST)
}

/// A connection that has said hello.
pub struct Raw {
    wire: Wire,
}

/// How the peer reacted.
#[derive(Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The connection ends, with this code when it was told.
    ConnectionEnds(Option<u32>),
    /// RST_STREAM.
    Reset { stream: u32, code: u32 },
    /// The head of a response, with its status where it is one of HPACK's static table.
    Head { stream: u32, status: Option<u16> },
    /// The answer to our PING: nothing else came before it.
    Pong,
}

impl Raw {
    /// Sends the preface and empty settings, and reads the peer's.
    pub async fn connect(proxy: &Proxy) -> Self {
        Self::with_settings(proxy, &[]).await
    }

    pub async fn with_settings(proxy: &Proxy, pairs: &[(u16, u32)]) -> Self {
        let mut raw = Self { wire: Wire::connect(proxy.outbound).await };
        raw.wire.send([PREFACE, &settings(pairs).bytes()].concat()).await;
        let first = raw.next().await.expect("the peer's settings");
        assert_eq!((first.kind, first.flags & ACK), (SETTINGS, 0));
        raw.send(&Frame::new(SETTINGS, ACK, 0, [])).await;
        raw.until(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0).await;
        raw
    }

    /// Reading and writing apart.
    pub fn split(self) -> (Reader, tokio::net::tcp::OwnedWriteHalf) {
        let (read, write) = self.wire.stream.into_split();
        (Reader { read, unread: self.wire.unread }, write)
    }

    /// Sends; `false` when the connection is closed.
    pub async fn send(&mut self, frame: &Frame) -> bool {
        self.send_bytes(&frame.bytes()).await
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        self.wire.try_send(bytes).await
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        let head = self.wire.exactly(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff;
        let payload = self.wire.exactly(length as usize).await?;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until a frame fits.
    pub async fn until(&mut self, fits: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection lives");
            if fits(&frame) {
                return frame;
            }
        }
    }

    /// How the peer reacts to what was sent. A PING behind it makes sure that there is a reaction.
    pub async fn reaction(&mut self) -> Reaction {
        let ping = Frame::new(PING, 0, 0, *b"reaction");
        self.send(&ping).await;
        loop {
            let Some(frame) = self.next().await else { return Reaction::ConnectionEnds(None) };
            match frame.kind {
                // A farewell without an error is drain, or the end of our own making; the connection's end follows.
                GOAWAY => return Reaction::ConnectionEnds(Some(frame.code())),
                RST_STREAM => return Reaction::Reset { stream: frame.stream, code: frame.code() },
                HEADERS => {
                    return Reaction::Head { stream: frame.stream, status: status(&frame.payload) };
                }
                PING if frame.flags & ACK != 0 && frame.payload == b"reaction" => {
                    return Reaction::Pong;
                }
                _ => {}
            }
        }
    }

    /// The status of the response on `stream`; panics when it is reset or the connection ends.
    pub async fn status(&mut self, stream: u32) -> Option<u16> {
        loop {
            let frame = self.next().await.expect("the connection lives");
            assert_ne!(frame.kind, GOAWAY, "code {}", frame.code());
            assert!(frame.kind != RST_STREAM || frame.stream != stream, "code {}", frame.code());
            if frame.kind == HEADERS && frame.stream == stream {
                return status(&frame.payload);
            }
        }
    }

    /// Reads until the stream is answered or reset, or the connection ends.
    pub async fn ends_or_answers(&mut self, stream: u32) {
        while let Some(frame) = self.next().await {
            if frame.stream == stream && [HEADERS, RST_STREAM].contains(&frame.kind) {
                return;
            }
        }
    }

    /// Whether the peer ends the connection soon.
    pub async fn ends(&mut self) -> bool {
        timeout(PATIENCE, async { while self.next().await.is_some() {} }).await.is_ok()
    }
}

/// The reading half of a connection.
pub struct Reader {
    read: tokio::net::tcp::OwnedReadHalf,
    unread: Vec<u8>,
}

impl Reader {
    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(head) = self.unread.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if self.unread.len() >= 9 + length {
                    let head = *head;
                    let payload = self.unread.drain(..9 + length).skip(9).collect();
                    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
                    return Some(Frame { kind: head[3], flags: head[4], stream, payload });
                }
            }
            if tokio::io::AsyncReadExt::read_buf(&mut self.read, &mut self.unread).await.ok()? == 0
            {
                return None;
            }
        }
    }
}

/// The status of a response's head, from the first field of its block: an entry of the static table, or three digits.
fn status(block: &[u8]) -> Option<u16> {
    // Updates of the table's size may come first.
    let at = block.iter().position(|byte| byte & 0xe0 != 0x20)?;
    match block[at] {
        0x88 => Some(200),
        0x89 => Some(204),
        0x8a => Some(206),
        0x8b => Some(304),
        0x8c => Some(400),
        0x8d => Some(404),
        0x8e => Some(500),
        0x48 if block.get(at + 1) == Some(&3) => {
            std::str::from_utf8(block.get(at + 2..at + 5)?).ok()?.parse().ok()
        }
        // Digits in Huffman code (RFC 7541 appendix B): 5 bits for 0 to 2, 6 for the others.
        0x48 => huffman_digits(block.get(at + 2..at + 2 + usize::from(block[at + 1] & 0x7f))?),
        _ => None,
    }
}

fn huffman_digits(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u8> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let take = |count: usize| {
            bits.get(at..at + count)
                .map(|bits| bits.iter().fold(0u16, |value, bit| value * 2 + u16::from(*bit)))
        };
        let five = take(5)?;
        let (digit, used) =
            if five <= 2 { (five, 5) } else { (take(6)?.checked_sub(0x19)? + 3, 6) };
        number = number * 10 + digit;
        at += used;
    }
    Some(number)
}

#[test]
fn statuses_are_read_in_every_coding() {
    assert_eq!(status(&[0x88]), Some(200));
    assert_eq!(status(b"\x48\x03431"), Some(431));
    // 503: 0x1b in 6 bits, 0 in 5, 0x19 in 6, and ones as padding.
    assert_eq!(status(&[0x48, 0x83, 0b0110_1100, 0b0000_1100, 0b1111_1111]), Some(503));
}

//! A reader for HTTP/1.1 responses as a load generator needs it: where each ends, and whether it
//! was a success. Pure: bytes in, progress out.

/// Longest response head accepted; a proxy adding more than this is not doing the same work.
const LONGEST_HEAD: usize = 16 * 1024;

const SUCCESS: u16 = 200;

/// What a chunk of bytes brought.
#[derive(Debug, PartialEq)]
pub enum Progress {
    /// The response is not complete yet.
    More,
    /// One response is complete; `close` is whether its connection ends with it.
    Done { close: bool },
    /// The same, but it was no success.
    Refused { status: u16, close: bool },
}

#[derive(Debug, PartialEq)]
pub enum Malformed {
    /// No success, in an answer without an end.
    Status(u16),
    Head(&'static str),
    /// Bytes after the end of the response: nothing was asked for.
    Surplus,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Malformed::Status(status) => write!(formatter, "the answer was status {status}"),
            Malformed::Head(what) => write!(formatter, "malformed response: {what}"),
            Malformed::Surplus => write!(formatter, "bytes after the end of the response"),
        }
    }
}

/// Reads one response after the other.
#[derive(Debug, Default)]
pub struct ResponseReader {
    head: Vec<u8>,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    status: u16,
    framing: Framing,
    close: bool,
}

/// How the end of a body is found.
#[derive(Debug)]
enum Framing {
    /// After so many bytes more.
    Length(usize),
    Chunked(Chunks),
}

/// Where in a chunked body (RFC 9112, section 7.1) the next byte is.
#[derive(Debug, Default)]
struct Chunks {
    /// Of the chunk under way, with the end of line behind it.
    remaining: usize,
    /// The line under way, without its end: a chunk's size, or a trailer.
    line: Vec<u8>,
    /// The chunk of size zero was there; an empty line is the end.
    last: bool,
}

impl ResponseReader {
    /// Takes the next bytes of the connection.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, Malformed> {
        if let Some(body) = self.body.take() {
            return self.feed_body(body, bytes);
        }
        if self.head.is_empty()
            && let Some(end) = head_end(bytes)
        {
            // The whole head in one read, which is nearly always so: nothing is copied.
            let (head, rest) = bytes.split_at(end);
            return self.feed_body(parse(head)?, rest);
        }
        self.head.extend_from_slice(bytes);
        let Some(end) = head_end(&self.head) else {
            if self.head.len() > LONGEST_HEAD {
                return Err(Malformed::Head("the head does not end"));
            }
            return Ok(Progress::More);
        };
        let head = std::mem::take(&mut self.head);
        let (head, rest) = head.split_at(end);
        self.feed_body(parse(head)?, rest)
    }

    fn feed_body(&mut self, mut body: Body, bytes: &[u8]) -> Result<Progress, Malformed> {
        let done = match &mut body.framing {
            Framing::Length(remaining) => {
                *remaining = remaining.checked_sub(bytes.len()).ok_or(Malformed::Surplus)?;
                *remaining == 0
            }
            Framing::Chunked(chunks) => chunks.feed(bytes)?,
        };
        if done {
            let Body { status, close, .. } = body;
            let success = status == SUCCESS;
            return Ok(if success {
                Progress::Done { close }
            } else {
                Progress::Refused { status, close }
            });
        }
        self.body = Some(body);
        Ok(Progress::More)
    }
}

impl Chunks {
    /// Whether the body has ended.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<bool, Malformed> {
        while !bytes.is_empty() {
            let skipped = self.remaining.min(bytes.len());
            self.remaining -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                self.line.extend_from_slice(bytes);
                let short = self.line.len() <= LONGEST_HEAD;
                return if short { Ok(false) } else { Err(Malformed::Head("a line does not end")) };
            };
            let (line, rest) = bytes.split_at(end + 1);
            self.line.extend_from_slice(line);
            bytes = rest;
            let line = std::mem::take(&mut self.line);
            let line = line.trim_ascii_end();
            if !self.last {
                let size = std::str::from_utf8(line).ok();
                let size =
                    size.and_then(|line| usize::from_str_radix(line.split(';').next()?, 16).ok());
                let size = size.ok_or(Malformed::Head("bad size of a chunk"))?;
                self.last = size == 0;
                self.remaining = if self.last { 0 } else { size.saturating_add(2) };
            } else if line.is_empty() {
                return if bytes.is_empty() { Ok(true) } else { Err(Malformed::Surplus) };
            }
        }
        Ok(false)
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn parse(head: &[u8]) -> Result<Body, Malformed> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let status = lines.next().and_then(status).ok_or(Malformed::Head("no status line"))?;
    let mut framing = None;
    let mut close = false;
    for line in lines {
        if let Some(value) = header(line, b"content-length:") {
            let length = number(value).ok_or(Malformed::Head("bad content-length"))?;
            framing = framing.or(Some(Framing::Length(length)));
        } else if header(line, b"transfer-encoding:").is_some() {
            framing = Some(Framing::Chunked(Chunks::default()));
        } else if let Some(value) = header(line, b"connection:") {
            close = value.trim_ascii().eq_ignore_ascii_case(b"close");
        }
    }
    let framing = match framing {
        Some(framing) => framing,
        None if status == SUCCESS => return Err(Malformed::Head("no content-length")),
        None => return Err(Malformed::Status(status)),
    };
    Ok(Body { status, framing, close })
}

fn status(line: &[u8]) -> Option<u16> {
    let code = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    number(code).and_then(|code| u16::try_from(code).ok())
}

fn header<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

fn number(bytes: &[u8]) -> Option<usize> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello";

    #[test]
    fn a_response_cut_anywhere_is_the_same_response() {
        for cut in 1..ANSWER.len() {
            let mut reader = ResponseReader::default();
            let (first, second) = ANSWER.split_at(cut);
            assert_eq!(reader.feed(first), Ok(Progress::More), "cut at {cut}");
            assert_eq!(reader.feed(second), Ok(Progress::Done { close: false }), "cut at {cut}");
            assert_eq!(reader.feed(ANSWER), Ok(Progress::Done { close: false }), "cut at {cut}");
        }
    }

    #[test]
    fn a_chunked_response_ends_with_its_trailers() {
        let answer =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n\
                       0123\r\n6789\r\n0\r\nx: y\r\n\r\n";
        for cut in 1..answer.len() {
            let mut reader = ResponseReader::default();
            let (first, second) = answer.split_at(cut);
            assert_eq!(reader.feed(first), Ok(Progress::More), "cut at {cut}");
            assert_eq!(reader.feed(second), Ok(Progress::Done { close: false }), "cut at {cut}");
        }
        let feed = |bytes: &[u8]| ResponseReader::default().feed(bytes);
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let with = |rest: &[u8]| [&head[..], rest].concat();
        assert_eq!(feed(&with(b"0\r\n\r\nx")), Err(Malformed::Surplus));
        assert_eq!(feed(&with(b"no\r\n")), Err(Malformed::Head("bad size of a chunk")));
    }

    #[test]
    fn an_empty_body_ends_with_its_head() {
        let mut reader = ResponseReader::default();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        assert_eq!(reader.feed(answer), Ok(Progress::Done { close: true }));
    }

    #[test]
    fn what_is_not_a_success_is_an_error() {
        let feed = |bytes: &[u8]| ResponseReader::default().feed(bytes);
        let unavailable = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno";
        assert_eq!(feed(unavailable), Ok(Progress::Refused { status: 503, close: false }));
        assert_eq!(feed(b"HTTP/1.1 503 No\r\n\r\n"), Err(Malformed::Status(503)));
        assert_eq!(feed(b"HTTP/1.1 200 OK\r\n\r\n"), Err(Malformed::Head("no content-length")));
        assert_eq!(
            feed(b"HTTP/1.1 200 OK\r\ncontent-length: 1x\r\n\r\n"),
            Err(Malformed::Head("bad content-length"))
        );
        assert_eq!(feed(b"SSH-2.0\r\n\r\n"), Err(Malformed::Head("no status line")));
        assert_eq!(
            feed(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nabc"),
            Err(Malformed::Surplus)
        );
        assert_eq!(feed(&[b'a'; LONGEST_HEAD + 1]), Err(Malformed::Head("the head does not end")));
    }
}

//! The head of a response: its fields, and where its body ends (RFC 9112 sections 4 to 6). Pure.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::names;

/// Largest response head. Applications do send large cookies, hence more than is taken from callers.
pub(in crate::http) const MAX_HEAD_BYTES: usize = 128 * 1024;
pub(in crate::http) const MAX_HEAD_FIELDS: usize = 256;

/// Why what came is no head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    #[error("the head of the response is malformed: {0}")]
    Malformed(httparse::Error),
    #[error("the head of the response has over {MAX_HEAD_BYTES} bytes")]
    TooLong,
    #[error("the response has no status")]
    Status,
    #[error("the response has a malformed field")]
    Field,
    #[error("the length of the response is not a number, or several")]
    Length,
    #[error("the response has a transfer coding, which HTTP/1.0 does not know")]
    Coding,
}

/// Where the body of a response ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// Where its chunks say so.
    Chunked,
    /// With the connection.
    Close,
}

/// A head that was read to its end.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    /// Whether another exchange may follow on the connection.
    pub(super) keeps: bool,
}

/// Takes the head of the answer to a request with `method` off the front of `read`; `None` when it has not come in full.
/// Interim responses (RFC 9110 section 15.2) before it are taken off and forgotten. The first `known` bytes were looked
/// at before: a head that comes in small pieces is parsed once, not once for each.
///
/// # Errors
/// When what came is none, or too long.
pub(super) fn take(
    read: &mut BytesMut,
    mut known: usize,
    method: &Method,
) -> Result<Option<Head>, HeadError> {
    while let Some(length) = end(read, known) {
        if length > MAX_HEAD_BYTES {
            return Err(HeadError::TooLong);
        }
        let head = parse(&read.split_to(length).freeze(), method)?;
        if head.is_some() {
            return Ok(head);
        }
        known = 0;
    }
    if read.len() > MAX_HEAD_BYTES {
        return Err(HeadError::TooLong);
    }
    // Who speaks something else may wait for us to go on.
    let beginning = read.iter().skip_while(|byte| matches!(byte, b'\r' | b'\n'));
    match beginning.zip(b"HTTP/1.").all(|(is, expected)| is == expected) {
        true => Ok(None),
        false => Err(HeadError::Malformed(httparse::Error::Version)),
    }
}

/// How many bytes there are up to the first empty line, itself included.
fn end(bytes: &[u8], known: usize) -> Option<usize> {
    let from = known.saturating_sub(3);
    memchr::memchr_iter(b'\n', &bytes[from..]).find_map(|at| {
        let next = from + at + 1;
        match &bytes[next..] {
            [b'\n', ..] => Some(next + 1),
            [b'\r', b'\n', ..] => Some(next + 2),
            _ => None,
        }
    })
}

/// `None` where it was an interim response.
fn parse(head: &Bytes, method: &Method) -> Result<Option<Head>, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEAD_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, head, &mut fields) {
        Ok(Status::Complete(_)) => {}
        // There is an empty line: what is missing will not come.
        Ok(Status::Partial) => return Err(HeadError::Malformed(httparse::Error::NewLine)),
        Err(error) => return Err(HeadError::Malformed(error)),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(HeadError::Status)?;
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(None);
    }
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    let seen;
    (*response.headers_mut(), seen) = fields_of(head, parsed.headers)?;
    if let Some(reason) = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason())
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
    }
    let framing = framing(&response, method, seen)?;
    if seen.length {
        say_length_once(response.headers_mut())?;
    }
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    let lasts = match seen.connection {
        true => keeps(version, response.headers()),
        false => version == Version::HTTP_11,
    };
    let keeps = !switches && framing != Framing::Close && lasts;
    Ok(Some(Head { response, framing, keeps }))
}

/// What of a head decides about its body and its connection, found while its fields are gone through: asking for each by
/// name would cost 300 instructions.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    length: bool,
    coding: bool,
    connection: bool,
}

/// They share the memory of the head.
fn fields_of(
    head: &Bytes,
    parsed: &[httparse::Header<'_>],
) -> Result<(HeaderMap, Seen), HeadError> {
    let mut headers = HeaderMap::with_capacity(parsed.len());
    let mut seen = Seen::default();
    for field in parsed {
        let name = names::read(field.name.as_bytes());
        let value = match field.value {
            // An empty slice may lie anywhere.
            [] => Ok(HeaderValue::from_static("")),
            value => HeaderValue::from_maybe_shared(head.slice_ref(value)),
        };
        let (Ok(name), Ok(value)) = (name, value) else { return Err(HeadError::Field) };
        match name {
            header::CONTENT_LENGTH => seen.length = true,
            header::TRANSFER_ENCODING => seen.coding = true,
            header::CONNECTION => seen.connection = true,
            _ => {}
        }
        headers.append(name, value);
    }
    Ok((headers, seen))
}

/// RFC 9112 section 6.3.
fn framing(response: &Response<()>, method: &Method, seen: Seen) -> Result<Framing, HeadError> {
    let headers = response.headers();
    let without_body = matches!(response.status().as_u16(), 101 | 204 | 304);
    if without_body || *method == Method::HEAD {
        return Ok(Framing::Length(0));
    }
    if seen.coding
        && let Some(codings) = headers.get_all(header::TRANSFER_ENCODING).iter().next_back()
    {
        if response.version() == Version::HTTP_10 {
            return Err(HeadError::Coding);
        }
        let last = codings.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
        return Ok(match last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            true => Framing::Chunked,
            false => Framing::Close,
        });
    }
    Ok(length(headers)?.map_or(Framing::Close, Framing::Length))
}

/// Several times the same number is that number (RFC 9110 section 8.6).
pub(super) fn length(headers: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for number in value.as_bytes().split(|byte| *byte == b',') {
            let number = parse_number(number.trim_ascii()).ok_or(HeadError::Length)?;
            if length.is_some_and(|known| known != number) {
                return Err(HeadError::Length);
            }
            length = Some(number);
        }
    }
    Ok(length)
}

/// `5, 5` is passed on as `5`: not everybody reads it alike.
fn say_length_once(headers: &mut HeaderMap) -> Result<(), HeadError> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let several = values
        .next()
        .is_some_and(|first| values.next().is_some() || first.as_bytes().contains(&b','));
    if several && let Some(length) = length(headers)? {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(())
}

fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// RFC 9112 section 9.3. Whoever says `close` once has said it.
fn keeps(version: Version, headers: &HeaderMap) -> bool {
    let says = |what: &[u8]| {
        let values = headers.get_all(header::CONNECTION).iter();
        let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(what))
    };
    !says(b"close") && (version == Version::HTTP_11 || says(b"keep-alive"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, method: &Method) -> Result<Option<(u16, Framing, bool, usize)>, HeadError> {
        let mut bytes = BytesMut::from(text);
        let head = take(&mut bytes, 0, method)?;
        Ok(head
            .map(|head| (head.response.status().as_u16(), head.framing, head.keeps, bytes.len())))
    }

    #[test]
    fn bodies_end_where_the_rfc_says() {
        use Framing::{Chunked, Close, Length};
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, Length(5), true, 5)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", (200, Length(5), true, 0)),
            ("HTTP/1.1 200\r\ntransfer-encoding: gzip, Chunked\r\n\r\n", (200, Chunked, true, 0)),
            ("HTTP/1.1 200\r\ntransfer-encoding: chunked, gzip\r\n\r\n", (200, Close, false, 0)),
            (
                "HTTP/1.1 200\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
                (200, Chunked, true, 0),
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", (200, Close, false, 0)),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", (200, Length(1), false, 0)),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: Keep-Alive\r\n\r\n",
                (200, Length(1), true, 0),
            ),
            (
                "HTTP/1.1 200 OK\ncontent-length: 1\nconnection: x\nconnection: y, CLOSE\n\n",
                (200, Length(1), false, 0),
            ),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 9\r\n\r\n", (204, Length(0), true, 0)),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", (304, Length(0), true, 0)),
            ("HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\nabc", (101, Length(0), false, 3)),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 E\r\nlink: x\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                (200, Length(0), true, 0),
            ),
        ] {
            assert_eq!(read(head, &Method::GET), Ok(Some(expected)), "{head}");
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        assert_eq!(read(head, &Method::HEAD), Ok(Some((200, Length(0), true, 0))));
    }

    #[test]
    fn what_is_ambiguous_or_malformed_is_refused() {
        for (head, expected) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
                HeadError::Length,
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n", HeadError::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n", HeadError::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\n", HeadError::Length),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", HeadError::Coding),
        ] {
            assert_eq!(read(head, &Method::GET), Err(expected), "{head}");
        }
        for head in [
            "\r\n\r\n",
            "HTTP/2",
            "\r\nSSH-2.0-x\r\n",
            "220 mail.example ESMTP\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname: a\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname: a\0b\r\n\r\n",
        ] {
            let read = read(head, &Method::GET);
            assert!(matches!(read, Err(HeadError::Malformed(_))), "{head}: {read:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD_BYTES));
        assert_eq!(read(&endless, &Method::GET), Err(HeadError::TooLong));
        assert_eq!(read(&format!("{endless}\r\n\r\n"), &Method::GET), Err(HeadError::TooLong));
        let fields = "a: b\r\n".repeat(MAX_HEAD_FIELDS + 1);
        let many = read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), &Method::GET);
        assert_eq!(many, Err(HeadError::Malformed(httparse::Error::TooManyHeaders)));
    }

    #[test]
    fn fields_and_reason_are_as_sent() {
        let mut bytes = BytesMut::from(
            "HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nset-cookie: \r\nX-Y: \u{e9} z \r\n\r\n",
        );
        let head = take(&mut bytes, 0, &Method::GET).unwrap().unwrap();
        let headers = head.response.headers();
        let cookies: Vec<_> = headers.get_all("set-cookie").iter().map(|v| v.as_bytes()).collect();
        assert_eq!(cookies, [b"a".as_slice(), b""]);
        assert_eq!(headers["x-y"].as_bytes(), "\u{e9} z".as_bytes());
        let reason = head.response.extensions().get::<ReasonPhrase>().unwrap();
        assert_eq!(reason.as_bytes(), b"Fine");
    }

    proptest! {
        /// It makes no difference in which pieces a head comes.
        #[test]
        fn pieces_say_what_the_whole_says(sizes in proptest::collection::vec(1usize..20, 1..20)) {
            let text = "HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\nx: y\r\n\r\nabc";
            let (mut rest, mut read, mut known) = (text.as_bytes(), BytesMut::new(), 0);
            let mut sizes = sizes.into_iter().cycle();
            loop {
                let (piece, after) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                rest = after;
                read.extend_from_slice(piece);
                match take(&mut read, known, &Method::GET).unwrap() {
                    Some(head) => {
                        prop_assert_eq!(head.framing, Framing::Length(3));
                        prop_assert_eq!(head.response.headers().len(), 2);
                        break;
                    }
                    None => prop_assert!(!rest.is_empty()),
                }
                known = read.len();
            }
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>, known in 0usize..20) {
            let known = known.min(bytes.len());
            let _head = take(&mut BytesMut::from(&bytes[..]), known, &Method::GET);
        }
    }
}

//! Requests as they go out: their heads, and how their bodies are framed (RFC 9112 sections 3 and 6). Pure.

use std::io::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, header};
use http_body::Body as _;

use super::response::length;
use crate::http::body::Body;

/// Whoever adds trailers to the head would take these for what they say there: framing, routing, who calls
/// (RFC 9110 section 6.5.1).
const NOT_IN_TRAILERS: [HeaderName; 17] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    header::MAX_FORWARDS,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// How the body of a request is framed, and what of it is still to come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Bytes left.
    Length(u64),
    /// In chunks, with these trailers at most.
    Chunked(Vec<HeaderName>),
}

/// Writes the head of `request` to the end of `out`. `None` when it has no body.
pub(super) fn write_head(request: &Request<Body>, out: &mut Vec<u8>) -> Option<Framing> {
    let (uri, headers) = (request.uri(), request.headers());
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    match (uri.authority(), uri.path_and_query()) {
        (None, Some(path)) => out.extend_from_slice(path.as_str().as_bytes()),
        // A vector takes everything.
        _ => _ = write!(out, "{uri}"),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        if *name != header::TRANSFER_ENCODING {
            write_field(name, value, out);
        }
    }
    let framing = framing(request, out);
    out.extend_from_slice(b"\r\n");
    framing
}

fn write_field(name: &HeaderName, value: &http::HeaderValue, out: &mut Vec<u8>) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What the head says of the length counts; where it says nothing, what the body knows of itself is added.
fn framing(request: &Request<Body>, out: &mut Vec<u8>) -> Option<Framing> {
    let body = request.body();
    if body.is_end_stream() {
        return None;
    }
    if let Ok(Some(length)) = length(request.headers()) {
        return Some(Framing::Length(length));
    }
    if let Some(length) = body.size_hint().exact() {
        // A vector takes everything.
        let _ = write!(out, "content-length: {length}\r\n");
        return Some(Framing::Length(length));
    }
    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    let named = request.headers().get_all(header::TRAILER).iter();
    let names = named.filter_map(|value| value.to_str().ok()).flat_map(|names| names.split(','));
    let names = names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok());
    Some(Framing::Chunked(names.collect()))
}

/// A piece of a body with what goes before and after it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Framed {
    pub(super) data: Bytes,
    pub(super) after: &'static [u8],
    /// Whether it is the last one.
    pub(super) last: bool,
}

impl Framing {
    /// Frames a piece. `ended`: the body says that it is the last one. `None` when the body is longer than it was said to
    /// be.
    pub(super) fn data(&mut self, data: Bytes, ended: bool, out: &mut Vec<u8>) -> Option<Framed> {
        match self {
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64)?;
                Some(Framed { data, after: b"", last: *left == 0 })
            }
            Self::Chunked(_) if data.is_empty() => {
                let after: &[u8] = if ended { b"0\r\n\r\n" } else { b"" };
                Some(Framed { data, after, last: ended })
            }
            Self::Chunked(_) => {
                // A vector takes everything.
                let _ = write!(out, "{:x}\r\n", data.len());
                let after: &[u8] = if ended { b"\r\n0\r\n\r\n" } else { b"\r\n" };
                Some(Framed { data, after, last: ended })
            }
        }
    }

    /// Writes the end of a body, with those trailers that its head has named: nobody expects others. `false` when it is
    /// shorter than it was said to be.
    pub(super) fn end(&self, trailers: Option<&HeaderMap>, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(named) => {
                out.extend_from_slice(b"0\r\n");
                let trailers = trailers.into_iter().flatten();
                let may_go = |name| named.contains(name) && !NOT_IN_TRAILERS.contains(name);
                for (name, value) in trailers.filter(|(name, _)| may_go(name)) {
                    write_field(name, value, out);
                }
                out.extend_from_slice(b"\r\n");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn written(request: http::request::Builder, body: Body) -> (String, Option<Framing>) {
        let mut out = Vec::new();
        let framing = write_head(&request.body(body).unwrap(), &mut out);
        (String::from_utf8(out).unwrap(), framing)
    }

    #[test]
    fn heads_are_written() {
        let get = Request::get("/a?b=c").header("host", "x").header("a", "1").header("a", "2");
        let (text, framing) = written(get, Body::Empty);
        assert_eq!(text, "GET /a?b=c HTTP/1.1\r\nhost: x\r\na: 1\r\na: 2\r\n\r\n");
        assert_eq!(framing, None);
        let options = Request::options("*").header("host", "x");
        assert!(written(options, Body::Empty).0.starts_with("OPTIONS * HTTP/1.1\r\n"));
        let absolute = Request::get("http://x/a");
        assert!(written(absolute, Body::Empty).0.starts_with("GET http://x/a HTTP/1.1\r\n"));
        let post = Request::post("/").header("content-length", "0");
        assert_eq!(written(post, Body::Empty).0, "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n");
    }

    #[test]
    fn bodies_are_framed_as_the_head_says() {
        let full = || Body::Full(Bytes::from_static(b"abc"));
        let (text, framing) = written(Request::post("/").header("content-length", "5"), full());
        assert_eq!(text, "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(framing, Some(Framing::Length(5)));
        let (text, framing) = written(Request::post("/"), full());
        assert_eq!(text, "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n");
        assert_eq!(framing, Some(Framing::Length(3)));
        let (_, pieces) = tokio::sync::mpsc::channel(1);
        let post = Request::post("/").header("trailer", "T, u").header("transfer-encoding", "x");
        let (text, framing) = written(post, Body::Copy(pieces));
        assert_eq!(text, "POST / HTTP/1.1\r\ntrailer: T, u\r\ntransfer-encoding: chunked\r\n\r\n");
        let named = ["t", "u"].map(HeaderName::from_static);
        assert_eq!(framing, Some(Framing::Chunked(named.into())));
    }

    #[test]
    fn pieces_are_framed() {
        let data = Bytes::from_static(b"0123456789abcdef!");
        let mut out = Vec::new();
        let mut length = Framing::Length(20);
        assert!(!length.data(data.clone(), false, &mut out).unwrap().last);
        assert!(!length.end(None, &mut out), "three are missing");
        assert!(length.data(data.clone(), true, &mut out).is_none(), "14 too many");
        assert!(length.data(Bytes::from_static(b"abc"), true, &mut out).unwrap().last);
        assert!(length.end(None, &mut out) && out.is_empty());
        let mut chunked = Framing::Chunked(vec![HeaderName::from_static("t"), header::HOST]);
        let framed = chunked.data(data, false, &mut out).unwrap();
        assert_eq!(
            (out.as_slice(), framed.after, framed.last),
            (&b"11\r\n"[..], &b"\r\n"[..], false)
        );
        out.clear();
        let mut trailers = HeaderMap::new();
        trailers.insert("host", HeaderValue::from_static("elsewhere"));
        trailers.insert("t", HeaderValue::from_static("1"));
        trailers.insert("other", HeaderValue::from_static("2"));
        assert!(chunked.end(Some(&trailers), &mut out));
        assert_eq!(out, b"0\r\nt: 1\r\n\r\n");
    }
}

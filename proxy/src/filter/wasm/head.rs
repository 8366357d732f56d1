//! Heads as plugins know them: pseudo headers first, `host` as `:authority`. Pure.
//!
//! What frames a message is not a plugin's to say: fields of the connection and lengths that it sets are left out. What
//! HTTP forbids is noted and never sent.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use leno_wasm_host::pairs::Pairs;

use super::field_names;
use crate::http::head as http_head;

/// Fields that belong to the connection (RFC 9110 section 7.6.1) or frame the message (RFC 9112 section 6).
static FRAMING: [HeaderName; 5] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Fields of most heads.
const FEW: usize = 24;

/// A request's head, while plugins have it or for when they ask later.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// A plugin has set the path or the host: what was checked of them must be checked again.
    pub(super) retargeted: bool,
    /// The first thing that a plugin set and HTTP forbids.
    pub(super) forbidden: Option<Box<str>>,
}

/// A response's head.
#[derive(Clone, Debug, Default)]
pub(super) struct ResponseHead {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) forbidden: Option<Box<str>>,
    /// The status as text: plugins read it so.
    code: Code,
}

#[derive(Clone, Copy, Debug, Default)]
struct Code([u8; 3]);

impl RequestHead {
    /// Changes places with the head of a request.
    pub(super) fn swap<B>(&mut self, request: &mut http::Request<B>) {
        std::mem::swap(&mut self.method, request.method_mut());
        std::mem::swap(&mut self.uri, request.uri_mut());
        std::mem::swap(&mut self.headers, request.headers_mut());
    }

    /// Makes it a request's.
    pub(super) fn put<B>(self, request: &mut http::Request<B>) {
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        match name {
            b":method" => Some(self.method.as_str().as_bytes()),
            b":path" => Some(path(&self.uri)),
            b":authority" => authority(&self.uri, &self.headers),
            b":scheme" => Some(scheme(&self.uri)),
            _ => find(&self.headers, name),
        }
    }

    pub(super) fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        visit_request(&self.method, &self.uri, &self.headers, visit);
    }

    /// How many a plugin sees.
    pub(super) fn count(&self) -> u32 {
        count_request(&self.uri, &self.headers)
    }

    pub(super) fn set_all(&mut self, pairs: Pairs<'_>) {
        let before = std::mem::take(&mut self.headers);
        if let Some(host) = before.get(header::HOST) {
            self.headers.insert(header::HOST, host.clone());
        }
        let mut seen = [false; 2];
        for (name, value) in pairs.iter() {
            seen[0] |= name == b":method";
            seen[1] |= name == b":path";
            if name.first() == Some(&b':') || name.eq_ignore_ascii_case(b"host") {
                self.set_pseudo(&name.to_ascii_lowercase(), value);
            } else {
                append(&mut self.headers, &mut self.forbidden, Some(&before), name, value);
            }
        }
        if seen != [true; 2] {
            forbid(&mut self.forbidden, "took `:method` or `:path` away");
        }
    }

    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) {
        if name.first() == Some(&b':') {
            self.set_pseudo(name, value);
        } else {
            append(&mut self.headers, &mut self.forbidden, None, name, value);
        }
    }

    pub(super) fn replace(&mut self, name: &[u8], value: &[u8]) {
        if name.first() == Some(&b':') {
            self.set_pseudo(name, value);
        } else {
            replace(&mut self.headers, &mut self.forbidden, name, value);
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        if name.first() == Some(&b':') {
            let name = String::from_utf8_lossy(name);
            forbid(&mut self.forbidden, &format!("took `{name}` away"));
        } else {
            remove(&mut self.headers, name);
        }
    }

    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) {
        let set = match name {
            b":method" => self.set_method(value),
            b":path" => self.set_path(value),
            b":authority" | b"host" => self.set_authority(value),
            // The connection decides it.
            b":scheme" => Some(()),
            _ => None,
        };
        if set.is_none() {
            let (name, value) = (String::from_utf8_lossy(name), value.escape_ascii());
            forbid(&mut self.forbidden, &format!("set `{name}` to `{value}`"));
        }
    }

    fn set_method(&mut self, value: &[u8]) -> Option<()> {
        let method = Method::from_bytes(value).ok()?;
        // It has another form of request, and no body.
        if method == Method::CONNECT || (self.uri.path() == "*" && method != Method::OPTIONS) {
            return None;
        }
        self.method = method;
        Some(())
    }

    fn set_path(&mut self, value: &[u8]) -> Option<()> {
        // RFC 9110 section 7.1: the server as a whole.
        let whole_server = value == b"*" && self.method == Method::OPTIONS;
        if !value.starts_with(b"/") && !whole_server {
            return None;
        }
        let path = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(value)).ok()?;
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = Some(path);
        let uri = Uri::from_parts(parts).ok()?;
        // As for callers: nobody behind us may read another path than we do.
        http_head::normal_path(&uri).ok()?;
        self.uri = uri;
        self.retargeted = true;
        Some(())
    }

    fn set_authority(&mut self, value: &[u8]) -> Option<()> {
        http_head::Target::parse(std::str::from_utf8(value).ok()?)?;
        let authority = Authority::try_from(value).ok()?;
        let host = HeaderValue::from_bytes(value).ok()?;
        if self.uri.authority().is_none() || self.headers.contains_key(header::HOST) {
            self.headers.insert(header::HOST, host);
        }
        if self.uri.authority().is_some() {
            let mut parts = self.uri.clone().into_parts();
            parts.authority = Some(authority);
            parts.scheme.get_or_insert(Scheme::HTTP);
            parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
            self.uri = Uri::from_parts(parts).ok()?;
        }
        self.retargeted = true;
        Some(())
    }
}

impl ResponseHead {
    /// Takes the head out of a response; what was here is there.
    pub(super) fn enter<B>(&mut self, response: &mut http::Response<B>) {
        self.status = response.status();
        self.code = Code::of(self.status);
        std::mem::swap(&mut self.headers, response.headers_mut());
    }

    /// Puts it back; what was there is here.
    pub(super) fn leave<B>(&mut self, response: &mut http::Response<B>) {
        *response.status_mut() = self.status;
        std::mem::swap(&mut self.headers, response.headers_mut());
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        match name {
            b":status" => Some(&self.code.0),
            _ => find(&self.headers, name),
        }
    }

    pub(super) fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        visit_response(self.status, &self.headers, visit);
    }

    pub(super) fn count(&self) -> u32 {
        count_response(&self.headers)
    }

    pub(super) fn set_all(&mut self, pairs: Pairs<'_>) {
        let before = std::mem::take(&mut self.headers);
        for (name, value) in pairs.iter() {
            match name.first() {
                Some(b':') => self.set_pseudo(name, value),
                _ => append(&mut self.headers, &mut self.forbidden, Some(&before), name, value),
            }
        }
    }

    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) {
        match name.first() {
            Some(b':') => self.set_pseudo(name, value),
            _ => append(&mut self.headers, &mut self.forbidden, None, name, value),
        }
    }

    pub(super) fn replace(&mut self, name: &[u8], value: &[u8]) {
        match name.first() {
            Some(b':') => self.set_pseudo(name, value),
            _ => replace(&mut self.headers, &mut self.forbidden, name, value),
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        match name.first() {
            Some(b':') => forbid(&mut self.forbidden, "took `:status` away"),
            _ => remove(&mut self.headers, name),
        }
    }

    /// Interim and unknown codes cannot be the answer to a request.
    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) {
        let status = StatusCode::from_bytes(value).ok().filter(|code| code.as_u16() >= 200);
        match status.filter(|_| name == b":status") {
            Some(status) => {
                self.status = status;
                self.code = Code::of(status);
            }
            None => {
                let (name, value) = (String::from_utf8_lossy(name), value.escape_ascii());
                forbid(&mut self.forbidden, &format!("set `{name}` to `{value}`"));
            }
        }
    }
}

/// Calls `visit` with everything in a request's head, as plugins know it.
pub(super) fn visit_request(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) {
    if let Some(authority) = authority(uri, headers) {
        visit(b":authority", authority);
    }
    visit(b":path", path(uri));
    visit(b":method", method.as_str().as_bytes());
    visit(b":scheme", scheme(uri));
    let others = headers.iter().filter(|(name, _)| *name != header::HOST);
    others.for_each(|(name, value)| visit(name.as_str().as_bytes(), value.as_bytes()));
}

/// The same of a response's.
pub(super) fn visit_response(
    status: StatusCode,
    headers: &HeaderMap,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) {
    visit(b":status", status.as_str().as_bytes());
    for (name, value) in headers {
        visit(name.as_str().as_bytes(), value.as_bytes());
    }
}

fn path(uri: &Uri) -> &[u8] {
    uri.path_and_query().map_or(&b"/"[..], |path| path.as_str().as_bytes())
}

fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a [u8]> {
    match uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => headers.get(header::HOST).map(HeaderValue::as_bytes),
    }
}

fn scheme(uri: &Uri) -> &[u8] {
    uri.scheme_str().unwrap_or("http").as_bytes()
}

impl Code {
    fn of(status: StatusCode) -> Self {
        let mut code = Self::default();
        code.0.copy_from_slice(status.as_str().as_bytes());
        code
    }
}

/// The first value of a field. `name` is lower case.
pub(super) fn find<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    // Among few, looking at each takes less than reading the name as one.
    if headers.len() <= FEW {
        let found = headers.iter().find(|(known, _)| known.as_str().as_bytes() == name);
        return found.map(|(_, value)| value.as_bytes());
    }
    headers.get(std::str::from_utf8(name).ok()?).map(HeaderValue::as_bytes)
}

/// How many fields a plugin sees of a request's head.
pub(super) fn count_request(uri: &Uri, headers: &HeaderMap) -> u32 {
    // Mostly the first of them, which takes less than a look-up.
    let host = headers.keys().any(|name| *name == header::HOST);
    let authority = host || uri.authority().is_some();
    count(headers) - u32::from(host) + 3 + u32::from(authority)
}

/// How many of a response's.
pub(super) fn count_response(headers: &HeaderMap) -> u32 {
    count(headers) + 1
}

pub(super) fn count(headers: &HeaderMap) -> u32 {
    u32::try_from(headers.len()).unwrap_or(u32::MAX)
}

/// Adds a field. Of those that frame the message only what was there `before` stays.
pub(super) fn append(
    headers: &mut HeaderMap,
    forbidden: &mut Option<Box<str>>,
    before: Option<&HeaderMap>,
    name: &[u8],
    value: &[u8],
) {
    let Some((name, value)) = field(forbidden, name, value) else { return };
    if FRAMING.contains(&name) {
        let kept = before.and_then(|before| before.get(&name)).filter(|kept| **kept == value);
        if kept.is_none() {
            return;
        }
    }
    // Whoever has 32,768 fields already gets no more; no peer takes as many.
    if headers.try_append(name, value).is_err() {
        forbid(forbidden, "set more headers than there can be");
    }
}

pub(super) fn replace(
    headers: &mut HeaderMap,
    forbidden: &mut Option<Box<str>>,
    name: &[u8],
    value: &[u8],
) {
    let Some((name, value)) = field(forbidden, name, value) else { return };
    if FRAMING.contains(&name) {
        return;
    }
    if headers.try_insert(name, value).is_err() {
        forbid(forbidden, "set more headers than there can be");
    }
}

/// A length may go; what belongs to the connection was taken out before plugins saw the head.
pub(super) fn remove(headers: &mut HeaderMap, name: &[u8]) {
    if let Ok(name) = std::str::from_utf8(name) {
        headers.remove(name);
    }
}

fn field(
    forbidden: &mut Option<Box<str>>,
    name: &[u8],
    value: &[u8],
) -> Option<(HeaderName, HeaderValue)> {
    match (field_names::of(name), HeaderValue::from_bytes(value)) {
        (Some(name), Ok(value)) => Some((name, value)),
        _ => {
            let (name, value) = (name.escape_ascii(), value.escape_ascii());
            forbid(forbidden, &format!("set header `{name}` to `{value}`"));
            None
        }
    }
}

/// Bytes of what is said about a field that HTTP forbids: it is for a log line.
const TOLD: usize = 200;

fn forbid(forbidden: &mut Option<Box<str>>, what: &str) {
    let told = what.char_indices().nth(TOLD).map_or(what, |(at, _)| &what[..at]);
    forbidden.get_or_insert_with(|| told.into());
}

#[cfg(test)]
mod tests;

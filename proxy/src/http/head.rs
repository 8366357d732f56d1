//! Heads made safe to forward: host, path, hop-by-hop fields, who forwarded what. Pure.
//!
//! RFC 9110 section 7.6 (forwarding), RFC 9112 section 3.2 (host), RFC 3986 section 6.2.2 (paths), RFC 7239
//! (Forwarded).

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{self, Entry},
    uri::PathAndQuery,
};

/// What makes a head unacceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// RFC 9112 section 3.2: exactly one in HTTP/1.1.
    #[error("no Host")]
    NoHost,
    /// Two hosts, or one that differs from `:authority` (RFC 9113 section 8.3.1).
    #[error("more than one Host")]
    SeveralHosts,
    /// Not `host[:port]`.
    #[error("Host is not a host")]
    BadHost,
    /// RFC 9110 section 7.1: `*` is for OPTIONS, authority form for CONNECT.
    #[error("request target does not fit the method")]
    BadTarget,
    /// A path that different readers would understand differently.
    #[error("path is ambiguous")]
    BadPath,
    /// RFC 9112 section 6.3: `Content-Length` beside `Transfer-Encoding`, or several of them.
    #[error("message length is ambiguous")]
    Framing,
    /// RFC 9112 section 6.1: only `chunked` is understood. It would be passed on as if it were decoded.
    #[error("transfer coding is not chunked")]
    TransferCoding,
    /// A connection header in HTTP/2 (RFC 9113 section 8.2.2).
    #[error("connection-specific header in HTTP/2")]
    ConnectionHeader,
}

impl HeadError {
    /// What the caller is told.
    pub fn status(self) -> StatusCode {
        match self {
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Host (lower case) and port that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Lower case; IPv6 without brackets.
    pub host: String,
    /// As written, if it was.
    pub port: Option<u16>,
}

impl Target {
    /// Reads `host`, `host:port`, `[v6]:port`. User information is refused: nobody means it, attackers hide in it.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            None => None,
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().ok()?),
            Some(_) => return None,
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
        let host = host.strip_suffix('.').unwrap_or(host);
        let complete = !host.is_empty() && !host.ends_with('.');
        let good = complete && host.len() <= 253 && host.bytes().all(name);
        good.then(|| Self { host: host.to_ascii_lowercase(), port })
    }
}

/// Whom a request is for: the authority of its target, else `Host`; both must agree where both are there.
///
/// # Errors
/// When there is none, more than one, or it is not a host.
pub fn target(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Target, HeadError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HeadError::SeveralHosts);
    }
    if let Some(authority) = uri.authority() {
        // RFC 9112 section 3.2.2: absolute form wins over Host. In HTTP/2 they must not differ.
        let host_differs = || {
            host.is_some_and(|host| {
                !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
            })
        };
        if version == Version::HTTP_2 && host_differs() {
            return Err(HeadError::SeveralHosts);
        }
        return Target::parse(authority.as_str()).ok_or(HeadError::BadHost);
    }
    let host = host.ok_or(HeadError::NoHost)?;
    Target::parse(host.to_str().map_err(|_| HeadError::BadHost)?).ok_or(HeadError::BadHost)
}

/// Refuses what RFC 9112 and 9113 do not allow and hyper lets through.
///
/// # Errors
/// Names the rule.
pub fn check(
    method: &Method,
    version: Version,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), HeadError> {
    let path = uri.path();
    let target_fits = match (method, path) {
        // RFC 9110 section 9.3.6: host and port, nothing else; a path would send the tunnel to `Host`.
        (&Method::CONNECT, _) => {
            uri.scheme().is_none() && uri.authority().is_some_and(|target| target.port().is_some())
        }
        (_, "*") => method == Method::OPTIONS,
        _ => path.starts_with('/') || (path.is_empty() && uri.scheme().is_some()),
    };
    if !target_fits {
        return Err(HeadError::BadTarget);
    }
    if version == Version::HTTP_2 {
        let specific = [
            header::CONNECTION,
            header::UPGRADE,
            header::TRANSFER_ENCODING,
            KEEP_ALIVE,
            PROXY_CONNECTION,
        ];
        let bad_te = headers.get_all(header::TE).iter().any(|te| te != "trailers");
        if bad_te || specific.iter().any(|name| headers.contains_key(name)) {
            return Err(HeadError::ConnectionHeader);
        }
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some()
        || length.is_some_and(|length| {
            length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit)
        })
        || (length.is_some() && headers.contains_key(header::TRANSFER_ENCODING))
    {
        return Err(HeadError::Framing);
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && !only_chunked(headers) {
        return Err(HeadError::TransferCoding);
    }
    Ok(())
}

/// Whether `Transfer-Encoding` is `chunked` and nothing else.
pub fn only_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next();
    first.is_some_and(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// The path with dot segments resolved (RFC 3986 section 6.2.2.3), `%2e` counting as a dot; `None` when nothing
/// changes. Policies and routes see the same path as the application.
///
/// # Errors
/// When it climbs above the root, or has a backslash, NUL or encoded slash in a dot segment's neighbourhood that
/// readers understand differently.
pub fn normal_path(uri: &Uri) -> Result<Option<PathAndQuery>, HeadError> {
    let path = uri.path();
    let telling = |byte| matches!(byte, b'.' | b'%' | b'\\' | 0);
    // All of it, also behind the first: so many at once is faster than one after the other.
    if !path.bytes().fold(false, |any, byte| any | telling(byte)) {
        return Ok(None);
    }
    if path.bytes().any(|byte| byte == b'\\' || byte == 0) || contains_ignore_case(path, "%00") {
        return Err(HeadError::BadPath);
    }
    let dotted = path.split('/').any(|segment| dots(segment).is_some());
    if !dotted {
        return Ok(None);
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            Some(2) if kept.pop().is_none() => return Err(HeadError::BadPath),
            Some(_) if last => kept.push(""),
            Some(_) => {}
            None => kept.push(segment),
        }
    }
    let mut text = String::with_capacity(path.len());
    for segment in kept {
        text.push('/');
        text.push_str(segment);
    }
    if text.is_empty() {
        text.push('/');
    }
    if let Some(query) = uri.query() {
        text.push('?');
        text.push_str(query);
    }
    PathAndQuery::try_from(text).map(Some).map_err(|_| HeadError::BadPath)
}

/// 1 for `.`, 2 for `..`, in any encoding.
fn dots(segment: &str) -> Option<u8> {
    let (mut rest, mut count) = (segment, 0);
    while !rest.is_empty() && count < 3 {
        rest = match rest.strip_prefix('.') {
            Some(rest) => rest,
            None if rest.len() >= 3 && rest.as_bytes()[..3].eq_ignore_ascii_case(b"%2e") => {
                &rest[3..]
            }
            None => return None,
        };
        count += 1;
    }
    (rest.is_empty() && (1..=2).contains(&count)).then_some(count)
}

fn contains_ignore_case(text: &str, needle: &str) -> bool {
    text.as_bytes()
        .windows(needle.len())
        .any(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Who the caller has proven to be, in Envoy's form: `By=spiffe://...;URI=spiffe://...`. A sidecar says it to its own
/// application and believes it of nobody: it concerns the TLS connection before it, so it ends with every hop.
pub const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Removed whether `Connection` names them or not.
/// A constant would be made anew, and dropped, for every field that is looked at.
static ALWAYS_REMOVED: [HeaderName; 5] =
    [header::UPGRADE, header::TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS];

/// Lengths of the names that [`concerns_connection`] looks for, a bit each.
const CONCERNING_LENGTHS: u32 = 1 << "te".len()
    | 1 << "upgrade".len()
    | 1 << "connection".len()
    | 1 << "keep-alive".len()
    | 1 << "http2-settings".len()
    | 1 << "proxy-connection".len()
    | 1 << "transfer-encoding".len()
    | 1 << "x-forwarded-client-cert".len();

/// Most names are told by their length that they are none of these.
fn may_concern_connection(name: &HeaderName) -> bool {
    CONCERNING_LENGTHS & 1u32.checked_shl(name.as_str().len() as u32).unwrap_or(0) != 0
}

/// `TE: trailers`, which every gRPC call has, stays as it is.
fn concerns_connection((name, value): (&HeaderName, &HeaderValue)) -> bool {
    may_concern_connection(name)
        && (*name == header::CONNECTION
            || (*name == header::TE && value != "trailers")
            || ALWAYS_REMOVED.contains(name)
            || reads_as(name, &CLIENT_CERTIFICATE))
}

/// Removes what concerns one connection only (RFC 9110 section 7.6.1): `Connection` and what it names,
/// `Keep-Alive`, `Proxy-Connection`, `TE` (but `trailers` stays), `Transfer-Encoding`, `Upgrade`; and who the caller
/// before the last one says it was.
/// Returns the value of `Upgrade` when `Connection` named it, unless that would hide what follows from us: HTTP/2 in the
/// open (RFC 9113 section 3.1 has ended it), alone or among others.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    // One look at the fields that are there: most heads have none of these, and asking for each by name would cost
    // 1,300 instructions a time.
    if !headers.iter().any(concerns_connection) {
        return None;
    }
    let upgrade = remove_of_connection(headers);
    remove_spellings(headers, &CLIENT_CERTIFICATE);
    upgrade.filter(|value| !offers_http2(value))
}

/// Removes `Connection` and what it names, what it would have to name, and of `TE` all but `trailers`. Returns the value of
/// `Upgrade` when it was named.
fn remove_of_connection(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let mut upgrade = None;
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .filter(may_be_named)
            .collect();
        if named.contains(&header::UPGRADE) {
            upgrade = headers.get(header::UPGRADE).cloned();
        }
        headers.remove(header::CONNECTION);
        for name in named.into_iter().filter(|name| *name != header::TE) {
            headers.remove(name);
        }
    }
    for name in &ALWAYS_REMOVED {
        headers.remove(name);
    }
    if headers.get_all(header::TE).iter().any(|te| te != "trailers") {
        let trailers = headers.get_all(header::TE).iter().any(takes_trailers);
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    upgrade
}

fn takes_trailers(te: &HeaderValue) -> bool {
    let mut codings = te.as_bytes().split(|byte| *byte == b',');
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Removes what HTTP/2 does not know (RFC 9113 section 8.2.2), whoever has put it there.
pub fn strip_connection(headers: &mut HeaderMap) {
    let is_unknown = |(name, value): (&HeaderName, &HeaderValue)| {
        may_concern_connection(name)
            && (*name == header::CONNECTION
                || ALWAYS_REMOVED.contains(name)
                || (*name == header::TE && value != "trailers"))
    };
    if headers.iter().any(is_unknown) {
        remove_of_connection(headers);
    }
}

fn offers_http2(protocols: &HeaderValue) -> bool {
    let mut protocols = protocols.as_bytes().split(|byte| *byte == b',');
    protocols.any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"h2c"))
}

/// Removes a field that only a sidecar may set, in all spellings in which an application may read it.
pub fn remove_spellings(headers: &mut HeaderMap, field: &HeaderName) {
    let spellings = headers.keys().filter(|name| reads_as(name, field));
    for name in spellings.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// Whether some application takes `name` for `field`: to many (CGI and what came of it) all that is neither letter nor
/// digit is the same.
fn reads_as(name: &HeaderName, field: &HeaderName) -> bool {
    let (name, field) = (name.as_str().as_bytes(), field.as_str().as_bytes());
    let same =
        |(a, b): (&u8, &u8)| a == b || (!a.is_ascii_alphanumeric() && !b.is_ascii_alphanumeric());
    name.len() == field.len() && name.iter().zip(field).all(same)
}

/// `Connection` may not name fields that are needed end to end; naming `Host` or `Content-Length` to have a proxy
/// drop them is an attack (hop-by-hop header abuse).
fn may_be_named(name: &HeaderName) -> bool {
    ![
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::AUTHORIZATION,
        header::COOKIE,
    ]
    .contains(name)
        && !name.as_str().starts_with("x-forwarded-")
        && name != "forwarded"
        && name != "x-request-id"
        && name != "traceparent"
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Longest chain of forwarders kept; a loop would grow it without end.
const MAX_FORWARDED: usize = 1024;

/// An address as others are told of it.
pub fn written(address: SocketAddr) -> HeaderValue {
    let text = address.ip().to_canonical().to_string();
    // Digits, dots and colons are always a value.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// Says who called: appends the caller, as [`written`], to `X-Forwarded-For`, fills in `X-Forwarded-Proto` and `-Host`,
/// and extends `Forwarded` where somebody uses it already (RFC 7239; adding it unasked would double every head).
pub fn add_forwarded(
    headers: &mut HeaderMap,
    caller: HeaderValue,
    authority: Option<&HeaderValue>,
) {
    if headers.contains_key(header::FORWARDED) {
        let address = caller.to_str().unwrap_or_default();
        let node = match address.contains(':') {
            true => format!("for=\"[{address}]\""),
            false => format!("for={address}"),
        };
        append_list(headers, header::FORWARDED, &node);
    }
    match headers.entry(X_FORWARDED_FOR) {
        Entry::Vacant(first) => _ = first.insert(caller),
        Entry::Occupied(_) => {
            append_list(headers, X_FORWARDED_FOR, caller.to_str().unwrap_or_default());
        }
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Some(authority) = authority {
        headers.entry(X_FORWARDED_HOST).or_insert_with(|| authority.clone());
    }
}

fn append_list(headers: &mut HeaderMap, name: HeaderName, item: &str) {
    let mut joined = String::new();
    for value in headers.get_all(&name) {
        let Ok(value) = value.to_str() else { continue };
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(value);
    }
    // Too long a chain is cut at its far end: the nearest hops are the ones that can be trusted.
    if joined.len() > MAX_FORWARDED {
        let cut = joined.len() - MAX_FORWARDED;
        let at = joined[cut..].find(',').map_or(joined.len(), |comma| cut + comma + 1);
        joined.drain(..at);
    }
    let value = if joined.is_empty() {
        item.to_owned()
    } else {
        format!("{}, {item}", joined.trim_start())
    };
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// Joins cookie crumbs into one header, which HTTP/1.1 needs (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Whether a request is gRPC, by its content type (gRPC over HTTP/2, "Requests").
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.starts_with(b"application/grpc") && matches!(value.get(16), None | Some(b'+' | b';'))
    })
}

#[cfg(test)]
mod tests;

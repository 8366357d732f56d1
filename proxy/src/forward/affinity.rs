//! Which key a request has for balancers that go by a hash, and the cookie for who has none yet. Pure.

use std::{borrow::Cow, fmt::Write as _, net::IpAddr};

use http::{HeaderMap, HeaderValue, header};
use leno_api::model::traffic_policy::{HashCookie, HashKey};

use crate::{cluster::balance::hash::hash, route::table::decode};

/// Apart from the seeds that place endpoints.
const SEED: u64 = 2;

/// Where a request belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Affinity {
    /// `None`: anywhere.
    pub(super) hash: Option<u64>,
    /// `Set-Cookie` for the caller, so that its next request belongs there, too.
    pub(super) cookie: Option<HeaderValue>,
}

/// What there is to know of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) query: Option<&'a str>,
    /// The peer of the connection on which it came.
    pub(super) source: IpAddr,
}

/// By the first of `keys` that the request has. A cookie that it does not have and that is ours to set is made from
/// `random`.
pub(super) fn of(keys: &[HashKey], request: Request<'_>, random: impl FnOnce() -> u64) -> Affinity {
    let hashed = |bytes: &[u8]| Affinity { hash: Some(hash(bytes, SEED)), cookie: None };
    for key in keys {
        let found = match key {
            HashKey::Header(name) => {
                request.headers.get(name).map(|value| Cow::Borrowed(value.as_bytes()))
            }
            HashKey::Cookie(cookie) => cookie_of(request.headers, &cookie.name).map(Cow::Borrowed),
            HashKey::SourceIp => return source(request.source),
            HashKey::Query(name) => request.query.and_then(|query| parameter(query, name)),
        };
        if let Some(found) = found {
            return hashed(&found);
        }
        if let HashKey::Cookie(cookie) = key
            && cookie.ttl.is_some()
        {
            let value = format!("{:016x}", random());
            return Affinity { cookie: set_cookie(cookie, &value), ..hashed(value.as_bytes()) };
        }
    }
    Affinity::default()
}

/// Of a connection that nobody reads: its source is all there is.
pub(super) fn of_connection(keys: &[HashKey], address: IpAddr) -> Affinity {
    match keys.contains(&HashKey::SourceIp) {
        true => source(address),
        false => Affinity::default(),
    }
}

fn source(address: IpAddr) -> Affinity {
    // The same caller, whichever kind of socket took its connection.
    let bytes = match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    Affinity { hash: Some(hash(&bytes, SEED)), cookie: None }
}

/// The first of that name (RFC 6265 section 5.4); HTTP/2 may send each in a field of its own.
fn cookie_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let fields = headers.get_all(header::COOKIE).iter();
    let pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    let named = |pair: &'a [u8]| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (found, value) = (pair.get(..at)?, pair.get(at + 1..)?);
        (found.trim_ascii() == name.as_bytes()).then(|| value.trim_ascii())
    };
    pairs.into_iter().find_map(named)
}

/// The first of that name, percent-decoded as for routes.
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.into_iter().find(|(key, _)| decode(key) == name)?;
    Some(match decode(value) {
        Cow::Borrowed(value) => Cow::Borrowed(value.as_bytes()),
        Cow::Owned(value) => Cow::Owned(value.into_bytes()),
    })
}

/// RFC 6265 section 4.1. Scripts have no use for it.
fn set_cookie(cookie: &HashCookie, value: &str) -> Option<HeaderValue> {
    let HashCookie { name, ttl, path } = cookie;
    let mut text = format!("{name}={value}; Path={path}");
    if let Some(ttl) = ttl.filter(|ttl| !ttl.is_zero()) {
        // Rounded up: zero would delete it.
        let seconds = ttl.as_millis().div_ceil(1000);
        write!(text, "; Max-Age={seconds}").ok()?;
    }
    text.push_str("; HttpOnly");
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn cookie(ttl: Option<u64>) -> HashKey {
        let ttl = ttl.map(Duration::from_millis);
        HashKey::Cookie(HashCookie { name: "at".to_owned(), ttl, path: "/shop".to_owned() })
    }

    fn header_key() -> HashKey {
        HashKey::Header(header::HeaderName::from_static("x-user"))
    }

    #[test]
    fn the_first_key_that_a_request_has_counts() {
        let keys =
            [header_key(), cookie(None), HashKey::Query("user id".to_owned()), HashKey::SourceIp];
        let of_text = |text: &str| Some(hash(text.as_bytes(), SEED));
        let source = Some(hash(&[10, 1, 2, 3], SEED));
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>, Option<u64>);
        let table: [Case<'_>; 8] = [
            (&[("x-user", "ann"), ("cookie", "at=bob")], Some("user+id=c"), of_text("ann")),
            (&[("cookie", "a=1; at=bob ;at=c")], Some("user+id=c"), of_text("bob")),
            (&[("cookie", "a=1"), ("cookie", "at=")], None, of_text("")),
            (&[("cookie", "AT=bob; att=1; at")], Some("x=1&user%20id=c%2Fd"), of_text("c/d")),
            (&[], Some("user+id"), of_text("")),
            (&[], Some("userid=1"), source),
            (&[], None, source),
            (&[("x-user", "")], None, of_text("")),
        ];
        for (fields, query, hash) in table {
            let headers: HeaderMap = {
                let mut headers = HeaderMap::new();
                for (name, value) in fields {
                    let name = header::HeaderName::from_bytes(name.as_bytes()).unwrap();
                    headers.append(name, value.parse().unwrap());
                }
                headers
            };
            let request = Request { headers: &headers, query, source: SOURCE };
            let affinity = of(&keys, request, || unreachable!());
            assert_eq!(affinity, Affinity { hash, cookie: None }, "{fields:?} {query:?}");
        }
    }

    #[test]
    fn who_has_no_key_goes_anywhere() {
        let headers = headers(&[("x-other", "1")]);
        let request = Request { headers: &headers, query: None, source: SOURCE };
        assert_eq!(of(&[header_key(), cookie(None)], request, || 1), Affinity::default());
        assert_eq!(of(&[], request, || 1), Affinity::default());
    }

    #[test]
    fn a_cookie_that_is_set_belongs_where_its_first_request_went() {
        let none = headers(&[]);
        let request = Request { headers: &none, query: None, source: SOURCE };
        for (ttl, attribute) in [(0, ""), (1, "; Max-Age=1"), (90_000, "; Max-Age=90")] {
            let keys = [header_key(), cookie(Some(ttl)), HashKey::SourceIp];
            let set = of(&keys, request, || 0xab);
            let text = set.cookie.as_ref().unwrap().to_str().unwrap();
            assert_eq!(text, format!("at=00000000000000ab; Path=/shop{attribute}; HttpOnly"));
            let next = headers(&[("cookie", "at=00000000000000ab")]);
            let next = of(&keys, Request { headers: &next, ..request }, || unreachable!());
            assert_eq!(next, Affinity { hash: set.hash, cookie: None });
        }
    }

    #[test]
    fn connections_are_known_by_their_source() {
        let mapped = "::ffff:10.1.2.3".parse().unwrap();
        let keys = [cookie(Some(5)), HashKey::SourceIp];
        let affinity = of_connection(&keys, SOURCE);
        assert!(affinity.hash.is_some() && affinity == of_connection(&keys, mapped));
        assert_ne!(affinity, of_connection(&keys, "10.1.2.4".parse().unwrap()));
        assert_eq!(of_connection(&keys[..1], SOURCE), Affinity::default());
    }
}

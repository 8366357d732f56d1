//! Whether a response may be kept, and what of it (RFC 9111 section 3).

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    directives::{Directives, Target},
    freshness, variants,
};

/// Fields that are about the connection or the hop, never kept (section 3.1), beside those that `Connection` names.
const OF_THE_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A request, as far as its response depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its fields, as the origin gets them.
    pub headers: &'a HeaderMap,
    /// What it says of caches.
    pub directives: &'a Directives,
}

/// The head of its response.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: &'a HeaderMap,
    /// What it says to this cache.
    pub directives: &'a Directives,
    /// For whom that was written.
    pub target: Target,
    /// Whether `Content-Location` names the target of the request.
    pub is_representation: bool,
}

/// Why a response is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// Responses to such methods are not.
    Method,
    /// A response that is not the last one, a part, or news about another one.
    Status,
    /// The caller does not want it.
    RequestNoStore,
    /// The origin does not want it.
    NoStore,
    /// It is for one user.
    Private,
    /// It was made for who showed these credentials, and the origin does not say that others may have it.
    Authorization,
    /// `Vary: *`.
    VaryStar,
    /// It demands to be understood, and its status is not.
    NotUnderstood,
    /// Nothing says how long it is good for, and it could not be validated.
    NothingToGoBy,
}

impl NotStored {
    /// For `detail` of `Cache-Status` (RFC 9211 section 2.8) and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Status => "status",
            Self::RequestNoStore => "request-no-store",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::VaryStar => "vary-star",
            Self::NotUnderstood => "not-understood",
            Self::NothingToGoBy => "no-freshness",
        }
    }
}

/// Whether the response may be kept. `has_default`: somebody who knows the origin says how long its responses without a
/// word on freshness are good for.
///
/// # Errors
/// Why not.
pub fn check(asked: Asked<'_>, answered: Answered<'_>, has_default: bool) -> Result<(), NotStored> {
    let Answered { status, headers, directives, target, is_representation } = answered;
    let explicit = freshness::is_explicit(headers, directives, target);
    let method = match *asked.method {
        Method::GET => true,
        // RFC 9110 section 9.3.3: with both, it is what a GET would have brought.
        Method::POST => explicit && is_representation,
        _ => false,
    };
    if !method {
        return Err(NotStored::Method);
    }
    // Beyond 599 nobody knows what it is (RFC 9110 section 15).
    if matches!(status.as_u16(), ..200 | 206 | 304 | 600..) {
        return Err(NotStored::Status);
    }
    if asked.directives.no_store {
        return Err(NotStored::RequestNoStore);
    }
    if directives.must_understand && !is_understood(status) {
        return Err(NotStored::NotUnderstood);
    }
    // Section 5.2.2.3: who understands may ignore a `no-store` beside it.
    if directives.no_store && !directives.must_understand {
        return Err(NotStored::NoStore);
    }
    if directives.private {
        return Err(NotStored::Private);
    }
    let for_others =
        directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    if asked.headers.contains_key(header::AUTHORIZATION) && !for_others {
        return Err(NotStored::Authorization);
    }
    if variants::is_star(headers) {
        return Err(NotStored::VaryStar);
    }
    let validator =
        headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED);
    let heuristic = freshness::is_heuristic(status) || directives.public;
    match explicit || (heuristic && validator) || has_default {
        true => Ok(()),
        false => Err(NotStored::NothingToGoBy),
    }
}

/// Statuses whose demands on caches are met here: those of RFC 9110 section 15 that need nothing but what every response
/// needs.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=204 | 300..=303 | 307 | 308 | 400..=411 | 413..=417 | 421 | 422 | 426 | 500..=505
    )
}

/// The fields that are kept: not those of the hop (section 3.1), not those that are for one user, not those that may not
/// be used without validation. `Age` is counted anew: it has its place here, and its value comes with each answer. All
/// values are copied into memory of their own: as they come they are parts of what was read from the connection, which
/// would stay with them.
pub fn stored_fields(headers: &HeaderMap, directives: &Directives) -> HeaderMap {
    let mut kept = headers.clone();
    for name in &of_the_hop(headers) {
        kept.remove(name);
    }
    for name in directives.private_fields.iter().chain(&directives.no_cache_fields) {
        kept.remove(name);
    }
    kept.insert(header::AGE, HeaderValue::from_static("0"));
    copied(&kept)
}

/// The names of those fields that are about the connection or the hop.
pub fn of_the_hop(headers: &HeaderMap) -> Vec<HeaderName> {
    let named = headers.get_all(header::CONNECTION).iter();
    let named = named.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named = named.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    OF_THE_HOP.into_iter().chain(named).collect()
}

/// The same fields in memory of their own.
pub fn copied(fields: &HeaderMap) -> HeaderMap {
    let length = fields.values().map(HeaderValue::len).sum();
    let mut all = BytesMut::with_capacity(length);
    // With room in its table for what is said of an answer from here: it would grow for each anew.
    let mut copy = HeaderMap::with_capacity(fields.len() + 2);
    for (name, value) in fields {
        all.extend_from_slice(value.as_bytes());
        // Nothing is lost: what was a value is one.
        if let Ok(value) = HeaderValue::from_maybe_shared(all.split().freeze()) {
            copy.append(name, value);
        }
    }
    // Without what the vector of values has to spare.
    copy.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::fixtures::headers;

    fn checked(
        method: Method,
        request: &[(&'static str, &str)],
        status: u16,
        response: &[(&'static str, &str)],
    ) -> Result<(), NotStored> {
        let (request, response) = (headers(request), headers(response));
        let asked = Asked {
            method: &method,
            headers: &request,
            directives: &Directives::of_request(&request),
        };
        let (directives, target) = Directives::of_response(&response);
        let answered = Answered {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &response,
            directives: &directives,
            target,
            is_representation: response.contains_key(header::CONTENT_LOCATION),
        };
        check(asked, answered, false)
    }

    #[test]
    fn what_is_kept_has_memory_of_its_own() {
        let read = bytes::Bytes::from(vec![b'x'; 8192]);
        let mut headers = HeaderMap::new();
        let value = || HeaderValue::from_maybe_shared(read.slice(..3)).unwrap();
        for name in ["x-a", "x-b"] {
            headers.append(HeaderName::from_static(name), value());
        }
        headers.append("x-a", value());
        let kept = stored_fields(&headers, &Directives::default());
        headers.insert(header::AGE, HeaderValue::from_static("0"));
        assert_eq!(kept, headers);
        drop(headers);
        assert!(read.is_unique(), "nothing else holds what was read");
    }

    #[test]
    fn section_3() {
        let fresh = ("cache-control", "max-age=60");
        let get =
            |status, response: &[(&'static str, &str)]| checked(Method::GET, &[], status, response);
        for status in
            [200, 203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 499, 500, 503, 599]
        {
            assert_eq!(get(status, &[fresh]), Ok(()), "{status}");
        }
        for status in [103, 206, 304] {
            assert_eq!(get(status, &[fresh]), Err(NotStored::Status), "{status}");
        }
        assert_eq!(get(200, &[]), Err(NotStored::NothingToGoBy));
        assert_eq!(get(200, &[("etag", "\"a\"")]), Ok(()));
        assert_eq!(get(200, &[("expires", "0")]), Ok(()));
        assert_eq!(get(201, &[("last-modified", "x")]), Err(NotStored::NothingToGoBy));
        assert_eq!(get(599, &[("etag", "\"a\""), ("cache-control", "public")]), Ok(()));
        for (control, why) in [
            ("max-age=60, no-store", NotStored::NoStore),
            ("max-age=60, nO-StOrE", NotStored::NoStore),
            ("max-age=60, private", NotStored::Private),
        ] {
            assert_eq!(get(200, &[("cache-control", control)]), Err(why), "{control}");
        }
        assert_eq!(get(200, &[("cache-control", "private=\"a\", max-age=1")]), Ok(()));
        for vary in ["*", "*, *", ", *", "*, Foo", "Foo, *"] {
            assert_eq!(get(200, &[fresh, ("vary", vary)]), Err(NotStored::VaryStar), "{vary}");
        }
        assert_eq!(get(200, &[fresh, ("vary", ""), ("vary", "*")]), Err(NotStored::VaryStar));
    }

    #[test]
    fn section_5_2_2_3_understanding() {
        let control = ("cache-control", "max-age=60, must-understand, no-store");
        assert_eq!(checked(Method::GET, &[], 200, &[control]), Ok(()));
        let unknown = checked(Method::GET, &[], 599, &[control]);
        assert_eq!(unknown, Err(NotStored::NotUnderstood));
    }

    #[test]
    fn section_3_5_credentials() {
        let request = [("authorization", "Basic YTpi")];
        for (control, stored) in [
            ("max-age=60", Err(NotStored::Authorization)),
            ("max-age=60, public", Ok(())),
            ("max-age=60, must-revalidate", Ok(())),
            ("s-maxage=60", Ok(())),
        ] {
            let checked = checked(Method::GET, &request, 200, &[("cache-control", control)]);
            assert_eq!(checked, stored, "{control}");
        }
    }

    #[test]
    fn methods() {
        let fresh = ("cache-control", "max-age=60");
        let here = ("content-location", "/");
        assert_eq!(checked(Method::POST, &[], 200, &[fresh, here]), Ok(()));
        assert_eq!(checked(Method::POST, &[], 200, &[fresh]), Err(NotStored::Method));
        assert_eq!(checked(Method::POST, &[], 200, &[here]), Err(NotStored::Method));
        for method in [Method::HEAD, Method::PUT, Method::OPTIONS, Method::DELETE] {
            assert_eq!(checked(method, &[], 200, &[fresh, here]), Err(NotStored::Method));
        }
        let request = [("cache-control", "no-store")];
        let refused = checked(Method::GET, &request, 200, &[fresh]);
        assert_eq!(refused, Err(NotStored::RequestNoStore));
    }

    #[test]
    fn section_3_1_fields() {
        let response = headers(&[
            ("connection", "X-Hop, close"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("te", "a"),
            ("proxy-authenticate", "a"),
            ("age", "7"),
            ("set-cookie", "a=b"),
            ("x-user", "1"),
            ("x-token", "1"),
            ("content-type", "text/plain"),
            ("cache-control", "private=x-user, no-cache=\"x-token\""),
        ]);
        let (directives, _) = Directives::of_response(&response);
        let kept = stored_fields(&response, &directives);
        let names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(kept["age"], "0", "it is counted anew");
        assert!(kept.contains_key("set-cookie") && kept.contains_key("content-type"));
    }
}

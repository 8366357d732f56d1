//! Fuzz targets (`fuzz/`): none of them may panic, whatever the bytes are, and what they say must hold.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};

pub use crate::config::source::control_plane::fuzz::responses;
use crate::{
    cache::policy::{
        directives::Directives,
        freshness::{self, Times},
        ranges::Part,
        storing,
    },
    http::head,
};

/// The head of a request: what is refused, and what becomes of it.
pub fn heads(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (line, fields) = text.split_once('\n').unwrap_or((&text, ""));
    let mut words = line.split(' ');
    let method = words.next().and_then(|word| Method::from_bytes(word.as_bytes()).ok());
    let uri = words.next().and_then(|word| word.parse::<Uri>().ok());
    let (Some(method), Some(uri)) = (method, uri) else { return };
    let http2 = words.next() == Some("HTTP/2");
    let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    let mut headers = self::fields(fields);
    if let Ok(target) = head::target(version, &uri, &headers) {
        let v6 = target.host.contains(':');
        let host = if v6 { format!("[{}]", target.host) } else { target.host.clone() };
        let written = target.port.map_or(host.clone(), |port| format!("{host}:{port}"));
        assert_eq!(head::Target::parse(&written), Some(target), "{written}");
    }
    let checked = head::check(&method, version, &uri, &headers);
    if let Ok(Some(path)) = head::normal_path(&uri) {
        let again = Uri::from(path.clone());
        assert_eq!(head::normal_path(&again), Ok(None), "{path}");
    }
    head::strip_hop_by_hop(&mut headers);
    assert!(!headers.contains_key(header::CONNECTION), "{headers:?}");
    let framed = headers.contains_key(header::TRANSFER_ENCODING);
    assert!(checked.is_err() || !framed, "{headers:?}");
    head::join_cookies(&mut headers);
    assert!(headers.get_all(header::COOKIE).iter().count() <= 1);
    head::is_grpc(&headers);
}

/// The fields of a request, an empty line, those of its response: how long it is good for, and which part is asked for.
pub fn cache(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (request, response) = text.split_once("\n\n").unwrap_or((&text, ""));
    let (request, response) = (fields(request), fields(response));
    Directives::of_request(&request);
    let (directives, target) = Directives::of_response(&response);
    let now = Duration::from_secs(1_800_000_000);
    let times = Times { requested: now.saturating_sub(Duration::from_secs(1)), received: now };
    for status in [StatusCode::OK, StatusCode::NOT_FOUND, StatusCode::PARTIAL_CONTENT] {
        let found = freshness::of_response(status, &response, &directives, target, times, None);
        // It only gets older, and what is stale does not become fresh.
        let later = now.saturating_add(Duration::from_secs(3600));
        assert!(found.age(now) <= found.age(later) && found.age(later) <= found.age(Duration::MAX));
        assert!(found.is_fresh(now) || !found.is_fresh(later), "{found:?}");
        assert!(found.is_fresh(later) != (found.lifetime <= found.age(later)), "{found:?}");
    }
    let kept = storing::stored_fields(&response, &directives);
    assert!(!kept.contains_key(header::CONNECTION) && kept[header::AGE] == "0");
    for length in [0, 1, 100, u64::MAX] {
        let part = Part::of(&request, &response, length);
        if let Part::Bytes { first, last } = part {
            assert!(first <= last && last < length, "{part:?} of {length}");
        }
        part.content_range(length);
    }
}

/// `name: value` in every line; what is none is left out.
fn fields(text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.lines().take(100) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let name = HeaderName::from_bytes(name.trim().as_bytes());
        let value = HeaderValue::from_bytes(value.trim().as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

#[cfg(test)]
#[path = "../../fuzz/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_checked_without_panic() {
        mutate::run("heads", 20_000, heads);
    }

    #[test]
    fn caching_is_decided_without_panic() {
        mutate::run("cache", 20_000, cache);
    }

    #[test]
    fn responses_of_the_control_plane_do_not_panic() {
        mutate::run("responses", 10_000, responses);
    }
}

//! Which requests to the admin port are answered at all. Pure.

use std::net::IpAddr;

use http::{HeaderMap, Method, StatusCode, header};

/// Refuses what a web page in an operator's browser could send: other hosts in `Host` (DNS rebinding) and requests with
/// an `Origin`.
///
/// # Errors
/// The status and what to do instead.
pub(super) fn check(
    method: &Method,
    headers: &HeaderMap,
) -> Result<(), (StatusCode, &'static str)> {
    if headers.contains_key(header::ORIGIN) {
        return Err((StatusCode::FORBIDDEN, "requests from web pages are not answered"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_address(host) {
        return Err((StatusCode::FORBIDDEN, "name the address in Host, or localhost"));
    }
    if ![Method::GET, Method::HEAD, Method::POST].contains(method) {
        return Err((
            StatusCode::METHOD_NOT_ALLOWED,
            "use GET, or POST for what changes something",
        ));
    }
    Ok(())
}

fn is_address(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn web_pages_are_kept_out() {
        let with = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            check(&Method::GET, &headers).is_ok()
        };
        assert!(
            with(&[("host", "127.0.0.1:15000")])
                && with(&[("host", "localhost")])
                && with(&[("host", "[::1]:1")])
        );
        assert!(!with(&[("host", "evil.example")]) && !with(&[]));
        assert!(!with(&[("host", "127.0.0.1"), ("origin", "http://evil.example")]));
    }
}

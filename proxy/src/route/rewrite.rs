//! What a route does to a request's target: rewrites and redirects.

use http::{
    HeaderValue, Uri,
    uri::{Authority, PathAndQuery},
};
use leno_api::model::filter::{PathChange, Redirect};

/// The path after `change`, query kept. `prefix` is the matched prefix without trailing slash.
///
/// Gateway API, `HTTPPathModifier`: replacing `/foo` by `/xyz` turns `/foo/bar` into `/xyz/bar`, `/foo` into
/// `/xyz`, and by `/` turns `/foo/bar` into `/bar`.
pub fn change_path(uri: &Uri, change: &PathChange, prefix: &str) -> Option<PathAndQuery> {
    let mut path = match change {
        PathChange::Full(full) => full.clone(),
        PathChange::Prefix(replacement) => {
            let rest = uri.path().strip_prefix(prefix).unwrap_or(uri.path());
            let replacement =
                if rest.is_empty() { replacement } else { replacement.trim_end_matches('/') };
            format!("{replacement}{rest}")
        }
    };
    if path.is_empty() {
        path.push('/');
    }
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    PathAndQuery::try_from(path).ok()
}

/// The `Location` of a redirect. What the filter leaves out stays as in the request; a port is left out where it is
/// the scheme's own (Gateway API, `HTTPRequestRedirectFilter.port`).
pub fn location(
    redirect: &Redirect,
    uri: &Uri,
    host: &str,
    port: Option<u16>,
    prefix: &str,
) -> Option<HeaderValue> {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let host = redirect.hostname.as_ref().map_or(host, |hostname| hostname.as_str());
    let own = if scheme == "https" { 443 } else { 80 };
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => Some(port),
        (None, Some(_)) => None,
        (None, None) => port,
    };
    let path = match &redirect.path {
        Some(change) => change_path(uri, change, prefix)?,
        None => uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
    };
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let location = match port.filter(|port| *port != own) {
        Some(port) => format!("{scheme}://{bracketed}:{port}{path}"),
        None => format!("{scheme}://{bracketed}{path}"),
    };
    HeaderValue::try_from(location).ok()
}

/// The same target with another path.
pub fn with_path(uri: &Uri, path: PathAndQuery) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// The same target with another authority, where it has one (HTTP/2, absolute form).
pub fn with_authority(uri: &Uri, authority: Authority) -> Uri {
    let mut parts = uri.clone().into_parts();
    if parts.authority.is_some() {
        parts.authority = Some(authority);
    }
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn prefixes_are_replaced_as_gateway_api_tables_it() {
        // The table of HTTPPathModifier.replacePrefixMatch.
        for (path, prefix, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar?a=b", "/foo", "/", "/bar?a=b"),
            ("/foo", "", "/xyz", "/xyz/foo"),
        ] {
            let change = PathChange::Prefix(replacement.to_owned());
            let changed = change_path(&path.parse().unwrap(), &change, prefix).unwrap();
            assert_eq!(changed.as_str(), expected, "{path} {prefix} {replacement}");
        }
        let full =
            change_path(&"/a?q".parse().unwrap(), &PathChange::Full("/b".into()), "").unwrap();
        assert_eq!(full.as_str(), "/b?q");
    }

    #[test]
    fn locations_keep_what_is_left_out() {
        let redirect = Redirect {
            scheme: None,
            hostname: None,
            path: None,
            port: None,
            status: StatusCode::FOUND,
        };
        let uri: Uri = "/a?b".parse().unwrap();
        let go = |redirect: &Redirect, port| location(redirect, &uri, "orders", port, "").unwrap();
        assert_eq!(go(&redirect, Some(8080)), "http://orders:8080/a?b");
        assert_eq!(go(&redirect, Some(80)), "http://orders/a?b");
        let secure = Redirect { scheme: Some("https".into()), ..redirect.clone() };
        assert_eq!(go(&secure, Some(8080)), "https://orders/a?b");
        let other = Redirect { port: Some(8443), ..secure };
        assert_eq!(go(&other, None), "https://orders:8443/a?b");
    }
}

//! What a change at the origin makes void (RFC 9111 section 4.4).

use http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority};

/// Whether a response to `method` says that what was stored for its target may not hold any more: one that is not an error,
/// to a method that is not safe (RFC 9110 section 9.2.1) or not known.
pub fn is_change(method: &Method, status: StatusCode) -> bool {
    let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    !safe && (status.is_success() || status.is_redirection())
}

/// Paths with their queries that are void after a change at `target`: its own, and those in `Location` and
/// `Content-Location` of the response where they are of the same authority. Others could be anybody's.
pub fn void(authority: &str, target: &Uri, response: &HeaderMap) -> Vec<String> {
    let own = path_of(target);
    let mut void = vec![own];
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let named = response.get(&name).and_then(|value| value.to_str().ok());
        let path = named.and_then(|reference| resolve(authority, target, reference));
        if let Some(path) = path
            && !void.contains(&path)
        {
            void.push(path);
        }
    }
    void
}

/// The path, with its query, that `reference` means when it stands in a response for `target`; `None` where it is of
/// another authority, or no reference.
pub fn resolve(authority: &str, target: &Uri, reference: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default();
    if reference.starts_with("//") {
        return resolve(authority, target, &format!("http:{reference}"));
    }
    let uri = |text: &str| text.parse::<Uri>().ok();
    if reference.is_empty() {
        return Some(path_of(target));
    }
    if reference.starts_with('/') {
        return uri(reference).as_ref().map(path_of);
    }
    if let Some(absolute) = uri(reference).filter(|uri| uri.scheme().is_some()) {
        let same = absolute.authority().is_some_and(|other| is_same(authority, other));
        return same.then(|| path_of(&absolute));
    }
    if reference.starts_with('?') {
        return uri(&format!("{}{reference}", target.path())).as_ref().map(path_of);
    }
    // RFC 3986 section 5.2.3: from the last segment on.
    let (base, _) = target.path().rsplit_once('/')?;
    uri(&without_dots(&format!("{base}/{reference}"))).as_ref().map(path_of)
}

/// Case does not matter, nor a port that is the usual one.
fn is_same(authority: &str, other: &Authority) -> bool {
    let usual = |text: &str| {
        let text = text.to_ascii_lowercase();
        let bare = text.strip_suffix(":80").or_else(|| text.strip_suffix(":443"));
        bare.map(str::to_owned).unwrap_or(text)
    };
    usual(authority) == usual(other.as_str())
}

fn path_of(uri: &Uri) -> String {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    if path.is_empty() { "/".to_owned() } else { path.to_owned() }
}

/// RFC 3986 section 5.2.4, for the path before a query.
fn without_dots(reference: &str) -> String {
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (reference, None),
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_4_4() {
        let status = |status| StatusCode::from_u16(status).unwrap();
        let search = Method::from_bytes(b"M-SEARCH").unwrap();
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, search] {
            for (code, change) in
                [(200, true), (204, true), (302, true), (404, false), (500, false)]
            {
                assert_eq!(is_change(&method, status(code)), change, "{method} {code}");
            }
        }
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
            assert!(!is_change(&method, status(200)));
        }
    }

    #[test]
    fn references_are_those_of_the_same_authority() {
        let target: Uri = "/shop/orders/1?a=b".parse().unwrap();
        for (reference, path) in [
            ("/x", Some("/x")),
            ("/x?y#z", Some("/x?y")),
            ("2", Some("/shop/orders/2")),
            ("2?c", Some("/shop/orders/2?c")),
            ("../carts/./3", Some("/shop/carts/3")),
            ("..", Some("/shop/")),
            (".", Some("/shop/orders/")),
            ("../../../../x", Some("/x")),
            ("?c=d", Some("/shop/orders/1?c=d")),
            ("#top", Some("/shop/orders/1?a=b")),
            ("", Some("/shop/orders/1?a=b")),
            ("http://Orders.shop/x", Some("/x")),
            ("http://orders.shop:80", Some("/")),
            ("//orders.shop/x", Some("/x")),
            ("http://others.shop/x", None),
            ("//others.shop/x", None),
            ("http://orders.shop:81/x", None),
            ("/a b", None),
        ] {
            let resolved = resolve("orders.shop", &target, reference);
            assert_eq!(resolved.as_deref(), path, "{reference}");
        }
    }

    #[test]
    fn what_is_void() {
        let mut response = HeaderMap::new();
        response.insert(header::LOCATION, "/new".parse().unwrap());
        response.insert(header::CONTENT_LOCATION, "http://other/x".parse().unwrap());
        let target: Uri = "/a".parse().unwrap();
        assert_eq!(void("a.b", &target, &response), ["/a", "/new"]);
        response.insert(header::CONTENT_LOCATION, "/a".parse().unwrap());
        assert_eq!(void("a.b", &target, &response), ["/a", "/new"]);
    }
}

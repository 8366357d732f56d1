use http::HeaderValue;
use leno_api::{Resource, model::Model};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn conditions(matches: serde_json::Value) -> Vec<HttpMatch> {
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "s"}], "rules": [{"matches": matches}]},
    });
    match Resource::from_json(route).unwrap().model {
        Model::HttpRoute(route) => route.rules[0].matches.clone(),
        _ => unreachable!(),
    }
}

/// Entries in the order given, each named by its index; `hosts` gives the hostname of each.
fn entries(matches: serde_json::Value, hosts: &[Option<&str>]) -> Vec<Entry<usize>> {
    let conditions = conditions(matches).into_iter().enumerate();
    conditions
        .map(|(i, condition)| Entry {
            hostname: hosts.get(i).copied().flatten().map(Into::into),
            condition,
            rank: (false, "".into(), "".into(), i, 0),
            rule: i,
        })
        .collect()
}

fn find(
    table: &Table<usize>,
    host: &str,
    method: &str,
    target: &str,
    header: Option<&str>,
) -> Option<usize> {
    let uri: http::Uri = target.parse().unwrap();
    let mut headers = HeaderMap::new();
    if let Some(value) = header {
        headers.insert("x-user", HeaderValue::from_str(value).unwrap());
    }
    let method = method.parse().unwrap();
    let request =
        Request { host, method: &method, path: uri.path(), query: uri.query(), headers: &headers };
    table.find(request).map(|found| *found.rule)
}

#[test]
fn precedence_is_gateway_apis() {
    let table = Table::new(entries(
        json!([
            {"path": {"value": "/"}},
            {"path": {"value": "/a"}},
            {"path": {"value": "/a/b/"}},
            {"path": {"type": "Exact", "value": "/a/b"}},
            {"path": {"type": "RegularExpression", "value": "/a/[0-9]+"}},
            {"path": {"value": "/a"}, "method": "POST"},
            {"path": {"value": "/a"}, "headers": [{"name": "X-User", "value": "vip"}]},
            {"path": {"value": "/a"}, "queryParams": [{"name": "q", "value": "a b"}]},
            {"path": {"value": "/a"}, "method": "POST"},
        ]),
        &[],
    ));
    for (method, target, header, expected) in [
        ("GET", "/", None, 0),
        ("GET", "/ab", None, 0),
        ("GET", "/a", None, 1),
        ("GET", "/a/x/y", None, 1),
        ("GET", "/a/b", None, 3),
        ("GET", "/a/b/c", None, 2),
        ("GET", "/a/7", None, 4),
        ("POST", "/a", None, 5),
        ("GET", "/a", Some("vip"), 6),
        ("POST", "/a", Some("vip"), 5),
        ("GET", "/a?x=1&q=a+b", None, 7),
        ("GET", "/a?q=a%20b&q=z", None, 7),
        ("GET", "/a?q=z&q=a%20b", None, 1),
    ] {
        assert_eq!(
            find(&table, "h", method, target, header),
            Some(expected),
            "{method} {target} {header:?}"
        );
    }
}

#[test]
fn the_most_specific_hostname_comes_first() {
    let hosts = [
        None,
        Some("*.example.com"),
        Some("*.a.example.com"),
        Some("x.a.example.com"),
        Some("*.example.com"),
    ];
    let table = Table::new(entries(
        json!([
            {"path": {"value": "/"}}, {"path": {"value": "/"}}, {"path": {"value": "/"}},
            {"path": {"value": "/only"}}, {"path": {"value": "/deep"}},
        ]),
        &hosts,
    ));
    assert_eq!(find(&table, "other", "GET", "/", None), Some(0));
    assert_eq!(find(&table, "b.example.com", "GET", "/", None), Some(1));
    assert_eq!(find(&table, "b.example.com", "GET", "/deep", None), Some(4));
    assert_eq!(find(&table, "y.a.example.com", "GET", "/", None), Some(2));
    assert_eq!(find(&table, "x.a.example.com", "GET", "/only", None), Some(3));
    assert_eq!(find(&table, "x.a.example.com", "GET", "/", None), Some(2));
    assert_eq!(find(&table, "example.com", "GET", "/", None), Some(0));
}

#[test]
fn a_second_header_line_cannot_hide() {
    let conditions = json!([{"headers": [{"name": "x-user", "value": "vip"}]}]);
    let table = Table::new(entries(conditions, &[]));
    let mut headers = HeaderMap::new();
    headers.append("x-user", HeaderValue::from_static("vip"));
    headers.append("x-user", HeaderValue::from_static("other"));
    let request =
        Request { host: "h", method: &Method::GET, path: "/", query: None, headers: &headers };
    assert!(table.find(request).is_none());
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]", 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
}

proptest! {
    /// The index finds what going through all entries in order of precedence finds.
    #[test]
    fn the_index_agrees_with_a_walk(
        rows in proptest::collection::vec((path(), 0..3u8, any::<bool>(), 0..3usize), 1..12),
        target in path(),
        post: bool,
        host in 0..4usize,
    ) {
        let hostnames = [None, Some("h.x.y"), Some("*.y")];
        let matches: Vec<_> = rows.iter().map(|(path, kind, method, _)| {
            let kind = ["Exact", "PathPrefix", "RegularExpression"][usize::from(*kind)];
            let mut row = json!({"path": {"type": kind, "value": path}});
            if *method {
                row["method"] = json!("POST");
            }
            row
        }).collect();
        let hosts: Vec<_> = rows.iter().map(|row| hostnames[row.3]).collect();
        let mut all = entries(json!(matches), &hosts);
        let table = Table::new(all.clone());
        let host = ["h.x.y", "z.y", "y", "q"][host];
        let method = if post { "POST" } else { "GET" };

        let host_rank = |hostname: &Option<Arc<str>>| match hostname.as_deref() {
            Some(name) if !name.starts_with('*') => (0, Reverse(name.len())),
            Some(name) => (1, Reverse(name.len())),
            None => (2, Reverse(0)),
        };
        all.sort_by_key(|entry| (host_rank(&entry.hostname), specificity(&entry.condition), entry.rank.clone()));
        let walked = all.iter().find(|entry| {
            let host_fits = entry.hostname.as_deref().is_none_or(|name| match name.strip_prefix('*') {
                Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
                None => name == host,
            });
            let method_fits = entry.condition.method.as_ref().is_none_or(|wanted| wanted.as_str() == method);
            host_fits && method_fits && entry.condition.path.matches(&target)
        });
        prop_assert_eq!(find(&table, host, method, &target, None), walked.map(|entry| entry.rule));
    }
}

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

fn rank(name: &str, at: usize) -> Rank {
    let (created, name) = ("".into(), name.into());
    let origin = Arc::new(Origin { undated: false, created, name, kind: "HTTPRoute" });
    Rank { origin, rule: u32::try_from(at).unwrap(), at: 0 }
}

/// Entries in the order given, each named by its index; `hosts` gives the hostname of each.
fn entries(matches: serde_json::Value, hosts: &[Option<&str>]) -> Vec<Entry<usize>> {
    let conditions = conditions(matches).into_iter().enumerate();
    conditions
        .map(|(i, condition)| Entry {
            hostname: hosts.get(i).copied().flatten().map(Into::into),
            condition,
            rank: rank("", i),
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

proptest! {
    /// Taking routes out and putting others in ends where building all of it anew does.
    #[test]
    fn a_changed_table_is_as_one_made_anew(
        rows in proptest::collection::vec((path(), 0..3u8, any::<bool>(), 0..3usize, 0..3usize), 1..12),
        changed in proptest::collection::vec((path(), 0..3u8, any::<bool>(), 0..3usize, 0..3usize), 0..6),
        gone in 0..4usize,
        targets in proptest::collection::vec(path(), 1..6),
    ) {
        let names = ["a", "b", "c", "nobody"];
        let hostnames = [None, Some("h.x.y"), Some("*.y")];
        let make = |rows: &[(String, u8, bool, usize, usize)], first: usize| {
            let matches: Vec<_> = rows.iter().map(|(path, kind, method, ..)| {
                let kind = ["Exact", "PathPrefix", "RegularExpression"][usize::from(*kind)];
                let mut row = json!({"path": {"type": kind, "value": path}});
                if *method {
                    row["method"] = json!("POST");
                }
                row
            }).collect();
            let hosts: Vec<_> = rows.iter().map(|row| hostnames[row.3]).collect();
            let mut made = if rows.is_empty() { Vec::new() } else { entries(json!(matches), &hosts) };
            for (entry, row) in made.iter_mut().zip(rows) {
                entry.rule += first;
                entry.rank = rank(names[row.4], entry.rule);
            }
            made
        };
        let gone = names[gone];
        let before = make(&rows, 0);
        let added = make(&changed, 100);
        let (out, stay): (Vec<_>, Vec<_>) =
            before.clone().into_iter().partition(|entry| &*entry.rank.origin.name == gone);
        let places = out.iter().map(|entry| Place::new(entry.hostname.clone(), &entry.condition));
        let routes = [("HTTPRoute", gone)].into_iter().collect();
        let table = Table::new(before);
        let replaced = table.replace(Gone { routes, places: places.collect() }, added.clone());
        let anew = Table::new(stay.into_iter().chain(added).collect());
        for host in ["h.x.y", "z.y", "q"] {
            for (target, method) in targets.iter().flat_map(|target| [(target, "GET"), (target, "POST")]) {
                prop_assert_eq!(
                    find(&replaced, host, method, target, None),
                    find(&anew, host, method, target, None)
                );
            }
        }
        let all = |table: &Table<usize>| {
            let mut rules: Vec<_> = table.rules().copied().collect();
            rules.sort_unstable();
            rules
        };
        prop_assert_eq!(all(&replaced), all(&anew));
        prop_assert_eq!(replaced.is_empty(), anew.is_empty());
        prop_assert_eq!(replaced.hosts.len(), anew.hosts.len());
        prop_assert_eq!(replaced.wildcards.len(), anew.wildcards.len());
    }
}

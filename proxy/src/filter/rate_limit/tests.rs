use http::HeaderName;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn model(name: &str, requests: u32, by: Vec<LimitKey>) -> model::Limit {
    model::Limit {
        name: name.into(),
        requests,
        per: SECOND,
        burst: requests,
        by,
        matches: Vec::new(),
        scope: LimitScope::Local,
        status: 429,
    }
}

fn limit(name: &str, requests: u32, by: Vec<LimitKey>) -> Arc<Limit> {
    Arc::new(Limit::new("shop/orders".into(), model(name, requests, by), None))
}

/// A request as tests say it.
#[derive(Clone, Debug)]
struct Request {
    path: &'static str,
    caller: Option<&'static str>,
    source: u8,
    headers: HeaderMap,
}

fn request(caller: Option<&'static str>, path: &'static str, tenants: &[&str]) -> Request {
    let mut headers = HeaderMap::new();
    for tenant in tenants {
        headers.append("x-tenant", HeaderValue::from_str(tenant).unwrap());
    }
    Request { path, caller, source: 1, headers }
}

fn ask(limits: &[Arc<Limit>], tables: &mut Tables, request: &Request) -> bool {
    let facts = Facts {
        method: &Method::GET,
        path: request.path,
        headers: &request.headers,
        caller: request.caller,
        source: IpAddr::from([10, 0, 0, request.source]),
    };
    take(limits, &facts, SECOND, tables).is_ok()
}

#[test]
fn what_has_a_count_of_its_own() {
    let tenant = || LimitKey::Header(HeaderName::from_static("x-tenant"));
    let base = request(Some("td/ns/a/sa/x"), "/a", &["one"]);
    let other_source = Request { source: 2, ..base.clone() };
    let differences = [
        ("caller", request(Some("td/ns/a/sa/y"), "/a", &["one"])),
        ("path", request(Some("td/ns/a/sa/x"), "/b", &["one"])),
        ("header", request(Some("td/ns/a/sa/x"), "/a", &["two"])),
        ("source", other_source),
    ];
    for (by, apart) in [
        (vec![], None),
        (vec![LimitKey::Caller], Some("caller")),
        (vec![LimitKey::Path], Some("path")),
        (vec![tenant()], Some("header")),
        (vec![LimitKey::SourceIp], Some("source")),
    ] {
        for (difference, other) in &differences {
            let limits = [limit("one", 1, by.clone())];
            let mut tables = Tables::default();
            assert!(ask(&limits, &mut tables, &base) && !ask(&limits, &mut tables, &base));
            let counted_apart = ask(&limits, &mut tables, other);
            assert_eq!(counted_apart, apart == Some(*difference), "{by:?} {difference}");
        }
    }
    // Who has not proven anything shares one count; so does who does not send the header, and two values are not one.
    let limits = [limit("one", 1, vec![LimitKey::Caller, tenant()])];
    let mut tables = Tables::default();
    let mut first = |request: &Request| ask(&limits, &mut tables, request);
    assert!(first(&request(None, "/a", &[])) && !first(&request(None, "/b", &[])));
    assert!(first(&request(None, "/a", &[""])));
    assert!(first(&request(None, "/a", &["one", "two"])));
    assert!(first(&request(None, "/a", &["one,two"])));
    assert!(first(&request(None, "/a", &["two", "one"])));
}

#[test]
fn what_one_limit_refuses_costs_the_others_nothing() {
    let limits = [limit("all", 3, vec![]), limit("path", 1, vec![LimitKey::Path])];
    let mut tables = Tables::default();
    let mut asked = |path| ask(&limits, &mut tables, &request(None, path, &[]));
    assert!(asked("/a"));
    assert!((0..50).all(|_| !asked("/a")));
    assert!(asked("/b") && asked("/c"));
    assert!(!asked("/d"), "three in all");
}

#[test]
fn callers_hear_of_the_tightest_limit() {
    let limits = [limit("wide", 100, vec![]), limit("narrow", 2, vec![]), limit("mid", 50, vec![])];
    let headers = HeaderMap::new();
    let facts = Facts {
        method: &Method::GET,
        path: "/",
        headers: &headers,
        caller: None,
        source: IpAddr::from([127, 0, 0, 1]),
    };
    let mut tables = Tables::default();
    let standing = take(&limits, &facts, SECOND, &mut tables).unwrap().unwrap();
    assert_eq!(standing.policy.unwrap(), "\"narrow\";q=2;w=1");
    assert_eq!(standing.limit.unwrap(), "\"narrow\";r=1;t=1");
    take(&limits, &facts, SECOND, &mut tables).unwrap();
    let exceeded = take(&limits, &facts, SECOND, &mut tables).unwrap_err();
    assert_eq!((&*exceeded.limit.model.name, exceeded.wait), ("narrow", SECOND / 2));
    assert_eq!(exceeded.standing.limit.unwrap(), "\"narrow\";r=0;t=1");
    assert!(take(&[], &facts, SECOND, &mut tables).unwrap().is_none());
}

#[test]
fn a_change_of_numbers_keeps_the_counts_and_another_key_begins_anew() {
    let mut tables = Tables::default();
    let get = request(None, "/", &[]);
    let first = limit("one", 4, vec![]);
    assert!((0..4).all(|_| ask(std::slice::from_ref(&first), &mut tables, &get)));
    let again = |requests, by, old: &Limit| {
        Arc::new(Limit::new("shop/orders".into(), model("one", requests, by), Some(old)))
    };
    let doubled = again(8, vec![], &first);
    assert!(!ask(std::slice::from_ref(&doubled), &mut tables, &get), "used up stays used up");
    let keyed = again(8, vec![LimitKey::Path], &doubled);
    assert!(ask(std::slice::from_ref(&keyed), &mut tables, &get));
    let global = model::Limit { scope: LimitScope::Global, ..keyed.model.clone() };
    let global = Limit::new("shop/orders".into(), global, Some(&keyed));
    assert!(!Arc::ptr_eq(&global.counter, &keyed.counter));
}

proptest! {
    /// Any number of limits and workers: no limit admits more than it says, and a request that all of them have room
    /// for is admitted.
    #[test]
    fn nothing_is_admitted_above_any_limit(
        numbers in proptest::collection::vec(1u32..20, 1..5),
        asked in proptest::collection::vec((0usize..3, 0usize..3), 1..200),
    ) {
        const PATHS: [&str; 3] = ["/a", "/b", "/c"];
        let by = |at: usize| if at.is_multiple_of(2) { vec![] } else { vec![LimitKey::Path] };
        let limits: Vec<_> =
            numbers.iter().enumerate().map(|(at, number)| limit("x", *number, by(at))).collect();
        let mut workers = [Tables::default(), Tables::default(), Tables::default()];
        let mut used = vec![[0u32; 3]; limits.len()];
        for (worker, path) in asked {
            let bucket = |at: usize| if at.is_multiple_of(2) { 0 } else { path };
            let room = (0..limits.len()).all(|at| used[at][bucket(at)] < numbers[at]);
            let admitted = ask(&limits, &mut workers[worker], &request(None, PATHS[path], &[]));
            prop_assert_eq!(admitted, room);
            if admitted {
                (0..limits.len()).for_each(|at| used[at][bucket(at)] += 1);
            }
        }
    }
}

//! Random policies and calls: the order of actions, and a second evaluator that reads the JSON itself.

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;

const PEERS: &[&str] =
    &["", "td/ns/shop/sa/web", "td/ns/shop/sa/admin", "td/ns/ops/sa/web", "other/ns/shop/sa/web"];
const METHODS: &[&str] = &["GET", "POST"];
const HOSTS: &[&str] = &["h.example", "i.example"];
const PATHS: &[&str] = &["/", "/a", "/a/b", "/b/c"];
const VALUES: &[&str] = &["", "1", "2", "22", "1,2"];

/// What can be written for a field, and its opposite.
fn field(
    name: &'static str,
    values: &'static [&'static str],
) -> BoxedStrategy<Vec<(String, Value)>> {
    let opposite = format!("not{}{}", name[..1].to_uppercase(), &name[1..]);
    let list = move || option::weighted(0.4, vec(select(values), 1..3));
    (list(), list())
        .prop_map(move |(some, none)| {
            let some = some.map(|list| (name.to_owned(), json!(list)));
            let none = none.map(|list| (opposite.clone(), json!(list)));
            some.into_iter().chain(none).collect()
        })
        .boxed()
}

/// Entries such as `{"source": {…}}`, none of which is empty.
fn entries(
    kind: &'static str,
    fields: Vec<BoxedStrategy<Vec<(String, Value)>>>,
) -> BoxedStrategy<Value> {
    let entry = fields.prop_map(move |fields| {
        let entry: serde_json::Map<_, _> = fields.into_iter().flatten().collect();
        json!({kind: entry})
    });
    vec(entry.prop_filter("asks nothing", move |entry| entry[kind] != json!({})), 1..3)
        .prop_map(Value::from)
        .boxed()
}

fn rule() -> impl Strategy<Value = Value> {
    let from = entries(
        "source",
        vec![
            field("principals", &["td/ns/shop/sa/web", "*/sa/web", "td/*", "*"]),
            field("namespaces", &["shop", "o*"]),
            field("requestPrincipals", &["i/ann", "*", "i/*"]),
            field("ipBlocks", &["10.0.0.0/8", "10.1.2.3", "::/0"]),
        ],
    );
    let to = entries(
        "operation",
        vec![
            field("methods", METHODS),
            field("hosts", &["h.example", "*.example", "h.example:81", "h*"]),
            field("paths", &["/a", "/a*", "*/c", "/{*}/b"]),
            field("ports", &["80", "81"]),
        ],
    );
    let keys: &[&str] = &["request.headers[x-a]", "request.auth.claims[g]", "source.namespace"];
    let condition = (select(keys), field("values", &["1", "2*", "*2", "shop"]))
        .prop_filter("asks nothing", |(_, values)| !values.is_empty())
        .prop_map(|(key, values)| {
            let mut condition: serde_json::Map<_, _> = values.into_iter().collect();
            condition.insert("key".into(), key.into());
            Value::from(condition)
        });
    let parts = (option::of(from), option::of(to), option::weighted(0.3, vec(condition, 1..3)));
    parts.prop_map(|(from, to, when)| {
        let mut rule = serde_json::Map::new();
        rule.extend(from.map(|from| ("from".to_owned(), from)));
        rule.extend(to.map(|to| ("to".to_owned(), to)));
        rule.extend(when.map(|when| ("when".to_owned(), when.into())));
        rule.into()
    })
}

fn spec(actions: &'static [&'static str]) -> impl Strategy<Value = Value> {
    (select(actions), vec(rule(), 0..3))
        .prop_map(|(action, rules)| json!({"action": action, "rules": rules}))
}

fn any_spec() -> impl Strategy<Value = Value> {
    spec(&["ALLOW", "DENY", "AUDIT"])
}

fn call() -> impl Strategy<Value = Call> {
    let http =
        (select(METHODS), select(HOSTS), option::of(select(&[80_u16, 81][..])), select(PATHS));
    let token = option::of((select(&["ann", "bob"][..]), vec(select(VALUES), 0..3)));
    let addresses = (
        select(&["10.1.2.3", "10.1.2.4", "2001:db8::1"][..]),
        select(&["10.9.9.9:80", "[::1]:81"][..]),
    );
    (select(PEERS), addresses, option::weighted(0.8, http), vec(select(VALUES), 0..3), token)
        .prop_map(|(peer, (source, destination), http, headers, token)| {
            let call = Call { source, destination, http, ..Call::tcp(peer) };
            let call = call.with("x-a", &headers);
            match token {
                // A token comes with HTTP only.
                Some((sub, groups)) if call.http.is_some() => {
                    call.token(&json!({"iss": "i", "sub": sub, "g": groups}))
                }
                _ => call,
            }
        })
}

fn glob(pattern: &str, text: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        _ if pattern == "*" => !text.is_empty(),
        _ if pattern == "/{*}/b" => {
            text.ends_with("/b") && text.matches('/').count() == 2 && text.len() > 3
        }
        (Some(end), _) => text.ends_with(end),
        (_, Some(start)) => text.starts_with(start),
        _ => pattern == text,
    }
}

/// `fits(pattern)` says whether the fact is like the pattern.
fn fields(entry: &Value, name: &str, fits: impl Fn(&str) -> bool) -> bool {
    let opposite = format!("not{}{}", name[..1].to_uppercase(), &name[1..]);
    let any = |name: &str| {
        let list = entry.get(name)?.as_array()?;
        Some(list.iter().any(|pattern| fits(pattern.as_str().unwrap())))
    };
    any(name).unwrap_or(true) && !any(&opposite).unwrap_or(false)
}

fn in_block(block: &str, address: &str) -> bool {
    match block {
        "10.0.0.0/8" => address.starts_with("10."),
        "::/0" => address.contains(':'),
        exact => exact == address,
    }
}

fn rule_matches(rule: &Value, call: &Call, denies: bool) -> bool {
    let about_http = ["equestPrincipals", "ethods", "osts", "aths", "request."];
    let text = rule.to_string();
    if call.http.is_none() && !denies && about_http.iter().any(|part| text.contains(part)) {
        return false;
    }
    let principal = call.peer.as_ref().map(|(_, principal)| principal.as_str());
    let namespace = principal.and_then(|principal| principal.split('/').nth(2));
    let subject = call.token.as_ref().and_then(|token| token.principal());
    let like = |fact: Option<&str>, pattern: &str| fact.is_some_and(|fact| glob(pattern, fact));
    let from = |entry: &Value| {
        let source = &entry["source"];
        fields(source, "principals", |pattern| like(principal, pattern))
            && fields(source, "namespaces", |pattern| like(namespace, pattern))
            && fields(source, "ipBlocks", |block| in_block(block, call.source))
            && (call.http.is_none()
                || fields(source, "requestPrincipals", |pattern| like(subject, pattern)))
    };
    let to = |entry: &Value| {
        let operation = &entry["operation"];
        let own_port = call.destination.rsplit(':').next();
        let port = fields(operation, "ports", |pattern| like(own_port, pattern));
        let Some((method, host, number, path)) = call.http else { return port };
        let full = number.map(|number| format!("{host}:{number}"));
        port && fields(operation, "methods", |pattern| glob(pattern, method))
            && fields(operation, "paths", |pattern| glob(pattern, path))
            && fields(operation, "hosts", |p| glob(p, host) || like(full.as_deref(), p))
    };
    let when = |condition: &Value| match condition["key"].as_str().unwrap() {
        "source.namespace" => fields(condition, "values", |pattern| like(namespace, pattern)),
        _ if call.http.is_none() => true,
        "request.auth.claims[g]" => {
            let groups = call.token.as_ref().and_then(|token| token.claim(&["g"]));
            let groups = groups.and_then(Value::as_array).cloned().unwrap_or_default();
            let one = |pattern: &str| groups.iter().any(|g| glob(pattern, g.as_str().unwrap()));
            fields(condition, "values", one)
        }
        _ => header_matches(condition, call, denies),
    };
    let any = |name: &str, entry: &dyn Fn(&Value) -> bool| {
        rule.get(name).is_none_or(|list| list.as_array().unwrap().iter().any(entry))
    };
    let all = rule.get("when").is_none_or(|list| list.as_array().unwrap().iter().all(when));
    any("from", &from) && any("to", &to) && all
}

fn header_matches(condition: &Value, call: &Call, denies: bool) -> bool {
    let values: Vec<_> = call.headers.get_all("x-a").iter().map(|v| v.to_str().unwrap()).collect();
    if values.is_empty() {
        return fields(condition, "values", |_| false);
    }
    let joined = values.join(",");
    let mut readings = values.into_iter().chain([joined.as_str()]);
    let holds = |reading: &str| fields(condition, "values", |pattern| glob(pattern, reading));
    if denies { readings.any(holds) } else { readings.all(holds) }
}

fn reference(specs: &[Value], call: &Call) -> bool {
    let of = |action: &str| {
        specs.iter().filter(move |spec| spec["action"] == action).collect::<Vec<_>>()
    };
    let hit = |specs: &[&Value], denies| {
        let mut rules = specs.iter().flat_map(|spec| spec["rules"].as_array().unwrap());
        rules.any(|rule| rule_matches(rule, call, denies))
    };
    let allow = of("ALLOW");
    !hit(&of("DENY"), true) && (allow.is_empty() || hit(&allow, false))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_second_evaluator_agrees(specs in vec(any_spec(), 0..4), call in call()) {
        prop_assert_eq!(call.is_allowed(&specs), reference(&specs, &call));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn deny_wins_and_another_deny_never_allows_more(
        specs in vec(any_spec(), 0..4),
        deny in spec(&["DENY"]),
        call in call(),
    ) {
        let before = call.is_allowed(&specs);
        let alone = call.is_allowed(std::slice::from_ref(&deny));
        let together = call.is_allowed(&[&specs[..], &[deny]].concat());
        prop_assert_eq!(together, before && alone);
    }

    #[test]
    fn another_allow_rule_never_denies_more(
        specs in vec(any_spec(), 0..4),
        allow in spec(&["ALLOW"]),
        more in rule(),
        call in call(),
    ) {
        let mut longer = allow.clone();
        longer["rules"].as_array_mut().unwrap().push(more);
        let before = call.is_allowed(&[&specs[..], &[allow]].concat());
        let after = call.is_allowed(&[&specs[..], &[longer]].concat());
        prop_assert!(after || !before);
    }

    #[test]
    fn audit_changes_nothing(
        specs in vec(any_spec(), 0..4),
        audit in spec(&["AUDIT"]),
        call in call(),
    ) {
        let with = call.is_allowed(&[&specs[..], &[audit]].concat());
        prop_assert_eq!(with, call.is_allowed(&specs));
    }

    #[test]
    fn knowing_nothing_about_http_never_allows_more(
        specs in vec(spec(&["ALLOW"]), 1..3),
        call in call(),
    ) {
        // The same connection, once read and once opaque.
        let read = call.is_allowed(&specs);
        let asks = specs.iter().any(|spec| spec.to_string().contains("not"));
        let opaque = Call { http: None, token: None, ..call };
        prop_assert!(asks || read || !opaque.is_allowed(&specs));
    }
}

use proptest::prelude::*;

use super::*;

#[test]
fn each_form_matches_what_it_says() {
    let rows = [
        (Of::Names, "shop", "shop", true),
        (Of::Names, "shop", "shop2", false),
        (Of::Names, "shop", "Shop", false),
        (Of::Names, "shop*", "shop", true),
        (Of::Names, "shop*", "shop2", true),
        (Of::Names, "shop*", "my-shop", false),
        (Of::Names, "*shop", "my-shop", true),
        (Of::Names, "*shop", "shop2", false),
        (Of::Names, "*", "anything", true),
        (Of::Names, "*", "", false),
        (Of::Principals, "spiffe://cluster.local/ns/a/sa/b", "cluster.local/ns/a/sa/b", true),
        (Of::Principals, "cluster.local/ns/a/sa/b", "cluster.local/ns/a/sa/b", true),
        (Of::Principals, "spiffe://cluster.local/*", "cluster.local/ns/a/sa/b", true),
        (Of::Principals, "*/ns/a/sa/b", "cluster.local/ns/a/sa/b", true),
        (Of::Principals, "*/ns/a/sa/b", "cluster.local/ns/a/sa/b2", false),
        (Of::Hosts, "Orders.Shop", "orders.shop", true),
        (Of::Hosts, "*.Example.com", "a.example.com", true),
        (Of::Hosts, "*.example.com", "example.com", false),
        (Of::Ports, "080", "80", true),
        (Of::Ports, "80", "8080", false),
        (Of::Methods, "GET", "GET", true),
        (Of::Methods, "GET", "get", false),
        (Of::Methods, "P*", "PATCH", true),
        (Of::Paths, "/v1", "/v1", true),
        (Of::Paths, "/v1", "/v1/", false),
        (Of::Paths, "/v1/*", "/v1/orders", true),
        (Of::Paths, "/v1*", "/v10", true),
        (Of::Paths, "*/info", "/a/b/info", true),
        (Of::Free, "*/*", "text/*", true),
        (Of::Free, "a*b", "a*b", true),
        (Of::Free, "a*b", "aXb", false),
    ];
    for (of, pattern, value, matches) in rows {
        let parsed = of.parse(pattern).unwrap();
        assert_eq!(parsed.matches(value), matches, "{pattern} against {value}: {parsed:?}");
    }
}

/// The examples of Istio's documentation of path templates, and their neighbours.
#[test]
fn templates_match_segments() {
    let rows = [
        ("/foo/{*}", "/foo/bar", true),
        ("/foo/{*}", "/foo/bar/baz", false),
        ("/foo/{*}", "/foo/", false),
        ("/foo/{*}", "/foo", false),
        ("/foo/{*}/", "/foo/bar/", true),
        ("/foo/{*}/", "/foo/bar", false),
        ("/foo/{**}/", "/foo/bar/", true),
        ("/foo/{**}/", "/foo/bar/baz.txt/", true),
        ("/foo/{**}/", "/foo//", true),
        ("/foo/{**}/", "/foo/bar", false),
        ("/foo/{**}", "/foo/", true),
        ("/foo/{**}", "/foo/bar/baz", true),
        ("/foo/{**}", "/foo", false),
        ("/foo/{**}", "/foobar", false),
        ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
        ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz", true),
        ("/foo/{*}/bar/{**}", "/foo/a/b/bar/baz", false),
        ("/{*}/orders", "/users/orders", true),
        ("/{*}/orders", "//orders", false),
        ("/{**}/orders", "//orders", true),
        ("/{**}/orders", "/a/b/orders", true),
        ("/{**}/orders", "/orders", false),
        ("/{**}/orders", "/a/orders/b", false),
        ("/{**}", "/", true),
    ];
    for (template, path, matches) in rows {
        let parsed = Of::Paths.parse(template).unwrap();
        assert_eq!(parsed.matches(path), matches, "{template} against {path}: {parsed:?}");
    }
}

#[test]
fn what_could_never_match_is_refused() {
    let rows = [
        (Of::Names, "a*b"),
        (Of::Names, "**"),
        (Of::Names, "*a*"),
        (Of::Principals, "spiffe://"),
        (Of::Principals, "cluster.local/*/sa/orders"),
        (Of::Hosts, "a.*.com"),
        (Of::Ports, "http"),
        (Of::Ports, "0"),
        (Of::Ports, "+80"),
        (Of::Ports, "65536"),
        (Of::Ports, "80*"),
        (Of::Ports, "*"),
        (Of::Methods, "get"),
        (Of::Methods, "GET POST"),
        (Of::Methods, "G*T"),
        (Of::Paths, "v1"),
        (Of::Paths, "/v1?x=y"),
        (Of::Paths, "/v1#x"),
        (Of::Paths, "https://orders/v1"),
        (Of::Paths, "/a*b"),
        (Of::Paths, "/*/baz/{*}"),
        (Of::Paths, "/**/baz/{*}"),
        (Of::Paths, "/{**}/foo/{*}"),
        (Of::Paths, "/{**}/foo/{**}"),
        (Of::Paths, "/foo/{*}.txt"),
        (Of::Paths, "/foo/{*"),
        (Of::Paths, "/foo/}"),
        (Of::Paths, "/foo/{id}"),
        (Of::Paths, "*/{*}"),
    ];
    for (of, pattern) in rows {
        assert!(of.parse(pattern).is_err(), "{pattern}: {:?}", of.parse(pattern));
    }
}

#[test]
fn lists_are_bounded_and_never_empty() {
    let at = Path::root("spec");
    let parse = |values: Vec<String>| {
        let mut problems = Problems::default();
        let parsed = each_value(&at.field("x"), Some(values), &mut problems, |t| Ok(t.to_owned()));
        problems.finish(Some(parsed)).map_err(|invalid| invalid.to_string())
    };
    assert!(parse(vec!["a".to_owned(); 64]).is_ok() && parse(vec!["a".repeat(512)]).is_ok());
    let message = |values| parse(values).unwrap_err();
    assert!(message(vec![]).contains("spec.x: is empty"));
    assert!(message(vec!["a".to_owned(); 65]).contains("spec.x: has 65 entries"));
    assert!(message(vec!["a".repeat(513)]).contains("spec.x[0]: has 513 bytes"));
    assert!(message(vec!["a".to_owned(), String::new()]).contains("spec.x[1]: is empty"));
}

#[test]
fn what_is_absent_is_in_no_list() {
    let of = |any: &[&str], none: &[&str]| {
        let parse =
            |list: &[&str]| list.iter().map(|text| Of::Names.parse(text).unwrap()).collect();
        Patterns { any_of: parse(any), none_of: parse(none) }
    };
    assert!(of(&[], &[]).matches(None) && of(&[], &[]).is_empty());
    assert!(!of(&["*"], &[]).matches(None));
    assert!(of(&[], &["*"]).matches(None));
    assert!(!of(&[], &["*"]).matches(Some("a")));
    assert!(of(&["a*"], &["ab"]).matches(Some("a")));
    assert!(!of(&["a*"], &["ab"]).matches(Some("ab")));
    assert!(!of(&["a*"], &["ab"]).matches(Some("b")));
    // Of several values one must be among those, and none among these.
    assert!(of(&["a"], &[]).matches_values(["b", "a"]));
    assert!(!of(&["a"], &["b"]).matches_values(["b", "a"]));
    assert!(!of(&["a"], &[]).matches_values([]));
}

proptest! {
    #[test]
    fn a_value_matches_itself_and_its_affixes(value in "[a-zA-Z0-9/._-]{1,40}", cut in 0_usize..40) {
        let (head, tail) = value.split_at(cut.min(value.len()));
        prop_assert!(Of::Free.parse(&value).unwrap().matches(&value));
        let (prefix, suffix) = (format!("{head}*"), format!("*{tail}"));
        prop_assert!(Of::Free.parse(&prefix).unwrap().matches(&value));
        prop_assert!(Of::Free.parse(&suffix).unwrap().matches(&value));
    }

    #[test]
    fn an_exact_pattern_matches_nothing_else(pattern in "[a-c]{1,3}", value in "[a-c]{0,3}") {
        prop_assert_eq!(Of::Names.parse(&pattern).unwrap().matches(&value), pattern == value);
    }

    /// Against the definition by regular expressions.
    #[test]
    fn templates_agree_with_their_definition(
        segments in prop::collection::vec("a|b|\\{\\*\\}", 0..4),
        rest in prop::option::of(prop::collection::vec("a|b|", 0..3)),
        path in "(/(a|b|ab|)){0,6}",
    ) {
        let mut template: String = segments.iter().flat_map(|segment| ["/", segment]).collect();
        if let Some(rest) = &rest {
            template.push_str("/{**}");
            template.extend(rest.iter().flat_map(|segment| ["/", segment]));
        }
        prop_assume!(template.contains('{'));
        let escaped = template.replace("{**}", ".*").replace("{*}", "[^/]+");
        let expression = regex::Regex::new(&format!("^{escaped}$")).unwrap();
        let parsed = Of::Paths.parse(&template).unwrap();
        prop_assert_eq!(parsed.matches(&path), expression.is_match(&path), "{} {}", template, path);
    }

    #[test]
    fn never_panics(text in ".{0,40}", value in ".{0,40}") {
        for of in [Of::Principals, Of::Hosts, Of::Ports, Of::Methods, Of::Paths, Of::Names, Of::Free] {
            if let Ok(pattern) = of.parse(&text) {
                pattern.matches(&value);
            }
        }
    }
}

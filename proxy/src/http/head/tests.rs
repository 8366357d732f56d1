use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    map
}

fn host_of(
    version: Version,
    uri: &str,
    pairs: &[(&str, &str)],
) -> Result<(String, Option<u16>), HeadError> {
    target(version, &uri.parse().unwrap(), &headers(pairs)).map(|target| (target.host, target.port))
}

#[test]
fn the_target_is_authority_or_host() {
    let h1 = Version::HTTP_11;
    assert_eq!(
        host_of(h1, "/", &[("host", "Orders.Shop:80")]),
        Ok(("orders.shop".into(), Some(80)))
    );
    assert_eq!(host_of(h1, "http://users/a", &[("host", "orders")]), Ok(("users".into(), None)));
    assert_eq!(host_of(h1, "/", &[("host", "[::1]:80")]), Ok(("::1".into(), Some(80))));
    assert_eq!(host_of(h1, "/", &[("host", "orders.")]), Ok(("orders".into(), None)));
    assert_eq!(host_of(h1, "/", &[]), Err(HeadError::NoHost));
    assert_eq!(host_of(h1, "/", &[("host", "a"), ("host", "a")]), Err(HeadError::SeveralHosts));
    for bad in ["", "a b", "a:b", "a:99999", "user@a", "a/b", "[::1", "[::1]x", "a,b", ":80"] {
        assert_eq!(host_of(h1, "/", &[("host", bad)]), Err(HeadError::BadHost), "{bad}");
    }
    assert_eq!(
        host_of(Version::HTTP_2, "http://a/", &[("host", "b")]),
        Err(HeadError::SeveralHosts)
    );
    assert_eq!(host_of(Version::HTTP_2, "http://a/", &[("host", "A")]), Ok(("a".into(), None)));
}

#[test]
fn targets_must_fit_methods_and_framing_must_be_clear() {
    let check = |method: &str, version, uri: &str, pairs: &[(&str, &str)]| {
        check(&method.parse().unwrap(), version, &uri.parse().unwrap(), &headers(pairs))
    };
    let (h1, h2) = (Version::HTTP_11, Version::HTTP_2);
    assert_eq!(check("GET", h1, "/a", &[]), Ok(()));
    assert_eq!(check("OPTIONS", h1, "*", &[]), Ok(()));
    assert_eq!(check("GET", h1, "*", &[]), Err(HeadError::BadTarget));
    assert_eq!(check("GET", h1, "http://orders", &[]), Ok(()));
    assert_eq!(check("CONNECT", h1, "orders:80", &[]), Ok(()));
    for target in ["orders", "/", "http://orders:80", "*"] {
        assert_eq!(check("CONNECT", h1, target, &[]), Err(HeadError::BadTarget), "{target}");
    }
    // Authority form is for CONNECT only (RFC 9112 section 3.2.3).
    assert_eq!(check("GET", h1, "orders", &[]), Err(HeadError::BadTarget));
    assert_eq!(check("POST", h1, "/", &[("transfer-encoding", "Chunked")]), Ok(()));
    for coding in ["gzip, chunked", "chunked, chunked", "identity", ""] {
        let coded = [("transfer-encoding", coding)];
        assert_eq!(check("POST", h1, "/", &coded), Err(HeadError::TransferCoding), "{coding}");
    }
    assert_eq!(HeadError::TransferCoding.status(), 501);
    let both = [("content-length", "3"), ("transfer-encoding", "chunked")];
    assert_eq!(check("POST", h1, "/", &both), Err(HeadError::Framing));
    assert_eq!(
        check("POST", h1, "/", &[("content-length", "3"), ("content-length", "4")]),
        Err(HeadError::Framing)
    );
    assert_eq!(check("POST", h1, "/", &[("content-length", "+3")]), Err(HeadError::Framing));
    assert_eq!(check("POST", h2, "/", &[("connection", "x")]), Err(HeadError::ConnectionHeader));
    assert_eq!(check("POST", h2, "/", &[("te", "gzip")]), Err(HeadError::ConnectionHeader));
    assert_eq!(check("POST", h2, "/", &[("te", "trailers")]), Ok(()));
}

#[test]
fn dot_segments_are_resolved_before_anybody_decides_by_path() {
    let normal = |uri: &str| {
        normal_path(&uri.parse().unwrap()).map(|path| path.map(|path| path.to_string()))
    };
    for unchanged in ["/", "/a/b", "/a/b/", "/a//b", "/...", "/a.b/c..d", "/.hidden?x=../y", "*"] {
        assert_eq!(normal(unchanged), Ok(None), "{unchanged}");
    }
    for (from, to) in [
        ("/a/../b", "/b"),
        ("/a/./b", "/a/b"),
        ("/a/%2e%2E/b?q=1", "/b?q=1"),
        ("/a/.%2e/b", "/b"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/./", "/"),
        ("/a//../b", "/a/b"),
    ] {
        assert_eq!(normal(from), Ok(Some(to.to_owned())), "{from}");
    }
    for bad in ["/..", "/a/../../b", "/a%00b", "/%2e%2e/x"] {
        assert_eq!(normal(bad), Err(HeadError::BadPath), "{bad}");
    }
}

#[test]
fn hop_by_hop_fields_go_and_nothing_else_can_be_named() {
    let mut map = headers(&[
        ("connection", "x-secret, Upgrade, content-length, authorization"),
        ("connection", "te"),
        ("x-secret", "1"),
        ("upgrade", "websocket"),
        ("keep-alive", "5"),
        ("te", "gzip, trailers"),
        ("transfer-encoding", "chunked"),
        ("content-length", "3"),
        ("authorization", "b"),
        ("accept", "x"),
    ]);
    assert_eq!(strip_hop_by_hop(&mut map).unwrap(), "websocket");
    let mut left: Vec<_> =
        map.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
    left.sort();
    assert_eq!(left, ["accept=x", "authorization=b", "content-length=3", "te=trailers"]);
}

#[test]
fn nothing_of_a_connection_gets_into_http2() {
    let mut map = headers(&[
        ("te", "trailers"),
        ("te", "gzip"),
        ("connection", "x-own, content-length"),
        ("x-own", "1"),
        ("keep-alive", "5"),
        ("content-length", "3"),
    ]);
    strip_connection(&mut map);
    let mut left: Vec<_> =
        map.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
    left.sort();
    assert_eq!(left, ["content-length=3", "te=trailers"]);
}

/// Whatever the first one says, all are looked at.
#[test]
fn of_te_only_trailers_stays() {
    for (values, left) in [
        (&["trailers"][..], vec!["trailers"]),
        (&["trailers", "gzip"], vec!["trailers"]),
        (&["gzip", "Trailers;q=1"], vec![]),
        (&["gzip", "deflate, TRAILERS"], vec!["trailers"]),
        (&["gzip"], vec![]),
    ] {
        let fields: Vec<_> = values.iter().map(|value| ("te", *value)).collect();
        for strip in [|map: &mut HeaderMap| _ = strip_hop_by_hop(map), strip_connection] {
            let mut map = headers(&fields);
            strip(&mut map);
            assert_eq!(map.get_all("te").iter().collect::<Vec<_>>(), left, "{values:?}");
        }
    }
}

#[test]
fn nobody_upgrades_to_what_hides_requests() {
    for (protocols, passed) in [
        ("websocket", true),
        ("h2c", false),
        (" H2C ", false),
        ("websocket, h2c", false),
        ("h2c,websocket", false),
        ("h2c-like", true),
    ] {
        let mut map = headers(&[("connection", "Upgrade"), ("upgrade", protocols)]);
        assert_eq!(strip_hop_by_hop(&mut map).is_some(), passed, "{protocols}");
    }
}

#[test]
fn no_spelling_says_who_the_caller_is() {
    let mut map = headers(&[
        ("x-forwarded-client-cert", "URI=spiffe://evil"),
        ("x_forwarded_client_cert", "URI=spiffe://evil"),
        ("x-forwarded_client-cert", "URI=spiffe://evil"),
        ("x.forwarded.client.cert", "URI=spiffe://evil"),
        ("x-forwarded-client-certs", "another field"),
        ("x-forwarded-client-cer", "another field"),
        ("xaforwarded-client-cert", "another field"),
    ]);
    strip_hop_by_hop(&mut map);
    assert_eq!(map.len(), 3, "{map:?}");
    assert!(map.values().all(|value| value == "another field"));
}

#[test]
fn forwarding_is_recorded_and_bounded() {
    let mut map = headers(&[("forwarded", "for=1.2.3.4")]);
    let caller = written("[::ffff:10.0.0.1]:5".parse().unwrap());
    add_forwarded(&mut map, caller.clone(), Some(&HeaderValue::from_static("orders")));
    assert_eq!(map["x-forwarded-for"], "10.0.0.1");
    assert_eq!(map["x-forwarded-proto"], "http");
    assert_eq!(map["x-forwarded-host"], "orders");
    assert_eq!(map["forwarded"], "for=1.2.3.4, for=10.0.0.1");
    for _ in 0..500 {
        add_forwarded(&mut map, caller.clone(), None);
    }
    assert!(map["x-forwarded-for"].len() <= MAX_FORWARDED + 20);
    assert!(map["x-forwarded-for"].to_str().unwrap().split(", ").all(|hop| hop == "10.0.0.1"));
    let mut map = headers(&[("forwarded", "for=1.2.3.4"), ("x-forwarded-proto", "https")]);
    add_forwarded(&mut map, written("[fd00::1]:5".parse().unwrap()), None);
    assert_eq!(map["forwarded"], "for=1.2.3.4, for=\"[fd00::1]\"");
    assert_eq!(
        (&map["x-forwarded-for"], &map["x-forwarded-proto"]),
        (&"fd00::1".parse().unwrap(), &"https".parse().unwrap())
    );
}

/// A name that is too long for its bit to be looked at would pass.
#[test]
fn every_name_that_concerns_a_connection_is_found_by_its_length() {
    let more = [header::CONNECTION, header::TE, CLIENT_CERTIFICATE];
    for name in ALWAYS_REMOVED.iter().cloned().chain(more) {
        let mut map = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]);
        strip_hop_by_hop(&mut map);
        assert!(map.is_empty(), "{name}");
    }
}

#[test]
fn grpc_is_told_by_content_type() {
    for (value, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        assert_eq!(is_grpc(&headers(&[("content-type", value)])), grpc, "{value}");
    }
}

#[test]
fn a_host_may_end_in_one_dot() {
    assert_eq!(Target::parse("orders.shop.").unwrap().host, "orders.shop");
    for host in [".", "..", "orders.."] {
        assert_eq!(Target::parse(host), None, "{host}");
    }
}

proptest! {
    /// Normalising is idempotent, and no dot segment survives it.
    #[test]
    fn normal_paths_stay_normal(segments in proptest::collection::vec("(\\.|\\.\\.|%2e|%2E\\.|a|b%20|)", 1..8)) {
        let path = format!("/{}", segments.join("/"));
        let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
        if let Ok(Some(normal)) = normal_path(&uri) {
            let again = normal.to_string().parse::<Uri>().unwrap();
            prop_assert_eq!(normal_path(&again), Ok(None));
            prop_assert!(normal.path().starts_with('/'));
        }
    }

    /// Whatever stands in `Host`, reading it never panics, and what is accepted reads back.
    #[test]
    fn hosts_read_back(text in "\\PC{0,40}") {
        if let Some(target) = Target::parse(&text) {
            let port = target.port.map(|port| format!(":{port}")).unwrap_or_default();
            let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
            prop_assert_eq!(Target::parse(&format!("{host}{port}")), Some(target));
        }
    }

    /// After stripping, no connection-specific field is left, whatever `Connection` names.
    #[test]
    fn stripping_leaves_nothing_connection_specific(names in proptest::collection::vec("[a-z-]{1,12}", 0..6)) {
        let mut map = headers(&[("connection", &names.join(",")), ("upgrade", "h2c"), ("host", "a")]);
        strip_hop_by_hop(&mut map);
        for name in ["connection", "upgrade", "keep-alive", "proxy-connection", "transfer-encoding"] {
            prop_assert!(!map.contains_key(name));
        }
        prop_assert!(map.contains_key("host"));
    }
}

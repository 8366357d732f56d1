//! What Gateway API's routes promise, through the real proxy.

use std::collections::HashMap;

use crate::{
    client::{self, Answer, Wire},
    mesh::{Mesh, Proxy, at_any_pace, until},
    origin::{self, Origin},
};

/// Origins `a` and `b`, and a service `shop` whose routes choose between them.
async fn shop(rules: &str) -> (Proxy, Origin, Origin) {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let mesh = Mesh::default()
        .service("shop", "http", &[a.address])
        .service("a", "http", &[a.address])
        .service("b", "http", &[b.address])
        .http_route("shop", rules);
    (mesh.start().await, a, b)
}

fn origin_of(answer: &Answer) -> &str {
    answer.header("x-origin").unwrap_or("none")
}

#[tokio::test]
async fn matches_choose_the_most_specific_rule() {
    let (proxy, _a, _b) = shop(
        "\
- matches: [{path: {type: Exact, value: /exact}}]
  backendRefs: [{name: b, port: 80}]
- matches: [{path: {type: PathPrefix, value: /deep/er}}]
  backendRefs: [{name: b, port: 80}]
- matches: [{path: {type: RegularExpression, value: '/items/[0-9]+'}}]
  backendRefs: [{name: b, port: 80}]
- matches: [{headers: [{name: X-Version, value: v2}]}]
  backendRefs: [{name: b, port: 80}]
- matches: [{headers: [{type: RegularExpression, name: x-user, value: 'test-.*'}]}]
  backendRefs: [{name: b, port: 80}]
- matches: [{queryParams: [{name: canary, value: 'yes'}]}]
  backendRefs: [{name: b, port: 80}]
- matches: [{method: DELETE}]
  backendRefs: [{name: b, port: 80}]
- matches: [{path: {value: /both}, method: PUT, headers: [{name: x-a, value: '1'}]}]
  backendRefs: [{name: b, port: 80}]
- backendRefs: [{name: a, port: 80}]",
    )
    .await;
    for (method, path, fields, expected) in [
        ("GET", "/", "", "a"),
        ("GET", "/exact", "", "b"),
        ("GET", "/exact/", "", "a"),
        ("GET", "/Exact", "", "a"),
        ("GET", "/exact?query=1", "", "b"),
        ("GET", "/deep", "", "a"),
        ("GET", "/deep/er", "", "b"),
        ("GET", "/deep/er/still", "", "b"),
        ("GET", "/deep/erx", "", "a"),
        ("GET", "/x/../deep/./er", "", "b"),
        ("GET", "/items/42", "", "b"),
        ("GET", "/items/x", "", "a"),
        ("GET", "/items/42/more", "", "a"),
        ("GET", "/", "x-version: v2\r\n", "b"),
        ("GET", "/", "X-VERSION: v2\r\n", "b"),
        ("GET", "/", "x-version: V2\r\n", "a"),
        ("GET", "/", "x-user: test-7\r\n", "b"),
        ("GET", "/", "x-user: untest-7\r\n", "a"),
        ("GET", "/?canary=yes", "", "b"),
        ("GET", "/?a=b&canary=yes", "", "b"),
        ("GET", "/?canary=no", "", "a"),
        ("GET", "/?Canary=yes", "", "a"),
        ("DELETE", "/", "", "b"),
        ("PUT", "/both", "x-a: 1\r\n", "b"),
        ("PUT", "/both", "", "a"),
        ("GET", "/both", "x-a: 1\r\n", "a"),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n");
        let answer = client::ask(proxy.outbound, request).await;
        assert_eq!(origin_of(&answer), expected, "{method} {path} {fields}");
    }
}

#[tokio::test]
async fn hostnames_select_routes() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: by-host, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: shop}]
  hostnames: [shop.default]
  rules: [{backendRefs: [{name: b, port: 80}]}]";
    let proxy = Mesh::default()
        .service("shop", "http", &[a.address])
        .service("a", "http", &[a.address])
        .service("b", "http", &[b.address])
        .http_route("shop", "- backendRefs: [{name: a, port: 80}]")
        .yaml(route)
        .start()
        .await;
    for (host, expected) in [("shop", "a"), ("shop.default", "b"), ("SHOP.default:80", "b")] {
        assert_eq!(origin_of(&client::get(proxy.outbound, host, "/").await), expected, "{host}");
    }
}

#[tokio::test]
async fn hostnames_that_are_for_gateways_leave_calls_of_the_service_alone() {
    let a = Origin::echo("a").await;
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: both, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: shop}, {name: edge}]
  hostnames: [shop.example.com]
  rules: [{backendRefs: [{name: a, port: 80}]}]";
    let mesh = Mesh::default().service("shop", "http", &[]).service("a", "http", &[a.address]);
    let proxy = mesh.yaml(route).start().await;
    for host in ["shop", "shop.default"] {
        assert_eq!(origin_of(&client::get(proxy.outbound, host, "/").await), "a", "{host}");
    }
}

#[tokio::test]
async fn weights_share_traffic_and_missing_backends_answer_for_their_share() {
    let (proxy, _a, _b) = shop(
        "\
- matches: [{path: {value: /split}}]
  backendRefs: [{name: a, port: 80, weight: 3}, {name: b, port: 80, weight: 1}, {name: a, port: 80, weight: 0}]
- matches: [{path: {value: /half-missing}}]
  backendRefs: [{name: a, port: 80}, {name: nobody, port: 80}]
- matches: [{path: {value: /missing}}]
  backendRefs: [{name: nobody, port: 80}]
- matches: [{path: {value: /zero}}]
  backendRefs: [{name: a, port: 80, weight: 0}]
- matches: [{path: {value: /none}}]",
    )
    .await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let mut shares = async |path: &str| {
        let mut shares: HashMap<String, u32> = HashMap::new();
        for _ in 0..400 {
            let answer = wire.ask(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
            let who = match answer.status {
                200 => origin_of(&answer).to_owned(),
                status => status.to_string(),
            };
            *shares.entry(who).or_default() += 1;
        }
        shares
    };
    // 400 draws at 0.75: the standard deviation is 8.7, the bounds lie six of them off.
    let split = shares("/split").await;
    assert!((247..=353).contains(&split["a"]) && split["a"] + split["b"] == 400, "{split:?}");
    let half = shares("/half-missing").await;
    assert!((140..=260).contains(&half["a"]) && half["a"] + half["500"] == 400, "{half:?}");
    for path in ["/missing", "/zero", "/none"] {
        let answer = client::get(proxy.outbound, "shop", path).await;
        assert_eq!(answer.status, 500, "{path}");
        assert!(!answer.text().contains("127.0.0.1"), "no address is told to callers");
    }
    assert_eq!(proxy.last_outcome(803).await, (500, "NC".to_owned()));
}

#[tokio::test]
async fn headers_change_on_the_way_there_and_back() {
    let (proxy, _a, _b) = shop(
        "\
- filters:
  - type: RequestHeaderModifier
    requestHeaderModifier:
      set: [{name: x-set, value: new}]
      add: [{name: x-add, value: more}]
      remove: [X-Secret]
  - type: ResponseHeaderModifier
    responseHeaderModifier:
      set: [{name: content-type, value: text/plain}]
      add: [{name: x-answer, value: rule}]
      remove: [x-origin]
  backendRefs:
  - name: a
    port: 80
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: a}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-answer, value: backend}]}}",
    )
    .await;
    let fields = "x-set: old\r\nx-set: older\r\nx-add: first\r\nx-secret: 1\r\n";
    let answer = client::get_with(proxy.outbound, "shop", "/", fields).await;
    let seen = &answer.echo()["headers"];
    assert_eq!(seen["x-set"], serde_json::json!(["new"]));
    assert_eq!(seen["x-add"], serde_json::json!(["first", "more"]));
    assert_eq!(seen["x-backend"], serde_json::json!(["a"]));
    assert!(seen.get("x-secret").is_none(), "{seen}");
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(answer.header("x-origin"), None);
    let mut answers = answer.headers_named("x-answer");
    answers.sort_unstable();
    assert_eq!(answers, ["backend", "rule"]);
}

#[tokio::test]
async fn redirects_are_answered_here() {
    let (proxy, a, _b) = shop(
        "\
- matches: [{path: {value: /moved}}]
  filters:
  - type: RequestRedirect
    requestRedirect: {hostname: new.example, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /here}}
- matches: [{path: {value: /secure}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443}}]
- matches: [{path: {value: /full}}]
  filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /all}, statusCode: 308}}]",
    )
    .await;
    for (path, status, location) in [
        ("/moved/a?b=c", 301, "http://new.example/here/a?b=c"),
        ("/moved", 301, "http://new.example/here"),
        ("/secure/x", 302, "https://shop:8443/secure/x"),
        ("/full/x?q=1", 308, "http://shop/all?q=1"),
    ] {
        let answer = client::get(proxy.outbound, "shop", path).await;
        assert_eq!((answer.status, answer.header("location")), (status, Some(location)), "{path}");
    }
    assert_eq!(a.accepted(), 0);
}

#[tokio::test]
async fn rewrites_change_path_and_host() {
    let (proxy, _a, _b) = shop(
        "\
- matches: [{path: {value: /old/api}}]
  filters:
  - type: URLRewrite
    urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}
  backendRefs: [{name: a, port: 80}]
- matches: [{path: {value: /cut}}]
  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
  backendRefs: [{name: a, port: 80}]
- matches: [{path: {value: /one}}]
  filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /only}}}]
  backendRefs: [{name: a, port: 80}]",
    )
    .await;
    for (path, host, seen_path) in [
        ("/old/api/items?x=1", "inner.example", "/v2/items?x=1"),
        ("/old/api", "inner.example", "/v2"),
        ("/cut/a/b", "shop", "/a/b"),
        ("/cut", "shop", "/"),
        ("/one/two?x=%20", "shop", "/only?x=%20"),
    ] {
        let seen = client::get(proxy.outbound, "shop", path).await.echo();
        let got = (seen["path"].as_str(), seen["headers"]["host"][0].as_str());
        assert_eq!(got, (Some(seen_path), Some(host)), "{path}");
    }
}

#[tokio::test]
async fn mirrors_get_a_whole_copy_and_their_answer_is_ignored() {
    let (proxy, a, b) = shop(
        "\
- filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}}}]
  backendRefs: [{name: a, port: 80}]",
    )
    .await;
    let body = "x".repeat(100_000);
    let request = format!(
        "POST /order?id=1 HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = client::ask(proxy.outbound, request).await;
    assert_eq!(origin_of(&answer), "a");
    let copy = until("the copy", async || b.requests().pop()).await;
    assert_eq!(copy["body"].as_str(), Some(body.as_str()));
    assert_eq!((&copy["method"], &copy["path"]), (&"POST".into(), &"/order?id=1".into()));
    assert_eq!(a.requests()[0]["body"].as_str(), Some(body.as_str()));
    proxy.quiet("default/b:80").await;
}

#[tokio::test]
async fn a_mirror_that_fails_harms_nobody() {
    let a = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[a.address])
        .service("dead", "http", &[origin::nobody()])
        .http_route(
            "shop",
            "\
- filters:
  - {type: RequestMirror, requestMirror: {backendRef: {name: dead, port: 80}}}
  - {type: RequestMirror, requestMirror: {backendRef: {name: missing, port: 80}}}
  backendRefs: [{name: shop, port: 80}]",
        )
        .start()
        .await;
    proxy.serves("shop").await;
}

#[tokio::test]
async fn timeouts_end_what_never_answers() {
    let silent = Origin::raw(|mut stream, _| async move {
        origin::drain(&mut stream).await;
    })
    .await;
    let proxy = Mesh::default()
        .service("shop", "http", &[silent.address])
        .service("policy", "http", &[silent.address])
        .policy("policy", "timeouts: {request: 50ms}")
        .http_route(
            "shop",
            "\
- matches: [{path: {value: /request}}]
  timeouts: {request: 50ms}
  backendRefs: [{name: shop, port: 80}]
- matches: [{path: {value: /attempt}}]
  timeouts: {backendRequest: 50ms, request: 10s}
  backendRefs: [{name: shop, port: 80}]",
        )
        .start()
        .await;
    for (at, (host, path)) in
        [("shop", "/request"), ("shop", "/attempt"), ("policy", "/")].into_iter().enumerate()
    {
        assert_eq!(client::get(proxy.outbound, host, path).await.status, 504, "{host}{path}");
        assert_eq!(proxy.last_outcome(at + 1).await, (504, "UT".to_owned()), "{host}{path}");
    }
    proxy.quiet("default/shop:80").await;
    until("the abandoned connections to close", async || (silent.open() == 0).then_some(())).await;
}

/// The request's time is the whole exchange's: a body that drips is cut when it is over.
#[tokio::test]
async fn a_timeout_covers_the_body_too() {
    at_any_pace(cut_in_the_body).await;
}

async fn cut_in_the_body(slower: u32) {
    let drips = Origin::raw(|mut stream, _| async move {
        use tokio::io::AsyncWriteExt;
        if origin::read_request(&mut stream).await.is_some() {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345";
            stream.write_all(head).await.unwrap();
            origin::drain(&mut stream).await;
        }
    })
    .await;
    let proxy = Mesh::default()
        .service("shop", "http", &[drips.address])
        .policy("shop", &format!("timeouts: {{request: {}ms}}", 200 * slower))
        .start()
        .await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    let cut = wire.try_answer().await.expect_err("never complete");
    assert_eq!((cut.answer.status, cut.answer.body.as_slice()), (200, &b"12345"[..]));
    assert_eq!(proxy.last_outcome(1).await, (200, "UT".to_owned()));
}

#[tokio::test]
async fn without_endpoint_service_or_rule_the_answer_says_so() {
    let a = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("empty", "http", &[])
        .service("ruled", "http", &[a.address])
        .http_route(
            "ruled",
            "- matches: [{path: {value: /only}}]\n  backendRefs: [{name: ruled, port: 80}]",
        )
        .start()
        .await;
    for (at, (host, path, status, flag)) in [
        ("empty", "/", 503, "UH"),
        ("unknown.example", "/", 404, "NR"),
        ("ruled", "/other", 404, "NR"),
        ("ruled:81", "/only", 404, "NR"),
        ("ruled", "/only", 200, "-"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(client::get(proxy.outbound, host, path).await.status, status, "{host}{path}");
        assert_eq!(proxy.last_outcome(at + 1).await, (status.into(), flag.to_owned()));
    }
}

#[tokio::test]
async fn tcp_routes_send_connections_where_they_say() {
    let speaks = |greeting: &'static [u8]| {
        Origin::raw(move |mut stream, _| async move {
            use tokio::io::AsyncWriteExt;
            let _ = stream.write_all(greeting).await;
        })
    };
    let (a, b) = (speaks(b"I am a").await, speaks(b"I am b").await);
    let proxy = Mesh::default()
        .service("store", "tcp", &[a.address])
        .service("other", "tcp", &[b.address])
        .route("TCPRoute", "v1alpha2", "store", "- backendRefs: [{name: other, port: 80}]")
        .start()
        .await;
    for (host, greeting) in [("store:80", "I am b"), ("other:80", "I am b")] {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(wire.head().await.unwrap().status, 200);
        assert_eq!(wire.rest().await, greeting.as_bytes());
    }
    assert_eq!(a.accepted(), 0);
}

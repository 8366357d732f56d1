//! What a `CachePolicy` says, in a running sidecar.

use super::{
    assert_hit, assert_miss, get, get_with, is_hit, mesh, policy_for, proxy, send, told,
    upstream::{FRESH, STALE, Upstream, answer, path, response, row},
};
use crate::{
    client::Wire,
    mesh::{Mesh, until},
    origin::Origin,
};

/// Asserts for each row of status and fields whether the second request for it is answered from memory.
async fn kept(policy: &str, rows: &'static [(u16, &'static str, bool)]) {
    let upstream = Upstream::answering(move |head, number| {
        let (status, fields, _) = rows[row(head)];
        answer(status, fields, &number.to_string())
    })
    .await;
    let proxy = proxy(&upstream, policy).await;
    for (at, (status, fields, hit)) in rows.iter().enumerate() {
        let first = get(&proxy, &format!("/{at}")).await;
        let second = get(&proxy, &format!("/{at}")).await;
        assert_eq!((first.status, second.status), (*status, *status), "{fields}");
        assert_eq!(is_hit(&second), *hit, "{policy}: {status} {fields}: {}", told(&second));
        assert_eq!(first.text() == second.text(), *hit, "{policy}: {status} {fields}");
    }
}

#[tokio::test]
async fn without_a_word_only_what_the_rfc_says_is_kept() {
    kept(
        "",
        &[
            (200, "", false),
            (200, "ETag: \"a\"\r\n", false),
            (404, "", false),
            (404, FRESH, true),
            (500, FRESH, true),
            (200, "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n", true),
            (201, "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n", false),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_says_nothing_of_freshness_has_a_default() {
    kept(
        "defaultTtl: 10m",
        &[
            (200, "", true),
            (404, "", true),
            (302, "", false),
            (503, "", false),
            (200, "Cache-Control: no-store\r\n", false),
            (200, "Cache-Control: private\r\n", false),
            (200, "Cache-Control: max-age=0\r\n", false),
            (200, "Set-Cookie: session=1\r\n", false),
            (200, "Vary: *\r\n", false),
        ],
    )
    .await;
    kept(
        "negativeTtl: 10m",
        &[(200, "", false), (404, "", true), (410, "", true), (500, "", false)],
    )
    .await;
}

#[tokio::test]
async fn by_force_what_the_origin_forbids_is_kept_too() {
    kept(
        "forceTtl: 10m",
        &[
            (200, "Cache-Control: no-store\r\n", true),
            (200, "Cache-Control: private, max-age=0\r\nAge: 100\r\n", true),
            (200, "Set-Cookie: a=b\r\n", true),
            (200, "Expires: 0\r\n", true),
            (200, "Vary: *\r\n", false),
            (500, "", false),
        ],
    )
    .await;
}

#[tokio::test]
async fn only_these_statuses_are_kept() {
    kept(
        "statuses: [200, 404]",
        &[(200, FRESH, true), (404, FRESH, true), (301, FRESH, false), (500, FRESH, false)],
    )
    .await;
}

#[tokio::test]
async fn a_method_that_is_not_named_passes() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = proxy(&upstream, "methods: [GET]").await;
    assert_miss(&get(&proxy, "/").await, "1");
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("HEAD / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
    let answer = wire.head().await.unwrap();
    assert!(told(&answer).starts_with("leno; fwd=bypass"), "{}", told(&answer));
}

#[tokio::test]
async fn windows_of_the_policy_count_where_the_origin_says_nothing() {
    let upstream = Upstream::answering(|head, _| match path(head) {
        "/forbids" => response(
            "Cache-Control: max-age=50, stale-if-error=0\r\nAge: 100\r\nConnection: close\r\n",
            "old",
        ),
        _ => response(&format!("{STALE}Connection: close\r\n"), "old"),
    })
    .await;
    let proxy = proxy(&upstream, "staleIfError: 10m").await;
    get(&proxy, "/warm").await;
    get(&proxy, "/forbids").await;
    drop(upstream);
    let answer = get(&proxy, "/warm").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "old"));
    assert_eq!(get(&proxy, "/forbids").await.status, 503);

    let upstream = Upstream::answering(|_, number| match number {
        1 => response(STALE, "old"),
        _ => response(FRESH, "new"),
    })
    .await;
    let proxy = super::proxy(&upstream, "staleWhileRevalidate: 10m").await;
    get(&proxy, "/").await;
    assert_hit(&get(&proxy, "/").await, "old");
    until("the new one", async || (get(&proxy, "/").await.text() == "new").then_some(())).await;
}

#[tokio::test]
async fn keys_have_the_parts_that_the_policy_names() {
    let upstream = Upstream::numbered(FRESH).await;
    let key = "key: {headers: [x-tenant], cookies: [lang], query: {include: [id]}}";
    let proxy = proxy(&upstream, key).await;
    for (path, fields, body, hit) in [
        ("/", "", "1", false),
        ("/", "X-Tenant: a\r\n", "2", false),
        ("/", "X-Tenant: b\r\n", "3", false),
        ("/", "X-Tenant: a\r\n", "2", true),
        ("/", "X-Tenant: a\r\nX-Tenant: b\r\n", "4", false),
        ("/", "X-Tenant: a, b\r\n", "5", false),
        ("/", "Cookie: lang=de; other=1\r\n", "6", false),
        ("/", "Cookie: other=2; lang=de\r\n", "6", true),
        ("/", "Cookie: lang=en\r\n", "7", false),
        ("/", "Cookie: xlang=de\r\n", "1", true),
        ("/?utm=1", "", "1", true),
        ("/?id=1&utm=2", "", "8", false),
        ("/?utm=3&id=1", "", "8", true),
        ("/?id=2", "", "9", false),
        ("/?id=1&id=2", "", "10", false),
        ("/?%69d=1", "", "11", false),
        // Some read a semicolon as `&`.
        ("/?utm=1;id=3", "", "12", false),
        ("/?utm=1;id=4", "", "13", false),
    ] {
        let answer = get_with(&proxy, path, fields).await;
        assert_eq!((answer.text().as_str(), is_hit(&answer)), (body, hit), "{path} {fields}");
    }
    // A change concerns all of them whose URL it is.
    send(&proxy, "PUT", "/?utm=9").await;
    assert!(!is_hit(&get(&proxy, "/").await));
    assert!(!is_hit(&get_with(&proxy, "/", "X-Tenant: a\r\n").await));
    assert!(is_hit(&get(&proxy, "/?id=2").await));
}

#[tokio::test]
async fn parameters_may_be_left_out() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = proxy(&upstream, "key: {query: {exclude: [utm]}}").await;
    for (path, body) in [
        ("/?a=1", "1"),
        ("/?a=1&utm=x", "1"),
        ("/?utm=y&a=1", "1"),
        ("/?%75tm=z&a=1", "1"),
        ("/?a=2", "2"),
        ("/?utm", "3"),
        ("/", "3"),
    ] {
        assert_eq!(get(&proxy, path).await.text(), body, "{path}");
    }
}

#[tokio::test]
async fn what_changes_by_a_route_without_a_cache_is_void_in_that_of_others() {
    let upstream = Upstream::numbered(FRESH).await;
    let rules = "\
- name: writes
  matches: [{method: PUT}]
  backendRefs: [{name: shop, port: 80}]
- name: rest
  backendRefs: [{name: shop, port: 80}]";
    let target =
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: writes}";
    let off = policy_for("off", target, "enabled: false");
    let proxy = mesh(&upstream, "").http_route("shop", rules).yaml(&off).start().await;
    get(&proxy, "/").await;
    assert_hit(&get(&proxy, "/").await, "1");
    assert_eq!(send(&proxy, "PUT", "/").await.text(), "2");
    assert_miss(&get(&proxy, "/").await, "3");
}

#[tokio::test]
async fn one_route_may_be_left_out() {
    let upstream = Upstream::numbered(FRESH).await;
    let rules = "\
- name: live
  matches: [{path: {value: /live}}]
  backendRefs: [{name: shop, port: 80}]
- name: rest
  backendRefs: [{name: shop, port: 80}]";
    let target =
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: live}";
    let off = policy_for("off", target, "enabled: false");
    let proxy = mesh(&upstream, "").http_route("shop", rules).yaml(&off).start().await;
    for _ in 0..2 {
        assert_eq!(get(&proxy, "/live").await.header("cache-status"), None);
    }
    assert_eq!(upstream.count(), 2);
    get(&proxy, "/").await;
    assert_hit(&get(&proxy, "/").await, "3");
}

/// Versions of a service that share its traffic do not answer for one another: a canary is not what most callers see.
#[tokio::test]
async fn versions_are_not_mixed() {
    let (a, b) = (
        Upstream::answering(|_, _| response(FRESH, "a")).await,
        Upstream::answering(|_, _| response(FRESH, "b")).await,
    );
    let proxy = Mesh::default()
        .service("shop", "http", &[])
        .service("a", "http", &[a.address()])
        .service("b", "http", &[b.address()])
        .yaml(&super::policy(""))
        .http_route("shop", "- backendRefs: [{name: a, port: 80}, {name: b, port: 80}]")
        .start()
        .await;
    let mut shares = [0, 0];
    for _ in 0..100 {
        let answer = get(&proxy, "/").await;
        shares[usize::from(answer.text() == "b")] += 1;
    }
    // Each of a hundred is one of two: that one has fewer than ten does not happen.
    assert!(shares.iter().all(|share| *share > 10), "{shares:?}");
    assert_eq!((a.count(), b.count()), (1, 1));
}

/// Raw answers are kept; what rules make of them is made of each delivery.
#[tokio::test]
async fn hits_go_through_the_rules_and_are_not_mirrored() {
    let upstream = Upstream::numbered("Cache-Control: max-age=600\r\nX-Secret: 1\r\n").await;
    let copy = Origin::echo("copy").await;
    let rules = |value: &str| {
        format!(
            "\
- filters:
  - {{type: RequestMirror, requestMirror: {{backendRef: {{name: copy, port: 80}}}}}}
  - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-added, value: '{value}'}}], remove: [x-secret]}}}}
  backendRefs: [{{name: shop, port: 80}}]"
        )
    };
    let mesh = |value: &str| {
        mesh(&upstream, "")
            .service("copy", "http", &[copy.address])
            .http_route("shop", &rules(value))
    };
    let proxy = mesh("one").start().await;
    for _ in 0..3 {
        let answer = get(&proxy, "/").await;
        assert_eq!(answer.header("x-added"), Some("one"));
        assert_eq!(answer.header("x-secret"), None);
    }
    until("the copy", async || copy.requests().pop()).await;
    proxy.quiet("default/copy:80").await;
    assert_eq!((upstream.count(), copy.requests().len()), (1, 1));
    // A change of the rule holds for what is kept, too.
    proxy.rewrite(mesh("two").text());
    until("the new rule", async || {
        (get(&proxy, "/").await.header("x-added") == Some("two")).then_some(())
    })
    .await;
    assert_hit(&get(&proxy, "/").await, "1");
    assert_eq!(upstream.count(), 1);
}

/// What was kept under one version of the policy is not lost under the next, unless keys are made otherwise.
#[tokio::test]
async fn a_change_of_the_policy_goes_live() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = proxy(&upstream, "maxBytes: 8Mi").await;
    get(&proxy, "/").await;
    let generation = proxy.metric("leno_config_generation", &[]).await.unwrap();
    proxy.rewrite(mesh(&upstream, "maxBytes: 8Mi\nstatuses: [200]").text());
    let next = async || {
        (proxy.metric("leno_config_generation", &[]).await > Some(generation)).then_some(())
    };
    until("the next version", next).await;
    assert_hit(&get(&proxy, "/").await, "1");
    proxy.rewrite(mesh(&upstream, "maxBytes: 8Mi\nkey: {headers: [x-tenant]}").text());
    until("other keys", async || (get(&proxy, "/").await.text() == "2").then_some(())).await;
    // Without a policy nothing is said, and nothing kept.
    proxy.rewrite(Mesh::default().service("shop", "http", &[upstream.address()]).text());
    let off = async || get(&proxy, "/").await.header("cache-status").is_none().then_some(());
    until("no policy", off).await;
}

#[tokio::test]
async fn it_shows_what_it_is_worth() {
    let upstream = Upstream::answering(|_, _| response(FRESH, "0123456789")).await;
    let proxy = proxy(&upstream, "").await;
    for _ in 0..4 {
        get(&proxy, "/").await;
    }
    let labels = [("policy", "default/shop")];
    proxy.counts("leno_cache_hits_total", &labels, 3.0).await;
    proxy.counts("leno_cache_misses_total", &labels, 1.0).await;
    proxy.counts("leno_cache_saved_bytes_total", &labels, 30.0).await;
    let page = proxy.json("/cache?format=json").await;
    let shown = &page["caches"][0];
    assert_eq!(
        (&shown["hits"], &shown["misses"], &shown["urls"]),
        (&3.into(), &1.into(), &1.into()),
        "{page}"
    );
    assert_eq!(shown["hitRatio"], 0.75, "{page}");
    // Callers' requests are counted for the service, whoever answers them.
    let labels = [("reporter", "source"), ("destination_service_name", "shop")];
    proxy.counts("istio_requests_total", &labels, 4.0).await;
    assert!(proxy.page("/cache").await.contains("default/shop::hits::3"));
}

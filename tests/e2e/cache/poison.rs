//! Those who want others to get what they have asked for, in ways that the origin and the cache read differently, and those
//! who want the cache to be busy or full.

use super::{
    assert_hit, get, get_with, is_hit, proxy, told,
    upstream::{FRESH, PUBLIC, Upstream, path, response},
};
use crate::{client, mesh::until};

/// What frameworks take for the host, the path or the method of a request decides in the key, too, though the origin does not
/// say so: those that hear of it get another answer.
#[tokio::test]
async fn fields_that_stand_for_another_target_do_not_poison() {
    const FIELDS: [&str; 10] = [
        "X-Forwarded-Host",
        "x-forwarded-host",
        "X-Host",
        "X-Forwarded-Server",
        "X-Forwarded-Scheme",
        "X-Forwarded-Prefix",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-HTTP-Method-Override",
        "X-Method-Override",
    ];
    let upstream = Upstream::answering(|head, _| {
        response(PUBLIC, if head.contains("evil") { "poison" } else { "good" })
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    for (at, name) in FIELDS.into_iter().enumerate() {
        let path = format!("/{at}");
        assert_eq!(get_with(&proxy, &path, &format!("{name}: evil\r\n")).await.text(), "poison");
        assert_eq!(get(&proxy, &path).await.text(), "good", "{name}");
        assert_hit(&get(&proxy, &path).await, "good");
    }
}

/// A parameter that does not count cannot hide one that does.
#[tokio::test]
async fn parameters_cannot_be_cloaked() {
    for query in ["{exclude: [utm]}", "{include: [id]}"] {
        let upstream = Upstream::answering(|head, _| response(FRESH, path(head))).await;
        let proxy = proxy(&upstream, &format!("key: {{query: {query}}}")).await;
        // An origin may read `;` as `&`, take the first or the last of two, or decode names once.
        let targets =
            ["/?id=1", "/?utm=1;id=2", "/?id=1&id=2", "/?id=2&id=1", "/?%69d=2", "/?id=1%26id=2"];
        for target in targets {
            get(&proxy, target).await;
        }
        for target in targets {
            assert_hit(&get(&proxy, target).await, target);
        }
    }
}

/// A page that looks like a file is not kept for that: only the origin's words and the policy's count.
#[tokio::test]
async fn a_page_that_looks_like_a_file_is_no_file() {
    let upstream = Upstream::answering(|head, number| match path(head).contains("no-word") {
        true => response("", &number.to_string()),
        false => response("Cache-Control: private\r\n", &number.to_string()),
    })
    .await;
    let proxy = proxy(&upstream, "defaultTtl: 10m\nnegativeTtl: 10m").await;
    for path in ["/account/x.css", "/account/;x.js", "/account%2fx.png", "/account/x.css?v=1"] {
        let (one, two) = (get(&proxy, path).await, get(&proxy, path).await);
        assert!(one.text() != two.text() && !is_hit(&two), "{path}: {}", told(&two));
    }
    // A cookie that is set is a word: nobody else gets the page, whatever the default.
    let upstream = Upstream::numbered("Set-Cookie: session=1\r\n").await;
    let proxy = super::proxy(&upstream, "defaultTtl: 10m").await;
    let (one, two) = (get(&proxy, "/account/x.css").await, get(&proxy, "/account/x.css").await);
    assert!(one.text() != two.text() && !is_hit(&two), "{}", told(&two));
}

/// The answer to a HEAD, or to a part, is never what a GET gets, nor the other way round.
#[tokio::test]
async fn methods_do_not_poison_each_other() {
    let upstream = Upstream::answering(|head, _| match head.starts_with("head") {
        true => {
            "HTTP/1.1 404 No\r\nContent-Length: 7\r\nCache-Control: max-age=600\r\n\r\n".to_owned()
        }
        false => response(FRESH, "good"),
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    for method in ["HEAD", "OPTIONS", "head", "GETS"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
        let mut wire = client::Wire::connect(proxy.outbound).await;
        wire.send(request).await;
        let _ = wire.rest().await;
    }
    assert_eq!(get(&proxy, "/").await.text(), "good");
    assert_hit(&get(&proxy, "/").await, "good");
}

/// A cookie in a 304 is for the caller whose request brought it, and for nobody who gets the answer from memory.
#[tokio::test]
async fn a_cookie_in_a_304_is_its_callers() {
    let upstream = Upstream::answering(|head, number| match head.contains("if-none-match") {
        true => format!(
            "HTTP/1.1 304 Same\r\nETag: \"a\"\r\nCache-Control: max-age=600\r\n\
             Set-Cookie: session={number}\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n"
        ),
        false => response("Cache-Control: max-age=50\r\nAge: 100\r\nETag: \"a\"\r\n", "good"),
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    let validated = get(&proxy, "/").await;
    assert_eq!(
        (validated.header("set-cookie"), validated.text().as_str()),
        (Some("session=2"), "good")
    );
    for _ in 0..2 {
        let hit = get(&proxy, "/").await;
        assert_hit(&hit, "good");
        assert_eq!((hit.header("set-cookie"), hit.header("x-hop")), (None, None));
    }
}

/// Numbers and dates beyond all bounds are those of a response that is old, or young, and never of one that is good for ever.
#[tokio::test]
async fn numbers_beyond_all_bounds() {
    // Seconds that are left of each, if it is kept at all.
    const ROWS: &[(&str, Option<i64>)] = &[
        ("Cache-Control: max-age=18446744073709551616\r\n", Some(1 << 31)),
        ("Cache-Control: max-age=18446744073709551616\r\nAge: 2147483000\r\n", Some(648)),
        ("Cache-Control: max-age=600\r\nAge: 18446744073709551615\r\n", None),
        ("Cache-Control: max-age=600\r\nDate: Fri, 31 Dec 9999 23:59:59 GMT\r\n", Some(600)),
        ("Expires: Fri, 31 Dec 9999 23:59:59 GMT\r\nDate: Fri, 31 Dec 9999 23:59:59 GMT\r\n", None),
        (
            "Cache-Control: max-age=1, stale-while-revalidate=18446744073709551616\r\nAge: 100\r\n",
            Some(-99),
        ),
    ];
    let upstream = Upstream::answering(|head, number| {
        response(ROWS[super::upstream::row(head)].0, &number.to_string())
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    for (at, (fields, left)) in ROWS.iter().enumerate() {
        let path = format!("/{at}");
        get(&proxy, &path).await;
        let answer = get(&proxy, &path).await;
        let told = told(&answer);
        let ttl = told.strip_prefix("leno; hit; ttl=").map(|ttl| ttl.parse::<i64>().unwrap());
        match (ttl, left) {
            (Some(ttl), Some(left)) => {
                assert!((left - 30..=*left).contains(&ttl), "{fields}: {told}");
            }
            (None, None) => {}
            _ => panic!("{fields}: {told}"),
        }
    }
}

/// Long keys and heads of many fields take of the bound what they take of memory.
#[tokio::test]
async fn long_keys_and_large_heads_are_counted() {
    const MOST: f64 = 8.0 * 1024.0 * 1024.0;
    let many: String = (0..90).map(|at| format!("X-Field-{at}: {}\r\n", "v".repeat(200))).collect();
    let fields = format!("{FRESH}{many}");
    let upstream = Upstream::answering(move |_, _| response(&fields, "x")).await;
    let proxy = proxy(&upstream, "maxBytes: 8Mi\nkey: {headers: [x-tenant]}").await;
    let before = proxy.resident();
    let first = get(&proxy, "/").await;
    let hit = get(&proxy, "/").await;
    assert!(is_hit(&hit) && hit.headers.len() >= 91, "{}", hit.headers.len());
    assert_eq!(first.header("x-field-89"), hit.header("x-field-89"));
    let one = proxy.metric("leno_cache_bytes", &[]).await.unwrap();
    assert!(one > 90.0 * 200.0, "{one}");
    for at in 0..600 {
        let (path, tenant) = (format!("/{}{at}", "p".repeat(4000)), "t".repeat(4000));
        let answer = get_with(&proxy, &path, &format!("X-Tenant: {tenant}{at}\r\n")).await;
        assert_eq!(answer.status, 200);
    }
    let bytes = proxy.metric("leno_cache_bytes", &[]).await.unwrap();
    assert!(bytes > MOST / 2.0 && bytes <= MOST, "{bytes}");
    let grown = proxy.resident().saturating_sub(before);
    assert!(grown < 40 << 20, "{grown} bytes");
}

/// Lists of tags that are as long as a head may be are read once, and answered from memory.
#[tokio::test]
async fn long_lists_of_tags_are_only_long() {
    let upstream =
        Upstream::answering(|_, _| response(&format!("{FRESH}ETag: \"a\"\r\n"), "good")).await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    let list =
        |count: usize| (0..count).map(|at| format!("\"{at}\"")).collect::<Vec<_>>().join(",");
    for (count, status) in [(1_000, 200), (10_000, 431)] {
        let answer = get_with(&proxy, "/", &format!("If-None-Match: {}\r\n", list(count))).await;
        assert!([status, 200].contains(&answer.status), "{count}: {}", answer.status);
        let answer =
            get_with(&proxy, "/", &format!("If-None-Match: {},\"a\"\r\n", list(count))).await;
        assert!([status, 304].contains(&answer.status), "{count}: {}", answer.status);
    }
    // Quotes that never close, commas alone, and a star among others.
    for (tags, status) in [("\"a", 200), (",,,,", 200), ("\"b\", *", 304), ("W/\"a\"", 304)] {
        let answer = get_with(&proxy, "/", &format!("If-None-Match: {tags}\r\n")).await;
        assert_eq!(answer.status, status, "{tags}");
    }
    assert_eq!(upstream.count(), 1);
}

/// Any part of something large is exactly that part, wherever it lies in memory.
#[tokio::test]
async fn parts_of_what_is_large_are_those_parts() {
    let body: String = (0..300_000).map(|at| char::from(b'a' + (at / 7 % 26) as u8)).collect();
    let whole = body.clone();
    let upstream = Upstream::answering(move |_, _| response(FRESH, &whole)).await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    for (first, last) in [
        (0, 0),
        (65_535, 65_536),
        (0, 131_071),
        (70_000, 299_999),
        (299_999, 299_999),
        (1, 262_144),
    ] {
        let answer = get_with(&proxy, "/", &format!("Range: bytes={first}-{last}\r\n")).await;
        assert_eq!(answer.status, 206);
        assert_eq!(answer.header("content-length"), Some(&*(last - first + 1).to_string()));
        let range = format!("bytes {first}-{last}/300000");
        assert_eq!(answer.header("content-range"), Some(&*range));
        assert!(answer.text() == body[first..=last], "{range}");
    }
    let all = get(&proxy, "/").await;
    assert!(is_hit(&all) && all.text() == body);
    let mut wire = client::Wire::connect(proxy.outbound).await;
    wire.send("HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    let head = wire.head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("300000")));
    assert_eq!(upstream.count(), 1);
}

/// A herd of variants of one URL ends at a bound for each key, and does not empty the store of other URLs.
#[tokio::test]
async fn variants_of_one_tenant_do_not_drive_out_anothers() {
    let upstream = Upstream::answering(|_, number| {
        response(&format!("{FRESH}Vary: X-A\r\n"), &number.to_string())
    })
    .await;
    let proxy = proxy(&upstream, "key: {headers: [x-tenant]}").await;
    let good = get_with(&proxy, "/", "X-Tenant: good\r\n").await.text();
    for at in 0..200 {
        get_with(&proxy, "/", &format!("X-Tenant: evil\r\nX-A: {at}\r\n")).await;
    }
    assert_hit(&get_with(&proxy, "/", "X-Tenant: good\r\n").await, &good);
    until("the bound", async || {
        let kept =
            get_with(&proxy, "/", "X-Tenant: evil\r\nX-A: 1\r\nCache-Control: only-if-cached\r\n")
                .await;
        (kept.status == 504).then_some(())
    })
    .await;
}

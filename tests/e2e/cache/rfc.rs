//! RFC 9111, 5861 and 9211 from outside.

use super::{
    assert_hit, assert_miss, get, get_with, is_hit, proxy, send, told,
    upstream::{FRESH, STALE, Upstream, answer, chunked, path, response},
};
use crate::{
    client::{self, Wire},
    mesh::until,
};

#[tokio::test]
async fn the_second_answer_comes_from_memory_and_says_so() {
    let upstream =
        Upstream::numbered("Cache-Control: max-age=600\r\nAge: 100\r\nX-Origin: a\r\n").await;
    let proxy = proxy(&upstream, "").await;
    let first = get(&proxy, "/a?b=c").await;
    assert_miss(&first, "1");
    assert_eq!(told(&first), "leno; fwd=uri-miss; stored");
    let second = get(&proxy, "/a?b=c").await;
    assert_hit(&second, "1");
    assert_eq!(second.header("x-origin"), Some("a"));
    assert_eq!(second.header("content-length"), Some("1"));
    let age: u64 = second.header("age").unwrap().parse().unwrap();
    assert!((100..200).contains(&age), "{age}");
    let ttl: u64 = told(&second).trim_start_matches("leno; hit; ttl=").parse().unwrap();
    assert!((400..=500).contains(&ttl) && age + ttl == 600, "{age} {ttl}");
    assert_miss(&get(&proxy, "/a?b=d").await, "2");
    assert_miss(&get(&proxy, "/a").await, "3");
    assert_eq!(upstream.count(), 3);
    let log = proxy.access_log(4).await;
    assert_eq!((&log[0]["cache"], &log[1]["cache"]), (&"miss".into(), &"hit".into()));
}

#[tokio::test]
async fn a_head_is_answered_from_a_get() {
    let upstream = Upstream::answering(|_, _| response(FRESH, "whole")).await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    let head = wire.head().await.unwrap();
    assert!(is_hit(&head));
    assert_eq!(head.header("content-length"), Some("5"));
    // No body came: the next answer follows at once.
    let next = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_hit(&next, "whole");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn parts_are_cut_from_what_is_whole() {
    let upstream = Upstream::answering(|head, _| {
        assert!(!head.contains("\r\nrange:") || path(head) == "/cold");
        response("Cache-Control: max-age=600\r\nETag: \"a\"\r\n", "0123456789")
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    for (fields, status, range, body) in [
        ("Range: bytes=2-4\r\n", 206, Some("bytes 2-4/10"), "234"),
        ("Range: bytes=-3\r\n", 206, Some("bytes 7-9/10"), "789"),
        ("Range: bytes=8-99\r\n", 206, Some("bytes 8-9/10"), "89"),
        ("Range: bytes=10-\r\n", 416, Some("bytes */10"), ""),
        ("Range: bytes=-0\r\n", 416, Some("bytes */10"), ""),
        ("Range: bytes=4-2\r\n", 200, None, "0123456789"),
        ("Range: lines=1-2\r\n", 200, None, "0123456789"),
        ("Range: bytes=0-1\r\nIf-Range: \"a\"\r\n", 206, Some("bytes 0-1/10"), "01"),
        ("Range: bytes=0-1\r\nIf-Range: \"b\"\r\n", 200, None, "0123456789"),
        ("Range: bytes=0-1\r\nIf-Range: W/\"a\"\r\n", 200, None, "0123456789"),
        ("Range: bytes=18446744073709551615-\r\n", 416, Some("bytes */10"), ""),
        ("Range: bytes=0-18446744073709551616\r\n", 206, Some("bytes 0-9/10"), "0123456789"),
    ] {
        let answer = get_with(&proxy, "/", fields).await;
        let shown = (answer.status, answer.header("content-range"), answer.text());
        assert_eq!(shown, (status, range, body.to_owned()), "{fields}");
        let length = body.len().to_string();
        assert_eq!(answer.header("content-length"), Some(length.as_str()), "{fields}");
    }
    // A part of what is not here is the origin's affair, and does not make the whole.
    assert_miss(&get_with(&proxy, "/cold", "Range: bytes=0-1\r\n").await, "0123456789");
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn who_has_it_already_gets_304() {
    let fields = "Cache-Control: max-age=600\r\nETag: \"a\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let upstream = Upstream::numbered(fields).await;
    let proxy = proxy(&upstream, "").await;
    // What the first caller has is no matter of the origin's: others want all of it.
    let first = get_with(&proxy, "/", "If-None-Match: \"a\"\r\n").await;
    assert_eq!((first.status, first.text().as_str()), (304, ""), "{}", told(&first));
    assert!(!upstream.heads()[0].contains("if-none-match"));
    for (fields, status) in [
        ("If-None-Match: \"a\"\r\n", 304),
        ("If-None-Match: W/\"a\"\r\n", 304),
        ("If-None-Match: \"b\", \"a\"\r\n", 304),
        ("If-None-Match: *\r\n", 304),
        ("If-None-Match: \"b\"\r\n", 200),
        ("If-None-Match: \"b\"\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 200),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 304),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT\r\n", 200),
        ("If-Modified-Since: yesterday\r\n", 200),
    ] {
        let answer = get_with(&proxy, "/", fields).await;
        assert_eq!(answer.status, status, "{fields}");
        assert!(is_hit(&answer), "{fields} {}", told(&answer));
        assert_eq!(answer.text(), if status == 200 { "1" } else { "" });
        assert_eq!(answer.header("etag"), Some("\"a\""));
    }
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn what_is_stale_is_validated_and_good_again() {
    let upstream = Upstream::answering(|head, number| match number {
        1 => response(&format!("{STALE}ETag: \"a\"\r\nX-Rev: 1\r\n"), "body"),
        _ => {
            assert!(head.contains("\r\nif-none-match: \"a\"\r\n"), "{head}");
            "HTTP/1.1 304 Same\r\nETag: \"a\"\r\nCache-Control: max-age=600\r\nX-Rev: 2\r\n\r\n"
                .to_owned()
        }
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    let validated = get_with(&proxy, "/", "If-None-Match: \"other\"\r\n").await;
    assert_miss(&validated, "body");
    assert_eq!(told(&validated), "leno; fwd=stale; fwd-status=304; stored");
    assert_eq!(validated.header("x-rev"), Some("2"));
    let hit = get(&proxy, "/").await;
    assert_hit(&hit, "body");
    assert_eq!(hit.header("x-rev"), Some("2"));
    assert_eq!(upstream.count(), 2);
}

/// An origin that compares dates alone confirms anything of that date: it must not be asked about another's page.
#[tokio::test]
async fn a_date_confirms_no_other_variant() {
    let upstream = Upstream::answering(|head, number| {
        let fields = "Cache-Control: max-age=600\r\nVary: Cookie\r\n\
                      Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        match head.contains("if-modified-since") {
            true => format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n"),
            false => format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 1\r\n\r\n{number}"),
        }
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    assert_miss(&get_with(&proxy, "/", "Cookie: user=a\r\n").await, "1");
    assert_miss(&get_with(&proxy, "/", "Cookie: user=b\r\n").await, "2");
    assert_hit(&get_with(&proxy, "/", "Cookie: user=a\r\n").await, "1");
    assert_hit(&get_with(&proxy, "/", "Cookie: user=b\r\n").await, "2");
}

/// RFC 9110 section 14.2: a head has no parts.
#[tokio::test]
async fn a_range_means_nothing_for_a_head() {
    let upstream = Upstream::numbered("Cache-Control: max-age=600\r\n").await;
    let proxy = proxy(&upstream, "").await;
    assert_miss(&get(&proxy, "/").await, "1");
    let request = "HEAD / HTTP/1.1\r\nHost: shop\r\nRange: bytes=5-\r\nConnection: close\r\n\r\n";
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send(request).await;
    let head = wire.head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("1")), "{head:?}");
    assert_eq!(head.header("content-range"), None);
}

#[tokio::test]
async fn variants_are_told_apart() {
    let upstream =
        Upstream::numbered("Cache-Control: max-age=600\r\nVary: Accept-Language, X-A\r\n").await;
    let proxy = proxy(&upstream, "").await;
    for (fields, body, hit) in [
        ("Accept-Language: de\r\n", "1", false),
        ("Accept-Language: en\r\n", "2", false),
        ("Accept-Language: de\r\n", "1", true),
        ("Accept-Language: en\r\n", "2", true),
        ("Accept-Language: en\r\nX-A: 1\r\n", "3", false),
        ("", "4", false),
        ("Accept-Language: en\r\n", "2", true),
    ] {
        let answer = get_with(&proxy, "/", fields).await;
        assert_eq!((answer.text().as_str(), is_hit(&answer)), (body, hit), "{fields}");
    }
}

#[tokio::test]
async fn only_if_cached_never_asks_the_origin() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = proxy(&upstream, "").await;
    let only = "Cache-Control: only-if-cached\r\n";
    assert_eq!(get_with(&proxy, "/", only).await.status, 504);
    assert_eq!(upstream.count(), 0);
    get(&proxy, "/").await;
    assert_hit(&get_with(&proxy, "/", only).await, "1");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn callers_may_want_it_new() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    for (number, fields) in
        ["Cache-Control: no-cache\r\n", "Cache-Control: max-age=0\r\n", "Pragma: no-cache\r\n"]
            .iter()
            .enumerate()
    {
        assert_miss(&get_with(&proxy, "/", fields).await, &(number + 2).to_string());
    }
    assert_hit(&get(&proxy, "/").await, "4");
    assert_miss(&get_with(&proxy, "/", "Cache-Control: min-fresh=6000\r\n").await, "5");
}

/// One request in the background, however many callers get the old answer meanwhile.
#[tokio::test]
async fn stale_answers_are_given_at_once_while_one_request_brings_the_new_one() {
    let upstream = Upstream::answering(|_, number| match number {
        1 => {
            response("Cache-Control: max-age=50, stale-while-revalidate=600\r\nAge: 100\r\n", "old")
        }
        _ => response(FRESH, "new"),
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    upstream.close();
    for _ in 0..20 {
        assert_hit(&get(&proxy, "/").await, "old");
    }
    upstream.asked(2).await;
    assert_hit(&get(&proxy, "/").await, "old");
    assert_eq!(upstream.count(), 2);
    upstream.open();
    until("the new one", async || (get(&proxy, "/").await.text() == "new").then_some(())).await;
    assert_hit(&get(&proxy, "/").await, "new");
    assert_eq!(upstream.count(), 2);
}

/// Once the origin says that what it has now is for nobody else, what it had before is not served any longer, however long
/// it might have been used stale.
#[tokio::test]
async fn what_became_private_is_not_served_stale() {
    const FIELDS: &str = "Cache-Control: public, max-age=50, stale-while-revalidate=600\r\nAge: 100\r\nETag: \"a\"\r\n";
    for (what, status, fields) in [
        ("private", 200, "Cache-Control: private\r\n"),
        ("no-store", 200, "Cache-Control: no-store\r\n"),
        ("private, unchanged", 304, "Cache-Control: private\r\nETag: \"a\"\r\n"),
        ("no-store, unchanged", 304, "Cache-Control: no-store\r\n"),
        ("gone", 404, "Cache-Control: no-store\r\n"),
        ("too large", 200, "X-Large: 1\r\nCache-Control: max-age=600\r\n"),
    ] {
        let upstream = Upstream::answering(move |head, number| match (number, status) {
            (1, _) => response(FIELDS, "old"),
            (_, 304) if head.contains("if-none-match") => {
                format!("HTTP/1.1 304 Same\r\n{fields}\r\n")
            }
            (_, 304) => response(fields, "new"),
            _ if fields.contains("X-Large") => response(fields, &"x".repeat(2000)),
            _ => answer(status, fields, "new"),
        })
        .await;
        let proxy = proxy(&upstream, "maxObjectBytes: 1Ki").await;
        assert_miss(&get(&proxy, "/").await, "old");
        assert_hit(&get(&proxy, "/").await, "old");
        upstream.asked(2).await;
        until(what, async || (!is_hit(&get(&proxy, "/").await)).then_some(())).await;
        assert_ne!(get(&proxy, "/").await.text(), "old", "{what}");
    }
    // An error says nothing of what there was before it, nor does what one caller alone does not want kept.
    let upstream = Upstream::answering(|head, number| match number {
        1 => response(FIELDS, "old"),
        _ if head.contains("no-store") => response(FIELDS, "new"),
        _ => answer(503, "", "down"),
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    for _ in 0..3 {
        assert_eq!(get(&proxy, "/").await.text(), "old");
    }
    upstream.asked(2).await;
    get_with(&proxy, "/", "Cache-Control: no-cache, no-store\r\n").await;
    assert_hit(&get(&proxy, "/").await, "old");
}

/// What a caller wants only if it is here is asked for in the background all the same, and not in these words.
#[tokio::test]
async fn a_caller_who_wants_nothing_fetched_does_not_stop_what_is_fetched_for_all() {
    let upstream = Upstream::answering(|_, number| match number {
        1 => {
            response("Cache-Control: max-age=50, stale-while-revalidate=600\r\nAge: 100\r\n", "old")
        }
        _ => response(FRESH, "new"),
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    let fields = "Cache-Control: only-if-cached, no-transform\r\n";
    assert_hit(&get_with(&proxy, "/", fields).await, "old");
    upstream.asked(2).await;
    let asked = &upstream.heads()[1];
    assert!(!asked.contains("only-if-cached") && asked.contains("no-transform"), "{asked}");
    until("the new one", async || (get(&proxy, "/").await.text() == "new").then_some(())).await;
}

/// After many answers to POST that are none to GET no request is copied any more, until an answer shows that it should be.
#[tokio::test]
async fn posts_are_expected_again_once_one_brings_what_get_would() {
    let upstream = Upstream::answering(|head, number| {
        let fields = match head.contains("x-plain") {
            true => FRESH.to_owned(),
            false => format!("{FRESH}Content-Location: {}\r\n", path(head)),
        };
        response(&fields, &number.to_string())
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    let post = async |path: &str, fields: &str| {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: shop\r\n{fields}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        client::ask(proxy.outbound, request).await
    };
    post("/first", "").await;
    assert_hit(&get(&proxy, "/first").await, "1");
    for _ in 0..64 {
        post("/", "X-Plain: 1\r\n").await;
    }
    for (path, hit) in [("/second", false), ("/third", true)] {
        let posted = post(path, "").await;
        let answer = get(&proxy, path).await;
        assert_eq!(is_hit(&answer), hit, "{path}");
        assert_eq!(answer.text() == posted.text(), hit);
    }
}

/// It asks for all of it, whatever the caller whose request gave the occasion wanted.
#[tokio::test]
async fn a_head_or_a_part_gives_occasion_to_fetch_all_of_it() {
    for request in [
        "HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: shop\r\nRange: bytes=0-0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: shop\r\nIf-None-Match: \"x\"\r\n\r\n",
    ] {
        let upstream = Upstream::answering(|_, number| match number {
            1 => response(
                "Cache-Control: max-age=50, stale-while-revalidate=600\r\nAge: 100\r\n",
                "old",
            ),
            _ => response(FRESH, "new"),
        })
        .await;
        let proxy = proxy(&upstream, "").await;
        get(&proxy, "/").await;
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(request).await;
        assert!(is_hit(&wire.head().await.unwrap()), "{request}");
        upstream.asked(2).await;
        let asked = &upstream.heads()[1];
        assert!(asked.starts_with("get / "), "{request}: {asked}");
        assert!(!asked.contains("range:") && !asked.contains("if-none-match"), "{asked}");
        until("the new one", async || (get(&proxy, "/").await.text() == "new").then_some(())).await;
        assert_eq!(upstream.count(), 2, "{request}");
    }
}

#[tokio::test]
async fn a_stale_answer_is_better_than_an_error() {
    let stale =
        "Cache-Control: max-age=50, stale-if-error=600\r\nAge: 100\r\nConnection: close\r\n";
    let upstream = Upstream::answering(move |_, number| match number {
        1 => response(stale, "old"),
        _ => answer(503, "Connection: close\r\n", "broken"),
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    let answer = get(&proxy, "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "old"));
    assert!(told(&answer).contains("detail=stale-if-error"), "{}", told(&answer));
    assert!(told(&answer).contains("fwd-status=503"), "{}", told(&answer));
    // Without a word of the origin's own, errors of other URLs stay errors.
    assert_eq!(get(&proxy, "/other").await.status, 503);
    drop(upstream);
    let answer = get(&proxy, "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "old"), "{}", told(&answer));
}

#[tokio::test]
async fn what_must_be_validated_is_an_error_when_it_cannot_be() {
    for control in ["must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=50"] {
        let fields = format!(
            "Cache-Control: max-age=50, {control}\r\nAge: 100\r\nConnection: close\r\nETag: \"a\"\r\n"
        );
        let upstream = Upstream::answering(move |_, _| response(&fields, "old")).await;
        let windows = "staleIfError: 10m\nstaleWhileRevalidate: 10m";
        let proxy = proxy(&upstream, windows).await;
        get(&proxy, "/").await;
        drop(upstream);
        let answer = get(&proxy, "/").await;
        assert_eq!(answer.status, 503, "{control}: {}", answer.text());
    }
}

#[tokio::test]
async fn changes_at_the_origin_make_void_what_is_kept() {
    let upstream = Upstream::answering(|head, number| match head.split(' ').next().unwrap() {
        "get" => response(FRESH, &number.to_string()),
        method => {
            let (status, fields) = match path(head) {
                "/failing" => (500, ""),
                "/refused" => (403, ""),
                "/located" => (201, "Location: /a\r\n"),
                "/absolute" => (201, "Location: http://shop/a\r\n"),
                "/content" => (200, "Content-Location: a\r\n"),
                "/foreign" => {
                    (201, "Location: http://elsewhere/a\r\nContent-Location: //evil/a\r\n")
                }
                _ if method == "options" => (200, "Location: /a\r\n"),
                _ => (200, ""),
            };
            answer(status, fields, "")
        }
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    for (method, path, void) in [
        ("PUT", "/a", true),
        ("DELETE", "/a", true),
        ("POST", "/a", true),
        ("PATCH", "/a", true),
        ("BREW", "/a", true),
        ("OPTIONS", "/a", false),
        ("PUT", "/a?x", false),
        ("POST", "/failing", false),
        ("POST", "/refused", false),
        ("POST", "/located", true),
        ("POST", "/absolute", true),
        ("POST", "/content", true),
        ("POST", "/foreign", false),
    ] {
        get(&proxy, "/a").await;
        assert!(is_hit(&get(&proxy, "/a").await), "{method} {path}");
        send(&proxy, method, path).await;
        assert_eq!(!is_hit(&get(&proxy, "/a").await), void, "{method} {path}");
    }
}

/// What was on its way when the change happened may be what was before it: it is given to whoever asked, and not kept.
#[tokio::test]
async fn what_was_fetched_during_a_change_is_not_kept() {
    let upstream = Upstream::answering(|head, number| match head.starts_with("get") {
        true => response(FRESH, &number.to_string()),
        false => response("", ""),
    })
    .await;
    let other = Upstream::numbered("").await;
    let mesh = super::mesh(&upstream, "").service("writes", "http", &[other.address()]);
    let route = "\
- matches: [{method: PUT}]
  backendRefs: [{name: writes, port: 80}]
- backendRefs: [{name: shop, port: 80}]";
    let proxy = mesh.http_route("shop", route).start().await;
    upstream.close();
    let outbound = proxy.outbound;
    let early = tokio::spawn(async move { client::get(outbound, "shop", "/a").await });
    upstream.asked(1).await;
    assert_eq!(send(&proxy, "PUT", "/a").await.status, 200);
    assert_eq!(other.count(), 1);
    // Nor does anybody who asks after the change get what was asked for before it.
    let late = tokio::spawn(async move { client::get(outbound, "shop", "/a").await });
    upstream.asked(2).await;
    upstream.open();
    let (early, late) = (early.await.unwrap(), late.await.unwrap());
    assert_ne!(early.text(), late.text());
    assert_hit(&get(&proxy, "/a").await, &late.text());
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn trailers_come_with_hits_and_interim_answers_do_not() {
    let upstream = Upstream::answering(|_, _| {
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
         HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\
         Cache-Control: max-age=600\r\n\r\n3\r\none\r\n0\r\nX-Sum: 7\r\n\r\n"
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    for hit in [false, true] {
        let request =
            "GET / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n";
        let answer = client::ask(proxy.outbound, request).await;
        assert_eq!((answer.text().as_str(), is_hit(&answer)), ("one", hit));
        assert_eq!(answer.trailers, [("x-sum".to_owned(), "7".to_owned())], "{hit}");
    }
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn bodies_of_unknown_length_are_kept_whole() {
    let upstream = Upstream::answering(|_, _| chunked(FRESH, &["one ", "two ", "three"])).await;
    let proxy = proxy(&upstream, "").await;
    assert_miss(&get(&proxy, "/").await, "one two three");
    assert_hit(&get(&proxy, "/").await, "one two three");
    let part = get_with(&proxy, "/", "Range: bytes=4-6\r\n").await;
    assert_eq!((part.status, part.text().as_str()), (206, "two"));
}

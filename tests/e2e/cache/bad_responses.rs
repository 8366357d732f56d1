//! Responses that contradict themselves, that are not what they say, or that are too much.

use tokio::io::AsyncWriteExt;

use super::{
    assert_hit, assert_miss, get, get_with, is_hit, proxy, send, told,
    upstream::{FRESH, PUBLIC, Upstream, path, response, row},
};
use crate::{
    client::{self, Wire},
    mesh::until,
    origin::{self, Origin},
};

/// Fields of a response, and whether it is kept and used.
const ROWS: &[(&str, bool)] = &[
    ("Cache-Control: max-age=600\r\n", true),
    ("cAcHe-CoNtRoL: MaX-aGe=600\r\n", true),
    ("Cache-Control: max-age=\"600\"\r\n", true),
    ("Cache-Control: x, ,, max-age=600,\r\n", true),
    ("Cache-Control: max-age=99999999999999999999999999\r\n", true),
    ("Cache-Control: max-age=600\r\nCache-Control: no-store\r\n", false),
    ("Cache-Control: max-age=600\r\nCache-Control: NO-STORE\r\n", false),
    ("Cache-Control: public, private, max-age=600\r\n", false),
    ("Cache-Control: private, s-maxage=600\r\n", false),
    ("Cache-Control: no-cache, max-age=600\r\n", false),
    ("Cache-Control: max-age=-1\r\n", false),
    ("Cache-Control: max-age=ten\r\n", false),
    ("Cache-Control: max-age=\r\n", false),
    ("Cache-Control: max-age=1.5\r\n", false),
    ("Cache-Control: max-age = 600\r\n", false),
    ("Cache-Control: max-age=600\r\nAge: -5\r\n", false),
    ("Cache-Control: max-age=600\r\nAge: 99999999999999999999999999\r\n", false),
    ("Cache-Control: max-age=600\r\nAge: 1\r\nAge: 2\r\n", false),
    ("Cache-Control: max-age=600\r\nAge: soon\r\n", false),
    ("Expires: 0\r\n", false),
    ("Expires: never\r\n", false),
    ("Expires: Sun, 06 Nov 1994 08:49:37 GMT\r\n", false),
    ("Expires: Fri, 01 Jan 2100 00:00:00 GMT\r\n", true),
    ("Expires: Fri, 01 Jan 2100 00:00:00 GMT\r\nCache-Control: max-age=0\r\n", false),
    ("Cache-Control: max-age=600\r\nExpires: 0\r\n", true),
    // A clock that is wrong: behind, the response seems old; ahead, it seems as new as it is.
    ("Cache-Control: max-age=600\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n", false),
    ("Cache-Control: max-age=600\r\nDate: Fri, 01 Jan 2100 00:00:00 GMT\r\n", true),
    ("Cache-Control: max-age=600\r\nDate: yesterday\r\n", true),
    ("Cache-Control: max-age=600\r\nVary: *\r\n", false),
    ("Cache-Control: max-age=600\r\nVary: X-A, *\r\n", false),
    ("Cache-Control: max-age=600\r\nVary:\r\n", true),
    ("Cache-Control: max-age=600\r\nSet-Cookie: a=b\r\n", true),
    ("Last-Modified: Fri, 01 Jan 2100 00:00:00 GMT\r\n", false),
];

#[tokio::test]
async fn what_contradicts_itself_is_taken_at_its_most_careful() {
    let upstream =
        Upstream::answering(|head, number| response(ROWS[row(head)].0, &number.to_string())).await;
    let proxy = proxy(&upstream, "").await;
    for (at, (fields, hit)) in ROWS.iter().enumerate() {
        let path = format!("/{at}");
        assert!(!is_hit(&get(&proxy, &path).await), "{fields}");
        let second = get(&proxy, &path).await;
        assert_eq!(is_hit(&second), *hit, "{fields}: {}", told(&second));
    }
}

#[tokio::test]
async fn credentials_need_leave_to_be_shared() {
    let upstream = Upstream::answering(|head, number| {
        let control = match path(head) {
            "/public" => "public, max-age=600",
            "/shared" => "s-maxage=600",
            "/strict" => "must-revalidate, max-age=600",
            _ => "max-age=600",
        };
        response(&format!("Cache-Control: {control}\r\n"), &number.to_string())
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    let credentials = "Authorization: Basic YTpi\r\n";
    for (path, shared) in [("/", false), ("/public", true), ("/shared", true), ("/strict", true)] {
        let first = get_with(&proxy, path, credentials).await;
        let second = get_with(&proxy, path, "Authorization: Basic YTpj\r\n").await;
        assert_eq!(first.text() == second.text(), shared, "{path}");
        assert_eq!(is_hit(&get(&proxy, path).await), shared, "{path}");
    }
}

/// A 304 for something that was never stored is the caller's to wonder at, and stays with that caller.
#[tokio::test]
async fn a_304_for_nothing_leaves_nothing() {
    let upstream = Upstream::answering(|head, number| match (path(head), number) {
        ("/never", 1) => {
            "HTTP/1.1 304 Same\r\nCache-Control: max-age=600\r\nETag: \"a\"\r\n\r\n".to_owned()
        }
        _ => response(FRESH, &number.to_string()),
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    assert_eq!(get(&proxy, "/never").await.status, 304);
    assert_miss(&get(&proxy, "/never").await, "2");
    assert_hit(&get(&proxy, "/never").await, "2");
}

/// A 304 that names another version than was asked about: the origin is asked for what there is now.
#[tokio::test]
async fn a_304_for_another_version_is_not_believed() {
    let upstream = Upstream::answering(|head, number| {
        let fields = |tag: &str| {
            format!("Cache-Control: max-age=50\r\nAge: 100\r\nETag: {tag}\r\nVary: x-a\r\n")
        };
        match head.contains("if-none-match") {
            true => format!("HTTP/1.1 304 Same\r\n{}\r\n", fields("\"other\"")),
            false => response(&fields(&format!("\"{number}\"")), &number.to_string()),
        }
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    get_with(&proxy, "/", "X-A: 1\r\n").await;
    get_with(&proxy, "/", "X-A: 2\r\n").await;
    let answer = get_with(&proxy, "/", "X-A: 1\r\n").await;
    assert_eq!(answer.status, 200);
    assert!(!is_hit(&answer) && answer.text() != "1" && answer.text() != "2", "{}", answer.text());
}

/// What breaks off, or is longer than it says, is never kept as the whole.
#[tokio::test]
async fn bodies_that_are_not_what_they_say_are_not_kept() {
    for (what, bytes, kept) in [
        ("short", format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{FRESH}\r\nhello"), false),
        (
            "cut",
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{FRESH}\r\n5\r\nhello\r\n"),
            false,
        ),
        (
            "bad chunk",
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{FRESH}\r\n5\r\nhello\r\nxyz\r\n"
            ),
            false,
        ),
        (
            "long",
            format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{FRESH}\r\nhello, and more\r\n\r\n"),
            true,
        ),
    ] {
        let upstream = Origin::canned_once(bytes).await;
        let mesh = crate::mesh::Mesh::default().service("shop", "http", &[upstream.address]);
        let proxy = mesh.yaml(&super::policy("")).start().await;
        for hit in [false, kept] {
            let mut wire = Wire::connect(proxy.outbound).await;
            wire.send("GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
            match wire.try_answer().await {
                Ok(answer) => {
                    assert!(kept, "{what}");
                    assert_eq!((answer.text().as_str(), is_hit(&answer)), ("hello", hit), "{what}");
                }
                Err(cut) => assert!(!kept && !is_hit(&cut.answer), "{what}"),
            }
        }
    }
}

/// What is larger than one response may be passes through whole, whether that is known before or not.
#[tokio::test]
async fn what_is_too_large_passes_whole_and_is_not_kept() {
    const LENGTH: usize = 32 << 20;
    let origin = Origin::raw(|mut stream, _| async move {
        while let Some((head, _)) = origin::read_request(&mut stream).await {
            let with_length = path(&head) == "/length";
            let head = match with_length {
                true => format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n{FRESH}\r\n"),
                false => format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{FRESH}\r\n"),
            };
            if stream.write_all(head.as_bytes()).await.is_err() {
                return;
            }
            let piece = vec![b'x'; 1 << 16];
            for _ in 0..LENGTH / piece.len() {
                if !with_length {
                    stream.write_all(b"10000\r\n").await.unwrap_or_default();
                }
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
                if !with_length {
                    stream.write_all(b"\r\n").await.unwrap_or_default();
                }
            }
            if !with_length {
                stream.write_all(b"0\r\n\r\n").await.unwrap_or_default();
            }
        }
    })
    .await;
    let mesh = crate::mesh::Mesh::default().service("shop", "http", &[origin.address]);
    let proxy = mesh.yaml(&super::policy("maxBytes: 8Mi\nmaxObjectBytes: 100Ki")).start().await;
    let before = proxy.resident();
    for path in ["/length", "/chunks"] {
        for _ in 0..2 {
            let answer = get(&proxy, path).await;
            assert_eq!((answer.status, answer.body.len()), (200, LENGTH), "{path}");
            assert!(!is_hit(&answer), "{path}");
        }
    }
    let grown = proxy.peak_memory().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes for bodies that are not kept");
    assert_eq!(proxy.metric("leno_cache_urls", &[]).await, Some(0.0));
}

/// The newest stay, the rest makes room, and nothing grows without end.
#[tokio::test]
async fn ten_thousand_variants_of_one_url_are_bounded() {
    let upstream = Upstream::answering(|_, number| {
        response(&format!("{FRESH}Vary: X-A\r\n"), &format!("{number:01000}"))
    })
    .await;
    let proxy = proxy(&upstream, "maxBytes: 8Mi").await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let mut ask = async |variant: usize| {
        wire.ask(format!("GET / HTTP/1.1\r\nHost: shop\r\nX-A: {variant}\r\n\r\n")).await
    };
    for variant in 0..10_000 {
        assert_eq!(ask(variant).await.status, 200);
    }
    assert_hit(&ask(9_999).await, &format!("{:01000}", 10_000));
    assert!(!is_hit(&ask(0).await));
    let bytes = proxy.metric("leno_cache_bytes", &[]).await.unwrap();
    assert!(bytes < 256.0 * 1024.0, "{bytes}");
}

/// Variants that do not fit together: the newest stay.
#[tokio::test]
async fn large_variants_of_one_url_make_room_for_one_another() {
    let body = "x".repeat(900_000);
    let text = response(&format!("{FRESH}Vary: X-A\r\n"), &body);
    let upstream = Upstream::answering(move |_, _| text.clone()).await;
    let proxy = proxy(&upstream, "maxBytes: 8Mi").await;
    for variant in 0..20 {
        let fields = format!("X-A: {variant}\r\n");
        get_with(&proxy, "/", &fields).await;
        assert!(is_hit(&get_with(&proxy, "/", &fields).await), "variant {variant}");
    }
}

#[tokio::test]
async fn codings_are_variants() {
    let upstream = Upstream::answering(|head, _| {
        let coding = if head.contains("accept-encoding: gzip") { "gzip" } else { "identity" };
        let fields = format!("{PUBLIC}Vary: Accept-Encoding\r\nContent-Encoding: {coding}\r\n");
        response(&fields, coding)
    })
    .await;
    let proxy = proxy(&upstream, "").await;
    for hit in [false, true] {
        for (fields, coding) in [("Accept-Encoding: gzip\r\n", "gzip"), ("", "identity")] {
            let answer = get_with(&proxy, "/", fields).await;
            assert_eq!((answer.text().as_str(), is_hit(&answer)), (coding, hit));
            assert_eq!(answer.header("content-encoding"), Some(coding));
        }
    }
}

#[tokio::test]
async fn what_belongs_to_a_hop_is_not_kept() {
    let fields = "Cache-Control: max-age=600, no-cache=\"x-fresh\"\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Fresh: 1\r\n\
                  Keep-Alive: timeout=9\r\nProxy-Authenticate: Basic\r\nCache-Status: before; hit\r\n";
    let upstream = Upstream::numbered(fields).await;
    let proxy = proxy(&upstream, "").await;
    get(&proxy, "/").await;
    let hit = get(&proxy, "/").await;
    assert_eq!(hit.headers_named("cache-status").len(), 2, "{hit:?}");
    assert!(hit.headers_named("cache-status")[1].starts_with("leno; hit"), "{hit:?}");
    for name in ["x-hop", "x-fresh", "keep-alive", "proxy-authenticate"] {
        assert_eq!(hit.header(name), None, "{name}");
    }
}

/// Also where nothing is stored, a change is passed on and answered.
#[tokio::test]
async fn changes_of_what_is_not_here_do_no_harm() {
    let upstream = Upstream::numbered("Location: http://[::1\r\nContent-Location: %%%\r\n").await;
    let proxy = proxy(&upstream, "").await;
    assert_eq!(send(&proxy, "POST", "/a").await.status, 200);
    let answer = client::ask(
        proxy.outbound,
        "GET /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody",
    )
    .await;
    assert!(told(&answer).starts_with("leno; fwd=bypass"), "{}", told(&answer));
    until("both", async || (upstream.count() == 2).then_some(())).await;
}

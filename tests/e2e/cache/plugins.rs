//! Plugins and what is kept: they see every request and every answer, and nothing of what they do is kept.

use super::{
    assert_hit, assert_miss, get, get_with, is_hit, mesh, told,
    upstream::{FRESH, Upstream, response},
};
use crate::{
    mesh::{Mesh, Proxy, until},
    plugins::{cached, plugin},
};

/// With the probe: what it does is said by fields of the request.
async fn proxy(upstream: &Upstream, fields: &str) -> Proxy {
    let mesh: Mesh = mesh(upstream, fields);
    let proxy = cached(mesh.yaml(&plugin("probe", "shop", ""))).start().await;
    until("the plugin to be loaded", async || {
        (get_with(&proxy, "/ready", "x-req-headers: local=418\r\n").await.status == 418)
            .then_some(())
    })
    .await;
    proxy
}

/// It decides on each request before anything is looked up: who is refused gets nothing that is kept for others.
#[tokio::test]
async fn a_plugin_sees_requests_that_are_answered_from_memory() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = proxy(&upstream, "").await;
    let first = get(&proxy, "/").await;
    assert_miss(&first, &first.text());
    for _ in 0..3 {
        assert_hit(&get(&proxy, "/").await, &first.text());
        let refused = get_with(&proxy, "/", "x-req-headers: local=403\r\n").await;
        assert_eq!((refused.status, refused.text().as_str()), (403, "local body\n"));
        assert!(!is_hit(&refused), "{}", told(&refused));
    }
    let asked = proxy.errors().matches("on_request_headers").count();
    assert!(asked >= 7, "the plugin saw {asked}");
    // What is fetched for a refused request is nothing: others still get what was kept.
    assert_hit(&get(&proxy, "/").await, &first.text());
}

/// What it changes in an answer is for that delivery: from memory, too, and kept for nobody.
#[tokio::test]
async fn what_a_plugin_makes_of_an_answer_is_not_kept() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = proxy(&upstream, "").await;
    let change = "x-resp-headers: add-resp=x-back:1,rem-resp=etag\r\n";
    let first = get_with(&proxy, "/", change).await;
    assert_eq!((is_hit(&first), first.header("x-back")), (false, Some("1")));
    let plain = get(&proxy, "/").await;
    assert_hit(&plain, &first.text());
    assert_eq!(plain.header("x-back"), None, "it was another caller's");
    let again = get_with(&proxy, "/", change).await;
    assert_hit(&again, &first.text());
    assert_eq!(again.header("x-back"), Some("1"));
    // An answer of its own takes the place of the kept one for that caller only.
    let own = get_with(&proxy, "/", "x-resp-headers: local=418\r\n").await;
    assert_eq!((own.status, own.text().as_str()), (418, "local body\n"));
    assert_hit(&get(&proxy, "/").await, &first.text());
}

/// Variants and keys go by the request as the plugin leaves it: that is what the origin gets.
#[tokio::test]
async fn what_a_plugin_makes_of_a_request_tells_answers_apart() {
    let upstream = Upstream::answering(|head, _| {
        let line = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or("none").to_owned()
        };
        response(&format!("{FRESH}Vary: X-User\r\n"), &(line("x-user: ") + &line("x-tenant: ")))
    })
    .await;
    let proxy = proxy(&upstream, "key: {headers: [x-tenant]}").await;
    for round in 0..2 {
        for (name, body) in [("x-user", "onenone"), ("x-tenant", "noneone")] {
            let fields = format!("x-req-headers: add-req={name}:one\r\n");
            let answer = get_with(&proxy, "/", &fields).await;
            assert_eq!((answer.text().as_str(), is_hit(&answer)), (body, round == 1), "{name}");
        }
        let plain = get(&proxy, "/").await;
        assert_eq!((plain.text().as_str(), is_hit(&plain)), ("nonenone", round == 1));
    }
    // Another path is another answer, whatever the caller asked for.
    let moved = get_with(&proxy, "/", "x-req-headers: rep-req=:path|/other\r\n").await;
    assert!(!is_hit(&moved), "{}", told(&moved));
    assert!(is_hit(&get(&proxy, "/other").await));
}

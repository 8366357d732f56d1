use jsonwebtoken::Algorithm;

use super::*;
use crate::{
    filter::jwt::signing::{Issuer, jwks},
    http::fetch::tests::{Server, ok},
};

const FAST: Timing =
    Timing { refresh: Duration::from_secs(3600), at_most: Duration::from_millis(1) };

/// Waits until `holds`; the test fails when it never does.
async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("never happened");
}

fn started(timing: Timing) -> Arc<KeyCache> {
    let cache = KeyCache::new(timing);
    tokio::spawn(cache.clone().run(Fetcher::default()));
    cache
}

fn count(keys: &RemoteKeys) -> usize {
    keys.load().as_ref().map_or(0, |keys| keys.len())
}

#[tokio::test]
async fn fetches_once_for_all_and_again_when_a_key_is_missing() {
    let [a, b] = ["a", "b"].map(|id| Issuer::new(Algorithm::ES256, id));
    let server = Server::start(ok(jwks([&a]).to_string())).await;
    let cache = started(FAST);
    let keys = cache.keys(&server.url).unwrap();
    assert!(Arc::ptr_eq(&keys, &cache.keys(&server.url).unwrap()));
    until(|| count(&keys) == 1).await;
    assert_eq!(server.hits(), 1);
    server.answer(Some(ok(jwks([&a, &b]).to_string())));
    keys.want();
    until(|| count(&keys) == 2).await;
    assert_eq!(server.hits(), 2);
    let [status] = &cache.status()[..] else { panic!("one issuer") };
    assert_eq!((&*status.uri, status.keys, &status.last_error), (&*server.url, 2, &None));
}

#[tokio::test]
async fn old_keys_stay_when_new_ones_are_no_good() {
    let issuer = Issuer::new(Algorithm::ES256, "a");
    let good = ok(jwks([&issuer]).to_string());
    let server = Server::start(good.clone()).await;
    let cache = started(FAST);
    let keys = cache.keys(&server.url).unwrap();
    until(|| count(&keys) == 1).await;
    let before = keys.load().clone().unwrap();
    for (answer, reason) in [
        (ok("<html>sign in</html>"), "not JSON"),
        (ok("{}"), "not a JWKS"),
        (ok(r#"{"keys":[]}"#), "no usable key"),
        (ok(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#), "no usable key"),
        (ok(vec![b'['; 2 << 20]), "longer than"),
        (b"HTTP/1.1 500 Oops\r\n\r\n".to_vec(), "answered with 500"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec(), "HTTP: "),
        (Vec::new(), "HTTP: "),
    ] {
        server.answer(Some(answer));
        keys.want();
        until(|| {
            let error = keys.status().last_error;
            error.is_some_and(|error| error.contains(reason))
        })
        .await;
        assert!(Arc::ptr_eq(&before, keys.load().as_ref().unwrap()), "{reason}");
    }
    server.answer(Some(good));
    keys.want();
    until(|| keys.status().last_error.is_none()).await;
    assert!(!Arc::ptr_eq(&before, keys.load().as_ref().unwrap()));
}

#[tokio::test]
async fn one_slow_issuer_does_not_keep_others_from_their_keys() {
    let issuer = Issuer::new(Algorithm::ES256, "a");
    let slow = Server::start("").await;
    slow.answer(None);
    let quick = Server::start(ok(jwks([&issuer]).to_string())).await;
    let cache = started(FAST);
    let waiting = cache.keys(&slow.url).unwrap();
    until(|| slow.hits() == 1).await;
    let keys = cache.keys(&quick.url).unwrap();
    until(|| count(&keys) == 1).await;
    assert!(waiting.load().is_none());
}

#[tokio::test]
async fn keys_are_refreshed_unasked() {
    let [a, b] = ["a", "b"].map(|id| Issuer::new(Algorithm::ES256, id));
    let server = Server::start(ok(jwks([&a]).to_string())).await;
    let cache = started(Timing { refresh: Duration::from_millis(5), ..FAST });
    let keys = cache.keys(&server.url).unwrap();
    until(|| count(&keys) == 1).await;
    server.answer(Some(ok(jwks([&a, &b]).to_string())));
    until(|| count(&keys) == 2).await;
}

#[test]
fn no_more_issuers_than_there_is_room_for() {
    let cache = KeyCache::new(Timing::default());
    let uri = |number: usize| format!("http://127.0.0.1/{number}");
    let mut held: Vec<_> = (0..MAX_URIS).map(|number| cache.keys(&uri(number)).unwrap()).collect();
    assert!(cache.keys(&uri(MAX_URIS)).is_none());
    assert!(cache.keys(&uri(7)).is_some());
    held.pop();
    assert!(cache.keys(&uri(MAX_URIS)).is_some());
    assert_eq!(cache.status().len(), MAX_URIS - 1);
}

#[test]
fn unknown_keys_make_it_ask_at_most_every_so_often() {
    let (cache, timing) = (KeyCache::new(Timing::default()), Timing::default());
    let keys = cache.keys("http://127.0.0.1/").unwrap();
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let mut plan = Plan::new(start);
    assert!(plan.begins(start, &keys, timing));
    assert!(!plan.begins(start, &keys, timing), "one at a time");
    plan.ended(start, true, timing);
    let mut fetches = 0;
    for at in 1..=100 {
        keys.want();
        let now = start + second * at;
        if plan.begins(now, &keys, timing) {
            plan.ended(now, true, timing);
            fetches += 1;
        }
    }
    assert_eq!(fetches, 10);
    // And when nobody asks, after five minutes or so.
    let from = start + second * 100;
    assert!(!plan.begins(from + second * 269, &keys, timing));
    assert!(plan.begins(from + second * 331, &keys, timing));
}

#[test]
fn failures_are_retried_ever_more_rarely() {
    let (cache, timing) = (KeyCache::new(Timing::default()), Timing::default());
    let keys = cache.keys("http://127.0.0.1/").unwrap();
    let mut now = Instant::now();
    let mut plan = Plan::new(now);
    for pause in [10, 20, 40, 80, 160, 300, 300, 300] {
        assert!(plan.begins(now, &keys, timing));
        plan.ended(now, false, timing);
        let (soonest, latest) = (pause * 9 / 10 - 1, pause * 11 / 10 + 1);
        assert!(!plan.begins(now + Duration::from_secs(soonest), &keys, timing), "{pause}");
        now += Duration::from_secs(latest);
    }
    assert!(plan.begins(now, &keys, timing));
    plan.ended(now, true, timing);
    assert_eq!(plan.failures, 0);
}

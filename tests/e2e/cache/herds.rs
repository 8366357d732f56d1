//! Many callers who want the same at once.

use tokio::task::JoinSet;

use super::{
    assert_hit, get, is_hit, mesh, told,
    upstream::{FRESH, PUBLIC, Upstream, answer, chunked, path, response},
};
use crate::{
    client::{self, Answer, Wire},
    mesh::{Proxy, until},
    origin,
};

const HERD: usize = 1_000;

/// Until a herd has come together the first of it waits.
const PATIENT: &str = "timeouts: {request: 10m}";

async fn proxy(upstream: &Upstream, fields: &str) -> Proxy {
    mesh(upstream, fields).policy("shop", PATIENT).arguments(&["--workers", "2"]).start().await
}

/// So many callers, each on a connection of its own, whose requests are all sent.
async fn herd(proxy: &Proxy, count: usize, path: &str, fields: &str) -> Vec<Wire> {
    let mut wires = Vec::with_capacity(count);
    for _ in 0..count {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).await;
        wires.push(wire);
    }
    // Whoever asks last is answered last by each worker: what was sent before has been read.
    for _ in 0..20 {
        client::get(proxy.outbound, "nobody", "/").await;
    }
    wires
}

async fn answers(wires: Vec<Wire>) -> Vec<Answer> {
    let mut all = JoinSet::new();
    for mut wire in wires {
        all.spawn(async move { wire.answer().await });
    }
    all.join_all().await
}

#[tokio::test]
async fn a_thousand_callers_cause_one_request() {
    let body = "x".repeat(100_000);
    for in_chunks in [false, true] {
        let text = match in_chunks {
            true => chunked(FRESH, &[&body[..50_000], &body[50_000..]]),
            false => response(FRESH, &body),
        };
        let upstream = Upstream::held(move |_, _| text.clone()).await;
        let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
        let wires = herd(&proxy, HERD, "/", "").await;
        upstream.open();
        let answers = answers(wires).await;
        assert_eq!(upstream.count(), 1, "in chunks: {in_chunks}");
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == body));
        let collapsed = answers.iter().filter(|answer| told(answer).contains("collapsed")).count();
        let hits = answers.iter().filter(|answer| is_hit(answer)).count();
        assert_eq!(collapsed + hits, HERD - 1);
        assert!(collapsed > 0, "they came while it was fetched");
    }
}

/// Also where the store is full: what is on its way has room of its own.
#[tokio::test]
async fn a_full_store_changes_nothing() {
    let upstream = Upstream::answering(|head, _| {
        response(FRESH, &"x".repeat(if path(head) == "/large" { 1 << 20 } else { 60_000 }))
    })
    .await;
    let proxy = proxy(&upstream, "maxBytes: 8Mi\ncollapse: {wait: 1m}").await;
    for at in 0..200 {
        get(&proxy, &format!("/{at}")).await;
    }
    upstream.close();
    let wires = herd(&proxy, 100, "/large", "").await;
    upstream.open();
    let answers = answers(wires).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body.len() == 1 << 20));
    assert_eq!(upstream.count(), 201);
}

/// Nor where more is on its way than what is kept leaves room for: what is least wanted goes. Where even that is used up,
/// they ask one after the other, and not all at once.
#[tokio::test]
async fn a_herd_shares_where_there_is_hardly_room() {
    for slow in [2, 20] {
        let origin = origin::Origin::raw(|mut stream, _| async move {
            use tokio::io::AsyncWriteExt as _;
            while let Some((head, _)) = origin::read_request(&mut stream).await {
                let size = if path(&head).starts_with("/small") { 60_000 } else { 1 << 20 };
                let text = response(FRESH, &"x".repeat(size));
                let end = text.find("\r\n\r\n").unwrap() + 4;
                let _ = stream.write_all(&text.as_bytes()[..end]).await;
                if path(&head).starts_with("/slow") {
                    origin::drain(&mut stream).await;
                    return;
                }
                let _ = stream.write_all(&text.as_bytes()[end..]).await;
            }
        })
        .await;
        let mesh = crate::mesh::Mesh::default().service("shop", "http", &[origin.address]);
        let fields = "maxBytes: 8Mi\ncollapse: {wait: 1m}";
        let proxy = mesh.yaml(&super::policy(fields)).arguments(&["--workers", "2"]).start().await;
        for at in 0..200 {
            get(&proxy, &format!("/small/{at}")).await;
        }
        let mut busy = Vec::new();
        for at in 0..slow {
            let mut wire = Wire::connect(proxy.outbound).await;
            wire.send(format!("GET /slow/{at} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
            assert_eq!(wire.head().await.unwrap().status, 200);
            busy.push(wire);
        }
        let wires = herd(&proxy, 50, "/herd", "").await;
        let answers = answers(wires).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.body.len() == 1 << 20));
        let fetched =
            answers.iter().filter(|answer| told(answer).contains("detail=no-room")).count();
        let shared = answers.iter().filter(|answer| {
            is_hit(answer) || told(answer).contains("collapsed") || told(answer).contains("stored")
        });
        assert_eq!(shared.count() + fetched, 50);
        match slow {
            2 => assert_eq!(fetched, 0, "there is room for it"),
            _ => assert!(fetched > 0, "half of all is taken"),
        }
        let bytes = proxy.metric("leno_cache_bytes", &[]).await.unwrap();
        assert!(bytes > 1e6, "not everything had to go: {bytes}");
    }
}

/// An error reaches everybody, and its origin once.
#[tokio::test]
async fn errors_are_not_multiplied() {
    for (what, failing, statuses) in [
        ("503", answer(503, "", "broken"), [503].as_slice()),
        ("closed", String::new(), &[502, 503]),
        ("garbage", "nonsense\r\n\r\n".to_owned(), &[502]),
        ("coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nConnection: close\r\n\r\n0\r\n\r\n".to_owned(), &[502]),
    ] {
        let upstream = Upstream::held(move |_, _| failing.clone()).await;
        let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
        let wires = herd(&proxy, 200, "/", "").await;
        let asked = upstream.count();
        upstream.open();
        let answers = answers(wires).await;
        let wrong = answers.iter().find(|answer| !statuses.contains(&answer.status));
        assert!(wrong.is_none(), "{what}: {wrong:?}");
        assert_eq!(asked, 1, "{what}");
        // A retry of the connection's is one attempt more, not one for each.
        assert!(upstream.count() <= 4, "{what}: {} requests", upstream.count());
    }
}

/// A body that breaks off is an error, too: nobody gets a part as the whole, and not everybody tries for himself.
#[tokio::test]
async fn a_body_that_breaks_off_is_one_error() {
    for (what, head) in [
        (
            "chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=600\r\nConnection: close\r\n\r\n5\r\nhello\r\n",
        ),
        (
            "length",
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nCache-Control: max-age=600\r\nConnection: close\r\n\r\nhello",
        ),
    ] {
        let upstream = Upstream::held(move |_, _| head).await;
        let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
        let wires = herd(&proxy, 200, "/", "").await;
        upstream.open();
        let mut all = JoinSet::new();
        for mut wire in wires {
            all.spawn(
                async move { wire.try_answer().await.is_ok_and(|answer| answer.status == 200) },
            );
        }
        let whole = all.join_all().await.into_iter().filter(|whole| *whole).count();
        assert_eq!(whole, 0, "{what}");
        assert!(upstream.count() <= 4, "{what}: {} requests", upstream.count());
        // It is not kept.
        let before = upstream.count();
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert!(wire.try_answer().await.is_err());
        assert_eq!(upstream.count(), before + 1, "{what}");
    }
}

/// What is nobody else's is not waited for: everybody's own is fetched at the same time.
#[tokio::test]
async fn what_is_private_is_fetched_side_by_side() {
    const CALLERS: usize = 30;
    for fields in [
        "Cache-Control: private\r\n",
        "Cache-Control: no-store\r\n",
        "Set-Cookie: session=1\r\nCache-Control: no-cache=\"x\"\r\n",
    ] {
        let upstream = Upstream::held(move |_, number| response(fields, &number.to_string())).await;
        let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
        upstream.open();
        get(&proxy, "/").await;
        upstream.close();
        let wires = herd(&proxy, CALLERS, "/", "").await;
        // All of them, while none is answered.
        upstream.asked(CALLERS + 1).await;
        assert_eq!(upstream.most_at_once(), CALLERS, "{fields}");
        upstream.open();
        let mut bodies: Vec<_> = answers(wires).await.iter().map(Answer::text).collect();
        bodies.sort();
        bodies.dedup();
        assert_eq!(bodies.len(), CALLERS, "{fields}");
    }
}

/// The first time nobody knows: all wait for one, then go together.
#[tokio::test]
async fn what_turns_out_to_be_private_is_fetched_in_two_steps() {
    const CALLERS: usize = 30;
    let fields = "Cache-Control: private\r\n";
    let upstream = Upstream::held(move |_, number| response(fields, &number.to_string())).await;
    let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
    let wires = herd(&proxy, CALLERS, "/", "").await;
    assert_eq!(upstream.count(), 1);
    upstream.open();
    let mut bodies: Vec<_> = answers(wires).await.iter().map(Answer::text).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), CALLERS, "nobody got another's");
    assert_eq!(upstream.count(), CALLERS);
}

/// One who does not want his answer kept, or shows credentials, does not make others go alone.
#[tokio::test]
async fn a_callers_own_wishes_are_not_the_herds() {
    for fields in ["Cache-Control: no-store\r\n", "Authorization: Basic YTpi\r\n"] {
        let upstream = Upstream::held(|_, _| response(FRESH, "x")).await;
        let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
        let outbound = proxy.outbound;
        let odd =
            tokio::spawn(async move { client::get_with(outbound, "shop", "/", fields).await });
        upstream.asked(1).await;
        let wires = herd(&proxy, 100, "/", "").await;
        upstream.open();
        assert_eq!(odd.await.unwrap().status, 200);
        assert!(answers(wires).await.iter().all(|answer| answer.text() == "x"));
        assert_eq!(upstream.count(), 2, "{fields}");
    }
}

/// Variants are fetched once each.
#[tokio::test]
async fn two_variants_cause_two_requests() {
    let upstream = Upstream::held(|head, _| {
        let coding = if head.contains("accept-encoding: gzip") { "gzip" } else { "br" };
        response(&format!("{FRESH}Vary: Accept-Encoding\r\nContent-Encoding: {coding}\r\n"), coding)
    })
    .await;
    let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
    let gzip = herd(&proxy, 100, "/", "Accept-Encoding: gzip\r\n").await;
    let br = herd(&proxy, 100, "/", "Accept-Encoding: br\r\n").await;
    upstream.open();
    assert!(answers(gzip).await.iter().all(|answer| answer.text() == "gzip"));
    assert!(answers(br).await.iter().all(|answer| answer.text() == "br"));
    assert_eq!(upstream.count(), 2);
}

/// Whoever asked first goes away before there is an answer: another takes over.
#[tokio::test]
async fn who_asked_first_may_go_away_before_the_answer() {
    let upstream = Upstream::held(|_, number| response(FRESH, &number.to_string())).await;
    let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
    let leader = herd(&proxy, 1, "/", "").await;
    upstream.asked(1).await;
    let wires = herd(&proxy, 100, "/", "").await;
    drop(leader);
    // The first request is given up, and one of the others asks.
    upstream.asked(2).await;
    upstream.open();
    let answers = answers(wires).await;
    assert!(answers.iter().all(|answer| answer.text() == "2"), "{:?}", answers[0]);
    assert_eq!(upstream.count(), 2);
}

/// An origin that sends the first half of a body of `2 * half` bytes, and the rest when the test says so.
async fn in_halves(
    half: usize,
    with_length: bool,
) -> (origin::Origin, tokio::sync::watch::Sender<bool>) {
    use tokio::io::AsyncWriteExt as _;
    let gate = tokio::sync::watch::Sender::new(false);
    let doors = gate.clone();
    let origin = origin::Origin::raw(move |mut stream, _| {
        let mut door = doors.subscribe();
        async move {
            while origin::read_request(&mut stream).await.is_some() {
                let head = match with_length {
                    true => {
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{FRESH}\r\n", 2 * half)
                    }
                    false => {
                        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{FRESH}\r\n")
                    }
                };
                let body = "x".repeat(half);
                let (piece, end) = match with_length {
                    true => (body, ""),
                    false => (format!("{half:x}\r\n{body}\r\n"), "0\r\n\r\n"),
                };
                if stream.write_all(format!("{head}{piece}").as_bytes()).await.is_err() {
                    return;
                }
                let opened = door.wait_for(|open| *open).await.is_ok();
                if !opened || stream.write_all(format!("{piece}{end}").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    (origin.await, gate)
}

async fn before(origin: &origin::Origin, fields: &str) -> Proxy {
    let mesh = crate::mesh::Mesh::default().service("shop", "http", &[origin.address]);
    let mesh = mesh.yaml(&super::policy(fields)).policy("shop", PATIENT);
    mesh.arguments(&["--workers", "2"]).start().await
}

/// Whoever asked first goes away in the middle: the body arrives all the same, for the others and for later.
#[tokio::test]
async fn who_asked_first_may_go_away_in_the_middle() {
    for with_length in [true, false] {
        let (origin, gate) = in_halves(50_000, with_length).await;
        let proxy = before(&origin, "collapse: {wait: 1m}").await;
        let mut leader = herd(&proxy, 1, "/", "").await.pop().unwrap();
        assert_eq!(leader.head().await.unwrap().status, 200);
        let wires = herd(&proxy, 100, "/", "").await;
        drop(leader);
        gate.send_replace(true);
        let answers = answers(wires).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.body.len() == 100_000));
        assert_eq!(origin.accepted(), 1, "{with_length}");
        assert!(is_hit(&get(&proxy, "/").await));
    }
}

/// Whoever asked first does not read: the others are not slowed.
#[tokio::test]
async fn a_slow_leader_slows_nobody() {
    let body = "x".repeat(8 << 20);
    let text = response(FRESH, &body);
    let upstream = Upstream::answering(move |_, _| text.clone()).await;
    let proxy = proxy(&upstream, "maxBytes: 64Mi\nmaxObjectBytes: 8Mi\ncollapse: {wait: 1m}").await;
    let mut leader = herd(&proxy, 1, "/", "").await.pop().unwrap();
    assert_eq!(leader.head().await.unwrap().status, 200);
    for _ in 0..3 {
        assert_eq!(get(&proxy, "/").await.body.len(), body.len());
    }
    assert_eq!(upstream.count(), 1);
    assert_eq!(leader.exactly(body.len()).await.unwrap().len(), body.len());
}

/// Who waits may go away, too.
#[tokio::test]
async fn waiters_may_leave() {
    let upstream = Upstream::held(|_, _| response(FRESH, "x")).await;
    let proxy = proxy(&upstream, "collapse: {wait: 1m}").await;
    let leader = herd(&proxy, 1, "/", "").await;
    upstream.asked(1).await;
    drop(herd(&proxy, 99, "/", "").await);
    until("the others to be gone", async || {
        let open = proxy.metric("leno_downstream_connections", &[("listener", "outbound")]).await;
        (open? <= 2.0).then_some(())
    })
    .await;
    upstream.open();
    assert_eq!(answers(leader).await[0].text(), "x");
    assert_hit(&get(&proxy, "/").await, "x");
    assert_eq!(upstream.count(), 1);
}

/// Nobody waits longer for another's fetch than the policy says.
#[tokio::test]
async fn a_fetch_that_hangs_hangs_nobody_else() {
    let upstream = Upstream::held(|_, number| response(PUBLIC, &number.to_string())).await;
    let proxy = proxy(&upstream, "collapse: {wait: 100ms}").await;
    let leader = herd(&proxy, 1, "/", "").await;
    upstream.asked(1).await;
    let other = herd(&proxy, 1, "/", "").await;
    upstream.asked(2).await;
    // Without collapsing everybody goes at once.
    upstream.open();
    for wires in [leader, other] {
        assert_eq!(answers(wires).await[0].status, 200);
    }
    let upstream = Upstream::held(|_, number| response(PUBLIC, &number.to_string())).await;
    let proxy = super::proxy(&upstream, "collapse: {wait: 0s}").await;
    let wires = herd(&proxy, 10, "/", "").await;
    upstream.asked(10).await;
    upstream.open();
    assert_eq!(answers(wires).await.len(), 10);
}

//! How much memory it takes, whatever comes.

use tokio::task::JoinSet;

use super::{
    get, is_hit, mesh,
    upstream::{FRESH, Upstream, chunked, path, response},
};
use crate::{
    client::Wire,
    mesh::{Proxy, until},
};

const MOST: u64 = 64 << 20;
/// The same bytes whatever is asked for: of a size that the path says, chunked for every other path.
async fn upstream() -> Upstream {
    Upstream::answering(|head, number| {
        let size: usize = path(head).rsplit('/').next().unwrap().parse().unwrap();
        let body = "x".repeat(size);
        match number % 2 {
            0 => response(FRESH, &body),
            _ => chunked(FRESH, &[&body]),
        }
    })
    .await
}

/// Asks for `count` objects of sizes that differ, over `connections` at once.
async fn churn(proxy: &Proxy, connections: usize, count: usize, largest: usize) {
    let mut all = JoinSet::new();
    for connection in 0..connections {
        let outbound = proxy.outbound;
        all.spawn(async move {
            let mut wire = Wire::connect(outbound).await;
            for at in 0..count {
                let size = 1 + (connection * 7919 + at * 104_729) % largest;
                let request =
                    format!("GET /{connection}/{at}/{size} HTTP/1.1\r\nHost: shop\r\n\r\n");
                let answer = wire.ask(request).await;
                assert_eq!((answer.status, answer.body.len()), (200, size));
            }
        });
    }
    all.join_all().await;
}

/// What a proxy without a cache takes for the same is no matter of the cache's.
async fn grown(fields: Option<&str>) -> (u64, Proxy) {
    let upstream = upstream().await;
    let proxy = match fields {
        Some(fields) => mesh(&upstream, fields),
        None => crate::mesh::Mesh::default().service("shop", "http", &[upstream.address()]),
    };
    let proxy = proxy.arguments(&["--workers", "2"]).start().await;
    let before = proxy.resident();
    churn(&proxy, 8, 400, 100_000).await;
    // Callers who take their time with what is evicted meanwhile.
    let mut slow = Vec::new();
    for at in 0..20 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(format!("GET /slow/{at}/900000 HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
        assert_eq!(wire.head().await.unwrap().status, 200);
        slow.push(wire);
    }
    churn(&proxy, 8, 100, 100_000).await;
    let peak = proxy.peak_memory().saturating_sub(before);
    drop(slow);
    (peak, proxy)
}

#[tokio::test]
async fn it_stays_within_the_cap_and_a_tenth() {
    let (without, _) = grown(None).await;
    let (with, proxy) = grown(Some("maxBytes: 64Mi")).await;
    let bytes = proxy.metric("leno_cache_bytes", &[]).await.unwrap();
    assert!(bytes > 40e6 && bytes <= MOST as f64, "{bytes}");
    assert!(proxy.metric("leno_cache_evicted_total", &[]).await > Some(100.0));
    let grown = with.saturating_sub(without);
    let allowed = MOST + MOST / 10;
    assert!(grown < allowed, "{grown} bytes more than without a cache ({with} and {without})");
}

/// A body in the smallest pieces takes hardly more than in one.
#[tokio::test]
async fn small_pieces_take_no_more_than_large_ones() {
    let pieces = vec!["x"; 100_000];
    let text = chunked(FRESH, &pieces);
    let text = text.strip_suffix("0\r\n\r\n").unwrap().to_owned();
    let upstream = Upstream::answering(move |_, _| text.clone()).await;
    let proxy = mesh(&upstream, "").start().await;
    let before = proxy.resident();
    let mut wires = Vec::new();
    for at in 0..10 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(format!("GET /{at} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
        wires.push(wire);
    }
    // Each has come as far as the origin sends it: the end is missing.
    for wire in &mut wires {
        assert_eq!(wire.head().await.unwrap().status, 200);
        let mut read = 0;
        while read < 100_000 {
            let size = wire.line().await.unwrap();
            let size = usize::from_str_radix(&size, 16).unwrap();
            wire.exactly(size + 2).await.unwrap();
            read += size;
        }
    }
    let grown = proxy.resident().saturating_sub(before);
    // 1 MB of bodies, and what connections take.
    assert!(grown < 16 << 20, "{grown} bytes");
}

/// Downloads that are too large to keep hold no room for what could be kept.
#[tokio::test]
async fn what_is_too_large_holds_no_room() {
    use tokio::io::AsyncWriteExt as _;
    let origin = crate::origin::Origin::raw(|mut stream, _| async move {
        while let Some((head, _)) = crate::origin::read_request(&mut stream).await {
            if !head.contains(" /endless/") {
                let text = response(FRESH, &"x".repeat(100_000));
                let _ = stream.write_all(text.as_bytes()).await;
                continue;
            }
            let text = chunked("Cache-Control: max-age=600\r\n", &[&"x".repeat(1 << 16)]);
            let (head, piece) = text.split_once("\r\n\r\n").unwrap();
            let piece = piece.strip_suffix("0\r\n\r\n").unwrap();
            let _ = stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await;
            while stream.write_all(piece.as_bytes()).await.is_ok() {}
            return;
        }
    })
    .await;
    let mesh = crate::mesh::Mesh::default().service("shop", "http", &[origin.address]);
    let proxy = mesh.yaml(&super::policy("maxBytes: 8Mi")).start().await;
    let mut wires = Vec::new();
    for at in 0..12 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send(format!("GET /endless/{at} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
        assert_eq!(wire.head().await.unwrap().status, 200);
        // More than is kept of one: this one is passed on only.
        wire.exactly(2 << 20).await.unwrap();
        wires.push(wire);
    }
    until("room for another", async || {
        get(&proxy, "/small").await;
        is_hit(&get(&proxy, "/small").await).then_some(())
    })
    .await;
    drop(wires);
}

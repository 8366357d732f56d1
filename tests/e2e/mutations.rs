//! Requests that are wrong in ways nobody thought of: valid ones, mutated by a generator with a fixed seed. Whatever
//! comes of each, the proxy and the origin agree on how many requests there were, and the proxy goes on.

use crate::{
    client::Wire,
    frames,
    mesh::{Mesh, until},
    origin::Origin,
};

/// SplitMix64: the same sequence in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

const TOKENS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    ":",
    "\0",
    "0\r\n\r\n",
    "chunked",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 50\r\n",
    "Host: other\r\n",
    "Connection: close\r\n",
    "Connection: Content-Length\r\n",
    "Connection: upgrade\r\nUpgrade: x\r\n",
    "Expect: 100-continue\r\n",
    "GET /second HTTP/1.1\r\nHost: shop\r\n\r\n",
    "HTTP/1.0",
    ";",
    ",",
    "\x7f",
    "é",
    "5\r\nhello\r\n",
    "ffffffffffffffff",
    "-1",
    " chunked",
    "xxxxxxxxxxxxxxxxxxxxxxxx",
];

const SEEDS: &[&str] = &[
    "GET /first HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\n\r\n",
    "POST /first HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello",
    "POST /first HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "POST /first HTTP/1.1\r\nHost: shop\r\nContent-Length: 37\r\n\r\nGET /inner HTTP/1.1\r\nHost: shop\r\n\r\nx",
    "OPTIONS http://shop/first HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\n\r\n",
];

fn mutated(random: &mut Random) -> Vec<u8> {
    let mut bytes = SEEDS[random.below(SEEDS.len())].as_bytes().to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        match random.below(4) {
            0 => _ = bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].bytes()),
            1 => _ = bytes.drain(at..bytes.len().min(at + 1 + random.below(4))),
            2 if at < bytes.len() => bytes[at] = random.next().to_le_bytes()[0],
            // At the start of a line, where headers are.
            _ => {
                let lines: Vec<usize> = bytes
                    .windows(2)
                    .enumerate()
                    .filter(|(_, pair)| pair == b"\r\n")
                    .map(|(at, _)| at + 2)
                    .collect();
                let Some(line) = lines.get(random.below(lines.len().max(1))) else { continue };
                let token = TOKENS[random.below(TOKENS.len())];
                _ = bytes.splice(*line..*line, token.bytes());
            }
        }
    }
    bytes.extend(b"GET /next HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
    bytes
}

#[tokio::test]
async fn mutated_requests_are_counted_alike_on_both_sides() {
    const CONNECTIONS: usize = 1500;
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .arguments(&["--head-timeout", "1"])
        .start()
        .await;
    let mut random = Random(7);
    let mut waiting = Vec::new();
    for _ in 0..CONNECTIONS {
        let bytes = mutated(&mut random);
        let address = proxy.outbound;
        waiting.push(tokio::spawn(async move {
            let mut wire = Wire::connect(address).await;
            let _ = wire.try_send(&bytes).await;
            // What waits for more is ended by the head timeout, or by us.
            let rest = tokio::time::timeout(std::time::Duration::from_secs(3), wire.rest());
            let _ = rest.await;
        }));
        if waiting.len() == 100 {
            for connection in waiting.drain(..) {
                connection.await.unwrap();
            }
        }
    }
    for connection in waiting {
        connection.await.unwrap();
    }
    proxy.quiet("default/shop:80").await;
    proxy.serves("shop").await;
    until("the log to have settled", async || {
        let log = proxy.access_log(1).await;
        log.iter().any(|line| line["path"] == "/still-there").then_some(())
    })
    .await;
    let log = proxy.access_log(1).await;
    let forwarded = log.iter().filter(|line| line["upstream_host"] != "-").count();
    let seen = echo.requests().len();
    assert!(seen <= forwarded, "the origin saw {seen} requests, the proxy sent {forwarded}");
    assert!(seen > CONNECTIONS / 5, "only {seen} got through: the mutations are too wild");
    assert_eq!(proxy.metric("leno_panics_total", &[]).await, Some(0.0));
}

#[tokio::test]
async fn mutated_frames_do_no_harm() {
    const CONNECTIONS: usize = 1000;
    let echo = Origin::echo("a").await;
    let proxy = Mesh::default().service("shop", "http", &[echo.address]).start().await;
    let mut random = Random(11);
    for _ in 0..CONNECTIONS {
        let mut bytes: Vec<u8> = [
            frames::settings(&[(4, 70_000)]),
            frames::get(1),
            frames::post(3),
            frames::data(3, 0, "hello"),
            frames::window_update(0, 1000),
            frames::headers(3, frames::END_STREAM, &[("x-end", "1")]),
            frames::Frame::new(frames::PING, 0, 0, [0; 8]),
            frames::rst_stream(5, 8),
        ]
        .iter()
        .flat_map(frames::Frame::bytes)
        .collect();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.next().to_le_bytes()[0],
                1 => bytes[at] ^= 1 << random.below(8),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let mut wire = Wire::connect(proxy.outbound).await;
        let _ = wire.try_send([frames::PREFACE, &bytes].concat()).await;
        // The peer's answer to anything is enough; most of these connections end at once.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(5), wire.more()).await;
    }
    proxy.serves("shop").await;
    proxy.quiet("default/shop:80").await;
    assert_eq!(proxy.metric("leno_panics_total", &[]).await, Some(0.0));
}

//! The service behind every proxy: fixed answers, as cheap as can be, so that the proxy is what a
//! run measures. It is a process of its own, on the core the proxy does not have.
//!
//! `instance` is another service, which takes its time and can be told to be slow or to fail.
//! `http1` answers over plain epoll, `http2` with the `h2` crate (HTTP/2 and unary gRPC). The path
//! says how much: `/1k`, `/10k`, `/64k`, `/1m`; `/kept/1k` and so on, over HTTP/1.1, may be kept.

pub mod http1;
pub mod http2;
pub mod instance;

use std::net::{SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The bodies there are, by path. `/` and everything else is a kilobyte: what route tables are
/// tested with may ask for any path.
const BODIES: [(&str, usize); 4] =
    [("/1k", 1024), ("/10k", 10 * 1024), ("/64k", 64 * 1024), ("/1m", 1024 * 1024)];
const DEFAULT_BODY: usize = 1024;
/// Before one of these paths, an answer may be kept and given again. What follows a `?` makes it another one.
pub const KEPT: &str = "/kept";

/// Where an origin listens: the one line it prints.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Addresses {
    pub http1: SocketAddr,
    pub http2: SocketAddr,
}

/// Runs an origin until the process ends.
pub fn serve() -> Result<()> {
    let http1 = TcpListener::bind("127.0.0.1:0").context("bind the HTTP/1.1 origin")?;
    let http2 = TcpListener::bind("127.0.0.1:0").context("bind the HTTP/2 origin")?;
    let addresses = Addresses { http1: http1.local_addr()?, http2: http2.local_addr()? };
    let second = thread::Builder::new()
        .name("http2".to_owned())
        .spawn(move || http2::serve(http2))
        .context("start the HTTP/2 thread")?;
    println!("{}", serde_json::to_string(&addresses)?);
    http1::serve(&http1)?;
    second.join().map_err(|_| anyhow::anyhow!("the HTTP/2 origin panicked"))?
}

/// A body that a compressing proxy could not make much of, without randomness.
fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| b'a' + u8::try_from((at * 7 + at / 26) % 26).unwrap_or(0)).collect()
}

/// What a typical JSON service says beside its body.
fn headers() -> [(&'static str, &'static str); 6] {
    [
        ("server", "leno-bench-origin"),
        ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("etag", "\"5f2c-61e0a3\""),
        ("vary", "accept-encoding"),
    ]
}

/// The same of an answer that may be kept. Without a date: it would have to be right.
fn kept_headers() -> Vec<(&'static str, &'static str)> {
    let others =
        headers().into_iter().filter(|(name, _)| !["date", "cache-control"].contains(name));
    others.chain([("cache-control", "public, max-age=86400")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_printable_and_as_long_as_asked() {
        let body = body(65536);
        assert_eq!(body.len(), 65536);
        assert!(body.iter().all(u8::is_ascii_lowercase));
    }
}

//! HTTP/1.1 and HTTP/2 on a connection of people and tools: bounded in how long a head may take, and in streams.

use std::time::Duration;

use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::sync::watch;

/// How long a request's head may take, and a connection may lie idle between two requests.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests at the same time on one HTTP/2 connection; kubectl uses a handful, watches included, API servers 250 at
/// most.
const MAX_STREAMS: u32 = 250;
/// How often a silent HTTP/2 peer is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(30);

/// Serves connections within these bounds.
pub fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PING_EVERY);
    builder
}

/// Waits until a switch is turned on. A sender that is gone has turned it, too.
pub async fn told(switch: &mut watch::Receiver<bool>) {
    switch.wait_for(|on| *on).await.ok();
}

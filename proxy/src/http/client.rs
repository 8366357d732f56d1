//! Upstream connections: handshakes and sending.

use std::time::Duration;

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{body::Body, server::LocalExecutor};

/// Largest response head. Applications do send large cookies, hence more than is taken from callers.
const MAX_HEAD_BYTES: usize = 128 * 1024;
const MAX_HEAD_FIELDS: usize = 256;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams to open before the peer's SETTINGS say how many it takes.
const INITIAL_STREAMS: usize = 100;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// One upstream connection, ready to send on.
#[derive(Debug)]
pub enum Sender {
    /// One exchange at a time.
    Http1(http1::SendRequest<Body>),
    /// Many exchanges at once.
    Http2(http2::SendRequest<Body>),
}

/// A failed exchange; `request` comes back when not a byte of it was sent.
#[derive(Debug)]
pub struct SendError {
    /// What hyper says.
    pub error: hyper::Error,
    /// The request, when it was never sent.
    pub request: Option<Request<Body>>,
}

impl Sender {
    /// Whether a request can be sent now.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }

    /// Whether it never can again.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    /// Waits until a request can be sent.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// With the request itself when nothing of it was sent.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let result = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        };
        result.map_err(|mut failed: TrySendError<Request<Body>>| SendError {
            request: failed.take_message(),
            error: failed.into_error(),
        })
    }
}

/// Speaks HTTP/1.1 on `io`. The connection is driven by a task of its own; `on_end` runs when it ends.
///
/// # Errors
/// When the connection ends at once.
pub async fn http1(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    on_end: impl FnOnce() + 'static,
) -> hyper::Result<Sender> {
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_HEAD_FIELDS)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(2 * MAX_HEAD_BYTES)
        .handshake(TokioIo::new(io))
        .await?;
    tokio::task::spawn_local(async move {
        // Its errors reach the exchange that used it; an idle connection may end as it likes.
        let _ = connection.with_upgrades().await;
        on_end();
    });
    Ok(Sender::Http1(sender))
}

/// Speaks HTTP/2 on `io` with prior knowledge.
///
/// # Errors
/// When the connection ends at once.
pub async fn http2(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    on_end: impl FnOnce() + 'static,
) -> hyper::Result<http2::SendRequest<Body>> {
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(INITIAL_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buf_size(STREAM_WINDOW as usize)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(io))
        .await?;
    tokio::task::spawn_local(async move {
        let _ = connection.await;
        on_end();
    });
    Ok(sender)
}

//! Upstream connections: handshakes and sending.

use std::{future::poll_fn, task::Poll};

use futures_util::{FutureExt as _, future::Either};
use http::{Request, Response};
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    body::{Body, BodyError, Incoming},
    head_budget::{Bounded, HeadBudget},
    http1::{Http1, Io, MAX_BEFORE_HEAD, MAX_HEAD_BYTES, MAX_HEAD_FIELDS},
    http2::{self, Http2},
};

/// As in [`super::server`]: all callers of an endpoint share a connection, and slow ones must not stop the others.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Exchanges at once on a connection at most: if nobody read a byte of any of them, there would still be a stream's
/// window left for one more. With as many streams as fill the connection's window, callers that read nothing would
/// stop all others for as long as they like.
pub const MOST_STREAMS: u32 = CONNECTION_WINDOW / STREAM_WINDOW - 1;
/// Streams to open before the peer's SETTINGS say how many it takes.
const INITIAL_STREAMS: usize = 100;
/// Streams that we reset because the peer broke the protocol, before the connection ends.
const MAX_ERROR_RESETS: usize = 1024;

/// One upstream connection, ready to send on.
#[derive(Debug)]
pub enum Sender {
    /// One exchange at a time.
    Http1(Http1),
    /// One exchange, after which the connection may be something else than HTTP.
    Upgrading(http1::SendRequest<Body>, HeadBudget),
    /// Many exchanges at once.
    Http2(Http2),
}

/// A failed exchange; `request` comes back when not a byte of it was sent.
#[derive(Debug)]
pub struct SendError {
    /// What went wrong.
    pub failure: Failure,
    /// The request, when it was never sent.
    pub request: Option<Box<Request<Body>>>,
    /// In the words of whoever found it.
    pub detail: String,
}

/// What can go wrong between sending a request and the head of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was closed before anything was sent.
    NotSent,
    /// The peer said that it did not process the request (REFUSED_STREAM, or beyond the last stream of a GOAWAY).
    Refused,
    /// The connection ended, or the stream was reset, before the response.
    Closed,
    /// What came back was not HTTP.
    Malformed,
    /// The request's own body broke off.
    RequestBody,
}

impl SendError {
    #[cold]
    fn of(mut failed: TrySendError<Request<Body>>) -> Self {
        let request = failed.take_message().map(Box::new);
        let error = failed.into_error();
        let detail = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self { failure: classify(&error, request.is_none()), request, detail }
    }
}

fn classify(error: &hyper::Error, sent: bool) -> Failure {
    if !sent {
        return Failure::NotSent;
    }
    let over_budget = |error: &std::io::Error| error.kind() == std::io::ErrorKind::InvalidData;
    if error.is_parse()
        || error.is_parse_too_large()
        || source::<std::io::Error>(error).is_some_and(over_budget)
    {
        return Failure::Malformed;
    }
    if error.is_user() || source::<BodyError>(error).is_some() {
        return Failure::RequestBody;
    }
    Failure::Closed
}

fn source<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

impl Sender {
    /// Whether a request can be sent now.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_ready(),
            Self::Upgrading(sender, _) => sender.is_ready(),
            Self::Http2(connection) => !connection.is_closed(),
        }
    }

    /// Whether it never can again.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_closed(),
            Self::Upgrading(sender, _) => sender.is_closed(),
            Self::Http2(connection) => connection.is_closed(),
        }
    }

    /// Whether another request may follow the last one, as far as is known without looking.
    pub fn is_kept(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_kept(),
            Self::Upgrading(..) => false,
            Self::Http2(connection) => !connection.is_closed(),
        }
    }

    /// Waits until a request can be sent; `false` when the connection has ended.
    pub async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_soon_ready().await,
            Self::Upgrading(sender, _) => sender.ready().await.is_ok(),
            Self::Http2(connection) => !connection.is_closed(),
        }
    }

    /// Gets an idle HTTP/1.1 connection ready to be something else after the next request. It is driven by a task of its
    /// own then, since the exchange ends where the other protocol begins.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn expect_upgrade(&mut self) -> hyper::Result<()> {
        let Self::Http1(connection) = self else { return Ok(()) };
        // One that has ended says so when it is sent on.
        let Some(io) = connection.take_io() else { return Ok(()) };
        let (io, budget) = Bounded::new(io);
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEAD_FIELDS)
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(2 * MAX_HEAD_BYTES)
            .handshake(TokioIo::new(io))
            .await?;
        tokio::task::spawn_local(async move {
            // Its errors reach the exchange that used it.
            let _ = connection.with_upgrades().await;
        });
        *self = Self::Upgrading(sender, budget);
        Ok(())
    }

    /// Sends a request at once; the future waits for the head of its response.
    ///
    /// # Errors
    /// With the request itself when nothing of it was sent.
    pub fn send(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> + use<'_> {
        // No `async` block: it would have room for what it waits for twice, and that has room for a request.
        let (sending, budget) = match self {
            Self::Http1(connection) => {
                let mut refused = connection.begin(request).err();
                return Either::Left(Either::Left(poll_fn(move |context| match refused.take() {
                    Some(refused) => Poll::Ready(Err(*refused)),
                    None => connection
                        .poll_response(context)
                        .map_ok(|response| response.map(Incoming::Http1)),
                })));
            }
            Self::Http2(connection) => {
                let mut sending = connection.begin(request);
                return Either::Left(Either::Right(poll_fn(move |context| {
                    sending.poll_response(context).map_ok(|response| response.map(Incoming::Http2))
                })));
            }
            Self::Upgrading(sender, budget) => {
                budget.begin(MAX_BEFORE_HEAD);
                (sender.try_send_request(request), &*budget)
            }
        };
        Either::Right(sending.map(move |result| {
            budget.end();
            result.map(|response| response.map(Incoming::Hyper)).map_err(SendError::of)
        }))
    }
}

/// Speaks HTTP/1.1 on `io`.
pub fn http1(io: impl Io + 'static) -> Sender {
    Sender::Http1(Http1::new(io))
}

/// Speaks HTTP/2 on `io` with prior knowledge.
///
/// # Errors
/// When the connection ends at once.
pub async fn http2(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    on_end: impl FnOnce() + 'static,
) -> Result<Http2, h2::Error> {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(INITIAL_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buffer_size(STREAM_WINDOW as usize)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .enable_push(false);
    http2::client::connect(&builder, io, on_end).await
}

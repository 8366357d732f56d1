//! Serving one downstream connection. Limits against floods are set here; what they mean is in docs/limits.md.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, header};
use http_body::Body as _;
use hyper::{
    Request, Response, rt::Timer as _, server::conn::http1::UpgradeableConnection, service::Service,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
};

use super::{
    aside::{Bell, HeadTimer},
    body::{Body, Incoming},
    framing::{Framing, Looked},
    http2,
    parking::{Answering, Counted, Exchanges, Flushed, Resumed, Served},
};

/// Bounds on what a downstream peer can make this proxy hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head.
    pub head_bytes: usize,
    /// Fields of a head.
    pub head_fields: usize,
    /// Time for a head to arrive, for the preface of HTTP/2, and for the next request on an idle connection of HTTP/1.1.
    pub head_timeout: Duration,
    /// Streams at once on one HTTP/2 connection.
    pub streams: u32,
    /// How long a caller may take nothing of its answer. A piece of a body is up to 64 KiB: whoever reads 220 bytes a
    /// second is slow, and not absent.
    pub send_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 * 1024,
            head_fields: 100,
            head_timeout: Duration::from_secs(60),
            streams: 256,
            send_timeout: Duration::from_secs(300),
        }
    }
}

/// Flow-control windows of HTTP/2: what one stream, and all streams of a connection, may have under way.
/// A connection's must be many times a stream's, or a few streams that nobody reads stop all others. h2 also takes half
/// of it as the allowance for the overhead of small frames that wait to be read, 256 bytes each, and ends the connection
/// above that: 64 KiB of 10-byte messages need 1.6 MB. With four times as much of both, a peer could make us hold 33 MB
/// in single bytes. 64 KiB per round trip is HAProxy's default, too: 128 MB/s at 0.5 ms.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Streams that a peer may reset before they were even accepted (CVE-2023-44487), and those that it may make us
/// reset by protocol errors (CVE-2025-8671), before the connection ends.
const MAX_EARLY_RESETS: usize = 32;
const MAX_ERROR_RESETS: usize = 256;

/// The answer to one request, on the heap so that an idle connection does not hold room for it.
pub type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>>>>;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides were done.
    Clean,
    /// What came was not HTTP.
    Malformed,
    /// A head or a next request took too long.
    TimedOut,
    /// The peer went away, or broke the protocol later on.
    Broken,
}

/// Between two looks whether a connection is idle: at first, and at most. One that was idle for so long is parked; each look
/// that finds it neither idle nor busy doubles the time to the next one.
const LOOK_AFTER: Duration = Duration::from_secs(1);
const LOOK_SELDOM: Duration = Duration::from_secs(16);
/// Once the proxy drains, a connection is closed when nothing was said on it for so long. Until then the next answer
/// tells the caller that it was the last one (RFC 9112 section 9.6): who sends on a connection that is closed in that very
/// moment cannot know whether the request was processed. Longer than other sidecars trust an idle connection: what they
/// send after so long they can send again.
pub const LINGER: Duration = Duration::from_millis(1500);

/// Serves HTTP/1.1 until the connection ends. When `drain` turns true all answers say `Connection: close`, and it ends
/// after the next one, or when there is none for [`LINGER`].
pub async fn serve_http1<S>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    limits: Limits,
    mut drain: watch::Receiver<bool>,
    answer: S,
) -> Ended
where
    S: Fn(Request<Incoming>) -> Answer + 'static,
{
    let (io, framing) = Looked::new(io);
    let (mut io, flushed): (Served<_>, _) = Resumed::new(io);
    let exchanges = Rc::<Exchanges>::default();
    let mut codec = Codec { answer, framing, exchanges: exchanges.clone() };
    // What was read and belongs to the next head.
    let mut first = Bytes::new();
    loop {
        if first.is_empty() {
            // Without a byte in it, it may still hold all of the codec's buffer.
            drop(std::mem::take(&mut first));
            first = match next_byte(&mut io, limits.head_timeout, &mut drain).await {
                Ok(byte) => byte,
                Err(ended) => return ended,
            };
        }
        if *drain.borrow() {
            exchanges.end();
        }
        io.resume(first);
        let head = HeadTimer::new();
        let builder = builder(limits, head.clone());
        let connection = builder.serve_connection(TokioIo::new(io), codec).with_upgrades();
        // On the heap, so that a parked connection does not hold room for it.
        let mut connection = Box::new(connection);
        let served =
            serve_until_idle(&mut connection, &head, &exchanges, &flushed, &mut drain).await;
        if let Some(ended) = served {
            return ended;
        }
        let Some(parts) = connection.into_parts() else { return Ended::Clean };
        (io, codec, first) = (parts.io.into_inner(), parts.service, parts.read_buf);
    }
}

fn builder(limits: Limits, head: HeadTimer) -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(head)
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.head_fields)
        .max_header_size(limits.head_bytes)
        .max_buf_size(limits.head_bytes.max(128 * 1024))
        // A caller that closes while it waits has given up, and its call is cancelled upstream. Whoever only closes
        // its sending half looks the same, so it gets no answer either (as in Envoy and nginx).
        .half_close(false);
    builder
}

/// Drives the connection to its end, or until there is nothing under way on it (`None`).
async fn serve_until_idle<I, S>(
    connection: &mut UpgradeableConnection<TokioIo<I>, Codec<S>>,
    head: &HeadTimer,
    exchanges: &Exchanges,
    flushed: &Flushed,
    drain: &mut watch::Receiver<bool>,
) -> Option<Ended>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> Answer + 'static,
{
    let mut pause = LOOK_AFTER;
    let mut look = std::pin::pin!(tokio::time::sleep(pause));
    let mut drained = std::pin::pin!(drained(drain));
    let mut bell = Bell::default();
    let mut draining = false;
    // What was parked and has not got as far as a request is looked at no sooner than a new one.
    let mut begun = exchanges.begun();
    let resumed = begun;
    loop {
        let beside = poll_fn(|context| {
            if let Poll::Ready(result) = Pin::new(&mut *connection).poll(context) {
                return Poll::Ready(Beside::Ended(ended(result)));
            }
            if exchanges.are_unread() {
                return Poll::Ready(Beside::Ended(Ended::TimedOut));
            }
            if let Some(deadline) = head.deadline()
                && deadline < look.deadline().into_std()
            {
                look.as_mut().reset(deadline.into());
                bell.ring();
            }
            bell.poll(context, |context| {
                if !draining && drained.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Beside::Drained);
                }
                look.as_mut().poll(context).map(|()| Beside::Look)
            })
        });
        match beside.await {
            Beside::Ended(ended) => return Some(ended),
            Beside::Drained => {
                draining = true;
                exchanges.end();
                begun = exchanges.begun();
                look.as_mut().reset(tokio::time::Instant::now() + LINGER);
            }
            Beside::Look => {
                // Said here or never: a head that is late ends the connection, draining or not.
                let late = head.is_over(head.now());
                let quiet = exchanges.begun() == begun;
                let flushed = flushed.load(Ordering::Relaxed);
                begun = exchanges.begun();
                if draining {
                    if quiet && flushed && !exchanges.is_under_way() {
                        Pin::new(&mut *connection).graceful_shutdown();
                    }
                    pause = LINGER;
                } else {
                    if !late && quiet && flushed && begun > resumed && exchanges.are_over() {
                        return None;
                    }
                    pause = if quiet { LOOK_SELDOM.min(pause * 2) } else { LOOK_AFTER };
                }
                look.as_mut().reset(tokio::time::Instant::now() + pause);
            }
        }
        // Who was not asked, and the new time.
        bell.ring();
    }
}

/// What happens to a connection beside its exchanges.
enum Beside {
    Ended(Ended),
    /// The proxy ends.
    Drained,
    /// It is time to look whether there is something to do.
    Look,
}

/// Waits for the next request on an idle connection: its first byte, or how the connection ended.
async fn next_byte(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    limit: Duration,
    drain: &mut watch::Receiver<bool>,
) -> Result<Bytes, Ended> {
    let mut byte = [0];
    // One timer for both ends: thousands of idle connections have room for it.
    let mut end = std::pin::pin!(tokio::time::sleep(limit));
    let mut draining = false;
    loop {
        tokio::select! {
            read = io.read(&mut byte) => return match read {
                Ok(0) => Err(Ended::Clean),
                Ok(_) => Ok(Bytes::copy_from_slice(&byte)),
                Err(_) => Err(Ended::Broken),
            },
            () = end.as_mut() => {
                if !draining {
                    return Err(Ended::TimedOut);
                }
                // The caller is told that the connection ends; whether it hears that changes nothing.
                let _ = io.shutdown().await;
                return Err(Ended::Clean);
            }
            () = drained(drain), if !draining => {
                draining = true;
                end.as_mut().reset(tokio::time::Instant::now() + LINGER);
            }
        }
    }
}

/// What the codec of HTTP/1.1 asks for answers.
struct Codec<S> {
    answer: S,
    framing: Arc<Framing>,
    exchanges: Rc<Exchanges>,
}

impl<S> Service<Request<hyper::body::Incoming>> for Codec<S>
where
    S: Fn(Request<Incoming>) -> Answer,
{
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Answering {
        let request = request.map(Incoming::Hyper);
        let has_body = !request.body().is_end_stream();
        self.exchanges.begin(has_body, self.answer_checked(request, has_body))
    }
}

impl<S> Codec<S>
where
    S: Fn(Request<Incoming>) -> Answer,
{
    /// Gives a request whose length is ambiguous the `Content-Length` back that hyper took from it, so that the check of
    /// heads refuses it like any other.
    fn answer_checked(&self, mut request: Request<Incoming>, has_body: bool) -> Answer {
        let framing = &self.framing;
        if framing.head_read(has_body) && request.headers().contains_key(header::TRANSFER_ENCODING)
        {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let answering = (self.answer)(request);
        if !has_body {
            return answering;
        }
        let framing = framing.clone();
        Box::pin(async move {
            let answer = answering.await;
            framing.body_read();
            answer
        })
    }
}

/// Serves HTTP/2 until the connection ends. When `drain` turns true a GOAWAY is sent and open streams are finished.
pub async fn serve_http2<S>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    limits: Limits,
    mut drain: watch::Receiver<bool>,
    answer: S,
) -> Ended
where
    S: Fn(Request<Incoming>) -> Answer + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_EARLY_RESETS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .max_send_buffer_size(STREAM_WINDOW as usize);
    let limit = limits.head_timeout;
    http2::server::serve(&builder, io, limit, drained(&mut drain), answer).await
}

/// Waits until draining begins; for ever when nobody can ask for it any more.
pub(crate) async fn drained(drain: &mut watch::Receiver<bool>) {
    if drain.wait_for(|draining| *draining).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn ended(result: hyper::Result<()>) -> Ended {
    match result {
        Ok(()) => Ended::Clean,
        Err(error) if error.is_timeout() => Ended::TimedOut,
        Err(error) if error.is_parse() => Ended::Malformed,
        Err(_) => Ended::Broken,
    }
}

#[cfg(test)]
mod tests;

//! HTTP/2 for callers: one task a connection, and one for each of its exchanges.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    server::{Connection, SendResponse},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep},
};

use super::{
    alive::KeepAlive,
    batched::Batched,
    duplex::{Duplex, Promise},
    received::Received,
    upload::Upload,
};
use crate::http::{
    aside::Bell,
    body::{Body, Incoming},
    head,
    server::{Answer, Ended, LINGER},
    unread::Taken,
};

/// Serves a connection to its end, as `builder` says, if the peer has greeted within `limit`. When `drained` is ready a GOAWAY is sent and open streams are
/// finished.
pub(in crate::http) async fn serve<S, A>(
    builder: &h2::server::Builder,
    io: S,
    limit: Duration,
    drained: impl Future<Output = ()>,
    answer: A,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>) -> Answer,
{
    let io = Batched::new(io);
    let mut drained = pin!(drained);
    let greeted = greeted(builder, io.clone(), limit, drained.as_mut()).await;
    let (mut connection, draining) = match greeted {
        Ok(greeted) => greeted,
        Err(ended) => return ended,
    };
    if draining {
        connection.graceful_shutdown();
    }
    let alive = KeepAlive::new(connection.ping_pong());
    let mut driver = Driver { connection, io, alive, bell: Bell::default(), draining };
    poll_fn(|context| driver.poll(context, drained.as_mut(), &answer)).await
}

/// Waits for the handshake until `limit`. Also gives whether draining has begun meanwhile.
async fn greeted<S: AsyncRead + AsyncWrite + Unpin>(
    builder: &h2::server::Builder,
    io: Batched<S>,
    limit: Duration,
    mut drained: Pin<&mut impl Future<Output = ()>>,
) -> Result<(Connection<Batched<S>, Bytes>, bool), Ended> {
    let mut handshake = pin!(handshake(builder, io));
    let (mut draining, mut end) = (false, pin!(sleep(limit)));
    loop {
        tokio::select! {
            biased;
            connection = handshake.as_mut() => return Ok((connection?, draining)),
            () = drained.as_mut(), if !draining => {
                draining = true;
                let sooner = end.deadline().min(Instant::now() + LINGER);
                end.as_mut().reset(sooner);
            }
            // It has not asked for anything.
            () = end.as_mut() => return Err(if draining { Ended::Clean } else { Ended::TimedOut }),
        }
    }
}

/// Waits for the peer's preface.
async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    builder: &h2::server::Builder,
    io: Batched<S>,
) -> Result<Connection<Batched<S>, Bytes>, Ended> {
    let mut handshake = builder.handshake(io.clone());
    let handshake = poll_fn(|context| {
        let done = Pin::new(&mut handshake).poll(context);
        match sent(&io, context) {
            Ok(()) => done.map_err(|_| Ended::Broken),
            Err(ended) => Poll::Ready(Err(ended)),
        }
    });
    handshake.await
}

fn sent<S: AsyncWrite + Unpin>(io: &Batched<S>, context: &mut Context<'_>) -> Result<(), Ended> {
    match io.poll_send(context) {
        Poll::Ready(Err(_)) => Err(Ended::Broken),
        Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
    }
}

/// Drives a connection to its end.
struct Driver<S> {
    connection: Connection<Batched<S>, Bytes>,
    io: Batched<S>,
    alive: KeepAlive,
    bell: Bell,
    draining: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        drained: Pin<&mut impl Future<Output = ()>>,
        answer: &impl Fn(Request<Incoming>) -> Answer,
    ) -> Poll<Ended> {
        let Self { connection, io, alive, bell, draining } = self;
        // Callers without a stream are pinged, too: nothing else would find that they are gone.
        if alive.poll(context, || (io.has_heard(), true)).is_ready() {
            return Poll::Ready(Ended::TimedOut);
        }
        if !*draining && bell.poll(context, |context| drained.poll(context)).is_ready() {
            *draining = true;
            connection.graceful_shutdown();
        }
        loop {
            match connection.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => begin(request, respond, answer),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Ended::Broken),
                Poll::Ready(None) => return Poll::Ready(Ended::Clean),
                Poll::Pending => break,
            }
        }
        match sent(io, context) {
            Ok(()) => Poll::Pending,
            Err(ended) => Poll::Ready(ended),
        }
    }
}

/// Gives a request to a task of its own.
fn begin(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    answer: &impl Fn(Request<Incoming>) -> Answer,
) {
    let (head, stream) = request.into_parts();
    let body = Received::new(stream, &head.headers, None);
    let (request, tunnel) = match head.method {
        Method::CONNECT if body.size_hint().lower() > 0 => {
            // Its bytes are the tunnel's.
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return;
        }
        Method::CONNECT => {
            let (promise, promised) = Promise::new();
            let mut request = Request::from_parts(head, Incoming::Empty);
            request.extensions_mut().insert(promised);
            (request, Some(Tunnel { promise, incoming: body.into_stream() }))
        }
        _ => (Request::from_parts(head, Incoming::Http2(body)), None),
    };
    let state = State::Answering(answer(request), tunnel);
    tokio::task::spawn_local(Serving { respond, state });
}

/// What becomes of a `CONNECT` that is answered well.
struct Tunnel {
    promise: Promise,
    incoming: RecvStream,
}

/// One exchange, from its request to the end of its answer.
struct Serving {
    respond: SendResponse<Bytes>,
    state: State,
}

#[expect(clippy::large_enum_variant, reason = "on the heap with its task already")]
enum State {
    Answering(Answer, Option<Tunnel>),
    Sending(Upload<Taken>),
}

impl Future for Serving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Answering(answer, tunnel) => {
                    // A caller that gives up: its call is cancelled upstream, as all of this is dropped. Asked first: the
                    // exchange would take it for a body that broke off.
                    if this.respond.poll_reset(context).is_ready() {
                        return Poll::Ready(());
                    }
                    let answered = ready!(answer.as_mut().poll(context));
                    let tunnel = tunnel.take();
                    let Some(body) = this.answer(answered, tunnel, context) else {
                        return Poll::Ready(());
                    };
                    this.state = State::Sending(body);
                }
                // h2 would not do that by itself as long as somebody still reads the request.
                State::Sending(body) if body.body().is_over() => {
                    this.respond.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                State::Sending(body) => {
                    // Both sides of the stream learn of its end by themselves.
                    let _ = ready!(body.poll(context));
                    return Poll::Ready(());
                }
            }
        }
    }
}

impl Serving {
    /// Sends the head of an answer. What is left to be sent, if anything is.
    fn answer(
        &mut self,
        answered: Result<Response<Body>, Infallible>,
        tunnel: Option<Tunnel>,
        context: &Context<'_>,
    ) -> Option<Upload<Taken>> {
        let Ok(response) = answered;
        let (head, body) = response.into_parts();
        let mut head = Response::from_parts(head, ());
        head::strip_connection(head.headers_mut());
        head.headers_mut().entry(header::DATE).or_insert_with(date);
        if let Some(tunnel) = tunnel.filter(|_| head.status().is_success()) {
            head.headers_mut().remove(header::CONTENT_LENGTH);
            let outgoing = self.send(head, false)?;
            tunnel.promise.keep(Duplex::new(tunnel.incoming, outgoing));
            return None;
        }
        if body.is_end_stream() {
            self.send(head, true);
            return None;
        }
        if let Some(length) = body.size_hint().exact()
            && head.status() != StatusCode::NO_CONTENT
        {
            let length = || HeaderValue::from(length);
            head.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(length);
        }
        let outgoing = self.send(head, false)?;
        Some(Upload::of_answer(Taken::new(body, context), outgoing))
    }

    fn send(&mut self, head: Response<()>, is_whole: bool) -> Option<SendStream<Bytes>> {
        let sent = self.respond.send_response(head, is_whole);
        sent.inspect_err(|_| self.respond.send_reset(Reason::INTERNAL_ERROR)).ok()
    }
}

/// For answers without one (RFC 9110 section 6.6.1). Written once a second.
fn date() -> HeaderValue {
    thread_local! {
        static WRITTEN: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    WRITTEN.with_borrow_mut(|written| match written {
        Some((second, text)) if *second == now => text.clone(),
        _ => {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
            // A date has no letters that a field must not have.
            let text = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
            written.insert((now, text)).1.clone()
        }
    })
}

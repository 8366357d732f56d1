//! HTTP/2 to upstreams. One task drives a connection; whoever waits for an answer sends its request and reads the answer
//! itself, so that a call wakes nobody but the connection and the exchange.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::{HeaderValue, Method, Request, Response, header};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    alive::KeepAlive,
    batched::Batched,
    queue::Queue,
    received::Received,
    upload::{Stopped, Upload},
};
use crate::http::{
    body::Body,
    client::{Failure, SendError},
    head,
};

/// A connection that carries many exchanges at once; clones are the same one. It ends when the last is dropped and all
/// that began on it is over.
#[derive(Clone, Debug)]
pub struct Http2(Rc<Handle>);

#[derive(Debug)]
struct Handle {
    /// Only ever asked and cloned. One that has sent what h2 has no room for waits for that stream, in the place of whoever
    /// sends its body.
    requests: RefCell<SendRequest<Bytes>>,
    link: Rc<Link>,
}

/// What a connection's task and its exchanges know of each other.
#[derive(Debug, Default)]
struct Link {
    ended: Cell<bool>,
    /// Exchanges under way.
    streams: Cell<usize>,
    /// Those that the peer takes, as far as it has said.
    most: Cell<usize>,
    /// Those for which the peer has no room yet.
    queue: Queue,
    /// Whether any began since somebody looked.
    begun: Cell<bool>,
    /// Whether no other can begin, as nobody has the connection any more.
    abandoned: Cell<bool>,
    /// The connection's task.
    task: RefCell<Option<Waker>>,
}

/// One exchange under way, until dropped.
#[derive(Debug)]
pub(super) struct Counted {
    link: Rc<Link>,
    /// Where its answer and what is left of its request are in two hands: the same for both.
    both: Option<Rc<()>>,
}

/// An exchange until the head of its answer is here.
#[derive(Debug)]
pub(in crate::http) struct Sending(State);

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one is what nearly every call is in")]
enum State {
    /// On the heap, as this is seldom and all would be larger.
    Waiting(Box<Waiting>),
    Sent {
        response: ResponseFuture,
        upload: Option<Upload<Body>>,
        counted: Option<Counted>,
    },
    Failed(Option<Box<SendError>>),
}

/// An exchange for which the peer has no room yet. It is not left with h2, as nobody could say then whether any of it was
/// sent.
#[derive(Debug)]
struct Waiting {
    connection: Http2,
    request: Option<Request<Body>>,
    /// Its place in the queue.
    number: u64,
}

/// Drives a connection to its end.
struct Driver<S> {
    connection: Connection<Batched<S>, Bytes>,
    io: Batched<S>,
    alive: KeepAlive,
    link: Rc<Link>,
    /// Not one of those that could begin something: then the connection would never end.
    handle: Weak<Handle>,
}

/// Speaks HTTP/2 on `io` as `builder` says, driven by a task of its own that ends with `on_end`.
///
/// # Errors
/// When the connection ends at once.
pub(in crate::http) async fn connect<S>(
    builder: &h2::client::Builder,
    io: S,
    on_end: impl FnOnce() + 'static,
) -> Result<Http2, h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = Batched::new(io);
    let (requests, mut connection) = builder.handshake(io.clone()).await?;
    let alive = KeepAlive::new(connection.ping_pong());
    let link = Rc::<Link>::default();
    link.most.set(connection.max_concurrent_send_streams());
    let handle = Rc::new(Handle { requests: RefCell::new(requests), link: link.clone() });
    let mut driver = Driver { connection, io, alive, link, handle: Rc::downgrade(&handle) };
    tokio::task::spawn_local(async move {
        std::future::poll_fn(|context| driver.poll(context)).await;
        let link = driver.link.clone();
        link.ended.set(true);
        // h2 tells its exchanges how they ended.
        drop(driver);
        link.queue.wake_all();
        on_end();
    });
    Ok(Http2(handle))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self { connection, io, alive, link, handle } = self;
        link.note_task(context.waker());
        let gone = alive.poll(context, || link.look(io.has_heard()));
        // What is to be said of how it ended, h2 says to the exchanges.
        if gone.is_ready()
            || Pin::new(&mut *connection).poll(context).is_ready()
            || matches!(io.poll_send(context), Poll::Ready(Err(_)))
        {
            return Poll::Ready(());
        }
        // The peer may have said that it takes more.
        link.most.set(connection.max_concurrent_send_streams());
        if !link.queue.is_empty() {
            match handle.upgrade() {
                // It says goodbye: whoever waits has to go elsewhere.
                Some(handle) if handle.is_refused() => link.queue.wake_all(),
                _ => link.note_room(),
            }
        }
        Poll::Pending
    }
}

impl Link {
    fn has_room(&self) -> bool {
        self.streams.get() < self.most.get()
    }

    /// Whether there is room that nobody waits for.
    fn is_free(&self) -> bool {
        self.has_room() && self.queue.is_empty()
    }

    /// To be called where there may be room.
    fn note_room(&self) {
        if !self.queue.is_empty() && self.has_room() {
            self.queue.wake_first();
        }
    }

    /// Whether the peer counts as heard, and whether anybody has waited for it since the last look, however shortly.
    fn look(&self, heard: bool) -> (bool, bool) {
        let is_busy = self.streams.get() > 0 || !self.queue.is_empty();
        // What nobody has any more ends at once, unless its peer takes nothing: whatever it says does not prolong that.
        let is_over = self.abandoned.get() && !is_busy;
        (heard && !is_over, self.begun.take() || is_busy || is_over)
    }

    fn note_task(&self, waker: &Waker) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|task| task.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }
}

impl Counted {
    fn one_of(link: &Rc<Link>) -> Self {
        link.streams.set(link.streams.get() + 1);
        link.begun.set(true);
        Self { link: link.clone(), both: None }
    }

    /// The same exchange, for whoever else has something of it: it is over when both are.
    fn share(&mut self) -> Self {
        let both = self.both.get_or_insert_default().clone();
        Self { link: self.link.clone(), both: Some(both) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.both.as_ref().is_some_and(|both| Rc::strong_count(both) > 1) {
            return;
        }
        self.link.streams.set(self.link.streams.get() - 1);
        self.link.note_room();
    }
}

impl Drop for Handle {
    /// h2 does not tell a connection that nobody can send on it any more.
    fn drop(&mut self) {
        self.link.abandoned.set(true);
        if let Some(task) = self.link.task.borrow_mut().take() {
            task.wake();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let link = &self.connection.0.link;
        link.queue.leave(self.number);
        // It was sent, or given up: whoever is next now may have been waiting for just that.
        link.note_room();
    }
}

impl Http2 {
    /// Whether no other exchange can begin: the connection has ended, or its peer has said that it will.
    pub fn is_closed(&self) -> bool {
        self.0.link.ended.get() || self.0.is_refused()
    }

    /// How many exchanges at once its peer takes, as far as it has said.
    pub fn most_streams(&self) -> u32 {
        u32::try_from(self.0.link.most.get()).unwrap_or(u32::MAX)
    }

    /// Begins an exchange. What is sent goes out when the connection's task has its turn.
    pub(in crate::http) fn begin(&self, request: Request<Body>) -> Sending {
        Sending(match self.is_closed() {
            true => State::not_sent(request),
            false if self.0.link.is_free() => self.send(request),
            false => State::Waiting(Box::new(Waiting::new(self, request))),
        })
    }

    fn send(&self, request: Request<Body>) -> State {
        let (parts, body) = request.into_parts();
        let mut head = Request::from_parts(parts, ());
        prepare(&mut head, &body);
        let is_whole = body.is_end_stream();
        let mut requests = self.0.requests.borrow().clone();
        match requests.send_request(head, is_whole) {
            Ok((response, stream)) => State::Sent {
                response,
                upload: (!is_whole).then(|| Upload::of_request(body, stream)),
                counted: Some(Counted::one_of(&self.0.link)),
            },
            Err(error) => State::Failed(Some(Box::new(failed(&error)))),
        }
    }
}

impl Handle {
    fn is_refused(&self) -> bool {
        matches!(self.requests.borrow_mut().poll_ready(&mut noop()), Poll::Ready(Err(_)))
    }
}

impl State {
    #[cold]
    fn not_sent(request: Request<Body>) -> Self {
        let detail = "the connection has ended".to_owned();
        let request = Some(Box::new(request));
        Self::Failed(Some(Box::new(SendError { failure: Failure::NotSent, request, detail })))
    }
}

impl Waiting {
    fn new(connection: &Http2, request: Request<Body>) -> Self {
        let number = connection.0.link.queue.join();
        Self { connection: connection.clone(), request: Some(request), number }
    }

    /// Ready when it was sent, or cannot be.
    fn poll(&mut self, context: &Context<'_>) -> Poll<State> {
        let Self { connection, request, number } = self;
        let link = &connection.0.link;
        let is_closed = connection.is_closed();
        let has_turn = link.has_room() && link.queue.is_first(*number);
        if !is_closed && !has_turn {
            link.queue.wait(*number, context.waker());
            return Poll::Pending;
        }
        let Some(request) = request.take() else { return Poll::Pending };
        Poll::Ready(match is_closed {
            true => State::not_sent(request),
            false => connection.send(request),
        })
    }
}

impl Sending {
    /// Sends the request, as far as there is room, and waits for the head of its answer. What is left of the request's body
    /// then is sent by a task of its own.
    pub(in crate::http) fn poll_response(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Response<Received>, SendError>> {
        if let State::Waiting(waiting) = &mut self.0 {
            self.0 = ready!(waiting.poll(context));
        }
        let (response, upload, counted) = match &mut self.0 {
            State::Sent { response, upload, counted } => (response, upload, counted),
            State::Failed(error) => match error.take() {
                Some(error) => return Poll::Ready(Err(*error)),
                None => return Poll::Pending,
            },
            State::Waiting(_) => return Poll::Pending,
        };
        if let Some(body) = upload
            && let Poll::Ready(sent) = body.poll(context)
        {
            *upload = None;
            if let Err(Stopped::Body(error)) = sent {
                let (failure, detail) = (Failure::RequestBody, error.to_string());
                return Poll::Ready(Err(SendError { failure, request: None, detail }));
            }
        }
        let response = ready!(Pin::new(response).poll(context)).map_err(|error| failed(&error))?;
        if let Some(mut upload) = upload.take() {
            let counted = counted.as_mut().map(Counted::share);
            tokio::task::spawn_local(std::future::poll_fn(move |context| {
                // Under way until then.
                let _ = &counted;
                // Both sides of the stream learn of its end by themselves.
                upload.poll(context).map(drop)
            }));
        }
        let (head, stream) = response.into_parts();
        let body = Received::new(stream, &head.headers, counted.take());
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

/// Leaves out what HTTP/2 does not know, and says how long the body is where that is known.
fn prepare(head: &mut Request<()>, body: &Body) {
    head::strip_connection(head.headers_mut());
    let empty_counts = matches!(*head.method(), Method::POST | Method::PUT | Method::PATCH);
    if let Some(length) = body.size_hint().exact()
        && (length > 0 || empty_counts)
    {
        let length = || HeaderValue::from(length);
        head.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(length);
    }
}

#[cold]
fn failed(error: &h2::Error) -> SendError {
    // RFC 9113 section 8.7: such requests have not been processed.
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away()
            && error.is_remote()
            && error.reason() == Some(h2::Reason::NO_ERROR));
    let failure = if refused { Failure::Refused } else { Failure::Closed };
    SendError { failure, request: None, detail: format!("http2 error: {error}") }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

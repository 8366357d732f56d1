//! Bodies that pass through. They are streamed, never collected; a watcher sees their length and their end.

mod incoming;
mod watched;

use std::{
    cell::{Cell, RefCell},
    fmt,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, Sleep, sleep, sleep_until},
};

pub use self::incoming::Incoming;
use self::watched::Watched;
use super::{head, replay::Reader};

/// In gRPC.
const DEADLINE_EXCEEDED: HeaderValue = HeaderValue::from_static("4");

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Whole.
    Complete,
    /// The sender stopped in the middle.
    SenderFailed,
    /// Nothing came for too long.
    TimedOut,
    /// The receiver went away before the end.
    Dropped,
    /// The receiver took nothing for too long.
    Unread,
    /// A plugin through which it passed failed.
    Plugin,
}

/// Sees a body pass.
pub trait Watch {
    /// The receiver wants more, and the sender has nothing yet.
    fn waits(&mut self) {}
    /// A piece went by.
    fn data(&mut self, data: &Bytes);
    /// Trailers went by.
    fn trailers(&mut self, trailers: &HeaderMap);
    /// The end, exactly once.
    fn end(&mut self, end: End);
}

/// Why a body broke off.
#[derive(Debug)]
pub enum BodyError {
    /// What hyper says of the sending side.
    Hyper(hyper::Error),
    /// What h2 says of the sending side.
    Http2(h2::Error),
    /// How an upstream broke off, or broke the protocol.
    Upstream(String),
    /// Over HTTP/2: the stream was reset before its end, and no error given.
    Cut,
    /// Nothing came for too long.
    TimedOut,
    /// A copy whose original broke off, or that was too slow; or a body that now goes to another attempt.
    CopyCut,
    /// A plugin through which it passed failed, or gave an answer that takes its place.
    Plugin,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hyper(error) => error.fmt(f),
            Self::Http2(error) => error.fmt(f),
            Self::Upstream(error) => f.write_str(error),
            Self::Cut => f.write_str("the stream was reset before the end of the body"),
            Self::TimedOut => f.write_str("body timed out"),
            Self::CopyCut => f.write_str("copy cut off"),
            Self::Plugin => f.write_str("ended by a plugin"),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Hyper(error) => error.source(),
            Self::Http2(error) => Some(error),
            Self::Upstream(_) | Self::Cut | Self::TimedOut | Self::CopyCut | Self::Plugin => None,
        }
    }
}

/// Any body that this proxy sends.
#[derive(Debug, Default)]
pub enum Body {
    /// None at all.
    #[default]
    Empty,
    /// One piece, made here.
    Full(Bytes),
    /// Passing through.
    Passing(Passing),
    /// A copy of one that passes through elsewhere.
    Copy(mpsc::Receiver<Piece>),
    /// One that can be sent again.
    Replayed(Reader),
    /// One that filters work on.
    Other(Other),
}

/// A body that is made elsewhere, and until when it has to be taken.
pub struct Other(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>, Option<Instant>);

thread_local! {
    /// Whether what is being dropped is because its receiver takes nothing.
    static UNREAD: Cell<bool> = const { Cell::new(false) };
}

/// Drops a body whose receiver takes nothing.
pub(super) fn drop_unread(body: Body) {
    UNREAD.set(true);
    drop(body);
    UNREAD.set(false);
}

/// How a body ends that is dropped before its end.
pub fn dropped() -> End {
    if UNREAD.get() { End::Unread } else { End::Dropped }
}

impl fmt::Debug for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Other").finish_non_exhaustive()
    }
}

/// A piece of a copied body.
#[derive(Debug)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// Bytes of a copy that lags behind, which give their room back when they are taken.
    Lagging(Bytes, #[expect(dead_code, reason = "counts until dropped")] OwnedSemaphorePermit),
    /// The end. A channel that closes without it was cut off.
    End,
}

/// A body on its way through, watched and bounded in time.
pub struct Passing {
    inner: Incoming,
    watch: Option<Box<dyn Watch>>,
    limits: Limits,
    /// Made when the sender keeps us waiting for the first time; most bodies never do.
    idle: Option<Pin<Box<Sleep>>>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whether the receiver was told so in trailers.
    timed_out: bool,
}

/// Bounds on the time a body may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Without a byte from the sender; `ZERO` is none.
    pub idle: Duration,
    /// For the whole body.
    pub deadline: Option<Instant>,
    /// Whether it is the answer to a gRPC call: its end by one of these is then told in trailers, as clients expect.
    pub grpc: bool,
}

impl fmt::Debug for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passing").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Body {
    /// A body that passes through under `watch`.
    pub fn passing(inner: Incoming, limits: Limits, watch: Box<dyn Watch>) -> Self {
        Self::Passing(Passing::new(inner, limits, Some(watch)))
    }

    /// A body that passes through and is watched further on.
    pub fn unwatched(inner: Incoming, limits: Limits) -> Self {
        Self::Passing(Passing::new(inner, limits, None))
    }

    /// Any body, watched; `length` is what its receiver was told that it has.
    pub fn watched(inner: Self, length: Option<u64>, watch: Box<dyn Watch>) -> Self {
        Self::other(Watched::new(inner, length, watch))
    }

    /// A body that is made elsewhere.
    pub fn other(body: impl HttpBody<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self::Other(Other(Box::pin(body), None))
    }

    /// The same, to be taken until `deadline` where it is made elsewhere.
    #[must_use]
    pub fn until(self, deadline: Option<Instant>) -> Self {
        match self {
            Self::Other(Other(body, _)) => Self::Other(Other(body, deadline)),
            body => body,
        }
    }

    /// Until when it has to be taken.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Passing(passing) => passing.limits.deadline,
            Self::Other(Other(_, deadline)) => *deadline,
            Self::Empty | Self::Full(_) | Self::Copy(_) | Self::Replayed(_) => None,
        }
    }
}

impl Passing {
    fn new(inner: Incoming, limits: Limits, watch: Option<Box<dyn Watch>>) -> Self {
        Self { inner, watch, limits, idle: None, deadline: None, timed_out: false }
    }

    fn finish(&mut self, end: End) {
        if let Some(mut watch) = self.watch.take() {
            watch.end(end);
        }
    }

    /// What the receiver gets when the time is up.
    fn time_out(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        if !self.limits.grpc {
            self.finish(End::TimedOut);
            return Some(Err(BodyError::TimedOut));
        }
        let status = (HeaderName::from_static("grpc-status"), DEADLINE_EXCEEDED);
        let trailers = HeaderMap::from_iter([status]);
        if let Some(watch) = &mut self.watch {
            watch.trailers(&trailers);
        }
        self.timed_out = true;
        self.finish(End::TimedOut);
        Some(Ok(Frame::trailers(trailers)))
    }

    fn poll_limits(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(deadline) = self.limits.deadline {
            let timer = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
        }
        if self.limits.idle.is_zero() {
            return Poll::Pending;
        }
        let idle = self.limits.idle;
        self.idle.get_or_insert_with(|| Box::pin(sleep(idle))).as_mut().poll(context)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            full @ Self::Full(_) => match std::mem::take(full) {
                Self::Full(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Self::Passing(passing) => Pin::new(passing).poll_frame(context),
            Self::Copy(pieces) => pieces.poll_recv(context).map(|piece| match piece {
                Some(Piece::Data(data) | Piece::Lagging(data, _)) => Some(Ok(Frame::data(data))),
                Some(Piece::End) => None,
                None => Some(Err(BodyError::CopyCut)),
            }),
            Self::Replayed(reader) => Pin::new(reader).poll_frame(context),
            Self::Other(other) => other.0.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Passing(passing) => passing.is_end_stream(),
            Self::Copy(_) => false,
            Self::Replayed(reader) => reader.is_end_stream(),
            Self::Other(other) => other.0.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Passing(passing) => passing.size_hint(),
            Self::Copy(_) => SizeHint::default(),
            Self::Replayed(reader) => reader.size_hint(),
            Self::Other(other) => other.0.size_hint(),
        }
    }
}

impl HttpBody for Passing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.timed_out {
            // After trailers of our own nothing of the sender's may follow.
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(mut frame))) => {
                this.idle = None;
                if let Some(trailers) = frame.trailers_mut() {
                    // Some applications look for a field there that is missing in the head.
                    head::remove_spellings(trailers, &head::CLIENT_CERTIFICATE);
                }
                if let Some(watch) = &mut this.watch {
                    if let Some(data) = frame.data_ref() {
                        watch.data(data);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        watch.trailers(trailers);
                    }
                }
                // hyper does not poll again once it knows the length is reached, so the end is told here.
                if this.inner.is_end_stream() {
                    this.finish(End::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.finish(End::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.finish(End::SenderFailed);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Pending => match this.poll_limits(context) {
                Poll::Pending => {
                    if let Some(watch) = &mut this.watch {
                        watch.waits();
                    }
                    Poll::Pending
                }
                Poll::Ready(()) => Poll::Ready(this.time_out()),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let end = if self.inner.is_end_stream() { End::Complete } else { dropped() };
        self.finish(end);
    }
}

/// What became of a request's body, readable while and after it passes.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: Cell<u64>,
    end: Cell<Option<End>>,
    /// Since when the receiver waits for the sender.
    waits_since: Cell<Option<Instant>>,
    /// How long it did before that.
    waited: Cell<Duration>,
    /// Of a body that can be sent again: that the answered attempt lacks a part of it.
    unsent: Cell<bool>,
    copies: RefCell<Vec<CopyEnd>>,
}

/// Where a copy of a body goes.
#[derive(Debug)]
struct CopyEnd {
    pieces: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
}

impl CopyEnd {
    /// Whether it could be taken.
    fn send(&self, data: &Bytes) -> bool {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().try_acquire_many_owned(length) else { return false };
        self.pieces.try_send(Piece::Lagging(data.clone(), room)).is_ok()
    }
}

/// Pieces a copy may lag behind before it is cut off: the original never waits for it.
const COPY_LAG: usize = 64;
/// Bytes that all copies of a worker may lag behind together, for the same reason: pieces can be large.
pub const COPIES_LAG: usize = 32 * 1024 * 1024;

impl Progress {
    /// Body bytes that passed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<End> {
        self.end.get()
    }

    /// Whether all of it went to the attempt that was answered.
    pub fn is_sent(&self) -> bool {
        self.end.get() == Some(End::Complete) && !self.unsent.get()
    }

    /// Whether the receiver waits for the sender: if something takes too long now, it is the sender's doing.
    pub fn is_awaited(&self) -> bool {
        self.end.get().is_none() && self.waits_since.get().is_some()
    }

    /// How long the receiver has waited for the sender up to now.
    pub fn waited(&self) -> Duration {
        let now = self.waits_since.get().map_or(Duration::ZERO, |since| since.elapsed());
        self.waited.get().saturating_add(now)
    }

    fn came(&self) {
        self.waited.set(self.waited());
        self.waits_since.set(None);
    }

    pub(super) fn set_sent(&self, sent: bool) {
        self.unsent.set(!sent);
    }

    /// A copy of the body from here on, which may lag behind as long as there is `room`.
    pub fn copy(&self, room: Arc<Semaphore>) -> Body {
        let (pieces, receiver) = mpsc::channel(COPY_LAG);
        self.copies.borrow_mut().push(CopyEnd { pieces, room });
        Body::Copy(receiver)
    }
}

impl Watch for Rc<Progress> {
    fn waits(&mut self) {
        if self.waits_since.get().is_none() {
            self.waits_since.set(Some(Instant::now()));
        }
    }

    fn data(&mut self, data: &Bytes) {
        self.came();
        self.bytes.set(self.bytes.get() + data.len() as u64);
        self.copies.borrow_mut().retain(|copy| copy.send(data));
    }

    fn trailers(&mut self, _: &HeaderMap) {}

    fn end(&mut self, end: End) {
        self.came();
        self.end.set(Some(end));
        for copy in self.copies.take() {
            if end == End::Complete {
                // A full channel is a copy that lagged: it is cut off like any other.
                let _ = copy.pieces.try_send(Piece::End);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mirror that reads nothing must not take the memory of those that do, nor hold up the original.
    #[test]
    fn what_copies_lag_behind_is_bounded_together() {
        let room = Arc::new(Semaphore::new(10));
        let mut progress = Rc::<Progress>::default();
        let (Body::Copy(mut one), Body::Copy(mut other)) =
            (progress.copy(room.clone()), progress.copy(room.clone()))
        else {
            panic!("copies")
        };
        let data = |piece| matches!(piece, Ok(Piece::Lagging(..)));
        progress.data(&Bytes::from_static(b"12345"));
        assert!(data(one.try_recv()));
        assert_eq!(room.available_permits(), 5);
        progress.data(&Bytes::from_static(b"12345"));
        assert!(data(one.try_recv()) && room.available_permits() == 5);
        assert!(data(other.try_recv()) && room.available_permits() == 10);
        // There was room for one of them alone: the other is cut off.
        assert!(other.try_recv().is_err());
        progress.data(&Bytes::from_static(b"1"));
        progress.end(End::Complete);
        assert!(data(one.try_recv()) && matches!(one.try_recv(), Ok(Piece::End)));
        assert_eq!(other.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
        assert_eq!(progress.bytes(), 11);
    }
}

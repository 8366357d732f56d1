//! An idle HTTP/1.1 connection without its codec. hyper holds some 10 KB for each connection, most of it two buffers
//! that an idle one has no use for. A connection on which nothing has happened for a while is taken apart down to its
//! stream, and put together again when the next byte comes.
//!
//! Only where it is certain that nothing is under way: the last exchange is over, its response was written to the last
//! byte, and its request had no body, of which something might still be to come.

use std::{
    cell::Cell,
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    body::BodyError,
    framing::Looked,
    server::Answer,
    unread::{self, Place, Taken},
};

/// The exchanges of one connection.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    begun: Cell<u64>,
    under_way: Cell<u32>,
    /// Whether the last request had a body.
    had_body: Cell<bool>,
    /// Whether the next answer is the last one.
    ending: Cell<bool>,
    /// Where it is noted that the caller does not take the answer.
    place: Cell<Option<usize>>,
}

impl Exchanges {
    /// How many have begun so far.
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Whether there was one, all are over, and nothing of the last one can still be on its way.
    pub(super) fn are_over(&self) -> bool {
        self.begun.get() > 0 && self.under_way.get() == 0 && !self.had_body.get()
    }

    /// Whether one is not over.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.get() > 0
    }

    /// From now on answers tell the caller that the connection ends after them.
    pub(super) fn end(&self) {
        self.ending.set(true);
    }

    /// Whether the caller takes nothing of its answer, which is to end with the connection.
    pub(super) fn are_unread(&self) -> bool {
        self.place.get().is_some_and(unread::is_over)
    }

    /// One more, answered by `answer`.
    pub(super) fn begin(self: &Rc<Self>, has_body: bool, answer: Answer) -> Answering {
        self.begun.set(self.begun.get() + 1);
        self.under_way.set(self.under_way.get() + 1);
        self.had_body.set(has_body);
        Answering { answer, exchange: Some(UnderWay(self.clone())) }
    }
}

/// Counts an exchange until it is dropped.
#[derive(Debug)]
struct UnderWay(Rc<Exchanges>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        self.0.place.set(None);
    }
}

/// An answer on its way to the codec.
pub(super) struct Answering {
    answer: Answer,
    exchange: Option<UnderWay>,
}

impl Future for Answering {
    type Output = Result<Response<Counted>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut response) = ready!(self.answer.as_mut().poll(context));
        let exchange = self.exchange.take();
        let ending = exchange.as_ref().is_some_and(|UnderWay(all)| all.ending.get());
        // What becomes something else than HTTP has no next request.
        if ending && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| {
            let body = Taken::new(body, context);
            if let Some(UnderWay(exchanges)) = &exchange {
                exchanges.place.set(body.place().map(Place::number));
            }
            Counted { body, _exchange: exchange }
        })))
    }
}

/// The body of a response; the exchange is over when it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    body: Taken,
    _exchange: Option<UnderWay>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What the codec of HTTP/1.1 reads from and writes to; an upgrade hands it over.
pub(super) type Served<S> = Resumed<Looked<S>>;

/// Whether everything that was written has left. The stream may move to another task with an upgrade: hence atomic.
pub(super) type Flushed = Arc<AtomicBool>;

/// A stream that begins with bytes which were read before.
#[derive(Debug)]
pub(super) struct Resumed<S> {
    first: Bytes,
    inner: S,
    flushed: Flushed,
}

impl<S> Resumed<S> {
    pub(super) fn new(inner: S) -> (Self, Flushed) {
        let flushed = Flushed::new(AtomicBool::new(true));
        (Self { first: Bytes::new(), inner, flushed: flushed.clone() }, flushed)
    }

    /// The stream itself.
    pub(super) fn inner(&self) -> &S {
        &self.inner
    }

    /// The next read brings `first`, and then what comes.
    pub(super) fn resume(&mut self, first: Bytes) {
        self.first = first;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Resumed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.inner).poll_read(context, buffer);
        }
        let count = this.first.len().min(buffer.remaining());
        buffer.put_slice(&this.first[..count]);
        this.first.advance(count);
        if this.first.is_empty() {
            // An empty part of a buffer would hold all of it.
            this.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Resumed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.flushed.store(false, Ordering::Relaxed);
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.flushed.store(false, Ordering::Relaxed);
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// The codec asks for this only when it has nothing left to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        self.flushed.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::body::Body;

    #[tokio::test]
    async fn what_was_read_before_comes_first() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut resumed, flushed) = Resumed::new(near);
        resumed.resume(Bytes::from_static(b"GE"));
        far.write_all(b"T /").await.unwrap();
        let mut bytes = [0; 5];
        resumed.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"GET /");
        resumed.write_all(b"x").await.unwrap();
        assert!(!flushed.load(Ordering::Relaxed));
        resumed.flush().await.unwrap();
        assert!(flushed.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn an_exchange_is_over_when_its_body_is_gone() {
        let exchanges = Rc::new(Exchanges::default());
        assert!(!exchanges.are_over(), "there was none");
        let answer = || -> Answer { Box::pin(async { Ok(Response::new(Body::Empty)) }) };
        let Ok(response) = exchanges.begin(false, answer()).await;
        assert!(!exchanges.are_over());
        drop(response);
        assert!(exchanges.are_over() && exchanges.begun() == 1);
        drop(exchanges.begin(true, answer()));
        assert!(!exchanges.are_over(), "something of a body may still come");
        drop(exchanges.begin(false, answer()));
        assert!(exchanges.are_over() && exchanges.begun() == 3);
    }
}

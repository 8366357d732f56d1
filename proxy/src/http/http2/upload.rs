//! A body that goes out over HTTP/2, as fast as its receiver takes it.

use std::{
    error::Error as _,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

use crate::http::body::BodyError;

/// A first piece of at most so many bytes is left with h2 before there is room for it: the head and a whole small message
/// then go out in one write. A frame of the usual greatest size, as bodies that come over HTTP/2 have.
const AT_ONCE: usize = 16 * 1024;

/// What is left of a body, and where it goes.
#[derive(Debug)]
pub(super) struct Upload<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// What waits for room, and whether it is the last.
    piece: Option<(Bytes, bool)>,
    /// Whether nothing was sent yet.
    first: bool,
}

/// Why a body did not get through.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It broke off.
    Body(BodyError),
    /// Its receiver wants no more, or is gone.
    Receiver,
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Upload<B> {
    pub(super) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, piece: None, first: true }
    }

    pub(super) fn body(&self) -> &B {
        &self.body
    }

    /// Passes on what there is. Ready at the end.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        // Whoever wants no more is the reason, not what becomes of the body because of that.
        let looked = !self.first;
        if looked && self.is_unwanted(context) {
            return Poll::Ready(Err(Stopped::Receiver));
        }
        loop {
            if let Some((_, last)) = &self.piece {
                let last = *last;
                ready!(self.poll_room(context))?;
                let data = self.piece.take().map(|(data, _)| data).unwrap_or_default();
                self.send(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            // Only whoever has a piece asks for room: what is set aside for one stream is taken from all others.
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                return match !looked && self.is_unwanted(context) {
                    true => Poll::Ready(Err(Stopped::Receiver)),
                    false => Poll::Pending,
                };
            };
            if let Poll::Ready(done) = self.take(frame) {
                return Poll::Ready(done);
            }
        }
    }

    /// Takes a frame of the body, or its end. Ready when that was the last.
    fn take(
        &mut self,
        frame: Option<Result<http_body::Frame<Bytes>, BodyError>>,
    ) -> Poll<Result<(), Stopped>> {
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.stream.send_reset(reason_of(&error));
                return Poll::Ready(Err(Stopped::Body(error)));
            }
            None => return Poll::Ready(self.send(Bytes::new(), true)),
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { return Poll::Pending };
                return Poll::Ready(self.end(trailers));
            }
        };
        let last = self.body.is_end_stream();
        let first = std::mem::take(&mut self.first);
        if data.is_empty() || (first && data.len() <= AT_ONCE) {
            self.send(data, last)?;
            return if last { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        // h2 asks for room for all of it once it has it.
        self.stream.reserve_capacity(1);
        self.piece = Some((data, last));
        Poll::Pending
    }

    /// Whether the stream was reset; whoever asks is woken when it is.
    fn is_unwanted(&mut self, context: &mut Context<'_>) -> bool {
        self.stream.poll_reset(context).is_ready()
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Stopped::Receiver)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, data: Bytes, last: bool) -> Result<(), Stopped> {
        self.stream.send_data(data, last).map_err(|_| Stopped::Receiver)
    }

    fn end(&mut self, trailers: http::HeaderMap) -> Result<(), Stopped> {
        if !self.first {
            self.stream.reserve_capacity(0);
        }
        self.stream.send_trailers(trailers).map_err(|_| Stopped::Receiver)
    }
}

/// What the receiver is told of a body that broke off: what the sender said, where it speaks HTTP/2, too, unless that was
/// that nothing is wrong. The receiver might take what it has for whole then.
fn reason_of(error: &BodyError) -> Reason {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(reason) = cause.downcast_ref::<h2::Error>().and_then(h2::Error::reason)
            && reason != Reason::NO_ERROR
        {
            return reason;
        }
        next = cause.source();
    }
    Reason::INTERNAL_ERROR
}

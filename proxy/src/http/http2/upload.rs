//! A body that goes out over HTTP/2, as fast as its receiver takes it.

use std::{
    error::Error as _,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

use crate::http::{body::BodyError, head};

/// A request's first piece of at most so many bytes is left with h2 before there is room for it, as there is none before the
/// stream is opened: the head and a whole small message then go out in one write. A frame of the usual greatest size, as
/// bodies that come over HTTP/2 have.
const AT_ONCE: usize = 16 * 1024;

/// What is left of a body, and where it goes.
#[derive(Debug)]
pub(super) struct Upload<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// What waits for room, and whether it is the last.
    piece: Option<(Bytes, bool)>,
    /// How much may go without room.
    at_once: usize,
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
    /// An answer's. Whoever asked and takes none of it has to be seen to take none: h2 is given what there is room for.
    pub(super) fn of_answer(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, piece: None, at_once: 0, first: true }
    }

    /// That of a request whose stream is not opened yet.
    pub(super) fn of_request(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, piece: None, at_once: AT_ONCE, first: true }
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
            if ready!(self.poll_piece(context))? {
                return Poll::Ready(Ok(()));
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
        if data.is_empty() && !last {
            return Poll::Pending;
        }
        self.first = false;
        if data.len() <= std::mem::take(&mut self.at_once) {
            self.send(data, last)?;
            return if last { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        self.stream.reserve_capacity(data.len());
        self.piece = Some((data, last));
        Poll::Pending
    }

    /// Sends what waits, as far as there is room for it. Ready when nothing waits; whether that was the last of all.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Stopped>> {
        while let Some((data, last)) = &mut self.piece {
            let room = ready!(poll_room(&mut self.stream, context))?;
            let part = data.split_to(room.min(data.len()));
            let is_end = *last && data.is_empty();
            if data.is_empty() {
                self.piece = None;
            }
            self.send(part, is_end)?;
            if is_end {
                return Poll::Ready(Ok(true));
            }
        }
        Poll::Ready(Ok(false))
    }

    /// Whether the stream was reset; whoever asks is woken when it is.
    fn is_unwanted(&mut self, context: &mut Context<'_>) -> bool {
        self.stream.poll_reset(context).is_ready()
    }

    fn send(&mut self, data: Bytes, last: bool) -> Result<(), Stopped> {
        let sent = self.stream.send_data(data, last);
        sent.map_err(|_| self.refused())
    }

    fn end(&mut self, mut trailers: http::HeaderMap) -> Result<(), Stopped> {
        head::strip_connection(&mut trailers);
        let sent = self.stream.send_trailers(trailers);
        sent.map_err(|_| self.refused())
    }

    /// h2 takes nothing for a stream that is reset already, and nothing that it finds wrong: then the receiver would wait
    /// for the rest for ever.
    #[cold]
    fn refused(&mut self) -> Stopped {
        self.stream.send_reset(Reason::INTERNAL_ERROR);
        Stopped::Receiver
    }
}

/// How many bytes there is room for, at least one.
fn poll_room(
    stream: &mut SendStream<Bytes>,
    context: &mut Context<'_>,
) -> Poll<Result<usize, Stopped>> {
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match ready!(stream.poll_capacity(context)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(Err(Stopped::Receiver)),
        }
    }
}

/// What the receiver is told of a body that broke off: what the sender said, where it speaks HTTP/2, too, unless that was
/// that nothing is wrong, or that nothing was processed. The receiver might take what it has for whole then, or ask again
/// for what it has seen the beginning of.
fn reason_of(error: &BodyError) -> Reason {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(reason) = cause.downcast_ref::<h2::Error>().and_then(h2::Error::reason)
            && !matches!(reason, Reason::NO_ERROR | Reason::REFUSED_STREAM)
        {
            return reason;
        }
        next = cause.source();
    }
    Reason::INTERNAL_ERROR
}

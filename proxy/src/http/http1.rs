//! HTTP/1.1 to upstreams, without a task: whoever waits for an answer, or reads its body, reads and writes the connection
//! itself. A request costs one write and one read then, and nobody is woken for it but the exchange.
//!
//! `request` writes heads and frames bodies, `response` reads heads, `chunks` chunked bodies; `wire` does the reading and
//! writing.

mod chunks;
mod names;
mod request;
mod response;
mod wire;

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use self::{
    chunks::{Chunks, Piece},
    wire::{Fault, Wire},
};
pub(super) use self::{
    response::{MAX_HEAD_BYTES, MAX_HEAD_FIELDS},
    wire::MAX_BEFORE_HEAD,
};
use super::{
    body::{Body, BodyError},
    client::{Failure, SendError},
};

/// What a connection is made of.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection that carries one exchange at a time.
#[derive(Clone, Debug)]
pub struct Http1(Rc<RefCell<Wire>>);

impl Http1 {
    /// On a connection on which nothing was said yet.
    pub(super) fn new(io: impl Io + 'static) -> Self {
        Self(Rc::new(RefCell::new(Wire::new(Box::new(io)))))
    }

    /// Whether another exchange may begin, as far as is known.
    pub(super) fn is_kept(&self) -> bool {
        self.0.borrow().is_kept()
    }

    /// Whether another exchange can begin now. Looks whether the peer has ended the connection in the meantime.
    pub(super) fn is_ready(&self) -> bool {
        let mut wire = self.0.borrow_mut();
        wire.is_idle() && !wire.has_ended()
    }

    /// Whether there will be no other exchange. Looks, too.
    pub(super) fn is_closed(&self) -> bool {
        let mut wire = self.0.borrow_mut();
        !wire.is_kept() || (wire.is_idle() && wire.has_ended())
    }

    /// Waits until the rest of a request has been sent whose answer is complete.
    pub(super) async fn is_soon_ready(&self) -> bool {
        let sent = poll_fn(|context| self.0.borrow_mut().poll_send(context)).await;
        if sent.is_err() {
            self.0.borrow_mut().close();
        }
        self.is_ready()
    }

    /// Takes the connection itself, for something else; `None` when it is in use.
    pub(super) fn take_io(&self) -> Option<Box<dyn Io>> {
        self.0.borrow_mut().take_io()
    }

    /// Begins an exchange on a connection that was just seen to be ready.
    ///
    /// # Errors
    /// With the request itself when the connection has ended.
    pub(super) fn begin(&self, request: Request<Body>) -> Result<(), Box<SendError>> {
        let mut wire = self.0.borrow_mut();
        if !wire.is_idle() {
            let detail = "the connection has ended".to_owned();
            let request = Some(Box::new(request));
            return Err(Box::new(SendError { failure: Failure::NotSent, request, detail }));
        }
        wire.begin(request);
        Ok(())
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) fn poll_response(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Response<Download>, SendError>> {
        let mut wire = self.0.borrow_mut();
        let head = match ready!(wire.poll_exchange(context)) {
            Ok(head) => head,
            Err(fault) => {
                wire.close();
                return Poll::Ready(Err(failed(&fault)));
            }
        };
        let left = match head.framing {
            response::Framing::Length(length) => Left::Length(length),
            response::Framing::Chunked => Left::Chunks(Chunks::default()),
            response::Framing::Close => Left::Close,
        };
        let mut whole = None;
        if let Left::Length(length) = left {
            whole = wire.take_whole(length);
        }
        if !wire.is_sent() {
            self.send_aside(&mut wire);
        }
        let connection = match whole {
            Some(_) => {
                wire.end(head.keeps);
                None
            }
            None => Some(self.clone()),
        };
        let whole = whole.filter(|whole| !whole.is_empty());
        Poll::Ready(Ok(head.response.map(|()| Download {
            connection,
            left,
            keeps: head.keeps,
            whole,
            fault: None,
        })))
    }

    /// The answer is there before all of the request was sent. The rest of it must not have to wait for somebody who
    /// reads the answer.
    fn send_aside(&self, wire: &mut Wire) {
        let sending = Rc::downgrade(&self.0);
        let task = tokio::task::spawn_local(poll_fn(move |context| match sending.upgrade() {
            None => Poll::Ready(()),
            Some(wire) => {
                let mut wire = wire.borrow_mut();
                let sent = ready!(wire.poll_send(context));
                if sent.is_err() {
                    wire.close();
                }
                Poll::Ready(())
            }
        }));
        wire.aside(task.abort_handle());
    }
}

fn failed(fault: &Fault) -> SendError {
    let failure = match fault {
        Fault::Ended(_) => Failure::Closed,
        Fault::Malformed(_) => Failure::Malformed,
        Fault::Request(_) => Failure::RequestBody,
    };
    SendError { failure, request: None, detail: fault.to_string() }
}

/// The body of an answer, read as it is asked for.
#[derive(Debug)]
pub struct Download {
    /// `None` when all of it has been read.
    connection: Option<Http1>,
    left: Left,
    keeps: bool,
    /// All of it, if it came with its head.
    whole: Option<Bytes>,
    /// What went wrong, and is about to be told.
    fault: Option<BodyError>,
}

#[derive(Debug)]
enum Left {
    Length(u64),
    Chunks(Chunks),
    Close,
}

impl Download {
    /// All of the body, if it is here already, where it is.
    pub fn whole_mut(&mut self) -> Option<&mut Bytes> {
        self.whole.as_mut()
    }

    /// All of the body, if it is here already.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        self.whole.take()
    }

    fn end(&mut self, keeps: bool) {
        if let Some(connection) = self.connection.take() {
            connection.0.borrow_mut().end(keeps);
        }
    }

    fn poll_data(
        &mut self,
        connection: &Http1,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let mut wire = connection.0.borrow_mut();
        let data = match &mut self.left {
            Left::Length(left) => {
                let data = ready!(wire.poll_data(*left, context))?;
                if data.is_empty() {
                    return Poll::Ready(Some(Err(Fault::cut())));
                }
                *left -= data.len() as u64;
                let done = *left == 0;
                drop(wire);
                if done {
                    self.end(self.keeps);
                }
                data
            }
            Left::Close => {
                let data = ready!(wire.poll_data(u64::MAX, context))?;
                drop(wire);
                if data.is_empty() {
                    self.end(false);
                    return Poll::Ready(None);
                }
                data
            }
            Left::Chunks(chunks) => match ready!(wire.poll_chunk(chunks, context))? {
                Piece::Data(data) => data,
                Piece::End(trailers) => {
                    drop(wire);
                    self.end(self.keeps);
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
            },
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(whole) = self.whole.take() {
            return Poll::Ready(Some(Ok(Frame::data(whole))));
        }
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        let Some(connection) = self.connection.clone() else { return Poll::Ready(None) };
        let Some(frame) = ready!(self.poll_data(&connection, context)) else {
            return Poll::Ready(None);
        };
        frame.map_or_else(
            |fault| {
                connection.0.borrow_mut().close();
                self.fault = Some(BodyError::Upstream(fault.to_string()));
                // In its next turn: whoever passes the body on breaks off when it hears of it, and would lose what it was
                // given in this one.
                context.waker().wake_by_ref();
                Poll::Pending
            },
            |frame| Poll::Ready(Some(Ok(frame))),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.whole.is_none() && self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.whole, &self.left, &self.connection) {
            (Some(whole), ..) => SizeHint::with_exact(whole.len() as u64),
            (None, _, None) => SizeHint::with_exact(0),
            (None, Left::Length(left), Some(_)) => SizeHint::with_exact(*left),
            (None, ..) => SizeHint::default(),
        }
    }
}

/// Of somebody who only looks.
fn looking() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[cfg(test)]
impl Download {
    /// One that came with its head.
    pub fn of_whole(whole: Bytes) -> Self {
        let left = Left::Length(0);
        Self { connection: None, left, keeps: true, whole: Some(whole), fault: None }
    }
}

#[cfg(test)]
mod tests;

//! Reading and writing one connection.

use std::{
    cell::RefCell,
    fmt,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, Request};
use http_body::Body as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite as _},
    task::AbortHandle,
};

use super::{
    Io,
    chunks::{ChunkError, Chunks, Piece},
    looking,
    request::{Framed, Framing, write_head},
    response::{Head, HeadError, MAX_HEAD_BYTES, take},
};
use crate::http::body::Body;

/// Bytes before a response's head is complete: itself, interim responses, and what came along in the same read. An
/// upstream that sends nothing but interim responses would keep its worker parsing.
pub(in crate::http) const MAX_BEFORE_HEAD: usize = 4 * MAX_HEAD_BYTES;
/// What is read at once where little is expected, into memory that all connections of a thread share: it stays in the
/// processor's cache, and a connection that waits holds none.
const SMALL_READ: usize = 16 * 1024;
/// What is read at once of a long body.
const LARGE_READ: u64 = 64 * 1024;
/// Room for a head that is kept from one request to the next.
const KEPT_OUT: usize = 4 * 1024;

thread_local! {
    static READ: RefCell<BytesMut> = RefCell::default();
}

/// Why an exchange goes no further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the connection ended before the end of the response{}", reason(.0.as_ref()))]
    Ended(Option<io::Error>),
    #[error("{0}")]
    Malformed(String),
    /// The request's own body.
    #[error("{0}")]
    Request(String),
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

fn reason(error: Option<&io::Error>) -> String {
    error.map_or_else(String::new, |error| format!(": {error}"))
}

impl Fault {
    /// By an end where more was promised.
    pub(super) fn cut() -> Self {
        Self::Ended(None)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Ended(Some(error))
    }
}

impl From<HeadError> for Fault {
    fn from(error: HeadError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<ChunkError> for Fault {
    fn from(error: ChunkError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// One connection, and the exchange on it.
pub(super) struct Wire {
    /// `None` when it is closed.
    io: Option<Box<dyn Io>>,
    /// What is to be written: these bytes, then the piece of a body.
    out: Vec<u8>,
    written: usize,
    piece: Framed,
    /// Whether TLS keeps nothing back of what was written.
    flushed: bool,
    /// What of the request's body is still to come.
    upload: Option<(Body, Framing)>,
    /// Read, and not taken.
    read: BytesMut,
    /// Of the request.
    method: Method,
    /// Bytes that came for the head that is waited for, and how many of them were looked at.
    before_head: usize,
    looked_at: usize,
    /// Why nothing more can be written.
    unwritable: Option<io::Error>,
    /// Whether an answer is waited for, or not read to its end.
    busy: bool,
    /// Whether the last answer, or a fault, has ruled out another exchange.
    last: bool,
    /// Whoever sends the rest of a request whose answer is there.
    aside: Option<Aside>,
    /// Who reads meanwhile.
    reader: Option<Waker>,
}

/// A task that ends with its connection.
struct Aside(AbortHandle);

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Wire {
    /// Under TLS the peer is told that the connection ends (RFC 8446 section 6.1), as far as that can be done at once; but
    /// not in the middle of a request, which must not look like its end.
    fn drop(&mut self) {
        if self.is_sent()
            && let Some(mut io) = self.io.take()
        {
            let _ = Pin::new(&mut io).poll_shutdown(&mut looking());
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (busy, last) = (self.busy, self.last);
        f.debug_struct("Wire").field("busy", &busy).field("last", &last).finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(io: Box<dyn Io>) -> Self {
        Self {
            io: Some(io),
            out: Vec::new(),
            written: 0,
            piece: Framed::default(),
            flushed: true,
            upload: None,
            read: BytesMut::new(),
            method: Method::GET,
            before_head: 0,
            looked_at: 0,
            unwritable: None,
            busy: false,
            last: false,
            aside: None,
            reader: None,
        }
    }

    /// Whether it is open, and the last answer was read to its end.
    pub(super) fn is_kept(&self) -> bool {
        self.io.is_some() && !self.busy && !self.last
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.is_kept() && self.is_sent()
    }

    /// Whether all of the request was sent.
    pub(super) fn is_sent(&self) -> bool {
        self.upload.is_none() && self.is_written() && self.flushed
    }

    /// Whether an idle connection was ended by its peer, or by bytes that nobody has asked for.
    pub(super) fn has_ended(&mut self) -> bool {
        if !self.read.is_empty() || self.poll_fill(&mut looking()).is_ready() {
            self.close();
        }
        self.io.is_none()
    }

    pub(super) fn take_io(&mut self) -> Option<Box<dyn Io>> {
        self.io.take_if(|_| !self.busy)
    }

    /// Nothing more comes or goes.
    pub(super) fn close(&mut self) {
        self.io = None;
        self.upload = None;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    pub(super) fn aside(&mut self, task: AbortHandle) {
        self.aside = Some(Aside(task));
    }

    /// Begins an exchange on an idle connection.
    pub(super) fn begin(&mut self, request: Request<Body>) {
        (self.aside, self.reader, self.unwritable) = (None, None, None);
        (self.before_head, self.looked_at, self.busy) = (0, 0, true);
        let framing = write_head(&request, &mut self.out);
        let (parts, body) = request.into_parts();
        self.method = parts.method;
        self.upload = framing.map(|framing| (body, framing));
    }

    /// The answer was read to its end.
    pub(super) fn end(&mut self, keeps: bool) {
        self.busy = false;
        self.last |= !keeps || !self.read.is_empty() || self.unwritable.is_some();
        // An empty part of a buffer would hold all of it.
        self.read = BytesMut::new();
        if self.out.capacity() > KEPT_OUT && self.out.is_empty() {
            self.out = Vec::new();
        }
    }

    /// Sends the request, and reads up to the end of its answer's head.
    pub(super) fn poll_exchange(&mut self, context: &mut Context<'_>) -> Poll<Result<Head, Fault>> {
        if !self.is_sent()
            && let Poll::Ready(Err(fault)) = self.poll_send(context)
        {
            return Poll::Ready(Err(fault));
        }
        loop {
            if self.read.len() > self.looked_at {
                if let Some(head) = take(&mut self.read, self.looked_at, &self.method)? {
                    return Poll::Ready(Ok(head));
                }
                self.looked_at = self.read.len();
            }
            let count = match ready!(self.poll_fill(context)) {
                Ok(count) => count,
                Err(error) => {
                    return Poll::Ready(Err(self.unwritable.take().unwrap_or(error).into()));
                }
            };
            if count == 0 {
                return Poll::Ready(Err(Fault::Ended(self.unwritable.take())));
            }
            self.before_head += count;
            if self.before_head > MAX_BEFORE_HEAD {
                let error = "too much before the head of the response";
                return Poll::Ready(Err(Fault::Malformed(error.to_owned())));
            }
        }
    }

    /// Sends what is left of the request. That nothing can be written is no fault yet: there may be an answer.
    pub(super) fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            // With the head goes what is there of the body.
            let mut staged = Poll::Ready(());
            if self.upload.is_some() && self.piece == Framed::default() {
                staged = self.poll_stage(context)?;
            }
            let written = match (self.is_written(), staged) {
                (false, _) => ready!(self.poll_write(context)),
                // The piece was an empty one.
                (true, Poll::Ready(())) if self.upload.is_some() => Ok(()),
                (true, staged) => match ready!(self.poll_flush(context)) {
                    Ok(()) => return staged.map(Ok),
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = written {
                self.unwritable = Some(error);
                // What was not sent of this request would stand before the next one.
                self.last = true;
                (self.upload, self.piece, self.written) = (None, Framed::default(), 0);
                self.out.clear();
                self.flushed = true;
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Err(closed())) };
        ready!(Pin::new(io).poll_flush(context))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn is_written(&self) -> bool {
        self.out.is_empty() && self.piece.data.is_empty() && self.piece.after.is_empty()
    }

    /// Gets more of the body ready to be written; ready when there is something, or nothing more to come.
    fn poll_stage(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some((body, framing)) = &mut self.upload else { return Poll::Ready(Ok(())) };
        let wrong = |what: &str| Poll::Ready(Err(Fault::Request(what.to_owned())));
        let trailers = match ready!(Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let ended = body.is_end_stream();
                    let Some(piece) = framing.data(data, ended, &mut self.out) else {
                        return wrong("the request's body is longer than it said");
                    };
                    if piece.last {
                        self.upload = None;
                    }
                    self.piece = Framed { last: false, ..piece };
                    return Poll::Ready(Ok(()));
                }
                Err(frame) => frame.into_trailers().ok(),
            },
            Some(Err(error)) => return Poll::Ready(Err(Fault::Request(error.to_string()))),
            None => None,
        };
        let whole = framing.end(trailers.as_ref(), &mut self.out);
        self.upload = None;
        match whole {
            true => Poll::Ready(Ok(())),
            false => wrong("the request's body is shorter than it said"),
        }
    }

    /// Writes what is ready, once.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Err(closed())) };
        self.flushed = false;
        let (io, out) = (Pin::new(io), &self.out[self.written..]);
        let mut count = match self.piece.data.is_empty() && self.piece.after.is_empty() {
            true => ready!(io.poll_write(context, out))?,
            false => {
                let slices = [out, &self.piece.data, self.piece.after].map(IoSlice::new);
                ready!(io.poll_write_vectored(context, &slices))?
            }
        };
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_out = count.min(out.len());
        self.written += of_out;
        count -= of_out;
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        let of_data = count.min(self.piece.data.len());
        self.piece.data.advance(of_data);
        self.piece.after = &self.piece.after[count - of_data..];
        if self.piece.data.is_empty() && self.piece.after.is_empty() {
            self.piece = Framed::default();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads a little; 0 is the end of the connection.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Ok(0)) };
        READ.with_borrow_mut(|small| {
            small.clear();
            small.reserve(SMALL_READ);
            let count = ready!(pin!(io.read_buf(small)).poll(context))?;
            self.read.extend_from_slice(small);
            Poll::Ready(Ok(count))
        })
    }

    /// All of a body of `length` bytes, if it has been read already.
    pub(super) fn take_whole(&mut self, length: u64) -> Option<Bytes> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.read.len())?;
        Some(self.split(length))
    }

    /// At most `most` bytes of a body; none at the end of the connection.
    pub(super) fn poll_data(
        &mut self,
        most: u64,
        context: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Fault>> {
        if self.read.is_empty() {
            let Some(io) = &mut self.io else { return Poll::Ready(Err(Fault::cut())) };
            // A read that does not fill its buffer has read everything there was, and spares another that says so.
            let room = usize::try_from(most.min(LARGE_READ)).unwrap_or(usize::MAX) + 1;
            let mut read = BytesMut::with_capacity(room);
            let polled = pin!(io.read_buf(&mut read)).poll(context);
            match polled {
                Poll::Pending => return self.pause(context),
                Poll::Ready(count) => _ = count?,
            }
            // A little in a large buffer holds all of it.
            self.read = if read.len() < room / 4 { BytesMut::from(&read[..]) } else { read };
        }
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.read.len());
        Poll::Ready(Ok(self.split(count)))
    }

    fn split(&mut self, count: usize) -> Bytes {
        match count == self.read.len() {
            true => std::mem::take(&mut self.read).freeze(),
            false => self.read.split_to(count).freeze(),
        }
    }

    /// The next piece of a chunked body.
    pub(super) fn poll_chunk(
        &mut self,
        chunks: &mut Chunks,
        context: &mut Context<'_>,
    ) -> Poll<Result<Piece, Fault>> {
        loop {
            if let Some(piece) = chunks.take(&mut self.read)? {
                return Poll::Ready(Ok(piece));
            }
            match self.poll_fill(context) {
                Poll::Pending => return self.pause(context),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Fault::cut())),
                Poll::Ready(count) => _ = count?,
            }
        }
    }

    /// Whoever reads is told when sending fails.
    fn pause<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        if self.aside.is_some() {
            self.reader = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

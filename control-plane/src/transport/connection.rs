//! A connection, plain or encrypted, as one type that tonic and hyper read and write.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::ca::Peer;

/// How long a connection may take to say its first [`OPENING_BYTES`]: from then on the limits of HTTP/1.1 and
/// the pings of HTTP/2 tell whether it lives, before that neither of them is at work.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// The preface of HTTP/2 (RFC 9113, section 3.4). Every request of HTTP/1 that names its host has more.
pub(super) const OPENING_BYTES: usize = 24;

/// How long a connection may take until one of its requests has been let pass. Whoever can prove nothing would
/// otherwise keep the place of somebody else for ever, at the price of a ping now and then.
pub(super) const ADMISSION_TIMEOUT: Duration = Duration::from_secs(30);

/// One that is fit to be served, and who is at its other end. Reading fails when it does not begin in time, and when
/// nobody has admitted it in time.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    opening: Option<Opening>,
    /// Until it is admitted.
    trial: Option<Pin<Box<Sleep>>>,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Opening {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    /// Boxed, since it is large and most of the others are not.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    pub(super) fn new(stream: Stream, peer: Peer, permit: OwnedSemaphorePermit) -> Self {
        let deadline = Box::pin(sleep(OPENING_TIMEOUT));
        let opening = Some(Opening { missing: OPENING_BYTES, deadline });
        let trial = Some(Box::pin(sleep(ADMISSION_TIMEOUT)));
        Self { stream, opening, trial, peer, _permit: permit }
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// Puts the peer into the extensions of every request that tonic serves.
impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, opening, trial, peer, .. } = self.get_mut();
        let before = buffer.filled().len();
        let read = match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        if trial.is_some() && peer.admission.is_granted() {
            *trial = None;
        }
        // Also while there is something to read: who sends without end is no better.
        if let Some(trial) = trial
            && trial.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let Some(pending) = opening else { return read };
        if read.is_pending() {
            ready!(pending.deadline.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        pending.missing = pending.missing.saturating_sub(buffer.filled().len() - before);
        if pending.missing == 0 {
            *opening = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

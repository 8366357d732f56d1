//! A stream of HTTP/2 that a `CONNECT` has made a tunnel of (RFC 9113 section 8.5).

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// Both directions of a stream. Dropped before it was shut down, it is reset.
#[derive(Debug)]
pub struct Duplex {
    incoming: RecvStream,
    outgoing: SendStream<Bytes>,
    /// What came and was not read.
    rest: Bytes,
    /// Whether our side has ended.
    shut: bool,
}

/// That there will be a tunnel.
#[derive(Debug)]
pub(super) struct Promise(oneshot::Sender<Duplex>);

/// The same for whoever answers the request, in whose extensions it is.
#[derive(Clone, Debug)]
pub(in crate::http) struct Promised(Arc<Mutex<Option<oneshot::Receiver<Duplex>>>>);

impl Promise {
    pub(super) fn new() -> (Self, Promised) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), Promised(Arc::new(Mutex::new(Some(receiver)))))
    }

    pub(super) fn keep(self, tunnel: Duplex) {
        // Whoever does not want it any more has dropped it, and with it the stream.
        let _ = self.0.send(tunnel);
    }
}

impl Promised {
    /// Takes it; others have none then.
    pub(in crate::http) fn take(self) -> Option<oneshot::Receiver<Duplex>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Duplex {
    pub(super) fn new(incoming: RecvStream, outgoing: SendStream<Bytes>) -> Self {
        Self { incoming, outgoing, rest: Bytes::new(), shut: false }
    }

    fn broken() -> io::Error {
        io::ErrorKind::BrokenPipe.into()
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(this.incoming.poll_data(context)) {
                Some(Ok(data)) => this.rest = data,
                None => return Poll::Ready(Ok(())),
                // Whatever a reset says: what comes before END_STREAM is not all.
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let count = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..count]);
        this.rest.advance(count);
        // It can only fail where more is given back than was taken.
        let _ = this.incoming.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.outgoing.reserve_capacity(bytes.len());
        while this.outgoing.capacity() == 0 {
            match ready!(this.outgoing.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Self::broken())),
            }
        }
        let count = bytes.len().min(this.outgoing.capacity());
        let data = Bytes::copy_from_slice(&bytes[..count]);
        this.outgoing.send_data(data, false).map_err(|_| Self::broken())?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task sends it.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.shut, true) {
            this.outgoing.send_data(Bytes::new(), true).map_err(|_| Self::broken())?;
        }
        Poll::Ready(Ok(()))
    }
}

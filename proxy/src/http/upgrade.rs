//! Connections that stop being HTTP: `CONNECT` and `Upgrade`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
};

use super::{
    http2::{Duplex, Promised},
    parking::Served,
};

/// A connection after its upgrade, or a stream of one, as a byte stream.
#[derive(Debug)]
pub enum Stream {
    /// A connection.
    Alone(TokioIo<Upgraded>),
    /// A stream of HTTP/2.
    Http2(Box<Duplex>),
}

/// Ends a caller's connection so that it cannot take what it has for whole. TLS and HTTP/2 say so by themselves, as they
/// end unannounced.
pub fn cut(stream: Stream) {
    if let Stream::Alone(stream) = stream
        && let Ok(parts) = stream.into_inner().downcast::<TokioIo<Served<TcpStream>>>()
    {
        // If it is closed already there is nothing to be done.
        let _ = parts.io.inner().inner().inner().set_zero_linger();
    }
}

/// The promise of a connection. It is kept once the response has been sent.
#[derive(Debug)]
pub struct Pending(Promise);

#[derive(Debug)]
enum Promise {
    Alone(OnUpgrade),
    Http2(Option<oneshot::Receiver<Duplex>>),
}

/// The peer ended the connection instead.
#[derive(Debug)]
pub struct Broken;

impl Pending {
    /// Takes the promise out of a request.
    pub fn of_request<B>(request: &mut http::Request<B>) -> Self {
        Self(match request.extensions_mut().remove::<Promised>() {
            Some(promised) => Promise::Http2(promised.take()),
            None => Promise::Alone(hyper::upgrade::on(request)),
        })
    }

    /// Takes the promise out of a response.
    pub fn of_response<B>(response: &mut http::Response<B>) -> Self {
        Self(Promise::Alone(hyper::upgrade::on(response)))
    }

    /// Waits for the connection.
    ///
    /// # Errors
    /// When the peer ended the connection instead.
    pub async fn stream(self) -> Result<Stream, Broken> {
        match self.0 {
            Promise::Alone(upgrade) => {
                let upgraded = upgrade.await.map_err(|_| Broken)?;
                Ok(Stream::Alone(TokioIo::new(upgraded)))
            }
            Promise::Http2(promised) => {
                let stream = promised.ok_or(Broken)?.await.map_err(|_| Broken)?;
                Ok(Stream::Http2(Box::new(stream)))
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Alone(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Alone(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Alone(stream) => Pin::new(stream).poll_flush(context),
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Alone(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}

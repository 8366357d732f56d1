//! Making upstream connections.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::StatusCode;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{Endpoint, Security};
use crate::{
    error::{Error, Flag, Retry},
    telemetry::metrics::Families,
    tls::{
        self, Credentials, Failure, Inside, Side,
        client::{self, Target},
    },
};

/// Connects to endpoints as each asks for it.
pub struct Connector {
    /// Our certificate as it is now: asked for once a handshake, so that a new one is used at once.
    credentials: Box<dyn Fn() -> Option<Arc<Credentials>>>,
    families: Arc<Families>,
}

/// A connection to an endpoint.
#[derive(Debug)]
pub enum Stream {
    /// Plain.
    Tcp(TcpStream),
    /// Under mutual TLS.
    Tls(Box<client::Stream<TcpStream>>),
}

impl Connector {
    /// With a certificate from `credentials`.
    pub fn new(
        credentials: impl Fn() -> Option<Arc<Credentials>> + 'static,
        families: Arc<Families>,
    ) -> Self {
        Self { credentials: Box::new(credentials), families }
    }

    /// Connects within `limit`, TLS included, for what is `inside`.
    ///
    /// # Errors
    /// UF, safe to retry elsewhere: nothing was sent.
    pub async fn open(
        &self,
        endpoint: &Endpoint,
        inside: Inside,
        limit: Duration,
    ) -> Result<Stream, Error> {
        let deadline = Instant::now() + limit;
        match &endpoint.security {
            Security::Plain => tcp(endpoint.address, limit).await.map(Stream::Tcp),
            Security::Unavailable(reason) => Err(failed(endpoint.address, reason)),
            Security::Mutual(target) => {
                let credentials = (self.credentials)()
                    .ok_or_else(|| failed(endpoint.address, &"no certificate yet"))?;
                let stream = tcp(endpoint.address, limit).await?;
                // On the heap: callers hold room for the largest thing they wait for, with TLS or without.
                let handshake = Box::pin(client::connect(stream, &credentials, target, inside));
                let done = timeout_at(deadline, handshake).await;
                self.secured(endpoint, target, done.unwrap_or_else(|_| Err(Failure::timeout())))
            }
        }
    }

    fn secured(
        &self,
        endpoint: &Endpoint,
        target: &Target,
        done: Result<client::Stream<TcpStream>, Failure>,
    ) -> Result<Stream, Error> {
        let outcome = done.as_ref().map(client::resumed);
        tls::count(&self.families, Side::Client, outcome);
        done.map(|stream| Stream::Tls(Box::new(stream))).map_err(|failure| {
            let expected = target.expected();
            let detail = format!("TLS with {expected}: {}: {failure}", failure.reason.as_str());
            failed(endpoint.address, &detail)
        })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Connects within `timeout`.
///
/// # Errors
/// UF, safe to retry elsewhere: nothing was sent.
async fn tcp(address: SocketAddr, timeout: Duration) -> Result<TcpStream, Error> {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            prepare(&stream).map_err(|error| failed(address, &error))?;
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(address, &error)),
        Err(_) => Err(failed(address, &format_args!("no answer within {timeout:?}"))),
    }
}

fn failed(address: SocketAddr, reason: &dyn fmt::Display) -> Error {
    let detail = format!("connecting to {address}: {reason}");
    Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UF, Retry::Safe, detail)
}

/// What every connection of a proxy needs, in either direction: no waiting for more bytes (a small request would wait for
/// the peer's delayed acknowledgement), and notice within a minute of a peer that vanished without a word.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    let alive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&alive)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
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
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

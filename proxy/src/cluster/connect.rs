//! Making upstream connections.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use http::StatusCode;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::{Endpoint, Security, Unproven, dialled::Dialled};
use crate::{
    error::{Error, Fault, Flag, Retry},
    telemetry::metrics::Families,
    tls::{
        self, Credentials, Failure, Inside, Reason, Side,
        client::{self, Target},
    },
};

/// From one sidecar to the next: which service port is meant. It selects among the receiver's own ports and is
/// removed there.
pub const DESTINATION: http::HeaderName = http::HeaderName::from_static("x-leno-destination");

/// Connects to endpoints as each asks for it.
pub struct Connector {
    /// Our certificate as it is now: asked for once a handshake, so that a new one is used at once.
    credentials: Box<dyn Fn() -> Option<Arc<Credentials>>>,
    families: Arc<Families>,
    /// Where connections are led through us: which were ours.
    dialled: Option<Arc<Dialled>>,
}

/// A connection to an endpoint.
#[derive(Debug)]
pub enum Stream {
    /// Plain.
    Tcp(TcpStream),
    /// Under mutual TLS.
    Tls(Box<Encrypted>),
}

/// A connection under TLS. In TLS 1.3 the server judges our certificate when the handshake is over for us, so its
/// refusal comes where its first words are expected.
#[derive(Debug)]
pub struct Encrypted {
    stream: client::Stream<TcpStream>,
    /// Who we were to the server.
    identity: Arc<str>,
    /// Whether it has said anything: then it has taken us.
    heard: bool,
    refusal: Refusal,
}

/// Why the server does not accept who we are, once it has said so; nothing was processed then.
pub type Refusal = Arc<OnceLock<String>>;

impl Stream {
    /// Where a refusal will be found; `None` where nobody is asked who they are.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Tcp(_) => None,
            Self::Tls(encrypted) => Some(encrypted.refusal.clone()),
        }
    }

    /// Who we are to whoever is at the other end; `None` for nobody in particular.
    pub fn identity(&self) -> Option<Arc<str>> {
        match self {
            Self::Tcp(_) => None,
            Self::Tls(encrypted) => Some(encrypted.identity.clone()),
        }
    }
}

impl Encrypted {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        let heard = std::mem::replace(&mut self.heard, true);
        Poll::Ready(read.map_err(|error| match error.kind() {
            // TLS that makes no sense is told like this; it must not be taken for HTTP that makes none.
            io::ErrorKind::InvalidData => {
                let failure = Failure::of_io(&error);
                if !heard && failure.reason == Reason::Refused {
                    // It can be set once only, and this is the first thing that was read.
                    let _ = self.refusal.set(failure.text.clone());
                }
                io::Error::new(io::ErrorKind::ConnectionAborted, format!("TLS: {failure}"))
            }
            _ => error,
        }))
    }
}

impl Connector {
    /// With a certificate from `credentials`.
    pub fn new(
        credentials: impl Fn() -> Option<Arc<Credentials>> + 'static,
        families: Arc<Families>,
    ) -> Self {
        Self { credentials: Box::new(credentials), families, dialled: None }
    }

    /// Connects as one whose own connections the kernel might lead back to it: to the application beside us from an
    /// address by which the rules know that, and remembering each in `dialled`. `None` changes nothing.
    pub fn captured(self, dialled: Option<Arc<Dialled>>) -> Self {
        Self { dialled, ..self }
    }

    async fn tcp(&self, endpoint: &Endpoint, limit: Duration) -> Result<TcpStream, Error> {
        let Some(dialled) = &self.dialled else { return tcp(endpoint.address(), limit).await };
        let source = endpoint.is_own().then(|| application_source(endpoint.address().ip()));
        let stream = connected(endpoint.address(), limit, dial(source, endpoint.address())).await?;
        if let Ok(local) = stream.local_addr() {
            dialled.note(local, endpoint.address(), Instant::now().into_std());
        }
        Ok(stream)
    }

    /// Who we are now to `endpoint`; `None` where it does not ask.
    pub fn identity(&self, endpoint: &Endpoint) -> Option<Arc<str>> {
        match &endpoint.security {
            Security::Mutual(_) => Some((self.credentials)()?.name().clone()),
            Security::Plain | Security::Unavailable(_) => None,
        }
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
            Security::Plain => self.tcp(endpoint, limit).await.map(Stream::Tcp),
            Security::Unavailable(why) => Err(unproven(endpoint.address(), &why.as_str())),
            Security::Mutual(target) => {
                let credentials = (self.credentials)().ok_or_else(|| {
                    unproven(endpoint.address(), &Unproven::NoCertificate.as_str())
                })?;
                let stream = self.tcp(endpoint, limit).await?;
                // On the heap: callers hold room for the largest thing they wait for, with TLS or without.
                let handshake = Box::pin(client::connect(stream, &credentials, target, inside));
                let done = timeout_at(deadline, handshake).await;
                let done = done.unwrap_or_else(|_| Err(Failure::timeout()));
                self.secured(endpoint, (target, credentials.name()), done)
            }
        }
    }

    fn secured(
        &self,
        endpoint: &Endpoint,
        (target, identity): (&Target, &Arc<str>),
        done: Result<client::Stream<TcpStream>, Failure>,
    ) -> Result<Stream, Error> {
        let outcome = done.as_ref().map(client::resumed);
        tls::count(&self.families, Side::Client, outcome);
        let encrypted = |stream| Encrypted {
            stream,
            identity: identity.clone(),
            heard: false,
            refusal: Refusal::default(),
        };
        done.map(|stream| Stream::Tls(Box::new(encrypted(stream)))).map_err(|failure| {
            let expected = target.expected();
            let detail = format!("TLS with {expected}: {}: {failure}", failure.reason.as_str());
            failed(endpoint.address(), &detail)
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
pub async fn tcp(address: SocketAddr, timeout: Duration) -> Result<TcpStream, Error> {
    connected(address, timeout, TcpStream::connect(address)).await
}

async fn connected(
    address: SocketAddr,
    timeout: Duration,
    connecting: impl Future<Output = io::Result<TcpStream>>,
) -> Result<TcpStream, Error> {
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(stream)) => {
            prepare(&stream).map_err(|error| failed(address, &error))?;
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(address, &error)),
        Err(_) => Err(failed(address, &format_args!("no answer within {timeout:?}"))),
    }
}

/// Whence a sidecar connects to its own application at `address` where connections are led through it: the rules let
/// pass what comes from there over loopback (docs/capture.md). Of IPv6 the rules' installation has to add it.
pub fn application_source(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
    }
}

/// Connects to `address` from any port of `source`, where there is one.
///
/// # Errors
/// What the system says, and what to do where it does not have `source`.
pub async fn dial(source: Option<IpAddr>, address: SocketAddr) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(address).await };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    choose_port_late(&socket)?;
    let bound = socket.bind(SocketAddr::new(source, 0));
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            let text = format!("this machine has no address {source}: install the rules with `leno redirect install`");
            io::Error::new(error.kind(), text)
        }
        _ => error,
    })?;
    socket.connect(address).await
}

/// Without this every connection from a bound address would take one of its 28,000 ports for itself, for a minute after
/// its end, too. No crate that we have offers the option.
#[expect(
    unsafe_code,
    reason = "setsockopt of an integer that outlives the call, on a socket that is open"
)]
fn choose_port_late(socket: &TcpSocket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    // SAFETY: the pointer is to `on`, whose size is given; the descriptor belongs to `socket`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// We cannot say who we are: nothing that an endpoint should be judged by.
fn unproven(address: SocketAddr, reason: &dyn fmt::Display) -> Error {
    Error { fault: Fault::Ours, ..failed(address, reason) }
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
            Self::Tls(encrypted) => encrypted.poll_read(context, buffer),
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
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Tls(encrypted) => {
                Pin::new(&mut encrypted.stream).poll_write_vectored(context, pieces)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(encrypted) => encrypted.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_shutdown(context),
        }
    }
}

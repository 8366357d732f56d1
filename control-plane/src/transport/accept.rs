//! From the listener to a connection that is fit to be served.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Connection,
    connection::Stream,
    refusal::{Refusal, Refusals},
};
use crate::ca::{Authority, Peer};

/// How long a connection may take until it is either plain or has finished its TLS handshake: far more than
/// any network needs, little enough that [`MAX_HALF_OPEN`] silent ones are gone in a moment.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not come that far; further ones are closed, so that silent peers cost at most this
/// many buffers and others get through as soon as some have run out of time.
pub(super) const MAX_HALF_OPEN: usize = 1024;
/// After an accept that failed, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// First byte of a TLS record that holds a handshake message (RFC 8446, section 5.1). Neither HTTP/1.1
/// nor the preface of HTTP/2 begin so.
const TLS_HANDSHAKE: u8 = 0x16;

/// Owns the listener.
pub(super) struct Acceptor {
    listener: TcpListener,
    open: Arc<Semaphore>,
    half_open: Arc<Semaphore>,
    shared: Arc<Shared>,
}

/// What every handshake needs.
struct Shared {
    authority: Arc<Authority>,
    plain: bool,
    refusals: Refusals,
    ready: mpsc::Sender<Connection>,
}

impl Acceptor {
    pub(super) fn new(
        listener: TcpListener,
        most: usize,
        plain: bool,
        authority: Arc<Authority>,
        refusals: Refusals,
        ready: mpsc::Sender<Connection>,
    ) -> Self {
        Self {
            listener,
            open: Arc::new(Semaphore::new(most)),
            half_open: Arc::new(Semaphore::new(MAX_HALF_OPEN)),
            shared: Arc::new(Shared { authority, plain, refusals, ready }),
        }
    }

    /// Accepts until it is aborted; an accept that fails is tried again.
    pub(super) async fn run(self) {
        let mut handshakes = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                Some(_) = handshakes.join_next() => continue,
            };
            match accepted {
                Ok((stream, remote, permit)) => self.open(stream, remote, permit, &mut handshakes),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let permit = self.open.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (stream, remote) = self.listener.accept().await?;
        // Small frames must not wait for each other's acknowledgement.
        stream.set_nodelay(true)?;
        Ok((stream, remote, permit))
    }

    fn open(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        permit: OwnedSemaphorePermit,
        handshakes: &mut JoinSet<()>,
    ) {
        let Ok(half_open) = self.half_open.clone().try_acquire_owned() else {
            self.shared.refusals.note(remote, &Refusal::Busy { most: MAX_HALF_OPEN });
            return;
        };
        let shared = self.shared.clone();
        handshakes.spawn(async move {
            let opened = timeout(HANDSHAKE_TIMEOUT, shared.open(stream, remote)).await;
            drop(half_open);
            match opened.unwrap_or(Err(Refusal::Timeout { limit: HANDSHAKE_TIMEOUT })) {
                Ok((stream, peer)) => {
                    // Fails only when nobody serves any more.
                    shared.ready.send(Connection::new(stream, peer, permit)).await.ok();
                }
                Err(refusal) => shared.refusals.note(remote, &refusal),
            }
        });
    }
}

impl Shared {
    async fn open(&self, stream: TcpStream, remote: SocketAddr) -> Result<(Stream, Peer), Refusal> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => Err(Refusal::Gone),
            Ok(_) if first == [TLS_HANDSHAKE] => self.encrypted(stream, remote).await,
            Ok(_) if self.plain => Ok((Stream::Plain(stream), Peer::plain(remote))),
            Ok(_) => Err(Refusal::Plain),
        }
    }

    async fn encrypted(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> Result<(Stream, Peer), Refusal> {
        // As it is now: certificates change while we run.
        let config = self.authority.server().borrow().clone();
        let stream = TlsAcceptor::from(config).accept(stream).await.map_err(Refusal::handshake)?;
        let chain = stream.get_ref().1.peer_certificates();
        let peer = self.authority.connection(remote, chain).map_err(Refusal::Identity)?;
        self.refusals.accepted();
        Ok((Stream::Tls(Box::new(stream)), peer))
    }
}

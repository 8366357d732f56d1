//! Connections to our own ports: TLS with the certificate authority's certificate, and plain text beside it
//! only where nobody but this machine can connect.
//!
//! ```text
//! accept ─▶ first byte ─┬─ 0x16 ─▶ TLS handshake ─▶ who it is ─╮
//!   │ (too many: closed)├─ else, bound to loopback ────────────┼─▶ Incoming ─▶ xds, http_api
//!   ╰─ permits          ╰─ else ─▶ closed, with a log line     ╯
//! ```
//!
//! Every handshake runs in a task of its own, so that a silent peer holds up nobody, within a time and a
//! number that half-open connections cannot exceed. What leaves here as a [`Connection`] says who is at its
//! other end: [`Peer`] is found in the extensions of each of its requests.
//!
//! - `accept.rs`: from the listener to a connection that is fit to be served
//! - `connection.rs`: plain or encrypted, as one type that tonic and hyper read and write
//! - `conversation.rs`: HTTP on such a connection, and on the webhook's
//! - `refusal.rs`: why a connection is not served; counting and logging that

mod accept;
mod connection;
pub mod conversation;
mod refusal;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use leno_api::model::identity::SpiffeId;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};

pub use self::connection::Connection;
use self::{accept::Acceptor, refusal::Refusals};
pub use crate::ca::Peer;
use crate::{ca::Authority, telemetry::Metrics};

/// Connections that are ready and wait to be served: whoever serves takes them at once.
const READY_AHEAD: usize = 64;

/// The connections of one port. Dropping it closes the port and what has not been handed out yet.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<Connection>,
    acceptor: JoinHandle<()>,
}

/// What a port is like.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Who connects there, for the log: "proxies".
    pub purpose: &'static str,
    /// Connections open at the same time; further ones wait to be accepted.
    pub most: usize,
}

/// A connection may outlive the certificate with which it was opened, and the trust in its root.
#[derive(Debug, thiserror::Error)]
#[error(
    "the client certificate of this connection has ended, or its root is not trusted any more: connect anew with one that is valid"
)]
pub struct CertificateEnded;

/// Whom the client certificate of a connection names; `None` where none was shown.
///
/// # Errors
/// When it is not valid any more, or `authority` does not trust its root any more.
pub fn identity<'a>(
    peer: Option<&'a Peer>,
    authority: &Authority,
) -> Result<Option<&'a SpiffeId>, CertificateEnded> {
    let Some((peer, id)) = peer.and_then(|peer| Some((peer, peer.identity.as_ref()?))) else {
        return Ok(None);
    };
    if authority.is_current(peer) { Ok(Some(id)) } else { Err(CertificateEnded) }
}

impl Incoming {
    /// Takes connections from now on; needs a Tokio runtime around it. Plain text is served only where
    /// `listener` is bound to loopback.
    ///
    /// # Errors
    /// When the listener does not say where it is bound.
    pub fn new(
        listener: TcpListener,
        port: Port,
        authority: Arc<Authority>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (sender, ready) = mpsc::channel(READY_AHEAD);
        let plain = listener.local_addr()?.ip().is_loopback();
        let refusals = Refusals::new(port.purpose, metrics);
        let acceptor = Acceptor::new(listener, port.most, plain, authority, refusals, sender);
        Ok(Self { ready, acceptor: tokio::spawn(acceptor.run()) })
    }

    /// The next connection that is fit to be served. `None` only when the acceptor itself has failed. Safe
    /// to cancel.
    pub async fn next(&mut self) -> Option<Connection> {
        self.ready.recv().await
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

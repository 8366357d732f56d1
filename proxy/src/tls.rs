//! Mutual TLS from sidecar to sidecar: TLS 1.3 with a certificate on both sides, each of which names one SPIFFE ID.
//!
//! Paths to the trusted roots are built by rustls; what SPIFFE adds is checked by [`verify`] inside the handshake, so
//! that a refusal reaches the peer as an alert. A resumed handshake shows no certificates; there both sides check
//! again, afterwards, what the first one showed.
//!
//! - `verify.rs`: the SPIFFE rules, pure
//! - `credentials.rs`: who we are and whom we trust; immutable, replaced as a whole
//! - `server.rs`, `client.rs`: handshakes
//! - `control_plane.rs`: the connection to the control plane, which only a root and a name are known of
//! - `path.rs`: paths to trusted roots
//! - `half_open.rs`: how many handshakes there may be, and who gives way
//! - `failure.rs`: what went wrong, under a name that can be counted

pub mod client;
pub mod control_plane;
pub mod credentials;
pub mod failure;
#[cfg(test)]
pub mod fixture;
pub mod half_open;
mod path;
pub mod server;
pub mod verify;

pub use credentials::{Credentials, Error, Material};
pub use failure::{Failure, Reason};

use std::sync::{Arc, LazyLock};

use leno_api::model::identity::SpiffeId;
use rustls::crypto::{
    CryptoProvider,
    aws_lc_rs::{self, cipher_suite, kx_group},
};

use crate::telemetry::metrics::Families;
use verify::Leaf;

/// Plaintext and ciphertext that a connection keeps for a peer which does not read: four full records, which one
/// system call can write. This bounds what a slow peer costs; an idle connection holds none of it, only what rustls
/// keeps to read into (4 KiB), its keys and the peer's certificate.
const BUFFER_LIMIT: usize = 64 * 1024;

/// What a mesh hop carries, as the ALPN says. Names of our own: they tell a hop of the mesh from TLS that an
/// application speaks itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inside {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
}

impl Inside {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Http2, Self::Http1, Self::Tcp];

    /// Its ALPN protocol name.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"leno-http/1.1",
            Self::Http2 => b"leno-h2",
            Self::Tcp => b"leno-tcp",
        }
    }

    /// What an ALPN protocol name stands for; none for names that are not the mesh's.
    pub fn of_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|inside| inside.alpn() == name)
    }
}

/// Who is at the other end, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// From its certificate.
    pub id: SpiffeId,
    /// The same without `spiffe://`, as policies and metrics have it.
    pub principal: Arc<str>,
    /// Until when its certificate is valid, Unix seconds.
    pub not_after: i64,
}

impl From<Leaf> for Peer {
    fn from(leaf: Leaf) -> Self {
        Self { principal: leaf.id.principal().into(), id: leaf.id, not_after: leaf.not_after }
    }
}

/// Which end of a handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We accepted.
    Server,
    /// We connected.
    Client,
}

/// Counts a handshake: how it failed, or whether it was a resumed one.
pub fn count(families: &Families, side: Side, outcome: Result<bool, &Failure>) {
    let side = match side {
        Side::Server => "server",
        Side::Client => "client",
    };
    let result = match outcome {
        Ok(false) => "ok",
        Ok(true) => "resumed",
        Err(failure) => failure.reason.as_str(),
    };
    families.tls_handshakes.with_label_values(&[side, result]).inc();
}

/// What the mesh speaks: TLS 1.3 suites only, AES-GCM first since every machine that runs a mesh has instructions for
/// it, and elliptic curves. No hybrid key exchange with ML-KEM: it adds 1.1 KiB to every hello of either side, and
/// hops inside a mesh are many and short; who records them today to break them in ten years is a threat for the edge.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

#[cfg(test)]
mod tests;

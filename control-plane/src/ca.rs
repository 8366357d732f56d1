//! The certificate authority: who has proven who they are gets a certificate that says so.
//!
//! ```text
//! proxy ─ CSR, proof ─▶ server ─▶ authn ─▶ issue (pure) ─▶ certificate
//!                         │        token, JWT,   ▲
//!                         ▼        certificate   │ signer
//!                       audit                 Trust ◀─ root (ours) | user (files) ◀─ rotation (pure)
//!                                                │
//!                                                ├─▶ bundle: the `TrustBundle` in the store, for every proxy
//!                                                ╰─▶ serving: the TLS of our own ports
//! ```
//!
//! - `authority.rs`: holds it all, renews and reloads; `change.rs`: rotation, reloading, publishing
//! - `server.rs`: the gRPC service; `authn.rs`: proofs; `jwt.rs` (pure), `jwks.rs`, `fetch.rs`: those of other issuers
//! - `issue.rs`: signing request and identity to certificate, pure; `limits.rs`: how often, pure
//! - `root.rs`: our roots on disk; `user.rs`: the user's; `rotation.rs`: the steps between roots, pure
//! - `audit.rs`: everything issued and refused; `files.rs`: files that only their owner reads; `metrics.rs`

mod audit;
mod authn;
mod authority;
mod bundle;
mod change;
mod fetch;
mod files;
mod issue;
mod jwks;
mod jwt;
mod limits;
mod metrics;
mod root;
mod rotation;
mod server;
mod serving;
#[cfg(test)]
mod tests;
mod user;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use leno_api::model::identity::{SpiffeId, TrustDomain};
use rustls::pki_types::CertificateDer;
use serde::Serialize;

pub use self::{
    audit::Certificate,
    authn::{NotReviewed, Reviewed, Reviewer},
    authority::Authority,
    change::ROOT_FILE,
    files::FileError,
    issue::MIN_TTL,
    jwks::BadSource,
    rotation::{Action as Rotation, Refused},
};
use crate::{access::Member, store};

/// The wire: generated from `api/proto/ca.proto`.
pub mod proto {
    #![expect(clippy::allow_attributes_without_reason, reason = "generated")]
    tonic::include_proto!("leno.ca.v1");
}

/// The longest life of a certificate: what is not renewed for a month is forgotten, and stolen keys are not.
pub const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the authority is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub trust_domain: TrustDomain,
    /// How long certificates live, [`MIN_TTL`] to [`MAX_TTL`].
    pub ttl: Duration,
    /// A root that the user brings, instead of one made at first start.
    pub user: Option<UserFiles>,
    /// An issuer of JWTs that prove identities.
    pub jwt: Option<JwtSettings>,
    /// DNS names and addresses of our own ports, beside localhost and the loopback addresses.
    pub hosts: Vec<String>,
    /// Addresses to which our ports are bound; unspecified ones say nothing and are left out.
    pub bind: Vec<IpAddr>,
}

/// PEM files of the user, read again when they change.
#[derive(Debug, Clone)]
pub struct UserFiles {
    /// All trusted roots.
    pub root: PathBuf,
    /// The issuing certificate first, then what leads from it to a root.
    pub certificate: PathBuf,
    /// The private key of the issuing certificate; nobody else may be able to read it.
    pub key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct JwtSettings {
    /// A file, or an `https://` URL (`http://` on loopback only).
    pub jwks: String,
    pub issuer: String,
    pub audience: String,
}

/// Who is at the other end of a connection; the transport puts it into each request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub remote: SocketAddr,
    pub tls: bool,
    /// By the verified client certificate of the connection.
    pub identity: Option<SpiffeId>,
    /// When that certificate ends, Unix seconds: connections may outlive it.
    pub not_after: Option<i64>,
    /// The certificate and what came with it: connections may outlive the trust in its root, too.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// Shared by all that is known of the connection.
    pub admission: Admission,
}

/// Whether anybody has let a request of a connection pass: those of which nobody has may not stay.
#[derive(Debug, Clone, Default)]
pub struct Admission(Arc<AtomicBool>);

impl Admission {
    /// A request has proven who sends it.
    pub fn grant(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_granted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// It says nothing of who somebody is.
impl PartialEq for Admission {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Admission {}

impl Peer {
    /// Of a connection without TLS.
    pub fn plain(remote: SocketAddr) -> Self {
        Self {
            remote,
            tls: false,
            identity: None,
            not_after: None,
            chain: Arc::default(),
            admission: Admission::default(),
        }
    }
}

/// What a verified client certificate lacks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerError {
    #[error("the client certificate cannot be read")]
    Malformed,
    #[error("the client certificate has {0} URIs as names, it must have one SPIFFE ID")]
    NotOneUri(usize),
    #[error("the client certificate's name is no identity: {0}")]
    BadIdentity(String),
    #[error("the client certificate is of the trust domain {found}, this is {expected}")]
    OtherTrustDomain { found: TrustDomain, expected: TrustDomain },
}

/// Who is there and how far they are; implemented over the push.
pub trait Fleet: Send + Sync {
    /// All proxies with an open stream.
    fn connected(&self) -> Vec<Member>;
    /// Of these, those that acknowledged the `TrustBundle` of this `metadata.generation` or a later one.
    fn have_bundle(&self, generation: u64) -> Vec<Member>;
}

/// Why there is no authority, or what it could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} cannot be used: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("a certificate's life of {0:?} is not possible: it must be {MIN_TTL:?} to {MAX_TTL:?}")]
    Ttl(Duration),
    #[error("cannot make a root: {0}")]
    MakeRoot(String),
    #[error("cannot make the certificate of our own ports: {0}")]
    Serving(String),
    #[error("cannot store the trust bundle: {0}")]
    Store(#[from] store::Error),
    #[error("cannot write the trust bundle: {0}")]
    Bundle(String),
    #[error(transparent)]
    Jwks(#[from] BadSource),
}

/// Why a step of a rotation was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(
        "the roots are your own files: put the new root beside the old one in {}, wait until every proxy has it, then replace the certificate and key, and at last remove the old root", .0.display()
    )]
    UserRoots(PathBuf),
    #[error("the roots of the step before could not be stored yet: try again")]
    NotPublished,
    #[error(transparent)]
    Failed(#[from] Error),
}

/// How things stand.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub trust_domain: String,
    /// `own` or `files`.
    pub source: &'static str,
    pub roots: Vec<RootStatus>,
    /// The `metadata.generation` of the trust bundle; none while it could not be stored.
    pub generation: Option<u64>,
    /// Proxies that are connected, and those of them that have the bundle of this generation.
    pub connected: usize,
    pub have_bundle: usize,
    /// Proxies that are connected and do not have it, the first few.
    pub waiting_for: Vec<String>,
    /// Connected proxies whose certificate is under another root than the signer, the first few.
    pub on_other_root: Vec<String>,
    /// Proxies that are not connected but have a certificate that is still valid.
    pub absent: usize,
    /// Where the rotation stands: `idle`, `added`, `switched`; none where the roots are files.
    pub step: Option<&'static str>,
    /// What can be done next.
    pub next: Vec<NextStep>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RootStatus {
    pub fingerprint: String,
    pub subject: String,
    pub not_before: String,
    pub not_after: String,
    /// Certificates are issued under it.
    pub signer: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NextStep {
    pub action: Rotation,
    /// Why not yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
}

/// Unix seconds. A clock before 1970 makes every certificate not valid yet, which says what is wrong.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, issue::seconds)
}

/// As Kubernetes writes times.
fn rfc3339(unix: i64) -> String {
    let since = Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    crate::objects::timestamp::rfc3339(UNIX_EPOCH + since)
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

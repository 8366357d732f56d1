//! Who we are and whom we trust: one certificate with its key, and the roots. Immutable; every renewal and every change
//! of the roots makes new ones, and connections keep those with which they began.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use leno_api::model::identity::{SpiffeId, TrustDomain};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::ProducesTickets,
    sign::CertifiedKey,
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use sha2::{Digest, Sha256};

use super::{
    path, provider, server,
    verify::{Leaf, Refusal},
};

/// Certificates above the leaf. Ours come with one at most; who brings a chain brings no more than this.
const MAX_CHAIN: usize = 8;
/// As many roots as a `TrustBundle` may have, and then some for bundles from elsewhere.
const MAX_ROOTS: usize = 64;

/// What credentials are made of.
pub struct Material {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// Whom we trust.
    pub roots: Vec<CertificateDer<'static>>,
    /// Ours; the leaf's identity must be of it.
    pub trust_domain: TrustDomain,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("chain", &self.chain.len())
            .field("key", &"(not shown)")
            .field("roots", &self.roots.len())
            .field("trust_domain", &self.trust_domain)
            .finish()
    }
}

/// Why credentials cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing there.
    #[error("there is no certificate")]
    NoCertificate,
    /// Nobody would be trusted.
    #[error("there are no trusted roots")]
    NoRoots,
    /// More than any real chain or bundle has.
    #[error("{count} {what}; at most {most} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// A root that cannot be read.
    #[error("trusted root {number}: {source}")]
    Root {
        /// Counted from 1.
        number: usize,
        /// Why.
        source: rustls::Error,
    },
    /// Our own certificate breaks a rule by which our peers would refuse it.
    #[error("our own certificate: {0}")]
    Certificate(#[from] Refusal),
    /// The key is of a kind that cannot sign handshakes, or belongs to another certificate.
    #[error("certificate and key: {0}")]
    Key(rustls::Error),
    /// The library refuses.
    #[error("TLS: {0}")]
    Tls(String),
}

/// One certificate with its key, and the roots; shared by all connections that begin while it is current.
pub struct Credentials {
    generation: u64,
    leaf: Leaf,
    /// The identity as text.
    name: Arc<str>,
    trust_domain: TrustDomain,
    certified: Arc<CertifiedKey>,
    roots: Arc<Roots>,
    ticketer: Arc<dyn ProducesTickets>,
    server: Arc<ServerConfig>,
    clock: Arc<dyn TimeProvider>,
}

/// The trusted roots in the forms in which they are needed.
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    fingerprints: Vec<String>,
    anchors: Arc<RootCertStore>,
}

/// What both kinds of handshakes are configured from.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) anchors: Arc<RootCertStore>,
    pub(super) trust_domain: TrustDomain,
    pub(super) clock: Arc<dyn TimeProvider>,
}

impl Credentials {
    /// Checks `material` by the rules that peers will apply. `previous` are those that these replace: sessions of peers
    /// that they made can be resumed with these, unless identity or roots have changed.
    ///
    /// # Errors
    /// When something does not fit together; the old ones are then better kept.
    pub fn new(material: Material, previous: Option<&Self>) -> Result<Self, Error> {
        let clock: Arc<dyn TimeProvider> =
            previous.map_or_else(|| Arc::new(DefaultTimeProvider) as _, |p| p.clock.clone());
        Self::with_clock(material, previous, clock)
    }

    /// The same with another source of the time.
    ///
    /// # Errors
    /// As [`Credentials::new`].
    pub fn with_clock(
        material: Material,
        previous: Option<&Self>,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Self, Error> {
        let Material { chain, key, roots, trust_domain } = material;
        let leaf = Leaf::read(chain.first().ok_or(Error::NoCertificate)?)?;
        leaf.check(&trust_domain, None, unix_seconds(&*clock))?;
        at_most("certificates in the chain", chain.len(), MAX_CHAIN)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(Error::Key)?;
        let roots = Arc::new(Roots::new(roots)?);
        let parts = Parts {
            certified: Arc::new(certified),
            anchors: roots.anchors.clone(),
            trust_domain,
            clock,
        };
        Self::assemble(leaf, roots, parts, previous)
    }

    /// The same certificate, trusting others.
    ///
    /// # Errors
    /// When the roots cannot be used.
    pub fn with_roots(&self, roots: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        let roots = Arc::new(Roots::new(roots)?);
        let parts = Parts { anchors: roots.anchors.clone(), ..self.parts() };
        Self::assemble(self.leaf.clone(), roots, parts, Some(self))
    }

    fn assemble(
        leaf: Leaf,
        roots: Arc<Roots>,
        parts: Parts,
        previous: Option<&Self>,
    ) -> Result<Self, Error> {
        // A ticket holds the peer's certificate as it was checked then. What it was checked against must be the same.
        let kept = previous.filter(|previous| {
            previous.leaf.id == leaf.id && previous.roots.fingerprints == roots.fingerprints
        });
        let ticketer = match kept {
            Some(previous) => previous.ticketer.clone(),
            None => Ticketer::new().map_err(|error| Error::Tls(error.to_string()))?,
        };
        let server = Arc::new(server::configure(&parts, ticketer.clone())?);
        let Parts { certified, trust_domain, clock, .. } = parts;
        let (generation, name) = (next_generation(), leaf.id.to_string().into());
        Ok(Self { generation, leaf, name, trust_domain, certified, roots, ticketer, server, clock })
    }

    /// Whether our certificate leads to one of the roots that we trust ourselves. Peers have the same roots in a mesh,
    /// so where it does not, nobody will talk to us.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check_path(&self) -> Result<(), rustls::Error> {
        let (leaf, above) =
            self.certified.cert.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = self.clock.current_time().ok_or(rustls::Error::FailedToGetCurrentTime)?;
        path::of_server(leaf, above, &self.roots.anchors, now).map(|_leaf| ())
    }

    /// Our identity.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// Our identity as text: `spiffe://...`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whose identities we believe.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Unix seconds.
    pub fn not_before(&self) -> i64 {
        self.leaf.not_before
    }

    /// Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.leaf.not_after
    }

    /// Of our certificate, lower-case hex.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// SHA-256 of each trusted root, lower-case hex, sorted.
    pub fn root_fingerprints(&self) -> &[String] {
        &self.roots.fingerprints
    }

    /// The trusted roots themselves.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots.certificates
    }

    /// Different for all credentials of this process, growing.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The time by which peers are judged, Unix seconds.
    pub(super) fn now(&self) -> i64 {
        unix_seconds(&*self.clock)
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    pub(super) fn parts(&self) -> Parts {
        Parts {
            certified: self.certified.clone(),
            anchors: self.roots.anchors.clone(),
            trust_domain: self.trust_domain.clone(),
            clock: self.clock.clone(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("generation", &self.generation)
            .field("id", &self.leaf.id)
            .field("serial", &self.leaf.serial)
            .field("not_after", &self.leaf.not_after)
            .finish_non_exhaustive()
    }
}

impl Roots {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        at_most("trusted roots", certificates.len(), MAX_ROOTS)?;
        let mut anchors = RootCertStore::empty();
        for (at, certificate) in certificates.iter().enumerate() {
            let added = anchors.add(certificate.clone());
            added.map_err(|source| Error::Root { number: at + 1, source })?;
        }
        if anchors.is_empty() {
            return Err(Error::NoRoots);
        }
        let mut fingerprints: Vec<String> =
            certificates.iter().map(|certificate| fingerprint(certificate)).collect();
        fingerprints.sort_unstable();
        Ok(Self { certificates, fingerprints, anchors: Arc::new(anchors) })
    }
}

/// SHA-256 of a certificate's DER, lower-case hex.
pub fn fingerprint(certificate: &[u8]) -> String {
    Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn at_most(what: &'static str, count: usize, most: usize) -> Result<(), Error> {
    if count > most { Err(Error::TooMany { what, count, most }) } else { Ok(()) }
}

fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where the clock cannot be read every certificate counts as expired.
fn unix_seconds(clock: &dyn TimeProvider) -> i64 {
    clock.current_time().map_or(i64::MAX, seconds)
}

/// As `i64`, in which certificates state their times.
pub(super) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

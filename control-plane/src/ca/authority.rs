//! Holds what is trusted now, and answers questions about it.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use leno_api::{
    SYSTEM_NAMESPACE,
    model::identity::{CONTROL_PLANE_ACCOUNT, SpiffeId, TrustDomain},
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::sync::watch;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    parse_x509_certificate,
};

use super::{
    Certificate, Error, MAX_TTL, MIN_TTL, Peer, PeerError, Settings,
    audit::Audit,
    authn::{NotReviewed, Reviewed, Reviewer},
    bundle, change,
    files::private_directory,
    jwks::Issuer,
    jwt,
    limits::Limits,
    metrics::Metrics,
    now,
    proto::certificate_authority_server::CertificateAuthorityServer,
    root::{Roots, Trust},
    server::{MAX_REQUEST_BYTES, Service},
    serving::{PortCertificate, Serving},
    user::Contents,
};
use crate::{access::TokenFile, store::Store};

/// In the data directory: keys, the state of the rotation, the audit log.
const DIRECTORY: &str = "ca";

/// The certificate authority. [`Authority::run`] must be running for it to renew and reload.
pub struct Authority {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) tokens: Arc<TokenFile>,
    pub(super) roots: Roots,
    pub(super) audit: Audit,
    pub(super) limits: Mutex<Limits>,
    pub(super) issuer: Option<Issuer>,
    pub(super) reviewer: OnceLock<Arc<dyn Reviewer>>,
    pub(super) metrics: Metrics,
    /// Held while roots, files and the bundle are changed: one change at a time.
    pub(super) changing: tokio::sync::Mutex<Changing>,
    pub(super) opened: Instant,
    trust: RwLock<Arc<Trust>>,
    /// Of the published bundle; 0 where what is trusted now is not published yet.
    generation: AtomicU64,
    server: watch::Sender<Arc<ServerConfig>>,
}

/// What only changes need.
pub(super) struct Changing {
    pub(super) serving: Serving,
    /// What the user's files held last, good or not.
    pub(super) contents: Option<Contents>,
    /// What could not be read of them last.
    pub(super) unreadable: Option<String>,
}

impl Authority {
    /// Reads or makes the root, and publishes it.
    ///
    /// # Errors
    /// [`Error`] says which file is missing, exposed or damaged.
    pub async fn open(
        settings: Settings,
        store: Arc<dyn Store>,
        tokens: Arc<TokenFile>,
    ) -> Result<Arc<Self>, Error> {
        if !(MIN_TTL..=MAX_TTL).contains(&settings.ttl) {
            return Err(Error::Ttl(settings.ttl));
        }
        let directory = settings.data_dir.join(DIRECTORY);
        private_directory(&directory)?;
        let issuer = settings.jwt.as_ref().map(Issuer::new).transpose()?;
        let roots = Roots::new(&directory, &settings.trust_domain);
        let (trust, contents) = read(&settings, &roots)?;
        let id = own_id(&settings.trust_domain);
        let serving = Serving::new(&trust, &id, &hosts(&settings), settings.ttl, now())?;
        let metrics = Metrics::new().map_err(|error| Error::Serving(error.to_string()))?;
        let authority = Arc::new(Self {
            audit: Audit::open(&directory)?,
            limits: Mutex::new(Limits::new(Instant::now())),
            opened: Instant::now(),
            trust: RwLock::new(Arc::new(trust)),
            generation: AtomicU64::new(0),
            server: watch::Sender::new(serving.config.clone()),
            changing: tokio::sync::Mutex::new(Changing { serving, contents, unreadable: None }),
            settings,
            store,
            tokens,
            roots,
            issuer,
            reviewer: OnceLock::new(),
            metrics,
        });
        change::begin(&authority).await?;
        Ok(authority)
    }

    /// Renews our own certificate, reads the user's files again and keeps the bundle stored; never ends.
    pub async fn run(self: Arc<Self>) {
        change::run(&self).await;
    }

    /// From now on tokens are shown to `reviewer`. Only the first one counts.
    pub fn review_by(&self, reviewer: Arc<dyn Reviewer>) {
        self.reviewer.set(reviewer).ok();
    }

    /// Whose a token is by the reviewer's word; `None` where there is no reviewer, or it cannot be one of its tokens.
    ///
    /// # Errors
    /// [`NotReviewed`]
    pub async fn reviewed(&self, token: &[u8]) -> Option<Result<SpiffeId, NotReviewed>> {
        let reviewer = self.reviewer.get()?;
        let token = std::str::from_utf8(token).ok()?;
        let is_jwt = token.len() <= jwt::MAX_BYTES && token.matches('.').count() == 2;
        let reviewed = match is_jwt {
            true => reviewer.review(token).await,
            false => return None,
        };
        Some(reviewed.map(|Reviewed { namespace, service_account, .. }| {
            SpiffeId::new(&self.settings.trust_domain, &namespace, &service_account)
        }))
    }

    /// The TLS of our own ports. Take the latest for each connection.
    pub fn server(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.server.subscribe()
    }

    /// A certificate for another port of ours, which is called by these names, too. Take a new one whenever
    /// [`Authority::server`] changes: it lives as long, and is under the same root.
    ///
    /// # Errors
    /// When the signer is at its end, or a host is not a name.
    pub fn port_certificate(&self, more_hosts: &[String]) -> Result<PortCertificate, Error> {
        let mut hosts = hosts(&self.settings);
        hosts.extend(more_hosts.iter().cloned());
        let id = own_id(&self.settings.trust_domain);
        PortCertificate::new(&self.trust(), &id, &hosts, self.settings.ttl, now())
    }

    /// The identity in a client certificate that TLS has verified.
    ///
    /// # Errors
    /// [`PeerError`]: not exactly one URI, or not an identity of this mesh.
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
        self.verified(chain).map(|(id, _)| id)
    }

    /// Who is at the other end of a TLS connection with these client certificates, if any.
    ///
    /// # Errors
    /// As [`Authority::peer`].
    pub fn connection(
        &self,
        remote: std::net::SocketAddr,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<Peer, PeerError> {
        let verified = chain.filter(|chain| !chain.is_empty()).map(|chain| self.verified(chain));
        let (identity, not_after) = verified.transpose()?.unzip();
        let chain = chain.unwrap_or_default().iter();
        let chain = chain.map(|certificate| certificate.clone().into_owned()).collect();
        Ok(Peer { tls: true, identity, not_after, chain, ..Peer::plain(remote) })
    }

    /// Whether the certificate of a connection would still be accepted now: it has not ended, and its root is trusted.
    pub fn is_current(&self, peer: &Peer) -> bool {
        let now = now();
        // Where nobody said when it ends, it cannot be relied upon.
        peer.not_after.is_some_and(|end| end > now) && self.trust().accepts(&peer.chain, now)
    }

    /// The trusted roots as PEM.
    pub fn bundle_pem(&self) -> String {
        self.trust().pem()
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.settings.trust_domain
    }

    /// The last certificate issued to each proxy, by name.
    pub fn certificates(&self) -> Vec<Certificate> {
        self.audit.certificates()
    }

    /// The gRPC service `leno.ca.v1.CertificateAuthority`; needs a [`Peer`] in each request's extensions.
    pub fn service(self: Arc<Self>) -> CertificateAuthorityServer<Service> {
        CertificateAuthorityServer::new(Service::new(self))
            .max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// Enters the authority's metrics.
    ///
    /// # Errors
    /// When one of these names is there already.
    pub fn register(&self, registry: &prometheus::Registry) -> prometheus::Result<()> {
        self.metrics.register(registry)
    }

    pub(super) fn trust(&self) -> Arc<Trust> {
        self.trust.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn generation(&self) -> Option<u64> {
        Some(self.generation.load(Ordering::Acquire)).filter(|generation| *generation != 0)
    }

    /// From now on this is trusted. Nothing is known of a bundle that says so.
    pub(super) fn adopt(&self, trust: Trust) {
        self.generation.store(0, Ordering::Release);
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trust);
    }

    /// # Errors
    /// When the store cannot be written.
    pub(super) async fn publish(&self) -> Result<(), Error> {
        let trust = self.trust();
        let domain = self.settings.trust_domain.as_str();
        let generation = bundle::publish(self.store.as_ref(), domain, &trust).await?;
        self.generation.store(generation, Ordering::Release);
        Ok(())
    }

    /// A new certificate of our own ports under what is trusted now.
    ///
    /// # Errors
    /// When none can be made; the one before stays.
    pub(super) fn serve_anew(&self, serving: &mut Serving) -> Result<(), Error> {
        let (trust, settings) = (self.trust(), &self.settings);
        let id = own_id(&settings.trust_domain);
        *serving = Serving::new(&trust, &id, &hosts(settings), settings.ttl, now())?;
        self.server.send_replace(serving.config.clone());
        self.metrics.serving_expiry.set(serving.not_after);
        Ok(())
    }

    fn verified(&self, chain: &[CertificateDer<'_>]) -> Result<(SpiffeId, i64), PeerError> {
        let leaf = chain.first().ok_or(PeerError::Malformed)?;
        let parsed = parse_x509_certificate(leaf).map_err(|_| PeerError::Malformed)?;
        let (_, certificate) = parsed;
        let mut uris = Vec::new();
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => uris.push(*uri),
                            // It may be a URI to somebody else.
                            GeneralName::Invalid(..) => return Err(PeerError::Malformed),
                            _ => {}
                        }
                    }
                }
                ParsedExtension::ParseError { .. } => return Err(PeerError::Malformed),
                _ => {}
            }
        }
        let [uri] = uris[..] else { return Err(PeerError::NotOneUri(uris.len())) };
        let id = SpiffeId::parse(uri).map_err(PeerError::BadIdentity)?;
        if id.trust_domain != self.settings.trust_domain {
            let expected = self.settings.trust_domain.clone();
            return Err(PeerError::OtherTrustDomain { found: id.trust_domain, expected });
        }
        Ok((id, certificate.validity().not_after.timestamp()))
    }
}

/// The control plane's own identity, which is issued to nobody else.
pub(super) fn own_id(trust_domain: &TrustDomain) -> SpiffeId {
    SpiffeId::new(trust_domain, SYSTEM_NAMESPACE, CONTROL_PLANE_ACCOUNT)
}

fn read(settings: &Settings, roots: &Roots) -> Result<(Trust, Option<Contents>), Error> {
    match &settings.user {
        Some(files) => {
            let contents = Contents::read(files)?;
            Ok((contents.trust(files, now())?, Some(contents)))
        }
        None => Ok((roots.trust(roots.state(now())?, now())?, None)),
    }
}

/// Under which our own ports are called.
fn hosts(settings: &Settings) -> Vec<String> {
    let loopback = ["localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned);
    let bound = settings.bind.iter().filter(|address| !address.is_unspecified());
    let bound = bound.map(IpAddr::to_string);
    let mut hosts: Vec<String> = Vec::new();
    for host in loopback.into_iter().chain(bound).chain(settings.hosts.iter().cloned()) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

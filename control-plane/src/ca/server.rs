//! The gRPC service: proof, request, limits, certificate, audit; in this order, so that strangers cost little.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::spawn_blocking;
use tonic::{Code, Request, Response, Status};

use super::{
    Authority, Certificate, FileError, MIN_TTL, Peer,
    audit::Refusal,
    authn::{NoProof, NotReviewed, Proofs, Proven},
    authority::own_id,
    issue::{self, BadRequest, CannotSign, Foreign, Leaf, Terms},
    limits::Exceeded,
    now,
    proto::{self, IssueRequest, IssueResponse},
    root::Trust,
};
use crate::access::TokenError;

/// Largest request: a signing request and some names.
pub const MAX_REQUEST_BYTES: usize = issue::MAX_CSR_BYTES + 16 * 1024;
/// Longest name of a proxy: that of a pod in a namespace.
const MAX_PROXY: usize = 253;

/// Serves [`Authority`].
pub struct Service {
    authority: Arc<Authority>,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Proof(#[from] NoProof),
    #[error(transparent)]
    Foreign(#[from] Foreign),
    #[error("{0} is the control plane's own identity")]
    OurOwn(String),
    #[error(transparent)]
    Request(#[from] BadRequest),
    #[error(
        "the proxy must say what people know it by: `proxy`, 1 to {MAX_PROXY} bytes without control characters"
    )]
    ProxyName,
    #[error(transparent)]
    Rate(#[from] Exceeded),
    #[error(transparent)]
    Sign(#[from] CannotSign),
    #[error("the audit log cannot be written, and nothing is issued without it")]
    Audit(#[source] FileError),
    #[error("the token cannot be marked as used, and nothing is issued without that")]
    Consume(#[source] TokenError),
    #[error("the control plane is stopping")]
    Stopping,
}

impl Service {
    pub(super) fn new(authority: Arc<Authority>) -> Self {
        Self { authority }
    }

    async fn answer(
        &self,
        peer: &Peer,
        authorization: Option<&[u8]>,
        request: &IssueRequest,
    ) -> Result<IssueResponse, Refused> {
        let authority = &self.authority;
        let proofs = Proofs {
            trust_domain: &authority.settings.trust_domain,
            trust: &authority.trust(),
            tokens: &authority.tokens,
            issuer: authority.issuer.as_ref(),
            reviewer: authority.reviewer.get().map(AsRef::as_ref),
            now: now(),
        };
        let wanted = (request.namespace.as_str(), request.service_account.as_str());
        let proven = proofs.check(peer, authorization, wanted).await?;
        let csr = self.check(&proven, request)?;
        self.limit(&proven, request)?;
        self.consume(&proven).await?;
        let trust = authority.trust();
        let terms =
            Terms { serial: rand::random(), now: now(), ttl: self.ttl(request.ttl_seconds) };
        let leaf = trust.signer.svid(&csr.key, &proven.id, terms)?;
        let certificate = certificate(request, &proven, &leaf, &trust);
        self.write_down(terms.now, peer, proven.by, certificate).await?;
        authority.metrics.issued.inc();
        Ok(response(authority, leaf, &trust))
    }

    fn check(&self, proven: &Proven, request: &IssueRequest) -> Result<issue::Request, Refused> {
        let name = &request.proxy;
        if name.is_empty() || name.len() > MAX_PROXY || name.chars().any(char::is_control) {
            return Err(Refused::ProxyName);
        }
        let csr = issue::Request::read(&request.csr)?;
        csr.check_identity(&proven.id, &request.namespace, &request.service_account)?;
        if proven.id == own_id(&self.authority.settings.trust_domain) {
            return Err(Refused::OurOwn(proven.id.to_string()));
        }
        Ok(csr)
    }

    fn limit(&self, proven: &Proven, request: &IssueRequest) -> Result<(), Refused> {
        let limits = &self.authority.limits;
        let mut limits = limits.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(limits.issue(&proven.id.to_string(), &request.proxy, Instant::now())?)
    }

    /// Away from the threads that serve: disks can be slow.
    async fn write_down(
        &self,
        time: i64,
        peer: &Peer,
        by: String,
        certificate: Certificate,
    ) -> Result<(), Refused> {
        let (authority, remote) = (self.authority.clone(), peer.remote.to_string());
        let write = move || authority.audit.issued(time, &remote, &by, certificate);
        spawn_blocking(write).await.map_err(|_| Refused::Stopping)?.map_err(Refused::Audit)
    }

    /// On the disk before the certificate is made. A token that somebody else used meanwhile is refused.
    async fn consume(&self, proven: &Proven) -> Result<(), Refused> {
        let Some(token) = proven.once.clone() else { return Ok(()) };
        let tokens = self.authority.tokens.clone();
        let consumed = spawn_blocking(move || tokens.consume(&token)).await;
        match consumed.map_err(|_| Refused::Stopping)?.map_err(Refused::Consume)? {
            true => Ok(()),
            false => Err(NoProof::UsedToken(proven.by.clone()).into()),
        }
    }

    /// A proxy may ask for less than the authority gives, not for more.
    fn ttl(&self, seconds: u32) -> Duration {
        let most = self.authority.settings.ttl;
        match seconds {
            0 => most,
            _ => Duration::from_secs(seconds.into()).clamp(MIN_TTL, most),
        }
    }

    async fn refuse(&self, peer: &Peer, request: IssueRequest, refused: &Refused) -> Status {
        let (code, label) = refused.class();
        self.authority.metrics.refused.with_label_values(&[label]).inc();
        let reason = refused.to_string();
        if let Some(source) = std::error::Error::source(refused) {
            tracing::error!(reason, %source, "a certificate could not be issued");
        }
        let IssueRequest { proxy, namespace, service_account, .. } = request;
        let refusal = Refusal { proxy, namespace, service_account, reason: reason.clone() };
        let (authority, remote) = (self.authority.clone(), peer.remote);
        let write = move || authority.audit.refused(now(), &remote.to_string(), refusal);
        if let Ok(Err(error)) = spawn_blocking(write).await {
            tracing::error!(%error, reason, %remote, "a refusal is missing from the audit log");
        }
        Status::new(code, reason)
    }
}

#[tonic::async_trait]
impl proto::certificate_authority_server::CertificateAuthority for Service {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("nothing is known of this connection"))?;
        let limits = &self.authority.limits;
        let called = limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .call(peer.remote.ip(), Instant::now());
        if let Err(exceeded) = called {
            // Counted only: whoever calls without end must not push everything else out of the audit log.
            self.authority.metrics.refused.with_label_values(&["rate"]).inc();
            return Err(Status::resource_exhausted(exceeded.to_string()));
        }
        let authorization = request.metadata().get("authorization").cloned();
        let authorization = authorization.as_ref().map(|value| value.as_bytes());
        let request = request.into_inner();
        match self.answer(&peer, authorization, &request).await {
            Ok(response) => Ok(Response::new(response)),
            Err(refused) => Err(self.refuse(&peer, request, &refused).await),
        }
    }
}

impl Refused {
    /// What the caller is told, and the metric's label.
    fn class(&self) -> (Code, &'static str) {
        match self {
            Self::Proof(NoProof::OtherCertificate(_) | NoProof::NotAWorkload(_))
            | Self::Foreign(_)
            | Self::OurOwn(_) => (Code::PermissionDenied, "identity"),
            Self::Proof(
                NoProof::Tokens(_)
                | NoProof::Jwt(super::jwks::Unproven::NoKeys)
                | NoProof::Reviewed(NotReviewed::Unavailable),
            ) => (Code::Unavailable, "internal"),
            Self::Proof(_) => (Code::Unauthenticated, "proof"),
            Self::Request(_) | Self::ProxyName => (Code::InvalidArgument, "request"),
            Self::Rate(_) => (Code::ResourceExhausted, "rate"),
            Self::Sign(_) | Self::Audit(_) | Self::Consume(_) | Self::Stopping => {
                (Code::Unavailable, "internal")
            }
        }
    }
}

fn certificate(request: &IssueRequest, proven: &Proven, leaf: &Leaf, trust: &Trust) -> Certificate {
    Certificate {
        proxy: request.proxy.clone(),
        spiffe_id: proven.id.to_string(),
        serial: leaf.serial.clone(),
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        signer: trust.signer.root.clone(),
    }
}

fn response(authority: &Authority, leaf: Leaf, trust: &Trust) -> IssueResponse {
    let mut chain = vec![leaf.der.to_vec()];
    chain.extend(trust.signer.chain.iter().map(|der| der.to_vec()));
    IssueResponse {
        chain,
        roots: trust.roots.iter().map(|root| root.der.to_vec()).collect(),
        trust_domain: authority.settings.trust_domain.to_string(),
        signer: trust.signer.root.clone(),
    }
}

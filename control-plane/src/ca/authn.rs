//! Who asks, by what they prove it with: the certificate of the connection, a join token, or a JWT.

use futures_util::future::BoxFuture;
use leno_api::model::identity::{SpiffeId, TrustDomain};

use super::{
    Peer,
    jwks::{Issuer, Unproven},
    jwt,
    root::Trust,
};
use crate::access::{DEFAULT_ACCOUNT, Role, TokenError, TokenFile, TokenInfo, bearer};

/// A proven identity. Not to be shown, since the token is in it.
pub struct Proven {
    pub id: SpiffeId,
    /// For the audit log; no secret.
    pub by: String,
    /// A token that must be used up before the certificate leaves.
    pub once: Option<Vec<u8>>,
}

/// Whose a token is, by somebody else's word: Kubernetes'.
pub trait Reviewer: std::fmt::Debug + Send + Sync {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Reviewed, NotReviewed>>;
}

/// What a reviewed token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    pub namespace: String,
    pub service_account: String,
    /// The pod to which the token is bound.
    pub pod: Option<String>,
}

/// Why a review proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReviewed {
    #[error("{0}")]
    Refused(String),
    #[error(
        "whose this service-account token is cannot be asked: the Kubernetes API server does not answer the control plane; try again later"
    )]
    Unavailable,
}

/// Why nothing is proven.
#[derive(Debug, thiserror::Error)]
pub enum NoProof {
    #[error(
        "certificates are issued over TLS only: connect with https:// and the bootstrap bundle"
    )]
    Plaintext,
    #[error(
        "no proof of identity: send a join token or a JWT (`authorization: Bearer <token>`), or connect with a certificate that is still valid"
    )]
    Nothing,
    #[error("the authorization header must read `Bearer <token>`")]
    NotBearer,
    #[error(
        "the client certificate of this connection has ended: prove your identity anew with a join token"
    )]
    CertificateEnded,
    #[error(
        "the client certificate of this connection is under a root that is no longer trusted: prove your identity anew with a join token"
    )]
    CertificateNotTrusted,
    #[error(
        "the client certificate of this connection is of {0}: it renews that identity and no other"
    )]
    OtherCertificate(SpiffeId),
    #[error("the join token is not known: make one with `leno token create NAME --role workload`")]
    UnknownToken,
    #[error("the join token {0:?} has expired: make a new one with `leno token create`")]
    ExpiredToken(String),
    #[error("the join token {0:?} was for one certificate and has been used")]
    UsedToken(String),
    #[error("the token {0:?} is not a workload's: a certificate needs one with the role workload")]
    NotAWorkload(String),
    #[error("JWTs are not accepted: no issuer of them was named (--join-jwks)")]
    NoIssuer,
    #[error(transparent)]
    Jwt(#[from] Unproven),
    #[error(transparent)]
    Reviewed(#[from] NotReviewed),
    #[error("{0:?} proves an identity that cannot be: {1}")]
    BadIdentity(String, String),
    #[error("tokens cannot be checked now")]
    Tokens(#[source] TokenError),
}

/// With what proofs are checked.
pub struct Proofs<'a> {
    pub trust_domain: &'a TrustDomain,
    pub trust: &'a Trust,
    pub tokens: &'a TokenFile,
    pub issuer: Option<&'a Issuer>,
    pub reviewer: Option<&'a dyn Reviewer>,
    /// Unix seconds.
    pub now: i64,
}

impl Proofs<'_> {
    /// A certificate of the identity that is asked for comes first: it uses up no token. Any other certificate proves
    /// nothing here, and then only a token can.
    ///
    /// # Errors
    /// [`NoProof`].
    pub async fn check(
        &self,
        peer: &Peer,
        authorization: Option<&[u8]>,
        wanted: (&str, &str),
    ) -> Result<Proven, NoProof> {
        if !peer.tls {
            return Err(NoProof::Plaintext);
        }
        match (self.certificate(peer, wanted), authorization) {
            (Some(Ok(proven)), _) => Ok(proven),
            (_, Some(authorization)) => {
                self.bearer(bearer(authorization).ok_or(NoProof::NotBearer)?).await
            }
            (Some(Err(reason)), None) => Err(reason),
            (None, None) => Err(NoProof::Nothing),
        }
    }

    fn certificate(&self, peer: &Peer, wanted: (&str, &str)) -> Option<Result<Proven, NoProof>> {
        let id = peer.identity.as_ref()?;
        // Where nobody said when it ends, it cannot be relied upon.
        if peer.not_after.is_none_or(|end| end <= self.now) {
            return Some(Err(NoProof::CertificateEnded));
        }
        if (&*id.namespace, &*id.service_account) != wanted {
            return Some(Err(NoProof::OtherCertificate(id.clone())));
        }
        if !self.trust.accepts(&peer.chain, self.now) {
            return Some(Err(NoProof::CertificateNotTrusted));
        }
        Some(Ok(Proven { id: id.clone(), by: "certificate".into(), once: None }))
    }

    async fn bearer(&self, token: &[u8]) -> Result<Proven, NoProof> {
        if token.len() > jwt::MAX_BYTES {
            return Err(Unproven::Bad(jwt::BadToken::TooLarge(token.len())).into());
        }
        if let Some(found) = self.tokens.find(token).map_err(NoProof::Tokens)? {
            return self.join_token(found, token);
        }
        // Join tokens have no dots.
        if token.iter().filter(|byte| **byte == b'.').count() != 2 {
            return Err(NoProof::UnknownToken);
        }
        if let Some(reviewer) = self.reviewer {
            match self.reviewed(reviewer, token).await {
                // An issuer that was named beside may know it.
                Err(NoProof::Reviewed(NotReviewed::Refused(_))) if self.issuer.is_some() => {}
                reviewed => return reviewed,
            }
        }
        let account = self.issuer.ok_or(NoProof::NoIssuer)?.check(token, self.now).await?;
        let by = format!("JWT of {}/{}", account.namespace, account.service_account);
        let id = self.identity(&by, &account.namespace, &account.service_account)?;
        Ok(Proven { id, by, once: None })
    }

    async fn reviewed(&self, reviewer: &dyn Reviewer, token: &[u8]) -> Result<Proven, NoProof> {
        let token = std::str::from_utf8(token).map_err(|_| NoProof::UnknownToken)?;
        let Reviewed { namespace, service_account, pod } = reviewer.review(token).await?;
        let mut by = format!("service-account token of {namespace}/{service_account}");
        if let Some(pod) = pod {
            by = format!("{by} for the pod {pod:?}");
        }
        let id = self.identity(&by, &namespace, &service_account)?;
        Ok(Proven { id, by, once: None })
    }

    fn join_token(&self, found: TokenInfo, token: &[u8]) -> Result<Proven, NoProof> {
        let TokenInfo { name, role, namespace, service_account, .. } = &found;
        if found.used {
            return Err(NoProof::UsedToken(name.clone()));
        }
        if found.is_expired(u64::try_from(self.now).unwrap_or(0)) {
            return Err(NoProof::ExpiredToken(name.clone()));
        }
        let (Role::Workload, Some(namespace)) = (role, namespace) else {
            return Err(NoProof::NotAWorkload(name.clone()));
        };
        let account = service_account.as_deref().unwrap_or(DEFAULT_ACCOUNT);
        let by = format!("join token {name:?}");
        let id = self.identity(&by, namespace, account)?;
        Ok(Proven { id, by, once: found.once.then(|| token.to_vec()) })
    }

    /// What tokens say has been checked by others, if at all.
    fn identity(&self, by: &str, namespace: &str, account: &str) -> Result<SpiffeId, NoProof> {
        let id = SpiffeId::new(self.trust_domain, namespace, account).to_string();
        SpiffeId::parse(&id).map_err(|reason| NoProof::BadIdentity(by.to_owned(), reason))
    }
}

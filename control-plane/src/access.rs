//! Who may do what: bearer tokens with a role each.
//!
//! Tokens live in `tokens.json` in the data directory as SHA-256 digests (the tokens are 256
//! random bits, so that a slow hash would add nothing) and are read again when the file changes.
//! On a loopback bind callers without a token are administrators, since whoever can connect can
//! also read the data directory of a locally started control plane; `--require-token` ends that,
//! and any other bind never had it.
//!
//! - `tokens.rs`: the file; `member.rs`: proxies as they are told apart; this file: the decisions

mod member;
#[cfg(test)]
mod tests;
mod tokens;

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc};

use leno_api::model::identity::SpiffeId;
use serde::{Deserialize, Serialize};

pub use self::{
    member::{Member, shown},
    tokens::{NewToken, TokenError, TokenFile, TokenInfo},
};

/// The account of a workload's token that names none.
pub const DEFAULT_ACCOUNT: &str = "default";

/// What the bearer of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Admin,
    /// Read everything.
    Viewer,
    /// Register, renew and remove workloads under a lease, in one namespace.
    Workload,
}

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
    pub role: Role,
    /// The namespace of a workload's token or certificate.
    pub namespace: Option<String>,
    /// The service account of a workload's certificate, or of its token where that names one.
    pub service_account: Option<String>,
}

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Learn which kinds exist and what they look like.
    Discover,
    Read(Target<'a>),
    Write(Target<'a>),
}

/// What a request is about: a kind, in a namespace or in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    pub group: &'a str,
    pub plural: &'a str,
    pub namespace: Option<&'a str>,
}

#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error(
        "no bearer token was sent, and this control plane requires one: add `authorization: Bearer <token>` (kubectl: --token)"
    )]
    NoToken,
    #[error("the authorization header must read `Bearer <token>`")]
    NotBearer,
    #[error("the bearer token is not known: tokens are listed in {}", .0.display())]
    Unknown(PathBuf),
    #[error("the token {0:?} has expired: make a new one with `leno token create`")]
    Expired(String),
    #[error("the token {0:?} is for one certificate and nothing else")]
    OnlyForACertificate(String),
    #[error("{caller} may not {action}")]
    NotAllowed { caller: String, action: String },
    #[error(transparent)]
    Tokens(#[from] TokenError),
}

/// Decides about every request.
#[derive(Debug)]
pub struct Access {
    tokens: Arc<TokenFile>,
    anonymous: bool,
}

impl Access {
    /// For an API bound to `bind`. Without a token only a loopback bind can be used, and only
    /// where `require_token` is not set.
    pub fn new(tokens: impl Into<Arc<TokenFile>>, bind: SocketAddr, require_token: bool) -> Self {
        Self { tokens: tokens.into(), anonymous: bind.ip().is_loopback() && !require_token }
    }

    /// Who sends the request, by its `authorization` header.
    pub fn caller(&self, authorization: Option<&[u8]>) -> Result<Caller, Denied> {
        let Some(authorization) = authorization else {
            return if self.anonymous { Ok(Caller::anonymous()) } else { Err(Denied::NoToken) };
        };
        let token = bearer(authorization).ok_or(Denied::NotBearer)?;
        let found = self.tokens.find(token)?;
        let found = found.ok_or_else(|| Denied::Unknown(self.tokens.path().to_owned()))?;
        if found.once {
            return Err(Denied::OnlyForACertificate(found.name));
        }
        if !found.is_good(tokens::now()) {
            return Err(Denied::Expired(found.name));
        }
        Ok(Caller::bearer(found))
    }
}

impl Caller {
    fn anonymous() -> Self {
        Self {
            name: "anonymous on loopback".into(),
            role: Role::Admin,
            namespace: None,
            service_account: None,
        }
    }

    fn bearer(token: TokenInfo) -> Self {
        let TokenInfo { name, role, namespace, service_account, .. } = token;
        Self { name, role, namespace, service_account }
    }

    /// Whoever holds a certificate of this identity: a workload of that namespace and service account.
    pub fn workload(id: &SpiffeId) -> Self {
        Self {
            name: id.to_string(),
            role: Role::Workload,
            namespace: Some(id.namespace.to_string()),
            service_account: Some(id.service_account.to_string()),
        }
    }

    /// Whether it may have the configuration of a proxy in this namespace. A workload's token without one, which only a
    /// file written by hand can hold, is good for none.
    pub fn speaks_for(&self, namespace: &str) -> bool {
        match (self.role, self.namespace.as_deref()) {
            (Role::Viewer, _) => false,
            (Role::Admin, None) => true,
            (_, own) => own == Some(namespace),
        }
    }

    pub fn may(&self, action: Action<'_>) -> Result<(), Denied> {
        let allowed = match (self.role, action) {
            (Role::Admin, _) | (_, Action::Discover) | (Role::Viewer, Action::Read(_)) => true,
            (Role::Viewer, Action::Write(_)) => false,
            (Role::Workload, Action::Read(target) | Action::Write(target)) => {
                (target.group, target.plural) == ("leno.dev", "workloads")
                    && target.namespace.is_some()
                    && target.namespace == self.namespace.as_deref()
            }
        };
        if allowed {
            return Ok(());
        }
        Err(Denied::NotAllowed { caller: self.to_string(), action: action.to_string() })
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} (role {:?}", self.name, self.role)?;
        match &self.namespace {
            Some(namespace) => write!(out, " of namespace {namespace:?})"),
            None => out.write_str(")"),
        }
    }
}

impl fmt::Display for Action<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, target) = match self {
            Self::Discover => return out.write_str("discover the API"),
            Self::Read(target) => ("read", target),
            Self::Write(target) => ("write", target),
        };
        write!(out, "{verb} {}", target.plural)?;
        match target.namespace {
            Some(namespace) => write!(out, " in namespace {namespace:?}"),
            None => out.write_str(" in all namespaces"),
        }
    }
}

/// The token of an `authorization` header; `None` where it is not `Bearer <token>`.
pub fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

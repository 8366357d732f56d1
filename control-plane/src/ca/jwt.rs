//! JWTs that prove an identity: Kubernetes service-account tokens and what looks like them. Pure.
//!
//! The key says which algorithms it may be used with, never the token (RFC 8725 section 3.1); symmetric keys and `none`
//! are unknown here.

use std::time::Duration;

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// Largest token that is looked at; those of Kubernetes have about 1 KiB.
pub const MAX_BYTES: usize = 16 * 1024;
/// Largest document of keys.
pub const MAX_KEYS_BYTES: usize = 1024 * 1024;
/// Keys that are kept of one document: issuers have two or three.
const MAX_KEYS: usize = 100;
/// Clocks may differ by this much.
const LEEWAY: Duration = Duration::from_secs(60);

/// The keys of an issuer.
pub struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// What a token must say.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub issuer: &'a str,
    pub audience: &'a str,
    /// Unix seconds.
    pub now: i64,
}

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub namespace: String,
    pub service_account: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadToken {
    #[error("the token has {0} bytes, at most {MAX_BYTES} are accepted")]
    TooLarge(usize),
    #[error(
        "the token is not a JWT that can be used here: it must be signed with an asymmetric key"
    )]
    Malformed,
    /// RFC 7515 section 4.1.11.
    #[error(
        "the token has extensions that whoever reads it must know (`crit`): none is known here"
    )]
    Critical,
    /// The keys may have changed since.
    #[error("the token's key {0:?} is not among the issuer's")]
    UnknownKey(Option<String>),
    #[error("the token's algorithm is not one of its key's")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has no usable claim {0:?}")]
    Claim(&'static str),
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token expired {0} s ago")]
    Expired(i64),
    #[error("the token is valid only in {0} s; are the clocks right?")]
    NotYet(i64),
    #[error(
        "the token's subject is no service account: system:serviceaccount:<namespace>:<account>"
    )]
    Subject,
    #[error("the token's subject and its claim kubernetes.io name different accounts")]
    Contradiction,
}

/// Read loosely and checked afterwards, so that each wrong claim has its own message.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: Option<Value>,
    aud: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    sub: Option<Value>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Value>,
}

impl Keys {
    /// Reads a JWKS (RFC 7517). Keys that cannot sign tokens for us are left out.
    ///
    /// # Errors
    /// Where the document is no JWKS or no key of it can be used.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_KEYS_BYTES {
            return Err(format!("more than {MAX_KEYS_BYTES} bytes"));
        }
        let document: Value =
            serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
        let all = document.get("keys").and_then(Value::as_array);
        let all = all.ok_or("not a JWKS: it has no array \"keys\"")?;
        if all.len() > MAX_KEYS {
            return Err(format!("{} keys, at most {MAX_KEYS} are accepted", all.len()));
        }
        let keys: Vec<Key> = all.iter().filter_map(Key::read).collect();
        if keys.is_empty() {
            return Err(
                "no key in it can be used: RSA, P-256, P-384 or Ed25519, for signatures".into()
            );
        }
        Ok(Self(keys))
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// [`BadToken`] says what is wrong with it.
    pub fn check(&self, token: &[u8], expected: Expected<'_>) -> Result<Account, BadToken> {
        if token.len() > MAX_BYTES {
            return Err(BadToken::TooLarge(token.len()));
        }
        let header = decode_header(token).map_err(|_| BadToken::Malformed)?;
        if header.crit.is_some() {
            return Err(BadToken::Critical);
        }
        let key = self.find(header.kid.as_deref());
        let key = key.ok_or_else(|| BadToken::UnknownKey(header.kid.as_deref().map(shown)))?;
        if !key.algorithms.contains(&header.alg) {
            return Err(BadToken::Algorithm);
        }
        let decoded = decode::<Claims>(token, &key.key, &signature_only(header.alg));
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => BadToken::Signature,
            ErrorKind::InvalidAlgorithm => BadToken::Algorithm,
            _ => BadToken::Malformed,
        })?;
        claims.claims.account(expected)
    }

    /// A token that names no key can only mean the one there is.
    fn find(&self, id: Option<&str>) -> Option<&Key> {
        match (id, self.0.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
        }
    }
}

impl Key {
    fn read(value: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let for_signatures = |usage: &PublicKeyUse| *usage == PublicKeyUse::Signature;
        if !jwk.common.public_key_use.as_ref().is_none_or(for_signatures) {
            return None;
        }
        let mut algorithms = possible(&jwk.algorithm);
        if let Some(pinned) = jwk.common.key_algorithm {
            algorithms.retain(|algorithm| KeyAlgorithm::from(*algorithm) == pinned);
        }
        if algorithms.is_empty() {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithms, key })
    }
}

impl Claims {
    fn account(&self, expected: Expected<'_>) -> Result<Account, BadToken> {
        if text(self.iss.as_ref(), "iss")? != expected.issuer {
            return Err(BadToken::Issuer);
        }
        if !self.is_for(expected.audience)? {
            return Err(BadToken::Audience);
        }
        let leeway = super::issue::seconds(LEEWAY);
        let end = seconds(self.exp.as_ref()).ok_or(BadToken::Claim("exp"))?;
        if end.saturating_add(leeway) <= expected.now {
            return Err(BadToken::Expired(expected.now.saturating_sub(end)));
        }
        if self.nbf.is_some() {
            let start = seconds(self.nbf.as_ref()).ok_or(BadToken::Claim("nbf"))?;
            if start.saturating_sub(leeway) > expected.now {
                return Err(BadToken::NotYet(start.saturating_sub(expected.now)));
            }
        }
        self.subject()
    }

    fn is_for(&self, audience: &str) -> Result<bool, BadToken> {
        match &self.aud {
            Some(Value::String(only)) => Ok(only == audience),
            Some(Value::Array(several)) => {
                Ok(several.iter().any(|one| one.as_str() == Some(audience)))
            }
            _ => Err(BadToken::Claim("aud")),
        }
    }

    fn subject(&self) -> Result<Account, BadToken> {
        let subject = text(self.sub.as_ref(), "sub")?;
        let parts: Vec<&str> = subject.split(':').collect();
        let ["system", "serviceaccount", namespace, service_account] = parts[..] else {
            return Err(BadToken::Subject);
        };
        if let Some(kubernetes) = &self.kubernetes {
            let said = kubernetes.get("namespace").and_then(Value::as_str);
            let account = kubernetes.get("serviceaccount").and_then(|account| account.get("name"));
            let account = account.and_then(Value::as_str);
            if said.is_some_and(|said| said != namespace)
                || account.is_some_and(|said| said != service_account)
            {
                return Err(BadToken::Contradiction);
            }
        }
        let (namespace, service_account) = (namespace.to_owned(), service_account.to_owned());
        Ok(Account { namespace, service_account })
    }
}

/// The claims are for [`Claims::account`], whose clock is handed in.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn possible(parameters: &AlgorithmParameters) -> Vec<Algorithm> {
    match parameters {
        AlgorithmParameters::RSA(_) => vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            vec![Algorithm::ES256]
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
            vec![Algorithm::ES384]
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            vec![Algorithm::EdDSA]
        }
        _ => Vec::new(),
    }
}

fn text<'a>(claim: Option<&'a Value>, name: &'static str) -> Result<&'a str, BadToken> {
    claim.and_then(Value::as_str).ok_or(BadToken::Claim(name))
}

/// A NumericDate, which may have a fraction (RFC 7519 section 2).
fn seconds(claim: Option<&Value>) -> Option<i64> {
    let claim = claim?;
    #[expect(clippy::cast_possible_truncation, reason = "casts from floats saturate")]
    let fraction = || claim.as_f64().filter(|float| float.is_finite()).map(|float| float as i64);
    claim.as_i64().or_else(fraction)
}

fn shown(id: &str) -> String {
    id.chars().take(100).collect()
}

#[cfg(test)]
mod tests;

//! One token, checked (RFC 7515, RFC 7519, RFC 8725). Pure: keys and the time come in.
//!
//! What the token says about itself chooses nothing but a key among the issuer's; which algorithms that key is for was
//! fixed when the key was read.

mod json;
mod key_set;

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

pub use key_set::KeySet;

/// Longest token: four times what identity providers make of a user in many groups, and well within a head.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not `header.payload.signature`, not JSON, a claim twice or of a wrong type.
    #[error("the token is malformed")]
    Malformed,
    /// No key of the issuer fits, or its keys have not been fetched yet.
    #[error("no key of the issuer fits the token")]
    NoKey,
    /// `none`, symmetric, unknown, or not that of the key.
    #[error("the token's algorithm is not that of the key")]
    Algorithm,
    /// Not signed by the key.
    #[error("the token's signature is wrong")]
    Signature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// No rule for its issuer.
    #[error("the token's issuer is not configured")]
    Issuer,
    /// Meant for somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// Over [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLarge,
}

impl Refused {
    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoKey => "no_key",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::TooLarge => "too_large",
        }
    }
}

/// What a rule wants of a token beside its signature.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its `iss`, byte for byte.
    pub issuer: Box<str>,
    /// One of these must be in `aud`; any will do when it is empty.
    pub audiences: Box<[Box<str>]>,
    /// Seconds by which clocks may differ.
    pub leeway: u64,
}

/// A token whose form is right, and of which nothing is proven yet.
pub struct Unverified<'a> {
    signed: &'a str,
    signature: &'a str,
    algorithm: Algorithm,
    key: Option<String>,
    token: Token,
}

/// What a verified token says.
pub struct Token {
    issuer: String,
    principal: Option<String>,
    audiences: Vec<String>,
    expires: Option<f64>,
    not_before: Option<f64>,
    claims: Map<String, Value>,
    payload: Box<str>,
}

impl<'a> Unverified<'a> {
    /// Reads a token in its compact form.
    ///
    /// # Errors
    /// When it is too long, not of this form, or its algorithm is none that is ever accepted.
    pub fn parse(text: &'a str) -> Result<Self, Refused> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Refused::TooLarge);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Refused::Malformed)?;
        let header = object(header)?;
        // RFC 7515 section 4.1.11: whoever does not know an extension that is critical must refuse. None is known here.
        if header.contains_key("crit") {
            return Err(Refused::Malformed);
        }
        let name = string(&header, "alg")?.ok_or(Refused::Malformed)?;
        let algorithm = key_set::algorithm(name).ok_or(Refused::Algorithm)?;
        let key = string(&header, "kid")?.map(str::to_owned);
        let token = Token::read(object(payload)?, payload)?;
        Ok(Self { signed, signature, algorithm, key, token })
    }

    /// Its `iss`; empty without one.
    pub fn issuer(&self) -> &str {
        &self.token.issuer
    }

    /// Whether it names the key it was signed with.
    pub fn names_key(&self) -> bool {
        self.key.is_some()
    }

    /// Proves it: signature, issuer, audience and time (`now` in Unix seconds).
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn verify(self, expected: &Expected, keys: &KeySet, now: u64) -> Result<Token, Refused> {
        let key = keys.select(self.key.as_deref(), self.algorithm)?;
        if !key.has_signed(self.signed, self.signature, self.algorithm) {
            return Err(Refused::Signature);
        }
        if *self.token.issuer != *expected.issuer {
            return Err(Refused::Issuer);
        }
        let wanted =
            |audience: &String| expected.audiences.iter().any(|wanted| **wanted == **audience);
        if !expected.audiences.is_empty() && !self.token.audiences.iter().any(wanted) {
            return Err(Refused::Audience);
        }
        self.token.is_valid_at(now, expected.leeway)?;
        Ok(self.token)
    }
}

impl Token {
    fn read(claims: Map<String, Value>, payload: &str) -> Result<Self, Refused> {
        let issuer = string(&claims, "iss")?.unwrap_or_default().to_owned();
        let subject = string(&claims, "sub")?;
        let principal = subject
            .filter(|subject| !subject.is_empty() && !issuer.is_empty())
            .map(|subject| format!("{issuer}/{subject}"));
        Ok(Self {
            principal,
            audiences: audiences(&claims)?,
            expires: seconds(&claims, "exp")?,
            not_before: seconds(&claims, "nbf")?,
            issuer,
            claims,
            payload: payload.into(),
        })
    }

    /// Whether it may be used at `now` (Unix seconds), when clocks may differ by `leeway` seconds. A token without `exp`
    /// or `nbf` has no such limit, as in Istio.
    ///
    /// # Errors
    /// [`Refused::Expired`] or [`Refused::NotYetValid`].
    pub fn is_valid_at(&self, now: u64, leeway: u64) -> Result<(), Refused> {
        #[expect(clippy::cast_precision_loss, reason = "exact for the next 285 million years")]
        let (now, leeway) = (now as f64, leeway as f64);
        // RFC 7519 section 4.1.4: on or after `exp` it must not be accepted.
        if self.expires.is_some_and(|at| now >= at + leeway) {
            return Err(Refused::Expired);
        }
        if self.not_before.is_some_and(|at| now + leeway < at) {
            return Err(Refused::NotYetValid);
        }
        Ok(())
    }

    /// `iss/sub`, Istio's request principal; needs both.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// `aud`.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// `azp`: to whom it was issued.
    pub fn presenter(&self) -> Option<&str> {
        self.claims.get("azp")?.as_str()
    }

    /// The claim at `path`, one name per level.
    pub fn claim<S: AsRef<str>>(&self, path: &[S]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let mut value = self.claims.get(first.as_ref())?;
        for name in rest {
            value = value.as_object()?.get(name.as_ref())?;
        }
        Some(value)
    }

    /// The payload as it was signed: base64url, without padding.
    pub fn payload(&self) -> &str {
        &self.payload
    }
}

/// Who a user is does not belong in logs.
impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Token").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Unverified").field("alg", &self.algorithm).finish_non_exhaustive()
    }
}

fn object(part: &str) -> Result<Map<String, Value>, Refused> {
    let text = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed)?;
    json::parse_object(&text).map_err(|_| Refused::Malformed)
}

fn string<'a>(object: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Refused> {
    match object.get(name) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or(Refused::Malformed),
    }
}

/// RFC 7519 section 2, NumericDate: seconds, fractions allowed.
fn seconds(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => {
            let at = value.as_f64().filter(|at| at.is_finite() && *at >= 0.0);
            at.map(Some).ok_or(Refused::Malformed)
        }
    }
}

/// RFC 7519 section 4.1.3: one string or a list of them.
fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, Refused> {
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(audience)) => Ok(vec![audience.clone()]),
        Some(Value::Array(list)) => {
            let each = list.iter().map(|item| item.as_str().map(str::to_owned));
            each.collect::<Option<_>>().ok_or(Refused::Malformed)
        }
        Some(_) => Err(Refused::Malformed),
    }
}

#[cfg(test)]
mod tests;

//! Who a request is from by its JSON Web Token: `RequestAuthentication`.
//!
//! As in Istio: a request without a token passes and has no request principal (whether that is enough is for
//! [`super::authz`] to say); every token that is there must be valid, or the request is refused with 401. Of several
//! valid tokens the first counts, in the order of the rules' places: headers, then query parameters.

mod extract;
mod key_cache;
mod verified;
mod verify;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use leno_api::model::request_authentication::{JwtRule, KeySource, RequestAuthentication};
use serde_json::Value;

use self::{
    extract::{Found, Place, Places},
    key_cache::RemoteKeys,
    verify::{Expected, KeySet, Unverified},
};
pub use self::{
    key_cache::{KeyCache, Timing},
    verified::Verified,
    verify::{Refused, Token},
};
use crate::http::head;

/// For the `WWW-Authenticate` field of a 401 (RFC 6750 section 3); the reason stays in our log.
pub const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer error=\"invalid_token\"");
/// Tokens in one request. Each that is new costs a signature check.
const MAX_TOKENS: usize = 4;

/// The rules of one inbound port.
#[derive(Debug, Default)]
pub struct Jwt {
    rules: Box<[Arc<Rule>]>,
    places: Places,
    /// Headers that rules set. Whatever callers send in them is dropped, with a token and without.
    outputs: Box<[HeaderName]>,
}

#[derive(Debug)]
struct Rule {
    /// Never used twice, so that a worker's verified tokens do not outlive their rule.
    id: u64,
    expected: Expected,
    keys: Keys,
    forward_original: bool,
    claim_headers: Vec<(HeaderName, String)>,
    payload_header: Option<HeaderName>,
}

#[derive(Debug)]
enum Keys {
    Inline(Arc<KeySet>),
    Remote(Arc<RemoteKeys>),
}

/// A token that a rule has accepted.
struct Accepted<'a> {
    token: Arc<Token>,
    rule: &'a Arc<Rule>,
    place: &'a Place,
}

impl Jwt {
    /// Compiles the rules of all policies that are for one port. Keys behind URLs are looked up in, and from then on
    /// fetched by, `cache`. A rule whose keys cannot be had refuses its issuer's tokens and says so in the log.
    pub fn compile<'a>(
        policies: impl IntoIterator<Item = &'a RequestAuthentication>,
        cache: &KeyCache,
    ) -> Self {
        let mut compiled = Self::default();
        let (mut rules, mut outputs) = (Vec::new(), Vec::new());
        for policy in policies {
            for raw in &policy.rules {
                let rule = Rule::compile(raw, &policy.name.to_string(), cache);
                outputs.extend(rule.claim_headers.iter().map(|(name, _)| name.clone()));
                outputs.extend(rule.payload_header.clone());
                compiled.places.add(raw, rules.len());
                rules.push(Arc::new(rule));
            }
        }
        compiled.places.order();
        (compiled.rules, compiled.outputs) = (rules.into(), outputs.into());
        compiled
    }

    /// Whether there are no rules: then nobody needs to be asked.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Checks the tokens of a request and changes its head as the rules say: outputs set, tokens taken out that are
    /// not to be forwarded. `now` is in Unix seconds. Gives the token that the request counts as coming with, if any.
    ///
    /// # Errors
    /// When a token is not valid. Then the request must be refused; its head is as it came.
    pub fn authenticate<B>(
        &self,
        request: &mut Request<B>,
        now: u64,
        verified: &Verified,
    ) -> Result<Option<Arc<Token>>, Refused> {
        let accepted = self.examine(request.headers(), request.uri(), now, verified)?;
        for name in &self.outputs {
            head::remove_spellings(request.headers_mut(), name);
        }
        for Accepted { rule, place, .. } in &accepted {
            if !rule.forward_original {
                place.strip(request)?;
            }
        }
        let Some(Accepted { token, rule, .. }) = accepted.into_iter().next() else {
            return Ok(None);
        };
        rule.write_outputs(&token, request.headers_mut());
        Ok(Some(token))
    }

    /// The URL as it may be logged: without the query parameters in which tokens may be, valid or not. `None` when it
    /// may be logged as it is.
    pub fn loggable(&self, uri: &Uri) -> Option<Uri> {
        self.places.without_params(uri)
    }

    fn examine(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        now: u64,
        verified: &Verified,
    ) -> Result<Vec<Accepted<'_>>, Refused> {
        let mut accepted = Vec::new();
        for Found { text, place } in self.places.find(headers, uri, MAX_TOKENS)? {
            let rules = place.rules.iter().filter_map(|at| self.rules.get(*at));
            let (rule, token) = accept(rules, &text, now, verified)?;
            accepted.push(Accepted { token, rule, place });
        }
        Ok(accepted)
    }
}

/// The first rule that accepts the token. When none does, the first reason counts that is about more than the issuer.
fn accept<'r>(
    rules: impl Iterator<Item = &'r Arc<Rule>>,
    text: &str,
    now: u64,
    verified: &Verified,
) -> Result<(&'r Arc<Rule>, Arc<Token>), Refused> {
    if text.len() > verify::MAX_TOKEN_BYTES {
        return Err(Refused::TooLarge);
    }
    let mut reason = Refused::Issuer;
    for rule in rules {
        match rule.accept(text, now, verified) {
            Ok(token) => return Ok((rule, token)),
            Err(error) if reason == Refused::Issuer => reason = error,
            Err(_) => {}
        }
    }
    Err(reason)
}

impl Rule {
    fn compile(raw: &JwtRule, policy: &str, cache: &KeyCache) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = |text: &String| HeaderName::from_bytes(text.as_bytes()).ok();
        let claim_headers = raw.output_claim_to_headers.iter();
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            expected: Expected {
                issuer: raw.issuer.as_str().into(),
                audiences: raw.audiences.iter().map(|audience| audience.as_str().into()).collect(),
                leeway: raw.leeway.as_secs(),
            },
            keys: Keys::of(&raw.keys, policy, cache),
            forward_original: raw.forward_original,
            claim_headers: claim_headers
                .filter_map(|(header, claim)| Some((name(header)?, claim.clone())))
                .collect(),
            payload_header: raw.output_payload_to_header.as_ref().and_then(name),
        }
    }

    fn accept(&self, text: &str, now: u64, verified: &Verified) -> Result<Arc<Token>, Refused> {
        let keys = self.keys.load();
        if let Some(token) = keys.as_ref().and_then(|keys| verified.find(self.id, text, keys)) {
            token.is_valid_at(now, self.expected.leeway)?;
            return Ok(token);
        }
        let unverified = Unverified::parse(text)?;
        if unverified.issuer() != &*self.expected.issuer {
            return Err(Refused::Issuer);
        }
        let Some(keys) = keys else {
            self.keys.want();
            return Err(Refused::NoKey);
        };
        let names_key = unverified.names_key();
        match unverified.verify(&self.expected, &keys, now) {
            Ok(token) => {
                let token = Arc::new(token);
                verified.keep(self.id, text, &keys, &token);
                Ok(token)
            }
            Err(refused) => {
                // An issuer that does not name its keys may have changed them all the same.
                if refused == Refused::NoKey || (refused == Refused::Signature && !names_key) {
                    self.keys.want();
                }
                Err(refused)
            }
        }
    }

    fn write_outputs(&self, token: &Token, headers: &mut HeaderMap) {
        for (name, claim) in &self.claim_headers {
            if let Some(value) = claim_value(token, claim) {
                headers.insert(name, value);
            }
        }
        if let Some(name) = &self.payload_header
            && let Ok(value) = HeaderValue::from_str(token.payload())
        {
            headers.insert(name, value);
        }
    }
}

/// A claim as a header: strings, numbers and booleans, as in Istio. What cannot stand in a header is left out.
fn claim_value(token: &Token, claim: &str) -> Option<HeaderValue> {
    // Names with dots exist (`https://example.com/groups`), and so do paths.
    let value =
        token.claim(&[claim]).or_else(|| token.claim(&claim.split('.').collect::<Vec<_>>()))?;
    match value {
        Value::String(text) => HeaderValue::from_bytes(text.as_bytes()).ok(),
        Value::Number(_) | Value::Bool(_) => HeaderValue::from_str(&value.to_string()).ok(),
        _ => None,
    }
}

impl Keys {
    fn of(source: &KeySource, policy: &str, cache: &KeyCache) -> Self {
        let nothing = || Self::Inline(Arc::new(KeySet::empty()));
        match source {
            KeySource::Inline(jwks) => match KeySet::from_value(jwks) {
                Ok(keys) => Self::Inline(Arc::new(keys)),
                Err(error) => {
                    tracing::warn!("RequestAuthentication {policy}: jwks: {error}; its tokens are refused");
                    nothing()
                }
            },
            KeySource::Uri(uri) => cache.keys(uri).map_or_else(
                || {
                    tracing::warn!(
                        "RequestAuthentication {policy}: keys of more than {} issuers; tokens of {uri} are refused",
                        key_cache::MAX_URIS
                    );
                    nothing()
                },
                Self::Remote,
            ),
        }
    }

    fn load(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::Inline(keys) => Some(keys.clone()),
            Self::Remote(remote) => remote.load().as_ref().cloned(),
        }
    }

    fn want(&self) {
        if let Self::Remote(remote) = self {
            remote.want();
        }
    }
}

#[cfg(test)]
pub(super) mod signing;
#[cfg(test)]
mod tests;

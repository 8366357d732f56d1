//! `RequestAuthentication`.

use std::time::Duration;

use http::{HeaderName, Uri};
use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        applies::{Applies, parse_applies},
        filter::header_name,
        http_route::{check_count, parse_duration},
        pattern::{check_list, check_value, each_value},
    },
    resource::read,
    spec::request_authentication as raw,
};

/// Every rule may try every request's token.
const MAX_RULES: usize = 64;
/// Issuers publish two to four keys, more only in the midst of a rotation.
const MAX_KEYS: usize = 32;
/// An RSA key with a chain of certificates has about 6 KiB.
const MAX_JWKS: usize = 256 * 1024;
const DEFAULT_LEEWAY: Duration = Duration::from_secs(60);
/// More would make the expiry of a short-lived token meaningless.
const MAX_LEEWAY: Duration = Duration::from_secs(300);
/// Claims within claims, as in conditions.
const MAX_CLAIM_DEPTH: usize = 8;

/// Which tokens are valid at some workloads.
#[derive(Clone, Debug)]
pub struct RequestAuthentication {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown.
    pub created: String,
    /// For which workloads.
    pub applies: Applies,
    /// One for each issuer.
    pub rules: Vec<JwtRule>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtRule {
    /// `iss`.
    pub issuer: String,
    /// One of them must be in `aud`; empty: any audience.
    pub audiences: Vec<String>,
    /// With which its tokens are verified.
    pub keys: KeySource,
    /// Headers in which a token may be: name in lower case, and what stands before the token.
    pub from_headers: Vec<(String, String)>,
    /// Query parameters in which a token may be.
    pub from_params: Vec<String>,
    /// Whether the token stays in the request.
    pub forward_original: bool,
    /// Headers (in lower case) that get claims; `a.b` is the claim `b` inside of `a`.
    pub output_claim_to_headers: Vec<(String, String)>,
    /// Header (in lower case) that gets the payload, base64url-encoded.
    pub output_payload_to_header: Option<String>,
    /// By how much clocks may differ; at most 5 minutes.
    pub leeway: Duration,
}

/// Where the keys of an issuer come from.
#[derive(Clone, Debug, PartialEq)]
pub enum KeySource {
    /// A JWK set (RFC 7517 section 5) with 1 to 32 public keys, each with `kty`.
    Inline(Value),
    /// An http or https URL of one.
    Uri(String),
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::RequestAuthenticationSpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let applies = parse_applies(&at, raw.selector, raw.target_refs, &name, problems);
    let rules_at = at.field("jwtRules");
    check_count(&rules_at, raw.jwt_rules.len(), 0, MAX_RULES, problems);
    let mut rules = Vec::new();
    for (i, rule) in raw.jwt_rules.into_iter().enumerate().take(MAX_RULES) {
        rules.extend(parse_rule(&rules_at.index(i), rule, problems));
    }
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::RequestAuthentication(
        RequestAuthentication { name, created, applies, rules }.into(),
    ))
}

fn parse_rule(at: &Path<'_>, raw: raw::JwtRule, problems: &mut Problems) -> Option<JwtRule> {
    let text = |text: &str| Ok(text.to_owned());
    problems.take(&at.field("issuer"), check_value(&raw.issuer));
    let keys = parse_keys(at, raw.jwks, raw.jwks_uri, problems);
    let nowhere = raw.from_headers.is_none() && raw.from_params.is_none();
    let mut from_headers = parse_headers(&at.field("fromHeaders"), raw.from_headers, problems);
    if nowhere {
        from_headers.push(("authorization".to_owned(), "Bearer ".to_owned()));
    }
    let claims_at = at.field("outputClaimToHeaders");
    let payload_at = at.field("outputPayloadToHeader");
    let payload = raw.output_payload_to_header;
    Some(JwtRule {
        audiences: each_value(&at.field("audiences"), raw.audiences, problems, text),
        from_headers,
        from_params: each_value(&at.field("fromParams"), raw.from_params, problems, text),
        forward_original: raw.forward_original_token,
        output_claim_to_headers: parse_claims(&claims_at, raw.output_claim_to_headers, problems),
        output_payload_to_header: payload
            .and_then(|name| output_header(&payload_at, &name, problems)),
        leeway: parse_leeway(&at.field("leeway"), raw.leeway.as_deref(), problems),
        issuer: raw.issuer,
        keys: keys?,
    })
}

fn parse_keys(
    at: &Path<'_>,
    jwks: Option<String>,
    jwks_uri: Option<String>,
    problems: &mut Problems,
) -> Option<KeySource> {
    match (jwks, jwks_uri) {
        (Some(text), None) => {
            problems.take(&at.field("jwks"), parse_jwks(&text)).map(KeySource::Inline)
        }
        (None, Some(uri)) => {
            let uri = check_uri(&uri).map(|()| KeySource::Uri(uri));
            problems.take(&at.field("jwksUri"), uri)
        }
        _ => {
            problems.add(at, "needs exactly one of jwks and jwksUri");
            None
        }
    }
}

/// Only public keys: whoever may read the policy, or stands beside a proxy, could otherwise make tokens. That also
/// keeps shared secrets (`oct`) out, and with them the confusion of a public key with a secret.
fn parse_jwks(text: &str) -> Result<Value, String> {
    if text.len() > MAX_JWKS {
        return Err(format!("has {} bytes; at most {MAX_JWKS} are allowed", text.len()));
    }
    // The message of the JSON parser would repeat no content, but its place helps.
    let set: Value = serde_json::from_str(text).map_err(|error| {
        format!("is not JSON (line {}, column {})", error.line(), error.column())
    })?;
    let Some(keys) = set.get("keys").and_then(Value::as_array) else {
        return Err("is not a JWK set: an object with the array `keys` (RFC 7517)".to_owned());
    };
    if keys.is_empty() || keys.len() > MAX_KEYS {
        return Err(format!("has {} keys; 1 to {MAX_KEYS} are allowed", keys.len()));
    }
    for (i, key) in keys.iter().enumerate() {
        match key.get("kty").and_then(Value::as_str) {
            None => return Err(format!("keys[{i}] has no `kty`")),
            Some("oct") => {
                return Err(format!("keys[{i}] is a shared secret; only public keys are allowed"));
            }
            Some(_) if key.get("d").is_some() => {
                return Err(format!("keys[{i}] is a private key; only public keys are allowed"));
            }
            Some(_) => {}
        }
    }
    Ok(set)
}

fn check_uri(text: &str) -> Result<(), String> {
    check_value(text)?;
    let shown = text.escape_debug();
    let uri: Uri =
        text.parse().map_err(|_| format!("`{shown}` is not a URL; write https://host/path"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(format!("`{shown}` must be an http or https URL"));
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err("must not hold a user or password: everybody who may read the policy sees it"
            .to_owned());
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(format!("`{shown}` names no host"));
    }
    Ok(())
}

fn parse_headers(
    at: &Path<'_>,
    raw: Option<Vec<raw::JwtHeader>>,
    problems: &mut Problems,
) -> Vec<(String, String)> {
    let Some(raw) = raw else { return Vec::new() };
    check_list(at, raw.len(), problems);
    let mut headers = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let here = at.index(i);
        let name = HeaderName::from_bytes(raw.name.as_bytes())
            .map_err(|_| format!("`{}` is not a header name", raw.name.escape_debug()));
        let name = problems.take(&here.field("name"), name);
        let prefix = raw.prefix.unwrap_or_default();
        if !prefix.is_empty() {
            problems.take(&here.field("prefix"), check_value(&prefix));
        }
        headers.extend(name.map(|name| (name.as_str().to_owned(), prefix)));
    }
    headers
}

fn parse_claims(
    at: &Path<'_>,
    raw: Option<Vec<raw::ClaimToHeader>>,
    problems: &mut Problems,
) -> Vec<(String, String)> {
    let Some(raw) = raw else { return Vec::new() };
    check_list(at, raw.len(), problems);
    let mut headers: Vec<(String, String)> = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let here = at.index(i);
        problems.take(&here.field("claim"), check_claim(&raw.claim));
        let name_at = here.field("header");
        let Some(name) = output_header(&name_at, &raw.header, problems) else { continue };
        if headers.iter().any(|(other, _)| *other == name) {
            problems.add(name_at, format!("`{name}` stands twice"));
        }
        headers.push((name, raw.claim));
    }
    headers
}

fn check_claim(text: &str) -> Result<(), String> {
    check_value(text)?;
    let parts = text.split('.');
    if parts.clone().any(str::is_empty) || parts.count() > MAX_CLAIM_DEPTH {
        return Err(format!(
            "`{}` is not a claim; write `sub`, or `a.b` for `b` inside of `a`, at most {MAX_CLAIM_DEPTH} levels",
            text.escape_debug()
        ));
    }
    Ok(())
}

/// A header that a token may set: neither what frames or routes the request, nor what the mesh itself says in it.
fn output_header(at: &Path<'_>, text: &str, problems: &mut Problems) -> Option<String> {
    let name = header_name(at, text, problems)?;
    let name = name.as_str();
    if name == "host" || name.starts_with("x-leno-") {
        problems.add(at, format!("`{name}` is the proxy's own"));
        return None;
    }
    Some(name.to_owned())
}

fn parse_leeway(at: &Path<'_>, raw: Option<&str>, problems: &mut Problems) -> Duration {
    let leeway = parse_duration(at, raw, problems).unwrap_or(DEFAULT_LEEWAY);
    if leeway > MAX_LEEWAY {
        problems.add(at, "must be at most 5m");
    }
    leeway
}

#[cfg(test)]
mod tests;

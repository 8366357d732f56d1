//! Conditions of a rule: what a request has under a key.

use http::HeaderName;

use crate::{
    Path,
    invalid::Problems,
    model::{
        ip_block::{Blocks, parse_blocks},
        pattern::{Of, Patterns, check_value, parse_patterns},
    },
    spec::authorization_policy as raw,
};

const FIELDS: [&str; 2] = ["values", "notValues"];
/// Claims within claims; tokens hardly have more than two levels.
const MAX_CLAIM_DEPTH: usize = 8;

/// What must be so beside caller and operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is looked at.
    pub key: ConditionKey,
    /// What it must be; empty for the keys that are addresses.
    pub values: Patterns,
    /// Where it must be, for [`ConditionKey::SourceIp`] and [`ConditionKey::DestinationIp`]; empty otherwise.
    pub blocks: Blocks,
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionKey {
    /// `request.headers[x-user]`; the name in lower case.
    Header(String),
    /// `source.ip`: of the connection's peer.
    SourceIp,
    /// `source.namespace`: of the caller's identity.
    SourceNamespace,
    /// `source.principal`: the caller's identity without `spiffe://`.
    SourcePrincipal,
    /// `request.auth.principal`: `<issuer>/<subject>` of the token.
    RequestPrincipal,
    /// `request.auth.audiences`: the token's `aud`.
    RequestAudiences,
    /// `request.auth.presenter`: the token's `azp`.
    RequestPresenter,
    /// `request.auth.claims[a][b]`: a claim of the token; the path to it, not empty.
    Claim(Vec<String>),
    /// `destination.ip`: where the connection arrived.
    DestinationIp,
    /// `destination.port`: the application's port.
    DestinationPort,
    /// `connection.sni`: the server name that the caller sent.
    Sni,
}

impl ConditionKey {
    /// Reads Istio's spelling.
    ///
    /// # Errors
    /// Says which keys there are, or what is wrong with this one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = match text {
            "source.ip" => Self::SourceIp,
            "source.namespace" => Self::SourceNamespace,
            "source.principal" => Self::SourcePrincipal,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::RequestAudiences,
            "request.auth.presenter" => Self::RequestPresenter,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::Sni,
            _ => return Self::parse_indexed(text),
        };
        Ok(key)
    }

    fn parse_indexed(text: &str) -> Result<Self, String> {
        let shown = text.escape_debug();
        if let Some(index) = text.strip_prefix("request.headers") {
            let [name] = brackets(index).unwrap_or_default()[..] else {
                return Err(format!("`{shown}`: write request.headers[<name>]"));
            };
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("`{shown}`: that is not a header name"))?;
            return Ok(Self::Header(name.as_str().to_owned()));
        }
        if let Some(index) = text.strip_prefix("request.auth.claims") {
            return match brackets(index) {
                Some(names) if names.len() <= MAX_CLAIM_DEPTH => {
                    Ok(Self::Claim(names.into_iter().map(str::to_owned).collect()))
                }
                Some(_) => Err(format!("`{shown}`: at most {MAX_CLAIM_DEPTH} levels are allowed")),
                None => {
                    Err(format!("`{shown}`: write request.auth.claims[<claim>][<claim in it>]"))
                }
            };
        }
        Err(format!(
            "unknown key `{shown}`; known are request.headers[..], request.auth.principal, request.auth.audiences, \
             request.auth.presenter, request.auth.claims[..], source.ip, source.namespace, source.principal, \
             destination.ip, destination.port, connection.sni"
        ))
    }

    fn values(&self) -> Of {
        match self {
            Self::SourcePrincipal => Of::Principals,
            Self::DestinationPort => Of::Ports,
            Self::Sni => Of::Hosts,
            Self::SourceNamespace => Of::Names,
            _ => Of::Free,
        }
    }
}

/// The names in `[a][b]`, at least one and none empty.
fn brackets(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<_> = inner.split("][").collect();
    let good = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
    names.iter().all(good).then_some(names)
}

pub(super) fn parse_condition(
    at: &Path<'_>,
    raw: raw::Condition,
    problems: &mut Problems,
) -> Option<Condition> {
    if raw.values.is_none() && raw.not_values.is_none() {
        problems.add(at, "needs values or notValues");
    }
    let key = check_value(&raw.key).and_then(|()| ConditionKey::parse(&raw.key));
    let key = problems.take(&at.field("key"), key)?;
    let lists = [raw.values, raw.not_values];
    let mut condition = Condition { key, values: Patterns::default(), blocks: Blocks::default() };
    match &condition.key {
        ConditionKey::SourceIp | ConditionKey::DestinationIp => {
            condition.blocks = parse_blocks(at, FIELDS, lists, problems);
        }
        key => condition.values = parse_patterns(at, FIELDS, key.values(), lists, problems),
    }
    Some(condition)
}

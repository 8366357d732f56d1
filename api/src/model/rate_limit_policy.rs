//! `RateLimitPolicy`.

use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, Method};
use serde_json::Value;

pub use crate::spec::rate_limit_policy::LimitScope;
use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        matching::{RequestMatch, parse_header_name, parse_matches},
        name::check_label,
        range::Fields,
        traffic_policy::{Target, parse_targets, retry::FAILURES},
    },
    resource::read,
    spec::rate_limit_policy as raw,
};

/// Every limit is looked at for every request.
const MAX_LIMITS: usize = 32;
const MAX_KEYS: usize = 4;
const REQUESTS: RangeInclusive<u32> = 1..=10_000_000;
/// Longer than a day is a quota, which must not be lost with a process.
const PER: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
const TOO_MANY_REQUESTS: u16 = 429;

/// How much some services take from whom. A request must be within all limits that apply to it, of all policies.
#[derive(Clone, Debug)]
pub struct RateLimitPolicy {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown.
    pub created: String,
    /// At least one.
    pub targets: Vec<Target>,
    /// At least one; their names are unique.
    pub limits: Vec<Limit>,
}

/// So many requests in a time.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Unique within the policy; a DNS label.
    pub name: Arc<str>,
    /// At least 1.
    pub requests: u32,
    /// In which time; more than zero.
    pub per: Duration,
    /// How many may come at once; at least 1.
    pub burst: u32,
    /// What has a count of its own, all of it together; all requests share one when empty.
    pub by: Vec<LimitKey>,
    /// Any is enough; every request when empty.
    pub matches: Vec<RequestMatch>,
    /// Where requests are counted.
    pub scope: LimitScope,
    /// Status of the answer above the limit.
    pub status: u16,
}

/// What has a count of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// The caller's identity.
    Caller,
    /// The value of a header.
    Header(HeaderName),
    /// The address of the connection's peer.
    SourceIp,
    /// The path without query.
    Path,
}

impl Limit {
    /// Whether the limit is for a request. `path` is without query.
    pub fn applies(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.matches.is_empty()
            || self.matches.iter().any(|condition| condition.matches(method, path, headers))
    }
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::RateLimitPolicySpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let targets = parse_targets(&at.field("targetRefs"), raw.target_refs, &name, problems);
    Fields::new(at, problems).count("limits", raw.limits.len(), 1..=MAX_LIMITS);
    let here = at.field("limits");
    let mut names = BTreeSet::new();
    let mut limits = Vec::new();
    for (i, raw) in raw.limits.into_iter().enumerate() {
        let here = here.index(i);
        if !names.insert(raw.name.clone()) {
            let message = format!("`{}` is used twice", raw.name.escape_debug());
            problems.add(here.field("name"), message);
        }
        limits.push(parse_limit(here, raw, problems));
    }
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::RateLimitPolicy(RateLimitPolicy { name, created, targets, limits }.into()))
}

fn parse_limit(at: Path<'_>, raw: raw::Limit, problems: &mut Problems) -> Limit {
    problems.take(&at.field("name"), check_label(&raw.name));
    let by = parse_keys(at, raw.by, problems);
    let matches = parse_matches(at, raw.matches, problems);
    let mut fields = Fields::new(at, problems);
    let requests = fields.number("requests", Some(raw.requests), REQUESTS, 1);
    Limit {
        name: raw.name.into(),
        requests,
        per: fields.duration("per", Some(&raw.per), PER, *PER.start()),
        burst: fields.number("burst", raw.burst, REQUESTS, requests),
        by,
        matches,
        scope: raw.scope.unwrap_or_default(),
        status: fields.number("status", raw.status, FAILURES, TOO_MANY_REQUESTS),
    }
}

fn parse_keys(
    at: Path<'_>,
    raw: Option<Vec<raw::LimitKey>>,
    problems: &mut Problems,
) -> Vec<LimitKey> {
    let Some(raw) = raw else { return Vec::new() };
    Fields::new(at, problems).count("by", raw.len(), 1..=MAX_KEYS);
    let here = at.field("by");
    let mut keys = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let here = here.index(i);
        match parse_key(here, raw, problems) {
            Some(key) if keys.contains(&key) => problems.add(here, "stands twice"),
            key => keys.extend(key),
        }
    }
    keys
}

fn parse_key(at: Path<'_>, raw: raw::LimitKey, problems: &mut Problems) -> Option<LimitKey> {
    Fields::new(at, problems).exactly_one(&[
        ("caller", raw.caller.is_some()),
        ("header", raw.header.is_some()),
        ("sourceIp", raw.source_ip.is_some()),
        ("path", raw.path.is_some()),
    ]);
    if let Some(header) = raw.header {
        let here = at.field("header");
        parse_header_name(&here.field("name"), &header.name, problems).map(LimitKey::Header)
    } else if raw.caller.is_some() {
        Some(LimitKey::Caller)
    } else if raw.source_ip.is_some() {
        Some(LimitKey::SourceIp)
    } else {
        raw.path.map(|_| LimitKey::Path)
    }
}

#[cfg(test)]
mod tests;

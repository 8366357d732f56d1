//! `CachePolicy`.

mod key;
mod redis;

pub use key::{CacheKey, QueryKey};
pub use redis::Redis;

use std::{ops::RangeInclusive, time::Duration};

use http::HeaderName;
use serde_json::Value;

use crate::{
    GATEWAY_GROUP, Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName, backend::is_service, matching::parse_header_name, name::check_subdomain,
        quantity, range::Fields, traffic_policy::Target,
    },
    resource::read,
    spec::{cache_policy as raw, quantity::Bytes},
};

const MAX_TARGETS: usize = 16;
/// Below a mebibyte hardly anything fits; above 64 GiB it is no longer a sidecar.
const BYTES: RangeInclusive<u64> = 1 << 20..=64 << 30;
const DEFAULT_BYTES: u64 = 64 << 20;
/// Anything smaller would refuse what is best kept.
const MIN_OBJECT_BYTES: u64 = 1 << 10;
const DEFAULT_OBJECT_BYTES: u64 = 1 << 20;
/// One response may take so much of all memory: with larger ones a single request would empty the store.
const OBJECTS: u64 = 8;
/// RFC 9111 knows no end; after a year nothing is meant any more.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=YEAR;
const STALE: RangeInclusive<Duration> = Duration::ZERO..=YEAR;
/// Who waits longer for somebody else's fetch has been forgotten.
const COLLAPSE_WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
const DEFAULT_COLLAPSE_WAIT: Duration = Duration::from_secs(5);
/// 1xx are not final.
const STATUSES: RangeInclusive<u16> = 200..=599;
const MAX_STATUSES: usize = 64;
/// A part of a response, and news about one that is kept already (RFC 9111 sections 3.3 and 4.3.4).
const NEVER_KEPT: [u16; 2] = [206, 304];

/// What callers keep of the responses of some services or routes. Limits are per proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachePolicy {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown. The older of two policies for one target wins.
    pub created: String,
    /// At least one.
    pub targets: Vec<CacheTarget>,
    /// `false`: nothing is kept for the targets, whatever a policy for more says.
    pub enabled: bool,
    /// Memory for all responses together.
    pub max_bytes: u64,
    /// The largest response that is kept; at most an eighth of `max_bytes`.
    pub max_object_bytes: u64,
    /// How long a response without a word on freshness is fresh; `None` leaves it to heuristics (RFC 9111 section 4.2.2).
    pub default_ttl: Option<Duration>,
    /// The same for failures that last; `None`: as any other.
    pub negative_ttl: Option<Duration>,
    /// How long any response to GET is fresh, whatever it says.
    pub force_ttl: Option<Duration>,
    /// How long a stale response is served while it is fetched anew, where it does not say so itself.
    pub stale_while_revalidate: Duration,
    /// How long a stale response is served instead of an error, where it does not say so itself.
    pub stale_if_error: Duration,
    /// Whether GET is answered from the store.
    pub get: bool,
    /// Whether HEAD is.
    pub head: bool,
    /// Only these are kept: sorted, without doubles, never empty. `None`: all that may be.
    pub statuses: Option<Vec<u16>>,
    /// What tells responses of one URL apart, beside `Vary`.
    pub key: CacheKey,
    /// Where tags stand; `None`: in `Surrogate-Key` and `Cache-Tag`.
    pub tags_header: Option<HeaderName>,
    /// How long a request waits for another's fetch; `ZERO`: not at all.
    pub collapse_wait: Duration,
    /// A second tier.
    pub redis: Option<Redis>,
}

/// What a policy applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheTarget {
    /// A service, or one port of it.
    Service(Target),
    /// An HTTP route.
    Route {
        /// Which one.
        route: ObjectName,
        /// Only this rule, by name.
        rule: Option<String>,
    },
}

impl CachePolicy {
    /// The services among the targets.
    pub fn services(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter_map(|target| match target {
            CacheTarget::Service(target) => Some(target),
            CacheTarget::Route { .. } => None,
        })
    }

    /// The routes among the targets, each with the rule that is meant (`None`: all).
    pub fn routes(&self) -> impl Iterator<Item = (&ObjectName, Option<&str>)> {
        self.targets.iter().filter_map(|target| match target {
            CacheTarget::Service(_) => None,
            CacheTarget::Route { route, rule } => Some((route, rule.as_deref())),
        })
    }
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::CachePolicySpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let targets = parse_targets(at, raw.target_refs, &name, problems);
    let key = key::parse(at.field("key"), raw.key.unwrap_or_default(), problems);
    let redis = raw.redis.map(|raw| redis::parse(at.field("redis"), raw, problems));
    let tags_header = raw
        .tags_header
        .and_then(|header| parse_header_name(&at.field("tagsHeader"), &header, problems));
    let (get, head) = parse_methods(at, raw.methods.as_deref(), problems);
    let statuses = raw.statuses.map(|statuses| parse_statuses(at, statuses, problems));
    let collapse_wait = parse_collapse(at.field("collapse"), raw.collapse, problems);
    let mut fields = Fields::new(at, problems);
    let max_bytes = fields.bytes("maxBytes", raw.max_bytes.as_ref(), BYTES, DEFAULT_BYTES);
    let max_object_bytes =
        parse_object_bytes(&mut fields, raw.max_object_bytes.as_ref(), max_bytes);
    let mut ttl = |field: &str, raw: Option<String>| {
        raw.map(|raw| fields.duration(field, Some(&raw), TTL, *TTL.start()))
    };
    let default_ttl = ttl("defaultTtl", raw.default_ttl);
    let negative_ttl = ttl("negativeTtl", raw.negative_ttl);
    let force_ttl = ttl("forceTtl", raw.force_ttl);
    let mut stale = |field: &str, raw: Option<String>| {
        fields.duration(field, raw.as_deref(), STALE, Duration::ZERO)
    };
    let policy = CachePolicy {
        name,
        created: metadata.creation_timestamp.clone().unwrap_or_default(),
        targets,
        enabled: raw.enabled.unwrap_or(true),
        max_bytes,
        default_ttl,
        negative_ttl,
        force_ttl,
        stale_while_revalidate: stale("staleWhileRevalidate", raw.stale_while_revalidate),
        stale_if_error: stale("staleIfError", raw.stale_if_error),
        max_object_bytes,
        get,
        head,
        statuses,
        key,
        tags_header,
        collapse_wait,
        redis,
    };
    Some(Model::CachePolicy(policy.into()))
}

/// The largest response, within what all of them may take.
fn parse_object_bytes(fields: &mut Fields<'_, '_>, raw: Option<&Bytes>, max_bytes: u64) -> u64 {
    let most = max_bytes / OBJECTS;
    let range = MIN_OBJECT_BYTES..=BYTES.end() / OBJECTS;
    let bytes = fields.bytes("maxObjectBytes", raw, range, most.min(DEFAULT_OBJECT_BYTES));
    if bytes > most {
        let most = quantity::format(most);
        let message = format!("must be at most an eighth of maxBytes, which is {most}");
        fields.problem("maxObjectBytes", message);
    }
    bytes.min(most)
}

fn parse_targets(
    at: Path<'_>,
    raw: Vec<raw::CacheTargetRef>,
    policy: &ObjectName,
    problems: &mut Problems,
) -> Vec<CacheTarget> {
    Fields::new(at, problems).count("targetRefs", raw.len(), 1..=MAX_TARGETS);
    let here = at.field("targetRefs");
    let targets = raw.into_iter().enumerate();
    targets.filter_map(|(i, raw)| parse_target(here.index(i), raw, policy, problems)).collect()
}

fn parse_target(
    at: Path<'_>,
    raw: raw::CacheTargetRef,
    policy: &ObjectName,
    problems: &mut Problems,
) -> Option<CacheTarget> {
    let is_route = raw.kind == "HTTPRoute";
    if is_route && raw.group != GATEWAY_GROUP {
        problems.add(at.field("group"), format!("must be {GATEWAY_GROUP} for an HTTPRoute"));
        return None;
    }
    if !is_route && !is_service(&raw.group, &raw.kind) {
        let message = format!(
            "must be a Service (group \"\" or leno.dev) or an HTTPRoute (group {GATEWAY_GROUP})"
        );
        problems.add(at.field("kind"), message);
        return None;
    }
    problems.take(&at.field("name"), check_subdomain(&raw.name))?;
    let name = ObjectName::new(&policy.namespace, &raw.name);
    Some(if is_route {
        CacheTarget::Route { route: name, rule: raw.section_name }
    } else {
        CacheTarget::Service(Target { service: name, section: raw.section_name })
    })
}

/// Whether GET and HEAD are among the methods; both where none are named.
fn parse_methods(
    at: Path<'_>,
    raw: Option<&[raw::CacheMethod]>,
    problems: &mut Problems,
) -> (bool, bool) {
    let Some(methods) = raw else { return (true, true) };
    let [get, head] = [raw::CacheMethod::Get, raw::CacheMethod::Head]
        .map(|wanted| methods.iter().filter(|method| **method == wanted).count());
    if get + head == 0 {
        problems.add(at.field("methods"), "is empty; to keep nothing write `enabled: false`");
    }
    if get > 1 || head > 1 {
        problems.add(at.field("methods"), "names a method twice");
    }
    if get == 0 && head > 0 {
        let message = "keeps nothing: HEAD is answered from what GET has brought; add GET";
        problems.add(at.field("methods"), message);
    }
    (get > 0, head > 0)
}

fn parse_statuses(at: Path<'_>, raw: Vec<i64>, problems: &mut Problems) -> Vec<u16> {
    let here = at.field("statuses");
    for (i, status) in raw.iter().enumerate() {
        if NEVER_KEPT.iter().any(|never| i64::from(*never) == *status) {
            problems.add(here.index(i), format!("{status} is no whole response and never kept"));
        }
    }
    Fields::new(at, problems).numbers("statuses", Some(raw), 1..=MAX_STATUSES, STATUSES)
}

fn parse_collapse(at: Path<'_>, raw: Option<raw::Collapse>, problems: &mut Problems) -> Duration {
    let wait = raw.and_then(|raw| raw.wait);
    let mut fields = Fields::new(at, problems);
    fields.duration("wait", wait.as_deref(), COLLAPSE_WAIT, DEFAULT_COLLAPSE_WAIT)
}

#[cfg(test)]
mod tests;

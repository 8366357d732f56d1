//! `FaultPolicy`.

use std::{fmt, ops::RangeInclusive, time::Duration};

use http::{HeaderMap, Method};
use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        matching::{RequestMatch, parse_matches},
        range::Fields,
        traffic_policy::{Target, parse_targets},
    },
    resource::read,
    spec::fault_policy as raw,
};

/// Every rule is compared with every request.
const MAX_RULES: usize = 32;
/// A delayed request holds its place; after an hour nobody waits.
const DELAY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// 1xx are not final.
const STATUSES: RangeInclusive<u16> = 200..=599;
/// 0 is no error.
const GRPC_STATUSES: RangeInclusive<u16> = 1..=16;

/// How some services fail on purpose.
#[derive(Clone, Debug)]
pub struct FaultPolicy {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown. The older of two policies for one target wins.
    pub created: String,
    /// At least one.
    pub targets: Vec<Target>,
    /// At least one; for each request the first that matches.
    pub rules: Vec<FaultRule>,
}

/// One fault: a delay, an abort, or both, first the delay.
#[derive(Clone, Debug)]
pub struct FaultRule {
    /// Any is enough; every request when empty.
    pub matches: Vec<RequestMatch>,
    /// Of the requests that match.
    pub share: Share,
    /// How long to wait.
    pub delay: Option<Duration>,
    /// What to answer.
    pub abort: Option<Abort>,
}

/// A share of requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// 0 to [`Share::WHOLE`].
    millionths: u32,
}

/// What is answered instead of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// This status.
    Status(u16),
    /// 200 with this `grpc-status`.
    Grpc(u16),
}

impl FaultPolicy {
    /// The rule for a request. `path` is without query.
    pub fn rule(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<&FaultRule> {
        self.rules.iter().find(|rule| rule.applies(method, path, headers))
    }
}

impl FaultRule {
    fn applies(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.matches.is_empty()
            || self.matches.iter().any(|condition| condition.matches(method, path, headers))
    }
}

impl Share {
    const WHOLE: u32 = 1_000_000;

    /// Everything.
    pub const ALL: Self = Self { millionths: Self::WHOLE };

    /// Whether something falls into the share. `random` is evenly distributed over all of its values.
    pub fn takes(self, random: u64) -> bool {
        // The remainder prefers small numbers by less than one in 10^13.
        random % u64::from(Self::WHOLE) < u64::from(self.millionths)
    }

    /// In percent.
    pub fn percent(self) -> f64 {
        f64::from(self.millionths) / 10_000.0
    }

    fn parse(percent: f64) -> Option<Self> {
        let scaled = percent * 10_000.0;
        let whole = scaled.round();
        // Decimal fractions are not exact in binary; what people write is within far less than this.
        let exact = (scaled - whole).abs() < 1e-6;
        let within = (0.0..=100.0).contains(&percent);
        (within && exact).then_some(Self { millionths: whole as u32 })
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::FaultPolicySpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let targets = parse_targets(&at.field("targetRefs"), raw.target_refs, &name, problems);
    Fields::new(at, problems).count("rules", raw.rules.len(), 1..=MAX_RULES);
    let here = at.field("rules");
    let rules = raw.rules.into_iter().enumerate();
    let rules = rules.map(|(i, rule)| parse_rule(here.index(i), rule, problems)).collect();
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::FaultPolicy(FaultPolicy { name, created, targets, rules }.into()))
}

fn parse_rule(at: Path<'_>, raw: raw::FaultRule, problems: &mut Problems) -> FaultRule {
    let matches = parse_matches(at, raw.matches, problems);
    if raw.delay.is_none() && raw.abort.is_none() {
        problems.add(at, "needs delay, abort or both");
    }
    let abort = raw.abort.map(|abort| parse_abort(at.field("abort"), &abort, problems));
    let mut fields = Fields::new(at, problems);
    let delay =
        raw.delay.map(|delay| fields.duration("delay", Some(&delay), DELAY, *DELAY.start()));
    let share = match raw.percent {
        Some(percent) => Share::parse(percent).unwrap_or_else(|| {
            fields.problem("percent", "must be 0 to 100, with at most four decimals");
            Share::ALL
        }),
        None => Share::ALL,
    };
    FaultRule { matches, share, delay, abort }
}

fn parse_abort(at: Path<'_>, raw: &raw::Abort, problems: &mut Problems) -> Abort {
    let mut fields = Fields::new(at, problems);
    fields.exactly_one(&[
        ("status", raw.status.is_some()),
        ("grpcStatus", raw.grpc_status.is_some()),
    ]);
    match raw.grpc_status {
        Some(_) => Abort::Grpc(fields.number("grpcStatus", raw.grpc_status, GRPC_STATUSES, 14)),
        None => Abort::Status(fields.number("status", raw.status, STATUSES, 503)),
    }
}

#[cfg(test)]
mod tests;

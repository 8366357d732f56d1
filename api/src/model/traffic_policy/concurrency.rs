//! How many requests an application gets at once, and which of them go first.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use http::HeaderMap;

pub use crate::spec::traffic_policy::PriorityLevel;
use crate::{
    Path,
    invalid::Problems,
    model::{
        http_route::{PathMatch, is_below, parse_path_text},
        matching::{HeaderCondition, parse_header_condition},
        range::Fields,
    },
    spec::{http_route::PathMatchType, traffic_policy as raw},
};

/// With fewer there would not be one for each priority.
const MIN_LIMIT: u32 = 3;
/// More requests than an application of one proxy can have under way.
const MAX_LIMIT: u32 = 100_000;
/// Every entry is compared with every request.
const MAX_PRIORITIES: usize = 32;
const TARGET: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// A limit on requests at once that follows the application's latency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptiveConcurrency {
    /// The limit is never lower; at least 3.
    pub minimum: u32,
    /// The limit is never higher; not less than `minimum`.
    pub maximum: u32,
    /// The limit to begin with, between the two.
    pub initial: u32,
    /// Where requests above the limit wait.
    pub queue: Queue,
    /// How important requests are; the first that matches counts.
    pub priorities: Vec<Priority>,
}

/// A queue that drops when waiting has become the rule (CoDel, RFC 8289).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests that wait, at most.
    pub length: u32,
    /// The wait that is acceptable; more than zero.
    pub target: Duration,
    /// How long the wait may be above `target`; not less than it.
    pub interval: Duration,
}

/// How important some requests are: those that fulfil all of its conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Priority {
    /// On a header.
    pub header: Option<HeaderCondition>,
    /// Whole segments of the path, from the start; without a trailing slash.
    pub path_prefix: Option<Arc<str>>,
    /// How important.
    pub level: PriorityLevel,
}

impl AdaptiveConcurrency {
    /// How important a request is. `path` is without query.
    pub fn level_of(&self, path: &str, headers: &HeaderMap) -> PriorityLevel {
        let found = self.priorities.iter().find(|priority| priority.matches(path, headers));
        found.map(|priority| priority.level).unwrap_or_default()
    }
}

impl Priority {
    fn matches(&self, path: &str, headers: &HeaderMap) -> bool {
        self.path_prefix.as_ref().is_none_or(|prefix| is_below(path, prefix))
            && self.header.as_ref().is_none_or(|header| header.matches(headers))
    }
}

impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        Self {
            minimum: 4,
            maximum: 1000,
            initial: 20,
            queue: Queue::default(),
            priorities: Vec::new(),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            length: 1000,
            target: Duration::from_millis(5),
            interval: Duration::from_millis(100),
        }
    }
}

/// Reads `adaptiveConcurrency` and `priorities` below `at`.
pub(super) fn parse_concurrency(
    at: Path<'_>,
    raw: Option<raw::AdaptiveConcurrency>,
    priorities: Option<Vec<raw::Priority>>,
    problems: &mut Problems,
) -> Option<AdaptiveConcurrency> {
    let here = at.field("priorities");
    if raw.is_none() && priorities.is_some() {
        problems.add(here, "has an effect only beside adaptiveConcurrency");
    }
    let priorities = parse_priorities(at, priorities, problems);
    let raw = raw?;
    let at = at.field("adaptiveConcurrency");
    let default = AdaptiveConcurrency::default();
    let queue = parse_queue(at.field("queue"), raw.queue, problems);
    let mut fields = Fields::new(at, problems);
    let minimum = fields.number("minimum", raw.minimum, MIN_LIMIT..=MAX_LIMIT, default.minimum);
    let maximum = fields.number("maximum", raw.maximum, minimum..=MAX_LIMIT, default.maximum);
    let initial = fields.number("initial", raw.initial, minimum..=maximum, default.initial);
    Some(AdaptiveConcurrency { minimum, maximum, initial, queue, priorities })
}

fn parse_queue(at: Path<'_>, raw: Option<raw::Queue>, problems: &mut Problems) -> Queue {
    let default = Queue::default();
    let Some(raw) = raw else { return default };
    let mut fields = Fields::new(at, problems);
    let target = fields.duration("target", raw.target.as_deref(), TARGET, default.target);
    let (interval, range) = (raw.interval.as_deref(), target..=LONGEST_INTERVAL);
    Queue {
        length: fields.number("length", raw.length, 0..=MAX_LIMIT, default.length),
        target,
        interval: fields.duration("interval", interval, range, default.interval),
    }
}

fn parse_priorities(
    at: Path<'_>,
    raw: Option<Vec<raw::Priority>>,
    problems: &mut Problems,
) -> Vec<Priority> {
    let Some(raw) = raw else { return Vec::new() };
    Fields::new(at, problems).count("priorities", raw.len(), 1..=MAX_PRIORITIES);
    let here = at.field("priorities");
    let entries = raw.into_iter().enumerate();
    entries.filter_map(|(i, raw)| parse_priority(here.index(i), raw, problems)).collect()
}

fn parse_priority(at: Path<'_>, raw: raw::Priority, problems: &mut Problems) -> Option<Priority> {
    if raw.header.is_none() && raw.path_prefix.is_none() {
        problems.add(at, "needs header, pathPrefix or both; requests without an entry are Normal");
    }
    let here = at.field("pathPrefix");
    let path_prefix = match raw.path_prefix {
        Some(text) => match parse_path_text(&here, PathMatchType::PathPrefix, &text, problems)? {
            PathMatch::Prefix(prefix) => Some(prefix),
            PathMatch::Exact(_) | PathMatch::Regex(_) => None,
        },
        None => None,
    };
    let header = match raw.header {
        Some(header) => Some(parse_header_condition(at.field("header"), header, problems)?),
        None => None,
    };
    Some(Priority { header, path_prefix, level: raw.priority })
}

//! `HTTPRoute`.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, Method};
use regex::Regex;
use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Host, Model, ObjectName,
        backend::{Backend, Parent, parse_backend, parse_parents},
        duration,
        filter::{Filter, PathChange, Place, header_name, parse_filters},
        range::Fields,
        traffic_policy::retry::{ATTEMPTS, FAILURES, LONGEST_BACKOFF, MAX_STATUSES},
    },
    resource::read,
    spec::http_route as raw,
};

const MAX_RULES: usize = 64;
const MAX_MATCHES: usize = 64;
const MAX_BACKENDS: usize = 64;
const MAX_HOSTNAMES: usize = 64;
/// A compiled expression may not take more; the default of the regex crate is ten times this.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// Where requests for some services go. Also made from a `GRPCRoute`.
#[derive(Clone, Debug)]
pub struct HttpRoute {
    /// `HTTPRoute` or `GRPCRoute`.
    pub kind: &'static str,
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown. The older of two equal routes wins.
    pub created: String,
    /// At least one.
    pub parents: Vec<Parent>,
    /// Whether others than Services are among its parents, such as a Gateway: those belong to somebody else.
    pub has_other_parents: bool,
    /// Any host when empty.
    pub hostnames: Vec<Host>,
    /// At least one.
    pub rules: Vec<HttpRule>,
    /// Where further conditions on a header or query parameter stand that has one already: of several Gateway API lets
    /// only the first count.
    pub repeated: Vec<String>,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct HttpRule {
    /// As the user named it.
    pub name: Option<String>,
    /// At least one; any is enough.
    pub matches: Vec<HttpMatch>,
    /// In order.
    pub filters: Vec<Filter>,
    /// By weight.
    pub backends: Vec<HttpBackend>,
    /// For the whole exchange; `Some(ZERO)` says there is none, `None` leaves it to the service's policy.
    pub request_timeout: Option<Duration>,
    /// For one attempt.
    pub attempt_timeout: Option<Duration>,
    /// What is sent again beside what the service's policy says.
    pub retry: Option<RouteRetry>,
}

/// What a route wants to be sent again (GEP-1731), within the budget of the service's policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRetry {
    /// After which status codes; sorted.
    pub codes: Vec<u16>,
    /// Retries of one request, at most; at least 1. `None` leaves it to the service's policy.
    pub attempts: Option<u32>,
    /// The least time between two attempts. `None` leaves it to the service's policy.
    pub backoff: Option<Duration>,
}

/// A backend with its own filters.
#[derive(Clone, Debug)]
pub struct HttpBackend {
    /// Where.
    pub backend: Backend,
    /// Header changes.
    pub filters: Vec<Filter>,
}

/// Conditions that must all hold.
#[derive(Clone, Debug)]
pub struct HttpMatch {
    /// On the path.
    pub path: PathMatch,
    /// On the method.
    pub method: Option<Method>,
    /// On headers.
    pub headers: Vec<(HeaderName, Pattern)>,
    /// On query parameters.
    pub query: Vec<(String, Pattern)>,
}

/// A condition on the path (without query).
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Whole segments from the start; without a trailing slash, so that `/` is the empty string.
    Prefix(Arc<str>),
    /// The whole path.
    Regex(Regex),
}

/// A condition on a value.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Equal.
    Exact(String),
    /// The whole value.
    Regex(Regex),
}

impl Pattern {
    /// Whether `value` fulfils it.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

impl PathMatch {
    /// Whether `path` (without query) fulfils it.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *path,
            Self::Prefix(prefix) => is_below(path, prefix),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// Whether `path` begins with the segments of `prefix`, which has no trailing slash.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::HttpRouteSpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let all_parents = raw.parent_refs.len();
    let parents =
        parse_parents(&at.field("parentRefs"), raw.parent_refs, &name.namespace, problems);
    let hostnames = parse_hostnames(&at.field("hostnames"), &raw.hostnames, problems);
    let rules_at = at.field("rules");
    check_count(&rules_at, raw.rules.len(), 1, MAX_RULES, problems);
    let (mut rules, mut repeated) = (Vec::new(), Vec::new());
    for (i, rule) in raw.rules.into_iter().enumerate() {
        rules.extend(parse_rule(
            &rules_at.index(i),
            rule,
            &name.namespace,
            &mut repeated,
            problems,
        ));
    }
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::HttpRoute(
        HttpRoute {
            kind: "HTTPRoute",
            name,
            created,
            has_other_parents: all_parents > parents.len(),
            parents,
            hostnames,
            rules,
            repeated,
        }
        .into(),
    ))
}

fn parse_rule(
    at: &Path<'_>,
    raw: raw::HttpRouteRule,
    namespace: &str,
    repeated: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<HttpRule> {
    let matches_at = at.field("matches");
    check_count(&matches_at, raw.matches.len(), 0, MAX_MATCHES, problems);
    let mut matches = Vec::new();
    let raw_matches =
        if raw.matches.is_empty() { vec![raw::HttpRouteMatch::default()] } else { raw.matches };
    for (i, raw) in raw_matches.into_iter().enumerate() {
        matches.extend(parse_match(&matches_at.index(i), raw, repeated, problems));
    }
    let filters_at = at.field("filters");
    let filters = parse_filters(&filters_at, raw.filters, namespace, Place::HttpRule, problems);
    let backends = parse_backends(&at.field("backendRefs"), raw.backend_refs, namespace, problems);
    check_filters(at, &filters, &matches, &backends, problems);
    let timeouts = raw.timeouts.unwrap_or_default();
    let timeouts_at = at.field("timeouts");
    let request_timeout =
        parse_duration(&timeouts_at.field("request"), timeouts.request.as_deref(), problems);
    let attempt_at = timeouts_at.field("backendRequest");
    let attempt_timeout =
        parse_duration(&attempt_at, timeouts.backend_request.as_deref(), problems);
    if let (Some(request), Some(attempt)) = (request_timeout, attempt_timeout)
        && attempt > request
        && !request.is_zero()
    {
        problems.add(attempt_at, "must not be longer than timeouts.request");
    }
    let retry = raw.retry.map(|retry| parse_retry(at.field("retry"), retry, problems));
    let name = raw.name;
    Some(HttpRule { name, matches, filters, backends, request_timeout, attempt_timeout, retry })
}

fn parse_retry(at: Path<'_>, raw: raw::HttpRouteRetry, problems: &mut Problems) -> RouteRetry {
    let mut fields = Fields::new(at, problems);
    let codes = fields.numbers("codes", Some(raw.codes), 0..=MAX_STATUSES, FAILURES);
    let attempts =
        raw.attempts.map(|attempts| fields.number("attempts", Some(attempts), ATTEMPTS, 1));
    let backoff = raw.backoff.map(|backoff| {
        let range = Duration::ZERO..=LONGEST_BACKOFF;
        fields.duration("backoff", Some(&backoff), range, Duration::ZERO)
    });
    RouteRetry { codes, attempts, backoff }
}

/// Rules of Gateway API that concern several fields of a rule.
fn check_filters(
    at: &Path<'_>,
    filters: &[Filter],
    matches: &[HttpMatch],
    backends: &[HttpBackend],
    problems: &mut Problems,
) {
    if filters.iter().any(|filter| matches!(filter, Filter::Redirect(_))) && !backends.is_empty() {
        problems.add(at.field("backendRefs"), "must be empty in a rule that redirects");
    }
    let path = filters.iter().find_map(|filter| match filter {
        Filter::Redirect(redirect) => redirect.path.as_ref(),
        Filter::Rewrite(rewrite) => rewrite.path.as_ref(),
        _ => None,
    });
    let all_prefixes = matches.iter().all(|m| matches!(m.path, PathMatch::Prefix(_)));
    if matches!(path, Some(PathChange::Prefix(_))) && !all_prefixes {
        problems.add(
            at.field("matches"),
            "ReplacePrefixMatch needs every match of the rule to be a PathPrefix",
        );
    }
}

pub(crate) fn parse_backends(
    at: &Path<'_>,
    raw: Vec<raw::HttpBackendRef>,
    namespace: &str,
    problems: &mut Problems,
) -> Vec<HttpBackend> {
    check_count(at, raw.len(), 0, MAX_BACKENDS, problems);
    let mut backends = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let here = at.index(i);
        let (reference, filters) = raw.split();
        let filters =
            parse_filters(&here.field("filters"), filters, namespace, Place::Backend, problems);
        let backend = parse_backend(&here, reference, namespace, problems);
        backends.extend(backend.map(|backend| HttpBackend { backend, filters }));
    }
    backends
}

fn parse_match(
    at: &Path<'_>,
    raw: raw::HttpRouteMatch,
    repeated: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<HttpMatch> {
    let path = match raw.path {
        Some(raw) => parse_path(&at.field("path"), &raw, problems),
        None => Some(PathMatch::Prefix("".into())),
    };
    let method = raw.method.and_then(|method| parse_method(&at.field("method"), &method, problems));
    let headers = parse_headers(&at.field("headers"), raw.headers, repeated, problems);
    let query_at = at.field("queryParams");
    let mut query: Vec<(String, Pattern)> = Vec::new();
    for (i, raw) in raw.query_params.into_iter().enumerate() {
        let here = query_at.index(i);
        let pattern = parse_pattern(&here.field("value"), raw.kind, raw.value, problems);
        match query.iter().any(|(name, _)| *name == raw.name) {
            true => repeated.push(here.to_string()),
            false => query.extend(pattern.map(|pattern| (raw.name, pattern))),
        }
    }
    Some(HttpMatch { path: path?, method, headers, query })
}

pub(crate) fn parse_method(at: &Path<'_>, method: &str, problems: &mut Problems) -> Option<Method> {
    let parsed = Method::from_bytes(method.as_bytes())
        .ok()
        .filter(|_| method.bytes().all(|byte| byte.is_ascii_uppercase()))
        .ok_or_else(|| format!("`{method}` is not a method; write GET, POST, ... in capitals"));
    problems.take(at, parsed)
}

pub(crate) fn parse_headers(
    at: &Path<'_>,
    raw: Vec<raw::ValueMatch>,
    repeated: &mut Vec<String>,
    problems: &mut Problems,
) -> Vec<(HeaderName, Pattern)> {
    let mut headers: Vec<(HeaderName, Pattern)> = Vec::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let here = at.index(i);
        let name = header_name(&here.field("name"), &raw.name, problems);
        let pattern = parse_pattern(&here.field("value"), raw.kind, raw.value, problems);
        let (Some(name), Some(pattern)) = (name, pattern) else { continue };
        match headers.iter().any(|(other, _)| *other == name) {
            true => repeated.push(here.to_string()),
            false => headers.push((name, pattern)),
        }
    }
    headers
}

pub(crate) fn parse_path(
    at: &Path<'_>,
    raw: &raw::HttpPathMatch,
    problems: &mut Problems,
) -> Option<PathMatch> {
    parse_path_text(&at.field("value"), raw.kind, raw.value.as_deref().unwrap_or("/"), problems)
}

pub(crate) fn parse_path_text(
    at: &Path<'_>,
    kind: raw::PathMatchType,
    value: &str,
    problems: &mut Problems,
) -> Option<PathMatch> {
    if kind == raw::PathMatchType::RegularExpression {
        return parse_regex(at, value, problems).map(PathMatch::Regex);
    }
    let bad = !value.starts_with('/')
        || value.contains("//")
        || value.contains(['?', '#'])
        || value.split('/').any(|segment| segment == "." || segment == "..")
        || ["%2f", "%2F"].iter().any(|escaped| value.contains(escaped));
    if bad {
        problems.add(
            at,
            format!("`{value}` must be a path such as /a/b: no `//`, `.`, `..`, `%2F`, `?` or `#`"),
        );
        return None;
    }
    Some(match kind {
        raw::PathMatchType::Exact => PathMatch::Exact(value.into()),
        _ => PathMatch::Prefix(value.strip_suffix('/').unwrap_or(value).into()),
    })
}

fn parse_pattern(
    at: &Path<'_>,
    kind: raw::ValueMatchType,
    value: String,
    problems: &mut Problems,
) -> Option<Pattern> {
    match kind {
        raw::ValueMatchType::Exact => Some(Pattern::Exact(value)),
        raw::ValueMatchType::RegularExpression => {
            parse_regex(at, &value, problems).map(Pattern::Regex)
        }
    }
}

/// A regular expression that must match the whole text.
pub(crate) fn parse_regex(at: &Path<'_>, text: &str, problems: &mut Problems) -> Option<Regex> {
    let whole = format!("^(?:{text})$");
    let regex = regex::RegexBuilder::new(&whole).size_limit(MAX_REGEX_BYTES).build();
    problems.take(
        at,
        regex.map_err(|error| format!("`{text}` is not a usable regular expression: {error}")),
    )
}

pub(crate) fn parse_hostnames(at: &Path<'_>, raw: &[String], problems: &mut Problems) -> Vec<Host> {
    check_count(at, raw.len(), 0, MAX_HOSTNAMES, problems);
    let hosts = raw.iter().enumerate();
    hosts.filter_map(|(i, host)| problems.take(&at.index(i), Host::parse(host))).collect()
}

pub(crate) fn check_count(
    at: &Path<'_>,
    count: usize,
    least: usize,
    most: usize,
    problems: &mut Problems,
) {
    if count < least || count > most {
        problems.add(at, format!("has {count} entries; {least} to {most} are allowed"));
    }
}

pub(crate) fn parse_duration(
    at: &Path<'_>,
    raw: Option<&str>,
    problems: &mut Problems,
) -> Option<Duration> {
    problems.take(at, duration::parse(raw?))
}

//! The routes of one service port, in an order in which the first match is the right one.
//!
//! Precedence is Gateway API's (`HTTPRouteRule.matches`): the most specific hostname, then exact path, regular
//! expression (which the specification leaves open), longest prefix; then method, number of headers, number of query
//! parameters, age of the route, its name, order of the rules. Looking up costs one hash per path segment,
//! whatever the number of routes. A table with other routes is made of the one before it: what stands at other paths is
//! shared.

use std::{cmp::Reverse, sync::Arc};

use http::{HeaderMap, Method};
use leno_api::model::http_route::{HttpMatch, PathMatch, Pattern};
use rustc_hash::{FxHashMap, FxHashSet};

/// What a match is decided on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Lower case, without port.
    pub host: &'a str,
    /// As sent.
    pub method: &'a Method,
    /// Normalised, without query.
    pub path: &'a str,
    /// Without `?`.
    pub query: Option<&'a str>,
    /// As sent.
    pub headers: &'a HeaderMap,
}

/// A match with what belongs to it, as handed in.
#[derive(Clone, Debug)]
pub struct Entry<R> {
    /// `None` for any host; `*.` at the start for a wildcard.
    pub hostname: Option<Arc<str>>,
    /// The conditions.
    pub condition: HttpMatch,
    /// Orders entries that are equally specific: age, name, place. Smaller wins.
    pub rank: Rank,
    /// What to do.
    pub rule: R,
}

/// The route that entries are of: the oldest goes before (of unknown age last), then the first by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Whether nobody knows when it was made.
    pub undated: bool,
    /// RFC 3339.
    pub created: Box<str>,
    /// `namespace/name`.
    pub name: Box<str>,
    /// `HTTPRoute` or `GRPCRoute`.
    pub kind: &'static str,
}

/// A place in a route: its rules in their order, and the matches of each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The route.
    pub origin: Arc<Origin>,
    /// Which rule.
    pub rule: u32,
    /// Which of its matches.
    pub at: u32,
}

/// What is no longer in a table: entries of some routes, at places where they may be.
#[derive(Debug, Default)]
pub struct Gone<'a> {
    /// Kind and name, as in [`Origin`].
    pub routes: FxHashSet<(&'a str, &'a str)>,
    /// Hostnames and paths of their entries.
    pub places: FxHashSet<Place>,
}

/// Where entries stand among which the first that matches is taken: a hostname and a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    hostname: Option<Arc<str>>,
    path: Path,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Path {
    Exact(Arc<str>),
    /// Every one of them.
    Regex,
    Prefix(Arc<str>),
}

/// A compiled table.
#[derive(Clone, Debug)]
pub struct Table<R> {
    hosts: FxHashMap<Box<str>, Paths<R>>,
    /// Suffixes with their dot (`.example.com`), longest first.
    wildcards: Vec<(Box<str>, Paths<R>)>,
    any: Paths<R>,
}

#[derive(Clone, Debug)]
struct Paths<R> {
    exact: FxHashMap<Arc<str>, Candidates<R>>,
    regex: Candidates<R>,
    prefix: FxHashMap<Arc<str>, Candidates<R>>,
    /// Segments of the longest prefix there has been: deeper paths need not be tried.
    depth: usize,
}

/// By precedence. Shared with the table before and the one after.
type Candidates<R> = Arc<[Compiled<R>]>;

#[derive(Clone, Debug)]
struct Compiled<R> {
    condition: HttpMatch,
    rank: Rank,
    rule: R,
}

/// The rule that matched.
#[derive(Debug)]
pub struct Found<'a, R> {
    /// What to do.
    pub rule: &'a R,
    /// The prefix that matched, without trailing slash; empty for other kinds of match.
    pub prefix: &'a str,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self { hosts: FxHashMap::default(), wildcards: Vec::new(), any: Paths::default() }
    }
}

impl<R> Default for Paths<R> {
    fn default() -> Self {
        Self {
            exact: FxHashMap::default(),
            regex: Arc::new([]),
            prefix: FxHashMap::default(),
            depth: 0,
        }
    }
}

impl Place {
    /// Of an entry with these.
    pub fn new(hostname: Option<Arc<str>>, condition: &HttpMatch) -> Self {
        let path = match &condition.path {
            PathMatch::Exact(path) => Path::Exact(path.clone()),
            PathMatch::Regex(_) => Path::Regex,
            PathMatch::Prefix(prefix) => Path::Prefix(prefix.clone()),
        };
        Self { hostname, path }
    }
}

impl<R: Clone> Table<R> {
    /// Sorts `entries` by precedence and indexes them.
    pub fn new(entries: Vec<Entry<R>>) -> Self {
        Self::default().replace(Gone::default(), entries)
    }

    /// The table without what is gone and with `entries`. Costs what these do, and a pointer to be copied for each path
    /// there is.
    #[must_use]
    pub fn replace(&self, gone: Gone<'_>, entries: Vec<Entry<R>>) -> Self {
        let Gone { routes, places } = gone;
        let mut changes: FxHashMap<Place, Vec<Compiled<R>>> =
            places.into_iter().map(|place| (place, Vec::new())).collect();
        for Entry { hostname, condition, rank, rule } in entries {
            let place = Place::new(hostname, &condition);
            changes.entry(place).or_default().push(Compiled { condition, rank, rule });
        }
        let mut table = self.clone();
        for (Place { hostname, path }, added) in changes {
            let paths = table.paths(hostname.as_deref());
            let stays = |compiled: &&Compiled<R>| {
                let Origin { kind, name, .. } = &*compiled.rank.origin;
                !routes.contains(&(kind, name))
            };
            paths.change(path, stays, added);
        }
        table.hosts.retain(|_, paths| !paths.is_empty());
        table.wildcards.retain(|(_, paths)| !paths.is_empty());
        table.wildcards.sort_by_key(|(suffix, _)| Reverse(suffix.len()));
        table
    }

    fn paths(&mut self, hostname: Option<&str>) -> &mut Paths<R> {
        match hostname {
            None => &mut self.any,
            Some(host) => match host.strip_prefix('*') {
                None => self.hosts.entry(host.into()).or_default(),
                Some(suffix) => self.wildcard(suffix),
            },
        }
    }

    fn wildcard(&mut self, suffix: &str) -> &mut Paths<R> {
        let at =
            self.wildcards.iter().position(|(known, _)| **known == *suffix).unwrap_or_else(|| {
                self.wildcards.push((suffix.into(), Paths::default()));
                self.wildcards.len() - 1
            });
        &mut self.wildcards[at].1
    }
}

impl<R> Table<R> {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.wildcards.is_empty() && self.any.is_empty()
    }

    /// Every rule once for each of its matches, the most specific host first.
    pub fn rules(&self) -> impl Iterator<Item = &R> {
        let hosts = self.hosts.values().chain(self.wildcards.iter().map(|(_, paths)| paths));
        hosts.chain([&self.any]).flat_map(|paths| {
            let exact = paths.exact.values().flat_map(|candidates| candidates.iter());
            let prefix = paths.prefix.values().flat_map(|candidates| candidates.iter());
            exact.chain(paths.regex.iter()).chain(prefix).map(|compiled| &compiled.rule)
        })
    }

    /// The rule for `request`. When nothing matches under the most specific hostname, the next one is tried.
    pub fn find(&self, request: Request<'_>) -> Option<Found<'_, R>> {
        if !self.hosts.is_empty()
            && let Some(found) = self.hosts.get(request.host).and_then(|paths| paths.find(request))
        {
            return Some(found);
        }
        for (suffix, paths) in &self.wildcards {
            if request.host.len() > suffix.len()
                && request.host.ends_with(&**suffix)
                && let Some(found) = paths.find(request)
            {
                return Some(found);
            }
        }
        self.any.find(request)
    }
}

impl<R: Clone> Paths<R> {
    /// Takes out what does not stay at a path, and puts in what is `added`.
    fn change(
        &mut self,
        path: Path,
        stays: impl Fn(&&Compiled<R>) -> bool,
        mut added: Vec<Compiled<R>>,
    ) {
        let before = match &path {
            Path::Exact(path) => self.exact.get(path),
            Path::Regex => Some(&self.regex),
            Path::Prefix(prefix) => self.prefix.get(prefix),
        };
        added.extend(before.into_iter().flat_map(|all| all.iter()).filter(stays).cloned());
        added.sort_by(|one, other| one.precedence().cmp(&other.precedence()));
        match path {
            Path::Exact(path) => put(&mut self.exact, path, added),
            Path::Regex => self.regex = added.into(),
            Path::Prefix(prefix) => {
                self.depth = self.depth.max(prefix.bytes().filter(|byte| *byte == b'/').count());
                put(&mut self.prefix, prefix, added);
            }
        }
    }
}

fn put<R>(paths: &mut FxHashMap<Arc<str>, Candidates<R>>, path: Arc<str>, all: Vec<Compiled<R>>) {
    match all.is_empty() {
        true => _ = paths.remove(&path),
        false => _ = paths.insert(path, all.into()),
    }
}

impl<R> Paths<R> {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.regex.is_empty() && self.prefix.is_empty()
    }

    fn find(&self, request: Request<'_>) -> Option<Found<'_, R>> {
        if !self.exact.is_empty()
            && let Some(candidates) = self.exact.get(request.path)
            && let Some(found) = first(candidates, request)
        {
            return Some(found);
        }
        let by_regex = |compiled: &&Compiled<R>| compiled.condition.path.matches(request.path);
        if let Some(compiled) =
            self.regex.iter().filter(by_regex).find(|compiled| compiled.matches(request))
        {
            return Some(compiled.found());
        }
        self.find_prefix(request)
    }

    /// Tries the whole path, then shorter and shorter ones, cut at slashes.
    fn find_prefix(&self, request: Request<'_>) -> Option<Found<'_, R>> {
        let bytes = request.path.as_bytes();
        let mut end = bytes.len();
        if self.depth < bytes.len() {
            // No prefix has more segments than `depth`: begin there.
            end = bytes
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'/')
                .nth(self.depth)
                .map_or(end, |(at, _)| at);
        }
        loop {
            if let Some(candidates) = self.prefix.get(&request.path[..end])
                && let Some(found) = first(candidates, request)
            {
                return Some(found);
            }
            if end == 0 {
                return None;
            }
            end = request.path[..end].rfind('/').unwrap_or(0);
        }
    }
}

impl<R> Compiled<R> {
    /// Smaller goes before.
    fn precedence(&self) -> impl Ord {
        (specificity(&self.condition), &self.rank)
    }

    /// Whether everything but the path fits.
    fn matches(&self, request: Request<'_>) -> bool {
        let condition = &self.condition;
        condition.method.as_ref().is_none_or(|method| method == request.method)
            && condition
                .headers
                .iter()
                .all(|(name, pattern)| header_matches(request.headers, name, pattern))
            && condition
                .query
                .iter()
                .all(|(name, pattern)| query_matches(request.query, name, pattern))
    }

    fn found(&self) -> Found<'_, R> {
        let prefix = match &self.condition.path {
            PathMatch::Prefix(prefix) => prefix,
            _ => "",
        };
        Found { rule: &self.rule, prefix }
    }
}

fn first<'a, R>(candidates: &'a [Compiled<R>], request: Request<'_>) -> Option<Found<'a, R>> {
    candidates.iter().find(|compiled| compiled.matches(request)).map(Compiled::found)
}

/// Several values are one, joined by commas (RFC 9110 section 5.3), so that a second line cannot hide from a match.
fn header_matches(headers: &HeaderMap, name: &http::HeaderName, pattern: &Pattern) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    let Ok(first) = first.to_str() else { return false };
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return pattern.matches(first);
    }
    let mut joined = first.to_owned();
    for value in rest {
        let Ok(value) = value.to_str() else { return false };
        joined.push(',');
        joined.push_str(value);
    }
    pattern.matches(&joined)
}

/// The first value of a parameter counts (Gateway API, `HTTPQueryParamMatch`), percent-decoded.
fn query_matches(query: Option<&str>, name: &str, pattern: &Pattern) -> bool {
    let Some(query) = query else { return false };
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| decode(key) == name)
        .is_some_and(|(_, value)| pattern.matches(&decode(value)))
}

/// Percent-decoded, `+` as a blank.
pub fn decode(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return percent_encoding::percent_decode_str(&spaced)
            .decode_utf8_lossy()
            .into_owned()
            .into();
    }
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}

/// Smaller is more specific.
fn specificity(
    condition: &HttpMatch,
) -> (u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>) {
    let (kind, length) = match &condition.path {
        PathMatch::Exact(path) => (0, path.len()),
        PathMatch::Regex(regex) => (1, regex.as_str().len()),
        PathMatch::Prefix(prefix) => (2, prefix.len()),
    };
    let any_method = condition.method.is_none();
    (
        kind,
        Reverse(length),
        any_method,
        Reverse(condition.headers.len()),
        Reverse(condition.query.len()),
    )
}

#[cfg(test)]
mod tests;

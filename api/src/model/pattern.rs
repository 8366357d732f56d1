//! Patterns of text, as policies write them: `exact`, `prefix*`, `*suffix`, `*`, and for paths `/users/{*}/{**}`.

use crate::{Path, invalid::Problems};

/// Of values in one list; more belong into rules of their own.
const MAX_VALUES: usize = 64;
/// Of one value, in bytes. Every value is compared with every request.
const MAX_VALUE: usize = 512;

/// One pattern. Comparing minds case; hosts are in lower case, and the caller lowers what it compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `exact`.
    Exact(String),
    /// `prefix*`.
    Prefix(String),
    /// `*suffix`.
    Suffix(String),
    /// `*`: any value but the empty one.
    Present,
    /// `/users/{*}/orders`, of paths only.
    Template(Template),
}

impl Pattern {
    /// Whether `value` is as the pattern says.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == value,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_str()),
            Self::Present => !value.is_empty(),
            Self::Template(template) => template.matches(value),
        }
    }
}

/// A path with operators in place of segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// What stands between slashes, up to `{**}`.
    head: Vec<Segment>,
    /// What follows `{**}`, where there is one.
    tail: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// `{*}`: one segment that is not empty.
    One,
}

impl Template {
    /// Reads `/users/{*}/{**}`: an operator is a whole segment, and `{**}` is the last of them.
    fn parse(text: &str) -> Result<Self, String> {
        let mut head = Vec::new();
        let mut segments = text.split('/');
        let literal = |segment: &str| !segment.contains(['{', '}', '*']);
        while let Some(segment) = segments.next() {
            match segment {
                "{*}" => head.push(Segment::One),
                "{**}" => {
                    let rest: Vec<_> = segments.collect();
                    if !rest.iter().all(|segment| literal(segment)) {
                        return Err("nothing but plain segments may follow `{**}`".to_owned());
                    }
                    let tail: String = rest.iter().flat_map(|segment| ["/", segment]).collect();
                    return Ok(Self { head, tail: Some(tail) });
                }
                _ if literal(segment) => head.push(Segment::Literal(segment.to_owned())),
                _ => {
                    return Err(format!(
                        "`{}`: `{{*}}` and `{{**}}` are whole segments, and `*` does not stand beside them",
                        segment.escape_debug()
                    ));
                }
            }
        }
        Ok(Self { head, tail: None })
    }

    fn matches(&self, path: &str) -> bool {
        let mut rest = Some(path);
        for segment in &self.head {
            let Some(text) = rest else { return false };
            let (found, after) =
                text.split_once('/').map_or((text, None), |(found, after)| (found, Some(after)));
            let good = match segment {
                Segment::Literal(literal) => literal == found,
                Segment::One => !found.is_empty(),
            };
            if !good {
                return false;
            }
            rest = after;
        }
        match (&self.tail, rest) {
            (None, None) => true,
            (Some(tail), Some(rest)) => rest.ends_with(tail.as_str()),
            _ => false,
        }
    }
}

/// Patterns, of which one must match and none may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    /// One must; empty: nothing is asked.
    pub any_of: Vec<Pattern>,
    /// None may.
    pub none_of: Vec<Pattern>,
}

impl Patterns {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.any_of.is_empty() && self.none_of.is_empty()
    }

    /// Whether `value` is as asked. `None`, for what the request does not have, is never one of `any_of` nor of
    /// `none_of`.
    pub fn matches(&self, value: Option<&str>) -> bool {
        self.matches_values(value)
    }

    /// The same of something with several values, such as a header or an audience: one of them must be one of
    /// `any_of`, and none of them one of `none_of`.
    pub fn matches_values<'a>(
        &self,
        values: impl IntoIterator<Item = &'a str, IntoIter: Clone>,
    ) -> bool {
        let values = values.into_iter();
        let holds = |patterns: &[Pattern]| {
            values.clone().any(|value| patterns.iter().any(|pattern| pattern.matches(value)))
        };
        (self.any_of.is_empty() || holds(&self.any_of))
            && (self.none_of.is_empty() || !holds(&self.none_of))
    }
}

/// What the values of a field are, which decides how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// With or without `spiffe://`.
    Principals,
    /// Without case.
    Hosts,
    /// Numbers, nothing else.
    Ports,
    /// In capitals.
    Methods,
    /// With `{*}` and `{**}`.
    Paths,
    /// Names in which no `*` can occur.
    Names,
    /// Anything: a `*` that is neither the first nor the last character is itself.
    Free,
}

/// Reads a field of patterns and its opposite.
pub(crate) fn parse_patterns(
    at: &Path<'_>,
    fields: [&str; 2],
    of: Of,
    raw: [Option<Vec<String>>; 2],
    problems: &mut Problems,
) -> Patterns {
    let mut list = |field: &str, raw: Option<Vec<String>>| {
        each_value(&at.field(field), raw, problems, |text| of.parse(text))
    };
    let [any_field, none_field] = fields;
    let [any, none] = raw;
    Patterns { any_of: list(any_field, any), none_of: list(none_field, none) }
}

/// Reads each value of a list. A list that is there but empty is refused: whether it means anything or nothing is
/// too dangerous to guess.
pub(crate) fn each_value<T>(
    at: &Path<'_>,
    raw: Option<Vec<String>>,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let Some(raw) = raw else { return Vec::new() };
    check_list(at, raw.len(), problems);
    let mut values = Vec::new();
    for (i, text) in raw.iter().enumerate().take(MAX_VALUES) {
        let value = check_value(text).and_then(|()| parse(text));
        values.extend(problems.take(&at.index(i), value));
    }
    values
}

/// Whether a list that is there has 1 to 64 entries.
pub(crate) fn check_list(at: &Path<'_>, count: usize, problems: &mut Problems) {
    if count == 0 {
        problems.add(at, "is empty; leave it out to ask nothing");
    } else if count > MAX_VALUES {
        problems.add(at, format!("has {count} entries; at most {MAX_VALUES} are allowed"));
    }
}

/// Whether a value can be compared at all.
pub(crate) fn check_value(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty; write `*` for any value".to_owned());
    }
    if text.len() > MAX_VALUE {
        return Err(format!("has {} bytes; at most {MAX_VALUE} are allowed", text.len()));
    }
    Ok(())
}

impl Of {
    pub(crate) fn parse(self, text: &str) -> Result<Pattern, String> {
        match self {
            Self::Free => affix(text, true),
            Self::Names => affix(text, false),
            Self::Principals => affix(text.strip_prefix("spiffe://").unwrap_or(text), false),
            Self::Hosts => affix(&text.to_ascii_lowercase(), false),
            Self::Ports => parse_port(text),
            Self::Methods => parse_method(text),
            Self::Paths => parse_path(text),
        }
    }
}

fn affix(text: &str, stars_inside: bool) -> Result<Pattern, String> {
    if text == "*" {
        return Ok(Pattern::Present);
    }
    let (pattern, rest) = if let Some(suffix) = text.strip_prefix('*') {
        (Pattern::Suffix(suffix.to_owned()), suffix)
    } else if let Some(prefix) = text.strip_suffix('*') {
        (Pattern::Prefix(prefix.to_owned()), prefix)
    } else {
        (Pattern::Exact(text.to_owned()), text)
    };
    if rest.is_empty() {
        return Err("is empty; write `*` for any value".to_owned());
    }
    if rest.contains('*') && !stars_inside {
        return Err(format!(
            "`{}`: one `*` may stand at the beginning or at the end, nowhere else",
            text.escape_debug()
        ));
    }
    Ok(pattern)
}

fn parse_port(text: &str) -> Result<Pattern, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>().ok().filter(|port| digits && *port > 0) {
        Some(port) => Ok(Pattern::Exact(port.to_string())),
        None => Err(format!("`{}` is not a port; must be 1 to 65535", text.escape_debug())),
    }
}

/// A method is compared as it is, so `get` would never match what it is meant for.
fn parse_method(text: &str) -> Result<Pattern, String> {
    let token = http::Method::from_bytes(text.as_bytes()).is_ok();
    if !token || text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(format!(
            "`{}` is not a method; methods are in capitals, such as GET",
            text.escape_debug()
        ));
    }
    affix(text, false)
}

/// Compared with the path alone, which begins with `/`, so that a query or a path without it would never match.
fn parse_path(text: &str) -> Result<Pattern, String> {
    let shown = text.escape_debug();
    if text.contains(['?', '#']) {
        return Err(format!("`{shown}`: a path has no query or fragment here"));
    }
    if !text.starts_with(['/', '*']) {
        return Err(format!("`{shown}` must begin with `/` or `*`"));
    }
    if text.contains(['{', '}']) {
        return Template::parse(text)
            .map(Pattern::Template)
            .map_err(|error| format!("`{shown}` is not a template of paths: {error}"));
    }
    affix(text, false)
}

#[cfg(test)]
mod tests;

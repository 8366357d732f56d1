//! Conditions on requests, as Leno's own policies write them.

use http::{HeaderMap, HeaderName, Method};

use crate::{
    Path,
    invalid::Problems,
    model::{
        http_route::{PathMatch, parse_method, parse_path},
        range::Fields,
    },
    spec::matching as raw,
};

/// Every condition is compared with every request.
const MAX_HEADERS: usize = 16;
const MAX_MATCHES: usize = 32;
/// Bytes of a value.
const MAX_VALUE: usize = 4096;

/// Which requests: all that is set must match.
#[derive(Clone, Debug)]
pub struct RequestMatch {
    /// On the path without query; `None` is any.
    pub path: Option<PathMatch>,
    /// On the method.
    pub method: Option<Method>,
    /// On headers.
    pub headers: Vec<HeaderCondition>,
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderCondition {
    /// Which one.
    pub name: HeaderName,
    /// The whole value; `None` is any.
    pub value: Option<String>,
}

impl RequestMatch {
    /// Whether a request fulfils it. `path` is without query.
    pub fn matches(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|wanted| wanted.matches(path))
            && self.headers.iter().all(|condition| condition.matches(headers))
    }
}

impl HeaderCondition {
    /// Whether `headers` fulfil it. Several values are one, joined by commas (RFC 9110 section 5.3), so that a second
    /// line cannot hide from a match.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        let Some(wanted) = &self.value else { return headers.contains_key(&self.name) };
        let mut rest = wanted.as_bytes();
        let mut found = false;
        for value in headers.get_all(&self.name) {
            if found {
                let Some(after) = rest.strip_prefix(b",") else { return false };
                rest = after;
            }
            let Some(after) = rest.strip_prefix(value.as_bytes()) else { return false };
            (rest, found) = (after, true);
        }
        found && rest.is_empty()
    }
}

/// Reads `matches` below `at`: a list that is there says something.
pub(crate) fn parse_matches(
    at: Path<'_>,
    raw: Option<Vec<raw::RequestMatch>>,
    problems: &mut Problems,
) -> Vec<RequestMatch> {
    let Some(raw) = raw else { return Vec::new() };
    Fields::new(at, problems).count("matches", raw.len(), 1..=MAX_MATCHES);
    let here = at.field("matches");
    let matches = raw.into_iter().enumerate();
    matches.filter_map(|(i, raw)| parse_match(here.index(i), raw, problems)).collect()
}

fn parse_match(
    at: Path<'_>,
    raw: raw::RequestMatch,
    problems: &mut Problems,
) -> Option<RequestMatch> {
    Fields::new(at, problems).count("headers", raw.headers.len(), 0..=MAX_HEADERS);
    let path = match raw.path {
        Some(raw) => Some(parse_path(&at.field("path"), &raw, problems)?),
        None => None,
    };
    let method = match raw.method {
        Some(method) => Some(parse_method(&at.field("method"), &method, problems)?),
        None => None,
    };
    let here = at.field("headers");
    let headers = raw.headers.into_iter().enumerate();
    let headers = headers
        .filter_map(|(i, raw)| parse_header_condition(here.index(i), raw, problems))
        .collect();
    Some(RequestMatch { path, method, headers })
}

pub(crate) fn parse_header_condition(
    at: Path<'_>,
    raw: raw::HeaderMatch,
    problems: &mut Problems,
) -> Option<HeaderCondition> {
    let mut fields = Fields::new(at, problems);
    fields.exactly_one(&[("exact", raw.exact.is_some()), ("present", raw.present.is_some())]);
    if raw.exact.as_ref().is_some_and(|value| value.len() > MAX_VALUE) {
        fields.problem("exact", format!("must have at most {MAX_VALUE} bytes"));
    }
    let name = parse_header_name(&at.field("name"), &raw.name, problems)?;
    Some(HeaderCondition { name, value: raw.exact })
}

pub(crate) fn parse_header_name(
    at: &Path<'_>,
    text: &str,
    problems: &mut Problems,
) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes());
    problems.take(at, name.map_err(|_| format!("`{}` is not a header name", text.escape_debug())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn several_lines_of_a_header_are_one_value() {
        let condition = |value: Option<&str>| HeaderCondition {
            name: HeaderName::from_static("x-a"),
            value: value.map(str::to_owned),
        };
        let rows: [(&[(&str, &str)], _, bool); 9] = [
            (&[], None, false),
            (&[("x-a", "")], None, true),
            (&[("x-b", "1")], Some("1"), false),
            (&[], Some(""), false),
            (&[("x-a", "1")], Some("1"), true),
            (&[("x-a", "1"), ("x-a", "2")], Some("1"), false),
            (&[("x-a", "1"), ("x-a", "2")], Some("1,2"), true),
            (&[("x-a", "1")], Some("1,2"), false),
            (&[("x-a", "12")], Some("1"), false),
        ];
        for (lines, value, expected) in rows {
            let lines = headers(lines);
            assert_eq!(condition(value).matches(&lines), expected, "{lines:?} {value:?}");
        }
    }

    #[test]
    fn all_that_is_set_must_match() {
        let condition = RequestMatch {
            path: Some(PathMatch::Prefix("/v1".into())),
            method: Some(Method::GET),
            headers: vec![HeaderCondition { name: HeaderName::from_static("x-a"), value: None }],
        };
        let with = headers(&[("x-a", "1")]);
        assert!(condition.matches(&Method::GET, "/v1/a", &with));
        assert!(!condition.matches(&Method::PUT, "/v1/a", &with));
        assert!(!condition.matches(&Method::GET, "/v10", &with));
        assert!(!condition.matches(&Method::GET, "/v1/a", &HeaderMap::new()));
        let any = RequestMatch { path: None, method: None, headers: Vec::new() };
        assert!(any.matches(&Method::PUT, "*", &HeaderMap::new()));
    }
}

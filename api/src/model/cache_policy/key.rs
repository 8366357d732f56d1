//! What tells responses of one URL apart, beside what they say in `Vary`.

use std::ops::RangeInclusive;

use http::{HeaderName, header};

use crate::{
    Path,
    invalid::Problems,
    model::{matching::parse_header_name, range::Fields},
    spec::cache_policy as raw,
};

/// Every value is copied and hashed for every request.
const PARTS: RangeInclusive<usize> = 0..=16;
const MAX_PARAMETERS: usize = 64;
/// Bytes of a name: of a query parameter, a cookie.
const MAX_NAME: usize = 256;
/// Of these the cache itself makes sense, or they are about the connection: as a part of the key they would only keep
/// equal responses apart.
const NO_PARTS: [(HeaderName, &str); 12] = [
    (header::COOKIE, "name the cookies that matter in key.cookies"),
    (header::HOST, "is a part of every key already"),
    (header::RANGE, "parts are made from the whole response"),
    (header::IF_MATCH, CONDITION),
    (header::IF_NONE_MATCH, CONDITION),
    (header::IF_MODIFIED_SINCE, CONDITION),
    (header::IF_UNMODIFIED_SINCE, CONDITION),
    (header::IF_RANGE, CONDITION),
    (header::CONNECTION, HOP),
    (header::TE, HOP),
    (header::TRANSFER_ENCODING, HOP),
    (header::UPGRADE, HOP),
];
const CONDITION: &str = "the cache answers conditions itself";
const HOP: &str = "is about the connection, not the response";

/// What tells responses apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheKey {
    /// Request headers whose values count; each once.
    pub headers: Vec<HeaderName>,
    /// Cookies whose values count; each once, case matters.
    pub cookies: Vec<String>,
    /// What of the query counts.
    pub query: QueryKey,
}

/// What of the query counts. Names are compared as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum QueryKey {
    /// All of it as it is written.
    #[default]
    All,
    /// Only these parameters; nothing when empty. Sorted, without doubles.
    Only(Vec<String>),
    /// All but these; never empty. Sorted, without doubles.
    Except(Vec<String>),
}

pub(super) fn parse(at: Path<'_>, raw: raw::CacheKey, problems: &mut Problems) -> CacheKey {
    CacheKey {
        headers: parse_headers(at, &raw.headers, problems),
        cookies: parse_cookies(at, raw.cookies, problems),
        query: raw
            .query
            .map(|query| parse_query(at.field("query"), query, problems))
            .unwrap_or_default(),
    }
}

fn parse_headers(at: Path<'_>, raw: &[String], problems: &mut Problems) -> Vec<HeaderName> {
    Fields::new(at, problems).count("headers", raw.len(), PARTS);
    let here = at.field("headers");
    let mut headers = Vec::new();
    for (i, text) in raw.iter().enumerate() {
        let here = here.index(i);
        let Some(name) = parse_header_name(&here, text, problems) else { continue };
        if let Some((_, why)) = NO_PARTS.iter().find(|(other, _)| *other == name) {
            problems.add(here, format!("`{name}` cannot be a part of the key: {why}"));
        } else if headers.contains(&name) {
            problems.add(here, format!("`{name}` stands twice"));
        } else {
            headers.push(name);
        }
    }
    headers
}

fn parse_cookies(at: Path<'_>, raw: Vec<String>, problems: &mut Problems) -> Vec<String> {
    Fields::new(at, problems).count("cookies", raw.len(), PARTS);
    let here = at.field("cookies");
    let mut cookies = Vec::new();
    for (i, name) in raw.into_iter().enumerate() {
        // A cookie's name is a token (RFC 6265 section 4.1.1), as a header's is, but its case counts.
        let token = name.len() <= MAX_NAME && HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !token {
            let shown = name.escape_debug();
            problems.add(here.index(i), format!("`{shown}` is not a name of a cookie"));
        } else if cookies.contains(&name) {
            problems.add(here.index(i), format!("`{name}` stands twice"));
        } else {
            cookies.push(name);
        }
    }
    cookies
}

fn parse_query(at: Path<'_>, raw: raw::CacheQuery, problems: &mut Problems) -> QueryKey {
    let both = [("include", raw.include.is_some()), ("exclude", raw.exclude.is_some())];
    Fields::new(at, problems).exactly_one(&both);
    if let Some(names) = raw.include {
        QueryKey::Only(parse_parameters(at, "include", names, 0, problems))
    } else if let Some(names) = raw.exclude {
        QueryKey::Except(parse_parameters(at, "exclude", names, 1, problems))
    } else {
        QueryKey::All
    }
}

fn parse_parameters(
    at: Path<'_>,
    field: &str,
    mut names: Vec<String>,
    least: usize,
    problems: &mut Problems,
) -> Vec<String> {
    Fields::new(at, problems).count(field, names.len(), least..=MAX_PARAMETERS);
    let here = at.field(field);
    for (i, name) in names.iter().enumerate() {
        // `&` and `=` end a name, `#` ends the query: no parameter is ever called so.
        let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"&=#".contains(&byte));
        if !plain || !(1..=MAX_NAME).contains(&name.len()) {
            let message = format!(
                "`{}` is not a name of a parameter: 1 to {MAX_NAME} characters as they stand in the URL, escaped, \
                 without `&`, `=`, `#`",
                name.escape_debug()
            );
            problems.add(here.index(i), message);
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

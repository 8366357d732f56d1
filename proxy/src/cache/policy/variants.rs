//! Several responses for one URL, and which one a request selects (RFC 9111 section 4.1).
//!
//! Requests that mean the same shall find the same response: fields are compared after their lines are joined and
//! whitespace is taken out; languages and codings also without regard to case and order.

use http::{HeaderMap, HeaderName, header};

/// More selecting fields than this, and a response is its own variant for everybody: not worth keeping.
pub const MOST_FIELDS: usize = 16;

/// The fields that selected a response, with what the request had in them, in a form that can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    fields: Vec<Field>,
    /// Of the response, in lower case, where it has one and depends on what the caller reads.
    language: Option<Box<[u8]>>,
}

/// One of the fields.
#[derive(Clone, Debug)]
struct Field {
    name: HeaderName,
    /// In the form in which it is compared; `None` where the request had no such field.
    normal: Option<Vec<u8>>,
    /// As the request had it, in one line: most requests of a caller say it the same way, and need not be read then.
    line: Option<Box<[u8]>>,
}

impl PartialEq for Field {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.normal == other.normal
    }
}

impl Eq for Field {}

impl Field {
    fn of(name: HeaderName, request: &HeaderMap) -> Self {
        let normal = normal(&name, request);
        let line = the_line(&name, request).map(Box::from);
        Self { name, normal, line }
    }

    fn matches(&self, request: &HeaderMap) -> bool {
        let same = self.line.is_some() && the_line(&self.name, request) == self.line.as_deref();
        same || normal(&self.name, request) == self.normal
    }
}

impl Selection {
    /// Of the request that a response with `response` as its fields belongs to. `None` for `Vary: *`, for what is no list
    /// of names, and for more than [`MOST_FIELDS`].
    pub fn of(response: &HeaderMap, request: &HeaderMap) -> Option<Self> {
        let mut fields: Vec<Field> = Vec::new();
        for name in names(response) {
            let name = name?;
            if fields.iter().all(|known| known.name != name) {
                fields.push(Field::of(name, request));
            }
        }
        // In whatever order the response names them.
        fields.sort_unstable_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
        let by_language = fields.iter().any(|field| field.name == header::ACCEPT_LANGUAGE);
        let language = by_language.then(|| language_of(response)).flatten();
        (fields.len() <= MOST_FIELDS).then_some(Self { fields, language })
    }

    /// Whether a request selects the response.
    pub fn matches(&self, request: &HeaderMap) -> bool {
        self.fields.iter().all(|field| {
            field.matches(request)
                || (field.name == header::ACCEPT_LANGUAGE
                    && self.language.is_some()
                    && preferred_language(request) == self.language)
        })
    }

    /// What the request had in these fields: the same bytes for the same, and other ones for anything else.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Field { name, normal, .. } in &self.fields {
            // No name contains a zero, and the length of a value says where it ends.
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(&[0, u8::from(normal.is_some())]);
            let value = normal.as_deref().unwrap_or_default();
            bytes.extend_from_slice(&(value.len() as u64).to_be_bytes());
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// Bytes it takes in memory, about.
    pub fn size(&self) -> usize {
        let one = |field: &Field| {
            let normal = field.normal.as_ref().map_or(0, Vec::len);
            normal + field.line.as_ref().map_or(0, |line| line.len()) + 96
        };
        self.fields.iter().map(one).sum()
    }
}

/// Whether no request ever selects a response with these fields.
pub fn is_star(response: &HeaderMap) -> bool {
    names(response).any(|name| name.is_none())
}

/// The names in `Vary`; `None` for `*` and for what is no name.
fn names(response: &HeaderMap) -> impl Iterator<Item = Option<HeaderName>> {
    let members = |value: &http::HeaderValue| {
        let members = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let there = members.filter(|name| !name.is_empty());
        // `*` is a token, but no field.
        let name = |name: &[u8]| HeaderName::from_bytes(name).ok().filter(|_| name != b"*");
        there.map(name).collect::<Vec<_>>()
    };
    response.get_all(header::VARY).iter().flat_map(members)
}

/// What a request has in a field, if that is one line.
fn the_line<'a>(name: &HeaderName, request: &'a HeaderMap) -> Option<&'a [u8]> {
    let mut lines = request.get_all(name).iter();
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    Some(line.as_bytes())
}

/// What a request has in a field, in the form in which it is compared; `None` where it has no such field.
fn normal(name: &HeaderName, request: &HeaderMap) -> Option<Vec<u8>> {
    if !request.contains_key(name) {
        return None;
    }
    let lines = request.get_all(name).iter().map(http::HeaderValue::as_bytes);
    let mut members: Vec<Vec<u8>> = lines.flat_map(members).collect();
    if [header::ACCEPT_LANGUAGE, header::ACCEPT_ENCODING].contains(name) {
        members.iter_mut().for_each(|member| member.make_ascii_lowercase());
        members.sort_unstable();
    }
    Some(members.join(&b','))
}

/// The one language that the response is in.
fn language_of(response: &HeaderMap) -> Option<Box<[u8]>> {
    let mut values = response.get_all(header::CONTENT_LANGUAGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let language = value.as_bytes().trim_ascii();
    (!language.contains(&b',')).then(|| language.to_ascii_lowercase().into())
}

/// The language that a request wants before all others (RFC 9110 section 12.5.4): what is in it could not be better.
/// `None` where there are several, or none.
fn preferred_language(request: &HeaderMap) -> Option<Box<[u8]>> {
    let lines = request.get_all(header::ACCEPT_LANGUAGE).iter().map(http::HeaderValue::as_bytes);
    let mut best: Option<(u16, Vec<u8>)> = None;
    let mut alone = false;
    for member in lines.flat_map(members) {
        let mut parts = member.split(|byte| *byte == b';');
        let language = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut weight = 1000;
        for part in parts {
            if let Some(text) = part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q=")) {
                weight = thousandths(text)?;
            }
        }
        match &best {
            Some((known, _)) if *known > weight => {}
            Some((known, _)) if *known == weight => alone = false,
            _ => (best, alone) = (Some((weight, language)), true),
        }
    }
    let (weight, language) = best.filter(|_| alone)?;
    (weight > 0 && language != b"*").then(|| language.into())
}

/// A weight (RFC 9110 section 12.4.2) times 1000; `None` for what is none.
fn thousandths(text: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = part.len() <= 3 && part.bytes().all(|byte| byte.is_ascii_digit());
    let part: u16 = format!("{part:0<3}").parse().ok().filter(|_| digits)?;
    match whole {
        "0" => Some(part),
        "1" if part == 0 => Some(1000),
        _ => None,
    }
}

/// The members of a list, without whitespace around them and around their parameters. Inside quotes nothing is changed.
fn members(line: &[u8]) -> Vec<Vec<u8>> {
    let (mut members, mut member) = (Vec::new(), Vec::new());
    let (mut quoted, mut escaped) = (false, false);
    for byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                members.push(std::mem::take(&mut member));
                continue;
            }
            _ => {}
        }
        member.push(*byte);
    }
    members.push(member);
    members.iter_mut().for_each(tighten);
    members.retain(|member| !member.is_empty());
    members
}

/// Takes out whitespace at both ends and around `;` and `=`, but not inside quotes.
fn tighten(member: &mut Vec<u8>) {
    let mut tight: Vec<u8> = Vec::with_capacity(member.len());
    let (mut quoted, mut escaped, mut space) = (false, false, false);
    for byte in member.trim_ascii() {
        let (was_quoted, was_escaped) = (quoted, escaped);
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b' ' | b'\t' if !quoted => {
                space = true;
                continue;
            }
            _ => {}
        }
        let apart = |byte: u8| !b";=".contains(&byte);
        if space
            && !was_quoted
            && !was_escaped
            && apart(*byte)
            && tight.last().is_none_or(|last| apart(*last))
        {
            tight.push(b' ');
        }
        space = false;
        tight.push(*byte);
    }
    *member = tight;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::fixtures::headers;

    fn same(vary: &str, one: &[(&'static str, &str)], other: &[(&'static str, &str)]) -> bool {
        let selection = Selection::of(&headers(&[("vary", vary)]), &headers(one)).unwrap();
        selection.matches(&headers(other))
    }

    #[test]
    fn what_is_in_the_preferred_language_is_as_good_as_what_was_asked_for() {
        let (mut response, mut request) = (HeaderMap::new(), HeaderMap::new());
        response.insert(header::VARY, http::HeaderValue::from_static("accept-language"));
        response.insert(header::CONTENT_LANGUAGE, http::HeaderValue::from_static("de"));
        request.insert(header::ACCEPT_LANGUAGE, http::HeaderValue::from_static("en, de"));
        let selection = Selection::of(&response, &request).unwrap();
        for (asked, expected) in [
            ("en, de", true),
            ("de,EN", true),
            ("fr;q=0.5, de;q=1.0", true),
            ("DE", true),
            ("de, fr", false),
            ("fr, de;q=0.9", false),
            ("de;q=0", false),
            ("de;q=2", false),
            ("de-AT", false),
            ("*", false),
        ] {
            request.insert(header::ACCEPT_LANGUAGE, asked.parse().unwrap());
            assert_eq!(selection.matches(&request), expected, "{asked}");
        }
    }

    #[test]
    fn section_4_1() {
        assert!(same("", &[("foo", "1")], &[("foo", "2")]));
        assert!(same("Foo", &[("foo", "1")], &[("foo", "1"), ("bar", "2")]));
        assert!(!same("Foo", &[("foo", "1")], &[("foo", "2")]));
        assert!(!same("Foo", &[("foo", "1")], &[]));
        assert!(!same("Foo", &[], &[("foo", "1")]));
        assert!(!same("Foo", &[], &[("foo", "")]), "an empty field is there");
        let both = [("foo", "1"), ("bar", "a")];
        assert!(same("Foo, Bar", &both, &[("bar", "a"), ("foo", "1")]));
        assert!(!same("Foo, Bar", &both, &[("foo", "1")]));
        assert!(same("Foo, Baz", &both, &[("foo", "1")]), "both leave it out");
    }

    #[test]
    fn what_means_the_same_is_the_same() {
        assert!(same("Foo", &[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")]));
        assert!(same("Foo", &[("foo", "1,2")], &[("foo", " 1 ,  2 ")]));
        assert!(!same("Foo", &[("foo", "1, 2")], &[("foo", "2, 1")]));
        assert!(!same("Foo", &[("foo", "a b")], &[("foo", "ab")]));
        assert!(!same("Foo", &[("foo", "\"a, b\"")], &[("foo", "\"a,b\"")]));
        let english = [("accept-language", "en, de;q=0.5")];
        for other in ["de;q=0.5, en", "EN, de;q=0.5", "en,de;q=0.5", "en , de ; q=0.5"] {
            assert!(same("Accept-Language", &english, &[("accept-language", other)]), "{other}");
        }
        assert!(!same("Accept-Language", &english, &[("accept-language", "de, en;q=0.5")]));
    }

    #[test]
    fn a_star_selects_nothing() {
        for vary in ["*", "*, *", ", *", "*, Foo", "Foo, *", "a b"] {
            assert!(is_star(&headers(&[("vary", vary)])), "{vary}");
            let response = headers(&[("vary", vary)]);
            assert_eq!(Selection::of(&response, &HeaderMap::new()), None, "{vary}");
        }
        let many: Vec<String> = (0..=MOST_FIELDS).map(|i| format!("x-{i}")).collect();
        let response = headers(&[("vary", &many.join(", "))]);
        assert_eq!(Selection::of(&response, &HeaderMap::new()), None);
    }
}

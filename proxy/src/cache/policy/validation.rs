//! Asking the origin whether a stored response still holds, and telling a caller that what it has does (RFC 9111 section
//! 4.3, RFC 9110 section 13).

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{freshness::date, storing};

/// Tags of stored responses in one question; more are variants that nobody asks for.
const MOST_TAGS: usize = 16;
/// Fields that say how the stored body is written: a 304 has none and cannot know (section 3.2; the entity tag is what
/// was confirmed).
const OF_THE_BODY: [HeaderName; 6] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    HeaderName::from_static("content-md5"),
    header::CONTENT_RANGE,
    header::ETAG,
    header::TRANSFER_ENCODING,
];
/// Fields of a 304 (RFC 9110 section 15.4.5) where the stored response has them. `Age` comes with the answer.
const OF_NOT_MODIFIED: [HeaderName; 6] = [
    header::CACHE_CONTROL,
    header::CONTENT_LOCATION,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::VARY,
];
/// The preconditions of a request (RFC 9110 section 13.1): a question of ours has none of its caller's.
const CONDITIONS: [HeaderName; 5] = [
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
];

/// Makes a request ask for what is new: with the tags of the `stored` responses, and with the date of the first one if that
/// is what the request selects (`selected`). Says whether there is anything to ask by.
pub fn ask(request: &mut HeaderMap, stored: &[&HeaderMap], selected: bool) -> bool {
    for name in &CONDITIONS {
        request.remove(name);
    }
    let tags: Vec<&[u8]> = stored
        .iter()
        .filter_map(|headers| headers.get(header::ETAG))
        .map(HeaderValue::as_bytes)
        .take(MOST_TAGS)
        .collect();
    let tags = HeaderValue::from_bytes(&tags.join(&b", "[..]));
    if let Ok(tags) = tags
        && !tags.is_empty()
    {
        request.insert(header::IF_NONE_MATCH, tags);
    }
    let first = stored.first().filter(|_| selected);
    if let Some(modified) = first.and_then(|headers| headers.get(header::LAST_MODIFIED)) {
        request.insert(header::IF_MODIFIED_SINCE, modified.clone());
    }
    request.contains_key(header::IF_NONE_MATCH) || request.contains_key(header::IF_MODIFIED_SINCE)
}

/// Whether a 304 is about the stored response, which is one of several that were asked about (section 4.3.4): by its strong
/// tag if it has one, else by the weak one, else by its date. Of one with neither nobody knows.
pub fn is_about(not_modified: &HeaderMap, stored: &HeaderMap) -> bool {
    if let Some(tag) = not_modified.get(header::ETAG) {
        let known = stored.get(header::ETAG);
        return known.is_some_and(|known| match is_weak(tag.as_bytes()) {
            true => weakly_equal(tag.as_bytes(), known.as_bytes()),
            false => tag == known,
        });
    }
    match date(not_modified, &header::LAST_MODIFIED) {
        Some(modified) => date(stored, &header::LAST_MODIFIED) == Some(modified),
        None => false,
    }
}

/// Takes over the fields of a 304 (section 3.2): not those of its hop, and no cookies where there were none.
pub fn update(stored: &mut HeaderMap, not_modified: &HeaderMap) {
    let cookies = stored.contains_key(header::SET_COOKIE);
    let hop = storing::of_the_hop(not_modified);
    let taken = not_modified.keys().filter(|name| {
        !OF_THE_BODY.contains(name)
            && !hop.contains(name)
            && (cookies || **name != header::SET_COOKIE)
    });
    for name in taken {
        stored.remove(name);
        for value in not_modified.get_all(name) {
            stored.append(name.clone(), value.clone());
        }
    }
}

/// Cookies of a 304 that are for the caller who asked, and not for all who get the stored response: that has none.
pub fn own_cookies(not_modified: &HeaderMap, stored: &HeaderMap) -> Vec<HeaderValue> {
    match stored.contains_key(header::SET_COOKIE) {
        true => Vec::new(),
        false => not_modified.get_all(header::SET_COOKIE).iter().cloned().collect(),
    }
}

/// Whether the caller has the stored response already (RFC 9110 section 13.2.2): `If-None-Match` alone decides where it is
/// there.
pub fn caller_has_it(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(header::IF_NONE_MATCH) {
        let tag = stored.get(header::ETAG).map(HeaderValue::as_bytes);
        let lines = request.get_all(header::IF_NONE_MATCH).iter().map(HeaderValue::as_bytes);
        return lines
            .flat_map(tags)
            .any(|listed| listed == b"*" || tag.is_some_and(|tag| weakly_equal(listed, tag)));
    }
    let Some(since) = date(request, &header::IF_MODIFIED_SINCE) else { return false };
    // Section 4.3.2: without `Last-Modified` the time it was made stands in.
    let modified = date(stored, &header::LAST_MODIFIED).or_else(|| date(stored, &header::DATE));
    modified.is_some_and(|modified| modified <= since)
}

/// The fields of a 304 that says so.
pub fn not_modified_fields(stored: &HeaderMap) -> HeaderMap {
    let mut fields = HeaderMap::new();
    let last_modified = (!stored.contains_key(header::ETAG)).then_some(header::LAST_MODIFIED);
    for name in OF_NOT_MODIFIED.iter().chain(&last_modified) {
        for value in stored.get_all(name) {
            fields.append(name.clone(), value.clone());
        }
    }
    fields
}

/// Whether the part that a caller asks for may be taken from the stored response (RFC 9110 section 13.1.5): it has no such
/// condition, or names the same strong tag, or the same date.
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(header::IF_RANGE) else { return true };
    let text = condition.as_bytes();
    if text.starts_with(b"\"") || is_weak(text) {
        return !is_weak(text) && stored.get(header::ETAG) == Some(condition);
    }
    let modified = date(stored, &header::LAST_MODIFIED);
    modified.is_some() && date(request, &header::IF_RANGE) == modified
}

fn is_weak(tag: &[u8]) -> bool {
    tag.starts_with(b"W/")
}

/// RFC 9110 section 8.8.3.2.
fn weakly_equal(one: &[u8], other: &[u8]) -> bool {
    one.strip_prefix(b"W/").unwrap_or(one) == other.strip_prefix(b"W/").unwrap_or(other)
}

/// The members of a list of entity tags; commas inside quotes are part of a tag.
fn tags(line: &[u8]) -> Vec<&[u8]> {
    let (mut tags, mut start, mut quoted) = (Vec::new(), 0, false);
    for (at, byte) in line.iter().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                tags.push(line[start..at].trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
    }
    tags.push(line[start..].trim_ascii());
    tags.retain(|tag| !tag.is_empty());
    tags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::fixtures::headers;

    const EARLY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATE: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    #[test]
    fn section_4_3_2_what_a_caller_has() {
        let tag = |value| ("if-none-match", value);
        let since = |value| ("if-modified-since", value);
        let stored = [("etag", "\"a\""), ("last-modified", EARLY)];
        for (request, has) in [
            (&[][..], false),
            (&[tag("\"a\"")], true),
            (&[tag("W/\"a\"")], true),
            (&[tag("\"b\"")], false),
            (&[tag("\"b\", \"a\", \"c\"")], true),
            (&[tag("\"b\""), tag("\"a\"")], true),
            (&[tag("\"b,\"a\"")], false),
            (&[tag("*")], true),
            (&[since(EARLY)], true),
            (&[since(LATE)], true),
            (&[since("Sunday, 06-Nov-94 08:49:37 GMT")], true),
            (&[since("Sun, 06 Nov 1994 08:49:36 GMT")], false),
            (&[since("yesterday")], false),
            (&[tag("\"b\""), since(LATE)], false),
        ] {
            assert_eq!(caller_has_it(&headers(request), &headers(&stored)), has, "{request:?}");
        }
        let weak = headers(&[("etag", "W/\"a\"")]);
        assert!(caller_has_it(&headers(&[tag("\"a\"")]), &weak));
        let dated = headers(&[("date", EARLY)]);
        assert!(caller_has_it(&headers(&[since(LATE)]), &dated));
        assert!(!caller_has_it(&headers(&[since(LATE)]), &HeaderMap::new()));
    }

    #[test]
    fn section_4_3_1_asking() {
        let mut request = headers(&[("if-none-match", "\"mine\""), ("if-range", "x"), ("a", "b")]);
        let first = headers(&[("etag", "\"a\""), ("last-modified", EARLY)]);
        let second = headers(&[("etag", "W/\"b\"")]);
        assert!(ask(&mut request, &[&first, &second], true));
        let expected = headers(&[
            ("a", "b"),
            ("if-none-match", "\"a\", W/\"b\""),
            ("if-modified-since", EARLY),
        ]);
        assert_eq!(request, expected);
        // Of what the request does not select only tags are known to be what is meant.
        assert!(ask(&mut request, &[&first, &second], false));
        let expected = headers(&[("a", "b"), ("if-none-match", "\"a\", W/\"b\"")]);
        assert_eq!(request, expected);
        assert!(!ask(&mut request, &[&HeaderMap::new()], true));
        assert_eq!(request, headers(&[("a", "b")]));
    }

    #[test]
    fn section_4_3_4_taking_over() {
        let mut stored = headers(&[
            ("etag", "\"a\""),
            ("content-length", "5"),
            ("x-a", "1"),
            ("x-b", "1"),
            ("x-b", "2"),
        ]);
        let news = headers(&[
            ("etag", "\"z\""),
            ("content-length", "0"),
            ("content-encoding", "gzip"),
            ("x-b", "3"),
            ("expires", EARLY),
        ]);
        update(&mut stored, &news);
        let expected = headers(&[
            ("etag", "\"a\""),
            ("content-length", "5"),
            ("x-a", "1"),
            ("x-b", "3"),
            ("expires", EARLY),
        ]);
        assert_eq!(stored, expected);
    }

    #[test]
    fn what_a_304_brings_for_its_caller_or_its_hop_stays_out() {
        let news = headers(&[
            ("set-cookie", "session=1"),
            ("connection", "x-hop, vary"),
            ("x-hop", "1"),
            ("vary", "x-a"),
            ("keep-alive", "5"),
        ]);
        let mut stored = headers(&[("vary", "accept")]);
        assert_eq!(own_cookies(&news, &stored), ["session=1"]);
        update(&mut stored, &news);
        assert_eq!(stored, headers(&[("vary", "accept")]));
        let mut stored = headers(&[("set-cookie", "a=b")]);
        assert!(own_cookies(&news, &stored).is_empty());
        update(&mut stored, &news);
        assert_eq!(stored, headers(&[("set-cookie", "session=1")]));
    }

    #[test]
    fn a_304_is_about_what_it_names() {
        let about = |news: &[(&'static str, &str)], stored: &[(&'static str, &str)]| {
            is_about(&headers(news), &headers(stored))
        };
        assert!(about(&[("etag", "\"a\"")], &[("etag", "\"a\"")]));
        assert!(!about(&[("etag", "\"a\"")], &[("etag", "W/\"a\"")]));
        assert!(about(&[("etag", "W/\"a\"")], &[("etag", "\"a\"")]));
        assert!(!about(&[("etag", "\"a\"")], &[]));
        assert!(about(&[("last-modified", EARLY)], &[("last-modified", EARLY)]));
        assert!(!about(&[("last-modified", EARLY)], &[("last-modified", LATE)]));
        assert!(!about(&[], &[("etag", "\"a\"")]));
    }

    #[test]
    fn a_304_names_what_it_confirms() {
        let stored = headers(&[
            ("etag", "\"a\""),
            ("last-modified", EARLY),
            ("vary", "a"),
            ("vary", "b"),
            ("content-type", "text/plain"),
            ("date", EARLY),
        ]);
        let expected = headers(&[("date", EARLY), ("etag", "\"a\""), ("vary", "a"), ("vary", "b")]);
        assert_eq!(not_modified_fields(&stored), expected);
        let untagged = headers(&[("last-modified", EARLY)]);
        assert_eq!(not_modified_fields(&untagged), untagged);
    }
}

//! `Cache-Control` of requests and responses (RFC 9111 section 5.2), and the fields that go before it for caches like
//! this one: `CDN-Cache-Control` (RFC 9213), and the older `Surrogate-Control` (W3C Edge Architecture, section 2.3).
//!
//! What cannot be understood is taken for the careful thing: a number that is none is zero, of two the smaller holds
//! (section 4.2.1).

use http::{HeaderMap, HeaderName, HeaderValue, header};

const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");
const SURROGATE: HeaderName = HeaderName::from_static("surrogate-control");
/// Says to the origin that `Surrogate-Control` is understood, and by whom: directives can be for one surrogate only.
pub const SURROGATE_CAPABILITY: HeaderName = HeaderName::from_static("surrogate-capability");
/// Our name among surrogates, and what we can do: our value for [`SURROGATE_CAPABILITY`].
pub const CAPABILITY: HeaderValue = HeaderValue::from_static("leno=\"Surrogate/1.0\"");
const DEVICE: &[u8] = b"leno";
/// What caches that count in 32 bits take for ever (section 1.2.2).
const LONGEST: u64 = 1 << 31;
/// More directives than anybody writes; the rest of such a field is not read, and the response not kept.
const MOST: usize = 64;

/// The directives of a message. Absent ones are `None` or false.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// Seconds.
    pub max_age: Option<u64>,
    /// Seconds, for shared caches.
    pub s_maxage: Option<u64>,
    /// Seconds that a stale response may be used while it is validated (RFC 5861 section 3).
    pub stale_while_revalidate: Option<u64>,
    /// Seconds that a stale response may be used when validation fails (RFC 5861 section 4).
    pub stale_if_error: Option<u64>,
    /// Seconds of staleness that a caller accepts; `u64::MAX` is any.
    pub max_stale: Option<u64>,
    /// Seconds of freshness that must be left for the caller.
    pub min_fresh: Option<u64>,
    /// May not be kept.
    pub no_store: bool,
    /// May not be used without validation.
    pub no_cache: bool,
    /// Fields that may not be used without validation.
    pub no_cache_fields: Vec<HeaderName>,
    /// For one user only.
    pub private: bool,
    /// Fields that are for one user only.
    pub private_fields: Vec<HeaderName>,
    /// May be kept by anybody.
    pub public: bool,
    /// May not be used when stale.
    pub must_revalidate: bool,
    /// The same for shared caches.
    pub proxy_revalidate: bool,
    /// To be kept only by who knows what the status demands.
    pub must_understand: bool,
    /// The caller wants nothing from the origin.
    pub only_if_cached: bool,
}

impl Directives {
    /// Of a request. `Pragma: no-cache` counts where there is no `Cache-Control` (section 5.4).
    pub fn of_request(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        directives.read_all(headers, &header::CACHE_CONTROL);
        if !headers.contains_key(header::CACHE_CONTROL) {
            let pragma = headers.get_all(header::PRAGMA);
            directives.no_cache = pragma.iter().any(|value| {
                members(value.as_bytes()).any(|(name, _)| name.eq_ignore_ascii_case(b"no-cache"))
            });
        }
        directives
    }

    /// Of a response: of `CDN-Cache-Control` where that is there and can be read, else of `Cache-Control`. The second
    /// value says which.
    pub fn of_response(headers: &HeaderMap) -> (Self, Target) {
        let mut directives = Self::default();
        if headers.contains_key(CDN) && is_dictionary(headers) {
            directives.read_all(headers, &CDN);
            return (directives, Target::Cdn);
        }
        if headers.contains_key(SURROGATE) && directives.read_surrogate(headers) {
            return (directives, Target::Surrogate);
        }
        directives.read_all(headers, &header::CACHE_CONTROL);
        (directives, Target::Everybody)
    }

    /// Reads what is for every surrogate, and what is for us. Says whether there was anything.
    fn read_surrogate(&mut self, headers: &HeaderMap) -> bool {
        let mut understood = false;
        let lines = headers.get_all(SURROGATE).iter().map(HeaderValue::as_bytes);
        for (name, argument) in lines.flat_map(members).take(MOST) {
            let name = name.to_ascii_lowercase();
            let (name, for_whom) = halves(&name, b';');
            let (argument, for_whom) = match argument {
                Some(argument) => {
                    let (argument, device) = halves(argument, b';');
                    // What comes behind `+` is how long it may be used beyond that: not at all is allowed, too.
                    (Some(halves(argument, b'+').0), device)
                }
                None => (None, for_whom),
            };
            let known = matches!(name, b"max-age" | b"no-store" | b"no-store-remote");
            if known && for_whom.is_none_or(|device| device.trim_ascii() == DEVICE) {
                understood = true;
                let no_store = name == b"no-store-remote";
                self.read(if no_store { b"no-store" } else { name }, argument);
            }
        }
        understood
    }

    fn read_all(&mut self, headers: &HeaderMap, name: &HeaderName) {
        let mut left = MOST;
        for value in headers.get_all(name) {
            for (name, argument) in members(value.as_bytes()) {
                if left == 0 {
                    self.no_store = true;
                    return;
                }
                left -= 1;
                self.read(name, argument);
            }
        }
    }

    fn read(&mut self, name: &[u8], argument: Option<&[u8]>) {
        let name = name.to_ascii_lowercase();
        let seconds = || argument.and_then(seconds).unwrap_or(0);
        match name.as_slice() {
            b"max-age" => least(&mut self.max_age, seconds()),
            b"s-maxage" => least(&mut self.s_maxage, seconds()),
            b"stale-while-revalidate" => least(&mut self.stale_while_revalidate, seconds()),
            b"stale-if-error" => least(&mut self.stale_if_error, seconds()),
            b"max-stale" => least(&mut self.max_stale, argument.map_or(u64::MAX, |_| seconds())),
            b"min-fresh" => {
                // Here the careful number is the greatest.
                let asked = argument.and_then(self::seconds).unwrap_or(LONGEST);
                self.min_fresh = self.min_fresh.max(Some(asked));
            }
            b"no-store" => self.no_store = true,
            b"no-cache" => fields(argument, &mut self.no_cache, &mut self.no_cache_fields),
            b"private" => fields(argument, &mut self.private, &mut self.private_fields),
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"only-if-cached" => self.only_if_cached = true,
            // `max-age =1`: what was meant is not what was said.
            other if other.trim_ascii_end() == b"max-age" => least(&mut self.max_age, 0),
            other if other.trim_ascii_end() == b"s-maxage" => least(&mut self.s_maxage, 0),
            _ => {}
        }
    }
}

/// Takes a directive out of `Cache-Control` of a request that is passed on.
pub fn without(request: &mut HeaderMap, directive: &str) {
    let is_it = |member: &&[u8]| {
        let name = halves(member, b'=').0.trim_ascii();
        name.eq_ignore_ascii_case(directive.as_bytes())
    };
    let lines = request.get_all(header::CACHE_CONTROL).iter();
    let left: Vec<&[u8]> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter(|member| !is_it(member) && !member.trim_ascii().is_empty())
        .collect();
    let left = HeaderValue::from_bytes(left.join(&b',').trim_ascii());
    request.remove(header::CACHE_CONTROL);
    if let Some(left) = left.ok().filter(|left| !left.is_empty()) {
        request.insert(header::CACHE_CONTROL, left);
    }
}

/// For whom the directives of a response were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `Cache-Control`: `Expires` counts, too.
    Everybody,
    /// `CDN-Cache-Control`: nothing else counts (RFC 9213 section 2.1).
    Cdn,
    /// `Surrogate-Control`: the same.
    Surrogate,
}

/// What stands before and behind the first `between`.
fn halves(text: &[u8], between: u8) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| *byte == between) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn least(slot: &mut Option<u64>, seconds: u64) {
    *slot = Some(slot.map_or(seconds, |known| known.min(seconds)));
}

/// With an argument a directive is about the fields it names, without about all of the response. An argument that names
/// no field is about all of it (section 5.2.2.4: who does not understand the list does that).
fn fields(argument: Option<&[u8]>, all: &mut bool, some: &mut Vec<HeaderName>) {
    let listed = argument.map(|list| {
        let name = |name: &[u8]| HeaderName::from_bytes(name.trim_ascii()).ok();
        list.split(|byte| *byte == b',').map(name).collect::<Option<Vec<_>>>()
    });
    match listed {
        Some(Some(names)) if !names.is_empty() => some.extend(names),
        _ => *all = true,
    }
}

/// A number of seconds (section 1.2.2); `None` where it is none.
pub(super) fn seconds(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    // More digits than fit are more than for ever.
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX).min(LONGEST);
    std::str::from_utf8(text).ok().filter(|_| digits).map(number)
}

/// The members of a list of `name[=argument]`. Arguments come without their quotes; a quote that is never closed ends
/// the list.
fn members(value: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let mut rest = value;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_ascii_start();
            if rest.is_empty() {
                return None;
            }
            let (member, after) = split_member(rest);
            rest = after;
            let (name, argument) = match member.iter().position(|byte| *byte == b'=') {
                Some(at) => (&member[..at], Some(unquoted(&member[at + 1..]))),
                None => (member, None),
            };
            if !name.trim_ascii().is_empty() {
                return Some((name, argument));
            }
        }
    })
}

/// Up to the comma that is not inside quotes.
fn split_member(text: &[u8]) -> (&[u8], &[u8]) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return (text[..at].trim_ascii_end(), &text[at + 1..]),
            _ => {}
        }
    }
    (text.trim_ascii_end(), &[])
}

fn unquoted(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text)
}

/// Whether `CDN-Cache-Control` is a dictionary of structured fields (RFC 9651 section 3.2) with the types that its
/// directives have; if not, it is as if it was not there (RFC 9213 section 2.1).
fn is_dictionary(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(CDN);
    lines.iter().map(HeaderValue::as_bytes).all(|line| {
        members(line).all(|(name, argument)| is_key(name) && argument.is_none_or(is_value))
            && line.iter().filter(|byte| **byte == b'"').count().is_multiple_of(2)
    })
}

fn is_key(name: &[u8]) -> bool {
    let first = name.first().is_some_and(|byte| byte.is_ascii_lowercase() || *byte == b'*');
    let rest =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(byte);
    first && name.iter().all(rest)
}

/// An integer, a boolean, a token or a string without its quotes.
fn is_value(argument: &[u8]) -> bool {
    !argument.is_empty() && argument.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(values: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::CACHE_CONTROL, value.parse().unwrap());
        }
        Directives::of_response(&headers).0
    }

    #[test]
    fn one_can_be_taken_out() {
        for (before, after) in [
            (&["only-if-cached"][..], None),
            (&["max-age=5, Only-If-Cached ,no-transform"], Some("max-age=5,no-transform")),
            (&["max-stale", "only-if-cached=1"], Some("max-stale")),
            (&["x=\"only-if-cached\""], Some("x=\"only-if-cached\"")),
        ] {
            let mut request = HeaderMap::new();
            for line in before {
                request.append(header::CACHE_CONTROL, line.parse().unwrap());
            }
            without(&mut request, "only-if-cached");
            let left = request.get(header::CACHE_CONTROL);
            assert_eq!(left.map(|left| left.to_str().unwrap()), after, "{before:?}");
        }
    }

    #[test]
    fn surrogates_are_told_apart() {
        let of = |control: &str, surrogate: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, control.parse().unwrap());
            headers.insert(SURROGATE, surrogate.parse().unwrap());
            let (directives, target) = Directives::of_response(&headers);
            (directives.max_age, directives.no_store, target)
        };
        use Target::{Everybody, Surrogate};
        for (surrogate, expected) in [
            ("max-age=60", (Some(60), false, Surrogate)),
            ("foo, MaX-aGe=60+10;leno", (Some(60), false, Surrogate)),
            ("max-age=60;other", (Some(1), true, Everybody)),
            ("max-age=60;other, max-age=5", (Some(5), false, Surrogate)),
            ("no-store", (None, true, Surrogate)),
            ("no-store;other", (Some(1), true, Everybody)),
            ("content=\"ESI/1.0\"", (Some(1), true, Everybody)),
            ("max-age=x", (Some(0), false, Surrogate)),
        ] {
            assert_eq!(of("max-age=1, no-store", surrogate), expected, "{surrogate}");
        }
    }

    #[test]
    fn numbers_are_numbers_or_nothing() {
        for (value, max_age) in [
            ("max-age=100", Some(100)),
            ("MaX-AgE=100", Some(100)),
            ("max-age=003600", Some(3600)),
            ("max-age=\"100\"", Some(100)),
            ("max-age='100'", Some(0)),
            ("max-age=99999999999999999999999", Some(LONGEST)),
            ("max-age=-1", Some(0)),
            ("max-age=1.5", Some(0)),
            ("max-age=a1", Some(0)),
            ("max-age", Some(0)),
            ("max-age =100", Some(0)),
            ("max-age= 100", Some(0)),
            ("max-age=1, max-age=100", Some(1)),
            ("max-age=100, max-age=1", Some(1)),
            ("a=\"max-age=100, \\\" max-age=7\", max-age=5", Some(5)),
            ("max-age=5, a=\"max-age=1\"", Some(5)),
            ("a=\"max-age=100", None),
            ("public, , =3, no-cache-not", None),
        ] {
            assert_eq!(response(&[value]).max_age, max_age, "{value}");
        }
        assert_eq!(response(&["max-age=100", "max-age=1"]).max_age, Some(1));
    }

    #[test]
    fn fields_are_named_or_all_are_meant() {
        let some = response(&["private=\"set-cookie, X-User\", no-cache=a"]);
        assert_eq!((some.private, some.no_cache), (false, false));
        assert_eq!(some.private_fields, ["set-cookie", "x-user"]);
        assert_eq!(some.no_cache_fields, ["a"]);
        for all in ["private", "PRIVATE=\"\"", "private=\"a b\"", "private=\"a,,b\""] {
            assert!(response(&[all]).private, "{all}");
        }
    }

    #[test]
    fn a_caller_may_say_pragma() {
        let request = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            Directives::of_request(&headers)
        };
        assert!(request(&[("pragma", "a, No-Cache")]).no_cache);
        assert!(!request(&[("pragma", "a")]).no_cache);
        assert!(!request(&[("pragma", "no-cache"), ("cache-control", "max-age=1")]).no_cache);
        assert_eq!(request(&[("cache-control", "max-stale")]).max_stale, Some(u64::MAX));
        assert_eq!(request(&[("cache-control", "max-stale=5")]).max_stale, Some(5));
        assert_eq!(request(&[("cache-control", "min-fresh=x")]).min_fresh, Some(LONGEST));
    }

    #[test]
    fn what_is_for_us_goes_first() {
        for (cdn, target, max_age) in [
            ("max-age=10", Target::Cdn, Some(10)),
            ("no-store", Target::Cdn, None),
            ("max-age=10, Private", Target::Everybody, Some(1)),
            ("max-age=\"10", Target::Everybody, Some(1)),
            ("max-age=", Target::Everybody, Some(1)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
            headers.insert(CDN, cdn.parse().unwrap());
            let (directives, found) = Directives::of_response(&headers);
            assert_eq!((found, directives.max_age), (target, max_age), "{cdn}");
        }
    }

    #[test]
    fn a_flood_of_directives_is_not_kept() {
        assert!(response(&[&"a,".repeat(MOST + 1)]).no_store);
        assert!(!response(&[&"a,".repeat(MOST)]).no_store);
    }
}

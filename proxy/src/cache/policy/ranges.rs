//! A part of a response that is stored as a whole (RFC 9110 section 14).

use http::{HeaderMap, HeaderValue, header};

use super::validation;

/// What of a representation a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it: nothing else was asked for, or in a way that may be ignored.
    Whole,
    /// These bytes, the last one included.
    Bytes {
        /// The first one.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// None: what was asked for lies behind the end (416).
    Unsatisfiable,
}

impl Part {
    /// What `request` asks for of a representation with `length` bytes and the fields `stored`. Several ranges at once are
    /// ignored, which is allowed: small and overlapping ones are a way to make a server work (section 17.15).
    pub fn of(request: &HeaderMap, stored: &HeaderMap, length: u64) -> Self {
        let mut ranges = request.get_all(header::RANGE).iter();
        let (Some(range), None) = (ranges.next(), ranges.next()) else { return Self::Whole };
        if !validation::if_range_holds(request, stored) {
            return Self::Whole;
        }
        range.to_str().ok().and_then(|range| parse(range, length)).unwrap_or(Self::Whole)
    }

    /// `Content-Range` of the answer; `None` for all of it.
    pub fn content_range(self, length: u64) -> Option<HeaderValue> {
        let text = match self {
            Self::Whole => return None,
            Self::Bytes { first, last } => format!("bytes {first}-{last}/{length}"),
            Self::Unsatisfiable => format!("bytes */{length}"),
        };
        HeaderValue::from_str(&text).ok()
    }
}

/// `None` for what is not one range of bytes.
fn parse(range: &str, length: u64) -> Option<Part> {
    let (unit, range) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let count = number(last)?;
        return Some(match count.min(length) {
            0 => Part::Unsatisfiable,
            count => Part::Bytes { first: length - count, last: length - 1 },
        });
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some(match first < length {
        true => Part::Bytes { first, last: last.min(length - 1) },
        false => Part::Unsatisfiable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_14_1_2() {
        let bytes = |first, last| Part::Bytes { first, last };
        for (range, part) in [
            ("bytes=0-4", bytes(0, 4)),
            ("bytes=0-0", bytes(0, 0)),
            ("Bytes= 4-", bytes(4, 9)),
            ("bytes=4-400", bytes(4, 9)),
            ("bytes=4-99999999999999999999999", bytes(4, 9)),
            ("bytes=-3", bytes(7, 9)),
            ("bytes=-300", bytes(0, 9)),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=99999999999999999999999-", Part::Unsatisfiable),
            ("bytes=4-3", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=+1-4", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes", Part::Whole),
            ("lines=0-4", Part::Whole),
            ("bytes=a-4", Part::Whole),
        ] {
            let mut request = HeaderMap::new();
            request.insert(header::RANGE, range.parse().unwrap());
            assert_eq!(Part::of(&request, &HeaderMap::new(), 10), part, "{range}");
            assert_eq!(part == Part::Whole, part.content_range(10).is_none());
        }
        assert_eq!(parse("bytes=0-4", 0), Some(Part::Unsatisfiable));
        assert_eq!(bytes(0, 4).content_range(10).unwrap(), "bytes 0-4/10");
        assert_eq!(Part::Unsatisfiable.content_range(10).unwrap(), "bytes */10");
    }

    #[test]
    fn if_range_must_hold() {
        let part = |if_range: &str, etag: &'static str| {
            let (mut request, mut stored) = (HeaderMap::new(), HeaderMap::new());
            request.insert(header::RANGE, HeaderValue::from_static("bytes=0-4"));
            request.insert(header::IF_RANGE, if_range.parse().unwrap());
            stored.insert(header::ETAG, HeaderValue::from_static(etag));
            Part::of(&request, &stored, 10)
        };
        assert_eq!(part("\"a\"", "\"a\""), Part::Bytes { first: 0, last: 4 });
        assert_eq!(part("\"b\"", "\"a\""), Part::Whole);
        assert_eq!(part("W/\"a\"", "W/\"a\""), Part::Whole, "weak ones never match here");
    }
}

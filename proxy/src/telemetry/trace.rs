//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>) and request ids. A trace that exists is passed on as it
//! is (a hop that reports no spans must not put itself between parent and child); where there is none, one is
//! started, so that applications and logs can be joined.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::RngExt;

/// The header that carries the request id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longer ids from outside are replaced: they end up in every log line.
const MAX_REQUEST_ID: usize = 128;

/// Makes sure that the request has an id and a valid trace context.
pub fn propagate(headers: &mut HeaderMap, random: &mut impl RngExt) {
    let usable = |value: &HeaderValue| {
        (1..=MAX_REQUEST_ID).contains(&value.len())
            && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if !headers.get(&REQUEST_ID).is_some_and(usable) {
        headers.insert(REQUEST_ID, request_id(random.random()));
    }
    let valid = |value: &HeaderValue| is_valid(value.as_bytes());
    if !headers.get(&TRACEPARENT).is_some_and(valid) {
        let (trace_id, span) =
            (random.random_range(1..=u128::MAX), random.random_range(1..=u64::MAX));
        headers.insert(TRACEPARENT, traceparent(trace_id, span));
    }
}

/// Whether it is a `traceparent` that others must accept (section 3.2).
fn is_valid(value: &[u8]) -> bool {
    // All digits, also behind a wrong one: so many at once is faster than one after the other.
    let all = |range: std::ops::Range<usize>, is: fn(u8) -> bool| {
        let digits = value.get(range).unwrap_or_default();
        digits.iter().fold(true, |all, digit| all & is(*digit))
    };
    let lower_hex =
        |range| all(range, |digit| digit.is_ascii_digit() | matches!(digit, b'a'..=b'f'));
    let zero = |range| all(range, |digit| digit == b'0');
    let shaped = match value.len() {
        55 => !value.starts_with(b"ff"),
        // Version 00 is exactly 55 bytes; later ones may append after a dash.
        56.. => !value.starts_with(b"00") && !value.starts_with(b"ff") && value[55] == b'-',
        _ => false,
    };
    shaped
        && [2, 35, 52].iter().all(|at| value[*at] == b'-')
        && [0..2, 3..35, 36..52, 53..55].into_iter().all(lower_hex)
        && !zero(3..35)
        && !zero(36..52)
}

/// A context that asks nobody to record.
fn traceparent(trace_id: u128, span: u64) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex(&trace_id.to_be_bytes(), &mut text[3..35]);
    hex(&span.to_be_bytes(), &mut text[36..52]);
    ascii(&text)
}

/// A random (version 4) UUID, RFC 9562 section 5.4.
fn request_id(random: u128) -> HeaderValue {
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let bytes = bits.to_be_bytes();
    let mut text = [b'-'; 36];
    for (range, at) in [(0..4, 0), (4..6, 9), (6..8, 14), (8..10, 19), (10..16, 24)] {
        let length = range.len() * 2;
        hex(&bytes[range], &mut text[at..at + length]);
    }
    ascii(&text)
}

fn hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Digits and dashes are always a header value; the fallback cannot be reached but must not panic.
fn ascii(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_goes_on_and_a_missing_one_begins() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(GOOD));
        propagate(&mut headers, &mut rand::rng());
        assert_eq!(headers[&TRACEPARENT], GOOD);
        headers.insert(TRACEPARENT, HeaderValue::from_static("broken"));
        propagate(&mut headers, &mut rand::rng());
        assert!(is_valid(headers[&TRACEPARENT].as_bytes()));
    }

    #[test]
    fn broken_contexts_are_replaced() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736+00f067aa0ba902b7-01",
        ] {
            assert!(!is_valid(bad.as_bytes()), "{bad}");
        }
        assert!(is_valid(b"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-future"));
    }

    #[test]
    fn request_ids_are_uuids_and_bad_ones_are_replaced() {
        let id = request_id(u128::MAX);
        assert_eq!(id.to_str().unwrap(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("a b"));
        propagate(&mut headers, &mut rand::rng());
        assert_eq!(headers[&REQUEST_ID].len(), 36);
        headers.insert(REQUEST_ID, HeaderValue::from_static("mine"));
        propagate(&mut headers, &mut rand::rng());
        assert_eq!(headers[&REQUEST_ID], "mine");
    }
}

//! Until when an exchange and each of its attempts must be answered.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::retry::Policy;

/// How long a gRPC call may take (gRPC over HTTP/2, "Timeout"). The caller's deadline, which also counts here: what
/// goes upstream is what is left of it. A value that is none is passed on as it is: the server knows what to do with it.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Digits at most.
const DIGITS: usize = 8;
const MOST: u128 = 10u128.pow(DIGITS as u32) - 1;
/// Units, finest first, with their nanoseconds.
const UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// How long it may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// All attempts together: until when, and how long that was.
    deadline: Option<(Instant, Duration)>,
    /// Whether the request says so.
    stated: bool,
    /// Whether the caller has less patience than we have.
    callers: bool,
}

impl Limits {
    /// Of an exchange that begins now, which may take as long as `request`; `ZERO` is for ever. `grpc`: the fields of a gRPC
    /// call, which may say when its caller gives up.
    pub(super) fn new(request: Duration, grpc: Option<&HeaderMap>) -> Self {
        let stated = grpc
            .and_then(|headers| headers.get(GRPC_TIMEOUT))
            .and_then(|value| parse(value.as_bytes()));
        let own = (!request.is_zero()).then_some(request);
        let limit = own.into_iter().chain(stated).min();
        // Beyond what a clock can say there is no limit.
        let deadline = limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        let callers = stated.is_some_and(|stated| own.is_none_or(|own| stated < own));
        Self { deadline, stated: stated.is_some(), callers }
    }

    /// Until when all must be over.
    pub(super) fn deadline(self) -> Option<Instant> {
        self.deadline.map(|(deadline, _)| deadline)
    }

    /// How long it may take from now.
    pub(super) fn remaining(self) -> Option<Duration> {
        Some(self.deadline?.0.saturating_duration_since(Instant::now()))
    }

    /// Whether the time that the caller gave is over, where that is less than ours.
    pub(super) fn is_callers_over(self) -> bool {
        self.callers && self.remaining().is_some_and(|left| left.is_zero())
    }

    /// Until when an attempt that begins now must be answered, and how long it then took.
    pub(super) fn next(self, policy: &Policy) -> Option<(Instant, Duration)> {
        let remaining = self.remaining();
        let limit = policy.attempt_limit(remaining)?;
        match self.deadline {
            Some(deadline) if remaining == Some(limit) => Some(deadline),
            _ => Some((Instant::now().checked_add(limit)?, limit)),
        }
    }

    /// Tells the callee of a gRPC call how long it may take from now. A limit of ours is for us to keep, unless the
    /// caller has one, too.
    pub(super) fn state(self, policy: &Policy, headers: &mut HeaderMap) {
        if self.stated
            && let Some(left) = policy.attempt_limit(self.remaining())
        {
            headers.insert(GRPC_TIMEOUT, format(left));
        }
    }
}

fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (_, nanos) = UNITS.iter().find(|(letter, _)| letter == unit)?;
    let number = digits.iter().fold(0, |number, digit| number * 10 + u128::from(digit - b'0'));
    let nanos = number * nanos;
    let second = 1_000_000_000;
    // At most 11,416 years.
    Some(Duration::new(u64::try_from(nanos / second).ok()?, u32::try_from(nanos % second).ok()?))
}

/// In the finest unit that fits, rounded down: nobody is told of more time than there is.
fn format(left: Duration) -> HeaderValue {
    let nanos = left.as_nanos();
    let fits = |(_, unit): &&(u8, u128)| nanos / unit <= MOST;
    let (letter, number) = match UNITS.iter().find(fits) {
        Some((letter, unit)) => (*letter, nanos / unit),
        None => (b'H', MOST),
    };
    // Digits and a letter are always a value.
    HeaderValue::try_from(format!("{number}{}", char::from(letter)))
        .unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("0n", Some(Duration::ZERO)),
            ("00000001S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000n", None),
            ("1", None),
            ("S", None),
            ("", None),
            ("1s", None),
            ("1h", None),
            ("-1S", None),
            ("1.5S", None),
            (" 1S", None),
            ("1 S", None),
        ] {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn the_shorter_of_two_counts() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(value))])
        };
        let of = |request, value: &'static str| {
            let limits = Limits::new(Duration::from_secs(request), Some(&headers(value)));
            limits.deadline.map(|(_, limit)| limit.as_secs())
        };
        assert_eq!(of(10, "5S"), Some(5));
        assert_eq!(of(3, "5S"), Some(3));
        assert_eq!(of(0, "5S"), Some(5));
        assert_eq!(of(7, "soon"), Some(7));
        assert_eq!(of(0, "soon"), None);
    }

    #[test]
    fn what_is_not_a_deadline_is_left_alone() {
        let mut headers = HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static("soon"))]);
        let limits = Limits::new(Duration::from_secs(7), Some(&headers));
        limits.state(&Policy::default(), &mut headers);
        assert_eq!(headers[GRPC_TIMEOUT], "soon");
        let mut none = HeaderMap::new();
        limits.state(&Policy::default(), &mut none);
        assert!(none.is_empty());
    }

    proptest! {
        /// What is said is never longer than what is left, and shorter by less than a part in a hundred thousand.
        #[test]
        fn what_is_written_is_read(nanos in prop_oneof![any::<u64>(), 0u64..1_000_000_000_000]) {
            let left = Duration::from_nanos(nanos);
            let value = format(left);
            prop_assert!(value.len() <= DIGITS + 1);
            let read = parse(value.as_bytes()).unwrap();
            prop_assert!(read <= left && left - read <= left / 100_000, "{:?} for {:?}", read, left);
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _read = parse(&bytes);
        }
    }
}

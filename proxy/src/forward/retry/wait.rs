//! How long an answer asks to be left alone.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// What an answer says about the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    Unsaid,
    /// Not before this has passed.
    AtLeast(Duration),
    /// There must not be one.
    Never,
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date. `now` is the wall clock's. What is neither is as good as
/// nothing; of several, the longest.
pub fn retry_after(headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Wait {
    if !headers.contains_key(http::header::RETRY_AFTER) {
        return Wait::Unsaid;
    }
    let now = now();
    let values = headers.get_all(http::header::RETRY_AFTER).iter();
    let waits = values.filter_map(|value| one(value.to_str().ok()?.trim(), now));
    waits.max().map_or(Wait::Unsaid, Wait::AtLeast)
}

/// `grpc-retry-pushback-ms` (gRFC A6): milliseconds; anything else, a negative number above all, forbids a retry.
pub fn pushback(headers: &HeaderMap) -> Wait {
    let Some(value) = headers.get("grpc-retry-pushback-ms") else {
        return Wait::Unsaid;
    };
    let millis = value.to_str().ok().and_then(|text| text.trim().parse::<u32>().ok());
    millis.map_or(Wait::Never, |millis| Wait::AtLeast(Duration::from_millis(millis.into())))
}

fn one(value: &str, now: SystemTime) -> Option<Duration> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean "not in this life", not nothing.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = date(value, now)?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Some(Duration::from_secs(date).saturating_sub(since))
}

/// Seconds since 1970 of an HTTP-date in any of its three forms (RFC 9110 section 5.6.7):
/// `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT`, `Sun Nov  6 08:49:37 1994`.
fn date(value: &str, now: SystemTime) -> Option<u64> {
    let words: Vec<&str> =
        value.split([' ', ',', '-']).filter(|word| !word.is_empty()).take(7).collect();
    let [_, first, second, third, fourth, rest @ ..] = words.as_slice() else {
        return None;
    };
    let (day, month, year, clock) = match rest {
        ["GMT"] if second.len() == 3 => (first, second, third, fourth),
        [] => (second, first, fourth, third),
        _ => return None,
    };
    let year = match year.len() {
        2 => full_year(number(year)?, now),
        4 => number(year)?,
        _ => return None,
    };
    let mut parts = clock.split(':').map(number);
    let (Some(hour), Some(minute), Some(second), None) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next())
    else {
        return None;
    };
    // 60 is a leap second.
    let fits = hour < 24 && minute < 60 && second <= 60;
    let days = days(year, month_of(month)?, number(day)?)?;
    fits.then(|| days * 86_400 + hour * 3600 + minute * 60 + second)
}

fn number(text: &str) -> Option<u64> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

fn month_of(name: &str) -> Option<u64> {
    const NAMES: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    NAMES.iter().position(|known| *known == name).map(|at| at as u64 + 1)
}

/// Two digits of a year mean the past where the future would be more than 50 years away (RFC 9110 section 5.6.7).
fn full_year(digits: u64, now: SystemTime) -> u64 {
    /// Mean seconds of a Gregorian year.
    const YEAR: u64 = 31_556_952;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let this = 1970 + since.as_secs() / YEAR;
    let year = this - this % 100 + digits;
    if year > this + 50 { year - 100 } else { year }
}

/// From 1970-01-01, in the Gregorian calendar; `None` for what is before, or no date.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let lengths = [31, 28 + u64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let at = usize::try_from(month.checked_sub(1)?).ok()?;
    if year < 1970 || day == 0 || day > *lengths.get(at)? {
        return None;
    }
    let before = year - 1;
    let leaps = before / 4 - before / 100 + before / 400 - 477;
    let in_year: u64 = lengths[..at].iter().sum();
    Some((year - 1970) * 365 + leaps + in_year + day - 1)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// 2026-11-21 12:00:00 UTC.
    const NOW: u64 = 1_795_262_400;

    fn asked(values: &[&'static str]) -> Wait {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("retry-after", HeaderValue::from_static(value));
        }
        retry_after(&headers, || SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn every_form_of_retry_after_is_read() {
        let seconds = |seconds| Wait::AtLeast(Duration::from_secs(seconds));
        for (values, wait) in [
            (&[][..], Wait::Unsaid),
            (&["120"], seconds(120)),
            (&["0"], seconds(0)),
            (&["99999999999999999999999999"], seconds(u64::MAX)),
            (&["1", "3", "2"], seconds(3)),
            (&["Sat, 21 Nov 2026 12:00:30 GMT"], seconds(30)),
            (&["Saturday, 21-Nov-26 12:01:00 GMT"], seconds(60)),
            (&["Sat Nov 21 13:00:00 2026"], seconds(3600)),
            (&["Tue, 29 Feb 2028 00:00:00 GMT"], seconds(1_835_395_200 - NOW)),
            // What is over is over: no wait.
            (&["Sun, 06 Nov 1994 08:49:37 GMT"], seconds(0)),
            (&["Sunday, 06-Nov-94 08:49:37 GMT"], seconds(0)),
            (&["Sun Nov  6 08:49:37 1994"], seconds(0)),
        ] {
            assert_eq!(asked(values), wait, "{values:?}");
        }
        for nonsense in [
            "",
            "-1",
            "1.5",
            "+3",
            "soon",
            "Sat, 31 Nov 2026 12:00:30 GMT",
            "Sat, 21 Nov 2026 24:00:00 GMT",
            "Sat, 21 Nov 2026 12:00 GMT",
            "Sat, 21 Nov 2026 12:00:00:00 GMT",
            "Sat, 21 Nov 2026 12:00:30 CET",
            "Sun, 29 Feb 2026 00:00:00 GMT",
            "Sat, 00 Nov 2026 12:00:30 GMT",
            "Mon, 01 Jan 1900 00:00:00 GMT",
            "Sat, 21 Nov +026 12:00:30 GMT",
        ] {
            assert_eq!(asked(&[nonsense]), Wait::Unsaid, "{nonsense}");
        }
    }

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        for (date, expected) in [
            ((1970, 1, 1), 0),
            ((2000, 3, 1), 11_017),
            ((2026, 11, 21), 20_778),
            ((2100, 3, 1), 47_541),
        ] {
            assert_eq!(days(date.0, date.1, date.2), Some(expected), "{date:?}");
        }
        assert_eq!(days(2100, 2, 29), None);
        assert_eq!(days(2026, 13, 1), None);
        assert_eq!(days(2026, 0, 1), None);
    }

    #[test]
    fn grpc_pushback_is_obeyed() {
        let said = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-retry-pushback-ms", HeaderValue::from_static(value));
            pushback(&headers)
        };
        assert_eq!(pushback(&HeaderMap::new()), Wait::Unsaid);
        assert_eq!(said("250"), Wait::AtLeast(Duration::from_millis(250)));
        assert_eq!((said("-1"), said("later"), said("")), (Wait::Never, Wait::Never, Wait::Never));
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,40}", digits in "[0-9:, GMTNovSat-]{0,40}", seconds: u64) {
            let now = SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(seconds))
                .unwrap_or(SystemTime::UNIX_EPOCH);
            let _either = (one(&text, now), one(&digits, now));
        }
    }
}

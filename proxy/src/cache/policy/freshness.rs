//! How old a response is, and how old it may get (RFC 9111 section 4.2).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, StatusCode, header};

use super::directives::{Directives, Target, seconds};

/// Of the time since it was last changed, a response without a word on freshness is good for a tenth (section 4.2.2).
const HEURISTIC_SHARE: u32 = 10;
/// But no longer than this: who never says anything should not be believed for weeks.
const LONGEST_GUESS: Duration = Duration::from_secs(24 * 3600);

/// When a response was asked for and came, by our own clock: times since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// The request that brought it was sent.
    pub requested: Duration,
    /// Its head arrived.
    pub received: Duration,
}

/// What decides how long a stored response is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// How long, counted from when the origin made it.
    pub lifetime: Duration,
    /// Whether the origin said so, or we guessed.
    pub explicit: bool,
    /// How old it was when it arrived (`corrected_initial_age`, section 4.2.3); `MAX` where its `Age` cannot be read.
    pub initial_age: Duration,
    /// When it arrived.
    pub received: Duration,
}

impl Freshness {
    /// How old it is at `now` (`current_age`). A clock that went backwards adds nothing.
    pub fn age(&self, now: Duration) -> Duration {
        self.initial_age.saturating_add(now.saturating_sub(self.received))
    }

    /// Whether it may be used as it is.
    pub fn is_fresh(&self, now: Duration) -> bool {
        self.lifetime > self.age(now)
    }

    /// For how long it has been stale; `ZERO` while it is fresh.
    pub fn staleness(&self, now: Duration) -> Duration {
        self.age(now).saturating_sub(self.lifetime)
    }
}

/// Of a response with this head. `default` is for those without a word on freshness and nothing to guess from.
pub fn of_response(
    status: StatusCode,
    headers: &HeaderMap,
    directives: &Directives,
    target: Target,
    times: Times,
    default: Option<Duration>,
) -> Freshness {
    let date = date(headers, &header::DATE).unwrap_or(times.received);
    let explicit = explicit_lifetime(headers, directives, target, date);
    let guessed = || heuristic_lifetime(status, headers, directives, date).or(default);
    let lifetime = explicit.or_else(guessed).unwrap_or_default();
    let initial_age = initial_age(headers, date, times);
    Freshness { lifetime, explicit: explicit.is_some(), initial_age, received: times.received }
}

/// Whether the origin said how long it is good for, whatever it said.
pub fn is_explicit(headers: &HeaderMap, directives: &Directives, target: Target) -> bool {
    let expires = target == Target::Everybody && headers.contains_key(header::EXPIRES);
    directives.s_maxage.is_some() || directives.max_age.is_some() || expires
}

/// Section 4.2.1.
fn explicit_lifetime(
    headers: &HeaderMap,
    directives: &Directives,
    target: Target,
    sent: Duration,
) -> Option<Duration> {
    let said = directives.s_maxage.or(directives.max_age).map(Duration::from_secs);
    said.or_else(|| {
        let there = target == Target::Everybody && headers.contains_key(header::EXPIRES);
        // One that cannot be read lies in the past (section 5.3).
        there.then(|| {
            let expires = date(headers, &header::EXPIRES).unwrap_or_default();
            expires.saturating_sub(sent)
        })
    })
}

/// Section 4.2.2. Where the status alone does not allow it, `public` does.
fn heuristic_lifetime(
    status: StatusCode,
    headers: &HeaderMap,
    directives: &Directives,
    sent: Duration,
) -> Option<Duration> {
    if !is_heuristic(status) && !directives.public {
        return None;
    }
    let modified = date(headers, &header::LAST_MODIFIED)?;
    Some((sent.saturating_sub(modified) / HEURISTIC_SHARE).min(LONGEST_GUESS))
}

/// RFC 9110 section 15.1.
pub fn is_heuristic(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Section 4.2.3.
fn initial_age(headers: &HeaderMap, sent: Duration, times: Times) -> Duration {
    let mut ages = headers.get_all(header::AGE).iter();
    let told = match (ages.next(), ages.next()) {
        (None, _) => Duration::ZERO,
        (Some(age), None) => match seconds(age.as_bytes()) {
            Some(age) => Duration::from_secs(age),
            None => return Duration::MAX,
        },
        // Of two, nobody knows which is right.
        (Some(_), Some(_)) => return Duration::MAX,
    };
    let apparent = times.received.saturating_sub(sent);
    let delay = times.received.saturating_sub(times.requested);
    apparent.max(told.saturating_add(delay))
}

/// A date (RFC 9110 section 5.6.7) since the Unix epoch. `None` where it is absent, there twice, or none; what lies before
/// the epoch is the epoch.
pub fn date(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    let mut values = headers.get_all(name).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let time: SystemTime = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    Some(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the date of the RFC's examples.
    const NOW: Duration = Duration::from_secs(784_111_777);

    fn at(offset: i64) -> String {
        let seconds = NOW.as_secs().saturating_add_signed(offset);
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn freshness(status: u16, fields: &[(&'static str, String)]) -> Freshness {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let (directives, target) = Directives::of_response(&headers);
        let times = Times { requested: NOW, received: NOW };
        of_response(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            &directives,
            target,
            times,
            None,
        )
    }

    fn lifetime(fields: &[(&'static str, String)]) -> (u64, bool) {
        let freshness = freshness(200, fields);
        (freshness.lifetime.as_secs(), freshness.explicit)
    }

    #[test]
    fn what_is_said_first_of_these_holds() {
        let cc = |value: &str| ("cache-control", value.to_owned());
        let expires = |offset| ("expires", at(offset));
        let date = |offset| ("date", at(offset));
        assert_eq!(lifetime(&[cc("max-age=5"), expires(100)]), (5, true));
        assert_eq!(lifetime(&[cc("max-age=5, s-maxage=9")]), (9, true));
        assert_eq!(lifetime(&[cc("max-age=0, s-maxage=9"), expires(-5)]), (9, true));
        assert_eq!(lifetime(&[expires(100), date(0)]), (100, true));
        // By the origin's clock, whatever ours says.
        assert_eq!(lifetime(&[expires(100), date(40)]), (60, true));
        assert_eq!(lifetime(&[expires(100), date(200)]), (0, true));
        assert_eq!(lifetime(&[expires(100), ("date", "yesterday".into())]), (100, true));
        assert_eq!(lifetime(&[("expires", "0".into())]), (0, true));
        assert_eq!(lifetime(&[expires(9), expires(9)]), (0, true));
        assert_eq!(lifetime(&[]), (0, false));
        let modified = |offset| ("last-modified", at(offset));
        assert_eq!(lifetime(&[modified(-1000), date(0)]), (100, false));
        assert_eq!(lifetime(&[modified(-100_000_000)]), (24 * 3600, false));
        assert_eq!(lifetime(&[modified(50)]), (0, false));
        assert_eq!(lifetime(&[modified(-1000), cc("max-age=0")]), (0, true));
    }

    #[test]
    fn only_some_statuses_are_guessed() {
        let lifetime = |status, control: &str| {
            let fields = [("last-modified", at(-1000)), ("cache-control", control.to_owned())];
            freshness(status, &fields).lifetime.as_secs()
        };
        for (status, guessed) in [(200, 100), (404, 100), (501, 100), (201, 0), (503, 0), (599, 0)]
        {
            assert_eq!(lifetime(status, "a"), guessed, "{status}");
            assert_eq!(lifetime(status, "public"), 100, "{status}");
        }
    }

    #[test]
    fn ages_that_cannot_be_read_are_too_old() {
        let age = |values: &[&str]| {
            let fields: Vec<_> = values.iter().map(|value| ("age", (*value).to_owned())).collect();
            freshness(200, &fields).initial_age
        };
        assert_eq!(age(&[]), Duration::ZERO);
        assert_eq!(age(&["7"]), Duration::from_secs(7));
        for bad in [&["old"][..], &["-7"], &["7.0"], &["0, 0"], &["0", "0"], &["7;a=1"], &[""]] {
            assert_eq!(age(bad), Duration::MAX, "{bad:?}");
        }
    }

    #[test]
    fn clocks_that_differ_count_against_the_response() {
        let behind = freshness(200, &[("date", at(-30))]);
        assert_eq!(behind.initial_age, Duration::from_secs(30), "apparent age");
        let ahead = freshness(200, &[("date", at(30)), ("age", "4".into())]);
        assert_eq!(ahead.initial_age, Duration::from_secs(4));
        let slow = Times { requested: NOW - Duration::from_secs(3), received: NOW };
        let mut headers = HeaderMap::new();
        headers.insert("age", "4".parse().unwrap());
        assert_eq!(initial_age(&headers, NOW, slow), Duration::from_secs(7));
    }

    #[test]
    fn it_ages_with_our_clock_and_never_grows_younger() {
        let mut good = freshness(200, &[("cache-control", "max-age=10".into())]);
        let after = |seconds| NOW + Duration::from_secs(seconds);
        assert!(good.is_fresh(NOW) && good.is_fresh(after(9)) && !good.is_fresh(after(10)));
        assert_eq!(good.staleness(after(14)), Duration::from_secs(4));
        assert_eq!(good.age(NOW - Duration::from_secs(99)), Duration::ZERO);
        good.initial_age = Duration::MAX;
        assert!(!good.is_fresh(NOW));
        assert_eq!(good.age(after(1)), Duration::MAX);
    }
}

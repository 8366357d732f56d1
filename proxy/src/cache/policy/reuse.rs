//! Whether a request may be answered with a stored response (RFC 9111 section 4), also with a stale one (section 4.2.4,
//! RFC 5861).

use std::time::Duration;

use super::{directives::Directives, freshness::Freshness};

/// How long stale responses may be used that do not say so themselves; `ZERO` is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// While they are validated.
    pub while_revalidate: Duration,
    /// When they cannot be validated.
    pub if_error: Duration,
}

/// What is done about a request for which there is a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It is the answer.
    Fresh,
    /// It is the answer although it is stale: the caller accepts that.
    Accepted,
    /// It is the answer, and is validated meanwhile.
    WhileRevalidate,
    /// The origin is asked first.
    Validate(Why),
}

/// Why the origin is asked, for `fwd` of `Cache-Status` (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is stale, or may not be used unvalidated.
    Stale,
    /// The caller wants it so.
    Request,
}

/// Whether the stored response is the answer at `now`.
pub fn decide(
    request: &Directives,
    stored: &Directives,
    freshness: &Freshness,
    windows: Windows,
    now: Duration,
) -> Reuse {
    if request.no_cache {
        return Reuse::Validate(Why::Request);
    }
    if stored.no_cache {
        return Reuse::Validate(Why::Stale);
    }
    let age = freshness.age(now);
    let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    if seconds(request.max_age).is_some_and(|most| age > most || most.is_zero()) {
        return Reuse::Validate(Why::Request);
    }
    let left = freshness.lifetime.saturating_sub(age);
    if seconds(request.min_fresh).is_some_and(|least| left < least) {
        return Reuse::Validate(Why::Request);
    }
    if freshness.is_fresh(now) {
        return Reuse::Fresh;
    }
    let staleness = freshness.staleness(now);
    let allowed = stored.stale_while_revalidate.map(Duration::from_secs);
    if may_be_stale(stored, allowed.is_some())
        && staleness < allowed.unwrap_or(windows.while_revalidate)
    {
        return Reuse::WhileRevalidate;
    }
    match seconds(request.max_stale).is_some_and(|most| staleness <= most) {
        true if may_be_stale(stored, false) => Reuse::Accepted,
        _ => Reuse::Validate(Why::Stale),
    }
}

/// Whether the stored response is the answer when the origin could not be asked, or answered with an error.
pub fn decide_on_error(
    request: &Directives,
    stored: &Directives,
    freshness: &Freshness,
    windows: Windows,
    now: Duration,
) -> bool {
    // What the caller or the origin wants validated is not used instead.
    if request.no_cache || stored.no_cache {
        return false;
    }
    let said = stored.stale_if_error.max(request.stale_if_error).map(Duration::from_secs);
    may_be_stale(stored, said.is_some())
        && freshness.staleness(now) < said.unwrap_or(windows.if_error)
}

/// Section 4.2.4. `s-maxage` forbids it, too (section 5.2.2.10), but not against what the same origin says explicitly.
fn may_be_stale(stored: &Directives, said: bool) -> bool {
    !stored.must_revalidate && !stored.proxy_revalidate && (said || stored.s_maxage.is_none())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, header};

    use super::*;

    const NEVER: Windows = Windows { while_revalidate: Duration::ZERO, if_error: Duration::ZERO };
    const HOUR: Windows = Windows {
        while_revalidate: Duration::from_secs(3600),
        if_error: Duration::from_secs(3600),
    };

    fn control(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !value.is_empty() {
            headers.insert(header::CACHE_CONTROL, value.parse().unwrap());
        }
        headers
    }

    fn both(request: &str, stored: &str) -> (Directives, Directives, Freshness) {
        let stored = Directives::of_response(&control(stored)).0;
        let freshness = Freshness {
            lifetime: Duration::from_secs(stored.s_maxage.or(stored.max_age).unwrap_or_default()),
            explicit: true,
            initial_age: Duration::ZERO,
            received: Duration::ZERO,
        };
        (Directives::of_request(&control(request)), stored, freshness)
    }

    fn at(request: &str, stored: &str, windows: Windows, now: u64) -> Reuse {
        let (request, stored, freshness) = both(request, stored);
        decide(&request, &stored, &freshness, windows, Duration::from_secs(now))
    }

    #[test]
    fn section_4_2() {
        assert_eq!(at("", "max-age=10", NEVER, 9), Reuse::Fresh);
        assert_eq!(at("", "max-age=10", NEVER, 10), Reuse::Validate(Why::Stale));
        assert_eq!(at("", "max-age=10, no-cache", NEVER, 0), Reuse::Validate(Why::Stale));
        assert_eq!(at("", "max-age=10, no-cache=a", NEVER, 0), Reuse::Fresh);
        assert_eq!(at("", "max-age=10", HOUR, 99), Reuse::WhileRevalidate);
        assert_eq!(at("", "max-age=10", HOUR, 4000), Reuse::Validate(Why::Stale));
    }

    #[test]
    fn section_5_2_1_what_callers_want() {
        for (request, now, reuse) in [
            ("no-cache", 0, Reuse::Validate(Why::Request)),
            ("max-age=0", 0, Reuse::Validate(Why::Request)),
            ("max-age=5", 5, Reuse::Fresh),
            ("max-age=5", 6, Reuse::Validate(Why::Request)),
            ("min-fresh=5", 5, Reuse::Fresh),
            ("min-fresh=5", 6, Reuse::Validate(Why::Request)),
            ("max-stale", 99, Reuse::Accepted),
            ("max-stale=5", 15, Reuse::Accepted),
            ("max-stale=5", 16, Reuse::Validate(Why::Stale)),
            ("max-stale, max-age=5", 9, Reuse::Validate(Why::Request)),
        ] {
            assert_eq!(at(request, "max-age=10", NEVER, now), reuse, "{request} {now}");
        }
    }

    #[test]
    fn section_4_2_4_what_may_never_be_stale() {
        for stored in ["max-age=1, must-revalidate", "max-age=1, proxy-revalidate", "s-maxage=1"] {
            assert_eq!(at("max-stale", stored, HOUR, 2), Reuse::Validate(Why::Stale), "{stored}");
            let (request, stored, freshness) = both("", stored);
            let now = Duration::from_secs(2);
            assert!(!decide_on_error(&request, &stored, &freshness, HOUR, now), "{stored:?}");
        }
        let said = "s-maxage=1, stale-while-revalidate=5, stale-if-error=5";
        assert_eq!(at("", said, NEVER, 2), Reuse::WhileRevalidate);
        let said = "max-age=1, must-revalidate, stale-while-revalidate=5";
        assert_eq!(at("", said, NEVER, 2), Reuse::Validate(Why::Stale));
    }

    #[test]
    fn rfc_5861() {
        assert_eq!(at("", "max-age=1, stale-while-revalidate=3", NEVER, 3), Reuse::WhileRevalidate);
        assert_eq!(
            at("", "max-age=1, stale-while-revalidate=3", HOUR, 4),
            Reuse::Validate(Why::Stale),
            "what the origin says goes before what the policy says"
        );
        let on_error = |request: &str, stored: &str, windows, now| {
            let (request, stored, freshness) = both(request, stored);
            decide_on_error(&request, &stored, &freshness, windows, Duration::from_secs(now))
        };
        assert!(on_error("", "max-age=1, stale-if-error=3", NEVER, 3));
        assert!(!on_error("", "max-age=1, stale-if-error=3", HOUR, 4));
        assert!(!on_error("", "max-age=1", NEVER, 2));
        assert!(on_error("", "max-age=1", HOUR, 2));
        assert!(on_error("stale-if-error=9", "max-age=1", NEVER, 5));
        assert!(!on_error("no-cache", "max-age=1, stale-if-error=9", HOUR, 2));
        assert!(!on_error("", "max-age=1, no-cache, stale-if-error=9", HOUR, 2));
    }
}

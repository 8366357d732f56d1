//! `Cache-Status`: what became of a request here, for people (RFC 9211). Pure.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::policy::{freshness::Freshness, reuse};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// Who says it.
const NAME: &str = "leno";

/// A stale response was used because the origin failed (RFC 5861 section 4).
pub const STALE_IF_ERROR: &str = "stale-if-error";

/// Why the origin was asked (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// The policy does not let this request be answered from the store.
    Bypass,
    /// The method does not.
    Method,
    /// Nothing is kept for the URL.
    UriMiss,
    /// Something is, but not for such requests.
    VaryMiss,
    /// What is kept needed validation.
    Stale,
    /// The caller wanted it so.
    Request,
}

impl Forward {
    /// As RFC 9211 writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

impl From<reuse::Why> for Forward {
    fn from(why: reuse::Why) -> Self {
        match why {
            reuse::Why::Stale => Self::Stale,
            reuse::Why::Request => Self::Request,
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Answered from the store.
    Hit {
        /// Seconds until it is stale; negative if it is.
        ttl: i64,
        /// What else there is to say.
        detail: Option<&'static str>,
    },
    /// The origin was asked.
    Forwarded {
        /// Why.
        why: Forward,
        /// What it said, where the caller gets something else.
        status: Option<u16>,
        /// Whether the response is kept.
        stored: bool,
        /// Whether another request asked for this one, too.
        collapsed: bool,
        /// What else there is to say.
        detail: Option<&'static str>,
    },
}

impl Told {
    /// Answered with what was kept.
    pub fn hit(freshness: &Freshness, now: std::time::Duration) -> Self {
        let (lifetime, age) = (freshness.lifetime.as_secs(), freshness.age(now).as_secs());
        let ttl = i128::from(lifetime) - i128::from(age);
        let bound = i128::from(i32::MAX);
        Self::Hit { ttl: i64::try_from(ttl.clamp(-bound, bound)).unwrap_or_default(), detail: None }
    }

    /// The origin was asked, and nothing is kept.
    pub fn forwarded(why: Forward) -> Self {
        Self::Forwarded { why, status: None, stored: false, collapsed: false, detail: None }
    }

    /// Says more.
    #[must_use]
    pub fn because(mut self, why: &'static str) -> Self {
        let (Self::Hit { detail, .. } | Self::Forwarded { detail, .. }) = &mut self;
        *detail = Some(why);
        self
    }

    /// For logs: in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hit { ttl, .. } if ttl <= 0 => "stale",
            Self::Hit { .. } => "hit",
            Self::Forwarded { detail: Some(STALE_IF_ERROR), .. } => "stale",
            Self::Forwarded { collapsed: true, .. } => "collapsed",
            Self::Forwarded { status: Some(304), .. } => "validated",
            Self::Forwarded { why: Forward::Bypass | Forward::Method, .. } => "bypass",
            Self::Forwarded { .. } => "miss",
        }
    }

    /// Adds it behind what caches before us have said.
    pub fn append(self, headers: &mut HeaderMap) {
        let mut text = String::with_capacity(48);
        text.push_str(NAME);
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Hit { ttl, .. } => write!(text, "; hit; ttl={ttl}"),
            Self::Forwarded { why, status, stored, collapsed, .. } => {
                let _ = write!(text, "; fwd={}", why.as_str());
                if let Some(status) = status {
                    let _ = write!(text, "; fwd-status={status}");
                }
                text.push_str(if stored { "; stored" } else { "" });
                text.push_str(if collapsed { "; collapsed" } else { "" });
                Ok(())
            }
        };
        let (Self::Hit { detail, .. } | Self::Forwarded { detail, .. }) = self;
        if let Some(detail) = detail {
            let _ = write!(text, "; detail={detail}");
        }
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(CACHE_STATUS, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(told: Told) -> String {
        let mut headers = HeaderMap::new();
        told.append(&mut headers);
        headers["cache-status"].to_str().unwrap().to_owned()
    }

    #[test]
    fn everything_is_said_as_rfc_9211_writes_it() {
        let freshness = Freshness {
            lifetime: Duration::from_secs(60),
            explicit: true,
            initial_age: Duration::from_secs(10),
            received: Duration::from_secs(100),
        };
        let hit = |now| Told::hit(&freshness, Duration::from_secs(now));
        assert_eq!(written(hit(110)), "leno; hit; ttl=40");
        assert_eq!(written(hit(200)), "leno; hit; ttl=-50");
        assert_eq!(hit(200).word(), "stale");
        let unknown = Freshness { initial_age: Duration::MAX, ..freshness };
        assert!(written(Told::hit(&unknown, Duration::ZERO)).ends_with("ttl=-2147483647"));
        let miss = Told::forwarded(Forward::UriMiss);
        assert_eq!(written(miss), "leno; fwd=uri-miss");
        assert_eq!(written(miss.because("no-store")), "leno; fwd=uri-miss; detail=no-store");
        let validated = Told::Forwarded {
            why: Forward::Stale,
            status: Some(304),
            stored: true,
            collapsed: true,
            detail: None,
        };
        assert_eq!(written(validated), "leno; fwd=stale; fwd-status=304; stored; collapsed");
    }
}

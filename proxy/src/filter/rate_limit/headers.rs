//! What callers are told of a limit: `RateLimit-Policy` and `RateLimit`
//! (draft-ietf-httpapi-ratelimit-headers-10), and `Retry-After` with a refusal (RFC 9110 section 10.2.3, RFC 6585
//! section 4).

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::bucket::{Decision, Rate};

/// Which limits there are.
pub const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of them.
pub const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The largest integer of a structured field (RFC 9651 section 3.3.1).
const LARGEST: u128 = 999_999_999_999_999;

/// A limit with its name in quotes. Made once, when the configuration is compiled.
#[derive(Clone, Debug)]
pub struct Named {
    quoted: String,
    policy: Option<HeaderValue>,
}

impl Named {
    /// `name` as a structured string (RFC 9651 section 3.3.3): what is not printable ASCII becomes `_`.
    pub fn new(name: &str, rate: &Rate) -> Self {
        let mut quoted = String::from('"');
        for char in name.chars() {
            if matches!(char, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(if matches!(char, ' '..='~') { char } else { '_' });
        }
        quoted.push('"');
        let (quota, window) = quota_and_window(rate);
        let policy = HeaderValue::try_from(format!("{quoted};q={quota};w={window}")).ok();
        Self { quoted, policy }
    }

    /// For `RateLimit-Policy`: the quota, and the seconds in which there is as much again.
    pub fn policy(&self) -> Option<&HeaderValue> {
        self.policy.as_ref()
    }

    /// For `RateLimit`: what is left, and where something is missing, in how many seconds there will be more. Several
    /// limits are several fields.
    pub fn value(&self, decision: &Decision) -> Option<HeaderValue> {
        let left = u128::from(decision.remaining).min(LARGEST);
        let text = match decision.more_in {
            None => format!("{};r={left}", self.quoted),
            Some(more_in) => format!("{};r={left};t={}", self.quoted, seconds(more_in)),
        };
        HeaderValue::try_from(text).ok()
    }
}

/// For `Retry-After`: at least a second, so that nobody is told to come back at once.
pub fn retry_after(wait: Duration) -> HeaderValue {
    HeaderValue::from(seconds(wait))
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    let whole = u128::from(time.as_secs()) + u128::from(time.subsec_nanos() > 0);
    u64::try_from(whole.clamp(1, LARGEST)).unwrap_or(u64::MAX)
}

/// Windows are told in whole seconds: of one that is not, the quota of the next larger.
fn quota_and_window(rate: &Rate) -> (u128, u64) {
    let window = seconds(rate.per());
    let whole = u128::from(window) * 1_000_000_000;
    let scaled = u128::from(rate.requests()) * whole / rate.per().as_nanos().max(1);
    (scaled.min(LARGEST), window)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::filter::rate_limit::bucket::{Bucket, Verdict};

    fn text(value: Option<&HeaderValue>) -> &str {
        value.unwrap().to_str().unwrap()
    }

    #[test]
    fn callers_learn_the_limit_and_what_is_left() {
        let rate = Rate::new(100, Duration::from_secs(60), 3);
        let named = Named::new("orders", &rate);
        assert_eq!(text(named.policy()), "\"orders\";q=100;w=60");
        let bucket = Bucket::default();
        let full = bucket.take(&rate, Duration::from_secs(1), 0);
        assert_eq!(text(named.value(&full).as_ref()), "\"orders\";r=3");
        assert_eq!((POLICY.as_str(), LIMIT.as_str()), ("ratelimit-policy", "ratelimit"));
        let taken = bucket.take(&rate, Duration::from_secs(1), 3);
        assert_eq!(text(named.value(&taken).as_ref()), "\"orders\";r=0;t=1");
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let rate = Rate::new(1, Duration::from_millis(2_500), 1);
        let bucket = Bucket::default();
        bucket.take(&rate, Duration::ZERO, 1);
        let refused = bucket.take(&rate, Duration::ZERO, 1);
        let Verdict::Limited(Some(wait)) = refused.verdict else {
            panic!("{refused:?}");
        };
        assert_eq!(retry_after(wait), "3");
        // The two never contradict each other.
        let named = Named::new("x", &rate);
        assert_eq!(text(named.value(&refused).as_ref()), "\"x\";r=0;t=3");
        assert_eq!(text(named.policy()), "\"x\";q=1;w=3");
        assert_eq!(retry_after(Duration::ZERO), "1");
        assert_eq!(retry_after(Duration::MAX), "999999999999999");
    }

    #[test]
    fn a_name_cannot_break_out() {
        let rate = Rate::new(1, Duration::ZERO, 1);
        let named = Named::new("a\"b\\c\r\nd\u{e9}", &rate);
        assert_eq!(text(named.policy()), "\"a\\\"b\\\\c__d_\";q=1000000000;w=1");
    }

    proptest! {
        #[test]
        fn every_limit_can_be_told(
            name in "\\PC{0,20}",
            requests: u32,
            per: u64,
            burst: u32,
            remaining: u64,
            more_in in proptest::option::of(any::<u64>()),
        ) {
            let rate = Rate::new(requests, Duration::from_millis(per), burst);
            let named = Named::new(&name, &rate);
            let more_in = more_in.map(Duration::from_secs);
            let decision = Decision { verdict: Verdict::Admitted, remaining, more_in };
            prop_assert!(named.policy().is_some() && named.value(&decision).is_some());
        }
    }
}

//! The token bucket: so many requests at once, and so many more in a time. Implemented as the generic cell rate
//! algorithm (GCRA; ITU-T I.371, "virtual scheduling"), which keeps one number instead of a count and a time: the
//! theoretical arrival time, at which the bucket will be full again. All workers share it; taking is one
//! compare-and-swap.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// No sum of a time and a bucket overflows: times end after 292 years, and no bucket takes longer to fill than half of
/// that.
const LAST: u64 = u64::MAX >> 1;
const LONGEST: u64 = u64::MAX >> 2;

/// How much is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    requests: u32,
    per: Duration,
    /// Nanoseconds between two requests; `None` where nothing is let through.
    interval: Option<u64>,
    /// Nanoseconds in which an empty bucket fills.
    depth: u64,
}

/// One bucket; full when new.
#[derive(Debug, Default)]
pub struct Bucket {
    /// Nanoseconds: when it will be full.
    full_at: AtomicU64,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request is let through.
    pub verdict: Verdict,
    /// How many more would be let through now.
    pub remaining: u64,
    /// In what time there will be one more; `None` where there are as many as there can be.
    pub more_in: Option<Duration>,
}

/// Whether a request is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Admitted,
    /// It is not; it would be after this time, or `None`: never, since it asks for more than there can be.
    Limited(Option<Duration>),
}

impl Rate {
    /// `requests` in the time of `per`, and up to `burst` at once. The intervals are rounded up to nanoseconds: of more
    /// than a million requests a second fewer than said are let through, never more. 0 requests or a burst of 0 let
    /// nothing through.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Self {
        let nanos = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let interval = (requests > 0 && burst > 0)
            .then(|| nanos.div_ceil(u64::from(requests)).clamp(1, LONGEST));
        let depth = interval.unwrap_or(0).saturating_mul(u64::from(burst)).min(LONGEST);
        Self { requests, per, interval, depth }
    }

    /// How many in the time of [`per`](Self::per).
    pub fn requests(&self) -> u32 {
        self.requests
    }

    /// In what time.
    pub fn per(&self) -> Duration {
        self.per
    }
}

impl Bucket {
    /// Takes `cost` units, or none.
    pub fn take(&self, rate: &Rate, now: Duration, cost: u32) -> Decision {
        let Some(interval) = rate.interval else {
            return Decision { verdict: Verdict::Limited(None), remaining: 0, more_in: None };
        };
        let now = nanos(now);
        let price = interval.saturating_mul(u64::from(cost));
        let mut seen = self.full_at.load(Ordering::Relaxed);
        loop {
            let used = seen.saturating_sub(now);
            let wanted = used.saturating_add(price);
            if wanted > rate.depth {
                let wait = (price <= rate.depth)
                    .then(|| Duration::from_nanos(wanted.saturating_sub(rate.depth)));
                return Decision { verdict: Verdict::Limited(wait), ..rate.left(interval, used) };
            }
            let full_at = seen.max(now) + price;
            match self.full_at.compare_exchange_weak(
                seen,
                full_at,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return rate.left(interval, wanted),
                Err(newer) => seen = newer,
            }
        }
    }

    /// Gives `cost` units back that were just taken, because another limit refused the same request.
    pub fn give_back(&self, rate: &Rate, cost: u32) {
        let price = rate.interval.unwrap_or(0).saturating_mul(u64::from(cost));
        let less = |full_at: u64| Some(full_at.saturating_sub(price));
        _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Goes over to another rate: what share of the bucket was used stays used.
    pub fn change(&self, old: &Rate, new: &Rate, now: Duration) {
        let now = nanos(now);
        let scale = |full_at: u64| {
            let used = u128::from(full_at.saturating_sub(now).min(old.depth));
            let scaled = used * u128::from(new.depth) / u128::from(old.depth.max(1));
            Some(now + u64::try_from(scaled).unwrap_or(LONGEST))
        };
        _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, scale);
    }

    /// When it will be full, in nanoseconds since the fixed start: the lower, the fuller.
    pub(super) fn full_at(&self) -> u64 {
        self.full_at.load(Ordering::Relaxed)
    }
}

impl Rate {
    fn left(&self, interval: u64, used: u64) -> Decision {
        let left = self.depth.saturating_sub(used);
        // After a step back of the clock, or another rate, more may be in use than there is.
        let over = used.saturating_sub(self.depth);
        let more_in = (used > 0)
            .then(|| Duration::from_nanos((interval - left % interval).saturating_add(over)));
        Decision { verdict: Verdict::Admitted, remaining: left / interval, more_in }
    }
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(LAST).min(LAST)
}

#[cfg(test)]
mod tests;

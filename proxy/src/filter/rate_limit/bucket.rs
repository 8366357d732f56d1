//! The token bucket: so many requests at once, and so many more in a time. Implemented as the generic cell rate
//! algorithm (GCRA; ITU-T I.371, "virtual scheduling"), which keeps one number instead of a count and a time: the
//! theoretical arrival time, at which the bucket will be full again. All workers share it; taking is one
//! compare-and-swap.
//!
//! Where all proxies together have one limit, a bucket holds this proxy's [`Share`] of it.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
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
    burst: u32,
    /// Nanoseconds between two requests; `None` where nothing is let through.
    interval: Option<u64>,
    /// Nanoseconds in which an empty bucket fills.
    depth: u64,
}

/// A part of a limit, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

/// One bucket; full when new.
#[derive(Debug)]
pub struct Bucket {
    /// Nanoseconds: when it will be full.
    full_at: AtomicU64,
    /// Of the limit, in millionths; [`RETIRED`] where nobody is to take from it any more.
    share: AtomicU32,
    /// Units that were asked for, admitted or not, since they were last counted.
    wanted: AtomicU32,
}

const RETIRED: u32 = 0;

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
        Self { requests, per, burst, interval, depth }
    }

    /// What a share of it comes to: as much less often, and as much less at once, but at least one.
    pub fn part(&self, share: Share) -> Self {
        let Some(interval) = self.interval.filter(|_| share != Share::WHOLE) else { return *self };
        let (part, whole) = (u128::from(share.0), u128::from(Share::WHOLE.0));
        let interval = u128::from(interval) * whole / part;
        let interval = u64::try_from(interval).unwrap_or(LONGEST).min(LONGEST);
        let burst = (u128::from(self.burst) * part / whole).max(1);
        let burst = u32::try_from(burst).unwrap_or(self.burst);
        let depth = interval.saturating_mul(u64::from(burst)).min(LONGEST);
        Self { interval: Some(interval), burst, depth, ..*self }
    }

    /// How much so many requests a second are of it, in millionths.
    pub fn millionths(&self, per_second: f64) -> u32 {
        let interval = self.interval.unwrap_or(0) as f64 / 1e9;
        // `as` saturates.
        (per_second * interval * f64::from(Share::WHOLE.0)).ceil() as u32
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

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self(1_000_000);

    /// So many millionths: at least one, since nothing would be for ever, and at most all.
    pub const fn of_millionths(millionths: u32) -> Self {
        match millionths {
            0 => Self(1),
            1_000_000.. => Self::WHOLE,
            _ => Self(millionths),
        }
    }

    /// The same as a number.
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// An equal share among so many.
    pub fn among(number: u32) -> Self {
        Self::of_millionths(Self::WHOLE.0 / number.max(1))
    }
}

impl Default for Bucket {
    fn default() -> Self {
        Self::with(Share::WHOLE)
    }
}

impl Bucket {
    /// For a share of a limit.
    pub fn with(share: Share) -> Self {
        Self {
            full_at: AtomicU64::new(0),
            share: AtomicU32::new(share.0),
            wanted: AtomicU32::new(0),
        }
    }

    /// Of the limit.
    pub fn share(&self) -> Share {
        Share::of_millionths(self.share.load(Ordering::Relaxed))
    }

    /// Another share of the limit of `rate`. What may be taken now stays as many units, lest requests come into being
    /// by shares going to and fro; above the new depth it is lost.
    pub fn set_share(&self, rate: &Rate, share: Share, now: Duration) {
        let (old, new) = (rate.part(self.share()), rate.part(share));
        let (Some(old_interval), Some(new_interval)) = (old.interval, new.interval) else { return };
        if self.is_retired() || old == new {
            return;
        }
        self.share.store(share.0, Ordering::Relaxed);
        let now = nanos(now);
        let keep = |full_at: u64| {
            let free = old.depth.saturating_sub(full_at.saturating_sub(now));
            let free = u128::from(free) * u128::from(new_interval) / u128::from(old_interval);
            let free = u64::try_from(free).unwrap_or(LONGEST).min(new.depth);
            Some(now + (new.depth - free))
        };
        _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, keep);
    }

    /// Nobody is to take from it any more; whoever still has it looks for the one that took its place.
    pub(super) fn retire(&self) {
        self.share.store(RETIRED, Ordering::Relaxed);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.share.load(Ordering::Relaxed) == RETIRED
    }

    /// Notes that somebody asks.
    pub(super) fn want(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// How many asked since this was last called.
    pub(super) fn take_wanted(&self) -> u32 {
        self.wanted.swap(0, Ordering::Relaxed)
    }

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
        let share = self.share();
        let (old, new) = (old.part(share), new.part(share));
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

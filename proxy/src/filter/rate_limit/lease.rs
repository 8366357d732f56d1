//! A share in a limit that all proxies have together. The control plane grants a proxy some units for some time, out of
//! what the limit still has; the proxy spends them without asking, and asks for more before they run out. No request
//! waits for the control plane.
//!
//! - [`Pot`]: what workers take from: one atomic word.
//! - [`Lease`]: the accounting, on the side thread. What it tells the control plane are sums since the lease began, so
//!   a report that is lost or told twice changes nothing.
//!
//! Before the first grant, and while the control plane is away, there is `credit`: the limit can be exceeded by the
//! credit of each proxy, and by no more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A proxy asks for what it needs in this time: long enough that the control plane may take a second to answer, short
/// enough that no proxy sits on units that another one needs.
pub const HORIZON: Duration = Duration::from_secs(2);
/// Between two questions, unless requests are being refused.
const CALM: Duration = Duration::from_secs(1);
/// Between two questions at all.
const HURRY: Duration = Duration::from_millis(100);
/// The most that is asked for at once.
pub const MOST_WANTED: u64 = 1_000_000_000;

/// What workers take from.
#[derive(Debug)]
pub struct Pot {
    left: AtomicU64,
    refused: AtomicU64,
}

/// What the control plane gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Units, beside those granted before.
    pub units: u64,
    /// For how long this and all that is left may be spent.
    pub valid_for: Duration,
}

/// What the control plane is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Units spent since the lease began, those on credit included.
    pub used: u64,
    /// Units given back since then, or expired: others may have them.
    pub returned: u64,
    /// Units asked for now; 0 where this only gives back.
    pub wanted: u64,
}

/// The accounting of one limit's units on one proxy.
#[derive(Debug)]
pub struct Lease {
    pot: Arc<Pot>,
    credit: u64,
    granted: u64,
    returned: u64,
    until: Duration,
    latest: Duration,
    /// Units a second that were taken or refused, smoothed.
    demand: f64,
    measured: Measured,
    asked: Option<Asked>,
}

/// What had happened when demand was last measured.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    at: Duration,
    used: u64,
    refused: u64,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The last time.
    at: Duration,
    /// The first time that got no grant since.
    unanswered: Option<Duration>,
}

impl Pot {
    /// Takes `cost` units, or none.
    pub fn take(&self, cost: u64) -> bool {
        let less = |left: u64| left.checked_sub(cost);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
        if !taken {
            self.refused.fetch_add(cost, Ordering::Relaxed);
        }
        taken
    }

    /// What is left, credit included.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}

impl Lease {
    /// Without a grant: with `credit` units only.
    pub fn new(credit: u64) -> Self {
        Self {
            pot: Arc::new(Pot { left: AtomicU64::new(credit), refused: AtomicU64::new(0) }),
            credit,
            granted: 0,
            returned: 0,
            until: Duration::ZERO,
            latest: Duration::ZERO,
            demand: 0.0,
            measured: Measured::default(),
            asked: None,
        }
    }

    /// For the workers.
    pub fn pot(&self) -> Arc<Pot> {
        self.pot.clone()
    }

    /// Takes up a grant.
    pub fn grant(&mut self, now: Duration, grant: Grant) {
        self.advance(now);
        self.expire();
        // Past this sum the control plane has granted more than anybody can count; the rest is not taken up.
        let room = u64::MAX - self.granted.saturating_add(self.credit);
        let units = grant.units.min(room);
        self.granted += units;
        self.pot.left.fetch_add(units, Ordering::Relaxed);
        self.until = self.until.max(self.latest.saturating_add(grant.valid_for));
        if let Some(asked) = &mut self.asked {
            asked.unanswered = None;
        }
    }

    /// What to tell the control plane, if there is something: at least every [`HORIZON`] while units are held or spent.
    /// To be called regularly.
    pub fn report(&mut self, now: Duration) -> Option<Report> {
        self.advance(now);
        self.expire();
        let refused = self.measure();
        let since = self.asked.map_or(Duration::MAX, |asked| self.latest.saturating_sub(asked.at));
        if since < HURRY || (since < CALM && !refused) {
            return None;
        }
        let target = self.target();
        let before = self.returned;
        let held = self.held();
        if held / 2 > target {
            self.give_back(held - target);
        }
        let wanted = if held < target.div_ceil(2) { target - held } else { 0 };
        let tells = wanted > 0 || self.returned > before;
        if !tells && since < HORIZON {
            return None;
        }
        let unanswered = self.asked.and_then(|asked| asked.unanswered);
        let unanswered = unanswered.or((wanted > 0).then_some(self.latest));
        self.asked = Some(Asked { at: self.latest, unanswered });
        Some(Report { used: self.used(), returned: self.returned, wanted })
    }

    /// For how long a question has had no answer: whether to go by a local limit until the control plane is back.
    pub fn unanswered(&self) -> Option<Duration> {
        let first = self.asked?.unanswered?;
        Some(self.latest.saturating_sub(first))
    }

    /// Units spent since the lease began. One look at the pot: workers go on taking.
    fn used(&self) -> u64 {
        let all = self.credit.saturating_add(self.granted).saturating_sub(self.returned);
        all.saturating_sub(self.pot.left())
    }

    /// Units left that were granted.
    fn held(&self) -> u64 {
        self.pot.left().saturating_sub(self.credit)
    }

    fn target(&self) -> u64 {
        // `as` saturates.
        ((self.demand * HORIZON.as_secs_f64()).ceil() as u64).min(MOST_WANTED)
    }

    fn advance(&mut self, now: Duration) {
        self.latest = self.latest.max(now);
    }

    fn expire(&mut self) {
        if self.latest >= self.until {
            self.give_back(u64::MAX);
        }
    }

    /// Takes up to so many units out of the pot, leaving the credit.
    fn give_back(&mut self, most: u64) {
        let mut given = 0;
        let less = |left: u64| {
            given = left.saturating_sub(self.credit).min(most);
            Some(left - given)
        };
        _ = self.pot.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.returned += given;
    }

    /// Brings demand up to date; whether anything was refused since the last time.
    fn measure(&mut self) -> bool {
        let now = Measured {
            at: self.latest,
            used: self.used(),
            refused: self.pot.refused.load(Ordering::Relaxed),
        };
        let refused = now.refused.wrapping_sub(self.measured.refused);
        let passed = now.at.saturating_sub(self.measured.at);
        if passed >= HURRY {
            let units = now.used.saturating_sub(self.measured.used).saturating_add(refused);
            let rate = units as f64 / passed.as_secs_f64();
            let weight = 1.0 - (-passed.as_secs_f64() / HORIZON.as_secs_f64()).exp();
            // More is believed at once: too little would be refused.
            self.demand = rate.max(self.demand + (rate - self.demand) * weight);
            self.measured = now;
        }
        refused > 0
    }
}

#[cfg(test)]
mod tests;

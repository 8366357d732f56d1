//! The breaker that opens where too many requests fail or are too slow, per service or per endpoint. Closed means
//! traffic flows; open means every request is rejected at once; half-open means a few are let through to see.
//!
//! Pure but for the [`Gate`], which the workers look at: `now` is the time since any fixed start, and where it goes
//! backwards no time has passed. One owner feeds it with [`push`](Circuit::push) and [`tick`](Circuit::tick). What was
//! begun while it was closed and fails while it is half-open decides nothing: only the probes do.
//!
//! After Nygard, "Release It!" (2007), with the sliding window, slow calls and exponential open time that resilience4j
//! and Hystrix made common.

pub mod gate;

use std::{fmt, sync::Arc, time::Duration};

use super::window::{Batch, Span, Window};
use gate::{Gate, Probes};

/// The shortest time to be open: less is no rest.
pub const MIN_OPEN: Duration = Duration::from_millis(100);
/// The longest: after an hour somebody should see for themselves.
pub const MAX_OPEN: Duration = Duration::from_secs(3600);
/// As `error_percent`: failures never open it, only slow requests do.
pub const NEVER: u8 = 101;
/// The most probes: more is traffic.
pub const MAX_PROBES: u8 = 100;

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Over how long results count: [`MIN_LENGTH`](super::window::MIN_LENGTH) to
    /// [`MAX_LENGTH`](super::window::MAX_LENGTH).
    pub window: Duration,
    /// How many results it takes to judge; at least 1.
    pub minimum: u64,
    /// It opens when so many of a hundred fail: 1 to 100, or [`NEVER`].
    pub error_percent: u8,
    /// Whether slow requests open it, too.
    pub slow: Option<Slow>,
    /// For how long it opens first; twice as long each further time. [`MIN_OPEN`] to [`MAX_OPEN`].
    pub open_for: Duration,
    /// For how long at most: `open_for` to [`MAX_OPEN`]. Also after how long without an answer a probe is lost, and
    /// after how long closed it begins anew with `open_for`.
    pub open_max: Duration,
    /// How many requests a half-open one lets through: 1 to [`MAX_PROBES`].
    pub probes: u8,
}

/// When slow requests open a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// What takes longer is slow.
    pub threshold: Duration,
    /// It opens when so many of a hundred are slow: 1 to 100.
    pub percent: u8,
}

/// Where a breaker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Traffic flows.
    Closed {
        /// Since when.
        since: Duration,
    },
    /// Requests are rejected.
    Open {
        /// Since when.
        since: Duration,
        /// Until when.
        until: Duration,
        /// Why.
        cause: Cause,
        /// How often in a row it opened.
        times: u32,
    },
    /// A few requests pass.
    HalfOpen {
        /// Since when.
        since: Duration,
        /// How they stand.
        probes: Probes,
        /// Why it was open before.
        cause: Cause,
        /// How often in a row it opened.
        times: u32,
    },
}

/// Why a breaker changed its state. Its text is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Too many failed.
    Errors {
        /// How many failed.
        failures: u64,
        /// Of how many.
        total: u64,
        /// Within which time.
        window: Duration,
        /// It stays closed below so many of a hundred.
        allowed: u8,
    },
    /// Too many were slow.
    Slow {
        /// How many were slow.
        slow: u64,
        /// Of how many.
        total: u64,
        /// Within which time.
        window: Duration,
        /// What they took longer than.
        threshold: Duration,
        /// It stays closed below so many of a hundred.
        allowed: u8,
    },
    /// Too many probes failed or were slow.
    Probed(Probes),
    /// Probes did not come back.
    Lost {
        /// How many.
        lost: u8,
        /// Of how many.
        of: u8,
        /// Within which time.
        waited: Duration,
    },
    /// Enough probes succeeded.
    Recovered(Probes),
    /// The open time is over.
    Rested(Duration),
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Duration,
    /// To which state.
    pub to: State,
    /// Why.
    pub cause: Cause,
}

/// A breaker.
#[derive(Debug)]
pub struct Circuit {
    settings: Settings,
    window: Window,
    phase: Phase,
    times: u32,
    now: Duration,
    gate: Arc<Gate>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed {
        since: Duration,
    },
    Open {
        since: Duration,
        until: Duration,
        cause: Cause,
    },
    /// `seen` are the probes when they were last seen to change, at `seen_at`.
    HalfOpen {
        since: Duration,
        cause: Cause,
        seen: Probes,
        seen_at: Duration,
    },
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            minimum: 20,
            error_percent: 50,
            slow: None,
            open_for: Duration::from_secs(5),
            open_max: Duration::from_secs(60),
            probes: 5,
        }
    }
}

impl Settings {
    /// Whether a request that took `latency` counts as slow.
    #[cfg(test)]
    pub fn is_slow(&self, latency: Duration) -> bool {
        self.slow.is_some_and(|slow| latency > slow.threshold)
    }

    /// The nearest that is within the ranges.
    fn clamped(self) -> Self {
        let open_for = self.open_for.clamp(MIN_OPEN, MAX_OPEN);
        let slow = self.slow.map(|slow| Slow { percent: slow.percent.clamp(1, 100), ..slow });
        Self {
            window: Window::new(self.window).length(),
            minimum: self.minimum.max(1),
            error_percent: self.error_percent.clamp(1, NEVER),
            slow,
            open_for,
            open_max: self.open_max.clamp(open_for, MAX_OPEN),
            probes: self.probes.clamp(1, MAX_PROBES),
        }
    }

    /// For how long it opens when it does so for the `times`-th time in a row.
    fn open_time(&self, times: u32) -> Duration {
        let factor = 1u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
        self.open_for.saturating_mul(factor).min(self.open_max)
    }
}

impl Circuit {
    /// A closed breaker with a gate of its own. Settings out of range are moved to its end.
    #[cfg(test)]
    pub fn new(settings: Settings, now: Duration) -> Self {
        Self::at(Arc::default(), settings, now)
    }

    /// A closed breaker that speaks through `gate`. Settings out of range are moved to its end.
    pub fn at(gate: Arc<Gate>, settings: Settings, now: Duration) -> Self {
        let settings = settings.clamped();
        Self {
            settings,
            window: Window::new(settings.window),
            phase: Phase::Closed { since: now },
            times: 0,
            now,
            gate,
        }
    }

    /// What the workers look at.
    #[cfg(test)]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Lets everything pass for good: nobody wants a breaker any more.
    pub fn retire(self) {
        self.gate.close();
    }

    /// The settings in force.
    #[cfg(test)]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where it is.
    pub fn state(&self) -> State {
        let times = self.times;
        match self.phase {
            Phase::Closed { since } => State::Closed { since },
            Phase::Open { since, until, cause } => State::Open { since, until, cause, times },
            Phase::HalfOpen { since, cause, .. } => {
                State::HalfOpen { since, probes: self.gate.probes(), cause, times }
            }
        }
    }

    /// Takes results in. Unless closed they decide nothing and are dropped. `tell` hears of an open state before the
    /// first request is rejected: whoever is rejected is told why.
    pub fn push(
        &mut self,
        now: Duration,
        batch: &Batch,
        tell: impl FnOnce(State),
    ) -> Option<Transition> {
        self.pass_to(now);
        let Phase::Closed { .. } = self.phase else {
            return None;
        };
        self.window.push(self.now, batch);
        let cause = self.verdict()?;
        Some(self.open(cause, tell))
    }

    /// Does what is due at `now`: to be called a few times per second. `tell` is as in [`push`](Self::push).
    pub fn tick(&mut self, now: Duration, tell: impl FnOnce(State)) -> Option<Transition> {
        self.pass_to(now);
        match self.phase {
            Phase::Closed { since } => {
                if self.now.saturating_sub(since) >= self.settings.open_max {
                    self.times = 0;
                }
                None
            }
            Phase::Open { since, until, cause } if self.now >= until => {
                Some(self.half_open(cause, self.now.saturating_sub(since)))
            }
            Phase::Open { .. } => None,
            Phase::HalfOpen { .. } => self.judge_probes(tell),
        }
    }

    /// Takes new settings over. An open breaker stays open, for as long as it would be open under the new ones; probes
    /// under way stay as many; results are only kept if the window stays the same.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.settings = settings.clamped();
        if self.window.length() != self.settings.window {
            self.window = Window::new(self.settings.window);
        }
        if let Phase::Open { since, ref mut until, .. } = self.phase {
            *until = since.saturating_add(self.settings.open_time(self.times));
            self.gate.open(*until);
        }
    }

    fn pass_to(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Whether what the window holds opens a breaker.
    fn verdict(&self) -> Option<Cause> {
        let Settings { minimum, error_percent: allowed, window, .. } = self.settings;
        let totals = self.window.totals(self.now);
        let (failures, total) = (totals.failures, totals.total());
        if total >= minimum && reaches(failures, total, allowed) {
            return Some(Cause::Errors { failures, total, window, allowed });
        }
        let Slow { threshold, percent: allowed } = self.settings.slow?;
        let (slow, total) = (totals.slow, totals.count);
        let reached = total >= minimum && reaches(slow, total, allowed);
        reached.then_some(Cause::Slow { slow, total, window, threshold, allowed })
    }

    fn judge_probes(&mut self, tell: impl FnOnce(State)) -> Option<Transition> {
        let Phase::HalfOpen { ref mut seen, ref mut seen_at, .. } = self.phase else {
            return None;
        };
        let probes = self.gate.probes();
        if probes != *seen {
            (*seen, *seen_at) = (probes, self.now);
        }
        let waited = self.now.saturating_sub(*seen_at);
        let of = u64::from(probes.of);
        let failed = reaches(u64::from(probes.failed), of, self.settings.error_percent);
        let slow = self.settings.slow;
        if failed || slow.is_some_and(|slow| reaches(u64::from(probes.slow), of, slow.percent)) {
            Some(self.open(Cause::Probed(probes), tell))
        } else if probes.succeeded + probes.failed >= probes.of {
            Some(self.close(Cause::Recovered(probes)))
        } else if probes.under_way() > 0 && waited >= self.settings.open_max {
            Some(self.open(Cause::Lost { lost: probes.under_way(), of: probes.of, waited }, tell))
        } else {
            None
        }
    }

    fn open(&mut self, cause: Cause, tell: impl FnOnce(State)) -> Transition {
        self.times = self.times.saturating_add(1);
        let until = self.now.saturating_add(self.settings.open_time(self.times));
        self.window.clear();
        let transition = self.enter(Phase::Open { since: self.now, until, cause }, cause);
        tell(transition.to.clone());
        self.gate.open(until);
        transition
    }

    fn half_open(&mut self, cause: Cause, rested: Duration) -> Transition {
        self.gate.half_open(self.settings.probes);
        let seen = self.gate.probes();
        let phase = Phase::HalfOpen { since: self.now, cause, seen, seen_at: self.now };
        self.enter(phase, Cause::Rested(rested))
    }

    fn close(&mut self, cause: Cause) -> Transition {
        self.gate.close();
        self.enter(Phase::Closed { since: self.now }, cause)
    }

    fn enter(&mut self, phase: Phase, cause: Cause) -> Transition {
        self.phase = phase;
        Transition { at: self.now, to: self.state(), cause }
    }
}

/// Whether `part` is at least `percent` of `whole`.
fn reaches(part: u64, whole: u64, percent: u8) -> bool {
    u128::from(part) * 100 >= u128::from(whole) * u128::from(percent)
}

/// Rounded; 0 of nothing.
fn percent_of(part: u64, whole: u64) -> u128 {
    let whole = u128::from(whole);
    (u128::from(part) * 100 + whole / 2).checked_div(whole).unwrap_or(0)
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Errors { failures, total, window, allowed } => {
                let (rate, window) = (percent_of(failures, total), Span(window));
                write!(f, "error rate {rate} % of {total} in {window}, allowed below {allowed} %")
            }
            Self::Slow { slow, total, window, threshold, allowed } => {
                let (rate, window, threshold) =
                    (percent_of(slow, total), Span(window), Span(threshold));
                write!(f, "{rate} % of {total} in {window} took over {threshold}, ")?;
                write!(f, "allowed below {allowed} %")
            }
            Self::Probed(Probes { of, failed, slow, .. }) => {
                write!(f, "of {of} probes {failed} failed and {slow} were slow")
            }
            Self::Lost { lost, of, waited } => {
                write!(f, "{lost} of {of} probes did not end within {}", Span(waited))
            }
            Self::Recovered(Probes { of, succeeded, .. }) => {
                write!(f, "{succeeded} of {of} probes succeeded")
            }
            Self::Rested(rested) => write!(f, "was open for {}", Span(rested)),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half-open",
        })
    }
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, to, cause } = self;
        match to {
            State::Open { until, .. } => {
                write!(f, "{to} for {}: {cause}", Span(until.saturating_sub(*at)))
            }
            State::Closed { .. } | State::HalfOpen { .. } => write!(f, "{to}: {cause}"),
        }
    }
}

#[cfg(test)]
mod tests;

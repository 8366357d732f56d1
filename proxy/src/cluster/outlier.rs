//! Which endpoints of a cluster are worse than the others and get nothing for a while. Pure: `now` is the time since
//! any fixed start, and where it goes backwards no time has passed.
//!
//! The rules are those of Envoy's outlier detection (failures in a row, success rate) and one for latency; around them
//! stand a cap on how many are ejected, a ramp for those that come back (slow start), and the panic threshold below
//! which all of it is ignored. Whether an endpoint passes its active health checks is taken in, so that one
//! [`Factor`] per endpoint says all that a balancer must know.

mod judge;
pub mod settings;
pub mod streak;

use std::{collections::BTreeMap, fmt, time::Duration};

use super::window::{Batch, Span, Window};
pub use settings::Settings;
use streak::Run;

/// Which share of what its weight says an endpoint gets: 0 is nothing, 255 all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor(pub u8);

/// What happened to an endpoint, or to all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// It gets nothing.
    Ejected {
        /// Which one.
        endpoint: u64,
        /// Until when.
        until: Duration,
        /// How often in a row.
        times: u32,
        /// Why.
        cause: Cause,
    },
    /// It is back, on the ramp.
    Returned {
        /// Which one.
        endpoint: u64,
        /// Whether it came back early, as others left and too many would be ejected.
        early: bool,
    },
    /// Too few are available, and all are used whatever is known of them.
    Panic,
    /// Enough are available again.
    Calm,
}

/// Why an endpoint was ejected. Its text is for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cause {
    /// Failures in a row.
    Consecutive {
        /// Of which kind.
        kind: Streaks,
        /// How many.
        count: u32,
    },
    /// Fewer successes than the others.
    SuccessRate {
        /// Its own, 0 to 1.
        rate: f64,
        /// The mean of all, 0 to 1.
        mean: f64,
        /// What it would have needed, 0 to 1.
        needed: f64,
        /// Results it is of.
        volume: u64,
    },
    /// Slower than the others.
    Latency {
        /// Its mean.
        mean: Duration,
        /// The median of the others' means.
        median: Duration,
        /// Results it is of.
        volume: u64,
    },
}

/// Which failures in a row are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaks {
    /// All.
    Errors,
    /// 502, 503 and 504.
    Gateway,
    /// Those without an answer.
    Local,
}

/// The endpoints of one cluster.
#[derive(Debug)]
pub struct Detector {
    settings: Settings,
    endpoints: BTreeMap<u64, Entry>,
    panicking: bool,
    now: Duration,
}

#[derive(Debug)]
struct Entry {
    window: Window,
    /// Failures in a row over all workers, as far as batches tell.
    run: Run,
    /// The longest run any worker reported since the last evaluation.
    longest: Run,
    place: Place,
    /// Ejections in a row.
    times: u32,
    checks_pass: bool,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// In service. `since` is when it came, `None` where it was there from the start; `calm` is since when it was not
    /// ejected, or since when an ejection was last forgiven.
    Serving { since: Option<Duration>, calm: Duration },
    /// Ejected.
    Ejected { since: Duration, until: Duration, cause: Cause },
}

impl Factor {
    /// Gets nothing.
    pub const NONE: Self = Self(0);
    /// Gets its whole share.
    pub const FULL: Self = Self(u8::MAX);

    /// 0 to 1.
    pub fn share(self) -> f64 {
        f64::from(self.0) / f64::from(u8::MAX)
    }

    /// Whether to take a candidate that was drawn: on its ramp it is taken as often as this says.
    pub fn accepts(self, random: &mut dyn FnMut() -> u64) -> bool {
        match self {
            Self::FULL => true,
            Self::NONE => false,
            Self(share) => (random() >> 56) as u8 <= share,
        }
    }
}

impl Detector {
    /// Without endpoints. Settings out of range are moved to its end.
    pub fn new(settings: Settings) -> Self {
        let settings = settings.clamped();
        Self { settings, endpoints: BTreeMap::new(), panicking: false, now: Duration::ZERO }
    }

    /// Takes the present set of endpoints over. The first set is in full service at once; who joins others is ramped
    /// up; who is gone is forgotten.
    pub fn reconcile(&mut self, now: Duration, endpoints: impl IntoIterator<Item = u64>) {
        self.pass_to(now);
        let since = (!self.endpoints.is_empty()).then_some(self.now);
        let mut before = std::mem::take(&mut self.endpoints);
        for endpoint in endpoints {
            let kept = before.remove(&endpoint);
            let entry = || kept.unwrap_or_else(|| Entry::new(&self.settings, since, self.now));
            self.endpoints.entry(endpoint).or_insert_with(entry);
        }
    }

    /// Takes new settings over; who is ejected stays so for as long as it would be under the new ones.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.settings = settings.clamped();
        for entry in self.endpoints.values_mut() {
            if entry.window.length() != self.settings.window {
                entry.window = Window::new(self.settings.window);
            }
            if let Place::Ejected { since, ref mut until, .. } = entry.place {
                *until = since.saturating_add(self.settings.ejection(entry.times));
            }
        }
    }

    /// Takes results of an endpoint in, with the longest runs that workers saw among them; a single result has
    /// [`Run::default`]. Results of who is ejected or unknown are late ones and count nothing; latencies of who is on
    /// its ramp do not, either.
    pub fn push(&mut self, endpoint: u64, now: Duration, batch: &Batch, longest: Run) {
        self.pass_to(now);
        let Some(entry) = self.endpoints.get_mut(&endpoint) else {
            return;
        };
        let Place::Serving { since, .. } = entry.place else { return };
        let mut counted = *batch;
        if since.is_some_and(|since| self.now.saturating_sub(since) < self.settings.ramp) {
            // It may still be cold, and who is ejected for that never gets warm.
            (counted.latency_sum, counted.count) = (Duration::ZERO, 0);
        }
        entry.window.push(self.now, &counted);
        entry.run = lengthened(entry.run, batch);
        entry.longest = entry.longest.max(longest).max(entry.run);
    }

    /// Takes in whether an endpoint passes its active health checks; without any it does.
    pub fn checked(&mut self, endpoint: u64, now: Duration, passes: bool) {
        self.pass_to(now);
        let Some(entry) = self.endpoints.get_mut(&endpoint) else {
            return;
        };
        if passes && !entry.checks_pass && matches!(entry.place, Place::Serving { .. }) {
            entry.place = Place::Serving { since: Some(self.now), calm: self.now };
        }
        entry.checks_pass = passes;
    }

    /// Ejects and takes back what is due at `now`: to be called a few times per second.
    pub fn evaluate(&mut self, now: Duration) -> Vec<Change> {
        self.pass_to(now);
        let mut changes = self.take_back();
        self.forgive();
        self.eject(&mut changes);
        let panics = self.is_too_few();
        if panics != self.panicking {
            self.panicking = panics;
            changes.push(if panics { Change::Panic } else { Change::Calm });
        }
        changes
    }

    /// What each endpoint gets, as of the last call with a time.
    #[cfg(test)]
    pub fn factors(&self) -> impl Iterator<Item = (u64, Factor)> {
        self.endpoints.iter().map(|(endpoint, entry)| (*endpoint, self.factor_of(entry)))
    }

    /// What an endpoint gets; all of its share where it is unknown.
    pub fn factor(&self, endpoint: u64) -> Factor {
        self.endpoints.get(&endpoint).map_or(Factor::FULL, |entry| self.factor_of(entry))
    }

    /// Until when and why an endpoint is ejected, panic or not.
    pub fn ejection(&self, endpoint: u64) -> Option<(Duration, Cause)> {
        match self.endpoints.get(&endpoint)?.place {
            Place::Ejected { until, cause, .. } => Some((until, cause)),
            Place::Serving { .. } => None,
        }
    }

    /// How many are ejected.
    pub fn ejected(&self) -> usize {
        self.endpoints.values().filter(|entry| entry.is_ejected()).count()
    }

    /// Whether too few are available, so that all are used.
    #[cfg(test)]
    pub fn panicking(&self) -> bool {
        self.panicking
    }

    fn pass_to(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    fn factor_of(&self, entry: &Entry) -> Factor {
        match entry.place {
            _ if self.panicking => Factor::FULL,
            _ if !entry.checks_pass => Factor::NONE,
            Place::Ejected { .. } => Factor::NONE,
            Place::Serving { since: None, .. } => Factor::FULL,
            Place::Serving { since: Some(since), .. } => {
                self.settings.ramped(self.now.saturating_sub(since))
            }
        }
    }

    /// Those whose time is over, and while more are ejected than may be (endpoints left) those next to come back.
    fn take_back(&mut self) -> Vec<Change> {
        let mut ejected: Vec<(Duration, u64)> = Vec::new();
        for (endpoint, entry) in &self.endpoints {
            if let Place::Ejected { until, .. } = entry.place {
                ejected.push((until, *endpoint));
            }
        }
        ejected.sort_unstable();
        let may = self.settings.may_eject(self.endpoints.len());
        let crowded = ejected.len().saturating_sub(may);
        let mut changes = Vec::new();
        for (place, (until, endpoint)) in ejected.into_iter().enumerate() {
            let due = until <= self.now;
            if let Some(entry) = self.endpoints.get_mut(&endpoint)
                && (due || place < crowded)
            {
                entry.place = Place::Serving { since: Some(self.now), calm: self.now };
                changes.push(Change::Returned { endpoint, early: !due });
            }
        }
        changes
    }

    /// Whoever served for long enough has one ejection forgiven.
    fn forgive(&mut self) {
        let base = self.settings.base_ejection;
        for entry in self.endpoints.values_mut().filter(|entry| entry.times > 0) {
            if let Place::Serving { ref mut calm, .. } = entry.place {
                let periods = self.now.saturating_sub(*calm).as_nanos() / base.as_nanos();
                let periods = u32::try_from(periods).unwrap_or(u32::MAX);
                entry.times = entry.times.saturating_sub(periods);
                *calm = calm.saturating_add(base.saturating_mul(periods));
            }
        }
    }

    /// The worst first, while there is room.
    fn eject(&mut self, changes: &mut Vec<Change>) {
        let outliers = judge::outliers(&self.settings, &self.endpoints, self.now);
        let may = self.settings.may_eject(self.endpoints.len());
        let room = may.saturating_sub(self.ejected());
        for (endpoint, cause) in outliers.into_iter().take(room) {
            let Some(entry) = self.endpoints.get_mut(&endpoint) else { continue };
            entry.times = entry.times.saturating_add(1);
            let until = self.now.saturating_add(self.settings.ejection(entry.times));
            entry.place = Place::Ejected { since: self.now, until, cause };
            entry.window.clear();
            entry.run = Run::default();
            changes.push(Change::Ejected { endpoint, until, times: entry.times, cause });
        }
        for entry in self.endpoints.values_mut() {
            // A run that goes on while there is no room stays known.
            entry.longest = entry.run;
        }
    }

    /// Whether the available share is below the panic threshold.
    fn is_too_few(&self) -> bool {
        let available = |entry: &&Entry| !entry.is_ejected() && entry.checks_pass;
        let available = self.endpoints.values().filter(available).count();
        available * 100 < self.endpoints.len() * usize::from(self.settings.panic_percent)
    }
}

impl Entry {
    fn new(settings: &Settings, since: Option<Duration>, now: Duration) -> Self {
        Self {
            window: Window::new(settings.window),
            run: Run::default(),
            longest: Run::default(),
            place: Place::Serving { since, calm: now },
            times: 0,
            checks_pass: true,
        }
    }

    fn is_ejected(&self) -> bool {
        matches!(self.place, Place::Ejected { .. })
    }
}

/// `run` after `batch`. Of a batch whose results are not all of the kind, the order is unknown and nothing is kept.
fn lengthened(run: Run, batch: &Batch) -> Run {
    let total = batch.total();
    let next = |count: u64, run: u32| match count {
        _ if total == 0 => run,
        count if count == total => run.saturating_add(u32::try_from(count).unwrap_or(u32::MAX)),
        _ => 0,
    };
    Run {
        errors: next(batch.failures, run.errors),
        gateway: next(batch.gateway, run.gateway),
        local: next(batch.local, run.local),
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Consecutive { kind, count } => {
                let what = match kind {
                    Streaks::Errors => "failures",
                    Streaks::Gateway => "answers of 502, 503 or 504",
                    Streaks::Local => "attempts without an answer",
                };
                write!(f, "{count} {what} in a row")
            }
            Self::SuccessRate { rate, mean, needed, volume } => {
                let [rate, mean, needed] = [rate, mean, needed].map(|share| share * 100.0);
                write!(f, "success rate {rate:.1} % of {volume}, ")?;
                write!(f, "at least {needed:.1} % expected where all have {mean:.1} %")
            }
            Self::Latency { mean, median, volume } => {
                let (mean, median) = (Span(mean), Span(median));
                write!(f, "mean latency {mean} over {volume}, the others' median is {median}")
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! The limit: how many requests at once the application can do something with.
//!
//! As long as there is a core, a thread, a connection for each, more at once is more in a second. From there on more at
//! once is only longer for each. So the limit follows the gradient of the two: how long requests take when there is room
//! (`unloaded`) over how long they take now. After Netflix's concurrency-limits (Gradient2), with two differences.
//! Gradient2 takes a long average for the unloaded time: under an overload that lasts it drifts to the loaded one, and
//! the limit grows without end. Here the unloaded time is measured when there is room, and where there never is any,
//! by making some: a probe halves the limit for a moment, once in a while. A load that fits is not probed. And where
//! the application itself becomes slower, the limit falls at first, and when it has halved, a probe finds out that this
//! is how it is now.

use std::time::Duration;

/// No limit is lower: one for each priority that is not to wait for a lower one.
pub const LOWEST: u32 = 3;
/// No limit is higher.
pub const HIGHEST: u32 = 100_000;
/// The shortest window.
pub const WINDOW: Duration = Duration::from_millis(100);
/// A window is as long as it takes to see so many answers: a mean of fewer says little.
const ENOUGH: u64 = 20;
/// But no longer: of a slow application one judges by what there is.
const LONGEST_WINDOW: Duration = Duration::from_secs(5);
/// Share of a new limit in the next: less is too slow for a burst, more follows noise.
const SMOOTHING: f64 = 0.3;
/// One window halves the limit at most.
const STEEPEST: f64 = 0.5;

/// A probe lowers the limit to this share: with the tolerance that is usual, to less than the application can do at
/// once.
const PROBE: f64 = 0.5;
/// What a probe measures stands until the next: it takes more answers than elsewhere, but not longer than this.
const PROBE_ENOUGH: u64 = 50;
const LONGEST_PROBE: Duration = Duration::from_secs(1);
/// Where a probe finds the unloaded time shorter than this share of what it was thought to be, the next may find it
/// shorter still, and comes this much later.
const SHORTER: f64 = 0.9;
const NEXT_IF_SHORTER: Duration = Duration::from_secs(1);
/// How much a measurement of the unloaded time is believed: this much of a probe, and of other windows as much as so
/// many answers are worth. Means are noisy, and whoever believes the shortest of them finds every answer slow.
const BELIEVED: f64 = 0.5;
const DOUBTED: f64 = 100.0;

/// Bounds of the limit, and what is asked of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// At least this many: [`LOWEST`] to `max`.
    pub min: u32,
    /// At most this many: up to [`HIGHEST`].
    pub max: u32,
    /// The first limit. It begins with a probe, at half of it.
    pub initial: u32,
    /// How much longer than unloaded an answer may take before the limit falls, in percent of it; at least 100. What is
    /// above 100 is the queue that the application is allowed: without any it would now and then have nothing to do.
    pub tolerance_percent: u32,
    /// How long between two probes, on average; longer than 500 years is never.
    pub probe_every: Duration,
}

/// What was seen since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Answers, and requests that timed out. No fast failures: a 503 at once says nothing of how long work takes.
    pub count: u64,
    /// How long they took, added up.
    pub latency_sum: Duration,
    /// The most that were under way at once.
    pub most_under_way: u32,
}

/// The limit of one application.
#[derive(Clone, Debug)]
pub struct Gradient {
    settings: Settings,
    limit: f64,
    /// Seconds; `None` before the first measurement.
    unloaded: Option<f64>,
    latest: Duration,
    window: Sample,
    window_since: Duration,
    /// The highest limit since `unloaded` was last measured.
    highest: f64,
    /// Seconds: the mean of the last window.
    mean: f64,
    next_probe: Option<Duration>,
    phase: Phase,
}

/// What the current window is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Finding the limit.
    Search,
    /// The limit is lowered: what began before has to end.
    Drain,
    /// How long does it take now?
    Measure,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min: LOWEST,
            max: 1000,
            initial: 20,
            tolerance_percent: 150,
            probe_every: Duration::from_secs(30),
        }
    }
}

impl Gradient {
    /// A limit that is still to be found.
    pub fn new(settings: Settings) -> Self {
        let mut gradient = Self {
            settings,
            limit: f64::from(settings.initial),
            unloaded: None,
            latest: Duration::ZERO,
            window: Sample::default(),
            window_since: Duration::ZERO,
            highest: 0.0,
            mean: 0.0,
            next_probe: None,
            // The first answers are those that came soonest, and would make all others slow.
            phase: Phase::Drain,
        };
        gradient.reconfigure(settings);
        gradient
    }

    /// Other settings from now on; what was found out stays, within the new bounds.
    pub fn reconfigure(&mut self, settings: Settings) {
        let max = settings.max.clamp(LOWEST, HIGHEST);
        self.settings = Settings {
            min: settings.min.clamp(LOWEST, max),
            max,
            tolerance_percent: settings.tolerance_percent.max(100),
            ..settings
        };
        self.limit = self.bounded(self.limit);
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        let limit = match self.phase {
            Phase::Search => self.limit,
            Phase::Drain | Phase::Measure => self.bounded(self.limit * PROBE),
        };
        // As bounded as it is, it fits.
        limit.round() as u32
    }

    /// How long an answer takes where there is room, as far as known.
    pub fn unloaded(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.unloaded?).ok()
    }

    /// Whether the limit is lowered to measure.
    pub fn is_probing(&self) -> bool {
        self.phase != Phase::Search
    }

    /// Takes up what was seen, and says the limit from now on. `random` is uniform: it keeps proxies from probing
    /// together.
    pub fn push(&mut self, now: Duration, sample: Sample, random: u64) -> u32 {
        self.latest = self.latest.max(now);
        let window = &mut self.window;
        window.count = window.count.saturating_add(sample.count);
        window.latency_sum = window.latency_sum.saturating_add(sample.latency_sum);
        window.most_under_way = window.most_under_way.max(sample.most_under_way);
        if self.is_over() {
            let window = std::mem::take(&mut self.window);
            self.window_since = self.latest;
            self.judge(&window, random);
        }
        self.limit()
    }

    /// Whether the window has seen what it is for.
    fn is_over(&self) -> bool {
        let length = self.latest.saturating_sub(self.window_since);
        let (enough, longest) = match self.phase {
            Phase::Search => (ENOUGH, LONGEST_WINDOW),
            Phase::Measure => (PROBE_ENOUGH, LONGEST_PROBE),
            // `as` saturates.
            Phase::Drain => {
                (0, LONGEST_WINDOW.min(Duration::from_millis((self.mean * 1e3) as u64)))
            }
        };
        match self.phase {
            Phase::Drain => length >= longest.max(WINDOW),
            Phase::Search | Phase::Measure => {
                length >= WINDOW && (self.window.count >= enough || length >= longest)
            }
        }
    }

    fn judge(&mut self, window: &Sample, random: u64) {
        let phase = std::mem::replace(&mut self.phase, Phase::Search);
        if window.count == 0 {
            // No answers: nothing is known, and a probe would not learn anything either.
            return;
        }
        // A mean of zero is a clock too coarse to see it.
        let mean = (window.latency_sum.as_secs_f64() / window.count as f64).max(1e-9);
        match phase {
            Phase::Search => {
                self.mean = mean;
                if f64::from(window.most_under_way) < self.limit / 2.0 {
                    // There is room: the limit limits nothing, and what is seen says nothing about it.
                    self.believe(mean, BELIEVED.min(window.count as f64 / DOUBTED));
                    // As good as a probe, and for nothing.
                    self.next_probe = None;
                } else {
                    self.adjust(mean);
                }
                self.plan_probe(random);
            }
            Phase::Drain => self.phase = Phase::Measure,
            Phase::Measure => {
                let before = self.unloaded.unwrap_or(mean);
                self.believe(mean, BELIEVED);
                if mean < before * SHORTER {
                    self.next_probe = Some(self.latest.saturating_add(NEXT_IF_SHORTER));
                }
            }
        }
    }

    fn believe(&mut self, mean: f64, share: f64) {
        let unloaded = self.unloaded.unwrap_or(mean);
        self.unloaded = Some(unloaded + (mean - unloaded) * share);
        self.highest = self.limit;
    }

    fn adjust(&mut self, mean: f64) {
        let tolerance = f64::from(self.settings.tolerance_percent) / 100.0;
        // The first time there is nothing to compare with; probes will find out.
        let unloaded = *self.unloaded.get_or_insert(mean);
        let gradient = (tolerance * unloaded / mean).clamp(STEEPEST, 1.0);
        let found = self.limit * gradient + headroom(self.limit);
        self.limit = self.bounded(self.limit + (found - self.limit) * SMOOTHING);
        self.highest = self.highest.max(self.limit);
    }

    /// Begins a probe when it is time for one: half to one and a half of the interval apart; and where the limit has
    /// halved, since then either there is less room than before, or all takes longer than before.
    fn plan_probe(&mut self, random: u64) {
        let every = self.settings.probe_every.as_nanos();
        let wait = every / 2 + ((every >> 32) * u128::from(random >> 32));
        let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
        let next = *self.next_probe.get_or_insert(self.latest.saturating_add(wait));
        if self.latest >= next || self.limit < self.highest / 2.0 {
            self.phase = Phase::Drain;
            self.next_probe = Some(self.latest.saturating_add(wait));
        }
    }

    fn bounded(&self, limit: f64) -> f64 {
        limit.clamp(f64::from(self.settings.min), f64::from(self.settings.max))
    }
}

/// Room to grow into, small beside a large limit: it is what finds out that there is more. Netflix takes all of the
/// square root. Then a small limit, of an application that can do four things at once, stays where not even a probe
/// goes below the knee.
fn headroom(limit: f64) -> f64 {
    (limit.sqrt() / 2.0).max(1.0)
}

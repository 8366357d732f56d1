//! The retry budget: how many retries a service may be sent beside its requests, so that retries cannot turn a failure
//! into an overload. Pure: `now` is the time since any fixed start, and where it goes backwards no time has passed.
//!
//! A retry has to fit into both of:
//! - the rate: over the last [`WINDOW`], retries are at most `percent` of the requests, or `per_second` where that is
//!   more. This is what bounds amplification: a limit on retries under way alone does not, since retries that fail at
//!   once are never many at a time. And it holds for each second, too: a window's worth of retries at the moment at
//!   which everything fails is two seconds of double load, on what fails already;
//! - those under way: at most `percent` of the exchanges under way, or `per_second` where that is more. Retries that
//!   hang are few per second, and pile up all the same.
//!
//! (The rate is Finagle's and Linkerd's rule, the share of those under way is Envoy's.)
//!
//! Nothing is shared: each worker has a budget of its own for a service. A percentage of each worker's own requests is
//! the same percentage of all, and the floor is divided by the number of workers.

use std::time::Duration;

/// Over how long requests and retries are compared. Long enough that a quiet service can retry at all, short enough
/// that an hour of traffic does not pay for a storm.
pub const WINDOW: Duration = Duration::from_secs(10);

const SLICES: usize = 10;
/// Milliseconds.
const SLICE: u128 = WINDOW.as_millis() / SLICES as u128;
/// What the floor saves up for later, in seconds of it.
const BURST_SECONDS: u64 = 1;

/// How much may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Retries per hundred requests; more than 100 is 100.
    pub percent: u8,
    /// Retries per second that are allowed however few requests there are.
    pub per_second: u32,
}

/// What one worker may retry of one service.
#[derive(Clone, Debug)]
pub struct Budget {
    settings: Settings,
    workers: u64,
    /// The number of the newest slice.
    latest: u64,
    slices: [Slice; SLICES],
    /// Of all slices.
    total: Slice,
    /// The floor's savings; one retry is [`Self::price`].
    saved: u64,
    /// Milliseconds: until when `saved` has been counted up.
    saved_at: u64,
    under_way: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    requests: u64,
    retries: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { percent: 20, per_second: 10 }
    }
}

impl Budget {
    /// The share of one of `workers` in a budget.
    pub fn new(settings: Settings, workers: u32) -> Self {
        let mut budget = Self {
            settings,
            workers: 1,
            latest: 0,
            slices: [Slice::default(); SLICES],
            total: Slice::default(),
            saved: 0,
            saved_at: 0,
            under_way: 0,
        };
        budget.reconfigure(settings, workers);
        budget.saved = budget.most_saved();
        budget
    }

    /// Other settings from now on; what was counted stays.
    pub fn reconfigure(&mut self, settings: Settings, workers: u32) {
        let price = self.price();
        self.settings = Settings { percent: settings.percent.min(100), ..settings };
        self.workers = u64::from(workers.max(1));
        let same = u128::from(self.saved) * u128::from(self.price()) / u128::from(price);
        self.saved = u64::try_from(same).unwrap_or(u64::MAX).min(self.most_saved());
    }

    /// Counts a request: once per exchange, at its first attempt.
    pub fn deposit(&mut self, now: Duration) {
        let at = self.advance(now);
        self.slices[at].requests += 1;
        self.total.requests += 1;
    }

    /// Asks for one retry while `active` exchanges are under way on this worker, the asking one included. When granted,
    /// the retry has to [`end`](Self::end).
    #[must_use = "a retry that was not granted must not be made"]
    pub fn withdraw(&mut self, now: Duration, active: u32) -> bool {
        let at = self.advance(now);
        self.save(now);
        if self.under_way >= self.most_under_way(active) {
            return false;
        }
        let price = self.price();
        let by_share = self.total.retries < self.share_of(self.total.requests)
            && self.slices[at].retries < self.share_of(self.requests_of_slice(at));
        let by_floor = self.saved >= price && self.total.retries < self.floor_of_window();
        if !by_share && !by_floor {
            return false;
        }
        // Whichever rule allowed it, it counts for both: the floor comes instead of the share, not on top of it.
        self.saved = self.saved.saturating_sub(price);
        self.slices[at].retries += 1;
        self.total.retries += 1;
        self.under_way += 1;
        true
    }

    /// A retry that was granted is over, however it ended.
    pub fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Retries under way.
    #[cfg(test)]
    pub fn under_way(&self) -> u32 {
        self.under_way
    }

    /// Requests and retries of the last [`WINDOW`].
    #[cfg(test)]
    pub fn counted(&self) -> (u64, u64) {
        (self.total.requests, self.total.retries)
    }

    fn share_of(&self, requests: u64) -> u64 {
        requests * u64::from(self.settings.percent) / 100
    }

    /// What the slice at `at` has seen, or the mean of the window where that is more: at its beginning it has seen
    /// nothing yet.
    fn requests_of_slice(&self, at: usize) -> u64 {
        self.slices[at].requests.max(self.total.requests / SLICES as u64)
    }

    fn most_under_way(&self, active: u32) -> u32 {
        let share = u64::from(active) * u64::from(self.settings.percent) / 100;
        let floor = u64::from(self.settings.per_second).div_ceil(self.workers);
        u32::try_from(share.max(floor)).unwrap_or(u32::MAX)
    }

    /// How many retries the floor allows in a window. At least one, so that a share of less than one exists at all: its
    /// savings make it rare.
    fn floor_of_window(&self) -> u64 {
        (u64::from(self.settings.per_second) * WINDOW.as_secs() / self.workers).max(1)
    }

    /// What one retry takes from the floor's savings: they grow by `per_second` in a millisecond.
    fn price(&self) -> u64 {
        1000 * self.workers
    }

    fn most_saved(&self) -> u64 {
        match u64::from(self.settings.per_second) * 1000 * BURST_SECONDS {
            0 => 0,
            most => most.max(self.price()),
        }
    }

    fn save(&mut self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let passed = now.saturating_sub(self.saved_at);
        self.saved_at = self.saved_at.max(now);
        let more = passed.saturating_mul(u64::from(self.settings.per_second));
        self.saved = self.saved.saturating_add(more).min(self.most_saved());
    }

    /// Forgets what has become too old; where to count what happens now.
    fn advance(&mut self, now: Duration) -> usize {
        let slice = u64::try_from(now.as_millis() / SLICE).unwrap_or(u64::MAX);
        let passed = slice.saturating_sub(self.latest);
        for step in 1..=passed.min(SLICES as u64) {
            let at = place(self.latest.saturating_add(step));
            let old = std::mem::take(&mut self.slices[at]);
            self.total.requests -= old.requests;
            self.total.retries -= old.retries;
        }
        self.latest = self.latest.max(slice);
        place(self.latest)
    }
}

fn place(slice: u64) -> usize {
    (slice % SLICES as u64) as usize
}

#[cfg(test)]
mod tests;

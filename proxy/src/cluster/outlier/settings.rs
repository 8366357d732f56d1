//! What makes an endpoint an outlier, and for how long it is left alone.

use std::time::Duration;

use super::Factor;
use crate::cluster::window::Window;

/// The shortest ejection.
pub const MIN_EJECTION: Duration = Duration::from_millis(100);
/// The longest ejection and the longest ramp.
pub const MAX_EJECTION: Duration = Duration::from_secs(24 * 3600);

/// What makes an endpoint an outlier. The defaults are Envoy's where it has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// So many failures in a row, of whatever kind; at least 1.
    pub consecutive_errors: Option<u32>,
    /// So many answers of 502, 503 or 504 in a row; at least 1.
    pub consecutive_gateway: Option<u32>,
    /// So many attempts without an answer in a row; at least 1.
    pub consecutive_local: Option<u32>,
    /// Fewer successes than the others.
    pub success_rate: Option<SuccessRate>,
    /// Longer latencies than the others.
    pub latency: Option<Latency>,
    /// Over how long success rates and latencies are taken:
    /// [`MIN_LENGTH`](crate::cluster::window::MIN_LENGTH) to [`MAX_LENGTH`](crate::cluster::window::MAX_LENGTH).
    pub window: Duration,
    /// How long the first ejection lasts, and how much longer each further one: [`MIN_EJECTION`] to
    /// [`MAX_EJECTION`]. So long in service without another, and one is forgiven.
    pub base_ejection: Duration,
    /// How long an ejection lasts at most: `base_ejection` to [`MAX_EJECTION`].
    pub max_ejection: Duration,
    /// How many of a hundred endpoints may be ejected: 0 (none ever) to 100. Of several, one always may unless this is
    /// 0, and never all.
    pub max_ejected_percent: u8,
    /// If fewer of a hundred are available, ejections and failed checks are ignored: sending a share of the requests to
    /// bad endpoints is better than drowning the few good ones. 0 (never) to 100.
    pub panic_percent: u8,
    /// For how long an endpoint that comes, or comes back, gets less than its share; up to [`MAX_EJECTION`].
    pub ramp: Duration,
    /// What it gets first, of a hundred; 1 to 100.
    pub ramp_percent: u8,
}

/// When an endpoint has too few successes. Envoy's rule: below the mean by more than so many standard deviations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// How many endpoints it takes to compare; at least 3, as a mean of fewer says nothing.
    pub minimum_hosts: usize,
    /// How many results an endpoint must have to be compared; at least 1.
    pub minimum_volume: u64,
    /// How many standard deviations; 0 to 100. One bad among n is `sqrt(n - 1)` of them off: 1.9 needs 5 endpoints.
    pub factor: f64,
    /// By how much the rate must differ besides, 0 to 1: among endpoints that hardly ever fail, a single failure is
    /// many standard deviations.
    pub gap: f64,
}

/// When an endpoint is too slow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// How many endpoints it takes to compare; at least 3.
    pub minimum_hosts: usize,
    /// How many results an endpoint must have to be compared; at least 1.
    pub minimum_volume: u64,
    /// Its mean latency is so many times the median of the others': 1 to 1,000.
    pub factor: f64,
    /// And more than this: among microseconds, a factor is noise.
    pub floor: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive_errors: Some(5),
            consecutive_gateway: Some(5),
            consecutive_local: Some(5),
            success_rate: Some(SuccessRate::default()),
            latency: Some(Latency::default()),
            window: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
            panic_percent: 50,
            ramp: Duration::from_secs(10),
            ramp_percent: 10,
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { minimum_hosts: 5, minimum_volume: 100, factor: 1.9, gap: 0.05 }
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            minimum_hosts: 3,
            minimum_volume: 20,
            // The balancer already sends less where it is slower; ejected is what is broken.
            factor: 5.0,
            floor: Duration::from_millis(10),
        }
    }
}

impl Settings {
    /// The nearest that is within the ranges.
    pub(super) fn clamped(self) -> Self {
        let at_least_one = |count: Option<u32>| count.map(|count| count.max(1));
        let base_ejection = self.base_ejection.clamp(MIN_EJECTION, MAX_EJECTION);
        Self {
            consecutive_errors: at_least_one(self.consecutive_errors),
            consecutive_gateway: at_least_one(self.consecutive_gateway),
            consecutive_local: at_least_one(self.consecutive_local),
            success_rate: self.success_rate.map(SuccessRate::clamped),
            latency: self.latency.map(Latency::clamped),
            window: Window::new(self.window).length(),
            base_ejection,
            max_ejection: self.max_ejection.clamp(base_ejection, MAX_EJECTION),
            max_ejected_percent: self.max_ejected_percent.min(100),
            panic_percent: self.panic_percent.min(100),
            ramp: self.ramp.min(MAX_EJECTION),
            ramp_percent: self.ramp_percent.clamp(1, 100),
        }
    }

    /// What an endpoint gets so long after it came: from `ramp_percent` to all over `ramp`, evenly.
    pub(super) fn ramped(&self, elapsed: Duration) -> Factor {
        if elapsed >= self.ramp {
            return Factor::FULL;
        }
        let start = f64::from(self.ramp_percent) / 100.0;
        let share = start + (1.0 - start) * (elapsed.as_secs_f64() / self.ramp.as_secs_f64());
        // A float becomes the nearest integer that fits.
        Factor((share * f64::from(u8::MAX)).ceil() as u8)
    }

    /// How long the `times`-th ejection in a row lasts.
    pub(super) fn ejection(&self, times: u32) -> Duration {
        self.base_ejection.saturating_mul(times).min(self.max_ejection)
    }

    /// How many of `count` endpoints may be ejected.
    pub fn may_eject(&self, count: usize) -> usize {
        match (self.max_ejected_percent, count) {
            (0, _) | (_, 0 | 1) => 0,
            (percent, count) => (count * usize::from(percent) / 100).clamp(1, count - 1),
        }
    }
}

impl SuccessRate {
    fn clamped(self) -> Self {
        let default = Self::default();
        Self {
            minimum_hosts: self.minimum_hosts.max(3),
            minimum_volume: self.minimum_volume.max(1),
            factor: clamp(self.factor, 0.0, 100.0, default.factor),
            gap: clamp(self.gap, 0.0, 1.0, default.gap),
        }
    }
}

impl Latency {
    fn clamped(self) -> Self {
        Self {
            minimum_hosts: self.minimum_hosts.max(3),
            minimum_volume: self.minimum_volume.max(1),
            factor: clamp(self.factor, 1.0, 1000.0, Self::default().factor),
            floor: self.floor,
        }
    }
}

/// What is no number becomes the default.
fn clamp(value: f64, least: f64, most: f64, default: f64) -> f64 {
    if value.is_nan() { default } else { value.clamp(least, most) }
}

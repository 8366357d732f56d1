//! Who does what when.

use std::time::Duration;

use super::instance::Behaviour;

/// A story of a service and of those who call it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// For people.
    pub name: &'static str,
    /// Requests per second, independent of each other.
    pub rate: f64,
    /// From when until when there are so many times as many.
    pub surge: Option<(Duration, Duration, f64)>,
    /// How long it goes on.
    pub length: Duration,
    /// How long callers wait.
    pub patience: Duration,
    /// How many there are at the start.
    pub instances: usize,
    /// What each does at once.
    pub slots: usize,
    /// How long each takes for one.
    pub mean: Duration,
    /// Whether each has a sidecar that limits what it gets at once.
    pub shielded: bool,
    /// How many requests the last instance needs to get warm, when it joins at some time.
    pub joins: Option<(Duration, u32)>,
    /// What changes, in order.
    pub changes: Vec<Change>,
}

/// From some time on, an instance behaves differently.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// When.
    pub at: Duration,
    /// Which one.
    pub place: usize,
    /// How.
    pub behaviour: Behaviour,
}

/// Seconds.
pub const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Scenario {
    /// Eleven instances, a third of what they can do, no trouble: trouble begins after 10 s and ends after 30 s, and
    /// whoever was left alone for that is back after 65 s.
    pub fn healthy() -> Self {
        Self {
            name: "healthy",
            rate: 300.0,
            surge: None,
            length: seconds(80),
            patience: seconds(1),
            instances: 11,
            slots: 2,
            mean: Duration::from_millis(25),
            shielded: false,
            joins: None,
            changes: Vec::new(),
        }
    }

    /// Another name.
    pub fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// `place` behaves like this from `from` until `until`.
    pub fn with(mut self, place: usize, behaviour: Behaviour, from: u64, until: u64) -> Self {
        let change = |at, behaviour| Change { at: seconds(at), place, behaviour };
        self.changes.push(change(from, behaviour));
        self.changes.push(change(until, Behaviour::WELL));
        self
    }

    /// How many requests per second there are at this time.
    pub fn rate_at(&self, now: Duration) -> f64 {
        match self.surge {
            Some((from, until, times)) if (from..until).contains(&now) => self.rate * times,
            _ => self.rate,
        }
    }

    /// What all of them together can do in a second.
    pub fn capacity(&self) -> f64 {
        (self.instances * self.slots) as f64 / self.mean.as_secs_f64()
    }
}

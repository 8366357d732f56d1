//! One instance of a service: it can do so much at once, and has a queue that nobody limits. What its caller no longer
//! wants is worked on all the same, as applications do.

use std::{collections::VecDeque, time::Duration};

use super::{random::Random, shield::Shield};

/// How much the times of one instance differ: the standard deviation of their logarithm. The longest of a hundred is
/// then three times the middle one.
const SPREAD: f64 = 0.5;

/// How an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Behaviour {
    /// What it does with requests.
    pub answers: Answers,
    /// How many times longer than usual it takes.
    pub slowness: f64,
    /// The share of requests that it answers with 503, at once.
    pub failing: f64,
}

/// What it does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Answers them.
    Yes,
    /// Accepts them, and that is all.
    Never,
    /// It is gone: connections are refused, and those that were open are reset.
    Gone,
}

impl Behaviour {
    /// As it should.
    pub const WELL: Self = Self { answers: Answers::Yes, slowness: 1.0, failing: 0.0 };
    /// Crashed.
    pub const CRASHED: Self = Self { answers: Answers::Gone, ..Self::WELL };
    /// A black hole.
    pub const SILENT: Self = Self { answers: Answers::Never, ..Self::WELL };

    /// It takes so many times longer.
    pub const fn slow(times: f64) -> Self {
        Self { slowness: times, ..Self::WELL }
    }

    /// It answers so many of its requests with an error.
    pub const fn failing(share: f64) -> Self {
        Self { failing: share, ..Self::WELL }
    }
}

/// What an instance has to do for an attempt.
pub type Job = usize;

/// An instance.
#[derive(Debug)]
pub struct Instance {
    /// How it does.
    pub behaviour: Behaviour,
    /// How much its own sidecar gives it at once, where that is limited.
    pub shield: Option<Shield>,
    /// Counted up when it crashes: what began before does not end.
    pub life: u32,
    slots: usize,
    mean: Duration,
    /// So many requests it takes to get warm: until then it is slower, up to ten times.
    cold: u32,
    busy: usize,
    waiting: VecDeque<Job>,
    served: u32,
}

impl Instance {
    /// An idle one that does `slots` things at once, each in `mean`.
    pub fn new(slots: usize, mean: Duration, cold: u32) -> Self {
        Self {
            behaviour: Behaviour::WELL,
            shield: None,
            life: 0,
            slots,
            mean,
            cold,
            busy: 0,
            waiting: VecDeque::new(),
            served: 0,
        }
    }

    /// Takes a job in; how long it takes if it begins at once.
    pub fn take(&mut self, job: Job, random: &mut Random) -> Option<Duration> {
        if self.busy < self.slots {
            self.busy += 1;
            return Some(self.time(random));
        }
        self.waiting.push_back(job);
        None
    }

    /// One is done; which one begins now, and how long it takes.
    pub fn done(&mut self, random: &mut Random) -> Option<(Job, Duration)> {
        self.served += 1;
        match self.waiting.pop_front() {
            Some(job) => Some((job, self.time(random))),
            None => {
                self.busy -= 1;
                None
            }
        }
    }

    /// All that it did or was to do is lost.
    pub fn crash(&mut self) {
        self.life += 1;
        self.busy = 0;
        self.waiting.clear();
    }

    fn time(&self, random: &mut Random) -> Duration {
        let warmth = f64::from(self.served.min(self.cold)) / f64::from(self.cold.max(1));
        let coldness = if self.cold == 0 { 1.0 } else { 10.0 - 9.0 * warmth };
        random.log_normal(self.mean, SPREAD).mul_f64(self.behaviour.slowness * coldness)
    }
}

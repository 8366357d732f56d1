//! The sidecar in front of an instance: the real limit, and the real gate.

use std::{collections::BTreeMap, time::Duration};

use super::{instance::Job, random::Random};
use crate::forward::concurrency::{
    gate::{Arrival, Gate, Next, Priority},
    gradient::{Gradient, Sample, Settings},
    queue::Ticket,
};

/// What becomes of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The application gets it.
    Begins(Job),
    /// It is refused.
    Refused(Job),
}

/// The limit and who waits for it.
#[derive(Debug)]
pub struct Shield {
    gradient: Gradient,
    gate: Gate,
    waiting: BTreeMap<Ticket, Job>,
    /// With the application, and since when.
    running: BTreeMap<Job, Duration>,
    sample: Sample,
}

impl Shield {
    /// One that still has to find its limit.
    pub fn new() -> Self {
        let gradient = Gradient::new(Settings::default());
        Self {
            gate: Gate::new(gradient.limit()),
            gradient,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            sample: Sample::default(),
        }
    }

    /// A request arrives.
    pub fn arrive(&mut self, now: Duration, job: Job) -> Vec<Verdict> {
        match self.gate.arrive(now, Priority::Normal) {
            Arrival::Run => {
                self.running.insert(job, now);
                vec![Verdict::Begins(job)]
            }
            Arrival::Refused => vec![Verdict::Refused(job)],
            Arrival::Wait { ticket, refused } => {
                self.waiting.insert(ticket, job);
                let refused = refused.and_then(|ticket| self.waiting.remove(&ticket));
                refused.into_iter().map(Verdict::Refused).collect()
            }
        }
    }

    /// The application has answered.
    pub fn answered(&mut self, now: Duration, job: Job) {
        if let Some(since) = self.running.remove(&job) {
            self.gate.leave();
            self.sample.count += 1;
            self.sample.latency_sum += now.saturating_sub(since);
        }
    }

    /// The caller has gone. The application does not learn of it.
    pub fn cancel(&mut self, now: Duration, job: Job) {
        let ticket = self.waiting.iter().find(|(_, other)| **other == job).map(|(at, _)| *at);
        if let Some(ticket) = ticket {
            self.waiting.remove(&ticket);
            self.gate.cancel(now, ticket);
        } else if self.running.remove(&job).is_some() {
            self.gate.leave();
        }
    }

    /// Who may begin now, and who waited too long.
    pub fn turn(&mut self, now: Duration) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        while let Some(next) = self.gate.next(now) {
            let (Next::Run(ticket) | Next::Refuse(ticket)) = next;
            let Some(job) = self.waiting.remove(&ticket) else { continue };
            verdicts.push(match next {
                Next::Run(_) => {
                    self.running.insert(job, now);
                    Verdict::Begins(job)
                }
                Next::Refuse(_) => Verdict::Refused(job),
            });
        }
        verdicts
    }

    /// When somebody will have waited too long.
    pub fn due(&self) -> Option<Duration> {
        self.gate.due()
    }

    /// Finds the limit anew: every 100 ms.
    pub fn adjust(&mut self, now: Duration, random: &mut Random) {
        let mut sample = std::mem::take(&mut self.sample);
        sample.most_under_way = self.gate.take_most_running();
        self.gate.set_limit(self.gradient.push(now, sample, random.bits()));
    }
}

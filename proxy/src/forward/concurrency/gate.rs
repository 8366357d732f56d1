//! Who is let in, by priority. One for each worker, with that worker's share of the limit: nothing is shared.
//!
//! A lower priority never keeps a higher one waiting:
//! - the last slots are not for everybody: a tenth of the limit (at least one) is only for critical requests and health
//!   checks, as much again not for what is sheddable, and health checks have [`HEALTH_SLOTS`] beyond the limit, so that an
//!   application at its limit is not taken for a dead one;
//! - a slot that becomes free goes to the highest priority that waits;
//! - where no more may wait, the newest of the lowest priority makes room.
//!
//! The gate does not wake anybody: it says who runs ([`Next::Run`]) and who is refused ([`Next::Refuse`]), by ticket.

use std::time::Duration;

use super::{
    gradient::LOWEST,
    queue::{Patience, Queue, Ticket},
};

/// Beyond the limit, for health checks only: they are small, and few.
pub const HEALTH_SLOTS: u32 = 4;
/// Waiting requests of one worker, unless told otherwise: more would not be served within the interval anyway.
pub const MOST_WAITING: usize = 1000;
/// Of how many slots one is kept for each step of priority.
const KEPT: u32 = 10;

/// How much a request matters; the highest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Whether the application is alive.
    Health,
    /// What must work when nothing else does.
    Critical,
    /// Everything that nobody said anything about.
    #[default]
    Normal,
    /// What can be done later, or not at all: batches, prefetches.
    Sheddable,
}

/// All of them, the highest first.
pub const PRIORITIES: [Priority; 4] =
    [Priority::Health, Priority::Critical, Priority::Normal, Priority::Sheddable];

/// What becomes of a request that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It runs, and has to [`leave`](Gate::leave).
    Run,
    /// It waits. Somebody who waited before it may be refused for it.
    Wait {
        /// Its own.
        ticket: Ticket,
        /// Whose place it took.
        refused: Option<Ticket>,
    },
    /// It is refused: as many as may wait do, and none of them matters less.
    Refused,
}

/// What becomes of one that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It runs, and has to [`leave`](Gate::leave).
    Run(Ticket),
    /// It waited too long.
    Refuse(Ticket),
}

/// One worker's gate to the application.
#[derive(Clone, Debug)]
pub struct Gate {
    limit: u32,
    running: u32,
    most_running: u32,
    most_waiting: usize,
    tickets: Ticket,
    latest: Duration,
    queues: [Queue; PRIORITIES.len()],
}

impl Gate {
    /// With a share of the limit; one of less than [`LOWEST`] counts as that, since with fewer slots one cannot be kept
    /// for each priority.
    pub fn new(limit: u32) -> Self {
        Self {
            limit: limit.max(LOWEST),
            running: 0,
            most_running: 0,
            most_waiting: MOST_WAITING,
            tickets: 0,
            latest: Duration::ZERO,
            queues: Default::default(),
        }
    }

    /// Another share from now on. What runs goes on; [`next`](Self::next) says who may run now.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit.max(LOWEST);
    }

    /// How many may wait from now on, and how long. Those that wait already stay.
    pub fn set_queue(&mut self, most_waiting: usize, patience: Patience) {
        self.most_waiting = most_waiting;
        self.queues.iter_mut().for_each(|queue| queue.set_patience(patience));
    }

    /// A request arrives.
    pub fn arrive(&mut self, now: Duration, priority: Priority) -> Arrival {
        self.advance(now);
        let ahead = &self.queues[..=priority as usize];
        if ahead.iter().all(Queue::is_empty) && self.has_slot(priority) {
            self.run();
            return Arrival::Run;
        }
        let mut refused = None;
        if self.waiting() >= self.most_waiting {
            let lower = &mut self.queues[priority as usize + 1..];
            refused = lower.iter_mut().rev().find_map(|queue| queue.pop_newest(self.latest));
            if refused.is_none() {
                return Arrival::Refused;
            }
        }
        self.tickets += 1;
        self.queues[priority as usize].push(self.latest, self.tickets);
        Arrival::Wait { ticket: self.tickets, refused }
    }

    /// One that ran has ended, however it ended. [`next`](Self::next) says who may run now.
    pub fn leave(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// Whose turn it is. To be called until `None` after every [`leave`](Self::leave) and every change of the limit, and
    /// at [`due`](Self::due).
    pub fn next(&mut self, now: Duration) -> Option<Next> {
        self.advance(now);
        let now = self.latest;
        if let Some(late) = self.queues.iter_mut().find_map(|queue| queue.overdue(now)) {
            return Some(Next::Refuse(late));
        }
        let first = PRIORITIES.into_iter().find(|it| !self.queues[*it as usize].is_empty())?;
        if !self.has_slot(first) {
            return None;
        }
        let ticket = self.queues[first as usize].pop(now)?;
        self.run();
        Some(Next::Run(ticket))
    }

    /// One that waited does not want to any more; `false` where it was not waiting.
    pub fn cancel(&mut self, now: Duration, ticket: Ticket) -> bool {
        self.advance(now);
        let now = self.latest;
        self.queues.iter_mut().any(|queue| queue.remove(now, ticket))
    }

    /// When somebody will have waited too long, if nothing else happens before.
    pub fn due(&self) -> Option<Duration> {
        self.queues.iter().filter_map(Queue::due).min()
    }

    /// How many run.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.queues.iter().map(Queue::len).sum()
    }

    /// The most that ran at once since the last time this was asked.
    pub fn take_most_running(&mut self) -> u32 {
        std::mem::replace(&mut self.most_running, self.running)
    }

    fn has_slot(&self, priority: Priority) -> bool {
        self.running < slots(self.limit, priority)
    }

    fn run(&mut self) {
        self.running = self.running.saturating_add(1);
        self.most_running = self.most_running.max(self.running);
    }

    fn advance(&mut self, now: Duration) {
        self.latest = self.latest.max(now);
    }
}

/// How many may run before one of this priority has to wait.
fn slots(limit: u32, priority: Priority) -> u32 {
    let kept = limit.div_ceil(KEPT);
    match priority {
        Priority::Health => limit.saturating_add(HEALTH_SLOTS),
        Priority::Critical => limit,
        Priority::Normal => limit.saturating_sub(kept).max(1),
        Priority::Sheddable => limit.saturating_sub(kept.saturating_mul(2)).max(1),
    }
}

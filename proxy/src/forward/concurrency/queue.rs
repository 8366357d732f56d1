//! Those of one priority that wait. First come, first served, and nobody waits in vain.
//!
//! A queue that empties now and then is a burst being taken in: waiting for up to an interval (100 ms) does good. One
//! that has not been empty for an interval stands: whoever waits in it waits behind others for nothing, and only those
//! that are let in at once (within the target, 5 ms) are worth beginning. Target, interval and the idea of judging a
//! queue by time instead of length are CoDel's (RFC 8289). Its control law is not: it drops ever more often until
//! senders slow down, and callers of a service do not; instead a standing queue drops all that waited longer than the
//! target (Maurer, "Fail at Scale", ACM Queue 2015).

use std::{collections::VecDeque, time::Duration};

/// RFC 8289 section 4.2.
pub const TARGET: Duration = Duration::from_millis(5);
/// RFC 8289 section 4.3.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// How long one may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Where the queue stands.
    pub target: Duration,
    /// In a burst; a queue that has not been empty for as long stands. Not less than `target`.
    pub interval: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { target: TARGET, interval: INTERVAL }
    }
}

/// A request that waits, named by the number that it got.
pub type Ticket = u64;

/// Requests that wait. `now` must not go backwards: the gate sees to that.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    waiting: VecDeque<(Ticket, Duration)>,
    /// When it was last empty.
    empty_at: Duration,
    patience: Patience,
}

impl Queue {
    /// From now on, for those that wait already, too.
    pub fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// At the end.
    pub fn push(&mut self, now: Duration, ticket: Ticket) {
        if self.waiting.is_empty() {
            self.empty_at = now;
        }
        self.waiting.push_back((ticket, now));
    }

    /// The first, if it waited too long.
    pub fn overdue(&mut self, now: Duration) -> Option<Ticket> {
        let due = self.due()?;
        if now < due {
            return None;
        }
        self.pop(now)
    }

    /// The first.
    pub fn pop(&mut self, now: Duration) -> Option<Ticket> {
        let (ticket, _) = self.waiting.pop_front()?;
        self.note(now);
        Some(ticket)
    }

    /// The last: it has waited the least, and would be served last.
    pub fn pop_newest(&mut self, now: Duration) -> Option<Ticket> {
        let (ticket, _) = self.waiting.pop_back()?;
        self.note(now);
        Some(ticket)
    }

    /// Takes one out of the middle: it does not want to wait any more.
    pub fn remove(&mut self, now: Duration, ticket: Ticket) -> bool {
        // Tickets are given out in order.
        let Ok(at) = self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket) else {
            return false;
        };
        self.waiting.remove(at);
        self.note(now);
        true
    }

    /// When the first will have waited too long.
    pub fn due(&self) -> Option<Duration> {
        let (_, since) = self.waiting.front()?;
        let Patience { target, interval } = self.patience;
        let patient = since.saturating_add(interval);
        // From the moment at which the queue stands, the target holds.
        let stands = self.empty_at.saturating_add(interval);
        Some(patient.min(since.saturating_add(target).max(stands)))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn note(&mut self, now: Duration) {
        if self.waiting.is_empty() {
            self.empty_at = now;
        }
    }
}

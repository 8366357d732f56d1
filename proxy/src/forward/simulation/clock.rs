//! What happens when. Time passes only from one event to the next.

use std::{cmp::Ordering, collections::BinaryHeap, time::Duration};

/// Events to come, in order of time; what is due at the same time happens in the order in which it was planned.
#[derive(Debug)]
pub struct Clock<E> {
    now: Duration,
    planned: u64,
    due: BinaryHeap<Due<E>>,
}

#[derive(Debug)]
struct Due<E> {
    at: Duration,
    number: u64,
    event: E,
}

impl<E> Clock<E> {
    /// At zero, with nothing planned.
    pub fn new() -> Self {
        Self { now: Duration::ZERO, planned: 0, due: BinaryHeap::new() }
    }

    /// How late it is.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Plans an event in so much time.
    pub fn after(&mut self, time: Duration, event: E) {
        self.at(self.now + time, event);
    }

    /// Plans an event; one in the past happens now.
    pub fn at(&mut self, at: Duration, event: E) {
        self.planned += 1;
        self.due.push(Due { at: at.max(self.now), number: self.planned, event });
    }

    /// The next event before `end`, when time has passed until then.
    pub fn next(&mut self, end: Duration) -> Option<E> {
        if self.due.peek()?.at >= end {
            return None;
        }
        let due = self.due.pop()?;
        self.now = due.at;
        Some(due.event)
    }
}

impl<E> Ord for Due<E> {
    /// The greatest is the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Due<E> {}

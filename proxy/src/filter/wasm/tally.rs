//! What an instance has done since all workers' figures last heard of it.

use std::{cell::Cell, time::Duration};

use super::plugin::Figures;

/// What the figures of all workers do not have yet.
#[derive(Debug, Default)]
pub(super) struct Tally {
    exchanges: Cell<u64>,
    calls: Cell<u64>,
    nanoseconds: Cell<u64>,
    /// Times that it was asked which calls to time, and how often exchanges ended.
    asked: Cell<u64>,
    ended: Cell<u64>,
}

impl Tally {
    /// One call in so many is timed, and stands for the others. A prime, so that it is not always the same callback of
    /// exchanges that are all alike.
    const TIMED: u64 = 7;
    /// The first calls are all timed: for a plugin that is seldom called a sample says nothing.
    const FIRST: u64 = 28;
    /// Exchanges after which the figures get to know, and until how many they get to know of each. What is left over they
    /// get at the next sweep.
    const TOGETHER: u64 = 16;

    /// How many calls the next one stands for, if it is to be timed.
    pub(super) fn weight(&self) -> Option<u64> {
        let asked = self.asked.get();
        self.asked.set(asked + 1);
        if asked < Self::FIRST {
            return Some(1);
        }
        asked.is_multiple_of(Self::TIMED).then_some(Self::TIMED)
    }

    /// One exchange or connection more.
    pub(super) fn saw(&self) {
        self.exchanges.set(self.exchanges.get() + 1);
    }

    /// So many callbacks more.
    pub(super) fn called(&self, calls: u64) {
        self.calls.set(self.calls.get() + calls);
    }

    /// Time of one that stands for `weight`.
    pub(super) fn spent(&self, time: Duration, weight: u64) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let nanoseconds = nanoseconds.saturating_mul(weight);
        self.nanoseconds.set(self.nanoseconds.get().saturating_add(nanoseconds));
    }

    /// An exchange has ended. Whether it is time to tell.
    pub(super) fn is_due(&self) -> bool {
        let ended = self.ended.get() + 1;
        self.ended.set(ended);
        ended < Self::TOGETHER || ended.is_multiple_of(Self::TOGETHER)
    }

    /// Adds it all to the figures.
    pub(super) fn tell(&self, figures: &Figures) {
        let told = [&self.exchanges, &self.calls, &self.nanoseconds].map(Cell::take);
        if told != [0; 3] {
            figures.add(told[0], told[1], told[2]);
        }
    }
}

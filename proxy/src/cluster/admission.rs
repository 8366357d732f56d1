//! What workers and the side thread tell each other about how many requests the application beside us is given at once.
//! Every worker has a seat, to which nobody else writes but its share of the limit: nothing that a request does is
//! shared. The side thread looks at all seats, finds the limit and divides it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

/// In the order of priorities: health checks, critical, normal, sheddable.
pub type ByPriority<T> = [T; 4];
/// As in metrics, in that order.
pub const PRIORITY_NAMES: ByPriority<&str> = ["health", "critical", "normal", "sheddable"];

/// Of one application.
#[derive(Debug, Default)]
pub struct Admission {
    /// Locked when a worker comes, and by the side thread and the admin port.
    seats: Mutex<Vec<Arc<Seat>>>,
    /// What was found out last; `None` where there is no limit.
    pub found: ArcSwapOption<Found>,
}

/// What the side thread found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Requests at once, in all workers.
    pub limit: u32,
    /// How long an answer takes where there is room, as far as known.
    pub unloaded: Option<Duration>,
    /// Whether the limit is lowered for a moment, to measure that.
    pub probing: bool,
}

/// One worker's. On cache lines of its own, so that workers do not slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Seat {
    /// The worker's share of the limit.
    pub limit: AtomicU32,
    /// Nanoseconds that an answer takes where there is room; 0 while unknown.
    pub unloaded: AtomicU64,
    /// Requests that the application works at.
    pub running: AtomicU32,
    /// The most at once since the side thread last looked.
    pub most_running: AtomicU32,
    /// Requests that wait.
    pub waiting: AtomicU32,
    /// Answers, and requests that timed out, so far.
    pub answers: AtomicU64,
    /// Nanoseconds that these took, added up.
    pub latency: AtomicU64,
    /// Requests that had to wait, so far, whatever became of them.
    pub waited: AtomicU64,
    /// Nanoseconds that they waited, added up.
    pub wait: AtomicU64,
    /// Requests refused so far.
    pub dropped: ByPriority<AtomicU64>,
}

/// All seats together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Now.
    pub running: u64,
    /// Now.
    pub waiting: u64,
    /// So far.
    pub answers: u64,
    /// So far.
    pub latency: Duration,
    /// So far.
    pub waited: u64,
    /// So far.
    pub wait: Duration,
    /// So far.
    pub dropped: ByPriority<u64>,
}

impl Admission {
    /// A seat for a worker that has none.
    pub fn sit_down(&self) -> Arc<Seat> {
        let seat = Arc::new(Seat::default());
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).push(seat.clone());
        seat
    }

    /// All seats, in the order in which they were taken.
    pub fn seats(&self) -> Vec<Arc<Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All seats together.
    pub fn totals(&self) -> Totals {
        self.seats().iter().fold(Totals::default(), |totals, seat| totals.and(seat))
    }
}

impl Totals {
    fn and(mut self, seat: &Seat) -> Self {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.running += u64::from(seat.running.load(Ordering::Relaxed));
        self.waiting += u64::from(seat.waiting.load(Ordering::Relaxed));
        self.answers += load(&seat.answers);
        self.latency += Duration::from_nanos(load(&seat.latency));
        self.waited += load(&seat.waited);
        self.wait += Duration::from_nanos(load(&seat.wait));
        for (total, dropped) in self.dropped.iter_mut().zip(&seat.dropped) {
            *total += load(dropped);
        }
        self
    }
}

/// Adds to a counter that only this thread writes: cheaper than an addition that others could come between.
pub fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Nanoseconds; those of 500 years are as many as there can be.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_seats_together() {
        let admission = Admission::default();
        assert_eq!(admission.totals(), Totals::default());
        for (running, latency) in [(2, 5), (3, 7)] {
            let seat = admission.sit_down();
            seat.running.store(running, Ordering::Relaxed);
            add(&seat.answers, 1);
            add(&seat.latency, latency);
            add(&seat.dropped[3], 4);
        }
        let totals = admission.totals();
        assert_eq!((totals.running, totals.answers), (5, 2));
        assert_eq!((totals.latency, totals.dropped), (Duration::from_nanos(12), [0, 0, 0, 8]));
        assert_eq!(nanoseconds(Duration::MAX), u64::MAX);
    }
}

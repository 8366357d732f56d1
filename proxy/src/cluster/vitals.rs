//! How an endpoint does, and what was decided about it. Outlives the endpoint's description: a new weight or certificate
//! does not make a failing instance a good one.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

use super::{
    circuit::{self, gate::Gate},
    health::Checked,
    outlier::{Cause, Factor},
    tally::{Reading, Tally},
};

/// Of one endpoint, shared by all workers.
#[derive(Debug)]
pub struct Vitals {
    /// Unique in this process; detectors and workers know it by this.
    pub id: u64,
    /// What is under way there, and how attempts ended.
    pub tally: Tally,
    factor: AtomicU8,
    /// Only where each endpoint has one of its own, and only once something was heard of this one.
    breaker: OnceLock<Box<Breaker>>,
    told: Mutex<Told>,
}

/// The error-rate and slow-call breaker of one endpoint.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Whether it lets requests through.
    pub gate: Arc<Gate>,
    /// Where it is, for people; `None` where nobody wants it any more.
    pub state: ArcSwapOption<circuit::State>,
}

/// For people: what the side thread last found out.
#[derive(Debug, Default)]
struct Told {
    ejected: Option<(Duration, Cause)>,
    latency: Option<Duration>,
    checked: Option<Checked>,
    last: Reading,
    totals: Totals,
}

/// How attempts ended so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The endpoint did its part.
    pub successes: u64,
    /// It did not.
    pub failures: u64,
}

impl Default for Vitals {
    /// In full service, with an identity of its own.
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            tally: Tally::default(),
            factor: AtomicU8::new(Factor::FULL.0),
            breaker: OnceLock::new(),
            told: Mutex::default(),
        }
    }
}

impl Vitals {
    /// Which share of what its weight says it gets.
    pub fn factor(&self) -> Factor {
        Factor(self.factor.load(Ordering::Relaxed))
    }

    /// What was decided: its share, and until when and why it is ejected.
    pub fn decide(&self, factor: Factor, ejected: Option<(Duration, Cause)>) {
        self.factor.store(factor.0, Ordering::Relaxed);
        self.told().ejected = ejected;
    }

    /// Its own breaker, if it ever had one.
    pub fn breaker(&self) -> Option<&Breaker> {
        self.breaker.get().map(|breaker| &**breaker)
    }

    /// The same, closed where it had none.
    pub fn breaker_or_new(&self) -> &Breaker {
        self.breaker.get_or_init(Box::default)
    }

    /// Notes how its active health checks go; `None` where there are none.
    pub fn check(&self, checked: Option<Checked>) {
        self.told().checked = checked;
    }

    /// How its active health checks go.
    pub fn checked(&self) -> Option<Checked> {
        self.told().checked.clone()
    }

    /// Until when and why it is ejected.
    pub fn ejected(&self) -> Option<(Duration, Cause)> {
        self.told().ejected
    }

    /// Notes what a worker takes its latency to be.
    pub fn measured(&self, latency: Option<Duration>) {
        let mut told = self.told();
        told.latency = latency.or(told.latency);
    }

    /// Its average latency as one of the workers sees it; `None` where nothing was measured.
    pub fn latency(&self) -> Option<Duration> {
        self.told().latency
    }

    /// How attempts ended so far; to be called more often than 16 million of them end.
    pub fn totals(&self) -> Totals {
        let mut told = self.told();
        let reading = self.tally.read();
        let since = reading.since(told.last);
        told.last = reading;
        told.totals.successes += since.successes;
        told.totals.failures += since.failures;
        told.totals
    }

    /// Only the side thread and the admin port, which runs there, ask for it.
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tally::Verdict;

    #[test]
    fn totals_go_on_where_they_were() {
        let vitals = Vitals::default();
        for verdict in [Verdict::Success, Verdict::Failure, Verdict::Neither, Verdict::Success] {
            assert!(vitals.tally.begin());
            vitals.tally.end(verdict);
        }
        assert_eq!(vitals.totals(), Totals { successes: 2, failures: 1 });
        assert!(vitals.tally.begin());
        vitals.tally.end(Verdict::Failure);
        assert_eq!(vitals.totals(), Totals { successes: 2, failures: 2 });
        assert_eq!(vitals.totals(), Totals { successes: 2, failures: 2 });
        assert_ne!(vitals.id, Vitals::default().id);
    }
}

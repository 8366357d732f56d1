//! What one worker has seen of endpoints: latencies for its own balancing, and results that the side thread has not been
//! told yet. Pure: `now` is the time since the process began.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use leno_api::model::traffic_policy::Balancer;
use rustc_hash::FxHashMap;

use crate::cluster::{
    Cluster, State,
    ewma::{DECAY, Latencies},
    outlier::streak::{Run, Streak},
    window::{Batch, Kind},
};

/// How an attempt went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempted {
    /// How it ended.
    pub(super) kind: Kind,
    /// Until the head of the response, or the error.
    pub(super) latency: Duration,
    /// Whether it was answered or timed out: only then does its latency say something.
    pub(super) timed: bool,
}

/// Of all clusters that this worker has used.
#[derive(Debug, Default)]
pub(super) struct Observed {
    clusters: FxHashMap<u64, Seen>,
    /// Those with results that nobody was told.
    untold: Vec<u64>,
}

#[derive(Debug)]
struct Seen {
    /// Gone when the cluster is.
    state: Weak<State>,
    /// Which list of endpoints it is of.
    list: u64,
    latencies: Latencies,
    /// In the order of that list.
    cells: Vec<Cell>,
    untold: bool,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    endpoint: u64,
    streak: Streak,
    batch: Batch,
}

/// What all workers have seen of endpoints since the side thread last looked: by cluster and endpoint, so that it does
/// not grow beyond what is configured.
#[derive(Debug, Default)]
pub struct Mailbox(Mutex<Mail>);

/// By cluster, then by endpoint.
pub(super) type Mail = FxHashMap<u64, FxHashMap<u64, Report>>;

/// Of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Report {
    /// All results.
    pub(super) batch: Batch,
    /// The longest runs that any worker saw.
    pub(super) run: Run,
    /// What some worker takes its latency to be.
    pub(super) latency: Option<Duration>,
}

impl Observed {
    /// Latencies of the endpoints of `cluster`.
    pub(super) fn latencies(&mut self, cluster: &Cluster) -> &Latencies {
        &self.seen(cluster).latencies
    }

    /// Takes in how an attempt at the endpoint that was at `place` went. Says whether nothing was untold before.
    pub(super) fn record(
        &mut self,
        cluster: &Cluster,
        place: usize,
        endpoint: u64,
        now: Duration,
        attempted: Attempted,
    ) -> bool {
        let seen = self.seen(cluster);
        let slow = cluster.is_slow(attempted.latency);
        seen.record(place, endpoint, now, attempted, slow);
        if std::mem::replace(&mut seen.untold, true) {
            return false;
        }
        self.untold.push(cluster.state.id);
        self.untold.len() == 1
    }

    /// Whether everything was told.
    pub(super) fn is_told(&self) -> bool {
        self.untold.is_empty()
    }

    /// Tells `mailbox` what has come together; to be called about every 100 ms.
    pub(super) fn tell(&mut self, now: Duration, mailbox: &Mailbox) {
        let mut mail = mailbox.0.lock().unwrap_or_else(PoisonError::into_inner);
        for cluster in self.untold.drain(..) {
            if let Some(seen) = self.clusters.get_mut(&cluster) {
                seen.latencies.settle(now);
                seen.tell(mail.entry(cluster).or_default());
            }
        }
        drop(mail);
        self.clusters.retain(|_, seen| seen.state.strong_count() > 0);
    }

    fn seen(&mut self, cluster: &Cluster) -> &mut Seen {
        let seen = self.clusters.entry(cluster.state.id).or_insert_with(|| Seen {
            state: Arc::downgrade(&cluster.state),
            list: 0,
            latencies: Latencies::default(),
            cells: Vec::new(),
            untold: false,
        });
        // An exchange that began under an older configuration must not bring its list back.
        if cluster.endpoints.number > seen.list {
            seen.reconcile(cluster);
        }
        seen
    }
}

impl Seen {
    fn reconcile(&mut self, cluster: &Cluster) {
        self.list = cluster.endpoints.number;
        let ids = || cluster.endpoints.iter().map(|endpoint| endpoint.vitals.id);
        self.latencies.retune(match cluster.settings.balancer {
            Balancer::PeakEwma { decay } => decay,
            _ => DECAY,
        });
        self.latencies.reconcile(ids());
        let mut before = std::mem::take(&mut self.cells);
        before.sort_unstable_by_key(|cell| cell.endpoint);
        let cell = |endpoint: u64| {
            let known = before.binary_search_by_key(&endpoint, |cell| cell.endpoint);
            known.map_or(
                Cell { endpoint, streak: Streak::default(), batch: Batch::default() },
                |at| before[at],
            )
        };
        self.cells = ids().map(cell).collect();
    }

    fn record(
        &mut self,
        place: usize,
        endpoint: u64,
        now: Duration,
        attempted: Attempted,
        slow: bool,
    ) {
        let Attempted { kind, latency, timed } = attempted;
        self.latencies.observe(place, endpoint, now, latency, kind != Kind::Success);
        let is_it = |cell: &Cell| cell.endpoint == endpoint;
        let place = match self.cells.get(place) {
            Some(cell) if is_it(cell) => Some(place),
            _ => self.cells.iter().position(is_it),
        };
        if let Some(cell) = place.and_then(|place| self.cells.get_mut(place)) {
            cell.streak.record(now, kind);
            cell.batch.merge(&Batch::one(kind, timed.then_some(latency), slow));
        }
    }

    fn tell(&mut self, mail: &mut FxHashMap<u64, Report>) {
        self.untold = false;
        for (place, cell) in self.cells.iter_mut().enumerate() {
            if cell.batch.total() == 0 {
                continue;
            }
            let report = mail.entry(cell.endpoint).or_default();
            report.batch.merge(&std::mem::take(&mut cell.batch));
            report.run = report.run.max(cell.streak.take());
            report.latency = self.latencies.estimate(place).or(report.latency);
        }
    }
}

impl Mailbox {
    /// Takes everything out.
    pub(super) fn take(&self) -> Mail {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
pub(super) mod tests;

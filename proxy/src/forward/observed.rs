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
    /// Where in `clusters` a cluster is. An attempt asks once and then knows.
    slots: FxHashMap<u64, usize>,
    /// `None` where one was that is gone.
    clusters: Vec<Option<Seen>>,
    /// Slots of those with results that nobody was told.
    untold: Vec<usize>,
}

#[derive(Debug)]
struct Seen {
    /// Which cluster.
    cluster: u64,
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
    /// Latencies of the endpoints of `cluster`, and the slot in which they are.
    pub(super) fn latencies(&mut self, cluster: &Cluster) -> (&Latencies, usize) {
        let slot = self.slot(cluster);
        (&self.seen(cluster, slot).latencies, slot)
    }

    /// Takes in how an attempt went at the endpoint `at.1` that was at place `at.0`. `slot` is where the cluster was when
    /// the attempt began, if that was asked for. Says whether nothing was untold before.
    pub(super) fn record(
        &mut self,
        cluster: &Cluster,
        slot: usize,
        at: (usize, u64),
        now: Duration,
        attempted: Attempted,
    ) -> bool {
        let is_it = |seen: &Seen| seen.cluster == cluster.state.id;
        let known = self.clusters.get(slot).and_then(Option::as_ref).is_some_and(is_it);
        let slot = if known { slot } else { self.slot(cluster) };
        let seen = self.seen(cluster, slot);
        let slow = cluster.is_slow(attempted.latency);
        seen.record(at, now, attempted, slow);
        if std::mem::replace(&mut seen.untold, true) {
            return false;
        }
        self.untold.push(slot);
        self.untold.len() == 1
    }

    /// Whether everything was told.
    pub(super) fn is_told(&self) -> bool {
        self.untold.is_empty()
    }

    /// Tells `mailbox` what has come together; to be called about every 100 ms.
    pub(super) fn tell(&mut self, now: Duration, mailbox: &Mailbox) {
        let mut mail = mailbox.0.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in self.untold.drain(..) {
            if let Some(Some(seen)) = self.clusters.get_mut(slot) {
                seen.latencies.settle(now);
                seen.tell(mail.entry(seen.cluster).or_default());
            }
        }
        drop(mail);
        let clusters = &mut self.clusters;
        self.slots.retain(|_, slot| {
            let Some(place) = clusters.get_mut(*slot) else { return false };
            let lives = place.as_ref().is_some_and(|seen| seen.state.strong_count() > 0);
            if !lives {
                *place = None;
            }
            lives
        });
    }

    fn slot(&mut self, cluster: &Cluster) -> usize {
        if let Some(slot) = self.slots.get(&cluster.state.id) {
            return *slot;
        }
        let free = self.clusters.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.clusters.len());
        if free.is_none() {
            self.clusters.push(None);
        }
        self.slots.insert(cluster.state.id, slot);
        slot
    }

    /// What was seen of `cluster`, whose slot that is.
    fn seen(&mut self, cluster: &Cluster, slot: usize) -> &mut Seen {
        let seen = self.clusters[slot].get_or_insert_with(|| Seen {
            cluster: cluster.state.id,
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
        let ids = || cluster.endpoints.iter().map(|endpoint| endpoint.vitals().id);
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
        (place, endpoint): (usize, u64),
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

//! The side thread's part of resilience: takes in what the workers have seen, and decides which endpoints are ejected
//! and which breakers are open. Workers only load what is decided.

mod checker;
mod policies;
mod watched;

use std::{sync::Arc, time::Duration};

use rand::RngExt;
use rustc_hash::FxHashMap;

use super::{limiter::Limiters, observed::Mail, worker::Shared};
use crate::{cluster::Cluster, snapshot::Snapshot, telemetry::metrics::resilience::Resilience};
use checker::{Answer, Asked, Checker};
use watched::Watched;

/// How often. What a worker saw is told after as long, so that an endpoint is ejected within a quarter of a second.
const EVERY: Duration = Duration::from_millis(100);

/// Of a service with health checks and at most so many endpoints, these are checked from the start; those of a larger
/// one from the first request on. Every proxy checks for itself, and many never call what they know of.
const CHECKED_UNASKED: usize = 100;

/// Samples for ever.
pub async fn run(shared: Arc<Shared>) {
    let (mut sampler, mut limiters) = (Sampler::default(), Limiters::default());
    let mut checker = Checker::new(&shared);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let snapshot = shared.published.load();
        let (now, figures) = (shared.now(), &shared.families.resilience);
        sampler.answered(now, checker.answers(), figures);
        sampler.sample(&snapshot, now, &shared.mailbox.take(), figures);
        sampler.ask(now).into_iter().for_each(|asked| checker.ask(asked));
        let figures = &shared.families.resilience.concurrency;
        limiters.sample(&snapshot, shared.now(), || rand::rng().random(), figures);
    }
}

/// All clusters that are judged and were called, or are checked: of most that a proxy knows it needs nothing.
#[derive(Debug, Default)]
struct Sampler {
    snapshot: Arc<Snapshot>,
    watched: FxHashMap<u64, Watched>,
}

impl Sampler {
    fn sample(
        &mut self,
        snapshot: &Arc<Snapshot>,
        now: Duration,
        mail: &Mail,
        figures: &Resilience,
    ) {
        if !Arc::ptr_eq(&self.snapshot, snapshot) {
            self.reconcile(snapshot, now, figures);
        }
        if mail.keys().any(|id| !self.watched.contains_key(id)) {
            self.begin(now, figures, |cluster| mail.contains_key(&cluster.state.id));
        }
        for (id, watched) in &mut self.watched {
            let reports = mail.get(id);
            if reports.is_some() || watched.is_restless() {
                watched.sample(now, reports, figures);
            }
        }
    }

    /// Takes a new configuration over; what is known of clusters and endpoints that stay is kept.
    fn reconcile(&mut self, snapshot: &Arc<Snapshot>, now: Duration, figures: &Resilience) {
        self.snapshot = snapshot.clone();
        self.watched.retain(|id, watched| {
            let cluster = snapshot.clusters.get(&watched.cluster().key);
            let cluster = cluster.filter(|cluster| cluster.state.id == *id);
            match cluster {
                Some(cluster) => watched.reconcile(cluster, now, figures),
                None => figures.forget_cluster(&watched.cluster().name),
            }
            cluster.is_some()
        });
        self.begin(now, figures, |cluster| {
            cluster.settings.health_check.is_some() && cluster.endpoints.count() <= CHECKED_UNASKED
        });
    }

    /// Watches those for which `condition` holds from now on.
    fn begin(&mut self, now: Duration, figures: &Resilience, condition: impl Fn(&Cluster) -> bool) {
        let judged = self.snapshot.clusters.values().filter(|cluster| cluster.is_judged());
        for cluster in judged.filter(|cluster| condition(cluster)) {
            self.watched
                .entry(cluster.state.id)
                .or_insert_with(|| Watched::new(cluster.clone(), now, figures));
        }
    }

    /// Takes in how health checks ended.
    fn answered(&mut self, now: Duration, answers: Vec<Answer>, figures: &Resilience) {
        for answer in answers {
            if let Some(watched) = self.watched.get_mut(&answer.cluster) {
                watched.answered(now, answer.endpoint, answer.answer, figures);
            }
        }
    }

    /// Health checks to be made now.
    fn ask(&mut self, now: Duration) -> Vec<Asked> {
        self.watched.values_mut().flat_map(|watched| watched.ask(now)).collect()
    }
}

#[cfg(test)]
mod tests;

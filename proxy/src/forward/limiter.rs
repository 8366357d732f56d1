//! The side thread's part of [`super::admission`]: finds out how many requests at once the application beside us can do
//! something with, and divides that among the workers by what each has to do. Workers only load their share.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use leno_api::model::traffic_policy::AdaptiveConcurrency;
use rustc_hash::FxHashMap;

use super::concurrency::{
    gradient::{self, Gradient, Sample},
    shares,
};
use crate::{
    cluster::{
        Cluster, ClusterKey,
        admission::{Found, PRIORITY_NAMES, Seat, Totals, nanoseconds},
    },
    snapshot::Snapshot,
    telemetry::metrics::resilience::Concurrency,
};

/// Of all applications beside us that have a limit.
#[derive(Debug, Default)]
pub(super) struct Limiters {
    snapshot: Arc<Snapshot>,
    limiters: FxHashMap<u64, Limiter>,
}

#[derive(Debug)]
struct Limiter {
    cluster: Arc<Cluster>,
    gradient: Gradient,
    /// What was taken in already.
    told: Totals,
    /// As in metrics.
    service: String,
    port: String,
}

impl Limiters {
    /// Looks at all of them; about every 100 ms.
    pub(super) fn sample(
        &mut self,
        snapshot: &Arc<Snapshot>,
        now: Duration,
        random: impl Fn() -> u64,
        figures: &Concurrency,
    ) {
        if !Arc::ptr_eq(&self.snapshot, snapshot) {
            self.reconcile(snapshot, figures);
        }
        for limiter in self.limiters.values_mut() {
            limiter.sample(now, random(), figures);
        }
    }

    /// Takes a new configuration over; what was found out of applications that stay is kept.
    fn reconcile(&mut self, snapshot: &Arc<Snapshot>, figures: &Concurrency) {
        self.snapshot = snapshot.clone();
        let mut before = std::mem::take(&mut self.limiters);
        for cluster in snapshot.clusters.values() {
            let (ClusterKey::Application(..), Some(settings)) =
                (&cluster.key, &cluster.settings.adaptive_concurrency)
            else {
                continue;
            };
            let known = before.remove(&cluster.state.id);
            let mut limiter =
                known.unwrap_or_else(|| Limiter::new(cluster.clone(), gradient_settings(settings)));
            limiter.gradient.reconfigure(gradient_settings(settings));
            limiter.cluster = cluster.clone();
            self.limiters.insert(cluster.state.id, limiter);
        }
        for gone in before.into_values() {
            gone.cluster.state.admission.found.store(None);
            figures.forget(&gone.service, &gone.port, &PRIORITY_NAMES);
        }
    }
}

impl Limiter {
    fn new(cluster: Arc<Cluster>, settings: gradient::Settings) -> Self {
        let (service, port) = match &cluster.key {
            ClusterKey::Application(service, address) => {
                (service.to_string(), address.port().to_string())
            }
            ClusterKey::Service(service, port) => (service.to_string(), port.to_string()),
            key @ ClusterKey::Passthrough(address) => (key.to_string(), address.port().to_string()),
        };
        // What was counted under an earlier limit is no news.
        let told = cluster.state.admission.totals();
        Self { cluster, gradient: Gradient::new(settings), told, service, port }
    }

    fn sample(&mut self, now: Duration, random: u64, figures: &Concurrency) {
        let admission = &self.cluster.state.admission;
        let (seats, totals) = (admission.seats(), admission.totals());
        let most: Vec<u32> = seats.iter().map(|seat| take_most_running(seat)).collect();
        let sample = Sample {
            count: totals.answers.saturating_sub(self.told.answers),
            latency_sum: totals.latency.saturating_sub(self.told.latency),
            most_under_way: most.iter().copied().fold(0, u32::saturating_add),
        };
        let limit = self.gradient.push(now, sample, random);
        let unloaded = self.gradient.unloaded();
        let waiting = seats.iter().map(|seat| seat.waiting.load(Ordering::Relaxed));
        let demands = most.iter().zip(waiting).map(|(most, waiting)| most.saturating_add(waiting));
        let demands: Vec<u32> = demands.collect();
        for (seat, share) in seats.iter().zip(shares(limit, &demands)) {
            seat.limit.store(share, Ordering::Relaxed);
            seat.unloaded.store(unloaded.map_or(0, nanoseconds), Ordering::Relaxed);
        }
        let found = Found { limit, unloaded, probing: self.gradient.is_probing() };
        if admission.found.load().as_deref() != Some(&found) {
            admission.found.store(Some(Arc::new(found)));
        }
        self.show(limit, &totals, figures);
        self.told = totals;
    }

    fn show(&self, limit: u32, totals: &Totals, figures: &Concurrency) {
        let labels = [self.service.as_str(), self.port.as_str()];
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        figures.limit.with_label_values(&labels).set(limit.into());
        figures.running.with_label_values(&labels).set(gauge(totals.running));
        figures.waiting.with_label_values(&labels).set(gauge(totals.waiting));
        let waited = totals.waited.saturating_sub(self.told.waited);
        figures.waited.with_label_values(&labels).inc_by(waited);
        let wait = totals.wait.saturating_sub(self.told.wait);
        figures.wait.with_label_values(&labels).inc_by(wait.as_secs_f64());
        for (at, priority) in PRIORITY_NAMES.into_iter().enumerate() {
            let dropped = totals.dropped[at].saturating_sub(self.told.dropped[at]);
            let [service, port] = labels;
            figures.dropped.with_label_values(&[service, port, priority]).inc_by(dropped);
        }
    }
}

/// The worker may write back what it had read before; then the next look sees the same again.
fn take_most_running(seat: &Seat) -> u32 {
    seat.most_running.swap(0, Ordering::Relaxed).max(seat.running.load(Ordering::Relaxed))
}

fn gradient_settings(settings: &AdaptiveConcurrency) -> gradient::Settings {
    gradient::Settings {
        min: settings.minimum,
        max: settings.maximum,
        initial: settings.initial,
        ..gradient::Settings::default()
    }
}

#[cfg(test)]
mod tests;

//! The side thread's part of resilience: takes in what the workers have seen, and decides which endpoints are ejected
//! and which breakers are open. Workers only load what is decided.

use std::{sync::Arc, time::Duration};

use leno_api::model::traffic_policy::{self, OutlierDetection};
use rand::RngExt;
use rustc_hash::FxHashMap;

use super::{
    limiter::Limiters,
    observed::{Mail, Report},
    worker::Shared,
};
use crate::{
    cluster::{
        Cluster, Endpoint,
        circuit::{self, Circuit},
        outlier::{self, Cause, Change, Detector, Factor, Streaks},
        window::{Batch, Span},
    },
    snapshot::Snapshot,
    telemetry::metrics::resilience::{EJECTION_CAUSES, Resilience},
};

/// How often. What a worker saw is told after as long, so that an endpoint is ejected within a quarter of a second.
const EVERY: Duration = Duration::from_millis(100);

/// Samples for ever.
pub async fn run(shared: Arc<Shared>) {
    let (mut sampler, mut limiters) = (Sampler::default(), Limiters::default());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let snapshot = shared.published.load();
        sampler.sample(
            &snapshot,
            shared.now(),
            &shared.mailbox.take(),
            &shared.families.resilience,
        );
        let figures = &shared.families.resilience.concurrency;
        limiters.sample(&snapshot, shared.now(), || rand::rng().random(), figures);
    }
}

/// All clusters that are judged.
#[derive(Debug, Default)]
struct Sampler {
    snapshot: Arc<Snapshot>,
    watched: FxHashMap<u64, Watched>,
}

/// One of them.
#[derive(Debug)]
struct Watched {
    cluster: Arc<Cluster>,
    /// `None` where nobody is to be ejected.
    detector: Option<Detector>,
    /// `None` where there is no error-rate and slow-call breaker.
    circuit: Option<Circuit>,
    /// Rejections that were counted already.
    rejected: u64,
    /// Whether something is due without any result: an ejection, a ramp, a breaker that is not closed.
    restless: bool,
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
        for (id, watched) in &mut self.watched {
            let reports = mail.get(id);
            if reports.is_some() || watched.restless {
                watched.sample(now, reports, figures);
            }
        }
    }

    /// Takes a new configuration over; what is known of clusters and endpoints that stay is kept.
    fn reconcile(&mut self, snapshot: &Arc<Snapshot>, now: Duration, figures: &Resilience) {
        self.snapshot = snapshot.clone();
        let mut before = std::mem::take(&mut self.watched);
        for cluster in snapshot.clusters.values().filter(|cluster| cluster.is_judged()) {
            let watched = before.remove(&cluster.state.id);
            let mut watched = watched.unwrap_or_else(|| Watched::new(cluster.clone()));
            watched.reconcile(cluster, now, figures);
            self.watched.insert(cluster.state.id, watched);
        }
        for gone in before.into_values() {
            figures.forget_cluster(&gone.cluster.name);
        }
    }
}

impl Watched {
    fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, detector: None, circuit: None, rejected: 0, restless: true }
    }

    fn reconcile(&mut self, cluster: &Arc<Cluster>, now: Duration, figures: &Resilience) {
        let first = self.detector.is_none() && self.circuit.is_none();
        if Arc::ptr_eq(&self.cluster, cluster) && !first {
            return;
        }
        self.cluster = cluster.clone();
        self.reconcile_detector(now, figures);
        self.reconcile_circuit(now, figures);
        self.restless = true;
    }

    fn reconcile_detector(&mut self, now: Duration, figures: &Resilience) {
        let detection = &self.cluster.settings.outlier_detection;
        if !detection.enabled {
            if self.detector.take().is_some() {
                figures.endpoints_ejected.with_label_values(&[&*self.cluster.name]).set(0);
            }
            for endpoint in self.cluster.endpoints.iter() {
                endpoint.vitals.decide(Factor::FULL, None);
            }
            return;
        }
        let settings = outlier_settings(detection);
        let detector = self.detector.get_or_insert_with(|| Detector::new(settings));
        detector.reconfigure(settings);
        detector.reconcile(now, self.cluster.endpoints.iter().map(|endpoint| endpoint.vitals.id));
    }

    fn reconcile_circuit(&mut self, now: Duration, figures: &Resilience) {
        let state = &self.cluster.state;
        if !self.cluster.settings.circuit.is_on() {
            if let Some(circuit) = self.circuit.take() {
                circuit.retire();
                state.circuit.store(None);
                figures.forget_circuit(&self.cluster.name);
            }
            return;
        }
        let settings = circuit_settings(&self.cluster.settings.circuit);
        let circuit =
            self.circuit.get_or_insert_with(|| Circuit::at(state.gate.clone(), settings, now));
        circuit.reconfigure(settings);
        state.circuit.store(Some(Arc::new(circuit.state())));
        figures.circuit_state.with_label_values(&[&*self.cluster.name]).set(level(circuit));
    }

    fn sample(
        &mut self,
        now: Duration,
        reports: Option<&FxHashMap<u64, Report>>,
        figures: &Resilience,
    ) {
        let total = self.take_in(now, reports);
        self.judge_cluster(now, &total, figures);
        self.judge_endpoints(now, figures);
        let unsettled = |endpoint: &Arc<Endpoint>| endpoint.vitals.factor() != Factor::FULL;
        let closed = matches!(
            self.circuit.as_ref().map(Circuit::state),
            None | Some(circuit::State::Closed { .. })
        );
        let ejected = self.detector.as_ref().is_some_and(|detector| detector.ejected() > 0);
        self.restless = ejected || !closed || self.cluster.endpoints.iter().any(unsettled);
    }

    /// Gives the results of every endpoint to the detector. Returns all of them together.
    fn take_in(&mut self, now: Duration, reports: Option<&FxHashMap<u64, Report>>) -> Batch {
        let mut total = Batch::default();
        let Some(reports) = reports else { return total };
        for endpoint in self.cluster.endpoints.iter() {
            let vitals = &endpoint.vitals;
            let Some(report) = reports.get(&vitals.id) else { continue };
            vitals.measured(report.latency);
            // Often enough that its counters do not run over unnoticed.
            vitals.totals();
            total.merge(&report.batch);
            if let Some(detector) = &mut self.detector {
                detector.push(vitals.id, now, &report.batch, report.run);
            }
        }
        total
    }

    fn judge_cluster(&mut self, now: Duration, total: &Batch, figures: &Resilience) {
        let Some(circuit) = &mut self.circuit else { return };
        let (name, state) = (&self.cluster.name, &self.cluster.state);
        let ticked = circuit.tick(now);
        let pushed = (total.total() > 0).then(|| circuit.push(now, total)).flatten();
        for transition in ticked.iter().chain(&pushed) {
            tracing::warn!("breaker of {name}: {transition}");
        }
        state.circuit.store(Some(Arc::new(circuit.state())));
        if ticked.is_some() || pushed.is_some() {
            figures.circuit_state.with_label_values(&[&**name]).set(level(circuit));
        }
        let rejected = state.gate.rejected();
        if rejected > self.rejected {
            let counter = figures.circuit_rejected.with_label_values(&[&**name]);
            counter.inc_by(rejected - self.rejected);
            self.rejected = rejected;
        }
    }

    fn judge_endpoints(&mut self, now: Duration, figures: &Resilience) {
        let Some(detector) = &mut self.detector else { return };
        let changes = detector.evaluate(now);
        for endpoint in self.cluster.endpoints.iter() {
            let id = endpoint.vitals.id;
            endpoint.vitals.decide(detector.factor(id), detector.ejection(id));
        }
        if changes.is_empty() {
            return;
        }
        let ejected = i64::try_from(detector.ejected()).unwrap_or(i64::MAX);
        figures.endpoints_ejected.with_label_values(&[&*self.cluster.name]).set(ejected);
        for change in changes {
            self.tell(change, now, figures);
        }
    }

    fn tell(&self, change: Change, now: Duration, figures: &Resilience) {
        let name = &*self.cluster.name;
        let of = |id: u64| {
            let found = self.cluster.endpoints.iter().find(|endpoint| endpoint.vitals.id == id);
            found.map_or_else(String::new, |found| {
                format!("{} ({})", found.workload(), found.address)
            })
        };
        match change {
            Change::Ejected { endpoint, until, times, cause } => {
                let (endpoint, time) = (of(endpoint), Span(until.saturating_sub(now)));
                tracing::warn!(times, "{name}: {endpoint} is ejected for {time}: {cause}");
                figures.ejections.with_label_values(&[name, label(&cause)]).inc();
            }
            Change::Returned { endpoint, early } => {
                let why = if early { ", as too many were ejected" } else { "" };
                tracing::info!("{name}: {} is back{why}", of(endpoint));
            }
            Change::Panic => {
                tracing::warn!("{name}: too few endpoints are available: ejections are ignored");
            }
            Change::Calm => tracing::info!("{name}: enough endpoints are available again"),
        }
    }
}

/// 0 closed, 1 half-open, 2 open.
fn level(circuit: &Circuit) -> i64 {
    match circuit.state() {
        circuit::State::Closed { .. } => 0,
        circuit::State::HalfOpen { .. } => 1,
        circuit::State::Open { .. } => 2,
    }
}

/// In metrics.
fn label(cause: &Cause) -> &'static str {
    let [errors, gateway, local, success_rate, latency] = EJECTION_CAUSES;
    match cause {
        Cause::Consecutive { kind: Streaks::Errors, .. } => errors,
        Cause::Consecutive { kind: Streaks::Gateway, .. } => gateway,
        Cause::Consecutive { kind: Streaks::Local, .. } => local,
        Cause::SuccessRate { .. } => success_rate,
        Cause::Latency { .. } => latency,
    }
}

fn outlier_settings(detection: &OutlierDetection) -> outlier::Settings {
    let rate = |rate: traffic_policy::SuccessRate| outlier::settings::SuccessRate {
        minimum_hosts: rate.minimum_hosts as usize,
        minimum_volume: rate.minimum_requests.into(),
        factor: rate.standard_deviations,
        ..outlier::settings::SuccessRate::default()
    };
    let latency = |latency: traffic_policy::LatencyOutlier| outlier::settings::Latency {
        minimum_hosts: latency.minimum_hosts as usize,
        minimum_volume: latency.minimum_requests.into(),
        factor: latency.factor,
        ..outlier::settings::Latency::default()
    };
    outlier::Settings {
        consecutive_errors: detection.consecutive_5xx,
        consecutive_gateway: detection.consecutive_gateway_errors,
        consecutive_local: detection.consecutive_local_errors,
        success_rate: detection.success_rate.map(rate),
        latency: detection.latency.map(latency),
        window: detection.interval,
        base_ejection: detection.base_ejection,
        max_ejection: detection.max_ejection,
        max_ejected_percent: detection.max_ejected_percent,
        panic_percent: detection.panic_percent,
        ..outlier::Settings::default()
    }
}

fn circuit_settings(circuit: &traffic_policy::Circuit) -> circuit::Settings {
    let slow = |slow: traffic_policy::SlowCalls| circuit::Slow {
        threshold: slow.threshold,
        percent: slow.percent,
    };
    circuit::Settings {
        window: circuit.window,
        minimum: circuit.minimum.into(),
        error_percent: circuit.error_percent.unwrap_or(circuit::NEVER),
        slow: circuit.slow_calls.map(slow),
        open_for: circuit.open_for,
        open_max: circuit.max_open_for,
        probes: circuit.probes,
    }
}

#[cfg(test)]
mod tests;

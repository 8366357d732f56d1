//! One cluster under watch: its detector, its breakers and its health checks.

use std::{sync::Arc, time::Duration};

use rustc_hash::FxHashMap;

use super::{
    checker::Asked,
    policies::{circuit_settings, outlier_settings},
};
use crate::{
    cluster::{
        Cluster, Endpoint,
        circuit::{self, Circuit},
        health::Checks,
        outlier::{Cause, Change, Detector, Factor, Streaks},
        probe::Failure,
        window::{Batch, Span},
    },
    forward::observed::Report,
    telemetry::metrics::resilience::{EJECTION_CAUSES, HEALTH_RESULTS, Resilience},
};

#[derive(Debug)]
pub(super) struct Watched {
    cluster: Arc<Cluster>,
    /// Decides what each endpoint gets, from ejections, health checks and slow start.
    detector: Detector,
    /// Whether outlier detection is on.
    detects: bool,
    /// `None` where there is no error-rate and slow-call breaker of the service as a whole.
    circuit: Option<Circuit>,
    /// Where each endpoint has one of its own: of those that were heard of.
    circuits: FxHashMap<u64, Circuit>,
    /// `None` where nobody is asked.
    checks: Option<Checks>,
    /// Rejections that were counted already.
    rejected: u64,
    /// Whether something is due without any result: an ejection, a ramp, a breaker that is not closed.
    restless: bool,
}

impl Watched {
    pub(super) fn new(cluster: Arc<Cluster>, now: Duration, figures: &Resilience) -> Self {
        let mut watched = Self {
            detector: Detector::new(outlier_settings(&cluster.settings)),
            detects: cluster.settings.outlier_detection.enabled,
            cluster: cluster.clone(),
            circuit: None,
            circuits: FxHashMap::default(),
            checks: None,
            rejected: 0,
            restless: true,
        };
        watched.take_over(now, figures);
        watched
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(super) fn is_restless(&self) -> bool {
        self.restless
    }

    /// Takes a new configuration of the cluster over.
    pub(super) fn reconcile(
        &mut self,
        cluster: &Arc<Cluster>,
        now: Duration,
        figures: &Resilience,
    ) {
        if !Arc::ptr_eq(&self.cluster, cluster) {
            self.cluster = cluster.clone();
            self.take_over(now, figures);
        }
    }

    fn take_over(&mut self, now: Duration, figures: &Resilience) {
        self.take_over_checks(now, figures);
        self.take_over_detector(now, figures);
        self.take_over_circuit(now, figures);
        self.take_over_circuits(figures);
        self.decide();
        self.restless = true;
    }

    fn take_over_detector(&mut self, now: Duration, figures: &Resilience) {
        let settings = outlier_settings(&self.cluster.settings);
        let detects = self.cluster.settings.outlier_detection.enabled;
        if std::mem::replace(&mut self.detects, detects) && !detects {
            // Who is ejected comes back at once.
            self.detector = Detector::new(settings);
            figures.endpoints_ejected.with_label_values(&[&*self.cluster.name]).set(0);
        }
        self.detector.reconfigure(settings);
        self.detector.reconcile(now, ids(&self.cluster));
        for id in ids(&self.cluster) {
            let state = self.checks.as_ref().and_then(|checks| checks.state(id));
            self.detector.checked(id, now, state.is_none_or(|state| state.healthy));
        }
    }

    fn take_over_checks(&mut self, now: Duration, figures: &Resilience) {
        let Some(policy) = &self.cluster.settings.health_check else {
            if self.checks.take().is_some() {
                figures.forget_checks(&self.cluster.name);
                self.cluster.endpoints.iter().for_each(|endpoint| endpoint.vitals().check(None));
            }
            return;
        };
        let checks = self.checks.get_or_insert_with(|| Checks::new(policy.clone()));
        checks.reconfigure(now, policy);
        checks.reconcile(now, ids(&self.cluster), &mut rand::random);
        self.show_checks(figures);
    }

    fn take_over_circuit(&mut self, now: Duration, figures: &Resilience) {
        let state = &self.cluster.state;
        let settings = &self.cluster.settings.circuit;
        if !settings.is_on() || self.cluster.has_breakers() {
            if let Some(circuit) = self.circuit.take() {
                circuit.retire();
                state.circuit.store(None);
                figures.forget_circuit(&self.cluster.name);
            }
            return;
        }
        let settings = circuit_settings(settings);
        let circuit =
            self.circuit.get_or_insert_with(|| Circuit::at(state.gate.clone(), settings, now));
        circuit.reconfigure(settings);
        state.circuit.store(Some(Arc::new(circuit.state())));
        figures.circuit_state.with_label_values(&[&*self.cluster.name]).set(level(circuit));
    }

    fn take_over_circuits(&mut self, figures: &Resilience) {
        if self.circuits.is_empty() {
            return;
        }
        let mut before = std::mem::take(&mut self.circuits);
        for endpoint in self.cluster.endpoints.iter() {
            let vitals = endpoint.vitals();
            let Some(mut circuit) = before.remove(&vitals.id) else { continue };
            let breaker = vitals.breaker_or_new();
            if !self.cluster.has_breakers() {
                circuit.retire();
                breaker.state.store(None);
                continue;
            }
            circuit.reconfigure(circuit_settings(&self.cluster.settings.circuit));
            breaker.state.store(Some(Arc::new(circuit.state())));
            self.circuits.insert(vitals.id, circuit);
        }
        match self.cluster.has_breakers() {
            true => self.count_open(figures),
            false => figures.forget_circuit(&self.cluster.name),
        }
    }

    pub(super) fn sample(
        &mut self,
        now: Duration,
        reports: Option<&FxHashMap<u64, Report>>,
        figures: &Resilience,
    ) {
        let total = self.take_in(now, reports);
        self.judge_cluster(now, &total, figures);
        self.judge_each(now, reports, figures);
        self.count_rejected(figures);
        self.judge_endpoints(now, figures);
        let unsettled = |endpoint: &Arc<Endpoint>| endpoint.factor() != Factor::FULL;
        let is_closed =
            |circuit: &Circuit| matches!(circuit.state(), circuit::State::Closed { .. });
        let closed = self.circuit.iter().chain(self.circuits.values()).all(is_closed);
        self.restless =
            self.detector.ejected() > 0 || !closed || self.cluster.endpoints.iter().any(unsettled);
    }

    /// Gives the results of every endpoint to the detector. Returns all of them together.
    fn take_in(&mut self, now: Duration, reports: Option<&FxHashMap<u64, Report>>) -> Batch {
        let mut total = Batch::default();
        let Some(reports) = reports else { return total };
        for endpoint in self.cluster.endpoints.iter() {
            let vitals = endpoint.vitals();
            let Some(report) = reports.get(&vitals.id) else { continue };
            vitals.measured(report.latency);
            // Often enough that its counters do not run over unnoticed.
            vitals.totals();
            total.merge(&report.batch);
            self.detector.push(vitals.id, now, &report.batch, report.run);
        }
        total
    }

    fn judge_cluster(&mut self, now: Duration, total: &Batch, figures: &Resilience) {
        let Some(circuit) = &mut self.circuit else { return };
        let (name, state) = (&self.cluster.name, &self.cluster.state);
        let tell = |told| state.circuit.store(Some(Arc::new(told)));
        let ticked = circuit.tick(now, tell);
        let pushed = (total.total() > 0).then(|| circuit.push(now, total, tell)).flatten();
        for transition in ticked.iter().chain(&pushed) {
            tracing::warn!("breaker of {name}: {transition}");
        }
        state.circuit.store(Some(Arc::new(circuit.state())));
        if ticked.is_some() || pushed.is_some() {
            figures.circuit_state.with_label_values(&[&**name]).set(level(circuit));
        }
    }

    /// The breakers of single endpoints; one is made when something is heard of an endpoint for the first time.
    fn judge_each(
        &mut self,
        now: Duration,
        reports: Option<&FxHashMap<u64, Report>>,
        figures: &Resilience,
    ) {
        if !self.cluster.has_breakers() {
            return;
        }
        let settings = circuit_settings(&self.cluster.settings.circuit);
        let mut changed = false;
        for endpoint in self.cluster.endpoints.iter() {
            let vitals = endpoint.vitals();
            let report = reports.and_then(|reports| reports.get(&vitals.id));
            if report.is_none() && !self.circuits.contains_key(&vitals.id) {
                continue;
            }
            let breaker = vitals.breaker_or_new();
            let circuit = self
                .circuits
                .entry(vitals.id)
                .or_insert_with(|| Circuit::at(breaker.gate.clone(), settings, now));
            let tell = |told| breaker.state.store(Some(Arc::new(told)));
            let ticked = circuit.tick(now, tell);
            let pushed = report.and_then(|report| circuit.push(now, &report.batch, tell));
            for transition in ticked.iter().chain(&pushed) {
                let (name, workload) = (&self.cluster.name, endpoint.workload());
                tracing::warn!(
                    "breaker of {name}: {workload} ({}): {transition}",
                    endpoint.address()
                );
            }
            breaker.state.store(Some(Arc::new(circuit.state())));
            changed |= ticked.is_some() || pushed.is_some();
        }
        if changed {
            self.count_open(figures);
        }
    }

    fn count_open(&self, figures: &Resilience) {
        let closed = |circuit: &&Circuit| matches!(circuit.state(), circuit::State::Closed { .. });
        let open = self.circuits.values().filter(|circuit| !closed(circuit)).count();
        let gauge = figures.endpoint_circuits_open.with_label_values(&[&*self.cluster.name]);
        gauge.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    fn count_rejected(&mut self, figures: &Resilience) {
        let rejected = self.cluster.state.gate.rejected();
        if rejected > self.rejected {
            let counter = figures.circuit_rejected.with_label_values(&[&*self.cluster.name]);
            counter.inc_by(rejected - self.rejected);
            self.rejected = rejected;
        }
    }

    fn judge_endpoints(&mut self, now: Duration, figures: &Resilience) {
        let changes = self.detector.evaluate(now);
        self.decide();
        if changes.is_empty() {
            return;
        }
        if self.detects {
            let ejected = i64::try_from(self.detector.ejected()).unwrap_or(i64::MAX);
            figures.endpoints_ejected.with_label_values(&[&*self.cluster.name]).set(ejected);
        }
        for change in changes {
            self.tell(change, now, figures);
        }
    }

    /// Lets the workers know what each endpoint gets.
    fn decide(&self) {
        for endpoint in self.cluster.endpoints.iter() {
            let vitals = endpoint.vitals();
            vitals.decide(self.detector.factor(vitals.id), self.detector.ejection(vitals.id));
        }
        self.cluster.endpoints.reweigh();
    }

    /// Health checks to be made now.
    pub(super) fn ask(&mut self, now: Duration) -> Vec<Asked> {
        let Some(checks) = &mut self.checks else { return Vec::new() };
        let due = checks.due(now);
        let Some(check) = self.cluster.settings.health_check.as_ref().filter(|_| !due.is_empty())
        else {
            return Vec::new();
        };
        let due = |endpoint: &&Arc<Endpoint>| due.contains(&endpoint.vitals().id);
        let asked = |endpoint: &Arc<Endpoint>| Asked {
            cluster: self.cluster.clone(),
            endpoint: endpoint.clone(),
            check: check.clone(),
        };
        self.cluster.endpoints.iter().filter(due).map(asked).collect()
    }

    /// Takes in how a health check ended. An answer that comes when nobody asks any more counts nothing.
    pub(super) fn answered(
        &mut self,
        now: Duration,
        id: u64,
        answer: Result<(), Failure>,
        figures: &Resilience,
    ) {
        let Some(checks) = &mut self.checks else { return };
        let [success, failure, unasked] = HEALTH_RESULTS;
        let result = match answer {
            Ok(()) => success,
            Err(Failure::Unwell(_)) => failure,
            Err(Failure::Unasked(_)) => unasked,
        };
        figures.health_checks.with_label_values(&[&*self.cluster.name, result]).inc();
        let change = checks.answered(id, now, answer, &mut rand::random);
        let found = self.cluster.endpoints.iter().find(|endpoint| endpoint.vitals().id == id);
        if let Some(endpoint) = found {
            endpoint.vitals().check(checks.state(id).cloned());
        }
        if let Some((change, endpoint)) = change.zip(found) {
            let (name, workload) = (&self.cluster.name, endpoint.workload());
            tracing::warn!("{name}: {workload} ({}) {change}", endpoint.address());
            let healthy = checks.state(id).is_none_or(|state| state.healthy);
            self.detector.checked(id, now, healthy);
            self.show_checks(figures);
            self.restless = true;
        }
    }

    fn show_checks(&self, figures: &Resilience) {
        let unhealthy = self.checks.as_ref().map_or(0, Checks::unhealthy);
        let gauge = figures.endpoints_unhealthy.with_label_values(&[&*self.cluster.name]);
        gauge.set(i64::try_from(unhealthy).unwrap_or(i64::MAX));
    }

    fn tell(&self, change: Change, now: Duration, figures: &Resilience) {
        let name = &*self.cluster.name;
        let of = |id: u64| {
            let found = self.cluster.endpoints.iter().find(|endpoint| endpoint.vitals().id == id);
            found.map_or_else(String::new, |found| {
                format!("{} ({})", found.workload(), found.address())
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

fn ids(cluster: &Cluster) -> impl Iterator<Item = u64> + '_ {
    cluster.endpoints.iter().map(|endpoint| endpoint.vitals().id)
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

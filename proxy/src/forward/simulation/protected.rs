//! The real machines, glued as the data path glues them: what a worker sees stays with it, results go to the side
//! thread every 100 ms, and what that decides comes back as a share per endpoint and one gate.

use std::{sync::Arc, time::Duration};

use super::{
    caller::{Caller, End, Request},
    random::Random,
};
use crate::{
    cluster::{
        balance::draw::Draw,
        circuit::{
            self, Circuit,
            gate::{Admit, Gate},
        },
        ewma::{self, Latencies, Load},
        outlier::{
            self, Detector, Factor,
            streak::{Run, Streak},
        },
        tally::{Tally, Verdict},
        window::{Batch, Kind},
    },
    forward::{
        budget::{self, Budget},
        retry::{self, Again, Failure, Policy, RequestFacts},
    },
};

/// Threads of the proxy: each sees a part only.
const WORKERS: usize = 2;

/// What a user asks for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is tried again.
    pub retry: Policy,
    /// How much of it.
    pub budget: budget::Settings,
    /// Who gets nothing for a while.
    pub outlier: outlier::Settings,
    /// When all are left alone for a while.
    pub circuit: Option<circuit::Settings>,
}

/// A proxy with all of it.
#[derive(Debug)]
pub struct Protected {
    settings: Settings,
    draw: Draw,
    tallies: Vec<Tally>,
    /// What was decided, by place.
    factors: Vec<Factor>,
    workers: Vec<Worker>,
    detector: Detector,
    gate: Arc<Gate>,
    circuit: Option<Circuit>,
}

#[derive(Debug)]
struct Worker {
    latencies: Latencies,
    cells: Vec<(Streak, Batch)>,
    budget: Budget,
    active: u32,
}

impl Protected {
    /// With endpoints of these weights.
    pub fn new(settings: Settings, weights: &[u32]) -> Self {
        let worker = |_| Worker {
            latencies: Latencies::default(),
            cells: Vec::new(),
            budget: Budget::new(settings.budget, WORKERS as u32),
            active: 0,
        };
        let gate = Arc::<Gate>::default();
        let mut protected = Self {
            draw: Draw::new(weights),
            tallies: Vec::new(),
            factors: Vec::new(),
            workers: (0..WORKERS).map(worker).collect(),
            detector: Detector::new(settings.outlier),
            circuit: settings.circuit.map(|it| Circuit::at(gate.clone(), it, Duration::ZERO)),
            gate,
            settings,
        };
        protected.weigh(weights, Duration::ZERO);
        protected
    }

    /// Takes other weights over, and with them other endpoints.
    pub fn weigh(&mut self, weights: &[u32], now: Duration) {
        let ids = || 0..weights.len() as u64;
        self.draw = Draw::new(weights);
        self.tallies.resize_with(weights.len(), Tally::default);
        for worker in &mut self.workers {
            worker.latencies.reconcile(ids());
            worker.cells.resize(weights.len(), Default::default());
        }
        self.detector.reconcile(now, ids());
        self.decide();
    }

    /// What each endpoint gets.
    pub fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// Attempts that have begun and not ended.
    pub fn under_way(&self) -> u32 {
        self.tallies.iter().map(Tally::active).sum()
    }

    fn decide(&mut self) {
        self.factors = (0..self.tallies.len() as u64).map(|id| self.detector.factor(id)).collect();
    }

    fn pick_among(&self, worker: usize, tried: &[usize], random: &mut Random) -> Option<usize> {
        let load = |place: usize| Load {
            latency: self.workers[worker].latencies.at(place),
            active: self.tallies[place].active(),
            factor: if tried.contains(&place) { Factor::NONE } else { self.factors[place] },
        };
        ewma::pick(&self.draw, load, &mut || random.bits())
    }
}

impl Caller for Protected {
    fn admit(&mut self, request: &mut Request, now: Duration) -> bool {
        match self.gate.admit(now) {
            Admit::Pass => {}
            Admit::Probe(probe) => request.probe = Some(probe),
            Admit::Reject { .. } => return false,
        }
        let worker = &mut self.workers[request.worker];
        worker.active += 1;
        worker.budget.deposit(now);
        true
    }

    fn pick(&mut self, request: &Request, random: &mut Random) -> Option<usize> {
        let place = self
            .pick_among(request.worker, &request.tried, random)
            .or_else(|| self.pick_among(request.worker, &[], random))?;
        self.tallies[place].begin().then_some(place)
    }

    fn attempt_limit(&self, remaining: Duration) -> Duration {
        self.settings.retry.attempt_limit(Some(remaining)).unwrap_or(remaining)
    }

    fn ended(&mut self, request: &Request, place: usize, begun: Duration, now: Duration, end: End) {
        self.tallies[place].end(end.verdict());
        let worker = &mut self.workers[request.worker];
        if request.granted {
            worker.budget.end();
        }
        let latency = now.saturating_sub(begun);
        let kind = end.kind();
        worker.latencies.observe(place, place as u64, now, latency, kind != Kind::Success);
        let Some((streak, batch)) = worker.cells.get_mut(place) else { return };
        streak.record(now, kind);
        let timed = end.is_timed().then_some(latency);
        let slow = self.settings.circuit.and_then(|circuit| circuit.slow);
        let slow = slow.is_some_and(|slow| latency > slow.threshold);
        batch.merge(&Batch::one(kind, timed, slow));
    }

    fn again(
        &mut self,
        request: &mut Request,
        now: Duration,
        end: End,
        random: &mut Random,
    ) -> Option<Duration> {
        let facts = RequestFacts {
            idempotent: true,
            keyed: false,
            replayable: true,
            remaining: Some(request.deadline.saturating_sub(now)),
        };
        let (policy, failure) = (&self.settings.retry, end.failure()?);
        let Again::After(wait) =
            retry::decide(policy, &failure, &facts, request.attempts(), random.bits())
        else {
            return None;
        };
        let worker = &mut self.workers[request.worker];
        // Nobody has worked for what could not connect.
        request.granted = failure != Failure::Connect;
        let granted = !request.granted || worker.budget.withdraw(now, worker.active);
        granted.then_some(wait)
    }

    fn over(&mut self, request: &mut Request, _: Duration, end: Option<End>) {
        self.workers[request.worker].active -= 1;
        if let Some(probe) = request.probe.take() {
            self.gate.finish(probe, end.map_or(Verdict::Neither, End::verdict), false);
        }
    }

    fn endpoints(&mut self, count: usize, now: Duration) {
        self.weigh(&vec![1; count], now);
    }

    fn sample(&mut self, now: Duration) {
        let mut total = Batch::default();
        for place in 0..self.tallies.len() {
            let (mut batch, mut run) = (Batch::default(), Run::default());
            for worker in &mut self.workers {
                let (streak, seen) = &mut worker.cells[place];
                batch.merge(&std::mem::take(seen));
                run = run.max(streak.take());
            }
            if batch.total() > 0 {
                self.detector.push(place as u64, now, &batch, run);
                total.merge(&batch);
            }
        }
        for worker in &mut self.workers {
            worker.latencies.settle(now);
        }
        if let Some(circuit) = &mut self.circuit {
            circuit.tick(now, drop);
            if total.total() > 0 {
                circuit.push(now, &total, drop);
            }
        }
        self.detector.evaluate(now);
        self.decide();
    }
}

//! The live object for a service port: its endpoints, which one is next, connections to them, and how many
//! may be in use.

pub mod admission;
pub mod balance;
pub mod breaker;
pub mod circuit;
pub mod connect;
pub mod dialled;
pub mod endpoint;
pub mod endpoints;
pub mod ewma;
pub mod health;
pub mod outlier;
pub mod pool;
pub mod probe;
pub mod tally;
pub mod vitals;
pub mod window;

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use leno_api::model::{
    ObjectName,
    service::Protocol,
    traffic_policy::{Per, Settings},
};

use crate::telemetry::scope::{Callers, Scope};
use admission::Admission;
use breaker::Limits;
use circuit::gate::{Admit, Gate, Probe};
pub use endpoint::{Calling, Endpoint, Security, Unproven};
use endpoints::{Endpoints, Wish};
use tally::Verdict;

/// What identifies a cluster: `shop/orders:80`, or `inbound:9001` for the application beside us.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterKey {
    /// A port of a service.
    Service(ObjectName, u16),
    /// A port of the application, as the instance of a service.
    Application(ObjectName, SocketAddr),
    /// Where a connection was going before it was led here, and nobody knows what that is.
    Passthrough(SocketAddr),
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, port) => write!(f, "{name}:{port}"),
            Self::Application(_, address) => write!(f, "inbound:{}", address.port()),
            // Not where: names are also labels of metrics.
            Self::Passthrough(_) => f.write_str("passthrough"),
        }
    }
}

/// A service port with its endpoints, as compiled. Counters and limits outlive a recompilation.
#[derive(Debug)]
pub struct Cluster {
    /// Which one.
    pub key: ClusterKey,
    /// `shop/orders:80`, for logs.
    pub name: Arc<str>,
    /// How its service port is named to the next sidecar; `None` for the own application.
    pub destination: Option<HeaderValue>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// The policy in force.
    pub settings: Arc<Settings>,
    /// In a stable order.
    pub endpoints: Endpoints,
    /// For requests that reached no endpoint.
    pub scope: Arc<Scope>,
    /// What carries over from one configuration to the next.
    pub state: Arc<State>,
}

/// Counters of a cluster, shared by all workers and all generations of the configuration.
#[derive(Debug)]
pub struct State {
    /// Unique in this process.
    pub id: u64,
    /// Next place of round robin.
    turn: AtomicU64,
    /// Connections, pending and exchanges in use.
    pub limits: Limits,
    /// Of the own application: whom its callers are counted for.
    pub callers: Callers,
    /// Whether the error-rate and slow-call breaker lets requests through; open for all where there is none.
    pub gate: Arc<Gate>,
    /// Where the error-rate and slow-call breaker is, for people; `None` where there is none.
    pub circuit: ArcSwapOption<circuit::State>,
    /// Of the own application: how many requests it is given at once.
    pub admission: Admission,
}

impl Default for State {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            turn: AtomicU64::default(),
            limits: Limits::default(),
            callers: Callers::default(),
            gate: Arc::default(),
            circuit: ArcSwapOption::empty(),
            admission: Admission::default(),
        }
    }
}

/// Why an exchange may not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many as may be are under way.
    Full,
    /// The error-rate and slow-call breaker is not closed.
    Open {
        /// After which time another request may pass.
        retry_after: Duration,
    },
}

impl Cluster {
    /// Whether attempts are judged. Of the own application there is one instance: whatever it does, it is asked.
    pub fn is_judged(&self) -> bool {
        matches!(self.key, ClusterKey::Service(..))
    }

    /// Whether each endpoint has a breaker of its own.
    pub fn has_breakers(&self) -> bool {
        self.settings.circuit.per == Per::Endpoint && self.settings.circuit.is_on()
    }

    /// The place of the endpoint for the next attempt, not one of `tried` unless there is no other. `hash` is that of
    /// the request, for balancers that go by it; `latency` is what the endpoint at a place is expected to take.
    pub fn pick(
        &self,
        tried: &[u64],
        hash: Option<u64>,
        latency: impl Fn(usize) -> f64,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        let wish = Wish {
            balancer: &self.settings.balancer,
            tried,
            hash,
            bound: f64::from(self.settings.bounded_load.percent) / 100.0,
            under_way: &|| self.state.limits.exchanges().into(),
            breakers: self.has_breakers(),
        };
        self.endpoints.pick(&wish, latency, &self.state.turn, random)
    }

    /// Begins an exchange, unless as many are under way as the breaker allows, or it is open.
    ///
    /// # Errors
    /// The cluster itself, and why not.
    pub fn admit(
        self: Arc<Self>,
        now: impl FnOnce() -> Duration,
    ) -> Result<Admitted, (Arc<Self>, Refusal)> {
        if !self.state.limits.enter(self.settings.max_exchanges) {
            return Err((self, Refusal::Full));
        }
        match Pass::through(&self.state.gate, now) {
            Ok(pass) => Ok(Admitted { cluster: self, pass }),
            Err(retry_after) => {
                self.state.limits.leave();
                Err((self, Refusal::Open { retry_after }))
            }
        }
    }

    /// Passes the error-rate and slow-call breaker.
    ///
    /// # Errors
    /// When it is not closed: after which time another request may pass.
    pub fn pass(&self, now: Duration) -> Result<Pass, Duration> {
        Pass::through(&self.state.gate, || now)
    }

    /// Takes the endpoint at `place` for one attempt, which began at `begun`.
    ///
    /// # Errors
    /// When it has as many under way as can be counted, or its own breaker is not closed.
    pub fn lease(
        &self,
        place: usize,
        begun: Instant,
        now: impl FnOnce() -> Duration,
    ) -> Result<Lease, Unleased> {
        let endpoint = self.endpoints.get(place).ok_or(Unleased::Full)?.clone();
        let breaker = endpoint.vitals().breaker().filter(|_| self.has_breakers());
        let pass = match breaker {
            Some(breaker) => Pass::through(&breaker.gate, now).map_err(|_| Unleased::Open)?,
            None => Pass::default(),
        };
        match endpoint.vitals().tally.begin() {
            true => Ok(Lease {
                endpoint,
                place,
                seen: Cell::default(),
                begun,
                verdict: Cell::new(Verdict::Neither),
                pass,
            }),
            false => Err(Unleased::Full),
        }
    }

    /// Whether there are as many connections as there may be: then requests wait for one of their own.
    pub fn is_at_connection_limit(&self) -> bool {
        let connections = self.state.limits.in_use(breaker::Resource::Connections);
        connections >= self.settings.max_connections
    }

    /// Whether the breaker counts such an answer as slow.
    pub fn is_slow(&self, latency: Duration) -> bool {
        self.settings.circuit.slow_calls.is_some_and(|slow| latency > slow.threshold)
    }
}

/// A cluster with one exchange under way, counted until dropped.
#[derive(Debug)]
pub struct Admitted {
    cluster: Arc<Cluster>,
    pass: Pass,
}

impl Admitted {
    /// How it got past the breaker.
    pub fn pass(&self) -> &Pass {
        &self.pass
    }

    /// The cluster itself.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Passes the error-rate and slow-call breaker for another attempt. An exchange that is a probe remains one.
    ///
    /// # Errors
    /// When the breaker is not closed any more: after which time another request may pass.
    pub fn pass_again(&self, now: Duration) -> Result<(), Duration> {
        if !self.pass.is_probe() {
            self.pass.probe.swap(&self.cluster.pass(now)?.probe);
        }
        Ok(())
    }
}

impl std::ops::Deref for Admitted {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.cluster.state.limits.leave();
    }
}

/// Why an endpoint that was picked cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unleased {
    /// As many attempts as can be counted are under way.
    Full,
    /// Its breaker opened, or ran out of probes, in between.
    Open,
}

/// A way past the error-rate and slow-call breaker; a probe of a half-open one is given back when dropped.
#[derive(Debug, Default)]
pub struct Pass {
    probe: RefCell<Option<(Arc<Gate>, Probe)>>,
}

impl Pass {
    /// Whether the breaker waits for how it ends.
    pub fn is_probe(&self) -> bool {
        self.probe.borrow().is_some()
    }

    /// The time is asked for only where the gate is not closed.
    fn through(gate: &Arc<Gate>, now: impl FnOnce() -> Duration) -> Result<Self, Duration> {
        if gate.is_closed() {
            return Ok(Self::default());
        }
        match gate.admit(now()) {
            Admit::Pass => Ok(Self::default()),
            Admit::Probe(probe) => Ok(Self { probe: RefCell::new(Some((gate.clone(), probe))) }),
            Admit::Reject { retry_after } => Err(retry_after),
        }
    }

    /// Tells the breaker how it ended.
    pub fn settle(&self, verdict: Verdict, slow: bool) {
        if let Some((gate, probe)) = self.probe.take() {
            gate.finish(probe, verdict, slow);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.settle(Verdict::Neither, false);
    }
}

/// A picked endpoint, counted as busy until dropped.
#[derive(Debug)]
pub struct Lease {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Where it was when it was picked.
    pub place: usize,
    /// Where the worker that has it keeps what it has seen of the cluster.
    pub seen: Cell<usize>,
    /// When the attempt began.
    pub begun: Instant,
    verdict: Cell<Verdict>,
    /// The way past the endpoint's own breaker.
    pass: Pass,
}

impl Lease {
    /// Tells the endpoint's own breaker, where this was one of its probes.
    pub fn settle(&self, verdict: Verdict, slow: bool) {
        self.pass.settle(verdict, slow);
    }

    /// How the attempt went; nobody can tell unless this is called.
    pub fn judge(&self, verdict: Verdict) {
        self.verdict.set(verdict);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.vitals().tally.end(self.verdict.get());
    }
}

//! The live object for a service port: its endpoints, which one is next, connections to them, and how many
//! may be in use.

pub mod admission;
pub mod balance;
pub mod breaker;
pub mod circuit;
pub mod connect;
pub mod endpoints;
pub mod ewma;
pub mod outlier;
pub mod pool;
pub mod tally;
pub mod vitals;
pub mod window;

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use leno_api::model::{
    ObjectName, service::Protocol, traffic_policy::Settings, workload::Workload,
};

use crate::{
    telemetry::scope::{Callers, Party, Proven, Scope, ScopeLabels},
    tls::client::Target,
};
use admission::Admission;
use balance::Candidate;
use breaker::Limits;
use circuit::gate::{Admit, Gate, Probe};
use endpoints::Endpoints;
use tally::Verdict;
use vitals::Vitals;

/// What identifies a cluster: `shop/orders:80`, or `inbound:9001` for the application beside us.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterKey {
    /// A port of a service.
    Service(ObjectName, u16),
    /// A port of the application, as the instance of a service.
    Application(ObjectName, SocketAddr),
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, port) => write!(f, "{name}:{port}"),
            Self::Application(_, address) => write!(f, "inbound:{}", address.port()),
        }
    }
}

/// How connections to an endpoint are secured.
#[derive(Debug)]
pub enum Security {
    /// Not at all.
    Plain,
    /// Mutual TLS is due but cannot be had, and never is plain said instead; the reason is for logs.
    Unavailable(&'static str),
    /// Mutual TLS. On the heap, since most endpoints of a plain mesh need no room for it.
    Mutual(Box<Target>),
}

/// Who calls the endpoints of a cluster, for their metrics.
#[derive(Debug, PartialEq, Eq)]
pub struct Calling {
    /// Ourselves.
    pub source: Party,
    /// Namespace and name of the service that is called.
    pub service: (Arc<str>, Arc<str>),
    /// What we prove to be, `spiffe://...`.
    pub id: Option<Arc<str>>,
}

/// Whose an endpoint is.
#[derive(Debug)]
enum Whose {
    Workload(Arc<Workload>, Arc<Calling>),
    /// Of the application beside us.
    Own(Arc<str>),
}

/// One place requests can go.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in this process; pools are found by it.
    pub id: u64,
    whose: Whose,
    /// Where to connect: the sidecar's port when `via_sidecar`, the application's otherwise.
    pub address: SocketAddr,
    /// Whether a sidecar answers there.
    pub via_sidecar: bool,
    /// Relative to its siblings; never 0 (such endpoints are left out).
    pub weight: u32,
    /// How connections to it are secured.
    pub security: Security,
    /// For metrics; made at the first call, since most of the endpoints that a proxy knows are never called.
    scope: OnceLock<Arc<Scope>>,
    /// How it does.
    pub vitals: Arc<Vitals>,
}

impl Security {
    /// Whether both ask for the same. The name that is called belongs to the cluster.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) => true,
            (Self::Unavailable(one), Self::Unavailable(other)) => one == other,
            (Self::Mutual(one), Self::Mutual(other)) => one.expected() == other.expected(),
            _ => false,
        }
    }
}

impl Endpoint {
    /// A new endpoint: `workload`, which `calling` reaches. `vitals` are those of the same instance where it was known before.
    pub fn new(
        workload: Arc<Workload>,
        calling: Arc<Calling>,
        address: SocketAddr,
        via_sidecar: bool,
        security: Security,
        vitals: Arc<Vitals>,
    ) -> Arc<Self> {
        let weight = workload.weight;
        let whose = Whose::Workload(workload, calling);
        Self::with(whose, address, via_sidecar, weight, security, OnceLock::new(), vitals)
    }

    /// The application beside us, in plain; counted for `scope`.
    pub fn own(workload: Arc<str>, address: SocketAddr, scope: Arc<Scope>) -> Arc<Self> {
        let (whose, security) = (Whose::Own(workload), Security::Plain);
        Self::with(whose, address, false, 1, security, scope.into(), Arc::default())
    }

    fn with(
        whose: Whose,
        address: SocketAddr,
        via_sidecar: bool,
        weight: u32,
        security: Security,
        scope: OnceLock<Arc<Scope>>,
        vitals: Arc<Vitals>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { id, whose, address, via_sidecar, weight, security, scope, vitals })
    }

    /// Whose it is: `shop/orders-1`.
    pub fn workload(&self) -> String {
        match &self.whose {
            Whose::Workload(workload, _) => workload.name.to_string(),
            Whose::Own(name) => name.to_string(),
        }
    }

    /// Whether requests are sent to `other` and counted for it in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        self.address == other.address
            && self.weight == other.weight
            && self.via_sidecar == other.via_sidecar
            && self.security.is_same(&other.security)
            && self.labels() == other.labels()
    }

    /// Its name and address, unique within its cluster; `None` for the application beside us.
    pub fn place(&self) -> Option<(&ObjectName, SocketAddr)> {
        match &self.whose {
            Whose::Workload(workload, _) => Some((&workload.name, self.address)),
            Whose::Own(_) => None,
        }
    }

    /// What it is counted as.
    pub fn labels(&self) -> ScopeLabels {
        match (self.scope.get(), &self.whose) {
            (Some(scope), _) => scope.labels().clone(),
            (None, Whose::Workload(workload, calling)) => labels(workload, calling, &self.security),
            (None, Whose::Own(_)) => ScopeLabels::default(),
        }
    }

    /// Whom an exchange with it is counted for.
    pub fn scope(&self) -> &Arc<Scope> {
        self.scope.get_or_init(|| Scope::new(self.labels()))
    }

    /// The same, or `heir` from now on, which takes its place, when nothing was counted yet.
    pub fn scope_or(&self, heir: &Arc<Scope>) -> &Arc<Scope> {
        self.scope.get_or_init(|| heir.clone())
    }

    /// Whether nothing is said to it in plain.
    pub fn is_secured(&self) -> bool {
        !matches!(self.security, Security::Plain)
    }

    /// Who has to be there, as `spiffe://...`; `None` where nobody proves anything.
    pub fn peer(&self) -> Option<&Arc<str>> {
        self.scope().labels().proven.as_ref()?.destination.as_ref()
    }

    /// Exchanges under way from this proxy.
    pub fn active(&self) -> u32 {
        self.vitals.tally.active()
    }
}

fn labels(workload: &Workload, calling: &Calling, security: &Security) -> ScopeLabels {
    ScopeLabels {
        reporter: "source",
        source: calling.source.clone(),
        destination: party(workload),
        service: Some(calling.service.clone()),
        destination_zone: workload.zone.as_deref().unwrap_or_default().into(),
        proven: proven(security, calling),
    }
}

fn proven(security: &Security, calling: &Calling) -> Option<Proven> {
    let destination = match security {
        Security::Plain => return None,
        Security::Unavailable(_) => None,
        Security::Mutual(target) => Some(target.expected().to_string().into()),
    };
    Some(Proven { source: calling.id.clone(), destination })
}

/// How a workload is named in metrics.
fn party(workload: &Workload) -> Party {
    Party {
        workload: workload.name.name.clone(),
        namespace: workload.name.namespace.clone(),
        version: workload.labels.get("version").map_or("", String::as_str).into(),
    }
}

impl Candidate for Arc<Endpoint> {
    fn weight(&self) -> u32 {
        self.weight
    }

    fn active(&self) -> u32 {
        Endpoint::active(self)
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
    pub settings: Settings,
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

    /// The place of the endpoint for the next attempt, not one of `tried` unless there is no other. `latency` is what
    /// the endpoint at a place is expected to take.
    pub fn pick(
        &self,
        tried: &[u64],
        latency: impl Fn(usize) -> f64,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        self.endpoints.pick(&self.settings.balancer, tried, latency, &self.state.turn, random)
    }

    /// Begins an exchange, unless as many are under way as the breaker allows, or it is open.
    ///
    /// # Errors
    /// The cluster itself, and why not.
    pub fn admit(self: Arc<Self>, now: Duration) -> Result<Admitted, (Arc<Self>, Refusal)> {
        if !self.state.limits.enter(self.settings.max_exchanges) {
            return Err((self, Refusal::Full));
        }
        match self.pass(now) {
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
        match self.state.gate.admit(now) {
            Admit::Pass => Ok(Pass { probe: RefCell::default() }),
            Admit::Probe(probe) => {
                Ok(Pass { probe: RefCell::new(Some((self.state.gate.clone(), probe))) })
            }
            Admit::Reject { retry_after } => Err(retry_after),
        }
    }

    /// Takes the endpoint at `place` for one attempt; `None` where it has as many under way as can be counted.
    pub fn lease(&self, place: usize) -> Option<Lease> {
        let endpoint = self.endpoints.get(place)?.clone();
        endpoint.vitals.tally.begin().then(|| Lease {
            endpoint,
            place,
            begun: Instant::now(),
            verdict: Cell::new(Verdict::Neither),
        })
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

/// A way past the error-rate and slow-call breaker; a probe of a half-open one is given back when dropped.
#[derive(Debug)]
pub struct Pass {
    probe: RefCell<Option<(Arc<Gate>, Probe)>>,
}

impl Pass {
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
    /// When the attempt began.
    pub begun: Instant,
    verdict: Cell<Verdict>,
}

impl Lease {
    /// How the attempt went; nobody can tell unless this is called.
    pub fn judge(&self, verdict: Verdict) {
        self.verdict.set(verdict);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.vitals.tally.end(self.verdict.get());
    }
}

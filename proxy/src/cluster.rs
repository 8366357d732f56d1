//! The live object for a service port: its endpoints, which one is next, connections to them, and how many
//! may be in use.

pub mod balance;
pub mod breaker;
pub mod connect;
pub mod pool;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use http::HeaderValue;
use leno_api::model::{
    ObjectName,
    service::Protocol,
    traffic_policy::{Balancer, Settings},
};

use crate::{
    telemetry::scope::{Callers, Scope},
    tls::client::Target,
};
use balance::Candidate;
use breaker::Limits;

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
    /// Mutual TLS.
    Mutual(Target),
}

/// One place requests can go.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in this process; pools are found by it.
    pub id: u64,
    /// Whose it is: `shop/orders-1`.
    pub workload: String,
    /// Where to connect: the sidecar's port when `via_sidecar`, the application's otherwise.
    pub address: SocketAddr,
    /// Whether a sidecar answers there.
    pub via_sidecar: bool,
    /// Relative to its siblings; never 0 (such endpoints are left out).
    pub weight: u32,
    /// How connections to it are secured.
    pub security: Security,
    /// For metrics.
    pub scope: Arc<Scope>,
    /// Exchanges under way from this proxy.
    active: AtomicU32,
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
    /// A new endpoint with an identity of its own.
    pub fn new(
        workload: String,
        address: SocketAddr,
        via_sidecar: bool,
        weight: u32,
        security: Security,
        scope: Arc<Scope>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            id,
            workload,
            address,
            via_sidecar,
            weight,
            security,
            scope,
            active: AtomicU32::new(0),
        })
    }

    /// Whether nothing is said to it in plain.
    pub fn is_secured(&self) -> bool {
        !matches!(self.security, Security::Plain)
    }

    /// Who has to be there, as `spiffe://...`; `None` where nobody proves anything.
    pub fn peer(&self) -> Option<&Arc<str>> {
        self.scope.labels().proven.as_ref()?.destination.as_ref()
    }

    /// Exchanges under way from this proxy.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
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
    pub endpoints: Box<[Arc<Endpoint>]>,
    /// Whether all of them have the same weight.
    pub even: bool,
    /// For requests that reached no endpoint.
    pub scope: Arc<Scope>,
    /// What carries over from one configuration to the next.
    pub state: Arc<State>,
}

/// Counters of a cluster, shared by all workers and all generations of the configuration.
#[derive(Debug, Default)]
pub struct State {
    /// Next place of round robin.
    turn: AtomicU64,
    /// Connections, pending and exchanges in use.
    pub limits: Limits,
    /// Of the own application: whom its callers are counted for.
    pub callers: Callers,
}

impl Cluster {
    /// The endpoint for the next attempt, not one of `tried` unless there is no other.
    pub fn pick(&self, tried: &[u64], random: &mut dyn FnMut() -> u64) -> Option<Arc<Endpoint>> {
        let turn = match self.settings.balancer {
            Balancer::RoundRobin => self.state.turn.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        let pick = |random: &mut dyn FnMut() -> u64, turn| match self.settings.balancer {
            Balancer::RoundRobin => balance::round_robin(&self.endpoints, turn),
            Balancer::Random => balance::random(&self.endpoints, random),
            Balancer::LeastRequest
            | Balancer::PeakEwma { .. }
            | Balancer::RingHash { .. }
            | Balancer::Maglev { .. } => balance::least_request(&self.endpoints, self.even, random),
        };
        let first = &self.endpoints[pick(random, turn)?];
        if !tried.contains(&first.id) {
            return Some(first.clone());
        }
        // From the unlucky one onwards the next that was not tried: every endpoint gets its chance.
        let start = pick(random, turn)?;
        let next = (0..self.endpoints.len()).map(|step| (start + step) % self.endpoints.len());
        let untried =
            next.map(|at| &self.endpoints[at]).find(|endpoint| !tried.contains(&endpoint.id));
        Some(untried.unwrap_or(first).clone())
    }

    /// Begins an exchange, unless as many are under way as the breaker allows.
    ///
    /// # Errors
    /// The cluster itself, when it is full.
    pub fn admit(self: Arc<Self>) -> Result<Admitted, Arc<Self>> {
        match self.state.limits.enter(self.settings.max_exchanges) {
            true => Ok(Admitted(self)),
            false => Err(self),
        }
    }

    /// Takes a picked endpoint for one attempt.
    pub fn lease(&self, endpoint: Arc<Endpoint>) -> Lease {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        Lease { endpoint }
    }
}

/// A cluster with one exchange under way, counted until dropped.
#[derive(Debug)]
pub struct Admitted(Arc<Cluster>);

impl std::ops::Deref for Admitted {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.state.limits.leave();
    }
}

/// A picked endpoint, counted as busy until dropped.
#[derive(Debug)]
pub struct Lease {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.active.fetch_sub(1, Ordering::Relaxed);
    }
}

//! What a worker thread has at hand.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::sync::watch;

use super::secured::Secured;
use crate::{
    cluster::{connect::Connector, pool::Pools},
    filter::jwt::Verified,
    http::server::Limits,
    identity::Identity,
    snapshot::{Handle, Published, Snapshot},
    telemetry::{
        access_log::AccessLog,
        metrics::{Families, SeriesCache, SeriesKey},
        record::{Direction, Record},
        scope::Scope,
    },
    tls::half_open::HalfOpen,
};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration.
    pub published: Arc<Published>,
    /// Who we can prove to be.
    pub identity: Arc<Identity>,
    /// Metrics.
    pub families: Arc<Families>,
    /// For requests that found no service.
    pub unrouted: Unrouted,
    /// `None` when switched off.
    pub access_log: Option<AccessLog>,
    /// Bounds on downstream peers.
    pub limits: Limits,
    /// Downstream connections open in all workers.
    pub connections: AtomicUsize,
    /// At most so many.
    pub max_connections: usize,
    /// Turns true when the proxy is asked to stop.
    pub drain: watch::Receiver<bool>,
    /// How long a call waits for a host that nobody has asked for before.
    pub on_demand_timeout: Duration,
}

/// Whom to count requests for that found no service, by direction.
#[derive(Debug)]
pub struct Unrouted {
    /// From our application.
    pub outbound: Arc<Scope>,
    /// To it.
    pub inbound: Arc<Scope>,
}

/// What a worker has for itself.
#[derive(Debug)]
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Upstream connections.
    pub pools: Pools,
    /// Makes those that are not pooled.
    pub connector: Rc<Connector>,
    /// Tokens of callers that were verified already.
    pub tokens: Verified,
    /// TLS handshakes with callers under way.
    pub handshakes: HalfOpen,
    snapshot: RefCell<arc_swap::Cache<Handle, Arc<Snapshot>>>,
    /// Metrics of this worker, not yet added to the shared ones.
    pub series: SeriesCache,
    random: RefCell<SmallRng>,
}

/// A downstream connection.
#[derive(Clone, Debug)]
pub struct Downstream {
    /// The caller.
    pub address: SocketAddr,
    /// Whence it came.
    pub direction: Direction,
    /// Kept by whoever still moves bytes on it: a tunnel outlives the HTTP that began it.
    pub counted: Rc<Counted>,
    /// What mutual TLS has proven; `None` on plain connections.
    pub secured: Option<Rc<Secured>>,
}

/// A downstream connection, counted while it lives.
#[derive(Debug)]
pub struct Counted {
    shared: Arc<Shared>,
    gauge: prometheus::IntGauge,
}

impl Counted {
    /// Counts one more, unless there are as many as there may be.
    pub fn take(shared: &Arc<Shared>, direction: Direction) -> Option<Self> {
        let open = shared.connections.fetch_add(1, Ordering::Relaxed);
        let gauge = shared.families.connections.with_label_values(&[direction.as_str()]);
        gauge.inc();
        let counted = Self { shared: shared.clone(), gauge };
        (open < shared.max_connections).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.gauge.dec();
    }
}

impl Worker {
    /// A worker with empty pools.
    pub fn new(shared: Arc<Shared>) -> Self {
        let snapshot = RefCell::new(shared.published.cache());
        let random = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
        let identity = shared.identity.clone();
        let connector = Connector::new(move || identity.current(), shared.families.clone());
        let connector = Rc::new(connector);
        Self {
            shared,
            pools: Pools::new(connector.clone()),
            connector,
            tokens: Verified::default(),
            handshakes: HalfOpen::default(),
            snapshot,
            series: SeriesCache::default(),
            random,
        }
    }

    /// The configuration now in force. An exchange takes it once.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow_mut().load().clone()
    }

    /// 64 uniform bits.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }

    /// The random source itself, for the time of `use_it`.
    pub fn with_random<T>(&self, use_it: impl FnOnce(&mut SmallRng) -> T) -> T {
        use_it(&mut self.random.borrow_mut())
    }

    /// The end of an exchange: counted and logged, once.
    pub fn finish(&self, record: &Record) {
        let now = Instant::now();
        let unrouted = || match record.direction {
            Direction::Inbound => &self.shared.unrouted.inbound,
            Direction::Outbound => &self.shared.unrouted.outbound,
        };
        let scope = record.scope.as_ref().unwrap_or_else(unrouted);
        let key = SeriesKey {
            protocol: record.protocol(),
            status: record.status,
            grpc_status: record.grpc_status,
            flag: record.flag,
        };
        let milliseconds = now.saturating_duration_since(record.start).as_secs_f64() * 1000.0;
        let (received, sent) = (record.request_bytes, record.response_bytes);
        self.series.observe(&self.shared.families, scope, key, milliseconds, received, sent);
        if let Some(log) = &self.shared.access_log {
            log.write(record, now);
        }
    }
}

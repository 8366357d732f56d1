//! What a worker thread has at hand.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::HeaderValue;
use leno_api::model::traffic_policy::Balancer;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::sync::{Notify, Semaphore, watch};

use super::{
    admission::Doors,
    allowance::Allowances,
    capture::{Capture, Captured},
    observed::{Attempted, Mailbox, Observed},
    outcome,
    secured::Secured,
};
use crate::{
    cluster::{
        Cluster, Lease, Pass, Unleased, connect::Connector, pool::Pools, tally::Verdict,
        window::Kind,
    },
    error::Error,
    filter::{
        jwt::Verified,
        rate_limit::counter::Tables,
        wasm::{Node, Seats},
    },
    http::{body::COPIES_LAG, head, server::Limits},
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

/// How old observations are at most when the side thread hears of them.
const TELL_AFTER: Duration = Duration::from_millis(100);

/// How often an endpoint is picked for an attempt, if the breaker of the one that was picked opens in between.
const LEASES: u32 = 4;

/// How an attempt was judged.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    verdict: Verdict,
    slow: bool,
}

impl Judged {
    /// Tells the breaker, where this was one of its probes.
    pub fn settle(self, pass: &Pass) {
        pass.settle(self.verdict, self.slow);
    }
}

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
    /// Listeners of all workers that still accept.
    pub listening: AtomicUsize,
    /// At most so many connections.
    pub max_connections: usize,
    /// Turns true when the proxy is asked to stop.
    pub drain: watch::Receiver<bool>,
    /// How long a call waits for a host that nobody has asked for before.
    pub on_demand_timeout: Duration,
    /// How many workers there are.
    pub workers: u32,
    /// What workers have seen of endpoints.
    pub mailbox: Mailbox,
    /// Exchanges that are delayed on purpose.
    pub delayed: Arc<AtomicUsize>,
    /// When time began for breakers and endpoints.
    pub started: Instant,
    /// Where the kernel leads connections through us; `None` where it does not.
    pub capture: Option<Capture>,
}

impl Shared {
    /// The time since the process began.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }
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
    /// Buckets of rate limits that this worker has met.
    pub limits: RefCell<Tables>,
    /// Where requests wait for applications that are at their limit.
    pub doors: Doors,
    snapshot: RefCell<arc_swap::Cache<Handle, Arc<Snapshot>>>,
    /// Metrics of this worker, not yet added to the shared ones.
    pub series: SeriesCache,
    random: RefCell<SmallRng>,
    observed: RefCell<Observed>,
    /// What may be tried again.
    pub allowances: Allowances,
    /// Room for what mirrored bodies lag behind.
    pub copies: Arc<Semaphore>,
    /// Instances of plugins.
    pub plugins: Seats,
    /// The generation whose plugins were started.
    tended: Cell<u64>,
    /// Wakes whoever tells what was observed when there is something to tell again.
    wake: Notify,
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
    /// The caller's address, once somebody was told of it.
    written: OnceCell<HeaderValue>,
    /// Where it was going, if the kernel has led it here.
    captured: Option<Box<Captured>>,
}

impl Counted {
    /// Counts one more, unless there are as many as there may be.
    pub fn take(shared: &Arc<Shared>, direction: Direction) -> Option<Self> {
        let open = shared.connections.fetch_add(1, Ordering::Relaxed);
        let gauge = shared.families.connections.with_label_values(&[direction.as_str()]);
        gauge.inc();
        let counted =
            Self { shared: shared.clone(), gauge, written: OnceCell::new(), captured: None };
        (open < shared.max_connections).then_some(counted)
    }

    /// The same, which was going to `original`; `None` changes nothing.
    pub fn captured(mut self, original: Option<SocketAddr>) -> Self {
        self.captured = original.map(|original| Captured::new(original).into());
        self
    }

    /// `address`, which is the caller's, as others are told of it.
    pub(super) fn written(&self, address: SocketAddr) -> HeaderValue {
        self.written.get_or_init(|| head::written(address)).clone()
    }
}

impl Downstream {
    /// Where the connection was going, if the kernel has led it here.
    pub fn original(&self) -> Option<SocketAddr> {
        self.counted.captured.as_ref().map(|captured| captured.original)
    }

    /// What is known of such a connection.
    pub(super) fn captured(&self) -> Option<&Captured> {
        self.counted.captured.as_deref()
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
        let dialled = shared.capture.as_ref().map(|capture| capture.dialled.clone());
        let connector = Rc::new(connector.captured(dialled));
        let own = &shared.unrouted.outbound.labels().source;
        let node = Node {
            namespace: own.namespace.clone(),
            workload: own.workload.clone(),
            version: own.version.clone(),
        };
        let plugins = Seats::new(shared.started, node);
        Self {
            shared,
            pools: Pools::new(connector.clone()),
            connector,
            tokens: Verified::default(),
            handshakes: HalfOpen::default(),
            limits: RefCell::default(),
            doors: Doors::default(),
            snapshot,
            series: SeriesCache::default(),
            random,
            observed: RefCell::default(),
            allowances: Allowances::default(),
            copies: Arc::new(Semaphore::new(COPIES_LAG)),
            plugins,
            tended: Cell::new(0),
            wake: Notify::new(),
        }
    }

    /// The configuration now in force. An exchange takes it once.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow_mut().load().clone()
    }

    /// Starts the plugins of a configuration that is new, ends those that are in force no more and starts those again
    /// that broke.
    pub fn tend_plugins(&self) {
        let snapshot = self.snapshot();
        if self.tended.replace(snapshot.generation) != snapshot.generation {
            let services = snapshot.services.iter().flat_map(|service| &service.ports);
            let outbound = services.filter_map(|port| port.plugins.as_ref());
            let inbound = snapshot.inbound.by_destination.values();
            let inbound = inbound.filter_map(|port| port.plugins.as_ref());
            outbound.chain(inbound).for_each(|chain| self.plugins.prepare(chain));
        }
        drop(snapshot);
        self.plugins.sweep();
    }

    /// 64 uniform bits.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }

    /// The random source itself, for the time of `use_it`.
    pub fn with_random<T>(&self, use_it: impl FnOnce(&mut SmallRng) -> T) -> T {
        use_it(&mut self.random.borrow_mut())
    }

    /// An endpoint for the next attempt, which begins at `now`, not one of `tried` unless there is no other. `hash` is that of the request, for
    /// balancers that go by it.
    ///
    /// # Errors
    /// When there is none, none lets a request through, or it has as many attempts under way as can be counted.
    pub fn lease(
        &self,
        cluster: &Cluster,
        tried: &[u64],
        hash: Option<u64>,
        now: Instant,
    ) -> Result<Lease, Error> {
        for _ in 0..LEASES {
            let Some((place, slot)) = self.pick(cluster, tried, hash) else { break };
            match cluster.lease(place, now, || self.shared.now()) {
                Ok(lease) => {
                    lease.seen.set(slot);
                    return Ok(lease);
                }
                Err(Unleased::Open) => {}
                Err(Unleased::Full) => {
                    cluster.state.limits.reject();
                    return Err(outcome::of_busy_endpoint(&cluster.name));
                }
            }
        }
        Err(outcome::of_no_endpoint(cluster, self.shared.now()))
    }

    /// A place, and the slot for what was seen of the cluster.
    fn pick(&self, cluster: &Cluster, tried: &[u64], hash: Option<u64>) -> Option<(usize, usize)> {
        let mut random = || self.random();
        match cluster.settings.balancer {
            Balancer::PeakEwma { .. } if cluster.is_judged() => {
                let mut observed = self.observed.borrow_mut();
                let (latencies, slot) = observed.latencies(cluster);
                let place = cluster.pick(tried, hash, |place| latencies.at(place), &mut random)?;
                Some((place, slot))
            }
            _ => Some((cluster.pick(tried, hash, |_| 1.0, &mut random)?, 0)),
        }
    }

    /// Takes in how an attempt went up to now: for the balancer, and for who decides about endpoints and breakers.
    /// `timed`: it was answered, or took too long. What is a probe of a breaker is told to the breaker by
    /// [`Judged::settle`]. The attempt went so up to `now`.
    pub fn observe(
        &self,
        cluster: &Cluster,
        lease: &Lease,
        kind: Kind,
        timed: bool,
        now: Instant,
    ) -> Judged {
        let latency = now.saturating_duration_since(lease.begun);
        let verdict = match kind {
            Kind::Success => Verdict::Success,
            Kind::Busy => Verdict::Neither,
            Kind::Error | Kind::Gateway | Kind::Local => Verdict::Failure,
        };
        lease.judge(verdict);
        if cluster.is_judged() {
            let attempted = Attempted { kind, latency, timed };
            let at = (lease.place, lease.endpoint.vitals().id);
            let now = now.saturating_duration_since(self.shared.started);
            let mut observed = self.observed.borrow_mut();
            if observed.record(cluster, lease.seen.get(), at, now, attempted) {
                self.wake.notify_one();
            }
        }
        let slow = timed && cluster.is_slow(latency);
        lease.settle(verdict, slow);
        Judged { verdict, slow }
    }

    /// Tells the side thread what was observed, for ever; while nothing is, it sleeps.
    pub async fn tell_observations(&self) {
        loop {
            if self.observed.borrow().is_told() {
                self.wake.notified().await;
            }
            tokio::time::sleep(TELL_AFTER).await;
            self.observed.borrow_mut().tell(self.shared.now(), &self.shared.mailbox);
        }
    }

    /// The end of an exchange: counted and logged, once.
    pub fn finish(&self, record: &Record) {
        self.finish_at(record, Instant::now());
    }

    /// The same at a time that was asked for already.
    pub fn finish_at(&self, record: &Record, now: Instant) {
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

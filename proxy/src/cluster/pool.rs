//! Upstream connections of one worker. HTTP/1.1 connections are lent to one exchange at a time, most recently used
//! first, so that the rest can grow old and close; an HTTP/2 connection is shared by all exchanges with its endpoint.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use http::StatusCode;
use rustc_hash::FxHashMap;
use tokio::{sync::Notify, time::Instant};

use super::{
    Cluster, Endpoint,
    breaker::{Permit, Resource},
    connect,
};
use crate::{
    error::{Error, Flag, Retry},
    http::client::{self, Http2Sender, Sender},
};

/// How often a request that waits for a connection looks whether another worker gave one back.
const WAIT_STEP: Duration = Duration::from_millis(10);

/// All upstream connections of a worker, by endpoint.
#[derive(Debug, Default)]
pub struct Pools {
    endpoints: RefCell<FxHashMap<u64, Rc<Pool>>>,
}

#[derive(Debug)]
struct Pool {
    /// Upgradable as long as some configuration or exchange knows the endpoint.
    endpoint: Weak<Endpoint>,
    idle_timeout: Cell<Duration>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Shared>>,
    /// Held while an HTTP/2 connection is being made, so that a burst makes one and not hundreds.
    dialling: tokio::sync::Mutex<()>,
    returned: Notify,
}

#[derive(Debug)]
struct Idle {
    sender: Sender,
    since: Instant,
    permit: Permit,
}

#[derive(Debug)]
struct Shared {
    sender: Http2Sender,
    open: Rc<Cell<bool>>,
}

/// A connection lent to one exchange.
#[derive(Debug)]
pub struct Connection {
    /// To send on.
    pub sender: Sender,
    /// How long it lay idle: one that did may have been closed by the peer in the meantime.
    pub idle: Duration,
    /// Present for HTTP/1.1, where the connection is ours alone.
    permit: Option<Permit>,
    pool: Rc<Pool>,
}

impl Connection {
    /// Gives an HTTP/1.1 connection back whose exchange is complete on both sides.
    pub fn give_back(self, cluster: &Cluster) {
        let Self { sender, permit, pool, .. } = self;
        let Some(permit) = permit else { return };
        let mut idle = pool.idle.borrow_mut();
        let room = idle.len() < cluster.settings.max_idle as usize;
        if room && !sender.is_closed() {
            idle.push(Idle { sender, since: Instant::now(), permit });
        }
        drop(idle);
        pool.returned.notify_one();
    }
}

impl Pools {
    /// A connection to `endpoint` that speaks HTTP/1.1.
    ///
    /// # Errors
    /// UF when it cannot be made, UO when the cluster is at its limits.
    pub async fn http1(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Connection, Error> {
        let pool = self.pool(cluster, endpoint);
        if let Some(connection) = reuse(&pool, cluster.settings.pool_idle_timeout).await {
            return Ok(connection);
        }
        let permit = match cluster
            .state
            .limits
            .take(Resource::Connections, cluster.settings.max_connections)
        {
            Some(permit) => permit,
            None => match wait(&pool, cluster).await? {
                Waited::Connection(connection) => return Ok(connection),
                Waited::Permit(permit) => permit,
            },
        };
        let stream = connect::tcp(endpoint.address, cluster.settings.connect_timeout).await?;
        let sender = client::http1(stream, || {})
            .await
            .map_err(|error| handshake_failed(endpoint, &error))?;
        Ok(Connection { sender, idle: Duration::ZERO, permit: Some(permit), pool })
    }

    /// A connection to `endpoint` that speaks HTTP/2, shared with other exchanges.
    ///
    /// # Errors
    /// UF when it cannot be made, UO when the cluster is at its limits.
    pub async fn http2(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Connection, Error> {
        let pool = self.pool(cluster, endpoint);
        if let Some(sender) = share(&pool) {
            return Ok(Connection {
                sender: Sender::Http2(sender),
                idle: Duration::ZERO,
                permit: None,
                pool,
            });
        }
        let dialling = pool.dialling.lock().await;
        if let Some(sender) = share(&pool) {
            drop(dialling);
            return Ok(Connection {
                sender: Sender::Http2(sender),
                idle: Duration::ZERO,
                permit: None,
                pool,
            });
        }
        let permit = cluster
            .state
            .limits
            .take(Resource::Connections, cluster.settings.max_connections)
            .ok_or_else(|| overflow(cluster, "too many connections"))?;
        let stream = connect::tcp(endpoint.address, cluster.settings.connect_timeout).await?;
        let open = Rc::new(Cell::new(true));
        let on_end = {
            let open = open.clone();
            move || {
                open.set(false);
                drop(permit);
            }
        };
        let sender = client::http2(stream, on_end)
            .await
            .map_err(|error| handshake_failed(endpoint, &error))?;
        pool.shared.borrow_mut().push(Shared { sender: sender.clone(), open });
        drop(dialling);
        Ok(Connection { sender: Sender::Http2(sender), idle: Duration::ZERO, permit: None, pool })
    }

    /// Closes what has been idle for too long, and everything to endpoints that are gone.
    pub fn sweep(&self, now: Instant) {
        self.endpoints.borrow_mut().retain(|_, pool| {
            let gone = pool.endpoint.strong_count() == 0;
            let timeout = pool.idle_timeout.get();
            let fresh = |idle: &Idle| {
                !gone && now.duration_since(idle.since) < timeout && !idle.sender.is_closed()
            };
            pool.idle.borrow_mut().retain(fresh);
            // Exchanges under way have senders of their own: their connection lasts as long as they do.
            pool.shared.borrow_mut().retain(|shared| !gone && shared.open.get());
            !gone
        });
    }

    fn pool(&self, cluster: &Cluster, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        let mut endpoints = self.endpoints.borrow_mut();
        let pool = endpoints.entry(endpoint.id).or_insert_with(|| Rc::new(Pool::new(endpoint)));
        pool.idle_timeout.set(cluster.settings.pool_idle_timeout);
        pool.clone()
    }
}

impl Pool {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        Self {
            endpoint: Arc::downgrade(endpoint),
            idle_timeout: Cell::default(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            dialling: tokio::sync::Mutex::default(),
            returned: Notify::new(),
        }
    }
}

/// An idle connection that still lives, newest first.
async fn reuse(pool: &Rc<Pool>, timeout: Duration) -> Option<Connection> {
    loop {
        let Idle { mut sender, since, permit } = pool.idle.borrow_mut().pop()?;
        if sender.is_closed() || since.elapsed() >= timeout {
            continue;
        }
        // Its last response was read to the end, so it is ready in this very turn or the next.
        if sender.is_ready() || sender.ready().await.is_ok() {
            return Some(Connection {
                sender,
                idle: Duration::ZERO,
                permit: Some(permit),
                pool: pool.clone(),
            });
        }
    }
}

/// The HTTP/2 connection, while it takes requests. When the peer's limit of streams is reached, h2 queues; how many
/// may queue is bounded by the cluster's exchanges.
fn share(pool: &Pool) -> Option<Http2Sender> {
    let mut shared = pool.shared.borrow_mut();
    shared.retain(|shared| shared.open.get() && !shared.sender.is_closed());
    shared.first().map(|shared| shared.sender.clone())
}

enum Waited {
    Connection(Connection),
    Permit(Permit),
}

/// Waits for a connection to come back, as one of at most `max_pending`.
async fn wait(pool: &Rc<Pool>, cluster: &Cluster) -> Result<Waited, Error> {
    let (limits, settings) = (&cluster.state.limits, &cluster.settings);
    let _pending = limits
        .take(Resource::Pending, settings.max_pending)
        .ok_or_else(|| overflow(cluster, "too many requests are waiting for a connection"))?;
    let deadline = Instant::now() + settings.connect_timeout;
    while Instant::now() < deadline {
        let _ = tokio::time::timeout(WAIT_STEP, pool.returned.notified()).await;
        if let Some(connection) = reuse(pool, settings.pool_idle_timeout).await {
            return Ok(Waited::Connection(connection));
        }
        if let Some(permit) = limits.take(Resource::Connections, settings.max_connections) {
            return Ok(Waited::Permit(permit));
        }
    }
    Err(overflow(cluster, "no connection came free in time"))
}

fn overflow(cluster: &Cluster, what: &str) -> Error {
    cluster.state.limits.reject();
    let detail = format!("{}: {what}", cluster.name);
    Error { retry: Retry::Unsafe, ..Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, detail) }
}

fn handshake_failed(endpoint: &Endpoint, error: &dyn std::fmt::Display) -> Error {
    let detail = format!("handshake with {}: {error}", endpoint.address);
    Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UF, Retry::Safe, detail)
}

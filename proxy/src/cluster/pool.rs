//! Upstream connections of one worker. HTTP/1.1 connections are lent to one exchange at a time, most recently used
//! first, so that the rest can grow old and close; an HTTP/2 connection is shared by up to [`STREAMS`] exchanges with
//! its endpoint.
//!
//! The limit of connections is the cluster's, over all workers and endpoints: where somebody waits, idle connections
//! are closed rather than kept, or those who have none would never get one.

#[cfg(test)]
mod tests;

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
    Cluster, Endpoint, State,
    breaker::{Permit, Resource},
    connect::{Connector, Refusal, Stream},
};
use crate::{
    error::{Error, Flag, Retry},
    http::{
        client::{self, MOST_STREAMS, Sender},
        http2::Http2,
    },
    tls::Inside,
};

/// How often a request that waits for a connection looks whether another worker gave one back.
const WAIT_STEP: Duration = Duration::from_millis(10);
/// How long a connection that was given back may take until it takes another request. It does at once, unless its peer
/// has answered and does not read the rest of what was asked; what is still to be written then is in its buffer.
const READY_WITHIN: Duration = Duration::from_millis(10);
/// How long the rest of a request may take to be sent whose answer is complete.
const REST_WITHIN: Duration = Duration::from_secs(60);
/// Exchanges at once on one HTTP/2 connection before another is made: the least that a peer should allow (RFC 9113
/// section 6.5.2). What exceeds the peer's limit would wait in h2 without end when the streams before it are long.
const STREAMS: u32 = 100;
const _: () = assert!(STREAMS <= MOST_STREAMS, "callers that read nothing would stop the others");

/// All upstream connections of a worker, by endpoint.
#[derive(Debug)]
pub struct Pools {
    connector: Rc<Connector>,
    endpoints: RefCell<FxHashMap<u64, Rc<Pool>>>,
}

#[derive(Debug)]
struct Pool {
    /// Upgradable as long as some configuration or exchange knows the endpoint.
    endpoint: Weak<Endpoint>,
    /// The cluster's, for its limits.
    state: Arc<State>,
    idle_timeout: Cell<Duration>,
    /// Who we are to the endpoint.
    identity: RefCell<Option<Arc<str>>>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Shared>>,
    /// Held while an HTTP/2 connection is being made, so that a burst makes one and not hundreds.
    dialling: tokio::sync::Mutex<()>,
    /// How often that failed, and how last: whoever waited for it fails with it, instead of trying one after the other.
    failures: Cell<u64>,
    failure: RefCell<Option<Error>>,
    returned: Notify,
    /// Requests of this worker that wait for a connection to this endpoint.
    waiting: Rc<Cell<u32>>,
}

#[derive(Debug)]
struct Idle {
    sender: Sender,
    identity: Option<Arc<str>>,
    since: Instant,
    permit: Permit,
}

#[derive(Debug)]
struct Shared {
    sender: Http2,
    identity: Option<Arc<str>>,
    refusal: Option<Refusal>,
    open: Rc<Cell<bool>>,
    streams: Rc<Cell<u32>>,
}

/// One more of something in this worker, until dropped.
#[derive(Debug)]
struct Counted(Rc<Cell<u32>>);

/// A connection lent to one exchange.
#[derive(Debug)]
pub struct Connection {
    /// To send on.
    pub sender: Sender,
    /// How long it lay idle after another exchange, so that the peer may have closed it in the meantime; `None` of one
    /// that is new, or is shared with others.
    pub idle: Option<Duration>,
    /// Who we were when it was made. Whoever we are later must not use it: its answers are for that one.
    identity: Option<Arc<str>>,
    refusal: Option<Refusal>,
    held: Held,
    pool: Rc<Pool>,
}

/// What a lent connection takes.
#[derive(Debug)]
enum Held {
    /// HTTP/1.1: the connection is ours alone.
    Alone(Permit),
    /// HTTP/2: one of its streams.
    Stream(#[expect(dead_code, reason = "counts until dropped")] Counted),
}

impl Connection {
    /// Why the peer does not accept who we are, if that is why nothing came back.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_ref()?.get().map(String::as_str)
    }

    /// Whether it carries one exchange at a time.
    pub fn is_alone(&self) -> bool {
        matches!(self.held, Held::Alone(_))
    }

    /// Gives an HTTP/1.1 connection back whose exchange is complete on both sides.
    pub fn give_back(self, cluster: &Cluster) {
        self.give_back_at(cluster, Instant::now());
    }

    /// The same at a time that was asked for already.
    pub fn give_back_at(self, cluster: &Cluster, now: Instant) {
        let Self { sender, identity, held, pool, .. } = self;
        let Held::Alone(permit) = held else { return };
        if pool.waiting.get() == 0 && pool.wanted_elsewhere() > 0 {
            return;
        }
        let mut idle = pool.idle.borrow_mut();
        let room = idle.len() < cluster.settings.max_idle as usize;
        if room && sender.is_kept() {
            idle.push(Idle { sender, identity, since: now, permit });
        }
        drop(idle);
        pool.returned.notify_one();
    }

    /// Sends the rest of a request whose answer is complete: whoever answers early may still want it, unless it says that
    /// it closes.
    pub fn send_rest(mut self) {
        if self.is_alone() && self.sender.is_kept() {
            tokio::task::spawn_local(async move {
                // Whoever takes nothing more must not keep the connection's place.
                let _ = tokio::time::timeout(REST_WITHIN, self.sender.ready()).await;
            });
        }
    }
}

impl Pools {
    /// Empty ones; connections will be made by `connector`.
    pub fn new(connector: Rc<Connector>) -> Self {
        Self { connector, endpoints: RefCell::default() }
    }

    /// A connection to `endpoint` that is there and takes a request now, if there is one.
    pub fn ready(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        http2: bool,
        now: std::time::Instant,
    ) -> Option<Connection> {
        let pool = self.pool(cluster, endpoint);
        if http2 {
            return share(&pool, STREAMS);
        }
        let Idle { sender, identity, since, permit } = pool.idle.borrow_mut().pop()?;
        let idle = now.saturating_duration_since(since.into_std());
        let fresh = idle < cluster.settings.pool_idle_timeout;
        if fresh && pool.is_ours(identity.as_ref()) && sender.is_ready() {
            // It has answered before.
            return Some(Connection {
                sender,
                idle: Some(idle),
                identity,
                refusal: None,
                held: Held::Alone(permit),
                pool,
            });
        }
        pool.idle.borrow_mut().push(Idle { sender, identity, since, permit });
        None
    }

    /// A connection to `endpoint`, once there is one: an idle one or a new one.
    ///
    /// # Errors
    /// Those of [`Pools::http1`] and [`Pools::http2`].
    pub async fn find(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        http2: bool,
    ) -> Result<Connection, Error> {
        match http2 {
            true => self.http2(cluster, endpoint).await,
            false => self.http1(cluster, endpoint).await,
        }
    }

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
        let permit = match self.permit(cluster) {
            Some(permit) => permit,
            None => match wait(&pool, cluster).await? {
                Waited::Connection(connection) => return Ok(connection),
                Waited::Permit(permit) => permit,
            },
        };
        let stream = self.connect(cluster, endpoint, Inside::Http1).await?;
        let (identity, refusal) = (stream.identity(), stream.refusal());
        let sender = client::http1(stream);
        Ok(Connection { sender, idle: None, identity, refusal, held: Held::Alone(permit), pool })
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
        if let Some(connection) = share(&pool, STREAMS) {
            return Ok(connection);
        }
        let failures = pool.failures.get();
        let dialling = pool.dialling.lock().await;
        if let Some(connection) = share(&pool, STREAMS) {
            return Ok(connection);
        }
        let failed = pool.failure.borrow().clone().filter(|_| pool.failures.get() != failures);
        let dialled = match failed {
            Some(error) => Err(error),
            None => match self.permit(cluster) {
                Some(permit) => self.dial_http2(&pool, cluster, endpoint, permit).await,
                // What is there takes more when there cannot be another.
                None => match share(&pool, MOST_STREAMS) {
                    Some(connection) => return Ok(connection),
                    None => self.dial_http2_later(&pool, cluster, endpoint).await,
                },
            }
            .inspect_err(|error| pool.note_failure(error)),
        };
        drop(dialling);
        match (share(&pool, MOST_STREAMS), dialled) {
            (Some(connection), _) => Ok(connection),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Err(handshake_failed(endpoint, &"the connection ended at once")),
        }
    }

    /// Adds an HTTP/2 connection to those that are shared.
    async fn dial_http2(
        &self,
        pool: &Pool,
        cluster: &Cluster,
        endpoint: &Endpoint,
        permit: Permit,
    ) -> Result<(), Error> {
        let open = Rc::new(Cell::new(true));
        let on_end = {
            let open = open.clone();
            move || {
                open.set(false);
                drop(permit);
            }
        };
        let stream = self.connect(cluster, endpoint, Inside::Http2).await?;
        let (identity, refusal) = (stream.identity(), stream.refusal());
        let sender = client::http2(stream, on_end)
            .await
            .map_err(|error| handshake_failed(endpoint, &error))?;
        let streams = Rc::default();
        pool.shared.borrow_mut().push(Shared { sender, identity, refusal, open, streams });
        Ok(())
    }

    /// The same when there is no room for it yet; nothing when one of those that are there can take another stream.
    async fn dial_http2_later(
        &self,
        pool: &Pool,
        cluster: &Cluster,
        endpoint: &Endpoint,
    ) -> Result<(), Error> {
        match self.wait_for_permit(pool, cluster).await? {
            Some(permit) => self.dial_http2(pool, cluster, endpoint, permit).await,
            None => Ok(()),
        }
    }

    /// Room for one more connection; when there is none, an idle one of this worker is closed for it.
    fn permit(&self, cluster: &Cluster) -> Option<Permit> {
        let take =
            || cluster.state.limits.take(Resource::Connections, cluster.settings.max_connections);
        if let Some(permit) = take() {
            return Some(permit);
        }
        let endpoints = self.endpoints.borrow();
        let pools = || cluster.endpoints.iter().filter_map(|of| endpoints.get(&of.id));
        let oldest = pools()
            .filter(|pool| !pool.idle.borrow().is_empty())
            .min_by_key(|pool| pool.idle.borrow().first().map(|idle| idle.since));
        match oldest {
            Some(pool) => drop(pool.idle.borrow_mut().remove(0)),
            // Their permits come back when their tasks have ended.
            None => pools().for_each(|pool| pool.close_unused()),
        }
        take()
    }

    /// Waits for room for one more connection, or for one more stream (`None`), as one of at most `max_pending`.
    async fn wait_for_permit(
        &self,
        pool: &Pool,
        cluster: &Cluster,
    ) -> Result<Option<Permit>, Error> {
        let (_pending, deadline) = begin_to_wait(pool, cluster)?;
        while Instant::now() < deadline {
            tokio::time::sleep(WAIT_STEP).await;
            if let Some(permit) = self.permit(cluster) {
                return Ok(Some(permit));
            }
            if pool.has_room() {
                return Ok(None);
            }
        }
        Err(overflow(cluster, "no connection came free in time"))
    }

    /// Closes what has been idle for too long, and everything to endpoints that are gone.
    pub fn sweep(&self, now: Instant) {
        self.endpoints.borrow_mut().retain(|_, pool| {
            let gone = pool.endpoint.strong_count() == 0;
            let timeout = pool.idle_timeout.get();
            let fresh = |idle: &Idle| {
                !gone && now.duration_since(idle.since) < timeout && !idle.sender.is_closed()
            };
            let mut idle = pool.idle.borrow_mut();
            idle.retain(fresh);
            let given_up = pool.wanted_elsewhere().min(idle.len());
            idle.drain(..given_up);
            drop(idle);
            // Exchanges under way have senders of their own: their connection lasts as long as they do. Of those
            // without exchanges the first one stays.
            let mut first = pool.wanted_elsewhere() == 0;
            pool.shared.borrow_mut().retain(|shared| {
                let needed = std::mem::take(&mut first) || shared.streams.get() > 0;
                !gone && shared.open.get() && needed
            });
            !gone
        });
    }

    async fn connect(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        inside: Inside,
    ) -> Result<Stream, Error> {
        self.connector.open(endpoint, inside, cluster.settings.connect_timeout).await
    }

    fn pool(&self, cluster: &Cluster, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        let mut endpoints = self.endpoints.borrow_mut();
        let pool =
            endpoints.entry(endpoint.id).or_insert_with(|| Rc::new(Pool::new(cluster, endpoint)));
        pool.idle_timeout.set(cluster.settings.pool_idle_timeout);
        *pool.identity.borrow_mut() = self.connector.identity(endpoint);
        pool.clone()
    }
}

impl Pool {
    fn new(cluster: &Cluster, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            endpoint: Arc::downgrade(endpoint),
            state: cluster.state.clone(),
            idle_timeout: Cell::default(),
            identity: RefCell::default(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            dialling: tokio::sync::Mutex::default(),
            failures: Cell::default(),
            failure: RefCell::default(),
            returned: Notify::new(),
            waiting: Rc::default(),
        }
    }

    /// Requests that wait for a connection to another endpoint of the cluster, or in another worker.
    fn wanted_elsewhere(&self) -> usize {
        let waiting = self.state.limits.in_use(Resource::Pending);
        waiting.saturating_sub(self.waiting.get()) as usize
    }

    /// Whether a connection that was made as `identity` speaks for who we are now.
    fn is_ours(&self, identity: Option<&Arc<str>>) -> bool {
        self.identity.borrow().as_ref() == identity
    }

    fn note_failure(&self, error: &Error) {
        self.failures.set(self.failures.get() + 1);
        *self.failure.borrow_mut() = Some(error.clone());
    }

    /// Whether a connection that is there may take one more stream.
    fn has_room(&self) -> bool {
        self.drop_unusable();
        self.shared.borrow().iter().any(|shared| shared.streams.get() < MOST_STREAMS)
    }

    /// Forgets HTTP/2 connections that take no more exchanges, or were made as somebody else.
    fn drop_unusable(&self) {
        self.shared.borrow_mut().retain(|shared| {
            let ours = self.is_ours(shared.identity.as_ref());
            ours && shared.open.get() && !shared.sender.is_closed()
        });
    }

    /// Closes HTTP/2 connections that carry no exchange.
    fn close_unused(&self) {
        self.shared.borrow_mut().retain(|shared| shared.streams.get() > 0);
    }
}

impl Counted {
    fn one_of(count: &Rc<Cell<u32>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An idle connection that still lives, newest first.
async fn reuse(pool: &Rc<Pool>, timeout: Duration) -> Option<Connection> {
    loop {
        let Idle { mut sender, identity, since, permit } = pool.idle.borrow_mut().pop()?;
        let ours = pool.is_ours(identity.as_ref());
        if !ours || sender.is_closed() || since.elapsed() >= timeout {
            continue;
        }
        // Its last response was read to the end, so it is ready in this very turn or the next.
        if sender.is_ready() || is_soon_ready(&mut sender).await {
            return Some(Connection {
                sender,
                idle: Some(since.elapsed()),
                identity,
                // It has answered before.
                refusal: None,
                held: Held::Alone(permit),
                pool: pool.clone(),
            });
        }
    }
}

async fn is_soon_ready(sender: &mut Sender) -> bool {
    tokio::time::timeout(READY_WITHIN, sender.ready()).await == Ok(true)
}

/// A stream of the first HTTP/2 connection that has fewer than `limit`; where that is all there can be, of the one that
/// has the fewest.
fn share(pool: &Rc<Pool>, limit: u32) -> Option<Connection> {
    pool.drop_unusable();
    let shared = pool.shared.borrow();
    let fits = |shared: &&Shared| shared.streams.get() < limit;
    // What is beyond the peer's limit waits until one of the others ends. Who takes none may take some later.
    let is_taken = |shared: &&Shared| shared.streams.get() < shared.sender.most_streams().max(1);
    let found = match limit {
        MOST_STREAMS => shared.iter().min_by_key(|shared| shared.streams.get()).filter(fits),
        _ => shared.iter().find(|shared| fits(shared) && is_taken(shared)),
    }?;
    Some(Connection {
        sender: Sender::Http2(found.sender.clone()),
        idle: None,
        identity: found.identity.clone(),
        refusal: found.refusal.clone(),
        held: Held::Stream(Counted::one_of(&found.streams)),
        pool: pool.clone(),
    })
}

enum Waited {
    Connection(Connection),
    Permit(Permit),
}

/// Waits for a connection to come back, as one of at most `max_pending`.
async fn wait(pool: &Rc<Pool>, cluster: &Cluster) -> Result<Waited, Error> {
    let (limits, settings) = (&cluster.state.limits, &cluster.settings);
    let (_pending, deadline) = begin_to_wait(pool, cluster)?;
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

/// Counts one more that waits, and says until when it may.
fn begin_to_wait(pool: &Pool, cluster: &Cluster) -> Result<((Permit, Counted), Instant), Error> {
    let (limits, settings) = (&cluster.state.limits, &cluster.settings);
    let pending = limits
        .take(Resource::Pending, settings.max_pending)
        .ok_or_else(|| overflow(cluster, "too many requests are waiting for a connection"))?;
    let waiting = Counted::one_of(&pool.waiting);
    Ok(((pending, waiting), Instant::now() + settings.connect_timeout))
}

fn overflow(cluster: &Cluster, what: &str) -> Error {
    cluster.state.limits.reject();
    let detail = format!("{}: {what}", cluster.name);
    Error { retry: Retry::Unsafe, ..Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, detail) }
}

fn handshake_failed(endpoint: &Endpoint, error: &dyn std::fmt::Display) -> Error {
    let detail = format!("handshake with {}: {error}", endpoint.address());
    Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UF, Retry::Safe, detail)
}

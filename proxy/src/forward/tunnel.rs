//! Bytes instead of HTTP: `CONNECT`, upgrades, and ports that speak something else.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    affinity,
    exchange::Exchange,
    outbound, outcome, plugins, retry,
    worker::{Downstream, Worker},
};
use crate::{
    cluster::{
        Admitted, Cluster, Lease,
        breaker::{Permit, Resource},
        connect::Stream,
        pool::Connection,
        window::Kind,
    },
    error::{Error, Flag},
    filter::wasm::{Inspected, Run},
    http::{
        body::{Body, End, Incoming},
        head::Target,
        upgrade,
    },
    snapshot::Port,
    telemetry::{record::Direction, scope::Scope},
    tls::Inside,
};

/// Of what an endpoint says first under TLS: what is read of it to see that it speaks.
const FIRST_WORDS: usize = 1024;
/// Buffer of each direction. Larger ones pay only with large transfers, and idle tunnels hold them.
const BUFFER: usize = 16 * 1024;

/// Answers a `CONNECT`: a connection to an endpoint of the service first, then 200, then bytes.
pub(super) async fn connect(
    exchange: &mut Exchange,
    target: Target,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Error> {
    if exchange.downstream.direction == Direction::Inbound {
        let detail = "CONNECT is only for the own application";
        return Err(Error::downstream(StatusCode::METHOD_NOT_ALLOWED, Flag::DPE, detail));
    }
    let service = outbound::find_service(exchange, &target).await?;
    let port = outbound::find_port(&service, target.port)?;
    let cluster = tcp_cluster(port, exchange.worker.random())?;
    exchange.note(|record| {
        record.cluster = Some(cluster.name.clone());
        record.scope = Some(cluster.scope.clone());
    });
    let plugins = plugins::connection(
        &exchange.worker,
        &exchange.downstream,
        port.plugins.as_ref(),
        &port.cluster.name,
        None,
    );
    let plugins = plugins.await?;
    let source = exchange.downstream.address.ip();
    let hash = affinity::of_connection(cluster.settings.balancer.keys(), source).hash;
    let Dialled { mut stream, lease, permit, .. } =
        dial_to(&exchange.worker, &cluster, hash).await?;
    exchange.note_for_log(|record| record.upstream_peer = lease.endpoint.peer().cloned());
    exchange.note(|record| {
        record.status = StatusCode::OK.as_u16();
        record.attempts = 1;
        record.upstream = Some(lease.endpoint.address());
        record.scope = Some(lease.endpoint.scope().clone());
    });
    let downstream = upgrade::Pending::of_request(&mut request);
    let (worker, record) = (exchange.worker.clone(), exchange.take_record());
    let counted = exchange.downstream.counted.clone();
    tokio::task::spawn_local(async move {
        let moved = match downstream.stream().await {
            Ok(mut downstream) => {
                let tcp = TcpCount::open(&worker, lease.endpoint.scope());
                let idle = cluster.settings.idle_timeout;
                let moved = inspected(&mut downstream, (&mut stream, &[]), idle, plugins).await;
                tcp.close(&moved);
                if moved.end != End::Complete {
                    upgrade::cut(downstream);
                }
                moved
            }
            Err(_) => Moved { received: 0, sent: 0, end: End::Dropped },
        };
        drop((lease, permit, counted));
        if let Some(mut record) = record {
            record.request_bytes = moved.received;
            record.response_bytes = moved.sent;
            record.flag = outcome::of_response_body(moved.end);
            worker.finish(&record);
        }
    });
    Ok(Response::new(Body::Empty))
}

/// Joins the two sides of an agreed upgrade.
pub(super) fn upgraded(
    exchange: &mut Exchange,
    downstream: upgrade::Pending,
    upstream: upgrade::Pending,
    held: (Lease, Admitted, Connection),
    idle: Duration,
) {
    let (worker, record) = (exchange.worker.clone(), exchange.take_record());
    let counted = exchange.downstream.counted.clone();
    // Its plugins are told of the end when there is one.
    let run = exchange.plugins.take();
    tokio::task::spawn_local(async move {
        let moved = match tokio::try_join!(downstream.stream(), upstream.stream()) {
            Ok((mut downstream, mut upstream)) => pipe(&mut downstream, &mut upstream, idle).await,
            Err(_) => Moved { received: 0, sent: 0, end: End::Dropped },
        };
        drop((held, counted));
        if let Some(mut record) = record {
            record.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
            record.request_bytes = moved.received;
            record.response_bytes = moved.sent;
            record.flag = outcome::of_response_body(moved.end);
            if let Some(run) = run {
                run.conclude(|| plugins::outcome(&record));
            }
            worker.finish(&record);
        }
    });
}

/// Forwards a connection that is not HTTP to `cluster`, past `plugins`, and says how that ended. `caller`: whom it is
/// counted for, where the caller is known.
///
/// # Errors
/// When no endpoint can be reached; the caller can only be told by closing.
pub async fn forward(
    worker: &Worker,
    cluster: &Cluster,
    downstream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    caller: Option<&Scope>,
    plugins: Option<Rc<Run>>,
) -> Result<End, Error> {
    let dialled = dial(worker, cluster).await?;
    Ok(join(worker, cluster, downstream, dialled, caller, plugins).await)
}

/// Connects to an endpoint of a service's `port` for a captured connection, past its plugins. Also says which cluster it
/// is of.
///
/// # Errors
/// When no endpoint can be reached, or a plugin refuses.
pub async fn dial_service(
    worker: &Worker,
    downstream: &Downstream,
    port: &Port,
) -> Result<(Arc<Cluster>, Dialled, Option<Rc<Run>>), Error> {
    let cluster = tcp_cluster(port, worker.random())?;
    let chain = port.plugins.as_ref();
    let run = plugins::connection(worker, downstream, chain, &port.cluster.name, None).await?;
    let source = downstream.address.ip();
    let hash = affinity::of_connection(cluster.settings.balancer.keys(), source).hash;
    let dialled = dial_to(worker, &cluster, hash).await?;
    Ok((cluster, dialled, run))
}

/// Moves bytes between `downstream` and an endpoint that is connected already, to the end. When that is not
/// [`End::Complete`], the caller must not be left to think so.
pub async fn join(
    worker: &Worker,
    cluster: &Cluster,
    downstream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    Dialled { mut stream, lease, permit, early, broken }: Dialled,
    caller: Option<&Scope>,
    plugins: Option<Rc<Run>>,
) -> End {
    let counted = TcpCount::open(worker, caller.unwrap_or_else(|| lease.endpoint.scope()));
    let idle = cluster.settings.idle_timeout;
    let moved = match broken {
        true => Moved { received: 0, sent: 0, end: End::SenderFailed },
        false => inspected(downstream, (&mut stream, &early), idle, plugins).await,
    };
    counted.close(&moved);
    drop((lease, permit));
    moved.end
}

/// Moves bytes past the plugins that see them. `upstream` comes with what was read from it already.
async fn inspected(
    downstream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    upstream: (&mut Stream, &[u8]),
    idle: Duration,
    plugins: Option<Rc<Run>>,
) -> Moved {
    match plugins {
        None => through(downstream, upstream, idle).await,
        // On the heap: other connections need no room for it.
        Some(run) => {
            let mut downstream = Inspected::new(downstream, run);
            Box::pin(through(&mut downstream, upstream, idle)).await
        }
    }
}

async fn through(
    downstream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    (upstream, early): (&mut Stream, &[u8]),
    idle: Duration,
) -> Moved {
    match upstream {
        // On the heap: other connections need no room for it.
        upstream if !early.is_empty() => {
            Box::pin(pipe(downstream, &mut Begun { early, stream: upstream }, idle)).await
        }
        Stream::Tcp(upstream) => {
            let moved = pipe(downstream, upstream, idle).await;
            if moved.end != End::Complete {
                // An ordinary end would say that these were all bytes. If it is closed already there is nothing to be done.
                let _ = upstream.set_zero_linger();
            }
            moved
        }
        // Ends unannounced, which says the same.
        encrypted @ Stream::Tls(_) => pipe(downstream, encrypted, idle).await,
    }
}

/// Where a connection to this port goes: as its TCPRoute says, else to the service's own endpoints.
fn tcp_cluster(port: &Port, random: u64) -> Result<Arc<Cluster>, Error> {
    let Some(split) = &port.tcp else { return Ok(port.cluster.clone()) };
    let none = || {
        outbound::no_backend(format!("{}: the TCPRoute has no usable backend", port.cluster.name))
    };
    split.pick(|| random).and_then(|backend| backend.cluster.clone()).ok_or_else(none)
}

/// A connection to an endpoint, with what is held while it lasts.
#[derive(Debug)]
pub struct Dialled {
    stream: Stream,
    lease: Lease,
    permit: Permit,
    /// What it has said already, where that could not be left where it was.
    early: Vec<u8>,
    /// Whether it has broken off before it said anything.
    broken: bool,
}

impl Dialled {
    /// Waits until the endpoint says something, or closes; nothing of what it says is lost.
    pub async fn spoken(&mut self) {
        // An end is found again by whoever reads; an error is told once only.
        let spoken = match &mut self.stream {
            Stream::Tcp(stream) => stream.peek(&mut [0]).await.map(drop),
            encrypted @ Stream::Tls(_) => {
                let mut first = [0; FIRST_WORDS];
                let read = encrypted.read(&mut first).await;
                read.map(|read| {
                    self.early.extend_from_slice(first.get(..read).unwrap_or_default());
                })
            }
        };
        self.broken |= spoken.is_err();
    }
}

/// Connects to one endpoint after the other; nothing was sent, so trying again is safe.
///
/// # Errors
/// When there is none, none can be reached, or the cluster is at its limits.
pub async fn dial(worker: &Worker, cluster: &Cluster) -> Result<Dialled, Error> {
    dial_to(worker, cluster, None).await
}

/// The same for a connection that belongs to an endpoint by its `hash`.
async fn dial_to(worker: &Worker, cluster: &Cluster, hash: Option<u64>) -> Result<Dialled, Error> {
    let limits = &cluster.state.limits;
    let permit =
        limits.take(Resource::Connections, cluster.settings.max_connections).ok_or_else(|| {
            limits.reject();
            let detail = format!("{}: too many connections", cluster.name);
            Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, detail)
        })?;
    let pass = cluster.pass(worker.shared.now()).map_err(|retry_after| {
        outcome::of_open_circuit(
            &cluster.name,
            cluster.state.circuit.load().as_deref(),
            retry_after,
        )
    })?;
    let mut tried = Vec::new();
    loop {
        let lease = worker.lease(cluster, &tried, hash, std::time::Instant::now())?;
        tried.push(lease.endpoint.id);
        let attempts = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        let limit = cluster.settings.connect_timeout;
        let opened = worker.connector.open(&lease.endpoint, Inside::Tcp, limit).await;
        // Of bytes nobody knows what they say: that there is a connection is all there is to judge by.
        let kind = match &opened {
            Ok(_) => Some(Kind::Success),
            Err(error) => outcome::of_error(error),
        };
        let now = std::time::Instant::now();
        let judged = kind.map(|kind| worker.observe(cluster, &lease, kind, opened.is_ok(), now));
        match opened {
            Err(error) if retry::again(&error, attempts, cluster.settings.retry.attempts) => {}
            ended => {
                if let Some(judged) = judged {
                    judged.settle(&pass);
                }
                return ended.map(|stream| Dialled {
                    stream,
                    lease,
                    permit,
                    early: Vec::new(),
                    broken: false,
                });
            }
        }
    }
}

/// What went through a tunnel, and how it ended.
#[derive(Clone, Copy, Debug)]
struct Moved {
    /// Bytes from the caller.
    received: u64,
    /// Bytes to the caller.
    sent: u64,
    end: End,
}

/// Moves bytes both ways until both sides are done (each may close its half first), one fails, or nothing moves for
/// `idle` (`ZERO`: no limit).
async fn pipe(
    downstream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    upstream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    idle: Duration,
) -> Moved {
    let activity = Rc::new(Activity {
        last: Cell::new(Instant::now()),
        received: Cell::new(0),
        sent: Cell::new(0),
    });
    let mut downstream = Watched { inner: downstream, activity: activity.clone() };
    let copy = tokio::io::copy_bidirectional_with_sizes(&mut downstream, upstream, BUFFER, BUFFER);
    let end = tokio::select! {
        result = copy => if result.is_ok() { End::Complete } else { End::SenderFailed },
        () = idled(&activity, idle) => End::TimedOut,
    };
    Moved { received: activity.received.get(), sent: activity.sent.get(), end }
}

async fn idled(activity: &Activity, idle: Duration) {
    if idle.is_zero() {
        std::future::pending::<()>().await;
    }
    loop {
        let due = activity.last.get() + idle;
        if Instant::now() >= due {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

/// A stream of which something was read before.
struct Begun<'a> {
    early: &'a [u8],
    stream: &'a mut Stream,
}

impl AsyncRead for Begun<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.early.is_empty() {
            return Pin::new(&mut *this.stream).poll_read(context, buffer);
        }
        let (now, later) = this.early.split_at(this.early.len().min(buffer.remaining()));
        buffer.put_slice(now);
        this.early = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_shutdown(context)
    }
}

struct Activity {
    last: Cell<Instant>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

/// The downstream side, with an eye on what passes.
struct Watched<'a, S> {
    inner: &'a mut S,
    activity: Rc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut *this.inner).poll_read(context, buffer);
        if polled.is_ready() {
            let moved = buffer.filled().len() - before;
            this.activity.received.set(this.activity.received.get() + moved as u64);
            this.activity.last.set(Instant::now());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.inner).poll_write(context, bytes);
        if let Poll::Ready(Ok(moved)) = &polled {
            this.activity.sent.set(this.activity.sent.get() + *moved as u64);
            this.activity.last.set(Instant::now());
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().inner).poll_shutdown(context)
    }
}

/// Counts a TCP connection in Istio's TCP metrics.
struct TcpCount {
    series: crate::telemetry::metrics::TcpSeries,
}

impl TcpCount {
    fn open(worker: &Worker, scope: &Scope) -> Self {
        let series = worker.shared.families.tcp(scope);
        series.opened.inc();
        Self { series }
    }

    fn close(self, moved: &Moved) {
        self.series.closed.inc();
        self.series.received.inc_by(moved.received);
        self.series.sent.inc_by(moved.sent);
    }
}

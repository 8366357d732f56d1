//! One downstream connection: what it speaks, then served as that.

use std::{rc::Rc, sync::Arc, time::Duration};

use leno_api::model::{peer_authentication::TlsMode, service::Protocol as Declared};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};

use super::{
    accept::refused,
    captured, handshake,
    hello::{self, Hello},
    sniff::{self, Protocol},
};
use crate::{
    error::Error,
    filter::wasm::Run,
    forward::{
        exchange, guard, plugins,
        tunnel::{self, Dialled},
        worker::{Downstream, Worker},
    },
    http::{
        body::End,
        server::{self, Ended},
    },
    snapshot::{Inbound, InboundPort},
    telemetry::record::Direction,
};

/// How long a caller of a port that may speak anything can stay silent before it is taken for a protocol in which the
/// server speaks first.
pub(super) const SERVER_FIRST: Duration = Duration::from_millis(200);
/// Between two looks at a connection that has sent too little to tell: at first, and at most. Each wait is twice the
/// one before, so that ten thousand callers of one byte each cost nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOK_SELDOM: Duration = Duration::from_millis(500);

/// How a verdict is reached.
pub(super) type Sniffer = fn(&[u8]) -> Protocol;

/// Serves a connection to its end.
pub async fn serve(worker: &Rc<Worker>, stream: TcpStream, downstream: Downstream) {
    match downstream.direction {
        Direction::Inbound => inbound(worker, stream, downstream).await,
        Direction::Outbound => outbound(worker, stream, downstream).await,
    }
}

/// From our own application: HTTP, or whatever it is that the kernel has led here.
async fn outbound(worker: &Rc<Worker>, stream: TcpStream, downstream: Downstream) {
    if let Some(original) = downstream.original() {
        // On the heap: other connections need no room for it.
        return Box::pin(captured::outbound(worker, stream, downstream, original)).await;
    }
    match sniff_by(worker, &stream, worker.shared.limits.head_timeout, sniff::sniff).await {
        Some(First::Protocol(protocol @ (Protocol::Http1 | Protocol::Http2))) => {
            http(worker, stream, downstream, protocol == Protocol::Http2).await;
        }
        Some(First::Protocol(Protocol::Tls)) => refused(&worker.shared, Direction::Outbound, "tls"),
        Some(First::Protocol(_)) => {
            refused(&worker.shared, Direction::Outbound, "unknown_protocol");
        }
        Some(First::Nothing) | None => refused(&worker.shared, Direction::Outbound, "silent"),
    }
}

/// From others: a hop of the mesh under TLS, or plain where a port takes that.
async fn inbound(worker: &Rc<Worker>, mut stream: TcpStream, downstream: Downstream) {
    let published = &worker.shared.published;
    let original = downstream.original();
    let is_known = |ports: &Inbound| {
        !ports.by_destination.is_empty() || (original.is_some() && ports.undeclared.is_some())
    };
    if published.is_on_demand() && !is_known(&worker.snapshot().inbound) {
        published.inbound_known(worker.shared.on_demand_timeout).await;
    }
    let ports = worker.snapshot().inbound.clone();
    let takes = match original {
        None => Takes::any_of(&ports),
        Some(original) => match captured::application(worker, &downstream, original, &ports) {
            Ok(port) => Takes::one(port, &ports),
            Err(astray) => return captured::undeclared(worker, stream, &downstream, astray).await,
        },
    };
    let tcp = takes.tcp.filter(|port| port.mode != TlsMode::Strict);
    if let Some(port) = tcp.filter(|_| takes.is_alone) {
        return Box::pin(opaque(worker, stream, &downstream, port)).await;
    }
    let limit = match tcp {
        Some(_) => SERVER_FIRST,
        None if takes.only_tls => handshake::LIMIT,
        None => worker.shared.limits.head_timeout,
    };
    let sniffer = takes.sniffer;
    let first = match (sniff_by(worker, &stream, limit, sniffer).await, tcp) {
        (Some(First::Nothing), Some(port)) => {
            let spoken = server_first(worker, &mut stream, &downstream, port, sniffer);
            match Box::pin(spoken).await {
                Some(protocol) => protocol,
                None => return,
            }
        }
        (Some(First::Protocol(protocol)), _) => protocol,
        (Some(First::Nothing) | None, _) => {
            return refused(&worker.shared, Direction::Inbound, "silent");
        }
    };
    let refuse = |reason| refused(&worker.shared, Direction::Inbound, reason);
    match (first, tcp) {
        (Protocol::Tls, tcp) => match (whose(worker, &stream, tcp.is_some()).await, tcp) {
            (Some(Hello::Ours), _) if ports.tls => {
                // On the heap: plain connections need no room for it.
                Box::pin(handshake::serve(worker, stream, downstream)).await;
            }
            (Some(Hello::Foreign | Hello::NeedMore), Some(port)) => {
                Box::pin(opaque(worker, stream, &downstream, port)).await;
            }
            (Some(_), _) => refuse("tls"),
            (None, _) => refuse("silent"),
        },
        _ if takes.only_tls => refuse("plaintext_refused"),
        (Protocol::Http1 | Protocol::Http2, _) => {
            http(worker, stream, downstream, first == Protocol::Http2).await;
        }
        (_, Some(port)) => Box::pin(opaque(worker, stream, &downstream, port)).await,
        (_, None) if takes.tcp.is_some() => refuse("plaintext_refused"),
        (_, None) => refuse("unknown_protocol"),
    }
}

/// What an inbound connection may be for, before anything of it was seen.
struct Takes<'a> {
    /// The only port that may speak something else than HTTP.
    tcp: Option<&'a Arc<InboundPort>>,
    /// Whether that needs no look at the bytes: it is declared TCP, and there is no other that speaks HTTP or takes TLS.
    is_alone: bool,
    /// Whether nothing but mutual TLS is taken.
    only_tls: bool,
    /// How the bytes are looked at.
    sniffer: Sniffer,
}

impl<'a> Takes<'a> {
    /// It may be for any of them.
    fn any_of(ports: &'a Inbound) -> Self {
        let tcp = ports.only_tcp.as_ref();
        let no_other = ports.only_http.is_none() && !ports.tls;
        let is_alone = no_other && tcp.is_some_and(|port| port.protocol == Declared::Tcp);
        Self { tcp, is_alone, only_tls: ports.only_tls, sniffer: sniff::sniff }
    }

    /// It is for this one.
    fn one(port: &'a Arc<InboundPort>, ports: &Inbound) -> Self {
        let tcp = matches!(port.protocol, Declared::Tcp | Declared::Auto).then_some(port);
        let no_tls = !ports.tls || port.mode == TlsMode::Disable;
        Self {
            tcp,
            is_alone: port.protocol == Declared::Tcp && no_tls,
            only_tls: port.mode == TlsMode::Strict,
            sniffer: match port.protocol {
                // What is said there is the application's affair, also where it looks like HTTP.
                Declared::Tcp => sniff::sniff_tls,
                Declared::Auto => sniff::sniff_anything,
                Declared::Http | Declared::Http2 | Declared::Grpc => sniff::sniff,
            },
        }
    }
}

/// What came first from the caller.
pub(super) enum First {
    /// Bytes that tell what it speaks.
    Protocol(Protocol),
    /// Not a byte within the time given.
    Nothing,
}

/// Looks at the first bytes without taking them, as `sniffer` tells. After `limit` what is not clear is
/// [`Protocol::Opaque`]; `None` when the connection has ended.
pub(super) async fn sniff_by(
    worker: &Worker,
    stream: &TcpStream,
    limit: Duration,
    sniffer: Sniffer,
) -> Option<First> {
    let mut bytes = [0; sniff::ENOUGH];
    let verdict = |bytes: &[u8]| match sniffer(bytes) {
        Protocol::NeedMore => None,
        protocol => Some(protocol),
    };
    match look(worker, stream, Instant::now() + limit, &mut bytes, verdict).await? {
        Looked::Verdict(protocol) => Some(First::Protocol(protocol)),
        Looked::Unclear => Some(First::Protocol(Protocol::Opaque)),
        Looked::Nothing => Some(First::Nothing),
    }
}

/// Whose TLS begins here. Only where the application may speak its own (`may_be_foreign`) does that need a look. `None`
/// when the connection has ended.
async fn whose(worker: &Worker, stream: &TcpStream, may_be_foreign: bool) -> Option<Hello> {
    if !may_be_foreign {
        return Some(Hello::Ours);
    }
    let deadline = Instant::now() + handshake::LIMIT;
    // Few need the larger room, and many who wait for the rest of their hello must not hold it.
    for room in [hello::USUAL, hello::MOST] {
        let mut bytes = vec![0; room];
        let verdict = |bytes: &[u8]| match hello::read(bytes) {
            Hello::NeedMore if bytes.len() < room => None,
            hello => Some(hello),
        };
        match look(worker, stream, deadline, &mut bytes, verdict).await? {
            Looked::Verdict(Hello::NeedMore) => {}
            Looked::Verdict(hello) => return Some(hello),
            Looked::Unclear | Looked::Nothing => break,
        }
    }
    Some(Hello::NeedMore)
}

enum Looked<T> {
    Verdict(T),
    /// There were bytes, but not enough.
    Unclear,
    Nothing,
}

/// Looks at the first bytes, again and again, without taking them, until `verdict` can tell or `deadline` has passed.
/// `None` when the connection has ended. Whoever had just connected when the proxy began to drain is waited for a little.
async fn look<T>(
    worker: &Worker,
    stream: &TcpStream,
    mut deadline: Instant,
    bytes: &mut [u8],
    verdict: impl Fn(&[u8]) -> Option<T>,
) -> Option<Looked<T>> {
    let mut drain = worker.shared.drain.clone();
    let mut pause = LOOK_AGAIN;
    let (mut known, mut draining) = (0, false);
    loop {
        let seen = tokio::select! {
            seen = stream.peek(bytes) => seen.ok()?,
            () = tokio::time::sleep_until(deadline) => return Some(Looked::Nothing),
            _ = drain.wait_for(|draining| *draining), if !draining => {
                draining = true;
                deadline = deadline.min(Instant::now() + server::LINGER);
                continue;
            }
        };
        if seen == 0 {
            return None;
        }
        // The same bytes say the same.
        if seen > known
            && let Some(verdict) = verdict(&bytes[..seen])
        {
            return Some(Looked::Verdict(verdict));
        }
        if Instant::now() >= deadline {
            return Some(Looked::Unclear);
        }
        known = seen;
        // Peeking again would return the same bytes at once: wait for the rest of them.
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = LOOK_SELDOM.min(pause * 2);
    }
}

/// The caller of a port that may speak anything is silent: it waits for the application to speak first, or is only
/// slow to send its request. The application is connected to, and whoever speaks first decides; a guess by time alone
/// would give an HTTP request to an application that speaks something else, where nobody answers it.
///
/// Says what the caller speaks; `None` when the connection was seen to its end here.
async fn server_first(
    worker: &Rc<Worker>,
    stream: &mut TcpStream,
    downstream: &Downstream,
    port: &InboundPort,
    sniffer: Sniffer,
) -> Option<Protocol> {
    let failed = |error: &Error| {
        refused(&worker.shared, downstream.direction, error.flag.as_str());
        tracing::debug!("{}: {error}", downstream.address);
    };
    let mut dialled = tunnel::dial(worker, &port.cluster).await.inspect_err(failed).ok()?;
    let idle = port.cluster.settings.idle_timeout;
    if caller_speaks_first(worker, stream, &mut dialled, idle).await?
        && let Some(First::Protocol(protocol @ (Protocol::Http1 | Protocol::Http2 | Protocol::Tls))) =
            sniff_by(worker, stream, SERVER_FIRST, sniffer).await
    {
        return Some(protocol);
    }
    let port = in_force(worker, port)?;
    if guard::connection(worker, downstream, &port).inspect_err(failed).is_err() {
        return None;
    }
    let shown = shown(worker, downstream, &port).await;
    if let Ok(run) = shown.inspect_err(failed) {
        let end = tunnel::join(worker, &port.cluster, stream, dialled, None, run).await;
        cut_unless_whole(stream, end);
    }
    None
}

/// Waits for the caller or the endpoint to speak, and says whether it was the caller. `None` when both were silent for
/// `idle`, or for a moment while the proxy drains.
pub(super) async fn caller_speaks_first(
    worker: &Worker,
    stream: &TcpStream,
    dialled: &mut Dialled,
    idle: Duration,
) -> Option<bool> {
    let mut drain = worker.shared.drain.clone();
    let mut first = [0];
    tokio::select! {
        biased;
        _ = stream.peek(&mut first) => Some(true),
        () = dialled.spoken() => Some(false),
        () = tokio::time::sleep(idle), if !idle.is_zero() => None,
        () = async {
            server::drained(&mut drain).await;
            tokio::time::sleep(server::LINGER).await;
        } => None,
    }
}

/// The same port as it is now: its mode and policies may be others than when a caller came who then kept silent. `None`
/// when it takes no plain connections any more; then this one is refused.
fn in_force(worker: &Worker, port: &InboundPort) -> Option<Arc<InboundPort>> {
    let port = worker.snapshot().inbound.by_destination.get(&*port.destination).cloned();
    let plain = port.filter(|port| port.mode != TlsMode::Strict);
    if plain.is_none() {
        refused(&worker.shared, Direction::Inbound, "plaintext_refused");
    }
    plain
}

async fn opaque(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    downstream: &Downstream,
    port: &InboundPort,
) {
    let Some(port) = in_force(worker, port) else { return };
    let forwarded = async {
        guard::connection(worker, downstream, &port)?;
        let run = shown(worker, downstream, &port).await?;
        tunnel::forward(worker, &port.cluster, &mut stream, None, run).await
    };
    match forwarded.await {
        Ok(end) => cut_unless_whole(&stream, end),
        Err(error) => {
            refused(&worker.shared, downstream.direction, error.flag.as_str());
            tracing::debug!("{}: {error}", downstream.address);
        }
    }
}

/// The plugins of `port` that see what is not HTTP.
pub(super) async fn shown(
    worker: &Worker,
    downstream: &Downstream,
    port: &InboundPort,
) -> Result<Option<Rc<Run>>, Error> {
    let (chain, address) = (port.plugins.as_ref(), Some(port.address));
    plugins::connection(worker, downstream, chain, &port.destination, address).await
}

/// An ordinary end would tell the caller that it has all bytes.
pub(super) fn cut_unless_whole(stream: &TcpStream, end: End) {
    if end != End::Complete {
        // If it is closed already there is nothing to be done.
        let _ = stream.set_zero_linger();
    }
}

/// Serves HTTP to the end of the connection.
pub(super) async fn http(
    worker: &Rc<Worker>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    downstream: Downstream,
    http2: bool,
) {
    let (limits, drain) = (worker.shared.limits, worker.shared.drain.clone());
    let answer = {
        let (worker, downstream) = (worker.clone(), downstream.clone());
        move |request| exchange::answer(worker.clone(), downstream.clone(), request)
    };
    let ended = match http2 {
        // On the heap: connections of HTTP/1.1, which callers have far more of, need no room for it.
        true => Box::pin(server::serve_http2(stream, limits, drain, answer)).await,
        false => server::serve_http1(stream, limits, drain, answer).await,
    };
    let reason = match ended {
        Ended::Clean | Ended::Broken => return,
        Ended::Malformed => "malformed",
        Ended::TimedOut => "timeout",
    };
    refused(&worker.shared, downstream.direction, reason);
}

#[cfg(test)]
mod tests;

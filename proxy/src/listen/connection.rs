//! One downstream connection: what it speaks, then served as that.

use std::{rc::Rc, time::Duration};

use leno_api::model::service::Protocol as Declared;
use tokio::{net::TcpStream, time::Instant};

use super::{
    accept::refused,
    sniff::{self, Protocol},
};
use crate::{
    error::Error,
    forward::{
        exchange, tunnel,
        worker::{Downstream, Worker},
    },
    http::server::{self, Ended},
    snapshot::InboundPort,
    telemetry::record::Direction,
};

/// How long a caller of a port that may speak anything can stay silent before it is taken for a protocol in which the
/// server speaks first.
const SERVER_FIRST: Duration = Duration::from_millis(200);
/// Between two looks at a connection that has sent too little to tell: at first, and at most. Each wait is twice the
/// one before, so that ten thousand callers of one byte each cost nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOK_SELDOM: Duration = Duration::from_millis(500);

/// Serves a connection to its end.
pub async fn serve(worker: &Rc<Worker>, mut stream: TcpStream, downstream: Downstream) {
    let published = &worker.shared.published;
    if downstream.direction == Direction::Inbound
        && published.is_on_demand()
        && worker.snapshot().inbound.by_destination.is_empty()
    {
        published.inbound_known(worker.shared.on_demand_timeout).await;
    }
    let tcp = match downstream.direction {
        Direction::Inbound => worker.snapshot().inbound.only_tcp.clone(),
        Direction::Outbound => None,
    };
    // Only a port that is declared TCP, beside no port that speaks HTTP, needs no look at the bytes.
    let only_tcp = tcp.as_ref().is_some_and(|port| port.protocol == Declared::Tcp)
        && worker.snapshot().inbound.only_http.is_none();
    if let (true, Some(port)) = (only_tcp, &tcp) {
        return opaque(worker, stream, &downstream, port).await;
    }
    let limit = if tcp.is_some() { SERVER_FIRST } else { worker.shared.limits.head_timeout };
    let first = match (sniff(worker, &stream, limit).await, &tcp) {
        (Some(First::Nothing), Some(port)) => {
            match server_first(worker, &mut stream, &downstream, port).await {
                Some(protocol) => protocol,
                None => return,
            }
        }
        (Some(First::Protocol(protocol)), _) => protocol,
        (Some(First::Nothing) | None, _) => {
            return refused(&worker.shared, downstream.direction, "silent");
        }
    };
    match (first, tcp) {
        (Protocol::Http1, _) => {
            let (limits, drain) = (worker.shared.limits, worker.shared.drain.clone());
            let worker = worker.clone();
            let ended = server::serve_http1(stream, limits, drain, {
                let (worker, downstream) = (worker.clone(), downstream.clone());
                move |request| exchange::answer(worker.clone(), downstream.clone(), request)
            });
            count_end(&worker, &downstream, ended.await);
        }
        (Protocol::Http2, _) => {
            let (limits, drain) = (worker.shared.limits, worker.shared.drain.clone());
            let worker = worker.clone();
            let ended = server::serve_http2(stream, limits, drain, {
                let (worker, downstream) = (worker.clone(), downstream.clone());
                move |request| exchange::answer(worker.clone(), downstream.clone(), request)
            });
            count_end(&worker, &downstream, ended.await);
        }
        (_, Some(port)) => opaque(worker, stream, &downstream, &port).await,
        (Protocol::Tls, None) => refused(&worker.shared, downstream.direction, "tls"),
        (_, None) => refused(&worker.shared, downstream.direction, "unknown_protocol"),
    }
}

/// What came first from the caller.
enum First {
    /// Bytes that tell what it speaks.
    Protocol(Protocol),
    /// Not a byte within the time given.
    Nothing,
}

/// Looks at the first bytes without taking them. After `limit` what is not clear is [`Protocol::Opaque`]; `None` when
/// the connection has ended or the proxy drains.
async fn sniff(worker: &Worker, stream: &TcpStream, limit: Duration) -> Option<First> {
    let deadline = Instant::now() + limit;
    let mut drain = worker.shared.drain.clone();
    let mut bytes = [0; sniff::ENOUGH];
    let mut pause = LOOK_AGAIN;
    loop {
        let seen = tokio::select! {
            seen = stream.peek(&mut bytes) => seen.ok()?,
            () = tokio::time::sleep_until(deadline) => return Some(First::Nothing),
            _ = drain.wait_for(|draining| *draining) => return None,
        };
        match sniff::sniff(&bytes[..seen]) {
            Protocol::NeedMore if seen == 0 => return None,
            Protocol::NeedMore if Instant::now() >= deadline => {
                return Some(First::Protocol(Protocol::Opaque));
            }
            // Peeking again would return the same bytes at once: wait for the rest of them.
            Protocol::NeedMore => {
                tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
                pause = LOOK_SELDOM.min(pause * 2);
            }
            protocol => return Some(First::Protocol(protocol)),
        }
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
) -> Option<Protocol> {
    let failed = |error: &Error| {
        refused(&worker.shared, downstream.direction, error.flag.as_str());
        tracing::debug!("{}: {error}", downstream.address);
    };
    let dialled = tunnel::dial(worker, &port.cluster).await.inspect_err(failed).ok()?;
    let idle = port.cluster.settings.idle_timeout;
    let (mut asked, mut answered) = ([0], [0]);
    let mut drain = worker.shared.drain.clone();
    let caller_spoke = tokio::select! {
        biased;
        _ = stream.peek(&mut asked) => true,
        _ = dialled.stream.peek(&mut answered) => false,
        () = tokio::time::sleep(idle), if !idle.is_zero() => return None,
        _ = drain.wait_for(|draining| *draining) => return None,
    };
    if caller_spoke
        && let Some(First::Protocol(protocol @ (Protocol::Http1 | Protocol::Http2))) =
            sniff(worker, stream, SERVER_FIRST).await
    {
        return Some(protocol);
    }
    tunnel::join(worker, &port.cluster, stream, dialled).await;
    None
}

async fn opaque(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    downstream: &Downstream,
    port: &InboundPort,
) {
    if let Err(error) = tunnel::forward(worker, &port.cluster, &mut stream).await {
        refused(&worker.shared, downstream.direction, error.flag.as_str());
        tracing::debug!("{}: {error}", downstream.address);
    }
}

fn count_end(worker: &Worker, downstream: &Downstream, ended: Ended) {
    let reason = match ended {
        Ended::Clean | Ended::Broken => return,
        Ended::Malformed => "malformed",
        Ended::TimedOut => "timeout",
    };
    refused(&worker.shared, downstream.direction, reason);
}

#[cfg(test)]
mod tests;

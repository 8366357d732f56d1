//! One downstream connection: what it speaks, then served as that.

use std::{rc::Rc, time::Duration};

use leno_api::model::service::Protocol as Declared;
use tokio::{net::TcpStream, time::Instant};

use super::{
    accept::refused,
    sniff::{self, Protocol},
};
use crate::{
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
/// Between two looks at a connection that has sent too little to tell.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Serves a connection to its end.
pub async fn serve(worker: &Rc<Worker>, stream: TcpStream, downstream: Downstream) {
    let tcp = match downstream.direction {
        Direction::Inbound => worker.snapshot().inbound.only_tcp.clone(),
        Direction::Outbound => None,
    };
    // Only a port that is declared TCP, beside no port that speaks HTTP, needs no look at the bytes.
    let only_tcp = tcp.as_ref().is_some_and(|port| port.protocol == Declared::Tcp)
        && worker.snapshot().inbound.only_http.is_none();
    if let (true, Some(port)) = (only_tcp, &tcp) {
        return opaque(worker, stream, downstream, port).await;
    }
    let limit = if tcp.is_some() { SERVER_FIRST } else { worker.shared.limits.head_timeout };
    match (sniff(worker, &stream, limit).await, tcp) {
        (Some(Protocol::Http1), _) => {
            let (limits, drain) = (worker.shared.limits, worker.shared.drain.clone());
            let worker = worker.clone();
            let ended = server::serve_http1(stream, limits, drain, {
                let worker = worker.clone();
                move |request| exchange::answer(worker.clone(), downstream, request)
            });
            count_end(&worker, downstream, ended.await);
        }
        (Some(Protocol::Http2), _) => {
            let (limits, drain) = (worker.shared.limits, worker.shared.drain.clone());
            let worker = worker.clone();
            let ended = server::serve_http2(stream, limits, drain, {
                let worker = worker.clone();
                move |request| exchange::answer(worker.clone(), downstream, request)
            });
            count_end(&worker, downstream, ended.await);
        }
        (Some(_), Some(port)) => opaque(worker, stream, downstream, &port).await,
        (Some(Protocol::Tls), None) => refused(&worker.shared, downstream.direction, "tls"),
        (Some(_), None) => refused(&worker.shared, downstream.direction, "unknown_protocol"),
        (None, _) => refused(&worker.shared, downstream.direction, "silent"),
    }
}

/// Looks at the first bytes without taking them. After `limit` what is not clear is [`Protocol::Opaque`]; `None` when
/// the connection has ended, the proxy drains, or nothing came where something had to.
async fn sniff(worker: &Worker, stream: &TcpStream, limit: Duration) -> Option<Protocol> {
    let deadline = Instant::now() + limit;
    let mut drain = worker.shared.drain.clone();
    let mut bytes = [0; sniff::ENOUGH];
    loop {
        let seen = tokio::select! {
            seen = stream.peek(&mut bytes) => seen.ok()?,
            () = tokio::time::sleep_until(deadline) => return Some(Protocol::Opaque),
            _ = drain.wait_for(|draining| *draining) => return None,
        };
        match sniff::sniff(&bytes[..seen]) {
            Protocol::NeedMore if seen == 0 => return None,
            Protocol::NeedMore if Instant::now() >= deadline => return Some(Protocol::Opaque),
            // Peeking again would return the same bytes at once: wait for the rest of them.
            Protocol::NeedMore => tokio::time::sleep(LOOK_AGAIN).await,
            protocol => return Some(protocol),
        }
    }
}

async fn opaque(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    downstream: Downstream,
    port: &InboundPort,
) {
    if let Err(error) = tunnel::forward(worker, &port.cluster, &mut stream).await {
        refused(&worker.shared, downstream.direction, error.flag.as_str());
        tracing::debug!("{}: {error}", downstream.address);
    }
}

fn count_end(worker: &Worker, downstream: Downstream, ended: Ended) {
    let reason = match ended {
        Ended::Clean | Ended::Broken => return,
        Ended::Malformed => "malformed",
        Ended::TimedOut => "timeout",
    };
    refused(&worker.shared, downstream.direction, reason);
}

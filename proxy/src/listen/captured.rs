//! Connections that the kernel has led to us, where they differ from others: what they are for is said by where they were
//! going.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use leno_api::model::{peer_authentication::TlsMode, service::Protocol as Declared};
use tokio::net::TcpStream;

use super::{
    accept::refused,
    connection::{
        First, SERVER_FIRST, Sniffer, caller_speaks_first, cut_unless_whole, http, sniff_by,
    },
    sniff::{self, Protocol},
};
use crate::{
    cluster::Cluster,
    error::Error,
    filter::wasm::Run,
    forward::{
        capture::{self, Astray},
        guard,
        tunnel::{self, Dialled},
        worker::{Downstream, Worker},
    },
    http::body::End,
    snapshot::{Inbound, InboundPort},
    telemetry::record::Direction,
};

/// From our own application to `original`.
pub(super) async fn outbound(
    worker: &Rc<Worker>,
    stream: TcpStream,
    downstream: Downstream,
    original: SocketAddr,
) {
    let service = capture::known_at(worker, original.ip());
    let port = service.as_ref().and_then(|service| service.port(Some(original.port())));
    let (limit, sniffer): (_, Sniffer) = match port.map_or(Declared::Auto, |port| port.protocol) {
        Declared::Tcp => return bytes(worker, stream, &downstream, original).await,
        Declared::Http | Declared::Http2 | Declared::Grpc => {
            (worker.shared.limits.head_timeout, sniff::sniff)
        }
        Declared::Auto => (SERVER_FIRST, sniff::sniff_anything),
    };
    let may_be_server = limit == SERVER_FIRST;
    let first = sniff_by(worker, &stream, limit, sniffer).await;
    // Our own connections are known by now, if they have said something.
    if is_astray(worker, &stream, &downstream, original) {
        return;
    }
    match first {
        Some(First::Protocol(protocol @ (Protocol::Http1 | Protocol::Http2))) => {
            http(worker, stream, downstream, protocol == Protocol::Http2).await;
        }
        Some(First::Protocol(_)) => bytes(worker, stream, &downstream, original).await,
        Some(First::Nothing) if may_be_server => {
            server_first(worker, stream, downstream, original).await;
        }
        Some(First::Nothing) | None => refused(&worker.shared, Direction::Outbound, "silent"),
    }
}

/// Whether the connection must not go where it was going; then it is cut off, and counted.
fn is_astray(
    worker: &Worker,
    stream: &TcpStream,
    downstream: &Downstream,
    original: SocketAddr,
) -> bool {
    let astray = astray(worker, downstream, original);
    if let Some(astray) = astray {
        cut_unless_whole(stream, End::Dropped);
        refused(&worker.shared, downstream.direction, astray.as_str());
    }
    astray.is_some()
}

fn astray(worker: &Worker, downstream: &Downstream, original: SocketAddr) -> Option<Astray> {
    let capture = worker.shared.capture.as_ref()?;
    capture.astray(downstream.direction, downstream.address, original)
}

/// To whoever is at `original`, byte by byte.
async fn bytes(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    downstream: &Downstream,
    original: SocketAddr,
) {
    if is_astray(worker, &stream, downstream, original) {
        return;
    }
    match dial(worker, downstream, original).await {
        Ok((cluster, dialled, run)) => {
            let end = tunnel::join(worker, &cluster, &mut stream, dialled, None, run).await;
            cut_unless_whole(&stream, end);
        }
        Err(error) => failed(worker, &stream, downstream, &error),
    }
}

/// The application is silent: it waits for the other side to speak first, or is only slow to send its request. Whoever
/// is at `original` is connected to, and who speaks first decides.
async fn server_first(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    downstream: Downstream,
    original: SocketAddr,
) {
    let (cluster, mut dialled, run) = match dial(worker, &downstream, original).await {
        Ok(dialled) => dialled,
        Err(error) => return failed(worker, &stream, &downstream, &error),
    };
    let idle = cluster.settings.idle_timeout;
    match caller_speaks_first(worker, &stream, &mut dialled, idle).await {
        None => return,
        Some(false) => {}
        Some(true) => {
            let first = sniff_by(worker, &stream, SERVER_FIRST, sniff::sniff_anything).await;
            if let Some(First::Protocol(protocol @ (Protocol::Http1 | Protocol::Http2))) = first {
                drop(dialled);
                return http(worker, stream, downstream, protocol == Protocol::Http2).await;
            }
        }
    }
    let end = tunnel::join(worker, &cluster, &mut stream, dialled, None, run).await;
    cut_unless_whole(&stream, end);
}

/// Connects to the service at `original`, else to `original` itself.
async fn dial(
    worker: &Worker,
    downstream: &Downstream,
    original: SocketAddr,
) -> Result<(Arc<Cluster>, Dialled, Option<Rc<Run>>), Error> {
    let host = original.ip().to_canonical().to_string();
    let service = capture::find(worker, &host).await;
    let port = service.as_ref().and_then(|service| service.port(Some(original.port())));
    if let Some(port) = port {
        return tunnel::dial_service(worker, downstream, port).await;
    }
    let cluster = capture::passthrough(&worker.shared, downstream, original)?;
    let dialled = tunnel::dial(worker, &cluster).await?;
    Ok((cluster, dialled, None))
}

/// The caller believes to be connected already: a reset is all that it can be told.
fn failed(worker: &Worker, stream: &TcpStream, downstream: &Downstream, error: &Error) {
    cut_unless_whole(stream, End::SenderFailed);
    refused(&worker.shared, downstream.direction, error.flag.as_str());
    tracing::debug!("{}: {error}", downstream.address);
}

/// Which port of our application a connection to `original` is for; else why it is for none.
pub(super) fn application<'a>(
    worker: &Worker,
    downstream: &Downstream,
    original: SocketAddr,
    ports: &'a Inbound,
) -> Result<&'a Arc<InboundPort>, Elsewhere> {
    if let Some(astray) = astray(worker, downstream, original) {
        return Err(Elsewhere::Astray(astray));
    }
    ports.by_port.get(&original.port()).ok_or(Elsewhere::Undeclared(original))
}

/// What an inbound connection is for if not for a port that a service has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Elsewhere {
    /// A port of the application that no service has.
    Undeclared(SocketAddr),
    /// Nothing that is ours to reach.
    Astray(Astray),
}

/// To a port of our application that no service has: byte by byte, unless it takes nothing but mutual TLS, of which there
/// is none without a service to name.
pub(super) async fn undeclared(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    downstream: &Downstream,
    elsewhere: Elsewhere,
) {
    let refuse = |stream: &TcpStream, reason| {
        cut_unless_whole(stream, End::Dropped);
        refused(&worker.shared, downstream.direction, reason);
    };
    let original = match elsewhere {
        Elsewhere::Astray(astray) => return refuse(&stream, astray.as_str()),
        Elsewhere::Undeclared(original) => original,
    };
    let rules = worker.snapshot().inbound.undeclared.clone();
    let strict = match &rules {
        Some(rules) => rules.mode(original.port()) == TlsMode::Strict,
        // Policies are not known, so that the safe half is taken for granted.
        None => worker.shared.identity.is_expected(),
    };
    if strict {
        return refuse(&stream, "plaintext_refused");
    }
    let guards = rules.as_ref().and_then(|rules| rules.guards.as_deref());
    let forwarded = async {
        guard::connection_to(worker, downstream, guards, original)?;
        let cluster = capture::passthrough(&worker.shared, downstream, original)?;
        tunnel::forward(worker, &cluster, &mut stream, None, None).await
    };
    match forwarded.await {
        Ok(end) => cut_unless_whole(&stream, end),
        Err(error) => failed(worker, &stream, downstream, &error),
    }
}

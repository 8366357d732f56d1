//! Inbound connections under mutual TLS: the handshake within its bounds, then what is inside.

use std::{rc::Rc, time::Duration};

use leno_api::model::{peer_authentication::TlsMode, service::Protocol};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{accept::refused, connection};
use crate::{
    forward::{
        guard,
        secured::Secured,
        tunnel,
        worker::{Downstream, Worker},
    },
    snapshot::InboundPort,
    telemetry::record::Direction,
    tls::{
        self, Failure, Inside, Side,
        server::{Accepted, Stream},
    },
};

/// For a handshake: two round trips and two signatures. Whoever takes longer only holds memory.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Serves a connection that begins with a ClientHello to its end.
pub(super) async fn serve(worker: &Rc<Worker>, stream: TcpStream, downstream: Downstream) {
    let refuse = |reason| refused(&worker.shared, Direction::Inbound, reason);
    let Some(credentials) = worker.shared.identity.current() else {
        return refuse("no_certificate");
    };
    let now = Instant::now();
    let place = worker.handshakes.begin(downstream.address.ip(), now.into_std());
    let Some(mut place) = place else {
        // A reset tells the caller at once, and costs no state here.
        let _ = stream.set_zero_linger();
        return refuse("handshake_limit");
    };
    let handshake = Box::pin(tls::server::accept(stream, &credentials));
    let done = tokio::select! {
        done = timeout_at(now + LIMIT, handshake) => done,
        () = place.lost() => return refuse("handshake_limit"),
    };
    drop(place);
    let done = done.unwrap_or_else(|_| Err(Failure::timeout()));
    tls::count(
        &worker.shared.families,
        Side::Server,
        done.as_ref().map(|accepted| accepted.resumed),
    );
    let Accepted { stream, peer, inside, destination, server_name, .. } = match done {
        Ok(accepted) => accepted,
        Err(failure) => {
            tracing::debug!("{}: {}: {failure}", downstream.address, failure.reason.as_str());
            return refuse("handshake");
        }
    };
    let secured = Rc::new(Secured::new(peer, credentials.id(), destination, server_name));
    drop(credentials);
    // On the heap: moved about by what follows, and large.
    let stream = Box::new(stream);
    let ports = worker.snapshot().inbound.clone();
    let port = secured.port(&ports).map(|(port, _)| port);
    if port.as_ref().is_some_and(|port| port.mode == TlsMode::Disable) {
        return refuse("tls");
    }
    let downstream = Downstream { secured: Some(secured), ..downstream };
    match spoken(inside, port.as_deref()) {
        Some(Spoken::Http { http2 }) => connection::http(worker, stream, downstream, http2).await,
        // As above.
        Some(Spoken::Bytes(port)) => Box::pin(bytes(worker, stream, &downstream, port)).await,
        None => refuse("no_port"),
    }
}

enum Spoken<'a> {
    Http { http2: bool },
    Bytes(&'a InboundPort),
}

/// What is inside. A port that is declared to speak HTTP is spoken to in HTTP whatever the caller calls it, or a tunnel
/// would pass by what is decided by request. `None`: bytes for nobody.
fn spoken(inside: Inside, port: Option<&InboundPort>) -> Option<Spoken<'_>> {
    match (inside, port) {
        (Inside::Http1, _) => Some(Spoken::Http { http2: false }),
        (Inside::Http2, _) => Some(Spoken::Http { http2: true }),
        (Inside::Tcp, None) => None,
        (Inside::Tcp, Some(port)) => Some(match port.protocol {
            Protocol::Http => Spoken::Http { http2: false },
            Protocol::Http2 | Protocol::Grpc => Spoken::Http { http2: true },
            Protocol::Tcp | Protocol::Auto => Spoken::Bytes(port),
        }),
    }
}

async fn bytes(
    worker: &Rc<Worker>,
    mut stream: Box<Stream<TcpStream>>,
    downstream: &Downstream,
    port: &InboundPort,
) {
    let ports = worker.snapshot().inbound.clone();
    let caller = downstream.secured.as_ref().and_then(|secured| secured.port(&ports));
    let caller = caller.map(|(_, scope)| scope);
    let forwarded = async {
        guard::connection(worker, downstream, port)?;
        let run = connection::shown(worker, downstream, port).await?;
        tunnel::forward(worker, &port.cluster, &mut stream, caller.as_deref(), run).await
    };
    if let Err(error) = forwarded.await {
        refused(&worker.shared, downstream.direction, error.flag.as_str());
        tracing::debug!("{}: {error}", downstream.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_to_an_http_port_is_http() {
        assert!(spoken(Inside::Tcp, None).is_none());
        assert!(matches!(spoken(Inside::Http1, None), Some(Spoken::Http { http2: false })));
        assert!(matches!(spoken(Inside::Http2, None), Some(Spoken::Http { http2: true })));
    }
}

//! From others to our application: which of its ports, and whether they may.

use std::sync::Arc;

use http::{Request, StatusCode, header};
use leno_api::model::{peer_authentication::TlsMode, service::Protocol};

use super::{
    exchange::{DESTINATION, Decision, Exchange, Routed},
    guard, limits, plugins,
    secured::Secured,
};
use crate::{
    error::{Error, Flag},
    http::{
        body::Incoming,
        head::{self, Target},
    },
    snapshot::{Inbound, InboundPort},
};

/// Finds the application's port, and tells the application who calls.
pub(super) async fn decide(
    exchange: &mut Exchange,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Decision, Error> {
    let inbound = exchange.snapshot.inbound.clone();
    let named = request.headers_mut().remove(DESTINATION);
    let secured = exchange.downstream.secured.clone();
    let by_server_name;
    let port = match &secured {
        Some(secured) => {
            by_server_name = find_by_server_name(exchange, secured, &inbound)?;
            &by_server_name
        }
        None if exchange.downstream.original().is_some() => {
            by_original(exchange, &inbound, target).ok_or_else(|| no_port(&target.host))?
        }
        None => {
            let by_sidecar =
                named.as_ref().and_then(|name| inbound.by_destination.get(name.to_str().ok()?));
            let port = by_sidecar.or_else(|| by_host(&inbound, target));
            port.or(inbound.only_http.as_ref()).ok_or_else(|| no_port(&target.host))?
        }
    };
    let cluster = port.cluster.clone();
    exchange.note_for_log(|record| record.cluster = Some(cluster.name.clone()));
    guard::hide_tokens(exchange, port, request);
    if secured.is_none() && port.mode == TlsMode::Strict {
        exchange.count_for(&cluster);
        let detail = "this port takes mutual TLS only";
        return Err(Error::downstream(StatusCode::FORBIDDEN, Flag::AD, detail));
    }
    match &port.plugins {
        None => guard::request(exchange, port, target, request)
            .and_then(|()| limits::check(exchange, port, request))
            .inspect_err(|_| exchange.count_for(&cluster))?,
        Some(chain) => {
            let shown = Box::pin(plugins::inbound(exchange, chain, port, target, request)).await;
            if let Some(answer) = shown.inspect_err(|_| exchange.count_for(&cluster))? {
                return Ok(Decision::Respond(Box::new(answer)));
            }
        }
    }
    let host = request.headers().get(header::HOST).cloned();
    let caller = exchange.downstream.counted.written(exchange.downstream.address);
    head::add_forwarded(request.headers_mut(), caller, host.as_ref());
    // Whatever came under this name was taken out with the other fields of the connection before; a plugin may have put
    // another one in, and the application takes it for what we have seen.
    if port.plugins.is_some() {
        head::remove_spellings(request.headers_mut(), &head::CLIENT_CERTIFICATE);
    }
    if let Some(certificate) = secured.as_ref().and_then(|secured| secured.certificate.as_ref()) {
        request.headers_mut().insert(head::CLIENT_CERTIFICATE, certificate.clone());
    }
    Ok(Decision::Forward(Routed::to(cluster)))
}

/// What the TLS server name says holds for the whole connection; no field of a request can say otherwise.
fn find_by_server_name(
    exchange: &mut Exchange,
    secured: &Secured,
    inbound: &Arc<Inbound>,
) -> Result<Arc<InboundPort>, Error> {
    exchange.note_for_log(|record| record.downstream_peer = Some(secured.id.clone()));
    let name = || secured.destination.as_deref().unwrap_or("(no name)");
    let (port, scope) = secured.port(inbound).ok_or_else(|| no_port(name()))?;
    exchange.caller = Some(scope);
    Ok(port)
}

/// The application's port to which a captured connection was going; the host tells under which service, where several
/// have it. Nothing that the caller writes leads to another port.
fn by_original<'a>(
    exchange: &Exchange,
    inbound: &'a Inbound,
    target: &Target,
) -> Option<&'a Arc<InboundPort>> {
    let number = exchange.downstream.original()?.port();
    let port = inbound.by_port.get(&number)?;
    let named = by_host(inbound, target).filter(|named| named.address == port.address);
    // What is declared to be bytes has no hosts.
    let named = named.filter(|named| named.protocol != Protocol::Tcp);
    // The strictest of them decides who gets in.
    Some(named.filter(|named| named.mode == port.mode).unwrap_or(port))
}

fn no_port(name: &str) -> Error {
    let detail = format!("no port of our application answers to `{name}`");
    Error::ours(StatusCode::NOT_FOUND, Flag::NR, detail)
}

fn by_host<'a>(inbound: &'a Inbound, target: &Target) -> Option<&'a Arc<InboundPort>> {
    let key = (target.host.as_str().into(), target.port.unwrap_or(80));
    inbound.by_host.get(&key)
}

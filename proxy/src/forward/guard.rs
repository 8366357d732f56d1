//! Whether a caller may: tokens first, then the policies of the port it has reached.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{Request, StatusCode};

use super::{
    exchange::Exchange,
    secured::Secured,
    worker::{Downstream, Worker},
};
use crate::{
    error::{Error, Flag},
    filter::{
        authz::{Facts, HttpFacts, Peer, Verdict},
        jwt::Token,
    },
    http::head::Target,
    snapshot::{Guards, InboundPort},
    telemetry::metrics::Families,
};

/// Keeps tokens in a URL out of the log: they are secrets, also where the request is refused.
pub(super) fn hide_tokens<B>(exchange: &mut Exchange, port: &InboundPort, request: &Request<B>) {
    let Some(uri) = port.guards.as_ref().and_then(|guards| guards.jwt.loggable(request.uri()))
    else {
        return;
    };
    exchange.note_for_log(|record| {
        if let Some(line) = &mut record.line {
            line.uri = uri;
        }
    });
}

/// Checks a request for `port`. Its head is changed as RequestAuthentication says: claims become headers, tokens that
/// are not for the application go.
pub(super) fn request<B>(
    exchange: &mut Exchange,
    port: &InboundPort,
    target: &Target,
    request: &mut Request<B>,
) -> Result<(), Error> {
    let token = authenticate_request(exchange, port, request)?;
    authorize_request(exchange, port, target, request, token.as_deref())
}

/// The first half: who a request is from by its token.
pub(super) fn authenticate_request<B>(
    exchange: &Exchange,
    port: &InboundPort,
    request: &mut Request<B>,
) -> Result<Option<Arc<Token>>, Error> {
    let Some(guards) = &port.guards else { return Ok(None) };
    authenticate(&exchange.worker, guards, request)
}

/// The second half: whether they may.
pub(super) fn authorize_request<B>(
    exchange: &mut Exchange,
    port: &InboundPort,
    target: &Target,
    request: &Request<B>,
    token: Option<&Token>,
) -> Result<(), Error> {
    let Some(guards) = &port.guards else { return Ok(()) };
    let http = HttpFacts {
        method: request.method().as_str(),
        host: &target.host,
        port: target.port,
        path: request.uri().path(),
        headers: request.headers(),
    };
    let facts = facts(&exchange.downstream, port.address, Some(http), token);
    let audited = decide(&exchange.worker.shared.families, guards, &facts)?;
    if audited.is_some() {
        exchange.note_for_log(|record| record.audit = audited);
    }
    Ok(())
}

/// Checks a connection for `port` whose content is not ours to read.
///
/// # Errors
/// When a policy does not allow it; the caller can only be told by closing.
pub fn connection(
    worker: &Worker,
    downstream: &Downstream,
    port: &InboundPort,
) -> Result<(), Error> {
    connection_to(worker, downstream, port.guards.as_deref(), port.address)
}

/// The same for a port that no service has, at `address`.
///
/// # Errors
/// When a policy does not allow it.
pub fn connection_to(
    worker: &Worker,
    downstream: &Downstream,
    guards: Option<&Guards>,
    address: SocketAddr,
) -> Result<(), Error> {
    let Some(guards) = guards else { return Ok(()) };
    let facts = facts(downstream, address, None, None);
    decide(&worker.shared.families, guards, &facts).map(drop)
}

fn authenticate<B>(
    worker: &Worker,
    guards: &Guards,
    request: &mut Request<B>,
) -> Result<Option<Arc<Token>>, Error> {
    if guards.jwt.is_empty() {
        return Ok(None);
    }
    // Before 1970 every token is one of the future.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    guards.jwt.authenticate(request, now, &worker.tokens).map_err(|refused| {
        let counter = &worker.shared.families.tokens_refused;
        counter.with_label_values(&[refused.label()]).inc();
        let detail = format!("the token is refused: {refused}");
        Error::downstream(StatusCode::UNAUTHORIZED, Flag::AU, detail)
    })
}

/// The AUDIT policy that matched, if any.
fn decide(
    families: &Families,
    guards: &Guards,
    facts: &Facts<'_>,
) -> Result<Option<Arc<str>>, Error> {
    if guards.authz.is_empty() {
        return Ok(None);
    }
    match guards.authz.decide(facts) {
        Verdict::Allowed { audited } => {
            if let Some(policy) = &audited {
                families.authorization_audited.with_label_values(&[&**policy]).inc();
            }
            Ok(audited)
        }
        Verdict::Denied { policy, why } => {
            families.authorization_denied.with_label_values(&[&*policy]).inc();
            let detail = format!("AuthorizationPolicy {policy}: {why}");
            Err(Error::downstream(StatusCode::FORBIDDEN, Flag::AD, detail))
        }
    }
}

fn facts<'a>(
    downstream: &'a Downstream,
    destination: SocketAddr,
    http: Option<HttpFacts<'a>>,
    token: Option<&'a Token>,
) -> Facts<'a> {
    let secured = downstream.secured.as_deref();
    let peer =
        |secured: &'a Secured| Peer { id: &secured.peer.id, principal: &secured.peer.principal };
    Facts {
        peer: secured.map(peer),
        source: downstream.address.ip().to_canonical(),
        destination,
        sni: secured.and_then(|secured| secured.server_name.as_deref()),
        http,
        token,
    }
}

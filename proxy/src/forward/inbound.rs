//! From others to our application: which of its ports.

use std::sync::Arc;

use http::{Request, StatusCode, header};

use super::exchange::{DESTINATION, Decision, Exchange, Routed};
use crate::{
    error::{Error, Flag},
    http::{
        body::Incoming,
        head::{self, Target},
    },
    snapshot::{Inbound, InboundPort},
};

/// Finds the application's port: as the calling sidecar names it, else by host and port, else the only one there is.
pub(super) fn decide(
    exchange: &mut Exchange,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Decision, Error> {
    let inbound = exchange.snapshot.inbound.clone();
    let named = request.headers_mut().remove(DESTINATION);
    let by_sidecar =
        named.as_ref().and_then(|name| inbound.by_destination.get(name.to_str().ok()?));
    let port = by_sidecar.or_else(|| by_host(&inbound, target)).or(inbound.only_http.as_ref());
    let port = port.ok_or_else(|| {
        let detail = format!("no port of our application answers to `{}`", target.host);
        Error::ours(StatusCode::NOT_FOUND, Flag::NR, detail)
    })?;
    let cluster = port.cluster.clone();
    exchange.note_for_log(|record| record.cluster = Some(cluster.name.clone()));
    let host = request.headers().get(header::HOST).cloned();
    head::add_forwarded(request.headers_mut(), exchange.downstream.address, host.as_ref());
    Ok(Decision::Forward(Routed { cluster, rule: None, backend: None }))
}

fn by_host<'a>(inbound: &'a Inbound, target: &Target) -> Option<&'a Arc<InboundPort>> {
    let key = (target.host.as_str().into(), target.port.unwrap_or(80));
    inbound.by_host.get(&key)
}

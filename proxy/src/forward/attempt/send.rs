//! One attempt.

use std::{
    cell::Cell,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, Response, StatusCode, header};

use super::supply::Outgoing;
use crate::{
    cluster::{Admitted, Cluster, ClusterKey, Lease, pool::Connection},
    error::{Error, Fault, Retry},
    forward::{
        deadline::Limits,
        exchange::DESTINATION,
        outcome,
        retry::Policy,
        worker::{Counted, Worker},
    },
    http::{
        body::{Body, Incoming, Progress},
        client::{Failure, SendError},
        head,
        server::LINGER,
    },
};

/// A pooled connection idle for longer may have been closed by the peer just now; an idempotent request is kept for a
/// second try then. Cloning each request would cost 3 % of an exchange; over HTTP/2 it has to be.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// What a sidecar that drains has not heard of for so long, it closes: that is stale here.
const _: () = assert!(LINGER.as_millis() > STALE_AFTER.as_millis() + 100, "within a round trip");

/// What all attempts of an exchange have in common.
#[derive(Clone)]
pub(super) struct Context<'a> {
    pub(super) worker: Rc<Worker>,
    pub(super) cluster: &'a Admitted,
    /// Of the request's body.
    pub(super) progress: Option<Rc<Progress>>,
    /// Whether the attempt that took too long waited for the caller's body.
    pub(super) awaited: Cell<bool>,
    pub(super) limits: Limits,
    pub(super) policy: Policy,
    pub(super) http2: bool,
    /// Whether the connection may become something else.
    pub(super) upgrade: bool,
    /// Whether the request comes from our own application.
    pub(super) outbound: bool,
    pub(super) caller: SocketAddr,
    pub(super) counted: Rc<Counted>,
    pub(super) idempotent: bool,
    /// For balancers that go by it.
    pub(super) hash: Option<u64>,
    /// Whether a copy of whatever is sent is kept.
    pub(super) copies: bool,
}

impl Context<'_> {
    /// An endpoint for an attempt that begins now, not one of `tried` unless there is no other.
    pub(super) fn lease(&self, tried: &[u64], now: Instant) -> Result<Lease, Error> {
        self.worker.lease(self.cluster, tried, self.hash, now)
    }
}

/// How an attempt went: the head of its answer, and what it came on.
pub(super) type Sent = Result<(Response<Incoming>, Connection), Error>;

/// Sends what is in `kept` to the leased endpoint and waits for the head of the response. What can be sent again is left
/// there.
pub(super) async fn attempt(
    context: &Context<'_>,
    lease: &Lease,
    kept: &mut Option<Outgoing>,
) -> Sent {
    let Some(outgoing) = kept else { return Err(super::lost()) };
    context.limits.state(&context.policy, outgoing.request.headers_mut());
    let sent = Cell::new(false);
    let sending = pin!(send(context, lease, kept, &sent));
    let Some((until, limit)) = context.limits.next(&context.policy) else {
        return sending.await;
    };
    let result = tokio::time::timeout_at(until, sending).await;
    if result.is_err() {
        // As long as it is there: without whoever sends it, nobody waits for the request's body.
        let awaited = context.progress.as_ref().is_some_and(|progress| progress.is_awaited());
        context.awaited.set(awaited);
    }
    match result {
        Ok(result) => result,
        Err(_) if sent.get() => Err(outcome::timed_out(limit)),
        // Until there is a connection to send it on, a timeout does not lose it.
        Err(_) => Err(Error { retry: Retry::Safe, ..outcome::timed_out(limit) }),
    }
}

async fn send(
    context: &Context<'_>,
    lease: &Lease,
    kept: &mut Option<Outgoing>,
    sent: &Cell<bool>,
) -> Sent {
    let (pools, cluster) = (&context.worker.pools, context.cluster);
    let mut connection = match pools.ready(cluster, &lease.endpoint, context.http2, lease.begun) {
        Some(connection) => connection,
        // On the heap, as most requests find one and all would be larger.
        None => Box::pin(pools.find(cluster, &lease.endpoint, context.http2)).await?,
    };
    if context.upgrade {
        let ended = |error| outcome::of_send(Failure::NotSent, None, format!("{error}"));
        connection.sender.expect_upgrade().await.map_err(ended)?;
    }
    let stale = connection.idle > Some(STALE_AFTER) && context.idempotent;
    // An HTTP/2 upstream can refuse a stream at any time: with REFUSED_STREAM, or a GOAWAY that crossed it.
    let copied = stale || context.http2 || context.copies;
    let Some((sending, introduced, reader)) = begin(context, lease, kept, copied, &mut connection)
    else {
        return Err(super::lost());
    };
    sent.set(true);
    let address = lease.endpoint.address();
    let failed = match sending.await {
        Ok(mut response) => {
            let checked = check(response.status(), response.headers_mut(), context.upgrade);
            let refused =
                |what| outcome::of_send(Failure::Malformed, None, format!("{address}: {what}"));
            return checked.map(|()| (response, connection)).map_err(refused);
        }
        Err(failed) => failed,
    };
    let SendError { failure, request, detail } = failed;
    let body = context.progress.as_ref().and_then(|progress| progress.ended());
    let mut error = match connection.refusal() {
        Some(refusal) => outcome::unwelcome(format!("TLS with {address}: {refusal}")),
        None => outcome::of_send(failure, body, format!("{address}: {detail}")),
    };
    if stale && request.is_none() && kept.is_some() && failure == Failure::Closed {
        error.retry = Retry::Safe;
    }
    if connection.idle.is_some() && error.retry == Retry::Safe && failure != Failure::Refused {
        // That an idle connection has ended says nothing about its endpoint; making the next one will.
        (error.fault, error.stale) = (Fault::Ours, true);
    }
    if let Some(request) = request {
        *kept = Some(Outgoing { request: *request, introduced, reader });
    }
    Err(error)
}

/// Whether the head of an answer is one that can be passed on: whoever sends another has failed as an endpoint, not only
/// towards this caller.
///
/// A length beside a transfer coding is not the body's (RFC 9112 section 6.3): passed on, it would cut the body short
/// or make a second response of its rest. Codings other than `chunked` belong to the connection and nobody here
/// decodes them.
fn check(status: StatusCode, headers: &mut HeaderMap, upgrade: bool) -> Result<(), &'static str> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return if upgrade { Ok(()) } else { Err("upstream switched protocols unasked") };
    }
    if !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(());
    }
    if !head::only_chunked(headers) {
        return Err("upstream used a transfer coding that is not chunked");
    }
    headers.remove(header::CONTENT_LENGTH);
    Ok(())
}

/// Takes the request, leaves a copy of it where one is kept, and sends it. Beside the answer to come: whether it says
/// who called, and the number of its body.
fn begin<'a>(
    context: &Context<'_>,
    lease: &Lease,
    kept: &mut Option<Outgoing>,
    copied: bool,
    connection: &'a mut Connection,
) -> Option<(impl Future<Output = Result<Response<Incoming>, SendError>> + use<'a>, bool, u32)> {
    let copy = if copied { kept.as_ref()?.copy() } else { None };
    dress(context, lease, kept.as_mut()?);
    let Outgoing { request, introduced, reader } = std::mem::replace(kept, copy)?;
    Some((connection.sender.send(request), introduced, reader))
}

/// What a request says depends on who gets it.
fn dress(context: &Context<'_>, lease: &Lease, outgoing: &mut Outgoing) {
    name_destination(context.cluster, lease, &mut outgoing.request);
    if context.outbound
        && is_told_who_calls(&context.cluster.key, lease.endpoint.via_sidecar)
        && !outgoing.introduced
    {
        outgoing.introduced = true;
        let headers = outgoing.request.headers_mut();
        let host = headers.get(header::HOST).cloned();
        let caller = context.counted.written(context.caller);
        head::add_forwarded(headers, caller, host.as_ref());
    }
}

/// The sidecar at the other end says who called; where there is none, we do. Whoever is outside the mesh is told nothing
/// of it.
fn is_told_who_calls(key: &ClusterKey, via_sidecar: bool) -> bool {
    !via_sidecar && !matches!(key, ClusterKey::Passthrough(_))
}

/// Tells the next sidecar which service port is meant where the TLS server name does not; an application is not told.
pub(in crate::forward) fn name_destination(
    cluster: &Cluster,
    lease: &Lease,
    request: &mut Request<Body>,
) {
    match &cluster.destination {
        Some(destination) if lease.endpoint.via_sidecar && !lease.endpoint.is_secured() => {
            request.headers_mut().insert(DESTINATION, destination.clone());
        }
        _ => _ = request.headers_mut().remove(DESTINATION),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_length_beside_chunks_is_not_passed_on() {
        let checked = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let checked = check(StatusCode::OK, &mut headers, false);
            checked.is_ok().then(|| headers.contains_key(header::CONTENT_LENGTH))
        };
        let length = ("content-length", "3");
        assert_eq!(checked(&[length]), Some(true));
        assert_eq!(checked(&[length, ("transfer-encoding", "Chunked")]), Some(false));
        assert_eq!(checked(&[("transfer-encoding", "gzip, chunked")]), None);
        assert_eq!(checked(&[length, ("transfer-encoding", "identity")]), None);
    }

    #[test]
    fn nobody_outside_the_mesh_is_told_who_calls() {
        let service = ClusterKey::Service(leno_api::model::ObjectName::new("shop", "orders"), 80);
        let outside = ClusterKey::Passthrough("192.0.2.1:80".parse().unwrap());
        assert!(is_told_who_calls(&service, false) && !is_told_who_calls(&service, true));
        assert!(!is_told_who_calls(&outside, false));
    }

    #[test]
    fn protocols_are_switched_where_that_was_asked_for() {
        let switched = |upgrade| {
            check(StatusCode::SWITCHING_PROTOCOLS, &mut HeaderMap::new(), upgrade).is_ok()
        };
        assert!(switched(true) && !switched(false));
    }
}

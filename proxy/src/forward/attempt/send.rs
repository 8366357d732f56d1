//! One attempt.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use http::{Request, Response, header};

use super::supply::Outgoing;
use crate::{
    cluster::{Admitted, Cluster, Lease, pool::Connection},
    error::{Error, Fault, Retry},
    forward::{deadline::Limits, exchange::DESTINATION, outcome, retry::Policy, worker::Worker},
    http::{
        body::{Body, Incoming, Progress},
        client::{Failure, SendError},
        head,
    },
};

/// A pooled connection idle for longer may have been closed by the peer just now; an idempotent request is kept for a
/// second try then. Cloning each request would cost 3 % of an exchange; over HTTP/2 it has to be.
const STALE_AFTER: Duration = Duration::from_secs(1);

/// What all attempts of an exchange have in common.
#[derive(Clone)]
pub(super) struct Context<'a> {
    pub(super) worker: Rc<Worker>,
    pub(super) cluster: &'a Admitted,
    /// Of the request's body.
    pub(super) progress: Option<Rc<Progress>>,
    pub(super) limits: Limits,
    pub(super) policy: Policy,
    pub(super) http2: bool,
    /// Whether the request comes from our own application.
    pub(super) outbound: bool,
    pub(super) caller: SocketAddr,
    pub(super) idempotent: bool,
    /// For balancers that go by it.
    pub(super) hash: Option<u64>,
    /// Whether a copy of whatever is sent is kept.
    pub(super) copies: bool,
}

/// How an attempt went.
pub(super) struct Tried {
    pub(super) lease: Lease,
    pub(super) result: Result<(Response<Incoming>, Connection), Error>,
    /// What can be sent again.
    pub(super) kept: Option<Outgoing>,
    pub(super) reader: u32,
}

/// Sends `outgoing` to the leased endpoint and waits for the head of the response.
pub(super) async fn attempt(context: &Context<'_>, lease: Lease, mut outgoing: Outgoing) -> Tried {
    context.limits.state(&context.policy, outgoing.request.headers_mut());
    let reader = outgoing.reader;
    // Until there is a connection to send it on: a timeout before does not lose it.
    let mut kept = Some(outgoing);
    let mut sent = false;
    let sending = send(context, &lease, &mut kept, &mut sent);
    let result = match context.limits.next(&context.policy) {
        None => sending.await,
        Some((until, limit)) => match tokio::time::timeout_at(until, sending).await {
            Ok(result) => result,
            Err(_) if sent => Err(outcome::timed_out(limit)),
            Err(_) => Err(Error { retry: Retry::Safe, ..outcome::timed_out(limit) }),
        },
    };
    Tried { lease, result, kept, reader }
}

async fn send(
    context: &Context<'_>,
    lease: &Lease,
    kept: &mut Option<Outgoing>,
    sent: &mut bool,
) -> Result<(Response<Incoming>, Connection), Error> {
    let (pools, cluster) = (&context.worker.pools, context.cluster);
    let mut connection = match context.http2 {
        true => pools.http2(cluster, &lease.endpoint).await?,
        false => pools.http1(cluster, &lease.endpoint).await?,
    };
    let Some(mut outgoing) = kept.take() else { return Err(super::lost()) };
    *sent = true;
    let stale = connection.idle > STALE_AFTER && context.idempotent;
    // An HTTP/2 upstream can refuse a stream at any time: with REFUSED_STREAM, or a GOAWAY that crossed it.
    if stale || context.http2 || context.copies {
        *kept = outgoing.copy();
    }
    dress(context, lease, &mut outgoing);
    let (introduced, reader) = (outgoing.introduced, outgoing.reader);
    let SendError { failure, request, detail } =
        match connection.sender.send(outgoing.request).await {
            Ok(response) => return Ok((response, connection)),
            Err(error) => error,
        };
    let body = context.progress.as_ref().and_then(|progress| progress.ended());
    let address = lease.endpoint.address;
    let mut error = match connection.refusal() {
        Some(refusal) => outcome::unwelcome(format!("TLS with {address}: {refusal}")),
        None => outcome::of_send(failure, body, format!("{address}: {detail}")),
    };
    if stale && request.is_none() && kept.is_some() && failure == Failure::Closed {
        error.retry = Retry::Safe;
    }
    if !connection.idle.is_zero() && error.retry == Retry::Safe && failure != Failure::Refused {
        // That an idle connection has ended says nothing about its endpoint; making the next one will.
        error.fault = Fault::Ours;
    }
    if let Some(request) = request {
        *kept = Some(Outgoing { request, introduced, reader });
    }
    Err(error)
}

/// What a request says depends on who gets it.
fn dress(context: &Context<'_>, lease: &Lease, outgoing: &mut Outgoing) {
    name_destination(context.cluster, lease, &mut outgoing.request);
    if context.outbound && !lease.endpoint.via_sidecar && !outgoing.introduced {
        // The sidecar at the other end would say who called; here there is none.
        outgoing.introduced = true;
        let headers = outgoing.request.headers_mut();
        let host = headers.get(header::HOST).cloned();
        head::add_forwarded(headers, context.caller, host.as_ref());
    }
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

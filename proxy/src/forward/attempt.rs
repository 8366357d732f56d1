//! Tries upstream until one attempt gets the head of a response, or none is left.

use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri};
use leno_api::model::service::Protocol;
use tokio::time::Instant;

use super::{
    exchange::{DESTINATION, Exchange},
    outcome, retry,
    worker::Judged,
};
use crate::{
    cluster::{Admitted, Cluster, Lease, pool::Connection},
    error::{Error, Fault, Flag, Retry},
    http::{
        body::{Body, Incoming},
        client::{Failure, SendError},
        head,
    },
    snapshot::Rule,
    telemetry::record::Direction,
};

/// A pooled connection idle for longer may have been closed by the peer just now; a bodiless idempotent request is
/// kept for a second try then. Cloning each request would cost 3 % of an exchange; over HTTP/2 it has to be.
const STALE_AFTER: Duration = Duration::from_secs(1);

/// The head of a response, with what is held until its body ends.
pub(super) struct Received {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) connection: Connection,
    /// For the body, too.
    pub(super) deadline: Option<Instant>,
}

/// How long it may take.
#[derive(Clone, Copy)]
struct Limits {
    /// All attempts together: until when, and how long that was.
    deadline: Option<(Instant, Duration)>,
    /// One attempt; `ZERO` is none.
    attempt: Duration,
}

impl Limits {
    /// Until when an attempt that begins now must be answered, and how long it then took.
    fn next(self) -> Option<(Instant, Duration)> {
        if self.attempt.is_zero() {
            return self.deadline;
        }
        let own = (Instant::now() + self.attempt, self.attempt);
        Some(self.deadline.filter(|deadline| deadline.0 <= own.0).unwrap_or(own))
    }
}

/// Sends `request` to an endpoint of `cluster`, and to others while that is safe.
pub(super) async fn run(
    exchange: &mut Exchange,
    cluster: &Admitted,
    rule: Option<&Rule>,
    request: Request<Body>,
    upgrade: Option<&HeaderValue>,
) -> Result<Received, Error> {
    let http2 = speaks_http2(cluster.protocol, request.version()) && upgrade.is_none();
    let request = prepare(request, http2, upgrade)?;
    let limit =
        rule.and_then(|rule| rule.request_timeout).unwrap_or(cluster.settings.request_timeout);
    let limits = Limits {
        deadline: (!limit.is_zero()).then(|| (Instant::now() + limit, limit)),
        attempt: rule.map_or(Duration::ZERO, |rule| rule.attempt_timeout),
    };
    let (response, lease, connection) = attempts(exchange, cluster, request, http2, limits).await?;
    let deadline = limits.deadline.map(|(deadline, _)| deadline);
    Ok(Received { response, lease, connection, deadline })
}

async fn attempts(
    exchange: &mut Exchange,
    cluster: &Admitted,
    request: Request<Body>,
    http2: bool,
    limits: Limits,
) -> Result<(Response<Incoming>, Lease, Connection), Error> {
    let mut kept = Some(request);
    let mut tried: Vec<u64> = Vec::new();
    loop {
        let Some(request) = kept.take() else {
            return Err(Error::ours(
                StatusCode::INTERNAL_SERVER_ERROR,
                Flag::None,
                "the request was lost",
            ));
        };
        let lease = exchange.worker.lease(cluster, &tried)?;
        note_endpoint(exchange, &lease);
        let attempt = attempt(exchange, cluster, &lease, request, http2, &mut kept);
        let attempted = match limits.next() {
            None => attempt.await,
            Some((deadline, limit)) => tokio::time::timeout_at(deadline, attempt)
                .await
                .unwrap_or_else(|_| Err(outcome::timed_out(limit))),
        };
        let judged = judge(exchange, cluster, &lease, attempted.as_ref().map(|answer| &answer.0));
        let error = match attempted {
            Ok((response, connection)) => {
                settle(judged, cluster);
                return Ok((response, lease, connection));
            }
            Err(error) => error,
        };
        tried.push(lease.endpoint.id);
        let attempts = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        if !retry::again(&error, attempts, kept.is_some()) {
            settle(judged, cluster);
            return Err(error);
        }
        exchange
            .worker
            .shared
            .families
            .retries
            .with_label_values(&[&*cluster.name, error.flag.as_str()])
            .inc();
        tracing::debug!(attempts, "{}: trying again: {error}", cluster.name);
    }
}

fn note_endpoint(exchange: &mut Exchange, lease: &Lease) {
    let endpoint = &lease.endpoint;
    let scope = exchange.caller.as_ref().unwrap_or_else(|| endpoint.scope()).clone();
    exchange.note(|record| {
        record.attempts += 1;
        record.upstream = Some(endpoint.address);
        record.scope = Some(scope);
    });
    exchange.note_for_log(|record| record.upstream_peer = endpoint.peer().cloned());
}

/// Says how an attempt went to all that judge endpoints by it; `None` where it says nothing about the endpoint.
fn judge(
    exchange: &Exchange,
    cluster: &Cluster,
    lease: &Lease,
    attempted: Result<&Response<Incoming>, &Error>,
) -> Option<Judged> {
    let (kind, timed) = match attempted {
        Ok(response) => {
            let grpc = outcome::grpc_status_of(response.headers());
            (outcome::of_answer(response.status(), grpc), true)
        }
        Err(error) => (outcome::of_error(error)?, error.flag == Flag::UT),
    };
    Some(exchange.worker.observe(cluster, lease, kind, timed))
}

/// Tells the breaker how the last attempt went, in case it waits for that.
fn settle(judged: Option<Judged>, cluster: &Admitted) {
    if let Some(judged) = judged {
        judged.settle(cluster.pass());
    }
}

/// One try. When the request was not sent, it is put back into `kept`.
async fn attempt(
    exchange: &Exchange,
    cluster: &Cluster,
    lease: &Lease,
    request: Request<Body>,
    http2: bool,
    kept: &mut Option<Request<Body>>,
) -> Result<(Response<Incoming>, Connection), Error> {
    let pools = &exchange.worker.pools;
    let connected = match http2 {
        true => pools.http2(cluster, &lease.endpoint).await,
        false => pools.http1(cluster, &lease.endpoint).await,
    };
    let mut connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            *kept = Some(request);
            return Err(error);
        }
    };
    let mut request = request;
    name_destination(cluster, lease, &mut request);
    let outbound = exchange.downstream.direction == Direction::Outbound;
    if outbound && !lease.endpoint.via_sidecar && !exchange.introduced.replace(true) {
        // The sidecar at the other end would say who called; here there is none.
        let host = request.headers().get(header::HOST).cloned();
        head::add_forwarded(request.headers_mut(), exchange.downstream.address, host.as_ref());
    }
    let stale = connection.idle > STALE_AFTER;
    // An HTTP/2 upstream can refuse a stream at any time: with REFUSED_STREAM, or a GOAWAY that crossed it.
    let spare = (stale || http2).then(|| spare(&request)).flatten();
    match connection.sender.send(request).await {
        Ok(response) => Ok((response, connection)),
        Err(SendError { failure, request, detail }) => {
            let body = exchange.progress.as_ref().and_then(|progress| progress.ended());
            let address = lease.endpoint.address;
            let mut error = match connection.refusal() {
                Some(refusal) => outcome::unwelcome(format!("TLS with {address}: {refusal}")),
                None => outcome::of_send(failure, body, format!("{address}: {detail}")),
            };
            if request.is_none() && spare.is_some() && stale && failure == Failure::Closed {
                error.retry = Retry::Safe;
            }
            if !connection.idle.is_zero()
                && error.retry == Retry::Safe
                && failure != Failure::Refused
            {
                // That an idle connection has ended says nothing about its endpoint; making the next one will.
                error.fault = Fault::Ours;
            }
            *kept = request.or(spare);
            Err(error)
        }
    }
}

/// Tells the next sidecar which service port is meant where the TLS server name does not; an application is not told.
pub(super) fn name_destination(cluster: &Cluster, lease: &Lease, request: &mut Request<Body>) {
    match &cluster.destination {
        Some(destination) if lease.endpoint.via_sidecar && !lease.endpoint.is_secured() => {
            request.headers_mut().insert(DESTINATION, destination.clone());
        }
        _ => _ = request.headers_mut().remove(DESTINATION),
    }
}

/// A copy of a request that may be sent a second time: idempotent (RFC 9110 section 9.2.2) and without a body.
fn spare(request: &Request<Body>) -> Option<Request<Body>> {
    let idempotent =
        [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE]
            .contains(request.method());
    if !idempotent || !matches!(request.body(), Body::Empty) {
        return None;
    }
    Some(with_body(request, Body::Empty))
}

/// The same head with another body.
pub(super) fn with_body(request: &Request<Body>, body: Body) -> Request<Body> {
    let mut copy = Request::new(body);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    copy
}

/// What is spoken upstream: what the service says, else what the caller speaks.
fn speaks_http2(protocol: Protocol, downstream: Version) -> bool {
    match protocol {
        Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Http => false,
        Protocol::Auto | Protocol::Tcp => downstream == Version::HTTP_2,
    }
}

/// Puts a request into the form that the upstream connection needs.
fn prepare(
    request: Request<Body>,
    http2: bool,
    upgrade: Option<&HeaderValue>,
) -> Result<Request<Body>, Error> {
    let (mut parts, body) = request.into_parts();
    if http2 {
        parts_to_http2(&mut parts)?;
    } else {
        if let Some(authority) = parts.uri.authority() {
            if !parts.headers.contains_key(header::HOST) || parts.version != Version::HTTP_2 {
                // Absolute form: the target's authority replaces Host (RFC 9112 section 3.2.2).
                let host =
                    HeaderValue::from_str(authority.as_str()).map_err(|_| bad_authority())?;
                parts.headers.insert(header::HOST, host);
            }
            parts.uri = origin(parts.uri);
        }
        if parts.version == Version::HTTP_2 {
            head::join_cookies(&mut parts.headers);
        }
        parts.version = Version::HTTP_11;
        if let Some(protocol) = upgrade {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, protocol.clone());
        }
    }
    Ok(Request::from_parts(parts, body))
}

/// Puts a request into the form that an HTTP/2 connection needs.
pub(super) fn to_http2(request: Request<Body>) -> Result<Request<Body>, Error> {
    let (mut parts, body) = request.into_parts();
    parts_to_http2(&mut parts)?;
    Ok(Request::from_parts(parts, body))
}

fn parts_to_http2(parts: &mut http::request::Parts) -> Result<(), Error> {
    let host = parts.headers.remove(header::HOST);
    if parts.uri.authority().is_none() || parts.uri.scheme().is_none() {
        let from_host = host.and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
        parts.uri = absolute(std::mem::take(&mut parts.uri), from_host)?;
    }
    parts.version = Version::HTTP_2;
    Ok(())
}

fn absolute(target: Uri, host: Option<uri::Authority>) -> Result<Uri, Error> {
    let mut parts = target.into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = parts.authority.or(host);
    parts.path_and_query =
        parts.path_and_query.or_else(|| Some(uri::PathAndQuery::from_static("/")));
    Uri::from_parts(parts).map_err(|_| bad_authority())
}

pub(super) fn origin(target: Uri) -> Uri {
    let path = target.into_parts().path_and_query;
    Uri::from(path.unwrap_or_else(|| uri::PathAndQuery::from_static("/")))
}

fn bad_authority() -> Error {
    Error::downstream(StatusCode::BAD_REQUEST, Flag::DPE, "Host is not a host")
}

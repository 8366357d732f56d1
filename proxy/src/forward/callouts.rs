//! Requests that plugins send to services of the mesh: balanced, secured and counted against limits like any other.

use std::{
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use leno_api::model::service::Protocol;

use super::{attempt, outcome, worker::Worker};
use crate::{
    cluster::{Admitted, Cluster, Lease, pool::Connection},
    error::{Error, Flag},
    filter::wasm::{Callouts, Sending},
    http::{
        body::{Body, End, Limits, Watch},
        head::Target,
    },
    snapshot::Snapshot,
};

/// Of an answer: without a byte for so long, the service is not going to send more.
const BODY_IDLE: Duration = Duration::from_secs(60);
/// Of a stream of gRPC, on which a service may have nothing to say for long, or say something only at the end: as long as a
/// tunnel may be silent. Calls that have one answer end by their own timeout before that.
const STREAM_IDLE: Duration = Duration::from_secs(3600);

/// Sends what the plugins of one worker want sent.
#[derive(Debug)]
pub struct Caller(Weak<Worker>);

impl Caller {
    /// For the plugins of `worker`.
    pub fn new(worker: &Rc<Worker>) -> Self {
        Self(Rc::downgrade(worker))
    }
}

impl Callouts for Caller {
    fn send(&self, upstream: &str, request: Request<Body>, http2: bool) -> Option<Sending> {
        let worker = self.0.upgrade()?;
        let target = target(upstream)?;
        let snapshot = worker.snapshot();
        let known = snapshot.service(&target.host).is_some();
        if !known && !may_arrive(&worker, &snapshot, &target.host) {
            return None;
        }
        if known {
            cluster(&snapshot, &target)?;
        }
        Some(Box::pin(async move {
            let cluster = find(&worker, &target).await?;
            send(worker, cluster, request, http2).await
        }))
    }
}

/// `users.shop`, `users.shop:81`, or as Istio names its clusters: `outbound|81||users.shop.svc.cluster.local`.
fn target(upstream: &str) -> Option<Target> {
    let mut parts = upstream.split('|');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), None, None, None) => Target::parse(upstream),
        (Some("outbound"), Some(port), Some(_), Some(host)) => {
            Target::parse(&format!("{host}:{port}"))
        }
        _ => None,
    }
}

fn cluster(snapshot: &Snapshot, target: &Target) -> Option<Arc<Cluster>> {
    let port = snapshot.service(&target.host)?.port(target.port)?;
    Some(port.cluster.clone())
}

/// Whether the control plane may still tell who answers to a host.
fn may_arrive(worker: &Worker, snapshot: &Snapshot, host: &str) -> bool {
    worker.shared.published.is_on_demand() && !snapshot.absent.contains(host)
}

/// The service's endpoints, waited for where nobody has asked for them before.
async fn find(worker: &Worker, target: &Target) -> Result<Arc<Cluster>, Error> {
    let unknown = || {
        let detail = format!("no service and port answer to `{}`", target.host);
        Error::ours(StatusCode::NOT_FOUND, Flag::NR, detail)
    };
    let published = &worker.shared.published;
    let snapshot = worker.snapshot();
    if let Some(cluster) = cluster(&snapshot, target) {
        return Ok(cluster);
    }
    if !may_arrive(worker, &snapshot, &target.host) || !published.want(&target.host) {
        return Err(unknown());
    }
    let arrival = published.arrival(&target.host);
    let arrived = tokio::time::timeout(worker.shared.on_demand_timeout, arrival).await;
    arrived.ok().and_then(|snapshot| cluster(&snapshot, target)).ok_or_else(unknown)
}

async fn send(
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    mut request: Request<Body>,
    http2: bool,
) -> Result<Response<Body>, Error> {
    let cluster = cluster.admit(|| worker.shared.now()).map_err(|(cluster, _)| {
        let detail = format!("{}: over its limits, or its breaker is open", cluster.name);
        Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, detail)
    })?;
    let lease = worker.lease(&cluster, &[], None, Instant::now())?;
    attempt::name_destination(&cluster, &lease, &mut request);
    let idle = if http2 { STREAM_IDLE } else { BODY_IDLE };
    let http2 = http2 || matches!(cluster.protocol, Protocol::Http2 | Protocol::Grpc);
    let sent_whole = matches!(request.body(), Body::Empty);
    let answered = exchange(&worker, &cluster, &lease, request, http2).await;
    let kind = match &answered {
        Ok((response, _)) => {
            let grpc = outcome::grpc_status_of(response.headers());
            Some(outcome::of_answer(response.status(), grpc, response.headers()))
        }
        Err(error) => outcome::of_error(error),
    };
    if let Some(kind) = kind {
        let now = Instant::now();
        worker.observe(&cluster, &lease, kind, answered.is_ok(), now).settle(cluster.pass());
    }
    let (response, connection) = answered?;
    let held = Some((connection, cluster, lease));
    let watch = Box::new(Returning { held, sent_whole });
    let limits = Limits { idle, deadline: None, grpc: false };
    Ok(response.map(|body| Body::passing(body, limits, watch)))
}

async fn exchange(
    worker: &Worker,
    cluster: &Cluster,
    lease: &Lease,
    mut request: Request<Body>,
    http2: bool,
) -> Result<(Response<crate::http::body::Incoming>, Connection), Error> {
    if http2 {
        attempt::prepare(&mut request, true, None)?;
    }
    let mut connection = worker.pools.find(cluster, &lease.endpoint, http2).await?;
    let sent = connection.sender.send(request).await;
    let failed = |error: crate::http::client::SendError| {
        outcome::of_send(error.failure, None, format!("{}: {}", cluster.name, error.detail))
    };
    Ok((sent.map_err(failed)?, connection))
}

/// Gives the connection back when the answer has been read.
struct Returning {
    held: Option<(Connection, Admitted, Lease)>,
    /// The request had no body: there is nothing that could still be on its way.
    sent_whole: bool,
}

impl Watch for Returning {
    fn data(&mut self, _: &Bytes) {}

    fn trailers(&mut self, _: &HeaderMap) {}

    fn end(&mut self, end: End) {
        if let Some((connection, cluster, _)) = self.held.take()
            && end == End::Complete
            && self.sent_whole
        {
            connection.give_back(&cluster);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_the_names_that_plugins_know_from_elsewhere() {
        let parsed = |text| target(text).map(|target| (target.host, target.port));
        let named = |host: &str, port| Some((host.to_owned(), port));
        for (text, expected) in [
            ("users.shop", named("users.shop", None)),
            ("users.shop:81", named("users.shop", Some(81))),
            (
                "outbound|81||users.shop.svc.cluster.local",
                named("users.shop.svc.cluster.local", Some(81)),
            ),
            ("outbound|81|v1|users.shop", named("users.shop", Some(81))),
            ("outbound|x||users.shop", None),
            ("inbound|81||users.shop", None),
            ("outbound|81", None),
            ("", None),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }
}

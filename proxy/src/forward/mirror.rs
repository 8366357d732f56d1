//! Copies of requests for a `RequestMirror`. The original never waits for a copy, and the copy's answer is ignored.

use std::{rc::Rc, sync::Arc, time::Instant};

use http::Request;
use http_body_util::BodyExt;

use super::{attempt, exchange::Exchange, worker::Worker};
use crate::{
    cluster::{Cluster, tally::Verdict},
    error::Error,
    http::body::Body,
    snapshot::{Mirror, Rule},
};

/// A copy may not outlive this: nobody waits for its answer.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

/// Starts the copies that the rule asks for.
pub(super) fn send_copies(exchange: &Exchange, rule: Option<&Rule>, request: &Request<Body>) {
    let Some(rule) = rule else { return };
    for mirror in rule.mirrors.iter().filter(|mirror| is_due(mirror, exchange.worker.random())) {
        let body = match (&exchange.progress, request.body()) {
            (_, Body::Empty) => Body::Empty,
            (Some(progress), _) => progress.copy(exchange.worker.copies.clone()),
            (None, _) => continue,
        };
        let copy = attempt::with_body(request, body);
        let (worker, cluster) = (exchange.worker.clone(), mirror.cluster.clone());
        tokio::task::spawn_local(async move {
            match tokio::time::timeout(TIMEOUT, send(worker, cluster.clone(), copy)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("copy to {} failed: {error}", cluster.name),
                Err(_) => tracing::debug!("copy to {} took longer than {TIMEOUT:?}", cluster.name),
            }
        });
    }
}

fn is_due(mirror: &Mirror, random: u64) -> bool {
    let share = (u128::from(random) * u128::from(mirror.denominator)) >> 64;
    share < u128::from(mirror.numerator)
}

async fn send(
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    mut request: Request<Body>,
) -> Result<(), Error> {
    // Over the limit the copy is left out: it must never crowd out real requests.
    let Ok(cluster) = cluster.admit(|| worker.shared.now()) else { return Ok(()) };
    // Its answer is nobody's, so that it decides nothing about the endpoint; a probe goes back to real requests.
    cluster.pass().settle(Verdict::Neither, false);
    let Ok(lease) = worker.lease(&cluster, &[], None, Instant::now()) else { return Ok(()) };
    // Nobody is there for an upgrade: the copy asks for none.
    let http2 = attempt::speaks_http2(cluster.protocol, request.version());
    attempt::prepare(&mut request, http2, None)?;
    attempt::name_destination(&cluster, &lease, &mut request);
    let mut connection = match http2 {
        true => worker.pools.http2(&cluster, &lease.endpoint).await?,
        false => worker.pools.http1(&cluster, &lease.endpoint).await?,
    };
    let failed = |detail: String| {
        super::outcome::of_send(crate::http::client::Failure::Closed, None, detail)
    };
    let response = connection.sender.send(request).await.map_err(|error| failed(error.detail))?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.map_err(|error| failed(error.to_string()))?;
    }
    match connection.sender.is_ready() {
        true => connection.give_back(&cluster),
        false => connection.send_rest(),
    }
    Ok(())
}

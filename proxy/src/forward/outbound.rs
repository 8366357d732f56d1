//! From our application to others: which service, which rule, which backend.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};

use super::{
    capture,
    exchange::{DESTINATION, Decision, Exchange, Routed},
    plugins::{self, Seen},
};
use crate::{
    cluster::Cluster,
    error::{Error, Flag},
    filter::headers,
    http::{
        body::{Body, Incoming},
        head::Target,
    },
    route::{rewrite, table},
    snapshot::{Port, Rule, Service},
};

/// Finds the service (asking the control plane for it at first use), then the rule, then the backend.
pub(super) async fn decide(
    exchange: &mut Exchange,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Decision, Error> {
    request.headers_mut().remove(DESTINATION);
    let original = exchange.downstream.original();
    let service = match (original, exchange.snapshot.service(&target.host)) {
        (None, Some(service)) => service.clone(),
        // On the heap, as all would be larger for the few.
        (None, None) => Box::pin(find_service(exchange, target)).await?,
        (Some(original), _) => match Box::pin(find_captured(exchange, target, original)).await? {
            Found::Service(service) => service,
            Found::Passthrough(cluster) => return Ok(Decision::Forward(Routed::to(cluster))),
        },
    };
    let number = original.map(|original| original.port());
    let port = find_port(&service, number.or(target.port))?;
    let mut retargeted = None;
    if let Some(chain) = &port.plugins {
        let shown = match plugins::outbound(exchange, chain, port, request) {
            Ok(shown) => shown,
            // On the heap, as above.
            Err(held) => Box::pin(plugins::outbound_held(exchange, held, request)).await,
        };
        match shown.inspect_err(|_| exchange.count_for(&port.cluster))? {
            Seen::On(target) => retargeted = target,
            Seen::Answered(response) => return Ok(Decision::Respond(response)),
        }
    }
    let target = retargeted.as_ref().unwrap_or(target);
    if port.routes.is_empty() {
        let cluster = port.cluster.clone();
        exchange.note_for_log(|record| record.cluster = Some(cluster.name.clone()));
        let cache = port.cache.clone();
        let addressed = may_change(exchange, port, request);
        let routed = Routed { cluster, rule: None, backend: None, cache, addressed };
        return Ok(Decision::Forward(routed));
    }
    let chosen = choose(exchange, port, target, request);
    chosen.inspect_err(|_| exchange.count_for(&port.cluster))
}

/// The rule, and the backend on which this request's lot falls.
fn choose(
    exchange: &mut Exchange,
    port: &Port,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Decision, Error> {
    let (rule, prefix) = find_rule(port, target, request)?;
    exchange.note_for_log(|record| record.route = Some(rule.route.clone()));
    if let Some(response) = redirect(&rule, prefix, target, request) {
        exchange.count_for(&port.cluster);
        return Ok(Decision::Respond(Box::new(response)));
    }
    rewrite_target(&rule, prefix, request);
    let random = || exchange.worker.random();
    let picked = rule.backends.pick_index(random);
    let backend = picked.and_then(|index| rule.backends.get(index)).ok_or_else(|| {
        no_backend(format!("{} rule {}: no backend has a weight", rule.route, rule.name))
    })?;
    let cluster = backend.cluster.clone().ok_or_else(|| {
        no_backend(format!("{} rule {}: there is no {}", rule.route, rule.name, backend.name))
    })?;
    exchange.note_for_log(|record| record.cluster = Some(cluster.name.clone()));
    for changes in rule.request_headers.iter().chain(&backend.request_headers) {
        apply_to_request(changes, request);
    }
    let cache = rule.cache.clone();
    let addressed = may_change(exchange, port, request);
    Ok(Decision::Forward(Routed { cluster, rule: Some(rule), backend: picked, cache, addressed }))
}

/// The port's name, where a request may change what is kept of its responses, by whatever rule.
fn may_change(exchange: &Exchange, port: &Port, request: &Request<Incoming>) -> Option<Arc<str>> {
    let changes = !exchange.snapshot.caches.is_empty() && !request.method().is_safe();
    changes.then(|| port.cluster.name.clone())
}

/// The service that answers to the target's host, waited for when nobody has asked for that host before.
pub(super) async fn find_service(
    exchange: &mut Exchange,
    target: &Target,
) -> Result<Arc<Service>, Error> {
    if let Some(service) = exchange.snapshot.service(&target.host) {
        return Ok(service.clone());
    }
    let unknown = || {
        let detail = format!("no service answers to the host `{}`", target.host);
        Error::ours(StatusCode::NOT_FOUND, Flag::NR, detail)
    };
    let shared = exchange.worker.shared.clone();
    let everything_known = !shared.published.is_on_demand();
    if everything_known || exchange.snapshot.absent.contains(&target.host) {
        return Err(unknown());
    }
    if !shared.published.want(&target.host) {
        let detail = "the proxy is ending and asks for no more hosts";
        return Err(Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::NR, detail));
    }
    let arrival = shared.published.arrival(&target.host);
    let arrived = tokio::time::timeout(shared.on_demand_timeout, arrival);
    let snapshot = arrived.await.map_err(|_| {
        let detail =
            format!("the control plane did not say in time who answers to `{}`", target.host);
        Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::NR, detail)
    })?;
    exchange.snapshot = snapshot;
    exchange.snapshot.service(&target.host).cloned().ok_or_else(unknown)
}

/// Whom a request on a captured connection is for.
enum Found {
    Service(Arc<Service>),
    Passthrough(Arc<Cluster>),
}

/// The service that answers to the target's host, else to the address to which the connection was going, if it has the
/// port to which it was going. What nobody answers to goes where it was going.
async fn find_captured(
    exchange: &mut Exchange,
    target: &Target,
    original: SocketAddr,
) -> Result<Found, Error> {
    let address = original.ip().to_canonical().to_string();
    for host in [&target.host, &address] {
        let mut service = exchange.snapshot.service(host).cloned();
        if service.is_none() {
            service = capture::find(&exchange.worker, host).await;
            exchange.snapshot = exchange.worker.snapshot();
        }
        if let Some(service) = service.filter(|found| found.port(Some(original.port())).is_some()) {
            return Ok(Found::Service(service));
        }
    }
    let cluster = capture::passthrough(&exchange.worker.shared, &exchange.downstream, original)?;
    exchange.note_for_log(|record| record.cluster = Some(cluster.name.clone()));
    Ok(Found::Passthrough(cluster))
}

/// The port that the number means.
pub(super) fn find_port(service: &Service, number: Option<u16>) -> Result<&Port, Error> {
    service.port(number).ok_or_else(|| {
        let detail = match number {
            Some(port) => format!("service {} has no port {port}", service.name),
            None => format!("service {} has no port 80 and several others; name one", service.name),
        };
        Error::ours(StatusCode::NOT_FOUND, Flag::NR, detail)
    })
}

/// No backend for this share: Gateway API asks for 500.
pub(super) fn no_backend(detail: String) -> Error {
    Error::ours(StatusCode::INTERNAL_SERVER_ERROR, Flag::NC, detail)
}

fn find_rule<'a>(
    port: &'a Port,
    target: &Target,
    request: &Request<Incoming>,
) -> Result<(Arc<Rule>, &'a str), Error> {
    let lookup = table::Request {
        host: &target.host,
        method: request.method(),
        path: request.uri().path(),
        query: request.uri().query(),
        headers: request.headers(),
    };
    let found = port.routes.find(lookup).ok_or_else(|| {
        let detail =
            format!("{} has routes, but none matches {}", port.cluster.name, request.uri().path());
        Error::ours(StatusCode::NOT_FOUND, Flag::NR, detail)
    })?;
    Ok((found.rule.clone(), found.prefix))
}

fn redirect(
    rule: &Rule,
    prefix: &str,
    target: &Target,
    request: &Request<Incoming>,
) -> Option<Response<Body>> {
    let redirect = rule.redirect.as_ref()?;
    let location = rewrite::location(redirect, request.uri(), &target.host, target.port, prefix);
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = redirect.status;
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    for changes in &rule.response_headers {
        headers::apply(changes, response.headers_mut());
    }
    Some(response)
}

fn rewrite_target(rule: &Rule, prefix: &str, request: &mut Request<Incoming>) {
    if let Some(change) = &rule.path
        && let Some(path) = rewrite::change_path(request.uri(), change, prefix)
    {
        *request.uri_mut() = rewrite::with_path(request.uri(), path);
    }
    if let Some((authority, host)) = &rule.authority {
        *request.uri_mut() = rewrite::with_authority(request.uri(), authority.clone());
        request.headers_mut().insert(header::HOST, host.clone());
    }
}

/// A change of `Host` is a change of the authority, wherever the request carries it.
fn apply_to_request(
    changes: &leno_api::model::filter::HeaderChanges,
    request: &mut Request<Incoming>,
) {
    headers::apply(changes, request.headers_mut());
    let host = |(name, _): &&(HeaderName, HeaderValue)| *name == header::HOST;
    if let Some((_, value)) = changes.set.iter().find(host)
        && let Ok(authority) = http::uri::Authority::try_from(value.as_bytes())
    {
        *request.uri_mut() = rewrite::with_authority(request.uri(), authority);
    }
}

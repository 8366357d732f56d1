//! The plugins of an exchange: begun where its port is known, asked on the way there and back.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response};
use http_body::Body as _;
use leno_api::model::wasm_plugin::Phase;

use super::{
    attempt::{self, Received},
    exchange::Exchange,
    guard, limits,
    worker::{Downstream, Worker},
};
use crate::{
    cluster::Admitted,
    error::{Error, Flag},
    filter::wasm::{Answered, Chain, Facts, Failure, Outcome, Passed, Run, Side, Stopped},
    http::{
        body::{Body, Incoming},
        head::{self, Target},
    },
    route::rewrite,
    snapshot::{InboundPort, Port, Rule},
    telemetry::{record::Record, trace},
};

/// What became of a request.
pub(super) enum Seen {
    /// It goes on, to another host or path where there is one.
    On(Option<Target>),
    /// A plugin answered. Boxed, since the other is what every request pays for.
    Answered(Box<Response<Body>>),
}

/// A request's head is in the hands of a plugin, and which one it is in its chain.
pub(super) struct Held(usize);

/// What became of an attempt.
pub(super) enum Attempted {
    Received(Received),
    /// A plugin answered.
    Answered(Response<Body>),
}

/// Shows a request for our application to the plugins of its port: some before we know who calls, some before we decide
/// whether they may, the rest when they may.
pub(super) async fn inbound(
    exchange: &mut Exchange,
    chain: &Chain,
    port: &InboundPort,
    target: &Target,
    request: &mut Request<Incoming>,
) -> Result<Option<Response<Body>>, Error> {
    begin(exchange, chain, &port.destination, Some(port), request);
    let mut target = target.clone();
    let mut token = None;
    for phase in [Phase::Authn, Phase::Authz, Phase::Unspecified] {
        let shown = match show(exchange, phase, request) {
            Ok(shown) => shown,
            Err(held) => wait(exchange, held, phase, request).await,
        };
        match shown? {
            Seen::Answered(response) => return Ok(Some(*response)),
            Seen::On(None) => {}
            Seen::On(Some(other)) => target = other,
        }
        let kept = exchange.plugins.clone();
        let remember = |_: &Error| {
            if let Some(run) = &kept {
                run.keep_request(request);
            }
        };
        match phase {
            Phase::Authn => {
                let authenticated = guard::authenticate_request(exchange, port, request);
                token = authenticated?;
            }
            Phase::Authz => {
                let token = token.as_deref();
                guard::authorize_request(exchange, port, &target, request, token)
                    .and_then(|()| limits::check(exchange, port, request))
                    .inspect_err(remember)?;
            }
            Phase::Stats | Phase::Unspecified => {}
        }
    }
    Ok(None)
}

/// Shows a request of our application to the plugins of the port that it calls, before its route is chosen. Where one
/// holds it, [`outbound_held`] goes on.
pub(super) fn outbound(
    exchange: &mut Exchange,
    chain: &Chain,
    port: &Port,
    request: &mut Request<Incoming>,
) -> Result<Result<Seen, Error>, Held> {
    begin(exchange, chain, &port.cluster.name, None, request);
    show(exchange, Phase::Unspecified, request)
}

/// Waits for the plugin that holds the request, and shows it to the others.
pub(super) async fn outbound_held(
    exchange: &mut Exchange,
    held: Held,
    request: &mut Request<Incoming>,
) -> Result<Seen, Error> {
    wait(exchange, held, Phase::Unspecified, request).await
}

fn begin<B>(
    exchange: &mut Exchange,
    chain: &Chain,
    name: &Arc<str>,
    port: Option<&InboundPort>,
    request: &Request<B>,
) {
    let worker = exchange.worker.clone();
    let downstream = &exchange.downstream;
    let facts = || {
        let secured = downstream.secured.as_deref();
        Facts {
            started: exchange.started(),
            direction: downstream.direction,
            connection: Rc::as_ptr(&downstream.counted).addr() as u64,
            source: downstream.address,
            destination: port
                .map(|port| port.address)
                .or_else(|| downstream.captured().map(|captured| captured.original)),
            proven: secured.map(|secured| (secured.id.clone(), secured.own.clone())),
            server_name: secured.and_then(|secured| secured.server_name.clone()),
            version: Some(request.version()),
            request_id: request.headers().get(trace::REQUEST_ID).cloned(),
            port: name.clone(),
            node: worker.plugins.node().clone(),
        }
    };
    exchange.plugins = Run::begin(&worker.plugins, chain, facts, || worker.random());
}

/// Shows the head to the plugins up to a phase.
fn show(
    exchange: &mut Exchange,
    phase: Phase,
    request: &mut Request<Incoming>,
) -> Result<Result<Seen, Error>, Held> {
    let Some(run) = exchange.plugins.clone() else { return Ok(Ok(Seen::On(None))) };
    let end = request.body().is_end_stream();
    match run.request_head(phase, request, end) {
        Ok(passed) => Ok(seen(exchange, &run, Ok(passed), request)),
        Err(Stopped::Failed(failure)) => Ok(seen(exchange, &run, Err(failure), request)),
        Err(Stopped::Held(at)) => Err(Held(at)),
    }
}

async fn wait(
    exchange: &mut Exchange,
    Held(at): Held,
    phase: Phase,
    request: &mut Request<Incoming>,
) -> Result<Seen, Error> {
    let Some(run) = exchange.plugins.clone() else { return Ok(Seen::On(None)) };
    let end = request.body().is_end_stream();
    let passed = run.held_request_head(at, phase, request, end).await;
    seen(exchange, &run, passed, request)
}

/// Whatever plugins make of path and host is checked like what a caller sends.
fn seen(
    exchange: &mut Exchange,
    run: &Run,
    passed: Result<Passed, Failure>,
    request: &mut Request<Incoming>,
) -> Result<Seen, Error> {
    match passed {
        Ok(Passed::On { retargeted: false }) => Ok(Seen::On(None)),
        Ok(Passed::On { retargeted: true }) => Ok(Seen::On(Some(retarget(request)?))),
        Ok(Passed::Answered(answered)) => {
            run.keep_request(request);
            Ok(Seen::Answered(Box::new(respond(exchange, run, answered)?)))
        }
        Err(failure) => {
            run.keep_request(request);
            Err(error(failure))
        }
    }
}

fn retarget<B>(request: &mut Request<B>) -> Result<Target, Error> {
    let refused = |refused: head::HeadError| {
        let detail = format!("a plugin changed where the request goes: {refused}");
        Error::ours(http::StatusCode::INTERNAL_SERVER_ERROR, Flag::WF, detail)
    };
    head::check(request.method(), request.version(), request.uri(), request.headers())
        .map_err(refused)?;
    let target =
        head::target(request.version(), request.uri(), request.headers()).map_err(refused)?;
    if let Some(path) = head::normal_path(request.uri()).map_err(refused)? {
        *request.uri_mut() = rewrite::with_path(request.uri(), path);
    }
    Ok(target)
}

/// The plugins of an exchange that may still answer or end it when its head has gone on.
pub(super) fn interrupting(exchange: &Exchange, request: &Request<Body>) -> Option<Rc<Run>> {
    let run = exchange.plugins.as_ref()?;
    if run.may_interrupt(matches!(request.body(), Body::Empty)) {
        return Some(run.clone());
    }
    run.keep_request(request);
    None
}

/// Sends the request, its body through the plugins, unless one of them answers first.
pub(super) async fn attempt(
    exchange: &mut Exchange,
    run: &Rc<Run>,
    cluster: &Admitted,
    rule: Option<&Rule>,
    request: Request<Body>,
    upgrade: Option<&HeaderValue>,
) -> Result<Attempted, Error> {
    run.keep_request(&request);
    let request = through(run, request);
    let interrupted = tokio::select! {
        biased;
        interrupted = run.interrupted() => interrupted,
        attempted = attempt::run(exchange, cluster, rule, request, upgrade) => match attempted {
            Ok(received) => return Ok(Attempted::Received(received)),
            // What looks like a body that broke off may be a plugin's doing.
            Err(error) => match run.interrupted().now_or_never() {
                Some(interrupted) => interrupted,
                None => return Err(error),
            },
        },
    };
    let answered = interrupted.map_err(error)?;
    respond(exchange, run, answered).map(Attempted::Answered)
}

fn through(run: &Rc<Run>, mut request: Request<Body>) -> Request<Body> {
    if matches!(request.body(), Body::Empty) || !run.filters(Side::Request) {
        return request;
    }
    run.unframe(Side::Request, request.headers_mut());
    request.map(|body| run.body(Side::Request, body, None, None))
}

/// Makes a response of a plugin's answer. The plugins before it have not seen it yet.
pub(super) fn respond(
    exchange: &mut Exchange,
    run: &Run,
    answered: Answered,
) -> Result<Response<Body>, Error> {
    let detail = answered.detail();
    let response = run.answer(answered, exchange.is_grpc()).map_err(error)?;
    exchange.note(|record| record.detail = Some(detail));
    Ok(exchange.respond(response.map(|body| Body::Full(body.into()))))
}

/// Shows an answer that is not the upstream's to the plugins that it passes.
pub(super) async fn last(
    mut exchange: Exchange,
    run: Rc<Run>,
    mut response: Response<Body>,
) -> Response<Body> {
    if run.has_responded() {
        return response;
    }
    while !run.has_responded() {
        let end = response.body().is_end_stream();
        let shown = match run.response_head(&mut response, end) {
            Ok(answered) => Ok(answered),
            Err(Stopped::Failed(failure)) => Err(failure),
            Err(Stopped::Held(at)) => run.held_response_head(at, &mut response, end).await,
        };
        match shown {
            Ok(None) => {}
            Ok(Some(answered)) => match respond(&mut exchange, &run, answered) {
                Ok(other) => response = other,
                Err(error) => response = exchange.fail(&error),
            },
            Err(failure) => response = exchange.fail(&error(failure)),
        }
    }
    run.keep_response(&response);
    if exchange.answers_without_body() {
        return response.map(|_| Body::Empty);
    }
    if response.body().is_end_stream() || !run.filters(Side::Response) {
        return response;
    }
    run.unframe(Side::Response, response.headers_mut());
    response.map(|body| run.body(Side::Response, body, None, None))
}

/// Shows a connection that is not HTTP to the plugins of `chain` that see such. What it carries is to pass them, too.
///
/// # Errors
/// A plugin failed that may not be left out; the caller can only be told by closing.
pub async fn connection(
    worker: &Worker,
    downstream: &Downstream,
    chain: Option<&Arc<Chain>>,
    name: &Arc<str>,
    destination: Option<SocketAddr>,
) -> Result<Option<Rc<Run>>, Error> {
    let Some(chain) = chain else { return Ok(None) };
    let secured = downstream.secured.as_deref();
    let facts = || Facts {
        started: std::time::Instant::now(),
        direction: downstream.direction,
        connection: Rc::as_ptr(&downstream.counted).addr() as u64,
        source: downstream.address,
        destination,
        proven: secured.map(|secured| (secured.id.clone(), secured.own.clone())),
        server_name: secured.and_then(|secured| secured.server_name.clone()),
        version: None,
        request_id: None,
        port: name.clone(),
        node: worker.plugins.node().clone(),
    };
    let opening = Run::connection(&worker.plugins, chain, facts, || worker.random());
    Box::pin(opening).await.map_err(error)
}

/// What a plugin's failure is to whoever answers for the exchange.
pub(super) fn error(failure: Failure) -> Error {
    Error::ours(failure.status, Flag::WF, failure.detail)
}

/// How an exchange ended, as plugins ask.
pub(super) fn outcome(record: &Record) -> Outcome {
    Outcome {
        status: record.status,
        grpc_status: record.grpc_status,
        flag: record.flag.as_str(),
        detail: record.detail.clone(),
        upstream: record.upstream,
        attempts: record.attempts,
        request_bytes: record.request_bytes,
        response_bytes: record.response_bytes,
        duration: record.start.elapsed(),
        route: record.route.clone(),
        cluster: record.cluster.clone(),
    }
}

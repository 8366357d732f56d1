//! The way back. The record moves into the body's watcher and is finished where the body ends.

use std::{rc::Rc, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use tokio::time::Instant as Moment;

use super::{
    attempt::Received, exchange::Exchange, limits, outcome, plugins, tunnel, worker::Worker,
};
use crate::{
    cluster::{Admitted, Lease, pool::Connection, tally::Verdict},
    error::{Error, Flag, Retry},
    filter::{
        headers,
        wasm::{Failure, Run, Shown, Side, Stopped, Whole},
    },
    http::{
        body::{Body, End, Incoming, Limits, Progress, Watch},
        head, upgrade,
    },
    snapshot::{Backend, Rule},
    telemetry::record::{Direction, Record},
};

/// What the rule and the backend do to a response.
#[derive(Clone, Copy)]
pub(super) struct Changes<'a> {
    pub(super) rule: Option<&'a Rule>,
    pub(super) backend: Option<&'a Backend>,
}

impl<'a> Changes<'a> {
    /// Those of a rule and of the backend with this number among its backends.
    pub(super) fn of(rule: Option<&'a Rule>, backend: Option<usize>) -> Self {
        let backend = rule.zip(backend).and_then(|(rule, at)| rule.backends.get(at));
        Self { rule, backend }
    }
}

/// Passes an upstream response on, or makes a tunnel of the exchange when upstream agreed to an upgrade.
pub(super) fn pass_on(
    exchange: &mut Exchange,
    cluster: Admitted,
    changes: Changes<'_>,
    mut received: Received,
    upgrade: Option<(HeaderValue, upgrade::Pending)>,
) -> Result<Response<Body>, Error> {
    if received.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return join(exchange, cluster, changes, received, upgrade);
    }
    change_headers(&mut received.response, changes);
    deliver(exchange, cluster, received, None)
}

/// Shows a response to plugins: its head, and its body where [`Run::response`] does.
pub(super) fn show(
    run: &Run,
    changes: Changes<'_>,
    response: &mut Response<Incoming>,
) -> Result<Shown, Stopped> {
    change_headers(response, changes);
    run.response(response)
}

/// Waits for the plugin that holds the head, and shows it to the others.
pub(super) async fn pass_held(
    exchange: &mut Exchange,
    run: &Run,
    cluster: Admitted,
    mut received: Received,
    at: usize,
) -> Result<Response<Body>, Error> {
    let end = received.response.body().is_end_stream();
    let answered = run.held_response_head(at, &mut received.response, end).await;
    let answered = answered.map_err(plugins::error)?;
    shown(exchange, run, cluster, received, Shown { answered, whole: None })
}

/// All plugins have seen the head, or one of them answered.
pub(super) fn shown(
    exchange: &mut Exchange,
    run: &Run,
    cluster: Admitted,
    mut received: Received,
    Shown { answered, whole }: Shown,
) -> Result<Response<Body>, Error> {
    if let Some(answered) = answered {
        return plugins::respond(exchange, run, answered);
    }
    let response = &mut received.response;
    // What a plugin failed at does not go on.
    if !matches!(whole, Some(Err(_))) {
        run.keep_response(response);
    }
    if whole.is_some() || !response.body().is_end_stream() {
        run.unframe(Side::Response, response.headers_mut());
    }
    deliver(exchange, cluster, received, whole)
}

fn join(
    exchange: &mut Exchange,
    cluster: Admitted,
    changes: Changes<'_>,
    received: Received,
    upgrade: Option<(HeaderValue, upgrade::Pending)>,
) -> Result<Response<Body>, Error> {
    let Received { mut response, lease, connection, .. } = received;
    let (_, downstream) = upgrade.ok_or_else(|| {
        let detail = "upstream switched protocols unasked";
        Error::upstream(StatusCode::BAD_GATEWAY, Flag::UPE, Retry::Unsafe, detail)
    })?;
    let upstream = upgrade::Pending::of_response(&mut response);
    let protocol = response.headers().get(header::UPGRADE).cloned();
    let idle = cluster.settings.idle_timeout;
    tunnel::upgraded(exchange, downstream, upstream, (lease, cluster, connection), idle);
    change_headers(&mut response, changes);
    let mut response = response.map(|_| Body::Empty);
    limits::tell(exchange.standing.as_deref(), response.headers_mut());
    set_cookie(exchange, response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    Ok(response)
}

/// Sends a response whose head is as it is to be. `shown`: what plugins have made of its body, if they have seen that.
fn deliver(
    exchange: &mut Exchange,
    cluster: Admitted,
    received: Received,
    shown: Option<Result<Whole, Failure>>,
) -> Result<Response<Body>, Error> {
    let Received { mut response, lease, connection, deadline } = received;
    let run = exchange.plugins.clone();
    let whole = match show_whole(run.as_ref(), &mut response, shown) {
        Ok(whole) => whole,
        Err(error) => {
            // All of it was read: the connection is as good as any.
            let sent = exchange.progress.as_ref().is_none_or(|request| request.is_sent());
            Held { connection, cluster, lease }.ended(End::Complete, sent, Instant::now());
            return Err(error);
        }
    };
    let grpc = outcome::grpc_status_of(response.headers());
    if exchange.downstream.direction == Direction::Outbound
        && outcome::is_overloaded(response.status(), grpc, response.headers())
    {
        // An application that passes answers on would say it of itself.
        response.headers_mut().remove(outcome::OVERLOADED);
    }
    set_cookie(exchange, response.headers_mut());
    limits::tell(exchange.standing.as_deref(), response.headers_mut());
    let Some(mut record) = exchange.take_record() else {
        return Err(Error::ours(
            StatusCode::INTERNAL_SERVER_ERROR,
            Flag::None,
            "the exchange ended twice",
        ));
    };
    record.status = response.status().as_u16();
    record.grpc_status = grpc;
    let grpc = record.grpc;
    let mut ending = Ending {
        worker: exchange.worker.clone(),
        record,
        request: exchange.progress.clone(),
        held: Some(Held { connection, cluster, lease }),
        run: run.clone(),
    };
    Ok(response.map(|mut body| {
        if let Some((run, whole)) = whole {
            return seen(run, whole, ending, deadline);
        }
        if body.is_end_stream() {
            ending.end(End::Complete);
            return Body::Empty;
        }
        let limits = Limits { idle: std::time::Duration::ZERO, deadline, grpc };
        match run.filter(|run| run.filters(Side::Response)) {
            None => match body.take_whole() {
                Some(bytes) => passed(bytes, &mut ending),
                None => Body::passing(body, limits, Box::new(ending)),
            },
            Some(run) => {
                let body = Body::unwatched(body, limits);
                run.body(Side::Response, body, Some(Box::new(ending)), deadline)
            }
        }
    }))
}

/// Shows plugins a body that is all here. What goes wrong with it can still be told the caller, whose answer has not begun.
fn show_whole(
    run: Option<&Rc<Run>>,
    response: &mut Response<Incoming>,
    shown: Option<Result<Whole, Failure>>,
) -> Result<Option<(Rc<Run>, Whole)>, Error> {
    if let (Some(run), Some(whole)) = (run, shown) {
        return whole.map(|whole| Some((run.clone(), whole))).map_err(plugins::error);
    }
    let Some(run) = run.filter(|run| run.filters(Side::Response)) else { return Ok(None) };
    let Some(bytes) = response.body_mut().take_whole() else { return Ok(None) };
    let length = bytes.len();
    let whole = run.whole(Side::Response, bytes).map_err(plugins::error)?;
    if !matches!(&whole, Whole::Passed(bytes) if bytes.len() == length) {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    Ok(Some((run.clone(), whole)))
}

/// What plugins have made of a body that was all here.
fn seen(run: Rc<Run>, whole: Whole, mut ending: Ending, deadline: Option<Moment>) -> Body {
    match whole {
        Whole::Passed(bytes) => passed(bytes, &mut ending),
        Whole::Held(held) => run.rest(Side::Response, held, Some(Box::new(ending)), deadline),
    }
}

/// Sends a response that this exchange does not read from upstream: one that is kept, or is just being fetched.
pub(super) async fn send_own(
    exchange: &mut Exchange,
    changes: Changes<'_>,
    mut response: Response<Body>,
) -> Result<Response<Body>, Error> {
    change_headers(&mut response, changes);
    let run = exchange.plugins.clone();
    if let Some(run) = &run {
        let end = response.body().is_end_stream();
        let shown = match run.response_head(&mut response, end) {
            Ok(answered) => Ok(answered),
            Err(Stopped::Failed(failure)) => Err(failure),
            Err(Stopped::Held(at)) => {
                Box::pin(run.held_response_head(at, &mut response, end)).await
            }
        };
        if let Some(answered) = shown.map_err(plugins::error)? {
            return plugins::respond(exchange, run, answered);
        }
        run.keep_response(&response);
        if !end {
            run.unframe(Side::Response, response.headers_mut());
        }
    }
    deliver_own(exchange, response, run)
}

/// The same where no plugin sees it: nothing is waited for.
pub(super) fn send_own_at_once(
    exchange: &mut Exchange,
    changes: Changes<'_>,
    mut response: Response<Body>,
) -> Result<Response<Body>, Error> {
    // What is kept has no fields of the hop.
    apply(&mut response, changes);
    deliver_own(exchange, response, None)
}

fn deliver_own(
    exchange: &mut Exchange,
    mut response: Response<Body>,
    run: Option<Rc<Run>>,
) -> Result<Response<Body>, Error> {
    set_cookie(exchange, response.headers_mut());
    limits::tell(exchange.standing.as_deref(), response.headers_mut());
    // Whoever fetches for nobody has no record.
    let Some(mut record) = exchange.take_record() else { return Ok(response) };
    record.status = response.status().as_u16();
    let request = exchange.progress.clone();
    let worker = exchange.worker.clone();
    let mut ending = Ending { worker, record, request, held: None, run: run.clone() };
    let length = response.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    Ok(response.map(|body| match (body, run.filter(|run| run.filters(Side::Response))) {
        (body, Some(run)) if !body.is_end_stream() => {
            run.body(Side::Response, body, Some(Box::new(ending)), None)
        }
        (Body::Full(bytes), _) => passed(bytes, &mut ending),
        (body, _) if body.is_end_stream() => {
            ending.end(End::Complete);
            Body::Empty
        }
        (body, _) => Body::watched(body, length, Box::new(ending)),
    }))
}

/// All of it is here: nothing can happen to it any more but that the caller goes.
fn passed(bytes: Bytes, ending: &mut Ending) -> Body {
    ending.data(&bytes);
    ending.end(End::Complete);
    Body::Full(bytes)
}

/// Tells a caller that belonged nowhere yet where it belongs now.
fn set_cookie(exchange: &mut Exchange, headers: &mut HeaderMap) {
    if let Some(cookie) = exchange.affinity.cookie.take() {
        headers.append(header::SET_COOKIE, cookie);
    }
}

fn change_headers<B>(response: &mut Response<B>, by: Changes<'_>) {
    head::strip_hop_by_hop(response.headers_mut());
    apply(response, by);
}

fn apply<B>(response: &mut Response<B>, by: Changes<'_>) {
    if let Some(backend) = by.backend {
        for changes in &backend.response_headers {
            headers::apply(changes, response.headers_mut());
        }
    }
    if let Some(rule) = by.rule {
        for changes in &rule.response_headers {
            headers::apply(changes, response.headers_mut());
        }
    }
    // Ours is decided by the downstream connection.
    *response.version_mut() = http::Version::default();
}

/// What remains to be done when the response's body ends.
struct Ending {
    worker: Rc<Worker>,
    record: Record,
    request: Option<Rc<Progress>>,
    held: Option<Held>,
    run: Option<Rc<Run>>,
}

/// What is held upstream until a response's body ends.
pub(super) struct Held {
    pub(super) connection: Connection,
    pub(super) cluster: Admitted,
    pub(super) lease: Lease,
}

impl Held {
    /// The body ended, and all of the request's was sent or not.
    pub(super) fn ended(self, end: End, request_sent: bool, now: Instant) {
        // An HTTP/1.1 connection on which either body is not at its end cannot carry another exchange.
        match (end, request_sent) {
            (End::Complete, true) => self.connection.give_back_at(&self.cluster, now.into()),
            (End::Complete, false) => self.connection.send_rest(),
            _ => {}
        }
        if matches!(end, End::SenderFailed | End::TimedOut) {
            self.lease.judge(Verdict::Failure);
        }
    }
}

impl Watch for Ending {
    fn data(&mut self, data: &Bytes) {
        self.record.response_bytes += data.len() as u64;
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.record.grpc_status = outcome::grpc_status_of(trailers).or(self.record.grpc_status);
    }

    fn end(&mut self, end: End) {
        // Whoever does not get the rest of a request need not send the rest of its answer.
        let broken = match end {
            End::SenderFailed => {
                let request = self.request.as_ref().and_then(|request| request.ended());
                outcome::of_request_body(request)
            }
            _ => None,
        };
        // Otherwise it says already what else there is to say.
        if end != End::Complete {
            let of_response = || outcome::of_response_body(end);
            self.record.flag = broken.as_ref().map_or_else(of_response, |error| error.flag);
            let because = broken.as_ref().map(|error| format!(", as {}", error.detail));
            let because = because.unwrap_or_default();
            self.record.detail = Some(format!("the response's body ended early: {end:?}{because}"));
        }
        let now = Instant::now();
        let request_complete = self.request.as_ref().is_none_or(|request| request.is_sent());
        self.record.request_bytes = self.request.as_ref().map_or(0, |request| request.bytes());
        if let Some(held) = self.held.take() {
            // The caller's doing is not held against the endpoint.
            let end = if broken.is_some() { End::Dropped } else { end };
            held.ended(end, request_complete, now);
        }
        if let Some(run) = &self.run {
            run.conclude(|| plugins::outcome(&self.record));
        }
        self.worker.finish_at(&self.record, now);
        if let Some(run) = self.run.take() {
            run.finish();
        }
    }
}

//! One exchange from its first byte to its last: `begin -> run -> finish`.

use std::{rc::Rc, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};

use super::{
    admission,
    affinity::{self, Affinity},
    attempt::{self, Received},
    cached::{self, Change},
    fault, inbound, limits, mirror, outbound, outcome,
    plugins::{self, Attempted},
    response, tunnel,
    worker::{Downstream, Worker},
};
use crate::{
    cache::Rules,
    cluster::{Admitted, Cluster, Refusal},
    error::{Error, Flag},
    filter::{
        jwt::CHALLENGE,
        rate_limit::{Standing, headers},
        wasm::Run,
    },
    http::{
        body::{Body, Incoming, Limits, Progress},
        head,
        server::Answer,
        upgrade,
    },
    route::rewrite,
    snapshot::{Rule, Snapshot},
    telemetry::{
        record::{Direction, Record, RequestLine},
        scope::Scope,
        trace,
    },
};

/// A request body over HTTP/1.1 may pause this long; over HTTP/2, where calls do stream, longer.
const BODY_IDLE_HTTP1: std::time::Duration = std::time::Duration::from_secs(60);
const BODY_IDLE_HTTP2: std::time::Duration = std::time::Duration::from_secs(300);
/// With a 503 for a full breaker: when to come back.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
pub(super) use crate::cluster::connect::DESTINATION;

/// A request on its way.
pub(super) struct Exchange {
    pub(super) worker: Rc<Worker>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) downstream: Downstream,
    /// Until it moves into the response's body. An exchange dropped before that was given up by the caller.
    record: Option<Record>,
    /// HTTP/2 knows no `Connection: close`.
    http1: bool,
    /// Its answer has no body. hyper sees to that in HTTP/1.1; in HTTP/2 a body would be a protocol error.
    head_only: bool,
    /// Whom a caller that has proven who it is is counted for.
    pub(super) caller: Option<Arc<Scope>>,
    /// How the request's body is doing; `None` when it has none.
    pub(super) progress: Option<Rc<Progress>>,
    /// Where it belongs, if its service's balancer goes by that.
    pub(super) affinity: Affinity,
    /// The plugins that see it; `None` where there are none.
    pub(super) plugins: Option<Rc<Run>>,
    /// How the caller stands with its rate limits, where it has any.
    pub(super) standing: Option<Box<Standing>>,
}

/// Where a request goes, and what is done to it and to its response on the way.
pub(super) struct Routed {
    pub(super) cluster: Arc<Cluster>,
    pub(super) rule: Option<Arc<Rule>>,
    /// Which of the rule's backends.
    pub(super) backend: Option<usize>,
    /// Whether answers may come from our own memory.
    pub(super) cache: Option<Arc<Rules>>,
    /// The port that the caller addresses, where this request may change what others keep of it.
    pub(super) addressed: Option<Arc<str>>,
}

impl Routed {
    /// As it came, to `cluster`.
    pub(super) fn to(cluster: Arc<Cluster>) -> Self {
        Self { cluster, rule: None, backend: None, cache: None, addressed: None }
    }
}

/// What routing decided.
pub(super) enum Decision {
    Forward(Routed),
    /// Boxed, since the other is what every request pays for.
    Respond(Box<Response<Body>>),
}

/// Answers one request.
pub fn answer(worker: Rc<Worker>, downstream: Downstream, request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        let mut exchange = Exchange::begin(worker, downstream, &request);
        let response = match exchange.run(request).await {
            Ok(response) => response,
            Err(error) => exchange.fail(&error),
        };
        let run = exchange.plugins.take().filter(|run| !run.has_responded());
        Ok(match run {
            Some(run) => Box::pin(plugins::last(exchange, run, response)).await,
            None => response,
        })
    })
}

impl Exchange {
    fn begin(worker: Rc<Worker>, downstream: Downstream, request: &Request<Incoming>) -> Self {
        let record = Record {
            start: Instant::now(),
            direction: downstream.direction,
            downstream: downstream.address,
            line: None,
            grpc: head::is_grpc(request.headers()),
            status: 0,
            grpc_status: None,
            flag: Flag::None,
            detail: None,
            route: None,
            cluster: None,
            upstream: None,
            downstream_peer: None,
            upstream_peer: None,
            audit: None,
            scope: None,
            attempts: 0,
            not_retried: None,
            cache: None,
            request_bytes: 0,
            response_bytes: 0,
        };
        let http1 = request.version() != Version::HTTP_2;
        Self {
            snapshot: worker.snapshot(),
            worker,
            downstream,
            record: Some(record),
            http1,
            head_only: request.method() == Method::HEAD,
            caller: None,
            progress: None,
            affinity: Affinity::default(),
            plugins: None,
            standing: None,
        }
    }

    /// One that nobody waits for, on behalf of this one. It leaves no record.
    pub(super) fn aside(&self) -> Self {
        Self {
            worker: self.worker.clone(),
            snapshot: self.snapshot.clone(),
            downstream: self.downstream.clone(),
            record: None,
            http1: self.http1,
            head_only: self.head_only,
            caller: self.caller.clone(),
            progress: None,
            affinity: Affinity::default(),
            plugins: None,
            standing: None,
        }
    }

    /// The record, while it is here.
    pub(super) fn note(&mut self, note: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            note(record);
        }
    }

    /// The same for what only the access log wants: names cost reference counts that all workers share.
    pub(super) fn note_for_log(&mut self, note: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record
            && record.line.is_some()
        {
            note(record);
        }
    }

    /// Counts the exchange for `cluster` where no endpoint was reached.
    pub(super) fn count_for(&mut self, cluster: &Cluster) {
        let scope = self.caller.clone();
        self.note(|record| {
            record.scope.get_or_insert_with(|| scope.unwrap_or_else(|| cluster.scope.clone()));
        });
    }

    /// The record, for whoever sees the exchange to its end.
    pub(super) fn take_record(&mut self) -> Option<Record> {
        self.record.take()
    }

    /// When it began.
    pub(super) fn started(&self) -> Instant {
        self.record.as_ref().map_or_else(Instant::now, |record| record.start)
    }

    /// Whether an answer of our own must have no body.
    pub(super) fn answers_without_body(&self) -> bool {
        self.head_only && !self.http1
    }

    /// Whether the caller speaks gRPC.
    pub(super) fn is_grpc(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.grpc)
    }

    async fn run(&mut self, mut request: Request<Incoming>) -> Result<Response<Body>, Error> {
        let target = self.receive(&mut request)?;
        if request.method() == Method::CONNECT {
            // On the heap, as all would be larger for the few.
            return Box::pin(tunnel::connect(self, target, request)).await;
        }
        let upgrade = head::strip_hop_by_hop(request.headers_mut());
        let upgrade =
            upgrade.map(|protocol| (protocol, upgrade::Pending::of_request(&mut request)));
        let decision = match self.downstream.direction {
            Direction::Outbound => outbound::decide(self, &target, &mut request).await?,
            Direction::Inbound => inbound::decide(self, &target, &mut request).await?,
        };
        let routed = match decision {
            Decision::Forward(routed) => routed,
            Decision::Respond(response) => return Ok(self.respond(*response)),
        };
        let request = self.watch_body(request);
        if let Some(rules) = routed.cache.clone().filter(|_| upgrade.is_none()) {
            return match cached::answer_at_once(self, rules, routed, request) {
                Ok(answer) => answer,
                Err(waiting) => Box::pin(waiting.answer(self)).await,
            };
        }
        let Routed { cluster, rule, backend, addressed, .. } = routed;
        let change = addressed.and_then(|service| Change::of(&service, &request));
        let rule = rule.as_deref();
        let protocol = upgrade.as_ref().map(|(protocol, _)| protocol);
        let (admitted, attempted) = self.fetch(cluster, rule, request, protocol).await?;
        let received = match attempted {
            Attempted::Received(received) => received,
            Attempted::Answered(response) => return Ok(response),
        };
        if let Some(change) = change {
            change.takes_effect(&self.worker.snapshot(), &received.response);
        }
        let changes = response::Changes::of(rule, backend);
        self.pass_on(admitted, changes, received, upgrade).await
    }

    /// Gets the head of a response from upstream, or from a plugin that answers instead.
    pub(super) async fn fetch(
        &mut self,
        cluster: Arc<Cluster>,
        rule: Option<&Rule>,
        request: Request<Body>,
        upgrade: Option<&HeaderValue>,
    ) -> Result<(Admitted, Attempted), Error> {
        fault::inject(self, &cluster, &request).await?;
        mirror::send_copies(self, rule, &request);
        self.find_affinity(&cluster, &request);
        let admitted =
            cluster.admit(|| self.worker.shared.now()).map_err(|(cluster, refusal)| {
                self.count_for(&cluster);
                refused(&cluster, refusal)
            })?;
        let place = admission::enter(self, &admitted, &request).await;
        let place = place.inspect_err(|_| self.count_for(&admitted))?;
        let attempted = match plugins::interrupting(self, &request) {
            None => {
                attempt::run(self, &admitted, rule, request, upgrade).await.map(Attempted::Received)
            }
            Some(run) => {
                let admitted = &admitted;
                Box::pin(plugins::attempt(self, &run, admitted, rule, request, upgrade)).await
            }
        };
        if let Some(place) = place {
            match &attempted {
                Ok(Attempted::Received(received)) => place.ended(Ok(received)),
                Ok(Attempted::Answered(_)) => {}
                Err(error) => place.ended(Err(error)),
            }
        }
        let attempted = attempted.inspect_err(|_| self.count_for(&admitted))?;
        Ok((admitted, attempted))
    }

    /// Sends the caller what upstream answered.
    pub(super) async fn pass_on(
        &mut self,
        admitted: Admitted,
        changes: response::Changes<'_>,
        received: Received,
        upgrade: Option<(HeaderValue, upgrade::Pending)>,
    ) -> Result<Response<Body>, Error> {
        match self.plugins.clone() {
            None => response::pass_on(self, admitted, changes, received, upgrade),
            Some(run) => {
                let shown =
                    response::pass_through(self, &run, admitted, changes, received, upgrade);
                match shown {
                    Ok(response) => response,
                    Err(paused) => Box::pin(response::pass_held(self, &run, paused)).await,
                }
            }
        }
    }

    /// Makes the head safe and finds out whom it is for.
    fn receive(&mut self, request: &mut Request<Incoming>) -> Result<head::Target, Error> {
        if self.worker.shared.access_log.is_some() {
            let headers = request.headers();
            let line = RequestLine {
                method: request.method().clone(),
                uri: request.uri().clone(),
                version: request.version(),
                host: headers.get(header::HOST).cloned(),
                user_agent: headers.get(header::USER_AGENT).cloned(),
                request_id: None,
            };
            self.note(|record| record.line = Some(Box::new(line)));
        }
        let refused = |error: head::HeadError| {
            Error::downstream(error.status(), Flag::DPE, error.to_string())
        };
        head::check(request.method(), request.version(), request.uri(), request.headers())
            .map_err(refused)?;
        let target =
            head::target(request.version(), request.uri(), request.headers()).map_err(refused)?;
        if let Some(path) = head::normal_path(request.uri()).map_err(refused)? {
            *request.uri_mut() = rewrite::with_path(request.uri(), path);
        }
        let headers = request.headers_mut();
        self.worker.with_random(|random| trace::propagate(headers, random));
        // hyper answers `100-continue` when the body is first asked for; upstream gets the body without asking.
        headers.remove(header::EXPECT);
        self.note_for_log(|record| {
            if let Some(line) = &mut record.line {
                line.request_id = request.headers().get(trace::REQUEST_ID).cloned();
            }
        });
        Ok(target)
    }

    /// Finds out where the request belongs, where that matters.
    fn find_affinity(&mut self, cluster: &Cluster, request: &Request<Body>) {
        let keys = cluster.settings.balancer.keys();
        if !keys.is_empty() && cluster.is_judged() {
            let known = affinity::Request {
                headers: request.headers(),
                query: request.uri().query(),
                source: self.downstream.address.ip(),
            };
            self.affinity = affinity::of(keys, known, || self.worker.random());
        }
    }

    fn watch_body(&mut self, request: Request<Incoming>) -> Request<Body> {
        use http_body::Body as _;
        let idle = match request.version() {
            Version::HTTP_2 if self.is_grpc() => std::time::Duration::ZERO,
            Version::HTTP_2 => BODY_IDLE_HTTP2,
            _ => BODY_IDLE_HTTP1,
        };
        request.map(|body| {
            if body.is_end_stream() {
                return Body::Empty;
            }
            let progress = Rc::new(Progress::default());
            self.progress = Some(progress.clone());
            Body::passing(body, Limits { idle, ..Limits::default() }, Box::new(progress))
        })
    }

    /// An answer of our own that is not an error.
    pub(super) fn respond(&mut self, response: Response<Body>) -> Response<Body> {
        self.note(|record| record.status = response.status().as_u16());
        self.finish();
        response
    }

    /// The one place that turns an error into an answer.
    pub(super) fn fail(&mut self, error: &Error) -> Response<Body> {
        let grpc = self.is_grpc() || error.grpc.is_some();
        let grpc_status = grpc.then(|| outcome::grpc_status(error));
        self.note(|record| {
            record.status = if grpc { 200 } else { error.status.as_u16() };
            record.grpc_status = grpc_status;
            record.flag = error.flag;
            record.detail = Some(error.detail.to_string());
        });
        tracing::debug!(flag = error.flag.as_str(), fault = ?error.fault, "{}", error.detail);
        self.finish();
        let message = outcome::message(error);
        let mut response = match grpc_status {
            Some(status) => {
                let mut response = Response::new(Body::Empty);
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", HeaderValue::from(u16::from(status)));
                headers.insert("grpc-message", HeaderValue::from_static(message));
                response
            }
            None => {
                // Whoever may not is not told which of the proxy's checks it was.
                let text = match error.flag {
                    Flag::AD | Flag::AU => format!("{message}\n"),
                    flag => format!("{message} ({})\n", flag.as_str()),
                };
                let body = match self.answers_without_body() || has_no_body(error.status) {
                    true => Body::Empty,
                    false => Body::Full(Bytes::from(text)),
                };
                let mut response = Response::new(body);
                *response.status_mut() = error.status;
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, plain);
                response
            }
        };
        if error.flag == Flag::AU {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        limits::tell(self.standing.as_deref(), response.headers_mut());
        if matches!(error.flag, Flag::UO | Flag::RL) {
            let retry_after = error.retry_after.map_or(RETRY_AFTER, headers::retry_after);
            response.headers_mut().insert(header::RETRY_AFTER, retry_after);
            if self.downstream.direction == Direction::Inbound {
                let yes = HeaderValue::from_static("true");
                response.headers_mut().insert(outcome::OVERLOADED, yes);
            }
        }
        let close =
            error.status == StatusCode::BAD_REQUEST || error.status == StatusCode::REQUEST_TIMEOUT;
        if close && self.http1 && error.flag != Flag::FI {
            // What follows an unacceptable request cannot be trusted to be the next one.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn finish(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.request_bytes = self.progress.as_ref().map_or(0, |progress| progress.bytes());
            if let Some(run) = &self.plugins {
                run.conclude(|| plugins::outcome(&record));
            }
            self.worker.finish(&record);
        }
    }
}

/// Why `cluster` takes no more.
fn refused(cluster: &Cluster, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Full => {
            cluster.state.limits.reject();
            let limit = cluster.settings.max_exchanges;
            let detail = format!("{}: {limit} exchanges are under way", cluster.name);
            Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, detail)
        }
        Refusal::Open { retry_after } => outcome::of_open_circuit(
            &cluster.name,
            cluster.state.circuit.load().as_deref(),
            retry_after,
        ),
    }
}

/// Of the statuses that a fault may have (RFC 9110 section 15): their answers have no content.
fn has_no_body(status: StatusCode) -> bool {
    [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
}

impl Drop for Exchange {
    /// Still with its record: the caller went away before there was an answer.
    fn drop(&mut self) {
        self.note(|record| {
            record.flag = Flag::DC;
            record.detail = Some("the caller went away before the response".to_owned());
        });
        self.finish();
    }
}

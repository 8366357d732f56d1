//! Tries upstream until one attempt gets the head of a response, or none is left.
//!
//! - [`form`]: the request as the upstream connection needs it; [`supply`]: what of it can be sent again.
//! - [`send`]: one attempt; [`hedge`]: several at once; [`discard`]: the answers that nobody gets.

mod discard;
mod form;
mod hedge;
mod send;
mod supply;

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant as Moment, SystemTime},
};

use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use leno_api::model::traffic_policy::HedgeAfter;
use tokio::time::Instant;

use super::{
    allowance::Granted,
    deadline::Limits,
    exchange::Exchange,
    outcome,
    retry::{self, Again, Failure, MAX_ATTEMPTS, Policy, Reason, RequestFacts},
    worker::Judged,
};
use crate::{
    cluster::{Admitted, Lease, pool::Connection, window::Kind},
    error::{Error, Flag, Retry},
    http::{
        body::{Body, End, Incoming, Progress},
        replay::Replay,
    },
    snapshot::Rule,
    telemetry::record::Direction,
};
pub(super) use form::{prepare, speaks_http2, with_body};
pub(super) use send::name_destination;
use send::{Context, Sent};
use supply::Supply;

/// Of a request that was sent before: how often. A caller's own is removed.
const RETRY_ATTEMPT: HeaderName = HeaderName::from_static("x-retry-attempt");

/// The head of a response, with what is held until its body ends.
pub(super) struct Received {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) connection: Connection,
    /// For the body, too.
    pub(super) deadline: Option<Instant>,
}

impl Received {
    /// Drops an answer that nobody gets, to a request without a body.
    pub(super) fn discard(self, cluster: &Admitted) {
        discard::discard(self.response, self.connection, cluster.cluster(), true);
    }
}

/// The attempts of one exchange.
struct Tries<'a> {
    context: Context<'a>,
    facts: RequestFacts,
    /// When the first attempt begins, until it does.
    begun: Option<Moment>,
    supply: Supply,
    hedged: Option<hedge::Plan>,
    /// Endpoints.
    tried: Vec<u64>,
    /// Attempts so far, but for those on connections that had ended already.
    made: u32,
    /// Those on connections that had ended already.
    stale: u32,
    /// For the retry that is under way.
    granted: Option<Granted>,
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// Nothing: how it went is the exchange's answer.
    Answer,
    /// Another one after this time.
    Again(Duration),
}

/// Who gives an attempt less than this of its own accord has not found out that the endpoint is slow. (A caller could
/// have endpoints ejected and breakers opened for all others with deadlines that nobody can meet.)
const FAIR_TRIAL: Duration = Duration::from_secs(1);

/// Sends `request` to an endpoint of `cluster`, and to others while that is safe.
/// It counts as an exchange from the call on, in the budget of retries, too, whether what is returned is polled or not.
pub(super) fn run<'a>(
    exchange: &'a mut Exchange,
    cluster: &'a Admitted,
    rule: Option<&Rule>,
    request: Request<Body>,
    upgrade: Option<&HeaderValue>,
) -> impl Future<Output = Result<Received, Error>> + use<'a> {
    let mut tries = Tries::new(exchange, cluster, rule, request, upgrade);
    // What an `async` function takes by value it has room for twice.
    async move {
        match &mut tries {
            Ok(tries) => tries.run(exchange).await,
            Err(error) => Err(error.clone()),
        }
    }
}

impl<'a> Tries<'a> {
    fn new(
        exchange: &Exchange,
        cluster: &'a Admitted,
        rule: Option<&Rule>,
        mut request: Request<Body>,
        upgrade: Option<&HeaderValue>,
    ) -> Result<Self, Error> {
        let http2 = form::speaks_http2(cluster.protocol, request.version()) && upgrade.is_none();
        form::prepare(&mut request, http2, upgrade)?;
        let grpc = exchange.is_grpc();
        let outbound = exchange.downstream.direction == Direction::Outbound;
        if outbound {
            request.headers_mut().remove(RETRY_ATTEMPT);
        }
        let (limits, policy) = terms(cluster, rule, grpc.then_some(request.headers()));
        let facts = RequestFacts::of(request.method(), request.headers(), false, None);
        let mut context = Context {
            worker: exchange.worker.clone(),
            cluster,
            progress: exchange.progress.clone(),
            awaited: Cell::default(),
            limits,
            policy,
            http2,
            upgrade: upgrade.is_some(),
            outbound,
            caller: exchange.downstream.address,
            counted: exchange.downstream.counted.clone(),
            idempotent: facts.idempotent,
            hash: exchange.affinity.hash,
            copies: policy.goes_beyond_unprocessed(&facts),
        };
        let hedged = match cluster.settings.hedging {
            Some(_) if upgrade.is_none() && cluster.is_judged() && policy.may_repeat(&facts) => {
                hedge::Plan::of(&context)
            }
            _ => None,
        };
        let shared = &context.worker.shared;
        let begun = Moment::now();
        let now = begun.saturating_duration_since(shared.started);
        let begin = || context.worker.allowances.begin(cluster, shared.workers, now);
        let busy = cluster.is_judged() && begin();
        context.copies |= hedged.is_some() || busy;
        let replay = replay(&context, &mut request);
        let supply = Supply::new(request, replay);
        Ok(Self {
            context,
            facts,
            begun: Some(begun),
            supply,
            hedged,
            tried: Vec::new(),
            made: 0,
            stale: 0,
            granted: None,
        })
    }

    async fn run(&mut self, exchange: &mut Exchange) -> Result<Received, Error> {
        loop {
            if self.context.limits.remaining().is_some_and(|left| left.is_zero()) {
                return Err(outcome::timed_out(Duration::ZERO));
            }
            let cluster = self.context.cluster;
            self.supply.begin()?;
            // Between its first lines and the first attempt an exchange waits for nothing.
            let now = self.begun.take().unwrap_or_else(Moment::now);
            let lease = self.context.lease(&self.tried, now)?;
            note_endpoint(exchange, &lease);
            exchange.note(|record| record.attempts += 1);
            if let Some(outgoing) = self.supply.kept.as_mut() {
                let (made, outbound) = (self.made, self.context.outbound);
                number(&mut outgoing.request, made, outbound);
            }
            self.made += 1;
            let (lease, result, reader) = match self.hedged.take() {
                // The request stays where it is until it is sent: it is large.
                None => {
                    let kept = &mut self.supply.kept;
                    let reader = kept.as_ref().map_or(0, |outgoing| outgoing.reader);
                    let result = send::attempt(&self.context, &lease, kept).await;
                    (lease, result, reader)
                }
                // On the heap, as few are hedged and all would be larger.
                Some(plan) => {
                    let outgoing = self.supply.kept.take().ok_or_else(lost)?;
                    let race = Box::pin(hedge::race(self, exchange, plan, lease, outgoing)).await;
                    self.supply.kept = race.kept;
                    (race.lease, race.result, race.reader)
                }
            };
            let stale = self.stale;
            match self.conclude(exchange, &lease, &result, reader) {
                Next::Answer => {
                    let (response, connection) = result?;
                    let deadline = self.context.limits.deadline();
                    return Ok(Received { response, lease, connection, deadline });
                }
                Next::Again(wait) => {
                    // That a connection had ended says nothing of where it led: a caller that belongs there stays.
                    if self.stale == stale {
                        self.tried.push(lease.endpoint.id);
                    }
                    let sent = self.is_sent(reader);
                    self.supply.pause();
                    drop(lease);
                    if let Ok((response, connection)) = result {
                        discard::discard(response, connection, cluster.cluster(), sent);
                    }
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                }
            }
        }
    }

    /// Takes in how an attempt went, and decides what follows.
    fn conclude(
        &mut self,
        exchange: &mut Exchange,
        lease: &Lease,
        result: &Sent,
        reader: u32,
    ) -> Next {
        let now = Moment::now();
        let heard = Heard::of(result);
        let judged = judge(&self.context, lease, result, heard, now);
        if result.is_ok() {
            self.answered_after(now.saturating_duration_since(lease.begun));
        }
        self.granted = None;
        if let Some(failure) = heard.failure {
            match self.again(result, &failure) {
                Ok(wait) => return Next::Again(wait),
                Err(reason) => self.deny(exchange, reason),
            }
        }
        if let Some(judged) = judged {
            // In case the breaker waits for that.
            judged.settle(self.context.cluster.pass());
        }
        if result.is_ok() {
            self.supply.settle(reader);
        }
        Next::Answer
    }

    /// After which time there is another attempt, or why there is none.
    fn again(&mut self, result: &Sent, failure: &Failure) -> Result<Duration, Reason> {
        let (worker, cluster) = (&self.context.worker, self.context.cluster);
        if let Err(error) = result
            && error.stale
            && self.stale + 1 < MAX_ATTEMPTS
            && self.supply.is_whole()
        {
            // Nothing got to anybody: this is the same attempt on another connection.
            self.stale += 1;
            self.made -= 1;
            self.count(failure);
            return Ok(Duration::ZERO);
        }
        if result.is_ok() && *failure == Failure::Refused {
            let (workers, now) = (worker.shared.workers, worker.shared.now());
            worker.allowances.refused(cluster, workers, now);
            if !self.context.copies && !self.supply.is_whole() {
                return Err(Reason::NotAsked);
            }
        }
        let facts = RequestFacts {
            replayable: self.supply.is_whole(),
            remaining: self.context.limits.remaining(),
            ..self.facts
        };
        match retry::decide(&self.context.policy, failure, &facts, self.made, worker.random()) {
            Again::No(reason) => Err(reason),
            Again::After(wait) => {
                // Of the own application there is one instance: what is tried again there was not processed.
                if cluster.is_judged() {
                    self.granted =
                        Some(Granted::take(worker, cluster, *failure != Failure::Connect)?);
                }
                self.count(failure);
                Ok(wait)
            }
        }
    }

    fn count(&self, failure: &Failure) {
        let (worker, cluster) = (&self.context.worker, self.context.cluster);
        let retries = &worker.shared.families.retries;
        retries.with_label_values(&[&*cluster.name, failure.as_str()]).inc();
        tracing::debug!(attempts = self.made, "{}: trying again: {failure:?}", cluster.name);
    }

    /// Notes why there is no other attempt, where somebody asked for one.
    fn deny(&self, exchange: &mut Exchange, reason: Reason) {
        if reason == Reason::NotAsked || self.context.policy.attempts <= 1 {
            return;
        }
        let families = &self.context.worker.shared.families.resilience.retries;
        let name = &*self.context.cluster.name;
        families.denied.with_label_values(&[name, reason.label()]).inc();
        exchange.note(|record| record.not_retried = Some((reason.as_str(), reason.flag())));
    }

    /// Whether the attempt with this number sent all of the request.
    fn is_sent(&self, reader: u32) -> bool {
        let ended = |progress: &Rc<Progress>| progress.ended() == Some(End::Complete);
        self.context.progress.as_ref().is_none_or(ended) && self.supply.is_delivered(reader)
    }

    /// For hedging by the usual latency.
    fn answered_after(&self, latency: Duration) {
        let (worker, cluster) = (&self.context.worker, self.context.cluster);
        if cluster.settings.hedging.is_some_and(|hedging| hedging.after == HedgeAfter::P95) {
            worker.allowances.answered(cluster, worker.shared.workers, latency);
        }
    }
}

/// Tells the callee how often it, or another, was asked before.
fn number(request: &mut Request<Body>, made: u32, outbound: bool) {
    if made > 0 && outbound {
        request.headers_mut().insert(RETRY_ATTEMPT, HeaderValue::from(made));
    }
}

/// How long an exchange may take, and what of it may be tried again. `grpc`: the fields of a gRPC call.
fn terms(
    cluster: &Admitted,
    rule: Option<&Rule>,
    grpc: Option<&http::HeaderMap>,
) -> (Limits, Policy) {
    let settings = &cluster.settings;
    let of_rule = |field: fn(&Rule) -> Option<Duration>| rule.and_then(field);
    let request = of_rule(|rule| rule.request_timeout).unwrap_or(settings.request_timeout);
    let attempt = of_rule(|rule| rule.attempt_timeout).unwrap_or(settings.attempt_timeout);
    let mut policy = match cluster.is_judged() {
        true => {
            let route = rule.and_then(|rule| rule.retry.as_ref());
            Policy::of(&settings.retry, route, grpc.is_some())
        }
        // What the application answers is the caller's to judge: it has other instances to ask.
        false => Policy::default(),
    };
    policy.per_try = attempt;
    (Limits::new(request, grpc), policy)
}

/// Puts a body that may have to be sent again behind a buffer.
fn replay(context: &Context<'_>, request: &mut Request<Body>) -> Option<Rc<Replay>> {
    let progress = context.progress.as_ref()?;
    let limit = context.cluster.settings.retry.replay_buffer as usize;
    let wanted = context.copies || (context.http2 && context.policy.attempts > 1);
    if !wanted || limit == 0 || matches!(request.body(), Body::Empty) {
        return None;
    }
    let source = std::mem::take(request.body_mut());
    Some(Replay::new(source, limit, progress.clone()))
}

fn note_endpoint(exchange: &mut Exchange, lease: &Lease) {
    let endpoint = &lease.endpoint;
    let scope = exchange.caller.as_ref().unwrap_or_else(|| endpoint.scope()).clone();
    exchange.note(|record| {
        record.upstream = Some(endpoint.address());
        record.scope = Some(scope);
    });
    exchange.note_for_log(|record| record.upstream_peer = endpoint.peer().cloned());
}

/// What the head of an answer says of the attempt, or the error that came instead.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// Of an answer.
    kind: Option<Kind>,
    /// Whether it failed.
    failure: Option<Failure>,
}

impl Heard {
    fn of(result: &Sent) -> Self {
        match result {
            Ok((response, _)) => {
                let (status, headers) = (response.status(), response.headers());
                let grpc = outcome::grpc_status_of(headers);
                Self {
                    kind: Some(outcome::of_answer(status, grpc, headers)),
                    failure: Failure::of_answer(status, grpc, headers, SystemTime::now),
                }
            }
            Err(error) => Self { kind: None, failure: Some(Failure::from(error)) },
        }
    }
}

/// Says how an attempt went to all that judge endpoints by it; `None` where it says nothing about the endpoint.
fn judge(
    context: &Context<'_>,
    lease: &Lease,
    result: &Sent,
    heard: Heard,
    now: Moment,
) -> Option<Judged> {
    let (kind, timed) = match (result, heard.kind) {
        (_, Some(kind)) => (kind, true),
        (Err(error), None) if error.flag == Flag::UT => (of_timeout(context, lease, error)?, true),
        (Err(error), None) => (outcome::of_error(error)?, false),
        (Ok(_), None) => return None,
    };
    Some(context.worker.observe(context.cluster, lease, kind, timed, now))
}

/// How an attempt that took too long ended, as far as its endpoint is to be judged by it.
fn of_timeout(context: &Context<'_>, lease: &Lease, error: &Error) -> Option<Kind> {
    if error.retry == Retry::Safe && context.cluster.is_at_connection_limit() {
        // It waited for a connection of its own, and for nobody at the other end.
        return None;
    }
    let hurried = context.limits.is_callers_over() && lease.begun.elapsed() < FAIR_TRIAL;
    match hurried || context.awaited.get() {
        true => Some(Kind::Busy),
        false => outcome::of_error(error),
    }
}

fn lost() -> Error {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Error::ours(status, Flag::None, "the request was lost")
}

//! Whether a failed attempt is followed by another, and when. Pure: the random number and the wall clock come in as
//! arguments.
//!
//! Without being asked, only what was certainly not processed is tried again: a connection that could not be made,
//! a request that was never sent, a stream that was refused. What may have been processed is tried again only where
//! the policy names the failure, and the request may be processed twice: its method is idempotent (RFC 9110 section
//! 9.2.2), or it carries an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header) and the policy trusts that.
//!
//! - [`Policy::of`]: the service's policy and what the route adds to it.
//! - [`decide`]: whether and when; the budget ([`super::budget`]) is asked after it, and only where it says yes.
//! - [`wait`]: how long an answer asks to be left alone (`Retry-After`, `grpc-retry-pushback-ms`).

mod named;
pub mod wait;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, Method, StatusCode};
use leno_api::model::{http_route::RouteRetry, traffic_policy as model};

use super::outcome;
use crate::error::{Error, Flag, Retry};
pub use named::{Codes, Conditions, GrpcCodes};
use wait::Wait;

/// Attempts of one exchange where nobody says anything else, the first included.
pub const MAX_ATTEMPTS: u32 = 3;
/// No policy makes more: a request that failed at so many endpoints is not going to succeed, and its caller is long gone.
pub const MOST_ATTEMPTS: u32 = 16;
/// Where the request carries this, its sender promises that the server recognises a repetition.
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Whether a connection that carries something else than HTTP is tried again after `attempts` attempts of which the last
/// failed with `error`, where `retries` are allowed.
pub fn again(error: &Error, attempts: u32, retries: u32) -> bool {
    error.retry == Retry::Safe && attempts <= retries
}

/// What is tried again, how often, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Attempts of one exchange, the first included: 0 and 1 both mean that nothing is tried again; never more than
    /// [`MOST_ATTEMPTS`]. (Gateway API's `retry.attempts` counts retries: one less.)
    pub attempts: u32,
    /// After which failures.
    pub on: Conditions,
    /// After which statuses, beside those of `on`.
    pub codes: Codes,
    /// After which gRPC statuses.
    pub grpc: GrpcCodes,
    /// What of that which may have been processed is sent again.
    pub repeat: Repeat,
    /// How long to wait.
    pub backoff: Backoff,
    /// How long one attempt may take; `ZERO` is as long as the exchange.
    pub per_try: Duration,
    /// Where an answer asks to be left alone for longer, the exchange ends with that answer.
    pub longest_wait: Duration,
}

/// What of that which may have been processed is sent again. Each includes the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repeat {
    /// Requests with an idempotent method.
    #[default]
    Idempotent,
    /// Those with an `Idempotency-Key`, too.
    Keyed,
    /// All: whoever wrote the policy declares that what it is for may be processed twice. gRPC needs it: its calls are
    /// all `POST`, and only their author knows (`idempotency_level`, gRFC A6). A policy that names codes of gRPC says so
    /// of gRPC calls.
    Declared,
}

/// Exponential, with full jitter: before retry n a random time of up to `base * 2^(n - 1)`, never more than `max`.
/// (Brooker, "Exponential Backoff And Jitter", AWS 2015: of all kinds of jitter the one with the least work done twice.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The most before the first retry.
    pub base: Duration,
    /// The most before any.
    pub max: Duration,
    /// Before every retry in any case, beside the above: what a route asks for (GEP-1731).
    pub least: Duration,
}

/// How an attempt failed, in the words of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection.
    Connect,
    /// The upstream refused the request, or never got it: it has not processed anything.
    Refused,
    /// The connection or the stream ended before the response.
    Reset,
    /// No response within [`Policy::per_try`].
    TimedOut,
    /// What came back was not HTTP.
    Malformed,
    /// An answer with this status.
    Status(u16, Wait),
    /// An answer with this gRPC status, before any message of it.
    Grpc(u8, Wait),
    /// Not the upstream's doing: the downstream's, or our own limits. Never tried again.
    NotUpstream,
}

/// What has to be known of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// Its method is idempotent.
    pub idempotent: bool,
    /// It carries one `Idempotency-Key`.
    pub keyed: bool,
    /// All of it can be sent once more: its body was none, or is still in the replay buffer.
    pub replayable: bool,
    /// How long the exchange may still take, if it is limited.
    pub remaining: Option<Duration>,
}

/// Whether there is another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// No: the last one's failure is the exchange's.
    No(Reason),
    /// Yes, after this time, if the budget has one left.
    After(Duration),
}

/// Why there is no other attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The policy does not name this failure.
    NotAsked,
    /// The upstream may have processed the request, and it may not be processed twice.
    MayBeProcessed,
    /// The request's body is gone: it did not fit into the replay buffer.
    NotKept,
    /// There were as many as there may be.
    Attempts,
    /// The upstream asked not to be tried again, or not so soon.
    AskedToWait,
    /// The exchange would have timed out before.
    Deadline,
    /// The budget is used up. (For whoever asks the budget.)
    Budget,
    /// As many retries are under way as the breaker allows. (The same.)
    Limit,
    /// The error-rate and slow-call breaker is not closed any more. (The same.)
    Breaker,
}

impl Default for Policy {
    /// What every service gets: only what was not processed.
    fn default() -> Self {
        Self {
            attempts: MAX_ATTEMPTS,
            on: Conditions::UNPROCESSED,
            codes: Codes::default(),
            grpc: GrpcCodes::default(),
            repeat: Repeat::default(),
            // As in Envoy: a retry goes to another endpoint, so it need not wait until this one has recovered.
            backoff: Backoff {
                base: Duration::from_millis(25),
                max: Duration::from_millis(250),
                least: Duration::ZERO,
            },
            per_try: Duration::ZERO,
            longest_wait: Duration::from_secs(1),
        }
    }
}

impl Policy {
    /// What the policy of a service says, with what a route adds to it. `per_try` is for whoever knows the timeouts.
    /// `grpc`: the request is a gRPC call.
    pub fn of(service: &model::Retry, route: Option<&RouteRetry>, grpc: bool) -> Self {
        let conditions = [
            (service.on.reset, Conditions::RESET),
            (service.on.server_error, Conditions::SERVER_ERROR),
            (service.on.gateway_error, Conditions::GATEWAY_ERROR),
            (service.on.retriable_4xx, Conditions::RETRIABLE_4XX),
        ];
        let on = conditions.iter().filter(|(named, _)| *named);
        let repeat = match (grpc && !service.grpc.is_empty(), service.idempotency_key) {
            (true, _) => Repeat::Declared,
            (false, true) => Repeat::Keyed,
            (false, false) => Repeat::Idempotent,
        };
        let numbers = service.grpc.iter().map(|code| model::grpc_number(*code));
        let codes = route.map_or(&[][..], |route| &route.codes).iter().chain(&service.statuses);
        let retries = match (service.attempts, route.and_then(|route| route.attempts)) {
            // Switched off, whatever routes say.
            (0, _) => 0,
            (_, Some(retries)) => retries,
            (retries, None) => retries,
        };
        Self {
            attempts: retries.saturating_add(1),
            on: on.fold(Conditions::UNPROCESSED, |all, (_, condition)| all.and(*condition)),
            codes: Codes::of(codes.copied()),
            grpc: GrpcCodes::of(numbers.filter_map(|number| u8::try_from(number).ok())),
            repeat,
            backoff: Backoff {
                base: service.backoff.base,
                max: service.backoff.max,
                least: route.and_then(|route| route.backoff).unwrap_or_default(),
            },
            per_try: Duration::ZERO,
            longest_wait: service.max_retry_after,
        }
    }

    /// Whether `request` may be sent again after more than what was certainly not processed.
    pub fn goes_beyond_unprocessed(&self, request: &RequestFacts) -> bool {
        let names_more = self.on.exceed(Conditions::UNPROCESSED)
            || self.codes != Codes::default()
            || self.grpc != GrpcCodes::default();
        self.attempts > 1 && names_more && self.may_repeat(request)
    }

    /// How long the next attempt may take, of an exchange that may take `remaining`.
    pub fn attempt_limit(&self, remaining: Option<Duration>) -> Option<Duration> {
        let own = (!self.per_try.is_zero()).then_some(self.per_try);
        own.into_iter().chain(remaining).min()
    }

    /// Whether this policy is about such a failure. Of no answer at all, and of one that is not HTTP, our own answer
    /// would be 502 to 504: it counts as such.
    pub fn names(&self, failure: &Failure) -> bool {
        let on = |conditions: Conditions| self.on.meet(conditions);
        let failed = Conditions::SERVER_ERROR;
        match failure {
            Failure::Connect => on(Conditions::CONNECT_FAILURE.and(failed)),
            Failure::Refused => on(Conditions::REFUSED_STREAM.and(failed)),
            Failure::Reset => on(Conditions::RESET.and(failed)),
            Failure::TimedOut => on(Conditions::RESET.and(Conditions::GATEWAY_ERROR).and(failed)),
            Failure::Malformed => on(Conditions::GATEWAY_ERROR.and(failed)),
            Failure::Status(status, _) => {
                self.codes.has(*status) || on(Conditions::of_status(*status))
            }
            Failure::Grpc(status, _) => self.grpc.has(*status),
            Failure::NotUpstream => false,
        }
    }

    /// Whether `request` may be processed twice.
    pub fn may_repeat(&self, request: &RequestFacts) -> bool {
        match self.repeat {
            Repeat::Declared => true,
            Repeat::Keyed => request.idempotent || request.keyed,
            Repeat::Idempotent => request.idempotent,
        }
    }
}

impl Backoff {
    /// Before the retry that follows `attempts` attempts.
    fn before(&self, attempts: u32, random: u64) -> Duration {
        // 2^32 times anything worth waiting for is beyond any maximum.
        let doubled = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        let most = self.base.saturating_mul(doubled).min(self.max);
        let nanos = (most.as_nanos() * u128::from(random)) >> 64;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(most)
    }
}

impl Failure {
    /// What an answer says, where it is one; `grpc` is the status where its head says it, `now` the wall clock.
    /// Whoever says that it has enough to do has not processed anything, and how long it wants to be left alone says
    /// nothing about the others.
    pub fn of_answer(
        status: StatusCode,
        grpc: Option<u8>,
        headers: &HeaderMap,
        now: impl FnOnce() -> SystemTime,
    ) -> Option<Self> {
        match (status.as_u16(), grpc) {
            _ if outcome::is_overloaded(status, grpc, headers) => Some(Self::Refused),
            (status @ 400..=599, _) => Some(Self::Status(status, wait::retry_after(headers, now))),
            (_, Some(status @ 1..)) => Some(Self::Grpc(status, wait::pushback(headers))),
            _ => None,
        }
    }

    /// For metrics: what came of an attempt after which there was another.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connect => "UF",
            Self::Refused | Self::Reset => "UC",
            Self::TimedOut => "UT",
            Self::Malformed => "UPE",
            Self::Status(500.., _) => "5xx",
            Self::Status(..) => "4xx",
            Self::Grpc(..) => "grpc",
            Self::NotUpstream => "-",
        }
    }

    /// The upstream may have acted upon the request.
    fn may_be_processed(&self) -> bool {
        !matches!(self, Self::Connect | Self::Refused)
    }

    fn wait(&self) -> Wait {
        match self {
            Self::Status(_, wait) | Self::Grpc(_, wait) => *wait,
            _ => Wait::Unsaid,
        }
    }
}

impl From<&Error> for Failure {
    /// Of an attempt that brought no answer.
    fn from(error: &Error) -> Self {
        match (error.retry, error.flag) {
            (Retry::Safe, Flag::UF) => Self::Connect,
            (Retry::Safe, _) => Self::Refused,
            // A connection that failed in the middle of its handshake carried no request; but `Unsafe` is believed.
            (Retry::Unsafe, Flag::UC | Flag::UF) => Self::Reset,
            (Retry::Unsafe, Flag::UT) => Self::TimedOut,
            (Retry::Unsafe, Flag::UPE) => Self::Malformed,
            (Retry::Unsafe, _) => Self::NotUpstream,
        }
    }
}

impl RequestFacts {
    /// Of a request's head. `replayable` and `remaining` are for whoever holds its body and its deadline.
    pub fn of(
        method: &Method,
        headers: &HeaderMap,
        replayable: bool,
        remaining: Option<Duration>,
    ) -> Self {
        let mut keys = headers.get_all(&IDEMPOTENCY_KEY).iter();
        // Two keys are none: nobody knows which one the server goes by.
        let keyed = matches!((keys.next(), keys.next()), (Some(key), None) if !is_blank(key));
        Self { idempotent: method.is_idempotent(), keyed, replayable, remaining }
    }
}

impl Reason {
    /// For the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAsked => "not asked for",
            Self::MayBeProcessed => "may have been processed",
            Self::NotKept => "body over replay buffer",
            Self::Attempts => "attempts exhausted",
            Self::AskedToWait => "asked to wait",
            Self::Deadline => "no time left",
            Self::Budget => "retry over budget",
            Self::Limit => "too many retries",
            Self::Breaker => "breaker not closed",
        }
    }

    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotAsked => "not_asked",
            Self::MayBeProcessed => "may_be_processed",
            Self::NotKept => "body_not_kept",
            Self::Attempts => "attempts",
            Self::AskedToWait => "asked_to_wait",
            Self::Deadline => "deadline",
            Self::Budget => "over_budget",
            Self::Limit => "limit",
            Self::Breaker => "breaker",
        }
    }

    /// For response flags, where there are letters for it.
    pub fn flag(self) -> Option<&'static str> {
        match self {
            // As in Envoy.
            Self::Attempts => Some("URX"),
            Self::NotKept => Some("RO"),
            _ => None,
        }
    }
}

/// Whether another attempt follows the last of `attempts`, which failed like this. `random` is uniform.
pub fn decide(
    policy: &Policy,
    failure: &Failure,
    request: &RequestFacts,
    attempts: u32,
    random: u64,
) -> Again {
    if !policy.names(failure) {
        return Again::No(Reason::NotAsked);
    }
    if failure.may_be_processed() && !policy.may_repeat(request) {
        return Again::No(Reason::MayBeProcessed);
    }
    if !request.replayable {
        return Again::No(Reason::NotKept);
    }
    if attempts >= policy.attempts.min(MOST_ATTEMPTS) {
        return Again::No(Reason::Attempts);
    }
    let backoff = match failure.may_be_processed() || attempts > 1 {
        true => policy.backoff.before(attempts, random),
        // Nothing was processed, and the next endpoint is another: there is nothing to wait for.
        false => Duration::ZERO,
    };
    let backoff = backoff.saturating_add(policy.backoff.least);
    let after = match failure.wait() {
        Wait::Unsaid => backoff,
        // All who were told the same come back at different moments.
        Wait::AtLeast(least) if least <= policy.longest_wait => least.saturating_add(backoff),
        Wait::AtLeast(_) | Wait::Never => return Again::No(Reason::AskedToWait),
    };
    match request.remaining {
        Some(remaining) if after >= remaining => Again::No(Reason::Deadline),
        _ => Again::After(after),
    }
}

/// An empty value, or an empty structured string.
fn is_blank(value: &http::HeaderValue) -> bool {
    let value = value.as_bytes().trim_ascii();
    value.is_empty() || value == b"\"\""
}

#[cfg(test)]
mod tests;

//! What is sent again, and within which budget.

use std::{ops::RangeInclusive, time::Duration};

pub use crate::spec::traffic_policy::GrpcCode;
use crate::{
    Path,
    invalid::Problems,
    model::range::Fields,
    spec::traffic_policy::{self as raw, RetryOn},
};

/// More attempts than this only make an outage worse.
pub(crate) const ATTEMPTS: RangeInclusive<u32> = 1..=10;
/// Waiting longer holds the request, its body and a place for nothing.
pub(crate) const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Codes that are worth a list.
pub(crate) const MAX_STATUSES: usize = 32;
/// Statuses that tell of a failure.
pub(crate) const FAILURES: RangeInclusive<u16> = 400..=599;
const MAX_CONDITIONS: usize = 16;
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Memory that each request under way may hold.
const MAX_REPLAY: u32 = 16 << 20;
const MAX_FLOOR: u32 = 10_000;
const HEDGES: RangeInclusive<u32> = 1..=3;

/// What is sent again. Failures to connect and refused streams always are (as long as `attempts` allows), because
/// nothing was processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Retries of one request, at most; 0 sends nothing again, whatever routes say.
    pub attempts: u32,
    /// After what else.
    pub on: Conditions,
    /// After which other statuses; sorted.
    pub statuses: Vec<u16>,
    /// After which codes of gRPC; sorted.
    pub grpc: Vec<GrpcCode>,
    /// How long to wait.
    pub backoff: Backoff,
    /// A longer `Retry-After` of the upstream is not waited for; the answer goes to the caller.
    pub max_retry_after: Duration,
    /// Whether a request with an `Idempotency-Key` counts as idempotent.
    pub idempotency_key: bool,
    /// Bytes of a request's body that are kept to be sent again.
    pub replay_buffer: u32,
}

/// After what a request is sent again, beside failures to connect and refused streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The connection or stream ended before the response began, or an attempt took too long.
    pub reset: bool,
    /// Answers of 500 to 599.
    pub server_error: bool,
    /// Answers of 502, 503 and 504.
    pub gateway_error: bool,
    /// Answers of 409.
    pub retriable_4xx: bool,
}

/// How long to wait before a retry: at random up to `base`, then up to twice as long each time, up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// More than zero.
    pub base: Duration,
    /// Not less than `base`.
    pub max: Duration,
}

/// Retries and hedged attempts per proxy and service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the exchanges under way, 0 to 100.
    pub percent: u8,
    /// So many are allowed however little is under way.
    pub minimum_per_second: u32,
}

/// A second attempt of an idempotent request while the first is still waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedging {
    /// When.
    pub after: HedgeAfter,
    /// Further attempts, at most; at least 1.
    pub attempts: u32,
}

/// When a further attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// After this time without a response; more than zero.
    Delay(Duration),
    /// After the time in which 95 % of the service's responses begin.
    P95,
}

impl Conditions {
    fn set(&mut self, condition: RetryOn) {
        match condition {
            RetryOn::Reset => self.reset = true,
            RetryOn::ServerError => self.server_error = true,
            RetryOn::GatewayError => self.gateway_error = true,
            RetryOn::Retriable4xx => self.retriable_4xx = true,
            // These count always; which statuses are retriable, `statuses` says.
            RetryOn::ConnectFailure | RetryOn::RefusedStream | RetryOn::RetriableStatus => {}
        }
    }
}

/// Its number, as in `grpc-status`.
pub fn grpc_number(code: GrpcCode) -> u16 {
    match code {
        GrpcCode::Cancelled => 1,
        GrpcCode::DeadlineExceeded => 4,
        GrpcCode::ResourceExhausted => 8,
        GrpcCode::Internal => 13,
        GrpcCode::Unavailable => 14,
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: Conditions::default(),
            statuses: Vec::new(),
            grpc: Vec::new(),
            backoff: Backoff::default(),
            max_retry_after: Duration::from_secs(1),
            idempotency_key: false,
            replay_buffer: 64 << 10,
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, minimum_per_second: 10 }
    }
}

pub(super) fn parse_retry(at: Path<'_>, raw: Option<raw::Retry>, problems: &mut Problems) -> Retry {
    let default = Retry::default();
    let Some(raw) = raw else { return default };
    let rest = [
        ("attempts", raw.attempts.is_some()),
        ("on", raw.on.is_some()),
        ("statuses", raw.statuses.is_some()),
        ("grpc", raw.grpc.is_some()),
        ("backoff", raw.backoff.is_some()),
        ("maxRetryAfter", raw.max_retry_after.is_some()),
        ("idempotencyKey", raw.idempotency_key.is_some()),
    ];
    let backoff = parse_backoff(at.field("backoff"), raw.backoff, problems);
    let mut fields = Fields::new(at, problems);
    if raw.mode == Some(raw::Mode::Disabled) {
        fields.nothing_beside("mode: Disabled", &rest);
    }
    check_statuses(&mut fields, raw.on.as_deref(), raw.statuses.is_some());
    let mut on = Conditions::default();
    raw.on.into_iter().flatten().for_each(|condition| on.set(condition));
    let mut grpc =
        raw.grpc.inspect(|grpc| fields.count("grpc", grpc.len(), 1..=5)).unwrap_or_default();
    grpc.sort_unstable();
    grpc.dedup();
    let attempts = fields.number("attempts", raw.attempts, ATTEMPTS, default.attempts);
    let wait = raw.max_retry_after.as_deref();
    let (replay, most) = (raw.replay_buffer, MAX_REPLAY);
    Retry {
        attempts: if raw.mode == Some(raw::Mode::Disabled) { 0 } else { attempts },
        on,
        statuses: fields.numbers("statuses", raw.statuses, 1..=MAX_STATUSES, FAILURES),
        grpc,
        backoff,
        max_retry_after: fields.duration(
            "maxRetryAfter",
            wait,
            Duration::ZERO..=HOUR,
            default.max_retry_after,
        ),
        idempotency_key: raw.idempotency_key.unwrap_or(default.idempotency_key),
        replay_buffer: fields.bytes(
            "replayBuffer",
            replay.as_ref(),
            0..=most,
            default.replay_buffer,
        ),
    }
}

/// `retriable-status` and `statuses` need each other; a list that stays without effect is refused.
fn check_statuses(fields: &mut Fields<'_, '_>, on: Option<&[RetryOn]>, statuses: bool) {
    let named = on.is_some_and(|on| on.contains(&RetryOn::RetriableStatus));
    if let Some(on) = on {
        fields.count("on", on.len(), 1..=MAX_CONDITIONS);
    }
    match (named, statuses) {
        (true, false) => fields.problem("statuses", "is needed: `on` has retriable-status"),
        (false, true) => {
            fields.problem("statuses", "has an effect only with retriable-status in `on`")
        }
        _ => {}
    }
}

fn parse_backoff(at: Path<'_>, raw: Option<raw::Backoff>, problems: &mut Problems) -> Backoff {
    let default = Backoff::default();
    let Some(raw) = raw else { return default };
    let mut fields = Fields::new(at, problems);
    let range = SHORTEST_WAIT..=LONGEST_BACKOFF;
    let base = fields.duration("base", raw.base.as_deref(), range, default.base);
    let max = default.max.max(base * 10);
    Backoff { base, max: fields.duration("max", raw.max.as_deref(), base..=HOUR, max) }
}

pub(super) fn parse_retry_budget(
    at: Path<'_>,
    raw: Option<raw::RetryBudget>,
    problems: &mut Problems,
) -> RetryBudget {
    let default = RetryBudget::default();
    let Some(raw) = raw else { return default };
    let mut fields = Fields::new(at, problems);
    let floor = raw.minimum_per_second;
    RetryBudget {
        percent: fields.number("percent", raw.percent, 0..=100, default.percent),
        minimum_per_second: fields.number(
            "minimumPerSecond",
            floor,
            0..=MAX_FLOOR,
            default.minimum_per_second,
        ),
    }
}

pub(super) fn parse_hedging(at: Path<'_>, raw: &raw::Hedging, problems: &mut Problems) -> Hedging {
    let mut fields = Fields::new(at, problems);
    fields.exactly_one(&[("after", raw.after.is_some()), ("p95", raw.p95.is_some())]);
    let range = SHORTEST_WAIT..=LONGEST_BACKOFF;
    let after = match &raw.after {
        Some(after) => {
            HedgeAfter::Delay(fields.duration("after", Some(after), range, LONGEST_BACKOFF))
        }
        None => HedgeAfter::P95,
    };
    Hedging { after, attempts: fields.number("attempts", raw.attempts, HEDGES, 1) }
}

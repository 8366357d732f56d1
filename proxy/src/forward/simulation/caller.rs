//! What a proxy does for its application's requests, protected or not.

use std::time::Duration;

use super::random::Random;
use crate::{
    cluster::{circuit::gate::Probe, tally::Verdict, window::Kind},
    forward::retry::{Failure, wait::Wait},
};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Answered.
    Answered,
    /// Answered with this status.
    Status(u16),
    /// Refused by the sidecar in front of the instance, which has enough to do.
    Shed,
    /// No connection.
    Refused,
    /// The connection broke off.
    Reset,
    /// Took too long.
    TimedOut,
}

impl End {
    /// As those see it that judge instances.
    pub fn kind(self) -> Kind {
        match self {
            Self::Answered => Kind::Success,
            Self::Status(502..=504) => Kind::Gateway,
            Self::Status(_) => Kind::Error,
            Self::Shed => Kind::Busy,
            Self::Refused | Self::Reset | Self::TimedOut => Kind::Local,
        }
    }

    /// As tallies and breakers count it.
    pub fn verdict(self) -> Verdict {
        match self.kind() {
            Kind::Success => Verdict::Success,
            Kind::Busy => Verdict::Neither,
            Kind::Error | Kind::Gateway | Kind::Local => Verdict::Failure,
        }
    }

    /// As a retry policy sees it; `None` where it did not fail.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::Answered => None,
            Self::Status(status) => Some(Failure::Status(status, Wait::Unsaid)),
            Self::Shed => Some(Failure::Refused),
            Self::Refused => Some(Failure::Connect),
            Self::Reset => Some(Failure::Reset),
            Self::TimedOut => Some(Failure::TimedOut),
        }
    }

    /// Whether it took as long as the instance needed, or longer.
    pub fn is_timed(self) -> bool {
        matches!(self, Self::Answered | Self::Status(_) | Self::TimedOut)
    }
}

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    /// Which of the proxy's threads has it.
    pub worker: usize,
    /// When it came.
    pub arrived: Duration,
    /// Until when its caller waits.
    pub deadline: Duration,
    /// Where it was tried.
    pub tried: Vec<usize>,
    /// Whether the attempt under way was taken from the budget.
    pub granted: bool,
    /// A probe of a breaker that is half-open.
    pub probe: Option<Probe>,
    /// When it was over, and whether its caller got what it wanted.
    pub over: Option<(Duration, bool)>,
}

impl Request {
    /// Attempts so far.
    pub fn attempts(&self) -> u32 {
        u32::try_from(self.tried.len()).unwrap_or(u32::MAX)
    }
}

/// A proxy.
pub trait Caller {
    /// A request begins; `false` where it is rejected at once.
    fn admit(&mut self, request: &mut Request, now: Duration) -> bool;

    /// Where to try next, counted as begun.
    fn pick(&mut self, request: &Request, random: &mut Random) -> Option<usize>;

    /// How long an attempt may take.
    fn attempt_limit(&self, remaining: Duration) -> Duration;

    /// An attempt at `place`, begun at `begun`, is over.
    fn ended(&mut self, request: &Request, place: usize, begun: Duration, now: Duration, end: End);

    /// Whether it is tried again, and when.
    fn again(
        &mut self,
        request: &mut Request,
        now: Duration,
        end: End,
        random: &mut Random,
    ) -> Option<Duration>;

    /// A request that was admitted is over; `end` is its last attempt's.
    fn over(&mut self, request: &mut Request, now: Duration, end: Option<End>);

    /// The set of endpoints is now the first `count`.
    fn endpoints(&mut self, count: usize, now: Duration);

    /// Every 100 ms.
    fn sample(&mut self, now: Duration);
}

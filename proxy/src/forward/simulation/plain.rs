//! Round robin, and as many retries as somebody thought would help.

use std::time::Duration;

use super::{
    caller::{Caller, End, Request},
    random::Random,
};

/// Round robin over all there are.
#[derive(Debug)]
pub struct Plain {
    turn: usize,
    count: usize,
    retries: u32,
}

impl Plain {
    /// With so many retries of whatever fails, at once.
    pub fn new(count: usize, retries: u32) -> Self {
        Self { turn: 0, count, retries }
    }
}

impl Caller for Plain {
    fn admit(&mut self, _: &mut Request, _: Duration) -> bool {
        true
    }

    fn pick(&mut self, _: &Request, _: &mut Random) -> Option<usize> {
        self.turn += 1;
        self.turn.checked_rem(self.count)
    }

    fn attempt_limit(&self, remaining: Duration) -> Duration {
        remaining
    }

    fn ended(&mut self, _: &Request, _: usize, _: Duration, _: Duration, _: End) {}

    fn again(
        &mut self,
        request: &mut Request,
        _: Duration,
        _: End,
        _: &mut Random,
    ) -> Option<Duration> {
        (request.attempts() <= self.retries).then_some(Duration::ZERO)
    }

    fn over(&mut self, _: &mut Request, _: Duration, _: Option<End>) {}

    fn endpoints(&mut self, count: usize, _: Duration) {
        self.count = count;
    }

    fn sample(&mut self, _: Duration) {}
}

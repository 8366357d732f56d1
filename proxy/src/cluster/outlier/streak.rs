//! Failures in a row, as one worker counts them.

use std::time::Duration;

use super::settings::MIN_EJECTION;
use crate::cluster::window::Kind;

/// How many failures came in a row, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Of whatever kind.
    pub errors: u32,
    /// 502, 503 or 504.
    pub gateway: u32,
    /// Without an answer.
    pub local: u32,
}

/// The run one worker is in with one endpoint, and its longest since it was last asked.
///
/// A batch does not say in which order its results came, so that a short run within a busy one would be missed. A run
/// ends with a pause, too: where results are rare the detector sees every one of them, and what failed before an
/// ejection must not count after it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streak {
    last: Duration,
    current: Run,
    longest: Run,
}

impl Run {
    /// The longer of both, by kind.
    pub fn max(self, other: Self) -> Self {
        Self {
            errors: self.errors.max(other.errors),
            gateway: self.gateway.max(other.gateway),
            local: self.local.max(other.local),
        }
    }
}

impl Streak {
    /// Takes one result in; [`Kind::Busy`] neither ends a run nor makes it longer.
    pub fn record(&mut self, now: Duration, kind: Kind) {
        if kind == Kind::Busy {
            return;
        }
        if now.saturating_sub(self.last) >= MIN_EJECTION {
            self.current = Run::default();
        }
        self.last = self.last.max(now);
        let next = |counts: bool, run: u32| if counts { run.saturating_add(1) } else { 0 };
        self.current = Run {
            errors: next(kind != Kind::Success, self.current.errors),
            gateway: next(kind == Kind::Gateway, self.current.gateway),
            local: next(kind == Kind::Local, self.current.local),
        };
        self.longest = self.longest.max(self.current);
    }

    /// The longest runs that something was added to since the last call.
    pub fn take(&mut self) -> Run {
        std::mem::take(&mut self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_is_told_once_and_the_current_goes_on() {
        let mut streak = Streak::default();
        let mut record = |millis, kinds: &[Kind]| {
            kinds.iter().for_each(|kind| streak.record(Duration::from_millis(millis), *kind));
            streak.take()
        };
        let run = |errors, gateway, local| Run { errors, gateway, local };
        use Kind::{Busy, Error, Gateway, Local, Success};
        let mixed = [Gateway, Gateway, Gateway, Success, Local, Error];
        assert_eq!(record(1_000, &mixed), run(3, 3, 1));
        assert_eq!(record(1_099, &[Local, Local]), run(4, 0, 2));
        assert_eq!(record(1_099, &[]), Run::default());
        assert_eq!(record(1_000, &[Local]), run(5, 0, 3), "backwards no time passes");
        assert_eq!(record(1_199, &[Gateway]), run(1, 1, 0), "a pause ends it");
        assert_eq!(record(1_199, &[Busy, Gateway, Busy]), run(2, 2, 0), "it has said nothing");
        assert_eq!(record(1_199, &[Success]), Run::default());
    }
}

//! When a plugin that broke may be started again. Pure: `now` is the time since the process began.

use std::time::Duration;

/// After the first fault. A request in a thousand that breaks a plugin costs the others little.
const FIRST: Duration = Duration::from_millis(100);
/// After many. A plugin that overruns its deadline with every call then takes no more than a five-hundredth of a worker.
const MOST: Duration = Duration::from_secs(30);
/// Who has run for so long without a fault is not what it was when it broke.
const FORGIVEN: Duration = Duration::from_secs(60);

/// The faults of a plugin on one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Restart {
    /// In a row.
    faults: u32,
    started: Duration,
    /// Not before.
    due: Duration,
}

impl Restart {
    /// Whether it may be started now.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }

    /// It was started.
    pub(super) fn started(&mut self, now: Duration) {
        self.started = now;
    }

    /// It broke, or did not start. Says how long it is left alone.
    pub(super) fn broke(&mut self, now: Duration) -> Duration {
        if self.faults > 0 && now.saturating_sub(self.started.max(self.due)) >= FORGIVEN {
            self.faults = 0;
        }
        let pause = FIRST.saturating_mul(1 << self.faults.min(16)).min(MOST);
        self.faults = self.faults.saturating_add(1);
        self.due = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let mut restart = Restart::default();
        assert!(restart.is_due(Duration::ZERO));
        let mut now = SECOND;
        let pauses: Vec<_> = (0..11)
            .map(|_| {
                restart.started(now);
                let pause = restart.broke(now);
                assert!(!restart.is_due(now + pause - Duration::from_nanos(1)));
                now += pause;
                assert!(restart.is_due(now));
                pause.as_millis()
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
    }

    #[test]
    fn who_runs_for_a_minute_is_forgiven() {
        let mut restart = Restart::default();
        restart.broke(SECOND);
        restart.broke(SECOND);
        restart.started(2 * SECOND);
        assert_eq!(restart.broke(50 * SECOND).as_millis(), 400);
        restart.started(60 * SECOND);
        assert_eq!(restart.broke(121 * SECOND).as_millis(), 100);
    }

    #[test]
    fn many_faults_do_not_overflow() {
        let mut restart = Restart { faults: u32::MAX, ..Restart::default() };
        assert_eq!(restart.broke(Duration::ZERO), MOST);
    }
}

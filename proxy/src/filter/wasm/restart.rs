//! When a plugin that broke may be started again. Pure: `now` is the time since the process began.

use std::time::Duration;

/// After a fault of an instance that has not served an exchange, and no instance before it has since the last fault.
const FIRST: Duration = Duration::from_millis(100);
/// After many of them. A plugin that overruns its deadline with every call then takes no more than a five-hundredth of a
/// worker.
const MOST: Duration = Duration::from_secs(30);
/// Who has run for so long without a fault is not what it was when it broke.
const FORGIVEN: Duration = Duration::from_secs(60);
/// What a fault of a plugin that otherwise serves may cost a worker without a pause: a caller who knows what breaks a plugin
/// must not be able to switch it off for the others.
const CHEAP: Duration = Duration::from_millis(1);

/// The faults of a plugin on one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Restart {
    /// In a row.
    faults: u32,
    started: Duration,
    /// How long the last start took.
    start_cost: Duration,
    /// Not before.
    due: Duration,
    /// Whether the instance has served an exchange.
    served: bool,
}

impl Restart {
    /// Whether it may be started now.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }

    /// It was started, which took `cost`.
    pub(super) fn started(&mut self, now: Duration, cost: Duration) {
        (self.started, self.start_cost, self.served) = (now, cost, false);
    }

    /// It has served an exchange.
    pub(super) fn served(&mut self) {
        self.served = true;
    }

    /// It broke after `cost`, or did not start. Says how long it is left alone.
    pub(super) fn broke(&mut self, now: Duration, cost: Duration) -> Duration {
        let forgiven = now.saturating_sub(self.started.max(self.due)) >= FORGIVEN;
        if self.served || forgiven {
            self.faults = 0;
        }
        let pause = if std::mem::take(&mut self.served) {
            let cost = cost.saturating_add(self.start_cost);
            // As long as it took: such faults take half of a worker at most, and the plugin is there half of the time.
            if cost < CHEAP { Duration::ZERO } else { cost.min(MOST) }
        } else {
            FIRST.saturating_mul(1 << self.faults.min(16)).min(MOST)
        };
        self.faults = self.faults.saturating_add(1);
        self.due = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOTHING: Duration = Duration::from_micros(30);

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let mut restart = Restart::default();
        assert!(restart.is_due(Duration::ZERO));
        let mut now = SECOND;
        let pauses: Vec<_> = (0..11)
            .map(|_| {
                restart.started(now, NOTHING);
                let pause = restart.broke(now, NOTHING);
                assert!(!restart.is_due(now + pause - Duration::from_nanos(1)));
                now += pause;
                assert!(restart.is_due(now));
                pause.as_millis()
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
    }

    #[test]
    fn who_serves_others_is_there_again_at_once() {
        let mut restart = Restart::default();
        for _ in 0..100 {
            restart.started(SECOND, NOTHING);
            restart.served();
            assert_eq!(restart.broke(SECOND, NOTHING), Duration::ZERO);
            assert!(restart.is_due(SECOND));
        }
        // An overrun, or a plugin that takes long to start, costs everybody.
        restart.started(SECOND, NOTHING);
        restart.served();
        assert_eq!(restart.broke(SECOND, Duration::from_millis(50)).as_millis(), 50);
        restart.started(SECOND, Duration::from_millis(200));
        restart.served();
        assert_eq!(restart.broke(SECOND, NOTHING).as_millis(), 200);
        restart.started(SECOND, NOTHING);
        assert_eq!(restart.broke(SECOND, NOTHING).as_millis(), 200, "it has served nobody since");
    }

    #[test]
    fn who_runs_for_a_minute_is_forgiven() {
        let mut restart = Restart::default();
        restart.broke(SECOND, NOTHING);
        restart.broke(SECOND, NOTHING);
        restart.started(2 * SECOND, NOTHING);
        assert_eq!(restart.broke(50 * SECOND, NOTHING).as_millis(), 400);
        restart.started(60 * SECOND, NOTHING);
        assert_eq!(restart.broke(121 * SECOND, NOTHING).as_millis(), 100);
    }

    #[test]
    fn many_faults_do_not_overflow() {
        let mut restart = Restart { faults: u32::MAX, ..Restart::default() };
        assert_eq!(restart.broke(Duration::ZERO, Duration::MAX), MOST);
        restart.served();
        restart.start_cost = Duration::MAX;
        assert_eq!(restart.broke(Duration::ZERO, Duration::MAX), MOST);
    }
}

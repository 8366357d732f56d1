//! How callbacks that no exchange waits for (timers, queues, messages of calls) leave a worker to those that one does.

use std::time::{Duration, Instant};

use tokio::{task::yield_now, time::sleep};

/// They get one part in so many of a worker's time. Each of them may run up to its deadline, and a plugin can see to it
/// that there is always a next one.
const SHARE: u32 = 4;
/// What is worth a pause: timers know no shorter ones.
const WORTH: Duration = Duration::from_millis(1);

/// A row of such callbacks.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Time that they took since the last pause.
    spent: Duration,
}

impl Pace {
    /// After a callback that was called at `began`: others have their turn.
    pub(super) async fn after(&mut self, began: Instant) {
        match self.pause(began.elapsed()) {
            Some(pause) => sleep(pause).await,
            None => yield_now().await,
        }
    }

    /// What is to follow a callback that took `time`.
    fn pause(&mut self, time: Duration) -> Option<Duration> {
        self.spent = self.spent.saturating_add(time);
        if self.spent < WORTH {
            return None;
        }
        Some(std::mem::take(&mut self.spent).saturating_mul(SHARE - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quarters_of_a_worker_are_left() {
        let mut pace = Pace::default();
        assert_eq!(pace.pause(Duration::from_millis(50)), Some(Duration::from_millis(150)));
        let short = Duration::from_micros(300);
        let pauses: Vec<_> = (0..4).map(|_| pace.pause(short)).collect();
        assert_eq!(pauses, [None, None, None, Some(Duration::from_micros(3600))]);
        assert_eq!(pace.pause(short), None);
    }
}

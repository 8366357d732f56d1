//! Whether a callback has had its time. The engine's clock is the wall's; a thread that other programs keep from running
//! lets it pass without doing anything, and a callback must not be ended for that. So in the middle of the time and
//! after it is asked how long the thread has really run. The question is a system call, hence never asked of the callbacks
//! that end in time.

use std::time::Duration;

/// So many halves of a deadline, and the callback ends whatever it has done: other connections wait for it.
const MOST_HALVES: u32 = 20;
/// The engine's clock ticks, and reading it takes a moment: so much of the second half counts as all of it.
const WHOLE: (u32, u32) = (3, 4);

/// Of one callback. Pure.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadline {
    /// What the thread had run when the first half was over.
    first_half: Option<Duration>,
    halves: u32,
}

impl Deadline {
    /// Another half of the deadline is over by the wall clock, and the thread has run for `run` since any fixed time. Says
    /// whether the callback has to end.
    pub(crate) fn is_over(&mut self, half: Duration, run: Duration) -> bool {
        self.halves += 1;
        let Some(first) = self.first_half else {
            self.first_half = Some(run);
            return false;
        };
        run.saturating_sub(first) * WHOLE.1 >= half * WHOLE.0 || self.halves >= MOST_HALVES
    }
}

/// How long this thread has run.
pub(crate) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Duration = Duration::from_millis(25);

    /// After how many halves by the wall clock a callback ends that runs for a share of the time, in per cent.
    fn halves(percent: u32) -> u32 {
        let mut deadline = Deadline::default();
        let mut run = Duration::from_secs(7);
        (1..)
            .find(|_| {
                run += HALF * percent / 100;
                deadline.is_over(HALF, run)
            })
            .unwrap()
    }

    #[test]
    fn who_runs_has_its_time_and_who_waits_has_more() {
        assert_eq!(halves(100), 2);
        assert_eq!(halves(80), 2);
        assert_eq!(halves(50), 3);
        assert_eq!(halves(10), 9);
        assert_eq!(halves(0), MOST_HALVES);
    }

    #[test]
    fn this_thread_runs() {
        let begun = thread_time();
        while thread_time() == begun {}
    }
}

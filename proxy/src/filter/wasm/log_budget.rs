//! How much one instance may log. Lines are written by the worker itself: who floods the log makes everybody wait for
//! whatever takes it. Pure: `now` is the time since the process began.

use std::time::Duration;

/// Bytes at once: all that a plugin says in some hundred exchanges while somebody debugs it.
const BURST: u64 = 8 << 20;
/// Bytes a second, in the long run.
const RATE: u64 = 1 << 20;
/// What a line costs beside its text: time, level, names.
const LINE: u64 = 128;

/// What one instance has logged of late.
#[derive(Debug, Default)]
pub(super) struct LogBudget {
    /// Bytes that time has not made good yet.
    used: u64,
    since: Duration,
    dropped: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It is written, after so many that were not.
    Written {
        dropped: u64,
    },
    Dropped,
}

impl LogBudget {
    pub(super) fn line(&mut self, now: Duration, bytes: usize) -> Line {
        let passed = now.saturating_sub(self.since).as_millis();
        let good = u64::try_from(passed).unwrap_or(u64::MAX).saturating_mul(RATE / 1000);
        if good > 0 {
            self.used = self.used.saturating_sub(good);
            self.since = now;
        }
        let cost = bytes as u64 + LINE;
        if self.used + cost > BURST {
            self.dropped += 1;
            return Line::Dropped;
        }
        self.used += cost;
        Line::Written { dropped: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_told_of() {
        let mut budget = LogBudget::default();
        let now = Duration::from_secs(7);
        let big = (1 << 20) - LINE as usize;
        for _ in 0..8 {
            assert_eq!(budget.line(now, big), Line::Written { dropped: 0 });
        }
        assert_eq!(budget.line(now, 0), Line::Dropped);
        assert_eq!(budget.line(now, big), Line::Dropped);
        let later = now + Duration::from_millis(1);
        assert_eq!(budget.line(later, 0), Line::Written { dropped: 2 });
        assert_eq!(budget.line(later, big), Line::Dropped);
        let much_later = now + Duration::from_secs(60);
        assert_eq!(budget.line(much_later, big), Line::Written { dropped: 1 });
    }
}

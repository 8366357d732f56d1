//! How long Redis is left alone after a connection that was given up, or did not come about. Pure.

use std::time::Duration;

/// The first time.
pub const SHORTEST: Duration = Duration::from_millis(100);
/// A Redis that comes back is in use again after this at most.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Grows with each failure and begins anew with a connection that was of use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rest(u32);

impl Rest {
    /// The connection that ended answered requests.
    pub fn begin_anew(&mut self) {
        self.0 = 0;
    }

    /// The next one: twice the last, of which between a half and all, as `random` (0 to 1) says: sidecars that lost the
    /// same Redis shall not come back to it at once.
    pub fn next(&mut self, random: f64) -> Duration {
        let doubled = 2_u32.checked_pow(self.0).map_or(LONGEST, |factor| SHORTEST * factor);
        self.0 = self.0.saturating_add(1).min(16);
        doubled.min(LONGEST).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_up_to_a_bound_and_begins_anew() {
        let mut rest = Rest::default();
        let all: Vec<_> = (0..40).map(|_| rest.next(1.0)).collect();
        assert_eq!(all[..3], [SHORTEST, SHORTEST * 2, SHORTEST * 4]);
        assert!(all.is_sorted() && all[39] == LONGEST);
        assert_eq!(rest.next(0.0), LONGEST / 2);
        rest.begin_anew();
        assert_eq!(rest.next(1.0), SHORTEST);
    }
}

//! When to renew, when to try again, when to warn. Times are since the Unix epoch; randomness is an argument.

use std::time::Duration;

/// The first further attempt comes after at most this.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait between two attempts.
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// The shortest, for certificates that live for seconds.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Below this share of its life a certificate is worth shouting about: two attempts in three have failed by then.
const WARN_BELOW: f64 = 0.2;

/// The life of the certificate in use. It counts from when we got it: authorities make certificates valid from before
/// that, for clocks that are slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) received: Duration,
    pub(super) not_after: Duration,
}

impl Life {
    /// Of a certificate that came at `received` and is valid until `not_after`, in Unix seconds.
    pub(super) fn new(received: Duration, not_after: i64) -> Self {
        let not_after = Duration::from_secs(u64::try_from(not_after).unwrap_or_default());
        Self { received, not_after }
    }

    fn whole(&self) -> Duration {
        self.not_after.saturating_sub(self.received)
    }

    /// When to ask for the next one: at two thirds of its life, a tenth of that earlier or later (`random` is in 0..1),
    /// so that proxies which were started together do not come together ever after.
    pub(super) fn renewal(&self, random: f64) -> Duration {
        let share = (2.0 / 3.0) * (0.9 + 0.2 * random.clamp(0.0, 1.0));
        self.received + self.whole().mul_f64(share)
    }

    /// How much is left, as a share of the whole: 0 when it has expired.
    pub(super) fn left(&self, now: Duration) -> f64 {
        let whole = self.whole().as_secs_f64();
        let left = self.not_after.saturating_sub(now).as_secs_f64();
        if whole > 0.0 { (left / whole).min(1.0) } else { 0.0 }
    }

    /// Whether to shout.
    pub(super) fn is_ending(&self, now: Duration) -> bool {
        self.left(now) < WARN_BELOW
    }
}

/// How long to wait after `failures` attempts in a row: up to a minute, but no longer than a tenth of what is left of
/// the certificate, or of its whole life once it has expired. Half of the wait is by chance (`random` is in 0..1).
pub(super) fn backoff(failures: u32, life: Option<&Life>, now: Duration, random: f64) -> Duration {
    let longest = life.map_or(MAX_BACKOFF, |life| {
        let left = life.not_after.saturating_sub(now);
        let measure = if left.is_zero() { life.whole() } else { left };
        (measure / 10).clamp(MIN_BACKOFF, MAX_BACKOFF)
    });
    let doublings = failures.saturating_sub(1).min(16);
    let whole = FIRST_BACKOFF.saturating_mul(1 << doublings).min(longest);
    whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400;
    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn life(seconds: u64) -> Life {
        let not_after = i64::try_from((NOW + Duration::from_secs(seconds)).as_secs()).unwrap();
        Life::new(NOW, not_after)
    }

    #[test]
    fn renews_at_two_thirds_give_or_take_a_tenth() {
        let after = |random| life(DAY).renewal(random).checked_sub(NOW).unwrap().as_secs_f64();
        assert!((after(0.5) - 57_600.0).abs() < 1.0, "{}", after(0.5));
        assert!((after(0.0) - 51_840.0).abs() < 1.0, "{}", after(0.0));
        assert!((after(1.0) - 63_360.0).abs() < 1.0, "{}", after(1.0));
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let wait = |failures| backoff(failures, None, NOW, 1.0).as_secs();
        let waits: Vec<_> = (1..9).map(wait).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff(3, None, NOW, 0.0), Duration::from_secs(2));
    }

    #[test]
    fn waits_are_short_for_short_certificates() {
        let wait = |at: u64| backoff(9, Some(&life(10)), NOW + Duration::from_secs(at), 1.0);
        assert_eq!(wait(0), Duration::from_secs(1));
        assert_eq!(wait(7), Duration::from_millis(300));
        assert_eq!(wait(10), Duration::from_secs(1), "expired: a tenth of its life");
        assert_eq!(wait(1000), Duration::from_secs(1));
    }

    #[test]
    fn warns_in_the_last_fifth_and_after_the_end() {
        let life = life(100);
        for (at, warns) in [(0, false), (79, false), (81, true), (100, true), (1000, true)] {
            assert_eq!(life.is_ending(NOW + Duration::from_secs(at)), warns, "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_time_is_too_odd(
            received in 0..1_u64 << 40, after: i64, now in 0..1_u64 << 40,
            failures: u32, random: f64,
        ) {
            let life = Life::new(Duration::from_secs(received), after);
            let now = Duration::from_secs(now);
            prop_assert!((0.0..=1.0).contains(&life.left(now)));
            prop_assert!(life.renewal(random) >= life.received);
            prop_assert!(backoff(failures, Some(&life), now, random) <= MAX_BACKOFF);
        }
    }
}

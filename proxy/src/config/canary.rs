//! Whether a version of a plugin that is on trial has proven itself. Pure: figures and the time are arguments.

use std::time::Duration;

use leno_api::model::wasm_plugin::Canary;

/// What a version has done since its trial began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Exchanges that it was to see.
    pub exchanges: u64,
    /// Those in which it failed, and faults of its own.
    pub failures: u64,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing yet.
    Watch,
    /// It gets all exchanges.
    Promote,
    /// The version before it gets them all back.
    TakeBack,
}

/// Judges after `elapsed`. Whoever fails too often is taken back as soon as enough is known; whoever does not is
/// promoted after the window, and not before enough is known.
pub fn judge(rule: &Canary, elapsed: Duration, sample: Sample) -> Decision {
    // A failure may be noted before the exchange it belongs to.
    let exchanges = sample.exchanges.max(sample.failures);
    if exchanges < u64::from(rule.minimum_requests) {
        return Decision::Watch;
    }
    let allowed = u128::from(exchanges) * u128::from(rule.max_failure_percent);
    if u128::from(sample.failures) * 100 > allowed {
        Decision::TakeBack
    } else if elapsed >= rule.window {
        Decision::Promote
    } else {
        Decision::Watch
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Decision::*, *};

    fn rule(max_failure_percent: u8, minimum_requests: u32) -> Canary {
        let window = Duration::from_secs(60);
        Canary { percent: 10, max_failure_percent, minimum_requests, window }
    }

    fn decided(rule: &Canary, seconds: u64, exchanges: u64, failures: u64) -> Decision {
        judge(rule, Duration::from_secs(seconds), Sample { exchanges, failures })
    }

    #[test]
    fn decides_on_enough_and_no_later_than_needed() {
        for (seconds, exchanges, failures, expected) in [
            (0, 0, 0, Watch),
            (59, 1000, 0, Watch),
            (60, 1000, 0, Promote),
            (60, 99, 0, Watch),
            (3600, 99, 99, Watch),
            (3600, 100, 0, Promote),
            // As many as allowed are allowed.
            (60, 100, 1, Promote),
            (0, 100, 2, TakeBack),
            (60, 100, 2, TakeBack),
            (0, 1000, 11, TakeBack),
            (60, 1000, 10, Promote),
            // Noted before its exchange.
            (0, 99, 100, TakeBack),
        ] {
            let decision = decided(&rule(1, 100), seconds, exchanges, failures);
            assert_eq!(decision, expected, "{seconds} s, {failures} of {exchanges}");
        }
        assert_eq!(decided(&rule(0, 1), 0, 1, 1), TakeBack);
        assert_eq!(decided(&rule(100, 1), 60, 5, 5), Promote);
    }

    proptest! {
        /// More failures never help.
        #[test]
        fn failing_more_is_never_better(
            percent in 0_u8..=100, minimum in 1_u32..1000, seconds in 0_u64..120,
            exchanges in 0_u64..5000, failures in 0_u64..5000, more in 0_u64..5000,
        ) {
            let rule = rule(percent, minimum);
            let (one, other) = (
                decided(&rule, seconds, exchanges.max(failures), failures),
                decided(&rule, seconds, exchanges.max(failures), (failures + more).min(exchanges.max(failures))),
            );
            prop_assert!(one != TakeBack || other == TakeBack);
            prop_assert!(other != Promote || one == Promote);
        }
    }
}

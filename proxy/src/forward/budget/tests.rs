use proptest::prelude::*;

use super::*;

const DEFAULT: Settings = Settings { percent: 20, per_second: 10 };
const NONE: Settings = Settings { percent: 0, per_second: 0 };

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Retries in so many seconds of a steady load of which every attempt fails, each tried up to `attempts` times.
fn retries_of(settings: Settings, per_second: u64, seconds: u64, attempts: u32) -> u64 {
    let mut budget = Budget::new(settings, 1);
    let mut retries = 0;
    for request in 0..per_second * seconds {
        let now = at(request * 1000 / per_second);
        budget.deposit(now);
        for _ in 1..attempts {
            if !budget.withdraw(now, 1000) {
                break;
            }
            retries += 1;
            budget.end();
        }
    }
    retries
}

#[test]
fn a_fifth_is_used_and_no_more() {
    let retries = retries_of(DEFAULT, 1000, 60, 1_000_000);
    assert!((11_900..=12_000).contains(&retries), "{retries} of 60000");
}

#[test]
fn a_quiet_service_retries_by_the_floor() {
    // Of 5 requests a second, all fail twice and succeed at the third attempt.
    assert_eq!(retries_of(DEFAULT, 5, 60, 3), 600);
    // 20 requests a second would want 40 retries, and get the floor's 10 with a second's savings.
    let retries = retries_of(DEFAULT, 20, 60, 3);
    assert!((590..=610).contains(&retries), "{retries}");
}

#[test]
fn the_extremes_mean_what_they_say() {
    assert_eq!(retries_of(NONE, 100, 10, 3), 0);
    assert_eq!(retries_of(Settings { percent: 100, per_second: 0 }, 100, 10, 1_000_000), 1000);
    // More than all is all.
    assert_eq!(retries_of(Settings { percent: 255, per_second: 0 }, 100, 10, 1_000_000), 1000);
    assert_eq!(retries_of(Settings { percent: 0, per_second: 1 }, 100, 10, 3), 10);
    let most = Settings { percent: 100, per_second: u32::MAX };
    assert_eq!(retries_of(most, 10, 10, 3), 200);
}

#[test]
fn the_floor_is_not_on_top_of_the_share() {
    let mut budget = Budget::new(Settings { percent: 100, per_second: 1 }, 1);
    budget.deposit(at(0));
    let mut granted = |now| (0..5).filter(|_| budget.withdraw(at(now), 100)).count();
    assert_eq!((granted(0), granted(999), granted(1000)), (1, 0, 1));
}

#[test]
fn retries_that_hang_do_not_pile_up() {
    let mut budget = Budget::new(DEFAULT, 1);
    for request in 0..10_000 {
        budget.deposit(at(request));
    }
    let granted = (0..1000).filter(|_| budget.withdraw(at(9_999), 100)).count();
    assert_eq!((granted, budget.under_way()), (20, 20));
    budget.end();
    assert!(budget.withdraw(at(9_999), 100));
    assert!(!budget.withdraw(at(9_999), 100));
}

#[test]
fn a_windows_worth_is_not_spent_in_a_second() {
    let mut budget = Budget::new(Settings { percent: 20, per_second: 0 }, 1);
    (0..10_000).for_each(|request| budget.deposit(at(request)));
    let mut granted = |now| {
        let granted = (0..5_000).filter(|_| budget.withdraw(at(now), 1_000_000)).count();
        (0..granted).for_each(|_| budget.end());
        granted
    };
    // Nobody has asked before, and from now on all fails.
    assert_eq!((granted(9_500), granted(9_999)), (200, 0));
    assert_eq!(granted(10_000), 180, "the mean of the window, in which this second is still empty");
}

#[test]
fn workers_share_the_floor() {
    let floor = Settings { percent: 0, per_second: 10 };
    let mut workers: Vec<_> = (0..4).map(|_| Budget::new(floor, 4)).collect();
    let mut granted = 0;
    for millis in 0..60_000 {
        for worker in &mut workers {
            worker.deposit(at(millis));
            granted += u32::from(worker.withdraw(at(millis), 1));
            worker.end();
        }
    }
    assert!((590..=610).contains(&granted), "{granted}");
    // A floor of less than one for each of many is rare, but not nothing.
    let mut one = Budget::new(Settings { percent: 0, per_second: 1 }, 100);
    assert_eq!((0..1_000_000).filter(|millis| one.withdraw(at(*millis), 1)).count(), 1);
    one.end();
    assert!(one.withdraw(at(1_000_000), 1));
}

#[test]
fn what_was_counted_outlives_a_change() {
    let mut budget = Budget::new(DEFAULT, 2);
    for request in 0..1000 {
        budget.deposit(at(request));
        let _granted = budget.withdraw(at(request), 1000);
        budget.end();
    }
    let before = budget.counted();
    budget.reconfigure(NONE, 2);
    assert_eq!(budget.counted(), before);
    assert!(!budget.withdraw(at(1000), 1000));
    budget.reconfigure(DEFAULT, 2);
    assert!(!budget.withdraw(at(1000), 1000), "a change of settings is no new budget");
    assert_eq!((before.0, before.1), (1000, 200));
}

#[test]
fn a_clock_that_jumps_back_makes_no_budget() {
    let mut budget = Budget::new(Settings { percent: 0, per_second: 10 }, 1);
    let mut granted = 0;
    for turn in 0..1000 {
        granted += u32::from(budget.withdraw(at(20_000 + turn % 2 * 5_000), 1));
        budget.end();
    }
    assert_eq!(granted, 11, "one at 20 s; at 25 s a second's savings, and never again");
}

proptest! {
    /// Under a steady load, and whatever fails when, load grows by a fifth at most, beside what the floor saved up.
    #[test]
    fn amplification_is_bounded(
        gap in 1u64..20,
        seed: u64,
        attempts in 0u32..50,
        outages in proptest::collection::vec((0u64..60_000, 0u64..30_000, 1u64..=100), 1..6),
    ) {
        let mut budget = Budget::new(DEFAULT, 1);
        let (mut state, mut requests, mut retries) = (seed, 0u64, 0u64);
        for now in (0..60_000).step_by(gap as usize) {
            budget.deposit(at(now));
            requests += 1;
            let percent = outages
                .iter()
                .filter(|(start, length, _)| (*start..start + length).contains(&now))
                .map(|(.., percent)| *percent)
                .max()
                .unwrap_or(0);
            for _ in 1..attempts {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if (state >> 33) % 100 >= percent || !budget.withdraw(at(now), 10_000) {
                    break;
                }
                budget.end();
                retries += 1;
            }
            prop_assert!(
                retries * 5 <= requests + 5 * 10,
                "{} retries of {} requests at {} ms", retries, requests, now
            );
        }
    }

    /// In every window of any load, however uneven: a fifth of its requests, or the floor.
    #[test]
    fn no_window_exceeds_it(gaps in proptest::collection::vec(0u64..400, 1..600)) {
        let mut budget = Budget::new(DEFAULT, 1);
        let mut now = 0;
        for gap in gaps {
            now += gap;
            budget.deposit(at(now));
            while budget.withdraw(at(now), 10_000) {
                budget.end();
                let (requests, retries) = budget.counted();
                prop_assert!(retries <= (requests / 5).max(100));
            }
        }
    }

    #[test]
    fn nothing_panics_and_nothing_goes_negative(
        percent: u8,
        per_second: u32,
        workers: u32,
        steps in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u8..4), 0..200),
    ) {
        let mut budget = Budget::new(Settings { percent, per_second }, workers);
        for (now, number, what) in steps {
            match what {
                0 => budget.deposit(Duration::from_millis(now)),
                1 => _ = budget.withdraw(Duration::from_secs(now), number),
                2 => budget.end(),
                _ => budget.reconfigure(Settings { percent: number as u8, per_second }, number),
            }
        }
    }
}

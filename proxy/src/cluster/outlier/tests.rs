use proptest::prelude::*;

use super::{
    settings::{Latency, SuccessRate},
    streak::Streak,
    *,
};
use crate::cluster::window::Kind;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn detector(settings: Settings, endpoints: u64) -> Detector {
    let mut detector = Detector::new(settings);
    detector.reconcile(at(0), 0..endpoints);
    detector
}

fn push(detector: &mut Detector, endpoint: u64, now: Duration, successes: u64, failures: u64) {
    let batch = Batch { successes, failures, ..Batch::default() };
    detector.push(endpoint, now, &batch, Run::default());
}

/// Only runs of failures eject.
fn runs_only() -> Settings {
    Settings { success_rate: None, latency: None, ..Settings::default() }
}

fn ejected(changes: &[Change]) -> Vec<u64> {
    let ejected = |change: &Change| match change {
        Change::Ejected { endpoint, .. } => Some(*endpoint),
        _ => None,
    };
    changes.iter().filter_map(ejected).collect()
}

#[test]
fn failures_in_a_row_eject_by_kind() {
    let settings =
        Settings { consecutive_errors: Some(9), consecutive_gateway: Some(3), ..runs_only() };
    let mut detector = detector(settings, 11);
    let mut fail = |endpoint, kinds: &[Kind]| {
        for kind in kinds {
            detector.push(endpoint, at(1), &Batch::one(*kind, None, false), Run::default());
        }
        detector.evaluate(at(1))
    };
    use Kind::{Error, Gateway, Local, Success};
    assert_eq!(fail(1, &[Gateway, Gateway, Success, Gateway, Error, Gateway, Gateway]), []);
    let changes = fail(1, &[Gateway]);
    let cause = Cause::Consecutive { kind: Streaks::Gateway, count: 3 };
    assert_eq!(changes, [Change::Ejected { endpoint: 1, until: at(31), times: 1, cause }]);
    assert_eq!(cause.to_string(), "3 answers of 502, 503 or 504 in a row");
    assert_eq!(fail(2, &[Local; 4]), []);
    assert_eq!(ejected(&fail(2, &[Local])), [2]);
    assert_eq!(fail(3, &[Error, Local, Error, Local, Error, Gateway, Error, Local]), []);
    assert_eq!(ejected(&fail(3, &[Error])), [3]);
}

#[test]
fn a_run_within_a_batch_is_seen_by_its_worker() {
    let mut detector = detector(runs_only(), 3);
    let mut streak = Streak::default();
    let kinds = [Kind::Success, Kind::Error, Kind::Error, Kind::Error, Kind::Error];
    kinds.iter().for_each(|kind| streak.record(at(1), *kind));
    let batch = Batch { successes: 1, failures: 4, ..Batch::default() };
    detector.push(0, at(1), &batch, streak.take());
    assert_eq!(detector.evaluate(at(1)), []);
    [Kind::Error, Kind::Success].iter().for_each(|kind| streak.record(at(1), *kind));
    let batch = Batch { successes: 1, failures: 1, ..Batch::default() };
    detector.push(0, at(1), &batch, streak.take());
    assert_eq!(ejected(&detector.evaluate(at(1))), [0]);
}

#[test]
fn ejections_grow_and_are_forgiven() {
    let mut detector = detector(runs_only(), 2);
    let mut now = at(1);
    let mut lengths = Vec::new();
    for _ in 0..12 {
        push(&mut detector, 0, now, 0, 5);
        let [Change::Ejected { until, .. }] = detector.evaluate(now)[..] else { panic!() };
        lengths.push((until - now).as_secs());
        push(&mut detector, 0, now, 0, 500);
        assert_eq!(detector.factor(0), Factor::NONE);
        let [Change::Returned { endpoint: 0, early: false }] = detector.evaluate(until)[..] else {
            panic!("late results must not count")
        };
        now = until;
    }
    assert_eq!(lengths, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
    // Ten times the base without another, and ten are forgiven.
    now += at(300);
    detector.evaluate(now);
    push(&mut detector, 0, now, 0, 5);
    let [Change::Ejected { times, .. }] = detector.evaluate(now)[..] else { panic!() };
    assert_eq!(times, 3);
}

#[test]
fn what_was_before_an_ejection_does_not_count_after_it() {
    let settings = Settings {
        window: at(60),
        base_ejection: at(1),
        consecutive_errors: None,
        ..Settings::default()
    };
    let mut detector = detector(settings, 11);
    for endpoint in 0..11 {
        push(&mut detector, endpoint, at(1), 100, if endpoint == 4 { 100 } else { 0 });
    }
    assert_eq!(ejected(&detector.evaluate(at(1))), [4]);
    assert_eq!(detector.evaluate(at(2)), [Change::Returned { endpoint: 4, early: false }]);
    assert_eq!(detector.evaluate(at(3)), []);
}

#[test]
fn a_pause_does_not_end_a_run() {
    let mut detector = detector(runs_only(), 2);
    for failures in [3, 0, 2] {
        assert_eq!(detector.evaluate(at(1)), []);
        push(&mut detector, 0, at(1), 0, failures);
    }
    assert_eq!(ejected(&detector.evaluate(at(1))), [0]);
}

#[test]
fn who_returns_or_joins_is_ramped_up() {
    let mut detector = detector(runs_only(), 3);
    assert!(detector.factors().all(|(_, factor)| factor == Factor::FULL), "the first set");
    push(&mut detector, 0, at(1), 0, 5);
    detector.evaluate(at(1));
    detector.evaluate(at(31));
    detector.reconcile(at(31), 0..4);
    for endpoint in [0, 3] {
        assert_eq!(detector.factor(endpoint), Factor(26), "a tenth");
    }
    detector.evaluate(at(36));
    assert_eq!(detector.factor(0), Factor(141), "0.1 + 0.9 / 2");
    detector.evaluate(at(30));
    assert_eq!(detector.factor(0), Factor(141), "backwards no time passes");
    detector.evaluate(at(41));
    assert_eq!(detector.factor(0), Factor::FULL);
    assert_eq!(detector.factor(99), Factor::FULL, "unknown");
}

#[test]
fn fewer_successes_than_the_others_eject() {
    let settings = Settings { latency: None, consecutive_errors: None, ..Settings::default() };
    let mut detector = detector(settings, 11);
    for endpoint in 0..11 {
        let failures = if endpoint == 4 { 60 } else { 1 };
        push(&mut detector, endpoint, at(1), 100 - failures, failures);
    }
    let changes = detector.evaluate(at(2));
    assert_eq!(ejected(&changes), [4]);
    let (_, cause) = detector.ejection(4).unwrap();
    assert_eq!(
        cause.to_string(),
        "success rate 40.0 % of 100, at least 61.4 % expected where all have 93.6 %"
    );
}

#[test]
fn a_single_failure_among_the_perfect_is_no_outlier() {
    let settings = Settings { latency: None, ..Settings::default() };
    let mut detector = detector(settings, 11);
    for endpoint in 0..11 {
        push(&mut detector, endpoint, at(1), 1000, u64::from(endpoint == 4));
    }
    assert_eq!(detector.evaluate(at(2)), []);
}

#[test]
fn too_few_to_compare_are_not_compared() {
    for (minimum_hosts, expected) in [(5, vec![]), (4, vec![2])] {
        let success_rate =
            Some(SuccessRate { minimum_hosts, factor: 1.5, ..SuccessRate::default() });
        let settings = Settings { consecutive_errors: None, success_rate, ..Settings::default() };
        let mut four = detector(settings, 4);
        for endpoint in 0..4 {
            push(&mut four, endpoint, at(1), if endpoint == 2 { 0 } else { 100 }, 1);
            push(&mut four, endpoint, at(1), 0, if endpoint == 2 { 100 } else { 0 });
        }
        assert_eq!(ejected(&four.evaluate(at(1))), expected);
    }
    let settings = Settings { consecutive_errors: None, ..Settings::default() };
    let mut quiet = detector(settings, 11);
    for endpoint in 0..11 {
        push(&mut quiet, endpoint, at(1), if endpoint == 1 { 0 } else { 99 }, 0);
    }
    push(&mut quiet, 1, at(1), 0, 99);
    assert_eq!(quiet.evaluate(at(1)), []);
}

#[test]
fn slower_than_the_others_is_ejected() {
    let slow = |micros: [u64; 4]| {
        let mut detector = detector(Settings::default(), 4);
        for (endpoint, micros) in micros.into_iter().enumerate() {
            let latency_sum = Duration::from_micros(micros * 20);
            let batch = Batch { successes: 20, count: 20, latency_sum, ..Batch::default() };
            detector.push(endpoint as u64, at(1), &batch, Run::default());
        }
        let changes = detector.evaluate(at(1));
        (ejected(&changes), detector.ejection(3).map(|(_, cause)| cause.to_string()))
    };
    let words = "mean latency 101 ms over 20, the others' median is 20 ms".to_string();
    assert_eq!(slow([10_000, 20_000, 30_000, 101_000]), (vec![3], Some(words)));
    assert_eq!(slow([10_000, 20_000, 30_000, 99_000]), (vec![], None));
    assert_eq!(slow([10, 20, 30, 9_000]), (vec![], None), "below the floor");
    assert_eq!(slow([0, 0, 0, 11_000]).0, [3]);
}

#[test]
fn who_is_on_its_ramp_may_be_slow() {
    let mut detector = detector(Settings::default(), 4);
    detector.reconcile(at(1), 0..5);
    let mut answered = |endpoint: u64, seconds: u64, millis: u64| {
        let latency_sum = Duration::from_millis(millis * 20);
        let batch = Batch { successes: 20, count: 20, latency_sum, ..Batch::default() };
        detector.push(endpoint, at(seconds), &batch, Run::default());
        ejected(&detector.evaluate(at(seconds)))
    };
    for seconds in [2, 10, 11] {
        (0..4).for_each(|endpoint| assert!(answered(endpoint, seconds, 20).is_empty()));
        let expected: &[u64] = if seconds < 11 { &[] } else { &[4] };
        assert_eq!(answered(4, seconds, 200), expected, "10 s after it came it has had its time");
    }
}

#[test]
fn there_is_always_somebody_left() {
    for (percent, endpoints, expected) in [
        (50, 11, 5),
        (50, 2, 1),
        (50, 1, 0),
        (50, 0, 0),
        (1, 11, 1),
        (0, 11, 0),
        (100, 11, 10),
        (255, 2, 1),
    ] {
        let settings = Settings { max_ejected_percent: percent, ..runs_only() };
        let mut detector = detector(settings, endpoints);
        for endpoint in 0..endpoints {
            push(&mut detector, endpoint, at(1), 0, 50);
        }
        detector.evaluate(at(1));
        assert_eq!(detector.ejected(), expected, "{percent} % of {endpoints}");
    }
}

#[test]
fn the_worst_are_ejected_first_and_the_next_as_soon_as_there_is_room() {
    let mut detector = detector(runs_only(), 4);
    for (endpoint, successes) in [(0, 30), (1, 20), (2, 0), (3, 10)] {
        push(&mut detector, endpoint, at(1), successes, 0);
        push(&mut detector, endpoint, at(1), 0, 5);
    }
    let changes = detector.evaluate(at(1));
    assert_eq!(ejected(&changes), [2, 3]);
    assert_eq!(detector.evaluate(at(2)), [], "no room");
    let changes = detector.evaluate(at(31));
    assert_eq!(ejected(&changes), [0, 1], "their runs still go on: {changes:?}");
}

#[test]
fn who_is_left_behind_comes_back_early() {
    let mut detector = detector(runs_only(), 6);
    for endpoint in 0..3 {
        push(&mut detector, endpoint, at(endpoint), 0, 5);
        detector.evaluate(at(endpoint));
    }
    detector.reconcile(at(3), [0, 1, 2, 5]);
    assert_eq!(detector.evaluate(at(3))[0], Change::Returned { endpoint: 0, early: true });
    detector.reconcile(at(4), [2]);
    assert_eq!(detector.evaluate(at(4)), [Change::Returned { endpoint: 2, early: true }]);
    detector.reconcile(at(5), []);
    assert_eq!((detector.evaluate(at(5)), detector.factors().count()), (vec![], 0));
}

#[test]
fn below_the_panic_threshold_all_are_used() {
    let mut detector = detector(runs_only(), 10);
    for endpoint in 0..5 {
        detector.checked(endpoint, at(1), false);
    }
    assert_eq!(detector.evaluate(at(1)), [], "half is enough");
    assert_eq!(detector.factors().filter(|(_, factor)| *factor == Factor::NONE).count(), 5);
    push(&mut detector, 9, at(1), 0, 5);
    let changes = detector.evaluate(at(1));
    assert!(ejected(&changes) == [9] && changes.contains(&Change::Panic) && detector.panicking());
    assert!(detector.factors().all(|(_, factor)| factor == Factor::FULL));
    detector.checked(0, at(2), true);
    assert_eq!(detector.evaluate(at(2)), [Change::Calm]);
    assert_eq!((detector.factor(9), detector.factor(1)), (Factor::NONE, Factor::NONE));
    assert_eq!(detector.factor(0), Factor(26), "back from failed checks is on the ramp");
}

#[test]
fn new_settings_hold_for_who_is_ejected() {
    let mut detector = detector(runs_only(), 2);
    push(&mut detector, 0, at(1), 0, 5);
    detector.evaluate(at(1));
    detector.reconfigure(Settings { base_ejection: at(100), window: at(20), ..runs_only() });
    assert_eq!(detector.evaluate(at(100)), []);
    assert_eq!(detector.ejection(0).map(|(until, _)| until), Some(at(101)));
    detector.reconfigure(Settings { base_ejection: at(1), max_ejection: at(1), ..runs_only() });
    assert_eq!(detector.evaluate(at(100)), [Change::Returned { endpoint: 0, early: false }]);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u64, u64, u64, u64),
    Run(u64, Run),
    Checked(u64, bool),
    Reconcile(Vec<u64>),
    Reconfigure(Settings),
    Evaluate,
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let count = || proptest::option::of(0u32..6);
    let length = || prop_oneof![0u64..60, Just(u64::MAX)].prop_map(Duration::from_secs);
    let number = || prop_oneof![0.0f64..3.0, any::<f64>()];
    let rate = (0usize..8, 0u64..50, number(), number()).prop_map(
        |(minimum_hosts, minimum_volume, factor, gap)| SuccessRate {
            minimum_hosts,
            minimum_volume,
            factor,
            gap,
        },
    );
    let latency = (0usize..8, 0u64..50, number(), length()).prop_map(
        |(minimum_hosts, minimum_volume, factor, floor)| Latency {
            minimum_hosts,
            minimum_volume,
            factor,
            floor,
        },
    );
    let rules = (count(), count(), proptest::option::of(rate), proptest::option::of(latency));
    (rules, length(), length(), length(), any::<u8>(), any::<u8>(), length()).prop_map(
        |(rules, window, base, max, percent, panic, ramp)| Settings {
            consecutive_errors: rules.0,
            consecutive_gateway: rules.1,
            consecutive_local: rules.0,
            success_rate: rules.2,
            latency: rules.3,
            window,
            base_ejection: base,
            max_ejection: max,
            max_ejected_percent: percent,
            panic_percent: panic,
            ramp,
            ramp_percent: 10,
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let amount = || prop_oneof![8 => 0u64..100, 1 => Just(u64::MAX)];
    let run = (0u32..8, 0u32..8, 0u32..8).prop_map(|(errors, gateway, local)| Run {
        errors,
        gateway,
        local,
    });
    prop_oneof![
        6 => (0u64..12, amount(), amount(), amount())
            .prop_map(|(endpoint, successes, failures, micros)| Step::Push(endpoint, successes, failures, micros)),
        2 => (0u64..12, run).prop_map(|(endpoint, run)| Step::Run(endpoint, run)),
        1 => (0u64..12, any::<bool>()).prop_map(|(endpoint, passes)| Step::Checked(endpoint, passes)),
        1 => proptest::collection::vec(0u64..12, 0..12).prop_map(Step::Reconcile),
        1 => any_settings().prop_map(Step::Reconfigure),
        6 => Just(Step::Evaluate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens, however the clock jumps: after each evaluation no more are ejected than may be, and unless
    /// health checks fail somebody has a share.
    #[test]
    fn never_too_many_are_ejected(
        first in any_settings(),
        steps in proptest::collection::vec((0u64..2_000_000, any_step()), 1..120),
    ) {
        let mut settings = first;
        let mut detector = detector(first, 11);
        for (millis, step) in steps {
            let now = Duration::from_millis(millis);
            match step {
                Step::Push(endpoint, successes, failures, micros) => {
                    let latency_sum = Duration::from_micros(micros);
                    let count = successes.saturating_add(failures);
                    let batch = Batch { successes, failures, latency_sum, count, ..Batch::default() };
                    detector.push(endpoint, now, &batch, Run::default());
                }
                Step::Run(endpoint, run) => detector.push(endpoint, now, &Batch::default(), run),
                Step::Checked(endpoint, passes) => detector.checked(endpoint, now, passes),
                Step::Reconcile(endpoints) => detector.reconcile(now, endpoints),
                Step::Reconfigure(new) => {
                    settings = new;
                    detector.reconfigure(new);
                }
                Step::Evaluate => {
                    let before = detector.ejected();
                    let changes = detector.evaluate(now);
                    let count = detector.factors().count();
                    let may = settings.clamped().may_eject(count);
                    prop_assert!(detector.ejected() <= may, "{} of {count}", detector.ejected());
                    prop_assert!(detector.ejected() < count.max(1));
                    let returned = changes.iter().filter(|change| matches!(change, Change::Returned { .. }));
                    prop_assert_eq!(before + ejected(&changes).len() - returned.count(), detector.ejected());
                }
            }
            for (endpoint, factor) in detector.factors() {
                prop_assert_eq!(factor, detector.factor(endpoint));
                let ejected = detector.ejection(endpoint).is_some();
                prop_assert!(!ejected || detector.panicking() || factor == Factor::NONE);
                prop_assert!(factor == Factor::NONE || factor >= Factor(25), "less than a tenth");
            }
        }
    }
}

use proptest::prelude::*;

use super::{gate::Admit, *};
use crate::cluster::{tally::Verdict, window::Kind};

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn results(successes: u64, failures: u64) -> Batch {
    Batch { successes, failures, ..Batch::default() }
}

fn opened(settings: Settings) -> Circuit {
    let mut circuit = Circuit::new(settings, at(0));
    let transition = circuit.push(at(1), &results(0, settings.minimum.max(1)), drop);
    assert!(matches!(transition, Some(Transition { to: State::Open { .. }, .. })));
    circuit
}

/// Takes one probe and says how it ended.
fn probe(circuit: &mut Circuit, now: Duration, verdict: Verdict, slow: bool) -> Option<Transition> {
    match circuit.gate().admit(now) {
        Admit::Probe(probe) => circuit.gate().finish(probe, verdict, slow),
        other => panic!("{other:?} in {:?}", circuit.state()),
    }
    circuit.tick(now, drop)
}

#[test]
fn it_opens_where_enough_fail_and_says_why() {
    let mut circuit = Circuit::new(Settings::default(), at(0));
    assert_eq!(circuit.push(at(1), &results(0, 19), drop), None, "too few to judge");
    assert_eq!(circuit.push(at(2), &results(32, 12), drop), None);
    assert_eq!(circuit.gate().admit(at(2)), Admit::Pass);
    let transition = circuit.push(at(3), &results(0, 21), drop).unwrap();
    assert_eq!(
        transition.to_string(),
        "open for 5 s: error rate 62 % of 84 in 10 s, allowed below 50 %"
    );
    assert_eq!(circuit.gate().admit(at(4)), Admit::Reject { retry_after: at(4) });
    assert_eq!(circuit.gate().admit(at(9)), Admit::Reject { retry_after: at(0) });
    assert_eq!(circuit.gate().rejected(), 2);
    let State::Open { since, until, times, .. } = circuit.state() else { panic!() };
    assert_eq!((since, until, times), (at(3), at(8), 1));
}

#[test]
fn it_opens_where_enough_are_slow() {
    let slow = Slow { threshold: Duration::from_millis(250), percent: 80 };
    let settings = Settings { slow: Some(slow), minimum: 10, ..Settings::default() };
    let mut circuit = Circuit::new(settings, at(0));
    let result = |millis| {
        let latency = Duration::from_millis(millis);
        Batch::one(Kind::Success, Some(latency), settings.is_slow(latency))
    };
    let mut push = |millis| circuit.push(at(1), &result(millis), drop);
    assert!((0..2).all(|_| push(250).is_none()) && (0..7).all(|_| push(251).is_none()));
    assert_eq!(
        push(9000).unwrap().to_string(),
        "open for 5 s: 80 % of 10 in 10 s took over 250 ms, allowed below 80 %"
    );
}

#[test]
fn enough_good_probes_close_it() {
    let mut circuit = opened(Settings::default());
    assert_eq!(circuit.tick(Duration::from_millis(5_999), drop), None);
    assert_eq!(circuit.tick(at(6), drop).unwrap().to_string(), "half-open: was open for 5 s");
    for _ in 0..2 {
        assert_eq!(probe(&mut circuit, at(6), Verdict::Failure, false), None);
        assert_eq!(probe(&mut circuit, at(6), Verdict::Success, true), None);
    }
    assert_eq!(probe(&mut circuit, at(6), Verdict::Neither, false), None, "decides nothing");
    let closed = probe(&mut circuit, at(7), Verdict::Success, false).unwrap();
    assert_eq!(closed.to_string(), "closed: 3 of 5 probes succeeded");
    assert_eq!(circuit.state(), State::Closed { since: at(7) });
    assert_eq!(circuit.gate().admit(at(7)), Admit::Pass);
    assert_eq!(circuit.push(at(7), &results(0, 19), drop), None, "it starts anew");
}

#[test]
fn bad_probes_open_it_for_longer_each_time() {
    let mut circuit = opened(Settings::default());
    let mut now = at(1);
    let mut open_times = Vec::new();
    for _ in 0..6 {
        let State::Open { since, until, .. } = circuit.state() else { panic!() };
        open_times.push((until - since).as_secs());
        now = until;
        assert!(circuit.tick(now, drop).is_some());
        assert_eq!(probe(&mut circuit, now, Verdict::Failure, false), None);
        assert_eq!(probe(&mut circuit, now, Verdict::Failure, false), None);
        let reopened = probe(&mut circuit, now, Verdict::Failure, false).unwrap();
        assert_eq!(reopened.cause.to_string(), "of 5 probes 3 failed and 0 were slow");
    }
    assert_eq!(open_times, [5, 10, 20, 40, 60, 60]);
    // Long enough closed, and it begins anew.
    let State::Open { until, .. } = circuit.state() else { panic!() };
    circuit.tick(until, drop);
    for _ in 0..5 {
        probe(&mut circuit, until, Verdict::Success, false);
    }
    assert_eq!(circuit.tick(until + 60 * SECOND, drop), None);
    circuit.push(until + 60 * SECOND, &results(0, 20), drop);
    assert!(matches!(circuit.state(), State::Open { times: 1, .. }), "{now:?}");
}

#[test]
fn slow_probes_open_it_where_slow_requests_do() {
    let slow = Some(Slow { threshold: SECOND, percent: 40 });
    for (slow, expected) in [(slow, "open"), (None, "half-open")] {
        let mut circuit = opened(Settings { slow, ..Settings::default() });
        circuit.tick(at(6), drop);
        probe(&mut circuit, at(6), Verdict::Success, true);
        probe(&mut circuit, at(6), Verdict::Success, true);
        assert_eq!(circuit.state().to_string(), expected);
    }
}

#[test]
fn what_began_before_decides_nothing() {
    let mut circuit = opened(Settings::default());
    circuit.tick(at(6), drop);
    assert_eq!(circuit.push(at(6), &results(0, 1000), drop), None, "late results");
    let Admit::Probe(late) = circuit.gate().admit(at(6)) else { panic!() };
    for _ in 0..3 {
        probe(&mut circuit, at(6), Verdict::Failure, false);
    }
    assert_eq!(circuit.tick(at(16), drop).unwrap().to_string(), "half-open: was open for 10 s");
    let before = circuit.gate().probes();
    circuit.gate().finish(late, Verdict::Failure, true);
    assert_eq!(circuit.gate().probes(), before, "a probe of the round before");
}

#[test]
fn probes_that_are_lost_do_not_hold_it_half_open() {
    let mut circuit = opened(Settings::default());
    circuit.tick(at(6), drop);
    assert_eq!(circuit.tick(at(600), drop), None, "nobody came: it waits");
    assert!(matches!(circuit.gate().admit(at(600)), Admit::Probe(_)));
    assert_eq!(circuit.tick(at(600), drop), None);
    assert_eq!(circuit.tick(at(659), drop), None);
    let lost = circuit.tick(at(660), drop).unwrap();
    assert_eq!(lost.to_string(), "open for 10 s: 1 of 5 probes did not end within 60 s");
}

#[test]
fn new_settings_find_an_open_one_open() {
    let mut circuit = opened(Settings::default());
    let longer = Settings { open_for: at(20), window: at(30), ..Settings::default() };
    circuit.reconfigure(longer);
    assert_eq!(circuit.tick(at(20), drop), None);
    assert!(matches!(circuit.state(), State::Open { until, times: 1, .. } if until == at(21)));
    assert_eq!(circuit.gate().admit(at(20)), Admit::Reject { retry_after: at(1) });
    circuit.reconfigure(Settings { open_for: at(2), ..longer });
    assert!(circuit.tick(at(20), drop).is_some(), "shorter holds at once");
    circuit.reconfigure(Settings { probes: 9, ..longer });
    assert_eq!(circuit.gate().probes().of, 5, "the round goes on");
}

#[test]
fn backwards_no_time_passes() {
    let mut circuit = Circuit::new(Settings::default(), at(0));
    circuit.push(at(5), &results(19, 0), drop);
    circuit.push(at(1), &results(0, 19), drop);
    assert!(
        matches!(circuit.state(), State::Open { since, until, .. } if (since, until) == (at(5), at(10)))
    );
    assert_eq!(circuit.tick(at(0), drop), None);
    assert!(circuit.tick(at(10), drop).is_some());
}

#[test]
fn settings_are_moved_into_their_ranges() {
    let zero = Settings {
        window: Duration::ZERO,
        minimum: 0,
        error_percent: 0,
        slow: Some(Slow { threshold: Duration::ZERO, percent: 0 }),
        open_for: Duration::ZERO,
        open_max: Duration::ZERO,
        probes: 0,
    };
    let mut circuit = Circuit::new(zero, at(0));
    let settings = *circuit.settings();
    assert_eq!((settings.minimum, settings.error_percent, settings.probes), (1, 1, 1));
    assert_eq!((settings.open_for, settings.open_max), (MIN_OPEN, MIN_OPEN));
    assert_eq!(circuit.push(at(1), &results(1000, 0), drop), None, "nothing failed");
    assert!(circuit.push(at(1), &results(0, 1000), drop).is_some());
    let most = Settings { open_for: Duration::MAX, error_percent: 255, probes: 255, ..zero };
    let settings = *Circuit::new(most, at(0)).settings();
    assert_eq!((settings.error_percent, settings.probes), (NEVER, MAX_PROBES));
    assert_eq!((settings.open_for, settings.open_max), (MAX_OPEN, MAX_OPEN));
}

#[test]
fn threads_get_no_more_probes_than_there_are() {
    let mut circuit = opened(Settings { probes: 100, ..Settings::default() });
    circuit.tick(at(6), drop);
    let gate = circuit.gate().clone();
    let take = || (0..1000).filter(|_| matches!(gate.admit(at(6)), Admit::Probe(_))).count();
    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((taken, gate.rejected()), (100, 3900));
}

#[derive(Clone, Debug)]
enum Step {
    Push(u64, u64),
    Tick,
    Admit,
    Finish(usize, Verdict, bool),
    Reconfigure(Settings),
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let millis = || prop_oneof![0u64..20_000, Just(u64::MAX)].prop_map(Duration::from_millis);
    let slow = proptest::option::of(
        (millis(), any::<u8>()).prop_map(|(threshold, percent)| Slow { threshold, percent }),
    );
    (millis(), 0u64..30, any::<u8>(), slow, millis(), millis(), 0u8..8).prop_map(
        |(window, minimum, error_percent, slow, open_for, open_max, probes)| Settings {
            window,
            minimum,
            error_percent,
            slow,
            open_for,
            open_max,
            probes,
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let verdict =
        prop_oneof![Just(Verdict::Success), Just(Verdict::Failure), Just(Verdict::Neither)];
    prop_oneof![
        3 => (0u64..20, 0u64..20).prop_map(|(successes, failures)| Step::Push(successes, failures)),
        1 => Just(Step::Push(u64::MAX, u64::MAX)),
        4 => Just(Step::Tick),
        6 => Just(Step::Admit),
        4 => (any::<usize>(), verdict, any::<bool>())
            .prop_map(|(which, verdict, slow)| Step::Finish(which, verdict, slow)),
        1 => any_settings().prop_map(Step::Reconfigure),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens, however the clock jumps: requests pass freely only while it is closed, never more probes are
    /// under way or done than allowed, and while it is open none passes.
    #[test]
    fn no_more_pass_than_allowed(
        settings in any_settings(),
        steps in proptest::collection::vec((0u64..100_000, any_step()), 1..200),
    ) {
        let mut circuit = Circuit::new(settings, at(0));
        let mut out = Vec::new();
        for (millis, step) in steps {
            let now = Duration::from_millis(millis);
            let mut transition = None;
            match step {
                Step::Push(successes, failures) => {
                    transition = circuit.push(now, &results(successes, failures), drop);
                }
                Step::Tick => transition = circuit.tick(now, drop),
                Step::Admit => {
                    let would_pass = circuit.gate().lets_through();
                    let (admit, state) = (circuit.gate().admit(now), circuit.state());
                    prop_assert_eq!(would_pass, !matches!(admit, Admit::Reject { .. }));
                    match (admit, state) {
                    (Admit::Pass, State::Closed { .. }) => {}
                    (Admit::Reject { .. }, State::Open { .. }) => {}
                    (Admit::Reject { .. }, State::HalfOpen { probes, .. }) => {
                        prop_assert_eq!(probes.left, 0);
                    }
                    (Admit::Probe(probe), State::HalfOpen { .. }) => out.push(probe),
                    (admit, state) => prop_assert!(false, "{:?} while {:?}", admit, state),
                }},
                Step::Finish(which, verdict, slow) if !out.is_empty() => {
                    let probe = out.swap_remove(which % out.len());
                    circuit.gate().finish(probe, verdict, slow);
                }
                Step::Finish(..) => {}
                Step::Reconfigure(settings) => circuit.reconfigure(settings),
            }
            if let Some(transition) = transition {
                prop_assert_eq!(transition.to, circuit.state());
            }
            if let State::HalfOpen { probes, times, .. } = circuit.state() {
                let out = probes.of - probes.left;
                prop_assert!(times > 0 && probes.of <= MAX_PROBES);
                prop_assert!(probes.left <= probes.of && probes.succeeded + probes.failed <= out);
                prop_assert!(probes.slow <= probes.succeeded + probes.failed);
            }
            if let State::Open { since, until, .. } = circuit.state() {
                prop_assert!(until - since <= circuit.settings().open_max);
            }
        }
    }
}

#[test]
fn who_is_rejected_can_be_told_why() {
    let mut circuit = Circuit::new(Settings::default(), at(0));
    let gate = circuit.gate().clone();
    let told = std::cell::Cell::new(false);
    let opened = circuit.push(at(1), &results(0, 100), |state| {
        assert!(matches!(state, State::Open { .. }) && gate.is_closed(), "{state}");
        told.set(true);
    });
    assert!(opened.is_some() && told.get() && !gate.is_closed());
}

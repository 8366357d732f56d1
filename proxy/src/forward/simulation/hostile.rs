//! Clocks, settings and sets of endpoints that nobody should have: nothing panics, nothing is lost, and whoever can
//! still be called is.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    caller::{Caller, End, Request},
    figures::Figures,
    instance::Behaviour,
    protected::{Protected, Settings},
    random::Random,
    run::run,
    scenario::{Scenario, seconds},
};
use crate::{
    cluster::{circuit, outlier},
    forward::{
        budget,
        retry::{Conditions, MOST_ATTEMPTS, Policy},
    },
};

/// Everything is tried again that fails.
fn eager(attempts: u32, percent: u8) -> Settings {
    let retry = Policy { attempts, on: Conditions::SERVER_ERROR, ..Policy::default() };
    let budget = budget::Settings { percent, per_second: 0 };
    Settings { retry, budget, outlier: Default::default(), circuit: None }
}

fn short(instances: usize) -> Scenario {
    Scenario { instances, rate: 20.0, length: seconds(30), ..Scenario::healthy() }
}

fn happens(scenario: &Scenario, settings: Settings) -> Figures {
    run(scenario, &mut Protected::new(settings, &vec![1; scenario.instances]), 7)
}

#[test]
fn budgets_of_nothing_and_of_everything() {
    let scenario = short(3).with(0, Behaviour::failing(1.0), 0, 30);
    let scenario = scenario.with(1, Behaviour::failing(1.0), 0, 30);
    let scenario = scenario.with(2, Behaviour::failing(1.0), 0, 30);
    let of = |attempts, percent| happens(&scenario, eager(attempts, percent)).of(0..30);
    for (attempts, percent) in [(3, 0), (0, 100), (1, 100)] {
        let none = of(attempts, percent);
        assert!((none.amplification, none.success) == (1.0, 0.0), "{none}");
    }
    let all = of(3, 100);
    assert!((1.9..=2.0).contains(&all.amplification), "{all}");
    let million = of(1_000_000, 255);
    assert!(million.amplification <= 2.0, "{million}");
}

#[test]
fn a_million_attempts_are_sixteen() {
    let scenario = Scenario { rate: 1.0, ..short(1).with(0, Behaviour::CRASHED, 0, 30) };
    let mut settings = eager(1_000_000, 100);
    settings.budget.per_second = u32::MAX;
    (settings.retry.backoff.base, settings.retry.backoff.max) = (Duration::ZERO, Duration::ZERO);
    let figures = happens(&scenario, settings);
    let requests = figures.requests.len();
    assert_eq!(figures.attempts.len(), requests * MOST_ATTEMPTS as usize);
}

#[test]
fn one_endpoint_is_always_asked() {
    let scenario = short(1).with(0, Behaviour::failing(1.0), 10, 20);
    let figures = happens(&scenario, eager(3, 20));
    let (before, during, after) = (figures.of(0..10), figures.of(10..20), figures.of(20..30));
    assert!(before.success == 1.0 && during.success == 0.0, "{before} {during}");
    assert!(after.success == 1.0, "nobody is ejected where there is nobody else: {after}");
    assert!(during.amplification >= 1.0, "{during}");
}

#[test]
fn without_endpoints_all_fail_at_once() {
    let figures = happens(&short(0), eager(3, 20));
    assert!(figures.attempts.is_empty() && figures.requests.len() > 500);
    assert!(figures.requests.iter().all(|seen| !seen.succeeded && seen.took.is_zero()));
}

#[test]
fn windows_of_no_length_are_the_shortest_there_are() {
    let settings = Settings {
        outlier: outlier::Settings {
            window: Duration::ZERO,
            base_ejection: Duration::ZERO,
            max_ejection: Duration::ZERO,
            ramp: Duration::ZERO,
            ..Default::default()
        },
        circuit: Some(circuit::Settings {
            window: Duration::ZERO,
            minimum: 0,
            open_for: Duration::ZERO,
            open_max: Duration::ZERO,
            probes: 0,
            ..Default::default()
        }),
        ..eager(3, 20)
    };
    let scenario = Scenario { rate: 300.0, ..short(11) };
    let scenario = scenario.with(2, Behaviour::failing(1.0), 10, 20);
    let figures = happens(&scenario, settings);
    let (during, after) = (figures.of(10..20), figures.of(20..30));
    assert!(during.success > 0.99 && after.success > 0.999, "{during} {after}");
}

fn any_end() -> impl Strategy<Value = End> {
    prop_oneof![
        3 => Just(End::Answered),
        1 => (400u16..600).prop_map(End::Status),
        1 => prop_oneof![
            Just(End::Shed), Just(End::Refused), Just(End::Reset), Just(End::TimedOut)
        ],
    ]
}

fn any_time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => (0u64..120_000).prop_map(Duration::from_millis),
        1 => any::<u64>().prop_map(Duration::from_nanos),
        1 => Just(Duration::MAX),
    ]
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let outlier = (any_time(), any_time(), any_time(), any::<[u8; 2]>(), 0u32..4);
    let circuit = proptest::option::of((any_time(), any_time(), 0u64..5, any::<[u8; 2]>()));
    (any::<u32>(), any::<u8>(), outlier, circuit).prop_map(
        |(attempts, percent, outlier, circuit)| {
            let (window, base_ejection, ramp, [ejected, panic], run) = outlier;
            let circuit = circuit.map(|(window, open_for, minimum, [error_percent, probes])| {
                let slow = Some(circuit::Slow { threshold: open_for, percent: probes });
                circuit::Settings {
                    window,
                    minimum,
                    error_percent,
                    slow,
                    open_for,
                    open_max: ramp,
                    probes,
                }
            });
            let outlier = outlier::Settings {
                consecutive_errors: Some(run),
                window,
                base_ejection,
                ramp,
                max_ejected_percent: ejected,
                panic_percent: panic,
                ..Default::default()
            };
            Settings { outlier, circuit, ..eager(attempts, percent) }
        },
    )
}

/// What may happen to a caller.
#[derive(Clone, Debug)]
enum Step {
    /// A request whose attempts end like this, each at its time.
    Asks(Vec<(Duration, End)>),
    /// Results are told.
    Samples,
    /// There are other endpoints, or they weigh something else.
    Weighs(Vec<u32>),
}

fn any_weights() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(u32::MAX), 0u32..50], 0..5)
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec((any_time(), any_end()), 1..5).prop_map(Step::Asks),
        2 => Just(Step::Samples),
        1 => any_weights().prop_map(Step::Weighs),
    ]
}

/// One request through `caller`, whose endpoints have these weights.
fn ask(
    caller: &mut Protected,
    weights: &[u32],
    ends: Vec<(Duration, End)>,
    random: &mut Random,
) -> Result<(), TestCaseError> {
    let begun = ends[0].0;
    let mut request = Request {
        worker: usize::from(random.chance(0.5)),
        arrived: begun,
        deadline: begun.saturating_add(seconds(1)),
        tried: Vec::new(),
        granted: false,
        probe: None,
        over: None,
    };
    if !caller.admit(&mut request, begun) {
        return Ok(());
    }
    let mut last = None;
    for (now, end) in ends {
        let Some(place) = caller.pick(&request, random) else {
            let some = (0..weights.len()).any(|at| weights[at] > 0 && caller.factors()[at].0 > 0);
            prop_assert!(!some, "somebody could have been asked");
            break;
        };
        prop_assert!(weights[place] > 0 && caller.factors()[place].0 > 0);
        request.tried.push(place);
        caller.ended(&request, place, begun, now, end);
        last = Some(end);
        if end == End::Answered || caller.again(&mut request, now, end, random).is_none() {
            break;
        }
    }
    caller.over(&mut request, begun, last);
    Ok(())
}

proptest! {
    /// Whatever the clock, the settings and the endpoints do: whoever may be asked is, nobody else is, and what began
    /// has ended.
    #[test]
    fn nobody_is_forgotten(
        settings in any_settings(),
        weights in any_weights(),
        steps in proptest::collection::vec((any_time(), any_step()), 0..80),
        seed: u64,
    ) {
        let (mut random, mut weights) = (Random::new(seed), weights);
        let mut caller = Protected::new(settings, &weights);
        for (now, step) in steps {
            match step {
                Step::Asks(ends) => ask(&mut caller, &weights, ends, &mut random)?,
                Step::Samples => {
                    caller.sample(now);
                    let none = caller.factors().iter().filter(|factor| factor.0 == 0).count();
                    prop_assert!(none < weights.len().max(1), "never are all ejected");
                }
                Step::Weighs(others) => {
                    weights = others;
                    caller.weigh(&weights, now);
                }
            }
            prop_assert_eq!(caller.under_way(), 0);
        }
    }
}

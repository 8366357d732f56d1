//! The figures that must hold, and that they do not hold without protection.
//!
//! `cargo test -p leno-proxy simulation -- --nocapture` prints them: of all seeds the worst with protection and the best
//! without.

use std::{ops::Range, sync::LazyLock, time::Duration};

use super::{
    figures::{Figures, Summary},
    instance::Behaviour,
    plain::Plain,
    protected::{Protected, Settings},
    run::run,
    scenario::{Scenario, seconds},
};
use crate::{
    cluster::{circuit, outlier},
    forward::retry::{Conditions, Policy},
};

const SEEDS: u64 = 5;
/// When there is trouble.
const TROUBLE: Range<u64> = 10..30;
/// When all are back.
const AFTER: Range<u64> = 65..80;
/// Of eleven.
const FAIR: f64 = 1.0 / 11.0;
/// By seed, had there been no trouble.
static HEALTHY: LazyLock<Vec<Summary>> = LazyLock::new(|| {
    let scenario = Scenario { length: seconds(TROUBLE.end), ..Scenario::healthy() };
    (0..SEEDS).map(|seed| protected(&scenario, &settings(), seed).of(TROUBLE)).collect()
});

/// What came of the same story with the same chances.
struct Compared {
    /// With protection.
    protected: Figures,
    /// Without, up to the end of the trouble.
    plain: Figures,
    /// With protection, had there been no trouble.
    healthy: Summary,
}

/// A route for idempotent requests that asks for retries; the rest are the defaults.
fn settings() -> Settings {
    let on = [Conditions::REFUSED_STREAM, Conditions::RESET, Conditions::GATEWAY_ERROR];
    Settings {
        retry: Policy {
            on: on.into_iter().fold(Conditions::CONNECT_FAILURE, Conditions::and),
            per_try: Duration::from_millis(300),
            ..Policy::default()
        },
        budget: Default::default(),
        // As a `TrafficPolicy` that says nothing.
        outlier: outlier::Settings {
            consecutive_gateway: None,
            latency: None,
            ramp: seconds(30),
            ..Default::default()
        },
        circuit: None,
    }
}

fn protected(scenario: &Scenario, settings: &Settings, seed: u64) -> Figures {
    let mut caller = Protected::new(settings.clone(), &vec![1; scenario.instances]);
    run(scenario, &mut caller, seed)
}

/// For every seed; the unprotected caller makes so many `retries`, and its instances have no shield.
fn compare(scenario: &Scenario, settings: &Settings, retries: u32) -> Vec<Compared> {
    let bare = Scenario { shielded: false, length: seconds(TROUBLE.end), ..scenario.clone() };
    let of = |seed: u64| Compared {
        protected: protected(scenario, settings, seed),
        plain: run(&bare, &mut Plain::new(scenario.instances, retries), seed),
        healthy: HEALTHY[seed as usize],
    };
    (0..SEEDS).map(of).collect()
}

/// Prints and returns what happened in `range`: of all seeds the worst with protection, and the best without.
fn show(name: &str, compared: &[Compared], range: &Range<u64>) -> [Summary; 2] {
    let protected = compared.iter().map(|it| it.protected.of(range.clone()));
    let plain = compared.iter().map(|it| it.plain.of(range.clone()));
    let worst = protected.reduce(Summary::worse).unwrap();
    let best = plain.reduce(Summary::better).unwrap();
    println!("{name:>24} | {worst} | {best}");
    [worst, best]
}

/// While there is trouble, callers see nothing of it, and those of round robin do. Afterwards all is as before.
fn is_invisible(scenario: &Scenario, seen_by_round_robin: f64) {
    let compared = compare(scenario, &settings(), 0);
    let [protected, plain] = show(scenario.name, &compared, &TROUBLE);
    assert!(protected.success >= 0.999, "{protected}");
    for it in &compared {
        let (own, healthy) = (it.protected.of(TROUBLE), it.healthy);
        assert!(own.p99 <= healthy.p99 * 2, "{own} where healthy is {healthy}");
    }
    assert!(plain.success < seen_by_round_robin, "{plain}");
    is_as_before(scenario, &compared);
}

/// Whoever was in trouble has its share again.
fn is_as_before(scenario: &Scenario, compared: &[Compared]) {
    for it in compared {
        let after = it.protected.of(AFTER);
        assert!(after.success >= 0.9999, "{after}");
        for change in &scenario.changes {
            let share = it.protected.share(change.place, AFTER);
            assert!(share >= 0.6 * FAIR, "{} gets {share}", change.place);
        }
    }
}

#[test]
fn where_there_is_no_trouble_nothing_is_done() {
    let compared = compare(&Scenario::healthy(), &settings(), 0);
    let [protected, plain] = show("healthy", &compared, &TROUBLE);
    assert!(protected.success == 1.0 && protected.amplification == 1.0, "{protected}");
    assert!(plain.success == 1.0, "the trouble is what fails round robin, not the load: {plain}");
}

#[test]
fn one_slow_one_failing_and_one_crashed_of_eleven_are_invisible() {
    let scenario = Scenario::healthy()
        .named("slow, failing, crashed")
        .with(2, Behaviour::slow(10.0), 10, 30)
        .with(5, Behaviour::failing(1.0), 10, 30)
        .with(8, Behaviour::CRASHED, 10, 30);
    is_invisible(&scenario, 0.8);
}

#[test]
fn one_that_fails_every_other_time_is_invisible() {
    let scenario =
        Scenario::healthy().named("failing 50 %").with(2, Behaviour::failing(0.5), 10, 30);
    is_invisible(&scenario, 0.97);
}

#[test]
fn one_that_flaps_is_invisible() {
    let mut scenario = Scenario::healthy().named("flapping");
    for second in TROUBLE.step_by(2) {
        let trouble = if second % 4 == 0 { Behaviour::CRASHED } else { Behaviour::failing(1.0) };
        scenario = scenario.with(2, trouble, second, second + 1);
    }
    is_invisible(&scenario, 0.97);
}

#[test]
fn a_black_hole_is_invisible() {
    let scenario = Scenario::healthy().named("black hole").with(2, Behaviour::SILENT, 10, 30);
    is_invisible(&scenario, 0.92);
}

#[test]
fn five_of_eleven_are_hardly_seen() {
    let mut scenario = Scenario::healthy().named("five of eleven");
    for place in 0..5 {
        let trouble = [Behaviour::failing(1.0), Behaviour::CRASHED][place % 2];
        scenario = scenario.with(place, trouble, 10, 30);
    }
    let compared = compare(&scenario, &settings(), 0);
    let [protected, plain] = show(scenario.name, &compared, &TROUBLE);
    assert!(protected.success >= 0.998 && plain.success < 0.6, "{protected} {plain}");
    is_as_before(&scenario, &compared);
}

#[test]
fn one_that_is_cold_gets_warm_unseen() {
    let joins = Some((seconds(10), 40));
    let scenario = Scenario { instances: 10, joins, ..Scenario::healthy() }.named("cold");
    let compared = compare(&scenario, &settings(), 0);
    show(scenario.name, &compared, &(10..15));
    for it in &compared {
        let (own, healthy) = (it.protected.of(10..15), it.healthy);
        assert!(own.success >= 0.999 && own.p99 <= healthy.p99 * 2, "{own}, healthy {healthy}");
        let plain = it.plain.of(10..15);
        assert!(plain.p99 > healthy.p99 * 2, "{plain}, healthy {healthy}");
        assert!(it.protected.share(10, 10..13) < 0.2 * FAIR);
        let share = it.protected.share(10, AFTER);
        assert!(share >= 0.6 * FAIR, "it is not warm yet: {share}");
    }
}

fn all_fail() -> Scenario {
    let all = |scenario: Scenario, place| scenario.with(place, Behaviour::failing(1.0), 10, 30);
    (0..11).fold(Scenario::healthy().named("all fail"), all)
}

#[test]
fn when_all_fail_retries_add_a_fifth() {
    let scenario = all_fail();
    let compared = compare(&scenario, &settings(), 3);
    let [protected, plain] = show(scenario.name, &compared, &TROUBLE);
    // Requests are counted when they come, retries when they are made: a few more or less.
    assert!(protected.amplification <= 1.201, "{protected}");
    assert!(plain.amplification > 3.9, "{plain}");
    for it in &compared {
        for second in TROUBLE {
            let one = it.protected.of(second..second + 1);
            assert!(one.amplification <= 1.25, "{one} in second {second}");
        }
        let soon = it.protected.of(31..40);
        assert!(soon.success >= 0.999, "{soon}");
    }
    is_as_before(&scenario, &compared);
}

#[test]
fn when_all_fail_a_breaker_leaves_them_alone() {
    let scenario = Scenario { length: seconds(80), ..all_fail().named("all fail, breaker") };
    let breaker = circuit::Settings { open_max: seconds(10), ..circuit::Settings::default() };
    let settings = Settings { circuit: Some(breaker), ..settings() };
    let compared = compare(&scenario, &settings, 3);
    let [protected, ..] = show(scenario.name, &compared, &TROUBLE);
    assert!(protected.amplification < 0.5, "{protected}");
    for it in &compared {
        // Open for ten seconds at most, then a probe.
        let soon = it.protected.of(41..50);
        assert!(soon.success >= 0.999, "{soon}");
    }
    is_as_before(&scenario, &compared);
}

#[test]
fn twice_the_capacity_leaves_the_goodput() {
    let scenario = Scenario {
        slots: 8,
        mean: Duration::from_millis(100),
        rate: 600.0,
        surge: Some((seconds(10), seconds(30), 1760.0 / 600.0)),
        length: seconds(36),
        shielded: true,
        ..Scenario::healthy()
    };
    let scenario = scenario.named("twice the capacity");
    let capacity = scenario.capacity();
    let retry = Policy { per_try: Duration::ZERO, ..settings().retry };
    let compared = compare(&scenario, &Settings { retry, ..settings() }, 0);
    let [protected, plain] = show(scenario.name, &compared, &(12..30));
    assert!(protected.goodput >= 0.95 * capacity, "{protected} of {capacity}");
    assert!(protected.amplification <= 1.201, "{protected}");
    assert!(plain.goodput < 0.3 * capacity, "{plain} of {capacity}");
    for it in &compared {
        let after = it.protected.of(32..36);
        assert!(after.success >= 0.999, "{after}");
    }
}

#[test]
fn the_same_seed_makes_the_same_figures() {
    let scenario = Scenario { length: seconds(5), ..Scenario::healthy() };
    let of = |seed| protected(&scenario, &settings(), seed).attempts;
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

use leno_api::model::traffic_policy::Probe;
use proptest::prelude::*;

use super::*;
use crate::cluster::balance::tests::generator;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn policy() -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp,
        interval: at(1_000),
        timeout: at(100),
        healthy: 2,
        unhealthy: 3,
        port: None,
    }
}

fn checks(endpoints: u64) -> Checks {
    let mut checks = Checks::new(policy());
    checks.reconcile(Duration::ZERO, 0..endpoints, &mut generator(1));
    checks
}

fn failed() -> Result<(), Failure> {
    Err(Failure::Unwell("no answer".to_owned()))
}

#[test]
fn the_first_answer_decides_and_then_it_takes_some_in_a_row() {
    let mut random = generator(2);
    let mut checks = checks(1);
    let mut answer = |millis, answer| checks.answered(0, at(millis), answer, &mut random);
    let out = |failures| Some(Change::Unhealthy { failures, error: "no answer".into() });
    assert_eq!(answer(100, failed()), out(1));
    assert_eq!(answer(200, Ok(())), None);
    assert_eq!(answer(300, failed()), None);
    assert_eq!(answer(400, Ok(())), None, "not twice in a row yet");
    assert_eq!(answer(500, Ok(())), Some(Change::Healthy { after: at(400) }));
    assert_eq!(answer(600, failed()), None);
    assert_eq!(answer(700, failed()), None);
    assert_eq!(answer(800, Ok(())), None);
    assert_eq!(answer(900, failed()), None);
    assert_eq!(answer(1_000, failed()), None);
    assert_eq!(answer(1_100, failed()), out(3));
    let state = checks.state(0).unwrap();
    assert_eq!(
        (state.healthy, state.since, state.error.as_deref()),
        (false, at(1_100), Some("no answer"))
    );
    assert_eq!(checks.unhealthy(), 1);
}

#[test]
fn who_is_gone_is_forgotten_and_who_stays_is_known() {
    let mut random = generator(3);
    let mut checks = checks(2);
    assert!(checks.answered(0, at(10), failed(), &mut random).is_some());
    checks.reconcile(at(20), [0, 2], &mut random);
    assert_eq!(checks.answered(1, at(30), failed(), &mut random), None);
    assert!(checks.state(1).is_none() && !checks.state(0).unwrap().healthy);
    assert!(checks.state(2).is_none() && checks.unhealthy() == 1);
}

#[test]
fn who_could_not_be_asked_is_as_before() {
    let mut random = generator(5);
    let mut checks = checks(1);
    let unasked = || Err(Failure::Unasked("no certificate yet".to_owned()));
    assert_eq!(checks.due(at(1_000)), [0]);
    assert_eq!(checks.answered(0, at(1_000), unasked(), &mut random), None);
    assert!(checks.state(0).is_none());
    assert_eq!(checks.due(at(2_200)), [0]);
    assert!(checks.answered(0, at(2_200), failed(), &mut random).is_some());
    for _ in 0..5 {
        assert_eq!(checks.answered(0, at(2_300), unasked(), &mut random), None);
    }
    assert!(!checks.state(0).unwrap().healthy);
}

#[test]
fn a_shorter_interval_holds_at_once() {
    let mut random = generator(4);
    let mut checks = Checks::new(HealthCheck { interval: at(3_600_000), ..policy() });
    checks.reconcile(Duration::ZERO, [7], &mut random);
    assert_eq!(checks.due(at(1_000)), [7], "the first is not after an hour");
    assert_eq!(checks.answered(7, at(1_000), Ok(()), &mut random), None);
    assert!(checks.due(at(100_000)).is_empty());
    checks.reconfigure(at(100_000), &policy());
    assert_eq!(checks.due(at(101_000)), [7]);
}

proptest! {
    /// Nobody is asked twice at once, everybody is asked about once an interval, and none too early.
    #[test]
    fn everybody_is_asked_in_time(seed: u64, endpoints in 1u64..20, delays in proptest::collection::vec(0u64..400, 20)) {
        let mut random = generator(seed);
        let mut checks = checks(endpoints);
        let mut under_way: Vec<(u64, u64)> = Vec::new();
        let mut last: FxHashMap<u64, u64> = FxHashMap::default();
        for tick in 0..100u64 {
            let now = tick * 100;
            under_way.retain(|(endpoint, until)| {
                let ended = *until <= now;
                if ended {
                    checks.answered(*endpoint, at(now), Ok(()), &mut random);
                    last.insert(*endpoint, now);
                }
                !ended
            });
            for endpoint in checks.due(at(now)) {
                prop_assert!(under_way.iter().all(|(other, _)| *other != endpoint));
                if let Some(last) = last.get(&endpoint) {
                    prop_assert!((900..=1_200).contains(&(now - last)), "{} after {last}", now);
                }
                under_way.push((endpoint, now + delays[endpoint as usize]));
            }
        }
        prop_assert!(last.len() as u64 == endpoints && last.values().all(|last| *last > 8_000));
    }
}

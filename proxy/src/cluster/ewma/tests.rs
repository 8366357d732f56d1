use std::{cell::Cell as Count, collections::BTreeMap, hint::black_box, time::Instant};

use proptest::prelude::*;

use super::*;
use crate::cluster::balance::tests::generator;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn latencies(endpoints: u64) -> Latencies {
    let mut latencies = Latencies::default();
    latencies.reconcile(0..endpoints);
    latencies
}

fn idle(latency: f64) -> Load {
    Load { latency, active: 0, factor: Factor::FULL }
}

fn counts(draw: &Draw, count: usize, load: impl Fn(usize) -> Load) -> Vec<u32> {
    let mut random = generator(11);
    let mut counts = vec![0; count];
    for _ in 0..10_000 {
        counts[pick(draw, &load, &mut random).unwrap()] += 1;
    }
    counts
}

#[test]
fn the_first_measurement_stands_for_all_until_there_is_a_median() {
    let mut latencies = Latencies::default();
    latencies.reconcile([1, 2]);
    latencies.observe(0, 1, Duration::from_secs(1), Duration::from_millis(3), false);
    assert_eq!((latencies.at(0), latencies.at(1)), (3e6, 3e6));
}

#[test]
fn peaks_are_taken_at_once_and_forgotten_slowly() {
    let mut latencies = latencies(1);
    let estimate = |latencies: &Latencies| latencies.estimate(0).unwrap().as_millis();
    assert_eq!(latencies.estimate(0), None);
    latencies.observe(0, 0, millis(1_000), millis(10), false);
    latencies.observe(0, 0, millis(1_000), millis(1_000), false);
    assert_eq!(estimate(&latencies), 1_000);
    latencies.observe(0, 0, millis(1_000), millis(10), false);
    assert_eq!(estimate(&latencies), 1_000, "no time has passed");
    latencies.observe(0, 0, millis(11_000), millis(10), false);
    assert_eq!(estimate(&latencies), 374, "10 + 990 / e");
    latencies.observe(0, 0, millis(500), millis(10), false);
    assert_eq!(estimate(&latencies), 374, "backwards no time has passed");
}

#[test]
fn a_failure_is_never_fast() {
    let mut latencies = latencies(2);
    latencies.observe(0, 0, millis(1_000), millis(50), false);
    latencies.observe(1, 1, millis(1_000), millis(1), true);
    assert_eq!(latencies.estimate(1), Some(millis(50)), "as the worst of late");
    latencies.observe(1, 1, millis(1_000), millis(80), true);
    assert_eq!(latencies.estimate(1), Some(millis(80)), "a timeout counts as long as it took");
    latencies.observe(0, 0, millis(1_000), millis(1), true);
    assert_eq!(latencies.estimate(0), Some(millis(50)), "and no other failure counts like it");
}

#[test]
fn who_is_not_measured_is_like_the_median() {
    let mut latencies = latencies(6);
    assert_eq!(latencies.at(5), 1.0, "nobody is");
    for (endpoint, latency) in [(0, 10), (1, 20), (2, 30), (3, 40), (4, 5_000)] {
        latencies.observe(endpoint as usize, endpoint, millis(1), millis(latency), false);
    }
    latencies.settle(millis(100));
    assert_eq!(latencies.at(5), 30e6);
    assert_eq!(latencies.at(99), 30e6, "unknown");
}

#[test]
fn the_slower_of_two_is_asked_again() {
    let mut latencies = latencies(2);
    latencies.observe(1, 1, millis(50), millis(1_000), false);
    for tenth in 1..=1000 {
        latencies.observe(0, 0, millis(tenth * 100 - 1), millis(10), false);
        latencies.settle(millis(tenth * 100));
        latencies.settle(millis(0));
        if tenth == 101 {
            assert_eq!(
                latencies.estimate(1),
                Some(Duration::from_nanos(374_200_647)),
                "10 + 990 / e"
            );
        }
    }
    assert_eq!(latencies.estimate(1).unwrap().as_millis(), 10);
}

#[test]
fn endpoints_keep_what_is_known_of_them() {
    let mut latencies = latencies(3);
    latencies.observe(2, 2, millis(1), millis(7), false);
    latencies.reconcile([9, 2]);
    assert_eq!([latencies.estimate(0), latencies.estimate(1)], [None, Some(millis(7))]);
    latencies.observe(2, 2, millis(1), millis(9), false);
    assert_eq!(latencies.estimate(1), Some(millis(9)), "found where it is now");
    latencies.observe(0, 1, millis(1), millis(9), false);
    assert_eq!(latencies.estimate(0), None, "a result of who is gone");
}

#[test]
fn the_cheaper_of_two_is_picked() {
    let draw = Draw::new(&[1; 2]);
    let slow_and_fast = |place| idle([10.0, 1.0][place]);
    assert_eq!(counts(&draw, 2, slow_and_fast), [0, 10_000]);
    let busy = |place| Load { active: [0, 10][place], ..slow_and_fast(place) };
    assert_eq!(counts(&draw, 2, busy), [10_000, 0], "10 * 1 against 1 * 11");
}

#[test]
fn the_slowest_of_many_gets_nothing() {
    let draw = Draw::new(&[1; 11]);
    let counts = counts(&draw, 11, |place| idle(if place == 3 { 10.0 } else { 1.0 }));
    assert_eq!(counts[3], 0);
    assert!(counts.iter().enumerate().all(|(place, count)| place == 3 || *count > 850));
}

#[test]
fn weights_say_how_much_is_under_way() {
    let weights = [1u32, 2, 8];
    let draw = Draw::new(&weights);
    let active: Vec<Count<u32>> = vec![Count::new(0); 3];
    let mut random = generator(5);
    for _ in 0..1_100 {
        let load = |place: usize| Load { active: active[place].get(), ..idle(1.0) };
        let place = pick(&draw, load, &mut random).unwrap();
        active[place].set(active[place].get() + 1);
    }
    for (active, weight) in active.iter().zip(weights) {
        assert!(active.get().abs_diff(weight * 100) <= weight * 5, "{active:?} for {weight}");
    }
}

#[test]
fn who_is_on_the_ramp_gets_its_factor() {
    let draw = Draw::new(&[1; 11]);
    let load = |place| Load { factor: Factor(if place == 0 { 26 } else { 255 }), ..idle(1.0) };
    let count = counts(&draw, 11, load)[0];
    assert!((60..140).contains(&count), "a tenth of an eleventh of 10,000: {count}");
}

#[test]
fn nobody_is_picked_where_nobody_can_be() {
    let mut random = generator(1);
    let none = |_| Load { factor: Factor::NONE, ..idle(1.0) };
    assert_eq!(pick(&Draw::new(&[]), none, &mut random), None);
    assert_eq!(pick(&Draw::new(&[0, 0]), |_| idle(1.0), &mut random), None);
    assert_eq!(pick(&Draw::new(&[1, 1]), none, &mut random), None);
    let only_without_weight = |place| if place == 0 { idle(1.0) } else { none(place) };
    assert_eq!(pick(&Draw::new(&[0, 1]), only_without_weight, &mut random), None);
}

#[test]
fn the_one_that_is_left_is_found() {
    let mut random = generator(1);
    let load = |place| match place {
        777 => idle(5.0),
        _ => Load { factor: Factor::NONE, ..idle(1.0) },
    };
    let draw = Draw::new(&[1; 1000]);
    assert!((0..100).all(|_| pick(&draw, load, &mut random) == Some(777)));
    assert_eq!(pick(&Draw::new(&[1]), idle_always, &mut random), Some(0));
}

fn idle_always(_: usize) -> Load {
    idle(1.0)
}

#[test]
fn a_pick_looks_at_few_however_many_there_are() {
    for ejected in [0, 2] {
        let draw = Draw::new(&[1; 1000]);
        let looks = Count::new(0u32);
        let load = |place: usize| {
            looks.set(looks.get() + 1);
            let out = ejected > 0 && place.is_multiple_of(ejected);
            Load { factor: if out { Factor::NONE } else { Factor::FULL }, ..idle(1.0) }
        };
        let mut random = generator(9);
        for _ in 0..10_000 {
            pick(&draw, load, &mut random).unwrap();
        }
        assert!(looks.get() < 100_000, "{} looks for 10,000 picks", looks.get());
    }
}

/// What each of eleven endpoints gets of 500 requests a second for two minutes, each taking so many milliseconds.
fn shares(service: impl Fn(usize, u64) -> (u64, bool)) -> Vec<usize> {
    let draw = Draw::new(&[1; 11]);
    let (mut latencies, mut random) = (latencies(11), generator(8));
    let (mut active, mut shares) = (vec![0u32; 11], vec![0; 11]);
    let mut ends: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for request in 0..60_000 {
        let now = request * 2;
        while let Some(end) = ends.first_entry().filter(|end| end.key().0 <= now) {
            let ((at, begun), place) = end.remove_entry();
            let (took, failed) = service(place, begun);
            active[place] -= 1;
            latencies.observe(place, place as u64, millis(at), millis(took), failed);
        }
        if now % 100 == 0 {
            latencies.settle(millis(now));
        }
        let load = |place: usize| Load {
            latency: latencies.at(place),
            active: active[place],
            factor: Factor::FULL,
        };
        let place = pick(&draw, load, &mut random).unwrap();
        active[place] += 1;
        shares[place] += 1;
        ends.insert((now + service(place, now).0, now), place);
    }
    shares
}

#[test]
fn a_slow_one_gets_a_few_to_see_whether_it_still_is() {
    let shares = shares(|place, _| (if place == 3 { 100 } else { 10 }, false));
    assert!((2..120).contains(&shares[3]), "under two in a thousand of {shares:?}");
    let fair = 60_000 / 10;
    assert!(shares.iter().all(|share| *share == shares[3] || share.abs_diff(fair) < fair / 2));
}

#[test]
fn who_never_answers_holds_no_more_than_others_have_under_way() {
    let shares = shares(|place, _| (if place == 3 { 1_000_000 } else { 10 }, false));
    assert!((1..10).contains(&shares[3]), "{shares:?}");
}

#[test]
fn a_quick_failure_is_not_a_fast_endpoint() {
    for busy in [10, 100] {
        let shares = shares(|place, _| if place == 3 { (1, true) } else { (busy, false) });
        assert!((2..600).contains(&shares[3]), "under one in a hundred of {shares:?}");
    }
}

#[test]
fn who_failed_for_a_while_gets_its_share_again() {
    // After the first of two minutes it is as good as the others.
    let shares =
        shares(|place, now| if place == 3 && now < 60_000 { (1, true) } else { (10, false) });
    assert!(shares[3] > 60_000 / 11 / 2 * 7 / 10, "{shares:?}");
}

#[test]
fn all_that_fail_share_alike() {
    let shares = shares(|_, _| (1, true));
    assert!(shares.iter().all(|share| share.abs_diff(60_000 / 11) < 600), "{shares:?}");
}

#[test]
fn failures_in_a_row_cost_more_and_successes_make_up_for_them() {
    let mut latencies = latencies(1);
    let mut expected = |failed| {
        latencies.observe(0, 0, millis(1), millis(10), failed);
        (latencies.at(0) / 1e6).round() as u64
    };
    assert_eq!([true, true, false].map(&mut expected), [11, 13, 13]);
    assert!((0..100).map(|_| expected(true)).all(|cost| cost <= 10_000));
    assert_eq!(expected(true), 10_000, "a thousand times and no more");
    assert_eq!((0..60).map(|_| expected(false)).last(), Some(10));
}

#[derive(Clone, Debug)]
enum Step {
    Observe(usize, u64, Duration, bool),
    Settle,
    Reconcile(Vec<u64>),
}

fn any_duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => (0u64..100_000_000_000).prop_map(Duration::from_nanos),
        1 => Just(Duration::ZERO),
        1 => Just(Duration::MAX),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..8, 0u64..8, any_duration(), any::<bool>())
            .prop_map(|(place, endpoint, latency, failed)| Step::Observe(place, endpoint, latency, failed)),
        3 => Just(Step::Settle),
        1 => proptest::collection::vec(0u64..8, 0..8).prop_map(Step::Reconcile),
    ]
}

proptest! {
    /// Whatever is observed, and whenever: an average is a number above zero and no more than the worst that was seen.
    #[test]
    fn averages_stay_numbers(
        decay in any_duration(),
        steps in proptest::collection::vec((any_duration(), any_step()), 1..100),
    ) {
        let mut latencies = Latencies::new(decay);
        latencies.reconcile(0..8);
        let mut worst = 1.0f64;
        for (now, step) in steps {
            match step {
                Step::Observe(place, endpoint, latency, failed) => {
                    worst = worst.max(nanos(latency));
                    latencies.observe(place, endpoint, now, latency, failed);
                }
                Step::Settle => latencies.settle(now),
                Step::Reconcile(endpoints) => latencies.reconcile(endpoints),
            }
            for place in 0..9 {
                let average = latencies.at(place);
                // A little above for what rounding adds.
                prop_assert!(average > 0.0 && average <= worst * 1_000.001, "{average}");
                prop_assert!(latencies.estimate(place).is_none_or(|estimate| nanos(estimate) <= worst * 1.000_001));
            }
            prop_assert!(latencies.worst.is_finite() && latencies.worst >= 0.0);
        }
    }

    /// Who is picked has a weight and a factor; somebody is if anybody has.
    #[test]
    fn who_is_picked_may_be(
        candidates in proptest::collection::vec((0u32..4, 0u8..3, any::<u32>(), 0.0f64..1e30), 0..20),
        seed: u64,
    ) {
        let weights: Vec<u32> = candidates.iter().map(|candidate| candidate.0).collect();
        let load = |place: usize| {
            let (_, factor, active, latency) = candidates[place];
            Load { latency, active, factor: Factor(factor * 127) }
        };
        let may = |place: usize| weights[place] > 0 && load(place).factor > Factor::NONE;
        let picked = pick(&Draw::new(&weights), load, &mut generator(seed));
        prop_assert_eq!(picked.is_some(), (0..weights.len()).any(may));
        prop_assert!(picked.is_none_or(may));
    }
}

/// Prints what a pick costs: `cargo test --release -p leno-proxy picks_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn picks_cost() {
    use crate::cluster::balance::{
        bounded::{BOUND, Member, Total, pick as pick_bounded},
        maglev::{Size, Table},
        ring_hash::Ring,
    };
    const PICKS: u32 = 1_000_000;
    for count in [2usize, 11, 1000] {
        let names: Vec<String> = (0..count).map(|number| format!("shop/orders-{number}")).collect();
        let named = || names.iter().map(|name| (name.as_str(), 1));
        let (ring, table) = (Ring::new(named(), 0), Table::new(named(), Size::Standard));
        let (even, odd): (Draw, Vec<u32>) =
            (Draw::new(&vec![1; count]), (1..=count as u32).collect());
        let odd = Draw::new(&odd);
        let mut latencies = latencies(count as u64);
        for place in 0..count {
            latencies.observe(place, place as u64, millis(1), millis(place as u64 % 7), false);
        }
        let load = |place| Load { latency: latencies.at(place), active: 3, factor: Factor::FULL };
        let half = |place: usize| Load { factor: Factor((place as u8 & 1) * 255), ..load(place) };
        let member = |_| Member { weight: 1, active: 3, factor: Factor::FULL };
        let total = Total { active: 3 * count as u64, weight: count as f64, bound: BOUND };
        let mut random = generator(1);
        let mut print =
            |what: &str, one: &mut dyn FnMut(&mut dyn FnMut() -> u64) -> Option<usize>| {
                let start = Instant::now();
                for _ in 0..PICKS {
                    black_box(one(&mut random));
                }
                println!(
                    "{what:<22} of {count:>4}: {:>6.1} ns",
                    start.elapsed().as_secs_f64() * 1e9 / f64::from(PICKS)
                );
            };
        print("peak-EWMA", &mut |random| pick(&even, load, random));
        print("peak-EWMA, weights", &mut |random| pick(&odd, load, random));
        print("peak-EWMA, half out", &mut |random| pick(&even, half, random));
        print("ring hash, bounded", &mut |random| {
            pick_bounded(ring.walk(random()), count, member, 1, || total)
        });
        print("Maglev, bounded", &mut |random| {
            pick_bounded(table.walk(random()), count, member, 1, || total)
        });
        let start = Instant::now();
        for turn in 0..1000 {
            latencies.settle(millis(turn * 100));
        }
        println!(
            "settle                 of {count:>4}: {:>6.1} ns",
            start.elapsed().as_secs_f64() * 1e6
        );
    }
}

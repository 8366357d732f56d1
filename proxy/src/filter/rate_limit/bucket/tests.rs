use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn is_admitted(decision: Decision) -> bool {
    decision.verdict == Verdict::Admitted
}

#[test]
fn a_burst_then_the_rate() {
    let rate = Rate::new(10, Duration::from_secs(1), 3);
    let bucket = Bucket::default();
    let start = at(5_000);
    for remaining in [2, 1, 0] {
        let more_in = Some(at(100));
        let decision = bucket.take(&rate, start, 1);
        assert_eq!(decision, Decision { verdict: Verdict::Admitted, remaining, more_in });
    }
    let refused = bucket.take(&rate, start, 1);
    let verdict = Verdict::Limited(Some(at(100)));
    assert_eq!(refused, Decision { verdict, remaining: 0, more_in: Some(at(100)) });
    let half = bucket.take(&rate, start + at(50), 1);
    assert_eq!((half.verdict, half.more_in), (Verdict::Limited(Some(at(50))), Some(at(50))));
    assert!(is_admitted(bucket.take(&rate, start + at(100), 1)));
    assert_eq!(bucket.take(&rate, start + at(60_000), 0).remaining, 3);
    let full = bucket.take(&rate, start + at(60_000), 0);
    assert_eq!((full.remaining, full.more_in), (3, None));
}

#[test]
fn a_cost_is_paid_whole_or_not_at_all() {
    let rate = Rate::new(1, Duration::from_secs(1), 5);
    let bucket = Bucket::default();
    assert_eq!(bucket.take(&rate, at(0), 3).remaining, 2);
    let wait = Verdict::Limited(Some(at(1000)));
    assert_eq!(bucket.take(&rate, at(0), 3).verdict, wait);
    assert_eq!(bucket.take(&rate, at(0), 6).verdict, Verdict::Limited(None));
    assert_eq!(bucket.take(&rate, at(0), 2).remaining, 0);
    bucket.give_back(&rate, 2);
    assert_eq!(bucket.take(&rate, at(0), 0).remaining, 2);
}

#[test]
fn nothing_is_nothing() {
    for (requests, burst) in [(0, 10), (10, 0), (0, 0)] {
        let rate = Rate::new(requests, Duration::from_secs(1), burst);
        let decision = Bucket::default().take(&rate, at(1), 1);
        assert_eq!(decision.verdict, Verdict::Limited(None));
    }
}

#[test]
fn what_does_not_divide_is_rounded_to_fewer() {
    let rate = Rate::new(700_000_000, Duration::from_secs(1), 1);
    let bucket = Bucket::default();
    let at = Duration::from_nanos;
    let admitted = (0..1000).filter(|now| is_admitted(bucket.take(&rate, at(*now), 1))).count();
    assert!((400..=700).contains(&admitted), "{admitted} of 700");
}

#[test]
fn another_rate_keeps_what_was_used() {
    let (small, large) =
        (Rate::new(10, Duration::from_secs(1), 10), Rate::new(100, Duration::from_secs(1), 100));
    let bucket = Bucket::default();
    bucket.take(&small, at(1000), 5);
    bucket.change(&small, &large, at(1000));
    assert_eq!(bucket.take(&large, at(1000), 0).remaining, 50);
    bucket.change(&large, &small, at(1000));
    assert_eq!(bucket.take(&small, at(1000), 0).remaining, 5);
    let none = Rate::new(0, Duration::ZERO, 0);
    bucket.change(&small, &none, at(1000));
    bucket.change(&none, &large, at(1000));
    assert_eq!(bucket.take(&large, at(1000), 0).remaining, 100);
}

#[test]
fn a_clock_set_back_lets_nobody_through_twice() {
    let rate = Rate::new(10, Duration::from_secs(1), 5);
    let bucket = Bucket::default();
    assert_eq!((0..10).filter(|_| is_admitted(bucket.take(&rate, at(10_000), 1))).count(), 5);
    let back = bucket.take(&rate, at(9_000), 1);
    assert_eq!((back.verdict, back.remaining), (Verdict::Limited(Some(at(1_100))), 0));
    assert_eq!(back.more_in, Some(at(1_100)));
}

#[test]
fn workers_share_one_bucket() {
    let rate = Rate::new(1, Duration::from_secs(3600), 1000);
    let bucket = Bucket::default();
    let admitted: usize = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let take = || is_admitted(bucket.take(&rate, at(1), 1));
                scope.spawn(move || (0..1000).filter(|_| take()).count())
            })
            .collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).sum()
    });
    assert_eq!(admitted, 1000);
}

proptest! {
    /// Over any time, whatever the clock does: never more than the burst and what the time brought.
    #[test]
    fn never_more_than_burst_and_rate(
        requests in 1u32..1000,
        per in 1u64..10_000,
        burst in 1u32..100,
        steps in proptest::collection::vec((-200i64..400, 0u32..5), 1..400),
    ) {
        let per = at(per);
        let rate = Rate::new(requests, per, burst);
        let bucket = Bucket::default();
        let (mut now, start) = (1_000_000i64, 1_000_000i64);
        let mut admitted = 0u64;
        let mut latest = start;
        for (step, cost) in steps {
            now = (now + step).max(start);
            latest = latest.max(now);
            if is_admitted(bucket.take(&rate, at(now as u64), cost)) {
                admitted += u64::from(cost);
            }
            let passed = u128::from((latest - start) as u64) * 1_000_000;
            let most = u128::from(burst) + passed * u128::from(requests) / per.as_nanos();
            prop_assert!(u128::from(admitted) <= most, "{} of {}", admitted, most);
        }
    }

    /// Who comes as often as allowed is always let through, and who waits as told is let through then.
    #[test]
    fn who_keeps_to_it_is_never_refused(
        requests in 1u32..1000,
        per in 1u64..10_000,
        burst in 1u32..100,
        extra in 0u32..200,
    ) {
        let rate = Rate::new(requests, at(per), burst);
        let bucket = Bucket::default();
        let interval = Duration::from_nanos((per * 1_000_000).div_ceil(requests.into()));
        for turn in 0..200 {
            prop_assert!(is_admitted(bucket.take(&rate, interval * turn, 1)));
        }
        let now = interval * 200;
        for _ in 0..extra {
            if let Verdict::Limited(wait) = bucket.take(&rate, now, 1).verdict {
                let wait = wait.unwrap();
                let early = bucket.take(&rate, now + wait - Duration::from_nanos(1), 1);
                prop_assert!(!is_admitted(early));
                prop_assert!(is_admitted(bucket.take(&rate, now + wait, 1)));
                break;
            }
        }
    }

    #[test]
    fn nothing_panics(
        rates in proptest::collection::vec((any::<u32>(), any::<u64>(), any::<u32>()), 1..4),
        steps in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<usize>()), 0..100),
    ) {
        let rates: Vec<_> = rates
            .into_iter()
            .map(|(requests, per, burst)| Rate::new(requests, Duration::from_secs(per), burst))
            .collect();
        let bucket = Bucket::default();
        for (now, cost, pick) in steps {
            let (old, new) = (&rates[pick % rates.len()], &rates[(pick / 7) % rates.len()]);
            let now = Duration::from_secs(now);
            bucket.take(old, now, cost);
            bucket.change(old, new, now);
            bucket.give_back(new, cost);
            bucket.take(new, Duration::MAX, cost);
        }
    }
}

#[test]
fn shares_of_a_limit_are_the_limit() {
    let rate = Rate::new(100, Duration::from_secs(1), 50);
    assert_eq!(rate.part(Share::WHOLE), rate);
    let shares = [500_000, 300_000, 199_999, 1].map(Share::of_millionths);
    let mut admitted = 0;
    for share in shares {
        let (bucket, rate) = (Bucket::with(share), rate.part(share));
        let count =
            |now: u64| (0..100).filter(|_| is_admitted(bucket.take(&rate, at(now), 1))).count();
        let burst = count(1_000);
        let steady: usize = (1..=1_000).map(|step| count(1_000 + step * 10)).sum();
        admitted += steady;
        assert!((1..=25).contains(&burst), "{burst}");
    }
    assert!((985..=1_000).contains(&admitted), "{admitted} of a thousand in ten seconds");
    assert_eq!((Share::among(0), Share::among(3).millionths()), (Share::WHOLE, 333_333));
    assert_eq!(Share::of_millionths(0).millionths(), 1);
}

proptest! {
    /// Whatever is done to a share, what may be taken at once never becomes more by that.
    #[test]
    fn a_change_of_shares_makes_no_units(
        requests in 1u32..10_000,
        burst in 1u32..10_000,
        taken in 0u32..10_000,
        shares in proptest::collection::vec(0u32..=1_000_000, 1..20),
    ) {
        let rate = Rate::new(requests, Duration::from_secs(1), burst);
        let bucket = Bucket::with(Share::WHOLE);
        bucket.take(&rate, at(1), taken.min(burst));
        let left = || {
            let part = rate.part(bucket.share());
            bucket.take(&part, at(1), 0).remaining
        };
        let mut before = left();
        for share in shares {
            bucket.set_share(&rate, Share::of_millionths(share), at(1));
            let now = left();
            prop_assert!(now <= before, "{} after {}", now, before);
            before = now;
        }
    }
}

use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn grant(units: u64, millis: u64) -> Grant {
    Grant { units, valid_for: at(millis) }
}

#[test]
fn credit_first_then_grants() {
    let mut lease = Lease::new(2);
    let pot = lease.pot();
    assert_eq!([pot.take(1), pot.take(1), pot.take(1)], [true, true, false]);
    let report = lease.report(at(1_000)).unwrap();
    assert_eq!((report.used, report.returned), (2, 0));
    assert!(report.wanted > 0);
    assert_eq!(lease.report(at(1_050)), None, "asked a moment ago");
    lease.grant(at(1_100), grant(10, 5_000));
    // What was taken on credit is not paid for twice: ten are ten.
    assert_eq!((0..20).filter(|_| pot.take(1)).count(), 10);
    assert_eq!(pot.left(), 0);
}

#[test]
fn what_expires_goes_back() {
    let mut lease = Lease::new(1);
    let pot = lease.pot();
    lease.grant(at(0), grant(10, 1_000));
    assert!(pot.take(4));
    let report = lease.report(at(1_000)).unwrap();
    assert_eq!((report.used, report.returned), (4, 7 - 1));
    assert_eq!(pot.left(), 1, "the credit stays");
}

#[test]
fn a_proxy_without_requests_gives_back() {
    let mut lease = Lease::new(0);
    let pot = lease.pot();
    lease.grant(at(0), grant(1_000, 60_000));
    assert!(pot.take(100));
    for now in (100..30_000).step_by(100) {
        lease.report(at(now));
    }
    assert!(pot.left() <= 2, "{} kept without need", pot.left());
    let report = lease.report(at(40_000)).unwrap();
    assert_eq!((report.used, report.used + report.returned + pot.left()), (100, 1_000));
}

#[test]
fn silence_is_noticed() {
    let mut lease = Lease::new(0);
    assert!(!lease.pot().take(1));
    assert_eq!(lease.unanswered(), None);
    for now in (1_000..=5_000).step_by(100) {
        lease.pot().take(1);
        lease.report(at(now));
    }
    assert_eq!(lease.unanswered(), Some(at(4_000)));
    lease.grant(at(5_000), grant(1, 1_000));
    assert_eq!(lease.unanswered(), None);
}

/// A control plane that grants from one limit, here with three proxies of uneven demand.
#[test]
fn three_proxies_share_a_limit_by_need() {
    let limit_per_second = 300u64;
    let demands = [400u64, 100, 5];
    let mut leases: Vec<_> = (0..3).map(|_| Lease::new(0)).collect();
    let pots: Vec<_> = leases.iter().map(Lease::pot).collect();
    let (mut treasury, mut admitted, mut back) = (0, [0u64; 3], [0u64; 3]);
    for tick in 0..600u64 {
        let now = at(tick * 100);
        treasury = (treasury + limit_per_second / 10).min(limit_per_second);
        for at_proxy in 0..3 {
            let asked = demands[at_proxy] * (tick + 1) / 10 - demands[at_proxy] * tick / 10;
            admitted[at_proxy] += (0..asked).filter(|_| pots[at_proxy].take(1)).count() as u64;
            if let Some(report) = leases[at_proxy].report(now) {
                treasury += report.returned - back[at_proxy];
                back[at_proxy] = report.returned;
                let units = report.wanted.min(treasury / 2 + 1).min(treasury);
                treasury -= units;
                leases[at_proxy].grant(now, grant(units, 4_000));
            }
        }
    }
    let all: u64 = admitted.iter().sum();
    assert!(all <= limit_per_second * 61, "{admitted:?}");
    assert!(all >= limit_per_second * 60 * 9 / 10, "{admitted:?}: units lie idle");
    assert!(admitted[2] >= 5 * 60 * 7 / 10, "{admitted:?}: the small one gets what it needs");
}

proptest! {
    /// Nothing is lost and nothing is made: what was granted is spent, left, or given back.
    #[test]
    fn units_are_conserved(
        credit in prop_oneof![0u64..100, any::<u64>()],
        steps in proptest::collection::vec(
            (any::<u8>(), prop_oneof![0u64..10_000, any::<u64>()], 0u64..100_000), 0..200
        ),
    ) {
        let mut lease = Lease::new(credit);
        let pot = lease.pot();
        let mut spent = 0u128;
        for (what, number, now) in steps {
            match what % 3 {
                0 => lease.grant(at(now), grant(number, now)),
                1 if pot.take(number) => spent += u128::from(number),
                1 => {}
                _ => {
                    if let Some(report) = lease.report(at(now)) {
                        prop_assert!(report.wanted <= MOST_WANTED);
                    }
                }
            }
            let all = u128::from(credit) + u128::from(lease.granted);
            let sum = spent + u128::from(pot.left()) + u128::from(lease.returned);
            prop_assert_eq!(sum, all);
            prop_assert_eq!(u128::from(lease.used()), spent);
        }
    }
}

use std::{net::SocketAddr, time::Duration};

use super::*;
use crate::{
    cluster::balance::tests::generator,
    telemetry::scope::{Scope, ScopeLabels},
};

const EWMA: Balancer = Balancer::PeakEwma { decay: Duration::from_secs(10) };
const ALL: [Balancer; 4] = [EWMA, Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random];

fn endpoints(count: u16) -> Endpoints {
    let endpoint = |port| {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let scope = Scope::new(ScopeLabels::default());
        Endpoint::own("a".into(), address, scope)
    };
    (1..=count).map(endpoint).collect::<Vec<_>>().into()
}

fn wish<'a>(balancer: &'a Balancer, tried: &'a [u64]) -> Wish<'a> {
    Wish { balancer, tried, hash: None, bound: 1.25, under_way: &|| 0, breakers: false }
}

fn counts(endpoints: &Endpoints, balancer: &Balancer, tried: &[u64]) -> Vec<u32> {
    let (mut counts, turn) = (vec![0; endpoints.len()], AtomicU64::new(0));
    let mut random = generator(3);
    for _ in 0..3_000 {
        let place = endpoints.pick(&wish(balancer, tried), |_| 1.0, &turn, &mut random).unwrap();
        counts[place] += 1;
    }
    counts
}

#[test]
fn whatever_the_balancer_the_ejected_get_nothing_and_the_others_the_same() {
    let endpoints = endpoints(4);
    endpoints[1].vitals().decide(Factor::NONE, None);
    for balancer in &ALL {
        let counts = counts(&endpoints, balancer, &[]);
        let fair = |place: usize| (850..1150).contains(&counts[place]);
        assert!(counts[1] == 0 && fair(0) && fair(2) && fair(3), "{balancer:?}: {counts:?}");
    }
}

#[test]
fn who_comes_back_gets_a_part_of_its_share() {
    let endpoints = endpoints(3);
    endpoints[2].vitals().decide(Factor(26), None);
    for balancer in &ALL {
        let counts = counts(&endpoints, balancer, &[]);
        assert!((50..300).contains(&counts[2]), "{balancer:?}: {counts:?}");
    }
}

#[test]
fn who_was_tried_is_asked_again_only_if_there_is_nobody_else() {
    let endpoints = endpoints(3);
    let ids: Vec<u64> = endpoints.iter().map(|endpoint| endpoint.id).collect();
    endpoints[0].vitals().decide(Factor::NONE, None);
    for balancer in &ALL {
        assert_eq!(counts(&endpoints, balancer, &ids[1..2]), [0, 0, 3_000], "{balancer:?}");
        let again = counts(&endpoints, balancer, &ids[1..]);
        assert!(again[0] == 0 && again[1] > 1_000 && again[2] > 1_000, "{balancer:?}");
    }
    for endpoint in endpoints.iter() {
        endpoint.vitals().decide(Factor::NONE, None);
    }
    for balancer in &ALL {
        let mut random = generator(3);
        let turn = AtomicU64::new(0);
        assert_eq!(endpoints.pick(&wish(balancer, &ids), |_| 1.0, &turn, &mut random), None);
    }
}

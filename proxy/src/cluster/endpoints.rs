//! The endpoints of a cluster, prepared for drawing one of them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use leno_api::model::traffic_policy::Balancer;

use super::{
    Endpoint,
    balance::{self, draw::Draw},
    ewma::{self, Load},
    outlier::Factor,
};

/// How often one is drawn before all are looked at. With half of them ejected one pick in 256 comes to that.
const DRAWS: u32 = 8;

/// Endpoints in a stable order.
#[derive(Debug)]
pub struct Endpoints {
    /// A later list of the same cluster has a higher number.
    pub number: u64,
    list: Box<[Arc<Endpoint>]>,
    /// Whether all of them have the same weight.
    even: bool,
    draw: Draw,
}

impl From<Vec<Arc<Endpoint>>> for Endpoints {
    fn from(list: Vec<Arc<Endpoint>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let weights: Vec<u32> = list.iter().map(|endpoint| endpoint.weight).collect();
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            even: weights.windows(2).all(|pair| pair[0] == pair[1]),
            draw: Draw::new(&weights),
            list: list.into(),
        }
    }
}

impl std::ops::Deref for Endpoints {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &Self::Target {
        &self.list
    }
}

impl Endpoints {
    /// The place of the next one, not one of `tried` (by [`Endpoint::id`]) unless there is no other. `latency` is what
    /// the endpoint at a place is expected to take; `turn` is counted up with each call.
    pub fn pick(
        &self,
        balancer: &Balancer,
        tried: &[u64],
        latency: impl Fn(usize) -> f64,
        turn: &AtomicU64,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        let untried = |place: usize| match tried.contains(&self[place].id) {
            true => Factor::NONE,
            false => self[place].vitals.factor(),
        };
        let first = self.pick_by(balancer, untried, &latency, turn, random);
        if first.is_some() || tried.is_empty() {
            return first;
        }
        let any = |place: usize| self[place].vitals.factor();
        self.pick_by(balancer, any, &latency, turn, random)
    }

    fn pick_by(
        &self,
        balancer: &Balancer,
        factor: impl Fn(usize) -> Factor,
        latency: &impl Fn(usize) -> f64,
        turn: &AtomicU64,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        let one = |random: &mut dyn FnMut() -> u64| match balancer {
            Balancer::RoundRobin => {
                balance::round_robin(&self.list, turn.fetch_add(1, Ordering::Relaxed))
            }
            Balancer::LeastRequest => balance::least_request(&self.list, self.even, random),
            Balancer::PeakEwma { .. }
            | Balancer::Random
            | Balancer::RingHash { .. }
            | Balancer::Maglev { .. } => balance::random(&self.list, random),
        };
        if let Balancer::PeakEwma { .. } = balancer {
            let load = |place: usize| Load {
                latency: latency(place),
                active: self[place].active(),
                factor: factor(place),
            };
            return ewma::pick(&self.draw, load, random);
        }
        // Who is not taken is drawn again, so that its share goes to all others and not to its neighbour.
        for _ in 0..DRAWS {
            let place = one(random)?;
            if factor(place).accepts(random) {
                return Some(place);
            }
        }
        let start = one(random)?;
        (start..self.len()).chain(0..start).find(|place| factor(*place) != Factor::NONE)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use super::*;
    use crate::{
        cluster::balance::tests::generator,
        telemetry::scope::{Scope, ScopeLabels},
    };

    const EWMA: Balancer = Balancer::PeakEwma { decay: Duration::from_secs(10) };
    const ALL: [Balancer; 4] =
        [EWMA, Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random];

    fn endpoints(count: u16) -> Endpoints {
        let endpoint = |port| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let scope = Scope::new(ScopeLabels::default());
            Endpoint::own("a".into(), address, scope)
        };
        (1..=count).map(endpoint).collect::<Vec<_>>().into()
    }

    fn counts(endpoints: &Endpoints, balancer: &Balancer, tried: &[u64]) -> Vec<u32> {
        let (mut counts, turn) = (vec![0; endpoints.len()], AtomicU64::new(0));
        let mut random = generator(3);
        for _ in 0..3_000 {
            let place = endpoints.pick(balancer, tried, |_| 1.0, &turn, &mut random).unwrap();
            counts[place] += 1;
        }
        counts
    }

    #[test]
    fn whatever_the_balancer_the_ejected_get_nothing_and_the_others_the_same() {
        let endpoints = endpoints(4);
        endpoints[1].vitals.decide(Factor::NONE, None);
        for balancer in &ALL {
            let counts = counts(&endpoints, balancer, &[]);
            let fair = |place: usize| (850..1150).contains(&counts[place]);
            assert!(counts[1] == 0 && fair(0) && fair(2) && fair(3), "{balancer:?}: {counts:?}");
        }
    }

    #[test]
    fn who_comes_back_gets_a_part_of_its_share() {
        let endpoints = endpoints(3);
        endpoints[2].vitals.decide(Factor(26), None);
        for balancer in &ALL {
            let counts = counts(&endpoints, balancer, &[]);
            assert!((50..300).contains(&counts[2]), "{balancer:?}: {counts:?}");
        }
    }

    #[test]
    fn who_was_tried_is_asked_again_only_if_there_is_nobody_else() {
        let endpoints = endpoints(3);
        let ids: Vec<u64> = endpoints.iter().map(|endpoint| endpoint.id).collect();
        endpoints[0].vitals.decide(Factor::NONE, None);
        for balancer in &ALL {
            assert_eq!(counts(&endpoints, balancer, &ids[1..2]), [0, 0, 3_000], "{balancer:?}");
            let again = counts(&endpoints, balancer, &ids[1..]);
            assert!(again[0] == 0 && again[1] > 1_000 && again[2] > 1_000, "{balancer:?}");
        }
        for endpoint in endpoints.iter() {
            endpoint.vitals.decide(Factor::NONE, None);
        }
        for balancer in &ALL {
            let mut random = generator(3);
            let turn = AtomicU64::new(0);
            assert_eq!(endpoints.pick(balancer, &ids, |_| 1.0, &turn, &mut random), None);
        }
    }
}

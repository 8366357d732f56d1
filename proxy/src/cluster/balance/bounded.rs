//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016): a request goes to the first endpoint
//! on its walk that is not busy beyond a bound, so that one popular key, or somebody who aims, cannot drown one
//! endpoint while the others idle.

use std::cell::OnceCell;

use super::super::outlier::Factor;

/// How much busier than its share an endpoint may be, by default.
pub const BOUND: f64 = 1.25;
/// The range of bounds: below, everybody would always be full; above, nobody ever is.
pub const BOUND_RANGE: (f64, f64) = (1.01, 100.0);
/// So many under way drown nobody: without it two requests of one user at the same time would go to two endpoints
/// wherever little is going on, as twice an average below one is still one.
pub const FREE: u32 = 8;
/// Steps on a walk before all endpoints are looked at. At 1.25, at least a fifth of the table belongs to endpoints
/// below their bounds: more steps than this are as likely as nothing that ever happens (0.8 to the 256th).
const STEPS: usize = 256;

/// What is known of all endpoints together.
#[derive(Clone, Copy, Debug)]
pub struct Total {
    /// Attempts under way from this proxy to all of them.
    pub active: u64,
    /// Sum of weight times share, over all of them.
    pub weight: f64,
    /// From [`BOUND_RANGE`], to which it is clamped.
    pub bound: f64,
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// As the table was built with.
    pub weight: u32,
    /// Attempts under way from this proxy.
    pub active: u32,
    /// Its share; [`Factor::NONE`] also for who was already tried.
    pub factor: Factor,
}

/// The first of `walk` that is available and below its bound; where none is (the total is out of date) the least
/// busy one for its weight. Who has fewer than `free` under way, at least 1, is never over its bound. `None` where none of the `count` endpoints is available. `total` is asked for only if
/// somebody on the way is busy.
pub fn pick(
    walk: impl Iterator<Item = usize>,
    count: usize,
    member: impl Fn(usize) -> Member,
    free: u32,
    total: impl Fn() -> Total,
) -> Option<usize> {
    let figures = OnceCell::new();
    let fits = |place: usize| {
        let member = member(place);
        let idle = member.active < free && member.capacity() > 0.0;
        idle || member.load() < figures.get_or_init(&total).allowed(member.capacity())
    };
    walk.take(STEPS).find(|place| fits(*place)).or_else(|| {
        let available = (0..count).filter(|place| member(*place).capacity() > 0.0);
        let load = |place: &usize| member(*place).load() / member(*place).capacity();
        available.min_by(|one, other| load(one).total_cmp(&load(other)))
    })
}

impl Total {
    /// `ceil(bound * (active + 1) * capacity / weight)`: how many an endpoint may have under way, the next included.
    fn allowed(&self, capacity: f64) -> f64 {
        let bound = match self.bound.is_nan() {
            true => BOUND,
            false => self.bound.clamp(BOUND_RANGE.0, BOUND_RANGE.1),
        };
        (bound * (self.active as f64 + 1.0) * capacity / self.weight).ceil()
    }
}

impl Member {
    /// What it can take, for comparison with others.
    pub fn capacity(&self) -> f64 {
        f64::from(self.weight) * self.factor.share()
    }

    fn load(&self) -> f64 {
        f64::from(self.active)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{maglev, ring_hash::Ring, tests::generator},
        *,
    };

    fn total(members: &[Member], bound: f64) -> Total {
        Total {
            active: members.iter().map(|member| u64::from(member.active)).sum(),
            weight: members.iter().map(Member::capacity).sum(),
            bound,
        }
    }

    fn idle(weights: &[u32]) -> Vec<Member> {
        let member = |weight: &u32| Member { weight: *weight, active: 0, factor: Factor::FULL };
        weights.iter().map(member).collect()
    }

    #[test]
    fn nobody_is_picked_where_nobody_is_available() {
        let mut members = idle(&[1, 1]);
        members.iter_mut().for_each(|member| member.factor = Factor::NONE);
        let nobody = total(&members, BOUND);
        assert_eq!(pick([0, 1].into_iter(), 2, |place| members[place], 1, || nobody), None);
        assert_eq!(pick([].into_iter(), 0, |place| members[place], 1, || nobody), None);
    }

    #[test]
    fn figures_that_are_out_of_date_find_somebody() {
        let mut members = idle(&[1, 1]);
        (members[0].active, members[1].active) = (9, 8);
        for weight in [0.0, 2.0, f64::NAN, f64::INFINITY] {
            let stale = Total { active: 0, weight, bound: BOUND };
            let picked = pick([0].into_iter().cycle(), 2, |place| members[place], 1, || stale);
            assert!(
                picked.is_some_and(|place| place == 1 || weight == 0.0),
                "{weight}: {picked:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// One key for all requests, none of which ends: everybody gets at most its bound, and the first its fill.
        #[test]
        fn no_key_drowns_an_endpoint(
            weights in proptest::collection::vec(1u32..6, 1..20),
            ejected: u32,
            bound in 1.05f64..3.0,
            hash: u64,
            on_ring: bool,
        ) {
            let names: Vec<String> = (0..weights.len()).map(|number| format!("w-{number}")).collect();
            let named = || names.iter().map(String::as_str).zip(weights.iter().copied());
            let (ring, table) = (Ring::new(named(), 0), maglev::Table::new(named(), maglev::Size::Small));
            let mut members = idle(&weights);
            for (place, member) in members.iter_mut().enumerate().skip(1) {
                if ejected >> place & 1 == 1 {
                    member.factor = Factor::NONE;
                }
            }
            for _ in 0..300 {
                let figures = total(&members, bound);
                let member = |place: usize| members[place];
                let place = match on_ring {
                    true => pick(ring.walk(hash), weights.len(), member, 1, || figures),
                    false => pick(table.walk(hash), weights.len(), member, 1, || figures),
                }.unwrap();
                members[place].active += 1;
                let share = members[place].capacity() / figures.weight;
                let most = (bound * (figures.active + 1) as f64 * share).ceil();
                prop_assert!(members[place].factor != Factor::NONE);
                prop_assert!(f64::from(members[place].active) <= most, "{members:?}");
            }
        }

        /// An idle cluster sends every request where its hash belongs.
        #[test]
        fn who_is_not_busy_keeps_its_requests(seed: u64, count in 1usize..20) {
            let names: Vec<String> = (0..count).map(|number| format!("w-{number}")).collect();
            let ring = Ring::new(names.iter().map(|name| (name.as_str(), 1)), 0);
            let members = idle(&vec![1; count]);
            let mut random = generator(seed);
            for _ in 0..50 {
                let hash = random();
                let picked =
                    pick(ring.walk(hash), count, |place| members[place], 1, || total(&members, BOUND));
                prop_assert_eq!(picked, ring.walk(hash).next());
            }
        }
    }
}

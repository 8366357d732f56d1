//! Consistent hashing on a ring (Karger et al., 1997), with many points per endpoint as in Ketama.

use super::hash::{hash, rehash};

/// Points of an endpoint of mean weight. With 160, as in Ketama, shares differ from their weights by about a twelfth.
const POINTS: u64 = 160;
/// Points of all endpoints: 16 MiB.
const MAX_POINTS: u64 = 1 << 20;

/// A ring on which each endpoint has points, and each request belongs to the next point.
#[derive(Clone, Debug)]
pub struct Ring {
    /// By position, with the place of the endpoint each is of.
    points: Box<[(u64, u32)]>,
}

impl Ring {
    /// A ring of endpoints by name and weight. The name is what keeps an endpoint its requests: it should not change as
    /// others come and go. Who weighs nothing gets nothing, nor does who comes second with the same name.
    ///
    /// With equal weights, whoever comes or goes moves its own requests and no other's. Unequal ones are rounded to
    /// points relative to the mean, so that a few more move, as they do where it takes more points each to come to the
    /// `minimum` of all.
    pub fn new<'a>(endpoints: impl IntoIterator<Item = (&'a str, u32)>, minimum: u32) -> Self {
        let endpoints: Vec<(&str, u32)> = endpoints.into_iter().collect();
        let total: u64 = endpoints.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let weighty = endpoints.iter().filter(|(_, weight)| *weight > 0).count() as u64;
        let mut points = Vec::new();
        for (place, (name, weight)) in endpoints.iter().enumerate() {
            let own = hash(name.as_bytes(), 0);
            let count = points_of(*weight, total, weighty, minimum);
            points.extend((0..count).map(|number| (rehash(own, number), place as u32)));
        }
        points.sort_unstable();
        Self { points: points.into_boxed_slice() }
    }

    /// Places of endpoints for a request with this hash, the one it belongs to first and then those it falls back to.
    /// Places come up more than once; the last comes back to where the first was.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let start = self.points.partition_point(|(position, _)| *position < hash);
        let (before, behind) = self.points.split_at(start);
        behind.iter().chain(before).map(|(_, place)| *place as usize)
    }
}

/// Of `total` weight among `endpoints`; at least one for who weighs anything.
fn points_of(weight: u32, total: u64, endpoints: u64, minimum: u32) -> u64 {
    let all = endpoints.saturating_mul(POINTS).max(minimum.into()).min(MAX_POINTS);
    match weight {
        0 => 0,
        _ => (u128::from(weight) * u128::from(all) / u128::from(total.max(1))).max(1) as u64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::generator, *};

    fn ring(names: &[String], weights: impl IntoIterator<Item = u32>) -> Ring {
        Ring::new(names.iter().map(String::as_str).zip(weights), 0)
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("shop/orders-{number}")).collect()
    }

    #[test]
    fn nobody_and_nothing_have_no_place() {
        assert_eq!(Ring::new([], 0).walk(7).next(), None);
        assert_eq!(Ring::new([("a", 0), ("b", 0)], 0).walk(7).next(), None);
        assert!(Ring::new([("a", 0), ("b", 1)], 0).walk(u64::MAX).all(|place| place == 1));
    }

    #[test]
    fn shares_follow_weights() {
        let weights = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3];
        let ring = ring(&names(11), weights);
        let mut counts = [0u32; 11];
        let mut random = generator(3);
        for _ in 0..260_000 {
            counts[ring.walk(random()).next().unwrap()] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let expected = 10_000 * weight;
            assert!(count.abs_diff(expected) < expected * 3 / 10, "{counts:?}");
        }
    }

    #[test]
    fn the_size_is_bounded() {
        for (weights, most) in [
            (vec![1; 11], 11 * POINTS),
            (vec![1; 100_000], MAX_POINTS),
            ([&[u32::MAX][..], &[1; 100_000]].concat(), MAX_POINTS + 100_000),
        ] {
            let total = weights.iter().copied().map(u64::from).sum();
            let endpoints = weights.len() as u64;
            let points: u64 =
                weights.iter().map(|weight| points_of(*weight, total, endpoints, 0)).sum();
            assert!((most / 2..=most).contains(&points), "{points}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whoever leaves, the requests of all others stay where they were; the order of endpoints does not matter.
        #[test]
        fn only_what_must_moves(count in 2usize..30, gone: prop::sample::Index, seed: u64) {
            let names = names(count);
            let gone = gone.index(count);
            let left: Vec<String> =
                names.iter().rev().filter(|name| *name != &names[gone]).cloned().collect();
            let before = ring(&names, vec![1; count]);
            let after = ring(&left, vec![1; count - 1]);
            let mut random = generator(seed);
            for _ in 0..300 {
                let hash = random();
                let was = &names[before.walk(hash).next().unwrap()];
                let is = &left[after.walk(hash).next().unwrap()];
                prop_assert!(was == is || *was == names[gone], "{was} became {is}");
                let fallback = before.walk(hash).map(|place| &names[place]);
                let expected = fallback.into_iter().find(|name| **name != names[gone]);
                prop_assert_eq!(expected, Some(is), "who leaves is who is skipped");
            }
        }

        /// A walk reaches everybody that has a weight.
        #[test]
        fn a_walk_reaches_everybody(weights in proptest::collection::vec(0u32..5, 0..20), hash: u64) {
            let ring = ring(&names(weights.len()), weights.iter().copied());
            let mut reached = vec![false; weights.len()];
            ring.walk(hash).for_each(|place| reached[place] = true);
            let expected: Vec<bool> = weights.iter().map(|weight| *weight > 0).collect();
            prop_assert_eq!(reached, expected);
        }
    }
}

//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section
//! 3.4): a table of which each endpoint gets almost exactly its share, and one look per request. When endpoints come
//! or go a few more requests move than on a [ring](super::ring_hash).

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use super::hash::hash;

/// How large a table is: a prime, so that every endpoint's order visits all of it. It is chosen, not derived from the
/// number of endpoints: with another size everybody's requests move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Size {
    /// 65,537 entries (256 KiB), as in Envoy: shares are within a hundredth up to some 650 endpoints.
    #[default]
    Standard,
    /// 4,093 entries (16 KiB), for up to some 40 endpoints.
    #[cfg(test)]
    Small,
}

/// A filled table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Places of endpoints; empty where nobody has a weight.
    entries: Box<[u32]>,
}

/// An endpoint in the order in which it wants the table's entries.
struct Claim {
    place: u32,
    weight: u32,
    next: u64,
    skip: u64,
}

impl Size {
    /// The number of entries.
    pub fn entries(self) -> usize {
        match self {
            Self::Standard => 65_537,
            #[cfg(test)]
            Self::Small => 4_093,
        }
    }
}

impl Table {
    /// A table of endpoints by name and weight. The name is what keeps an endpoint its requests: it should not change
    /// as others come and go. Who weighs nothing, or comes second with the same name, gets nothing; of more endpoints
    /// than entries some get nothing, too.
    pub fn new<'a>(endpoints: impl IntoIterator<Item = (&'a str, u32)>, size: Size) -> Self {
        let mut seen = BTreeSet::new();
        let mut endpoints: Vec<(u64, u32, u32)> = endpoints
            .into_iter()
            .enumerate()
            .filter(|(_, (name, weight))| *weight > 0 && seen.insert(*name))
            .map(|(place, (name, weight))| (hash(name.as_bytes(), 1), place as u32, weight))
            .collect();
        // Who is first with equal claims must not depend on the order in which endpoints are listed.
        endpoints.sort_unstable();
        let length = size.entries() as u64;
        let claims = endpoints.into_iter().map(|(own, place, weight)| Claim {
            place,
            weight,
            next: own % length,
            skip: own.rotate_left(32) % (length - 1) + 1,
        });
        Self { entries: fill(claims.collect(), size.entries()) }
    }

    /// Places of endpoints for a request with this hash, the one it belongs to first and then those it falls back to.
    /// Places come up more than once.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let start = super::below(hash, self.entries.len() as u64) as usize;
        let (before, behind) = self.entries.split_at(start);
        behind.iter().chain(before).map(|place| *place as usize)
    }
}

/// Endpoints take turns by weight, each taking the first free entry in its own order.
fn fill(mut claims: Vec<Claim>, length: usize) -> Box<[u32]> {
    const FREE: u32 = u32::MAX;
    let mut turns: BinaryHeap<Reverse<(u128, usize)>> =
        claims.iter().enumerate().map(|(at, claim)| Reverse((due(1, claim.weight), at))).collect();
    let mut taken = vec![0u64; claims.len()];
    let mut entries = vec![FREE; length];
    let mut free = length;
    while free > 0
        && let Some(Reverse((_, at))) = turns.pop()
    {
        let claim = &mut claims[at];
        while entries[claim.next as usize] != FREE {
            claim.next = (claim.next + claim.skip) % length as u64;
        }
        entries[claim.next as usize] = claim.place;
        free -= 1;
        taken[at] += 1;
        turns.push(Reverse((due(taken[at] + 1, claim.weight), at)));
    }
    if free > 0 { Box::default() } else { entries.into_boxed_slice() }
}

/// When the `turn`-th turn of an endpoint comes: twice the weight, twice as often.
fn due(turn: u64, weight: u32) -> u128 {
    (u128::from(turn) << 64) / u128::from(weight.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("shop/orders-{number}")).collect()
    }

    fn table(names: &[String], weights: &[u32], size: Size) -> Table {
        Table::new(names.iter().map(String::as_str).zip(weights.iter().copied()), size)
    }

    fn counts(table: &Table, endpoints: usize) -> Vec<usize> {
        let mut counts = vec![0; endpoints];
        table.entries.iter().for_each(|place| counts[*place as usize] += 1);
        counts
    }

    #[test]
    fn nobody_and_nothing_have_no_place() {
        for endpoints in [&[][..], &[("a", 0)], &[("a", 0), ("b", 0)]] {
            let table = Table::new(endpoints.iter().copied(), Size::Small);
            assert_eq!(table.walk(u64::MAX).next(), None);
        }
        let only = Table::new([("a", 0), ("b", 1)], Size::Small);
        assert!(only.walk(u64::MAX).all(|place| place == 1));
        let twins = Table::new([("a", 1), ("a", 1)], Size::Small);
        assert!(twins.walk(0).all(|place| place == 0));
    }

    #[test]
    fn more_endpoints_than_entries_leave_some_without() {
        let names = names(5_000);
        let table = table(&names, &[1; 5_000], Size::Small);
        assert!(counts(&table, 5_000).iter().all(|count| *count <= 1));
    }

    #[test]
    fn the_sizes_are_primes() {
        for size in [Size::Standard, Size::Small] {
            let entries = size.entries();
            assert!((2..entries).take_while(|d| d * d <= entries).all(|d| entries % d != 0));
        }
    }

    /// How many of the requests that could have stayed move, in tenths of a percent.
    fn moved(before: &Table, after: &Table, gone: usize) -> usize {
        let stay =
            before.entries.iter().zip(&after.entries).filter(|(was, _)| **was != gone as u32);
        let moved = stay.clone().filter(|(was, is)| was != is).count();
        moved * 1000 / stay.count()
    }

    #[test]
    fn few_of_those_that_could_stay_move() {
        for (count, size) in
            [(2, Size::Small), (11, Size::Small), (11, Size::Standard), (100, Size::Standard)]
        {
            let names = names(count);
            let before = table(&names, &vec![1; count], size);
            for gone in 0..count.min(11) {
                let mut weights = vec![1; count];
                weights[gone] = 0;
                let moved = moved(&before, &table(&names, &weights, size), gone);
                // What is left of the table when one goes is filled again from the front of everybody's order.
                assert!(moved <= 50, "{moved} in a thousand of {count}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Nobody gets more than a turn over or under its share, whatever the weights.
        #[test]
        fn shares_follow_weights(weights in proptest::collection::vec(0u32..1000, 1..60)) {
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            prop_assume!(total > 0);
            let table = table(&names(weights.len()), &weights, Size::Small);
            for (count, weight) in counts(&table, weights.len()).into_iter().zip(&weights) {
                let share = 4_093.0 * f64::from(*weight) / total as f64;
                prop_assert!((count as f64 - share).abs() <= 2.0, "{count} for {share}");
            }
        }

        /// The order in which endpoints are listed does not matter.
        #[test]
        fn every_proxy_fills_the_same_table(weights in proptest::collection::vec(1u32..9, 1..20)) {
            let names = names(weights.len());
            let forward = table(&names, &weights, Size::Small);
            let reversed: Vec<String> = names.iter().rev().cloned().collect();
            let weights: Vec<u32> = weights.iter().rev().copied().collect();
            let backward = table(&reversed, &weights, Size::Small);
            let last = names.len() as u32 - 1;
            prop_assert!(forward.entries.iter().zip(&backward.entries).all(|(one, other)| *one == last - other));
        }
    }
}

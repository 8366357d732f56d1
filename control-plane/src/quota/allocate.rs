//! Max-min fairness: nobody gets more than they ask for while somebody else has too little.

/// All of a limit, in millionths.
pub const WHOLE: u32 = 1_000_000;
/// A twentieth is divided equally whatever is asked for: who had nothing to do until now can begin at once. So a limit
/// may be used to 95 % where all of the demand is at one of many.
const FLOOR: u32 = WHOLE / 20;

/// What each should have who asks for `demands`, in millionths of the limit; together no more than [`WHOLE`]. What
/// nobody asks for is divided equally, for bursts.
pub fn allocate(demands: &[u32]) -> Vec<u32> {
    let Ok(number) = u32::try_from(demands.len()) else { return vec![0; demands.len()] };
    if number == 0 {
        return Vec::new();
    }
    let floor = FLOOR / number;
    let mut left = WHOLE - floor * number;
    let mut shares = vec![floor; demands.len()];
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_unstable_by_key(|at| demands[*at]);
    for (waiting, at) in (1..=number).rev().zip(order) {
        let more = demands[at].saturating_sub(floor).min(left / waiting);
        shares[at] += more;
        left -= more;
    }
    shares.iter_mut().for_each(|share| *share += left / number);
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn by_demand_and_fair() {
        assert_eq!(allocate(&[]), Vec::<u32>::new());
        assert_eq!(allocate(&[0]), [WHOLE]);
        assert_eq!(allocate(&[u32::MAX]), [WHOLE]);
        // All of the demand is at one: it gets nearly everything.
        assert_eq!(allocate(&[3_000_000, 0, 0]), [966_668, 16_666, 16_666]);
        // Each asks for too much: equal shares.
        assert_eq!(allocate(&[5_000_000, 900_000, 800_000, 4_000_000]), [250_000; 4]);
        // One asks for little and gets it; the others share the rest.
        let shares = allocate(&[100_000, 900_000, 900_000]);
        assert!(shares[0] >= 100_000 && shares[1] == shares[2] && shares[1] >= 449_000);
        // Enough for all: everybody gets more than they ask for.
        assert!(allocate(&[100_000, 200_000]).iter().zip([100_000, 200_000]).all(|(a, b)| *a > b));
    }

    proptest! {
        #[test]
        fn never_more_than_all_and_nobody_starves_for_a_richer_one(
            demands in proptest::collection::vec(0u32..3_000_000, 1..200),
        ) {
            let shares = allocate(&demands);
            let all: u64 = shares.iter().map(|share| u64::from(*share)).sum();
            let number = u64::try_from(shares.len()).unwrap();
            prop_assert!(all <= u64::from(WHOLE) && all + 2 * number >= u64::from(WHOLE));
            let richest = *shares.iter().max().unwrap();
            for (demand, share) in demands.iter().zip(&shares) {
                prop_assert!(*share >= FLOOR / u32::try_from(number).unwrap());
                // Whoever has less than it asks for has as much as anybody, but for what divisions leave.
                let satisfied = share >= demand;
                prop_assert!(satisfied || richest - share <= u32::try_from(number).unwrap());
            }
        }
    }
}

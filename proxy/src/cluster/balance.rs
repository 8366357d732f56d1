//! Which endpoint is next. Pure: state comes in as arguments.

pub mod bounded;
pub mod draw;
pub mod hash;
pub mod maglev;
pub mod ring_hash;
pub mod zone;

/// What a balancer needs to know of an endpoint.
pub trait Candidate {
    /// At least 1.
    fn weight(&self) -> u32;
    /// Exchanges under way.
    fn active(&self) -> u32;
}

/// In turn by weight: of `turn = 0, 1, 2, ...` each candidate gets its weight's share of every full round.
pub fn round_robin<C: Candidate>(candidates: &[C], turn: u64) -> Option<usize> {
    let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight())).sum();
    if total == candidates.len() as u64 {
        return usize::try_from(turn.checked_rem(total)?).ok();
    }
    // A step coprime to the total spreads the turns of a heavy candidate over the round.
    let step = (1..=total * 5 / 8).rev().find(|step| gcd(*step, total) == 1).unwrap_or(1);
    let at = (u128::from(turn.checked_rem(total)?) * u128::from(step) % u128::from(total)) as u64;
    at_weight(candidates, at)
}

/// At random, by weight.
pub fn random<C: Candidate>(candidates: &[C], random: &mut dyn FnMut() -> u64) -> Option<usize> {
    match candidates.len() {
        0 => None,
        1 => Some(0),
        _ => {
            let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight())).sum();
            at_weight(candidates, below(random(), total))
        }
    }
}

/// Power of two choices: of two different candidates, the one with fewer exchanges for its weight, and of two alike the
/// first. (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.)
///
/// The two are drawn by weight: drawn evenly, the heavier of two idle ones would always win, and a heavy one among many
/// would rarely be seen. That looks at all candidates, so it is left out where weights are `even`.
pub fn least_request<C: Candidate>(
    candidates: &[C],
    even: bool,
    random: &mut dyn FnMut() -> u64,
) -> Option<usize> {
    let (first, second) = match candidates.len() {
        0 => return None,
        1 => return Some(0),
        _ if even => two_of(candidates.len(), random()),
        _ => two_by_weight(candidates, random)?,
    };
    let load = |at: usize| u64::from(candidates[at].active());
    let weight = |at: usize| u64::from(candidates[at].weight());
    let less = load(second) * weight(first) < load(first) * weight(second);
    Some(if less { second } else { first })
}

/// Two different places, from one draw.
fn two_of(count: usize, bits: u64) -> (usize, usize) {
    let limit = count as u64;
    let first = below(bits << 32, limit) as usize;
    let step = below(bits & 0xffff_ffff_0000_0000, limit - 1) as usize;
    (first, (first + 1 + step) % count)
}

/// Two different places, each as likely as its weight says.
fn two_by_weight<C: Candidate>(
    candidates: &[C],
    random: &mut dyn FnMut() -> u64,
) -> Option<(usize, usize)> {
    let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight())).sum();
    let first = at_weight(candidates, below(random(), total))?;
    let others = total - u64::from(candidates[first].weight());
    let (before, behind) = (&candidates[..first], &candidates[first + 1..]);
    let at = below(random(), others);
    let second = at_weight(before, at).or_else(|| {
        let passed: u64 = before.iter().map(|candidate| u64::from(candidate.weight())).sum();
        at_weight(behind, at - passed).map(|place| first + 1 + place)
    })?;
    Some((first, second))
}

/// Maps uniform `random` to `0..limit`.
fn below(random: u64, limit: u64) -> u64 {
    ((u128::from(random) * u128::from(limit)) >> 64) as u64
}

fn at_weight<C: Candidate>(candidates: &[C], mut at: u64) -> Option<usize> {
    candidates.iter().position(|candidate| {
        let weight = u64::from(candidate.weight());
        let hit = at < weight;
        at = at.wrapping_sub(weight);
        hit
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Fake {
        weight: u32,
        active: u32,
    }

    impl Candidate for Fake {
        fn weight(&self) -> u32 {
            self.weight
        }
        fn active(&self) -> u32 {
            self.active
        }
    }

    fn fakes(weights: &[u32]) -> Vec<Fake> {
        weights.iter().map(|weight| Fake { weight: *weight, active: 0 }).collect()
    }

    /// SplitMix64: deterministic and uniform.
    pub(in crate::cluster) fn generator(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    #[test]
    fn nobody_is_picked_from_nobody() {
        let none: &[Fake] = &[];
        assert_eq!(round_robin(none, 3), None);
        assert_eq!(random(none, &mut generator(1)), None);
        assert_eq!(least_request(none, true, &mut generator(1)), None);
    }

    #[test]
    fn the_less_busy_of_two_is_picked() {
        let candidates = [Fake { weight: 1, active: 10 }, Fake { weight: 1, active: 0 }];
        let mut random = generator(7);
        assert!((0..1000).all(|_| least_request(&candidates, true, &mut random) == Some(1)));
        // Twice the weight carries twice the load.
        let candidates = [Fake { weight: 4, active: 10 }, Fake { weight: 1, active: 4 }];
        assert!((0..1000).all(|_| least_request(&candidates, false, &mut random) == Some(0)));
    }

    #[test]
    fn equal_candidates_get_equal_shares() {
        let candidates = fakes(&[1; 7]);
        let least = |even| {
            move |candidates: &[Fake], random: &mut dyn FnMut() -> u64| {
                least_request(candidates, even, random)
            }
        };
        type Pick = Box<dyn Fn(&[Fake], &mut dyn FnMut() -> u64) -> Option<usize>>;
        let picks: [Pick; 3] =
            [Box::new(least(true)), Box::new(least(false)), Box::new(super::random::<Fake>)];
        for pick in picks {
            let mut counts = [0u32; 7];
            let mut random = generator(42);
            for _ in 0..70_000 {
                counts[pick(&candidates, &mut random).unwrap()] += 1;
            }
            assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        }
    }

    proptest! {
        /// Every full round gives each candidate exactly its weight.
        #[test]
        fn rounds_are_fair(weights in proptest::collection::vec(1u32..20, 1..8), start in 0u64..1000) {
            let candidates = fakes(&weights);
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let mut counts = vec![0u32; weights.len()];
            for turn in start * total..(start + 1) * total {
                counts[round_robin(&candidates, turn).unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn random_shares_follow_weights(weights in proptest::collection::vec(1u32..10, 2..6), seed: u64) {
            let candidates = fakes(&weights);
            let total: u32 = weights.iter().sum();
            let mut counts = vec![0u32; weights.len()];
            let mut idle = counts.clone();
            let mut generator = generator(seed);
            for _ in 0..10_000 {
                counts[random(&candidates, &mut generator).unwrap()] += 1;
                idle[least_request(&candidates, false, &mut generator).unwrap()] += 1;
            }
            for (counts, weight) in counts.iter().zip(&idle).zip(&weights) {
                let expected = 10_000 * weight / total;
                let fits = |count: &u32| count.abs_diff(expected) < 300;
                prop_assert!(fits(counts.0) && fits(counts.1), "{:?} for {:?}", counts, weights);
            }
        }
    }
}

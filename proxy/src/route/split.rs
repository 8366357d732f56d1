//! Shares of the traffic, by weight.

/// Things with weights, one of which is picked by a random number.
#[derive(Clone, Debug)]
pub struct Split<T> {
    /// Each with the sum of the weights up to and including it.
    parts: Box<[(u64, T)]>,
}

impl<T> Split<T> {
    /// Parts of weight 0 are left out: they take no traffic.
    pub fn new(parts: impl IntoIterator<Item = (u32, T)>) -> Self {
        let mut sum = 0;
        let parts = parts.into_iter().filter(|(weight, _)| *weight > 0).map(|(weight, part)| {
            sum += u64::from(weight);
            (sum, part)
        });
        Self { parts: parts.collect() }
    }

    /// The part that `random` (uniform over `u64`) falls on; `None` when there is nothing with a weight.
    pub fn pick(&self, random: impl FnOnce() -> u64) -> Option<&T> {
        self.get(self.pick_index(random)?)
    }

    /// The place of that part, for [`get`](Self::get).
    pub fn pick_index(&self, random: impl FnOnce() -> u64) -> Option<usize> {
        match &*self.parts {
            [] => None,
            [_] => Some(0),
            parts => {
                let total = parts.last().map_or(1, |(sum, _)| *sum);
                // Multiply-shift keeps the bias below 2^-32 for the largest total possible (64 x 10^6).
                let at = ((u128::from(random()) * u128::from(total)) >> 64) as u64;
                Some(parts.partition_point(|(sum, _)| *sum <= at))
            }
        }
    }

    /// The part in that place.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.parts.get(index).map(|(_, part)| part)
    }

    /// The parts with their weights.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let mut before = 0;
        self.parts.iter().map(move |(sum, part)| {
            let weight = sum - before;
            before = *sum;
            (weight, part)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_follow_the_weights() {
        let split = Split::new([(90, "a"), (0, "never"), (10, "b")]);
        let step = u64::MAX / 1000;
        let b = (0..1000).filter(|i| split.pick(|| i * step) == Some(&"b")).count();
        assert!((98..=102).contains(&b), "{b}");
        assert_eq!(split.pick(|| u64::MAX), Some(&"b"));
        assert_eq!(Split::<()>::new([(0, ())]).pick(|| 1), None);
    }

    proptest! {
        #[test]
        fn something_with_a_weight_is_always_picked(
            weights in proptest::collection::vec(0u32..=1_000_000, 0..8),
            random: u64,
        ) {
            let split = Split::new(weights.iter().copied().map(|weight| (weight, weight)));
            let picked = split.pick(|| random);
            prop_assert_eq!(picked.is_some(), weights.iter().any(|weight| *weight > 0));
            prop_assert!(picked.is_none_or(|weight| *weight > 0));
        }
    }
}

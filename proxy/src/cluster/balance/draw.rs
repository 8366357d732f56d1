//! Drawing candidates by weight in constant time.

/// A prepared draw of one of many by weight: Walker's alias method (1974) as Vose builds it (1991).
#[derive(Clone, Debug)]
pub struct Draw {
    /// None where all have the same weight.
    columns: Box<[Column]>,
    count: usize,
    /// Of all weights.
    total: f64,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    /// Weight over the mean of all.
    weight: f64,
    /// Below it the column itself is drawn, else its alias.
    threshold: u64,
    alias: u32,
}

impl Draw {
    /// Prepares to draw by `weights`. Who weighs nothing is never drawn; where all weigh nothing, nobody is.
    pub fn new(weights: &[u32]) -> Self {
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        if total == 0.0 {
            return Self { columns: Box::default(), count: 0, total };
        }
        let count = weights.len();
        if weights.iter().all(|weight| *weight == weights[0]) {
            return Self { columns: Box::default(), count, total };
        }
        let mean = total / count as f64;
        let column = |(place, weight): (usize, &u32)| Column {
            weight: f64::from(*weight) / mean,
            threshold: u64::MAX,
            alias: place as u32,
        };
        let mut columns: Box<[Column]> = weights.iter().enumerate().map(column).collect();
        fill(&mut columns);
        Self { columns, count, total }
    }

    /// All weights together.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// How many there are to draw from; none where all weigh nothing.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nobody can be drawn.
    #[cfg_attr(not(test), expect(dead_code, reason = "belongs to `len`"))]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A weight over the mean of all; 0 for who is not there.
    pub fn weight(&self, place: usize) -> f64 {
        match self.columns.get(place) {
            Some(column) => column.weight,
            None => f64::from(u8::from(place < self.count)),
        }
    }

    /// One of them, from uniform `random`; `None` where there is nobody.
    pub fn draw(&self, random: u64) -> Option<usize> {
        Some(self.drawn(random)?.0)
    }

    /// One of them that is not at `place`; `None` where there is nobody else. If `place` itself is drawn it is any of
    /// the others: who is far heavier than they are is still compared with one of them.
    pub fn draw_other(&self, place: usize, random: u64) -> Option<usize> {
        let (drawn, rest) = self.drawn(random)?;
        if drawn != place {
            return Some(drawn);
        }
        let others = self.count as u64 - 1;
        let step = 1 + super::below(rest, others) as usize;
        let other = (place + step) % self.count;
        (others > 0 && self.weight(other) > 0.0).then_some(other)
    }

    /// One of them, and a number that is uniform whoever it is.
    fn drawn(&self, random: u64) -> Option<(usize, u64)> {
        if self.count == 0 {
            return None;
        }
        let product = u128::from(random) * self.count as u128;
        // The product's upper half is the place, its lower half again uniform.
        let (place, rest) = ((product >> 64) as usize, product as u64);
        let drawn = match self.columns.get(place) {
            Some(column) if rest >= column.threshold => column.alias as usize,
            _ => place,
        };
        // Its upper digits decided between column and alias, its lower ones did not.
        Some((drawn, rest << 32))
    }
}

/// Every column below the mean is filled up from one above it.
fn fill(columns: &mut [Column]) {
    let mut left: Vec<f64> = columns.iter().map(|column| column.weight).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..columns.len()).partition(|place| left[*place] < 1.0);
    while let (Some(short), Some(giver)) = (small.pop(), large.last().copied()) {
        columns[short].threshold = (left[short] * 2f64.powi(64)) as u64;
        columns[short].alias = giver as u32;
        left[giver] -= 1.0 - left[short];
        if left[giver] < 1.0 {
            large.pop();
            small.push(giver);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::generator, *};

    #[test]
    fn nobody_is_drawn_where_all_weigh_nothing() {
        for weights in [&[][..], &[0], &[0, 0, 0]] {
            assert!(Draw::new(weights).is_empty());
            assert_eq!(Draw::new(weights).draw(u64::MAX), None);
        }
    }

    #[test]
    fn the_ends_of_the_range_are_drawn() {
        let draw = Draw::new(&[1, 1, 1]);
        assert_eq!((draw.draw(0), draw.draw(u64::MAX)), (Some(0), Some(2)));
        assert_eq!((draw.len(), draw.weight(2), draw.weight(3)), (3, 1.0, 0.0));
    }

    proptest! {
        #[test]
        fn shares_follow_weights(weights in proptest::collection::vec(0u32..10, 1..8), seed: u64) {
            let draw = Draw::new(&weights);
            let total: u32 = weights.iter().sum();
            prop_assume!(total > 0);
            let mut counts = vec![0u32; weights.len()];
            let mut random = generator(seed);
            for _ in 0..10_000 {
                counts[draw.draw(random()).unwrap()] += 1;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert!(count.abs_diff(10_000 * weight / total) < 300, "{counts:?}");
                prop_assert!(*weight > 0 || *count == 0);
            }
        }

        #[test]
        fn whatever_the_weights_somebody_who_has_one_is_drawn(
            weights in proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(u32::MAX), any::<u32>()], 1..40),
            random: [u64; 8],
        ) {
            let draw = Draw::new(&weights);
            for random in random {
                let drawn = draw.draw(random);
                let other = drawn.and_then(|place| draw.draw_other(place, random.rotate_left(32)));
                prop_assert!(other.is_none() || other != drawn);
                prop_assert!(other.is_none_or(|place| weights[place] > 0));
                prop_assert_eq!(drawn.is_none(), weights.iter().all(|weight| *weight == 0));
                prop_assert!(drawn.is_none_or(|place| weights[place] > 0));
            }
        }
    }
}

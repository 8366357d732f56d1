//! Requests whose popularity follows Zipf's law: the object of rank `k` is asked for with a probability that is
//! proportional to `1 / k`.

/// An endless trace; the same for the same seed.
pub struct Zipf {
    /// Of all objects up to the one at this place, as a share of all.
    cumulative: Vec<f64>,
    state: u64,
}

impl Zipf {
    /// Over so many objects, with exponent 1.0.
    pub fn new(objects: usize, seed: u64) -> Self {
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = (1..=objects)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        cumulative.iter_mut().for_each(|share| *share /= sum);
        Zipf { cumulative, state: seed }
    }

    /// How likely one of the `most` most popular is asked for: what no rule can beat that is told nothing of the future.
    pub fn share_of(&self, most: usize) -> f64 {
        most.checked_sub(1).and_then(|last| self.cumulative.get(last)).copied().unwrap_or(0.0)
    }

    /// SplitMix64: good enough for traces, and the same everywhere.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// The next object, from 0.
    pub fn object(&mut self) -> usize {
        let share = (self.random() >> 11) as f64 / (1_u64 << 53) as f64;
        self.cumulative.partition_point(|up_to| *up_to <= share).min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_asked_for_as_zipf_says() {
        let mut zipf = Zipf::new(1000, 1);
        let mut counts = vec![0_u32; 1000];
        for _ in 0..1_000_000 {
            counts[zipf.object()] += 1;
        }
        // The sum of 1/k up to 1000 is 7.485.
        for (object, count) in [(0, 133_600.0), (1, 66_800.0), (9, 13_360.0)] {
            let found = f64::from(counts[object]);
            assert!((found / count - 1.0).abs() < 0.03, "{object}: {found}");
        }
        assert!((zipf.share_of(10) - 0.3913).abs() < 1e-3);
        assert!(zipf.share_of(0) < 1e-9 && (zipf.share_of(1000) - 1.0).abs() < 1e-9);
    }
}

//! Chance, the same for the same seed.

use std::{f64::consts::TAU, time::Duration};

/// SplitMix64: 64 uniform bits a step.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Two seeds have nothing in common.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether something happens that does so with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.uniform() <= probability
    }

    /// The time to the next of independent events (Poisson), on average `mean`.
    pub fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-self.uniform().ln())
    }

    /// A time like those that services take: few are much longer than most. On average `mean`; `spread` is the standard
    /// deviation of its logarithm.
    pub fn log_normal(&mut self, mean: Duration, spread: f64) -> Duration {
        // Box and Muller's.
        let normal = (-2.0 * self.uniform().ln()).sqrt() * (TAU * self.uniform()).cos();
        mean.mul_f64((spread * normal - spread * spread / 2.0).exp())
    }

    /// Above 0, up to 1.
    fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

#[test]
fn chance_has_the_means_it_is_asked_for() {
    let mut random = Random::new(1);
    let mean = Duration::from_millis(20);
    let mut of = |draw: &dyn Fn(&mut Random) -> Duration| {
        (0..20_000).map(|_| draw(&mut random)).sum::<Duration>().as_secs_f64() / 400.0
    };
    assert!((of(&|random| random.exponential(mean)) - 1.0).abs() < 0.05);
    assert!((of(&|random| random.log_normal(mean, 0.5)) - 1.0).abs() < 0.05);
}

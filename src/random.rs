//! Random numbers for initial weights and for the order of samples: xoshiro256++, seeded by SplitMix64.
//!
//! One seed gives one sequence, on every machine and for any number of threads; a changed sequence would be a
//! breaking change. Only the last bits of [`Rng::normal`] are the platform's, whose logarithm, sine and cosine it takes. Not
//! for secrets.
//!
//! Sources: David Blackman and Sebastiano Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS
//! 47 (2021), with the public-domain `xoshiro256plusplus.c`; Guy Steele, Doug Lea and Christine Flood, "Fast
//! splittable pseudorandom number generators", OOPSLA 2014, with the public-domain `splitmix64.c`; George Box
//! and Mervin Muller, "A note on the generation of random normal deviates", Ann. Math. Statist. 29 (1958).
#![forbid(unsafe_code)]

use crate::element::Element;

/// A generator of random numbers.
///
/// ```
/// use tilewise::random::Rng;
/// let mut rng = Rng::seed(7);
/// let x: f32 = rng.uniform(-1.0, 1.0);
/// assert!((-1.0..=1.0).contains(&x));
/// assert_eq!(Rng::seed(7).uniform(-1.0f32, 1.0), x);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Rng {
    state: [u64; 4],
    /// The second of the last two normal values.
    spare: Option<f64>,
}

/// The next value of SplitMix64.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Value number `index` of SplitMix64 from `seed`: any of them, without those before.
#[inline]
pub(crate) fn at(seed: u64, index: u64) -> u64 {
    split_mix(&mut seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

impl Rng {
    /// The generator whose state is the first four values of SplitMix64 from `seed`.
    pub fn seed(mut seed: u64) -> Self {
        Self { state: std::array::from_fn(|_| split_mix(&mut seed)), spare: None }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in 0 ≤ x < 1, a multiple of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2f64.powi(-53)
    }

    /// Uniform between `low` and `high`; rounding to `T` may give `high` itself.
    pub fn uniform<T: Element>(&mut self, low: T, high: T) -> T {
        let (low, high, unit) = (low.to_f64(), high.to_f64(), self.unit());
        let span = high - low;
        // Where the span overflows, the bounds have two signs, and their parts cannot.
        let x = if span.is_finite() { low + span * unit } else { low * (1.0 - unit) + high * unit };
        T::from_f64(x)
    }

    /// Normal with this mean and standard deviation, by the transform of Box and Muller. Its last bits may differ from
    /// platform to platform.
    pub fn normal<T: Element>(&mut self, mean: T, deviation: T) -> T {
        let standard = self.spare.take().unwrap_or_else(|| {
            // 1 − u is in 0 < x ≤ 1, whose logarithm is finite.
            let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
            self.spare = Some(radius * sin);
            radius * cos
        });
        T::from_f64(mean.to_f64() + deviation.to_f64() * standard)
    }

    /// Uniform in 0 ≤ n < `bound`, without bias; 0 where `bound` is 0.
    ///
    /// ```
    /// assert!(tilewise::random::Rng::seed(1).below(10) < 10);
    /// ```
    pub fn below(&mut self, bound: usize) -> usize {
        // Daniel Lemire, "Fast random integer generation in an interval", ACM TOMACS 29 (2019).
        let bound = bound as u64;
        if bound == 0 {
            return 0;
        }
        let reject = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            if product as u64 >= reject {
                return (product >> 64) as usize;
            }
        }
    }

    /// Puts the items in a random order, every order equally likely (Fisher and Yates).
    ///
    /// ```
    /// let mut order = [0, 1, 2, 3];
    /// tilewise::random::Rng::seed(1).shuffle(&mut order);
    /// order.sort();
    /// assert_eq!(order, [0, 1, 2, 3]);
    /// ```
    pub fn shuffle<X>(&mut self, items: &mut [X]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_gives_the_published_values() {
        // The output of splitmix64.c from state 1234567.
        let mut state = 1_234_567;
        let values: [u64; 5] = std::array::from_fn(|_| split_mix(&mut state));
        assert_eq!(
            values,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821,
            ]
        );
        assert!((0..5).all(|i| at(1_234_567, i as u64) == values[i]));
    }

    #[test]
    fn xoshiro_gives_the_published_values() {
        // The output of xoshiro256plusplus.c from state 1, 2, 3, 4.
        let mut rng = Rng { state: [1, 2, 3, 4], spare: None };
        let values: [u64; 10] = std::array::from_fn(|_| rng.bits());
        assert_eq!(
            values,
            [
                41_943_041,
                58_720_359,
                3_588_806_011_781_223,
                3_591_011_842_654_386,
                9_228_616_714_210_784_205,
                9_973_669_472_204_895_162,
                14_011_001_112_246_962_877,
                12_406_186_145_184_390_807,
                15_849_039_046_786_891_736,
                10_450_023_813_501_588_000,
            ]
        );
    }

    #[test]
    fn uniform_values_stay_within_bounds_whose_span_overflows() {
        let mut rng = Rng::seed(4);
        let values: Vec<f64> = (0..100).map(|_| rng.uniform(-f64::MAX, f64::MAX)).collect();
        assert!(values.iter().all(|x| x.is_finite()));
        assert!(values.iter().any(|&x| x < -1e307) && values.iter().any(|&x| x > 1e307));
        // Ordinary bounds have the bits that they always had.
        assert_eq!(Rng::seed(4).uniform(-1.0, 2.0), -1.0 + 3.0 * Rng::seed(4).unit());
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut rng = Rng::seed(3);
        let moments = |values: &[f64]| {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            (mean, values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
        };
        let n = 200_000;
        // Five standard deviations of the estimates: σ/√n for the mean, at most 1.5 σ²/√n for the variance.
        let near = |found: f64, expected: f64, sigma: f64| {
            assert!((found - expected).abs() < 5.0 * sigma / (n as f64).sqrt(), "{found} {expected}");
        };
        let (mean, variance) = moments(&(0..n).map(|_| rng.uniform(-1.0, 2.0)).collect::<Vec<_>>());
        near(mean, 0.5, 0.75f64.sqrt());
        near(variance, 0.75, 0.75);
        let (mean, variance) = moments(&(0..n).map(|_| rng.normal(1.0, 2.0)).collect::<Vec<_>>());
        near(mean, 1.0, 2.0);
        near(variance, 4.0, 6.0);
    }

    #[test]
    fn integers_stay_below_their_bound_and_reach_all_values() {
        let mut rng = Rng::seed(5);
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
        let mut seen = [0; 7];
        (0..7000).for_each(|_| seen[rng.below(7)] += 1);
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
    }
}

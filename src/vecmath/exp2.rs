//! 2ˣ for the weights of attention, whose scores are kept in units of ln 2.
//!
//! x = n + r with n an integer and |r| ≤ 1/2, rounded as in [`exp`](super::exp), and no product with ln 2 at all:
//! 2ʳ = 1 + r·q(r), q near the minimax polynomial of (2ʳ − 1)/r under a relative error.

use super::polynomial;
use crate::simd::Simd;

/// Relative error 2^−23.4, 1.4 ε in all with the rounding of each step.
#[allow(clippy::approx_constant, reason = "the first is near ln 2, and not it")]
const F32: [f32; 5] = [0.693_147, 0.240_222_45, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

/// Relative error 2^−55.6.
#[allow(clippy::approx_constant, reason = "as above")]
const F64: [f64; 11] = [
    0.6931471805599457,
    0.24022650695910097,
    0.05550410866479039,
    0.009618129107607003,
    0.0013333558153439966,
    0.0001540353044157213,
    1.5252727385193868e-5,
    1.3215442675329823e-6,
    1.0180647659234139e-7,
    7.072570412814423e-9,
    4.078071929588337e-10,
];

macro_rules! function {
    ($T:ty, $M:literal, $name:ident, $q:ident, $round_biased:expr, $normal_from:literal) => {
        /// 2ˣ for x ≤ 1, 0 where that is no normal number; relative error at most 2 ε.
        #[inline(always)]
        pub(crate) fn $name<S: Simd<$T>>(s: S, x: S::V) -> S::V {
            let round = s.splat($round_biased);
            let sum = s.add(x, round);
            let r = s.sub(x, s.sub(sum, round));
            let e = s.mul_add(polynomial(s, r, &$q), r, s.splat(1.0));
            let e = s.mul(e, s.shl::<$M>(sum));
            // A product that underflows costs a hundred cycles on some processors.
            s.select(s.lt(x, s.splat($normal_from)), s.splat(0.0), e)
        }
    };
}

function!(f32, 23, exp2_normal_f32, F32, 12_582_912.0 + 127.0, -126.0);
function!(f64, 52, exp2_normal_f64, F64, 6_755_399_441_055_744.0 + 1023.0, -1022.0);

#[cfg(test)]
mod tests {
    use crate::element::Element;
    use crate::machine;
    use crate::simd::{Simd, SimdOp};

    struct Each<'a, T>(&'a [T], &'a mut [T]);

    impl<T: Element> SimdOp<T> for Each<'_, T> {
        type Output = ();

        #[inline(always)]
        fn eval<S: Simd<T>>(self, s: S) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                s.store_partial(T::exp2_normal_v(s, s.load_partial(x)), y);
            }
        }
    }

    fn check<T: Element>(smallest: f64, exact: impl Fn(f64) -> f64) {
        let mut x: Vec<T> = (0..400_000).map(|i| T::from_f64(-f64::from(i) * 0.003_171_3)).collect();
        x.extend([0.0, -0.5, -1.5, -1e30, 0.25].map(T::from_f64));
        x.extend([T::NEG_INFINITY, T::NAN]);
        for &isa in machine::supported() {
            let mut y = vec![T::NAN; x.len()];
            T::dispatch(isa, Each(&x, &mut y));
            for (&x, y) in x.iter().zip(&y) {
                let (x, y) = (x.to_f64(), y.to_f64());
                let expected = if x < smallest { 0.0 } else { exact(x) };
                let error = (y - expected).abs() / expected;
                assert!(
                    y == expected || error <= 2.0 * T::EPSILON.to_f64() || (y.is_nan() && x.is_nan()),
                    "{isa} {x}: {y} {expected}"
                );
            }
        }
    }

    #[test]
    fn powers_of_two_are_near() {
        check::<f32>(-126.0, f64::exp2);
        check::<f64>(-1022.0, f64::exp2);
    }
}

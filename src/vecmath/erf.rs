//! The error function 2/√π·∫₀ˣ e^(−t²) dt.

use super::exp::{exp_low_f64, expm1_f32};
use super::normal::mills_f64;
use super::polynomial;
use crate::simd::Simd;

/// erf x; error at most 2 ulp.
///
/// erf|x| = 1 − e⁻ʸ with y = −ln erfc|x| = |x| + |x|·q(|x|): one formula from 0, where y ≈ 2|x|/√π keeps the
/// relative error small, to the clamp, from which the result rounds to ±1. q is minimax (weighted Remez) for
/// the relative error of erf, to which an error of y contributes less and less as y grows: 2^−27.8.
#[inline(always)]
pub(crate) fn erf_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    const Q: [f32; 9] = [
        0.12837917,
        0.63661957,
        0.102776304,
        -0.019147826,
        -0.00016948441,
        0.0016756403,
        -0.0006373346,
        0.000118851065,
        -9.386667e-06,
    ];
    // In this order of operands NaN passes.
    let a = s.min(s.splat(3.95), s.abs(x));
    let y = s.mul_add(a, polynomial(s, a, &Q), a);
    s.copysign(expm1_f32(s, s.neg(y)), x)
}

/// erf x; error at most 4 ulp.
///
/// Below 1, x·p(x²) with p minimax (Remez, relative error 2^−54.8); from 1, 1 − e^(−x²)·erfcx x by
/// [`mills_f64`].
#[inline(always)]
pub(crate) fn erf_f64<S: Simd<f64>>(s: S, x: S::V) -> S::V {
    const P: [f64; 12] = [
        std::f64::consts::FRAC_2_SQRT_PI,
        -0.3761263890318352,
        0.11283791670944185,
        -0.026866170643111534,
        0.005223977606119031,
        -0.0008548325929341408,
        0.00012055293577709793,
        -1.4924712317577584e-05,
        1.644713176289836e-06,
        -1.6206315216985952e-07,
        1.3710986646190439e-08,
        -7.779480003192625e-10,
    ];
    let one = s.splat(1.0);
    let a = s.min(s.splat(6.0), s.abs(x));
    let square = s.mul(a, a);
    let small = s.mul(a, polynomial(s, s.min(one, square), &P));
    let ratio = mills_f64(s, s.mul(a, s.splat(std::f64::consts::SQRT_2)));
    let complement = s.mul(exp_low_f64(s, s.neg(square)), s.add(ratio, ratio));
    s.copysign(s.select(s.lt(a, one), small, s.sub(one, complement)), x)
}

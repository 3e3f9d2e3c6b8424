//! The hyperbolic tangent.
//!
//! For |x|, the sign put back. Beyond the clamp the result rounds to ±1.

use super::exp::expm1_f64;
use super::polynomial;
use crate::simd::Simd;

/// tanh x; error at most 2 ulp.
///
/// Below 0.65 x + x³·p(x²), p minimax (weighted Remez, relative error 2^−27.1). Above, 1 − 2/(e^(2x) + 1), where an error
/// of the power counts 0.58 times at most: 2x/ln 2 need not be more precise than one product, and q, minimax of (2ʳ − 1)/r
/// as in [`exp2`](super::exp2), is so under the weight that errors have here.
#[inline(always)]
pub(crate) fn tanh_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    const P: [f32; 5] = [-0.333_332_6, 0.133_308_3, -0.053_688_023, 0.020_469_42, -0.005_515_164];
    #[allow(clippy::approx_constant, reason = "the first is near ln 2, and not it")]
    const Q: [f32; 5] = [0.693_146_9, 0.240_222_65, 0.055_508_85, 0.009_670_345, 0.001_321_745_7];
    let (one, scale) = (s.splat(1.0), s.splat(2.0 * std::f32::consts::LOG2_E));
    // In this order of operands NaN passes.
    let a = s.min(s.splat(10.0), s.abs(x));
    let square = s.mul(a, a);
    let small = s.mul_add(s.mul(polynomial(s, square, &P), square), a, a);
    // 1.5·2²³ rounds, and leaves the integer and the bias of exponents in the low bits.
    let round = s.splat(12_582_912.0 + 127.0);
    let sum = s.mul_add(a, scale, round);
    let r = s.mul_add(a, scale, s.sub(round, sum));
    let fraction = s.mul_add(polynomial(s, r, &Q), r, one);
    let large = s.sub(one, s.div(s.splat(2.0), s.mul_add(fraction, s.shl::<23>(sum), one)));
    s.copysign(s.select(s.lt(a, s.splat(0.65)), small, large), x)
}

/// tanh x; error at most 4 ulp.
///
/// t/(t + 2) with t = e^(2x) − 1: an error of t counts 2/(t + 2) times.
#[inline(always)]
pub(crate) fn tanh_f64<S: Simd<f64>>(s: S, x: S::V) -> S::V {
    let a = s.min(s.splat(20.0), s.abs(x));
    let t = expm1_f64(s, s.add(a, a));
    s.copysign(s.div(t, s.add(t, s.splat(2.0))), x)
}

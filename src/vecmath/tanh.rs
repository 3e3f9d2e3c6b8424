//! The hyperbolic tangent.
//!
//! tanh x = t/(t + 2) with t = e^(2x) − 1, for |x|, the sign put back: an error of t counts 2/(t + 2) times,
//! so it fades where t is large. Beyond the clamp the result rounds to ±1.

use super::exp::{expm1_f32, expm1_f64};
use super::polynomial;
use crate::simd::Simd;

/// tanh x; error at most 2 ulp.
///
/// Below 0.27, where three roundings in a row would be too many, x + x³·p(x²), p minimax (weighted Remez,
/// relative error 2^−27.5).
#[inline(always)]
pub(crate) fn tanh_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    const P: [f32; 3] = [-0.33333185, 0.1332098, -0.05101601];
    // In this order of operands NaN passes.
    let a = s.min(s.splat(10.0), s.abs(x));
    let square = s.mul(a, a);
    let small = s.mul_add(s.mul(polynomial(s, square, &P), square), a, a);
    let t = expm1_f32(s, s.add(a, a));
    let large = s.div(t, s.add(t, s.splat(2.0)));
    s.copysign(s.select(s.lt(a, s.splat(0.27)), small, large), x)
}

/// tanh x; error at most 4 ulp.
#[inline(always)]
pub(crate) fn tanh_f64<S: Simd<f64>>(s: S, x: S::V) -> S::V {
    let a = s.min(s.splat(20.0), s.abs(x));
    let t = expm1_f64(s, s.add(a, a));
    s.copysign(s.div(t, s.add(t, s.splat(2.0))), x)
}

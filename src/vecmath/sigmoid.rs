//! The logistic function 1/(1 + e⁻ˣ).
//!
//! As v = e/(1 + e) with e = eˣ: right in the lower tail, down to the denormals, where 1/(1 + e⁻ˣ) would
//! overflow, and an error of e counts 1/(1 + e) times. Above the clamp the result rounds to 1.

use super::exp::{exp_low_f32, exp_low_f64};
use crate::simd::Simd;

/// 1/(1 + e⁻ˣ); error at most 2 ulp.
///
/// Where e < ½ as e − e·v, so that the roundings of 1 + e and of the quotient count only e times.
#[inline(always)]
pub(crate) fn sigmoid_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    // In this order of operands NaN passes.
    let e = exp_low_f32(s, s.min(s.splat(40.0), x));
    let v = s.div(e, s.add(e, s.splat(1.0)));
    s.select(s.lt(e, s.splat(0.5)), s.neg_mul_add(e, v, e), v)
}

/// 1/(1 + e⁻ˣ); error at most 4 ulp.
#[inline(always)]
pub(crate) fn sigmoid_f64<S: Simd<f64>>(s: S, x: S::V) -> S::V {
    let e = exp_low_f64(s, s.min(s.splat(40.0), x));
    s.div(e, s.add(e, s.splat(1.0)))
}

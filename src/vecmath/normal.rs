//! The normal distribution: Φ, φ and what GELU makes of them.
//!
//! Below 0 Φ is tiny, and 1 + erf would cancel; so everything here starts from the tail Φ(−|x|). A relative
//! error of x²·ε is inherent there: it is what rounding x costs.

use super::exp::{exp_low_f32, exp_low_f64};
use super::polynomial;
use crate::simd::Simd;

/// 1/√(2π).
const DENSITY_AT_0: f64 = 0.398_942_280_401_432_7;

/// e^(a²/2)·Φ(−a) for 0 ≤ a ≤ 14.6 (Mills' ratio times φ(0)); relative error 2^−26.6 and roundings.
///
/// t·p(t) with t = 1/(1 + a/4), p minimax (Remez): the substitution makes the ratio, which falls like 1/a,
/// nearly a line.
#[inline(always)]
pub(crate) fn mills_f32<S: Simd<f32>>(s: S, a: S::V) -> S::V {
    const P: [f32; 10] = [
        0.09974604,
        0.09952679,
        0.095245555,
        0.073201895,
        0.08332545,
        0.018679442,
        0.02151191,
        0.0566791,
        -0.06486799,
        0.016951803,
    ];
    let one = s.splat(1.0);
    let t = s.div(one, s.mul_add(a, s.splat(0.25), one));
    s.mul(t, polynomial(s, t, &P))
}

/// As [`mills_f32`], for 0 ≤ a ≤ 39, with t = 1/(1 + 3a/16) and relative error 2^−54.6.
#[inline(always)]
pub(crate) fn mills_f64<S: Simd<f64>>(s: S, a: S::V) -> S::V {
    const P: [f64; 22] = [
        0.07480167758372187,
        0.0748016770451714,
        0.07217194644491082,
        0.06691216546180728,
        0.059303888884549405,
        0.04986118134576897,
        0.03966923503515737,
        0.02787933083883337,
        0.023635961305259273,
        -0.0033678532257248434,
        0.04263863695969849,
        -0.07603580290361224,
        0.12135940511946743,
        -0.14441791590921108,
        0.10898820462572377,
        -0.027881778418521967,
        -0.053788774590105705,
        0.08433180609568255,
        -0.060903129796627674,
        0.025292188272909463,
        -0.005837717947904523,
        0.0005856677730465633,
    ];
    let one = s.splat(1.0);
    let t = s.div(one, s.mul_add(a, s.splat(0.1875), one));
    s.mul(t, polynomial(s, t, &P))
}

macro_rules! functions {
    ($T:ty, $mills:ident, $exp_low:ident, $zero_from:literal, $tail:ident, $gelu:ident, $derivative:ident) => {
        /// |x| clamped to where Φ(−|x|) is 0, √(2π)·φ(x) and Φ(−|x|).
        #[inline(always)]
        fn $tail<S: Simd<$T>>(s: S, x: S::V) -> (S::V, S::V, S::V) {
            // In this order of operands NaN passes.
            let a = s.min(s.splat($zero_from), s.abs(x));
            let e = $exp_low(s, s.mul(s.mul(a, s.splat(-0.5)), a));
            (a, e, s.mul(e, $mills(s, a)))
        }

        /// x·Φ(x) by the tail.
        #[inline(always)]
        pub(super) fn $gelu<S: Simd<$T>>(s: S, x: S::V) -> S::V {
            let zero = s.splat(0.0);
            let (a, _, tail) = $tail(s, x);
            // Below the clamp a·0 keeps −∞ from giving NaN.
            let lower = s.neg(s.mul(a, tail));
            s.select(s.lt(x, zero), lower, s.mul(x, s.sub(s.splat(1.0), tail)))
        }

        /// Φ(x) + x·φ(x), the derivative of x·Φ(x).
        #[inline(always)]
        pub(super) fn $derivative<S: Simd<$T>>(s: S, x: S::V) -> S::V {
            let (a, e, tail) = $tail(s, x);
            let below = s.lt(x, s.splat(0.0));
            let phi = s.select(below, tail, s.sub(s.splat(1.0), tail));
            s.mul_add(s.copysign(a, x), s.mul(e, s.splat(DENSITY_AT_0 as $T)), phi)
        }
    };
}

functions!(f32, mills_f32, exp_low_f32, 14.5, tail_f32, gelu_by_tail_f32, gelu_derivative_f32);
functions!(f64, mills_f64, exp_low_f64, 38.6, tail_f64, gelu_by_tail_f64, gelu_derivative_f64);

/// x·Φ(x); relative error at most (4 + 2x²)·ε for x < 0 and 4·ε above.
///
/// Φ(−|x|) = ½·2^w with w = |x|·q(|x|) down to −5.5, q minimax (weighted Remez) for the relative error
/// 2^−24.6·(1 + x²/2) of Φ, and 2^f of the fraction by another, 2^−23.3. Lanes further down, rare in practice,
/// cost a second pass by Mills' ratio.
#[inline(always)]
pub(crate) fn gelu_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    const Q: [f32; 10] = [
        -1.151106,
        -0.45920348,
        -0.052496217,
        0.007028509,
        -6.565864e-05,
        -0.00024900038,
        6.793163e-05,
        -9.580307e-06,
        7.373032e-07,
        -2.4417814e-08,
    ];
    #[allow(clippy::approx_constant, reason = "near ln 2, not it")]
    const POWER: [f32; 6] = [1.0, 0.693147, 0.24022225, 0.05550651, 0.009672606, 0.0013302689];
    const FAR: f32 = 5.5;
    // 1.5·2²³, and the exponent's bias less 1 for the factor ½.
    let round = s.splat(12_582_912.0 + 126.0);
    let a = s.min(s.splat(FAR), s.abs(x));
    let w = s.mul(a, polynomial(s, a, &Q));
    let sum = s.add(w, round);
    let fraction = s.sub(w, s.sub(sum, round));
    let half = s.mul(polynomial(s, fraction, &POWER), s.shl::<23>(sum));
    // x·Φ(x) = max(x, 0) − |x|·Φ(−|x|); above the clamp the second term is less than half an ulp of the first.
    let y = s.neg_mul_add(a, half, s.max(s.splat(0.0), x));
    let far = s.lt(x, s.splat(-FAR));
    if s.none(far) {
        return y;
    }
    s.select(far, gelu_by_tail_f32(s, x), y)
}

/// x·Φ(x); relative error at most (4 + 2x²)·ε for x < 0 and 4·ε above.
#[inline(always)]
pub(crate) fn gelu_f64<S: Simd<f64>>(s: S, x: S::V) -> S::V {
    gelu_by_tail_f64(s, x)
}

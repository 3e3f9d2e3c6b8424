//! eˣ and eˣ − 1.
//!
//! Cody and Waite (*Software Manual for the Elementary Functions*, 1980, chapter 6): x = n·ln 2 + r with n an
//! integer and |r| ≤ ln 2 / 2, so eˣ = 2ⁿ·eʳ. ln 2 is split in two, the upper part with enough zeros at its
//! end for n·upper to be exact. n is rounded by adding 1.5·2ᵐ (m the mantissa's bits), which leaves n, plus
//! whatever bias was added along, in the low bits of the sum: an exponent is one shift away.
//!
//! eʳ = 1 + r + r²·q(r), q the minimax polynomial of (eʳ − 1 − r)/r², found by a weighted Remez exchange whose
//! coefficients were then rounded one by one.

use super::polynomial;
use crate::simd::Simd;

/// The constants of one element type; `M` is its mantissa's bits.
struct Table<T, const D: usize, const E: usize, const F: usize> {
    log2_e: T,
    ln2_upper: T,
    ln2_lower: T,
    /// For small error relative to eʳ …
    q: [T; D],
    /// … and to eʳ − 1.
    q_minus_1: [T; E],
    /// … and one that spares a step for [`exp_normal`].
    q_short: [T; F],
    one: T,
    /// Rounds and leaves n + bias in the low bits.
    round_biased: T,
    /// Of the exponent, as an integer.
    bias: u64,
    /// Rounds and leaves n + bias + lift.
    round_lifted: T,
    /// 2^−lift: results of [`exp_low`] are built 2^lift too large, where they are never denormal.
    lower: T,
    /// Up to this |x| eˣ is a normal number.
    near: T,
    /// Below this eˣ rounds to 0 …
    zero_below: T,
    /// … and this makes it infinite.
    infinite_at: T,
    /// ln of the smallest normal number, rounded up.
    normal_from: T,
}

/// Relative errors of the polynomials 2^−28.2, 2^−29.1 and 2^−23.2.
const F32: Table<f32, 5, 6, 4> = Table {
    log2_e: std::f32::consts::LOG2_E,
    ln2_upper: 355.0 / 512.0,
    ln2_lower: -2.121_944_4e-4,
    q: [0.49999994, 0.16666517, 0.041668102, 0.008369192, 0.0013838889],
    q_minus_1: [0.5, 0.16666666, 0.041666374, 0.008333392, 0.0013940631, 0.00019845883],
    q_short: [0.4999923, 0.16667114, 0.041890163, 0.008312495],
    one: 1.0,
    round_biased: 12_582_912.0 + 127.0,
    bias: 127,
    round_lifted: 12_582_912.0 + 127.0 + 64.0,
    lower: f32::from_bits((127 - 64) << 23),
    near: 87.0,
    zero_below: -104.0,
    infinite_at: 89.0,
    normal_from: -87.336_54,
};

/// Relative error of the polynomial, one for all, 2^−59.9.
const F64: Table<f64, 11, 11, 11> = Table {
    log2_e: std::f64::consts::LOG2_E,
    ln2_upper: 0.693_147_180_369_123_8,
    ln2_lower: 1.908_214_929_270_587_7e-10,
    q: Q_F64,
    q_minus_1: Q_F64,
    q_short: Q_F64,
    one: 1.0,
    round_biased: 6_755_399_441_055_744.0 + 1023.0,
    bias: 1023,
    round_lifted: 6_755_399_441_055_744.0 + 1023.0 + 512.0,
    lower: f64::from_bits((1023 - 512) << 52),
    near: 708.0,
    zero_below: -746.0,
    infinite_at: 710.0,
    normal_from: -708.396_418_532_264,
};

const Q_F64: [f64; 11] = [
    0.5,
    0.16666666666666677,
    0.04166666666666651,
    0.00833333333332169,
    0.001388888888896233,
    0.00019841269885968727,
    2.480158717259585e-05,
    2.755724437161445e-06,
    2.755740260190453e-07,
    2.5108979717547113e-08,
    2.0875341677885677e-09,
];

/// The rounded sum and r, for `round` one of the table's.
#[inline(always)]
fn reduce<T: Copy, S: Simd<T>, const D: usize, const E: usize, const F: usize>(
    s: S,
    x: S::V,
    k: &Table<T, D, E, F>,
    round: T,
) -> (S::V, S::V) {
    let sum = s.mul_add(x, s.splat(k.log2_e), s.splat(round));
    let n = s.sub(sum, s.splat(round));
    let r = s.neg_mul_add(n, s.splat(k.ln2_upper), x);
    (sum, s.neg_mul_add(n, s.splat(k.ln2_lower), r))
}

/// eʳ for the reduced argument, with one of the table's q.
#[inline(always)]
fn reduced<T: Copy, S: Simd<T>, const D: usize>(s: S, r: S::V, one: T, q: &[T; D]) -> S::V {
    let one = s.splat(one);
    s.mul_add(s.mul_add(polynomial(s, r, q), r, one), r, one)
}

#[inline(always)]
fn exp<T: Copy, S: Simd<T>, const M: i32, const D: usize, const E: usize, const F: usize>(
    s: S,
    x: S::V,
    k: &Table<T, D, E, F>,
) -> S::V {
    // True for ±∞, not for NaN.
    let far = s.lt(s.splat(k.near), s.abs(x));
    if s.none(far) {
        let (sum, r) = reduce(s, x, k, k.round_biased);
        return s.mul(reduced(s, r, k.one, &k.q), s.shl::<M>(sum));
    }
    exp_far::<T, S, M, D, E, F>(s, x, k)
}

/// [`exp`] where the result may be denormal or infinite.
///
/// 2ⁿ is multiplied in two halves, neither of which over- or underflows: so the second product rounds once,
/// to a denormal or to infinity where that is the result.
#[inline(always)]
fn exp_far<T: Copy, S: Simd<T>, const M: i32, const D: usize, const E: usize, const F: usize>(
    s: S,
    x: S::V,
    k: &Table<T, D, E, F>,
) -> S::V {
    // In this order of operands NaN passes.
    let x = s.min(s.splat(k.infinite_at), s.max(s.splat(k.zero_below), x));
    // Rounded as the near are, by the same sum: without FMA a tie goes to the even one, and which that is, the bias decides.
    let (sum, r) = reduce(s, x, k, k.round_biased);
    let p = reduced(s, r, k.one, &k.q);
    let sum = s.int_add(sum, s.splat_bits(k.bias));
    let half = s.shr::<1>(sum);
    let rest = s.int_sub(sum, half);
    s.mul(s.mul(p, s.shl::<M>(half)), s.shl::<M>(rest))
}

#[inline(always)]
fn exp_low<T: Copy, S: Simd<T>, const M: i32, const D: usize, const E: usize, const F: usize>(
    s: S,
    x: S::V,
    k: &Table<T, D, E, F>,
) -> S::V {
    let x = s.max(s.splat(k.zero_below), x);
    let (sum, r) = reduce(s, x, k, k.round_lifted);
    s.mul(s.mul(reduced(s, r, k.one, &k.q), s.shl::<M>(sum)), s.splat(k.lower))
}

#[inline(always)]
fn exp_normal<T: Copy, S: Simd<T>, const M: i32, const D: usize, const E: usize, const F: usize>(
    s: S,
    x: S::V,
    k: &Table<T, D, E, F>,
) -> S::V {
    let sum = s.mul_add(x, s.splat(k.log2_e), s.splat(k.round_biased));
    let n = s.sub(sum, s.splat(k.round_biased));
    let ln2 = s.splat_bits(if M == 23 {
        std::f32::consts::LN_2.to_bits() as u64
    } else {
        std::f64::consts::LN_2.to_bits()
    });
    let r = s.neg_mul_add(n, ln2, x);
    let e = s.mul(reduced(s, r, k.one, &k.q_short), s.shl::<M>(sum));
    // Not a clamp of x: a product that underflows costs a hundred cycles on some processors, and −∞, the
    // usual mask, would be one each time.
    s.select(s.lt(x, s.splat(k.normal_from)), s.splat_bits(0), e)
}

#[inline(always)]
fn expm1<T: Copy, S: Simd<T>, const M: i32, const D: usize, const E: usize, const F: usize>(
    s: S,
    x: S::V,
    k: &Table<T, D, E, F>,
) -> S::V {
    let (sum, r) = reduce(s, x, k, k.round_biased);
    let p = s.mul_add(s.mul(polynomial(s, r, &k.q_minus_1), r), r, r);
    let power = s.shl::<M>(sum);
    s.mul_add(power, p, s.sub(power, s.splat(k.one)))
}

macro_rules! functions {
    ($T:ty, $M:literal, $table:ident, $exp:ident, $exp_low:ident, $exp_normal:ident, $expm1:ident, $error:literal) => {
        #[doc = concat!("eˣ for every x; error at most ", $error, ".")]
        #[inline(always)]
        pub(crate) fn $exp<S: Simd<$T>>(s: S, x: S::V) -> S::V {
            exp::<$T, S, $M, _, _, _>(s, x, &$table)
        }

        #[doc = concat!("eˣ for x ≤ 40, denormal results included; error as of [`", stringify!($exp), "`].")]
        #[inline(always)]
        pub(crate) fn $exp_low<S: Simd<$T>>(s: S, x: S::V) -> S::V {
            exp_low::<$T, S, $M, _, _, _>(s, x, &$table)
        }

        /// eˣ for x ≤ 0, 0 where that is no normal number; relative error at most (2 + |x|)·ε, what the
        /// rounding of a difference x = a − b costs anyway.
        #[inline(always)]
        pub(crate) fn $exp_normal<S: Simd<$T>>(s: S, x: S::V) -> S::V {
            exp_normal::<$T, S, $M, _, _, _>(s, x, &$table)
        }

        /// eˣ − 1 for −40 ≤ x ≤ 80, with small relative error around 0 too: at most 2 ulp.
        #[inline(always)]
        pub(crate) fn $expm1<S: Simd<$T>>(s: S, x: S::V) -> S::V {
            expm1::<$T, S, $M, _, _, _>(s, x, &$table)
        }
    };
}

functions!(f32, 23, F32, exp_f32, exp_low_f32, exp_normal_f32, expm1_f32, "2 ulp");
functions!(f64, 52, F64, exp_f64, exp_low_f64, exp_normal_f64, expm1_f64, "4 ulp");

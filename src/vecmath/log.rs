//! The natural logarithm.
//!
//! x = 2ᵏ·m with √½ ≤ m < √2 by integer arithmetic on the bits, f = m − 1, ln x = k·ln 2 + ln(1 + f).
//!
//! * `f32`: ln(1 + f) = f − f²/2 + f³·q(f), q minimax (weighted Remez).
//! * `f64`: with s = f/(2 + f), ln(1 + f) = 2·artanh s = f − (f²/2 − s·(f²/2 + R)), R = s²·p(s²), p minimax:
//!   the arrangement of Ng (FDLIBM, `e_log.c`), the coefficients our own.

use super::polynomial;
use crate::simd::Simd;

/// The constants of one element type that splitting off the exponent needs.
struct Split<T> {
    min_positive: T,
    infinity: T,
    nan: T,
    one: T,
    /// Turns a denormal into a normal number, and by how much that moves k.
    lift: T,
    lift_exponent: T,
    /// The bits of 1 minus those of √½ …
    one_less_root: u64,
    /// … and those of √½.
    root_half: u64,
    mantissa: u64,
    /// The bits of 2ᵐ, m the mantissa's bits: or-ing an integer to them converts it.
    integers: u64,
    /// 2ᵐ + the exponent's bias.
    integers_biased: T,
    ln2_upper: T,
    ln2_lower: T,
}

const F32: Split<f32> = Split {
    min_positive: f32::MIN_POSITIVE,
    infinity: f32::INFINITY,
    nan: f32::NAN,
    one: 1.0,
    lift: 16_777_216.0,
    lift_exponent: 24.0,
    one_less_root: 0x3F80_0000 - 0x3F35_04F3,
    root_half: 0x3F35_04F3,
    mantissa: 0x007F_FFFF,
    integers: 0x4B00_0000,
    integers_biased: 8_388_608.0 + 127.0,
    ln2_upper: 355.0 / 512.0,
    ln2_lower: -2.121_944_4e-4,
};

const F64: Split<f64> = Split {
    min_positive: f64::MIN_POSITIVE,
    infinity: f64::INFINITY,
    nan: f64::NAN,
    one: 1.0,
    lift: 18_014_398_509_481_984.0,
    lift_exponent: 54.0,
    one_less_root: 0x3FF0_0000_0000_0000 - 0x3FE6_A09E_667F_3BCD,
    root_half: 0x3FE6_A09E_667F_3BCD,
    mantissa: 0x000F_FFFF_FFFF_FFFF,
    integers: 0x4330_0000_0000_0000,
    integers_biased: 4_503_599_627_370_496.0 + 1023.0,
    ln2_upper: 0.693_147_180_369_123_8,
    ln2_lower: 1.908_214_929_270_587_7e-10,
};

/// k and f for positive normal x; anything for others.
#[inline(always)]
fn split<T: Copy, S: Simd<T>, const M: i32>(s: S, x: S::V, k: &Split<T>) -> (S::V, S::V) {
    let shifted = s.int_add(x, s.splat_bits(k.one_less_root));
    let exponent = s.or(s.shr::<M>(shifted), s.splat_bits(k.integers));
    let m = s.int_add(s.and(shifted, s.splat_bits(k.mantissa)), s.splat_bits(k.root_half));
    (s.sub(exponent, s.splat(k.integers_biased)), s.sub(m, s.splat(k.one)))
}

/// k·ln 2 + ln(1 + f). Relative error of the polynomial 2^−27.3.
#[inline(always)]
fn join_f32<S: Simd<f32>>(s: S, k: S::V, f: S::V) -> S::V {
    const Q: [f32; 8] =
        [0.3333333, -0.2500082, 0.20001228, -0.16623361, 0.14201744, -0.1316018, 0.12761705, -0.076346576];
    let tail = s.mul_add(polynomial(s, f, &Q), f, s.splat(-0.5));
    let tail = s.mul_add(k, s.splat(F32.ln2_lower), s.mul(s.mul(f, f), tail));
    s.mul_add(k, s.splat(F32.ln2_upper), s.add(f, tail))
}

/// k·ln 2 + ln(1 + f). Relative error of the polynomial 2^−58.9.
#[inline(always)]
fn join_f64<S: Simd<f64>>(s: S, k: S::V, f: S::V) -> S::V {
    const P: [f64; 7] = [
        0.6666666666666734,
        0.39999999999414226,
        0.2857142874249592,
        0.22222198561286316,
        0.18183564983901224,
        0.15314032748269468,
        0.14796137289794506,
    ];
    let t = s.div(f, s.add(f, s.splat(2.0)));
    let z = s.mul(t, t);
    let half_square = s.mul(s.splat(0.5), s.mul(f, f));
    let r = s.mul_add(z, polynomial(s, z, &P), half_square);
    let tail = s.mul_add(t, r, s.mul(k, s.splat(F64.ln2_lower)));
    s.mul_add(k, s.splat(F64.ln2_upper), s.sub(f, s.sub(half_square, tail)))
}

macro_rules! functions {
    ($T:ty, $M:literal, $table:ident, $join:ident, $log:ident, $error:literal) => {
        #[doc = concat!("ln x; error at most ", $error, ".")]
        ///
        /// ln 0 = −∞, NaN for negative x. Zero, negative and denormal lanes cost a second pass.
        #[inline(always)]
        pub(crate) fn $log<S: Simd<$T>>(s: S, x: S::V) -> S::V {
            let c = &$table;
            let tiny = s.lt(x, s.splat(c.min_positive));
            // Infinity and NaN are their own logarithms.
            let finite = s.lt(x, s.splat(c.infinity));
            if s.none(tiny) {
                let (k, f) = split::<$T, S, $M>(s, x, c);
                return s.select(finite, $join(s, k, f), x);
            }
            let zero = s.splat(0.0);
            let lifted = s.select(tiny, s.mul(x, s.splat(c.lift)), x);
            let (k, f) = split::<$T, S, $M>(s, lifted, c);
            let k = s.sub(k, s.select(tiny, s.splat(c.lift_exponent), zero));
            let y = s.select(finite, $join(s, k, f), x);
            let y = s.select(s.eq(x, zero), s.splat(-c.infinity), y);
            s.select(s.lt(x, zero), s.splat(c.nan), y)
        }
    };
}

functions!(f32, 23, F32, join_f32, log_f32, "2 ulp");
functions!(f64, 52, F64, join_f64, log_f64, "4 ulp");

/// ln(1 + e) for 0 ≤ e ≤ 1, with small relative error at 0 too: at most 3 ulp.
///
/// e + e²·q(e), q minimax (weighted Remez): relative error 2^−27.5.
#[inline(always)]
pub(crate) fn log1p_unit_f32<S: Simd<f32>>(s: S, e: S::V) -> S::V {
    const Q: [f32; 9] = [
        -0.4999993,
        0.33330464,
        -0.24958019,
        0.19692102,
        -0.1534488,
        0.10661128,
        -0.05745723,
        0.020086242,
        -0.0032904686,
    ];
    s.mul_add(s.mul(polynomial(s, e, &Q), e), e, e)
}

/// As [`log1p_unit_f32`], relative error 2^−54.3.
#[inline(always)]
pub(crate) fn log1p_unit_f64<S: Simd<f64>>(s: S, e: S::V) -> S::V {
    const Q: [f64; 20] = [
        -0.4999999999999946,
        0.3333333333323505,
        -0.2499999999367679,
        0.1999999979132916,
        -0.16666662498601736,
        0.14285658898148934,
        -0.12499479618365458,
        0.1110750601911904,
        -0.09981014994505534,
        0.09013153857541452,
        -0.08081212138252848,
        0.0703554403512194,
        -0.05750205808907934,
        0.04230018037430347,
        -0.02674402846626471,
        0.01383863492196213,
        -0.005543130823039601,
        0.0015957483442970044,
        -0.0002917626923423947,
        2.533007917133411e-05,
    ];
    s.mul_add(s.mul(polynomial(s, e, &Q), e), e, e)
}

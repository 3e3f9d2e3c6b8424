//! AVX-512 F, BW, DQ and VL: vectors of 64 bytes.

use super::{Avx2, Simd, front, front_mut};
use crate::machine::{Isa, supported};
use crate::tensor::Fours;
use core::arch::x86_64::{__m512, __m512d, __mmask8, __mmask16, _mm_cvtsi32_si128};

/// Proof that the processor has AVX-512 F, BW, DQ and VL, and what [`Avx2`] proves.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(Avx2);

impl Avx512 {
    /// The token, where the processor has the instructions.
    #[inline]
    pub fn new() -> Option<Self> {
        Avx2::new().filter(|_| supported().contains(&Isa::Avx512)).map(Avx512)
    }
}

/// Intrinsics on `f32` by the names that the `f64` ones have too.
mod ps {
    use core::arch::x86_64::__m512;

    pub use core::arch::x86_64::{
        _CMP_EQ_OQ as EQ, _CMP_LE_OQ as LE, _CMP_LT_OQ as LT, _CMP_NEQ_UQ as NE, _mm512_add_epi32 as int_add,
        _mm512_add_ps as add, _mm512_and_ps as and, _mm512_andnot_ps as andnot,
        _mm512_castps_si512 as to_int, _mm512_castps512_ps256 as lower, _mm512_castsi512_ps as from_int,
        _mm512_cmp_ps_mask as cmp, _mm512_div_ps as div, _mm512_extractf32x8_ps as extract,
        _mm512_fmadd_ps as fmadd, _mm512_fnmadd_ps as fnmadd, _mm512_loadu_ps as loadu,
        _mm512_mask_blend_ps as blend, _mm512_mask_storeu_ps as storeu_masked,
        _mm512_maskz_loadu_ps as loadu_masked, _mm512_max_ps as max, _mm512_min_ps as min,
        _mm512_mul_ps as mul, _mm512_or_ps as or, _mm512_set1_epi32 as int_splat, _mm512_set1_ps as splat,
        _mm512_shuffle_f32x4 as blocks, _mm512_sll_epi32 as shl, _mm512_sqrt_ps as sqrt,
        _mm512_srl_epi32 as shr, _mm512_storeu_ps as storeu, _mm512_stream_ps as stream,
        _mm512_sub_epi32 as int_sub, _mm512_sub_ps as sub, _mm512_xor_ps as xor,
    };

    /// The sums of the blocks of 128 bits, of four elements each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn block_sums(v: __m512) -> [f32; 4] {
        use core::arch::x86_64::*;
        let v = _mm512_add_ps(v, _mm512_permute_ps::<0b01_00_11_10>(v));
        let v = _mm512_add_ps(v, _mm512_permute_ps::<0b10_11_00_01>(v));
        let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        let mut sums = [0.0; 4];
        // SAFETY: there is room for four.
        unsafe { _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(first, v))) };
        sums
    }
}

/// Intrinsics on `f64` by the names that the `f32` ones have too.
mod pd {
    use core::arch::x86_64::__m512d;

    pub use core::arch::x86_64::{
        _CMP_EQ_OQ as EQ, _CMP_LE_OQ as LE, _CMP_LT_OQ as LT, _CMP_NEQ_UQ as NE, _mm512_add_epi64 as int_add,
        _mm512_add_pd as add, _mm512_and_pd as and, _mm512_andnot_pd as andnot,
        _mm512_castpd_si512 as to_int, _mm512_castpd512_pd256 as lower, _mm512_castsi512_pd as from_int,
        _mm512_cmp_pd_mask as cmp, _mm512_div_pd as div, _mm512_extractf64x4_pd as extract,
        _mm512_fmadd_pd as fmadd, _mm512_fnmadd_pd as fnmadd, _mm512_loadu_pd as loadu,
        _mm512_mask_blend_pd as blend, _mm512_mask_storeu_pd as storeu_masked,
        _mm512_maskz_loadu_pd as loadu_masked, _mm512_max_pd as max, _mm512_min_pd as min,
        _mm512_mul_pd as mul, _mm512_or_pd as or, _mm512_set1_epi64 as int_splat, _mm512_set1_pd as splat,
        _mm512_shuffle_f64x2 as blocks, _mm512_sll_epi64 as shl, _mm512_sqrt_pd as sqrt,
        _mm512_srl_epi64 as shr, _mm512_storeu_pd as storeu, _mm512_stream_pd as stream,
        _mm512_sub_epi64 as int_sub, _mm512_sub_pd as sub, _mm512_xor_pd as xor,
    };

    /// The sums of the blocks of 128 bits, of two elements each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn block_sums(v: __m512d) -> [f64; 4] {
        use core::arch::x86_64::*;
        let v = _mm512_add_pd(v, _mm512_permute_pd::<0b0101_0101>(v));
        let first = _mm512_setr_epi64(0, 2, 4, 6, 0, 0, 0, 0);
        let mut sums = [0.0; 4];
        // SAFETY: there is room for four.
        unsafe {
            _mm256_storeu_pd(sums.as_mut_ptr(), _mm512_castpd512_pd256(_mm512_permutexvar_pd(first, v)))
        };
        sums
    }
}

/// The mask whose first `n` lanes are true, all where there are no more.
#[inline(always)]
fn leading(n: usize) -> u16 {
    ((1u32 << n.min(16)) - 1) as u16
}

macro_rules! avx512 {
    ($T:ty, $int:ty, $V:ty, $M:ty, $lanes:literal, $i:ident) => {
        impl Simd<$T> for Avx512 {
            type V = $V;
            type M = $M;

            const LANES: usize = $lanes;
            const TILE_ROWS: usize = 6;
            const TILE_VECTORS: usize = 4;
            const NARROW_ROWS: usize = 12;
            const MASKED: bool = true;

            #[inline(always)]
            fn call<O: super::SimdOp<$T>>(self, op: O) -> O::Output {
                // SAFETY: the token proves that the processor has the shim's features.
                unsafe { super::dispatch::Shims::avx512_shim(op, self) }
            }

            #[inline(always)]
            fn load(self, src: &[$T]) -> $V {
                let src: &[$T; $lanes] = front(src);
                // SAFETY: `src` is a whole vector; the token proves the feature.
                unsafe { $i::loadu(src.as_ptr()) }
            }

            #[inline(always)]
            fn store(self, v: $V, dst: &mut [$T]) {
                let dst: &mut [$T; $lanes] = front_mut(dst);
                // SAFETY: `dst` is a whole vector; the token proves the feature.
                unsafe { $i::storeu(dst.as_mut_ptr(), v) }
            }

            #[inline(always)]
            fn stream(self, v: $V, dst: &mut [$T]) {
                let dst: &mut [$T; $lanes] = front_mut(dst);
                if !dst.as_ptr().cast::<$V>().is_aligned() {
                    return self.store(v, dst);
                }
                // SAFETY: `dst` is a whole vector and aligned; the token proves the feature. Such writes may become
                // visible late: `fence` orders them, which callers do before they give `dst` back.
                unsafe { $i::stream(dst.as_mut_ptr(), v) }
            }

            #[inline(always)]
            fn fence(self) {
                // SAFETY: SSE is part of x86-64.
                unsafe { core::arch::x86_64::_mm_sfence() }
            }

            #[inline(always)]
            fn load_partial(self, src: &[$T]) -> $V {
                // SAFETY: the mask has as many lanes true as `src` has elements, at most, and no other
                // element is touched; the token proves the feature.
                unsafe { $i::loadu_masked(leading(src.len()) as $M, src.as_ptr()) }
            }

            #[inline(always)]
            fn store_partial(self, v: $V, dst: &mut [$T]) {
                // SAFETY: as in `load_partial`.
                unsafe { $i::storeu_masked(dst.as_mut_ptr(), leading(dst.len()) as $M, v) }
            }

            #[inline(always)]
            fn mask_and(self, a: $M, b: $M) -> $M {
                a & b
            }

            #[inline(always)]
            fn mask_or(self, a: $M, b: $M) -> $M {
                a | b
            }

            #[inline(always)]
            fn none(self, m: $M) -> bool {
                m == 0
            }

            #[inline(always)]
            fn store_transposed(self, v: [$V; 4], dst: &mut [$T], stride: usize) {
                assert!(super::fit::<$lanes>(dst.len(), stride, 4));
                // SAFETY: the last lane's four elements end inside `dst`; the token proves the feature.
                unsafe { super::transpose::avx512::$i::store(v, dst.as_mut_ptr(), stride) }
            }

            #[inline(always)]
            fn within<const C: usize>(self, a: $V, lane: usize) -> $V {
                // SAFETY: the token proves the feature.
                unsafe { super::interleave::avx512::$i::within::<C>(a, lane) }
            }

            #[inline(always)]
            fn load_transposed(self, lines: Fours<'_, $T>) -> [$V; 4] {
                // SAFETY: the token proves the feature.
                unsafe { super::transpose::avx512::$i::load(lines) }
            }

            intrinsics! {
                fn deinterleave(self, a: $V, b: $V) -> [$V; 2] { super::interleave::avx512::$i::deinterleave(a, b) }
                fn interleave(self, a: $V, b: $V) -> [$V; 2] { super::interleave::avx512::$i::interleave(a, b) }

                fn splat(self, x: $T) -> $V { $i::splat(x) }
                fn splat_bits(self, bits: u64) -> $V { $i::from_int($i::int_splat(bits as $int)) }

                fn add(self, a: $V, b: $V) -> $V { $i::add(a, b) }
                fn sub(self, a: $V, b: $V) -> $V { $i::sub(a, b) }
                fn mul(self, a: $V, b: $V) -> $V { $i::mul(a, b) }
                fn div(self, a: $V, b: $V) -> $V { $i::div(a, b) }
                fn mul_add(self, a: $V, b: $V, c: $V) -> $V { $i::fmadd(a, b, c) }
                fn neg_mul_add(self, a: $V, b: $V, c: $V) -> $V { $i::fnmadd(a, b, c) }
                fn sqrt(self, a: $V) -> $V { $i::sqrt(a) }
                fn min(self, a: $V, b: $V) -> $V { $i::min(a, b) }
                fn max(self, a: $V, b: $V) -> $V { $i::max(a, b) }
                fn abs(self, a: $V) -> $V { $i::andnot($i::splat(-0.0), a) }
                fn neg(self, a: $V) -> $V { $i::xor($i::splat(-0.0), a) }
                fn copysign(self, a: $V, sign: $V) -> $V {
                    let top = $i::splat(-0.0);
                    $i::or($i::andnot(top, a), $i::and(top, sign))
                }

                fn and(self, a: $V, b: $V) -> $V { $i::and(a, b) }
                fn or(self, a: $V, b: $V) -> $V { $i::or(a, b) }
                fn int_add(self, a: $V, b: $V) -> $V {
                    $i::from_int($i::int_add($i::to_int(a), $i::to_int(b)))
                }
                fn int_sub(self, a: $V, b: $V) -> $V {
                    $i::from_int($i::int_sub($i::to_int(a), $i::to_int(b)))
                }
                fn shl<const N: i32>(self, a: $V) -> $V {
                    $i::from_int($i::shl($i::to_int(a), _mm_cvtsi32_si128(N)))
                }
                fn shr<const N: i32>(self, a: $V) -> $V {
                    $i::from_int($i::shr($i::to_int(a), _mm_cvtsi32_si128(N)))
                }

                fn lt(self, a: $V, b: $V) -> $M { $i::cmp::<{ $i::LT }>(a, b) }
                fn le(self, a: $V, b: $V) -> $M { $i::cmp::<{ $i::LE }>(a, b) }
                fn eq(self, a: $V, b: $V) -> $M { $i::cmp::<{ $i::EQ }>(a, b) }
                fn ne(self, a: $V, b: $V) -> $M { $i::cmp::<{ $i::NE }>(a, b) }
                fn select(self, m: $M, a: $V, b: $V) -> $V { $i::blend(m, b, a) }

                fn reduce_add(self, a: $V) -> $T {
                    let (lower, upper) = ($i::lower(a), $i::extract::<1>(a));
                    self.0.reduce_add(Simd::<$T>::add(self.0, lower, upper))
                }
                fn reduce_add_each(self, v: [$V; 4]) -> [$T; 4] {
                    let [a, b, c, d] = v;
                    let ab = $i::add($i::blocks::<0b01_00_01_00>(a, b), $i::blocks::<0b11_10_11_10>(a, b));
                    let cd = $i::add($i::blocks::<0b01_00_01_00>(c, d), $i::blocks::<0b11_10_11_10>(c, d));
                    // A block for each, in halves folded onto each other like one alone.
                    $i::block_sums($i::add($i::blocks::<0b10_00_10_00>(ab, cd), $i::blocks::<0b11_01_11_01>(ab, cd)))
                }
                fn reduce_max(self, a: $V) -> $T {
                    let (lower, upper) = ($i::lower(a), $i::extract::<1>(a));
                    self.0.reduce_max(Simd::<$T>::max(self.0, lower, upper))
                }
            }
        }
    };
}

avx512!(f32, i32, __m512, __mmask16, 16, ps);
avx512!(f64, i64, __m512d, __mmask8, 8, pd);

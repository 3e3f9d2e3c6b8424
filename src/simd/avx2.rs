//! AVX2 with FMA: vectors of 32 bytes.

use super::{Simd, front, front_mut};
use crate::machine::{Isa, supported};
use crate::tensor::Fours;
use core::arch::x86_64::{__m256, __m256d, __m256i, _mm256_loadu_si256};

/// Proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, where the processor has the instructions.
    #[inline]
    pub fn new() -> Option<Self> {
        supported().contains(&Isa::Avx2).then_some(Avx2(()))
    }
}

/// Intrinsics on `f32` by the names that the `f64` ones have too.
mod ps {
    pub use core::arch::x86_64::{
        _CMP_EQ_OQ as EQ, _CMP_LE_OQ as LE, _CMP_LT_OQ as LT, _CMP_NEQ_UQ as NE, _mm_add_ps as add_half,
        _mm_max_ps as max_half, _mm256_add_epi32 as int_add, _mm256_add_ps as add, _mm256_and_ps as and,
        _mm256_andnot_ps as andnot, _mm256_blendv_ps as blendv, _mm256_castps_si256 as to_int,
        _mm256_castsi256_ps as from_int, _mm256_cmp_ps as cmp, _mm256_div_ps as div,
        _mm256_fmadd_ps as fmadd, _mm256_fnmadd_ps as fnmadd, _mm256_loadu_ps as loadu,
        _mm256_maskload_ps as maskload, _mm256_maskstore_ps as maskstore, _mm256_max_ps as max,
        _mm256_min_ps as min, _mm256_movemask_ps as movemask, _mm256_mul_ps as mul, _mm256_or_ps as or,
        _mm256_set1_epi32 as int_splat, _mm256_set1_ps as splat, _mm256_slli_epi32 as shl,
        _mm256_sqrt_ps as sqrt, _mm256_srli_epi32 as shr, _mm256_storeu_ps as storeu,
        _mm256_stream_ps as stream, _mm256_sub_epi32 as int_sub, _mm256_sub_ps as sub, _mm256_xor_ps as xor,
    };

    /// As many lanes true as a vector has, then as many false: a mask is a window on it.
    pub const WINDOW: &[i32; 16] = &[-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    /// Halves folded onto each other until one lane is left.
    macro_rules! fold {
        ($v:expr, $op:path) => {{
            use core::arch::x86_64::*;
            let v = $op(_mm256_castps256_ps128($v), _mm256_extractf128_ps::<1>($v));
            let v = $op(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32($op(v, _mm_movehdup_ps(v)))
        }};
    }
    pub(super) use fold;
}

/// Intrinsics on `f64` by the names that the `f32` ones have too.
mod pd {
    pub use core::arch::x86_64::{
        _CMP_EQ_OQ as EQ, _CMP_LE_OQ as LE, _CMP_LT_OQ as LT, _CMP_NEQ_UQ as NE, _mm_add_pd as add_half,
        _mm_max_pd as max_half, _mm256_add_epi64 as int_add, _mm256_add_pd as add, _mm256_and_pd as and,
        _mm256_andnot_pd as andnot, _mm256_blendv_pd as blendv, _mm256_castpd_si256 as to_int,
        _mm256_castsi256_pd as from_int, _mm256_cmp_pd as cmp, _mm256_div_pd as div,
        _mm256_fmadd_pd as fmadd, _mm256_fnmadd_pd as fnmadd, _mm256_loadu_pd as loadu,
        _mm256_maskload_pd as maskload, _mm256_maskstore_pd as maskstore, _mm256_max_pd as max,
        _mm256_min_pd as min, _mm256_movemask_pd as movemask, _mm256_mul_pd as mul, _mm256_or_pd as or,
        _mm256_set1_epi64x as int_splat, _mm256_set1_pd as splat, _mm256_slli_epi64 as shl,
        _mm256_sqrt_pd as sqrt, _mm256_srli_epi64 as shr, _mm256_storeu_pd as storeu,
        _mm256_stream_pd as stream, _mm256_sub_epi64 as int_sub, _mm256_sub_pd as sub, _mm256_xor_pd as xor,
    };

    /// As many lanes true as a vector has, then as many false: a mask is a window on it.
    pub const WINDOW: &[i64; 8] = &[-1, -1, -1, -1, 0, 0, 0, 0];

    /// Halves folded onto each other until one lane is left.
    macro_rules! fold {
        ($v:expr, $op:path) => {{
            use core::arch::x86_64::*;
            let v = $op(_mm256_castpd256_pd128($v), _mm256_extractf128_pd::<1>($v));
            _mm_cvtsd_f64($op(v, _mm_unpackhi_pd(v, v)))
        }};
    }
    pub(super) use fold;
}

/// The mask whose first `$n` of `$lanes` lanes are true, all where there are no more.
macro_rules! leading {
    ($n:expr, $i:ident, $lanes:literal) => {{
        let mask: &[_; $lanes] = front(&$i::WINDOW[$lanes - $n.min($lanes)..]);
        _mm256_loadu_si256(mask.as_ptr().cast::<__m256i>())
    }};
}

macro_rules! avx2 {
    ($T:ty, $int:ty, $V:ty, $lanes:literal, $i:ident) => {
        impl Simd<$T> for Avx2 {
            type V = $V;
            type M = $V;

            const LANES: usize = $lanes;
            const TILE_ROWS: usize = 6;
            const TILE_VECTORS: usize = 2;
            const NARROW_ROWS: usize = 6;
            const MASKED: bool = true;

            #[inline(always)]
            fn call<O: super::SimdOp<$T>>(self, op: O) -> O::Output {
                // SAFETY: the token proves that the processor has the shim's features.
                unsafe { super::dispatch::Shims::avx2_shim(op, self) }
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
                unsafe { $i::maskload(src.as_ptr(), leading!(src.len(), $i, $lanes)) }
            }

            #[inline(always)]
            fn store_partial(self, v: $V, dst: &mut [$T]) {
                // SAFETY: as in `load_partial`.
                unsafe { $i::maskstore(dst.as_mut_ptr(), leading!(dst.len(), $i, $lanes), v) }
            }

            #[inline(always)]
            fn store_transposed(self, v: [$V; 4], dst: &mut [$T], stride: usize) {
                assert!(super::fit::<$lanes>(dst.len(), stride, 4));
                // SAFETY: the last lane's four elements end inside `dst`; the token proves the feature.
                unsafe { super::transpose::avx2::$i::store(v, dst.as_mut_ptr(), stride) }
            }

            #[inline(always)]
            fn within<const C: usize>(self, a: $V, lane: usize) -> $V {
                // SAFETY: the token proves the feature.
                unsafe { super::interleave::avx2::$i::within::<C>(a, lane) }
            }

            #[inline(always)]
            fn load_transposed(self, lines: Fours<'_, $T>) -> [$V; 4] {
                // SAFETY: the token proves the feature.
                unsafe { super::transpose::avx2::$i::load(lines) }
            }

            intrinsics! {
                fn deinterleave(self, a: $V, b: $V) -> [$V; 2] { super::interleave::avx2::$i::deinterleave(a, b) }
                fn interleave(self, a: $V, b: $V) -> [$V; 2] { super::interleave::avx2::$i::interleave(a, b) }

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
                fn shl<const N: i32>(self, a: $V) -> $V { $i::from_int($i::shl::<N>($i::to_int(a))) }
                fn shr<const N: i32>(self, a: $V) -> $V { $i::from_int($i::shr::<N>($i::to_int(a))) }

                fn lt(self, a: $V, b: $V) -> $V { $i::cmp::<{ $i::LT }>(a, b) }
                fn le(self, a: $V, b: $V) -> $V { $i::cmp::<{ $i::LE }>(a, b) }
                fn eq(self, a: $V, b: $V) -> $V { $i::cmp::<{ $i::EQ }>(a, b) }
                fn ne(self, a: $V, b: $V) -> $V { $i::cmp::<{ $i::NE }>(a, b) }
                fn mask_and(self, a: $V, b: $V) -> $V { $i::and(a, b) }
                fn mask_or(self, a: $V, b: $V) -> $V { $i::or(a, b) }
                fn none(self, m: $V) -> bool { $i::movemask(m) == 0 }
                fn select(self, m: $V, a: $V, b: $V) -> $V { $i::blendv(b, a, m) }

                fn reduce_add(self, a: $V) -> $T { $i::fold!(a, $i::add_half) }
                fn reduce_max(self, a: $V) -> $T { $i::fold!(a, $i::max_half) }
            }
        }
    };
}

avx2!(f32, i32, __m256, 8, ps);
avx2!(f64, i64, __m256d, 4, pd);

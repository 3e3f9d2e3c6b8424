//! Four vectors turned into their lanes' columns of four, in blocks of 128 bits.
//!
//! For `f32` a 4 × 4 transpose in each block gives vectors whose block `b` is the column of lane `4b + j`; for
//! `f64` a 2 × 2 transpose of each pair of vectors gives halves of columns.

macro_rules! transpose {
    ($name:ident f32 $feature:literal $V:ty, $lo:ident $hi:ident $shuffle:ident $block:ident: $($b:literal)*) => {
        /// # Safety
        /// Four elements can be written at `dst + i · stride` for every lane `i`, and the processor has the
        /// feature.
        #[inline]
        #[target_feature(enable = $feature)]
        pub unsafe fn $name(v: [$V; 4], dst: *mut f32, stride: usize) {
            let [a, b, c, d] = v;
            let (ab, ab_high, cd, cd_high) = ($lo(a, b), $hi(a, b), $lo(c, d), $hi(c, d));
            let columns = [
                $shuffle::<0x44>(ab, cd),
                $shuffle::<0xee>(ab, cd),
                $shuffle::<0x44>(ab_high, cd_high),
                $shuffle::<0xee>(ab_high, cd_high),
            ];
            for (j, column) in columns.into_iter().enumerate() {
                $(
                    // SAFETY: lane 4 · b + j of the caller's promise.
                    unsafe { _mm_storeu_ps(dst.add(($b * 4 + j) * stride), $block::<$b>(column)) };
                )*
            }
        }
    };
    ($name:ident f64 $feature:literal $V:ty, $lo:ident $hi:ident $block:ident: $($b:literal)*) => {
        /// # Safety
        /// As for `f32`.
        #[inline]
        #[target_feature(enable = $feature)]
        pub unsafe fn $name(v: [$V; 4], dst: *mut f64, stride: usize) {
            let [a, b, c, d] = v;
            for (j, front, back) in [(0, $lo(a, b), $lo(c, d)), (1, $hi(a, b), $hi(c, d))] {
                $(
                    // SAFETY: lane 2 · b + j of the caller's promise.
                    unsafe {
                        let to = dst.add(($b * 2 + j) * stride);
                        _mm_storeu_pd(to, $block::<$b>(front));
                        _mm_storeu_pd(to.add(2), $block::<$b>(back));
                    }
                )*
            }
        }
    };
}

pub mod avx2 {
    use core::arch::x86_64::*;

    transpose!(ps f32 "avx2" __m256, _mm256_unpacklo_ps _mm256_unpackhi_ps _mm256_shuffle_ps _mm256_extractf128_ps: 0 1);
    transpose!(pd f64 "avx2" __m256d, _mm256_unpacklo_pd _mm256_unpackhi_pd _mm256_extractf128_pd: 0 1);
}

pub mod avx512 {
    use core::arch::x86_64::*;

    transpose!(ps f32 "avx512f,avx512dq" __m512, _mm512_unpacklo_ps _mm512_unpackhi_ps _mm512_shuffle_ps _mm512_extractf32x4_ps: 0 1 2 3);
    transpose!(pd f64 "avx512f,avx512dq" __m512d, _mm512_unpacklo_pd _mm512_unpackhi_pd _mm512_extractf64x2_pd: 0 1 2 3);
}

//! Four vectors turned into their lanes' columns of four and back, in blocks of 128 bits.
//!
//! For `f32` a 4 × 4 transpose in each block turns vectors into ones whose block `b` is the column of lane `4b + j`; for
//! `f64` a 2 × 2 transpose of each pair of vectors gives halves of columns. Read from memory block by block, lines take no
//! instruction that moves lanes between blocks.

use crate::tensor::Fours;

macro_rules! transpose {
    ($name:ident f32 $feature:literal $V:ty,
        $lo:ident $hi:ident $shuffle:ident $block:ident $widen:ident $insert:ident: $($b:literal)*
    ) => {
        pub mod $name {
            use super::*;

            /// Transposes each block of the four vectors.
            ///
            /// # Safety
            /// The processor has the feature.
            #[inline(always)]
            unsafe fn blocks([a, b, c, d]: [$V; 4]) -> [$V; 4] {
                // SAFETY: the caller's promise.
                unsafe {
                    let (ab, ab_high, cd, cd_high) = ($lo(a, b), $hi(a, b), $lo(c, d), $hi(c, d));
                    [
                        $shuffle::<0x44>(ab, cd),
                        $shuffle::<0xee>(ab, cd),
                        $shuffle::<0x44>(ab_high, cd_high),
                        $shuffle::<0xee>(ab_high, cd_high),
                    ]
                }
            }

            /// # Safety
            /// Four elements can be written at `dst + i · stride` for every lane `i`, and the processor has the
            /// feature.
            #[inline]
            #[target_feature(enable = $feature)]
            pub unsafe fn store(v: [$V; 4], dst: *mut f32, stride: usize) {
                // SAFETY: the caller's promise.
                for (j, column) in unsafe { blocks(v) }.into_iter().enumerate() {
                    $(
                        // SAFETY: lane 4 · b + j of the caller's promise.
                        unsafe { _mm_storeu_ps(dst.add(($b * 4 + j) * stride), $block::<$b>(column)) };
                    )*
                }
            }

            /// Lane `i` of vector `j` is element `j` of line `i`. Part of its caller, or the vectors would go through memory.
            ///
            /// # Safety
            /// The processor has the feature.
            #[inline(always)]
            pub unsafe fn load(lines: Fours<'_, f32>) -> [$V; 4] {
                // SAFETY: the caller's promise, and four elements are read of each line.
                unsafe {
                    let mut v = [$widen(_mm_setzero_ps()); 4];
                    for (j, v) in v.iter_mut().enumerate() {
                        $(*v = $insert::<$b>(*v, _mm_loadu_ps(lines.get($b * 4 + j).as_ptr()));)*
                    }
                    blocks(v)
                }
            }
        }
    };
    ($name:ident f64 $feature:literal $V:ty,
        $lo:ident $hi:ident $block:ident $widen:ident $insert:ident: $($b:literal)*
    ) => {
        pub mod $name {
            use super::*;

            /// # Safety
            /// As for `f32`.
            #[inline]
            #[target_feature(enable = $feature)]
            pub unsafe fn store(v: [$V; 4], dst: *mut f64, stride: usize) {
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

            /// As for `f32`.
            ///
            /// # Safety
            /// The processor has the feature.
            #[inline(always)]
            pub unsafe fn load(lines: Fours<'_, f64>) -> [$V; 4] {
                // SAFETY: the caller's promise, and two of four elements are read at a time.
                unsafe {
                    let mut v = [$widen(_mm_setzero_pd()); 4];
                    for (at, v) in v.iter_mut().enumerate() {
                        let (line, half) = (at % 2, at / 2 * 2);
                        $(*v = $insert::<$b>(*v, _mm_loadu_pd(lines.get($b * 2 + line)[half..].as_ptr()));)*
                    }
                    let [a, b, c, d] = v;
                    [$lo(a, b), $hi(a, b), $lo(c, d), $hi(c, d)]
                }
            }
        }
    };
}

pub mod avx2 {
    use super::Fours;
    use core::arch::x86_64::*;

    transpose!(ps f32 "avx2" __m256, _mm256_unpacklo_ps _mm256_unpackhi_ps _mm256_shuffle_ps _mm256_extractf128_ps _mm256_castps128_ps256 _mm256_insertf128_ps: 0 1);
    transpose!(pd f64 "avx2" __m256d, _mm256_unpacklo_pd _mm256_unpackhi_pd _mm256_extractf128_pd _mm256_castpd128_pd256 _mm256_insertf128_pd: 0 1);
}

pub mod avx512 {
    use super::Fours;
    use core::arch::x86_64::*;

    transpose!(ps f32 "avx512f,avx512dq" __m512, _mm512_unpacklo_ps _mm512_unpackhi_ps _mm512_shuffle_ps _mm512_extractf32x4_ps _mm512_castps128_ps512 _mm512_insertf32x4: 0 1 2 3);
    transpose!(pd f64 "avx512f,avx512dq" __m512d, _mm512_unpacklo_pd _mm512_unpackhi_pd _mm512_extractf64x2_pd _mm512_castpd128_pd512 _mm512_insertf64x2: 0 1 2 3);
}

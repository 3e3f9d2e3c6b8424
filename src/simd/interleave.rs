//! Two vectors taken apart into the elements at even and at odd places, and put together again; lanes of groups, whose
//! sizes divide the lanes and so are powers of two.
#![allow(clippy::missing_safety_doc, reason = "each needs its feature, and nothing else")]

pub mod avx2 {
    /// Elements of 32 bits.
    pub mod ps {
        use core::arch::x86_64::*;

        #[inline]
        #[target_feature(enable = "avx2")]
        pub unsafe fn within<const C: usize>(v: __m256, lane: usize) -> __m256 {
            const { assert!(C.is_power_of_two()) };
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let first = _mm256_and_si256(lanes, _mm256_set1_epi32(-(C as i32)));
            _mm256_permutevar8x32_ps(v, _mm256_add_epi32(first, _mm256_set1_epi32(lane as i32)))
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        pub unsafe fn deinterleave(a: __m256, b: __m256) -> [__m256; 2] {
            // Each half of 128 bits by itself, then the quarters of 64 bits in order.
            let order = |v| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(v)));
            [order(_mm256_shuffle_ps::<0x88>(a, b)), order(_mm256_shuffle_ps::<0xdd>(a, b))]
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        pub unsafe fn interleave(a: __m256, b: __m256) -> [__m256; 2] {
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
        }
    }

    /// Elements of 64 bits.
    pub mod pd {
        use core::arch::x86_64::*;

        #[inline]
        #[target_feature(enable = "avx2")]
        pub unsafe fn within<const C: usize>(v: __m256d, lane: usize) -> __m256d {
            const { assert!(C.is_power_of_two()) };
            // Halves of elements.
            let half = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let first = _mm256_and_si256(half, _mm256_set1_epi32(-(2 * C as i32) | 1));
            let at = _mm256_add_epi32(first, _mm256_set1_epi32(2 * lane as i32));
            _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(v), at))
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        pub unsafe fn deinterleave(a: __m256d, b: __m256d) -> [__m256d; 2] {
            let order = |v| _mm256_permute4x64_pd::<0b11_01_10_00>(v);
            [order(_mm256_unpacklo_pd(a, b)), order(_mm256_unpackhi_pd(a, b))]
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        pub unsafe fn interleave(a: __m256d, b: __m256d) -> [__m256d; 2] {
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            [_mm256_permute2f128_pd::<0x20>(low, high), _mm256_permute2f128_pd::<0x31>(low, high)]
        }
    }
}

pub mod avx512 {
    /// Elements of 32 bits.
    pub mod ps {
        use core::arch::x86_64::*;

        #[inline]
        #[target_feature(enable = "avx512f")]
        pub unsafe fn within<const C: usize>(v: __m512, lane: usize) -> __m512 {
            const { assert!(C.is_power_of_two()) };
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let first = _mm512_and_si512(lanes, _mm512_set1_epi32(-(C as i32)));
            _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(lane as i32)), v)
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        pub unsafe fn deinterleave(a: __m512, b: __m512) -> [__m512; 2] {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            [_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)]
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        pub unsafe fn interleave(a: __m512, b: __m512) -> [__m512; 2] {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            [_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b)]
        }
    }

    /// Elements of 64 bits.
    pub mod pd {
        use core::arch::x86_64::*;

        #[inline]
        #[target_feature(enable = "avx512f")]
        pub unsafe fn within<const C: usize>(v: __m512d, lane: usize) -> __m512d {
            const { assert!(C.is_power_of_two()) };
            let lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
            let first = _mm512_and_si512(lanes, _mm512_set1_epi64(-(C as i64)));
            _mm512_permutexvar_pd(_mm512_add_epi64(first, _mm512_set1_epi64(lane as i64)), v)
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        pub unsafe fn deinterleave(a: __m512d, b: __m512d) -> [__m512d; 2] {
            let even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
            let odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
            [_mm512_permutex2var_pd(a, even, b), _mm512_permutex2var_pd(a, odd, b)]
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        pub unsafe fn interleave(a: __m512d, b: __m512d) -> [__m512d; 2] {
            let low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
            let high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
            [_mm512_permutex2var_pd(a, low, b), _mm512_permutex2var_pd(a, high, b)]
        }
    }
}

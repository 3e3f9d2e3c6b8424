//! A lone row over packed panels: bound by reading them, some side by side.
#![forbid(unsafe_code)]

use super::kernel::each;
use crate::element::Element;
use crate::simd::{Simd, SimdOp, Streams};

/// Vectors of the widest panel.
const VECTORS: usize = 4;

/// c = alpha · a · B + beta · c over a block of depth, for `N` panels. The sums are those of
/// [`Strip`](super::kernel::Strip).
pub(super) struct Lone<'l, T, const N: usize> {
    /// One row.
    pub(super) a: &'l [T],
    /// Panels of whole tiles, of the depth of `a`.
    pub(super) b: &'l [T],
    pub(super) alpha: T,
    /// `None` never reads C.
    pub(super) beta: Option<T>,
    pub(super) c: &'l mut [T],
}

impl<T: Element, const N: usize> SimdOp<T> for Lone<'_, T, N> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { a, b, alpha, beta, c } = self;
        let width = S::TILE_VECTORS * S::LANES;
        let len = width * a.len();
        let mut streams = Streams::<T, N>::none();
        streams.each(len, |i| &b[i * len..]);
        let mut sums = [[simd.splat(T::ZERO); N]; VECTORS];
        const { assert!(S::TILE_VECTORS <= VECTORS) };
        for (p, &x) in a.iter().enumerate() {
            let x = simd.splat(x);
            each!(v in vectors VECTORS {
                if v < S::TILE_VECTORS {
                    let at = p * width + v * S::LANES;
                    for (sum, vector) in sums[v].iter_mut().zip(streams.load(simd, at)) {
                        *sum = simd.mul_add(x, vector, *sum);
                    }
                }
            });
        }
        let alpha = simd.splat(alpha);
        for (i, c) in c.chunks_exact_mut(width).take(N).enumerate() {
            each!(v in vectors VECTORS {
                if v < S::TILE_VECTORS {
                    let run = &mut c[v * S::LANES..];
                    let mut value = simd.mul(alpha, sums[v][i]);
                    if let Some(beta) = beta {
                        value = simd.mul_add(simd.splat(beta), simd.load(run), value);
                    }
                    simd.store(value, run);
                }
            });
        }
    }
}

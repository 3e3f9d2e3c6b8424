//! A lone row over packed panels: bound by reading them, in some runs side by side. Each run is long, as the processor reads ahead of
//! one only once it has seen some of it.
#![forbid(unsafe_code)]

use super::kernel::{VECTORS, each};
use crate::element::Element;
use crate::simd::{CACHE_LINE, Simd, SimdOp, Streams, prefetch};

/// Runs that are read side by side.
pub(crate) const RUNS: usize = 4;

/// Bytes of a run between what is read and what is asked for.
const AHEAD: usize = 1 << 10;

/// c = alpha · a · B + beta · c over a block of depth, for `N` runs of panels. The sums are those of
/// [`Strip`](super::kernel::Strip).
pub(super) struct Lone<'l, T, const N: usize> {
    /// One row.
    pub(super) a: &'l [T],
    /// Panels of whole tiles, of the depth of `a`: as many in each run.
    pub(super) b: &'l [T],
    /// What is read next is asked for. Where it comes from memory, that costs more than it gains.
    pub(super) ask: bool,
    pub(super) alpha: T,
    /// `None` never reads C.
    pub(super) beta: Option<T>,
    pub(super) c: &'l mut [T],
}

impl<T: Element, const N: usize> SimdOp<T> for Lone<'_, T, N> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { a, b, ask, alpha, beta, c } = self;
        let width = S::TILE_VECTORS * S::LANES;
        let len = width * a.len();
        let panels = c.len() / width / N;
        let alpha = simd.splat(alpha);
        for panel in 0..panels {
            let mut streams = Streams::<T, N>::none();
            streams.each(len, |i| &b[(i * panels + panel) * len..]);
            let mut sums = [[simd.splat(T::ZERO); N]; VECTORS];
            const { assert!(S::TILE_VECTORS <= VECTORS) };
            for (p, &x) in a.iter().enumerate() {
                let x = simd.splat(x);
                // Where a step is shorter than a line, once for each line.
                let often = const { CACHE_LINE.div_ceil(S::TILE_VECTORS * S::LANES * size_of::<T>()) };
                for i in 0..if ask && p.is_multiple_of(often) { N } else { 0 } {
                    let line = b.as_ptr().wrapping_add((i * panels + panel) * len + p * width);
                    for at in (0..width * size_of::<T>()).step_by(CACHE_LINE) {
                        prefetch(line.wrapping_byte_add(at + AHEAD));
                    }
                }
                each!(v in vectors VECTORS {
                    if v < S::TILE_VECTORS {
                        let at = p * width + v * S::LANES;
                        for (sum, vector) in sums[v].iter_mut().zip(streams.load(simd, at)) {
                            *sum = simd.mul_add(x, vector, *sum);
                        }
                    }
                });
            }
            for i in 0..N {
                let c = &mut c[(i * panels + panel) * width..][..width];
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
}

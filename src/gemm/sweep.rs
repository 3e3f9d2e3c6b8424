//! A few steps of depth for a row of tiles whose sums wait in memory: what reads B along its rows.

use super::block::finish;
use super::epilogue::Epilogue;
use super::kernel::{Narrow, each, no_such_tile};
use super::step::step;
use crate::element::Element;
use crate::simd::{self, Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

/// Bytes ahead in a row of B for which cache lines are asked.
const AHEAD: usize = 1024;

/// Adds some steps to the sums of a row of tiles.
pub struct Sweep<'s, T> {
    /// The steps of a panel of A of `width` rows.
    pub(crate) a: &'s [T],
    pub(crate) width: usize,
    /// Rows of the tiles, at most `width`.
    pub(crate) rows: usize,
    /// The same steps of B, `[steps, columns]`: contiguous rows, whole tiles.
    pub(crate) b: TensorView<'s, T, 2>,
    /// Tile after tile; in each, row after row.
    pub(crate) sums: &'s mut [T],
    /// The sums begin here.
    pub(crate) first: bool,
}

impl<T: Element> SimdOp<T> for &mut Sweep<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        macro_rules! kernels {
            ($($rows:literal)*) => {
                match self.rows {
                    $($rows => if const { $rows <= S::NARROW_ROWS } {
                        simd.call(Kernel::<T, $rows>(self))
                    } else {
                        no_such_tile()
                    },)*
                    _ => no_such_tile(),
                }
            };
        }
        const { assert!(S::NARROW_ROWS <= 12) };
        kernels!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// Vectors in a row of a tile.
const VECTORS: usize = 2;

/// The kernel for `R` rows.
struct Kernel<'k, 's, T, const R: usize>(&'k mut Sweep<'s, T>);

impl<T: Element, const R: usize> SimdOp<T> for Kernel<'_, '_, T, R> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Sweep { a, width, b, ref mut sums, first, .. } = *self.0;
        let ([steps, columns], [stride, unit]) = (b.shape(), b.strides());
        let tile = VECTORS * S::LANES;
        assert!(R <= width && steps * width <= a.len() && unit == 1);
        for (start, sums) in (0..columns / tile * tile).step_by(tile).zip(sums.chunks_exact_mut(R * tile)) {
            let mut tile = [[simd.splat(T::ZERO); VECTORS]; R];
            if !first {
                each!(i in rows R {
                    each!(v in pair VECTORS {
                        tile[i][v] = simd.load(&sums[(i * VECTORS + v) * S::LANES..]);
                    });
                });
            }
            let (mut at, mut bt) = (a.as_ptr(), b.as_ptr().wrapping_add(start));
            for _ in 0..steps {
                // SAFETY: asserted above: this step's `width` elements of A exist, of which `R` are read, and its row
                // of B is contiguous and has a whole tile from `start` on.
                unsafe {
                    step::<T, S, R, VECTORS, true, false>(simd, [at; 4], [0; 3], bt, S::LANES, &mut tile)
                };
                for v in (0..VECTORS * S::LANES).step_by(simd::CACHE_LINE / size_of::<T>()) {
                    simd::prefetch(bt.wrapping_add(AHEAD / size_of::<T>() + v));
                }
                at = at.wrapping_add(width);
                bt = bt.wrapping_offset(stride);
            }
            each!(i in rows R {
                each!(v in pair VECTORS {
                    simd.store(tile[i][v], &mut sums[(i * VECTORS + v) * S::LANES..]);
                });
            });
        }
    }
}

/// Takes the sums of a block of depth over to C: c = alpha · sums + beta · c, then the epilogue.
pub struct Merge<'m, T> {
    /// As in [`Sweep`].
    pub(crate) sums: &'m [T],
    pub(crate) alpha: T,
    /// `None` never reads C.
    pub(crate) beta: Option<T>,
    /// With the last block of depth only.
    pub(crate) epilogue: Option<&'m Epilogue<'m, T>>,
    /// Row and column of C's first element in the whole product.
    pub(crate) origin: [usize; 2],
    /// The row of tiles, its rows contiguous.
    pub(crate) c: TensorViewMut<'m, T, 2>,
}

impl<T: Element> SimdOp<T> for &mut Merge<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Merge { sums, alpha, beta, epilogue, origin, ref mut c } = *self;
        let ([rows, columns], width) = (c.shape(), VECTORS * S::LANES);
        for (start, sums) in (0..columns).step_by(width).zip(sums.chunks_exact(rows * width)) {
            let mut c = c.tile_mut([0, start], [rows, width]);
            Narrow { sums, width, alpha, beta, c: c.view_mut() }.eval(simd);
            finish(simd, epilogue, [origin[0], origin[1] + start], &mut c);
        }
    }
}

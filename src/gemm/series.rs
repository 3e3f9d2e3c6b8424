//! Many small products of one shape over panels that were packed before, as Winograd convolution has them.
#![forbid(unsafe_code)]

use super::kernel::{Lhs, Rhs, Tile};
use super::panel::Panels;
use crate::element::Element;
use crate::simd::{Simd, SimdOp};
use crate::tensor::TensorViewMut;

/// C\[i\] = A\[i\] · B\[i\], each one tile.
pub struct Series<'s, T> {
    pub(crate) count: usize,
    /// Steps of depth of each.
    pub(crate) depth: usize,
    /// Rows of each tile, at most the `width` of a panel of A.
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// Columns of each tile: one vector or two.
    pub(crate) columns: usize,
    /// Panels of A, one after the other.
    pub(crate) a: &'s [T],
    /// Panels of B, as wide as a whole tile, `b_stride` apart.
    pub(crate) b: &'s [T],
    pub(crate) b_stride: usize,
    /// Tiles of `rows` rows, `c_row` elements apart, `c_stride` from tile to tile.
    pub(crate) c: &'s mut [T],
    pub(crate) c_row: usize,
    pub(crate) c_stride: usize,
}

impl<T: Element> SimdOp<T> for &mut Series<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Series { count, depth, rows, width, columns, a, b, b_stride, ref mut c, c_row, c_stride } = *self;
        let tile_columns = S::TILE_VECTORS * S::LANES;
        for i in 0..count {
            let a = &a[i * width * depth..][..width * depth];
            let b = &b[i * b_stride..][..tile_columns * depth];
            let mut c = TensorViewMut::matrix(&mut c[i * c_stride..], [rows, c_row]);
            Tile {
                a: Lhs::panel(Panels::Packed { data: a, width, depth }, 0, rows, width, depth),
                b: Rhs::panel::<S>(Panels::Packed { data: b, width: tile_columns, depth }, 0, columns, depth),
                depth,
                alpha: T::ONE,
                beta: None,
                stream: false,
                tail: None,
                c: c.tile_mut([0, 0], [rows, columns]),
            }
            .run(simd);
        }
    }
}

//! Many products of one shape, as Winograd convolution has them.
#![forbid(unsafe_code)]

use super::ahead::Ahead;
use super::block::{STRIP, Store};
use super::blocking::height;
use super::kernel::{Lhs, Rhs, Strip};
use super::panel::Panels;
use crate::element::Element;
use crate::simd::{Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

/// C\[i\] = A\[i\] · B\[i\], each some rows of one panel of columns.
pub struct Series<'s, T> {
    pub(crate) count: usize,
    /// Rows and columns of each product, and steps of depth.
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
    /// Of each tile.
    pub(crate) tile_rows: usize,
    /// Contiguous rows, those of a product every `apart`, as in C.
    pub(crate) a: TensorView<'s, T, 2>,
    /// Panels of B of `width` columns, and then those of the next series, every `b_stride` elements.
    pub(crate) b: &'s [T],
    pub(crate) b_stride: usize,
    pub(crate) width: usize,
    pub(crate) c: TensorViewMut<'s, T, 2>,
    pub(crate) apart: usize,
}

impl<T: Element> SimdOp<T> for &mut Series<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Series { count, rows, columns, depth, tile_rows, a, b, b_stride, width, ref mut c, apart } =
            *self;
        let panel = width * depth;
        for i in 0..count {
            let a = Panels::Direct(a.tile([i * apart, 0], [rows, depth]));
            let packed = Panels::Packed { data: &b[i * b_stride..][..panel], width, depth };
            // The next panel is asked for while this one is used.
            let next = b.get((i + 1) * b_stride..).and_then(|rest| rest.get(..panel));
            let next = next.and_then(|next| TensorView::from_slice(next, [1, panel]).ok());
            let tiles = rows.div_ceil(tile_rows);
            let mut ahead = next.map_or(Ahead::nothing(), |next| Ahead::new(next, tiles, depth));
            let b = Rhs::panels::<S>(packed, 0, [1, columns], depth);
            let mut row = 0;
            while row < rows {
                let height = height(rows - row, tile_rows, S::TILE_ROWS);
                let tiles = if height == tile_rows { ((rows - row) / height).min(STRIP) } else { 1 };
                Strip {
                    a: Lhs::panels(a, row, [tiles, height], height, depth),
                    b,
                    count: tiles,
                    height,
                    down: true,
                    depth,
                    alpha: T::ONE,
                    beta: None,
                    store: Store::Near,
                    tail: None,
                    ahead: &mut ahead,
                    c: &mut c.tile_mut([i * apart + row, 0], [tiles * height, columns]),
                }
                .run(simd);
                row += tiles * height;
            }
        }
    }
}

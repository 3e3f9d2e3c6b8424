//! Many small products of one shape over panels that were packed before, as Winograd convolution has them.
#![forbid(unsafe_code)]

use super::ahead::Ahead;
use super::blocking::height;
use super::kernel::{Lhs, Rhs, Strip};
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
    /// Panels of B of `b_width` columns, `b_stride` apart.
    pub(crate) b: &'s [T],
    pub(crate) b_width: usize,
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
        let Series {
            count,
            depth,
            rows,
            width,
            columns,
            a,
            b,
            b_width,
            b_stride,
            ref mut c,
            c_row,
            c_stride,
        } = *self;
        for i in 0..count {
            let a = Panels::Packed { data: &a[i * width * depth..][..width * depth], width, depth };
            let b = Panels::Packed { data: &b[i * b_stride..][..b_width * depth], width: b_width, depth };
            let b = Rhs::panels::<S>(b, 0, [1, columns], depth);
            let mut c = TensorViewMut::matrix(&mut c[i * c_stride..], [rows, c_row]);
            let mut row = 0;
            while row < rows {
                let height = height(rows - row, width, S::TILE_ROWS);
                Strip {
                    a: Lhs::panels(a, row, [1, height], width, depth),
                    b,
                    count: 1,
                    height,
                    down: false,
                    depth,
                    alpha: T::ONE,
                    beta: None,
                    stream: false,
                    tail: None,
                    ahead: &mut Ahead::nothing(),
                    c: &mut c.tile_mut([row, 0], [height, columns]),
                }
                .run(simd);
                row += height;
            }
        }
    }
}

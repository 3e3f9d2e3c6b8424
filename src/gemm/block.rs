//! The two innermost loops around the micro-kernel.

#![forbid(unsafe_code)]

use crate::element::Element;
use crate::simd::{self, Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

use super::epilogue::Epilogue;
use super::kernel::{Lhs, Rhs, Tile};
use super::panel::Panels;

/// Elements of the largest tile of any instruction set: 12 × 32.
const TILE_ELEMENTS: usize = 12 * 32;

/// How a block of C is computed from panels: c = alpha · A · B + beta · c, then the epilogue.
pub struct Block<'b, T> {
    /// Panels of A from the block's first row on.
    pub(crate) a: Panels<'b, T>,
    /// Panels of B from the block's first column on.
    pub(crate) b: Panels<'b, T>,
    /// Height of a panel of A.
    pub(crate) tile_rows: usize,
    /// Steps of depth.
    pub(crate) depth: usize,
    pub(crate) alpha: T,
    /// `None` never reads C.
    pub(crate) beta: Option<T>,
    /// With the last block of depth only.
    pub(crate) epilogue: Option<&'b Epilogue<'b, T>>,
    /// Row and column of the block's first element in the whole product.
    pub(crate) origin: [usize; 2],
    /// A matrix that is read next: its cache lines are asked for meanwhile.
    pub(crate) next: Option<TensorView<'b, T, 2>>,
    /// C, which is not read then, goes past the caches.
    pub(crate) stream: bool,
    /// Column by column, for panels of B that come from memory: each is used by all rows while the next is asked for.
    pub(crate) across: bool,
    pub(crate) c: TensorViewMut<'b, T, 2>,
}

impl<T: Element> SimdOp<T> for &mut Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Block { a, b, tile_rows, depth, alpha, beta, epilogue, origin, next, stream, .. } = *self;
        let (across, c) = (self.across, &mut self.c);
        let [rows, columns] = c.shape();
        let unit = c.strides()[1];
        let tile_columns = S::TILE_VECTORS * S::LANES;
        let [down, right] = [rows.div_ceil(tile_rows), columns.div_ceil(tile_columns)];
        let mut next = next.map(|view| Ahead::new(view, down * right));
        let [mut i, mut j] = [0; 2];
        for _ in 0..down * right {
            let (row, column) = (i * tile_rows, j * tile_columns);
            // Row by row: neighbouring tiles of C share pages, and the processor sees their lines coming.
            [i, j] = match (across, i + 1 < down, j + 1 < right) {
                (true, true, _) | (false, _, false) => [i + 1, if across { j } else { 0 }],
                (true, false, _) => [0, j + 1],
                (false, _, true) => [i, j + 1],
            };
            let height = tile_rows.min(rows - row);
            let a = Lhs::panel(a, row, height, tile_rows, depth);
            let width = tile_columns.min(columns - column);
            let mut b = Rhs::panel::<S>(b, column, width, depth);
            if across {
                b = b.fetching::<S>(row / tile_rows, down, depth);
            }
            let at = [origin[0] + row, origin[1] + column];
            let mut c = c.tile_mut([row, column], [height, width]);
            if let Some(next) = &mut next {
                next.ask();
            }
            if unit == 1 || width == 1 {
                let inside = unit == 1 && alpha == T::ONE && beta.is_none();
                let tail =
                    epilogue.filter(|_| inside).and_then(|epilogue| epilogue.tail(at, [height, width]));
                let finished = tail.is_some();
                Tile { a, b, depth, alpha, beta, stream, tail, c: c.view_mut() }.run(simd);
                if !finished {
                    finish(simd, epilogue, at, &mut c);
                }
                continue;
            }
            // C's rows are not contiguous: the tile is made beside it.
            let mut scratch = [T::ZERO; TILE_ELEMENTS];
            let mut beside = TensorViewMut::matrix(&mut scratch, [height, width]);
            let turned = c.strides()[0] == 1;
            if beta.is_some() && !turned {
                beside.copy_from(c.view());
            }
            let tile_beta = beta.filter(|_| !turned);
            Tile { a, b, depth, alpha, beta: tile_beta, stream: false, tail: None, c: beside.view_mut() }
                .run(simd);
            if turned {
                let epilogue = epilogue.map(|epilogue| epilogue.transpose());
                let at = [at[1], at[0]];
                simd.call(Turned { tile: &scratch, beta, epilogue, at, c: c.transpose() });
                continue;
            }
            finish(simd, epilogue, at, &mut beside);
            c.copy_from(beside.view());
        }
        if stream {
            simd.fence();
        }
    }
}

/// A tile on its way to a C with contiguous columns. Outlined: it is not the usual way.
struct Turned<'t, T> {
    /// Row after row, alpha · A · B.
    tile: &'t [T],
    /// As in [`Block`], the epilogue for the transposed product.
    beta: Option<T>,
    epilogue: Option<Epilogue<'t, T>>,
    /// Column and row of the tile's first element in the product.
    at: [usize; 2],
    /// Cᵀ: contiguous rows.
    c: TensorViewMut<'t, T, 2>,
}

impl<T: Element> SimdOp<T> for Turned<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(mut self, simd: S) {
        let [columns, rows] = self.c.shape();
        let width = const { S::TILE_ROWS.next_multiple_of(S::LANES) };
        let mut turned = [T::ZERO; TILE_ELEMENTS / 12 * 16];
        for i in (0..rows).step_by(4) {
            let row = |row: usize| self.tile.get(row * columns..).filter(|_| row < rows).unwrap_or(&[]);
            for j in (0..columns).step_by(S::LANES) {
                let vector = |row: &[T]| {
                    let run = row.get(j..).unwrap_or(&[]);
                    simd.load_partial(&run[..run.len().min(S::LANES.min(columns - j))])
                };
                let four = std::array::from_fn(|of| vector(row(i + of)));
                simd.store_transposed(four, &mut turned[j * width + i..], width);
            }
        }
        for (j, values) in turned.chunks_exact(width).take(columns).enumerate() {
            let Some(run) = self.c.row_mut(j) else { return };
            for (values, run) in values.chunks_exact(S::LANES).zip(run.chunks_mut(S::LANES)) {
                let mut value = simd.load(values);
                if let Some(beta) = self.beta {
                    value = simd.mul_add(simd.splat(beta), simd.load_partial(run), value);
                }
                simd.store_partial(value, run);
            }
            if let Some(epilogue) = &self.epilogue {
                epilogue.apply(simd, self.at[0] + j, self.at[1], run);
            }
        }
    }
}

/// The first cache lines of the runs of a matrix with contiguous rows or columns, asked for some at a time.
struct Ahead<T> {
    ptr: *const T,
    /// Contiguous runs, their distance, and the lines of each.
    runs: usize,
    stride: isize,
    lines: usize,
    run: usize,
    line: usize,
    /// How many lines are asked for at a time.
    share: usize,
}

impl<T> Ahead<T> {
    /// All lines within `turns` turns.
    fn new(view: TensorView<'_, T, 2>, turns: usize) -> Self {
        let ([mut runs, mut len], [mut stride, step]) = (view.shape(), view.strides());
        if step != 1 {
            (runs, len, stride) = (len, runs, step);
        }
        let all = (len * size_of::<T>()).div_ceil(simd::CACHE_LINE);
        // More at a time would stand in the way of the loads of the turn. The processor goes on by itself where it
        // has seen the first lines of a run.
        let lines = if runs * all <= turns * 8 { all } else { all.min(4) };
        let share = (runs * lines).div_ceil(turns.max(1));
        Self { ptr: view.as_ptr(), runs, stride, lines, run: 0, line: 0, share }
    }

    #[inline(always)]
    fn ask(&mut self) {
        for _ in 0..self.share {
            if self.run == self.runs {
                return;
            }
            let offset =
                self.run as isize * self.stride + (self.line * (simd::CACHE_LINE / size_of::<T>())) as isize;
            simd::prefetch_l2(self.ptr.wrapping_offset(offset));
            self.line += 1;
            if self.line == self.lines {
                (self.line, self.run) = (0, self.run + 1);
            }
        }
    }
}

/// The epilogue over a tile with contiguous rows, whose first element is `at` in the product.
#[inline(always)]
pub(super) fn finish<T: Element, S: Simd<T>>(
    simd: S,
    epilogue: Option<&Epilogue<'_, T>>,
    at: [usize; 2],
    c: &mut TensorViewMut<'_, T, 2>,
) {
    if let Some(epilogue) = epilogue {
        simd.call(Finish { epilogue, at, c: c.view_mut() });
    }
}

/// The epilogue of a tile. Outlined: there are many kernels.
struct Finish<'t, T> {
    epilogue: &'t Epilogue<'t, T>,
    at: [usize; 2],
    c: TensorViewMut<'t, T, 2>,
}

impl<T: Element> SimdOp<T> for Finish<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(mut self, simd: S) {
        for i in 0..self.c.shape()[0] {
            if let Some(run) = self.c.row_mut(i) {
                self.epilogue.apply(simd, self.at[0] + i, self.at[1], run);
            }
        }
    }
}

//! The two innermost loops around the micro-kernel.

#![forbid(unsafe_code)]

use crate::element::Element;
use crate::machine;
use crate::simd::{Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

use super::ahead::Ahead;
use super::blocking::{NEAR, PAGE, height};
use super::epilogue::Epilogue;
use super::keep::Keep;
use super::kernel::{Lhs, Rhs, SUMS, Strip};
use super::lone::{Lone, RUNS};
use super::panel::Panels;
use super::walk::Order;

/// Tiles that go through the kernel at a time: what comes before the first step and after the last of each of them is a few
/// instructions then, and they stay in L1 for the epilogue.
pub(super) const STRIP: usize = 8;
/// Rows of a tile of few columns over lines of A in place.
const TALL: usize = 8;

/// Where C is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// What may lie in L2.
    Near,
    /// What comes late: of few steps of depth a tile's lines are asked for while the tile before is computed.
    Far,
    /// Past the caches; it is not read then.
    Past,
}

impl Store {
    /// For a matrix of this shape and these strides that is written to the caches. From L3 the processor fetches what it sees coming:
    /// rows that are neighbours, not those on other pages.
    pub(crate) fn of<T>([rows, columns]: [usize; 2], [row, _]: [isize; 2]) -> Self {
        let bytes = |elements: usize| elements.saturating_mul(size_of::<T>());
        let caches = machine::caches();
        let held = if bytes(row.unsigned_abs()) < PAGE { caches.share().max(caches.l2) } else { caches.l2 };
        if bytes(rows.saturating_mul(columns)) > held { Store::Far } else { Store::Near }
    }
}

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
    /// A matrix that is read next: its cache lines are asked for meanwhile; where panels of B are asked for one by one, with the last
    /// of them.
    pub(crate) next: Option<TensorView<'b, T, 2>>,
    pub(crate) store: Store,
    pub(crate) order: Order,
    /// Column by column, the next panel of B is asked for meanwhile.
    pub(crate) ask: bool,
    /// Room for a panel of B that is packed while the first rows read it in place; empty where none is. Column by column only.
    pub(crate) panel: &'b mut [T],
    pub(crate) c: TensorViewMut<'b, T, 2>,
}

impl<T: Element> SimdOp<T> for &mut Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Block { a, b, tile_rows, depth, alpha, beta, epilogue, origin, next, store, order, ask, .. } =
            *self;
        let (c, panel) = (&mut self.c, &mut self.panel);
        let [rows, columns] = c.shape();
        let unit = c.strides()[1];
        // Without neighbours of either kind, which is rare, A is taken line by line.
        let tile_rows = if a.has_neighbours() { tile_rows } else { 1 };
        let tile_columns = S::TILE_VECTORS * S::LANES;
        let mut ahead = match next {
            Some(view) => Ahead::new(view, rows.div_ceil(tile_rows) * columns.div_ceil(tile_columns), depth),
            None => Ahead::nothing(),
        };
        let fetch = order == Order::Fetch;
        let near = tile_columns * depth * size_of::<T>() <= NEAR && order != Order::Rows;
        let by_column = fetch || by_column::<T, S>([rows, columns], tile_rows, near);
        let contiguous = unit == 1 || columns == 1;
        let mut done = 0;
        if let (1, 1, Some(a), Panels::Packed { data, width, .. }) = (rows, unit, a.line(depth), b)
            && width == tile_columns
        {
            while columns - done >= 2 * width {
                let panels = (columns - done) / width;
                let runs = panels.min(RUNS);
                let some = panels / runs * runs * width;
                let mut c = c.tile_mut([0, done], [1, some]);
                let Some(row) = c.row_mut(0) else { break };
                let b = &data[done * depth..][..some * depth];
                match runs {
                    2 => simd.call(Lone::<T, 2> { a, b, ask, alpha, beta, c: row }),
                    3 => simd.call(Lone::<T, 3> { a, b, ask, alpha, beta, c: row }),
                    _ => simd.call(Lone::<T, { RUNS }> { a, b, ask, alpha, beta, c: row }),
                }
                finish(simd, epilogue, [origin[0], origin[1] + done], &mut c);
                done += some;
            }
        }
        // Lines in place may be cut otherwise than panels. Each wants a register for its address: more than these are in memory.
        let free = by_column && rows >= 2 * TALL && S::NARROW_ROWS >= TALL && a.has_lines();
        let tall = if free { TALL } else { tile_rows };
        let mut strips = Strips {
            shape: [rows, columns],
            tile_rows,
            tall,
            by_column,
            longest: if contiguous { STRIP } else { 1 },
            at: [0, done],
        };
        // What the rows below the first tile read instead of a panel in place.
        let keeps = fetch && contiguous && panel.len() >= tile_columns * depth;
        let mut kept = false;
        loop {
            let top = keeps && strips.at[0] == 0;
            strips.longest = if top || !contiguous { 1 } else { STRIP };
            let Some(Place { at, count, height, width }) = strips.next::<T, S>() else { break };
            let of = if by_column { [count, 1] } else { [1, count] };
            let a = Lhs::panels(a, at[0], [of[0], height], tile_rows, depth);
            if at[0] == 0 {
                kept = top && width == tile_columns && height < rows;
                let column = at[1] + tile_columns;
                let following = if column < columns { b.next(column, tile_columns, depth) } else { next };
                if let (true, true, Some(next)) = (fetch, ask, following) {
                    ahead = Ahead::panel(next, rows.div_ceil(tile_rows) - usize::from(kept), depth);
                }
            }
            if top && kept {
                let b = Rhs::panels::<S>(b, at[1], [1, width], depth);
                let mut c = c.tile_mut(at, [height, width]);
                Keep { a, b, height, depth, alpha, beta, panel, c: &mut c }.run(simd);
                finish(simd, epilogue, [origin[0] + at[0], origin[1] + at[1]], &mut c);
                continue;
            }
            let b = if kept {
                let data = &panel[..tile_columns * depth];
                Rhs::panels::<S>(Panels::Packed { data, width: tile_columns, depth }, 0, [1, width], depth)
            } else {
                Rhs::panels::<S>(b, at[1], [of[1], width], depth)
            };
            let mut c = c.tile_mut(at, [of[0] * height, of[1] * width]);
            let at = [origin[0] + at[0], origin[1] + at[1]];
            if contiguous {
                let (down, tail, ahead, c) = (by_column, None, &mut ahead, &mut c);
                let strip = Strip { a, b, count, height, down, depth, alpha, beta, store, tail, ahead, c };
                complete(simd, strip, epilogue, at);
                continue;
            }
            // C's rows are not contiguous: the tile is made beside it.
            let mut scratch = [T::ZERO; SUMS];
            let mut beside = TensorViewMut::matrix(&mut scratch, [height, width]);
            if beta.is_some() {
                beside.copy_from(c.view());
            }
            let (store, tail, ahead, down) = (Store::Near, None, &mut ahead, false);
            Strip { a, b, count, height, down, depth, alpha, beta, store, tail, ahead, c: &mut beside }
                .run(simd);
            finish(simd, epilogue, at, &mut beside);
            c.copy_from(beside.view());
        }
        if store == Store::Past {
            simd.fence();
        }
    }
}

/// True where tiles are computed column by column. Row by row neighbouring tiles of C share pages, and the processor sees their
/// lines coming. Column by column a panel of B is used again while it is in L1 (`near`), and there are longer strips where there
/// are few columns. One row of tiles is the same way in both, but a strip of one tile in a column.
#[inline(always)]
pub(super) fn by_column<T: Copy, S: Simd<T>>(
    [rows, columns]: [usize; 2],
    tile_rows: usize,
    near: bool,
) -> bool {
    let right = columns.div_ceil(S::TILE_VECTORS * S::LANES);
    (right <= 3 && rows > right.saturating_sub(1) * tile_rows) || (near && rows > tile_rows)
}

/// The strips of a block: of a column of tiles, or of a row.
pub(super) struct Strips {
    pub(super) shape: [usize; 2],
    pub(super) tile_rows: usize,
    /// The same of tiles of at most two vectors in a row, which leave registers for more rows.
    pub(super) tall: usize,
    pub(super) by_column: bool,
    /// Tiles of one.
    pub(super) longest: usize,
    /// Where the next begins.
    pub(super) at: [usize; 2],
}

/// Where a strip lies.
pub(super) struct Place {
    pub(super) at: [usize; 2],
    /// Tiles in it.
    pub(super) count: usize,
    /// Of each.
    pub(super) height: usize,
    /// Of each: whole where there are several beside each other.
    pub(super) width: usize,
}

impl Strips {
    #[inline(always)]
    pub(super) fn next<T: Copy, S: Simd<T>>(&mut self) -> Option<Place> {
        let Self { shape: [rows, columns], tile_rows, tall, by_column, longest, at: [row, column] } = *self;
        if row >= rows || column >= columns {
            return None;
        }
        let tile_columns = S::TILE_VECTORS * S::LANES;
        let (below, beside) = (rows - row, columns - column);
        let width = tile_columns.min(beside);
        let tile_rows = if width <= 2 * S::LANES { tall } else { tile_rows };
        let height = height(below, tile_rows, S::TILE_ROWS);
        let whole = match by_column {
            // The division is that of small numbers: it is much of the time that a small product takes.
            true if below < STRIP * tile_rows => (below as u32 / tile_rows as u32) as usize,
            true => STRIP,
            false => beside / tile_columns,
        };
        let count = whole.clamp(1, longest);
        if by_column {
            self.at[0] += count * height;
            if self.at[0] >= rows {
                self.at = [0, column + tile_columns];
            }
        } else {
            self.at[1] += count * tile_columns;
            if self.at[1] >= columns {
                self.at = [row + height, 0];
            }
        }
        Some(Place { at: [row, column], count, height, width })
    }
}

/// Computes a strip whose first element is `at` in the product, and the epilogue: in registers where it is of the usual kind.
#[inline(always)]
pub(super) fn complete<T: Element, S: Simd<T>>(
    simd: S,
    strip: Strip<'_, '_, T>,
    epilogue: Option<&Epilogue<'_, T>>,
    at: [usize; 2],
) {
    let Strip { a, b, count, height, down, depth, alpha, beta, store, ahead, c, .. } = strip;
    let inside = c.strides()[1] == 1 && alpha == T::ONE && beta.is_none();
    let tail = epilogue.filter(|_| inside).and_then(|epilogue| epilogue.tail(at, c.shape()));
    let finished = tail.is_some();
    Strip { a, b, count, height, down, depth, alpha, beta, store, tail, ahead, c: &mut *c }.run(simd);
    if !finished {
        finish(simd, epilogue, at, c);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_results_are_far_where_the_processor_does_not_see_their_lines_coming() {
        let caches = machine::caches();
        let (l2, share) = (caches.l2 / 4, caches.share().max(caches.l2) / 4);
        for (rows, stride, expected) in [
            (share / 64, 64, Store::Near),
            (share / 64 + 1, 64, Store::Far),
            (l2 / 64, 1024, Store::Near),
            (l2 / 64 + 1, -1024, Store::Far),
            (usize::MAX, isize::MIN, Store::Far),
        ] {
            assert_eq!(Store::of::<f32>([rows, 64], [stride, 1]), expected, "{rows} {stride}");
        }
    }
}

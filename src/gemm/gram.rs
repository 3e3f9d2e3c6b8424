//! The Gram product: C = alpha · A · Aᵀ + beta · C in half the multiplications of a product.
//!
//! ```text
//!   ┌─────┬─────┐
//!   │  ◺  │  ᵀ  │      ◺   halved again, down to a leaf
//!   ├─────┼─────┤      ■   a product like any other
//!   │  ■  │  ◺  │      ᵀ   a copy of ■
//!   └─────┴─────┘
//! ```
//!
//! A leaf packs its rows once, as panels of B, and computes of each row of tiles those that reach below the diagonal. A small C of
//! much depth is the sum of such products of parts of the depth.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::block::{Block, Store};
use super::blocking::{Tile, depth_block, tile, tile_rows};
use super::descriptor::trace;
use super::driver::{self, Extent, Input, LARGE, Path, Scale, scratch};
use super::epilogue::Epilogue;
use super::panel::{self, Panels};
use super::walk::Order;
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::parallel::{self, TASKS_PER_THREAD};
use crate::simd::{MOST_LANES, Simd, SimdOp};
use crate::tensor::{self, TensorView, TensorViewMut};
use crate::workspace;

const OP: &str = "gram";

/// Rows of the largest leaf, but for twice as many where L2 is large.
const LEAF: usize = 256;
/// Depth of the shortest of several parts.
const DEEP: usize = 2048;
/// Multiplications that a task is worth at least.
const GRAIN: usize = 1 << 19;
/// Elements of a row that become columns with those of the next rows: their lines stay in L1.
const TURNED: usize = 64;

/// C = alpha · A · Aᵀ + beta · C, with A `[m, k]` and C `[m, m]` of any strides, in half the time of
/// [`gemm`](super::gemm): cᵢⱼ = cⱼᵢ = alpha · Σₚ aᵢₚ · aⱼₚ + beta · cᵢⱼ for i ≥ j.
///
/// C comes out symmetric, bit for bit. Of what it held only the lower triangle with the diagonal counts, and nothing
/// where beta is 0. For Aᵀ · A pass `a.transpose()`.
///
/// # Errors
/// [`Error::Shape`] where C is not `[m, m]`, [`Error::Isa`] where `TILEWISE_ISA` is wrong: nothing is written then.
/// [`Error::Alloc`] where there is no memory for scratch.
///
/// ```
/// use tilewise::{Tensor, TensorView, gemm};
/// let a = TensorView::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// let mut c = Tensor::<f64, 2>::zeros([2, 2])?;
/// gemm::gram(2.0, a, 0.0, c.view_mut())?;
/// assert_eq!(c.as_slice(), [28.0, 64.0, 64.0, 154.0]);
///
/// let mut covariance = Tensor::<f64, 2>::zeros([3, 3])?;
/// gemm::gram(0.5, a.transpose(), 0.0, covariance.view_mut())?;
/// assert_eq!(covariance.as_slice(), [8.5, 11.0, 13.5, 11.0, 14.5, 18.0, 13.5, 18.0, 22.5]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn gram<T: Element>(
    alpha: T,
    a: TensorView<'_, T, 2>,
    beta: T,
    c: TensorViewMut<'_, T, 2>,
) -> Result<()> {
    T::gram(alpha, a, beta, c)
}

/// [`gram`].
pub(super) fn run<T: Element>(
    alpha: T,
    a: TensorView<'_, T, 2>,
    beta: T,
    c: TensorViewMut<'_, T, 2>,
) -> Result<()> {
    let ([m, k], isa) = (a.shape(), machine::isa()?);
    if c.shape() != [m, m] {
        return Err(Error::shape(OP, "c", &c.shape(), &[m, m]));
    }
    if m == 0 {
        return Ok(()); // there may be more steps of depth than can be walked
    }
    let start = machine::verbose().then(Instant::now);
    // Without depth there is nothing that an infinite alpha could multiply.
    let alpha = if k == 0 { T::ZERO } else { alpha };
    let epilogue = Epilogue { bias: None, residual: None, activation: Activation::Identity };
    let scale = Scale { alpha, beta, epilogue };
    let path = if m == 1 {
        T::product(isa, a.into(), a.transpose().into(), &scale, c, None)?
    } else {
        let tile = tile::<T>(isa);
        let work = (m.saturating_mul(m) / 2).saturating_mul(k);
        let threads = parallel::threads_for(work, GRAIN);
        // Halves are alike only for a power of two; else more of them even out.
        let even = threads.is_power_of_two() && work / threads <= LARGE;
        let tasks = if even { threads } else { threads * TASKS_PER_THREAD };
        let parts = parts([m, k]);
        // Of not more than `PARTS` less one, each 256² at most.
        let mut partials = workspace::scratch(OP, (parts - 1) * m * m)?;
        Gram { isa, tile, scale: &scale }.deep(a, c, parts, tasks, &mut partials)?;
        Path { name: "gram", tasks }
    };
    trace::<T>(isa, 1, [m, m, k], path, start);
    Ok(())
}

/// Parts of the depth, a power of two, each of which is summed by itself, whatever the number of threads: a small C has too few
/// parts of equal work, and each of them would pack what others pack too.
fn parts([m, k]: [usize; 2]) -> usize {
    if m <= LEAF { parallel::parts(k / DEEP) } else { 1 }
}

/// What each part needs to know.
struct Gram<'g, T> {
    isa: Isa,
    tile: Tile,
    scale: &'g Scale<'g, T>,
}

impl<T: Element> Gram<'_, T> {
    /// Computes `c` from `a` in `tasks` tasks, half by half of the depth down to so many parts; `partials` has room for all but one.
    fn deep(
        &self,
        a: TensorView<'_, T, 2>,
        mut c: TensorViewMut<'_, T, 2>,
        parts: usize,
        tasks: usize,
        partials: &mut [T],
    ) -> Result<()> {
        let [m, k] = a.shape();
        if parts == 1 {
            return self.run(a, c, tasks);
        }
        let (low, high) = a.split_at(1, k / 2)?;
        let (own, rest) = partials.split_at_mut(m * m);
        let (of_low, of_high) = rest.split_at_mut(rest.len() / 2);
        let (half, share) = (parts / 2, tasks / 2);
        let scale = Scale { beta: T::ZERO, ..*self.scale };
        let alone = Gram { scale: &scale, ..*self };
        let mut one = || self.deep(low, c.view_mut(), half, share.max(1), of_low);
        let mut two =
            || alone.deep(high, TensorViewMut::matrix(own, [m, m]), half, (tasks - share).max(1), of_high);
        let (one, two) = if tasks > 1 { parallel::join(one, two) } else { (one(), two()) };
        one.and(two)?;
        tensor::map([TensorViewMut::matrix(own, [m, m]).view()], c, 1, &|[own], c: &mut [T]| {
            c.iter_mut().zip(own).for_each(|(c, &own)| *c += own);
        })
    }

    /// Depth of a block: that of a product of this part, as [`rectangle`](Self::rectangle) is one.
    fn kc(&self, a: TensorView<'_, T, 2>) -> usize {
        depth_block::<T>(self.tile, machine::caches(), a.shape()[1])
    }

    /// Computes `c` from all of `a` in `tasks` tasks.
    fn run(&self, a: TensorView<'_, T, 2>, mut c: TensorViewMut<'_, T, 2>, tasks: usize) -> Result<()> {
        let (m, unit) = (a.shape()[0], self.tile.columns);
        if m < 2 * unit && tasks > 2 {
            // Too small to be halved: the whole product is twice the work, but all threads share it.
            self.rectangle([a, a], c.view_mut(), tasks)?;
            return mirror(self.isa, c);
        }
        // What a leaf packs stays in L2.
        let packed = m.saturating_mul(self.kc(a).saturating_mul(size_of::<T>()));
        let small = m <= LEAF || (m <= 2 * LEAF && packed <= machine::caches().l2 / 2);
        if m < 2 * unit || (small && tasks <= 1) {
            return self.leaf(a, c);
        }
        let cut = m / 2 / unit * unit;
        let (a0, a1) = a.split_at(0, cut)?;
        let (top, bottom) = c.split_at(0, cut)?;
        let ((c00, c01), (mut c10, c11)) = (top.split_at(1, cut)?, bottom.split_at(1, cut)?);
        // Half of the work is the square, a quarter each triangle.
        let square = tasks / 2;
        let rest = tasks - square;
        let off_diagonal = || {
            self.rectangle([a1, a0], c10.view_mut(), square.max(1))?;
            turn(self.isa, c10.view(), c01);
            Ok(())
        };
        let diagonal = || {
            if rest <= 1 {
                self.run(a0, c00, 1)?;
                return self.run(a1, c11, 1);
            }
            let half = rest / 2;
            let (one, two) = parallel::join(|| self.run(a0, c00, half), || self.run(a1, c11, rest - half));
            one.and(two)
        };
        if tasks <= 1 {
            off_diagonal()?;
            return diagonal();
        }
        let (one, two) = parallel::join(off_diagonal, diagonal);
        one.and(two)
    }

    /// Computes `c` from its rows and its columns of A in `tasks` tasks. By blocks, whatever the shape: the sums are those of a
    /// [`leaf`](Self::leaf), which there may be instead.
    fn rectangle(
        &self,
        [rows, columns]: [TensorView<'_, T, 2>; 2],
        c: TensorViewMut<'_, T, 2>,
        tasks: usize,
    ) -> Result<()> {
        let turned = c.strides()[1] != 1 && c.strides()[0] == 1;
        let (a, b, c) = if turned { (columns, rows, c.transpose()) } else { (rows, columns, c) };
        let (a, b) = (Input::Source(a), Input::Source(b));
        driver::product(self.isa, a, b, self.scale, c, Some(tasks), Extent::Part)?;
        Ok(())
    }

    /// Computes `c` on this thread.
    fn leaf(&self, a: TensorView<'_, T, 2>, mut c: TensorViewMut<'_, T, 2>) -> Result<()> {
        let ([m, k], kc, beta) = (a.shape(), self.kc(a), self.scale.first_beta());
        if c.strides()[1] != 1 && c.strides()[0] == 1 {
            // The kernels want contiguous rows.
            if beta.is_some() {
                mirror(self.isa, c.view_mut())?;
            }
            c = c.transpose();
        }
        let (width, rows_step) = (self.tile.columns, tile_rows(self.tile, [m, usize::MAX]));
        let mut packed = scratch(true, m, width, kc.min(k))?;
        for start in (0..k.max(1)).step_by(kc) {
            let steps = start..k.min(start + kc);
            let depth = steps.len();
            let data = &mut packed[..m.next_multiple_of(width) * depth];
            panel::pack(self.isa, a, 0..m, steps.clone(), width, data, false);
            for row in (0..m).step_by(rows_step) {
                let height = rows_step.min(m - row);
                // What lies beyond the diagonal in its last vector is computed too, and overwritten in the end.
                let columns = (row + height).next_multiple_of(self.tile.lanes).min(m);
                let mut block = Block {
                    a: Panels::Direct(a.tile([row, start], [height, depth])),
                    b: Panels::Packed { data, width, depth },
                    tile_rows: rows_step,
                    depth,
                    alpha: self.scale.alpha,
                    beta: if start == 0 { beta } else { Some(T::ONE) },
                    epilogue: None,
                    origin: [row, 0],
                    next: None,
                    store: Store::Near,
                    order: Order::Usual,
                    ask: false,
                    panel: &mut [],
                    c: c.tile_mut([row, 0], [height, columns]),
                };
                T::block(self.isa, &mut block);
            }
        }
        mirror(self.isa, c)
    }
}

/// Copies the lower triangle of a square matrix into the upper one.
fn mirror<T: Element>(isa: Isa, mut c: TensorViewMut<'_, T, 2>) -> Result<()> {
    let (m, rows) = (c.shape()[0], MOST_LANES);
    for row in (0..m).step_by(rows) {
        let count = rows.min(m - row);
        let (mut top, bottom) = c.view_mut().split_at(0, row)?;
        turn(isa, bottom.view().tile([0, 0], [count, row]), top.tile_mut([0, row], [row, count]));
        for i in row..row + count {
            for j in row..i {
                if let Some(&value) = c.get([i, j])
                    && let Some(to) = c.get_mut([j, i])
                {
                    *to = value;
                }
            }
        }
    }
    Ok(())
}

/// Copies the transpose of `from` to `to`, a part of the same matrix.
fn turn<T: Element>(isa: Isa, from: TensorView<'_, T, 2>, to: TensorViewMut<'_, T, 2>) {
    // Columns: the transposes are rows.
    let (from, mut to) = if from.strides()[1] == 1 { (from, to) } else { (from.transpose(), to.transpose()) };
    if from.strides()[1] != 1 || from.shape()[1] < 4 {
        to.copy_from(from.transpose());
        return;
    }
    T::dispatch(isa, Turn { from, to });
}

/// Rows of at least four elements that become columns.
struct Turn<'t, T> {
    from: TensorView<'t, T, 2>,
    to: TensorViewMut<'t, T, 2>,
}

impl<T: Element> SimdOp<T> for Turn<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { from, mut to } = self;
        let [lines, depth] = from.shape();
        let whole = lines / S::LANES * S::LANES;
        for first in (0..depth).step_by(TURNED) {
            let last = depth.min(first + TURNED);
            for line in (0..whole).step_by(S::LANES) {
                for step in (first..last).step_by(4) {
                    // Steps that are no four are taken with some before them again.
                    let step = step.min(depth - 4);
                    let columns = simd.load_transposed(from.fours([line, step], S::LANES));
                    for (p, column) in columns.into_iter().enumerate() {
                        if let Some(row) = to.row_mut(step + p) {
                            simd.store(column, &mut row[line..]);
                        }
                    }
                }
            }
        }
        if whole < lines {
            let rest = from.tile([whole, 0], [lines - whole, depth]);
            to.tile_mut([0, whole], [depth, lines - whole]).copy_from(rest.transpose());
        }
    }
}

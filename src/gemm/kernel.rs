//! The micro-kernel, and the two innermost loops around it.

use crate::element::Element;
use crate::machine::Isa;
use crate::simd::{self, Dispatch, Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

use super::epilogue::Epilogue;
use super::panel::Panels;
use super::series::Series;
use super::sweep::{Merge, Sweep};
use super::vector::Piece;

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
    pub(crate) c: TensorViewMut<'b, T, 2>,
}

/// Element types with their kernels compiled in this crate, not again in each crate that multiplies.
pub trait Kernels: Sized {
    /// Computes a block with the kernels of `isa`.
    fn block(isa: Isa, block: &mut Block<'_, Self>);

    /// Computes a series of tiles with the kernels of `isa`.
    fn series(isa: Isa, series: &mut Series<'_, Self>);

    /// Adds some steps to the sums of a row of tiles with the kernels of `isa`.
    fn sweep(isa: Isa, sweep: &mut Sweep<'_, Self>);

    /// Takes sums over to C with the kernels of `isa`.
    fn merge(isa: Isa, merge: &mut Merge<'_, Self>);

    /// Computes a piece of a row with the kernels of `isa`.
    fn piece(isa: Isa, piece: Piece<'_, Self>);
}

macro_rules! kernels {
    ($($T:ty)*) => {$(
        impl Kernels for $T {
            fn block(isa: Isa, block: &mut Block<'_, Self>) {
                Self::dispatch(isa, block);
            }

            fn series(isa: Isa, series: &mut Series<'_, Self>) {
                Self::dispatch(isa, series);
            }

            fn sweep(isa: Isa, sweep: &mut Sweep<'_, Self>) {
                Self::dispatch(isa, sweep);
            }

            fn merge(isa: Isa, merge: &mut Merge<'_, Self>) {
                Self::dispatch(isa, merge);
            }

            fn piece(isa: Isa, piece: Piece<'_, Self>) {
                Self::dispatch(isa, piece);
            }
        }
    )*};
}

kernels!(f32 f64);

impl<T: Element> SimdOp<T> for &mut Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Block { a, b, tile_rows, depth, alpha, beta, epilogue, origin, next, stream, ref mut c } = *self;
        let [rows, columns] = c.shape();
        let contiguous = c.strides()[1] == 1;
        let tile_columns = S::TILE_VECTORS * S::LANES;
        let tiles = rows.div_ceil(tile_rows) * columns.div_ceil(tile_columns);
        let mut next = next.map(|view| Ahead::new(view, tiles));
        // Row by row: neighbouring tiles of C share pages, and the processor sees their lines coming.
        for row in (0..rows).step_by(tile_rows) {
            let height = tile_rows.min(rows - row);
            let a = Lhs::panel(a, row, height, tile_rows, depth);
            for column in (0..columns).step_by(tile_columns) {
                let width = tile_columns.min(columns - column);
                let b = Rhs::panel::<S>(b, column, width, depth);
                let at = [origin[0] + row, origin[1] + column];
                let mut c = c.tile_mut([row, column], [height, width]);
                if let Some(next) = &mut next {
                    next.ask();
                }
                if contiguous || width == 1 {
                    Tile { a, b, depth, alpha, beta, stream, c: c.view_mut() }.run(simd);
                    finish(simd, epilogue, at, &mut c);
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
                Tile { a, b, depth, alpha, beta: tile_beta, stream: false, c: beside.view_mut() }.run(simd);
                if turned {
                    let epilogue = epilogue.map(|epilogue| epilogue.transpose());
                    let at = [at[1], at[0]];
                    simd.call(Turned { tile: &scratch, beta, epilogue, at, c: c.transpose() });
                    continue;
                }
                finish(simd, epilogue, at, &mut beside);
                c.copy_from(beside.view());
            }
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

/// Some lines of A over a block of depth: element (i, p) lies at `ptr + i · line + p · step`.
// Invariant: `height` lines of `depth` steps can be read.
#[derive(Clone, Copy)]
pub(super) struct Lhs<'a, T> {
    ptr: *const T,
    line: isize,
    step: isize,
    /// The lines are neighbours: `line` is 1.
    packed: bool,
    borrow: std::marker::PhantomData<&'a [T]>,
}

/// Some columns of B over a block of depth: element (p, j) lies at `ptr + p · step + j`.
// Invariant: `depth` steps of `readable` elements can be read: as many whole vectors as `width` needs, or, where
// loads are masked, `width`.
#[derive(Clone, Copy)]
pub(super) struct Rhs<'a, T> {
    ptr: *const T,
    step: isize,
    /// How far ahead of a step its cache lines are asked for.
    ahead: isize,
    width: usize,
    readable: usize,
    borrow: std::marker::PhantomData<&'a [T]>,
}

impl<'a, T: Element> Lhs<'a, T> {
    /// `height` lines of a panel of `width`, from line `first` on.
    #[inline(always)]
    pub(super) fn panel(
        panels: Panels<'a, T>,
        first: usize,
        height: usize,
        width: usize,
        depth: usize,
    ) -> Self {
        let (ptr, line, step, packed) = match panels {
            Panels::Packed { data, .. } => {
                let panel = &data[first * depth..][..width * depth];
                (panel.as_ptr(), 1, width as isize, true)
            }
            Panels::Direct(view) => {
                let ([lines, steps], [line, step]) = (view.shape(), view.strides());
                assert!(first + height <= lines && depth <= steps);
                (view.as_ptr().wrapping_offset(first as isize * line), line, step, line == 1)
            }
        };
        Self { ptr, line, step, packed, borrow: std::marker::PhantomData }
    }
}

impl<'a, T: Element> Rhs<'a, T> {
    /// `width` columns of a panel of `tile_columns`, from column `first` on.
    #[inline(always)]
    pub(super) fn panel<S: Simd<T>>(panels: Panels<'a, T>, first: usize, width: usize, depth: usize) -> Self {
        let tile_columns = S::TILE_VECTORS * S::LANES;
        let (ptr, step, ahead, readable) = match panels {
            Panels::Packed { data, .. } => {
                let panel = &data[first * depth..][..tile_columns * depth];
                // Two pages: the processor's own prefetching stops at the end of each.
                (panel.as_ptr(), tile_columns as isize, (8192 / size_of::<T>()) as isize, tile_columns)
            }
            Panels::Direct(view) => {
                let ([lines, steps], [line, step]) = (view.shape(), view.strides());
                // Without masks whole vectors only: what is left of a row is packed.
                assert!((S::MASKED || width.is_multiple_of(S::LANES)) && first + width <= lines);
                assert!(depth <= steps && line == 1);
                // The next panel: each step's lines lie beside this one's.
                (view.as_ptr().wrapping_add(first), step, tile_columns as isize, width)
            }
        };
        Self { ptr, step, ahead, width, readable, borrow: std::marker::PhantomData }
    }
}

/// One tile of C in registers.
pub(super) struct Tile<'t, T> {
    pub(super) a: Lhs<'t, T>,
    pub(super) b: Rhs<'t, T>,
    pub(super) depth: usize,
    pub(super) alpha: T,
    pub(super) beta: Option<T>,
    pub(super) stream: bool,
    /// Contiguous rows.
    pub(super) c: TensorViewMut<'t, T, 2>,
}

impl<'t, T: Element> Tile<'t, T> {
    /// Chooses the kernel for the tile's rows, vectors and kind of A. The order in which an element's
    /// products are added is the same in all of them.
    #[inline(always)]
    pub(super) fn run<S: Simd<T>>(mut self, simd: S) {
        // Only the kernels for lines anywhere have masks: there are many kernels.
        let masked = S::MASKED && !self.b.readable.is_multiple_of(S::LANES);
        macro_rules! kernels {
            ($($rows:literal)*) => {
                match self.c.shape()[0] {
                    // Constant where it is false: then the kernel is not compiled.
                    $($rows => if const { $rows <= S::TILE_ROWS } {
                        match (self.b.width <= S::LANES, self.a.packed && !masked) {
                            (true, true) => simd.call(Kernel::<T, $rows, 1, true>(&mut self)),
                            (true, false) => simd.call(Kernel::<T, $rows, 1, false>(&mut self)),
                            (false, true) => simd.call(Kernel::<T, $rows, 2, true>(&mut self)),
                            (false, false) => simd.call(Kernel::<T, $rows, 2, false>(&mut self)),
                        }
                    } else {
                        no_such_tile()
                    },)*
                    _ => no_such_tile(),
                }
            };
        }
        const { assert!(S::TILE_VECTORS == 2 && S::TILE_ROWS <= 12) };
        kernels!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// `Block` cuts tiles of 1 to `TILE_ROWS` rows.
#[cold]
fn no_such_tile() -> ! {
    unreachable!("internal error: a tile without a kernel")
}

/// `body` for each of the first `count` rows or vectors of a tile, written out: loops that the compiler does not unroll
/// early enough keep the sums in memory.
macro_rules! each {
    ($i:ident in rows $count:ident $body:block) => {
        each!(@ $count $i $body 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($i:ident in vectors $count:ident $body:block) => {
        each!(@ $count $i $body 0 1)
    };
    (@ $count:ident $i:ident $body:block $($n:literal)*) => {$(
        if const { $n < $count } {
            let $i: usize = $n;
            $body
        }
    )*};
}

pub(crate) use each;

/// The kernel for `R` rows and `V` vectors of columns; `PACKED`: the lines of A are neighbours.
/// By reference: a tile that is moved waits for its own fields to reach memory.
struct Kernel<'k, 't, T, const R: usize, const V: usize, const PACKED: bool>(&'k mut Tile<'t, T>);

impl<T: Element, const R: usize, const V: usize, const PACKED: bool> SimdOp<T>
    for Kernel<'_, '_, T, R, V, PACKED>
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Tile { a, b, depth, alpha, beta, stream, ref mut c } = *self.0;
        let line = if PACKED { 1 } else { a.line };
        let mut sums = [[simd.splat(T::ZERO); V]; R];
        // C is needed when the sums are done.
        let (start, row) = (c.as_mut_ptr(), c.strides()[0]);
        for i in 0..if stream { 0 } else { R } {
            for j in (0..V * S::LANES).step_by(simd::CACHE_LINE / size_of::<T>()) {
                simd::prefetch(start.wrapping_offset(i as isize * row + j as isize));
            }
        }
        // A pointer for each four lines: counting up from one through all of them would take longer than the
        // multiply-adds of a narrow tile.
        let mut at: [*const T; 3] =
            std::array::from_fn(|j| a.ptr.wrapping_offset((4 * j as isize).wrapping_mul(line)));
        let mut bt = b.ptr;
        let last = b.readable.saturating_sub((V - 1) * S::LANES);
        // Two steps a turn: where two hardware threads share a core, every instruction that is not a
        // multiply-add costs.
        const UNROLL: usize = 2;
        macro_rules! steps {
            ($masked:literal: $($step:literal)*) => {$({
                const { assert!($step < UNROLL) };
                // SAFETY: the invariants of `Lhs` and `Rhs`: this step exists, with `R` lines and `V` vectors.
                unsafe { step::<T, S, R, V, PACKED, $masked>(simd, at, line, bt, last, &mut sums) };
                for v in (0..V * S::LANES).step_by(simd::CACHE_LINE / size_of::<T>()) {
                    simd::prefetch(bt.wrapping_offset(b.ahead + v as isize));
                }
                if PACKED && ($step == 0 || UNROLL * R * size_of::<T>() > simd::CACHE_LINE) {
                    // Weights that are read once come from memory: the processor's own prefetching is too slow for them.
                    simd::prefetch(at[0].wrapping_add(8192 / size_of::<T>()));
                }
                at = at.map(|at| at.wrapping_offset(a.step));
                bt = bt.wrapping_offset(b.step);
            })*};
        }
        if S::MASKED && !PACKED && last < S::LANES {
            for _ in 0..depth {
                steps!(true: 0);
            }
        } else {
            for _ in 0..depth / UNROLL {
                steps!(false: 0 1);
            }
            for _ in 0..depth % UNROLL {
                steps!(false: 0);
            }
        }
        let (factor, width) = (simd.splat(alpha), c.shape()[1]);
        assert!(c.shape()[0] == R && width <= V * S::LANES && (c.strides()[1] == 1 || width == 1));
        // Straight code for each way: what a tile asks for each of its vectors costs as much as some steps of depth.
        macro_rules! finish {
            ($width:expr, |$value:ident, $run:ident| $body:expr) => {{
                each!(i in rows R {
                    let from = start.wrapping_offset(i as isize * row);
                    // SAFETY: asserted above: this row exists and is contiguous, and `c` borrows it exclusively.
                    let line = unsafe { std::slice::from_raw_parts_mut(from, $width) };
                    each!(v in vectors V {
                        let ($value, $run) = (simd.mul(factor, sums[i][v]), &mut line[v * S::LANES..]);
                        $body;
                    });
                });
            }};
        }
        let (whole, beta) = (width == V * S::LANES, beta.map(|beta| simd.splat(beta)));
        match (whole, beta) {
            (true, Some(beta)) => finish!(V * S::LANES, |value, run| {
                simd.store(simd.mul_add(beta, simd.load(run), value), run)
            }),
            (true, None) if stream => finish!(V * S::LANES, |value, run| simd.stream(value, run)),
            (true, None) => finish!(V * S::LANES, |value, run| simd.store(value, run)),
            (false, Some(beta)) => finish!(width, |value, run| {
                simd.store_partial(simd.mul_add(beta, simd.load_partial(run), value), run)
            }),
            (false, None) => finish!(width, |value, run| simd.store_partial(value, run)),
        }
    }
}

/// Sums that wait in memory on their way to C.
pub(super) struct Narrow<'t, T> {
    /// Rows of `width` sums.
    pub(super) sums: &'t [T],
    pub(super) width: usize,
    pub(super) alpha: T,
    pub(super) beta: Option<T>,
    pub(super) c: TensorViewMut<'t, T, 2>,
}

impl<T: Element> SimdOp<T> for Narrow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(mut self, simd: S) {
        let factor = simd.splat(self.alpha);
        for (i, sums) in self.sums.chunks_exact(self.width).enumerate() {
            let Some(row) = self.c.row_mut(i) else { return };
            for (sums, run) in sums.chunks_exact(S::LANES).zip(row.chunks_mut(S::LANES)) {
                let mut value = simd.mul(factor, simd.load(sums));
                if let Some(beta) = self.beta {
                    value = simd.mul_add(simd.splat(beta), simd.load_partial(run), value);
                }
                simd.store_partial(value, run);
            }
        }
    }
}

/// sums += a · b for one step of depth.
///
/// # Safety
/// `R` elements `line` apart can be read at `a[0]`, and `V` vectors at `b`, of the last one `last` elements where they
/// are `MASKED`; `a[j]` is `4 · j · line` behind `a[0]`.
#[inline(always)]
pub(super) unsafe fn step<
    T: Element,
    S: Simd<T>,
    const R: usize,
    const V: usize,
    const PACKED: bool,
    const MASKED: bool,
>(
    simd: S,
    a: [*const T; 3],
    line: isize,
    b: *const T,
    last: usize,
    sums: &mut [[S::V; V]; R],
) {
    let mut vectors = [simd.splat(T::ZERO); V];
    each!(v in vectors V {
        let masked = MASKED && v + 1 == V;
        // SAFETY: the caller's promise.
        let run = unsafe { std::slice::from_raw_parts(b.add(v * S::LANES), if masked { last } else { S::LANES }) };
        vectors[v] = if masked { simd.load_partial(run) } else { simd.load(run) };
    });
    each!(i in rows R {
        let (from, line) = if PACKED { (a[0], i as isize) } else { (a[i / 4], (i % 4) as isize * line) };
        // SAFETY: the caller's promise.
        let x = simd.splat(unsafe { *from.offset(line) });
        each!(v in vectors V {
            sums[i][v] = simd.mul_add(x, vectors[v], sums[i][v]);
        });
    });
}

//! The micro-kernel.

use crate::element::Element;
use crate::machine::Isa;
use crate::simd::{self, Dispatch, Simd, SimdOp};
use crate::tensor::TensorViewMut;

use super::block::Block;
use super::epilogue::Tail;
use super::panel::Panels;
use super::series::Series;
use super::sweep::{Merge, Sweep};
use super::vector::Piece;

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
    /// Which cache lines are asked for meanwhile: those of a panel's row here, with each step so many elements on.
    fetch: *const T,
    fetch_step: isize,
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
        let (ptr, step, fetch, readable) = match panels {
            Panels::Packed { data, .. } => {
                let panel = &data[first * depth..][..tile_columns * depth];
                // Two pages: the processor's own prefetching stops at the end of each.
                let ahead = panel.as_ptr().wrapping_add(8192 / size_of::<T>());
                (panel.as_ptr(), tile_columns as isize, ahead, tile_columns)
            }
            Panels::Direct(view) => {
                let ([lines, steps], [line, step]) = (view.shape(), view.strides());
                // Without masks whole vectors only: what is left of a row is packed.
                assert!((S::MASKED || width.is_multiple_of(S::LANES)) && first + width <= lines);
                assert!(depth <= steps && line == 1);
                // The next panel: each step's lines lie beside this one's.
                let ptr = view.as_ptr().wrapping_add(first);
                (ptr, step, ptr.wrapping_add(tile_columns), width)
            }
        };
        Self { ptr, step, fetch, fetch_step: step, width, readable, borrow: std::marker::PhantomData }
    }

    /// The `part`-th of so many equal parts of the next panel is asked for instead.
    #[inline(always)]
    pub(super) fn fetching<S: Simd<T>>(self, part: usize, parts: usize, depth: usize) -> Self {
        let columns = S::TILE_VECTORS * S::LANES;
        let share = columns.div_ceil(parts);
        Self {
            fetch: self.ptr.wrapping_add(columns * depth + part * share * depth),
            fetch_step: share as isize,
            ..self
        }
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
    /// Where alpha is 1 and C is not read.
    pub(super) tail: Option<Tail<'t, T>>,
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
        let Tile { a, b, depth, alpha, beta, stream, tail, ref mut c } = *self.0;
        let line = if PACKED { 1 } else { a.line };
        let mut sums = [[simd.splat(T::ZERO); V]; R];
        // C is needed when the sums are done.
        let (start, row) = (c.as_mut_ptr(), c.strides()[0]);
        for i in 0..if stream { 0 } else { R } {
            for j in (0..V * S::LANES).step_by(simd::CACHE_LINE / size_of::<T>()) {
                simd::prefetch(start.wrapping_offset(i as isize * row + j as isize));
            }
        }
        if let Some(residual) = tail.and_then(|tail| tail.residual) {
            for i in 0..R {
                let start = residual.as_ptr().wrapping_offset(i as isize * residual.strides()[0]);
                for j in (0..V * S::LANES).step_by(simd::CACHE_LINE / size_of::<T>()) {
                    simd::prefetch(start.wrapping_add(j));
                }
            }
        }
        // A pointer for each four lines: counting up from one through all of them would take longer than the
        // multiply-adds of a narrow tile.
        let mut at: [*const T; 3] =
            std::array::from_fn(|j| a.ptr.wrapping_offset((4 * j as isize).wrapping_mul(line)));
        let (mut bt, mut fetch) = (b.ptr, b.fetch);
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
                    simd::prefetch(fetch.wrapping_add(v));
                }
                if PACKED && ($step == 0 || UNROLL * R * size_of::<T>() > simd::CACHE_LINE) {
                    // Weights that are read once come from memory: the processor's own prefetching is too slow for them.
                    simd::prefetch(at[0].wrapping_add(8192 / size_of::<T>()));
                }
                at = at.map(|at| at.wrapping_offset(a.step));
                bt = bt.wrapping_offset(b.step);
                fetch = fetch.wrapping_offset(b.fetch_step);
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
            ($width:expr, |$i:ident, $v:ident, $sum:ident, $run:ident| $body:expr) => {{
                each!($i in rows R {
                    let from = start.wrapping_offset($i as isize * row);
                    // SAFETY: asserted above: this row exists and is contiguous, and `c` borrows it exclusively.
                    let line = unsafe { std::slice::from_raw_parts_mut(from, $width) };
                    each!($v in vectors V {
                        let ($sum, $run) = (sums[$i][$v], &mut line[$v * S::LANES..]);
                        $body;
                    });
                });
            }};
        }
        let (whole, beta) = (width == V * S::LANES, beta.map(|beta| simd.splat(beta)));
        if let Some(Tail { bias, residual, bounds: [low, high] }) = tail {
            assert!(bias.len() == width);
            each!(v in vectors V {
                let bias = simd.load_partial(&bias[(v * S::LANES).min(width)..((v + 1) * S::LANES).min(width)]);
                each!(i in rows R {
                    sums[i][v] = simd.add(sums[i][v], bias);
                });
            });
            // All of it before the first store: a load behind a store to another page's same place waits for it.
            if let Some(residual) = residual {
                let [stride, unit] = residual.strides();
                assert!(residual.shape() == [R, width] && unit == 1);
                let start = residual.as_ptr();
                macro_rules! add {
                    ($width:expr, $load:ident) => {{
                        each!(i in rows R {
                            let from = start.wrapping_offset(i as isize * stride);
                            // SAFETY: asserted: this row exists and is contiguous.
                            let line = unsafe { std::slice::from_raw_parts(from, $width) };
                            each!(v in vectors V {
                                sums[i][v] = simd.add(sums[i][v], simd.$load(&line[v * S::LANES..]));
                            });
                        });
                    }};
                }
                if whole { add!(V * S::LANES, load) } else { add!(width, load_partial) }
            }
            let (low, high) = (simd.splat(low), simd.splat(high));
            // The order of the operands lets NaN through.
            if whole {
                finish!(V * S::LANES, |i, v, sum, run| simd.store(simd.max(low, simd.min(high, sum)), run));
            } else {
                finish!(width, |i, v, sum, run| {
                    simd.store_partial(simd.max(low, simd.min(high, sum)), run)
                });
            }
            return;
        }
        match (whole, beta) {
            (true, Some(beta)) => finish!(V * S::LANES, |i, v, sum, run| {
                simd.store(simd.mul_add(beta, simd.load(run), simd.mul(factor, sum)), run)
            }),
            (true, None) if stream => {
                finish!(V * S::LANES, |i, v, sum, run| { simd.stream(simd.mul(factor, sum), run) })
            }
            (true, None) => finish!(V * S::LANES, |i, v, sum, run| simd.store(simd.mul(factor, sum), run)),
            (false, Some(beta)) => finish!(width, |i, v, sum, run| {
                simd.store_partial(simd.mul_add(beta, simd.load_partial(run), simd.mul(factor, sum)), run)
            }),
            (false, None) => finish!(width, |i, v, sum, run| simd.store_partial(simd.mul(factor, sum), run)),
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

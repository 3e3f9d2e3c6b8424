//! The micro-kernel.

use crate::element::Element;
use crate::machine::Isa;
use crate::simd::{self, MOST_LANES, Simd, SimdOp, kernels};
use crate::tensor::TensorViewMut;

use super::ahead::Ahead;
use super::block::{Block, Store};
use super::blocking::Tile;
use super::epilogue::{Beside, Tail};
use super::panel::{Panels, Runs};
use super::series::Series;
use super::step::{moved, step, step_lone};
use super::sweep::{Merge, Sweep};
use super::tiny::Tiny;
use super::vector::Piece;

kernels! {
    /// Element types with their kernels.
    pub trait Kernels {
        /// Computes a block with the kernels of `isa`.
        fn block(isa: Isa, block: &mut Block<'_, Self>);

        /// Computes a small product with the kernels of `isa`.
        fn tiny(isa: Isa, tiny: &mut Tiny<'_, '_, Self>);

        /// Computes a series of products with the kernels of `isa`.
        fn series(isa: Isa, series: &mut Series<'_, Self>);

        /// Adds some steps to the sums of a row of tiles with the kernels of `isa`.
        fn sweep(isa: Isa, sweep: &mut Sweep<'_, Self>);

        /// Takes sums over to C with the kernels of `isa`.
        fn merge(isa: Isa, merge: &mut Merge<'_, Self>);

        /// Computes some outputs of a row or a few with the kernels of `isa`.
        fn piece(isa: Isa, piece: Piece<'_, Self>);
    }
}

/// Rows of the largest tile of any instruction set, its vectors in a row, and its elements.
pub(super) const ROWS: usize = 6;
pub(super) const VECTORS: usize = 4;
pub(super) const SUMS: usize = ROWS * VECTORS * 16;

/// Steps of depth after which what is asked for into L1 is there.
const SOON: isize = 12;

/// Panels of A over a block of depth: element (i, p) of the `t`-th lies at `ptr + t · next + i · line + p · step`, and `jump`
/// further for each of the `runs` that has ended.
// Invariant: of `count` panels `height` lines of `depth` steps can be read. Where they are `packed`, `line` is 1 or there is one
// line, and there are no `runs`; else `step` is 1 or there is one step.
#[derive(Clone, Copy)]
pub(super) struct Lhs<'a, T> {
    ptr: *const T,
    line: isize,
    step: isize,
    next: isize,
    /// The lines are neighbours.
    packed: bool,
    runs: Option<&'a Runs>,
    count: usize,
    height: usize,
    depth: usize,
    borrow: std::marker::PhantomData<&'a [T]>,
}

/// Panels of B over a block of depth: element (p, j) of the `t`-th lies at `ptr + t · next + p · step + j`.
// Invariant: of `count` panels `depth` steps of `readable` elements can be read: as many whole vectors as `width` needs, or,
// where loads are masked, `width`.
#[derive(Clone, Copy)]
pub(super) struct Rhs<'a, T> {
    ptr: *const T,
    step: isize,
    next: isize,
    width: usize,
    readable: usize,
    count: usize,
    depth: usize,
    borrow: std::marker::PhantomData<&'a [T]>,
}

impl<'a, T: Element> Lhs<'a, T> {
    /// `count` panels of `height` lines, from line `first` on. Packed ones are `width` lines high; of one alone, some lines may be
    /// taken.
    #[inline(always)]
    pub(super) fn panels(
        panels: Panels<'a, T>,
        first: usize,
        [count, height]: [usize; 2],
        width: usize,
        depth: usize,
    ) -> Self {
        let mut in_runs = None;
        let (ptr, line, step, next, packed) = match panels {
            Panels::Windows { view, runs } => {
                let ([lines, all, steps], [line, apart, step]) = (view.shape(), view.strides());
                let (all, begin) = (all.checked_mul(steps), runs.first);
                assert!(Runs::new(&view, begin) == *runs);
                assert!((step == 1 || steps == 1) && first + count * height <= lines);
                assert!(all.is_some_and(|all| begin < all && depth <= all - begin));
                in_runs = Some(runs);
                let begin =
                    apart.wrapping_mul((begin / steps) as isize).wrapping_add((begin % steps) as isize);
                let ptr =
                    view.as_ptr().wrapping_offset(line.wrapping_mul(first as isize).wrapping_add(begin));
                (ptr, line, 1, line.wrapping_mul(height as isize), false)
            }
            Panels::Packed { data, .. } => {
                let (first, line) = (first / width * width, first % width);
                let panels = &data[first * depth..][..count * width * depth];
                assert!(line + height <= width);
                (panels.as_ptr().wrapping_add(line), 1, width as isize, (width * depth) as isize, true)
            }
            Panels::Direct(view) => {
                let ([lines, steps], [line, step]) = (view.shape(), view.strides());
                assert!(first + count * height <= lines && depth <= steps);
                let (ptr, next) = (view.as_ptr(), (height as isize).wrapping_mul(line));
                let packed = line == 1 || height == 1;
                assert!(packed || step == 1 || depth <= 1);
                (ptr.wrapping_offset(first as isize * line), line, step, next, packed)
            }
        };
        Self {
            ptr,
            line,
            step,
            next,
            packed,
            runs: in_runs,
            count,
            height,
            depth,
            borrow: std::marker::PhantomData,
        }
    }
}

impl<T> Lhs<'_, T> {
    /// Its lines are neighbours, not its steps.
    #[inline(always)]
    pub(super) fn packed(&self) -> bool {
        self.packed
    }

    /// `rows` lines of `depth` steps of the first panel can be read as [`begin`](Self::begin) says.
    #[inline(always)]
    pub(super) fn holds(&self, rows: usize, packed: bool, depth: usize) -> bool {
        self.runs.is_none()
            && self.packed == packed
            && self.count > 0
            && rows <= self.height
            && depth <= self.depth
    }

    /// Where [`step`] finds the first step of `R` lines of the first panel, and how far it is to the next.
    #[inline(always)]
    pub(super) fn begin<const R: usize>(&self, packed: bool) -> ([*const T; 4], [isize; 3], isize) {
        let (line, step) = if packed { (1, self.step) } else { (self.line, 1) };
        let mut at = [self.ptr; 4];
        for j in 1..if packed { 1 } else { R.div_ceil(3) } {
            at[j] = self.ptr.wrapping_offset((3 * j as isize).wrapping_mul(line));
        }
        (at, [0, line, line.wrapping_mul(2)], step)
    }
}

impl<T> Rhs<'_, T> {
    /// `depth` steps of `width` columns of the first panel can be read from where [`begin`](Self::begin) says.
    #[inline(always)]
    pub(super) fn holds(&self, width: usize, depth: usize) -> bool {
        self.count > 0 && width <= self.readable && depth <= self.depth
    }

    /// Where the first step of the first panel lies, and how far it is to the next.
    #[inline(always)]
    pub(super) fn begin(&self) -> (*const T, isize) {
        (self.ptr, self.step)
    }
}

impl<'a, T: Element> Rhs<'a, T> {
    /// `count` panels, whole ones but for the last, of `width` columns, from column `first` on.
    #[inline(always)]
    pub(super) fn panels<S: Simd<T>>(
        panels: Panels<'a, T>,
        first: usize,
        [count, width]: [usize; 2],
        depth: usize,
    ) -> Self {
        let tile_columns = S::TILE_VECTORS * S::LANES;
        let (ptr, step, next, readable) = match panels {
            Panels::Packed { data, width: panel, .. } => {
                assert!(panel.is_multiple_of(S::LANES) && width <= panel);
                let panels = &data[first * depth..][..count * panel * depth];
                (panels.as_ptr(), panel as isize, (panel * depth) as isize, panel)
            }
            Panels::Direct(view) => {
                let ([lines, steps], [line, step]) = (view.shape(), view.strides());
                // Without masks whole vectors only: what is left of a row is packed.
                assert!(S::MASKED || width.is_multiple_of(S::LANES));
                assert!(first + (count - 1) * tile_columns + width <= lines && depth <= steps && line == 1);
                (view.as_ptr().wrapping_add(first), step, tile_columns as isize, width)
            }
            Panels::Windows { .. } => unreachable!("internal error: windows as a right operand"),
        };
        Self { ptr, step, next, width, readable, count, depth, borrow: std::marker::PhantomData }
    }
}

/// Tiles of C, one after the other in registers: of one row of tiles, or of one column.
pub(super) struct Strip<'t, 'c, T> {
    pub(super) a: Lhs<'t, T>,
    pub(super) b: Rhs<'t, T>,
    pub(super) count: usize,
    /// Of each tile.
    pub(super) height: usize,
    /// One below the other, each with its panel of A and all with one of B; else beside each other, with one of A.
    pub(super) down: bool,
    pub(super) depth: usize,
    pub(super) alpha: T,
    pub(super) beta: Option<T>,
    pub(super) store: Store,
    /// Where alpha is 1 and C is not read.
    pub(super) tail: Option<Tail<'t, T>>,
    /// What is asked for meanwhile.
    pub(super) ahead: &'t mut Ahead<T>,
    /// All of the tiles: contiguous rows. By reference: a view just written is not copied before it has reached L1.
    pub(super) c: &'t mut TensorViewMut<'c, T, 2>,
}

impl<T: Element> Strip<'_, '_, T> {
    /// Chooses the kernel for the tiles' rows, vectors and kind of A. The order in which an element's
    /// products are added is the same in all of them.
    #[inline(always)]
    pub(super) fn run<S: Simd<T>>(mut self, simd: S) {
        macro_rules! tiles {
            ($($rows:literal)*) => {
                match self.height {
                    // Constant where it is false: then the kernel is not compiled.
                    $($rows => if const { $rows <= S::NARROW_ROWS } {
                        tiles!(@ $rows: 1 2 3 4)
                    } else {
                        no_such_tile()
                    },)*
                    _ => no_such_tile(),
                }
            };
            (@ $rows:literal: $($vectors:literal)*) => {
                match self.b.width.div_ceil(S::LANES) {
                    $($vectors => if const { $vectors <= if $rows <= S::TILE_ROWS { S::TILE_VECTORS } else { 2 } } {
                        if self.a.packed {
                            simd.call(Kernel::<T, $rows, $vectors, true, false>(&mut self))
                        } else {
                            simd.call(Kernel::<T, $rows, $vectors, false, false>(&mut self))
                        }
                    } else {
                        no_such_tile()
                    },)*
                    _ => no_such_tile(),
                }
            };
        }
        const { assert!(S::TILE_VECTORS <= VECTORS && S::TILE_ROWS <= ROWS && S::NARROW_ROWS <= 12) };
        if const { Tile::of::<T, S>().lone().is_some() } {
            // Of rows that lie apart a vector is part of two lines, which costs more than it saves.
            let Lhs { packed, step, .. } = self.a;
            let whole = self.height == ROWS && packed && step == ROWS as isize;
            if whole && Tile::of::<T, S>().lone() == Some(self.b.width) {
                return simd.call(Kernel::<T, ROWS, VECTORS, true, true>(&mut self));
            }
        }
        tiles!(1 2 3 4 5 6 8 12);
    }
}

/// `Block` cuts tiles as [`height`](super::blocking::height) says.
#[cold]
pub(super) fn no_such_tile() -> ! {
    unreachable!("internal error: a tile without a kernel")
}

/// `body` for each of the first `count` rows or vectors of a tile, written out: loops that the compiler does not unroll
/// early enough keep the sums in memory.
macro_rules! each {
    ($i:ident in rows $count:ident $body:block) => {
        each!(@ $count $i $body 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($i:ident in vectors $count:ident $body:block) => {
        each!(@ $count $i $body 0 1 2 3)
    };
    ($i:ident in points $count:ident $body:block) => {
        each!(@ $count $i $body 0 1 2 3 4 5)
    };
    ($i:ident in pair $count:ident $body:block) => {
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

/// The kernel for `R` rows and `V` vectors of columns; `PACKED`: the lines of A are neighbours, else its steps are. `LONE`: the last
/// vector has one column, which multiplies the `PACKED` lines at once, for a fifth of what a vector of columns costs.
/// By reference: a strip that is moved waits for its own fields to reach memory.
struct Kernel<'k, 't, 'c, T, const R: usize, const V: usize, const PACKED: bool, const LONE: bool>(
    &'k mut Strip<'t, 'c, T>,
);

impl<T: Element, const R: usize, const V: usize, const PACKED: bool, const LONE: bool> SimdOp<T>
    for Kernel<'_, '_, '_, T, R, V, PACKED, LONE>
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Strip {
            a, b, count, down, depth, alpha, beta, store, ref tail, ref mut ahead, ref mut c, ..
        } = *self.0;
        let ([rows, columns], [row, unit]) = (c.shape(), c.strides());
        let most = V * S::LANES;
        let width = if down { columns } else { columns - (count - 1) * most };
        assert!(rows == if down { count * R } else { R } && width <= most && b.width == width);
        assert!(R <= a.height && depth <= a.depth.min(b.depth));
        assert!(PACKED == a.packed);
        assert!(!LONE || (PACKED && R <= S::LANES && width == (V - 1) * S::LANES + 1));
        assert!(if down { count <= a.count && b.count > 0 } else { a.count > 0 && count <= b.count });
        // Tiles beside each other are whole ones.
        assert!((down || count == 1 || width == most) && (unit == 1 || columns == 1));
        let (whole, factor) = (width == most, simd.splat(alpha));
        let beta = beta.map(|beta| simd.splat(beta));
        // Where what is added lies, for each tile as C does.
        let mut added = None;
        if let Some(Tail { bias, residual, .. }) = tail {
            assert!(match bias {
                Beside::Nothing => true,
                Beside::Columns(bias) => bias.len() == columns,
                Beside::Rows(bias) => bias.len() == rows,
            });
            if let Some(residual) = residual {
                let ([lines, _], [stride, step]) = (residual.shape(), residual.strides());
                assert!(residual.shape() == [rows, columns] && (step == 1 || columns == 1));
                added = Some((residual.as_ptr(), if lines > 1 { stride } else { 0 }));
            }
        }
        let (line, two) = if PACKED { (1, 2) } else { (a.line, a.line.wrapping_mul(2)) };
        let a_step = if PACKED { a.step } else { 1 };
        let last = b.readable.saturating_sub((V - 1) * S::LANES).min(S::LANES);
        // Panels that are neighbours come from L2, where the processor alone is late with them; more so where another thread shares the
        // core. Of one panel for tiles below each other much is in L1.
        let streams = !down && count > 1 && b.step == most as isize;
        let soon = b.step.wrapping_mul(SOON);
        let mut start = c.as_mut_ptr();
        let mut begins = ([a.ptr; 4], b.ptr);
        if !PACKED {
            for j in 1..R.div_ceil(3) {
                begins.0[j] = a.ptr.wrapping_offset((3 * j as isize).wrapping_mul(line));
            }
        }
        for tile in 0..count {
            // C is needed when the sums are done: to be written, it has to come too. Few steps are over before it does: then the next
            // tile's is asked for, where it is far away.
            let now = beta.is_some() || (depth >= 64 && store != Store::Past);
            if now || (store == Store::Far && tile + 1 < count) {
                let on = |row: isize| match (now, down) {
                    (true, _) => 0,
                    (false, true) => R as isize * row,
                    (false, false) => most as isize,
                };
                let c = start.wrapping_offset(on(row));
                let added = added.map(|(start, stride)| (start.wrapping_offset(on(stride)), stride));
                for i in 0..R as isize {
                    for j in (0..most as isize).step_by(simd::CACHE_LINE / size_of::<T>()) {
                        simd::prefetch(c.wrapping_offset(i * row + j));
                        if let Some((start, stride)) = added {
                            simd::prefetch(start.wrapping_offset(i * stride + j));
                        }
                    }
                }
            }
            let mut sums = [[simd.splat(T::ZERO); V]; R];
            let mut column = simd.splat(T::ZERO);
            let (mut at, mut bt) = begins;
            // Two steps a turn: where two hardware threads share a core, every instruction that is not a
            // multiply-add costs.
            const UNROLL: usize = 2;
            macro_rules! steps {
                (ask: $($step:literal)*) => {$({
                    each!(v in vectors V {
                        simd::prefetch(bt.wrapping_offset(soon + (v * S::LANES) as isize));
                    });
                    steps!(false: $step);
                })*};
                ($masked:literal: $($step:literal)*) => {$({
                    const { assert!($step < UNROLL) };
                    // SAFETY: the invariants of `Lhs` and `Rhs`, and asserted above: this step of this tile's panels exists, with `R`
                    // lines and `V` vectors, or one element of the last.
                    unsafe {
                        if LONE {
                            step_lone(simd, at[0], bt, &mut sums, &mut column);
                        } else {
                            step::<T, S, R, V, PACKED, $masked>(simd, at, [0, line, two], bt, last, &mut sums);
                        }
                    }
                    at = moved(at, a_step);
                    bt = bt.wrapping_offset(b.step);
                })*};
            }
            let (mut left, mut until) =
                (depth, if PACKED { usize::MAX } else { a.runs.map_or(usize::MAX, |runs| runs.until) });
            loop {
                let steps = ahead.steps().min(left).min(until);
                // A masked load takes a turn of those that multiply on Intel: 4 % of a tile.
                if !LONE && S::MASKED && last < S::LANES {
                    for _ in 0..steps {
                        steps!(true: 0);
                    }
                } else {
                    if const { R == ROWS && V == VECTORS && !LONE } && streams {
                        for _ in 0..steps / UNROLL {
                            steps!(ask: 0 1);
                        }
                    } else {
                        for _ in 0..steps / UNROLL {
                            steps!(false: 0 1);
                        }
                    }
                    for _ in 0..steps % UNROLL {
                        steps!(false: 0);
                    }
                }
                left -= steps;
                ahead.ask();
                if left == 0 {
                    break;
                }
                if let (false, Some(runs)) = (PACKED, a.runs) {
                    until -= steps;
                    if until == 0 {
                        at = moved(at, runs.jump);
                        until = runs.steps;
                    }
                }
            }
            if LONE {
                let mut lines = [T::ZERO; MOST_LANES];
                simd.store(column, &mut lines);
                each!(i in rows R {
                    sums[i][V - 1] = simd.splat(lines[i]);
                });
            }
            // Straight code for each way: what a tile asks for each of its vectors costs as much as some steps of depth.
            macro_rules! finish {
                ($width:expr, |$i:ident, $v:ident, $sum:ident, $run:ident| $body:expr) => {{
                    each!($i in rows R {
                        let from = start.wrapping_offset($i as isize * row);
                        // SAFETY: asserted above: this row of this tile exists and is contiguous, and `c` borrows it exclusively.
                        let line = unsafe { std::slice::from_raw_parts_mut(from, $width) };
                        each!($v in vectors V {
                            let ($sum, $run) = (sums[$i][$v], &mut line[$v * S::LANES..]);
                            $body;
                        });
                    });
                }};
            }
            if let Some(Tail { bias, bounds: [low, high], .. }) = tail {
                match *bias {
                    Beside::Nothing => {}
                    Beside::Columns(bias) => {
                        let bias = if down { bias } else { &bias[tile * most..][..width] };
                        each!(v in vectors V {
                            let part = (v * S::LANES).min(width)..((v + 1) * S::LANES).min(width);
                            let bias = simd.load_partial(&bias[part]);
                            each!(i in rows R {
                                sums[i][v] = simd.add(sums[i][v], bias);
                            });
                        });
                    }
                    Beside::Rows(bias) => {
                        let bias = &bias[if down { tile * R } else { 0 }..][..R];
                        each!(i in rows R {
                            let bias = simd.splat(bias[i]);
                            each!(v in vectors V {
                                sums[i][v] = simd.add(sums[i][v], bias);
                            });
                        });
                    }
                }
                // All of it before the first store: a load behind a store to another page's same place waits for it.
                if let Some((start, stride)) = added {
                    macro_rules! add {
                        ($width:expr, $load:ident) => {{
                            each!(i in rows R {
                                let from = start.wrapping_offset(i as isize * stride);
                                // SAFETY: asserted above: this row of this tile exists and is contiguous.
                                let line = unsafe { std::slice::from_raw_parts(from, $width) };
                                each!(v in vectors V {
                                    sums[i][v] = simd.add(sums[i][v], simd.$load(&line[v * S::LANES..]));
                                });
                            });
                        }};
                    }
                    if whole { add!(V * S::LANES, load) } else { add!(width, load_partial) }
                }
                let (low, high) = (simd.splat(*low), simd.splat(*high));
                // The order of the operands lets NaN through.
                if whole {
                    finish!(V * S::LANES, |i, v, sum, run| simd
                        .store(simd.max(low, simd.min(high, sum)), run));
                } else {
                    finish!(width, |i, v, sum, run| {
                        simd.store_partial(simd.max(low, simd.min(high, sum)), run)
                    });
                }
            } else {
                if alpha != T::ONE {
                    each!(i in rows R {
                        each!(v in vectors V {
                            sums[i][v] = simd.mul(factor, sums[i][v]);
                        });
                    });
                }
                match (whole, beta) {
                    (true, Some(beta)) => finish!(V * S::LANES, |i, v, sum, run| {
                        simd.store(simd.mul_add(beta, simd.load(run), sum), run)
                    }),
                    (true, None) if store == Store::Past => {
                        finish!(V * S::LANES, |i, v, sum, run| simd.stream(sum, run))
                    }
                    (true, None) => finish!(V * S::LANES, |i, v, sum, run| simd.store(sum, run)),
                    (false, Some(beta)) => finish!(width, |i, v, sum, run| {
                        simd.store_partial(simd.mul_add(beta, simd.load_partial(run), sum), run)
                    }),
                    (false, None) => finish!(width, |i, v, sum, run| simd.store_partial(sum, run)),
                }
            }
            if down {
                begins.0 = moved(begins.0, a.next);
                start = start.wrapping_offset(R as isize * row);
                added = added.map(|(start, stride)| (start.wrapping_offset(R as isize * stride), stride));
            } else {
                begins.1 = begins.1.wrapping_offset(b.next);
                start = start.wrapping_add(most);
                added = added.map(|(start, stride)| (start.wrapping_add(most), stride));
            }
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

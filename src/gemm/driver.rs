//! The loops around the micro-kernel, and their tasks.
//!
//! ```text
//! parts of C, rows and columns halved               each a task with its own panels, in its own caches
//!   for pc in 0..k step kc          depth                                          loop 5
//!     for jc in 0..n step nc        B[pc, jc] → panels, in L2, or farther          loop 4
//!       for ic in 0..m step rows    A[ic, pc] → panels, in L1, or in L2            loop 3
//!         for ir, jr step a tile    the panels that are in L1 with all others      loops 2, 1
//!           a tile of C             micro-kernel over kc
//! ```
//!
//! Tasks share nothing and wait for nobody: what two of them need, both pack. Each would have to bring it into
//! its own caches anyway, and packing costs hardly more than that.
//!
//! An element of C is the sum over its blocks of depth, in order, and in a block over its steps, in order:
//! whoever computes it, in whichever tile.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::block::{Block, Store};
use super::blocking::{Tile, depth_block, halve, halve_rows, packed_depth_block, tile, tile_rows};
use super::epilogue::Epilogue;
use super::packed::Slab;
use super::panel::{self, PanelSource, Panels, packed_len};
use super::split;
use super::walk::{Fetch, Order, Source, Walk, depth_in_memory, following};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::parallel::{self, TASKS_PER_THREAD};
use crate::simd::{CACHE_LINE, MOST_LANES};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{self, Scratch};

/// An operand as the driver takes it.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a, T, P> {
    Source(P),
    Packed(Slab<'a, T>),
}

impl<T: Element, P: PanelSource<T>> Input<'_, T, P> {
    fn lines(&self) -> usize {
        match self {
            Input::Source(source) => source.lines(),
            Input::Packed(packed) => packed.lines(),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Input::Source(source) => source.depth(),
            Input::Packed(packed) => packed.depth(),
        }
    }

    /// What [`Walk::new`] needs to know of it.
    fn source(&self) -> Option<Source> {
        match self {
            Input::Source(source) => {
                let direct = source.direct();
                let strides = direct.map_or([0; 2], |view| view.strides());
                let (neighbours, steps, stride) =
                    (strides[0] == 1, strides[1] == 1, strides[1].unsigned_abs());
                let line = |bytes: usize| bytes.is_multiple_of(CACHE_LINE);
                let aligned = direct.is_some_and(|view| line(view.as_ptr().addr()))
                    && line(stride.wrapping_mul(size_of::<T>()));
                let bytes =
                    [source.depth(), size_of::<T>()].into_iter().fold(source.lines(), usize::saturating_mul);
                Some(Source { direct: direct.is_some(), neighbours, steps, stride, aligned, bytes })
            }
            Input::Packed(_) => None,
        }
    }

    /// Some lines over some steps as a matrix in memory, where the operand is one.
    fn direct(&self, lines: &Range<usize>, steps: &Range<usize>) -> Option<TensorView<'_, T, 2>> {
        let Input::Source(source) = self else { return None };
        Some(source.direct()?.tile([lines.start, steps.start], [lines.len(), steps.len()]))
    }
}

/// Scale factors and epilogue of a product, as every path takes them.
#[derive(Clone, Copy)]
pub struct Scale<'e, T> {
    pub alpha: T,
    pub beta: T,
    pub(crate) epilogue: Epilogue<'e, T>,
}

impl<T: Element> Scale<'_, T> {
    /// The same for the transposed product.
    pub(super) fn transpose(&self) -> Self {
        Self { epilogue: self.epilogue.transpose(), ..*self }
    }

    /// What C is multiplied by in the first block of depth; `None` never reads it.
    pub(crate) fn first_beta(&self) -> Option<T> {
        (self.beta != T::ZERO).then_some(self.beta)
    }
}

/// Multiplications that a task is worth at least: some microseconds. Half of 96³ is, for the longest vectors.
pub(crate) const GRAIN: usize = 3 << 17;

/// [`GRAIN`] of shorter vectors, which take the same time for fewer.
pub(super) fn grain(tile: Tile) -> usize {
    GRAIN / MOST_LANES * tile.lanes
}

/// Fewer multiplications than this are one task whatever the vectors, the shortest of which have two elements.
pub(super) const LEAST: usize = 2 * (GRAIN / MOST_LANES * 2);

/// Multiplications of a thread's share of a product, some ten milliseconds, above which it is cut in several tasks:
/// then threads of unlike speed even out, and what tasks pack twice is little.
pub(super) const LARGE: usize = 1 << 31;

/// Bytes of a C without contiguous rows up to which it is made beside itself.
pub(super) const BESIDE: usize = 4 << 20;

/// How a product was computed, for those who ask.
pub struct Path {
    pub name: &'static str,
    pub tasks: usize,
}

impl Path {
    pub(super) const TINY: Self = Self { name: "tiny", tasks: 1 };
}

/// What a product is a part of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    /// It is all there is: the depth of a block may depend on its shape.
    Whole,
    /// A product that may be cut otherwise with the same result: the depth of a block depends on its own depth.
    Part,
}

/// C = alpha · A · B + beta · C and the epilogue. The shapes have been checked. `tasks` overrides how many
/// tasks there are.
pub(crate) fn product<T: Element>(
    isa: Isa,
    a: Input<'_, T, impl PanelSource<T>>,
    b: Input<'_, T, impl PanelSource<T>>,
    scale: &Scale<'_, T>,
    c: TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
    extent: Extent,
) -> Result<Path> {
    let ([m, n], k) = (c.shape(), a.depth());
    debug_assert_eq!([a.lines(), b.lines(), b.depth()], [m, n, k]);
    let (tile, caches) = (tile::<T>(isa), machine::caches());
    let (name, kc) = match (a.source(), b.source(), extent) {
        (Some(a), Some(b), Extent::Whole) => {
            ("blocked", depth_in_memory::<T>(tile, caches, [m, n, k], [a, b]))
        }
        (Some(_), Some(_), Extent::Part) => ("blocked", depth_block::<T>(tile, caches, k)),
        _ => ("packed", packed_depth_block::<T>(tile, caches, k)),
    };
    if m == 0 || n == 0 {
        return Ok(Path { name, tasks: 0 });
    }
    let tile_rows = match &a {
        Input::Packed(packed) => packed.width(),
        Input::Source(_) => tile_rows(tile, [m, n]),
    };
    let work = m.saturating_mul(n).saturating_mul(k);
    let tasks = tasks.unwrap_or_else(|| {
        let threads = parallel::threads_for(work, grain(tile));
        if threads > 1 && work / threads > LARGE { threads * TASKS_PER_THREAD } else { threads }
    });
    let past = k <= kc
        && scale.first_beta().is_none()
        && scale.epilogue.is_empty()
        && m.saturating_mul(n).saturating_mul(size_of::<T>()) > caches.share();
    let store = if past { Store::Past } else { Store::of::<T>([m, n], c.strides()) };
    let product = Product { isa, tile, tile_rows, kc, depth: 0..k, a: &a, b: &b, scale, store };
    if split::takes::<T>(tile, caches, [m, n, k], k.div_ceil(kc), tasks) {
        split::product(&product, c, tasks)?;
        return Ok(Path { name: "split", tasks });
    }
    product.run(c, [0, 0], tasks)?;
    Ok(Path { name, tasks })
}

/// The columns from `first` on, as many as `c` has, of C = alpha · A · B + beta · C and the epilogue, over a packed B and
/// on this thread. `first` is a multiple of a tile's columns. The sums are added up as in [`product`].
pub(crate) fn columns<T: Element>(
    isa: Isa,
    a: TensorView<'_, T, 2>,
    b: Slab<'_, T>,
    scale: &Scale<'_, T>,
    c: TensorViewMut<'_, T, 2>,
    first: usize,
) -> Result<()> {
    let ([m, n], k, kc, tile) = (c.shape(), b.depth(), b.kc(), tile::<T>(isa));
    debug_assert!(a.shape() == [m, k] && first.is_multiple_of(tile.columns) && first + n <= b.lines());
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (a, b): (_, Input<'_, T, TensorView<'_, T, 2>>) = (Input::Source(a), Input::Packed(b));
    // The first rows wait for B, if it does not lie in L2: as many as can be.
    let tile_rows = tile.rows.min(m);
    Product { isa, tile, tile_rows, kc, depth: 0..k, a: &a, b: &b, scale, store: Store::Near }
        .walk(c, [0, first])
}

/// What each part of a product needs to know.
pub(super) struct Product<'p, T, A, B> {
    pub isa: Isa,
    pub tile: Tile,
    /// Height of a panel of A.
    pub tile_rows: usize,
    /// Depth of a block.
    pub kc: usize,
    /// The steps that are multiplied: from the start of a block.
    pub depth: Range<usize>,
    /// Past the caches where C is written once, is not read, and is too large to stay in one.
    pub store: Store,
    pub a: &'p Input<'p, T, A>,
    pub b: &'p Input<'p, T, B>,
    pub scale: &'p Scale<'p, T>,
}

impl<T: Element, A: PanelSource<T>, B: PanelSource<T>> Product<'_, T, A, B> {
    /// Computes `c`, whose first element is `at` in the product, in `tasks` tasks.
    pub(super) fn run(&self, c: TensorViewMut<'_, T, 2>, at: [usize; 2], tasks: usize) -> Result<()> {
        let units = [self.tile_rows, self.tile.columns];
        let small = |slab: &Slab<'_, T>| slab.bytes() <= machine::caches().l2 / 4;
        let cut = match self.b {
            Input::Packed(slab) if small(slab) => halve_rows(c.shape(), units, tasks),
            _ => halve(c.shape(), units, tasks),
        };
        let Some((axis, cut)) = cut else {
            return self.walk(c, at);
        };
        let half = tasks / 2;
        let (low, high) = c.split_at(axis, cut)?;
        let mut next = at;
        next[axis] += cut;
        let (first, second) =
            parallel::join(|| self.run(low, at, half), || self.run(high, next, tasks - half));
        first.and(second)
    }

    /// Computes `c`, whose first element is `at` in the product, on this thread.
    fn walk(&self, mut c: TensorViewMut<'_, T, 2>, at: [usize; 2]) -> Result<()> {
        let ([m, n], kc) = (c.shape(), self.kc);
        if c.strides()[1] != 1 && n > 1 && m.saturating_mul(n).saturating_mul(size_of::<T>()) <= BESIDE {
            // Tile by tile, rows of C that are not contiguous cost much with each block of depth.
            let mut sums = scratch(true, m, 1, n)?;
            let mut sums = TensorViewMut::matrix(&mut sums, [m, n]);
            if self.scale.first_beta().is_some() {
                sums.copy_from(c.view());
            }
            Product { store: Store::Near, depth: self.depth.clone(), ..*self }.walk(sums.view_mut(), at)?;
            c.copy_from(sums.view());
            return Ok(());
        }
        let width = self.tile.panel(n);
        let caches = machine::caches();
        let walk = Walk::new::<T>(self.tile, caches, [m, n, kc], self.a.source(), self.b.source());
        let (depth, group) = (self.depth.clone(), kc.saturating_mul(walk.group));
        // All memory first: where it is lacking, this task has written nothing.
        let b_lines = if walk.b_in_place == n { 0 } else { walk.nc.min(n) };
        let b_len = elements(self.b.source().is_some(), b_lines, width, group.min(depth.len()))?;
        let mut b_scratch = workspace::resident("gemm", b_len)?;
        let unpacked = self.a.source().is_some();
        let a_lines = if walk.a == Fetch::Whole { m } else { 0 };
        let whole_len = elements(unpacked, a_lines, self.tile_rows, kc)?;
        let mut whole_scratch = workspace::resident("gemm", whole_len)?;
        let rows_step = if unpacked { self.tile_rows.saturating_mul(walk.panels).min(m) } else { m };
        let some = if walk.a == Fetch::Panels { rows_step } else { 0 };
        let mut some_scratch = scratch(unpacked, some, self.tile_rows, kc)?;
        let mut panel = scratch(walk.keep, self.tile.columns, self.tile.columns, kc.min(depth.len()))?;
        // A packed B comes from memory, or from an L3 that is far, with the first rows.
        let all = n.saturating_mul(depth.len()).saturating_mul(size_of::<T>());
        let ask_b = match self.b {
            // From memory a lone row reads it faster unasked.
            Input::Packed(slab) if m == 1 => (caches.l2 + 1..=caches.share() / 2).contains(&slab.bytes()),
            Input::Packed(slab) => slab.far(),
            Input::Source(_) => walk.ask,
        };
        let [most, least] = match caches.distant() {
            true => [self.tile.most_across(), 2 * caches.l1d],
            false => [2 * self.tile_rows, caches.l2 / 2],
        };
        let cold = self.b.source().is_none() && ask_b && (m == 1 || (rows_step <= most && all > least));
        // Rows in place that no cache of this core holds, and that meet several tiles while the next come, or are whole; what is packed
        // only from memory, as what is asked for drives the panels out of L1. Where L3 is far that costs more than to wait.
        let far = m.saturating_mul(depth.len()).saturating_mul(size_of::<T>());
        let l3 = caches.share();
        let runs = far > l3 / 2 && depth.len() <= kc;
        let ask = !caches.distant()
            && match walk.a {
                Fetch::InPlace => runs || (far > l3 / 4 && n > self.tile.columns),
                Fetch::Panels => far > l3,
                Fetch::Whole => false,
            };
        // The longer operand comes from memory, and L2 has room for the next steps of it beside what is there.
        let onward =
            all.max(far) > caches.l2 / 2 && m.max(n).saturating_mul(kc * size_of::<T>()) <= caches.l2 / 4;
        for group in depth_blocks(depth.clone(), group) {
            let rows = at[0]..at[0] + m;
            let whole = (walk.a == Fetch::Whole)
                .then(|| self.panels(self.a, &rows, &group, self.tile_rows, &mut whole_scratch));
            let in_place = blocks(0..walk.b_in_place, n.max(1));
            for columns in in_place.chain(blocks(walk.b_in_place..n, walk.nc)) {
                let b_lines = at[1] + columns.start..at[1] + columns.end;
                let b_direct = columns.start < walk.b_in_place;
                let padded = columns.len().next_multiple_of(width);
                let packed = |steps: &Range<usize>| {
                    let first = (steps.start - group.start) * padded;
                    first..first + steps.len() * padded
                };
                if let (Input::Source(source), false) = (self.b, b_direct) {
                    for steps in depth_blocks(group.clone(), kc) {
                        let data = &mut b_scratch[packed(&steps)];
                        panel::pack(self.isa, *source, b_lines.clone(), steps, width, data, false);
                    }
                }
                for rows in blocks(0..m, rows_step) {
                    let lines = at[0] + rows.start..at[0] + rows.end;
                    let next = lines.end..at[0] + m.min(rows.end + rows_step);
                    for steps in depth_blocks(group.clone(), kc) {
                        let b = match (self.b, self.b.direct(&b_lines, &steps)) {
                            (Input::Packed(packed), _) => {
                                packed.panels(steps.start, steps.len()).from(b_lines.start)
                            }
                            (_, Some(view)) if b_direct => Panels::Direct(view),
                            _ => {
                                Panels::Packed { data: &b_scratch[packed(&steps)], width, depth: steps.len() }
                            }
                        };
                        let a = match (whole, self.a.direct(&lines, &steps)) {
                            (Some(whole), _) => whole,
                            (None, Some(view)) if walk.a == Fetch::InPlace => Panels::Direct(view),
                            _ => self.panels(self.a, &lines, &steps, self.tile_rows, &mut some_scratch),
                        };
                        let last = steps.end == depth.end && !self.scale.epilogue.is_empty();
                        let order = if cold && rows.start == 0 { Order::Fetch } else { walk.order };
                        // Panels of B are asked for one by one: what follows the last of them too, where it is packed.
                        let fetch = order == Order::Fetch && ask_b;
                        let several = fetch && columns.len() > self.tile.columns;
                        let mut next = match self.b {
                            Input::Packed(b) if fetch => {
                                let of = [&b_lines, &(at[1]..at[1] + n)];
                                following([&steps, &group, &depth], rows.end < m, of)
                                    .and_then(|[first, line]| b.panel(first, line))
                            }
                            _ if several => None,
                            _ => self.a.direct(&next, &steps).filter(|next| ask && !next.is_empty()),
                        };
                        if next.is_none() && onward && !several {
                            // What comes after these steps, where it is not there yet.
                            let following = steps.end..depth.end.min(steps.end + kc);
                            let fresh = if steps.end < group.end { rows.start == 0 } else { rows.end == m };
                            if m >= n && rows.len() == m {
                                next = self.a.direct(&lines, &following);
                            } else if m < n && b_direct && fresh {
                                next = self.b.direct(&b_lines, &following);
                            }
                        }
                        let mut block = Block {
                            a,
                            b,
                            tile_rows: self.tile_rows,
                            depth: steps.len(),
                            alpha: self.scale.alpha,
                            beta: if steps.start == depth.start {
                                self.scale.first_beta()
                            } else {
                                Some(T::ONE)
                            },
                            epilogue: last.then_some(&self.scale.epilogue),
                            origin: [lines.start, b_lines.start],
                            next,
                            store: self.store,
                            order,
                            ask: ask_b,
                            panel: &mut panel,
                            c: c.tile_mut([rows.start, columns.start], [rows.len(), columns.len()]),
                        };
                        T::block(self.isa, &mut block);
                    }
                }
            }
        }
        Ok(())
    }

    /// The panels of some lines over some steps: those packed before, or the source packed into `scratch` now.
    fn panels<'s>(
        &self,
        input: &'s Input<'_, T, impl PanelSource<T>>,
        lines: &Range<usize>,
        steps: &Range<usize>,
        width: usize,
        scratch: &'s mut Scratch<T>,
    ) -> Panels<'s, T> {
        match input {
            Input::Packed(packed) => packed.panels(steps.start, steps.len()).from(lines.start),
            Input::Source(source) => {
                let len = lines.len().next_multiple_of(width) * steps.len();
                let data = &mut scratch[..len];
                panel::pack(self.isa, *source, lines.clone(), steps.clone(), width, data, false);
                Panels::Packed { data, width, depth: steps.len() }
            }
        }
    }
}

/// As [`blocks`]; where there is no depth there is still one block, which scales C and runs the epilogue.
pub(crate) fn depth_blocks(range: Range<usize>, block: usize) -> impl Iterator<Item = Range<usize>> {
    let none = range.is_empty().then_some(range.clone());
    none.into_iter().chain(blocks(range, block))
}

pub(crate) fn blocks(range: Range<usize>, block: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(block).map(move |start| start..range.end.min(start.saturating_add(block)))
}

/// Room for panels, none where they are not needed.
pub(crate) fn scratch<T: Element>(
    needed: bool,
    lines: usize,
    width: usize,
    depth: usize,
) -> Result<Scratch<T>> {
    workspace::scratch("gemm", elements(needed, lines, width, depth)?)
}

/// Elements of panels, none where they are not needed.
fn elements(needed: bool, lines: usize, width: usize, depth: usize) -> Result<usize> {
    let len = if needed { packed_len(lines, width, depth) } else { Some(0) };
    len.ok_or(Error::Alloc { op: "gemm", bytes: usize::MAX })
}

//! The loops around the micro-kernel, and their tasks.
//!
//! ```text
//! for jc in 0..n step nc              columns of B and C           loop 5
//!   for pc in 0..k step kc            depth; B[pc, jc] → panels     loop 4   one parallel step
//!     for ic in 0..m step rows        rows of A; A[ic, pc] → panels loop 3   one parallel step
//!       tasks over C[ic, jc]          mc rows each:
//!         for jr step tile columns    a panel of B, in L1           loop 2
//!           for ir step tile rows     a panel of A, from L2         loop 1   micro-kernel over kc
//! ```
//!
//! An element of C is the sum over its blocks of depth, in order, and in a block over its steps, in order:
//! whoever computes it, in whichever tile.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::blocking::{Blocking, Tile, blocking, tile, tile_rows};
use super::epilogue::Epilogue;
use super::kernel::Block;
use super::packed::Packed;
use super::panel::{self, PanelSource, Panels, packed_len};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{self, Scratch};

/// An operand as the driver takes it.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a, T, P> {
    Source(P),
    Packed(&'a Packed<T>),
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

    /// The operand as a matrix in memory, where it is one.
    fn direct(&self) -> Option<TensorView<'_, T, 2>> {
        match self {
            Input::Source(source) => source.direct(),
            Input::Packed(_) => None,
        }
    }
}

/// Scale factors and epilogue of a product, as every path takes them.
#[derive(Clone, Copy)]
pub(crate) struct Scale<'e, T> {
    pub alpha: T,
    pub beta: T,
    pub epilogue: Epilogue<'e, T>,
}

impl<T: Element> Scale<'_, T> {
    /// What C is multiplied by in the first block of depth; `None` never reads it.
    fn first_beta(&self) -> Option<T> {
        (self.beta != T::ZERO).then_some(self.beta)
    }
}

/// Multiplications that a task is worth in one block of depth, after which all tasks meet: 128³ and 64 × 64 with any
/// depth are faster on one thread, 16 × 1000 is not.
const GRAIN: usize = 3 << 19;

/// What each step of a product needs to know.
#[derive(Clone, Copy)]
struct Plan {
    isa: Isa,
    tile: Tile,
    /// Height of a panel of A.
    tile_rows: usize,
    blocking: Blocking,
    /// Rows of A that are packed at a time: all that fit in L3 where several tasks share them, else `mc`.
    row_chunk: usize,
    tasks: usize,
    pack_a: bool,
    pack_b: bool,
}

/// True where A is better read in place than packed: every panel of A is read once for each panel of B, so
/// with few columns packing costs as much as it saves.
fn reads_a_in_place(tile: Tile, n: usize) -> bool {
    n <= 4 * tile.columns
}

/// True where B is better read in place, `contiguous` saying that its rows can be.
fn reads_b_in_place(tile: Tile, m: usize, n: usize, contiguous: bool) -> bool {
    contiguous && n.is_multiple_of(tile.columns) && m <= 2 * tile.rows
}

impl Plan {
    fn new<T: Element>(
        isa: Isa,
        [m, n, k]: [usize; 3],
        a: &Input<'_, T, impl PanelSource<T>>,
        b: &Input<'_, T, impl PanelSource<T>>,
        tasks: Option<usize>,
    ) -> Self {
        let (tile, caches) = (tile::<T>(isa), machine::caches());
        let blocking = blocking::<T>(tile, caches, m, n, k);
        let tile_rows = match a {
            Input::Packed(packed) => packed.width(),
            Input::Source(_) => tile_rows(tile, m),
        };
        let work = m.saturating_mul(n).saturating_mul(k.min(blocking.kc));
        let tasks = tasks.unwrap_or_else(|| parallel::tasks(work, GRAIN));
        let a_in_place = a.direct().is_some() && reads_a_in_place(tile, n);
        let b_in_place = b.direct().is_some_and(|view| reads_b_in_place(tile, m, n, view.strides()[0] == 1));
        let mc = blocking.mc.next_multiple_of(tile_rows);
        let row_chunk = if tasks > 1 { blocking.nc.max(mc) / tile_rows * tile_rows } else { mc };
        Self {
            isa,
            tile,
            tile_rows,
            blocking: Blocking { mc, ..blocking },
            row_chunk,
            tasks,
            pack_a: !a_in_place,
            pack_b: !b_in_place,
        }
    }
}

/// C = alpha · A · B + beta · C and the epilogue. The shapes have been checked. `tasks` overrides how many
/// tasks there are; how many there were is returned.
pub(crate) fn product<T: Element>(
    isa: Isa,
    a: Input<'_, T, impl PanelSource<T>>,
    b: Input<'_, T, impl PanelSource<T>>,
    scale: &Scale<'_, T>,
    mut c: TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
) -> Result<usize> {
    let ([m, n], k) = (c.shape(), a.depth());
    debug_assert_eq!([a.lines(), b.lines(), b.depth()], [m, n, k]);
    if m == 0 || n == 0 {
        return Ok(0);
    }
    let plan = Plan::new(isa, [m, n, k], &a, &b, tasks);
    let Blocking { kc, nc, .. } = plan.blocking;
    // All memory first: where it is lacking, nothing has been written.
    let width = plan.tile.columns;
    let mut b_scratch = scratch(matches!(b, Input::Source(_)) && plan.pack_b, n.min(nc), width, kc)?;
    let mut a_scratch =
        scratch(matches!(a, Input::Source(_)) && plan.pack_a, m.min(plan.row_chunk), plan.tile_rows, kc)?;
    for columns in blocks(n, nc) {
        // With no depth there is still one block: it scales C and runs the epilogue.
        for (index, steps) in blocks(k.max(1), kc).enumerate() {
            let steps = steps.start..steps.end.min(k);
            let b_panels = panels(&plan, &b, &columns, &steps, width, &mut b_scratch);
            let last = steps.end == k;
            for rows in blocks(m, plan.row_chunk) {
                let a_panels = panels(&plan, &a, &rows, &steps, plan.tile_rows, &mut a_scratch);
                let step = Step {
                    plan: &plan,
                    a: a_panels,
                    b: b_panels,
                    depth: steps.len(),
                    alpha: scale.alpha,
                    beta: if index == 0 { scale.first_beta() } else { Some(T::ONE) },
                    epilogue: (last && !scale.epilogue.is_empty()).then_some(&scale.epilogue),
                };
                let c = c.tile_mut([rows.start, columns.start], [rows.len(), columns.len()]);
                step.run(c, [rows.start, columns.start], [0, 0], plan.tasks)?;
            }
        }
    }
    Ok(plan.tasks)
}

fn blocks(len: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(block).map(move |start| start..len.min(start + block))
}

fn scratch<T: Element>(needed: bool, lines: usize, width: usize, depth: usize) -> Result<Scratch<T>> {
    let len = if needed { packed_len(lines, width, depth) } else { Some(0) };
    workspace::scratch("gemm", len.ok_or(Error::Alloc { op: "gemm", bytes: usize::MAX })?)
}

/// The panels of some lines over some steps: those packed before, the source itself, or the source packed
/// into `scratch` now.
fn panels<'s, T: Element>(
    plan: &Plan,
    input: &'s Input<'_, T, impl PanelSource<T>>,
    lines: &Range<usize>,
    steps: &Range<usize>,
    width: usize,
    scratch: &'s mut Scratch<T>,
) -> Panels<'s, T> {
    match input {
        Input::Packed(packed) => packed.panels(steps.start, steps.len()).from(lines.start),
        Input::Source(source) => {
            let in_place = source.direct().filter(|_| scratch.is_empty());
            if let Some(view) = in_place
                && let Ok(view) = view.slice(0, lines.clone(), 1)
                && let Ok(view) = view.slice(1, steps.clone(), 1)
            {
                return Panels::Direct(view);
            }
            let len = lines.len().next_multiple_of(width) * steps.len();
            let data = &mut scratch[..len];
            panel::pack(plan.isa, *source, lines.clone(), steps.clone(), width, data, plan.tasks > 1);
            Panels::Packed { data, width, depth: steps.len() }
        }
    }
}

/// One block of depth over a part of C.
#[derive(Clone, Copy)]
struct Step<'s, T> {
    plan: &'s Plan,
    a: Panels<'s, T>,
    b: Panels<'s, T>,
    depth: usize,
    alpha: T,
    beta: Option<T>,
    epilogue: Option<&'s Epilogue<'s, T>>,
}

impl<T: Element> Step<'_, T> {
    /// Computes `c`, whose first element is `at` in the panels and `origin + at` in the product, in `tasks`
    /// tasks.
    fn run(
        &self,
        c: TensorViewMut<'_, T, 2>,
        origin: [usize; 2],
        at: [usize; 2],
        tasks: usize,
    ) -> Result<()> {
        let units = [self.plan.tile_rows, self.plan.tile.columns];
        let tiles = [0, 1].map(|axis| c.shape()[axis].div_ceil(units[axis]));
        if tasks <= 1 || tiles == [1, 1] {
            return self.serial(c, origin, at);
        }
        // Halve the longer side: then both parts read the fewest panels.
        let [height, width] = c.shape();
        let axis = usize::from(tiles[0] == 1 || (tiles[1] > 1 && width > height));
        let half = tasks / 2;
        let cut = (tiles[axis] * half / tasks).clamp(1, tiles[axis] - 1) * units[axis];
        let (low, high) = c.split_at(axis, cut)?;
        let mut next = at;
        next[axis] += cut;
        let (first, second) =
            parallel::join(|| self.run(low, origin, at, half), || self.run(high, origin, next, tasks - half));
        first.and(second)
    }

    fn serial(&self, mut c: TensorViewMut<'_, T, 2>, origin: [usize; 2], at: [usize; 2]) -> Result<()> {
        let [m, n] = c.shape();
        for rows in blocks(m, self.plan.blocking.mc) {
            let block = Block {
                a: self.a.from(at[0] + rows.start),
                b: self.b.from(at[1]),
                tile_rows: self.plan.tile_rows,
                depth: self.depth,
                alpha: self.alpha,
                beta: self.beta,
                epilogue: self.epilogue,
                origin: [origin[0] + at[0] + rows.start, origin[1] + at[1]],
                c: c.tile_mut([rows.start, 0], [rows.len(), n]),
            };
            T::block(self.plan.isa, block);
        }
        Ok(())
    }
}

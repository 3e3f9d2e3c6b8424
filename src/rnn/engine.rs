//! The forward steps of one direction over some entries of a batch.
//!
//! ```text
//! for some steps at a time                  all at once where a tape keeps their gates
//!   Z = X Uᵀ                                one GEMM; of a single step over packed U, beside P
//!   for each step
//!     for some units at a time              tasks; in odd steps from the last to the first, so that the weights
//!       P = H Wᵀ, all gates of the units      that the last step left in L2 come first
//!       gates, c, h from Z, b and P         one pass, P still in L1
//! ```
#![forbid(unsafe_code)]

use std::ops::Range;

use super::descriptor::{Cell, Reset};
use super::functions::Functions;
use super::pass::{ForwardPass, Stage};
use super::ready::Ready;
use super::sizes::WeightSizes;
use super::steps::{Steps, merge};
use super::tape::TapeMut;
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{self, Epilogue, Extent, Input, Scale, Slab, Tile};
use crate::machine::{self, Caches, Isa};
use crate::parallel;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{self, Scratch};

/// Elements of Z for which there is scratch where nothing keeps them.
const CHUNK: usize = 1 << 22;
/// What a task of a step costs at least, in multiplications of rows in L1: some microseconds.
const GRAIN: usize = 1 << 19;
/// Columns of a product for which its left operand is read in place, in tiles.
const TILES: usize = 8;

/// What all steps of a direction need.
pub(crate) struct Engine<'e, T> {
    pub op: &'static str,
    pub isa: Isa,
    pub cell: Cell,
    pub sizes: WeightSizes,
    pub weights: Ready<'e, T>,
    pub functions: Option<Functions>,
    /// Steps made over these weights before.
    pub turn: usize,
}

/// What a run over some entries of a batch reads and writes.
pub(crate) struct Job<'j, T> {
    /// `[time, batch, inputs]`.
    pub x: TensorView<'j, T, 3>,
    /// The first states, `[batch, …]`; 0 where there are none.
    pub hidden: Option<TensorView<'j, T, 2>>,
    pub cell: Option<TensorView<'j, T, 2>>,
    /// `[time, batch, state]`.
    pub y: Option<TensorViewMut<'j, T, 3>>,
    /// Where the last states go, `[batch, …]`.
    pub last_hidden: Option<TensorViewMut<'j, T, 2>>,
    pub last_cell: Option<TensorViewMut<'j, T, 2>>,
    /// The first states are where the last ones go.
    pub carried: bool,
    pub tape: Option<TapeMut<'j, T>>,
}

/// α = 1, β and nothing after.
pub(crate) fn plain<T: Element>(beta: T) -> Scale<'static, T> {
    let epilogue = Epilogue { bias: None, residual: None, activation: Activation::Identity };
    Scale { alpha: T::ONE, beta, epilogue }
}

/// Units that are computed at a time, of `columns` columns in all. Where L2 does not hold the weights of all for a lone row, they are
/// fewer: what it holds is read first in the next step, but whole chunks only.
pub(crate) fn chunk<T>(
    tile: Tile,
    caches: Caches,
    gates: usize,
    [rows, columns, depth]: [usize; 3],
) -> usize {
    let bytes = columns.saturating_mul(depth).saturating_mul(size_of::<T>());
    let tiles = if rows == 1 && bytes > caches.l2 / 4 * 3 { gemm::RUNS } else { TILES };
    (tiles / gates).max(1) * tile.columns
}

/// How many tasks a product of a step is cut in: reading a weight costs as much as some multiplications.
pub(crate) fn step_tasks(rows: usize, columns: usize, depth: usize) -> usize {
    parallel::threads_for(columns.saturating_mul(depth).saturating_mul(rows + 4), GRAIN)
}

/// The states before and after each step: all of them, or the last two in turn.
pub(crate) struct History<'h, T> {
    pub data: &'h mut [T],
    pub columns: usize,
    pub all: bool,
}

impl<T: Element> History<'_, T> {
    /// The states before a step and, to be written, after it.
    pub(crate) fn step(
        &mut self,
        steps: &Steps<'_>,
        step: usize,
    ) -> Result<(TensorView<'_, T, 2>, TensorViewMut<'_, T, 2>)> {
        let (rows, columns) = (steps.count(step), self.columns);
        let (before, after) = if self.all {
            let (before, after) = self.data.split_at_mut(steps.before(step + 1) * columns);
            (&mut before[steps.before(step) * columns..], after)
        } else {
            let (even, odd) = self.data.split_at_mut(steps.batch * columns);
            if step.is_multiple_of(2) { (even, odd) } else { (odd, even) }
        };
        let before = TensorView::from_slice(&before[..rows * columns], [rows, columns])?;
        Ok((before, TensorViewMut::from_slice(&mut after[..rows * columns], [rows, columns])?))
    }
}

/// The states before and after a step where y holds them: before the first, `first` does.
fn neighbours<'n, T: Element>(
    y: &'n mut TensorViewMut<'_, T, 3>,
    steps: &Steps<'_>,
    step: usize,
    first: &'n [T],
) -> Result<(TensorView<'n, T, 2>, TensorViewMut<'n, T, 2>)> {
    let (time, [_, batch, state]) = (steps.time(step, 0), y.shape());
    if step == 0 {
        return Ok((TensorView::from_slice(first, [batch, state])?, y.view_mut().select(0, time)?));
    }
    let (low, high) = y.view_mut().split_at(0, if steps.reverse { time + 1 } else { time })?;
    if steps.reverse {
        return Ok((TensorView::from(high).select(0, 0)?, low.select(0, time)?));
    }
    Ok((TensorView::from(low).select(0, time - 1)?, high.select(0, 0)?))
}

/// Some rows of a matrix that lies in a slice.
pub(crate) fn rows_of<'a, T: Element>(
    data: &'a [T],
    first: usize,
    rows: usize,
    columns: usize,
) -> Result<TensorView<'a, T, 2>> {
    TensorView::from_slice(&data[first * columns..][..rows * columns], [rows, columns])
}

pub(crate) fn no_view<'a, T: Element>() -> TensorView<'a, T, 2> {
    TensorView::from(no_view_mut())
}

pub(crate) fn no_view_mut<'a, T: Element>() -> TensorViewMut<'a, T, 2> {
    TensorViewMut::matrix(&mut [], [0, 0])
}

/// Both parts of the columns of a view; of one that is not used, nothing.
pub(crate) fn cut<'a, T: Element>(
    view: TensorViewMut<'a, T, 2>,
    at: usize,
) -> Result<(TensorViewMut<'a, T, 2>, TensorViewMut<'a, T, 2>)> {
    let at = at.min(view.shape()[1]);
    view.split_at(1, at)
}

/// Some columns of a view; of one that is not used, none.
pub(crate) fn part<'a, T: Element>(
    view: &TensorView<'a, T, 2>,
    columns: Range<usize>,
) -> TensorView<'a, T, 2> {
    let [rows, all] = view.shape();
    if all == 0 { *view } else { view.tile([0, columns.start], [rows, columns.len()]) }
}

/// As [`part`], to be written.
pub(crate) fn part_mut<'v, T: Element>(
    view: &'v mut TensorViewMut<'_, T, 2>,
    columns: Range<usize>,
) -> TensorViewMut<'v, T, 2> {
    let [rows, all] = view.shape();
    if all == 0 { view.view_mut() } else { view.tile_mut([0, columns.start], [rows, columns.len()]) }
}

/// Some units of three vectors; of none, none.
pub(crate) fn peephole<'a, T>(all: &'a [T], padded: usize, units: &Range<usize>) -> [&'a [T]; 3] {
    let vector = |k: usize| if all.is_empty() { all } else { &all[k * padded..][units.clone()] };
    [vector(0), vector(1), vector(2)]
}

/// x and U, where Z of a step is made beside the pass.
pub(crate) type Projection<'p, T> = (TensorView<'p, T, 2>, Slab<'p, T>);

/// What a stage of a step reads, all units of it.
#[derive(Clone, Copy)]
struct Read<'r, T> {
    stage: Stage<T>,
    keep: bool,
    input: Option<Projection<'r, T>>,
    /// The left operand of the product.
    a: TensorView<'r, T, 2>,
    weights: Slab<'r, T>,
    /// Gates of the product.
    gates: usize,
    h_prev: TensorView<'r, T, 2>,
    c_prev: TensorView<'r, T, 2>,
    /// From the last units to the first.
    backwards: bool,
}

/// What it writes, for some units.
struct Write<'w, T> {
    first: usize,
    z: TensorViewMut<'w, T, 2>,
    c: TensorViewMut<'w, T, 2>,
    out: TensorViewMut<'w, T, 2>,
    candidate: TensorViewMut<'w, T, 2>,
    /// A copy of `out`, or nothing.
    y: TensorViewMut<'w, T, 2>,
}

/// The matrices of a step; those that the cell does not have are empty.
pub(crate) struct StepViews<'s, T> {
    pub z: TensorViewMut<'s, T, 2>,
    pub h_prev: TensorView<'s, T, 2>,
    pub h: TensorViewMut<'s, T, 2>,
    pub c_prev: TensorView<'s, T, 2>,
    pub c: TensorViewMut<'s, T, 2>,
    pub candidate: TensorViewMut<'s, T, 2>,
    /// What lies between the two products of a step.
    pub between: TensorViewMut<'s, T, 2>,
    /// A copy of h.
    pub y: TensorViewMut<'s, T, 2>,
}

impl<T: Element> Engine<'_, T> {
    /// Columns of Z.
    pub(crate) fn columns(&self) -> usize {
        self.sizes.gates * self.weights.padded
    }

    /// True where a step has two products.
    pub(crate) fn two_products(&self) -> bool {
        self.sizes.projection || self.cell == Cell::Gru(Reset::Before)
    }

    /// Elements of a number of rows.
    pub(crate) fn elements(&self, rows: usize, columns: usize) -> Result<usize> {
        rows.checked_mul(columns).ok_or(Error::Alloc { op: self.op, bytes: usize::MAX })
    }

    pub(crate) fn scratch(&self, rows: usize, columns: usize) -> Result<Scratch<T>> {
        workspace::scratch(self.op, self.elements(rows, columns)?)
    }

    /// All steps.
    pub(crate) fn run(&self, job: Job<'_, T>, steps: &Steps<'_>) -> Result<()> {
        let Job { x, hidden, cell, y, mut last_hidden, mut last_cell, carried, tape } = job;
        let WeightSizes { hidden: units, state, .. } = self.sizes;
        let (batch, lstm, columns) = (steps.batch, self.cell.is_lstm(), self.columns());
        let taped = tape.is_some();
        let tape =
            tape.unwrap_or(TapeMut { states: &mut [], cells: &mut [], gates: &mut [], candidates: &mut [] });
        let keep = !tape.gates.is_empty();
        let per_chunk = if keep { steps.len } else { (CHUNK / columns.max(1) / batch.max(1)).max(1) };
        let chunk_rows = if keep { 0 } else { batch.saturating_mul(per_chunk.min(steps.len)) };

        // All memory first: where it is lacking, nothing has been written.
        let mut z_scratch = self.scratch(chunk_rows, columns)?;
        // Where rows of y are slices, each step finds the state before it there.
        let in_y = !taped && !steps.is_ragged() && y.as_ref().is_some_and(|y| y.strides()[2] == 1);
        let (mut history, y) = if in_y { (y, None) } else { (None, y) };
        // Rows of entries of unlike lengths go to y one by one.
        let (mut y, mut y_by_rows) = if steps.is_ragged() { (None, y) } else { (y, None) };
        let ring = |columns: usize, needed: bool| {
            self.scratch(if needed && !taped { 2 * batch } else { 0 }, columns)
        };
        let (mut states, mut cells) = (ring(state, true)?, ring(units, lstm)?);
        let mut between = self.scratch(if self.two_products() { batch } else { 0 }, units)?;
        let rows_of_x = merge(x).filter(|_| !steps.is_ragged() && !steps.reverse);
        let gathered = if rows_of_x.is_some() { 0 } else { batch.saturating_mul(per_chunk.min(steps.len)) };
        let mut gathered = self.scratch(gathered, x.shape()[2])?;

        let data = if taped { &mut *tape.states } else { &mut states };
        let mut h = History { data, columns: state, all: taped };
        let data = if taped { &mut *tape.cells } else { &mut cells };
        let mut c = History { data, columns: if lstm { units } else { 0 }, all: taped };
        let first =
            |given: Option<TensorView<'_, T, 2>>, last: &Option<TensorViewMut<'_, T, 2>>, to: &mut [T]| {
                steps.take(if carried { last.as_ref().map(|view| view.view()) } else { given }, to);
            };
        first(hidden, &last_hidden, &mut h.data[..batch * state]);
        if lstm {
            first(cell, &last_cell, &mut c.data[..batch * units]);
        }
        // Entries without a step end where they begin.
        let none = steps.count(0)..batch;
        let beginning = TensorView::from_slice(&h.data[..batch * state], [batch, state])?;
        last_hidden.iter_mut().for_each(|last| steps.put(none.clone(), beginning, T::ZERO, last));
        if lstm {
            let beginning = TensorView::from_slice(&c.data[..batch * units], [batch, units])?;
            last_cell.iter_mut().for_each(|last| steps.put(none.clone(), beginning, T::ZERO, last));
        }

        for first in (0..steps.len).step_by(per_chunk) {
            let chunk = first..steps.len.min(first + per_chunk);
            let rows = steps.range(chunk.clone());
            let z = if keep { &mut *tape.gates } else { &mut z_scratch };
            let x = match rows_of_x {
                Some(x) => x.tile([rows.start, 0], [rows.len(), x.shape()[1]]),
                None => {
                    let shape = [rows.len(), x.shape()[2]];
                    steps.gather(chunk.clone(), x, TensorViewMut::matrix(&mut gathered, shape))?;
                    TensorView::from_slice(&gathered[..shape[0] * shape[1]], shape)?
                }
            };
            let z = &mut z[..rows.len() * columns];
            let input = match self.weights.input {
                Err(slab) if steps.len == 1 => Some((x, slab)),
                _ => {
                    self.project(x, TensorViewMut::matrix(z, [rows.len(), columns]))?;
                    None
                }
            };
            for step in chunk {
                let at = steps.range(step..step + 1);
                let here = (at.start - rows.start) * columns..(at.end - rows.start) * columns;
                let candidates = match tape.candidates.is_empty() {
                    true => no_view_mut(),
                    false => {
                        let range = at.start * units..at.end * units;
                        TensorViewMut::from_slice(&mut tape.candidates[range], [at.len(), units])?
                    }
                };
                let (h_prev, h_next) = match &mut history {
                    Some(y) => neighbours(y, steps, step, &h.data[..batch * state])?,
                    None => h.step(steps, step)?,
                };
                let (c_prev, c_next) = if lstm { c.step(steps, step)? } else { (no_view(), no_view_mut()) };
                let mut views = StepViews {
                    z: TensorViewMut::matrix(&mut z[here], [at.len(), columns]),
                    h_prev,
                    h: h_next,
                    c_prev,
                    c: c_next,
                    candidate: candidates,
                    between: self.between(&mut between, at.len()),
                    y: match &mut y {
                        Some(y) => y.view_mut().select(0, steps.time(step, 0))?,
                        None => no_view_mut(),
                    },
                };
                self.step(&mut views, input, keep, step)?;
                let ended = steps.count(step + 1)..at.len();
                last_hidden
                    .iter_mut()
                    .for_each(|last| steps.put(ended.clone(), views.h.view(), T::ZERO, last));
                last_cell.iter_mut().for_each(|last| steps.put(ended.clone(), views.c.view(), T::ZERO, last));
                let StepViews { h, .. } = views;
                if let Some(y) = &mut y_by_rows {
                    steps.scatter(step..step + 1, h.view(), T::ZERO, y.view_mut())?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn between<'b>(&self, data: &'b mut [T], rows: usize) -> TensorViewMut<'b, T, 2> {
        if self.two_products() {
            TensorViewMut::matrix(data, [rows, self.sizes.hidden])
        } else {
            no_view_mut()
        }
    }

    /// Z = X Uᵀ. The bias waits for the pass, which has it in L1.
    pub(crate) fn project(&self, x: TensorView<'_, T, 2>, z: TensorViewMut<'_, T, 2>) -> Result<()> {
        let weights = match self.weights.input {
            Ok(source) => Input::Source(source),
            Err(slab) => Input::Packed(slab),
        };
        gemm::product(self.isa, Input::Source(x), weights, &plain(T::ZERO), z, None, Extent::Part)?;
        Ok(())
    }

    /// One step. Z is there, or made from `input`; the gates are kept in it where `keep`.
    pub(crate) fn step(
        &self,
        views: &mut StepViews<'_, T>,
        input: Option<Projection<'_, T>>,
        keep: bool,
        step: usize,
    ) -> Result<()> {
        let StepViews { z, h_prev, h, c_prev, c, candidate, between, y } = views;
        let (h_prev, c_prev, gates) = (*h_prev, *c_prev, self.sizes.gates);
        let stage = match self.cell {
            Cell::Elman(nonlinearity) => Stage::Elman(nonlinearity),
            Cell::Lstm { clip, coupled } => Stage::Lstm { clip: clip.map(T::from_f64), coupled },
            Cell::Gru(Reset::After) => Stage::GruAfter,
            Cell::Gru(Reset::Before) => Stage::GruReset,
        };
        let backwards = !self.turn.wrapping_add(step).is_multiple_of(2);
        let mut read = Read {
            stage,
            keep,
            input,
            a: h_prev,
            weights: self.weights.recurrent,
            gates,
            h_prev,
            c_prev,
            backwards,
        };
        let two = self.two_products();
        let out = if two { between.view_mut() } else { h.view_mut() };
        if self.cell == Cell::Gru(Reset::Before) {
            read.gates = 2;
        }
        let (z_here, c_here, candidate_here) = (z.view_mut(), c.view_mut(), candidate.view_mut());
        let y_here = if two { no_view_mut() } else { y.view_mut() };
        let write = Write { first: 0, z: z_here, c: c_here, out, candidate: candidate_here, y: y_here };
        self.stage(&read, write)?;
        if self.sizes.projection {
            let weights = Input::<T, TensorView<'_, T, 2>>::Packed(self.weights.projection);
            gemm::product(
                self.isa,
                Input::Source(between.view()),
                weights,
                &plain(T::ZERO),
                h.view_mut(),
                None,
                Extent::Part,
            )?;
            if !y.is_empty() {
                y.copy_from(h.view());
            }
        } else if two {
            let (stage, a, weights) = (Stage::GruCandidate, between.view(), self.weights.candidate);
            let read = Read { stage, a, weights, gates: 1, input: None, ..read };
            let (c, candidate) = (no_view_mut(), no_view_mut());
            let (z, out, y) = (z.view_mut(), h.view_mut(), y.view_mut());
            self.stage(&read, Write { first: 0, z, c, out, candidate, y })?;
        }
        Ok(())
    }

    fn stage(&self, read: &Read<'_, T>, write: Write<'_, T>) -> Result<()> {
        let [rows, units] = write.out.shape();
        self.split(read, write, step_tasks(rows, units * read.gates, self.depth(read)))
    }

    /// Weights of a column, those of the inputs among them where they are multiplied too.
    fn depth(&self, read: &Read<'_, T>) -> usize {
        let inputs =
            read.input.map_or(0, |(x, _)| x.shape()[1].saturating_mul(self.sizes.gates) / read.gates);
        read.weights.depth().saturating_add(inputs)
    }

    fn split(&self, read: &Read<'_, T>, write: Write<'_, T>, tasks: usize) -> Result<()> {
        let (units, unit) = (write.out.shape()[1], gemm::tile::<T>(self.isa).columns);
        let tiles = units.div_ceil(unit);
        if tasks <= 1 || tiles <= 1 {
            return self.units(read, write);
        }
        let half = tasks / 2;
        let at = (tiles * half / tasks).clamp(1, tiles - 1) * unit;
        let Write { first, z, c, out, candidate, y } = write;
        let (z, high_z) = cut(z, at * self.sizes.gates)?;
        let ((c, high_c), (out, high_out)) = (cut(c, at)?, cut(out, at)?);
        let ((candidate, high_candidate), (y, high_y)) = (cut(candidate, at)?, cut(y, at)?);
        let low = Write { first, z, c, out, candidate, y };
        let (first, candidate) = (first + at, high_candidate);
        let high = Write { first, z: high_z, c: high_c, out: high_out, candidate, y: high_y };
        let (one, two) =
            parallel::join(|| self.split(read, low, half), || self.split(read, high, tasks - half));
        one.and(two)
    }

    /// A stage on this thread.
    fn units(&self, read: &Read<'_, T>, mut write: Write<'_, T>) -> Result<()> {
        let ([rows, units], tile) = (write.out.shape(), gemm::tile::<T>(self.isa));
        if units == 0 {
            return Ok(());
        }
        let (all, work) = (self.sizes.gates, [rows, units * read.gates, self.depth(read)]);
        let chunk = chunk::<T>(tile, machine::caches(), read.gates, work).min(units);
        let width = read.gates * chunk.next_multiple_of(tile.lanes);
        let mut product = self.scratch(rows, width)?;
        let chunks = units.div_ceil(chunk);
        for at in 0..chunks {
            let start = if read.backwards { chunks - 1 - at } else { at } * chunk;
            let range = start..units.min(start + chunk);
            let padded = range.len().next_multiple_of(tile.lanes);
            let mut product = TensorViewMut::matrix(&mut product, [rows, read.gates * padded]);
            let (a, from) = (read.a, (write.first + start) * read.gates);
            let z_range = range.start * all..(range.start + padded) * all;
            for of_inputs in if read.backwards { [true, false] } else { [false, true] } {
                if !of_inputs {
                    gemm::columns(self.isa, a, read.weights, &plain(T::ZERO), product.view_mut(), from)?;
                } else if let Some((x, slab)) = read.input {
                    let z = part_mut(&mut write.z, z_range.clone());
                    gemm::columns(self.isa, x, slab, &plain(T::ZERO), z, (write.first + start) * all)?;
                }
            }
            let units = write.first + range.start..write.first + range.end;
            let candidate_bias = self.weights.candidate_bias.get(units.clone()).unwrap_or(&[]);
            // The next step begins with the units that this one ends with.
            let ahead = match (at + 1 == chunks, read.backwards) {
                (true, _) => (rows * self.columns()) as isize,
                (false, false) => (chunk * all) as isize,
                (false, true) => -((chunk * all) as isize),
            };
            let pass = ForwardPass {
                stage: read.stage,
                functions: self.functions,
                z: part_mut(&mut write.z, z_range),
                bias: &self.weights.bias[units.start * all..(units.start + padded) * all],
                keep: read.keep,
                ahead,
                product: product.view(),
                h_prev: part(&read.h_prev, self.narrow(&units)),
                c_prev: part(&read.c_prev, units.clone()),
                c: part_mut(&mut write.c, range.clone()),
                out: part_mut(&mut write.out, range.clone()),
                candidate: part_mut(&mut write.candidate, range.clone()),
                candidate_bias,
                peephole: peephole(self.weights.peephole, self.weights.padded, &units),
            };
            T::forward_pass(self.isa, pass);
            if !write.y.is_empty() {
                part_mut(&mut write.y, range.clone()).copy_from(part(&write.out.view(), range));
            }
        }
        Ok(())
    }

    /// Units of h, which has fewer where it is projected, and is not looked at then.
    fn narrow(&self, units: &Range<usize>) -> Range<usize> {
        if self.sizes.projection { 0..0 } else { units.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_row_goes_to_and_fro_in_what_l2_keeps() {
        let tile = Tile { rows: 6, columns: 64, lanes: 16, narrow_rows: 12, masked: true };
        let caches = Caches { l1d: 48 << 10, l2: 1 << 20, l3: 32 << 20 };
        let chunk = |gates, work| chunk::<f32>(tile, caches, gates, work);
        assert_eq!([1, 2].map(|rows| chunk(4, [rows, 2048, 512])), [64, 128]);
        assert_eq!([384, 385].map(|columns| chunk(1, [1, columns, 512])), [512, 256], "three quarters");
        assert_eq!(chunk(3, [1, 2048, 512]), 64);
    }
}

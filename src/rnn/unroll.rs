//! The steps back of one direction over some entries of a batch.
//!
//! ```text
//! for each step, from the last
//!   for some units at a time        tasks
//!     dH += dY
//!     dH += dZ of the step after · W      the only product that must wait for the step after
//!     dZ, dC, and the part of dH that passes by the product: one pass
//! ```
#![forbid(unsafe_code)]

use std::ops::Range;

use super::descriptor::{Cell, Reset, Spec};
use super::engine::{chunk, cut, no_view, no_view_mut, part, part_mut, peephole, plain, rows_of, step_tasks};
use super::functions::Functions;
use super::pass::{BackwardPass, Stage};
use super::ready::column;
use super::sizes::WeightSizes;
use super::steps::Steps;
use super::tape::{TapeView, cut_mut};
use super::weights::DirectionWeights;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{self, Slab, tile};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Where the weights of a direction lie in one buffer, as the steps back read them.
pub(crate) struct Parts {
    recurrent: Range<usize>,
    candidate: Range<usize>,
    projection: Range<usize>,
    peephole: Range<usize>,
    pub len: usize,
    padded: usize,
}

/// Gates, in units, of the rows of W that the first product back takes.
fn first_rows(cell: Cell) -> usize {
    if cell == Cell::Gru(Reset::Before) { 2 } else { cell.gates() }
}

impl Parts {
    pub(crate) fn new<T: Element>(
        op: &'static str,
        isa: Isa,
        cell: Cell,
        sizes: WeightSizes,
    ) -> Result<Self> {
        let lay = || {
            let WeightSizes { hidden, state, gates, .. } = sizes;
            let padded = hidden.checked_next_multiple_of(tile::<T>(isa).lanes)?;
            let mut len = 0usize;
            let mut part = |elements: usize| {
                let start = len;
                len = len.checked_add(elements)?.checked_next_multiple_of(16)?;
                Some(start..start + elements)
            };
            let slab = |lines: usize, depth: usize| Slab::<T>::rhs_len(isa, lines, depth);
            let first = first_rows(cell);
            let recurrent = part(slab(state, first * hidden)?)?;
            let candidate = part(if first < gates { slab(state, hidden)? } else { 0 })?;
            let projection = part(if sizes.projection { slab(hidden, state)? } else { 0 })?;
            let peephole = part(if sizes.peephole { padded.checked_mul(3)? } else { 0 })?;
            Some(Self { recurrent, candidate, projection, peephole, len, padded })
        };
        lay().ok_or(Error::Alloc { op, bytes: usize::MAX })
    }

    pub(crate) fn fill<T: Element>(
        &self,
        isa: Isa,
        cell: Cell,
        sizes: WeightSizes,
        weights: &DirectionWeights<'_, T>,
        data: &mut [T],
    ) -> Result<()> {
        let WeightSizes { hidden, gates, .. } = sizes;
        let rows = |range: Range<usize>| {
            let rows = weights.recurrent.slice(0, range.start * hidden..range.end * hidden, 1);
            rows.map(TensorView::transpose)
        };
        let first = first_rows(cell);
        Slab::pack_rhs(isa, rows(0..first)?, &mut data[self.recurrent.clone()]);
        if first < gates {
            Slab::pack_rhs(isa, rows(first..gates)?, &mut data[self.candidate.clone()]);
        }
        if let Some(projection) = weights.projection {
            Slab::pack_rhs(isa, projection.transpose(), &mut data[self.projection.clone()]);
        }
        for (at, to) in data[self.peephole.clone()].iter_mut().enumerate() {
            let (gate, unit) = (at / self.padded, at % self.padded);
            let value = weights.peephole.and_then(|view| view.get([gate * hidden + unit]).copied());
            *to = if unit < hidden { value.unwrap_or(T::ZERO) } else { T::ZERO };
        }
        Ok(())
    }

    pub(crate) fn engine<'a, T: Element>(
        &self,
        op: &'static str,
        isa: Isa,
        spec: &Spec,
        direction: usize,
        sizes: WeightSizes,
        data: &'a [T],
    ) -> Unroll<'a, T> {
        let (cell, functions) = (spec.cell, spec.functions(direction));
        let WeightSizes { hidden, state, .. } = sizes;
        let slab = |part: &Range<usize>, lines, depth| Slab::rhs(isa, lines, depth, &data[part.clone()]);
        Unroll {
            op,
            isa,
            cell,
            functions,
            sizes,
            recurrent: slab(&self.recurrent, state, first_rows(cell) * hidden),
            candidate: slab(&self.candidate, state, hidden),
            projection: slab(&self.projection, hidden, state),
            peephole: &data[self.peephole.clone()],
            padded: self.padded,
        }
    }
}

/// Elements between neighbouring rows of dZ. A power of two would put the rows of a tile, and the steps of a column, in
/// one set of L1.
pub(crate) fn pitch<T>(cell: Cell, hidden: usize) -> Option<usize> {
    let (columns, line) = (cell.gradient_columns().checked_mul(hidden)?, simd::CACHE_LINE / size_of::<T>());
    if columns.is_multiple_of(16 * line) { columns.checked_add(line) } else { Some(columns) }
}

/// dZ, `[rows, columns]`, in the memory that [`pitch`] sizes.
pub(crate) fn gradients<T: Element>(
    cell: Cell,
    hidden: usize,
    data: &[T],
    rows: usize,
) -> Result<TensorView<'_, T, 2>> {
    let columns = cell.gradient_columns() * hidden;
    let pitch = pitch::<T>(cell, hidden).unwrap_or(columns);
    TensorView::from_slice(data, [rows, pitch])?.slice(1, ..columns, 1)
}

/// What all steps back of a direction need.
pub(crate) struct Unroll<'e, T> {
    op: &'static str,
    isa: Isa,
    cell: Cell,
    functions: Option<Functions>,
    sizes: WeightSizes,
    recurrent: Slab<'e, T>,
    candidate: Slab<'e, T>,
    projection: Slab<'e, T>,
    peephole: &'e [T],
    padded: usize,
}

/// What a run over some entries of a batch reads and writes, all rows of it.
pub(crate) struct Job<'j, T> {
    /// `[time, batch, state]`.
    pub dy: Option<TensorView<'j, T, 3>>,
    pub tape: TapeView<'j, T>,
    /// The gradients for the gates before their activations, `[rows, columns]`.
    pub dz: &'j mut [T],
    /// Of a projection: the gradient for h, `[rows, state]`.
    pub dstate: &'j mut [T],
    /// Of two products: what the second one multiplied, `[rows, hidden]`.
    pub between: &'j mut [T],
    /// The gradients for the last states, and after the run for the first, `[batch, …]`.
    pub dh: &'j mut [T],
    pub dc: &'j mut [T],
}

impl<'j, T: Element> Job<'j, T> {
    /// The parts of the first entries of the batch, `share` of `whole` entries, and of the others.
    pub(crate) fn split(self, share: usize, whole: usize) -> Result<(Self, Self)> {
        let (dy, high_dy) = super::forward::pair(self.dy.map(|view| view.split_at(1, share)))?;
        let (tape, high_tape) = self.tape.split(share, whole);
        let ((dz, high_dz), (dstate, high_dstate)) =
            (cut_mut(self.dz, share, whole), cut_mut(self.dstate, share, whole));
        let (between, high_between) = cut_mut(self.between, share, whole);
        let ((dh, high_dh), (dc, high_dc)) = (cut_mut(self.dh, share, whole), cut_mut(self.dc, share, whole));
        let low = Self { dy, tape, dz, dstate, between, dh, dc };
        let high = Self {
            dy: high_dy,
            tape: high_tape,
            dz: high_dz,
            dstate: high_dstate,
            between: high_between,
            dh: high_dh,
            dc: high_dc,
        };
        Ok((low, high))
    }
}

/// The product that precedes a pass.
#[derive(Clone, Copy)]
struct Product<'r, T> {
    a: TensorView<'r, T, 2>,
    weights: Slab<'r, T>,
    /// Added to dh, after dY, or made beside it.
    onto: bool,
}

/// What a stage of a step back reads, all units of it.
#[derive(Clone, Copy)]
struct Read<'r, T> {
    /// None: the product alone.
    stage: Option<Stage<T>>,
    product: Product<'r, T>,
    gates: TensorView<'r, T, 2>,
    h: TensorView<'r, T, 2>,
    h_prev: TensorView<'r, T, 2>,
    c: TensorView<'r, T, 2>,
    c_prev: TensorView<'r, T, 2>,
    candidate: TensorView<'r, T, 2>,
    /// From the last units to the first.
    backwards: bool,
    /// dY at a step.
    dy: Option<(&'r Steps<'r>, usize, TensorView<'r, T, 3>)>,
}

/// What it writes, for some units.
struct Write<'w, T> {
    first: usize,
    units: usize,
    dh: TensorViewMut<'w, T, 2>,
    dc: TensorViewMut<'w, T, 2>,
    dz: [TensorViewMut<'w, T, 2>; 4],
    out: TensorViewMut<'w, T, 2>,
}

/// The columns of a matrix in parts of `width`; those that are not there are empty.
fn quarters<'v, T: Element>(
    matrix: TensorViewMut<'v, T, 2>,
    width: usize,
) -> Result<[TensorViewMut<'v, T, 2>; 4]> {
    let mut parts = [no_view_mut(), no_view_mut(), no_view_mut(), no_view_mut()];
    let mut rest = matrix;
    for to in &mut parts {
        (*to, rest) = cut(rest, width)?;
    }
    Ok(parts)
}

impl<T: Element> Unroll<'_, T> {
    /// dZ of some rows.
    pub(crate) fn gradients<'d>(&self, data: &'d [T], rows: usize) -> Result<TensorView<'d, T, 2>> {
        gradients(self.cell, self.sizes.hidden, data, rows)
    }

    /// The columns of dZ that the first product takes.
    fn first_columns(&self) -> Range<usize> {
        let hidden = self.sizes.hidden;
        let start = if self.cell == Cell::Gru(Reset::After) { hidden } else { 0 };
        start..start + first_rows(self.cell) * hidden
    }

    /// All steps; the gradients for the first states only where `first`.
    pub(crate) fn run(&self, job: Job<'_, T>, steps: &Steps<'_>, first: bool) -> Result<()> {
        let Job { dy, tape, dz, dstate, between, dh, dc } = job;
        let WeightSizes { hidden, state, gates, projection, .. } = self.sizes;
        let columns = self.cell.gradient_columns() * hidden;
        let (pitch, gate_columns) = (pitch::<T>(self.cell, hidden).unwrap_or(columns), gates * self.padded);
        let lstm = self.cell.is_lstm();
        for step in (0..steps.len).rev() {
            let (rows, next) = (steps.range(step..step + 1), steps.count(step + 1));
            let count = rows.len();
            let (before, after) = (steps.before(step), steps.before(step + 1));
            let read = Read {
                stage: None,
                product: Product { a: no_view(), weights: self.recurrent, onto: true },
                gates: if gates > 1 || self.functions.is_some() {
                    rows_of(tape.gates, rows.start, count, gate_columns)?
                } else {
                    no_view()
                },
                h: rows_of(tape.states, after, count, state)?,
                h_prev: rows_of(tape.states, before, count, state)?,
                c: if lstm { rows_of(tape.cells, after, count, hidden)? } else { no_view() },
                c_prev: if lstm { rows_of(tape.cells, before, count, hidden)? } else { no_view() },
                candidate: match self.cell {
                    Cell::Gru(Reset::After) => rows_of(tape.candidates, rows.start, count, hidden)?,
                    _ => no_view(),
                },
                backwards: !step.is_multiple_of(2),
                dy: dy.map(|dy| (steps, step, dy)),
            };
            let mut dh = TensorViewMut::from_slice(&mut dh[..count * state], [count, state])?;
            let (here, behind) = dz.split_at_mut(rows.end * pitch);
            let here = &mut here[rows.start * pitch..];
            let behind = self.gradients(&behind[..next * pitch], next)?;
            let product = Product { a: part(&behind, self.first_columns()), ..read.product };
            let here = TensorViewMut::from_slice(here, [count, pitch])?.slice(1, ..columns, 1)?;
            let dc = if lstm {
                TensorViewMut::from_slice(&mut dc[..count * hidden], [count, hidden])?
            } else {
                no_view_mut()
            };
            let two = projection || self.cell == Cell::Gru(Reset::Before);
            let out = match two {
                true => TensorViewMut::matrix(&mut between[rows.start * hidden..], [count, hidden]),
                false => no_view_mut(),
            };
            match self.cell {
                Cell::Lstm { clip, coupled } if projection => {
                    let nothing = [no_view_mut(), no_view_mut(), no_view_mut(), no_view_mut()];
                    let write = Write {
                        first: 0,
                        units: state,
                        dh: dh.view_mut(),
                        dc: no_view_mut(),
                        dz: nothing,
                        out: no_view_mut(),
                    };
                    self.stage(&Read { product, ..read }, write)?;
                    let kept = &mut dstate[rows.start * state..rows.end * state];
                    TensorViewMut::matrix(kept, [count, state]).copy_from(dh.view());
                    dh.fill(T::ZERO);
                    let a = TensorView::from_slice(kept, [count, state])?;
                    let product = Product { a, weights: self.projection, onto: false };
                    let stage = Some(Stage::Lstm { clip: clip.map(T::from_f64), coupled });
                    let dz = quarters(here, hidden)?;
                    let write = Write { first: 0, units: hidden, dh: no_view_mut(), dc, dz, out };
                    self.stage(&Read { stage, product, ..read }, write)?;
                }
                Cell::Gru(Reset::Before) => {
                    let (gates_rz, mut gate_n) = here.split_at(1, 2 * hidden)?;
                    let [dz_r, dz_z, ..] = quarters(gates_rz, hidden)?;
                    let dz = [no_view_mut(), dz_z, gate_n.view_mut(), no_view_mut()];
                    let stage = Some(Stage::GruCandidate);
                    let write =
                        Write { first: 0, units: hidden, dh: dh.view_mut(), dc: no_view_mut(), dz, out };
                    self.stage(&Read { stage, product, ..read }, write)?;
                    let product = Product { a: gate_n.view(), weights: self.candidate, onto: false };
                    let dz = [dz_r, no_view_mut(), no_view_mut(), no_view_mut()];
                    let stage = Some(Stage::GruReset);
                    let (dc, out) = (no_view_mut(), no_view_mut());
                    let write = Write { first: 0, units: hidden, dh: dh.view_mut(), dc, dz, out };
                    self.stage(&Read { stage, product, ..read }, write)?;
                }
                cell => {
                    let stage = Some(match cell {
                        Cell::Elman(nonlinearity) => Stage::Elman(nonlinearity),
                        Cell::Lstm { clip, coupled } => Stage::Lstm { clip: clip.map(T::from_f64), coupled },
                        Cell::Gru(_) => Stage::GruAfter,
                    });
                    let dz = quarters(here, hidden)?;
                    let write = Write { first: 0, units: hidden, dh: dh.view_mut(), dc, dz, out };
                    self.stage(&Read { stage, product, ..read }, write)?;
                }
            }
        }
        let count = steps.count(0);
        if first && count > 0 {
            let a = part(&self.gradients(&dz[..count * pitch], count)?, self.first_columns());
            let dh = TensorViewMut::from_slice(&mut dh[..count * state], [count, state])?;
            let weights = gemm::Input::<T, TensorView<'_, T, 2>>::Packed(self.recurrent);
            gemm::product(
                self.isa,
                gemm::Input::Source(a),
                weights,
                &plain(T::ONE),
                dh,
                None,
                gemm::Extent::Part,
            )?;
        }
        Ok(())
    }

    fn stage(&self, read: &Read<'_, T>, write: Write<'_, T>) -> Result<()> {
        let ([rows, depth], units) = (read.product.a.shape(), write.units);
        self.split(read, write, step_tasks(rows, units, depth))
    }

    fn split(&self, read: &Read<'_, T>, write: Write<'_, T>, tasks: usize) -> Result<()> {
        let (units, unit) = (write.units, tile::<T>(self.isa).columns);
        let tiles = units.div_ceil(unit);
        if tasks <= 1 || tiles <= 1 {
            return self.units(read, write);
        }
        let half = tasks / 2;
        let at = (tiles * half / tasks).clamp(1, tiles - 1) * unit;
        let Write { first, dh, dc, dz, out, .. } = write;
        let ((dh, high_dh), (dc, high_dc), (out, high_out)) = (cut(dh, at)?, cut(dc, at)?, cut(out, at)?);
        let [a, b, c, d] = dz;
        let [(a, high_a), (b, high_b)] = [cut(a, at)?, cut(b, at)?];
        let [(c, high_c), (d, high_d)] = [cut(c, at)?, cut(d, at)?];
        let low = Write { first, units: at, dh, dc, dz: [a, b, c, d], out };
        let dz = [high_a, high_b, high_c, high_d];
        let high =
            Write { first: first + at, units: units - at, dh: high_dh, dc: high_dc, dz, out: high_out };
        let (one, two) =
            parallel::join(|| self.split(read, low, half), || self.split(read, high, tasks - half));
        one.and(two)
    }

    /// A stage on this thread.
    fn units(&self, read: &Read<'_, T>, mut write: Write<'_, T>) -> Result<()> {
        let (tile, units, all) = (tile::<T>(self.isa), write.units, self.sizes.gates);
        if units == 0 {
            return Ok(());
        }
        let Product { a, weights, onto } = read.product;
        let rows = a.shape()[0];
        let work = [rows, units, weights.depth()];
        let chunk = chunk::<T>(tile, machine::caches(), 1, work).min(units);
        let beside = if onto { 0 } else { rows.saturating_mul(chunk) };
        let mut beside = workspace::scratch::<T>(self.op, beside)?;
        let chunks = units.div_ceil(chunk);
        for at in 0..chunks {
            let start = if read.backwards { chunks - 1 - at } else { at } * chunk;
            let range = start..units.min(start + chunk);
            let units = write.first + range.start..write.first + range.end;
            if onto {
                if let Some((steps, step, dy)) = read.dy {
                    let rows = steps.count(step);
                    let mut dh = write.dh.tile_mut([0, range.start], [rows, range.len()]);
                    steps.add(step, dy.slice(2, units.clone(), 1)?, &mut dh)?;
                }
                let dh = write.dh.tile_mut([0, range.start], [rows, range.len()]);
                gemm::columns(self.isa, a, weights, &plain(T::ONE), dh, units.start)?;
            } else {
                let beside = TensorViewMut::matrix(&mut beside, [rows, range.len()]);
                gemm::columns(self.isa, a, weights, &plain(T::ZERO), beside, units.start)?;
            }
            let Some(stage) = read.stage else { continue };
            let dout = match onto {
                true => no_view(),
                false => TensorView::from_slice(&beside[..rows * range.len()], [rows, range.len()])?,
            };
            // Units of h, which has others where it is projected, and is not looked at then.
            let state = if self.sizes.projection { 0..0 } else { units.clone() };
            let padded = range.len().next_multiple_of(tile.lanes);
            debug_assert_eq!(column(tile.lanes, all, 0, units.start), units.start * all);
            let gate_columns = units.start * all..(units.start + padded) * all;
            let [dz_0, dz_1, dz_2, dz_3] = &mut write.dz;
            let pass = BackwardPass {
                stage,
                functions: self.functions,
                gates: part(&read.gates, gate_columns),
                h: part(&read.h, state.clone()),
                h_prev: part(&read.h_prev, state),
                c: part(&read.c, units.clone()),
                c_prev: part(&read.c_prev, units.clone()),
                candidate: part(&read.candidate, units.clone()),
                peephole: peephole(self.peephole, self.padded, &units),
                dh: part_mut(&mut write.dh, range.clone()),
                projected: !onto,
                dout,
                dc: part_mut(&mut write.dc, range.clone()),
                dz: [
                    part_mut(dz_0, range.clone()),
                    part_mut(dz_1, range.clone()),
                    part_mut(dz_2, range.clone()),
                    part_mut(dz_3, range.clone()),
                ],
                out: part_mut(&mut write.out, range.clone()),
            };
            T::backward_pass(self.isa, pass);
        }
        Ok(())
    }
}

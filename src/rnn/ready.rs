//! The weights of a direction as the forward kernels read them.
//!
//! Gates are interleaved by vectors of units, so that the columns of some units, all their gates, are neighbours: a task
//! has what it needs for them, and the pass over the gates reads from front to back.
//!
//! ```text
//! row of U or W   i0 i1 i2 … f0 f1 f2 … g0 g1 g2 … o0 o1 o2 …
//! column          i0 … i15 f0 … f15 g0 … g15 o0 … o15 │ i16 … i31 f16 …        with vectors of 16
//! ```
//!
//! Units that fill no vector are padded with zeros.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::descriptor::{Cell, Reset};
use super::sizes::WeightSizes;
use super::weights::DirectionWeights;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{PanelSource, Slab, tile, transpose};
use crate::machine::Isa;
use crate::simd::Simd;
use crate::tensor::TensorView;

/// The rows of U or W of all gates as the columns of a right operand.
#[derive(Clone, Copy)]
pub(crate) struct Interleaved<'a, T> {
    /// `[gates·hidden, depth]`.
    matrix: TensorView<'a, T, 2>,
    gates: usize,
    hidden: usize,
    /// Elements of a vector.
    lanes: usize,
}

impl<'a, T: Element> Interleaved<'a, T> {
    pub(crate) fn new(isa: Isa, matrix: TensorView<'a, T, 2>, gates: usize, hidden: usize) -> Self {
        Self { matrix, gates, hidden, lanes: tile::<T>(isa).lanes }
    }
}

impl<T: Element> PanelSource<T> for Interleaved<'_, T> {
    fn lines(&self) -> usize {
        self.gates * self.hidden.next_multiple_of(self.lanes)
    }

    fn depth(&self) -> usize {
        self.matrix.shape()[1]
    }

    fn direct(&self) -> Option<TensorView<'_, T, 2>> {
        None
    }

    #[inline(always)]
    fn fill<S: Simd<T>>(
        &self,
        simd: S,
        lines: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [T],
    ) {
        debug_assert!(width.is_multiple_of(self.lanes) && lines.start.is_multiple_of(self.lanes));
        for at in (0..width).step_by(self.lanes) {
            let block = (lines.start + at) / self.lanes;
            let (unit, gate) = (block / self.gates * self.lanes, block % self.gates);
            let count = if at < lines.len() { self.lanes.min(self.hidden - unit) } else { 0 };
            let first = gate * self.hidden + unit;
            fill_vector(simd, self.matrix, first..first + count, depth.clone(), &mut panel[at..], width);
        }
    }
}

/// Step `p` of some lines, at most a vector of them, to `panel[p · width ..]`; the rest of the vector is 0.
#[inline(always)]
fn fill_vector<T: Element, S: Simd<T>>(
    simd: S,
    matrix: TensorView<'_, T, 2>,
    lines: Range<usize>,
    depth: Range<usize>,
    panel: &mut [T],
    width: usize,
) {
    let count = lines.len();
    let steps = matrix.transpose();
    if count > 0 && steps.strides()[1] == 1 {
        for (p, step) in depth.enumerate() {
            let from = steps.row(step).map_or(&[][..], |row| &row[lines.clone()]);
            simd.store(simd.load_partial(from), &mut panel[p * width..]);
        }
        return;
    }
    if count < S::LANES {
        for p in 0..depth.len() {
            simd.store(simd.splat(T::ZERO), &mut panel[p * width..]);
        }
    }
    if matrix.strides()[1] == 1 {
        transpose(simd, &matrix, lines, depth, panel, width);
    } else {
        for (p, step) in depth.enumerate() {
            for (to, line) in panel[p * width..].iter_mut().zip(lines.clone()) {
                *to = matrix.get([line, step]).copied().unwrap_or(T::ZERO);
            }
        }
    }
}

/// Where everything about a direction lies in one buffer.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// U packed; empty where it is read as it lies.
    input: Range<usize>,
    /// Added to U x, gates interleaved.
    bias: Range<usize>,
    /// W packed: all gates, or r and z where the reset comes before the product.
    recurrent: Range<usize>,
    /// W of gate n packed, where the reset comes before the product.
    candidate: Range<usize>,
    /// Added to W h of gate n, where the reset comes after the product.
    candidate_bias: Range<usize>,
    /// Three vectors of units.
    peephole: Range<usize>,
    /// The projection, packed.
    projection: Range<usize>,
    pub len: usize,
    /// Units, padded to vectors.
    pub padded: usize,
}

/// Gates of the first product of a step.
pub(crate) fn first_gates(cell: Cell) -> usize {
    if cell == Cell::Gru(Reset::Before) { 2 } else { cell.gates() }
}

impl Parts {
    /// For weights of these sizes, U among them where it is to be packed.
    pub(crate) fn new<T: Element>(
        op: &'static str,
        isa: Isa,
        cell: Cell,
        sizes: WeightSizes,
        input: bool,
    ) -> Result<Self> {
        let parts = Self::lay::<T>(isa, cell, sizes, input);
        parts.ok_or(Error::Alloc { op, bytes: usize::MAX })
    }

    fn lay<T: Element>(isa: Isa, cell: Cell, sizes: WeightSizes, input: bool) -> Option<Self> {
        let WeightSizes { inputs, hidden, state, gates, .. } = sizes;
        let padded = hidden.checked_next_multiple_of(tile::<T>(isa).lanes)?;
        let columns = gates.checked_mul(padded)?;
        let mut len = 0usize;
        let mut part = |elements: usize| {
            let start = len;
            // Each begins on a cache line.
            len = len.checked_add(elements)?.checked_next_multiple_of(16)?;
            Some(start..start + elements)
        };
        let slab = |lines: usize, depth: usize| Slab::<T>::rhs_len(isa, lines, depth);
        let (before, after) = (cell == Cell::Gru(Reset::Before), cell == Cell::Gru(Reset::After));
        let input = part(if input { slab(columns, inputs)? } else { 0 })?;
        let bias = part(columns)?;
        let recurrent = part(slab(first_gates(cell) * padded, state)?)?;
        let candidate = part(if before { slab(padded, state)? } else { 0 })?;
        let candidate_bias = part(if after { padded } else { 0 })?;
        let peephole = part(if sizes.peephole { 3 * padded } else { 0 })?;
        let projection = part(if sizes.projection { slab(state, hidden)? } else { 0 })?;
        Some(Self { input, bias, recurrent, candidate, candidate_bias, peephole, projection, len, padded })
    }

    /// Writes the weights of a direction into `data`, all of it.
    pub(crate) fn fill<T: Element>(
        &self,
        isa: Isa,
        cell: Cell,
        sizes: WeightSizes,
        weights: &DirectionWeights<'_, T>,
        data: &mut [T],
    ) -> Result<()> {
        let WeightSizes { hidden, gates, .. } = sizes;
        let lanes = tile::<T>(isa).lanes;
        let rows =
            |range: Range<usize>| weights.recurrent.slice(0, range.start * hidden..range.end * hidden, 1);
        if !self.input.is_empty() {
            let source = Interleaved::new(isa, weights.input, gates, hidden);
            Slab::pack_rhs(isa, source, &mut data[self.input.clone()]);
        }
        let first = first_gates(cell);
        let source = Interleaved::new(isa, rows(0..first)?, first, hidden);
        Slab::pack_rhs(isa, source, &mut data[self.recurrent.clone()]);
        if first < gates {
            let source = Interleaved::new(isa, rows(first..gates)?, 1, hidden);
            Slab::pack_rhs(isa, source, &mut data[self.candidate.clone()]);
        }
        if let Some(projection) = weights.projection {
            Slab::pack_rhs(isa, projection, &mut data[self.projection.clone()]);
        }
        let value = |view: Option<TensorView<'_, T, 1>>, at: usize| {
            view.and_then(|view| view.get([at]).copied()).unwrap_or(T::ZERO)
        };
        let after = cell == Cell::Gru(Reset::After);
        let bias = &mut data[self.bias.clone()];
        bias.fill(T::ZERO);
        for gate in 0..gates {
            for unit in 0..hidden {
                let row = gate * hidden + unit;
                // Gate n of that GRU keeps its two apart.
                let other = if after && gate == 2 { T::ZERO } else { value(weights.recurrent_bias, row) };
                bias[column(lanes, gates, gate, unit)] = value(weights.bias, row) + other;
            }
        }
        for (unit, to) in data[self.candidate_bias.clone()].iter_mut().enumerate() {
            *to = if unit < hidden { value(weights.recurrent_bias, 2 * hidden + unit) } else { T::ZERO };
        }
        for (at, to) in data[self.peephole.clone()].iter_mut().enumerate() {
            let (gate, unit) = (at / self.padded, at % self.padded);
            *to = if unit < hidden { value(weights.peephole, gate * hidden + unit) } else { T::ZERO };
        }
        Ok(())
    }

    /// The weights of a direction that lie in `data`; U there, or in `input`.
    pub(crate) fn ready<'a, T: Element>(
        &self,
        isa: Isa,
        cell: Cell,
        sizes: WeightSizes,
        data: &'a [T],
        input: Option<TensorView<'a, T, 2>>,
    ) -> Ready<'a, T> {
        let WeightSizes { inputs, hidden, state, gates, .. } = sizes;
        let slab = |part: &Range<usize>, lines, depth| Slab::rhs(isa, lines, depth, &data[part.clone()]);
        let first = first_gates(cell);
        Ready {
            input: match input {
                Some(view) => Ok(Interleaved::new(isa, view, gates, hidden)),
                None => Err(slab(&self.input, gates * self.padded, inputs)),
            },
            bias: &data[self.bias.clone()],
            recurrent: slab(&self.recurrent, first * self.padded, state),
            candidate: slab(&self.candidate, self.padded, state),
            candidate_bias: &data[self.candidate_bias.clone()],
            peephole: &data[self.peephole.clone()],
            projection: slab(&self.projection, state, hidden),
            padded: self.padded,
        }
    }
}

/// Where a unit of a gate stands among interleaved columns.
pub(crate) fn column(lanes: usize, gates: usize, gate: usize, unit: usize) -> usize {
    (unit / lanes * gates + gate) * lanes + unit % lanes
}

/// The weights of a direction, ready to be multiplied by.
#[derive(Clone, Copy)]
pub(crate) struct Ready<'a, T> {
    /// U as it lies, or packed.
    pub input: Result<Interleaved<'a, T>, Slab<'a, T>>,
    pub bias: &'a [T],
    pub recurrent: Slab<'a, T>,
    pub candidate: Slab<'a, T>,
    pub candidate_bias: &'a [T],
    pub peephole: &'a [T],
    pub projection: Slab<'a, T>,
    pub padded: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;

    #[test]
    fn panels_hold_interleaved_columns() {
        for &isa in machine::supported() {
            let (tile, gates, hidden, depth) = (tile::<f32>(isa), 3, 21, 9);
            let values: Vec<f32> = (0..2 * gates * hidden * depth).map(|i| 1.0 + i as f32).collect();
            let rows = (gates * hidden) as isize;
            let views = [
                TensorView::as_strided(&values, [gates * hidden, depth], [depth as isize, 1]).unwrap(),
                TensorView::as_strided(&values, [gates * hidden, depth], [1, rows]).unwrap(),
                TensorView::as_strided(&values, [gates * hidden, depth], [2, 2 * rows]).unwrap(),
            ];
            for view in views {
                let source = Interleaved::new(isa, view, gates, hidden);
                let lines = source.lines();
                let mut data = vec![f32::NAN; Slab::<f32>::rhs_len(isa, lines, depth).unwrap()];
                Slab::pack_rhs(isa, source, &mut data);
                let mut expected = vec![0.0; data.len()];
                for gate in 0..gates {
                    for unit in 0..hidden {
                        let at = column(tile.lanes, gates, gate, unit);
                        let (panel, line) = (at / tile.columns, at % tile.columns);
                        for p in 0..depth {
                            expected[(panel * depth + p) * tile.columns + line] =
                                *view.get([gate * hidden + unit, p]).unwrap();
                        }
                    }
                }
                assert_eq!(data, expected);
            }
        }
    }
}

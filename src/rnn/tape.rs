//! What forward keeps for backward.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::descriptor::{Cell, Reset, Spec};
use super::sizes::Sizes;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::Isa;
use crate::workspace::{self, Aligned};

/// What a call of [`forward_taped`](super::Recurrent::forward_taped) keeps for
/// [`backward`](super::Recurrent::backward).
///
/// Numbers for each valid step of each sequence and direction, `hidden` padded to vectors in the gates:
///
/// | cell | kept | with `recompute` |
/// |---|---|---|
/// | Elman | state; with an activation other than tanh and ReLU, hidden besides | |
/// | LSTM | 4·hidden (gates) + hidden (c) + state (h) | hidden + state |
/// | GRU, reset after | 3·hidden + hidden (W h + b of gate n) + state | state |
/// | GRU, reset before | 3·hidden + state | state |
///
/// The memory is kept, and used again by the next call.
pub struct Tape<T> {
    key: Option<Key>,
    lengths: Vec<usize>,
    parts: Parts,
    /// Direction after direction.
    data: Aligned<T>,
}

/// What a tape is of.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    spec: Spec,
    sizes: Sizes,
    isa: Isa,
}

/// Where everything about a direction lies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    /// h before the first step and after each.
    states: Range<usize>,
    /// The same of c.
    cells: Range<usize>,
    /// Gates, interleaved.
    gates: Range<usize>,
    /// Reset after the product: W h + b of gate n.
    candidates: Range<usize>,
    len: usize,
}

/// A direction of a tape, or some entries of the batch of it.
pub(crate) struct TapeMut<'t, T> {
    pub states: &'t mut [T],
    pub cells: &'t mut [T],
    pub gates: &'t mut [T],
    pub candidates: &'t mut [T],
}

/// A direction of a tape, or some entries of the batch of it.
#[derive(Clone, Copy)]
pub(crate) struct TapeView<'t, T> {
    pub states: &'t [T],
    pub cells: &'t [T],
    pub gates: &'t [T],
    pub candidates: &'t [T],
}

impl Parts {
    fn new(spec: Spec, sizes: &Sizes, rows: usize, padded: usize) -> Option<Self> {
        let weights = sizes.weights;
        let history = rows.checked_add(sizes.batch)?;
        let mut len = 0usize;
        let mut part = |needed: bool, rows: usize, columns: usize| {
            let start = len;
            let elements = if needed { rows.checked_mul(columns)? } else { 0 };
            // Each begins on a cache line.
            len = len.checked_add(elements)?.checked_next_multiple_of(16)?;
            Some(start..start + elements)
        };
        let after = spec.cell == Cell::Gru(Reset::After);
        let gates = keeps_gates(spec);
        Some(Self {
            states: part(true, history, weights.state)?,
            cells: part(spec.cell.is_lstm(), history, weights.hidden)?,
            gates: part(gates, rows, weights.gates.checked_mul(padded)?)?,
            candidates: part(gates && after, rows, weights.hidden)?,
            len,
        })
    }
}

/// True where the gates are on the tape. An Elman cell has none but h, unless its activation needs what enters it.
pub(crate) fn keeps_gates(spec: Spec) -> bool {
    !spec.recompute && (spec.cell.gates() > 1 || spec.functions.is_some())
}

impl<T: Element> Default for Tape<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Element> Tape<T> {
    /// An empty tape, without memory.
    pub fn new() -> Self {
        Self { key: None, lengths: Vec::new(), parts: Parts::default(), data: Aligned::new(0) }
    }

    /// Bytes of memory it holds.
    pub fn bytes(&self) -> usize {
        self.data.capacity() * size_of::<T>()
    }

    pub(crate) fn clear(&mut self) {
        self.key = None;
    }

    /// Makes room for a call over this many rows.
    pub(crate) fn prepare(
        &mut self,
        op: &'static str,
        spec: Spec,
        sizes: &Sizes,
        rows: usize,
        padded: usize,
    ) -> Result<()> {
        let alloc = Error::Alloc { op, bytes: usize::MAX };
        let parts = Parts::new(spec, sizes, rows, padded).ok_or(alloc.clone())?;
        let len = parts.len.checked_mul(sizes.weights.directions).ok_or(alloc)?;
        if self.data.capacity() < len {
            // Not resized in place: what is in it need not be copied.
            self.data = Aligned::new(0);
            self.data = workspace::try_vec(op, len)?;
        }
        self.data.resize(len, T::ZERO);
        if cfg!(debug_assertions) {
            self.data.fill(T::NAN);
        }
        self.parts = parts;
        Ok(())
    }

    /// Says that it holds a whole call.
    pub(crate) fn seal(
        &mut self,
        op: &'static str,
        spec: Spec,
        sizes: &Sizes,
        isa: Isa,
        lengths: Option<&[usize]>,
    ) -> Result<()> {
        workspace::try_copy(op, lengths.unwrap_or(&[]), &mut self.lengths)?;
        self.key = Some(Key { spec, sizes: *sizes, isa });
        Ok(())
    }

    pub(crate) fn check(
        &self,
        op: &'static str,
        spec: Spec,
        sizes: &Sizes,
        isa: Isa,
        lengths: Option<&[usize]>,
    ) -> Result<()> {
        let key = Key { spec, sizes: *sizes, isa };
        if self.key == Some(key) && self.lengths == lengths.unwrap_or(&[]) {
            return Ok(());
        }
        let found = if self.key.is_none() { "empty" } else { "that of another call" };
        Err(Error::argument(op, "tape", found, "that of forward_taped with these options, sizes and lengths"))
    }

    pub(crate) fn directions_mut(&mut self) -> [TapeMut<'_, T>; 2] {
        let parts = &self.parts;
        let (first, second) = self.data.split_at_mut(parts.len);
        [first, second].map(|data| {
            if data.is_empty() {
                return TapeMut { states: &mut [], cells: &mut [], gates: &mut [], candidates: &mut [] };
            }
            let (states, rest) = data.split_at_mut(parts.cells.start);
            let (cells, rest) = rest.split_at_mut(parts.gates.start - parts.cells.start);
            let (gates, candidates) = rest.split_at_mut(parts.candidates.start - parts.gates.start);
            TapeMut {
                states: &mut states[..parts.states.len()],
                cells: &mut cells[..parts.cells.len()],
                gates: &mut gates[..parts.gates.len()],
                candidates: &mut candidates[..parts.candidates.len()],
            }
        })
    }

    pub(crate) fn direction(&self, direction: usize) -> TapeView<'_, T> {
        let data = &self.data[direction * self.parts.len..][..self.parts.len];
        let part = |part: &Range<usize>| &data[part.clone()];
        TapeView {
            states: part(&self.parts.states),
            cells: part(&self.parts.cells),
            gates: part(&self.parts.gates),
            candidates: part(&self.parts.candidates),
        }
    }
}

impl<'t, T: Element> TapeMut<'t, T> {
    /// The parts of the first entries of the batch, `share` of `whole` entries, all of which have all steps.
    pub(crate) fn split(self, share: usize, whole: usize) -> (Self, Self) {
        let ((a, b), (c, d)) = (cut_mut(self.states, share, whole), cut_mut(self.cells, share, whole));
        let ((e, f), (g, h)) = (cut_mut(self.gates, share, whole), cut_mut(self.candidates, share, whole));
        (
            Self { states: a, cells: c, gates: e, candidates: g },
            Self { states: b, cells: d, gates: f, candidates: h },
        )
    }
}

impl<'t, T: Element> TapeView<'t, T> {
    /// As [`TapeMut::split`].
    pub(crate) fn split(self, share: usize, whole: usize) -> (Self, Self) {
        let cut = |data: &'t [T]| data.split_at(first_part(data.len(), share, whole));
        let ((a, b), (c, d)) = (cut(self.states), cut(self.cells));
        let ((e, f), (g, h)) = (cut(self.gates), cut(self.candidates));
        (
            Self { states: a, cells: c, gates: e, candidates: g },
            Self { states: b, cells: d, gates: f, candidates: h },
        )
    }
}

/// The first `share` of `whole` equal parts, and the others.
pub(crate) fn cut_mut<T>(data: &mut [T], share: usize, whole: usize) -> (&mut [T], &mut [T]) {
    data.split_at_mut(first_part(data.len(), share, whole))
}

/// How much the first `share` of `whole` entries have. Those of unlike lengths are not split: they are the whole.
fn first_part(len: usize, share: usize, whole: usize) -> usize {
    if share == whole { len } else { len / whole * share }
}

impl<T> std::fmt::Debug for Tape<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tape").field("of", &self.key).finish_non_exhaustive()
    }
}

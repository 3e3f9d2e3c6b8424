//! The sizes of a call, checked once.
#![forbid(unsafe_code)]

use super::descriptor::{Cell, Recurrent, Spec};
use super::sequence::Sequence;
use super::tape::Tape;
use super::weights::Weights;
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::machine;

/// The sizes of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeightSizes {
    pub directions: usize,
    pub inputs: usize,
    pub hidden: usize,
    /// Elements of h: `hidden`, or what it is projected to.
    pub state: usize,
    pub gates: usize,
    pub peephole: bool,
    pub projection: bool,
}

/// The sizes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub time: usize,
    pub batch: usize,
    pub weights: WeightSizes,
}

impl WeightSizes {
    pub(crate) fn check<T: Element>(op: &'static str, spec: Spec, weights: &Weights<'_, T>) -> Result<Self> {
        spec.check(op)?;
        let (gates, directions) = (spec.cell.gates(), spec.direction.count());
        let ([_, _, inputs], [_, rows, columns]) = (weights.input.shape(), weights.recurrent.shape());
        let hidden = rows / gates;
        let state = weights.projection.map_or(hidden, |projection| projection.shape()[1]);
        if !rows.is_multiple_of(gates) {
            let whole = [directions, hidden * gates, columns];
            return Err(Error::shape(op, "recurrent", &weights.recurrent.shape(), &whole));
        }
        expect(op, "recurrent", &weights.recurrent.shape(), &[directions, rows, state])?;
        expect(op, "input", &weights.input.shape(), &[directions, rows, inputs])?;
        for (arg, bias) in [("bias", weights.bias), ("recurrent_bias", weights.recurrent_bias)] {
            bias.map_or(Ok(()), |bias| expect(op, arg, &bias.shape(), &[directions, rows]))?;
        }
        let lstm = spec.cell.is_lstm();
        if let Some(peephole) = weights.peephole {
            of_lstm(op, "peephole", lstm)?;
            // Three of four gates: no overflow.
            expect(op, "peephole", &peephole.shape(), &[directions, 3 * hidden])?;
        }
        if let Some(projection) = weights.projection {
            of_lstm(op, "projection", lstm)?;
            expect(op, "projection", &projection.shape(), &[directions, state, hidden])?;
            if state == 0 {
                return Err(Error::argument(op, "projection", "to 0 elements", "to at least one"));
            }
        }
        let (peephole, projection) = (weights.peephole.is_some(), weights.projection.is_some());
        Ok(Self { directions, inputs, hidden, state, gates, peephole, projection })
    }
}

fn of_lstm(op: &'static str, arg: &'static str, lstm: bool) -> Result<()> {
    if lstm { Ok(()) } else { Err(Error::argument(op, arg, "given", "none, but with an LSTM")) }
}

/// The shape of y, or the error of a call with these arguments.
pub(crate) fn outputs<T: Element>(
    op: &'static str,
    cell: &impl Recurrent,
    sequence: &Sequence<'_, T>,
    weights: &Weights<'_, T>,
) -> Result<[usize; 3]> {
    Sizes::check(op, cell.spec(), sequence, weights)?.y(op)
}

/// [`outputs`] of a call that is on this tape, or an error where it holds another one.
pub(crate) fn taped_outputs<T: Element>(
    op: &'static str,
    cell: &impl Recurrent,
    sequence: &Sequence<'_, T>,
    weights: &Weights<'_, T>,
    tape: &Tape<T>,
) -> Result<[usize; 3]> {
    let sizes = Sizes::check(op, cell.spec(), sequence, weights)?;
    tape.check(op, cell.spec(), &sizes, machine::isa()?, sequence.lengths)?;
    sizes.y(op)
}

impl Sizes {
    pub(crate) fn check<T: Element>(
        op: &'static str,
        spec: Spec,
        sequence: &Sequence<'_, T>,
        weights: &Weights<'_, T>,
    ) -> Result<Self> {
        Self::check_sequence(op, spec.cell, sequence, WeightSizes::check(op, spec, weights)?)
    }

    pub(crate) fn check_sequence<T: Element>(
        op: &'static str,
        cell: Cell,
        sequence: &Sequence<'_, T>,
        weights: WeightSizes,
    ) -> Result<Self> {
        let WeightSizes { directions, inputs, hidden, state, .. } = weights;
        let [time, batch, _] = sequence.x.shape();
        expect(op, "x", &sequence.x.shape(), &[time, batch, inputs])?;
        if let Some(h) = sequence.hidden {
            expect(op, "hidden", &h.shape(), &[directions, batch, state])?;
        }
        match (sequence.cell, cell.is_lstm()) {
            (Some(c), true) => expect(op, "cell", &c.shape(), &[directions, batch, hidden])?,
            (Some(_), false) => return Err(Error::argument(op, "cell", "given", "none, but with an LSTM")),
            (None, lstm) if lstm && sequence.hidden.is_some() => {
                return Err(Error::argument(op, "cell", "missing", "one beside the hidden state"));
            }
            (None, _) => {}
        }
        if sequence.hidden.is_none() && sequence.cell.is_some() {
            return Err(Error::argument(op, "hidden", "missing", "one beside the cell state"));
        }
        if let Some(lengths) = sequence.lengths {
            expect(op, "lengths", &[lengths.len()], &[batch])?;
            if let Some(&length) = lengths.iter().find(|&&length| length > time) {
                return Err(Error::argument(op, "lengths", length, "at most the steps of x"));
            }
        }
        Ok(Self { time, batch, weights })
    }

    /// `[time, batch, directions · state]`.
    pub(crate) fn y(&self, op: &'static str) -> Result<[usize; 3]> {
        let WeightSizes { directions, state, .. } = self.weights;
        let columns = directions.checked_mul(state);
        let columns =
            columns.ok_or_else(|| Error::Overflow { op, shape: crate::Dims::new(&[directions, state]) })?;
        Ok([self.time, self.batch, columns])
    }

    /// `[directions, batch, state]`.
    pub(crate) fn h(&self) -> [usize; 3] {
        [self.weights.directions, self.batch, self.weights.state]
    }

    /// `[directions, batch, hidden]`.
    pub(crate) fn c(&self) -> [usize; 3] {
        [self.weights.directions, self.batch, self.weights.hidden]
    }

    /// True where every output is empty.
    pub(crate) fn nothing(&self) -> bool {
        self.batch == 0 || self.weights.state == 0
    }
}

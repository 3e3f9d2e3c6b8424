//! The backward call: checks, back-propagation through time, and the gradients for the weights and for x, each a product over all
//! steps.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::descriptor::{Cell, Reset, Spec};
use super::engine::Engine;
use super::forward::{Call, pair, select};
use super::groups::{each_group, each_states, peepholes, replay, run_groups};
use super::ready;
use super::sequence::{OutputGradients, Sequence};
use super::sizes::{Sizes, WeightSizes};
use super::steps::{Order, Steps, accumulate, merge};
use super::tape::{Tape, TapeView, keeps_gates};
use super::unroll::{self, Job, Parts, Unroll};
use super::weights::{GradientsMut, Operand, WeightGradientsMut, Weights};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::gemm::Gemm;
use crate::linear::Dense;
use crate::machine;
use crate::parallel;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{self, Scratch};

#[allow(clippy::too_many_arguments, reason = "those of the public call")]
pub(super) fn into<T: Element>(
    op: &'static str,
    spec: Spec,
    sequence: Sequence<'_, T>,
    weights: Weights<'_, T>,
    tape: &Tape<T>,
    outputs: OutputGradients<'_, T>,
    beta: T,
    gradients: GradientsMut<'_, T>,
) -> Result<()> {
    let isa = machine::isa()?;
    let sizes = Sizes::check(op, spec, &sequence, &weights)?;
    check(op, spec, &sizes, &weights, &outputs, &gradients)?;
    tape.check(op, spec, &sizes, isa, sequence.lengths)?;
    if sizes.nothing() {
        scale_all(gradients, beta);
        return Ok(());
    }
    if sizes.time == 0 {
        return without_steps(outputs, beta, gradients);
    }
    machine::trace(|| {
        let Sizes { time, batch, weights } = sizes;
        let WeightSizes { inputs, hidden, .. } = weights;
        format!("{op} {spec:?} T {time} B {batch} I {inputs} H {hidden} {} {isa}", T::NAME)
    });
    let call = Call { op, spec, isa, sizes, carried: false };
    Backward { call, sequence, weights, outputs, beta }.run(tape, gradients)
}

fn check<T: Element>(
    op: &'static str,
    spec: Spec,
    sizes: &Sizes,
    weights: &Weights<'_, T>,
    outputs: &OutputGradients<'_, T>,
    gradients: &GradientsMut<'_, T>,
) -> Result<()> {
    let none = |arg: &'static str, given: bool, expected: &'static str| {
        if given { Err(Error::argument(op, arg, "given", expected)) } else { Ok(()) }
    };
    const LSTM: &str = "none, but with an LSTM";
    let lstm = spec.cell.is_lstm();
    none("outputs.cell", outputs.cell.is_some() && !lstm, LSTM)?;
    outputs.y.map_or(Ok(()), |y| expect(op, "outputs.y", &y.shape(), &sizes.y(op)?))?;
    outputs.hidden.map_or(Ok(()), |h| expect(op, "outputs.hidden", &h.shape(), &sizes.h()))?;
    outputs.cell.map_or(Ok(()), |c| expect(op, "outputs.cell", &c.shape(), &sizes.c()))?;
    let GradientsMut { x, hidden, cell, weights: to } = gradients;
    none("gradients.cell", cell.is_some() && !lstm, LSTM)?;
    if let Some(x) = x {
        expect(op, "gradients.x", &x.shape(), &[sizes.time, sizes.batch, sizes.weights.inputs])?;
    }
    if let Some(hidden) = hidden {
        expect(op, "gradients.hidden", &hidden.shape(), &sizes.h())?;
    }
    if let Some(cell) = cell {
        expect(op, "gradients.cell", &cell.shape(), &sizes.c())?;
    }
    let [directions, rows, _] = weights.recurrent.shape();
    for (arg, found, expected) in [
        ("gradients.weights.input", &to.input, weights.input.shape()),
        ("gradients.weights.recurrent", &to.recurrent, weights.recurrent.shape()),
    ] {
        if let Some(found) = found {
            expect(op, arg, &found.shape(), &expected)?;
        }
    }
    for (arg, found) in
        [("gradients.weights.bias", &to.bias), ("gradients.weights.recurrent_bias", &to.recurrent_bias)]
    {
        if let Some(found) = found {
            expect(op, arg, &found.shape(), &[directions, rows])?;
        }
    }
    const THERE: &str = "none, as the weights have none";
    none("gradients.weights.peephole", to.peephole.is_some() && weights.peephole.is_none(), THERE)?;
    none("gradients.weights.projection", to.projection.is_some() && weights.projection.is_none(), THERE)?;
    if let (Some(found), Some(of)) = (&to.peephole, weights.peephole) {
        expect(op, "gradients.weights.peephole", &found.shape(), &of.shape())?;
    }
    if let (Some(found), Some(of)) = (&to.projection, weights.projection) {
        expect(op, "gradients.weights.projection", &found.shape(), &of.shape())?;
    }
    Ok(())
}

fn scale<T: Element, const N: usize>(view: Option<TensorViewMut<'_, T, N>>, beta: T) {
    let Some(mut view) = view else { return };
    if beta == T::ZERO {
        view.fill(T::ZERO);
    } else if beta != T::ONE {
        // Whatever the strides are, one element after the other.
        let _ =
            crate::tensor::map_in_place(view, 1, &|run: &mut [T]| run.iter_mut().for_each(|x| *x *= beta));
    }
}

fn scale_all<T: Element>(gradients: GradientsMut<'_, T>, beta: T) {
    let GradientsMut { x, hidden, cell, weights } = gradients;
    let WeightGradientsMut { input, recurrent, bias, recurrent_bias, peephole, projection } = weights;
    [x, hidden, cell, input, recurrent, projection].into_iter().for_each(|view| scale(view, beta));
    [bias, recurrent_bias, peephole].into_iter().for_each(|view| scale(view, beta));
}

/// The first states are the last ones, and nothing depends on the weights.
fn without_steps<T: Element>(
    outputs: OutputGradients<'_, T>,
    beta: T,
    mut gradients: GradientsMut<'_, T>,
) -> Result<()> {
    for (from, to) in [(outputs.hidden, gradients.hidden.take()), (outputs.cell, gradients.cell.take())] {
        let Some(mut to) = to else { continue };
        let Some(from) = from else {
            scale(Some(to), beta);
            continue;
        };
        for direction in 0..from.shape()[0] {
            accumulate(from.select(0, direction)?, beta, to.view_mut().select(0, direction)?);
        }
    }
    scale_all(gradients, beta);
    Ok(())
}

struct Backward<'b, T> {
    call: Call,
    sequence: Sequence<'b, T>,
    weights: Weights<'b, T>,
    outputs: OutputGradients<'b, T>,
    beta: T,
}

/// Where everything about a direction lies in its scratch.
struct Room {
    dz: Range<usize>,
    dstate: Range<usize>,
    between: Range<usize>,
    dh: Range<usize>,
    dc: Range<usize>,
    gates: Range<usize>,
    candidates: Range<usize>,
    rows_of_x: Range<usize>,
    rows_of_h: Range<usize>,
    len: usize,
}

/// The gradients for a direction.
struct DirectionGradients<'g, T> {
    hidden: Option<TensorViewMut<'g, T, 2>>,
    cell: Option<TensorViewMut<'g, T, 2>>,
    input: Option<TensorViewMut<'g, T, 2>>,
    recurrent: Option<TensorViewMut<'g, T, 2>>,
    bias: Option<TensorViewMut<'g, T, 1>>,
    recurrent_bias: Option<TensorViewMut<'g, T, 1>>,
    peephole: Option<TensorViewMut<'g, T, 1>>,
    projection: Option<TensorViewMut<'g, T, 2>>,
}

/// Some rows of the gradient for U or W, and the columns of dZ that they come from, in units.
struct Pair {
    row: usize,
    column: usize,
    gates: usize,
}

impl Pair {
    fn rows(&self, hidden: usize) -> Range<usize> {
        self.row * hidden..(self.row + self.gates) * hidden
    }

    fn columns(&self, hidden: usize) -> Range<usize> {
        self.column * hidden..(self.column + self.gates) * hidden
    }
}

/// Which columns of dZ belong to which rows of U, and of W.
fn pairs(cell: Cell) -> (&'static [Pair], &'static [Pair]) {
    const fn pair(row: usize, column: usize, gates: usize) -> Pair {
        Pair { row, column, gates }
    }
    const ELMAN: &[Pair] = &[pair(0, 0, 1)];
    const LSTM: &[Pair] = &[pair(0, 0, 4)];
    const GRU: &[Pair] = &[pair(0, 0, 3)];
    // After n from x stand r, z and n from h.
    const AFTER_X: &[Pair] = &[pair(0, 1, 2), pair(2, 0, 1)];
    const AFTER_H: &[Pair] = &[pair(0, 1, 3)];
    const BEFORE_H: &[Pair] = &[pair(0, 0, 2), pair(2, 2, 1)];
    match cell {
        Cell::Elman(_) => (ELMAN, ELMAN),
        Cell::Lstm { .. } => (LSTM, LSTM),
        Cell::Gru(Reset::After) => (AFTER_X, AFTER_H),
        Cell::Gru(Reset::Before) => (GRU, BEFORE_H),
    }
}

/// A direction's scratch, from which parts are taken in the order in which they lie.
struct Rest<'r, T> {
    data: &'r mut [T],
    taken: usize,
}

impl<'r, T> Rest<'r, T> {
    fn take(&mut self, range: &Range<usize>) -> &'r mut [T] {
        let (_, data) = std::mem::take(&mut self.data).split_at_mut(range.start - self.taken);
        let (part, data) = data.split_at_mut(range.len());
        (self.data, self.taken) = (data, range.end);
        part
    }
}

impl<T: Element> Backward<'_, T> {
    fn run(&self, tape: &Tape<T>, gradients: GradientsMut<'_, T>) -> Result<()> {
        let Call { op, spec, isa, sizes, .. } = self.call;
        let directions = sizes.weights.directions;
        let order = Order::new(op, sizes.time, self.sequence.lengths)?;
        let GradientsMut { x: mut dx, hidden, cell, weights: to } = gradients;

        // All memory first: where it is lacking, nothing has been written.
        let parts = Parts::new::<T>(op, isa, spec.cell, sizes.weights)?;
        let len = parts.len.checked_mul(directions).ok_or(Error::Alloc { op, bytes: usize::MAX })?;
        let mut packed = workspace::scratch::<T>(op, len)?;
        let again = spec.recompute.then(|| self.call.prepare(&Operand::View(self.weights))).transpose()?;
        let steps = |direction: usize| self.call.steps(&order, spec.direction.reverse(direction));
        let groups = self.call.groups::<T>(&order);
        // x in time order serves one group and direction only.
        let in_order = groups == 1 && order.is_none() && spec.direction == super::Direction::Forward;
        let dx_in_place = in_order && dx.as_ref().is_some_and(|dx| merge(dx.view()).is_some());
        let x_in_place = in_order && merge(self.sequence.x).is_some();
        let rows_of_x = !x_in_place || dx.is_some() && !dx_in_place;
        let padded = parts_padded::<T>(isa, sizes.weights);
        let room = self.room(&steps(0), padded, rows_of_x)?;
        let mut scratch = workspace::scratch::<T>(op, room.len)?;
        let mut other_scratch = workspace::scratch::<T>(op, if directions == 2 { room.len } else { 0 })?;

        for direction in 0..directions {
            let data = &mut packed[direction * parts.len..][..parts.len];
            parts.fill(isa, spec.cell, sizes.weights, &self.weights.one(direction)?, data)?;
        }
        let run = |direction: usize, scratch: &mut Scratch<T>, gradients: DirectionGradients<'_, T>| {
            let data = &packed[direction * parts.len..][..parts.len];
            let unroll = parts.engine(op, isa, &spec, direction, sizes.weights, data);
            let again = again.as_ref().map(|(parts, data)| {
                let input = Some(self.weights.one(direction)?.input);
                let data = &data[direction * parts.len..][..parts.len];
                Ok(parts.ready(isa, spec.cell, sizes.weights, data, input))
            });
            let at = Direction { index: direction, steps: steps(direction), groups, room: &room };
            self.direction(&at, &unroll, again.transpose()?, tape.direction(direction), scratch, gradients)
        };
        let [gradients, other_gradients] = split(hidden, cell, to)?;
        if directions == 1 {
            run(0, &mut scratch, gradients)?;
        } else {
            let one = || run(0, &mut scratch, gradients);
            let two = || run(1, &mut other_scratch, other_gradients);
            if self.call.tasks() > 1 {
                let (one, two) = parallel::join(one, two);
                one.and(two)?;
            } else {
                one().and_then(|()| two())?;
            }
        }
        if let Some(dx) = &mut dx {
            let mut beta = self.beta;
            if order.is_some() {
                scale(Some(dx.view_mut()), beta);
                beta = T::ONE;
            }
            for (direction, scratch) in [&mut scratch, &mut other_scratch].into_iter().enumerate() {
                if direction < directions {
                    self.input(direction, &steps(direction), groups, &room, scratch, beta, dx_in_place, dx)?;
                    beta = T::ONE;
                }
            }
        }
        Ok(())
    }

    /// `rows_of_x`: x is copied, or dx made, row by row as dZ is.
    fn room(&self, steps: &Steps<'_>, padded: usize, rows_of_x: bool) -> Result<Room> {
        let Call { op, spec, sizes, .. } = self.call;
        let WeightSizes { inputs, hidden, state, gates, projection, .. } = sizes.weights;
        let (rows, batch) = (steps.rows(), steps.batch);
        let two = projection || spec.cell == Cell::Gru(Reset::Before);
        let again = spec.recompute && !keeps_gates(spec) && gates > 1;
        let after = spec.cell == Cell::Gru(Reset::After);
        let mut len = 0usize;
        let mut part = |needed: bool, rows: usize, columns: Option<usize>| {
            let start = len;
            let elements = if needed { rows.checked_mul(columns?)? } else { 0 };
            len = len.checked_add(elements)?.checked_next_multiple_of(16)?;
            Some(start..start + elements)
        };
        let mut lay = || {
            let dz = part(true, rows, unroll::pitch::<T>(spec.cell, hidden))?;
            let dstate = part(projection, rows, Some(state))?;
            let between = part(two, rows, Some(hidden))?;
            let dh = part(true, batch, Some(state))?;
            let dc = part(spec.cell.is_lstm(), batch, Some(hidden))?;
            let gates = part(again, rows, gates.checked_mul(padded))?;
            let candidates = part(again && after, rows, Some(hidden))?;
            let rows_of_x = part(rows_of_x, rows, Some(inputs))?;
            let rows_of_h = part(steps.is_ragged(), rows, Some(state))?;
            Some((dz, dstate, between, dh, dc, gates, candidates, rows_of_x, rows_of_h))
        };
        let ranges = lay().ok_or(Error::Alloc { op, bytes: usize::MAX })?;
        let (dz, dstate, between, dh, dc, gates, candidates, rows_of_x, rows_of_h) = ranges;
        Ok(Room { dz, dstate, between, dh, dc, gates, candidates, rows_of_x, rows_of_h, len })
    }

    /// Back-propagation through time over one direction, and the gradients for its states and weights.
    fn direction<'d>(
        &self,
        at: &Direction<'_>,
        unroll: &Unroll<'_, T>,
        again: Option<ready::Ready<'_, T>>,
        mut tape: TapeView<'d, T>,
        scratch: &'d mut Scratch<T>,
        gradients: DirectionGradients<'_, T>,
    ) -> Result<()> {
        let Direction { index, ref steps, groups, room } = *at;
        let Call { op, spec, isa, sizes, .. } = self.call;
        let WeightSizes { state, hidden, .. } = sizes.weights;
        let mut rest = Rest { data: scratch, taken: 0 };
        let (dz, dstate, between) = (rest.take(&room.dz), rest.take(&room.dstate), rest.take(&room.between));
        let (dh, dc) = (rest.take(&room.dh), rest.take(&room.dc));
        let (gates, candidates) = (rest.take(&room.gates), rest.take(&room.candidates));
        let (rows_of_x, rows_of_h) = (rest.take(&room.rows_of_x), rest.take(&room.rows_of_h));
        let x = self.sequence.x;
        if !rows_of_x.is_empty() {
            each_group(steps, groups, &mut |entries, some| {
                let (first, columns) = (steps.len * entries.start, x.shape()[2]);
                let to = &mut rows_of_x[first * columns..];
                let to = TensorViewMut::matrix(to, [some.rows(), columns]);
                some.gather(0..some.len, x.slice(1, entries, 1)?, to)
            })?;
        }
        let (all, inputs) = (steps.rows(), sizes.weights.inputs);
        let x = match merge(x) {
            _ if !rows_of_x.is_empty() => TensorView::from_slice(rows_of_x, [all, inputs])?,
            Some(x) if all > 0 => x,
            _ => TensorView::from_slice(&[], [all, inputs])?,
        };
        if let Some(weights) = again
            && sizes.weights.gates > 1
        {
            let (cell, functions) = (spec.cell, spec.functions(index));
            let engine = Engine { op, isa, cell, sizes: sizes.weights, weights, functions, turn: 0 };
            engine.project(x, TensorViewMut::matrix(gates, [all, engine.columns()]))?;
            replay(&engine, steps, groups, tape, gates, candidates)?;
            (tape.gates, tape.candidates) = (gates, candidates);
        }

        let columns = index * state..(index + 1) * state;
        let dy = self.outputs.y.map(|y| y.slice(2, columns, 1)).transpose()?;
        steps.take(select(self.outputs.hidden, index)?, dh);
        if spec.cell.is_lstm() {
            steps.take(select(self.outputs.cell, index)?, dc);
        }
        let first = gradients.hidden.is_some();
        let job = Job { dy, tape, dz, dstate, between, dh, dc };
        run_groups(unroll, job, *steps, groups, self.call.tasks(), first)?;

        let DirectionGradients { hidden: to_h, cell: to_c, input, recurrent, .. } = gradients;
        let DirectionGradients { bias, recurrent_bias, peephole, projection, .. } = gradients;
        if let Some(mut to) = to_h {
            let dh = TensorView::from_slice(dh, [steps.batch, state])?;
            steps.put(0..steps.batch, dh, self.beta, &mut to);
        }
        if let Some(mut to) = to_c {
            let dc = TensorView::from_slice(dc, [steps.batch, hidden])?;
            steps.put(0..steps.batch, dc, self.beta, &mut to);
        }

        let dz = unroll.gradients(dz, all)?;
        let (from_x, from_h) = pairs(spec.cell);
        if let Some(mut to) = input {
            for pair in from_x {
                self.outer(dz, pair, x, self.beta, to.view_mut())?;
            }
        }
        if let Some(mut to) = recurrent {
            for (number, pair) in from_h.iter().enumerate() {
                if spec.cell == Cell::Gru(Reset::Before) && number == 1 {
                    // Before the product, r ⊙ h is what W of gate n multiplied.
                    let h = TensorView::from_slice(between, [all, hidden])?;
                    self.outer(dz, pair, h, self.beta, to.view_mut())?;
                    continue;
                }
                let mut beta = self.beta;
                each_states(steps, groups, tape, state, rows_of_h, &mut |row, h| {
                    let beta = std::mem::replace(&mut beta, T::ONE);
                    self.outer(dz.slice(0, row..row + h.shape()[0], 1)?, pair, h, beta, to.view_mut())
                })?;
            }
        }
        if bias.is_some() || recurrent_bias.is_some() {
            let [_, columns] = dz.shape();
            let mut sums = workspace::scratch::<T>(op, columns)?;
            Dense::new().backward_bias_into(dz, T::ZERO, TensorViewMut::from_slice(&mut sums, [columns])?)?;
            for (to, pairs) in [(bias, from_x), (recurrent_bias, from_h)] {
                let Some(mut to) = to else { continue };
                for pair in pairs {
                    let to = to.view_mut().slice(0, pair.rows(hidden), 1)?.insert_axis::<2>(0)?;
                    let sums = &sums[pair.columns(hidden)];
                    accumulate(TensorView::from_slice(sums, [1, sums.len()])?, self.beta, to);
                }
            }
        }
        if let Some(to) = peephole {
            peepholes(steps, groups, tape, dz, hidden, self.beta, to)?;
        }
        if let Some(to) = projection {
            let dstate = TensorView::from_slice(dstate, [all, state])?;
            let m = TensorView::from_slice(between, [all, hidden])?;
            Gemm::new().beta(self.beta).run(dstate.transpose(), m, to)?;
        }
        Ok(())
    }

    /// Some rows of a weight's gradient: dZᵀ times what the weight multiplied.
    fn outer(
        &self,
        dz: TensorView<'_, T, 2>,
        pair: &Pair,
        factor: TensorView<'_, T, 2>,
        beta: T,
        to: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let hidden = self.call.sizes.weights.hidden;
        let (dz, to) = (dz.slice(1, pair.columns(hidden), 1)?, to.slice(0, pair.rows(hidden), 1)?);
        Gemm::new().beta(beta).run(dz.transpose(), factor, to)
    }

    /// dX = dZ U + beta · dX over one direction.
    #[allow(clippy::too_many_arguments, reason = "what both directions share, and what they do not")]
    fn input(
        &self,
        direction: usize,
        steps: &Steps<'_>,
        groups: usize,
        room: &Room,
        scratch: &mut Scratch<T>,
        beta: T,
        in_place: bool,
        dx: &mut TensorViewMut<'_, T, 3>,
    ) -> Result<()> {
        let (spec, all) = (self.call.spec, steps.rows());
        let WeightSizes { inputs, hidden, .. } = self.call.sizes.weights;
        let (dz, rest) = scratch.split_at_mut(room.dz.end);
        let dz = unroll::gradients::<T>(spec.cell, hidden, dz, all)?;
        let weights = self.weights.one(direction)?.input;
        let (from_x, _) = pairs(spec.cell);
        let product = |mut to: TensorViewMut<'_, T, 2>, mut beta: T| {
            for pair in from_x {
                let dz = dz.slice(1, pair.columns(hidden), 1)?;
                let weights = weights.slice(0, pair.rows(hidden), 1)?;
                Gemm::new().beta(beta).run(dz, weights, to.view_mut())?;
                beta = T::ONE;
            }
            Ok(())
        };
        if in_place {
            return product(dx.view_mut().reshape([all, inputs])?, beta);
        }
        let rows = &mut rest[room.rows_of_x.start - room.dz.end..][..room.rows_of_x.len()];
        product(TensorViewMut::from_slice(rows, [all, inputs])?, T::ZERO)?;
        each_group(steps, groups, &mut |entries, some| {
            let rows = &rows[steps.len * entries.start * inputs..][..some.rows() * inputs];
            let rows = TensorView::from_slice(rows, [some.rows(), inputs])?;
            some.scatter(0..some.len, rows, beta, dx.view_mut().slice(1, entries, 1)?)
        })
    }
}

/// A direction of a call.
struct Direction<'d> {
    index: usize,
    steps: Steps<'d>,
    groups: usize,
    room: &'d Room,
}

fn parts_padded<T: Element>(isa: crate::machine::Isa, sizes: WeightSizes) -> usize {
    sizes.hidden.next_multiple_of(crate::gemm::tile::<T>(isa).lanes)
}

/// The gradients of both directions; of one, the second has none.
fn split<'g, T: Element>(
    hidden: Option<TensorViewMut<'g, T, 3>>,
    cell: Option<TensorViewMut<'g, T, 3>>,
    to: WeightGradientsMut<'g, T>,
) -> Result<[DirectionGradients<'g, T>; 2]> {
    macro_rules! two {
        ($view:expr) => {{
            let (one, two) = pair($view.map(|view| {
                let at = view.shape()[0].min(1);
                view.split_at(0, at)
            }))?;
            let first = |view: Option<TensorViewMut<'g, T, _>>| match view {
                Some(view) if view.shape()[0] > 0 => Some(view.select(0, 0)).transpose(),
                _ => Ok(None),
            };
            (first(one)?, first(two)?)
        }};
    }
    let ((hidden, h), (cell, c)) = (two!(hidden), two!(cell));
    let ((input, u), (recurrent, w)) = (two!(to.input), two!(to.recurrent));
    let ((bias, b), (recurrent_bias, rb)) = (two!(to.bias), two!(to.recurrent_bias));
    let ((peephole, p), (projection, r)) = (two!(to.peephole), two!(to.projection));
    Ok([
        DirectionGradients { hidden, cell, input, recurrent, bias, recurrent_bias, peephole, projection },
        DirectionGradients {
            hidden: h,
            cell: c,
            input: u,
            recurrent: w,
            bias: b,
            recurrent_bias: rb,
            peephole: p,
            projection: r,
        },
    ])
}

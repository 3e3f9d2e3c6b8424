//! Forward calls: checks, directions, groups.
#![forbid(unsafe_code)]

use super::descriptor::{Direction, Spec};
use super::engine::{Engine, Job};
use super::ready::Parts;
use super::sequence::{Output, OutputMut, Sequence, StateMut};
use super::sizes::{Sizes, WeightSizes};
use super::steps::{Order, Steps, groups};
use super::tape::{Tape, TapeMut};
use super::weights::Operand;
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::workspace::{self, Scratch};

/// Multiplications for which directions and groups are tasks.
const GRAIN: usize = 1 << 20;

fn check<T: Element>(
    op: &'static str,
    spec: Spec,
    isa: Isa,
    sequence: &Sequence<'_, T>,
    weights: &Operand<'_, T>,
) -> Result<Sizes> {
    let weights = match weights {
        Operand::View(weights) => WeightSizes::check(op, spec, weights)?,
        Operand::Packed(packed) => {
            spec.check(op)?;
            packed.check(op, spec, isa)?
        }
    };
    Sizes::check_sequence(op, spec.cell, sequence, weights)
}

pub(super) fn owned<T: Element>(
    op: &'static str,
    spec: Spec,
    sequence: Sequence<'_, T>,
    weights: Operand<'_, T>,
    mut tape: Option<&mut Tape<T>>,
) -> Result<Output<T>> {
    tape.iter_mut().for_each(|tape| tape.clear());
    let isa = machine::isa()?;
    let sizes = check(op, spec, isa, &sequence, &weights)?;
    let (mut y, mut hidden) = (Tensor::zeros(sizes.y(op)?)?, Tensor::zeros(sizes.h())?);
    let mut cell = spec.cell.is_lstm().then(|| Tensor::zeros(sizes.c())).transpose()?;
    let output = OutputMut {
        y: y.view_mut(),
        hidden: Some(hidden.view_mut()),
        cell: cell.as_mut().map(|cell| cell.view_mut()),
    };
    Call { op, spec, isa, sizes, carried: false }.run(sequence, weights, output, tape)?;
    Ok(Output { y, hidden, cell })
}

pub(super) fn into<T: Element>(
    op: &'static str,
    spec: Spec,
    sequence: Sequence<'_, T>,
    weights: Operand<'_, T>,
    output: OutputMut<'_, T>,
    mut tape: Option<&mut Tape<T>>,
) -> Result<()> {
    tape.iter_mut().for_each(|tape| tape.clear());
    let isa = machine::isa()?;
    let sizes = check(op, spec, isa, &sequence, &weights)?;
    expect(op, "output.y", &output.y.shape(), &sizes.y(op)?)?;
    if let Some(hidden) = &output.hidden {
        expect(op, "output.hidden", &hidden.shape(), &sizes.h())?;
    }
    if let Some(cell) = &output.cell {
        if !spec.cell.is_lstm() {
            return Err(Error::argument(op, "output.cell", "given", "none, but with an LSTM"));
        }
        expect(op, "output.cell", &cell.shape(), &sizes.c())?;
    }
    Call { op, spec, isa, sizes, carried: false }.run(sequence, weights, output, tape)
}

pub(super) fn step<T: Element>(
    spec: Spec,
    x: TensorView<'_, T, 2>,
    weights: Operand<'_, T>,
    state: StateMut<'_, T>,
) -> Result<()> {
    let (op, isa) = ("rnn::step", machine::isa()?);
    if spec.direction != Direction::Forward {
        return Err(Error::argument(op, "direction", format!("{:?}", spec.direction), "forward"));
    }
    let StateMut { hidden, cell } = state;
    let hidden = hidden.insert_axis::<3>(0)?;
    let cell = cell.map(|cell| cell.insert_axis::<3>(0)).transpose()?;
    let x = x.insert_axis::<3>(0)?;
    let given = Sequence {
        x,
        hidden: Some(hidden.view()),
        cell: cell.as_ref().map(|cell| cell.view()),
        lengths: None,
    };
    let sizes = check(op, spec, isa, &given, &weights)?;
    if sizes.nothing() {
        return Ok(());
    }
    let call = Call { op, spec, isa, sizes, carried: true };
    call.directions(Sequence::new(x), weights, None, Some(hidden), cell, None)
}

/// A call whose arguments have been checked.
pub(super) struct Call {
    pub op: &'static str,
    pub spec: Spec,
    pub isa: Isa,
    pub sizes: Sizes,
    /// The first states are where the last ones go.
    pub carried: bool,
}

impl Call {
    fn run<T: Element>(
        &self,
        sequence: Sequence<'_, T>,
        weights: Operand<'_, T>,
        output: OutputMut<'_, T>,
        mut tape: Option<&mut Tape<T>>,
    ) -> Result<()> {
        let Self { op, spec, isa, sizes, .. } = self;
        let OutputMut { y, hidden, cell } = output;
        if sizes.time == 0 {
            // Nothing of y, whatever its other sizes are, and the states stay as they are.
            put(sequence.hidden, hidden)?;
            put(sequence.cell, cell)?;
        } else if !sizes.nothing() {
            self.directions(sequence, weights, Some(y), hidden, cell, tape.as_deref_mut())?;
        }
        if let Some(tape) = tape {
            tape.seal(op, *spec, sizes, *isa, sequence.lengths)?;
        }
        Ok(())
    }

    fn directions<T: Element>(
        &self,
        sequence: Sequence<'_, T>,
        weights: Operand<'_, T>,
        mut y: Option<TensorViewMut<'_, T, 3>>,
        hidden: Option<TensorViewMut<'_, T, 3>>,
        cell: Option<TensorViewMut<'_, T, 3>>,
        mut tape: Option<&mut Tape<T>>,
    ) -> Result<()> {
        let Self { op, spec, isa, sizes, .. } = *self;
        let WeightSizes { directions, state, .. } = sizes.weights;
        // All memory first: where it is lacking, nothing has been written.
        let order = Order::new(op, sizes.time, sequence.lengths)?;
        let (parts, scratch) = self.prepare(&weights)?;
        if let Some(tape) = tape.as_deref_mut() {
            tape.prepare(op, spec, &sizes, self.steps(&order, false).rows(), parts.padded)?;
        }
        machine::trace(|| {
            let Sizes { time, batch, weights } = sizes;
            let WeightSizes { inputs, hidden, .. } = weights;
            let groups = self.groups::<T>(&order);
            format!(
                "{op} {:?} T {time} B {batch} I {inputs} H {hidden} {} {isa} groups {groups}",
                spec,
                T::NAME
            )
        });
        if let (Some(y), Some(_)) = (&mut y, &order) {
            y.fill(T::ZERO);
        }
        let turn = match &weights {
            Operand::View(_) => 0,
            Operand::Packed(packed) => packed.turn(sizes.time),
        };
        let run = |direction: usize,
                   y: Option<TensorViewMut<'_, T, 3>>,
                   last_hidden: Option<TensorViewMut<'_, T, 2>>,
                   last_cell: Option<TensorViewMut<'_, T, 2>>,
                   tape: Option<TapeMut<'_, T>>| {
            let weights = match &weights {
                Operand::View(weights) => {
                    let data = &scratch[direction * parts.len..][..parts.len];
                    let input = weights.one(direction)?.input;
                    parts.ready(isa, spec.cell, sizes.weights, data, Some(input))
                }
                Operand::Packed(packed) => {
                    parts.ready(isa, spec.cell, sizes.weights, packed.direction(direction), None)
                }
            };
            let (cell, functions) = (spec.cell, spec.functions(direction));
            let engine = Engine { op, isa, cell, sizes: sizes.weights, weights, functions, turn };
            let job = Job {
                x: sequence.x,
                hidden: select(sequence.hidden, direction)?,
                cell: select(sequence.cell, direction)?,
                y,
                last_hidden,
                last_cell,
                carried: self.carried,
                tape,
            };
            let steps = self.steps(&order, spec.direction.reverse(direction));
            split(&engine, job, steps, self.groups::<T>(&order), self.tasks())
        };
        let taped = tape.is_some();
        let mut none = Tape::new();
        let [tape, other_tape] = tape.unwrap_or(&mut none).directions_mut();
        let (tape, other_tape) = (taped.then_some(tape), taped.then_some(other_tape));
        let (hidden, other_hidden) = two(hidden)?;
        let (cell, other_cell) = two(cell)?;
        if directions == 1 {
            return run(0, y, hidden, cell, tape);
        }
        let (y, other_y) = match y {
            Some(y) => {
                let (y, other) = y.split_at(2, state)?;
                (Some(y), Some(other))
            }
            None => (None, None),
        };
        let one = || run(0, y, hidden, cell, tape);
        let two = || run(1, other_y, other_hidden, other_cell, other_tape);
        if self.tasks() > 1 {
            let (one, two) = parallel::join(one, two);
            return one.and(two);
        }
        one().and_then(|()| two())
    }

    /// How many threads find enough to do in directions and groups.
    pub(super) fn tasks(&self) -> usize {
        let Sizes { time, batch, weights } = self.sizes;
        let WeightSizes { directions, inputs, hidden, state, gates, .. } = weights;
        let per_row = gates.saturating_mul(hidden).saturating_mul(inputs.saturating_add(state));
        let work = time.saturating_mul(batch).saturating_mul(directions).saturating_mul(per_row);
        parallel::threads_for(work, GRAIN)
    }

    pub(super) fn steps<'o>(&self, order: &'o Option<Order>, reverse: bool) -> Steps<'o> {
        match order {
            Some(order) => order.steps(reverse),
            None => Steps::all(self.sizes.batch, self.sizes.time, reverse),
        }
    }

    /// In how many groups the batch runs. Entries of unlike lengths are one.
    pub(super) fn groups<T: Element>(&self, order: &Option<Order>) -> usize {
        let WeightSizes { hidden, state, gates, .. } = self.sizes.weights;
        let bytes = hidden.saturating_mul(gates).saturating_mul(state).saturating_mul(size_of::<T>());
        if order.is_some() { 1 } else { groups(self.sizes.batch, bytes, machine::caches().l2) }
    }

    /// The weights of all directions, those packed before or, in scratch, packed now.
    pub(super) fn prepare<T: Element>(&self, weights: &Operand<'_, T>) -> Result<(Parts, Scratch<T>)> {
        let Self { op, spec, isa, sizes, .. } = *self;
        match weights {
            Operand::Packed(packed) => Ok((packed.parts(), workspace::scratch(op, 0)?)),
            Operand::View(weights) => {
                let directions = sizes.weights.directions;
                let parts = Parts::new::<T>(op, isa, spec.cell, sizes.weights, false)?;
                let len = parts.len.checked_mul(directions).ok_or(Error::Alloc { op, bytes: usize::MAX })?;
                let mut scratch = workspace::scratch(op, len)?;
                for direction in 0..directions {
                    let data = &mut scratch[direction * parts.len..][..parts.len];
                    parts.fill(isa, spec.cell, sizes.weights, &weights.one(direction)?, data)?;
                }
                Ok((parts, scratch))
            }
        }
    }
}

/// First states that are the last ones, too: 0 where there are none.
fn put<T: Element>(first: Option<TensorView<'_, T, 3>>, last: Option<TensorViewMut<'_, T, 3>>) -> Result<()> {
    match (first, last) {
        (Some(first), Some(mut last)) => last.assign(first),
        (None, Some(mut last)) => {
            last.fill(T::ZERO);
            Ok(())
        }
        (_, None) => Ok(()),
    }
}

/// A direction of what may be there.
pub(super) fn select<'a, T: Element>(
    view: Option<TensorView<'a, T, 3>>,
    direction: usize,
) -> Result<Option<TensorView<'a, T, 2>>> {
    view.map(|view| view.select(0, direction)).transpose()
}

/// The parts of both directions; of one, the second is none.
fn two<'a, T: Element>(
    view: Option<TensorViewMut<'a, T, 3>>,
) -> Result<(Option<TensorViewMut<'a, T, 2>>, Option<TensorViewMut<'a, T, 2>>)> {
    let Some(view) = view else { return Ok((None, None)) };
    let directions = view.shape()[0];
    let (one, two) = view.split_at(0, 1)?;
    let two = if directions == 2 { Some(two.select(0, 0)?) } else { None };
    Ok((Some(one.select(0, 0)?), two))
}

/// Runs the groups, as tasks where there are several.
fn split<T: Element>(
    engine: &Engine<'_, T>,
    job: Job<'_, T>,
    steps: Steps<'_>,
    groups: usize,
    tasks: usize,
) -> Result<()> {
    if groups <= 1 {
        return engine.run(job, &steps);
    }
    let (batch, half) = (steps.batch, groups / 2);
    let at = batch * half / groups;
    let (x, high_x) = job.x.split_at(1, at)?;
    let (hidden, high_hidden) = pair(job.hidden.map(|view| view.split_at(0, at)))?;
    let (cell, high_cell) = pair(job.cell.map(|view| view.split_at(0, at)))?;
    let (y, high_y) = pair(job.y.map(|view| view.split_at(1, at)))?;
    let (last_hidden, high_last_hidden) = pair(job.last_hidden.map(|view| view.split_at(0, at)))?;
    let (last_cell, high_last_cell) = pair(job.last_cell.map(|view| view.split_at(0, at)))?;
    let (tape, high_tape) = pair(job.tape.map(|tape| Ok(tape.split(at, batch))))?;
    let carried = job.carried;
    let low = Job { x, hidden, cell, y, last_hidden, last_cell, carried, tape };
    let high = Job {
        x: high_x,
        hidden: high_hidden,
        cell: high_cell,
        y: high_y,
        last_hidden: high_last_hidden,
        last_cell: high_last_cell,
        carried,
        tape: high_tape,
    };
    let some = |batch: usize| Steps::all(batch, steps.len, steps.reverse);
    let one = || split(engine, low, some(at), half, tasks / 2);
    let two = || split(engine, high, some(batch - at), groups - half, tasks - tasks / 2);
    if tasks > 1 {
        let (one, two) = parallel::join(one, two);
        return one.and(two);
    }
    one().and_then(|()| two())
}

/// Both of what may be there.
pub(super) fn pair<V>(both: Option<Result<(V, V)>>) -> Result<(Option<V>, Option<V>)> {
    Ok(match both.transpose()? {
        Some((low, high)) => (Some(low), Some(high)),
        None => (None, None),
    })
}

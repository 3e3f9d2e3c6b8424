//! What backward does group after group: the order of the groups' rows is that of dZ.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::descriptor::{Cell, Reset};
use super::engine::{Engine, StepViews, no_view, no_view_mut, rows_of};
use super::sizes::WeightSizes;
use super::steps::{Steps, accumulate};
use super::tape::TapeView;
use super::unroll::{Job, Unroll};
use crate::element::Element;
use crate::error::Result;
use crate::parallel;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Calls `f` with the entries of each group and with its steps, in order.
pub(super) fn each_group(
    steps: &Steps<'_>,
    groups: usize,
    f: &mut dyn FnMut(Range<usize>, &Steps<'_>) -> Result<()>,
) -> Result<()> {
    fn halve(
        steps: &Steps<'_>,
        entries: Range<usize>,
        groups: usize,
        f: &mut dyn FnMut(Range<usize>, &Steps<'_>) -> Result<()>,
    ) -> Result<()> {
        if groups <= 1 {
            let some = Steps::all(entries.len(), steps.len, steps.reverse);
            return if steps.is_ragged() { f(entries, steps) } else { f(entries, &some) };
        }
        let half = groups / 2;
        let at = entries.start + entries.len() * half / groups;
        halve(steps, entries.start..at, half, f)?;
        halve(steps, at..entries.end, groups - half, f)
    }
    halve(steps, 0..steps.batch, groups, f)
}

/// Runs the groups, as tasks where there are several.
pub(super) fn run_groups<T: Element>(
    unroll: &Unroll<'_, T>,
    job: Job<'_, T>,
    steps: Steps<'_>,
    groups: usize,
    tasks: usize,
    first: bool,
) -> Result<()> {
    if groups <= 1 {
        return unroll.run(job, &steps, first);
    }
    let (batch, half) = (steps.batch, groups / 2);
    let at = batch * half / groups;
    let (low, high) = job.split(at, batch)?;
    let some = |batch: usize| Steps::all(batch, steps.len, steps.reverse);
    let one = || run_groups(unroll, low, some(at), half, tasks / 2, first);
    let two = || run_groups(unroll, high, some(batch - at), groups - half, tasks - tasks / 2, first);
    if tasks > 1 {
        let (one, two) = parallel::join(one, two);
        return one.and(two);
    }
    one().and_then(|()| two())
}

/// Calls `f` with the first row of each group in dZ and with the states before its steps, a row for each of dZ: where the lengths
/// differ they are copied to `copied`, elsewhere they lie on the tape.
pub(super) fn each_states<T: Element>(
    steps: &Steps<'_>,
    groups: usize,
    mut tape: TapeView<'_, T>,
    state: usize,
    copied: &mut [T],
    f: &mut dyn FnMut(usize, TensorView<'_, T, 2>) -> Result<()>,
) -> Result<()> {
    if steps.is_ragged() {
        for step in 0..steps.len {
            let at = steps.range(step..step + 1);
            let from = &tape.states[steps.before(step) * state..][..at.len() * state];
            copied[at.start * state..at.end * state].copy_from_slice(from);
        }
        return f(0, rows_of(copied, 0, steps.rows(), state)?);
    }
    let (mut left, mut row) = (steps.batch, 0);
    each_group(steps, groups, &mut |entries, some| {
        let (here, others) = tape.split(entries.len(), left);
        f(row, rows_of(here.states, 0, some.rows(), state)?)?;
        (tape, left, row) = (others, left - entries.len(), row + some.rows());
        Ok(())
    })
}

/// The gradients for the peepholes: Σ over rows of dz_i ⊙ c before, dz_f ⊙ c before, dz_o ⊙ c.
pub(super) fn peepholes<T: Element>(
    steps: &Steps<'_>,
    groups: usize,
    mut tape: TapeView<'_, T>,
    dz: TensorView<'_, T, 2>,
    hidden: usize,
    beta: T,
    mut to: TensorViewMut<'_, T, 1>,
) -> Result<()> {
    let mut sums = workspace::scratch::<T>("rnn::backward", 3 * hidden)?;
    sums.fill(T::ZERO);
    let (mut left, mut row) = (steps.batch, 0);
    each_group(steps, groups, &mut |entries, some| {
        let (here, others) = tape.split(entries.len(), left);
        for step in 0..some.len {
            let (before, after) = (some.before(step), some.before(step + 1));
            for i in 0..some.count(step) {
                let dz = dz.row(row).unwrap_or(&[]);
                row += 1;
                for (k, gate, c) in [(0, 0, before), (1, 1, before), (2, 3, after)] {
                    let c = &here.cells[(c + i) * hidden..][..hidden];
                    let dz = &dz[gate * hidden..][..hidden];
                    let sums = &mut sums[k * hidden..][..hidden];
                    sums.iter_mut().zip(dz).zip(c).for_each(|((sum, &dz), &c)| *sum += dz * c);
                }
            }
        }
        (tape, left) = (others, left - entries.len());
        Ok(())
    })?;
    let to = to.view_mut().insert_axis::<2>(0)?;
    accumulate(TensorView::from_slice(&sums, [1, 3 * hidden])?, beta, to);
    Ok(())
}

/// The gates again, from the states of the tape.
pub(super) fn replay<T: Element>(
    engine: &Engine<'_, T>,
    steps: &Steps<'_>,
    groups: usize,
    mut tape: TapeView<'_, T>,
    mut gates: &mut [T],
    mut candidates: &mut [T],
) -> Result<()> {
    let WeightSizes { hidden, state, .. } = engine.sizes;
    let (columns, batch, lstm) = (engine.columns(), steps.batch, engine.cell.is_lstm());
    let after = engine.cell == Cell::Gru(Reset::After);
    let mut h = engine.scratch(batch, state)?;
    let mut c = engine.scratch(if lstm { batch } else { 0 }, hidden)?;
    let mut between = engine.scratch(if engine.two_products() { batch } else { 0 }, hidden)?;
    let mut left = batch;
    each_group(steps, groups, &mut |entries, some| {
        let (here, others) = tape.split(entries.len(), left);
        let (z, rest) = std::mem::take(&mut gates).split_at_mut(some.rows() * columns);
        let kept = if after { some.rows() * hidden } else { 0 };
        let (q, other_q) = std::mem::take(&mut candidates).split_at_mut(kept);
        for step in 0..some.len {
            let (at, count) = (some.range(step..step + 1), some.count(step));
            let mut views = StepViews {
                z: TensorViewMut::matrix(&mut z[at.start * columns..], [count, columns]),
                h_prev: rows_of(here.states, some.before(step), count, state)?,
                h: TensorViewMut::matrix(&mut h, [count, state]),
                c_prev: if lstm { rows_of(here.cells, some.before(step), count, hidden)? } else { no_view() },
                c: if lstm { TensorViewMut::matrix(&mut c, [count, hidden]) } else { no_view_mut() },
                candidate: match after {
                    true => TensorViewMut::matrix(&mut q[at.start * hidden..], [count, hidden]),
                    false => no_view_mut(),
                },
                between: engine.between(&mut between, count),
                y: no_view_mut(),
            };
            engine.step(&mut views, None, true, step)?;
        }
        (tape, gates, candidates, left) = (others, rest, other_q, left - entries.len());
        Ok(())
    })
}

//! Which entries of the batch take part in which step, and where their rows lie.
//!
//! Rows of a sequence are kept step after step. Entries of unlike lengths are sorted, the longest first: then those
//! that still take part are the first rows of each step, and nothing is computed for the others.
//!
//! ```text
//! lengths 3 1 2          entries sorted: 0 2 1
//!   step 0   rows of entries 0 2 1
//!   step 1   rows of entries 0 2
//!   step 2   row  of entry   0
//! ```
//!
//! In reverse, step 0 is the last valid step of each entry.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::ops::Range;

use crate::element::Element;
use crate::error::Result;
use crate::parallel;
use crate::simd::CACHE_LINE;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{self, Scratch};

/// The steps of a batch or of some of its entries.
#[derive(Clone, Copy)]
pub(crate) struct Steps<'a> {
    /// Entries.
    pub batch: usize,
    /// Steps of the longest.
    pub len: usize,
    pub reverse: bool,
    ragged: Option<Ragged<'a>>,
}

#[derive(Clone, Copy)]
struct Ragged<'a> {
    /// Entries, the longest first, and their lengths.
    order: &'a [usize],
    lengths: &'a [usize],
    /// The first row of each step, and the number of rows.
    starts: &'a [usize],
}

/// Memory for the order of entries of unlike lengths.
pub(crate) struct Order {
    indices: Scratch<usize>,
    batch: usize,
    len: usize,
}

impl Order {
    /// None where all entries have all steps. No length exceeds `time`.
    pub(crate) fn new(op: &'static str, time: usize, lengths: Option<&[usize]>) -> Result<Option<Self>> {
        let Some(lengths) = lengths.filter(|lengths| lengths.iter().any(|&length| length < time)) else {
            return Ok(None);
        };
        let (batch, len) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        // All three are bounded by memory that exists; a sum that overflows asks for more than can be had.
        let total = (2 * batch).saturating_add(len).saturating_add(1);
        let mut indices = workspace::scratch::<usize>(op, total)?;
        let (order, rest) = indices.split_at_mut(batch);
        let (sorted, starts) = rest.split_at_mut(batch);
        order.iter_mut().enumerate().for_each(|(at, to)| *to = at);
        order.sort_unstable_by_key(|&entry| (Reverse(lengths[entry]), entry));
        sorted.iter_mut().zip(&*order).for_each(|(to, &entry)| *to = lengths[entry]);
        let (mut count, mut row) = (batch, 0usize);
        for (step, start) in starts.iter_mut().enumerate() {
            *start = row;
            while count > 0 && sorted[count - 1] <= step {
                count -= 1;
            }
            row = row.saturating_add(count);
        }
        Ok(Some(Self { indices, batch, len }))
    }

    pub(crate) fn steps(&self, reverse: bool) -> Steps<'_> {
        let (order, rest) = self.indices.split_at(self.batch);
        let (lengths, starts) = rest.split_at(self.batch);
        Steps { batch: self.batch, len: self.len, reverse, ragged: Some(Ragged { order, lengths, starts }) }
    }
}

impl<'a> Steps<'a> {
    /// All entries have all steps.
    pub(crate) fn all(batch: usize, len: usize, reverse: bool) -> Self {
        Self { batch, len, reverse, ragged: None }
    }

    pub(crate) fn is_ragged(&self) -> bool {
        self.ragged.is_some()
    }

    /// The first row of a step; of the one behind the last, the number of rows.
    pub(crate) fn start(&self, step: usize) -> usize {
        self.ragged.map_or(step * self.batch, |ragged| ragged.starts[step])
    }

    /// How many entries take part in a step; none in those behind the last.
    pub(crate) fn count(&self, step: usize) -> usize {
        if step >= self.len { 0 } else { self.start(step + 1) - self.start(step) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.start(self.len)
    }

    /// The rows of some steps.
    pub(crate) fn range(&self, steps: Range<usize>) -> Range<usize> {
        self.start(steps.start)..self.start(steps.end)
    }

    /// In a history of states, which begins with a row of every entry before the first step: the first row of the
    /// states before a step.
    pub(crate) fn before(&self, step: usize) -> usize {
        step.checked_sub(1).map_or(0, |last| self.batch + self.start(last))
    }

    /// The entry of the batch that a row of a step belongs to.
    fn entry(&self, row: usize) -> usize {
        self.ragged.map_or(row, |ragged| ragged.order[row])
    }

    /// Where in time a step of a row lies.
    pub(crate) fn time(&self, step: usize, row: usize) -> usize {
        let length = self.ragged.map_or(self.len, |ragged| ragged.lengths[row]);
        if self.reverse { length - 1 - step } else { step }
    }

    /// Calls `f` with rows of some steps (the first, of those of all of them, and how many) and where they lie in a sequence
    /// `[time, batch, …]`: all of a step at once, or one by one where the lengths differ.
    fn places(
        &self,
        steps: Range<usize>,
        mut f: impl FnMut(usize, usize, Place) -> Result<()>,
    ) -> Result<()> {
        let first = self.start(steps.start);
        steps.into_iter().try_for_each(|step| {
            let (start, count) = (self.start(step) - first, self.count(step));
            if !self.is_ragged() {
                let time = self.time(step, 0);
                return if count == 0 {
                    Ok(())
                } else {
                    f(start, count, Place { time, entries: 0..self.batch })
                };
            }
            (0..count).try_for_each(|row| {
                let entry = self.entry(row);
                f(start + row, 1, Place { time: self.time(step, row), entries: entry..entry + 1 })
            })
        })
    }

    /// Copies the rows of some steps from a sequence.
    pub(crate) fn gather<T: Element>(
        &self,
        steps: Range<usize>,
        sequence: TensorView<'_, T, 3>,
        rows: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let tasks = copy_tasks(rows.shape());
        in_columns(rows, 1, 0, tasks, &|mut rows, columns| {
            let sequence = sequence.slice(2, columns.clone(), 1)?;
            self.places(steps.clone(), |row, count, place| {
                rows.tile_mut([row, 0], [count, columns.len()]).copy_from(place.of(sequence)?);
                Ok(())
            })
        })
    }

    /// sequence = rows + beta · sequence for the rows of some steps.
    pub(crate) fn scatter<T: Element>(
        &self,
        steps: Range<usize>,
        rows: TensorView<'_, T, 2>,
        beta: T,
        sequence: TensorViewMut<'_, T, 3>,
    ) -> Result<()> {
        let tasks = copy_tasks(rows.shape());
        in_columns(sequence, 2, 0, tasks, &|mut sequence, columns| {
            self.places(steps.clone(), |row, count, place| {
                let Place { time, entries } = place;
                let to = sequence.view_mut().select::<2>(0, time)?.slice(0, entries, 1)?;
                accumulate(rows.tile([row, columns.start], [count, columns.len()]), beta, to);
                Ok(())
            })
        })
    }

    /// rows += sequence for the rows of a step.
    pub(crate) fn add<T: Element>(
        &self,
        step: usize,
        sequence: TensorView<'_, T, 3>,
        rows: &mut TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let columns = rows.shape()[1];
        self.places(step..step + 1, |row, count, place| {
            accumulate(place.of(sequence)?, T::ONE, rows.tile_mut([row, 0], [count, columns]));
            Ok(())
        })
    }

    /// Copies states of some rows, in the order of rows, to those of the entries of the batch.
    pub(crate) fn put<T: Element>(
        &self,
        rows: Range<usize>,
        states: TensorView<'_, T, 2>,
        beta: T,
        to: &mut TensorViewMut<'_, T, 2>,
    ) {
        let columns = states.shape()[1];
        if !self.is_ragged() {
            let shape = [rows.len(), columns];
            accumulate(states.tile([rows.start, 0], shape), beta, to.tile_mut([rows.start, 0], shape));
            return;
        }
        for row in rows {
            let to = to.tile_mut([self.entry(row), 0], [1, columns]);
            accumulate(states.tile([row, 0], [1, columns]), beta, to);
        }
    }

    /// The states of the entries of the batch in the order of rows; 0 where there are none.
    pub(crate) fn take<T: Element>(&self, states: Option<TensorView<'_, T, 2>>, rows: &mut [T]) {
        let Some(states) = states else { return rows.fill(T::ZERO) };
        let columns = states.shape()[1];
        let mut to = TensorViewMut::matrix(rows, [self.batch, columns]);
        if !self.is_ragged() {
            return to.copy_from(states);
        }
        for row in 0..self.batch {
            to.tile_mut([row, 0], [1, columns]).copy_from(states.tile([self.entry(row), 0], [1, columns]));
        }
    }
}

/// Into how many tasks a copy is cut.
fn copy_tasks(shape: [usize; 2]) -> usize {
    /// Elements that take about ten microseconds.
    const GRAIN: usize = 1 << 15;
    parallel::threads_for(shape[0].saturating_mul(shape[1]), GRAIN)
}

/// Calls `f` with columns of a view, whose last axis is `axis`, and with which these are, about `tasks` times, possibly at the same time.
fn in_columns<T: Element, const N: usize>(
    view: TensorViewMut<'_, T, N>,
    axis: usize,
    first: usize,
    tasks: usize,
    f: &(impl Fn(TensorViewMut<'_, T, N>, Range<usize>) -> Result<()> + Sync),
) -> Result<()> {
    let (columns, unit) = (view.shape()[axis], CACHE_LINE / size_of::<T>());
    if tasks <= 1 || columns <= unit {
        return f(view, first..first + columns);
    }
    let mut at = [0; N];
    at[axis] = first;
    parallel::halves(view, at, (axis, unit), tasks, &|view, at, tasks| {
        in_columns(view, axis, at[axis], tasks, f)
    })
}

/// Some entries at one time.
struct Place {
    time: usize,
    entries: Range<usize>,
}

impl Place {
    fn of<'a, T: Element>(&self, sequence: TensorView<'a, T, 3>) -> Result<TensorView<'a, T, 2>> {
        sequence.select::<2>(0, self.time)?.slice(0, self.entries.clone(), 1)
    }
}

/// to = from + beta · to; what `to` held is not read where beta is 0.
pub(crate) fn accumulate<T: Element>(from: TensorView<'_, T, 2>, beta: T, mut to: TensorViewMut<'_, T, 2>) {
    if beta == T::ZERO {
        return to.copy_from(from);
    }
    let [rows, columns] = from.shape();
    for row in 0..rows {
        if let (Some(from), Some(to)) = (from.row(row), to.row_mut(row)) {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = from + beta * *to);
            continue;
        }
        for column in 0..columns {
            let from = from.get([row, column]).copied().unwrap_or(T::NAN);
            if let Some(to) = to.get_mut([row, column]) {
                *to = from + beta * *to;
            }
        }
    }
}

/// Time and batch as one axis of rows, where the strides allow.
pub(crate) fn merge<'a, T>(sequence: TensorView<'a, T, 3>) -> Option<TensorView<'a, T, 2>> {
    let [time, batch, columns] = sequence.shape();
    if sequence.is_empty() { None } else { sequence.viewed_as([time * batch, columns]) }
}

/// In how many groups the entries of a batch run one after the other or at the same time: a function of sizes and of
/// the machine, never of the number of threads.
///
/// Where the recurrent weights stay in L2, rows in several groups cost no more than all at once, and groups need not wait
/// for each other; otherwise one group reads the weights once for all rows.
pub(crate) fn groups(batch: usize, recurrent_bytes: usize, l2: usize) -> usize {
    /// Rows enough for tiles that are worth it.
    const ROWS: usize = 16;
    if recurrent_bytes > l2 / 2 { 1 } else { (batch / ROWS).clamp(1, 8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_unlike_lengths() {
        let lengths = [2, 0, 3, 2];
        let order = Order::new("test", 4, Some(&lengths)).unwrap().unwrap();
        let steps = order.steps(false);
        assert_eq!([0, 1, 2, 3].map(|step| steps.count(step)), [3, 3, 1, 0]);
        assert_eq!([0, 1, 2, 3].map(|row| steps.entry(row)), [2, 0, 3, 1]);
        assert_eq!((steps.len, steps.rows(), steps.before(0), steps.before(2)), (3, 7, 0, 4 + 3));
        assert_eq!([0, 1, 2].map(|row| order.steps(true).time(1, row)), [1, 0, 0]);
        assert!(Order::new("test", 2, Some(&[2, 2])).unwrap().is_none());
    }

    #[test]
    fn groups_are_for_weights_in_l2() {
        let l2 = 1 << 20;
        assert_eq!(groups(64, l2, l2), 1);
        assert_eq!(groups(64, l2 / 2, l2), 4);
        assert_eq!(groups(15, l2 / 2, l2), 1);
        assert_eq!(groups(1000, 0, l2), 8);
    }
}

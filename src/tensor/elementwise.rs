//! Walking views of one shape together, in runs of neighbouring elements.
//!
//! Axes are put in the order of the output's memory and merged where all operands allow, so that a
//! contiguous tensor of any rank, and two tensors permuted alike, are one run. A kernel sees only slices:
//! where an operand's innermost stride is not 1, its elements pass through a small buffer.

use std::ops::Range;

use super::{TensorView, TensorViewMut, sort_few};
use crate::element::Element;
use crate::error::Result;
use crate::parallel;

/// Elements of an operand that pass through a buffer at a time: two of them stay well inside L1.
const STAGE: usize = 256;

/// Fewest elements a task is worth: a few microseconds of the cheapest kernel.
const GRAIN: usize = 1 << 15;

/// Calls `f` with each run: the operands' offsets of its first element, its length and the operands'
/// steps. The first operand decides the order.
fn for_each_run<const K: usize, const N: usize>(
    shape: [usize; N],
    strides: [[isize; N]; K],
    mut f: impl FnMut([isize; K], usize, [isize; K]),
) {
    if shape.contains(&0) {
        return;
    }
    let mut base = [0isize; K];
    let mut axes = [(0usize, [0isize; K]); N];
    for (axis, entry) in axes.iter_mut().enumerate() {
        *entry = (shape[axis], std::array::from_fn(|k| strides[k][axis]));
        let (n, steps) = entry;
        if steps[0] < 0 {
            for (start, step) in base.iter_mut().zip(steps.iter_mut()) {
                *start += (*n as isize - 1) * *step;
                *step = step.checked_neg().unwrap_or(0);
            }
        }
    }
    sort_few(&mut axes, |&(n, steps)| std::cmp::Reverse(if n > 1 { steps[0] } else { isize::MAX }));
    // Merged axes, outermost first; `rank` of them are in use.
    let mut merged = [(1usize, [0isize; K]); N];
    let mut rank = 0;
    for (n, steps) in axes {
        if n == 1 {
            continue;
        }
        if rank > 0 {
            let (outer, outer_steps) = &mut merged[rank - 1];
            if (0..K).all(|k| steps[k].checked_mul(n as isize) == Some(outer_steps[k])) {
                *outer *= n;
                *outer_steps = steps;
                continue;
            }
        }
        merged[rank] = (n, steps);
        rank += 1;
    }
    let Some(outer) = rank.checked_sub(1) else { return f(base, 1, [1; K]) };
    let (run, run_steps) = merged[outer];
    let mut index = [0usize; N];
    loop {
        f(base, run, run_steps);
        let mut axis = outer;
        loop {
            let Some(next) = axis.checked_sub(1) else { return };
            axis = next;
            let (n, steps) = merged[axis];
            index[axis] += 1;
            let back = if index[axis] < n { 0 } else { n as isize };
            for k in 0..K {
                base[k] += steps[k] * (1 - back);
            }
            if back == 0 {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// Sets every element.
pub(super) fn fill<T: Copy, const N: usize>(mut dst: TensorViewMut<'_, T, N>, value: T) {
    let ptr = dst.as_mut_ptr();
    for_each_run(dst.shape(), [dst.strides()], |[at], n, [step]| {
        if step == 1 {
            // SAFETY: runs lead only to elements of the view, which is borrowed exclusively; these are neighbours.
            return unsafe { std::slice::from_raw_parts_mut(ptr.offset(at), n) }.fill(value);
        }
        for i in 0..n as isize {
            // SAFETY: as above.
            unsafe { *ptr.offset(at + i * step) = value };
        }
    });
}

/// Side of the squares in which a transposed copy goes: as many cache lines of both stay in L1.
const SQUARE: usize = 16;

/// Copies `src` to `dst`, which have one shape.
pub(super) fn copy<T: Copy, const N: usize>(src: TensorView<'_, T, N>, mut dst: TensorViewMut<'_, T, N>) {
    assert_eq!(src.shape(), dst.shape(), "the caller compares shapes");
    let (from, to) = (src.as_ptr(), dst.as_mut_ptr());
    // Where each has neighbours along another axis, one of the two would be walked in strides.
    let neighbours =
        |strides: [isize; N]| (0..N).find(|&axis| strides[axis] == 1 && src.shape()[axis] >= SQUARE);
    if let (Some(row), Some(column)) = (neighbours(src.strides()), neighbours(dst.strides()))
        && row != column
    {
        let (mut rest, size) = (src.shape(), [src.shape()[row], src.shape()[column]]);
        (rest[row], rest[column]) = (1, 1);
        let (to_row, from_column) = (dst.strides()[row], src.strides()[column]);
        for_each_run(rest, [dst.strides(), src.strides()], |[to_at, from_at], n, [to_step, from_step]| {
            for i in 0..n as isize {
                for (r, c) in squares(size) {
                    for x in r.clone() {
                        for y in c.clone() {
                            let (x, y) = (x as isize, y as isize);
                            // SAFETY: both indices lie inside their axes, the others too.
                            unsafe {
                                *to.offset(to_at + i * to_step + x * to_row + y) =
                                    *from.offset(from_at + i * from_step + x + y * from_column);
                            }
                        }
                    }
                }
            }
        });
        return;
    }
    for_each_run(dst.shape(), [dst.strides(), src.strides()], |[to_at, from_at], n, [to_step, from_step]| {
        // SAFETY: runs lead only to elements of the two views, which cannot overlap.
        unsafe {
            if to_step == 1 && from_step == 1 {
                std::ptr::copy_nonoverlapping(from.offset(from_at), to.offset(to_at), n);
            } else {
                for i in 0..n as isize {
                    *to.offset(to_at + i * to_step) = *from.offset(from_at + i * from_step);
                }
            }
        }
    });
}

/// Squares that make up a matrix of this size.
fn squares([rows, columns]: [usize; 2]) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let cut = |size: usize| (0..size).step_by(SQUARE).map(move |at| at..size.min(at + SQUARE));
    cut(rows).flat_map(move |row| cut(columns).map(move |column| (row.clone(), column)))
}

/// `kernel` over runs of the sources and `dst`, all of one shape, in parallel where there is enough work.
///
/// The kernel gets slices of one length, may read what was in `dst`, and must treat each element by itself:
/// then the result has the same bits however the runs fall. `cost` says how much dearer than a copy one
/// element is.
pub(crate) fn map<T: Element, const K: usize, const N: usize>(
    srcs: [TensorView<'_, T, N>; K],
    dst: TensorViewMut<'_, T, N>,
    cost: usize,
    kernel: &(impl Fn([&[T]; K], &mut [T]) + Sync),
) -> Result<()> {
    assert!(srcs.iter().all(|src| src.shape() == dst.shape()), "the caller compares shapes");
    let tasks = parallel::tasks(dst.len().saturating_mul(cost), GRAIN);
    split(srcs, dst, tasks, kernel)
}

/// `kernel` over runs of `dst`, as [`map`].
pub(crate) fn map_in_place<T: Element, const N: usize>(
    dst: TensorViewMut<'_, T, N>,
    cost: usize,
    kernel: &(impl Fn(&mut [T]) + Sync),
) -> Result<()> {
    map([], dst, cost, &|[], run: &mut [T]| kernel(run))
}

fn split<T: Element, const K: usize, const N: usize>(
    srcs: [TensorView<'_, T, N>; K],
    dst: TensorViewMut<'_, T, N>,
    tasks: usize,
    kernel: &(impl Fn([&[T]; K], &mut [T]) + Sync),
) -> Result<()> {
    let (shape, strides) = (dst.shape(), dst.strides());
    let widest = (0..N).filter(|&axis| shape[axis] > 1).max_by_key(|&axis| strides[axis].unsigned_abs());
    let Some(axis) = widest.filter(|_| tasks > 1) else {
        serial(srcs, dst, kernel);
        return Ok(());
    };
    let at = shape[axis] / 2;
    let (low, high) = dst.split_at(axis, at)?;
    let (mut low_srcs, mut high_srcs) = (srcs, srcs);
    for k in 0..K {
        (low_srcs[k], high_srcs[k]) = srcs[k].split_at(axis, at)?;
    }
    let half = tasks / 2;
    let (first, second) = parallel::join(
        || split(low_srcs, low, half, kernel),
        || split(high_srcs, high, tasks - half, kernel),
    );
    first.and(second)
}

fn serial<T: Element, const K: usize, const N: usize>(
    srcs: [TensorView<'_, T, N>; K],
    mut dst: TensorViewMut<'_, T, N>,
    kernel: &impl Fn([&[T]; K], &mut [T]),
) {
    let (shape, to) = (dst.shape(), dst.as_mut_ptr());
    // The walk takes one array of operands: the output, then the sources (at most two so far).
    const OPERANDS: usize = 4;
    const { assert!(K < OPERANDS) };
    let mut strides = [dst.strides(); OPERANDS];
    for k in 0..K {
        strides[1 + k] = srcs[k].strides();
    }
    for_each_run(shape, strides, |at, n, step| {
        if step[..=K].iter().all(|&step| step == 1) {
            // SAFETY: runs lead only to elements of the views; with a step of 1 they are slices. `dst` is
            // exclusive, so it overlaps no source.
            let (sources, run) = unsafe {
                (
                    std::array::from_fn(|k| {
                        std::slice::from_raw_parts(srcs[k].as_ptr().offset(at[1 + k]), n)
                    }),
                    std::slice::from_raw_parts_mut(to.offset(at[0]), n),
                )
            };
            return kernel(sources, run);
        }
        let mut staged = [[T::ZERO; STAGE]; K];
        let mut staged_dst = [T::ZERO; STAGE];
        for first in (0..n).step_by(STAGE) {
            let count = STAGE.min(n - first);
            let element = |k: usize, i: usize| at[k] + (first + i) as isize * step[k];
            for i in 0..count {
                // SAFETY: as above, element by element.
                unsafe {
                    for k in 0..K {
                        staged[k][i] = *srcs[k].as_ptr().offset(element(1 + k, i));
                    }
                    staged_dst[i] = *to.offset(element(0, i));
                }
            }
            kernel(std::array::from_fn(|k| &staged[k][..count]), &mut staged_dst[..count]);
            for (i, &value) in staged_dst[..count].iter().enumerate() {
                // SAFETY: as above.
                unsafe { *to.offset(element(0, i)) = value };
            }
        }
    });
}

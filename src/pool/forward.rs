//! Windows reduced: first down the rows of a window, by whole vectors of a row, then along what came of it.
//!
//! A row of the image is `[width, lanes]`: one lane in planes (NCHW), the channels where these are neighbours (NHWC).
#![forbid(unsafe_code)]

use std::ops::Range;

use super::geometry::{Axis, Slide, Taps};
use super::reduce::{Average, Maximum, Norm, Reduction};
use super::walk::{OneByOne, Walk, Window, join_rows};
use super::whole::Whole;
use crate::element::Element;
use crate::error::Result;
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{MOST_LANES, Simd, SimdOp, kernels};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{product, scratch};

/// Fewest elements read that are worth a task.
const GRAIN: usize = 1 << 15;
/// Elements of a reduced row that are kept at a time, in L1.
const BLOCK: usize = 4096;
/// The most rows of windows that are reduced together.
const GROUP: usize = 32;

/// A checked call.
#[derive(Clone, Copy)]
pub struct Call<'a, T, R> {
    pub op: &'static str,
    pub isa: Isa,
    /// `[batch, channels, depth, height, width]`.
    pub x: TensorView<'a, T, 5>,
    pub axes: [Axis; 3],
    pub reduction: R,
    /// Whether weights count the padding.
    pub with_padding: bool,
}

/// True where channels and not columns are neighbours in memory.
pub(super) fn channels_last(shape: [usize; 5], strides: [isize; 5]) -> bool {
    strides[1] == 1 && shape[1] > 1 && (strides[4] != 1 || shape[4] == 1)
}

/// Along which axis work is best cut: the outermost of these that has more than one element.
pub(super) fn cut(shape: [usize; 5], axes: &[usize]) -> Option<usize> {
    axes.iter().copied().find(|&axis| shape[axis] > 1)
}

/// Tasks for so many outputs of windows over these axes.
pub(super) fn tasks(outputs: usize, axes: &[Axis; 3]) -> usize {
    let window = axes.iter().fold(1usize, |all, axis| all.saturating_mul(axis.pace()[1]));
    parallel::tasks(outputs.saturating_mul(window.min(64)), GRAIN)
}

/// Says what a call does, where that is asked for.
pub(super) fn trace<T: Element>(
    op: &'static str,
    isa: Isa,
    [from, to]: [[usize; 5]; 2],
    last: bool,
    tasks: usize,
) {
    machine::trace(|| {
        let path = if last { "channels last" } else { "planes" };
        format!("{op} {from:?} to {to:?} {} {isa} {path} {tasks} tasks", T::NAME)
    });
}

impl<T: Element, R: Reduction<T>> Call<'_, T, R> {
    /// Computes `y`, of the shape that the axes give.
    pub(super) fn run(mut self, mut y: TensorViewMut<'_, T, 5>) -> Result<()> {
        if y.is_empty() {
            return Ok(());
        }
        if !channels_last(self.x.shape(), self.x.strides()) && self.planes().is_none() {
            let [images, channels, depth, height, width] = self.x.shape();
            // Short rows of one window are one row.
            if self.axes[1].is_all()
                && self.axes[2].is_all()
                && height > 1
                && height * width <= BLOCK
                && let Some(x) = self.x.viewed_as([images, channels, depth, 1, height * width])
            {
                self.x = x;
                self.axes = [self.axes[0], Axis::all(1), Axis::all(height * width)];
            }
            // Where there is one row of windows in a plane, those of all channels are rows of one plane.
            if self.axes[..2].iter().all(|axis| axis.image() == 1 && axis.is_all()) {
                self.x = self.x.permute([0, 2, 3, 1, 4])?;
                y = y.permute([0, 2, 3, 1, 4])?;
                self.axes[1] = Axis::each(channels);
            }
        }
        let tasks = tasks(y.len(), &self.axes);
        let last = channels_last(self.x.shape(), self.x.strides());
        trace::<T>(self.op, self.isa, [self.x.shape(), y.shape()], last, tasks);
        self.split(y, [0; 5], tasks)
    }

    /// Its planes, `[images, channels, elements]`, where each is one window and one piece of memory.
    fn planes(&self) -> Option<TensorView<'_, T, 3>> {
        if channels_last(self.x.shape(), self.x.strides()) || !self.axes.iter().all(Axis::is_all) {
            return None;
        }
        let [images, channels, image @ ..] = self.x.shape();
        let elements = image.iter().product();
        let planes = self.x.viewed_as([images, channels, elements])?;
        (planes.strides()[2] == 1 || elements == 1).then_some(planes)
    }

    fn split(&self, y: TensorViewMut<'_, T, 5>, origin: [usize; 5], tasks: usize) -> Result<()> {
        let last = channels_last(self.x.shape(), self.x.strides());
        let axes: &[usize] = if last { &[0, 2, 3] } else { &[0, 1, 2, 3] };
        let Some(axis) = cut(y.shape(), axes).filter(|_| tasks > 1) else {
            return R::reduce(self.isa, Piece { call: self, y, origin });
        };
        let (at, half) = (y.shape()[axis] / 2, tasks / 2);
        let (low, high) = y.split_at(axis, at)?;
        let mut beyond = origin;
        beyond[axis] += at;
        let (first, second) =
            parallel::join(|| self.split(low, origin, half), || self.split(high, beyond, tasks - half));
        first.and(second)
    }
}

kernels! {
    /// Element types with the reductions of windows.
    pub trait Reductions {
        /// Maxima.
        fn maxima(isa: Isa, op: Piece<'_, '_, Self, Maximum>) -> Result<()>;

        /// Averages.
        fn averages(isa: Isa, op: Piece<'_, '_, Self, Average>) -> Result<()>;

        /// Norms.
        fn norms(isa: Isa, op: Piece<'_, '_, Self, Norm>) -> Result<()>;
    }
}

/// A part of the output, which begins at `origin`.
pub struct Piece<'p, 'a, T, R> {
    call: &'p Call<'a, T, R>,
    y: TensorViewMut<'p, T, 5>,
    origin: [usize; 5],
}

/// How a row is gone along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    /// A vector of neighbouring outputs at a time, over a row with its padding.
    Outputs,
    /// An output at a time.
    Windows,
}

/// A pure function of the axis.
pub(super) fn along(axis: &Axis, lanes: usize) -> Along {
    let Axis::Sliding(Slide { kernel, stride, dilation, padding, image, outputs }) = *axis else {
        return Along::Windows;
    };
    let reach = ((outputs - 1) * stride).saturating_add((kernel - 1) * dilation + 1).max(padding[0]);
    // Few long windows are better summed by vectors along themselves; much padding need not be there.
    let few = dilation == 1 && kernel >= 16 && kernel / 4 >= outputs;
    if lanes > 1 || few || reach > image.saturating_mul(2).saturating_add(256) {
        Along::Windows
    } else {
        Along::Outputs
    }
}

/// Outputs of a row that are made together. The columns that two blocks both need are few.
pub(super) fn block(axis: &Axis, lanes: usize) -> usize {
    let [pace, reach] = axis.pace();
    let least = if lanes == 1 { 64 } else { 8 };
    ((BLOCK / lanes).max(reach.saturating_mul(4)) / pace).max(least).min(axis.outputs())
}

/// Rows and what is made of them.
#[derive(Clone, Copy)]
pub(super) struct Rows<S, R> {
    pub simd: S,
    pub reduction: R,
    pub width: Axis,
    pub lanes: usize,
    pub along: Along,
}

impl<T: Element, R: Reduction<T>> SimdOp<T> for Piece<'_, '_, T, R> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        let Piece { call, mut y, origin } = self;
        let [images, channels, depth, height, outputs] = y.shape();
        let last = channels_last(call.x.shape(), call.x.strides());
        if let Some(planes) = call.planes() {
            let planes = planes.slice(0, origin[0]..origin[0] + images, 1)?;
            let planes = planes.slice(1, origin[1]..origin[1] + channels, 1)?;
            let weight = inverse(planes.shape()[2]);
            return simd.call(Whole { op: call.op, reduction: call.reduction, planes, y, weight });
        }
        let (planes, lanes) = if last { (1, channels) } else { (channels, 1) };
        let width = call.axes[2];
        let rows = Rows { simd, reduction: call.reduction, width, lanes, along: along(&width, lanes) };
        let block = block(&width, lanes);
        let margins = rows.margins(block);
        let len = (margins[0] + rows.columns(block) * lanes + margins[1]).max(1);
        let group_rows = (2 * BLOCK / len).clamp(4, GROUP).min(depth * height);
        let mut buffer = scratch::<T>(call.op, product(call.op, &[group_rows, len])?)?;
        let mut stage = scratch::<T>(call.op, block.max(rows.columns(block)) * lanes)?;
        let mut weights = scratch::<T>(call.op, if R::WEIGHTED { outputs + MOST_LANES } else { 0 })?;
        for (output, weight) in weights.iter_mut().enumerate() {
            *weight = inverse(width.count(output.min(outputs - 1), call.with_padding));
        }
        for start in (0..outputs).step_by(block) {
            let outputs = start..outputs.min(start + block);
            let columns = rows.needed(&outputs);
            // Where the image's first column lies in the padded row.
            let left = rows.left(&outputs);
            let (from, to) = (left, left + columns.len() * lanes);
            for row in buffer.chunks_exact_mut(len) {
                row[..from].fill(R::NEUTRAL);
                row[to..].fill(R::NEUTRAL);
            }
            for plane in 0..images * planes {
                let (image, channel) = (plane / planes, plane % planes);
                let x = call.x.select::<4>(0, origin[0] + image)?;
                let y = y.view_mut().select::<4>(0, image)?;
                let (x, mut y) = if last {
                    (x.permute([1, 2, 3, 0])?, y.permute([1, 2, 3, 0])?)
                } else {
                    let x = x.select::<3>(0, origin[1] + channel)?.insert_axis(3)?;
                    (x, y.select::<3>(0, channel)?.insert_axis(3)?)
                };
                for first in (0..depth * height).step_by(group_rows) {
                    let group = Group {
                        call,
                        rows,
                        origin: [origin[2], origin[3]],
                        first: [first / height, first % height],
                        height,
                        len,
                        inside: from..to,
                        columns: columns.clone(),
                        outputs: outputs.clone(),
                    };
                    // All of them down before any of them along: vectors are then read that have reached the cache.
                    let buffer = &mut buffer[..group_rows.min(depth * height - first) * len];
                    simd.call(Down { group: &group, x, buffer: &mut *buffer, stage: &mut stage });
                    let (y, stage) = (y.view_mut(), &mut stage[..]);
                    simd.call(Across { group: &group, y, buffer, weights: &weights, stage });
                }
            }
        }
        Ok(())
    }
}

/// Some rows of windows of a plane, and where they are reduced.
struct Group<'g, 'a, T, S, R> {
    call: &'g Call<'a, T, R>,
    rows: Rows<S, R>,
    /// Of the part of the output that is computed.
    origin: [usize; 2],
    /// The first row in that part.
    first: [usize; 2],
    height: usize,
    /// Of a row with its margins.
    len: usize,
    /// The columns between the margins.
    inside: Range<usize>,
    columns: Range<usize>,
    outputs: Range<usize>,
}

impl<T, S, R> Group<'_, '_, T, S, R> {
    /// The index of each row in the part.
    #[inline(always)]
    fn places(&self) -> impl Iterator<Item = [usize; 2]> {
        let ([mut d, mut h], height) = (self.first, self.height);
        std::iter::from_fn(move || {
            let at = [d, h];
            h += 1;
            if h == height {
                (d, h) = (d + 1, 0);
            }
            Some(at)
        })
    }

    /// The same in the whole output.
    #[inline(always)]
    fn window(&self, at: [usize; 2]) -> [usize; 2] {
        [self.origin[0] + at[0], self.origin[1] + at[1]]
    }
}

/// A function of its own, as [`Across`] is: each has a loop that wants all registers.
struct Down<'d, 'g, 'a, T, S, R> {
    group: &'d Group<'g, 'a, T, S, R>,
    x: TensorView<'d, T, 4>,
    buffer: &'d mut [T],
    stage: &'d mut [T],
}

impl<T: Element, R: Reduction<T>, Z: Simd<T>> SimdOp<T> for Down<'_, '_, '_, T, Z, R> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Down { group, x, buffer, stage } = self;
        let Rows { reduction, width, lanes, along, .. } = group.rows;
        let rows = Rows { simd, reduction, width, lanes, along };
        let [depth, height, ..] = group.call.axes;
        let [_, image_height, image_width, _] = x.shape();
        let (plane, line) = (x.as_slice(), image_width * lanes);
        let skip = group.columns.start * lanes;
        let len = group.inside.len();
        for (at, buffer) in group.places().zip(buffer.chunks_exact_mut(group.len)) {
            let [d, h] = group.window(at);
            let (d, h) = (depth.taps(d), height.taps(h));
            let to = &mut buffer[group.inside.clone()];
            // Most windows are over three or two rows of one piece of memory.
            if let Some(plane) = plane
                && d.count == 1
                && matches!(h.count, 2 | 3)
            {
                let step = h.step * line;
                let from = &plane[(d.first * image_height + h.first) * line + skip..];
                let (one, two) = (&from[..len], &from[step..][..len]);
                if h.count == 3 {
                    join_rows(simd, reduction, [one, two, &from[2 * step..][..len]], true, to);
                } else {
                    join_rows(simd, reduction, [one, two], true, to);
                }
                continue;
            }
            rows.down(&x, [d, h], &group.columns, to, stage);
        }
    }
}

struct Across<'d, 'g, 'a, T, S, R> {
    group: &'d Group<'g, 'a, T, S, R>,
    y: TensorViewMut<'d, T, 4>,
    buffer: &'d [T],
    weights: &'d [T],
    stage: &'d mut [T],
}

impl<T: Element, R: Reduction<T>, Z: Simd<T>> SimdOp<T> for Across<'_, '_, '_, T, Z, R> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Rows { reduction, width, lanes, along, .. } = self.group.rows;
        let rows = Rows { simd, reduction, width, lanes, along };
        if along == Along::Outputs
            && let Axis::Sliding(Slide { kernel, stride, dilation, .. }) = width
        {
            let window = Window { simd, reduction, kernel, stride, dilation };
            return match (kernel, stride, dilation) {
                (2, 2, 1) => self.each(Window { kernel: 2, stride: 2, dilation: 1, ..window }),
                (3, 2, 1) => self.each(Window { kernel: 3, stride: 2, dilation: 1, ..window }),
                (3, 1, 1) => self.each(Window { kernel: 3, stride: 1, dilation: 1, ..window }),
                _ => self.each(window),
            };
        }
        let (outputs, column) = (self.group.outputs.clone(), self.group.columns.start);
        self.each(OneByOne { rows, outputs, column });
    }
}

impl<T: Element, R: Reduction<T>, Z> Across<'_, '_, '_, T, Z, R> {
    #[inline(always)]
    fn each(mut self, walk: impl Walk<T>) {
        let Group { call, rows, outputs, .. } = self.group;
        let weights = self.weights.get(outputs.start..).unwrap_or(&[]);
        let range = outputs.start * rows.lanes..outputs.end * rows.lanes;
        for (at, from) in self.group.places().zip(self.buffer.chunks_exact(self.group.len)) {
            let mut weight = T::ONE;
            if R::WEIGHTED {
                let [d, h] = self.group.window(at);
                let count = call.axes[0].count(d, call.with_padding);
                weight = inverse(count.saturating_mul(call.axes[1].count(h, call.with_padding)));
            }
            let direct = self.y.line_mut(at).map(|to| &mut to[range.clone()]);
            let staged = direct.is_none();
            // One call: it is long when inlined.
            walk.row(from, weight, weights, direct.unwrap_or(&mut self.stage[..range.len()]));
            if staged {
                scatter(&self.stage[..range.len()], self.y.matrix_at_mut(at), outputs.start);
            }
        }
    }
}

/// 1 / count, and 0 of nothing.
#[inline(always)]
fn inverse<T: Element>(count: usize) -> T {
    if count == 0 { T::ZERO } else { T::ONE / T::from_usize(count) }
}

impl<S: Copy, R: Copy> Rows<S, R> {
    /// The image's columns under these windows.
    pub(super) fn needed(&self, outputs: &Range<usize>) -> Range<usize> {
        let last = outputs.end - 1;
        let Axis::Sliding(Slide { kernel, stride, dilation, padding, image, .. }) = self.width else {
            return self.width.taps(outputs.start).first..self.width.taps(last).end();
        };
        let inside = |at: usize| at.saturating_sub(padding[0]).min(image);
        let end = (last * stride).saturating_add((kernel - 1) * dilation + 1);
        inside(outputs.start * stride)..inside(end)
    }

    /// Columns that a block of outputs needs at most.
    pub(super) fn columns(&self, block: usize) -> usize {
        let [pace, reach] = self.width.pace();
        block.saturating_mul(pace).saturating_add(reach + pace).min(self.width.image())
    }

    /// Room before and behind the columns, for the padding and for whole vectors.
    pub(super) fn margins(&self, block: usize) -> [usize; 2] {
        let Axis::Sliding(Slide { kernel, stride, dilation, padding, .. }) = self.width else {
            return [0; 2];
        };
        if self.along == Along::Windows {
            return [0; 2];
        }
        let vectors = block.next_multiple_of(MOST_LANES) + MOST_LANES;
        let starts = if stride <= 2 { vectors * stride } else { (block - 1) * stride };
        [padding[0], starts + (kernel - 1) * dilation + MOST_LANES]
    }

    /// Elements before the first column: the first window's padding.
    pub(super) fn left(&self, outputs: &Range<usize>) -> usize {
        match self.width {
            Axis::Sliding(Slide { stride, padding, .. }) if self.along == Along::Outputs => {
                padding[0].saturating_sub(outputs.start * stride)
            }
            _ => 0,
        }
    }

    /// Joins the rows under a window, columns by columns: `to` is `[columns, lanes]`.
    #[inline(always)]
    fn down<T: Element>(
        &self,
        x: &TensorView<'_, T, 4>,
        [depth, height]: [Taps; 2],
        columns: &Range<usize>,
        to: &mut [T],
        stage: &mut [T],
    ) where
        S: Simd<T>,
        R: Reduction<T>,
    {
        let range = columns.start * self.lanes..columns.end * self.lanes;
        if to.is_empty() {
            return;
        }
        if !x.has_lines() {
            let mut first = true;
            for d in depth.positions() {
                for h in height.positions() {
                    let stage = &mut stage[..to.len()];
                    gather(x.matrix_at([d, h]), columns.start, stage);
                    join_rows(self.simd, self.reduction, [stage], first, to);
                    first = false;
                }
            }
            if first {
                to.fill(R::NEUTRAL);
            }
            return;
        }
        let mut held: [&[T]; 3] = [&[]; 3];
        let (mut count, mut first) = (0, true);
        for d in depth.positions() {
            for h in height.positions() {
                held[count] = x.line([d, h]).map_or(&[], |line| &line[range.clone()]);
                count += 1;
                if count == 3 {
                    join_rows(self.simd, self.reduction, held, first, to);
                    (count, first) = (0, false);
                }
            }
        }
        let [a, b, _] = held;
        match count {
            2 => join_rows(self.simd, self.reduction, [a, b], first, to),
            1 => join_rows(self.simd, self.reduction, [a], first, to),
            _ if first => to.fill(R::NEUTRAL),
            _ => {}
        }
    }
}

/// Elements `[columns, lanes]` of a matrix from row `first` on, into a slice. No loop over vectors, and long: one for all
/// instruction sets.
#[inline(never)]
pub(super) fn gather<T: Copy>(from: TensorView<'_, T, 2>, first: usize, to: &mut [T]) {
    let lanes = from.shape()[1].max(1);
    for (i, to) in to.chunks_exact_mut(lanes).enumerate() {
        match from.row(first + i) {
            Some(row) => to.copy_from_slice(row),
            None => to.iter_mut().enumerate().for_each(|(lane, to)| {
                if let Some(&x) = from.get([first + i, lane]) {
                    *to = x;
                }
            }),
        }
    }
}

/// The inverse of [`gather`].
#[inline(never)]
pub(super) fn scatter<T: Copy>(from: &[T], to: TensorViewMut<'_, T, 2>, first: usize) {
    let [columns, lanes] = to.shape();
    let count = from.len() / lanes.max(1);
    if to.strides()[0] == 1 && columns > 1 {
        let mut to = to.transpose();
        for lane in 0..lanes {
            let Some(to) = to.row_mut(lane) else { return };
            for (to, from) in to[first..][..count].iter_mut().zip(from[lane..].iter().step_by(lanes)) {
                *to = *from;
            }
        }
        return;
    }
    let mut to = to;
    for (i, from) in from.chunks_exact(lanes.max(1)).enumerate() {
        if let Some(to) = to.row_mut(first + i) {
            to.copy_from_slice(from);
            continue;
        }
        for (lane, &x) in from.iter().enumerate() {
            if let Some(to) = to.get_mut([first + i, lane]) {
                *to = x;
            }
        }
    }
}

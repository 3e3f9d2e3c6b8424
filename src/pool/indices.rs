//! Maxima and where they are.
//!
//! Places are numbers of the element type while they are compared, relative to the window and so exact; where they would not
//! be, windows are gone through element by element.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::NO_ELEMENT;
use super::forward::{Along, Rows, along, block, channels_last, cut, gather, scatter, tasks, trace};
use super::geometry::{Axis, Slide, Taps};
use super::reduce::Maximum;
use crate::element::Element;
use crate::error::Result;
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{MOST_LANES, Simd, SimdOp, kernels};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::scratch;

/// A checked call.
#[derive(Clone, Copy)]
pub(super) struct Call<'a, T> {
    pub op: &'static str,
    pub isa: Isa,
    /// `[batch, channels, depth, height, width]`, the last three with a product below [`NO_ELEMENT`].
    pub x: TensorView<'a, T, 5>,
    pub axes: [Axis; 3],
}

impl<T: Element> Call<'_, T> {
    /// Computes `y` and `indices`, both of the shape that the axes give.
    pub(super) fn run(&self, y: TensorViewMut<'_, T, 5>, indices: TensorViewMut<'_, u32, 5>) -> Result<()> {
        if y.is_empty() {
            return Ok(());
        }
        let tasks = tasks(y.len(), &self.axes);
        let last = channels_last(self.x.shape(), self.x.strides());
        trace::<T>(self.op, self.isa, [self.x.shape(), y.shape()], last, tasks);
        self.split(y, indices, [0; 5], tasks)
    }

    fn split(
        &self,
        y: TensorViewMut<'_, T, 5>,
        indices: TensorViewMut<'_, u32, 5>,
        origin: [usize; 5],
        tasks: usize,
    ) -> Result<()> {
        let last = channels_last(self.x.shape(), self.x.strides());
        let axes: &[usize] = if last { &[0, 2, 3] } else { &[0, 1, 2, 3] };
        let Some(axis) = cut(y.shape(), axes).filter(|_| tasks > 1) else {
            return T::maxima_with_indices(self.isa, Piece { call: self, y, indices, origin });
        };
        let (at, half) = (y.shape()[axis] / 2, tasks / 2);
        let ((low, high), (low_indices, high_indices)) = (y.split_at(axis, at)?, indices.split_at(axis, at)?);
        let mut beyond = origin;
        beyond[axis] += at;
        let (first, second) = parallel::join(
            || self.split(low, low_indices, origin, half),
            || self.split(high, high_indices, beyond, tasks - half),
        );
        first.and(second)
    }

    /// True where numbers of the element type count the places under a window.
    fn countable(&self) -> bool {
        let [_, _, _, height, width] = self.x.shape();
        let [depth, rows, columns] = self.axes.map(|axis| axis.pace()[1]);
        let places =
            depth.saturating_mul(height).saturating_add(rows).saturating_mul(width).saturating_add(columns);
        (places as f64) < 1.0 / T::EPSILON.to_f64()
    }
}

kernels! {
    /// Element types with the places of maxima.
    pub trait Places {
        /// [`Piece`].
        fn maxima_with_indices(isa: Isa, op: Piece<'_, '_, Self>) -> Result<()>;
    }
}

pub struct Piece<'p, 'a, T> {
    call: &'p Call<'a, T>,
    y: TensorViewMut<'p, T, 5>,
    indices: TensorViewMut<'p, u32, 5>,
    origin: [usize; 5],
}

impl<T: Element> SimdOp<T> for Piece<'_, '_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        let Piece { call, mut y, mut indices, origin } = self;
        let [images, channels, depth, height, outputs] = y.shape();
        let last = channels_last(call.x.shape(), call.x.strides());
        let (planes, lanes) = if last { (1, channels) } else { (channels, 1) };
        let width = call.axes[2];
        let rows = Rows { simd, reduction: Maximum, width, lanes, along: along(&width, lanes) };
        let countable = call.countable();
        let fast = countable && lanes == 1 && rows.along == Along::Outputs;
        let block = block(&width, lanes);
        let margins = rows.margins(block);
        let len = margins[0] + rows.columns(block) + margins[1];
        let mut buffer = scratch::<T>(call.op, if fast { 2 * len + rows.columns(block) } else { 0 })?;
        let (values, rest) = buffer.split_at_mut(if fast { len } else { 0 });
        let (places, stage) = rest.split_at_mut(if fast { len } else { 0 });
        let mut stage_y = scratch::<T>(call.op, block * lanes)?;
        let mut stage_indices = scratch::<u32>(call.op, block * lanes)?;
        for start in (0..outputs).step_by(block) {
            let outputs = start..outputs.min(start + block);
            let columns = rows.needed(&outputs);
            let left = rows.left(&outputs);
            if fast {
                values.fill(T::NEG_INFINITY);
                places.fill(T::INFINITY);
            }
            for plane in 0..images * planes {
                let (image, channel) = (plane / planes, plane % planes);
                let x = call.x.select::<4>(0, origin[0] + image)?;
                let y = y.view_mut().select::<4>(0, image)?;
                let indices = indices.view_mut().select::<4>(0, image)?;
                let order = [1, 2, 3, 0];
                let (x, mut y, mut indices) = if last {
                    (x.permute(order)?, y.permute(order)?, indices.permute(order)?)
                } else {
                    let x = x.select::<3>(0, origin[1] + channel)?.insert_axis(3)?;
                    let y = y.select::<3>(0, channel)?.insert_axis(3)?;
                    (x, y, indices.select::<3>(0, channel)?.insert_axis(3)?)
                };
                for row in 0..depth * height {
                    let at = [row / height, row % height];
                    let window = [origin[2] + at[0], origin[3] + at[1]];
                    let taps = [0, 1].map(|axis| call.axes[axis].taps(window[axis]));
                    let count = outputs.len() * lanes;
                    let (to_y, to_indices) = (&mut stage_y[..count], &mut stage_indices[..count]);
                    if fast {
                        let inside = left..left + columns.len();
                        let (values_in, places_in) = (&mut values[inside.clone()], &mut places[inside]);
                        down(simd, &x, taps, &columns, values_in, places_in, stage);
                        let across = Across { outputs: &outputs, taps, shape: x.shape() };
                        across.run(simd, &width, values, places, to_y, to_indices);
                    } else {
                        let to = to_y.chunks_exact_mut(lanes).zip(to_indices.chunks_exact_mut(lanes));
                        for (output, (y, indices)) in outputs.clone().zip(to) {
                            let taps = [taps[0], taps[1], width.taps(output)];
                            let mut from = 0;
                            if countable && lanes > 1 {
                                from = pixel(simd, &x, taps, y, indices);
                            }
                            for lane in from..lanes {
                                (y[lane], indices[lane]) = search(&x, taps, lane);
                            }
                        }
                    }
                    scatter(to_y, y.matrix_at_mut(at), outputs.start);
                    scatter(to_indices, indices.matrix_at_mut(at), outputs.start);
                }
            }
        }
        Ok(())
    }
}

/// Lanes where `x` comes before the best so far, should it be as large: larger, or NaN where none was.
#[inline(always)]
fn beats<T: Element, S: Simd<T>>(simd: S, x: S::V, best: S::V) -> S::M {
    simd.mask_or(simd.lt(best, x), simd.mask_and(simd.ne(x, x), simd.eq(best, best)))
}

/// The maxima down the rows under a window, and in which of them they are: the first one's number is 0.
#[inline(always)]
fn down<T: Element, S: Simd<T>>(
    simd: S,
    x: &TensorView<'_, T, 4>,
    [depth, height]: [Taps; 2],
    columns: &Range<usize>,
    values: &mut [T],
    places: &mut [T],
    stage: &mut [T],
) {
    let len = values.len();
    if len == 0 {
        return;
    }
    let direct = x.has_lines();
    let mut first = true;
    for d in depth.positions() {
        for h in height.positions() {
            let row = match x.line([d, h]).filter(|_| direct) {
                Some(line) => &line[columns.clone()],
                None => {
                    gather(x.matrix_at([d, h]), columns.start, &mut stage[..len]);
                    &stage[..len]
                }
            };
            let place = simd.splat(T::from_usize((d - depth.first) * x.shape()[1] + h - height.first));
            for at in (0..len).step_by(S::LANES) {
                let end = len.min(at + S::LANES);
                let whole = end - at == S::LANES;
                let x = simd.load_up_to(&row[at..end]);
                let (mut best, mut best_place) = (x, place);
                if !first {
                    let (value, before) =
                        (simd.load_up_to(&values[at..end]), simd.load_up_to(&places[at..end]));
                    let new = beats(simd, x, value);
                    (best, best_place) = (simd.select(new, x, value), simd.select(new, place, before));
                }
                if whole {
                    simd.store(best, &mut values[at..]);
                    simd.store(best_place, &mut places[at..]);
                } else {
                    simd.store_partial(best, &mut values[at..end]);
                    simd.store_partial(best_place, &mut places[at..end]);
                }
            }
            first = false;
        }
    }
    if first {
        values.fill(T::NEG_INFINITY);
        places.fill(T::INFINITY);
    }
}

/// A block of windows along a row.
struct Across<'r> {
    outputs: &'r Range<usize>,
    taps: [Taps; 2],
    shape: [usize; 4],
}

impl Across<'_> {
    #[inline(always)]
    fn run<T: Element, S: Simd<T>>(
        &self,
        simd: S,
        width: &Axis,
        values: &[T],
        places: &[T],
        y: &mut [T],
        indices: &mut [u32],
    ) {
        let Axis::Sliding(Slide { kernel, stride, dilation, padding, .. }) = *width else { return };
        let [_, height, columns, _] = self.shape;
        let first_row = self.taps[0].first * height + self.taps[1].first;
        for (i, (y, indices)) in y.chunks_mut(S::LANES).zip(indices.chunks_mut(S::LANES)).enumerate() {
            let from = i * S::LANES * stride;
            let mut best = simd.splat(T::NEG_INFINITY);
            let (mut place, mut column) = (simd.splat(T::INFINITY), simd.splat(T::ZERO));
            for tap in 0..kernel {
                let at = from + tap * dilation;
                let (x, row) = match stride {
                    1 => (simd.load(&values[at..]), simd.load(&places[at..])),
                    2 => (every_second(simd, &values[at..]), every_second(simd, &places[at..])),
                    _ => (every(simd, &values[at..], stride), every(simd, &places[at..], stride)),
                };
                let above = simd.lt(row, place);
                // Of equal ones, and of NaNs, the one in the higher row comes first; in one row, the one found first.
                let equal = simd.mask_and(simd.eq(x, best), above);
                let both_nan = simd.mask_and(simd.mask_and(simd.ne(x, x), simd.ne(best, best)), above);
                let new = simd.mask_or(beats(simd, x, best), simd.mask_or(equal, both_nan));
                best = simd.select(new, x, best);
                place = simd.select(new, row, place);
                column = simd.select(new, simd.splat(T::from_usize(tap * dilation)), column);
            }
            if y.len() == S::LANES {
                simd.store(best, y)
            } else {
                simd.store_partial(best, y)
            }
            let (mut lines, mut offsets) = ([T::ZERO; MOST_LANES], [T::ZERO; MOST_LANES]);
            simd.store(place, &mut lines);
            simd.store(column, &mut offsets);
            let start = (self.outputs.start + i * S::LANES) * stride;
            for (lane, index) in indices.iter_mut().enumerate() {
                let line = lines[lane].to_f64();
                if line == f64::INFINITY {
                    *index = NO_ELEMENT;
                    continue;
                }
                // Inside the image: there the sums are those of the definition.
                let column = start + lane * stride + offsets[lane].to_f64() as usize - padding[0];
                *index = ((first_row + line as usize) * columns + column) as u32;
            }
        }
    }
}

#[inline(always)]
fn every_second<T: Element, S: Simd<T>>(simd: S, from: &[T]) -> S::V {
    let [even, _] = simd.deinterleave(simd.load(from), simd.load(&from[S::LANES..]));
    even
}

#[inline(always)]
fn every<T: Element, S: Simd<T>>(simd: S, from: &[T], stride: usize) -> S::V {
    let mut lanes = [T::NEG_INFINITY; MOST_LANES];
    for (lane, &x) in lanes[..S::LANES].iter_mut().zip(from.iter().step_by(stride)) {
        *lane = x;
    }
    simd.load(&lanes)
}

/// Whole vectors of channels of one window; gives back how many channels these were.
#[inline(always)]
fn pixel<T: Element, S: Simd<T>>(
    simd: S,
    x: &TensorView<'_, T, 4>,
    [depth, height, width]: [Taps; 3],
    y: &mut [T],
    indices: &mut [u32],
) -> usize {
    let [_, rows, columns, lanes] = x.shape();
    let whole = lanes / S::LANES * S::LANES;
    if [depth, height, width].iter().any(|taps| taps.count == 0) {
        y.fill(T::NEG_INFINITY);
        indices.fill(NO_ELEMENT);
        return lanes;
    }
    let first = (depth.first * rows + height.first) * columns + width.first;
    for at in (0..whole).step_by(S::LANES) {
        let (mut best, mut place) = (simd.splat(T::NEG_INFINITY), simd.splat(T::ZERO));
        let mut found = false;
        for d in depth.positions() {
            for h in height.positions() {
                let line = x.matrix_at([d, h]);
                for w in width.positions() {
                    let Some(pixel) = line.row(w) else { return 0 };
                    let x = simd.load(&pixel[at..]);
                    let here = simd.splat(T::from_usize((d * rows + h) * columns + w - first));
                    if !found {
                        (best, place, found) = (x, here, true);
                        continue;
                    }
                    let new = beats(simd, x, best);
                    (best, place) = (simd.select(new, x, best), simd.select(new, here, place));
                }
            }
        }
        simd.store(best, &mut y[at..]);
        let mut places = [T::ZERO; MOST_LANES];
        simd.store(place, &mut places);
        for (index, place) in indices[at..].iter_mut().zip(&places[..S::LANES]) {
            *index = (first + place.to_f64() as usize) as u32;
        }
    }
    whole
}

/// One window, element by element.
fn search<T: Element>(x: &TensorView<'_, T, 4>, [depth, height, width]: [Taps; 3], lane: usize) -> (T, u32) {
    let [_, rows, columns, _] = x.shape();
    let (mut best, mut index) = (T::NEG_INFINITY, NO_ELEMENT);
    for d in depth.positions() {
        for h in height.positions() {
            let line = x.matrix_at([d, h]);
            for w in width.positions() {
                let Some(&x) = line.get([w, lane]) else { continue };
                if index == NO_ELEMENT || x > best || (x.is_nan() && !best.is_nan()) {
                    (best, index) = (x, ((d * rows + h) * columns + w) as u32);
                }
            }
        }
    }
    (best, index)
}

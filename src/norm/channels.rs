//! Sums over each channel of each sample, and what is then applied to each element: from views of any strides to runs.

use super::moments::Moments;
use super::{pixel, plane};
use crate::element::Element;
use crate::error::Result;
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{Simd, SimdOp, kernels};
use crate::tensor::{Layout, TensorView, TensorViewMut, sort_few};
use crate::vecmath::Pair;
use crate::workspace::{Scratch, scratch};

/// Fewest elements a task is worth.
const GRAIN: usize = 1 << 14;

/// Elements of an operand that are copied at a time where neither positions nor channels are neighbours.
const STAGE: usize = 512;

/// Most slabs of the positions of a sample, and the fewest positions of one, where channels are neighbours.
const SLABS: usize = 64;
const SLAB: usize = 256;

/// `[batch, channels, three axes of positions]`.
type View<'a, T> = TensorView<'a, T, 5>;
type ViewMut<'a, T> = TensorViewMut<'a, T, 5>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    /// Runs of positions.
    Planes,
    /// Runs of channels.
    Pixels,
    /// Runs of positions, copied.
    Copied,
}

/// Another view of the same elements: axes permuted, then merged.
#[derive(Clone, Copy)]
struct Arrangement {
    order: [usize; 5],
    shape: [usize; 5],
}

/// The positions as one axis where the strides of all operands allow; the samples too, where they `merge`. The first
/// operand decides the order of positions.
fn arrangement<const K: usize>(operands: [Layout<5>; K], merge: bool) -> Arrangement {
    let (shape, strides) = (operands[0].shape(), operands[0].strides());
    let allowed = |way: &Arrangement| {
        operands
            .iter()
            .all(|layout| layout.permute(way.order).is_ok_and(|l| l.viewed_as(way.shape).is_some()))
    };
    let far = |&axis: &usize| {
        std::cmp::Reverse(if shape[axis] > 1 { strides[axis].unsigned_abs() } else { usize::MAX })
    };
    let [batch, channels, positions @ ..] = shape;
    let together = positions.iter().product::<usize>();
    if merge {
        let mut axes = [0, 2, 3, 4];
        sort_few(&mut axes, far);
        let order = [1, axes[0], axes[1], axes[2], axes[3]];
        let way = Arrangement { order, shape: [1, channels, 1, 1, batch * together] };
        if allowed(&way) {
            return way;
        }
    }
    let mut axes = [2, 3, 4];
    sort_few(&mut axes, far);
    let order = [0, 1, axes[0], axes[1], axes[2]];
    let way = Arrangement { order, shape: [batch, channels, 1, 1, together] };
    if allowed(&way) { way } else { Arrangement { order, shape: order.map(|axis| shape[axis]) } }
}

fn path<const K: usize>(operands: [Layout<5>; K]) -> Path {
    let [_, channels, _, _, width] = operands[0].shape();
    let neighbours = |axis: usize| operands.iter().all(|layout| layout.strides()[axis] == 1);
    if width > 1 && neighbours(4) {
        Path::Planes
    } else if channels > 1 && neighbours(1) {
        Path::Pixels
    } else if width <= 1 {
        Path::Planes
    } else {
        Path::Copied
    }
}

fn arrange<'a, T: Element>(view: View<'a, T>, way: Arrangement) -> Result<View<'a, T>> {
    view.permute(way.order)?.reshape(way.shape)
}

/// Rows `[height, width]` of one channel of one sample.
#[inline(always)]
fn rows<'a, T: Element>(view: View<'a, T>, [b, c, d]: [usize; 3]) -> Result<TensorView<'a, T, 2>> {
    view.select::<4>(0, b)?.select::<3>(0, c)?.select(0, d)
}

/// Pixels `[width, channels]` of one sample.
#[inline(always)]
fn pixels<'a, T: Element>(view: View<'a, T>, [b, d, h]: [usize; 3]) -> Result<TensorView<'a, T, 2>> {
    Ok(view.select::<4>(0, b)?.select::<3>(1, d)?.select::<2>(1, h)?.transpose())
}

/// Sums over each channel of each sample.
pub(super) struct Measured {
    /// `[samples, channels, width]`.
    pub sums: Scratch<f64>,
    /// Samples; 1 where all were taken together.
    pub samples: usize,
    /// Positions of each.
    pub positions: f64,
}

/// The numbers that make up [`Moments`].
pub(super) const MOMENTS: usize = 3;
/// Σd, Σd², Σdy and Σdy·d.
pub(super) const SUMS: usize = 4;

/// The moments of each channel of each sample of `x`, not empty; with `gradient`, `[MOMENTS]` give way to `[SUMS]` about
/// shifts, `[channels]` or `[batch, channels]`. Samples are taken together where they `merge` and strides allow.
pub(super) fn measure<T: Element>(
    op: &'static str,
    isa: Isa,
    x: View<'_, T>,
    gradient: Option<(View<'_, T>, &[T])>,
    merge: bool,
) -> Result<Measured> {
    let (dy, shift) = gradient.map_or((x, &[][..]), |gradient| gradient);
    let way = arrangement([*x.layout(), *dy.layout()], merge);
    let (x, dy) = (arrange(x, way)?, arrange(dy, way)?);
    let [samples, channels, depth, height, width] = x.shape();
    let entry = if gradient.is_some() { SUMS } else { MOMENTS };
    let path = path([*x.layout(), *dy.layout()]);
    let slab = if path == Path::Pixels { width.div_ceil(SLABS).max(SLAB) } else { width };
    let slabs = width.div_ceil(slab);
    let size = (samples * channels).saturating_mul(entry);
    let mut sums = scratch::<f64>(op, size)?;
    sums.fill(0.0);
    let tasks = parallel::tasks(x.len(), GRAIN);
    let call = Measure { x, dy, shift, gradient: gradient.is_some(), path, slab };
    let run = |sums: &mut [f64], chunk| {
        parallel::for_each_chunk_mut(sums, chunk, tasks, &|first, sums| {
            T::measure_part(isa, MeasurePart { call, first, sums });
        });
    };
    if path != Path::Pixels {
        run(&mut sums, entry);
    } else if slabs == 1 {
        run(&mut sums, channels * entry);
    } else {
        let mut parts = scratch::<f64>(op, size.saturating_mul(slabs))?;
        parts.fill(0.0);
        run(&mut parts, channels * entry);
        for (sums, parts) in
            sums.chunks_exact_mut(channels * entry).zip(parts.chunks_exact(slabs * channels * entry))
        {
            for part in parts.chunks_exact(channels * entry) {
                if gradient.is_some() {
                    sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                    continue;
                }
                for (sum, part) in sums.chunks_exact_mut(MOMENTS).zip(part.chunks_exact(MOMENTS)) {
                    let mut moments = Moments::get(sum);
                    moments.join(Moments::get(part));
                    moments.put(sum);
                }
            }
        }
    }
    Ok(Measured { sums, samples, positions: (depth * height * width) as f64 })
}

#[derive(Clone, Copy)]
struct Measure<'a, T> {
    x: View<'a, T>,
    dy: View<'a, T>,
    shift: &'a [T],
    gradient: bool,
    path: Path,
    slab: usize,
}

kernels! {
    /// Element types with the normalisation of channels.
    pub trait ChannelKernels {
        /// [`MeasurePart`].
        fn measure_part(isa: Isa, op: MeasurePart<'_, '_, Self>);

        /// [`ApplyPart`].
        fn apply_part(isa: Isa, op: ApplyPart<'_, '_, Self>) -> Result<()>;
    }
}

/// Some units, from number `first` on: a channel of a sample each, or a slab of one.
pub struct MeasurePart<'a, 'b, T> {
    call: Measure<'a, T>,
    first: usize,
    sums: &'b mut [f64],
}

impl<T: Element> SimdOp<T> for MeasurePart<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let MeasurePart { call, first, sums } = self;
        let [_, channels, _, _, width] = call.x.shape();
        let entry = if call.gradient { SUMS } else { MOMENTS };
        // Views of one shape are cut inside it: no error can come.
        if call.path == Path::Pixels {
            let slabs = width.div_ceil(call.slab);
            for (unit, sums) in sums.chunks_exact_mut(channels * entry).enumerate() {
                let (sample, slab) = ((first + unit) / slabs, (first + unit) % slabs);
                let _ = call.pixels(s, sample, slab * call.slab, sums);
            }
        } else {
            for (unit, sums) in sums.chunks_exact_mut(entry).enumerate() {
                let (sample, channel) = ((first + unit) / channels, (first + unit) % channels);
                let _ = call.plane(Pair(s), sample, channel, sums);
            }
        }
    }
}

impl<T: Element> Measure<'_, T> {
    /// The shifts of a sample.
    #[inline(always)]
    fn shift(&self, sample: usize) -> &[T] {
        of_sample(self.shift, self.x.shape()[1], sample)
    }

    #[inline(always)]
    fn pixels<S: Simd<T>>(self, s: S, sample: usize, first: usize, sums: &mut [f64]) -> Result<()> {
        let [_, _, depth, height, width] = self.x.shape();
        let range = first..width.min(first + self.slab);
        for d in 0..depth {
            for h in 0..height {
                let cut = |view| pixels(view, [sample, d, h])?.slice(0, range.clone(), 1);
                let x = cut(self.x)?;
                if self.gradient {
                    pixel::sums(s, self.shift(sample), [x, cut(self.dy)?], sums);
                } else {
                    pixel::moments(s, x, sums);
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn plane<S: Simd<T>>(self, s: S, sample: usize, channel: usize, sums: &mut [f64]) -> Result<()> {
        let [_, _, depth, height, width] = self.x.shape();
        let piece = if self.path == Path::Copied { STAGE } else { width };
        let mut buffers = [[T::ZERO; STAGE]; 2];
        let mut moments = Moments::default();
        for d in 0..depth {
            let (x, dy) = (rows(self.x, [sample, channel, d])?, rows(self.dy, [sample, channel, d])?);
            for h in 0..height {
                for first in (0..width).step_by(piece) {
                    let n = piece.min(width - first);
                    let [x_buffer, dy_buffer] = &mut buffers;
                    let x = run(&x, h, first, n, x_buffer)?;
                    if self.gradient {
                        let shift = self.shift(sample)[channel];
                        plane::sums(s, shift, x, run(&dy, h, first, n, dy_buffer)?, sums);
                    } else {
                        plane::moments(s, x, &mut moments);
                    }
                }
            }
        }
        if !self.gradient {
            moments.put(sums);
        }
        Ok(())
    }
}

/// `n` elements of a row, copied where it is strided: then they fit in the buffer.
#[inline(always)]
fn run<'a, T: Element>(
    rows: &TensorView<'a, T, 2>,
    row: usize,
    first: usize,
    n: usize,
    buffer: &'a mut [T; STAGE],
) -> Result<&'a [T]> {
    if let Some(row) = rows.row(row) {
        return Ok(&row[first..first + n]);
    }
    let part = rows.select::<1>(0, row)?.slice(0, first..first + n, 1)?;
    TensorViewMut::from_slice(&mut buffer[..n], [n])?.assign(part)?;
    Ok(&buffer[..n])
}

/// The part of `[channels]` or `[batch, channels]` that belongs to a sample.
#[inline(always)]
fn of_sample<T>(array: &[T], channels: usize, sample: usize) -> &[T] {
    if array.len() == channels { array } else { &array[sample * channels..(sample + 1) * channels] }
}

/// Coefficients of each channel: shift, slope, constant and, for gradients, factor; each `[channels]` or
/// `[batch, channels]`.
#[derive(Clone, Copy)]
pub(super) struct Coefficients<'a, T> {
    pub arrays: [&'a [T]; 4],
    pub channels: usize,
}

/// y = (x − shift)·slope + constant + beta·y; with dy, dy·factor is added.
pub(super) fn apply<T: Element>(
    isa: Isa,
    coefficients: Coefficients<'_, T>,
    x: View<'_, T>,
    gradient: Option<View<'_, T>>,
    beta: T,
    y: ViewMut<'_, T>,
) -> Result<()> {
    let dy = gradient.unwrap_or(x);
    let merge = coefficients.arrays[0].len() == coefficients.channels;
    let way = arrangement([*y.layout(), *x.layout(), *dy.layout()], merge);
    let y = y.permute(way.order)?.reshape(way.shape)?;
    let (x, dy) = (arrange(x, way)?, arrange(dy, way)?);
    let path = path([*y.layout(), *x.layout(), *dy.layout()]);
    let tasks = parallel::tasks(y.len(), GRAIN);
    let call = Apply { coefficients, isa, path, beta, gradient: gradient.is_some() };
    split(call, Operands { x, dy, y, at: [0; 2] }, tasks)
}

#[derive(Clone, Copy)]
struct Apply<'a, T> {
    coefficients: Coefficients<'a, T>,
    isa: Isa,
    path: Path,
    beta: T,
    gradient: bool,
}

struct Operands<'a, T> {
    x: View<'a, T>,
    dy: View<'a, T>,
    y: ViewMut<'a, T>,
    /// Number of the first sample and channel.
    at: [usize; 2],
}

fn split<T: Element>(call: Apply<'_, T>, operands: Operands<'_, T>, tasks: usize) -> Result<()> {
    let Operands { x, dy, y, at } = operands;
    let (shape, strides) = (y.shape(), y.strides());
    let widest = (0..5).filter(|&axis| shape[axis] > 1).max_by_key(|&axis| strides[axis].unsigned_abs());
    let Some(axis) = widest.filter(|_| tasks > 1) else {
        return T::apply_part(call.isa, ApplyPart { call, operands: Operands { x, dy, y, at } });
    };
    let middle = shape[axis] / 2;
    let ((x, high_x), (dy, high_dy)) = (x.split_at(axis, middle)?, dy.split_at(axis, middle)?);
    let (y, high_y) = y.split_at(axis, middle)?;
    let mut high_at = at;
    if axis < 2 {
        high_at[axis] += middle;
    }
    let high = Operands { x: high_x, dy: high_dy, y: high_y, at: high_at };
    let (first, second) = parallel::join(
        || split(call, Operands { x, dy, y, at }, tasks / 2),
        || split(call, high, tasks - tasks / 2),
    );
    first.and(second)
}

pub struct ApplyPart<'a, 'b, T> {
    call: Apply<'a, T>,
    operands: Operands<'b, T>,
}

impl<T: Element> SimdOp<T> for ApplyPart<'_, '_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) -> Result<()> {
        if self.call.path == Path::Pixels { self.pixels(s) } else { self.planes(Pair(s)) }
    }
}

impl<T: Element> ApplyPart<'_, '_, T> {
    #[inline(always)]
    fn pixels<S: Simd<T>>(self, s: S) -> Result<()> {
        let ApplyPart { call, operands: Operands { x, dy, mut y, at } } = self;
        let [batch, channels, depth, height, _] = y.shape();
        for b in 0..batch {
            let arrays = call.coefficients.arrays.map(|array| {
                let array = of_sample(array, call.coefficients.channels, at[0] + b);
                &array[at[1]..at[1] + channels]
            });
            let [shift, slope, constant, _] = arrays;
            for d in 0..depth {
                for h in 0..height {
                    let x = pixels(x, [b, d, h])?;
                    let y = y.view_mut().select::<4>(0, b)?.select::<3>(1, d)?.select::<2>(1, h)?.transpose();
                    if call.gradient {
                        pixel::apply_gradient(s, arrays, [x, pixels(dy, [b, d, h])?], call.beta, y);
                    } else if call.beta == T::ZERO {
                        pixel::apply::<T, S, false>(s, [shift, slope, constant], x, call.beta, y);
                    } else {
                        pixel::apply::<T, S, true>(s, [shift, slope, constant], x, call.beta, y);
                    }
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn planes<S: Simd<T>>(self, s: S) -> Result<()> {
        let ApplyPart { call, operands: Operands { x, dy, mut y, at } } = self;
        let [batch, channels, depth, height, width] = y.shape();
        let piece = if call.path == Path::Copied { STAGE } else { width };
        let mut buffers = [[T::ZERO; STAGE]; 3];
        for (b, c, d) in
            (0..batch).flat_map(|b| (0..channels).flat_map(move |c| (0..depth).map(move |d| (b, c, d))))
        {
            let coefficients = call
                .coefficients
                .arrays
                .map(|array| of_sample(array, call.coefficients.channels, at[0] + b)[at[1] + c]);
            let (x, dy) = (rows(x, [b, c, d])?, rows(dy, [b, c, d])?);
            let mut y = y.view_mut().select::<4>(0, b)?.select::<3>(0, c)?.select::<2>(0, d)?;
            for h in 0..height {
                for first in (0..width).step_by(piece) {
                    let n = piece.min(width - first);
                    let [x_buffer, dy_buffer, y_buffer] = &mut buffers;
                    let (x, dy) = (run(&x, h, first, n, x_buffer)?, run(&dy, h, first, n, dy_buffer)?);
                    if let Some(y) = y.row_mut(h) {
                        call.run(s, coefficients, [x, dy], &mut y[first..first + n]);
                        continue;
                    }
                    let mut y = y.view_mut().select::<1>(0, h)?.slice(0, first..first + n, 1)?;
                    let buffer = &mut y_buffer[..n];
                    if call.beta != T::ZERO {
                        TensorViewMut::from_slice(buffer, [n])?.assign(y.view())?;
                    }
                    call.run(s, coefficients, [x, dy], buffer);
                    y.assign(TensorView::from_slice(buffer, [n])?)?;
                }
            }
        }
        Ok(())
    }
}

impl<T: Element> Apply<'_, T> {
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S, coefficients: [T; 4], [x, dy]: [&[T]; 2], y: &mut [T]) {
        if self.gradient {
            return plane::apply_gradient(s, coefficients, [x, dy], self.beta, y);
        }
        let [shift, slope, constant, _] = coefficients;
        if self.beta == T::ZERO {
            plane::apply::<T, S, false>(s, [shift, slope, constant], x, self.beta, y);
        } else {
            plane::apply::<T, S, true>(s, [shift, slope, constant], x, self.beta, y);
        }
    }
}

//! One input channel for each output channel: nothing to multiply as matrices, so channels become the lanes of vectors.
//!
//! ```text
//! for each block of channels                       a vector of them, more where they are neighbours in memory
//!     for each box of outputs
//!         input → pixels of these channels with zeros around, vector by vector: `[rows, columns, lanes]`, a copy in L2
//!         for each output: Σ over taps of weights · pixel
//!         sums → the output's layout
//! ```
//!
//! 3 × 3 windows over images whose pixels are neighbours are read in place (`direct`, for the weights' gradient `direct_gradient`), and
//! there a group may have a few input channels and as many output channels: these are neighbouring lanes of one vector.
//!
//! Neighbouring channels are read as they are, planes are turned on the way in and out. An output's sum goes over its taps in
//! row-major order, whatever box it is in. The gradient for the weights reads the same pixels beside those of dZ.
#![forbid(unsafe_code)]

mod direct;
mod direct_gradient;
mod emit;
mod kernel;

use std::ops::Range;

use self::direct::Direct;
pub(super) use self::direct::{dense, packed_len, pixels, taps_of, vectors_of, within};
use self::emit::Emit;
use self::kernel::{Products, Sums};

use super::correlate::Call;
use super::emit::channels_last;
use super::pixels::Fill;
use super::weights::Filter;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{MOST_LANES, Simd, SimdOp};
use crate::spatial::Sliding;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{self, Aligned, scratch};

/// Columns of a box at most.
const COLUMNS: usize = 512;
/// Bytes of sums that are kept before they go to the output.
const KEPT: usize = 24 << 10;
/// Multiply-adds a task is worth.
const GRAIN: usize = 1 << 17;

/// Where windows read: one axis after the other depth, height and width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub dilation: [usize; 3],
    /// Where the first window's first tap is.
    pub start: [isize; 3],
}

impl Reach {
    /// Each output reads its own place, as where dZ itself is read.
    pub(super) const SELF: Self = Self { kernel: [1; 3], stride: [1; 3], dilation: [1; 3], start: [0; 3] };

    pub(super) fn of(sliding: &Sliding) -> Self {
        let Sliding { kernel, stride, dilation, padding } = *sliding;
        Self { kernel, stride, dilation, start: padding.map(|[before, _]| -(before as isize)) }
    }

    /// Whether so many outputs over an image of this size are taken here: groups of one input channel, several of them, and
    /// not much more padding than image, of which there is a copy.
    pub(super) fn fits(&self, groups: usize, channels: usize, outputs: &[usize], image: &[usize]) -> bool {
        groups > 1
            && channels == 1
            && (0..3).all(|axis| {
                let span = outputs[axis].saturating_sub(1).saturating_mul(self.stride[axis]);
                let extent = (self.kernel[axis] - 1).saturating_mul(self.dilation[axis]).saturating_add(1);
                self.stride[axis] <= 64
                    && span.saturating_add(extent) <= image[axis].saturating_mul(2).saturating_add(64)
            })
    }

    /// Windows of 3 × 3 over images without depth, or over each plane of depth, that overlap or touch.
    fn flat(&self, depth: usize, outputs: usize) -> bool {
        self.stride[0] == 1
            && self.start[0] == 0
            && depth == outputs
            && self.kernel == [1, 3, 3]
            && self.dilation[2] == 1
            && self.stride[2] <= 2
    }

    fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Elements along an axis under so many windows.
    pub(super) fn span(&self, axis: usize, outputs: usize) -> usize {
        (outputs - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// Vectors of channels, of so many there are, rows and columns of a box of outputs, whose input has some room in L2.
    fn box_of<T>(&self, lanes: usize, vectors: usize, [height, width]: [usize; 2]) -> [usize; 3] {
        let room = machine::caches().l2 / 4;
        let columns = (COLUMNS / self.stride[2]).clamp(1, width);
        let line = self.kernel[0] * self.span(2, columns) * lanes * size_of::<T>();
        let most = self.span(1, height.min(8));
        let vectors = vectors.min((room / (line * most)).max(1));
        let lines = (room / (line * vectors)).saturating_sub(self.span(1, 1)) / self.stride[1] + 1;
        [vectors, lines.min(height), columns]
    }
}

/// A depthwise correlation, or one of small groups.
struct Forward<'a, T> {
    call: &'a Call<'a, T>,
    reach: Reach,
    filter: Filter<'a, T>,
    /// Output channels of a group, and its input channels.
    multiplier: usize,
    inputs: usize,
    /// What [`direct::vectors_of`] makes of the filter, where that has been done before.
    packed: Option<&'a [T]>,
}

/// Whether small groups of windows like these may be read in place.
pub(super) fn in_place(sliding: &Sliding) -> bool {
    Reach::of(sliding).flat(1, 1)
}

/// Whether [`pack`] is for such weights: of groups of one input channel, or, where these may be `lanes`, of a few.
pub(super) fn takes<T: Element>(isa: Isa, groups: usize, w: TensorView<'_, T, 5>, lanes: bool) -> bool {
    let [channels, inputs, kernel @ ..] = w.shape();
    let few = lanes && kernel == [1, 3, 3] && channels / groups == inputs;
    inputs == 1 || (few && direct::has_kernel::<T>(isa, inputs))
}

/// Weights `[channels, inputs, kernel…]`, those of groups of as many channels, once more, for windows that are read in place: none
/// where they are not.
pub(super) fn pack<T: Element>(
    op: &'static str,
    filter: &Filter<'_, T>,
    [channels, inputs, kernel @ ..]: [usize; 5],
) -> Result<Aligned<T>> {
    let len = if kernel == [1, 3, 3] { direct::packed_len(channels, inputs) } else { Some(0) };
    let len = len.ok_or(Error::Alloc { op, bytes: usize::MAX })?;
    let mut data = workspace::try_vec(op, len)?;
    data.resize(len, T::ZERO);
    if len > 0 {
        direct::vectors_of(filter, channels, inputs, &mut data)?;
    }
    Ok(data)
}

impl<T: Element> Call<'_, T> {
    /// Whether `y` may be computed by [`depthwise`](Self::depthwise) although groups have several inputs: as many outputs, a few, with
    /// all channels of all pixels side by side.
    pub(super) fn fits_groups(&self, y: [usize; 5], strides: [isize; 5]) -> bool {
        let (groups, channels) = (self.groups, self.x.shape()[1]);
        groups > 1
            && channels == y[1]
            && direct::has_kernel::<T>(self.isa, channels / groups)
            && direct::fits(self, y, strides)
    }

    /// Computes `y` where [`Reach::fits`] or [`fits_groups`](Self::fits_groups), with the weights as they are and as [`pack`] has
    /// them.
    pub(super) fn depthwise(
        &self,
        filter: Filter<'_, T>,
        packed: Option<&[T]>,
        y: TensorViewMut<'_, T, 5>,
    ) -> Result<()> {
        let reach = self.reach();
        let [multiplier, inputs, ..] = filter.sizes(self.groups);
        let work = y.len().saturating_mul(reach.taps()).saturating_mul(inputs);
        let direct = multiplier == inputs && direct::fits(self, y.shape(), y.strides());
        // Each task has all of the weights there.
        let tasks = if direct { parallel::threads_for(work, GRAIN) } else { parallel::tasks(work, GRAIN) };
        Forward { call: self, reach, filter, multiplier, inputs, packed }.split(y, [0; 5], tasks, direct)
    }
}

/// Along which axis, and in which units, work on channels is cut.
fn cut(shape: [usize; 5], unit: usize, axes: &[usize]) -> Option<[usize; 2]> {
    let units = |axis: usize| if axis == 1 { unit } else { 1 };
    let axis = axes.iter().copied().find(|&axis| shape[axis] > units(axis))?;
    Some([axis, units(axis)])
}

impl<T: Element> Forward<'_, T> {
    fn split(
        &self,
        y: TensorViewMut<'_, T, 5>,
        origin: [usize; 5],
        tasks: usize,
        direct: bool,
    ) -> Result<()> {
        // Neighbouring channels are best read together.
        let rows = direct || channels_last(y.shape(), y.strides()) && y.shape()[3] >= 16;
        let axes: &[usize] = if rows { &[0, 2, 3] } else { &[0, 1, 2, 3] };
        let Some([axis, unit]) = cut(y.shape(), MOST_LANES, axes).filter(|_| tasks > 1) else {
            if direct {
                return T::dispatch(self.call.isa, Direct { forward: self, y, origin });
            }
            return T::dispatch(self.call.isa, Piece { forward: self, y, origin });
        };
        let (parts, half) = (y.shape()[axis].div_ceil(unit), tasks / 2);
        let at = (parts / 2).max(1) * unit;
        let (low, high) = y.split_at(axis, at)?;
        let mut beyond = origin;
        beyond[axis] += at;
        let (first, second) = parallel::join(
            || self.split(low, origin, half, direct),
            || self.split(high, beyond, tasks - half, direct),
        );
        first.and(second)
    }

    /// The bias and the weights of channels, vector by vector.
    fn pack(&self, channels: Range<usize>, lanes: usize, to: &mut [T]) -> Result<()> {
        let taps = self.reach.taps();
        to.fill(T::ZERO);
        let place = |i: usize| i / lanes * (1 + taps) * lanes + i % lanes;
        if let Some(bias) = self.call.finish.bias {
            for (i, channel) in channels.clone().enumerate() {
                to[place(i)] = bias.get([channel]).copied().unwrap_or(T::ZERO);
            }
        }
        self.filter.spread(self.multiplier, [0, 1], channels, |i| lanes + place(i), lanes, to)
    }
}

struct Piece<'p, T> {
    forward: &'p Forward<'p, T>,
    y: TensorViewMut<'p, T, 5>,
    origin: [usize; 5],
}

/// Vectors of channels that are best taken together.
fn together<T>(x: &TensorView<'_, T, 5>, channels: usize, lanes: usize) -> usize {
    if channels_last(x.shape(), x.strides()) { channels.div_ceil(lanes) } else { 1 }
}

impl<T: Element> SimdOp<T> for Piece<'_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        let Piece { forward, mut y, origin } = self;
        let Call { op, x, finish, .. } = *forward.call;
        let reach = forward.reach;
        let [images, channels, depths, height, width] = y.shape();
        let vectors = together(&x, channels, S::LANES);
        let [vectors, rows, columns] = reach.box_of::<T>(S::LANES, vectors, [height, width]);
        let whole = reach.pixels(S::LANES, vectors, [rows, columns], forward.multiplier);
        let kept = (KEPT / size_of::<T>() / (vectors * columns * S::LANES)).clamp(1, rows);
        let mut pixels = scratch::<T>(op, whole.len())?;
        let packed = (1 + reach.taps()) * S::LANES;
        let mut weights = scratch::<T>(op, packed * vectors)?;
        let mut sums = scratch::<T>(op, (kept * columns + MOST_LANES) * S::LANES * vectors)?;
        for first in (0..channels).step_by(vectors * S::LANES) {
            let block = first..channels.min(first + vectors * S::LANES);
            let channel = origin[1] + first;
            forward.pack(channel..channel + block.len(), S::LANES, &mut weights)?;
            for at in 0..images * depths {
                let (image, d) = (at / depths, at % depths);
                let x = x.select::<4>(0, origin[0] + image)?;
                let residual = match finish.residual {
                    // The part of it that lies over `y`.
                    Some(residual) => {
                        let mut part = residual.select::<4>(0, origin[0] + image)?;
                        for axis in 0..4 {
                            part = part.slice(axis, origin[1 + axis].., 1)?;
                        }
                        Some(part)
                    }
                    None => None,
                };
                let boxes = height.div_ceil(rows) * width.div_ceil(columns);
                for at in 0..boxes {
                    let across = width.div_ceil(columns);
                    let (h, w) = (at / across * rows, at % across * columns);
                    let place = [origin[2] + d, origin[3] + h, origin[4] + w];
                    let outputs = [rows.min(height - h), columns.min(width - w)];
                    let pixel = whole.over(&reach, place, outputs, channel, block.len());
                    simd.call(Fill { x, pixels: pixel, to: &mut pixels });
                    for row in (0..outputs[0]).step_by(kept) {
                        let outputs = [kept.min(outputs[0] - row), outputs[1]];
                        let vector = (outputs[0] * outputs[1] + MOST_LANES) * S::LANES;
                        let start = row * reach.stride[1] * pixel.columns * S::LANES;
                        let count = block.len().div_ceil(S::LANES);
                        let sums = &mut sums[..count * vector];
                        let planes = pixels.chunks_exact(pixel.plane()).zip(weights.chunks_exact(packed));
                        for ((plane, weights), sums) in planes.zip(sums.chunks_exact_mut(vector)) {
                            let (reach, pixels, from) = (&reach, &pixel, &plane[start..]);
                            simd.call(Sums { reach, pixels, from, weights, outputs, sums });
                        }
                        simd.call(Emit {
                            sums,
                            outputs,
                            y: y.view_mut().select(0, image)?,
                            residual,
                            channels: block.clone(),
                            at: [d, h + row, w],
                            finish: &finish,
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether the gradient for weights of groups of a few channels, of this shape, is computed by [`weight_gradient`].
pub(super) fn fits_group_gradient<T: Element>(
    isa: Isa,
    x: TensorView<'_, T, 5>,
    dz: TensorView<'_, T, 5>,
    reach: Reach,
    [outputs, inputs, ..]: [usize; 5],
    groups: usize,
) -> bool {
    let same = groups > 1 && outputs == x.shape()[1] && outputs / groups == inputs;
    same && direct_gradient::fits(&Gradient { op: "", isa, x, dz, reach, multiplier: 1, inputs })
}

/// The gradient for depthwise weights, where [`Reach::fits`]: dW `[groups · multiplier, 1, kernel…]`, or of groups where
/// [`fits_group_gradient`].
pub(super) fn weight_gradient<T: Element>(
    op: &'static str,
    isa: Isa,
    x: TensorView<'_, T, 5>,
    dz: TensorView<'_, T, 5>,
    reach: Reach,
    mut dw: TensorViewMut<'_, T, 5>,
) -> Result<()> {
    let multiplier = dw.shape()[0] / x.shape()[1].max(1);
    let gradient = Gradient { op, isa, x, dz, reach, multiplier, inputs: dw.shape()[1] };
    if dz.is_empty() {
        dw.fill(T::ZERO);
        return Ok(());
    }
    if direct_gradient::fits(&gradient) {
        return direct_gradient::run(&gradient, dw);
    }
    let tasks = parallel::tasks(dz.len().saturating_mul(reach.taps()), GRAIN);
    gradient.split(dw, 0, tasks)
}

struct Gradient<'a, T> {
    op: &'static str,
    isa: Isa,
    x: TensorView<'a, T, 5>,
    dz: TensorView<'a, T, 5>,
    reach: Reach,
    multiplier: usize,
    /// Of a group.
    inputs: usize,
}

impl<T: Element> Gradient<'_, T> {
    /// Computes a part of dW, which begins with `channel`. An element is never cut: positions are added up in order.
    fn split(&self, dw: TensorViewMut<'_, T, 5>, channel: usize, tasks: usize) -> Result<()> {
        let parts = dw.shape()[0].div_ceil(MOST_LANES);
        if tasks <= 1 || parts <= 1 {
            return T::dispatch(self.isa, GradientPiece { gradient: self, dw, channel });
        }
        let (half, at) = (tasks / 2, parts / 2 * MOST_LANES);
        let (low, high) = dw.split_at(0, at)?;
        let (first, second) = parallel::join(
            || self.split(low, channel, half),
            || self.split(high, channel + at, tasks - half),
        );
        first.and(second)
    }
}

struct GradientPiece<'p, T> {
    gradient: &'p Gradient<'p, T>,
    dw: TensorViewMut<'p, T, 5>,
    channel: usize,
}

impl<T: Element> SimdOp<T> for GradientPiece<'_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        let GradientPiece { gradient, mut dw, channel } = self;
        let Gradient { op, x, dz, reach, multiplier, .. } = *gradient;
        let [images, _, depths, height, width] = dz.shape();
        let [channels, _, _, kernel_height, kernel_width] = dw.shape();
        let taps = reach.taps();
        // Boxes that all tasks have: they say in which order positions are added up.
        let vectors = together(&x, dz.shape()[1], S::LANES);
        let [vectors, rows, columns] = reach.box_of::<T>(S::LANES, vectors, [height, width]);
        let vectors = vectors.min(channels.div_ceil(S::LANES));
        let whole = reach.pixels(S::LANES, vectors, [rows, columns], multiplier);
        let plain = Reach::SELF;
        let given = plain.pixels(S::LANES, vectors, [rows, columns], 1);
        let (mut pixels, mut gradients) = (scratch::<T>(op, whole.len())?, scratch::<T>(op, given.len())?);
        let mut sums = scratch::<T>(op, taps * S::LANES * vectors)?;
        for first in (0..channels).step_by(vectors * S::LANES) {
            let count = channels.min(first + vectors * S::LANES) - first;
            sums.fill(T::ZERO);
            for at in 0..images * depths {
                let (image, d) = (at / depths, at % depths);
                let (x, dz) = (x.select::<4>(0, image)?, dz.select::<4>(0, image)?);
                let across = width.div_ceil(columns);
                for at in 0..height.div_ceil(rows) * across {
                    let (h, w) = (at / across * rows, at % across * columns);
                    let outputs = [rows.min(height - h), columns.min(width - w)];
                    let x_pixels = whole.over(&reach, [d, h, w], outputs, channel + first, count);
                    let dz_pixels = given.over(&plain, [d, h, w], outputs, channel + first, count);
                    simd.call(Fill { x, pixels: x_pixels, to: &mut pixels });
                    simd.call(Fill { x: dz, pixels: dz_pixels, to: &mut gradients });
                    let planes =
                        pixels.chunks_exact(x_pixels.plane()).zip(gradients.chunks_exact(dz_pixels.plane()));
                    let sums = sums.chunks_exact_mut(taps * S::LANES).take(x_pixels.vectors);
                    for ((x, dz), sums) in planes.zip(sums) {
                        simd.call(Products { reach: &reach, pixels: &x_pixels, x, dz, outputs, sums });
                    }
                }
            }
            for (i, &sum) in sums.iter().enumerate() {
                let (vector, tap, lane) = (i / S::LANES / taps, i / S::LANES % taps, i % S::LANES);
                let rest = tap / kernel_width;
                let at = [
                    first + vector * S::LANES + lane,
                    0,
                    rest / kernel_height,
                    rest % kernel_height,
                    tap % kernel_width,
                ];
                if at[0] < first + count
                    && let Some(to) = dw.get_mut(at)
                {
                    *to = sum;
                }
            }
        }
        Ok(())
    }
}

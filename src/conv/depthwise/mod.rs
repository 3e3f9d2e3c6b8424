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
//! 3 × 3 windows over images whose pixels are neighbours are read in place (`direct`, for the weights' gradient `direct_gradient`).
//!
//! A group may have a few input channels and as many output channels: these are neighbouring lanes of one vector.
//!
//! Neighbouring channels are read as they are, planes are turned on the way in and out. An output's sum goes over its taps in
//! row-major order, whatever box it is in; with several inputs of a group over the rows of taps and for each over these, where the
//! kernel is 3 × 3, else over the taps and for each over these. The gradient for the weights reads the same pixels beside those of dZ.
#![forbid(unsafe_code)]

mod ahead;
mod direct;
mod direct_gradient;
mod emit;
mod kernel;

use std::ops::Range;

use self::ahead::Ahead;
use self::direct::{Direct, of_group, place};
pub(super) use self::direct::{TAPS, dense, packed_len, pixels, row_of, taps_of, vectors_of, within};
pub(super) use self::emit::Emit;
use self::kernel::{Products, Sums};

use super::correlate::Call;
use super::emit::channels_last;
use super::pixels::Fill;
use super::weights::Filter;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::tile;
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

    /// Whether windows are small enough for a copy of all that lies under a box of them, of groups of so many inputs. It depends on
    /// nothing else: strips of an image take the path of the whole.
    pub(super) fn fits(&self, inputs: usize) -> bool {
        let extent =
            |axis: usize| (self.kernel[axis] - 1).saturating_mul(self.dilation[axis]).saturating_add(1);
        let copied =
            self.kernel[0].saturating_mul(extent(1)).saturating_mul(extent(2).saturating_add(COLUMNS));
        let near = if inputs > 1 { copied <= 1 << 14 && extent(2) <= COLUMNS } else { copied <= 1 << 20 };
        near && self.stride.iter().all(|&stride| stride <= 64)
    }

    /// Windows of 3 × 3 over images without depth, or over each plane of depth, that overlap or touch.
    fn flat(&self, depth: usize, outputs: usize) -> bool {
        self.stride[0] == 1 && self.start[0] == 0 && depth == outputs && self.touches()
    }

    /// Windows of 3 × 3 that overlap or touch in their rows.
    fn touches(&self) -> bool {
        self.three() && self.stride[2] <= 2
    }

    /// Rows of three taps side by side, three of them.
    fn three(&self) -> bool {
        self.kernel == [1, 3, 3] && self.dilation[2] == 1
    }

    /// Whether kernels for groups of a few channels are faster than products. `last`: channels lie last, where products have
    /// results of a few columns.
    fn suits(&self, inputs: usize, last: bool) -> bool {
        let taps = self.taps();
        self.touches() || inputs <= 4 && (last || taps > 1) || inputs <= 8 && last && taps < 9
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

/// Whether [`pack`] is for such weights: of groups of one input channel, or, where these may be `lanes`, of a few and as many
/// output channels. `last`: channels lie last.
pub(super) fn takes<T: Element>(
    isa: Isa,
    groups: usize,
    [channels, inputs, ..]: [usize; 5],
    sliding: &Sliding,
    [last, lanes]: [bool; 2],
) -> bool {
    let Sliding { kernel, stride, dilation, .. } = *sliding;
    let reach = Reach { kernel, stride, dilation, start: [0; 3] };
    let few = || channels / groups == inputs && direct::has_kernel::<T>(isa, inputs);
    let suits = || reach.suits(inputs, last) && reach.fits(inputs);
    inputs == 1 || lanes && few() && suits() && (copied::<T>(isa, inputs) || last && reach.touches())
}

/// Weights `[channels, inputs, kernel…]` as vectors of channels.
pub(super) fn pack<T: Element>(
    op: &'static str,
    filter: &Filter<'_, T>,
    groups: usize,
    [channels, inputs, kernel @ ..]: [usize; 5],
) -> Result<Aligned<T>> {
    // No more than the weights have, but for vectors of which they fill a part.
    let taps = kernel.iter().product();
    let len = direct::packed_len(channels, inputs, taps).ok_or(Error::Alloc { op, bytes: usize::MAX })?;
    let mut data = workspace::try_vec(op, len)?;
    data.resize(len, T::ZERO);
    direct::vectors_of(filter, 0..channels, [channels / groups, inputs], taps, &mut data)?;
    Ok(data)
}

impl<T: Element> Call<'_, T> {
    /// Whether `y` is computed by [`depthwise`](Self::depthwise) although groups have several inputs: as many outputs, a few. Where
    /// weights were packed for it, whatever the layout.
    pub(super) fn fits_groups(&self, y: [usize; 5], strides: [isize; 5], packed: bool) -> bool {
        let (groups, channels, reach) = (self.groups, self.x.shape()[1], self.reach());
        if groups < 2 || channels != y[1] || !direct::has_kernel::<T>(self.isa, channels / groups) {
            return false;
        }
        let inputs = channels / groups;
        let suits = || reach.suits(inputs, channels_last(y, strides)) && copied::<T>(self.isa, inputs);
        // A part of an image takes the path of the whole, so that parts have its bits.
        if packed {
            return reach.fits(inputs);
        }
        self.direct([inputs; 2], y, strides) || (reach.fits(inputs) && suits())
    }

    /// Whether `y` is computed from pixels as they lie.
    fn direct(&self, [multiplier, inputs]: [usize; 2], y: [usize; 5], strides: [isize; 5]) -> bool {
        multiplier == inputs && !fills::<T>(self.isa, inputs) && direct::fits(self, y, strides)
    }

    /// Computes `y` of groups of one input where [`Reach::fits`], or where [`fits_groups`](Self::fits_groups), with the weights as
    /// they are and as [`pack`] has them.
    pub(super) fn depthwise(
        &self,
        filter: Filter<'_, T>,
        packed: Option<&[T]>,
        y: TensorViewMut<'_, T, 5>,
    ) -> Result<()> {
        let reach = self.reach();
        let [multiplier, inputs, ..] = filter.sizes(self.groups);
        let work = y.len().saturating_mul(reach.taps()).saturating_mul(inputs);
        let direct = self.direct([multiplier, inputs], y.shape(), y.strides());
        // Each task packs weights.
        let once = direct || inputs > 1;
        let tasks = if once { parallel::threads_for(work, GRAIN) } else { parallel::tasks(work, GRAIN) };
        Forward { call: self, reach, filter, multiplier, inputs, packed }.split(y, [0; 5], tasks, direct)
    }
}

/// Whether there are 32 registers for vectors of so many lanes: those of AVX-512, the only ones as long.
const fn many_registers<T>(lanes: usize) -> bool {
    lanes * size_of::<T>() >= 64
}

/// Whether copies of the pixels of groups of so many channels pay: one that fills a vector needs many registers.
fn copied<T: Element>(isa: Isa, inputs: usize) -> bool {
    let lanes = tile::<T>(isa).lanes;
    inputs < lanes || many_registers::<T>(lanes)
}

/// Whether copies are faster than pixels as they lie: a group that fills a vector has as many weights as pixels, and there they stay
/// in L1 for a plane.
fn fills<T: Element>(isa: Isa, inputs: usize) -> bool {
    inputs > 1 && inputs == tile::<T>(isa).lanes && copied::<T>(isa, inputs)
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

    /// Room for the weights of so many channels as vectors, where they are not there.
    fn packed_len(&self, channels: usize) -> usize {
        let len = direct::packed_len(channels, self.inputs, self.reach.taps()).unwrap_or(usize::MAX);
        if self.packed.is_some() { 0 } else { len }
    }

    /// The weights of channels as vectors, made in `to` where they are not there, and which of these channels is the first of them.
    fn weights<'w>(&'w self, channels: Range<usize>, to: &'w mut [T]) -> Result<(&'w [T], usize)> {
        if let Some(packed) = self.packed {
            return Ok((packed, channels.start));
        }
        vectors_of(&self.filter, channels, [self.multiplier, self.inputs], self.reach.taps(), to)?;
        Ok((to, 0))
    }

    /// The bias of channels in whole vectors.
    fn bias(&self, channels: Range<usize>, to: &mut [T]) -> Result<()> {
        to.fill(T::ZERO);
        if let Some(bias) = self.call.finish.bias {
            to.iter_mut().zip(bias.slice(0, channels, 1)?).for_each(|(to, &from)| *to = from);
        }
        Ok(())
    }
}

struct Piece<'p, T> {
    forward: &'p Forward<'p, T>,
    y: TensorViewMut<'p, T, 5>,
    origin: [usize; 5],
}

/// Vectors of channels, at most so many, that are best taken together.
fn together<T>(x: &TensorView<'_, T, 5>, channels: usize, lanes: usize, most: usize) -> usize {
    if channels_last(x.shape(), x.strides()) { channels.div_ceil(lanes).min(most) } else { 1 }
}

impl<T: Element> SimdOp<T> for Piece<'_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        let Piece { forward, mut y, origin } = self;
        let Call { op, x, finish, .. } = *forward.call;
        let reach = forward.reach;
        let [images, channels, depths, height, width] = y.shape();
        // Sums of groups leave vector by vector.
        let most = if forward.inputs > 1 { 16 } else { usize::MAX };
        let vectors = together(&x, channels, S::LANES, most);
        let [vectors, rows, columns] = reach.box_of::<T>(S::LANES, vectors, [height, width]);
        // Channels of a group that has several have pixels of their own each.
        let sharing = forward.multiplier / forward.inputs;
        let whole = reach.pixels(S::LANES, vectors, [rows, columns], sharing);
        let mut pixels = scratch::<T>(op, whole.len())?;
        // Many weights are read again for each run of sums: those of a vector of channels stay in L1 for all.
        let (inputs, taps) = (forward.inputs, reach.taps());
        let share = if inputs > 1 { 1 } else { vectors };
        // What is read and written lies far apart, and groups that fill a vector leave time to ask for it.
        let last = inputs == S::LANES
            && reach.touches()
            && channels_last(y.shape(), y.strides())
            && channels_last(x.shape(), x.strides());
        let across = width.div_ceil(columns);
        let boxes = height.div_ceil(rows) * across;
        let lanes = vectors * S::LANES;
        let mut bias = scratch::<T>(op, lanes)?;
        let mut packed = scratch::<T>(op, forward.packed_len(lanes))?;
        let kept = (KEPT / size_of::<T>() / (share * columns * S::LANES)).clamp(1, rows);
        let mut sums = scratch::<T>(op, (kept * columns + MOST_LANES) * S::LANES * share)?;
        for first in (0..channels).step_by(vectors * S::LANES) {
            let block = first..channels.min(first + vectors * S::LANES);
            let channel = origin[1] + first;
            let these = channel..channel + block.len();
            forward.bias(these.clone(), &mut bias)?;
            let (weights, base) = forward.weights(these, &mut packed)?;
            let weights = |lane: usize| &weights[place(base + lane, [0, inputs], taps)..];
            // Image, place, sizes and pixels of a box, of all of them.
            let of_box = |at: usize| {
                let (plane, at) = (at / boxes, at % boxes);
                let [d, h, w] = [plane % depths, at / across * rows, at % across * columns];
                let place = [origin[2] + d, origin[3] + h, origin[4] + w];
                let outputs = [rows.min(height - h), columns.min(width - w)];
                let pixels = whole.over(&reach, place, outputs, channel, block.len());
                (plane / depths, [d, h, w], outputs, pixels)
            };
            for plane in 0..images * depths {
                let image = plane / depths;
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
                for at in plane * boxes..(plane + 1) * boxes {
                    let (_, [d, h, w], outputs, pixel) = of_box(at);
                    simd.call(Fill { x, pixels: pixel, to: &mut pixels });
                    let some = (0..block.len()).step_by(share * S::LANES);
                    let mut ahead = Ahead::nothing();
                    if last && at + 1 < images * depths * boxes {
                        let (image, .., next) = of_box(at + 1);
                        let x = forward.call.x.select::<4>(0, origin[0] + image)?;
                        ahead = Ahead::pixels(x, &next, some.len() * outputs[0]);
                    }
                    for (lane, row) in
                        some.flat_map(|lane| (0..outputs[0]).step_by(kept).map(move |row| (lane, row)))
                    {
                        let lanes = lane..block.len().min(lane + share * S::LANES);
                        let outputs = [kept.min(outputs[0] - row), outputs[1]];
                        let vector = (outputs[0] * outputs[1] + MOST_LANES) * S::LANES;
                        let start = row * reach.stride[1] * pixel.columns * S::LANES;
                        let sums = &mut sums[..lanes.len().div_ceil(S::LANES) * vector];
                        let planes = pixels.chunks_exact(pixel.plane()).skip(lane / S::LANES);
                        let lanes_of = lanes.clone().step_by(S::LANES);
                        for ((plane, lane), sums) in planes.zip(lanes_of).zip(sums.chunks_exact_mut(vector)) {
                            let (reach, pixels, from) = (&reach, &pixel, &plane[start..]);
                            let (bias, weights) = (&bias[lane..], weights(lane));
                            let ahead = &mut ahead;
                            if last {
                                let y = y.view().select::<4>(0, image)?;
                                ahead.go_to(y, [first + lane, d, h + row, w], outputs[1]);
                            }
                            of_group!(S, inputs, INPUTS => {
                                simd.call(Sums::<T, INPUTS> { reach, pixels, from, bias, weights, outputs, ahead, sums });
                            });
                        }
                        simd.call(Emit {
                            sums,
                            outputs,
                            y: y.view_mut().select(0, image)?,
                            residual,
                            channels: first + lanes.start..first + lanes.end,
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
    let gradient = Gradient { op: "", isa, x, dz, reach, multiplier: 1, inputs };
    groups > 1
        && outputs == x.shape()[1]
        && outputs / groups == inputs
        && direct::has_kernel::<T>(isa, inputs)
        && (gradient.direct() || gradient.copied())
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
    if gradient.direct() {
        return direct_gradient::run(&gradient, dw);
    }
    let work = dz.len().saturating_mul(reach.taps()).saturating_mul(gradient.inputs);
    let tasks = parallel::tasks(work, GRAIN);
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
    /// Whether it is computed from pixels as they lie.
    fn direct(&self) -> bool {
        !fills::<T>(self.isa, self.inputs) && direct_gradient::fits(self)
    }

    /// Whether it may be computed from copies of pixels although groups have several inputs.
    fn copied(&self) -> bool {
        self.reach.three() && self.reach.fits(self.inputs) && copied::<T>(self.isa, self.inputs)
    }

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
        let (channels, taps, inputs) = (dw.shape()[0], reach.taps(), gradient.inputs);
        // Boxes that all tasks have: they say in which order positions are added up.
        let vectors = together(&x, dz.shape()[1], S::LANES, usize::MAX);
        let [vectors, rows, columns] = reach.box_of::<T>(S::LANES, vectors, [height, width]);
        let vectors = vectors.min(channels.div_ceil(S::LANES));
        let whole = reach.pixels(S::LANES, vectors, [rows, columns], multiplier);
        let plain = Reach::SELF;
        let given = plain.pixels(S::LANES, vectors, [rows, columns], 1);
        let (mut pixels, mut gradients) = (scratch::<T>(op, whole.len())?, scratch::<T>(op, given.len())?);
        let each = inputs * taps * S::LANES;
        let mut sums = scratch::<T>(op, each * vectors)?;
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
                    let sums = sums.chunks_exact_mut(each).take(x_pixels.vectors);
                    for ((x, dz), sums) in planes.zip(sums) {
                        let (reach, pixels) = (&reach, &x_pixels);
                        of_group!(S, inputs, INPUTS => {
                            simd.call(Products::<T, INPUTS> { reach, pixels, x, dz, outputs, sums });
                        });
                    }
                }
            }
            let part = dw.view_mut().slice(0, first..first + count, 1)?;
            put(part, &sums, S::LANES);
        }
        Ok(())
    }
}

/// Sums `[vectors, inputs, taps, lanes]` to the gradient for the weights of some channels.
fn put<T: Element>(mut dw: TensorViewMut<'_, T, 5>, sums: &[T], lanes: usize) {
    let [channels, inputs, depth, height, width] = dw.shape();
    let (each, taps) = (inputs * depth * height * width, depth * height * width);
    let of = |c: usize| sums[c / lanes * each * lanes + c % lanes..].iter().step_by(lanes);
    if let Some(dw) = dw.as_mut_slice() {
        for (c, dw) in dw.chunks_exact_mut(each).enumerate() {
            dw.iter_mut().zip(of(c)).for_each(|(to, &sum)| *to = sum);
        }
        return;
    }
    for c in 0..channels {
        for (i, &sum) in of(c).take(each).enumerate() {
            let (input, tap) = (i / taps, i % taps);
            let at = [c, input, tap / width / height, tap / width % height, tap % width];
            if let Some(to) = dw.get_mut(at) {
                *to = sum;
            }
        }
    }
}

//! im2col and col2im that do write the patch matrix: for users who want it, and to compare with.
//!
//! Convolution here does without: it reads windows straight into panels. The matrix has a row for each sample and
//! window and a column for each channel and tap, so that Y = X' W with the weight as a matrix of one column for each
//! output channel. [`PatchOrder`] says in which order the columns stand; it must be that of the weight.
//!
//! im2col: Kumar Chellapilla, Sidd Puri and Patrice Simard, "High Performance Convolutional Neural Networks for Document
//! Processing", 2006. col2im is its transpose as a linear map, which makes it the way back of gradients:
//! ⟨im2col(X), M⟩ = ⟨X, col2im(M)⟩.
//!
//! | call | runs |
//! |---|---|
//! | im2col | over rows in parallel; runs of neighbouring pixels are copied as runs |
//! | col2im | over images and blocks of channels in parallel, each summed in a buffer of its own: no atomics, one order |
//!
//! An image whose elements lie neither as NCHW nor as NHWC is first copied to scratch memory.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::element::Element;
use crate::error::{Dims, Error, Result};
use crate::spatial::{ImageRank, Sliding, Spatial, lift};
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::workspace;
use crate::{machine, parallel};

/// The order of the columns of a patch matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PatchOrder {
    /// (channel, tap): a weight `[c_out, c_in, kernel…]` read in memory order, as NCHW frameworks store it.
    #[default]
    ChannelsFirst,
    /// (tap, channel): a weight `[c_out, kernel…, c_in]` read in memory order, as NHWC frameworks store it.
    ChannelsLast,
}

/// im2col and col2im over `S` spatial axes: plain data.
///
/// ```
/// use tilewise::{TensorView, conv::Im2col};
/// let x = TensorView::from_slice(&[1.0f32, 2.0, 3.0], [1, 1, 3])?;
/// let patches = Im2col::<1>::new([2]).padding([1]);
/// let matrix = patches.im2col(x)?;
/// assert_eq!(matrix.shape(), [4, 2]);
/// assert_eq!(matrix.as_slice(), [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 0.0]);
/// let back = patches.col2im(matrix.view(), [1, 1, 3])?;
/// assert_eq!(back.as_slice(), [2.0, 4.0, 6.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Im2col<const S: usize> {
    kernel: [usize; S],
    stride: [usize; S],
    dilation: [usize; S],
    padding: [[usize; 2]; S],
    order: PatchOrder,
}

impl<const S: usize> Im2col<S> {
    /// Windows of this size, with stride 1, dense, no padding, columns in the order (channel, tap).
    pub fn new(kernel: [usize; S]) -> Self {
        Self { kernel, stride: [1; S], dilation: [1; S], padding: [[0, 0]; S], order: PatchOrder::default() }
    }

    /// Steps between neighbouring windows.
    pub fn stride(self, stride: [usize; S]) -> Self {
        Self { stride, ..self }
    }

    /// Steps between neighbouring taps of one window; 1 is dense.
    pub fn dilation(self, dilation: [usize; S]) -> Self {
        Self { dilation, ..self }
    }

    /// Zeros on both sides of each axis.
    pub fn padding(self, padding: [usize; S]) -> Self {
        self.padding_sides(padding.map(|side| [side, side]))
    }

    /// Zeros before and after each axis.
    pub fn padding_sides(self, padding: [[usize; 2]; S]) -> Self {
        Self { padding, ..self }
    }

    /// The order of the columns.
    pub fn order(self, order: PatchOrder) -> Self {
        Self { order, ..self }
    }

    /// The shape of the patch matrix of an image `[batch, channels, spatial…]`: `[batch · windows, channels · taps]`.
    ///
    /// # Errors
    /// [`Error::Argument`] where a kernel, stride or dilation is 0, [`Error::Shape`] where the kernel is larger than
    /// the padded image, [`Error::Overflow`] where sizes overflow.
    ///
    /// ```
    /// use tilewise::conv::Im2col;
    /// let patches = Im2col::<2>::new([3, 3]).padding([1, 1]);
    /// assert_eq!(patches.shape([8, 64, 56, 56])?, [8 * 56 * 56, 64 * 9]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn shape<const N: usize>(&self, image: [usize; N]) -> Result<[usize; 2]>
    where
        Spatial<S>: ImageRank<N>,
    {
        Ok(self.plan("Im2col::shape", image)?.matrix)
    }

    /// The patch matrix, `[batch · windows, channels · taps]`, of an image `[batch, channels, spatial…]`.
    ///
    /// # Errors
    /// As [`shape`](Self::shape), and [`Error::Alloc`] where there is no memory.
    pub fn im2col<T: Element, const N: usize>(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, 2>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "Im2col::im2col";
        let plan = self.plan(op, x.shape())?;
        let mut matrix = Tensor::zeros(plan.matrix)?;
        trace::<T, N>(op, x.shape(), plan.matrix);
        plan.im2col(x.lift(), matrix.view_mut())?;
        Ok(matrix)
    }

    /// [`im2col`](Self::im2col) into `matrix`.
    ///
    /// # Errors
    /// As [`im2col`](Self::im2col), and [`Error::Shape`] where the matrix has another shape.
    pub fn im2col_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        matrix: TensorViewMut<'_, T, 2>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "Im2col::im2col_into";
        let plan = self.plan(op, x.shape())?;
        plan.expect_matrix(op, matrix.shape())?;
        trace::<T, N>(op, x.shape(), plan.matrix);
        plan.im2col(x.lift(), matrix)
    }

    /// An image of this shape, `[batch, channels, spatial…]`, whose every pixel is the sum of the elements of the
    /// matrix that im2col would have taken from it.
    ///
    /// # Errors
    /// As [`im2col_into`](Self::im2col_into).
    pub fn col2im<T: Element, const N: usize>(
        &self,
        matrix: TensorView<'_, T, 2>,
        image: [usize; N],
    ) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "Im2col::col2im";
        let plan = self.plan(op, image)?;
        plan.expect_matrix(op, matrix.shape())?;
        let mut x = Tensor::zeros(image)?;
        trace::<T, N>(op, image, plan.matrix);
        plan.col2im(matrix, x.view_mut().lift())?;
        Ok(x)
    }

    /// [`col2im`](Self::col2im) into `x`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`im2col_into`](Self::im2col_into).
    pub fn col2im_into<T: Element, const N: usize>(
        &self,
        matrix: TensorView<'_, T, 2>,
        x: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "Im2col::col2im_into";
        let plan = self.plan(op, x.shape())?;
        plan.expect_matrix(op, matrix.shape())?;
        trace::<T, N>(op, x.shape(), plan.matrix);
        plan.col2im(matrix, x.lift())
    }

    fn plan<const N: usize>(&self, op: &'static str, shape: [usize; N]) -> Result<Plan> {
        let overflow = || Error::Overflow { op, shape: Dims::new(&shape) };
        let sliding = Sliding {
            kernel: lift(self.kernel, 1),
            stride: lift(self.stride, 1),
            dilation: lift(self.dilation, 1),
            padding: lift(self.padding, [0, 0]),
        };
        let sliding = sliding.checked(op, S)?;
        let image = lift(std::array::from_fn::<_, S, _>(|axis| shape[2 + axis]), 1);
        let output = sliding.output(op, S, image, false)?;
        let plan = Plan::new(sliding, shape[0], shape[1], image, output).ok_or_else(overflow)?;
        Ok(Plan { order: self.order, ..plan })
    }
}

/// Says what a call does, where that is asked for.
fn trace<T: Element, const N: usize>(op: &'static str, image: [usize; N], matrix: [usize; 2]) {
    machine::trace(|| format!("{op} image {image:?} matrix {matrix:?} {}", T::NAME));
}

/// A call with all its sizes, three spatial axes each.
pub(super) struct Plan {
    sliding: Sliding,
    order: PatchOrder,
    channels: usize,
    image: [usize; 3],
    output: [usize; 3],
    /// Products of the kernel's and of the output's sizes.
    pub(super) taps: usize,
    windows: usize,
    pub(super) matrix: [usize; 2],
}

/// Fewest elements that a task is worth.
const GRAIN: usize = 1 << 14;

/// Elements of a buffer in which an image is summed: with what is read beside it, it stays in L2.
const BLOCK: usize = 1 << 16;

/// Channels at a time where an image is larger than that: whole cache lines of the matrix, in either order.
const CHANNELS: usize = 16;

/// The elements of `[batch, channels, depth, height, width]` in memory, all strides positive.
#[derive(Clone, Copy)]
struct Pixels<'a, T> {
    data: &'a [T],
    strides: [usize; 5],
}

impl Plan {
    /// For a window and the sizes of images and outputs, channels first; `None` where the matrix has more elements than there can
    /// be.
    pub(super) fn new(
        mut sliding: Sliding,
        batch: usize,
        channels: usize,
        image: [usize; 3],
        output: [usize; 3],
    ) -> Option<Self> {
        for axis in 0..3 {
            // The dilation of a single tap may be any number.
            if sliding.kernel[axis] == 1 {
                sliding.dilation[axis] = 1;
            }
        }
        let product = |first, sizes: [usize; 3]| {
            let product = sizes.iter().try_fold(first, |n: usize, &size| n.checked_mul(size));
            product.filter(|&n| isize::try_from(n).is_ok())
        };
        let (taps, windows) = (product(1, sliding.kernel)?, product(1, output)?);
        let matrix = [product(batch, output)?, product(channels, sliding.kernel)?];
        Some(Self {
            sliding,
            order: PatchOrder::ChannelsFirst,
            channels,
            image,
            output,
            taps,
            windows,
            matrix,
        })
    }

    fn expect_matrix(&self, op: &'static str, found: [usize; 2]) -> Result<()> {
        if found == self.matrix { Ok(()) } else { Err(Error::shape(op, "matrix", &found, &self.matrix)) }
    }

    fn im2col<T: Element>(&self, x: TensorView<'_, T, 5>, matrix: TensorViewMut<'_, T, 2>) -> Result<()> {
        if matrix.is_empty() {
            return Ok(());
        }
        let tasks = parallel::tasks(matrix.len(), GRAIN);
        let [n, c, d, h, w] = x.shape();
        let first = [c * d * h * w, d * h * w, h * w, w, 1];
        let last = [c * d * h * w, 1, h * w * c, w * c, c];
        if let Some(data) = x.as_slice() {
            return self.fill(tasks, Pixels { data, strides: first }, 0, matrix);
        }
        let nhwc = [0, 2, 3, 4, 1];
        if let Some(data) = x.permute(nhwc)?.as_slice() {
            return self.fill(tasks, Pixels { data, strides: last }, 0, matrix);
        }
        // In the order in which it is read in runs.
        let mut copy = workspace::scratch("Im2col::im2col", x.len())?;
        let strides = match self.order {
            PatchOrder::ChannelsFirst => {
                TensorViewMut::from_slice(&mut copy, [n, c, d, h, w])?.copy_from(x);
                first
            }
            PatchOrder::ChannelsLast => {
                TensorViewMut::from_slice(&mut copy, [n, d, h, w, c])?.copy_from(x.permute(nhwc)?);
                last
            }
        };
        self.fill(tasks, Pixels { data: &copy, strides }, 0, matrix)
    }

    /// The rows of the matrix from `first` on.
    fn fill<T: Element>(
        &self,
        tasks: usize,
        x: Pixels<'_, T>,
        first: usize,
        mut matrix: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let [rows, columns] = matrix.shape();
        if tasks > 1 && rows > 1 {
            let (half, at) = (tasks / 2, (rows * (tasks / 2) / tasks).clamp(1, rows - 1));
            let (low, high) = matrix.split_at(0, at)?;
            let (low, high) = parallel::join(
                || self.fill(half, x, first, low),
                || self.fill(tasks - half, x, first + at, high),
            );
            return low.and(high);
        }
        let contiguous = matrix.row_mut(0).is_some();
        let mut staged = workspace::scratch("Im2col::im2col", if contiguous { 0 } else { columns })?;
        for row in 0..rows {
            let window = self.window(first + row);
            match matrix.row_mut(row) {
                Some(row) => self.patch(x, window, row),
                None => {
                    self.patch(x, window, &mut staged);
                    for (column, &value) in staged.iter().enumerate() {
                        matrix.get_mut([row, column]).into_iter().for_each(|x| *x = value);
                    }
                }
            }
        }
        Ok(())
    }

    /// (sample, z, y, x) of a row.
    fn window(&self, row: usize) -> [usize; 4] {
        let [_, h, w] = self.output;
        let (rest, x) = (row / w, row % w);
        let (rest, y) = (rest / h, rest % h);
        [row / self.windows, rest % self.output[0], y, x]
    }

    /// One row of the matrix.
    fn patch<T: Element>(&self, x: Pixels<'_, T>, [sample, window @ ..]: [usize; 4], row: &mut [T]) {
        let taps = self.taps_inside(window);
        if taps.iter().any(|taps| taps.is_empty()) {
            return row.fill(T::ZERO);
        }
        let [batch, channel, depth, height, width] = x.strides;
        let ([_, kh, kw], steps) = (self.sliding.kernel, self.steps());
        let (step, columns) = (width * steps[2], taps[2].clone());
        let full = (0..3).all(|axis| taps[axis].len() == self.sliding.kernel[axis]);
        if !full {
            row.fill(T::ZERO);
        }
        let [z, y, first] = self.pixel(window, std::array::from_fn(|axis| taps[axis].start));
        let start = sample * batch + z * depth + y * height + first * width;
        let (next_z, next_y) = (depth * steps[0], height * steps[1]);
        match self.order {
            PatchOrder::ChannelsFirst => match (step, columns.len()) {
                (1, 3) => self.copy_taps::<T, 3>(x, start, taps, row),
                (1, 5) => self.copy_taps::<T, 5>(x, start, taps, row),
                (1, 7) => self.copy_taps::<T, 7>(x, start, taps, row),
                _ => self.copy_taps::<T, 0>(x, start, taps, row),
            },
            PatchOrder::ChannelsLast => {
                let c = self.channels;
                for (i, u) in taps[0].clone().enumerate() {
                    for (j, v) in taps[1].clone().enumerate() {
                        let (to, from) = ((u * kh + v) * kw * c, start + i * next_z + j * next_y);
                        let run = &mut row[to + columns.start * c..to + columns.end * c];
                        if channel == 1 && step == c {
                            run.copy_from_slice(&x.data[from..from + run.len()]);
                            continue;
                        }
                        for (k, pixel) in run.chunks_exact_mut(c).enumerate() {
                            copy_run::<T, 0>(&x.data[from + k * step..], channel, pixel);
                        }
                    }
                }
            }
        }
    }

    /// The taps inside of all channels, one after the other; `RUN` is as in [`copy_run`].
    #[inline(never)]
    fn copy_taps<T: Element, const RUN: usize>(
        &self,
        x: Pixels<'_, T>,
        start: usize,
        [planes, rows, columns]: [Range<usize>; 3],
        row: &mut [T],
    ) {
        let [_, channel, depth, height, width] = x.strides;
        let ([_, kh, kw], steps) = (self.sliding.kernel, self.steps());
        let steps = [depth * steps[0], height * steps[1], width * steps[2]];
        for (c, row) in row.chunks_exact_mut(self.taps).enumerate() {
            for u in planes.clone() {
                let mut from = start + c * channel + (u - planes.start) * steps[0];
                let mut to = (u * kh + rows.start) * kw + columns.start;
                for _ in rows.clone() {
                    copy_run::<T, RUN>(&x.data[from..], steps[2], &mut row[to..to + columns.len()]);
                    (from, to) = (from + steps[1], to + kw);
                }
            }
        }
    }

    /// The taps of a window that lie inside the image.
    fn taps_inside(&self, window: [usize; 3]) -> [Range<usize>; 3] {
        std::array::from_fn(|axis| self.sliding.taps(axis, window[axis], self.image[axis]))
    }

    /// From tap to tap along each axis, for windows with two taps inside: then the dilation is less than the image. Else it may
    /// be anything, and a step over many pixels more than can be counted.
    fn steps(&self) -> [usize; 3] {
        std::array::from_fn(|axis| self.sliding.dilation[axis].min(self.image[axis]))
    }

    /// The pixel under a tap that lies inside.
    fn pixel(&self, window: [usize; 3], tap: [usize; 3]) -> [usize; 3] {
        let Sliding { stride, dilation, padding, .. } = self.sliding;
        std::array::from_fn(|axis| {
            window[axis] * stride[axis] + tap[axis] * dilation[axis] - padding[axis][0]
        })
    }

    /// Sums up the matrix into `x`, whose old contents are not read.
    pub(super) fn col2im<T: Element>(
        &self,
        matrix: TensorView<'_, T, 2>,
        x: TensorViewMut<'_, T, 5>,
    ) -> Result<()> {
        if x.is_empty() {
            return Ok(());
        }
        let tasks = parallel::tasks(matrix.len().max(x.len()), GRAIN);
        self.sum(tasks, matrix, [0, 0], x)
    }

    /// The part of the image that begins at a sample and a channel.
    fn sum<T: Element>(
        &self,
        tasks: usize,
        matrix: TensorView<'_, T, 2>,
        [sample, channel]: [usize; 2],
        x: TensorViewMut<'_, T, 5>,
    ) -> Result<()> {
        let [batch, channels, ..] = x.shape();
        if tasks > 1 && (batch > 1 || channels > 1) {
            let axis = usize::from(batch == 1);
            let (half, size) = (tasks / 2, x.shape()[axis]);
            let at = (size * half / tasks).clamp(1, size - 1);
            let (low, high) = x.split_at(axis, at)?;
            let next = if axis == 0 { [sample + at, channel] } else { [sample, channel + at] };
            let (low, high) = parallel::join(
                || self.sum(half, matrix, [sample, channel], low),
                || self.sum(tasks - half, matrix, next, high),
            );
            return low.and(high);
        }
        let pixels: usize = self.image.iter().product();
        let block = (BLOCK / pixels).max(CHANNELS).min(channels);
        let mut sums = workspace::scratch("Im2col::col2im", block * pixels)?;
        let mut staged = workspace::scratch("Im2col::col2im", self.matrix[1])?;
        let mut rest = x;
        for b in 0..batch {
            for first in (0..channels).step_by(block) {
                let count = block.min(channels - first);
                let sums = &mut sums[..count * pixels];
                sums.fill(T::ZERO);
                for row in (sample + b) * self.windows..(sample + b + 1) * self.windows {
                    let from = channel + first..channel + first + count;
                    match matrix.row(row) {
                        Some(patch) => self.scatter(row, patch, from, sums),
                        None => {
                            let elements = (0..self.matrix[1]).map(|j| matrix.get([row, j]).copied());
                            staged.iter_mut().zip(elements).for_each(|(to, x)| *to = x.unwrap_or(T::NAN));
                            self.scatter(row, &staged, from, sums);
                        }
                    }
                }
                let part = rest.view_mut().slice(0, b..b + 1, 1)?;
                let mut part = part.slice(1, first..first + count, 1)?;
                let [d, h, w] = self.image;
                part.copy_from(match self.order {
                    PatchOrder::ChannelsFirst => TensorView::from_slice(sums, [1, count, d, h, w])?,
                    PatchOrder::ChannelsLast => {
                        TensorView::from_slice(sums, [1, d, h, w, count])?.permute([0, 4, 1, 2, 3])?
                    }
                });
            }
        }
        Ok(())
    }

    /// Adds the elements of one row that belong to these channels: `sums` is `[channels, image…]` or
    /// `[image…, channels]`, as the columns are.
    fn scatter<T: Element>(&self, row: usize, patch: &[T], channels: Range<usize>, sums: &mut [T]) {
        let [_, window @ ..] = self.window(row);
        let taps = self.taps_inside(window);
        if taps.iter().any(|taps| taps.is_empty()) {
            return;
        }
        let ([_, kh, kw], steps) = (self.sliding.kernel, self.steps());
        let [_, h, w] = self.image;
        let [z, y, x] = self.pixel(window, std::array::from_fn(|axis| taps[axis].start));
        let start = (z * h + y) * w + x;
        let (next_z, next_y, columns) = (h * w * steps[0], w * steps[1], taps[2].clone());
        match self.order {
            PatchOrder::ChannelsFirst => {
                let patch = &patch[channels.start * self.taps..channels.end * self.taps];
                match (steps[2], columns.len()) {
                    (1, 3) => self.add_taps::<T, 3>(patch, start, taps, sums),
                    (1, 5) => self.add_taps::<T, 5>(patch, start, taps, sums),
                    (1, 7) => self.add_taps::<T, 7>(patch, start, taps, sums),
                    _ => self.add_taps::<T, 0>(patch, start, taps, sums),
                }
            }
            PatchOrder::ChannelsLast => {
                let (all, count) = (self.channels, channels.len());
                for (i, u) in taps[0].clone().enumerate() {
                    for (j, v) in taps[1].clone().enumerate() {
                        for (k, tap) in columns.clone().enumerate() {
                            let from = ((u * kh + v) * kw + tap) * all;
                            let to = (start + i * next_z + j * next_y + k * steps[2]) * count;
                            let run = &patch[from + channels.start..from + channels.end];
                            sums[to..to + count].iter_mut().zip(run).for_each(|(sum, &x)| *sum += x);
                        }
                    }
                }
            }
        }
    }

    /// The way back of [`copy_taps`](Self::copy_taps): `patch` and `sums` begin with the same channel.
    #[inline(never)]
    fn add_taps<T: Element, const RUN: usize>(
        &self,
        patch: &[T],
        start: usize,
        [planes, rows, columns]: [Range<usize>; 3],
        sums: &mut [T],
    ) {
        let ([_, kh, kw], steps) = (self.sliding.kernel, self.steps());
        let [_, h, w] = self.image;
        let (next_z, next_y) = (h * w * steps[0], w * steps[1]);
        let pixels = self.image.iter().product();
        for (patch, plane) in patch.chunks_exact(self.taps).zip(sums.chunks_exact_mut(pixels)) {
            for u in planes.clone() {
                let mut from = (u * kh + rows.start) * kw + columns.start;
                let mut to = start + (u - planes.start) * next_z;
                for _ in rows.clone() {
                    add_run::<T, RUN>(&patch[from..from + columns.len()], steps[2], &mut plane[to..]);
                    (from, to) = (from + kw, to + next_y);
                }
            }
        }
    }
}

/// Every `step`-th element to neighbouring ones; `RUN` of them where that is not 0, and then the step is 1.
#[inline(always)]
fn copy_run<T: Copy, const RUN: usize>(from: &[T], step: usize, to: &mut [T]) {
    if RUN > 0 {
        to[..RUN].copy_from_slice(&from[..RUN]);
    } else if step == 1 {
        // Rows of kernels are short: a loop beats a call that copies.
        to.iter_mut().zip(from).for_each(|(to, &x)| *to = x);
    } else {
        to.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, &x)| *to = x);
    }
}

/// Neighbouring elements to every `step`-th one; `RUN` as in [`copy_run`].
#[inline(always)]
fn add_run<T: Element, const RUN: usize>(from: &[T], step: usize, to: &mut [T]) {
    if RUN > 0 {
        to[..RUN].iter_mut().zip(&from[..RUN]).for_each(|(sum, &x)| *sum += x);
    } else {
        to.iter_mut().step_by(step).zip(from).for_each(|(sum, &x)| *sum += x);
    }
}

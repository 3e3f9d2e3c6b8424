//! From products to outputs.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::transform::{self, POINTS, Square};
use crate::activation;
use crate::conv::correlation::Correlation;
use crate::conv::emit::{Finish, add};
use crate::element::Element;
use crate::error::Result;
use crate::gemm::each;
use crate::simd::{MOST_LANES, Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

/// Vectors of a panel at most.
const VECTORS: usize = 2;

/// Aᵀ m A of the tiles of a box for a panel of output channels. `O` outputs along each side of a tile, `P` points.
pub(super) struct Outputs<'a, T, const O: usize, const P: usize> {
    /// `[point][tile][channel]`: elements between points, and between tiles.
    pub products: &'a [T],
    pub stride: usize,
    pub width: usize,
    /// Images, rows and columns of tiles.
    pub sizes: [usize; 3],
    /// Height and width of the box's outputs, which its last tiles may exceed.
    pub image: [usize; 2],
    /// The panel's in the part of the output that is computed.
    pub channels: Range<usize>,
    /// Image, row and column of the box's first output in that part.
    pub origin: [usize; 3],
    /// Room for the outputs of a row of tiles, `[row][column][channel]`.
    pub stage: &'a mut [T],
}

/// To pixels of neighbouring channels, finished.
pub(super) struct ToPixels<'a, T, const O: usize, const P: usize> {
    outputs: Outputs<'a, T, O, P>,
    /// `[images, depth, height, width, channels]` of the part, and the residual like it.
    y: TensorViewMut<'a, T, 5>,
    residual: Option<TensorView<'a, T, 5>>,
    bias: [T; VECTORS * MOST_LANES],
    finish: &'a Finish<'a, T>,
}

/// To rows of sums, one for each channel of the panel.
pub(super) struct ToPlanes<'a, T, const O: usize, const P: usize> {
    outputs: Outputs<'a, T, O, P>,
    /// `[channel][pitch]`, in each row the box's outputs in row-major order.
    sums: &'a mut [T],
    pitch: usize,
}

impl<'a, T: Element, const O: usize, const P: usize> Outputs<'a, T, O, P> {
    /// To the part `y` at `at` of the output.
    pub(super) fn pixels(
        self,
        problem: &'a Correlation<'_, T>,
        at: [usize; 5],
        y: TensorViewMut<'a, T, 5>,
    ) -> Result<ToPixels<'a, T, O, P>> {
        let channels_last = [0, 2, 3, 4, 1];
        let residual = problem.finish.residual_at(at, y.shape())?;
        let mut bias = [T::ZERO; VECTORS * MOST_LANES];
        for (i, bias) in bias.iter_mut().enumerate().take(self.channels.len()) {
            *bias = problem.finish.bias(at[1] + self.channels.start + i);
        }
        let residual = residual.map(|residual| residual.permute(channels_last)).transpose()?;
        Ok(ToPixels { outputs: self, y: y.permute(channels_last)?, residual, bias, finish: &problem.finish })
    }

    /// To sums of all of the box.
    pub(super) fn planes(self, sums: &'a mut [T], pitch: usize) -> ToPlanes<'a, T, O, P> {
        ToPlanes { outputs: self, sums, pitch }
    }

    /// The outputs of the row of tiles `row` of all images to the stage, and the elements between its rows.
    #[inline(always)]
    fn transform<S: Simd<T>>(&mut self, simd: S, row: usize, bias: &[T]) -> usize {
        let (width, count) = (self.width, self.sizes[2]);
        let line = count * O * width;
        for first in (0..self.channels.len()).step_by(S::LANES) {
            let bias = simd.load(&bias[first..]);
            for tile in 0..count {
                let from = &self.products[(row * count + tile) * width + first..];
                let mut square: Square<S::V> = [[simd.splat(T::ZERO); POINTS]; POINTS];
                each!(i in points P {
                    let line = simd.load_apart::<P>(&from[i * P * self.stride..], self.stride);
                    square[i][..P].copy_from_slice(&line);
                });
                transform::output::<T, S, O>(simd, &mut square);
                each!(i in vectors O {
                    let mut outputs = [bias; O];
                    for (output, &sum) in outputs.iter_mut().zip(&square[i]) {
                        *output = simd.add(sum, bias);
                    }
                    let to = &mut self.stage[i * line + tile * O * width + first..];
                    simd.store_apart(outputs, to, width);
                });
            }
        }
        line
    }
}

impl<T: Element, const O: usize, const P: usize> SimdOp<T> for ToPixels<'_, T, O, P> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { mut outputs, mut y, residual, bias, finish } = self;
        let (width, channels, origin) = (outputs.width, outputs.channels.clone(), outputs.origin);
        let whole = channels.len() / S::LANES * S::LANES;
        let ([images, rows, _], [height, inside]) = (outputs.sizes, outputs.image);
        for row in 0..images * rows {
            let line = outputs.transform(simd, row, &bias);
            let (image, top) = (origin[0] + row / rows, row % rows * O);
            let Ok(mut y) = y.view_mut().select::<4>(0, image) else { return };
            let residual = residual.and_then(|residual| residual.select::<4>(0, image).ok());
            for i in 0..O.min(height - top) {
                let (h, w) = (origin[1] + top + i, origin[2]);
                let stage = &mut outputs.stage[i * line..][..inside * width];
                if let Some(residual) = residual {
                    let residual = residual.matrix_at([0, h]);
                    for (i, sums) in stage.chunks_exact_mut(width).enumerate() {
                        match residual.row(w + i) {
                            Some(residual) => {
                                add(simd, &mut sums[..channels.len()], &residual[channels.clone()])
                            }
                            None => {
                                for (channel, sum) in channels.clone().zip(sums) {
                                    *sum += residual.get([w + i, channel]).copied().unwrap_or(T::ZERO);
                                }
                            }
                        }
                    }
                }
                if channels.len() == width {
                    activation::apply(simd, finish.activation, stage);
                } else {
                    // Lanes without a channel are whatever they were.
                    for sums in stage.chunks_exact_mut(width) {
                        activation::apply(simd, finish.activation, &mut sums[..channels.len()]);
                    }
                }
                let mut y = y.matrix_at_mut([0, h]);
                for (i, sums) in stage.chunks_exact(width).enumerate() {
                    let Some(to) = y.row_mut(w + i) else { return };
                    let to = &mut to[channels.clone()];
                    for first in (0..whole).step_by(S::LANES) {
                        simd.store(simd.load(&sums[first..]), &mut to[first..]);
                    }
                    if whole < to.len() {
                        simd.store_partial(simd.load(&sums[whole..]), &mut to[whole..]);
                    }
                }
            }
        }
    }
}

impl<T: Element, const O: usize, const P: usize> SimdOp<T> for ToPlanes<'_, T, O, P> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { mut outputs, sums, pitch } = self;
        let ([height, inside], panel) = (outputs.image, outputs.width);
        // What is added with these stays what it is, −0 as well.
        let bias = [T::from_f64(-0.0); VECTORS * MOST_LANES];
        let [images, rows, _] = outputs.sizes;
        for row in 0..images * rows {
            let line = outputs.transform(simd, row, &bias);
            let (image, top) = (row / rows, row % rows * O);
            for i in 0..O.min(height - top) {
                let stage = &outputs.stage[i * line..][..inside * panel];
                let position = (image * height + top + i) * inside;
                for first in (0..outputs.channels.len()).step_by(S::LANES) {
                    let sums = &mut sums[first * pitch + position..];
                    if inside < 4 {
                        for (column, from) in stage.chunks_exact(panel).enumerate() {
                            for (lane, &sum) in from[first..][..S::LANES].iter().enumerate() {
                                sums[lane * pitch + column] = sum;
                            }
                        }
                        continue;
                    }
                    // Outputs that are no four are taken with some before them again.
                    for column in (0..inside).step_by(4) {
                        let column = column.min(inside - 4);
                        let from = &stage[column * panel + first..];
                        let four = [
                            simd.load(from),
                            simd.load(&from[panel..]),
                            simd.load(&from[2 * panel..]),
                            simd.load(&from[3 * panel..]),
                        ];
                        simd.store_transposed(four, &mut sums[column..], pitch);
                    }
                }
            }
        }
    }
}

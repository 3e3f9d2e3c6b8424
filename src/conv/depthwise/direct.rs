//! 3 × 3 windows over images with channels last, read as they lie: lanes are channels, nothing is copied.
//!
//! ```text
//! for each row of outputs
//!     for each four of its columns                     their pixels looked up, zeros around the image among them
//!         for each vector of channels: Σ over taps of weights · pixel, a weight loaded once for the four
//! ```
#![forbid(unsafe_code)]

use super::Forward;
use crate::activation;
use crate::conv::emit::channels_last;
use crate::element::Element;
use crate::error::Result;
use crate::simd::{Simd, SimdOp};
use crate::tensor::TensorViewMut;
use crate::workspace::scratch;

/// Outputs side by side.
const SIDE: usize = 4;
/// Pixels of a row under so many windows, with the largest stride, 2.
const SPAN: usize = 2 * (SIDE - 1) + 3;

/// Whether outputs of these strides are computed here: all pixels are neighbours, and windows overlap or touch.
pub(super) fn fits<T: Element>(forward: &Forward<'_, T>, shape: [usize; 5], strides: [isize; 5]) -> bool {
    let (call, reach) = (forward.call, &forward.reach);
    let plane = reach.stride[0] == 1 && reach.start[0] == 0 && call.x.shape()[2] == shape[2];
    let dense = |(shape, strides): ([usize; 5], [isize; 5])| {
        channels_last(shape, strides) && usize::try_from(strides[4]) == Ok(shape[1])
    };
    forward.multiplier == 1
        && plane
        && reach.kernel == [1, 3, 3]
        && reach.dilation[2] == 1
        && reach.stride[2] <= 2
        && call.images_of(shape, strides).all(dense)
}

/// The part `y` of an output, whose first element is `origin` in it: all of its channels and columns.
pub(super) struct Direct<'d, T> {
    pub forward: &'d Forward<'d, T>,
    pub y: TensorViewMut<'d, T, 5>,
    pub origin: [usize; 5],
}

impl<T: Element> SimdOp<T> for Direct<'_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        if self.forward.reach.stride[2] == 1 { self.rows::<S, 1>(simd) } else { self.rows::<S, 2>(simd) }
    }
}

impl<T: Element> Direct<'_, T> {
    #[inline(always)]
    fn rows<S: Simd<T>, const STRIDE: usize>(self, simd: S) -> Result<()> {
        let Self { forward, mut y, origin } = self;
        let (call, reach) = (forward.call, &forward.reach);
        let finish = &call.finish;
        let [images, channels, depths, height, _] = y.shape();
        let [_, _, _, rows, columns] = call.x.shape();
        let packed = (1 + reach.taps()) * S::LANES;
        let mut weights = scratch::<T>(call.op, channels.div_ceil(S::LANES) * packed)?;
        forward.pack(0..channels, S::LANES, &mut weights)?;
        // A pixel of padding: 0 times an infinite weight is not a number.
        let mut zeros = scratch::<T>(call.op, channels)?;
        zeros.fill(T::ZERO);
        let [low, high] = finish.activation.bounds().unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
        let bounds = [simd.splat(T::from_f64(low)), simd.splat(T::from_f64(high))];
        let pixels = [0, 2, 3, 4, 1];
        let x = call.x.permute(pixels)?;
        let residual = match finish.residual {
            Some(residual) => Some(residual.permute(pixels)?),
            None => None,
        };
        let mut y = y.view_mut().permute(pixels)?;
        let within = |at: isize, size: usize| usize::try_from(at).ok().filter(|&at| at < size);
        for at in 0..images * depths * height {
            let (image, d, h) = (at / height / depths, at / height % depths, at % height);
            let x = x.select::<4>(0, origin[0] + image)?;
            let residual = match residual {
                Some(residual) => {
                    residual.select::<4>(0, origin[0] + image)?.line([origin[2] + d, origin[3] + h])
                }
                None => None,
            };
            let above = reach.start[1] + ((origin[3] + h) * reach.stride[1]) as isize;
            let line = |i: usize| {
                let row = within(above + (i * reach.dilation[1]) as isize, rows)?;
                x.line([origin[2] + d, row])
            };
            let lines = [line(0), line(1), line(2)];
            let mut y = y.view_mut().select::<4>(0, image)?;
            let Some(to) = y.line_mut([d, h]) else { return Ok(()) };
            for (at, to) in to.chunks_mut(SIDE * channels).enumerate() {
                let left = reach.start[2] + (at * SIDE * STRIDE) as isize;
                let span = const { STRIDE * (SIDE - 1) + 3 };
                let mut pixels = [[&zeros[..]; SPAN]; 3];
                for (line, pixels) in lines.iter().zip(&mut pixels) {
                    let Some(line) = line else { continue };
                    let before = usize::try_from(-left).unwrap_or(0).min(span);
                    let first = usize::try_from(left).unwrap_or(0).min(columns);
                    let mut rest = &line[first * channels..];
                    for pixel in &mut pixels[before..span] {
                        let Some((next, others)) = rest.split_at_checked(channels) else { break };
                        (*pixel, rest) = (next, others);
                    }
                }
                let residual = residual.map(|residual| &residual[at * SIDE * channels..][..to.len()]);
                outputs::<T, S, STRIDE>(simd, &pixels, &weights, residual, bounds, channels, to);
            }
            if finish.activation.bounds().is_none() {
                activation::apply(simd, finish.activation, to);
            }
        }
        Ok(())
    }
}

/// At most [`SIDE`] outputs side by side, of all channels.
#[inline(always)]
fn outputs<T: Element, S: Simd<T>, const STRIDE: usize>(
    simd: S,
    pixels: &[[&[T]; SPAN]; 3],
    weights: &[T],
    residual: Option<&[T]>,
    [low, high]: [S::V; 2],
    channels: usize,
    y: &mut [T],
) {
    for (first, weights) in (0..channels).step_by(S::LANES).zip(weights.chunks_exact(10 * S::LANES)) {
        let lanes = S::LANES.min(channels - first);
        let whole = lanes == S::LANES;
        let mut sums = [simd.load(weights); SIDE];
        for (pixels, weights) in pixels.iter().zip(weights[S::LANES..].chunks_exact(3 * S::LANES)) {
            let mut x = [simd.splat(T::ZERO); SPAN];
            for (x, pixel) in x.iter_mut().zip(pixels).take(STRIDE * (SIDE - 1) + 3) {
                let from = &pixel[first..];
                *x = if whole { simd.load(from) } else { simd.load_partial(from) };
            }
            for (tap, weight) in weights.chunks_exact(S::LANES).enumerate() {
                let weight = simd.load(weight);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add(weight, x[i * STRIDE + tap], *sum);
                }
            }
        }
        for (i, (mut sum, y)) in sums.into_iter().zip(y.chunks_exact_mut(channels)).enumerate() {
            if let Some(residual) = residual {
                sum = simd.add(sum, simd.load_partial(&residual[i * channels + first..][..lanes]));
            }
            // The order of the operands lets NaN through.
            sum = simd.max(low, simd.min(high, sum));
            if whole { simd.store(sum, &mut y[first..]) } else { simd.store_partial(sum, &mut y[first..]) }
        }
    }
}

//! 3 × 3 windows over images with channels last, read as they lie: lanes are channels, nothing is copied.
//!
//! ```text
//! for each row of outputs
//!     for each vector of channels
//!         for each column: Σ over taps of weights · pixel
//! ```
#![forbid(unsafe_code)]

use super::Forward;
use crate::activation;
use crate::conv::emit::{Finish, channels_last};
use crate::element::Element;
use crate::error::Result;
use crate::simd::{Simd, SimdOp};
use crate::tensor::TensorViewMut;
use crate::workspace::scratch;

/// The ends of shorter rows cost more than the copy.
const LEAST_COLUMNS: usize = 28;

/// Whether outputs of these strides are computed here: all pixels are neighbours, and rows are long or read with a stride, by
/// which each pixel is used less often.
pub(super) fn fits<T: Element>(forward: &Forward<'_, T>, shape: [usize; 5], strides: [isize; 5]) -> bool {
    let (call, reach) = (forward.call, &forward.reach);
    let plane = reach.stride[0] == 1 && reach.start[0] == 0 && call.x.shape()[2] == shape[2];
    let dense = |(shape, strides): ([usize; 5], [isize; 5])| {
        channels_last(shape, strides) && usize::try_from(strides[4]) == Ok(shape[1])
    };
    forward.multiplier == 1
        && plane
        && reach.kernel == [1, 3, 3]
        && (reach.stride[2] > 1 || shape[4] >= LEAST_COLUMNS)
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
        let Self { forward, mut y, origin } = self;
        let (call, reach) = (forward.call, &forward.reach);
        let finish = &call.finish;
        let [images, channels, depths, height, width] = y.shape();
        let ([_, down, right], [_, apart_rows, apart]) = (reach.stride, reach.dilation);
        let [_, _, _, rows, columns] = call.x.shape();
        let packed = (1 + reach.taps()) * S::LANES;
        let mut weights = scratch::<T>(call.op, channels.div_ceil(S::LANES) * packed)?;
        forward.pack(0..channels, S::LANES, &mut weights)?;
        // A row of padding.
        let mut zeros = scratch::<T>(call.op, columns * channels)?;
        zeros.fill(T::ZERO);
        // Outputs whose windows lie between the ends of a row.
        let start = reach.start[2];
        let low = usize::try_from(-start).unwrap_or(0).div_ceil(right).min(width);
        let room = columns as isize - (2 * apart) as isize - start;
        let high = usize::try_from(room).unwrap_or(0).div_ceil(right).clamp(low, width);
        let pixels = [0, 2, 3, 4, 1];
        let x = call.x.permute(pixels)?;
        let residual = match finish.residual {
            Some(residual) => Some(residual.permute(pixels)?),
            None => None,
        };
        let mut y = y.view_mut().permute(pixels)?;
        for at in 0..images * depths * height {
            let (image, d, h) = (at / height / depths, at / height % depths, at % height);
            let x = x.select::<4>(0, origin[0] + image)?;
            let residual = match residual {
                Some(residual) => {
                    residual.select::<4>(0, origin[0] + image)?.line([origin[2] + d, origin[3] + h])
                }
                None => None,
            };
            let above = reach.start[1] + ((origin[3] + h) * down) as isize;
            let line = |i: usize| {
                let row = usize::try_from(above + (i * apart_rows) as isize).ok().filter(|&row| row < rows);
                row.and_then(|row| x.line([origin[2] + d, row])).unwrap_or(&zeros)
            };
            let lines: [&[T]; 3] = [line(0), line(1), line(2)];
            let mut y = y.view_mut().select::<4>(0, image)?;
            let Some(to) = y.line_mut([d, h]) else { return Ok(()) };
            for (v, weights) in weights.chunks_exact(packed).enumerate() {
                let channel = v * S::LANES;
                let lanes = S::LANES.min(channels - channel);
                let bias = simd.load(weights);
                // A closure that makes vectors may not be inlined, and then loses its instruction set.
                let mut taps = [bias; 9];
                for (tap, weight) in taps.iter_mut().zip(weights.chunks_exact(S::LANES).skip(1)) {
                    *tap = simd.load(weight);
                }
                let inside = if lanes == S::LANES { low..high } else { width..width };
                if !inside.is_empty() {
                    let first = (start + (low * right) as isize) as usize * channels + channel;
                    let (step, next) = (apart * channels, right * channels);
                    let lines = [&lines[0][first..], &lines[1][first..], &lines[2][first..]];
                    for w in inside.clone() {
                        let at = (w - low) * next;
                        let mut sum = bias;
                        for (line, taps) in lines.iter().zip(taps.chunks_exact(3)) {
                            sum = simd.mul_add(taps[0], simd.load(&line[at..]), sum);
                            sum = simd.mul_add(taps[1], simd.load(&line[at + step..]), sum);
                            sum = simd.mul_add(taps[2], simd.load(&line[at + 2 * step..]), sum);
                        }
                        let place = w * channels + channel;
                        put(
                            simd,
                            finish,
                            sum,
                            residual.map(|row| &row[place..]),
                            &mut to[place..][..S::LANES],
                        );
                    }
                }
                for w in (0..inside.start).chain(inside.end..width) {
                    let (mut sum, left) = (bias, start + (w * right) as isize);
                    for (line, taps) in lines.iter().zip(taps.chunks_exact(3)) {
                        for (j, tap) in taps.iter().enumerate() {
                            let column = left + (j * apart) as isize;
                            let mut x = simd.splat(T::ZERO);
                            if (0..columns as isize).contains(&column) {
                                x = simd.load_partial(&line[column as usize * channels + channel..][..lanes]);
                            }
                            // In the padding too: 0 times an infinite weight is not a number.
                            sum = simd.mul_add(*tap, x, sum);
                        }
                    }
                    let place = w * channels + channel;
                    put(simd, finish, sum, residual.map(|row| &row[place..]), &mut to[place..][..lanes]);
                }
            }
            if finish.activation.bounds().is_none() {
                activation::apply(simd, finish.activation, to);
            }
        }
        Ok(())
    }
}

/// A sum with its residual, and between its bounds, to the output.
#[inline(always)]
fn put<T: Element, S: Simd<T>>(
    simd: S,
    finish: &Finish<'_, T>,
    mut sum: S::V,
    residual: Option<&[T]>,
    to: &mut [T],
) {
    if let Some(residual) = residual {
        sum = simd.add(sum, simd.load_partial(&residual[..to.len()]));
    }
    if let Some([low, high]) = finish.activation.bounds() {
        // The order of the operands lets NaN through.
        sum = simd.max(simd.splat(T::from_f64(low)), simd.min(simd.splat(T::from_f64(high)), sum));
    }
    if to.len() == S::LANES { simd.store(sum, to) } else { simd.store_partial(sum, to) }
}

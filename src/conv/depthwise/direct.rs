//! 3 × 3 windows over images with channels last, read as they lie: lanes are channels, nothing is copied.
//!
//! ```text
//! for each block of channels                           the rows that windows share stay in L1
//!     for each row of outputs
//!         for each vector of channels                  its weights in registers
//!             for each four columns: Σ over taps of weights · pixel, a pixel loaded once for the four
//! ```
#![forbid(unsafe_code)]

use super::Forward;
use crate::activation;
use crate::conv::emit::channels_last;
use crate::conv::weights::Filter;
use crate::element::Element;
use crate::error::Result;
use crate::machine;
use crate::simd::{self, MOST_LANES, Simd, SimdOp};
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
        let [images, channels, depths, height, width] = y.shape();
        let [_, _, _, rows, columns] = call.x.shape();
        let pitch = pitch(channels);
        let mut packed = scratch::<T>(call.op, if forward.packed.is_some() { 0 } else { 9 * pitch })?;
        let weights = match forward.packed {
            Some(weights) => weights,
            None => {
                taps_first(&forward.filter, channels, &mut packed)?;
                &packed
            }
        };
        let mut biases = scratch::<T>(call.op, pitch)?;
        biases.fill(T::ZERO);
        if let Some(bias) = finish.bias {
            biases.iter_mut().zip(bias).for_each(|(to, &from)| *to = from);
        }
        let [low, high] = finish.activation.bounds().unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
        let [low, high] = [simd.splat(T::from_f64(low)), simd.splat(T::from_f64(high))];
        let pixels = [0, 2, 3, 4, 1];
        let x = call.x.permute(pixels)?;
        let residual = match finish.residual {
            Some(residual) => Some(residual.permute(pixels)?),
            None => None,
        };
        let mut y = y.view_mut().permute(pixels)?;
        let within = |at: isize, size: usize| usize::try_from(at).ok().filter(|&at| at < size);
        let step = block::<T>(S::LANES, [rows, columns, channels], width);
        for (block, at) in (0..channels)
            .step_by(step)
            .flat_map(|first| (0..images * depths * height).map(move |at| (first, at)))
        {
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
            // What only the next row of outputs reads.
            let next: [_; STRIDE] = std::array::from_fn(|i| line(3 + i));
            let mut y = y.view_mut().select::<4>(0, image)?;
            let Some(to) = y.line_mut([d, h]) else { return Ok(()) };
            for first in (block..channels.min(block + step)).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - first);
                let mut taps = [simd.splat(T::ZERO); 9];
                for (tap, from) in taps.iter_mut().zip(weights.chunks_exact(pitch)) {
                    *tap = simd.load(&from[first..]);
                }
                let bias = simd.load(&biases[first..]);
                for (at, to) in to.chunks_mut(SIDE * channels).enumerate() {
                    let left = reach.start[2] + (at * SIDE * STRIDE) as isize;
                    let span = const { STRIDE * (SIDE - 1) + 3 };
                    let start =
                        within(left, (columns + 1).saturating_sub(span)).filter(|_| lanes == S::LANES);
                    for (next, start) in next.iter().flatten().filter_map(|next| Some((next, start?))) {
                        for i in start..start + SIDE * STRIDE {
                            simd::prefetch_l2(next.as_ptr().wrapping_add(i * channels + first));
                        }
                    }
                    let mut sums = match (start, lines) {
                        (Some(start), [Some(a), Some(b), Some(c)]) => {
                            let lines = [a, b, c].map(|line| &line[start * channels + first..]);
                            outputs::<T, S, STRIDE>(simd, &taps, bias, |row, i| {
                                simd.load(&lines[row][i * channels..])
                            })
                        }
                        _ => outputs::<T, S, STRIDE>(simd, &taps, bias, |row, i| {
                            // Padding is multiplied as well: 0 times an infinite weight is not a number.
                            match (lines[row], within(left + i as isize, columns)) {
                                (Some(line), Some(column)) => {
                                    simd.load_partial(&line[column * channels + first..][..lanes])
                                }
                                _ => simd.splat(T::ZERO),
                            }
                        }),
                    };
                    if let Some(residual) = residual {
                        let residual = residual[at * SIDE * channels..].chunks_exact(channels);
                        for (sum, residual) in sums.iter_mut().zip(residual) {
                            *sum = simd.add(*sum, simd.load_partial(&residual[first..][..lanes]));
                        }
                    }
                    for (sum, y) in sums.into_iter().zip(to.chunks_exact_mut(channels)) {
                        // The order of the operands lets NaN through.
                        let sum = simd.max(low, simd.min(high, sum));
                        if lanes == S::LANES {
                            simd.store(sum, &mut y[first..]);
                        } else {
                            simd.store_partial(sum, &mut y[first..][..lanes]);
                        }
                    }
                }
            }
            if finish.activation.bounds().is_none() {
                for y in to.chunks_exact_mut(channels) {
                    activation::apply(simd, finish.activation, &mut y[block..channels.min(block + step)]);
                }
            }
        }
        Ok(())
    }
}

/// Elements between the taps of packed weights.
pub(super) fn pitch(channels: usize) -> usize {
    channels.next_multiple_of(MOST_LANES)
}

/// Weights of so many channels as vectors, `[taps, pitch]`.
pub(super) fn taps_first<T: Element>(filter: &Filter<'_, T>, channels: usize, to: &mut [T]) -> Result<()> {
    to.fill(T::ZERO);
    filter.spread(1, 0..channels, |channel| channel, pitch(channels), to)
}

/// Channels that are taken at a time: as many as L1 has room for in the rows that windows share, or all where an image comes
/// from beyond L2, in runs as long as can be.
fn block<T>(lanes: usize, [rows, columns, channels]: [usize; 3], width: usize) -> usize {
    let caches = machine::caches();
    let line = columns.saturating_mul(size_of::<T>());
    if rows.saturating_mul(line).saturating_mul(channels) > caches.l2 / 2 {
        return channels.max(1);
    }
    let vector = (3 * line + width * size_of::<T>()) * lanes;
    (caches.l1d * 3 / 4 / vector).max(4) * lanes
}

/// [`SIDE`] outputs side by side, of pixels by row and column of their windows.
#[inline(always)]
fn outputs<T: Element, S: Simd<T>, const STRIDE: usize>(
    simd: S,
    taps: &[S::V; 9],
    bias: S::V,
    pixel: impl Fn(usize, usize) -> S::V,
) -> [S::V; SIDE] {
    let mut sums = [bias; SIDE];
    for row in 0..3 {
        let mut x = [simd.splat(T::ZERO); SPAN];
        for (i, x) in x.iter_mut().enumerate().take(STRIDE * (SIDE - 1) + 3) {
            *x = pixel(row, i);
        }
        for tap in 0..3 {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul_add(taps[3 * row + tap], x[i * STRIDE + tap], *sum);
            }
        }
    }
    sums
}

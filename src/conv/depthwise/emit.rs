//! From sums to the output's layout.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::activation;
use crate::conv::emit::{Finish, bounded};
use crate::element::Element;
use crate::simd::{self, MOST_LANES, Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

/// Bytes of a plane between what is asked for and what is written.
const AHEAD: usize = 512;

/// Sums `[vectors, positions, lanes]` to the output; behind the positions of each vector lie [`MOST_LANES`] more.
pub(in crate::conv) struct Emit<'e, T> {
    pub sums: &'e mut [T],
    pub outputs: [usize; 2],
    /// `[channels, depth, height, width]` of one image, and the residual like it.
    pub y: TensorViewMut<'e, T, 4>,
    pub residual: Option<TensorView<'e, T, 4>>,
    /// The block's channels and the box's place in `y`.
    pub channels: Range<usize>,
    pub at: [usize; 3],
    pub finish: &'e Finish<'e, T>,
}

impl<T: Element> SimdOp<T> for Emit<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { sums, outputs, mut y, residual, channels, at, finish } = self;
        let ([rows, columns], [d, h, w]) = (outputs, at);
        let positions = rows * columns;
        let vector = (positions + MOST_LANES) * S::LANES;
        // Bounds are applied on the way, other activations before.
        let bounds = finish.activation.bounds();
        let [low, high] = bounds.unwrap_or([f64::NEG_INFINITY, f64::INFINITY]).map(T::from_f64);
        let limits = [simd.splat(low), simd.splat(high)];
        for (v, sums) in sums.chunks_exact_mut(vector).enumerate() {
            let sums = &mut sums[..positions * S::LANES];
            if let Some(residual) = residual {
                for (i, sums) in sums.chunks_exact_mut(S::LANES).enumerate() {
                    for (channel, sum) in (channels.start + v * S::LANES..channels.end).zip(sums) {
                        let at = [channel, d, h + i / columns, w + i % columns];
                        *sum += residual.get(at).copied().unwrap_or(T::ZERO);
                    }
                }
            }
            if bounds.is_none() {
                activation::apply(simd, finish.activation, sums);
            }
        }
        if y.strides()[0] == 1 && channels.len() > 1 {
            let Ok(mut y) = y.permute([1, 2, 3, 0]) else { return };
            let whole = channels.len() / S::LANES;
            for row in 0..rows {
                let mut y = y.matrix_at_mut([d, h + row]);
                for column in 0..columns {
                    let Some(to) = y.row_mut(w + column) else { return };
                    let to = &mut to[channels.clone()];
                    let at = (row * columns + column) * S::LANES;
                    for v in 0..whole {
                        let sum = bounded(simd, limits, simd.load(&sums[v * vector + at..]));
                        simd.store(sum, &mut to[v * S::LANES..]);
                    }
                    if whole * S::LANES < to.len() {
                        let sum = bounded(simd, limits, simd.load(&sums[whole * vector + at..]));
                        simd.store_partial(sum, &mut to[whole * S::LANES..]);
                    }
                }
            }
            return;
        }
        let [all, _, height, width] = y.shape();
        // The rows of a plane are one line where they follow each other.
        let merged = columns == width && y.view().has_lines();
        let (lines, len, start) = if merged { (1, positions, h * width) } else { (rows, columns, w) };
        for line in 0..lines {
            let plane = y.view_mut().select::<3>(1, d);
            let to = match merged {
                true => plane.and_then(|plane| plane.reshape([all, height * width])),
                false => plane.and_then(|plane| plane.select::<2>(1, h + line)),
            };
            let Ok(mut to) = to else { return };
            for (v, sums) in sums.chunks_exact(vector).enumerate() {
                let Ok(sums) = TensorView::from_slice(sums, [positions + MOST_LANES, S::LANES]) else {
                    return;
                };
                let channels = channels.start + v * S::LANES..channels.end;
                let places = start..start + len;
                if S::LANES >= 4 && to.strides()[1] == 1 {
                    turn(simd, limits, sums, line * len, &mut to, channels, places);
                    continue;
                }
                for (lane, channel) in channels.enumerate().take(S::LANES) {
                    for (i, place) in places.clone().enumerate() {
                        if let (Some(to), Some(&sum)) =
                            (to.get_mut([channel, place]), sums.get([line * len + i, lane]))
                        {
                            // NaN stays.
                            let sum = if sum > high { high } else { sum };
                            *to = if sum < low { low } else { sum };
                        }
                    }
                }
            }
        }
    }
}

/// The sums `[positions, lanes]` from `first` on to places of channels.
#[inline(always)]
fn turn<T: Element, S: Simd<T>>(
    simd: S,
    limits: [S::V; 2],
    sums: TensorView<'_, T, 2>,
    first: usize,
    to: &mut TensorViewMut<'_, T, 2>,
    channels: Range<usize>,
    places: Range<usize>,
) {
    for lane in (0..S::LANES).step_by(4) {
        for (i, place) in places.clone().step_by(S::LANES).enumerate() {
            let four = simd.load_transposed(sums.fours([first + i * S::LANES, lane], S::LANES));
            let place = place..places.end.min(place + S::LANES);
            for (vector, channel) in four.into_iter().zip(channels.start + lane..channels.end) {
                if let Some(line) = to.row_mut(channel) {
                    let to = &mut line[place.clone()];
                    // So many planes are no stream that the processor sees.
                    simd::prefetch(to.as_ptr().wrapping_byte_add(AHEAD));
                    simd.store_up_to(bounded(simd, limits, vector), to);
                }
            }
        }
    }
}

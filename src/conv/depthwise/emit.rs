//! From sums to the output's layout.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::activation;
use crate::conv::emit::Finish;
use crate::element::Element;
use crate::simd::{self, MOST_LANES, Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

/// Bytes of a plane between what is asked for and what is written.
const AHEAD: usize = 512;

/// Sums `[vectors, positions, lanes]` to the output; behind the positions of each vector lie [`MOST_LANES`] more.
pub(super) struct Emit<'e, T> {
    pub sums: &'e mut [T],
    pub outputs: [usize; 2],
    /// `[channels, depth, height, width]` of one image, and the residual like it.
    pub y: TensorViewMut<'e, T, 4>,
    pub residual: Option<TensorView<'e, T, 4>>,
    /// The block's channels and the box's place in `y`.
    pub channels: Range<usize>,
    pub at: [usize; 3],
    pub finish: &'e Finish<'e, T>,
    pub turned: &'e mut [T],
}

impl<T: Element> SimdOp<T> for Emit<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { sums, outputs, mut y, residual, channels, at, finish, turned } = self;
        let ([rows, columns], [d, h, w]) = (outputs, at);
        let positions = rows * columns;
        let vector = (positions + MOST_LANES) * S::LANES;
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
            activation::apply(simd, finish.activation, sums);
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
                        simd.store(simd.load(&sums[v * vector + at..]), &mut to[v * S::LANES..]);
                    }
                    if whole * S::LANES < to.len() {
                        simd.store_partial(
                            simd.load(&sums[whole * vector + at..]),
                            &mut to[whole * S::LANES..],
                        );
                    }
                }
            }
            return;
        }
        let [all, _, height, width] = y.shape();
        let planes = y.view_mut().select::<3>(1, d).and_then(|y| y.reshape([all, height * width]));
        if let Ok(mut planes) = planes
            && planes.strides()[1] == 1
            && columns == width
            && S::LANES >= 4
        {
            for (v, sums) in sums.chunks_exact(vector).enumerate() {
                let Ok(sums) = TensorView::from_slice(sums, [positions + MOST_LANES, S::LANES]) else {
                    return;
                };
                for lane in (0..S::LANES).step_by(4) {
                    let first = channels.start + v * S::LANES + lane;
                    for position in (0..positions).step_by(S::LANES) {
                        let four = simd.load_transposed(sums.fours([position, lane], S::LANES));
                        let place = h * width + position..h * width + positions.min(position + S::LANES);
                        for (vector, channel) in four.into_iter().zip(first..channels.end) {
                            if let Some(plane) = planes.row_mut(channel) {
                                let to = &mut plane[place.clone()];
                                // So many planes are no stream that the processor sees.
                                simd::prefetch(to.as_ptr().wrapping_byte_add(AHEAD));
                                simd.store_up_to(vector, to);
                            }
                        }
                    }
                }
            }
            return;
        }
        let stride = positions.next_multiple_of(MOST_LANES);
        for (v, sums) in sums.chunks_exact(vector).enumerate() {
            let turned = &mut turned[..stride * S::LANES];
            for (position, sums) in sums.chunks_exact(S::LANES).take(positions).enumerate() {
                for (lane, &sum) in sums.iter().enumerate() {
                    turned[lane * stride + position] = sum;
                }
            }
            let channels = channels.start + v * S::LANES..channels.end;
            for (channel, from) in channels.zip(turned.chunks_exact(stride)) {
                if columns == width
                    && let Some(plane) = y.line_mut([channel, d])
                {
                    plane[h * width..][..positions].copy_from_slice(&from[..positions]);
                    continue;
                }
                let mut y = y.matrix_at_mut([channel, d]);
                for (row, from) in from[..positions].chunks_exact(columns).enumerate() {
                    if let Some(to) = y.row_mut(h + row) {
                        to[w..][..columns].copy_from_slice(from);
                        continue;
                    }
                    for (column, &sum) in from.iter().enumerate() {
                        if let Some(to) = y.get_mut([h + row, w + column]) {
                            *to = sum;
                        }
                    }
                }
            }
        }
    }
}

//! Pixels whose channels are neighbours, to planes.
#![forbid(unsafe_code)]

use super::Span;
use crate::element::Element;
use crate::simd::Simd;
use crate::tensor::TensorView;

/// A row of pixels whose channels are neighbours.
pub(super) struct Run {
    pub columns: Span,
    pub step: usize,
}

impl Run {
    /// Pixels `[width, channels]` to rows of channels, which lie `channel` apart in `to` and are `len` long.
    #[inline(always)]
    pub(super) fn turn<T: Element, S: Simd<T>>(
        &self,
        simd: S,
        pixels: Option<TensorView<'_, T, 2>>,
        to: &mut [T],
        channel: usize,
        len: usize,
        channels: usize,
    ) {
        let Some(pixels) = pixels else {
            for c in 0..channels {
                fill_zero(simd, &mut to[c * channel..][..len]);
            }
            return;
        };
        let pixel = |place: usize| {
            let Span { places, first } = &self.columns;
            let place = place.checked_sub(places.start).filter(|_| place < places.end)?;
            pixels.row(first + place * self.step)
        };
        if len < 4 || channels < S::LANES {
            for place in 0..len {
                let from = pixel(place);
                for c in 0..channels {
                    to[c * channel + place] = from.map_or(T::ZERO, |from| from[c]);
                }
            }
            return;
        }
        // Places that are no four are taken with some before them again, channels that are no vector likewise.
        for place in (0..len).step_by(4) {
            let place = place.min(len - 4);
            let from: [Option<&[T]>; 4] = std::array::from_fn(|i| pixel(place + i));
            for c in (0..channels).step_by(S::LANES) {
                let c = c.min(channels - S::LANES);
                let mut vectors = [simd.splat(T::ZERO); 4];
                for (vector, from) in vectors.iter_mut().zip(from) {
                    if let Some(from) = from {
                        *vector = simd.load(&from[c..]);
                    }
                }
                simd.store_transposed(vectors, &mut to[c * channel + place..], channel);
            }
        }
    }
}

#[inline(always)]
fn fill_zero<T: Element, S: Simd<T>>(simd: S, to: &mut [T]) {
    for to in to.chunks_mut(S::LANES) {
        simd.store_up_to(simd.splat(T::ZERO), to);
    }
}

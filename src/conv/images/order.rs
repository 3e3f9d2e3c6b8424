//! Where channels lie: each in a plane, or side by side in every pixel.
#![forbid(unsafe_code)]

use crate::conv::depthwise::Reach;
use crate::conv::pixels::Pixels;
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{TensorView, TensorViewMut};

/// The order of a tensor's channels and columns, which a copy of its pixels keeps.
#[derive(Clone, Copy)]
pub(super) struct Order {
    /// Channels of a plane, side by side in each of its columns: one, or all of them.
    pub(super) beside: usize,
}

/// Columns of a row at most. Views that repeat an element may have more than can be counted.
const MOST_COLUMNS: usize = 1 << 24;

impl Order {
    /// Where images or columns are neighbours, or the channels of dense pixels, so that they are turned as vectors.
    pub(super) fn of(shape: [usize; 5], strides: [isize; 5]) -> Option<Self> {
        let ([_, channels, .., width], [image, channel, .., column]) = (shape, strides);
        let few = |columns: Option<usize>| columns.is_some_and(|columns| columns <= MOST_COLUMNS);
        if image == 1 || column == 1 || width == 1 {
            return few(Some(width)).then_some(Self { beside: 1 });
        }
        let dense = channels > 1 && channel == 1 && usize::try_from(column) == Ok(channels);
        (dense && few(width.checked_mul(channels))).then_some(Self { beside: channels })
    }

    /// `[images, planes, depth, height, columns of a plane]`.
    pub(super) fn planes<T: Element>(self, x: TensorView<'_, T, 5>) -> Result<TensorView<'_, T, 5>> {
        let [images, channels, depth, height, width] = x.shape();
        if self.beside == 1 {
            return Ok(x);
        }
        x.permute([0, 2, 3, 4, 1])?.reshape([images, 1, depth, height, width * channels])
    }

    /// As [`planes`](Self::planes).
    pub(super) fn planes_mut<T: Element>(
        self,
        y: TensorViewMut<'_, T, 5>,
    ) -> Result<TensorViewMut<'_, T, 5>> {
        let [images, channels, depth, height, width] = y.shape();
        if self.beside == 1 {
            return Ok(y);
        }
        y.permute([0, 2, 3, 4, 1])?.reshape([images, 1, depth, height, width * channels])
    }

    /// The copy of planes for one of pixels.
    pub(super) fn pixels(self, pixels: Pixels) -> Pixels {
        let Pixels { at: [row, column], columns, .. } = pixels;
        Pixels { at: [row, column * self.beside as isize], columns: columns * self.beside, ..pixels }
    }

    /// Elements from channel to channel, in copies of `plane` elements each.
    pub(super) fn apart(self, plane: usize, lanes: usize) -> usize {
        if self.beside == 1 { plane } else { lanes }
    }

    /// Where channels and taps lie in a copy of planes from a window's first one on.
    pub(super) fn lines(self, reach: &Reach, pixels: &Pixels, to: &mut [usize]) {
        let ([depth, h, w], [_, down, right]) = (reach.kernel, reach.dilation);
        let (taps, apart) = (depth * h * w, self.apart(pixels.plane(), pixels.lanes));
        for (at, to) in to.iter_mut().enumerate() {
            let (c, tap) = (at / taps, at % taps);
            let row = tap / w / h * pixels.rows + tap / w % h * down;
            *to = c * apart + (row * pixels.columns + tap % w * right * self.beside) * pixels.lanes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_and_dense_pixels_are_turned() {
        let of = |shape, strides| Order::of(shape, strides).map(|order| order.beside);
        let shape = [16, 3, 1, 5, 7];
        assert_eq!(of(shape, [105, 35, 35, 7, 1]), Some(1));
        assert_eq!(of(shape, [1, 560, 560, 112, 16]), Some(1));
        assert_eq!(of(shape, [105, 1, 105, 21, 3]), Some(3));
        // Rows may lie anywhere.
        assert_eq!(of(shape, [-9, 1, 0, -100, 3]), Some(3));
        assert_eq!(of([16, 3, 1, 5, 1], [9, 2, 2, 2, 2]), Some(1));
        // Pixels that are not dense, channels apart, and more columns than can be counted.
        assert_eq!(of(shape, [140, 1, 140, 28, 4]), None);
        assert_eq!(of(shape, [105, 1, 105, 21, -3]), None);
        assert_eq!(of(shape, [210, 2, 210, 42, 6]), None);
        assert_eq!(of([16, 0, 1, 5, 7], [1, 1, 0, 0, 0]), Some(1));
        assert_eq!(of([16, 0, 1, 5, 7], [64, 1, 0, 0, 0]), None);
        assert_eq!(of([16, 3, 1, 5, usize::MAX], [0, 1, 0, 0, 3]), None);
        assert_eq!(of([16, 3, 1, 5, MOST_COLUMNS], [0, 1, 0, 0, 3]), None);
    }
}

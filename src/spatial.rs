//! Windows sliding over the spatial axes of images: what convolution and pooling have in common.
//!
//! Inside, all of them have three spatial axes, depth, height and width; where a call has fewer, the first have size 1.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::error::{Dims, Error, Result};

/// Spatial axes of an image `[batch, channels, spatial…]`: 1, 2 or 3.
#[derive(Clone, Copy, Debug)]
pub struct Spatial<const S: usize>;

/// Images with this many spatial axes have rank `N`.
#[diagnostic::on_unimplemented(
    message = "images with these spatial axes do not have rank {N}",
    note = "1, 2 and 3 spatial axes go with tensors of rank 3, 4 and 5: [batch, channels, spatial…]"
)]
pub trait ImageRank<const N: usize>: sealed::Sealed {}

impl ImageRank<3> for Spatial<1> {}
impl ImageRank<4> for Spatial<2> {}
impl ImageRank<5> for Spatial<3> {}

mod sealed {
    pub trait Sealed {}
    impl<const S: usize> Sealed for super::Spatial<S> {}
}

/// Three spatial sizes from fewer, `fill` in front.
pub(crate) fn lift<X: Copy, const S: usize>(sizes: [X; S], fill: X) -> [X; 3] {
    const { assert!(S >= 1 && S <= 3) };
    std::array::from_fn(|axis| if axis + S < 3 { fill } else { sizes[axis + S - 3] })
}

/// A shape of rank 3 to 5 with three spatial axes.
pub(crate) fn lift_shape<const N: usize>(shape: [usize; N]) -> [usize; 5] {
    const { assert!(N >= 3 && N <= 5) };
    std::array::from_fn(|axis| {
        if axis < 2 {
            shape[axis]
        } else if axis + N < 7 {
            1
        } else {
            shape[axis + N - 5]
        }
    })
}

/// The inverse of [`lift_shape`].
pub(crate) fn lower<const N: usize>(shape: [usize; 5]) -> [usize; N] {
    std::array::from_fn(|axis| if axis < 2 { shape[axis] } else { shape[axis + 5 - N] })
}

/// A shape as a caller with `spatial` axes knows it.
pub(crate) fn named(spatial: usize, shape: &[usize; 5]) -> Vec<usize> {
    [&shape[..2], &shape[5 - spatial..]].concat()
}

/// An error unless the shape is the one expected.
pub(crate) fn expect(
    op: &'static str,
    arg: &'static str,
    spatial: usize,
    found: [usize; 5],
    expected: [usize; 5],
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::shape(op, arg, &named(spatial, &found), &named(spatial, &expected)))
}

/// Size, stride, dilation and padding of a window over three spatial axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub dilation: [usize; 3],
    /// Before and after.
    pub padding: [[usize; 2]; 3],
}

impl Sliding {
    /// From the sizes of a call, `spatial` of which the caller named: errors show those only.
    ///
    /// # Errors
    /// [`Error::Argument`] where a kernel, stride or dilation is 0.
    pub(crate) fn checked(self, op: &'static str, spatial: usize) -> Result<Self> {
        for (arg, sizes) in [("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)] {
            if sizes.contains(&0) {
                return Err(Error::argument(
                    op,
                    arg,
                    Dims::new(&sizes[3 - spatial..]),
                    "sizes of at least 1",
                ));
            }
        }
        Ok(self)
    }

    /// Stride and dilation are 1.
    pub(crate) fn is_plain(&self) -> bool {
        self.stride == [1; 3] && self.dilation == [1; 3]
    }

    /// What a window spans along each axis: d · (k − 1) + 1. `None` where that overflows.
    pub(crate) fn extent(&self) -> Option<[usize; 3]> {
        let mut extent = [0; 3];
        for (axis, extent) in extent.iter_mut().enumerate() {
            *extent = (self.kernel[axis] - 1).checked_mul(self.dilation[axis])?.checked_add(1)?;
        }
        Some(extent)
    }

    /// The padding with which there are ⌈in / stride⌉ windows, and at least one; where it is odd, the additional element is behind the image,
    /// or `before` it.
    ///
    /// # Errors
    /// [`Error::Overflow`] where sizes overflow.
    pub(crate) fn same(
        &self,
        op: &'static str,
        spatial: usize,
        image: [usize; 3],
        before: bool,
    ) -> Result<[[usize; 2]; 3]> {
        let overflow = || Error::Overflow { op, shape: Dims::new(&self.kernel[3 - spatial..]) };
        let extent = self.extent().ok_or_else(overflow)?;
        Ok(std::array::from_fn(|axis| {
            let (stride, image) = (self.stride[axis], image[axis]);
            let reach =
                (image.div_ceil(stride).max(1) - 1).saturating_mul(stride).saturating_add(extent[axis]);
            let all = reach.saturating_sub(image);
            let half = all / 2;
            if before { [all - half, half] } else { [half, all - half] }
        }))
    }

    /// Windows along each axis of an image: ⌊(in + before + after − d·(k − 1) − 1) / s⌋ + 1. With `ceil`, one more where
    /// something of the image is left over, unless it would begin behind the image and the padding before it.
    ///
    /// # Errors
    /// [`Error::Shape`] where a window is larger than the padded image, [`Error::Overflow`] where sizes overflow.
    pub(crate) fn output(
        &self,
        op: &'static str,
        spatial: usize,
        image: [usize; 3],
        ceil: bool,
    ) -> Result<[usize; 3]> {
        let overflow = |shape: [usize; 3]| Error::Overflow { op, shape: Dims::new(&shape[3 - spatial..]) };
        let extent = self.extent().ok_or_else(|| overflow(self.kernel))?;
        let mut padded = image;
        for (padded, padding) in padded.iter_mut().zip(self.padding) {
            *padded = padding
                .iter()
                .try_fold(*padded, |sum, &side| sum.checked_add(side))
                .filter(|&sum| isize::try_from(sum).is_ok())
                .ok_or_else(|| overflow(image))?;
        }
        if (0..3).any(|axis| extent[axis] > padded[axis]) {
            let show = |sizes: &[usize; 3]| Dims::new(&sizes[3 - spatial..]);
            return Err(Error::Shape {
                op,
                arg: "kernel (dilated)",
                found: show(&extent),
                expected: show(&padded),
            });
        }
        Ok(std::array::from_fn(|axis| {
            let (rest, stride) = (padded[axis] - extent[axis], self.stride[axis]);
            let more = ceil
                && !rest.is_multiple_of(stride)
                && (rest / stride + 1)
                    .checked_mul(stride)
                    .is_some_and(|start| start < image[axis] + self.padding[axis][0]);
            rest / stride + 1 + usize::from(more)
        }))
    }

    /// The taps of the window at `output` that lie inside an image of this size along `axis`.
    pub(crate) fn taps(&self, axis: usize, output: usize, image: usize) -> Range<usize> {
        let (start, dilation) = (output * self.stride[axis], self.dilation[axis]);
        let before = self.padding[axis][0];
        let first = before.saturating_sub(start).div_ceil(dilation);
        let end = (image + before).saturating_sub(start).div_ceil(dilation).min(self.kernel[axis]);
        first.min(end)..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sliding(kernel: usize, stride: usize, dilation: usize, padding: [usize; 2]) -> Sliding {
        Sliding {
            kernel: [1, 1, kernel],
            stride: [1, 1, stride],
            dilation: [1, 1, dilation],
            padding: [[0, 0], [0, 0], padding],
        }
    }

    #[test]
    fn sizes_and_taps_against_counting() {
        for image in 0..9usize {
            for kernel in 1..5 {
                for (stride, dilation) in [(1, 1), (2, 1), (3, 2), (1, 3), (5, 1)] {
                    for padding in [[0, 0], [1, 1], [0, 2], [3, 1]] {
                        let window = sliding(kernel, stride, dilation, padding);
                        let padded = image + padding[0] + padding[1];
                        let extent = dilation * (kernel - 1) + 1;
                        let starts = (0..padded).step_by(stride).filter(|start| start + extent <= padded);
                        match window.output("test", 1, [1, 1, image], false) {
                            Ok(output) => assert_eq!(output, [1, 1, starts.count()]),
                            Err(_) => assert_eq!(starts.count(), 0),
                        }
                        for output in 0..padded {
                            let inside = |tap: &usize| {
                                let at = output * stride + tap * dilation;
                                (padding[0]..padding[0] + image).contains(&at)
                            };
                            let expected: Vec<_> = (0..kernel).filter(inside).collect();
                            let found: Vec<_> = window.taps(2, output, image).collect();
                            assert_eq!(found, expected, "{window:?} {image} {output}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn ceil_never_starts_in_the_padding_behind() {
        // 4 pixels, kernel 2, stride 3: windows at 0 and, with ceil, at 3.
        assert_eq!(sliding(2, 3, 1, [0, 0]).output("test", 1, [1, 1, 4], true).unwrap()[2], 2);
        assert_eq!(sliding(2, 3, 1, [0, 0]).output("test", 1, [1, 1, 4], false).unwrap()[2], 1);
        // 3 pixels and 1 behind them: the window at 3 would begin in the padding.
        assert_eq!(sliding(2, 3, 1, [0, 1]).output("test", 1, [1, 1, 3], true).unwrap()[2], 1);
    }

    #[test]
    fn errors_name_what_the_caller_knows() {
        let error = sliding(5, 1, 1, [1, 1]).output("conv", 1, [1, 1, 2], false).unwrap_err();
        assert_eq!(error.to_string(), "conv: kernel (dilated) has shape [5], expected [4]");
        let error = sliding(2, 0, 1, [1, 1]).checked("conv", 1).unwrap_err();
        assert_eq!(error.to_string(), "conv: stride is [0], expected sizes of at least 1");
        let window = sliding(3, 1, usize::MAX, [0, 0]);
        assert!(matches!(window.output("conv", 1, [1, 1, 2], false), Err(Error::Overflow { .. })));
        let window = sliding(3, 1, 1, [usize::MAX, 0]);
        assert!(matches!(window.output("conv", 1, [1, 1, 2], false), Err(Error::Overflow { .. })));
    }
}

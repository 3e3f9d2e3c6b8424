//! Which elements of an image a window covers, and which windows cover an element.
#![forbid(unsafe_code)]

use crate::error::{Dims, Error, Result};
use crate::spatial::{self, Sliding};

/// What lies around an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Padding<const S: usize> {
    /// Before and behind.
    Sides([[usize; 2]; S]),
    /// As much as gives ⌈in / stride⌉ windows, and at least one; where it is odd, more of it behind, or with `lower` before.
    Same { lower: bool },
}

/// How windows are laid over an image, as the caller says it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Windows<const S: usize> {
    Sliding {
        kernel: [usize; S],
        /// The kernel's sizes where not given.
        stride: Option<[usize; S]>,
        dilation: [usize; S],
        padding: Padding<S>,
        ceil: bool,
    },
    /// As many windows as given along each axis.
    Adaptive([usize; S]),
    /// One window, the image.
    Global,
}

impl<const S: usize> Windows<S> {
    pub(super) const fn sliding(kernel: [usize; S]) -> Self {
        Self::Sliding {
            kernel,
            stride: None,
            dilation: [1; S],
            padding: Padding::Sides([[0; 2]; S]),
            ceil: false,
        }
    }

    /// The windows along each axis of an image.
    pub(super) fn axes(&self, op: &'static str, image: [usize; 3]) -> Result<[Axis; 3]> {
        let Self::Sliding { kernel, stride, dilation, padding, ceil } = *self else {
            let outputs = if let Self::Adaptive(outputs) = *self { outputs } else { [1; S] };
            let outputs = spatial::lift(outputs, 1);
            if (0..3).any(|axis| image[axis] == 0 && outputs[axis] > 0) {
                let sizes = Dims::new(&image[3 - S..]);
                return Err(Error::argument(op, "the image's size", sizes, "sizes of at least 1"));
            }
            return Ok([0, 1, 2].map(|axis| Axis::adaptive(image[axis], outputs[axis])));
        };
        let mut sliding = Sliding {
            kernel: spatial::lift(kernel, 1),
            stride: spatial::lift(stride.unwrap_or(kernel), 1),
            dilation: spatial::lift(dilation, 1),
            padding: [[0; 2]; 3],
        }
        .checked(op, S)?;
        sliding.padding = match padding {
            Padding::Sides(sides) => spatial::lift(sides, [0; 2]),
            Padding::Same { lower } => sliding.same(op, S, image, lower)?,
        };
        let outputs = sliding.output(op, S, image, ceil)?;
        Ok([0, 1, 2].map(|axis| {
            Axis::Sliding(Slide {
                kernel: sliding.kernel[axis],
                stride: sliding.stride[axis],
                dilation: sliding.dilation[axis],
                padding: sliding.padding[axis],
                image: image[axis],
                outputs: outputs[axis],
            })
        }))
    }
}

/// Windows along one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Axis {
    Sliding(Slide),
    /// Window i of n covers the elements from ⌊i · image / n⌋ to before ⌈(i + 1) · image / n⌉.
    Adaptive {
        image: usize,
        outputs: usize,
    },
}

/// Windows of one size, evenly spaced. All sizes fit: the padded image has been counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slide {
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub padding: [usize; 2],
    pub image: usize,
    pub outputs: usize,
}

/// The part of a window inside the image: positions `first`, `first + step`, …
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Taps {
    pub first: usize,
    pub count: usize,
    pub step: usize,
}

impl Taps {
    pub(super) fn positions(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |tap| self.first + tap * self.step)
    }

    /// The position behind the last.
    pub(super) fn end(self) -> usize {
        if self.count == 0 { self.first } else { self.first + (self.count - 1) * self.step + 1 }
    }
}

/// ⌈a / b⌉; most dilations are 1, and divisions slow.
#[inline(always)]
fn div_ceil(a: usize, b: usize) -> usize {
    if b == 1 { a } else { a.div_ceil(b) }
}

/// a · b / c for a ≤ c: at most b, but the product may be larger than a size.
fn scale(a: usize, b: usize, c: usize, up: bool) -> usize {
    let product = a as u128 * b as u128 + if up { c as u128 - 1 } else { 0 };
    (product / c as u128) as usize
}

impl Axis {
    /// Even windows without overlap are known as such: they have faster paths.
    fn adaptive(image: usize, outputs: usize) -> Self {
        if outputs > 0 && image.is_multiple_of(outputs) && image > 0 {
            let kernel = image / outputs;
            return Self::Sliding(Slide {
                kernel,
                stride: kernel,
                dilation: 1,
                padding: [0; 2],
                image,
                outputs,
            });
        }
        Self::Adaptive { image, outputs }
    }

    /// One window over all elements.
    pub(super) fn all(image: usize) -> Self {
        Self::adaptive(image, 1)
    }

    /// A window for each element.
    pub(super) fn each(image: usize) -> Self {
        Self::adaptive(image, image)
    }

    /// True for one window without padding over all elements, which are some.
    pub(super) fn is_all(&self) -> bool {
        match *self {
            Self::Sliding(Slide { kernel, dilation, padding, image, outputs, .. }) => {
                outputs == 1 && kernel == image && dilation == 1 && padding == [0; 2]
            }
            Self::Adaptive { .. } => false,
        }
    }

    pub(super) fn image(&self) -> usize {
        match *self {
            Self::Sliding(slide) => slide.image,
            Self::Adaptive { image, .. } => image,
        }
    }

    pub(super) fn outputs(&self) -> usize {
        match *self {
            Self::Sliding(slide) => slide.outputs,
            Self::Adaptive { outputs, .. } => outputs,
        }
    }

    /// The image's elements in window `output`, which exists.
    #[inline(always)]
    pub(super) fn taps(&self, output: usize) -> Taps {
        match *self {
            Self::Sliding(Slide { kernel, stride, dilation, padding, image, .. }) => {
                let (start, before) = (output * stride, padding[0]);
                let low = div_ceil(before.saturating_sub(start), dilation);
                let high = div_ceil((image + before).saturating_sub(start), dilation).min(kernel);
                if low >= high {
                    return Taps { first: 0, count: 0, step: 1 };
                }
                Taps { first: start + low * dilation - before, count: high - low, step: dilation }
            }
            Self::Adaptive { image, outputs } => {
                let first = scale(output, image, outputs, false);
                Taps { first, count: scale(output + 1, image, outputs, true) - first, step: 1 }
            }
        }
    }

    /// Elements of window `output` in the image and, `with_padding`, in the padding around it.
    pub(super) fn count(&self, output: usize, with_padding: bool) -> usize {
        match *self {
            Self::Sliding(Slide { kernel, stride, dilation, padding: [before, after], image, .. })
                if with_padding =>
            {
                let room = (before + image + after).saturating_sub(output * stride);
                div_ceil(room, dilation).min(kernel)
            }
            _ => self.taps(output).count,
        }
    }

    /// The windows that cover the element at `position`, in ascending order.
    #[inline(always)]
    pub(super) fn covering(&self, position: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let (windows, at, stride, dilation) = match *self {
            Self::Sliding(Slide { kernel, stride, dilation, padding, outputs, .. }) => {
                let at = position + padding[0];
                let low = at.saturating_sub((kernel - 1) * dilation).div_ceil(stride);
                (low..(at / stride + 1).min(outputs), at, stride, dilation)
            }
            Self::Adaptive { image, outputs } => {
                let low = scale(position, outputs, image, false);
                (low..scale(position + 1, outputs, image, true).min(outputs), 0, 1, 1)
            }
        };
        windows.filter(move |window| dilation == 1 || (at - window * stride).is_multiple_of(dilation))
    }

    /// About how far apart windows are and what each spans, both at most the image.
    pub(super) fn pace(&self) -> [usize; 2] {
        match *self {
            Self::Sliding(Slide { kernel, stride, dilation, image, .. }) => {
                [stride.min(image.max(1)), ((kernel - 1).saturating_mul(dilation) + 1).min(image.max(1))]
            }
            Self::Adaptive { image, outputs } => {
                let stride = image.div_ceil(outputs.max(1)).max(1);
                [stride, stride + 1]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_counts_and_covers_agree_with_the_definition() {
        for image in 0..8usize {
            for kernel in 1..4 {
                for (stride, dilation) in [(1, 1), (2, 1), (3, 2), (1, 3), (5, 1)] {
                    for padding in [[0, 0], [1, 1], [0, 2], [3, 1]] {
                        for ceil in [false, true] {
                            let windows = Windows::Sliding {
                                kernel: [kernel],
                                stride: Some([stride]),
                                dilation: [dilation],
                                padding: Padding::Sides([padding]),
                                ceil,
                            };
                            let Ok([_, _, axis]) = windows.axes("test", [1, 1, image]) else { continue };
                            let inside = |output: usize, before: usize, size: usize| -> Vec<usize> {
                                let at = |tap: usize| output * stride + tap * dilation;
                                let range = before..before + size;
                                (0..kernel)
                                    .map(at)
                                    .filter(|at| range.contains(at))
                                    .map(|at| at - before)
                                    .collect()
                            };
                            check(&axis, image, |output| inside(output, padding[0], image));
                            for output in 0..axis.outputs() {
                                let all = inside(output, 0, padding[0] + image + padding[1]).len();
                                assert_eq!(axis.count(output, true), all);
                            }
                        }
                    }
                }
            }
            for outputs in 0..9 {
                if image == 0 && outputs > 0 {
                    assert!(Windows::Adaptive([outputs]).axes("test", [1, 1, image]).is_err());
                    continue;
                }
                let [_, _, axis] = Windows::Adaptive([outputs]).axes("test", [1, 1, image]).unwrap();
                let window = |output: usize| {
                    let start = (output as f64 * image as f64 / outputs as f64).floor() as usize;
                    let end = ((output + 1) as f64 * image as f64 / outputs as f64).ceil() as usize;
                    (start..end).collect()
                };
                check(&axis, image, window);
            }
        }
    }

    fn check(axis: &Axis, image: usize, expected: impl Fn(usize) -> Vec<usize>) {
        for output in 0..axis.outputs() {
            let taps = axis.taps(output);
            assert_eq!(taps.positions().collect::<Vec<_>>(), expected(output), "{axis:?} {output}");
            assert_eq!(taps.end(), expected(output).last().map_or(taps.first, |last| last + 1));
            assert_eq!(axis.count(output, false), taps.count);
        }
        for position in 0..image {
            let found: Vec<_> = axis.covering(position).collect();
            let covers = |output: &usize| expected(*output).contains(&position);
            assert_eq!(found, (0..axis.outputs()).filter(covers).collect::<Vec<_>>(), "{axis:?} {position}");
        }
    }
}

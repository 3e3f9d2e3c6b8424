//! Sizes of a convolution, checked.
#![forbid(unsafe_code)]

use crate::element::Element;
use crate::error::{Dims, Error, Result};
use crate::spatial::{self, Sliding};
pub(super) use crate::spatial::{expect, lift_shape as lift, lower, named};
use crate::tensor::TensorView;

/// Zeros around an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Padding<const S: usize> {
    /// Before and behind.
    Sides([[usize; 2]; S]),
    /// ⌈in / stride⌉ outputs, and at least one; with `lower` the additional zero is on the other side.
    Same { lower: bool },
    /// Every window that touches the image.
    Full,
}

/// What convolution and its transpose have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Geometry<const S: usize> {
    pub stride: [usize; S],
    pub dilation: [usize; S],
    pub padding: Padding<S>,
    pub groups: usize,
    pub flipped: bool,
}

/// Sizes of a checked call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub sliding: Sliding,
    /// `[batch, c_out, spatial…]`.
    pub output: [usize; 5],
}

impl<const S: usize> Geometry<S> {
    pub(super) fn new() -> Self {
        Self {
            stride: [1; S],
            dilation: [1; S],
            padding: Padding::Sides([[0; 2]; S]),
            groups: 1,
            flipped: false,
        }
    }

    /// Groups must divide a number of channels.
    pub(super) fn check_groups(&self, op: &'static str, arg: &'static str, channels: usize) -> Result<()> {
        if self.groups == 0 {
            return Err(Error::argument(op, "groups", 0, "at least 1"));
        }
        if channels.is_multiple_of(self.groups) {
            return Ok(());
        }
        let value = format!("{channels} in {} groups", self.groups);
        Err(Error::argument(op, arg, value, "a multiple of the groups"))
    }

    /// The window, whose padding is not known yet.
    pub(super) fn sliding(&self, op: &'static str, kernel: [usize; 3]) -> Result<Sliding> {
        let (stride, dilation) = (spatial::lift(self.stride, 1), spatial::lift(self.dilation, 1));
        let sliding = Sliding { kernel, stride, dilation, padding: [[0; 2]; 3] }.checked(op, S)?;
        sliding
            .extent()
            .filter(|extent| extent.iter().all(|&extent| extent < isize::MAX as usize / 4))
            .ok_or_else(|| Error::Overflow { op, shape: Dims::new(&kernel[3 - S..]) })?;
        Ok(sliding)
    }

    /// The window with its padding for an image.
    pub(super) fn window(&self, op: &'static str, kernel: [usize; 3], image: [usize; 3]) -> Result<Sliding> {
        let mut sliding = self.sliding(op, kernel)?;
        let extent = sliding.extent().unwrap_or(kernel);
        sliding.padding = match self.padding {
            Padding::Sides(sides) => spatial::lift(sides, [0; 2]),
            Padding::Full => extent.map(|extent| [extent - 1; 2]),
            Padding::Same { lower } => sliding.same(op, S, image, self.flipped != lower)?,
        };
        Ok(sliding)
    }

    /// Checks a forward call: X, W and the length of b.
    pub(super) fn forward(
        &self,
        op: &'static str,
        x: [usize; 5],
        w: [usize; 5],
        bias: Option<usize>,
    ) -> Result<Sizes> {
        let ([batch, c_in, image @ ..], [c_out, inputs, kernel @ ..]) = (x, w);
        // Packed weights may have more axes than the images.
        if kernel[..3 - S].iter().any(|&size| size != 1) {
            return Err(Error::shape(op, "w", &w, &named(S, &w)));
        }
        self.check_groups(op, "c_in", c_in)?;
        self.check_groups(op, "c_out", c_out)?;
        if inputs != c_in / self.groups {
            let mut expected = w;
            expected[1] = c_in / self.groups;
            return Err(Error::shape(op, "w", &named(S, &w), &named(S, &expected)));
        }
        if bias.is_some_and(|len| len != c_out) {
            return Err(Error::shape(op, "bias", &[bias.unwrap_or(0)], &[c_out]));
        }
        let sliding = self.window(op, kernel, image)?;
        let [d, h, w] = sliding.output(op, S, image, false)?;
        Ok(Sizes { sliding, output: [batch, c_out, d, h, w] })
    }
}

/// The greatest common divisor.
pub(super) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The kernel turned by 180°.
pub(super) fn flip<T: Element>(w: TensorView<'_, T, 5>, flipped: bool) -> Result<TensorView<'_, T, 5>> {
    if flipped { w.flip(2)?.flip(3)?.flip(4) } else { Ok(w) }
}

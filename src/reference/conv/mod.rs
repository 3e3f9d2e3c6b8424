//! Convolution element by element, and its gradients in both ways that textbooks give.
//!
//! | function | from |
//! |---|---|
//! | [`forward`], [`transposed`] | the formula |
//! | [`naive`] | stride zeros put into dY, padding, the kernel turned by 180°, cross-correlation |
//! | [`columns`] | im2col, the gradients of the dense operation, col2im |
//!
//! Images are `[batch, channels, spatial…]`, weights `[c_out, c_in / groups, kernel…]`.

pub mod columns;
pub mod naive;

use super::{at, expect};
use crate::element::Element;
use crate::error::{Dims, Error, Result};
use crate::tensor::{Tensor, TensorView};

/// How a kernel slides over `S` spatial axes.
///
/// ```
/// use tilewise::{TensorView, reference::conv::{self, Geometry}};
/// let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [1, 1, 3])?;
/// let w = TensorView::from_slice(&[10.0, 1.0], [1, 1, 2])?;
/// let y = conv::forward(&Geometry { padding: [[1, 0]], ..Geometry::new() }, x, w, None)?;
/// assert_eq!(y.as_slice(), [1.0, 12.0, 23.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry<const S: usize> {
    /// Steps between neighbouring windows.
    pub stride: [usize; S],
    /// Zeros before and after the image.
    pub padding: [[usize; 2]; S],
    /// Steps between neighbouring taps of the kernel.
    pub dilation: [usize; S],
    /// Parts of the channels that have nothing to do with each other.
    pub groups: usize,
    /// True convolution: the kernel turned by 180°.
    pub flipped: bool,
}

impl<const S: usize> Geometry<S> {
    /// Stride 1, no padding, dense, one group, cross-correlation.
    pub fn new() -> Self {
        Self { stride: [1; S], padding: [[0, 0]; S], dilation: [1; S], groups: 1, flipped: false }
    }

    fn lift(&self) -> Geometry<3> {
        Geometry {
            stride: lift(self.stride, 1),
            padding: lift(self.padding, [0, 0]),
            dilation: lift(self.dilation, 1),
            groups: self.groups,
            flipped: self.flipped,
        }
    }
}

impl<const S: usize> Default for Geometry<S> {
    fn default() -> Self {
        Self::new()
    }
}

/// Three spatial sizes from fewer: those in front are `fill`.
fn lift<X: Copy, const S: usize>(sizes: [X; S], fill: X) -> [X; 3] {
    const { assert!(S >= 1 && S <= 3) };
    let mut lifted = [fill; 3];
    lifted[3 - S..].copy_from_slice(&sizes);
    lifted
}

/// A lifted image or weight as the caller knows it.
fn lower<T: Copy, const N: usize>(tensor: Tensor<T, 5>) -> Result<Tensor<T, N>> {
    let shape = tensor.shape();
    tensor.reshape(std::array::from_fn(|axis| if axis < 2 { shape[axis] } else { shape[5 - N + axis] }))
}

impl Geometry<3> {
    /// d · (k − 1) + 1.
    fn extent(&self, kernel: [usize; 3]) -> Result<[usize; 3]> {
        if self.dilation.contains(&0) {
            return Err(Error::argument("reference::conv", "dilation", 0, "at least 1"));
        }
        let mut extent = kernel;
        for (axis, extent) in extent.iter_mut().enumerate() {
            *extent = kernel[axis]
                .checked_sub(1)
                .and_then(|steps| steps.checked_mul(self.dilation[axis])?.checked_add(1))
                .ok_or_else(|| overflow(&kernel))?;
        }
        Ok(extent)
    }

    /// ⌊(in + before + after − d · (k − 1) − 1) / s⌋ + 1.
    fn output(&self, image: [usize; 3], kernel: [usize; 3]) -> Result<[usize; 3]> {
        let (mut output, mut padded) = (self.extent(kernel)?, image);
        for (padded, [before, after]) in padded.iter_mut().zip(self.padding) {
            let sum = padded.checked_add(before).and_then(|sum| sum.checked_add(after));
            *padded = sum.ok_or_else(|| overflow(&image))?;
        }
        if (0..3).any(|axis| output[axis] > padded[axis]) {
            return Err(Error::shape("reference::conv", "kernel (dilated)", &output, &padded));
        }
        for axis in 0..3 {
            output[axis] = (padded[axis] - output[axis])
                .checked_div(self.stride[axis])
                .ok_or_else(|| Error::argument("reference::conv", "stride", 0, "at least 1"))?
                + 1;
        }
        Ok(output)
    }

    /// The index of the tap that is multiplied with what tap `tap` of the window sees.
    fn tap(&self, tap: [usize; 3], kernel: [usize; 3]) -> [usize; 3] {
        if self.flipped { std::array::from_fn(|axis| kernel[axis] - 1 - tap[axis]) } else { tap }
    }

    /// The pixel under a tap of a window; `None` in the padding.
    fn pixel(&self, window: [usize; 3], tap: [usize; 3], image: [usize; 3]) -> Option<[usize; 3]> {
        let mut pixel = [0; 3];
        for (axis, pixel) in pixel.iter_mut().enumerate() {
            let padded = window[axis] * self.stride[axis] + tap[axis] * self.dilation[axis];
            *pixel = padded.checked_sub(self.padding[axis][0]).filter(|&at| at < image[axis])?;
        }
        Some(pixel)
    }

    /// The groups divide channels that go together.
    fn check(&self, c_in: usize, weight: [usize; 5]) -> Result<()> {
        let ([c_out, per_group, ..], groups) = (weight, self.groups);
        if groups == 0 || !c_in.is_multiple_of(groups) || !c_out.is_multiple_of(groups) {
            return Err(Error::argument("reference::conv", "groups", groups, "a divisor of both channels"));
        }
        expect("reference::conv", "weight", &[c_out, per_group], &[c_out, c_in / groups])
    }
}

fn overflow(sizes: &[usize]) -> Error {
    Error::Overflow { op: "reference::conv", shape: Dims::new(sizes) }
}

/// The last three sizes.
fn spatial([_, _, d, h, w]: [usize; 5]) -> [usize; 3] {
    [d, h, w]
}

/// All indices of three axes, in row-major order.
fn indices([d, h, w]: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..d).flat_map(move |z| (0..h).flat_map(move |y| (0..w).map(move |x| [z, y, x])))
}

/// y\[o\] = b + Σ over channels of the group and taps of w\[u\] · x\[o·s + u·d − p\], where x is 0 outside the image; with
/// `flipped`, w[k − 1 − u]. `[batch, c_out, out…]` from x `[batch, c_in, in…]`, w `[c_out, c_in / groups, k…]`.
///
/// # Errors
/// [`Error::Shape`] where shapes do not fit, [`Error::Argument`] where the groups do not divide the channels,
/// [`Error::Overflow`] where sizes do, [`Error::Alloc`] where there is no memory.
pub fn forward<T: Element, const S: usize, const N: usize>(
    geometry: &Geometry<S>,
    x: TensorView<'_, T, N>,
    weight: TensorView<'_, T, N>,
    bias: Option<TensorView<'_, T, 1>>,
) -> Result<Tensor<f64, N>> {
    const { assert!(N == S + 2) };
    let (g, x, weight) = (geometry.lift(), x.lift(), weight.lift());
    let ([batch, c_in, ..], [c_out, per_group, ..]) = (x.shape(), weight.shape());
    let (image, kernel) = (spatial(x.shape()), spatial(weight.shape()));
    g.check(c_in, weight.shape())?;
    if let Some(bias) = bias {
        expect("reference::conv", "bias", &bias.shape(), &[c_out])?;
    }
    let [od, oh, ow] = g.output(image, kernel)?;
    lower(Tensor::from_fn([batch, c_out, od, oh, ow], |[sample, output, z, y, column]| {
        let first = output / (c_out / g.groups) * per_group;
        let mut sum = bias.map_or(0.0, |bias| at(bias, [output]));
        for channel in 0..per_group {
            for tap in indices(kernel) {
                let [u, v, w] = g.tap(tap, kernel);
                // The padding is multiplied too: 0 times an infinite weight is NaN.
                let pixel = g.pixel([z, y, column], tap, image);
                let pixel =
                    pixel.map_or(0.0, |[z, y, column]| at(x, [sample, first + channel, z, y, column]));
                sum += at(weight, [output, channel, u, v, w]) * pixel;
            }
        }
        sum
    })?)
}

/// y\[i·s + u·d − p\] = b + Σ of x\[i\] · w\[u\] over all pixels i, taps u and channels that come to lie there: the transpose of
/// [`forward`] as a linear map from images of the output's size. `[batch, c_out, out…]` from x `[batch, c_in, in…]`
/// and w `[c_in, c_out / groups, k…]`; out is (in − 1) · s − before − after + d · (k − 1) + 1 + `output_padding`.
///
/// # Errors
/// As [`forward`].
///
/// ```
/// use tilewise::{TensorView, reference::conv::{self, Geometry}};
/// let x = TensorView::from_slice(&[1.0, 2.0], [1, 1, 2])?;
/// let w = TensorView::from_slice(&[1.0, 10.0, 100.0], [1, 1, 3])?;
/// let y = conv::transposed(&Geometry { stride: [2], ..Geometry::new() }, [1], x, w, None)?;
/// assert_eq!(y.as_slice(), [1.0, 10.0, 102.0, 20.0, 200.0, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn transposed<T: Element, const S: usize, const N: usize>(
    geometry: &Geometry<S>,
    output_padding: [usize; S],
    x: TensorView<'_, T, N>,
    weight: TensorView<'_, T, N>,
    bias: Option<TensorView<'_, T, 1>>,
) -> Result<Tensor<f64, N>> {
    const { assert!(N == S + 2) };
    let (g, x, weight) = (geometry.lift(), x.lift(), weight.lift());
    let ([batch, c_in, ..], [_, per_group, ..]) = (x.shape(), weight.shape());
    let (windows, kernel) = (spatial(x.shape()), spatial(weight.shape()));
    let c_out = per_group.checked_mul(g.groups).ok_or_else(|| overflow(&weight.shape()))?;
    expect("reference::conv", "weight", &weight.shape()[..1], &[c_in])?;
    g.check(c_out, weight.shape())?;
    if let Some(bias) = bias {
        expect("reference::conv", "bias", &bias.shape(), &[c_out])?;
    }
    let (extent, extra) = (g.extent(kernel)?, lift(output_padding, 0));
    let mut image = [0; 3];
    for (axis, size) in image.iter_mut().enumerate() {
        let [before, after] = g.padding[axis];
        // Of nothing comes nothing.
        let Some(last) = windows[axis].checked_sub(1) else { continue };
        let reach = last
            .checked_mul(g.stride[axis])
            .and_then(|n| n.checked_add(extent[axis])?.checked_add(extra[axis]));
        let cut = reach.and_then(|reach| reach.checked_sub(before)?.checked_sub(after));
        *size = cut.ok_or_else(|| overflow(&windows))?;
    }
    let [d, h, w] = image;
    let mut y = Tensor::from_fn([batch, c_out, d, h, w], |[_, output, ..]| {
        bias.map_or(0.0, |bias| at(bias, [output]))
    })?;
    for sample in 0..batch {
        for input in 0..c_in {
            let first = input / (c_in / g.groups) * per_group;
            for output in 0..per_group {
                for window in indices(windows) {
                    for tap in indices(kernel) {
                        let [u, v, w] = g.tap(tap, kernel);
                        let product = at(x, [sample, input, window[0], window[1], window[2]])
                            * at(weight, [input, output, u, v, w]);
                        let pixel = g.pixel(window, tap, image);
                        let pixel = pixel.and_then(|[z, r, c]| y.get_mut([sample, first + output, z, r, c]));
                        pixel.into_iter().for_each(|y| *y += product);
                    }
                }
            }
        }
    }
    lower(y)
}

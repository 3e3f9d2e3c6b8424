//! Transposed convolution, and the gradient for the input, which is the same thing.
//!
//! An element at position j along an axis takes in w\[u\] · z\[i\] for j + p − u·d = i·s. The positions of one residue
//! r = (j + p) mod s take the taps with u·d ≡ r (mod s): an arithmetic progression of step s / gcd(s, d), or none. For
//! those, i grows by 1 from one position of the residue to the next and falls by d / gcd(s, d) from tap to tap: a
//! correlation with stride 1 of z with every (s / gcd)-th tap in reverse order.
#![forbid(unsafe_code)]

mod backward;
mod columns;
mod depthwise;
mod in_place;

use self::columns::Columns;
use self::depthwise::Depthwise;
use self::in_place::InPlace;
use super::Algorithm;
use super::backward::trace;
use super::correlate::{self, Call, Operand};
use super::depthwise::Reach;
use super::emit::Finish;
use super::geometry::{self, Geometry, Padding, flip, gcd};
use super::weights::{Filter, Taps};
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Dims, Error, Result};
use crate::machine::{self, Isa};
use crate::spatial::{self, ImageRank, Sliding, Spatial};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Positions of one residue along an axis, as a correlation.
pub(super) struct Residue {
    /// The first position; the others follow in steps of the stride.
    pub(super) first: usize,
    /// The first tap, their distance and number.
    tap: usize,
    step: usize,
    taps: usize,
    /// What the last tap, which is the first in reverse order, reads for the first position.
    start: isize,
    dilation: usize,
}

/// The least n with n · `factor` ≡ `residue` (mod `modulus`), by Euclid's algorithm: a search would take as long as the kernel
/// for each position.
fn first_multiple(factor: usize, residue: usize, modulus: usize) -> Option<usize> {
    let divisor = gcd(modulus, factor);
    if !residue.is_multiple_of(divisor) {
        return None;
    }
    let modulus = (modulus / divisor) as i128;
    // The inverse of the factor: `old.1 · factor ≡ old.0` all the way down to 1.
    let (mut old, mut new) = ((modulus, 0i128), ((factor / divisor) as i128 % modulus, 1i128));
    while new.0 != 0 {
        let quotient = old.0 / new.0;
        (old, new) = (new, (old.0 - quotient * new.0, old.1 - quotient * new.1));
    }
    let least = ((residue / divisor) as i128 % modulus) * old.1.rem_euclid(modulus) % modulus;
    usize::try_from(least).ok()
}

/// The residues of an axis of `size` positions that have any.
pub(super) fn residues(sliding: &Sliding, axis: usize, size: usize) -> impl Iterator<Item = Residue> {
    let (kernel, stride) = (sliding.kernel[axis], sliding.stride[axis]);
    let (dilation, before) = (sliding.dilation[axis], sliding.padding[axis][0]);
    let divisor = gcd(stride, dilation);
    let step = stride / divisor;
    (0..stride.min(size)).map(move |first| {
        let residue = (first + before) % stride;
        let Some(tap) = first_multiple(dilation, residue, stride).filter(|&tap| tap < kernel) else {
            return Residue { first, tap: 0, step: 1, taps: 0, start: 0, dilation: 1 };
        };
        let taps = (kernel - tap).div_ceil(step);
        let dilation_out = dilation / divisor;
        let at = (first + before) as isize - (tap * dilation) as isize;
        let start = at.div_euclid(stride as isize) - ((taps - 1) * dilation_out) as isize;
        Residue { first, tap, step, taps, start, dilation: dilation_out }
    })
}

/// y\[n, c, j\] = finish(Σ over o, u of w\[o, c, u\] · z\[n, o, i\]): Z `[batch, groups · outer, …]`, W `[groups · outer, inner,
/// kernel…]`, Y `[batch, groups · inner, …]`.
#[derive(Clone, Copy)]
pub struct Scatter<'a, T> {
    pub(super) op: &'static str,
    pub(super) isa: Isa,
    pub(super) z: TensorView<'a, T, 5>,
    pub(super) w: TensorView<'a, T, 5>,
    pub(super) groups: usize,
    pub(super) sliding: Sliding,
    pub(super) finish: Finish<'a, T>,
    pub(super) algorithm: Algorithm,
}

impl<'a, T: Element> Scatter<'a, T> {
    /// Computes `y`.
    pub(super) fn run(&self, mut y: TensorViewMut<'_, T, 5>) -> Result<()> {
        if y.is_empty() {
            // Its other sizes may be anything.
            return Ok(());
        }
        if let Some(call) = Columns::new(self, &y) {
            return call.run(y);
        }
        if let Some(call) = Depthwise::new(self, &y) {
            return call.run(y);
        }
        if let Some(call) = self.by_images(y.shape(), y.strides())? {
            return call.run(y);
        }
        if let Some(call) = InPlace::new(self, &y) {
            return call.run(y);
        }
        let sliding = &self.sliding;
        let [_, _, depth, height, width] = y.shape();
        for d in residues(sliding, 0, depth) {
            for h in residues(sliding, 1, height) {
                for w in residues(sliding, 2, width) {
                    let axes = [&d, &h, &w];
                    let (mut y, mut finish) = (y.view_mut(), self.finish);
                    for (axis, residue) in axes.iter().enumerate() {
                        let first = residue.first;
                        y = y.slice(2 + axis, first.., sliding.stride[axis])?;
                        if let Some(residual) = finish.residual {
                            finish.residual =
                                Some(residual.slice(2 + axis, first.., sliding.stride[axis])?);
                        }
                    }
                    self.residue(axes, self.z, finish, y)?;
                }
            }
        }
        Ok(())
    }

    /// Nothing happens to the sums.
    fn is_plain(&self) -> bool {
        let Finish { bias, residual, activation } = self.finish;
        bias.is_none() && residual.is_none() && activation == Activation::Identity
    }

    /// Depth is as if there was none: each plane of Y is one of Z.
    pub(super) fn is_flat(&self) -> bool {
        let Sliding { kernel, stride, padding, .. } = self.sliding;
        kernel[0] == 1 && stride[0] == 1 && padding[0] == [0; 2]
    }

    /// As [`correlate::winograd`], for `y`.
    pub(super) fn winograd(&self, [images, channels, image @ ..]: [usize; 5]) -> usize {
        let ones = [self.sliding.stride, self.sliding.dilation] == [[1; 3]; 2];
        let positions = image.iter().fold(images, |product, &size| product.saturating_mul(size));
        let [_, _, d, h, w] = self.w.shape();
        let outer = self.z.shape()[1] / self.groups;
        correlate::winograd(self.algorithm, [channels, outer, d, h, w], ones, Some(positions))
    }

    /// The weights that one residue along each axis sees, and where it reads Z.
    pub(super) fn seen(&self, axes: [&Residue; 3]) -> Result<(Filter<'a, T>, Reach)> {
        let mut w = self.w;
        let mut taps = axes.map(|residue| {
            let Residue { tap: first, step, taps: count, .. } = *residue;
            Taps { first, step, count, backwards: true }
        });
        if axes.iter().any(|residue| residue.taps == 0) {
            // No tap falls there: nothing is summed up.
            w = w.slice(0, ..0, 1)?;
            taps = [Taps { first: 0, step: 1, count: 1, backwards: false }; 3];
        }
        let reach = Reach {
            kernel: taps.map(|taps| taps.count),
            stride: [1; 3],
            dilation: axes.map(|residue| residue.dilation),
            start: axes.map(|residue| residue.start),
        };
        Ok((Filter::transposed(w, taps), reach))
    }

    /// The positions `y` of one residue along each axis, from images of Z.
    fn residue(
        &self,
        axes: [&Residue; 3],
        mut z: TensorView<'_, T, 5>,
        finish: Finish<'_, T>,
        y: TensorViewMut<'_, T, 5>,
    ) -> Result<()> {
        let (filter, reach) = self.seen(axes)?;
        if filter.sizes(1)[1] == 0 {
            z = z.slice(1, ..0, 1)?;
        }
        let Self { op, isa, groups, algorithm, .. } = *self;
        let Reach { kernel, stride, dilation, start } = reach;
        let w = Operand::View(filter);
        Call { op, isa, x: z, w, groups, kernel, stride, dilation, start, finish, algorithm }.run(y)
    }
}

/// Options of a transposed convolution over `S` spatial axes, also called deconvolution: plain data.
///
/// It is the gradient of [`Convolution`](super::Convolution) for its input as an operation of its own. X is
/// `[batch, c_in, spatial…]`, W `[c_in, c_out / groups, kernel…]`, and an axis of Y has
/// (in − 1)·s − p − p′ + d·(k − 1) + 1 + output padding elements. Formula and names are those of V. Dumoulin and F. Visin,
/// "A guide to convolution arithmetic for deep learning" (2016).
///
/// ```
/// use tilewise::{TensorView, conv::ConvolutionTranspose};
/// let x = TensorView::from_slice(&[1.0f32, 2.0], [1, 1, 2])?;
/// let w = TensorView::from_slice(&[1.0, 10.0, 100.0], [1, 1, 3])?;
/// let y = ConvolutionTranspose::<1>::new().stride([2]).forward(x, w, None)?;
/// assert_eq!(y.as_slice(), [1.0, 10.0, 102.0, 20.0, 200.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvolutionTranspose<const S: usize> {
    geometry: Geometry<S>,
    output_padding: [usize; S],
    activation: Activation,
    algorithm: Algorithm,
}

impl<const S: usize> Default for ConvolutionTranspose<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const S: usize> ConvolutionTranspose<S> {
    /// Stride and dilation 1, no padding, one group, no activation.
    pub fn new() -> Self {
        Self {
            geometry: Geometry::new(),
            output_padding: [0; S],
            activation: Activation::Identity,
            algorithm: Algorithm::Auto,
        }
    }

    /// Steps in Y between neighbours in X.
    pub fn stride(mut self, stride: [usize; S]) -> Self {
        self.geometry.stride = stride;
        self
    }

    /// Steps between neighbouring elements of a window.
    pub fn dilation(mut self, dilation: [usize; S]) -> Self {
        self.geometry.dilation = dilation;
        self
    }

    /// What is cut off before and behind along each axis.
    pub fn padding(self, padding: [usize; S]) -> Self {
        self.padding_sides(padding.map(|padding| [padding; 2]))
    }

    /// What is cut off before and behind along each axis, which may differ.
    pub fn padding_sides(mut self, padding: [[usize; 2]; S]) -> Self {
        self.geometry.padding = Padding::Sides(padding);
        self
    }

    /// Elements more behind, less than the stride or the dilation: with a stride, several sizes of Y belong to one of X.
    pub fn output_padding(self, output_padding: [usize; S]) -> Self {
        Self { output_padding, ..self }
    }

    /// Groups of channels that are convolved by themselves.
    pub fn groups(mut self, groups: usize) -> Self {
        self.geometry.groups = groups;
        self
    }

    /// The kernel is turned by 180°. Off unless set.
    pub fn flipped(mut self, flipped: bool) -> Self {
        self.geometry.flipped = flipped;
        self
    }

    pub(crate) fn group_count(&self) -> usize {
        self.geometry.groups
    }

    pub(crate) fn is_affine(&self) -> bool {
        self.activation == Activation::Identity
    }

    /// Applied to each element of the sum.
    pub fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// How it is computed; a choice that does not fit is the implicit GEMM.
    pub fn algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// The shape of Y.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), where shapes or options are wrong.
    pub fn output_shape<const N: usize>(&self, x: [usize; N], w: [usize; N]) -> Result<[usize; N]>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.output_of("ConvolutionTranspose::output_shape", x, w, None)
    }

    /// [`output_shape`](Self::output_shape) of a call with a bias of this length.
    pub(crate) fn output_of<const N: usize>(
        &self,
        op: &'static str,
        x: [usize; N],
        w: [usize; N],
        bias: Option<usize>,
    ) -> Result<[usize; N]>
    where
        Spatial<S>: ImageRank<N>,
    {
        let (x, w) = (geometry::lift(x), geometry::lift(w));
        Ok(geometry::lower(self.check(op, x, w, bias)?.1))
    }

    fn check(
        &self,
        op: &'static str,
        x: [usize; 5],
        w: [usize; 5],
        bias: Option<usize>,
    ) -> Result<(Sliding, [usize; 5])> {
        let ([batch, c_in, image @ ..], [outer, inner, kernel @ ..]) = (x, w);
        self.geometry.check_groups(op, "c_in", c_in)?;
        if outer != c_in {
            let mut expected = w;
            expected[0] = c_in;
            return Err(Error::shape(op, "w", &geometry::named(S, &w), &geometry::named(S, &expected)));
        }
        let overflow = || Error::Overflow { op, shape: Dims::new(&image[3 - S..]) };
        let c_out = inner.checked_mul(self.geometry.groups).ok_or_else(overflow)?;
        if bias.is_some_and(|len| len != c_out) {
            return Err(Error::shape(op, "bias", &[bias.unwrap_or(0)], &[c_out]));
        }
        let sliding = self.geometry.window(op, kernel, image)?;
        let more: [usize; 3] = spatial::lift(self.output_padding, 0);
        if (0..3).any(|axis| more[axis] >= sliding.stride[axis].max(sliding.dilation[axis])) {
            let value = Dims::new(&more[3 - S..]);
            return Err(Error::argument(op, "output_padding", value, "less than the stride or the dilation"));
        }
        let extent = sliding.extent().ok_or_else(overflow)?;
        let mut output = [batch, c_out, 0, 0, 0];
        for axis in 0..3 {
            let [before, behind] = sliding.padding[axis];
            // An image without pixels has no output.
            let size = image[axis]
                .checked_sub(1)
                .map(|last| {
                    last.checked_mul(sliding.stride[axis])?.checked_add(extent[axis])?.checked_add(more[axis])
                })
                .unwrap_or(Some(0))
                .filter(|&size| isize::try_from(size).is_ok())
                .ok_or_else(overflow)?;
            let cut = before.checked_add(behind).ok_or_else(overflow)?;
            output[2 + axis] = match size.checked_sub(cut) {
                Some(size) => size,
                None if image[axis] == 0 => 0,
                None => {
                    let padding = Dims::new(&[before, behind]);
                    return Err(Error::argument(
                        op,
                        "padding",
                        padding,
                        "at most what the output would have",
                    ));
                }
            };
        }
        Ok((sliding, output))
    }

    /// Y `[batch, c_out, spatial…]` from X `[batch, c_in, spatial…]`, W `[c_in, c_out / groups, kernel…]` and b `[c_out]`.
    ///
    /// # Errors
    /// As [`Convolution::forward`](super::Convolution::forward), and [`Error::Argument`] where the output padding is not
    /// less than stride or dilation, or the padding cuts off more than there is.
    pub fn forward<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        bias: Option<TensorView<'_, T, 1>>,
    ) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "ConvolutionTranspose::forward";
        let (_, shape) = self.check(op, x.lift().shape(), w.lift().shape(), bias.map(|bias| bias.len()))?;
        let mut y = Tensor::zeros(geometry::lower(shape))?;
        self.run(op, x, w, bias, y.view_mut())?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Shape`] where `y` has another shape. Nothing is written then.
    pub fn forward_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        bias: Option<TensorView<'_, T, 1>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.run("ConvolutionTranspose::forward_into", x, w, bias, y)
    }

    fn run<T: Element, const N: usize>(
        &self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        bias: Option<TensorView<'_, T, 1>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let (x, w, y) = (x.lift(), w.lift(), y.lift());
        let (sliding, shape) = self.check(op, x.shape(), w.shape(), bias.map(|bias| bias.len()))?;
        geometry::expect(op, "y", S, y.shape(), shape)?;
        let w = flip(w, self.geometry.flipped)?;
        let finish = Finish { bias, residual: None, activation: self.activation };
        let (isa, groups, algorithm) = (machine::isa()?, self.geometry.groups, self.algorithm);
        trace::<T>(op, isa, [x.shape(), w.shape(), y.shape()]);
        let scatter = Scatter { op, isa, z: x, w, groups, sliding, finish, algorithm };
        T::scatter(&scatter, y)
    }
}

#[cfg(test)]
mod tests {
    use super::first_multiple;

    #[test]
    fn multiples_are_found_as_by_search() {
        for modulus in 1..14 {
            for factor in 1..20 {
                for residue in 0..modulus {
                    let found = (0..modulus).find(|n| n * factor % modulus == residue);
                    assert_eq!(
                        first_multiple(factor, residue, modulus),
                        found,
                        "{factor} {residue} {modulus}"
                    );
                }
            }
        }
        let big = isize::MAX as usize;
        assert_eq!(first_multiple(big - 1, big - 2, big), Some(2));
    }
}

//! Convolution, and its gradients.
//!
//! | tensor | shape |
//! | --- | --- |
//! | X, dX | `[batch, c_in, spatial…]`, 1 to 3 spatial axes, any strides: NCHW and NHWC alike |
//! | W, dW | `[c_out, c_in / groups, kernel…]` |
//! | b, db | `[c_out]` |
//! | Y, dY | `[batch, c_out, spatial…]` |
//!
//! Forward, over one spatial axis (more are alike), with stride s, dilation d and p zeros before and p′ behind:
//!
//! y\[n, o, i\] = act(b\[o\] + Σ over c, u of w\[o, c, u\] · x\[n, c, i·s + u·d − p\] + residual),
//! ⌊(in + p + p′ − d·(k − 1) − 1) / s⌋ + 1 outputs.
//!
//! That is cross-correlation, which every framework calls convolution. True convolution turns the kernel by 180°
//! ([`Convolution::flipped`]), by a view. The gradients, of the affine part, for dZ:
//!
//! - dx\[n, c, j\] = Σ over o, u with j + p − u·d = i·s of w\[o, c, u\] · dz\[n, o, i\]. Outputs j of one residue mod s see the
//!   same taps, and among them the sum is a correlation of dZ with stride 1: each residue is one, over views of W and dX,
//!   and no zero is ever inserted or multiplied.
//! - dw\[o, c, u\] = Σ over n, i of dz\[n, o, i\] · x\[n, c, i·s + u·d − p\]: a product whose depth is all positions.
//! - db\[o\] = Σ over n, i of dz\[n, o, i\].
//!
//! V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning" (2016), has the sizes;
//! [`reference`](crate::reference) has the textbook's ways.
//!
//! # Which path runs when
//!
//! | call | path |
//! | --- | --- |
//! | 1 × 1, stride 1, no padding, pixels mergeable into rows (NHWC) | one GEMM, in place |
//! | the same with mergeable planes (NCHW), one image, at least 128 pixels, or fewer that leave few lanes empty for their channels | a batched GEMM, in place |
//! | one group, images that fill vectors to four fifths (13 of 16 with AVX-512), images or columns as neighbours, or dense pixels of channels last (where both tensors have them up to 2 vectors of output channels, and where rows have 24 outputs one, half as many as steps of depth), up to 128 channels in and out, out 64 or twice as many as in, that fill tiles of 8 (4 without AVX-512, or where there are no more) to three quarters, several taps, strides up to 64, copies of which a few rows stay in L2 (with windows of one row, a part of one), no residual, not among others in a [`Chain`], [`Algorithm::Auto`] or [`Algorithm::Direct`], not Winograd's | images as lanes: patches read in place in a copy of their pixels |
//! | weights packed by [`Convolution::pack_channels_last`], one group, 1 × 1, stride 1, no padding | a GEMM for each run of pixels |
//! | the same, any other geometry but Winograd's | GEMMs over rows of patches, copied some dozen pixels at a time; or over windows of a copy with zeros around, where rows of the output are long, weights fill three quarters of L2 at most, the kernel has no depth and no dilation, and windows touch; or over the image's lines as they lie, but for their ends, where these are dense, the kernel has one axis without dilation and a row of the output is longer than four times what a quarter of L2 holds of its patches |
//! | weights not packed before, [`Algorithm::Auto`] or [`Algorithm::Direct`], one group, at least 4 output channels and 512 outputs of each, several channels, last in both tensors, dense rows of the image, no dilation along them, outputs that merge into one axis or rows of 14 (of 28 for single pixels, which do not merge, or fewer than 32 output channels), not Winograd's | the same, the weights turned in the call |
//! | weights not packed before, at most 64 output channels a group that fill vectors, sums of at least 64 products and one more for every two output channels of a group (without AVX-512, one for each), rows that fill the runs of a tile (of 7 outputs with AVX-512), [`Algorithm::Auto`] or [`Algorithm::Direct`], not Winograd's | output channels as lanes: patches read in place in a copy of a box's input, no panels of patches |
//! | [`Algorithm::Auto`], 3 × 3, stride and dilation 1, at least 16 channels in and out of a group and 24 on one side, 192 outputs and not many fewer than channels, or weights packed before; [`Algorithm::Winograd2`], 3 × 3, stride and dilation 1 | Winograd, tiles of 2 × 2 outputs |
//! | [`Algorithm::Winograd4`], 3 × 3, stride and dilation 1 | Winograd, tiles of 4 × 4 outputs |
//! | [`Chain`] | each of its convolutions by the path for it, some rows at a time, what lies between in L2 |
//! | several groups of one input channel: depthwise, with any multiplier, strides up to 64 | channels as lanes: a copy of their pixels, weights times pixels, no matrix; `backward_weight` alike |
//! | the same, 3 × 3, stride 1 or 2 along a row, pixels neighbours (NHWC) | as before, the pixels read where they lie; `backward_weight` alike |
//! | several groups of 2, 4, 8 or 16 input channels and as many output channels, no more than a vector has lanes (fewer without AVX-512, unless as in the next row), [`Algorithm::Auto`] or [`Algorithm::Direct`], 3 × 3 without dilation along rows, stride 1 or 2, or of up to 4 channels with several taps; with channels last of 4 with any kernel, of 8 with fewer than 9 taps | channels as lanes: each takes in the inputs of its group from a copy of their pixels; `backward_weight` alike, 3 × 3 |
//! | the same, 3 × 3, pixels neighbours (NHWC), fewer channels than AVX-512 has lanes | as before, the pixels read where they lie; `backward_weight` alike |
//! | anything else | implicit GEMM: boxes of outputs, whose patches go from a copy of their input, or for single taps over contiguous planes from the input itself, into panels, weights where they lie if that is in order |
//! | `backward_input`, transposed convolution without bias or activation, several taps, one group, [`Algorithm::Auto`] or [`Algorithm::Direct`], weights of a channel in the order of memory, no more positions of dZ than channels, or four times as many in some megabytes; not where Winograd follows | the patches' gradients as one product over the weights as they lie, then col2im |
//! | `backward_input`, transposed convolution without bias or activation, depthwise with multiplier 1, 3 × 3, stride 2, no dilation, channels last | channels as lanes, both tensors as they lie |
//! | `backward_input`, transposed convolution, strides up to 2, windows without depth and padding along it, images, channels and taps as forward, whatever their ratio, and with a stride dense pixels of any | images as lanes: all residues read one copy of dZ |
//! | `backward_input`, transposed convolution, stride 2 along rows whose columns are neighbours, or with channels last up to 6 output channels | a copy of dZ read in place by all residues, no panels of patches; few output channels as lanes |
//! | `backward_input`, transposed convolution, otherwise | the same paths, once for each residue of the stride |
//! | `backward_weight`, 1 × 1, no padding, one group, pixels of dZ mergeable | a GEMM for each run of pixels, summed in order; pixels of X that are not, as with a stride, are copied |
//! | `backward_weight`, 3 × 3, stride and dilation 1, one group, no depth, where Winograd is taken as above | Winograd's adjoint, tiles of 2 × 2 gradients, of 4 × 4 where an image has 400 outputs and fills them: a product over tiles for each point, boxes summed in order |
//! | `backward_weight`, images and copies as forward, up to 64 input and 32 output channels, or from 4 input channels on up to 64, no more than 2048 pairs of them (512 with channels last), several taps, one group, [`Algorithm::Auto`] or [`Algorithm::Direct`], not Winograd's | images as lanes: copies of both tensors, up to eight parts of the images each summed by itself |
//! | `backward_weight`, at most 64 output channels a group, sums that stay in L2 | boxes of positions, dZ into panels, patches read in place, summed in order |
//! | `backward_weight` | boxes of positions, patches and dZ into panels, summed in order |
//! | the last two, one group, at most three input channels and a tile of output channels, several images | up to eight parts of the images, each summed by itself |
//!
//! # Memory
//!
//! The patch matrix of im2col is never there, but that of a gradient of few positions, which is no larger than the weights or than
//! some megabytes. Weights that are turned in the call are there once more meanwhile, or twice, and so are the pixels that a weight gradient of
//! single taps with a stride copies. A thread has a copy of the input of one box of outputs and the patches of some hundred of
//! them, or the pixels of a vector of images, in its L2. Winograd's weight gradient has some hundred tiles for each
//! thread at a time, and its sums, 16/9 or 4 times the weights. One of depthwise weights or small groups, of pixels that are read where
//! they lie, has as many sums as there are weights for each 2048 outputs or fewer, one of few channels for each part. [`Im2col`] makes
//! the whole matrix, for those who want it. Beyond its tensors, for a 3 × 3
//! layer of ResNet-50 (64 to 64 channels at 56 × 56) at batch 8 in `f32`, on one thread of a machine with 1 MiB of L2:
//!
//! | patches | bytes |
//! | --- | ---: |
//! | the matrix | 57.8 M |
//! | implicit GEMM | 0.69 M |
//! | Winograd, tiles of 2 × 2 / 4 × 4 | 1.30 M / 1.94 M |
#![forbid(unsafe_code)]

mod backward;
pub(crate) mod bias;
mod chain;
mod columns;
mod correlate;
mod correlation;
mod depthwise;
mod emit;
mod geometry;
mod halo;
mod im2col;
mod images;
mod implicit;
mod kernels;
mod lanes;
mod packed;
mod patches;
mod pixels;
mod pointwise;
mod transpose;
mod weight_gradient;
mod weights;
mod winograd;

pub use backward::ConvolutionGradients;
pub use chain::{Chain, Link};
pub use im2col::{Im2col, PatchOrder};
pub(crate) use kernels::Convolve;
pub use packed::PackedConvolution;
pub use transpose::ConvolutionTranspose;

use self::correlate::{Call, Operand};
use self::emit::Finish;
use self::geometry::{Geometry, Padding, flip};
use self::pointwise::single;
use self::weights::Filter;
use crate::activation::Activation;
use crate::element::Element;
use crate::error::Result;
use crate::machine;
use crate::spatial::{ImageRank, Spatial};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Options of a convolution over `S` spatial axes: plain data.
///
/// ```
/// use tilewise::{Tensor, TensorView, activation::Activation, conv::Convolution};
/// let x = TensorView::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [1, 1, 3, 3])?;
/// let w = TensorView::from_slice(&[1.0, 0.0, 0.0, -1.0], [1, 1, 2, 2])?;
/// let y = Convolution::<2>::new().forward(x, w, None)?;
/// assert_eq!(y.as_slice(), [-4.0; 4]);
/// let same = Convolution::<2>::new().same().stride([2, 2]).activation(Activation::Relu);
/// assert_eq!(same.forward(x, w, None)?.as_slice(), [0.0, 3.0, 7.0, 9.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convolution<const S: usize> {
    geometry: Geometry<S>,
    activation: Activation,
    algorithm: Algorithm,
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest whose error is at most 4 times that of the implicit GEMM: [`Winograd2`](Self::Winograd2) where it pays, and for the
    /// gradient for the weights, whose sums are long, [`Winograd4`](Self::Winograd4) in large images.
    #[default]
    Auto,
    /// Patches into panels, for any geometry.
    ImplicitGemm,
    /// What [`Auto`](Self::Auto) takes where Winograd does not pay, taken everywhere: patches read in place, or channels or images as
    /// lanes, where that fits and pays, else the implicit GEMM. No pixel is mixed with another; sums may be longer than the implicit
    /// GEMM's, and their errors up to 4 times as large.
    Direct,
    /// Winograd's F(2 × 2, 3 × 3) for 3 × 3 kernels with stride and dilation 1, else the implicit GEMM.
    Winograd2,
    /// Winograd's F(4 × 4, 3 × 3), faster and less accurate, for the same; else the implicit GEMM. Weights that are not packed
    /// are transformed in each call, which takes longer than it saves where outputs are fewer than channels.
    Winograd4,
}

impl Algorithm {
    /// Whether it leaves open how the same products are summed.
    fn is_open(self) -> bool {
        matches!(self, Self::Auto | Self::Direct)
    }
}

/// Weights of a call: a view `[c_out, c_in / groups, kernel…]`, or packed by [`Convolution::pack`].
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a, T, const N: usize> {
    /// Weights in memory.
    View(TensorView<'a, T, N>),
    /// Weights packed before.
    Packed(&'a PackedConvolution<T>),
}

impl<'a, T, const N: usize> From<TensorView<'a, T, N>> for Weight<'a, T, N> {
    fn from(view: TensorView<'a, T, N>) -> Self {
        Self::View(view)
    }
}

impl<'a, T, const N: usize> From<&'a PackedConvolution<T>> for Weight<'a, T, N> {
    fn from(packed: &'a PackedConvolution<T>) -> Self {
        Self::Packed(packed)
    }
}

impl<T: Element, const N: usize> Weight<'_, T, N> {
    /// `[c_out, c_in / groups, kernel…]`.
    fn shape(&self) -> [usize; 5] {
        match self {
            Weight::View(view) => view.lift().shape(),
            Weight::Packed(packed) => packed.shape,
        }
    }
}

impl<const S: usize> Default for Convolution<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const S: usize> Convolution<S> {
    /// Stride and dilation 1, no padding, one group, no activation.
    pub fn new() -> Self {
        Self { geometry: Geometry::new(), activation: Activation::Identity, algorithm: Algorithm::Auto }
    }

    /// Steps between neighbouring windows.
    pub fn stride(mut self, stride: [usize; S]) -> Self {
        self.geometry.stride = stride;
        self
    }

    /// Steps between neighbouring elements of a window; 1 is dense.
    pub fn dilation(mut self, dilation: [usize; S]) -> Self {
        self.geometry.dilation = dilation;
        self
    }

    /// Zeros before and behind the image along each axis.
    pub fn padding(self, padding: [usize; S]) -> Self {
        self.padding_sides(padding.map(|padding| [padding; 2]))
    }

    /// Zeros before and behind the image along each axis, which may differ.
    pub fn padding_sides(mut self, padding: [[usize; 2]; S]) -> Self {
        self.geometry.padding = Padding::Sides(padding);
        self
    }

    /// As many zeros as give ⌈in / stride⌉ outputs, and at least one. Where they are odd, the additional one is behind the image, or for true
    /// convolution before it, so that the result is the middle of [`full`](Self::full)'s.
    pub fn same(mut self) -> Self {
        self.geometry.padding = Padding::Same { lower: false };
        self
    }

    /// [`same`](Self::same) with the additional zero on the other side: ONNX's `SAME_LOWER`.
    pub fn same_lower(mut self) -> Self {
        self.geometry.padding = Padding::Same { lower: true };
        self
    }

    /// As many zeros as let every window through that touches the image: d · (k − 1) on both sides.
    pub fn full(mut self) -> Self {
        self.geometry.padding = Padding::Full;
        self
    }

    /// Groups of channels that are convolved by themselves; as many as input channels make a depthwise convolution.
    pub fn groups(mut self, groups: usize) -> Self {
        self.geometry.groups = groups;
        self
    }

    /// True convolution: the kernel is turned by 180°. Off unless set.
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

    pub(crate) fn is_rectified(&self) -> bool {
        self.activation == Activation::Relu
    }

    /// Applied to each element of the sum.
    pub fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// How it is computed; a choice that does not fit the geometry is the implicit GEMM.
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
        self.output_of("Convolution::output_shape", x, w, None)
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
        Ok(geometry::lower(self.geometry.forward(op, x, w, bias)?.output))
    }

    /// Y `[batch, c_out, spatial…]` from X `[batch, c_in, spatial…]`, W `[c_out, c_in / groups, kernel…]` (a view, or packed
    /// by [`pack`](Self::pack)) and b `[c_out]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where shapes do not fit or the kernel is larger than the padded image, [`Error::Argument`](crate::Error::Argument) where
    /// a kernel, stride, dilation or number of groups is 0 or groups do not divide the channels, [`Error::Overflow`](crate::Error::Overflow) where
    /// sizes overflow, [`Error::Packed`](crate::Error::Packed) where the weights were packed for something else, [`Error::Alloc`](crate::Error::Alloc) where there is
    /// no memory.
    pub fn forward<'a, T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        w: impl Into<Weight<'a, T, N>>,
        bias: Option<TensorView<'_, T, 1>>,
    ) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let (op, w) = ("Convolution::forward", w.into());
        let bias_len = bias.map(|bias| bias.len());
        let sizes = self.geometry.forward(op, x.lift().shape(), w.shape(), bias_len)?;
        let mut y = Tensor::zeros(geometry::lower(sizes.output))?;
        self.run(op, x, w, bias, None, y.view_mut())?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Shape`](crate::Error::Shape) where `y` has another shape. Nothing is written then.
    pub fn forward_into<'a, T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        w: impl Into<Weight<'a, T, N>>,
        bias: Option<TensorView<'_, T, 1>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.run("Convolution::forward_into", x, w.into(), bias, None, y)
    }

    /// [`forward_into`](Self::forward_into) with a residual of Y's shape, added before the activation.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    ///
    /// ```
    /// use tilewise::{Tensor, TensorView, conv::Convolution};
    /// let x = TensorView::from_slice(&[1.0, 2.0, 4.0], [1, 1, 3])?;
    /// let w = TensorView::from_slice(&[1.0, 1.0], [1, 1, 2])?;
    /// let skip = TensorView::from_slice(&[10.0, 20.0], [1, 1, 2])?;
    /// let mut y = Tensor::<f64, 3>::zeros([1, 1, 2])?;
    /// Convolution::<1>::new().forward_add_into(x, w, None, skip, y.view_mut())?;
    /// assert_eq!(y.as_slice(), [13.0, 26.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_add_into<'a, T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        w: impl Into<Weight<'a, T, N>>,
        bias: Option<TensorView<'_, T, 1>>,
        residual: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.run("Convolution::forward_add_into", x, w.into(), bias, Some(residual), y)
    }

    fn run<T: Element, const N: usize>(
        &self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        w: Weight<'_, T, N>,
        bias: Option<TensorView<'_, T, 1>>,
        residual: Option<TensorView<'_, T, N>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let (call, y) = (self.call(op, x, w, bias, residual, y.shape())?, y.lift());
        call.trace(w.shape(), y.shape(), y.strides());
        T::correlate(&call, y)
    }

    /// A call of [`run`](Self::run), checked.
    fn call<'a, T: Element, const N: usize>(
        &self,
        op: &'static str,
        x: TensorView<'a, T, N>,
        w: Weight<'a, T, N>,
        bias: Option<TensorView<'a, T, 1>>,
        residual: Option<TensorView<'a, T, N>>,
        y: [usize; N],
    ) -> Result<Call<'a, T>> {
        let (x, residual) = (x.lift(), residual.map(TensorView::lift));
        let sizes = self.geometry.forward(op, x.shape(), w.shape(), bias.map(|bias| bias.len()))?;
        let isa = machine::isa()?;
        let groups = self.geometry.groups;
        let sliding = sizes.sliding;
        if let Weight::Packed(packed) = w {
            packed.check(op, isa, &self.geometry, &sliding)?;
        }
        let expected = sizes.output;
        for (arg, found) in [("residual", residual.map(|r| r.shape())), ("y", Some(geometry::lift(y)))] {
            geometry::expect(op, arg, S, found.unwrap_or(expected), expected)?;
        }
        let w = match w {
            Weight::View(view) => Operand::View(Filter::new(flip(view.lift(), self.geometry.flipped)?)),
            Weight::Packed(packed) => Operand::Packed(packed),
        };
        let finish = Finish { bias, residual, activation: self.activation };
        Ok(Call {
            op,
            isa,
            x,
            w,
            groups,
            kernel: sliding.kernel,
            stride: sliding.stride,
            dilation: sliding.dilation,
            start: sliding.padding.map(|[before, _]| -(before as isize)),
            finish,
            algorithm: self.algorithm,
        })
    }

    /// Packs weights `[c_out, c_in / groups, kernel…]` for many calls with these groups. Small ones of one group are kept beside that as they
    /// are, for batches whose images fill vectors.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) where groups do not divide the output channels, [`Error::Alloc`](crate::Error::Alloc) where there is no memory,
    /// [`Error::Isa`](crate::Error::Isa) where `TILEWISE_ISA` is wrong.
    ///
    /// ```
    /// use tilewise::{Tensor, conv::Convolution};
    /// let conv = Convolution::<2>::new().padding([1, 1]);
    /// let w = Tensor::<f32, 4>::full([8, 3, 3, 3], 0.5)?;
    /// let packed = conv.pack(w.view())?;
    /// let x = Tensor::<f32, 4>::full([1, 3, 6, 6], 1.0)?;
    /// assert_eq!(conv.forward(x.view(), &packed, None)?, conv.forward(x.view(), w.view(), None)?);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn pack<T: Element, const N: usize>(&self, w: TensorView<'_, T, N>) -> Result<PackedConvolution<T>>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.pack_for("Convolution::pack", w.lift(), false)
    }

    /// As [`pack`](Self::pack), for tensors whose channels lie last (NHWC): windows over such pixels are read
    /// by another order of the weights. Calls over tensors of any layout take either; this decides speed only.
    ///
    /// # Errors
    /// As [`pack`](Self::pack).
    ///
    /// ```
    /// use tilewise::{Tensor, conv::Convolution};
    /// let (conv, w) = (Convolution::<2>::new(), Tensor::<f32, 4>::full([8, 3, 1, 1], 0.5)?);
    /// let packed = conv.pack_channels_last(w.view())?;
    /// let nhwc = Tensor::<f32, 4>::full([1, 6, 6, 3], 1.0)?;
    /// let y = conv.forward(nhwc.view().permute([0, 3, 1, 2])?, &packed, None)?;
    /// assert_eq!(y.as_slice(), [1.5; 8 * 36]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn pack_channels_last<T: Element, const N: usize>(
        &self,
        w: TensorView<'_, T, N>,
    ) -> Result<PackedConvolution<T>>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.pack_for("Convolution::pack_channels_last", w.lift(), true)
    }

    fn pack_for<T: Element>(
        &self,
        op: &'static str,
        w: TensorView<'_, T, 5>,
        last: bool,
    ) -> Result<PackedConvolution<T>> {
        self.geometry.check_groups(op, "c_out", w.shape()[0])?;
        let [rows, channels, kernel @ ..] = w.shape();
        // Over an image of one pixel no kernel of one tap has padding of its own.
        let sliding = self.geometry.window(op, kernel, [1; 3])?;
        let plain = sliding.is_plain();
        let groups = self.geometry.groups;
        let [d, h, width] = kernel;
        let winograd =
            correlate::winograd(self.algorithm, [rows / groups, channels, d, h, width], plain, None);
        let open = self.algorithm.is_open();
        let isa = machine::isa()?;
        let lanes = groups > 1 && depthwise::takes::<T>(isa, groups, w.shape(), &sliding, [last, open]);
        let fits = || images::takes::<T>(isa, [rows, channels], &depthwise::Reach::of(&sliding));
        let batches = groups == 1 && winograd == 0 && open && fits();
        let form = [single(&sliding), last, lanes, batches];
        PackedConvolution::new(op, w, groups, self.geometry.flipped, winograd, form)
    }
}

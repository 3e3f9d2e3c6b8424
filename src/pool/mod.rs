//! Pooling: a window's maximum, average or p-norm, for each channel by itself, and the gradients.
//!
//! | tensor | shape |
//! | --- | --- |
//! | X, dX | `[batch, channels, spatial…]`, 1 to 3 spatial axes, any strides: NCHW and NHWC alike |
//! | Y, dY, indices | `[batch, channels, windows…]` |
//!
//! Over one spatial axis (more are alike), with kernel k, stride s, dilation d and padding p before and p′ behind, window i
//! covers the elements i·s + u·d − p for u from 0 to before k that lie inside the image. There are
//! ⌊(in + p + p′ − d·(k − 1) − 1) / s⌋ + 1 windows; with `ceil`, rounded up, but none begins behind the image and the padding
//! before it. Adaptive pooling has as many windows as the caller says, window i of n from ⌊i·in / n⌋ to before ⌈(i + 1)·in / n⌉;
//! global pooling has one, the image.
//!
//! | | y | dx\[j\], summed over the windows that cover j |
//! | --- | --- | --- |
//! | [`MaxPool`] | max x; the first one counts, but of 0 and −0, which are equal, y may be either; NaN where there is one; −∞ of nothing | dy where j was taken |
//! | [`AveragePool`] | Σ x / n, n with or without the padding; 0 of nothing | dy / n |
//! | [`LpPool`] | (Σ \|x\|ᵖ)^(1/p) | dy · sign(x)·\|x\|^(p − 1) · y^(1 − p), 0 where y is 0 |
//!
//! (Goodfellow, Bengio and Courville, *Deep Learning*, 2016, section 9.3. Sizes as in V. Dumoulin and F. Visin, "A guide to
//! convolution arithmetic for deep learning", 2016.)
//!
//! # Which path runs when
//!
//! | layout, windows | path |
//! | --- | --- |
//! | channels are neighbours in memory (NHWC) | rows of all channels: down the rows of a window by whole vectors, then along, a vector of channels at a time |
//! | else, windows that slide | rows of a plane, down by whole vectors, then along, a vector of neighbouring windows at a time; strides 1 and 2 by shuffles |
//! | else, global, planes that are one piece of memory | a plane to one vector, then its lanes, those of a vector of planes together |
//! | else, adaptive, few long windows, or much more padding than image | down as before, then window by window |
//!
//! Rows that do not lie in memory as one piece are copied to one. Backwards, sums go the other way: down the windows' rows, then
//! along the image's. What is computed for an element never depends on how the work is split into tasks.
#![forbid(unsafe_code)]

mod forward;
mod geometry;
mod indices;
mod lp;
mod reduce;
mod spread;
mod unpool;
mod walk;
mod whole;

pub(crate) use forward::Reductions;
pub(crate) use indices::Places;
pub use lp::LpPool;
pub(crate) use spread::Shares;

use self::geometry::{Axis, Padding, Windows};
use self::reduce::{Average, Maximum};
use crate::element::Element;
use crate::error::{Dims, Error, Result};
use crate::machine;
use crate::spatial::{self, ImageRank, Spatial, expect, lift_shape as lift, lower};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// The index of a maximum that is none: the window lies in the padding.
pub const NO_ELEMENT: u32 = u32::MAX;

/// What the kinds of pooling have in common.
macro_rules! windows {
    ($name:ident) => {
        impl<const S: usize> $name<S> {
            /// Steps between neighbouring windows; the kernel's sizes unless set. Adaptive and global pooling have none.
            pub fn stride(mut self, sizes: [usize; S]) -> Self {
                if let Windows::Sliding { stride, .. } = &mut self.windows {
                    *stride = Some(sizes);
                }
                self
            }

            /// Steps between neighbouring elements of a window; 1 is dense. Adaptive and global pooling have none.
            pub fn dilation(mut self, sizes: [usize; S]) -> Self {
                if let Windows::Sliding { dilation, .. } = &mut self.windows {
                    *dilation = sizes;
                }
                self
            }

            /// Padding before and behind the image along each axis. Adaptive and global pooling have none.
            pub fn padding(self, sizes: [usize; S]) -> Self {
                self.padding_sides(sizes.map(|size| [size; 2]))
            }

            /// Padding before and behind the image along each axis, which may differ. Adaptive and global pooling have none.
            pub fn padding_sides(mut self, sides: [[usize; 2]; S]) -> Self {
                if let Windows::Sliding { padding, .. } = &mut self.windows {
                    *padding = Padding::Sides(sides);
                }
                self
            }

            /// As much padding as gives ⌈in / stride⌉ windows, and at least one; where it is odd, more of it behind the image. Adaptive and
            /// global pooling have none.
            pub fn same(mut self) -> Self {
                if let Windows::Sliding { padding, .. } = &mut self.windows {
                    *padding = Padding::Same { lower: false };
                }
                self
            }

            /// [`same`](Self::same) with more of the padding before the image: ONNX's `SAME_LOWER`.
            pub fn same_lower(mut self) -> Self {
                if let Windows::Sliding { padding, .. } = &mut self.windows {
                    *padding = Padding::Same { lower: true };
                }
                self
            }

            /// Rounds the number of windows up. Off unless set.
            pub fn ceil(mut self, up: bool) -> Self {
                if let Windows::Sliding { ceil, .. } = &mut self.windows {
                    *ceil = up;
                }
                self
            }

            /// The shape of Y.
            ///
            /// # Errors
            /// As [`forward`](Self::forward), where the shape or options are wrong.
            pub fn output_shape<const N: usize>(&self, x: [usize; N]) -> Result<[usize; N]>
            where
                Spatial<S>: ImageRank<N>,
            {
                let call = Call::new(concat!(stringify!($name), "::output_shape"), &self.windows, lift(x))?;
                Ok(lower(call.outputs()))
            }
        }
    };
}

windows!(MaxPool);
windows!(AveragePool);
use windows;

/// Sizes of a checked call.
struct Call {
    op: &'static str,
    /// Spatial axes that the caller knows.
    spatial: usize,
    image: [usize; 5],
    axes: [Axis; 3],
}

impl Call {
    fn new<const S: usize>(op: &'static str, windows: &Windows<S>, image: [usize; 5]) -> Result<Self> {
        let [_, _, sizes @ ..] = image;
        Ok(Self { op, spatial: S, image, axes: windows.axes(op, sizes)? })
    }

    /// `[batch, channels, windows…]`.
    fn outputs(&self) -> [usize; 5] {
        let [batch, channels, ..] = self.image;
        let [d, h, w] = self.axes.map(|axis| axis.outputs());
        [batch, channels, d, h, w]
    }

    /// An error unless an argument has the shape of the windows.
    fn expect(&self, arg: &'static str, found: [usize; 5]) -> Result<()> {
        self.expect_shape(arg, found, self.outputs())
    }

    fn expect_shape(&self, arg: &'static str, found: [usize; 5], expected: [usize; 5]) -> Result<()> {
        expect(self.op, arg, self.spatial, found, expected)
    }

    /// An error where places in an image cannot be counted by indices.
    fn check_indexable(&self) -> Result<()> {
        let [_, _, sizes @ ..] = self.image;
        let places = sizes.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
        if places.is_some_and(|places| places <= NO_ELEMENT as usize) {
            return Ok(());
        }
        Err(Error::Overflow { op: self.op, shape: Dims::new(&sizes[3 - self.spatial..]) })
    }
}

/// The shape of an image from that of its windows and its sizes.
fn image_of<const S: usize, const N: usize>(dy: [usize; N], image: [usize; S]) -> [usize; 5] {
    let [d, h, w] = spatial::lift(image, 1);
    [dy[0], dy[1], d, h, w]
}

/// Max pooling: plain data. The [module](self) has the formulas.
///
/// ```
/// use tilewise::{TensorView, pool::MaxPool};
/// let x = TensorView::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [1, 1, 3, 3])?;
/// let pool = MaxPool::<2>::new([3, 3]).stride([2, 2]).padding([1, 1]);
/// assert_eq!(pool.forward(x)?.as_slice(), [5.0, 6.0, 8.0, 9.0]);
/// assert_eq!(MaxPool::<2>::global().forward(x)?.as_slice(), [9.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxPool<const S: usize> {
    windows: Windows<S>,
}

impl<const S: usize> MaxPool<S> {
    /// Windows of these sizes, side by side, dense, without padding.
    pub const fn new(kernel: [usize; S]) -> Self {
        Self { windows: Windows::sliding(kernel) }
    }

    /// As many windows as given along each axis, of sizes that differ by one at most.
    pub const fn adaptive(outputs: [usize; S]) -> Self {
        Self { windows: Windows::Adaptive(outputs) }
    }

    /// One window, the image.
    pub const fn global() -> Self {
        Self { windows: Windows::Global }
    }

    /// Y `[batch, channels, windows…]` from X `[batch, channels, spatial…]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the kernel is larger than the padded image, [`Error::Argument`] where a kernel, stride or
    /// dilation is 0 or an adaptive window would be empty, [`Error::Overflow`] where sizes overflow, [`Error::Alloc`] where
    /// there is no memory.
    pub fn forward<T: Element, const N: usize>(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("MaxPool::forward", &self.windows, x.lift().shape())?;
        let mut y = Tensor::zeros(lower(call.outputs()))?;
        self.reduce(&call, x, y.view_mut())?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Shape`] where `y` has another shape.
    ///
    /// ```
    /// use tilewise::{Tensor, TensorView, pool::MaxPool};
    /// // Two pixels of three channels, channels last.
    /// let x = TensorView::as_strided(&[1.0, 2.0, 3.0, 4.0, 0.0, 5.0], [1, 3, 2], [6, 1, 3])?;
    /// let mut y = Tensor::<f64, 3>::zeros([1, 3, 1])?;
    /// MaxPool::<1>::new([2]).forward_into(x, y.view_mut())?;
    /// assert_eq!(y.as_slice(), [4.0, 2.0, 5.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("MaxPool::forward_into", &self.windows, x.lift().shape())?;
        self.reduce(&call, x, y)
    }

    fn reduce<T: Element, const N: usize>(
        &self,
        call: &Call,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let (x, y, isa) = (x.lift(), y.lift(), machine::isa()?);
        call.expect("y", y.shape())?;
        let (op, axes) = (call.op, call.axes);
        forward::Call { op, isa, x, axes, reduction: Maximum, with_padding: false }.run(y)
    }

    /// Y as [`forward`](Self::forward) has it, and where each maximum is: its place in the image's spatial axes, in row-major
    /// order whatever the strides, or [`NO_ELEMENT`] for a window in the padding.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Overflow`] also where an image has 2³² places.
    ///
    /// ```
    /// use tilewise::{TensorView, pool::MaxPool};
    /// let x = TensorView::from_slice(&[1.0f32, 7.0, 7.0, 4.0], [1, 1, 2, 2])?;
    /// let (y, indices) = MaxPool::<2>::global().forward_with_indices(x)?;
    /// assert_eq!((y.as_slice(), indices.as_slice()), (&[7.0][..], &[1][..]));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_with_indices<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
    ) -> Result<(Tensor<T, N>, Tensor<u32, N>)>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("MaxPool::forward_with_indices", &self.windows, x.lift().shape())?;
        let shape = lower(call.outputs());
        let (mut y, mut indices) = (Tensor::zeros(shape)?, Tensor::zeros(shape)?);
        self.locate(&call, x, y.view_mut(), indices.view_mut())?;
        Ok((y, indices))
    }

    /// [`forward_with_indices`](Self::forward_with_indices) into `y` and `indices`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward_with_indices`](Self::forward_with_indices), and [`Error::Shape`] where `y` or `indices` has another shape.
    pub fn forward_with_indices_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
        indices: TensorViewMut<'_, u32, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("MaxPool::forward_with_indices_into", &self.windows, x.lift().shape())?;
        self.locate(&call, x, y, indices)
    }

    fn locate<T: Element, const N: usize>(
        &self,
        call: &Call,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
        indices: TensorViewMut<'_, u32, N>,
    ) -> Result<()> {
        let (x, y, indices, isa) = (x.lift(), y.lift(), indices.lift(), machine::isa()?);
        call.expect("y", y.shape())?;
        call.expect("indices", indices.shape())?;
        call.check_indexable()?;
        indices::Call { op: call.op, isa, x, axes: call.axes }.run(y, indices)
    }

    /// [`output_shape`](Self::output_shape) where there are to be indices.
    pub(crate) fn check_indices<const N: usize>(&self, x: [usize; N]) -> Result<[usize; N]>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("MaxPool::forward_with_indices", &self.windows, lift(x))?;
        call.check_indexable()?;
        Ok(lower(call.outputs()))
    }

    /// dX `[batch, channels, image…]` from dY and the indices of
    /// [`forward_with_indices`](Self::forward_with_indices).
    ///
    /// # Errors
    /// As [`forward_with_indices`](Self::forward_with_indices), [`Error::Shape`] where shapes do not fit, and
    /// [`Error::Argument`] where an index lies outside the image.
    ///
    /// ```
    /// use tilewise::{TensorView, pool::MaxPool};
    /// let pool = MaxPool::<1>::new([2]).stride([1]);
    /// let (_, indices) = pool.forward_with_indices(TensorView::from_slice(&[1.0, 3.0, 2.0], [1, 1, 3])?)?;
    /// let dy = TensorView::from_slice(&[10.0, 1.0], [1, 1, 2])?;
    /// assert_eq!(pool.backward(dy, indices.view(), [3])?.as_slice(), [0.0, 11.0, 0.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward<T: Element, const N: usize>(
        &self,
        dy: TensorView<'_, T, N>,
        indices: TensorView<'_, u32, N>,
        image: [usize; S],
    ) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("MaxPool::backward", &self.windows, image_of(dy.shape(), image))?;
        self.check_backward(&call, dy, indices)?;
        let mut dx = Tensor::zeros(lower(call.image))?;
        unpool::run(call.op, dy.lift(), indices.lift(), dx.view_mut().lift())?;
        Ok(dx)
    }

    /// [`backward`](Self::backward) into `dx`, whose shape says the image's sizes and whose old contents are not read.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_into<T: Element, const N: usize>(
        &self,
        dy: TensorView<'_, T, N>,
        indices: TensorView<'_, u32, N>,
        dx: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let dx = dx.lift();
        let call = Call::new("MaxPool::backward_into", &self.windows, dx.shape())?;
        self.check_backward(&call, dy, indices)?;
        unpool::run(call.op, dy.lift(), indices.lift(), dx)
    }

    fn check_backward<T: Element, const N: usize>(
        &self,
        call: &Call,
        dy: TensorView<'_, T, N>,
        indices: TensorView<'_, u32, N>,
    ) -> Result<()> {
        call.expect("dy", dy.lift().shape())?;
        call.expect("indices", indices.lift().shape())?;
        call.check_indexable()?;
        let [_, _, d, h, w] = call.image;
        let places = d * h * w;
        let wrong = |&index: &u32| index != NO_ELEMENT && index as usize >= places;
        let found = match indices.as_slice() {
            // All of them, without a branch: only wrong ones are looked for.
            Some(all) if !all.iter().fold(false, |any, index| any | wrong(index)) => None,
            _ => indices.iter().copied().find(wrong),
        };
        match found {
            Some(index) => Err(Error::argument(call.op, "an index", index, "a place inside the image")),
            None => Ok(()),
        }
    }
}

/// Average pooling: plain data. The [module](self) has the formulas.
///
/// ```
/// use tilewise::{TensorView, pool::AveragePool};
/// let x = TensorView::from_slice(&[1.0f32, 2.0, 3.0], [1, 1, 3])?;
/// let pool = AveragePool::<1>::new([2]).padding([1]);
/// assert_eq!(pool.forward(x)?.as_slice(), [0.5, 2.5]);
/// assert_eq!(pool.count_include_pad(false).forward(x)?.as_slice(), [1.0, 2.5]);
/// assert_eq!(AveragePool::<1>::adaptive([2]).forward(x)?.as_slice(), [1.5, 2.5]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AveragePool<const S: usize> {
    windows: Windows<S>,
    count_include_pad: bool,
}

impl<const S: usize> AveragePool<S> {
    /// Windows of these sizes, side by side, dense, without padding.
    pub const fn new(kernel: [usize; S]) -> Self {
        Self { windows: Windows::sliding(kernel), count_include_pad: true }
    }

    /// As many windows as given along each axis, of sizes that differ by one at most.
    pub const fn adaptive(outputs: [usize; S]) -> Self {
        Self { windows: Windows::Adaptive(outputs), count_include_pad: true }
    }

    /// One window, the image.
    pub const fn global() -> Self {
        Self { windows: Windows::Global, count_include_pad: true }
    }

    /// Whether the padding under a window counts among its elements, as zeros. On unless set. What a window has behind the
    /// padding, where `ceil` rounds up, never counts.
    pub fn count_include_pad(self, count_include_pad: bool) -> Self {
        Self { count_include_pad, ..self }
    }

    /// Y `[batch, channels, windows…]` from X `[batch, channels, spatial…]`.
    ///
    /// # Errors
    /// As [`MaxPool::forward`].
    pub fn forward<T: Element, const N: usize>(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("AveragePool::forward", &self.windows, x.lift().shape())?;
        let mut y = Tensor::zeros(lower(call.outputs()))?;
        self.reduce(&call, x, y.view_mut())?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Shape`] where `y` has another shape.
    pub fn forward_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("AveragePool::forward_into", &self.windows, x.lift().shape())?;
        self.reduce(&call, x, y)
    }

    fn reduce<T: Element, const N: usize>(
        &self,
        call: &Call,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let (x, y, isa) = (x.lift(), y.lift(), machine::isa()?);
        call.expect("y", y.shape())?;
        let (op, axes, with_padding) = (call.op, call.axes, self.count_include_pad);
        forward::Call { op, isa, x, axes, reduction: Average, with_padding }.run(y)
    }

    /// dX `[batch, channels, image…]` from dY.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Shape`] where dY does not have Y's shape.
    ///
    /// ```
    /// use tilewise::{TensorView, pool::AveragePool};
    /// let dy = TensorView::from_slice(&[10.0, 2.0], [1, 1, 2])?;
    /// let dx = AveragePool::<1>::new([2]).stride([1]).backward(dy, [3])?;
    /// assert_eq!(dx.as_slice(), [5.0, 6.0, 1.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward<T: Element, const N: usize>(
        &self,
        dy: TensorView<'_, T, N>,
        image: [usize; S],
    ) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("AveragePool::backward", &self.windows, image_of(dy.shape(), image))?;
        call.expect("dy", dy.lift().shape())?;
        let mut dx = Tensor::zeros(lower(call.image))?;
        self.spread(&call, dy, dx.view_mut().lift())?;
        Ok(dx)
    }

    /// [`backward`](Self::backward) into `dx`, whose shape says the image's sizes and whose old contents are not read.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_into<T: Element, const N: usize>(
        &self,
        dy: TensorView<'_, T, N>,
        dx: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let dx = dx.lift();
        let call = Call::new("AveragePool::backward_into", &self.windows, dx.shape())?;
        call.expect("dy", dy.lift().shape())?;
        self.spread(&call, dy, dx)
    }

    fn spread<T: Element, const N: usize>(
        &self,
        call: &Call,
        dy: TensorView<'_, T, N>,
        dx: TensorViewMut<'_, T, 5>,
    ) -> Result<()> {
        let (op, axes, with_padding) = (call.op, call.axes, self.count_include_pad);
        let (isa, dy) = (machine::isa()?, dy.lift());
        spread::Call { op, isa, dy, values: None, axes, share: Average, with_padding }.run(dx)
    }
}

//! The gradients of a transposed convolution: those of a convolution in which X and Y have changed places.
#![forbid(unsafe_code)]

use super::ConvolutionTranspose;
use crate::activation::Activation;
use crate::conv::geometry::{self, Geometry, Padding};
use crate::conv::{Convolution, ConvolutionGradients};
use crate::element::Element;
use crate::error::Result;
use crate::spatial::{ImageRank, Spatial};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

impl<const S: usize> ConvolutionTranspose<S> {
    fn check_backward<const N: usize>(
        &self,
        op: &'static str,
        x: [usize; N],
        w: [usize; N],
        dz: [usize; N],
    ) -> Result<()> {
        let (_, y) = self.check(op, geometry::lift(x), geometry::lift(w), None)?;
        geometry::expect(op, "dz", S, geometry::lift(dz), y)
    }

    /// The convolution from Y to X, and the part of Y that it takes: of output padding as long as the stride, which a large
    /// dilation allows, it would make more positions than X has. `None` where no window meets Y.
    fn adjoint<'a, T, const N: usize>(
        &self,
        mut y: TensorView<'a, T, N>,
    ) -> Result<Option<(Convolution<S>, TensorView<'a, T, N>)>> {
        let Geometry { stride, padding, .. } = self.geometry;
        let Padding::Sides(mut sides) = padding else { return Ok(Some((self.convolution(padding), y))) };
        for axis in 0..S {
            let excess = self.output_padding[axis] / stride[axis] * stride[axis];
            let behind = sides[axis][1].min(excess);
            sides[axis][1] -= behind;
            let size = y.shape()[2 + axis].saturating_sub(excess - behind);
            if size == 0 {
                return Ok(None);
            }
            y = y.slice(2 + axis, ..size, 1)?;
        }
        Ok(Some((self.convolution(Padding::Sides(sides)), y)))
    }

    fn convolution(&self, padding: Padding<S>) -> Convolution<S> {
        let geometry = Geometry { padding, ..self.geometry };
        Convolution { geometry, activation: Activation::Identity, algorithm: self.algorithm }
    }

    /// dX `[batch, c_in, spatial…]`, of X's shape, from dZ, which has Y's, and W.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Shape`](crate::Error::Shape) where dZ does not have the output's shape.
    ///
    /// ```
    /// use tilewise::{TensorView, conv::ConvolutionTranspose};
    /// let dz = TensorView::from_slice(&[1.0, 2.0, 3.0], [1, 1, 3])?;
    /// let w = TensorView::from_slice(&[1.0, 10.0], [1, 1, 2])?;
    /// let dx = ConvolutionTranspose::<1>::new().backward_input(dz, w, [2])?;
    /// assert_eq!(dx.as_slice(), [21.0, 32.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward_input<T: Element, const N: usize>(
        &self,
        dz: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        image: [usize; S],
    ) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "ConvolutionTranspose::backward_input";
        let mut shape = dz.shape();
        shape[1] = w.shape()[0];
        shape[2..].copy_from_slice(&image);
        self.check_backward(op, shape, w.shape(), dz.shape())?;
        let mut dx = Tensor::zeros(shape)?;
        self.input(op, dz, w, dx.view_mut())?;
        Ok(dx)
    }

    /// [`backward_input`](Self::backward_input) into `dx`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input). Nothing is written then.
    pub fn backward_input_into<T: Element, const N: usize>(
        &self,
        dz: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        dx: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "ConvolutionTranspose::backward_input_into";
        self.check_backward(op, dx.shape(), w.shape(), dz.shape())?;
        self.input(op, dz, w, dx)
    }

    fn input<T: Element, const N: usize>(
        &self,
        op: &'static str,
        dz: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        mut dx: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        if dx.is_empty() {
            return Ok(());
        }
        let Some((conv, dz)) = self.adjoint(dz)? else {
            dx.fill(T::ZERO);
            return Ok(());
        };
        conv.run(op, dz, w.into(), None, None, dx)
    }

    /// dW `[c_in, c_out / groups, kernel…]` from X, dZ and the kernel's sizes.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input).
    ///
    /// ```
    /// use tilewise::{TensorView, conv::ConvolutionTranspose};
    /// let x = TensorView::from_slice(&[1.0, 10.0], [1, 1, 2])?;
    /// let dz = TensorView::from_slice(&[1.0, 2.0, 3.0], [1, 1, 3])?;
    /// let dw = ConvolutionTranspose::<1>::new().backward_weight(x, dz, [2])?;
    /// assert_eq!(dw.as_slice(), [21.0, 32.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward_weight<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        dz: TensorView<'_, T, N>,
        kernel: [usize; S],
    ) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "ConvolutionTranspose::backward_weight";
        self.geometry.check_groups(op, "c_out", dz.shape()[1])?;
        let mut shape = dz.shape();
        (shape[0], shape[1]) = (x.shape()[1], dz.shape()[1] / self.geometry.groups);
        shape[2..].copy_from_slice(&kernel);
        self.check_backward(op, x.shape(), shape, dz.shape())?;
        let mut dw = Tensor::zeros(shape)?;
        self.weight(op, x, dz, dw.view_mut())?;
        Ok(dw)
    }

    /// [`backward_weight`](Self::backward_weight) into `dw`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input). Nothing is written then.
    pub fn backward_weight_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        dz: TensorView<'_, T, N>,
        dw: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "ConvolutionTranspose::backward_weight_into";
        self.check_backward(op, x.shape(), dw.shape(), dz.shape())?;
        self.weight(op, x, dz, dw)
    }

    fn weight<T: Element, const N: usize>(
        &self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        dz: TensorView<'_, T, N>,
        mut dw: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let adjoint = if x.is_empty() || dz.is_empty() { None } else { self.adjoint(dz)? };
        let Some((conv, dz)) = adjoint else {
            dw.fill(T::ZERO);
            return Ok(());
        };
        conv.weight(op, dz, x, dw)
    }

    /// db `[c_out]`, the sums of dZ over all but the channels.
    ///
    /// # Errors
    /// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
    pub fn backward_bias<T: Element, const N: usize>(&self, dz: TensorView<'_, T, N>) -> Result<Tensor<T, 1>>
    where
        Spatial<S>: ImageRank<N>,
    {
        Convolution::new().backward_bias(dz)
    }

    /// All gradients of the affine part, from X, W and dZ.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input).
    pub fn backward<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        dz: TensorView<'_, T, N>,
    ) -> Result<ConvolutionGradients<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "ConvolutionTranspose::backward";
        self.check_backward(op, x.shape(), w.shape(), dz.shape())?;
        let (mut input, mut weight) = (Tensor::zeros(x.shape())?, Tensor::zeros(w.shape())?);
        let bias = self.backward_bias(dz)?;
        self.input(op, dz, w, input.view_mut())?;
        self.weight(op, x, dz, weight.view_mut())?;
        Ok(ConvolutionGradients { input, weight, bias })
    }
}

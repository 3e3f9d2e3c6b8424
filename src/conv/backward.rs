//! The gradients of a convolution.
#![forbid(unsafe_code)]

use super::Convolution;
use super::emit::Finish;
use super::geometry::{self, flip};
use super::transpose::Scatter;
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::spatial::{ImageRank, Sliding, Spatial};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// The gradients of the affine part, from [`Convolution::backward`].
#[derive(Debug)]
pub struct ConvolutionGradients<T, const N: usize> {
    /// dX, `[batch, c_in, spatial…]`.
    pub input: Tensor<T, N>,
    /// dW, `[c_out, c_in / groups, kernel…]`.
    pub weight: Tensor<T, N>,
    /// db, `[c_out]`.
    pub bias: Tensor<T, 1>,
}

impl<const S: usize> Convolution<S> {
    /// The window of a gradient, whose shapes are checked against each other.
    fn check_backward(
        &self,
        op: &'static str,
        x: [usize; 5],
        w: [usize; 5],
        dz: [usize; 5],
    ) -> Result<Sliding> {
        let sizes = self.geometry.forward(op, x, w, None)?;
        geometry::expect(op, "dz", S, dz, sizes.output)?;
        Ok(sizes.sliding)
    }

    /// dX `[batch, c_in, spatial…]` from dZ `[batch, c_out, spatial…]`, W `[c_out, c_in / groups, kernel…]` and the spatial
    /// sizes of X: with a stride, several of them give one size of dZ.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Shape`] where dZ is not the output's shape for that image.
    ///
    /// ```
    /// use tilewise::{TensorView, conv::Convolution};
    /// let dz = TensorView::from_slice(&[1.0, 2.0], [1, 1, 2])?;
    /// let w = TensorView::from_slice(&[1.0, 10.0], [1, 1, 2])?;
    /// let dx = Convolution::<1>::new().backward_input(dz, w, [3])?;
    /// assert_eq!(dx.as_slice(), [1.0, 12.0, 20.0]);
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
        let op = "Convolution::backward_input";
        let mut shape = dz.shape();
        shape[1] = w.shape()[1].saturating_mul(self.geometry.groups);
        shape[2..].copy_from_slice(&image);
        self.check_backward(op, geometry::lift(shape), w.lift().shape(), dz.lift().shape())?;
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
        self.input("Convolution::backward_input_into", dz, w, dx)
    }

    fn input<T: Element, const N: usize>(
        &self,
        op: &'static str,
        dz: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        dx: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let (dz, w, dx) = (dz.lift(), w.lift(), dx.lift());
        let sliding = self.check_backward(op, dx.shape(), w.shape(), dz.shape())?;
        let w = flip(w, self.geometry.flipped)?;
        let finish = Finish { bias: None, residual: None, activation: Activation::Identity };
        let (isa, groups, algorithm) = (machine::isa()?, self.geometry.groups, self.algorithm);
        trace::<T>(op, isa, [dz.shape(), w.shape(), dx.shape()]);
        T::scatter(&Scatter { op, isa, z: dz, w, groups, sliding, finish, algorithm }, dx)
    }

    /// dW `[c_out, c_in / groups, kernel…]` from X `[batch, c_in, spatial…]`, dZ `[batch, c_out, spatial…]` and the kernel's
    /// sizes.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Shape`] where dZ does not have the output's shape.
    ///
    /// ```
    /// use tilewise::{TensorView, conv::Convolution};
    /// let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [1, 1, 3])?;
    /// let dz = TensorView::from_slice(&[1.0, 10.0], [1, 1, 2])?;
    /// let dw = Convolution::<1>::new().backward_weight(x, dz, [2])?;
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
        let op = "Convolution::backward_weight";
        self.geometry.check_groups(op, "c_in", x.shape()[1])?;
        let mut shape = dz.shape();
        (shape[0], shape[1]) = (dz.shape()[1], x.shape()[1] / self.geometry.groups);
        shape[2..].copy_from_slice(&kernel);
        self.check_backward(op, x.lift().shape(), geometry::lift(shape), dz.lift().shape())?;
        let mut dw = Tensor::zeros(shape)?;
        self.weight(op, x, dz, dw.view_mut())?;
        Ok(dw)
    }

    /// [`backward_weight`](Self::backward_weight) into `dw`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`backward_weight`](Self::backward_weight). Nothing is written then.
    pub fn backward_weight_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        dz: TensorView<'_, T, N>,
        dw: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.weight("Convolution::backward_weight_into", x, dz, dw)
    }

    pub(super) fn weight<T: Element, const N: usize>(
        &self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        dz: TensorView<'_, T, N>,
        dw: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let (x, dz, mut dw) = (x.lift(), dz.lift(), dw.lift());
        let sliding = self.check_backward(op, x.shape(), dw.shape(), dz.shape())?;
        if self.geometry.flipped {
            dw = dw.flip(2)?.flip(3)?.flip(4)?;
        }
        let isa = machine::isa()?;
        trace::<T>(op, isa, [x.shape(), dz.shape(), dw.shape()]);
        T::weight_gradient(op, isa, [x, dz], self.geometry.groups, &sliding, self.algorithm, dw)
    }

    /// db `[c_out]`, the sums of dZ `[batch, c_out, spatial…]` over all but the channels, in a fixed order.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory, [`Error::Isa`] where `TILEWISE_ISA` is wrong.
    pub fn backward_bias<T: Element, const N: usize>(&self, dz: TensorView<'_, T, N>) -> Result<Tensor<T, 1>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let mut db = Tensor::zeros([dz.shape()[1]])?;
        self.backward_bias_into(dz, db.view_mut())?;
        Ok(db)
    }

    /// [`backward_bias`](Self::backward_bias) into `db`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`backward_bias`](Self::backward_bias); [`Error::Shape`] where `db` does not have an element for each channel. Nothing is
    /// written then.
    pub fn backward_bias_into<T: Element, const N: usize>(
        &self,
        dz: TensorView<'_, T, N>,
        db: TensorViewMut<'_, T, 1>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let (op, dz, channels) = ("Convolution::backward_bias_into", dz.lift(), dz.shape()[1]);
        if db.shape() != [channels] {
            return Err(Error::shape(op, "db", &db.shape(), &[channels]));
        }
        let tasks = parallel::tasks(dz.len(), 1 << 16);
        machine::trace(|| format!("convolution's bias gradient {:?} {} {tasks} tasks", dz.shape(), T::NAME));
        T::bias_gradient(op, machine::isa()?, dz, db, tasks)
    }

    /// All gradients of the affine part, from X, W and dZ.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input) and [`backward_weight`](Self::backward_weight).
    pub fn backward<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        w: TensorView<'_, T, N>,
        dz: TensorView<'_, T, N>,
    ) -> Result<ConvolutionGradients<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "Convolution::backward";
        self.check_backward(op, x.lift().shape(), w.lift().shape(), dz.lift().shape())?;
        let mut input = Tensor::zeros(x.shape())?;
        let mut weight = Tensor::zeros(w.shape())?;
        let bias = self.backward_bias(dz)?;
        self.input(op, dz, w, input.view_mut())?;
        self.weight(op, x, dz, weight.view_mut())?;
        Ok(ConvolutionGradients { input, weight, bias })
    }
}

/// Says what a call does, where that is asked for.
pub(super) fn trace<T: Element>(op: &'static str, isa: Isa, [a, b, to]: [[usize; 5]; 3]) {
    machine::trace(|| format!("{op} {a:?} by {b:?} to {to:?} {} {isa}", T::NAME));
}

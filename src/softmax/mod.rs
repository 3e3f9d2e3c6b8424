//! Softmax and its logarithm along one axis, forward and backward.
//!
//! | | y = | dx = |
//! |---|---|---|
//! | softmax | e^(x − m)/s | y ⊙ (dy − Σ dy ⊙ y) |
//! | logarithm | x − m − ln s | dy − e^y·Σ dy |
//!
//! with m the maximum and s = Σ e^(x − m) along the axis, so that nothing overflows whatever the inputs are.
//! (Goodfellow, Bengio and Courville, *Deep Learning*, 2016, section 4.1.)
//!
//! Entries of −∞ get 0 and ln 0 = −∞. Where all are −∞, or one is +∞ or NaN, every result along the axis is
//! NaN, as in PyTorch. A relative error is at most about (6 + |x − m|)·ε, of which |x − m|·ε comes with the
//! rounding of x − m; terms e^(x − m) below the smallest normal number count as 0.
//!
//! Which path runs when, decided by shapes and strides alone:
//!
//! | layout | path |
//! |---|---|
//! | the axis is the output's innermost in memory | *rows*: one pass each for the maximum, the sum, the scaling, each row staying in L1; where one is strided, all are copied some rows at a time |
//! | another axis is innermost, contiguous in all operands | *columns*: the same passes on blocks of neighbouring columns, a lane each |
//! | neither | rows, copied |
#![forbid(unsafe_code)]

mod drive;
mod kernel;
#[cfg(test)]
mod tests;

pub(crate) use drive::Softmaxes;

use crate::element::Element;
use crate::error::{Error, Result, expect_axis};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Softmax, or its logarithm, along one axis; the [module](self) has the formulas.
///
/// ```
/// use tilewise::{Tensor, softmax::Softmax};
/// let x = Tensor::<f64, 2>::from_slice(&[0.0, 0.0, 1e4, 0.0], [2, 2])?;
/// let y = Softmax::new(1).forward(x.view())?;
/// assert_eq!(y.as_slice(), [0.5, 0.5, 1.0, 0.0]);
/// let logarithms = Softmax::new(1).logarithm().forward(x.view())?;
/// assert_eq!(logarithms.as_slice()[2..], [0.0, -1e4]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Softmax {
    axis: usize,
    logarithm: bool,
}

impl Softmax {
    /// Softmax along `axis`.
    ///
    /// ```
    /// use tilewise::{Tensor, softmax::Softmax};
    /// let x = Tensor::<f32, 2>::zeros([4, 3])?;
    /// assert_eq!(*Softmax::new(0).forward(x.view())?.get([0, 0]).unwrap(), 0.25);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub const fn new(axis: usize) -> Self {
        Softmax { axis, logarithm: false }
    }

    /// Its logarithm, without the rounding to 0 that ln of a softmax would suffer.
    ///
    /// ```
    /// use tilewise::{Tensor, softmax::Softmax};
    /// let x = Tensor::<f32, 1>::zeros([4])?;
    /// let y = Softmax::new(0).logarithm().forward(x.view())?;
    /// assert!((y.as_slice()[0] + 4f32.ln()).abs() < 1e-6);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub const fn logarithm(self) -> Self {
        Softmax { logarithm: true, ..self }
    }

    /// The softmax of `x`, of the same shape.
    ///
    /// # Errors
    /// [`Error::Argument`] where `x` has no such axis, [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::{Tensor, softmax::Softmax};
    /// let x = Tensor::<f32, 3>::zeros([2, 5, 3])?;
    /// assert_eq!(Softmax::new(1).forward(x.view())?.as_slice(), [0.2; 30]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward<T: Element, const N: usize>(self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        expect_axis("softmax::forward", self.axis, N)?;
        let mut y = Tensor::zeros(x.shape())?;
        self.forward_into(x, y.view_mut())?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into the caller's `y`, of the shape of `x`.
    ///
    /// # Errors
    /// [`Error::Argument`] where `x` has no such axis, [`Error::Shape`] where the shapes differ,
    /// [`Error::Alloc`] where there is no memory to copy a strided row to.
    ///
    /// ```
    /// use tilewise::{Tensor, softmax::Softmax};
    /// let x = Tensor::<f32, 2>::zeros([2, 4])?;
    /// let mut y = Tensor::zeros([4, 2])?;
    /// Softmax::new(0).forward_into(x.view().transpose(), y.view_mut())?;
    /// assert_eq!(y.as_slice(), [0.25; 8]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        const OP: &str = "softmax::forward";
        expect_axis(OP, self.axis, N)?;
        if y.shape() != x.shape() {
            return Err(Error::shape(OP, "y", &y.shape(), &x.shape()));
        }
        drive::run(OP, [x], y, self.axis, kernel::Forward { logarithm: self.logarithm })
    }

    /// The gradient with respect to the input, from `y`, the output of [`forward`](Self::forward), and `dy`.
    ///
    /// # Errors
    /// As [`backward_into`](Self::backward_into).
    ///
    /// ```
    /// use tilewise::{Tensor, softmax::Softmax};
    /// let softmax = Softmax::new(0);
    /// let y = softmax.forward(Tensor::<f64, 1>::zeros([2])?.view())?;
    /// let dy = Tensor::from_slice(&[1.0, 0.0], [2])?;
    /// assert_eq!(softmax.backward(y.view(), dy.view())?.as_slice(), [0.25, -0.25]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward<T: Element, const N: usize>(
        self,
        y: TensorView<'_, T, N>,
        dy: TensorView<'_, T, N>,
    ) -> Result<Tensor<T, N>> {
        expect_axis("softmax::backward", self.axis, N)?;
        let mut dx = Tensor::zeros(y.shape())?;
        self.backward_into(y, dy, dx.view_mut())?;
        Ok(dx)
    }

    /// [`backward`](Self::backward) into the caller's `dx`. All shapes are equal.
    ///
    /// # Errors
    /// [`Error::Argument`] where `y` has no such axis, [`Error::Shape`] where shapes differ,
    /// [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::{Tensor, softmax::Softmax};
    /// let softmax = Softmax::new(1).logarithm();
    /// let y = softmax.forward(Tensor::<f64, 2>::zeros([1, 2])?.view())?;
    /// let dy = Tensor::from_slice(&[1.0, 0.0], [1, 2])?;
    /// let mut dx = Tensor::zeros([1, 2])?;
    /// softmax.backward_into(y.view(), dy.view(), dx.view_mut())?;
    /// assert!((dx.as_slice()[0] - 0.5).abs() < 1e-15);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward_into<T: Element, const N: usize>(
        self,
        y: TensorView<'_, T, N>,
        dy: TensorView<'_, T, N>,
        dx: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        const OP: &str = "softmax::backward";
        expect_axis(OP, self.axis, N)?;
        if dy.shape() != y.shape() {
            return Err(Error::shape(OP, "dy", &dy.shape(), &y.shape()));
        }
        if dx.shape() != y.shape() {
            return Err(Error::shape(OP, "dx", &dx.shape(), &y.shape()));
        }
        drive::run(OP, [y, dy], dx, self.axis, kernel::Backward { logarithm: self.logarithm })
    }
}

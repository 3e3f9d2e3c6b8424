//! The public calls (interim: the scalar twin stands in for the driver).

use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// A vector added to every row or every column of a product.
#[derive(Clone, Copy)]
pub enum Bias<'a, T> {
    /// Element `i` is added to all of row `i`.
    PerRow(TensorView<'a, T, 1>),
    /// Element `j` is added to all of column `j`.
    PerColumn(TensorView<'a, T, 1>),
}

/// A matrix to multiply by: a view, or weights packed before.
#[derive(Clone, Copy)]
pub enum Operand<'a, T> {
    /// Any strides, negative and zero ones too.
    View(TensorView<'a, T, 2>),
    /// Packed by [`Packed::lhs`] or [`Packed::rhs`].
    Packed(&'a Packed<T>),
}

impl<'a, T> From<TensorView<'a, T, 2>> for Operand<'a, T> {
    fn from(view: TensorView<'a, T, 2>) -> Self {
        Operand::View(view)
    }
}

impl<'a, T> From<&'a Packed<T>> for Operand<'a, T> {
    fn from(packed: &'a Packed<T>) -> Self {
        Operand::Packed(packed)
    }
}

/// A matrix packed for use as one side of many products.
pub struct Packed<T> {
    data: Tensor<T, 2>,
}

impl<T: Element> Packed<T> {
    /// Packs the right operand, `[k, n]`.
    ///
    /// # Errors
    /// [`Error::Alloc`].
    pub fn rhs(b: TensorView<'_, T, 2>) -> Result<Self> {
        Ok(Self { data: b.to_tensor()? })
    }

    /// Packs the left operand, `[m, k]`.
    ///
    /// # Errors
    /// [`Error::Alloc`].
    pub fn lhs(a: TensorView<'_, T, 2>) -> Result<Self> {
        Ok(Self { data: a.to_tensor()? })
    }

    /// Rows and columns of the matrix that was packed.
    pub fn shape(&self) -> [usize; 2] {
        self.data.shape()
    }
}

/// A product's options: plain data.
#[derive(Clone, Copy)]
pub struct Gemm<'e, T> {
    alpha: T,
    beta: T,
    bias: Option<Bias<'e, T>>,
    activation: Activation,
    residual: Option<TensorView<'e, T, 2>>,
}

impl<'e, T: Element> Default for Gemm<'e, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'e, T: Element> Gemm<'e, T> {
    /// C = A · B.
    pub fn new() -> Self {
        Self { alpha: T::ONE, beta: T::ZERO, bias: None, activation: Activation::Identity, residual: None }
    }

    /// The factor of A · B.
    pub fn alpha(self, alpha: T) -> Self {
        Self { alpha, ..self }
    }

    /// The factor of what C held; 0 never reads it.
    pub fn beta(self, beta: T) -> Self {
        Self { beta, ..self }
    }

    /// A vector added before the activation.
    pub fn bias(self, bias: Bias<'e, T>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Applied last.
    pub fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// A matrix `[m, n]` added before the activation.
    pub fn residual(self, residual: TensorView<'e, T, 2>) -> Self {
        Self { residual: Some(residual), ..self }
    }

    /// Computes C.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit.
    pub fn run<'a>(
        &self,
        a: impl Into<Operand<'a, T>>,
        b: impl Into<Operand<'a, T>>,
        mut c: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let view = |operand: Operand<'a, T>| match operand {
            Operand::View(view) => view,
            Operand::Packed(packed) => packed.data.view(),
        };
        let (a, b) = (view(a.into()), view(b.into()));
        let [m, k] = a.shape();
        let n = b.shape()[1];
        if b.shape()[0] != k {
            return Err(Error::shape("gemm", "b", &b.shape(), &[k, n]));
        }
        if c.shape() != [m, n] {
            return Err(Error::shape("gemm", "c", &c.shape(), &[m, n]));
        }
        for i in 0..m {
            for j in 0..n {
                let mut sum = T::ZERO;
                for p in 0..k {
                    sum += *a.get([i, p]).unwrap() * *b.get([p, j]).unwrap();
                }
                let out = c.get_mut([i, j]).unwrap();
                let mut value = self.alpha * sum;
                if self.beta != T::ZERO {
                    value += self.beta * *out;
                }
                match self.bias {
                    Some(Bias::PerRow(v)) => value += *v.get([i]).unwrap(),
                    Some(Bias::PerColumn(v)) => value += *v.get([j]).unwrap(),
                    None => {}
                }
                if let Some(residual) = self.residual {
                    value += *residual.get([i, j]).unwrap();
                }
                *out = value;
            }
        }
        Ok(())
    }
}

/// C = alpha · A · B + beta · C.
///
/// # Errors
/// [`Error::Shape`] where shapes do not fit.
pub fn gemm<'a, T: Element>(
    alpha: T,
    a: impl Into<Operand<'a, T>>,
    b: impl Into<Operand<'a, T>>,
    beta: T,
    c: TensorViewMut<'_, T, 2>,
) -> Result<()> {
    Gemm::new().alpha(alpha).beta(beta).run(a, b, c)
}

//! The activation layer.

use super::describe::debug;
use super::{Layer, Parameter, Parameters, Saved};
use crate::activation::{self, Activation};
use crate::element::Element;
use crate::error::{Result, expect};
use crate::tensor::{Tensor, TensorView};

/// An [`Activation`] applied to each element of tensors of rank `N`. No parameters.
///
/// ```
/// use tilewise::activation::Activation;
/// use tilewise::layer::{Activate, Layer};
/// use tilewise::Tensor;
/// let mut layer = Activate::<f32, 2>::new(Activation::Relu);
/// let x = Tensor::from_slice(&[-1.0, 2.0], [1, 2])?;
/// assert_eq!(layer.forward(x.view())?.as_slice(), [0.0, 2.0]);
/// assert_eq!(layer.backward(x.view())?.as_slice(), [0.0, 2.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Activate<T, const N: usize = 2> {
    activation: Activation,
    input: Saved<T, N>,
}

impl<T: Element, const N: usize> Activate<T, N> {
    /// The layer of this activation.
    pub fn new(activation: Activation) -> Self {
        Self { activation, input: Saved::NONE }
    }
}

debug!([T: Element, const N: usize] Activate<T, N>, "Activate", activation);

impl<T: Element, const N: usize> Parameters<T> for Activate<T, N> {
    fn visit(&self, _: &mut dyn FnMut(&str, &Parameter<T>)) {}

    fn visit_mut(&mut self, _: &mut dyn FnMut(&str, &mut Parameter<T>)) {}
}

impl<T: Element, const N: usize> Layer<T, N, N> for Activate<T, N> {
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
        Ok(x)
    }

    fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
        let op = "Activate::backward";
        expect(op, "dy", &dy, &self.input.get(op)?.shape())?;
        Ok(dy)
    }

    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let y = self.infer(x)?;
        self.input.keep(x)?;
        Ok(y)
    }

    fn forward_owned(&mut self, x: Tensor<T, N>) -> Result<Tensor<T, N>> {
        let y = self.infer(x.view())?;
        self.input.take(x);
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let mut y = Tensor::zeros(x.shape())?;
        activation::forward(self.activation, x, y.view_mut())?;
        Ok(y)
    }

    fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.check_backward(dy.shape())?;
        let x = self.input.get("Activate::backward")?;
        let mut dx = Tensor::zeros(x.shape())?;
        activation::backward(self.activation, x, dy, dx.view_mut())?;
        Ok(dx)
    }
}

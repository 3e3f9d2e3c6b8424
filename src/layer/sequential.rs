//! Layers one after the other.

use std::fmt::{self, Debug, Formatter};

use super::describe::describe;
use super::{Layer, Parameter, Parameters, not_called};
use crate::element::Element;
use crate::error::{Result, expect};
use crate::tensor::{Tensor, TensorView};

/// Layers from matrices to matrices, each taking what the one before gives. The parameters of layer `i` are named
/// `"i.…"`.
///
/// ```
/// use tilewise::activation::Activation;
/// use tilewise::layer::{Activate, Init, Linear, Parameters, Sequential};
/// use tilewise::random::Rng;
///
/// let mut rng = Rng::seed(1);
/// let net = Sequential::<f32>::new()
///     .push(Linear::new(784, 128, Init::kaiming_uniform(), &mut rng)?)
///     .push(Activate::new(Activation::Relu))
///     .push(Linear::new(128, 10, Init::xavier_uniform(), &mut rng)?);
/// let mut names = Vec::new();
/// net.visit(&mut |name, _| names.push(name.to_owned()));
/// assert_eq!(names, ["0.weight", "0.bias", "2.weight", "2.bias"]);
/// assert_eq!(net.parameter_count(), 784 * 128 + 128 + 128 * 10 + 10);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Sequential<T> {
    layers: Vec<Box<dyn Layer<T> + Send>>,
    /// The shape of what the last `forward` gave; none where it failed halfway.
    output: Option<[usize; 2]>,
}

impl<T: Element> Default for Sequential<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Element> Sequential<T> {
    /// No layers: the identity.
    pub fn new() -> Self {
        Self { layers: Vec::new(), output: None }
    }

    /// With one more layer at the end.
    pub fn push(mut self, layer: impl Layer<T> + Send + 'static) -> Self {
        self.layers.push(Box::new(layer));
        self.output = None;
        self
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// True where there are no layers.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// From the last layer to the first.
fn back<T: Element>(
    layers: &mut [Box<dyn Layer<T> + Send>],
    dy: TensorView<'_, T, 2>,
) -> Result<Option<Tensor<T, 2>>> {
    let mut dx: Option<Tensor<T, 2>> = None;
    for layer in layers.iter_mut().rev() {
        dx = Some(match dx {
            Some(dx) => layer.backward_owned(dx)?,
            None => layer.backward(dy)?,
        });
    }
    Ok(dx)
}

impl<T: Element> Debug for Sequential<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        describe(f, "Sequential", &[("layers", &self.len())], self)
    }
}

impl<T: Element> Parameters<T> for Sequential<T> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        for (number, layer) in self.layers.iter().enumerate() {
            layer.visit(&mut |name, parameter| f(&format!("{number}.{name}"), parameter));
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        for (number, layer) in self.layers.iter_mut().enumerate() {
            layer.visit_mut(&mut |name, parameter| f(&format!("{number}.{name}"), parameter));
        }
    }
}

impl<T: Element> Layer<T> for Sequential<T> {
    fn check_forward(&self, x: [usize; 2]) -> Result<[usize; 2]> {
        self.layers.iter().try_fold(x, |x, layer| layer.check_forward(x))
    }

    fn check_backward(&self, dy: [usize; 2]) -> Result<[usize; 2]> {
        let op = "Sequential::backward";
        expect(op, "dy", &dy, &self.output.ok_or_else(|| not_called(op))?)?;
        self.layers.iter().rev().try_fold(dy, |dy, layer| layer.check_backward(dy))
    }

    /// Where memory runs out in a layer, those before it have kept the new input: [`backward`](Layer::backward) is then refused
    /// until `forward` has succeeded.
    fn forward(&mut self, x: TensorView<'_, T, 2>) -> Result<Tensor<T, 2>> {
        self.check_forward(x.shape())?;
        self.output = None;
        let mut y: Option<Tensor<T, 2>> = None;
        for layer in &mut self.layers {
            y = Some(match y {
                Some(y) => layer.forward_owned(y)?,
                None => layer.forward(x)?,
            });
        }
        let y = y.map_or_else(|| x.to_tensor(), Ok)?;
        self.output = Some(y.shape());
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, 2>) -> Result<Tensor<T, 2>> {
        let mut y: Option<Tensor<T, 2>> = None;
        for layer in &self.layers {
            y = Some(layer.infer(y.as_ref().map_or(x, Tensor::view))?);
        }
        y.map_or_else(|| x.to_tensor(), Ok)
    }

    fn backward(&mut self, dy: TensorView<'_, T, 2>) -> Result<Tensor<T, 2>> {
        self.check_backward(dy.shape())?;
        let dx = back(&mut self.layers, dy)?;
        dx.map_or_else(|| dy.to_tensor(), Ok)
    }

    fn backward_parameters(&mut self, dy: TensorView<'_, T, 2>) -> Result<()> {
        self.check_backward(dy.shape())?;
        let Some((first, others)) = self.layers.split_first_mut() else { return Ok(()) };
        let dx = back(others, dy)?;
        match dx {
            Some(dx) => first.backward_parameters_owned(dx),
            None => first.backward_parameters(dy),
        }
    }
}

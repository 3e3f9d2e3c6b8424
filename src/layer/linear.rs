//! The dense layer.

use super::describe::debug;
use super::{Init, Layer, Parameter, Parameters, Saved, Spare};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::linear::{Dense, DenseGradientsMut};
use crate::random::Rng;
use crate::tensor::{Tensor, TensorView};

/// Y = X W + 1 bᵀ, with parameters `weight` `[inputs, outputs]` and `bias` `[outputs]`.
///
/// ```
/// use tilewise::layer::{Init, Layer, Linear};
/// use tilewise::{Tensor, random::Rng};
/// let mut layer = Linear::<f32>::new(784, 10, Init::kaiming_uniform(), &mut Rng::seed(1))?;
/// let x = Tensor::zeros([32, 784])?;
/// assert_eq!(layer.forward(x.view())?.shape(), [32, 10]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Linear<T> {
    weight: Parameter<T>,
    bias: Option<Parameter<T>>,
    input: Saved<T, 2>,
    /// For dX: the input of the step before.
    spare: Spare<T, 2>,
}

impl<T: Element> Linear<T> {
    /// A layer with initial weights from `init` and bias 0.
    ///
    /// # Errors
    /// [`Error::Overflow`] or [`Error::Alloc`] where there is no memory for that many.
    pub fn new(inputs: usize, outputs: usize, init: Init, rng: &mut Rng) -> Result<Self> {
        let mut weight = Tensor::zeros([inputs, outputs])?;
        init.fill(weight.as_mut_slice(), inputs, outputs, rng);
        Self::from_parts(weight, Some(Tensor::zeros([outputs])?))
    }

    /// A layer with this weight `[inputs, outputs]` and bias `[outputs]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the bias does not fit the weight, [`Error::Alloc`] where there is no memory for the
    /// gradients.
    pub fn from_parts(weight: Tensor<T, 2>, bias: Option<Tensor<T, 1>>) -> Result<Self> {
        let [_, outputs] = weight.shape();
        let bias = match bias {
            Some(bias) if bias.shape() != [outputs] => {
                return Err(Error::shape("Linear::from_parts", "bias", &bias.shape(), &[outputs]));
            }
            Some(bias) => Some(Parameter::new(bias)?),
            None => None,
        };
        Ok(Self { weight: Parameter::new(weight)?, bias, input: Saved::NONE, spare: Spare::NONE })
    }

    /// The weight, `[inputs, outputs]`.
    pub fn weight(&self) -> &Parameter<T> {
        &self.weight
    }

    /// The bias, `[outputs]`.
    pub fn bias(&self) -> Option<&Parameter<T>> {
        self.bias.as_ref()
    }

    /// The shape of what an input of this shape gives, with parameters that may have been exchanged.
    fn output(&self, op: &'static str, x: [usize; 2]) -> Result<[usize; 2]> {
        let (weight, bias) = (self.weight.view::<2>()?, self.bias.as_ref().map(Parameter::view::<1>));
        let [inputs, outputs] = weight.shape();
        expect(op, "x", &x, &[x[0], inputs])?;
        bias.transpose()?.map_or(Ok(()), |bias| expect(op, "bias", &bias.shape(), &[outputs]))?;
        Ok([x[0], outputs])
    }
}

debug!([T: Element] Linear<T>, "Linear");

impl<T: Element> Parameters<T> for Linear<T> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        f("weight", &self.weight);
        if let Some(bias) = &self.bias {
            f("bias", bias);
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        f("weight", &mut self.weight);
        if let Some(bias) = &mut self.bias {
            f("bias", bias);
        }
    }
}

impl<T: Element> Layer<T> for Linear<T> {
    fn check_forward(&self, x: [usize; 2]) -> Result<[usize; 2]> {
        self.output("Linear::forward", x)
    }

    fn check_backward(&self, dy: [usize; 2]) -> Result<[usize; 2]> {
        let op = "Linear::backward";
        let (x, weight) = (self.input.get(op)?.shape(), self.weight.view::<2>()?.shape());
        // The weight may be another one by now.
        expect(op, "weight", &weight, &[x[1], weight[1]])?;
        expect(op, "dy", &dy, &self.output(op, x)?)?;
        Ok(x)
    }

    fn forward(&mut self, x: TensorView<'_, T, 2>) -> Result<Tensor<T, 2>> {
        let y = self.infer(x)?;
        self.input.keep(x)?;
        Ok(y)
    }

    fn forward_owned(&mut self, x: Tensor<T, 2>) -> Result<Tensor<T, 2>> {
        let y = self.infer(x.view())?;
        self.spare.0 = self.input.take(x);
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, 2>) -> Result<Tensor<T, 2>> {
        self.check_forward(x.shape())?;
        let (weight, bias) = (self.weight.view()?, self.bias.as_ref().map(Parameter::view).transpose()?);
        Dense::new().forward(x, weight, bias)
    }

    fn backward(&mut self, dy: TensorView<'_, T, 2>) -> Result<Tensor<T, 2>> {
        // First what can fail for lack of memory.
        let mut dx = self.spare.tensor(self.check_backward(dy.shape())?)?;
        Dense::new().backward_input_into(dy, self.weight.view()?, T::ZERO, dx.view_mut())?;
        self.backward_parameters(dy)?;
        Ok(dx)
    }

    fn backward_parameters(&mut self, dy: TensorView<'_, T, 2>) -> Result<()> {
        self.check_backward(dy.shape())?;
        let x = self.input.get("Linear::backward")?;
        let (weight, dw) = self.weight.views()?;
        let bias = self.bias.as_mut().map(Parameter::gradient_view_mut).transpose()?;
        let gradients = DenseGradientsMut { input: None, weight: Some(dw), bias };
        Dense::new().backward_into(x, weight, dy, T::ONE, gradients)
    }
}

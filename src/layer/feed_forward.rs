//! The feed-forward part of a transformer.

use super::describe::debug;
use super::{Dropout, Init, Layer, Linear, Parameter, Parameters, Saved};
use crate::activation::{self, Activation};
use crate::element::Element;
use crate::error::{Result, expect};
use crate::random::Rng;
use crate::tensor::{Tensor, TensorView};

/// Two dense layers with an activation between them, at each position alike: f(x W₁ + b₁) W₂ + b₂; gated,
/// (f(x W₁ + b₁) ⊙ (x W₃ + b₃)) W₂ + b₂. With SiLU the gated form is SwiGLU.
///
/// Takes and gives `[batch, length, width]`. Parameters are those of the [`Linear`] layers `"up"`, `"gate"` (W₃) and
/// `"down"`. Source: N. Shazeer, "GLU variants improve transformer" (2020).
///
/// ```
/// use tilewise::layer::{FeedForward, Layer};
/// use tilewise::{Tensor, activation::Activation, random::Rng};
/// let x = Tensor::<f32, 3>::full([2, 5, 8], 0.5)?;
/// let mut rng = Rng::seed(1);
/// let gelu = FeedForward::new(8, 32, Activation::Gelu, &mut rng)?;
/// let swiglu = FeedForward::gated(8, 32, Activation::Silu, &mut rng)?;
/// assert_eq!(gelu.infer(x.view())?.shape(), [2, 5, 8]);
/// assert_eq!(swiglu.infer(x.view())?.shape(), [2, 5, 8]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct FeedForward<T> {
    up: Linear<T>,
    gate: Option<Linear<T>>,
    down: Linear<T>,
    activation: Activation,
    dropout: Option<Dropout<T>>,
    /// x W₁ + b₁ and, gated, x W₃ + b₃.
    sums: Saved<T, 2>,
    gates: Saved<T, 2>,
    /// Of the last input, and so of its output.
    shape: [usize; 3],
}

impl<T: Element> FeedForward<T> {
    /// From `width` to `hidden` and back.
    ///
    /// # Errors
    /// [`Error::Overflow`](crate::Error::Overflow) or [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
    pub fn new(width: usize, hidden: usize, activation: Activation, rng: &mut Rng) -> Result<Self> {
        let init = Init::xavier_uniform();
        let up = Linear::new(width, hidden, init, rng)?;
        let down = Linear::new(hidden, width, init, rng)?;
        Self::from_parts(activation, up, None, down)
    }

    /// The gated form.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn gated(width: usize, hidden: usize, activation: Activation, rng: &mut Rng) -> Result<Self> {
        let gate = Linear::new(width, hidden, Init::xavier_uniform(), rng)?;
        Ok(Self { gate: Some(gate), ..Self::new(width, hidden, activation, rng)? })
    }

    /// From its dense layers: W₁ and b₁, gated W₃ and b₃, W₂ and b₂.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where the gate's weight does not have the shape of W₁, or W₂ not that of its transpose.
    ///
    /// ```
    /// use tilewise::layer::{FeedForward, Layer, Linear};
    /// use tilewise::{Tensor, activation::Activation};
    /// let up = Linear::from_parts(Tensor::from_slice(&[1.0, -1.0], [1, 2])?, None)?;
    /// let down = Linear::from_parts(Tensor::from_slice(&[1.0, 10.0], [2, 1])?, None)?;
    /// let layer = FeedForward::<f64>::from_parts(Activation::Relu, up, None, down)?;
    /// let x = Tensor::from_slice(&[3.0, -2.0], [1, 2, 1])?;
    /// assert_eq!(layer.infer(x.view())?.as_slice(), [3.0, 20.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn from_parts(
        activation: Activation,
        up: Linear<T>,
        gate: Option<Linear<T>>,
        down: Linear<T>,
    ) -> Result<Self> {
        let [width, hidden]: [usize; 2] = up.weight().view()?.shape();
        let op = "FeedForward::from_parts";
        if let Some(gate) = &gate {
            expect(op, "weight of gate", gate.weight().shape(), &[width, hidden])?;
        }
        expect(op, "weight of down", down.weight().shape(), &[hidden, width])?;
        let (sums, gates) = (Saved::NONE, Saved::NONE);
        Ok(Self { up, gate, down, activation, dropout: None, sums, gates, shape: [0; 3] })
    }

    /// Dropout while training of what goes into the second layer. What `forward` has kept of a call without it is dropped.
    ///
    /// # Errors
    /// As [`Dropout::new`].
    pub fn dropout(self, probability: f64, seed: u64) -> Result<Self> {
        Ok(Self { dropout: Some(Dropout::new(probability, seed)?), sums: Saved::NONE, ..self })
    }

    /// What goes into the second layer, from x W₁ + b₁ and x W₃ + b₃.
    fn inner(&self, sums: &Tensor<T, 2>, gates: Option<&Tensor<T, 2>>) -> Result<Tensor<T, 2>> {
        let mut inner = Tensor::zeros(sums.shape())?;
        activation::forward(self.activation, sums.view(), inner.view_mut())?;
        if let Some(gates) = gates {
            inner.as_mut_slice().iter_mut().zip(gates.as_slice()).for_each(|(x, &gate)| *x *= gate);
        }
        Ok(inner)
    }
}

/// `[batch, length, width]` as rows, copied where that needs it.
pub(super) fn rows<T: Element>(x: TensorView<'_, T, 3>) -> Result<Tensor<T, 2>> {
    let [batch, length, width] = x.shape();
    x.to_tensor()?.reshape([batch.saturating_mul(length), width])
}

debug!([T: Element] FeedForward<T>, "FeedForward", activation, dropout);

impl<T: Element> Parameters<T> for FeedForward<T> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        self.up.visit(&mut |name, parameter| f(&format!("up.{name}"), parameter));
        if let Some(gate) = &self.gate {
            gate.visit(&mut |name, parameter| f(&format!("gate.{name}"), parameter));
        }
        self.down.visit(&mut |name, parameter| f(&format!("down.{name}"), parameter));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        self.up.visit_mut(&mut |name, parameter| f(&format!("up.{name}"), parameter));
        if let Some(gate) = &mut self.gate {
            gate.visit_mut(&mut |name, parameter| f(&format!("gate.{name}"), parameter));
        }
        self.down.visit_mut(&mut |name, parameter| f(&format!("down.{name}"), parameter));
    }
}

impl<T: Element> Layer<T, 3, 3> for FeedForward<T> {
    fn check_forward(&self, x: [usize; 3]) -> Result<[usize; 3]> {
        let (op, [batch, length, _], [width, _]) =
            ("FeedForward::forward", x, self.up.weight().view::<2>()?.shape());
        expect(op, "x", &x, &[batch, length, width])?;
        let rows = [batch.saturating_mul(length), width];
        let sums = self.up.check_forward(rows)?;
        if let Some(gate) = &self.gate {
            expect(op, "x times the weight of gate", &gate.check_forward(rows)?, &sums)?;
        }
        expect(op, "the output", &self.down.check_forward(sums)?, &rows)?;
        Ok(x)
    }

    fn check_backward(&self, dy: [usize; 3]) -> Result<[usize; 3]> {
        let op = "FeedForward::backward";
        let (sums, [batch, length, width]) = (self.sums.get(op)?.shape(), self.shape);
        expect(op, "dy", &dy, &self.shape)?;
        self.down.check_backward([batch.saturating_mul(length), width])?;
        self.dropout.as_ref().map_or(Ok(sums), |dropout| dropout.check_backward(sums))?;
        for part in self.gate.iter().chain([&self.up]) {
            part.check_backward(sums)?;
        }
        Ok(dy)
    }

    /// Where memory runs out in a part, those before it have kept the new input: [`backward`](Layer::backward) is then refused
    /// until `forward` has succeeded.
    fn forward(&mut self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        self.check_forward(x.shape())?;
        let x2 = rows(x)?;
        // From here on the parts may keep what belongs to this call: without the sums there is no way back.
        self.sums = Saved::NONE;
        let sums = self.up.forward(x2.view())?;
        let gates = self.gate.as_mut().map(|gate| gate.forward(x2.view())).transpose()?;
        let mut inner = self.inner(&sums, gates.as_ref())?;
        if let Some(dropout) = &mut self.dropout {
            inner = dropout.forward(inner.view())?;
        }
        let y = self.down.forward(inner.view())?;
        (self.sums, self.gates, self.shape) = (Saved(Some(sums)), Saved(gates), x.shape());
        y.reshape(x.shape())
    }

    fn infer(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        self.check_forward(x.shape())?;
        let x2 = rows(x)?;
        let gates = self.gate.as_ref().map(|gate| gate.infer(x2.view())).transpose()?;
        let inner = self.inner(&self.up.infer(x2.view())?, gates.as_ref())?;
        self.down.infer(inner.view())?.reshape(x.shape())
    }

    fn backward(&mut self, dy: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        self.check_backward(dy.shape())?;
        let sums = self.sums.get("FeedForward::backward")?;
        let mut dinner = self.down.backward(rows(dy)?.view())?;
        if let Some(dropout) = &mut self.dropout {
            dinner = dropout.backward(dinner.view())?;
        }
        let mut dx = None;
        if let (Some(layer), Some(gates)) = (&mut self.gate, &self.gates.0) {
            let mut dgates = Tensor::zeros(sums.shape())?;
            activation::forward(self.activation, sums, dgates.view_mut())?;
            for ((dgate, dinner), &gate) in
                dgates.as_mut_slice().iter_mut().zip(dinner.as_mut_slice()).zip(gates.as_slice())
            {
                *dgate *= *dinner;
                *dinner *= gate;
            }
            dx = Some(layer.backward(dgates.view())?);
        }
        let mut dsums = Tensor::zeros(sums.shape())?;
        activation::backward(self.activation, sums, dinner.view(), dsums.view_mut())?;
        let mut through = self.up.backward(dsums.view())?;
        if let Some(dx) = dx {
            through.as_mut_slice().iter_mut().zip(dx.as_slice()).for_each(|(sum, &dx)| *sum += dx);
        }
        through.reshape(dy.shape())
    }
}

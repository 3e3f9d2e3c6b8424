//! Parts of transformers, number by number.

use super::attention::Attention;
use super::norm::{self, Norm};
use super::{activation, at, dense, expect};
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView};

/// The twin of [`layer::sinusoidal`](crate::layer::sinusoidal).
///
/// # Errors
/// [`Error::Alloc`] where there is no memory.
///
/// ```
/// use tilewise::reference::transformer::sinusoidal;
/// let encoding = sinusoidal(2, 4)?;
/// assert_eq!(encoding.as_slice()[4..], [1f64.sin(), 1f64.cos(), 0.01f64.sin(), 0.01f64.cos()]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn sinusoidal(length: usize, dim: usize) -> Result<Tensor<f64, 2>> {
    Tensor::from_fn([length, dim], |[p, d]| {
        let angle = p as f64 * 1e4f64.powf(-((d - d % 2) as f64) / dim as f64);
        [angle.sin(), angle.cos()][d % 2]
    })
}

/// Which pairs a rotary encoding turns, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Pair number i is turned by position · base^(−2i/dim).
    pub base: f64,
    /// Pairs are neighbours, else they lie half a head apart.
    pub interleaved: bool,
}

impl Rotary {
    /// The twin of [`layer::Rotary::apply`](crate::layer::Rotary::apply): `[batch, heads, length, dim]`, the first of
    /// `length` at position `first`.
    ///
    /// # Errors
    /// [`Error::Argument`] where `dim` is odd, [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::{Tensor, reference::transformer::Rotary};
    /// let x = Tensor::from_slice(&[1.0f32, 0.0], [1, 1, 1, 2])?;
    /// let y = Rotary { base: 1e4, interleaved: false }.apply(x.view(), 3)?;
    /// assert_eq!(y.as_slice(), [3f64.cos(), 3f64.sin()]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn apply<T: Element>(&self, x: TensorView<'_, T, 4>, first: usize) -> Result<Tensor<f64, 4>> {
        let dim = x.shape()[3];
        if dim % 2 == 1 {
            return Err(Error::argument("reference::transformer::Rotary", "dim", dim, "an even number"));
        }
        Tensor::from_fn(x.shape(), |[b, h, l, d]| {
            let (pair, second) =
                if self.interleaved { (d / 2, d % 2 == 1) } else { (d % (dim / 2), d >= dim / 2) };
            let [low, high] =
                if self.interleaved { [2 * pair, 2 * pair + 1] } else { [pair, pair + dim / 2] };
            let angle = (first + l) as f64 * self.base.powf(-2.0 * pair as f64 / dim as f64);
            let (low, high) = (at(x, [b, h, l, low]), at(x, [b, h, l, high]));
            if second {
                low * angle.sin() + high * angle.cos()
            } else {
                low * angle.cos() - high * angle.sin()
            }
        })
    }
}

/// A weight `[inputs, outputs]` and a bias `[outputs]`.
#[derive(Clone, Copy)]
pub struct Linear<'a, T> {
    /// W.
    pub weight: TensorView<'a, T, 2>,
    /// b.
    pub bias: Option<TensorView<'a, T, 1>>,
}

impl<T: Element> Linear<'_, T> {
    /// f(x W + b) of each position of `[batch, length, inputs]`.
    fn apply(&self, x: TensorView<'_, f64, 3>, f: impl Fn(f64) -> f64) -> Result<Tensor<f64, 3>> {
        let [batch, length, inputs] = x.shape();
        let (x, weight) = (x.to_tensor()?.reshape([batch * length, inputs])?, exact(self.weight)?);
        let bias = self.bias.map(exact).transpose()?;
        let y = dense(x.view(), weight.view(), bias.as_ref().map(Tensor::view), f)?;
        y.reshape([batch, length, weight.shape()[1]])
    }
}

/// The same numbers in `f64`.
fn exact<T: Element, const N: usize>(x: TensorView<'_, T, N>) -> Result<Tensor<f64, N>> {
    Tensor::from_fn(x.shape(), |index| at(x, index))
}

/// The twin of [`layer::FeedForward`](crate::layer::FeedForward) in inference.
#[derive(Clone, Copy)]
pub struct FeedForward<'a, T> {
    /// W₁ and b₁.
    pub up: Linear<'a, T>,
    /// W₃ and b₃ of the gated form.
    pub gate: Option<Linear<'a, T>>,
    /// W₂ and b₂.
    pub down: Linear<'a, T>,
    /// f.
    pub activation: Activation,
}

impl<T: Element> FeedForward<'_, T> {
    /// f(x W₁ + b₁) W₂ + b₂, or (f(x W₁ + b₁) ⊙ (x W₃ + b₃)) W₂ + b₂, for `[batch, length, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::{Tensor, TensorView, activation::Activation};
    /// use tilewise::reference::transformer::{FeedForward, Linear};
    /// let one = |x: &'static [f64]| -> tilewise::Result<_> {
    ///     Ok(Linear { weight: TensorView::from_slice(x, [1, 1])?, bias: None })
    /// };
    /// let (up, down) = (one(&[-2.0])?, one(&[10.0])?);
    /// let part = FeedForward { up, gate: None, down, activation: Activation::Relu };
    /// let x = Tensor::from_slice(&[-1.0, 1.0], [1, 2, 1])?;
    /// assert_eq!(part.forward(x.view())?.as_slice(), [20.0, 0.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<f64, 3>> {
        self.apply(exact(x)?.view())
    }

    fn apply(&self, x: TensorView<'_, f64, 3>) -> Result<Tensor<f64, 3>> {
        let mut inner = self.up.apply(x, |z| activation::value(self.activation, z))?;
        if let Some(gate) = &self.gate {
            let gates = gate.apply(x, |z| z)?;
            expect("reference::transformer::FeedForward", "gate", &gates.shape(), &inner.shape())?;
            inner = Tensor::from_fn(inner.shape(), |i| at(inner.view(), i) * at(gates.view(), i))?;
        }
        self.down.apply(inner.view(), |z| z)
    }
}

/// The twin of [`layer::MultiHeadAttention`](crate::layer::MultiHeadAttention) in inference.
#[derive(Clone, Copy)]
pub struct MultiHeadAttention<'a, T> {
    /// Heads of queries, and of keys and values.
    pub heads: [usize; 2],
    /// The projections to queries, keys and values, their columns one after the other.
    pub input: Linear<'a, T>,
    /// The projection of the heads side by side.
    pub output: Linear<'a, T>,
    /// A query sees the keys up to its own position.
    pub causal: bool,
    /// Turns queries and keys.
    pub rotary: Option<Rotary>,
}

impl<T: Element> MultiHeadAttention<'_, T> {
    /// Queries from `x`, `[batch, queries, width]`, keys and values from `context`, `[batch, keys, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Argument`] where shapes do not fit, [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::{Tensor, reference::transformer::{Linear, MultiHeadAttention}};
    /// let (input, output) = (Tensor::full([1, 3], 1.0)?, Tensor::full([1, 1], 10.0)?);
    /// let (input, output) =
    ///     (Linear { weight: input.view(), bias: None }, Linear { weight: output.view(), bias: None });
    /// let layer = MultiHeadAttention { heads: [1, 1], input, output, causal: false, rotary: None };
    /// let (x, context) = (Tensor::zeros([1, 1, 1])?, Tensor::from_slice(&[1.0, 3.0], [1, 2, 1])?);
    /// assert_eq!(layer.forward(x.view(), context.view())?.as_slice(), [20.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward(&self, x: TensorView<'_, T, 3>, context: TensorView<'_, T, 3>) -> Result<Tensor<f64, 3>> {
        self.apply(exact(x)?.view(), exact(context)?.view())
    }

    fn apply(&self, x: TensorView<'_, f64, 3>, context: TensorView<'_, f64, 3>) -> Result<Tensor<f64, 3>> {
        let [heads, kv_heads] = self.heads;
        let (all, columns) = (heads + 2 * kv_heads, self.input.weight.shape()[1]);
        if kv_heads == 0 || !columns.is_multiple_of(all) {
            let op = "reference::transformer::MultiHeadAttention";
            return Err(Error::argument(op, "columns of input", columns, "a multiple of all heads"));
        }
        let dim = columns / all;
        // Heads `first` to before `first + count` of all that the input's projection gives.
        let part = |x: TensorView<'_, f64, 3>, first: usize, count: usize| {
            let y = self.input.apply(x, |z| z)?;
            let [batch, length, _] = y.shape();
            Tensor::from_fn([batch, count, length, dim], |[b, h, l, d]| {
                at(y.view(), [b, l, (first + h) * dim + d])
            })
        };
        let (mut q, mut k) = (part(x, 0, heads)?, part(context, heads, kv_heads)?);
        let v = part(context, heads + kv_heads, kv_heads)?;
        if let Some(rotary) = self.rotary {
            (q, k) = (rotary.apply(q.view(), 0)?, rotary.apply(k.view(), 0)?);
        }
        let mut attention = Attention::new(1.0 / (dim as f64).sqrt());
        attention.causal = self.causal;
        let y = attention.forward(q.view(), k.view(), v.view())?.output;
        let [batch, _, length, _] = y.shape();
        let side_by_side = Tensor::from_fn([batch, length, heads * dim], |[b, l, column]| {
            at(y.view(), [b, column / dim, l, column % dim])
        })?;
        self.output.apply(side_by_side.view(), |z| z)
    }
}

/// A normalisation of `[batch, length, width]` over its last axis.
#[derive(Clone, Copy)]
pub struct RowNorm<'a, T> {
    /// [`Norm::Layer`] or [`Norm::Rms`].
    pub norm: Norm,
    /// `[width]`.
    pub scale: Option<TensorView<'a, T, 1>>,
    /// `[width]`.
    pub shift: Option<TensorView<'a, T, 1>>,
    /// What is added to the variance.
    pub epsilon: f64,
}

impl<T: Element> RowNorm<'_, T> {
    fn apply(&self, x: TensorView<'_, f64, 3>) -> Result<Tensor<f64, 3>> {
        let (scale, shift) = (self.scale.map(exact).transpose()?, self.shift.map(exact).transpose()?);
        let (scale, shift) = (scale.as_ref().map(Tensor::view), shift.as_ref().map(Tensor::view));
        norm::forward(self.norm, x, scale, shift, self.epsilon, None)
    }
}

/// The twin of [`layer::TransformerBlock`](crate::layer::TransformerBlock) in inference.
#[derive(Clone, Copy)]
pub struct TransformerBlock<'a, T> {
    /// The first part.
    pub attention: MultiHeadAttention<'a, T>,
    /// The second part.
    pub feed_forward: FeedForward<'a, T>,
    /// Of the parts.
    pub norms: [RowNorm<'a, T>; 2],
    /// x + f(norm(x)), else norm(x + f(x)).
    pub pre: bool,
}

impl<T: Element> TransformerBlock<'_, T> {
    /// For `[batch, length, width]`.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward`].
    pub fn forward(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<f64, 3>> {
        let attend = |x: TensorView<'_, f64, 3>| self.attention.apply(x, x);
        let x = self.part(&self.norms[0], exact(x)?, attend)?;
        self.part(&self.norms[1], x, |x| self.feed_forward.apply(x))
    }

    fn part(
        &self,
        norm: &RowNorm<'_, T>,
        x: Tensor<f64, 3>,
        f: impl Fn(TensorView<'_, f64, 3>) -> Result<Tensor<f64, 3>>,
    ) -> Result<Tensor<f64, 3>> {
        let y = if self.pre { f(norm.apply(x.view())?.view())? } else { f(x.view())? };
        let sum = Tensor::from_fn(x.shape(), |index| at(x.view(), index) + at(y.view(), index))?;
        if self.pre { Ok(sum) } else { norm.apply(sum.view()) }
    }
}

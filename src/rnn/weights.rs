//! Weights, packed weights and gradients.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::descriptor::Spec;
use super::ready::Parts;
use super::sizes::{Sizes, WeightSizes};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::workspace::{self, Aligned};

/// The weights of one layer, in any strides: plain data.
///
/// Gates stand one after the other: i, f, g, o (LSTM) and r, z, n (GRU), as in PyTorch.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a, T> {
    /// U, `[directions, gates·hidden, inputs]`.
    pub input: TensorView<'a, T, 3>,
    /// W, `[directions, gates·hidden, state]`.
    pub recurrent: TensorView<'a, T, 3>,
    /// Added to U x, `[directions, gates·hidden]`.
    pub bias: Option<TensorView<'a, T, 2>>,
    /// Added to W h, `[directions, gates·hidden]`.
    pub recurrent_bias: Option<TensorView<'a, T, 2>>,
    /// An LSTM's peepholes from c to i, f and o, `[directions, 3·hidden]`.
    pub peephole: Option<TensorView<'a, T, 2>>,
    /// What an LSTM's o ⊙ tanh c is multiplied by to give h, `[directions, state, hidden]`.
    pub projection: Option<TensorView<'a, T, 3>>,
}

impl<'a, T: Element> Weights<'a, T> {
    /// U `[directions, gates·hidden, inputs]` and W `[directions, gates·hidden, state]`, without biases.
    pub fn new(input: TensorView<'a, T, 3>, recurrent: TensorView<'a, T, 3>) -> Self {
        Self { input, recurrent, bias: None, recurrent_bias: None, peephole: None, projection: None }
    }

    /// A bias added to U x, `[directions, gates·hidden]`.
    pub fn bias(self, bias: TensorView<'a, T, 2>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// A bias added to W h, `[directions, gates·hidden]`.
    pub fn recurrent_bias(self, bias: TensorView<'a, T, 2>) -> Self {
        Self { recurrent_bias: Some(bias), ..self }
    }

    /// Peepholes, `[directions, 3·hidden]`.
    pub fn peephole(self, peephole: TensorView<'a, T, 2>) -> Self {
        Self { peephole: Some(peephole), ..self }
    }

    /// A projection, `[directions, state, hidden]`.
    pub fn projection(self, projection: TensorView<'a, T, 3>) -> Self {
        Self { projection: Some(projection), ..self }
    }

    /// Those of one direction, which exists.
    pub(crate) fn one(&self, direction: usize) -> Result<DirectionWeights<'a, T>> {
        let vector =
            |view: Option<TensorView<'a, T, 2>>| view.map(|view| view.select(0, direction)).transpose();
        Ok(DirectionWeights {
            input: self.input.select(0, direction)?,
            recurrent: self.recurrent.select(0, direction)?,
            bias: vector(self.bias)?,
            recurrent_bias: vector(self.recurrent_bias)?,
            peephole: vector(self.peephole)?,
            projection: self.projection.map(|view| view.select(0, direction)).transpose()?,
        })
    }
}

/// The weights of one direction: those of [`Weights`] without their first axis.
#[derive(Clone, Copy, Debug)]
pub struct DirectionWeights<'a, T> {
    /// U, `[gates·hidden, inputs]`.
    pub input: TensorView<'a, T, 2>,
    /// W, `[gates·hidden, state]`.
    pub recurrent: TensorView<'a, T, 2>,
    /// `[gates·hidden]`.
    pub bias: Option<TensorView<'a, T, 1>>,
    /// `[gates·hidden]`.
    pub recurrent_bias: Option<TensorView<'a, T, 1>>,
    /// `[3·hidden]`.
    pub peephole: Option<TensorView<'a, T, 1>>,
    /// `[state, hidden]`.
    pub projection: Option<TensorView<'a, T, 2>>,
}

/// Weights in the order in which the kernels read them, made by [`Recurrent::pack`](super::Recurrent::pack) for one cell,
/// its options, and one instruction set.
pub struct PackedWeights<T> {
    spec: Spec,
    isa: Isa,
    sizes: WeightSizes,
    parts: Parts,
    /// Steps made over them so far: the next one begins with the units that the last one left in the caches.
    steps: AtomicUsize,
    /// Direction after direction.
    data: Aligned<T>,
}

impl<T: Element> PackedWeights<T> {
    pub(crate) fn pack(spec: Spec, weights: Weights<'_, T>) -> Result<Self> {
        let (op, isa) = ("rnn::pack", machine::isa()?);
        let sizes = WeightSizes::check(op, spec, &weights)?;
        let parts = Parts::new::<T>(op, isa, spec.cell, sizes, true)?;
        let len = parts.len.checked_mul(sizes.directions).ok_or(Error::Alloc { op, bytes: usize::MAX })?;
        let mut data = workspace::try_vec(op, len)?;
        data.resize(len, T::ZERO);
        for direction in 0..sizes.directions {
            let data = &mut data[direction * parts.len..][..parts.len];
            parts.fill(isa, spec.cell, sizes, &weights.one(direction)?, data)?;
        }
        Ok(Self { spec, isa, sizes, parts, steps: AtomicUsize::new(0), data })
    }

    /// The instruction set they were packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of memory they hold.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<T>()
    }

    pub(crate) fn check(&self, op: &'static str, spec: Spec, isa: Isa) -> Result<WeightSizes> {
        if self.isa != isa {
            let (found, expected) = (self.isa.to_string(), isa.to_string());
            return Err(Error::Packed { op, arg: "weights", found, expected });
        }
        // The clip is no matter of the weights, nor is the recomputation.
        let kind =
            |spec: Spec| (std::mem::discriminant(&spec.cell), spec.cell.gradient_columns(), spec.direction);
        if kind(self.spec) != kind(spec) {
            let (found, expected) = (format!("{:?}", self.spec), format!("{spec:?}"));
            return Err(Error::Packed { op, arg: "weights", found, expected });
        }
        Ok(self.sizes)
    }

    /// Steps made before, to which `more` are added.
    pub(crate) fn turn(&self, more: usize) -> usize {
        self.steps.fetch_add(more, Ordering::Relaxed)
    }

    pub(crate) fn parts(&self) -> Parts {
        self.parts.clone()
    }

    pub(crate) fn direction(&self, direction: usize) -> &[T] {
        &self.data[direction * self.parts.len..][..self.parts.len]
    }
}

impl<T> std::fmt::Debug for PackedWeights<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedWeights")
            .field("spec", &self.spec)
            .field("isa", &self.isa)
            .field("sizes", &self.sizes)
            .finish_non_exhaustive()
    }
}

/// Weights as a call takes them.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant, reason = "it is handed on, never kept")]
pub enum Operand<'a, T> {
    /// In memory; W is packed in the call.
    View(Weights<'a, T>),
    /// Packed before.
    Packed(&'a PackedWeights<T>),
}

impl<'a, T> From<Weights<'a, T>> for Operand<'a, T> {
    fn from(weights: Weights<'a, T>) -> Self {
        Self::View(weights)
    }
}

impl<'a, T> From<&'a PackedWeights<T>> for Operand<'a, T> {
    fn from(packed: &'a PackedWeights<T>) -> Self {
        Self::Packed(packed)
    }
}

/// The gradients that [`Recurrent::backward`](super::Recurrent::backward) gives, each of the shape of what it is for.
#[derive(Debug)]
pub struct Gradients<T> {
    /// For x, `[time, batch, inputs]`; 0 behind the end of a sequence.
    pub x: Tensor<T, 3>,
    /// For the first h, `[directions, batch, state]`.
    pub hidden: Tensor<T, 3>,
    /// For the first c, `[directions, batch, hidden]`: an LSTM's.
    pub cell: Option<Tensor<T, 3>>,
    /// For the weights.
    pub weights: WeightTensors<T>,
}

/// Tensors in the shapes of [`Weights`]: gradients, or weights that are owned.
#[derive(Debug)]
pub struct WeightTensors<T> {
    /// U or dU, `[directions, gates·hidden, inputs]`.
    pub input: Tensor<T, 3>,
    /// W or dW, `[directions, gates·hidden, state]`.
    pub recurrent: Tensor<T, 3>,
    /// `[directions, gates·hidden]`.
    pub bias: Option<Tensor<T, 2>>,
    /// `[directions, gates·hidden]`.
    pub recurrent_bias: Option<Tensor<T, 2>>,
    /// `[directions, 3·hidden]`.
    pub peephole: Option<Tensor<T, 2>>,
    /// `[directions, state, hidden]`.
    pub projection: Option<Tensor<T, 3>>,
}

/// Where [`Recurrent::backward_into`](super::Recurrent::backward_into) writes; what is `None` is not computed.
pub struct GradientsMut<'a, T> {
    /// `[time, batch, inputs]`.
    pub x: Option<TensorViewMut<'a, T, 3>>,
    /// `[directions, batch, state]`.
    pub hidden: Option<TensorViewMut<'a, T, 3>>,
    /// `[directions, batch, hidden]`.
    pub cell: Option<TensorViewMut<'a, T, 3>>,
    /// For the weights.
    pub weights: WeightGradientsMut<'a, T>,
}

/// Where the gradients for [`Weights`] go; what is `None` is not computed.
pub struct WeightGradientsMut<'a, T> {
    /// `[directions, gates·hidden, inputs]`.
    pub input: Option<TensorViewMut<'a, T, 3>>,
    /// `[directions, gates·hidden, state]`.
    pub recurrent: Option<TensorViewMut<'a, T, 3>>,
    /// `[directions, gates·hidden]`.
    pub bias: Option<TensorViewMut<'a, T, 2>>,
    /// `[directions, gates·hidden]`.
    pub recurrent_bias: Option<TensorViewMut<'a, T, 2>>,
    /// `[directions, 3·hidden]`.
    pub peephole: Option<TensorViewMut<'a, T, 2>>,
    /// `[directions, state, hidden]`.
    pub projection: Option<TensorViewMut<'a, T, 3>>,
}

impl<T> Default for WeightGradientsMut<'_, T> {
    fn default() -> Self {
        Self {
            input: None,
            recurrent: None,
            bias: None,
            recurrent_bias: None,
            peephole: None,
            projection: None,
        }
    }
}

impl<T> Default for GradientsMut<'_, T> {
    fn default() -> Self {
        Self { x: None, hidden: None, cell: None, weights: WeightGradientsMut::default() }
    }
}

impl<T: Element> Gradients<T> {
    pub(crate) fn zeros(sizes: &Sizes, weights: &Weights<'_, T>) -> Result<Self> {
        let lstm = sizes.weights.gates == 4;
        Ok(Self {
            x: Tensor::zeros([sizes.time, sizes.batch, sizes.weights.inputs])?,
            hidden: Tensor::zeros(sizes.h())?,
            cell: lstm.then(|| Tensor::zeros(sizes.c())).transpose()?,
            weights: WeightTensors {
                input: Tensor::zeros(weights.input.shape())?,
                recurrent: Tensor::zeros(weights.recurrent.shape())?,
                bias: weights.bias.map(|view| Tensor::zeros(view.shape())).transpose()?,
                recurrent_bias: weights.recurrent_bias.map(|view| Tensor::zeros(view.shape())).transpose()?,
                peephole: weights.peephole.map(|view| Tensor::zeros(view.shape())).transpose()?,
                projection: weights.projection.map(|view| Tensor::zeros(view.shape())).transpose()?,
            },
        })
    }

    /// All of them, to be written.
    pub fn view_mut(&mut self) -> GradientsMut<'_, T> {
        GradientsMut {
            x: Some(self.x.view_mut()),
            hidden: Some(self.hidden.view_mut()),
            cell: self.cell.as_mut().map(Tensor::view_mut),
            weights: WeightGradientsMut {
                input: Some(self.weights.input.view_mut()),
                recurrent: Some(self.weights.recurrent.view_mut()),
                bias: self.weights.bias.as_mut().map(Tensor::view_mut),
                recurrent_bias: self.weights.recurrent_bias.as_mut().map(Tensor::view_mut),
                peephole: self.weights.peephole.as_mut().map(Tensor::view_mut),
                projection: self.weights.projection.as_mut().map(Tensor::view_mut),
            },
        }
    }
}

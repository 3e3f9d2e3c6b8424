//! Layers that own parameters and gradients, and what trains them.
//!
//! A [`Layer`] turns a tensor into a tensor and can go back; it is thin, the work is done by the operations below
//! ([`linear`](crate::linear), [`activation`](crate::activation), …). A training step is
//!
//! ```
//! use tilewise::layer::optimizer::{Optimizer, Sgd};
//! use tilewise::layer::{Init, Layer, Linear, Parameters};
//! use tilewise::{TensorView, loss::MeanSquared, random::Rng};
//!
//! let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [3, 1])?;
//! let t = TensorView::from_slice(&[3.0, 5.0, 7.0], [3, 1])?;
//! let mut layer = Linear::<f64>::new(1, 1, Init::xavier_uniform(), &mut Rng::seed(1))?;
//! let mut optimizer = Sgd::new(0.1);
//! let mut last = f64::INFINITY;
//! for _ in 0..200 {
//!     layer.zero_gradients();
//!     let y = layer.forward(x)?;
//!     let (loss, dy) = MeanSquared::new().forward_backward(y.view(), t)?;
//!     layer.backward(dy.view())?;
//!     optimizer.step(&mut layer)?;
//!     last = loss;
//! }
//! assert!(last < 1e-3);
//! # Ok::<(), tilewise::Error>(())
//! ```
#![forbid(unsafe_code)]

mod activate;
mod attention;
mod clip;
mod conv;
mod describe;
mod dropout;
mod embedding;
mod feed_forward;
mod flatten;
mod init;
mod linear;
mod norm;
pub mod optimizer;
mod parameter;
mod pool;
mod position;
mod recurrent;
mod sequential;
mod transformer;

pub(crate) use conv::rectified::Rectified;

pub use activate::Activate;
pub use attention::MultiHeadAttention;
pub use clip::{clip_gradient_norm, clip_gradient_value};
pub use conv::{
    Conv, Conv1d, Conv2d, Conv3d, ConvTranspose, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d,
};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use feed_forward::FeedForward;
pub use flatten::Flatten;
pub use init::{Fan, Init, gain};
pub use linear::Linear;
pub use norm::{BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm};
pub use parameter::Parameter;
pub use pool::{AvgPool, AvgPool1d, AvgPool2d, AvgPool3d, MaxPool, MaxPool1d, MaxPool2d, MaxPool3d};
pub use position::{Rotary, sinusoidal};
pub use recurrent::{Gru, Lstm, Recurrent, RecurrentSizes, Rnn, State};
pub use sequential::Sequential;
pub use transformer::{NormOrder, TransformerBlock};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView};

/// Something with named parameters: a layer, a chain of layers, a model of your own.
pub trait Parameters<T: Element> {
    /// Calls `f` with the name of each parameter and the parameter, always in the same order. Names of parts
    /// within parts are joined by dots: `"0.weight"`.
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>));

    /// [`visit`](Self::visit) of parameters to be changed: the same names in the same order.
    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>));

    /// Sets all gradients to 0.
    fn zero_gradients(&mut self) {
        self.visit_mut(&mut |_, parameter| parameter.gradient_mut().fill(T::ZERO));
    }

    /// How many numbers the parameters hold.
    fn parameter_count(&self) -> usize {
        let mut count = 0usize;
        self.visit(&mut |_, parameter| count = count.saturating_add(parameter.len()));
        count
    }
}

/// A differentiable operation from tensors of rank `I` to tensors of rank `O`, with its parameters.
///
/// Where training and inference differ ([`Dropout`], [`BatchNorm`]), [`forward`](Self::forward) is training and
/// [`infer`](Self::infer) is inference: there is no mode to set or to forget.
/// The first axis is the batch, or the time before it. Layers are used as `dyn Layer` too, so the trait has no generic methods.
pub trait Layer<T: Element, const I: usize = 2, const O: usize = 2>: Parameters<T> {
    /// The shape of what [`forward`](Self::forward) gives for an input of this shape. A layer of layers asks all of them before it
    /// calls the first, here and in [`check_backward`](Self::check_backward): where one refuses, none has changed.
    ///
    /// # Errors
    /// Those of `forward` that depend on shapes alone: not on memory, elements, or an instruction set that cannot be had.
    ///
    /// ```
    /// use tilewise::layer::{Init, Layer, Linear};
    /// use tilewise::random::Rng;
    /// let layer = Linear::<f32>::new(3, 2, Init::kaiming_uniform(), &mut Rng::seed(1))?;
    /// assert_eq!(layer.check_forward([4, 3])?, [4, 2]);
    /// assert!(layer.check_forward([4, 5]).is_err());
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    fn check_forward(&self, x: [usize; I]) -> Result<[usize; O]>;

    /// The shape of the last input, which is that of what [`backward`](Self::backward) gives, for a gradient of this shape.
    ///
    /// # Errors
    /// Those of `backward`, as in [`check_forward`](Self::check_forward).
    fn check_backward(&self, dy: [usize; O]) -> Result<[usize; I]>;

    /// The output, keeping what [`backward`](Self::backward) needs.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Argument`] where the input or a parameter does not fit; then what was kept before is kept
    /// still. [`Error::Alloc`] where there is no memory; a layer of several may then have lost what was kept.
    fn forward(&mut self, x: TensorView<'_, T, I>) -> Result<Tensor<T, O>>;

    /// [`forward`](Self::forward) of an input that nobody else needs: what a layer keeps of it is then no copy.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    ///
    /// ```
    /// use tilewise::layer::{Init, Layer, Linear};
    /// use tilewise::{Tensor, random::Rng};
    /// let mut layer = Linear::<f32>::new(3, 2, Init::kaiming_uniform(), &mut Rng::seed(1))?;
    /// let x = Tensor::full([4, 3], 1.0)?;
    /// let expected = layer.infer(x.view())?;
    /// assert!(layer.forward_owned(x)? == expected);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    fn forward_owned(&mut self, x: Tensor<T, I>) -> Result<Tensor<T, O>> {
        self.forward(x.view())
    }

    /// The output, keeping nothing.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn infer(&self, x: TensorView<'_, T, I>) -> Result<Tensor<T, O>>;

    /// The gradient for the input of the last [`forward`](Self::forward) from the one for its output; adds to
    /// the parameters' gradients. What was kept stays, so it may be called again with another gradient.
    ///
    /// # Errors
    /// [`Error::Argument`] where `forward` was not called, [`Error::Shape`] where the gradient does not have the
    /// output's shape or a parameter has lost its own, [`Error::Alloc`] where there is no memory. A layer that is refused has
    /// added nothing to a gradient; where memory runs out in one of several, those behind it have.
    fn backward(&mut self, dy: TensorView<'_, T, O>) -> Result<Tensor<T, I>>;

    /// [`backward`](Self::backward) of a gradient that nobody else needs. A layer may work in its memory, and in the next step
    /// use it again.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    ///
    /// ```
    /// use tilewise::layer::{Init, Layer, Linear};
    /// use tilewise::{Tensor, random::Rng};
    /// let mut layer = Linear::<f32>::new(3, 2, Init::kaiming_uniform(), &mut Rng::seed(1))?;
    /// let y = layer.forward(Tensor::full([4, 3], 1.0)?.view())?;
    /// let expected = layer.backward(y.view())?;
    /// assert!(layer.backward_owned(y)? == expected);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    fn backward_owned(&mut self, dy: Tensor<T, O>) -> Result<Tensor<T, I>> {
        self.backward(dy.view())
    }

    /// [`backward`](Self::backward) where nobody wants the gradient for the input, as at the first layer of a network: a layer
    /// with weights saves a product.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    ///
    /// ```
    /// use tilewise::layer::{Init, Layer, Linear};
    /// use tilewise::{Tensor, random::Rng};
    /// let mut layer = Linear::<f64>::new(3, 2, Init::kaiming_uniform(), &mut Rng::seed(1))?;
    /// let y = layer.forward(Tensor::full([4, 3], 1.0)?.view())?;
    /// layer.backward_parameters(Tensor::full(y.shape(), 1.0)?.view())?;
    /// assert_eq!(layer.weight().gradient(), [4.0; 6]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    fn backward_parameters(&mut self, dy: TensorView<'_, T, O>) -> Result<()> {
        self.backward(dy).map(|_| ())
    }

    /// [`backward_parameters`](Self::backward_parameters) of a gradient that nobody else needs, as in
    /// [`backward_owned`](Self::backward_owned).
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    ///
    /// ```
    /// use tilewise::layer::{Init, Layer, Linear};
    /// use tilewise::{Tensor, random::Rng};
    /// let mut layer = Linear::<f64>::new(3, 2, Init::kaiming_uniform(), &mut Rng::seed(1))?;
    /// let y = layer.forward(Tensor::full([4, 3], 1.0)?.view())?;
    /// layer.backward_parameters_owned(Tensor::full(y.shape(), 1.0)?)?;
    /// assert_eq!(layer.weight().gradient(), [4.0; 6]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    fn backward_parameters_owned(&mut self, dy: Tensor<T, O>) -> Result<()> {
        self.backward_parameters(dy.view())
    }
}

/// What `forward` keeps for `backward`.
struct Saved<T, const N: usize>(Option<Tensor<T, N>>);

impl<T: Element, const N: usize> Saved<T, N> {
    const NONE: Self = Self(None);

    /// Keeps a copy, in the memory of the one before where the shape is the same.
    fn keep(&mut self, x: TensorView<'_, T, N>) -> Result<()> {
        match &mut self.0 {
            Some(saved) if saved.shape() == x.shape() => saved.view_mut().assign(x),
            saved => {
                *saved = Some(x.to_tensor()?);
                Ok(())
            }
        }
    }

    /// Keeps `x` itself, and gives what was kept before.
    fn take(&mut self, x: Tensor<T, N>) -> Option<Tensor<T, N>> {
        self.0.replace(x)
    }

    fn get(&self, op: &'static str) -> Result<TensorView<'_, T, N>> {
        match &self.0 {
            Some(saved) => Ok(saved.view()),
            None => Err(not_called(op)),
        }
    }
}

/// A tensor that nobody needs any more, for a result of its shape: neither asked for nor set to 0 in each step of training.
struct Spare<T, const N: usize>(Option<Tensor<T, N>>);

impl<T: Element, const N: usize> Spare<T, N> {
    const NONE: Self = Self(None);

    /// A tensor of this shape with any elements.
    fn tensor(&mut self, shape: [usize; N]) -> Result<Tensor<T, N>> {
        match self.0.take().filter(|spare| spare.shape() == shape) {
            Some(mut spare) => {
                if cfg!(debug_assertions) {
                    spare.as_mut_slice().fill(T::NAN);
                }
                Ok(spare)
            }
            None => Tensor::zeros(shape),
        }
    }
}

/// A view of this shape, for what only looks at shapes.
fn hollow<T: Element, const N: usize>(zero: &[T; 1], shape: [usize; N]) -> Result<TensorView<'_, T, N>> {
    TensorView::as_strided(zero, shape, [0; N])
}

fn not_called(op: &'static str) -> Error {
    Error::argument(op, "the input of forward", "missing", "a call of forward before")
}

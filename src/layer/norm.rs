//! Normalisation layers.

use super::describe::debug;
use super::{Layer, Parameter, Parameters, Saved, hollow};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::norm::{
    BatchNormalization, BatchStatistics, GroupNormalization, InstanceNormalization, LayerNormalization,
    NormGradientsMut, RmsGradientsMut, RmsNormalization, check_momentum, elements_of_a_channel,
};
use crate::tensor::{Tensor, TensorView};

/// Scale and shift, as the parameters `weight` and `bias`.
struct Affine<T> {
    weight: Option<Parameter<T>>,
    bias: Option<Parameter<T>>,
}

fn parameter<T: Element>(value: Option<Tensor<T, 1>>) -> Result<Option<Parameter<T>>> {
    value.map(Parameter::new).transpose()
}

impl<T: Element> Affine<T> {
    fn from_parts(weight: Option<Tensor<T, 1>>, bias: Option<Tensor<T, 1>>) -> Result<Self> {
        Ok(Self { weight: parameter(weight)?, bias: parameter(bias)? })
    }

    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        if let Some(weight) = &self.weight {
            f("weight", weight);
        }
        if let Some(bias) = &self.bias {
            f("bias", bias);
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        if let Some(weight) = &mut self.weight {
            f("weight", weight);
        }
        if let Some(bias) = &mut self.bias {
            f("bias", bias);
        }
    }

    fn weight(&self) -> Result<Option<TensorView<'_, T, 1>>> {
        self.weight.as_ref().map(Parameter::view).transpose()
    }

    fn bias(&self) -> Result<Option<TensorView<'_, T, 1>>> {
        self.bias.as_ref().map(Parameter::view).transpose()
    }

    /// The scale, and where the gradients go.
    fn gradients<'a, const N: usize>(
        &'a mut self,
        dx: &'a mut Tensor<T, N>,
    ) -> Result<(Option<TensorView<'a, T, 1>>, NormGradientsMut<'a, T, N>)> {
        let (scale, dscale) = self.weight.as_mut().map(Parameter::views).transpose()?.unzip();
        let dshift = self.bias.as_mut().map(Parameter::gradient_view_mut).transpose()?;
        Ok((scale, NormGradientsMut { input: Some(dx.view_mut()), scale: dscale, shift: dshift }))
    }

    /// Adds to dx and to the gradients of the parameters what `run` makes of the scale.
    fn backward<const N: usize>(
        &mut self,
        mut dx: Tensor<T, N>,
        run: impl FnOnce(Option<TensorView<'_, T, 1>>, NormGradientsMut<'_, T, N>) -> Result<()>,
    ) -> Result<Tensor<T, N>> {
        let (scale, gradients) = self.gradients(&mut dx)?;
        run(scale, gradients)?;
        Ok(dx)
    }
}

/// What was kept; an error unless `dy` has its shape.
fn check_dy<'a, T: Element, const N: usize>(
    op: &'static str,
    input: &'a Saved<T, N>,
    dy: [usize; N],
) -> Result<TensorView<'a, T, N>> {
    let x = input.get(op)?;
    expect(op, "dy", &dy, &x.shape())?;
    Ok(x)
}

macro_rules! accessors {
    () => {
        /// The scale, `None` where it was left out.
        pub fn weight(&self) -> Option<&Parameter<T>> {
            self.affine.weight.as_ref()
        }

        /// The shift, `None` where it was left out.
        pub fn bias(&self) -> Option<&Parameter<T>> {
            self.affine.bias.as_ref()
        }
    };
}

macro_rules! layer {
    ($(#[$doc:meta])* $name:ident, $operation:ident, $size:literal, ($($option:ident: $type:ty)?)) => {
        $(#[$doc])*
        pub struct $name<T, const N: usize = 2> {
            operation: $operation,
            affine: Affine<T>,
            input: Saved<T, N>,
        }

        impl<T: Element, const N: usize> $name<T, N> {
            #[doc = concat!("For ", $size, ": weight 1, bias 0.")]
            ///
            /// # Errors
            /// [`Error::Alloc`] where there is no memory.
            pub fn new($($option: $type,)? size: usize) -> Result<Self> {
                let (weight, bias) = (Tensor::full([size], T::ONE)?, Tensor::zeros([size])?);
                Self::from_parts($operation::new($($option)?), Some(weight), Some(bias))
            }

            /// With this operation, weight and bias, either of which may be left out.
            ///
            /// # Errors
            /// [`Error::Alloc`] where there is no memory for the gradients. Shapes that do not fit show in the calls.
            pub fn from_parts(
                operation: $operation,
                weight: Option<Tensor<T, 1>>,
                bias: Option<Tensor<T, 1>>,
            ) -> Result<Self> {
                Ok(Self { operation, affine: Affine::from_parts(weight, bias)?, input: Saved::NONE })
            }

            accessors!();

            fn check(&self, op: &'static str, x: [usize; N]) -> Result<[usize; N]> {
                let (weight, bias) = (self.affine.weight()?, self.affine.bias()?);
                self.operation.check(op, hollow(&[T::ZERO], x)?, weight, bias)?;
                Ok(x)
            }
        }

        debug!([T: Element, const N: usize] $name<T, N>, stringify!($name), operation);

        impl<T: Element, const N: usize> Parameters<T> for $name<T, N> {
            fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
                self.affine.visit(f);
            }

            fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
                self.affine.visit_mut(f);
            }
        }

        impl<T: Element, const N: usize> Layer<T, N, N> for $name<T, N> {
            fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
                self.check(concat!(stringify!($name), "::forward"), x)
            }

            fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
                let op = concat!(stringify!($name), "::backward");
                check_dy(op, &self.input, dy)?;
                self.check(op, dy)
            }

            fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
                let y = self.infer(x)?;
                self.input.keep(x)?;
                Ok(y)
            }

            fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
                self.operation.forward(x, self.affine.weight()?, self.affine.bias()?)
            }

            fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
                let op = concat!(stringify!($name), "::backward");
                let (x, operation) = (check_dy(op, &self.input, dy.shape())?, self.operation);
                self.affine.backward(Tensor::zeros(x.shape())?, |scale, gradients| {
                    operation.backward_into(x, scale, dy, T::ONE, gradients)
                })
            }
        }
    };
}

layer! {
    /// [`LayerNormalization`] with parameters `weight` (the scale) and `bias` (the shift), `[n]` each, of tensors
    /// `[…, n]` of rank `N`.
    ///
    /// ```
    /// use tilewise::{Tensor, layer::{Layer, LayerNorm}};
    /// let mut layer = LayerNorm::<f64>::new(2)?;
    /// let x = Tensor::from_slice(&[1.0, 3.0], [1, 2])?;
    /// let y = layer.forward(x.view())?;
    /// assert!((y.as_slice()[1] - 1.0).abs() < 1e-5);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    LayerNorm, LayerNormalization, "rows of this length", ()
}

layer! {
    /// [`InstanceNormalization`] with parameters `weight` and `bias`, `[channels]` each, of tensors
    /// `[batch, channels, spatial…]` of rank `N`. It keeps no running statistics.
    ///
    /// ```
    /// use tilewise::{Tensor, layer::{InstanceNorm, Layer}};
    /// let mut layer = InstanceNorm::<f32, 4>::new(3)?;
    /// let x = Tensor::full([2, 3, 4, 4], 7.0)?;
    /// assert!(layer.forward(x.view())?.iter().all(|&y| y == 0.0));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    InstanceNorm, InstanceNormalization, "this many channels", ()
}

layer! {
    /// [`GroupNormalization`] with parameters `weight` and `bias`, `[channels]` each, of tensors
    /// `[batch, channels, spatial…]` of rank `N`.
    ///
    /// ```
    /// use tilewise::{Tensor, layer::{GroupNorm, Layer}};
    /// let mut layer = GroupNorm::<f32, 4>::new(2, 6)?;
    /// let x = Tensor::full([1, 6, 4, 4], 7.0)?;
    /// assert!(layer.forward(x.view())?.iter().all(|&y| y == 0.0));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    GroupNorm, GroupNormalization, "this many groups and channels", (groups: usize)
}

impl<T: Element, const N: usize> LayerNorm<T, N> {
    /// As [`forward`](Layer::forward) of x + residual: that sum, and its normalisation.
    ///
    /// # Errors
    /// As [`forward`](Layer::forward).
    ///
    /// ```
    /// use tilewise::{Tensor, layer::{Layer, LayerNorm}};
    /// let mut layer = LayerNorm::<f64>::new(2)?;
    /// let x = Tensor::from_slice(&[1.0, 3.0], [1, 2])?;
    /// let (sum, y) = layer.forward_residual(x.view(), x.view())?;
    /// assert_eq!(sum.as_slice(), [2.0, 6.0]);
    /// // dy = 0: only what comes along the residual path is left.
    /// let dx = layer.backward_residual(Tensor::zeros([1, 2])?.view(), x.view())?;
    /// assert_eq!(dx.as_slice(), [1.0, 3.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_residual(
        &mut self,
        x: TensorView<'_, T, N>,
        residual: TensorView<'_, T, N>,
    ) -> Result<(Tensor<T, N>, Tensor<T, N>)> {
        let (sum, y) = self.infer_residual(x, residual)?;
        self.input.keep(sum.view())?;
        Ok((sum, y))
    }

    /// As [`infer`](Layer::infer) of x + residual: that sum, and its normalisation.
    ///
    /// # Errors
    /// As [`forward`](Layer::forward).
    pub fn infer_residual(
        &self,
        x: TensorView<'_, T, N>,
        residual: TensorView<'_, T, N>,
    ) -> Result<(Tensor<T, N>, Tensor<T, N>)> {
        self.operation.forward_residual(x, residual, self.affine.weight()?, self.affine.bias()?)
    }

    /// The gradient of x and of residual alike, from `dy` and from `dsum`, the gradient that comes to the sum along the
    /// residual path; adds to the parameters' gradients.
    ///
    /// # Errors
    /// As [`backward`](Layer::backward).
    pub fn backward_residual(
        &mut self,
        dy: TensorView<'_, T, N>,
        dsum: TensorView<'_, T, N>,
    ) -> Result<Tensor<T, N>> {
        let op = "LayerNorm::backward_residual";
        let (x, operation) = (check_dy(op, &self.input, dy.shape())?, self.operation);
        expect(op, "dsum", &dsum.shape(), &x.shape())?;
        self.affine.backward(dsum.to_tensor()?, |scale, gradients| {
            operation.backward_into(x, scale, dy, T::ONE, gradients)
        })
    }
}

/// [`RmsNormalization`] with the parameter `weight` (the scale), `[n]`, of tensors `[…, n]` of rank `N`.
///
/// ```
/// use tilewise::{Tensor, layer::{Layer, RmsNorm}};
/// let mut layer = RmsNorm::<f64>::new(2)?;
/// let x = Tensor::from_slice(&[1.0, 7.0], [1, 2])?;
/// let y = layer.forward(x.view())?;
/// assert!((y.as_slice()[1] - 1.4).abs() < 1e-6);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct RmsNorm<T, const N: usize = 2> {
    operation: RmsNormalization,
    weight: Option<Parameter<T>>,
    input: Saved<T, N>,
}

impl<T: Element, const N: usize> RmsNorm<T, N> {
    /// For rows of this length: weight 1.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory.
    pub fn new(size: usize) -> Result<Self> {
        Self::from_parts(RmsNormalization::new(), Some(Tensor::full([size], T::ONE)?))
    }

    /// With this operation and weight, which may be left out.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory for the gradient. A shape that does not fit shows in the calls.
    pub fn from_parts(operation: RmsNormalization, weight: Option<Tensor<T, 1>>) -> Result<Self> {
        Ok(Self { operation, weight: parameter(weight)?, input: Saved::NONE })
    }

    /// The scale, `None` where it was left out.
    pub fn weight(&self) -> Option<&Parameter<T>> {
        self.weight.as_ref()
    }

    fn check(&self, op: &'static str, x: [usize; N]) -> Result<[usize; N]> {
        let weight = self.weight.as_ref().map(Parameter::view).transpose()?;
        self.operation.check(op, hollow(&[T::ZERO], x)?, weight)?;
        Ok(x)
    }

    /// As [`forward`](Layer::forward) of x + residual: that sum, and its normalisation.
    ///
    /// # Errors
    /// As [`forward`](Layer::forward).
    pub fn forward_residual(
        &mut self,
        x: TensorView<'_, T, N>,
        residual: TensorView<'_, T, N>,
    ) -> Result<(Tensor<T, N>, Tensor<T, N>)> {
        let (sum, y) = self.infer_residual(x, residual)?;
        self.input.keep(sum.view())?;
        Ok((sum, y))
    }

    /// As [`infer`](Layer::infer) of x + residual: that sum, and its normalisation.
    ///
    /// # Errors
    /// As [`forward`](Layer::forward).
    pub fn infer_residual(
        &self,
        x: TensorView<'_, T, N>,
        residual: TensorView<'_, T, N>,
    ) -> Result<(Tensor<T, N>, Tensor<T, N>)> {
        let weight = self.weight.as_ref().map(Parameter::view).transpose()?;
        self.operation.forward_residual(x, residual, weight)
    }

    /// The gradient of x and of residual alike, from `dy` and from `dsum`, the gradient that comes to the sum along the
    /// residual path; adds to the parameter's gradient.
    ///
    /// # Errors
    /// As [`backward`](Layer::backward).
    pub fn backward_residual(
        &mut self,
        dy: TensorView<'_, T, N>,
        dsum: TensorView<'_, T, N>,
    ) -> Result<Tensor<T, N>> {
        let op = "RmsNorm::backward_residual";
        let x = check_dy(op, &self.input, dy.shape())?;
        expect(op, "dsum", &dsum.shape(), &x.shape())?;
        let mut dx = dsum.to_tensor()?;
        let (scale, dscale) = self.weight.as_mut().map(Parameter::views).transpose()?.unzip();
        let gradients = RmsGradientsMut { input: Some(dx.view_mut()), scale: dscale };
        self.operation.backward_into(x, scale, dy, T::ONE, gradients)?;
        Ok(dx)
    }
}

debug!([T: Element, const N: usize] RmsNorm<T, N>, "RmsNorm", operation);

impl<T: Element, const N: usize> Parameters<T> for RmsNorm<T, N> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        if let Some(weight) = &self.weight {
            f("weight", weight);
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        if let Some(weight) = &mut self.weight {
            f("weight", weight);
        }
    }
}

impl<T: Element, const N: usize> Layer<T, N, N> for RmsNorm<T, N> {
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
        self.check("RmsNorm::forward", x)
    }

    fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
        let op = "RmsNorm::backward";
        check_dy(op, &self.input, dy)?;
        self.check(op, dy)
    }

    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let y = self.infer(x)?;
        self.input.keep(x)?;
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.operation.forward(x, self.weight.as_ref().map(Parameter::view).transpose()?)
    }

    fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let x = check_dy("RmsNorm::backward", &self.input, dy.shape())?;
        let mut dx = Tensor::zeros(x.shape())?;
        let (scale, dscale) = self.weight.as_mut().map(Parameter::views).transpose()?.unzip();
        let gradients = RmsGradientsMut { input: Some(dx.view_mut()), scale: dscale };
        self.operation.backward_into(x, scale, dy, T::ONE, gradients)?;
        Ok(dx)
    }
}

/// [`BatchNormalization`] with parameters `weight` and `bias`, `[channels]` each, and running statistics, of tensors
/// `[batch, channels, spatial…]` of rank `N`.
///
/// [`forward`](Layer::forward) is training: it normalises by the statistics of the batch and brings the running ones up
/// to date. [`infer`](Layer::infer) normalises by the running ones, which begin at mean 0 and variance 1. They are no
/// parameters: an optimizer does not see them.
///
/// ```
/// use tilewise::{Tensor, layer::{BatchNorm, Layer}};
/// let mut layer = BatchNorm::<f64>::new(1)?.momentum(0.5)?;
/// let x = Tensor::from_slice(&[1.0, 3.0], [2, 1])?;
/// let y = layer.forward(x.view())?;
/// assert!((y.as_slice()[1] - 1.0).abs() < 1e-5);
/// assert_eq!(layer.running_mean(), [1.0]);
/// assert_eq!(layer.running_variance(), [1.5]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct BatchNorm<T, const N: usize = 2> {
    operation: BatchNormalization,
    affine: Affine<T>,
    momentum: f64,
    running_mean: Tensor<T, 1>,
    running_variance: Tensor<T, 1>,
    input: Saved<T, N>,
    /// The mean of that input.
    mean: Option<Tensor<T, 1>>,
}

impl<T: Element, const N: usize> BatchNorm<T, N> {
    /// For this many channels: weight 1, bias 0, momentum 0.1.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory.
    pub fn new(channels: usize) -> Result<Self> {
        let (weight, bias) = (Tensor::full([channels], T::ONE)?, Tensor::zeros([channels])?);
        let running = [Tensor::zeros([channels])?, Tensor::full([channels], T::ONE)?];
        Self::from_parts(BatchNormalization::new(), Some(weight), Some(bias), running)
    }

    /// With this operation, weight and bias, either of which may be left out, and running mean and variance.
    ///
    /// # Errors
    /// [`Error::Shape`] where the running variance does not have the shape of the running mean, [`Error::Alloc`] where
    /// there is no memory for the gradients. Other shapes that do not fit show in the calls.
    pub fn from_parts(
        operation: BatchNormalization,
        weight: Option<Tensor<T, 1>>,
        bias: Option<Tensor<T, 1>>,
        [running_mean, running_variance]: [Tensor<T, 1>; 2],
    ) -> Result<Self> {
        let (found, expected) = (running_variance.shape(), running_mean.shape());
        if found != expected {
            return Err(Error::shape("BatchNorm::from_parts", "running_variance", &found, &expected));
        }
        let affine = Affine::from_parts(weight, bias)?;
        let (input, mean) = (Saved::NONE, None);
        Ok(Self { operation, affine, momentum: 0.1, running_mean, running_variance, input, mean })
    }

    /// How much of a batch comes into the running statistics: running = (1 − momentum)·running + momentum·batch.
    ///
    /// # Errors
    /// [`Error::Argument`] where it is not in 0 … 1.
    pub fn momentum(self, momentum: f64) -> Result<Self> {
        check_momentum("BatchNorm::momentum", momentum)?;
        Ok(Self { momentum, ..self })
    }

    accessors!();

    fn check(&self, op: &'static str, x: [usize; N]) -> Result<[usize; N]> {
        self.operation.check(op, hollow(&[T::ZERO], x)?, self.affine.weight()?, self.affine.bias()?)?;
        Ok(x)
    }

    /// The running mean of each channel.
    pub fn running_mean(&self) -> &[T] {
        self.running_mean.as_slice()
    }

    /// The running, unbiased variance of each channel.
    pub fn running_variance(&self) -> &[T] {
        self.running_variance.as_slice()
    }
}

debug!([T: Element, const N: usize] BatchNorm<T, N>, "BatchNorm", operation, momentum);

impl<T: Element, const N: usize> Parameters<T> for BatchNorm<T, N> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        self.affine.visit(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        self.affine.visit_mut(f);
    }
}

impl<T: Element, const N: usize> Layer<T, N, N> for BatchNorm<T, N> {
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
        let (op, mean) = ("BatchNorm::forward", self.running_mean.shape());
        self.check(op, x)?;
        if let Some(&channels) = x.get(1) {
            expect(op, "running_mean", &mean, &[channels])?;
        }
        let count = elements_of_a_channel(x);
        if count < 2 {
            return Err(Error::argument(op, "elements of a channel of x", count, "at least 2"));
        }
        Ok(x)
    }

    fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
        let op = "BatchNorm::backward";
        check_dy(op, &self.input, dy)?;
        self.check(op, dy)
    }

    /// Needs two elements of each channel, as the running variance does.
    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.check_forward(x.shape())?;
        let (weight, bias) = (self.affine.weight()?, self.affine.bias()?);
        let (y, statistics) = self.operation.forward_training(x, weight, bias)?;
        // What can fail comes first.
        let mut mean = self.running_mean.view().to_tensor()?;
        let mut variance = self.running_variance.view().to_tensor()?;
        statistics.update(self.momentum, mean.view_mut(), variance.view_mut())?;
        self.input.keep(x)?;
        (self.running_mean, self.running_variance) = (mean, variance);
        let BatchStatistics { mean, .. } = statistics;
        self.mean = Some(mean);
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let (mean, variance) = (self.running_mean.view(), self.running_variance.view());
        self.operation.forward_inference(x, mean, variance, self.affine.weight()?, self.affine.bias()?)
    }

    fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let (x, operation) = (check_dy("BatchNorm::backward", &self.input, dy.shape())?, self.operation);
        let mean = self.mean.as_ref().map(Tensor::view);
        self.affine.backward(Tensor::zeros(x.shape())?, |scale, gradients| {
            operation.backward_into(x, mean, scale, dy, T::ONE, gradients)
        })
    }
}

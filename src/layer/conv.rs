//! The convolutional layers.

pub(super) mod rectified;

use self::rectified::{Rectify, Silent, rectify};
use super::describe::debug;
use super::{Init, Layer, Parameter, Parameters, Saved, Spare, not_called};
use crate::conv::bias::{LANES, folded};
use crate::conv::{Convolution, ConvolutionTranspose};
use crate::element::Element;
use crate::error::{Dims, Error, Result, expect};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::random::Rng;
use crate::spatial::{ImageRank, Spatial};
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::workspace;

/// Elements of an output that a task has at least, and of which it has a multiple.
const GRAIN: usize = 1 << 16;
const RUN: usize = 1 << 12;
/// Planes of a gradient, and elements of each, from which on sums of planes are few beside it, and shared well.
const PLANES: usize = 8;
const LEAST: usize = 128;

/// A [`Convolution`] over `S` spatial axes of images of rank `N`, with parameters `weight`
/// `[c_out, c_in / groups, kernel…]` and `bias` `[c_out]`.
///
/// ```
/// use tilewise::conv::Convolution;
/// use tilewise::layer::{Conv2d, Init, Layer};
/// use tilewise::{Tensor, random::Rng};
/// let options = Convolution::new().padding([1, 1]).stride([2, 2]);
/// let mut layer = Conv2d::<f32>::new(3, 16, [3, 3], options, Init::kaiming_uniform(), &mut Rng::seed(1))?;
/// let x = Tensor::zeros([8, 3, 28, 28])?;
/// assert_eq!(layer.forward(x.view())?.shape(), [8, 16, 14, 14]);
/// # Ok::<(), tilewise::Error>(())
/// ```
///
/// The options may have the activation [`Activation::Relu`](crate::activation::Activation::Relu), which then takes no pass of its own: in `forward` it is part of the
/// convolution. Other activations are layers of their own, [`Activate`](super::Activate).
///
/// ```
/// use tilewise::{Tensor, activation::Activation, conv::Convolution, layer::{Conv1d, Layer}};
/// let options = Convolution::new().activation(Activation::Relu);
/// let mut layer = Conv1d::from_parts(options, Tensor::from_slice(&[2.0], [1, 1, 1])?, None)?;
/// let x = Tensor::<f64, 3>::from_slice(&[-1.0, 3.0], [1, 1, 2])?;
/// assert_eq!(layer.forward(x.view())?.as_slice(), [0.0, 6.0]);
/// assert_eq!(layer.backward(Tensor::full([1, 1, 2], 1.0)?.view())?.as_slice(), [0.0, 2.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Conv<T, const S: usize, const N: usize> {
    conv: Convolution<S>,
    affine: Affine<T, N>,
    /// Where the output was rectified to 0, and so is the gradient: all that it needs of the output.
    silent: Option<Tensor<bool, N>>,
    /// For dX, the input of the step before, and for Y its gradient, where they were handed over.
    spare: [Spare<T, N>; 2],
}

/// [`Conv`] over `[batch, channels, time]`.
pub type Conv1d<T> = Conv<T, 1, 3>;
/// [`Conv`] over `[batch, channels, height, width]`.
pub type Conv2d<T> = Conv<T, 2, 4>;
/// [`Conv`] over `[batch, channels, depth, height, width]`.
pub type Conv3d<T> = Conv<T, 3, 5>;

/// A [`ConvolutionTranspose`] over `S` spatial axes of images of rank `N`, with parameters `weight`
/// `[c_in, c_out / groups, kernel…]` and `bias` `[c_out]`.
///
/// ```
/// use tilewise::conv::ConvolutionTranspose;
/// use tilewise::layer::{ConvTranspose2d, Init, Layer};
/// use tilewise::{Tensor, random::Rng};
/// let options = ConvolutionTranspose::new().stride([2, 2]);
/// let mut layer = ConvTranspose2d::<f32>::new(16, 3, [2, 2], options, Init::xavier_uniform(), &mut Rng::seed(1))?;
/// let x = Tensor::zeros([8, 16, 14, 14])?;
/// assert_eq!(layer.forward(x.view())?.shape(), [8, 3, 28, 28]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct ConvTranspose<T, const S: usize, const N: usize> {
    conv: ConvolutionTranspose<S>,
    affine: Affine<T, N>,
}

/// [`ConvTranspose`] over `[batch, channels, time]`.
pub type ConvTranspose1d<T> = ConvTranspose<T, 1, 3>;
/// [`ConvTranspose`] over `[batch, channels, height, width]`.
pub type ConvTranspose2d<T> = ConvTranspose<T, 2, 4>;
/// [`ConvTranspose`] over `[batch, channels, depth, height, width]`.
pub type ConvTranspose3d<T> = ConvTranspose<T, 3, 5>;

/// Parameters, and what `forward` keeps.
struct Affine<T, const N: usize> {
    weight: Parameter<T>,
    bias: Option<Parameter<T>>,
    input: Saved<T, N>,
}

impl<T: Element, const N: usize> Affine<T, N> {
    fn new(
        op: &'static str,
        weight: Tensor<T, N>,
        bias: Option<Tensor<T, 1>>,
        outputs: usize,
    ) -> Result<Self> {
        let bias = match bias {
            Some(bias) if bias.shape() != [outputs] => {
                return Err(Error::shape(op, "bias", &bias.shape(), &[outputs]));
            }
            Some(bias) => Some(Parameter::new(bias)?),
            None => None,
        };
        Ok(Self { weight: Parameter::new(weight)?, bias, input: Saved::NONE })
    }

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

    fn bias_view(&self) -> Result<Option<TensorView<'_, T, 1>>> {
        self.bias.as_ref().map(Parameter::view).transpose()
    }

    /// The kept input and the weight; an error unless `forward` was called, and dY and the bias fit what it gives with them.
    fn checked(
        &self,
        op: &'static str,
        dy: [usize; N],
        output: impl FnOnce([usize; N], [usize; N], Option<usize>) -> Result<[usize; N]>,
    ) -> Result<(TensorView<'_, T, N>, TensorView<'_, T, N>)> {
        let (x, weight) = (self.input.get(op)?, self.weight.view::<N>()?);
        let bias = self.bias_view()?.map(|bias| bias.len());
        expect(op, "dy", &dy, &output(x.shape(), weight.shape(), bias)?)?;
        Ok((x, weight))
    }

    /// Adds to the gradients.
    fn accumulate(&mut self, weight: &[T], bias: &[T]) {
        let add = |parameter: &mut Parameter<T>, gradient: &[T]| {
            parameter.gradient_mut().iter_mut().zip(gradient).for_each(|(sum, &x)| *sum += x);
        };
        add(&mut self.weight, weight);
        if let Some(parameter) = &mut self.bias {
            add(parameter, bias);
        }
    }
}

/// `[first, second, kernel…]`, drawn, with the inputs that a unit sums and the units that an input reaches.
fn draw<T: Element, const S: usize, const N: usize>(
    [first, second]: [usize; 2],
    kernel: [usize; S],
    fans: [usize; 2],
    init: Init,
    rng: &mut Rng,
) -> Result<Tensor<T, N>> {
    let mut shape = [first; N];
    shape[1] = second;
    shape[2..].copy_from_slice(&kernel);
    let mut weight = Tensor::zeros(shape)?;
    let taps = kernel.iter().fold(1usize, |taps, &size| taps.saturating_mul(size));
    let [fan_in, fan_out] = fans.map(|channels| channels.saturating_mul(taps));
    init.fill(weight.as_mut_slice(), fan_in, fan_out, rng);
    Ok(weight)
}

/// Channels of a group.
fn per_group(op: &'static str, arg: &'static str, channels: usize, groups: usize) -> Result<usize> {
    if groups == 0 || !channels.is_multiple_of(groups) {
        let value = format!("{channels} in {groups} groups");
        return Err(Error::argument(op, arg, value, "a multiple of the groups"));
    }
    Ok(channels / groups)
}

/// The backward calls are those of the affine part, and the only activation with a gradient here is one that its output says.
fn check_activation(op: &'static str, fits: bool) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::argument(
        op,
        "activation",
        "neither the identity nor, in a Conv, ReLU",
        "a layer of its own: Activate",
    ))
}

impl<T: Element, const S: usize, const N: usize> Conv<T, S, N>
where
    Spatial<S>: ImageRank<N>,
{
    /// A layer with initial weights from `init` and bias 0. `options` say stride, padding, dilation and groups, and whether the
    /// output is rectified.
    ///
    /// # Errors
    /// [`Error::Argument`] where the groups do not divide the channels or the options have another activation,
    /// [`Error::Overflow`] or [`Error::Alloc`] where there is no memory for that many weights.
    pub fn new(
        c_in: usize,
        c_out: usize,
        kernel: [usize; S],
        options: Convolution<S>,
        init: Init,
        rng: &mut Rng,
    ) -> Result<Self> {
        let op = "Conv::new";
        // Before the generator is used.
        check_activation(op, options.is_affine() || options.is_rectified())?;
        let groups = options.group_count();
        let inputs = per_group(op, "c_in", c_in, groups)?;
        let outputs = per_group(op, "c_out", c_out, groups)?;
        let weight = draw([c_out, inputs], kernel, [inputs, outputs], init, rng)?;
        Self::from_parts(options, weight, Some(Tensor::zeros([c_out])?))
    }

    /// A layer with this weight `[c_out, c_in / groups, kernel…]` and bias `[c_out]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the bias does not fit the weight, [`Error::Argument`] where the groups do not divide the
    /// channels or the options have another activation, [`Error::Alloc`] where there is no memory for the gradients.
    pub fn from_parts(
        options: Convolution<S>,
        weight: Tensor<T, N>,
        bias: Option<Tensor<T, 1>>,
    ) -> Result<Self> {
        let (op, c_out) = ("Conv::from_parts", weight.shape()[0]);
        check_activation(op, options.is_affine() || options.is_rectified())?;
        per_group(op, "c_out", c_out, options.group_count())?;
        Ok(Self {
            conv: options,
            affine: Affine::new(op, weight, bias, c_out)?,
            silent: None,
            spare: [Spare::NONE; 2],
        })
    }

    /// The weight, `[c_out, c_in / groups, kernel…]`.
    pub fn weight(&self) -> &Parameter<T> {
        &self.affine.weight
    }

    /// The bias, `[c_out]`.
    pub fn bias(&self) -> Option<&Parameter<T>> {
        self.affine.bias.as_ref()
    }

    /// Room for what is kept of the output, where there is none yet: then nothing fails afterwards.
    fn room(&self, y: &Tensor<T, N>) -> Result<Option<Tensor<bool, N>>> {
        let room = self.silent.as_ref().is_some_and(|kept| kept.shape() == y.shape());
        (self.conv.is_rectified() && !room).then(|| Tensor::full(y.shape(), false)).transpose()
    }

    /// Keeps what the gradient needs of the output.
    fn keep(&mut self, room: Option<Tensor<bool, N>>, y: &Tensor<T, N>) {
        self.silent = room.or(self.silent.take());
        if let Some(silent) = self.silent.as_mut().filter(|_| self.conv.is_rectified()) {
            // Who computed y has found one.
            let (isa, y) = (machine::isa().unwrap_or(Isa::Baseline), y.as_slice());
            parallel::for_each_chunk_mut(
                silent.as_mut_slice(),
                RUN,
                parallel::tasks(y.len(), GRAIN),
                &|at, to| T::silent(isa, Silent { y: &y[at * RUN..], to }),
            );
        }
    }

    /// As [`Affine::checked`].
    fn checked(&self, dy: [usize; N]) -> Result<(TensorView<'_, T, N>, TensorView<'_, T, N>)> {
        let op = "Conv::backward";
        self.affine.checked(op, dy, |x, w, bias| self.conv.output_of(op, x, w, bias))
    }

    /// What was kept of the output, of dY's shape; `None` where it is not rectified.
    fn silent(&self, dy: [usize; N]) -> Result<Option<&[bool]>> {
        if !self.conv.is_rectified() {
            return Ok(None);
        }
        let op = "Conv::backward";
        let silent = self.silent.as_ref().ok_or_else(|| not_called(op))?;
        // The weight may have other outputs by now.
        expect(op, "dy", &dy, &silent.shape())?;
        Ok(Some(silent.as_slice()))
    }

    /// dZ from dY, in its place: 0 where the output was rectified to 0. And db, where planes of dY are summed up meanwhile.
    fn rectify(&self, op: &'static str, shape: [usize; N], dy: &mut [T]) -> Result<Option<Tensor<T, 1>>> {
        let Some(silent) = self.silent(shape)? else { return Ok(None) };
        let (isa, tasks) = (machine::isa()?, parallel::tasks(silent.len(), GRAIN));
        let planes = shape[0] * shape[1];
        if planes < PLANES || silent.len() / planes < LEAST {
            parallel::for_each_chunk_mut(dy, RUN, tasks, &|at, dy| {
                T::rectify(isa, Rectify { silent: &silent[at * RUN..][..dy.len()], dy, sums: &mut [] });
            });
            return Ok(None);
        }
        let (mut db, len) = (Tensor::zeros([shape[1]])?, shape[1] * LANES);
        let mut sums = workspace::scratch(op, planes * LANES)?;
        rectify(isa, Rectify { silent, dy, sums: &mut sums }, tasks);
        let total = parallel::total(&mut sums, len).chunks_exact(LANES);
        db.as_mut_slice().iter_mut().zip(total).for_each(|(db, parts)| *db = folded(parts));
        Ok(Some(db))
    }

    /// dW, and db unless it is there.
    fn parameters(
        &self,
        x: TensorView<'_, T, N>,
        weight: TensorView<'_, T, N>,
        dz: TensorView<'_, T, N>,
        db: Option<Tensor<T, 1>>,
    ) -> Result<(Tensor<T, N>, Tensor<T, 1>)> {
        let mut dw = Tensor::zeros(weight.shape())?;
        let db = db.map_or_else(|| self.conv.backward_bias(dz), Ok)?;
        self.conv.backward_weight_into(x, dz, dw.view_mut())?;
        Ok((dw, db))
    }

    /// Adds dW and db to the gradients and gives what `input` makes of X, W and the gradient for the affine part: dY, 0 where the
    /// output was rectified to 0.
    fn back<R>(
        &mut self,
        op: &'static str,
        dy: TensorView<'_, T, N>,
        input: impl FnOnce(TensorView<'_, T, N>, TensorView<'_, T, N>, TensorView<'_, T, N>) -> Result<R>,
    ) -> Result<R> {
        let (x, weight) = self.checked(dy.shape())?;
        let mut copy;
        let (mut dz, mut db) = (dy, None);
        if self.conv.is_rectified() {
            copy = workspace::scratch(op, dy.len())?;
            TensorViewMut::from_slice(&mut copy[..], dy.shape())?.assign(dy)?;
            db = self.rectify(op, dy.shape(), &mut copy)?;
            dz = TensorView::from_slice(&copy, dy.shape())?;
        }
        let dx = input(x, weight, dz)?;
        let (dw, db) = self.parameters(x, weight, dz, db)?;
        self.affine.accumulate(dw.as_slice(), db.as_slice());
        Ok(dx)
    }
}

debug!([T: Element, const S: usize, const N: usize] Conv<T, S, N>, "Conv", conv);

impl<T: Element, const S: usize, const N: usize> Parameters<T> for Conv<T, S, N> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        self.affine.visit(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        self.affine.visit_mut(f);
    }
}

impl<T: Element, const S: usize, const N: usize> Layer<T, N, N> for Conv<T, S, N>
where
    Spatial<S>: ImageRank<N>,
{
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
        let (weight, bias) = (self.affine.weight.view::<N>()?, self.affine.bias_view()?);
        // With the errors of the call.
        self.conv.output_of("Convolution::forward", x, weight.shape(), bias.map(|bias| bias.len()))
    }

    fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
        let (x, _) = self.checked(dy)?;
        self.silent(dy)?;
        Ok(x.shape())
    }

    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let y = self.infer(x)?;
        let room = self.room(&y)?;
        self.affine.input.keep(x)?;
        self.keep(room, &y);
        Ok(y)
    }

    fn forward_owned(&mut self, x: Tensor<T, N>) -> Result<Tensor<T, N>> {
        let shape = self.check_forward(x.shape())?;
        let mut y = self.spare[1].tensor(shape)?;
        let (weight, bias) = (self.affine.weight.view::<N>()?, self.affine.bias_view()?);
        self.conv.forward_into(x.view(), weight, bias, y.view_mut())?;
        let room = self.room(&y)?;
        self.spare[0].0 = self.affine.input.take(x);
        self.keep(room, &y);
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.conv.forward(x, self.affine.weight.view::<N>()?, self.affine.bias_view()?)
    }

    fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let conv = self.conv;
        self.back("Conv::backward", dy, |x, weight, dz| {
            conv.backward_input(dz, weight, std::array::from_fn(|axis| x.shape()[2 + axis]))
        })
    }

    fn backward_owned(&mut self, mut dy: Tensor<T, N>) -> Result<Tensor<T, N>> {
        let shape = self.check_backward(dy.shape())?;
        let mut dx = self.spare[0].tensor(shape)?;
        let (x, weight) = (self.affine.input.get("Conv::backward")?, self.affine.weight.view::<N>()?);
        let db = self.rectify("Conv::backward", dy.shape(), dy.as_mut_slice())?;
        self.conv.backward_input_into(dy.view(), weight, dx.view_mut())?;
        let (dw, db) = self.parameters(x, weight, dy.view(), db)?;
        self.affine.accumulate(dw.as_slice(), db.as_slice());
        self.spare[1].0 = Some(dy);
        Ok(dx)
    }

    fn backward_parameters(&mut self, dy: TensorView<'_, T, N>) -> Result<()> {
        self.back("Conv::backward_parameters", dy, |_, _, _| Ok(()))
    }

    fn backward_parameters_owned(&mut self, mut dy: Tensor<T, N>) -> Result<()> {
        let (x, weight) = self.checked(dy.shape())?;
        let db = self.rectify("Conv::backward_parameters", dy.shape(), dy.as_mut_slice())?;
        let (dw, db) = self.parameters(x, weight, dy.view(), db)?;
        self.affine.accumulate(dw.as_slice(), db.as_slice());
        self.spare[1].0 = Some(dy);
        Ok(())
    }
}

impl<T: Element, const S: usize, const N: usize> ConvTranspose<T, S, N>
where
    Spatial<S>: ImageRank<N>,
{
    /// A layer with initial weights from `init` and bias 0. `options` say stride, padding, dilation and groups; an
    /// activation is a layer of its own.
    ///
    /// A unit sums c_in / groups times as many products as the kernel has taps, where the stride is 1; that is what
    /// `init` counts with.
    ///
    /// # Errors
    /// As [`Conv::new`].
    pub fn new(
        c_in: usize,
        c_out: usize,
        kernel: [usize; S],
        options: ConvolutionTranspose<S>,
        init: Init,
        rng: &mut Rng,
    ) -> Result<Self> {
        let op = "ConvTranspose::new";
        // Before the generator is used.
        check_activation(op, options.is_affine())?;
        let groups = options.group_count();
        let inputs = per_group(op, "c_in", c_in, groups)?;
        let outputs = per_group(op, "c_out", c_out, groups)?;
        let weight = draw([c_in, outputs], kernel, [inputs, outputs], init, rng)?;
        Self::from_parts(options, weight, Some(Tensor::zeros([c_out])?))
    }

    /// A layer with this weight `[c_in, c_out / groups, kernel…]` and bias `[c_out]`.
    ///
    /// # Errors
    /// As [`Conv::from_parts`].
    pub fn from_parts(
        options: ConvolutionTranspose<S>,
        weight: Tensor<T, N>,
        bias: Option<Tensor<T, 1>>,
    ) -> Result<Self> {
        let (op, groups) = ("ConvTranspose::from_parts", options.group_count());
        check_activation(op, options.is_affine())?;
        let [c_in, outputs] = [weight.shape()[0], weight.shape()[1]];
        per_group(op, "c_in", c_in, groups)?;
        let overflow = || Error::Overflow { op, shape: Dims::new(&weight.shape()) };
        let c_out = outputs.checked_mul(groups).ok_or_else(overflow)?;
        Ok(Self { conv: options, affine: Affine::new(op, weight, bias, c_out)? })
    }

    /// As [`Affine::checked`].
    fn checked(&self, dy: [usize; N]) -> Result<(TensorView<'_, T, N>, TensorView<'_, T, N>)> {
        let op = "ConvTranspose::backward";
        self.affine.checked(op, dy, |x, w, bias| self.conv.output_of(op, x, w, bias))
    }

    /// The weight, `[c_in, c_out / groups, kernel…]`.
    pub fn weight(&self) -> &Parameter<T> {
        &self.affine.weight
    }

    /// The bias, `[c_out]`.
    pub fn bias(&self) -> Option<&Parameter<T>> {
        self.affine.bias.as_ref()
    }
}

debug!([T: Element, const S: usize, const N: usize] ConvTranspose<T, S, N>, "ConvTranspose", conv);

impl<T: Element, const S: usize, const N: usize> Parameters<T> for ConvTranspose<T, S, N> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        self.affine.visit(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        self.affine.visit_mut(f);
    }
}

impl<T: Element, const S: usize, const N: usize> Layer<T, N, N> for ConvTranspose<T, S, N>
where
    Spatial<S>: ImageRank<N>,
{
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
        let (weight, bias) = (self.affine.weight.view::<N>()?, self.affine.bias_view()?);
        // With the errors of the call.
        self.conv.output_of("ConvolutionTranspose::forward", x, weight.shape(), bias.map(|bias| bias.len()))
    }

    fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
        Ok(self.checked(dy)?.0.shape())
    }

    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let y = self.infer(x)?;
        self.affine.input.keep(x)?;
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.conv.forward(x, self.affine.weight.view::<N>()?, self.affine.bias_view()?)
    }

    fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let (x, weight) = self.checked(dy.shape())?;
        let gradients = self.conv.backward(x, weight, dy)?;
        self.affine.accumulate(gradients.weight.as_slice(), gradients.bias.as_slice());
        Ok(gradients.input)
    }

    fn backward_parameters(&mut self, dy: TensorView<'_, T, N>) -> Result<()> {
        let (x, weight) = self.checked(dy.shape())?;
        let mut dw = Tensor::zeros(weight.shape())?;
        let db = self.conv.backward_bias(dy)?;
        self.conv.backward_weight_into(x, dy, dw.view_mut())?;
        self.affine.accumulate(dw.as_slice(), db.as_slice());
        Ok(())
    }
}

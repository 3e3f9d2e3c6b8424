//! Recurrent layers, one above the other.

use std::fmt::{self, Debug, Formatter};

use super::describe::describe;
use super::{Layer, Parameter, Parameters, not_called};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::random::Rng;
use crate::rnn::{
    self, GradientsMut, OutputGradients, PackedWeights, Sequence, StateMut, Tape, WeightGradientsMut,
    WeightTensors, Weights,
};
use crate::tensor::{Tensor, TensorView};
use crate::workspace;

/// Elman layers; see [`Recurrent`].
pub type Rnn<T> = Recurrent<rnn::Elman, T>;
/// LSTM layers; see [`Recurrent`].
pub type Lstm<T> = Recurrent<rnn::Lstm, T>;
/// GRU layers; see [`Recurrent`].
pub type Gru<T> = Recurrent<rnn::Gru, T>;

/// Recurrent layers one above the other, from `[time, batch, inputs]` to `[time, batch, directions · state]`: [`Rnn`],
/// [`Lstm`] and [`Gru`]. The formulas are those of [`crate::rnn`]; for batch-first sequences, permute the view.
///
/// Parameters of layer `k` are named `k.input`, `k.recurrent`, `k.bias`, `k.recurrent_bias`, `k.peephole` and
/// `k.projection`.
///
/// ```
/// use tilewise::layer::{Layer, Lstm, Parameters};
/// use tilewise::{Tensor, random::Rng};
/// let mut lstm = Lstm::<f32>::new(28, 64, &mut Rng::seed(1))?;
/// assert_eq!(lstm.parameter_count(), 4 * 64 * (28 + 64 + 2));
/// let x = Tensor::zeros([28, 16, 28])?;
/// let y = lstm.forward(x.view())?;
/// assert_eq!(y.shape(), [28, 16, 64]);
/// assert_eq!(lstm.backward(y.view())?.shape(), x.shape());
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Recurrent<C, T> {
    cell: C,
    layers: Vec<Weighted<T>>,
    dropout: Option<(f64, Rng)>,
    /// What the last `forward` kept; none where it found no memory.
    saved: Option<Vec<Saved<T>>>,
    /// The memory of tapes between calls.
    tapes: Vec<Tape<T>>,
}

/// The first or last states of all layers, from the bottom to the top.
#[derive(Debug)]
pub struct State<T> {
    /// h of each layer, `[directions, batch, state]`.
    pub hidden: Vec<Tensor<T, 3>>,
    /// c of each layer, `[directions, batch, hidden]`; none but with an LSTM.
    pub cell: Vec<Tensor<T, 3>>,
}

/// Sizes of layers to be made: plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurrentSizes {
    /// Elements of x.
    pub inputs: usize,
    /// Units.
    pub hidden: usize,
    /// Layers, one above the other.
    pub layers: usize,
    /// Directions, those of the cell.
    pub directions: usize,
}

struct Weighted<T> {
    input: Parameter<T>,
    recurrent: Parameter<T>,
    bias: Option<Parameter<T>>,
    recurrent_bias: Option<Parameter<T>>,
    peephole: Option<Parameter<T>>,
    projection: Option<Parameter<T>>,
}

/// What a layer keeps for backward.
struct Saved<T> {
    x: Tensor<T, 3>,
    /// What x had been multiplied by.
    mask: Option<Tensor<T, 3>>,
    hidden: Option<Tensor<T, 3>>,
    cell: Option<Tensor<T, 3>>,
    lengths: Option<Vec<usize>>,
    output: [usize; 3],
}

impl<T: Element> Weighted<T> {
    fn new(tensors: WeightTensors<T>) -> Result<Self> {
        let vector = |tensor: Option<Tensor<T, 2>>| tensor.map(Parameter::new).transpose();
        Ok(Self {
            input: Parameter::new(tensors.input)?,
            recurrent: Parameter::new(tensors.recurrent)?,
            bias: vector(tensors.bias)?,
            recurrent_bias: vector(tensors.recurrent_bias)?,
            peephole: vector(tensors.peephole)?,
            projection: tensors.projection.map(Parameter::new).transpose()?,
        })
    }

    fn view(&self) -> Result<Weights<'_, T>> {
        Ok(Weights {
            input: self.input.view()?,
            recurrent: self.recurrent.view()?,
            bias: self.bias.as_ref().map(Parameter::view).transpose()?,
            recurrent_bias: self.recurrent_bias.as_ref().map(Parameter::view).transpose()?,
            peephole: self.peephole.as_ref().map(Parameter::view).transpose()?,
            projection: self.projection.as_ref().map(Parameter::view).transpose()?,
        })
    }

    /// Values, and gradients to be written.
    fn views(&mut self) -> Result<(Weights<'_, T>, WeightGradientsMut<'_, T>)> {
        macro_rules! maybe {
            ($part:ident) => {
                self.$part.as_mut().map(Parameter::views).transpose()?.unzip()
            };
        }
        let ((input, d_input), (recurrent, d_recurrent)) = (self.input.views()?, self.recurrent.views()?);
        let ((bias, d_bias), (recurrent_bias, d_recurrent_bias)) = (maybe!(bias), maybe!(recurrent_bias));
        let ((peephole, d_peephole), (projection, d_projection)) = (maybe!(peephole), maybe!(projection));
        Ok((
            Weights { input, recurrent, bias, recurrent_bias, peephole, projection },
            WeightGradientsMut {
                input: Some(d_input),
                recurrent: Some(d_recurrent),
                bias: d_bias,
                recurrent_bias: d_recurrent_bias,
                peephole: d_peephole,
                projection: d_projection,
            },
        ))
    }

    fn visit(&self, layer: usize, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        f(&format!("{layer}.input"), &self.input);
        f(&format!("{layer}.recurrent"), &self.recurrent);
        for (name, parameter) in [
            ("bias", &self.bias),
            ("recurrent_bias", &self.recurrent_bias),
            ("peephole", &self.peephole),
            ("projection", &self.projection),
        ] {
            if let Some(parameter) = parameter {
                f(&format!("{layer}.{name}"), parameter);
            }
        }
    }

    fn visit_mut(&mut self, layer: usize, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        f(&format!("{layer}.input"), &mut self.input);
        f(&format!("{layer}.recurrent"), &mut self.recurrent);
        for (name, parameter) in [
            ("bias", &mut self.bias),
            ("recurrent_bias", &mut self.recurrent_bias),
            ("peephole", &mut self.peephole),
            ("projection", &mut self.projection),
        ] {
            if let Some(parameter) = parameter {
                f(&format!("{layer}.{name}"), parameter);
            }
        }
    }
}

impl<C: rnn::Recurrent + Default, T: Element> Recurrent<C, T> {
    /// One layer that reads forward, with two biases and every weight uniform in ±1/√hidden.
    ///
    /// # Errors
    /// [`Error::Overflow`] or [`Error::Alloc`] where there is no memory for that many.
    pub fn new(inputs: usize, hidden: usize, rng: &mut Rng) -> Result<Self> {
        let sizes = RecurrentSizes { inputs, hidden, layers: 1, directions: 1 };
        Self::stacked(C::default(), sizes, rng)
    }
}

impl<C: rnn::Recurrent, T: Element> Recurrent<C, T> {
    /// Layers of any cell, each with two biases and every weight uniform in ±1/√hidden; all but the first read what the
    /// layer below gives.
    ///
    /// # Errors
    /// [`Error::Argument`] where the number of directions is not the cell's, [`Error::Overflow`] or [`Error::Alloc`]
    /// where there is no memory for that many.
    ///
    /// ```
    /// use tilewise::layer::{Gru, RecurrentSizes};
    /// use tilewise::{random::Rng, rnn::{self, Direction}};
    /// let sizes = RecurrentSizes { inputs: 40, hidden: 64, layers: 2, directions: 2 };
    /// let mut rng = Rng::seed(1);
    /// let gru = rnn::Gru::new().direction(Direction::Bidirectional);
    /// let layers = Gru::<f32>::stacked(gru, sizes, &mut rng)?.dropout(0.2, 7)?;
    /// assert_eq!(layers.weights(1)?.input.shape(), [2, 3 * 64, 2 * 64]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn stacked(cell: C, sizes: RecurrentSizes, rng: &mut Rng) -> Result<Self> {
        const OP: &str = "Recurrent::stacked";
        let RecurrentSizes { inputs, hidden, layers, directions } = sizes;
        if directions != cell.directions() {
            return Err(Error::argument(OP, "directions", directions, "as many as the cell has"));
        }
        let overflow =
            || Error::Overflow { op: OP, shape: crate::Dims::new(&[cell.gates(), directions, hidden]) };
        let rows = cell.gates().checked_mul(hidden).ok_or_else(overflow)?;
        let above = directions.checked_mul(hidden).ok_or_else(overflow)?;
        let most = 1.0 / (hidden.max(1) as f64).sqrt();
        let mut draw = || rng.uniform(T::from_f64(-most), T::from_f64(most));
        let mut weights = Vec::new();
        for layer in 0..layers {
            let inputs = if layer == 0 { inputs } else { above };
            weights.push(WeightTensors {
                input: Tensor::from_fn([directions, rows, inputs], |_| draw())?,
                recurrent: Tensor::from_fn([directions, rows, hidden], |_| draw())?,
                bias: Some(Tensor::from_fn([directions, rows], |_| draw())?),
                recurrent_bias: Some(Tensor::from_fn([directions, rows], |_| draw())?),
                peephole: None,
                projection: None,
            });
        }
        Self::from_weights(cell, weights)
    }

    /// Layers with these weights, from the bottom to the top.
    ///
    /// # Errors
    /// [`Error::Shape`] where weights do not fit each other or the layer below, [`Error::Alloc`] where there is no memory
    /// for the gradients.
    pub fn from_weights(cell: C, weights: Vec<WeightTensors<T>>) -> Result<Self> {
        let mut below: Option<usize> = None;
        for weights in &weights {
            let view = weights.view();
            let [directions, rows, inputs] = view.input.shape();
            if let Some(expected) = below.filter(|&expected| expected != inputs) {
                let expected = [directions, rows, expected];
                return Err(Error::shape("Recurrent::from_weights", "input", &view.input.shape(), &expected));
            }
            cell.check(view)?;
            // The product of two sizes of a tensor that exists.
            below = Some(directions * view.recurrent.shape()[2]);
        }
        let tapes = weights.iter().map(|_| Tape::new()).collect();
        let layers = weights.into_iter().map(Weighted::new).collect::<Result<_>>()?;
        Ok(Self { cell, layers, dropout: None, saved: None, tapes })
    }

    /// Dropout between the layers while training: each element of what a layer hands up is 0 with this probability, and
    /// the others are scaled so that the mean stays (N. Srivastava et al., JMLR 15, 2014).
    ///
    /// # Errors
    /// [`Error::Argument`] unless 0 ≤ `probability` < 1.
    pub fn dropout(self, probability: f64, seed: u64) -> Result<Self> {
        if !(0.0..1.0).contains(&probability) {
            return Err(Error::argument(
                "Recurrent::dropout",
                "probability",
                probability,
                "from 0 to below 1",
            ));
        }
        let dropout = (probability > 0.0).then(|| (probability, Rng::seed(seed)));
        Ok(Self { dropout, ..self })
    }

    /// The cell with its options.
    pub fn cell(&self) -> C {
        self.cell
    }

    /// The weights of a layer.
    ///
    /// # Errors
    /// [`Error::Argument`] where there is no such layer.
    pub fn weights(&self, layer: usize) -> Result<Weights<'_, T>> {
        match self.layers.get(layer) {
            Some(weights) => weights.view(),
            None => {
                Err(Error::argument("Recurrent::weights", "layer", layer, "less than the number of layers"))
            }
        }
    }

    /// The weights of all layers, packed for many calls of [`step`](Self::step).
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory.
    pub fn pack(&self) -> Result<Vec<PackedWeights<T>>> {
        self.layers.iter().map(|layer| self.cell.pack(layer.view()?)).collect()
    }

    /// States of 0 for a batch.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory.
    pub fn zero_state(&self, batch: usize) -> Result<State<T>> {
        let (mut state, lstm) = (State { hidden: Vec::new(), cell: Vec::new() }, self.cell.gates() == 4);
        for layer in &self.layers {
            let weights = layer.view()?;
            let ([directions, rows, _], [_, _, columns]) = (weights.input.shape(), weights.recurrent.shape());
            state.hidden.push(Tensor::zeros([directions, batch, columns])?);
            if lstm {
                state.cell.push(Tensor::zeros([directions, batch, rows / 4])?);
            }
        }
        Ok(state)
    }

    /// All outputs and the last states, from first states and with lengths where they are given, keeping what
    /// [`backward`](Layer::backward) needs. Carrying the last states on to the next piece of a sequence, and nothing
    /// back, is truncated back-propagation through time.
    ///
    /// # Errors
    /// As [`forward`](rnn::Recurrent::forward) of the cell.
    pub fn forward_from(
        &mut self,
        x: TensorView<'_, T, 3>,
        state: Option<&State<T>>,
        lengths: Option<&[usize]>,
    ) -> Result<(Tensor<T, 3>, State<T>)> {
        const OP: &str = "rnn::forward_taped";
        // What was kept stays where a call is refused.
        let (mut shape, zero) = (x.shape(), [T::ZERO]);
        for (number, layer) in self.layers.iter().enumerate() {
            let x = TensorView::as_strided(&zero, shape, [0; 3])?;
            shape = rnn::outputs(OP, &self.cell, &sequence(x, state, number, lengths), &layer.view()?)?;
        }
        self.saved = None;
        let mut saved: Vec<Saved<T>> = Vec::new();
        let mut last = State { hidden: Vec::new(), cell: Vec::new() };
        let mut below: Option<Tensor<T, 3>> = None;
        for (number, layer) in self.layers.iter().enumerate() {
            let mut mask = None;
            let x = match below.take() {
                None => x.to_tensor()?,
                Some(mut below) => {
                    if let Some((probability, rng)) = &mut self.dropout {
                        mask = Some(drop_out(&mut below, *probability, rng)?);
                    }
                    below
                }
            };
            let sequence = sequence(x.view(), state, number, lengths);
            let out = self.cell.forward_taped(sequence, layer.view()?, &mut self.tapes[number])?;
            let keep = |view: Option<TensorView<'_, T, 3>>| view.map(|view| view.to_tensor()).transpose();
            let copy = |lengths: &[usize]| {
                let mut to = Vec::new();
                workspace::try_copy(OP, lengths, &mut to).map(|()| to)
            };
            saved.push(Saved {
                mask,
                hidden: keep(sequence.hidden)?,
                cell: keep(sequence.cell)?,
                lengths: lengths.map(copy).transpose()?,
                output: out.y.shape(),
                x,
            });
            last.hidden.push(out.hidden);
            last.cell.extend(out.cell);
            below = Some(out.y);
        }
        let y = below.map_or_else(|| x.to_tensor(), Ok)?;
        self.saved = Some(saved);
        Ok((y, last))
    }

    /// All outputs and the last states, keeping nothing.
    ///
    /// # Errors
    /// As [`forward_from`](Self::forward_from).
    pub fn infer_from(
        &self,
        x: TensorView<'_, T, 3>,
        state: Option<&State<T>>,
        lengths: Option<&[usize]>,
    ) -> Result<(Tensor<T, 3>, State<T>)> {
        let mut last = State { hidden: Vec::new(), cell: Vec::new() };
        let mut below: Option<Tensor<T, 3>> = None;
        for (number, layer) in self.layers.iter().enumerate() {
            let x = below.as_ref().map_or(x, Tensor::view);
            let out = self.cell.forward(sequence(x, state, number, lengths), layer.view()?)?;
            last.hidden.push(out.hidden);
            last.cell.extend(out.cell);
            below = Some(out.y);
        }
        Ok((below.map_or_else(|| x.to_tensor(), Ok)?, last))
    }

    /// One step of a stream, x `[batch, inputs]`, over weights of [`pack`](Self::pack): changes the state and gives the
    /// top layer's h, `[batch, state]`.
    ///
    /// # Errors
    /// As [`step`](rnn::Recurrent::step) of the cell; the state may then be changed in part.
    pub fn step(
        &self,
        packed: &[PackedWeights<T>],
        x: TensorView<'_, T, 2>,
        state: &mut State<T>,
    ) -> Result<Tensor<T, 2>> {
        const OP: &str = "Recurrent::step";
        if packed.len() != self.layers.len() {
            return Err(Error::shape(OP, "packed", &[packed.len()], &[self.layers.len()]));
        }
        if state.hidden.len() != packed.len() {
            return Err(Error::shape(OP, "state.hidden", &[state.hidden.len()], &[packed.len()]));
        }
        let mut cells = state.cell.iter_mut();
        let mut below: Option<Tensor<T, 2>> = None;
        for (hidden, packed) in state.hidden.iter_mut().zip(packed) {
            let cell = cells.next().map(|cell| cell.view_mut().select(0, 0)).transpose()?;
            let to = StateMut { hidden: hidden.view_mut().select(0, 0)?, cell };
            self.cell.step(below.as_ref().map_or(x, Tensor::view), packed, to)?;
            below = Some(hidden.view().select::<2>(0, 0)?.to_tensor()?);
        }
        below.map_or_else(|| x.to_tensor(), Ok)
    }

    /// As [`backward`](Layer::backward), with gradients for the last states too: gives the gradient for x and for the
    /// first states.
    ///
    /// # Errors
    /// As [`backward`](Layer::backward).
    pub fn backward_from(
        &mut self,
        dy: TensorView<'_, T, 3>,
        d_last: Option<&State<T>>,
    ) -> Result<(Tensor<T, 3>, State<T>)> {
        const OP: &str = "Recurrent::backward";
        let Some(saved) = &self.saved else { return Err(not_called(OP)) };
        let expected = saved.last().map_or(dy.shape(), |top| top.output);
        if dy.shape() != expected {
            return Err(Error::shape(OP, "dy", &dy.shape(), &expected));
        }
        let mut first = State { hidden: Vec::new(), cell: Vec::new() };
        let mut above: Option<Tensor<T, 3>> = None;
        for (number, saved) in saved.iter().enumerate().rev() {
            let (weights, gradients) = self.layers[number].views()?;
            let Saved { x, mask, hidden, cell, lengths, .. } = saved;
            let sequence = Sequence {
                x: x.view(),
                hidden: hidden.as_ref().map(Tensor::view),
                cell: cell.as_ref().map(Tensor::view),
                lengths: lengths.as_deref(),
            };
            let outputs = OutputGradients {
                y: Some(above.as_ref().map_or(dy, Tensor::view)),
                hidden: d_last.and_then(|last| last.hidden.get(number)).map(Tensor::view),
                cell: d_last.and_then(|last| last.cell.get(number)).map(Tensor::view),
            };
            // The gradients for x and the states are new, and those of the weights are added to.
            let mut dx = Tensor::zeros(x.shape())?;
            let [_, batch, _] = x.shape();
            let ([directions, rows, _], [_, _, columns]) = (weights.input.shape(), weights.recurrent.shape());
            let mut d_hidden = Tensor::zeros([directions, batch, columns])?;
            let lstm = self.cell.gates() == 4;
            let mut d_cell = lstm.then(|| Tensor::zeros([directions, batch, rows / 4])).transpose()?;
            let to = GradientsMut {
                x: Some(dx.view_mut()),
                hidden: Some(d_hidden.view_mut()),
                cell: d_cell.as_mut().map(Tensor::view_mut),
                weights: gradients,
            };
            self.cell.backward_into(sequence, weights, &self.tapes[number], outputs, T::ONE, to)?;
            if let Some(mask) = mask {
                dx.as_mut_slice().iter_mut().zip(mask.as_slice()).for_each(|(dx, &mask)| *dx *= mask);
            }
            first.hidden.insert(0, d_hidden);
            if let Some(d_cell) = d_cell {
                first.cell.insert(0, d_cell);
            }
            above = Some(dx);
        }
        Ok((above.map_or_else(|| dy.to_tensor(), Ok)?, first))
    }
}

/// What a layer of a stack reads.
fn sequence<'a, T: Element>(
    x: TensorView<'a, T, 3>,
    state: Option<&'a State<T>>,
    layer: usize,
    lengths: Option<&'a [usize]>,
) -> Sequence<'a, T> {
    Sequence {
        x,
        hidden: state.and_then(|state| state.hidden.get(layer)).map(Tensor::view),
        cell: state.and_then(|state| state.cell.get(layer)).map(Tensor::view),
        lengths,
    }
}

/// Drops elements of `x`, and gives what they were multiplied by.
fn drop_out<T: Element>(x: &mut Tensor<T, 3>, probability: f64, rng: &mut Rng) -> Result<Tensor<T, 3>> {
    let kept = T::from_f64(1.0 / (1.0 - probability));
    let mask = Tensor::from_fn(x.shape(), |_| if rng.unit() < probability { T::ZERO } else { kept })?;
    x.as_mut_slice().iter_mut().zip(mask.as_slice()).for_each(|(x, &mask)| *x *= mask);
    Ok(mask)
}

impl<C: rnn::Recurrent, T: Element> Debug for Recurrent<C, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let dropout = self.dropout.as_ref().map(|(probability, _)| probability);
        describe(f, "Recurrent", &[("cell", &self.cell), ("dropout", &dropout)], self)
    }
}

impl<C: rnn::Recurrent, T: Element> Parameters<T> for Recurrent<C, T> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        self.layers.iter().enumerate().for_each(|(number, layer)| layer.visit(number, f));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        self.layers.iter_mut().enumerate().for_each(|(number, layer)| layer.visit_mut(number, f));
    }
}

impl<C: rnn::Recurrent, T: Element> Layer<T, 3, 3> for Recurrent<C, T> {
    /// From states of 0, over all steps.
    fn forward(&mut self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        Ok(self.forward_from(x, None, None)?.0)
    }

    fn infer(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        Ok(self.infer_from(x, None, None)?.0)
    }

    fn backward(&mut self, dy: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        Ok(self.backward_from(dy, None)?.0)
    }
}

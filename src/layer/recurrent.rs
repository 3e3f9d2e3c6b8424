//! Recurrent layers, one above the other.

mod weighted;

use std::fmt::{self, Debug, Formatter};

use self::weighted::Weighted;
use super::describe::describe;
use super::{Layer, Parameter, Parameters, hollow, not_called};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::machine;
use crate::random::Rng;
use crate::rnn::{
    self, GradientsMut, OutputGradients, PackedWeights, Sequence, StateMut, Tape, WeightTensors, Weights,
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
    saved: Option<Kept<T>>,
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

/// What `forward` keeps for backward.
struct Kept<T> {
    layers: Vec<Saved<T>>,
    output: [usize; 3],
}

/// That of a layer.
struct Saved<T> {
    x: Tensor<T, 3>,
    /// What x had been multiplied by.
    mask: Option<Tensor<T, 3>>,
    hidden: Option<Tensor<T, 3>>,
    cell: Option<Tensor<T, 3>>,
    lengths: Option<Vec<usize>>,
}

impl<T: Element> Saved<T> {
    fn sequence(&self) -> Sequence<'_, T> {
        Sequence {
            x: self.x.view(),
            hidden: self.hidden.as_ref().map(Tensor::view),
            cell: self.cell.as_ref().map(Tensor::view),
            lengths: self.lengths.as_deref(),
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
        let mut weights = workspace::room(OP, layers)?;
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
        const OP: &str = "Recurrent::from_weights";
        let mut below: Option<usize> = None;
        for weights in &weights {
            let view = weights.view();
            let [directions, rows, inputs] = view.input.shape();
            if let Some(expected) = below.filter(|&expected| expected != inputs) {
                let expected = [directions, rows, expected];
                return Err(Error::shape(OP, "input", &view.input.shape(), &expected));
            }
            cell.check(view)?;
            // The product of two sizes of a tensor that exists.
            below = Some(directions * view.recurrent.shape()[2]);
        }
        let (mut tapes, mut layers) =
            (workspace::room(OP, weights.len())?, workspace::room(OP, weights.len())?);
        for weights in weights {
            tapes.push(Tape::new());
            layers.push(Weighted::new(weights)?);
        }
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
        let mut state = State { hidden: Vec::new(), cell: Vec::new() };
        for layer in &self.layers {
            let [h, c] = layer.states(batch)?;
            state.hidden.push(Tensor::zeros(h)?);
            if self.is_lstm() {
                state.cell.push(Tensor::zeros(c)?);
            }
        }
        Ok(state)
    }

    fn is_lstm(&self) -> bool {
        self.cell.gates() == 4
    }

    /// An error unless there is an h for each layer, and with an LSTM a c for each or none.
    fn check_count(&self, op: &'static str, args: [&'static str; 2], state: &State<T>) -> Result<()> {
        let count = self.layers.len();
        expect(op, args[0], &[state.hidden.len()], &[count])?;
        if state.cell.is_empty() {
            return Ok(());
        }
        expect(op, args[1], &[state.cell.len()], &[if self.is_lstm() { count } else { 0 }])
    }

    /// [`check_count`](Self::check_count), and the shapes.
    fn check_state(
        &self,
        op: &'static str,
        args: [&'static str; 2],
        state: Option<&State<T>>,
        batch: usize,
    ) -> Result<()> {
        let Some(state) = state else { return Ok(()) };
        self.check_count(op, args, state)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let [h, c] = layer.states(batch)?;
            expect(op, args[0], &state.hidden[number].shape(), &h)?;
            state.cell.get(number).map_or(Ok(()), |cell| expect(op, args[1], &cell.shape(), &c))?;
        }
        Ok(())
    }

    /// The shape of all outputs, or the error of a call with these arguments.
    fn check_call(
        &self,
        x: [usize; 3],
        state: Option<&State<T>>,
        lengths: Option<&[usize]>,
    ) -> Result<[usize; 3]> {
        let op = "Recurrent::forward";
        self.check_state(op, STATE, state, x[1])?;
        self.layers.iter().enumerate().try_fold(x, |x, (number, layer)| {
            let zero = [T::ZERO];
            let sequence = sequence(hollow(&zero, x)?, state, number, lengths);
            rnn::outputs(op, &self.cell, &sequence, &layer.view()?)
        })
    }

    /// All outputs and the last states, from first states and with lengths where they are given, keeping what
    /// [`backward`](Layer::backward) needs. Carrying the last states on to the next piece of a sequence, and nothing
    /// back, is truncated back-propagation through time.
    ///
    /// Where memory runs out halfway, nothing is kept: [`backward`](Layer::backward) is then refused until a call has
    /// succeeded.
    ///
    /// # Errors
    /// As [`forward`](rnn::Recurrent::forward) of the cell, and [`Error::Shape`] unless there are states for each layer.
    ///
    /// ```
    /// use tilewise::layer::{Gru, Layer};
    /// use tilewise::{Tensor, random::Rng};
    /// let mut gru = Gru::<f64>::new(3, 4, &mut Rng::seed(1))?;
    /// let x = Tensor::from_fn([6, 2, 3], |[t, b, i]| (t + b * i) as f64 / 8.0)?;
    /// let whole = gru.infer(x.view())?;
    /// let (first, second) = x.view().split_at(0, 4)?;
    /// let (_, state) = gru.forward_from(first, None, None)?;
    /// let (rest, _) = gru.forward_from(second, Some(&state), None)?;
    /// assert!(rest.view().all_close(whole.view().slice(0, 4.., 1)?, 1e-12, 1e-12));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_from(
        &mut self,
        x: TensorView<'_, T, 3>,
        state: Option<&State<T>>,
        lengths: Option<&[usize]>,
    ) -> Result<(Tensor<T, 3>, State<T>)> {
        // What was kept stays where a call is refused.
        self.check_call(x.shape(), state, lengths)?;
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
                workspace::try_copy("Recurrent::forward", lengths, &mut to).map(|()| to)
            };
            saved.push(Saved {
                mask,
                hidden: keep(sequence.hidden)?,
                cell: keep(sequence.cell)?,
                lengths: lengths.map(copy).transpose()?,
                x,
            });
            last.hidden.push(out.hidden);
            last.cell.extend(out.cell);
            below = Some(out.y);
        }
        let y = below.map_or_else(|| x.to_tensor(), Ok)?;
        self.saved = Some(Kept { layers: saved, output: y.shape() });
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
        self.check_state("Recurrent::infer", STATE, state, x.shape()[1])?;
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
    /// As [`step`](rnn::Recurrent::step) of the cell; the state is then as it was, but where memory ran out.
    ///
    /// ```
    /// use tilewise::layer::{Layer, Lstm};
    /// use tilewise::{Tensor, random::Rng};
    /// let lstm = Lstm::<f64>::new(3, 4, &mut Rng::seed(1))?;
    /// let x = Tensor::from_fn([6, 2, 3], |[t, b, i]| (t + b * i) as f64 / 8.0)?;
    /// let (packed, mut state) = (lstm.pack()?, lstm.zero_state(2)?);
    /// let mut y = Tensor::zeros([2, 4])?;
    /// for t in 0..6 {
    ///     y = lstm.step(&packed, x.view().select(0, t)?, &mut state)?;
    /// }
    /// assert!(y.view().all_close(lstm.infer(x.view())?.view().select(0, 5)?, 1e-12, 1e-12));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn step(
        &self,
        packed: &[PackedWeights<T>],
        x: TensorView<'_, T, 2>,
        state: &mut State<T>,
    ) -> Result<Tensor<T, 2>> {
        const OP: &str = "Recurrent::step";
        expect(OP, "packed", &[packed.len()], &[self.layers.len()])?;
        self.check_count(OP, STATE, state)?;
        // Layers above are reached when the states of those below have changed. The weights may be others than those that were
        // packed.
        let (isa, [batch, mut inputs]) = (machine::isa()?, x.shape());
        for (number, packed) in packed.iter().enumerate() {
            let sizes = packed.check(OP, self.cell.spec(), isa)?;
            let [h, c] = [sizes.state, sizes.hidden].map(|size| [sizes.directions, batch, size]);
            expect(OP, "inputs of the packed weights", &[sizes.inputs], &[inputs])?;
            expect(OP, STATE[0], &state.hidden[number].shape(), &h)?;
            state.cell.get(number).map_or(Ok(()), |cell| expect(OP, STATE[1], &cell.shape(), &c))?;
            inputs = sizes.state;
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
    /// As [`backward`](Layer::backward), and [`Error::Shape`] unless there are gradients for the h of each layer, and for the
    /// c of each or of none.
    ///
    /// ```
    /// use tilewise::{Tensor, layer::Rnn, random::Rng};
    /// let mut rnn = Rnn::<f64>::new(3, 4, &mut Rng::seed(1))?;
    /// let x = Tensor::full([6, 2, 3], 0.5)?;
    /// let (y, last) = rnn.forward_from(x.view(), None, None)?;
    /// // A loss of half the squares of the last state alone.
    /// let (dx, first) = rnn.backward_from(Tensor::zeros(y.shape())?.view(), Some(&last))?;
    /// assert_eq!((dx.shape(), first.hidden[0].shape()), ([6, 2, 3], [1, 2, 4]));
    /// assert!(first.hidden[0].iter().all(|&dh| dh != 0.0));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward_from(
        &mut self,
        dy: TensorView<'_, T, 3>,
        d_last: Option<&State<T>>,
    ) -> Result<(Tensor<T, 3>, State<T>)> {
        const OP: &str = "Recurrent::backward";
        // Layers below are reached when those above have added to their gradients.
        self.check_backward(dy.shape())?;
        self.check_state(OP, ["d_last.hidden", "d_last.cell"], d_last, dy.shape()[1])?;
        let Some(Kept { layers: saved, .. }) = &self.saved else { return Err(not_called(OP)) };
        let lstm = self.is_lstm();
        let mut first = State { hidden: Vec::new(), cell: Vec::new() };
        let mut above: Option<Tensor<T, 3>> = None;
        for (number, saved) in saved.iter().enumerate().rev() {
            let Saved { x, mask, .. } = saved;
            let [h, c] = self.layers[number].states(x.shape()[1])?;
            let (weights, gradients) = self.layers[number].views()?;
            let sequence = saved.sequence();
            let outputs = OutputGradients {
                y: Some(above.as_ref().map_or(dy, Tensor::view)),
                hidden: d_last.and_then(|last| last.hidden.get(number)).map(Tensor::view),
                cell: d_last.and_then(|last| last.cell.get(number)).map(Tensor::view),
            };
            // The gradients for x and the states are new, and those of the weights are added to.
            let mut dx = Tensor::zeros(x.shape())?;
            let mut d_hidden = Tensor::zeros(h)?;
            let mut d_cell = lstm.then(|| Tensor::zeros(c)).transpose()?;
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

/// The parts of a first state, as errors name them.
const STATE: [&str; 2] = ["state.hidden", "state.cell"];

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
    fn check_forward(&self, x: [usize; 3]) -> Result<[usize; 3]> {
        self.check_call(x, None, None)
    }

    fn check_backward(&self, dy: [usize; 3]) -> Result<[usize; 3]> {
        let op = "Recurrent::backward";
        let Some(Kept { layers: saved, output }) = &self.saved else { return Err(not_called(op)) };
        expect(op, "dy", &dy, output)?;
        saved.iter().zip(&self.layers).zip(&self.tapes).rev().try_fold(dy, |dy, ((saved, layer), tape)| {
            let y = rnn::taped_outputs(op, &self.cell, &saved.sequence(), &layer.view()?, tape)?;
            expect(op, "the output of a layer", &y, &dy)?;
            Ok(saved.x.shape())
        })
    }

    /// From states of 0, over all steps; as [`forward_from`](Recurrent::forward_from).
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

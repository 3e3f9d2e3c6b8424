//! The cells as plain data, and the calls that all of them have.
#![forbid(unsafe_code)]

use super::functions::{Chosen, Functions};
use super::sequence::{Output, OutputGradients, OutputMut, Sequence, StateMut};
use super::tape::Tape;
use super::weights::{Gradients, GradientsMut, Operand, PackedWeights, Weights};
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::TensorView;

/// The order in which a layer reads its sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last valid step to the first.
    Reverse,
    /// Both, each with weights and states of its own: forward first.
    Bidirectional,
}

impl Direction {
    /// 2 for both, else 1.
    pub const fn count(self) -> usize {
        if matches!(self, Direction::Bidirectional) { 2 } else { 1 }
    }

    /// True where direction `index` reads in reverse.
    pub(crate) fn reverse(self, index: usize) -> bool {
        self == Direction::Reverse || index == 1
    }
}

/// The activation of an [`Elman`] cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nonlinearity {
    /// tanh z.
    #[default]
    Tanh,
    /// max(z, 0).
    Relu,
}

/// What the reset gate of a [`Gru`] multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    /// The recurrent product, W h + b: PyTorch, cuDNN, ONNX with `linear_before_reset = 1`.
    #[default]
    After,
    /// The state, before the product: the paper, ONNX unless told otherwise.
    Before,
}

/// The Elman cell: plain data. The [module](super) has the formulas.
///
/// ```
/// use tilewise::rnn::{Elman, Nonlinearity, Recurrent, Weights};
/// use tilewise::TensorView;
/// let one = TensorView::from_slice(&[1.0f32], [1, 1, 1])?;
/// let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [3, 1, 1])?;
/// let rnn = Elman::new().nonlinearity(Nonlinearity::Relu);
/// assert_eq!(rnn.forward(x, Weights::new(one, one))?.y.as_slice(), [1.0, 3.0, 6.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Elman {
    activations: Chosen,
    direction: Direction,
}

/// The LSTM cell: plain data. The [module](super) has the formulas; peepholes and projection are in the
/// [`Weights`].
///
/// ```
/// use tilewise::rnn::{Lstm, Recurrent, Weights};
/// use tilewise::{Tensor, random::Rng};
/// let (inputs, hidden) = (3, 5);
/// let mut rng = Rng::seed(1);
/// let u = Tensor::<f32, 3>::from_fn([1, 4 * hidden, inputs], |_| rng.uniform(-0.5, 0.5))?;
/// let w = Tensor::<f32, 3>::from_fn([1, 4 * hidden, hidden], |_| rng.uniform(-0.5, 0.5))?;
/// let x = Tensor::full([7, 2, inputs], 1.0)?; // 7 steps of a batch of 2
/// let out = Lstm::new().forward(x.view(), Weights::new(u.view(), w.view()))?;
/// assert_eq!(out.y.shape(), [7, 2, hidden]);
/// assert_eq!(out.hidden.as_slice(), &out.y.as_slice()[6 * 2 * hidden..]); // the last step's
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lstm {
    clip: Option<f64>,
    coupled: bool,
    activations: Chosen,
    direction: Direction,
    recompute: bool,
}

/// The GRU cell: plain data. The [module](super) has the formulas.
///
/// ```
/// use tilewise::rnn::{Direction, Gru, Recurrent, Reset, Weights};
/// use tilewise::Tensor;
/// let u = Tensor::<f32, 3>::full([2, 3 * 4, 3], 0.1)?;
/// let w = Tensor::<f32, 3>::full([2, 3 * 4, 4], 0.1)?;
/// let x = Tensor::full([7, 2, 3], 1.0)?;
/// let gru = Gru::new().reset(Reset::Before).direction(Direction::Bidirectional);
/// assert_eq!(gru.forward(x.view(), Weights::new(u.view(), w.view()))?.y.shape(), [7, 2, 2 * 4]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gru {
    reset: Reset,
    activations: Chosen,
    direction: Direction,
    recompute: bool,
}

impl Elman {
    /// tanh, forward.
    pub fn new() -> Self {
        Self::default()
    }

    /// The activation; tanh unless set.
    pub fn nonlinearity(self, nonlinearity: Nonlinearity) -> Self {
        self.activation(match nonlinearity {
            Nonlinearity::Tanh => Activation::Tanh,
            Nonlinearity::Relu => Activation::Relu,
        })
    }

    /// Any other activation, of both directions. Those that [`nonlinearity`](Self::nonlinearity) has are the fast ones.
    ///
    /// ```
    /// use tilewise::activation::Activation;
    /// use tilewise::rnn::{Elman, Recurrent, Weights};
    /// use tilewise::TensorView;
    /// let one = TensorView::from_slice(&[1.0f32], [1, 1, 1])?;
    /// let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [3, 1, 1])?;
    /// let rnn = Elman::new().activation(Activation::LeakyRelu { slope: 0.1 });
    /// assert_eq!(rnn.forward(x, Weights::new(one, one))?.y.as_slice(), [1.0, 3.0, 6.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn activation(self, activation: Activation) -> Self {
        let Self { mut activations, direction } = self;
        (activations.forward[1], activations.reverse[1]) = (activation, activation);
        Self { activations, direction }
    }

    /// That of the direction that reads in reverse alone.
    pub fn reverse_activation(self, activation: Activation) -> Self {
        let Self { mut activations, direction } = self;
        activations.reverse[1] = activation;
        Self { activations, direction }
    }

    /// What enters the activation is kept within ± `clip` (ONNX's attribute `clip`). Where it is not within, the gradient is 0.
    pub fn activation_clip(self, clip: f64) -> Self {
        let activations = Chosen { clip: Some(clip), ..self.activations };
        Self { activations, ..self }
    }

    /// The order of reading; forward unless set.
    pub fn direction(self, direction: Direction) -> Self {
        Self { direction, ..self }
    }
}

impl Lstm {
    /// No clip, forward, gates kept for backward.
    pub fn new() -> Self {
        Self::default()
    }

    /// The cell state is kept within ± `clip` (Sak, Senior and Beaufays 2014). A clipped unit's gradient is 0.
    pub fn clip(self, clip: f64) -> Self {
        Self { clip: Some(clip), ..self }
    }

    /// Whether f is 1 − i, rather than a gate of its own (K. Greff et al., "LSTM: a search space odyssey", 2015; ONNX's
    /// attribute `input_forget`). What the weights have for f is not used then, and its gradients are 0.
    ///
    /// ```
    /// use tilewise::rnn::{Lstm, Recurrent, Sequence, Weights};
    /// use tilewise::TensorView;
    /// // With weights of 0, i is 1/2 and g is 0: c becomes (1 − i) c.
    /// let zeros = TensorView::from_slice(&[0.0f64; 4], [1, 4, 1])?;
    /// let state = TensorView::from_slice(&[8.0], [1, 1, 1])?;
    /// let x = TensorView::from_slice(&[1.0], [1, 1, 1])?;
    /// let sequence = Sequence::new(x).hidden(state).cell(state);
    /// let out = Lstm::new().coupled(true).forward(sequence, Weights::new(zeros, zeros))?;
    /// assert_eq!(out.cell.unwrap().as_slice(), [4.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn coupled(self, coupled: bool) -> Self {
        Self { coupled, ..self }
    }

    /// The activations of i, f and o, of g, and of c on its way to h, in both directions: σ, tanh and tanh unless set, and
    /// slower where they are not these.
    ///
    /// ```
    /// use tilewise::activation::Activation::{HardSigmoid, Softsign, Tanh};
    /// let gates = HardSigmoid { alpha: 0.2, beta: 0.5 };
    /// let lstm = tilewise::rnn::Lstm::new().activations([gates, Softsign, Tanh]);
    /// ```
    pub fn activations(self, activations: [Activation; 3]) -> Self {
        Self {
            activations: Chosen { forward: activations, reverse: activations, ..self.activations },
            ..self
        }
    }

    /// Those of the direction that reads in reverse alone.
    pub fn reverse_activations(self, activations: [Activation; 3]) -> Self {
        Self { activations: Chosen { reverse: activations, ..self.activations }, ..self }
    }

    /// What enters a gate's activation is kept within ± `clip` (ONNX's attribute `clip`, as ONNX Runtime has it: c on its way
    /// to h is not). Where it is not within, the gradient is 0.
    pub fn activation_clip(self, clip: f64) -> Self {
        Self { activations: Chosen { clip: Some(clip), ..self.activations }, ..self }
    }

    /// The order of reading; forward unless set.
    pub fn direction(self, direction: Direction) -> Self {
        Self { direction, ..self }
    }

    /// Whether backward computes the gates again instead of finding them in the [`Tape`].
    pub fn recompute(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }
}

impl Gru {
    /// Reset after the product, forward, gates kept for backward.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the reset gate multiplies; the product unless set.
    pub fn reset(self, reset: Reset) -> Self {
        Self { reset, ..self }
    }

    /// The activations of r and z, and of n, in both directions: σ and tanh unless set, and slower where they are not these.
    ///
    /// ```
    /// use tilewise::activation::Activation::{Relu, Sigmoid};
    /// let gru = tilewise::rnn::Gru::new().activations([Sigmoid, Relu]);
    /// ```
    pub fn activations(self, [gates, candidate]: [Activation; 2]) -> Self {
        let Self { mut activations, .. } = self;
        (activations.forward[0], activations.forward[1]) = (gates, candidate);
        (activations.reverse[0], activations.reverse[1]) = (gates, candidate);
        Self { activations, ..self }
    }

    /// Those of the direction that reads in reverse alone.
    pub fn reverse_activations(self, [gates, candidate]: [Activation; 2]) -> Self {
        let Self { mut activations, .. } = self;
        (activations.reverse[0], activations.reverse[1]) = (gates, candidate);
        Self { activations, ..self }
    }

    /// What enters an activation is kept within ± `clip` (ONNX's attribute `clip`). Where it is not within, the gradient is 0.
    pub fn activation_clip(self, clip: f64) -> Self {
        Self { activations: Chosen { clip: Some(clip), ..self.activations }, ..self }
    }

    /// The order of reading; forward unless set.
    pub fn direction(self, direction: Direction) -> Self {
        Self { direction, ..self }
    }

    /// Whether backward computes the gates again instead of finding them in the [`Tape`].
    pub fn recompute(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }
}

/// Which cell, for the code that all share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    Elman(Nonlinearity),
    Lstm { clip: Option<f64>, coupled: bool },
    Gru(Reset),
}

impl Cell {
    pub(crate) fn gates(self) -> usize {
        match self {
            Cell::Elman(_) => 1,
            Cell::Lstm { .. } => 4,
            Cell::Gru(_) => 3,
        }
    }

    /// Columns of gradients, in units, that backward makes of a step: reset after the product, gate n has two, one for
    /// what comes from x and one for what comes from h.
    pub(crate) fn gradient_columns(self) -> usize {
        if self == Cell::Gru(Reset::After) { 4 } else { self.gates() }
    }

    pub(crate) fn is_lstm(self) -> bool {
        matches!(self, Cell::Lstm { .. })
    }
}

/// All options of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    pub(crate) cell: Cell,
    pub(crate) direction: Direction,
    pub(crate) recompute: bool,
    /// The activations, where they are not the usual ones, forward and in reverse.
    pub(crate) functions: Option<[Functions; 2]>,
}

impl Spec {
    /// Those of a direction.
    pub(crate) fn functions(&self, direction: usize) -> Option<Functions> {
        self.functions.map(|both| both[usize::from(self.direction.reverse(direction))])
    }

    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        let not_negative = |arg: &'static str, clip: f64| match clip >= 0.0 {
            true => Ok(()),
            false => Err(Error::argument(op, arg, clip, "a number that is not negative")),
        };
        if let Some([Functions { clip: Some(clip), .. }, _]) = self.functions {
            not_negative("activation_clip", clip)?;
        }
        // One with a NaN is unlike itself, and its tape would be that of another call.
        let mut activations = self.functions.iter().flatten().flat_map(|functions| functions.activations);
        if let Some(activation) = activations.find(|activation| activation.ne(activation)) {
            let found = format!("{activation:?}");
            return Err(Error::argument(op, "activation", found, "one whose constants are numbers"));
        }
        match self.cell {
            Cell::Lstm { clip: Some(clip), .. } => not_negative("clip", clip),
            _ => Ok(()),
        }
    }
}

mod sealed {
    pub trait Sealed {
        fn spec(&self) -> super::Spec;
    }
}

impl sealed::Sealed for Elman {
    fn spec(&self) -> Spec {
        let Self { activations, direction } = *self;
        let Chosen { forward, reverse, clip } = activations;
        let relu = forward[1] == Activation::Relu && forward == reverse && clip.is_none();
        let functions = if relu { None } else { activations.functions() };
        let nonlinearity = if relu { Nonlinearity::Relu } else { Nonlinearity::Tanh };
        Spec { cell: Cell::Elman(nonlinearity), direction, recompute: false, functions }
    }
}

impl sealed::Sealed for Lstm {
    fn spec(&self) -> Spec {
        let Self { clip, coupled, activations, direction, recompute } = *self;
        Spec { cell: Cell::Lstm { clip, coupled }, direction, recompute, functions: activations.functions() }
    }
}

impl sealed::Sealed for Gru {
    fn spec(&self) -> Spec {
        let Self { reset, activations, direction, recompute } = *self;
        Spec { cell: Cell::Gru(reset), direction, recompute, functions: activations.functions() }
    }
}

impl Recurrent for Elman {}
impl Recurrent for Lstm {}
impl Recurrent for Gru {}

/// What [`Elman`], [`Lstm`] and [`Gru`] can do. The [module](super) has the shapes.
pub trait Recurrent: sealed::Sealed + Copy + Send + Sync + std::fmt::Debug + 'static {
    /// Rows of U and W, in units: 1 (Elman), 4 (LSTM) or 3 (GRU).
    fn gates(&self) -> usize {
        self.spec().cell.gates()
    }

    /// 1 or 2.
    fn directions(&self) -> usize {
        self.spec().direction.count()
    }

    /// An error unless the weights fit the cell and each other.
    ///
    /// # Errors
    /// As [`pack`](Self::pack).
    fn check<T: Element>(&self, weights: Weights<'_, T>) -> Result<()> {
        super::sizes::WeightSizes::check("rnn::check", self.spec(), &weights).map(|_| ())
    }

    /// Weights in the order in which the kernels read them, for many calls.
    ///
    /// # Errors
    /// [`Error::Shape`] where the weights do not fit each other, [`Error::Argument`] where an option is out of range,
    /// [`Error::Alloc`] where there is no memory.
    fn pack<T: Element>(&self, weights: Weights<'_, T>) -> Result<PackedWeights<T>> {
        T::pack_recurrent(self.spec(), weights)
    }

    /// All outputs and the last states, keeping nothing for backward.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit; [`Error::Argument`] where a length exceeds the steps, where a cell
    /// state is missing beside a hidden state or is none of the cell's, where weights were packed for another cell;
    /// [`Error::Packed`] where they were packed for another instruction set; [`Error::Alloc`] where there is no memory.
    fn forward<'s, 'w, T: Element>(
        &self,
        sequence: impl Into<Sequence<'s, T>>,
        weights: impl Into<Operand<'w, T>>,
    ) -> Result<Output<T>> {
        T::recur("rnn::forward", self.spec(), sequence.into(), weights.into(), None)
    }

    /// [`forward`](Self::forward) into the caller's memory, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward). Nothing is written then, unless memory ran out in the middle.
    fn forward_into<'s, 'w, T: Element>(
        &self,
        sequence: impl Into<Sequence<'s, T>>,
        weights: impl Into<Operand<'w, T>>,
        output: OutputMut<'_, T>,
    ) -> Result<()> {
        T::recur_into("rnn::forward_into", self.spec(), sequence.into(), weights.into(), output, None)
    }

    /// [`forward`](Self::forward), keeping in `tape` what [`backward`](Self::backward) needs. The tape's memory is
    /// used again where it is large enough.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); the tape is empty then.
    fn forward_taped<'s, 'w, T: Element>(
        &self,
        sequence: impl Into<Sequence<'s, T>>,
        weights: impl Into<Operand<'w, T>>,
        tape: &mut Tape<T>,
    ) -> Result<Output<T>> {
        T::recur("rnn::forward_taped", self.spec(), sequence.into(), weights.into(), Some(tape))
    }

    /// [`forward_taped`](Self::forward_taped) into the caller's memory.
    ///
    /// # Errors
    /// As [`forward_taped`](Self::forward_taped).
    fn forward_taped_into<'s, 'w, T: Element>(
        &self,
        sequence: impl Into<Sequence<'s, T>>,
        weights: impl Into<Operand<'w, T>>,
        tape: &mut Tape<T>,
        output: OutputMut<'_, T>,
    ) -> Result<()> {
        let op = "rnn::forward_taped_into";
        T::recur_into(op, self.spec(), sequence.into(), weights.into(), output, Some(tape))
    }

    /// One step of a stream: x is `[batch, inputs]`, and the state, `[batch, state]` and for an LSTM `[batch,
    /// hidden]`, becomes that after the step. The new h is the step's output.
    ///
    /// Over [packed](Self::pack) weights, the steps of a sequence have the bits of one [`forward`](Self::forward).
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Argument`] unless the direction is forward.
    ///
    /// ```
    /// use tilewise::rnn::{Gru, Recurrent, StateMut, Weights};
    /// use tilewise::Tensor;
    /// let (u, w) = (Tensor::<f32, 3>::full([1, 6, 3], 0.1)?, Tensor::full([1, 6, 2], 0.2)?);
    /// let x = Tensor::full([4, 1, 3], 1.0)?;
    /// let packed = Gru::new().pack(Weights::new(u.view(), w.view()))?;
    /// let mut h = Tensor::zeros([1, 2])?;
    /// for t in 0..4 {
    ///     Gru::new().step(x.view().select(0, t)?, &packed, StateMut::new(h.view_mut()))?;
    /// }
    /// assert_eq!(h.as_slice(), Gru::new().forward(x.view(), &packed)?.hidden.as_slice());
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    fn step<'w, T: Element>(
        &self,
        x: TensorView<'_, T, 2>,
        weights: impl Into<Operand<'w, T>>,
        state: StateMut<'_, T>,
    ) -> Result<()> {
        T::recur_step(self.spec(), x, weights.into(), state)
    }

    /// The gradients for everything that went into [`forward_taped`](Self::forward_taped), from those for what came out.
    ///
    /// Back-propagation through time over the whole sequence. For its truncated form, cut the sequence in pieces, carry
    /// the states from one to the next, and drop the gradients for the states.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Argument`] where the tape is not that of a call with these options
    /// and sizes.
    ///
    /// ```
    /// use tilewise::rnn::{Lstm, Recurrent, Tape, Weights};
    /// use tilewise::Tensor;
    /// let (u, w) = (Tensor::<f64, 3>::full([1, 8, 3], 0.1)?, Tensor::full([1, 8, 2], 0.2)?);
    /// let (x, weights) = (Tensor::full([4, 1, 3], 1.0)?, Weights::new(u.view(), w.view()));
    /// let mut tape = Tape::new();
    /// let out = Lstm::new().forward_taped(x.view(), weights, &mut tape)?;
    /// let dy = Tensor::full(out.y.shape(), 1.0)?;
    /// let gradients = Lstm::new().backward(x.view(), weights, &tape, dy.view())?;
    /// assert_eq!(gradients.x.shape(), x.shape());
    /// assert_eq!(gradients.weights.recurrent.shape(), w.shape());
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    fn backward<'s, 'g, T: Element>(
        &self,
        sequence: impl Into<Sequence<'s, T>>,
        weights: Weights<'_, T>,
        tape: &Tape<T>,
        outputs: impl Into<OutputGradients<'g, T>>,
    ) -> Result<Gradients<T>> {
        let (op, spec, sequence) = ("rnn::backward", self.spec(), sequence.into());
        let sizes = super::sizes::Sizes::check(op, spec, &sequence, &weights)?;
        let mut gradients = Gradients::zeros(&sizes, &weights)?;
        let outputs = outputs.into();
        T::recur_backward(op, spec, sequence, weights, tape, outputs, T::ZERO, gradients.view_mut())?;
        Ok(gradients)
    }

    /// The gradients asked for, each added to `beta` times what its output held: beta 0 overwrites, 1 accumulates.
    ///
    /// # Errors
    /// As [`backward`](Self::backward). Nothing is written then, unless memory ran out in the middle.
    #[allow(clippy::too_many_arguments, reason = "all that went in and came out")]
    fn backward_into<'s, 'g, T: Element>(
        &self,
        sequence: impl Into<Sequence<'s, T>>,
        weights: Weights<'_, T>,
        tape: &Tape<T>,
        outputs: impl Into<OutputGradients<'g, T>>,
        beta: T,
        gradients: GradientsMut<'_, T>,
    ) -> Result<()> {
        let op = "rnn::backward_into";
        T::recur_backward(op, self.spec(), sequence.into(), weights, tape, outputs.into(), beta, gradients)
    }
}

//! Recurrent cells over sequences: Elman, LSTM and GRU, forward and back through time.
//!
//! Shapes: x is `[time, batch, inputs]`, y is `[time, batch, directions · state]`, states are `[directions, batch, state]`
//! (h) and `[directions, batch, hidden]` (c); state is hidden, unless an LSTM projects it. U and W stand for
//! [`Weights::input`] and [`Weights::recurrent`], b for the sum of both biases.
//!
//! # Formulas
//!
//! Elman (J. Elman, "Finding structure in time", Cognitive Science 14, 1990), with f = tanh or max(·, 0):
//!
//! ```text
//! zₜ = U xₜ + W hₜ₋₁ + b        hₜ = f(zₜ)
//! ```
//!
//! LSTM (S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9, 1997; peepholes: F. Gers and
//! J. Schmidhuber, IJCNN 2000; projection and clip: H. Sak, A. Senior and F. Beaufays, Interspeech 2014), gates stacked
//! as i, f, g, o:
//!
//! ```text
//! i = σ(U xₜ + W hₜ₋₁ + b [+ pᵢ ⊙ cₜ₋₁])     f = σ(… [+ p_f ⊙ cₜ₋₁])     g = tanh(…)
//! cₜ = clip(f ⊙ cₜ₋₁ + i ⊙ g)               o = σ(… [+ pₒ ⊙ cₜ])        hₜ = [P] (o ⊙ tanh cₜ)
//! ```
//!
//! GRU (K. Cho et al., "Learning phrase representations using RNN encoder–decoder", EMNLP 2014), gates r, z, n, with b
//! and b′ the biases of U and W:
//!
//! ```text
//! r = σ(U xₜ + b + W hₜ₋₁ + b′)     z likewise     hₜ = (1 − z) ⊙ n + z ⊙ hₜ₋₁
//! reset after:   n = tanh(U xₜ + b + r ⊙ (W hₜ₋₁ + b′))
//! reset before:  n = tanh(U xₜ + b + W (r ⊙ hₜ₋₁) + b′)
//! ```
//!
//! Other activations than σ and tanh can be chosen for each of these, and f = 1 − i for an LSTM: all that ONNX's operators
//! RNN, LSTM and GRU have. [`onnx_activations`] and [`WeightTensors::from_onnx`] take
//! them from there.
//!
//! # Back through time
//!
//! With dzₜ the gradient for what a gate's activation got, from the last step to the first (P. Werbos, "Backpropagation
//! through time: what it does and how to do it", Proc. IEEE 78, 1990):
//!
//! ```text
//! dhₜ = dyₜ + Wᵀ dzₜ₊₁ [+ z ⊙ dhₜ₊₁]        Elman: dzₜ = dhₜ ⊙ f′        LSTM: dcₜ = dcₜ₊₁ ⊙ f + dhₜ ⊙ o ⊙ (1 − tanh² cₜ)
//! dU = Σₜ dzₜ xₜᵀ      dW = Σₜ dzₜ hₜ₋₁ᵀ      db = Σₜ dzₜ      dxₜ = Uᵀ dzₜ      dh₀ = Wᵀ dz₁
//! ```
//!
//! A model with outputs oₜ = V hₜ + c, ŷₜ = softmax(oₜ) and the loss L = −Σₜ yₜᵀ log ŷₜ gets dyₜ = Vᵀ(ŷₜ − yₜ) from
//! [`linear`](crate::linear) and [`loss`](crate::loss): all steps are rows there.
//!
//! # Lengths
//!
//! With [`Sequence::lengths`], y is 0 behind the end of a sequence, the last state is that of its last valid step (of
//! length 0, the first state), the reverse direction begins with its last valid step, and what x and dy hold behind
//! the end is not read. Nothing is computed for steps that are not valid.
//!
//! # Which path runs when
//!
//! | part | path |
//! | --- | --- |
//! | U x | one GEMM over all steps, or over as many as 2²² gates take where no tape keeps them; b is added in the pass |
//! | U x of a single step, U packed | as W h: a stream reads both from front to back and from back to front in turn, so that what lies in L2 is read first |
//! | W h | a product a step over W packed once, beside the units' pass over their gates, which finds it in L1 |
//! | a step of much work | some units are a task; the next step waits for them |
//! | W in half of L2, batch of 32 and more | groups of 16 and more entries, which wait for nobody |
//! | both directions | tasks |
//! | Wᵀ dz | as W h |
//! | dU, dW, db, dx | one GEMM, or one sum, over all steps; of dW one for each group |
//! | activations other than σ and tanh | a pass that calls them for each vector, and keeps what enters them on the tape |
//! | x in time order, all lengths the same, one group | its rows are read in place; otherwise they are gathered |
//!
//! # Promises
//!
//! The result has the same bits for any number of threads. Over [packed](Recurrent::pack) weights a sequence has the same
//! bits alone and in a batch, in one call and step by step.
#![forbid(unsafe_code)]

mod backward;
mod convert;
mod descriptor;
mod engine;
mod forward;
mod functions;
mod groups;
mod kernels;
mod pass;
mod ready;
mod sequence;
mod sizes;
mod steps;
mod tape;
mod unroll;
mod weights;

pub use convert::onnx_activations;
pub use descriptor::{Direction, Elman, Gru, Lstm, Nonlinearity, Recurrent, Reset};
pub(crate) use kernels::Recur;
pub(crate) use pass::Passes;
pub use sequence::{Output, OutputGradients, OutputMut, Sequence, StateMut};
pub(crate) use sizes::{outputs, taped_outputs};
pub use tape::Tape;
pub use weights::{
    DirectionWeights, Gradients, GradientsMut, Operand, PackedWeights, WeightGradientsMut, WeightTensors,
    Weights,
};

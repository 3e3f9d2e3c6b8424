//! What goes into a call beside the weights, and what comes out.
#![forbid(unsafe_code)]

use crate::element::Element;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// A batch of sequences with their first states: plain data.
///
/// ```
/// use tilewise::rnn::{Elman, Recurrent, Sequence, Weights};
/// use tilewise::Tensor;
/// let (u, w) = (Tensor::<f32, 3>::full([1, 2, 1], 1.0)?, Tensor::zeros([1, 2, 2])?);
/// let x = Tensor::full([3, 2, 1], 1.0)?;
/// // The second sequence ends after one step.
/// let sequence = Sequence::new(x.view()).lengths(&[3, 1]);
/// let out = Elman::new().forward(sequence, Weights::new(u.view(), w.view()))?;
/// assert!(out.y.get([0, 1, 0]) > Some(&0.0) && out.y.get([1, 1, 0]) == Some(&0.0));
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a, T> {
    /// `[time, batch, inputs]`; for batch-first memory, permute the view.
    pub x: TensorView<'a, T, 3>,
    /// h before the first step, `[directions, batch, state]`; 0 where there is none.
    pub hidden: Option<TensorView<'a, T, 3>>,
    /// c before the first step, `[directions, batch, hidden]`: with a hidden state of an LSTM, and only then.
    pub cell: Option<TensorView<'a, T, 3>>,
    /// Valid steps of each entry of the batch, 0 to time; all where there are none.
    pub lengths: Option<&'a [usize]>,
}

impl<'a, T: Element> Sequence<'a, T> {
    /// x `[time, batch, inputs]`, all steps valid, first states 0.
    pub fn new(x: TensorView<'a, T, 3>) -> Self {
        Self { x, hidden: None, cell: None, lengths: None }
    }

    /// The first h, `[directions, batch, state]`.
    pub fn hidden(self, hidden: TensorView<'a, T, 3>) -> Self {
        Self { hidden: Some(hidden), ..self }
    }

    /// The first c, `[directions, batch, hidden]`.
    pub fn cell(self, cell: TensorView<'a, T, 3>) -> Self {
        Self { cell: Some(cell), ..self }
    }

    /// Valid steps of each entry of the batch. What x holds behind them is not read.
    pub fn lengths(self, lengths: &'a [usize]) -> Self {
        Self { lengths: Some(lengths), ..self }
    }
}

impl<'a, T: Element> From<TensorView<'a, T, 3>> for Sequence<'a, T> {
    fn from(x: TensorView<'a, T, 3>) -> Self {
        Self::new(x)
    }
}

/// All outputs and the last states.
#[derive(Debug)]
pub struct Output<T> {
    /// h of every step, `[time, batch, directions · state]`; 0 behind the end of a sequence.
    pub y: Tensor<T, 3>,
    /// h after the last valid step, `[directions, batch, state]`.
    pub hidden: Tensor<T, 3>,
    /// c after it, `[directions, batch, hidden]`: an LSTM's.
    pub cell: Option<Tensor<T, 3>>,
}

/// Where [`Recurrent::forward_into`](super::Recurrent::forward_into) writes; shapes are those of [`Output`], and last
/// states are written where they are wanted.
pub struct OutputMut<'a, T> {
    /// `[time, batch, directions · state]`.
    pub y: TensorViewMut<'a, T, 3>,
    /// `[directions, batch, state]`.
    pub hidden: Option<TensorViewMut<'a, T, 3>>,
    /// `[directions, batch, hidden]`.
    pub cell: Option<TensorViewMut<'a, T, 3>>,
}

impl<'a, T: Element> OutputMut<'a, T> {
    /// The outputs, and no last states.
    pub fn new(y: TensorViewMut<'a, T, 3>) -> Self {
        Self { y, hidden: None, cell: None }
    }
}

/// The state of a stream, changed by each [`step`](super::Recurrent::step).
pub struct StateMut<'a, T> {
    /// h, `[batch, state]`.
    pub hidden: TensorViewMut<'a, T, 2>,
    /// c, `[batch, hidden]`: an LSTM's.
    pub cell: Option<TensorViewMut<'a, T, 2>>,
}

impl<'a, T: Element> StateMut<'a, T> {
    /// The state of an Elman cell or a GRU.
    pub fn new(hidden: TensorViewMut<'a, T, 2>) -> Self {
        Self { hidden, cell: None }
    }

    /// With the cell state of an LSTM.
    pub fn cell(self, cell: TensorViewMut<'a, T, 2>) -> Self {
        Self { cell: Some(cell), ..self }
    }
}

/// The gradients for what came out; those that are `None` are 0.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradients<'a, T> {
    /// For y, `[time, batch, directions · state]`. What it holds behind the end of a sequence is not read.
    pub y: Option<TensorView<'a, T, 3>>,
    /// For the last h, `[directions, batch, state]`.
    pub hidden: Option<TensorView<'a, T, 3>>,
    /// For the last c, `[directions, batch, hidden]`.
    pub cell: Option<TensorView<'a, T, 3>>,
}

impl<'a, T: Element> From<TensorView<'a, T, 3>> for OutputGradients<'a, T> {
    fn from(y: TensorView<'a, T, 3>) -> Self {
        Self { y: Some(y), hidden: None, cell: None }
    }
}

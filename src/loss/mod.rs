//! Losses and their gradients, each from one pass.
//!
//! | loss | of one row or element |
//! |---|---|
//! | [`CrossEntropy`] | −Σ_c q_c log softmax(z)_c; of log-probabilities −Σ_c q_c z_c |
//! | [`MeanSquared`] | (y − t)² |
//! | [`BinaryCrossEntropy`] | −t log σ(z) − (1 − t) log(1 − σ(z)) |
//!
//! `forward` gives the loss alone; `forward_backward` gives it with the gradient for the first argument, and
//! `forward_backward_into` writes that to a view. A [`Reduction`] makes one number of the rows' or elements'
//! losses; [`row_losses`](CrossEntropy::row_losses) leaves them. The mean over nothing, an empty batch or one whose rows are all ignored, is 0 with gradient 0: such
//! a batch has nothing to say and must not turn the weights to NaN, as PyTorch's NaN does.
//!
//! Sums are made in an order that depends on shapes alone: leaves of a fixed size, added up along a fixed binary
//! tree in `f64`; in a leaf, up to 16 terms of a lane in the type of the elements. So a loss has the same bits for any
//! number of threads and for any strides.
#![forbid(unsafe_code)]

mod cross_entropy;
mod elementwise;

pub use cross_entropy::{CrossEntropy, Target};
pub use elementwise::{BinaryCrossEntropy, MeanSquared};

use crate::element::Element;

/// How the losses of rows or elements become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean; 0 where there is none.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

impl Reduction {
    /// The factor of a sum over `count` losses, or losses of that weight together, and so of every gradient.
    fn factor(self, count: f64) -> f64 {
        match self {
            Reduction::Mean if count != 0.0 => 1.0 / count,
            Reduction::Mean => 0.0,
            Reduction::Sum => 1.0,
        }
    }

    /// The loss from the sum over `count` losses.
    fn apply<T: Element>(self, sum: f64, count: f64) -> T {
        T::from_f64(match self {
            Reduction::Mean if count != 0.0 => sum / count,
            Reduction::Mean => 0.0,
            Reduction::Sum => sum,
        })
    }
}

/// Elements that pass through a buffer on the stack at a time.
const STAGE: usize = 256;

/// Independent partial sums: one vector's worth or more on every instruction set.
const LANES: usize = 16;

/// Σ of at most [`STAGE`] terms, in lanes and then across them.
#[inline(always)]
fn sum<T: Element>(terms: &[T]) -> f64 {
    let mut lanes = [T::ZERO; LANES];
    for run in terms.chunks(LANES) {
        lanes.iter_mut().zip(run).for_each(|(lane, &term)| *lane += term);
    }
    lanes.iter().map(|lane| lane.to_f64()).sum()
}

//! The perceptron of the classical definition.
//!
//! y = sign(θ · x) with x₀ = 1, that is y = sign(w · x + b), and sign(0) = +1. Samples are the rows of X
//! `[samples, features]`, labels are +1 and −1. Learning goes through the samples in order, again and again;
//! a sample with yᵢ (w · xᵢ + b) ≤ 0 is a mistake (so a point on the hyperplane counts as +1 in the model and
//! still as misclassified by the rule), and is learned:
//!
//! | form | keeps | at a mistake |
//! |---|---|---|
//! | [`Perceptron`], primal | w `[features]`, b | w += η yᵢ xᵢ, b += η yᵢ |
//! | [`DualPerceptron`] | α `[samples]`, b, the Gram matrix G = X Xᵀ | αᵢ += η, b += η yᵢ |
//!
//! with w = Σ αⱼ yⱼ xⱼ. Both make the same mistakes in the same order; in integers small enough to be exact they
//! are equal. A pass without a mistake ends it. Where the classes are separable with margin γ in a ball of radius
//! R (both with x₀ = 1 counted in), at most (R/γ)² mistakes happen; where they are not, the limits of the
//! [`Rule`] end it, and the [`Outcome`] says so. [`OneVsRest`] puts many perceptrons together to tell classes
//! apart.
//!
//! Sources: Frank Rosenblatt, "The perceptron", Psychological Review 65 (1958); Albert Novikoff, "On convergence
//! proofs for perceptrons" (1962); Li Hang, "Statistical Learning Methods", chapter 2, whose algorithms 2.1 and
//! 2.2 these are.
#![forbid(unsafe_code)]

mod dual;
mod multiclass;
mod primal;
mod sweep;

pub use dual::DualPerceptron;
pub use multiclass::OneVsRest;
pub use primal::Perceptron;
pub(crate) use sweep::Sweeps;

use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::tensor::{Tensor, TensorView};

/// How perceptrons learn: plain data.
///
/// ```
/// let rule = tilewise::perceptron::Rule::new().rate(0.5f32).max_passes(20).max_updates(10_000);
/// # let _ = rule;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule<T> {
    rate: T,
    max_passes: usize,
    max_updates: usize,
}

impl<T: Element> Default for Rule<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Element> Rule<T> {
    /// Rate 1, at most 1000 passes, any number of updates.
    pub fn new() -> Self {
        Self { rate: T::ONE, max_passes: 1000, max_updates: usize::MAX }
    }

    /// The learning rate η > 0.
    pub fn rate(self, rate: T) -> Self {
        Self { rate, ..self }
    }

    /// The most passes over the samples of one call.
    pub fn max_passes(self, passes: usize) -> Self {
        Self { max_passes: passes, ..self }
    }

    /// The most updates of one call, for each perceptron.
    pub fn max_updates(self, updates: usize) -> Self {
        Self { max_updates: updates, ..self }
    }

    fn check(&self, op: &'static str) -> Result<()> {
        if self.rate > T::ZERO && self.rate.is_finite() {
            return Ok(());
        }
        Err(Error::argument(op, "rate", self.rate, "positive and finite"))
    }
}

/// How learning ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Mistakes made, each of which was learned.
    pub updates: usize,
    /// Passes over the samples that were begun.
    pub passes: usize,
    /// True where the last pass went through all samples without a mistake: then the hyperplane separates them.
    /// False where a limit came first, whether or not the samples can be separated.
    pub separable: bool,
}

/// sign, with sign(0) = +1.
fn sign<T: Element>(score: T) -> i8 {
    if score >= T::ZERO { 1 } else { -1 }
}

fn check_labels(op: &'static str, labels: &[i8], samples: usize) -> Result<()> {
    expect(op, "labels", &[labels.len()], &[samples])?;
    let wrong = labels.iter().enumerate().find(|&(_, &label)| label != 1 && label != -1);
    wrong.map_or(Ok(()), |(row, label)| {
        Err(Error::argument(op, "labels", format!("{label} in row {row}"), "1 or -1"))
    })
}

/// The same matrix with every row contiguous: itself, or its copy in `copy`.
fn with_rows<'a, T: Element>(
    x: TensorView<'a, T, 2>,
    copy: &'a mut Option<Tensor<T, 2>>,
) -> Result<TensorView<'a, T, 2>> {
    if x.is_empty() || x.row(0).is_some() {
        return Ok(x);
    }
    Ok(copy.insert(x.to_tensor()?).view())
}

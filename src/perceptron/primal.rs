//! The primal form.

use super::sweep::{Labels, Learner, Scores, Train};
use super::{Outcome, Rule, check_labels, sign, with_rows};
use crate::element::Element;
use crate::error::{Result, expect};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::tensor::{Tensor, TensorView};

/// y = sign(w · x + b).
///
/// ```
/// use tilewise::TensorView;
/// use tilewise::perceptron::{Perceptron, Rule};
///
/// let x = TensorView::from_slice(&[3.0, 3.0, 4.0, 3.0, 1.0, 1.0], [3, 2])?;
/// let mut perceptron = Perceptron::<f64>::new(2)?;
/// let outcome = perceptron.fit(x, &[1, 1, -1], &Rule::new())?;
/// assert!(outcome.separable);
/// assert_eq!(outcome.updates, 7);
/// assert_eq!((perceptron.weights().as_slice(), perceptron.bias()), (Some(&[1.0, 1.0][..]), -3.0));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Perceptron<T> {
    weights: Tensor<T, 1>,
    bias: T,
}

impl<T: Element> Perceptron<T> {
    /// w = 0 `[features]`, b = 0.
    ///
    /// # Errors
    /// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
    pub fn new(features: usize) -> Result<Self> {
        Ok(Self::from_parts(Tensor::zeros([features])?, T::ZERO))
    }

    /// The perceptron with these weights `[features]` and this bias.
    pub fn from_parts(weights: Tensor<T, 1>, bias: T) -> Self {
        Self { weights, bias }
    }

    /// w, `[features]`.
    pub fn weights(&self) -> TensorView<'_, T, 1> {
        self.weights.view()
    }

    /// b.
    pub fn bias(&self) -> T {
        self.bias
    }

    /// Learns from X `[samples, features]` and a label, 1 or −1, for each row, beginning with what it knows. Where
    /// X holds NaN, its rows stay mistakes.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where shapes do not fit,
    /// [`Error::Argument`](crate::Error::Argument) where a label is neither 1 nor −1 or the rate is not positive
    /// and finite, [`Error::Alloc`](crate::Error::Alloc) where X must be copied and there is no memory.
    pub fn fit(&mut self, x: TensorView<'_, T, 2>, labels: &[i8], rule: &Rule<T>) -> Result<Outcome> {
        self.fit_traced(x, labels, rule, |_| {})
    }

    /// [`fit`](Self::fit), calling `mistake` with the row of each mistake, in order.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn fit_traced(
        &mut self,
        x: TensorView<'_, T, 2>,
        labels: &[i8],
        rule: &Rule<T>,
        mut mistake: impl FnMut(usize),
    ) -> Result<Outcome> {
        let op = "Perceptron::fit";
        let [samples, _] = x.shape();
        expect(op, "x", &x.shape(), &[samples, self.weights.len()])?;
        check_labels(op, labels, samples)?;
        rule.check(op)?;
        let isa = machine::isa()?;
        let mut copy = None;
        let x = with_rows(x, &mut copy)?;
        let mut learners = [Learner {
            weights: self.weights.as_mut_slice(),
            bias: &mut self.bias,
            outcome: Outcome::default(),
            active: true,
        }];
        let labels = Labels::Signs(labels);
        Train { rule: *rule, x, learners: &mut learners, labels, mistake: &mut mistake }.run(isa);
        let [learner] = learners;
        Ok(learner.outcome)
    }

    /// w · x + b of each row of X `[samples, features]`, with the same sums, to the bit, as in learning.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where shapes do not fit, [`Error::Alloc`](crate::Error::Alloc) where
    /// there is no memory.
    pub fn scores(&self, x: TensorView<'_, T, 2>) -> Result<Tensor<T, 1>> {
        self.scores_for("Perceptron::scores", x)
    }

    fn scores_for(&self, op: &'static str, x: TensorView<'_, T, 2>) -> Result<Tensor<T, 1>> {
        let [samples, _] = x.shape();
        expect(op, "x", &x.shape(), &[samples, self.weights.len()])?;
        let isa = machine::isa()?;
        let mut scores = Tensor::zeros([samples])?;
        let mut copy = None;
        let x = with_rows(x, &mut copy)?;
        self.fill(isa, x, scores.as_mut_slice(), parallel::tasks(x.len(), GRAIN))?;
        Ok(scores)
    }

    fn fill(&self, isa: Isa, x: TensorView<'_, T, 2>, scores: &mut [T], tasks: usize) -> Result<()> {
        if tasks <= 1 || scores.len() <= 1 {
            let weights = self.weights.as_slice();
            T::perceptron_scores(isa, Scores { x, weights, bias: self.bias, scores });
            return Ok(());
        }
        let at = scores.len() / 2;
        let (low, high) = x.split_at(0, at)?;
        let (low_scores, high_scores) = scores.split_at_mut(at);
        let (first, second) = parallel::join(
            || self.fill(isa, low, low_scores, tasks / 2),
            || self.fill(isa, high, high_scores, tasks - tasks / 2),
        );
        first.and(second)
    }

    /// sign(w · x + b) of each row of X `[samples, features]`, 1 or −1; sign(0) is 1, and a NaN gives −1.
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    pub fn predict(&self, x: TensorView<'_, T, 2>) -> Result<Tensor<i8, 1>> {
        let scores = self.scores_for("Perceptron::predict", x)?;
        let mut labels = Tensor::zeros(scores.shape())?;
        labels.as_mut_slice().iter_mut().zip(&scores).for_each(|(label, &score)| *label = sign(score));
        Ok(labels)
    }

    /// (w · x + b) / ‖w‖: how far a point `[features]` lies from the hyperplane, positive on the side of +1. With
    /// w = 0 there is no hyperplane, and the result is infinite or NaN. ‖w‖ may be out of the range of `T`.
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    ///
    /// ```
    /// use tilewise::{Tensor, TensorView, perceptron::Perceptron};
    /// let perceptron = Perceptron::from_parts(Tensor::from_slice(&[3.0, 4.0], [2])?, -5.0);
    /// assert_eq!(perceptron.distance(TensorView::from_slice(&[0.0, 0.0], [2])?)?, -1.0);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn distance(&self, point: TensorView<'_, T, 1>) -> Result<T> {
        let op = "Perceptron::distance";
        expect(op, "point", &point.shape(), &self.weights.shape())?;
        let score = self.scores_for(op, point.insert_axis(0)?)?.get([0]).copied().unwrap_or(T::NAN);
        // ‖w‖ is the largest weight times the norm of w divided by it, whose squares do not overflow; the product might.
        let largest = self.weights.iter().fold(T::ZERO, |largest, w| largest.max(w.abs())).to_f64();
        let distance = score.to_f64() / largest;
        if largest == 0.0 || largest.is_infinite() {
            return Ok(T::from_f64(distance));
        }
        let squares = self.weights.iter().map(|w| (w.to_f64() / largest).powi(2));
        Ok(T::from_f64(distance / squares.sum::<f64>().sqrt()))
    }
}

/// Fewest products that a task of scoring is worth.
const GRAIN: usize = 1 << 16;

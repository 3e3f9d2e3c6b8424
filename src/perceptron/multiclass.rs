//! Many classes: one perceptron for each, against the rest.

use super::sweep::{Labels, Learner, Train};
use super::{Outcome, Rule, with_rows};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::linear::Dense;
use crate::machine::{self, Isa};
use crate::parallel;
use crate::tensor::{Tensor, TensorView};
use crate::workspace;

/// A [`Perceptron`](super::Perceptron) for each class, which learns to tell it from all others; the class with
/// the highest score w_c · x + b_c wins.
///
/// ```
/// use tilewise::TensorView;
/// use tilewise::perceptron::{OneVsRest, Rule};
///
/// let x = TensorView::from_slice(&[5.0, 0.0, 0.0, 5.0, -5.0, -5.0], [3, 2])?;
/// let mut model = OneVsRest::<f32>::new(3, 2)?;
/// let outcomes = model.fit(x, &[0, 1, 2], &Rule::new())?;
/// assert!(outcomes.iter().all(|outcome| outcome.separable));
/// assert_eq!(model.predict(x)?.as_slice(), [0, 1, 2]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct OneVsRest<T> {
    /// `[classes, features]`.
    weights: Tensor<T, 2>,
    /// `[classes]`.
    bias: Tensor<T, 1>,
}

impl<T: Element> OneVsRest<T> {
    /// All weights and biases 0.
    ///
    /// # Errors
    /// [`Error::Overflow`] or [`Error::Alloc`] where there is no memory for that many.
    pub fn new(classes: usize, features: usize) -> Result<Self> {
        Ok(Self { weights: Tensor::zeros([classes, features])?, bias: Tensor::zeros([classes])? })
    }

    /// W, `[classes, features]`.
    pub fn weights(&self) -> TensorView<'_, T, 2> {
        self.weights.view()
    }

    /// b, `[classes]`.
    pub fn bias(&self) -> TensorView<'_, T, 1> {
        self.bias.view()
    }

    /// Learns from X `[samples, features]` and a class for each row, beginning with what it knows. Each class's
    /// perceptron does, to the bit, what it would do alone; classes are learned in parallel. The limits of the
    /// rule are for each class, and so is the outcome.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Argument`] where a class does not exist or the rate is
    /// not positive and finite, [`Error::Alloc`] where there is no memory.
    pub fn fit(
        &mut self,
        x: TensorView<'_, T, 2>,
        classes: &[usize],
        rule: &Rule<T>,
    ) -> Result<Vec<Outcome>> {
        let op = "OneVsRest::fit";
        let ([samples, _], [count, features]) = (x.shape(), self.weights.shape());
        expect(op, "x", &x.shape(), &[samples, features])?;
        expect(op, "classes", &[classes.len()], &[samples])?;
        if let Some((row, class)) = classes.iter().enumerate().find(|&(_, &class)| class >= count) {
            let value = format!("class {class} in row {row}");
            return Err(Error::argument(op, "classes", value, "a class of the model"));
        }
        rule.check(op)?;
        let isa = machine::isa()?;
        let mut copy = None;
        let x = with_rows(x, &mut copy)?;
        let mut learners = workspace::try_vec(op, count)?;
        let mut outcomes = workspace::room(op, count)?;
        let mut rest = self.weights.as_mut_slice();
        for bias in self.bias.as_mut_slice() {
            let (weights, after) = std::mem::take(&mut rest).split_at_mut(features);
            rest = after;
            learners.push(Learner { weights, bias, outcome: Outcome::default(), active: true });
        }
        let work = count.saturating_mul(x.len()).saturating_mul(rule.max_passes);
        let job = Job { isa, rule, x, classes };
        job.run(&mut learners, 0, parallel::tasks(work, GRAIN));
        outcomes.extend(learners.iter().map(|learner| learner.outcome));
        Ok(outcomes)
    }

    /// W x + b of each row, `[samples, classes]`, from X `[samples, features]`: one GEMM.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Alloc`] where there is no memory.
    pub fn scores(&self, x: TensorView<'_, T, 2>) -> Result<Tensor<T, 2>> {
        self.scores_for("OneVsRest::scores", x)
    }

    fn scores_for(&self, op: &'static str, x: TensorView<'_, T, 2>) -> Result<Tensor<T, 2>> {
        let [samples, _] = x.shape();
        expect(op, "x", &x.shape(), &[samples, self.weights.shape()[1]])?;
        Dense::new().forward(x, self.weights.view().transpose(), Some(self.bias.view()))
    }

    /// The class with the highest score for each row of X `[samples, features]`; the first of equals. A NaN is
    /// lower than every number and −∞.
    ///
    /// # Errors
    /// As [`scores`](Self::scores), and [`Error::Argument`] where there are rows but no classes.
    pub fn predict(&self, x: TensorView<'_, T, 2>) -> Result<Tensor<usize, 1>> {
        let op = "OneVsRest::predict";
        let scores = self.scores_for(op, x)?;
        let [samples, count] = scores.shape();
        if count == 0 && samples > 0 {
            return Err(Error::argument(op, "number of classes", 0, "at least 1"));
        }
        let mut classes = Tensor::zeros([samples])?;
        for (class, scores) in classes.as_mut_slice().iter_mut().zip(scores.as_slice().chunks(count.max(1))) {
            let mut best = T::NAN;
            for (number, &score) in scores.iter().enumerate() {
                if score > best || best.is_nan() && !score.is_nan() {
                    (best, *class) = (score, number);
                }
            }
        }
        Ok(classes)
    }
}

/// Fewest products that a task of learning is worth.
const GRAIN: usize = 1 << 17;

struct Job<'a, T> {
    isa: Isa,
    rule: &'a Rule<T>,
    x: TensorView<'a, T, 2>,
    classes: &'a [usize],
}

impl<T: Element> Job<'_, T> {
    /// Learners whose first is for class `first`, cut in `tasks`.
    fn run(&self, learners: &mut [Learner<'_, T>], first: usize, tasks: usize) {
        if tasks <= 1 || learners.len() <= 1 {
            let labels = Labels::Classes { classes: self.classes, first };
            let (rule, x) = (*self.rule, self.x);
            return Train { rule, x, learners, labels, mistake: &mut |_| {} }.run(self.isa);
        }
        let at = learners.len() / 2;
        let (low, high) = learners.split_at_mut(at);
        parallel::join(|| self.run(low, first, tasks / 2), || self.run(high, first + at, tasks - tasks / 2));
    }
}

//! Softmax cross-entropy.

use super::{Reduction, STAGE, sum};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::{machine, parallel};

/// Softmax cross-entropy of logits `[batch, classes]`: plain data.
///
/// For a row z with target distribution q the loss is −Σ_c q_c log softmax(z)_c and its gradient
/// softmax(z) Σ_c q_c − q, from one log-sum-exp. A class index t means q_t = 1, the others 0. Label smoothing
/// by ε replaces q by (1 − ε) q + ε / classes (Szegedy et al., "Rethinking the Inception architecture", 2016).
/// Class weights w ≥ 0 multiply q_c by w_c, and a mean is divided by Σ w_t instead of the number of rows; where all these
/// are 0 it is one over nothing, 0 with gradient 0, whatever loss smoothing gives the rows. A term with q_c = 0 is 0, even
/// where the logit is −∞.
///
/// ```
/// use tilewise::{TensorView, loss::CrossEntropy};
/// let logits = TensorView::from_slice(&[0.0f64, 0.0, 1000.0, -1000.0], [2, 2])?;
/// let (loss, d_logits) = CrossEntropy::new().forward_backward(logits, &[0, 0])?;
/// assert!((loss - 2f64.ln() / 2.0).abs() < 1e-15);
/// assert_eq!(d_logits.as_slice(), [-0.25, 0.25, 0.0, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    reduction: Reduction,
    ignore_index: Option<usize>,
    label_smoothing: f64,
    log_probabilities: bool,
}

/// What the logits should say.
#[derive(Clone, Copy)]
pub enum Target<'a, T> {
    /// The class of each row.
    Classes(&'a [usize]),
    /// The class of each row, and the weight of each class, `[classes]`, not negative where the reduction is a mean.
    Weighted(&'a [usize], TensorView<'a, T, 1>),
    /// A distribution for each row, `[batch, classes]`: one-hot or soft. It need not add up to 1.
    Probabilities(TensorView<'a, T, 2>),
}

impl<'a, T> From<&'a [usize]> for Target<'a, T> {
    fn from(classes: &'a [usize]) -> Self {
        Target::Classes(classes)
    }
}

impl<'a, T, const N: usize> From<&'a [usize; N]> for Target<'a, T> {
    fn from(classes: &'a [usize; N]) -> Self {
        Target::Classes(classes)
    }
}

impl<'a, T> From<&'a Vec<usize>> for Target<'a, T> {
    fn from(classes: &'a Vec<usize>) -> Self {
        Target::Classes(classes)
    }
}

impl<'a, T> From<(&'a [usize], TensorView<'a, T, 1>)> for Target<'a, T> {
    fn from((classes, weights): (&'a [usize], TensorView<'a, T, 1>)) -> Self {
        Target::Weighted(classes, weights)
    }
}

impl<'a, T> From<TensorView<'a, T, 2>> for Target<'a, T> {
    fn from(probabilities: TensorView<'a, T, 2>) -> Self {
        Target::Probabilities(probabilities)
    }
}

impl CrossEntropy {
    /// The mean over rows, nothing ignored, nothing smoothed.
    pub fn new() -> Self {
        Self::default()
    }

    /// How rows become one loss; the mean unless set. It is taken over the rows that are not ignored.
    pub fn reduction(self, reduction: Reduction) -> Self {
        Self { reduction, ..self }
    }

    /// Rows with this class add nothing to the loss and have gradient 0. It need not be a class that exists.
    /// Only for class indices.
    pub fn ignore_index(self, class: usize) -> Self {
        Self { ignore_index: Some(class), ..self }
    }

    /// The share ε of the target that is spread over all classes, 0 ≤ ε ≤ 1.
    pub fn label_smoothing(self, epsilon: f64) -> Self {
        Self { label_smoothing: epsilon, ..self }
    }

    /// The first argument holds logarithms of probabilities, which are taken as they are: negative log-likelihood. Its
    /// gradient is −q.
    ///
    /// ```
    /// use tilewise::{TensorView, loss::CrossEntropy};
    /// let logarithms = TensorView::from_slice(&[-3.0f64, -1.0], [1, 2])?;
    /// let (loss, gradient) = CrossEntropy::new().log_probabilities().forward_backward(logarithms, &[0])?;
    /// assert_eq!((loss, gradient.as_slice()), (3.0, &[-1.0, 0.0][..]));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn log_probabilities(self) -> Self {
        Self { log_probabilities: true, ..self }
    }

    /// The loss of each row, `[batch]`, whatever the reduction; 0 for a row that is ignored.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::{TensorView, loss::CrossEntropy};
    /// let logits = TensorView::from_slice(&[0.0f64, 0.0, 5.0, 5.0], [2, 2])?;
    /// let weights = TensorView::from_slice(&[1.0, 2.0], [2])?;
    /// let losses = CrossEntropy::new().row_losses(logits, (&[0, 1][..], weights))?;
    /// assert_eq!(losses.as_slice(), [2f64.ln(), 2.0 * 2f64.ln()]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn row_losses<'a, T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: impl Into<Target<'a, T>>,
    ) -> Result<Tensor<T, 1>> {
        let (op, target) = ("CrossEntropy::row_losses", target.into());
        // Nothing is divided, and no weight refused for that.
        let rows = Self { reduction: Reduction::Sum, ..*self };
        let weight = rows.check(op, logits, &target)?;
        let mut losses = Tensor::zeros([logits.shape()[0]])?;
        rows.run(op, logits, target, weight, Outputs { d_logits: None, losses: Some(losses.view_mut()) })?;
        Ok(losses)
    }

    /// The loss of logits `[batch, classes]` against a target for each row.
    ///
    /// # Errors
    /// [`Error::Shape`] where the target does not fit the logits; [`Error::Argument`] where a class does not
    /// exist (with its row), a weight is negative and the reduction a mean, ε is not between 0 and 1, or an ignored class is set for probabilities.
    pub fn forward<'a, T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: impl Into<Target<'a, T>>,
    ) -> Result<T> {
        let (op, target) = ("CrossEntropy::forward", target.into());
        let rows = self.check(op, logits, &target)?;
        self.run(op, logits, target, rows, Outputs { d_logits: None, losses: None })
    }

    /// The loss and its gradient for the logits.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Alloc`] where there is no memory.
    pub fn forward_backward<'a, T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: impl Into<Target<'a, T>>,
    ) -> Result<(T, Tensor<T, 2>)> {
        let (op, target) = ("CrossEntropy::forward_backward", target.into());
        let rows = self.check(op, logits, &target)?;
        let mut d_logits = Tensor::zeros(logits.shape())?;
        let outputs = Outputs { d_logits: Some(d_logits.view_mut()), losses: None };
        let loss = self.run(op, logits, target, rows, outputs)?;
        Ok((loss, d_logits))
    }

    /// The loss; its gradient for the logits overwrites `d_logits`, of the logits' shape. Allocates nothing.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_backward_into<'a, T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: impl Into<Target<'a, T>>,
        d_logits: TensorViewMut<'_, T, 2>,
    ) -> Result<T> {
        let (op, target) = ("CrossEntropy::forward_backward_into", target.into());
        let rows = self.check(op, logits, &target)?;
        if d_logits.shape() != logits.shape() {
            return Err(Error::shape(op, "d_logits", &d_logits.shape(), &logits.shape()));
        }
        self.run(op, logits, target, rows, Outputs { d_logits: Some(d_logits), losses: None })
    }

    /// The number of rows that count, or their weight.
    fn check<T: Element>(
        &self,
        op: &'static str,
        logits: TensorView<'_, T, 2>,
        target: &Target<'_, T>,
    ) -> Result<f64> {
        let [batch, classes] = logits.shape();
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return Err(Error::argument(op, "label_smoothing", self.label_smoothing, "between 0 and 1"));
        }
        let (targets, weights) = match *target {
            Target::Probabilities(probabilities) => {
                if probabilities.shape() != logits.shape() {
                    return Err(Error::shape(op, "target", &probabilities.shape(), &logits.shape()));
                }
                if let Some(class) = self.ignore_index {
                    return Err(Error::argument(
                        op,
                        "ignore_index",
                        class,
                        "none where the target is probabilities",
                    ));
                }
                return Ok(batch as f64);
            }
            Target::Classes(targets) => (targets, None),
            Target::Weighted(_, weights) if weights.len() != classes => {
                return Err(Error::shape(op, "weights", &weights.shape(), &[classes]));
            }
            Target::Weighted(targets, weights) => (targets, Some(weights)),
        };
        if targets.len() != batch {
            return Err(Error::shape(op, "target", &[targets.len()], &[batch]));
        }
        // With weights of both signs Σ w_t may be 0 or negative, and what is divided by it is no mean.
        let negative = weights
            .filter(|_| self.reduction == Reduction::Mean)
            .and_then(|weights| weights.iter().zip(0..).find(|&(&w, _)| w < T::ZERO));
        if let Some((weight, class)) = negative {
            let value = format!("{weight} for class {class}");
            return Err(Error::argument(op, "weights", value, "at least 0"));
        }
        let mut counted = 0.0;
        for (row, &class) in targets.iter().enumerate() {
            if Some(class) == self.ignore_index {
                continue;
            }
            if class >= classes {
                let value = format!("class {class} in row {row}");
                return Err(Error::argument(op, "target", value, "a class below the number of logits"));
            }
            counted += weight_of(weights, class);
        }
        Ok(counted)
    }

    fn run<T: Element>(
        &self,
        op: &'static str,
        logits: TensorView<'_, T, 2>,
        target: Target<'_, T>,
        rows: f64,
        outputs: Outputs<'_, T>,
    ) -> Result<T> {
        if logits.is_empty() {
            return Ok(self.reduction.apply(0.0, rows));
        }
        let [_, classes] = logits.shape();
        let pass = Pass {
            ignore: self.ignore_index,
            keep: 1.0 - self.label_smoothing,
            smooth: self.label_smoothing / classes as f64,
            factor: self.reduction.factor(rows),
            leaf: (LEAF / classes).max(1),
            parallel: parallel::tasks(logits.len(), LEAF) > 1,
            log_probabilities: self.log_probabilities,
        };
        machine::trace(|| format!("{op} {:?} {}", logits.shape(), T::NAME));
        let sum = pass.tree(logits, target, outputs)?;
        Ok(self.reduction.apply(sum, rows))
    }
}

/// Elements of a leaf of the summation tree, about: some tens of microseconds of work.
const LEAF: usize = 1 << 13;

/// What a call writes beside the loss.
struct Outputs<'a, T> {
    d_logits: Option<TensorViewMut<'a, T, 2>>,
    losses: Option<TensorViewMut<'a, T, 1>>,
}

impl<'a, T> Outputs<'a, T> {
    /// The first `at` rows, and the others.
    fn split_at(self, at: usize) -> Result<(Self, Self)> {
        let (low, high) = self.d_logits.map(|view| view.split_at(0, at)).transpose()?.unzip();
        let (low_losses, high_losses) = self.losses.map(|view| view.split_at(0, at)).transpose()?.unzip();
        Ok((Self { d_logits: low, losses: low_losses }, Self { d_logits: high, losses: high_losses }))
    }
}

/// The weight of a class; 1 where there are none.
fn weight_of<T: Element>(weights: Option<TensorView<'_, T, 1>>, class: usize) -> f64 {
    weights.map_or(1.0, |weights| weights.get([class]).copied().unwrap_or(T::NAN).to_f64())
}

/// What is the same for all rows.
struct Pass {
    ignore: Option<usize>,
    /// 1 − ε.
    keep: f64,
    /// ε / classes.
    smooth: f64,
    /// What the gradient of a row's loss is multiplied by.
    factor: f64,
    /// Rows of a leaf.
    leaf: usize,
    parallel: bool,
    log_probabilities: bool,
}

/// The target of one row.
enum RowTarget<'a, T> {
    Class(usize, Option<TensorView<'a, T, 1>>),
    Probabilities(TensorView<'a, T, 2>),
}

impl Pass {
    /// The sum of all rows' losses, halved and halved again: the tree depends on the number of rows alone.
    fn tree<T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: Target<'_, T>,
        outputs: Outputs<'_, T>,
    ) -> Result<f64> {
        let [rows, _] = logits.shape();
        if rows <= self.leaf {
            return self.rows(logits, target, outputs);
        }
        let at = rows.div_ceil(self.leaf) / 2 * self.leaf;
        let (low, high) = logits.split_at(0, at)?;
        let (low_target, high_target) = match target {
            Target::Classes(classes) => {
                let (low, high) = classes.split_at(at);
                (Target::Classes(low), Target::Classes(high))
            }
            Target::Weighted(classes, weights) => {
                let (low, high) = classes.split_at(at);
                (Target::Weighted(low, weights), Target::Weighted(high, weights))
            }
            Target::Probabilities(view) => {
                let (low, high) = view.split_at(0, at)?;
                (Target::Probabilities(low), Target::Probabilities(high))
            }
        };
        let (low_out, high_out) = outputs.split_at(at)?;
        let first = || self.tree(low, low_target, low_out);
        let second = || self.tree(high, high_target, high_out);
        let (first, second) = if self.parallel { parallel::join(first, second) } else { (first(), second()) };
        Ok(first? + second?)
    }

    fn rows<T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: Target<'_, T>,
        Outputs { mut d_logits, mut losses }: Outputs<'_, T>,
    ) -> Result<f64> {
        let mut buffers = [[T::ZERO; STAGE]; 3];
        let mut total = 0.0;
        for i in 0..logits.shape()[0] {
            let row = logits.slice(0, i..i + 1, 1)?;
            let mut out = match &mut d_logits {
                Some(view) => Some(view.view_mut().slice(0, i..i + 1, 1)?),
                None => None,
            };
            let class =
                |classes: &[usize]| classes.get(i).copied().filter(|&class| Some(class) != self.ignore);
            let target = match target {
                Target::Classes(classes) => class(classes).map(|class| RowTarget::Class(class, None)),
                Target::Weighted(classes, weights) => {
                    class(classes).map(|class| RowTarget::Class(class, Some(weights)))
                }
                Target::Probabilities(view) => Some(RowTarget::Probabilities(view.slice(0, i..i + 1, 1)?)),
            };
            let Some(target) = target else {
                out.iter_mut().for_each(|out| out.fill(T::ZERO));
                continue;
            };
            let loss = if self.log_probabilities {
                self.likelihood(row, target, out, &mut buffers)
            } else {
                self.row(row, target, out, &mut buffers)
            };
            if let Some(place) = losses.as_mut().and_then(|losses| losses.get_mut([i])) {
                *place = T::from_f64(loss);
            }
            total += loss;
        }
        Ok(total)
    }

    /// The loss of one row `[1, classes]`, and its gradient times the factor.
    fn row<T: Element>(
        &self,
        row: TensorView<'_, T, 2>,
        target: RowTarget<'_, T>,
        mut out: Option<TensorViewMut<'_, T, 2>>,
        [buffer, target_buffer, terms]: &mut [[T; STAGE]; 3],
    ) -> f64 {
        let [_, classes] = row.shape();

        // The largest logit, and where it is. A NaN is larger than all.
        let (mut max, mut argmax) = (T::NEG_INFINITY, 0);
        for first in (0..classes).step_by(STAGE) {
            for (j, &z) in stage(row, first, buffer).iter().enumerate() {
                if z > max || z.is_nan() {
                    (max, argmax) = (z, first + j);
                }
            }
        }

        // Σ exp(z − max) without the largest, so that the logarithm keeps a small loss's digits; with the terms
        // of the loss beside it.
        let (mut rest, mut weight, mut dot) = (0.0, 0.0, 0.0);
        for first in (0..classes).step_by(STAGE) {
            let logits = stage(row, first, buffer);
            let terms = &mut terms[..logits.len()];
            terms.iter_mut().zip(logits).for_each(|(term, &z)| *term = z - max);
            let at = |class: usize| terms.get(class.wrapping_sub(first)).map(|term| term.to_f64());
            match &target {
                RowTarget::Class(class, weights) => {
                    let keep = self.keep * weight_of(*weights, *class);
                    if let Some(z) = at(*class)
                        && keep != 0.0
                    {
                        (weight, dot) = (weight + keep, dot + keep * z);
                    }
                    match weights {
                        _ if self.smooth == 0.0 => {}
                        None => {
                            weight += self.smooth * terms.len() as f64;
                            dot += self.smooth * sum(terms);
                        }
                        Some(_) => {
                            for (j, term) in terms.iter().enumerate() {
                                let q = self.smooth * weight_of(*weights, first + j);
                                weight += q;
                                if q != 0.0 {
                                    dot += q * term.to_f64();
                                }
                            }
                        }
                    }
                }
                RowTarget::Probabilities(view) => {
                    for (&q, term) in stage(*view, first, target_buffer).iter().zip(terms.iter()) {
                        let q = self.keep * q.to_f64() + self.smooth;
                        weight += q;
                        if q != 0.0 {
                            dot += q * term.to_f64();
                        }
                    }
                }
            }
            exp(terms);
            if let Some(out) = &mut out {
                unstage(terms, first, out);
            }
            if let Some(top) = terms.get_mut(argmax.wrapping_sub(first)) {
                // 0 where the row is ordinary; NaN where the largest is NaN or infinite.
                *top -= *top;
            }
            rest += sum(terms);
        }
        let log_sum = rest.ln_1p();

        if let Some(out) = &mut out {
            let keep = match &target {
                RowTarget::Class(class, weights) => self.keep * weight_of(*weights, *class),
                RowTarget::Probabilities(_) => self.keep,
            };
            let weights = match &target {
                RowTarget::Class(_, weights) if self.smooth != 0.0 => *weights,
                _ => None,
            };
            let smooth = if weights.is_some() { 0.0 } else { self.smooth };
            let [scale, smooth, keep] =
                [weight / (1.0 + rest), smooth, keep].map(|x| T::from_f64(self.factor * x));
            for first in (0..classes).step_by(STAGE) {
                let exps = stage(out.view(), first, buffer);
                let terms = &mut terms[..exps.len()];
                terms.iter_mut().zip(exps).for_each(|(term, &e)| *term = scale * e - smooth);
                if weights.is_some() {
                    for (j, term) in terms.iter_mut().enumerate() {
                        *term -= T::from_f64(self.factor * self.smooth * weight_of(weights, first + j));
                    }
                }
                match &target {
                    RowTarget::Class(class, _) => {
                        if let Some(term) = terms.get_mut(class.wrapping_sub(first)) {
                            *term -= keep;
                        }
                    }
                    RowTarget::Probabilities(view) => {
                        let q = stage(*view, first, target_buffer);
                        terms.iter_mut().zip(q).for_each(|(term, &q)| *term -= keep * q);
                    }
                }
                unstage(terms, first, out);
            }
        }
        weight * log_sum - dot
    }

    /// [`row`](Self::row) of logarithms of probabilities.
    fn likelihood<T: Element>(
        &self,
        row: TensorView<'_, T, 2>,
        target: RowTarget<'_, T>,
        mut out: Option<TensorViewMut<'_, T, 2>>,
        [buffer, target_buffer, terms]: &mut [[T; STAGE]; 3],
    ) -> f64 {
        let mut loss = 0.0;
        for first in (0..row.shape()[1]).step_by(STAGE) {
            let logarithms = stage(row, first, buffer);
            let terms = &mut terms[..logarithms.len()];
            let given = match &target {
                RowTarget::Probabilities(view) => stage(*view, first, target_buffer),
                RowTarget::Class(..) => &[],
            };
            for (j, (&z, term)) in logarithms.iter().zip(terms.iter_mut()).enumerate() {
                let q = match &target {
                    RowTarget::Class(class, weights) => {
                        let share = self.smooth + if *class == first + j { self.keep } else { 0.0 };
                        if share == 0.0 { 0.0 } else { share * weight_of(*weights, first + j) }
                    }
                    RowTarget::Probabilities(_) => self.keep * given[j].to_f64() + self.smooth,
                };
                if q != 0.0 {
                    loss -= q * z.to_f64();
                }
                *term = T::from_f64(-self.factor * q);
            }
            if let Some(out) = &mut out {
                unstage(terms, first, out);
            }
        }
        loss
    }
}

/// eˣ in place.
#[inline(always)]
fn exp<T: Element>(values: &mut [T]) {
    values.iter_mut().for_each(|value| *value = value.exp());
}

/// At most [`STAGE`] elements of a one-row view from `first`: where they are, or copied to the buffer.
#[inline(always)]
fn stage<'a, T: Element>(row: TensorView<'a, T, 2>, first: usize, buffer: &'a mut [T; STAGE]) -> &'a [T] {
    let count = STAGE.min(row.shape()[1] - first);
    if let Some(row) = row.row(0) {
        return &row[first..first + count];
    }
    for (j, value) in buffer[..count].iter_mut().enumerate() {
        *value = row.get([0, first + j]).copied().unwrap_or(T::NAN);
    }
    &buffer[..count]
}

/// Writes to a one-row view from `first`.
#[inline(always)]
fn unstage<T: Element>(values: &[T], first: usize, row: &mut TensorViewMut<'_, T, 2>) {
    if let Some(row) = row.row_mut(0) {
        return row[first..first + values.len()].copy_from_slice(values);
    }
    for (j, &value) in values.iter().enumerate() {
        if let Some(out) = row.get_mut([0, first + j]) {
            *out = value;
        }
    }
}

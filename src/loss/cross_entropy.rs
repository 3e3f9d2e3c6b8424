//! Softmax cross-entropy.

use super::{Reduction, STAGE, sum};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::parallel;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Softmax cross-entropy of logits `[batch, classes]`: plain data.
///
/// For a row z with target distribution q the loss is −Σ_c q_c log softmax(z)_c and its gradient
/// softmax(z) Σ_c q_c − q, from one log-sum-exp. A class index t means q_t = 1, the others 0. Label smoothing
/// by ε replaces q by (1 − ε) q + ε / classes (Szegedy et al., "Rethinking the Inception architecture", 2016).
/// A term with q_c = 0 is 0, even where the logit is −∞.
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
}

/// What the logits should say.
#[derive(Clone, Copy)]
pub enum Target<'a, T> {
    /// The class of each row.
    Classes(&'a [usize]),
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

    /// The loss of logits `[batch, classes]` against a target for each row.
    ///
    /// # Errors
    /// [`Error::Shape`] where the target does not fit the logits; [`Error::Argument`] where a class does not
    /// exist (with its row), ε is not between 0 and 1, or an ignored class is set for probabilities.
    pub fn forward<'a, T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: impl Into<Target<'a, T>>,
    ) -> Result<T> {
        let target = target.into();
        let rows = self.check("CrossEntropy::forward", logits, &target)?;
        self.run(logits, target, rows, None)
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
        let target = target.into();
        let rows = self.check("CrossEntropy::forward_backward", logits, &target)?;
        let mut d_logits = Tensor::zeros(logits.shape())?;
        let loss = self.run(logits, target, rows, Some(d_logits.view_mut()))?;
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
        self.run(logits, target, rows, Some(d_logits))
    }

    /// The number of rows that count.
    fn check<T: Element>(
        &self,
        op: &'static str,
        logits: TensorView<'_, T, 2>,
        target: &Target<'_, T>,
    ) -> Result<usize> {
        let [batch, classes] = logits.shape();
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return Err(Error::argument(op, "label_smoothing", self.label_smoothing, "between 0 and 1"));
        }
        let targets = match *target {
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
                return Ok(batch);
            }
            Target::Classes(targets) => targets,
        };
        if targets.len() != batch {
            return Err(Error::shape(op, "target", &[targets.len()], &[batch]));
        }
        let mut counted = 0;
        for (row, &class) in targets.iter().enumerate() {
            if Some(class) == self.ignore_index {
                continue;
            }
            if class >= classes {
                let value = format!("class {class} in row {row}");
                return Err(Error::argument(op, "target", value, "a class below the number of logits"));
            }
            counted += 1;
        }
        Ok(counted)
    }

    fn run<T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: Target<'_, T>,
        rows: usize,
        d_logits: Option<TensorViewMut<'_, T, 2>>,
    ) -> Result<T> {
        if logits.is_empty() {
            return Ok(self.reduction.apply(0.0, rows));
        }
        let [_, classes] = logits.shape();
        let smooth = if classes == 0 { 0.0 } else { self.label_smoothing / classes as f64 };
        let pass = Pass {
            ignore: self.ignore_index,
            keep: 1.0 - self.label_smoothing,
            smooth,
            factor: self.reduction.factor(rows),
            leaf: (LEAF / classes.max(1)).max(1),
            parallel: parallel::tasks(logits.len(), LEAF) > 1,
        };
        let sum = pass.tree(logits, target, d_logits)?;
        Ok(self.reduction.apply(sum, rows))
    }
}

/// Elements of a leaf of the summation tree, about: some tens of microseconds of work.
const LEAF: usize = 1 << 13;

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
}

/// The target of one row.
enum RowTarget<'a, T> {
    Class(usize),
    Probabilities(TensorView<'a, T, 2>),
}

impl Pass {
    /// The sum of all rows' losses, halved and halved again: the tree depends on the number of rows alone.
    fn tree<T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: Target<'_, T>,
        d_logits: Option<TensorViewMut<'_, T, 2>>,
    ) -> Result<f64> {
        let [rows, _] = logits.shape();
        if rows <= self.leaf {
            return self.rows(logits, target, d_logits);
        }
        let at = rows.div_ceil(self.leaf) / 2 * self.leaf;
        let (low, high) = logits.split_at(0, at)?;
        let (low_target, high_target) = match target {
            Target::Classes(classes) => {
                let (low, high) = classes.split_at(at);
                (Target::Classes(low), Target::Classes(high))
            }
            Target::Probabilities(view) => {
                let (low, high) = view.split_at(0, at)?;
                (Target::Probabilities(low), Target::Probabilities(high))
            }
        };
        let (low_out, high_out) = match d_logits {
            Some(view) => {
                let (low, high) = view.split_at(0, at)?;
                (Some(low), Some(high))
            }
            None => (None, None),
        };
        let first = || self.tree(low, low_target, low_out);
        let second = || self.tree(high, high_target, high_out);
        let (first, second) = if self.parallel { parallel::join(first, second) } else { (first(), second()) };
        Ok(first? + second?)
    }

    fn rows<T: Element>(
        &self,
        logits: TensorView<'_, T, 2>,
        target: Target<'_, T>,
        mut d_logits: Option<TensorViewMut<'_, T, 2>>,
    ) -> Result<f64> {
        let mut buffers = [[T::ZERO; STAGE]; 3];
        let mut total = 0.0;
        for i in 0..logits.shape()[0] {
            let row = logits.slice(0, i..i + 1, 1)?;
            let mut out = match &mut d_logits {
                Some(view) => Some(view.view_mut().slice(0, i..i + 1, 1)?),
                None => None,
            };
            let target = match target {
                Target::Classes(classes) => match classes.get(i) {
                    Some(&class) if Some(class) != self.ignore => RowTarget::Class(class),
                    _ => {
                        out.iter_mut().for_each(|out| out.fill(T::ZERO));
                        continue;
                    }
                },
                Target::Probabilities(view) => RowTarget::Probabilities(view.slice(0, i..i + 1, 1)?),
            };
            total += self.row(row, target, out, &mut buffers);
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
                RowTarget::Class(class) => {
                    if let Some(z) = at(*class)
                        && self.keep != 0.0
                    {
                        (weight, dot) = (weight + self.keep, dot + self.keep * z);
                    }
                    if self.smooth != 0.0 {
                        weight += self.smooth * terms.len() as f64;
                        dot += self.smooth * sum(terms);
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
            let [scale, smooth, keep] =
                [weight / (1.0 + rest), self.smooth, self.keep].map(|x| T::from_f64(self.factor * x));
            for first in (0..classes).step_by(STAGE) {
                let exps = stage(out.view(), first, buffer);
                let terms = &mut terms[..exps.len()];
                terms.iter_mut().zip(exps).for_each(|(term, &e)| *term = scale * e - smooth);
                match &target {
                    RowTarget::Class(class) => {
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

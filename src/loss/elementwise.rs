//! Losses that are a sum over elements.

use super::{Reduction, STAGE, sum};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Iter, Tensor, TensorView, TensorViewMut};
use crate::{machine, parallel};

/// (y − t)² of each element: plain data.
///
/// The gradient for y is 2 (y − t), divided by the number of elements for the mean.
///
/// ```
/// use tilewise::{TensorView, loss::MeanSquared};
/// let y = TensorView::from_slice(&[1.0, 2.0], [2])?;
/// let t = TensorView::from_slice(&[0.0, 4.0], [2])?;
/// let (loss, dy) = MeanSquared::new().forward_backward(y, t)?;
/// assert_eq!(loss, 2.5);
/// assert_eq!(dy.as_slice(), [1.0, -2.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeanSquared {
    reduction: Reduction,
}

/// Binary cross-entropy of each logit z against a probability t: plain data.
///
/// The loss is −t log σ(z) − (1 − t) log(1 − σ(z)), where −log σ(z) = max(−z, 0) + log(1 + e^−|z|) never
/// overflows and no digits cancel; a term whose factor is 0 is 0, also at infinite logits. The gradient for z is
/// σ(z) − t.
///
/// ```
/// use tilewise::{TensorView, loss::BinaryCrossEntropy};
/// let z = TensorView::from_slice(&[0.0, 800.0], [2])?;
/// let t = TensorView::from_slice(&[1.0, 1.0], [2])?;
/// let (loss, dz) = BinaryCrossEntropy::new().forward_backward(z, t)?;
/// assert_eq!(loss, 2f64.ln() / 2.0);
/// assert_eq!(dz.as_slice(), [-0.25, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BinaryCrossEntropy {
    reduction: Reduction,
}

trait Pointwise: Sync {
    /// A factor of all derivatives.
    const FACTOR: f64;
    /// The loss of an element, and its derivative by the first argument without the factor.
    fn eval<T: Element>(&self, y: T, t: T) -> (T, T);
}

struct Squared;

impl Pointwise for Squared {
    /// Not in the derivative: 2 (y − t) might overflow where the gradient of a mean does not.
    const FACTOR: f64 = 2.0;

    #[inline(always)]
    fn eval<T: Element>(&self, y: T, t: T) -> (T, T) {
        let d = y - t;
        (d * d, d)
    }
}

struct Logistic;

impl Pointwise for Logistic {
    const FACTOR: f64 = 1.0;

    #[inline(always)]
    fn eval<T: Element>(&self, z: T, t: T) -> (T, T) {
        let (z, t) = (z.to_f64(), t.to_f64());
        let small = (-z.abs()).exp();
        let log = small.ln_1p();
        // −log(1 − σ(z)) and −log σ(z). The comparisons keep a NaN.
        let no = log + if z < 0.0 { 0.0 } else { z };
        let yes = log + if z > 0.0 { 0.0 } else { -z };
        let sigmoid = if z < 0.0 { small } else { 1.0 } / (1.0 + small);
        let loss = weighted(t, yes) + weighted(1.0 - t, no);
        (T::from_f64(loss), T::from_f64(sigmoid - t))
    }
}

/// weight · loss; what has no weight is 0, however large its loss.
#[inline(always)]
fn weighted(weight: f64, loss: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * loss }
}

macro_rules! loss {
    ($name:ident, $pointwise:ident, $forward:literal, $both:literal, $into:literal) => {
        impl $name {
            /// The mean over elements.
            pub fn new() -> Self {
                Self::default()
            }

            /// How elements become one loss; the mean unless set.
            pub fn reduction(self, reduction: Reduction) -> Self {
                Self { reduction }
            }

            /// The loss of two tensors of one shape.
            ///
            /// # Errors
            /// [`Error::Shape`] where the shapes differ.
            pub fn forward<T: Element, const N: usize>(
                &self,
                y: TensorView<'_, T, N>,
                target: TensorView<'_, T, N>,
            ) -> Result<T> {
                check($forward, y, target)?;
                run($forward, &$pointwise, self.reduction, y, target, None)
            }

            /// The loss and its gradient for the first argument.
            ///
            /// # Errors
            /// As [`forward`](Self::forward), and [`Error::Alloc`] where there is no memory.
            pub fn forward_backward<T: Element, const N: usize>(
                &self,
                y: TensorView<'_, T, N>,
                target: TensorView<'_, T, N>,
            ) -> Result<(T, Tensor<T, N>)> {
                check($both, y, target)?;
                let mut gradient = Tensor::zeros(y.shape())?;
                let loss = run($both, &$pointwise, self.reduction, y, target, Some(gradient.view_mut()))?;
                Ok((loss, gradient))
            }

            /// The loss; its gradient for the first argument overwrites `gradient`, of the same shape.
            /// Allocates nothing.
            ///
            /// # Errors
            /// As [`forward`](Self::forward).
            pub fn forward_backward_into<T: Element, const N: usize>(
                &self,
                y: TensorView<'_, T, N>,
                target: TensorView<'_, T, N>,
                gradient: TensorViewMut<'_, T, N>,
            ) -> Result<T> {
                check($into, y, target)?;
                if gradient.shape() != y.shape() {
                    return Err(Error::shape($into, "gradient", &gradient.shape(), &y.shape()));
                }
                run($into, &$pointwise, self.reduction, y, target, Some(gradient))
            }
        }
    };
}

loss!(
    MeanSquared,
    Squared,
    "MeanSquared::forward",
    "MeanSquared::forward_backward",
    "MeanSquared::forward_backward_into"
);
loss!(
    BinaryCrossEntropy,
    Logistic,
    "BinaryCrossEntropy::forward",
    "BinaryCrossEntropy::forward_backward",
    "BinaryCrossEntropy::forward_backward_into"
);

fn check<T: Element, const N: usize>(
    op: &'static str,
    y: TensorView<'_, T, N>,
    target: TensorView<'_, T, N>,
) -> Result<()> {
    if target.shape() == y.shape() {
        return Ok(());
    }
    Err(Error::shape(op, "target", &target.shape(), &y.shape()))
}

/// Elements of a leaf of the summation tree, at most.
const LEAF: usize = 1 << 14;

fn run<T: Element, P: Pointwise, const N: usize>(
    op: &'static str,
    loss: &P,
    reduction: Reduction,
    y: TensorView<'_, T, N>,
    target: TensorView<'_, T, N>,
    gradient: Option<TensorViewMut<'_, T, N>>,
) -> Result<T> {
    let count = y.len();
    let parallel = parallel::tasks(count, LEAF) > 1;
    machine::trace(|| format!("{op} {:?} {}", y.shape(), T::NAME));
    let factor = T::from_f64(P::FACTOR * reduction.factor(count as f64));
    let sum = tree(loss, factor, parallel, y, target, gradient)?;
    Ok(reduction.apply(sum, count as f64))
}

/// The sum over all elements, halved along the first axis that can be: the tree depends on the shape alone.
fn tree<T: Element, const N: usize>(
    loss: &impl Pointwise,
    factor: T,
    parallel: bool,
    y: TensorView<'_, T, N>,
    target: TensorView<'_, T, N>,
    gradient: Option<TensorViewMut<'_, T, N>>,
) -> Result<f64> {
    let shape = y.shape();
    let axis = (0..N).find(|&axis| shape[axis] > 1);
    let Some(axis) = axis.filter(|_| y.len() > LEAF) else {
        return Ok(leaf(loss, factor, y, target, gradient));
    };
    let at = shape[axis] / 2;
    let (low_y, high_y) = y.split_at(axis, at)?;
    let (low_target, high_target) = target.split_at(axis, at)?;
    let (low_out, high_out) = match gradient {
        Some(view) => {
            let (low, high) = view.split_at(axis, at)?;
            (Some(low), Some(high))
        }
        None => (None, None),
    };
    let first = || tree(loss, factor, parallel, low_y, low_target, low_out);
    let second = || tree(loss, factor, parallel, high_y, high_target, high_out);
    let (first, second) = if parallel { parallel::join(first, second) } else { (first(), second()) };
    Ok(first? + second?)
}

/// In row-major order of the index, in runs of [`STAGE`] elements.
fn leaf<T: Element, const N: usize>(
    loss: &impl Pointwise,
    factor: T,
    y: TensorView<'_, T, N>,
    target: TensorView<'_, T, N>,
    mut gradient: Option<TensorViewMut<'_, T, N>>,
) -> f64 {
    let count = y.len();
    let mut ys = Run::new(y);
    let mut targets = Run::new(target);
    let mut index = [0; N];
    let (mut y_buffer, mut t_buffer) = ([T::ZERO; STAGE], [T::ZERO; STAGE]);
    let mut losses = [T::ZERO; STAGE];
    let mut slopes = [T::ZERO; STAGE];
    let mut total = 0.0;
    for first in (0..count).step_by(STAGE) {
        let n = STAGE.min(count - first);
        let (y_run, t_run) = (ys.next(n, &mut y_buffer), targets.next(n, &mut t_buffer));
        for (i, (&y, &t)) in y_run.iter().zip(t_run).enumerate() {
            let (value, slope) = loss.eval(y, t);
            (losses[i], slopes[i]) = (value, factor * slope);
        }
        total += sum(&losses[..n]);
        let Some(out) = &mut gradient else { continue };
        if let Some(out) = out.as_mut_slice() {
            out[first..first + n].copy_from_slice(&slopes[..n]);
            continue;
        }
        for &slope in &slopes[..n] {
            if let Some(out) = out.get_mut(index) {
                *out = slope;
            }
            for axis in (0..N).rev() {
                index[axis] += 1;
                if index[axis] < y.shape()[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
    }
    total
}

/// A view's elements in row-major order, some at a time.
enum Run<'a, T, const N: usize> {
    Slice(&'a [T]),
    Strided(Iter<'a, T, N>),
}

impl<'a, T: Element, const N: usize> Run<'a, T, N> {
    fn new(view: TensorView<'a, T, N>) -> Self {
        view.as_slice().map_or_else(|| Run::Strided(view.iter()), Run::Slice)
    }

    /// The next `n` elements, which are there.
    fn next<'b>(&mut self, n: usize, buffer: &'b mut [T; STAGE]) -> &'b [T]
    where
        'a: 'b,
    {
        match self {
            Run::Slice(rest) => {
                let (run, after) = rest.split_at(n);
                *rest = after;
                run
            }
            Run::Strided(iter) => {
                buffer[..n].iter_mut().zip(iter).for_each(|(value, &element)| *value = element);
                &buffer[..n]
            }
        }
    }
}

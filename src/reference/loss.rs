//! Losses: the sum over rows or elements and its gradient. For a mean, divide both by the number.

use super::{at, expect};
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// Σ over rows of −Σ_c q_c log softmax(z)_c and its gradient for the logits z `[batch, classes]`, with
/// `target(row, class)` giving q. Terms with q = 0 are left out.
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference};
/// let z = TensorView::from_slice(&[0.0f32, 0.0], [1, 2])?;
/// let (loss, dz) = reference::cross_entropy(z, |_, class| if class == 0 { 1.0 } else { 0.0 })?;
/// assert_eq!(loss, 2f64.ln());
/// assert_eq!(dz.as_slice(), [-0.5, 0.5]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn cross_entropy<T: Element>(
    logits: TensorView<'_, T, 2>,
    target: impl Fn(usize, usize) -> f64,
) -> Result<(f64, Tensor<f64, 2>)> {
    let [batch, classes] = logits.shape();
    let mut loss = 0.0;
    let mut gradient = Tensor::zeros([batch, classes])?;
    for row in 0..batch {
        let mut max = f64::NEG_INFINITY;
        for class in 0..classes {
            max = max.max(at(logits, [row, class]));
        }
        let (mut sum, mut weight) = (0.0, 0.0);
        for class in 0..classes {
            sum += (at(logits, [row, class]) - max).exp();
            weight += target(row, class);
        }
        for class in 0..classes {
            let (z, q) = (at(logits, [row, class]) - max, target(row, class));
            if q != 0.0 {
                loss -= q * (z - sum.ln());
            }
            let d = z.exp() / sum * weight - q;
            gradient.get_mut([row, class]).into_iter().for_each(|gradient| *gradient = d);
        }
    }
    Ok((loss, gradient))
}

/// Σ over rows of −Σ_c q_c z_c and its gradient for the logarithms of probabilities z `[batch, classes]`, with
/// `target(row, class)` giving q. Terms with q = 0 are left out.
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference};
/// let z = TensorView::from_slice(&[-3.0f32, -1.0], [1, 2])?;
/// let (loss, dz) = reference::likelihood(z, |_, class| if class == 0 { 1.0 } else { 0.0 })?;
/// assert_eq!((loss, dz.as_slice()), (3.0, &[-1.0, 0.0][..]));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn likelihood<T: Element>(
    logarithms: TensorView<'_, T, 2>,
    target: impl Fn(usize, usize) -> f64,
) -> Result<(f64, Tensor<f64, 2>)> {
    let mut loss = 0.0;
    let gradient = Tensor::from_fn(logarithms.shape(), |[row, class]| {
        let q = target(row, class);
        if q != 0.0 {
            loss -= q * at(logarithms, [row, class]);
        }
        -q
    })?;
    Ok((loss, gradient))
}

/// Σ (y − t)² and its gradient for y.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) where the shapes differ, [`Error::Alloc`](crate::Error::Alloc) where there
/// is no memory.
///
/// ```
/// use tilewise::{TensorView, reference};
/// let (y, t) = (TensorView::from_slice(&[3.0f32], [1])?, TensorView::from_slice(&[1.0], [1])?);
/// let (loss, dy) = reference::squared(y, t)?;
/// assert_eq!((loss, dy.as_slice()), (4.0, &[4.0][..]));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn squared<T: Element, const N: usize>(
    y: TensorView<'_, T, N>,
    target: TensorView<'_, T, N>,
) -> Result<(f64, Tensor<f64, N>)> {
    expect("reference::squared", "target", &target.shape(), &y.shape())?;
    let mut loss = 0.0;
    let gradient = Tensor::from_fn(y.shape(), |index| {
        let difference = at(y, index) - at(target, index);
        loss += difference * difference;
        2.0 * difference
    })?;
    Ok((loss, gradient))
}

/// Σ −t log σ(z) − (1 − t) log(1 − σ(z)) and its gradient for the logits z.
///
/// # Errors
/// As [`squared`].
///
/// ```
/// use tilewise::{TensorView, reference};
/// let (z, t) = (TensorView::from_slice(&[0.0f32], [1])?, TensorView::from_slice(&[1.0], [1])?);
/// let (loss, dz) = reference::binary_cross_entropy(z, t)?;
/// assert_eq!((loss, dz.as_slice()), (2f64.ln(), &[-0.5][..]));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn binary_cross_entropy<T: Element, const N: usize>(
    logits: TensorView<'_, T, N>,
    target: TensorView<'_, T, N>,
) -> Result<(f64, Tensor<f64, N>)> {
    expect("reference::binary_cross_entropy", "target", &target.shape(), &logits.shape())?;
    let mut loss = 0.0;
    let gradient = Tensor::from_fn(logits.shape(), |index| {
        let (z, t) = (at(logits, index), at(target, index));
        // log(1 + e^x) without overflow.
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        loss += t * softplus(-z) + (1.0 - t) * softplus(z);
        1.0 / (1.0 + (-z).exp()) - t
    })?;
    Ok((loss, gradient))
}

//! Softmax and its logarithm along one axis, element by element, in `f64`.

use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// The elements that share every index but the axis's.
fn along<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    at: [usize; N],
    axis: usize,
) -> impl Iterator<Item = f64> + Clone {
    let n = x.shape().get(axis).copied().unwrap_or(0);
    (0..n).map(move |i| {
        let mut at = at;
        at[axis] = i;
        x.get(at).copied().unwrap_or(T::NAN).to_f64()
    })
}

/// The twin of [`Softmax::forward`](crate::softmax::Softmax::forward).
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{Tensor, reference::softmax};
/// let x = Tensor::<f32, 1>::zeros([4])?;
/// assert_eq!(softmax::forward(x.view(), 0, false)?.as_slice(), [0.25; 4]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn forward<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    axis: usize,
    logarithm: bool,
) -> Result<Tensor<T, N>> {
    Tensor::from_fn(x.shape(), |at| {
        let row = along(x, at, axis);
        let most = row.clone().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.map(|x| (x - most).exp()).sum();
        let x = x.get(at).copied().unwrap_or(T::NAN).to_f64() - most;
        T::from_f64(if logarithm { x - sum.ln() } else { x.exp() / sum })
    })
}

/// The twin of [`Softmax::backward`](crate::softmax::Softmax::backward).
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{Tensor, reference::softmax};
/// let y = Tensor::<f64, 1>::full([2], 0.5)?;
/// let dy = Tensor::from_slice(&[1.0, 0.0], [2])?;
/// assert_eq!(softmax::backward(y.view(), dy.view(), 0, false)?.as_slice(), [0.25, -0.25]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward<T: Element, const N: usize>(
    y: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
    axis: usize,
    logarithm: bool,
) -> Result<Tensor<T, N>> {
    Tensor::from_fn(y.shape(), |at| {
        let (row, grads) = (along(y, at, axis), along(dy, at, axis));
        let of = |view: TensorView<'_, T, N>| view.get(at).copied().unwrap_or(T::NAN).to_f64();
        T::from_f64(if logarithm {
            of(dy) - of(y).exp() * grads.sum::<f64>()
        } else {
            let dot: f64 = row.zip(grads).map(|(y, dy)| y * dy).sum();
            of(y) * (of(dy) - dot)
        })
    })
}

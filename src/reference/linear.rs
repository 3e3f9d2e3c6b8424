//! The dense operation.

use super::{at, expect};
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// Y = activation(X W + 1 bᵀ): X `[batch, inputs]`, W `[inputs, outputs]`, b `[outputs]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) where shapes do not fit, [`Error::Alloc`](crate::Error::Alloc) where there
/// is no memory.
///
/// ```
/// use tilewise::{TensorView, reference};
/// let x = TensorView::from_slice(&[1.0f32, 2.0], [1, 2])?;
/// let w = TensorView::from_slice(&[3.0, 4.0], [2, 1])?;
/// assert_eq!(reference::dense(x, w, None, |z| -z)?.as_slice(), [-11.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn dense<T: Element>(
    x: TensorView<'_, T, 2>,
    weight: TensorView<'_, T, 2>,
    bias: Option<TensorView<'_, T, 1>>,
    activation: impl Fn(f64) -> f64,
) -> Result<Tensor<f64, 2>> {
    let ([batch, inputs], [_, outputs]) = (x.shape(), weight.shape());
    expect("reference::dense", "weight", &weight.shape(), &[inputs, outputs])?;
    if let Some(bias) = bias {
        expect("reference::dense", "bias", &bias.shape(), &[outputs])?;
    }
    Tensor::from_fn([batch, outputs], |[sample, output]| {
        let mut z = bias.map_or(0.0, |bias| at(bias, [output]));
        for input in 0..inputs {
            z += at(x, [sample, input]) * at(weight, [input, output]);
        }
        activation(z)
    })
}

/// (dX, dW, db) from X `[batch, inputs]`, W `[inputs, outputs]` and dZ `[batch, outputs]`, the gradient for X W + 1 bᵀ.
///
/// # Errors
/// As [`dense`].
///
/// ```
/// use tilewise::{TensorView, reference};
/// let x = TensorView::from_slice(&[1.0f32, 2.0], [1, 2])?;
/// let w = TensorView::from_slice(&[3.0, 4.0], [2, 1])?;
/// let dz = TensorView::from_slice(&[10.0], [1, 1])?;
/// let (dx, dw, db) = reference::dense_backward(x, w, dz)?;
/// assert_eq!((dx.as_slice(), dw.as_slice()), (&[30.0, 40.0][..], &[10.0, 20.0][..]));
/// assert_eq!(db.as_slice(), [10.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn dense_backward<T: Element>(
    x: TensorView<'_, T, 2>,
    weight: TensorView<'_, T, 2>,
    dz: TensorView<'_, T, 2>,
) -> Result<(Tensor<f64, 2>, Tensor<f64, 2>, Tensor<f64, 1>)> {
    let ([batch, inputs], [_, outputs]) = (x.shape(), weight.shape());
    expect("reference::dense_backward", "weight", &weight.shape(), &[inputs, outputs])?;
    expect("reference::dense_backward", "dz", &dz.shape(), &[batch, outputs])?;
    let (mut dx, mut dw) = (Tensor::zeros([batch, inputs])?, Tensor::zeros([inputs, outputs])?);
    let mut db = Tensor::zeros([outputs])?;
    // Every term of every sum, in one loop over what connects a sample, an input and an output.
    for sample in 0..batch {
        for output in 0..outputs {
            let d = at(dz, [sample, output]);
            db.get_mut([output]).into_iter().for_each(|db| *db += d);
            for input in 0..inputs {
                let (w, x) = (at(weight, [input, output]), at(x, [sample, input]));
                dx.get_mut([sample, input]).into_iter().for_each(|dx| *dx += d * w);
                dw.get_mut([input, output]).into_iter().for_each(|dw| *dw += d * x);
            }
        }
    }
    Ok((dx, dw, db))
}

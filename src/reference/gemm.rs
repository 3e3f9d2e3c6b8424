//! Matrix product and its epilogue.

use super::{at, expect};
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// alpha · A · B + beta · C, summed in `f64`: A is `[m, k]`, B `[k, n]`, C `[m, n]`.
///
/// Where beta is 0, C is not read and may hold anything.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) where shapes do not fit, [`Error::Alloc`](crate::Error::Alloc)
/// where there is no memory.
///
/// ```
/// use tilewise::{Tensor, reference};
/// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
/// let c = Tensor::full([2, 2], f32::NAN)?;
/// let product = reference::gemm(1.0, a.view(), a.view(), 0.0, c.view())?;
/// assert_eq!(product.as_slice(), [7.0, 10.0, 15.0, 22.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn gemm<T: Element>(
    alpha: T,
    a: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    beta: T,
    c: TensorView<'_, T, 2>,
) -> Result<Tensor<f64, 2>> {
    let (alpha, beta) = (alpha.to_f64(), beta.to_f64());
    sums(a, b, c, |a, b| a * b, |sum, c| if beta == 0.0 { alpha * sum } else { alpha * sum + beta * c })
}

/// alpha · A · Aᵀ + beta · C, summed in `f64`: A is `[m, k]`, C `[m, m]`, and of C only the lower triangle with the
/// diagonal counts.
///
/// Where beta is 0, C is not read and may hold anything.
///
/// # Errors
/// As [`gemm`].
///
/// ```
/// use tilewise::{Tensor, reference};
/// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
/// let c = Tensor::from_slice(&[1.0, f32::NAN, 10.0, 100.0], [2, 2])?;
/// let product = reference::gram(1.0, a.view(), 1.0, c.view())?;
/// assert_eq!(product.as_slice(), [6.0, 21.0, 21.0, 125.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn gram<T: Element>(
    alpha: T,
    a: TensorView<'_, T, 2>,
    beta: T,
    c: TensorView<'_, T, 2>,
) -> Result<Tensor<f64, 2>> {
    let ([m, k], alpha, beta) = (a.shape(), alpha.to_f64(), beta.to_f64());
    expect("reference::gram", "c", &c.shape(), &[m, m])?;
    Tensor::from_fn([m, m], |[i, j]| {
        let mut sum = 0.0;
        for p in 0..k {
            sum += at(a, [i, p]) * at(a, [j, p]);
        }
        if beta == 0.0 { alpha * sum } else { alpha * sum + beta * at(c, [i.max(j), i.min(j)]) }
    })
}

/// |alpha| · |A| · |B| + |beta| · |C|: the size of what was added up for each element, by which its rounding
/// error is bounded. `n` roundings of a sum change it by at most about `n · epsilon` times this.
///
/// # Errors
/// As [`gemm`].
///
/// ```
/// use tilewise::{Tensor, reference};
/// let row = Tensor::from_slice(&[1.0f64, -1.0], [1, 2])?;
/// let c = Tensor::full([1, 1], -3.0)?;
/// let size = reference::magnitude(2.0, row.view(), row.view().transpose(), 1.0, c.view())?;
/// assert_eq!(size.as_slice(), [7.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn magnitude<T: Element>(
    alpha: T,
    a: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    beta: T,
    c: TensorView<'_, T, 2>,
) -> Result<Tensor<f64, 2>> {
    let (alpha, beta) = (alpha.to_f64().abs(), beta.to_f64().abs());
    sums(
        a,
        b,
        c,
        |a, b| (a * b).abs(),
        |sum, c| if beta == 0.0 { alpha * sum } else { alpha * sum + beta * c.abs() },
    )
}

/// `finish(Σ_p term(a[i, p], b[p, j]), c[i, j])` for every i and j.
fn sums<T: Element>(
    a: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    c: TensorView<'_, T, 2>,
    term: impl Fn(f64, f64) -> f64,
    finish: impl Fn(f64, f64) -> f64,
) -> Result<Tensor<f64, 2>> {
    let ([m, k], [_, n]) = (a.shape(), b.shape());
    expect("reference::gemm", "b", &b.shape(), &[k, n])?;
    expect("reference::gemm", "c", &c.shape(), &[m, n])?;
    Tensor::from_fn([m, n], |[i, j]| {
        let mut sum = 0.0;
        for p in 0..k {
            sum += term(at(a, [i, p]), at(b, [p, j]));
        }
        finish(sum, at(c, [i, j]))
    })
}

/// activation(C + bias + residual): `per_row` has an element for each row of C, `per_column` one for each
/// column, the residual C's shape.
///
/// # Errors
/// As [`gemm`].
///
/// ```
/// use tilewise::{Tensor, reference};
/// let product = Tensor::from_slice(&[1.0, -2.0], [1, 2])?;
/// let bias = Tensor::from_slice(&[0.5f32, 0.5], [2])?;
/// let y = reference::epilogue(product.view(), None, Some(bias.view()), None, |x| x.max(0.0))?;
/// assert_eq!(y.as_slice(), [1.5, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn epilogue<T: Element>(
    product: TensorView<'_, f64, 2>,
    per_row: Option<TensorView<'_, T, 1>>,
    per_column: Option<TensorView<'_, T, 1>>,
    residual: Option<TensorView<'_, T, 2>>,
    activation: impl Fn(f64) -> f64,
) -> Result<Tensor<f64, 2>> {
    let [m, n] = product.shape();
    if let Some(bias) = per_row {
        expect("reference::epilogue", "per_row", &bias.shape(), &[m])?;
    }
    if let Some(bias) = per_column {
        expect("reference::epilogue", "per_column", &bias.shape(), &[n])?;
    }
    if let Some(residual) = residual {
        expect("reference::epilogue", "residual", &residual.shape(), &[m, n])?;
    }
    Tensor::from_fn([m, n], |[i, j]| {
        let mut value = at(product, [i, j]);
        value += per_row.map_or(0.0, |bias| at(bias, [i]));
        value += per_column.map_or(0.0, |bias| at(bias, [j]));
        value += residual.map_or(0.0, |residual| at(residual, [i, j]));
        activation(value)
    })
}

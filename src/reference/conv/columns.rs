//! The gradients as those of the dense operation on the patch matrix.
//!
//! With X' = im2col(X) of rows (sample, window) and columns (channel, tap), Y = X' Wᵀ + 1 bᵀ for weights in memory order.
//! So dX = col2im(dY W), dW = dYᵀ X', db = dYᵀ 1, group by group.

use super::{Geometry, at, expect, indices, lift, lower, overflow, spatial};
use crate::element::Element;
use crate::error::Result;
use crate::reference::dense_backward;
use crate::tensor::{Tensor, TensorView};

/// The patch matrix: rows (sample, window), columns (channel, tap), `[batch · out…, c · kernel…]`.
///
/// # Errors
/// As [`forward`](super::forward).
///
/// ```
/// use tilewise::{TensorView, reference::conv::{Geometry, columns}};
/// let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [1, 1, 3])?;
/// let matrix = columns::im2col(&Geometry::new(), x, [2])?;
/// assert_eq!(matrix.as_slice(), [1.0, 2.0, 2.0, 3.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn im2col<T: Element, const S: usize, const N: usize>(
    geometry: &Geometry<S>,
    x: TensorView<'_, T, N>,
    kernel: [usize; S],
) -> Result<Tensor<f64, 2>> {
    const { assert!(N == S + 2) };
    let (g, x, kernel) = (geometry.lift(), x.lift(), lift(kernel, 1));
    let ([batch, channels, ..], image) = (x.shape(), spatial(x.shape()));
    let output = g.output(image, kernel)?;
    Tensor::from_fn([product(batch, output)?, product(channels, kernel)?], |[row, column]| {
        let ([sample, window @ ..], [channel, tap @ ..]) = (unravel(row, output), unravel(column, kernel));
        g.pixel(window, tap, image).map_or(0.0, |[z, y, column]| at(x, [sample, channel, z, y, column]))
    })
}

/// The transpose of [`im2col`]: each element of the matrix added to the pixel it would have come from. Gives the shape
/// `[batch, channels, image…]`.
///
/// # Errors
/// As [`forward`](super::forward).
///
/// ```
/// use tilewise::{TensorView, reference::conv::{Geometry, columns}};
/// let matrix = TensorView::from_slice(&[1.0, 2.0, 3.0, 4.0], [2, 2])?;
/// let x = columns::col2im(&Geometry::new(), matrix, [1, 1, 3], [2])?;
/// assert_eq!(x.as_slice(), [1.0, 5.0, 4.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn col2im<T: Element, const S: usize, const N: usize>(
    geometry: &Geometry<S>,
    matrix: TensorView<'_, T, 2>,
    shape: [usize; N],
    kernel: [usize; S],
) -> Result<Tensor<f64, N>> {
    const { assert!(N == S + 2) };
    let (g, kernel) = (geometry.lift(), lift(kernel, 1));
    let image = lift(std::array::from_fn::<_, S, _>(|axis| shape[2 + axis]), 1);
    let output = g.output(image, kernel)?;
    let size = [product(shape[0], output)?, product(shape[1], kernel)?];
    expect("reference::conv", "matrix", &matrix.shape(), &size)?;
    let mut x = Tensor::zeros([shape[0], shape[1], image[0], image[1], image[2]])?;
    for row in 0..size[0] {
        for column in 0..size[1] {
            let ([sample, window @ ..], [channel, tap @ ..]) =
                (unravel(row, output), unravel(column, kernel));
            let pixel = g.pixel(window, tap, image);
            let pixel = pixel.and_then(|[z, y, column]| x.get_mut([sample, channel, z, y, column]));
            pixel.into_iter().for_each(|pixel| *pixel += at(matrix, [row, column]));
        }
    }
    lower(x)
}

/// (dX, dW, db) from x `[batch, c_in, image…]`, w `[c_out, c_in / groups, kernel…]` and dY `[batch, c_out, out…]`.
///
/// # Errors
/// As [`forward`](super::forward).
///
/// ```
/// use tilewise::{TensorView, reference::conv::{Geometry, columns}};
/// let x = TensorView::from_slice(&[1.0, 2.0, 4.0], [1, 1, 3])?;
/// let w = TensorView::from_slice(&[3.0, 4.0], [1, 1, 2])?;
/// let dy = TensorView::from_slice(&[1.0, 10.0], [1, 1, 2])?;
/// let (dx, dw, db) = columns::backward(&Geometry::<1>::new(), x, w, dy)?;
/// assert_eq!((dx.as_slice(), dw.as_slice()), (&[3.0, 34.0, 40.0][..], &[21.0, 42.0][..]));
/// assert_eq!(db.as_slice(), [11.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward<T: Element, const S: usize, const N: usize>(
    geometry: &Geometry<S>,
    x: TensorView<'_, T, N>,
    weight: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
) -> Result<(Tensor<f64, N>, Tensor<f64, N>, Tensor<f64, 1>)> {
    let (g, x, weight, dy) = (geometry.lift(), x.lift(), weight.lift(), dy.lift());
    let ([batch, c_in, ..], [c_out, per_group, ..]) = (x.shape(), weight.shape());
    let (image, kernel) = (spatial(x.shape()), spatial(weight.shape()));
    g.check(c_in, weight.shape())?;
    let output = g.output(image, kernel)?;
    let [od, oh, ow] = output;
    expect("reference::conv", "dy", &dy.shape(), &[batch, c_out, od, oh, ow])?;

    let matrix = im2col(&g, x, kernel)?;
    let (rows, taps, outputs) = (matrix.shape()[0], product(1, kernel)?, c_out / g.groups);
    let mut dmatrix = Tensor::zeros(matrix.shape())?;
    let (mut dw, mut db) = (Tensor::zeros(weight.shape())?, Tensor::zeros([c_out])?);
    // Groups of no channels at all may be any number.
    for group in 0..g.groups.min(c_in.max(c_out)) {
        let (inputs, first) = (group * per_group * taps, group * outputs);
        let columns = inputs..inputs + per_group * taps;
        // [columns, c_out / groups]: the weights of the group, transposed; a turned kernel in the order of the taps.
        let w = Tensor::from_fn([columns.len(), outputs], |[column, output]| {
            let [channel, tap @ ..] = unravel(column, kernel);
            let [z, y, x] = g.tap(tap, kernel);
            at(weight, [first + output, channel, z, y, x])
        })?;
        let dz = Tensor::from_fn([rows, outputs], |[row, channel]| {
            let [sample, z, y, x] = unravel(row, output);
            at(dy, [sample, first + channel, z, y, x])
        })?;
        let part = matrix.view().slice(1, columns.clone(), 1)?;
        let (dx, dwt, dbias) = dense_backward(part, w.view(), dz.view())?;
        dmatrix.view_mut().slice(1, columns, 1)?.assign(dx.view())?;
        db.view_mut().slice(0, first..first + outputs, 1)?.assign(dbias.view())?;
        for output in 0..outputs {
            for channel in 0..per_group {
                for (position, tap) in indices(kernel).enumerate() {
                    let [z, y, x] = g.tap(tap, kernel);
                    let d = at(dwt.view(), [channel * taps + position, output]);
                    dw.get_mut([first + output, channel, z, y, x]).into_iter().for_each(|dw| *dw = d);
                }
            }
        }
    }
    let dx = col2im(&g, dmatrix.view(), x.shape(), kernel)?;
    Ok((lower(dx)?, lower(dw)?, db))
}

fn product(first: usize, sizes: [usize; 3]) -> Result<usize> {
    sizes.iter().try_fold(first, |n, &size| n.checked_mul(size)).ok_or_else(|| overflow(&sizes))
}

/// (first, z, y, x) of a number that counts them in row-major order.
fn unravel(number: usize, [d, h, w]: [usize; 3]) -> [usize; 4] {
    let (rest, x) = (number / w, number % w);
    let (rest, y) = (rest / h, rest % h);
    [rest / d, rest % d, y, x]
}

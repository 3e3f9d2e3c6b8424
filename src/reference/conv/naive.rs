//! The gradients as cross-correlations of images that zeros were written into.
//!
//! dX: between the elements of dY stand s − 1 zeros and behind them as many as the last window left over,
//! (in + p − k_eff) mod s; around that, k_eff − 1 − p zeros on each side, which crop where they are negative; the
//! kernel is turned by 180° and its channels change places. dW: the padded image is correlated with dY, which has zeros
//! between its elements; nothing is turned.

use super::{Geometry, at, expect, forward, lift, lower, overflow, spatial};
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// dX `[batch, c_in, image…]` from dY `[batch, c_out, out…]` and w `[c_out, c_in / groups, kernel…]`.
///
/// # Errors
/// As [`forward`].
///
/// ```
/// use tilewise::{TensorView, reference::conv::{Geometry, naive}};
/// let dy = TensorView::from_slice(&[1.0, 2.0], [1, 1, 2])?;
/// let w = TensorView::from_slice(&[3.0, 4.0], [1, 1, 2])?;
/// assert_eq!(naive::backward_input(&Geometry::new(), dy, w, [3])?.as_slice(), [3.0, 10.0, 8.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward_input<T: Element, const S: usize, const N: usize>(
    geometry: &Geometry<S>,
    dy: TensorView<'_, T, N>,
    weight: TensorView<'_, T, N>,
    image: [usize; S],
) -> Result<Tensor<f64, N>> {
    const { assert!(N == S + 2) };
    let (g, dy, weight, image) = (geometry.lift(), dy.lift(), weight.lift(), lift(image, 1));
    let ([batch, _, ..], [c_out, per_group, ..]) = (dy.shape(), weight.shape());
    let kernel = spatial(weight.shape());
    let c_in = per_group.checked_mul(g.groups).ok_or_else(|| overflow(&weight.shape()))?;
    g.check(c_in, weight.shape())?;
    let ([od, oh, ow], extent) = (g.output(image, kernel)?, g.extent(kernel)?);
    expect("reference::conv", "dy", &dy.shape(), &[batch, c_out, od, oh, ow])?;

    if image.contains(&0) {
        return lower(Tensor::zeros([batch, c_in, image[0], image[1], image[2]])?);
    }
    let sides = std::array::from_fn(|axis| {
        let [before, after] = g.padding[axis].map(|p| (extent[axis] - 1).wrapping_sub(p) as isize);
        let padded = image[axis] + g.padding[axis][0] + g.padding[axis][1];
        [before, after.wrapping_add(((padded - extent[axis]) % g.stride[axis]) as isize)]
    });
    let spread = pad(insert_zeros(dy, g.stride)?.view(), sides)?;
    // [c_in, c_out / groups, kernel…]; a kernel that was turned before is turned back.
    let [kd, kh, kw] = kernel;
    let (outputs, turn) = (c_out / g.groups, Geometry { flipped: !g.flipped, ..g });
    let turned = Tensor::from_fn([c_in, outputs, kd, kh, kw], |[input, output, z, y, x]| {
        let [z, y, x] = turn.tap([z, y, x], kernel);
        at(weight, [input / per_group * outputs + output, input % per_group, z, y, x])
    })?;
    let dense = Geometry { dilation: g.dilation, groups: g.groups, ..Geometry::new() };
    lower(forward(&dense, spread.view(), turned.view(), None)?)
}

/// dW `[c_out, c_in / groups, kernel…]` from x `[batch, c_in, image…]` and dY `[batch, c_out, out…]`.
///
/// # Errors
/// As [`forward`].
///
/// ```
/// use tilewise::{TensorView, reference::conv::{Geometry, naive}};
/// let x = TensorView::from_slice(&[1.0, 2.0, 4.0], [1, 1, 3])?;
/// let dy = TensorView::from_slice(&[1.0, 10.0], [1, 1, 2])?;
/// assert_eq!(naive::backward_weight(&Geometry::new(), x, dy, [2])?.as_slice(), [21.0, 42.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward_weight<T: Element, const S: usize, const N: usize>(
    geometry: &Geometry<S>,
    x: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
    kernel: [usize; S],
) -> Result<Tensor<f64, N>> {
    const { assert!(N == S + 2) };
    let (g, x, dy, kernel) = (geometry.lift(), x.lift(), dy.lift(), lift(kernel, 1));
    let ([batch, c_in, ..], [_, c_out, ..]) = (x.shape(), dy.shape());
    let [od, oh, ow] = g.output(spatial(x.shape()), kernel)?;
    let per_group = c_in.checked_div(g.groups).unwrap_or(0);
    g.check(c_in, [c_out, per_group, 1, 1, 1])?;
    expect("reference::conv", "dy", &dy.shape(), &[batch, c_out, od, oh, ow])?;

    let padded = pad(x, g.padding.map(|sides| sides.map(|p| p as isize)))?;
    let spread = insert_zeros(dy, g.stride)?;
    // Samples and channels change places: sums run over the batch. Windows are as far apart as the taps of the kernel.
    let (image, taps) = (padded.view().permute([1, 0, 2, 3, 4])?, spread.view().permute([1, 0, 2, 3, 4])?);
    let windows = Geometry { stride: g.dilation, ..Geometry::new() };
    let outputs = c_out / g.groups;
    let [kd, kh, kw] = kernel;
    let mut dw = Tensor::zeros([c_out, per_group, kd, kh, kw])?;
    if dw.is_empty() || batch == 0 {
        return lower(dw);
    }
    for group in 0..g.groups {
        let (inputs, rows) = (group * per_group, group * outputs);
        let image = image.slice(0, inputs..inputs + per_group, 1)?;
        let taps = taps.slice(0, rows..rows + outputs, 1)?;
        // [c_in / groups, c_out / groups, at least kernel…]: what the last window left over gives taps of its own.
        let products = forward(&windows, image, taps, None)?;
        let mut part = dw.view_mut().slice(0, rows..rows + outputs, 1)?;
        for output in 0..outputs {
            for input in 0..per_group {
                for tap in super::indices(kernel) {
                    let [z, y, x] = g.tap(tap, kernel);
                    let product = at(products.view(), [input, output, tap[0], tap[1], tap[2]]);
                    part.get_mut([output, input, z, y, x]).into_iter().for_each(|dw| *dw = product);
                }
            }
        }
    }
    lower(dw)
}

/// db `[c_out]`: the sum of dY `[batch, c_out, out…]` over samples and positions.
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference::conv::naive};
/// let dy = TensorView::from_slice(&[1.0, 2.0, 3.0, 4.0], [1, 2, 2])?;
/// assert_eq!(naive::backward_bias(dy)?.as_slice(), [3.0, 7.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward_bias<T: Element, const N: usize>(dy: TensorView<'_, T, N>) -> Result<Tensor<f64, 1>> {
    let dy = dy.lift();
    let [batch, c_out, ..] = dy.shape();
    Tensor::from_fn([c_out], |[output]| {
        let sample = |sample| {
            super::indices(spatial(dy.shape()))
                .map(move |[z, y, x]| at(dy, [sample, output, z, y, x]))
                .sum::<f64>()
        };
        (0..batch).map(sample).sum()
    })
}

/// s − 1 zeros between neighbours along each spatial axis.
fn insert_zeros<T: Element>(dy: TensorView<'_, T, 5>, stride: [usize; 3]) -> Result<Tensor<f64, 5>> {
    let mut shape = dy.shape();
    for axis in 0..3 {
        // Nothing stays nothing.
        let Some(last) = shape[2 + axis].checked_sub(1) else { continue };
        let size = last.checked_mul(stride[axis]).and_then(|at| at.checked_add(1));
        shape[2 + axis] = size.ok_or_else(|| overflow(&stride))?;
    }
    Tensor::from_fn(shape, |[sample, channel, z, y, x]| {
        let spread = [z, y, x];
        if (0..3).any(|axis| !spread[axis].is_multiple_of(stride[axis])) {
            return 0.0;
        }
        at(dy, [sample, channel, z / stride[0], y / stride[1], x / stride[2]])
    })
}

/// Zeros before and after along each spatial axis; negative numbers take elements away.
fn pad<T: Element>(x: TensorView<'_, T, 5>, sides: [[isize; 2]; 3]) -> Result<Tensor<f64, 5>> {
    let mut shape = x.shape();
    for axis in 0..3 {
        let ([before, after], size) = (sides[axis], &mut shape[2 + axis]);
        // One side may take away more than there is before the other gives.
        let padded = before.checked_add(after).and_then(|both| size.checked_add_signed(both));
        *size = padded.ok_or_else(|| overflow(&[*size]))?;
    }
    Tensor::from_fn(shape, |[sample, channel, z, y, column]| {
        let from = |axis: usize, index: usize| index.checked_add_signed(-sides[axis][0]);
        let (Some(z), Some(y), Some(column)) = (from(0, z), from(1, y), from(2, column)) else { return 0.0 };
        x.get([sample, channel, z, y, column]).map_or(0.0, |pixel| pixel.to_f64())
    })
}

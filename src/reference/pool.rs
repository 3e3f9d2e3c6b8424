//! Pooling window by window, tap by tap.

use super::{at, expect};
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// The windows along one axis, and in each its taps: a place in the image, or `None` in the padding.
pub type Axis = Vec<Vec<Option<usize>>>;

/// Windows that slide over `image` elements with `padding` before and behind; none where the kernel does not fit.
///
/// ```
/// use tilewise::reference::pool::sliding;
/// assert_eq!(sliding(2, 2, 1, 1, [1, 0], false), [[None, Some(0)], [Some(0), Some(1)]]);
/// ```
pub fn sliding(
    image: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    padding: [usize; 2],
    ceil: bool,
) -> Axis {
    let [before, behind] = padding;
    let padded = before + image + behind;
    let reach = dilation * (kernel - 1) + 1;
    let mut starts: Vec<usize> =
        (0..padded).step_by(stride).filter(|start| start + reach <= padded).collect();
    if let (true, Some(last)) = (ceil, starts.last().copied()) {
        let next = last + stride;
        if last + reach < padded && next < before + image {
            starts.push(next);
        }
    }
    let place = |at: usize| at.checked_sub(before).filter(|&at| at < image);
    let window = |start: usize| {
        let taps = (0..kernel).map(|tap| start + tap * dilation);
        taps.filter(|&at| at < padded).map(place).collect()
    };
    starts.into_iter().map(window).collect()
}

/// `outputs` windows, window i from ⌊i · image / outputs⌋ to before ⌈(i + 1) · image / outputs⌉.
///
/// ```
/// use tilewise::reference::pool::adaptive;
/// assert_eq!(adaptive(3, 2), [[Some(0), Some(1)], [Some(1), Some(2)]]);
/// ```
pub fn adaptive(image: usize, outputs: usize) -> Axis {
    let window = |i: usize| (i * image / outputs..((i + 1) * image).div_ceil(outputs)).map(Some).collect();
    (0..outputs).map(window).collect()
}

/// Calls `f` with the image's index of each tap of the window at `output`, in row-major order, `None` in the padding.
fn taps<const N: usize>(axes: &[Axis], output: [usize; N], mut f: impl FnMut(Option<[usize; N]>)) {
    let windows: Vec<_> = axes.iter().zip(&output[2..]).map(|(axis, &at)| &axis[at]).collect();
    let count: usize = windows.iter().map(|window| window.len()).product();
    for flat in 0..count {
        let (mut index, mut rest, mut inside) = (output, flat, true);
        for (axis, window) in windows.iter().enumerate().rev() {
            match window[rest % window.len()] {
                Some(place) => index[2 + axis] = place,
                None => inside = false,
            }
            rest /= window.len();
        }
        f(inside.then_some(index));
    }
}

/// The shape of the windows over an image `[batch, channels, spatial…]`.
fn shape<const N: usize>(image: [usize; N], axes: &[Axis]) -> [usize; N] {
    std::array::from_fn(|axis| if axis < 2 { image[axis] } else { axes[axis - 2].len() })
}

/// Calls `f` with each index of a shape.
fn each<const N: usize>(shape: [usize; N], f: impl FnMut([usize; N])) -> Result<()> {
    Tensor::from_fn(shape, f).map(|_| ())
}

/// The twin of [`MaxPool::forward_with_indices`](crate::pool::MaxPool::forward_with_indices).
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference::pool};
/// let x = TensorView::from_slice(&[1.0f32, 5.0, 5.0], [1, 1, 3])?;
/// let (y, indices) = pool::maximum(x, &[pool::adaptive(3, 1)])?;
/// assert_eq!((y.as_slice(), indices.as_slice()), (&[5.0][..], &[1][..]));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn maximum<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    axes: &[Axis],
) -> Result<(Tensor<f64, N>, Tensor<u32, N>)> {
    let outputs = shape(x.shape(), axes);
    let mut found = Vec::new();
    let y = Tensor::from_fn(outputs, |output| {
        let (mut best, mut place) = (f64::NEG_INFINITY, u32::MAX);
        taps(axes, output, |tap| {
            let Some(index) = tap else { return };
            let value = at(x, index);
            if place == u32::MAX || value > best || (value.is_nan() && !best.is_nan()) {
                let flat = (2..N).fold(0, |flat, axis| flat * x.shape()[axis] + index[axis]);
                (best, place) = (value, flat as u32);
            }
        });
        found.push(place);
        best
    })?;
    Ok((y, Tensor::from_slice(&found, outputs)?))
}

/// The twin of [`MaxPool::backward`](crate::pool::MaxPool::backward), for an image of this shape.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) where shapes differ, [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference::pool};
/// let dy = TensorView::from_slice(&[2.0f32], [1, 1, 1])?;
/// let indices = TensorView::from_slice(&[1], [1, 1, 1])?;
/// assert_eq!(pool::maximum_backward(dy, indices, [1, 1, 3])?.as_slice(), [0.0, 2.0, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn maximum_backward<T: Element, const N: usize>(
    dy: TensorView<'_, T, N>,
    indices: TensorView<'_, u32, N>,
    image: [usize; N],
) -> Result<Tensor<f64, N>> {
    expect("reference::pool::maximum_backward", "indices", &indices.shape(), &dy.shape())?;
    let mut dx = Tensor::zeros(image)?;
    each(dy.shape(), |output| {
        let mut rest = indices.get(output).map_or(usize::MAX, |&index| index as usize);
        let mut index = output;
        for axis in (2..N).rev() {
            index[axis] = rest % image[axis].max(1);
            rest /= image[axis].max(1);
        }
        if rest == 0
            && let Some(dx) = dx.get_mut(index)
        {
            *dx += at(dy, output);
        }
    })?;
    Ok(dx)
}

/// How many taps of a window count.
fn count<const N: usize>(axes: &[Axis], output: [usize; N], with_padding: bool) -> f64 {
    let mut count = 0.0;
    taps(axes, output, |tap| count += f64::from(u8::from(tap.is_some() || with_padding)));
    count
}

/// The twin of [`AveragePool::forward`](crate::pool::AveragePool::forward).
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference::pool};
/// let x = TensorView::from_slice(&[1.0f32, 5.0, 6.0], [1, 1, 3])?;
/// assert_eq!(pool::average(x, &[pool::adaptive(3, 1)], true)?.as_slice(), [4.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn average<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    axes: &[Axis],
    with_padding: bool,
) -> Result<Tensor<f64, N>> {
    Tensor::from_fn(shape(x.shape(), axes), |output| {
        let (mut sum, mut any) = (0.0, false);
        taps(axes, output, |tap| {
            sum += tap.map_or(0.0, |index| at(x, index));
            any |= tap.is_some();
        });
        if any { sum / count(axes, output, with_padding) } else { 0.0 }
    })
}

/// The twin of [`AveragePool::backward`](crate::pool::AveragePool::backward), for an image of this shape.
///
/// # Errors
/// As [`maximum_backward`].
///
/// ```
/// use tilewise::{TensorView, reference::pool};
/// let dy = TensorView::from_slice(&[6.0f32], [1, 1, 1])?;
/// let dx = pool::average_backward(dy, &[pool::adaptive(3, 1)], true, [1, 1, 3])?;
/// assert_eq!(dx.as_slice(), [2.0; 3]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn average_backward<T: Element, const N: usize>(
    dy: TensorView<'_, T, N>,
    axes: &[Axis],
    with_padding: bool,
    image: [usize; N],
) -> Result<Tensor<f64, N>> {
    expect("reference::pool::average_backward", "dy", &dy.shape(), &shape(image, axes))?;
    let mut dx = Tensor::zeros(image)?;
    each(dy.shape(), |output| {
        let share = at(dy, output) / count(axes, output, with_padding);
        taps(axes, output, |tap| {
            if let Some(dx) = tap.and_then(|index| dx.get_mut(index)) {
                *dx += share;
            }
        });
    })?;
    Ok(dx)
}

/// The twin of [`LpPool::forward`](crate::pool::LpPool::forward).
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference::pool};
/// let x = TensorView::from_slice(&[3.0f32, -4.0], [1, 1, 2])?;
/// assert_eq!(pool::norm(x, &[pool::adaptive(2, 1)], 2.0)?.as_slice(), [5.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn norm<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    axes: &[Axis],
    p: f64,
) -> Result<Tensor<f64, N>> {
    Tensor::from_fn(shape(x.shape(), axes), |output| {
        let mut sum = 0.0;
        taps(axes, output, |tap| sum += tap.map_or(0.0, |index| at(x, index).abs().powf(p)));
        sum.powf(1.0 / p)
    })
}

/// The twin of [`LpPool::backward`](crate::pool::LpPool::backward).
///
/// # Errors
/// As [`maximum_backward`].
///
/// ```
/// use tilewise::{TensorView, reference::pool};
/// let x = TensorView::from_slice(&[3.0f32, -4.0], [1, 1, 2])?;
/// let dy = TensorView::from_slice(&[5.0f32], [1, 1, 1])?;
/// assert_eq!(pool::norm_backward(x, dy, &[pool::adaptive(2, 1)], 2.0)?.as_slice(), [3.0, -4.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn norm_backward<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
    axes: &[Axis],
    p: f64,
) -> Result<Tensor<f64, N>> {
    let y = norm(x, axes, p)?;
    expect("reference::pool::norm_backward", "dy", &dy.shape(), &y.shape())?;
    let mut dx = Tensor::zeros(x.shape())?;
    each(dy.shape(), |output| {
        let norm = at(y.view(), output);
        taps(axes, output, |tap| {
            let Some(index) = tap else { return };
            let value = at(x, index);
            if norm != 0.0
                && value != 0.0
                && let Some(dx) = dx.get_mut(index)
            {
                *dx += at(dy, output) * value.signum() * (value.abs() / norm).powf(p - 1.0);
            }
        });
    })?;
    Ok(dx)
}

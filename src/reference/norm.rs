//! Normalisation: one formula, over sets that differ.

use super::{at, expect};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView};

/// Over which elements the statistics are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// A row of `[…, n]`.
    Layer,
    /// A row of `[…, n]`, the mean taken as 0.
    Rms,
    /// A channel of all samples, `[batch, channels, …]`.
    Batch,
    /// A channel of one sample.
    Instance,
    /// The channels of one sample, in this many groups.
    Group(usize),
}

impl Norm {
    /// The axis along which scale and shift lie.
    fn axis(self, rank: usize) -> usize {
        match self {
            Norm::Layer | Norm::Rms => rank.saturating_sub(1),
            _ => 1,
        }
    }

    /// How many sets there are, and the one that an element belongs to.
    fn set(self, shape: &[usize], index: &[usize]) -> (usize, usize) {
        let axis = self.axis(shape.len());
        let group =
            |groups: usize| (shape[0] * groups, index[0] * groups + index[1] * groups / shape[1].max(1));
        match self {
            Norm::Layer | Norm::Rms => {
                let place = |(count, set): (usize, usize), axis: usize| {
                    (count * shape[axis], set * shape[axis] + index[axis])
                };
                (0..axis).fold((1, 0), place)
            }
            Norm::Batch => (shape[1], index[1]),
            Norm::Instance => group(shape[1]),
            Norm::Group(groups) => group(groups),
        }
    }

    fn check(self, op: &'static str, shape: &[usize]) -> Result<()> {
        let rank = if matches!(self, Norm::Layer | Norm::Rms) { 1 } else { 2 };
        if shape.len() < rank {
            return Err(Error::argument(op, "rank of x", shape.len(), "an axis for the parameters"));
        }
        match self {
            Norm::Group(groups) if !shape[1].is_multiple_of(groups) => {
                Err(Error::argument(op, "groups", groups, "a divisor of the number of channels"))
            }
            _ => Ok(()),
        }
    }
}

/// The indices of a shape, in row-major order.
fn indices<const N: usize>(shape: [usize; N]) -> impl Iterator<Item = [usize; N]> {
    (0..shape.iter().product()).map(move |mut number: usize| {
        let mut index = [0; N];
        for axis in (0..N).rev() {
            (index[axis], number) = (number % shape[axis], number / shape[axis]);
        }
        index
    })
}

/// The means of `value` over the sets.
fn means<const N: usize>(norm: Norm, shape: [usize; N], value: impl Fn([usize; N]) -> f64) -> Vec<f64> {
    let mut sums = Vec::new();
    for index in indices(shape) {
        let (count, set) = norm.set(&shape, &index);
        sums.resize(count, (0.0, 0));
        sums[set].0 += value(index);
        sums[set].1 += 1;
    }
    sums.into_iter().map(|(sum, count)| sum / f64::from(count)).collect()
}

/// The mean and the biased variance of each set: of each row, channel, channel of a sample or group of a sample, in
/// row-major order.
///
/// # Errors
/// [`Error::Argument`] where `x` has too few axes or the groups do not divide the channels.
///
/// ```
/// use tilewise::{TensorView, reference::norm::{Norm, statistics}};
/// let x = TensorView::from_slice(&[1.0, 10.0, 3.0, 10.0], [2, 2])?;
/// assert_eq!(statistics(Norm::Batch, x)?, (vec![2.0, 10.0], vec![1.0, 0.0]));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn statistics<T: Element, const N: usize>(
    norm: Norm,
    x: TensorView<'_, T, N>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let shape = x.shape();
    norm.check("reference::norm::statistics", &shape)?;
    let mut mean = means(norm, shape, |index| at(x, index));
    if norm == Norm::Rms {
        mean.fill(0.0);
    }
    let variance = means(norm, shape, |index| (at(x, index) - mean[norm.set(&shape, &index).1]).powi(2));
    Ok((mean, variance))
}

/// x̂ = (x − μ)/√(σ² + ε) with these statistics.
fn standardized<T: Element, const N: usize>(
    norm: Norm,
    x: TensorView<'_, T, N>,
    epsilon: f64,
    (mean, variance): (&[f64], &[f64]),
) -> Result<Tensor<f64, N>> {
    Tensor::from_fn(x.shape(), |index| {
        let (_, set) = norm.set(&x.shape(), &index);
        (at(x, index) - mean[set]) / (variance[set] + epsilon).sqrt()
    })
}

/// y = x̂ ⊙ scale + shift, the statistics being those of `x`, or constants where they are given: one mean and one
/// variance for each set.
///
/// # Errors
/// [`Error::Shape`] where shapes do not fit, otherwise as [`statistics`]; [`Error::Alloc`] where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference::norm::{self, Norm}};
/// let x = TensorView::from_slice(&[1.0, 3.0, 5.0, 5.0], [2, 2])?;
/// let y = norm::forward(Norm::Layer, x, None, None, 0.25, None)?;
/// assert_eq!(y.as_slice()[2..], [0.0, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn forward<T: Element, const N: usize>(
    norm: Norm,
    x: TensorView<'_, T, N>,
    scale: Option<TensorView<'_, T, 1>>,
    shift: Option<TensorView<'_, T, 1>>,
    epsilon: f64,
    constants: Option<(&[f64], &[f64])>,
) -> Result<Tensor<f64, N>> {
    let (op, shape) = ("reference::norm::forward", x.shape());
    let found = statistics(norm, x)?;
    let axis = norm.axis(N);
    for (arg, vector) in [("scale", scale), ("shift", shift)] {
        vector.map_or(Ok(()), |vector| expect(op, arg, &vector.shape(), &[shape[axis]]))?;
    }
    let hat = standardized(norm, x, epsilon, constants.unwrap_or((&found.0, &found.1)))?;
    Tensor::from_fn(shape, |index| {
        let parameter = [index[axis]];
        at(hat.view(), index) * scale.map_or(1.0, |scale| at(scale, parameter))
            + shift.map_or(0.0, |shift| at(shift, parameter))
    })
}

/// (dx, dscale, dshift) of [`forward`].
///
/// # Errors
/// As [`forward`].
///
/// ```
/// use tilewise::{TensorView, reference::norm::{self, Norm}};
/// let x = TensorView::from_slice(&[1.0, 3.0], [1, 2])?;
/// let dy = TensorView::from_slice(&[0.5, 0.25], [1, 2])?;
/// let (dx, dscale, _) = norm::backward(Norm::Layer, x, None, dy, 0.0, None)?;
/// assert_eq!((dx.as_slice(), dscale.as_slice()), (&[0.0, 0.0][..], &[-0.5, 0.25][..]));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward<T: Element, const N: usize>(
    norm: Norm,
    x: TensorView<'_, T, N>,
    scale: Option<TensorView<'_, T, 1>>,
    dy: TensorView<'_, T, N>,
    epsilon: f64,
    constants: Option<(&[f64], &[f64])>,
) -> Result<(Tensor<f64, N>, Tensor<f64, 1>, Tensor<f64, 1>)> {
    let (op, shape) = ("reference::norm::backward", x.shape());
    let found = statistics(norm, x)?;
    let axis = norm.axis(N);
    scale.map_or(Ok(()), |scale| expect(op, "scale", &scale.shape(), &[shape[axis]]))?;
    expect(op, "dy", &dy.shape(), &shape)?;
    let (mean, variance) = constants.unwrap_or((&found.0, &found.1));
    let hat = standardized(norm, x, epsilon, (mean, variance))?;
    let g = |index: [usize; N]| at(dy, index) * scale.map_or(1.0, |scale| at(scale, [index[axis]]));
    let mut mean_g = means(norm, shape, g);
    let mut mean_product = means(norm, shape, |index| g(index) * at(hat.view(), index));
    if norm == Norm::Rms || constants.is_some() {
        mean_g.fill(0.0);
    }
    if constants.is_some() {
        mean_product.fill(0.0);
    }
    let dx = Tensor::from_fn(shape, |index| {
        let (_, set) = norm.set(&shape, &index);
        (g(index) - mean_g[set] - at(hat.view(), index) * mean_product[set])
            / (variance[set] + epsilon).sqrt()
    })?;
    let (mut dscale, mut dshift) = (Tensor::zeros([shape[axis]])?, Tensor::zeros([shape[axis]])?);
    for index in indices(shape) {
        dscale.as_mut_slice()[index[axis]] += at(dy, index) * at(hat.view(), index);
        dshift.as_mut_slice()[index[axis]] += at(dy, index);
    }
    Ok((dx, dscale, dshift))
}

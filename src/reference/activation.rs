//! Activations and their derivatives, one `f64` at a time.

use super::at;
use super::vecmath::{normal, sigmoid};
use crate::activation::Activation;
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// u = √(2/π)·(x + 0.044715·x³) and its derivative.
fn tanh_form(x: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    (root * (x + 0.044715 * x * x * x), root * (1.0 + 3.0 * 0.044715 * x * x))
}

/// f(x). At −∞ the limit.
///
/// ```
/// use tilewise::{activation::Activation, reference::activation};
/// assert_eq!(activation::value(Activation::HardSwish, 6.0), 6.0);
/// ```
pub fn value(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu if x.is_nan() => x,
        Activation::Relu => x.max(0.0),
        Activation::LeakyRelu { slope } => {
            if x > 0.0 {
                x
            } else {
                slope * x
            }
        }
        Activation::Elu { alpha } => {
            if x > 0.0 {
                x
            } else {
                alpha * x.exp_m1()
            }
        }
        Activation::ThresholdedRelu { threshold } => {
            if x <= threshold {
                0.0
            } else {
                x
            }
        }
        Activation::Selu { alpha, scale } => scale * value(Activation::Elu { alpha }, x),
        Activation::Celu { alpha } => {
            if x > 0.0 {
                x
            } else {
                alpha * (x / alpha).exp_m1()
            }
        }
        Activation::Gelu
        | Activation::GeluTanh
        | Activation::Silu
        | Activation::Mish
        | Activation::HardSwish
            if x == f64::NEG_INFINITY =>
        {
            -0.0
        }
        Activation::Gelu => x * normal(x),
        // (1 + tanh u)/2 = σ(2u), which does not cancel below 0.
        Activation::GeluTanh => x * sigmoid(2.0 * tanh_form(x).0),
        Activation::Silu => x * sigmoid(x),
        Activation::Swish { beta } if x.is_infinite() && beta * x < 0.0 => 0.0,
        Activation::Swish { beta } => x * sigmoid(beta * x),
        Activation::Mish => x * value(Activation::Softplus, x).tanh(),
        Activation::Sigmoid => sigmoid(x),
        Activation::Tanh => x.tanh(),
        Activation::ScaledTanh { alpha, beta } => alpha * (beta * x).tanh(),
        Activation::Affine { alpha, beta } => alpha * x + beta,
        // ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|).
        Activation::Softplus if x.is_nan() => x,
        Activation::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Activation::Softsign if x.is_infinite() => x.signum(),
        Activation::Softsign => x / (1.0 + x.abs()),
        Activation::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
        Activation::HardSwish => x * ((x + 3.0).clamp(0.0, 6.0) / 6.0),
        Activation::Sign if x.is_nan() => x,
        Activation::Sign => {
            if x < 0.0 {
                -1.0
            } else {
                1.0
            }
        }
        Activation::Clip { .. } if x.is_nan() => x,
        Activation::Clip { low, high } => x.min(high).max(low),
    }
}

/// f′(x), one-sided where f has a corner, as the table of [`crate::activation`] says.
///
/// ```
/// use tilewise::{activation::Activation, reference::activation};
/// assert_eq!(activation::derivative(Activation::Relu, 0.0), 0.0);
/// ```
pub fn derivative(activation: Activation, x: f64) -> f64 {
    // σ(x)·(1 − σ(x)), with 1 − σ(x) = σ(−x).
    let bell = |x: f64| sigmoid(x) * sigmoid(-x);
    match activation {
        Activation::Identity => 1.0,
        Activation::Relu => {
            if x <= 0.0 {
                0.0
            } else {
                1.0
            }
        }
        Activation::LeakyRelu { slope } => {
            if x > 0.0 {
                1.0
            } else {
                slope
            }
        }
        Activation::Elu { alpha } => {
            if x > 0.0 {
                1.0
            } else {
                alpha * x.exp()
            }
        }
        Activation::ThresholdedRelu { threshold } => {
            if x <= threshold {
                0.0
            } else {
                1.0
            }
        }
        Activation::Selu { alpha, scale } => scale * derivative(Activation::Elu { alpha }, x),
        Activation::Celu { alpha } => {
            if x > 0.0 {
                1.0
            } else {
                (x / alpha).exp()
            }
        }
        Activation::Gelu | Activation::GeluTanh | Activation::Silu | Activation::Mish if x.is_infinite() => {
            if x > 0.0 {
                1.0
            } else {
                0.0
            }
        }
        Activation::Gelu => normal(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt(),
        Activation::GeluTanh => {
            let (u, slope) = tanh_form(x);
            sigmoid(2.0 * u) + x * bell(2.0 * u) * 2.0 * slope
        }
        Activation::Silu => sigmoid(x) + x * bell(x),
        Activation::Swish { beta } => derivative(Activation::Silu, beta * x),
        // 1 − tanh² by e^(−2·softplus), which does not cancel: 4u/(1 + u)².
        Activation::Mish => {
            let softplus = value(Activation::Softplus, x);
            let u = (-2.0 * softplus).exp();
            softplus.tanh() + x * sigmoid(x) * 4.0 * u / ((1.0 + u) * (1.0 + u))
        }
        Activation::Sigmoid => bell(x),
        Activation::Tanh => 4.0 * bell(2.0 * x),
        Activation::ScaledTanh { alpha, beta } => alpha * beta * 4.0 * bell(2.0 * beta * x),
        Activation::Affine { alpha, .. } => alpha,
        Activation::Softplus => sigmoid(x),
        Activation::Softsign => 1.0 / (1.0 + x.abs()) / (1.0 + x.abs()),
        Activation::HardSigmoid { alpha, beta } => {
            let line = alpha * x + beta;
            if line <= 0.0 || line >= 1.0 { 0.0 } else { alpha }
        }
        Activation::HardSwish if x <= -3.0 => 0.0,
        Activation::HardSwish if x >= 3.0 => 1.0,
        Activation::HardSwish => (x + 1.5) / 3.0,
        Activation::Sign => 0.0,
        Activation::Clip { low, high } => {
            if x <= low || x >= high {
                0.0
            } else {
                1.0
            }
        }
    }
}

/// The twin of [`crate::activation::forward`].
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{Tensor, activation::Activation, reference::activation};
/// let x = Tensor::<f32, 1>::from_slice(&[-1.0, 1.0], [2])?;
/// assert_eq!(activation::forward(Activation::Sign, x.view())?.as_slice(), [-1.0, 1.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn forward<T: Element, const N: usize>(
    activation: Activation,
    x: TensorView<'_, T, N>,
) -> Result<Tensor<T, N>> {
    Tensor::from_fn(x.shape(), |at| {
        T::from_f64(value(activation, x.get(at).copied().unwrap_or(T::NAN).to_f64()))
    })
}

/// The twin of [`crate::activation::backward`].
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{Tensor, activation::Activation, reference::activation};
/// let x = Tensor::<f32, 1>::from_slice(&[-1.0, 1.0], [2])?;
/// let dx = activation::backward(Activation::Relu, x.view(), x.view())?;
/// assert_eq!(dx.as_slice(), [0.0, 1.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward<T: Element, const N: usize>(
    activation: Activation,
    x: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
) -> Result<Tensor<T, N>> {
    Tensor::from_fn(x.shape(), |at| {
        let at = |view: TensorView<'_, T, N>| view.get(at).copied().unwrap_or(T::NAN).to_f64();
        T::from_f64(at(dy) * derivative(activation, at(x)))
    })
}

/// The twin of [`crate::activation::prelu`].
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{Tensor, reference::activation};
/// let x = Tensor::<f32, 2>::from_slice(&[-1.0, 2.0], [1, 2])?;
/// let slope = Tensor::from_slice(&[0.5], [1, 1])?;
/// assert_eq!(activation::prelu(x.view(), slope.view())?.as_slice(), [-0.5, 2.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn prelu<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    slope: TensorView<'_, T, N>,
) -> Result<Tensor<f64, N>> {
    Tensor::from_fn(x.shape(), |index| {
        let value = at(x, index);
        if value > 0.0 { value } else { at(slope, served(slope.shape(), index)) * value }
    })
}

/// The twin of [`crate::activation::prelu_backward`]: dx and the gradient of the slope.
///
/// # Errors
/// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
///
/// ```
/// use tilewise::{Tensor, reference::activation};
/// let x = Tensor::<f32, 2>::from_slice(&[-3.0, 2.0], [1, 2])?;
/// let slope = Tensor::from_slice(&[0.5], [1, 1])?;
/// let (dx, d_slope) = activation::prelu_backward(x.view(), slope.view(), x.view())?;
/// assert_eq!((dx.as_slice(), d_slope.as_slice()), (&[-1.5, 2.0][..], &[9.0][..]));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn prelu_backward<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    slope: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
) -> Result<(Tensor<f64, N>, Tensor<f64, N>)> {
    let mut d_slope = Tensor::<f64, N>::zeros(slope.shape())?;
    let dx = Tensor::from_fn(x.shape(), |index| {
        let (value, dy, place) = (at(x, index), at(dy, index), served(slope.shape(), index));
        if value > 0.0 {
            return dy;
        }
        if let Some(sum) = d_slope.get_mut(place) {
            *sum += dy * value;
        }
        at(slope, place) * dy
    })?;
    Ok((dx, d_slope))
}

/// The slope that an element gets: axes of size 1 serve all indices.
fn served<const N: usize>(slope: [usize; N], index: [usize; N]) -> [usize; N] {
    std::array::from_fn(|axis| if slope[axis] == 1 { 0 } else { index[axis] })
}

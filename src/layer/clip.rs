//! Gradient clipping.

use super::Parameters;
use crate::element::Element;
use crate::error::{Error, Result};

/// Independent partial sums of a norm.
const LANES: usize = 8;

/// Scales all gradients by one factor so that their common L2 norm is at most `max_norm`, and gives the norm they
/// had before.
///
/// The factor is min(1, max_norm / (norm + 10⁻⁶)), as in PyTorch. A norm that is NaN or infinite is given back with
/// the gradients left as they are, where PyTorch makes all of them NaN, or those that are infinite NaN and the others 0:
/// look at it before the step. The sum of squares is made in `f64`, in the parameters' order; where it leaves the range
/// of `f64`, which the norm does not, once more with the gradients scaled by a power of two. Sources: Razvan Pascanu,
/// Tomas Mikolov and Yoshua Bengio, "On the difficulty of training recurrent neural networks", ICML 2013; James Blue, "A
/// portable Fortran program to find the Euclidean norm of a vector", ACM TOMS 4 (1978), for the scale.
///
/// # Errors
/// [`Error::Argument`] where `max_norm` is negative or NaN.
///
/// ```
/// use tilewise::layer::{Linear, Parameters, clip_gradient_norm};
/// use tilewise::Tensor;
/// let mut layer = Linear::from_parts(Tensor::<f64, 2>::zeros([2, 1])?, None)?;
/// layer.visit_mut(&mut |_, weight| weight.gradient_mut().copy_from_slice(&[3.0, 4.0]));
/// assert_eq!(clip_gradient_norm(&mut layer, 1.0)?, 5.0);
/// assert!((layer.weight().gradient()[1] - 0.8).abs() < 1e-6);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn clip_gradient_norm<T: Element>(parameters: &mut dyn Parameters<T>, max_norm: f64) -> Result<f64> {
    check("clip_gradient_norm", "max_norm", max_norm)?;
    let norm = norm(parameters);
    let factor = max_norm / (norm + 1e-6);
    if norm.is_finite() && factor < 1.0 {
        let factor = T::from_f64(factor);
        parameters
            .visit_mut(&mut |_, parameter| parameter.gradient_mut().iter_mut().for_each(|g| *g *= factor));
    }
    Ok(norm)
}

/// Limits every element of all gradients to −limit … limit. A NaN stays.
///
/// # Errors
/// [`Error::Argument`] where `limit` is negative or NaN.
///
/// ```
/// use tilewise::layer::{Linear, Parameters, clip_gradient_value};
/// use tilewise::Tensor;
/// let mut layer = Linear::from_parts(Tensor::<f64, 2>::zeros([2, 1])?, None)?;
/// layer.visit_mut(&mut |_, weight| weight.gradient_mut().copy_from_slice(&[3.0, -0.5]));
/// clip_gradient_value(&mut layer, 1.0)?;
/// assert_eq!(layer.weight().gradient(), [1.0, -0.5]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn clip_gradient_value<T: Element>(parameters: &mut dyn Parameters<T>, limit: f64) -> Result<()> {
    check("clip_gradient_value", "limit", limit)?;
    let limit = T::from_f64(limit);
    parameters.visit_mut(&mut |_, parameter| {
        for g in parameter.gradient_mut() {
            if *g > limit {
                *g = limit;
            } else if *g < -limit {
                *g = -limit;
            }
        }
    });
    Ok(())
}

fn check(op: &'static str, arg: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 { Ok(()) } else { Err(Error::argument(op, arg, value, "at least 0")) }
}

/// The L2 norm of all gradients. Below 2⁻⁹⁷⁰ a sum may lack squares that were rounded to 0 and count; scaled by 2⁶⁰⁰ either
/// way, all squares that count are far from both ends of the range.
fn norm<T: Element>(parameters: &dyn Parameters<T>) -> f64 {
    let scaled = |scale: f64| {
        let mut sum = 0.0;
        parameters.visit(&mut |_, parameter| sum += sum_of_squares(parameter.gradient(), scale));
        f64::sqrt(sum) / scale
    };
    match scaled(1.0) {
        f64::INFINITY => scaled(2f64.powi(-600)),
        norm if norm < 2f64.powi(-485) => scaled(2f64.powi(600)),
        norm => norm,
    }
}

/// Σ (scale · value)².
fn sum_of_squares<T: Element>(values: &[T], scale: f64) -> f64 {
    let mut lanes = [0.0; LANES];
    for run in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(run) {
            let value = scale * value.to_f64();
            *lane += value * value;
        }
    }
    lanes.iter().sum()
}

//! Elementwise activation functions and their derivatives.
//!
//! | [`Activation`] | y = f(x) | f′(x) |
//! |---|---|---|
//! | `Identity` | x | 1 |
//! | `Relu` | max(x, 0) | 0 for x ≤ 0, else 1 |
//! | `LeakyRelu` | x for x > 0, else slope·x | 1 for x > 0, else slope |
//! | `ThresholdedRelu` | x for x > θ, else 0 | 1 for x > θ, else 0 |
//! | `Elu` | x for x > 0, else α·(eˣ − 1) | 1 for x > 0, else α·eˣ |
//! | `Selu` | λ·x for x > 0, else λ·α·(eˣ − 1) | λ for x > 0, else λ·α·eˣ |
//! | `Celu` | x for x > 0, else α·(e^(x/α) − 1) | 1 for x > 0, else e^(x/α) |
//! | `Gelu` | x·Φ(x) = x/2·(1 + erf(x/√2)) | Φ(x) + x·φ(x) |
//! | `GeluTanh` | x/2·(1 + tanh u), u = √(2/π)·(x + 0.044715·x³) | σ + x·σ·(1 − σ)·2u′, σ = σ(2u) |
//! | `Silu` | x·σ(x) | σ·(1 + x·(1 − σ)) |
//! | `Swish` | x·σ(βx) | σ(βx)·(1 + βx·(1 − σ(βx))) |
//! | `Mish` | x·t, t = tanh ln(1 + eˣ) | t + x·(1 − t²)·σ(x) |
//! | `Sigmoid` | σ(x) = 1/(1 + e⁻ˣ) | σ·(1 − σ) |
//! | `Tanh` | tanh x | 1 − tanh² x |
//! | `ScaledTanh` | α·tanh(β·x) | α·β·(1 − tanh²(β·x)) |
//! | `Affine` | α·x + β | α |
//! | `Softplus` | ln(1 + eˣ) | σ(x) |
//! | `Softsign` | x/(1 + \|x\|) | 1/(1 + \|x\|)² |
//! | `HardSigmoid` | max(0, min(1, α·x + β)) | α for 0 < α·x + β < 1, else 0 |
//! | `HardSwish` | x·max(0, min(6, x + 3))/6 | 0 for x ≤ −3, 1 for x ≥ 3, else (2x + 3)/6 |
//! | `Sign` | −1 for x < 0, else +1 | 0 |
//! | `Clip` | max(low, min(high, x)) | 1 for low < x < high, else 0 |
//!
//! [`prelu`] is the leaky ReLU with a tensor of slopes, which have a gradient too.
//!
//! Results are within a few ulp also in the tails, where the textbook's form of a formula overflows or cancels, but for
//! three things. A tail that falls like e^z is as near as z is known where that is rounded, some |z|·ε: −x²/2 of GELU
//! ((4 + 2x²)·ε), 2u of its tanh form, βx of swish, x/α of CELU's derivative. Where σ(x) is subnormal, x below −87 in `f32`
//! and −708 in `f64`, SiLU, swish and mish have no more digits than it and are off by about |x| of the least numbers,
//! some 50 ulp in `f32`. And where terms of two signs cancel, the error is relative to them, not to what is left: in
//! α·x + β, alone or bounded, and in the derivatives of GELU, its tanh form, SiLU, swish and mish around their zeros, that
//! of GELU at −0.7518.
//!
//! At ±∞ results are the limits: GELU, SiLU, swish, mish and hard swish of −∞ are ±0; but with a parameter that multiplies x
//! and is 0, as a slope may be, they are 0·∞, NaN. NaN gives NaN, for [`Relu`](Activation::Relu) and `Clip` too; their
//! derivative at NaN is 1.
//!
//! Sources: Clevert et al. 2015 (ELU), Hendrycks and Gimpel 2016 (GELU and its tanh form), Elfwing et al. 2017
//! and Ramachandran et al. 2017 (SiLU, swish), Klambauer et al. 2017 (SELU), Barron 2017 (CELU), Konda et al. 2014
//! (thresholded ReLU), Bergstra et al. 2009 (softsign), Misra 2019 (mish), Howard et al. 2019 (hard swish), Krizhevsky
//! 2010 (ReLU6).
#![forbid(unsafe_code)]

mod kernel;
mod lane;
mod prelu;
#[cfg(test)]
mod tests;

pub(crate) use self::kernel::Activations;
pub(crate) use self::prelu::Prelus;
pub use self::prelu::{prelu, prelu_backward};

use self::kernel::{Backward, Forward};
use self::lane::Lane;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::simd::{MOST_LANES, Simd};
use crate::tensor::{self, TensorView, TensorViewMut};
use crate::vecmath::map_vectors;

/// An elementwise function; the [module](self) has the formulas.
///
/// ```
/// use tilewise::{Tensor, activation::{self, Activation}};
/// let x = Tensor::<f32, 1>::from_slice(&[-2.0, 0.0, 3.0], [3])?;
/// let mut y = Tensor::zeros([3])?;
/// activation::forward(Activation::LeakyRelu { slope: 0.5 }, x.view(), y.view_mut())?;
/// assert_eq!(y.as_slice(), [-1.0, 0.0, 3.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// x.
    #[default]
    Identity,
    /// max(x, 0).
    Relu,
    /// x for x > 0, else slope·x.
    LeakyRelu {
        /// The slope below 0, often 0.01.
        slope: f64,
    },
    /// x for x > θ, else 0.
    ThresholdedRelu {
        /// θ, not negative as a rule; at it the result is 0.
        threshold: f64,
    },
    /// x for x > 0, else α·(eˣ − 1).
    Elu {
        /// The limit at −∞ is −α; often 1.
        alpha: f64,
    },
    /// λ·x for x > 0, else λ·α·(eˣ − 1); [`selu`](Activation::selu) has the constants.
    Selu {
        /// The limit at −∞ is −λ·α.
        alpha: f64,
        /// λ.
        scale: f64,
    },
    /// x for x > 0, else α·(e^(x/α) − 1), smooth for every α.
    Celu {
        /// The limit at −∞ is −α; positive.
        alpha: f64,
    },
    /// x·Φ(x), Φ the distribution function of the normal distribution.
    Gelu,
    /// The approximation of [`Gelu`](Activation::Gelu) by tanh.
    GeluTanh,
    /// x·σ(x), the swish with β = 1.
    Silu,
    /// x·σ(βx).
    Swish {
        /// The steepness, finite: 0 gives x/2, and what is large nearly max(x, 0).
        beta: f64,
    },
    /// x·tanh ln(1 + eˣ).
    Mish,
    /// σ(x) = 1/(1 + e⁻ˣ).
    Sigmoid,
    /// tanh x.
    Tanh,
    /// α·tanh(β·x).
    ScaledTanh {
        /// The limit at ∞.
        alpha: f64,
        /// The steepness.
        beta: f64,
    },
    /// α·x + β.
    Affine {
        /// The slope.
        alpha: f64,
        /// The value at 0.
        beta: f64,
    },
    /// ln(1 + eˣ).
    Softplus,
    /// x/(1 + |x|).
    Softsign,
    /// max(0, min(1, α·x + β)); [`hard_sigmoid`](Activation::hard_sigmoid) has the usual constants.
    HardSigmoid {
        /// The slope.
        alpha: f64,
        /// The value at 0.
        beta: f64,
    },
    /// x·max(0, min(6, x + 3))/6.
    HardSwish,
    /// −1 for x < 0, else +1, as the perceptron has it: sign(±0) = +1.
    Sign,
    /// max(low, min(high, x)); [`relu6`](Activation::relu6) is one.
    Clip {
        /// The least value.
        low: f64,
        /// The largest, unless `low` is larger.
        high: f64,
    },
}

impl Activation {
    /// `HardSigmoid` with α = 1/6, β = 1/2, which turns at ±3. (ONNX has α = 0.2.)
    ///
    /// ```
    /// use tilewise::activation::Activation;
    /// assert_eq!(Activation::hard_sigmoid(), Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 });
    /// ```
    pub const fn hard_sigmoid() -> Self {
        Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }
    }

    /// `Selu` with the α and λ that keep mean 0 and variance 1.
    ///
    /// ```
    /// use tilewise::{Tensor, activation::{self, Activation}};
    /// let mut x = Tensor::<f64, 1>::from_slice(&[1.0, -1e3], [2])?;
    /// activation::in_place(Activation::selu(), x.view_mut())?;
    /// assert!((x.as_slice()[0] - 1.0507).abs() < 1e-4 && (x.as_slice()[1] + 1.7581).abs() < 1e-4);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub const fn selu() -> Self {
        Activation::Selu { alpha: 1.673_263_242_354_377_2, scale: 1.050_700_987_355_480_5 }
    }

    /// `Clip` from 0 to 6: the activation of MobileNet.
    ///
    /// ```
    /// use tilewise::activation::Activation;
    /// assert_eq!(Activation::relu6(), Activation::Clip { low: 0.0, high: 6.0 });
    /// ```
    pub const fn relu6() -> Self {
        Activation::Clip { low: 0.0, high: 6.0 }
    }

    /// One of the activations of ONNX's recurrent operators by its name, whatever its case: Affine, Elu, HardSigmoid,
    /// LeakyRelu, Relu, ScaledTanh, Sigmoid, Softplus, Softsign, Tanh or ThresholdedRelu. Parameters that are not given have
    /// ONNX's defaults, which for `HardSigmoid` are α = 0.2 and β = 0.5.
    ///
    /// # Errors
    /// [`Error::Argument`] for any other name.
    ///
    /// ```
    /// use tilewise::activation::Activation;
    /// let activation = Activation::from_onnx("ScaledTanh", Some(1.7159), Some(2.0 / 3.0))?;
    /// assert_eq!(activation, Activation::ScaledTanh { alpha: 1.7159, beta: 2.0 / 3.0 });
    /// assert_eq!(Activation::from_onnx("leakyrelu", None, None)?, Activation::LeakyRelu { slope: 0.01 });
    /// assert!(Activation::from_onnx("Mish", None, None).is_err());
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn from_onnx(name: &str, alpha: Option<f64>, beta: Option<f64>) -> Result<Self> {
        let (a, b) = (|usual| alpha.unwrap_or(usual), |usual| beta.unwrap_or(usual));
        Ok(match name.to_ascii_lowercase().as_str() {
            "affine" => Activation::Affine { alpha: a(1.0), beta: b(0.0) },
            "elu" => Activation::Elu { alpha: a(1.0) },
            "hardsigmoid" => Activation::HardSigmoid { alpha: a(0.2), beta: b(0.5) },
            "leakyrelu" => Activation::LeakyRelu { slope: a(0.01) },
            "relu" => Activation::Relu,
            "scaledtanh" => Activation::ScaledTanh { alpha: a(1.0), beta: b(1.0) },
            "sigmoid" => Activation::Sigmoid,
            "softplus" => Activation::Softplus,
            "softsign" => Activation::Softsign,
            "tanh" => Activation::Tanh,
            "thresholdedrelu" => Activation::ThresholdedRelu { threshold: a(1.0) },
            _ => {
                let expected = "an activation of ONNX's recurrent operators";
                return Err(Error::argument("activation::from_onnx", "name", name, expected));
            }
        })
    }

    /// The least and the largest value of an activation that only bounds x.
    pub(crate) fn bounds(self) -> Option<[f64; 2]> {
        match self {
            Activation::Identity => Some([f64::NEG_INFINITY, f64::INFINITY]),
            Activation::Relu => Some([0.0, f64::INFINITY]),
            Activation::Clip { low, high } => Some([low, high]),
            _ => None,
        }
    }

    /// What a run costs more than copying it, for the number of tasks.
    fn cost(self) -> usize {
        match self {
            Activation::Identity
            | Activation::Relu
            | Activation::LeakyRelu { .. }
            | Activation::ThresholdedRelu { .. }
            | Activation::Softsign
            | Activation::Affine { .. }
            | Activation::HardSigmoid { .. }
            | Activation::HardSwish
            | Activation::Sign
            | Activation::Clip { .. } => 1,
            _ => 5,
        }
    }
}

/// y = f(x), element by element, for views of any rank and strides.
///
/// # Errors
/// [`Error::Shape`] where the shapes differ.
///
/// ```
/// use tilewise::{Tensor, activation::{self, Activation}};
/// let x = Tensor::<f64, 2>::from_slice(&[-1.0, 0.0, 1.0, 2.0], [2, 2])?;
/// let mut y = Tensor::zeros([2, 2])?;
/// activation::forward(Activation::Softplus, x.view(), y.view_mut())?;
/// assert!((y.as_slice()[1] - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn forward<T: Element, const N: usize>(
    activation: Activation,
    x: TensorView<'_, T, N>,
    y: TensorViewMut<'_, T, N>,
) -> Result<()> {
    const OP: &str = "activation::forward";
    if x.shape() != y.shape() {
        return Err(Error::shape(OP, "y", &y.shape(), &x.shape()));
    }
    let isa = machine::isa()?;
    machine::trace(|| format!("{OP} {activation:?} {:?} {} {isa}", y.shape(), T::NAME));
    tensor::map([x], y, activation.cost(), &|[x], y| T::values(isa, Forward { activation, x: Some(x), y }))
}

/// x becomes f(x), element by element.
///
/// # Errors
/// None but those of [`machine::isa`].
///
/// ```
/// use tilewise::{TensorViewMut, activation::{self, Activation}};
/// let mut x = [-1.0f32, 2.0, f32::NAN];
/// activation::in_place(Activation::Relu, TensorViewMut::from_slice(&mut x, [3])?)?;
/// assert!(x[0] == 0.0 && x[1] == 2.0 && x[2].is_nan());
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn in_place<T: Element, const N: usize>(
    activation: Activation,
    x: TensorViewMut<'_, T, N>,
) -> Result<()> {
    let isa = machine::isa()?;
    machine::trace(|| format!("activation::in_place {activation:?} {:?} {} {isa}", x.shape(), T::NAME));
    tensor::map_in_place(x, activation.cost(), &|run| apply_run(isa, activation, run))
}

/// dx = dy·f′(x), element by element, `x` being what [`forward`] got, not what it gave.
///
/// # Errors
/// [`Error::Shape`] where the shapes differ.
///
/// ```
/// use tilewise::{Tensor, activation::{self, Activation}};
/// let x = Tensor::<f32, 1>::from_slice(&[-1.0, 0.0, 2.0], [3])?;
/// let dy = Tensor::from_slice(&[5.0, 5.0, 5.0], [3])?;
/// let mut dx = Tensor::zeros([3])?;
/// activation::backward(Activation::Relu, x.view(), dy.view(), dx.view_mut())?;
/// assert_eq!(dx.as_slice(), [0.0, 0.0, 5.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward<T: Element, const N: usize>(
    activation: Activation,
    x: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
    dx: TensorViewMut<'_, T, N>,
) -> Result<()> {
    const OP: &str = "activation::backward";
    if dy.shape() != x.shape() {
        return Err(Error::shape(OP, "dy", &dy.shape(), &x.shape()));
    }
    if dx.shape() != x.shape() {
        return Err(Error::shape(OP, "dx", &dx.shape(), &x.shape()));
    }
    let isa = machine::isa()?;
    machine::trace(|| format!("{OP} {activation:?} {:?} {} {isa}", dx.shape(), T::NAME));
    tensor::map([x, dy], dx, activation.cost(), &|[x, dy], dx| {
        T::chains(isa, Backward { activation, x, dy, dx })
    })
}

/// `run` becomes f of it: one dispatch.
pub(crate) fn apply_run<T: Element>(isa: Isa, activation: Activation, run: &mut [T]) {
    if activation != Activation::Identity {
        T::values(isa, Forward { activation, x: None, y: run });
    }
}

/// `run` becomes f of it, for kernels that have a token already. All but the commonest are outlined, so that the
/// functions are compiled once and not in every kernel.
#[inline(always)]
pub(crate) fn apply<T: Element, S: Simd<T>>(s: S, activation: Activation, run: &mut [T]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => map_vectors!(s, run, |x| lane::Relu.value(s, x)),
        Activation::Clip { low, high } => map_vectors!(s, run, |x| lane::Clip(low, high).value(s, x)),
        _ => s.call(Forward { activation, x: None, y: run }),
    }
}

/// f of a vector, outlined: for code in which the choice of functions is free.
#[inline(always)]
pub(crate) fn value<T: Element, S: Simd<T>>(s: S, activation: Activation, x: S::V) -> S::V {
    let mut run = [T::ZERO; MOST_LANES];
    s.store(x, &mut run);
    s.call(Forward { activation, x: None, y: &mut run[..S::LANES] });
    s.load(&run)
}

/// f′ of a vector, likewise.
#[inline(always)]
pub(crate) fn derivative<T: Element, S: Simd<T>>(s: S, activation: Activation, x: S::V) -> S::V {
    let (mut at, mut dx) = ([T::ZERO; MOST_LANES], [T::ZERO; MOST_LANES]);
    s.store(x, &mut at);
    let (x, dy, dx_run) = (&at[..S::LANES], &[T::ONE; MOST_LANES][..S::LANES], &mut dx[..S::LANES]);
    s.call(Backward { activation, x, dy, dx: dx_run });
    s.load(&dx)
}

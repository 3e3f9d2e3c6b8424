//! Initial weights.

use crate::activation::Activation;
use crate::element::Element;
use crate::random::Rng;

/// How initial weights are drawn: plain data.
///
/// | constructor | distribution |
/// |---|---|
/// | [`xavier_uniform`](Self::xavier_uniform) | uniform in ±gain √(6 / (fan_in + fan_out)) |
/// | [`xavier_normal`](Self::xavier_normal) | normal, deviation gain √(2 / (fan_in + fan_out)) |
/// | [`kaiming_uniform`](Self::kaiming_uniform) | uniform in ±gain √(3 / fan) |
/// | [`kaiming_normal`](Self::kaiming_normal) | normal, deviation gain / √fan |
///
/// fan_in is the number of inputs that a unit sums, fan_out the number of units that an input reaches.
///
/// Sources: Xavier Glorot and Yoshua Bengio, "Understanding the difficulty of training deep feedforward neural
/// networks", AISTATS 2010; Kaiming He et al., "Delving deep into rectifiers", ICCV 2015.
///
/// ```
/// use tilewise::{layer::Init, random::Rng};
/// let mut weights = [0f32; 12];
/// Init::xavier_uniform().fill(&mut weights, 3, 4, &mut Rng::seed(1));
/// assert!(weights.iter().all(|w| w.abs() <= (6f32 / 7.0).sqrt()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Init {
    kind: Kind,
    fan: Fan,
    gain: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Zeros,
    XavierUniform,
    XavierNormal,
    KaimingUniform,
    KaimingNormal,
}

/// By which side the Kaiming initialisers scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fan {
    /// The inputs of a unit: keeps the variance of activations.
    #[default]
    In,
    /// The units that an input reaches: keeps the variance of gradients.
    Out,
}

impl Init {
    fn of(kind: Kind, gain: f64) -> Self {
        Self { kind, fan: Fan::In, gain }
    }

    /// All 0; draws nothing.
    pub fn zeros() -> Self {
        Self::of(Kind::Zeros, 1.0)
    }

    /// Glorot's uniform distribution, gain 1.
    pub fn xavier_uniform() -> Self {
        Self::of(Kind::XavierUniform, 1.0)
    }

    /// Glorot's normal distribution, gain 1.
    pub fn xavier_normal() -> Self {
        Self::of(Kind::XavierNormal, 1.0)
    }

    /// He's uniform distribution by fan_in, gain √2, that of ReLU.
    pub fn kaiming_uniform() -> Self {
        Self::of(Kind::KaimingUniform, std::f64::consts::SQRT_2)
    }

    /// He's normal distribution by fan_in, gain √2, that of ReLU.
    pub fn kaiming_normal() -> Self {
        Self::of(Kind::KaimingNormal, std::f64::consts::SQRT_2)
    }

    /// Another gain; see [`gain`].
    pub fn gain(self, gain: f64) -> Self {
        Self { gain, ..self }
    }

    /// Another side to scale by, for the Kaiming initialisers.
    pub fn fan(self, fan: Fan) -> Self {
        Self { fan, ..self }
    }

    /// Draws every weight, in the slice's order. A fan of 0 counts as 1.
    pub fn fill<T: Element>(&self, weights: &mut [T], fan_in: usize, fan_out: usize, rng: &mut Rng) {
        let both = (fan_in as f64 + fan_out as f64).max(1.0);
        let one = match self.fan {
            Fan::In => fan_in,
            Fan::Out => fan_out,
        };
        let one = (one as f64).max(1.0);
        let mut uniform = |bound: f64| {
            let bound = T::from_f64(self.gain * bound);
            weights.iter_mut().for_each(|w| *w = rng.uniform(-bound, bound));
        };
        match self.kind {
            Kind::Zeros => return weights.fill(T::ZERO),
            Kind::XavierUniform => return uniform((6.0 / both).sqrt()),
            Kind::KaimingUniform => return uniform((3.0 / one).sqrt()),
            Kind::XavierNormal | Kind::KaimingNormal => {}
        }
        let variance = if self.kind == Kind::XavierNormal { 2.0 / both } else { 1.0 / one };
        let deviation = T::from_f64(self.gain * variance.sqrt());
        weights.iter_mut().for_each(|w| *w = rng.normal(T::ZERO, deviation));
    }
}

/// The gain that keeps the variance through an activation: √2 for ReLU, √(2 / (1 + slope²)) for leaky ReLU, 5/3 for
/// tanh, 1 for the others (PyTorch has 3/4 for SELU, which LeCun's initialisation with gain 1 normalises itself).
///
/// ```
/// use tilewise::{activation::Activation, layer::gain};
/// assert_eq!(gain(Activation::Relu), 2f64.sqrt());
/// ```
pub fn gain(activation: Activation) -> f64 {
    match activation {
        Activation::Relu => std::f64::consts::SQRT_2,
        Activation::LeakyRelu { slope } => (2.0 / (1.0 + slope * slope)).sqrt(),
        Activation::Tanh => 5.0 / 3.0,
        _ => 1.0,
    }
}

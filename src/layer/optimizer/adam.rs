//! Adam and AdamW.

use std::fmt::{self, Debug, Formatter};

use super::sgd::decayed;
use super::{Optimizer, Rule, State, StateTensor, check, check_beta, check_finite};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::layer::Parameters;
use crate::machine;

/// What both keep.
struct Moments<T> {
    rate: f64,
    betas: (f64, f64),
    epsilon: f64,
    weight_decay: f64,
    steps: u64,
    state: State<T>,
}

#[derive(Clone, Copy)]
struct Step<T> {
    /// λ, added to the gradient.
    decay: T,
    /// What θ is multiplied by first.
    shrink: T,
    beta1: T,
    beta2: T,
    one_minus_beta1: T,
    one_minus_beta2: T,
    /// γ / (1 − β₁ᵗ).
    rate: T,
    /// √(1 − β₂ᵗ).
    root: T,
    epsilon: T,
}

impl<T: Element> Rule<T, 2> for Step<T> {
    #[inline(always)]
    fn update(&self, value: T, gradient: T, [m, v]: [T; 2]) -> (T, [T; 2]) {
        let gradient = decayed(self.decay, value, gradient);
        let value = self.shrink * value;
        let m = self.beta1 * m + self.one_minus_beta1 * gradient;
        let v = self.beta2 * v + self.one_minus_beta2 * gradient * gradient;
        (value - self.rate * m / (v.sqrt() / self.root + self.epsilon), [m, v])
    }
}

impl<T: Element> Moments<T> {
    fn new(rate: f64, weight_decay: f64) -> Self {
        Self { rate, betas: (0.9, 0.999), epsilon: 1e-8, weight_decay, steps: 0, state: State::NONE }
    }

    fn step(&mut self, op: &'static str, parameters: &mut dyn Parameters<T>, decoupled: bool) -> Result<()> {
        let (beta1, beta2) = self.betas;
        check::<T>(op, "learning rate", self.rate)?;
        check_beta::<T>(op, "beta 1", beta1)?;
        check_beta::<T>(op, "beta 2", beta2)?;
        check::<T>(op, "epsilon", self.epsilon)?;
        check::<T>(op, "weight decay", self.weight_decay)?;
        let epsilon = T::from_f64(self.epsilon);
        // Before there is a gradient that is not 0, the quotient is 0 / ε.
        if epsilon == T::ZERO && self.epsilon > 0.0 {
            let expected = "0 or large enough for the type of the parameters";
            return Err(Error::argument(op, "epsilon", self.epsilon, expected));
        }
        let steps = self.steps.saturating_add(1);
        let powers = (power(beta1, steps), power(beta2, steps));
        let rate = self.rate / (1.0 - powers.0);
        check_finite::<T>(op, "learning rate / (1 - beta 1 ^ t)", rate)?;
        let (decay, shrink) =
            if decoupled { (0.0, 1.0 - self.rate * self.weight_decay) } else { (self.weight_decay, 1.0) };
        check_finite::<T>(op, "1 - learning rate * weight decay", shrink)?;
        let isa = machine::isa()?;
        self.state.prepare::<2>(op, parameters)?;
        self.steps = steps;
        let step = Step {
            decay: T::from_f64(decay),
            shrink: T::from_f64(shrink),
            beta1: T::from_f64(beta1),
            beta2: T::from_f64(beta2),
            one_minus_beta1: T::from_f64(1.0 - beta1),
            one_minus_beta2: T::from_f64(1.0 - beta2),
            rate: T::from_f64(rate),
            root: T::from_f64((1.0 - powers.1).sqrt()),
            epsilon,
        };
        self.state.update::<2>(parameters, isa, step);
        Ok(())
    }
}

/// βᵗ by squares: of t alone, so that a resumed optimizer has the same bits, as `powi` does not promise.
fn power(beta: f64, mut t: u64) -> f64 {
    let (mut result, mut square) = (1.0, beta);
    while t > 0 {
        if t % 2 == 1 {
            result *= square;
        }
        square *= square;
        t /= 2;
    }
    result
}

/// What is kept of a parameter.
const NAMES: [&str; 2] = ["first_moment", "second_moment"];

macro_rules! adam {
    ($(#[$doc:meta])* $name:ident, $decay:literal, $decoupled:literal, $op:literal) => {
        $(#[$doc])*
        pub struct $name<T>(Moments<T>);

        impl<T: Element> $name<T> {
            /// Learning rate γ, with β₁ = 0.9, β₂ = 0.999, ε = 10⁻⁸ and
            #[doc = concat!("λ = ", $decay, ".")]
            pub fn new(rate: f64) -> Self {
                Self(Moments::new(rate, $decay))
            }

            /// The factors β₁ and β₂ by which the moments decay, at least 0 and below 1.
            pub fn betas(self, beta1: f64, beta2: f64) -> Self {
                Self(Moments { betas: (beta1, beta2), ..self.0 })
            }

            /// ε ≥ 0, added to the root of the corrected second moment; where it is 0, a gradient that was always 0 makes
            /// its parameter NaN.
            pub fn epsilon(self, epsilon: f64) -> Self {
                Self(Moments { epsilon, ..self.0 })
            }

            /// The weight decay λ ≥ 0.
            pub fn weight_decay(self, decay: f64) -> Self {
                Self(Moments { weight_decay: decay, ..self.0 })
            }
        }

        impl<T> Debug for $name<T> {
            fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("rate", &self.0.rate)
                    .field("betas", &self.0.betas)
                    .field("epsilon", &self.0.epsilon)
                    .field("weight_decay", &self.0.weight_decay)
                    .finish()
            }
        }

        impl<T: Element> Optimizer<T> for $name<T> {
            fn step(&mut self, parameters: &mut dyn Parameters<T>) -> Result<()> {
                self.0.step($op, parameters, $decoupled)
            }

            fn learning_rate(&self) -> f64 {
                self.0.rate
            }

            fn set_learning_rate(&mut self, rate: f64) {
                self.0.rate = rate;
            }

            fn steps(&self) -> u64 {
                self.0.steps
            }

            fn visit_state<'a>(&'a self, f: &mut dyn FnMut(StateTensor<'a, T>)) {
                self.0.state.visit(NAMES, f);
            }

            fn restore(
                &mut self,
                parameters: &dyn Parameters<T>,
                steps: u64,
                state: &[StateTensor<'_, T>],
            ) -> Result<()> {
                let op = concat!(stringify!($name), "::restore");
                self.0.state = State::restored(op, NAMES, parameters, steps, state)?;
                self.0.steps = steps;
                Ok(())
            }
        }
    };
}

adam!(
    /// Adam, with weight decay added to the gradient; the formulas are those of [the module](super).
    ///
    /// ```
    /// use tilewise::Tensor;
    /// use tilewise::layer::optimizer::{Adam, Optimizer};
    /// use tilewise::layer::{Linear, Parameters};
    ///
    /// let mut layer = Linear::from_parts(Tensor::<f64, 2>::full([1, 1], 1.0)?, None)?;
    /// layer.visit_mut(&mut |_, weight| weight.gradient_mut().fill(1000.0));
    /// Adam::new(0.1).step(&mut layer)?;
    /// assert!((layer.weight().value()[0] - 0.9).abs() < 1e-9);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    Adam,
    0.0,
    false,
    "Adam::step"
);

adam!(
    /// Adam with decoupled weight decay; the formulas are those of [the module](super).
    ///
    /// ```
    /// use tilewise::layer::optimizer::{AdamW, Optimizer};
    /// let mut optimizer = AdamW::<f32>::new(1e-3).betas(0.9, 0.95).weight_decay(0.1);
    /// optimizer.set_learning_rate(5e-4);
    /// assert_eq!(optimizer.learning_rate(), 5e-4);
    /// ```
    AdamW,
    0.01,
    true,
    "AdamW::step"
);

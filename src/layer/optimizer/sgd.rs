//! Stochastic gradient descent.

use std::fmt::{self, Debug, Formatter};

use super::{Optimizer, Rule, State, StateTensor, check};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::layer::Parameters;
use crate::machine;

/// Stochastic gradient descent with momentum, Nesterov's momentum and weight decay; the formulas are those of
/// [the module](super).
///
/// ```
/// use tilewise::Tensor;
/// use tilewise::layer::optimizer::{Optimizer, Sgd};
/// use tilewise::layer::{Linear, Parameters};
///
/// let mut layer = Linear::from_parts(Tensor::<f64, 2>::full([1, 1], 1.0)?, None)?;
/// layer.visit_mut(&mut |_, weight| weight.gradient_mut().fill(2.0));
/// let mut sgd = Sgd::new(0.25).momentum(0.5);
/// sgd.step(&mut layer)?;
/// assert_eq!(layer.weight().value(), [0.5]);
/// sgd.step(&mut layer)?;
/// assert_eq!(layer.weight().value(), [-0.25]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Sgd<T> {
    rate: f64,
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
    steps: u64,
    /// Velocities from the first step with momentum on.
    state: State<T>,
}

impl<T> Debug for Sgd<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sgd")
            .field("rate", &self.rate)
            .field("momentum", &self.momentum)
            .field("nesterov", &self.nesterov)
            .field("weight_decay", &self.weight_decay)
            .finish()
    }
}

impl<T: Element> Sgd<T> {
    /// Learning rate γ; no momentum, no weight decay.
    pub fn new(rate: f64) -> Self {
        Self { rate, momentum: 0.0, nesterov: false, weight_decay: 0.0, steps: 0, state: State::NONE }
    }

    /// The momentum μ ≥ 0, without dampening. A step with μ = 0 neither needs nor changes the velocity; a later one with
    /// momentum goes on from it.
    pub fn momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// Nesterov's momentum; needs μ > 0.
    pub fn nesterov(self, nesterov: bool) -> Self {
        Self { nesterov, ..self }
    }

    /// The weight decay λ ≥ 0, added to the gradient.
    pub fn weight_decay(self, decay: f64) -> Self {
        Self { weight_decay: decay, ..self }
    }
}

/// What is kept of a parameter.
const NAMES: [&str; 1] = ["velocity"];

#[derive(Clone, Copy)]
struct Step<T> {
    rate: T,
    momentum: T,
    nesterov: bool,
    decay: T,
}

impl<T: Element> Rule<T, 0> for Step<T> {
    #[inline(always)]
    fn update(&self, value: T, gradient: T, _: [T; 0]) -> (T, [T; 0]) {
        (value - self.rate * decayed(self.decay, value, gradient), [])
    }
}

impl<T: Element> Rule<T, 1> for Step<T> {
    #[inline(always)]
    fn update(&self, value: T, gradient: T, [velocity]: [T; 1]) -> (T, [T; 1]) {
        let gradient = decayed(self.decay, value, gradient);
        let velocity = self.momentum * velocity + gradient;
        let step = if self.nesterov { gradient + self.momentum * velocity } else { velocity };
        (value - self.rate * step, [velocity])
    }
}

/// g + λ θ; g where λ is 0, even if θ is not finite.
#[inline(always)]
pub(super) fn decayed<T: Element>(decay: T, value: T, gradient: T) -> T {
    if decay == T::ZERO { gradient } else { gradient + decay * value }
}

impl<T: Element> Optimizer<T> for Sgd<T> {
    fn step(&mut self, parameters: &mut dyn Parameters<T>) -> Result<()> {
        let op = "Sgd::step";
        check::<T>(op, "learning rate", self.rate)?;
        check::<T>(op, "momentum", self.momentum)?;
        check::<T>(op, "weight decay", self.weight_decay)?;
        if self.nesterov && self.momentum == 0.0 {
            return Err(Error::argument(op, "momentum", self.momentum, "positive for Nesterov's form"));
        }
        let isa = machine::isa()?;
        let step = Step {
            rate: T::from_f64(self.rate),
            momentum: T::from_f64(self.momentum),
            nesterov: self.nesterov,
            decay: T::from_f64(self.weight_decay),
        };
        if self.momentum == 0.0 {
            self.state.prepare::<0>(op, parameters)?;
            self.state.update::<0>(parameters, isa, step);
        } else {
            self.state.prepare::<1>(op, parameters)?;
            self.state.update::<1>(parameters, isa, step);
        }
        self.steps = self.steps.saturating_add(1);
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.rate
    }

    fn set_learning_rate(&mut self, rate: f64) {
        self.rate = rate;
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn visit_state<'a>(&'a self, f: &mut dyn FnMut(StateTensor<'a, T>)) {
        self.state.visit(NAMES, f);
    }

    fn restore(
        &mut self,
        parameters: &dyn Parameters<T>,
        steps: u64,
        state: &[StateTensor<'_, T>],
    ) -> Result<()> {
        let op = "Sgd::restore";
        // Whether there are velocities depends on the momentum of all steps so far, not on what it is now.
        self.state = if state.is_empty() {
            State::restored(op, [], parameters, steps, state)?
        } else {
            State::restored(op, NAMES, parameters, steps, state)?
        };
        self.steps = steps;
        Ok(())
    }
}

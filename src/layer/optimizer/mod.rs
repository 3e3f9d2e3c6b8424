//! Optimizers: what changes parameters by their gradients.
//!
//! With parameter θ, gradient g, learning rate γ and weight decay λ, at step t = 1, 2, …:
//!
//! | optimizer | update |
//! |---|---|
//! | [`Sgd`] | g += λ θ; v = μ v + g; θ −= γ v, or with Nesterov θ −= γ (g + μ v) |
//! | [`Adam`] | g += λ θ; m = β₁ m + (1 − β₁) g; v = β₂ v + (1 − β₂) g²; θ −= γ m̂ / (√v̂ + ε) |
//! | [`AdamW`] | θ −= γ λ θ; then as Adam without λ |
//!
//! where m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ). The definitions, the place of ε and the first step are PyTorch's.
//!
//! The state of a parameter belongs to its place in the walk: an optimizer must see the same parameters, in the
//! same order, at every step, and refuses others. Updates are made element by element, in parallel where there are
//! many, so their bits do not depend on the number of threads.
//!
//! Training goes on after a pause, in another process say, as if there had been none: [`Optimizer::visit_state`] shows what
//! an optimizer keeps, and [`Optimizer::restore`] puts it back.
//!
//! Sources: Boris Polyak, "Some methods of speeding up the convergence of iteration methods" (1964); Ilya Sutskever
//! et al., "On the importance of initialization and momentum in deep learning", ICML 2013, for Nesterov's form as
//! PyTorch has it; Diederik Kingma and Jimmy Ba, "Adam", ICLR 2015; Ilya Loshchilov and Frank Hutter, "Decoupled
//! weight decay regularization", ICLR 2019.

mod adam;
mod sgd;
mod state;

pub use adam::{Adam, AdamW};
pub use sgd::Sgd;
pub use state::StateTensor;

use self::state::State;
use super::Parameters;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{Simd, SimdOp};

/// What changes parameters by their gradients.
pub trait Optimizer<T: Element> {
    /// One step: changes every parameter by its gradient, which stays as it is.
    ///
    /// # Errors
    /// [`Error::Argument`] where an option has a value that it must not have, in the type of the parameters too, or there
    /// are not as many parameters as at the first step; [`Error::Shape`] where one has another shape than then;
    /// [`Error::Alloc`] where there is no memory for the state. No parameter is changed then.
    fn step(&mut self, parameters: &mut dyn Parameters<T>) -> Result<()>;

    /// The learning rate γ.
    fn learning_rate(&self) -> f64;

    /// Another learning rate from the next step on.
    fn set_learning_rate(&mut self, rate: f64);

    /// Steps made so far, t of the formulas.
    fn steps(&self) -> u64;

    /// Calls `f` with each tensor that is kept from step to step, parameter by parameter in the order of their walk.
    /// There is none before the first step.
    fn visit_state<'a>(&'a self, f: &mut dyn FnMut(StateTensor<'a, T>));

    /// Goes on from the [`steps`](Self::steps) and the [state](Self::visit_state), in any order, of another optimizer with the
    /// same options and such parameters: all further steps are then as those of the other, to the bit.
    ///
    /// # Errors
    /// [`Error::Shape`] where a tensor does not have the shape of its parameter, [`Error::Argument`] where one is missing
    /// ([`Sgd`] may have none at all, as before its first step with momentum), comes twice or is not of this optimizer,
    /// [`Error::Alloc`] where there is no memory. The optimizer is as before then.
    ///
    /// ```
    /// use tilewise::Tensor;
    /// use tilewise::layer::optimizer::{Adam, Optimizer};
    /// use tilewise::layer::{Linear, Parameters};
    ///
    /// let mut layer = Linear::from_parts(Tensor::<f64, 2>::full([1, 1], 1.0)?, None)?;
    /// layer.visit_mut(&mut |_, weight| weight.gradient_mut().fill(2.0));
    /// let mut adam = Adam::new(0.1).betas(0.5, 0.5);
    /// adam.step(&mut layer)?;
    /// let mut state = Vec::new();
    /// adam.visit_state(&mut |tensor| state.push(tensor));
    /// assert_eq!((state[0].name, state[0].values), ("first_moment", &[1.0][..]));
    ///
    /// let mut resumed = Adam::new(0.1).betas(0.5, 0.5);
    /// resumed.restore(&layer, adam.steps(), &state)?;
    /// let mut copy = Linear::from_parts(layer.weight().view()?.to_tensor()?, None)?;
    /// copy.visit_mut(&mut |_, weight| weight.gradient_mut().fill(2.0));
    /// resumed.step(&mut copy)?;
    /// adam.step(&mut layer)?;
    /// assert_eq!(copy.weight().value(), layer.weight().value());
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    fn restore(
        &mut self,
        parameters: &dyn Parameters<T>,
        steps: u64,
        state: &[StateTensor<'_, T>],
    ) -> Result<()>;
}

/// Fewest elements that a task is worth.
const GRAIN: usize = 1 << 15;

/// The update of one element.
trait Rule<T, const K: usize>: Copy + Sync + Send {
    /// The new value and state.
    fn update(&self, value: T, gradient: T, state: [T; K]) -> (T, [T; K]);
}

/// The update of a run of elements. Compiled for every instruction set, so that the compiler may use its vectors;
/// nothing in it depends on their width.
struct Update<'a, T, R, const K: usize> {
    rule: R,
    values: &'a mut [T],
    gradients: &'a [T],
    states: [&'a mut [T]; K],
}

impl<T: Element, R: Rule<T, K>, const K: usize> Update<'_, T, R, K> {
    fn run(self, isa: Isa, tasks: usize) {
        if tasks <= 1 || self.values.len() <= 1 {
            return T::dispatch(isa, self);
        }
        let at = self.values.len() / 2;
        let (low_values, high_values) = self.values.split_at_mut(at);
        let (low_gradients, high_gradients) = self.gradients.split_at(at);
        let mut halves = self.states.map(|state| state.split_at_mut(at));
        let low_states = halves.each_mut().map(|(low, _)| std::mem::take(low));
        let high_states = halves.map(|(_, high)| high);
        let rule = self.rule;
        let low = Update { rule, values: low_values, gradients: low_gradients, states: low_states };
        let high = Update { rule, values: high_values, gradients: high_gradients, states: high_states };
        parallel::join(|| low.run(isa, tasks / 2), || high.run(isa, tasks - tasks / 2));
    }
}

impl<T: Element, R: Rule<T, K>, const K: usize> SimdOp<T> for Update<'_, T, R, K> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, _: S) {
        let n = self.values.len();
        let (values, gradients) = (&mut self.values[..n], &self.gradients[..n]);
        let states = self.states.map(|state| &mut state[..n]);
        for i in 0..n {
            let state = std::array::from_fn(|k| states[k][i]);
            let (value, state) = self.rule.update(values[i], gradients[i], state);
            values[i] = value;
            for (k, state) in state.into_iter().enumerate() {
                states[k][i] = state;
            }
        }
    }
}

/// An option that must be finite, as an element too, and not negative.
fn check<T: Element>(op: &'static str, arg: &'static str, value: f64) -> Result<()> {
    if !(value >= 0.0 && value.is_finite()) {
        return Err(Error::argument(op, arg, value, "finite and at least 0"));
    }
    check_finite::<T>(op, arg, value)
}

/// What must be finite as an element: times a gradient of 0, infinity is NaN.
fn check_finite<T: Element>(op: &'static str, arg: &'static str, value: f64) -> Result<()> {
    if T::from_f64(value).is_finite() {
        return Ok(());
    }
    Err(Error::argument(op, arg, value, "finite in the type of the parameters"))
}

/// A decay factor, which 1 would not be.
fn check_beta<T: Element>(op: &'static str, arg: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) && T::from_f64(value) < T::ONE {
        return Ok(());
    }
    Err(Error::argument(op, arg, value, "at least 0, below 1 in the type of the parameters"))
}

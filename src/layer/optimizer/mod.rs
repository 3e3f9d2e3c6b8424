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
//! Sources: Boris Polyak, "Some methods of speeding up the convergence of iteration methods" (1964); Ilya Sutskever
//! et al., "On the importance of initialization and momentum in deep learning", ICML 2013, for Nesterov's form as
//! PyTorch has it; Diederik Kingma and Jimmy Ba, "Adam", ICLR 2015; Ilya Loshchilov and Frank Hutter, "Decoupled
//! weight decay regularization", ICLR 2019.

mod adam;
mod sgd;

pub use adam::{Adam, AdamW};
pub use sgd::Sgd;

use super::Parameters;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::tensor::Tensor;

/// What changes parameters by their gradients.
pub trait Optimizer<T: Element> {
    /// One step: changes every parameter by its gradient, which stays as it is.
    ///
    /// # Errors
    /// [`Error::Argument`] where an option has a value that it must not have, or there are not as many parameters
    /// as at the first step; [`Error::Shape`] where one has another shape than then; [`Error::Alloc`] where there
    /// is no memory for the state. No parameter is changed then.
    fn step(&mut self, parameters: &mut dyn Parameters<T>) -> Result<()>;

    /// The learning rate γ.
    fn learning_rate(&self) -> f64;

    /// Another learning rate from the next step on.
    fn set_learning_rate(&mut self, rate: f64);
}

/// The state of all parameters: for each, `K` tensors of its shape.
struct State<T, const K: usize> {
    slots: Vec<Slot<T>>,
}

struct Slot<T> {
    shape: Box<[usize]>,
    /// A row for each of the `K`.
    tensors: Tensor<T, 2>,
}

impl<T: Element, const K: usize> State<T, K> {
    const NONE: Self = Self { slots: Vec::new() };

    /// Makes the state at the first step; checks that it fits later.
    fn prepare(&mut self, op: &'static str, parameters: &dyn Parameters<T>) -> Result<()> {
        let (mut result, mut number) = (Ok(()), 0);
        let first = self.slots.is_empty();
        parameters.visit(&mut |_, parameter| {
            if result.is_ok() {
                result = match self.slots.get(number) {
                    Some(slot) if *slot.shape == *parameter.shape() => Ok(()),
                    Some(slot) => Err(Error::shape(op, "parameter", parameter.shape(), &slot.shape)),
                    None if first => {
                        Slot::new(parameter.shape(), parameter.len(), K).map(|s| self.slots.push(s))
                    }
                    None => Ok(()),
                };
            }
            number += 1;
        });
        if result.is_ok() && number != self.slots.len() {
            let value = format!("{number}, not {}", self.slots.len());
            result = Err(Error::argument(op, "number of parameters", value, "that of the first step"));
        }
        if result.is_err() && first {
            self.slots.clear();
        }
        result
    }

    /// Updates every parameter. [`prepare`](Self::prepare) has succeeded.
    fn update(&mut self, parameters: &mut dyn Parameters<T>, isa: Isa, rule: impl Rule<T, K>) {
        let mut slots = self.slots.iter_mut();
        parameters.visit_mut(&mut |_, parameter| {
            // The same walk as in `prepare`, unless the caller's `visit` is not one; then nothing fits.
            if let Some(slot) = slots.next().filter(|slot| *slot.shape == *parameter.shape()) {
                let (values, gradients) = parameter.value_and_gradient();
                let tasks = parallel::tasks(values.len(), GRAIN);
                let mut rest = slot.tensors.as_mut_slice();
                let states = std::array::from_fn(|_| {
                    let (state, after) = std::mem::take(&mut rest).split_at_mut(values.len());
                    rest = after;
                    state
                });
                Update { rule, values, gradients, states }.run(isa, tasks);
            }
        });
    }
}

impl<T: Element> Slot<T> {
    fn new(shape: &[usize], len: usize, count: usize) -> Result<Self> {
        Ok(Self { shape: shape.into(), tensors: Tensor::zeros([count, len])? })
    }
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

/// An option that must be finite and not negative.
fn check(op: &'static str, arg: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::argument(op, arg, value, "finite and at least 0"))
}

/// A decay factor.
fn check_beta(op: &'static str, arg: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        Ok(())
    } else {
        Err(Error::argument(op, arg, value, "at least 0, below 1"))
    }
}

//! What optimizers keep from step to step.

use std::fmt::{self, Debug, Formatter};

use super::{GRAIN, Rule, Update};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::layer::Parameters;
use crate::machine::Isa;
use crate::parallel;
use crate::tensor::Tensor;

/// A tensor that an optimizer keeps, to be saved and put back; see [`Optimizer::restore`](super::Optimizer::restore).
#[derive(Clone, Copy, PartialEq)]
pub struct StateTensor<'a, T> {
    /// The number of the parameter that it belongs to, from 0, in the order of the walk.
    pub parameter: usize,
    /// Which tensor of the parameter it is: `"velocity"`, v of [`Sgd`](super::Sgd) with momentum; `"first_moment"` and
    /// `"second_moment"`, m and v of [`Adam`](super::Adam) and [`AdamW`](super::AdamW).
    pub name: &'a str,
    /// The parameter's shape.
    pub shape: &'a [usize],
    /// The numbers in row-major order.
    pub values: &'a [T],
}

impl<T> Debug for StateTensor<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateTensor")
            .field("parameter", &self.parameter)
            .field("name", &self.name)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// The state of all parameters: for each, `K` tensors of its shape.
pub(super) struct State<T, const K: usize> {
    slots: Vec<Slot<T>>,
}

struct Slot<T> {
    shape: Box<[usize]>,
    /// A row for each of the `K`.
    tensors: Tensor<T, 2>,
}

impl<T: Element, const K: usize> State<T, K> {
    pub(super) const NONE: Self = Self { slots: Vec::new() };

    /// Makes the state at the first step; checks that it fits later.
    pub(super) fn prepare(&mut self, op: &'static str, parameters: &dyn Parameters<T>) -> Result<()> {
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

    /// The state of parameters like these after `steps` steps, whose `K` tensors have these names.
    pub(super) fn restored(
        op: &'static str,
        names: [&'static str; K],
        parameters: &dyn Parameters<T>,
        steps: u64,
        tensors: &[StateTensor<'_, T>],
    ) -> Result<Self> {
        let mut state = Self::NONE;
        if steps == 0 && tensors.is_empty() {
            return Ok(state);
        }
        state.prepare(op, parameters)?;
        let mut found = vec![[false; K]; state.slots.len()];
        for tensor in tensors {
            let (Some(slot), Some(found)) =
                (state.slots.get_mut(tensor.parameter), found.get_mut(tensor.parameter))
            else {
                let expected = "less than the number of parameters";
                return Err(Error::argument(op, "number of a parameter", tensor.parameter, expected));
            };
            let Some(at) = names.iter().position(|&name| name == tensor.name) else {
                return Err(Error::argument(op, "name of a tensor", tensor.name, "one that is kept"));
            };
            if *tensor.shape != *slot.shape {
                return Err(Error::shape(op, names[at], tensor.shape, &slot.shape));
            }
            let [_, len] = slot.tensors.shape();
            if tensor.values.len() != len {
                return Err(Error::shape(op, names[at], &[tensor.values.len()], &[len]));
            }
            if std::mem::replace(&mut found[at], true) {
                return Err(Error::argument(op, names[at], "there twice", "there once for each parameter"));
            }
            slot.tensors.as_mut_slice()[at * len..][..len].copy_from_slice(tensor.values);
        }
        for (at, name) in names.into_iter().enumerate() {
            if found.iter().any(|found| !found[at]) {
                return Err(Error::argument(op, name, "missing", "there once for each parameter"));
            }
        }
        Ok(state)
    }

    /// Calls `f` with every tensor, under these names.
    pub(super) fn visit<'a>(&'a self, names: [&'static str; K], f: &mut dyn FnMut(StateTensor<'a, T>)) {
        for (parameter, Slot { shape, tensors }) in self.slots.iter().enumerate() {
            let [_, len] = tensors.shape();
            for (at, name) in names.into_iter().enumerate() {
                let values = &tensors.as_slice()[at * len..][..len];
                f(StateTensor { parameter, name, shape, values });
            }
        }
    }

    /// Updates every parameter. [`prepare`](Self::prepare) has succeeded.
    pub(super) fn update(&mut self, parameters: &mut dyn Parameters<T>, isa: Isa, rule: impl Rule<T, K>) {
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

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

/// The state of all parameters: for each, as many tensors of its shape.
pub(super) struct State<T> {
    /// None before the first step, which may be one without parameters.
    slots: Option<Vec<Slot<T>>>,
}

struct Slot<T> {
    shape: Box<[usize]>,
    /// A row for each that is kept.
    tensors: Tensor<T, 2>,
}

impl<T: Element> State<T> {
    pub(super) const NONE: Self = Self { slots: None };

    /// Makes `K` tensors for each parameter at the first step that needs them; checks that the parameters are those of the
    /// first step later.
    pub(super) fn prepare<const K: usize>(
        &mut self,
        op: &'static str,
        parameters: &dyn Parameters<T>,
    ) -> Result<()> {
        let (mut result, mut number, mut made) = (Ok(()), 0, Vec::new());
        let slots = self.slots.as_deref();
        parameters.visit(&mut |_, parameter| {
            if result.is_ok() {
                result = match slots.map(|slots| slots.get(number)) {
                    Some(Some(slot)) if *slot.shape != *parameter.shape() => {
                        Err(Error::shape(op, "parameter", parameter.shape(), &slot.shape))
                    }
                    Some(Some(slot)) if slot.tensors.shape()[0] >= K => Ok(()),
                    Some(None) => Ok(()), // one too many
                    _ => Slot::new(parameter.shape(), parameter.len(), K).map(|slot| made.push(slot)),
                };
            }
            number += 1;
        });
        result?;
        match slots {
            Some(slots) if slots.len() != number => {
                let value = format!("{number}, not {}", slots.len());
                return Err(Error::argument(op, "number of parameters", value, "that of the first step"));
            }
            Some(_) if made.is_empty() => {}
            _ => self.slots = Some(made),
        }
        Ok(())
    }

    /// The state of parameters like these after `steps` steps, whose `K` tensors have these names.
    pub(super) fn restored<const K: usize>(
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
        state.prepare::<K>(op, parameters)?;
        let slots = state.slots.as_deref_mut().unwrap_or_default();
        let mut found = vec![[false; K]; slots.len()];
        for tensor in tensors {
            let (Some(slot), Some(found)) =
                (slots.get_mut(tensor.parameter), found.get_mut(tensor.parameter))
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

    /// Calls `f` with every tensor that there is, under these names.
    pub(super) fn visit<'a, const K: usize>(
        &'a self,
        names: [&'static str; K],
        f: &mut dyn FnMut(StateTensor<'a, T>),
    ) {
        for (parameter, Slot { shape, tensors }) in self.slots.iter().flatten().enumerate() {
            let [count, len] = tensors.shape();
            for (at, name) in names.into_iter().enumerate().take(count) {
                let values = &tensors.as_slice()[at * len..][..len];
                f(StateTensor { parameter, name, shape, values });
            }
        }
    }

    /// Updates every parameter. [`prepare`](Self::prepare) has succeeded.
    pub(super) fn update<const K: usize>(
        &mut self,
        parameters: &mut dyn Parameters<T>,
        isa: Isa,
        rule: impl Rule<T, K>,
    ) {
        let mut slots = self.slots.iter_mut().flatten();
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

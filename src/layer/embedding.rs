//! Vectors for numbered things.

use super::describe::debug;
use super::{Init, Parameter, Parameters, not_called};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::random::Rng;
use crate::tensor::{Tensor, TensorView};
use crate::workspace;

/// Row i of a table for the thing of number i: parameter `weight`, `[things, dimensions]`.
///
/// It reads numbers, not tensors, so it is no [`Layer`](super::Layer); it stands below one. Row order is that of the
/// numbers: those of a sequence `[time, batch]` give rows that reshape to `[time, batch, dimensions]`.
///
/// ```
/// use tilewise::layer::Embedding;
/// use tilewise::Tensor;
/// let mut table = Embedding::from_weight(Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0], [2, 2])?)?;
/// assert_eq!(table.forward(&[1, 0, 1])?.as_slice(), [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
/// table.backward(Tensor::full([3, 2], 1.0)?.view())?;
/// assert_eq!(table.weight().gradient(), [1.0, 1.0, 2.0, 2.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Embedding<T> {
    weight: Parameter<T>,
    numbers: Option<Vec<usize>>,
}

impl<T: Element> Embedding<T> {
    /// A table of `things` rows from `init`, whose fan_in is 1 and fan_out the dimensions.
    ///
    /// # Errors
    /// [`Error::Overflow`] or [`Error::Alloc`] where there is no memory for that many.
    pub fn new(things: usize, dimensions: usize, init: Init, rng: &mut Rng) -> Result<Self> {
        let mut weight = Tensor::zeros([things, dimensions])?;
        init.fill(weight.as_mut_slice(), 1, dimensions, rng);
        Self::from_weight(weight)
    }

    /// This table, `[things, dimensions]`.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory for the gradient.
    pub fn from_weight(weight: Tensor<T, 2>) -> Result<Self> {
        Ok(Self { weight: Parameter::new(weight)?, numbers: None })
    }

    /// The table, `[things, dimensions]`.
    pub fn weight(&self) -> &Parameter<T> {
        &self.weight
    }

    /// The rows of these numbers, `[numbers, dimensions]`, keeping what [`backward`](Self::backward) needs.
    ///
    /// # Errors
    /// [`Error::Argument`] where a number has no row, [`Error::Alloc`] where there is no memory.
    pub fn forward(&mut self, numbers: &[usize]) -> Result<Tensor<T, 2>> {
        let y = self.infer(numbers)?;
        workspace::try_copy("Embedding::forward", numbers, self.numbers.get_or_insert_default())?;
        Ok(y)
    }

    /// The rows of these numbers, keeping nothing.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn infer(&self, numbers: &[usize]) -> Result<Tensor<T, 2>> {
        let table: TensorView<'_, T, 2> = self.weight.view()?;
        let [things, dimensions] = table.shape();
        check("Embedding::forward", numbers, things)?;
        let mut y = Tensor::zeros([numbers.len(), dimensions])?;
        if dimensions > 0 {
            for (to, &number) in y.as_mut_slice().chunks_exact_mut(dimensions).zip(numbers) {
                to.copy_from_slice(&self.weight.value()[number * dimensions..][..dimensions]);
            }
        }
        Ok(y)
    }

    /// Adds dy, `[numbers, dimensions]`, to the gradients of the rows of the last [`forward`](Self::forward), in their
    /// order. There is no gradient for numbers.
    ///
    /// # Errors
    /// [`Error::Argument`] where `forward` was not called or the table has lost a row since, [`Error::Shape`] where dy does
    /// not have the output's shape.
    pub fn backward(&mut self, dy: TensorView<'_, T, 2>) -> Result<()> {
        let op = "Embedding::backward";
        let Some(numbers) = &self.numbers else { return Err(not_called(op)) };
        // The table may be another one by now.
        let [things, dimensions] = self.weight.view::<2>()?.shape();
        check(op, numbers, things)?;
        expect(op, "dy", &dy.shape(), &[numbers.len(), dimensions])?;
        let gradient = self.weight.gradient_mut();
        for (row, &number) in numbers.iter().enumerate() {
            let to = &mut gradient[number * dimensions..][..dimensions];
            match dy.row(row) {
                Some(dy) => to.iter_mut().zip(dy).for_each(|(to, &dy)| *to += dy),
                None => to.iter_mut().enumerate().for_each(|(column, to)| {
                    *to += dy.get([row, column]).copied().unwrap_or(T::NAN);
                }),
            }
        }
        Ok(())
    }
}

fn check(op: &'static str, numbers: &[usize], things: usize) -> Result<()> {
    match numbers.iter().enumerate().find(|&(_, &number)| number >= things) {
        Some((at, number)) => {
            let value = format!("{number} at index {at} for a table of {things} rows");
            Err(Error::argument(op, "numbers", value, "less than its rows"))
        }
        None => Ok(()),
    }
}

debug!([T: Element] Embedding<T>, "Embedding");

impl<T: Element> Parameters<T> for Embedding<T> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        f("weight", &self.weight);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        f("weight", &mut self.weight);
    }
}

//! From images to rows.

use super::{Layer, Parameter, Parameters, not_called};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::tensor::{Tensor, TensorView};

/// `[batch, …]` of rank `N`, at least 1, to `[batch, product of the others]`, in row-major order of the index. No
/// parameters.
///
/// ```
/// use tilewise::{Tensor, layer::{Flatten, Layer}};
/// let mut layer = Flatten::<4>::new();
/// let x = Tensor::<f32, 4>::zeros([8, 3, 5, 5])?;
/// let y = layer.forward(x.view())?;
/// assert_eq!(y.shape(), [8, 75]);
/// let dx: Tensor<f32, 4> = layer.backward(y.view())?;
/// assert_eq!(dx.shape(), [8, 3, 5, 5]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Flatten<const N: usize> {
    /// The shape of the input of the last `forward`.
    input: Option<Shape<N>>,
}

#[derive(Clone, Copy, Debug)]
struct Shape<const N: usize>([usize; N]);

impl<const N: usize> Flatten<N> {
    /// The layer.
    pub fn new() -> Self {
        const { assert!(N >= 1, "the first axis is the batch") };
        Self { input: None }
    }

    /// The flat shape. Where a size is 0, the product of the others may still be too large.
    fn flat(shape: [usize; N]) -> Result<[usize; 2]> {
        let [batch, rest @ ..] = &shape[..] else { return Ok([1, 1]) };
        let product = rest.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let product = product.ok_or_else(|| Error::Overflow {
            op: "Flatten::forward",
            shape: crate::error::Dims::new(&shape),
        })?;
        Ok([*batch, product])
    }
}

impl<T: Element, const N: usize> Parameters<T> for Flatten<N> {
    fn visit(&self, _: &mut dyn FnMut(&str, &Parameter<T>)) {}

    fn visit_mut(&mut self, _: &mut dyn FnMut(&str, &mut Parameter<T>)) {}
}

impl<T: Element, const N: usize> Layer<T, N, 2> for Flatten<N> {
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; 2]> {
        Self::flat(x)
    }

    fn check_backward(&self, dy: [usize; 2]) -> Result<[usize; N]> {
        let op = "Flatten::backward";
        let Shape(shape) = self.input.ok_or_else(|| not_called(op))?;
        expect(op, "dy", &dy, &Self::flat(shape)?)?;
        Ok(shape)
    }

    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, 2>> {
        let y = self.infer(x)?;
        self.input = Some(Shape(x.shape()));
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, 2>> {
        x.to_tensor()?.reshape(Self::flat(x.shape())?)
    }

    fn backward(&mut self, dy: TensorView<'_, T, 2>) -> Result<Tensor<T, N>> {
        let shape = Layer::<T, N, 2>::check_backward(self, dy.shape())?;
        dy.to_tensor()?.reshape(shape)
    }
}

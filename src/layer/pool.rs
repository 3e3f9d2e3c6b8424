//! The pooling layers.

use std::fmt::{self, Debug, Formatter};

use super::{Layer, Parameter, Parameters, not_called};
use crate::element::Element;
use crate::error::{Result, expect};
use crate::pool::{self, AveragePool};
use crate::spatial::{ImageRank, Spatial};
use crate::tensor::{Tensor, TensorView};

/// [`pool::MaxPool`] over `S` spatial axes of images of rank `N`. No parameters.
///
/// ```
/// use tilewise::layer::{Layer, MaxPool2d};
/// use tilewise::{Tensor, pool};
/// let mut layer = MaxPool2d::new(pool::MaxPool::new([2, 2]));
/// let x = Tensor::<f32, 4>::from_slice(&[1.0, 3.0, 2.0, 0.0], [1, 1, 2, 2])?;
/// let y = layer.forward(x.view())?;
/// assert_eq!(y.as_slice(), [3.0]);
/// assert_eq!(layer.backward(y.view())?.as_slice(), [0.0, 3.0, 0.0, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct MaxPool<const S: usize, const N: usize> {
    pool: pool::MaxPool<S>,
    /// Indices of the last `forward`, and the shape of its input.
    taken: Option<(Tensor<u32, N>, [usize; N])>,
}

/// [`MaxPool`] over `[batch, channels, time]`.
pub type MaxPool1d = MaxPool<1, 3>;
/// [`MaxPool`] over `[batch, channels, height, width]`.
pub type MaxPool2d = MaxPool<2, 4>;
/// [`MaxPool`] over `[batch, channels, depth, height, width]`.
pub type MaxPool3d = MaxPool<3, 5>;

impl<const S: usize, const N: usize> MaxPool<S, N> {
    /// The layer with these options.
    pub fn new(pool: pool::MaxPool<S>) -> Self {
        Self { pool, taken: None }
    }

    /// The indices and the input's shape of the last call, whose output had this shape.
    fn taken(&self, dy: [usize; N]) -> Result<(TensorView<'_, u32, N>, [usize; N])> {
        let op = "MaxPool::backward";
        let (indices, shape) = self.taken.as_ref().ok_or_else(|| not_called(op))?;
        expect(op, "dy", &dy, &indices.shape())?;
        Ok((indices.view(), *shape))
    }
}

impl<const S: usize, const N: usize> Debug for MaxPool<S, N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaxPool").field("pool", &self.pool).finish()
    }
}

impl<T: Element, const S: usize, const N: usize> Parameters<T> for MaxPool<S, N> {
    fn visit(&self, _: &mut dyn FnMut(&str, &Parameter<T>)) {}

    fn visit_mut(&mut self, _: &mut dyn FnMut(&str, &mut Parameter<T>)) {}
}

/// The spatial sizes of a shape.
fn image<const S: usize, const N: usize>(shape: [usize; N]) -> [usize; S] {
    std::array::from_fn(|axis| shape[N - S + axis])
}

impl<T: Element, const S: usize, const N: usize> Layer<T, N, N> for MaxPool<S, N>
where
    Spatial<S>: ImageRank<N>,
{
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
        self.pool.check_indices(x)
    }

    fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
        Ok(self.taken(dy)?.1)
    }

    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let (y, indices) = self.pool.forward_with_indices(x)?;
        self.taken = Some((indices, x.shape()));
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.pool.forward(x)
    }

    fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let (indices, shape) = self.taken(dy.shape())?;
        self.pool.backward(dy, indices, image(shape))
    }
}

/// [`AveragePool`] over `S` spatial axes of images of rank `N`. No parameters.
///
/// ```
/// use tilewise::layer::{AvgPool2d, Layer};
/// use tilewise::{Tensor, pool::AveragePool};
/// let mut layer = AvgPool2d::new(AveragePool::global());
/// let x = Tensor::<f32, 4>::from_slice(&[1.0, 3.0, 2.0, 2.0], [1, 1, 2, 2])?;
/// let y = layer.forward(x.view())?;
/// assert_eq!(y.as_slice(), [2.0]);
/// assert_eq!(layer.backward(y.view())?.as_slice(), [0.5; 4]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct AvgPool<const S: usize, const N: usize> {
    pool: AveragePool<S>,
    /// The shape of the input of the last `forward`.
    input: Option<[usize; N]>,
}

/// [`AvgPool`] over `[batch, channels, time]`.
pub type AvgPool1d = AvgPool<1, 3>;
/// [`AvgPool`] over `[batch, channels, height, width]`.
pub type AvgPool2d = AvgPool<2, 4>;
/// [`AvgPool`] over `[batch, channels, depth, height, width]`.
pub type AvgPool3d = AvgPool<3, 5>;

impl<const S: usize, const N: usize> AvgPool<S, N> {
    /// The layer with these options.
    pub fn new(pool: AveragePool<S>) -> Self {
        Self { pool, input: None }
    }
}

impl<const S: usize, const N: usize> Debug for AvgPool<S, N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("AvgPool").field("pool", &self.pool).finish()
    }
}

impl<T: Element, const S: usize, const N: usize> Parameters<T> for AvgPool<S, N> {
    fn visit(&self, _: &mut dyn FnMut(&str, &Parameter<T>)) {}

    fn visit_mut(&mut self, _: &mut dyn FnMut(&str, &mut Parameter<T>)) {}
}

impl<T: Element, const S: usize, const N: usize> Layer<T, N, N> for AvgPool<S, N>
where
    Spatial<S>: ImageRank<N>,
{
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
        self.pool.output_shape(x)
    }

    fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
        let op = "AvgPool::backward";
        let shape = self.input.ok_or_else(|| not_called(op))?;
        expect(op, "dy", &dy, &self.pool.output_shape(shape)?)?;
        Ok(shape)
    }

    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let y = self.pool.forward(x)?;
        self.input = Some(x.shape());
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.pool.forward(x)
    }

    fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.pool.backward(dy, image(Layer::<T, N, N>::check_backward(self, dy.shape())?))
    }
}

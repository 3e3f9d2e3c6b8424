//! A value with its gradient.

use std::fmt::{self, Debug, Formatter};

use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// A tensor of any rank with its gradient, which has the same shape and begins at 0.
///
/// The rank is not part of the type, so that parameters of all ranks can be walked together: as slices by an
/// optimizer, as views of their rank by the layer they belong to.
///
/// ```
/// use tilewise::{Tensor, layer::Parameter};
/// let mut weight = Parameter::new(Tensor::<f32, 2>::zeros([2, 3])?)?;
/// assert_eq!(weight.shape(), [2, 3]);
/// weight.value_mut()[0] = 1.0;
/// assert_eq!(weight.view::<2>()?.get([0, 0]), Some(&1.0));
/// assert!(weight.view::<3>().is_err());
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Parameter<T> {
    value: Tensor<T, 1>,
    gradient: Tensor<T, 1>,
    shape: Box<[usize]>,
}

impl<T> Debug for Parameter<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parameter").field("shape", &self.shape).finish()
    }
}

impl<T: Element> Parameter<T> {
    /// A parameter with this value and gradient 0.
    ///
    /// # Errors
    /// [`Error::Alloc`](crate::Error::Alloc) where there is no memory for the gradient.
    pub fn new<const N: usize>(value: Tensor<T, N>) -> Result<Self> {
        let (shape, len) = (Box::from(value.shape()), value.len());
        Ok(Self { value: value.reshape([len])?, gradient: Tensor::zeros([len])?, shape })
    }

    /// The sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many numbers the value holds.
    pub fn len(&self) -> usize {
        self.value.len()
    }

    /// True where a size is 0.
    pub fn is_empty(&self) -> bool {
        self.value.is_empty()
    }

    /// The value in row-major order.
    pub fn value(&self) -> &[T] {
        self.value.as_slice()
    }

    /// The value in row-major order.
    pub fn value_mut(&mut self) -> &mut [T] {
        self.value.as_mut_slice()
    }

    /// The gradient in row-major order.
    pub fn gradient(&self) -> &[T] {
        self.gradient.as_slice()
    }

    /// The gradient in row-major order.
    pub fn gradient_mut(&mut self) -> &mut [T] {
        self.gradient.as_mut_slice()
    }

    /// The value to change and the gradient to change it by, in row-major order.
    pub fn value_and_gradient(&mut self) -> (&mut [T], &[T]) {
        (self.value.as_mut_slice(), self.gradient.as_slice())
    }

    /// The value under its shape.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) where the parameter does not have rank `N`.
    pub fn view<const N: usize>(&self) -> Result<TensorView<'_, T, N>> {
        self.value.view().reshape(self.sizes("Parameter::view")?)
    }

    /// The gradient under its shape.
    ///
    /// # Errors
    /// As [`view`](Self::view).
    pub fn gradient_view_mut<const N: usize>(&mut self) -> Result<TensorViewMut<'_, T, N>> {
        let shape = self.sizes("Parameter::gradient_view_mut")?;
        self.gradient.view_mut().reshape(shape)
    }

    /// The value and the gradient under their shape.
    ///
    /// # Errors
    /// As [`view`](Self::view).
    pub fn views<const N: usize>(&mut self) -> Result<(TensorView<'_, T, N>, TensorViewMut<'_, T, N>)> {
        let shape = self.sizes("Parameter::views")?;
        Ok((self.value.view().reshape(shape)?, self.gradient.view_mut().reshape(shape)?))
    }

    fn sizes<const N: usize>(&self, op: &'static str) -> Result<[usize; N]> {
        let shape: Result<[usize; N], _> = self.shape.as_ref().try_into();
        shape.map_err(|_| crate::Error::argument(op, "rank", N, "the rank that the parameter was made with"))
    }
}

//! The owned tensor.

use super::{Iter, Layout, TensorView, TensorViewMut};
use crate::error::{Error, Result};
use crate::workspace::{self, Aligned};

/// An owned tensor of rank `N`: contiguous, row-major, aligned to 64 bytes.
///
/// There is no `Clone`, because it could not report that memory is lacking:
/// `tensor.view().to_tensor()?` copies.
///
/// ```
/// use tilewise::Tensor;
/// let mut t = Tensor::<f32, 2>::from_fn([2, 3], |[i, j]| (10 * i + j) as f32)?;
/// *t.get_mut([0, 0]).unwrap() = 5.0;
/// assert_eq!(t.as_slice(), [5.0, 1.0, 2.0, 10.0, 11.0, 12.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Tensor<T, const N: usize> {
    data: Aligned<T>,
    /// Contiguous, of as many elements as `data`.
    layout: Layout<N>,
}

impl<T: Copy, const N: usize> Tensor<T, N> {
    /// A tensor with every element `value`.
    ///
    /// # Errors
    /// [`Error::Overflow`] where the shape's sizes overflow, [`Error::Alloc`] where there is no memory.
    pub fn full(shape: [usize; N], value: T) -> Result<Self> {
        Self::filled("Tensor::full", shape, value)
    }

    /// [`full`](Self::full) of an operation that its errors name.
    pub(crate) fn filled(op: &'static str, shape: [usize; N], value: T) -> Result<Self> {
        let layout = Layout::dense(op, shape)?;
        let mut data = workspace::try_vec(op, layout.len())?;
        data.resize(layout.len(), value);
        Ok(Self { data, layout })
    }

    /// A tensor with every element 0.
    ///
    /// # Errors
    /// As [`full`](Self::full).
    pub fn zeros(shape: [usize; N]) -> Result<Self>
    where
        T: Default,
    {
        Self::full(shape, T::default())
    }

    /// A copy of a slice, in row-major order.
    ///
    /// # Errors
    /// [`Error::Shape`] where the slice does not have as many elements as the shape, otherwise as
    /// [`full`](Self::full).
    pub fn from_slice(elements: &[T], shape: [usize; N]) -> Result<Self> {
        let layout = Layout::dense("Tensor::from_slice", shape)?;
        if layout.len() != elements.len() {
            return Err(Error::shape("Tensor::from_slice", "elements", &[elements.len()], &[layout.len()]));
        }
        let mut data = workspace::try_vec("Tensor::from_slice", layout.len())?;
        data.extend_from_slice(elements);
        Ok(Self { data, layout })
    }

    /// A tensor whose element at each index is `f(index)`.
    ///
    /// # Errors
    /// As [`full`](Self::full).
    pub fn from_fn(shape: [usize; N], mut f: impl FnMut([usize; N]) -> T) -> Result<Self> {
        let layout = Layout::dense("Tensor::from_fn", shape)?;
        let mut data = workspace::try_vec("Tensor::from_fn", layout.len())?;
        let mut index = [0; N];
        for _ in 0..layout.len() {
            data.push(f(index));
            for axis in (0..N).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(Self { data, layout })
    }

    pub(super) fn from_view(view: TensorView<'_, T, N>) -> Result<Self> {
        let Some(&first) = view.iter().next() else {
            return Ok(Self { data: Aligned::new(0), layout: Layout::dense("to_tensor", view.shape())? });
        };
        if let Some(elements) = view.as_slice() {
            return Self::from_slice(elements, view.shape());
        }
        let mut tensor = Self::full(view.shape(), first)?;
        super::elementwise::copy(view, tensor.view_mut());
        Ok(tensor)
    }
}

impl<T, const N: usize> Tensor<T, N> {
    /// The sizes, outermost first.
    pub fn shape(&self) -> [usize; N] {
        self.layout.shape()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True where a size is 0.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// A shared view of all elements.
    pub fn view(&self) -> TensorView<'_, T, N> {
        // SAFETY: the layout is contiguous and has as many elements as `data`, which is borrowed with `self`.
        unsafe { TensorView::new_unchecked(self.data.as_ptr(), self.layout) }
    }

    /// An exclusive view of all elements.
    pub fn view_mut(&mut self) -> TensorViewMut<'_, T, N> {
        // SAFETY: as in `view`, borrowed exclusively; a contiguous layout leads to no element twice.
        unsafe { TensorViewMut::new_unchecked(self.data.as_mut_ptr(), self.layout) }
    }

    /// The elements in row-major order.
    pub fn as_slice(&self) -> &[T] {
        &self.data
    }

    /// The elements in row-major order.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] where the number of elements differs.
    pub fn reshape<const M: usize>(self, shape: [usize; M]) -> Result<Tensor<T, M>> {
        let layout = self.layout.reshape(shape)?;
        Ok(Tensor { data: self.data, layout })
    }

    /// The element at an index, `None` outside the shape.
    #[inline]
    pub fn get(&self, index: [usize; N]) -> Option<&T> {
        self.data.get(self.layout.offset(index)? as usize)
    }

    /// The element at an index, `None` outside the shape.
    #[inline]
    pub fn get_mut(&mut self, index: [usize; N]) -> Option<&mut T> {
        self.data.get_mut(self.layout.offset(index)? as usize)
    }

    /// The elements, in row-major order.
    pub fn iter(&self) -> Iter<'_, T, N> {
        self.view().iter()
    }
}

/// Equal shapes and equal elements.
impl<T: PartialEq, const N: usize> PartialEq for Tensor<T, N> {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.as_slice() == other.as_slice()
    }
}

impl<'a, T, const N: usize> IntoIterator for &'a Tensor<T, N> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T, N>;

    fn into_iter(self) -> Iter<'a, T, N> {
        self.iter()
    }
}

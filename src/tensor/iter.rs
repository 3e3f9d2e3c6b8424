//! Iteration in row-major order of the index.

use super::TensorView;

/// The elements of a view in row-major order of the index; made by [`TensorView::iter`].
pub struct Iter<'a, T, const N: usize> {
    view: TensorView<'a, T, N>,
    index: [usize; N],
    /// Distance of the element at `index` from the one at index 0.
    offset: isize,
    left: usize,
}

impl<'a, T, const N: usize> Iter<'a, T, N> {
    pub(super) fn new(view: TensorView<'a, T, N>) -> Self {
        Self { view, index: [0; N], offset: 0, left: view.len() }
    }
}

impl<'a, T, const N: usize> Iterator for Iter<'a, T, N> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: elements are left, so `index` is inside the shape and `offset` leads to a borrowed one.
        let element = unsafe { &*self.view.as_ptr().offset(self.offset) };
        let (shape, strides) = (self.view.shape(), self.view.strides());
        for axis in (0..N).rev() {
            self.index[axis] += 1;
            if self.index[axis] < shape[axis] {
                self.offset += strides[axis];
                break;
            }
            self.offset -= (shape[axis] - 1) as isize * strides[axis];
            self.index[axis] = 0;
        }
        Some(element)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T, const N: usize> ExactSizeIterator for Iter<'_, T, N> {}

impl<'a, T, const N: usize> IntoIterator for TensorView<'a, T, N> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T, N>;

    fn into_iter(self) -> Iter<'a, T, N> {
        Iter::new(self)
    }
}

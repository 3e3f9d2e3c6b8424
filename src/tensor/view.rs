//! Borrowed views.

use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use super::{Iter, Layout, Tensor};
use crate::element::Element;
use crate::error::{Dims, Error, Result, expect_axis};

/// A shared view of rank `N`: a pointer with a [`Layout`].
///
/// ```
/// use tilewise::TensorView;
/// let pixels = [1, 2, 3, 4, 5, 6];
/// let image = TensorView::from_slice(&pixels, [2, 3])?;
/// let columns = image.transpose();
/// assert_eq!(columns.shape(), [3, 2]);
/// assert_eq!(columns.iter().copied().collect::<Vec<_>>(), [1, 4, 2, 5, 3, 6]);
/// # Ok::<(), tilewise::Error>(())
/// ```
// Invariant, kept by every constructor here: `ptr` points at the element with index 0 and every index
// inside the shape leads to an element borrowed for `'a`. An empty layout leads nowhere.
pub struct TensorView<'a, T, const N: usize> {
    ptr: *const T,
    layout: Layout<N>,
    borrow: PhantomData<&'a [T]>,
}

/// An exclusive view of rank `N`: a pointer with a [`Layout`] in which no two indices reach one element.
///
/// ```
/// use tilewise::TensorViewMut;
/// let mut data = [0; 6];
/// let mut view = TensorViewMut::from_slice(&mut data, [2, 3])?.transpose();
/// *view.get_mut([2, 1]).unwrap() = 7;
/// assert_eq!(data, [0, 0, 0, 0, 0, 7]);
/// # Ok::<(), tilewise::Error>(())
/// ```
///
/// While it lives there is no other way to its elements:
///
/// ```compile_fail,E0499
/// # use tilewise::Tensor;
/// let mut t = Tensor::<f32, 1>::zeros([4])?;
/// let mut one = t.view_mut();
/// let mut other = t.view_mut();
/// one.fill(1.0);
/// other.fill(2.0);
/// # Ok::<(), tilewise::Error>(())
/// ```
///
/// ```compile_fail,E0505
/// # use tilewise::Tensor;
/// let mut t = Tensor::<f32, 1>::zeros([4])?;
/// let mut view = t.view_mut();
/// drop(t);
/// view.fill(1.0);
/// # Ok::<(), tilewise::Error>(())
/// ```
// Invariant: as for `TensorView`, the borrow is exclusive, and no two indices lead to one element.
pub struct TensorViewMut<'a, T, const N: usize> {
    ptr: *mut T,
    layout: Layout<N>,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared view gives out `&T` and nothing else.
unsafe impl<T: Sync, const N: usize> Send for TensorView<'_, T, N> {}
// SAFETY: as above.
unsafe impl<T: Sync, const N: usize> Sync for TensorView<'_, T, N> {}
// SAFETY: an exclusive view is the only way to its elements, as `&mut [T]` is.
unsafe impl<T: Send, const N: usize> Send for TensorViewMut<'_, T, N> {}
// SAFETY: through a shared reference it gives out `&T` and nothing else.
unsafe impl<T: Sync, const N: usize> Sync for TensorViewMut<'_, T, N> {}

impl<T, const N: usize> Clone for TensorView<'_, T, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, const N: usize> Copy for TensorView<'_, T, N> {}

/// What both kinds of views have, and how each is made from a slice.
macro_rules! view {
    ($view:ident, $slice:ty, $as_ptr:ident, $checks:expr) => {
        impl<'a, T, const N: usize> $view<'a, T, N> {
            /// The elements of a slice in row-major order.
            ///
            /// # Errors
            /// [`Error::Shape`] where the slice does not have as many elements as the shape,
            /// [`Error::Overflow`] where the shape's sizes overflow.
            pub fn from_slice(data: $slice, shape: [usize; N]) -> Result<Self> {
                let layout = Layout::dense("from_slice", shape)?;
                if layout.len() != data.len() {
                    return Err(Error::shape("from_slice", "data", &[data.len()], &[layout.len()]));
                }
                Ok(Self { ptr: data.$as_ptr(), layout, borrow: PhantomData })
            }

            /// Any shape and strides over a slice, in elements; index 0 is the slice's first element.
            ///
            /// # Errors
            /// As [`as_strided_at`](Self::as_strided_at).
            pub fn as_strided(data: $slice, shape: [usize; N], strides: [isize; N]) -> Result<Self> {
                Self::as_strided_at(data, 0, shape, strides)
            }

            /// Any shape and strides over a slice, in elements; index 0 is the slice's element `offset`,
            /// from which negative strides reach back.
            ///
            /// # Errors
            /// [`Error::OutOfBounds`] where an index leads outside the slice, [`Error::Overflow`] where
            /// sizes overflow and, if the view is exclusive, [`Error::Overlap`] where two indices may lead
            /// to one element (see [`Layout::may_overlap`]).
            pub fn as_strided_at(
                data: $slice,
                offset: usize,
                shape: [usize; N],
                strides: [isize; N],
            ) -> Result<Self> {
                let layout = Layout::checked("as_strided", shape, strides)?;
                layout.check_bounds("as_strided", offset, data.len())?;
                let check: fn(&Layout<N>) -> Result<()> = $checks;
                check(&layout)?;
                // An empty layout leads nowhere, so its offset may be anything.
                let offset = if layout.is_empty() { 0 } else { offset };
                Ok(Self { ptr: data.$as_ptr().wrapping_add(offset), layout, borrow: PhantomData })
            }

            /// The sizes, outermost first.
            pub fn shape(&self) -> [usize; N] {
                self.layout.shape()
            }

            /// The distances between neighbours along each axis, in elements.
            pub fn strides(&self) -> [isize; N] {
                self.layout.strides()
            }

            /// Shape and strides.
            pub fn layout(&self) -> &Layout<N> {
                &self.layout
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                self.layout.len()
            }

            /// True where a size is 0.
            pub fn is_empty(&self) -> bool {
                self.layout.is_empty()
            }

            /// The view over `layout`, whose first element is `offset` away from this one's.
            ///
            /// The layout must reach no element that this view does not reach, and where the view is
            /// exclusive, none twice: all the derivations of [`Layout`] do so.
            fn derive<const M: usize>(self, (offset, layout): (isize, Layout<M>)) -> $view<'a, T, M> {
                $view { ptr: self.ptr.wrapping_offset(offset), layout, borrow: PhantomData }
            }

            /// The axes in another order: axis `i` of the result is axis `axes[i]` of this view.
            ///
            /// # Errors
            /// [`Error::Argument`] unless `axes` names each axis once.
            pub fn permute(self, axes: [usize; N]) -> Result<Self> {
                let layout = self.layout.permute(axes)?;
                Ok(self.derive((0, layout)))
            }

            /// The axes in reverse order; a matrix is transposed.
            pub fn transpose(self) -> Self {
                let layout = self.layout.transpose();
                self.derive((0, layout))
            }

            /// One axis in reverse, by a negative stride.
            ///
            /// # Errors
            /// [`Error::Argument`] where the axis does not exist.
            pub fn flip(self, axis: usize) -> Result<Self> {
                let derived = self.layout.flip(axis)?;
                Ok(self.derive(derived))
            }

            /// Every `step`-th element of a range of one axis, beginning with the range's first.
            ///
            /// # Errors
            /// [`Error::Argument`] where the axis does not exist, the range leaves it, or the step is 0.
            pub fn slice(self, axis: usize, range: impl RangeBounds<usize>, step: usize) -> Result<Self> {
                let (start, end) = self.resolve(axis, range)?;
                let derived = self.layout.slice(axis, start, end, step)?;
                Ok(self.derive(derived))
            }

            /// The same elements in row-major order under another shape, without copying.
            ///
            /// # Errors
            /// [`Error::Shape`] where the number of elements differs, [`Error::NotViewable`] where no
            /// strides give that shape (copy with [`to_tensor`](TensorView::to_tensor) first).
            pub fn reshape<const M: usize>(self, shape: [usize; M]) -> Result<$view<'a, T, M>> {
                let layout = self.layout.reshape(shape)?;
                Ok(self.derive((0, layout)))
            }

            /// What [`reshape`](Self::reshape) gives, if anything, for those who go on where there are no strides: the error
            /// that says so takes memory.
            pub(crate) fn viewed_as<const M: usize>(self, shape: [usize; M]) -> Option<$view<'a, T, M>> {
                let layout = self.layout.viewed_as(shape)?;
                Some(self.derive((0, layout)))
            }

            /// The view at one index of an axis, which the result no longer has: `M` is `N − 1`.
            ///
            /// # Errors
            /// [`Error::Argument`] where the axis or the index does not exist, or `M` is not `N − 1`.
            pub fn select<const M: usize>(self, axis: usize, index: usize) -> Result<$view<'a, T, M>> {
                let derived = self.layout.select(axis, index)?;
                Ok(self.derive(derived))
            }

            /// The view with an axis of size 1 put in before `axis`: `M` is `N + 1`.
            ///
            /// # Errors
            /// [`Error::Argument`] where `axis` is greater than `N`, or `M` is not `N + 1`.
            pub fn insert_axis<const M: usize>(self, axis: usize) -> Result<$view<'a, T, M>> {
                let layout = self.layout.insert_axis(axis)?;
                Ok(self.derive((0, layout)))
            }

            /// An image as `[batch, channels, depth, height, width]`: spatial axes that it lacks have size 1.
            pub(crate) fn lift(self) -> $view<'a, T, 5> {
                let layout = self.layout.lift();
                self.derive((0, layout))
            }

            fn resolve(&self, axis: usize, range: impl RangeBounds<usize>) -> Result<(usize, usize)> {
                expect_axis("slice", axis, N)?;
                let size = self.layout.shape()[axis];
                let after = |at: usize| at.checked_add(1).unwrap_or(usize::MAX);
                let start = match range.start_bound() {
                    Bound::Included(&at) => at,
                    Bound::Excluded(&at) => after(at),
                    Bound::Unbounded => 0,
                };
                let end = match range.end_bound() {
                    Bound::Included(&at) => after(at),
                    Bound::Excluded(&at) => at,
                    Bound::Unbounded => size,
                };
                Ok((start, end))
            }
        }
    };
}

view!(TensorView, &'a [T], as_ptr, |_| Ok(()));
view!(TensorViewMut, &'a mut [T], as_mut_ptr, |layout| layout.check_disjoint("as_strided"));

impl<'a, T, const N: usize> TensorView<'a, T, N> {
    /// # Safety
    /// Every index inside the layout must lead from `ptr` to an element borrowed for `'a`.
    pub(super) unsafe fn new_unchecked(ptr: *const T, layout: Layout<N>) -> Self {
        Self { ptr, layout, borrow: PhantomData }
    }

    /// A pointer to the element with index 0. Dangling where the view is empty.
    pub fn as_ptr(&self) -> *const T {
        self.ptr
    }

    /// The view repeated along new leading axes and along axes of size 1, by strides of 0, to `shape`.
    ///
    /// # Errors
    /// [`Error::Shape`] where a size is neither equal nor 1.
    ///
    /// ```
    /// use tilewise::TensorView;
    /// let row = TensorView::from_slice(&[1, 2], [2])?;
    /// assert_eq!(row.broadcast([3, 2])?.iter().sum::<i32>(), 9);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn broadcast<const M: usize>(self, shape: [usize; M]) -> Result<TensorView<'a, T, M>> {
        let layout = self.layout.broadcast(shape)?;
        Ok(self.derive((0, layout)))
    }

    pub(super) fn derived<const M: usize>(self, layout: Layout<M>) -> TensorView<'a, T, M> {
        self.derive((0, layout))
    }

    /// The two views before and from index `at` of an axis.
    ///
    /// # Errors
    /// [`Error::Argument`] where the axis does not exist or `at` lies behind its end.
    pub fn split_at(self, axis: usize, at: usize) -> Result<(Self, Self)> {
        self.layout.check_split(axis, at)?;
        Ok((self.slice(axis, ..at, 1)?, self.slice(axis, at.., 1)?))
    }

    /// The element at an index, `None` outside the shape.
    #[inline]
    pub fn get(&self, index: [usize; N]) -> Option<&'a T> {
        let offset = self.layout.offset(index)?;
        // SAFETY: the index is inside the shape, so the invariant gives an element borrowed for `'a`.
        Some(unsafe { &*self.ptr.offset(offset) })
    }

    /// The elements as a slice, where they lie in row-major order without gaps.
    pub fn as_slice(&self) -> Option<&'a [T]> {
        if !self.layout.is_contiguous() {
            return None;
        }
        if self.is_empty() {
            return Some(&[]);
        }
        // SAFETY: contiguous, so the indices lead to `len` elements in a row, all borrowed for `'a`.
        Some(unsafe { std::slice::from_raw_parts(self.ptr, self.len()) })
    }

    /// The elements, in row-major order of the index.
    pub fn iter(&self) -> Iter<'a, T, N> {
        Iter::new(*self)
    }

    /// An aligned, contiguous copy.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory.
    pub fn to_tensor(&self) -> Result<Tensor<T, N>>
    where
        T: Copy,
    {
        Tensor::from_view(*self)
    }

    /// True where the shapes are equal and `|a − b| ≤ atol + rtol · |b|` for every pair of elements `a` of
    /// this view and `b` of the other. An infinity is close to itself only, NaN to nothing.
    pub fn all_close(&self, other: TensorView<'_, T, N>, rtol: f64, atol: f64) -> bool
    where
        T: Element,
    {
        self.shape() == other.shape()
            && self.iter().zip(other.iter()).map(|(&a, &b)| (a.to_f64(), b.to_f64())).all(|(a, b)| {
                let finite = a.is_finite() && b.is_finite();
                a == b || (finite && (a - b).abs() <= atol + rtol * b.abs())
            })
    }
}

impl<'a, T> TensorView<'a, T, 2> {
    /// The part of a matrix that begins at `at`. The caller keeps it inside.
    #[inline(always)]
    pub(crate) fn tile(&self, at: [usize; 2], shape: [usize; 2]) -> TensorView<'a, T, 2> {
        // The tile's elements are elements of this view.
        let (offset, layout) = self.layout.tile(at, shape);
        TensorView { ptr: self.ptr.wrapping_offset(offset), layout, borrow: PhantomData }
    }

    /// Row `index` as a slice, where the row is contiguous and exists.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> Option<&'a [T]> {
        let ([rows, columns], [stride, step]) = (self.shape(), self.strides());
        if index >= rows || (step != 1 && columns > 1) {
            return None;
        }
        if columns == 0 {
            return Some(&[]);
        }
        // SAFETY: the row exists and its elements lie in a row, all borrowed for `'a`.
        Some(unsafe { std::slice::from_raw_parts(self.ptr.offset(index as isize * stride), columns) })
    }
}

impl<'a, T> TensorView<'a, T, 4> {
    /// The matrix over the last two axes at an index of the first two, which exists.
    #[inline(always)]
    pub(crate) fn matrix_at(&self, at: [usize; 2]) -> TensorView<'a, T, 2> {
        let ([first, second, rows, columns], strides) = (self.shape(), self.strides());
        assert!(at[0] < first && at[1] < second, "a matrix lies inside its view");
        let empty = rows == 0 || columns == 0;
        let offset = if empty { 0 } else { at[0] as isize * strides[0] + at[1] as isize * strides[1] };
        // The matrix's elements are elements of this view.
        let layout = Layout::matrix([rows, columns]).with_strides([strides[2], strides[3]]);
        TensorView { ptr: self.ptr.wrapping_offset(offset), layout, borrow: PhantomData }
    }

    /// True where each [`matrix_at`](Self::matrix_at) is a slice.
    #[inline(always)]
    pub(crate) fn has_lines(&self) -> bool {
        let ([_, _, rows, columns], strides) = (self.shape(), self.strides());
        rows == 0
            || columns == 0
            || ((strides[3] == 1 || columns == 1) && (strides[2] == columns as isize || rows == 1))
    }

    /// [`matrix_at`](Self::matrix_at) as a slice, where its elements lie in a row.
    #[inline(always)]
    pub(crate) fn line(&self, at: [usize; 2]) -> Option<&'a [T]> {
        let matrix = self.matrix_at(at);
        if !self.has_lines() {
            return None;
        }
        if matrix.is_empty() {
            return Some(&[]);
        }
        // SAFETY: the matrix exists and its elements lie in a row, all borrowed for `'a`.
        Some(unsafe { std::slice::from_raw_parts(matrix.ptr, matrix.len()) })
    }
}

impl<'a, T, const N: usize> TensorViewMut<'a, T, N> {
    /// # Safety
    /// Every index inside the layout must lead from `ptr` to an element borrowed exclusively for `'a`, and
    /// no two to the same.
    pub(super) unsafe fn new_unchecked(ptr: *mut T, layout: Layout<N>) -> Self {
        Self { ptr, layout, borrow: PhantomData }
    }

    /// A shared view of the same elements.
    pub fn view(&self) -> TensorView<'_, T, N> {
        TensorView { ptr: self.ptr, layout: self.layout, borrow: PhantomData }
    }

    /// An exclusive view of the same elements, for a shorter time.
    pub fn view_mut(&mut self) -> TensorViewMut<'_, T, N> {
        TensorViewMut { ptr: self.ptr, layout: self.layout, borrow: PhantomData }
    }

    /// A pointer to the element with index 0. Dangling where the view is empty.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.ptr
    }

    /// The element at an index, `None` outside the shape.
    #[inline]
    pub fn get(&self, index: [usize; N]) -> Option<&T> {
        let offset = self.layout.offset(index)?;
        // SAFETY: the index is inside the shape, so the invariant gives a borrowed element.
        Some(unsafe { &*self.ptr.offset(offset) })
    }

    /// The element at an index, `None` outside the shape.
    #[inline]
    pub fn get_mut(&mut self, index: [usize; N]) -> Option<&mut T> {
        let offset = self.layout.offset(index)?;
        // SAFETY: the index is inside the shape, so the invariant gives an exclusively borrowed element.
        Some(unsafe { &mut *self.ptr.offset(offset) })
    }

    /// The elements as a slice, where they lie in row-major order without gaps.
    pub fn as_mut_slice(&mut self) -> Option<&mut [T]> {
        if !self.layout.is_contiguous() {
            return None;
        }
        if self.is_empty() {
            return Some(&mut []);
        }
        // SAFETY: contiguous, so the indices lead to `len` elements in a row, all borrowed exclusively.
        Some(unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len()) })
    }

    /// The two views before and from index `at` of an axis.
    ///
    /// # Errors
    /// [`Error::Argument`] where the axis does not exist or `at` lies behind its end.
    pub fn split_at(self, axis: usize, at: usize) -> Result<(Self, Self)> {
        self.layout.check_split(axis, at)?;
        let (start, end) = self.resolve(axis, ..)?;
        let (first_offset, first) = self.layout.slice(axis, start, at, 1)?;
        let (second_offset, second) = self.layout.slice(axis, at, end, 1)?;
        // The two layouts split the indices of this one, no two of which lead to one element.
        let ptr = self.ptr;
        Ok((
            Self { ptr: ptr.wrapping_offset(first_offset), layout: first, borrow: PhantomData },
            Self { ptr: ptr.wrapping_offset(second_offset), layout: second, borrow: PhantomData },
        ))
    }

    /// Sets every element.
    pub fn fill(&mut self, value: T)
    where
        T: Copy,
    {
        super::elementwise::fill(self.view_mut(), value);
    }

    /// Copies the elements of a view of the same shape.
    ///
    /// # Errors
    /// [`Error::Shape`] where the shapes differ.
    pub fn assign(&mut self, source: TensorView<'_, T, N>) -> Result<()>
    where
        T: Copy,
    {
        if source.shape() != self.shape() {
            return Err(Error::Shape {
                op: "assign",
                arg: "source",
                found: Dims::new(&source.shape()),
                expected: Dims::new(&self.shape()),
            });
        }
        self.copy_from(source);
        Ok(())
    }

    /// [`assign`](Self::assign) from a view whose shape the caller knows to be the same.
    pub(crate) fn copy_from(&mut self, source: TensorView<'_, T, N>)
    where
        T: Copy,
    {
        super::elementwise::copy(source, self.view_mut());
    }
}

impl<'a, T> TensorViewMut<'a, T, 2> {
    /// A row-major matrix over the front of a slice, which has as many elements.
    #[inline(always)]
    pub(crate) fn matrix(data: &'a mut [T], shape: [usize; 2]) -> Self {
        let inside = shape[0].checked_mul(shape[1]).is_some_and(|len| len <= data.len());
        assert!(inside, "a matrix lies inside its slice");
        Self { ptr: data.as_mut_ptr(), layout: Layout::matrix(shape), borrow: PhantomData }
    }

    /// The part of a matrix that begins at `at`. The caller keeps it inside.
    #[inline(always)]
    pub(crate) fn tile_mut(&mut self, at: [usize; 2], shape: [usize; 2]) -> TensorViewMut<'_, T, 2> {
        // The tile's elements are elements of this view, and borrowed from it.
        let (offset, layout) = self.layout.tile(at, shape);
        TensorViewMut { ptr: self.ptr.wrapping_offset(offset), layout, borrow: PhantomData }
    }

    /// Row `index` as a slice, where the row is contiguous and exists.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, index: usize) -> Option<&mut [T]> {
        let ([rows, columns], [stride, step]) = (self.shape(), self.strides());
        if index >= rows || (step != 1 && columns > 1) {
            return None;
        }
        if columns == 0 {
            return Some(&mut []);
        }
        // SAFETY: the row exists and its elements lie in a row, all borrowed exclusively.
        Some(unsafe { std::slice::from_raw_parts_mut(self.ptr.offset(index as isize * stride), columns) })
    }
}

impl<T> TensorViewMut<'_, T, 4> {
    /// The matrix over the last two axes at an index of the first two, which exists.
    #[inline(always)]
    pub(crate) fn matrix_at_mut(&mut self, at: [usize; 2]) -> TensorViewMut<'_, T, 2> {
        let matrix = self.view().matrix_at(at);
        // Its elements are elements of this view, and borrowed from it.
        TensorViewMut { ptr: matrix.ptr.cast_mut(), layout: matrix.layout, borrow: PhantomData }
    }

    /// [`matrix_at_mut`](Self::matrix_at_mut) as a slice, where its elements lie in a row.
    #[inline(always)]
    pub(crate) fn line_mut(&mut self, at: [usize; 2]) -> Option<&mut [T]> {
        if !self.view().has_lines() {
            return None;
        }
        let matrix = self.matrix_at_mut(at);
        if matrix.is_empty() {
            return Some(&mut []);
        }
        // SAFETY: the matrix exists and its elements lie in a row, all borrowed exclusively.
        Some(unsafe { std::slice::from_raw_parts_mut(matrix.ptr, matrix.len()) })
    }
}

impl<'a, T, const N: usize> From<TensorViewMut<'a, T, N>> for TensorView<'a, T, N> {
    fn from(view: TensorViewMut<'a, T, N>) -> Self {
        Self { ptr: view.ptr, layout: view.layout, borrow: PhantomData }
    }
}

/// Equal shapes and equal elements.
impl<T: PartialEq, const N: usize> PartialEq for TensorView<'_, T, N> {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.iter().eq(other.iter())
    }
}

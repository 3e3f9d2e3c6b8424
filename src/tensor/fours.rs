//! Four neighbours of each of some lines.

use std::marker::PhantomData;

use super::TensorView;

/// Four elements that are neighbours of each of `count` lines of a matrix.
// Invariant: of each line `i < count`, the four elements from `ptr + i · stride` on are borrowed for `'a`.
#[derive(Clone, Copy)]
pub struct Fours<'a, T> {
    ptr: *const T,
    stride: isize,
    count: usize,
    borrow: PhantomData<&'a [T]>,
}

impl<'a, T> Fours<'a, T> {
    /// Those of line `line`, which exists.
    #[inline(always)]
    pub(crate) fn get(&self, line: usize) -> &'a [T; 4] {
        assert!(line < self.count);
        // SAFETY: the invariant of `Fours`.
        unsafe { &*self.ptr.offset(line as isize * self.stride).cast() }
    }

    /// The lines from `first` on, at most all.
    #[inline(always)]
    pub(crate) fn from(self, first: usize) -> Self {
        assert!(first <= self.count);
        Self {
            ptr: self.ptr.wrapping_offset(first as isize * self.stride),
            count: self.count - first,
            ..self
        }
    }
}

impl<'a, T> TensorView<'a, T, 2> {
    /// The elements from place `at` on of the lines from `line` on, of `count` of them, which exist and are contiguous.
    #[inline(always)]
    pub(crate) fn fours(&self, [line, at]: [usize; 2], count: usize) -> Fours<'a, T> {
        let ([lines, len], [stride, step]) = (self.shape(), self.strides());
        assert!(count <= lines && line <= lines - count && len >= 4 && at <= len - 4 && step == 1);
        let ptr = self.as_ptr().wrapping_offset((line as isize).wrapping_mul(stride)).wrapping_add(at);
        Fours { ptr, stride, count, borrow: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use crate::TensorView;

    #[test]
    fn lines_begin_where_the_view_says() {
        let values: Vec<i32> = (0..60).collect();
        let view = TensorView::as_strided_at(&values, 40, [5, 10], [-10, 1]).unwrap();
        let fours = view.fours([1, 6], 3);
        assert_eq!(fours.get(0), &[36, 37, 38, 39]);
        assert_eq!(fours.get(2), &[16, 17, 18, 19]);
        assert_eq!(fours.from(1).get(1), &[16, 17, 18, 19]);
    }

    #[test]
    fn lines_that_do_not_exist_are_refused() {
        let values = [0; 60];
        let view = TensorView::from_slice(&values, [6, 10]).unwrap();
        let refused = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
        assert!(refused(&|| _ = view.fours([0, 7], 1)));
        assert!(refused(&|| _ = view.fours([4, 0], 3)));
        assert!(refused(&|| _ = view.transpose().fours([0, 0], 2)));
        assert!(refused(&|| _ = view.fours([0, 0], 2).get(2)));
        assert!(refused(&|| _ = view.fours([0, 0], 2).from(3)));
    }
}

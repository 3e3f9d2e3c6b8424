//! Several slices that are read side by side.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Simd, fit};

/// Slices of one length, read in step: `R` rows of `N`. One length, so that one comparison does for what is read of all rows.
#[derive(Clone, Copy)]
pub struct Streams<'s, T, const N: usize, const R: usize = 1> {
    /// Of `len` elements each, which live as long as `'s`.
    starts: [[*const T; N]; R],
    len: usize,
    slices: PhantomData<&'s [T]>,
}

impl<'s, T: Copy, const N: usize, const R: usize> Streams<'s, T, N, R> {
    /// The same slice for all of them.
    #[inline(always)]
    pub fn same(slice: &'s [T]) -> Self {
        Self { starts: [[slice.as_ptr(); N]; R], len: slice.len(), slices: PhantomData }
    }

    /// For a row, the elements from each multiple of `step` on of a slice that has as many.
    #[inline(always)]
    pub fn row_apart(&mut self, row: usize, slice: &'s [T], step: usize) {
        self.set_apart(row, self.len, slice, step);
    }

    /// For `some` of a row, the elements from each multiple of `step` on of a slice that has as many; for those beside them, of another.
    #[inline(always)]
    pub fn row_among(
        &mut self,
        row: usize,
        some: Range<usize>,
        slice: &'s [T],
        step: usize,
        beside: &'s [T],
    ) {
        self.starts[row] = starts_among(self.len, some, slice, step, beside);
    }

    /// For one of a row, the first elements of a slice that has as many as the others.
    #[inline(always)]
    pub fn one(&mut self, row: usize, i: usize, slice: &'s [T]) {
        self.starts[row][i] = slice[..self.len].as_ptr();
    }

    /// For a row, the first `len` elements of slices that have as many.
    #[inline(always)]
    fn set(&mut self, row: usize, len: usize, slice: impl Fn(usize) -> &'s [T]) {
        for (i, start) in self.starts[row].iter_mut().enumerate() {
            *start = slice(i)[..len].as_ptr();
        }
    }

    /// [`row_apart`](Self::row_apart), where `len` is or will be that of all.
    #[inline(always)]
    fn set_apart(&mut self, row: usize, len: usize, slice: &'s [T], step: usize) {
        assert!(fit::<N>(slice.len(), step, len));
        for (i, start) in self.starts[row].iter_mut().enumerate() {
            *start = slice.as_ptr().wrapping_add(i * step);
        }
    }

    /// The vector from element `at` on of each of a row.
    #[inline(always)]
    pub fn load_row<S: Simd<T>>(&self, simd: S, row: usize, at: usize) -> [S::V; N] {
        // One comparison in a loop: what is on the right does not change.
        assert!(at < (self.len + 1).saturating_sub(S::LANES));
        let mut vectors = [simd.splat_bits(0); N];
        for i in 0..N {
            let start = self.starts[row][i];
            // SAFETY: who set `len` or a start has found as many elements there, borrowed for `'s`; the vector ends in them.
            vectors[i] = simd.load(unsafe { std::slice::from_raw_parts(start.add(at), S::LANES) });
        }
        vectors
    }

    /// The elements from `at` on of each of a row, at most a vector of them.
    #[inline(always)]
    pub fn load_row_partial<S: Simd<T>>(&self, simd: S, row: usize, at: usize) -> [S::V; N] {
        assert!(at <= self.len);
        let mut vectors = [simd.splat_bits(0); N];
        for i in 0..N {
            let start = self.starts[row][i];
            // SAFETY: as above.
            vectors[i] = simd.load_partial(unsafe {
                std::slice::from_raw_parts(start.add(at), S::LANES.min(self.len - at))
            });
        }
        vectors
    }

    /// The elements from `at` on of one of a row, at most a vector of them.
    #[inline(always)]
    pub fn load_one<S: Simd<T>>(&self, simd: S, row: usize, i: usize, at: usize) -> S::V {
        assert!(at <= self.len);
        // SAFETY: as above.
        let slice =
            unsafe { std::slice::from_raw_parts(self.starts[row][i].add(at), S::LANES.min(self.len - at)) };
        if slice.len() == S::LANES { simd.load(slice) } else { simd.load_partial(slice) }
    }
}

/// One row.
impl<'s, T: Copy, const N: usize> Streams<'s, T, N> {
    /// Nothing to read.
    pub fn none() -> Self {
        Self::same(&[])
    }

    /// The first `len` elements of slices that have as many.
    #[inline(always)]
    pub fn each(&mut self, len: usize, slice: impl Fn(usize) -> &'s [T]) {
        // Until all starts are set.
        self.len = 0;
        self.set(0, len, slice);
        self.len = len;
    }

    /// `len` elements from each multiple of `step` on of a slice that has as many.
    #[inline(always)]
    pub fn apart(&mut self, slice: &'s [T], step: usize, len: usize) {
        self.set_apart(0, len, slice, step);
        self.len = len;
    }

    /// The vector from element `at` on of each.
    #[inline(always)]
    pub fn load<S: Simd<T>>(&self, simd: S, at: usize) -> [S::V; N] {
        self.load_row(simd, 0, at)
    }

    /// The elements from `at` on of each, at most a vector of them.
    #[inline(always)]
    pub fn load_partial<S: Simd<T>>(&self, simd: S, at: usize) -> [S::V; N] {
        self.load_row_partial(simd, 0, at)
    }
}

/// Where the slices of [`Streams::row_among`] start. A function of its own, as it is seldom called: within a loop over rows it would
/// take registers.
#[inline(never)]
fn starts_among<T, const N: usize>(
    len: usize,
    some: Range<usize>,
    slice: &[T],
    step: usize,
    beside: &[T],
) -> [*const T; N] {
    assert!(beside.len() >= len);
    let last = some.len().saturating_sub(1).checked_mul(step);
    let fits = last.and_then(|last| last.checked_add(len)).is_some_and(|end| end <= slice.len());
    assert!(some.is_empty() || fits);
    let first = slice.as_ptr().wrapping_sub(some.start.wrapping_mul(step));
    std::array::from_fn(|i| if some.contains(&i) { first.wrapping_add(i * step) } else { beside.as_ptr() })
}

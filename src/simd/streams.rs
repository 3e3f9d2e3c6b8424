//! Several slices that are read side by side.

use std::marker::PhantomData;

use super::{Simd, fit};

/// Slices of one length, read in step.
#[derive(Clone, Copy)]
pub struct Streams<'s, T, const N: usize> {
    /// Of `len` elements each, which live as long as `'s`.
    starts: [*const T; N],
    len: usize,
    slices: PhantomData<&'s [T]>,
}

impl<'s, T: Copy, const N: usize> Streams<'s, T, N> {
    /// Nothing to read.
    pub fn none() -> Self {
        Self { starts: [std::ptr::dangling(); N], len: 0, slices: PhantomData }
    }

    /// The first `len` elements of slices that have as many.
    #[inline(always)]
    pub fn each(&mut self, len: usize, slice: impl Fn(usize) -> &'s [T]) {
        self.len = 0;
        for (i, start) in self.starts.iter_mut().enumerate() {
            *start = slice(i)[..len].as_ptr();
        }
        self.len = len;
    }

    /// `len` elements from each multiple of `step` on of a slice that has as many.
    #[inline(always)]
    pub fn apart(&mut self, slice: &'s [T], step: usize, len: usize) {
        assert!(fit::<N>(slice.len(), step, len));
        for (i, start) in self.starts.iter_mut().enumerate() {
            *start = slice.as_ptr().wrapping_add(i * step);
        }
        self.len = len;
    }

    /// The vector from element `at` on of each.
    #[inline(always)]
    pub fn load<S: Simd<T>>(&self, simd: S, at: usize) -> [S::V; N] {
        // One comparison in a loop: what is on the right does not change.
        assert!(at < (self.len + 1).saturating_sub(S::LANES));
        let mut vectors = [simd.splat_bits(0); N];
        for (vector, &start) in vectors.iter_mut().zip(&self.starts) {
            // SAFETY: who set `len` has found as many elements at each start, borrowed for `'s`; the vector ends in them.
            *vector = simd.load(unsafe { std::slice::from_raw_parts(start.add(at), S::LANES) });
        }
        vectors
    }

    /// The elements from `at` on of each, at most a vector of them.
    #[inline(always)]
    pub fn load_partial<S: Simd<T>>(&self, simd: S, at: usize) -> [S::V; N] {
        assert!(at <= self.len);
        let mut vectors = [simd.splat_bits(0); N];
        for (vector, &start) in vectors.iter_mut().zip(&self.starts) {
            // SAFETY: as above.
            *vector = simd.load_partial(unsafe {
                std::slice::from_raw_parts(start.add(at), S::LANES.min(self.len - at))
            });
        }
        vectors
    }
}

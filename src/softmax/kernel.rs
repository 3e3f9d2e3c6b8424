//! One row, or one block of columns, by vectors.

use super::drive::Merged;
use crate::element::Element;
use crate::error::Result;
use crate::machine::Isa;
use crate::simd::Simd;
use crate::tensor::{TensorView, TensorViewMut};
use crate::vecmath::{UNROLL, for_vectors};

/// A kernel over `K` sources and one output, all of one shape.
pub trait Kernel<const K: usize>: Copy + Send + Sync {
    /// Over views of three axes.
    fn run<T: Element>(isa: Isa, merged: Merged<'_, T, Self, K>) -> Result<()>;

    /// Along contiguous rows of one length, which is not 0.
    ///
    /// `next` are the sources of the row after this one, of the same length, or `srcs` again if there is none;
    /// what the call returns is `ahead` for that row, `None` for the first. So a row can come from memory
    /// while the one before is worked on.
    fn row<T: Element, S: Simd<T>>(
        self,
        s: S,
        srcs: [&[T]; K],
        next: [&[T]; K],
        ahead: Option<T>,
        dst: &mut [T],
    ) -> Option<T>;

    /// Down the columns `first..first + count` of matrices whose rows are contiguous: `U` vectors of columns,
    /// or, where `U` is 1, as many columns as there are, at most one vector.
    fn columns<T: Element, S: Simd<T>, const U: usize>(
        self,
        s: S,
        srcs: &[TensorView<'_, T, 2>; K],
        dst: &mut TensorViewMut<'_, T, 2>,
        first: usize,
        count: usize,
    );
}

/// x → y.
#[derive(Clone, Copy)]
pub struct Forward {
    pub logarithm: bool,
}

/// (y, dy) → dx.
#[derive(Clone, Copy)]
pub struct Backward {
    pub logarithm: bool,
}

/// The sum of the vectors, then of their lanes.
#[inline(always)]
fn total<T: Element, S: Simd<T>>(s: S, sums: [S::V; UNROLL]) -> T {
    s.reduce_add(s.add(sums[0], sums[1]))
}

/// The largest element of a row; NaN are passed over.
#[inline(always)]
fn maximum<T: Element, S: Simd<T>>(s: S, x: &[T]) -> T {
    let mut most = [s.splat(T::NEG_INFINITY); UNROLL];
    for_vectors!(x.len(), |at, i| { most[i] = s.max(s.load(&x[at]), most[i]) }, |_rest| {});
    largest(s, most, x)
}

/// The largest element of a row from the largest lanes of its whole vectors.
#[inline(always)]
fn largest<T: Element, S: Simd<T>>(s: S, mut most: [S::V; UNROLL], x: &[T]) -> T {
    match x.len().checked_sub(S::LANES) {
        // The last vector reaches back: taking an element twice changes no maximum.
        Some(last) => most[0] = s.max(s.load(&x[last..]), most[0]),
        None => return x.iter().fold(T::NEG_INFINITY, |most, &x| if x > most { x } else { most }),
    }
    s.reduce_max(s.max(most[0], most[1]))
}

impl Kernel<1> for Forward {
    fn run<T: Element>(isa: Isa, merged: Merged<'_, T, Self, 1>) -> Result<()> {
        T::softmax_forward(isa, merged)
    }

    #[inline(always)]
    fn row<T: Element, S: Simd<T>>(
        self,
        s: S,
        [x]: [&[T]; 1],
        [next]: [&[T]; 1],
        ahead: Option<T>,
        y: &mut [T],
    ) -> Option<T> {
        let (x, next) = (&x[..y.len()], &next[..y.len()]);
        let most = s.splat(ahead.unwrap_or_else(|| maximum(s, x)));
        let mut next_most = [s.splat(T::NEG_INFINITY); UNROLL];
        // The terms, and their sum. The logarithm writes them too: only so is the last, partial vector of
        // terms padded with zeros when read back, and the row is in L1.
        let mut sums = [s.splat(T::ZERO); UNROLL];
        for_vectors!(
            x.len(),
            |at, i| {
                let e = T::exp_normal_v(s, s.sub(s.load(&x[at.clone()]), most));
                sums[i] = s.add(sums[i], e);
                next_most[i] = s.max(s.load(&next[at.clone()]), next_most[i]);
                if !self.logarithm {
                    s.store(e, &mut y[at]);
                }
            },
            |rest| {
                let e = T::exp_normal_v(s, s.sub(s.load_partial(&x[rest.clone()]), most));
                s.store_partial(e, &mut y[rest.clone()]);
                sums[0] = s.add(sums[0], s.load_partial(&y[rest]));
            }
        );
        let next_most = largest(s, next_most, next);
        let sum = total(s, sums);
        if self.logarithm {
            let log = T::log_v(s, s.splat(sum));
            for_vectors!(
                x.len(),
                |at, _i| { s.store(s.sub(s.sub(s.load(&x[at.clone()]), most), log), &mut y[at]) },
                |rest| {
                    let difference = s.sub(s.load_partial(&x[rest.clone()]), most);
                    s.store_partial(s.sub(difference, log), &mut y[rest]);
                }
            );
        } else {
            let scale = s.splat(T::ONE / sum);
            for_vectors!(
                y.len(),
                |at, _i| { s.store(s.mul(s.load(&y[at.clone()]), scale), &mut y[at]) },
                |rest| { s.store_partial(s.mul(s.load_partial(&y[rest.clone()]), scale), &mut y[rest]) }
            );
        }
        Some(next_most)
    }

    #[inline(always)]
    fn columns<T: Element, S: Simd<T>, const U: usize>(
        self,
        s: S,
        [x]: &[TensorView<'_, T, 2>; 1],
        y: &mut TensorViewMut<'_, T, 2>,
        first: usize,
        count: usize,
    ) {
        let rows = y.shape()[0];
        let mut most = [s.splat(T::NEG_INFINITY); U];
        for row in 0..rows {
            let x = load::<T, S, U>(s, x, row, first, count);
            for u in 0..U {
                most[u] = s.max(x[u], most[u]);
            }
        }
        let mut sums = [s.splat(T::ZERO); U];
        for row in 0..rows {
            let mut e = load::<T, S, U>(s, x, row, first, count);
            for u in 0..U {
                e[u] = T::exp_normal_v(s, s.sub(e[u], most[u]));
                sums[u] = s.add(sums[u], e[u]);
            }
            if !self.logarithm {
                store(s, e, y, row, first, count);
            }
        }
        for sum in &mut sums {
            *sum = if self.logarithm { T::log_v(s, *sum) } else { s.div(s.splat(T::ONE), *sum) };
        }
        for row in 0..rows {
            let from = if self.logarithm { *x } else { y.view() };
            let mut v = load::<T, S, U>(s, &from, row, first, count);
            for u in 0..U {
                v[u] =
                    if self.logarithm { s.sub(s.sub(v[u], most[u]), sums[u]) } else { s.mul(v[u], sums[u]) };
            }
            store(s, v, y, row, first, count);
        }
    }
}

impl Kernel<2> for Backward {
    fn run<T: Element>(isa: Isa, merged: Merged<'_, T, Self, 2>) -> Result<()> {
        T::softmax_backward(isa, merged)
    }

    #[inline(always)]
    fn row<T: Element, S: Simd<T>>(
        self,
        s: S,
        [y, dy]: [&[T]; 2],
        _next: [&[T]; 2],
        _ahead: Option<T>,
        dx: &mut [T],
    ) -> Option<T> {
        let (y, dy) = (&y[..dx.len()], &dy[..dx.len()]);
        let mut sums = [s.splat(T::ZERO); UNROLL];
        for_vectors!(
            dx.len(),
            |at, i| { sums[i] = self.gather(s, sums[i], s.load(&y[at.clone()]), s.load(&dy[at])) },
            |rest| {
                // The lanes past the end are 0 in both and add nothing.
                sums[0] =
                    self.gather(s, sums[0], s.load_partial(&y[rest.clone()]), s.load_partial(&dy[rest]));
            }
        );
        let sum = s.splat(total(s, sums));
        for_vectors!(
            dx.len(),
            |at, _i| {
                let d = self.spread(s, sum, s.load(&y[at.clone()]), s.load(&dy[at.clone()]));
                s.store(d, &mut dx[at]);
            },
            |rest| {
                let (y, dy) = (s.load_partial(&y[rest.clone()]), s.load_partial(&dy[rest.clone()]));
                s.store_partial(self.spread(s, sum, y, dy), &mut dx[rest]);
            }
        );
        None
    }

    #[inline(always)]
    fn columns<T: Element, S: Simd<T>, const U: usize>(
        self,
        s: S,
        [y, dy]: &[TensorView<'_, T, 2>; 2],
        dx: &mut TensorViewMut<'_, T, 2>,
        first: usize,
        count: usize,
    ) {
        let rows = dx.shape()[0];
        let mut sums = [s.splat(T::ZERO); U];
        for row in 0..rows {
            let y = load::<T, S, U>(s, y, row, first, count);
            let dy = load::<T, S, U>(s, dy, row, first, count);
            for u in 0..U {
                sums[u] = self.gather(s, sums[u], y[u], dy[u]);
            }
        }
        for row in 0..rows {
            let y = load::<T, S, U>(s, y, row, first, count);
            let mut d = load::<T, S, U>(s, dy, row, first, count);
            for u in 0..U {
                d[u] = self.spread(s, sums[u], y[u], d[u]);
            }
            store(s, d, dx, row, first, count);
        }
    }
}

impl Backward {
    /// The sum, one element further.
    #[inline(always)]
    fn gather<T: Element, S: Simd<T>>(self, s: S, sum: S::V, y: S::V, dy: S::V) -> S::V {
        if self.logarithm { s.add(sum, dy) } else { s.mul_add(y, dy, sum) }
    }

    /// dx, given the sum.
    #[inline(always)]
    fn spread<T: Element, S: Simd<T>>(self, s: S, sum: S::V, y: S::V, dy: S::V) -> S::V {
        if self.logarithm { s.neg_mul_add(T::exp_normal_v(s, y), sum, dy) } else { s.mul(y, s.sub(dy, sum)) }
    }
}

/// Vectors of one row's columns, as [`Kernel::columns`] counts them.
#[inline(always)]
fn load<T: Element, S: Simd<T>, const U: usize>(
    s: S,
    from: &TensorView<'_, T, 2>,
    row: usize,
    first: usize,
    count: usize,
) -> [S::V; U] {
    let mut vectors = [s.splat(T::ZERO); U];
    let Some(row) = from.row(row).and_then(|row| row.get(first..first + count)) else { return vectors };
    if U == 1 {
        vectors[0] = s.load_partial(row);
    } else {
        for (vector, chunk) in vectors.iter_mut().zip(row.chunks_exact(S::LANES)) {
            *vector = s.load(chunk);
        }
    }
    vectors
}

/// The counterpart of [`load`].
#[inline(always)]
fn store<T: Element, S: Simd<T>, const U: usize>(
    s: S,
    vectors: [S::V; U],
    to: &mut TensorViewMut<'_, T, 2>,
    row: usize,
    first: usize,
    count: usize,
) {
    let Some(row) = to.row_mut(row).and_then(|row| row.get_mut(first..first + count)) else { return };
    if U == 1 {
        s.store_partial(vectors[0], row);
    } else {
        for (vector, chunk) in vectors.into_iter().zip(row.chunks_exact_mut(S::LANES)) {
            s.store(vector, chunk);
        }
    }
}

/// Vectors of columns that [`Kernel::columns`] takes at once.
pub(super) const BLOCK: usize = 4;

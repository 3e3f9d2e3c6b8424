//! What the tests share: awkward sizes, strided buffers with canaries around every element, thread pools.
#![allow(dead_code)] // each test uses its part

pub mod geometry;

use quickcheck::{Arbitrary, Gen};
use tilewise::conv::Algorithm;
use tilewise::{Element, Tensor, TensorView, TensorViewMut};

/// Sizes at which kernels go wrong: nothing, one, and the neighbours of tiles and vectors.
pub const AWKWARD: [usize; 24] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33, 48, 65];

/// One of [`AWKWARD`].
pub fn size(g: &mut Gen) -> usize {
    *g.choose(&AWKWARD).expect("not empty")
}

/// A number in a range.
pub fn within(g: &mut Gen, range: std::ops::Range<usize>) -> usize {
    range.start + usize::arbitrary(g) % range.len()
}

/// A value of moderate size with all its mantissa in use.
pub fn value<T: Element>(g: &mut Gen) -> T {
    let unit = (u64::arbitrary(g) >> 11) as f64 / (1u64 << 53) as f64;
    T::from_f64(4.0 * unit - 2.0)
}

/// Values between −1 and 1 that a formula gives, for tests that need no randomness.
pub fn wave<T: Element, const N: usize>(shape: [usize; N], phase: f64) -> Tensor<T, N> {
    let mut t = phase;
    Tensor::from_fn(shape, |_| {
        t += 0.7;
        T::from_f64((t * t).sin())
    })
    .expect("small")
}

/// All of them; those that take Winograd wherever it fits are the last.
pub const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::Auto, Algorithm::ImplicitGemm, Algorithm::Direct, Algorithm::Winograd2, Algorithm::Winograd4];

/// The same elements with channels last in memory.
pub fn last<T: Element>(x: &Tensor<T, 4>) -> Tensor<T, 4> {
    x.view().permute([0, 2, 3, 1]).expect("four axes").to_tensor().expect("small")
}

/// What [`last`] gives, as the shape was before.
pub fn turned<T>(x: &Tensor<T, 4>) -> TensorView<'_, T, 4> {
    x.view().permute([0, 3, 1, 2]).expect("four axes")
}

/// What stands in every element that a view does not reach.
pub const CANARY: f64 = -7.25e11;

/// Elements around a strided view that nothing may touch.
pub const MARGIN: usize = 40;

/// A buffer with a view of rank `N` of random axis order, gaps and directions inside it.
#[derive(Clone, Debug)]
pub struct Strided<T, const N: usize> {
    pub data: Vec<T>,
    pub offset: usize,
    pub shape: [usize; N],
    pub strides: [isize; N],
}

impl<T: Element, const N: usize> Strided<T, N> {
    /// A view of this shape with random strides; elements are random, all else is a canary.
    pub fn random(g: &mut Gen, shape: [usize; N]) -> Self {
        let mut order: [usize; N] = std::array::from_fn(|axis| axis);
        // Half of all views are row-major, half of the rest column-major: what users have.
        match u8::arbitrary(g) % 4 {
            0 | 1 => {}
            2 => order.reverse(),
            _ => (1..N).for_each(|i| order.swap(i, within(g, 0..i + 1))),
        }
        let plain = bool::arbitrary(g);
        let mut strides = [0isize; N];
        let (mut next, mut offset) = (1usize, MARGIN);
        if !plain && u8::arbitrary(g).is_multiple_of(4) {
            next = 2;
        }
        for &axis in order.iter().rev() {
            let size = shape[axis].max(1);
            strides[axis] = next as isize;
            if !plain && u8::arbitrary(g).is_multiple_of(4) {
                offset += (size - 1) * next;
                strides[axis] = -strides[axis];
            }
            next = next * size + if plain { 0 } else { within(g, 0..4) };
        }
        let mut strided = Self { data: vec![T::from_f64(CANARY); next + 2 * MARGIN], offset, shape, strides };
        strided.randomize(g);
        strided
    }

    /// Random values where the view reaches, which leaves the canaries.
    fn randomize(&mut self, g: &mut Gen) {
        self.view_mut().fill(T::ZERO);
        for element in &mut self.data {
            if *element == T::ZERO {
                *element = value(g);
            }
        }
    }

    /// Its axes in reverse.
    pub fn transpose(mut self) -> Self {
        self.shape.reverse();
        self.strides.reverse();
        self
    }

    /// As [`random`](Self::random), with contiguous rows `gap` elements apart, the last one first where `flip`.
    pub fn rows(g: &mut Gen, shape: [usize; N], gap: usize, flip: bool) -> Self {
        let (mut strides, mut next, mut offset) = ([1isize; N], 1, MARGIN);
        for axis in (0..N).rev() {
            strides[axis] = next as isize;
            next = next * shape[axis].max(1) + gap;
            if flip && axis + 2 == N {
                offset += (shape[axis].max(1) - 1) * strides[axis].unsigned_abs();
                strides[axis] = -strides[axis];
            }
        }
        let mut strided = Self { data: vec![T::from_f64(CANARY); next + 2 * MARGIN], offset, shape, strides };
        strided.randomize(g);
        strided
    }

    pub fn view(&self) -> TensorView<'_, T, N> {
        TensorView::as_strided_at(&self.data, self.offset, self.shape, self.strides).expect("inside")
    }

    pub fn view_mut(&mut self) -> TensorViewMut<'_, T, N> {
        TensorViewMut::as_strided_at(&mut self.data, self.offset, self.shape, self.strides).expect("disjoint")
    }

    /// True where every element outside the view is still a canary.
    pub fn canaries_live(&self) -> bool {
        let mut outside = self.clone();
        outside.view_mut().fill(T::from_f64(CANARY));
        outside.data.iter().all(|&element| element == T::from_f64(CANARY))
    }
}

/// Runs `f` in pools of 1, 2, 3 and 6 threads and gives what came out of each.
pub fn in_pools<R: Send>(f: impl Fn() -> R + Sync) -> Vec<R> {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    [1, 2, 3, 6].map(|threads| pool(threads).install(&f)).into()
}

/// The bits of a slice, to be compared where NaN must equal NaN.
pub fn bits<T: Element>(values: &[T]) -> Vec<u64> {
    values.iter().map(|x| x.to_f64().to_bits()).collect()
}

/// The number of quickcheck cases: `QUICKCHECK_TESTS`, or this many.
pub fn quickcheck<A: quickcheck::Testable>(cases: u64, property: A) {
    let cases = std::env::var("QUICKCHECK_TESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    quickcheck::QuickCheck::new().tests(cases).quickcheck(property);
}

//! Two vectors as one.

use crate::simd::{Simd, SimdOp};
use crate::tensor::Fours;

/// A token whose vectors are pairs of the vectors of another.
///
/// A long function then runs on both at once, instruction by instruction: constants that do not fit in
/// registers are fetched once for two, and neither vector waits for the other's latencies.
#[derive(Clone, Copy)]
pub(crate) struct Pair<S>(pub S);

/// An operation that runs on the pair of the token it is given.
struct OnPair<O>(O);

impl<T: Copy, O: SimdOp<T>> SimdOp<T> for OnPair<O> {
    type Output = O::Output;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> O::Output {
        self.0.eval(Pair(simd))
    }
}

macro_rules! each {
    ($($name:ident($($arg:ident),*) -> $out:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::$out {
            [self.0.$name($($arg[0]),*), self.0.$name($($arg[1]),*)]
        }
    )*};
}

impl<T: Copy, S: Simd<T>> Simd<T> for Pair<S> {
    type V = [S::V; 2];
    type M = [S::M; 2];

    const LANES: usize = 2 * S::LANES;
    const TILE_ROWS: usize = S::TILE_ROWS;
    const TILE_VECTORS: usize = S::TILE_VECTORS;
    const NARROW_ROWS: usize = S::NARROW_ROWS;
    const MASKED: bool = S::MASKED;

    each! {
        add(a, b) -> V;
        sub(a, b) -> V;
        mul(a, b) -> V;
        div(a, b) -> V;
        mul_add(a, b, c) -> V;
        neg_mul_add(a, b, c) -> V;
        sqrt(a) -> V;
        min(a, b) -> V;
        max(a, b) -> V;
        abs(a) -> V;
        neg(a) -> V;
        copysign(a, sign) -> V;
        and(a, b) -> V;
        or(a, b) -> V;
        int_add(a, b) -> V;
        int_sub(a, b) -> V;
        lt(a, b) -> M;
        le(a, b) -> M;
        eq(a, b) -> M;
        ne(a, b) -> M;
    }

    #[inline(always)]
    fn call<O: SimdOp<T>>(self, op: O) -> O::Output {
        self.0.call(OnPair(op))
    }
    #[inline(always)]
    fn store_transposed(self, v: [Self::V; 4], dst: &mut [T], stride: usize) {
        let [a, b, c, d] = v;
        self.0.store_transposed([a[0], b[0], c[0], d[0]], dst, stride);
        self.0.store_transposed([a[1], b[1], c[1], d[1]], &mut dst[S::LANES * stride..], stride);
    }
    #[inline(always)]
    fn load_transposed(self, lines: Fours<'_, T>) -> [Self::V; 4] {
        let (low, high) = (self.0.load_transposed(lines), self.0.load_transposed(lines.from(S::LANES)));
        std::array::from_fn(|p| [low[p], high[p]])
    }
    #[inline(always)]
    fn deinterleave(self, a: Self::V, b: Self::V) -> [Self::V; 2] {
        let [a_even, a_odd] = self.0.deinterleave(a[0], a[1]);
        let [b_even, b_odd] = self.0.deinterleave(b[0], b[1]);
        [[a_even, b_even], [a_odd, b_odd]]
    }
    #[inline(always)]
    fn interleave(self, a: Self::V, b: Self::V) -> [Self::V; 2] {
        [self.0.interleave(a[0], b[0]), self.0.interleave(a[1], b[1])]
    }
    #[inline(always)]
    fn within<const C: usize>(self, a: Self::V, lane: usize) -> Self::V {
        const { assert!(C <= S::LANES, "groups lie in one of the two") };
        [self.0.within::<C>(a[0], lane), self.0.within::<C>(a[1], lane)]
    }
    #[inline(always)]
    fn splat(self, x: T) -> Self::V {
        [self.0.splat(x); 2]
    }
    #[inline(always)]
    fn splat_bits(self, bits: u64) -> Self::V {
        [self.0.splat_bits(bits); 2]
    }
    #[inline(always)]
    fn load(self, src: &[T]) -> Self::V {
        let (low, high) = src.split_at(S::LANES);
        [self.0.load(low), self.0.load(high)]
    }
    #[inline(always)]
    fn store(self, v: Self::V, dst: &mut [T]) {
        let (low, high) = dst.split_at_mut(S::LANES);
        self.0.store(v[0], low);
        self.0.store(v[1], high);
    }
    #[inline(always)]
    fn load_partial(self, src: &[T]) -> Self::V {
        let (low, high) = src.split_at(src.len().min(S::LANES));
        [self.0.load_partial(low), self.0.load_partial(high)]
    }
    #[inline(always)]
    fn store_partial(self, v: Self::V, dst: &mut [T]) {
        let (low, high) = dst.split_at_mut(dst.len().min(S::LANES));
        self.0.store_partial(v[0], low);
        self.0.store_partial(v[1], high);
    }
    #[inline(always)]
    fn shl<const N: i32>(self, a: Self::V) -> Self::V {
        [self.0.shl::<N>(a[0]), self.0.shl::<N>(a[1])]
    }
    #[inline(always)]
    fn shr<const N: i32>(self, a: Self::V) -> Self::V {
        [self.0.shr::<N>(a[0]), self.0.shr::<N>(a[1])]
    }
    #[inline(always)]
    fn mask_and(self, a: Self::M, b: Self::M) -> Self::M {
        [self.0.mask_and(a[0], b[0]), self.0.mask_and(a[1], b[1])]
    }
    #[inline(always)]
    fn mask_or(self, a: Self::M, b: Self::M) -> Self::M {
        [self.0.mask_or(a[0], b[0]), self.0.mask_or(a[1], b[1])]
    }
    #[inline(always)]
    fn none(self, m: Self::M) -> bool {
        self.0.none(self.0.mask_or(m[0], m[1]))
    }
    #[inline(always)]
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V {
        [self.0.select(m[0], a[0], b[0]), self.0.select(m[1], a[1], b[1])]
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::V) -> T {
        self.0.reduce_add(self.0.add(a[0], a[1]))
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::V) -> T {
        self.0.reduce_max(self.0.max(a[0], a[1]))
    }
}

//! Vectors of one instruction set behind one trait.
//!
//! A *token* ([`Baseline`], [`Avx2`], [`Avx512`]) is a zero-sized proof that the processor has the
//! instructions: it can be had only from a constructor that checked. [`Simd`] gives a token its
//! vector operations for one element type; an algorithm is written once, generic over the token, as a
//! [`SimdOp`], and [`Dispatch::dispatch`] runs it with the token of an [`Isa`](crate::machine::Isa), which
//! an operation reads once at its entry ([`crate::machine::isa`]) and passes down.
//!
//! Every function between the dispatch and the innermost loop must be `#[inline(always)]`: only so is
//! it compiled with the instructions that the shim around it enables. For the same reason an operation
//! dispatches *inside* a task, never around a call into rayon.

/// Methods of a token whose bodies are intrinsics that this token's features allow.
#[cfg(target_arch = "x86_64")]
macro_rules! intrinsics {
    ($(fn $name:ident $(<const $n:ident: i32>)? ($self:ident $(, $arg:ident: $type:ty)*) -> $out:ty $body:block)*) => {$(
        #[inline(always)]
        fn $name $(<const $n: i32>)? ($self $(, $arg: $type)*) -> $out {
            // SAFETY: these intrinsics touch no memory and need only the processor features that the
            // token proves: it is made where the processor has them (`new`) and nowhere else.
            unsafe { $body }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod baseline;
mod dispatch;
#[cfg(target_arch = "x86_64")]
mod interleave;
mod streams;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod transpose;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use baseline::Baseline;
pub(crate) use dispatch::kernels;
pub use dispatch::{Dispatch, SimdOp};
pub use streams::Streams;

use crate::tensor::Fours;

/// Elements of the longest vector of any instruction set.
pub(crate) const MOST_LANES: usize = 16;

/// Vector operations on elements `T` for one instruction set.
///
/// Comparisons are false where a lane is NaN, except [`ne`](Simd::ne). Bit operations and integer
/// operations treat each lane as an unsigned integer of the element's width and wrap.
pub trait Simd<T: Copy>: Copy + Send + Sync + 'static {
    /// A vector of [`LANES`](Simd::LANES) elements.
    type V: Copy;
    /// One truth value per lane.
    type M: Copy;

    /// Elements in a vector.
    const LANES: usize;
    /// Rows of the largest outer-product tile that the register file holds; see `gemm::kernel`.
    const TILE_ROWS: usize;
    /// Vectors in a row of that tile.
    const TILE_VECTORS: usize;
    /// Rows of the largest tile with two vectors in a row.
    const NARROW_ROWS: usize;
    /// `load_partial` is as fast as `load`.
    const MASKED: bool;

    /// Runs `op` in a function of its own, compiled with this token's instructions.
    fn call<O: SimdOp<T>>(self, op: O) -> O::Output;

    /// Every lane is `x`.
    fn splat(self, x: T) -> Self::V;
    /// Every lane has these bits (the low half of them for a 32-bit element).
    fn splat_bits(self, bits: u64) -> Self::V;
    /// The first [`LANES`](Simd::LANES) elements of `src`, which has at least as many.
    fn load(self, src: &[T]) -> Self::V;
    /// Vectors whose first elements lie `step` apart, the first of them at the front of `src`, which holds them all.
    #[inline(always)]
    fn load_apart<const N: usize>(self, src: &[T], step: usize) -> [Self::V; N] {
        assert!(fit::<N>(src.len(), step, Self::LANES));
        let mut vectors = [self.splat_bits(0); N];
        for (i, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: `fit` has found that the last of them, the farthest, ends inside `src`.
            *vector = self.load(unsafe { src.get_unchecked(i * step..i * step + Self::LANES) });
        }
        vectors
    }
    /// Writes all lanes to the front of `dst`, which has room for them.
    fn store(self, v: Self::V, dst: &mut [T]);
    /// Writes vectors `step` apart, the first of them to the front of `dst`, which has room for them all.
    #[inline(always)]
    fn store_apart<const N: usize>(self, v: [Self::V; N], dst: &mut [T], step: usize) {
        assert!(fit::<N>(dst.len(), step, Self::LANES));
        for (i, &vector) in v.iter().enumerate() {
            // SAFETY: `fit` has found that the last of them, the farthest, ends inside `dst`.
            self.store(vector, unsafe { dst.get_unchecked_mut(i * step..i * step + Self::LANES) });
        }
    }
    /// The elements of `src`, at most [`LANES`](Simd::LANES), the remaining lanes 0.
    fn load_partial(self, src: &[T]) -> Self::V;
    /// The first elements of `src`, as many as there are lanes; the remaining lanes 0. A branch that is foreseen costs less than a
    /// mask.
    #[inline(always)]
    fn load_up_to(self, src: &[T]) -> Self::V {
        if src.len() >= Self::LANES { self.load(src) } else { self.load_partial(src) }
    }
    /// As [`store`](Simd::store), past the caches where `dst` is aligned to a vector: its lines are not read first.
    /// [`fence`](Simd::fence) must follow before another thread may look.
    #[inline(always)]
    fn stream(self, v: Self::V, dst: &mut [T]) {
        self.store(v, dst);
    }
    /// Orders what [`stream`](Simd::stream) wrote before all that follows.
    #[inline(always)]
    fn fence(self) {}
    /// Writes the first `dst.len()` lanes, at most all.
    fn store_partial(self, v: Self::V, dst: &mut [T]);

    /// Writes as many lanes as `dst` has room for.
    #[inline(always)]
    fn store_up_to(self, v: Self::V, dst: &mut [T]) {
        if dst.len() >= Self::LANES { self.store(v, dst) } else { self.store_partial(v, dst) }
    }

    /// Writes lane `i` of each of the four vectors, as four neighbours, to `dst[i · stride ..]`, for every
    /// lane. `dst` has at least `(LANES − 1) · stride + 4` elements.
    fn store_transposed(self, v: [Self::V; 4], dst: &mut [T], stride: usize);
    /// The inverse: the first element of each of [`LANES`](Simd::LANES) lines as a vector, the second ones, and so on. `lines` has at
    /// least as many.
    fn load_transposed(self, lines: Fours<'_, T>) -> [Self::V; 4];

    /// The elements at even and those at odd places of `a` followed by `b`.
    fn deinterleave(self, a: Self::V, b: Self::V) -> [Self::V; 2];
    /// The inverse of [`deinterleave`](Simd::deinterleave): a₀, b₀, a₁, b₁, …
    fn interleave(self, a: Self::V, b: Self::V) -> [Self::V; 2];
    /// Of each `C` neighbouring lanes the one at `lane`, less than `C`, in all of them. `C` divides the lanes.
    fn within<const C: usize>(self, a: Self::V, lane: usize) -> Self::V;

    /// a + b.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a − b.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once where the instruction set fuses.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c − a · b, rounded once where the instruction set fuses.
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// √a.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: b where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: b where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// |a|.
    fn abs(self, a: Self::V) -> Self::V;
    /// −a.
    fn neg(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `sign`.
    fn copysign(self, a: Self::V, sign: Self::V) -> Self::V;

    /// a & b, bitwise.
    fn and(self, a: Self::V, b: Self::V) -> Self::V;
    /// a | b, bitwise.
    fn or(self, a: Self::V, b: Self::V) -> Self::V;
    /// Integer a + b.
    fn int_add(self, a: Self::V, b: Self::V) -> Self::V;
    /// Integer a − b.
    fn int_sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// Bits moved up by `N`, less than the element's width.
    fn shl<const N: i32>(self, a: Self::V) -> Self::V;
    /// Bits moved down by `N`, less than the element's width, zeros moved in.
    fn shr<const N: i32>(self, a: Self::V) -> Self::V;

    /// a < b.
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// a ≤ b.
    fn le(self, a: Self::V, b: Self::V) -> Self::M;
    /// a = b.
    fn eq(self, a: Self::V, b: Self::V) -> Self::M;
    /// a ≠ b: true where either is NaN.
    fn ne(self, a: Self::V, b: Self::V) -> Self::M;
    /// Both.
    fn mask_and(self, a: Self::M, b: Self::M) -> Self::M;
    /// Either.
    fn mask_or(self, a: Self::M, b: Self::M) -> Self::M;
    /// True where every lane is false.
    fn none(self, m: Self::M) -> bool;
    /// `a` where the mask is true, else `b`.
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V;

    /// The sum of the lanes, in one fixed order: halves folded onto each other until one is left.
    fn reduce_add(self, a: Self::V) -> T;
    /// [`reduce_add`](Simd::reduce_add) of four vectors, to the bit.
    #[inline(always)]
    fn reduce_add_each(self, v: [Self::V; 4]) -> [T; 4] {
        let [a, b, c, d] = v;
        [self.reduce_add(a), self.reduce_add(b), self.reduce_add(c), self.reduce_add(d)]
    }
    /// The largest lane. NaN lanes give any lane.
    fn reduce_max(self, a: Self::V) -> T;
}

/// Bytes that memory and caches move at a time.
pub const CACHE_LINE: usize = 64;

/// Asks for a cache line to be brought into L1. Any address will do: where nothing is, nothing happens.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    hint::<T, T0>(at);
}

/// [`prefetch`] into L2 alone. More of these than L1 has room for misses can be under way on Intel; on Zen 5 such requests in a row
/// are lost, and streams from memory up to a third slower.
#[inline(always)]
pub fn prefetch_l2<T>(at: *const T) {
    hint::<T, T1>(at);
}

/// Hints of x86-64, whose names are not there elsewhere.
const T0: i32 = 3;
const T1: i32 = 2;

/// A prefetch with a hint.
#[inline(always)]
fn hint<T, const HINT: i32>(at: *const T) {
    // SAFETY: SSE is part of x86-64, and a prefetch is a hint that never faults.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::x86_64::_mm_prefetch::<HINT>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The first `N` elements of a slice that has as many; the check folds away where the length is known.
#[inline(always)]
fn front<T, const N: usize>(slice: &[T]) -> &[T; N] {
    match slice.first_chunk() {
        Some(front) => front,
        None => short(slice.len(), N),
    }
}

/// Whether `N` runs of `lanes` elements that begin `step` apart end within `len` elements.
#[inline(always)]
fn fit<const N: usize>(len: usize, step: usize, lanes: usize) -> bool {
    const { assert!(N > 0) };
    (N - 1).checked_mul(step).and_then(|last| last.checked_add(lanes)).is_some_and(|end| end <= len)
}

/// As [`front`], to write to.
#[inline(always)]
fn front_mut<T, const N: usize>(slice: &mut [T]) -> &mut [T; N] {
    let found = slice.len();
    match slice.first_chunk_mut() {
        Some(front) => front,
        None => short(found, N),
    }
}

#[cold]
#[inline(never)]
fn short(found: usize, needed: usize) -> ! {
    panic!("internal error: {found} elements where a vector of {needed} is needed")
}

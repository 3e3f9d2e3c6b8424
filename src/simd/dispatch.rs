//! From "which instructions" to code compiled with them: the only `#[target_feature]` shims.

use super::Simd;
#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};
use super::Baseline;
use crate::machine::Isa;

/// An algorithm written once for every instruction set.
pub trait SimdOp<T: Copy> {
    /// What it gives back.
    type Output;
    /// Runs it with the token `simd`. Implementations are `#[inline(always)]`.
    fn eval<S: Simd<T>>(self, simd: S) -> Self::Output;
}

/// Element types that every token has operations for.
pub trait Dispatch: Copy + 'static {
    /// Runs `op` with the named instruction set, or with [`Baseline`] where the processor lacks it.
    fn dispatch<O: SimdOp<Self>>(isa: Isa, op: O) -> O::Output;
}

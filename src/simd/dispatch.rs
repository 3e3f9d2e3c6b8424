//! From "which instructions" to code compiled with them: the only `#[target_feature]` shims.

#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};
use super::{Baseline, Simd};
use crate::machine::Isa;
#[cfg(target_arch = "x86_64")]
use crate::machine::with_features;

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

/// Functions that are compiled with the features of their token. As methods of what they run they are compiled beside it:
/// free functions would all be in this module, one unit of compilation that takes longer than all others together.
pub(super) trait Shims<T: Copy>: SimdOp<T> + Sized {
    /// # Safety
    /// The processor has AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx2_shim(self, token: Avx2) -> Self::Output
    where
        Avx2: Simd<T>;

    /// # Safety
    /// The processor has the subsets of AVX-512 that [`Isa::Avx512`] names.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx512_shim(self, token: Avx512) -> Self::Output
    where
        Avx512: Simd<T>;

    /// A frame of its own, as the others are.
    fn baseline_shim(self) -> Self::Output
    where
        Baseline: Simd<T>;
}

#[cfg(target_arch = "x86_64")]
macro_rules! shim {
    ([$($feature:tt)+] $name:ident $token:ident) => {
        #[inline(never)]
        #[target_feature($(enable = $feature),+)]
        unsafe fn $name(self, token: $token) -> O::Output
        where
            $token: Simd<T>,
        {
            self.eval(token)
        }
    };
}

impl<T: Copy, O: SimdOp<T>> Shims<T> for O {
    #[cfg(target_arch = "x86_64")]
    with_features!(Avx2 shim avx2_shim Avx2);

    #[cfg(target_arch = "x86_64")]
    with_features!(Avx512 shim avx512_shim Avx512);

    #[inline(never)]
    fn baseline_shim(self) -> O::Output
    where
        Baseline: Simd<T>,
    {
        self.eval(Baseline::new())
    }
}

macro_rules! dispatch {
    ($T:ty) => {
        impl Dispatch for $T {
            #[inline]
            fn dispatch<O: SimdOp<Self>>(isa: Isa, op: O) -> O::Output {
                #[cfg(target_arch = "x86_64")]
                match isa {
                    Isa::Baseline => {}
                    Isa::Avx2 => {
                        if let Some(token) = Avx2::new() {
                            // SAFETY: the token proves that the processor has the shim's features.
                            return unsafe { op.avx2_shim(token) };
                        }
                    }
                    Isa::Avx512 => {
                        if let Some(token) = Avx512::new() {
                            // SAFETY: the token proves that the processor has the shim's features.
                            return unsafe { op.avx512_shim(token) };
                        }
                    }
                }
                #[cfg(not(target_arch = "x86_64"))]
                let _ = isa;
                op.baseline_shim()
            }
        }
    };
}

dispatch!(f32);
dispatch!(f64);

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

/// A function that is compiled with the features of its token.
#[cfg(target_arch = "x86_64")]
macro_rules! shim {
    ([$($feature:tt)+] $name:ident $token:ident) => {
        #[inline(never)]
        #[target_feature($(enable = $feature),+)]
        pub(super) fn $name<T: Copy, O: SimdOp<T>>(token: $token, op: O) -> O::Output
        where
            $token: Simd<T>,
        {
            op.eval(token)
        }
    };
}

#[cfg(target_arch = "x86_64")]
with_features!(Avx2 shim avx2_shim Avx2);
#[cfg(target_arch = "x86_64")]
with_features!(Avx512 shim avx512_shim Avx512);

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
                            return unsafe { avx2_shim::<$T, O>(token, op) };
                        }
                    }
                    Isa::Avx512 => {
                        if let Some(token) = Avx512::new() {
                            // SAFETY: the token proves that the processor has the shim's features.
                            return unsafe { avx512_shim::<$T, O>(token, op) };
                        }
                    }
                }
                #[cfg(not(target_arch = "x86_64"))]
                let _ = isa;
                baseline(op)
            }
        }
    };
}

dispatch!(f32);
dispatch!(f64);

/// A frame of its own, as the other shims are.
#[inline(never)]
pub(super) fn baseline<T: Copy, O: SimdOp<T>>(op: O) -> O::Output
where
    Baseline: Simd<T>,
{
    op.eval(Baseline::new())
}

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

/// Declares a trait of the element types. Its functions are compiled in this crate for each of them; what is generic down to
/// its kernels would be compiled anew in each crate that calls it, and be slow where that crate is built without optimisation.
/// One without a body dispatches its operation.
macro_rules! kernels {
    (
        $(#[$attribute:meta])*
        pub trait $Kernels:ident {
            $($(#[$doc:meta])* fn $name:ident($isa:ident: Isa, $op:ident: $Op:ty) $(-> $Output:ty)?;)+
        }
    ) => {
        kernels! {
            $(#[$attribute])*
            pub trait $Kernels {
                $($(#[$doc])* fn $name($isa: Isa, $op: $Op) $(-> $Output)? {
                    <Self as $crate::simd::Dispatch>::dispatch($isa, $op)
                })+
            }
        }
    };
    (
        $(#[$attribute:meta])*
        pub trait $Kernels:ident {
            $($(#[$doc:meta])* fn $name:ident($($arg:ident: $Arg:ty),* $(,)?) $(-> $Output:ty)? $body:block)+
        }
    ) => {
        $(#[$attribute])*
        pub trait $Kernels: Sized {
            $($(#[$doc])* fn $name($($arg: $Arg),*) $(-> $Output)?;)+
        }

        impl $Kernels for f32 {
            $(fn $name($($arg: $Arg),*) $(-> $Output)? $body)+
        }

        impl $Kernels for f64 {
            $(fn $name($($arg: $Arg),*) $(-> $Output)? $body)+
        }
    };
}
pub(crate) use kernels;

/// A function that is compiled with the features of its token. Methods of a trait that are must be unsafe.
#[cfg(target_arch = "x86_64")]
macro_rules! shim {
    ([$($feature:tt)+] $name:ident $token:ident) => {
        /// # Safety
        /// The processor has the token's features.
        #[inline(never)]
        #[target_feature($(enable = $feature),+)]
        unsafe fn $name(self, token: $token) -> Self::Output
        where
            $token: Simd<T>,
        {
            self.eval(token)
        }
    };
}

/// The shims, as methods of what they run: so they are compiled beside it. Free functions would all be in this module, one
/// unit of compilation that takes longer than all others together.
pub(super) trait Shims<T: Copy>: SimdOp<T> + Sized {
    #[cfg(target_arch = "x86_64")]
    with_features!(Avx2 shim avx2_shim Avx2);

    #[cfg(target_arch = "x86_64")]
    with_features!(Avx512 shim avx512_shim Avx512);

    /// A frame of its own, as the others are.
    #[inline(never)]
    fn baseline_shim(self) -> Self::Output
    where
        Baseline: Simd<T>,
    {
        self.eval(Baseline::new())
    }
}

impl<T: Copy, O: SimdOp<T>> Shims<T> for O {}

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

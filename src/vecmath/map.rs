//! The functions over runs.
#![forbid(unsafe_code)]

use super::map_vectors;
use crate::element::Element;
use crate::machine::Isa;
use crate::simd::{Simd, SimdOp, kernels};

/// Which function; for one dispatch over all of them.
#[derive(Clone, Copy)]
pub(super) enum Function {
    Exp,
    Log,
    Tanh,
    Sigmoid,
    Erf,
}

kernels! {
    /// Element types with the functions of runs.
    pub trait Maps {
        /// [`Map`].
        fn map_run(isa: Isa, op: Map<'_, Self>);
    }
}

pub struct Map<'a, T> {
    pub(super) function: Function,
    pub(super) src: &'a [T],
    pub(super) dst: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Map<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let Map { function, src, dst } = self;
        match function {
            Function::Exp => map_vectors!(s, dst, |x in src| T::exp_v(s, x)),
            Function::Log => map_vectors!(s, dst, |x in src| T::log_v(s, x)),
            Function::Tanh => map_vectors!(s, dst, |x in src| T::tanh_v(s, x)),
            Function::Sigmoid => map_vectors!(s, dst, |x in src| T::sigmoid_v(s, x)),
            Function::Erf => map_vectors!(s, dst, |x in src| T::erf_v(s, x)),
        }
    }
}

//! The functions over runs: compiled once, for all of them.

use super::Activation;
use super::lane::{Lane, with_lane};
use crate::element::Element;
use crate::machine::Isa;
use crate::simd::{Simd, SimdOp, kernels};
use crate::vecmath::map_vectors;

kernels! {
    /// Element types with their activations.
    pub trait Activations {
        /// f of a run.
        fn values(isa: Isa, op: Forward<'_, Self>);

        /// The chain rule through it.
        fn chains(isa: Isa, op: Backward<'_, Self>);
    }
}

pub struct Forward<'a, T> {
    pub(super) activation: Activation,
    /// `None` for what is in `y`.
    pub(super) x: Option<&'a [T]>,
    pub(super) y: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let Forward { activation, x: src, y } = self;
        with_lane!(activation, f => map_vectors!(s, y, |x in src or in place| f.value(s, x)));
    }
}

pub struct Backward<'a, T> {
    pub(super) activation: Activation,
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    pub(super) dx: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let Backward { activation, x: src, dy, dx } = self;
        with_lane!(activation, f => map_vectors!(s, dx, |x in src, g in dy| f.chain(s, x, g)));
    }
}

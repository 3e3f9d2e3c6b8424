//! Interim: the real module is being written.

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// x.
    #[default]
    Identity,
    /// max(x, 0).
    Relu,
}

/// Interim.
#[inline(always)]
pub(crate) fn apply<T: crate::Element, S: crate::simd::Simd<T>>(s: S, activation: Activation, run: &mut [T]) {
    let _ = s;
    if activation == Activation::Relu {
        run.iter_mut().for_each(|x| *x = if *x < T::ZERO { T::ZERO } else { *x });
    }
}

//! The element types that kernels exist for: `f32` and `f64`.
#![forbid(unsafe_code)]

use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// A floating-point type that every operation of this crate accepts.
///
/// Sealed: `f32` and `f64` implement it. The same generic code runs for both, so a gradient can be
/// checked in `f64` with the code that trains in `f32`.
///
/// ```
/// use tilewise::Element;
/// fn mean<T: Element>(values: &[T]) -> T {
///     values.iter().fold(T::ZERO, |sum, &v| sum + v) / T::from_usize(values.len())
/// }
/// assert_eq!(mean(&[1.0f32, 2.0, 6.0]), 3.0);
/// ```
pub trait Element:
    crate::vecmath::VecMath
    + crate::vecmath::Maps
    + crate::activation::Activations
    + crate::activation::Prelus
    + crate::attention::Attends
    + crate::attention::Scores
    + crate::attention::Decode
    + crate::conv::Convolve
    + crate::gemm::Kernels
    + crate::gemm::Products
    + crate::gemm::Sums
    + crate::layer::Rectified
    + crate::norm::ChannelKernels
    + crate::norm::RowKernels
    + crate::perceptron::Sweeps
    + crate::pool::Places
    + crate::pool::Reductions
    + crate::pool::Shares
    + crate::rnn::Passes
    + crate::rnn::Recur
    + crate::softmax::Softmaxes
    + Copy
    + Debug
    + Display
    + Default
    + PartialEq
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The distance from 1 to the next larger number: 2⁻²³ or 2⁻⁵².
    const EPSILON: Self;
    /// Positive infinity.
    const INFINITY: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// A quiet NaN.
    const NAN: Self;
    /// The type's name, as reports print it.
    const NAME: &'static str;

    /// The nearest value to `x`.
    fn from_f64(x: f64) -> Self;
    /// The same value as an `f64`, exactly.
    fn to_f64(self) -> f64;
    /// The nearest value to `n`.
    fn from_usize(n: usize) -> Self;
    /// |x|.
    fn abs(self) -> Self;
    /// √x, correctly rounded.
    fn sqrt(self) -> Self;
    /// eˣ by the standard library.
    fn exp(self) -> Self;
    /// The natural logarithm by the standard library.
    fn ln(self) -> Self;
    /// tanh x by the standard library.
    fn tanh(self) -> Self;
    /// The larger of two; the other one where one is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller of two; the other one where one is NaN.
    fn min(self, other: Self) -> Self;
    /// True for NaN.
    fn is_nan(self) -> bool;
    /// True for all but NaN and the infinities.
    fn is_finite(self) -> bool;
}

macro_rules! element {
    ($t:ident) => {
        impl Element for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const EPSILON: Self = $t::EPSILON;
            const INFINITY: Self = $t::INFINITY;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            const NAN: Self = $t::NAN;
            const NAME: &'static str = stringify!($t);

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn from_usize(n: usize) -> Self {
                n as $t
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $t::exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $t::ln(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                $t::max(self, other)
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                $t::min(self, other)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
        }
    };
}

element!(f32);
element!(f64);

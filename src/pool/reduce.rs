//! What a window becomes: its maximum, its average, its p-norm.
#![forbid(unsafe_code)]

use super::forward::Piece;
use crate::element::Element;
use crate::error::Result;
use crate::machine::Isa;
use crate::simd::{MOST_LANES, Simd, SimdOp};

/// How the elements of a window are brought together: y = finish(join of take(x)).
pub trait Reduction<T: Element>: Copy + Send + Sync {
    /// Joined to anything it changes nothing.
    const NEUTRAL: T;
    /// True where [`finish`](Self::finish) wants 1 over the number of elements.
    const WEIGHTED: bool;

    /// Reduces the windows of a piece.
    fn reduce(isa: Isa, piece: Piece<'_, '_, T, Self>) -> Result<()>;

    fn take<S: Simd<T>>(self, simd: S, x: S::V) -> S::V;
    fn join<S: Simd<T>>(self, simd: S, sum: S::V, x: S::V) -> S::V;
    /// [`join`](Self::join) for one element.
    fn join_one(self, sum: T, x: T) -> T;
    fn finish<S: Simd<T>>(self, simd: S, sum: S::V, weight: S::V) -> S::V;
}

/// The first NaN, else the maximum.
#[derive(Clone, Copy, Debug)]
pub struct Maximum;

impl<T: Element> Reduction<T> for Maximum {
    const NEUTRAL: T = T::NEG_INFINITY;
    const WEIGHTED: bool = false;

    fn reduce(isa: Isa, piece: Piece<'_, '_, T, Self>) -> Result<()> {
        T::maxima(isa, piece)
    }

    #[inline(always)]
    fn take<S: Simd<T>>(self, _: S, x: S::V) -> S::V {
        x
    }

    #[inline(always)]
    fn join<S: Simd<T>>(self, simd: S, sum: S::V, x: S::V) -> S::V {
        // `max` gives its second operand where either is NaN: that keeps one in `sum`, not one in `x`.
        simd.select(simd.ne(x, x), x, simd.max(x, sum))
    }

    #[inline(always)]
    fn join_one(self, sum: T, x: T) -> T {
        if x > sum || x.is_nan() { x } else { sum }
    }

    #[inline(always)]
    fn finish<S: Simd<T>>(self, _: S, sum: S::V, _: S::V) -> S::V {
        sum
    }
}

/// The sum over the number of elements.
#[derive(Clone, Copy, Debug)]
pub struct Average;

impl<T: Element> Reduction<T> for Average {
    const NEUTRAL: T = T::ZERO;
    const WEIGHTED: bool = true;

    fn reduce(isa: Isa, piece: Piece<'_, '_, T, Self>) -> Result<()> {
        T::averages(isa, piece)
    }

    #[inline(always)]
    fn take<S: Simd<T>>(self, _: S, x: S::V) -> S::V {
        x
    }

    #[inline(always)]
    fn join<S: Simd<T>>(self, simd: S, sum: S::V, x: S::V) -> S::V {
        simd.add(sum, x)
    }

    #[inline(always)]
    fn join_one(self, sum: T, x: T) -> T {
        sum + x
    }

    #[inline(always)]
    fn finish<S: Simd<T>>(self, simd: S, sum: S::V, weight: S::V) -> S::V {
        simd.mul(sum, weight)
    }
}

/// (Σ |x|ᵖ)^(1/p).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    p: f64,
}

impl Norm {
    pub(super) const fn new(p: f64) -> Self {
        Self { p }
    }

    pub(super) const fn p(self) -> f64 {
        self.p
    }

    /// xᵖ for x ≥ 0. Outlined: it is wanted in many places, and seldom.
    #[inline(always)]
    fn power<T: Element, S: Simd<T>>(simd: S, x: S::V, p: f64) -> S::V {
        let mut run = [T::ZERO; MOST_LANES];
        simd.store(x, &mut run);
        simd.call(Power { run: &mut run[..S::LANES], p: T::from_f64(p) });
        simd.load(&run)
    }

    /// y^(1 − p), by which a gradient is scaled; 0 where y is 0, where the norm has a kink.
    #[inline(always)]
    pub(super) fn outer<T: Element, S: Simd<T>>(self, simd: S, y: S::V) -> S::V {
        let (zero, one) = (simd.splat(T::ZERO), simd.splat(T::ONE));
        let factor = if self.p == 1.0 {
            one
        } else if self.p == 2.0 {
            simd.div(one, y)
        } else {
            Self::power(simd, y, 1.0 - self.p)
        };
        simd.select(simd.eq(y, zero), zero, factor)
    }

    /// sign(x) · |x|^(p − 1).
    #[inline(always)]
    pub(super) fn inner<T: Element, S: Simd<T>>(self, simd: S, x: S::V) -> S::V {
        if self.p == 2.0 {
            return x;
        }
        let size =
            if self.p == 1.0 { simd.splat(T::ONE) } else { Self::power(simd, simd.abs(x), self.p - 1.0) };
        simd.select(simd.eq(x, simd.splat(T::ZERO)), x, simd.copysign(size, x))
    }
}

/// A vector becomes its power.
struct Power<'r, T> {
    run: &'r mut [T],
    p: T,
}

impl<T: Element> SimdOp<T> for Power<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let logarithm = T::log_v(simd, simd.load(self.run));
        simd.store(T::exp_v(simd, simd.mul(logarithm, simd.splat(self.p))), self.run);
    }
}

impl<T: Element> Reduction<T> for Norm {
    const NEUTRAL: T = T::ZERO;
    const WEIGHTED: bool = false;

    fn reduce(isa: Isa, piece: Piece<'_, '_, T, Self>) -> Result<()> {
        T::norms(isa, piece)
    }

    #[inline(always)]
    fn take<S: Simd<T>>(self, simd: S, x: S::V) -> S::V {
        if self.p == 2.0 {
            simd.mul(x, x)
        } else if self.p == 1.0 {
            simd.abs(x)
        } else {
            Self::power(simd, simd.abs(x), self.p)
        }
    }

    #[inline(always)]
    fn join<S: Simd<T>>(self, simd: S, sum: S::V, x: S::V) -> S::V {
        simd.add(sum, x)
    }

    #[inline(always)]
    fn join_one(self, sum: T, x: T) -> T {
        sum + x
    }

    #[inline(always)]
    fn finish<S: Simd<T>>(self, simd: S, sum: S::V, _: S::V) -> S::V {
        if self.p == 2.0 {
            simd.sqrt(sum)
        } else if self.p == 1.0 {
            sum
        } else {
            Self::power(simd, sum, 1.0 / self.p)
        }
    }
}

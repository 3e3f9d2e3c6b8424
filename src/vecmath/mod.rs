//! Exponential, logarithm, hyperbolic tangent, logistic and error function.
//!
//! | function | formula | error, `f32` | error, `f64` |
//! |---|---|---|---|
//! | [`exp`] | eˣ | 2 ulp | 4 ulp |
//! | [`log`] | ln x | 2 ulp | 4 ulp |
//! | [`tanh`] | (eˣ − e⁻ˣ)/(eˣ + e⁻ˣ) | 2 ulp | 4 ulp |
//! | [`sigmoid`] | 1/(1 + e⁻ˣ) | 2 ulp | 4 ulp |
//! | [`erf`] | 2/√π·∫₀ˣ e^(−t²) dt | 2 ulp | 4 ulp |
//!
//! The bounds hold for every `f32` (all 2³² are tried) and on every instruction set, with and without fused
//! multiply-add. Denormals count as numbers on both sides, NaN gives NaN, and ±0 and ±∞ give what the limits
//! are: e^−∞ = 0, ln 0 = −∞, ln x is NaN for x < 0, erf(−0) = −0.
//!
//! Results do not depend on strides, on the number of threads or on an element's place. They may differ in the
//! last bit between instruction sets.
#![forbid(unsafe_code)]

mod erf;
mod exp;
mod exp2;
mod log;
mod map;
mod normal;
mod pair;
mod sigmoid;
#[cfg(test)]
mod table;
mod tanh;
#[cfg(test)]
mod tests;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine;
use crate::simd::{Dispatch, Simd};
use crate::tensor::{self, TensorView, TensorViewMut};
pub(crate) use map::Maps;
use map::{Function, Map};
pub(crate) use pair::Pair;

/// Functions of vectors, for code that is generic over the element type; see the modules for their bounds.
pub trait VecMath: Dispatch {
    /// eˣ.
    fn exp_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// eˣ for x ≤ 40.
    fn exp_low_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// eˣ for x ≤ 0, 0 where that is no normal number.
    fn exp_normal_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// 2ˣ for x ≤ 1, 0 where that is no normal number.
    fn exp2_normal_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// eˣ − 1 for −40 ≤ x ≤ 80.
    fn expm1_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// ln x.
    fn log_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// ln(1 + x) for 0 ≤ x ≤ 1.
    fn log1p_unit_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// tanh x.
    fn tanh_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// 1/(1 + e⁻ˣ).
    fn sigmoid_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// erf x.
    fn erf_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// x·Φ(x), Φ the distribution function of the normal distribution.
    fn gelu_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
    /// Its derivative.
    fn gelu_derivative_v<S: Simd<Self>>(s: S, x: S::V) -> S::V;
}

macro_rules! vec_math {
    ($T:ty: $($name:ident = $module:ident::$function:ident;)*) => {
        impl VecMath for $T {$(
            #[inline(always)]
            fn $name<S: Simd<Self>>(s: S, x: S::V) -> S::V {
                $module::$function(s, x)
            }
        )*}
    };
}

vec_math! { f32:
    exp_v = exp::exp_f32;
    exp_low_v = exp::exp_low_f32;
    exp_normal_v = exp::exp_normal_f32;
    exp2_normal_v = exp2::exp2_normal_f32;
    expm1_v = exp::expm1_f32;
    log_v = log::log_f32;
    log1p_unit_v = log::log1p_unit_f32;
    tanh_v = tanh::tanh_f32;
    sigmoid_v = sigmoid::sigmoid_f32;
    erf_v = erf::erf_f32;
    gelu_v = normal::gelu_f32;
    gelu_derivative_v = normal::gelu_derivative_f32;
}

vec_math! { f64:
    exp_v = exp::exp_f64;
    exp_low_v = exp::exp_low_f64;
    exp_normal_v = exp::exp_normal_f64;
    exp2_normal_v = exp2::exp2_normal_f64;
    expm1_v = exp::expm1_f64;
    log_v = log::log_f64;
    log1p_unit_v = log::log1p_unit_f64;
    tanh_v = tanh::tanh_f64;
    sigmoid_v = sigmoid::sigmoid_f64;
    erf_v = erf::erf_f64;
    gelu_v = normal::gelu_f64;
    gelu_derivative_v = normal::gelu_derivative_f64;
}

/// c\[0\] + c\[1\]·x + c\[2\]·x² + …
///
/// Longer ones as two interleaved Horner schemes in x², for even and odd powers: one multiplication more, half
/// the latency, of which the processor can hide only so much.
#[inline(always)]
fn polynomial<T: Copy, S: Simd<T>, const D: usize>(s: S, x: S::V, c: &[T; D]) -> S::V {
    if D < 6 {
        return horner::<T, S, D, 1>(s, x, c, 0);
    }
    let square = s.mul(x, x);
    s.mul_add(horner::<T, S, D, 2>(s, square, c, 1), x, horner::<T, S, D, 2>(s, square, c, 0))
}

/// Horner's scheme over every `STEP`-th coefficient from `first`, which exists.
#[inline(always)]
fn horner<T: Copy, S: Simd<T>, const D: usize, const STEP: usize>(
    s: S,
    x: S::V,
    c: &[T; D],
    first: usize,
) -> S::V {
    let mut i = first + (D - 1 - first) / STEP * STEP;
    let mut y = s.splat(c[i]);
    while i > first {
        i -= STEP;
        y = s.mul_add(y, x, s.splat(c[i]));
    }
    y
}

/// `dst[i] = body` with `x` the vector of `src[i]`, for one source or more, or one that may be
/// `None`; then, or without any, `run[i] = body` in place. All have one length.
///
/// A macro, because a closure would not be compiled with the instructions of the shim around it unless the
/// compiler chose to inline it. The type parameter `S` must be the token's.
macro_rules! map_vectors {
    ($s:ident, $dst:expr, |$($x:ident in $src:ident),+| $body:expr) => {{
        let dst: &mut [T] = $dst;
        map_vectors!(@ $s, dst, |$($x in { &$src }),+| $body)
    }};
    ($s:ident, $dst:expr, |$x:ident in $src:ident or in place| $body:expr) => {{
        let dst: &mut [T] = $dst;
        map_vectors!(@ $s, dst, |$x in { $src.unwrap_or(dst) }| $body)
    }};
    (@ $s:ident, $dst:ident, |$($x:ident in $src:block),+| $body:expr) => {{
        use crate::simd::Simd;
        use crate::vecmath::Pair;
        let lanes = <Pair<S> as Simd<T>>::LANES;
        let mut at = 0;
        while $dst.len() - at >= lanes && $($src.len() - at >= lanes)&&+ {
            let $s = Pair($s);
            $(let $x = $s.load(&$src[at..at + lanes]);)+
            let y = $body;
            $s.store(y, &mut $dst[at..at + lanes]);
            at += lanes;
        }
        let lanes = <S as Simd<T>>::LANES;
        while at < $dst.len() {
            let end = $dst.len().min(at + lanes);
            $(let $x = $s.load_partial(&$src[at..end]);)+
            let y = $body;
            $s.store_partial(y, &mut $dst[at..end]);
            at = end;
        }
    }};
    ($s:ident, $run:expr, |$x:ident| $body:expr) => {{
        use crate::simd::Simd;
        use crate::vecmath::Pair;
        let run: &mut [T] = $run;
        let mut pairs = run.chunks_exact_mut(<Pair<S> as Simd<T>>::LANES);
        for chunk in &mut pairs {
            let $s = Pair($s);
            let $x = $s.load(chunk);
            let y = $body;
            $s.store(y, chunk);
        }
        for chunk in pairs.into_remainder().chunks_mut(<S as Simd<T>>::LANES) {
            let $x = $s.load_partial(chunk);
            let y = $body;
            $s.store_partial(y, chunk);
        }
    }};
}
pub(crate) use map_vectors;

/// Accumulators of a sum: with pairs of vectors, enough for the latency of an addition.
pub(crate) const UNROLL: usize = 2;

/// `body` for each group of [`UNROLL`] vectors of a run of `n`, then for each vector left, with the vector's range and the
/// accumulator's number; then `partial` for the range of what is less than one. The type parameter `S` must be the token's.
macro_rules! for_vectors {
    ($n:expr, |$at:ident, $i:ident| $body:block, |$rest:ident| $partial:block) => {{
        use crate::vecmath::UNROLL;
        let n: usize = $n;
        let mut start = 0;
        while n - start >= UNROLL * S::LANES {
            for $i in 0..UNROLL {
                let $at = start + $i * S::LANES..start + ($i + 1) * S::LANES;
                $body
            }
            start += UNROLL * S::LANES;
        }
        while n - start >= S::LANES {
            let ($at, $i) = (start..start + S::LANES, 0);
            $body
            start += S::LANES;
        }
        if start < n {
            let $rest = start..n;
            $partial
        }
    }};
}
pub(crate) use for_vectors;

/// What a run costs more than copying it, for the number of tasks.
const COST: usize = 4;

fn map<T: Element, const N: usize>(
    op: &'static str,
    function: Function,
    x: TensorView<'_, T, N>,
    y: TensorViewMut<'_, T, N>,
) -> Result<()> {
    if x.shape() != y.shape() {
        return Err(Error::shape(op, "y", &y.shape(), &x.shape()));
    }
    let isa = machine::isa()?;
    machine::trace(|| format!("{op} {:?} {} {isa}", y.shape(), T::NAME));
    tensor::map([x], y, COST, &|[src], dst| T::map_run(isa, Map { function, src, dst }))
}

fn map_slice<T: Element>(op: &'static str, function: Function, x: &[T], y: &mut [T]) -> Result<()> {
    let (n, m) = (x.len(), y.len());
    map(op, function, TensorView::from_slice(x, [n])?, TensorViewMut::from_slice(y, [m])?)
}

macro_rules! public {
    ($name:ident, $slice:ident, $function:ident, $title:literal, $x:literal, $y:literal) => {
        #[doc = concat!("y = ", $title, ", element by element, for views of any rank and strides.")]
        ///
        /// # Errors
        /// [`Error::Shape`] where the shapes differ, [`Error::Isa`] where `TILEWISE_ISA` is wrong.
        ///
        /// ```
        /// use tilewise::{Tensor, vecmath};
        #[doc = concat!("let x = Tensor::<f64, 2>::full([2, 3], ", $x, ")?;")]
        /// let mut y = Tensor::zeros([3, 2])?;
        #[doc = concat!("vecmath::", stringify!($name), "(x.view().transpose(), y.view_mut())?;")]
        #[doc = concat!("assert!((y.as_slice()[5] - ", $y, ").abs() < 1e-15);")]
        /// # Ok::<(), tilewise::Error>(())
        /// ```
        pub fn $name<T: Element, const N: usize>(
            x: TensorView<'_, T, N>,
            y: TensorViewMut<'_, T, N>,
        ) -> Result<()> {
            map(stringify!($name), Function::$function, x, y)
        }

        #[doc = concat!("y = ", $title, ", element by element, for slices.")]
        ///
        /// # Errors
        /// [`Error::Shape`] where the lengths differ, [`Error::Isa`] where `TILEWISE_ISA` is wrong.
        ///
        /// ```
        /// let mut y = [0.0f32; 3];
        #[doc = concat!("tilewise::vecmath::", stringify!($slice), "(&[", $x, "; 3], &mut y)?;")]
        #[doc = concat!("assert!((y[2] - ", $y, ").abs() < 1e-6);")]
        /// # Ok::<(), tilewise::Error>(())
        /// ```
        pub fn $slice<T: Element>(x: &[T], y: &mut [T]) -> Result<()> {
            map_slice(stringify!($slice), Function::$function, x, y)
        }
    };
}

public!(exp, exp_slice, Exp, "eˣ", "1.0", "2.718281828459045");
public!(log, log_slice, Log, "ln x", "2.0", "0.6931471805599453");
public!(tanh, tanh_slice, Tanh, "tanh x", "0.5", "0.46211715726000976");
public!(sigmoid, sigmoid_slice, Sigmoid, "1/(1 + e⁻ˣ)", "1.0", "0.7310585786300049");
public!(erf, erf_slice, Erf, "erf x", "1.0", "0.8427007929497149");

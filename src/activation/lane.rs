//! Each activation on one vector: its value, and the chain rule through it.

use crate::element::Element;
use crate::simd::Simd;

/// An activation, its parameters in the element type.
pub(super) trait Lane<T: Element>: Copy {
    /// f(x).
    fn value<S: Simd<T>>(self, s: S, x: S::V) -> S::V;
    /// dy·f′(x).
    fn chain<S: Simd<T>>(self, s: S, x: S::V, dy: S::V) -> S::V;
}

/// `body` with `f` the [`Lane`] of the activation.
macro_rules! with_lane {
    ($activation:expr, $f:ident => $body:expr) => {{
        use crate::activation::{Activation, lane};
        macro_rules! with {
            ($lane:expr) => {{
                let $f = $lane;
                $body
            }};
        }
        match $activation {
            Activation::Identity => with!(lane::Identity),
            Activation::Relu => with!(lane::Relu),
            Activation::ThresholdedRelu { threshold } => with!(lane::ThresholdedRelu(T::from_f64(threshold))),
            Activation::LeakyRelu { slope } => with!(lane::LeakyRelu(T::from_f64(slope))),
            Activation::Elu { alpha } => with!(lane::Elu(T::from_f64(alpha))),
            Activation::Selu { alpha, scale } => {
                with!(lane::Selu(T::from_f64(scale * alpha), T::from_f64(scale)))
            }
            Activation::Celu { alpha } => with!(lane::Celu(T::from_f64(alpha))),
            Activation::Gelu => with!(lane::Gelu),
            Activation::GeluTanh => with!(lane::GeluTanh),
            Activation::Silu => with!(lane::Silu),
            Activation::Swish { beta } => with!(lane::Swish(T::from_f64(beta))),
            Activation::Mish => with!(lane::Mish),
            Activation::Sigmoid => with!(lane::Sigmoid),
            Activation::Tanh => with!(lane::Tanh),
            Activation::ScaledTanh { alpha, beta } => {
                with!(lane::ScaledTanh(T::from_f64(alpha), T::from_f64(beta)))
            }
            Activation::Affine { alpha, beta } => {
                with!(lane::Affine(T::from_f64(alpha), T::from_f64(beta)))
            }
            Activation::Softplus => with!(lane::Softplus),
            Activation::Softsign => with!(lane::Softsign),
            Activation::HardSigmoid { alpha, beta } => {
                with!(lane::HardSigmoid(T::from_f64(alpha), T::from_f64(beta)))
            }
            Activation::HardSwish => with!(lane::HardSwish),
            Activation::Sign => with!(lane::Sign),
            Activation::Clip { low, high } => with!(lane::Clip(low, high)),
        }
    }};
}
pub(super) use with_lane;

macro_rules! unit {
    ($($name:ident)+) => {$(
        #[derive(Clone, Copy)]
        pub(super) struct $name;
    )+};
}

unit!(Identity Relu Gelu GeluTanh Silu Mish Sigmoid Tanh Softplus Softsign HardSwish Sign);

/// The slope.
#[derive(Clone, Copy)]
pub(super) struct LeakyRelu<T>(pub T);

/// The threshold.
#[derive(Clone, Copy)]
pub(super) struct ThresholdedRelu<T>(pub T);

/// α.
#[derive(Clone, Copy)]
pub(super) struct Elu<T>(pub T);

/// λ·α and λ.
#[derive(Clone, Copy)]
pub(super) struct Selu<T>(pub T, pub T);

/// α.
#[derive(Clone, Copy)]
pub(super) struct Celu<T>(pub T);

/// β.
#[derive(Clone, Copy)]
pub(super) struct Swish<T>(pub T);

/// α and β.
#[derive(Clone, Copy)]
pub(super) struct HardSigmoid<T>(pub T, pub T);

/// α and β.
#[derive(Clone, Copy)]
pub(super) struct ScaledTanh<T>(pub T, pub T);

/// α and β.
#[derive(Clone, Copy)]
pub(super) struct Affine<T>(pub T, pub T);

/// Both bounds, in the widest type: one too large for the other is ∞ there.
#[derive(Clone, Copy)]
pub(super) struct Clip(pub f64, pub f64);

macro_rules! lane {
    ($type:ty: |$self:ident, $s:ident, $x:ident, $dy:ident| $value:block, $chain:block) => {
        impl<T: Element> Lane<T> for $type {
            #[inline(always)]
            fn value<S: Simd<T>>($self, $s: S, $x: S::V) -> S::V $value
            #[inline(always)]
            fn chain<S: Simd<T>>($self, $s: S, $x: S::V, $dy: S::V) -> S::V {
                let _ = ($s, $x, $dy); // not all of them are in every derivative
                $chain
            }
        }
    };
}

/// `x`, no smaller than `least`; NaN passes.
#[inline(always)]
fn at_least<T: Element, S: Simd<T>>(s: S, least: f64, x: S::V) -> S::V {
    s.max(s.splat(T::from_f64(least)), x)
}

/// `x`, no larger than `most`; NaN passes.
#[inline(always)]
fn at_most<T: Element, S: Simd<T>>(s: S, most: f64, x: S::V) -> S::V {
    s.min(s.splat(T::from_f64(most)), x)
}

#[inline(always)]
fn splat<T: Element, S: Simd<T>>(s: S, x: f64) -> S::V {
    s.splat(T::from_f64(x))
}

/// From here down the logistic function and eˣ are 0. A factor clamped to it keeps −∞·0 from giving NaN.
#[inline(always)]
fn vanishing<T: Element>() -> f64 {
    if size_of::<T>() == 4 { -104.0 } else { -746.0 }
}

/// σ(x)·(1 − σ(x)) as e/(1 + e)², e = e^−|x|, which does not cancel.
#[inline(always)]
fn sigmoid_derivative<T: Element, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let e = T::exp_low_v(s, s.neg(s.abs(x)));
    let q = s.div(s.splat(T::ONE), s.add(s.splat(T::ONE), e));
    s.mul(s.mul(e, q), q)
}

lane!(
    Identity: |self, s, x, dy| {
        let _ = s;
        x
    },
    { dy }
);

lane!(Relu: |self, s, x, dy| { s.max(s.splat(T::ZERO), x) }, {
    s.select(s.le(x, s.splat(T::ZERO)), s.splat(T::ZERO), dy)
});

lane!(LeakyRelu<T>: |self, s, x, dy| { s.select(s.lt(s.splat(T::ZERO), x), x, s.mul(s.splat(self.0), x)) }, {
    s.select(s.lt(s.splat(T::ZERO), x), dy, s.mul(s.splat(self.0), dy))
});

lane!(Elu<T>: |self, s, x, dy| {
        let low = at_least::<T, S>(s, -40.0, at_most::<T, S>(s, 0.0, x));
        s.select(s.lt(s.splat(T::ZERO), x), x, s.mul(s.splat(self.0), T::expm1_v(s, low)))
    },
    {
        let e = T::exp_low_v(s, at_most::<T, S>(s, 0.0, x));
        s.select(s.lt(s.splat(T::ZERO), x), dy, s.mul(dy, s.mul(s.splat(self.0), e)))
    }
);

lane!(ThresholdedRelu<T>: |self, s, x, dy| { s.select(s.le(x, s.splat(self.0)), s.splat(T::ZERO), x) }, {
    s.select(s.le(x, s.splat(self.0)), s.splat(T::ZERO), dy)
});

lane!(Selu<T>: |self, s, x, dy| {
        let low = at_least::<T, S>(s, -40.0, at_most::<T, S>(s, 0.0, x));
        let tail = s.mul(s.splat(self.0), T::expm1_v(s, low));
        s.select(s.lt(s.splat(T::ZERO), x), s.mul(s.splat(self.1), x), tail)
    },
    {
        let e = T::exp_low_v(s, at_most::<T, S>(s, 0.0, x));
        let factor = s.select(s.lt(s.splat(T::ZERO), x), s.splat(self.1), s.mul(s.splat(self.0), e));
        s.mul(dy, factor)
    }
);

lane!(Celu<T>: |self, s, x, dy| {
        let part = s.div(x, s.splat(self.0));
        let low = at_least::<T, S>(s, -40.0, at_most::<T, S>(s, 0.0, part));
        s.select(s.lt(s.splat(T::ZERO), x), x, s.mul(s.splat(self.0), T::expm1_v(s, low)))
    },
    {
        let e = T::exp_low_v(s, at_most::<T, S>(s, 0.0, s.div(x, s.splat(self.0))));
        s.select(s.lt(s.splat(T::ZERO), x), dy, s.mul(dy, e))
    }
);

lane!(Gelu: |self, s, x, dy| { T::gelu_v(s, x) }, { s.mul(dy, T::gelu_derivative_v(s, x)) });

/// √(8/π), twice what the formula has: tanh u = 2σ(2u) − 1.
const TWICE: f64 = 1.595_769_121_605_730_7;
const CUBIC: f64 = 0.044_715;

/// Where 2u, at most x below −12 and −22, lies well below [`vanishing`]; and, for the derivative, above.
#[inline(always)]
fn tanh_form_far<T: Element>() -> f64 {
    if size_of::<T>() == 4 { 12.0 } else { 22.0 }
}

/// 2u and x².
#[inline(always)]
fn tanh_form<T: Element, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V) {
    let square = s.mul(x, x);
    let factor = s.mul_add(square, splat::<T, S>(s, TWICE * CUBIC), splat::<T, S>(s, TWICE));
    (s.mul(factor, x), square)
}

lane!(GeluTanh: |self, s, x, dy| {
        let x = at_least::<T, S>(s, -tanh_form_far::<T>(), x);
        let (u, _) = tanh_form::<T, S>(s, x);
        s.mul(x, T::sigmoid_v(s, u))
    },
    {
        let far = tanh_form_far::<T>();
        let x = at_least::<T, S>(s, -far, at_most::<T, S>(s, far, x));
        let (u, square) = tanh_form::<T, S>(s, x);
        let slope =
            s.mul_add(square, splat::<T, S>(s, 3.0 * TWICE * CUBIC), splat::<T, S>(s, TWICE));
        let bell = s.mul(s.mul(x, sigmoid_derivative::<T, S>(s, u)), slope);
        s.mul(dy, s.add(T::sigmoid_v(s, u), bell))
    }
);

lane!(Silu: |self, s, x, dy| {
        let x = at_least::<T, S>(s, vanishing::<T>(), x);
        s.mul(x, T::sigmoid_v(s, x))
    },
    {
        let far = vanishing::<T>();
        let x = at_least::<T, S>(s, far, at_most::<T, S>(s, -far, x));
        let bell = s.mul(x, sigmoid_derivative::<T, S>(s, x));
        s.mul(dy, s.add(T::sigmoid_v(s, x), bell))
    }
);

lane!(Swish<T>: |self, s, x, dy| {
        let sigmoid = T::sigmoid_v(s, s.mul(s.splat(self.0), x));
        // The limit, where −∞·0 would be NaN.
        s.select(s.le(sigmoid, s.splat(T::ZERO)), s.splat(T::ZERO), s.mul(x, sigmoid))
    },
    {
        let far = vanishing::<T>();
        let x = at_least::<T, S>(s, far, at_most::<T, S>(s, -far, s.mul(s.splat(self.0), x)));
        let bell = s.mul(x, sigmoid_derivative::<T, S>(s, x));
        s.mul(dy, s.add(T::sigmoid_v(s, x), bell))
    }
);

/// Numerator and denominator of tanh(ln(1 + eˣ)), and e = e^−|x|. With E = eˣ that is (E² + 2E)/(E² + 2E + 2); above 0
/// both are divided by E².
#[inline(always)]
fn tanh_of_softplus<T: Element, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V, S::V) {
    let (one, two) = (s.splat(T::ONE), splat::<T, S>(s, 2.0));
    let e = T::exp_low_v(s, s.neg(s.abs(x)));
    let below = s.le(x, s.splat(T::ZERO));
    let numerator = s.select(below, s.mul(e, s.add(e, two)), s.mul_add(two, e, one));
    let rest = s.select(below, two, s.mul(two, s.mul(e, e)));
    (numerator, s.add(numerator, rest), e)
}

lane!(Mish: |self, s, x, dy| {
        let x = at_least::<T, S>(s, vanishing::<T>(), x);
        let (numerator, denominator, _) = tanh_of_softplus::<T, S>(s, x);
        s.mul(x, s.div(numerator, denominator))
    },
    {
        // t + x·(1 − t²)·σ(x), in which 1 − t² does not cancel: 4·e·(1 + e)/denominator², and times e above 0.
        let far = vanishing::<T>();
        let x = at_least::<T, S>(s, far, at_most::<T, S>(s, -far, x));
        let (numerator, denominator, e) = tanh_of_softplus::<T, S>(s, x);
        let q = s.div(s.splat(T::ONE), denominator);
        let power = s.select(s.le(x, s.splat(T::ZERO)), e, s.mul(e, e));
        let slope = s.mul(s.mul(splat::<T, S>(s, 4.0), power), s.mul(s.add(s.splat(T::ONE), e), s.mul(q, q)));
        s.mul(dy, s.mul_add(x, slope, s.mul(numerator, q)))
    }
);

lane!(Sigmoid: |self, s, x, dy| { T::sigmoid_v(s, x) }, { s.mul(dy, sigmoid_derivative::<T, S>(s, x)) });

lane!(Tanh: |self, s, x, dy| { T::tanh_v(s, x) }, {
    // 1 − tanh² x = 4σ(2x)(1 − σ(2x)).
    s.mul(dy, s.mul(splat::<T, S>(s, 4.0), sigmoid_derivative::<T, S>(s, s.add(x, x))))
});

lane!(ScaledTanh<T>: |self, s, x, dy| { s.mul(s.splat(self.0), T::tanh_v(s, s.mul(s.splat(self.1), x))) }, {
    let x = s.mul(s.splat(self.1), x);
    let bell = s.mul(splat::<T, S>(s, 4.0), sigmoid_derivative::<T, S>(s, s.add(x, x)));
    s.mul(dy, s.mul(s.mul(s.splat(self.0), s.splat(self.1)), bell))
});

lane!(Affine<T>: |self, s, x, dy| { s.mul_add(s.splat(self.0), x, s.splat(self.1)) }, {
    s.mul(dy, s.splat(self.0))
});

lane!(Softplus: |self, s, x, dy| {
        let e = T::exp_low_v(s, s.neg(s.abs(x)));
        s.add(s.max(s.splat(T::ZERO), x), T::log1p_unit_v(s, e))
    },
    { s.mul(dy, T::sigmoid_v(s, x)) }
);

lane!(Softsign: |self, s, x, dy| {
        // From there on the quotient is ±1; ∞/∞ is NaN.
        let x = at_least::<T, S>(s, -1e30, at_most::<T, S>(s, 1e30, x));
        s.div(x, s.add(s.splat(T::ONE), s.abs(x)))
    },
    {
        let q = s.div(s.splat(T::ONE), s.add(s.splat(T::ONE), s.abs(x)));
        s.mul(dy, s.mul(q, q))
    }
);

lane!(HardSigmoid<T>: |self, s, x, dy| {
        let line = s.mul_add(s.splat(self.0), x, s.splat(self.1));
        at_least::<T, S>(s, 0.0, at_most::<T, S>(s, 1.0, line))
    },
    {
        let line = s.mul_add(s.splat(self.0), x, s.splat(self.1));
        let zero = s.splat(T::ZERO);
        let inside = s.select(s.le(s.splat(T::ONE), line), zero, s.mul(s.splat(self.0), dy));
        s.select(s.le(line, zero), zero, inside)
    }
);

lane!(HardSwish: |self, s, x, dy| {
        // Bounded below as a factor too: −∞·0 is NaN. x + 3 is exact around −3, where x/6 + ½ is what rounding left of it;
        // and 6 times what 1/6 is rounded to is 1, so that from 3 on the result is x.
        let x = at_least::<T, S>(s, -3.0, x);
        let above = at_most::<T, S>(s, 6.0, s.add(x, splat::<T, S>(s, 3.0)));
        s.mul(x, s.mul(above, splat::<T, S>(s, 1.0 / 6.0)))
    },
    {
        let slope = s.mul(s.add(x, splat::<T, S>(s, 1.5)), splat::<T, S>(s, 1.0 / 3.0));
        let upper = s.select(s.le(splat::<T, S>(s, 3.0), x), dy, s.mul(slope, dy));
        s.select(s.le(x, splat::<T, S>(s, -3.0)), s.splat(T::ZERO), upper)
    }
);

lane!(Sign: |self, s, x, dy| {
        let zero = s.splat(T::ZERO);
        let sign = s.select(s.lt(x, zero), s.splat(-T::ONE), s.splat(T::ONE));
        s.select(s.ne(x, x), x, sign)
    },
    { s.splat(T::ZERO) }
);

lane!(Clip: |self, s, x, dy| { at_least::<T, S>(s, self.0, at_most::<T, S>(s, self.1, x)) }, {
    let zero = s.splat(T::ZERO);
    let below = s.select(s.le(splat::<T, S>(s, self.1), x), zero, dy);
    s.select(s.le(x, splat::<T, S>(s, self.0)), zero, below)
});

//! Every activation on every instruction set against the scalar reference.

use super::*;
use crate::machine::{supported, with_isa};
use crate::reference::activation as reference;
use crate::tensor::Tensor;
use quickcheck::quickcheck;

const ALL: [Activation; 23] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { slope: 0.01 },
    Activation::ThresholdedRelu { threshold: 1.0 },
    Activation::Elu { alpha: 1.5 },
    Activation::selu(),
    Activation::Celu { alpha: 1.5 },
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Swish { beta: -1.5 },
    Activation::Mish,
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::ScaledTanh { alpha: 1.75, beta: 0.625 },
    Activation::Affine { alpha: -1.5, beta: 0.25 },
    Activation::Softplus,
    Activation::Softsign,
    Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
    Activation::HardSwish,
    Activation::Sign,
    Activation::relu6(),
    Activation::Clip { low: -1.25, high: 0.5 },
];

/// How far a value may be off, in multiples of ε relative to the exact one, given the reasoning in each arm.
fn value_tolerance(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity
        | Activation::Relu
        | Activation::ThresholdedRelu { .. }
        | Activation::Sign
        | Activation::Clip { .. } => 0.0,
        Activation::LeakyRelu { .. } => 1.0,
        // The rounding of x/α and of βx, in tails that fall like eˣ.
        Activation::Celu { alpha } => 4.0 + (x / alpha).abs().min(1000.0),
        Activation::Swish { beta } => 4.0 + (x * beta).abs().min(1000.0),
        Activation::ScaledTanh { beta, .. } => 5.0 + (2.0 * x * beta).abs().min(1000.0),
        Activation::Mish => 6.0,
        // The tail falls like e^(−x²/2), so that the rounding of x² costs x²/2.
        Activation::Gelu => 4.0 + 2.0 * x * x,
        // e^(2u): the rounding of 2u, about 2|u| and three of them.
        Activation::GeluTanh => 4.0 + 3.0 * (x.abs() + 0.08 * x.abs().powi(3)),
        Activation::HardSigmoid { .. } | Activation::HardSwish => 3.0,
        _ => 4.0,
    }
}

/// What may be off besides, in units of the result's smallest numbers and of cancelling terms.
fn absolute<T: Element>(activation: Activation, x: f64) -> f64 {
    let epsilon = T::EPSILON.to_f64();
    let tiny = if size_of::<T>() == 4 { 2f64.powi(-149) } else { 2f64.powi(-1074) };
    match activation {
        // α·x + β cancels.
        Activation::HardSigmoid { alpha, beta } => epsilon * ((alpha * x).abs().min(2.0) + beta),
        Activation::Affine { alpha, beta } => epsilon * ((alpha * x).abs() + beta),
        // A denormal factor times x, and times the derivative of 2u.
        Activation::GeluTanh => tiny * (2.0 + x.abs().min(30.0) * (2.0 + 0.25 * x * x)),
        _ => tiny * (2.0 + x.abs().min(1000.0)),
    }
}

fn close<T: Element>(y: T, exact: f64, relative: f64, absolute: f64) -> bool {
    let y = y.to_f64();
    // The exact value may lie beyond the type's range.
    let exact = T::from_f64(exact).to_f64();
    y == exact
        || (y.is_nan() && exact.is_nan())
        || (y - exact).abs() <= relative * T::EPSILON.to_f64() * exact.abs() + absolute
}

fn check_values<T: Element>(x: &[T]) {
    let x = Tensor::from_slice(x, [x.len()]).unwrap();
    for activation in ALL {
        for &isa in supported() {
            let mut y = Tensor::zeros(x.shape()).unwrap();
            with_isa(isa, || forward(activation, x.view(), y.view_mut())).unwrap().unwrap();
            let mut again = x.view().to_tensor().unwrap();
            with_isa(isa, || in_place(activation, again.view_mut())).unwrap().unwrap();
            for ((&x, &y), &again) in x.iter().zip(&y).zip(&again) {
                let at = x.to_f64();
                let exact = reference::value(activation, at);
                assert!(
                    close(y, exact, value_tolerance(activation, at), absolute::<T>(activation, at)),
                    "{activation:?} {} on {isa}: f({x}) = {y}, not {exact:e}",
                    T::NAME,
                );
                assert!(y == again || y.is_nan() && again.is_nan(), "{activation:?}: in place at {x}");
            }
        }
    }
}

/// Derivatives: relative to the larger of the result and the terms that cancel in it.
fn check_derivatives<T: Element>(x: &[T]) {
    let x = Tensor::from_slice(x, [x.len()]).unwrap();
    let dy = Tensor::from_fn(x.shape(), |[i]| T::from_f64(1.0 - 0.25 * (i % 7) as f64)).unwrap();
    for activation in ALL {
        for &isa in supported() {
            let mut dx = Tensor::zeros(x.shape()).unwrap();
            with_isa(isa, || backward(activation, x.view(), dy.view(), dx.view_mut())).unwrap().unwrap();
            for ((&x, &dy), &dx) in x.iter().zip(&dy).zip(&dx) {
                let (at, by) = (x.to_f64(), dy.to_f64());
                let exact = if by == 0.0 { 0.0 } else { by * reference::derivative(activation, at) };
                let bell = match activation {
                    Activation::Gelu => 2.0 + 2.0 * at * at,
                    Activation::GeluTanh => 4.0 + 5.0 * (at.abs() + 0.3 * at.abs().powi(3)),
                    _ => 2.0,
                };
                // Φ + x·φ and σ + x·σ·(1 − σ) pass through 0; their terms are at most about 0.3 there.
                let terms = match activation {
                    Activation::Swish { .. } => 0.3 * (1.0 + at.abs().min(2.0)),
                    Activation::Gelu | Activation::GeluTanh | Activation::Silu | Activation::Mish
                        if at < 0.0 =>
                    {
                        reference::value(activation, at).abs().min(1.0) * (1.0 + at.abs())
                    }
                    Activation::HardSigmoid { .. } => 1.0,
                    _ => 0.0,
                };
                let relative = value_tolerance(activation, at) + 4.0 + bell;
                let allowed = T::EPSILON.to_f64() * relative * terms + 4.0 * absolute::<T>(activation, at);
                // Next to a corner of a piecewise-linear function rounding decides for a side.
                let line = match activation {
                    Activation::HardSigmoid { alpha, beta } => alpha * at + beta,
                    _ => f64::NAN,
                };
                let corner = [0.0, 1.0].iter().any(|c| (line - c).abs() < 4.0 * T::EPSILON.to_f64());
                assert!(
                    corner || close(dx, exact, relative, allowed),
                    "{activation:?} {} on {isa}: the derivative at {x} times {dy} = {dx}, not {exact:e}",
                    T::NAME,
                );
            }
        }
    }
}

fn sample<T: Element>() -> Vec<T> {
    let dense = (-4800..=4800).map(|i| f64::from(i) / 400.0 + 1e-4);
    let wide = (-60..=60).map(|i| f64::from(i) * 14.3);
    let small = (0..60).flat_map(|i| [0.1f64.powi(i), -(0.1f64.powi(i))]);
    let corners =
        [0.0, -0.0, 3.0, -3.0, 2.5, -2.5, 5.5, -5.5, 14.5, -14.5, 38.6, -38.6, 1e4, -1e4, 1e30, -1e30];
    dense.chain(wide).chain(small).chain(corners).map(T::from_f64).collect()
}

#[test]
fn values_match_the_reference() {
    check_values(&sample::<f32>());
    check_values(&sample::<f64>());
}

#[test]
fn derivatives_match_the_reference() {
    check_derivatives(&sample::<f32>());
    check_derivatives(&sample::<f64>());
}

#[test]
fn infinities_and_nan() {
    fn check<T: Element>() {
        for activation in ALL {
            for &isa in supported() {
                let x = [T::INFINITY, T::NEG_INFINITY, T::NAN];
                let mut y = Tensor::from_slice(&x, [3]).unwrap();
                with_isa(isa, || in_place(activation, y.view_mut())).unwrap().unwrap();
                let exact = x.map(|x| reference::value(activation, x.to_f64()));
                assert!(y.as_slice()[2].is_nan(), "{activation:?} of NaN");
                assert_eq!(y.as_slice()[0], T::from_f64(exact[0]), "{activation:?} of ∞ on {isa}");
                assert_eq!(y.as_slice()[1], T::from_f64(exact[1]), "{activation:?} of −∞ on {isa}");
                let mut dx = Tensor::zeros([3]).unwrap();
                let dy = Tensor::full([3], T::ONE).unwrap();
                let at = Tensor::from_slice(&x, [3]).unwrap();
                with_isa(isa, || backward(activation, at.view(), dy.view(), dx.view_mut())).unwrap().unwrap();
                for (i, at) in x.iter().enumerate().take(2) {
                    let exact = reference::derivative(activation, at.to_f64());
                    assert_eq!(dx.as_slice()[i], T::from_f64(exact), "{activation:?}' at {at} on {isa}");
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

/// Relative to the result, however small it is.
#[test]
fn hard_swish_keeps_its_digits_at_its_zeros() {
    fn check<T: Element>() {
        let steps = (0..20).map(|i| T::EPSILON.to_f64() * 5f64.powi(i) * 2.0);
        let at = |zero: f64| {
            steps.clone().flat_map(move |step| [step, -step]).map(move |step| T::from_f64(zero + step))
        };
        let x: Vec<T> = at(-3.0).chain(at(-1.5)).chain([-3.0, -1.5, 3.0, 1e38].map(T::from_f64)).collect();
        let x = Tensor::from_slice(&x, [x.len()]).unwrap();
        let ones = Tensor::full(x.shape(), T::ONE).unwrap();
        for &isa in supported() {
            let [mut y, mut dx] = [(); 2].map(|()| Tensor::zeros(x.shape()).unwrap());
            with_isa(isa, || {
                forward(Activation::HardSwish, x.view(), y.view_mut()).unwrap();
                backward(Activation::HardSwish, x.view(), ones.view(), dx.view_mut()).unwrap();
            })
            .unwrap();
            for ((x, &y), &dx) in x.iter().map(|x| x.to_f64()).zip(&y).zip(&dx) {
                let exact = if x >= 3.0 { x } else { x * (x + 3.0).max(0.0) / 6.0 };
                assert!(close(y, exact, 2.5, 0.0), "{} on {isa}: f({x}) = {y}, not {exact:e}", T::NAME);
                let exact = match x {
                    _ if x <= -3.0 => 0.0,
                    _ if x >= 3.0 => 1.0,
                    _ => (2.0 * x + 3.0) / 6.0,
                };
                assert!(close(dx, exact, 2.5, 0.0), "{} on {isa}: f'({x}) = {dx}, not {exact:e}", T::NAME);
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn derivatives_are_the_slopes() {
    let h = 1e-5;
    for activation in ALL {
        let count = 40;
        // Away from the corners at 0, ±2.5 and ±3.
        let x = Tensor::from_fn([count], |[i]| i as f64 * 0.31 - 6.05).unwrap();
        let shifted = |by: f64| {
            let mut y = Tensor::from_fn([count], |[i]| x.as_slice()[i] + by).unwrap();
            in_place(activation, y.view_mut()).unwrap();
            y
        };
        let (above, below) = (shifted(h), shifted(-h));
        let dy = Tensor::full([count], 1.0).unwrap();
        let mut dx = Tensor::zeros([count]).unwrap();
        backward(activation, x.view(), dy.view(), dx.view_mut()).unwrap();
        for i in 0..count {
            let slope = (above.as_slice()[i] - below.as_slice()[i]) / (2.0 * h);
            assert!((dx.as_slice()[i] - slope).abs() < 1e-8, "{activation:?}' at {}", x.as_slice()[i]);
        }
    }
}

quickcheck! {
    fn prelu_matches_the_reference(sizes: (u8, u8, u8), shared: u8, turned: bool) -> bool {
        let shape = [sizes.0 % 4, sizes.1 % 9, sizes.2 % 67].map(usize::from);
        let narrow = std::array::from_fn(|axis| if shared >> axis & 1 == 1 { 1 } else { shape[axis] });
        let tensor = |shape: [usize; 3], salt: usize| {
            Tensor::<f64, 3>::from_fn(shape, |[i, j, k]| {
                ((i * 31 + j * 17 + k * 7 + salt) % 101) as f64 / 8.0 - 6.0
            }).unwrap()
        };
        let slope = tensor(narrow, 5);
        let [a, b, c] = shape;
        let [x, dy] = [3, 8].map(|salt| tensor(if turned { [c, b, a] } else { shape }, salt));
        let [x, dy] = [&x, &dy].map(|t| if turned { t.view().transpose() } else { t.view() });
        let expected = reference::prelu(x, slope.view()).unwrap();
        let (dx, d_slope) = reference::prelu_backward(x, slope.view(), dy).unwrap();
        supported().iter().all(|&isa| {
            let [mut y, mut gradient, mut sums] =
                [shape, shape, narrow].map(|shape| Tensor::full(shape, 77.0).unwrap());
            let outputs = (Some(gradient.view_mut()), Some(sums.view_mut()));
            with_isa(isa, || {
                prelu(x, slope.view(), y.view_mut()).unwrap();
                prelu_backward(x, slope.view(), dy, outputs.0, outputs.1).unwrap();
            }).unwrap();
            y.as_slice() == expected.as_slice() && gradient.as_slice() == dx.as_slice()
                && sums.view().all_close(d_slope.view(), 1e-12, 1e-12)
        })
    }

    fn views_of_any_layout(sizes: (u8, u8, u8), which: u8, layout: u8) -> bool {
        let activation = ALL[which as usize % ALL.len()];
        let [a, b, c] = [sizes.0 % 4, sizes.1 % 9, sizes.2 % 67].map(usize::from);
        let x = Tensor::<f32, 3>::from_fn([a, b, 2 * c], |[i, j, k]| {
            ((i * 31 + j * 17 + k * 7) % 101) as f32 / 8.0 - 6.0
        }).unwrap();
        let mut out = Tensor::<f32, 3>::full([2 * c, b, a], 77.0).unwrap();
        let mut x = x.view().slice(2, ((layout & 1) as usize).min(2 * c).., 2).unwrap();
        if layout & 2 != 0 { x = x.flip(1).unwrap(); }
        if layout & 4 != 0 { x = x.flip(2).unwrap(); }
        let n = x.shape()[2];
        let y = out.view_mut().slice(0, ..n, 1).unwrap().transpose();
        forward(activation, x, y).unwrap();
        let same = {
            let y = out.view().slice(0, ..n, 1).unwrap().transpose();
            let mut dense = x.to_tensor().unwrap();
            in_place(activation, dense.view_mut()).unwrap();
            y.iter().zip(&dense).all(|(y, d)| y.to_bits() == d.to_bits())
        };
        same && out.view().slice(0, n.., 1).unwrap().iter().all(|&gap| gap == 77.0)
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let x = Tensor::<f32, 2>::from_fn([300, 1001], |[i, j]| ((i * 7 + j * 13) % 997) as f32 / 70.0 - 7.0)
        .unwrap();
    for activation in ALL {
        let results: Vec<_> = [1, 2, 3, 8]
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (mut y, mut dx) = (Tensor::zeros(x.shape()).unwrap(), Tensor::zeros(x.shape()).unwrap());
                pool.install(|| forward(activation, x.view(), y.view_mut())).unwrap();
                pool.install(|| backward(activation, x.view(), y.view(), dx.view_mut())).unwrap();
                (y, dx)
            })
            .into();
        assert!(results.iter().all(|result| *result == results[0]), "{activation:?}");
    }
}

#[test]
fn wrong_shapes_are_errors_and_write_nothing() {
    let x = Tensor::<f32, 2>::zeros([2, 3]).unwrap();
    let mut y = Tensor::<f32, 2>::full([3, 2], 7.0).unwrap();
    let error = forward(Activation::Sigmoid, x.view(), y.view_mut()).unwrap_err();
    assert_eq!(error, Error::shape("activation::forward", "y", &[3, 2], &[2, 3]));
    let error = backward(Activation::Sigmoid, x.view(), x.view(), y.view_mut()).unwrap_err();
    assert_eq!(error, Error::shape("activation::backward", "dx", &[3, 2], &[2, 3]));
    let mut dx = Tensor::<f32, 2>::zeros([2, 3]).unwrap();
    let error = backward(Activation::Sigmoid, x.view(), y.view(), dx.view_mut()).unwrap_err();
    assert_eq!(error, Error::shape("activation::backward", "dy", &[3, 2], &[2, 3]));
    assert_eq!(y.as_slice(), [7.0; 6]);
}

#[test]
fn sign_is_the_perceptrons() {
    let mut x = Tensor::<f32, 1>::from_slice(&[0.0, -0.0, -1e-45, 1e-45], [4]).unwrap();
    in_place(Activation::Sign, x.view_mut()).unwrap();
    assert_eq!(x.as_slice(), [1.0, 1.0, -1.0, 1.0]);
}

//! Every function on every instruction set against `f64` (for `f32`) or tabulated values, in ulp.

use super::*;
use crate::machine::{Isa, supported, with_isa};
use crate::reference;
use crate::simd::SimdOp;
use rayon::prelude::*;

type Slice32 = fn(&[f32], &mut [f32]) -> Result<()>;
type Slice64 = fn(&[f64], &mut [f64]) -> Result<()>;

/// Name, vector function, `f64` function.
type Function<F> = (&'static str, F, fn(f64) -> f64);

const FUNCTIONS: [Function<Slice32>; 5] = [
    ("exp", exp_slice, f64::exp),
    ("log", log_slice, f64::ln),
    ("tanh", tanh_slice, f64::tanh),
    ("sigmoid", sigmoid_slice, reference::vecmath::sigmoid),
    ("erf", erf_slice, reference::vecmath::erf),
];

/// The distance in units of the last place that `f32` has at the exact result.
fn ulps(y: f32, exact: f64) -> f64 {
    if y.is_nan() || exact.is_nan() {
        return if y.is_nan() && exact.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let exponent = (exact.abs().to_bits() >> 52) as i32 - 1023;
    let ulp = 2f64.powi(exponent.clamp(-126, 127) - 23);
    // Infinity stands where the next number would.
    let finite = |v: f64| v.clamp(-(2f64.powi(128)), 2f64.powi(128));
    (finite(f64::from(y)) - finite(exact)).abs() / ulp
}

/// The worst error over some bit patterns, and where.
fn worst(isa: Isa, function: Slice32, bits: &[u32], exact: &[f64]) -> (f64, f32) {
    let x: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
    let mut y = vec![0.0; x.len()];
    with_isa(isa, || function(&x, &mut y)).unwrap().unwrap();
    let errors = y.iter().zip(exact).zip(&x).map(|((&y, &exact), &x)| (ulps(y, exact), x));
    errors.fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
}

fn specials() -> Vec<u32> {
    let edges = [
        0.0f32,
        1.0,
        0.5,
        2.0,
        1e-8,
        0.346_573_6,
        std::f32::consts::LN_2,
        std::f32::consts::FRAC_1_SQRT_2,
        std::f32::consts::SQRT_2,
        2.0f32.powi(-126),
        3.95,
        5.5,
        9.01,
        10.0,
        16.6,
        17.3,
        40.0,
        87.336_54,
        88.0,
        88.722_84,
        88.722_83,
        88.75,
        89.0,
        103.278_9,
        103.972_08,
        104.0,
        150.0,
        1e30,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
        1e-40,
        1.4e-45,
    ];
    let around = |x: f32| (-40..=40).map(move |d: i32| x.to_bits().wrapping_add_signed(d) & 0x7FFF_FFFF);
    let both = |bits: u32| [bits, bits | 0x8000_0000];
    edges
        .into_iter()
        .flat_map(around)
        .flat_map(both)
        .chain([0x7F80_0001, 0xFF80_0001, 0x7FFF_FFFF, 0x7FC0_00FF])
        .collect()
}

#[test]
fn f32_within_2_ulp_on_a_sample() {
    let bits: Vec<u32> = (0..=u32::MAX).step_by(4099).chain(specials()).collect();
    for (name, function, scalar) in FUNCTIONS {
        let exact: Vec<f64> = bits.iter().map(|&bits| scalar(f64::from(f32::from_bits(bits)))).collect();
        for &isa in supported() {
            let (error, x) = worst(isa, function, &bits, &exact);
            assert!(error <= 2.0, "{name} on {isa}: {error} ulp at {x:e}");
        }
    }
}

#[test]
#[ignore = "slow: all 2^32 numbers for five functions, some minutes"]
fn f32_within_2_ulp_everywhere() {
    for (name, function, scalar) in FUNCTIONS {
        let chunk = 1u64 << 16;
        let worst = (0..(1u64 << 32) / chunk)
            .into_par_iter()
            .map(|i| {
                let bits: Vec<u32> = (i * chunk..(i + 1) * chunk).map(|bits| bits as u32).collect();
                let exact: Vec<f64> = bits.iter().map(|&b| scalar(f64::from(f32::from_bits(b)))).collect();
                supported().iter().map(|&isa| worst(isa, function, &bits, &exact)).collect::<Vec<_>>()
            })
            .reduce(
                || vec![(0.0, 0.0); supported().len()],
                |a, b| a.into_iter().zip(b).map(|(a, b)| if b.0 > a.0 { b } else { a }).collect(),
            );
        for (&isa, &(error, x)) in supported().iter().zip(&worst) {
            println!("{name} on {isa}: {error:.4} ulp at {x:e}");
        }
        assert!(worst.iter().all(|&(error, _)| error <= 2.0), "{name}");
    }
}

/// As [`ulps`], for `f64`.
fn ulps_f64(y: f64, exact: f64) -> f64 {
    if y == exact || (y.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    // The distance in representable numbers, across infinity and the denormals too.
    let ordered = |v: f64| (v.abs().to_bits() as i64) * if v.is_sign_negative() { -1 } else { 1 };
    if y.is_nan() || exact.is_nan() { f64::INFINITY } else { (ordered(y) - ordered(exact)).abs() as f64 }
}

const FUNCTIONS_F64: [Function<Slice64>; 5] = [
    ("exp", exp_slice, f64::exp),
    ("log", log_slice, f64::ln),
    ("tanh", tanh_slice, f64::tanh),
    ("sigmoid", sigmoid_slice, reference::vecmath::sigmoid),
    ("erf", erf_slice, reference::vecmath::erf),
];

#[test]
fn f64_within_4_ulp_of_the_table() {
    for (column, (name, function, scalar)) in FUNCTIONS_F64.into_iter().enumerate() {
        let logarithm = name == "log";
        let x = table::TABLE
            .map(|row| if logarithm { f64::from_bits(row[0]).abs() } else { f64::from_bits(row[0]) });
        let exact = table::TABLE.map(|row| f64::from_bits(row[1 + column]));
        for &isa in supported() {
            let mut y = vec![0.0; x.len()];
            with_isa(isa, || function(&x, &mut y)).unwrap().unwrap();
            for ((&x, &y), &exact) in x.iter().zip(&y).zip(&exact) {
                let error = ulps_f64(y, exact);
                assert!(error <= 4.0, "{name} on {isa}: {error} ulp at {x:e}: {y:e}, not {exact:e}");
            }
        }
        // What the sample below compares with is itself near enough.
        for (&x, &exact) in x.iter().zip(&exact) {
            let error = ulps_f64(scalar(x), exact);
            assert!(error <= 2.0, "reference {name}: {error} ulp at {x:e}");
        }
    }
}

#[test]
fn f64_within_4_ulp_on_a_sample() {
    let spread = (0..200_000u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    // Bit patterns of all sizes, and numbers where the functions do something.
    let mut x: Vec<f64> = spread.clone().map(f64::from_bits).collect();
    x.extend(spread.map(|bits| (bits >> 11) as f64 / (1u64 << 53) as f64 * 80.0 - 40.0));
    x.extend([0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, f64::MAX, f64::MIN_POSITIVE]);
    for (name, function, scalar) in FUNCTIONS_F64 {
        for &isa in supported() {
            let mut y = vec![0.0; x.len()];
            with_isa(isa, || function(&x, &mut y)).unwrap().unwrap();
            let (error, at) = x.iter().zip(&y).fold((0.0, 0.0), |worst, (&x, &y)| {
                let error = ulps_f64(y, scalar(x));
                if error > worst.0 { (error, x) } else { worst }
            });
            println!("{name} f64 on {isa}: {error} ulp at {at:e}");
            // The standard library and the reference are within 2 ulp (see above).
            assert!(error <= 4.0, "{name} on {isa}: {error} ulp at {at:e}");
        }
    }
}

#[test]
fn limits_and_signs() {
    for &isa in supported() {
        let of = |function: Slice32, x: f32| {
            let mut y = [0.0];
            with_isa(isa, || function(&[x], &mut y)).unwrap().unwrap();
            y[0]
        };
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!(
            [of(exp_slice, -inf), of(exp_slice, inf), of(exp_slice, 0.0), of(exp_slice, -0.0)],
            [0.0, inf, 1.0, 1.0]
        );
        assert_eq!(
            [of(log_slice, 0.0), of(log_slice, -0.0), of(log_slice, 1.0), of(log_slice, inf)],
            [-inf, -inf, 0.0, inf]
        );
        assert!([of(log_slice, -1.0), of(log_slice, -inf), of(log_slice, -1e-42)].iter().all(|y| y.is_nan()));
        for odd in [tanh_slice::<f32>, erf_slice::<f32>] {
            assert_eq!([of(odd, inf), of(odd, -inf), of(odd, 30.0)], [1.0, -1.0, 1.0]);
            assert!(
                of(odd, -0.0) == 0.0 && of(odd, -0.0).is_sign_negative() && of(odd, 0.0).is_sign_positive()
            );
        }
        assert_eq!(
            [of(sigmoid_slice, inf), of(sigmoid_slice, -inf), of(sigmoid_slice, -0.0)],
            [1.0, 0.0, 0.5]
        );
        for (_, function, _) in FUNCTIONS {
            assert!(of(function, nan).is_nan() && of(function, f32::from_bits(0xFF80_01FF)).is_nan());
        }
    }
}

/// What else a vector holds must not matter: a slice that is cut for threads is cut into other vectors. Arguments of exp in the
/// middle between multiples of ln 2, where without FMA roundings meet ties, beside what takes another way.
#[test]
fn neighbours_do_not_matter() {
    // As many as two vectors have lanes.
    const APART: usize = 32;
    macro_rules! check {
        ($T:ty, $functions:expr, $multiples:expr, $far:expr) => {
            let middles = (-$multiples..$multiples).flat_map(|n| {
                let x = (n as $T + 0.5) * std::f64::consts::LN_2 as $T;
                (-8i32..8).map(move |by| <$T>::from_bits(x.to_bits().wrapping_add_signed(by.into())))
            });
            let xs: Vec<$T> = middles.collect();
            for &isa in supported() {
                for (name, function) in $functions {
                    let beside = |other: $T| {
                        let x: Vec<_> = xs.iter().flat_map(|&x| [[x, other]; APART / 2]).flatten().collect();
                        let mut y = vec![0.0; x.len()];
                        with_isa(isa, || function(&x, &mut y)).unwrap().unwrap();
                        y.into_iter().step_by(2).map(<$T>::to_bits).collect::<Vec<_>>()
                    };
                    let usual = beside(0.5);
                    for other in $far {
                        assert!(beside(other) == usual, "{name} beside {other} on {isa}");
                    }
                }
            }
        };
    }
    let far = [1e4, -1e4];
    check!(f32, FUNCTIONS.map(|(name, function, _)| (name, function)), 125i32, far.map(|x| x as f32));
    let functions: [(_, Slice64); 5] = [
        ("exp", exp_slice),
        ("log", log_slice),
        ("tanh", tanh_slice),
        ("sigmoid", sigmoid_slice),
        ("erf", erf_slice),
    ];
    check!(f64, functions, 1000i32, far);
}

#[test]
fn views_threads_and_errors() {
    let x = crate::Tensor::<f32, 3>::from_fn([7, 65, 300], |[i, j, k]| {
        ((i * 7919 + j * 104_729 + k) % 9973) as f32 / 500.0 - 10.0
    })
    .unwrap();
    let view = || x.view().permute([2, 0, 1]).unwrap().flip(0).unwrap().slice(2, 1.., 3).unwrap();
    let dense = view().to_tensor().unwrap();
    let mut plain = vec![0.0; dense.len()];
    tanh_slice(dense.as_slice(), &mut plain).unwrap();
    for threads in [1, 2, 3, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut y = crate::Tensor::zeros(dense.shape()).unwrap();
        pool.install(|| tanh(view(), y.view_mut())).unwrap();
        assert!(y.as_slice() == plain, "{threads} threads");
    }
    let mut short = [0.0f32; 3];
    let error = exp_slice(&[1.0, 2.0], &mut short).unwrap_err();
    assert_eq!(error, Error::shape("exp_slice", "y", &[3], &[2]));
    assert_eq!(short, [0.0; 3]);
    exp_slice::<f64>(&[], &mut []).unwrap();
}

/// What only kernels of this crate call.
#[derive(Clone, Copy, Debug)]
enum Inner {
    ExpLow,
    ExpNormal,
    Expm1,
    Log1pUnit,
}

struct Apply<'a>(Inner, &'a mut [f32]);

impl SimdOp<f32> for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<f32>>(self, s: S) {
        type T = f32;
        let Apply(inner, run) = self;
        match inner {
            Inner::ExpLow => map_vectors!(s, run, |x| T::exp_low_v(s, x)),
            Inner::ExpNormal => map_vectors!(s, run, |x| T::exp_normal_v(s, x)),
            Inner::Expm1 => map_vectors!(s, run, |x| T::expm1_v(s, x)),
            Inner::Log1pUnit => map_vectors!(s, run, |x| T::log1p_unit_v(s, x)),
        }
    }
}

#[test]
fn inner_functions_keep_their_bounds() {
    // Bounds in ulp, each at least ε/2 of the value.
    let cases: [(Inner, std::ops::Range<f32>, fn(f64) -> f64, fn(f64) -> f64); 4] = [
        (Inner::ExpLow, -120.0..40.0, f64::exp, |_| 2.0),
        (Inner::ExpNormal, -87.336..1e-3, f64::exp, |x| 2.0 * (2.0 + x.abs())),
        (Inner::Expm1, -40.0..80.0, f64::exp_m1, |_| 2.0),
        (Inner::Log1pUnit, 0.0..1.0, f64::ln_1p, |_| 3.0),
    ];
    for (inner, range, exact, bound) in cases {
        let mut x: Vec<f32> =
            (0..=400_000).map(|i| range.start + (range.end - range.start) * (i as f32 / 400_000.0)).collect();
        x.extend((0..120).flat_map(|i| [0.5f32.powi(i), -(0.5f32.powi(i))]).filter(|x| range.contains(x)));
        for &isa in supported() {
            let mut y = x.clone();
            f32::dispatch(isa, Apply(inner, &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                let x = f64::from(x);
                let error = ulps(y, exact(x));
                assert!(error <= bound(x), "{inner:?} on {isa}: {error} ulp at {x:e}");
            }
        }
    }
    for &isa in supported() {
        let mut y = [f32::NEG_INFINITY, -87.4, -104.0, -1e30, f32::NAN, f32::from_bits(0x7F80_01FF)];
        f32::dispatch(isa, Apply(Inner::ExpNormal, &mut y));
        assert_eq!(y[..4], [0.0; 4]);
        assert!(y[4].is_nan() && y[5].is_nan());
    }
}

//! Every function on every instruction set against `f64` (for `f32`) or tabulated values, in ulp.

use super::*;
use crate::machine::{Isa, supported, with_isa};
use crate::reference;
use rayon::prelude::*;

type Slice32 = fn(&[f32], &mut [f32]) -> Result<()>;

/// Name, vector function, `f64` function.
const FUNCTIONS: [(&str, Slice32, fn(f64) -> f64); 5] = [
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
        0.693_147_2,
        0.707_106_8,
        1.414_213_5,
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

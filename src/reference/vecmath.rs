//! The functions of [`crate::vecmath`] on one `f64`, by the standard library and by slow series.

/// 1/(1 + e⁻ˣ), as eˣ/(1 + eˣ) where that does not overflow.
///
/// ```
/// assert_eq!(tilewise::reference::vecmath::sigmoid(0.0), 0.5);
/// ```
pub fn sigmoid(x: f64) -> f64 {
    if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) }
}

/// 2/√π·∫₀ˣ e^(−t²) dt.
///
/// Below 1 the Maclaurin series 2/√π·x·Σ (−x²)ⁿ/(n!·(2n + 1)), nested from its smallest term; otherwise by
/// [`erfc`].
///
/// ```
/// assert!((tilewise::reference::vecmath::erf(0.5) - 0.520499877813046537).abs() < 1e-15);
/// ```
pub fn erf(x: f64) -> f64 {
    if x.abs() >= 1.0 {
        return (1.0 - erfc(x.abs())).copysign(x);
    }
    // Σ zⁿ/n!·f(n) = f(0) + z·(f(1) + z/2·(f(2) + z/3·(…))), the first neglected term below 10⁻²².
    let sum =
        (0..22).rev().fold(0.0, |sum, n: i32| 1.0 / f64::from(2 * n + 1) - x * x / f64::from(n + 1) * sum);
    std::f64::consts::FRAC_2_SQRT_PI * x * sum
}

/// 1 − erf x, for x ≥ 1 without cancellation: the continued fraction e^(−x²)/√π·1/(x + ½/(x + 1/(x + …)))
/// (Abramowitz and Stegun 7.1.14).
///
/// ```
/// assert!((tilewise::reference::vecmath::erfc(2.0) / 0.00467773498104726584 - 1.0).abs() < 1e-14);
/// ```
pub fn erfc(x: f64) -> f64 {
    if x.is_nan() || x < 1.0 {
        return 1.0 - erf(x);
    }
    if x > 30.0 {
        return 0.0; // below the least denormal
    }
    let mut fraction = x;
    let terms = 10 + (250.0 / (x * x)) as usize;
    for n in (1..=terms).rev() {
        fraction = x + 0.5 * n as f64 / fraction;
    }
    // x² in two parts, the upper exact: its rounding would cost x² times as much here.
    let upper = f64::from_bits(x.to_bits() & !0x07FF_FFFF);
    let square = (-upper * upper).exp() * ((upper - x) * (upper + x)).exp();
    square * std::f64::consts::FRAC_2_SQRT_PI / 2.0 / fraction
}

/// The distribution function of the normal distribution.
///
/// ```
/// assert_eq!(tilewise::reference::vecmath::normal(0.0), 0.5);
/// ```
pub fn normal(x: f64) -> f64 {
    0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

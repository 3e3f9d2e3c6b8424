//! One row, by vectors: its moments, its normalised values, its gradients.
//!
//! Rows are summed in blocks: by vectors inside a block, in `f64` across them. So rounding grows with the block, not
//! with the row, and the order of additions depends on nothing but the row's length.

use super::moments::not_negative;
use crate::element::Element;
use crate::simd::Simd;
use crate::vecmath::{UNROLL, for_vectors};

/// Elements summed by vectors before the sum joins a total in `f64`: a block stays in L1.
pub(super) const BLOCK: usize = 4096;

/// The most lanes that a pair of vectors has.
const WIDEST: usize = 32;

/// The sum of the vectors, then of their lanes.
#[inline(always)]
pub(super) fn total<T: Element, S: Simd<T>>(s: S, sums: [S::V; UNROLL]) -> f64 {
    s.reduce_add(s.add(sums[0], sums[1])).to_f64()
}

/// `x` in the first `count` lanes, 0 in the others; `x` is not infinite.
#[inline(always)]
pub(super) fn leading<T: Element, S: Simd<T>>(s: S, x: S::V, count: usize) -> S::V {
    const { assert!(S::LANES <= WIDEST) };
    s.mul(x, s.load_partial(&[T::ONE; WIDEST][..count]))
}

/// What makes x̂ of a row: x̂ = (x − `shift`)·`scale` − `rest`.
///
/// `shift` is about the mean, as an element; `rest` makes up for what it is off, so that a mean that is large against the
/// deviation costs no digits.
#[derive(Clone, Copy)]
pub(super) struct Standard<T> {
    shift: T,
    scale: T,
    rest: T,
}

/// How rows are normalised.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub epsilon: f64,
    /// 1/n, n the length of a row.
    pub inverse: f64,
}

/// The mean and what it is off, for one that was off by more than a deviation: digits of the product with the scale would count.
/// Rare, and so a call that nobody else waits for.
#[cold]
fn again<T: Element>(mean: T, off: f64) -> (T, f64) {
    let better = T::from_f64(mean.to_f64() + off);
    (better, mean.to_f64() - better.to_f64() + off)
}

impl Rule {
    /// From the mean as it was first found, and Σd and Σd² for d = x − mean: the corrected two-pass formula.
    #[inline(always)]
    fn standard<T: Element>(self, mean: T, sum: f64, squares: f64) -> Standard<T> {
        let variance = not_negative((squares - sum * sum * self.inverse) * self.inverse);
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        let (mut shift, mut rest) = (mean, sum * self.inverse);
        if (rest * scale).abs() > 1.0 {
            (shift, rest) = again(mean, rest);
        }
        Standard { shift, scale: T::from_f64(scale), rest: T::from_f64(rest * scale) }
    }
}

/// Σx.
#[inline(always)]
pub(super) fn sum<T: Element, S: Simd<T>>(s: S, x: &[T]) -> f64 {
    let mut sum = 0.0;
    for x in x.chunks(BLOCK) {
        let mut sums = [s.splat(T::ZERO); UNROLL];
        for_vectors!(x.len(), |at, i| { sums[i] = s.add(sums[i], s.load(&x[at])) }, |rest| {
            sums[0] = s.add(sums[0], s.load_partial(&x[rest]));
        });
        sum += total(s, sums);
    }
    sum
}

/// Σd and Σd² for d = x − shift; without `CENTRED`, Σd is taken as 0 and d = x.
#[inline(always)]
pub(super) fn deviations<T: Element, S: Simd<T>, const CENTRED: bool>(s: S, shift: T, x: &[T]) -> [f64; 2] {
    let mean = s.splat(shift);
    let (mut sum, mut squares) = (0.0, 0.0);
    for x in x.chunks(BLOCK) {
        let mut sums = [s.splat(T::ZERO); UNROLL];
        let mut second = [s.splat(T::ZERO); UNROLL];
        for_vectors!(
            x.len(),
            |at, i| {
                let mut d = s.load(&x[at]);
                if CENTRED {
                    d = s.sub(d, mean);
                    sums[i] = s.add(sums[i], d);
                }
                second[i] = s.mul_add(d, d, second[i]);
            },
            |rest| {
                let mut d = s.load_partial(&x[rest.clone()]);
                if CENTRED {
                    d = s.sub(d, leading(s, mean, rest.len()));
                    sums[0] = s.add(sums[0], d);
                }
                second[0] = s.mul_add(d, d, second[0]);
            }
        );
        if CENTRED {
            sum += total(s, sums);
        }
        squares += total(s, second);
    }
    [sum, squares]
}

/// What makes x̂ of a row; the moments are those about 0 unless it is `CENTRED`.
#[inline(always)]
fn standard<T: Element, S: Simd<T>, const CENTRED: bool>(s: S, rule: Rule, x: &[T]) -> Standard<T> {
    let shift = if CENTRED { T::from_f64(sum(s, x) * rule.inverse) } else { T::ZERO };
    let [sum, squares] = deviations::<T, S, CENTRED>(s, shift, x);
    rule.standard(shift, sum, squares)
}

/// μ and 1/√(σ² + ε) of a row.
#[inline(always)]
pub(super) fn statistics<T: Element, S: Simd<T>>(s: S, rule: Rule, x: &[T]) -> [T; 2] {
    let shift = T::from_f64(sum(s, x) * rule.inverse);
    let [sum, squares] = deviations::<T, S, true>(s, shift, x);
    let mean = shift.to_f64() + sum * rule.inverse;
    [T::from_f64(mean), rule.standard(shift, sum, squares).scale]
}

/// x̂.
#[inline(always)]
fn standardize<T: Element, S: Simd<T>, const CENTRED: bool>(
    s: S,
    [shift, scale, rest]: [S::V; 3],
    x: S::V,
) -> S::V {
    if CENTRED { s.mul_add(s.sub(x, shift), scale, rest) } else { s.mul(x, scale) }
}

/// The vectors of [`standardize`].
#[inline(always)]
fn vectors<T: Element, S: Simd<T>>(s: S, row: Standard<T>) -> [S::V; 3] {
    [s.splat(row.shift), s.splat(row.scale), s.splat(-row.rest)]
}

/// sum = x + residual.
#[inline(always)]
pub(super) fn add<T: Element, S: Simd<T>>(s: S, x: &[T], residual: &[T], sum: &mut [T]) {
    let (x, residual) = (&x[..sum.len()], &residual[..sum.len()]);
    for_vectors!(
        sum.len(),
        |at, _i| { s.store(s.add(s.load(&x[at.clone()]), s.load(&residual[at.clone()])), &mut sum[at]) },
        |rest| {
            let v = s.add(s.load_partial(&x[rest.clone()]), s.load_partial(&residual[rest.clone()]));
            s.store_partial(v, &mut sum[rest]);
        }
    );
}

/// y = x̂·scale + shift; a shift comes with a scale.
#[inline(always)]
pub(super) fn forward<T: Element, S: Simd<T>, const CENTRED: bool>(
    s: S,
    rule: Rule,
    x: &[T],
    [scale, shift]: [Option<&[T]>; 2],
    y: &mut [T],
) {
    let x = &x[..y.len()];
    let row = vectors(s, standard::<T, S, CENTRED>(s, rule, x));
    macro_rules! write {
        ($load:ident, $store:ident, $at:expr, |$hat:ident| $value:expr) => {{
            let $hat = standardize::<T, S, CENTRED>(s, row, s.$load(&x[$at]));
            s.$store($value, &mut y[$at]);
        }};
    }
    match (scale, shift) {
        (Some(scale), Some(shift)) => {
            let (scale, shift) = (&scale[..x.len()], &shift[..x.len()]);
            for_vectors!(
                x.len(),
                |at, _i| {
                    write!(load, store, at.clone(), |hat| {
                        s.mul_add(hat, s.load(&scale[at.clone()]), s.load(&shift[at.clone()]))
                    })
                },
                |at| {
                    write!(load_partial, store_partial, at.clone(), |hat| {
                        s.mul_add(hat, s.load_partial(&scale[at.clone()]), s.load_partial(&shift[at.clone()]))
                    })
                }
            );
        }
        (Some(scale), None) => {
            let scale = &scale[..x.len()];
            for_vectors!(
                x.len(),
                |at, _i| { write!(load, store, at.clone(), |hat| s.mul(hat, s.load(&scale[at.clone()]))) },
                |at| {
                    write!(load_partial, store_partial, at.clone(), |hat| {
                        s.mul(hat, s.load_partial(&scale[at.clone()]))
                    })
                }
            );
        }
        _ => for_vectors!(x.len(), |at, _i| { write!(load, store, at.clone(), |hat| hat) }, |at| {
            write!(load_partial, store_partial, at.clone(), |hat| hat)
        }),
    }
}

/// Σg and Σg·x̂ of a row for g = dy·scale, with what makes its x̂.
#[inline(always)]
fn gather<T: Element, S: Simd<T>, const CENTRED: bool>(
    s: S,
    rule: Rule,
    x: &[T],
    scale: Option<&[T]>,
    dy: &[T],
) -> (Standard<T>, [f64; 2]) {
    let row = standard::<T, S, CENTRED>(s, rule, x);
    let hat = vectors(s, row);
    let (mut sum, mut product) = (0.0, 0.0);
    for first in (0..x.len()).step_by(BLOCK) {
        let end = x.len().min(first + BLOCK);
        let (x, dy, scale) = (&x[first..end], &dy[first..end], scale.map(|scale| &scale[first..end]));
        let mut sums = [s.splat(T::ZERO); UNROLL];
        let mut products = [s.splat(T::ZERO); UNROLL];
        macro_rules! gather {
            ($load:ident, $at:ident, $i:expr, $hat:expr) => {{
                let mut g = s.$load(&dy[$at.clone()]);
                if let Some(scale) = scale {
                    g = s.mul(g, s.$load(&scale[$at.clone()]));
                }
                let hat = standardize::<T, S, CENTRED>(s, $hat, s.$load(&x[$at]));
                if CENTRED {
                    sums[$i] = s.add(sums[$i], g);
                }
                products[$i] = s.mul_add(g, hat, products[$i]);
            }};
        }
        for_vectors!(x.len(), |at, i| { gather!(load, at, i, hat) }, |at| {
            // Past the end g is 0, and x̂ must be finite: without a shift it is.
            let [shift, scale, rest] = hat;
            let shift = if CENTRED { leading(s, shift, at.len()) } else { shift };
            gather!(load_partial, at, 0, [shift, scale, rest])
        });
        if CENTRED {
            sum += total(s, sums);
        }
        product += total(s, products);
    }
    (row, [sum, product])
}

/// dx = (g − mean g − x̂·mean(g·x̂))/σ + beta·dx, and what the row adds to dscale and dshift.
#[inline(always)]
pub(super) fn backward<T: Element, S: Simd<T>, const CENTRED: bool>(
    s: S,
    rule: Rule,
    x: &[T],
    scale: Option<&[T]>,
    dy: &[T],
    (beta, dx): (T, Option<&mut [T]>),
    parameters: Option<[&mut [T]; 2]>,
) {
    let dy = &dy[..x.len()];
    let scale = scale.map(|scale| &scale[..x.len()]);
    let (row, [sum, product]) = if dx.is_some() {
        gather::<T, S, CENTRED>(s, rule, x, scale, dy)
    } else {
        (standard::<T, S, CENTRED>(s, rule, x), [0.0; 2])
    };
    let hat = vectors(s, row);
    if let Some(dx) = dx {
        let dx = &mut dx[..x.len()];
        let factor = s.splat(row.scale);
        let constant = s.splat(T::from_f64(sum * rule.inverse));
        let slope = s.splat(T::from_f64(product * rule.inverse));
        let held = s.splat(beta);
        macro_rules! spread {
            ($load:ident, $store:ident, $at:expr) => {{
                let mut g = s.$load(&dy[$at]);
                if let Some(scale) = scale {
                    g = s.mul(g, s.$load(&scale[$at]));
                }
                if CENTRED {
                    g = s.sub(g, constant);
                }
                let hat = standardize::<T, S, CENTRED>(s, hat, s.$load(&x[$at]));
                let mut d = s.mul(s.neg_mul_add(hat, slope, g), factor);
                if beta != T::ZERO {
                    d = s.mul_add(held, s.$load(&dx[$at]), d);
                }
                s.$store(d, &mut dx[$at]);
            }};
        }
        for_vectors!(x.len(), |at, _i| { spread!(load, store, at.clone()) }, |at| {
            spread!(load_partial, store_partial, at.clone())
        });
    }
    if let Some([dscale, dshift]) = parameters {
        let dscale = &mut dscale[..x.len()];
        macro_rules! add {
            ($load:ident, $store:ident, $at:expr) => {{
                let dy = s.$load(&dy[$at]);
                let hat = standardize::<T, S, CENTRED>(s, hat, s.$load(&x[$at]));
                s.$store(s.mul_add(dy, hat, s.$load(&dscale[$at])), &mut dscale[$at]);
                if CENTRED {
                    s.$store(s.add(dy, s.$load(&dshift[$at])), &mut dshift[$at]);
                }
            }};
        }
        for_vectors!(x.len(), |at, _i| { add!(load, store, at.clone()) }, |at| {
            add!(load_partial, store_partial, at.clone())
        });
    }
}

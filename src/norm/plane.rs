//! Planes: the positions of one channel of one sample lie next to each other.

use super::moments::Moments;
use super::row::{self, BLOCK, leading, total};
use crate::element::Element;
use crate::simd::Simd;
use crate::vecmath::{UNROLL, for_vectors};

/// Adds the moments of a run.
#[inline(always)]
pub(super) fn moments<T: Element, S: Simd<T>>(s: S, x: &[T], moments: &mut Moments) {
    for x in x.chunks(BLOCK) {
        let count = x.len() as f64;
        let mean = T::from_f64(row::sum(s, x) / count);
        moments.join(Moments::about(mean.to_f64(), count, row::deviations::<T, S, true>(s, mean, x)));
    }
}

/// Adds Σd, Σd², Σdy and Σdy·d of a run, d = x − shift.
#[inline(always)]
pub(super) fn sums<T: Element, S: Simd<T>>(s: S, shift: T, x: &[T], dy: &[T], out: &mut [f64]) {
    for first in (0..x.len()).step_by(BLOCK) {
        let end = x.len().min(first + BLOCK);
        let (x, dy) = (&x[first..end], &dy[first..end]);
        let shift = s.splat(shift);
        let zero = [s.splat(T::ZERO); UNROLL];
        let (mut d1, mut d2, mut g1, mut gd) = (zero, zero, zero, zero);
        macro_rules! add {
            ($d:expr, $g:expr, $i:expr) => {{
                let (d, g) = ($d, $g);
                d1[$i] = s.add(d1[$i], d);
                d2[$i] = s.mul_add(d, d, d2[$i]);
                g1[$i] = s.add(g1[$i], g);
                gd[$i] = s.mul_add(g, d, gd[$i]);
            }};
        }
        for_vectors!(
            x.len(),
            |at, i| { add!(s.sub(s.load(&x[at.clone()]), shift), s.load(&dy[at]), i) },
            |at| {
                let shift = leading(s, shift, at.len());
                add!(s.sub(s.load_partial(&x[at.clone()]), shift), s.load_partial(&dy[at]), 0)
            }
        );
        for (out, sums) in out.iter_mut().zip([d1, d2, g1, gd]) {
            *out += total(s, sums);
        }
    }
}

/// y = (x − shift)·slope + constant, and where it is `HELD`, + beta·y.
#[inline(always)]
pub(super) fn apply<T: Element, S: Simd<T>, const HELD: bool>(
    s: S,
    [shift, slope, constant]: [T; 3],
    x: &[T],
    beta: T,
    y: &mut [T],
) {
    let x = &x[..y.len()];
    let (shift, slope, constant, held) = (s.splat(shift), s.splat(slope), s.splat(constant), s.splat(beta));
    macro_rules! write {
        ($load:ident, $store:ident, $at:expr) => {{
            let mut v = s.mul_add(s.sub(s.$load(&x[$at]), shift), slope, constant);
            if HELD {
                v = s.mul_add(held, s.$load(&y[$at]), v);
            }
            s.$store(v, &mut y[$at]);
        }};
    }
    for_vectors!(y.len(), |at, _i| { write!(load, store, at.clone()) }, |at| {
        write!(load_partial, store_partial, at.clone())
    });
}

/// dx = dy·factor + (x − shift)·slope + constant + beta·dx.
#[inline(always)]
pub(super) fn apply_gradient<T: Element, S: Simd<T>>(
    s: S,
    [shift, slope, constant, factor]: [T; 4],
    [x, dy]: [&[T]; 2],
    beta: T,
    dx: &mut [T],
) {
    let (x, dy) = (&x[..dx.len()], &dy[..dx.len()]);
    let (shift, slope, constant) = (s.splat(shift), s.splat(slope), s.splat(constant));
    let (factor, held) = (s.splat(factor), s.splat(beta));
    macro_rules! write {
        ($load:ident, $store:ident, $at:expr) => {{
            let d = s.sub(s.$load(&x[$at]), shift);
            let mut v = s.mul_add(s.$load(&dy[$at]), factor, s.mul_add(d, slope, constant));
            if beta != T::ZERO {
                v = s.mul_add(held, s.$load(&dx[$at]), v);
            }
            s.$store(v, &mut dx[$at]);
        }};
    }
    for_vectors!(dx.len(), |at, _i| { write!(load, store, at.clone()) }, |at| {
        write!(load_partial, store_partial, at.clone())
    });
}

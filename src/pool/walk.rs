//! What is made of single rows: several joined to one, and one gone along.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::forward::Rows;
use super::geometry::Taps;
use super::reduce::Reduction;
use crate::element::Element;
use crate::simd::{MOST_LANES, Simd};

/// From reduced rows with their margins to a row of outputs.
pub(super) trait Walk<T> {
    fn row(&self, from: &[T], weight: T, weights: &[T], to: &mut [T]);
}

/// The outputs of a row, window by window.
pub(super) struct OneByOne<S, R> {
    pub rows: Rows<S, R>,
    pub outputs: Range<usize>,
    /// The first column of the reduced row.
    pub column: usize,
}

impl<T: Element, S: Simd<T>, R: Reduction<T>> Walk<T> for OneByOne<S, R> {
    #[inline(always)]
    fn row(&self, from: &[T], weight: T, weights: &[T], to: &mut [T]) {
        let Rows { simd, reduction, width, lanes, .. } = self.rows;
        for (i, (output, to)) in self.outputs.clone().zip(to.chunks_exact_mut(lanes)).enumerate() {
            let taps = width.taps(output);
            let weight = if R::WEIGHTED { weight * weights[i] } else { weight };
            let at = taps.first.saturating_sub(self.column) * lanes;
            let from = if taps.count == 0 { &[] } else { &from[at..] };
            if lanes == 1 {
                let sum = fold(simd, reduction, from, taps);
                let weight = simd.splat(weight);
                simd.store_partial(reduction.finish(simd, simd.splat(sum), weight), to);
            } else {
                pixel(simd, reduction, from, taps, lanes, weight, to);
            }
        }
    }
}

/// Windows of one kind along a padded row.
#[derive(Clone, Copy)]
pub(super) struct Window<S, R> {
    pub simd: S,
    pub reduction: R,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
}

impl<T: Element, S: Simd<T>, R: Reduction<T>> Walk<T> for Window<S, R> {
    #[inline(always)]
    fn row(&self, from: &[T], weight: T, weights: &[T], to: &mut [T]) {
        let Window { simd, reduction, stride, .. } = *self;
        let weight = simd.splat(weight);
        for (i, to) in to.chunks_mut(S::LANES).enumerate() {
            let at = i * S::LANES;
            let sum = self.vector(&from[at * stride..]);
            let weight = if R::WEIGHTED { simd.mul(weight, simd.load(&weights[at..])) } else { weight };
            let y = reduction.finish(simd, sum, weight);
            simd.store_up_to(y, to);
        }
    }
}

impl<S: Copy, R: Copy> Window<S, R> {
    /// The first outputs of a row.
    #[inline(always)]
    fn vector<T: Element>(self, from: &[T]) -> S::V
    where
        S: Simd<T>,
        R: Reduction<T>,
    {
        let Window { simd, reduction, kernel, stride, dilation, .. } = self;
        let mut sum = simd.splat(R::NEUTRAL);
        match stride {
            1 => {
                sum = simd.load(from);
                for tap in 1..kernel {
                    sum = reduction.join(simd, sum, simd.load(&from[tap * dilation..]));
                }
            }
            2 => {
                let step = if dilation == 1 { 2 } else { 1 };
                for tap in (0..kernel).step_by(step) {
                    let at = &from[tap * dilation..];
                    let [even, odd] = simd.deinterleave(simd.load(at), simd.load(&at[S::LANES..]));
                    sum = reduction.join(simd, sum, even);
                    if step == 2 && tap + 1 < kernel {
                        sum = reduction.join(simd, sum, odd);
                    }
                }
            }
            _ => {
                let mut lanes = [R::NEUTRAL; MOST_LANES];
                for tap in 0..kernel {
                    let at = &from[tap * dilation..];
                    for (lane, &x) in lanes[..S::LANES].iter_mut().zip(at.iter().step_by(stride)) {
                        *lane = x;
                    }
                    sum = reduction.join(simd, sum, simd.load(&lanes));
                }
            }
        }
        sum
    }
}

/// Joins rows of `to`'s length element by element, and what `to` holds unless this is the first time.
#[inline(always)]
pub(super) fn join_rows<T: Element, S: Simd<T>, R: Reduction<T>, const N: usize>(
    simd: S,
    reduction: R,
    rows: [&[T]; N],
    first: bool,
    to: &mut [T],
) {
    let len = to.len();
    let rows = rows.map(|row| &row[..len]);
    let whole = len / S::LANES * S::LANES;
    if first {
        for at in (0..whole).step_by(S::LANES) {
            let sum = join_vectors(simd, reduction, load(simd, &rows, at));
            simd.store(sum, &mut to[at..]);
        }
    } else {
        for at in (0..whole).step_by(S::LANES) {
            let sum = join_vectors(simd, reduction, load(simd, &rows, at));
            simd.store(reduction.join(simd, simd.load(&to[at..]), sum), &mut to[at..]);
        }
    }
    if whole < len {
        let mut vectors = [simd.splat(T::ZERO); N];
        for (vector, row) in vectors.iter_mut().zip(rows) {
            *vector = simd.load_partial(&row[whole..]);
        }
        let mut sum = join_vectors(simd, reduction, vectors);
        if !first {
            sum = reduction.join(simd, simd.load_partial(&to[whole..]), sum);
        }
        simd.store_partial(sum, &mut to[whole..]);
    }
}

#[inline(always)]
fn load<T: Element, S: Simd<T>, const N: usize>(simd: S, rows: &[&[T]; N], at: usize) -> [S::V; N] {
    let mut vectors = [simd.splat(T::ZERO); N];
    for (vector, row) in vectors.iter_mut().zip(rows) {
        *vector = simd.load(&row[at..]);
    }
    vectors
}

#[inline(always)]
fn join_vectors<T: Element, S: Simd<T>, R: Reduction<T>, const N: usize>(
    simd: S,
    reduction: R,
    vectors: [S::V; N],
) -> S::V {
    let mut sum = reduction.take(simd, vectors[0]);
    for &x in &vectors[1..] {
        sum = reduction.join(simd, sum, reduction.take(simd, x));
    }
    sum
}

/// Joins the elements of one window.
#[inline(always)]
fn fold<T: Element, S: Simd<T>, R: Reduction<T>>(simd: S, reduction: R, from: &[T], taps: Taps) -> T {
    let Taps { count, step, .. } = taps;
    let mut rest = 0;
    let mut sum = R::NEUTRAL;
    if step == 1 && count >= 2 * S::LANES {
        let mut sums = [simd.load(from), simd.load(&from[S::LANES..])];
        rest = count / (2 * S::LANES) * (2 * S::LANES);
        for at in (2 * S::LANES..rest).step_by(2 * S::LANES) {
            sums[0] = reduction.join(simd, sums[0], simd.load(&from[at..]));
            sums[1] = reduction.join(simd, sums[1], simd.load(&from[at + S::LANES..]));
        }
        let mut lanes = [R::NEUTRAL; MOST_LANES];
        simd.store(reduction.join(simd, sums[0], sums[1]), &mut lanes);
        for lane in &lanes[..S::LANES] {
            sum = reduction.join_one(sum, *lane);
        }
    }
    for tap in rest..count {
        sum = reduction.join_one(sum, from[tap * step]);
    }
    sum
}

/// Joins the pixels of one window, `lanes` channels each.
#[inline(always)]
fn pixel<T: Element, S: Simd<T>, R: Reduction<T>>(
    simd: S,
    reduction: R,
    from: &[T],
    taps: Taps,
    lanes: usize,
    weight: T,
    to: &mut [T],
) {
    let (step, count) = (taps.step * lanes, taps.count);
    let weight = simd.splat(weight);
    let mut at = 0;
    while at + 2 * S::LANES <= lanes {
        let mut sums = [simd.splat(R::NEUTRAL); 2];
        for tap in 0..count {
            let x = &from[at + tap * step..];
            sums[0] = reduction.join(simd, sums[0], simd.load(x));
            sums[1] = reduction.join(simd, sums[1], simd.load(&x[S::LANES..]));
        }
        simd.store(reduction.finish(simd, sums[0], weight), &mut to[at..]);
        simd.store(reduction.finish(simd, sums[1], weight), &mut to[at + S::LANES..]);
        at += 2 * S::LANES;
    }
    while at < lanes {
        let end = lanes.min(at + S::LANES);
        let mut sum = simd.splat(R::NEUTRAL);
        for tap in 0..count {
            sum = reduction.join(simd, sum, simd.load_partial(&from[at + tap * step..end + tap * step]));
        }
        simd.store_partial(reduction.finish(simd, sum, weight), &mut to[at..end]);
        at = end;
    }
}

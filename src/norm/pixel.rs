//! Pixels: the channels of one position lie next to each other, a lane each.

use super::moments::Moments;
use crate::element::Element;
use crate::simd::Simd;
use crate::tensor::{TensorView, TensorViewMut};
use crate::vecmath::Pair;

/// Rows whose sums are made in the element type before they join a total in `f64`: with a few vectors of columns, both
/// passes over them stay in L1.
const ROWS: usize = 64;

/// The most lanes of four vectors.
const WIDEST: usize = 64;

/// `$body` with a token, the first column and how many there are: four vectors of columns as long as there are as many,
/// then one vector, or less, at a time.
macro_rules! for_columns {
    ($s:ident, $columns:expr, |$first:ident, $count:ident| $body:expr) => {{
        let (base, columns) = ($s, $columns);
        let mut $first = 0;
        while columns - $first >= 4 * S::LANES {
            let ($s, $count) = (Pair(Pair(base)), 4 * S::LANES);
            $body;
            $first += $count;
        }
        while $first < columns {
            let ($s, $count) = (base, S::LANES.min(columns - $first));
            $body;
            $first += $count;
        }
    }};
}

/// `count` elements of a row, at most a vector.
#[inline(always)]
fn load<T: Element, S: Simd<T>>(s: S, row: &[T], first: usize, count: usize) -> S::V {
    s.load_up_to(&row[first..first + count])
}

#[inline(always)]
fn store<T: Element, S: Simd<T>>(s: S, v: S::V, row: &mut [T], first: usize, count: usize) {
    if count == S::LANES {
        s.store(v, &mut row[first..])
    } else {
        s.store_partial(v, &mut row[first..first + count])
    }
}

/// The lanes of a vector, of which the first `count` count.
#[inline(always)]
fn lanes<T: Element, S: Simd<T>>(s: S, v: S::V) -> [T; WIDEST] {
    const { assert!(S::LANES <= WIDEST) };
    let mut lanes = [T::ZERO; WIDEST];
    s.store(v, &mut lanes);
    lanes
}

/// Joins the moments of each column of `[rows, channels]`, contiguous rows, to `out`, `[channels, 3]`.
#[inline(always)]
pub(super) fn moments<T: Element, S: Simd<T>>(s: S, x: TensorView<'_, T, 2>, out: &mut [f64]) {
    let [rows, columns] = x.shape();
    for top in (0..rows).step_by(ROWS) {
        let range = top..rows.min(top + ROWS);
        for_columns!(s, columns, |first, count| moments_of(s, x, range.clone(), first, count, out));
    }
}

#[inline(always)]
fn moments_of<T: Element, S: Simd<T>>(
    s: S,
    x: TensorView<'_, T, 2>,
    rows: std::ops::Range<usize>,
    first: usize,
    columns: usize,
    out: &mut [f64],
) {
    let count = rows.len() as f64;
    let mut sum = s.splat(T::ZERO);
    for row in rows.clone() {
        let Some(x) = x.row(row) else { return };
        sum = s.add(sum, load(s, x, first, columns));
    }
    let mean = s.mul(sum, s.splat(T::from_f64(1.0 / count)));
    let (mut sum, mut squares) = (s.splat(T::ZERO), s.splat(T::ZERO));
    for row in rows {
        let Some(x) = x.row(row) else { return };
        let d = s.sub(load(s, x, first, columns), mean);
        sum = s.add(sum, d);
        squares = s.mul_add(d, d, squares);
    }
    let (mean, sum, squares) = (lanes(s, mean), lanes(s, sum), lanes(s, squares));
    for (lane, out) in out[3 * first..].chunks_exact_mut(3).take(columns).enumerate() {
        let sums = [sum[lane].to_f64(), squares[lane].to_f64()];
        let mut moments = Moments::get(out);
        moments.join(Moments::about(mean[lane].to_f64(), count, sums));
        moments.put(out);
    }
}

/// Adds Σd, Σd², Σdy and Σdy·d of each column to `out`, `[channels, 4]`, d = x − shift.
#[inline(always)]
pub(super) fn sums<T: Element, S: Simd<T>>(
    s: S,
    shift: &[T],
    [x, dy]: [TensorView<'_, T, 2>; 2],
    out: &mut [f64],
) {
    let [rows, columns] = x.shape();
    for top in (0..rows).step_by(ROWS) {
        let range = top..rows.min(top + ROWS);
        for_columns!(s, columns, |first, count| sums_of(s, shift, [x, dy], range.clone(), first, count, out));
    }
}

#[inline(always)]
fn sums_of<T: Element, S: Simd<T>>(
    s: S,
    shift: &[T],
    [x, dy]: [TensorView<'_, T, 2>; 2],
    rows: std::ops::Range<usize>,
    first: usize,
    columns: usize,
    out: &mut [f64],
) {
    let zero = s.splat(T::ZERO);
    let (mut d1, mut d2, mut g1, mut gd) = (zero, zero, zero, zero);
    let shift = load(s, shift, first, columns);
    for row in rows {
        let (Some(x), Some(dy)) = (x.row(row), dy.row(row)) else { return };
        let (d, g) = (s.sub(load(s, x, first, columns), shift), load(s, dy, first, columns));
        d1 = s.add(d1, d);
        d2 = s.mul_add(d, d, d2);
        g1 = s.add(g1, g);
        gd = s.mul_add(g, d, gd);
    }
    for (number, sums) in [d1, d2, g1, gd].into_iter().enumerate() {
        let sums = lanes(s, sums);
        for (out, sum) in out[4 * first..].chunks_exact_mut(4).zip(&sums[..columns]) {
            out[number] += sum.to_f64();
        }
    }
}

/// y = (x − shift)·slope + constant, one of each a channel, and where it is `HELD`, + beta·y.
#[inline(always)]
pub(super) fn apply<T: Element, S: Simd<T>, const HELD: bool>(
    s: S,
    [shift, slope, constant]: [&[T]; 3],
    x: TensorView<'_, T, 2>,
    beta: T,
    mut y: TensorViewMut<'_, T, 2>,
) {
    let [rows, columns] = x.shape();
    let (shift, slope, constant) = (&shift[..columns], &slope[..columns], &constant[..columns]);
    for row in 0..rows {
        let (Some(x), Some(y)) = (x.row(row), y.row_mut(row)) else { return };
        for_columns!(s, columns, |first, count| {
            let d = s.sub(load(s, x, first, count), load(s, shift, first, count));
            let mut v = s.mul_add(d, load(s, slope, first, count), load(s, constant, first, count));
            if HELD {
                v = s.mul_add(s.splat(beta), load(s, y, first, count), v);
            }
            store(s, v, y, first, count);
        });
    }
}

/// dx = dy·factor + (x − shift)·slope + constant + beta·dx, one factor, shift, slope and constant a channel.
#[inline(always)]
pub(super) fn apply_gradient<T: Element, S: Simd<T>>(
    s: S,
    [shift, slope, constant, factor]: [&[T]; 4],
    [x, dy]: [TensorView<'_, T, 2>; 2],
    beta: T,
    mut dx: TensorViewMut<'_, T, 2>,
) {
    let [rows, columns] = x.shape();
    for row in 0..rows {
        let (Some(x), Some(dy), Some(dx)) = (x.row(row), dy.row(row), dx.row_mut(row)) else { return };
        for_columns!(s, columns, |first, count| {
            let d = s.sub(load(s, x, first, count), load(s, shift, first, count));
            let v = s.mul_add(d, load(s, slope, first, count), load(s, constant, first, count));
            let mut v = s.mul_add(load(s, dy, first, count), load(s, factor, first, count), v);
            if beta != T::ZERO {
                v = s.mul_add(s.splat(beta), load(s, dx, first, count), v);
            }
            store(s, v, dx, first, count);
        });
    }
}

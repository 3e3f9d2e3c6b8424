//! One row or a few times a matrix, unpacked: Y = alpha · X · B + beta · Y and the epilogue.
//!
//! Mostly bound by reading B, once for up to four rows. Where its columns are contiguous each output is a dot product, some at a
//! time; where its rows are, the outputs of a lone row stay in L1 and take in some rows of B at a time. An output's sum never
//! depends on how the outputs are split into tasks.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::blocking::tile;
use super::driver::Scale;
use super::panel;
use crate::element::Element;
use crate::error::Result;
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{Simd, SimdOp, Streams};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Outputs that are finished together: their sums stay in L1.
const OUTPUTS: usize = 4096;
/// Outputs, or rows of B, that are taken at a time: as many as the processor fetches ahead by itself.
const UNROLL: usize = 6;
/// Elements of B that a task reads at least, from memory or again from a cache: some ten microseconds.
const GRAIN: usize = 1 << 16;
/// Rows that are multiplied with what is read of B at once.
const ROWS: usize = 4;
/// Outputs of a few rows that are finished together.
const FEW: usize = 60 * ROWS;
/// Columns from which on dot products pay.
const MANY: usize = 8;

/// True where m rows times a matrix with contiguous columns are best made of dot products. Each ends in a sum over lanes, which takes
/// as long as some vectors, while to pack B takes as long as some rows; all rows, and the columns that they meet, stay in L2.
#[inline(always)]
pub(super) fn few_rows<T: Element>(isa: Isa, [m, n, k]: [usize; 3]) -> bool {
    let tile = tile::<T>(isa);
    // Measured; where registers hold the sums of four rows and six columns, a load meets twice as many of them.
    let (most, steps) = if tile.sums() >= 24 { (48, tile.lanes / 2 + 4) } else { (MANY, 2 * tile.lanes) };
    let lines = k.saturating_mul((m + UNROLL) * size_of::<T>());
    (2..=most).contains(&m) && n >= MANY && k >= steps * m && lines <= machine::caches().l2 / 2
}

/// True where a matrix with contiguous rows times n columns is. Else it is read in place too, so that dot products pay later: by lanes
/// that are empty and a step of depth at a time.
#[inline(always)]
pub(super) fn few_columns<T: Element>(isa: Isa, [m, n, k]: [usize; 3]) -> bool {
    n <= MANY
        && few_rows::<T>(isa, [n, m, k])
        && 2 * n <= tile::<T>(isa).lanes
        && k >= 4 * n * tile::<T>(isa).lanes
}

/// True where B has rows or columns that can be read as slices.
pub(crate) fn readable<T>(b: TensorView<'_, T, 2>) -> bool {
    let ([k, n], [row, column]) = (b.shape(), b.strides());
    row == 1 || column == 1 || k <= 1 || n <= 1
}

/// `x` is `[1, k]`, `b` is `[k, n]`, `y` is `[1, n]`; B must be [`readable`], and with more rows, which there may be where its
/// columns are contiguous, [`few_rows`]. `tasks` overrides how many tasks there are; how many there were is returned.
pub(crate) fn rows_times_matrix<T: Element>(
    isa: Isa,
    x: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    scale: &Scale<'_, T>,
    y: TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
) -> Result<usize> {
    let ([k, n], rows) = (b.shape(), x.shape()[0]);
    let read = k.saturating_mul(n).saturating_mul(rows.div_ceil(ROWS));
    let tasks = tasks.unwrap_or_else(|| parallel::threads_for(read, GRAIN));
    let mut copy = workspace::scratch::<T>("gemm", if x.as_slice().is_some() { 0 } else { rows * k })?;
    let x = match x.as_slice() {
        Some(x) => x,
        None if rows >= tile::<T>(isa).lanes => {
            // Steps as lines, a panel as wide as they are many: each row is a run then.
            panel::pack(isa, x.transpose(), 0..k, 0..rows, k, &mut copy, false);
            &copy[..]
        }
        None => {
            TensorViewMut::matrix(&mut copy, [rows, k]).copy_from(x);
            &copy[..]
        }
    };
    split(&Vector { isa, x, b, scale }, y, 0, tasks)?;
    Ok(tasks)
}

#[derive(Clone, Copy)]
pub(crate) struct Vector<'v, T> {
    isa: Isa,
    /// Rows, one after the other.
    x: &'v [T],
    b: TensorView<'v, T, 2>,
    scale: &'v Scale<'v, T>,
}

/// Halves `y`, whose first element is output `first`, until the tasks are used up.
fn split<T: Element>(
    vector: &Vector<'_, T>,
    mut y: TensorViewMut<'_, T, 2>,
    first: usize,
    tasks: usize,
) -> Result<()> {
    let [rows, n] = y.shape();
    if tasks <= 1 || n < 2 {
        // Groups of about one size: no row but a lone one is taken alone.
        let groups = rows.div_ceil(ROWS);
        let mut most = if rows == 1 { OUTPUTS } else { FEW / rows.div_ceil(groups) / UNROLL * UNROLL };
        if groups > 1 {
            // The next rows find the columns in L2.
            let column = vector.b.shape()[0] * size_of::<T>();
            most = most.min(machine::caches().l2 / 2 / column / UNROLL * UNROLL).max(UNROLL);
        }
        for start in (0..n).step_by(most) {
            let count = most.min(n - start);
            let outputs = first + start..first + start + count;
            for group in 0..groups {
                let rows = parallel::share(rows, groups, group);
                let y = y.tile_mut([rows.start, start], [rows.len(), count]);
                T::piece(vector.isa, Piece { vector, rows, outputs: outputs.clone(), y });
            }
        }
        return Ok(());
    }
    let half = tasks / 2;
    let cut = (n * half / tasks).clamp(1, n - 1);
    let (low, high) = y.split_at(1, cut)?;
    let (one, two) =
        parallel::join(|| split(vector, low, first, half), || split(vector, high, first + cut, tasks - half));
    one.and(two)
}

/// Some outputs of a row or a few.
pub struct Piece<'p, T> {
    vector: &'p Vector<'p, T>,
    rows: Range<usize>,
    outputs: Range<usize>,
    y: TensorViewMut<'p, T, 2>,
}

impl<T: Element> SimdOp<T> for Piece<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Piece { vector: &Vector { x, b, scale, .. }, rows, outputs, mut y } = self;
        let (k, count, first) = (b.shape()[0], outputs.len(), outputs.start);
        let x = &x[rows.start * k..rows.end * k];
        let (mut of_row, mut of_few);
        let sums: &mut [T] = if rows.len() * count <= FEW {
            of_few = [T::ZERO; FEW];
            &mut of_few[..rows.len() * count]
        } else {
            of_row = [T::ZERO; OUTPUTS];
            &mut of_row[..rows.len() * count]
        };
        match rows.len() {
            2 => some_rows::<T, S, 2>(simd, x, b.transpose(), first, sums),
            3 => some_rows::<T, S, 3>(simd, x, b.transpose(), first, sums),
            ROWS => some_rows::<T, S, ROWS>(simd, x, b.transpose(), first, sums),
            _ if b.strides()[0] == 1 || b.shape()[0] == 1 => {
                dot_products(simd, x, b.transpose(), first, sums);
            }
            _ => add_rows(simd, x, b, outputs, sums),
        }
        for (i, sums) in sums.chunks_exact_mut(count).enumerate() {
            sums.iter_mut().for_each(|sum| *sum = scale.alpha * *sum);
            if scale.beta != T::ZERO {
                match y.row_mut(i) {
                    Some(y) => sums.iter_mut().zip(y).for_each(|(sum, &mut old)| *sum += scale.beta * old),
                    None => (0..count).for_each(|j| {
                        sums[j] += scale.beta * y.get([i, j]).copied().unwrap_or(T::ZERO);
                    }),
                }
            }
            scale.epilogue.apply(simd, rows.start + i, first, sums);
            match y.row_mut(i) {
                Some(y) => y.copy_from_slice(sums),
                None => {
                    for (j, &sum) in sums.iter().enumerate() {
                        if let Some(to) = y.get_mut([i, j]) {
                            *to = sum;
                        }
                    }
                }
            }
        }
    }
}

/// Columns that meet some rows at a time: their sums fill the registers.
const fn columns_at_once(sums: usize) -> usize {
    match sums {
        24 => 6,
        12 => 3,
        _ => 2,
    }
}

/// `sums`, `[X, count]`, of the `X` rows of `x` and columns from `first` on.
#[inline(always)]
fn some_rows<T: Element, S: Simd<T>, const X: usize>(
    simd: S,
    x: &[T],
    columns: TensorView<'_, T, 2>,
    first: usize,
    sums: &mut [T],
) {
    macro_rules! groups {
        ($($at_once:literal)*) => {$(
            // Constant where it is false: then the kernel is not compiled.
            if const { columns_at_once(S::TILE_ROWS * S::TILE_VECTORS) == $at_once } {
                return groups::<T, S, X, $at_once>(simd, x, columns, first, sums);
            }
        )*};
    }
    groups!(6 3 2);
}

#[inline(always)]
fn groups<T: Element, S: Simd<T>, const X: usize, const R: usize>(
    simd: S,
    x: &[T],
    columns: TensorView<'_, T, 2>,
    first: usize,
    sums: &mut [T],
) {
    let (count, k) = (sums.len() / X, columns.shape()[1]);
    let mut xs = Streams::<T, X>::none();
    xs.each(k, |i| &x[i * k..]);
    let column = |j: usize| columns.row(first + j).unwrap_or(&[]);
    if count < R {
        for j in 0..count {
            dots::<T, S, X, 1>(simd, xs, k, |_| column(j), |i, _, sum| sums[i * count + j] = sum);
        }
        return;
    }
    // The last group takes some columns again.
    for j in (0..count).step_by(R).map(|j| j.min(count - R)) {
        dots::<T, S, X, R>(simd, xs, k, |i| column(j + i), |i, r, sum| sums[i * count + j + r] = sum);
    }
}

/// Dot products of `X` rows with `R` columns, all of length `k`: one sum of vectors each, so that the result is the same whatever
/// `R` and `X` are.
#[inline(always)]
fn dots<'b, T: Element, S: Simd<T>, const X: usize, const R: usize>(
    simd: S,
    xs: Streams<'_, T, X>,
    k: usize,
    column: impl Fn(usize) -> &'b [T],
    mut out: impl FnMut(usize, usize, T),
) {
    let mut sums = [[simd.splat(T::ZERO); X]; R];
    let mut streams = Streams::<T, R>::none();
    streams.each(k, column);
    let whole = k / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let x = xs.load(simd, at);
        for (sums, column) in sums.iter_mut().zip(streams.load(simd, at)) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = simd.mul_add(x, column, *sum);
            }
        }
    }
    if whole < k {
        let x = xs.load_partial(simd, whole);
        for (sums, column) in sums.iter_mut().zip(streams.load_partial(simd, whole)) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = simd.mul_add(x, column, *sum);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let mut four = [simd.splat(T::ZERO); ROWS];
        four[..X].copy_from_slice(&sums);
        for (i, sum) in simd.reduce_add_each(four).into_iter().enumerate().take(X) {
            out(i, r, sum);
        }
    }
}

/// sums[j] = x · columns[first + j]; the columns are contiguous.
#[inline(always)]
fn dot_products<T: Element, S: Simd<T>>(
    simd: S,
    x: &[T],
    columns: TensorView<'_, T, 2>,
    first: usize,
    sums: &mut [T],
) {
    let column = |j: usize| columns.row(first + j).unwrap_or(&[]);
    let mut groups = sums.chunks_exact_mut(UNROLL);
    let mut j = 0;
    for group in &mut groups {
        dot::<T, S, UNROLL>(simd, x, |i| column(j + i), group);
        j += UNROLL;
    }
    let mut pairs = groups.into_remainder().chunks_exact_mut(2);
    for pair in &mut pairs {
        dot::<T, S, 2>(simd, x, |i| column(j + i), pair);
        j += 2;
    }
    if let sum @ [_] = pairs.into_remainder() {
        dot::<T, S, 1>(simd, x, |_| column(j), sum);
    }
}

/// Dot products of `x` with `R` columns of its length: two sums of vectors each, so that the result is the
/// same whatever `R` is. Here and below there is no list of slices: copied as soon as it is written, it would wait for all
/// that is being read to arrive.
#[inline(always)]
fn dot<'b, T: Element, S: Simd<T>, const R: usize>(
    simd: S,
    x: &[T],
    column: impl Fn(usize) -> &'b [T],
    out: &mut [T],
) {
    let mut sums = [[simd.splat(T::ZERO); 2]; R];
    let pair = 2 * S::LANES;
    let whole = x.len() / pair * pair;
    let mut streams = Streams::<T, R>::none();
    streams.each(x.len(), column);
    for at in (0..whole).step_by(pair) {
        for half in 0..2 {
            let at = at + half * S::LANES;
            let x = simd.load(&x[at..]);
            for (sums, column) in sums.iter_mut().zip(streams.load(simd, at)) {
                sums[half] = simd.mul_add(x, column, sums[half]);
            }
        }
    }
    for at in (whole..x.len()).step_by(S::LANES) {
        let x = simd.load_partial(&x[at..x.len().min(at + S::LANES)]);
        for (sums, column) in sums.iter_mut().zip(streams.load_partial(simd, at)) {
            sums[0] = simd.mul_add(x, column, sums[0]);
        }
    }
    for (out, [even, odd]) in out.iter_mut().zip(sums) {
        *out = simd.reduce_add(simd.add(even, odd));
    }
}

/// sums[j] = Σₚ x[p] · b[p, outputs.start + j], in the order of p; the rows of B are contiguous.
#[inline(always)]
fn add_rows<T: Element, S: Simd<T>>(
    simd: S,
    x: &[T],
    b: TensorView<'_, T, 2>,
    outputs: Range<usize>,
    sums: &mut [T],
) {
    let row = |p: usize| b.row(p).map_or(&[][..], |row| &row[outputs.clone()]);
    let mut groups = x.chunks_exact(UNROLL);
    let mut p = 0;
    for group in &mut groups {
        add_scaled::<T, S, UNROLL>(simd, group, |i| row(p + i), sums);
        p += UNROLL;
    }
    let mut pairs = groups.remainder().chunks_exact(2);
    for pair in &mut pairs {
        add_scaled::<T, S, 2>(simd, pair, |i| row(p + i), sums);
        p += 2;
    }
    if let x @ [_] = pairs.remainder() {
        add_scaled::<T, S, 1>(simd, x, |_| row(p), sums);
    }
}

/// sums += Σ x · row, row after row.
#[inline(always)]
fn add_scaled<'b, T: Element, S: Simd<T>, const R: usize>(
    simd: S,
    x: &[T],
    row: impl Fn(usize) -> &'b [T],
    sums: &mut [T],
) {
    let mut factors = [simd.splat(T::ZERO); R];
    for (factor, &x) in factors.iter_mut().zip(x) {
        *factor = simd.splat(x);
    }
    let mut streams = Streams::<T, R>::none();
    streams.each(sums.len(), row);
    let whole = sums.len() / S::LANES * S::LANES;
    for (i, run) in sums[..whole].chunks_exact_mut(S::LANES).enumerate() {
        let at = i * S::LANES;
        let mut sum = simd.load(run);
        for (&x, row) in factors.iter().zip(streams.load(simd, at)) {
            sum = simd.mul_add(x, row, sum);
        }
        simd.store(sum, run);
    }
    let run = &mut sums[whole..];
    let mut sum = simd.load_partial(run);
    for (&x, row) in factors.iter().zip(streams.load_partial(simd, whole)) {
        sum = simd.mul_add(x, row, sum);
    }
    simd.store_partial(sum, run);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_and_columns() {
        let lanes = |isa| tile::<f32>(isa).lanes;
        for &isa in machine::supported() {
            let (takes, l) = (|m, n, k| few_rows::<f32>(isa, [m, n, k]), lanes(isa));
            assert!(!takes(1, 100, 512) && takes(2, 100, 512) && takes(8, 8, 512), "{isa}");
            assert!(!takes(8, 7, 512), "{isa}: columns too few to fill registers");
            let most = if isa == Isa::Avx512 { 48 } else { 8 };
            assert!(
                takes(most, 100, 2048) && !takes(most + 1, 100, 2048),
                "{isa}: more are worth packing for"
            );
            let steps = if isa == Isa::Avx512 { 12 * 7 } else { 2 * l * 7 };
            assert!(takes(7, 100, steps) && !takes(7, 100, steps - 1), "{isa}: sums over lanes");
            let deepest = machine::caches().l2 / 2 / (8 + UNROLL) / size_of::<f32>();
            assert!(takes(8, 100, deepest) && !takes(8, 100, deepest + 1), "{isa}: L2");
            let few = |n, k| few_columns::<f32>(isa, [100, n, k]);
            assert!(few(2, 8 * l) && !few(2, 8 * l - 1) && !few(l / 2 + 1, 1 << 12), "{isa}");
        }
    }
}

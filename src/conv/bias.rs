//! The gradient for the bias: sums of dZ over all but its channels, in an order that does not depend on threads.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::emit::channels_last;
use crate::element::Element;
use crate::error::Result;
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Partial sums of a plane: neighbouring elements.
pub(crate) const LANES: usize = 16;
/// Partial sums of a row of pixels at least, of as many pixels as it takes.
const LEAST: usize = 64;
/// Elements of a part of the rows that is summed up by itself.
const PART: usize = 1 << 16;

/// Computes db, in `tasks` tasks.
pub(super) fn run<T: Element>(
    op: &'static str,
    isa: Isa,
    dz: TensorView<'_, T, 5>,
    mut db: TensorViewMut<'_, T, 1>,
    tasks: usize,
) -> Result<()> {
    if dz.is_empty() {
        // Before any loop over images, of which there may be more than can be counted.
        db.fill(T::ZERO);
        return Ok(());
    }
    if channels_last(dz.shape(), dz.strides()) {
        return pixels(op, isa, dz, db, tasks);
    }
    // All memory first: where it is lacking, nothing has been written.
    let mut sums = workspace::scratch(op, db.len() * LANES)?;
    planes(isa, dz, db, &mut sums, tasks)
}

/// Some channels at a time, each the sum over its planes.
fn planes<T: Element>(
    isa: Isa,
    dz: TensorView<'_, T, 5>,
    mut db: TensorViewMut<'_, T, 1>,
    sums: &mut [T],
    tasks: usize,
) -> Result<()> {
    let channels = db.len();
    if tasks > 1 && channels > 1 {
        let (half, cut) = (tasks / 2, channels / 2);
        let ((low, high), (db_low, db_high)) = (dz.split_at(1, cut)?, db.split_at(0, cut)?);
        let (sums_low, sums_high) = sums.split_at_mut(cut * LANES);
        let (first, second) = parallel::join(
            || planes(isa, low, db_low, sums_low, half),
            || planes(isa, high, db_high, sums_high, tasks - half),
        );
        return first.and(second);
    }
    sums.fill(T::ZERO);
    for d in 0..dz.shape()[2] {
        T::dispatch(isa, Planes { dz: dz.select::<4>(2, d)?, sums: &mut *sums });
    }
    for (c, parts) in sums.chunks_exact(LANES).enumerate() {
        if let Some(db) = db.get_mut([c]) {
            *db = folded(parts);
        }
    }
    Ok(())
}

/// The sum of partial sums.
pub(crate) fn folded<T: Element>(parts: &[T]) -> T {
    parts.iter().fold(T::ZERO, |sum, &part| sum + part)
}

/// Adds planes to the partial sums of their channels, which are the compiler's vectors.
struct Planes<'p, T> {
    /// `[images, channels, height, width]`.
    dz: TensorView<'p, T, 4>,
    sums: &'p mut [T],
}

impl<T: Element> SimdOp<T> for Planes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, _: S) {
        let [images, _, height, width] = self.dz.shape();
        // Image by image, as they lie in memory.
        for n in 0..images {
            for (c, sums) in self.sums.chunks_exact_mut(LANES).enumerate() {
                let plane = self.dz.matrix_at([n, c]);
                if let Some(all) = plane.as_slice() {
                    add(sums, all);
                    continue;
                }
                for h in 0..height {
                    match plane.row(h) {
                        Some(row) => add(sums, row),
                        None => (0..width)
                            .for_each(|w| add(sums, plane.get([h, w]).map_or(&[], std::slice::from_ref))),
                    }
                }
            }
        }
    }
}

/// Adds the partial sums of a run.
#[inline(always)]
pub(crate) fn add<T: Element>(sums: &mut [T], run: &[T]) {
    let (runs, rest) = run.as_chunks::<LANES>();
    let mut parts = [T::ZERO; LANES];
    for run in runs {
        parts.iter_mut().zip(run).for_each(|(part, &x)| *part += x);
    }
    parts.iter_mut().zip(rest).for_each(|(part, &x)| *part += x);
    sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
}

/// Where channels are neighbours: parts of the rows, as many for any number of threads.
fn pixels<T: Element>(
    op: &'static str,
    isa: Isa,
    dz: TensorView<'_, T, 5>,
    mut db: TensorViewMut<'_, T, 1>,
    tasks: usize,
) -> Result<()> {
    let [images, channels, depth, height, _] = dz.shape();
    let rows = images.saturating_mul(depth).saturating_mul(height);
    let len = channels * LEAST.div_ceil(channels);
    let dz = dz.permute([0, 2, 3, 4, 1])?;
    let parts = parallel::parts((dz.len() / PART).min(rows));
    let mut sums = workspace::scratch(op, parts * len)?;
    sums.fill(T::ZERO);
    parallel::for_each_chunk_mut(&mut sums, len, tasks.min(parts), &|first, sums| {
        for (part, sums) in (first..).zip(sums.chunks_exact_mut(len)) {
            T::dispatch(isa, Pixels { dz, rows: parallel::share(rows, parts, part), sums });
        }
    });
    for (c, sum) in parallel::total(&mut sums, channels).iter().enumerate() {
        if let Some(db) = db.get_mut([c]) {
            *db = *sum;
        }
    }
    Ok(())
}

/// Adds rows of pixels to sums of as many neighbouring pixels as these have room for.
struct Pixels<'p, T> {
    /// `[images, depth, height, width, channels]`.
    dz: TensorView<'p, T, 5>,
    rows: Range<usize>,
    sums: &'p mut [T],
}

impl<T: Element> SimdOp<T> for Pixels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, _: S) {
        let Self { dz, rows, sums } = self;
        let [_, depth, height, width, _] = dz.shape();
        for at in rows {
            let [n, d, h] = [at / height / depth, at / height % depth, at % height];
            let Ok(image) = dz.select::<4>(0, n) else { return };
            if let Some(line) = image.line([d, h]) {
                for run in line.chunks(sums.len()) {
                    sums.iter_mut().zip(run).for_each(|(sum, &x)| *sum += x);
                }
                continue;
            }
            let pixels = image.matrix_at([d, h]);
            for w in 0..width {
                let row = pixels.row(w).unwrap_or(&[]);
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
            }
        }
    }
}

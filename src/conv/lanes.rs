//! Output channels as lanes: few of them use a patch too seldom for its packing to pay, so an element of it is read where it
//! lies in the input's copy, and broadcast.
//!
//! ```text
//! for each box of outputs                                   in L2 with all below
//!     input → planes with zeros around (halo)
//!     for each panel of one or two vectors of output channels
//!         for each two runs of neighbouring outputs: sums = weights · planes, over all channels and taps
//!     sums, turned → output (emit.rs)
//! ```
//!
//! A run has an instruction's constant distance from output to output; two of them, which may lie in different rows, fill the
//! registers, also where rows are short.
#![forbid(unsafe_code)]

use super::correlation::Correlation;
use super::halo::{Fill, Halo};
use super::implicit::{boxes, sizes, with_channels};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Tile, each, tile};
use crate::machine;
use crate::simd::{Simd, SimdOp};
use crate::tensor::TensorViewMut;
use crate::workspace;

/// Output channels up to which this pays.
const MOST_ROWS: usize = 64;

/// What the last run of a row of sums writes behind it at most, four outputs at a time.
pub(super) const SLACK: usize = 7;

/// Vectors of a panel.
const MOST_VECTORS: usize = 2;

/// Outputs of a run where so many vectors are the sums of a tile.
const fn run_len(sums: usize) -> usize {
    match sums {
        24 => 7,
        12 => 3,
        _ => 2,
    }
}

/// [`run_len`] on an instruction set.
fn run_of(tile: Tile) -> usize {
    run_len(tile.sums())
}

/// True where registers are well used for groups of `rows` output channels that sum `depth` products, and rows of `row` outputs.
pub(super) fn fits(tile: Tile, rows: usize, depth: usize, row: usize) -> bool {
    let full = |len: usize, unit: usize| len.next_multiple_of(unit) * 8 <= len * 9;
    // A panel's weights stream from L2 for each tile.
    let near = depth.saturating_mul(tile.lanes * MOST_VECTORS * 16) <= machine::caches().l2;
    let few = depth > 0 && (1..=MOST_ROWS).contains(&rows);
    few && full(rows, tile.lanes) && full(row, run_of(tile)) && near
}

/// True where a correlation is computed here.
pub(super) fn pays(tile: Tile, rows: usize, depth: usize, row: usize) -> bool {
    // Sums are stored and turned, which takes long beside few products. Wide tiles of the other path have few rows.
    let least = if tile.sums() == 24 { 64 + rows / 2 } else { rows };
    depth >= least && fits(tile, rows, depth, row)
}

/// Output channels of a panel for a group of `rows`.
pub(super) fn width(tile: Tile, rows: usize) -> usize {
    rows.next_multiple_of(tile.lanes).clamp(tile.lanes, MOST_VECTORS * tile.lanes)
}

/// Computes the part `y`, whose first element is `at` in the output, on this thread.
pub(super) fn run<T: Element>(
    problem: &Correlation<'_, T>,
    mut y: TensorViewMut<'_, T, 5>,
    at: [usize; 5],
) -> Result<()> {
    let cut = problem.weights.cut;
    let tile = tile::<T>(cut.isa);
    let [images, channels, depth, height, width] = y.shape();
    // A task's channels are whole groups, or panels of one.
    let rows = cut.rows.min(channels);
    let padded = rows.next_multiple_of(cut.width);
    let strides = (0..3).map(|axis| problem.kernel[axis].min(problem.stride[axis]));
    let inputs = problem.x.shape()[1] / cut.groups;
    let copied = strides.fold(inputs, |copied, step| copied.saturating_mul(step));
    let most = machine::caches().l2 / 4 / size_of::<T>() / copied.saturating_add(padded).max(1);
    let box_sizes = sizes([images, depth, height, width], most.max(4 * tile.columns));
    let positions: usize = box_sizes.iter().product();
    // The last run may exceed its row.
    let pitch = positions.next_multiple_of(tile.lanes) + tile.lanes.max(SLACK);

    // All memory first: where it is lacking, nothing has been written.
    let none = || Error::Alloc { op: problem.op, bytes: usize::MAX };
    let largest = problem.halo(at, [0; 4], box_sizes);
    let planes = largest.len().ok_or_else(none)?.saturating_add(tile.lanes);
    let mut planes = workspace::scratch(problem.op, planes)?;
    let sums = padded.checked_mul(pitch).ok_or_else(none)?.saturating_add(tile.lanes);
    let mut sums = workspace::scratch(problem.op, sums)?;
    let last = super::emit::channels_last(y.shape(), y.strides());
    let turned = if last { rows * tile.lanes } else { 0 };
    let mut turned = workspace::scratch(problem.op, turned)?;
    let mut offsets = workspace::scratch::<usize>(problem.op, cut.depth)?;

    let taps: usize = problem.kernel.iter().product();
    for first in (0..channels).step_by(rows) {
        let (group, row) = ((at[1] + first) / cut.rows, (at[1] + first) % cut.rows);
        for part in boxes([images, depth, height, width], box_sizes) {
            let sizes = part.clone().map(|range| range.len());
            let halo = problem.halo(at, part.clone().map(|range| range.start), sizes);
            let x = problem.x.slice(0, at[0] + part[0].start..at[0] + part[0].end, 1)?;
            let x = x.slice(1, group * inputs..(group + 1) * inputs, 1)?;
            T::dispatch(cut.isa, Fill { halo: &halo, x, to: &mut planes });
            let known = taps.min(offsets.len());
            halo.taps(problem.kernel, &mut offsets[..known]);
            for step in known..offsets.len() {
                offsets[step] = offsets[step - taps] + halo.channel();
            }
            let weights = &problem.weights.data[group * cut.group_len() + row * cut.depth..];
            let panels = weights.chunks_exact(cut.width * cut.depth).take(padded / cut.width);
            for (weights, sums) in panels.zip(sums.chunks_mut(cut.width * pitch)) {
                let (halo, planes, offsets, width) = (&halo, &planes[..], &offsets[..], cut.width);
                T::dispatch(cut.isa, Panel { weights, width, halo, planes, offsets, sizes, sums, pitch });
            }
            let part = with_channels(&part, first..first + rows);
            problem.emit((&sums[..], pitch), part, at, y.view_mut(), &mut turned)?;
        }
    }
    Ok(())
}

/// The sums of a box and a panel.
pub(super) struct Panel<'a, T> {
    /// Step by step of depth.
    pub weights: &'a [T],
    /// Output channels of the panel.
    pub width: usize,
    pub halo: &'a Halo,
    pub planes: &'a [T],
    /// Where each step of depth lies for the first output.
    pub offsets: &'a [usize],
    /// Images, depth, height and width of the box.
    pub sizes: [usize; 4],
    /// `[width, pitch]`, in each row the box's outputs in row-major order, and [`SLACK`].
    pub sums: &'a mut [T],
    pub pitch: usize,
}

impl<T: Element> SimdOp<T> for Panel<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        macro_rules! tiles {
            ($($run:literal)*) => {$(
                // Constant where it is false: then the kernel is not compiled.
                if const { run_len(S::TILE_ROWS * S::TILE_VECTORS) == $run } {
                    match self.width > S::LANES {
                        true => return self.tiles::<S, $run, 2>(simd),
                        false => return self.tiles::<S, $run, 1>(simd),
                    }
                }
            )*};
        }
        tiles!(7 3 2);
    }
}

/// Where a run reads and writes.
#[derive(Clone, Copy, Default)]
struct Place {
    from: usize,
    to: usize,
}

impl<T: Element> Panel<'_, T> {
    #[inline(always)]
    fn tiles<S: Simd<T>, const R: usize, const V: usize>(self, simd: S) {
        debug_assert_eq!(R, run_len(S::TILE_ROWS * S::TILE_VECTORS));
        let Self { weights, halo, planes, offsets, sizes, sums, pitch, .. } = self;
        let [images, depth, height, row] = sizes;
        let mut places = [Place::default(); 2];
        let mut count = 0;
        let mut to = 0;
        for (image, d) in (0..images).flat_map(|image| (0..depth).map(move |d| (image, d))) {
            for h in 0..height {
                let from = halo.output(image, [d, h, 0]);
                for first in (0..row).step_by(R) {
                    places[count % 2] = Place { from: from + first, to: to + first };
                    count += 1;
                    if count % 2 == 0 {
                        simd.call(Runs::<'_, '_, T, R, V> { weights, planes, offsets, places, sums, pitch });
                    }
                }
                to += row;
            }
        }
        if count % 2 == 1 {
            places[1] = places[0];
            simd.call(Runs::<'_, '_, T, R, V> { weights, planes, offsets, places, sums, pitch });
        }
    }
}

/// Two runs of `R` outputs each, for `V` vectors of channels.
struct Runs<'a, 's, T, const R: usize, const V: usize> {
    weights: &'a [T],
    planes: &'a [T],
    offsets: &'a [usize],
    places: [Place; 2],
    sums: &'s mut [T],
    pitch: usize,
}

impl<T: Element, const R: usize, const V: usize> SimdOp<T> for Runs<'_, '_, T, R, V> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        const { assert!(R <= 7 && V <= MOST_VECTORS) };
        let Self { weights, planes, offsets, places, sums: to, pitch } = self;
        let mut sums = [[[simd.splat(T::ZERO); V]; R]; 2];
        let runs = places.map(|place| &planes[place.from..]);
        for (&offset, weights) in offsets.iter().zip(weights.chunks_exact(V * S::LANES)) {
            let mut vectors = [simd.splat(T::ZERO); V];
            each!(v in vectors V { vectors[v] = simd.load(&weights[v * S::LANES..]); });
            let xs = runs.map(|run| &run[offset..][..R]);
            each!(i in rows R {
                let x = [simd.splat(xs[0][i]), simd.splat(xs[1][i])];
                each!(v in vectors V {
                    sums[0][i][v] = simd.mul_add(x[0], vectors[v], sums[0][i][v]);
                    sums[1][i][v] = simd.mul_add(x[1], vectors[v], sums[1][i][v]);
                });
            });
        }
        // What a run has too much, the next one overwrites: first the one that lies before. All indices are constants: else the
        // sums would be in memory from the start.
        macro_rules! four {
            ($run:ident $v:ident: $($i:literal)*) => { [$(sums[$run][const { if $i < R { $i } else { R - 1 } }][$v]),*] };
        }
        const RUNS: usize = 2;
        each!(run in pair RUNS {
            each!(v in vectors V {
                let to = &mut to[v * S::LANES * pitch + places[run].to..];
                simd.store_transposed(four!(run v: 0 1 2 3), to, pitch);
                if const { R > 4 } {
                    const { assert!(R <= 4 || R == 7) };
                    simd.store_transposed(four!(run v: 3 4 5 6), &mut to[3..], pitch);
                }
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILE: Tile = Tile { rows: 6, columns: 64, lanes: 16, narrow_rows: 12, masked: true };

    #[test]
    fn few_channels_and_rows_of_whole_runs_fit() {
        assert!(fits(TILE, 16, 25, 28) && fits(TILE, 32, 288, 14) && fits(TILE, 64, 288, 7));
        // Too many channels, lanes without one, outputs too many.
        assert!(!fits(TILE, 128, 288, 14) && !fits(TILE, 20, 288, 14) && !fits(TILE, 32, 288, 8));
        assert!(!fits(TILE, 32, usize::MAX / 32, 14) && !fits(TILE, 0, 9, 14));
        assert!(!fits(TILE, 32, 0, 14));
    }

    #[test]
    fn few_products_do_not_pay() {
        let narrow = Tile { rows: 6, columns: 16, lanes: 8, narrow_rows: 6, masked: false };
        assert!(!pays(TILE, 16, 27, 28) && !pays(TILE, 64, 72, 28) && pays(TILE, 64, 147, 28));
        assert!(pays(TILE, 16, 72, 28) && !pays(TILE, 16, 72, 8));
        assert!(pays(narrow, 16, 27, 28) && !pays(narrow, 64, 27, 28) && pays(narrow, 64, 72, 28));
        assert!(!pays(narrow, 0, 0, 28));
    }
}

//! Winograd convolution: 3 × 3 kernels with stride 1 in fewer multiplications.
//!
//! F(2 × 2, 3 × 3) makes 4 outputs of 16 multiplications a channel instead of 36, F(4 × 4, 3 × 3) 16 outputs of 36 instead of
//! 144 (S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast Algorithms for Convolutional
//! Neural Networks", 2015). Filters and the patches of tiles are transformed, each of their points is a matrix product over
//! channels, and the products of a tile are transformed to its outputs. What it costs is accuracy: intermediate values are
//! larger than their sum, some 2 times the error of the implicit GEMM for tiles of 2, ten times for tiles of 4.
//!
//! ```text
//! for each box of tiles                                     V in L2
//!     input → planes (halo.rs), of stride 2 or 4: neighbouring tiles are neighbours there
//!     for each vector of tiles, for each channel            Bᵀ d B → V[tiles / panel][point][channel][tile]
//!     for each panel of tiles
//!         for each panel of output channels                 U[panel][point][channel][row], once
//!             M[point] = U[point] · V[point]                as many products as points
//!             Aᵀ m A → sums → output (emit.rs)
//! ```
#![forbid(unsafe_code)]

mod transform;

use std::ops::Range;

use self::transform::{POINTS, Square};
use super::correlation::Correlation;
use super::emit::channels_last;
use super::halo::{Fill, Geometry, Halo, copy};
use super::implicit::boxes;
use super::weights::{Cut, Lines, ROOM};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Series, balanced, blocks, tile};
use crate::machine;
use crate::parallel;
use crate::simd::{MOST_LANES, Simd, SimdOp};
use crate::tensor::TensorViewMut;
use crate::workspace;

/// Elements between the points of a panel of tiles beyond what they hold: else all would fall on the same few cache sets.
const GAP: usize = 16;

/// Packs the filters of a group, whose kernels are 3 × 3, as `[panel][point][channel][row]`.
pub(super) fn pack<T: Element>(cut: &Cut, lines: &Lines<'_, T>, data: &mut [T]) {
    let outputs = cut.winograd;
    let channels = cut.depth / 9;
    let panel = cut.width * channels * (outputs + 2) * (outputs + 2);
    let tasks = parallel::tasks(data.len(), 1 << 16);
    parallel::for_each_chunk_mut(data, panel, tasks, &|first, panels| {
        let (width, rows) = (cut.width, first * cut.width..cut.rows);
        match outputs {
            2 => T::dispatch(cut.isa, Filters::<T, 2> { lines, channels, rows, width, panels }),
            _ => T::dispatch(cut.isa, Filters::<T, 4> { lines, channels, rows, width, panels }),
        }
    });
}

struct Filters<'a, T, const O: usize> {
    lines: &'a Lines<'a, T>,
    channels: usize,
    rows: Range<usize>,
    width: usize,
    panels: &'a mut [T],
}

impl<T: Element, const O: usize> SimdOp<T> for Filters<'_, T, O> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { lines, channels, rows, width, panels } = self;
        let points = O + 2;
        let point = channels * width;
        let mut taps = [T::ZERO; ROOM];
        for some in lines.some(0..channels) {
            let panels = panels.chunks_exact_mut(points * points * point);
            for (first, panel) in rows.clone().step_by(width).zip(panels) {
                let rows = first..rows.end.min(first + width);
                for c in some.clone() {
                    // Lanes are output channels.
                    let pitch = lines.turn(simd, &rows, c, width, &mut taps);
                    for first in (0..width).step_by(S::LANES) {
                        let lanes = S::LANES.min(width - first);
                        let mut square: Square<S::V> = [[simd.splat(T::ZERO); POINTS]; POINTS];
                        for (at, &tap) in lines.seen().iter().enumerate().take(9) {
                            square[at / 3][at % 3] = simd.load(&taps[tap * pitch + first..]);
                        }
                        transform::filter::<T, S, O>(simd, &mut square);
                        for i in 0..points {
                            for j in 0..points {
                                let to = &mut panel[(i * points + j) * point + c * width + first..][..lanes];
                                simd.store_partial(square[i][j], to);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Sizes of a box of tiles: images, rows, columns.
fn sizes<T: Element>(tile_columns: usize, channels: usize, points: usize, output: [usize; 3]) -> [usize; 3] {
    // V in half of L2, in whole panels.
    let panel = (points * (channels * tile_columns + GAP)).saturating_mul(size_of::<T>());
    let most = (machine::caches().l2 / 2 / panel).clamp(1, 8) * tile_columns;
    let mut sizes = [1; 3];
    let mut unit = 1;
    for axis in (0..3).rev() {
        sizes[axis] = balanced(output[axis], (most / unit).max(1), 1);
        if sizes[axis] < output[axis] {
            break;
        }
        unit *= sizes[axis];
    }
    sizes
}

/// Computes the part `y`, one plane deep, whose first element is `at` in the output, on this thread. `O` outputs along each
/// side of a tile.
pub(super) fn run<T: Element, const O: usize>(
    problem: &Correlation<'_, T>,
    mut y: TensorViewMut<'_, T, 5>,
    at: [usize; 5],
) -> Result<()> {
    let cut = problem.weights.cut;
    let isa = cut.isa;
    // Of wider panels with all points fewer channels would stay in L2.
    let tile = tile::<T>(isa).tall();
    let [images, channels, _, height, width] = y.shape();
    let inputs = problem.x.shape()[1] / cut.groups;
    let points = (O + 2) * (O + 2);
    let tiles = [images, height.div_ceil(O), width.div_ceil(O)];
    let sizes = sizes::<T>(tile.columns, inputs, points, tiles);
    let last = channels_last(y.shape(), y.strides());
    let rows = cut.rows.min(channels);
    let most: usize = sizes.iter().product();

    // All memory first: where it is lacking, nothing has been written.
    let none = || Error::Alloc { op: problem.op, bytes: usize::MAX };
    let largest = halo::<T, O>(problem, at, [0; 3], sizes);
    let planes = largest.len().ok_or_else(none)?.saturating_add(tile.lanes);
    let mut planes = workspace::scratch(problem.op, planes)?;
    let point = inputs.checked_mul(tile.columns).ok_or_else(none)?.saturating_add(GAP);
    let panel = point.checked_mul(points).ok_or_else(none)?;
    let v = panel.checked_mul(most.div_ceil(tile.columns)).ok_or_else(none)?;
    let mut v = workspace::scratch(problem.op, v.saturating_add(tile.lanes))?;
    let mut products = workspace::scratch(problem.op, points * (cut.width * tile.columns + GAP))?;
    let positions = sizes[0] * (sizes[1] * O).min(height) * (sizes[2] * O).min(width);
    let pitch = positions.next_multiple_of(tile.lanes) + tile.lanes;
    let mut sums = workspace::scratch(problem.op, rows.checked_mul(pitch).ok_or_else(none)?)?;
    let mut turned = workspace::scratch(problem.op, if last { rows * tile.lanes + 4 } else { 0 })?;

    for first in (0..channels).step_by(rows) {
        let group = (at[1] + first) / cut.rows;
        let row = at[1] + first - group * cut.rows;
        let u = &problem.weights.data[group * cut.group_len()..][..cut.group_len()];
        for part in boxes([1, tiles[0], tiles[1], tiles[2]], [1, sizes[0], sizes[1], sizes[2]]) {
            let [_, n, th, tw] = part;
            let sizes = [n.len(), th.len(), tw.len()];
            let halo = halo::<T, O>(problem, at, [n.start, th.start, tw.start], sizes);
            let x = problem.x.slice(0, at[0] + n.start..at[0] + n.end, 1)?;
            let x = x.slice(1, group * inputs..(group + 1) * inputs, 1)?;
            T::dispatch(isa, Fill { halo: &halo, x, to: &mut planes });
            T::dispatch(isa, Patches::<T, O> { halo: &halo, planes: &planes, sizes, point, v: &mut v });
            let h = th.start * O..height.min(th.end * O);
            let w = tw.start * O..width.min(tw.end * O);
            let count = sizes.iter().product();
            for (index, columns) in blocks(0..count, tile.columns).enumerate() {
                for lines in blocks(0..rows, cut.width) {
                    let width = columns.len().next_multiple_of(tile.lanes);
                    let c_stride = lines.len() * width + GAP;
                    let mut series = Series {
                        count: points,
                        depth: inputs,
                        rows: lines.len(),
                        width: cut.width,
                        columns: width,
                        a: &u[(row + lines.start) * points * inputs..],
                        b: &v[index * panel..],
                        b_width: tile.columns,
                        b_stride: point,
                        c: &mut products,
                        c_row: width,
                        c_stride,
                    };
                    T::series(isa, &mut series);
                    let outputs = Outputs::<T, O> {
                        products: &products,
                        stride: c_stride,
                        row: width,
                        lines: lines.clone(),
                        columns: columns.clone(),
                        sizes,
                        image: [h.len(), w.len()],
                        sums: &mut sums,
                        pitch,
                    };
                    T::dispatch(isa, outputs);
                }
            }
            let part = [n.clone(), first..first + rows, 0..1, h, w];
            problem.emit((&sums, pitch), part, at, y.view_mut(), &mut turned)?;
        }
    }
    Ok(())
}

/// The copy for a box of tiles at `first` of the part at `at`.
fn halo<T: Element, const O: usize>(
    problem: &Correlation<'_, T>,
    at: [usize; 5],
    first: [usize; 3],
    sizes: [usize; 3],
) -> Halo {
    let [_, channels, image @ ..] = problem.x.shape();
    let start = |axis: usize| problem.start[axis] + (at[2 + axis] + first[axis] * O) as isize;
    let geometry = Geometry {
        kernel: [1, O + 2, O + 2],
        stride: [1, O, O],
        dilation: [1; 3],
        start: [problem.start[0] + at[2] as isize, start(1), start(2)],
        outputs: [1, sizes[1], sizes[2]],
        image,
        apart: true,
    };
    Halo::new(&geometry, channels / problem.weights.cut.groups, sizes[0])
}

/// Some of `tiles` of a box, a vector or less: neighbours in one image.
#[derive(Clone, Copy, Default)]
struct Neighbours {
    image: usize,
    /// The first of them in its image.
    tile: usize,
    /// Where it is in the panel.
    to: usize,
    count: usize,
}

/// The neighbours among `columns` of a box with `per_image` tiles of each image.
#[inline(always)]
fn neighbours(per_image: usize, columns: Range<usize>, lanes: usize) -> ([Neighbours; 32], usize) {
    let mut runs = [Neighbours::default(); 32];
    let (mut count, mut at) = (0, columns.start);
    while at < columns.end {
        let (image, tile) = (at / per_image, at % per_image);
        let len = (per_image - tile).min(columns.end - at).min(lanes);
        runs[count] = Neighbours { image, tile, to: at - columns.start, count: len };
        count += 1;
        at += len;
    }
    (runs, count)
}

/// Bᵀ d B of all tiles of a box.
struct Patches<'a, T, const O: usize> {
    halo: &'a Halo,
    planes: &'a [T],
    sizes: [usize; 3],
    /// Elements of a point of a panel.
    point: usize,
    v: &'a mut [T],
}

impl<T: Element, const O: usize> SimdOp<T> for Patches<'_, T, O> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { halo, planes, sizes, point, v } = self;
        let (width, points) = (2 * S::LANES, O + 2);
        let mut taps = [0; POINTS * POINTS];
        halo.taps([1, points, points], &mut taps[..points * points]);
        let channel = halo.channel();
        let count: usize = sizes.iter().product();
        for (index, first) in (0..count).step_by(width).enumerate() {
            let (runs, count) = neighbours(sizes[1] * sizes[2], first..count.min(first + width), S::LANES);
            let panel = &mut v[index * point * points * points..];
            for c in 0..halo.channels {
                for run in &runs[..count] {
                    let from = &planes[halo.output(run.image, [0, 0, run.tile]) + c * channel..];
                    let mut square: Square<S::V> = [[simd.splat(T::ZERO); POINTS]; POINTS];
                    for i in 0..points {
                        for j in 0..points {
                            square[i][j] = simd.load(&from[taps[i * points + j]..]);
                        }
                    }
                    transform::input::<T, S, O>(simd, &mut square);
                    for i in 0..points {
                        for j in 0..points {
                            // What is too much, the next run overwrites, or the next channel.
                            let to = (i * points + j) * point + c * width + run.to;
                            simd.store(square[i][j], &mut panel[to..]);
                        }
                    }
                }
            }
        }
    }
}

/// Aᵀ m A of a panel of tiles and of output channels.
struct Outputs<'a, T, const O: usize> {
    products: &'a [T],
    /// Elements between points, and between rows of a point.
    stride: usize,
    row: usize,
    /// Output channels.
    lines: Range<usize>,
    /// Tiles of the box.
    columns: Range<usize>,
    sizes: [usize; 3],
    /// Height and width of the box's outputs, which its last tiles may exceed.
    image: [usize; 2],
    sums: &'a mut [T],
    pitch: usize,
}

impl<T: Element, const O: usize> SimdOp<T> for Outputs<'_, T, O> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { products, stride, row, lines, columns, sizes, image: [height, width], sums, pitch } = self;
        let points = O + 2;
        let (runs, count) = neighbours(sizes[1] * sizes[2], columns, S::LANES);
        let row_len = sizes[2];
        for line in 0..lines.len() {
            let sums = &mut sums[(lines.start + line) * pitch..];
            for run in &runs[..count] {
                let mut square: Square<S::V> = [[simd.splat(T::ZERO); POINTS]; POINTS];
                for i in 0..points {
                    for j in 0..points {
                        let from = &products[(i * points + j) * stride + line * row + run.to..];
                        // The last run of a row of products may have less than a vector behind it.
                        square[i][j] = simd.load(from);
                    }
                }
                transform::output::<T, S, O>(simd, &mut square);
                for i in 0..O {
                    // Lane by lane the O outputs of a row of each tile.
                    let mut pixels = [T::ZERO; MOST_LANES * 4];
                    let four = square[i];
                    if O == 4 {
                        simd.store_transposed([four[0], four[1], four[2], four[3]], &mut pixels, 4);
                    } else {
                        let mut pairs = [[T::ZERO; MOST_LANES]; 2];
                        simd.store(four[0], &mut pairs[0]);
                        simd.store(four[1], &mut pairs[1]);
                        for lane in 0..S::LANES {
                            pixels[2 * lane] = pairs[0][lane];
                            pixels[2 * lane + 1] = pairs[1][lane];
                        }
                    }
                    let mut done = 0;
                    while done < run.count {
                        let (tile_row, column) = ((run.tile + done) / row_len, (run.tile + done) % row_len);
                        let tiles = (row_len - column).min(run.count - done);
                        let y = tile_row * O + i;
                        if y < height {
                            let len = (tiles * O).min(width - column * O);
                            let to = (run.image * height + y) * width + column * O;
                            copy(simd, &pixels[done * O..][..len], &mut sums[to..]);
                        }
                        done += tiles;
                    }
                }
            }
        }
    }
}

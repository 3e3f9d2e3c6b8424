//! Winograd convolution: 3 × 3 kernels with stride 1 in fewer multiplications.
//!
//! F(2 × 2, 3 × 3) makes 4 outputs of 16 multiplications a channel instead of 36, F(4 × 4, 3 × 3) 16 outputs of 36 instead of
//! 144 (S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast Algorithms for Convolutional
//! Neural Networks", 2015). Filters and the patches of tiles are transformed, each of their points is a matrix product over
//! channels, and the products of a tile are transformed to its outputs. What it costs is accuracy: intermediate values are
//! larger than their sum, some 2 times the error of the implicit GEMM for tiles of 2, 10 to 40 times for tiles of 4.
//!
//! Channels are lanes: tiles are rows of a left operand, filters a right one, and both transforms go over pixels of neighbouring
//! channels, which are read and written where they lie, or turned on the way.
//!
//! ```text
//! for each box of tiles                                     V and M in L2
//!     pixels of each tile                                   Bᵀ d B → V[point][tile][channel]
//!     for each panel of output channels
//!         M[point] = V[point] · U[panel][point]             as many products as points
//!         Aᵀ m A → the output
//! ```
#![forbid(unsafe_code)]

mod input;
mod output;
mod transform;

pub(super) use self::input::Source;
pub(super) use self::transform::weights;

use std::ops::Range;

use self::output::Outputs;
use self::transform::{POINTS, Square};
use super::correlation::Correlation;
use super::depthwise::Reach;
use super::emit::channels_last;
use super::implicit::{boxes, sizes};
use super::weights::{Cut, Lines, ROOM};
use crate::element::Element;
use crate::error::Result;
use crate::gemm::{Series, blocks, each, tile, tile_rows};
use crate::machine;
use crate::parallel;
use crate::simd::{CACHE_LINE, Simd, SimdOp, prefetch};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{self, product};

/// Packs the filters of a group, whose kernels are 3 × 3, as `[panel][point][channel][row]`, with a channel more than there are.
pub(super) fn pack<T: Element>(cut: &Cut, lines: &Lines<'_, T>, data: &mut [T]) {
    let outputs = cut.winograd;
    let channels = cut.depth / 9;
    let panel = cut.width * (channels + 1) * (outputs + 2) * (outputs + 2);
    let tasks = parallel::tasks(data.len(), 1 << 16);
    let far = size_of_val(data) > machine::caches().share() / 2;
    parallel::for_each_chunk_mut(data, panel, tasks, &|first, panels| {
        let (width, rows) = (cut.width, first * cut.width..cut.rows);
        match outputs {
            2 => T::dispatch(cut.isa, Filters::<T, 2, 4> { lines, channels, rows, width, far, panels }),
            _ => T::dispatch(cut.isa, Filters::<T, 4, 6> { lines, channels, rows, width, far, panels }),
        }
    });
}

/// Channels from those that are transformed to those whose filters, and whose places, are asked for: the processor does not see
/// them coming, as filters lie in as many places as a panel has columns, and go to as many as it has points.
const AHEAD: [usize; 2] = [8, 3];

struct Filters<'a, T, const O: usize, const P: usize> {
    lines: &'a Lines<'a, T>,
    channels: usize,
    rows: Range<usize>,
    width: usize,
    /// What is written does not stay in the last cache.
    far: bool,
    panels: &'a mut [T],
}

impl<T: Element, const O: usize, const P: usize> SimdOp<T> for Filters<'_, T, O, P> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { lines, channels, rows, width, far, panels } = self;
        let point = (channels + 1) * width;
        let mut taps = [T::ZERO; ROOM];
        for some in lines.some(0..channels) {
            let panels = panels.chunks_exact_mut(P * P * point);
            for (first, panel) in rows.clone().step_by(width).zip(panels) {
                let rows = first..rows.end.min(first + width);
                for few in lines.few(some.clone()) {
                    // Lanes are output channels.
                    let [apart, pitch] = lines.turn(simd, &rows, few.clone(), width, &mut taps);
                    for (c, of_channel) in few.zip((0..).step_by(apart)) {
                        if far && c + AHEAD[0] < channels {
                            // Else what is turned next is asked for as it is.
                            if lines.transposed {
                                rows.clone().for_each(|row| prefetch(lines.line(row, c + AHEAD[0]).as_ptr()));
                            }
                            for at in (0..P * P).map(|k| k * point + (c + AHEAD[1]) * width) {
                                let line = panel[at..][..width].chunks(CACHE_LINE / size_of::<T>());
                                line.for_each(|line| prefetch(line.as_ptr()));
                            }
                        }
                        for first in (0..width).step_by(S::LANES) {
                            let mut square: Square<S::V> = [[simd.splat(T::ZERO); POINTS]; POINTS];
                            for (at, &tap) in lines.seen().iter().enumerate().take(9) {
                                square[at / 3][at % 3] = simd.load(&taps[of_channel + tap * pitch + first..]);
                            }
                            transform::filter::<T, S, O>(simd, &mut square);
                            each!(i in points P {
                                let mut line = [simd.splat(T::ZERO); P];
                                line.copy_from_slice(&square[i][..P]);
                                simd.store_apart(line, &mut panel[i * P * point + c * width + first..], point);
                            });
                        }
                    }
                }
            }
        }
    }
}

/// Tiles of a box at least, where there are as many: all filters go by once for each box.
const LEAST: usize = 32;

/// Computes the part `y`, one plane deep, whose first element is `at` in the output, on this thread. `O` outputs along each
/// side of a tile, `P` pixels.
pub(super) fn run<T: Element, const O: usize, const P: usize>(
    problem: &Correlation<'_, T>,
    mut y: TensorViewMut<'_, T, 5>,
    at: [usize; 5],
) -> Result<()> {
    const { assert!(P == O + 2 && P <= POINTS) };
    let (op, cut, points) = (problem.op, problem.weights.cut, P * P);
    let tile = tile::<T>(cut.isa);
    let [images, channels, _, height, width] = y.shape();
    let (inputs, lanes) = (problem.x.shape()[1] / cut.groups, tile.lanes);
    // V and M in L2.
    let tiles = [images, 1, height.div_ceil(O), width.div_ceil(O)];
    let one = inputs.saturating_add(cut.width).saturating_mul(points * size_of::<T>()).max(1);
    let sizes = sizes(tiles, (machine::caches().l2 / 4 * 3 / one).max(LEAST));
    let most: usize = sizes.iter().product();
    let rows = cut.rows.min(channels);
    let last = channels_last(y.shape(), y.strides());
    // As an odd number of vectors in a row, one of rows for each point keeps the points of a tile apart in L1.
    let apart = most | 1;
    let Correlation { x, kernel, stride, dilation, start, .. } = *problem;
    let reach = Reach { kernel, stride, dilation, start };
    let source = Source::new(&x, inputs, reach, lanes, [sizes[0], sizes[2] * O, sizes[3] * O]);

    // All memory first: where it is lacking, nothing has been written.
    let mut copy = workspace::scratch(op, source.room)?;
    let mut v = workspace::scratch(op, product(op, &[points, apart, source.pitch])?)?;
    let mut products = workspace::scratch(op, points * apart * cut.width)?;
    let mut stage = workspace::scratch(op, O * (sizes[3] * O) * cut.width)?;
    let positions = sizes[0] * (sizes[2] * O).min(height) * (sizes[3] * O).min(width);
    let sums_pitch = positions.next_multiple_of(lanes) + lanes;
    let mut sums = workspace::scratch(op, if last { 0 } else { product(op, &[cut.width, sums_pitch])? })?;

    for first in (0..channels).step_by(rows) {
        let group = (at[1] + first) / cut.rows;
        let row = at[1] + first - group * cut.rows;
        let u = &problem.weights.data[group * cut.group_len()..][..cut.group_len()];
        let x = x.slice(1, group * inputs..(group + 1) * inputs, 1)?;
        for [n, _, th, tw] in boxes(tiles, sizes) {
            let sizes = [n.len(), th.len(), tw.len()];
            let count = sizes.iter().product();
            let x = x.slice(0, at[0] + n.start..at[0] + n.end, 1)?;
            let place = [at[2], at[3] + th.start * O, at[4] + tw.start * O];
            source.transform::<T, O, P, P>(
                cut.isa,
                x,
                (place, sizes),
                &mut copy,
                (&mut v, apart * source.pitch),
            );
            let h = th.start * O..height.min(th.end * O);
            let w = tw.start * O..width.min(tw.end * O);
            for lines in blocks(0..rows, cut.width) {
                let columns = lines.len().next_multiple_of(lanes);
                let mut series = Series {
                    count: points,
                    rows: count,
                    columns,
                    depth: inputs,
                    tile_rows: tile_rows(tile, [count, columns]),
                    a: TensorView::from_slice(&v, [points * apart, source.pitch])?,
                    b: &u[(row + lines.start) * points * (inputs + 1)..],
                    b_stride: (inputs + 1) * cut.width,
                    width: cut.width,
                    c: TensorViewMut::from_slice(&mut products, [points * apart, cut.width])?,
                    apart,
                };
                T::series(cut.isa, &mut series);
                let channels = first + lines.start..first + lines.end;
                let outputs = Outputs::<T, O, P> {
                    products: &products,
                    stride: apart * cut.width,
                    width: cut.width,
                    sizes,
                    image: [h.len(), w.len()],
                    channels: channels.clone(),
                    origin: [n.start, h.start, w.start],
                    stage: &mut stage,
                };
                if last {
                    T::dispatch(cut.isa, outputs.pixels(problem, at, y.view_mut())?);
                } else {
                    T::dispatch(cut.isa, outputs.planes(&mut sums, sums_pitch));
                    let part = [n.clone(), channels, 0..1, h.clone(), w.clone()];
                    problem.emit((&sums, sums_pitch), part, at, y.view_mut(), &mut [])?;
                }
            }
        }
    }
    Ok(())
}

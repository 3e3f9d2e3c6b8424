//! The implicit GEMM: patches go from a copy of a box's input, or for single taps from the input itself, straight into panels.
//!
//! ```text
//! for each box of outputs, some hundred positions           its columns; in L2, if it is not small, with all below
//!     input → planes with zeros around (halo)          not where single taps read rows as they lie
//!     for each group of blocks of depth                     one, unless depth is large
//!         planes → panels of patches                        runs of whole vectors
//!         for each panel of output channels                 some of them, where panels of patches stay in L1 meanwhile
//!             for each block of depth: sums += weights · patches
//!             finished sums → output (emit.rs)
//! ```
#![forbid(unsafe_code)]

use std::ops::Range;

use super::correlation::Correlation;
use super::emit::{Emit, channels_last};
use super::halo::{Fill, Geometry, Halo, Planes};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Block, NEAR, Order, Panels, Store, Tile, balanced, blocks, packed_len, tile};
use crate::machine::{self, Caches};
use crate::simd::{Simd, SimdOp};
use crate::tensor::TensorViewMut;
use crate::workspace;

/// Bytes of a step of depth that are worth reading all weights of it.
const LEAST: usize = 1 << 10;
/// Panels of weights that pass by a panel of patches while it is in L1.
const SOME: usize = 8;

/// How a part of the output is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Sizes of a box: images, depth, height, width.
    sizes: [usize; 4],
    /// Steps of depth whose panels are there at a time.
    group: usize,
}

impl Plan {
    /// For an output of these images, depth, height and width, and a sum of `depth` steps in blocks of `kc`.
    fn new<T>(tile: Tile, caches: Caches, output: [usize; 4], depth: usize, kc: usize) -> Self {
        let room = caches.l2 / 2 / size_of::<T>();
        let least = LEAST / size_of::<T>();
        // All of the depth, where a few tiles of it nearly fit: then sums never wait in memory.
        let (columns, group) = if depth.saturating_mul(least) <= room / 2 * 3 {
            ((room / depth.max(1)).clamp(least, (32 * tile.columns).max(least)), depth)
        } else {
            (2 * least, (room / (2 * least * kc)).max(1) * kc)
        };
        let mut sizes = [1; 4];
        let mut unit = 1;
        for axis in (0..4).rev() {
            let most = columns / unit;
            sizes[axis] = fitting(output[axis], most.max(1), unit, tile.lanes);
            if sizes[axis] < output[axis] {
                break;
            }
            unit = unit.saturating_mul(sizes[axis]);
        }
        Self { sizes, group: group.max(1) }
    }
}

/// `len` in blocks of at most `most`, not less than half of it, so that blocks of `unit` columns each leave the fewest
/// lanes empty.
fn fitting(len: usize, most: usize, unit: usize, lanes: usize) -> usize {
    if len <= most {
        return len.max(1);
    }
    let padded = |block: usize| (block * unit).next_multiple_of(lanes);
    let cost = |block: usize| {
        len / block * padded(block) + if len.is_multiple_of(block) { 0 } else { padded(len % block) }
    };
    // Equal costs: the largest.
    (most.div_ceil(2)..=most).rev().min_by_key(|&block| cost(block)).unwrap_or(most)
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
    let plan = Plan::new::<T>(tile, machine::caches(), [images, depth, height, width], cut.depth, cut.kc);
    let last = channels_last(y.shape(), y.strides());
    let whole = last || plan.group < cut.depth;
    let columns: usize = plan.sizes.iter().product();
    let pitch = columns.next_multiple_of(tile.lanes) + tile.lanes;
    // A task's channels are whole groups, or lie within one.
    let rows = cut.rows.min(channels);

    // All memory first: where it is lacking, nothing has been written.
    let none = || Error::Alloc { op: problem.op, bytes: usize::MAX };
    let largest = problem.halo(at, [0; 4], plan.sizes);
    let in_place = problem.in_place(y.shape(), at);
    let copied = if in_place.is_some() { Some(0) } else { largest.len() };
    let mut copy = workspace::scratch(problem.op, copied.ok_or_else(none)?.saturating_add(tile.lanes))?;
    let panels = packed_len(columns, tile.columns, plan.group.min(cut.depth)).ok_or_else(none)?;
    let mut patches = workspace::scratch(problem.op, panels.saturating_add(tile.lanes))?;
    let near = tile.columns * cut.kc * size_of::<T>() <= NEAR;
    let some = if near { SOME * cut.width } else { cut.width };
    let sums = (if whole { rows } else { some.min(rows) }).checked_mul(pitch).ok_or_else(none)?;
    let mut sums = workspace::scratch(problem.op, sums.saturating_add(tile.lanes))?;
    let turned = if last { rows * tile.lanes } else { 0 };
    let mut turned = workspace::scratch(problem.op, turned)?;
    // Without input channels a kernel of any size may stand in a view of nothing.
    let taps = if cut.depth == 0 { 0 } else { problem.kernel.iter().product() };
    let mut offsets = workspace::scratch::<usize>(problem.op, taps)?;

    for first in (0..channels).step_by(rows) {
        let group = (at[1] + first) / cut.rows;
        let row = at[1] + first - group * cut.rows;
        let inputs = group * largest.channels..(group + 1) * largest.channels;
        for part in boxes([images, depth, height, width], plan.sizes) {
            let sizes = part.clone().map(|range| range.len());
            let halo = problem.halo(at, part.clone().map(|range| range.start), sizes);
            let planes = if let Some(all) = in_place {
                let first = [at[0] + part[0].start, 0, 0, at[4] + part[3].start];
                let first = all.output(first) + inputs.start * all.channel;
                offsets.fill(0);
                Planes { data: &all.data[first..], ..all }
            } else {
                halo.taps(problem.kernel, &mut offsets);
                let x = problem.x.slice(0, at[0] + part[0].start..at[0] + part[0].end, 1)?;
                let x = x.slice(1, inputs.clone(), 1)?;
                T::dispatch(cut.isa, Fill { halo: &halo, x, to: &mut copy });
                halo.planes(&copy)
            };
            let columns: usize = sizes.iter().product();
            let mut steps_done = 0;
            for group_steps in blocks(0..cut.depth, plan.group) {
                let padded = columns.next_multiple_of(tile.columns);
                for steps in blocks(group_steps.clone(), cut.kc) {
                    let panels = &mut patches[(steps.start - group_steps.start) * padded..];
                    let pack = Pack { planes, offsets: &offsets, sizes, steps, panels };
                    T::dispatch(cut.isa, pack);
                }
                steps_done = group_steps.end;
                for panel in blocks(0..rows, some) {
                    let from = if whole { panel.start } else { 0 };
                    let sums = &mut sums[from * pitch..];
                    for steps in blocks(group_steps.clone(), cut.kc) {
                        let first = (steps.start - group_steps.start) * padded;
                        let mut c = TensorViewMut::matrix(sums, [panel.len(), pitch]);
                        let mut block = Block {
                            a: problem.weights.panels(group, row + panel.start, &steps),
                            b: Panels::Packed {
                                data: &patches[first..][..steps.len() * padded],
                                width: tile.columns,
                                depth: steps.len(),
                            },
                            tile_rows: cut.width,
                            depth: steps.len(),
                            alpha: T::ONE,
                            beta: (steps.start > 0).then_some(T::ONE),
                            epilogue: None,
                            origin: [0, 0],
                            next: None,
                            store: Store::Near,
                            order: Order::Usual,
                            ask: false,
                            panel: &mut [],
                            c: c.tile_mut([0, 0], [panel.len(), tile.padded(cut.width, columns)]),
                        };
                        T::block(cut.isa, &mut block);
                    }
                    if !whole {
                        let rows = first + panel.start..first + panel.end;
                        problem.emit(
                            (&sums[..], pitch),
                            with_channels(&part, rows),
                            at,
                            y.view_mut(),
                            &mut turned,
                        )?;
                    }
                }
            }
            if steps_done == 0 {
                sums.fill(T::ZERO);
            }
            if whole || steps_done == 0 {
                let step = if whole { rows } else { some };
                for rows in blocks(first..first + rows, step) {
                    problem.emit(
                        (&sums[..], pitch),
                        with_channels(&part, rows),
                        at,
                        y.view_mut(),
                        &mut turned,
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// Sizes of boxes of at most `most` positions: whole rows, planes and images where they fit.
pub(super) fn sizes(output: [usize; 4], most: usize) -> [usize; 4] {
    let mut sizes = [1; 4];
    let mut unit = 1usize;
    for axis in (0..4).rev() {
        sizes[axis] = balanced(output[axis], (most / unit).max(1), 1);
        if sizes[axis] < output[axis] {
            break;
        }
        unit = unit.saturating_mul(output[axis].max(1));
    }
    sizes
}

/// Boxes of at most these sizes that make up `output`, in row-major order.
pub(super) fn boxes(output: [usize; 4], sizes: [usize; 4]) -> impl Iterator<Item = [Range<usize>; 4]> {
    (0..count(output, sizes)).map(move |index| nth(output, sizes, index))
}

/// How many [`boxes`] there are.
pub(super) fn count(output: [usize; 4], sizes: [usize; 4]) -> usize {
    (0..4).map(|axis| output[axis].div_ceil(sizes[axis])).product()
}

/// One of [`boxes`].
pub(super) fn nth(output: [usize; 4], sizes: [usize; 4], index: usize) -> [Range<usize>; 4] {
    let (mut at, mut ranges) = (index, [0; 4].map(|_| 0..0));
    for axis in (0..4).rev() {
        let count = output[axis].div_ceil(sizes[axis]);
        let start = at % count * sizes[axis];
        ranges[axis] = start..output[axis].min(start + sizes[axis]);
        at /= count;
    }
    ranges
}

impl<'a, T: Element> Correlation<'a, T> {
    /// The image where the part `y` at `at` reads it as it lies, not copied: single rows of pixels, no padding.
    fn in_place(&self, y: [usize; 5], at: [usize; 5]) -> Option<Planes<'a, T>> {
        let [_, channels, depth, height, width] = self.x.shape();
        let plain = [self.kernel, self.stride] == [[1; 3]; 2] && self.start == [0; 3];
        let inside = (2..5).all(|axis| at[axis] + y[axis] <= self.x.shape()[axis]);
        let rows = channels > 0 && depth == 1 && height == 1;
        let data = self.x.as_slice().filter(|_| plain && inside && rows)?;
        Some(Planes { data, channel: width, steps: [channels * width, 0, 0, 1] })
    }

    /// The copy for a box at `first` of the part at `at`.
    pub(super) fn halo(&self, at: [usize; 5], first: [usize; 4], sizes: [usize; 4]) -> Halo {
        let [_, channels, image @ ..] = self.x.shape();
        let start = [0, 1, 2].map(|a| {
            let output = at[2 + a] + first[1 + a];
            self.start[a] + (output * self.stride[a]) as isize
        });
        let [images, outputs @ ..] = sizes;
        let Self { kernel, stride, dilation, .. } = *self;
        let geometry = Geometry { kernel, stride, dilation, start, outputs, image };
        Halo::new(&geometry, channels / self.weights.cut.groups, images)
    }

    /// Finished sums of some channels of the part at `at` to a box of it, both in `y`'s axes.
    pub(super) fn emit(
        &self,
        (sums, pitch): (&[T], usize),
        ranges: [Range<usize>; 5],
        at: [usize; 5],
        y: TensorViewMut<'_, T, 5>,
        turned: &mut [T],
    ) -> Result<()> {
        let mut y = y;
        for (axis, range) in ranges.iter().enumerate() {
            y = y.slice(axis, range.clone(), 1)?;
        }
        let first = std::array::from_fn(|axis| at[axis] + ranges[axis].start);
        let residual = self.finish.residual_at(first, y.shape())?;
        let emit = Emit { sums, pitch, y, residual, channel: first[1], finish: &self.finish, turned };
        T::dispatch(self.weights.cut.isa, emit);
        Ok(())
    }
}

/// The ranges of a box along all axes.
pub(super) fn with_channels(
    [images, depth, height, width]: &[Range<usize>; 4],
    channels: Range<usize>,
) -> [Range<usize>; 5] {
    [images.clone(), channels, depth.clone(), height.clone(), width.clone()]
}

/// Patches of some steps of depth, from planes to panels.
struct Pack<'a, T> {
    planes: Planes<'a, T>,
    /// Of each tap in a plane.
    offsets: &'a [usize],
    /// Images, depth, height and width of the box.
    sizes: [usize; 4],
    steps: Range<usize>,
    panels: &'a mut [T],
}

/// Vectors of a run of columns of a panel: neighbours in the planes too.
#[derive(Clone, Copy, Default)]
struct Move {
    from: usize,
    to: usize,
}

/// Columns of the widest panel.
const COLUMNS: usize = 64;

impl<T: Element> SimdOp<T> for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { planes, offsets, sizes, steps, panels } = self;
        let width = S::TILE_VECTORS * S::LANES;
        const { assert!(S::TILE_VECTORS * S::LANES <= COLUMNS) };
        let [images, depth, height, row] = sizes;
        let columns = images * depth * height * row;
        let channel = planes.channel;
        for (panel, first) in (0..columns).step_by(width).enumerate() {
            let mut moves = [Move::default(); COLUMNS];
            let mut count = 0;
            let end = columns.min(first + width);
            let mut column = first;
            while column < end {
                let (line, w) = (column / row, column % row);
                let from = planes.output([line / height / depth, line / height % depth, line % height, w]);
                let run = (row - w).min(end - column);
                for i in (0..run).step_by(S::LANES) {
                    moves[count] = Move { from: from + i, to: column - first + i };
                    count += 1;
                }
                column += run;
            }
            let moves = &moves[..count];
            let panel = &mut panels[panel * width * steps.len()..];
            let (mut c, mut tap) = (steps.start / offsets.len(), steps.start % offsets.len());
            for step in 0..steps.len() {
                let planes = &planes.data[c * channel + offsets[tap]..];
                let to = &mut panel[step * width..];
                for &Move { from, to: at } in moves {
                    // What is too much in a run's last vector, the next run overwrites, or the next step.
                    simd.store(simd.load_up_to(&planes[from..]), &mut to[at..]);
                }
                tap += 1;
                if tap == offsets.len() {
                    (c, tap) = (c + 1, 0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILE: Tile = Tile { rows: 6, columns: 64, lanes: 16, narrow_rows: 12, masked: true };
    const CACHES: Caches = Caches { l1d: 48 << 10, l2: 2 << 20, l3: 32 << 20 };

    const SMALL_TILE: Tile = Tile { rows: 6, columns: 16, lanes: 8, narrow_rows: 6, masked: true };
    const SMALL_CACHES: Caches = Caches { l1d: 32 << 10, l2: 512 << 10, l3: 32 << 20 };

    const DEPTHS: [usize; 8] = [1, 27, 147, 576, 1152, 2304, 4608, 100_000];
    const OUTPUTS: [[usize; 4]; 5] =
        [[8, 1, 56, 56], [8, 1, 14, 14], [1, 1, 1, 30_000], [3, 5, 9, 1], [100, 1, 1, 1]];

    fn plan(output: [usize; 4], depth: usize) -> Plan {
        Plan::new::<f32>(TILE, CACHES, output, depth, 256)
    }

    #[test]
    fn boxes_stay_in_l2_and_fill_vectors() {
        // ResNet-50: eight rows of 56, all of 14 × 14 twice over, several images of 7 × 7.
        assert_eq!(plan([1, 1, 56, 56], 576), Plan { sizes: [1, 1, 8, 56], group: 576 });
        assert_eq!(plan([8, 1, 7, 7], 512 * 9).sizes[1..], [1, 7, 7]);
        for depth in DEPTHS {
            for output in OUTPUTS {
                let Plan { sizes, group } = plan(output, depth);
                let columns: usize = sizes.iter().product();
                assert!(columns * group.min(depth) * 4 <= CACHES.l2 / 4 * 3, "{output:?} {depth} {sizes:?}");
                assert!((0..4).all(|axis| (1..=output[axis]).contains(&sizes[axis])));
            }
        }
    }

    /// Panels of patches that are read but once for some panels of weights may lie behind a small L2.
    #[test]
    fn boxes_are_wide_where_l2_is_small() {
        for depth in DEPTHS {
            for output in OUTPUTS {
                let Plan { sizes, group } = Plan::new::<f32>(SMALL_TILE, SMALL_CACHES, output, depth, 256);
                let columns: usize = sizes.iter().product();
                let all: usize = output.iter().product();
                assert!(columns * group.min(depth) * 4 <= SMALL_CACHES.l2, "{output:?} {depth} {sizes:?}");
                assert!(columns >= all.min(128), "{output:?} {depth} {sizes:?}");
            }
        }
    }

    #[test]
    fn boxes_cover() {
        let output = [3, 2, 5, 7];
        let mut seen = vec![0; output.iter().product()];
        for [n, d, h, w] in boxes(output, [2, 1, 2, 7]) {
            for (n, d, h) in n
                .flat_map(|n| d.clone().map(move |d| (n, d)))
                .flat_map(|(n, d)| h.clone().map(move |h| (n, d, h)))
            {
                for w in w.clone() {
                    seen[((n * 2 + d) * 5 + h) * 7 + w] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
    }
}

//! Images as lanes: in a batch, the same pixel of sixteen images is a vector, whatever the window is. Few channels, short rows and
//! strides, which leave other tiles half empty, cost nothing here.
//!
//! ```text
//! for each vector of images and box of rows                 in L2 with all below
//!     X → pixels with zeros around: `[channels, rows, columns, lanes]`, or `[rows, columns, channels, lanes]` where
//!                                                       channels are neighbours in memory
//!     for each panel of output channels and run of outputs, wherever these are
//!         sums += weight · pixel, channel by channel and tap by tap
//!     sums → the output's layout
//! ```
//!
//! The gradient for the input is the same for each residue of the stride, all of which read one copy of dZ.
#![forbid(unsafe_code)]

mod gradient;
mod order;
mod product;

use std::ops::Range;

pub(super) use self::gradient::Gradient;
use self::order::Order;
use self::product::{Grid, Product, tile_of};
use super::correlate::{Call, Operand};
use super::depthwise::{Emit, Reach};
use super::emit::Finish;
use super::implicit::boxes;
use super::patches;
use super::pixels::{self, Pixels};
use super::transpose::{Scatter, residues};
use super::weights::{Cut, Filter};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{GRAIN, Tile, balanced, blocks, packed_len, tile};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::MOST_LANES;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Residues of a stride, of which two axes have two each at most.
const PHASES: usize = 4;

/// Outputs that see the same taps: all, or those of one residue of the stride of a gradient.
#[derive(Clone, Copy)]
struct Phase<'a, T> {
    filter: Filter<'a, T>,
    /// Where its windows read.
    reach: Reach,
    /// Along height and width, its first position and the distance to the next.
    first: [usize; 2],
    step: [usize; 2],
    /// Channels and taps.
    depth: usize,
}

impl<'a, T: Element> Phase<'a, T> {
    fn new(filter: Filter<'a, T>, reach: Reach, first: [usize; 2], step: [usize; 2]) -> Self {
        let [_, channels, d, h, w] = filter.sizes(1);
        Self { filter, reach, first, step, depth: channels * d * h * w }
    }

    /// Its positions among those of a range, of this axis of height and width: by their number in the phase.
    fn among(&self, axis: usize, range: Range<usize>) -> Range<usize> {
        let number = |at: usize| at.saturating_sub(self.first[axis]).div_ceil(self.step[axis]);
        number(range.start)..number(range.end)
    }

    /// What of X a range of positions reads along an axis of height and width.
    fn reads(&self, axis: usize, range: Range<usize>) -> Option<Range<isize>> {
        let numbers = self.among(axis, range);
        if numbers.is_empty() || self.depth == 0 {
            return None;
        }
        let first = self.reach.start[1 + axis] + (numbers.start * self.reach.stride[1 + axis]) as isize;
        Some(first..first + self.reach.span(1 + axis, numbers.len()) as isize)
    }
}

/// Correlations over images as lanes, which pay.
pub(super) struct Images<'a, T> {
    op: &'static str,
    isa: Isa,
    tile: Tile,
    /// The input's planes.
    x: TensorView<'a, T, 5>,
    /// Of the input and the output.
    orders: [Order; 2],
    finish: Finish<'a, T>,
    phases: [Option<Phase<'a, T>>; PHASES],
    /// Output channels of a panel.
    height: usize,
    /// Rows and columns of a box of outputs.
    outputs: [usize; 2],
}

/// Whether so many images fill vectors.
fn fills(tile: Tile, images: usize) -> bool {
    let padded = images.next_multiple_of(tile.lanes);
    tile.lanes >= 4 && images.saturating_mul(5) >= padded.saturating_mul(4)
}

/// Channels in and out up to which it pays: more fill other tiles, and their copies few rows.
const MOST_CHANNELS: usize = 128;

/// Whether it pays for so many output and input channels and such windows, where images fill vectors.
fn pays(tile: Tile, [rows, channels]: [usize; 2], reach: &Reach) -> bool {
    let [height, _] = tile_of(tile.sums(), rows);
    let full = rows >= rows.next_multiple_of(height) / 4 * 3;
    reach.kernel != [1; 3] && full && rows.max(channels) <= MOST_CHANNELS && reach.fits(channels)
}

/// [`pays`] for a convolution. Where there are many more outputs than inputs, other paths read each of these often enough.
pub(super) fn takes<T: Element>(isa: Isa, [rows, channels]: [usize; 2], reach: &Reach) -> bool {
    rows <= 64.max(2 * channels) && pays(tile::<T>(isa), [rows, channels], reach)
}

/// Whether a correlation of `depth` steps over channels last pays beside rows of patches, whose lanes are the output channels: where
/// those are few, and sums long where rows are.
fn beats_rows(tile: Tile, rows: usize, depth: usize, width: usize) -> bool {
    if width < patches::LEAST { rows <= 2 * tile.lanes } else { rows <= tile.lanes && 2 * rows <= depth }
}

/// Positions along an axis, of `all`, of a box whose copies and sums stay in L2: `one` element for the first, `each` for any other.
/// Fewer than `least` read as many again beside them.
fn balance<T>(l2: usize, all: usize, [one, each]: [usize; 2], least: usize) -> Option<usize> {
    let most = (l2 / 8 * 5 / size_of::<T>()).checked_sub(one)? / each.max(1) + 1;
    (most >= all.min(least)).then(|| balanced(all, most, 1))
}

/// Rows and columns of a box for which `len` gives the elements of copies and sums: whole rows, or where windows have one row,
/// parts of single ones.
fn box_of<T>(
    [height, width]: [usize; 2],
    of_window: usize,
    len: impl Fn([usize; 2]) -> usize,
) -> Option<[usize; 2]> {
    let (l2, one) = (machine::caches().l2, len([1, width]));
    let each = len([height.min(2), width]).saturating_sub(one);
    if let Some(rows) = balance::<T>(l2, height, [one, each], LEAST[0]) {
        return Some([rows, width]);
    }
    let (one, two) = (len([1, 1]), len([1, width.min(2)]));
    let columns = || balance::<T>(l2, width, [one, two.saturating_sub(one)], LEAST[1]);
    Some([1, columns().filter(|_| of_window == 1)?])
}

/// Rows and columns that a box has at least, where there are as many.
const LEAST: [usize; 2] = [4, 64];

impl<'a, T: Element> Call<'a, T> {
    /// The call over images as lanes, where that is the fastest for `y`.
    pub(super) fn by_images(&self, y: [usize; 5], strides: [isize; 5]) -> Option<Images<'a, T>> {
        let filter = match self.w {
            Operand::View(filter) => filter,
            Operand::Packed(packed) => packed.plain()?,
        };
        let Call { op, isa, x, finish, .. } = *self;
        let ([images, rows, ..], channels) = (y, x.shape()[1]);
        let fits = self.groups == 1
            && self.algorithm.is_open()
            && finish.residual.is_none()
            && fills(tile::<T>(isa), images)
            && takes::<T>(isa, [rows, channels], &self.reach())
            && self.winograd(filter, y) == 0;
        let mut phases = [const { None }; PHASES];
        phases[0] = Some(Phase::new(filter, self.reach(), [0; 2], [1; 2]));
        fits.then(|| Images::new(op, isa, x, finish, phases, y, strides)).flatten()
    }
}

impl<'a, T: Element> Scatter<'a, T> {
    /// The gradient over images as lanes, where that is the fastest for `y`.
    pub(super) fn by_images(&self, y: [usize; 5], strides: [isize; 5]) -> Result<Option<Images<'a, T>>> {
        let Scatter { op, isa, z, groups, ref sliding, finish, algorithm, .. } = *self;
        let ([images, rows, depth, height, width], channels) = (y, z.shape()[1]);
        let fits = groups == 1
            && algorithm.is_open()
            && finish.residual.is_none()
            && self.is_flat()
            && sliding.stride.iter().all(|&stride| stride <= 2)
            && fills(tile::<T>(isa), images)
            && pays(tile::<T>(isa), [rows, channels], &Reach::of(sliding))
            && !z.is_empty()
            && self.winograd(y) == 0;
        if !fits {
            return Ok(None);
        }
        let mut phases = [const { None }; PHASES];
        let mut free = phases.iter_mut();
        for d in residues(sliding, 0, depth) {
            for h in residues(sliding, 1, height) {
                for (w, to) in residues(sliding, 2, width).zip(&mut free) {
                    let (filter, reach) = self.seen([&d, &h, &w])?;
                    let [_, step @ ..] = sliding.stride;
                    *to = Some(Phase::new(filter, reach, [h.first, w.first], step));
                }
            }
        }
        Ok(Images::new(op, isa, z, finish, phases, y, strides))
    }
}

impl<'a, T: Element> Images<'a, T> {
    fn new(
        op: &'static str,
        isa: Isa,
        x: TensorView<'a, T, 5>,
        finish: Finish<'a, T>,
        phases: [Option<Phase<'a, T>>; PHASES],
        y: [usize; 5],
        strides: [isize; 5],
    ) -> Option<Self> {
        let (tile, [_, channels, _, height, width]) = (tile::<T>(isa), y);
        let [of_panel, _] = tile_of(tile.sums(), channels);
        let orders = [Order::of(x.shape(), x.strides())?, Order::of(y, strides)?];
        if let [Some(phase), None, ..] = &phases
            && orders.iter().all(|order| order.beside > 1)
            && !beats_rows(tile, channels, phase.depth, width)
        {
            return None;
        }
        let x = orders[0].planes(x).ok()?;
        let images = Self { op, isa, tile, x, orders, finish, phases, height: of_panel, outputs: [1; 2] };
        let len = |outputs: [usize; 2]| {
            let of_x = x.shape()[1].saturating_mul(images.pixels([0; 3], outputs).plane());
            let of_y = (channels / orders[1].beside).saturating_mul(images.pitch(outputs));
            of_x.saturating_add(of_y)
        };
        let of_window = images.each().map(|phase| phase.reach.kernel[1]).max()?;
        let outputs = box_of::<T>([height, width], of_window, len)?;
        Some(Self { outputs, ..images })
    }

    /// Elements of a plane of sums for a box.
    fn pitch(&self, [rows, columns]: [usize; 2]) -> usize {
        (rows * columns * self.orders[1].beside + MOST_LANES) * self.tile.lanes
    }

    fn each(&self) -> impl Iterator<Item = &Phase<'a, T>> {
        self.phases.iter().flatten()
    }

    /// The copy of what a box of outputs at depth, row and column `at` reads.
    fn pixels(&self, at: [usize; 3], outputs: [usize; 2]) -> Pixels {
        let reads = |axis: usize| {
            let from = at[1 + axis];
            let reads = self.each().filter_map(|phase| phase.reads(axis, from..from + outputs[axis]));
            let both = |a: Range<isize>, b: Range<isize>| a.start.min(b.start)..a.end.max(b.end);
            reads.reduce(both).unwrap_or(0..1)
        };
        let [rows, columns] = [reads(0), reads(1)];
        let (mut depth, mut depths) = ([0, 1], 1);
        if let Some(Phase { reach, .. }) = self.each().next() {
            depth = [reach.start[0] + (at[0] * reach.stride[0]) as isize, reach.dilation[0] as isize];
            depths = reach.kernel[0];
        }
        let pixels = Pixels {
            depth,
            depths,
            at: [rows.start, columns.start],
            rows: rows.len(),
            columns: columns.len(),
            lanes: self.tile.lanes,
            vectors: 1,
            channel: 0,
            multiplier: 1,
            channels: 0,
        };
        self.orders[0].pixels(pixels)
    }

    /// Computes `y`.
    pub(super) fn run(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let height = self.height;
        let none = || Error::Alloc { op: self.op, bytes: usize::MAX };
        let channels = y.shape()[1];
        let len = |phase: &Phase<'_, T>| packed_len(channels, height, phase.depth);
        let all = self.each().try_fold(0usize, |all, phase| all.checked_add(len(phase)?));
        let mut weights = workspace::scratch(self.op, all.ok_or_else(none)?)?;
        let mut rest = &mut weights[..];
        for phase in self.each() {
            let (these, others) = rest.split_at_mut(len(phase).ok_or_else(none)?);
            let cut = Cut {
                isa: self.isa,
                groups: 1,
                rows: channels,
                depth: phase.depth,
                width: height,
                kc: phase.depth.max(1),
                winograd: 0,
                lanes: false,
            };
            phase.filter.pack(self.op, &cut, these)?;
            rest = others;
        }
        let mut bias = workspace::scratch(self.op, channels.next_multiple_of(height))?;
        bias.fill(T::ZERO);
        for (channel, bias) in bias.iter_mut().enumerate() {
            *bias = self.finish.bias(channel);
        }
        let depth = self.each().map(|phase| phase.depth).sum::<usize>();
        let work = (y.len() / self.each().count()).saturating_mul(depth.max(1));
        self.split(&weights, &bias, y, [0; 5], parallel::threads_for(work, GRAIN))
    }

    /// Computes the part `y`, whose first element is `at` in the output, in `tasks` tasks.
    fn split(
        &self,
        weights: &[T],
        bias: &[T],
        y: TensorViewMut<'_, T, 5>,
        at: [usize; 5],
        tasks: usize,
    ) -> Result<()> {
        let (lanes, [images, .., height, width]) = (self.tile.lanes, y.shape());
        let vectors = images.div_ceil(lanes);
        let even = vectors.is_multiple_of(tasks) || vectors >= 4 * tasks;
        let cut = if even {
            (0, lanes)
        } else if height >= 2 * tasks {
            (3, 1)
        } else if width >= LEAST[1] * tasks {
            (4, 1)
        } else {
            (0, lanes)
        };
        if tasks <= 1 || y.shape()[cut.0] <= cut.1 {
            return self.compute(weights, bias, y, at);
        }
        let f = |part: TensorViewMut<'_, T, 5>, at, tasks| self.split(weights, bias, part, at, tasks);
        parallel::halves(y, at, cut, tasks, &f)
    }

    /// Computes the part `y`, whose first element is `at` in the output, on this thread.
    fn compute(&self, weights: &[T], bias: &[T], y: TensorViewMut<'_, T, 5>, at: [usize; 5]) -> Result<()> {
        let (op, isa, lanes) = (self.op, self.isa, self.tile.lanes);
        let [images, channels, depth, height, width] = y.shape();
        let [of_x, of_y] = self.orders;
        let inputs = self.x.shape()[1];
        // All memory first: where it is lacking, nothing has been written.
        let none = || Error::Alloc { op, bytes: usize::MAX };
        let [rows, columns] = self.outputs;
        let parts = || {
            boxes([1, depth, height, width], [1, 1, rows, columns])
                .map(|[_, d, h, w]| ([d.start, h.start, w.start], [h.len(), w.len()]))
        };
        let place = |from: [usize; 3]| [0, 1, 2].map(|axis| at[2 + axis] + from[axis]);
        let most =
            parts().map(|(from, outputs)| self.pixels(place(from), outputs).plane()).max().unwrap_or(0);
        let mut planes = workspace::scratch(op, inputs.checked_mul(most).ok_or_else(none)?)?;
        let mut y = of_y.planes_mut(y)?;
        let pitch = self.pitch([rows.min(height), columns.min(width)]);
        let mut sums = workspace::scratch(op, y.shape()[1].checked_mul(pitch).ok_or_else(none)?)?;
        let longest = self.each().map(|phase| phase.depth).max().unwrap_or(0);
        let mut offsets = workspace::scratch::<usize>(op, longest)?;
        for some in blocks(0..images, lanes) {
            let x = self.x.slice(0, at[0] + some.start..at[0] + some.end, 1)?;
            for (from, outputs) in parts() {
                let place = place(from);
                let pixels = Pixels { channels: some.len(), ..self.pixels(place, outputs) };
                fill(isa, x, &pixels, 0..inputs, &mut planes);
                let mut rest = weights;
                for phase in self.each() {
                    let (weights, others) = rest.split_at(bias.len() * phase.depth);
                    rest = others;
                    let offsets = &mut offsets[..phase.depth];
                    of_x.lines(&phase.reach, &pixels, offsets);
                    let grid = phase.grid(&pixels, self.orders, place, outputs);
                    let (height, planes, sums) = (self.height, &planes[..], &mut sums[..]);
                    let apart = of_y.apart(pitch, lanes);
                    let product =
                        Product { weights, height, bias, planes, offsets, grid, sums, channels, apart };
                    T::dispatch(isa, product);
                }
                let len = self.pitch(outputs);
                for (plane, sums) in sums.chunks_exact_mut(pitch).enumerate() {
                    let emit = Emit {
                        sums: &mut sums[..len],
                        outputs: [outputs[0], outputs[1] * of_y.beside],
                        y: y.view_mut().select::<4>(1, plane)?,
                        residual: None,
                        channels: some.clone(),
                        at: [from[0], from[1], from[2] * of_y.beside],
                        finish: &self.finish,
                    };
                    T::dispatch(isa, emit);
                }
            }
        }
        Ok(())
    }
}

/// Copies planes of some images, one after the other.
fn fill<T: Element>(isa: Isa, x: TensorView<'_, T, 5>, pixels: &Pixels, planes: Range<usize>, to: &mut [T]) {
    for (c, to) in planes.zip(to.chunks_exact_mut(pixels.plane())) {
        let Ok(x) = x.select::<4>(1, c) else { return };
        T::dispatch(isa, pixels::Fill { x, pixels: *pixels, to });
    }
}

impl<T: Element> Phase<'_, T> {
    /// Its outputs in a box at depth, row and column `at`.
    fn grid(&self, pixels: &Pixels, orders: [Order; 2], at: [usize; 3], outputs: [usize; 2]) -> Grid {
        let [of_rows, of_columns] =
            [0, 1].map(|axis| self.among(axis, at[1 + axis]..at[1 + axis] + outputs[axis]));
        let [of_x, of_y] = orders.map(|order| order.beside);
        let from = |axis: usize, number: usize, beside: usize| {
            let read = self.reach.start[1 + axis] + (number * self.reach.stride[1 + axis]) as isize;
            (read * beside as isize - pixels.at[axis]) as usize
        };
        let to = |axis: usize, number: usize| {
            (self.first[axis] + number * self.step[axis]).saturating_sub(at[1 + axis])
        };
        // Without taps or outputs nothing is read, and of what others read there may be less.
        let (mut first, [_, mut down, mut right]) = (0, self.reach.stride);
        if self.depth == 0 || of_rows.is_empty() || of_columns.is_empty() {
            (down, right) = (0, 0);
        } else {
            first = from(0, of_rows.start, 1) * pixels.columns + from(1, of_columns.start, of_x);
        }
        let (of_pixel, of_output) = (of_x * pixels.lanes, of_y * pixels.lanes);
        Grid {
            rows: of_rows.len(),
            columns: of_columns.len(),
            from: first * pixels.lanes,
            down: down * pixels.columns * pixels.lanes,
            right: right * of_pixel,
            to: (to(0, of_rows.start) * outputs[1] + to(1, of_columns.start)) * of_output,
            to_down: self.step[0] * outputs[1] * of_output,
            to_right: self.step[1] * of_output,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILE: Tile = Tile { rows: 6, columns: 64, lanes: 16, narrow_rows: 12, masked: true };

    #[test]
    fn batches_over_few_channels_pay() {
        let pays_on = |tile, [images, rows]: [usize; 2], channels, [h, w]: [usize; 2]| {
            let reach = Reach { kernel: [1, h, w], ..Reach::SELF };
            fills(tile, images) && pays(tile, [rows, channels], &reach)
        };
        let pays = |sizes, channels, kernel| pays_on(TILE, sizes, channels, kernel);
        assert!(pays([64, 16], 1, [5, 5]) && pays([64, 32], 16, [3, 3]) && pays([64, 3], 16, [3, 3]));
        assert!(pays([13, 8], 8, [3, 3]) && pays([30, 8], 8, [1, 3]) && pays([16, 6], 1, [5, 5]));
        // Vectors with too few images, tiles with too few channels, too many channels, single taps, large windows, none.
        assert!(!pays([12, 8], 8, [3, 3]) && !pays([18, 8], 8, [3, 3]) && !pays([1, 8], 8, [3, 3]));
        assert!(!pays([16, 5], 8, [3, 3]) && !pays([16, 1], 8, [3, 3]) && !pays([16, 8], 8, [64, 64]));
        assert!(!pays([16, 256], 8, [3, 3]) && !pays([16, 8], 256, [3, 3]) && !pays([16, 8], 8, [1, 1]));
        let two = Tile { lanes: 2, ..TILE };
        assert!(!pays_on(two, [16, 8], 8, [3, 3]));
    }

    #[test]
    fn few_channels_last_beat_rows_of_patches() {
        let beats = |rows, depth, width| beats_rows(TILE, rows, depth, width);
        assert!(beats(16, 144, 32) && beats(8, 27, 32) && beats(16, 27, 14) && beats(32, 288, 14));
        // Many channels, more of them over long rows, and short sums over these.
        assert!(!beats(33, 288, 14) && !beats(32, 288, 32) && !beats(16, 27, 32));
    }

    #[test]
    fn boxes_stay_in_l2() {
        // 2 MiB: 327,680 elements.
        let rows = |all, one, each| balance::<f32>(2 << 20, all, [one, each], 4);
        assert_eq!(rows(14, 20_000, 10_000), Some(14));
        assert_eq!(rows(56, 20_000, 10_000), Some(28));
        assert_eq!(rows(3, 100_000, 100_000), Some(3));
        assert_eq!(rows(14, 100_000, 100_000), None);
        assert_eq!(rows(1, 400_000, 0), None);
    }

    /// Long lines are cut where windows have one row.
    #[test]
    fn single_rows_are_cut() {
        let len = |[rows, columns]: [usize; 2]| rows.saturating_mul(columns).saturating_mul(16);
        let long = usize::MAX >> 10;
        assert_eq!(box_of::<f32>([3, 50], 3, len), Some([3, 50]));
        assert_eq!(box_of::<f32>([1, long], 3, len), None);
        let [rows, columns] = box_of::<f32>([3, long], 1, len).unwrap();
        assert!(rows == 1 && columns >= 64 && 64 * columns <= machine::caches().l2 / 8 * 5);
    }
}

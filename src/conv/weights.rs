//! Weights as panels of a left operand: rows are output channels, depth is `(channel, tap)`; or as `lanes` and `winograd` have them.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::lanes;
use super::pixels::turn;
use super::pointwise::merges;
use super::winograd;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Panels, blocks, depth_block, pack, packed_len, tile, tile_rows};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{CACHE_LINE, Simd, SimdOp, prefetch};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// How the weights of one group are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub(super) isa: Isa,
    pub(super) groups: usize,
    /// Output channels of a group.
    pub(super) rows: usize,
    /// Channels and taps that each takes in.
    pub(super) depth: usize,
    /// Rows of a panel; for Winograd columns of one.
    pub(super) width: usize,
    /// Steps of a block of depth.
    pub(super) kc: usize,
    /// Outputs along a side of a Winograd tile, 2 or 4; 0 for the implicit GEMM.
    pub(super) winograd: usize,
    /// Panels are those of a right operand, over all of the depth: output channels are lanes.
    pub(super) lanes: bool,
}

impl Cut {
    /// For weights of these sizes a group: rows, channels and taps along each axis.
    pub(super) fn new<T: Element>(
        isa: Isa,
        groups: usize,
        [rows, channels, d, h, w]: [usize; 5],
        winograd: usize,
    ) -> Self {
        let tile = tile::<T>(isa);
        let depth = channels * d * h * w;
        let kc = depth_block::<T>(tile, machine::caches(), depth);
        let width = if winograd > 0 { tile.tall().panel(rows) } else { tile_rows(tile, [rows, usize::MAX]) };
        Self { isa, groups, rows, depth, width, kc, winograd, lanes: false }
    }

    /// The same for output channels as lanes.
    pub(super) fn lanes<T: Element>(isa: Isa, groups: usize, sizes: [usize; 5]) -> Self {
        let cut = Self::new::<T>(isa, groups, sizes, 0);
        let width = lanes::width(tile::<T>(isa), cut.rows);
        Self { width, kc: cut.depth.max(1), lanes: true, ..cut }
    }

    /// Steps of depth as they are packed: channels times taps, or one more times the points of a tile: else all of them would
    /// fall on the same few cache sets.
    fn steps(&self) -> usize {
        match self.winograd {
            0 => self.depth,
            outputs => (self.depth / 9).saturating_add(1).saturating_mul((outputs + 2) * (outputs + 2)),
        }
    }

    /// Elements of the panels of a group, once [`len`](Self::len) has counted them.
    pub(super) fn group_len(&self) -> usize {
        self.padded() * self.steps()
    }

    /// Elements of all panels.
    pub(super) fn len(&self, op: &'static str) -> Result<usize> {
        packed_len(self.rows, self.width, self.steps())
            .and_then(|len| len.checked_mul(self.groups))
            .ok_or(Error::Alloc { op, bytes: usize::MAX })
    }

    fn padded(&self) -> usize {
        self.rows.next_multiple_of(self.width)
    }
}

/// Weights packed into `data`, or read where they lie.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a, T> {
    pub cut: Cut,
    /// Groups, in each blocks of depth, in each panels; of filters for Winograd what [`winograd::pack`] makes.
    pub data: &'a [T],
    /// `[groups · rows, depth]`, contiguous rows, where nothing is packed.
    pub in_place: Option<TensorView<'a, T, 2>>,
}

impl<'a, T: Element> Weights<'a, T> {
    /// The panels of a group from row `first` on, over a block of depth.
    pub(super) fn panels(&self, group: usize, first: usize, steps: &Range<usize>) -> Panels<'a, T> {
        if let Some(all) = self.in_place {
            let first = group * self.cut.rows + first;
            let rows = (group + 1) * self.cut.rows - first;
            return Panels::Direct(all.tile([first, steps.start], [rows, steps.len()]));
        }
        let padded = self.cut.padded();
        let start = group * self.cut.group_len() + steps.start * padded;
        let data = &self.data[start..][..steps.len() * padded];
        Panels::Packed { data, width: self.cut.width, depth: steps.len() }.from(first)
    }
}

/// The taps that a call sees along one axis of a kernel: `count` of them from `first` on, `step` apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taps {
    pub first: usize,
    pub step: usize,
    pub count: usize,
    /// From the last to the first.
    pub backwards: bool,
}

impl Taps {
    fn at(&self, index: usize) -> usize {
        self.first + self.step * if self.backwards { self.count - 1 - index } else { index }
    }
}

/// The weights of a call as a view: `[groups · rows, channels, kernel…]`, or where `transposed`, as for gradients,
/// `[groups · channels, rows, kernel…]`.
#[derive(Clone, Copy)]
pub struct Filter<'a, T> {
    view: TensorView<'a, T, 5>,
    pub(super) transposed: bool,
    taps: [Taps; 3],
}

/// Taps of a kernel up to which the weights of a channel are turned as one.
const MOST_TAPS: usize = 64;
/// Rows whose weights are turned at a time, at most.
pub(super) const WIDTH: usize = 32;
/// Room for those taps of them, in whole vectors.
pub(super) const ROOM: usize = (MOST_TAPS + 16) * WIDTH;

impl<'a, T: Element> Filter<'a, T> {
    /// All taps of `view`, in order.
    pub(super) fn new(view: TensorView<'a, T, 5>) -> Self {
        let [_, _, kernel @ ..] = view.shape();
        let all = |count| Taps { first: 0, step: 1, count, backwards: false };
        Self { view, transposed: false, taps: kernel.map(all) }
    }

    /// Some taps of `view`, for a gradient.
    pub(super) fn transposed(view: TensorView<'a, T, 5>, taps: [Taps; 3]) -> Self {
        Self { view, transposed: true, taps }
    }

    /// The taps that the call sees, as a view.
    pub(super) fn seen(&self) -> Result<TensorView<'a, T, 5>> {
        let mut view = self.view;
        for (axis, Taps { first, step, count, backwards }) in (2..).zip(self.taps) {
            view = view.slice(
                axis,
                first..first.saturating_add(step.saturating_mul(count)).min(view.shape()[axis]),
                step,
            )?;
            if backwards {
                view = view.flip(axis)?;
            }
        }
        Ok(view)
    }

    /// Weights of some channels, `multiplier` of each group, for the input `input` of `inputs` of its group: tap t of the i-th goes
    /// to `place(i) + t · step`.
    pub(super) fn spread(
        &self,
        multiplier: usize,
        [input, inputs]: [usize; 2],
        channels: Range<usize>,
        place: impl Fn(usize) -> usize,
        step: usize,
        to: &mut [T],
    ) -> Result<()> {
        let view = self.seen()?;
        let [_, inners, depth, height, width] = view.shape();
        let taps = depth * height * width;
        // Rows of taps, or as gradients have them, from the last to the first.
        let forward = view.as_slice();
        let backward = if forward.is_none() { view.flip(2)?.flip(3)?.flip(4)?.as_slice() } else { None };
        for (i, channel) in channels.enumerate() {
            let to = to[place(i)..].iter_mut().step_by(step);
            let [outer, inner] = match self.transposed {
                true => [channel / multiplier * inputs + input, channel % multiplier],
                false => [channel, input],
            };
            let from = (outer * inners + inner) * taps..(outer * inners + inner + 1) * taps;
            if let Some(all) = forward {
                to.zip(&all[from]).for_each(|(to, &from)| *to = from);
            } else if let Some(all) = backward {
                to.zip(all[from].iter().rev()).for_each(|(to, &from)| *to = from);
            } else {
                for (tap, to) in to.take(taps).enumerate() {
                    let at = [outer, inner, tap / width / height, tap / width % height, tap % width];
                    *to = view.get(at).copied().unwrap_or(T::ZERO);
                }
            }
        }
        Ok(())
    }

    /// `[rows, channels, kernel…]` of a group.
    pub(super) fn group(&self, groups: usize, group: usize) -> Result<TensorView<'a, T, 5>> {
        let outer = self.view.shape()[0] / groups;
        let part = self.seen()?.slice(0, group * outer..(group + 1) * outer, 1)?;
        if self.transposed { part.permute([1, 0, 2, 3, 4]) } else { Ok(part) }
    }

    /// Rows of a group, channels of a group, taps along each axis.
    pub(super) fn sizes(&self, groups: usize) -> [usize; 5] {
        let [outer, inner, ..] = self.view.shape();
        let [d, h, w] = self.taps.map(|taps| taps.count);
        if self.transposed { [inner, outer / groups, d, h, w] } else { [outer / groups, inner, d, h, w] }
    }

    /// All groups as a matrix `[groups · rows, depth]` of contiguous rows, where they are one.
    pub(super) fn in_place(&self) -> Option<TensorView<'a, T, 2>> {
        let view = self.seen().ok().filter(|_| !self.transposed)?;
        let [rows, rest @ ..] = view.shape();
        if !merges(view.shape(), view.strides(), &[1, 2, 3, 4]) {
            return None;
        }
        let matrix = view.reshape([rows, rest.iter().product()]).ok()?;
        (matrix.strides()[1] == 1).then_some(matrix)
    }

    /// A group as lines of taps, where they lie in order.
    pub(super) fn lines(&self, groups: usize, group: usize) -> Result<Option<Lines<'a, T>>> {
        let ([all, inner, d, h, w], strides) = (self.view.shape(), self.view.strides());
        let taps = d * h * w;
        if taps > MOST_TAPS || !merges(self.view.shape(), strides, &[1, 2, 3, 4]) {
            return Ok(None);
        }
        let outer = all / groups;
        let part = self.view.slice(0, group * outer..(group + 1) * outer, 1)?;
        let matrix = part.reshape([outer, inner * taps])?;
        if matrix.strides()[1] != 1 {
            return Ok(None);
        }
        let mut seen = [0; MOST_TAPS];
        let [of_d, of_h, of_w] = self.taps;
        let mut count = 0;
        for i in 0..of_d.count {
            for j in 0..of_h.count {
                for k in 0..of_w.count {
                    seen[count] = (of_d.at(i) * h + of_h.at(j)) * w + of_w.at(k);
                    count += 1;
                }
            }
        }
        Ok(Some(Lines { matrix, transposed: self.transposed, taps, seen, count }))
    }

    /// Packs the weights into `data`.
    pub(super) fn pack(&self, op: &'static str, cut: &Cut, data: &mut [T]) -> Result<()> {
        let Cut { isa, groups, rows, depth, kc, width, winograd, .. } = *cut;
        if rows == 0 || depth == 0 {
            return Ok(());
        }
        let padded = cut.padded();
        for group in 0..groups {
            let (part, data) =
                (self.group(groups, group)?, &mut data[group * cut.group_len()..][..cut.group_len()]);
            let matrix = |matrix: TensorView<'_, T, 2>, data: &mut [T]| {
                for steps in blocks(0..depth, kc) {
                    let block = &mut data[steps.start * padded..steps.end * padded];
                    pack(isa, matrix, 0..rows, steps, width, block, true);
                }
            };
            if winograd == 0 && merges(part.shape(), part.strides(), &[1, 2, 3, 4]) {
                matrix(part.reshape([rows, depth])?, data);
                continue;
            }
            if let Some(lines) = self.lines(groups, group)? {
                lines.pack(cut, data);
                continue;
            }
            // No strides say it: rows and depth in the order of memory first.
            let mut copy = workspace::scratch(op, rows * depth)?;
            TensorViewMut::from_slice(&mut copy[..], part.shape())?.copy_from(part);
            let copied = TensorView::from_slice(&copy[..], part.shape())?;
            match Filter::new(copied).lines(1, 0)?.filter(|_| winograd > 0) {
                Some(lines) => lines.pack(cut, data),
                None => matrix(copied.reshape([rows, depth])?, data),
            }
        }
        Ok(())
    }
}

/// The weights of a group whose taps, for a row and a channel, lie in order.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a, T> {
    /// `[rows, channels · taps]`, or where `transposed`, `[channels, rows · taps]`: contiguous rows.
    matrix: TensorView<'a, T, 2>,
    pub(super) transposed: bool,
    taps: usize,
    /// Which taps are seen, in the order in which they are, and how many.
    seen: [usize; MOST_TAPS],
    count: usize,
}

impl<T: Element> Lines<'_, T> {
    /// The taps of a row and a channel.
    pub(super) fn line(&self, row: usize, channel: usize) -> &[T] {
        self.run(row, channel, 1)
    }

    /// The same of `count` channels that are neighbours in memory: not where `transposed`, but for one.
    fn run(&self, row: usize, channel: usize, count: usize) -> &[T] {
        let [outer, inner] = if self.transposed { [channel, row] } else { [row, channel] };
        &self.matrix.row(outer).unwrap_or(&[])[inner * self.taps..][..count * self.taps]
    }

    /// Channels that are best taken together for all rows, before the next: then memory is read in its order.
    pub(super) fn some(&self, channels: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let most = if self.transposed { 16 } else { usize::MAX };
        blocks(channels, most)
    }

    /// The taps that are seen, in their order.
    pub(super) fn seen(&self) -> &[usize] {
        &self.seen[..self.count]
    }

    /// All taps are seen.
    pub(super) fn complete(&self) -> bool {
        self.count == self.taps
    }

    /// Some channels for whose taps there is room, and that are turned before the first is read: what was just written in parts
    /// is not there as a whole yet.
    #[inline(always)]
    pub(super) fn few(&self, channels: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        blocks(channels, (MOST_TAPS / self.taps.max(1)).max(1))
    }

    /// All taps of channels, [`few`](Self::few), for the rows of a panel of `width`: element `(channel · taps + tap) · pitch + i`
    /// of `to` is of row i. The distances from channel to channel and from tap to tap are returned.
    #[inline(always)]
    pub(super) fn turn<S: Simd<T>>(
        &self,
        simd: S,
        rows: &Range<usize>,
        channels: Range<usize>,
        width: usize,
        to: &mut [T; ROOM],
    ) -> [usize; 2] {
        let (pitch, first_channel) = (width.next_multiple_of(4), channels.start);
        if self.transposed && self.taps * 4 <= S::LANES {
            // Four lines of so few taps fill no vectors, but all rows are neighbours.
            for (channel, to) in channels.zip(to.chunks_exact_mut(self.taps * pitch)) {
                let line =
                    &self.matrix.row(channel).unwrap_or(&[])[rows.start * self.taps..rows.end * self.taps];
                for (tap, to) in to.chunks_exact_mut(pitch).enumerate() {
                    let (to, rest) = to.split_at_mut(rows.len());
                    for (to, from) in to.iter_mut().zip(line.chunks_exact(self.taps)) {
                        *to = from[tap];
                    }
                    rest.fill(T::ZERO);
                }
            }
            return [self.taps * pitch, pitch];
        }
        let together = if self.transposed { 1 } else { channels.len() };
        for channels in blocks(channels.clone(), together) {
            let at = (channels.start - first_channel) * self.taps * pitch;
            for first in (0..pitch).step_by(4) {
                let mut four: [&[T]; 4] = [&[]; 4];
                for (row, line) in (rows.start + first..rows.end).zip(&mut four) {
                    *line = self.run(row, channels.start, channels.len());
                    if !self.transposed {
                        // What the next call reads. The processor does not see so many lines coming.
                        for at in (0..line.len()).step_by(CACHE_LINE / size_of::<T>()) {
                            prefetch(line.as_ptr().wrapping_add(line.len() + at));
                        }
                    }
                }
                turn(simd, four, channels.len() * self.taps, &mut to[at + first..], pitch);
            }
        }
        [self.taps * pitch, pitch]
    }

    fn pack(&self, cut: &Cut, data: &mut [T]) {
        if cut.winograd > 0 {
            return winograd::pack(cut, self, data);
        }
        let Cut { isa, rows, depth, kc, width, .. } = *cut;
        let padded = cut.padded();
        for steps in blocks(0..depth, kc) {
            let block = &mut data[steps.start * padded..steps.end * padded];
            let (panel, tasks) = (width * steps.len(), parallel::tasks(block.len(), 1 << 15));
            parallel::for_each_chunk_mut(block, panel, tasks, &|first, panels| {
                let rows = first * width..rows;
                T::dispatch(isa, Blocks { lines: self, rows, steps: steps.clone(), width, panels });
            });
        }
    }
}

/// Some steps of depth of the panels of rows.
struct Blocks<'p, T> {
    lines: &'p Lines<'p, T>,
    rows: Range<usize>,
    steps: Range<usize>,
    width: usize,
    panels: &'p mut [T],
}

impl<T: Element> SimdOp<T> for Blocks<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { lines, rows, steps, width, panels } = self;
        let (count, mut turned) = (lines.count, [T::ZERO; ROOM]);
        for channels in lines.some(steps.start / count..steps.end.div_ceil(count)) {
            let panels = panels.chunks_exact_mut(width * steps.len());
            for (first, panel) in rows.clone().step_by(width).zip(panels) {
                let rows = first..rows.end.min(first + width);
                for few in lines.few(channels.clone()) {
                    let [apart, pitch] = lines.turn(simd, &rows, few.clone(), width, &mut turned);
                    for (channel, of_channel) in few.zip((0..).step_by(apart)) {
                        for (at, &tap) in lines.seen().iter().enumerate() {
                            let (step, from) = (channel * count + at, &turned[of_channel + tap * pitch..]);
                            if steps.contains(&step) {
                                let to = &mut panel[(step - steps.start) * width..][..width];
                                for at in (0..width).step_by(S::LANES) {
                                    let end = width.min(at + S::LANES);
                                    simd.store_partial(simd.load(&from[at..]), &mut to[at..end]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

//! Patches as rows: a left operand whose right one is the weights, where channels lie last or these were packed for that.
//!
//! ```text
//! for each block of pixels                          its patches in L2
//!     for each block of depth                       taps, and the channels of each
//!         patches → rows                            runs of image rows, copied as they lie, zeros around
//!         for each block of output channels: y += patches · weights, finished with the last block
//! ```
//!
//! Where rows of the output are long, windows are rows as they lie in a copy of some lines of the image with zeros around; those of
//! one line, whose rows are longer still, as they lie in the image.
//!
//! The output gets its sums from the registers, in its own order.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::correlate::Call;
use super::correlation::axis;
use super::depthwise::within;
use super::pointwise::{apart, merges};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{
    Bias, Block, Epilogue, GRAIN, Order, Panels, Runs, Slab, Store, Tile, balanced, blocks, depth_blocks,
    tile, tile_rows,
};
use crate::machine;
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::scratch;

impl<T: Element> Call<'_, T> {
    /// Computes `y` with weights that are a right operand: one group, any geometry.
    pub(super) fn patches(&self, slab: Slab<'_, T>, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let work = y.len().saturating_mul(slab.depth().max(1));
        let rows = Rows { call: self, kc: slab.kc(), slab, tile: tile::<T>(self.isa) };
        rows.split(y, [0; 5], parallel::threads_for(work, GRAIN))
    }
}

struct Rows<'a, T> {
    call: &'a Call<'a, T>,
    slab: Slab<'a, T>,
    tile: Tile,
    /// Steps of a block of depth.
    kc: usize,
}

/// Of an output and its residual the part that a thread computes.
type Part<'p, T> = (TensorViewMut<'p, T, 5>, Option<TensorView<'p, T, 5>>);

impl<T: Element> Rows<'_, T> {
    /// Computes the part `y`, whose first element is `at` in the output, in `tasks` tasks.
    fn split(&self, y: TensorViewMut<'_, T, 5>, at: [usize; 5], tasks: usize) -> Result<()> {
        let width = self.tile.columns;
        let best = (tasks > 1).then(|| axis(y.shape(), tasks, self.slab.lines(), width)).flatten();
        let Some(cut) = best.filter(|&(axis, unit)| y.shape()[axis] > unit) else {
            let residual = self.call.finish.residual_at(at, y.shape())?;
            let axes = apart(|axes| {
                let residual = residual.map(|r| r.strides());
                [Some(y.strides()), residual]
                    .into_iter()
                    .flatten()
                    .all(|strides| merges(y.shape(), strides, axes))
            });
            return self.runs((y, residual), at, axes);
        };
        parallel::halves(y, at, cut, tasks, &|part, at, tasks| self.split(part, at, tasks))
    }

    /// [`run`](Self::run) for each index of `axes`.
    fn runs(&self, (mut y, residual): Part<'_, T>, at: [usize; 5], axes: &[usize]) -> Result<()> {
        let &[axis, ref axes @ ..] = axes else { return self.run((y, residual), at) };
        for index in 0..y.shape()[axis] {
            let residual = match residual {
                Some(residual) => Some(residual.slice(axis, index..index + 1, 1)?),
                None => None,
            };
            let mut next = at;
            next[axis] += index;
            self.runs((y.view_mut().slice(axis, index..index + 1, 1)?, residual), next, axes)?;
        }
        Ok(())
    }

    /// A part whose pixels are one axis, on this thread.
    fn run(&self, (y, residual): Part<'_, T>, at: [usize; 5]) -> Result<()> {
        let Call { op, isa, x, kernel, stride, dilation, start, finish, .. } = *self.call;
        let ([images, n, depth, height, width], k) = (y.shape(), self.slab.depth());
        let (sizes, pixels) = ([images, depth, height, width], images * depth * height * width);
        let channels_last = [0, 2, 3, 4, 1];
        let residual = match residual {
            Some(residual) => Some(residual.permute(channels_last)?.reshape([pixels, n])?),
            None => None,
        };
        let bias = match finish.bias {
            Some(bias) => Some(Bias::PerColumn(bias.slice(0, at[1]..at[1] + n, 1)?)),
            None => None,
        };
        let epilogue = Epilogue { bias, residual, activation: finish.activation };
        let (l1, l2) = (machine::caches().l1d, machine::caches().l2);
        // Where weights stay in L2, patches do in L1; else many pixels share what comes from memory.
        let weights = k.saturating_mul(n).saturating_mul(size_of::<T>());
        let near = weights <= l2 / 2;
        let pitch = self.kc.min(k) + self.tile.lanes;
        let most = |room: usize| (room / size_of::<T>() / pitch).max(2 * self.tile.rows);
        // Rows of windows of one line that lie in place but for some at the ends.
        let x = x.permute(channels_last)?;
        let dense = x.select::<4>(0, 0)?.has_lines();
        let long = dense && kernel[..2] == [1; 2] && dilation[2] == 1 && width >= LONG * most(l2 / 4);
        let run = if long { width } else { pixels };
        let block = balanced(run, most(if near && !long { l1 / 2 } else { l2 / 4 }), self.tile.rows);
        let across = !near && block <= self.tile.most_across();
        let panel = self.kc * size_of::<T>();
        let most = (l2 / 2 / panel).max(self.tile.columns) / self.tile.columns * self.tile.columns;
        let nc = if across { n } else { balanced(n, most, self.tile.columns) };
        let order = if across { Order::Fetch } else { Order::Usual };
        let c = y.permute(channels_last)?.reshape([pixels, n])?;
        let store = Store::of::<T>(c.shape(), c.strides());
        let mut sums = Sums { rows: self, c, channel: at[1], epilogue, nc, store, order };
        if weights <= l2 / 4 * 3 && k > 0 && !long && self.windows(sizes, at, &mut sums)? {
            return Ok(());
        }
        let len = block.checked_mul(pitch).ok_or(Error::Alloc { op, bytes: usize::MAX })?;
        let mut rows = scratch::<T>(op, len)?;
        let first = [at[0], at[2], at[3], at[4]];
        for pixels in (0..pixels).step_by(run).flat_map(|row| depth_blocks(row..row + run, block)) {
            let in_place = if long { self.in_place(x, first, sizes, &pixels) } else { None };
            for steps in depth_blocks(0..k, self.kc) {
                let count = pixels.len();
                if in_place.is_none() && !steps.is_empty() {
                    let (steps, pixels, to) = (steps.clone(), pixels.clone(), &mut rows[..]);
                    let fill =
                        Fill { x, kernel, stride, dilation, start, first, sizes, pixels, steps, pitch, to };
                    T::dispatch(isa, fill);
                }
                let a = match in_place {
                    Some(patches) => patches.tile([0, steps.start], [count, steps.len()]),
                    None => TensorView::as_strided(&rows, [count, steps.len()], [pitch as isize, 1])?,
                };
                sums.add(Panels::Direct(a), &steps, pixels.clone());
            }
        }
        Ok(())
    }

    /// The patches of some pixels of a row of the output as they lie in a line of `x`, where these have no zeros.
    fn in_place<'x>(
        &self,
        x: TensorView<'x, T, 5>,
        first: [usize; 4],
        [_, depth, height, width]: [usize; 4],
        pixels: &Range<usize>,
    ) -> Option<TensorView<'x, T, 2>> {
        let Call { stride, start, .. } = *self.call;
        let [_, all @ .., channels] = x.shape();
        let (row, column) = (pixels.start / width, pixels.start % width);
        let of = [row / height / depth, row / height % depth, row % height, column];
        let image = x.select::<4>(0, first[0] + of[0]).ok()?;
        let place = |axis: usize| start[axis] + ((first[1 + axis] + of[1 + axis]) * stride[axis]) as isize;
        let line = image.line([within(place(0), all[0])?, within(place(1), all[1])?])?;
        let line = line.get(usize::try_from(place(2)).ok()?.checked_mul(channels)?..)?;
        let (apart, steps) = (stride[2].checked_mul(channels)?, self.slab.depth());
        let needed = apart.checked_mul(pixels.len() - 1)?.checked_add(steps)?;
        TensorView::as_strided(line.get(..needed)?, [pixels.len(), steps], [apart as isize, 1]).ok()
    }

    /// The same over windows of a copy with zeros around, row by row of the output; false where they are not for that.
    fn windows(&self, sizes: [usize; 4], at: [usize; 5], sums: &mut Sums<'_, T>) -> Result<bool> {
        let Call { op, isa, x, kernel, stride, dilation, start, .. } = *self.call;
        let ([images, depth, height, width], k) = (sizes, self.slab.depth());
        let touch = (1..3).all(|axis| stride[axis] <= kernel[axis]);
        if kernel[0] != 1 || kernel[1..] == [1; 2] || dilation != [1; 3] || !touch || width < LEAST {
            return Ok(false);
        }
        let x = x.permute([0, 2, 3, 4, 1])?;
        let channels = x.shape()[4];
        let span = |rows: usize| (rows - 1) * stride[1] + kernel[1];
        let line = ((width - 1) * stride[2] + kernel[2]).saturating_mul(channels);
        let room = machine::caches().l2 / 4 / size_of::<T>();
        if line.saturating_mul(span(1)) > room {
            return Ok(false);
        }
        let most = ((room / line - span(1)) / stride[1] + 1).min(height);
        // The last line ends in whole vectors.
        let mut copy = scratch::<T>(op, line * span(most) + self.tile.lanes)?;
        for (image, d) in (0..images).flat_map(|image| (0..depth).map(move |d| (image, d))) {
            let x = x.select::<4>(0, at[0] + image)?;
            for rows in blocks(0..height, most) {
                let place = |axis: usize, first: usize| {
                    start[axis] + ((at[2 + axis] + first) * stride[axis]) as isize
                };
                let place = [place(0, d), place(1, rows.start), place(2, 0)];
                T::dispatch(isa, Pad { x, place, lines: span(rows.len()), line, to: &mut copy });
                for steps in blocks(0..k, self.kc) {
                    for (i, row) in rows.clone().enumerate() {
                        let view = TensorView::as_strided(
                            &copy[i * stride[1] * line..],
                            [width, kernel[1], kernel[2] * channels],
                            [(stride[2] * channels) as isize, line as isize, 1],
                        )?;
                        let first = ((image * depth + d) * height + row) * width;
                        let runs = &Runs::new(&view, steps.start);
                        sums.add(Panels::Windows { view, runs }, &steps, first..first + width);
                    }
                }
            }
        }
        Ok(true)
    }
}

/// The sums of a part.
struct Sums<'s, T> {
    rows: &'s Rows<'s, T>,
    /// `[pixels, output channels]`, of which the first is `channel`.
    c: TensorViewMut<'s, T, 2>,
    channel: usize,
    epilogue: Epilogue<'s, T>,
    /// Output channels at a time.
    nc: usize,
    store: Store,
    order: Order,
}

impl<T: Element> Sums<'_, T> {
    /// Adds some steps of some pixels, whose patches are `a`.
    fn add(&mut self, a: Panels<'_, T>, steps: &Range<usize>, pixels: Range<usize>) {
        let Self { rows: &Rows { call, slab, tile, .. }, channel, ref epilogue, nc, store, order, .. } =
            *self;
        // The next pixels begin anew. Rows of windows all have the same steps before any has more.
        let following = if steps.end < slab.depth() { steps.end } else { 0 };
        let next = match (a, order) {
            (Panels::Direct(_), Order::Fetch) => slab.panel(following, channel),
            _ => None,
        };
        for columns in depth_blocks(0..self.c.shape()[1], nc) {
            let origin = [pixels.start, columns.start];
            let shape = [pixels.len(), columns.len()];
            let mut block = Block {
                a,
                b: slab.panels(steps.start, steps.len()).from(channel + columns.start),
                tile_rows: tile_rows(tile, shape),
                depth: steps.len(),
                alpha: T::ONE,
                beta: (steps.start > 0).then_some(T::ONE),
                epilogue: (steps.end == slab.depth() && !epilogue.is_empty()).then_some(epilogue),
                origin,
                next,
                store,
                order,
                ask: slab.far(),
                panel: &mut [],
                c: self.c.tile_mut(origin, shape),
            };
            T::block(call.isa, &mut block);
        }
    }
}

/// Outputs of a row from which on its windows are read in place: with fewer, tiles are too low.
pub(super) const LEAST: usize = 24;
/// Blocks of a row from which on most of them lie in place.
const LONG: usize = 4;

/// Copies lines of an image `[depth, height, width, channels]`, zeros around it.
struct Pad<'p, T> {
    x: TensorView<'p, T, 4>,
    /// Where the first pixel lies.
    place: [isize; 3],
    lines: usize,
    /// Elements of a line.
    line: usize,
    to: &'p mut [T],
}

impl<T: Element> SimdOp<T> for Pad<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { x, place: [d, h, w], lines, line, to } = self;
        let [depth, height, width, channels] = x.shape();
        let first = usize::try_from(w).unwrap_or(0).min(width);
        let before = (w.min(0).unsigned_abs().saturating_mul(channels)).min(line);
        let inside = ((width - first) * channels).min(line - before);
        for i in 0..lines {
            let to = &mut to[i * line..];
            let at = within(d, depth).and_then(|d| Some([d, within(h + i as isize, height)?]));
            let Some(at) = at else {
                copy(simd, &[], to, line);
                continue;
            };
            copy(simd, &[], to, before);
            if let Some(from) = x.line(at) {
                copy(simd, &from[first * channels..], &mut to[before..], inside);
            } else {
                let pixels = x.matrix_at(at);
                for (j, to) in to[before..][..inside].iter_mut().enumerate() {
                    *to = pixels.get([first + j / channels, j % channels]).copied().unwrap_or(T::ZERO);
                }
            }
            copy(simd, &[], &mut to[before + inside..], line - before - inside);
        }
    }
}

/// Copies some steps of the patches of some pixels.
struct Fill<'f, T> {
    /// `[images, depth, height, width, channels]`.
    x: TensorView<'f, T, 5>,
    kernel: [usize; 3],
    stride: [usize; 3],
    dilation: [usize; 3],
    start: [isize; 3],
    /// Image and position of the first pixel that is counted.
    first: [usize; 4],
    /// Images, depth, height and width of the pixels that are counted.
    sizes: [usize; 4],
    pixels: Range<usize>,
    steps: Range<usize>,
    /// Elements from row to row: a vector more than steps.
    pitch: usize,
    to: &'f mut [T],
}

impl<T: Element> SimdOp<T> for Fill<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { x, kernel, stride, dilation, start, first, sizes, pixels, steps, pitch, to } = self;
        let [_, depth, height, width, channels] = x.shape();
        // Taps of a row of the kernel, and their channels: neighbours where the image's rows are dense.
        let unit = kernel[2] * channels;
        let place = |axis: usize, output: usize, tap: usize| {
            start[axis] + (output * stride[axis] + tap * dilation[axis]) as isize
        };
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            let (line, w) = (pixel / sizes[3], pixel % sizes[3]);
            let count = (sizes[3] - w).min(pixels.end - pixel);
            let (h, rest) = (first[2] + line % sizes[2], line / sizes[2]);
            let (d, image) = (first[1] + rest % sizes[1], first[0] + rest / sizes[1]);
            let Ok(image) = x.select::<4>(0, image) else { return };
            let to = &mut to[(pixel - pixels.start) * pitch..];
            for row in steps.start / unit..steps.end.div_ceil(unit) {
                let part = [steps.start.max(row * unit), steps.end.min((row + 1) * unit)];
                let to = &mut to[part[0] - steps.start..];
                let [low, high] = part.map(|step| step - row * unit);
                let len = high - low;
                let at = within(place(0, d, row / kernel[1]), depth)
                    .and_then(|d| Some([d, within(place(1, h, row % kernel[1]), height)?]));
                let line = at.and_then(|at| image.line(at)).filter(|_| dilation[2] == 1);
                // Where the first of them is in its row of the image, for a window that begins in this column.
                let element =
                    |column: isize| column.saturating_mul(channels as isize).saturating_add(low as isize);
                // Pixels whose taps lie within the row, and whole vectors from them on.
                let mut inside = 0..0;
                if let Some(line) = line {
                    let room = len.next_multiple_of(S::LANES);
                    let step = stride[2].saturating_mul(channels);
                    let from = element(place(2, first[3] + w, 0));
                    let before = from.min(0).unsigned_abs().div_ceil(step).min(count);
                    let behind = (line.len() as isize - room as isize).saturating_sub(from);
                    let end = usize::try_from(behind.saturating_add(1)).unwrap_or(0).div_ceil(step);
                    inside = before..end.clamp(before, count);
                    if !inside.is_empty() {
                        let line = &line[(from + (before * step) as isize) as usize..];
                        for at in (0..room).step_by(S::LANES) {
                            let (mut from, mut to_at) = (at, before * pitch + at);
                            for _ in inside.clone() {
                                simd.store(simd.load(&line[from..]), &mut to[to_at..]);
                                (from, to_at) = (from + step, to_at + pitch);
                            }
                        }
                    }
                }
                for i in (0..inside.start).chain(inside.end..count) {
                    let to = &mut to[i * pitch..];
                    let left = place(2, first[3] + w + i, 0);
                    let Some(at) = at else {
                        copy(simd, &[], to, len);
                        continue;
                    };
                    let Some(line) = line else {
                        for (step, to) in (low..high).zip(to) {
                            let column = left + (step / channels * dilation[2]) as isize;
                            let at =
                                within(column, width).map(|column| [at[0], at[1], column, step % channels]);
                            *to = at.and_then(|at| image.get(at)).copied().unwrap_or(T::ZERO);
                        }
                        continue;
                    };
                    let from = element(left);
                    let before = from.min(0).unsigned_abs().min(len);
                    let from = line.get((from + before as isize) as usize..).unwrap_or(&[]);
                    copy(simd, &[], to, before);
                    let inside = from.len().min(len - before);
                    copy(simd, from, &mut to[before..], inside);
                    copy(simd, &[], &mut to[before + inside..], len - before - inside);
                }
            }
            pixel += count;
        }
    }
}

/// The first `len` elements, or zeros where there is nothing to copy, in whole vectors: what is too much is overwritten, or
/// not read.
#[inline(always)]
fn copy<T: Element, S: Simd<T>>(simd: S, from: &[T], to: &mut [T], len: usize) {
    for at in (0..len).step_by(S::LANES) {
        let vector = match from.get(at..) {
            Some(from) if from.len() >= S::LANES => simd.load(from),
            from => simd.load_partial(from.unwrap_or(&[])),
        };
        simd.store(vector, &mut to[at..]);
    }
}

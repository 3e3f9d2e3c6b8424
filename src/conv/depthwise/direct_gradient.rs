//! The gradient for 3 × 3 weights over images with channels last, read as they lie: lanes are channels, nothing is copied.
//!
//! ```text
//! for each part of 128 to 2048 outputs               tasks; of a part, some channels, where there are few parts
//!     for each row of outputs
//!         for each four columns                     their pixels and gradients: streams of channels, zeros where padding is
//!             for each vector of channels           nine sums for each input of a group, kept in L1 or L2, take in four products each
//! dW = sums of the parts, in order
//! ```
#![forbid(unsafe_code)]

use std::ops::Range;

use super::direct::{SIDE, TAPS, dense, has_kernel, of_group, of_input, pixels, within};
use super::{Gradient, Reach, put};
use crate::element::Element;
use crate::error::Result;
use crate::gemm::tile;
use crate::machine;
use crate::parallel;
use crate::simd::{self, Simd, SimdOp, Streams};
use crate::tensor::TensorViewMut;
use crate::workspace::{product, scratch};

/// Outputs of a part at most, a row more or less: rounding grows with the length of a chain of additions.
const CHAIN: usize = 2048;
/// Outputs of a part at least, where there are few parts: to add its sums to the others' takes as long as some outputs.
const LEAST: usize = 128;
/// Multiplications that a task has at least: some microseconds.
const GRAIN: usize = 1 << 19;

/// Whether the gradient is computed here: all pixels are neighbours, and windows overlap or touch.
pub(super) fn fits<T: Element>(gradient: &Gradient<'_, T>) -> bool {
    let Gradient { isa, x, dz, reach, multiplier, inputs, .. } = gradient;
    *multiplier == 1
        && has_kernel::<T>(*isa, *inputs)
        && reach.flat(x.shape()[2], dz.shape()[2])
        && dense((x.shape(), x.strides()))
        && dense((dz.shape(), dz.strides()))
}

/// In how many parts so many rows of outputs are cut, whatever the number of threads.
fn parts(rows: usize, width: usize) -> usize {
    let outputs = rows.saturating_mul(width);
    outputs.div_ceil(CHAIN).next_power_of_two().max(parallel::parts(outputs / LEAST)).min(rows)
}

/// The gradient `dw`.
pub(super) fn run<T: Element>(gradient: &Gradient<'_, T>, dw: TensorViewMut<'_, T, 5>) -> Result<()> {
    let Gradient { op, isa, dz, inputs, .. } = *gradient;
    let taps = TAPS * inputs;
    let ([images, _, depths, height, width], channels) = (dz.shape(), dw.shape()[0]);
    let (lanes, rows) = (tile::<T>(isa).lanes, images * depths * height);
    let count = parts(rows, width);
    let tasks = parallel::threads_for(dz.len().saturating_mul(taps), GRAIN);
    let len = product(op, &[taps, channels.next_multiple_of(lanes)])?;
    let mut zeros = scratch::<T>(op, channels)?;
    zeros.fill(T::ZERO);
    let mut sums = scratch::<T>(op, product(op, &[len, count])?)?;
    let all = Parts { gradient, zeros: &zeros, taps, lanes, rows, count };
    all.split(TensorViewMut::matrix(&mut sums, [count, len]), [0, 0], tasks)?;
    put(dw, parallel::total(&mut sums, len), lanes);
    Ok(())
}

/// All parts of the rows of outputs.
struct Parts<'p, T> {
    gradient: &'p Gradient<'p, T>,
    /// As many as there are channels.
    zeros: &'p [T],
    /// Sums of a channel.
    taps: usize,
    lanes: usize,
    rows: usize,
    count: usize,
}

impl<T: Element> Parts<'_, T> {
    /// The sums of some parts, of one alone perhaps over some vectors of channels: rows, the first of which begins at `at` in all.
    fn split(&self, mut sums: TensorViewMut<'_, T, 2>, at: [usize; 2], tasks: usize) -> Result<()> {
        let [count, len] = sums.shape();
        let (axis, unit) = if count > 1 { (0, 1) } else { (1, self.taps * self.lanes) };
        if tasks > 1 && sums.shape()[axis] > unit {
            return parallel::halves(sums, at, (axis, unit), tasks, &|part, at, tasks| {
                self.split(part, at, tasks)
            });
        }
        let channel = at[1] / self.taps;
        let zeros = &self.zeros[channel..self.zeros.len().min(channel + len / self.taps)];
        let (each, more) = (self.rows / self.count, self.rows % self.count);
        for i in 0..count {
            let rows = [0, 1].map(|next| at[0] + i + next).map(|part| each * part + more.min(part));
            let sums = sums.row_mut(i).unwrap_or(&mut []);
            T::dispatch(self.gradient.isa, Part { gradient: self.gradient, rows, channel, zeros, sums })?;
        }
        Ok(())
    }
}

/// Some rows of outputs, over as many channels as there are `zeros`.
struct Part<'p, T> {
    gradient: &'p Gradient<'p, T>,
    rows: [usize; 2],
    channel: usize,
    zeros: &'p [T],
    /// Of each vector of channels, for each input of their groups, the taps.
    sums: &'p mut [T],
}

impl<T: Element> SimdOp<T> for Part<'_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        match (self.gradient.reach.stride[2], self.gradient.inputs) {
            (1, 1) => self.add::<S, true, 1, 6>(simd),
            (1, _) => self.add::<S, false, 1, 6>(simd),
            (_, 1) => self.add::<S, true, 2, 9>(simd),
            _ => self.add::<S, false, 2, 9>(simd),
        }
    }
}

impl<T: Element> Part<'_, T> {
    /// `ALONE`: groups have one channel. `SPAN`: pixels under a row of [`SIDE`] windows.
    #[inline(always)]
    fn add<S: Simd<T>, const ALONE: bool, const STRIDE: usize, const SPAN: usize>(
        self,
        simd: S,
    ) -> Result<()> {
        let Self {
            gradient: &Gradient { x, dz, ref reach, inputs, .. },
            rows: [first, end],
            channel,
            zeros,
            sums,
        } = self;
        let order = [0, 2, 3, 4, 1];
        let (x, dz) = (x.permute(order)?, dz.permute(order)?);
        let [_, depths, height, width, all] = dz.shape();
        let [_, _, rows, columns, _] = x.shape();
        sums.fill(T::ZERO);
        // What caches hold comes in time by itself, and asking for it takes longer.
        let far = (x.len() + dz.len()).saturating_mul(size_of::<T>()) > machine::caches().share() / 4;
        for at in first..end {
            let (image, d, h) = (at / height / depths, at / height % depths, at % height);
            let (x, dz) = (x.select::<4>(0, image)?, dz.select::<4>(0, image)?);
            let Some(line) = dz.line([d, h]) else { continue };
            let below = if far && h + 1 < height { dz.line([d, h + 1]) } else { None };
            let above = reach.start[1] + (h * reach.stride[1]) as isize;
            let x_line =
                |i: usize| x.line([d, within(above.wrapping_add((i * reach.dilation[1]) as isize), rows)?]);
            let lines = [x_line(0), x_line(1), x_line(2)];
            let next: [_; STRIDE] = std::array::from_fn(|i| x_line(3 + i).filter(|_| far));
            let (dz, sums) = (line, &mut *sums);
            let mut windows = Windows::<T, STRIDE, SPAN> {
                lines,
                dz,
                next,
                below,
                zeros,
                all,
                channel,
                inputs,
                columns,
                reach,
                column: 0,
                sums,
            };
            // Sums of many inputs stay in L1 for a row, those of a few for all channels of some columns.
            let some = if inputs >= 16 { S::LANES } else { zeros.len() };
            for first in (0..zeros.len()).step_by(some) {
                let part = first..zeros.len().min(first + some);
                windows.column = 0;
                while windows.column < width {
                    let side = SIDE.min(width - windows.column);
                    if side == SIDE {
                        windows.add::<S, ALONE>(simd, part.clone());
                    } else {
                        windows.add_few::<S, ALONE>(simd, part.clone(), side);
                    }
                    windows.column += side;
                }
            }
        }
        Ok(())
    }
}

/// Windows of a row of outputs.
struct Windows<'w, T, const STRIDE: usize, const SPAN: usize> {
    /// Pixels under the three rows of taps; none in the padding.
    lines: [Option<&'w [T]>; 3],
    dz: &'w [T],
    /// What the next row of outputs reads besides, where the height has the stride of the width and no dilation, to ask for.
    next: [Option<&'w [T]>; STRIDE],
    below: Option<&'w [T]>,
    zeros: &'w [T],
    /// Channels of a pixel, and the first of those of this part, as many as there are `zeros`.
    all: usize,
    channel: usize,
    /// Of a group.
    inputs: usize,
    columns: usize,
    reach: &'w Reach,
    /// Of the first output that has not been added.
    column: usize,
    /// Of each vector of channels, for each input of their groups, the taps.
    sums: &'w mut [T],
}

impl<T: Element, const STRIDE: usize, const SPAN: usize> Windows<'_, T, STRIDE, SPAN> {
    /// Adds, of some channels, which begin with a whole vector, [`SIDE`] outputs.
    #[inline(always)]
    fn add<S: Simd<T>, const ALONE: bool>(&mut self, simd: S, part: Range<usize>) {
        const { assert!(SPAN == (SIDE - 1) * STRIDE + 3) };
        let (all, count) = (self.all, self.zeros.len());
        let left = self.reach.start[2] + (self.column * STRIDE) as isize;
        let mut lines = Streams::<T, SPAN, 3>::same(self.zeros);
        let inside = within(left, (self.columns + 1).saturating_sub(SPAN));
        for (row, line) in self.lines.into_iter().enumerate() {
            pixels(&mut lines, row, line, inside, (left, self.columns), (self.channel, all), self.zeros);
        }
        let mut dz = Streams::<T, SIDE>::none();
        dz.apart(&self.dz[self.column * all + self.channel..], all, count);
        // Code of its own where what has just been looked up stays in registers: between several kernels it goes through memory.
        if const { ALONE } {
            self.take::<S, 1>(simd, part, (&lines, &dz));
        } else {
            of_group!(S, self.inputs, INPUTS => self.take::<S, INPUTS>(simd, part, (&lines, &dz)), 2 4 8 16);
        }
    }

    /// The same for the `side` outputs at the end of a row, fewer than [`SIDE`].
    #[inline(always)]
    fn add_few<S: Simd<T>, const ALONE: bool>(&mut self, simd: S, part: Range<usize>, side: usize) {
        let (all, zeros) = (self.all, self.zeros);
        let left = self.reach.start[2] + (self.column * STRIDE) as isize;
        let mut lines = Streams::<T, SPAN, 3>::same(zeros);
        for (row, line) in self.lines.into_iter().enumerate() {
            pixels(&mut lines, row, line, None, (left, self.columns), (self.channel, all), zeros);
        }
        let mut dz = Streams::<T, SIDE>::same(zeros);
        for i in 0..side {
            dz.one(0, i, &self.dz[(self.column + i) * all + self.channel..]);
        }
        if const { ALONE } {
            self.take_few::<S, 1>(simd, part, (&lines, &dz), side);
        } else {
            of_group!(S, self.inputs, INPUTS => self.take_few::<S, INPUTS>(simd, part, (&lines, &dz), side), 2 4 8 16);
        }
    }

    /// Adds to the sums of some channels.
    #[inline(always)]
    fn take<S: Simd<T>, const INPUTS: usize>(
        &mut self,
        simd: S,
        part: Range<usize>,
        (lines, dz): (&Streams<'_, T, SPAN, 3>, &Streams<'_, T, SIDE>),
    ) {
        let count = self.zeros.len();
        for first in part.step_by(S::LANES) {
            self.ahead(first, SIDE);
            let taps = INPUTS * TAPS;
            let sums = &mut self.sums[first * taps..][..taps * S::LANES];
            let whole = first + S::LANES <= count;
            let dz = if whole { dz.load(simd, first) } else { dz.load_partial(simd, first) };
            for row in 0..3 {
                let x = if whole {
                    lines.load_row(simd, row, first)
                } else {
                    lines.load_row_partial(simd, row, first)
                };
                for input in 0..INPUTS {
                    let x = of_input::<T, S, INPUTS, SPAN>(simd, x, input);
                    let sums = &mut sums[(input * TAPS + 3 * row) * S::LANES..][..3 * S::LANES];
                    for (t, sum) in sums.chunks_exact_mut(S::LANES).enumerate() {
                        let mut total = simd.load(sum);
                        for (i, &dz) in dz.iter().enumerate() {
                            total = simd.mul_add(dz, x[i * STRIDE + t], total);
                        }
                        simd.store(total, sum);
                    }
                }
            }
        }
    }

    /// The same for `side` outputs. What they have in common is read for each of them: kernels for each number of outputs would be
    /// as much code again as all others, for some per cent of the time.
    #[inline(always)]
    fn take_few<S: Simd<T>, const INPUTS: usize>(
        &mut self,
        simd: S,
        part: Range<usize>,
        (lines, dz): (&Streams<'_, T, SPAN, 3>, &Streams<'_, T, SIDE>),
        side: usize,
    ) {
        for first in part.step_by(S::LANES) {
            self.ahead(first, side);
            let taps = INPUTS * TAPS;
            let sums = &mut self.sums[first * taps..][..taps * S::LANES];
            for (place, sums) in sums.chunks_exact_mut(3 * S::LANES).enumerate() {
                let (input, row) = (place / 3, place % 3);
                let mut totals =
                    [simd.load(sums), simd.load(&sums[S::LANES..]), simd.load(&sums[2 * S::LANES..])];
                for i in 0..side {
                    let dz = dz.load_one(simd, 0, i, first);
                    for t in 0..3 {
                        let x = [lines.load_one(simd, row, i * STRIDE + t, first)];
                        let [x] = of_input::<T, S, INPUTS, 1>(simd, x, input);
                        totals[t] = simd.mul_add(dz, x, totals[t]);
                    }
                }
                for (total, sum) in totals.into_iter().zip(sums.chunks_exact_mut(S::LANES)) {
                    simd.store(total, sum);
                }
            }
        }
    }

    /// Asks for what is read below these windows.
    #[inline(always)]
    fn ahead(&self, first: usize, side: usize) {
        let place = |column: usize| column * self.all + self.channel + first;
        for next in self.next.iter().flatten() {
            for i in 0..side * STRIDE {
                simd::prefetch(next.as_ptr().wrapping_add(place(self.column * STRIDE + i)));
            }
        }
        if let Some(below) = self.below {
            for i in 0..side {
                simd::prefetch(below.as_ptr().wrapping_add(place(self.column + i)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_are_many_and_neither_short_nor_long() {
        let of = [(7, 7), (14, 14), (56, 7), (28, 28), (56, 56), (448, 56), (3, 5000), (1, 5000)];
        assert_eq!(of.map(|(rows, width)| parts(rows, width)), [1, 1, 2, 4, 8, 16, 3, 1]);
    }
}

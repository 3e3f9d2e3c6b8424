//! The gradient for 3 × 3 weights over images with channels last, read as they lie: lanes are channels, nothing is copied.
//!
//! ```text
//! for each row of outputs
//!     for each four columns                 their pixels and gradients: streams of channels, zeros where padding is
//!         for each vector of channels       nine sums, kept in L1 or L2, take in four products each
//! now and then: totals += sums
//! ```
#![forbid(unsafe_code)]

use super::direct::{dense, pixels, within};
use super::{Gradient, Reach};
use crate::element::Element;
use crate::error::Result;
use crate::machine;
use crate::simd::{self, Simd, Streams};
use crate::tensor::TensorViewMut;
use crate::workspace::scratch;

const TAPS: usize = 9;

/// Outputs after which the sums are added to the totals: rounding grows with the length of a chain of additions.
const CHAIN: usize = 2048;

/// Whether the gradient is computed here: all pixels are neighbours, and windows overlap or touch.
pub(super) fn fits<T: Element>(gradient: &Gradient<'_, T>) -> bool {
    let Gradient { x, dz, reach, multiplier, .. } = gradient;
    *multiplier == 1
        && reach.flat(x.shape()[2], dz.shape()[2])
        && dense((x.shape(), x.strides()))
        && dense((dz.shape(), dz.strides()))
}

/// The part `dw` of the gradient, which begins with `channel`.
#[inline(always)]
pub(super) fn run<T: Element, S: Simd<T>>(
    simd: S,
    gradient: &Gradient<'_, T>,
    dw: TensorViewMut<'_, T, 5>,
    channel: usize,
) -> Result<()> {
    if gradient.reach.stride[2] == 1 {
        rows::<T, S, 1, 6, 5, 4>(simd, gradient, dw, channel)
    } else {
        rows::<T, S, 2, 9, 7, 5>(simd, gradient, dw, channel)
    }
}

/// `FOUR`, `THREE`, `TWO`: pixels under that many windows.
#[inline(always)]
fn rows<
    T: Element,
    S: Simd<T>,
    const STRIDE: usize,
    const FOUR: usize,
    const THREE: usize,
    const TWO: usize,
>(
    simd: S,
    gradient: &Gradient<'_, T>,
    mut dw: TensorViewMut<'_, T, 5>,
    channel: usize,
) -> Result<()> {
    let Gradient { op, x, dz, reach, .. } = *gradient;
    let order = [0, 2, 3, 4, 1];
    let (x, dz) = (x.permute(order)?, dz.permute(order)?);
    let ([images, depths, height, width, all], count) = (dz.shape(), dw.shape()[0]);
    let [_, _, rows, columns, _] = x.shape();
    let mut zeros = scratch::<T>(op, count)?;
    zeros.fill(T::ZERO);
    let mut sums = scratch::<T>(op, TAPS * count.next_multiple_of(S::LANES))?;
    sums.fill(T::ZERO);
    let mut totals = scratch::<T>(op, sums.len())?;
    totals.fill(T::ZERO);
    let mut added = 0;
    // What caches hold comes in time by itself, and asking for it takes longer.
    let far = (x.len() + dz.len()).saturating_mul(size_of::<T>()) > machine::caches().share() / 4;
    for at in 0..images * depths * height {
        let (image, d, h) = (at / height / depths, at / height % depths, at % height);
        let (x, dz) = (x.select::<4>(0, image)?, dz.select::<4>(0, image)?);
        let Some(line) = dz.line([d, h]) else { continue };
        let below = if far && h + 1 < height { dz.line([d, h + 1]) } else { None };
        let above = reach.start[1] + (h * reach.stride[1]) as isize;
        let x_line = |i: usize| x.line([d, within(above + (i * reach.dilation[1]) as isize, rows)?]);
        let lines = [x_line(0), x_line(1), x_line(2)];
        let next: [_; STRIDE] = std::array::from_fn(|i| x_line(3 + i).filter(|_| far));
        let mut windows = Windows {
            lines,
            dz: line,
            next,
            below,
            zeros: &zeros,
            all,
            channel,
            columns,
            reach: &reach,
            column: 0,
            sums: &mut sums,
        };
        while windows.column < width {
            windows.column += match width - windows.column {
                1 => windows.add::<S, 1, 3>(simd),
                2 => windows.add::<S, 2, TWO>(simd),
                3 => windows.add::<S, 3, THREE>(simd),
                _ => windows.add::<S, 4, FOUR>(simd),
            };
        }
        added += width;
        if added >= CHAIN {
            totals.iter_mut().zip(&mut sums[..]).for_each(|(total, sum)| *total += std::mem::take(sum));
            added = 0;
        }
    }
    for (c, tap) in (0..count).flat_map(|c| (0..TAPS).map(move |tap| (c, tap))) {
        if let Some(to) = dw.get_mut([c, 0, 0, tap / 3, tap % 3]) {
            let at = (c / S::LANES * TAPS + tap) * S::LANES + c % S::LANES;
            *to = totals[at] + sums[at];
        }
    }
    Ok(())
}

/// Windows of a row of outputs.
struct Windows<'w, T, const STRIDE: usize> {
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
    columns: usize,
    reach: &'w Reach,
    /// Of the first output that has not been added.
    column: usize,
    /// Of each vector of channels the taps.
    sums: &'w mut [T],
}

impl<T: Element, const STRIDE: usize> Windows<'_, T, STRIDE> {
    /// Adds `SIDE` outputs, whose windows have `SPAN` columns, and gives back how many.
    #[inline(always)]
    fn add<S: Simd<T>, const SIDE: usize, const SPAN: usize>(&mut self, simd: S) -> usize {
        const { assert!(SPAN == (SIDE - 1) * STRIDE + 3) };
        let (all, count) = (self.all, self.zeros.len());
        let left = self.reach.start[2] + (self.column * STRIDE) as isize;
        let mut lines = [Streams::<T, SPAN>::none(); 3];
        let inside = within(left, (self.columns + 1).saturating_sub(SPAN));
        for (to, line) in lines.iter_mut().zip(self.lines) {
            pixels(to, line, inside, (left, self.columns), (self.channel, all), self.zeros);
        }
        let mut dz = Streams::<T, SIDE>::none();
        dz.apart(&self.dz[self.column * all + self.channel..], all, count);
        for first in (0..count).step_by(S::LANES) {
            self.ahead::<SIDE>(first);
            let sums = &mut self.sums[first * TAPS..][..TAPS * S::LANES];
            let whole = first + S::LANES <= count;
            let dz = if whole { dz.load(simd, first) } else { dz.load_partial(simd, first) };
            for (line, sums) in lines.iter().zip(sums.chunks_exact_mut(3 * S::LANES)) {
                let x = if whole { line.load(simd, first) } else { line.load_partial(simd, first) };
                for (t, sum) in sums.chunks_exact_mut(S::LANES).enumerate() {
                    let mut total = simd.load(sum);
                    for (i, &dz) in dz.iter().enumerate() {
                        total = simd.mul_add(dz, x[i * STRIDE + t], total);
                    }
                    simd.store(total, sum);
                }
            }
        }
        SIDE
    }

    /// Asks for what is read below these windows.
    #[inline(always)]
    fn ahead<const SIDE: usize>(&self, first: usize) {
        let place = |column: usize| column * self.all + self.channel + first;
        for next in self.next.iter().flatten() {
            for i in 0..SIDE * STRIDE {
                simd::prefetch(next.as_ptr().wrapping_add(place(self.column * STRIDE + i)));
            }
        }
        if let Some(below) = self.below {
            for i in 0..SIDE {
                simd::prefetch(below.as_ptr().wrapping_add(place(self.column + i)));
            }
        }
    }
}

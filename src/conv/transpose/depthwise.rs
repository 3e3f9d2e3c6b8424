//! Depthwise 3 × 3 with stride 2, the gradient for its input, over images with channels last, read and written as they lie: lanes
//! are channels, nothing is copied.
//!
//! With position j + p = 2 i + r along an axis, r = 0 takes taps 0 and 2 of i and i − 1, r = 1 tap 1 of i.
//!
//! ```text
//! for each row of positions                 one row of Z under it, or two
//!     for each four columns of Z, and the one before them: streams of channels, zeros where there are none
//!         for each vector of channels: eight positions, of both residues in turn
//! ```
#![forbid(unsafe_code)]

use super::Scatter;
use crate::conv::depthwise::{TAPS, dense, packed_len, pixels, row_of, taps_of, vectors_of, within};
use crate::conv::weights::Filter;
use crate::element::Element;
use crate::error::Result;
use crate::gemm::GRAIN;
use crate::parallel;
use crate::simd::{Simd, SimdOp, Streams};
use crate::tensor::TensorViewMut;
use crate::workspace::scratch;

/// Columns of Z side by side, and with the one before them.
const SIDE: usize = 4;
const SPAN: usize = SIDE + 1;

pub(super) struct Depthwise<'s, T> {
    scatter: &'s Scatter<'s, T>,
}

impl<'s, T: Element> Depthwise<'s, T> {
    /// `None` where `y` is better computed otherwise.
    pub(super) fn new(scatter: &'s Scatter<'s, T>, y: &TensorViewMut<'_, T, 5>) -> Option<Self> {
        let Scatter { z, w, groups, sliding, .. } = scatter;
        let fits = sliding.kernel == [1, 3, 3]
            && sliding.stride == [1, 2, 2]
            && sliding.dilation == [1; 3]
            && sliding.padding[0] == [0; 2]
            && [z.shape()[1], z.shape()[2]] == [y.shape()[1], y.shape()[2]]
            && w.shape()[..2] == [*groups, 1]
            && *groups > 1
            && scatter.is_plain()
            && dense((z.shape(), z.strides()))
            && dense((y.shape(), y.strides()));
        fits.then_some(Self { scatter })
    }

    /// Computes `y`.
    pub(super) fn run(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let Scatter { op, w, groups, .. } = *self.scatter;
        let mut weights = scratch::<T>(op, packed_len(groups, 1, TAPS).unwrap_or(usize::MAX))?;
        vectors_of(&Filter::new(w), 0..groups, [1; 2], TAPS, &mut weights)?;
        let mut zeros = scratch::<T>(op, groups)?;
        zeros.fill(T::ZERO);
        let work = y.len().saturating_mul(TAPS) / 4;
        self.split(&weights, &zeros, y, [0; 5], parallel::threads_for(work, GRAIN))
    }

    fn split(
        &self,
        weights: &[T],
        zeros: &[T],
        y: TensorViewMut<'_, T, 5>,
        at: [usize; 5],
        tasks: usize,
    ) -> Result<()> {
        let axis = [0, 2, 3].into_iter().find(|&axis| y.shape()[axis] > 1).filter(|_| tasks > 1);
        let Some(axis) = axis else {
            let rows = Rows { scatter: self.scatter, weights, zeros, y, at };
            return T::dispatch(self.scatter.isa, rows);
        };
        parallel::halves(y, at, (axis, 1), tasks, &|part, at, tasks| {
            self.split(weights, zeros, part, at, tasks)
        })
    }
}

/// The part `y` of the positions, whose first is `at` among them.
struct Rows<'r, T> {
    scatter: &'r Scatter<'r, T>,
    weights: &'r [T],
    zeros: &'r [T],
    y: TensorViewMut<'r, T, 5>,
    at: [usize; 5],
}

impl<T: Element> SimdOp<T> for Rows<'_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        let Self { scatter, weights, zeros, y, at } = self;
        let [_, before_h, before_w] = scatter.sliding.padding.map(|[before, _]| before);
        let channels_last = [0, 2, 3, 4, 1];
        let z = scatter.z.permute(channels_last)?;
        let mut y = y.permute(channels_last)?;
        let [images, depths, height, width, channels] = y.shape();
        let [_, _, rows, columns, _] = z.shape();
        for index in 0..images * depths * height {
            let (image, d, h) = (index / height / depths, index / height % depths, index % height);
            let z = z.select::<4>(0, at[0] + image)?;
            let mut y = y.view_mut().select::<4>(0, image)?;
            let Some(to) = y.line_mut([d, h]) else { continue };
            let place = at[3] + h + before_h;
            let line = |tap: usize| {
                let row = place.checked_sub(tap).filter(|row| row % 2 == 0 && row / 2 < rows)? / 2;
                Some((tap, z.line([at[2] + d, row])?))
            };
            // Two at most.
            let lines = [line(0), line(1), line(2)];
            let count = lines.iter().flatten().count();
            // Each window sets what it reads of them.
            let mut under = [(0, Streams::<T, SPAN>::same(zeros)); 2];
            let mut column = before_w / 2;
            while 2 * column < width + before_w {
                let left = column as isize - 1;
                let inside = within(left, (columns + 1).saturating_sub(SPAN));
                for ((tap, streams), &(of, line)) in under.iter_mut().zip(lines.iter().flatten()) {
                    *tap = of;
                    pixels(streams, 0, Some(line), inside, (left, columns), (0, channels), zeros);
                }
                let positions = Positions {
                    under: &under[..count],
                    weights,
                    channels,
                    width,
                    first: 2 * column as isize - before_w as isize,
                };
                positions.run(simd, to);
                column += SIDE;
            }
        }
        Ok(())
    }
}

/// Positions side by side, two for each of [`SIDE`] columns of Z.
struct Positions<'p, T> {
    /// Rows of taps, and what they meet.
    under: &'p [(usize, Streams<'p, T, SPAN>)],
    weights: &'p [T],
    channels: usize,
    /// Positions of a row, and the first of these, which may be the one before the row.
    width: usize,
    first: isize,
}

impl<T: Element> Positions<'_, T> {
    #[inline(always)]
    fn run<S: Simd<T>>(&self, simd: S, to: &mut [T]) {
        let Self { under, weights, channels, width, first } = *self;
        let whole = channels / S::LANES * S::LANES;
        let inside = within(first, (width + 1).saturating_sub(2 * SIDE));
        for at in (0..channels).step_by(S::LANES) {
            let taps = taps_of::<T, S, 1>(weights, at);
            let mut sums = [simd.splat(T::ZERO); 2 * SIDE];
            for (row, streams) in under {
                let x = if at < whole { streams.load(simd, at) } else { streams.load_partial(simd, at) };
                let taps = row_of(simd, taps, *row, 0);
                for i in 0..SIDE {
                    sums[2 * i] = simd.mul_add(taps[0], x[i + 1], sums[2 * i]);
                    sums[2 * i] = simd.mul_add(taps[2], x[i], sums[2 * i]);
                    sums[2 * i + 1] = simd.mul_add(taps[1], x[i + 1], sums[2 * i + 1]);
                }
            }
            if let (Some(first), true) = (inside, at < whole) {
                simd.store_apart(sums, &mut to[first * channels + at..], channels);
                continue;
            }
            for (i, &sum) in sums.iter().enumerate() {
                if let Some(position) = within(first + i as isize, width) {
                    let to = &mut to[position * channels..][at..channels.min(at + S::LANES)];
                    simd.store_partial(sum, to);
                }
            }
        }
    }
}

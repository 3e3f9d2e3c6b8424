//! Cache lines that are asked for while sums are computed: pixels far apart in memory are no stream that the processor sees.
#![forbid(unsafe_code)]

use crate::conv::pixels::Pixels;
use crate::simd::{CACHE_LINE, prefetch};
use crate::tensor::TensorView;

/// Pixels whose channels are neighbours: those of the next box, and where the next row of sums goes.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a, T> {
    /// `[height, width, channels]`: those of a block, and how many have been asked for.
    pixels: Option<TensorView<'a, T, 3>>,
    asked: usize,
    /// How many are asked for with each row of sums.
    share: usize,
    /// Where the next row of sums goes, and how far it is to the row below and to the next column. Never read.
    row: *const T,
    steps: [isize; 2],
    columns: usize,
}

impl<'a, T> Ahead<'a, T> {
    pub(super) fn nothing() -> Self {
        Self { pixels: None, asked: 0, share: 0, row: std::ptr::null(), steps: [0; 2], columns: 0 }
    }

    /// What lies in `x`, `[channels, depth, height, width]`, under some pixels of the first depth, while so many rows are computed.
    pub(super) fn pixels(x: TensorView<'a, T, 4>, pixels: &Pixels, rows: usize) -> Self {
        let [_, depth, height, width] = x.shape();
        let inside = |at: isize, count: usize, size: usize| {
            let clamp = |at: isize| usize::try_from(at).unwrap_or(0).min(size);
            clamp(at)..clamp(at + count as isize)
        };
        let view = || {
            let d = usize::try_from(pixels.depth[0]).ok().filter(|&d| d < depth)?;
            let x = x.permute([1, 2, 3, 0]).ok()?.select::<3>(0, d).ok()?;
            let x = x.slice(0, inside(pixels.at[0], pixels.rows, height), 1).ok()?;
            let x = x.slice(1, inside(pixels.at[1], pixels.columns, width), 1).ok()?;
            x.slice(2, pixels.channel..pixels.channel + pixels.channels, 1).ok()
        };
        let pixels = view();
        let count = pixels.map_or(0, |x| x.shape()[0] * x.shape()[1]);
        Self { pixels, share: count.div_ceil(rows.max(1)), ..Self::nothing() }
    }

    /// Rows of sums go to `y`, `[channels, depth, height, width]`, so many columns from `at` on.
    pub(super) fn go_to(&mut self, y: TensorView<'_, T, 4>, at: [usize; 4], columns: usize) {
        let [.., below, beside] = y.strides();
        (self.row, self.columns) = y.get(at).map_or((self.row, 0), |to| (std::ptr::from_ref(to), columns));
        self.steps = [below, beside];
    }

    /// Asks for a row, and for some pixels.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        for i in 0..self.columns as isize {
            prefetch(self.row.wrapping_offset(i * self.steps[1]));
        }
        self.row = self.row.wrapping_offset(self.steps[0]);
        let Some(x) = self.pixels else { return };
        let ([height, width, channels], [line, pixel, _]) = (x.shape(), x.strides());
        let end = (self.asked + self.share).min(height * width);
        while self.asked < end {
            let (i, j) = (self.asked / width, self.asked % width);
            let first = x.as_ptr().wrapping_offset(i as isize * line + j as isize * pixel);
            for at in (0..channels).step_by(CACHE_LINE / size_of::<T>()) {
                prefetch(first.wrapping_add(at));
            }
            self.asked += 1;
        }
    }
}

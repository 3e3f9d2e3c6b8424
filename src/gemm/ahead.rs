//! Cache lines that are asked for some at a time, while something else is computed.
#![forbid(unsafe_code)]

use crate::simd;
use crate::tensor::TensorView;

/// Steps of depth between two questions.
const STEPS: usize = 8;

/// The cache lines of a matrix with contiguous rows or columns, run after run.
pub(super) struct Ahead<T> {
    ptr: *const T,
    /// Contiguous runs, their distance, and the lines of each.
    runs: usize,
    stride: isize,
    lines: usize,
    run: usize,
    line: usize,
    /// How many lines are asked for at a time.
    share: usize,
}

impl<T> Ahead<T> {
    /// No lines.
    #[inline(always)]
    pub(super) fn nothing() -> Self {
        Self { ptr: std::ptr::null(), runs: 0, stride: 0, lines: 0, run: 0, line: 0, share: 0 }
    }

    /// All lines, while so many tiles of this depth are computed.
    #[inline(always)]
    pub(super) fn new(view: TensorView<'_, T, 2>, tiles: usize, depth: usize) -> Self {
        let ([mut runs, mut len], [mut stride, step]) = (view.shape(), view.strides());
        if step != 1 {
            (runs, len, stride) = (len, runs, step);
        }
        let lines = (len * size_of::<T>()).div_ceil(simd::CACHE_LINE);
        let share = (runs * lines).div_ceil((tiles * depth.div_ceil(STEPS)).max(1));
        Self { ptr: view.as_ptr(), runs, stride, lines, run: 0, line: 0, share }
    }

    /// Steps until [`ask`](Ahead::ask) is called.
    #[inline(always)]
    pub(super) fn steps(&self) -> usize {
        if self.share == 0 { usize::MAX } else { STEPS }
    }

    /// Asks for the next lines.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        for _ in 0..self.share {
            if self.run == self.runs {
                self.share = 0;
                return;
            }
            let line = (self.line * (simd::CACHE_LINE / size_of::<T>())) as isize;
            simd::prefetch(self.ptr.wrapping_offset(self.run as isize * self.stride + line));
            self.line += 1;
            if self.line == self.lines {
                (self.line, self.run) = (0, self.run + 1);
            }
        }
    }
}

//! Cache lines that are asked for some at a time, while something else is computed.
#![forbid(unsafe_code)]

use crate::machine;
use crate::simd;
use crate::tensor::TensorView;

/// Steps of depth between two questions.
const STEPS: usize = 8;

/// The cache lines of a matrix with contiguous rows or columns, run after run.
pub(super) struct Ahead<T> {
    /// Contiguous runs that are left, their distance, and the lines of each.
    runs: usize,
    stride: isize,
    lines: usize,
    /// An element of the first line of the next of them, all of which is asked for.
    next: *const T,
    /// The next line of this one, and how many are left of it.
    line: *const T,
    left: usize,
    /// How many lines are asked for at a time.
    share: usize,
    /// Into L2 alone.
    l2: bool,
}

impl<T> Ahead<T> {
    /// No lines.
    #[inline(always)]
    pub(super) fn nothing() -> Self {
        let none = std::ptr::null();
        Self { runs: 0, stride: 0, lines: 0, next: none, line: none, left: 0, share: 0, l2: false }
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
        // A run that begins within a line shares it with what was read before, if the matrix goes on there.
        let next = view.as_ptr().wrapping_byte_add(simd::CACHE_LINE - size_of::<T>());
        // Packed panels are long enough to wait in L2.
        let l2 = runs == 1 && machine::caches().distant();
        Self { runs, stride, lines, next, line: next, left: 0, share, l2 }
    }

    /// The same of the next panel of B, or what comes after the last: L1 is full of the one that is being read.
    #[inline(always)]
    pub(super) fn panel(view: TensorView<'_, T, 2>, tiles: usize, depth: usize) -> Self {
        Self { l2: machine::caches().distant(), ..Self::new(view, tiles, depth) }
    }

    /// Steps until [`ask`](Ahead::ask) is called.
    #[inline(always)]
    pub(super) fn steps(&self) -> usize {
        if self.share == 0 { usize::MAX } else { STEPS }
    }

    /// Asks for the next lines.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        let mut wanted = self.share;
        while wanted > 0 {
            if self.left == 0 {
                if self.runs == 0 {
                    self.share = 0;
                    return;
                }
                (self.runs, self.line, self.left) = (self.runs - 1, self.next, self.lines);
                self.next = self.next.wrapping_offset(self.stride);
            }
            let some = wanted.min(self.left);
            for _ in 0..some {
                if self.l2 {
                    simd::prefetch_l2(self.line)
                } else {
                    simd::prefetch(self.line)
                }
                self.line = self.line.wrapping_byte_add(simd::CACHE_LINE);
            }
            (self.left, wanted) = (self.left - some, wanted - some);
        }
    }
}

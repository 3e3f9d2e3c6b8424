//! Operands as panels.
//!
//! Both operands are seen alike: as *lines* (rows of A, columns of B) that are `depth` elements long. A panel
//! holds `width` neighbouring lines over a block of depth, step by step: element `[p · width + i]` is
//! line `i` at step `p`.
//!
//! ```text
//!            depth →                     panel, width 3:  a0 b0 c0  a1 b1 c1  a2 b2 c2 …
//!   line a   a0 a1 a2 …
//!   line b   b0 b1 b2 …
//!   line c   c0 c1 c2 …
//! ```
#![forbid(unsafe_code)]

use std::ops::Range;

use super::blocking::NEAR;
use crate::element::Element;
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{self, Simd, SimdOp};
use crate::tensor::TensorView;

/// A matrix that fills panels. It need not exist in memory: windows of an image are one too.
pub(crate) trait PanelSource<T: Element>: Copy + Sync {
    /// Rows of A or columns of B.
    fn lines(&self) -> usize;

    /// Elements of a line.
    fn depth(&self) -> usize;

    /// Fills a panel of `width` lines with these lines, at most `width`, over these steps; 0 where lines
    /// are missing.
    fn fill<S: Simd<T>>(
        &self,
        simd: S,
        lines: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [T],
    );

    /// The lines and steps as a matrix in memory, where the source is one.
    fn direct(&self) -> Option<TensorView<'_, T, 2>>;
}

/// `[lines, depth]`, any strides.
impl<T: Element> PanelSource<T> for TensorView<'_, T, 2> {
    fn lines(&self) -> usize {
        self.shape()[0]
    }

    fn depth(&self) -> usize {
        self.shape()[1]
    }

    fn direct(&self) -> Option<TensorView<'_, T, 2>> {
        Some(*self)
    }

    #[inline(always)]
    fn fill<S: Simd<T>>(
        &self,
        simd: S,
        lines: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [T],
    ) {
        let steps = self.transpose();
        let count = lines.len();
        if steps.strides()[1] == 1 {
            // Lines are neighbours in memory: each step is one copy.
            let from = |step: usize| steps.row(step).map_or(&[][..], |row| &row[lines.start..]);
            if count == width && width.is_multiple_of(S::LANES) {
                for (step, to) in depth.zip(panel.chunks_exact_mut(width)) {
                    let from = &from(step)[..width];
                    for at in (0..width).step_by(S::LANES) {
                        simd.store(simd.load(&from[at..]), &mut to[at..]);
                    }
                }
                return;
            }
            for (p, step) in depth.enumerate() {
                let (from, to) = (from(step), &mut panel[p * width..]);
                for at in (0..width).step_by(S::LANES) {
                    if count == width && at + S::LANES <= from.len().min(to.len()) {
                        // What is too much, the next step overwrites.
                        simd.store(simd.load(&from[at..]), &mut to[at..]);
                    } else {
                        let end = width.min(at + S::LANES);
                        let vector = simd.load_partial(&from[at.min(count)..end.min(count)]);
                        simd.store_partial(vector, &mut to[at..end]);
                    }
                }
            }
            return;
        }
        if count < width {
            panel.fill(T::ZERO);
        }
        if self.strides()[1] == 1 {
            transpose(simd, self, lines, depth, panel, width);
        } else {
            for (step, to) in depth.zip(panel.chunks_exact_mut(width)) {
                for (to, line) in to.iter_mut().zip(lines.clone()) {
                    *to = self.get([line, step]).copied().unwrap_or(T::ZERO);
                }
            }
        }
    }
}

/// Step `p` of some lines over some depth to `panel[p · width ..]`, of a matrix whose lines are contiguous: in registers, as many lines at
/// a time as fill a vector, or four. Lines that are no such number are taken with some before them again, and so are steps.
#[inline(always)]
pub(crate) fn transpose<T: Element, S: Simd<T>>(
    simd: S,
    matrix: &TensorView<'_, T, 2>,
    lines: Range<usize>,
    depth: Range<usize>,
    panel: &mut [T],
    width: usize,
) {
    let (count, steps) = (lines.len(), depth.len());
    if count >= S::LANES && steps >= 4 {
        let tile = matrix.tile([lines.start, depth.start], [count, steps]);
        for line in (0..count).step_by(S::LANES) {
            let line = line.min(count - S::LANES);
            for step in (0..steps).step_by(4) {
                let step = step.min(steps - 4);
                let columns = simd.load_transposed(tile.fours([line, step], S::LANES));
                simd.store_apart(columns, &mut panel[step * width + line..], width);
            }
        }
        return;
    }
    let line = |line: usize| matrix.row(line).map_or(&[][..], |row| &row[depth.clone()]);
    for i in (0..count).step_by(4).filter(|_| count >= 4) {
        let i = i.min(count - 4);
        let four = std::array::from_fn(|j| line(lines.start + i + j));
        let ahead = ahead(matrix, lines.start + i, steps);
        transpose_four(simd, four, ahead, &mut panel[i..], width);
    }
    for i in if count < 4 { 0..count } else { 0..0 } {
        let from = line(lines.start + i);
        panel[i..].iter_mut().step_by(width).zip(from).for_each(|(to, &x)| *to = x);
    }
}

/// Bytes of lines between what is asked for and what is packed.
const AHEAD: usize = 4096;

/// What [`transpose_four`] of the four lines from `line` on over so many steps asks for: nothing where there is no such line, which
/// would cost a search for its page.
#[inline(always)]
fn ahead<T>(matrix: &TensorView<'_, T, 2>, line: usize, depth: usize) -> isize {
    let lines = AHEAD.div_ceil(depth.max(1) * size_of::<T>()).clamp(4, 16);
    let there = line + 3 + lines < matrix.shape()[0];
    if there { (lines as isize).wrapping_mul(matrix.strides()[0]) } else { 0 }
}

/// Step `p` of the four lines to `panel[p · width ..]`, for every step. The lines `ahead` of them are asked for: each is too
/// short for the processor to see it coming.
#[inline(always)]
fn transpose_four<T: Element, S: Simd<T>>(
    simd: S,
    lines: [&[T]; 4],
    ahead: isize,
    panel: &mut [T],
    width: usize,
) {
    let depth = lines[0].len();
    let whole = depth / S::LANES * S::LANES;
    for p in (0..whole).step_by(S::LANES) {
        for line in &lines {
            simd::prefetch(line.as_ptr().wrapping_offset(p as isize + ahead));
        }
        let vectors = [
            simd.load(&lines[0][p..]),
            simd.load(&lines[1][p..]),
            simd.load(&lines[2][p..]),
            simd.load(&lines[3][p..]),
        ];
        simd.store_transposed(vectors, &mut panel[p * width..], width);
    }
    for p in whole..depth {
        for (to, line) in panel[p * width..].iter_mut().zip(lines) {
            *to = line[p];
        }
    }
}

/// Panels over one block of depth, as the kernels read them.
#[derive(Clone, Copy)]
pub enum Panels<'a, T> {
    /// One after the other, `width · depth` elements each.
    Packed { data: &'a [T], width: usize, depth: usize },
    /// In place: `[lines, depth]`.
    Direct(TensorView<'a, T, 2>),
    /// A left operand in place, `[lines, runs, steps of each]`: windows of an image.
    Windows { view: TensorView<'a, T, 3>, runs: &'a Runs },
}

/// Steps that lie in runs.
// Invariant: `until` and `steps` are not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// The first step, of all of them, of a block of depth.
    pub(super) first: usize,
    /// Steps until the first run ends, and of each other.
    pub(super) until: usize,
    pub(super) steps: usize,
    /// From the end of a run to the next.
    pub(super) jump: isize,
}

impl Runs {
    /// The runs of `view`, `[lines, runs, steps of each]`, from step `first` on.
    pub(crate) fn new<T>(view: &TensorView<'_, T, 3>, first: usize) -> Self {
        let ([_, _, steps], [_, apart, _]) = (view.shape(), view.strides());
        assert!(steps > 0, "a run has steps");
        Self { first, until: steps - first % steps, steps, jump: apart.wrapping_sub(steps as isize) }
    }
}

impl<'a, T: Element> Panels<'a, T> {
    /// A panel as it lies in memory, `width` lines from `first` on, where there is a whole one.
    #[inline(always)]
    pub(super) fn next(self, first: usize, width: usize, depth: usize) -> Option<TensorView<'a, T, 2>> {
        let data = match self {
            Panels::Packed { data, .. } => data,
            Panels::Direct(view) if first + width <= view.shape()[0] => {
                return Some(view.tile([first, 0], [width, depth.min(view.shape()[1])]));
            }
            _ => return None,
        };
        let panel = data.get(first * depth..)?.get(..width * depth)?;
        TensorView::from_slice(panel, [1, width * depth]).ok()
    }

    /// The first line over `depth` steps as a slice, where it is one.
    #[inline(always)]
    pub(super) fn line(self, depth: usize) -> Option<&'a [T]> {
        match self {
            Panels::Packed { data, width: 1, .. } => data.get(..depth),
            Panels::Packed { .. } => None,
            Panels::Direct(view) => view.row(0)?.get(..depth),
            Panels::Windows { .. } => None,
        }
    }

    /// Neighbouring lines, or steps, are neighbours in memory.
    #[inline(always)]
    pub(super) fn has_neighbours(self) -> bool {
        match self {
            Panels::Packed { .. } => true,
            Panels::Direct(view) => view.strides().contains(&1) || view.shape()[1] <= 1,
            Panels::Windows { .. } => true,
        }
    }

    /// Its lines lie in place, each as one piece or as runs.
    #[inline(always)]
    pub(super) fn has_lines(self) -> bool {
        match self {
            Panels::Packed { .. } => false,
            Panels::Direct(view) => view.strides()[1] == 1,
            Panels::Windows { .. } => true,
        }
    }

    /// The panels that begin with line `from`, a multiple of the width.
    #[inline(always)]
    pub(crate) fn from(self, from: usize) -> Self {
        match self {
            Panels::Packed { data, width, depth } => {
                Panels::Packed { data: &data[from * depth..], width, depth }
            }
            _ => unreachable!("internal error: what lies in place is not cut"),
        }
    }
}

/// Elements that panels of `width` take for `lines` lines of `depth` steps; `None` on overflow.
pub(crate) fn packed_len(lines: usize, width: usize, depth: usize) -> Option<usize> {
    lines.checked_next_multiple_of(width)?.checked_mul(depth)
}

/// Panels less than a vector wide that are packed at a time: each begins in a page of its own.
const SOME: usize = 32;

/// Elements that a packing task moves at least: about ten microseconds.
const PACK_GRAIN: usize = 1 << 15;

/// Packs `lines` of a source over `depth` into `data`, in parallel where it pays and `parallel` allows.
pub(crate) fn pack<T: Element>(
    isa: Isa,
    source: impl PanelSource<T>,
    lines: Range<usize>,
    depth: Range<usize>,
    width: usize,
    data: &mut [T],
    parallel: bool,
) {
    struct Fill<'p, P, T> {
        source: P,
        lines: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panels: &'p mut [T],
    }
    impl<T: Element, P: PanelSource<T>> SimdOp<T> for Fill<'_, P, T> {
        type Output = ();
        #[inline(always)]
        fn eval<S: Simd<T>>(self, simd: S) {
            let Self { source, lines, depth, width, panels } = self;
            // Steps that lie in rows are taken some at a time: reading then goes along the rows of memory. Else they are turned into
            // what L1 holds of a panel.
            let along = source.direct().is_some_and(|view| view.strides()[0] == 1);
            let run = if along { 8 } else { (NEAR / size_of::<T>() / width).max(1).next_multiple_of(16) };
            if along && width < S::LANES {
                let some = lines.clone().step_by(SOME * width);
                for (start, panels) in some.zip(panels.chunks_mut(SOME * width * depth.len())) {
                    let lines = start..lines.end.min(start + SOME * width);
                    narrow(simd, source, lines, depth.clone(), width, panels);
                }
                return;
            }
            for first in depth.clone().step_by(run) {
                let steps = first..depth.end.min(first + run);
                let part = (steps.start - depth.start) * width..(steps.end - depth.start) * width;
                let panels = panels.chunks_exact_mut(width * depth.len());
                for (start, panel) in lines.clone().step_by(width).zip(panels) {
                    let lines = start..lines.end.min(start + width);
                    source.fill(simd, lines, steps.clone(), width, &mut panel[part.clone()]);
                }
            }
        }
    }
    /// Panels less than a vector wide of lines that are neighbours in memory: of each step all lines at once.
    #[inline(always)]
    fn narrow<T: Element, S: Simd<T>>(
        simd: S,
        source: impl PanelSource<T>,
        lines: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panels: &mut [T],
    ) {
        const STEPS: usize = 8;
        let Some(steps) = source.direct().map(|view| view.transpose()) else { return };
        let len = width * depth.len();
        for first in (0..depth.len()).step_by(STEPS) {
            let rows: [&[T]; STEPS] = std::array::from_fn(|p| {
                let step = depth.start + first + p;
                steps.row(step).filter(|_| step < depth.end).map_or(&[][..], |row| &row[lines.clone()])
            });
            for (i, panel) in panels.chunks_exact_mut(len).enumerate() {
                for (row, at) in rows.iter().zip((first * width..len).step_by(width)) {
                    let (from, to) = (&row[(i * width).min(row.len())..], &mut panel[at..]);
                    if from.len() >= S::LANES && to.len() >= S::LANES {
                        // What is too much, the next step overwrites.
                        simd.store(simd.load(from), to);
                    } else {
                        let vector = simd.load_partial(&from[..width.min(from.len())]);
                        simd.store_partial(vector, &mut to[..width]);
                    }
                }
            }
        }
    }
    if depth.is_empty() || lines.is_empty() {
        return;
    }
    let tasks = if parallel { parallel::tasks(data.len(), PACK_GRAIN) } else { 1 };
    parallel::for_each_chunk_mut(data, width * depth.len(), tasks, &|first, panels| {
        let start = lines.start + first * width;
        let end = lines.end.min(start + panels.len() / depth.len());
        T::dispatch(isa, Fill { source, lines: start..end, depth: depth.clone(), width, panels });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;

    #[test]
    fn every_layout_packs_alike() {
        // Some panels, and more than are packed at a time.
        for (lines, depth) in [(7, 45), (230, 45)] {
            let all = lines * depth;
            let values: Vec<f32> = (0..all.max(800)).map(|i| i as f32).collect();
            let views = [
                TensorView::as_strided(&values, [lines, depth], [45, 1]).unwrap(),
                TensorView::as_strided(&values, [lines, depth], [1, lines as isize]).unwrap(),
                TensorView::as_strided(&values, [lines, depth], [2, 15]).unwrap(),
                TensorView::as_strided_at(&values, all - 1, [lines, depth], [-45, -1]).unwrap(),
                TensorView::as_strided(&values, [lines, depth], [0, 1]).unwrap(),
            ];
            for (isa, view) in machine::supported().iter().flat_map(|&isa| views.map(|view| (isa, view))) {
                for width in [1, 3, 4, 6, 16] {
                    let mut data = vec![f32::NAN; packed_len(lines - 2, width, 41).unwrap()];
                    pack(isa, view, 2..lines, 2..43, width, &mut data, false);
                    for (at, &value) in data.iter().enumerate() {
                        let (panel, rest) = (at / (width * 41), at % (width * 41));
                        let (line, step) = (panel * width + rest % width, 2 + rest / width);
                        let expected = view.get([2 + line, step]).copied().unwrap_or(0.0);
                        assert_eq!(value, expected, "line {line} step {step} width {width}");
                    }
                }
            }
        }
    }
}

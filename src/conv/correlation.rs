//! A correlation as tasks: what forward, `backward_input` and transposed convolution come down to.
//!
//! y[b, o, q] = Σ over channels c and taps t of w[o, c, t] · x[b, c, q · stride + start + t · dilation], 0 outside x. Tasks
//! are boxes of the output, cut along images and positions where there are enough of them, else along channels: what two
//! tasks need, both copy.
#![forbid(unsafe_code)]

use super::emit::Finish;
use super::implicit;
use super::lanes;
use super::weights::Weights;
use super::winograd;
use crate::element::Element;
use crate::error::Result;
use crate::gemm::GRAIN;
use crate::parallel;
use crate::tensor::{TensorView, TensorViewMut};

/// A checked correlation over three spatial axes.
pub(super) struct Correlation<'a, T> {
    pub op: &'static str,
    /// `[images, groups · channels, depth, height, width]`.
    pub x: TensorView<'a, T, 5>,
    pub weights: Weights<'a, T>,
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub dilation: [usize; 3],
    /// Where tap 0 of output 0 reads along each axis: negative in the padding.
    pub start: [isize; 3],
    pub finish: Finish<'a, T>,
}

/// Fewest positions for which a task's own panels of patches pay.
const POSITIONS: usize = 128;

impl<T: Element> Correlation<'_, T> {
    /// Computes all of `y`, `[images, groups · rows, depth, height, width]`.
    pub(super) fn run(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        if y.is_empty() {
            return Ok(());
        }
        let work = y.len().saturating_mul(self.weights.cut.depth.max(1));
        self.split(y, [0; 5], parallel::threads_for(work, GRAIN))
    }

    /// Computes the part `y`, whose first element is `at` in the output, in `tasks` tasks.
    fn split(&self, mut y: TensorViewMut<'_, T, 5>, at: [usize; 5], tasks: usize) -> Result<()> {
        let cut = &self.weights.cut;
        let best = (tasks > 1).then(|| axis(y.shape(), tasks, cut.rows, cut.width)).flatten();
        // Whole Winograd tiles: what an output is a sum of must not depend on where the task begins.
        let best = best.map(|(axis, unit)| (axis, if axis > 2 { unit * cut.winograd.max(1) } else { unit }));
        let Some(cut_at) = best.filter(|&(axis, unit)| y.shape()[axis] > unit) else {
            if cut.lanes {
                return lanes::run(self, y, at);
            }
            if cut.winograd == 0 {
                return implicit::run(self, y, at);
            }
            // Tiles lie in a plane of depth.
            for d in 0..y.shape()[2] {
                let (plane, mut at) = (y.view_mut().slice(2, d..d + 1, 1)?, at);
                at[2] += d;
                match cut.winograd {
                    2 => winograd::run::<T, 2, 4>(self, plane, at)?,
                    _ => winograd::run::<T, 4, 6>(self, plane, at)?,
                }
            }
            return Ok(());
        };
        parallel::halves(y, at, cut_at, tasks, &|part, at, tasks| self.split(part, at, tasks))
    }
}

/// The axis along which an output of this shape is best cut, and the unit in which; `None` where it cannot be.
pub(super) fn axis(shape: [usize; 5], tasks: usize, rows: usize, width: usize) -> Option<(usize, usize)> {
    let positions = shape[0] * shape[2] * shape[3] * shape[4];
    let groups = shape[1] > rows;
    let even = |axis: &usize| shape[*axis].is_multiple_of(tasks) || shape[*axis] >= 4 * tasks;
    let longest = || [0, 2, 3, 4].into_iter().rev().max_by_key(|&axis| shape[axis]);
    let along = [0, 2, 3, 4].into_iter().find(even).or_else(longest).filter(|&axis| shape[axis] > 1);
    let across = match (groups, shape[1] > width) {
        (true, _) => Some((1, rows)),
        (_, true) => Some((1, width)),
        _ => None,
    };
    match along {
        Some(axis) if positions >= 2 * POSITIONS && (axis == 0 || !groups) => Some((axis, 1)),
        _ => across.or_else(|| along.map(|axis| (axis, 1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_cut_where_least_is_copied_twice() {
        // Images first, then rows of an image.
        assert_eq!(axis([8, 64, 1, 56, 56], 2, 64, 12), Some((0, 1)));
        assert_eq!(axis([1, 64, 1, 56, 56], 2, 64, 12), Some((3, 1)));
        assert_eq!(axis([3, 64, 1, 56, 56], 2, 64, 12), Some((3, 1)));
        assert_eq!(axis([1, 64, 1, 1, 3000], 2, 64, 12), Some((4, 1)));
        // Few positions: channels, in panels.
        assert_eq!(axis([1, 512, 1, 7, 7], 2, 512, 12), Some((1, 12)));
        assert_eq!(axis([1, 12, 1, 7, 7], 2, 12, 12), Some((3, 1)));
        // Groups before positions of one image.
        assert_eq!(axis([1, 64, 1, 56, 56], 2, 4, 4), Some((1, 4)));
        assert_eq!(axis([2, 64, 1, 56, 56], 2, 4, 4), Some((0, 1)));
        assert_eq!(axis([1, 1, 1, 1, 1], 2, 1, 1), None);
    }
}

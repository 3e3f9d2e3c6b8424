//! Few positions, many channels: the patches' gradients as one product, then each added where it belongs (col2im).
//!
//! The other paths turn all weights, which takes longer than to multiply with them where that is done for few positions.
//! Here they are read once, as they lie:
//!
//! ```text
//! columns[position, (c, u)] = Σ over o of z[o, position] · w[o, (c, u)]
//! y[c, position · s + u · d − p] += columns[position, (c, u)]
//! ```
#![forbid(unsafe_code)]

use super::Scatter;
use crate::conv::im2col::Plan;
use crate::conv::pointwise::merges;
use crate::element::Element;
use crate::error::Result;
use crate::gemm::gemm;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// A call for which this path pays.
pub(super) struct Columns<'a, 's, T> {
    scatter: &'s Scatter<'a, T>,
    plan: Plan,
    /// Positions of Z, channels of Z, and channels of Y times taps.
    sizes: [usize; 3],
}

/// Positions for each channel of Z up to which it pays …
const POSITIONS: usize = 4;
/// … while there are no more elements than this. No more elements than weights there may be always: the other paths copy these.
const SMALL: usize = 1 << 20;

fn takes([positions, outer, columns]: [usize; 3], taps: usize) -> bool {
    let small = positions.saturating_mul(columns) <= SMALL && positions <= outer.saturating_mul(POSITIONS);
    taps > 1 && (positions <= outer || small)
}

/// True where the positions of all images can be seen as one axis.
fn pixels_merge<T>(z: TensorView<'_, T, 5>) -> bool {
    merges(z.shape(), z.strides(), &[0, 2, 3, 4])
}

impl<'a, 's, T: Element> Columns<'a, 's, T> {
    /// `None` where another path is taken for `y`, which has elements.
    pub(super) fn new(scatter: &'s Scatter<'a, T>, y: &TensorViewMut<'_, T, 5>) -> Option<Self> {
        let Scatter { z, w, groups, sliding, algorithm, .. } = *scatter;
        if !algorithm.is_open()
            || groups != 1
            || !scatter.is_plain()
            || z.is_empty()
            || !merges(w.shape(), w.strides(), &[1, 2, 3, 4])
        {
            return None;
        }
        let ([batch, outer, output @ ..], [_, channels, image @ ..]) = (z.shape(), y.shape());
        let plan = Plan::new(sliding, batch, channels, image, output)?;
        let sizes = [plan.matrix[0], outer, plan.matrix[1]];
        if scatter.winograd(y.shape()) > 0 {
            return None;
        }
        // Several images are copied, unless channels are neighbours.
        let copied = if pixels_merge(z) { 0 } else { z.len() };
        let few = takes(sizes, plan.taps) && copied <= SMALL.max(w.len());
        few.then_some(Self { scatter, plan, sizes })
    }

    /// Computes `y`.
    pub(super) fn run(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let (Scatter { op, z, w, .. }, [positions, outer, columns]) = (*self.scatter, self.sizes);
        let mut product = workspace::scratch(op, positions * columns)?;
        let (last, merged) = (z.permute([0, 2, 3, 4, 1])?, pixels_merge(z));
        let mut copy = workspace::scratch(op, if merged { 0 } else { positions * outer })?;
        let rows = if merged {
            last.reshape([positions, outer])?
        } else {
            TensorViewMut::from_slice(&mut copy[..], last.shape())?.copy_from(last);
            TensorView::from_slice(&copy[..], [positions, outer])?
        };
        let matrix = TensorViewMut::from_slice(&mut product[..], [positions, columns])?;
        gemm(T::ONE, rows, w.reshape([outer, columns])?, T::ZERO, matrix)?;
        self.plan.col2im(TensorView::from_slice(&product[..], [positions, columns])?, y)
    }
}

#[cfg(test)]
mod tests {
    use super::takes;

    #[test]
    fn few_positions_for_their_channels() {
        // ResNet-50, one image and eight; its stem.
        assert!(
            takes([49, 512, 512 * 9], 9) && takes([196, 256, 256 * 9], 9) && takes([392, 512, 512 * 9], 9)
        );
        assert!(
            takes([392, 256, 256 * 9], 9)
                && !takes([784, 128, 128 * 9], 9)
                && !takes([1568, 256, 256 * 9], 9)
        );
        assert!(!takes([112 * 112, 64, 3 * 49], 49));
        // Never more of them than weights, or than a few megabytes.
        assert!(takes([2048, 2048, 2048 * 9], 9) && !takes([2049, 2048, 2048 * 9], 9));
        // One tap: the product is the gradient.
        assert!(!takes([49, 512, 512], 1));
    }
}

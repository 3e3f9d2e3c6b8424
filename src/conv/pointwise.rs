//! Kernels of a single tap: plain products of pixels and weights.
#![forbid(unsafe_code)]

use super::correlate::{Call, Operand};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Bias, Gemm};
use crate::spatial::Sliding;
use crate::tensor::{TensorView, TensorViewMut};

/// Positions of an image from which on images are always taken one by one: their last tiles are full enough.
const SMALL: usize = 128;

/// Whether planes of so many positions are better multiplied image by image, by weights of these sizes. Their last vectors are partly
/// empty then; taken together, all pixels and products are copied, a cost that the channels share: some eleven steps for each.
pub(super) fn one_by_one(positions: usize, lanes: usize, [rows, channels]: [usize; 2]) -> bool {
    let empty = positions.next_multiple_of(lanes) - positions;
    let copies = (rows + channels).saturating_mul(11).saturating_mul(positions);
    positions >= SMALL || empty.saturating_mul(rows).saturating_mul(channels) <= copies
}

/// True for a kernel of a single tap, with stride 1 and nothing padded: each output is a product with one pixel.
pub(super) fn single(sliding: &Sliding) -> bool {
    [sliding.kernel, sliding.stride] == [[1; 3]; 2] && sliding.padding == [[0; 2]; 3]
}

impl<T: Element> Call<'_, T> {
    /// Shapes and strides of X, Y and the residual.
    pub(super) fn images_of(
        &self,
        y: [usize; 5],
        strides: [isize; 5],
    ) -> impl Iterator<Item = ([usize; 5], [isize; 5])> {
        let residual = self.finish.residual.map(|r| (r.shape(), r.strides()));
        [(self.x.shape(), self.x.strides()), (y, strides)].into_iter().chain(residual)
    }

    /// 1 × 1: `[pixels, channels]` times the weights, for runs of pixels that strides say as one axis; with channels
    /// last that is all of them.
    pub(super) fn pixels(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let axes = apart(|axes| {
            self.images_of(y.shape(), y.strides()).all(|(shape, strides)| merges(shape, strides, axes))
        });
        self.runs(self.x, self.finish.residual, y, axes)
    }

    /// [`pixels`](Self::pixels) for each index of `axes`, over parts of X, the residual and Y.
    fn runs(
        &self,
        x: TensorView<'_, T, 5>,
        residual: Option<TensorView<'_, T, 5>>,
        mut y: TensorViewMut<'_, T, 5>,
        axes: &[usize],
    ) -> Result<()> {
        if let [axis, axes @ ..] = axes {
            let axis = *axis;
            for at in 0..y.shape()[axis] {
                let residual = match residual {
                    Some(residual) => Some(residual.slice(axis, at..at + 1, 1)?),
                    None => None,
                };
                let y = y.view_mut().slice(axis, at..at + 1, 1)?;
                self.runs(x.slice(axis, at..at + 1, 1)?, residual, y, axes)?;
            }
            return Ok(());
        }
        let (pixels, all) = (y.len() / y.shape()[1], y.shape()[1]);
        let (rows, channels) = (all / self.groups, x.shape()[1] / self.groups);
        for (group, y) in groups(y, self.groups).enumerate() {
            let y = y?.permute([0, 2, 3, 4, 1])?.reshape([pixels, rows])?;
            let x = x.slice(1, group * channels..(group + 1) * channels, 1)?;
            let x = x.permute([0, 2, 3, 4, 1])?.reshape([pixels, channels])?;
            let mut gemm = Gemm::new().activation(self.finish.activation);
            if let Some(bias) = self.finish.bias {
                gemm = gemm.bias(Bias::PerColumn(bias.slice(0, group * rows..(group + 1) * rows, 1)?));
            }
            if let Some(residual) = residual {
                let residual = residual.slice(1, group * rows..(group + 1) * rows, 1)?;
                gemm = gemm.residual(residual.permute([0, 2, 3, 4, 1])?.reshape([pixels, rows])?);
            }
            match self.w {
                Operand::View(w) => {
                    let w = w.group(self.groups, group)?.reshape([rows, channels])?;
                    gemm.run(x, w.transpose(), y)?;
                }
                Operand::Packed(packed) => {
                    gemm.run(x, packed.columns().ok_or_else(|| packed.misfit(self.op))?, y)?
                }
            }
        }
        Ok(())
    }

    /// 1 × 1 with channels first: for each image the weights times `[channels, pixels]`.
    pub(super) fn images(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let [images, all, d, h, width] = y.shape();
        let (rows, channels, pixels) = (all / self.groups, self.x.shape()[1] / self.groups, d * h * width);
        for (group, y) in groups(y, self.groups).enumerate() {
            let y = y?.reshape([images, rows, pixels])?;
            let x = self.x.slice(1, group * channels..(group + 1) * channels, 1)?;
            let x = x.reshape([images, channels, pixels])?;
            let mut gemm = Gemm::new().activation(self.finish.activation);
            if let Some(bias) = self.finish.bias {
                gemm = gemm.bias(Bias::PerRow(bias.slice(0, group * rows..(group + 1) * rows, 1)?));
            }
            if let Some(residual) = self.finish.residual {
                let residual = residual.slice(1, group * rows..(group + 1) * rows, 1)?;
                gemm = gemm.batched_residual(residual.reshape([images, rows, pixels])?);
            }
            match self.w {
                Operand::View(w) => {
                    let w = w.group(self.groups, group)?.reshape([1, rows, channels])?;
                    gemm.run_batched(w, x, y)?;
                }
                Operand::Packed(packed) => {
                    gemm.run_batched(packed.rows().ok_or_else(|| packed.misfit(self.op))?, x, y)?;
                }
            }
        }
        Ok(())
    }
}

/// True where [`weight_gradient`] is the better way: pixels of all images, or enough of each, are one axis.
pub(super) fn sums_products<T>(x: &TensorView<'_, T, 5>, dz: &TensorView<'_, T, 5>) -> bool {
    let [images, _, image @ ..] = dz.shape();
    let merged = |axes: &[usize]| [x, dz].iter().all(|view| merges(view.shape(), view.strides(), axes));
    let positions: usize = image.iter().product();
    images > 0
        && positions > 0
        && (merged(&AXES) || (merged(&AXES[1..]) && (images == 1 || positions >= SMALL)))
}

/// dW `[outputs, inputs, 1, 1, 1]` = Σ over runs of pixels of dZᵀ · X, for a single group.
pub(super) fn weight_gradient<T: Element>(
    x: TensorView<'_, T, 5>,
    dz: TensorView<'_, T, 5>,
    dw: TensorViewMut<'_, T, 5>,
) -> Result<()> {
    let mut dw = dw.select::<4>(4, 0)?.select::<3>(3, 0)?.select::<2>(2, 0)?;
    let axes = apart(|axes| [&x, &dz].iter().all(|view| merges(view.shape(), view.strides(), axes)));
    add_products(x, dz, axes, T::ZERO, &mut dw)
}

/// dW = beta · dW + the products of the runs.
fn add_products<T: Element>(
    x: TensorView<'_, T, 5>,
    dz: TensorView<'_, T, 5>,
    axes: &[usize],
    beta: T,
    dw: &mut TensorViewMut<'_, T, 2>,
) -> Result<()> {
    if let [axis, axes @ ..] = axes {
        for at in 0..dz.shape()[*axis] {
            let [x, dz] = [x, dz].map(|view| view.slice(*axis, at..at + 1, 1));
            add_products(x?, dz?, axes, if at == 0 { beta } else { T::ONE }, dw)?;
        }
        return Ok(());
    }
    Gemm::new().beta(beta).run(pixels(dz)?.transpose(), pixels(x)?, dw.view_mut())
}

/// `[pixels, channels]`.
fn pixels<T: Element>(view: TensorView<'_, T, 5>) -> Result<TensorView<'_, T, 2>> {
    let channels = view.shape()[1];
    view.permute([0, 2, 3, 4, 1])?.reshape([view.len() / channels, channels])
}

/// The axes of pixels.
const AXES: [usize; 4] = [0, 2, 3, 4];

/// The axes of pixels that come before those that strides say as one.
pub(super) fn apart(merges: impl Fn(&[usize]) -> bool) -> &'static [usize] {
    // One axis always merges.
    let from = (0..AXES.len()).find(|&from| merges(&AXES[from..])).unwrap_or(AXES.len() - 1);
    &AXES[..from]
}

/// The channels of each group.
fn groups<'a, T>(
    y: TensorViewMut<'a, T, 5>,
    groups: usize,
) -> impl Iterator<Item = Result<TensorViewMut<'a, T, 5>>> {
    let rows = y.shape()[1] / groups;
    let mut rest = Some(y);
    (0..groups).map(move |group| {
        let y = rest.take().ok_or_else(|| Error::argument("conv", "groups", groups, "a divisor"))?;
        if group + 1 == groups {
            return Ok(y);
        }
        let (first, others) = y.split_at(1, rows)?;
        rest = Some(others);
        Ok(first)
    })
}

/// True where these axes can be seen as one.
pub(super) fn merges(shape: [usize; 5], strides: [isize; 5], axes: &[usize]) -> bool {
    let mut next: Option<isize> = None;
    for &axis in axes.iter().rev().filter(|&&axis| shape[axis] != 1) {
        if next.is_some_and(|next| next != strides[axis]) {
            return false;
        }
        next = strides[axis].checked_mul(shape[axis] as isize);
        if next.is_none() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::one_by_one;

    #[test]
    fn planes_go_one_by_one_where_vectors_are_full_or_channels_few() {
        let of = |positions, sizes| one_by_one(positions, 16, sizes);
        assert!(of(64, [2048, 2048]) && of(128, [2048, 2048]) && of(196, [1024, 256]));
        assert!(of(100, [64, 64]) && of(49, [64, 64]) && of(121, [256, 256]));
        assert!(!of(100, [256, 256]) && !of(49, [2048, 512]) && !of(49, [160, 960]) && !of(1, [64, 64]));
    }
}

//! Normalisation: layer, RMS, batch, instance and group, forward and backward.
//!
//! All of them are
//!
//! x̂ = (x − μ)/√(σ² + ε), y = x̂ ⊙ scale + shift
//!
//! and differ in the set of elements over which the mean μ and the variance σ² are taken, and in the axis along which
//! scale (γ) and shift (β) lie:
//!
//! | | x | one set is | scale, shift |
//! |---|---|---|---|
//! | [`LayerNormalization`] | `[…, n]` | a row: all indices equal but the last | `[n]` |
//! | [`RmsNormalization`] | `[…, n]` | a row; μ is 0, σ² the mean of x² | `[n]`, no shift |
//! | [`BatchNormalization`] | `[batch, channels, spatial…]` | a channel of all samples | `[channels]` |
//! | [`InstanceNormalization`] | the same | a channel of one sample | `[channels]` |
//! | [`GroupNormalization`] | the same | neighbouring channels of one sample | `[channels]` |
//!
//! The variance that normalises is the biased one, Σ(x − μ)²/m over the m elements of a set. With g = dy ⊙ scale and
//! means over a set, the gradients are
//!
//! dx = (g − mean g − x̂·mean(g ⊙ x̂))/√(σ² + ε), dscale = Σ dy ⊙ x̂, dshift = Σ dy,
//!
//! without the term mean g where μ is 0, and without both means where the statistics are constants.
//!
//! **The variance** comes from two passes, corrected: m, the mean as first found and rounded; then over d = x − m both
//! Σd and Σd², from which μ = m + Σd/n, to more digits than an element has, σ² = (Σd² − (Σd)²/n)/n, and
//! x̂ = (x − μ)/√(σ² + ε). The second sum makes up for the rounding of m, so a mean that is large against the deviation
//! costs no digits, where the difference of E\[x²\] and E\[x\]² would lose them all, and what a shift by the first element
//! would lose where that is far out. The second pass reads a row from L1. Longer sets are cut in blocks of fixed size whose
//! moments join in `f64`, in a fixed order.
//!
//! **At the ends of the range** a block's sums are those of the element type: where one Σx or Σd overflows, x̂ is NaN, also if the
//! mean is far from that; where only a Σd² does, 0. Where all are 0, by underflow or because all elements are equal, and ε is
//! 0, x̂ is infinite or NaN.
//!
//! Sources: Tony Chan, Gene Golub and Randall LeVeque, "Algorithms for computing the sample variance: analysis and
//! recommendations", The American Statistician 37 (1983), for the corrected sum and the joining of blocks; Ba et al.
//! 2016 (layer), Zhang and Sennrich 2019 (RMS), Ioffe and Szegedy 2015 (batch), Ulyanov et al. 2016 (instance), Wu and
//! He 2018 (group).
//!
//! Which path runs when, decided by shapes and strides alone:
//!
//! | layout | path |
//! |---|---|
//! | layer and RMS, the last axis contiguous | rows where they lie, all passes over a row while it is in L1 |
//! | layer and RMS, any other strides | some rows at a time, copied |
//! | the others, positions contiguous (NCHW) | *planes*: sums along runs of positions, then one pass that applies a shift, a slope and a constant to each channel |
//! | the others, channels contiguous (NHWC) | *pixels*: the same, a lane for each channel; positions in slabs |
//! | neither | planes, copied run by run |
//!
//! Axes of positions, and for batch normalisation samples with them, merge into one where strides allow. A backward
//! call makes the statistics again from x; where a mean is given, from one pass.
#![forbid(unsafe_code)]

mod batch;
mod channels;
mod group;
mod layer;
mod moments;
mod pixel;
mod plane;
mod rms;
mod row;
mod rows;
mod sets;

pub use batch::{BatchNormalization, BatchStatistics};
pub(crate) use batch::{check_momentum, elements_of_a_channel};
pub(crate) use channels::ChannelKernels;
pub use group::{GroupNormalization, InstanceNormalization};
pub use layer::{LayerNormalization, RowStatistics};
pub use rms::{RmsGradients, RmsGradientsMut, RmsNormalization};
pub(crate) use rows::RowKernels;

use crate::element::Element;
use crate::error::{Result, expect};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// The gradients that a backward call gives.
pub struct NormGradients<T, const N: usize> {
    /// dx, of the shape of x.
    pub input: Tensor<T, N>,
    /// Of the shape of scale.
    pub scale: Tensor<T, 1>,
    /// Of the shape of shift.
    pub shift: Tensor<T, 1>,
}

/// Where a backward call writes; what is `None` is not computed.
pub struct NormGradientsMut<'a, T, const N: usize> {
    /// dx, of the shape of x.
    pub input: Option<TensorViewMut<'a, T, N>>,
    /// Of the shape of scale.
    pub scale: Option<TensorViewMut<'a, T, 1>>,
    /// Of the shape of shift.
    pub shift: Option<TensorViewMut<'a, T, 1>>,
}

/// As [`expect`], of something that need not be there.
fn expect_vector<T: Element>(
    op: &'static str,
    arg: &'static str,
    vector: Option<TensorView<'_, T, 1>>,
    n: usize,
) -> Result<()> {
    vector.map_or(Ok(()), |vector| expect(op, arg, &vector.shape(), &[n]))
}

//! Weights packed once for many convolutions.
#![forbid(unsafe_code)]

use super::weights::{Cut, Filter, Weights};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::tensor::TensorView;
use crate::workspace::{self, Aligned};

/// Weights packed by [`Convolution::pack`](super::Convolution::pack): a copy in the order in which the kernels read.
///
/// It remembers the instruction set, the groups and the kernel's sizes; a call that differs refuses it.
pub struct PackedConvolution<T> {
    /// Of the weights: `[c_out, c_in / groups, kernel…]`, three spatial axes.
    pub(super) shape: [usize; 5],
    pub(super) flipped: bool,
    pub(super) weights: Weights<Aligned<T>>,
}

impl<T: Element> PackedConvolution<T> {
    pub(super) fn new(
        op: &'static str,
        w: TensorView<'_, T, 5>,
        groups: usize,
        flipped: bool,
        winograd: usize,
    ) -> Result<Self> {
        let isa = machine::isa()?;
        let view = if flipped { w.flip(2)?.flip(3)?.flip(4)? } else { w };
        let filter = Filter { view, transposed: false };
        let cut = Cut::new::<T>(isa, groups, filter.sizes(groups), winograd);
        if depthwise(groups, w.shape()) {
            let mut data = workspace::try_vec(op, view.len())?;
            data.resize(view.len(), T::ZERO);
            data.iter_mut().zip(view).for_each(|(to, &from)| *to = from);
            return Ok(Self { shape: w.shape(), flipped, weights: Weights { cut, data } });
        }
        let len = cut.len(op)?;
        let mut data = workspace::try_vec(op, len)?;
        data.resize(len, T::ZERO);
        T::pack(&filter, op, &cut, &mut data)?;
        Ok(Self { shape: w.shape(), flipped, weights: Weights { cut, data } })
    }

    /// Depthwise weights, which are kept as they are, row-major.
    pub(super) fn filter(&self) -> Result<Option<Filter<'_, T>>> {
        if !depthwise(self.weights.cut.groups, self.shape) {
            return Ok(None);
        }
        let view = TensorView::from_slice(&self.weights.data[..], self.shape)?;
        Ok(Some(Filter { view, transposed: false }))
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.weights.cut.isa
    }

    /// Bytes of memory it holds.
    pub fn bytes(&self) -> usize {
        self.weights.data.len() * size_of::<T>()
    }

    /// `plain`: stride and dilation are 1.
    pub(super) fn check(
        &self,
        op: &'static str,
        isa: Isa,
        groups: usize,
        flipped: bool,
        plain: bool,
    ) -> Result<()> {
        let [rows, channels, d, h, w] = self.shape;
        let sizes = [rows / groups.max(1), channels, d, h, w];
        // The algorithm is the one that was chosen when they were packed, unless it cannot do this.
        let winograd = if plain { self.weights.cut.winograd } else { 0 };
        let current = Cut::new::<T>(isa, groups, sizes, winograd);
        let found = &self.weights.cut;
        if *found == current && self.flipped == flipped {
            return Ok(());
        }
        let describe = |cut: &Cut, flipped: bool| {
            let turned = if flipped { ", turned" } else { "" };
            format!(
                "{} with {} groups, panels of {} in blocks of {}{turned}",
                cut.isa, cut.groups, cut.width, cut.kc
            )
        };
        Err(Error::Packed {
            op,
            arg: "weight",
            found: describe(found, self.flipped),
            expected: describe(&current, flipped),
        })
    }
}

/// True for groups of one input channel.
fn depthwise(groups: usize, [_, channels, ..]: [usize; 5]) -> bool {
    groups > 1 && channels == 1
}

impl<T> std::fmt::Debug for PackedConvolution<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedConvolution")
            .field("shape", &self.shape)
            .field("cut", &self.weights.cut)
            .finish_non_exhaustive()
    }
}

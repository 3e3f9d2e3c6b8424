//! Weights as panels of a left operand: rows are output channels, depth is `(channel, tap)`.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::pointwise::merges;
use super::winograd;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Panels, depth_block, pack, packed_len, tile, tile_rows};
use crate::machine::{self, Isa};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// How the weights of one group are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub(super) isa: Isa,
    pub(super) groups: usize,
    /// Output channels of a group.
    pub(super) rows: usize,
    /// Channels and taps that each takes in.
    pub(super) depth: usize,
    /// Rows of a panel.
    pub(super) width: usize,
    /// Steps of a block of depth.
    pub(super) kc: usize,
    /// Outputs along a side of a Winograd tile, 2 or 4; 0 for the implicit GEMM.
    pub(super) winograd: usize,
}

impl Cut {
    /// For weights of these sizes a group: rows, channels and taps along each axis.
    pub(super) fn new<T: Element>(
        isa: Isa,
        groups: usize,
        [rows, channels, d, h, w]: [usize; 5],
        winograd: usize,
    ) -> Self {
        let tile = tile::<T>(isa);
        let depth = channels * d * h * w;
        let kc = depth_block::<T>(tile, machine::caches(), depth);
        Self { isa, groups, rows, depth, width: tile_rows(tile, rows), kc, winograd }
    }

    /// Steps of depth as they are packed: channels times taps, or times the points of a tile.
    fn steps(&self) -> usize {
        match self.winograd {
            0 => self.depth,
            outputs => self.depth / 9 * (outputs + 2) * (outputs + 2),
        }
    }

    /// Elements of the panels of a group, once [`len`](Self::len) has counted them.
    pub(super) fn group_len(&self) -> usize {
        self.padded() * self.steps()
    }

    /// Elements of all panels.
    pub(super) fn len(&self, op: &'static str) -> Result<usize> {
        packed_len(self.rows, self.width, self.steps())
            .and_then(|len| len.checked_mul(self.groups))
            .ok_or(Error::Alloc { op, bytes: usize::MAX })
    }

    fn padded(&self) -> usize {
        self.rows.next_multiple_of(self.width)
    }
}

/// Weights packed into `data`.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a, T> {
    pub cut: Cut,
    /// Groups, in each blocks of depth, in each panels.
    pub data: &'a [T],
}

impl<'a, T: Element> Weights<'a, T> {
    /// The panels of a group from row `first` on, over a block of depth.
    pub(super) fn panels(&self, group: usize, first: usize, steps: &Range<usize>) -> Panels<'a, T> {
        let padded = self.cut.padded();
        let start = group * self.cut.group_len() + steps.start * padded;
        let data = &self.data[start..][..steps.len() * padded];
        Panels::Packed { data, width: self.cut.width, depth: steps.len() }.from(first)
    }
}

/// The weights of a call as a view: `[groups · rows, channels, kernel…]`, or where `transposed`, as for gradients,
/// `[groups · channels, rows, kernel…]`.
#[derive(Clone, Copy)]
pub struct Filter<'a, T> {
    pub(super) view: TensorView<'a, T, 5>,
    pub(super) transposed: bool,
}

impl<'a, T: Element> Filter<'a, T> {
    /// `[rows, channels, kernel…]` of a group.
    pub(super) fn group(&self, groups: usize, group: usize) -> Result<TensorView<'a, T, 5>> {
        let outer = self.view.shape()[0] / groups;
        let part = self.view.slice(0, group * outer..(group + 1) * outer, 1)?;
        if self.transposed { part.permute([1, 0, 2, 3, 4]) } else { Ok(part) }
    }

    /// Rows of a group, channels of a group, taps along each axis.
    pub(super) fn sizes(&self, groups: usize) -> [usize; 5] {
        let [outer, inner, d, h, w] = self.view.shape();
        if self.transposed { [inner, outer / groups, d, h, w] } else { [outer / groups, inner, d, h, w] }
    }

    /// Packs the weights into `data`.
    pub(super) fn pack(&self, op: &'static str, cut: &Cut, data: &mut [T]) -> Result<()> {
        let Cut { isa, groups, rows, depth, width, kc, winograd } = *cut;
        if rows == 0 || depth == 0 {
            return Ok(());
        }
        let (padded, mut scratch) = (cut.padded(), None);
        for group in 0..groups {
            let part = self.group(groups, group)?;
            let merged = if merges(part.shape(), part.strides(), &[1, 2, 3, 4]) {
                Some(part.reshape([rows, depth])?)
            } else {
                None
            };
            let matrix = match merged {
                Some(matrix) if matrix.strides()[1] == 1 || winograd == 0 => matrix,
                _ => {
                    // No strides say it: rows and depth in the order of memory first.
                    if scratch.is_none() {
                        scratch = Some(workspace::scratch(op, rows * depth)?);
                    }
                    let Some(scratch) = &mut scratch else { continue };
                    TensorViewMut::from_slice(&mut scratch[..], part.shape())?.copy_from(part);
                    TensorView::from_slice(&scratch[..], [rows, depth])?
                }
            };
            let data = &mut data[group * cut.group_len()..][..cut.group_len()];
            if winograd > 0 {
                winograd::pack(cut, matrix, data);
                continue;
            }
            for first in (0..depth).step_by(kc) {
                let steps = first..depth.min(first + kc);
                let block = &mut data[first * padded..steps.end * padded];
                pack(isa, matrix, 0..rows, steps, width, block, true);
            }
        }
        Ok(())
    }
}

//! Operands packed once for many products.
#![forbid(unsafe_code)]

use super::blocking::{depth_block, tile, tile_rows};
use super::panel::{self, PanelSource, Panels, packed_len};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::tensor::TensorView;
use crate::workspace::{self, Aligned};

/// The side of a product that an operand was packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Lhs,
    Rhs,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Lhs => "the left side",
            Side::Rhs => "the right side",
        }
    }
}

/// A matrix packed for one side of many products: weights, most often.
///
/// It holds an aligned copy in the order in which the kernels read, and remembers the instruction set it
/// was packed for; a call that runs another refuses it. A row's result over a packed right operand has
/// the same bits alone and in any batch.
///
/// ```
/// use tilewise::{Tensor, gemm};
/// let x = Tensor::<f32, 2>::full([4, 8], 0.5)?;
/// let w = Tensor::<f32, 2>::full([8, 3], 2.0)?;
/// let packed = gemm::Packed::rhs(w.view())?;
/// let mut y = Tensor::<f32, 2>::zeros([4, 3])?;
/// gemm::gemm(1.0, x.view(), &packed, 0.0, y.view_mut())?;
/// assert_eq!(y.as_slice(), [8.0; 12]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Packed<T> {
    side: Side,
    isa: Isa,
    lines: usize,
    depth: usize,
    /// Depth of a block.
    kc: usize,
    /// Lines of a panel.
    width: usize,
    /// Blocks of depth, one after the other; in each, panels.
    data: Aligned<T>,
}

impl<T: Element> Packed<T> {
    /// Packs the left operand, `[m, k]`.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory, [`Error::Isa`] where `TILEWISE_ISA` is wrong.
    pub fn lhs(a: TensorView<'_, T, 2>) -> Result<Self> {
        Self::pack(a, Side::Lhs)
    }

    /// Packs the right operand, `[k, n]`.
    ///
    /// # Errors
    /// As [`lhs`](Self::lhs).
    pub fn rhs(b: TensorView<'_, T, 2>) -> Result<Self> {
        Self::pack(b.transpose(), Side::Rhs)
    }

    fn pack(source: TensorView<'_, T, 2>, side: Side) -> Result<Self> {
        let isa = machine::isa()?;
        let tile = tile::<T>(isa);
        let [lines, depth] = source.shape();
        let width = match side {
            Side::Lhs => tile_rows(tile, lines),
            Side::Rhs => tile.columns,
        };
        let kc = depth_block::<T>(tile, machine::caches(), depth);
        let len = packed_len(lines, width, depth).ok_or(Error::Alloc { op: "pack", bytes: usize::MAX })?;
        let mut data = workspace::try_vec("pack", len)?;
        data.resize(len, T::ZERO);
        fill(isa, source, width, kc, &mut data);
        Ok(Self { side, isa, lines, depth, kc, width, data })
    }

    /// Rows and columns of the matrix that was packed.
    pub fn shape(&self) -> [usize; 2] {
        match self.side {
            Side::Lhs => [self.lines, self.depth],
            Side::Rhs => [self.depth, self.lines],
        }
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of memory it holds.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<T>()
    }

    pub(crate) fn check(&self, op: &'static str, arg: &'static str, side: Side, isa: Isa) -> Result<()> {
        if self.side == side && self.isa == isa {
            return Ok(());
        }
        let packed_for = |side: Side, isa: Isa| format!("{} with {isa}", side.name());
        Err(Error::Packed {
            op,
            arg,
            found: packed_for(self.side, self.isa),
            expected: packed_for(side, isa),
        })
    }

    pub(crate) fn slab(&self) -> Slab<'_, T> {
        let Self { lines, depth, kc, width, ref data, .. } = *self;
        Slab { lines, depth, kc, width, data }
    }
}

/// Packs all blocks of depth of a source.
fn fill<T: Element>(isa: Isa, source: impl PanelSource<T>, width: usize, kc: usize, data: &mut [T]) {
    let (lines, depth) = (source.lines(), source.depth());
    let padded = lines.next_multiple_of(width);
    // A matrix without lines may be deeper than can be walked.
    let depth_packed = if lines == 0 { 0 } else { depth };
    for first in (0..depth_packed).step_by(kc) {
        let steps = first..depth.min(first + kc);
        let block = &mut data[first * padded..steps.end * padded];
        panel::pack(isa, source, 0..lines, steps, width, block, true);
    }
}

/// The panels of a whole packed matrix, wherever they lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slab<'a, T> {
    lines: usize,
    depth: usize,
    kc: usize,
    width: usize,
    data: &'a [T],
}

impl<'a, T: Element> Slab<'a, T> {
    /// Elements that a right operand of `depth` rows and `lines` columns takes; `None` on overflow.
    pub(crate) fn rhs_len(isa: Isa, lines: usize, depth: usize) -> Option<usize> {
        packed_len(lines, tile::<T>(isa).columns, depth)
    }

    /// Packs a right operand, whose lines are its columns, into `data`, which has the length.
    pub(crate) fn pack_rhs(isa: Isa, source: impl PanelSource<T>, data: &mut [T]) {
        let tile = tile::<T>(isa);
        let kc = depth_block::<T>(tile, machine::caches(), source.depth());
        fill(isa, source, tile.columns, kc, data);
    }

    /// The right operand of `depth` rows and `lines` columns that [`pack_rhs`](Self::pack_rhs) put into `data`.
    pub(crate) fn rhs(isa: Isa, lines: usize, depth: usize, data: &'a [T]) -> Self {
        let tile = tile::<T>(isa);
        Self { lines, depth, kc: depth_block::<T>(tile, machine::caches(), depth), width: tile.columns, data }
    }

    pub(crate) fn lines(&self) -> usize {
        self.lines
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The panels over the block of depth that begins with `first`, which has `depth` steps.
    pub(crate) fn panels(&self, first: usize, depth: usize) -> Panels<'a, T> {
        debug_assert!(first.is_multiple_of(self.kc));
        let padded = self.lines.next_multiple_of(self.width);
        Panels::Packed { data: &self.data[first * padded..][..depth * padded], width: self.width, depth }
    }
}

impl<T> std::fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed")
            .field("side", &self.side)
            .field("isa", &self.isa)
            .field("lines", &self.lines)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

//! Operands packed once for many products.
#![forbid(unsafe_code)]

use super::blocking::{packed_depth_block, tile, tile_rows};
use super::panel::{self, PanelSource, Panels, packed_len};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Caches, Isa};
use crate::tensor::TensorView;
use crate::workspace::{self, Aligned};

/// The side of a product that an operand was packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
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

/// What a matrix is packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    side: Side,
    isa: Isa,
    /// Lines of a panel.
    width: usize,
    /// Depth of a block.
    kc: usize,
}

impl Plan {
    /// For a matrix of some lines and depth.
    fn new<T: Element>(side: Side, isa: Isa, caches: Caches, [lines, depth]: [usize; 2]) -> Self {
        let tile = tile::<T>(isa);
        let width = match side {
            Side::Lhs => tile_rows(tile, [lines, usize::MAX]),
            Side::Rhs => tile.panel(lines),
        };
        Self { side, isa, width, kc: packed_depth_block::<T>(tile, caches, depth) }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with {}", self.side.name(), self.isa)
    }
}

/// A matrix packed for one side of many products: weights, most often.
///
/// It holds an aligned copy in the order in which the kernels read, and remembers the instruction set and
/// the blocking it was packed for; a call that uses others refuses it. A row's result over a packed right
/// operand has the same bits alone and in any batch.
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
    lines: usize,
    depth: usize,
    plan: Plan,
    /// Blocks of depth, one after the other; in each, panels.
    data: Aligned<T>,
}

impl<T: Element> Packed<T> {
    /// Packs the left operand, `[m, k]`.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory, [`Error::Isa`] where `TILEWISE_ISA` is wrong.
    pub fn lhs(a: TensorView<'_, T, 2>) -> Result<Self> {
        T::pack_operand(a, Side::Lhs)
    }

    /// Packs the right operand, `[k, n]`.
    ///
    /// # Errors
    /// As [`lhs`](Self::lhs).
    pub fn rhs(b: TensorView<'_, T, 2>) -> Result<Self> {
        T::pack_operand(b.transpose(), Side::Rhs)
    }

    pub(super) fn pack(source: TensorView<'_, T, 2>, side: Side) -> Result<Self> {
        Self::with(source, Plan::new::<T>(side, machine::isa()?, machine::caches(), source.shape()))
    }

    fn with(source: TensorView<'_, T, 2>, plan: Plan) -> Result<Self> {
        let ([lines, depth], Plan { isa, width, kc, .. }) = (source.shape(), plan);
        let len = packed_len(lines, width, depth).ok_or(Error::Alloc { op: "pack", bytes: usize::MAX })?;
        let mut data = workspace::try_vec("pack", len)?;
        data.resize(len, T::ZERO);
        fill(isa, source, width, kc, &mut data);
        Ok(Self { lines, depth, plan, data })
    }

    /// Rows and columns of the matrix that was packed.
    pub fn shape(&self) -> [usize; 2] {
        match self.plan.side {
            Side::Lhs => [self.lines, self.depth],
            Side::Rhs => [self.depth, self.lines],
        }
    }

    /// Blocks of depth, one after the other; in each, panels.
    pub(crate) fn panels(&self) -> &[T] {
        &self.data
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.plan.isa
    }

    /// Bytes of memory it holds.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<T>()
    }

    pub(crate) fn check(&self, op: &'static str, arg: &'static str, side: Side, isa: Isa) -> Result<()> {
        let needed = Plan::new::<T>(side, isa, machine::caches(), [self.lines, self.depth]);
        let found = self.plan;
        if found == needed {
            return Ok(());
        }
        // What the blocks are is told where nothing else differs.
        let describe = |plan: Plan| {
            if (found.side, found.isa) == (side, isa) {
                format!("{plan} in panels of {} and blocks of depth {}", plan.width, plan.kc)
            } else {
                plan.to_string()
            }
        };
        Err(Error::Packed { op, arg, found: describe(found), expected: describe(needed) })
    }

    pub(crate) fn slab(&self) -> Slab<'_, T> {
        let Plan { kc, width, .. } = self.plan;
        Slab { lines: self.lines, depth: self.depth, kc, width, data: &self.data }
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
        packed_len(lines, tile::<T>(isa).panel(lines), depth)
    }

    /// Packs a right operand, whose lines are its columns, into `data`, which has the length.
    pub(crate) fn pack_rhs(isa: Isa, source: impl PanelSource<T>, data: &mut [T]) {
        let tile = tile::<T>(isa);
        let kc = packed_depth_block::<T>(tile, machine::caches(), source.depth());
        fill(isa, source, tile.panel(source.lines()), kc, data);
    }

    /// The right operand of `depth` rows and `lines` columns that [`pack_rhs`](Self::pack_rhs) put into `data`.
    pub(crate) fn rhs(isa: Isa, lines: usize, depth: usize, data: &'a [T]) -> Self {
        let tile = tile::<T>(isa);
        let kc = packed_depth_block::<T>(tile, machine::caches(), depth);
        Self { lines, depth, kc, width: tile.panel(lines), data }
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

    /// L2 may not hold it: it is large, or L3 is so far that waiting for what passed on to it meanwhile, in a network of many
    /// weights, costs more than asking in vain.
    pub(crate) fn far(&self) -> bool {
        let caches = machine::caches();
        caches.distant() || self.bytes() > caches.l2 / 2
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.data)
    }

    /// Steps of a block of depth.
    pub(crate) fn kc(&self) -> usize {
        self.kc
    }

    /// The panels over the block of depth that begins with `first`, which has `depth` steps.
    pub(crate) fn panels(&self, first: usize, depth: usize) -> Panels<'a, T> {
        debug_assert!(first.is_multiple_of(self.kc));
        let padded = self.lines.next_multiple_of(self.width);
        Panels::Packed { data: &self.data[first * padded..][..depth * padded], width: self.width, depth }
    }

    /// The panel that begins with this line, over the block of depth that begins with `first`, if there is one.
    pub(crate) fn panel(&self, first: usize, line: usize) -> Option<TensorView<'a, T, 2>> {
        let depth = self.depth().saturating_sub(first).min(self.kc);
        if depth > 0 { self.panels(first, depth).next(line, self.width, depth) } else { None }
    }
}

impl<T> std::fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed")
            .field("side", &self.plan.side)
            .field("isa", &self.plan.isa)
            .field("lines", &self.lines)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::gemm::gemm;

    #[test]
    fn panels_of_the_next_depth_are_where_they_are_read() {
        let b = Tensor::<f32, 2>::from_fn([1100, 200], |[p, j]| (p * 200 + j) as f32).unwrap();
        let packed = Packed::rhs(b.view()).unwrap();
        let slab = packed.slab();
        let (width, kc) = (slab.width(), slab.kc());
        assert!(width < 200 && kc < 1100);
        let mut first = 0;
        while first < 1100 {
            let depth = kc.min(1100 - first);
            let panel = slab.panel(first, width).unwrap();
            assert_eq!(panel.shape(), [1, width * depth]);
            assert_eq!(panel.get([0, 0]), b.get([first, width]));
            assert_eq!(panel.get([0, width * (depth - 1)]), b.get([first + depth - 1, width]));
            first += kc;
        }
        assert!(slab.panel(first, 0).is_none() && slab.panel(0, 200_usize.next_multiple_of(width)).is_none());
    }

    #[test]
    fn other_blocking_is_refused() {
        let (isa, here) = (machine::isa().unwrap(), machine::caches());
        let a = Tensor::<f32, 2>::full([3, 2000], 1.0).unwrap();
        let b = Tensor::<f32, 2>::full([2000, 5], 1.0).unwrap();
        let mut c = Tensor::<f32, 2>::full([3, 5], 7.0).unwrap();
        let (lhs, rhs) = (a.view(), b.view().transpose());
        let plan = |side, shape| Plan::new::<f32>(side, isa, here, shape);
        let (left, right) = (plan(Side::Lhs, [3, 2000]), plan(Side::Rhs, [5, 2000]));
        let deeper = Plan { kc: right.kc + 8, ..right };
        let packed = Packed::with(rhs, deeper).unwrap();
        let error = gemm(1.0, a.view(), &packed, 0.0, c.view_mut()).unwrap_err();
        let (width, kc) = (right.width, right.kc);
        assert_eq!(
            error.to_string(),
            format!(
                "gemm: b was packed for the right side with {isa} in panels of {width} and blocks of depth {}, \
                 this call needs the right side with {isa} in panels of {width} and blocks of depth {kc}",
                kc + 8
            )
        );
        let packed = Packed::with(lhs, Plan { width: left.width + 1, ..left }).unwrap();
        assert!(matches!(
            gemm(1.0, &packed, b.view(), 0.0, c.view_mut()),
            Err(Error::Packed { arg: "a", .. })
        ));
        let batch = b.view().insert_axis(0).unwrap();
        let c3 = c.view_mut().insert_axis(0).unwrap();
        let result = super::super::Gemm::new().run_batched(&packed, batch, c3);
        assert!(matches!(result, Err(Error::Packed { arg: "a", .. })));
        assert!(c.iter().all(|&x| x == 7.0), "nothing was written");
        let (lhs, rhs) = (Packed::with(lhs, left).unwrap(), Packed::with(rhs, right).unwrap());
        gemm(1.0, &lhs, &rhs, 0.0, c.view_mut()).unwrap();
        assert!(c.iter().all(|&x| x == 2000.0));
    }
}

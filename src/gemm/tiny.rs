//! Products so small that looking for the best way takes longer than it saves: everything is read where it lies.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::block::Block;
use super::blocking::{LEAST_DEPTH, Order, Tile, tile_rows};
use super::driver::{self, Scale};
use super::panel::{self, Panels};
use crate::element::Element;
use crate::error::Result;
use crate::machine::Isa;
use crate::parallel;
use crate::tensor::{TensorView, TensorViewMut};

/// Multiplications of the largest product that is taken here, 128³.
const MOST: usize = 1 << 21;

/// True where [`product`] takes A `[m, k]` times B `[k, n]`: for one thread, or so few multiplications that no more than
/// one pays. The depth is one block on any machine, so the sums are added up as on any other path.
#[inline]
pub(crate) fn takes<T>([m, n, k]: [usize; 3], b: TensorView<'_, T, 2>, tasks: Option<usize>) -> bool {
    let work = m.saturating_mul(n).saturating_mul(k);
    b.strides()[1] == 1
        && 0 < k
        && k <= LEAST_DEPTH
        && work <= MOST
        && tasks.unwrap_or_else(|| parallel::threads_for(work, driver::GRAIN)) == 1
}

/// C = alpha · A · B + beta · C and the epilogue, on this thread. The shapes have been checked, and neither C nor the
/// depth is empty.
#[inline]
pub(crate) fn product<T: Element>(
    isa: Isa,
    tile: Tile,
    a: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    scale: &Scale<'_, T>,
    mut c: TensorViewMut<'_, T, 2>,
) -> Result<()> {
    let ([m, n], k, b) = (c.shape(), a.shape()[1], b.transpose());
    // Columns that fill whole vectors are read in place, the others packed.
    let whole = tile.whole(n);
    let mut block = |b: Panels<'_, T>, columns: Range<usize>| {
        let mut block = Block {
            a: Panels::Direct(a),
            b,
            tile_rows: tile_rows(tile, [m, columns.len()]),
            depth: k,
            alpha: scale.alpha,
            beta: scale.first_beta(),
            epilogue: (!scale.epilogue.is_empty()).then_some(&scale.epilogue),
            origin: [0, columns.start],
            next: None,
            stream: false,
            order: Order::Usual,
            c: c.tile_mut([0, columns.start], [m, columns.len()]),
        };
        T::block(isa, &mut block);
    };
    if whole < n {
        let width = tile.panel(n - whole);
        let mut rest = driver::scratch(true, n - whole, width, k)?;
        panel::pack(isa, b, whole..n, 0..k, width, &mut rest, false);
        block(Panels::Packed { data: &rest, width, depth: k }, whole..n);
    }
    if whole > 0 {
        block(Panels::Direct(b), 0..whole);
    }
    Ok(())
}

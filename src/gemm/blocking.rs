//! How a product is cut: pure functions of its shape and of machine facts.
#![forbid(unsafe_code)]

use crate::element::Element;
use crate::machine::{Caches, Isa};
use crate::simd::{Simd, SimdOp};

/// The register tile of an instruction set for one element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Rows: elements of A broadcast per step of depth.
    pub rows: usize,
    /// Columns: elements of B loaded as vectors per step of depth.
    pub columns: usize,
}

/// The tile of `isa` for `T`.
pub(crate) fn tile<T: Element>(isa: Isa) -> Tile {
    struct Shape;
    impl<T: Element> SimdOp<T> for Shape {
        type Output = Tile;
        #[inline(always)]
        fn eval<S: Simd<T>>(self, _: S) -> Tile {
            Tile { rows: S::TILE_ROWS, columns: S::TILE_VECTORS * S::LANES }
        }
    }
    T::dispatch(isa, Shape)
}

/// Block sizes of the five loops: `n` in steps of `nc`, `k` of `kc`, `m` of `mc`, then tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocking {
    /// Depth of a block. Depends on `k` alone, so that every path adds in the same order.
    pub kc: usize,
    /// Rows of A kept in L2.
    pub mc: usize,
    /// Columns of B kept in L3.
    pub nc: usize,
}

/// `len` in equal blocks of at most `most`, a multiple of `unit` each but the last.
pub(crate) fn balanced(len: usize, most: usize, unit: usize) -> usize {
    let most = most.max(unit);
    if len <= most {
        return len.max(1);
    }
    len.div_ceil(len.div_ceil(most)).next_multiple_of(unit)
}

/// Depth of a block: a panel of B, `kc` × `columns`, takes up to two thirds of L1 and is read once for each
/// panel of A, which streams through the rest.
pub(crate) fn depth_block<T>(tile: Tile, caches: Caches, k: usize) -> usize {
    let most = caches.l1d * 2 / 3 / (tile.columns * size_of::<T>());
    balanced(k, most.clamp(128, 384), 8)
}

/// All block sizes of an `m` × `n` × `k` product.
pub(crate) fn blocking<T>(tile: Tile, caches: Caches, m: usize, n: usize, k: usize) -> Blocking {
    let kc = depth_block::<T>(tile, caches, k);
    let bytes = kc * size_of::<T>();
    // Half of L2 for A; the other half for the panel of B on its way through, and C.
    let mc = (caches.l2 / 2 / bytes).clamp(tile.rows, 1024) / tile.rows * tile.rows;
    // A share of L3 that other cores and programs leave us, also where L3 is huge.
    let nc = (caches.l3.min(8 << 20) / 2 / bytes).clamp(tile.columns, 4096) / tile.columns * tile.columns;
    Blocking { kc, mc: balanced(m, mc, tile.rows), nc: balanced(n, nc, tile.columns) }
}

/// Height of the tiles for `m` rows: as even as can be, so that 16 rows with tiles of 12 are 8 and 8, not
/// 12 and 4.
pub(crate) fn tile_rows(tile: Tile, m: usize) -> usize {
    m.div_ceil(m.div_ceil(tile.rows).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AVX2: Tile = Tile { rows: 6, columns: 16 };
    const CACHES: Caches = Caches { l1d: 32 << 10, l2: 512 << 10, l3: 32 << 20 };

    #[test]
    fn blocks_are_balanced_and_cover() {
        assert_eq!(balanced(1000, 384, 8), 336);
        assert_eq!(balanced(10, 384, 8), 10);
        assert_eq!(balanced(0, 384, 8), 1);
        for len in 1..2000 {
            let block = balanced(len, 256, 8);
            assert!(block <= 256 + 8 && block.div_ceil(1) > 0);
            assert_eq!(len.div_ceil(block), len.div_ceil(256).max(len.div_ceil(block)));
        }
    }

    #[test]
    fn blocks_fit_their_caches() {
        for k in [1, 8, 100, 256, 1000, 4096] {
            let b = blocking::<f32>(AVX2, CACHES, 3000, 5000, k);
            assert!(b.kc * AVX2.columns * 4 <= CACHES.l1d, "{b:?}");
            assert!(b.mc * b.kc * 4 <= CACHES.l2 / 2 + 1024 * AVX2.rows, "{b:?}");
            assert!(b.nc * b.kc * 4 <= CACHES.l3, "{b:?}");
        }
    }

    #[test]
    fn depth_does_not_depend_on_rows_or_columns() {
        let one = blocking::<f32>(AVX2, CACHES, 1, 1, 1000).kc;
        assert_eq!(one, blocking::<f32>(AVX2, CACHES, 999, 2000, 1000).kc);
    }

    #[test]
    fn tiles_are_even() {
        let tile = Tile { rows: 12, columns: 32 };
        assert_eq!(tile_rows(tile, 16), 8);
        assert_eq!(tile_rows(tile, 12), 12);
        assert_eq!(tile_rows(tile, 13), 7);
        assert_eq!(tile_rows(tile, 1024), 12);
        assert_eq!(tile_rows(tile, 0), 1);
    }
}

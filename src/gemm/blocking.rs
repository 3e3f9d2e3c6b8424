//! How a product is cut: pure functions of its shape and of machine facts.
#![forbid(unsafe_code)]

use super::kernel::{ROWS, VECTORS};
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
    /// Elements of a vector.
    pub lanes: usize,
    /// Rows of a tile with two vectors in a row.
    pub narrow_rows: usize,
    /// A vector of fewer elements is loaded as fast.
    pub masked: bool,
}

impl Tile {
    /// Four vectors in a row: of a panel of B so many take less depth to fill L1.
    pub(super) fn wide(self) -> bool {
        self.columns >= 4 * self.lanes
    }

    /// Vectors of sums, which say for how many rows an operand in memory is read in good time.
    pub(crate) fn sums(self) -> usize {
        self.rows * self.columns / self.lanes
    }

    /// Rows up to which a packed B goes panel by panel through all of them: with more of them, what C costs column by
    /// column is more than what is gained.
    pub(crate) fn most_across(self) -> usize {
        12 * self.sums()
    }

    /// Rows up to which panels of a B in place go one by one through all of them.
    pub(super) fn most_in_turn(self) -> usize {
        4 * self.sums()
    }

    /// Columns of a tile whose last one, alone beside whole vectors, has a kernel over packed panels (7 squared, as images have, are so
    /// many), where there is one.
    pub(super) const fn lone(self) -> Option<usize> {
        let kernel = self.masked && self.columns == VECTORS * self.lanes && self.rows == ROWS;
        if kernel { Some(self.columns - self.lanes + 1) } else { None }
    }

    /// Columns that are best computed of so many, where more may be, by tiles over packed panels of so many rows: whole vectors, but
    /// for a [`lone`](Self::lone) one.
    pub(crate) fn padded(self, rows: usize, n: usize) -> usize {
        let lone = rows == self.rows && self.lone() == Some(n % self.columns);
        if lone { n } else { n.next_multiple_of(self.lanes) }
    }

    /// Width of the panels of a right operand of `n` columns.
    pub(crate) fn panel(self, n: usize) -> usize {
        n.clamp(1, self.columns).next_multiple_of(self.lanes)
    }

    /// The tile of two vectors in a row: as few loads of B as can be.
    pub(crate) fn tall(self) -> Self {
        Self { rows: self.narrow_rows, columns: 2 * self.lanes, ..self }
    }

    /// How many of `n` neighbouring columns can be read in place: whole panels of them, the last of which may be a
    /// vector wide, or as wide as it comes where loads are masked.
    pub(crate) fn whole(self, n: usize) -> usize {
        let rest = n % self.columns;
        if rest == self.lanes || self.masked { n } else { n - rest }
    }

    /// The tile of a token.
    #[inline(always)]
    pub(crate) const fn of<T: Copy, S: Simd<T>>() -> Self {
        Self {
            rows: S::TILE_ROWS,
            columns: S::TILE_VECTORS * S::LANES,
            lanes: S::LANES,
            narrow_rows: S::NARROW_ROWS,
            masked: S::MASKED,
        }
    }
}

/// The tile of `isa` for `T`.
pub(crate) fn tile<T: Element>(isa: Isa) -> Tile {
    struct Shape;
    impl<T: Element> SimdOp<T> for Shape {
        type Output = Tile;
        #[inline(always)]
        fn eval<S: Simd<T>>(self, _: S) -> Tile {
            Tile::of::<T, S>()
        }
    }
    T::dispatch(isa, Shape)
}

/// `len` in equal blocks of at most `most`, a multiple of `unit` each but the last.
pub(crate) fn balanced(len: usize, most: usize, unit: usize) -> usize {
    let most = most.max(unit);
    if len <= most {
        return len.max(1);
    }
    len.div_ceil(len.div_ceil(most)).next_multiple_of(unit)
}

/// Bytes of a panel that stay in L1 beside what else passes through.
pub(crate) const NEAR: usize = 24 << 10;

/// Bytes of memory that the processor looks ahead in, after which addresses fall on the same sets of L1.
pub(super) const PAGE: usize = 4096;

/// No machine has blocks of less depth, where there is more.
pub(crate) const LEAST_DEPTH: usize = 128;

/// Depth of a block: a panel of A stays in L1, and one of B, `kc` × `columns`, which streams past it from L2 or is used by
/// several panels of A, takes up to four thirds of it. More than 256 steps leave fewer panels in L2.
pub(crate) fn depth_block<T>(tile: Tile, caches: Caches, k: usize) -> usize {
    let most = caches.l1d * 4 / 3 / (tile.columns * size_of::<T>());
    balanced(k, most.clamp(LEAST_DEPTH, 256), 8)
}

/// [`depth_block`] of operands that were packed before. No panel of theirs is used again soon, so that its size counts less than how
/// often C is read and written; longer vectors do that more often in the same time.
pub(crate) fn packed_depth_block<T>(tile: Tile, caches: Caches, k: usize) -> usize {
    let most = caches.l1d * 8 / 3 / (tile.columns * size_of::<T>());
    balanced(k, most.clamp(LEAST_DEPTH, (8 * tile.lanes * size_of::<T>()).max(256)), 8)
}

/// Height of the tiles for `m` rows of `n` columns: as even as can be, so that 8 rows with tiles of 6 are 4 and 4, not
/// 6 and 2.
#[inline]
pub(crate) fn tile_rows(tile: Tile, [m, n]: [usize; 2]) -> usize {
    if m <= tile.rows {
        return m.max(1);
    }
    if n > 2 * tile.lanes || tile.narrow_rows <= tile.rows {
        return m.div_ceil(m.div_ceil(tile.rows));
    }
    // There are not kernels for all heights.
    let even = m < 96 && m.is_multiple_of(8) && !m.is_multiple_of(12);
    if m <= 8 || (13..=16).contains(&m) || even { 8 } else { tile.narrow_rows }
}

/// Height of the next tile where `rows` are left for tiles of `tile_rows`, with whole tiles of `most`.
#[inline(always)]
pub(super) fn height(rows: usize, tile_rows: usize, most: usize) -> usize {
    match rows {
        _ if rows >= tile_rows => tile_rows,
        _ if rows <= most || rows == 8 => rows,
        _ => rows.div_ceil(2),
    }
}

/// True where Cᵀ = Bᵀ · Aᵀ is the better way for a row-major C: where both operands are contiguous along the depth, which is
/// long, the one with fewer lines is packed; and where an A that lies along its lines, more than B has, comes from memory, each
/// step of it is read as a row. `beside`: C may be made beside itself.
pub(super) fn turns<T>(
    tile: Tile,
    caches: Caches,
    [m, n, k]: [usize; 3],
    [a, b, c]: [[isize; 2]; 3],
    beside: usize,
) -> bool {
    let bytes = |rows: usize, columns: usize| rows.saturating_mul(columns).saturating_mul(size_of::<T>());
    let kc = depth_block::<T>(tile, caches, k);
    let along = a[1] == 1 && b[0] == 1 && b[1] != 1 && m >= tile.columns && n / 2 >= m;
    let far = bytes(m, k) > caches.share() / 4 && bytes(m, kc) <= caches.l2 / 4;
    let across = a[0] == 1 && a[1] != 1 && m > n && far;
    c[1] == 1 && (along || across) && k > 2 * kc && bytes(m, n) <= beside
}

/// Elements of the largest C that [`turns_small`] for few columns, and only for the order of B.
const SMALL: [usize; 2] = [1 << 20, 1 << 14];

/// True where Cᵀ is made beside a row-major C and turned, which takes less than to pack A and B, as A lies along its lines: these
/// fill vectors, which few columns of B would not, and a B that lies along the depth need not be packed.
#[inline(always)]
pub(super) fn turns_small(tile: Tile, [m, n, k]: [usize; 3], [a, b, c]: [[isize; 2]; 3]) -> bool {
    let across = a[0] == 1 && a[1] != 1 && c[1] == 1 && m >= 2 * tile.lanes && n > 1;
    let size = m.saturating_mul(n);
    let pays = size.saturating_mul(2) <= k.saturating_mul(m.saturating_add(n));
    let (few, along) = (2 * n <= tile.lanes && size <= SMALL[0], b[0] == 1 && b[1] != 1 && size <= SMALL[1]);
    across && pays && (few || along)
}

/// Along which axis, and where, a matrix is cut for `tasks` tasks that take tiles of `units` each, the first half of
/// them what is before the cut; `None` where it is not.
pub(super) fn halve(shape: [usize; 2], units: [usize; 2], tasks: usize) -> Option<(usize, usize)> {
    let tiles = [0, 1].map(|axis| shape[axis].div_ceil(units[axis]));
    if tasks <= 1 || tiles == [1, 1] {
        return None;
    }
    // The longer side: then both parts read the fewest panels.
    let axis = usize::from(tiles[0] == 1 || (tiles[1] > 1 && shape[1] > shape[0]));
    let cut = (tiles[axis] * (tasks / 2) / tasks).clamp(1, tiles[axis] - 1) * units[axis];
    Some((axis, cut))
}

/// [`halve`] where each thread may well read all of B: along the rows if there are enough. What comes before and after a product, as
/// in a network, is cut along them too, so that a thread goes on with what lies in its own caches.
pub(super) fn halve_rows(
    [rows, columns]: [usize; 2],
    units: [usize; 2],
    tasks: usize,
) -> Option<(usize, usize)> {
    const EACH: usize = 8;
    let enough = rows / units[0] >= EACH * tasks;
    halve([rows, if enough { columns.min(rows) } else { columns }], units, tasks)
}

/// Elements of the largest part that [`halve`] leaves for one of `tasks` tasks.
pub(super) fn largest_part(shape: [usize; 2], units: [usize; 2], tasks: usize) -> usize {
    let Some((axis, cut)) = halve(shape, units, tasks) else { return shape[0] * shape[1] };
    let (mut low, mut high) = (shape, shape);
    (low[axis], high[axis]) = (cut, shape[axis] - cut);
    largest_part(low, units, tasks / 2).max(largest_part(high, units, tasks - tasks / 2))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::gemm) const AVX2: Tile =
        Tile { rows: 6, columns: 16, lanes: 8, narrow_rows: 6, masked: false };
    pub(in crate::gemm) const AVX512: Tile =
        Tile { rows: 6, columns: 64, lanes: 16, narrow_rows: 12, masked: true };
    pub(in crate::gemm) const CACHES: Caches = Caches { l1d: 32 << 10, l2: 512 << 10, l3: 32 << 20 };

    #[test]
    fn a_lone_column_beside_vectors_is_not_padded() {
        for (n, expected) in [(49, 49), (113, 113), (81, 96), (50, 64), (65, 80), (1, 16), (64, 64)] {
            assert_eq!(AVX512.padded(6, n), expected, "{n}");
        }
        assert_eq!(AVX512.padded(4, 49), 64, "no kernel for these rows");
        assert_eq!(Tile { masked: true, ..AVX2 }.padded(6, 25), 32, "nor for these columns");
    }

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
    fn packed_operands_have_deeper_blocks_where_vectors_are_longer() {
        let caches = Caches { l1d: 48 << 10, l2: 1 << 20, l3: 32 << 20 };
        let blocks = |tile, caches, k| {
            [depth_block::<f32>(tile, caches, k), packed_depth_block::<f32>(tile, caches, k)]
        };
        assert_eq!(blocks(AVX512, caches, 4096), [256, 512]);
        assert_eq!(blocks(AVX512, caches, 768), [256, 384]);
        assert_eq!(blocks(AVX512, Caches { l1d: 32 << 10, ..caches }, 4096), [168, 320]);
        assert_eq!(blocks(AVX2, CACHES, 4096), [256, 256]);
        assert_eq!(blocks(AVX512, caches, 100), [100, 100]);
    }

    #[test]
    fn the_operand_with_fewer_lines_is_packed() {
        let (rows, columns) = ([800, 1], [1, 800]);
        let turned = |shape, strides| turns::<f32>(AVX2, CACHES, shape, strides, 128 * 64 * 4);
        let along = [rows, columns, rows];
        assert!(turned([64, 128, 800], along));
        assert!(!turned([64, 127, 800], along) && !turned([64, 128, 500], along));
        assert!(!turned([15, 128, 800], along), "of a panel, lanes would be left empty");
        assert!(!turned([64, 129, 800], along), "C is too large");
        assert!(!turned([64, 128, 800], [rows, rows, rows]), "B is not along the depth");
        assert!(!turned([64, 128, 800], [rows, columns, columns]), "C would be turned twice");
    }

    #[test]
    fn steps_from_memory_are_rows() {
        let (rows, columns) = ([800, 1], [1, 800]);
        let turned = |shape, a| turns::<f32>(AVX2, CACHES, shape, [a, rows, rows], 1 << 20);
        assert!(turned([100, 64, 25_000], columns));
        assert!(!turned([100, 64, 10_000], columns), "A stays in a cache");
        assert!(!turned([64, 64, 50_000], columns), "B has as many");
        assert!(!turned([200, 64, 25_000], columns), "a block of it is much of L2");
        assert!(!turned([100, 64, 25_000], rows), "A is along the depth");
    }

    #[test]
    fn halves_are_whole_tiles() {
        assert_eq!(halve([24, 64], [12, 32], 2), Some((1, 32)), "the longer side");
        assert_eq!(halve([64, 24], [12, 32], 2), Some((0, 36)));
        assert_eq!(halve([12, 32], [12, 32], 2), None);
        assert_eq!(halve([24, 64], [12, 32], 1), None);
        assert_eq!(halve_rows([192, 1024], [12, 32], 2), Some((0, 96)));
        assert_eq!(halve_rows([191, 1024], [12, 32], 2), Some((1, 512)), "few rows");
        assert_eq!(largest_part([36, 32], [12, 32], 2), 24 * 32);
        assert_eq!(largest_part([48, 64], [12, 32], 8), 12 * 32);
        assert_eq!(largest_part([48, 64], [12, 32], 3), 48 * 32);
        assert_eq!(largest_part([12, 32], [12, 32], 64), 12 * 32);
    }

    #[test]
    fn tiles_are_even() {
        for (m, wide, narrow) in
            [(0, 1, 1), (1, 1, 1), (6, 6, 6), (8, 4, 8), (13, 5, 8), (16, 6, 8), (1024, 6, 12)]
        {
            assert_eq!([64, 32].map(|n| tile_rows(AVX512, [m, n])), [wide, narrow], "{m}");
            assert_eq!(tile_rows(AVX2, [m, 8]), wide, "{m}");
        }
        // All heights have a kernel, and cover the rows.
        for m in 1..100 {
            let (tile_rows, mut row) = (tile_rows(AVX512, [m, 32]), 0);
            while row < m {
                let height = height(m - row, tile_rows, AVX512.rows);
                assert!(matches!(height, 1..=6 | 8 | 12) && height <= tile_rows, "{m} {row}");
                row += height;
            }
            assert_eq!(row, m);
        }
    }
}

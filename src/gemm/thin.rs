//! Few rows times a matrix that no cache holds: bound by reading B, which is read once, along its rows.
//!
//! ```text
//! for jc in 0..n step nc            columns whose sums stay in L2
//!   for pc in 0..k step kc          depth; A[.., pc] → panels
//!     for p in 0..kc step STEPS     rows of B, read side by side from left to right
//!       for jr step tile columns    a tile's sums are loaded, take in STEPS products, and are stored
//!     C[.., jc] takes in the sums
//! ```
//!
//! The sums of a block of depth are the same chain of additions as in registers.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::blocking::{PAGE, Tile, depth_block, tile_rows};
use super::driver::{self, Extent, Input, Scale, blocks};
use super::panel;
use super::sweep::{Merge, Sweep};
use crate::element::Element;
use crate::error::Result;
use crate::machine::{self, Caches, Isa};
use crate::parallel;
use crate::simd::CACHE_LINE;
use crate::tensor::{TensorView, TensorViewMut};

/// Rows of B that are read side by side: their lines may all compete for one set of L1, which has eight ways or more.
const STEPS: usize = 8;

/// True where [`product`] is the better way for A `[m, k]` times B `[k, n]`.
pub(crate) fn takes<T>(
    tile: Tile,
    caches: Caches,
    [m, n, k]: [usize; 3],
    b: [isize; 2],
    c: [isize; 2],
) -> bool {
    let stride = b[0].unsigned_abs().saturating_mul(size_of::<T>());
    let bytes = k.saturating_mul(stride);
    let few = match tile.columns * size_of::<T>() / CACHE_LINE {
        // Elsewhere each step of a tile is a row of its own of B: some lines of a page, or one.
        ..4 => m <= 6 * tile.sums(),
        // Where it comes from as far as that, a panel of it is asked for while all rows use the one before.
        _ if bytes > caches.share() => m <= if caches.distant() { 1 } else { 4 } * tile.sums(),
        // They are read at the speed of L3 all the same, but where they compete for the same lines of L1 …
        _ if stride.is_multiple_of(PAGE) => 3 * m <= 2 * tile.sums(),
        // … or where two tiles read them and have too few rows to hide it.
        _ => (tile.rows + 1..=tile.rows + 2).contains(&m),
    };
    few && n >= 64 * tile.lanes && b[1] == 1 && c[1] == 1 && bytes > caches.l2 / 2
}

/// What each part of a product needs to know.
struct Thin<'t, T> {
    isa: Isa,
    tile: Tile,
    /// Depth of a block, as on any other path.
    kc: usize,
    a: TensorView<'t, T, 2>,
    b: TensorView<'t, T, 2>,
    scale: &'t Scale<'t, T>,
}

/// C = alpha · A · B + beta · C and the epilogue, with A `[m, k]` and B `[k, n]`. The shapes have been checked. `tasks`
/// overrides how many tasks there are; how many there were is returned.
pub(crate) fn product<T: Element>(
    isa: Isa,
    tile: Tile,
    a: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    scale: &Scale<'_, T>,
    c: TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
) -> Result<usize> {
    let ([m, n], k) = (c.shape(), a.shape()[1]);
    let work = m.saturating_mul(n).saturating_mul(k);
    let tasks = tasks.unwrap_or_else(|| parallel::threads_for(work, driver::grain(tile)));
    let kc = depth_block::<T>(tile, machine::caches(), k);
    Thin { isa, tile: tile.tall(), kc, a, b, scale }.run(c, 0, tasks)?;
    Ok(tasks)
}

impl<T: Element> Thin<'_, T> {
    /// Computes `c`, whose first column is `at` in the product, in `tasks` tasks.
    fn run(&self, c: TensorViewMut<'_, T, 2>, at: usize, tasks: usize) -> Result<()> {
        let width = self.tile.columns;
        let [m, n] = c.shape();
        let tiles = n / width;
        if tasks > 1 && tiles > 1 {
            let half = tasks / 2;
            let cut = (tiles * half / tasks).clamp(1, tiles - 1) * width;
            let (low, high) = c.split_at(1, cut)?;
            let (one, two) =
                parallel::join(|| self.run(low, at, half), || self.run(high, at + cut, tasks - half));
            return one.and(two);
        }
        let (mut c, mut rest) = c.split_at(1, tiles * width)?;
        self.part(&mut c, at)?;
        if rest.is_empty() {
            return Ok(());
        }
        // Columns that fill no tile.
        let at = at + tiles * width;
        let columns = rest.shape()[1];
        let b = self.b.tile([0, at], [self.b.shape()[0], columns]);
        let scale = Scale { epilogue: self.scale.epilogue.columns(at..at + columns), ..*self.scale };
        debug_assert_eq!(rest.shape(), [m, columns]);
        driver::product(
            self.isa,
            Input::Source(self.a),
            Input::Source(b.transpose()),
            &scale,
            rest.view_mut(),
            Some(1),
            Extent::Part,
        )?;
        Ok(())
    }

    /// Whole tiles of columns, on this thread.
    fn part(&self, c: &mut TensorViewMut<'_, T, 2>, at: usize) -> Result<()> {
        let ([m, n], k, caches) = (c.shape(), self.a.shape()[1], machine::caches());
        let height = tile_rows(self.tile, [m, n]);
        let kc = self.kc;
        let most = caches.l2 / 4 / size_of::<T>() / m;
        let nc = most.max(32 * self.tile.columns) / self.tile.columns * self.tile.columns;
        // All memory first: where it is lacking, these columns have not been written.
        let mut panels = driver::scratch(true, m, height, kc)?;
        let mut sums = driver::scratch::<T>(true, nc.min(n), 1, m)?;
        for columns in blocks(0..n, nc) {
            for steps in blocks(0..k, kc) {
                let len = m.next_multiple_of(height) * steps.len();
                panel::pack(self.isa, self.a, 0..m, steps.clone(), height, &mut panels[..len], false);
                for some in blocks(steps.clone(), STEPS) {
                    let b = self.b.tile([some.start, at + columns.start], [some.len(), columns.len()]);
                    for rows in blocks(0..m, height) {
                        let first = rows.start * steps.len() + (some.start - steps.start) * height;
                        let mut sweep = Sweep {
                            a: &panels[first..first + some.len() * height],
                            width: height,
                            rows: rows.len(),
                            b,
                            sums: &mut sums[part_of(&rows, columns.len())],
                            first: some.start == steps.start,
                        };
                        T::sweep(self.isa, &mut sweep);
                    }
                }
                let last = steps.end == k && !self.scale.epilogue.is_empty();
                for rows in blocks(0..m, height) {
                    let mut merge = Merge {
                        sums: &sums[part_of(&rows, columns.len())],
                        alpha: self.scale.alpha,
                        beta: if steps.start == 0 { self.scale.first_beta() } else { Some(T::ONE) },
                        epilogue: last.then_some(&self.scale.epilogue),
                        origin: [rows.start, at + columns.start],
                        c: c.tile_mut([rows.start, columns.start], [rows.len(), columns.len()]),
                    };
                    T::merge(self.isa, &mut merge);
                }
            }
        }
        Ok(())
    }
}

/// Where the sums of some rows lie.
fn part_of(rows: &Range<usize>, columns: usize) -> Range<usize> {
    rows.start * columns..rows.end * columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::gemm::blocking::tests::{AVX2, AVX512, CACHES};
    use crate::gemm::epilogue::Epilogue;
    use crate::gemm::tile;
    use crate::{Tensor, reference};

    #[test]
    fn few_rows_and_a_large_matrix() {
        let takes = |m, n, k, b| takes::<f32>(AVX2, CACHES, [m, n, k], b, [n as isize, 1]);
        assert!(takes(8, 4096, 4096, [4096, 1]));
        assert!(takes(24, 512, 4096, [-512, 1]) && takes(72, 512, 4096, [512, 1]));
        assert!(!takes(73, 4096, 4096, [4096, 1]), "rows enough to pack for");
        assert!(!takes(8, 256, 256, [256, 1]), "in L2");
        assert!(!takes(8, 496, 4096, [496, 1]), "rows too short");
        assert!(!takes(8, 4096, 4096, [1, 4096]), "columns contiguous");
        let takes =
            |m, n, k| super::takes::<f32>(AVX512, CACHES, [m, n, k], [n as isize, 1], [n as isize, 1]);
        assert!(takes(96, 4096, 4096) && !takes(97, 4096, 4096), "no cache holds it");
        let server = Caches { l3: 480 << 20, ..CACHES };
        let far = |m| super::takes::<f32>(AVX512, server, [m, 4096, 4096], [4096, 1], [4096, 1]);
        assert!(far(24) && !far(25), "panels of it are asked for");
        assert!(takes(16, 4096, 1024) && !takes(17, 4096, 1024), "rows on the same sets of L1");
        let [six, eight, nine] = [6, 8, 9].map(|m| takes(m, 4000, 1024));
        assert!(!six && eight && !nine, "rows of one tile, of two, and more");
    }

    /// Small whole numbers: sums are exact in any order.
    #[test]
    fn every_number_of_rows_on_every_instruction_set() {
        fn check<T: Element>(isa: Isa, [m, n, k]: [usize; 3]) {
            let numbers = |rows: usize, columns: usize, step: usize| {
                Tensor::from_fn([rows, columns], |[i, j]| T::from_f64(((i * 7 + j * step) % 7) as f64 - 3.0))
                    .unwrap()
            };
            let (a, b, mut c) = (numbers(m, k, 5), numbers(k, n, 3), numbers(m, n, 2));
            let expected = reference::gemm(T::ONE, a.view(), b.view(), T::ONE, c.view()).unwrap();
            let epilogue = Epilogue { bias: None, residual: None, activation: Activation::Identity };
            let scale = Scale { alpha: T::ONE, beta: T::ONE, epilogue };
            product(isa, tile::<T>(isa), a.view(), b.view(), &scale, c.view_mut(), Some(2)).unwrap();
            let same = c.iter().zip(expected.iter()).all(|(c, expected)| c.to_f64() == *expected);
            assert!(same, "{isa} {m} {n} {k}");
            // Others round, and to the bits of the blocked path.
            let fractions = |[rows, columns]: [usize; 2], step: usize| {
                Tensor::from_fn([rows, columns], |[i, j]| {
                    T::from_f64(((i * 7 + j * step) % 101) as f64 / 33.0)
                })
                .unwrap()
            };
            let (a, b, mut blocked) =
                (fractions([m, k], 5), fractions([k, n], 3), c.view().to_tensor().unwrap());
            product(isa, tile::<T>(isa), a.view(), b.view(), &scale, c.view_mut(), Some(1)).unwrap();
            let sources = (Input::Source(a.view()), Input::Source(b.view().transpose()));
            driver::product(isa, sources.0, sources.1, &scale, blocked.view_mut(), Some(1), Extent::Part)
                .unwrap();
            assert!(
                c.iter().zip(blocked.iter()).all(|(c, blocked)| c.to_f64() == blocked.to_f64()),
                "{isa} {m} {n} {k}"
            );
        }
        for &isa in machine::supported() {
            for m in (1..=26).chain([47, 48, 60, 96]) {
                check::<f32>(isa, [m, 133, 600]);
                check::<f64>(isa, [m, 133, 70]);
            }
        }
    }
}

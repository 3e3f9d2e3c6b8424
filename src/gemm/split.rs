//! Products of few tiles and much depth: their blocks of depth are the tasks.
//!
//! ```text
//!            k                          partial products, one for each block of depth
//!   ┌───┬───┬───┬───┐  ┌───┐               ┌─┐ ┌─┐ ┌─┐ ┌─┐
//! m │   │   │   │ A │  ├───┤ B             └─┘+└─┘+└─┘+└─┘  → C, in this order
//!   └───┴───┴───┴───┘  ├───┤
//!     kc                 n
//! ```
//!
//! The blocked path adds block after block to C too, by the same operations: the bits are the same.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::block::Store;
use super::blocking::{Tile, largest_part, tile_rows};
use super::driver::{Product, Scale, scratch};
use super::epilogue::Epilogue;
use super::panel::PanelSource;
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{Caches, Isa};
use crate::parallel;
use crate::simd::{Simd, SimdOp, kernels};
use crate::tensor::TensorViewMut;

/// Elements of partial products that are kept at a time; more blocks than fit are taken in rounds.
const KEPT: usize = 1 << 18;

/// True where [`product`] is the better way for an `[m, n]` of this depth: where so few tiles go unevenly, or read from
/// beyond L2 what others read too, while there are blocks of depth enough.
pub(super) fn takes<T>(
    tile: Tile,
    caches: Caches,
    [m, n, k]: [usize; 3],
    blocks: usize,
    threads: usize,
) -> bool {
    let tiles = m.div_ceil(tile.rows).saturating_mul(n.div_ceil(tile.columns));
    if threads <= 1 || blocks < threads.saturating_mul(2) || tiles > threads.saturating_mul(4) {
        return false;
    }
    let largest = largest_part([m, n], [tile_rows(tile, [m, n]), tile.columns], threads);
    // What the threads wait for each other must be worth more than what adding up takes.
    let uneven = largest.saturating_mul(threads) / 9 > m.saturating_mul(n) / 8;
    let bytes = (m + n).saturating_mul(k).saturating_mul(size_of::<T>());
    uneven || bytes / 3 > caches.l2 / 2
}

/// Blocks of depth whose partial products are kept at a time.
fn round(blocks: usize, elements: usize, threads: usize) -> usize {
    (KEPT / elements.max(1)).max(threads.saturating_mul(2)).min(blocks).max(1)
}

/// The depth of a round, of that which is left: what the first task takes, and the others.
fn shares(left: Range<usize>, kc: usize, round: usize, tasks: usize) -> [Range<usize>; 2] {
    let stop = left.end.min(left.start + round * kc);
    let own = (stop - left.start).div_ceil(kc).div_ceil(tasks);
    // The last block may be a short one, and alone.
    let middle = stop.min(left.start + own * kc);
    [left.start..middle, middle..stop]
}

/// C = alpha · A · B + beta · C and the epilogue, in `tasks` tasks. The first adds its blocks of depth up, as the
/// blocked path does; the partial products of the others wait for that.
pub(super) fn product<T: Element, A: PanelSource<T>, B: PanelSource<T>>(
    product: &Product<'_, T, A, B>,
    mut c: TensorViewMut<'_, T, 2>,
    tasks: usize,
) -> Result<()> {
    let (shape, scale, kc, end) = (c.shape(), product.scale, product.kc, product.depth.end);
    let elements = shape[0].checked_mul(shape[1]).ok_or(Error::Alloc { op: "gemm", bytes: usize::MAX })?;
    let round = round(product.depth.len().div_ceil(kc), elements, tasks);
    let mut sums = scratch::<T>(true, elements, 1, 1)?;
    let mut partials = scratch::<T>(true, round - round.div_ceil(tasks), 1, elements)?;
    if scale.first_beta().is_some() {
        TensorViewMut::matrix(&mut sums, shape).copy_from(c.view());
    }
    let epilogue = Epilogue { bias: None, residual: None, activation: Activation::Identity };
    for start in product.depth.clone().step_by(round * kc) {
        let [own, others] = shares(start..end, kc, round, tasks);
        let beta = if start == product.depth.start { scale.beta } else { T::ONE };
        let [adding, alone] = [beta, T::ZERO].map(|beta| Scale { alpha: scale.alpha, beta, epilogue });
        let partials = &mut partials[..others.len().div_ceil(kc) * elements];
        let first = Product { depth: own, scale: &adding, store: Store::Near, ..*product };
        let others = Product { depth: others, scale: &alone, store: Store::Near, ..*product };
        let (one, two) = parallel::join(
            || first.run(TensorViewMut::matrix(&mut sums, shape), [0, 0], 1),
            || blocks(&others, partials, shape, tasks - 1),
        );
        one.and(two)?;
        T::add_partials(product.isa, Add { partials, sums: &mut sums });
    }
    T::finish_sums(product.isa, Finish { epilogue: &scale.epilogue, sums: &mut sums, c: &mut c });
    Ok(())
}

/// The products `[m, n]` of all blocks of depth, one after the other.
fn blocks<T: Element, A: PanelSource<T>, B: PanelSource<T>>(
    product: &Product<'_, T, A, B>,
    partials: &mut [T],
    shape: [usize; 2],
    tasks: usize,
) -> Result<()> {
    let (size, kc, depth) = (shape[0] * shape[1], product.kc, product.depth.clone());
    let count = partials.len() / size;
    if tasks > 1 && count > 1 {
        let half = tasks / 2;
        let cut = (count * half / tasks).clamp(1, count - 1);
        let (low, high) = partials.split_at_mut(cut * size);
        let middle = depth.start + cut * kc;
        let parts = [depth.start..middle, middle..depth.end];
        let [one, two] = parts.map(|depth| Product { depth, ..*product });
        let (one, two) =
            parallel::join(|| blocks(&one, low, shape, half), || blocks(&two, high, shape, tasks - half));
        return one.and(two);
    }
    for (start, partial) in depth.clone().step_by(kc).zip(partials.chunks_exact_mut(size)) {
        let block = Product { depth: start..depth.end.min(start + kc), ..*product };
        block.run(TensorViewMut::matrix(partial, shape), [0, 0], 1)?;
    }
    Ok(())
}

/// Elements that take in one partial product after the other: they stay in L1.
const RUN: usize = 2048;

kernels! {
    /// Element types with what a split depth wants beside the product.
    pub trait Sums {
        /// [`Add`].
        fn add_partials(isa: Isa, op: Add<'_, Self>);

        /// [`Finish`].
        fn finish_sums(isa: Isa, op: Finish<'_, '_, Self>);
    }
}

/// The sums take in the partial products, which lie one after the other.
pub struct Add<'s, T> {
    partials: &'s [T],
    sums: &'s mut [T],
}

impl<T: Element> SimdOp<T> for Add<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let size = self.sums.len();
        for (at, sums) in (0..size).step_by(RUN).zip(self.sums.chunks_mut(RUN)) {
            for partial in self.partials.chunks_exact(size) {
                let partial = &partial[at..at + sums.len()];
                for (sums, partial) in sums.chunks_mut(S::LANES).zip(partial.chunks(S::LANES)) {
                    simd.store_partial(simd.add(simd.load_partial(sums), simd.load_partial(partial)), sums);
                }
            }
        }
    }
}

/// The epilogue over the sums, and C gets them.
pub struct Finish<'s, 'c, T> {
    epilogue: &'s Epilogue<'s, T>,
    sums: &'s mut [T],
    c: &'s mut TensorViewMut<'c, T, 2>,
}

impl<T: Element> SimdOp<T> for Finish<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let shape = self.c.shape();
        if !self.epilogue.is_empty() {
            for (i, row) in self.sums.chunks_exact_mut(shape[1]).enumerate() {
                self.epilogue.apply(simd, i, 0, row);
            }
        }
        self.c.copy_from(TensorViewMut::matrix(self.sums, shape).view());
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocking::tests::{AVX2, CACHES};
    use super::*;

    #[test]
    fn depth_is_split_where_tiles_are_few_and_blocks_are_many() {
        let takes = |m, n, k, threads| takes::<f32>(AVX2, CACHES, [m, n, k], k / 256, threads);
        assert!(takes(6, 16, 4096, 2) && takes(18, 16, 4096, 2) && takes(6, 80, 4096, 2), "uneven");
        assert!(!takes(6, 32, 4096, 2) && !takes(24, 16, 4096, 2), "even, and in L2");
        assert!(takes(6, 32, 8192, 2) && takes(24, 16, 8192, 2), "even, but not in L2");
        assert!(!takes(48, 32, 65536, 2), "tiles enough");
        assert!(takes(24, 48, 4096, 8) && !takes(24, 48, 3840, 8), "two blocks for each thread");
        assert!(!takes(6, 16, 65536, 1), "one thread adds up as it goes");
    }

    #[test]
    fn rounds_end_where_the_depth_does() {
        for (kc, round, tasks) in [(8, 1, 2), (8, 2, 2), (8, 5, 2), (8, 5, 3), (8, 16, 8), (8, 17, 8)] {
            for end in 1..2 * round * kc + 2 {
                for start in (0..end).step_by(round * kc) {
                    let [own, others] = shares(start..end, kc, round, tasks);
                    assert!(own.start == start && !own.is_empty() && own.end == others.start);
                    assert_eq!(others.end, end.min(start + round * kc));
                    // Whole blocks, and no more than there is room for.
                    assert!(own.len().is_multiple_of(kc) || others.is_empty());
                    assert!(others.len().div_ceil(kc) <= round - round.div_ceil(tasks));
                }
            }
        }
    }

    #[test]
    fn partial_products_are_bounded() {
        assert_eq!(round(256, 16 * 16, 2), 256);
        assert_eq!(round(1 << 20, 16 * 16, 2), KEPT / 256);
        // However large C is, each thread finds blocks.
        assert_eq!(round(1000, 2 * KEPT, 8), 16);
        assert_eq!(round(3, 2 * KEPT, 8), 3);
        assert_eq!(round(0, 0, 0), 1);
    }
}

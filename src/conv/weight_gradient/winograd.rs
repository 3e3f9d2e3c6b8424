//! The gradient for 3 × 3 weights in fewer multiplications: the adjoint of F(2 × 2, 3 × 3), or F(4 × 4, 3 × 3), for the filter.
//!
//! With y = Aᵀ ((G g Gᵀ) ⊙ (Bᵀ d B)) A for each tile, dg = Gᵀ (Σ over tiles of (A dy Aᵀ) ⊙ (Bᵀ d B)) G: for each of 16 points, or 36,
//! a product over tiles: 4 multiplications for each output and pair of channels, or 2.25, where there are 9.
//!
//! ```text
//! for some boxes of tiles, one for each task                some dozen to 256 tiles
//!     pixels → Bᵀ d B, dZ → A dy Aᵀ                         [point][tile][channel], tasks are boxes
//!     for each box, in order
//!         M[point] += dZ[point]ᵀ · X[point]                 tasks are points
//! Gᵀ M G → dW                                               tasks are output channels
//! ```
//!
//! An element is added up box by box, tile by tile, whoever computes it.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::conv::Algorithm;
use crate::conv::correlate::winograd;
use crate::conv::depthwise::Reach;
use crate::conv::implicit::{count, nth, sizes};
use crate::conv::winograd::{Source, weights};
use crate::element::Element;
use crate::error::Result;
use crate::gemm::{Block, Order, Panels, Store, Tile, blocks, tile, tile_rows};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{MOST_LANES, Simd, SimdOp};
use crate::spatial::Sliding;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{self, product};

/// Outputs along a side of the tiles for a gradient, 2 or 4; 0 where it does not fit, or where `algorithm` leaves the choice and it
/// does not pay: of one group, over images without depth.
pub(super) fn outputs<T>(
    [x, dz]: [&TensorView<'_, T, 5>; 2],
    groups: usize,
    sliding: &Sliding,
    algorithm: Algorithm,
) -> usize {
    let ([images, rows, depth, height, width], [_, channels, ..]) = (dz.shape(), x.shape());
    if groups != 1 || depth != 1 || sliding.padding[0] != [0; 2] || dz.is_empty() {
        return 0;
    }
    let plain = [sliding.stride, sliding.dilation] == [[1; 3]; 2];
    let [d, h, w] = sliding.kernel;
    match winograd(algorithm, [rows, channels, d, h, w], plain, Some(images * height * width)) {
        2 if algorithm == Algorithm::Auto && suits_four([height, width]) => 4,
        outputs => outputs,
    }
}

/// Whether tiles of 4 × 4 outputs are nearly full, and so many in an image that the sums are as accurate as those of the patches,
/// which grow with the positions: those of few are not.
fn suits_four(image: [usize; 2]) -> bool {
    let [full, padded] =
        [1, 4].map(|unit| image.iter().fold(1usize, |n, size| n.saturating_mul(size.div_ceil(unit) * unit)));
    full >= 400 && padded <= full.saturating_add(full / 5)
}

/// Tiles of a box: fewer, and the sums go by too often; more, and what is transformed goes to memory.
const TILES: [usize; 2] = [64, 256];
/// Bytes of the boxes that are there at a time, where there are several.
const TOGETHER: usize = 64 << 20;

/// A gradient for tiles of `O` outputs along a side and `P` pixels.
pub(super) struct Winograd<'a, T, const O: usize, const P: usize> {
    op: &'static str,
    isa: Isa,
    tile: Tile,
    /// X and dZ, `[images, channels, 1, height, width]`.
    operands: [TensorView<'a, T, 5>; 2],
    sources: [Source; 2],
    /// Images, 1, rows and columns of tiles, and of a box of them.
    tiles: [usize; 4],
    sizes: [usize; 4],
}

impl<'a, T: Element, const O: usize, const P: usize> Winograd<'a, T, O, P> {
    /// Where [`outputs`] are `O`.
    pub(super) fn new(
        op: &'static str,
        isa: Isa,
        operands: [TensorView<'a, T, 5>; 2],
        sliding: &Sliding,
    ) -> Self {
        let [x, dz] = &operands;
        let [images, outputs, _, height, width] = dz.shape();
        let (tile, inputs) = (tile::<T>(isa), x.shape()[1]);
        let tiles = [images, 1, height.div_ceil(O), width.div_ceil(O)];
        let one = outputs.saturating_add(inputs).saturating_mul(P * P * size_of::<T>());
        let sizes = sizes(tiles, (machine::caches().l2 / one.max(1)).clamp(TILES[0], TILES[1]));
        let room = [sizes[0], sizes[2] * O, sizes[3] * O];
        let sources = [
            Source::new(x, inputs, Reach::of(sliding), tile.lanes, room),
            Source::new(dz, outputs, Reach::SELF, tile.lanes, room),
        ];
        Self { op, isa, tile, operands, sources, tiles, sizes }
    }

    /// Computes `dw`, `[outputs, inputs, 1, 3, 3]`.
    pub(super) fn run(&self, dw: TensorViewMut<'_, T, 5>, tasks: usize) -> Result<()> {
        let Self { op, isa, ref sources, tiles, sizes, .. } = *self;
        let [outputs, inputs, ..] = dw.shape();
        // Odd numbers of vectors and of tiles keep the points of a tile apart in L1.
        let apart = sizes.iter().product::<usize>() | 1;
        let mut shares = [0; 2];
        for (share, source) in shares.iter_mut().zip(sources) {
            *share = product(op, &[P * P, apart, source.pitch])?.saturating_add(source.room);
        }
        let [share, of_box] = [shares[0], shares[0].saturating_add(shares[1])];
        let all = count(tiles, sizes);
        let few = (TOGETHER / of_box.saturating_mul(size_of::<T>()).max(1)).max(1);
        let together = tasks.clamp(1, all).min(few);
        let mut data = workspace::scratch(op, product(op, &[together, of_box])?)?;
        let columns = inputs.next_multiple_of(self.tile.lanes);
        let point = product(op, &[outputs, columns])?;
        let mut sums = workspace::scratch(op, product(op, &[P * P, point])?)?;

        for some in blocks(0..all, together) {
            parallel::for_each_chunk_mut(&mut data[..some.len() * of_box], of_box, tasks, &|first, data| {
                for (index, data) in (some.start + first..).zip(data.chunks_exact_mut(of_box)) {
                    let (x, dz) = data.split_at_mut(share);
                    self.transform::<P>(0, index, apart, x);
                    self.transform::<O>(1, index, apart, dz);
                }
            });
            let data = &data[..];
            parallel::for_each_chunk_mut(&mut sums, point, tasks, &|first, sums| {
                for (index, sums) in sums.chunks_exact_mut(point).enumerate() {
                    for (i, data) in some.clone().zip(data.chunks_exact(of_box)) {
                        let depth = nth(tiles, sizes, i).iter().map(Range::len).product();
                        let (x, dz) = data.split_at(share);
                        let tile = (first + index) * apart;
                        let a = sources[1].point(dz, tile, [outputs, depth]);
                        let b = sources[0].point(x, tile, [columns, depth]);
                        let (Ok(a), Ok(b)) = (a, b) else { return };
                        let mut block = Block {
                            a: Panels::Direct(a),
                            b: Panels::Direct(b),
                            tile_rows: tile_rows(self.tile, [outputs, columns]),
                            depth,
                            alpha: T::ONE,
                            beta: (i > 0).then_some(T::ONE),
                            epilogue: None,
                            origin: [0; 2],
                            next: None,
                            store: Store::Near,
                            order: Order::Usual,
                            ask: false,
                            panel: &mut [],
                            c: TensorViewMut::matrix(sums, [outputs, columns]),
                        };
                        T::block(isa, &mut block);
                    }
                }
            });
        }
        self.finish(dw, [0], (&sums, point, columns), tasks)
    }

    /// The points of a box of tiles, of X (0) with `SPAN` = `P` pixels along a side of a tile, of dZ (1) with `O`.
    fn transform<const SPAN: usize>(&self, operand: usize, index: usize, apart: usize, data: &mut [T]) {
        let [n, d, th, tw] = nth(self.tiles, self.sizes, index);
        let source = &self.sources[operand];
        let (copy, v) = data.split_at_mut(source.room);
        let Ok(x) = self.operands[operand].slice(0, n.clone(), 1) else { return };
        let place = [d.start, th.start * O, tw.start * O];
        let sizes = [n.len(), th.len(), tw.len()];
        source.transform::<T, O, SPAN, P>(self.isa, x, (place, sizes), copy, (v, apart * source.pitch));
    }

    /// Gᵀ M G of the output channels from `at` on.
    fn finish(
        &self,
        dw: TensorViewMut<'_, T, 5>,
        at: [usize; 1],
        sums: (&[T], usize, usize),
        tasks: usize,
    ) -> Result<()> {
        if tasks > 1 && dw.shape()[0] > 1 {
            return parallel::halves(dw, at, (0, 1), tasks, &|dw, at, tasks| {
                self.finish(dw, at, sums, tasks)
            });
        }
        let (sums, point, columns) = sums;
        let sums = &sums[at[0] * columns..];
        T::dispatch(self.isa, Weights::<T, P> { dw, sums, point, columns });
        Ok(())
    }
}

struct Weights<'w, T, const P: usize> {
    dw: TensorViewMut<'w, T, 5>,
    /// `[point][output][input]`, from the first output on: elements between points, and between outputs.
    sums: &'w [T],
    point: usize,
    columns: usize,
}

impl<T: Element, const P: usize> SimdOp<T> for Weights<'_, T, P> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { mut dw, sums, point, columns } = self;
        let [outputs, inputs, ..] = dw.shape();
        let mut turned = [T::ZERO; 9 * MOST_LANES];
        for o in 0..outputs {
            let Ok(mut dw) = dw.view_mut().select::<4>(0, o) else { return };
            for first in (0..inputs).step_by(S::LANES) {
                let taps = weights::<T, S, P>(simd, &sums[o * columns + first..], point);
                // Lane by lane the nine taps, the last four with some before them again.
                simd.store_transposed([taps[0], taps[1], taps[2], taps[3]], &mut turned, 9);
                simd.store_transposed([taps[4], taps[5], taps[6], taps[7]], &mut turned[4..], 9);
                simd.store_transposed([taps[5], taps[6], taps[7], taps[8]], &mut turned[5..], 9);
                let count = S::LANES.min(inputs - first);
                if let Some(run) = dw.as_mut_slice() {
                    run[first * 9..][..count * 9].copy_from_slice(&turned[..count * 9]);
                    continue;
                }
                for (i, taps) in turned.chunks_exact(9).enumerate().take(count) {
                    for (tap, &x) in taps.iter().enumerate() {
                        if let Some(to) = dw.get_mut([first + i, 0, tap / 3, tap % 3]) {
                            *to = x;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::suits_four;

    #[test]
    fn large_images_have_large_tiles() {
        assert!(suits_four([20, 20]) && suits_four([56, 56]) && suits_four([4, 100]));
        // Few outputs, and tiles that are half empty.
        assert!(
            !suits_four([14, 14]) && !suits_four([16, 24]) && !suits_four([2, 400]) && !suits_four([0, 7])
        );
        assert!(suits_four([usize::MAX / 8 * 4, 4]));
    }
}

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
use crate::conv::correlate::pays;
use crate::conv::emit::channels_last;
use crate::conv::pixels::{Fill, Pixels};
use crate::conv::winograd::{Patches, weights};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Block, Order, Panels, Tile, balanced, blocks, tile, tile_rows};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::spatial::Sliding;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Whether tiles of 4 × 4 outputs are nearly full, and so many in an image that the sums are as accurate as those of the patches,
/// which grow with the positions: those of few are not.
pub(super) fn suits_four(image: [usize; 2]) -> bool {
    let [full, padded] =
        [1, 4].map(|unit| image.iter().fold(1usize, |n, size| n.saturating_mul(size.div_ceil(unit) * unit)));
    full >= 400 && padded <= full.saturating_add(full / 5)
}

/// Tiles of a box: fewer, and the sums go by too often; more, and what is transformed goes to memory.
const TILES: [usize; 2] = [64, 256];
/// Bytes of the boxes that are there at a time, where there are several.
const TOGETHER: usize = 64 << 20;

/// A gradient of one group, over images without depth, for tiles of `O` outputs along a side and `P` pixels.
pub(super) struct Winograd<'a, T, const O: usize, const P: usize> {
    op: &'static str,
    isa: Isa,
    tile: Tile,
    /// X and dZ, `[images, channels, 1, height, width]`.
    operands: [TensorView<'a, T, 5>; 2],
    /// Of the image position under the first tile.
    start: [isize; 2],
    /// Images, rows and columns of tiles, and of a box of them.
    tiles: [usize; 3],
    sizes: [usize; 3],
}

/// Of X or dZ the part of a box's memory: the copy of its pixels, and what they become.
#[derive(Clone, Copy)]
struct Share {
    pixels: Pixels,
    in_place: bool,
    /// Elements of the copy, or of the zeros around the image.
    copy: usize,
    /// Elements from tile to tile.
    pitch: usize,
}

impl Share {
    /// A point's tiles from `tile` of all points' on, `[channels, tiles]`.
    fn point<'d, T>(&self, data: &'d [T], tile: usize, shape: [usize; 2]) -> Result<TensorView<'d, T, 2>> {
        TensorView::as_strided(&data[self.copy + tile * self.pitch..], shape, [1, self.pitch as isize])
    }
}

impl<'a, T: Element, const O: usize, const P: usize> Winograd<'a, T, O, P> {
    /// `None` where it does not fit, or where `algorithm` leaves the choice and it does not pay.
    pub(super) fn new(
        op: &'static str,
        isa: Isa,
        [x, dz]: [TensorView<'a, T, 5>; 2],
        groups: usize,
        sliding: &Sliding,
        algorithm: Algorithm,
    ) -> Option<Self> {
        let [images, outputs, depth, height, width] = dz.shape();
        let fits = groups == 1
            && sliding.kernel == [1, 3, 3]
            && [sliding.stride, sliding.dilation] == [[1; 3]; 2]
            && sliding.padding[0] == [0; 2]
            && depth == 1
            && !dz.is_empty();
        let chosen = match algorithm {
            Algorithm::Auto => pays([outputs, x.shape()[1]], Some(images * height * width)),
            Algorithm::ImplicitGemm => false,
            Algorithm::Winograd2 | Algorithm::Winograd4 => true,
        };
        if !fits || !chosen {
            return None;
        }
        let tile = tile::<T>(isa);
        let tiles = [images, height.div_ceil(O), width.div_ceil(O)];
        let channels = outputs.saturating_add(x.shape()[1]).saturating_mul(P * P * size_of::<T>());
        let most = (machine::caches().l2 / channels.max(1)).clamp(TILES[0], TILES[1]);
        let (mut sizes, mut unit) = ([1; 3], 1);
        for axis in (0..3).rev() {
            sizes[axis] = balanced(tiles[axis], (most / unit).max(1), 1);
            if sizes[axis] < tiles[axis] {
                break;
            }
            unit *= sizes[axis];
        }
        let start = [1, 2].map(|axis| -(sliding.padding[axis][0] as isize));
        Some(Self { op, isa, tile, operands: [x, dz], start, tiles, sizes })
    }

    /// Computes `dw`, `[outputs, inputs, 1, 3, 3]`.
    pub(super) fn run(&self, dw: TensorViewMut<'_, T, 5>, tasks: usize) -> Result<()> {
        let Self { op, isa, tile, sizes, .. } = *self;
        let [outputs, inputs, ..] = dw.shape();
        let most: usize = sizes.iter().product();
        let product = |sizes: &[usize]| {
            let len = sizes.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
            len.ok_or(Error::Alloc { op, bytes: usize::MAX })
        };
        // Odd numbers of vectors and of tiles keep the points of a tile apart in L1.
        let apart = most | 1;
        let shares = [self.share(0), self.share(1)];
        let mut of_box = 0usize;
        for share in &shares {
            let len = product(&[P * P, apart, share.pitch])?.checked_add(share.copy);
            of_box =
                len.and_then(|len| len.checked_add(of_box)).ok_or(Error::Alloc { op, bytes: usize::MAX })?;
        }
        let all: usize = (0..3).map(|axis| self.tiles[axis].div_ceil(sizes[axis])).product();
        let few = (TOGETHER / of_box.saturating_mul(size_of::<T>()).max(1)).max(1);
        let together = tasks.clamp(1, all).min(few);
        let mut boxes_data = workspace::scratch(op, product(&[together, of_box])?)?;
        let columns = inputs.next_multiple_of(tile.lanes);
        let point = product(&[outputs, columns])?;
        let mut sums = workspace::scratch(op, product(&[P * P, point])?)?;

        for some in blocks(0..all, together) {
            let data = &mut boxes_data[..some.len() * of_box];
            parallel::for_each_chunk_mut(data, of_box, tasks, &|first, data| {
                for (index, data) in (some.start + first..).zip(data.chunks_exact_mut(of_box)) {
                    let part = &self.part(index);
                    let (x, dz) = data.split_at_mut(shares[0].copy + P * P * apart * shares[0].pitch);
                    self.transform::<P>(0, part, &shares[0], apart, x);
                    self.transform::<O>(1, part, &shares[1], apart, dz);
                }
            });
            let data = &boxes_data[..];
            parallel::for_each_chunk_mut(&mut sums, point, tasks, &|first, sums| {
                for (index, sums) in sums.chunks_exact_mut(point).enumerate() {
                    for (i, data) in some.clone().zip(data.chunks_exact(of_box)) {
                        let count = self.part(i).iter().map(Range::len).product();
                        let (x, dz) = data.split_at(shares[0].copy + P * P * apart * shares[0].pitch);
                        let at = (first + index) * apart;
                        let b = shares[0].point(x, at, [columns, count]);
                        let (Ok(a), Ok(b)) = (shares[1].point(dz, at, [outputs, count]), b) else {
                            return;
                        };
                        let mut block = Block {
                            a: Panels::Direct(a),
                            b: Panels::Direct(b),
                            tile_rows: tile_rows(tile, [outputs, columns]),
                            depth: count,
                            alpha: T::ONE,
                            beta: (i > 0).then_some(T::ONE),
                            epilogue: None,
                            origin: [0; 2],
                            next: None,
                            stream: false,
                            order: Order::Usual,
                            c: TensorViewMut::matrix(sums, [outputs, columns]),
                        };
                        T::block(isa, &mut block);
                    }
                }
            });
        }
        self.finish(dw, [0], (&sums, point, columns), tasks)
    }

    /// Images, rows and columns of the tiles of a box.
    fn part(&self, index: usize) -> [Range<usize>; 3] {
        let mut rest = index;
        let mut part = [0; 3].map(|_| 0..0);
        for axis in (0..3).rev() {
            let (all, size) = (self.tiles[axis], self.sizes[axis]);
            let first = rest % all.div_ceil(size) * size;
            part[axis] = first..all.min(first + size);
            rest /= all.div_ceil(size);
        }
        part
    }

    /// How X (0) or dZ (1) lies in the memory of a box.
    fn share(&self, index: usize) -> Share {
        let view = &self.operands[index];
        let (channels, lanes) = (view.shape()[1], self.tile.lanes);
        let span = |tiles: usize| tiles * O + if index == 0 { P - O } else { 0 };
        let pixels = Pixels {
            depth: [0, 1],
            depths: 1,
            at: [0; 2],
            rows: span(self.sizes[1]),
            columns: span(self.sizes[2]),
            lanes,
            vectors: channels.div_ceil(lanes),
            channel: 0,
            multiplier: 1,
            channels,
        };
        let in_place = channels_last(view.shape(), view.strides());
        // Whole vectors: what lies behind stays aligned.
        let copy = if in_place {
            channels.next_multiple_of(lanes)
        } else {
            self.sizes[0].saturating_mul(pixels.len())
        };
        Share { pixels, in_place, copy, pitch: (channels.div_ceil(lanes) | 1) * lanes }
    }

    /// The points of a box of tiles, of X with `SPAN` = `P` pixels along a side of a tile, of dZ with `O`.
    fn transform<const SPAN: usize>(
        &self,
        index: usize,
        [n, th, tw]: &[Range<usize>; 3],
        share: &Share,
        apart: usize,
        data: &mut [T],
    ) {
        let view = &self.operands[index];
        let (copy, to) = data.split_at_mut(share.copy);
        let start = if index == 0 { self.start } else { [0; 2] };
        let start = [(0, th), (1, tw)].map(|(axis, tiles)| start[axis] + (tiles.start * O) as isize);
        let pixels = Pixels { at: start, ..share.pixels };
        let Ok(images) = view.slice(0, n.clone(), 1) else { return };
        if share.in_place {
            copy.fill(T::ZERO);
        } else {
            for (image, to) in copy.chunks_exact_mut(pixels.len()).enumerate().take(n.len()) {
                let Ok(x) = images.select(0, image) else { return };
                T::dispatch(self.isa, Fill { x, pixels, to });
            }
        }
        let Ok(x) = images.permute([0, 2, 3, 4, 1]) else { return };
        let patches = Patches::<T, O, SPAN, P> {
            x,
            depth: Some(0),
            start,
            copy: (!share.in_place).then_some(&pixels),
            data: copy,
            sizes: [n.len(), th.len(), tw.len()],
            pitch: share.pitch,
            stride: apart * share.pitch,
            v: to,
        };
        T::dispatch(self.isa, patches);
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
        let mut turned = [T::ZERO; 9 * crate::simd::MOST_LANES];
        for o in 0..outputs {
            for first in (0..inputs).step_by(S::LANES) {
                let taps = weights::<T, S, P>(simd, &sums[o * columns + first..], point);
                // Lane by lane the nine taps, the last four with some before them again.
                simd.store_transposed([taps[0], taps[1], taps[2], taps[3]], &mut turned, 9);
                simd.store_transposed([taps[4], taps[5], taps[6], taps[7]], &mut turned[4..], 9);
                simd.store_transposed([taps[5], taps[6], taps[7], taps[8]], &mut turned[5..], 9);
                let count = S::LANES.min(inputs - first);
                if let Ok(mut rows) = dw.view_mut().reshape([outputs, inputs * 9])
                    && let Some(run) = rows.row_mut(o)
                {
                    run[first * 9..][..count * 9].copy_from_slice(&turned[..count * 9]);
                    continue;
                }
                for (i, taps) in turned.chunks_exact(9).enumerate().take(count) {
                    for (tap, &x) in taps.iter().enumerate() {
                        if let Some(to) = dw.get_mut([o, first + i, 0, tap / 3, tap % 3]) {
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

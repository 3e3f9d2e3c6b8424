//! Patches read in place: with neighbouring output channels as lanes, an element of a patch is one element of the input's copy,
//! broadcast. Only dZ is turned, which is smaller than the patches by the number of taps.
//!
//! ```text
//! for each box of positions                                 its depth; fixed, whoever computes it; in L2
//!     input → planes with zeros around (halo)
//!     dZ → panels, one for each vector or two of output channels
//!     for each panel
//!         for each tile of channels and taps: sums += planes · panel, position by position
//! sums → dW
//! ```
#![forbid(unsafe_code)]

use super::{Gradient, pack_outputs};
use crate::conv::halo::{Fill, Halo};
use crate::conv::implicit::boxes;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Tile, each};
use crate::machine::Caches;
use crate::simd::{Simd, SimdOp};
use crate::tensor::TensorViewMut;
use crate::workspace;

/// Output channels up to which panels of patches are not used often enough to pay for their packing.
const MOST_OUTPUTS: usize = 64;

/// Positions of a box where this path pays for dW of a group of `outputs` times `lines`, channels and taps. `copied`: elements of
/// the input's copy for each position.
pub(super) fn positions<T>(
    tile: Tile,
    caches: Caches,
    [outputs, lines, copied]: [usize; 3],
) -> Option<usize> {
    let panels = outputs.checked_next_multiple_of(width(tile, outputs))?;
    let room = caches.l2 / 2 / size_of::<T>();
    let sums = panels.checked_mul(lines.checked_next_multiple_of(rows(tile, outputs))?)?;
    let positions = room / copied.saturating_add(panels).max(1);
    // Sums wait in L2 too, and are not to be read and written too often.
    (outputs <= MOST_OUTPUTS && sums <= room && positions >= 64).then_some(positions)
}

/// Lines of a tile.
fn rows(tile: Tile, outputs: usize) -> usize {
    tile_lines(tile.sums(), width(tile, outputs) / tile.lanes)
}

/// Lines of a tile of so many vectors, of which not more than `most` are sums.
const fn tile_lines(most: usize, vectors: usize) -> usize {
    if vectors == 1 { most / 2 } else { most / vectors }
}

/// Output channels of a panel.
fn width(tile: Tile, outputs: usize) -> usize {
    outputs.next_multiple_of(tile.lanes).clamp(tile.lanes, tile.columns)
}

impl<T: Element> Gradient<'_, T> {
    /// [`compute`](Gradient::compute) without panels of patches.
    pub(super) fn compute_in_place(&self, mut dw: TensorViewMut<'_, T, 5>, at: [usize; 2]) -> Result<()> {
        let ([outputs, inputs, ..], kernel) = (dw.shape(), self.sliding.kernel);
        let [images, of_z, depth, height, row] = self.dz.shape();
        let group = at[0] / (of_z / self.groups);
        let first_input = group * (self.x.shape()[1] / self.groups) + at[1];
        let taps: usize = kernel.iter().product();
        let none = || Error::Alloc { op: self.op, bytes: usize::MAX };

        // All memory first: where it is lacking, nothing has been written.
        let positions: usize = self.sizes.iter().product();
        let largest = self.halo([0; 4], self.sizes, inputs).len().ok_or_else(none)?;
        let mut planes = workspace::scratch(self.op, largest.saturating_add(self.tile.lanes))?;
        let mut lines = workspace::scratch::<usize>(self.op, inputs * taps)?;
        let width = width(self.tile, outputs);
        let panels = outputs.div_ceil(width);
        // Vectors of positions end up to a vector behind the last one.
        let mut z_panels = workspace::scratch(self.op, panels * width * positions + width * self.tile.lanes)?;
        // A panel's own sums: `[lines, width]`.
        let len = (inputs * taps).next_multiple_of(rows(self.tile, outputs)) * width;
        let mut sums = workspace::scratch(self.op, panels * len)?;
        if !outputs.is_multiple_of(width) {
            // Lanes without a channel.
            z_panels.fill(T::ZERO);
        }
        sums.fill(T::ZERO);

        for part in boxes([images, depth, height, row], self.sizes) {
            let sizes = part.clone().map(|range| range.len());
            let halo = self.halo(part.clone().map(|range| range.start), sizes, inputs);
            halo.taps(kernel, &mut lines[..taps]);
            for line in taps..inputs * taps {
                lines[line] = lines[line - taps] + halo.channel();
            }
            let x = self.x.slice(0, part[0].clone(), 1)?.slice(1, first_input..first_input + inputs, 1)?;
            T::dispatch(self.isa, Fill { halo: &halo, x, to: &mut planes });
            let [n, d, h, w] = part;
            let dz = self.dz.slice(0, n, 1)?.slice(1, at[0]..at[0] + outputs, 1)?;
            let dz = dz.slice(2, d, 1)?.slice(3, h, 1)?.slice(4, w, 1)?;
            pack_outputs(self.isa, dz, width, &mut z_panels)?;
            let positions: usize = sizes.iter().product();
            for (z, sums) in z_panels.chunks_exact(width * positions).zip(sums.chunks_exact_mut(len)) {
                let (halo, planes, lines) = (&halo, &planes[..], &lines[..]);
                T::dispatch(self.isa, Product { z, width, halo, planes, lines, sizes, sums });
            }
        }
        let rows = inputs * taps;
        let sum = |output: usize, line: usize| sums[output / width * len + line * width + output % width];
        if let Some(mut dw) = dw.view_mut().viewed_as::<2>([outputs, rows])
            && dw.strides()[1] == 1
        {
            for output in 0..outputs {
                let to = dw.row_mut(output).unwrap_or(&mut []);
                to.iter_mut().enumerate().for_each(|(line, dw)| *dw = sum(output, line));
            }
            return Ok(());
        }
        let [_, kh, kw] = kernel;
        for output in 0..outputs {
            for line in 0..rows {
                let (input, tap) = (line / taps, line % taps);
                let index = [output, input, tap / kw / kh, tap / kw % kh, tap % kw];
                dw.get_mut(index).into_iter().for_each(|dw| *dw = sum(output, line));
            }
        }
        Ok(())
    }
}

/// The products of a panel of dZ with all channels and taps, added to their sums.
struct Product<'a, T> {
    /// Position by position.
    z: &'a [T],
    width: usize,
    halo: &'a Halo,
    planes: &'a [T],
    /// Where the channels and taps begin in the planes of an image.
    lines: &'a [usize],
    sizes: [usize; 4],
    sums: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        macro_rules! tiles {
            ($($sums:literal: $($lines:literal x $vectors:literal)*;)*) => {$(
                // Constant where it is false: then the kernel is not compiled.
                if const { S::TILE_ROWS * S::TILE_VECTORS == $sums } {
                    match self.width / S::LANES {
                        $($vectors => return self.tiles::<S, $lines, $vectors>(simd),)*
                        _ => unreachable!("internal error: a tile without a kernel"),
                    }
                }
            )*};
        }
        tiles!(24: 12 x 1 12 x 2 8 x 3 6 x 4; 12: 6 x 1 6 x 2; 8: 4 x 1 4 x 2;);
    }
}

impl<T: Element> Product<'_, T> {
    #[inline(always)]
    fn tiles<S: Simd<T>, const R: usize, const V: usize>(self, simd: S) {
        let Self { z, width, halo, planes, lines, sizes, sums } = self;
        for (lines, to) in lines.chunks(R).zip(sums.chunks_exact_mut(R * width)) {
            // What is missing in the last tile is computed again and never looked at.
            let lines = std::array::from_fn(|i| lines[i.min(lines.len() - 1)]);
            simd.call(TapTile::<'_, '_, T, R, V> { z, halo, planes, lines, sizes, to });
        }
    }
}

/// The sums of a tile, in registers over all positions of a box.
struct TapTile<'a, 's, T, const R: usize, const V: usize> {
    z: &'a [T],
    halo: &'a Halo,
    planes: &'a [T],
    lines: [usize; R],
    sizes: [usize; 4],
    to: &'s mut [T],
}

impl<T: Element, const R: usize, const V: usize> SimdOp<T> for TapTile<'_, '_, T, R, V> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        const { assert!(R <= 12 && V <= 4) };
        let Self { z, halo, planes, lines, sizes: [images, depth, height, row], to } = self;
        let width = V * S::LANES;
        let mut sums = [[simd.splat(T::ZERO); V]; R];
        let mut z = z.chunks_exact(row * width);
        for at in 0..images * depth * height {
            let Some(z) = z.next() else { return };
            let from = &planes[halo.output(at / height / depth, [at / height % depth, at % height, 0])..];
            // All of one length: one check serves all.
            let lines: [&[T]; R] = std::array::from_fn(|i| &from[lines[i]..][..row]);
            for (w, z) in z.chunks_exact(width).enumerate().take(row) {
                let mut vectors = [simd.splat(T::ZERO); V];
                each!(v in vectors V { vectors[v] = simd.load(&z[v * S::LANES..]); });
                each!(i in rows R {
                    let x = simd.splat(lines[i][w]);
                    each!(v in vectors V { sums[i][v] = simd.mul_add(x, vectors[v], sums[i][v]); });
                });
            }
        }
        each!(i in rows R {
            each!(v in vectors V {
                let to = &mut to[i * width + v * S::LANES..][..S::LANES];
                simd.store(simd.add(simd.load(to), sums[i][v]), to);
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILE: Tile = Tile { rows: 6, columns: 64, lanes: 16, narrow_rows: 12, masked: true };
    const CACHES: Caches = Caches { l1d: 48 << 10, l2: 2 << 20, l3: 32 << 20 };

    #[test]
    fn few_outputs_are_computed_in_place() {
        let positions =
            |outputs, inputs, taps| positions::<f32>(TILE, CACHES, [outputs, inputs * taps, 2 * inputs]);
        assert_eq!(positions(16, 1, 25), Some(262_144 / 18));
        assert_eq!(positions(32, 32, 9), Some(262_144 / 96));
        assert_eq!(positions(128, 32, 9), None);
        // Sums that do not fit in L2, a box of few positions, and no overflow.
        assert_eq!(positions(64, 1024, 9), None);
        assert_eq!(positions(16, 4096, 1), None);
        assert_eq!(positions(64, usize::MAX / 64, 9), None);
    }
}

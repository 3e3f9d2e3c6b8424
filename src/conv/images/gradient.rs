//! The gradient for the weights: both tensors with images as lanes, whose sums meet at the end of a box.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::{fill, fills, offset, rows_of, turns};
use crate::conv::depthwise::Reach;
use crate::conv::pixels::Pixels;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{GRAIN, Tile, blocks, each, tile};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::spatial::Sliding;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Output channels and lines, which are channels and taps, of a tile.
const fn tile_of(sums: usize) -> [usize; 2] {
    match sums {
        24 => [4, 6],
        12 => [2, 6],
        _ => [2, 3],
    }
}

/// Bytes of dZ that stay in L1 beside what passes through.
const NEAR: usize = 16 << 10;

/// Output and input channels up to which it pays.
const MOST_OUTPUTS: usize = 64;
const MOST_INPUTS: usize = 64;

/// Whether it pays for so many images and output channels, input channels and taps.
fn pays(tile: Tile, [images, outputs]: [usize; 2], inputs: usize, taps: usize) -> bool {
    // Each channel of dZ is turned, which takes as long as some lines: many of them over few lines are better off elsewhere.
    let many = outputs <= 16 || inputs >= 4 && outputs <= MOST_OUTPUTS;
    fills(tile, images) && taps > 1 && many && inputs <= MOST_INPUTS
}

/// The gradient for the weights over images as lanes, where that pays.
pub(in crate::conv) struct Gradient<'a, T> {
    op: &'static str,
    isa: Isa,
    tile: Tile,
    x: TensorView<'a, T, 5>,
    dz: TensorView<'a, T, 5>,
    reach: Reach,
    /// Rows of a box of positions.
    rows: usize,
}

impl<'a, T: Element> Gradient<'a, T> {
    /// `None` where another path is taken. There is one group, and Winograd does not pay.
    pub(in crate::conv) fn new(
        op: &'static str,
        isa: Isa,
        [x, dz]: [TensorView<'a, T, 5>; 2],
        sliding: &Sliding,
    ) -> Option<Self> {
        let (tile, reach, inputs) = (tile::<T>(isa), Reach::of(sliding), x.shape()[1]);
        let [images, outputs, _, height, _] = dz.shape();
        let fits = pays(tile, [images, outputs], inputs, sliding.kernel.iter().product())
            && turns(x.shape(), x.strides())
            && turns(dz.shape(), dz.strides())
            && !dz.is_empty()
            && reach.fits(inputs);
        if !fits {
            return None;
        }
        let gradient = Self { op, isa, tile, x, dz, reach, rows: 1 };
        let len = |rows: usize| {
            let of_x = gradient.of_x([0; 2], rows, 0).plane().saturating_mul(inputs);
            of_x.saturating_add(gradient.of_z([0; 2], rows, 0).plane().saturating_mul(outputs))
        };
        let one = len(1);
        let rows = rows_of::<T>(machine::caches().l2, height, one, len(height.min(2)) - one)?;
        Some(Self { rows, ..gradient })
    }

    /// Computes dW, `[outputs, inputs, kernel…]`.
    pub(in crate::conv) fn run(&self, mut dw: TensorViewMut<'_, T, 5>) -> Result<()> {
        let (len, [images, _, depth, height, width]) = (dw.len(), self.dz.shape());
        let work = len.saturating_mul(images * depth * height * width);
        let parts = parallel::parts(images.div_ceil(self.tile.lanes));
        let mut sums = workspace::scratch(self.op, workspace::product(self.op, &[len, parts])?)?;
        let rows = TensorViewMut::matrix(&mut sums, [parts, len]);
        self.parts(parts, rows, [0], parallel::threads_for(work, GRAIN))?;
        dw.copy_from(TensorView::from_slice(parallel::total(&mut sums, len), dw.shape())?);
        Ok(())
    }
}

impl<T: Element> Gradient<'_, T> {
    /// The copy of what the positions of some rows at a depth read, for so many images.
    fn of_x(&self, [d, first]: [usize; 2], rows: usize, images: usize) -> Pixels {
        let whole = self.reach.pixels(self.tile.lanes, 1, [1; 2], 1);
        let width = self.dz.shape()[4];
        whole.over(&self.reach, [d, first, 0], [rows, width], 0, images)
    }

    /// The copy of some rows of dZ.
    fn of_z(&self, [d, first]: [usize; 2], rows: usize, images: usize) -> Pixels {
        let whole = Reach::SELF.pixels(self.tile.lanes, 1, [1; 2], 1);
        let width = self.dz.shape()[4];
        whole.over(&Reach::SELF, [d, first, 0], [rows, width], 0, images)
    }

    /// The gradients of some of the parts of the images, as rows.
    fn parts(
        &self,
        parts: usize,
        mut sums: TensorViewMut<'_, T, 2>,
        first: [usize; 1],
        tasks: usize,
    ) -> Result<()> {
        let [count, len] = sums.shape();
        if tasks > 1 && count > 1 {
            return parallel::halves(sums, first, (0, 1), tasks, &|sums, first, tasks| {
                self.parts(parts, sums, first, tasks)
            });
        }
        let (images, lanes, outputs) = (self.dz.shape()[0], self.tile.lanes, self.dz.shape()[1]);
        let vectors = images.div_ceil(lanes);
        for part in 0..count {
            let [start, end] = [0, 1].map(|next| vectors * (first[0] + part + next) / parts * lanes);
            let sums = sums.row_mut(part).unwrap_or(&mut []);
            let sums = TensorViewMut::matrix(sums, [outputs, len / outputs]);
            self.split(start..images.min(end), sums, [0], tasks)?;
        }
        Ok(())
    }

    /// The gradients of some output channels, from `first` on, by some images.
    fn split(
        &self,
        images: Range<usize>,
        mut sums: TensorViewMut<'_, T, 2>,
        first: [usize; 1],
        tasks: usize,
    ) -> Result<()> {
        let [height, _] = tile_of(self.tile.sums());
        let [outputs, lines] = sums.shape();
        if tasks > 1 && outputs > height {
            return parallel::halves(sums, first, (0, height), tasks, &|sums, first, tasks| {
                self.split(images.clone(), sums, first, tasks)
            });
        }
        let ([_, inputs, ..], [_, _, depth, rows, width]) = (self.x.shape(), self.dz.shape());
        let (op, isa, lanes) = (self.op, self.isa, self.tile.lanes);
        let none = || Error::Alloc { op, bytes: usize::MAX };
        // All memory first: where it is lacking, nothing has been written.
        let [of_x, of_z] = [self.of_x([0; 2], self.rows, 0), self.of_z([0; 2], self.rows, 0)];
        let mut x = workspace::scratch(op, inputs.checked_mul(of_x.plane()).ok_or_else(none)?)?;
        // Planes that the last tile has too many are never looked at.
        let z_len = of_z.plane().checked_mul(outputs.next_multiple_of(height));
        let mut z = workspace::scratch(op, z_len.ok_or_else(none)?)?;
        let mut offsets = workspace::scratch::<usize>(op, lines)?;
        sums.fill(T::ZERO);
        let Some(sums) = sums.as_mut_slice() else { return Ok(()) };
        for some in blocks(images, lanes) {
            let [x_of, z_of] = [self.x, self.dz].map(|t| t.slice(0, some.clone(), 1));
            let (x_of, z_of) = (x_of?, z_of?);
            for (d, part) in (0..depth).flat_map(|d| blocks(0..rows, self.rows).map(move |part| (d, part))) {
                let place = [d, part.start];
                let [of_x, of_z] =
                    [self.of_x(place, part.len(), some.len()), self.of_z(place, part.len(), some.len())];
                fill(isa, x_of, &of_x, 0..inputs, &mut x);
                fill(isa, z_of, &of_z, first[0]..first[0] + outputs, &mut z);
                self.offsets(&of_x, &mut offsets);
                let [_, down, right] = self.reach.stride;
                let product = Product {
                    x: &x,
                    z: &z,
                    plane: of_z.plane(),
                    offsets: &offsets,
                    sizes: [part.len(), width],
                    steps: [down * of_x.columns * lanes, right * lanes],
                    sums,
                };
                T::dispatch(isa, product);
            }
        }
        Ok(())
    }

    /// Where channels and taps lie in the copy of X for the first position.
    fn offsets(&self, pixels: &Pixels, to: &mut [usize]) {
        let [_, h, w] = self.reach.kernel;
        let taps: usize = self.reach.kernel.iter().product();
        for (at, to) in to.iter_mut().enumerate() {
            let (c, tap) = (at / taps, at % taps);
            *to = c * pixels.plane() + offset(&self.reach, pixels, [tap / w / h, tap / w % h, tap % w]);
        }
    }
}

/// Adds the products of all positions of a box to the sums.
struct Product<'a, T> {
    x: &'a [T],
    z: &'a [T],
    /// Elements of a channel of `z`.
    plane: usize,
    /// Of the lines in `x`.
    offsets: &'a [usize],
    /// Rows and columns of positions, and the distances between what they read of `x`.
    sizes: [usize; 2],
    steps: [usize; 2],
    /// `[outputs, lines]`.
    sums: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        macro_rules! tiles {
            ($($rows:literal x $lines:literal)*) => {$(
                // Constant where it is false: then the kernel is not compiled.
                if const { matches!(tile_of(S::TILE_ROWS * S::TILE_VECTORS), [$rows, $lines]) } {
                    return self.tiles::<S, $rows, $lines>(simd);
                }
            )*};
        }
        tiles!(4 x 6 2 x 6 2 x 3);
    }
}

impl<T: Element> Product<'_, T> {
    #[inline(always)]
    fn tiles<S: Simd<T>, const R: usize, const V: usize>(self, simd: S) {
        let Self { x, z, plane, offsets, sizes: [rows, columns], steps, sums } = self;
        let lines = offsets.len();
        let outputs = sums.len() / lines;
        let mut tile = [[T::ZERO; V]; R];
        for some in blocks(0..rows, (NEAR / (R * S::LANES * size_of::<T>() * columns)).max(1)) {
            let x = &x[some.start * steps[0]..];
            for output in (0..outputs).step_by(R) {
                let z = &z[output * plane + some.start * columns * S::LANES..];
                for line in (0..lines).step_by(V) {
                    // What is missing in the last tile is computed again and never looked at.
                    let mut from = [0; V];
                    each!(v in points V { from[v] = offsets[(line + v).min(lines - 1)]; });
                    let sizes = [some.len(), columns];
                    simd.call(Lines::<'_, '_, T, R, V> { x, from, z, plane, sizes, steps, tile: &mut tile });
                    for (i, tile) in (output..outputs).zip(&tile) {
                        let to = &mut sums[i * lines + line..(i + 1) * lines];
                        to.iter_mut().zip(tile).for_each(|(to, &sum)| *to += sum);
                    }
                }
            }
        }
    }
}

/// The sums of a tile over all positions of a box.
struct Lines<'a, 's, T, const R: usize, const V: usize> {
    x: &'a [T],
    from: [usize; V],
    /// From the first channel on, and how far it is to the next.
    z: &'a [T],
    plane: usize,
    sizes: [usize; 2],
    steps: [usize; 2],
    tile: &'s mut [[T; V]; R],
}

impl<T: Element, const R: usize, const V: usize> SimdOp<T> for Lines<'_, '_, T, R, V> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        const { assert!(R <= 12 && V <= 6) };
        let Self { x, from, z, plane, sizes: [rows, columns], steps: [down, right], tile } = self;
        let mut sums = [[simd.splat(T::ZERO); V]; R];
        let (z_row, x_row) = (columns * S::LANES, (columns - 1) * right + S::LANES);
        for row in 0..rows {
            let z = &z[row * z_row..];
            // All of one length: one check serves all.
            let mut lines: [&[T]; V] = [&[]; V];
            each!(v in points V { lines[v] = &x[from[v] + row * down..][..x_row]; });
            let mut at = 0;
            for column in 0..columns {
                let zs: [S::V; R] = simd.load_apart(&z[column * S::LANES..], plane);
                each!(v in points V {
                    let x = simd.load(&lines[v][at..]);
                    each!(i in rows R { sums[i][v] = simd.mul_add(x, zs[i], sums[i][v]); });
                });
                at += right;
            }
        }
        each!(i in rows R {
            if const { V == 6 } {
                let [a, b, c, d] = simd.reduce_add_each([sums[i][0], sums[i][1], sums[i][2], sums[i][3 % V]]);
                (tile[i][0], tile[i][1], tile[i][2], tile[i][3 % V]) = (a, b, c, d);
                each!(v in points V { if v > 3 { tile[i][v] = simd.reduce_add(sums[i][v]); } });
            } else {
                each!(v in points V { tile[i][v] = simd.reduce_add(sums[i][v]); });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_over_few_channels_pay() {
        let tile = Tile { rows: 6, columns: 64, lanes: 16, narrow_rows: 12, masked: true };
        assert!(pays(tile, [64, 16], 1, 25) && pays(tile, [64, 64], 32, 9) && pays(tile, [13, 3], 16, 9));
        // Many channels over few, too many, too few images, single taps.
        assert!(
            !pays(tile, [64, 64], 3, 9) && !pays(tile, [64, 128], 16, 9) && !pays(tile, [64, 16], 128, 9)
        );
        assert!(!pays(tile, [12, 16], 16, 9) && !pays(tile, [64, 16], 16, 1));
    }
}

//! The gradient for the weights: both tensors with images as lanes, whose sums meet at the end of a box.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::order::Order;
use super::{box_of, fill, fills};
use crate::conv::depthwise::Reach;
use crate::conv::implicit::boxes;
use crate::conv::pixels::Pixels;
use crate::conv::weight_gradient::in_parts;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{GRAIN, Tile, blocks, each, tile};
use crate::machine::Isa;
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

/// Whether tiles of five lines leave so many fewer over than tiles of six, as for 25 or 9 lines, that they pay.
fn in_fives(lines: usize) -> bool {
    lines.next_multiple_of(5) * 10 < lines.next_multiple_of(6) * 9
}

/// Channels in and out, and their product, up to which it pays.
const MOST_CHANNELS: usize = 64;
const MOST_PAIRS: usize = 2048;

/// The same product over channels last, whose positions are rows of matrices elsewhere.
const MOST_PAIRS_LAST: usize = 512;

/// Whether it pays for so many images and output channels, input channels and taps; `last`: a tensor has channels last.
fn pays(tile: Tile, [images, outputs]: [usize; 2], inputs: usize, taps: usize, last: bool) -> bool {
    // Each channel of dZ is turned, which takes as long as some lines: many of them over few lines are better off elsewhere.
    let enough = outputs <= 32 || inputs >= 4;
    let most = if last { MOST_PAIRS_LAST } else { MOST_PAIRS };
    let few = inputs.max(outputs) <= MOST_CHANNELS && inputs * outputs <= most;
    fills(tile, images) && taps > 1 && enough && few
}

/// The gradient for the weights over images as lanes, where that pays.
pub(in crate::conv) struct Gradient<'a, T> {
    op: &'static str,
    isa: Isa,
    tile: Tile,
    /// The planes of both.
    x: TensorView<'a, T, 5>,
    dz: TensorView<'a, T, 5>,
    orders: [Order; 2],
    reach: Reach,
    /// Rows and columns of a box of positions.
    outputs: [usize; 2],
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
        let [images, outputs, _, height, width] = dz.shape();
        let orders = [Order::of(x.shape(), x.strides())?, Order::of(dz.shape(), dz.strides())?];
        let last = orders.iter().any(|order| order.beside > 1);
        let fits = pays(tile, [images, outputs], inputs, sliding.kernel.iter().product(), last)
            && !dz.is_empty()
            && reach.fits(inputs);
        if !fits {
            return None;
        }
        let (x, dz) = (orders[0].planes(x).ok()?, orders[1].planes(dz).ok()?);
        let gradient = Self { op, isa, tile, x, dz, orders, reach, outputs: [1; 2] };
        let len = |sizes: [usize; 2]| {
            let of_x = gradient.of_x([0; 3], sizes, 0).plane().saturating_mul(x.shape()[1]);
            of_x.saturating_add(gradient.of_z([0; 3], sizes, 0).plane().saturating_mul(dz.shape()[1]))
        };
        let outputs = box_of::<T>([height, width], sliding.kernel[1], len)?;
        Some(Self { outputs, ..gradient })
    }

    /// Computes dW, `[outputs, inputs, kernel…]`.
    pub(in crate::conv) fn run(&self, dw: TensorViewMut<'_, T, 5>) -> Result<()> {
        let ([images, planes, depth, height, columns], len) = (self.dz.shape(), dw.len());
        let outputs = planes * self.orders[1].beside;
        let positions = [images, depth, height, columns];
        let work = positions.iter().fold(len / outputs * planes, |work, &size| work.saturating_mul(size));
        let (lanes, vectors) = (self.tile.lanes, images.div_ceil(self.tile.lanes));
        let parts = parallel::parts(vectors);
        in_parts(self.op, dw, parts, parallel::threads_for(work, GRAIN), &|part, sums, tasks| {
            let these = parallel::share(vectors, parts, part);
            let sums = TensorViewMut::matrix(sums, [outputs, len / outputs]);
            self.split(these.start * lanes..images.min(these.end * lanes), sums, [0], tasks)
        })
    }
}

impl<T: Element> Gradient<'_, T> {
    /// The copy of what a box of positions reads, from depth, row and column `at` on, for so many images.
    fn of_x(&self, at: [usize; 3], sizes: [usize; 2], images: usize) -> Pixels {
        let whole = self.reach.pixels(self.tile.lanes, 1, [1; 2], 1);
        self.orders[0].pixels(whole.over(&self.reach, at, sizes, 0, images))
    }

    /// The copy of these positions of dZ.
    fn of_z(&self, at: [usize; 3], sizes: [usize; 2], images: usize) -> Pixels {
        let whole = Reach::SELF.pixels(self.tile.lanes, 1, [1; 2], 1);
        self.orders[1].pixels(whole.over(&Reach::SELF, at, sizes, 0, images))
    }

    /// The gradients of some output channels, from `first` on, by some images.
    fn split(
        &self,
        images: Range<usize>,
        mut sums: TensorViewMut<'_, T, 2>,
        first: [usize; 1],
        tasks: usize,
    ) -> Result<()> {
        let ([height, _], lanes) = (tile_of(self.tile.sums()), self.tile.lanes);
        let [outputs, count] = sums.shape();
        if tasks > 1 && outputs > height {
            return parallel::halves(sums, first, (0, height), tasks, &|sums, first, tasks| {
                self.split(images.clone(), sums, first, tasks)
            });
        }
        let ([_, inputs, ..], [_, planes, depth, rows, columns]) = (self.x.shape(), self.dz.shape());
        let [beside_x, beside_z] = self.orders.map(|order| order.beside);
        // Of planes those of these output channels, else the plane of all.
        let (z_planes, skipped) = match beside_z {
            1 => (first[0]..first[0] + outputs, 0),
            _ => (0..planes, first[0] * lanes),
        };
        let (op, isa) = (self.op, self.isa);
        let none = || Error::Alloc { op, bytes: usize::MAX };
        // All memory first: where it is lacking, nothing has been written.
        let [of_x, of_z] = [self.of_x([0; 3], self.outputs, 0), self.of_z([0; 3], self.outputs, 0)];
        let mut x = workspace::scratch(op, inputs.checked_mul(of_x.plane()).ok_or_else(none)?)?;
        // Planes that the last tile has too many are never looked at.
        let apart = self.orders[1].apart(of_z.plane(), lanes);
        let missing = (outputs.next_multiple_of(height) - outputs) * apart;
        let z_len = of_z.plane().checked_mul(z_planes.len()).and_then(|len| len.checked_add(missing));
        let mut z = workspace::scratch(op, z_len.ok_or_else(none)?)?;
        let mut offsets = workspace::scratch::<usize>(op, count)?;
        sums.fill(T::ZERO);
        let Some(sums) = sums.as_mut_slice() else { return Ok(()) };
        for some in blocks(images, lanes) {
            let [x_of, z_of] = [self.x, self.dz].map(|t| t.slice(0, some.clone(), 1));
            let (x_of, z_of) = (x_of?, z_of?);
            let width = columns / beside_z;
            for [_, d, h, w] in boxes([1, depth, rows, width], [1, 1, self.outputs[0], self.outputs[1]]) {
                let (at, sizes) = ([d.start, h.start, w.start], [h.len(), w.len()]);
                let [of_x, of_z] = [self.of_x(at, sizes, some.len()), self.of_z(at, sizes, some.len())];
                fill(isa, x_of, &of_x, 0..inputs, &mut x);
                fill(isa, z_of, &of_z, z_planes.clone(), &mut z);
                self.orders[0].lines(&self.reach, &of_x, &mut offsets);
                let [_, down, right] = self.reach.stride;
                let product = Product {
                    x: &x,
                    z: &z[skipped..],
                    apart: self.orders[1].apart(of_z.plane(), lanes),
                    z_step: beside_z * lanes,
                    offsets: &offsets,
                    sizes,
                    steps: [down * of_x.columns * lanes, right * beside_x * lanes],
                    sums,
                };
                T::dispatch(isa, product);
            }
        }
        Ok(())
    }
}

/// Adds the products of all positions of a box to the sums.
struct Product<'a, T> {
    x: &'a [T],
    z: &'a [T],
    /// From channel to channel of `z`, and from column to column.
    apart: usize,
    z_step: usize,
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
        let lines = self.offsets.len();
        macro_rules! tiles {
            ($($rows:literal x $lines:literal)*) => {$(
                // Constant where it is false: then the kernel is not compiled.
                if const { matches!(tile_of(S::TILE_ROWS * S::TILE_VECTORS), [$rows, $lines]) } {
                    return self.tiles::<S, $rows, $lines>(simd);
                }
            )*};
        }
        if const { matches!(tile_of(S::TILE_ROWS * S::TILE_VECTORS), [4, 6]) } && in_fives(lines) {
            return self.tiles::<S, 4, 5>(simd);
        }
        tiles!(4 x 6 2 x 6 2 x 3);
        unreachable!("internal error: a tile without a kernel");
    }
}

impl<T: Element> Product<'_, T> {
    #[inline(always)]
    fn tiles<S: Simd<T>, const R: usize, const V: usize>(self, simd: S) {
        let Self { x, z, apart, z_step, offsets, sizes, steps, sums } = self;
        let lines = offsets.len();
        let outputs = sums.len() / lines;
        let mut tile = [[T::ZERO; V]; R];
        for line in (0..lines).step_by(V) {
            // What is missing in the last tile is computed again and never looked at.
            let mut from = [0; V];
            each!(v in points V { from[v] = offsets[(line + v).min(lines - 1)]; });
            for output in (0..outputs).step_by(R) {
                let (z, to) = (&z[output * apart..], &mut tile);
                simd.call(Lines::<'_, '_, T, R, V> { x, from, z, apart, z_step, sizes, steps, tile: to });
                for (i, tile) in (output..outputs).zip(&tile) {
                    let to = &mut sums[i * lines + line..(i + 1) * lines];
                    to.iter_mut().zip(tile).for_each(|(to, &sum)| *to += sum);
                }
            }
        }
    }
}

/// The sums of a tile over all positions of a box.
struct Lines<'a, 's, T, const R: usize, const V: usize> {
    x: &'a [T],
    from: [usize; V],
    /// From the first channel on, and how far it is to the next one and to the next column.
    z: &'a [T],
    apart: usize,
    z_step: usize,
    sizes: [usize; 2],
    steps: [usize; 2],
    tile: &'s mut [[T; V]; R],
}

impl<T: Element, const R: usize, const V: usize> SimdOp<T> for Lines<'_, '_, T, R, V> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        const { assert!(R <= 12 && V <= 6) };
        let Self { x, from, z, apart, z_step, sizes: [rows, columns], steps: [down, right], tile } = self;
        let mut sums = [[simd.splat(T::ZERO); V]; R];
        let (z_row, x_row) = (columns * z_step, (columns - 1) * right + S::LANES);
        for row in 0..rows {
            let z = &z[row * z_row..];
            // All of one length: one check serves all.
            let mut lines: [&[T]; V] = [&[]; V];
            each!(v in points V { lines[v] = &x[from[v] + row * down..][..x_row]; });
            let mut at = 0;
            for column in 0..columns {
                let zs: [S::V; R] = simd.load_apart(&z[column * z_step..], apart);
                each!(v in points V {
                    let x = simd.load(&lines[v][at..]);
                    each!(i in rows R { sums[i][v] = simd.mul_add(x, zs[i], sums[i][v]); });
                });
                at += right;
            }
        }
        each!(i in rows R {
            each!(v in points V { tile[i][v] = simd.reduce_add(sums[i][v]); });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_leave_few_lines_over() {
        assert_eq!(
            [25, 9, 50, 27, 72, 75, 150].map(in_fives),
            [true, true, false, false, false, false, false]
        );
    }

    #[test]
    fn batches_over_few_channels_pay() {
        let tile = Tile { rows: 6, columns: 64, lanes: 16, narrow_rows: 12, masked: true };
        let pays = |sizes, inputs, taps| pays(tile, sizes, inputs, taps, false);
        assert!(
            pays([64, 16], 1, 25) && pays([64, 64], 32, 9) && pays([13, 3], 16, 9) && pays([64, 32], 3, 9)
        );
        // Many channels over few, too many, too few images, single taps.
        assert!(!pays([64, 64], 3, 9) && !pays([64, 64], 64, 9) && !pays([64, 128], 16, 9));
        assert!(!pays([64, 16], 128, 9) && !pays([12, 16], 16, 9) && !pays([64, 16], 16, 1));
        let last = |inputs, outputs| super::pays(tile, [64, outputs], inputs, 9, true);
        assert!(last(16, 32) && last(3, 32) && !last(32, 32));
    }
}

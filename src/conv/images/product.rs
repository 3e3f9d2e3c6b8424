//! Weights times pixels, for outputs anywhere in a box.
#![forbid(unsafe_code)]

use crate::element::Element;
use crate::gemm::{balanced, each};
use crate::simd::{Simd, SimdOp};

/// Steps of depth that are summed up in one: sums in blocks are more accurate.
const STEPS: usize = 384;

/// Output channels and outputs of a tile of so many sums, for all output channels there are.
pub(super) const fn tile_of(sums: usize, channels: usize) -> [usize; 2] {
    match (sums, channels) {
        (24, ..=4) => [4, 6],
        (24, _) => [8, 3],
        (12, _) => [4, 3],
        _ => [4, 2],
    }
}

/// Outputs, where the first is read and written and how far it is to the next, in elements.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) from: usize,
    pub(super) down: usize,
    pub(super) right: usize,
    pub(super) to: usize,
    pub(super) to_down: usize,
    pub(super) to_right: usize,
}

impl Grid {
    /// Where output `at` in row-major order is read and written.
    #[inline(always)]
    fn place(&self, at: usize) -> [usize; 2] {
        let (row, column) = (at / self.columns, at % self.columns);
        [
            self.from + row * self.down + column * self.right,
            self.to + row * self.to_down + column * self.to_right,
        ]
    }
}

/// The sums of a phase in a box.
pub(super) struct Product<'a, T> {
    /// Panels of `height` rows, step by step of depth.
    pub(super) weights: &'a [T],
    pub(super) height: usize,
    /// Of all rows of the panels.
    pub(super) bias: &'a [T],
    pub(super) planes: &'a [T],
    pub(super) offsets: &'a [usize],
    pub(super) grid: Grid,
    /// Of output channels that are so many elements apart.
    pub(super) sums: &'a mut [T],
    pub(super) channels: usize,
    pub(super) apart: usize,
}

impl<T: Element> SimdOp<T> for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        macro_rules! tiles {
            ($($rows:literal x $vectors:literal)*) => {$(
                // Constant where it is false: then the kernel is not compiled.
                if const { matches!(tile_of(S::TILE_ROWS * S::TILE_VECTORS, $rows), [$rows, $vectors]) } && self.height == $rows {
                    return self.tiles::<S, $rows, $vectors>(simd);
                }
            )*};
        }
        tiles!(8 x 3 4 x 6 4 x 3 4 x 2);
        unreachable!("internal error: a tile without a kernel");
    }
}

impl<T: Element> Product<'_, T> {
    #[inline(always)]
    fn tiles<S: Simd<T>, const R: usize, const V: usize>(self, simd: S) {
        let Self { weights, bias, planes, offsets, grid, sums, channels, apart, .. } = self;
        let (count, depth) = (grid.rows * grid.columns, offsets.len());
        let (block, panel) = (balanced(depth, STEPS, 1), R * depth);
        for (at, bias) in bias.chunks_exact(R).enumerate() {
            let (weights, sums) = (&weights[at * panel..][..panel], &mut sums[at * R * apart..]);
            let channels = channels - at * R;
            let mut start = 0;
            loop {
                let steps = start..depth.min(start + block);
                let (offsets, weights) = (&offsets[steps.clone()], &weights[steps.start * R..steps.end * R]);
                let bias = (start == 0).then_some(bias);
                for first in (0..count).step_by(V) {
                    // What is missing in the last tile is computed again.
                    let mut places = [[0; 2]; V];
                    each!(v in points V { places[v] = grid.place((first + v).min(count - 1)); });
                    let sums = &mut *sums;
                    simd.call(Sums::<'_, '_, T, R, V> {
                        weights,
                        bias,
                        planes,
                        offsets,
                        places,
                        sums,
                        channels,
                        apart,
                    });
                }
                start = steps.end;
                if start == depth {
                    break;
                }
            }
        }
    }
}

/// `V` outputs of `R` channels: some steps of depth.
struct Sums<'a, 's, T, const R: usize, const V: usize> {
    weights: &'a [T],
    /// With the first step; later ones are added to what is there.
    bias: Option<&'a [T]>,
    planes: &'a [T],
    offsets: &'a [usize],
    places: [[usize; 2]; V],
    sums: &'s mut [T],
    /// Those that there are.
    channels: usize,
    apart: usize,
}

impl<T: Element, const R: usize, const V: usize> SimdOp<T> for Sums<'_, '_, T, R, V> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        const { assert!(R <= 12 && V <= 6) };
        let Self { weights, bias, planes, offsets, places, sums: to, channels, apart } = self;
        let mut sums = [[simd.splat(T::ZERO); V]; R];
        if let Some(bias) = bias {
            each!(i in rows R {
                let bias = simd.splat(bias[i]);
                each!(v in points V { sums[i][v] = bias; });
            });
        }
        // All of one length: one check serves all.
        let last = places.iter().fold(0, |last, place| last.max(place[0]));
        let runs = places.map(|place| &planes[place[0]..][..planes.len() - last]);
        for (&offset, weights) in offsets.iter().zip(weights.chunks_exact(R)) {
            let mut pixels = [simd.splat(T::ZERO); V];
            each!(v in points V { pixels[v] = simd.load(&runs[v][offset..]); });
            each!(i in rows R {
                let weight = simd.splat(weights[i]);
                each!(v in points V { sums[i][v] = simd.mul_add(weight, pixels[v], sums[i][v]); });
            });
        }
        if bias.is_none() {
            // All before the first is written: the last places may be one.
            each!(i in rows R {
                if i < channels {
                    each!(v in points V {
                        sums[i][v] = simd.add(simd.load(&to[i * apart + places[v][1]..]), sums[i][v]);
                    });
                }
            });
        }
        each!(i in rows R {
            if i < channels {
                each!(v in points V { simd.store(sums[i][v], &mut to[i * apart + places[v][1]..]); });
            }
        });
    }
}

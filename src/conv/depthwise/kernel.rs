//! Sums over taps, and over positions, of pixels.
#![forbid(unsafe_code)]

use super::Reach;
use crate::conv::pixels::Pixels;
use crate::element::Element;
use crate::simd::{Simd, SimdOp};

#[inline(always)]
fn offset(reach: &Reach, pixels: &Pixels, tap: usize) -> usize {
    let ([_, h, w], [_, dh, dw]) = (reach.kernel, reach.dilation);
    let row = tap / w / h * pixels.rows + tap / w % h * dh;
    (row * pixels.columns + tap % w * dw) * pixels.lanes
}

/// Rows of outputs from the pixels of a vector of channels: `sums` is `[rows, columns, lanes]`.
pub(super) struct Sums<'s, T> {
    pub reach: &'s Reach,
    pub pixels: &'s Pixels,
    /// From the first output's pixel on.
    pub from: &'s [T],
    /// Vectors: the bias, then the weights.
    pub weights: &'s [T],
    pub outputs: [usize; 2],
    pub sums: &'s mut [T],
}

impl<T: Element> SimdOp<T> for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let [rows, columns] = self.outputs;
        let line = self.pixels.columns * S::LANES;
        let [_, down, right] = self.reach.stride;
        let step = right * S::LANES;
        let bias = simd.load(self.weights);
        let weights = &self.weights[S::LANES..][..self.reach.taps() * S::LANES];
        if self.reach.kernel == [1, 3, 3] && self.reach.dilation[2] == 1 {
            let offsets = [0, 3, 6].map(|tap| offset(self.reach, self.pixels, tap));
            let mut w = [simd.splat(T::ZERO); 9];
            for (w, from) in w.iter_mut().zip(weights.chunks_exact(S::LANES)) {
                *w = simd.load(from);
            }
            let len = (columns - 1) * step + 3 * S::LANES;
            for (row, to) in self.sums.chunks_exact_mut(columns * S::LANES).take(rows).enumerate() {
                let from = &self.from[row * down * line..];
                let [a, b, c] = offsets.map(|offset| &from[offset..][..len]);
                let mut at = 0;
                for to in to.chunks_exact_mut(S::LANES) {
                    let (a, b, c) =
                        (&a[at..][..3 * S::LANES], &b[at..][..3 * S::LANES], &c[at..][..3 * S::LANES]);
                    let mut sum = simd.mul_add(w[0], simd.load(a), bias);
                    sum = simd.mul_add(w[1], simd.load(&a[S::LANES..]), sum);
                    sum = simd.mul_add(w[2], simd.load(&a[2 * S::LANES..]), sum);
                    sum = simd.mul_add(w[3], simd.load(b), sum);
                    sum = simd.mul_add(w[4], simd.load(&b[S::LANES..]), sum);
                    sum = simd.mul_add(w[5], simd.load(&b[2 * S::LANES..]), sum);
                    sum = simd.mul_add(w[6], simd.load(c), sum);
                    sum = simd.mul_add(w[7], simd.load(&c[S::LANES..]), sum);
                    sum = simd.mul_add(w[8], simd.load(&c[2 * S::LANES..]), sum);
                    simd.store(sum, to);
                    at += step;
                }
            }
            return;
        }
        for (row, to) in self.sums.chunks_exact_mut(columns * S::LANES).take(rows).enumerate() {
            let from = &self.from[row * down * line..];
            // Four pixels at a time, tap by tap; an output at a time would wait for each sum.
            for (four, to) in to.chunks_mut(4 * S::LANES).enumerate() {
                let mut sums = [bias; 4];
                for (tap, w) in weights.chunks_exact(S::LANES).enumerate() {
                    let (w, at) = (simd.load(w), offset(self.reach, self.pixels, tap));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        // Behind the last output the last is read again.
                        let at = at + (4 * four + i).min(columns - 1) * step;
                        *sum = simd.mul_add(w, simd.load(&from[at..]), *sum);
                    }
                }
                for (sum, to) in sums.iter().zip(to.chunks_exact_mut(S::LANES)) {
                    simd.store(*sum, to);
                }
            }
        }
    }
}

/// sums\[tap\] += Σ over a box of dz · x, for a vector of channels.
pub(super) struct Products<'s, T> {
    pub reach: &'s Reach,
    pub pixels: &'s Pixels,
    pub x: &'s [T],
    /// `[rows, columns, lanes]`.
    pub dz: &'s [T],
    pub outputs: [usize; 2],
    pub sums: &'s mut [T],
}

impl<T: Element> SimdOp<T> for Products<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let ([rows, columns], [_, down, right]) = (self.outputs, self.reach.stride);
        let (line, step) = (self.pixels.columns * S::LANES, right * S::LANES);
        let dz_rows = || self.dz.chunks_exact(columns * S::LANES).take(rows);
        if self.reach.kernel == [1, 3, 3] && self.reach.dilation[2] == 1 {
            let offsets = [0, 3, 6].map(|tap| offset(self.reach, self.pixels, tap));
            let len = (columns - 1) * step + 3 * S::LANES;
            let mut sums = [simd.splat(T::ZERO); 9];
            for (row, dz) in dz_rows().enumerate() {
                let from = &self.x[row * down * line..];
                let [a, b, c] = offsets.map(|offset| &from[offset..][..len]);
                let mut at = 0;
                for dz in dz.chunks_exact(S::LANES) {
                    let dz = simd.load(dz);
                    let (a, b, c) =
                        (&a[at..][..3 * S::LANES], &b[at..][..3 * S::LANES], &c[at..][..3 * S::LANES]);
                    sums[0] = simd.mul_add(dz, simd.load(a), sums[0]);
                    sums[1] = simd.mul_add(dz, simd.load(&a[S::LANES..]), sums[1]);
                    sums[2] = simd.mul_add(dz, simd.load(&a[2 * S::LANES..]), sums[2]);
                    sums[3] = simd.mul_add(dz, simd.load(b), sums[3]);
                    sums[4] = simd.mul_add(dz, simd.load(&b[S::LANES..]), sums[4]);
                    sums[5] = simd.mul_add(dz, simd.load(&b[2 * S::LANES..]), sums[5]);
                    sums[6] = simd.mul_add(dz, simd.load(c), sums[6]);
                    sums[7] = simd.mul_add(dz, simd.load(&c[S::LANES..]), sums[7]);
                    sums[8] = simd.mul_add(dz, simd.load(&c[2 * S::LANES..]), sums[8]);
                    at += step;
                }
            }
            for (sum, to) in sums.iter().zip(self.sums.chunks_exact_mut(S::LANES)) {
                simd.store(simd.add(simd.load(to), *sum), to);
            }
            return;
        }
        for (tap, to) in self.sums.chunks_exact_mut(S::LANES).enumerate() {
            let offset = offset(self.reach, self.pixels, tap);
            let mut sums = [simd.splat(T::ZERO); 4];
            for (row, dz) in dz_rows().enumerate() {
                let from = &self.x[row * down * line + offset..];
                for (column, dz) in dz.chunks_exact(S::LANES).enumerate() {
                    let sum = &mut sums[column % 4];
                    *sum = simd.mul_add(simd.load(dz), simd.load(&from[column * step..]), *sum);
                }
            }
            let sum = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
            simd.store(simd.add(simd.load(to), sum), to);
        }
    }
}

//! Sums over taps, and over positions, of pixels.
#![forbid(unsafe_code)]

use super::ahead::Ahead;
use super::direct::of_input;
use super::{Reach, many_registers};
use crate::conv::pixels::Pixels;
use crate::element::Element;
use crate::simd::{MOST_LANES, Simd, SimdOp};

#[inline(always)]
fn offset(reach: &Reach, pixels: &Pixels, tap: usize) -> usize {
    let ([_, h, w], [_, dh, dw]) = (reach.kernel, reach.dilation);
    let row = tap / w / h * pixels.rows + tap / w % h * dh;
    (row * pixels.columns + tap % w * dw) * pixels.lanes
}

/// Rows of outputs from the pixels of a vector of channels, lanes in groups of `INPUTS`: `sums` is `[rows, columns, lanes]`.
pub(super) struct Sums<'s, 'a, T, const INPUTS: usize> {
    pub reach: &'s Reach,
    pub pixels: &'s Pixels,
    /// From the first output's pixel on.
    pub from: &'s [T],
    /// A vector.
    pub bias: &'s [T],
    /// For each input of a group a vector for each tap, [`MOST_LANES`] apart.
    pub weights: &'s [T],
    pub outputs: [usize; 2],
    /// Asked for meanwhile.
    pub ahead: &'s mut Ahead<'a, T>,
    pub sums: &'s mut [T],
}

impl<T: Element, const INPUTS: usize> SimdOp<T> for Sums<'_, '_, T, INPUTS> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let [_, _, right] = self.reach.stride;
        if !self.reach.three() || (INPUTS > 1 && right > 2) {
            self.any(simd);
        } else if const { INPUTS == 1 } {
            self.pixels(simd);
        } else if right == 1 {
            self.runs::<S, { SIDE + 2 }>(simd);
        } else {
            self.runs::<S, { 2 * SIDE + 1 }>(simd);
        }
    }
}

/// Outputs of a run: images often have a multiple of them in a row.
const SIDE: usize = 7;

impl<T: Element, const INPUTS: usize> Sums<'_, '_, T, INPUTS> {
    /// Rows of outputs, and where their pixels begin.
    #[inline(always)]
    fn rows<S: Simd<T>>(&mut self) -> impl Iterator<Item = (&mut [T], &[T])> {
        let [rows, columns] = self.outputs;
        let step = self.reach.stride[1] * self.pixels.columns * S::LANES;
        let from = self.from;
        let to = self.sums.chunks_exact_mut(columns * S::LANES).take(rows);
        to.enumerate().map(move |(row, to)| (to, &from[row * step..]))
    }

    /// 3 × 3 windows over one channel each, whose weights stay in registers.
    #[inline(always)]
    fn pixels<S: Simd<T>>(mut self, simd: S) {
        let (columns, step) = (self.outputs[1], self.reach.stride[2] * S::LANES);
        let bias = simd.load(self.bias);
        let offsets = [0, 3, 6].map(|tap| offset(self.reach, self.pixels, tap));
        let w: [S::V; 9] = simd.load_apart(self.weights, MOST_LANES);
        let len = (columns - 1) * step + 3 * S::LANES;
        for (to, from) in self.rows::<S>() {
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
    }

    /// 3 × 3 windows over groups: runs of outputs, the last of which begins early rather than being short. A run reads `SPAN` pixels.
    #[inline(always)]
    fn runs<S: Simd<T>, const SPAN: usize>(mut self, simd: S) {
        // Twice as many sums where there are twice as many registers.
        let wide = const { many_registers::<T>(S::LANES) };
        let (columns, weights, bias) = (self.outputs[1], self.weights, simd.load(self.bias));
        let (step, lanes) = (self.reach.stride[2] * S::LANES, S::LANES);
        let offsets = [0, 3, 6].map(|tap| offset(self.reach, self.pixels, tap));
        // In registers: what is written through a reference may be anywhere.
        let mut ahead = *self.ahead;
        for (to, from) in self.rows::<S>() {
            ahead.ask();
            let lines = offsets.map(|offset| &from[offset..]);
            let mut at = 0;
            while at < columns {
                if wide && columns - at > SIDE && columns >= 2 * SIDE {
                    let first = at.min(columns - 2 * SIDE);
                    let to = &mut to[first * lanes..];
                    run::<T, S, 2, SIDE, SPAN, INPUTS>(simd, lines, weights, bias, first * step, to);
                    at = first + 2 * SIDE;
                } else if columns >= SIDE {
                    let first = at.min(columns - SIDE);
                    let to = &mut to[first * lanes..];
                    run::<T, S, 1, SIDE, SPAN, INPUTS>(simd, lines, weights, bias, first * step, to);
                    at = first + SIDE;
                } else {
                    run::<T, S, 1, 1, 3, INPUTS>(
                        simd,
                        lines,
                        weights,
                        bias,
                        at * step,
                        &mut to[at * lanes..],
                    );
                    at += 1;
                }
            }
        }
        *self.ahead = ahead;
    }

    /// Any windows, eight outputs at a time, tap by tap; an output at a time would wait for each sum.
    #[inline(always)]
    fn any<S: Simd<T>>(mut self, simd: S) {
        const OUTPUTS: usize = 8;
        let (columns, step, taps) = (self.outputs[1], self.reach.stride[2] * S::LANES, self.reach.taps());
        let (reach, pixels, weights, bias) = (self.reach, self.pixels, self.weights, simd.load(self.bias));
        for (to, from) in self.rows::<S>() {
            for (eight, to) in to.chunks_mut(OUTPUTS * S::LANES).enumerate() {
                let mut sums = [bias; OUTPUTS];
                for tap in 0..taps {
                    let at = offset(reach, pixels, tap);
                    for input in 0..INPUTS {
                        let w = simd.load(&weights[(input * taps + tap) * MOST_LANES..]);
                        for (i, sum) in sums.iter_mut().enumerate() {
                            // Behind the last output the last is read again.
                            let at = at + (OUTPUTS * eight + i).min(columns - 1) * step;
                            *sum =
                                simd.mul_add(w, of_group_at::<T, S, INPUTS>(simd, &from[at..], input), *sum);
                        }
                    }
                }
                for (sum, to) in sums.iter().zip(to.chunks_exact_mut(S::LANES)) {
                    simd.store(*sum, to);
                }
            }
        }
    }
}

/// One of the inputs of each group of a pixel, in all of the group's lanes.
#[inline(always)]
fn of_group_at<T: Element, S: Simd<T>, const INPUTS: usize>(simd: S, pixel: &[T], input: usize) -> S::V {
    if const { INPUTS == S::LANES } {
        // A load that spreads what it reads takes no shuffle.
        return simd.splat(pixel[..S::LANES][input]);
    }
    let [x] = of_input::<T, S, INPUTS, 1>(simd, [simd.load(pixel)], input);
    x
}

/// `RUNS` times `SIDE` outputs from column `first` on, of 3 × 3 windows over the rows that begin at `lines`, each `SIDE` over `SPAN` pixels.
#[inline(always)]
fn run<
    T: Element,
    S: Simd<T>,
    const RUNS: usize,
    const SIDE: usize,
    const SPAN: usize,
    const INPUTS: usize,
>(
    simd: S,
    lines: [&[T]; 3],
    weights: &[T],
    bias: S::V,
    first: usize,
    to: &mut [T],
) {
    let stride = const { if SIDE == 1 { 1 } else { (SPAN - 3) / (SIDE - 1) } };
    let next = SIDE * stride * S::LANES;
    let mut sums = [[bias; SIDE]; RUNS];
    // Of known length: a check within the loop makes the compiler move all sums.
    let weights = &weights[..(INPUTS * 9 - 1) * MOST_LANES + S::LANES];
    for (row, line) in lines.into_iter().enumerate() {
        let line = &line[first..][..(RUNS - 1) * next + SPAN * S::LANES];
        for input in 0..INPUTS {
            let taps: [S::V; 3] = simd.load_apart(&weights[(input * 9 + row * 3) * MOST_LANES..], MOST_LANES);
            for (at, sums) in sums.iter_mut().enumerate() {
                let mut x = [bias; SPAN];
                for (x, pixel) in x.iter_mut().zip(line[at * next..].chunks_exact(S::LANES)) {
                    *x = of_group_at::<T, S, INPUTS>(simd, pixel, input);
                }
                for (t, tap) in taps.into_iter().enumerate() {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.mul_add(tap, x[i * stride + t], *sum);
                    }
                }
            }
        }
    }
    for (sum, to) in sums.as_flattened().iter().zip(to.chunks_exact_mut(S::LANES)) {
        simd.store(*sum, to);
    }
}

/// sums\[input, tap\] += Σ over a box of dz · x, for a vector of channels, lanes in groups of `INPUTS`.
pub(super) struct Products<'s, T, const INPUTS: usize> {
    pub reach: &'s Reach,
    pub pixels: &'s Pixels,
    pub x: &'s [T],
    /// `[rows, columns, lanes]`.
    pub dz: &'s [T],
    pub outputs: [usize; 2],
    pub sums: &'s mut [T],
}

impl<T: Element, const INPUTS: usize> SimdOp<T> for Products<'_, T, INPUTS> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        if const { INPUTS > 1 } {
            // As many sums as sixteen registers hold beside what they are made of.
            let two = const { many_registers::<T>(S::LANES) } && self.reach.stride[2] == 1;
            match (const { INPUTS >= 4 }, two) {
                (true, true) => self.groups::<S, 4, 2, 4>(simd),
                (true, false) => self.groups::<S, 4, 1, 3>(simd),
                (false, true) => self.groups::<S, 2, 2, 4>(simd),
                (false, false) => self.groups::<S, 2, 1, 3>(simd),
            }
        } else if self.reach.three() {
            self.pixels(simd);
        } else {
            self.any(simd);
        }
    }
}

impl<T: Element, const INPUTS: usize> Products<'_, T, INPUTS> {
    /// Rows of gradients, and where their pixels begin.
    #[inline(always)]
    fn rows<S: Simd<T>>(&self) -> impl Iterator<Item = (&[T], &[T])> {
        let [rows, columns] = self.outputs;
        let step = self.reach.stride[1] * self.pixels.columns * S::LANES;
        let dz = self.dz.chunks_exact(columns * S::LANES).take(rows);
        dz.enumerate().map(move |(row, dz)| (dz, &self.x[row * step..]))
    }

    /// 3 × 3 windows over one channel each: all sums at a time.
    #[inline(always)]
    fn pixels<S: Simd<T>>(self, simd: S) {
        let (columns, step) = (self.outputs[1], self.reach.stride[2] * S::LANES);
        let offsets = [0, 3, 6].map(|tap| offset(self.reach, self.pixels, tap));
        let len = (columns - 1) * step + 3 * S::LANES;
        let mut sums = [simd.splat(T::ZERO); 9];
        for (dz, from) in self.rows::<S>() {
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
        add(simd, &sums, self.sums);
    }

    /// 3 × 3 windows over groups: for `SOME` inputs at a time a row of taps, from `SIDE` gradients at a time, whose windows have `SPAN`
    /// pixels.
    #[inline(always)]
    fn groups<S: Simd<T>, const SOME: usize, const SIDE: usize, const SPAN: usize>(self, simd: S) {
        let (columns, step) = (self.outputs[1], self.reach.stride[2] * S::LANES);
        let offsets = [0, 3, 6].map(|tap| offset(self.reach, self.pixels, tap));
        let len = (columns - 1) * step + 3 * S::LANES;
        for first in (0..INPUTS).step_by(SOME) {
            for (row, offset) in offsets.into_iter().enumerate() {
                let mut sums = [[simd.splat(T::ZERO); 3]; SOME];
                for (dz, from) in self.rows::<S>() {
                    let from = &from[offset..][..len];
                    let mut at = 0;
                    let mut some = dz.chunks_exact(SIDE * S::LANES);
                    for dz in &mut some {
                        products::<T, S, SOME, SIDE, SPAN, INPUTS>(simd, dz, &from[at..], first, &mut sums);
                        at += SIDE * step;
                    }
                    for dz in some.remainder().chunks_exact(S::LANES) {
                        products::<T, S, SOME, 1, 3, INPUTS>(simd, dz, &from[at..], first, &mut sums);
                        at += step;
                    }
                }
                for (sums, input) in sums.iter().zip(first..) {
                    add(simd, sums, &mut self.sums[(input * 9 + row * 3) * S::LANES..]);
                }
            }
        }
    }

    /// Any windows, tap by tap.
    #[inline(always)]
    fn any<S: Simd<T>>(self, simd: S) {
        let step = self.reach.stride[2] * S::LANES;
        for tap in 0..self.reach.taps() {
            let offset = offset(self.reach, self.pixels, tap);
            let mut sums = [simd.splat(T::ZERO); 4];
            for (dz, from) in self.rows::<S>() {
                let from = &from[offset..];
                for (column, dz) in dz.chunks_exact(S::LANES).enumerate() {
                    let sum = &mut sums[column % 4];
                    *sum = simd.mul_add(simd.load(dz), simd.load(&from[column * step..]), *sum);
                }
            }
            let sum = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
            add(simd, &[sum], &mut self.sums[tap * S::LANES..]);
        }
    }
}

/// sums += `SIDE` gradients times the taps of a row of their windows, which have `SPAN` pixels from `x` on.
#[inline(always)]
fn products<
    T: Element,
    S: Simd<T>,
    const SOME: usize,
    const SIDE: usize,
    const SPAN: usize,
    const INPUTS: usize,
>(
    simd: S,
    dz: &[T],
    x: &[T],
    first: usize,
    sums: &mut [[S::V; 3]; SOME],
) {
    let zero = simd.splat(T::ZERO);
    let (mut gradients, x) = ([zero; SIDE], &x[..SPAN * S::LANES]);
    for (gradient, dz) in gradients.iter_mut().zip(dz.chunks_exact(S::LANES)) {
        *gradient = simd.load(dz);
    }
    for (i, sums) in sums.iter_mut().enumerate() {
        let mut taps = [zero; SPAN];
        for (tap, pixel) in taps.iter_mut().zip(x.chunks_exact(S::LANES)) {
            *tap = of_group_at::<T, S, INPUTS>(simd, pixel, first + i);
        }
        for (side, gradient) in gradients.into_iter().enumerate() {
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul_add(gradient, taps[side + t], *sum);
            }
        }
    }
}

/// to += vectors.
#[inline(always)]
fn add<T: Element, S: Simd<T>>(simd: S, vectors: &[S::V], to: &mut [T]) {
    for (vector, to) in vectors.iter().zip(to.chunks_exact_mut(S::LANES)) {
        simd.store(simd.add(simd.load(to), *vector), to);
    }
}

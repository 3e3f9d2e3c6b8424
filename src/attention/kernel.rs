//! What happens to a tile of scores between the two products.
//!
//! Tiles are transposed: a row for each key, a lane for each query. So the maximum and the sum over keys run down the
//! lanes, no vector is ever folded, and the weights are the panel of columns that the next product reads.

use super::dropout::Row;
use crate::element::Element;
use crate::machine::Isa;
use crate::simd::{Simd, SimdOp, kernels};
use crate::vecmath::Pair;

kernels! {
    /// Element types with what happens to scores.
    pub trait Scores {
        /// [`Adjust`].
        fn adjust(isa: Isa, op: Adjust<'_, Self>);

        /// [`Weigh`].
        fn weigh(isa: Isa, op: Weigh<'_, Self>);

        /// [`Drop`].
        fn drop_out(isa: Isa, op: Drop<'_, Self>);

        /// [`Differentiate`].
        fn differentiate(isa: Isa, op: Differentiate<'_, Self>);

        /// [`Dot`].
        fn dot(isa: Isa, op: Dot<'_, Self>) -> Self;

        /// [`Finish`].
        fn finish(isa: Isa, op: Finish<'_, Self>);
    }
}

/// Scores with their options, in units of ln 2 unless the weights are linear; −∞ where a key is not attended to.
pub struct Adjust<'a, T> {
    /// q·k times the factor that the product was given; rows of `width`, `stride` apart.
    pub scores: &'a mut [T],
    pub width: usize,
    pub stride: usize,
    /// Scores become cap · tanh(score), cap in the unit of the result.
    pub cap: Option<T>,
    /// Where the derivative of that goes; rows of `width`.
    pub slopes: Option<&'a mut [T]>,
    /// The slope in the unit of the result, and the position of each query relative to the first key.
    pub alibi: Option<(T, &'a [T])>,
    /// Added after times `unit`.
    pub addend: Option<&'a [T]>,
    pub unit: T,
    /// First key that each query sees, and the first behind it that it does not.
    pub bounds: Option<(&'a [T], &'a [T])>,
}

impl<T: Element> SimdOp<T> for Adjust<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(mut self, s: S) {
        let s = Pair(s);
        let (width, unit) = (self.width, s.splat(self.unit));
        for lane in lanes::<T, S>(width) {
            for (key, row) in self.scores.chunks_mut(self.stride).enumerate() {
                let mut score = s.load(&row[lane..]);
                if let Some(cap) = self.cap {
                    let t = T::tanh_v(s, score);
                    score = s.mul(s.splat(cap), t);
                    if let Some(slopes) = &mut self.slopes {
                        s.store(s.neg_mul_add(t, t, s.splat(T::ONE)), &mut slopes[key * width + lane..]);
                    }
                }
                let at = s.splat(T::from_usize(key));
                if let Some((slope, positions)) = self.alibi {
                    let distance = s.abs(s.sub(s.load(&positions[lane..]), at));
                    score = s.neg_mul_add(s.splat(slope), distance, score);
                }
                if let Some(addend) = self.addend {
                    score = s.mul_add(unit, s.load(&addend[key * width + lane..]), score);
                }
                if let Some((low, high)) = self.bounds {
                    let (low, high) = (s.load(&low[lane..]), s.load(&high[lane..]));
                    let seen = s.mask_and(s.le(low, at), s.lt(at, high));
                    score = s.select(seen, score, s.splat(T::NEG_INFINITY));
                }
                s.store(score, &mut row[lane..]);
            }
        }
    }
}

/// Where the pairs of vectors of a row of `width` begin.
#[inline(always)]
fn lanes<T: Element, S: Simd<T>>(width: usize) -> impl Iterator<Item = usize> {
    assert!(width.is_multiple_of(<Pair<S> as Simd<T>>::LANES));
    (0..width).step_by(<Pair<S> as Simd<T>>::LANES)
}

/// Scores become weights that want only a common factor; sums and outputs of earlier blocks are brought to it.
pub struct Weigh<'a, T> {
    /// Rows of `width`.
    pub scores: &'a mut [T],
    pub width: usize,
    /// No block came before.
    pub first: bool,
    pub linear: bool,
    /// Largest score of each query so far, any of them where one is NaN; with `linear` −∞ where no key was attended to.
    pub max: &'a mut [T],
    pub sum: &'a mut [T],
    /// Rows of `width`.
    pub output: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Weigh<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let s = Pair(s);
        let Weigh { scores, width, first, linear, max, sum, output } = self;
        let (none, zero) = (s.splat(T::NEG_INFINITY), s.splat(T::ZERO));
        for lane in lanes::<T, S>(width) {
            let (max, sum) = (&mut max[lane..], &mut sum[lane..]);
            let (before, mut total) = if first { (none, zero) } else { (s.load(max), s.load(sum)) };
            if linear {
                let mut any = before;
                for row in scores.chunks_exact_mut(width) {
                    let row = &mut row[lane..];
                    let score = s.load(row);
                    let missing = s.eq(score, none);
                    any = s.max(any, s.select(missing, none, zero));
                    let score = s.select(missing, zero, score);
                    total = s.add(total, score);
                    s.store(score, row);
                }
                s.store(any, max);
                s.store(total, sum);
                continue;
            }
            let mut most = [before, none, none, none];
            let mut fours = scores.chunks_exact(4 * width);
            for rows in &mut fours {
                for i in 0..4 {
                    most[i] = s.max(most[i], s.load(&rows[i * width + lane..]));
                }
            }
            for row in fours.remainder().chunks_exact(width) {
                most[0] = s.max(most[0], s.load(&row[lane..]));
            }
            let most = s.max(s.max(most[0], most[1]), s.max(most[2], most[3]));
            // Where all are −∞, their difference from it would be NaN.
            let pivot = s.select(s.eq(most, none), zero, most);
            if !first {
                let factor = T::exp2_normal_v(s, s.sub(before, pivot));
                if !s.none(s.ne(factor, s.splat(T::ONE))) {
                    total = s.mul(total, factor);
                    for row in output.chunks_exact_mut(width) {
                        let row = &mut row[lane..];
                        s.store(s.mul(s.load(row), factor), row);
                    }
                }
            }
            let mut twos = scores.chunks_exact_mut(2 * width);
            let mut other = zero;
            for rows in &mut twos {
                let (one, two) = rows.split_at_mut(width);
                let (one, two) = (&mut one[lane..], &mut two[lane..]);
                let weight = T::exp2_normal_v(s, s.sub(s.load(one), pivot));
                let next = T::exp2_normal_v(s, s.sub(s.load(two), pivot));
                s.store(weight, one);
                s.store(next, two);
                total = s.add(total, weight);
                other = s.add(other, next);
            }
            for row in twos.into_remainder().chunks_exact_mut(width) {
                let row = &mut row[lane..];
                let weight = T::exp2_normal_v(s, s.sub(s.load(row), pivot));
                s.store(weight, row);
                total = s.add(total, weight);
            }
            s.store(most, max);
            s.store(s.add(total, other), sum);
        }
    }
}

/// Weights that dropout takes become 0, the others grow.
pub struct Drop<'a, T> {
    /// Rows `stride` apart, from key `first` on.
    pub weights: &'a mut [T],
    pub stride: usize,
    pub first: usize,
    /// One for each lane.
    pub rows: &'a [Row],
    pub threshold: u64,
    pub factor: T,
}

impl<T: Element> SimdOp<T> for Drop<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, _: S) {
        for (key, weights) in self.weights.chunks_mut(self.stride).enumerate() {
            let key = (self.first + key) as u32;
            for (weight, row) in weights.iter_mut().zip(self.rows) {
                let kept = u64::from(row.hash(key)) >= self.threshold;
                *weight = if kept { *weight * self.factor } else { T::ZERO };
            }
        }
    }
}

/// Scores become weights again, and the gradients of weights those of scores.
pub struct Differentiate<'a, T> {
    /// Rows of `width`, `stride` apart; out: weights.
    pub scores: &'a mut [T],
    /// dA; out: dS, by q·k without its factor.
    pub gradients: &'a mut [T],
    pub width: usize,
    pub stride: usize,
    pub linear: bool,
    /// Of each query: ln Σ e^S in units of ln 2, +∞ where there is no key; with `linear` Σ S.
    pub normalizers: &'a [T],
    /// rowsum(dY ⊙ Y).
    pub means: &'a [T],
    /// Derivatives of scores by q·k, rows of `width`.
    pub slopes: Option<&'a [T]>,
}

impl<T: Element> SimdOp<T> for Differentiate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let s = Pair(s);
        let Differentiate { scores, gradients, width, stride, linear, normalizers, means, slopes } = self;
        let (zero, none) = (s.splat(T::ZERO), s.splat(T::NEG_INFINITY));
        for lane in lanes::<T, S>(width) {
            let (normalizer, mean) = (s.load(&normalizers[lane..]), s.load(&means[lane..]));
            let inverse = s.div(s.splat(T::ONE), normalizer);
            for (key, (score, gradient)) in
                scores.chunks_mut(stride).zip(gradients.chunks_mut(stride)).enumerate()
            {
                let (score, gradient) = (&mut score[lane..], &mut gradient[lane..]);
                let (at, mut change) = (s.load(score), s.sub(s.load(gradient), mean));
                let weight = if linear {
                    change = s.mul(change, inverse);
                    s.mul(at, inverse)
                } else {
                    let weight = T::exp2_normal_v(s, s.sub(at, normalizer));
                    change = s.mul(weight, change);
                    weight
                };
                if let Some(slopes) = slopes {
                    change = s.mul(change, s.load(&slopes[key * width + lane..]));
                }
                // A factor of 0 would not do: dA may be infinite, and the normaliser NaN.
                let missing = s.eq(at, none);
                s.store(s.select(missing, zero, weight), score);
                s.store(s.select(missing, zero, change), gradient);
            }
        }
    }
}

/// The sum of the products of two slices.
pub struct Dot<'a, T>(pub &'a [T], pub &'a [T]);

impl<T: Element> SimdOp<T> for Dot<'_, T> {
    type Output = T;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) -> T {
        let mut sum = s.splat(T::ZERO);
        for (a, b) in self.0.chunks(S::LANES).zip(self.1.chunks(S::LANES)) {
            sum = s.mul_add(s.load_partial(a), s.load_partial(b), sum);
        }
        s.reduce_add(sum)
    }
}

/// Outputs of a panel, divided by their sums, as rows.
pub struct Finish<'a, T> {
    /// A row for each dimension, a lane for each query.
    pub output: &'a mut [T],
    pub width: usize,
    pub linear: bool,
    /// In: as `Weigh` leaves them. Out: `max` is the logarithm of the sum, or the sum.
    pub max: &'a mut [T],
    pub sum: &'a [T],
    /// A row for each query.
    pub rows: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Finish<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let s = Pair(simd);
        let Finish { output, width, linear, max, sum, rows } = self;
        let dim = output.len() / width;
        let fours = dim / 4 * 4;
        for lane in lanes::<T, S>(width) {
            let max = &mut max[lane..];
            let (most, sum) = (s.load(max), s.load(&sum[lane..]));
            // NaN scores may leave no trace in the maximum, but the sum keeps them.
            let empty = s.mask_and(s.eq(most, s.splat(T::NEG_INFINITY)), s.eq(sum, sum));
            let factor = s.select(empty, s.splat(T::ZERO), s.div(s.splat(T::ONE), sum));
            let logarithm = s.select(empty, most, s.mul_add(most, s.splat(ln_2()), T::log_v(s, sum)));
            s.store(if linear { sum } else { logarithm }, max);
            let rows = rows.get_mut(lane * dim..).unwrap_or(&mut []);
            for first in (0..fours).step_by(4) {
                let mut scaled = [s.splat(T::ZERO); 4];
                for i in 0..4 {
                    let row = s.mul(s.load(&output[(first + i) * width + lane..]), factor);
                    scaled[i] = s.select(empty, s.splat(T::ZERO), row);
                }
                s.store_transposed(scaled, &mut rows[first..], dim);
            }
            for d in fours..dim {
                let row = &mut output[d * width + lane..][..<Pair<S> as Simd<T>>::LANES];
                let scaled = s.select(empty, s.splat(T::ZERO), s.mul(s.load(row), factor));
                s.store(scaled, row);
                for (lane, &value) in row.iter().enumerate() {
                    rows[lane * dim + d] = value;
                }
            }
        }
    }
}

/// ln 2.
pub(super) fn ln_2<T: Element>() -> T {
    T::from_f64(std::f64::consts::LN_2)
}

/// 1 / ln 2.
pub(super) fn log2_e<T: Element>() -> T {
    T::from_f64(std::f64::consts::LOG2_E)
}

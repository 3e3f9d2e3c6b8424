//! Few queries against many keys: bound by reading keys and values, each of which is read once for all queries of a
//! group of heads.
//!
//! Keys are cut in pieces of one size, each a task with its own maximum, sum and output; the pieces are merged in order.

use std::ops::Range;

use super::forward::Outputs;
use super::kernel::ln_2;
use super::plan::{GRAIN, Plan};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{self, Simd, SimdOp, kernels};
use crate::tensor::TensorView;
use crate::workspace::scratch;

/// Keys of a piece.
const PIECE: usize = 512;

/// Most queries of a group of heads together.
const ROWS: usize = 8;

/// Keys whose values are added to all of the output at a time.
const TOGETHER: usize = 32;

/// Bytes ahead in a row's neighbours for which cache lines are asked.
const AHEAD: usize = 16 << 10;

/// True where [`run`] takes the call.
pub(super) fn takes<T: Element>(
    plan: &Plan<'_, T>,
    k: TensorView<'_, T, 4>,
    v: TensorView<'_, T, 4>,
) -> bool {
    let whole = |view: TensorView<'_, T, 4>| {
        let dim = view.shape()[3];
        view.strides()[3] == 1 && dim > 0 && dim.is_multiple_of(plan.tile.lanes)
    };
    plan.group.saturating_mul(plan.queries) <= ROWS
        && plan.keys > 0
        && whole(k)
        && whole(v)
        && !plan.options.linear
        && plan.options.dropout.is_none()
}

/// Y, and the normalisers, in how many tasks. The shapes have been checked and are not empty.
pub(super) fn run<T: Element>(
    plan: &Plan<'_, T>,
    q: TensorView<'_, T, 4>,
    k: TensorView<'_, T, 4>,
    v: TensorView<'_, T, 4>,
    outputs: Outputs<'_, T>,
) -> Result<usize> {
    let Outputs { mut y, mut normalizer } = outputs;
    let (rows, kv_heads) = (plan.group * plan.queries, k.shape()[1]);
    let pieces = plan.keys.div_ceil(PIECE);
    // Of each row: its output, maximum and sum.
    let row = plan.value_dim + 2;
    let partial = rows * row;
    let count = plan.batch.checked_mul(kv_heads).and_then(|heads| heads.checked_mul(pieces));
    let len = count.and_then(|count| count.checked_mul(partial));
    let len = len.ok_or(Error::Alloc { op: plan.op, bytes: usize::MAX })?;
    let mut partials = scratch::<T>(plan.op, len)?;
    let tasks = parallel::tasks(plan.work(), GRAIN);
    // What can fail does so in the tasks: they have scratch of their own.
    let failed = std::sync::Mutex::new(None);
    parallel::for_each_chunk_mut(&mut partials, partial, tasks, &|first, partials| {
        let piece = Piece { plan, q, k, v, pieces, rows };
        if let Err(error) = piece.run(first, partials)
            && let Ok(mut failed) = failed.lock()
        {
            *failed = Some(error);
        }
    });
    if let Ok(Some(error)) = failed.into_inner() {
        return Err(error);
    }
    for (number, partials) in partials.chunks_exact_mut(pieces * partial).enumerate() {
        let (entry, kv) = (number / kv_heads, number % kv_heads);
        for at in 0..rows {
            let (head, query) = (kv * plan.group + at / plan.queries, at % plan.queries);
            let parts = || (0..pieces).map(|piece| piece * partial + at * row);
            let most = parts().fold(T::NEG_INFINITY, |most, at| most.max(partials[at + row - 2]));
            let mut sum = T::ZERO;
            for at in parts() {
                let part = &mut partials[at..][..row];
                // A piece without keys has no output.
                let none = part[row - 2] == T::NEG_INFINITY;
                let factor = if none { T::ZERO } else { ((part[row - 2] - most) * ln_2()).exp() };
                sum += factor * part[row - 1];
                if none && !part[row - 1].is_nan() {
                    part.fill(T::ZERO);
                }
                part[row - 2] = factor;
            }
            // The first takes in the others.
            let (first, others) = partials.split_at_mut(partial);
            let total = &mut first[at * row..][..row];
            let factor = total[row - 2];
            total.iter_mut().for_each(|total| *total *= factor);
            for part in others.chunks_exact(partial).map(|part| &part[at * row..][..row]) {
                let factor = part[row - 2];
                total.iter_mut().zip(part).for_each(|(total, &x)| *total += factor * x);
            }
            let empty = most == T::NEG_INFINITY && !sum.is_nan();
            for (d, &total) in total[..plan.value_dim].iter().enumerate() {
                if let Some(y) = y.get_mut([entry, head, query, d]) {
                    *y = if empty { T::ZERO } else { total / sum };
                }
            }
            if let Some(normalizer) = normalizer.as_mut().and_then(|view| view.get_mut([entry, head, query]))
            {
                *normalizer = if empty { most } else { most * ln_2() + sum.ln() };
            }
        }
    }
    Ok(tasks)
}

/// What the pieces need to know.
struct Piece<'p, 'e, T> {
    plan: &'p Plan<'e, T>,
    q: TensorView<'p, T, 4>,
    k: TensorView<'p, T, 4>,
    v: TensorView<'p, T, 4>,
    pieces: usize,
    rows: usize,
}

impl<T: Element> Piece<'_, '_, T> {
    /// Computes neighbouring pieces from number `first` on.
    fn run(&self, first: usize, partials: &mut [T]) -> Result<()> {
        let (plan, rows) = (self.plan, self.rows);
        let kv_heads = self.k.shape()[1];
        let row = plan.value_dim + 2;
        let keys = PIECE.min(plan.keys);
        let queries_len =
            rows.checked_mul(plan.dim).ok_or(Error::Alloc { op: plan.op, bytes: usize::MAX })?;
        let mut memory = scratch::<T>(plan.op, rows * keys + queries_len)?;
        let (scores, queries) = memory.split_at_mut(rows * keys);
        for (number, partial) in partials.chunks_exact_mut(rows * row).enumerate() {
            let (head, piece) = ((first + number) / self.pieces, (first + number) % self.pieces);
            let (entry, kv) = (head / kv_heads, head % kv_heads);
            let mut range = piece * PIECE..plan.keys.min((piece + 1) * PIECE);
            // Positions may leave less.
            let seen = plan.ranges(entry, &(0..plan.queries));
            range.start = range.start.max(seen.start);
            range.end = range.end.min(seen.end).max(range.start);
            partial.fill(T::ZERO);
            if range.is_empty() {
                partial.chunks_exact_mut(row).for_each(|row| row[plan.value_dim] = T::NEG_INFINITY);
                continue;
            }
            let at = |at: usize| [entry, kv * plan.group + at / plan.queries, at % plan.queries];
            for (number, query) in queries.chunks_exact_mut(plan.dim).enumerate() {
                let [entry, head, index] = at(number);
                let from: TensorView<'_, T, 1> =
                    self.q.select::<3>(0, entry)?.select::<2>(0, head)?.select(0, index)?;
                query.iter_mut().zip(from.iter()).for_each(|(to, &x)| *to = x * plan.factor());
            }
            let k: TensorView<'_, T, 2> = self.k.select::<3>(0, entry)?.select(0, kv)?;
            let v: TensorView<'_, T, 2> = self.v.select::<3>(0, entry)?.select(0, kv)?;
            let (k, v) = (
                k.tile([range.start, 0], [range.len(), plan.dim]),
                v.tile([range.start, 0], [range.len(), plan.value_dim]),
            );
            let scores = &mut scores[..rows * range.len()];
            T::dots(plan.isa, Dots { queries, rows, k, scores });
            for (number, scores) in scores.chunks_exact_mut(range.len()).enumerate() {
                adjust(plan, at(number), &range, scores)?;
                let partial = &mut partial[number * row..][..row];
                (partial[row - 2], partial[row - 1]) = T::softmax(plan.isa, Softmax(scores));
            }
            T::mix(plan.isa, Mix { weights: scores, rows, v, output: partial, row });
        }
        Ok(())
    }
}

/// The options of a call, score by score.
fn adjust<T: Element>(
    plan: &Plan<'_, T>,
    [entry, head, query]: [usize; 3],
    keys: &Range<usize>,
    scores: &mut [T],
) -> Result<()> {
    let (options, unit) = (&plan.options, plan.unit());
    if let Some(cap) = options.soft_cap {
        scores.iter_mut().for_each(|score| *score = cap * unit * score.tanh());
    }
    if let Some(slopes) = options.slopes {
        let slope = slopes.get([head]).copied().unwrap_or(T::NAN) * unit;
        let position = plan.position(entry).saturating_add(query as isize);
        for (key, score) in keys.clone().zip(&mut *scores) {
            *score -= slope * T::from_f64((position - key as isize) as f64).abs();
        }
    }
    if let Some(bias) = plan.bias {
        let row: TensorView<'_, T, 1> = bias.select::<3>(0, entry)?.select::<2>(0, head)?.select(0, query)?;
        let row = row.slice(0, keys.clone(), 1)?;
        scores.iter_mut().zip(row.iter()).for_each(|(score, &bias)| *score += unit * bias);
    }
    if let Some(mask) = plan.mask {
        let row: TensorView<'_, bool, 1> =
            mask.select::<3>(0, entry)?.select::<2>(0, head)?.select(0, query)?;
        let row = row.slice(0, keys.clone(), 1)?;
        for (score, _) in scores.iter_mut().zip(row.iter()).filter(|(_, seen)| !**seen) {
            *score = T::NEG_INFINITY;
        }
    }
    let seen = plan.range(entry, query);
    if seen.start > keys.start || seen.end < keys.end {
        for (_, score) in keys.clone().zip(scores).filter(|(key, _)| !seen.contains(key)) {
            *score = T::NEG_INFINITY;
        }
    }
    Ok(())
}

/// `body` for each of the first `count` of eight, written out: loops that the compiler does not unroll early enough
/// keep the sums in memory.
macro_rules! unrolled {
    ($i:ident in $count:ident $body:block) => { unrolled!(@ $count $i $body 0 1 2 3 4 5 6 7) };
    (@ $count:ident $i:ident $body:block $($n:literal)*) => {$(
        if const { $n < $count } {
            let $i: usize = $n;
            $body
        }
    )*};
}

/// The kernels for each number of rows, and how many keys or vectors they take together.
macro_rules! by_rows {
    ($simd:ident, $rows:expr, $kernel:ident($op:expr)) => {
        match $rows {
            1 => $simd.call($kernel::<T, 1, 8>($op)),
            2 => $simd.call($kernel::<T, 2, 8>($op)),
            3 => $simd.call($kernel::<T, 3, 4>($op)),
            4 => $simd.call($kernel::<T, 4, 4>($op)),
            5 => $simd.call($kernel::<T, 5, 2>($op)),
            6 => $simd.call($kernel::<T, 6, 2>($op)),
            7 => $simd.call($kernel::<T, 7, 2>($op)),
            8 => $simd.call($kernel::<T, 8, 2>($op)),
            rows => debug_assert_eq!(rows, 0),
        }
    };
}

kernels! {
    /// Element types with the kernels of a few queries.
    pub trait Decode {
        /// [`Dots`].
        fn dots(isa: Isa, op: Dots<'_, Self>);

        /// [`Softmax`].
        fn softmax(isa: Isa, op: Softmax<'_, Self>) -> (Self, Self);

        /// [`Mix`].
        fn mix(isa: Isa, op: Mix<'_, Self>);
    }
}

/// Scores of rows of queries with rows of keys; whole vectors.
pub struct Dots<'a, T> {
    queries: &'a [T],
    rows: usize,
    k: TensorView<'a, T, 2>,
    /// `[rows, keys]`.
    scores: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(mut self, simd: S) {
        by_rows!(simd, self.rows, DotsOf(&mut self));
    }
}

/// Where, from an element on, the cache line lies that is asked for: rows are neighbours, or have other heads between them,
/// and `rows` of them are read at a time.
fn ahead<T>(view: TensorView<'_, T, 2>, rows: usize) -> isize {
    let ([_, dim], [stride, _]) = (view.shape(), view.strides());
    if stride.unsigned_abs() / 2 <= dim {
        (AHEAD / size_of::<T>()) as isize
    } else {
        stride.wrapping_mul(rows as isize)
    }
}

/// `R` queries with `N` keys at a time.
struct DotsOf<'d, 'a, T, const R: usize, const N: usize>(&'d mut Dots<'a, T>);

impl<T: Element, const R: usize, const N: usize> SimdOp<T> for DotsOf<'_, '_, T, R, N> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Dots { queries, k, ref mut scores, .. } = *self.0;
        let [keys, dim] = k.shape();
        let next = ahead(k, N);
        assert!(queries.len() >= R * dim && scores.len() >= R * keys);
        for first in (0..keys).step_by(N) {
            // At the end the last keys again.
            let first = if first + N <= keys { first } else { keys.saturating_sub(N) };
            let count = N.min(keys - first);
            let mut lines: [&[T]; N] = [&[]; N];
            unrolled!(n in N {
                // A key that is not there is another one.
                lines[n] = k.row(first + n.min(count - 1)).map_or(&[][..], |row| &row[..dim]);
            });
            let mut sums = [[simd.splat(T::ZERO); R]; N];
            for at in (0..dim).step_by(S::LANES) {
                let mut q = [simd.splat(T::ZERO); R];
                unrolled!(r in R {
                    q[r] = simd.load(&queries[r * dim + at..]);
                });
                unrolled!(n in N {
                    let line = &lines[n][at..];
                    simd::prefetch(line.as_ptr().wrapping_offset(next));
                    let key = simd.load(line);
                    unrolled!(r in R {
                        sums[n][r] = simd.mul_add(q[r], key, sums[n][r]);
                    });
                });
            }
            unrolled!(n in N {
                if n < count {
                    unrolled!(r in R {
                        scores[r * keys + first + n] = simd.reduce_add(sums[n][r]);
                    });
                }
            });
        }
    }
}

/// A row of scores becomes weights; gives their maximum and sum.
pub struct Softmax<'a, T>(&'a mut [T]);

impl<T: Element> SimdOp<T> for Softmax<'_, T> {
    type Output = (T, T);

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) -> (T, T) {
        let whole = self.0.len() / S::LANES * S::LANES;
        let (vectors, rest) = self.0.split_at_mut(whole);
        let mut most = s.splat(T::NEG_INFINITY);
        for score in vectors.chunks_exact(S::LANES) {
            most = s.max(most, s.load(score));
        }
        let most = rest.iter().fold(s.reduce_max(most), |most, &score| most.max(score));
        let pivot = s.splat(if most == T::NEG_INFINITY { T::ZERO } else { most });
        let mut sum = s.splat(T::ZERO);
        for score in vectors.chunks_exact_mut(S::LANES) {
            let weight = T::exp2_normal_v(s, s.sub(s.load(score), pivot));
            s.store(weight, score);
            sum = s.add(sum, weight);
        }
        let weight = T::exp2_normal_v(s, s.sub(s.load_partial(rest), pivot));
        s.store_partial(weight, rest);
        let total = rest.iter().fold(s.reduce_add(sum), |sum, &weight| sum + weight);
        (most, total)
    }
}

/// Adds to rows of outputs rows of weights times values; whole vectors.
pub struct Mix<'a, T> {
    /// `[rows, keys]`.
    weights: &'a [T],
    rows: usize,
    v: TensorView<'a, T, 2>,
    /// Rows `row` apart.
    output: &'a mut [T],
    row: usize,
}

impl<T: Element> SimdOp<T> for Mix<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(mut self, simd: S) {
        by_rows!(simd, self.rows, MixOf(&mut self));
    }
}

/// `R` rows, `N` vectors at a time.
struct MixOf<'d, 'a, T, const R: usize, const N: usize>(&'d mut Mix<'a, T>);

impl<T: Element, const R: usize, const N: usize> SimdOp<T> for MixOf<'_, '_, T, R, N> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let [keys, dim] = self.0.v.shape();
        // All columns of some keys, so that memory is read in its order.
        let some = if dim == N * S::LANES { keys.max(1) } else { TOGETHER };
        for start in (0..keys).step_by(some) {
            let keys = start..keys.min(start + some);
            let mut first = 0;
            while dim - first >= N * S::LANES {
                strip::<T, S, R, N>(simd, self.0, first, keys.clone());
                first += N * S::LANES;
            }
            while N > 4 && dim - first >= 4 * S::LANES {
                strip::<T, S, R, 4>(simd, self.0, first, keys.clone());
                first += 4 * S::LANES;
            }
            while first < dim {
                strip::<T, S, R, 1>(simd, self.0, first, keys.clone());
                first += S::LANES;
            }
        }
    }
}

/// Adds some keys to `N` vectors of outputs from column `first` on.
#[inline(always)]
fn strip<T: Element, S: Simd<T>, const R: usize, const N: usize>(
    simd: S,
    mix: &mut Mix<'_, T>,
    first: usize,
    keys: Range<usize>,
) {
    let Mix { weights, v, ref mut output, row, .. } = *mix;
    let [all, dim] = v.shape();
    assert!(weights.len() >= R * all && keys.end <= all && first + N * S::LANES <= dim);
    let next = ahead(v, 8);
    let mut sums = [[simd.splat(T::ZERO); N]; R];
    unrolled!(r in R {
        unrolled!(n in N {
            sums[r][n] = simd.load(&output[r * row + first + n * S::LANES..]);
        });
    });
    for key in keys {
        let line = v.row(key).map_or(&[][..], |line| &line[first..]);
        let mut values = [simd.splat(T::ZERO); N];
        unrolled!(n in N {
            simd::prefetch(line.as_ptr().wrapping_offset(next + (n * S::LANES) as isize));
            values[n] = simd.load(&line[n * S::LANES..]);
        });
        unrolled!(r in R {
            let weight = simd.splat(weights[r * all + key]);
            unrolled!(n in N {
                sums[r][n] = simd.mul_add(weight, values[n], sums[r][n]);
            });
        });
    }
    unrolled!(r in R {
        unrolled!(n in N {
            simd.store(sums[r][n], &mut output[r * row + first + n * S::LANES..]);
        });
    });
}

//! Rows of planes, to those of slots. Whole vectors are written: what they have too much, the next row overwrites, or it ends in
//! the gap behind the last.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::{Axis, Span};
use crate::element::Element;
use crate::simd::{Simd, SimdOp, prefetch};
use crate::tensor::TensorView;

/// Rows of a plane `[height, width]` on their way to those of one slot, each `len` long.
pub(super) struct Rows<'a, T> {
    pub plane: TensorView<'a, T, 2>,
    /// The plane where it is a slice.
    pub line: Option<&'a [T]>,
    pub rows: Span,
    /// The distance of the rows that are read.
    pub step: usize,
    pub columns: Span,
    pub len: usize,
}

impl<T: Element> Rows<'_, T> {
    /// Every `P`-th element.
    #[inline(always)]
    pub(super) fn every<S: Simd<T>, const P: usize>(self, simd: S, to: &mut [T]) {
        let Some(data) = self.line.filter(|_| !self.columns.places.is_empty()) else {
            return self.any(simd, P, to);
        };
        let Self { plane, rows, step, columns, len, .. } = self;
        let [_, width] = plane.shape();
        let (start, count) = (columns.places.start, columns.places.len());
        let end = start + count.next_multiple_of(S::LANES);
        for (i, place) in rows.places.enumerate() {
            let from = &data[(rows.first + i * step) * width..][..width][columns.first..];
            let to = &mut to[place * len..];
            zeros(simd, 0..start, to);
            let mut at = 0;
            while at < count {
                // Behind the image are zeros. Where the places end before the image, what is read behind goes behind.
                let vector = every::<T, S, P>(simd, &from[at * P..]);
                simd.store(vector, &mut to[start + at..]);
                at += S::LANES;
            }
            zeros(simd, end..len, to);
        }
    }

    /// Every `stride`-th element, whatever the strides of the plane.
    #[inline(always)]
    pub(super) fn any<S: Simd<T>>(self, simd: S, stride: usize, to: &mut [T]) {
        let Self { plane, rows, step, columns: Span { places, first }, len, .. } = self;
        for (i, place) in rows.places.enumerate() {
            let to = &mut to[place * len..][..len];
            for edge in (0..places.start).chain(places.end..len) {
                to[edge] = T::ZERO;
            }
            copy_row(simd, plane, rows.first + i * step, first, stride, &mut to[places.clone()]);
        }
    }
}

/// Bytes between what is read and what is asked for meanwhile: planes follow each other in memory, but rows that a stride leaves
/// out are not followed by the processor.
const AHEAD: usize = 2 << 10;

/// Elements between what is read and what is asked for meanwhile, where `part` elements are read of planes that begin `apart`: the
/// same rows of the next plane, where those of this one end before requests would come in time.
pub(super) fn ahead<T>(part: usize, apart: usize) -> usize {
    let usual = AHEAD / size_of::<T>();
    if part < apart / 2 && part <= 4 * usual { apart } else { usual }
}

/// A plane to both slots of columns of a stride of 2, whose first columns are neighbours, and all slots of rows: each vector is
/// read once. A frame of its own: what a row needs stays in registers.
pub(super) struct Pairs<'a, T> {
    pub plane: &'a [T],
    /// Of rows and columns.
    pub axes: [&'a Axis; 2],
    pub spans: [&'a [Span; 8]; 2],
    /// Elements of a residue.
    pub volume: usize,
    /// Elements between what is read and what is asked for meanwhile.
    pub ahead: usize,
    pub to: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Pairs<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { plane, axes: [height, width], spans: [heights, widths], volume, ahead, to } = self;
        let [one, two] = [&widths[0], &widths[1]];
        let (column, first_is_even) = (one.first.min(two.first), one.first < two.first);
        let starts = [one, two].map(|span| span.places.start);
        let vectors = [one, two].map(|span| span.places.len().div_ceil(S::LANES));
        let ends = [0, 1].map(|slot| starts[slot] + vectors[slot] * S::LANES);
        let (len, shared, pitch) = (width.size, vectors[0].min(vectors[1]) * S::LANES, width.image);
        let longer = usize::from(vectors[1] > vectors[0]);
        let (step, all) = (height.stride * pitch, height.size * len);
        for (slot, Span { places, first }) in heights.iter().enumerate().take(height.slots) {
            let (to_one, to_two) = to[2 * slot * volume..].split_at_mut(volume);
            for to in [&mut *to_one, &mut *to_two] {
                zeros(simd, 0..places.start * len, to);
            }
            for (i, place) in places.clone().enumerate() {
                let row = &plane[first * pitch + i * step..][column..pitch];
                let (to_one, to_two) = (&mut to_one[place * len..], &mut to_two[place * len..]);
                zeros(simd, 0..starts[0], to_one);
                zeros(simd, 0..starts[1], to_two);
                for at in (0..shared).step_by(S::LANES) {
                    let [one, two] = pair(simd, row, [at, ahead], first_is_even);
                    simd.store(one, &mut to_one[starts[0] + at..]);
                    simd.store(two, &mut to_two[starts[1] + at..]);
                }
                if vectors[0] != vectors[1] {
                    let rest = pair(simd, row, [shared, ahead], first_is_even);
                    let to = if longer == 0 { &mut *to_one } else { &mut *to_two };
                    simd.store(rest[longer], &mut to[starts[longer] + shared..]);
                }
                zeros(simd, ends[0]..len, to_one);
                zeros(simd, ends[1]..len, to_two);
            }
            // Over what the last row has too much.
            for to in [to_one, to_two] {
                zeros(simd, places.end * len..all, to);
            }
        }
    }
}

/// What of a row goes to both slots from a place on; what lies `ahead` is asked for.
#[inline(always)]
fn pair<T: Element, S: Simd<T>>(
    simd: S,
    row: &[T],
    [at, ahead]: [usize; 2],
    first_is_even: bool,
) -> [S::V; 2] {
    for vector in [0, S::LANES] {
        prefetch(row.as_ptr().wrapping_add(2 * at + vector + ahead));
    }
    let [even, odd] = simd.deinterleave(part(simd, row, 2 * at), part(simd, row, 2 * at + S::LANES));
    if first_is_even { [even, odd] } else { [odd, even] }
}

/// The vector from `at` on, zeros behind the last element.
#[inline(always)]
fn part<T: Element, S: Simd<T>>(simd: S, from: &[T], at: usize) -> S::V {
    simd.load_up_to(&from[at.min(from.len())..])
}

/// A vector of every `P`-th element, zeros behind the last.
#[inline(always)]
fn every<T: Element, S: Simd<T>, const P: usize>(simd: S, from: &[T]) -> S::V {
    let mut vectors = [simd.splat(T::ZERO); P];
    for (i, vector) in vectors.iter_mut().enumerate() {
        *vector = part(simd, from, i * S::LANES);
    }
    let mut count = P;
    while count > 1 {
        count /= 2;
        for i in 0..count {
            vectors[i] = simd.deinterleave(vectors[2 * i], vectors[2 * i + 1])[0];
        }
    }
    vectors[0]
}

/// Zeros to a range, and as far behind it as the last vector reaches.
#[inline(always)]
pub(super) fn zeros<T: Element, S: Simd<T>>(simd: S, range: Range<usize>, to: &mut [T]) {
    for at in range.step_by(S::LANES) {
        simd.store(simd.splat(T::ZERO), &mut to[at..]);
    }
}

/// Copies `from` to the front of `to`, inline: rows are short.
#[inline(always)]
fn copy<T: Element, S: Simd<T>>(simd: S, from: &[T], to: &mut [T]) {
    for (to, from) in to.chunks_mut(S::LANES).zip(from.chunks(S::LANES)) {
        simd.store_up_to(simd.load_up_to(from), &mut to[..from.len()]);
    }
}

/// Every `step`-th element of a row from `column` on.
#[inline(always)]
fn copy_row<T: Element, S: Simd<T>>(
    simd: S,
    image: TensorView<'_, T, 2>,
    row: usize,
    column: usize,
    step: usize,
    to: &mut [T],
) {
    match image.row(row) {
        Some(from) if step == 1 => copy(simd, &from[column..][..to.len()], to),
        Some(from) if step == 2 => {
            let pairs = from[column.min(from.len())..].chunks(2);
            for (to, pair) in to.iter_mut().zip(pairs) {
                *to = pair[0];
            }
        }
        Some(from) => {
            for (to, from) in to.iter_mut().zip(from[column.min(from.len())..].iter().step_by(step)) {
                *to = *from;
            }
        }
        None => {
            for (i, to) in to.iter_mut().enumerate() {
                *to = image.get([row, column + i * step]).copied().unwrap_or(T::ZERO);
            }
        }
    }
}

//! Weights as a right operand of rows of patches: columns are output channels, depth is `(tap, channel)`.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::pointwise::merges;
use super::weights::{Filter, Lines, ROOM, WIDTH};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Slab, blocks};
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Elements that a task turns at least.
const GRAIN: usize = 1 << 15;

impl<T: Element> Filter<'_, T> {
    /// Elements of a right operand that [`columns`](Self::columns) fills, of one group.
    pub(super) fn columns_len(&self, op: &'static str, isa: Isa) -> Result<usize> {
        let [rows, rest @ ..] = self.sizes(1);
        Slab::<T>::rhs_len(isa, rows, rest.iter().product()).ok_or(Error::Alloc { op, bytes: usize::MAX })
    }

    /// Packs the weights of one group into `data`, which has that length, and is what it returns.
    pub(super) fn columns<'d>(&self, op: &'static str, isa: Isa, data: &'d mut [T]) -> Result<Slab<'d, T>> {
        let view = self.group(1, 0)?.permute([0, 2, 3, 4, 1])?;
        let [rows, taps @ .., channels] = view.shape();
        let depth = taps.iter().product::<usize>() * channels;
        if merges(view.shape(), view.strides(), &[1, 2, 3, 4]) {
            Slab::pack_rhs(isa, view.reshape([rows, depth])?, data);
        } else if let Some(lines) = self.lines(1, 0)?.filter(Lines::complete) {
            let slab = Slab::<T>::rhs(isa, rows, depth, &[]);
            let (kc, width) = (slab.kc(), slab.width());
            let (panels, count) = (rows.div_ceil(width), depth / kc);
            let (whole, rest) = data.split_at_mut(count * panels * kc * width);
            let columns = Columns {
                lines: &lines,
                channels,
                rows: 0..rows,
                width,
                kc,
                whole: TensorViewMut::from_slice(whole, [count, panels, kc, width])?,
                rest: TensorViewMut::from_slice(rest, [1, panels, depth % kc, width])?,
            };
            columns.run(isa, parallel::tasks(rows * depth, GRAIN))?;
        } else {
            let mut copy = workspace::scratch(op, view.len())?;
            TensorViewMut::from_slice(&mut copy[..], view.shape())?.copy_from(view);
            Slab::pack_rhs(isa, TensorView::from_slice(&copy[..], [rows, depth])?, data);
        }
        Ok(Slab::rhs(isa, rows, depth, data))
    }
}

/// Some panels over all of the depth.
struct Columns<'p, T> {
    lines: &'p Lines<'p, T>,
    channels: usize,
    rows: Range<usize>,
    /// Columns of a panel.
    width: usize,
    /// Steps of a block of depth.
    kc: usize,
    /// `[blocks, panels, steps, width]` of whole blocks, and of what is left.
    whole: TensorViewMut<'p, T, 4>,
    rest: TensorViewMut<'p, T, 4>,
}

impl<T: Element> Columns<'_, T> {
    fn run(self, isa: Isa, tasks: usize) -> Result<()> {
        let panels = self.whole.shape()[1];
        if tasks <= 1 || panels <= 1 {
            T::dispatch(isa, self);
            return Ok(());
        }
        let Self { lines, channels, rows, width, kc, whole, rest } = self;
        let half = tasks / 2;
        let cut = (panels * half / tasks).clamp(1, panels - 1);
        let middle = rows.start + cut * width;
        let ((whole, more), (rest, more_rest)) = (whole.split_at(1, cut)?, rest.split_at(1, cut)?);
        let low = Columns { lines, channels, rows: rows.start..middle, width, kc, whole, rest };
        let high =
            Columns { lines, channels, rows: middle..rows.end, width, kc, whole: more, rest: more_rest };
        let (low, high) = parallel::join(|| low.run(isa, half), || high.run(isa, tasks - half));
        low.and(high)
    }

    /// Rows of `from`, `apart` elements from one to the next, to some columns of a panel at these steps.
    #[inline(always)]
    fn put<S: Simd<T>>(
        &mut self,
        simd: S,
        panel: usize,
        columns: &Range<usize>,
        mut steps: Range<usize>,
        (from, apart): (&[T], usize),
    ) {
        let mut at = 0;
        while !steps.is_empty() {
            let (block, step) = (steps.start / self.kc, steps.start % self.kc);
            let count = steps.len().min(self.kc - step);
            let to = if block < self.whole.shape()[0] {
                self.whole.line_mut([block, panel])
            } else {
                self.rest.line_mut([0, panel])
            };
            let Some(to) = to else { return };
            for to in to[step * self.width..].chunks_exact_mut(self.width).take(count) {
                for i in (0..columns.len()).step_by(S::LANES) {
                    simd.store(simd.load(&from[at + i..]), &mut to[columns.start + i..]);
                }
                at += apart;
            }
            steps.start += count;
        }
    }
}

impl<T: Element> SimdOp<T> for Columns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(mut self, simd: S) {
        let Self { lines, channels, width, .. } = self;
        let (rows, mut turned) = (self.rows.clone(), [T::ZERO; ROOM]);
        for some in lines.some(0..channels) {
            for (panel, first) in rows.clone().step_by(width).enumerate() {
                for columns in blocks(0..width, WIDTH) {
                    let start = (first + columns.start).min(rows.end);
                    let of = start..rows.end.min(first + columns.end);
                    for few in lines.few(some.clone()) {
                        let [apart, pitch] = lines.turn(simd, &of, few.clone(), columns.len(), &mut turned);
                        for (at, &tap) in lines.seen().iter().enumerate() {
                            let steps = at * channels + few.start..at * channels + few.end;
                            self.put(simd, panel, &columns, steps, (&turned[tap * pitch..], apart));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::weights::Taps;
    use crate::machine;

    /// Turned in registers, in as many tasks as pay, as from a copy in the order of the operand.
    #[test]
    fn lines_are_packed_as_a_copy_is() {
        for &isa in machine::supported() {
            for [rows, channels, height, width] in [
                [1, 1, 3, 3],
                [37, 5, 3, 3],
                [70, 131, 3, 3],
                [16, 9, 1, 5],
                [200, 70, 3, 2],
                [3, 40, 8, 8],
                [37, 5, 1, 3],
                [70, 131, 2, 2],
                [200, 70, 1, 2],
            ] {
                for transposed in [false, true] {
                    let [outer, inner] = if transposed { [channels, rows] } else { [rows, channels] };
                    let shape = [outer, inner, 1, height, width];
                    let len: usize = shape.iter().product();
                    let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
                    let view = TensorView::from_slice(&values, shape).unwrap();
                    let taps =
                        [1, height, width].map(|count| Taps { first: 0, step: 1, count, backwards: true });
                    let filter = if transposed { Filter::transposed(view, taps) } else { Filter::new(view) };
                    assert!(filter.lines(1, 0).unwrap().is_some_and(|lines| lines.complete()));
                    let copy =
                        filter.group(1, 0).unwrap().permute([0, 2, 3, 4, 1]).unwrap().to_tensor().unwrap();
                    let matrix = copy.view().reshape([rows, height * width * channels]).unwrap();
                    let len = filter.columns_len("test", isa).unwrap();
                    let (mut data, mut expected) = (vec![f32::NAN; len], vec![f32::NAN; len]);
                    Slab::pack_rhs(isa, matrix, &mut expected);
                    filter.columns("test", isa, &mut data).unwrap();
                    assert_eq!(data, expected, "{isa} {rows} {channels} {height} {width} {transposed}");
                }
            }
        }
    }
}

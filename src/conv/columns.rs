//! Weights as a right operand of rows of patches: columns are output channels, depth is `(tap, channel)`.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::pointwise::merges;
use super::weights::{Filter, Lines, ROOM, WIDTH};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Slab, blocks as cut};
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
            let (panels, whole, rest) = (rows.div_ceil(width), depth / kc, depth % kc);
            let (blocks, last) = data.split_at_mut(whole * panels * kc * width);
            let columns = Columns {
                lines: &lines,
                channels,
                rows: 0..rows,
                width,
                kc,
                blocks: TensorViewMut::from_slice(blocks, [whole, panels, kc, width])?,
                last: TensorViewMut::from_slice(last, [1, panels, rest, width])?,
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
    blocks: TensorViewMut<'p, T, 4>,
    last: TensorViewMut<'p, T, 4>,
}

impl<T: Element> Columns<'_, T> {
    fn run(self, isa: Isa, tasks: usize) -> Result<()> {
        let panels = self.blocks.shape()[1];
        if tasks <= 1 || panels <= 1 {
            T::dispatch(isa, self);
            return Ok(());
        }
        let Self { lines, channels, rows, width, kc, blocks, last } = self;
        let half = tasks / 2;
        let cut = (panels * half / tasks).clamp(1, panels - 1);
        let middle = rows.start + cut * width;
        let ((blocks, more), (last, more_last)) = (blocks.split_at(1, cut)?, last.split_at(1, cut)?);
        let low = Columns { lines, channels, rows: rows.start..middle, width, kc, blocks, last };
        let high =
            Columns { lines, channels, rows: middle..rows.end, width, kc, blocks: more, last: more_last };
        let (low, high) = parallel::join(|| low.run(isa, half), || high.run(isa, tasks - half));
        low.and(high)
    }
}

impl<T: Element> SimdOp<T> for Columns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { lines, channels, rows, width, kc, mut blocks, mut last } = self;
        let (whole, mut turned) = (blocks.shape()[0], [T::ZERO; ROOM]);
        for some in lines.some(0..channels) {
            for (panel, first) in rows.clone().step_by(width).enumerate() {
                for part in cut(0..width, WIDTH) {
                    let start = (first + part.start).min(rows.end);
                    let of_part = start..rows.end.min(first + part.end);
                    for few in lines.few(some.clone()) {
                        let [apart, pitch] = lines.turn(simd, &of_part, few.clone(), part.len(), &mut turned);
                        for (at, &tap) in lines.seen().iter().enumerate() {
                            let mut steps = at * channels + few.start..at * channels + few.end;
                            let mut from = tap * pitch;
                            while !steps.is_empty() {
                                let (block, step) = (steps.start / kc, steps.start % kc);
                                let count = steps.len().min(kc - step);
                                let to = if block < whole {
                                    blocks.line_mut([block, panel])
                                } else {
                                    last.line_mut([0, panel])
                                };
                                let Some(to) = to else { return };
                                let to = to[step * width..].chunks_exact_mut(width).take(count);
                                for to in to {
                                    for i in (0..part.len()).step_by(S::LANES) {
                                        simd.store(simd.load(&turned[from + i..]), &mut to[part.start + i..]);
                                    }
                                    from += apart;
                                }
                                steps.start += count;
                            }
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
            for [rows, channels, height, width] in
                [[1, 1, 3, 3], [37, 5, 3, 3], [70, 131, 3, 3], [16, 9, 1, 5], [200, 70, 3, 2], [3, 40, 8, 8]]
            {
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

//! Stride 2 along rows whose columns are neighbours, or whose few channels are: all residues of a box read one copy of Z in place.
//!
//! Of that copy, neighbouring positions are the columns of a right operand as they lie, at one distance for each tap; what lies
//! between the rows is computed too and dropped. Written by itself, a residue would touch every second element of every cache
//! line: the two of a row go to the output together, as whole vectors.
//!
//! ```text
//! for each image and box of rows                            in L2 with all below
//!     Z → planes with zeros around (halo)
//!     for each residue along the height and the width, for each of its taps
//!         sums += weights · planes
//!     sums of both residues of a row, interleaved → output, with channels last by way of a row of all channels
//! ```
#![forbid(unsafe_code)]

use super::{Residue, Scatter, residues};
use crate::activation::{self, Activation};
use crate::conv::emit::{Finish, channels_last};
use crate::conv::halo::{self, Fill, Halo};
use crate::conv::lanes::{self, Panel};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{
    Block, GRAIN, Order, Panels, Store, Tile, balanced, blocks, pack, packed_len, tile, tile_rows,
};
use crate::machine;
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::spatial::Sliding;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// What the residues of an axis read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// For the first position of each.
    start: isize,
    len: usize,
    /// Positions of the residue that has most.
    outputs: usize,
}

impl Span {
    fn new(sliding: &Sliding, axis: usize, size: usize) -> Option<Self> {
        let read = || residues(sliding, axis, size).filter(|residue| residue.taps > 0);
        let start = read().map(|residue| residue.start).min()?;
        let last =
            read().map(|residue| residue.start + ((residue.taps - 1) * residue.dilation) as isize).max()?;
        let len = usize::try_from(last - start).ok()? + 1;
        Some(Self { start, len, outputs: size.div_ceil(sliding.stride[axis]) })
    }
}

/// Channels of Y up to which it pays where they lie last: more of them are columns of another path that does not turn them.
const MOST_LAST: usize = 6;

/// A call for which this path pays.
pub(super) struct InPlace<'a, 's, T> {
    scatter: &'s Scatter<'a, T>,
    tile: Tile,
    /// Along height and width.
    spans: [Span; 2],
    /// Positions of a row of sums: of the copy's, junk among them, or where output channels are lanes, of outputs.
    pitch: usize,
    /// Output channels are lanes.
    lanes: bool,
    /// Input channels of a group, output channels, taps.
    outer: usize,
    inner: usize,
    taps: usize,
    /// Rows of a panel of weights; all panels of a tap of a group.
    width: usize,
    /// Rows of each residue at a time.
    rows: usize,
}

/// Steps of a block of depth.
const STEPS: usize = 384;

impl<'a, 's, T: Element> InPlace<'a, 's, T> {
    /// `None` where another path is taken for `y`, which has elements.
    pub(super) fn new(scatter: &'s Scatter<'a, T>, y: &TensorViewMut<'_, T, 5>) -> Option<Self> {
        let Scatter { isa, z, w, groups, sliding, ref finish, .. } = *scatter;
        let [.., height, width] = y.shape();
        if !scatter.is_flat()
            || sliding.stride[2] != 2
            || y.strides()[4] != 1 && !(channels_last(y.shape(), y.strides()) && y.shape()[1] <= MOST_LAST)
            || finish.residual.is_some()
            || z.is_empty()
        {
            return None;
        }
        let spans = [Span::new(&sliding, 1, height)?, Span::new(&sliding, 2, width)?];
        // Far taps: mostly zeros would be copied.
        if spans.iter().any(|span| span.len > span.outputs + 8) {
            return None;
        }
        let [outer, inner, _, kh, kw] = w.shape();
        let outer = outer / groups;
        let tile = tile::<T>(isa);
        let depth = (kh * kw).saturating_mul(outer);
        let lanes = inner <= lanes::width(tile, inner) && lanes::fits(tile, inner, depth, spans[1].outputs);
        let pitch = if lanes { spans[1].outputs } else { spans[1].outputs + spans[1].len - 1 };
        let residues = sliding.stride[1].min(height) * 2;
        let row = pitch.saturating_mul(outer.saturating_add(residues.saturating_mul(inner)));
        let most = machine::caches().l2 / 2 / size_of::<T>() / row.max(1);
        let rows = balanced(spans[0].outputs, most.max(1), 1);
        let width = if lanes { lanes::width(tile, inner) } else { tile_rows(tile, [inner, usize::MAX]) };
        Some(Self { scatter, tile, spans, pitch, lanes, outer, inner, taps: kh * kw, width, rows })
    }

    /// Computes `y`.
    pub(super) fn run(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let Scatter { op, isa, w, groups, .. } = *self.scatter;
        let none = || Error::Alloc { op, bytes: usize::MAX };
        let panels = packed_len(self.inner, self.width, self.outer).ok_or_else(none)?;
        let len = panels.checked_mul(self.taps).and_then(|len| len.checked_mul(groups)).ok_or_else(none)?;
        let mut weights = workspace::scratch(op, len)?;
        let [all, _, _, kh, kw] = w.shape();
        // Tap after tap: then rows of a panel are neighbours.
        let mut turned = workspace::scratch(op, w.len())?;
        TensorViewMut::from_slice(&mut turned[..], [kh, kw, all, self.inner, 1])?
            .copy_from(w.permute([3, 4, 0, 1, 2])?);
        let turned = TensorView::from_slice(&turned[..], [self.taps, all, self.inner])?;
        // Those of a residue together, in the order in which they are summed up. Some belong to none.
        let mut order = workspace::scratch::<usize>(op, self.taps)?;
        order.fill(self.taps);
        self.order([y.shape()[3], y.shape()[4]], &mut order);
        for (at, to) in weights.chunks_exact_mut(panels).enumerate() {
            let (group, tap) = (at / self.taps, order[at % self.taps]);
            if tap == self.taps {
                continue;
            }
            let part =
                turned.select::<2>(0, tap)?.slice(0, group * self.outer..(group + 1) * self.outer, 1)?;
            for steps in blocks(0..self.outer, STEPS) {
                let to = &mut to[steps.start * self.padded()..steps.end * self.padded()];
                pack(isa, part.transpose(), 0..self.inner, steps, self.width, to, true);
            }
        }
        let work = self.scatter.z.len().saturating_mul(self.inner * self.taps);
        self.split(&weights, y, [0; 2], parallel::threads_for(work, GRAIN))
    }

    /// The taps of all residues of an output of this height and width, one residue after the other.
    fn order(&self, [height, width]: [usize; 2], order: &mut [usize]) {
        let (sliding, mut order) = (&self.scatter.sliding, order.iter_mut());
        for h in residues(sliding, 1, height) {
            for w in residues(sliding, 2, width) {
                for (at, to) in (0..h.taps * w.taps).zip(&mut order) {
                    // In reverse order.
                    let [down, right] = [(&h, at / w.taps), (&w, at % w.taps)]
                        .map(|(axis, index)| axis.tap + axis.step * (axis.taps - 1 - index));
                    *to = down * sliding.kernel[2] + right;
                }
            }
        }
    }

    /// Computes the part `y`, whose first element has these indices of image and channel, in `tasks` tasks.
    fn split(&self, weights: &[T], y: TensorViewMut<'_, T, 5>, at: [usize; 2], tasks: usize) -> Result<()> {
        let [images, channels, ..] = y.shape();
        // Images, else whole groups, else panels.
        let (axis, unit) = match (images, channels > self.inner) {
            (2.., _) => (0, 1),
            (_, true) => (1, self.inner),
            _ => (1, self.width),
        };
        let parts = y.shape()[axis].div_ceil(unit);
        if tasks <= 1 || parts <= 1 {
            return self.compute(weights, y, at);
        }
        let f = |part: TensorViewMut<'_, T, 5>, at, tasks| self.split(weights, part, at, tasks);
        parallel::halves(y, at, (axis, unit), tasks, &f)
    }

    /// Computes a part of whole groups, or of one, on this thread.
    fn compute(&self, weights: &[T], mut y: TensorViewMut<'_, T, 5>, at: [usize; 2]) -> Result<()> {
        let Scatter { op, isa, z, ref sliding, ref finish, .. } = *self.scatter;
        let [images, channels, depth, height, width] = y.shape();
        let none = || Error::Alloc { op, bytes: usize::MAX };
        let largest = self.halo([0; 2], self.rows).len().ok_or_else(none)?;
        let mut planes = workspace::scratch(op, largest.saturating_add(self.tile.lanes))?;
        let (rows_once, pairs) = (channels.min(self.inner), sliding.stride[1].min(height));
        // Positions of a channel and residue.
        let mut len = (self.rows * self.pitch).next_multiple_of(self.tile.lanes);
        let mut lines = rows_once;
        if self.lanes {
            (len, lines) = (len + lanes::SLACK, self.width);
        }
        let pair = len.checked_mul(2 * lines).ok_or_else(none)?;
        let mut offsets =
            workspace::scratch::<usize>(op, if self.lanes { self.taps * self.outer } else { 0 })?;
        let mut sums = workspace::scratch(op, pair.checked_mul(pairs).ok_or_else(none)?)?;
        let mut turned = workspace::scratch(op, if y.strides()[4] == 1 { 0 } else { rows_once * width })?;
        for first in (0..channels).step_by(rows_once) {
            let (group, row) = ((at[1] + first) / self.inner, (at[1] + first) % self.inner);
            let z = z.slice(1, group * self.outer..(group + 1) * self.outer, 1)?;
            let group_len = weights.len() / self.scatter.groups;
            let weights = &weights[group * group_len..][..group_len];
            for n in 0..images * depth {
                let (n, d) = (n / depth, n % depth);
                let z = z.slice(0, at[0] + n..at[0] + n + 1, 1)?;
                let mut y = y.view_mut().slice(1, first..first + rows_once, 1)?.select::<4>(0, n)?;
                let mut y = y.view_mut().select::<3>(1, d)?;
                for part in blocks(0..self.spans[0].outputs, self.rows) {
                    let halo = self.halo([d, part.start], part.len());
                    T::dispatch(isa, Fill { halo: &halo, x: z, to: &mut planes });
                    let mut done = 0;
                    for (h, sums) in residues(sliding, 1, height).zip(sums.chunks_exact_mut(pair)) {
                        let columns = sums.chunks_exact_mut(pair / 2);
                        for (w, sums) in residues(sliding, 2, width).zip(columns) {
                            let taps = done..done + h.taps * w.taps;
                            done = taps.end;
                            let panels = self.padded() * self.outer;
                            let weights = &weights[taps.start * panels..taps.end * panels];
                            let source =
                                Source { weights, row, halo: &halo, planes: &planes, rows: part.len() };
                            if self.lanes {
                                self.residue_by_lanes([&h, &w], source, &mut offsets, sums, len);
                                continue;
                            }
                            let sums = TensorViewMut::matrix(sums, [rows_once, len]);
                            self.residue([&h, &w], source, sums)?;
                        }
                        let (step, end) = (sliding.stride[1], height.min(part.end * sliding.stride[1]));
                        let rows = (part.start * step + h.first).min(end)..end;
                        let y = y.view_mut().slice(1, rows, step)?;
                        let channel = at[1] + first;
                        let pairs = Pairs { sums, len, pitch: self.pitch, channel, finish };
                        T::dispatch(isa, Put { pairs, y, turned: &mut turned });
                    }
                }
            }
        }
        Ok(())
    }

    /// The copy of Z for some rows of each residue, from depth and row `first` on.
    fn halo(&self, [depth, first]: [usize; 2], rows: usize) -> Halo {
        let [_, _, image @ ..] = self.scatter.z.shape();
        let [height, width] = self.spans;
        let geometry = halo::Geometry {
            kernel: [1, height.len, width.len],
            stride: [1; 3],
            dilation: [1; 3],
            start: [depth as isize, height.start + first as isize, width.start],
            outputs: [1, rows, width.outputs],
            image,
        };
        Halo::new(&geometry, self.outer, 1)
    }

    /// Rows of all panels of weights.
    fn padded(&self) -> usize {
        self.inner.next_multiple_of(self.width)
    }

    /// The sums of a residue along height and width, `[channels, positions]`.
    fn residue(
        &self,
        axes: [&Residue; 2],
        source: Source<'_, T>,
        mut sums: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let Source { weights, row, halo, planes, rows } = source;
        let [channels, _] = sums.shape();
        let lanes = self.tile.lanes;
        // The last row ends with its last output.
        let columns = ((rows - 1) * self.pitch + self.spans[1].outputs).next_multiple_of(lanes);
        let mut beta = None;
        let [down, right] = axes;
        for at in 0..down.taps * right.taps {
            let panels = self.padded() * self.outer;
            let weights = &weights[at * panels..][..panels];
            let from = self.reads(axes, at, halo);
            for steps in blocks(0..self.outer, STEPS) {
                let b = TensorView::as_strided_at(
                    planes,
                    from + steps.start * halo.channel(),
                    [columns, steps.len()],
                    [1, halo.channel() as isize],
                )?;
                let a = &weights[steps.start * self.padded()..steps.end * self.padded()];
                let mut block = Block {
                    a: Panels::Packed { data: a, width: self.width, depth: steps.len() }.from(row),
                    b: Panels::Direct(b),
                    tile_rows: self.width,
                    depth: steps.len(),
                    alpha: T::ONE,
                    beta,
                    epilogue: None,
                    origin: [0, 0],
                    next: None,
                    store: Store::Near,
                    order: Order::Usual,
                    ask: false,
                    panel: &mut [],
                    c: sums.tile_mut([0, 0], [channels, columns]),
                };
                T::block(self.scatter.isa, &mut block);
                beta = Some(T::ONE);
            }
        }
        if beta.is_none() {
            // No tap falls there: nothing is summed up.
            sums.fill(T::ZERO);
        }
        Ok(())
    }

    /// The sums of a residue, `[channels, len]` and channels up to whole vectors, with output channels as lanes.
    fn residue_by_lanes(
        &self,
        axes: [&Residue; 2],
        source: Source<'_, T>,
        offsets: &mut [usize],
        sums: &mut [T],
        len: usize,
    ) {
        let Source { weights, halo, planes, rows, .. } = source;
        let steps = axes[0].taps * axes[1].taps * self.outer;
        for (at, offsets) in offsets[..steps].chunks_exact_mut(self.outer).enumerate() {
            let from = self.reads(axes, at, halo);
            offsets.iter_mut().enumerate().for_each(|(c, to)| *to = from + c * halo.channel());
        }
        let (offsets, width, pitch) = (&offsets[..steps], self.width, len);
        let sizes = [1, 1, rows, self.spans[1].outputs];
        let panel = Panel { weights, width, halo, planes, offsets, sizes, sums, pitch };
        T::dispatch(self.scatter.isa, panel);
    }

    /// Where a residue's tap with this index reads for its first position.
    fn reads(&self, axes: [&Residue; 2], at: usize, halo: &Halo) -> usize {
        let index = [at / axes[1].taps, at % axes[1].taps];
        let [down, right] = [0, 1].map(|axis| {
            let place = axes[axis].start + (index[axis] * axes[axis].dilation) as isize;
            (place - self.spans[axis].start) as usize
        });
        halo.output(0, [0, down, right])
    }
}

/// What a residue is computed from.
struct Source<'a, T> {
    /// For each tap of the residue, panels.
    weights: &'a [T],
    /// The first row of them.
    row: usize,
    halo: &'a Halo,
    planes: &'a [T],
    /// Rows of the residue.
    rows: usize,
}

/// The sums of the two residues of rows.
#[derive(Clone, Copy)]
struct Pairs<'a, T> {
    /// The first residue, then the second: `[channels, len]` each.
    sums: &'a [T],
    len: usize,
    pitch: usize,
    /// Index of the first channel.
    channel: usize,
    finish: &'a Finish<'a, T>,
}

impl<T: Element> Pairs<'_, T> {
    /// A row of the output.
    #[inline(always)]
    fn row<S: Simd<T>>(&self, simd: S, c: usize, h: usize, y: &mut [T]) {
        let Self { sums, len, pitch, channel, finish } = *self;
        let (even, odd) = sums.split_at(sums.len() / 2);
        let at = c * len + h * pitch;
        interleave(simd, &even[at..], &odd[at..], y);
        if finish.bias.is_some() {
            let bias = finish.bias(channel + c);
            y.iter_mut().for_each(|y| *y += bias);
        }
        if finish.activation != Activation::Identity {
            activation::apply(simd, finish.activation, y);
        }
    }
}

/// Them to the output.
struct Put<'a, T> {
    pairs: Pairs<'a, T>,
    /// `[channels, height, width]`.
    y: TensorViewMut<'a, T, 3>,
    /// Room for a row of all channels, where columns are no neighbours.
    turned: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Put<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { pairs, mut y, turned } = self;
        let [channels, height, width] = y.shape();
        if y.strides()[2] == 1 {
            for c in 0..channels {
                let Ok(mut y) = y.view_mut().select::<2>(0, c) else { return };
                for h in 0..height {
                    let Some(y) = y.row_mut(h) else { return };
                    pairs.row(simd, c, h, y);
                }
            }
            return;
        }
        for h in 0..height {
            for (c, to) in turned.chunks_exact_mut(width).enumerate() {
                pairs.row(simd, c, h, to);
            }
            let turned = TensorView::from_slice(&*turned, [channels, width]);
            let (Ok(mut y), Ok(turned)) = (y.view_mut().select::<2>(1, h), turned) else { return };
            y.copy_from(turned);
        }
    }
}

/// `y` from its even and its odd elements, which begin at the front of their slices.
#[inline(always)]
fn interleave<T: Element, S: Simd<T>>(simd: S, even: &[T], odd: &[T], y: &mut [T]) {
    for (i, y) in y.chunks_mut(2 * S::LANES).enumerate() {
        let at = i * S::LANES;
        // What follows them is read, and not written.
        let [first, second] = simd.interleave(simd.load_up_to(&even[at..]), simd.load_up_to(&odd[at..]));
        let (low, high) = y.split_at_mut(S::LANES.min(y.len()));
        simd.store_up_to(first, low);
        if !high.is_empty() {
            simd.store_up_to(second, high);
        }
    }
}

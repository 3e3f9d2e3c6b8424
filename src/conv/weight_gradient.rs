//! The gradient for the weights: dWᵀ = Pᵀ · dZ, P the patches, all positions of all images its depth.
//!
//! ```text
//! for each box of positions                                 its depth; fixed, whoever computes it
//!     input → planes with zeros around (halo.rs)
//!     dZ → panels of columns, one for each output channel
//!     for each panel of rows, one for each channel and tap  planes → panel
//!         sums += panel · panels
//! sums, transposed → dW
//! ```
//!
//! Tasks are parts of the sums, so each is added up in the order of the boxes.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::halo::{self, Fill, Halo};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Block, GRAIN, LEAST_DEPTH, Panels, Tile, balanced, blocks, packed_len, tile, tile_rows};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::spatial::Sliding;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// dW, `[groups · outputs, inputs, kernel…]`, from X and dZ; shapes have been checked.
pub(super) fn run<T: Element>(
    op: &'static str,
    isa: Isa,
    x: TensorView<'_, T, 5>,
    dz: TensorView<'_, T, 5>,
    groups: usize,
    sliding: &Sliding,
    dw: TensorViewMut<'_, T, 5>,
) -> Result<()> {
    if dw.is_empty() {
        return Ok(());
    }
    let [images, _, depth, height, width] = dz.shape();
    let outputs = dz.shape()[1] / groups;
    let tile = tile::<T>(isa);
    let caches = machine::caches();
    let positions = [images, depth, height, width].iter().fold(1usize, |n, &size| n.saturating_mul(size));
    // Panels of dZ in a third of L2, and no deeper than what streams through L1 well.
    let room = caches.l2 / 3 / size_of::<T>() / outputs.next_multiple_of(tile.columns);
    let columns = room.clamp(LEAST_DEPTH, 4 * LEAST_DEPTH);
    let mut sizes = [1; 4];
    let mut unit = 1;
    for (axis, size) in [images, depth, height, width].into_iter().enumerate().rev() {
        sizes[axis] = balanced(size, (columns / unit).max(1), 1);
        if sizes[axis] < size {
            break;
        }
        unit = unit.saturating_mul(size.max(1));
    }
    let gradient = Gradient { op, isa, tile, x, dz, groups, sliding: *sliding, sizes };
    let work = dw.len().saturating_mul(positions);
    gradient.split(dw, [0, 0], parallel::threads_for(work, GRAIN))
}

struct Gradient<'a, T> {
    op: &'static str,
    isa: Isa,
    tile: Tile,
    x: TensorView<'a, T, 5>,
    dz: TensorView<'a, T, 5>,
    groups: usize,
    sliding: Sliding,
    /// Images, depth, height and width of a box of positions.
    sizes: [usize; 4],
}

impl<T: Element> Gradient<'_, T> {
    /// Computes the part `dw`, whose first element has these indices of output and input channel, in `tasks` tasks.
    fn split(&self, dw: TensorViewMut<'_, T, 5>, at: [usize; 2], tasks: usize) -> Result<()> {
        let [rows, inputs, ..] = dw.shape();
        let outputs = self.dz.shape()[1] / self.groups;
        // Groups, else input channels, where a task's own copies are smallest, else panels of output channels.
        let (axis, unit) = if rows > outputs {
            (0, outputs)
        } else if inputs >= 4 * tasks || (inputs > 1 && inputs.is_multiple_of(tasks)) {
            (1, 1)
        } else if rows > self.tile.columns {
            (0, self.tile.columns)
        } else {
            (1, 1)
        };
        let parts = dw.shape()[axis].div_ceil(unit);
        if tasks <= 1 || parts <= 1 {
            let mut dw = dw;
            // Whole groups one by one.
            for first in (0..rows).step_by(outputs.min(rows).max(1)) {
                let part = dw.view_mut().slice(0, first..rows.min(first + outputs), 1)?;
                self.compute(part, [at[0] + first, at[1]])?;
            }
            return Ok(());
        }
        let half = tasks / 2;
        let middle = (parts * half / tasks).clamp(1, parts - 1) * unit;
        let (low, high) = dw.split_at(axis, middle)?;
        let mut next = at;
        next[axis] += middle;
        let (first, second) =
            parallel::join(|| self.split(low, at, half), || self.split(high, next, tasks - half));
        first.and(second)
    }

    /// Computes a part that lies in one group on this thread.
    fn compute(&self, mut dw: TensorViewMut<'_, T, 5>, at: [usize; 2]) -> Result<()> {
        let ([outputs, inputs, ..], kernel) = (dw.shape(), self.sliding.kernel);
        let [images, of_z, depth, height, width] = self.dz.shape();
        let group = at[0] / (of_z / self.groups);
        let first_input = group * (self.x.shape()[1] / self.groups) + at[1];
        let taps: usize = kernel.iter().product();
        let rows = inputs * taps;
        let tile_rows = tile_rows(self.tile, rows);
        let (lanes, columns) = (self.tile.lanes, outputs.next_multiple_of(self.tile.lanes));
        let none = || Error::Alloc { op: self.op, bytes: usize::MAX };

        let positions: usize = self.sizes.iter().product();
        let largest = self.halo([0; 4], self.sizes, inputs);
        let mut planes = workspace::scratch(self.op, largest.len().ok_or_else(none)?.saturating_add(lanes))?;
        let z_panels = packed_len(outputs, self.tile.columns, positions).ok_or_else(none)?;
        let mut z_panels = workspace::scratch(self.op, z_panels)?;
        let mut panel = workspace::scratch(self.op, tile_rows.saturating_mul(positions + lanes))?;
        let mut sums = workspace::scratch(self.op, rows.checked_mul(columns).ok_or_else(none)?)?;
        let mut offsets = workspace::scratch::<usize>(self.op, taps)?;
        let mut first = true;
        let output = [images, depth, height, width];
        for part in super::implicit::boxes(output, self.sizes) {
            let sizes = part.clone().map(|range| range.len());
            let halo = self.halo(part.clone().map(|range| range.start), sizes, inputs);
            halo.taps(kernel, &mut offsets);
            let x = self.x.slice(0, part[0].clone(), 1)?.slice(1, first_input..first_input + inputs, 1)?;
            T::dispatch(self.isa, Fill { halo: &halo, x, to: &mut planes });
            let [n, d, h, w] = part.clone();
            let dz = self.dz.slice(0, n, 1)?.slice(1, at[0]..at[0] + outputs, 1)?;
            let dz = dz.slice(2, d, 1)?.slice(3, h, 1)?.slice(4, w, 1)?;
            let depth: usize = sizes.iter().product();
            let padded = outputs.next_multiple_of(self.tile.columns);
            T::dispatch(self.isa, PackColumns { dz, width: self.tile.columns, panels: &mut z_panels });
            for lines in blocks(0..rows, tile_rows) {
                let (halo, planes, offsets, width) = (&halo, &planes[..], &offsets[..], tile_rows);
                let panel = &mut panel[..];
                T::dispatch(
                    self.isa,
                    PackRows { halo, planes, offsets, sizes, lines: lines.clone(), width, panel },
                );
                let mut block = Block {
                    a: Panels::Packed { data: &panel[..tile_rows * depth], width, depth },
                    b: Panels::Packed { data: &z_panels[..padded * depth], width: self.tile.columns, depth },
                    tile_rows,
                    depth,
                    alpha: T::ONE,
                    beta: (!first).then_some(T::ONE),
                    epilogue: None,
                    origin: [0, 0],
                    next: None,
                    stream: false,
                    c: TensorViewMut::matrix(&mut sums[lines.start * columns..], [lines.len(), columns]),
                };
                T::block(self.isa, &mut block);
            }
            first = false;
        }
        if first {
            sums.fill(T::ZERO);
        }
        let [kd, kh, kw] = kernel;
        let sums = TensorView::from_slice(&sums[..rows * columns], [inputs, kd, kh, kw, columns])?;
        dw.copy_from(sums.slice(4, ..outputs, 1)?.permute([4, 0, 1, 2, 3])?);
        Ok(())
    }

    fn halo(&self, first: [usize; 4], sizes: [usize; 4], channels: usize) -> Halo {
        let Sliding { kernel, stride, dilation, padding } = self.sliding;
        let start = [0, 1, 2].map(|a| (first[1 + a] * stride[a]) as isize - padding[a][0] as isize);
        let [_, _, image @ ..] = self.x.shape();
        let [images, outputs @ ..] = sizes;
        Halo::new(&halo::Geometry { kernel, stride, dilation, start, outputs, image }, channels, images)
    }
}

/// dZ of a box, `[images, channels, depth, height, width]`, to panels of channels, position by position.
struct PackColumns<'a, T> {
    dz: TensorView<'a, T, 5>,
    /// Channels of a panel.
    width: usize,
    panels: &'a mut [T],
}

impl<T: Element> SimdOp<T> for PackColumns<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(mut self, simd: S) {
        let [images, channels, depth, height, width] = self.dz.shape();
        for at in 0..images * depth {
            let volume = self.dz.select::<4>(0, at / depth).and_then(|z| z.select::<3>(1, at % depth));
            let Ok(volume) = volume else { return };
            let first = at * height * width;
            if let Ok(pixels) = volume.reshape([channels, height * width]) {
                self.lines(simd, pixels, first);
                continue;
            }
            for h in 0..height {
                let Ok(pixels) = volume.select::<2>(1, h) else { return };
                self.lines(simd, pixels, first + h * width);
            }
        }
    }
}

impl<T: Element> PackColumns<'_, T> {
    /// `pixels`, `[channels, positions]`, from position `first` on.
    #[inline(always)]
    fn lines<S: Simd<T>>(&mut self, simd: S, pixels: TensorView<'_, T, 2>, first: usize) {
        let [channels, count] = pixels.shape();
        let (width, positions) = (self.width, self.dz.len() / channels);
        // Element (channel c, position p).
        let place = |p: usize, c: usize| c / width * width * positions + p * width + c % width;
        let panels = &mut *self.panels;
        let neighbours = pixels.transpose();
        for c in (0..channels).step_by(4) {
            let lines = [0, 1, 2, 3].map(|i| if c + i < channels { pixels.row(c + i) } else { None });
            let mut p = 0;
            if let [Some(one), Some(two), Some(three), Some(four)] = lines {
                // What a last vector has too much, the next positions overwrite.
                while p < count && first + p + S::LANES <= positions {
                    let end = count.min(p + S::LANES);
                    let vectors = [one, two, three, four].map(|line| {
                        if end - p == S::LANES {
                            simd.load(&line[p..])
                        } else {
                            simd.load_partial(&line[p..end])
                        }
                    });
                    simd.store_transposed(vectors, &mut panels[place(first + p, c)..], width);
                    p = end;
                }
            }
            for p in p..count {
                let to = &mut panels[place(first + p, c)..][..4.min(channels - c)];
                match neighbours.row(p) {
                    Some(from) => to.copy_from_slice(&from[c..c + to.len()]),
                    None => {
                        for (i, to) in to.iter_mut().enumerate() {
                            *to = pixels.get([c + i, p]).copied().unwrap_or(T::ZERO);
                        }
                    }
                }
            }
        }
    }
}

/// Patches of a box as a panel: rows are channels and taps, steps are positions.
struct PackRows<'a, T> {
    halo: &'a Halo,
    planes: &'a [T],
    offsets: &'a [usize],
    sizes: [usize; 4],
    lines: Range<usize>,
    width: usize,
    panel: &'a mut [T],
}

impl<T: Element> SimdOp<T> for PackRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { halo, planes, offsets, sizes, lines, width, panel } = self;
        let [images, depth, height, row] = sizes;
        let (taps, channel) = (offsets.len(), halo.channel());
        let base = |line: usize| line / taps * channel + offsets[line % taps];
        for at in 0..images * depth * height {
            let from = halo.output(at / height / depth, [at / height % depth, at % height, 0]);
            let panel = &mut panel[at * row * width..];
            let fours = if lines.len() < 4 { 0 } else { lines.len() };
            for i in (0..fours).step_by(4) {
                // The last four overlap those before: the next step begins behind them.
                let i = i.min(lines.len() - 4);
                let lines = [0, 1, 2, 3].map(|j| &planes[base(lines.start + i + j) + from..]);
                // What a row's last vector has too much, the next row overwrites.
                for p in (0..row).step_by(S::LANES) {
                    let vectors = lines.map(|line| simd.load(&line[p..]));
                    simd.store_transposed(vectors, &mut panel[p * width + i..], width);
                }
            }
            for i in fours..lines.len() {
                let line = &planes[base(lines.start + i) + from..][..row];
                panel[i..].iter_mut().step_by(width).zip(line).for_each(|(to, &x)| *to = x);
            }
        }
    }
}

//! The gradient for the weights: dW = dZ · P, P the patches, all positions of all images the depth.
//!
//! ```text
//! for each box of positions                                 its depth; fixed, whoever computes it
//!     input → planes with zeros around (halo)
//!     dZ → panels of rows, one for each output channel
//!     for each panel of columns, one for each channel and tap
//!         planes → panel
//!         dW += panels · panel
//! ```
//!
//! Tasks are parts of dW, so each element is added up in the order of the boxes. Where there is too little of it, the images are cut in
//! parts, as many for any number of threads, each with sums of its own.
#![forbid(unsafe_code)]

mod in_place;
mod winograd;

use std::ops::Range;

use self::winograd::Winograd;
use super::Algorithm;
use super::depthwise::{self, Reach};
use super::emit::channels_last;
use super::halo::{self, Fill, Halo};
use super::images;
use super::pointwise;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{
    Block, GRAIN, LEAST_DEPTH, Order, Panels, Store, Tile, blocks, pack, packed_len, tile, tile_rows,
    transpose,
};
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
    [x, dz]: [TensorView<'_, T, 5>; 2],
    groups: usize,
    sliding: &Sliding,
    algorithm: Algorithm,
    dw: TensorViewMut<'_, T, 5>,
) -> Result<()> {
    if dw.is_empty() {
        return Ok(());
    }
    let reach = Reach::of(sliding);
    let small =
        || algorithm.is_open() && depthwise::fits_group_gradient(isa, x, dz, reach, dw.shape(), groups);
    if groups > 1 && dw.shape()[1] == 1 && reach.fits(1) || small() {
        return depthwise::weight_gradient(op, isa, x, dz, reach, dw);
    }
    let tiles = winograd::outputs([&x, &dz], groups, sliding, algorithm);
    if groups == 1
        && tiles == 0
        && algorithm.is_open()
        && let Some(by_images) = images::Gradient::new(op, isa, [x, dz], sliding)
    {
        return by_images.run(dw);
    }
    if groups == 1 && pointwise::single(sliding) && pointwise::sums_products(&x, &dz) {
        return pointwise::weight_gradient(x, dz, dw);
    }
    let pixels = sliding.kernel == [1; 3] && sliding.padding == [[0; 2]; 3];
    if groups == 1 && pixels && pointwise::sums_products(&dz, &dz) {
        // Pixels that lie a stride apart, side by side.
        let mut seen = x;
        for axis in 0..3 {
            let last = (dz.shape()[2 + axis] - 1) * sliding.stride[axis];
            seen = seen.slice(2 + axis, 0..last + 1, sliding.stride[axis])?;
        }
        let mut copy = workspace::scratch(op, seen.len())?;
        let mut pixels = if channels_last(dz.shape(), dz.strides()) {
            let shape = seen.permute([0, 2, 3, 4, 1])?.shape();
            TensorViewMut::from_slice(&mut copy[..], shape)?.permute([0, 4, 1, 2, 3])?
        } else {
            TensorViewMut::from_slice(&mut copy[..], seen.shape())?
        };
        copy_images(pixels.view_mut(), [0], seen, parallel::tasks(seen.len(), 1 << 16))?;
        return pointwise::weight_gradient(pixels.view(), dz, dw);
    }
    let ([images, _, depth, height, width], tile) = (dz.shape(), tile::<T>(isa));
    let positions = [images, depth, height, width].iter().fold(1usize, |n, &size| n.saturating_mul(size));
    let work = dw.len().saturating_mul(positions);
    let tasks = parallel::threads_for(work, GRAIN);
    match tiles {
        0 => {}
        2 => return Winograd::<T, 2, 4>::new(op, isa, [x, dz], sliding).run(dw, tasks),
        _ => return Winograd::<T, 4, 6>::new(op, isa, [x, dz], sliding).run(dw, tasks),
    }
    let weights = [dw.shape()[0], dw.shape()[1]];
    let few = groups == 1 && weights[0] <= tile.columns && weights[1] < 4;
    let most = (work / GRAIN).min(images).min(positions / LEAST_DEPTH);
    let gradient = Gradient::new(op, isa, [x, dz], groups, *sliding);
    match if few { parallel::parts(most) } else { 1 } {
        1 => gradient.split(dw, [0, 0], tasks),
        parts => gradient.in_parts(parts, dw, tasks),
    }
}

/// Copies the images of `from` that `to` has, from `at` on, in `tasks` tasks.
fn copy_images<T: Element>(
    mut to: TensorViewMut<'_, T, 5>,
    at: [usize; 1],
    from: TensorView<'_, T, 5>,
    tasks: usize,
) -> Result<()> {
    let images = to.shape()[0];
    if tasks > 1 && images > 1 {
        return parallel::halves(to, at, (0, 1), tasks, &|to, at, tasks| copy_images(to, at, from, tasks));
    }
    to.copy_from(from.slice(0, at[0]..at[0] + images, 1)?);
    Ok(())
}

/// dW as the sum, in order, of what `f` makes of `parts` parts, elements of dW in row-major order: it has the part's number and
/// its share of the tasks.
pub(super) fn in_parts<T: Element>(
    op: &'static str,
    mut dw: TensorViewMut<'_, T, 5>,
    parts: usize,
    tasks: usize,
    f: &(impl Fn(usize, &mut [T], usize) -> Result<()> + Sync),
) -> Result<()> {
    let len = dw.len();
    let mut sums = workspace::scratch(op, workspace::product(op, &[len, parts])?)?;
    each_part(TensorViewMut::matrix(&mut sums, [parts, len]), [0], tasks, f)?;
    dw.copy_from(TensorView::from_slice(parallel::total(&mut sums, len), dw.shape())?);
    Ok(())
}

/// Some of the parts, as rows from number `first` on.
fn each_part<T: Element>(
    mut sums: TensorViewMut<'_, T, 2>,
    first: [usize; 1],
    tasks: usize,
    f: &(impl Fn(usize, &mut [T], usize) -> Result<()> + Sync),
) -> Result<()> {
    let count = sums.shape()[0];
    if tasks > 1 && count > 1 {
        return parallel::halves(sums, first, (0, 1), tasks, &|part, at, tasks| {
            each_part(part, at, tasks, f)
        });
    }
    (0..count).try_for_each(|part| f(first[0] + part, sums.row_mut(part).unwrap_or(&mut []), tasks))
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
    /// Patches are read in place.
    in_place: bool,
}

impl<'a, T: Element> Gradient<'a, T> {
    fn new(
        op: &'static str,
        isa: Isa,
        [x, dz]: [TensorView<'a, T, 5>; 2],
        groups: usize,
        sliding: Sliding,
    ) -> Self {
        let [images, channels, depth, height, width] = dz.shape();
        let (outputs, inputs) = (channels / groups, x.shape()[1] / groups);
        let (tile, caches) = (tile::<T>(isa), machine::caches());
        // Panels of dZ in a third of L2, and no deeper than what streams through L1 well.
        let room = caches.l2 / 3 / size_of::<T>() / outputs.next_multiple_of(tile.rows);
        let panels = room.clamp(LEAST_DEPTH, 4 * LEAST_DEPTH);
        // Rows of the input are copied whole, those between the ones read as well.
        let Sliding { kernel, stride, .. } = sliding;
        let lines = inputs * kernel.iter().product::<usize>();
        let copied = inputs * kernel[1].min(stride[1]) * kernel[2].min(stride[2]);
        let direct = in_place::positions::<T>(tile, caches, [outputs, lines, copied]);
        let columns = direct.unwrap_or(panels);
        let sizes = super::implicit::sizes([images, depth, height, width], columns);
        Self { op, isa, tile, x, dz, groups, sliding, sizes, in_place: direct.is_some() }
    }

    /// The sum of the gradients of so many parts of the images, in order; there is one group.
    fn in_parts(&self, parts: usize, dw: TensorViewMut<'_, T, 5>, tasks: usize) -> Result<()> {
        let (images, shape) = (self.dz.shape()[0], dw.shape());
        in_parts(self.op, dw, parts, tasks, &|part, sums, tasks| {
            let images = parallel::share(images, parts, part);
            let (x, dz) = (self.x.slice(0, images.clone(), 1)?, self.dz.slice(0, images, 1)?);
            let dw = TensorViewMut::from_slice(sums, shape)?;
            let part = Gradient::new(self.op, self.isa, [x, dz], self.groups, self.sliding);
            part.split(dw, [0, 0], tasks)
        })
    }

    /// Computes the part `dw`, whose first element has these indices of output and input channel, in `tasks` tasks.
    fn split(&self, dw: TensorViewMut<'_, T, 5>, at: [usize; 2], tasks: usize) -> Result<()> {
        let [rows, inputs, ..] = dw.shape();
        let outputs = self.dz.shape()[1] / self.groups;
        // Groups, else input channels, where a task's own copies are smallest, else panels of output channels. Where patches are
        // read in place, two vectors are as good as a panel.
        let panel = if self.in_place { 2 * self.tile.lanes } else { self.tile.columns };
        let (axis, unit) = if rows > outputs {
            (0, outputs)
        } else if inputs >= 4 * tasks || (inputs > 1 && inputs.is_multiple_of(tasks)) {
            (1, 1)
        } else if rows > panel {
            (0, panel)
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
        parallel::halves(dw, at, (axis, unit), tasks, &|part, at, tasks| self.split(part, at, tasks))
    }

    /// Computes a part that lies in one group on this thread.
    fn compute(&self, mut dw: TensorViewMut<'_, T, 5>, at: [usize; 2]) -> Result<()> {
        if self.in_place {
            return self.compute_in_place(dw, at);
        }
        let ([outputs, inputs, ..], kernel) = (dw.shape(), self.sliding.kernel);
        let [images, of_z, depth, height, width] = self.dz.shape();
        let group = at[0] / (of_z / self.groups);
        let first_input = group * (self.x.shape()[1] / self.groups) + at[1];
        let taps: usize = kernel.iter().product();
        let columns = inputs * taps;
        let (tile, tile_rows) = (self.tile, tile_rows(self.tile, [outputs, usize::MAX]));
        let none = || Error::Alloc { op: self.op, bytes: usize::MAX };

        // All memory first: where it is lacking, nothing has been written.
        let positions: usize = self.sizes.iter().product();
        let largest = self.halo([0; 4], self.sizes, inputs);
        let planes = largest.len().ok_or_else(none)?;
        let mut planes = workspace::scratch(self.op, planes.saturating_add(tile.lanes))?;
        // Vectors of positions end up to a vector behind the last one.
        let z_len = packed_len(outputs, tile_rows, positions).ok_or_else(none)?;
        let mut z_panels = workspace::scratch(self.op, z_len.saturating_add(tile_rows * tile.lanes))?;
        let mut panel = workspace::scratch(self.op, tile.columns * (positions + tile.lanes))?;
        let mut offsets = workspace::scratch::<usize>(self.op, taps)?;
        let flat = dw.view().viewed_as::<2>([outputs, columns]).is_some_and(|dw| dw.strides()[1] == 1);
        let len = if flat { 0 } else { outputs.checked_mul(columns).ok_or_else(none)? };
        let mut sums = workspace::scratch(self.op, len)?;
        let mut c = if flat {
            dw.view_mut().reshape([outputs, columns])?
        } else {
            TensorViewMut::from_slice(&mut sums[..], [outputs, columns])?
        };

        let mut first = true;
        for part in super::implicit::boxes([images, depth, height, width], self.sizes) {
            let sizes = part.clone().map(|range| range.len());
            let halo = self.halo(part.clone().map(|range| range.start), sizes, inputs);
            halo.taps(kernel, &mut offsets);
            let x = self.x.slice(0, part[0].clone(), 1)?.slice(1, first_input..first_input + inputs, 1)?;
            T::dispatch(self.isa, Fill { halo: &halo, x, to: &mut planes });
            let [n, d, h, w] = part.clone();
            let dz = self.dz.slice(0, n, 1)?.slice(1, at[0]..at[0] + outputs, 1)?;
            let dz = dz.slice(2, d, 1)?.slice(3, h, 1)?.slice(4, w, 1)?;
            let depth: usize = sizes.iter().product();
            pack_outputs(self.isa, dz, tile_rows, &mut z_panels)?;
            for lines in blocks(0..columns, tile.columns) {
                let (halo, planes, offsets, width) = (&halo, &planes[..], &offsets[..], tile.columns);
                let panel = &mut panel[..];
                T::dispatch(
                    self.isa,
                    PackPatches { halo, planes, offsets, sizes, lines: lines.clone(), width, panel },
                );
                let mut block = Block {
                    a: Panels::Packed { data: &z_panels[..z_len], width: tile_rows, depth },
                    b: Panels::Packed { data: &panel[..width * depth], width, depth },
                    tile_rows,
                    depth,
                    alpha: T::ONE,
                    beta: (!first).then_some(T::ONE),
                    epilogue: None,
                    origin: [0, 0],
                    next: None,
                    store: Store::Near,
                    order: Order::Usual,
                    ask: false,
                    panel: &mut [],
                    c: c.tile_mut([0, lines.start], [outputs, lines.len()]),
                };
                T::block(self.isa, &mut block);
            }
            first = false;
        }
        if first {
            c.fill(T::ZERO);
        }
        if !flat {
            let [kd, kh, kw] = kernel;
            dw.copy_from(TensorView::from_slice(&sums[..], [outputs, inputs, kd, kh, kw])?);
        }
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

/// dZ of a box, `[images, channels, depth, height, width]`, to panels of channels, position by position. There is a vector more
/// than they take.
fn pack_outputs<T: Element>(
    isa: Isa,
    dz: TensorView<'_, T, 5>,
    width: usize,
    panels: &mut [T],
) -> Result<()> {
    let [images, channels, depth, height, row] = dz.shape();
    let positions = images * depth * height * row;
    if dz.strides()[1] != 1 || !pointwise::merges(dz.shape(), dz.strides(), &[0, 2, 3, 4]) {
        T::dispatch(isa, PackOutputs { dz, width, panels });
        return Ok(());
    }
    let pixels = dz.permute([0, 2, 3, 4, 1])?.reshape::<2>([positions, channels])?.transpose();
    let panels = &mut panels[..channels.next_multiple_of(width) * positions];
    pack(isa, pixels, 0..channels, 0..positions, width, panels, false);
    Ok(())
}

/// [`pack_outputs`] whatever the strides.
struct PackOutputs<'a, T> {
    dz: TensorView<'a, T, 5>,
    /// Channels of a panel.
    width: usize,
    panels: &'a mut [T],
}

impl<T: Element> SimdOp<T> for PackOutputs<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { dz, width, panels } = self;
        let [images, channels, depth, height, row] = dz.shape();
        let positions = images * depth * height * row;
        for first in (0..channels).step_by(width) {
            let panel = &mut panels[first * positions..];
            let count = width.min(channels - first);
            for at in 0..images * depth {
                let volume = dz.select::<4>(0, at / depth).and_then(|z| z.select::<3>(1, at % depth));
                let Ok(volume) = volume else { return };
                let from = at * height * row;
                if let Some(pixels) = volume.viewed_as([channels, height * row]) {
                    outputs(simd, pixels, first..first + count, &mut panel[from * width..], width);
                    continue;
                }
                for h in 0..height {
                    let Ok(pixels) = volume.select::<2>(1, h) else { return };
                    outputs(
                        simd,
                        pixels,
                        first..first + count,
                        &mut panel[(from + h * row) * width..],
                        width,
                    );
                }
            }
        }
    }
}

/// Some channels of `pixels`, `[channels, positions]`.
#[inline(always)]
fn outputs<T: Element, S: Simd<T>>(
    simd: S,
    pixels: TensorView<'_, T, 2>,
    channels: Range<usize>,
    panel: &mut [T],
    width: usize,
) {
    let positions = pixels.shape()[1];
    if pixels.strides()[1] == 1 && channels.len() >= S::LANES && positions >= 4 {
        return transpose(simd, &pixels, channels, 0..positions, panel, width);
    }
    if pixels.row(0).is_some() {
        return turn(
            simd,
            |i| pixels.row(channels.start + i).unwrap_or(&[]),
            channels.len(),
            positions,
            panel,
            width,
        );
    }
    let neighbours = pixels.transpose();
    for (p, to) in panel.chunks_exact_mut(width).enumerate().take(positions) {
        match neighbours.row(p) {
            Some(from) => to[..channels.len()].copy_from_slice(&from[channels.clone()]),
            None => {
                for (to, c) in to.iter_mut().zip(channels.clone()) {
                    *to = pixels.get([c, p]).copied().unwrap_or(T::ZERO);
                }
            }
        }
    }
}

/// Patches of a box as a panel: lines are channels and taps, steps are positions.
struct PackPatches<'a, T> {
    halo: &'a Halo,
    planes: &'a [T],
    offsets: &'a [usize],
    sizes: [usize; 4],
    lines: Range<usize>,
    width: usize,
    panel: &'a mut [T],
}

impl<T: Element> SimdOp<T> for PackPatches<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { halo, planes, offsets, sizes, lines, width, panel } = self;
        let [images, depth, height, row] = sizes;
        let (taps, channel) = (offsets.len(), halo.channel());
        for at in 0..images * depth * height {
            let from = halo.output(at / height / depth, [at / height % depth, at % height, 0]);
            let line = |i: usize| {
                let line = lines.start + i;
                &planes[line / taps * channel + offsets[line % taps] + from..][..row]
            };
            turn(simd, line, lines.len(), row, &mut panel[at * row * width..], width);
        }
    }
}

/// Step `p` of `count` lines, each `len` long, to `panel[p · width ..]`. What the last vector of steps has too much, and the
/// lines that a panel has too many, is overwritten later or never read.
#[inline(always)]
fn turn<'a, T: Element, S: Simd<T>>(
    simd: S,
    line: impl Fn(usize) -> &'a [T],
    count: usize,
    len: usize,
    panel: &mut [T],
    width: usize,
) {
    let fours = if count < 4 { 0 } else { count };
    for i in (0..fours).step_by(4) {
        // The last four overlap those before: behind them the next step begins.
        let i = i.min(count - 4);
        let lines = [line(i), line(i + 1), line(i + 2), line(i + 3)];
        for p in (0..len).step_by(S::LANES) {
            let [one, two, three, four] = lines;
            let vectors = if p + S::LANES <= len {
                [simd.load(&one[p..]), simd.load(&two[p..]), simd.load(&three[p..]), simd.load(&four[p..])]
            } else {
                [
                    simd.load_partial(&one[p..len]),
                    simd.load_partial(&two[p..len]),
                    simd.load_partial(&three[p..len]),
                    simd.load_partial(&four[p..len]),
                ]
            };
            simd.store_transposed(vectors, &mut panel[p * width + i..], width);
        }
    }
    for i in fours..count {
        panel[i..].iter_mut().step_by(width).zip(&line(i)[..len]).for_each(|(to, &x)| *to = x);
    }
}

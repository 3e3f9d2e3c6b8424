//! A part of the input as planes of the size that the windows of a box of outputs need, zeros put around it.
//!
//! With a stride s, columns that lie s apart are neighbours in the copy, each residue a plane of its own, and so are rows:
//! whatever the stride, tap t of neighbouring outputs reads neighbouring elements, all taps at one distance each.
//!
//! ```text
//!  stride 2, kernel 3            residue 0: taps 0, 2      residue 1: tap 1
//!  0 a b c d e 0                 0 b d 0                   a c e
//! ```
//!
//! The copy costs one pass over the input, where patches would cost one for each tap; it is as large as the box needs, and
//! belongs to a task.
#![forbid(unsafe_code)]

use std::ops::Range;

mod pixels;
mod rows;

use self::pixels::Run;
use self::rows::{Pairs, Rows, ahead, zeros};
use super::geometry::gcd;
use crate::element::Element;
use crate::simd::{MOST_LANES, Simd, SimdOp};
use crate::tensor::TensorView;

/// How many times as much as with a slot for each tap the copy of an axis may take for taps to share slots.
const FAR: usize = 8;

/// One axis of the copy.
#[derive(Clone, Copy, Debug)]
struct Axis {
    /// Residues of the stride that taps fall on.
    slots: usize,
    /// Elements of each.
    size: usize,
    /// Where tap 0 of the first output reads.
    start: isize,
    /// Positions between the first elements of neighbouring slots.
    step: usize,
    stride: usize,
    dilation: usize,
    image: usize,
}

impl Axis {
    /// For `outputs` windows, the first of which begins at `start`.
    fn new(
        kernel: usize,
        stride: usize,
        dilation: usize,
        start: isize,
        outputs: usize,
        image: usize,
    ) -> Self {
        // Taps t·d mod s: all multiples of the divisor, unless there are fewer taps.
        let divisor = gcd(dilation, stride);
        let residues = stride / divisor;
        let together = outputs + (kernel - 1) * dilation / stride;
        // Taps far apart: nearly all that lies between them would be zeros that nobody reads.
        let far = residues.saturating_mul(together) > kernel.saturating_mul(outputs).saturating_mul(FAR);
        let (slots, step, size) = if kernel < residues || far {
            (kernel, dilation, outputs)
        } else {
            (residues, divisor, together)
        };
        Self { slots, size, start, step, stride, dilation, image }
    }

    /// Slot and place of tap `t` of the first window.
    fn tap(&self, t: usize) -> [usize; 2] {
        if t < self.slots && self.step == self.dilation {
            return [t, 0];
        }
        let at = t * self.dilation;
        [at % self.stride / self.step, at / self.stride]
    }

    /// The image position of the first place of a slot.
    fn first(&self, slot: usize) -> isize {
        self.start + (slot * self.step) as isize
    }

    /// The image position of a place, where there is one.
    fn position(&self, slot: usize, place: usize) -> Option<usize> {
        usize::try_from(self.first(slot) + (place * self.stride) as isize).ok().filter(|&at| at < self.image)
    }

    /// What of a slot lies inside the image.
    fn span(&self, slot: usize) -> Span {
        let first = self.first(slot);
        let places = |to: isize| usize::try_from(to).unwrap_or(0).div_ceil(self.stride).min(self.size);
        let low = places(-first);
        let places = low..places(self.image as isize - first).max(low);
        Span { first: self.position(slot, low).unwrap_or(0), places }
    }

    /// [`span`](Self::span), which takes divisions, of the first slots.
    fn spans(&self) -> [Span; 8] {
        std::array::from_fn(|slot| if slot < self.slots { self.span(slot) } else { Span::default() })
    }

    /// The same of any slot, where the first ones are `known`.
    fn of(&self, known: &[Span; 8], slot: usize) -> Span {
        known.get(slot).cloned().unwrap_or_else(|| self.span(slot))
    }
}

/// The places of a slot that lie inside the image, and the image position of the first where there is one.
#[derive(Clone, Debug, Default)]
struct Span {
    places: Range<usize>,
    first: usize,
}

/// Window geometry along three axes, the outputs of a box and the image they read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub dilation: [usize; 3],
    /// Where tap 0 of the box's first output reads: negative in the padding.
    pub start: [isize; 3],
    pub outputs: [usize; 3],
    pub image: [usize; 3],
}

/// Layout of the copy: `[images, channels, slots of each axis, places of each axis]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halo {
    axes: [Axis; 3],
    pub channels: usize,
    images: usize,
    /// Places of a residue, and a gap.
    volume: usize,
}

impl Halo {
    pub(super) fn new(geometry: &Geometry, channels: usize, images: usize) -> Self {
        let Geometry { kernel, stride, dilation, start, outputs, image } = *geometry;
        let axes =
            [0, 1, 2].map(|a| Axis::new(kernel[a], stride[a], dilation[a], start[a], outputs[a], image[a]));
        let places = axes.iter().fold(1usize, |places, axis| places.saturating_mul(axis.size));
        let volume = places.saturating_add(MOST_LANES);
        Self { axes, channels, images, volume }
    }

    /// Elements of a channel.
    pub(super) fn channel(&self) -> usize {
        self.axes.iter().fold(self.volume, |len, axis| len.saturating_mul(axis.slots))
    }

    /// Elements of an image.
    fn image(&self) -> usize {
        self.channel().saturating_mul(self.channels)
    }

    /// Elements of the copy; `None` where they cannot be counted.
    pub(super) fn len(&self) -> Option<usize> {
        Some(self.image().saturating_mul(self.images)).filter(|&len| len < isize::MAX as usize)
    }

    /// Where a tap of the first output of an image lies, from the channel's first element on.
    fn tap(&self, tap: [usize; 3]) -> usize {
        let (mut slot, mut place) = (0, 0);
        for (axis, t) in self.axes.iter().zip(tap) {
            let [s, p] = axis.tap(t);
            slot = slot * axis.slots + s;
            place = place * axis.size + p;
        }
        slot * self.volume + place
    }

    /// [`tap`](Self::tap) of every tap in row-major order.
    pub(super) fn taps(&self, kernel: [usize; 3], to: &mut [usize]) {
        let [_, height, width] = kernel;
        for (at, offset) in to.iter_mut().enumerate() {
            *offset = self.tap([at / width / height, at / width % height, at % width]);
        }
    }

    /// Where tap 0 of an output lies, from the copy's first element on.
    pub(super) fn output(&self, image: usize, at: [usize; 3]) -> usize {
        let [d, h, w] = at;
        place([image, d, h, w], self.steps())
    }

    /// From an output to the next: of the next image, depth, row and column.
    fn steps(&self) -> [usize; 4] {
        let [_, height, width] = self.axes.map(|axis| axis.size);
        [self.image(), height * width, width, 1]
    }

    /// The copy, to read.
    pub(super) fn planes<'a, T>(&self, data: &'a [T]) -> Planes<'a, T> {
        Planes { data, channel: self.channel(), steps: self.steps() }
    }

    /// Copies `x`, `[images, channels, depth, height, width]`, to `to`.
    #[inline(always)]
    pub(super) fn fill<T: Element, S: Simd<T>>(&self, simd: S, x: TensorView<'_, T, 5>, to: &mut [T]) {
        let [depth, height, width] = self.axes;
        let last = x.strides()[1] == 1 && x.strides()[4] != 1 && self.channels > 1;
        if self.channels == 0 {
            return;
        }
        for (image, to) in to.chunks_exact_mut(self.image()).enumerate().take(self.images) {
            let Ok(x) = x.select::<4>(0, image) else { return };
            for slot_d in 0..depth.slots {
                for place in 0..depth.size {
                    let at =
                        slot_d * height.slots * width.slots * self.volume + place * height.size * width.size;
                    let d = depth.position(slot_d, place);
                    if last {
                        let planes = d.and_then(|d| x.select::<3>(1, d).ok());
                        self.pixels(simd, planes, &mut to[at..]);
                    } else {
                        self.rows(simd, &x, d, &mut to[at..]);
                    }
                }
            }
        }
    }

    /// The rows of `x`, `[channels, depth, height, width]`, at a depth, or zeros. `to` begins with the first residue of rows and
    /// columns.
    #[inline(always)]
    fn rows<T: Element, S: Simd<T>>(
        &self,
        simd: S,
        x: &TensorView<'_, T, 4>,
        d: Option<usize>,
        to: &mut [T],
    ) {
        let [_, height, width] = self.axes;
        let (len, channel) = (width.size, self.channel());
        let (heights, widths) = (height.spans(), width.spans());
        let beside = |one: &Span, two: &Span| {
            !one.places.is_empty() && !two.places.is_empty() && one.first.abs_diff(two.first) == 1
        };
        let pairs = [width.stride, width.slots] == [2, 2] && beside(&widths[0], &widths[1]);
        let pairs = pairs && height.slots <= heights.len();
        let part = heights.iter().map(|span| span.places.len()).sum::<usize>() * width.image;
        let ahead = ahead::<T>(part, usize::try_from(x.strides()[0]).unwrap_or(0));
        for c in 0..self.channels {
            let (plane, line) = (d.map(|d| x.matrix_at([c, d])), d.and_then(|d| x.line([c, d])));
            let to = &mut to[c * channel..];
            if let Some(plane) = line.filter(|_| pairs) {
                let (axes, spans) = ([&height, &width], [&heights, &widths]);
                simd.call(Pairs { plane, axes, spans, volume: self.volume, ahead, to });
                continue;
            }
            for slot_h in 0..height.slots {
                let rows = height.of(&heights, slot_h);
                let inside = rows.places.clone();
                let to = &mut to[slot_h * width.slots * self.volume..];
                for slot in 0..width.slots {
                    let to = &mut to[slot * self.volume..];
                    let Some(plane) = plane else {
                        zeros(simd, 0..height.size * len, to);
                        continue;
                    };
                    let columns = width.of(&widths, slot);
                    zeros(simd, 0..inside.start * len, to);
                    let rows = Rows { plane, line, rows: rows.clone(), step: height.stride, columns, len };
                    match width.stride {
                        1 => rows.every::<S, 1>(simd, to),
                        2 => rows.every::<S, 2>(simd, to),
                        4 => rows.every::<S, 4>(simd, to),
                        stride => rows.any(simd, stride, to),
                    }
                    zeros(simd, inside.end * len..height.size * len, to);
                }
            }
        }
    }

    /// The rows of planes `[channels, height, width]` whose channels are neighbours, or zeros.
    #[inline(always)]
    fn pixels<T: Element, S: Simd<T>>(&self, simd: S, planes: Option<TensorView<'_, T, 3>>, to: &mut [T]) {
        let [_, height, width] = self.axes;
        let (channel, widths) = (self.channel(), width.spans());
        for slot_h in 0..height.slots {
            for place in 0..height.size {
                let position = height.position(slot_h, place);
                let row = planes.zip(position).and_then(|(planes, h)| planes.select::<2>(1, h).ok());
                let row = row.map(TensorView::transpose);
                for slot in 0..width.slots {
                    let run = Run { columns: width.of(&widths, slot), step: width.stride };
                    let to = &mut to[(slot_h * width.slots + slot) * self.volume + place * width.size..];
                    run.turn(simd, row, to, channel, width.size, self.channels);
                }
            }
        }
    }
}

/// Planes of some images' channels, in a copy or as they lie in an image.
#[derive(Clone, Copy)]
pub(super) struct Planes<'a, T> {
    /// From tap 0 of the first output on.
    pub data: &'a [T],
    /// From a channel to the next.
    pub channel: usize,
    /// From an output to the next: of the next image, depth, row and column.
    pub steps: [usize; 4],
}

impl<T> Planes<'_, T> {
    /// Where tap 0 of an output lies.
    pub(super) fn output(&self, at: [usize; 4]) -> usize {
        place(at, self.steps)
    }
}

fn place(at: [usize; 4], steps: [usize; 4]) -> usize {
    at.into_iter().zip(steps).map(|(at, step)| at * step).sum()
}

/// [`Halo::fill`] with the instructions of a token.
pub(super) struct Fill<'a, T> {
    pub halo: &'a Halo,
    pub x: TensorView<'a, T, 5>,
    pub to: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Fill<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        self.halo.fill(simd, self.x, self.to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;
    use crate::simd::Dispatch;

    /// Every tap of every output reads what the formula says, in both layouts.
    #[test]
    fn every_tap_reads_its_element() {
        let shape = [2, 5, 3, 4, 9];
        let len: usize = shape.iter().product();
        let values: Vec<f32> = (1..=len).map(|i| i as f32).collect();
        let channels_first = TensorView::from_slice(&values, shape).unwrap();
        let [n, c, d, h, w] = shape;
        let last =
            TensorView::from_slice(&values, [n, d, h, w, c]).unwrap().permute([0, 4, 1, 2, 3]).unwrap();
        for &isa in machine::supported() {
            for x in [channels_first, last, channels_first.flip(4).unwrap()] {
                for (kernel, stride, dilation) in [
                    ([1, 1, 1], [1, 1, 1], [1, 1, 1]),
                    ([2, 3, 3], [1, 1, 1], [1, 1, 1]),
                    ([1, 3, 3], [1, 2, 2], [1, 1, 1]),
                    ([1, 2, 3], [2, 3, 4], [1, 2, 2]),
                    ([1, 6, 6], [1, 4, 4], [1, 1, 1]),
                    ([1, 2, 5], [1, 1, 6], [1, 1, 4]),
                    ([3, 1, 2], [3, 5, 7], [1, 3, 2]),
                    ([1, 3, 2], [1, 1, 2], [1, 200, 77]),
                    ([2, 2, 3], [1, 2, 1], [30, 51, 1 << 40]),
                ] {
                    for start in [[0, 0, 0], [-1, -2, -3], [1, 0, 2], [-9, 0, 4]] {
                        let outputs = [2, 3, 4];
                        let image = [d, h, w];
                        let geometry = Geometry { kernel, stride, dilation, start, outputs, image };
                        let halo = Halo::new(&geometry, c, n);
                        let mut to = vec![f32::NAN; halo.len().unwrap() + 64];
                        f32::dispatch(isa, Fill { halo: &halo, x, to: &mut to });
                        check(&halo, &geometry, x, &to);
                    }
                }
            }
        }
    }

    fn check(halo: &Halo, geometry: &Geometry, x: TensorView<'_, f32, 5>, to: &[f32]) {
        let each = |sizes: [usize; 3]| {
            (0..sizes.iter().product())
                .map(move |i: usize| [i / sizes[2] / sizes[1], i / sizes[2] % sizes[1], i % sizes[2]])
        };
        for image in 0..x.shape()[0] {
            for c in 0..x.shape()[1] {
                for output in each(geometry.outputs) {
                    for tap in each(geometry.kernel) {
                        let position = [0, 1, 2].map(|a| {
                            let window = (output[a] * geometry.stride[a]) as isize + geometry.start[a];
                            usize::try_from(window + (tap[a] * geometry.dilation[a]) as isize).unwrap_or(99)
                        });
                        let expected =
                            x.get([image, c, position[0], position[1], position[2]]).copied().unwrap_or(0.0);
                        let at = halo.output(image, output) + c * halo.channel() + halo.tap(tap);
                        assert_eq!(to[at], expected, "{geometry:?} {image} {c} {output:?} {tap:?}");
                    }
                }
            }
        }
    }
}

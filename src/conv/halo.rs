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

use super::geometry::gcd;
use crate::element::Element;
use crate::simd::{MOST_LANES, Simd, SimdOp};
use crate::tensor::TensorView;

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
        let (slots, step, size) = if kernel < residues {
            (kernel, dilation, outputs)
        } else {
            (residues, divisor, outputs + (kernel - 1) * dilation / stride)
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

    /// The places of a slot that lie inside the image.
    fn inside(&self, slot: usize) -> std::ops::Range<usize> {
        let first = self.first(slot);
        let places = |to: isize| usize::try_from(to).unwrap_or(0).div_ceil(self.stride).min(self.size);
        let low = places(-first);
        low..places(self.image as isize - first).max(low)
    }
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
        let place = self.axes.iter().zip(at).fold(0, |place, (axis, at)| place * axis.size + at);
        image * self.image() + place
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
            for slot in 0..depth.slots * height.slots {
                let [slot_d, slot_h] = [slot / height.slots, slot % height.slots];
                for place in 0..depth.size {
                    let at = slot * width.slots * self.volume + place * height.size * width.size;
                    let plane = depth.position(slot_d, place).and_then(|d| x.select::<3>(1, d).ok());
                    if last {
                        self.pixels(simd, plane, slot_h, &mut to[at..]);
                    } else {
                        self.rows(simd, plane, slot_h, &mut to[at..]);
                    }
                }
            }
        }
    }

    /// The rows of a residue of planes `[channels, height, width]`, or zeros. `to` begins with the first residue of columns.
    #[inline(always)]
    fn rows<T: Element, S: Simd<T>>(
        &self,
        simd: S,
        planes: Option<TensorView<'_, T, 3>>,
        slot: usize,
        to: &mut [T],
    ) {
        let [_, height, width] = self.axes;
        let (len, channel) = (width.size, self.channel());
        let inside = height.inside(slot);
        let first = height.position(slot, inside.start).unwrap_or(0);
        // The columns of a slot, which take divisions, once for all channels.
        let columns = |slot| {
            let inside = width.inside(slot);
            // The first column read, which exists where any place lies inside.
            let column = width.position(slot, inside.start).unwrap_or(0);
            (inside, column)
        };
        let known: [_; 8] =
            std::array::from_fn(|slot| if slot < width.slots { columns(slot) } else { (0..0, 0) });
        let both = [known[0].clone(), known[1].clone()];
        let beside = |[one, two]: &[(std::ops::Range<usize>, usize); 2]| {
            !one.0.is_empty() && !two.0.is_empty() && one.1.abs_diff(two.1) == 1
        };
        let both = Some(both).filter(|both| width.stride == 2 && width.slots == 2 && beside(both));
        for c in 0..self.channels {
            let plane = planes.and_then(|planes| planes.select::<2>(0, c).ok());
            if let (Some(both), Some(data)) = (&both, plane.and_then(|plane| plane.as_slice())) {
                let (one, two) = to[c * channel..].split_at_mut(self.volume);
                for to in [&mut *one, &mut *two] {
                    zeros(simd, 0..inside.start * len, to);
                }
                for (i, place) in inside.clone().enumerate() {
                    let row = &data[(first + i * height.stride) * width.image..][..width.image];
                    let at = place * len;
                    alternate(simd, row, both, len, [&mut one[at..], &mut two[at..]]);
                }
                // Over what the last row has too much.
                for to in [one, two] {
                    zeros(simd, inside.end.max(inside.start) * len..height.size * len, to);
                }
                continue;
            }
            for slot in 0..width.slots {
                let to = &mut to[c * channel + slot * self.volume..];
                let Some(plane) = plane else {
                    zeros(simd, 0..height.size * len, to);
                    continue;
                };
                let (columns, column) = known.get(slot).cloned().unwrap_or_else(|| columns(slot));
                zeros(simd, 0..inside.start * len, to);
                let rows =
                    Rows { plane, inside: inside.clone(), first, step: height.stride, columns, column, len };
                match width.stride {
                    1 => rows.every::<S, 1>(simd, to),
                    2 => rows.every::<S, 2>(simd, to),
                    4 => rows.every::<S, 4>(simd, to),
                    stride => rows.any(simd, stride, to),
                }
                zeros(simd, inside.end.max(inside.start) * len..height.size * len, to);
            }
        }
    }

    /// The rows of a residue of a plane `[channels, height, width]` whose channels are neighbours, or zeros.
    #[inline(always)]
    fn pixels<T: Element, S: Simd<T>>(
        &self,
        simd: S,
        plane: Option<TensorView<'_, T, 3>>,
        slot: usize,
        to: &mut [T],
    ) {
        let [_, height, width] = self.axes;
        for place in 0..height.size {
            let position = height.position(slot, place);
            let pixels = plane.zip(position).and_then(|(plane, h)| plane.select::<2>(1, h).ok());
            for slot in 0..width.slots {
                let inside = width.inside(slot);
                let column = width.position(slot, inside.start).unwrap_or(0);
                let run = Run { inside, column, step: width.stride };
                let to = &mut to[slot * self.volume + place * width.size..];
                let pixels = pixels.map(TensorView::transpose);
                run.turn(simd, pixels, to, self.channel(), width.size, self.channels);
            }
        }
    }
}

/// Rows of a plane `[height, width]` on their way to the rows `inside` of one slot, each `len` long.
struct Rows<'a, T> {
    plane: TensorView<'a, T, 2>,
    inside: std::ops::Range<usize>,
    /// The first row read, and their distance.
    first: usize,
    step: usize,
    /// Places that lie inside the image, and the column of the first.
    columns: std::ops::Range<usize>,
    column: usize,
    len: usize,
}

impl<T: Element> Rows<'_, T> {
    /// Every `P`-th element. Whole vectors: what they have too much, the next row overwrites, or it ends in the gap behind the
    /// last.
    #[inline(always)]
    fn every<S: Simd<T>, const P: usize>(self, simd: S, to: &mut [T]) {
        let Some(data) = self.plane.as_slice().filter(|_| !self.columns.is_empty()) else {
            return self.any(simd, P, to);
        };
        let Self { plane, inside, first, step, columns, column, len } = self;
        let [_, width] = plane.shape();
        let (start, count) = (columns.start, columns.len());
        let end = start + count.next_multiple_of(S::LANES);
        for (i, place) in inside.enumerate() {
            let from = &data[(first + i * step) * width..][..width][column..];
            let to = &mut to[place * len..];
            if start > 0 {
                zeros(simd, 0..start, to);
            }
            let mut at = 0;
            while at < count {
                // Behind the image are zeros. Where the places end before the image, what is read behind goes behind.
                let vector = every::<T, S, P>(simd, &from[at * P..]);
                simd.store(vector, &mut to[start + at..]);
                at += S::LANES;
            }
            if end < len {
                zeros(simd, end..len, to);
            }
        }
    }

    /// Every `stride`-th element, whatever the strides of the plane.
    #[inline(always)]
    fn any<S: Simd<T>>(self, simd: S, stride: usize, to: &mut [T]) {
        let Self { plane, inside, first, step, columns, column, len } = self;
        for (i, place) in inside.enumerate() {
            let to = &mut to[place * len..][..len];
            for edge in (0..columns.start).chain(columns.end..len) {
                to[edge] = T::ZERO;
            }
            copy_row(simd, plane, first + i * step, column, stride, &mut to[columns.clone()]);
        }
    }
}

/// A row to both slots of a stride of 2, each `len` long: of both, the places inside the image and the column of the first,
/// which are neighbours. Each vector is read once.
#[inline(always)]
fn alternate<T: Element, S: Simd<T>>(
    simd: S,
    row: &[T],
    slots: &[(std::ops::Range<usize>, usize); 2],
    len: usize,
    to: [&mut [T]; 2],
) {
    let [(one, first), (two, second)] = slots;
    let from = &row[*first.min(second)..];
    let most = one.len().max(two.len());
    let [to_one, to_two] = to;
    if one.start > 0 {
        zeros(simd, 0..one.start, to_one);
    }
    if two.start > 0 {
        zeros(simd, 0..two.start, to_two);
    }
    for at in (0..most).step_by(S::LANES) {
        // Not `map`: its closure is a function of its own, without the instructions of this one, where it is not inlined.
        let mut vectors = [simd.splat(T::ZERO); 2];
        for (i, vector) in vectors.iter_mut().enumerate() {
            let rest = &from[(2 * at + i * S::LANES).min(from.len())..];
            *vector = if rest.len() >= S::LANES { simd.load(rest) } else { simd.load_partial(rest) };
        }
        let [even, odd] = simd.deinterleave(vectors[0], vectors[1]);
        let [of_one, of_two] = if first < second { [even, odd] } else { [odd, even] };
        if at < one.len() {
            simd.store(of_one, &mut to_one[one.start + at..]);
        }
        if at < two.len() {
            simd.store(of_two, &mut to_two[two.start + at..]);
        }
    }
    for (range, to) in [(one, to_one), (two, to_two)] {
        let end = range.start + range.len().next_multiple_of(S::LANES);
        if end < len {
            zeros(simd, end..len, to);
        }
    }
}

/// A vector of every `P`-th element, zeros behind the last.
#[inline(always)]
fn every<T: Element, S: Simd<T>, const P: usize>(simd: S, from: &[T]) -> S::V {
    let mut vectors = [simd.splat(T::ZERO); P];
    for (i, vector) in vectors.iter_mut().enumerate() {
        let rest = &from[(i * S::LANES).min(from.len())..];
        *vector = if rest.len() >= S::LANES { simd.load(rest) } else { simd.load_partial(rest) };
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
fn zeros<T: Element, S: Simd<T>>(simd: S, range: std::ops::Range<usize>, to: &mut [T]) {
    for at in range.step_by(S::LANES) {
        simd.store(simd.splat(T::ZERO), &mut to[at..]);
    }
}

/// Copies `from` to the front of `to`, inline: rows are short.
#[inline(always)]
fn copy<T: Element, S: Simd<T>>(simd: S, from: &[T], to: &mut [T]) {
    let to = &mut to[..from.len()];
    let whole = from.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        simd.store(simd.load(&from[at..]), &mut to[at..]);
    }
    if whole < from.len() {
        simd.store_partial(simd.load_partial(&from[whole..]), &mut to[whole..]);
    }
}

#[inline(always)]
fn fill_zero<T: Element, S: Simd<T>>(simd: S, to: &mut [T]) {
    let whole = to.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        simd.store(simd.splat(T::ZERO), &mut to[at..]);
    }
    simd.store_partial(simd.splat(T::ZERO), &mut to[whole..]);
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

/// A row of pixels whose channels are neighbours.
struct Run {
    inside: std::ops::Range<usize>,
    column: usize,
    step: usize,
}

impl Run {
    /// Pixels `[width, channels]` to rows of channels, which lie `channel` apart in `to` and are `len` long.
    #[inline(always)]
    fn turn<T: Element, S: Simd<T>>(
        &self,
        simd: S,
        pixels: Option<TensorView<'_, T, 2>>,
        to: &mut [T],
        channel: usize,
        len: usize,
        channels: usize,
    ) {
        let Some(pixels) = pixels else {
            for c in 0..channels {
                fill_zero(simd, &mut to[c * channel..][..len]);
            }
            return;
        };
        let pixel = |place: usize| {
            let place = place.checked_sub(self.inside.start).filter(|_| place < self.inside.end)?;
            pixels.row(self.column + place * self.step)
        };
        if len < 4 || channels < S::LANES {
            for place in 0..len {
                let from = pixel(place);
                for c in 0..channels {
                    to[c * channel + place] = from.map_or(T::ZERO, |from| from[c]);
                }
            }
            return;
        }
        // Places that are no four are taken with some before them again, channels that are no vector likewise.
        for place in (0..len).step_by(4) {
            let place = place.min(len - 4);
            let from: [Option<&[T]>; 4] = std::array::from_fn(|i| pixel(place + i));
            for c in (0..channels).step_by(S::LANES) {
                let c = c.min(channels - S::LANES);
                let mut vectors = [simd.splat(T::ZERO); 4];
                for (vector, from) in vectors.iter_mut().zip(from) {
                    if let Some(from) = from {
                        *vector = simd.load(&from[c..]);
                    }
                }
                simd.store_transposed(vectors, &mut to[c * channel + place..], channel);
            }
        }
    }
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

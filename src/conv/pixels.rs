//! The input of a box of outputs as pixels of a block of channels, zeros around it.
#![forbid(unsafe_code)]

use super::depthwise::{Reach, within};
use crate::element::Element;
use crate::gemm::transpose;
use crate::simd::{CACHE_LINE, MOST_LANES, Simd, SimdOp, prefetch};
use crate::tensor::TensorView;

/// Pixels of a block of channels: `[vectors, depth, rows, columns, lanes]`.
#[derive(Clone, Copy)]
pub(super) struct Pixels {
    /// Image positions of the depths: the first and their distance.
    pub depth: [isize; 2],
    pub depths: usize,
    /// Image position of the first row and column; it may lie in the padding.
    pub at: [isize; 2],
    pub rows: usize,
    pub columns: usize,
    pub lanes: usize,
    pub vectors: usize,
    /// The block's first channel, and how many of the output's channels share one.
    pub channel: usize,
    pub multiplier: usize,
    /// Channels there are, at most the lanes of all vectors.
    pub channels: usize,
}

impl Pixels {
    /// Elements of a vector of channels. Turning writes whole vectors of pixels; the odd number keeps vectors apart in L1.
    pub(super) fn plane(&self) -> usize {
        ((self.depths * self.rows * self.columns + MOST_LANES) | 1) * self.lanes
    }

    pub(super) fn len(&self) -> usize {
        self.plane() * self.vectors
    }
}

impl Reach {
    /// Room for a box of outputs.
    pub(super) fn pixels(
        &self,
        lanes: usize,
        vectors: usize,
        outputs: [usize; 2],
        multiplier: usize,
    ) -> Pixels {
        Pixels {
            depth: [0, self.dilation[0] as isize],
            depths: self.kernel[0],
            at: [0; 2],
            rows: self.span(1, outputs[0]),
            columns: self.span(2, outputs[1]),
            lanes,
            vectors,
            channel: 0,
            multiplier,
            channels: 0,
        }
    }
}

impl Pixels {
    /// What the windows of a box of outputs read, the first of which is at `place`.
    pub(super) fn over(
        &self,
        reach: &Reach,
        place: [usize; 3],
        outputs: [usize; 2],
        channel: usize,
        channels: usize,
    ) -> Self {
        let start = |axis: usize| reach.start[axis] + (place[axis] * reach.stride[axis]) as isize;
        Self {
            depth: [start(0), self.depth[1]],
            at: [start(1), start(2)],
            rows: reach.span(1, outputs[0]),
            columns: reach.span(2, outputs[1]),
            vectors: channels.div_ceil(self.lanes),
            channel,
            channels,
            ..*self
        }
    }
}

/// Bytes of an image that is small enough to be asked for while the one before it is read.
const AHEAD: usize = 64 << 10;

/// Copies pixels of `x`, `[channels, depth, height, width]`.
pub(super) struct Fill<'f, T> {
    pub x: TensorView<'f, T, 4>,
    pub pixels: Pixels,
    pub to: &'f mut [T],
}

impl<T: Element> SimdOp<T> for Fill<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { x, pixels, to } = self;
        let Pixels { depth, depths, at, rows, columns, vectors, .. } = pixels;
        let [_, image_depth, height, width] = x.shape();
        let left = usize::try_from(-at[1]).unwrap_or(0).min(columns);
        let first = usize::try_from(at[1]).unwrap_or(0).min(width);
        let inside = (width - first).min(columns - left);
        let row_len = columns * S::LANES;
        let (low, high) = (left * S::LANES, (left + inside) * S::LANES);
        let last = x.strides()[0] == 1 && pixels.multiplier == 1;
        let turning = S::LANES >= 4 && (x.strides()[3] == 1 || width == 1);
        let plane = pixels.plane();
        // All vectors are read as rows of `of_rows`.
        let whole = pixels.multiplier == 1 && pixels.channels.is_multiple_of(S::LANES) && inside >= 4;
        let Ok(of_rows) = x.permute([1, 2, 0, 3]) else { return };
        for d in 0..depths {
            let position = within(depth[0] + d as isize * depth[1], image_depth);
            let mut lines: [Option<&[T]>; MOST_LANES] = [None; MOST_LANES];
            if let (true, Some(d)) = (turning && !last && !whole, position) {
                for (lane, line) in lines.iter_mut().enumerate().take(pixels.channels) {
                    *line = x.line([(pixels.channel + lane) / pixels.multiplier, d]);
                }
            }
            for row in 0..rows {
                let start = (d * rows + row) * row_len;
                let line = position.zip(within(at[0] + row as isize, height));
                for to in to.chunks_exact_mut(plane).take(vectors) {
                    let to = &mut to[start..];
                    zero(simd, &mut to[..if line.is_some() { low } else { row_len }]);
                }
                let Some((d, h)) = line else { continue };
                let to = &mut to[start..];
                if last {
                    pixels.neighbours(simd, &x, [d, h], [first, inside], plane, &mut to[low..]);
                } else if turning {
                    pixels.turned(simd, &of_rows, &lines, [d, h], [first, inside], &mut to[low..]);
                } else {
                    pixels.single(&x, [d, h], [first, inside], plane, &mut to[low..]);
                }
                for v in 0..vectors {
                    zero(simd, &mut to[v * plane + high..v * plane + row_len]);
                }
            }
        }
    }
}

impl Pixels {
    /// Channels that are neighbours in memory.
    #[inline(always)]
    fn neighbours<T: Element, S: Simd<T>>(
        &self,
        simd: S,
        x: &TensorView<'_, T, 4>,
        [d, h]: [usize; 2],
        [first, count]: [usize; 2],
        plane: usize,
        to: &mut [T],
    ) {
        let Ok(x) = x.permute([1, 2, 3, 0]) else { return };
        let (line, matrix, step) = (x.line([d, h]), x.matrix_at([d, h]), x.shape()[3]);
        let whole = self.channels / S::LANES;
        for i in 0..count {
            let from = match line {
                Some(line) => &line[(first + i) * step..],
                None => matrix.row(first + i).unwrap_or(&[]),
            };
            let from = &from[self.channel..][..self.channels];
            for v in 0..whole {
                simd.store(simd.load(&from[v * S::LANES..]), &mut to[v * plane + i * S::LANES..]);
            }
            if whole < self.vectors {
                let rest = simd.load_partial(&from[whole * S::LANES..]);
                simd.store(rest, &mut to[whole * plane + i * S::LANES..]);
            }
        }
    }

    /// Columns that are neighbours in memory, of `x` as `[depth, height, channels, width]`; `lines` are whole planes of the first
    /// channels, where they are slices.
    #[inline(always)]
    fn turned<T: Element, S: Simd<T>>(
        &self,
        simd: S,
        x: &TensorView<'_, T, 4>,
        lines: &[Option<&[T]>; MOST_LANES],
        [d, h]: [usize; 2],
        [first, count]: [usize; 2],
        to: &mut [T],
    ) {
        let ([_, _, channels, width], plane) = (x.shape(), self.plane());
        let rows = x.matrix_at([d, h]);
        // Where the same row of the next image lies, if an image is small: rows of many planes are no stream.
        let image = (channels as isize).wrapping_mul(x.strides()[2]);
        let ahead = usize::try_from(image).ok().filter(|&len| len <= AHEAD / size_of::<T>());
        for v in 0..self.vectors {
            let full = self.multiplier == 1 && (v + 1) * S::LANES <= self.channels && count >= 4;
            if full {
                let channel = self.channel + v * S::LANES;
                let (lines, columns) = (channel..channel + S::LANES, first..first + count);
                transpose(simd, &rows, lines, columns, &mut to[v * plane..], S::LANES);
                continue;
            }
            for four in (0..S::LANES).step_by(4) {
                let mut from: [&[T]; 4] = [&[]; 4];
                for (i, from) in from.iter_mut().enumerate() {
                    let lane = v * S::LANES + four + i;
                    if lane < self.channels {
                        let channel = (self.channel + lane) / self.multiplier;
                        let row = match lines.get(lane) {
                            Some(Some(plane)) => &plane[h * width..][..width],
                            _ => rows.row(channel).unwrap_or(&[]),
                        };
                        *from = &row[first..][..count];
                        if let Some(ahead) = ahead {
                            let next = from.as_ptr().wrapping_add(ahead);
                            for line in (0..count * size_of::<T>()).step_by(CACHE_LINE) {
                                prefetch(next.wrapping_byte_add(line));
                            }
                        }
                    }
                }
                turn(simd, from, count, &mut to[v * plane + four..], S::LANES);
            }
        }
    }

    /// Neither.
    fn single<T: Element>(
        &self,
        x: &TensorView<'_, T, 4>,
        [d, h]: [usize; 2],
        [first, count]: [usize; 2],
        plane: usize,
        to: &mut [T],
    ) {
        for i in 0..count {
            for lane in 0..self.vectors * self.lanes {
                let at = [(self.channel + lane) / self.multiplier, d, h, first + i];
                let value = if lane < self.channels { x.get(at).copied() } else { None };
                to[lane / self.lanes * plane + i * self.lanes + lane % self.lanes] = value.unwrap_or(T::ZERO);
            }
        }
    }
}

#[inline(always)]
fn zero<T: Element, S: Simd<T>>(simd: S, to: &mut [T]) {
    for to in to.chunks_exact_mut(S::LANES) {
        simd.store(simd.splat(T::ZERO), to);
    }
}

/// Four rows of `len` columns, or nothing, to the first four of each pixel.
#[inline(always)]
pub(super) fn turn<T: Element, S: Simd<T>>(simd: S, from: [&[T]; 4], len: usize, to: &mut [T], pitch: usize) {
    for at in (0..len).step_by(S::LANES) {
        let mut vectors = [simd.splat(T::ZERO); 4];
        for (vector, from) in vectors.iter_mut().zip(from) {
            if at < from.len() {
                *vector = simd.load_up_to(&from[at..]);
            }
        }
        simd.store_transposed(vectors, &mut to[at * pitch..], pitch);
    }
}

//! From pixels to points: the operands of the products.
#![forbid(unsafe_code)]

use super::transform::{self, POINTS, Square};
use crate::conv::depthwise::{Reach, within};
use crate::conv::emit::channels_last;
use crate::conv::pixels::{Fill, Pixels};
use crate::element::Element;
use crate::error::Result;
use crate::gemm::each;
use crate::machine::Isa;
use crate::simd::{Simd, SimdOp, Streams};
use crate::tensor::TensorView;

/// How X, or dZ, is read for the points of its tiles, and where these go.
#[derive(Clone, Copy)]
pub(in crate::conv) struct Source {
    reach: Reach,
    pixels: Pixels,
    in_place: bool,
    /// Elements of the copy of a box's pixels, or of the zeros around the image: whole vectors, so that what lies behind is aligned.
    pub room: usize,
    /// Elements from tile to tile: an odd number of vectors keeps the points of a tile apart in L1.
    pub pitch: usize,
}

impl Source {
    /// For `channels` of `x`, windows of `reach`, and boxes of at most so many images, rows and columns of outputs.
    pub(in crate::conv) fn new<T>(
        x: &TensorView<'_, T, 5>,
        channels: usize,
        reach: Reach,
        lanes: usize,
        [images, rows, columns]: [usize; 3],
    ) -> Self {
        let vectors = channels.div_ceil(lanes);
        let pixels = reach.pixels(lanes, vectors, [rows, columns], 1);
        let in_place = channels == 0 || channels_last(x.shape(), x.strides());
        let room = if in_place { vectors * lanes } else { images.saturating_mul(pixels.len()) };
        Self { reach, pixels, in_place, room, pitch: (vectors | 1) * lanes }
    }

    /// Of a box's memory, `room` and what [`transform`](Self::transform) wrote behind it, some channels of a point's tiles, which begin
    /// with tile `first` of all points': `[channels, tiles]`.
    pub(in crate::conv) fn point<'d, T>(
        &self,
        data: &'d [T],
        first: usize,
        shape: [usize; 2],
    ) -> Result<TensorView<'d, T, 2>> {
        TensorView::as_strided(&data[self.room + first * self.pitch..], shape, [1, self.pitch as isize])
    }

    /// The points of a box of tiles, images, rows and columns of them in `sizes`, to `v`, `stride` elements from point to point.
    /// The first has its first output at `place`; `x` has the box's images, and all of the channels. `copy` has [`room`](Self::room).
    pub(in crate::conv) fn transform<T: Element, const O: usize, const P: usize, const Q: usize>(
        &self,
        isa: Isa,
        x: TensorView<'_, T, 5>,
        (place, sizes): ([usize; 3], [usize; 3]),
        copy: &mut [T],
        (v, stride): (&mut [T], usize),
    ) {
        let [images, rows, columns] = sizes;
        let pixels = self.pixels.over(&self.reach, place, [rows * O, columns * O], 0, x.shape()[1]);
        if self.in_place {
            copy.fill(T::ZERO);
        } else {
            for (image, to) in copy.chunks_exact_mut(pixels.len()).enumerate().take(images) {
                let Ok(x) = x.select(0, image) else { return };
                T::dispatch(isa, Fill { x, pixels, to });
            }
        }
        let Ok(x) = x.permute([0, 2, 3, 4, 1]) else { return };
        let patches = Patches::<T, O, P, Q> {
            x,
            depth: within(pixels.depth[0], x.shape()[1]),
            start: pixels.at,
            copy: (!self.in_place).then_some(&pixels),
            data: copy,
            sizes,
            pitch: self.pitch,
            stride,
            v,
        };
        T::dispatch(isa, patches);
    }
}

/// All tiles of a box, `O` outputs along each side: Bᵀ d B for as many pixels as points, `P` and `Q` of them, else, for pixels of dZ,
/// A d Aᵀ.
struct Patches<'a, T, const O: usize, const P: usize, const Q: usize> {
    /// `[images, depth, height, width, channels]`.
    x: TensorView<'a, T, 5>,
    /// The plane that is read; without one, zeros.
    depth: Option<usize>,
    /// Row and column of the first tile's first pixel; in the padding they are negative.
    start: [isize; 2],
    /// How the copy in `data` lies, where there is one, image after image; else `data` is the pixel around the image, zeros.
    copy: Option<&'a Pixels>,
    data: &'a [T],
    /// Images, rows and columns of tiles.
    sizes: [usize; 3],
    /// `[point][tile][channel]`: elements between tiles, and between points.
    pitch: usize,
    stride: usize,
    v: &'a mut [T],
}

impl<T: Element, const O: usize, const P: usize, const Q: usize> SimdOp<T> for Patches<'_, T, O, P, Q> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Self { x, depth, start, copy, data, sizes: [images, rows, columns], pitch, stride, v } = self;
        let [_, _, height, width, channels] = x.shape();
        // In the image vectors of channels are neighbours, in the copy each is apart.
        let (len, step, whole) = match copy {
            Some(pixels) => {
                ((pixels.vectors - 1) * pixels.plane() + S::LANES, pixels.plane(), pixels.vectors)
            }
            None => (channels, S::LANES, channels / S::LANES),
        };
        let mut tile = 0;
        for image in 0..images {
            let plane = x.select::<4>(0, image).ok().zip(depth);
            for row in 0..rows {
                let mut lines = [None; P];
                for (i, line) in lines.iter_mut().enumerate() {
                    let at = plane.zip(within(start[0] + (row * O + i) as isize, height));
                    *line = at.map(|((plane, d), h)| plane.matrix_at([d, h]));
                }
                for column in 0..columns {
                    let mut pixels = [Streams::<T, P>::none(); P];
                    for (i, (pixels, line)) in pixels.iter_mut().zip(&lines).enumerate() {
                        match copy {
                            Some(copy) => {
                                let at = (row * O + i) * copy.columns + column * O;
                                pixels.apart(&data[image * copy.len() + at * S::LANES..], S::LANES, len);
                            }
                            None => pixels.each(len, |j| {
                                let at = within(start[1] + (column * O + j) as isize, width);
                                line.zip(at).and_then(|(line, at)| line.row(at)).unwrap_or(data)
                            }),
                        }
                    }
                    let to = &mut v[tile * pitch..];
                    for vector in 0..channels.div_ceil(S::LANES) {
                        let mut square: Square<S::V> = [[simd.splat(T::ZERO); POINTS]; POINTS];
                        each!(i in points P {
                            let line = if vector < whole {
                                pixels[i].load(simd, vector * step)
                            } else {
                                pixels[i].load_partial(simd, vector * step)
                            };
                            square[i][..P].copy_from_slice(&line);
                        });
                        if P == Q {
                            transform::input::<T, S, O>(simd, &mut square);
                        } else {
                            transform::gradient::<T, S, O>(simd, &mut square);
                        }
                        each!(i in points Q {
                            let mut line = [simd.splat(T::ZERO); Q];
                            line.copy_from_slice(&square[i][..Q]);
                            simd.store_apart(line, &mut to[i * Q * stride + vector * S::LANES..], stride);
                        });
                    }
                    tile += 1;
                }
            }
        }
    }
}

//! From pixels to points: the operands of the products.
#![forbid(unsafe_code)]

use super::transform::{self, POINTS, Square};
use crate::conv::depthwise::within;
use crate::conv::pixels::Pixels;
use crate::element::Element;
use crate::gemm::each;
use crate::simd::{Simd, SimdOp, Streams};
use crate::tensor::TensorView;

/// All tiles of a box, `O` outputs along each side: Bᵀ d B for as many pixels as points, `P` and `Q` of them, else, for pixels of dZ,
/// A d Aᵀ.
pub(in crate::conv) struct Patches<'a, T, const O: usize, const P: usize, const Q: usize> {
    /// `[images, depth, height, width, channels]`.
    pub x: TensorView<'a, T, 5>,
    /// The plane that is read; without one, zeros.
    pub depth: Option<usize>,
    /// Row and column of the first tile's first pixel; in the padding they are negative.
    pub start: [isize; 2],
    /// How the copy in `data` lies, where there is one, image after image; else `data` is the pixel around the image, zeros.
    pub copy: Option<&'a Pixels>,
    pub data: &'a [T],
    /// Images, rows and columns of tiles.
    pub sizes: [usize; 3],
    /// `[point][tile][channel]`: elements between tiles, and between points.
    pub pitch: usize,
    pub stride: usize,
    pub v: &'a mut [T],
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

//! Convolutions and pooling for `python/convolutions.py`, as the products in `abi.rs`: pointers must lead to tensors of the
//! sizes given, and what is written may overlap nothing.

use std::array::from_fn;
use std::slice::{from_raw_parts, from_raw_parts_mut};

use tilewise::conv::{Algorithm, Convolution, PackedConvolution};
use tilewise::pool::{AveragePool, MaxPool};
use tilewise::{Error, Result, TensorView, TensorViewMut};

/// What a caller says of a convolution over sequences or square images, or of pooling those.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sizes {
    /// 1 for sequences, 2 for images.
    pub axes: usize,
    pub batch: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub groups: usize,
    pub size: usize,
    pub kernel: usize,
    pub stride: usize,
    /// 0 for the default, 2 and 4 for Winograd's tiles, 1 for none.
    pub algorithm: usize,
    /// Images are stored as NHWC.
    pub last: bool,
}

/// An image or a result, `[batch, channels, size…]` in either order of storage.
struct Image<const N: usize> {
    shape: [usize; N],
    strides: [isize; N],
}

impl<const N: usize> Image<N> {
    fn new([batch, channels, size]: [usize; 3], last: bool) -> Self {
        let pixel = if last { channels } else { 1 };
        let plane = size.pow(N as u32 - 2);
        let strides: [usize; N] = from_fn(|axis| match axis {
            0 => plane * channels,
            1 => {
                if last {
                    1
                } else {
                    plane
                }
            }
            _ => pixel * size.pow((N - 1 - axis) as u32),
        });
        let shape = from_fn(|axis| *[batch, channels].get(axis).unwrap_or(&size));
        Self { shape, strides: strides.map(|stride| stride as isize) }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    unsafe fn read<'a>(&self, data: *const f32) -> Result<TensorView<'a, f32, N>> {
        // SAFETY: the caller's promise, as in all of this file.
        TensorView::as_strided(unsafe { from_raw_parts(data, self.len()) }, self.shape, self.strides)
    }

    unsafe fn write<'a>(&self, data: *mut f32) -> Result<TensorViewMut<'a, f32, N>> {
        // SAFETY: the caller's promise.
        TensorViewMut::as_strided(unsafe { from_raw_parts_mut(data, self.len()) }, self.shape, self.strides)
    }
}

impl Sizes {
    fn convolution<const S: usize>(&self) -> Convolution<S> {
        let algorithm = match self.algorithm {
            1 => Algorithm::ImplicitGemm,
            2 => Algorithm::Winograd2,
            3 => Algorithm::Direct,
            4 => Algorithm::Winograd4,
            _ => Algorithm::Auto,
        };
        let padding = [self.kernel / 2; S];
        Convolution::new().stride([self.stride; S]).padding(padding).groups(self.groups).algorithm(algorithm)
    }

    fn x<const N: usize>(&self) -> Image<N> {
        Image::new([self.batch, self.c_in, self.size], self.last)
    }

    fn y<const N: usize>(&self) -> Image<N> {
        let size = (self.size + self.kernel / 2 * 2 - self.kernel) / self.stride + 1;
        Image::new([self.batch, self.c_out, size], self.last)
    }

    fn weight<const N: usize>(&self) -> [usize; N] {
        from_fn(|axis| *[self.c_out, self.c_in / self.groups].get(axis).unwrap_or(&self.kernel))
    }

    unsafe fn read_weight<'a, const N: usize>(&self, w: *const f32) -> Result<TensorView<'a, f32, N>> {
        let shape = self.weight();
        // SAFETY: the caller's promise.
        TensorView::from_slice(unsafe { from_raw_parts(w, shape.iter().product()) }, shape)
    }
}

/// The body for sequences and for images, `S` being their number of axes.
macro_rules! by_axes {
    ($sizes:ident, $S:ident => $body:expr) => {
        match $sizes.axes {
            1 => {
                const $S: usize = 1;
                $body
            }
            _ => {
                const $S: usize = 2;
                $body
            }
        }
    };
}

/// Y.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv(sizes: &Sizes, x: *const f32, w: *const f32, y: *mut f32) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe {
        by_axes!(sizes, S => {
            let (x, w, y) = (sizes.x().read(x)?, sizes.read_weight(w)?, sizes.y().write(y)?);
            sizes.convolution::<S>().forward_into(x, w, None, y)
        })
    };
    run().is_ok()
}

/// Packs W for [`tilewise_sconv_packed`]; null where that fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv_pack(sizes: &Sizes, w: *const f32) -> *mut PackedConvolution<f32> {
    // SAFETY: the caller's promise.
    let pack = || unsafe {
        by_axes!(sizes, S => {
            let (conv, w) = (sizes.convolution::<S>(), sizes.read_weight(w)?);
            if sizes.last { conv.pack_channels_last(w) } else { conv.pack(w) }
        })
    };
    pack().map_or(std::ptr::null_mut(), |packed| Box::into_raw(Box::new(packed)))
}

/// Y with a packed W.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv_packed(
    sizes: &Sizes,
    x: *const f32,
    w: *const PackedConvolution<f32>,
    y: *mut f32,
) -> bool {
    // SAFETY: the caller's promise; W comes from `tilewise_sconv_pack` and has not been freed.
    let run = || unsafe {
        by_axes!(sizes, S => {
            let (x, y) = (sizes.x().read(x)?, sizes.y().write(y)?);
            sizes.convolution::<S>().forward_into(x, &*w, None, y)
        })
    };
    run().is_ok()
}

/// Frees a packed W.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv_free(packed: *mut PackedConvolution<f32>) {
    // SAFETY: the caller's promise; it comes from `tilewise_sconv_pack` and is freed once.
    drop(unsafe { Box::from_raw(packed) });
}

/// dX from dY and W.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv_input(
    sizes: &Sizes,
    dy: *const f32,
    w: *const f32,
    dx: *mut f32,
) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe {
        by_axes!(sizes, S => {
            let (dy, w, dx) = (sizes.y().read(dy)?, sizes.read_weight(w)?, sizes.x().write(dx)?);
            sizes.convolution::<S>().backward_input_into(dy, w, dx)
        })
    };
    run().is_ok()
}

/// dW from X and dY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv_weight(
    sizes: &Sizes,
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe {
        by_axes!(sizes, S => {
            let (x, dy, shape) = (sizes.x().read(x)?, sizes.y().read(dy)?, sizes.weight());
            let dw = TensorViewMut::from_slice(from_raw_parts_mut(dw, shape.iter().product()), shape)?;
            sizes.convolution::<S>().backward_weight_into(x, dy, dw)
        })
    };
    let result: Result<(), Error> = run();
    result.is_ok()
}

/// Y of some pooling, of the shape given.
unsafe fn pool(
    sizes: &Sizes,
    x: *const f32,
    (y, shape): (*mut f32, Image<4>),
    run: impl FnOnce(TensorView<f32, 4>, TensorViewMut<f32, 4>) -> Result<()>,
) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe { run(sizes.x().read(x)?, shape.write(y)?) };
    run().is_ok()
}

/// Y, the maxima of windows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_smax_pool(sizes: &Sizes, x: *const f32, y: *mut f32) -> bool {
    let (kernel, stride, padding) = ([sizes.kernel; 2], [sizes.stride; 2], [sizes.kernel / 2; 2]);
    let max = MaxPool::<2>::new(kernel).stride(stride).padding(padding);
    // SAFETY: the caller's promise.
    unsafe { pool(sizes, x, (y, sizes.y()), |x, y| max.forward_into(x, y)) }
}

/// Y, the means of windows, padding among them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_saverage_pool(sizes: &Sizes, x: *const f32, y: *mut f32) -> bool {
    let (kernel, stride, padding) = ([sizes.kernel; 2], [sizes.stride; 2], [sizes.kernel / 2; 2]);
    let average = AveragePool::<2>::new(kernel).stride(stride).padding(padding);
    // SAFETY: the caller's promise.
    unsafe { pool(sizes, x, (y, sizes.y()), |x, y| average.forward_into(x, y)) }
}

/// Y, the means of images.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sglobal_average_pool(sizes: &Sizes, x: *const f32, y: *mut f32) -> bool {
    let shape = Image::new([sizes.batch, sizes.c_out, 1], sizes.last);
    // SAFETY: the caller's promise.
    unsafe { pool(sizes, x, (y, shape), |x, y| AveragePool::<2>::global().forward_into(x, y)) }
}

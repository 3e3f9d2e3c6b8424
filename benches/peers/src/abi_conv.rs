//! Convolutions for `python/convolutions.py`, as the products in `abi.rs`: pointers must lead to tensors of the sizes
//! given, and what is written may overlap nothing.

use std::slice::{from_raw_parts, from_raw_parts_mut};

use tilewise::conv::{Algorithm, Convolution, PackedConvolution};
use tilewise::{Error, Result, TensorView, TensorViewMut};

/// What a caller says of a convolution over square images.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sizes {
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

/// An image or a result, `[batch, channels, size, size]` in either order of storage.
struct Image {
    shape: [usize; 4],
    strides: [isize; 4],
}

impl Image {
    fn new([batch, channels, size]: [usize; 3], last: bool) -> Self {
        let (c, s) = (channels as isize, size as isize);
        let strides = if last { [s * s * c, 1, s * c, c] } else { [s * s * c, s * s, s, 1] };
        Self { shape: [batch, channels, size, size], strides }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    unsafe fn read<'a>(&self, data: *const f32) -> Result<TensorView<'a, f32, 4>> {
        // SAFETY: the caller's promise, as in all of this file.
        TensorView::as_strided(unsafe { from_raw_parts(data, self.len()) }, self.shape, self.strides)
    }

    unsafe fn write<'a>(&self, data: *mut f32) -> Result<TensorViewMut<'a, f32, 4>> {
        // SAFETY: the caller's promise.
        TensorViewMut::as_strided(unsafe { from_raw_parts_mut(data, self.len()) }, self.shape, self.strides)
    }
}

impl Sizes {
    fn convolution(&self) -> Convolution<2> {
        let algorithm = match self.algorithm {
            1 => Algorithm::ImplicitGemm,
            2 => Algorithm::Winograd2,
            4 => Algorithm::Winograd4,
            _ => Algorithm::Auto,
        };
        let padding = [self.kernel / 2; 2];
        Convolution::new().stride([self.stride; 2]).padding(padding).groups(self.groups).algorithm(algorithm)
    }

    fn x(&self) -> Image {
        Image::new([self.batch, self.c_in, self.size], self.last)
    }

    fn y(&self) -> Image {
        let size = (self.size + self.kernel / 2 * 2 - self.kernel) / self.stride + 1;
        Image::new([self.batch, self.c_out, size], self.last)
    }

    fn weight(&self) -> [usize; 4] {
        [self.c_out, self.c_in / self.groups, self.kernel, self.kernel]
    }

    unsafe fn read_weight<'a>(&self, w: *const f32) -> Result<TensorView<'a, f32, 4>> {
        let shape = self.weight();
        // SAFETY: the caller's promise.
        TensorView::from_slice(unsafe { from_raw_parts(w, shape.iter().product()) }, shape)
    }
}

/// Y.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv2d(sizes: &Sizes, x: *const f32, w: *const f32, y: *mut f32) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe {
        let (x, w, y) = (sizes.x().read(x)?, sizes.read_weight(w)?, sizes.y().write(y)?);
        sizes.convolution().forward_into(x, w, None, y)
    };
    run().is_ok()
}

/// Packs W for [`tilewise_sconv2d_packed`]; null where that fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv2d_pack(sizes: &Sizes, w: *const f32) -> *mut PackedConvolution<f32> {
    // SAFETY: the caller's promise.
    let packed = unsafe { sizes.read_weight(w) }.and_then(|w| {
        if sizes.last { sizes.convolution().pack_channels_last(w) } else { sizes.convolution().pack(w) }
    });
    packed.map_or(std::ptr::null_mut(), |packed| Box::into_raw(Box::new(packed)))
}

/// Y with a packed W.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv2d_packed(
    sizes: &Sizes,
    x: *const f32,
    w: *const PackedConvolution<f32>,
    y: *mut f32,
) -> bool {
    // SAFETY: the caller's promise; W comes from `tilewise_sconv2d_pack` and has not been freed.
    let run = || unsafe {
        let (x, y) = (sizes.x().read(x)?, sizes.y().write(y)?);
        sizes.convolution().forward_into(x, &*w, None, y)
    };
    run().is_ok()
}

/// Frees a packed W.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv2d_free(packed: *mut PackedConvolution<f32>) {
    // SAFETY: the caller's promise; it comes from `tilewise_sconv2d_pack` and is freed once.
    drop(unsafe { Box::from_raw(packed) });
}

/// dX from dY and W.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv2d_input(
    sizes: &Sizes,
    dy: *const f32,
    w: *const f32,
    dx: *mut f32,
) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe {
        let (dy, w, dx) = (sizes.y().read(dy)?, sizes.read_weight(w)?, sizes.x().write(dx)?);
        sizes.convolution().backward_input_into(dy, w, dx)
    };
    run().is_ok()
}

/// dW from X and dY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sconv2d_weight(
    sizes: &Sizes,
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe {
        let (x, dy, shape) = (sizes.x().read(x)?, sizes.y().read(dy)?, sizes.weight());
        let dw = TensorViewMut::from_slice(from_raw_parts_mut(dw, shape.iter().product()), shape)?;
        sizes.convolution().backward_weight_into(x, dy, dw)
    };
    let result: Result<(), Error> = run();
    result.is_ok()
}

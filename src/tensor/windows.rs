//! The zero-copy im2col: all patches of an image as one view.
//!
//! For an image `[n, c, h, w]` the patches under a kernel `[kh, kw]` are the view
//! `[n, oh, ow, c, kh, kw]` whose element `[b, i, j, ch, u, v]` is the image's
//! `[b, ch, i·s + u·d, j·s + v·d]` for stride s and dilation d. Six strides say so; nothing is copied. Reshaped
//! to `(n·oh·ow, c·kh·kw)` it is the matrix that im2col would write (as in K. Chellapilla, S. Puri and P. Simard,
//! "High Performance Convolutional Neural Networks for Document Processing", 2006), with each pixel up to kh·kw times.
#![forbid(unsafe_code)]

use super::{Layout, TensorView};
use crate::error::{Dims, Error, Result};

/// Size, stride and dilation of a sliding window over `S` spatial axes.
///
/// ```
/// use tilewise::{TensorView, Window};
/// let pixels: Vec<i32> = (0..16).collect();
/// let image = TensorView::from_slice(&pixels, [1, 1, 4, 4])?;
/// let patches = image.windows(&Window::new([2, 2]).stride([2, 2]))?;
/// assert_eq!(patches.shape(), [1, 2, 2, 1, 2, 2]);
/// assert_eq!(patches.get([0, 1, 0, 0, 0, 1]), Some(&9));
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<const S: usize> {
    kernel: [usize; S],
    stride: [usize; S],
    dilation: [usize; S],
}

impl<const S: usize> Window<S> {
    /// A window of this size with stride 1 and dilation 1.
    pub fn new(kernel: [usize; S]) -> Self {
        Self { kernel, stride: [1; S], dilation: [1; S] }
    }

    /// Steps between neighbouring windows.
    pub fn stride(self, stride: [usize; S]) -> Self {
        Self { stride, ..self }
    }

    /// Steps between neighbouring elements of one window; 1 is dense.
    pub fn dilation(self, dilation: [usize; S]) -> Self {
        Self { dilation, ..self }
    }

    /// Windows along each axis of an image of this size: ⌊(in − d·(k − 1) − 1) / s⌋ + 1.
    ///
    /// # Errors
    /// [`Error::Argument`] where a kernel, stride or dilation is 0, [`Error::Overflow`] where a window's extent
    /// overflows, [`Error::Shape`] where it is larger than the image.
    pub fn output_size(&self, image: [usize; S]) -> Result<[usize; S]> {
        const OP: &str = "windows";
        for (arg, sizes) in [("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)] {
            if sizes.contains(&0) {
                return Err(Error::argument(OP, arg, Dims::new(&sizes), "sizes of at least 1"));
            }
        }
        let mut extent = self.dilation;
        for (extent, kernel) in extent.iter_mut().zip(self.kernel) {
            *extent = (kernel - 1)
                .checked_mul(*extent)
                .and_then(|reach| reach.checked_add(1))
                .ok_or_else(|| Error::Overflow { op: OP, shape: Dims::new(&self.kernel) })?;
        }
        if (0..S).any(|axis| extent[axis] > image[axis]) {
            return Err(Error::shape(OP, "kernel (dilated)", &extent, &image));
        }
        Ok(std::array::from_fn(|axis| (image[axis] - extent[axis]) / self.stride[axis] + 1))
    }

    /// The layout of the windows: `N` is `S + 2`, `M` is `2·S + 2`.
    fn layout<const N: usize, const M: usize>(&self, image: &Layout<N>) -> Result<Layout<M>> {
        debug_assert!(N == S + 2 && M == 2 * S + 2);
        let (sizes, steps) = (image.shape(), image.strides());
        let output = self.output_size(std::array::from_fn(|axis| sizes[2 + axis]))?;
        let (mut shape, mut strides) = ([0; M], [0; M]);
        let mut set = |at: usize, size: usize, stride: isize, times: usize| {
            shape[at] = size;
            // A stride that overflows belongs to an axis of size 1, where it is never used.
            strides[at] = isize::try_from(times).ok().and_then(|n| stride.checked_mul(n)).unwrap_or(0);
        };
        set(0, sizes[0], steps[0], 1);
        set(S + 1, sizes[1], steps[1], 1);
        for axis in 0..S {
            set(1 + axis, output[axis], steps[2 + axis], self.stride[axis]);
            set(S + 2 + axis, self.kernel[axis], steps[2 + axis], self.dilation[axis]);
        }
        Layout::checked("windows", shape, strides)
    }
}

macro_rules! windows {
    ($spatial:literal, $rank:literal, $windows:literal, $axes:literal) => {
        impl<'a, T> TensorView<'a, T, $rank> {
            /// All windows of an image, as
            #[doc = $axes]
            /// , without copying anything. The image is not padded.
            ///
            /// # Errors
            /// As [`Window::output_size`].
            pub fn windows(self, window: &Window<$spatial>) -> Result<TensorView<'a, T, $windows>> {
                let layout = window.layout(self.layout())?;
                // Each window lies inside the image: output_size made sure of it.
                Ok(self.derived(layout))
            }
        }
    };
}

windows!(1, 3, 4, "`[n, ow, c, kw]` of `[n, c, w]`");
windows!(2, 4, 6, "`[n, oh, ow, c, kh, kw]` of `[n, c, h, w]`");
windows!(3, 5, 8, "`[n, od, oh, ow, c, kd, kh, kw]` of `[n, c, d, h, w]`");

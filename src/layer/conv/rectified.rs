//! Outputs that were rectified, and their gradients.

use crate::conv::bias::{LANES, add};
use crate::element::Element;
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{Simd, SimdOp, kernels};

kernels! {
    /// Element types with the mask of rectified outputs.
    pub trait Rectified {
        /// [`Silent`].
        fn silent(isa: Isa, op: Silent<'_, Self>);

        /// [`Rectify`].
        fn rectify(isa: Isa, op: Rectify<'_, Self>);
    }
}

/// Where an output is rectified to 0. A plain loop, here and below: compiled for an instruction set it has its vectors.
pub struct Silent<'s, T> {
    pub y: &'s [T],
    pub to: &'s mut [bool],
}

impl<T: Element> SimdOp<T> for Silent<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, _: S) {
        for (to, &y) in self.to.iter_mut().zip(self.y) {
            *to = y <= T::ZERO;
        }
    }
}

/// Gradients of such outputs become 0. The others are summed up for each plane, a channel of an image, while they are here, as
/// the gradient for the bias is elsewhere; without sums nothing is.
pub struct Rectify<'r, T> {
    pub silent: &'r [bool],
    pub dy: &'r mut [T],
    /// Partial sums of the planes, which are as long as each other.
    pub sums: &'r mut [T],
}

impl<T: Element> SimdOp<T> for Rectify<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, _: S) {
        if self.sums.is_empty() {
            return mask(self.dy, self.silent);
        }
        let plane = self.dy.len() / (self.sums.len() / LANES);
        let planes = self.dy.chunks_exact_mut(plane).zip(self.silent.chunks_exact(plane));
        self.sums.fill(T::ZERO);
        for (sums, (dy, silent)) in self.sums.chunks_exact_mut(LANES).zip(planes) {
            mask(dy, silent);
            // From L1, where the plane is now.
            add(sums, dy);
        }
    }
}

#[inline(always)]
fn mask<T: Element>(dy: &mut [T], silent: &[bool]) {
    for (dy, &silent) in dy.iter_mut().zip(silent) {
        *dy = if silent { T::ZERO } else { *dy };
    }
}

/// [`Rectify`] in `tasks` tasks.
pub(super) fn rectify<T: Element>(isa: Isa, op: Rectify<'_, T>, tasks: usize) {
    let Rectify { silent, dy, sums } = op;
    let planes = sums.len() / LANES;
    if tasks <= 1 || planes <= 1 {
        return T::rectify(isa, Rectify { silent, dy, sums });
    }
    let (plane, middle) = (dy.len() / planes, planes / 2);
    let (silent, silent_high) = silent.split_at(plane * middle);
    let (dy, dy_high) = dy.split_at_mut(plane * middle);
    let (sums, sums_high) = sums.split_at_mut(middle * LANES);
    let (low, high) =
        (Rectify { silent, dy, sums }, Rectify { silent: silent_high, dy: dy_high, sums: sums_high });
    parallel::join(|| rectify(isa, low, tasks / 2), || rectify(isa, high, tasks - tasks / 2));
}

//! Windows that are whole planes, each one piece of memory: a plane is joined to one vector, and the lanes of as many planes as
//! there are lanes are then joined pair by pair, which leaves one vector of results.
#![forbid(unsafe_code)]

use super::forward::scatter;
use super::reduce::Reduction;
use crate::element::Element;
use crate::error::Result;
use crate::simd::{MOST_LANES, Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::scratch;

/// Vectors of a plane that are joined side by side.
const WIDTH: usize = 4;

/// Some images.
pub(super) struct Whole<'w, T, R> {
    pub op: &'static str,
    pub reduction: R,
    /// `[images, channels, elements]`.
    pub planes: TensorView<'w, T, 3>,
    /// `[images, channels, 1, 1, 1]`.
    pub y: TensorViewMut<'w, T, 5>,
    /// By which sums are multiplied.
    pub weight: T,
}

impl<T: Element, R: Reduction<T>> SimdOp<T> for Whole<'_, T, R> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        let Whole { op, reduction, planes, mut y, weight } = self;
        let [images, channels, len] = planes.shape();
        let weight = simd.splat(weight);
        let last = Last::new(simd, len);
        let mut row = scratch::<T>(op, channels)?;
        for image in 0..images {
            let planes = planes.select::<2>(0, image)?;
            for (group, to) in row.chunks_mut(S::LANES).enumerate() {
                let mut sums = [simd.splat(R::NEUTRAL); MOST_LANES];
                for (i, sum) in sums[..to.len()].iter_mut().enumerate() {
                    if let Some(plane) = planes.row(group * S::LANES + i) {
                        *sum = join_plane(simd, reduction, plane, last);
                    }
                }
                let mut count = S::LANES;
                while count > 1 {
                    count /= 2;
                    for i in 0..count {
                        let [even, odd] = simd.deinterleave(sums[2 * i], sums[2 * i + 1]);
                        sums[i] = reduction.join(simd, even, odd);
                    }
                }
                simd.store_up_to(reduction.finish(simd, sums[0], weight), to);
            }
            scatter(
                &row,
                y.view_mut().select::<4>(0, image)?.permute([1, 2, 3, 0])?.matrix_at_mut([0, 0]),
                0,
            );
        }
        Ok(())
    }
}

/// The elements of a plane that fill no vector, where there are some.
#[derive(Clone, Copy)]
struct Last<M> {
    /// Where the vector begins that holds them, behind others where there are.
    at: usize,
    /// Its lanes that hold them.
    lanes: M,
}

impl<M> Last<M> {
    #[inline(always)]
    fn new<T: Element, S: Simd<T, M = M>>(simd: S, len: usize) -> Option<Self> {
        let rest = len % S::LANES;
        let mut lanes = [T::ZERO; MOST_LANES];
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = T::from_usize(i);
        }
        let lanes = simd.load(&lanes);
        (rest > 0).then_some(match len.checked_sub(S::LANES) {
            Some(at) => Last { at, lanes: simd.le(simd.splat(T::from_usize(S::LANES - rest)), lanes) },
            None => Last { at: 0, lanes: simd.lt(lanes, simd.splat(T::from_usize(rest))) },
        })
    }
}

/// A plane's elements, joined to one vector.
#[inline(always)]
fn join_plane<T: Element, S: Simd<T>, R: Reduction<T>>(
    simd: S,
    reduction: R,
    plane: &[T],
    last: Option<Last<S::M>>,
) -> S::V {
    let neutral = simd.splat(R::NEUTRAL);
    let mut sums = [neutral; WIDTH];
    let runs = plane.chunks_exact(WIDTH * S::LANES);
    let rest = runs.remainder().chunks_exact(S::LANES);
    for run in runs {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = reduction.join(simd, *sum, reduction.take(simd, simd.load(&run[i * S::LANES..])));
        }
    }
    for run in rest {
        sums[0] = reduction.join(simd, sums[0], reduction.take(simd, simd.load(run)));
    }
    if let Some(Last { at, lanes }) = last {
        let x = simd.select(lanes, simd.load_up_to(&plane[at..]), neutral);
        sums[1] = reduction.join(simd, sums[1], reduction.take(simd, x));
    }
    let [a, b, c, d] = sums;
    reduction.join(simd, reduction.join(simd, a, b), reduction.join(simd, c, d))
}

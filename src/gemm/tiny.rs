//! Products so small that looking for the best way takes longer than it saves: everything is read where it lies, and what a
//! [`Block`](super::Block) can do beyond that is left out, which takes a third of the time of 16 × 16 × 16.
#![forbid(unsafe_code)]

use super::Operand;
use super::ahead::Ahead;
use super::block::{Place, STRIP, Store, Strips, by_column, complete};
use super::blocking::{LEAST_DEPTH, NEAR, Tile, tile, tile_rows, turns_small};
use super::driver::{self, Scale};
use super::kernel::{Lhs, Rhs, Strip};
use super::panel::Panels;
use super::vector;
use crate::element::Element;
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

/// Multiplications of the largest product that is taken here, 128³.
const MOST: usize = 1 << 21;

/// C = alpha · A · B + beta · C and the epilogue on this thread, if the product is small enough: false where it is not. The shapes
/// have been checked. `tasks` is what a larger product is cut in, `next` a matrix that is asked for meanwhile.
#[inline(always)]
pub(super) fn product<T: Element>(
    isa: Isa,
    a: &Operand<'_, T>,
    b: &Operand<'_, T>,
    scale: &Scale<'_, T>,
    c: &mut TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
    next: Option<&TensorView<'_, T, 2>>,
) -> bool {
    let (Operand::View(a), Operand::View(b)) = (a, b) else { return false };
    let takes = takes(isa, a, b, c, tasks);
    if takes {
        T::tiny(isa, &mut Tiny { a, b, scale, c, next });
    }
    takes
}

/// True for one thread, or so few multiplications that no more than one pays. The depth is one block on any machine, so the sums
/// are added up as over panels; what is made of dot products or turned is so for any number of threads. A lone row or column is a vector.
#[inline(always)]
fn takes<T: Element>(
    isa: Isa,
    a: &TensorView<'_, T, 2>,
    b: &TensorView<'_, T, 2>,
    c: &TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
) -> bool {
    let ([m, n], k) = (c.shape(), a.shape()[1]);
    let work = m.saturating_mul(n).saturating_mul(k);
    m > 1
        && n > 1
        && 0 < k
        && k <= LEAST_DEPTH
        && work <= MOST
        && b.strides()[1] == 1
        && c.strides()[1] == 1
        && a.strides().contains(&1)
        && !(a.strides()[1] == 1 && vector::few_columns::<T>(isa, [m, n, k]))
        && !(a.strides()[1] != 1 && turns_small(tile::<T>(isa), [m, n, k], [a.strides(), b.strides(), c.strides()]))
        // All but the baseline have masks.
        && (isa > Isa::Baseline || tile::<T>(isa).whole(n) == n)
        && match tasks {
            Some(tasks) => tasks == 1,
            // The smallest do not ask how long vectors are.
            None => work < driver::LEAST || parallel::threads_for(work, driver::grain(tile::<T>(isa))) == 1,
        }
}

/// C = alpha · A · B + beta · C and the epilogue, all contiguous along their rows but A, which may be along its columns.
pub struct Tiny<'t, 'c, T> {
    pub(super) a: &'t TensorView<'t, T, 2>,
    pub(super) b: &'t TensorView<'t, T, 2>,
    pub(super) scale: &'t Scale<'t, T>,
    pub(super) c: &'t mut TensorViewMut<'c, T, 2>,
    /// A matrix that is read next.
    pub(super) next: Option<&'t TensorView<'t, T, 2>>,
}

impl<T: Element> SimdOp<T> for &mut Tiny<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        let Tiny { a, b, scale, ref mut c, next } = *self;
        let (shape, depth) = (c.shape(), a.shape()[1]);
        let (a, b) = (Panels::Direct(*a), Panels::Direct(b.transpose()));
        let (alpha, beta) = (scale.alpha, scale.first_beta());
        let epilogue = (!scale.epilogue.is_empty()).then_some(&scale.epilogue);
        let tile_rows = tile_rows(Tile::of::<T, S>(), shape);
        let near = S::TILE_VECTORS * S::LANES * depth * size_of::<T>() <= NEAR;
        let by_column = by_column::<T, S>(shape, tile_rows, near);
        let mut strips = Strips { shape, tile_rows, tall: tile_rows, by_column, longest: STRIP, at: [0, 0] };
        let mut ahead = Ahead::nothing();
        if let Some(next) = next {
            let tiles = shape[0].div_ceil(tile_rows) * shape[1].div_ceil(S::TILE_VECTORS * S::LANES);
            ahead = Ahead::new(*next, tiles, depth);
        }
        while let Some(Place { at, count, height, width }) = strips.next::<T, S>() {
            let of = if by_column { [count, 1] } else { [1, count] };
            let mut c = c.tile_mut(at, [of[0] * height, of[1] * width]);
            let strip = Strip {
                a: Lhs::panels(a, at[0], [of[0], height], tile_rows, depth),
                b: Rhs::panels::<S>(b, at[1], [of[1], width], depth),
                count,
                height,
                down: by_column,
                depth,
                alpha,
                beta,
                store: Store::Near,
                tail: None,
                ahead: &mut ahead,
                c: &mut c,
            };
            complete(simd, strip, epilogue, at);
        }
    }
}

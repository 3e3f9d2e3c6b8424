//! The first tile of a column over a B in place, whose panel is packed meanwhile for the tiles below. In place these would wait for
//! it as long as the first: a vector that is part of two cache lines is two reads, and steps far apart share sets of L1.

use super::kernel::{Lhs, Narrow, ROWS, Rhs, SUMS, VECTORS, each, no_such_tile};
use super::step::{moved, outer, row};
use crate::element::Element;
use crate::simd::{Simd, SimdOp};
use crate::tensor::TensorViewMut;

/// c = alpha · a · b + beta · c for one whole tile; b is kept.
pub(super) struct Keep<'t, 'c, T> {
    pub(super) a: Lhs<'t, T>,
    pub(super) b: Rhs<'t, T>,
    pub(super) height: usize,
    pub(super) depth: usize,
    pub(super) alpha: T,
    pub(super) beta: Option<T>,
    /// Becomes the panel: step after step.
    pub(super) panel: &'t mut [T],
    /// Contiguous rows.
    pub(super) c: &'t mut TensorViewMut<'c, T, 2>,
}

impl<T: Element> Keep<'_, '_, T> {
    /// Chooses the kernel for the tile's rows and kind of A.
    #[inline(always)]
    pub(super) fn run<S: Simd<T>>(mut self, simd: S) {
        macro_rules! kernels {
            ($($rows:literal)*) => {
                match self.height {
                    $($rows => if const { $rows <= S::TILE_ROWS } {
                        if self.a.packed() {
                            simd.call(Kernel::<T, $rows, true>(&mut self));
                        } else {
                            simd.call(Kernel::<T, $rows, false>(&mut self));
                        }
                    } else {
                        no_such_tile()
                    },)*
                    _ => no_such_tile(),
                }
            };
        }
        const { assert!(S::TILE_ROWS <= ROWS) };
        kernels!(1 2 3 4 5 6);
    }
}

/// The kernel for `R` rows.
struct Kernel<'k, 't, 'c, T, const R: usize, const PACKED: bool>(&'k mut Keep<'t, 'c, T>);

impl<T: Element, const R: usize, const PACKED: bool> SimdOp<T> for Kernel<'_, '_, '_, T, R, PACKED> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        match const { S::TILE_VECTORS } {
            2 => tile::<T, S, R, 2, PACKED>(simd, self.0),
            _ => tile::<T, S, R, VECTORS, PACKED>(simd, self.0),
        }
    }
}

#[inline(always)]
fn tile<T: Element, S: Simd<T>, const R: usize, const V: usize, const PACKED: bool>(
    simd: S,
    keep: &mut Keep<'_, '_, T>,
) {
    let Keep { a, b, depth, alpha, beta, ref mut panel, ref mut c, .. } = *keep;
    let width = V * S::LANES;
    assert!(V == S::TILE_VECTORS && a.holds(R, PACKED, depth) && b.holds(width, depth));
    let ((mut at, lines, a_step), (mut bt, b_step)) = (a.begin::<R>(PACKED), b.begin());
    let mut sums = [[simd.splat(T::ZERO); V]; R];
    for to in panel.chunks_exact_mut(width).take(depth) {
        // SAFETY: asserted above: this step of B exists, with `V` vectors.
        let vectors = unsafe { row::<T, S, V, false>(simd, bt, S::LANES) };
        // Before A is read: the compiler does not move that beyond a write, and would keep all of it in registers.
        each!(v in vectors V {
            simd.store(vectors[v], &mut to[v * S::LANES..]);
        });
        // SAFETY: asserted above: this step of A exists, with `R` lines.
        unsafe { outer::<T, S, R, V, PACKED>(simd, at, lines, vectors, &mut sums) };
        at = moved(at, a_step);
        bt = bt.wrapping_offset(b_step);
    }
    let mut beside = [T::ZERO; SUMS];
    each!(i in rows R {
        each!(v in vectors V {
            simd.store(sums[i][v], &mut beside[(i * V + v) * S::LANES..]);
        });
    });
    Narrow { sums: &beside[..R * width], width, alpha, beta, c: c.view_mut() }.eval(simd);
}

#[cfg(test)]
mod tests {
    use crate::activation::Activation;
    use crate::gemm::{Bias, Gemm, Packed};
    use crate::machine::{supported, with_isa};
    use crate::{Element, Tensor, TensorView, reference};

    /// Any step is allowed along an axis of one element.
    #[test]
    fn a_step_that_is_never_taken_may_be_any() {
        let ones = Tensor::<f32, 2>::full([1, 200], 1.0).unwrap();
        let packed = Packed::rhs(ones.view()).unwrap();
        let a = TensorView::as_strided(ones.as_slice(), [200, 1], [1, isize::MAX]).unwrap();
        let mut c = Tensor::<f32, 2>::zeros([200, 200]).unwrap();
        Gemm::new().run(a, &packed, c.view_mut()).unwrap();
        assert!(c.iter().all(|&c| c == 1.0));
        let mut c = Tensor::<f32, 2>::zeros([200, 200]).unwrap();
        Gemm::new().run(a, ones.view(), c.view_mut()).unwrap();
        assert!(c.iter().all(|&c| c == 1.0));
    }

    /// B as it lies, and one element further, where its panels are kept: the bits are the same. Small whole numbers: sums are exact in
    /// any order.
    #[test]
    fn a_panel_that_is_kept_gives_the_same() {
        fn check<T: Element>([m, n, k]: [usize; 3], step: isize) {
            let number = |i: usize, by: usize| T::from_f64(((i * by) % 11) as f64 - 5.0);
            let a: Vec<T> = (0..m * k).map(|i| number(i, 7)).collect();
            let stored = n + 9;
            let line = 64 / size_of::<T>();
            let b: Vec<T> = (0..line + (k + 1) * stored).map(|i| number(i, 5)).collect();
            let bias: Vec<T> = (0..n).map(|i| number(i, 3)).collect();
            let a = match step {
                1 => TensorView::from_slice(&a, [m, k]).unwrap(),
                _ => TensorView::from_slice(&a, [k, m]).unwrap().transpose(),
            };
            for from in [0, 1, line - 1] {
                let b = TensorView::from_slice(&b[from..][..k * stored], [k, stored]).unwrap();
                let b = b.tile([0, 0], [k, n]);
                let c = Tensor::from_fn([m, n], |[i, j]| number(i + j, 1)).unwrap();
                let expected = reference::gemm(T::ONE, a, b, T::ONE, c.view()).unwrap();
                for &isa in supported() {
                    let mut c = c.view().to_tensor().unwrap();
                    let product = Gemm::new()
                        .beta(T::ONE)
                        .bias(Bias::PerColumn(TensorView::from_slice(&bias, [n]).unwrap()))
                        .activation(Activation::Relu);
                    with_isa(isa, || product.run(a, b, c.view_mut())).unwrap().unwrap();
                    for (i, (c, expected)) in c.iter().zip(expected.iter()).enumerate() {
                        let expected = (expected.to_f64() + bias[i % n].to_f64()).max(0.0);
                        assert!(c.to_f64() == expected, "{isa} {m} {n} {k} from {from}: {i}");
                    }
                }
            }
        }
        for m in [13, 25, 31, 49, 60] {
            for (n, k) in [(320, 300), (331, 257), (256, 256)] {
                check::<f32>([m, n, k], 1);
                check::<f64>([m, n, k], 1);
            }
        }
        for m in [97, 144] {
            check::<f32>([m, 331, 257], 1);
        }
        check::<f32>([60, 320, 300], 0);
        check::<f64>([31, 331, 300], 0);
    }
}

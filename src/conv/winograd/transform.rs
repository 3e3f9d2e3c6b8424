//! The transforms of F(2 × 2, 3 × 3) and F(4 × 4, 3 × 3), for a vector of channels of a tile, or of filters, at a time.
//!
//! With points 0, ±1, (±2,) ∞: y = Aᵀ ((G g Gᵀ) ⊙ (Bᵀ d B)) A.
#![forbid(unsafe_code)]

use crate::element::Element;
use crate::simd::Simd;

/// Points along an axis at most.
pub(super) const POINTS: usize = 6;

/// Rows of vectors, of which the transforms use as many as they have points.
pub(super) type Square<V> = [[V; POINTS]; POINTS];

/// A vector for each number that the transforms multiply by.
struct Constants<S, V> {
    simd: S,
    two: V,
    four: V,
    five: V,
}

macro_rules! transforms {
    ($(#[$doc:meta])* $name:ident, $rows:expr, $columns:expr, |$c:ident, $x:ident| $two:expr, $four:expr) => {
        $(#[$doc])*
        /// `O`, 2 or 4, outputs along an axis. Works on rows, then on columns, in place.
        #[inline(always)]
        pub(super) fn $name<T: Element, S: Simd<T>, const O: usize>(simd: S, square: &mut Square<S::V>) {
            let splat = |x: f64| simd.splat(T::from_f64(x));
            let $c = Constants { simd, two: splat(2.0), four: splat(4.0), five: splat(5.0) };
            for i in 0..$rows {
                let $x = square[i];
                square[i] = if O == 2 { $two } else { $four };
            }
            for j in 0..$columns {
                let $x = [square[0][j], square[1][j], square[2][j], square[3][j], square[4][j], square[5][j]];
                let column = if O == 2 { $two } else { $four };
                for i in 0..POINTS {
                    square[i][j] = column[i];
                }
            }
        }
    };
}

transforms!(
    /// Bᵀ d B: the patch of a tile, (outputs + 2)² elements.
    input, O + 2, O + 2, |c, x| {
        let s = c.simd;
        [s.sub(x[0], x[2]), s.add(x[1], x[2]), s.sub(x[2], x[1]), s.sub(x[1], x[3]), x[4], x[5]]
    }, {
        let s = c.simd;
        let (even, odd) = (s.neg_mul_add(c.four, x[2], x[4]), s.neg_mul_add(c.four, x[1], x[3]));
        let (low, high) = (s.sub(x[4], x[2]), s.mul(c.two, s.sub(x[3], x[1])));
        [
            s.mul_add(c.four, x[0], s.neg_mul_add(c.five, x[2], x[4])),
            s.add(even, odd),
            s.sub(even, odd),
            s.add(low, high),
            s.sub(low, high),
            s.mul_add(c.four, x[1], s.neg_mul_add(c.five, x[3], x[5])),
        ]
    }
);

transforms!(
    /// Aᵀ m A: the products of a tile, (outputs + 2)², to its outputs².
    output, O + 2, O, |c, x| {
        let s = c.simd;
        let (sum, difference) = (s.add(x[1], x[2]), s.sub(x[1], x[2]));
        [s.add(x[0], sum), s.sub(difference, x[3]), x[2], x[3], x[4], x[5]]
    }, {
        let s = c.simd;
        let (sum, difference) = (s.add(x[1], x[2]), s.sub(x[1], x[2]));
        let (sum2, difference2) = (s.add(x[3], x[4]), s.mul(c.two, s.sub(x[3], x[4])));
        [
            s.add(s.add(x[0], sum), sum2),
            s.add(difference, difference2),
            s.mul_add(c.four, sum2, sum),
            s.add(s.mul_add(c.four, difference2, difference), x[5]),
            x[4],
            x[5],
        ]
    }
);

transforms!(
    /// A dy Aᵀ: the gradients of a tile, outputs², for its points, (outputs + 2)².
    gradient, O, O + 2, |c, x| {
        let s = c.simd;
        [x[0], s.add(x[0], x[1]), s.sub(x[0], x[1]), s.neg(x[1]), x[4], x[5]]
    }, {
        let s = c.simd;
        let (even, odd) = (s.add(x[0], x[2]), s.add(x[1], x[3]));
        let (even2, odd2) = (s.mul_add(c.four, x[2], x[0]), s.mul(c.two, s.mul_add(c.four, x[3], x[1])));
        [x[0], s.add(even, odd), s.sub(even, odd), s.add(even2, odd2), s.sub(even2, odd2), x[3]]
    }
);

/// G g Gᵀ of 3 × 3 filters.
#[inline(always)]
pub(super) fn filter<T: Element, S: Simd<T>, const O: usize>(simd: S, square: &mut Square<S::V>) {
    let splat = |x: f64| simd.splat(T::from_f64(x));
    let (half, quarter, sixth, twelfth, twenty_fourth) =
        (splat(0.5), splat(0.25), splat(-1.0 / 6.0), splat(1.0 / 12.0), splat(1.0 / 24.0));
    macro_rules! line {
        ($x:expr) => {{
            let x = $x;
            let even = simd.add(x[0], x[2]);
            if O == 2 {
                let even = simd.mul(half, even);
                let odd = simd.mul(half, x[1]);
                [x[0], simd.add(even, odd), simd.sub(even, odd), x[2], x[4], x[5]]
            } else {
                let outer =
                    simd.mul_add(twenty_fourth, x[0], simd.neg_mul_add(sixth, x[2], simd.splat(T::ZERO)));
                let (even, inner) = (simd.mul(sixth, even), simd.mul(twelfth, x[1]));
                let middle = simd.mul(sixth, x[1]);
                [
                    simd.mul(quarter, x[0]),
                    simd.add(even, middle),
                    simd.sub(even, middle),
                    simd.add(outer, inner),
                    simd.sub(outer, inner),
                    x[2],
                ]
            }
        }};
    }
    for row in square.iter_mut().take(3) {
        *row = line!(*row);
    }
    for j in 0..O + 2 {
        let column =
            line!([square[0][j], square[1][j], square[2][j], square[3][j], square[4][j], square[5][j]]);
        for i in 0..POINTS {
            square[i][j] = column[i];
        }
    }
}

/// Gᵀ m G: the gradients of 3 × 3 filters, from those of their points, which lie `point` apart. `P` points along an axis.
#[inline(always)]
pub(in crate::conv) fn weights<T: Element, S: Simd<T>, const P: usize>(
    simd: S,
    from: &[T],
    point: usize,
) -> [S::V; 9] {
    let splat = |x: f64| simd.splat(T::from_f64(x));
    let (half, quarter, sixth, twelfth, twenty_fourth) =
        (splat(0.5), splat(0.25), splat(1.0 / 6.0), splat(1.0 / 12.0), splat(1.0 / 24.0));
    macro_rules! line {
        ($x:expr) => {{
            let x = $x;
            let (sum, difference) = (simd.add(x[1], x[2]), simd.sub(x[1], x[2]));
            if P == 4 {
                [simd.mul_add(half, sum, x[0]), simd.mul(half, difference), simd.mul_add(half, sum, x[3])]
            } else {
                let (sum2, difference2) = (simd.add(x[3], x[4]), simd.sub(x[3], x[4]));
                let outer = simd.neg_mul_add(sixth, sum, simd.mul(twenty_fourth, sum2));
                [
                    simd.mul_add(quarter, x[0], outer),
                    simd.neg_mul_add(sixth, difference, simd.mul(twelfth, difference2)),
                    simd.mul_add(sixth, simd.sub(sum2, sum), x[5]),
                ]
            }
        }};
    }
    let zero = simd.splat(T::ZERO);
    let mut rows = [[zero; 3]; POINTS];
    for (i, row) in rows.iter_mut().enumerate().take(P) {
        let mut points = [zero; POINTS];
        points[..P].copy_from_slice(&simd.load_apart::<P>(&from[P * i * point..], point));
        *row = line!(points);
    }
    let mut taps = [zero; 9];
    for j in 0..3 {
        let column = line!([rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]]);
        for i in 0..3 {
            taps[3 * i + j] = column[i];
        }
    }
    taps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;
    use crate::simd::{Dispatch, SimdOp};

    /// One tile and one filter in every lane.
    struct One<const O: usize> {
        patch: [[f64; 6]; 6],
        filter: [[f64; 3]; 3],
    }

    impl<const O: usize> SimdOp<f64> for One<O> {
        type Output = [[f64; 4]; 4];
        #[inline(always)]
        fn eval<S: Simd<f64>>(self, simd: S) -> [[f64; 4]; 4] {
            let zero = simd.splat(0.0);
            let (mut d, mut g) = ([[zero; 6]; 6], [[zero; 6]; 6]);
            let points = O + 2;
            for i in 0..points {
                for j in 0..points {
                    d[i][j] = simd.splat(self.patch[i][j]);
                }
            }
            for i in 0..3 {
                for j in 0..3 {
                    g[i][j] = simd.splat(self.filter[i][j]);
                }
            }
            input::<f64, S, O>(simd, &mut d);
            filter::<f64, S, O>(simd, &mut g);
            for i in 0..points {
                for j in 0..points {
                    d[i][j] = simd.mul(d[i][j], g[i][j]);
                }
            }
            output::<f64, S, O>(simd, &mut d);
            std::array::from_fn(|i| std::array::from_fn(|j| simd.reduce_max(d[i][j])))
        }
    }

    #[test]
    fn transforms_make_the_correlation() {
        let patch = std::array::from_fn(|i| std::array::from_fn(|j| ((i * 7 + j * 5) % 11) as f64 - 4.0));
        let filter = [[1.0, -2.0, 3.0], [0.5, 4.0, -1.0], [-3.0, 2.0, 0.25]];
        for &isa in machine::supported() {
            let both = [
                (2, f64::dispatch(isa, One::<2> { patch, filter })),
                (4, f64::dispatch(isa, One::<4> { patch, filter })),
            ];
            for (outputs, y) in both {
                for i in 0..outputs {
                    for j in 0..outputs {
                        let taps = (0..9).map(|t| filter[t / 3][t % 3] * patch[i + t / 3][j + t % 3]);
                        let expected: f64 = taps.sum();
                        assert!((y[i][j] - expected).abs() < 1e-12, "{isa} {outputs} {i} {j}");
                    }
                }
            }
        }
    }
}

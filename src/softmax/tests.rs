//! Softmax against the scalar reference: layouts, axes, extremes, gradients, threads.

use super::*;
use crate::machine::{supported, with_isa};
use crate::reference::softmax as reference;
use quickcheck::quickcheck;

/// Both kinds along an axis.
fn kinds(axis: usize) -> [Softmax; 2] {
    [Softmax::new(axis), Softmax::new(axis).logarithm()]
}

/// |y − exact| against what the module promises: (6 + |x − m|)·ε relative, the sum of n terms among it, and
/// for the logarithm, whose value is x − m − ln s, the same absolutely; terms below the smallest normal count
/// as 0.
fn forward_is_close<T: Element, const N: usize>(
    softmax: Softmax,
    x: TensorView<'_, T, N>,
    y: TensorView<'_, T, N>,
) -> bool {
    let exact = reference::forward(x, softmax.axis, softmax.logarithm).unwrap();
    let tiny = if size_of::<T>() == 4 { 2f64.powi(-126) } else { 2f64.powi(-1022) };
    let n = x.shape()[softmax.axis] as f64;
    y.iter().zip(&exact).all(|(&y, &exact)| {
        let (y, exact) = (y.to_f64(), exact.to_f64());
        if y == exact || y.is_nan() && exact.is_nan() {
            return true;
        }
        if exact.is_infinite() {
            return false;
        }
        let logarithm = if softmax.logarithm { exact } else { exact.max(tiny).ln() };
        let epsilon = T::EPSILON.to_f64() * (6.0 + n / 16.0 + 2.0 * logarithm.abs());
        (y - exact).abs() <= if softmax.logarithm { epsilon } else { epsilon * exact + 2.0 * tiny }
    })
}

fn backward_is_close<T: Element, const N: usize>(
    softmax: Softmax,
    y: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
    dx: TensorView<'_, T, N>,
) -> bool {
    let exact = reference::backward(y, dy, softmax.axis, softmax.logarithm).unwrap();
    let largest = dy.iter().fold(0.0f64, |most, dy| most.max(dy.to_f64().abs()));
    let n = y.shape()[softmax.axis] as f64;
    dx.iter().zip(&exact).zip(y.iter()).all(|((&dx, &exact), &y)| {
        // The sum's error is at most n·ε times its terms', Σ |dy|·y ≤ max |dy|, or Σ |dy| ≤ n·max |dy|.
        let y = if softmax.logarithm { y.to_f64().exp() * n } else { y.to_f64() };
        let size = largest * y * (8.0 + n / 8.0) + exact.to_f64().abs() * 4.0;
        (dx.to_f64() - exact.to_f64()).abs() <= T::EPSILON.to_f64() * size + 1e-37
    })
}

/// Numbers in about ±8, unlike each other.
fn numbers<T: Element, const N: usize>(shape: [usize; N], seed: usize) -> Tensor<T, N> {
    let mut state = seed as u32;
    Tensor::from_fn(shape, |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        T::from_f64(f64::from(state >> 8) / f64::from(1 << 20) - 8.0)
    })
    .unwrap()
}

fn check<T: Element, const N: usize>(x: TensorView<'_, T, N>, axis: usize) -> bool {
    let dy = numbers::<T, N>(x.shape(), 5);
    kinds(axis).into_iter().all(|softmax| {
        let y = softmax.forward(x).unwrap();
        let dx = softmax.backward(y.view(), dy.view()).unwrap();
        forward_is_close(softmax, x, y.view()) && backward_is_close(softmax, y.view(), dy.view(), dx.view())
    })
}

#[test]
fn every_length_of_row_and_block_of_columns() {
    for &isa in supported() {
        for n in (0..=70).chain([127, 128, 129, 255, 256, 257, 1000]) {
            with_isa(isa, || {
                assert!(check(numbers::<f32, 2>([3, n], n).view(), 1), "rows of {n} on {isa}");
                assert!(check(numbers::<f64, 2>([3, n], n).view(), 1), "rows of {n} on {isa}");
                assert!(check(numbers::<f32, 2>([5, n], n).view(), 0), "{n} columns on {isa}");
                assert!(check(numbers::<f64, 2>([5, n], n).view(), 0), "{n} columns on {isa}");
                assert!(check(numbers::<f32, 3>([2, n, 3], n).view(), 1), "columns of {n} on {isa}");
            })
            .unwrap();
        }
    }
}

quickcheck! {
    fn any_layout_and_axis(sizes: (u8, u8, u8, u8), layout: u8, order: u8, axis: u8) -> bool {
        let shape = [sizes.0 % 4, sizes.1 % 6, sizes.2 % 19, sizes.3 % 40].map(usize::from);
        let double = shape.map(|n| 2 * n);
        let axis = axis as usize % 4;
        let orders = [[0, 1, 2, 3], [0, 2, 3, 1], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [0, 3, 1, 2]];
        let order = orders[order as usize % orders.len()];
        let large = numbers::<f32, 4>(double, 3);
        let mut x = large.view();
        for (at, &n) in shape.iter().enumerate() {
            // Gaps, steps and flips, an axis each.
            x = if layout >> at & 1 == 0 { x.slice(at, ..n, 1) } else { x.slice(at, .., 2) }.unwrap();
            if layout >> (4 + at) & 1 != 0 { x = x.flip(at).unwrap(); }
        }
        let x = x.permute(order).unwrap();
        let dense = x.to_tensor().unwrap();
        // The output laid out in yet another way, between canaries.
        let mut out = Tensor::<f32, 4>::full(double, 77.0).unwrap();
        kinds(axis).into_iter().all(|softmax| {
            out.view_mut().fill(77.0);
            let mut y = out.view_mut();
            for (at, &n) in shape.iter().enumerate() { y = y.slice(at, ..n, 1).unwrap(); }
            softmax.forward_into(x, y.permute(order).unwrap()).unwrap();
            let untouched = out.iter().filter(|&&y| y == 77.0).count() == out.len() - dense.len();
            let mut y = out.view();
            for (at, &n) in shape.iter().enumerate() { y = y.slice(at, ..n, 1).unwrap(); }
            let y = y.permute(order).unwrap();
            let dx = softmax.backward(y, x).unwrap();
            untouched && forward_is_close(softmax, x, y) && backward_is_close(softmax, y, x, dx.view())
        })
    }
}

#[test]
fn extremes() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows: [[f32; 4]; 10] = [
        [1e4, -1e4, 0.0, 1e4],
        [f32::MAX, f32::MAX, -f32::MAX, 0.0],
        [-f32::MAX; 4],
        [-inf, 0.0, -inf, 0.0],
        [-inf, -inf, -inf, -3e38],
        [-87.0, 0.0, -88.0, -104.0],
        [-inf; 4],
        [inf, 0.0, 1.0, 2.0],
        [0.0, nan, 1.0, 2.0],
        [f32::from_bits(0x7F80_00FF), -inf, -inf, -inf],
    ];
    for &isa in supported() {
        for row in rows {
            // As a row alone, in a long row of −∞, and as a column.
            let mut long = vec![-inf; 70];
            long[33..37].copy_from_slice(&row);
            for x in [row.to_vec(), long] {
                let spoilt = x.iter().any(|x| x.is_nan() || *x == inf) || x.iter().all(|&x| x == -inf);
                for softmax in kinds(0) {
                    let rows = Tensor::from_slice(&x, [x.len()]).unwrap();
                    let columns = Tensor::from_fn([x.len(), 5], |[i, _]| x[i]).unwrap();
                    let y = with_isa(isa, || softmax.forward(rows.view())).unwrap().unwrap();
                    let z = with_isa(isa, || softmax.forward(columns.view())).unwrap().unwrap();
                    assert!(
                        forward_is_close(softmax, rows.view(), y.view()),
                        "{softmax:?} {x:?}: {:?}",
                        y.as_slice()
                    );
                    assert!(
                        forward_is_close(softmax, columns.view(), z.view()),
                        "{softmax:?} {x:?}, columns"
                    );
                    assert_eq!(y.iter().all(|y| y.is_nan()), spoilt, "{softmax:?} {x:?}: {:?}", y.as_slice());
                }
            }
        }
    }
    let masked = Tensor::<f64, 1>::from_slice(&[0.0, f64::NEG_INFINITY], [2]).unwrap();
    assert_eq!(Softmax::new(0).forward(masked.view()).unwrap().as_slice(), [1.0, 0.0]);
    let logarithms = Softmax::new(0).logarithm().forward(masked.view()).unwrap();
    assert_eq!(logarithms.as_slice(), [0.0, f64::NEG_INFINITY]);
}

#[test]
fn gradients_are_the_slopes() {
    let x = numbers::<f64, 3>([3, 5, 4], 1);
    let weights = numbers::<f64, 3>([3, 5, 4], 2);
    let h = 1e-6;
    for axis in 0..3 {
        for softmax in kinds(axis) {
            let objective = |x: &Tensor<f64, 3>| -> f64 {
                let y = softmax.forward(x.view()).unwrap();
                y.iter().zip(&weights).map(|(y, w)| y * w).sum()
            };
            let y = softmax.forward(x.view()).unwrap();
            let dx = softmax.backward(y.view(), weights.view()).unwrap();
            for at in 0..x.len() {
                let moved = |by: f64| {
                    let mut x = x.view().to_tensor().unwrap();
                    x.as_mut_slice()[at] += by;
                    objective(&x)
                };
                let slope = (moved(h) - moved(-h)) / (2.0 * h);
                assert!((dx.as_slice()[at] - slope).abs() < 1e-7, "{softmax:?} {at}: {slope}");
            }
        }
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let shapes = [[2000, 1, 37], [3, 700, 50], [1, 300, 901], [200, 300, 1]];
    for (shape, axis) in shapes.into_iter().flat_map(|shape| [(shape, 1), (shape, 2)]) {
        let x = numbers::<f32, 3>(shape, 9);
        // Contiguous, and with axes that do not merge.
        let odd = numbers::<f32, 3>([shape[0] + 1, shape[1] + 2, 2 * shape[2]], 9);
        let mut view = odd.view().slice(2, .., 2).unwrap();
        for (at, &n) in shape.iter().enumerate().take(2) {
            view = view.slice(at, ..n, 1).unwrap();
        }
        for (x, softmax) in [x.view(), view].into_iter().flat_map(|x| kinds(axis).map(|kind| (x, kind))) {
            let results = [1, 2, 3, 8].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let y = softmax.forward(x).unwrap();
                    let dx = softmax.backward(y.view(), x).unwrap();
                    (y, dx)
                })
            });
            assert!(results.iter().all(|result| *result == results[0]), "{softmax:?} {shape:?}");
        }
    }
}

#[test]
fn a_row_alone_has_the_bits_it_has_in_a_batch() {
    let x = numbers::<f32, 2>([33, 100], 4);
    for softmax in kinds(1) {
        let all = softmax.forward(x.view()).unwrap();
        for at in 0..33 {
            let row = softmax.forward(x.view().slice(0, at..at + 1, 1).unwrap()).unwrap();
            assert_eq!(row.as_slice(), &all.as_slice()[100 * at..100 * (at + 1)]);
        }
    }
}

#[test]
fn wrong_arguments_are_errors_and_write_nothing() {
    let x = Tensor::<f32, 2>::zeros([2, 3]).unwrap();
    let mut y = Tensor::<f32, 2>::full([3, 2], 7.0).unwrap();
    let softmax = Softmax::new(1);
    let shape = |op, arg| Err(Error::shape(op, arg, &[3, 2], &[2, 3]));
    assert_eq!(softmax.forward_into(x.view(), y.view_mut()), shape("softmax::forward", "y"));
    assert_eq!(softmax.backward_into(x.view(), x.view(), y.view_mut()), shape("softmax::backward", "dx"));
    assert_eq!(softmax.backward(x.view(), y.view()).map(drop), shape("softmax::backward", "dy"));
    assert_eq!(y.as_slice(), [7.0; 6]);
    let error = Softmax::new(2).forward(x.view()).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "softmax::forward: axis is 2 at rank 2, expected less than the rank");
    let scalar = Tensor::<f32, 0>::zeros([]).unwrap();
    assert!(matches!(Softmax::new(0).forward(scalar.view()), Err(Error::Argument { .. })));
    for shape in [[0, 3], [3, 0]] {
        let empty = Tensor::<f32, 2>::zeros(shape).unwrap();
        assert!(Softmax::new(1).forward(empty.view()).unwrap().is_empty());
        assert!(Softmax::new(0).backward(empty.view(), empty.view()).unwrap().is_empty());
    }
}

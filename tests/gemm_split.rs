//! Products whose depth is split among threads: the bits are those of one thread, which adds up as it goes.

mod common;

use common::{Strided, bits, in_pools, value, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::activation::Activation;
use tilewise::gemm::{Bias, Gemm, Operand, Packed, gemm};
use tilewise::machine;
use tilewise::{Element, Tensor, TensorView, reference};

fn sample<T: Element>(shape: [usize; 2], seed: u64) -> Tensor<T, 2> {
    let mut g = Gen::from_size_and_seed(100, seed);
    Tensor::from_fn(shape, |_| value(&mut g)).unwrap()
}

/// One product with every option on every instruction set, in pools of 1 (the ordinary path), 2, 3 and 8 threads.
fn check<T: Element>(g: &mut Gen, [m, n, k]: [usize; 3]) {
    let a: Strided<T, 2> = Strided::random(g, [m, k]);
    let b: Strided<T, 2> = Strided::random(g, [k, n]);
    let c: Strided<T, 2> = Strided::random(g, [m, n]);
    let residual: Strided<T, 2> = Strided::random(g, [m, n]);
    let per_row = bool::arbitrary(g);
    let bias: Strided<T, 1> = Strided::random(g, [if per_row { m } else { n }]);
    let (alpha, beta) = (value(g), if bool::arbitrary(g) { T::ZERO } else { value(g) });
    let activation = *g.choose(&[Activation::Identity, Activation::Relu, Activation::Tanh]).unwrap();
    let mut options = Gemm::new().alpha(alpha).beta(beta).activation(activation);
    if bool::arbitrary(g) {
        let bias = bias.view();
        options = options.bias(if per_row { Bias::PerRow(bias) } else { Bias::PerColumn(bias) });
    }
    if bool::arbitrary(g) {
        options = options.residual(residual.view());
    }
    for &isa in machine::supported() {
        let (lhs, rhs) =
            machine::with_isa(isa, || (Packed::lhs(a.view()).unwrap(), Packed::rhs(b.view()).unwrap()))
                .unwrap();
        let operands: [(Operand<T>, Operand<T>); 4] = [
            (a.view().into(), b.view().into()),
            (a.view().into(), (&rhs).into()),
            ((&lhs).into(), b.view().into()),
            ((&lhs).into(), (&rhs).into()),
        ];
        for (which, (a, b)) in operands.into_iter().enumerate() {
            let results = in_pools(|| {
                let mut c = c.clone();
                if beta == T::ZERO {
                    c.view_mut().fill(T::NAN);
                }
                machine::with_isa(isa, || options.run(a, b, c.view_mut())).unwrap().unwrap();
                assert!(c.canaries_live(), "a gap of C was written");
                bits(c.view().to_tensor().unwrap().as_slice())
            });
            for (threads, result) in [2, 3, 8].iter().zip(&results[1..]) {
                assert!(*result == results[0], "{isa} {m}x{n}x{k} operands {which} {threads} threads");
            }
        }
    }
}

#[test]
fn the_same_bits_as_on_one_thread() {
    let mut g = Gen::from_size_and_seed(100, 31);
    for shape in [
        [16, 16, 20000],
        [36, 30, 3000],
        [1, 1, 9001],
        [12, 32, 8192],
        [2, 3, 5000],
        [17, 5, 12345],
        [33, 40, 7000],
    ] {
        for _ in 0..3 {
            check::<f32>(&mut g, shape);
            check::<f64>(&mut g, shape);
        }
    }
    for _ in 0..10 {
        let (m, n) = (within(&mut g, 1..50), within(&mut g, 1..50));
        let k = within(&mut g, 1000..7000);
        check::<f32>(&mut g, [m, n, k]);
        check::<f64>(&mut g, [n, m, k]);
    }
}

/// So deep that the partial products are taken in rounds: more than 2²⁰ elements of them.
#[test]
fn rounds_have_the_same_bits() {
    let (m, n, k) = (96, 64, 70_000);
    let (a, b, start) = (sample::<f32>([m, k], 1), sample::<f32>([k, n], 2), sample::<f32>([m, n], 3));
    let results = in_pools(|| {
        let mut c = start.view().to_tensor().unwrap();
        let options = Gemm::new().alpha(0.7).beta(0.3).activation(Activation::Tanh);
        options.run(a.view(), b.view(), c.view_mut()).unwrap();
        bits(c.as_slice())
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

/// The last round is one block of a single step: rounds of 2¹⁸ elements, blocks of 256 steps.
#[test]
fn a_lone_short_block_is_a_round() {
    for (m, n) in [(12, 256), (12, 64), (32, 64)] {
        let k = (1 << 18) / (m * n) * 256 + 1;
        let (a, b) = (sample::<f32>([m, k], 11), sample::<f32>([k, n], 12));
        for &isa in machine::supported() {
            let results = in_pools(|| {
                let mut c = Tensor::zeros([m, n]).unwrap();
                machine::with_isa(isa, || gemm(1.0, a.view(), b.view(), 0.0, c.view_mut())).unwrap().unwrap();
                bits(c.as_slice())
            });
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{isa} {m}x{n}x{k}");
        }
    }
}

#[test]
fn a_row_over_packed_weights_has_the_same_bits_alone() {
    let (m, n, k) = (17, 40, 20_000);
    let (a, b) = (sample::<f32>([m, k], 9), sample::<f32>([k, n], 10));
    for &isa in machine::supported() {
        let packed = machine::with_isa(isa, || Packed::rhs(b.view()).unwrap()).unwrap();
        let results = in_pools(|| {
            let product = |rows: TensorView<'_, f32, 2>| {
                let mut c = Tensor::<f32, 2>::zeros([rows.shape()[0], n]).unwrap();
                machine::with_isa(isa, || gemm(1.5, rows, &packed, 0.0, c.view_mut())).unwrap().unwrap();
                bits(c.as_slice())
            };
            let rows = (0..m).flat_map(|i| product(a.view().slice(0, i..i + 1, 1).unwrap()));
            (product(a.view()), rows.collect::<Vec<_>>())
        });
        for (batch, rows) in &results {
            assert_eq!(batch, rows, "{isa}");
            assert_eq!(batch, &results[0].0, "{isa}");
        }
    }
}

#[test]
fn close_to_the_scalar_twin() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let (m, n, k) = (7, 21, 30_000);
    let (a, b, c) = (sample::<f32>([m, k], 4), sample::<f32>([k, n], 5), sample::<f32>([m, n], 6));
    let expected = reference::gemm(1.5, a.view(), b.view(), -0.5, c.view()).unwrap();
    let size = reference::magnitude(1.5, a.view(), b.view(), -0.5, c.view()).unwrap();
    for &isa in machine::supported() {
        let mut found = c.view().to_tensor().unwrap();
        pool.install(|| machine::with_isa(isa, || gemm(1.5, a.view(), b.view(), -0.5, found.view_mut())))
            .unwrap()
            .unwrap();
        for ((&x, &y), &size) in found.iter().zip(&expected).zip(&size) {
            let bound = 2.0 * f64::from(f32::EPSILON) * (k as f64 + 4.0) * size;
            assert!((f64::from(x) - y).abs() <= bound, "{isa} {x} {y}");
        }
    }
}

#[test]
fn infinity_and_nan_propagate() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let (mut a, b) = (sample::<f32>([4, 30_000], 7), sample::<f32>([30_000, 8], 8));
    *a.get_mut([1, 20_000]).unwrap() = f32::NAN;
    *a.get_mut([2, 29_999]).unwrap() = f32::INFINITY;
    let mut c = Tensor::<f32, 2>::full([4, 8], f32::NAN).unwrap();
    pool.install(|| gemm(1.0, a.view(), b.view(), 0.0, c.view_mut())).unwrap();
    for (at, x) in c.iter().enumerate() {
        assert_eq!((x.is_nan(), x.is_infinite()), (at / 8 == 1, at / 8 == 2), "element {at}");
    }
}

//! The Gram product against its scalar twin, on every instruction set of this machine.

mod common;

use common::{CANARY, Strided, bits, in_pools, quickcheck, size, value};
use quickcheck::{Arbitrary, Gen};
use tilewise::gemm::{gemm, gram};
use tilewise::machine::{self, Isa};
use tilewise::{Element, Error, Tensor, TensorView, reference};

/// One product with everything about it random.
#[derive(Clone, Debug)]
struct Case<T> {
    isa: Isa,
    a: Strided<T, 2>,
    c: Strided<T, 2>,
    alpha: T,
    beta: T,
}

impl<T: Element> Case<T> {
    fn random(g: &mut Gen, [m, k]: [usize; 2]) -> Self {
        let factor = |g: &mut Gen| match u8::arbitrary(g) % 4 {
            0 => T::ZERO,
            1 => T::ONE,
            2 => -T::ONE,
            _ => value(g),
        };
        Case {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            a: Strided::random(g, [m, k]),
            c: Strided::random(g, [m, m]),
            alpha: factor(g),
            beta: factor(g),
        }
    }

    /// Computes C and compares every element with the scalar twin.
    fn check(&self) -> Result<(), String> {
        let Case { isa, a, alpha, beta, .. } = self;
        let [m, k] = a.shape;
        let mut c = self.c.clone();
        // What must not count is NaN, and would show.
        for i in 0..m {
            for j in 0..m {
                if *beta == T::ZERO || j > i {
                    *c.view_mut().get_mut([i, j]).unwrap() = T::NAN;
                }
            }
        }
        machine::with_isa(*isa, || gram(*alpha, a.view(), *beta, c.view_mut()))
            .and_then(|result| result)
            .map_err(|error| error.to_string())?;
        let expected = reference::gram(*alpha, a.view(), *beta, self.c.view()).unwrap();
        let size =
            reference::magnitude(*alpha, a.view(), a.view().transpose(), *beta, self.c.view()).unwrap();
        let at = |i, j| c.view().get([i, j]).unwrap().to_f64();
        for i in 0..m {
            for j in 0..=i {
                let (found, expected) = (at(i, j), *expected.get([i, j]).unwrap());
                let bound = 2.0 * T::EPSILON.to_f64() * (k as f64 + 4.0) * size.get([i, j]).unwrap();
                let error = (found - expected).abs();
                if error.is_nan() || error > bound {
                    return Err(format!("[{i}, {j}] is {found}, expected {expected} within {bound:e}"));
                }
                if found.to_bits() != at(j, i).to_bits() {
                    return Err(format!("[{i}, {j}] is {found}, its mirror image {}", at(j, i)));
                }
            }
        }
        if c.canaries_live() { Ok(()) } else { Err("a gap of C was written".into()) }
    }
}

/// `Case` with sizes that quickcheck chooses.
#[derive(Clone, Debug)]
struct Any<T>(Case<T>);

impl<T: Element> Arbitrary for Any<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let shape = [size(g), size(g)];
        Any(Case::random(g, shape))
    }
}

fn run<T: Element>(Any(case): Any<T>) -> Result<bool, String> {
    case.check().map(|()| true).map_err(|error| {
        let Case { isa, a, c, alpha, beta } = &case;
        format!("{error}: {isa} {:?} {:?} {:?} alpha {alpha} beta {beta}", a.shape, a.strides, c.strides)
    })
}

#[test]
fn any_gram_product_f32() {
    quickcheck(1500, run as fn(Any<f32>) -> Result<bool, String>);
}

#[test]
fn any_gram_product_f64() {
    quickcheck(1000, run as fn(Any<f64>) -> Result<bool, String>);
}

/// Leaves have 64 to 512 rows, blocks of depth up to 256 steps.
#[test]
fn sizes_around_leaves_and_blocks() {
    let mut g = Gen::from_size_and_seed(100, 21);
    for m in [63, 64, 65, 95, 127, 129, 193, 255, 257, 513] {
        for k in [0, 1, 33] {
            run(Any(Case::<f32>::random(&mut g, [m, k]))).unwrap();
            run(Any(Case::<f64>::random(&mut g, [m, k]))).unwrap();
        }
    }
    for m in [1, 2, 13, 33, 70] {
        for k in [127, 128, 257, 385, 769] {
            run(Any(Case::<f32>::random(&mut g, [m, k]))).unwrap();
            run(Any(Case::<f64>::random(&mut g, [m, k]))).unwrap();
        }
    }
}

/// Random cases choose one instruction set each; here all have the same.
#[test]
fn every_instruction_set_on_every_order_of_memory() {
    let mut g = Gen::from_size_and_seed(100, 22);
    for [m, k] in [[3, 5], [70, 40], [150, 130]] {
        for (flip_a, flip_c) in [(false, false), (false, true), (true, false), (true, true)] {
            let strides = |shape: [usize; 2], flip| if flip { [1, shape[0]] } else { [shape[1], 1] };
            for &isa in machine::supported() {
                let mut case = Case::<f32>::random(&mut g, [m, k]);
                for (matrix, flip) in [(&mut case.a, flip_a), (&mut case.c, flip_c)] {
                    matrix.data = (0..matrix.shape[0] * matrix.shape[1]).map(|_| value(&mut g)).collect();
                    matrix.offset = 0;
                    matrix.strides = strides(matrix.shape, flip).map(|stride| stride as isize);
                }
                for (alpha, beta) in [(1.0, 0.0), (0.7, -0.3)] {
                    run(Any(Case { isa, alpha, beta, ..case.clone() })).unwrap();
                }
            }
        }
    }
}

fn sample<T: Element>(shape: [usize; 2], seed: u64) -> Tensor<T, 2> {
    let mut g = Gen::from_size_and_seed(100, seed);
    Tensor::from_fn(shape, |_| value(&mut g)).unwrap()
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    fn check<T: Element>() {
        for [m, k] in [
            [1, 90000],
            [16, 40000],
            [33, 20000],
            [65, 9000],
            [128, 3000],
            [300, 700],
            [777, 100],
            [48, 2000],
            [33, 3000],
            [72, 1000],
            [90, 1000],
            [8, 9000],
            // A leaf on one thread, of more rows below it than have blocks of their usual depth in a product.
            [500, 300],
            // Parts of unlike depth.
            [200, 4097],
            [130, 8193],
        ] {
            let (a, start) = (sample::<T>([m, k], 1), sample::<T>([m, m], 3));
            let turned = a.view().transpose().to_tensor().unwrap();
            for a in [a.view(), turned.view().transpose()] {
                let results = in_pools(|| {
                    let mut c = start.view().to_tensor().unwrap();
                    gram(T::from_f64(0.7), a, T::from_f64(0.3), c.view_mut()).unwrap();
                    bits(c.as_slice())
                });
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{m}x{k}");
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn it_agrees_with_the_product() {
    // The second and the third are sums of parts.
    for [m, k] in [[200, 333], [70, 4096], [5, 16500]] {
        let a = sample::<f64>([m, k], 5);
        let (mut c, mut product) = (sample::<f64>([m, m], 6), sample::<f64>([m, m], 6));
        // Of C the lower triangle counts.
        for i in 0..m {
            for j in 0..i {
                let value = *c.get([i, j]).unwrap();
                *product.get_mut([i, j]).unwrap() = value;
                *product.get_mut([j, i]).unwrap() = value;
            }
        }
        gram(1.5, a.view(), 0.5, c.view_mut()).unwrap();
        gemm(1.5, a.view(), a.view().transpose(), 0.5, product.view_mut()).unwrap();
        assert!(c.view().all_close(product.view(), 1e-12, 1e-12), "{m}x{k}");
    }
}

#[test]
fn nan_and_infinity_propagate() {
    for &isa in machine::supported() {
        for [m, k] in [[1, 8], [5, 8], [40, 90], [200, 30]] {
            machine::with_isa(isa, || {
                let mut a = sample::<f32>([m, k], 1);
                *a.get_mut([m - 1, k / 2]).unwrap() = f32::NAN;
                let mut c = Tensor::full([m, m], f32::NAN).unwrap();
                for alpha in [1.0, 0.0] {
                    gram(alpha, a.view(), 0.0, c.view_mut()).unwrap();
                    for (at, x) in c.iter().enumerate() {
                        assert_eq!(x.is_nan(), at / m == m - 1 || at % m == m - 1, "{isa} {m}x{k} {at}");
                    }
                }
            })
            .unwrap();
        }
    }
}

#[test]
fn empty_sizes_are_legal() {
    let one = [1.0f32];
    let deep = TensorView::as_strided(&[], [0, 1 << 60], [0, 0]).unwrap();
    let mut none = Tensor::<f32, 2>::zeros([0, 0]).unwrap();
    gram(1.0, deep, 0.0, none.view_mut()).unwrap();
    // No depth: C is scaled, even where alpha is infinite, and made symmetric.
    let flat = TensorView::from_slice(&one[..0], [2, 0]).unwrap();
    let mut c = Tensor::from_slice(&[1.0, f32::NAN, 3.0, 4.0], [2, 2]).unwrap();
    gram(f32::INFINITY, flat, 2.0, c.view_mut()).unwrap();
    assert_eq!(c.as_slice(), [2.0, 6.0, 6.0, 8.0]);
    gram(1.0, flat, 0.0, c.view_mut()).unwrap();
    assert_eq!(c.as_slice(), [0.0; 4]);
}

#[test]
fn bad_calls_are_errors_and_write_nothing() {
    let a = sample::<f32>([3, 4], 1);
    for shape in [[3, 4], [4, 3], [4, 4], [2, 2], [0, 0]] {
        let mut c = Tensor::full(shape, CANARY as f32).unwrap();
        let error: Error = gram(1.0, a.view(), 1.0, c.view_mut()).unwrap_err();
        let [rows, columns] = shape;
        assert_eq!(error.to_string(), format!("gram: c has shape [{rows}, {columns}], expected [3, 3]"));
        assert!(c.iter().all(|&x| x == CANARY as f32), "nothing was written");
    }
}

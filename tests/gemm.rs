//! GEMM against its scalar twin, on every instruction set of this machine.

mod common;

use common::{CANARY, Strided, bits, in_pools, quickcheck, size, value, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::activation::Activation;
use tilewise::gemm::{Bias, Gemm, Operand, Packed, gemm};
use tilewise::machine::{self, Isa};
use tilewise::{Element, Error, Tensor, TensorView, TensorViewMut, reference};

/// One product with everything about it random.
#[derive(Clone, Debug)]
struct Case<T> {
    isa: Isa,
    a: Strided<T, 2>,
    b: Strided<T, 2>,
    c: Strided<T, 2>,
    alpha: T,
    beta: T,
    bias: Option<(bool, Strided<T, 1>)>,
    residual: Option<Strided<T, 2>>,
    relu: bool,
    packed: (bool, bool),
}

impl<T: Element> Case<T> {
    fn random(g: &mut Gen, [m, n, k]: [usize; 3]) -> Self {
        let factor = |g: &mut Gen| match u8::arbitrary(g) % 4 {
            0 => T::ZERO,
            1 => T::ONE,
            2 => -T::ONE,
            _ => value(g),
        };
        let some = |g: &mut Gen| u8::arbitrary(g).is_multiple_of(3);
        let per_row = bool::arbitrary(g);
        Case {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            a: Strided::random(g, [m, k]),
            b: Strided::random(g, [k, n]),
            c: Strided::random(g, [m, n]),
            alpha: factor(g),
            beta: factor(g),
            bias: some(g).then(|| (per_row, Strided::random(g, [if per_row { m } else { n }]))),
            residual: some(g).then(|| Strided::random(g, [m, n])),
            relu: some(g),
            packed: (some(g), some(g)),
        }
    }

    fn options(&self) -> Gemm<'_, T> {
        let mut options = Gemm::new().alpha(self.alpha).beta(self.beta);
        if let Some((per_row, bias)) = &self.bias {
            options =
                options.bias(if *per_row { Bias::PerRow(bias.view()) } else { Bias::PerColumn(bias.view()) });
        }
        if let Some(residual) = &self.residual {
            options = options.residual(residual.view());
        }
        if self.relu { options.activation(Activation::Relu) } else { options }
    }

    /// Computes C and compares every element with the scalar twin.
    fn check(&self) -> Result<(), String> {
        let Case { a, b, alpha, beta, .. } = self;
        let mut c = self.c.clone();
        if *beta == T::ZERO {
            c.view_mut().fill(T::NAN);
        }
        machine::with_isa(self.isa, || -> tilewise::Result<()> {
            let (lhs, rhs) = (Packed::lhs(a.view())?, Packed::rhs(b.view())?);
            let lhs = if self.packed.0 { Operand::from(&lhs) } else { a.view().into() };
            let rhs = if self.packed.1 { Operand::from(&rhs) } else { b.view().into() };
            self.options().run(lhs, rhs, c.view_mut())
        })
        .and_then(|result| result)
        .map_err(|error| error.to_string())?;

        let product = reference::gemm(*alpha, a.view(), b.view(), *beta, self.c.view()).unwrap();
        let magnitude = reference::magnitude(*alpha, a.view(), b.view(), *beta, self.c.view()).unwrap();
        let (per_row, per_column) = match &self.bias {
            Some((true, bias)) => (Some(bias.view()), None),
            Some((false, bias)) => (None, Some(bias.view())),
            None => (None, None),
        };
        let residual = self.residual.as_ref().map(Strided::view);
        let activation = |x: f64| if self.relu { x.max(0.0) } else { x };
        let expected =
            reference::epilogue(product.view(), per_row, per_column, residual, activation).unwrap();
        let [_, k] = a.shape;
        for ((at, &found), (&expected, &size)) in
            c.view().iter().enumerate().zip(expected.iter().zip(magnitude.iter()))
        {
            // Bias and residual are at most 2 each.
            let bound = 2.0 * T::EPSILON.to_f64() * (k as f64 + 4.0) * (size + 4.0);
            let error = (found.to_f64() - expected).abs();
            if error.is_nan() || error > bound {
                return Err(format!("element {at} is {found}, expected {expected} within {bound:e}"));
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
        let [m, n, k] = [size(g), size(g), size(g)];
        Any(Case::random(g, [m, n, k]))
    }
}

fn run<T: Element>(Any(case): Any<T>) -> Result<bool, String> {
    case.check().map(|()| true).map_err(|error| {
        let Case { isa, a, b, c, packed, .. } = &case;
        format!(
            "{error}: {isa} {:?}·{:?} {:?} {:?} {:?} packed {packed:?}",
            a.shape, b.shape, a.strides, b.strides, c.strides
        )
    })
}

#[test]
fn any_product_f32() {
    quickcheck(3000, run as fn(Any<f32>) -> Result<bool, String>);
}

#[test]
fn any_product_f64() {
    quickcheck(2000, run as fn(Any<f64>) -> Result<bool, String>);
}

/// Block boundaries: kc lies between 128 and 512, mc below 1024 and nc at most 4096 on any machine.
#[test]
fn sizes_around_blocks() {
    let mut g = Gen::from_size_and_seed(100, 7);
    for k in [127, 128, 129, 255, 256, 257, 383, 384, 385, 511, 512, 513, 769, 1024, 1025] {
        for [m, n] in [[13, 40], [1, 33], [1, 530], [7, 1], [97, 65]] {
            run(Any(Case::<f32>::random(&mut g, [m, n, k]))).unwrap();
            run(Any(Case::<f64>::random(&mut g, [m, n, k]))).unwrap();
        }
    }
    for [m, n, k] in
        [[1025, 33, 5], [1300, 70, 300], [5, 4099, 9], [30, 8200, 3], [300, 4097, 2], [520, 130, 260]]
    {
        run(Any(Case::<f32>::random(&mut g, [m, n, k]))).unwrap();
        run(Any(Case::<f64>::random(&mut g, [n, m, k]))).unwrap();
    }
}

/// 7 squared: one column beside the whole vectors of a tile, with a kernel of its own over packed rows.
#[test]
fn a_lone_column_beside_vectors() {
    let mut g = Gen::from_size_and_seed(100, 9);
    for round in 0..60 {
        for m in [6, 12, 13, 24, 55] {
            let k = [1, 2, 7, 30, 600][round % 5];
            let mut single = Case::<f32>::random(&mut g, [m, [49, 113][round % 2], k]);
            let mut double = Case::<f64>::random(&mut g, [m, [25, 57][round % 2], k]);
            (single.packed.0, double.packed.0) = (true, true);
            run(Any(single)).unwrap();
            run(Any(double)).unwrap();
        }
    }
    // The same columns of a wider product have the same bits.
    let (a, b) = (sample::<f32>([40, 700], 3), sample::<f32>([700, 64], 4));
    for &isa in machine::supported() {
        machine::with_isa(isa, || {
            let a = Packed::lhs(a.view()).unwrap();
            let (mut all, mut some) = (Tensor::zeros([40, 64]).unwrap(), Tensor::zeros([40, 49]).unwrap());
            Gemm::new().run(&a, b.view(), all.view_mut()).unwrap();
            Gemm::new().run(&a, b.view().slice(1, 0..49, 1).unwrap(), some.view_mut()).unwrap();
            let all = all.view().slice(1, 0..49, 1).unwrap().to_tensor().unwrap();
            assert_eq!(bits(all.as_slice()), bits(some.as_slice()), "{isa}");
        })
        .unwrap();
    }
}

/// Larger than what any cache is trusted to keep, written once: rows that are aligned to vectors, and rows that are not.
#[test]
fn a_large_result_that_is_written_once() {
    let (m, k) = (2900, 3);
    let element = |i: usize, j: usize| ((7 * i + 3 * j) % 11) as f32 - 5.0;
    for (n, width) in [(2912, 2912), (2901, 2907)] {
        let a = Tensor::<f32, 2>::from_fn([m, k], |[i, p]| element(i, p)).unwrap();
        let b = Tensor::<f32, 2>::from_fn([k, n], |[p, j]| element(p, j)).unwrap();
        for &isa in machine::supported() {
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut c = Tensor::<f32, 2>::full([m, width], f32::NAN).unwrap();
                let (out, _) = c.view_mut().split_at(1, n).unwrap();
                pool.install(|| machine::with_isa(isa, || gemm(2.0, a.view(), b.view(), 0.0, out)))
                    .unwrap()
                    .unwrap();
                for (i, row) in c.as_slice().chunks(width).enumerate() {
                    for (j, &found) in row[..n].iter().enumerate() {
                        let expected = (0..k).map(|p| element(i, p) * element(p, j)).sum::<f32>() * 2.0;
                        assert_eq!(found, expected, "{isa}, {threads} threads, row {i}, column {j}");
                    }
                    assert!(row[n..].iter().all(|gap| gap.is_nan()), "{isa}, row {i}: the gap was written");
                }
            }
        }
    }
}

/// Few rows times a matrix larger than L2, which is read along its rows, or packed: right, and the same bits for any number of threads.
#[test]
fn few_rows_times_a_large_matrix() {
    fn check<T: Element>(g: &mut Gen, [m, n, k]: [usize; 3]) {
        let mut case = Case::<T>::random(g, [m, n, k]);
        // Contiguous rows, now and then with gaps between them or from last to first.
        let gap = [0, 5][within(g, 0..2)];
        let flip = bool::arbitrary(g);
        case.b = Strided::rows(g, [k, n], gap, flip);
        case.c = Strided::rows(g, [m, n], gap, !flip);
        case.packed = (false, false);
        case.check().unwrap();
        let product = |rhs: Operand<T>, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut c = case.c.clone();
            let run = || machine::with_isa(case.isa, || case.options().run(case.a.view(), rhs, c.view_mut()));
            pool.install(run).unwrap().unwrap();
            bits(&c.view().iter().copied().collect::<Vec<_>>())
        };
        let packed = machine::with_isa(case.isa, || Packed::rhs(case.b.view())).unwrap().unwrap();
        let expected: [_; 2] = [product((&packed).into(), 1), product(case.b.view().into(), 1)];
        for threads in [2, 3] {
            let results = [product((&packed).into(), threads), product(case.b.view().into(), threads)];
            assert!(results == expected, "{} {m} {n} {k} {threads}", case.isa);
        }
    }
    let l2 = machine::caches().l2;
    let mut g = Gen::from_size_and_seed(100, 11);
    for m in [2, 3, 8, 12, 13, 24, 25, 32, 47, 48, 72] {
        let n = 1024 + [0, 1, 16, 40][within(&mut g, 0..4)];
        check::<f32>(&mut g, [m, n, l2 / 2 / 4 / n + 9]);
        check::<f64>(&mut g, [m, n, l2 / 2 / 8 / n + 9]);
    }
}

/// Few rows or few columns, and a C that is made beside itself: right, and the same bits for any number of threads.
#[test]
fn few_rows_or_columns() {
    fn check<T: Element>(g: &mut Gen, isa: Isa, [m, n, k]: [usize; 3]) {
        for [a_turned, b_turned] in [[false, true], [false, false], [true, false], [true, true]] {
            let mut case = Case::<T> { isa, ..Case::random(g, [m, n, k]) };
            let mut matrix = |[rows, columns]: [usize; 2], turned: bool| {
                let (gap, flip) = ([0, 5][within(g, 0..2)], bool::arbitrary(g));
                if turned {
                    Strided::rows(g, [columns, rows], gap, flip).transpose()
                } else {
                    Strided::rows(g, [rows, columns], gap, flip)
                }
            };
            (case.a, case.b) = (matrix([m, k], a_turned), matrix([k, n], b_turned));
            let c_turned = bool::arbitrary(g);
            let c = Strided::rows(g, if c_turned { [n, m] } else { [m, n] }, 0, false);
            case.c = if c_turned { c.transpose() } else { c };
            case.packed = (false, false);
            case.check().unwrap();
            let product = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (a, b, mut c) = (case.a.view(), case.b.view(), case.c.clone());
                let run = || machine::with_isa(case.isa, || case.options().run(a, b, c.view_mut()));
                pool.install(run).unwrap().unwrap();
                bits(&c.view().iter().copied().collect::<Vec<_>>())
            };
            let expected = product(1);
            assert!([2, 3].iter().all(|&threads| product(threads) == expected), "{} {m} {n} {k}", case.isa);
        }
    }
    let mut g = Gen::from_size_and_seed(100, 12);
    for &isa in machine::supported() {
        for few in 2..=9 {
            for (many, depth) in [(8, 512), (53, 577), (300, 600), (1201, 130)] {
                check::<f32>(&mut g, isa, [few, many, depth]);
                check::<f64>(&mut g, isa, [many, few, depth]);
            }
        }
        for few in [10, 13, 16, 31, 47, 48, 49] {
            check::<f32>(&mut g, isa, [few, 61, 6 * few]);
            check::<f64>(&mut g, isa, [few, 8, 6 * few + 5]);
        }
        check::<f32>(&mut g, isa, [70, 40, 300]);
        for (many, depth) in [(3500, 10), (9, 40_000)] {
            check::<f32>(&mut g, isa, [4, many, depth]);
            check::<f64>(&mut g, isa, [4, many, depth]);
        }
    }
}

/// Windows of a line, whose rows and columns are both contiguous: what is tiny on one thread has its bits on two.
#[test]
fn windows_as_an_operand_have_the_same_bits_for_any_number_of_threads() {
    let mut g = Gen::from_size_and_seed(100, 13);
    for &isa in machine::supported() {
        for [m, n, k] in [[8, 1500, 128], [4, 3000, 128], [3, 200, 300]] {
            let a = Strided::<f32, 2>::rows(&mut g, [m, k], 0, false);
            let data: Vec<f32> = (0..n + k).map(|_| value(&mut g)).collect();
            let b = TensorView::as_strided(&data, [k, n], [1, 1]).unwrap();
            let product = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut c = Tensor::zeros([m, n]).unwrap();
                let run = || machine::with_isa(isa, || gemm(1.0, a.view(), b, 0.0, c.view_mut()));
                pool.install(run).unwrap().unwrap();
                bits(c.as_slice())
            };
            assert!(product(1) == product(2) && product(1) == product(3), "{isa} {m} {n} {k}");
        }
    }
}

#[test]
fn broadcast_operands() {
    let mut g = Gen::from_size_and_seed(100, 8);
    for [m, n, k] in [[5, 7, 9], [33, 65, 17], [1, 40, 30], [64, 64, 64]] {
        let (row, column): (Strided<f32, 1>, Strided<f32, 1>) =
            (Strided::random(&mut g, [k]), Strided::random(&mut g, [n]));
        let a = row.view().broadcast([m, k]).unwrap();
        let b = column.view().broadcast([k, n]).unwrap();
        for &isa in machine::supported() {
            let mut c = Tensor::<f32, 2>::zeros([m, n]).unwrap();
            machine::with_isa(isa, || gemm(1.0, a, b, 0.0, c.view_mut())).unwrap().unwrap();
            let (av, bv) = (a.to_tensor().unwrap(), b.to_tensor().unwrap());
            let expected = reference::gemm(1.0, av.view(), bv.view(), 0.0, c.view()).unwrap();
            assert!(c.iter().zip(&expected).all(|(&x, &y)| (f64::from(x) - y).abs() < 1e-4));
        }
    }
}

/// Rows and columns that go backwards, and what has neighbours along neither axis, in sizes of several paths.
#[test]
fn a_without_neighbours() {
    for [m, n, k] in [[5, 40, 20], [40, 30, 100], [130, 150, 300]] {
        let (a, b) = (sample::<f64>([2 * m, 2 * k], 1), sample::<f64>([k, n], 2));
        let a = a.view();
        let views = [
            a.slice(0, 0..m, 1).unwrap().slice(1, 0..k, 1).unwrap().flip(1).unwrap(),
            a.slice(0, 0..m, 1).unwrap().slice(1, 0..2 * k, 2).unwrap(),
            a.slice(0, 0..2 * m, 2).unwrap().slice(1, 0..2 * k, 2).unwrap().flip(0).unwrap(),
        ];
        for a in views {
            let whole = a.to_tensor().unwrap();
            let [mut found, mut expected] = [(); 2].map(|()| Tensor::<f64, 2>::zeros([m, n]).unwrap());
            gemm(1.0, a, b.view(), 0.0, found.view_mut()).unwrap();
            gemm(1.0, whole.view(), b.view(), 0.0, expected.view_mut()).unwrap();
            assert_eq!(found.as_slice(), expected.as_slice(), "{m} {n} {k}");
        }
    }
}

#[test]
fn identity_is_exact() {
    for &isa in machine::supported() {
        for n in [1, 5, 16, 33, 100, 300] {
            let a = Tensor::<f32, 2>::from_fn([n, n], |[i, j]| (i * n + j) as f32 + 0.1).unwrap();
            let one = Tensor::<f32, 2>::from_fn([n, n], |[i, j]| f32::from(u8::from(i == j))).unwrap();
            let mut c = Tensor::<f32, 2>::full([n, n], f32::NAN).unwrap();
            machine::with_isa(isa, || gemm(1.0, a.view(), one.view(), 0.0, c.view_mut())).unwrap().unwrap();
            assert_eq!(c, a);
            machine::with_isa(isa, || gemm(1.0, one.view(), a.view(), 0.0, c.view_mut())).unwrap().unwrap();
            assert_eq!(c, a);
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
        for [m, n, k] in [
            [300, 500, 700],
            [1, 3000, 900],
            [3000, 1, 900],
            [9, 2048, 512],
            [2048, 9, 512],
            [64, 64, 5000],
            [200, 640, 100],
        ] {
            let (a, b, start) = (sample::<T>([m, k], 1), sample::<T>([k, n], 2), sample::<T>([m, n], 3));
            let (lhs, rhs) = (Packed::lhs(a.view()).unwrap(), Packed::rhs(b.view()).unwrap());
            let operands: [(Operand<T>, Operand<T>); 4] = [
                (a.view().into(), b.view().into()),
                (a.view().into(), (&rhs).into()),
                ((&lhs).into(), b.view().into()),
                ((&lhs).into(), (&rhs).into()),
            ];
            for (a, b) in operands {
                let results = in_pools(|| {
                    let mut c = start.view().to_tensor().unwrap();
                    gemm(T::from_f64(0.7), a, b, T::from_f64(0.3), c.view_mut()).unwrap();
                    bits(c.as_slice())
                });
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{m}x{n}x{k}");
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn a_row_over_packed_weights_has_the_same_bits_alone_and_in_a_batch() {
    for &isa in machine::supported() {
        machine::with_isa(isa, || {
            // The second has panels that a lone row reads side by side, and some that are left over.
            for (n, [alpha, beta]) in [(130, [1.0, 0.0]), (610, [1.0, 0.0]), (610, [0.7, -1.3])] {
                let (m, k) = (70, 600);
                let (x, w) = (sample::<f32>([m, k], 4), sample::<f32>([k, n], 5));
                let packed = Packed::rhs(w.view()).unwrap();
                let product = |rows: std::ops::Range<usize>| {
                    let mut y = Tensor::<f32, 2>::full([rows.len(), n], 0.3).unwrap();
                    gemm(alpha, x.view().slice(0, rows, 1).unwrap(), &packed, beta, y.view_mut()).unwrap();
                    bits(y.as_slice())
                };
                let all = product(0..m);
                for rows in [0..1, 1..2, 69..70, 3..8, 10..30, 0..69] {
                    assert_eq!(product(rows.clone()), all[rows.start * n..rows.end * n], "{isa} {rows:?}");
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn nan_and_infinity_propagate_and_beta_zero_reads_nothing() {
    for &isa in machine::supported() {
        for [m, n, k] in [[1, 20, 8], [20, 1, 8], [3, 4, 5], [40, 70, 90]] {
            machine::with_isa(isa, || {
                let mut a = sample::<f32>([m, k], 1);
                let b = sample::<f32>([k, n], 2);
                let mut c = Tensor::full([m, n], f32::NAN).unwrap();
                gemm(1.0, a.view(), b.view(), 0.0, c.view_mut()).unwrap();
                assert!(c.iter().all(|x| x.is_finite()), "beta 0 must not read C");
                *a.get_mut([m - 1, k / 2]).unwrap() = f32::NAN;
                gemm(1.0, a.view(), b.view(), 0.0, c.view_mut()).unwrap();
                for (at, x) in c.iter().enumerate() {
                    assert_eq!(x.is_nan(), at / n == m - 1, "{isa} {m}x{n}x{k} element {at}");
                }
                gemm(0.0, a.view(), b.view(), 0.0, c.view_mut()).unwrap();
                assert!(c.get([m - 1, 0]).unwrap().is_nan(), "0 · NaN is NaN");
                *a.get_mut([m - 1, k / 2]).unwrap() = f32::INFINITY;
                gemm(1.0, a.view(), b.view(), 0.0, c.view_mut()).unwrap();
                assert!(c.get([m - 1, n - 1]).unwrap().is_infinite());
            })
            .unwrap();
        }
    }
}

#[test]
fn empty_sizes_are_legal() {
    let empty = Tensor::<f32, 2>::zeros([0, 4]).unwrap();
    let mut c = Tensor::<f32, 2>::zeros([0, 0]).unwrap();
    gemm(1.0, empty.view(), empty.view().transpose(), 0.0, c.view_mut()).unwrap();
    // No depth: C is scaled, and the epilogue runs.
    let mut c = Tensor::<f32, 2>::full([4, 4], 3.0).unwrap();
    gemm(1.0, empty.view().transpose(), empty.view(), 2.0, c.view_mut()).unwrap();
    assert_eq!(c.as_slice(), [6.0; 16]);
    let bias = [1.0, -1.0, 2.0, -2.0];
    let bias = Bias::PerRow(TensorView::from_slice(&bias, [4]).unwrap());
    let options = Gemm::new().bias(bias).activation(Activation::Relu);
    options.run(empty.view().transpose(), empty.view(), c.view_mut()).unwrap();
    assert_eq!(c.as_slice()[..8], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    let packed = Packed::rhs(empty.view()).unwrap();
    options.run(empty.view().transpose(), &packed, c.view_mut()).unwrap();
    assert_eq!(c.as_slice()[8..], [2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn batches_equal_their_entries() {
    let mut g = Gen::from_size_and_seed(100, 11);
    for round in 0..60 {
        let (batch, m, n, k) = (within(&mut g, 0..7), size(&mut g), size(&mut g), size(&mut g));
        let one = |g: &mut Gen| if bool::arbitrary(g) { 1 } else { batch };
        let (in_a, in_b, in_r) = (one(&mut g), one(&mut g), one(&mut g));
        let a: Strided<f32, 3> = Strided::random(&mut g, [in_a, m, k]);
        let b: Strided<f32, 3> = Strided::random(&mut g, [in_b, k, n]);
        let residual: Strided<f32, 3> = Strided::random(&mut g, [in_r, m, n]);
        let mut c: Strided<f32, 3> = Strided::random(&mut g, [batch, m, n]);
        let before = c.clone();
        let options = Gemm::new().alpha(0.5).beta(2.0).activation(Activation::Relu);
        options.batched_residual(residual.view()).run_batched(a.view(), b.view(), c.view_mut()).unwrap();
        assert!(c.canaries_live(), "round {round}");
        let entry = |v: &Strided<f32, 3>, i: usize| {
            v.view().select::<2>(0, if v.shape[0] == 1 { 0 } else { i }).unwrap().to_tensor().unwrap()
        };
        for i in 0..batch {
            let mut expected = entry(&before, i);
            let residual = entry(&residual, i);
            options
                .residual(residual.view())
                .run(entry(&a, i).view(), entry(&b, i).view(), expected.view_mut())
                .unwrap();
            assert!(entry(&c, i).view().all_close(expected.view(), 1e-4, 1e-3), "round {round} entry {i}");
        }
    }
}

#[test]
fn many_small_products_have_the_same_bits_for_any_number_of_threads() {
    let mut g = Gen::from_size_and_seed(100, 12);
    let a: Strided<f32, 3> = Strided::random(&mut g, [200, 32, 32]);
    let b: Strided<f32, 3> = Strided::random(&mut g, [200, 32, 32]);
    let results = in_pools(|| {
        let mut c = Tensor::<f32, 3>::zeros([200, 32, 32]).unwrap();
        Gemm::new().run_batched(a.view(), b.view(), c.view_mut()).unwrap();
        bits(c.as_slice())
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn bad_calls_are_errors_and_write_nothing() {
    let (a, b) = (sample::<f32>([3, 4], 1), sample::<f32>([5, 6], 2));
    let b_fits = sample::<f32>([4, 6], 2);
    let mut c = Tensor::full([3, 6], CANARY as f32).unwrap();
    let mut small = Tensor::full([3, 5], CANARY as f32).unwrap();
    let bias = [0.0; 5];
    let bias = TensorView::from_slice(&bias, [5]).unwrap();
    let message = |result: Result<(), Error>| result.unwrap_err().to_string();
    assert_eq!(
        message(gemm(1.0, a.view(), b.view(), 0.0, c.view_mut())),
        "gemm: b has shape [5, 6], expected [4, 6]"
    );
    assert_eq!(
        message(gemm(1.0, a.view(), b_fits.view(), 0.0, small.view_mut())),
        "gemm: c has shape [3, 5], expected [3, 6]"
    );
    let product =
        |options: Gemm<f32>, c: &mut Tensor<f32, 2>| options.run(a.view(), b_fits.view(), c.view_mut());
    assert_eq!(
        message(product(Gemm::new().bias(Bias::PerColumn(bias)), &mut c)),
        "gemm: bias has shape [5], expected [6]"
    );
    assert_eq!(
        message(product(Gemm::new().bias(Bias::PerRow(bias)), &mut c)),
        "gemm: bias has shape [5], expected [3]"
    );
    assert_eq!(
        message(product(Gemm::new().residual(a.view()), &mut c)),
        "gemm: residual has shape [3, 4], expected [3, 6]"
    );
    let packed = Packed::rhs(b_fits.view()).unwrap();
    let isa = machine::isa().unwrap();
    assert_eq!(
        message(gemm(1.0, &packed, b_fits.view(), 0.0, c.view_mut())),
        format!("gemm: a was packed for the right side with {isa}, this call needs the left side with {isa}")
    );
    for &other in machine::supported().iter().filter(|&&other| other != isa) {
        let result = machine::with_isa(other, || gemm(1.0, a.view(), &packed, 0.0, c.view_mut())).unwrap();
        assert_eq!(
            message(result),
            format!(
                "gemm: b was packed for the right side with {isa}, this call needs the right side with {other}"
            )
        );
    }
    let (a3, b3) = (Tensor::<f32, 3>::zeros([2, 3, 4]).unwrap(), Tensor::<f32, 3>::zeros([3, 4, 6]).unwrap());
    let mut c3 = Tensor::<f32, 3>::full([2, 3, 6], CANARY as f32).unwrap();
    assert_eq!(
        message(Gemm::new().run_batched(a3.view(), b3.view(), c3.view_mut())),
        "gemm: b has shape [3, 4, 6], expected [2, 4, 6]"
    );
    assert!(
        c.iter().chain(small.iter()).chain(c3.iter()).all(|&x| x == CANARY as f32),
        "nothing was written"
    );
}

#[test]
fn impossible_sizes_are_errors() {
    // A broadcast matrix may be larger than any memory; its packed form cannot be had.
    let one = [1.0f32];
    let huge = TensorView::from_slice(&one, [1, 1]).unwrap().broadcast([1 << 31, 1 << 31]).unwrap();
    assert!(matches!(Packed::rhs(huge), Err(Error::Alloc { .. })));
}

/// What is added to sums in registers has the bits of what is added to them in memory, where C's rows are no neighbours: sums of −0,
/// of what is infinite and of what is no number too.
#[test]
fn what_follows_the_product_is_the_same_in_registers_and_in_memory() {
    let value = |i: usize| ((i * i) as f32 * 0.7).sin();
    let of = |shape: [usize; 2], seed: usize| {
        Tensor::from_fn(shape, |[i, j]| value(seed + 17 * i + 13 * j)).unwrap()
    };
    for [m, n, k] in [[1, 70, 20], [5, 16, 40], [13, 130, 30], [24, 64, 7], [25, 200, 600], [60, 33, 3]] {
        let (mut a, b, mut residual) = (of([m, k], 1), of([k, n], 2), of([m, n], 3));
        let (mut rows, mut columns) = (of([m, 2], 4), of([1, n], 5));
        // Products too small for any number: some rows are sums of −0 and 0.
        a.as_mut_slice()[..m / 2 * k].iter_mut().for_each(|x| *x *= 1e-45);
        rows.as_mut_slice()[..m].fill(0.0);
        (residual.as_mut_slice()[m * n - 1], residual.as_mut_slice()[0]) = (f32::NAN, -0.0);
        columns.as_mut_slice()[n / 2] = f32::NEG_INFINITY;
        let apart = rows.view().select::<1>(1, 0).unwrap();
        let dense = apart.to_tensor().unwrap();
        let columns = columns.view().select::<1>(0, 0).unwrap();
        let biases = [
            None,
            Some(Bias::PerRow(dense.view())),
            Some(Bias::PerRow(apart)),
            Some(Bias::PerColumn(columns)),
        ];
        for (bias, beside) in
            biases.into_iter().flat_map(|bias| [None, Some(residual.view())].map(|r| (bias, r)))
        {
            for activation in
                [Activation::Identity, Activation::Relu, Activation::Clip { low: -0.5, high: 0.75 }]
            {
                let mut gemm = Gemm::new().activation(activation);
                if let Some(bias) = bias {
                    gemm = gemm.bias(bias);
                }
                if let Some(beside) = beside {
                    gemm = gemm.residual(beside);
                }
                for &isa in machine::supported() {
                    let mut c = Tensor::full([m, n], f32::NAN).unwrap();
                    let mut stored = vec![f32::NAN; 2 * m * n];
                    let strides = [2 * n as isize, 2];
                    machine::with_isa(isa, || {
                        gemm.run(a.view(), b.view(), c.view_mut()).unwrap();
                        let apart = TensorViewMut::as_strided(&mut stored, [m, n], strides).unwrap();
                        gemm.run(a.view(), b.view(), apart).unwrap();
                    })
                    .unwrap();
                    let apart =
                        TensorView::as_strided(&stored, [m, n], strides).unwrap().to_tensor().unwrap();
                    let what =
                        format!("{m} x {n} x {k}, {bias:?}, {}, {activation:?}, {isa}", beside.is_some());
                    assert_eq!(bits(c.as_slice()), bits(apart.as_slice()), "{what}");
                }
            }
        }
    }
}

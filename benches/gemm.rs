//! GEMM on the shapes of real networks, as a share of the multiply-adds that the machine does in registers.

mod support;

use criterion::Criterion;
use support::{Bound, bench, pools, random};
use tilewise::gemm::{BatchOperand, Bias, Gemm, Operand, Packed, gemm, gram};
use tilewise::{Element, Tensor, TensorView, activation::Activation};

fn flops<T: Element>(m: usize, n: usize, k: usize) -> (Bound, u64) {
    let bound = if T::NAME == "f32" { Bound::FlopsF32 } else { Bound::FlopsF64 };
    (bound, 2 * (m * n * k) as u64)
}

fn square<T: Element>(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group(format!("gemm square {}", T::NAME));
    for size in [16, 32, 64, 128, 256, 512, 1024, 2048] {
        let (a, b) = (random::<T, 2>([size, size]), random::<T, 2>([size, size]));
        let mut c = Tensor::zeros([size, size]).expect("memory");
        let orders: &[(&str, bool, bool)] = if matches!(size, 512 | 1024) {
            &[("NN", false, false), ("NT", false, true), ("TN", true, false)]
        } else {
            &[("NN", false, false)]
        };
        for &(order, flip_a, flip_b) in orders {
            let a = if flip_a { a.view().transpose() } else { a.view() };
            let b = if flip_b { b.view().transpose() } else { b.view() };
            for pool in pools() {
                let name = format!("gemm {} {order} {size}", T::NAME);
                bench(&mut group, &pool, &name, flops::<T>(size, size, size), || {
                    gemm(T::ONE, a, b, T::ZERO, c.view_mut()).expect("shapes fit");
                });
            }
        }
    }
    group.finish();
}

/// m, n, k and what has them.
const NETWORKS: &[(usize, usize, usize, &str)] = &[
    (12544, 64, 147, "ResNet-50 stem"),
    (3136, 64, 576, "ResNet-50 3x3 at 56"),
    (49, 512, 4608, "ResNet-50 3x3 at 7"),
    (128, 768, 768, "BERT-base projection"),
    (128, 3072, 768, "BERT-base feed-forward"),
    (512, 768, 768, "BERT-base projection, 512 tokens"),
    (16, 1000, 2048, "ResNet-50 classifier, batch 16"),
    (7680, 16, 2560, "DeepBench"),
    (35, 8457, 2560, "DeepBench"),
    (64, 64, 4096, "gradient of a small layer"),
    (16, 16, 65536, "gradient of a small layer, large batch"),
    (32, 27, 12544, "gradient of the MobileNetV2 stem"),
    (4096, 4096, 32, "rank-32 update"),
    (32, 4096, 4096, "decoder, 32 tokens"),
    (64, 4096, 4096, "decoder, 64 tokens"),
    (8, 4096, 4096, "decoder, 8 tokens"),
    (4, 1024, 1024, "layer, batch 4"),
    (16, 768, 768, "BERT-base projection, 16 tokens"),
    (24, 1100, 2000, "layer, batch 24"),
    (64, 10, 128, "classifier of digits"),
    (512, 2, 768, "two classes, 512 tokens"),
];

fn networks(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("gemm networks f32");
    for &(m, n, k, what) in NETWORKS {
        let (a, b, bias) = (random::<f32, 2>([m, k]), random::<f32, 2>([k, n]), random::<f32, 1>([n]));
        let (packed, few) = (Packed::rhs(b.view()).expect("memory"), m <= 16);
        let turned = random::<f32, 2>(if few { [n, k] } else { [0, 0] });
        let mut c = Tensor::zeros([m, n]).expect("memory");
        // Few rows also meet weights [out, in], as other libraries keep them.
        let operands: [(&str, Operand<f32>); 3] = [
            ("", b.view().into()),
            (" prepacked", (&packed).into()),
            (" NT", turned.view().transpose().into()),
        ];
        for (kind, b) in operands.into_iter().take(if few { 3 } else { 2 }) {
            for pool in pools() {
                let name = format!("{m}x{n}x{k}{kind}, {what}");
                bench(&mut group, &pool, &name, flops::<f32>(m, n, k), || {
                    Gemm::new().run(a.view(), b, c.view_mut()).expect("shapes fit");
                });
            }
        }
        if (m, n) == (128, 3072) {
            for pool in pools() {
                let options = Gemm::new().bias(Bias::PerColumn(bias.view())).activation(Activation::Relu);
                let name = format!("{m}x{n}x{k} with bias and ReLU");
                bench(&mut group, &pool, &name, flops::<f32>(m, n, k), || {
                    options.run(a.view(), &packed, c.view_mut()).expect("shapes fit");
                });
            }
        }
    }
    group.finish();
}

/// Products that no packing pays for.
fn tiny(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("gemm tiny f32");
    let shapes = [
        (16, 10, 84, "LeNet-5 classifier, batch 16"),
        (32, 32, 64, "scores of a head, 32 tokens"),
        (24, 24, 24, "ragged in every vector"),
    ];
    for (m, n, k, what) in shapes {
        let (a, b) = (random::<f32, 2>([m, k]), random::<f32, 2>([k, n]));
        let mut c = Tensor::zeros([m, n]).expect("memory");
        bench(&mut group, &pools()[0], &format!("{m}x{n}x{k}, {what}"), flops::<f32>(m, n, k), || {
            gemm(1.0, a.view(), b.view(), 0.0, c.view_mut()).expect("shapes fit");
        });
    }
    group.finish();
}

/// Weights on either side, and both.
fn prepacked(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("gemm prepacked f32");
    let shapes = [
        (1, 4096, 4096, "decoder, 1 token"),
        (4096, 1, 4096, "decoder, 1 token, weights left"),
        (128, 768, 768, "BERT-base projection"),
        (64, 3136, 576, "ResNet-50 3x3 at 56, weights left"),
    ];
    for (m, n, k, what) in shapes {
        let (a, b) = (random::<f32, 2>([m, k]), random::<f32, 2>([k, n]));
        let (lhs, rhs) = (Packed::lhs(a.view()).expect("memory"), Packed::rhs(b.view()).expect("memory"));
        let mut c = Tensor::zeros([m, n]).expect("memory");
        let operands: [(&str, Operand<f32>, Operand<f32>); 3] = [
            ("A", (&lhs).into(), b.view().into()),
            ("B", a.view().into(), (&rhs).into()),
            ("A and B", (&lhs).into(), (&rhs).into()),
        ];
        for (which, a, b) in operands {
            for pool in pools() {
                let name = format!("{m}x{n}x{k} {which} prepacked, {what}");
                bench(&mut group, &pool, &name, flops::<f32>(m, n, k), || {
                    Gemm::new().run(a, b, c.view_mut()).expect("shapes fit");
                });
            }
        }
    }
    group.finish();
}

/// Rates are those of the product that each stands for: shares above 1 are possible.
fn grams(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("gemm gram f32");
    // The last is the covariance of 48 features.
    for (m, k) in [(1024, 512), (256, 4096), (48, 65536)] {
        let a = random::<f32, 2>([m, k]);
        let mut c = Tensor::zeros([m, m]).expect("memory");
        for pool in pools() {
            bench(&mut group, &pool, &format!("gram {m}x{k}"), flops::<f32>(m, m, k), || {
                gram(1.0, a.view(), 0.0, c.view_mut()).expect("shapes fit");
            });
            bench(&mut group, &pool, &format!("gram {m}x{k} as a product"), flops::<f32>(m, m, k), || {
                gemm(1.0, a.view(), a.view().transpose(), 0.0, c.view_mut()).expect("shapes fit");
            });
        }
    }
    group.finish();
}

fn vectors(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("gemm vectors f32");
    let (m, x) = (random::<f32, 2>([4096, 4096]), random::<f32, 2>([4096, 1]));
    let mut y = Tensor::<f32, 2>::zeros([4096, 1]).expect("memory");
    let bytes = (Bound::Read, 4 * 4096 * 4096);
    let views: [(&str, TensorView<f32, 2>); 2] =
        [("matrix · vector", m.view()), ("transposed matrix · vector", m.view().transpose())];
    for (name, matrix) in views {
        for pool in pools() {
            bench(&mut group, &pool, &format!("{name} 4096"), bytes, || {
                gemm(1.0, matrix, x.view(), 0.0, y.view_mut()).expect("shapes fit");
            });
        }
    }
    group.finish();
}

fn batched(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("gemm batched f32");
    let shapes = [
        (1000, [32, 32, 32], "squares"),
        (1000, [64, 64, 64], "squares"),
        (96, [128, 128, 64], "BERT-base scores, batch 8"),
        (8, [128, 768, 768], "BERT-base projection, batch 8"),
    ];
    for (batch, [m, n, k], what) in shapes {
        let (a, b) = (random::<f32, 3>([batch, m, k]), random::<f32, 3>([batch, k, n]));
        let packed = Packed::rhs(b.view().select(0, 0).expect("exists")).expect("memory");
        let mut c = Tensor::zeros([batch, m, n]).expect("memory");
        let operands: [(&str, BatchOperand<f32>); 2] =
            [("", b.view().into()), (", one B prepacked", (&packed).into())];
        for (kind, b) in operands {
            for pool in pools() {
                let ((bound, work), name) =
                    (flops::<f32>(m, n, k), format!("{batch} x {m}x{n}x{k}{kind}, {what}"));
                bench(&mut group, &pool, &name, (bound, batch as u64 * work), || {
                    Gemm::new().run_batched(a.view(), b, c.view_mut()).expect("shapes fit");
                });
            }
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = support::criterion();
    square::<f32>(&mut criterion);
    square::<f64>(&mut criterion);
    networks(&mut criterion);
    tiny(&mut criterion);
    prepacked(&mut criterion);
    grams(&mut criterion);
    vectors(&mut criterion);
    batched(&mut criterion);
    criterion.final_summary();
    support::table();
}

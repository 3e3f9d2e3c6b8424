//! Elementwise functions, activations and softmax on one thread, in bytes read and written per second, beside
//! plain loops over the standard library's functions. `TILEWISE_ISA` chooses the instructions.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tilewise::activation::{self, Activation};
use tilewise::softmax::Softmax;
use tilewise::{Tensor, vecmath};

/// Numbers in ±4, the same in every run.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 21) as f32 - 4.0
    };
    (0..n).map(|_| next()).collect()
}

fn one_thread<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(f)
}

type Slices = fn(&[f32], &mut [f32]) -> tilewise::Result<()>;

fn functions(c: &mut Criterion) {
    let all: [(&str, Slices, fn(f32) -> f32); 5] = [
        ("exp", vecmath::exp_slice, f32::exp),
        ("log", vecmath::log_slice, f32::ln),
        ("tanh", vecmath::tanh_slice, f32::tanh),
        ("sigmoid", vecmath::sigmoid_slice, |x| 1.0 / (1.0 + (-x).exp())),
        // The standard library has no error function.
        ("erf", vecmath::erf_slice, f32::tanh),
    ];
    for (name, function, scalar) in all {
        let mut group = c.benchmark_group(name);
        for n in [196_608, 1_048_576] {
            let mut x = numbers(n);
            if name == "log" {
                x.iter_mut().for_each(|x| *x = x.abs() + 1e-3);
            }
            let mut y = vec![0.0; n];
            group.throughput(Throughput::Bytes(8 * n as u64));
            group.bench_function(BenchmarkId::new("tilewise", n), |b| {
                one_thread(|| b.iter(|| function(black_box(&x), &mut y).unwrap()));
            });
            if name != "erf" {
                group.bench_function(BenchmarkId::new("std", n), |b| {
                    b.iter(|| black_box(&x).iter().zip(&mut y).for_each(|(&x, y)| *y = scalar(x)));
                });
            }
        }
        group.finish();
    }
}

fn activations(c: &mut Criterion) {
    let all = [
        ("relu", Activation::Relu),
        ("gelu", Activation::Gelu),
        ("gelu_tanh", Activation::GeluTanh),
        ("silu", Activation::Silu),
        ("softplus", Activation::Softplus),
    ];
    for (name, activation) in all {
        let mut group = c.benchmark_group(name);
        for n in [196_608, 1_048_576] {
            let x = Tensor::from_slice(&numbers(n), [n]).unwrap();
            let dy = Tensor::from_slice(&numbers(n), [n]).unwrap();
            let mut y = Tensor::zeros([n]).unwrap();
            group.throughput(Throughput::Bytes(8 * n as u64));
            group.bench_function(BenchmarkId::new("forward", n), |b| {
                one_thread(|| {
                    b.iter(|| activation::forward(activation, black_box(x.view()), y.view_mut()).unwrap())
                });
            });
            group.throughput(Throughput::Bytes(12 * n as u64));
            group.bench_function(BenchmarkId::new("backward", n), |b| {
                one_thread(|| {
                    b.iter(|| {
                        activation::backward(activation, black_box(x.view()), dy.view(), y.view_mut())
                            .unwrap()
                    })
                });
            });
        }
        group.finish();
    }
}

fn softmax(c: &mut Criterion) {
    let mut group = c.benchmark_group("softmax");
    // Rows; then 196 columns of 64 channels, as in [8, 64, 14, 14].
    let shapes = [([1024, 1, 1024], 2), ([128, 1, 768], 2), ([1536, 1, 128], 2), ([8, 64, 196], 1)];
    for (shape, axis) in shapes {
        let n = shape.iter().product();
        let name = if axis == 2 { format!("{}x{}", shape[0], shape[2]) } else { "8x[64]x196".to_string() };
        let x = Tensor::from_slice(&numbers(n), shape).unwrap();
        let mut y = Tensor::zeros(shape).unwrap();
        let mut dx = Tensor::zeros(shape).unwrap();
        for (kind, softmax) in [("", Softmax::new(axis)), ("log_", Softmax::new(axis).logarithm())] {
            group.throughput(Throughput::Bytes(8 * n as u64));
            group.bench_function(BenchmarkId::new(format!("{kind}forward"), &name), |b| {
                one_thread(|| b.iter(|| softmax.forward_into(black_box(x.view()), y.view_mut()).unwrap()));
            });
            group.throughput(Throughput::Bytes(12 * n as u64));
            group.bench_function(BenchmarkId::new(format!("{kind}backward"), &name), |b| {
                one_thread(|| {
                    b.iter(|| softmax.backward_into(black_box(y.view()), x.view(), dx.view_mut()).unwrap())
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, functions, activations, softmax);
criterion_main!(benches);

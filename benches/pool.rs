//! Pooling layers of ResNet-50 and GoogLeNet on one thread, in bytes read and written per second, beside a loop that copies as
//! many bytes. `TILEWISE_ISA` chooses the instructions.

mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use support::random;
use tilewise::pool::{AveragePool, MaxPool};
use tilewise::{Tensor, TensorView, TensorViewMut};

fn one_thread<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(f)
}

/// NCHW or, over the same kind of memory, NHWC.
fn strides([_, c, h, w]: [usize; 4], last: bool) -> [isize; 4] {
    if last { [c * h * w, 1, w * c, c] } else { [c * h * w, h * w, w, 1] }.map(|stride| stride as isize)
}

fn view(data: &Tensor<f32, 4>, last: bool) -> TensorView<'_, f32, 4> {
    TensorView::as_strided(data.as_slice(), data.shape(), strides(data.shape(), last)).unwrap()
}

fn view_mut(data: &mut Tensor<f32, 4>, last: bool) -> TensorViewMut<'_, f32, 4> {
    let shape = data.shape();
    TensorViewMut::as_strided(data.as_mut_slice(), shape, strides(shape, last)).unwrap()
}

fn windows(c: &mut Criterion) {
    let max = MaxPool::<2>::new([3, 3]).stride([2, 2]).padding([1, 1]);
    let average = AveragePool::<2>::new([3, 3]).stride([2, 2]).padding([1, 1]);
    for (name, shape) in [
        ("3x3s2_64_112_b1", [1, 64, 112, 112]),
        ("3x3s2_192_28_b8", [8, 192, 28, 28]),
        ("3x3s2_64_112_b8", [8, 64, 112, 112]),
    ] {
        let x = random::<f32, 4>(shape);
        let mut y = Tensor::zeros(max.output_shape(shape).unwrap()).unwrap();
        let mut indices = Tensor::zeros(y.shape()).unwrap();
        let mut dx = Tensor::zeros(shape).unwrap();
        let mut group = c.benchmark_group(name);
        let bytes = 4 * (x.len() + y.len());
        group.throughput(Throughput::Bytes(bytes as u64));
        let (from, mut to) = (vec![1.0f32; bytes / 8], vec![0.0f32; bytes / 8]);
        group.bench_function("copy", |b| b.iter(|| to.copy_from_slice(black_box(&from))));
        for last in [false, true] {
            let layout = if last { "nhwc" } else { "nchw" };
            group.bench_function(BenchmarkId::new("max", layout), |b| {
                one_thread(|| {
                    b.iter(|| max.forward_into(black_box(view(&x, last)), view_mut(&mut y, last)).unwrap())
                })
            });
            group.bench_function(BenchmarkId::new("average", layout), |b| {
                one_thread(|| {
                    b.iter(|| {
                        average.forward_into(black_box(view(&x, last)), view_mut(&mut y, last)).unwrap()
                    })
                })
            });
            group.bench_function(BenchmarkId::new("average_backward", layout), |b| {
                one_thread(|| {
                    b.iter(|| {
                        average.backward_into(black_box(view(&y, last)), view_mut(&mut dx, last)).unwrap()
                    })
                })
            });
        }
        group.bench_function("max_with_indices/nchw", |b| {
            one_thread(|| {
                b.iter(|| {
                    let (y, indices) = (y.view_mut(), indices.view_mut());
                    max.forward_with_indices_into(black_box(x.view()), y, indices).unwrap()
                })
            })
        });
        group.bench_function("max_backward/nchw", |b| {
            one_thread(|| {
                b.iter(|| {
                    max.backward_into(black_box(y.view()), indices.view(), dx.view_mut()).unwrap();
                })
            })
        });
        group.finish();
    }
}

fn global(c: &mut Criterion) {
    let mut group = c.benchmark_group("global_average_2048_7_b8");
    let x = random::<f32, 4>([8, 2048, 7, 7]);
    let mut y = Tensor::zeros([8, 2048, 1, 1]).unwrap();
    group.throughput(Throughput::Bytes(4 * (x.len() + y.len()) as u64));
    for last in [false, true] {
        group.bench_function(if last { "nhwc" } else { "nchw" }, |b| {
            let pool = AveragePool::<2>::global();
            one_thread(|| {
                b.iter(|| pool.forward_into(black_box(view(&x, last)), view_mut(&mut y, last)).unwrap())
            })
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = windows, global }
criterion_main!(benches);

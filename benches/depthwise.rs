//! Depthwise layers of MobileNetV2, and layers of ResNeXt-50 with 32 groups, on one thread, forward and both gradients, in
//! multiply-adds counted as two operations.

mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use support::random;
use tilewise::conv::Convolution;
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

fn layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("dw3x3");
    for (name, batch, channels, few, size, stride) in [
        ("144_56_b1", 1, 144, 1, 56, 1),
        ("144_56_b8", 8, 144, 1, 56, 1),
        ("384_14_b1", 1, 384, 1, 14, 1),
        ("384_14_b8", 8, 384, 1, 14, 1),
        ("960_7_b1", 1, 960, 1, 7, 1),
        ("960_7_b8", 8, 960, 1, 7, 1),
        ("s2_144_56_b1", 1, 144, 1, 56, 2),
        ("s2_144_56_b8", 8, 144, 1, 56, 2),
        ("s2_576_14_b1", 1, 576, 1, 14, 2),
        ("s2_576_14_b8", 8, 576, 1, 14, 2),
        ("grouped_128_56_b8", 8, 128, 4, 56, 1),
        ("grouped_s2_256_56_b8", 8, 256, 8, 56, 2),
    ] {
        let conv = Convolution::<2>::new().stride([stride; 2]).padding([1, 1]).groups(channels / few);
        let mut x = random::<f32, 4>([batch, channels, size, size]);
        let mut w = random::<f32, 4>([channels, few, 3, 3]);
        let mut y = Tensor::zeros(conv.output_shape(x.shape(), w.shape()).unwrap()).unwrap();
        group.throughput(Throughput::Elements((18 * few * y.len()) as u64));
        for last in [false, true] {
            let name = format!("{name}/{}", if last { "nhwc" } else { "nchw" });
            group.bench_function(BenchmarkId::new("forward", &name), |b| {
                one_thread(|| {
                    b.iter(|| {
                        let (x, y) = (view(&x, last), view_mut(&mut y, last));
                        conv.forward_into(black_box(x), w.view(), None, y).unwrap()
                    })
                })
            });
            group.bench_function(BenchmarkId::new("backward_input", &name), |b| {
                one_thread(|| {
                    b.iter(|| {
                        let (dz, dx) = (view(&y, last), view_mut(&mut x, last));
                        conv.backward_input_into(black_box(dz), w.view(), dx).unwrap()
                    })
                })
            });
            group.bench_function(BenchmarkId::new("backward_weight", &name), |b| {
                one_thread(|| {
                    b.iter(|| {
                        let (x, dz) = (view(&x, last), view(&y, last));
                        conv.backward_weight_into(black_box(x), dz, w.view_mut()).unwrap()
                    })
                })
            });
        }
    }
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = layers }
criterion_main!(benches);

//! Convolution on the layers of real networks, forward and backward, in operations of the direct algorithm: what Winograd
//! saves makes shares above 1 possible.

mod support;

use criterion::Criterion;
use support::{Bound, bench, pools, random};
use tilewise::Tensor;
use tilewise::activation::Activation;
use tilewise::conv::{Algorithm, Convolution};

/// A layer on square images.
struct Layer {
    name: &'static str,
    c_in: usize,
    c_out: usize,
    groups: usize,
    size: usize,
    kernel: usize,
    stride: usize,
}

const fn layer(name: &'static str, channels: [usize; 3], size: usize, kernel: usize, stride: usize) -> Layer {
    let [c_in, c_out, groups] = channels;
    Layer { name, c_in, c_out, groups, size, kernel, stride }
}

const LAYERS: &[Layer] = &[
    layer("ResNet-50 stem", [3, 64, 1], 224, 7, 2),
    layer("ResNet-50 3x3", [64, 64, 1], 56, 3, 1),
    layer("ResNet-50 3x3", [128, 128, 1], 28, 3, 1),
    layer("ResNet-50 3x3", [256, 256, 1], 14, 3, 1),
    layer("ResNet-50 3x3", [512, 512, 1], 7, 3, 1),
    layer("ResNet-50 3x3 s2", [128, 128, 1], 56, 3, 2),
    layer("ResNet-50 3x3 s2", [256, 256, 1], 28, 3, 2),
    layer("ResNet-50 3x3 s2", [512, 512, 1], 14, 3, 2),
    layer("ResNet-50 1x1", [64, 256, 1], 56, 1, 1),
    layer("ResNet-50 1x1", [256, 64, 1], 56, 1, 1),
    layer("ResNet-50 1x1", [512, 128, 1], 28, 1, 1),
    layer("ResNet-50 1x1", [256, 1024, 1], 14, 1, 1),
    layer("ResNet-50 1x1", [2048, 512, 1], 7, 1, 1),
    layer("ResNet-50 1x1 s2", [256, 512, 1], 56, 1, 2),
    layer("VGG 3x3", [64, 64, 1], 224, 3, 1),
    layer("MobileNetV2 depthwise", [144, 144, 144], 56, 3, 1),
    layer("MobileNetV2 depthwise s2", [144, 144, 144], 56, 3, 2),
    layer("MobileNetV2 depthwise", [384, 384, 384], 14, 3, 1),
    layer("MobileNetV2 depthwise", [960, 960, 960], 7, 3, 1),
    layer("MobileNetV2 pointwise", [24, 144, 1], 56, 1, 1),
    layer("MobileNetV2 pointwise", [384, 64, 1], 14, 1, 1),
    layer("ResNeXt-50 3x3, 32 groups", [128, 128, 32], 56, 3, 1),
];

/// Layers of small networks, which are trained on batches.
const SMALL: &[Layer] = &[
    layer("LeNet", [1, 6, 1], 28, 5, 1),
    layer("digits", [1, 16, 1], 28, 5, 1),
    layer("digits s2", [16, 32, 1], 28, 3, 2),
    layer("digits s2", [32, 64, 1], 14, 3, 2),
    layer("ResNet-20 stem", [3, 16, 1], 32, 3, 1),
    layer("ResNet-20", [16, 16, 1], 32, 3, 1),
    layer("ResNet-20 s2", [32, 64, 1], 16, 3, 2),
];

fn images(c: &mut Criterion, batch: usize, layers: &[Layer]) {
    support::measure_peaks();
    let mut group = c.benchmark_group(format!("conv2d batch {batch} f32"));
    for layer in layers {
        let &Layer { name, c_in, c_out, groups, size, kernel, stride } = layer;
        let conv = Convolution::<2>::new().stride([stride; 2]).padding([kernel / 2; 2]).groups(groups);
        let x = random::<f32, 4>([batch, c_in, size, size]);
        let w = random::<f32, 4>([c_out, c_in / groups, kernel, kernel]);
        let bias = random::<f32, 1>([c_out]);
        let shape = conv.output_shape(x.shape(), w.shape()).expect("fits");
        let (mut y, dz) = (Tensor::<f32, 4>::zeros(shape).expect("memory"), random::<f32, 4>(shape));
        let mut dx = Tensor::<f32, 4>::zeros(x.shape()).expect("memory");
        let mut dw = Tensor::<f32, 4>::zeros(w.shape()).expect("memory");
        let nchw = [0, 3, 1, 2];
        let last =
            |t: &Tensor<f32, 4>| t.view().permute([0, 2, 3, 1]).and_then(|t| t.to_tensor()).expect("memory");
        let (last_x, mut last_y) = (last(&x), last(&y));
        let packed = conv.pack(w.view()).expect("memory");
        let work = (Bound::FlopsF32, 2 * (y.len() * w.len() / c_out) as u64);
        let name = format!("{name} {c_in}-{c_out} at {size} b{batch}");
        let winograd = kernel == 3 && stride == 1 && groups == 1;
        for pool in pools() {
            let mut run = |what: &str, f: &mut (dyn FnMut() + Send)| {
                bench(&mut group, &pool, &format!("{name}, {what}"), work, f);
            };
            let relu = conv.activation(Activation::Relu);
            run("Y", &mut || {
                conv.forward_into(x.view(), w.view(), None, y.view_mut()).expect("fits");
            });
            run("Y packed, bias, ReLU", &mut || {
                relu.forward_into(x.view(), &packed, Some(bias.view()), y.view_mut()).expect("fits");
            });
            run("Y in NHWC", &mut || {
                let x = last_x.view().permute(nchw).expect("four axes");
                let y = last_y.view_mut().permute(nchw).expect("four axes");
                conv.forward_into(x, w.view(), None, y).expect("fits");
            });
            if winograd {
                let implicit = conv.algorithm(Algorithm::ImplicitGemm);
                run("Y by implicit GEMM", &mut || {
                    implicit.forward_into(x.view(), w.view(), None, y.view_mut()).expect("fits");
                });
                let direct = conv.algorithm(Algorithm::Direct);
                run("Y by direct ways", &mut || {
                    direct.forward_into(x.view(), w.view(), None, y.view_mut()).expect("fits");
                });
                let tiles = conv.algorithm(Algorithm::Winograd4);
                run("Y by Winograd4", &mut || {
                    tiles.forward_into(x.view(), w.view(), None, y.view_mut()).expect("fits");
                });
            }
            run("dX", &mut || {
                conv.backward_input_into(dz.view(), w.view(), dx.view_mut()).expect("fits");
            });
            run("dW", &mut || {
                conv.backward_weight_into(x.view(), dz.view(), dw.view_mut()).expect("fits");
            });
        }
    }
    group.finish();
}

/// Channels in and out, time steps, kernel, stride, dilation, batch and what has them.
const SEQUENCES: &[(usize, usize, usize, usize, usize, usize, usize, &str)] = &[
    (80, 512, 3000, 3, 1, 1, 1, "Whisper stem"),
    (512, 512, 3000, 3, 2, 1, 1, "Whisper stem, second"),
    (64, 64, 4096, 3, 1, 8, 4, "TCN, dilation 8"),
    (256, 256, 1024, 3, 1, 16, 4, "TCN, dilation 16"),
];

fn sequences(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("conv1d f32");
    for &(c_in, c_out, steps, kernel, stride, dilation, batch, name) in SEQUENCES {
        let conv = Convolution::<1>::new().stride([stride]).dilation([dilation]);
        let conv = conv.padding([dilation * (kernel / 2)]);
        let (x, w) = (random::<f32, 3>([batch, c_in, steps]), random::<f32, 3>([c_out, c_in, kernel]));
        let shape = conv.output_shape(x.shape(), w.shape()).expect("fits");
        let (mut y, dz) = (Tensor::<f32, 3>::zeros(shape).expect("memory"), random::<f32, 3>(shape));
        let mut dx = Tensor::<f32, 3>::zeros(x.shape()).expect("memory");
        let mut dw = Tensor::<f32, 3>::zeros(w.shape()).expect("memory");
        let work = (Bound::FlopsF32, 2 * (y.len() * w.len() / c_out) as u64);
        let name = format!("{name} {c_in}-{c_out} k{kernel} T{steps} b{batch}");
        for pool in pools() {
            bench(&mut group, &pool, &format!("{name}, Y"), work, || {
                conv.forward_into(x.view(), w.view(), None, y.view_mut()).expect("fits");
            });
            bench(&mut group, &pool, &format!("{name}, dX"), work, || {
                conv.backward_input_into(dz.view(), w.view(), dx.view_mut()).expect("fits");
            });
            bench(&mut group, &pool, &format!("{name}, dW"), work, || {
                conv.backward_weight_into(x.view(), dz.view(), dw.view_mut()).expect("fits");
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = support::criterion();
    images(&mut criterion, 1, LAYERS);
    images(&mut criterion, 8, LAYERS);
    images(&mut criterion, 64, SMALL);
    sequences(&mut criterion);
    criterion.final_summary();
    support::table();
}

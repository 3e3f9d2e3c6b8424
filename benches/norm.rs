//! Normalisation, in bytes read and written per second, as a share of what the machine copies.

mod support;

use criterion::Criterion;
use support::{Bound, bench, pools, random};
use tilewise::norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, NormGradientsMut,
    RmsGradientsMut, RmsNormalization,
};
use tilewise::{Tensor, TensorView};

/// Bytes of this many tensors of `n` elements.
fn bytes(tensors: u64, n: usize) -> (Bound, u64) {
    (Bound::Bytes, tensors * 4 * n as u64)
}

fn rows(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("norm rows f32");
    let (layer, rms) = (LayerNormalization::new(), RmsNormalization::new());
    // A million elements, the output of a BERT-base layer of 512 tokens, long rows, rows that stay in L2.
    for shape in [[1365, 768], [8192, 128], [512, 768], [256, 4096], [128, 768]] {
        let [count, n] = shape;
        let (x, residual) = (random::<f32, 2>(shape), random::<f32, 2>(shape));
        let [mut y, mut sum] = [Tensor::zeros(shape).expect("memory"), Tensor::zeros(shape).expect("memory")];
        let (scale, shift) = (random::<f32, 1>([n]), random::<f32, 1>([n]));
        let [mut dscale, mut dshift] =
            [Tensor::zeros([n]).expect("memory"), Tensor::zeros([n]).expect("memory")];
        let (scale, shift) = (Some(scale.view()), Some(shift.view()));
        for pool in pools() {
            let name = |kind| format!("{kind} {count}x{n}");
            bench(&mut group, &pool, &name("layer"), bytes(2, count * n), || {
                layer.forward_into(x.view(), scale, shift, y.view_mut()).expect("shapes fit");
            });
            bench(&mut group, &pool, &name("layer, residual"), bytes(4, count * n), || {
                let (sum, y) = (sum.view_mut(), y.view_mut());
                layer
                    .forward_residual_into(x.view(), residual.view(), scale, shift, sum, y)
                    .expect("shapes fit");
            });
            bench(&mut group, &pool, &name("layer, backward"), bytes(3, count * n), || {
                let (dx, dscale) = (Some(y.view_mut()), Some(dscale.view_mut()));
                let gradients = NormGradientsMut { input: dx, scale: dscale, shift: Some(dshift.view_mut()) };
                layer.backward_into(x.view(), scale, residual.view(), 0.0, gradients).expect("shapes fit");
            });
            bench(&mut group, &pool, &name("RMS"), bytes(2, count * n), || {
                rms.forward_into(x.view(), scale, y.view_mut()).expect("shapes fit");
            });
            bench(&mut group, &pool, &name("RMS, residual"), bytes(4, count * n), || {
                let (sum, y) = (sum.view_mut(), y.view_mut());
                rms.forward_residual_into(x.view(), residual.view(), scale, sum, y).expect("shapes fit");
            });
            bench(&mut group, &pool, &name("RMS, backward"), bytes(3, count * n), || {
                let gradients = RmsGradientsMut { input: Some(y.view_mut()), scale: Some(dscale.view_mut()) };
                rms.backward_into(x.view(), scale, residual.view(), 0.0, gradients).expect("shapes fit");
            });
        }
    }
    group.finish();
}

fn channels(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("norm channels f32");
    let (batch, instance, groups) =
        (BatchNormalization::new(), InstanceNormalization::new(), GroupNormalization::new(32));
    // ResNet-50 at its first and at its last size.
    for [b, c, h, w] in [[8, 64, 56, 56], [8, 512, 7, 7]] {
        let shape = [b, c, h, w];
        let (x, dy) = (random::<f32, 4>(shape), random::<f32, 4>(shape));
        let mut y = Tensor::<f32, 4>::zeros(shape).expect("memory");
        let mut vectors = [(); 4].map(|()| Tensor::<f32, 1>::full([c], 1.0).expect("memory"));
        let [scale, shift, mean, variance] = &mut vectors;
        let (scale, shift) = (Some(scale.view()), Some(shift.view()));
        let n = b * c * h * w;
        let last = [h * w * c, 1, w * c, c].map(|stride| stride as isize);
        for (layout, strides) in [("NCHW", x.view().strides()), ("NHWC", last)] {
            let view = |tensor| TensorView::as_strided(tensor, shape, strides).expect("inside");
            let (x, dy) = (view(x.as_slice()), view(dy.as_slice()));
            let mut out =
                tilewise::TensorViewMut::as_strided(y.as_mut_slice(), shape, strides).expect("inside");
            for pool in pools() {
                let name = |kind| format!("{kind} {b}x{c}x{h}x{w} {layout}");
                // x is read twice, for the statistics and for the result.
                bench(&mut group, &pool, &name("batch"), bytes(3, n), || {
                    let (mean, variance) = (mean.view_mut(), variance.view_mut());
                    batch
                        .forward_training_into(x, scale, shift, mean, variance, out.view_mut())
                        .expect("shapes fit");
                });
                bench(&mut group, &pool, &name("batch, constant"), bytes(2, n), || {
                    let (mean, variance) = (mean.view(), variance.view());
                    batch
                        .forward_inference_into(x, mean, variance, scale, shift, out.view_mut())
                        .expect("shapes fit");
                });
                bench(&mut group, &pool, &name("batch, backward"), bytes(5, n), || {
                    let gradients = NormGradientsMut {
                        input: Some(out.view_mut()),
                        scale: Some(variance.view_mut()),
                        shift: None,
                    };
                    batch.backward_into(x, Some(mean.view()), scale, dy, 0.0, gradients).expect("shapes fit");
                });
                bench(&mut group, &pool, &name("instance"), bytes(3, n), || {
                    instance.forward_into(x, scale, shift, out.view_mut()).expect("shapes fit");
                });
                bench(&mut group, &pool, &name("group"), bytes(3, n), || {
                    groups.forward_into(x, scale, shift, out.view_mut()).expect("shapes fit");
                });
            }
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = support::criterion();
    rows(&mut criterion);
    channels(&mut criterion);
    criterion.final_summary();
    support::table();
}

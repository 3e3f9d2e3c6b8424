//! Attention on the shapes of BERT and of decoders, as a share of the multiply-adds that the machine does in registers or,
//! decoding, of its read bandwidth. Causal products count half; forward and backward count three times forward, whatever is
//! computed again.

mod support;

use criterion::Criterion;
use support::{Bound, bench, pools, random};
use tilewise::attention::{Align, Attention, AttentionGradientsMut};
use tilewise::{Tensor, TensorView};

/// Batch, heads, length and dim.
const WORKLOADS: &[[usize; 4]] = &[
    [1, 12, 128, 64],
    [8, 12, 128, 64],
    [1, 12, 512, 64],
    [8, 12, 512, 64],
    [1, 12, 2048, 64],
    [1, 32, 1024, 128],
];

fn name(kind: &str, causal: bool, [batch, heads, length, dim]: [usize; 4]) -> String {
    let mask = if causal { "causal" } else { "full" };
    format!("{kind} {mask} B{batch} H{heads} L{length} D{dim}")
}

/// Multiply-adds of both products, as operations.
fn flops(causal: bool, [batch, heads, length, dim]: [usize; 4]) -> u64 {
    let all = 4 * (batch * heads * length * length * dim) as u64;
    if causal { all / 2 } else { all }
}

fn options(causal: bool) -> Attention<'static, f32> {
    if causal { Attention::new().causal(Align::Start) } else { Attention::new() }
}

fn forward(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("attention forward f32");
    for &shape in WORKLOADS {
        let [q, k, v] = [0; 3].map(|_| random::<f32, 4>(shape));
        let mut y = Tensor::zeros(shape).expect("memory");
        for causal in [false, true] {
            for pool in pools() {
                let work = (Bound::FlopsF32, flops(causal, shape));
                bench(&mut group, &pool, &name("forward", causal, shape), work, || {
                    let call = options(causal).forward_into(q.view(), k.view(), v.view(), y.view_mut());
                    call.expect("shapes fit");
                });
            }
        }
    }
    // Heads beside each other at each position, as projections leave them.
    let [batch, heads, length, dim] = [1, 12, 512, 64];
    let [q, k, v] = [0; 3].map(|_| random::<f32, 4>([batch, length, heads, dim]));
    let mut y = Tensor::<f32, 4>::zeros([batch, length, heads, dim]).expect("memory");
    let heads_first = |t: &Tensor<f32, 4>| -> [isize; 4] {
        let [batch, length, heads, dim] = t.view().strides();
        [batch, heads, length, dim]
    };
    let strides = heads_first(&q);
    let shape = [batch, heads, length, dim];
    let view = |t| TensorView::as_strided(t, shape, strides).expect("inside");
    for pool in pools() {
        let work = (Bound::FlopsF32, flops(false, shape));
        bench(&mut group, &pool, &name("forward, length before heads,", false, shape), work, || {
            let (q, k, v) = (view(q.as_slice()), view(k.as_slice()), view(v.as_slice()));
            let y = y.view_mut().permute([0, 2, 1, 3]).expect("axes");
            Attention::new().forward_into(q, k, v, y).expect("shapes fit");
        });
    }
    group.finish();
}

fn forward_backward(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("attention forward and backward f32");
    for &shape in WORKLOADS {
        let [q, k, v, dy] = [0; 4].map(|_| random::<f32, 4>(shape));
        let [mut y, mut dq, mut dk, mut dv] = [0; 4].map(|_| Tensor::<f32, 4>::zeros(shape).expect("memory"));
        let mut normalizer = Tensor::<f32, 3>::zeros([shape[0], shape[1], shape[2]]).expect("memory");
        for causal in [false, true] {
            for pool in pools() {
                let work = (Bound::FlopsF32, 3 * flops(causal, shape));
                bench(&mut group, &pool, &name("forward and backward", causal, shape), work, || {
                    let (options, q, k, v) = (options(causal), q.view(), k.view(), v.view());
                    let saved = (y.view_mut(), normalizer.view_mut());
                    options.forward_saving_into(q, k, v, saved.0, saved.1).expect("shapes fit");
                    let gradients = AttentionGradientsMut {
                        query: Some(dq.view_mut()),
                        key: Some(dk.view_mut()),
                        value: Some(dv.view_mut()),
                        bias: None,
                    };
                    let (y, normalizer) = (y.view(), normalizer.view());
                    options.backward_into(q, k, v, y, normalizer, dy.view(), gradients).expect("shapes fit");
                });
            }
        }
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    support::measure_peaks();
    let mut group = c.benchmark_group("attention decode f32");
    let [heads, kv_heads, dim] = [32, 8, 128];
    for keys in [2048, 8192] {
        let q = random::<f32, 4>([1, heads, 1, dim]);
        let [k, v] = [0; 2].map(|_| random::<f32, 4>([1, kv_heads, keys, dim]));
        let mut y = Tensor::zeros([1, heads, 1, dim]).expect("memory");
        for pool in pools() {
            let bytes = (2 * kv_heads * keys * dim * size_of::<f32>()) as u64;
            let name = format!("decode H{heads} KV{kv_heads} L{keys} D{dim}");
            bench(&mut group, &pool, &name, (Bound::Read, bytes), || {
                let options = Attention::new().causal(Align::End);
                options.forward_into(q.view(), k.view(), v.view(), y.view_mut()).expect("shapes fit");
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = support::criterion();
    forward(&mut criterion);
    forward_backward(&mut criterion);
    decode(&mut criterion);
    criterion.final_summary();
    support::table();
}

//! Attention against its scalar twin, on every instruction set of this machine.

mod common;

use common::{Strided, bits, in_pools, quickcheck, size, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::attention::{Align, Attention, AttentionGradientsMut};
use tilewise::machine::{self, Isa};
use tilewise::reference::attention as twin;
use tilewise::{Element, Tensor, TensorView};

#[derive(Clone, Debug)]
struct Case<T> {
    isa: Isa,
    q: Strided<T, 4>,
    k: Strided<T, 4>,
    v: Strided<T, 4>,
    dy: Strided<T, 4>,
    y: Strided<T, 4>,
    dq: Strided<T, 4>,
    dk: Strided<T, 4>,
    dv: Strided<T, 4>,
    scale: Option<f64>,
    soft_cap: Option<f64>,
    slopes: Option<Strided<T, 1>>,
    bias: Option<Strided<T, 4>>,
    mask: Option<(Vec<bool>, [usize; 4])>,
    causal: bool,
    window: Option<usize>,
    align: Align,
    lengths: Option<Vec<usize>>,
    dropout: Option<(f64, u64)>,
}

impl<T: Element> Arbitrary for Case<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let (batch, kv_heads, group) = (within(g, 0..3), within(g, 1..3), within(g, 1..4));
        let heads = kv_heads * group;
        let length = |g: &mut Gen| match u8::arbitrary(g) % 8 {
            0 => within(g, 65..300),
            _ => size(g),
        };
        let (queries, keys) = (length(g), length(g));
        let keys = if bool::arbitrary(g) { queries } else { keys };
        let queries = if u8::arbitrary(g).is_multiple_of(4) { within(g, 0..4) } else { queries };
        let dim = if u8::arbitrary(g).is_multiple_of(8) { within(g, 1..257) } else { size(g) };
        let value_dim = if bool::arbitrary(g) { dim } else { size(g) };
        let some = |g: &mut Gen| u8::arbitrary(g).is_multiple_of(4);
        let broadcast = |g: &mut Gen| {
            [batch, heads, queries, keys]
                .map(|size| if u8::arbitrary(g).is_multiple_of(3) { 1 } else { size })
        };
        Case {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            q: Strided::random(g, [batch, heads, queries, dim]),
            k: Strided::random(g, [batch, kv_heads, keys, dim]),
            v: Strided::random(g, [batch, kv_heads, keys, value_dim]),
            dy: Strided::random(g, [batch, heads, queries, value_dim]),
            y: Strided::random(g, [batch, heads, queries, value_dim]),
            dq: Strided::random(g, [batch, heads, queries, dim]),
            dk: Strided::random(g, [batch, kv_heads, keys, dim]),
            dv: Strided::random(g, [batch, kv_heads, keys, value_dim]),
            scale: some(g).then_some(0.3),
            soft_cap: some(g).then_some(1.5),
            slopes: some(g).then(|| Strided::random(g, [heads])),
            bias: some(g).then(|| {
                let shape = broadcast(g);
                let mut bias = Strided::random(g, shape);
                let mut view = bias.view_mut();
                for index in shape[3].min(1)..shape[3] {
                    if index % 3 == 0 && shape[..3].iter().all(|&n| n > 0) {
                        *view.get_mut([0, 0, 0, index]).unwrap() = T::NEG_INFINITY;
                    }
                }
                bias
            }),
            mask: some(g).then(|| {
                let shape = broadcast(g);
                let dense = bool::arbitrary(g);
                let flag = |_| if dense { u8::arbitrary(g) > 30 } else { u8::arbitrary(g) < 30 };
                ((0..shape.iter().product()).map(flag).collect(), shape)
            }),
            causal: bool::arbitrary(g),
            window: some(g).then(|| within(g, 1..80)),
            align: if bool::arbitrary(g) { Align::Start } else { Align::End },
            lengths: some(g).then(|| (0..batch).map(|_| within(g, 0..keys + 1)).collect()),
            dropout: some(g).then(|| (0.25, u64::arbitrary(g))),
        }
    }
}

impl<T: Element> Case<T> {
    /// `f` with the options and their twin.
    fn with_options<R>(&self, f: impl FnOnce(Attention<'_, T>, twin::Attention<'_, T>) -> R) -> R {
        let dim = self.q.shape[3];
        let scale = T::from_f64(self.scale.unwrap_or(1.0 / (dim.max(1) as f64).sqrt()));
        let mut options = Attention::new();
        let mut expected = twin::Attention::new(scale.to_f64());
        if self.scale.is_some() {
            options = options.scale(scale);
        }
        if let Some(cap) = self.soft_cap {
            options = options.soft_cap(T::from_f64(cap));
            expected.soft_cap = Some(cap);
        }
        if let Some(slopes) = &self.slopes {
            options = options.alibi(slopes.view());
            expected.slopes = Some(slopes.view());
        }
        if let Some(bias) = &self.bias {
            options = options.bias(bias.view());
            expected.bias = Some(bias.view());
        }
        if let Some((mask, shape)) = &self.mask {
            let mask = TensorView::from_slice(mask, *shape).unwrap();
            options = options.mask(mask);
            expected.mask = Some(mask);
        }
        options = if self.causal { options.causal(self.align) } else { options.align(self.align) };
        expected.causal = self.causal;
        expected.align_end = self.align == Align::End;
        if let Some(window) = self.window {
            options = options.window(window);
            expected.window = Some(window);
        }
        if let Some(lengths) = &self.lengths {
            options = options.key_lengths(lengths);
            expected.lengths = Some(lengths);
        }
        if let Some((rate, seed)) = self.dropout {
            options = options.dropout(rate, seed);
        }
        let factor_of = options;
        let factor_of = move |index| factor_of.dropout_factor(index).to_f64();
        expected.factor = Some(&factor_of);
        f(options, expected)
    }
}

/// |found − expected| ≤ bound for each element.
fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    bound: f64,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let shape = expected.shape();
    for (at, (found, &expected)) in found.iter().zip(expected).enumerate() {
        let found = found.to_f64();
        let close = found == expected || (found - expected).abs() <= bound * (1.0 + expected.abs());
        assert!(close, "{what} element {at} of {shape:?}: {found} {expected} ± {bound}");
    }
}

fn check<T: Element>(case: Case<T>) -> bool {
    machine::with_isa(case.isa, || run(case)).expect("supported")
}

fn run<T: Element>(mut case: Case<T>) -> bool {
    let nothing = || Strided::random(&mut Gen::new(1), [0; 4]);
    let mut outputs = [&mut case.y, &mut case.dq, &mut case.dk, &mut case.dv].map(|output| {
        output.view_mut().fill(T::NAN);
        std::mem::replace(output, nothing())
    });
    let [y, dq, dk, dv] = &mut outputs;
    let (q, k, v, dy) = (case.q.view(), case.k.view(), case.v.view(), case.dy.view());
    let ([_, _, queries, dim], [_, _, keys, value_dim]) = (q.shape(), v.shape());
    case.with_options(|options, expected| {
        let twin = expected.forward(q, k, v).unwrap();
        // Scores have at most dim · 4 · scale, and their errors are relative errors of weights, which are averages of
        // values of at most 2, or a third more with dropout.
        let scale = case.scale.unwrap_or(1.0 / (dim.max(1) as f64).sqrt());
        let scores = 8.0 + 4.0 * dim as f64 * scale + case.slopes.as_ref().map_or(0.0, |_| 600.0);
        let bound = T::EPSILON.to_f64() * (40.0 + (dim as f64).sqrt() * scores);
        options.forward_into(q, k, v, y.view_mut()).unwrap();
        near("y", y.view(), &twin.output, 3.0 * bound);
        let saved = options.forward_saving(q, k, v).unwrap();
        near("saved y", saved.output.view(), &twin.output, 3.0 * bound);
        near("normalizer", saved.normalizer.view(), &twin.normalizer, bound);

        // dA is at most 4 · value_dim · 4/3; a sum over queries of such terms times weights times values of at most 2.
        let twin = expected.backward(q, k, v, dy).unwrap();
        let da = 6.0 * (value_dim as f64).sqrt() * (dim as f64).sqrt().max(1.0);
        let many = (case.q.shape[1] * queries) as f64;
        let bounds =
            [bound * da * (1.0 + scale), bound * da * (1.0 + scale) * many.sqrt(), bound * many.sqrt()];
        let mut bias = case.bias.as_ref().map(|bias| Tensor::full(bias.shape, T::NAN).unwrap());
        let gradients = AttentionGradientsMut {
            query: Some(dq.view_mut()),
            key: Some(dk.view_mut()),
            value: Some(dv.view_mut()),
            bias: bias.as_mut().map(Tensor::view_mut),
        };
        options.backward_into(q, k, v, saved.output.view(), saved.normalizer.view(), dy, gradients).unwrap();
        near("dq", dq.view(), &twin.query, bounds[0]);
        near("dk", dk.view(), &twin.key, 4.0 * bounds[1]);
        near("dv", dv.view(), &twin.value, 8.0 * bounds[2]);
        if let Some(bias) = bias {
            let shape = bias.shape();
            let mut sums = Tensor::<f64, 4>::zeros(shape).unwrap();
            let full = twin.bias.shape();
            Tensor::<f64, 4>::from_fn(full, |index| {
                let to = std::array::from_fn(|axis| if shape[axis] == 1 { 0 } else { index[axis] });
                *sums.get_mut(to).unwrap() += twin.bias.get(index).unwrap();
                0.0
            })
            .unwrap();
            let terms = full.iter().product::<usize>() as f64 / shape.iter().product::<usize>().max(1) as f64;
            near("bias gradient", bias.view(), &sums, bound * da * 4.0 * terms.sqrt().max(1.0));
        }
        let owned = options.backward(q, k, v, &saved, dy).unwrap();
        assert!(keys == 0 || bits(&dense(dq.view())) == bits(owned.query.as_slice()));
    });
    outputs.iter().all(Strided::canaries_live)
}

/// The elements in order.
fn dense<T: Element>(view: TensorView<'_, T, 4>) -> Vec<T> {
    view.iter().copied().collect()
}

#[test]
fn equals_the_reference_in_f32() {
    quickcheck(400, check::<f32> as fn(Case<f32>) -> bool);
}

#[test]
fn equals_the_reference_in_f64() {
    quickcheck(400, check::<f64> as fn(Case<f64>) -> bool);
}

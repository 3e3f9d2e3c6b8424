//! Layers of transformers: against compositions of scalar twins, and their gradients against differences.

mod common;

use common::wave;
use std::collections::HashMap;

use tilewise::activation::Activation;
use tilewise::attention::Align;
use tilewise::layer::{
    FeedForward, Layer, Linear, MultiHeadAttention, NormOrder, Parameters, RmsNorm, Rotary, TransformerBlock,
};
use tilewise::reference::norm::Norm;
use tilewise::reference::transformer as twin;
use tilewise::{Tensor, TensorView, random::Rng};

/// All gradients of Σ R ⊙ layer(x) against central differences.
fn check_gradients(layer: &mut dyn Layer<f64, 3, 3>, x: &Tensor<f64, 3>) {
    let mut x = x.view().to_tensor().unwrap();
    let r = wave(x.shape(), 0.9);
    let loss = |layer: &dyn Layer<f64, 3, 3>, x: &Tensor<f64, 3>| {
        let y = layer.infer(x.view()).unwrap();
        y.iter().zip(&r).map(|(y, r)| y * r).sum::<f64>()
    };
    layer.zero_gradients();
    let y = layer.forward(x.view()).unwrap();
    assert!(y == layer.infer(x.view()).unwrap());
    let dx = layer.backward(r.view()).unwrap();
    let h = 1e-5;
    let near = |what: &str, found: f64, gradient: f64| {
        assert!((found - gradient).abs() < 1e-7 * (1.0 + gradient.abs()), "{what}: {found} {gradient}");
    };
    for i in 0..x.len() {
        let [high, low] = [h, -h].map(|h| {
            x.as_mut_slice()[i] += h;
            let loss = loss(layer, &x);
            x.as_mut_slice()[i] -= h;
            loss
        });
        near("dx", (high - low) / (2.0 * h), dx.as_slice()[i]);
    }
    let mut sizes = Vec::new();
    layer.visit(&mut |name, parameter| sizes.push((name.to_owned(), parameter.len())));
    for (name, len) in sizes {
        for i in (0..len).step_by(1 + len / 40) {
            let mut gradient = 0.0;
            let [high, low] = [h, -h].map(|h| {
                let mut change = |by: f64, layer: &mut dyn Layer<f64, 3, 3>| {
                    layer.visit_mut(&mut |found, parameter| {
                        if found == name {
                            parameter.value_mut()[i] += by;
                            gradient = parameter.gradient()[i];
                        }
                    });
                };
                change(h, layer);
                let loss = loss(layer, &x);
                change(-h, layer);
                loss
            });
            near(&name, (high - low) / (2.0 * h), gradient);
        }
    }
}

#[test]
fn gradients_are_central_differences() {
    let mut rng = Rng::seed(3);
    let x = wave([2, 5, 8], 0.1);
    let attention = |rng: &mut Rng| MultiHeadAttention::<f64>::grouped(8, 4, 2, rng).unwrap();
    let rotary = || Rotary::new(2, 9, 100.0).unwrap();
    check_gradients(&mut attention(&mut rng), &x);
    check_gradients(&mut attention(&mut rng).causal(Align::Start).rotary(rotary()), &x);
    check_gradients(&mut attention(&mut rng).rotary(rotary().interleaved()), &x);
    check_gradients(&mut FeedForward::new(8, 12, Activation::Gelu, &mut rng).unwrap(), &x);
    check_gradients(&mut FeedForward::gated(8, 12, Activation::Silu, &mut rng).unwrap(), &x);
    for order in [NormOrder::Pre, NormOrder::Post] {
        check_gradients(&mut TransformerBlock::encoder(8, 2, 16, order, &mut rng).unwrap(), &x);
        let swiglu = FeedForward::gated(8, 12, Activation::Silu, &mut rng).unwrap();
        let norms: [Box<dyn Layer<f64, 3, 3> + Send + Sync>; 2] =
            [Box::new(RmsNorm::new(8).unwrap()), Box::new(RmsNorm::new(8).unwrap())];
        let attention = attention(&mut rng).causal(Align::Start);
        check_gradients(&mut TransformerBlock::from_parts(attention, swiglu, norms, order), &x);
    }
}

/// The parameters of a layer, all made different from their initial values.
struct Values(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Values {
    fn of(layer: &mut dyn Layer<f64, 3, 3>) -> Self {
        let (mut found, mut phase) = (HashMap::new(), 0.0);
        layer.visit_mut(&mut |name, parameter| {
            phase += 0.3;
            let wave = wave::<f64, 1>([parameter.len()], phase);
            parameter.value_mut().iter_mut().zip(&wave).for_each(|(x, wave)| *x += 0.3 * wave);
            found.insert(name.to_owned(), (parameter.shape().to_vec(), parameter.value().to_vec()));
        });
        Self(found)
    }

    fn view<const N: usize>(&self, name: &str) -> TensorView<'_, f64, N> {
        let (shape, values) = &self.0[name];
        TensorView::from_slice(values, shape.as_slice().try_into().unwrap()).unwrap()
    }

    fn dense(&self, name: &str) -> twin::Linear<'_, f64> {
        let bias = Some(self.view(&format!("{name}.bias")));
        twin::Linear { weight: self.view(&format!("{name}.weight")), bias }
    }

    fn attention(&self, prefix: &str, heads: [usize; 2]) -> twin::MultiHeadAttention<'_, f64> {
        let name = |name: &str| format!("{prefix}{name}");
        let projection = |weight: &str, bias: &str| twin::Linear {
            weight: self.view::<2>(&name(weight)).transpose(),
            bias: Some(self.view(&name(bias))),
        };
        twin::MultiHeadAttention {
            heads,
            input: projection("in_proj_weight", "in_proj_bias"),
            output: projection("out_proj.weight", "out_proj.bias"),
            causal: false,
            rotary: None,
        }
    }

    fn feed_forward(&self, prefix: &str, activation: Activation) -> twin::FeedForward<'_, f64> {
        let name = |name: &str| format!("{prefix}{name}");
        let gate = self.0.contains_key(&name("gate.weight")).then(|| self.dense(&name("gate")));
        twin::FeedForward { up: self.dense(&name("up")), gate, down: self.dense(&name("down")), activation }
    }

    fn norm(&self, name: &str, norm: Norm) -> twin::RowNorm<'_, f64> {
        let [scale, shift] = ["weight", "bias"].map(|part| format!("{name}.{part}"));
        let shift = self.0.contains_key(&shift).then(|| self.view(&shift));
        let epsilon = if norm == Norm::Rms { 1e-6 } else { 1e-5 };
        twin::RowNorm { norm, scale: Some(self.view(&scale)), shift, epsilon }
    }
}

fn near(found: &Tensor<f64, 3>, expected: &Tensor<f64, 3>) {
    assert!(found.view().all_close(expected.view(), 1e-12, 1e-12));
}

#[test]
fn feed_forward_from_given_weights_equals_its_twin() {
    let (x, [width, hidden]) = (wave([2, 5, 6], 0.1), [6, 10]);
    let weight = |shape, phase| wave(shape, phase);
    for gated in [false, true] {
        let dense = |shape: [usize; 2], phase, biased: bool| {
            Linear::from_parts(weight(shape, phase), biased.then(|| wave([shape[1]], 2.0))).unwrap()
        };
        let gate = gated.then(|| dense([width, hidden], 0.4, false));
        let (up, down) = (dense([width, hidden], 0.3, true), dense([hidden, width], 0.5, true));
        let layer = FeedForward::from_parts(Activation::Silu, up, gate, down).unwrap();
        let (w1, w3, w2) =
            (weight([width, hidden], 0.3), weight([width, hidden], 0.4), weight([hidden, width], 0.5));
        let (b1, b2) = (wave([hidden], 2.0), wave([width], 2.0));
        let twin = twin::FeedForward {
            up: twin::Linear { weight: w1.view(), bias: Some(b1.view()) },
            gate: gated.then(|| twin::Linear { weight: w3.view(), bias: None }),
            down: twin::Linear { weight: w2.view(), bias: Some(b2.view()) },
            activation: Activation::Silu,
        };
        near(&layer.infer(x.view()).unwrap(), &twin.forward(x.view()).unwrap());
    }
}

#[test]
fn dense_layers_that_make_no_feed_forward_part_are_refused() {
    let dense = |shape: [usize; 2]| Linear::<f64>::from_parts(wave(shape, 0.1), None).unwrap();
    let error = |up, gate: Option<[usize; 2]>, down| {
        let gate = gate.map(dense);
        FeedForward::from_parts(Activation::Gelu, dense(up), gate, dense(down)).unwrap_err().to_string()
    };
    assert_eq!(
        error([3, 5], None, [5, 4]),
        "FeedForward::from_parts: weight of down has shape [5, 4], expected [5, 3]"
    );
    assert_eq!(
        error([3, 5], Some([5, 3]), [5, 3]),
        "FeedForward::from_parts: weight of gate has shape [5, 3], expected [3, 5]"
    );
}

#[test]
fn multi_head_attention_equals_its_twin() {
    let (x, context) = (wave([2, 5, 12], 0.1), wave([2, 7, 12], 0.2));
    for (causal, rotary) in [(false, None), (true, None), (true, Some(false)), (true, Some(true))] {
        let mut layer = MultiHeadAttention::<f64>::grouped(12, 6, 2, &mut Rng::seed(5)).unwrap();
        if causal {
            layer = layer.causal(Align::Start);
        }
        if let Some(interleaved) = rotary {
            let rotary = Rotary::new(2, 9, 100.0).unwrap();
            layer = layer.rotary(if interleaved { rotary.interleaved() } else { rotary });
        }
        let values = Values::of(&mut layer);
        let mut twin = values.attention("", [6, 2]);
        twin.causal = causal;
        twin.rotary = rotary.map(|interleaved| twin::Rotary { base: 100.0, interleaved });
        near(&layer.infer(x.view()).unwrap(), &twin.forward(x.view(), x.view()).unwrap());
        let cross = layer.infer_cross(x.view(), context.view()).unwrap();
        near(&cross, &twin.forward(x.view(), context.view()).unwrap());
    }
}

#[test]
fn the_gradient_for_the_context_is_central_differences() {
    let (x, mut context) = (wave([2, 5, 12], 0.1), wave([2, 7, 12], 0.2));
    let mut layer = MultiHeadAttention::<f64>::new(12, 3, &mut Rng::seed(5)).unwrap();
    layer.forward_cross(x.view(), context.view()).unwrap();
    let r = wave([2, 5, 12], 0.7);
    let (_, dcontext) = layer.backward_cross(r.view()).unwrap();
    let dcontext = dcontext.unwrap();
    for i in 0..context.len() {
        let [high, low] = [1e-5, -1e-5].map(|h| {
            context.as_mut_slice()[i] += h;
            let y = layer.infer_cross(x.view(), context.view()).unwrap();
            context.as_mut_slice()[i] -= h;
            y.iter().zip(&r).map(|(y, r)| y * r).sum::<f64>()
        });
        assert!(((high - low) / 2e-5 - dcontext.as_slice()[i]).abs() < 1e-7);
    }
}

#[test]
fn feed_forward_equals_its_twin() {
    let (x, mut rng) = (wave([2, 5, 8], 0.1), Rng::seed(2));
    let gelu = FeedForward::<f64>::new(8, 12, Activation::Gelu, &mut rng).unwrap();
    let swiglu = FeedForward::<f64>::gated(8, 12, Activation::Silu, &mut rng).unwrap();
    for (mut layer, activation) in [(gelu, Activation::Gelu), (swiglu, Activation::Silu)] {
        let values = Values::of(&mut layer);
        let twin = values.feed_forward("", activation);
        near(&layer.infer(x.view()).unwrap(), &twin.forward(x.view()).unwrap());
    }
}

#[test]
fn a_block_equals_its_twin() {
    let x = wave([2, 5, 8], 0.1);
    for (order, rms) in
        [(NormOrder::Pre, false), (NormOrder::Pre, true), (NormOrder::Post, false), (NormOrder::Post, true)]
    {
        let mut rng = Rng::seed(2);
        let mut block = if rms {
            let attention = MultiHeadAttention::grouped(8, 4, 2, &mut rng).unwrap();
            let swiglu = FeedForward::gated(8, 12, Activation::Silu, &mut rng).unwrap();
            let norms: [Box<dyn Layer<f64, 3, 3> + Send + Sync>; 2] =
                [Box::new(RmsNorm::new(8).unwrap()), Box::new(RmsNorm::new(8).unwrap())];
            TransformerBlock::from_parts(attention, swiglu, norms, order)
        } else {
            TransformerBlock::<f64>::decoder(8, 4, 12, order, &mut rng).unwrap()
        };
        let values = Values::of(&mut block);
        let (norm, activation) =
            if rms { (Norm::Rms, Activation::Silu) } else { (Norm::Layer, Activation::Gelu) };
        let mut attention = values.attention("attention.", [4, if rms { 2 } else { 4 }]);
        attention.causal = !rms;
        let twin = twin::TransformerBlock {
            attention,
            feed_forward: values.feed_forward("feed_forward.", activation),
            norms: [values.norm("norm1", norm), values.norm("norm2", norm)],
            pre: order == NormOrder::Pre,
        };
        near(&block.infer(x.view()).unwrap(), &twin.forward(x.view()).unwrap());
    }
}

#[test]
fn positions_equal_their_twins() {
    for (length, dim) in [(0, 4), (3, 0), (7, 5), (50, 16)] {
        let encoding = tilewise::layer::sinusoidal::<f64>(length, dim).unwrap();
        assert!(encoding.view().all_close(twin::sinusoidal(length, dim).unwrap().view(), 0.0, 1e-13));
    }
    for interleaved in [false, true] {
        let rotary = Rotary::new(6, 60, 1e4).unwrap();
        let rotary = if interleaved { rotary.interleaved() } else { rotary };
        let x = wave([2, 3, 5, 6], 0.1);
        let mut y = x.view().to_tensor().unwrap();
        rotary.apply(y.view_mut(), 50).unwrap();
        let expected = twin::Rotary { base: 1e4, interleaved }.apply(x.view(), 50).unwrap();
        assert!(y.view().all_close(expected.view(), 0.0, 1e-13));
        rotary.revert(y.view_mut(), 50).unwrap();
        assert!(y.view().all_close(x.view(), 0.0, 1e-13));
    }
}

/// With the unit matrix for values and for the output's projection, what comes out are the weights.
#[test]
fn dropout_takes_weights_in_training_alone() {
    let n = 64;
    let mut weight = Tensor::<f64, 2>::zeros([3 * n, n]).unwrap();
    for i in 0..n {
        *weight.get_mut([2 * n + i, i]).unwrap() = 1.0;
    }
    let unit = weight.view().slice(0, 2 * n.., 1).unwrap().to_tensor().unwrap();
    let x = unit.view().reshape([1, n, n]).unwrap().to_tensor().unwrap();
    let layer = |seed| {
        let (weight, unit) = (weight.view().to_tensor().unwrap(), unit.view().to_tensor().unwrap());
        MultiHeadAttention::from_parts([1, 1], weight, None, unit, None).unwrap().dropout(0.25, seed).unwrap()
    };
    let mut one = layer(3);
    let all = one.infer(x.view()).unwrap();
    assert!(all.iter().all(|&weight| (weight - 1.0 / 64.0).abs() < 1e-12));
    assert!(one.weights(x.view()).unwrap().as_slice() == all.as_slice());
    let first = one.forward(x.view()).unwrap();
    let dropped = first.iter().filter(|&&weight| weight == 0.0).count();
    // Six standard deviations.
    assert!((dropped as f64 - 1024.0).abs() < 6.0 * (4096.0f64 * 0.1875).sqrt(), "{dropped}");
    assert!(first.iter().all(|&weight| weight == 0.0 || (weight - 1.0 / 48.0).abs() < 1e-12));
    assert!(one.forward(x.view()).unwrap() != first);
    assert!(layer(3).forward(x.view()).unwrap() == first);
    assert!(layer(4).forward(x.view()).unwrap() != first);
    assert!(one.infer(x.view()).unwrap() == all);
}

#[test]
fn weights_are_those_that_attention_has() {
    let n = 9;
    // The rows of V, and the output's projection, are unit matrices.
    let unit = Tensor::from_fn([n, n], |[i, j]| if i == j { 1.0 } else { 0.0 }).unwrap();
    let x = unit.view().reshape([1, n, n]).unwrap();
    let some = wave([n, n], 0.7);
    for causal in [false, true] {
        let projections = [some.view(), some.view().transpose(), unit.view()];
        let unit = unit.view().to_tensor().unwrap();
        let mut layer = MultiHeadAttention::from_projections([1, 1], projections, unit).unwrap();
        if causal {
            layer = layer.causal(Align::Start);
        }
        let weights = layer.weights(x).unwrap().reshape([1, n, n]).unwrap();
        assert!(weights.view().all_close(layer.infer(x).unwrap().view(), 1e-12, 1e-12));
        assert_eq!(weights.as_slice()[1] == 0.0, causal);
    }
}

#[test]
fn gradients_under_dropout_are_central_differences() {
    let x = wave([2, 4, 8], 0.1);
    let r = wave([2, 4, 8], 0.9);
    for order in [NormOrder::Pre, NormOrder::Post] {
        // The first call of equal layers drops the same elements.
        let make = || {
            let block = TransformerBlock::<f64>::decoder(8, 2, 12, order, &mut Rng::seed(6)).unwrap();
            block.dropout(0.3, 11).unwrap()
        };
        let loss = |mut block: TransformerBlock<f64>, x: &Tensor<f64, 3>| {
            let y = block.forward(x.view()).unwrap();
            y.iter().zip(&r).map(|(y, r)| y * r).sum::<f64>()
        };
        let mut block = make();
        let y = block.forward(x.view()).unwrap();
        assert!(y != block.infer(x.view()).unwrap());
        let plain = TransformerBlock::<f64>::decoder(8, 2, 12, order, &mut Rng::seed(6)).unwrap();
        assert!(plain.infer(x.view()).unwrap() == block.infer(x.view()).unwrap());
        let dx = block.backward(r.view()).unwrap();
        block.zero_gradients();
        assert!(block.backward(r.view()).unwrap() == dx);
        let h = 1e-5;
        let near = |what: &str, [high, low]: [f64; 2], gradient: f64| {
            let found = (high - low) / (2.0 * h);
            assert!((found - gradient).abs() < 1e-7 * (1.0 + gradient.abs()), "{what}: {found} {gradient}");
        };
        for i in 0..x.len() {
            let losses = [h, -h].map(|h| {
                let mut x = x.view().to_tensor().unwrap();
                x.as_mut_slice()[i] += h;
                loss(make(), &x)
            });
            near("dx", losses, dx.as_slice()[i]);
        }
        let mut gradients = Vec::new();
        block.visit(&mut |name, parameter| {
            let at = parameter.len() / 3;
            gradients.push((name.to_owned(), at, parameter.gradient()[at]));
        });
        for (name, at, gradient) in gradients {
            let losses = [h, -h].map(|h| {
                let mut block = make();
                block.visit_mut(&mut |found, parameter| {
                    if found == name {
                        parameter.value_mut()[at] += h;
                    }
                });
                loss(block, &x)
            });
            near(&name, losses, gradient);
        }
    }
}

#[test]
fn rotated_products_know_the_distance_alone() {
    let (q, k) = (wave([1, 1, 1, 6], 0.1), wave([1, 1, 1, 6], 0.2));
    let rotaries = [Rotary::new(6, 50, 1e4).unwrap(), Rotary::new(6, 50, 1e4).unwrap().interleaved()];
    for rotary in rotaries {
        let product = |i: usize, j: usize| {
            let (mut q, mut k) = (q.view().to_tensor().unwrap(), k.view().to_tensor().unwrap());
            rotary.apply(q.view_mut(), i).unwrap();
            rotary.apply(k.view_mut(), j).unwrap();
            q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>()
        };
        assert!((product(3, 1) - product(40, 38)).abs() < 1e-12);
        assert!((product(3, 1) - product(3, 2)).abs() > 1e-3);
        // Any strides alike.
        let x = wave([1, 3, 4, 6], 0.3);
        let mut wide = Tensor::<f64, 4>::zeros([6, 4, 3, 1]).unwrap();
        wide.view_mut().transpose().assign(x.view()).unwrap();
        let mut x = x;
        rotary.apply(x.view_mut(), 5).unwrap();
        rotary.apply(wide.view_mut().transpose(), 5).unwrap();
        assert!(x.view() == wide.view().transpose());
    }
}

#[test]
fn bad_input_is_refused() {
    let mut rng = Rng::seed(1);
    let text = |result: tilewise::Result<()>| result.unwrap_err().to_string();
    let new = |width, heads, kv_heads| {
        text(MultiHeadAttention::<f32>::grouped(width, heads, kv_heads, &mut Rng::seed(1)).map(|_| ()))
    };
    assert_eq!(new(8, 3, 3), "MultiHeadAttention::new: heads is 3, expected a divisor of the width");
    assert_eq!(new(8, 4, 3), "MultiHeadAttention::new: kv_heads is 3, expected a divisor of heads");
    let mut layer = MultiHeadAttention::<f32>::new(8, 2, &mut rng).unwrap();
    let x = Tensor::<f32, 3>::zeros([1, 3, 8]).unwrap();
    let narrow = Tensor::<f32, 3>::zeros([1, 3, 7]).unwrap();
    assert_eq!(
        text(layer.infer(narrow.view()).map(|_| ())),
        "MultiHeadAttention::infer: x has shape [1, 3, 7], expected [1, 3, 8]"
    );
    assert!(text(layer.backward(x.view()).map(|_| ())).contains("a call of forward before"));
    let mut cache = layer.cache(1, 2).unwrap();
    let full = text(layer.decode(x.view(), &mut cache).map(|_| ()));
    assert_eq!(full, "KvCache::append: the number of positions is 3, expected at most the room that is left");
    assert!(cache.is_empty());
    for probability in [-0.1, 1.0, f64::NAN] {
        let layer = MultiHeadAttention::<f32>::new(8, 2, &mut rng).unwrap();
        assert_eq!(
            text(layer.dropout(probability, 1).map(|_| ())),
            format!(
                "MultiHeadAttention::dropout: probability is {probability}, expected at least 0 and less than 1"
            )
        );
    }
    layer.forward(x.view()).unwrap();
    assert_eq!(
        text(layer.backward(narrow.view()).map(|_| ())),
        "MultiHeadAttention::backward: dy has shape [1, 3, 7], expected [1, 3, 8]"
    );
    let turned =
        MultiHeadAttention::<f32>::new(8, 2, &mut rng).unwrap().rotary(Rotary::new(4, 2, 1e4).unwrap());
    assert_eq!(
        text(turned.infer(x.view()).map(|_| ())),
        "MultiHeadAttention::infer: a position is 2, expected less than the number of positions of the encoding"
    );
    assert!(Rotary::<f32>::new(3, 2, 1e4).is_err());
    let weights = Tensor::<f32, 2>::zeros([24, 8]).unwrap();
    let wrong: TensorView<'_, f32, 2> = weights.view().slice(0, ..7, 1).unwrap();
    let parts = MultiHeadAttention::from_parts(
        [2, 2],
        weights.view().to_tensor().unwrap(),
        None,
        wrong.to_tensor().unwrap(),
        None,
    );
    assert_eq!(
        text(parts.map(|_| ())),
        "MultiHeadAttention::from_parts: out_weight has shape [7, 8], expected [8, 8]"
    );
}

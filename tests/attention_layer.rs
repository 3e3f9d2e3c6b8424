//! Layers of transformers: against compositions of scalar twins, and their gradients against differences.

mod common;

use tilewise::activation::Activation;
use tilewise::attention::Align;
use tilewise::layer::{FeedForward, Layer, MultiHeadAttention, NormOrder, RmsNorm, Rotary, TransformerBlock};
use tilewise::{Tensor, TensorView, random::Rng, reference};

/// Values between −1 and 1 that a formula gives.
fn wave<const N: usize>(shape: [usize; N], phase: f64) -> Tensor<f64, N> {
    let mut t = phase;
    Tensor::from_fn(shape, |_| {
        t += 0.7;
        (t * t).sin()
    })
    .unwrap()
}

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
                    layer.visit(&mut |found, parameter| {
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

#[test]
fn multi_head_attention_is_its_formula() {
    let ([batch, queries, keys, width], heads) = ([2, 5, 7, 12], 3);
    let dim = width / heads;
    let (x, context) = (wave([batch, queries, width], 0.1), wave([batch, keys, width], 0.2));
    let (w, b) = (wave([3 * width, width], 0.3), wave([3 * width], 0.4));
    let (wo, bo) = (wave([width, width], 0.5), wave([width], 0.6));
    let copy2 = |t: &Tensor<f64, 2>| t.view().to_tensor().unwrap();
    let copy1 = |t: &Tensor<f64, 1>| t.view().to_tensor().unwrap();
    let layer = |causal| {
        let parts = (copy2(&w), Some(copy1(&b)), copy2(&wo), Some(copy1(&bo)));
        let layer = MultiHeadAttention::from_parts([heads; 2], parts.0, parts.1, parts.2, parts.3).unwrap();
        if causal { layer.causal(Align::Start) } else { layer }
    };
    let expected = |context: &Tensor<f64, 3>, causal: bool| {
        let project = |x: &Tensor<f64, 3>, number: usize| {
            let [batch, length, _] = x.shape();
            let rows = number * width..(number + 1) * width;
            let x = x.view().reshape([batch * length, width]).unwrap();
            let weight = w.view().slice(0, rows.clone(), 1).unwrap().transpose();
            let y = reference::dense(x, weight, Some(b.view().slice(0, rows, 1).unwrap()), |z| z).unwrap();
            y.reshape([batch, length, heads, dim]).unwrap()
        };
        let [q, k, v] = [project(&x, 0), project(context, 1), project(context, 2)];
        let heads_first = |t: &Tensor<f64, 4>| t.view().permute([0, 2, 1, 3]).unwrap().to_tensor().unwrap();
        let mut attention = reference::attention::Attention::new(1.0 / (dim as f64).sqrt());
        attention.causal = causal;
        let y = attention
            .forward(heads_first(&q).view(), heads_first(&k).view(), heads_first(&v).view())
            .unwrap()
            .output;
        let y = heads_first(&y).reshape([batch * queries, width]).unwrap();
        reference::dense(y.view(), wo.view().transpose(), Some(bo.view()), |z| z).unwrap()
    };
    let near = |found: Tensor<f64, 3>, expected: Tensor<f64, 2>| {
        let expected = expected.view().reshape([batch, queries, width]).unwrap();
        assert!(found.view().all_close(expected, 1e-12, 1e-12));
    };
    near(layer(false).infer(x.view()).unwrap(), expected(&x, false));
    near(layer(true).infer(x.view()).unwrap(), expected(&x, true));
    near(layer(false).infer_cross(x.view(), context.view()).unwrap(), expected(&context, false));

    // The gradient for the context, by differences.
    let (mut layer, mut context) = (layer(false), context);
    layer.forward_cross(x.view(), context.view()).unwrap();
    let r = wave([batch, queries, width], 0.7);
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

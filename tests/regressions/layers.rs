//! Of layers: what is kept, and what is written, where a call is refused.

use tilewise::{Error, Tensor, random::Rng};

/// `visit_mut` hands out parameters, and others may be put in their place.
#[test]
fn layers_refuse_parameters_that_were_exchanged() {
    use tilewise::activation::Activation;
    use tilewise::conv::Convolution;
    use tilewise::layer::{Conv2d, Embedding, FeedForward, Layer, MultiHeadAttention, Parameter, Parameters};
    fn put<const N: usize>(layer: &mut dyn Parameters<f32>, name: &str, shape: [usize; N]) {
        let mut found = false;
        layer.visit_mut(&mut |other, parameter| {
            if other == name {
                *parameter = Parameter::new(Tensor::full(shape, 1.0).unwrap()).unwrap();
                found = true;
            }
        });
        assert!(found, "{name}");
    }
    let zeros = |shape| Tensor::<f32, 3>::zeros(shape).unwrap();

    let mut table = Embedding::from_weight(Tensor::<f32, 2>::zeros([5, 3]).unwrap()).unwrap();
    table.forward(&[4, 1]).unwrap();
    let dy = Tensor::full([2, 3], 1.0).unwrap();
    for rank_one in [true, false] {
        if rank_one {
            put(&mut table, "weight", [15])
        } else {
            put(&mut table, "weight", [2, 3])
        }
        assert!(matches!(table.backward(dy.view()), Err(Error::Argument { .. })));
        assert!(table.weight().gradient().iter().all(|&gradient| gradient == 0.0));
    }

    let mut attention = MultiHeadAttention::<f32>::new(8, 2, &mut Rng::seed(1)).unwrap();
    let mut cache = attention.cache(1, 4).unwrap();
    let x = zeros([1, 3, 8]);
    attention.forward(x.view()).unwrap();
    put(&mut attention, "in_proj_weight", [24 * 8]);
    assert!(matches!(attention.infer(x.view()), Err(Error::Argument { .. })));
    assert!(matches!(attention.decode(x.view(), &mut cache), Err(Error::Argument { .. })));
    assert!(attention.backward(x.view()).is_err());
    put(&mut attention, "in_proj_weight", []);
    assert!(attention.infer(x.view()).is_err());

    let options = Convolution::new().activation(Activation::Relu);
    let weight = Tensor::<f32, 4>::full([2, 1, 1, 1], 1.0).unwrap();
    let mut conv = Conv2d::from_parts(options, weight, Some(Tensor::zeros([2]).unwrap())).unwrap();
    let images = |channels| Tensor::<f32, 4>::full([1, channels, 200, 200], 1.0).unwrap();
    conv.forward(images(1).view()).unwrap();
    put(&mut conv, "bias", [1]);
    assert!(matches!(conv.backward(images(2).view()), Err(Error::Shape { .. })));
    put(&mut conv, "weight", [5, 1, 1, 1]);
    put(&mut conv, "bias", [5]);
    assert!(matches!(conv.backward(images(5).view()), Err(Error::Shape { .. })));
    assert!(matches!(conv.backward_owned(images(5)), Err(Error::Shape { .. })));
    assert!(matches!(conv.backward_parameters(images(5).view()), Err(Error::Shape { .. })));
    assert!(conv.weight().gradient().iter().all(|&gradient| gradient == 0.0));

    let mut layer = FeedForward::<f32>::gated(4, 6, Activation::Silu, &mut Rng::seed(1)).unwrap();
    put(&mut layer, "gate.weight", [4, 3]);
    put(&mut layer, "gate.bias", [3]);
    assert!(matches!(layer.infer(zeros([1, 2, 4]).view()), Err(Error::Shape { .. })));
}

/// A gradient for the last state of a layer below was found wrong when those above had added to their gradients; states of too
/// few or too many layers were taken, and by no layers gradients of any shape.
#[test]
fn stacks_check_states_before_anything_is_written() {
    use tilewise::layer::{Gru, Layer, Lstm, Parameters, RecurrentSizes, State};
    use tilewise::rnn;
    let sizes = |layers| RecurrentSizes { inputs: 2, hidden: 3, layers, directions: 1 };
    let stack = |layers| Gru::<f64>::stacked(rnn::Gru::new(), sizes(layers), &mut Rng::seed(1)).unwrap();
    let x = Tensor::full([4, 2, 2], 0.5).unwrap();
    let mut layers = stack(2);
    let y = layers.forward(x.view()).unwrap();
    let mut last = layers.zero_state(2).unwrap();
    let right = std::mem::replace(&mut last.hidden[0], Tensor::zeros([1, 2, 4]).unwrap());
    let refused = |layers: &mut Gru<f64>, last: &State<f64>| {
        assert!(matches!(layers.backward_from(y.view(), Some(last)), Err(Error::Shape { .. })));
        layers.visit(&mut |_, parameter| assert!(parameter.gradient().iter().all(|&d| d == 0.0)));
    };
    refused(&mut layers, &last);
    last.hidden[0] = right;
    last.cell.push(Tensor::zeros([1, 2, 3]).unwrap());
    refused(&mut layers, &last);
    last.cell.clear();
    assert!(layers.backward_from(y.view(), Some(&last)).is_ok());
    layers.zero_gradients();
    refused(&mut layers, &stack(1).zero_state(2).unwrap());
    refused(&mut layers, &stack(3).zero_state(2).unwrap());

    for other in [1, 3] {
        let state = stack(other).zero_state(2).unwrap();
        assert!(matches!(layers.forward_from(x.view(), Some(&state), None), Err(Error::Shape { .. })));
        assert!(matches!(layers.infer_from(x.view(), Some(&state), None), Err(Error::Shape { .. })));
    }
    let lstm = Lstm::<f64>::stacked(rnn::Lstm::new(), sizes(2), &mut Rng::seed(1)).unwrap();
    let mut state = lstm.zero_state(2).unwrap();
    state.cell.push(Tensor::zeros([1, 2, 3]).unwrap());
    let (packed, step) = (lstm.pack().unwrap(), x.view().select(0, 0).unwrap());
    assert!(matches!(lstm.step(&packed, step, &mut state), Err(Error::Shape { .. })));
    assert!(matches!(lstm.infer_from(x.view(), Some(&state), None), Err(Error::Shape { .. })));

    let mut identity = stack(0);
    assert_eq!(identity.forward(x.view()).unwrap(), x);
    assert!(matches!(identity.backward(y.view()), Err(Error::Shape { .. })));
    assert_eq!(identity.backward(x.view()).unwrap(), x);
}

#[test]
fn a_feed_forward_layer_keeps_what_it_kept_when_a_width_is_refused() {
    use tilewise::activation::Activation;
    use tilewise::layer::{FeedForward, Layer};
    let mut rng = Rng::seed(1);
    let mut layer = FeedForward::<f64>::gated(4, 6, Activation::Silu, &mut rng).unwrap();
    let y = layer.forward(Tensor::full([1, 2, 4], 0.5).unwrap().view()).unwrap();
    let expected = layer.backward(y.view()).unwrap();
    let error = layer.forward(Tensor::full([1, 2, 5], 0.5).unwrap().view()).unwrap_err().to_string();
    assert_eq!(error, "FeedForward::forward: x has shape [1, 2, 5], expected [1, 2, 4]");
    assert_eq!(layer.backward(y.view()).unwrap(), expected);
}

/// What came after the keys and values were appended could fail, and they stayed.
#[test]
fn a_step_that_fails_is_not_in_the_cache() {
    use tilewise::activation::Activation;
    use tilewise::layer::{FeedForward, Layer, LayerNorm, MultiHeadAttention, NormOrder, TransformerBlock};
    use tilewise::layer::{Parameter, Parameters};
    let mut rng = Rng::seed(1);
    let step = Tensor::<f32, 3>::full([1, 1, 8], 0.5).unwrap();
    let mut attention = MultiHeadAttention::<f32>::new(8, 2, &mut rng).unwrap();
    let mut cache = attention.cache(1, 4).unwrap();
    attention.decode(step.view(), &mut cache).unwrap();
    attention.visit_mut(&mut |name, parameter| {
        if name == "out_proj.bias" {
            *parameter = Parameter::new(Tensor::<f32, 1>::zeros([7]).unwrap()).unwrap();
        }
    });
    assert!(attention.decode(step.view(), &mut cache).is_err());
    assert_eq!(cache.len(), 1);

    let norms = || -> [Box<dyn Layer<f32, 3, 3> + Send + Sync>; 2] {
        [8, 4].map(|width| Box::new(LayerNorm::new(width).unwrap()) as _)
    };
    let attention = MultiHeadAttention::<f32>::new(8, 2, &mut rng).unwrap();
    let narrow = FeedForward::<f32>::new(4, 6, Activation::Relu, &mut rng).unwrap();
    let block = TransformerBlock::from_parts(attention, narrow, norms(), NormOrder::Pre);
    let mut cache = block.cache(1, 4).unwrap();
    assert!(block.decode(step.view(), &mut cache).is_err());
    assert!(cache.is_empty());
}

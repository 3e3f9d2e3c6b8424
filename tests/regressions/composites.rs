//! Of layers of layers: a refused call leaves all of them as they were.

use tilewise::activation::Activation;
use tilewise::attention::Align;
use tilewise::layer::{
    BatchNorm, Conv2d, Dropout, FeedForward, Init, Layer, LayerNorm, Linear, Lstm, MultiHeadAttention,
    NormOrder, Parameter, Parameters, RecurrentSizes, Rotary, Sequential, TransformerBlock,
};
use tilewise::random::Rng;
use tilewise::{Error, Tensor, TensorView, rnn};

fn ones<const N: usize>(shape: [usize; N]) -> Tensor<f64, N> {
    Tensor::full(shape, 1.0).unwrap()
}

/// Puts a parameter of another shape in the place of one, and gives that one.
fn exchange<const N: usize>(
    layer: &mut dyn Parameters<f64>,
    name: &str,
    shape: [usize; N],
) -> Parameter<f64> {
    swap(layer, name, Parameter::new(ones(shape)).unwrap())
}

fn swap(layer: &mut dyn Parameters<f64>, name: &str, new: Parameter<f64>) -> Parameter<f64> {
    let mut new = Some(new);
    let mut old = None;
    layer.visit_mut(&mut |other, parameter| {
        if other == name {
            old = new.take().map(|new| std::mem::replace(parameter, new));
        }
    });
    old.unwrap_or_else(|| panic!("no {name}"))
}

fn silent(layer: &dyn Parameters<f64>) -> bool {
    let mut silent = true;
    layer.visit(&mut |_, parameter| silent &= parameter.gradient().iter().all(|&d| d == 0.0));
    silent
}

/// A backward that is refused because of one parameter adds to no gradient, and goes on when that is back.
fn refuses_as_a_whole<const I: usize, const O: usize, const N: usize>(
    layer: &mut dyn Layer<f64, I, O>,
    x: [usize; I],
    name: &str,
    shape: [usize; N],
) {
    layer.zero_gradients();
    let y = layer.forward(ones(x).view()).unwrap();
    assert_eq!(layer.check_forward(x).unwrap(), y.shape());
    assert_eq!(layer.check_backward(y.shape()).unwrap(), x);
    let right = exchange(layer, name, shape);
    assert!(layer.check_backward(y.shape()).is_err(), "{name}");
    assert!(layer.backward(y.view()).is_err(), "{name}");
    assert!(layer.backward_parameters(y.view()).is_err(), "{name}");
    assert!(silent(layer), "{name}");
    swap(layer, name, right);
    layer.backward(y.view()).unwrap();
    assert!(!silent(layer));
}

#[test]
fn a_refused_backward_adds_to_no_gradient() {
    let mut rng = Rng::seed(1);
    let init = Init::xavier_uniform();
    let mut linear = |inputs, outputs| Linear::new(inputs, outputs, init, &mut rng).unwrap();
    let mut net = Sequential::new().push(linear(3, 4)).push(linear(4, 2));
    refuses_as_a_whole(&mut net, [5, 3], "0.weight", [5, 4]);
    refuses_as_a_whole(&mut net, [5, 3], "0.bias", [5]);
    let mut feed_forward = FeedForward::gated(4, 6, Activation::Silu, &mut rng).unwrap();
    for name in ["up.weight", "gate.weight"] {
        refuses_as_a_whole(&mut feed_forward, [2, 3, 4], name, [5, 6]);
    }
    for order in [NormOrder::Pre, NormOrder::Post] {
        let mut block = TransformerBlock::encoder(4, 2, 6, order, &mut rng).unwrap();
        block = block.dropout(0.1, 1).unwrap();
        refuses_as_a_whole(&mut block, [2, 3, 4], "attention.out_proj.weight", [5, 4]);
        refuses_as_a_whole(&mut block, [2, 3, 4], "attention.in_proj_weight", [12, 5]);
        refuses_as_a_whole(&mut block, [2, 3, 4], "norm1.weight", [3]);
    }
    let sizes = RecurrentSizes { inputs: 4, hidden: 4, layers: 2, directions: 1 };
    let mut lstm = Lstm::stacked(rnn::Lstm::new(), sizes, &mut rng).unwrap();
    refuses_as_a_whole(&mut lstm, [3, 2, 4], "0.input", [1, 16, 5]);
}

#[test]
fn a_refused_forward_changes_no_state() {
    let mut rng = Rng::seed(1);
    let linear = |rng: &mut Rng| Linear::new(8, 3, Init::xavier_uniform(), rng).unwrap();
    // Masks go on where they were.
    let net = |rng: &mut Rng| Sequential::new().push(Dropout::new(0.5, 7).unwrap()).push(linear(rng));
    let (mut net, mut twin) = (net(&mut Rng::seed(2)), net(&mut Rng::seed(2)));
    let (right, wrong) = (ones([4, 8]), ones([4, 9]));
    let y = net.forward(right.view()).unwrap();
    assert_eq!(twin.forward(right.view()).unwrap(), y);
    assert!(matches!(net.forward(wrong.view()), Err(Error::Shape { .. })));
    // And so does the way back.
    assert_eq!(net.backward(y.view()).unwrap(), twin.backward(y.view()).unwrap());
    assert_eq!(net.forward(right.view()).unwrap(), twin.forward(right.view()).unwrap());

    // Running statistics stay.
    let mut net = Sequential::new().push(BatchNorm::new(8).unwrap()).push(linear(&mut rng));
    let before = net.infer(right.view()).unwrap();
    let bias = exchange(&mut net, "1.bias", [4]);
    assert!(net.forward(right.view()).is_err());
    swap(&mut net, "1.bias", bias);
    assert_eq!(net.infer(right.view()).unwrap(), before);

    for order in [NormOrder::Pre, NormOrder::Post] {
        let mut block = TransformerBlock::encoder(4, 2, 6, order, &mut rng).unwrap();
        let y = block.forward(ones([2, 3, 4]).view()).unwrap();
        assert!(matches!(block.forward(ones([2, 3, 5]).view()), Err(Error::Shape { .. })));
        let bias = exchange(&mut block, "feed_forward.down.bias", [5]);
        assert!(matches!(block.forward(ones([2, 3, 4]).view()), Err(Error::Shape { .. })));
        swap(&mut block, "feed_forward.down.bias", bias);
        block.backward(y.view()).unwrap();
    }
}

/// What was kept of a call with other options gave wrong gradients, or was refused when others had been added to.
#[test]
fn options_between_forward_and_backward_drop_what_was_kept() {
    let mut rng = Rng::seed(1);
    let x = ones([1, 3, 4]);
    let refused = |layer: &mut dyn Layer<f64, 3, 3>| {
        assert!(matches!(layer.backward(x.view()), Err(Error::Argument { .. })));
        assert!(silent(layer));
    };
    let mut feed_forward = FeedForward::new(4, 6, Activation::Relu, &mut rng).unwrap();
    feed_forward.forward(x.view()).unwrap();
    refused(&mut feed_forward.dropout(0.5, 1).unwrap());
    let mut block = TransformerBlock::encoder(4, 2, 6, NormOrder::Post, &mut rng).unwrap();
    block.forward(x.view()).unwrap();
    refused(&mut block.dropout(0.5, 1).unwrap());
    let mut attention = || {
        let mut layer = MultiHeadAttention::<f64>::new(4, 2, &mut rng).unwrap();
        layer.forward(x.view()).unwrap();
        layer
    };
    refused(&mut attention().causal(Align::Start));
    refused(&mut attention().rotary(Rotary::new(8, 2, 1e4).unwrap()));
}

#[test]
fn projections_must_fit_the_heads() {
    let (query, key) = (ones([4, 6]), ones([8, 6]));
    let layer = |heads, [q, k]: [TensorView<'_, f64, 2>; 2], out| {
        MultiHeadAttention::from_projections(heads, [q, k, k], ones(out)).map(|_| ())
    };
    assert!(matches!(layer([2, 1], [query.view(), key.view()], [6, 10]), Err(Error::Shape { .. })));
    assert!(matches!(layer([3, 1], [query.view(), key.view()], [6, 10]), Err(Error::Argument { .. })));
    assert!(matches!(layer([0, 1], [query.view(), key.view()], [6, 10]), Err(Error::Argument { .. })));
    layer([1, 2], [query.view(), key.view()], [6, 4]).unwrap_err();
    layer([2, 1], [key.view(), query.view()], [6, 8]).unwrap();
}

#[test]
fn a_refused_layer_leaves_the_generator() {
    use tilewise::conv::Convolution;
    let mut rng = Rng::seed(1);
    let twin = rng.clone();
    assert!(TransformerBlock::<f32>::encoder(8, 2, usize::MAX, NormOrder::Pre, &mut rng).is_err());
    let tanh = Convolution::new().activation(Activation::Tanh);
    assert!(Conv2d::<f32>::new(3, 4, [3, 3], tanh, Init::kaiming_uniform(), &mut rng).is_err());
    let sizes = RecurrentSizes { inputs: 0, hidden: 0, layers: usize::MAX, directions: 1 };
    assert!(matches!(Lstm::<f64>::stacked(rnn::Lstm::new(), sizes, &mut rng), Err(Error::Alloc { .. })));
    assert_eq!(rng, twin);
}

/// It took a state of two directions, and changed the first.
#[test]
fn a_step_refuses_a_state_of_another_shape() {
    let sizes = RecurrentSizes { inputs: 4, hidden: 4, layers: 2, directions: 1 };
    let lstm = Lstm::<f64>::stacked(rnn::Lstm::new(), sizes, &mut Rng::seed(1)).unwrap();
    let packed = lstm.pack().unwrap();
    for (layer, directions) in [(0, 2), (1, 2), (1, 0)] {
        let mut state = lstm.zero_state(2).unwrap();
        state.hidden[layer] = Tensor::zeros([directions, 2, 4]).unwrap();
        let error = lstm.step(&packed, ones([2, 4]).view(), &mut state).unwrap_err().to_string();
        assert!(error.starts_with("Recurrent::step: state.hidden has shape"), "{error}");
        assert!(state.hidden.iter().flat_map(|h| h.iter()).all(|&h| h == 0.0));
    }
}

#[test]
fn one_row_has_no_running_variance() {
    let mut norm = BatchNorm::<f64>::new(3).unwrap();
    let error = norm.forward(ones([1, 3]).view()).unwrap_err().to_string();
    assert_eq!(error, "BatchNorm::forward: elements of a channel of x is 1, expected at least 2");
    let mut none = BatchNorm::<f64>::new(0).unwrap();
    assert_eq!(none.forward(ones([3, 0]).view()).unwrap().shape(), [3, 0]);
    let mut layer = LayerNorm::<f64>::new(4).unwrap();
    assert!(matches!(layer.forward(ones([2, 3]).view()), Err(Error::Shape { .. })));
}

/// Attention found out when what stood before it had changed.
#[test]
fn an_encoding_of_other_heads_is_refused_before_anything_changes() {
    let mut rng = Rng::seed(1);
    let attention = MultiHeadAttention::<f64>::new(8, 2, &mut rng).unwrap();
    let attention = attention.rotary(Rotary::new(6, 16, 1e4).unwrap());
    assert!(matches!(attention.check_forward([1, 3, 8]), Err(Error::Shape { .. })));
    let feed_forward = FeedForward::new(8, 6, Activation::Relu, &mut rng).unwrap();
    let norms: [Box<dyn Layer<f64, 3, 3> + Send + Sync>; 2] =
        [Box::new(BatchNorm::<f64, 3>::new(3).unwrap()), Box::new(LayerNorm::new(8).unwrap())];
    let mut block = TransformerBlock::from_parts(attention, feed_forward, norms, NormOrder::Pre);
    let error = block.forward(ones([1, 3, 8]).view()).unwrap_err().to_string();
    assert_eq!(error, "MultiHeadAttention::forward: a head has shape [4], expected [6]");
}

#[test]
fn a_step_refuses_packed_weights_that_do_not_fit_each_other() {
    let lstm = |inputs, layers| {
        let sizes = RecurrentSizes { inputs, hidden: 4, layers, directions: 1 };
        Lstm::<f64>::stacked(rnn::Lstm::new(), sizes, &mut Rng::seed(1)).unwrap()
    };
    let (two, other) = (lstm(4, 2), lstm(5, 1));
    let mut packed = two.pack().unwrap();
    packed[1] = other.pack().unwrap().remove(0);
    let mut state = two.zero_state(2).unwrap();
    let x = ones([2, 4]);
    assert!(matches!(two.step(&packed, x.view(), &mut state), Err(Error::Shape { .. })));
    assert!(state.hidden.iter().flat_map(|h| h.iter()).all(|&h| h == 0.0));
    two.step(&two.pack().unwrap(), x.view(), &mut state).unwrap();
    assert!(state.hidden[1].iter().any(|&h| h != 0.0));
}

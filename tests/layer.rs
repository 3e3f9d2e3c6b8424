//! Layers, optimizers, clipping and initial weights.

mod common;
#[path = "layer/optimizers.rs"]
mod optimizers;

use common::{bits, in_pools, value};
use quickcheck::Gen;
use tilewise::activation::Activation;
use tilewise::conv::{Convolution, ConvolutionTranspose};
use tilewise::layer::optimizer::{Adam, AdamW, Optimizer};
use tilewise::layer::{
    Activate, BatchNorm, Conv2d, ConvTranspose1d, Embedding, Fan, FeedForward, Init, Layer, LayerNorm,
    Linear, Lstm, NormOrder, Parameter, Parameters, RecurrentSizes, RmsNorm, Sequential, TransformerBlock,
    clip_gradient_norm, clip_gradient_value,
};
use tilewise::loss::{CrossEntropy, MeanSquared};
use tilewise::random::Rng;
use tilewise::{Element, Result, Tensor, TensorView, rnn};

/// A layer from outside of the crate, with a parameter: y = tanh(s x).
struct ScaledTanh {
    scale: Parameter<f64>,
    input: Option<Tensor<f64, 2>>,
}

impl ScaledTanh {
    fn new(scale: f64) -> Self {
        Self { scale: Parameter::new(Tensor::<f64, 0>::full([], scale).unwrap()).unwrap(), input: None }
    }
}

impl Parameters<f64> for ScaledTanh {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<f64>)) {
        f("scale", &self.scale);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f64>)) {
        f("scale", &mut self.scale);
    }
}

impl Layer<f64> for ScaledTanh {
    fn check_forward(&self, x: [usize; 2]) -> Result<[usize; 2]> {
        Ok(x)
    }

    fn check_backward(&self, dy: [usize; 2]) -> Result<[usize; 2]> {
        Ok(dy)
    }

    fn forward(&mut self, x: TensorView<'_, f64, 2>) -> Result<Tensor<f64, 2>> {
        self.input = Some(x.to_tensor()?);
        self.infer(x)
    }

    fn infer(&self, x: TensorView<'_, f64, 2>) -> Result<Tensor<f64, 2>> {
        Tensor::from_fn(x.shape(), |i| (self.scale.value()[0] * x.get(i).unwrap()).tanh())
    }

    fn backward(&mut self, dy: TensorView<'_, f64, 2>) -> Result<Tensor<f64, 2>> {
        let (x, scale) = (self.input.as_ref().unwrap(), self.scale.value()[0]);
        let slope = |i| (1.0 - (scale * x.get(i).unwrap()).tanh().powi(2)) * dy.get(i).unwrap();
        let dx = Tensor::from_fn(x.shape(), |i| scale * slope(i))?;
        let mut sum = 0.0;
        Tensor::from_fn(x.shape(), |i| sum += x.get(i).unwrap() * slope(i))?;
        self.scale.gradient_mut()[0] += sum;
        Ok(dx)
    }
}

fn matrix(g: &mut Gen, shape: [usize; 2]) -> Tensor<f64, 2> {
    Tensor::from_fn(shape, |_| value(g)).unwrap()
}

/// All parameters' values, or gradients, one after the other.
fn flat<T: Element>(parameters: &dyn Parameters<T>, gradients: bool) -> Vec<T> {
    let mut all = Vec::new();
    parameters.visit(&mut |_, p| all.extend_from_slice(if gradients { p.gradient() } else { p.value() }));
    all
}

/// Adds to one number of all parameters.
fn nudge(parameters: &mut dyn Parameters<f64>, mut number: usize, by: f64) {
    parameters.visit_mut(&mut |_, p| {
        if let Some(value) = p.value_mut().get_mut(number) {
            *value += by;
        }
        number = number.wrapping_sub(p.len());
    });
}

fn net(rng: &mut Rng) -> Sequential<f64> {
    let inner = Sequential::new()
        .push(Linear::new(6, 5, Init::xavier_normal(), rng).unwrap())
        .push(ScaledTanh::new(1.3));
    Sequential::new()
        .push(Linear::new(4, 6, Init::kaiming_uniform(), rng).unwrap())
        .push(ScaledTanh::new(0.7))
        .push(inner)
        .push(Activate::new(Activation::Identity))
        .push(Linear::new(5, 3, Init::xavier_uniform(), rng).unwrap())
}

#[test]
fn gradients_of_a_net_are_central_differences() {
    let mut g = Gen::new(10);
    let (mut net, mut x) = (net(&mut Rng::seed(2)), matrix(&mut g, [7, 4]));
    let classes = [0, 1, 2, 2, 1, 0, 1];
    let loss = CrossEntropy::new();
    let value = |net: &Sequential<f64>, x: &Tensor<f64, 2>| {
        loss.forward(net.infer(x.view()).unwrap().view(), &classes).unwrap()
    };
    let y = net.forward(x.view()).unwrap();
    assert_eq!(y, net.infer(x.view()).unwrap());
    let (_, dy) = loss.forward_backward(y.view(), &classes).unwrap();
    let dx = net.backward(dy.view()).unwrap();
    let gradients = flat(&net, true);
    assert_eq!(gradients.len(), net.parameter_count());
    net.zero_gradients();
    net.backward_parameters(dy.view()).unwrap();
    assert_eq!(flat(&net, true), gradients);

    // h² |f‴| / 6 + ε |f| / h ≈ 10⁻¹⁰ with h = 10⁻⁵.
    let h = 1e-5;
    let close = |high: f64, low: f64, gradient: f64| {
        let difference = (high - low) / (2.0 * h);
        assert!((difference - gradient).abs() < 1e-8 * (1.0 + gradient.abs()), "{difference} {gradient}");
    };
    for (number, &gradient) in gradients.iter().enumerate() {
        let [high, low] = [h, -h].map(|h| {
            nudge(&mut net, number, h);
            let value = value(&net, &x);
            nudge(&mut net, number, -h);
            value
        });
        close(high, low, gradient);
    }
    for number in 0..x.len() {
        let [high, low] = [h, -h].map(|h| {
            x.as_mut_slice()[number] += h;
            let value = value(&net, &x);
            x.as_mut_slice()[number] -= h;
            value
        });
        close(high, low, dx.as_slice()[number]);
    }

    // A second backward adds the same again, and zeroing takes all away.
    net.forward(x.view()).unwrap();
    net.zero_gradients();
    net.backward(dy.view()).unwrap();
    let once = flat(&net, true);
    net.backward(dy.view()).unwrap();
    let twice = flat(&net, true);
    assert!(
        once.iter().zip(&twice).all(|(once, twice)| (2.0 * once - twice).abs() <= 1e-15 + 1e-14 * once.abs())
    );
    net.zero_gradients();
    assert!(flat(&net, true).iter().all(|&g| g == 0.0));
}

#[test]
fn names_lead_to_parts_within_parts() {
    let net = net(&mut Rng::seed(1));
    let mut names = Vec::new();
    net.visit(&mut |name, p| names.push(format!("{name} {:?}", p.shape())));
    assert_eq!(
        names,
        [
            "0.weight [4, 6]",
            "0.bias [6]",
            "1.scale []",
            "2.0.weight [6, 5]",
            "2.0.bias [5]",
            "2.1.scale []",
            "4.weight [5, 3]",
            "4.bias [3]",
        ]
    );
}

/// Layers of every kind that has parameters.
fn all_kinds() -> Result<Vec<Box<dyn Parameters<f32>>>> {
    let (mut rng, init) = (Rng::seed(1), Init::kaiming_uniform());
    let rng = &mut rng;
    let sizes = RecurrentSizes { inputs: 3, hidden: 2, layers: 2, directions: 1 };
    Ok(vec![
        Box::new(Sequential::new().push(Linear::new(3, 2, init, rng)?).push(Activate::new(Activation::Tanh))),
        Box::new(Embedding::new(5, 3, init, rng)?),
        Box::new(Conv2d::new(2, 3, [3, 3], Convolution::new(), init, rng)?),
        Box::new(ConvTranspose1d::new(2, 3, [4], ConvolutionTranspose::new(), init, rng)?),
        Box::new(LayerNorm::<_, 2>::new(3)?),
        Box::new(RmsNorm::<_, 2>::new(3)?),
        Box::new(BatchNorm::<_, 4>::new(3)?),
        Box::new(Lstm::stacked(rnn::Lstm::new(), sizes, rng)?),
        Box::new(FeedForward::gated(4, 6, Activation::Silu, rng)?),
        Box::new(TransformerBlock::encoder(4, 2, 6, NormOrder::Pre, rng)?),
    ])
}

#[test]
fn both_walks_see_the_same_parameters() {
    for mut layer in all_kinds().unwrap() {
        let (mut read, mut changed) = (Vec::new(), Vec::new());
        layer.visit_mut(&mut |name, p| {
            p.value_mut().fill(changed.len() as f32);
            changed.push((name.to_owned(), p.shape().to_vec(), p.value().to_vec()));
        });
        layer.visit(&mut |name, p| read.push((name.to_owned(), p.shape().to_vec(), p.value().to_vec())));
        assert_eq!(read, changed);
        assert_eq!(read.iter().map(|(.., values)| values.len()).sum::<usize>(), layer.parameter_count());
    }
}

#[test]
fn layers_print_as_their_options_and_shapes() {
    let rng = &mut Rng::seed(1);
    let linear = Linear::<f32>::new(784, 10, Init::zeros(), rng).unwrap();
    assert_eq!(format!("{linear:?}"), "Linear { weight: [784, 10], bias: [10] }");
    assert_eq!(format!("{:?}", linear.weight()), "Parameter { shape: [784, 10] }");
    let feed_forward = FeedForward::<f32>::new(4, 6, Activation::Gelu, rng).unwrap();
    assert_eq!(
        format!("{feed_forward:?}"),
        "FeedForward { activation: Gelu, dropout: None, up.weight: [4, 6], up.bias: [6], \
         down.weight: [6, 4], down.bias: [4] }"
    );
    let net = Sequential::new().push(linear).push(Activate::new(Activation::Relu));
    assert_eq!(format!("{net:?}"), "Sequential { layers: 2, 0.weight: [784, 10], 0.bias: [10] }");
    assert_eq!(
        format!("{:?}", AdamW::<f32>::new(0.5)),
        "AdamW { rate: 0.5, betas: (0.9, 0.999), epsilon: 1e-8, weight_decay: 0.01 }"
    );
}

#[test]
fn an_empty_sequence_is_the_identity() {
    let mut net = Sequential::<f64>::new();
    let x = matrix(&mut Gen::new(10), [2, 3]);
    assert_eq!(net.forward(x.view()).unwrap(), x);
    assert_eq!(net.backward(x.view()).unwrap(), x);
}

#[test]
fn training_gives_the_same_bits_for_any_number_of_threads() {
    let results = in_pools(|| {
        let mut rng = Rng::seed(5);
        let x = Tensor::from_fn([500, 100], |_| rng.normal(0.0f32, 1.0)).unwrap();
        let classes: Vec<usize> = (0..500).map(|_| rng.below(10)).collect();
        let mut net = Sequential::new()
            .push(Linear::new(100, 800, Init::kaiming_uniform(), &mut rng).unwrap())
            .push(Activate::new(Activation::Relu))
            .push(Linear::new(800, 10, Init::xavier_uniform(), &mut rng).unwrap());
        let mut optimizer = AdamW::new(1e-3);
        let mut losses = Vec::new();
        for _ in 0..5 {
            net.zero_gradients();
            let y = net.forward(x.view()).unwrap();
            let (loss, dy) = CrossEntropy::new().forward_backward(y.view(), &classes).unwrap();
            net.backward(dy.view()).unwrap();
            clip_gradient_norm(&mut net, 0.5).unwrap();
            optimizer.step(&mut net).unwrap();
            losses.push(loss);
        }
        assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");
        (bits(&losses), bits(&flat(&net, false)))
    });
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn a_net_learns_exclusive_or() {
    let x = TensorView::from_slice(&[0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], [4, 2]).unwrap();
    let t = TensorView::from_slice(&[0.0, 1.0, 1.0, 0.0], [4, 1]).unwrap();
    let mut rng = Rng::seed(3);
    let mut net = Sequential::<f64>::new()
        .push(Linear::new(2, 8, Init::xavier_uniform(), &mut rng).unwrap())
        .push(ScaledTanh::new(1.0))
        .push(Linear::new(8, 1, Init::xavier_uniform(), &mut rng).unwrap());
    let mut optimizer = Adam::new(0.05);
    for _ in 0..500 {
        net.zero_gradients();
        let y = net.forward(x).unwrap();
        let (_, dy) = MeanSquared::new().forward_backward(y.view(), t).unwrap();
        net.backward(dy.view()).unwrap();
        optimizer.step(&mut net).unwrap();
    }
    assert!(net.infer(x).unwrap().view().all_close(t, 0.0, 0.01));
}

#[test]
fn clipping_scales_all_gradients_by_one_factor() {
    let mut net =
        Sequential::<f64>::new().push(optimizers::numbers(&[0.0; 2])).push(optimizers::numbers(&[0.0; 1]));
    let set = |net: &mut Sequential<f64>, values: [f64; 3]| {
        let mut values = values.into_iter();
        net.visit_mut(&mut |_, p| p.gradient_mut().iter_mut().for_each(|g| *g = values.next().unwrap()));
    };
    set(&mut net, [2.0, 3.0, -6.0]);
    assert_eq!(clip_gradient_norm(&mut net, 10.0).unwrap(), 7.0);
    assert_eq!(flat(&net, true), [2.0, 3.0, -6.0]);
    assert_eq!(clip_gradient_norm(&mut net, 3.5).unwrap(), 7.0);
    let factor = 3.5 / (7.0 + 1e-6);
    assert_eq!(flat(&net, true), [2.0 * factor, 3.0 * factor, -6.0 * factor]);
    for bad in [f64::NAN, f64::INFINITY] {
        set(&mut net, [2.0, bad, -6.0]);
        assert!(!clip_gradient_norm(&mut net, 1.0).unwrap().is_finite());
        assert_eq!(flat(&net, true)[0], 2.0);
    }
    set(&mut net, [2.0, f64::NAN, -6.0]);
    clip_gradient_value(&mut net, 2.5).unwrap();
    let clipped = flat(&net, true);
    assert!(clipped[0] == 2.0 && clipped[1].is_nan() && clipped[2] == -2.5);
    assert_eq!(
        clip_gradient_norm(&mut net, -1.0).unwrap_err().to_string(),
        "clip_gradient_norm: max_norm is -1, expected at least 0"
    );
    assert_eq!(
        clip_gradient_value(&mut net, f64::NAN).unwrap_err().to_string(),
        "clip_gradient_value: limit is NaN, expected at least 0"
    );
}

#[test]
fn a_norm_is_known_where_squares_are_out_of_range() {
    let mut layer = optimizers::numbers(&[0.0; 2]);
    let mut clipped = |gradient: [f64; 2], max_norm: f64| {
        layer.visit_mut(&mut |_, p| p.gradient_mut().copy_from_slice(&gradient));
        (clip_gradient_norm(&mut layer, max_norm).unwrap(), flat(&layer, true))
    };
    let near =
        |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-15, "{found} {expected}");
    let (norm, gradient) = clipped([1e200, 1.0], 1.0);
    near(norm, 1e200);
    near(gradient[0], 1.0);
    near(gradient[1], 1e-200);
    near(clipped([3e307, -4e307], 1.0).0, 5e307);
    near(clipped([1e-200, 0.0], 1.0).0, 1e-200);
    near(clipped([3e-170, 4e-170], 1.0).0, 5e-170);
    assert_eq!(clipped([0.0, f64::from_bits(1)], 1.0).0, f64::from_bits(1));
    assert_eq!(clipped([0.0; 2], 1.0).0, 0.0);
    // Beyond the range itself.
    assert_eq!(clipped([f64::MAX; 2], 1.0), (f64::INFINITY, vec![f64::MAX; 2]));
    assert_eq!(clipped([f64::NEG_INFINITY, 1.0], 1.0), (f64::INFINITY, vec![f64::NEG_INFINITY, 1.0]));
}

#[test]
fn initial_weights_have_the_variance_of_their_formula() {
    let (fan_in, fan_out) = (300, 200);
    let mut weights = vec![0f64; fan_in * fan_out];
    let n = weights.len() as f64;
    let mut check = |init: Init, variance: f64, bound: f64| {
        init.fill(&mut weights, fan_in, fan_out, &mut Rng::seed(11));
        let mean = weights.iter().sum::<f64>() / n;
        let found = weights.iter().map(|w| w * w).sum::<f64>() / n;
        // Five standard deviations of the estimates; that of a variance is at most σ² √(2/n).
        assert!(mean.abs() < 5.0 * (variance / n).sqrt(), "{init:?}: {mean}");
        assert!((found - variance).abs() < 5.0 * variance * (2.0 / n).sqrt(), "{init:?}: {found} {variance}");
        assert!(weights.iter().all(|w| w.abs() <= bound), "{init:?}");
    };
    let (both, inf) = (500.0, f64::INFINITY);
    check(Init::xavier_uniform(), 2.0 / both, (6.0f64 / both).sqrt());
    check(Init::xavier_normal().gain(3.0), 9.0 * 2.0 / both, inf);
    check(Init::kaiming_uniform(), 2.0 / 300.0, (6.0f64 / 300.0).sqrt());
    check(Init::kaiming_uniform().fan(Fan::Out).gain(1.0), 1.0 / 200.0, (3.0f64 / 200.0).sqrt());
    check(Init::kaiming_normal(), 2.0 / 300.0, inf);
    let mut weights = [1f32; 3];
    Init::zeros().fill(&mut weights, 0, 0, &mut Rng::seed(1));
    assert_eq!(weights, [0.0; 3]);
}

#[test]
fn bad_input_is_refused_before_anything_changes() {
    let text = |result: Result<()>| result.unwrap_err().to_string();
    let m = |shape| Tensor::<f64, 2>::full(shape, 1.0).unwrap();
    let mut rng = Rng::seed(1);
    let mut layer = Linear::<f64>::new(2, 3, Init::zeros(), &mut rng).unwrap();
    let missing = "the input of forward is missing, expected a call of forward before";
    assert_eq!(text(layer.backward(m([1, 3]).view()).map(drop)), format!("Linear::backward: {missing}"));
    assert_eq!(
        text(layer.forward(m([4, 3]).view()).map(drop)),
        "Linear::forward: x has shape [4, 3], expected [4, 2]"
    );
    assert_eq!(text(layer.backward(m([1, 3]).view()).map(drop)), format!("Linear::backward: {missing}"));
    layer.forward(m([4, 2]).view()).unwrap();
    assert_eq!(
        text(layer.backward(m([5, 3]).view()).map(drop)),
        "Linear::backward: dy has shape [5, 3], expected [4, 3]"
    );
    assert_eq!(
        text(Linear::from_parts(m([2, 3]), Some(Tensor::zeros([2]).unwrap())).map(drop)),
        "Linear::from_parts: bias has shape [2], expected [3]"
    );
    let mut activate = Activate::<f64>::new(Activation::Relu);
    assert_eq!(text(activate.backward(m([1, 3]).view()).map(drop)), format!("Activate::backward: {missing}"));
    activate.forward(m([4, 2]).view()).unwrap();
    assert_eq!(
        text(activate.backward(m([5, 3]).view()).map(drop)),
        "Activate::backward: dy has shape [5, 3], expected [4, 2]"
    );

    // The second layer fails: backward must not mix the new input of the first with the old of the second.
    let mut net = Sequential::new()
        .push(Linear::new(2, 3, Init::xavier_uniform(), &mut rng).unwrap())
        .push(Linear::new(4, 1, Init::xavier_uniform(), &mut rng).unwrap());
    assert_eq!(
        text(net.forward(m([5, 2]).view()).map(drop)),
        "Linear::forward: x has shape [5, 3], expected [5, 4]"
    );
    assert_eq!(text(net.backward(m([5, 1]).view()).map(drop)), format!("Sequential::backward: {missing}"));
    let mut net = Sequential::new().push(layer);
    net.forward(m([4, 2]).view()).unwrap();
    assert_eq!(
        text(net.backward(m([4, 2]).view()).map(drop)),
        "Sequential::backward: dy has shape [4, 2], expected [4, 3]"
    );
    assert!(flat(&net, true).iter().all(|&g| g == 0.0));

    let wrong = Parameter::new(m([2, 3])).unwrap().view::<1>().map(drop);
    assert_eq!(text(wrong), "Parameter::view: rank is 1, expected the rank that the parameter was made with");
}

//! The convolutional layers, and the gradients of the transposed convolution that one of them needs.

mod common;

use common::geometry::Problem;
use common::{quickcheck, wave, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::activation::Activation;
use tilewise::conv::{Convolution, ConvolutionTranspose};
use tilewise::layer::optimizer::{Optimizer, Sgd};
use tilewise::layer::{
    Activate, Conv, Conv1d, Conv2d, ConvTranspose, ConvTranspose2d, Init, Layer, Parameters,
};
use tilewise::random::Rng;
use tilewise::reference::conv as reference;
use tilewise::{ImageRank, Spatial, Tensor};

fn dot<const N: usize>(a: &Tensor<f64, N>, b: &Tensor<f64, N>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Central differences of L = Σ R ⊙ Y, which is linear in each parameter and in the input.
fn differences<L: Layer<f64, N, N>, const N: usize>(layer: &mut L, mut x: Tensor<f64, N>) {
    let r = wave(layer.infer(x.view()).unwrap().shape(), 0.4);
    layer.zero_gradients();
    let y = layer.forward(x.view()).unwrap();
    assert!(y == layer.infer(x.view()).unwrap());
    let dx = layer.backward(r.view()).unwrap();
    let h = 1e-3;
    let close = |[high, low]: [f64; 2], gradient: f64| {
        let difference = (high - low) / (2.0 * h);
        assert!((difference - gradient).abs() < 1e-9 * (1.0 + r.len() as f64), "{difference} {gradient}");
    };
    for i in (0..x.len()).step_by(x.len() / 15 + 1) {
        let held = x.as_slice()[i];
        let pair = [h, -h].map(|h| {
            x.as_mut_slice()[i] = held + h;
            dot(&layer.infer(x.view()).unwrap(), &r)
        });
        x.as_mut_slice()[i] = held;
        close(pair, dx.as_slice()[i]);
    }
    let mut gradients = Vec::new();
    layer.visit(&mut |name, p| gradients.push((name.to_owned(), p.gradient().to_vec())));
    layer.zero_gradients();
    layer.backward_parameters(r.view()).unwrap();
    let mut again = gradients.iter();
    layer.visit(&mut |_, p| assert_eq!(p.gradient(), again.next().unwrap().1));
    for (wanted, gradient) in &gradients {
        for i in (0..gradient.len()).step_by(gradient.len() / 15 + 1) {
            let pair = [h, -h].map(|h| {
                let mut change = |by: f64| {
                    layer.visit_mut(&mut |name, p| {
                        if name == wanted {
                            p.value_mut()[i] += by;
                        }
                    });
                };
                change(h);
                let loss = dot(&layer.infer(x.view()).unwrap(), &r);
                layer.visit_mut(&mut |name, p| {
                    if name == wanted {
                        p.value_mut()[i] -= h;
                    }
                });
                loss
            });
            close(pair, gradient[i]);
        }
    }
    // Gradients add up until they are set to 0.
    layer.backward(r.view()).unwrap();
    let mut twice = gradients.iter();
    layer.visit(&mut |_, p| {
        let (_, once) = twice.next().unwrap();
        assert!(
            p.gradient()
                .iter()
                .zip(once)
                .all(|(two, one)| (two - 2.0 * one).abs() < 1e-9 * (1.0 + one.abs()))
        );
    });
}

#[test]
fn gradients_are_central_differences() {
    let rng = &mut Rng::seed(3);
    let options = Convolution::<1>::new().padding([2]).dilation([2]);
    let mut layer = Conv1d::new(3, 5, [3], options, Init::xavier_uniform(), rng).unwrap();
    differences(&mut layer, wave([2, 3, 9], 0.1));
    let options = Convolution::<2>::new().padding_sides([[1, 0], [2, 1]]).stride([2, 1]).groups(2);
    let mut layer = Conv2d::new(4, 6, [3, 2], options, Init::kaiming_normal(), rng).unwrap();
    differences(&mut layer, wave([2, 4, 7, 6], 0.1));
    let mut layer =
        Conv::<f64, 3, 5>::from_parts(Convolution::new(), wave([2, 3, 2, 2, 1], 0.3), None).unwrap();
    differences(&mut layer, wave([2, 3, 3, 4, 2], 0.1));
    let options =
        ConvolutionTranspose::<2>::new().stride([2, 3]).padding([1, 0]).output_padding([1, 2]).groups(2);
    let mut layer = ConvTranspose2d::new(4, 6, [3, 2], options, Init::xavier_uniform(), rng).unwrap();
    differences(&mut layer, wave([2, 4, 4, 3], 0.1));
    // More output padding than the stride, which the dilation allows.
    let options = ConvolutionTranspose::<1>::new().dilation([4]).padding([1]).output_padding([3]);
    let mut layer = ConvTranspose::<f64, 1, 3>::new(2, 3, [3], options, Init::xavier_uniform(), rng).unwrap();
    differences(&mut layer, wave([2, 2, 5], 0.1));
}

#[derive(Clone, Copy, Debug)]
struct Case<const S: usize, const N: usize> {
    problem: Problem<S, N>,
    output_padding: [usize; S],
    seed: u64,
}

impl<const S: usize, const N: usize> Arbitrary for Case<S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        let problem: Problem<S, N> = Arbitrary::arbitrary(g);
        let o = problem.geometry;
        let output_padding = std::array::from_fn(|axis| within(g, 0..o.stride[axis].max(o.dilation[axis])));
        Self { problem, output_padding, seed: u64::arbitrary(g) }
    }
}

/// ⟨dZ, convᵀ(X)⟩ = ⟨dX, X⟩ = ⟨dW, W⟩, in whole numbers, where it is exact; and dX is a correlation of dZ.
fn adjoint<const S: usize, const N: usize>(case: Case<S, N>) -> bool
where
    Spatial<S>: ImageRank<N>,
{
    let (g, o) = (&mut Gen::from_size_and_seed(100, case.seed), case.problem.geometry);
    let whole =
        |g: &mut Gen, shape| Tensor::<f64, N>::from_fn(shape, |_| within(g, 0..9) as f64 - 4.0).unwrap();
    let conv =
        ConvolutionTranspose::<S>::new().stride(o.stride).padding_sides(o.padding).dilation(o.dilation);
    let conv = conv.groups(o.groups).flipped(o.flipped).output_padding(case.output_padding);
    let (x, w) = (whole(g, case.problem.y()), whole(g, case.problem.weight()));
    let Ok(y) = conv.forward(x.view(), w.view(), None) else { return true };
    let dz = whole(g, y.shape());
    let all = conv.backward(x.view(), w.view(), dz.view()).unwrap();
    let image = std::array::from_fn(|axis| x.shape()[2 + axis]);
    assert!(all.input == conv.backward_input(dz.view(), w.view(), image).unwrap());
    assert!(all.weight == conv.backward_weight(x.view(), dz.view(), case.problem.kernel).unwrap());
    assert!(all.bias == reference::naive::backward_bias(dz.view()).unwrap());
    let forward = dot(&dz, &y);
    y == reference::transposed(&o, case.output_padding, x.view(), w.view(), None).unwrap()
        && forward == dot(&all.input, &x)
        && forward == dot(&all.weight, &w)
}

#[test]
fn gradients_of_the_transpose_are_its_adjoint() {
    quickcheck(300, adjoint::<1, 3> as fn(Case<1, 3>) -> bool);
    quickcheck(200, adjoint::<2, 4> as fn(Case<2, 4>) -> bool);
    quickcheck(50, adjoint::<3, 5> as fn(Case<3, 5>) -> bool);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let rng = &mut Rng::seed(1);
    let init = Init::xavier_uniform();
    let text = |error: Option<tilewise::Error>| error.expect("a wrong call was taken").to_string();
    let groups = Conv2d::<f32>::new(3, 4, [3, 3], Convolution::new().groups(2), init, rng).err();
    assert_eq!(text(groups), "Conv::new: c_in is 3 in 2 groups, expected a multiple of the groups");
    let groups = Conv2d::<f32>::new(3, 4, [3, 3], Convolution::new().groups(0), init, rng).err();
    assert_eq!(text(groups), "Conv::new: c_in is 3 in 0 groups, expected a multiple of the groups");
    let tanh = Convolution::new().activation(Activation::Tanh);
    let expected =
        "activation is neither the identity nor, in a Conv, ReLU, expected a layer of its own: Activate";
    let tanh = Conv2d::<f32>::new(3, 4, [3, 3], tanh, init, rng).err();
    assert_eq!(text(tanh), format!("Conv::new: {expected}"));
    let relu = ConvolutionTranspose::new().activation(Activation::Relu);
    let relu = ConvTranspose2d::<f32>::new(3, 4, [3, 3], relu, init, rng).err();
    assert_eq!(text(relu), format!("ConvTranspose::new: {expected}"));
    let (weight, bias) = (Tensor::<f32, 4>::zeros([4, 3, 3, 3]).unwrap(), Tensor::zeros([3]).unwrap());
    let bias = Conv2d::from_parts(Convolution::new(), weight, Some(bias)).err();
    assert_eq!(text(bias), "Conv::from_parts: bias has shape [3], expected [4]");
    let (weight, bias) = (Tensor::<f32, 4>::zeros([4, 3, 3, 3]).unwrap(), Tensor::zeros([3]).unwrap());
    let bias = ConvTranspose2d::from_parts(ConvolutionTranspose::new().groups(2), weight, Some(bias)).err();
    assert_eq!(text(bias), "ConvTranspose::from_parts: bias has shape [3], expected [6]");

    let mut layer = Conv2d::<f32>::new(3, 4, [3, 3], Convolution::new(), init, rng).unwrap();
    let image = |c, h, w| Tensor::<f32, 4>::zeros([2, c, h, w]).unwrap();
    let early = layer.backward(image(4, 2, 2).view()).err();
    assert_eq!(
        text(early),
        "Conv::backward: the input of forward is missing, expected a call of forward before"
    );
    layer.forward(image(3, 4, 4).view()).unwrap();
    let narrow = layer.forward(image(2, 4, 4).view()).err();
    assert_eq!(text(narrow), "Convolution::forward: w has shape [4, 3, 3, 3], expected [4, 2, 3, 3]");
    let shape = layer.backward(image(4, 2, 3).view()).err();
    assert_eq!(text(shape), "Conv::backward: dy has shape [2, 4, 2, 3], expected [2, 4, 2, 2]");
    // What was kept is kept still.
    assert!(layer.backward(image(4, 2, 2).view()).is_ok());
}

/// The layer with the activation has the bits of two layers, whose gradients are checked, whoever keeps what.
#[test]
fn a_rectified_layer_is_two_layers() {
    let relu = Convolution::<2>::new().padding([1, 1]).stride([2, 1]);
    let part = |options| {
        let (weight, bias) = (wave([5, 2, 3, 3], 0.3), wave([5], 0.2));
        Conv2d::<f64>::from_parts(options, weight, Some(bias)).unwrap()
    };
    let mut one = part(relu.activation(Activation::Relu));
    let (mut two, mut rectify) = (part(relu), Activate::new(Activation::Relu));
    // Another shape needs other memory, the same again does not.
    // Small planes, and such that are summed up where they are rectified.
    for (owned, height) in [(false, 6), (true, 6), (false, 4), (true, 80), (false, 61), (true, 7)] {
        let x = wave([3, 2, height, 5], 0.1);
        let expected = rectify.forward_owned(two.forward(x.view()).unwrap()).unwrap();
        let dy = wave(expected.shape(), 0.5);
        let y = if owned { one.forward_owned(x).unwrap() } else { one.forward(x.view()).unwrap() };
        assert!(y == expected && y == one.infer(wave([3, 2, height, 5], 0.1).view()).unwrap());
        let dx = one.backward(dy.view()).unwrap();
        assert!(dx == two.backward(rectify.backward(dy.view()).unwrap().view()).unwrap());
        one.backward_parameters(dy.view()).unwrap();
        two.backward_parameters(rectify.backward(dy.view()).unwrap().view()).unwrap();
        let gradients =
            |layer: &Conv2d<f64>| [layer.weight(), layer.bias().unwrap()].map(|p| p.gradient().to_vec());
        assert_eq!(gradients(&one), gradients(&two));
    }
    // What was kept is kept still.
    assert!(one.forward_owned(wave([3, 1, 7, 5], 0.1)).is_err());
    assert!(one.backward(wave([3, 5, 4, 5], 0.5).view()).is_ok());
}

/// Tensors that are handed over, whose memory the next step uses, give the bits of borrowed ones.
#[test]
fn handing_over_changes_nothing() {
    for activation in [Activation::Identity, Activation::Relu] {
        let options = Convolution::<2>::new().padding([1, 1]).stride([1, 2]).activation(activation);
        let part = || {
            let (weight, bias) = (wave([4, 2, 3, 3], 0.3), wave([4], 0.2));
            Conv2d::<f64>::from_parts(options, weight, Some(bias)).unwrap()
        };
        let (mut one, mut two) = (part(), part());
        for (step, height) in [6, 6, 6, 4, 6, 6].into_iter().enumerate() {
            let image = || wave([3, 2, height, 5], 0.1 + step as f64);
            let y = one.forward_owned(image()).unwrap();
            assert!(y == two.forward(image().view()).unwrap());
            let dy = || wave(y.shape(), 0.5 + step as f64);
            for _ in 0..2 {
                let dx = one.backward_owned(dy()).unwrap();
                assert!(dx == two.backward(dy().view()).unwrap());
            }
            one.backward_parameters_owned(dy()).unwrap();
            two.backward_parameters(dy().view()).unwrap();
            let gradients =
                |layer: &Conv2d<f64>| [layer.weight(), layer.bias().unwrap()].map(|p| p.gradient().to_vec());
            assert_eq!(gradients(&one), gradients(&two));
        }
        let other = || wave([3, 4, 6, 4], 0.1);
        for refused in [one.backward_owned(other()).err(), one.backward_parameters_owned(other()).err()] {
            let shape = refused.unwrap().to_string();
            assert_eq!(shape, "Conv::backward: dy has shape [3, 4, 6, 4], expected [3, 4, 6, 3]");
        }
    }
}

/// An edge is learned: y = x[i + 1] − x[i].
#[test]
fn a_filter_is_learned_from_examples() {
    let mut layer =
        Conv1d::<f64>::new(1, 1, [2], Convolution::new(), Init::xavier_uniform(), &mut Rng::seed(5)).unwrap();
    let x = wave([16, 1, 32], 0.1);
    let wanted = Tensor::from_slice(&[-1.0, 1.0], [1, 1, 2]).unwrap();
    let target = Convolution::<1>::new().forward(x.view(), wanted.view(), None).unwrap();
    let mut optimizer = Sgd::new(0.5);
    for _ in 0..100 {
        layer.zero_gradients();
        let y = layer.forward(x.view()).unwrap();
        let scale = 1.0 / y.len() as f64;
        let dy =
            Tensor::from_fn(y.shape(), |at| (y.get(at).unwrap() - target.get(at).unwrap()) * scale).unwrap();
        layer.backward(dy.view()).unwrap();
        optimizer.step(&mut layer).unwrap();
    }
    assert!(
        layer
            .weight()
            .value()
            .iter()
            .zip([-1.0, 1.0])
            .all(|(&w, wanted): (&f64, f64)| (w - wanted).abs() < 1e-3)
    );
}

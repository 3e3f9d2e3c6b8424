//! Activations, softmax and losses.

use tilewise::Tensor;
use tilewise::activation::{self, Activation};
use tilewise::loss::{CrossEntropy, Reduction, Target};
use tilewise::softmax::Softmax;

use super::vectors::{Case, each};

#[test]
fn activations() {
    each(&[("activation", 16)], |case| {
        let activation = match case.name.strip_prefix("activation ").unwrap() {
            "relu" => Activation::Relu,
            "leaky_relu" => Activation::LeakyRelu { slope: 0.125 },
            "elu" => Activation::Elu { alpha: 1.5 },
            "selu" => Activation::selu(),
            "celu" => Activation::Celu { alpha: 1.5 },
            "gelu" => Activation::Gelu,
            "gelu_tanh" => Activation::GeluTanh,
            "silu" => Activation::Silu,
            "mish" => Activation::Mish,
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            "softplus" => Activation::Softplus,
            "softsign" => Activation::Softsign,
            "hard_sigmoid" => Activation::hard_sigmoid(),
            "hard_swish" => Activation::HardSwish,
            "threshold" => Activation::ThresholdedRelu { threshold: 1.0 },
            other => panic!("{other}"),
        };
        let x = case.view::<1>("x");
        let [mut y, mut dx] = [0; 2].map(|_| Tensor::zeros(x.shape()).unwrap());
        activation::forward(activation, x, y.view_mut()).unwrap();
        activation::backward(activation, x, case.view("d_y"), dx.view_mut()).unwrap();
        case.check("y", y.as_slice());
        case.check("d_x", dx.as_slice());
    });
}

#[test]
fn learnt_slopes() {
    each(&[("prelu", 2)], |case| {
        let (x, slope, dy) = (case.view::<3>("x"), case.view("slope"), case.view("d_y"));
        let [mut y, mut dx] = [0; 2].map(|_| Tensor::zeros(x.shape()).unwrap());
        let mut d_slope = Tensor::zeros(slope.shape()).unwrap();
        activation::prelu(x, slope, y.view_mut()).unwrap();
        activation::prelu_backward(x, slope, dy, Some(dx.view_mut()), Some(d_slope.view_mut())).unwrap();
        case.check("y", y.as_slice());
        case.check("d_x", dx.as_slice());
        case.check("d_slope", d_slope.as_slice());
    });
}

#[test]
fn softmax() {
    each(&[("softmax", 3), ("log_softmax", 3)], |case| {
        let softmax = Softmax::new(case.size("axis"));
        let softmax = if case.operation == "softmax" { softmax } else { softmax.logarithm() };
        let y = softmax.forward(case.view::<3>("x")).unwrap();
        case.check("y", y.as_slice());
        case.check("d_x", softmax.backward(y.view(), case.view("d_y")).unwrap().as_slice());
    });
}

#[test]
fn losses() {
    each(&[("cross_entropy", 12), ("likelihood", 6)], run);
    fn run(case: &Case) {
        let mut loss = CrossEntropy::new().label_smoothing(case.number("smoothing").unwrap_or(0.0));
        if case.operation == "likelihood" {
            loss = loss.log_probabilities();
        }
        if case.text("ignored").is_some() {
            loss = loss.ignore_index(case.size("ignored"));
        }
        if case.text("reduction") != Some("mean") {
            loss = loss.reduction(Reduction::Sum);
        }
        let classes: Vec<usize> = case.array("classes").1.iter().map(|&class| class as usize).collect();
        let target = match case.maybe("weights") {
            Some(weights) => Target::Weighted(&classes, weights),
            None => Target::Classes(&classes),
        };
        let (x, (_, dy)) = (case.view::<2>("x"), case.array("d_y"));
        let (value, gradient) = loss.forward_backward(x, target).unwrap();
        let each = loss.row_losses(x, target).unwrap();
        case.check("y", if dy.len() == 1 { std::slice::from_ref(&value) } else { each.as_slice() });
        // One gradient for the loss, or one for that of each row.
        let scaled = Tensor::from_fn(x.shape(), |[row, class]| {
            gradient.get([row, class]).unwrap() * dy[row.min(dy.len() - 1)]
        });
        case.check("d_x", scaled.unwrap().as_slice());
    }
}

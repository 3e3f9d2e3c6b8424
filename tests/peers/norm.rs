//! Normalisation.

use tilewise::Tensor;
use tilewise::norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, NormGradientsMut,
    RmsNormalization,
};

use super::vectors::{Case, each};

#[test]
fn rows() {
    each(&[("layer", 3), ("rms", 3)], |case| {
        let (shape, numbers) = case.array("x");
        let n = shape[shape.len() - 1];
        let rows = [numbers.len() / n, n];
        let (x, dy) = (case.reshaped("x", rows), case.reshaped("d_y", rows));
        let (scale, shift, epsilon) =
            (case.maybe("scale"), case.maybe("shift"), case.number("epsilon").unwrap());
        if case.operation == "rms" {
            let norm = RmsNormalization::new().epsilon(epsilon);
            case.check("y", norm.forward(x, scale).unwrap().as_slice());
            let gradients = norm.backward(x, scale, dy).unwrap();
            return parameters(case, gradients.input.as_slice(), gradients.scale.as_slice(), &[]);
        }
        let norm = LayerNormalization::new().epsilon(epsilon);
        case.check("y", norm.forward(x, scale, shift).unwrap().as_slice());
        let gradients = norm.backward(x, scale, dy).unwrap();
        parameters(case, gradients.input.as_slice(), gradients.scale.as_slice(), gradients.shift.as_slice());
    });
}

fn parameters(case: &Case, x: &[f64], scale: &[f64], shift: &[f64]) {
    case.check("d_x", x);
    if case.has("scale") {
        case.check("d_scale", scale);
    }
    if case.has("shift") {
        case.check("d_shift", shift);
    }
}

#[test]
fn channels() {
    each(&[("batch", 5), ("constant", 4), ("instance", 4), ("group", 3)], |case| {
        let (shape, numbers) = case.array("x");
        let images = [shape[0], shape[1], numbers.len() / shape[0] / shape[1]];
        let (x, dy) = (case.reshaped("x", images), case.reshaped("d_y", images));
        let (scale, shift, epsilon) =
            (case.maybe("scale"), case.maybe("shift"), case.number("epsilon").unwrap());
        let (y, gradients) = match case.operation.as_str() {
            "instance" => {
                let norm = InstanceNormalization::new().epsilon(epsilon);
                (norm.forward(x, scale, shift).unwrap(), norm.backward(x, scale, dy).unwrap())
            }
            "group" => {
                let norm = GroupNormalization::new(case.size("groups")).epsilon(epsilon);
                (norm.forward(x, scale, shift).unwrap(), norm.backward(x, scale, dy).unwrap())
            }
            operation => {
                let norm = BatchNormalization::new().epsilon(epsilon);
                let (mut mean, mut variance) = (case.tensor::<1>("mean"), case.tensor::<1>("variance"));
                let found = if operation == "batch" {
                    let (y, statistics) = norm.forward_training(x, scale, shift).unwrap();
                    statistics.update(0.25, mean.view_mut(), variance.view_mut()).unwrap();
                    let kept = norm.backward(x, Some(statistics.mean.view()), scale, dy).unwrap();
                    let gradients = norm.backward(x, None, scale, dy).unwrap();
                    assert!(kept.input.view().all_close(gradients.input.view(), 1e-12, 1e-12));
                    (y, gradients)
                } else {
                    let (mean, variance) = (mean.view(), variance.view());
                    let mut input = Tensor::zeros(images).unwrap();
                    let [mut dscale, mut dshift] = [0; 2].map(|_| Tensor::zeros([images[1]]).unwrap());
                    let gradients = NormGradientsMut {
                        input: Some(input.view_mut()),
                        scale: Some(dscale.view_mut()),
                        shift: Some(dshift.view_mut()),
                    };
                    norm.backward_inference_into(x, mean, variance, scale, dy, 0.0, gradients).unwrap();
                    let y = norm.forward_inference(x, mean, variance, scale, shift).unwrap();
                    (y, tilewise::norm::NormGradients { input, scale: dscale, shift: dshift })
                };
                case.check("new_mean", mean.as_slice());
                case.check("new_variance", variance.as_slice());
                found
            }
        };
        case.check("y", y.as_slice());
        parameters(case, gradients.input.as_slice(), gradients.scale.as_slice(), gradients.shift.as_slice());
    });
}

//! What is refused, sets without elements, and the ends of the range.

use tilewise::norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, NormGradientsMut,
    RmsNormalization,
};
use tilewise::{Result, Tensor, machine};

#[test]
fn bad_input_is_refused_and_nothing_is_written() {
    let text = |result: Result<()>| result.unwrap_err().to_string();
    let x = Tensor::<f32, 2>::zeros([4, 6]).unwrap();
    let (three, other) = (Tensor::<f32, 1>::zeros([3]).unwrap(), Tensor::<f32, 2>::zeros([4, 5]).unwrap());
    let mut y = Tensor::<f32, 2>::full([4, 6], 7.0).unwrap();
    let mut small = Tensor::<f32, 2>::full([4, 5], 7.0).unwrap();
    let (layer, rms) = (LayerNormalization::new(), RmsNormalization::new());
    let bad = Some(three.view());
    assert_eq!(
        text(layer.forward_into(x.view(), bad, None, y.view_mut())),
        "LayerNormalization::forward_into: scale has shape [3], expected [6]"
    );
    assert_eq!(
        text(layer.forward_into(x.view(), None, bad, y.view_mut())),
        "LayerNormalization::forward_into: shift has shape [3], expected [6]"
    );
    assert_eq!(
        text(rms.forward_into(x.view(), None, small.view_mut())),
        "RmsNormalization::forward_into: y has shape [4, 5], expected [4, 6]"
    );
    assert_eq!(
        text(rms.forward_residual(x.view(), other.view(), None).map(drop)),
        "RmsNormalization::forward_residual: residual has shape [4, 5], expected [4, 6]"
    );
    for epsilon in [-1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(
            text(layer.epsilon(epsilon).forward_into(x.view(), None, None, y.view_mut())),
            format!("LayerNormalization::forward_into: epsilon is {epsilon}, expected finite and at least 0")
        );
    }
    let scalar = Tensor::<f32, 0>::zeros([]).unwrap();
    assert_eq!(
        text(layer.forward(scalar.view(), None, None).map(drop)),
        "LayerNormalization::forward: rank of x is 0, expected at least 1"
    );
    let gradients = NormGradientsMut { input: Some(y.view_mut()), scale: None, shift: None };
    assert_eq!(
        text(layer.backward_into(x.view(), None, other.view(), 0.0, gradients)),
        "LayerNormalization::backward_into: dy has shape [4, 5], expected [4, 6]"
    );
    let mut wrong = Tensor::<f32, 1>::full([3], 7.0).unwrap();
    let gradients =
        NormGradientsMut { input: Some(y.view_mut()), scale: None, shift: Some(wrong.view_mut()) };
    assert_eq!(
        text(layer.backward_into(x.view(), None, x.view(), 0.0, gradients)),
        "LayerNormalization::backward_into: gradients.shift has shape [3], expected [6]"
    );
    for groups in [0, 4, 7] {
        assert_eq!(
            text(GroupNormalization::new(groups).forward_into(x.view(), None, None, y.view_mut())),
            format!(
                "GroupNormalization::forward_into: groups is {groups} of 6, expected a divisor of the number of channels"
            )
        );
    }
    let (mut mean, mut variance) = (Tensor::full([3], 7.0f32).unwrap(), Tensor::full([6], 7.0f32).unwrap());
    let batch = BatchNormalization::new();
    assert_eq!(
        text(batch.forward_training_into(
            x.view(),
            None,
            None,
            mean.view_mut(),
            variance.view_mut(),
            y.view_mut()
        )),
        "BatchNormalization::forward_training_into: mean has shape [3], expected [6]"
    );
    assert_eq!(
        text(batch.forward_inference(x.view(), variance.view(), mean.view(), None, None).map(drop)),
        "BatchNormalization::forward_inference: variance has shape [3], expected [6]"
    );
    let (_, statistics) = batch.forward_training(x.view(), None, None).unwrap();
    assert_eq!(
        text(statistics.update(1.5, variance.view_mut(), mean.view_mut())),
        "BatchStatistics::update: momentum is 1.5, expected from 0 to 1"
    );
    assert_eq!(
        text(statistics.update(0.5, variance.view_mut(), mean.view_mut())),
        "BatchStatistics::update: running_variance has shape [3], expected [6]"
    );
    let (_, one) = batch.forward_training(x.view().slice(0, ..1, 1).unwrap(), None, None).unwrap();
    let mut other = Tensor::full([6], 7.0f32).unwrap();
    assert_eq!(
        text(one.update(0.5, variance.view_mut(), other.view_mut())),
        "BatchStatistics::update: elements of a channel is 1, expected at least 2"
    );
    let untouched = [y.as_slice(), small.as_slice(), mean.as_slice(), variance.as_slice(), wrong.as_slice()];
    assert!(untouched.iter().all(|values| values.iter().all(|&value| value == 7.0)));
}

#[test]
fn nothing_has_no_statistics() -> Result<()> {
    let x = Tensor::<f64, 3>::zeros([0, 2, 5])?;
    let (y, statistics) = BatchNormalization::new().forward_training(x.view(), None, None)?;
    assert!(y.is_empty() && statistics.count == 0 && statistics.mean.iter().all(|mean| mean.is_nan()));
    // A gradient of nothing is 0, added to beta times what was held.
    let mut held = Tensor::full([2], 3.0)?;
    let gradients = NormGradientsMut { input: None, scale: Some(held.view_mut()), shift: None };
    InstanceNormalization::new().backward_into(x.view(), None, x.view(), 2.0, gradients)?;
    assert_eq!(held.as_slice(), [6.0, 6.0]);
    let mut held = Tensor::full([5], 3.0)?;
    let gradients = NormGradientsMut { input: None, scale: Some(held.view_mut()), shift: None };
    LayerNormalization::new().backward_into(x.view(), None, x.view(), 0.0, gradients)?;
    assert_eq!(held.as_slice(), [0.0; 5]);
    let none = Tensor::<f64, 3>::zeros([3, 0, 5])?;
    assert!(GroupNormalization::new(2).forward(none.view(), None, None)?.is_empty());
    assert!(
        LayerNormalization::new().forward(Tensor::<f64, 2>::zeros([3, 0])?.view(), None, None)?.is_empty()
    );
    Ok(())
}

#[test]
fn the_ends_of_the_range_are_as_documented() {
    for &isa in machine::supported() {
        let forward = |epsilon, x: [f32; 2]| {
            let x = Tensor::from_slice(&x, [1, 1, 2]).unwrap();
            let layer = || LayerNormalization::new().epsilon(epsilon).forward(x.view(), None, None);
            let group = || GroupNormalization::new(1).epsilon(epsilon).forward(x.view(), None, None);
            let [row, set] = [machine::with_isa(isa, layer), machine::with_isa(isa, group)];
            [row, set].map(|y| y.unwrap().unwrap().as_slice().to_vec()).concat()
        };
        // The sum overflows; the squares do; they vanish.
        assert!(forward(1e-5, [2e38; 2]).iter().all(|y| y.is_nan()));
        assert_eq!(forward(1e-5, [1e38, -1e38]), [0.0; 4]);
        assert!(forward(0.0, [1e-30, -1e-30]).iter().all(|y| !y.is_finite()));
    }
}

//! Normalisation layers, dropout and flattening.

mod common;

use common::in_pools;
use tilewise::layer::{
    BatchNorm, Dropout, Flatten, GroupNorm, InstanceNorm, Layer, LayerNorm, Parameters, RmsNorm, Sequential,
};
use tilewise::norm::{BatchNormalization, LayerNormalization};
use tilewise::random::Rng;
use tilewise::{Result, Tensor, TensorView};

fn random<const N: usize>(seed: u64, shape: [usize; N]) -> Tensor<f64, N> {
    let mut rng = Rng::seed(seed);
    Tensor::from_fn(shape, |_| rng.normal(0.5, 1.0)).unwrap()
}

fn gradients(layer: &mut dyn Parameters<f64>) -> Vec<(String, Vec<f64>)> {
    let mut all = Vec::new();
    layer.visit(&mut |name, parameter| all.push((name.to_owned(), parameter.gradient().to_vec())));
    all
}

/// Two calls of `backward` add up, and give the dx that finite differences give.
fn check<const N: usize>(layer: &mut dyn Layer<f64, N, N>, shape: [usize; N]) {
    let (mut x, dy) = (random(3, shape), random(4, shape));
    layer.visit_mut(&mut |_, parameter| {
        parameter.value_mut().iter_mut().enumerate().for_each(|(i, v)| *v += 0.1 * i as f64);
    });
    layer.forward(x.view()).unwrap();
    layer.backward(dy.view()).unwrap();
    let once = gradients(layer);
    let dx = layer.backward(dy.view()).unwrap();
    for ((name, once), (_, twice)) in once.iter().zip(gradients(layer)) {
        assert!(once.iter().any(|&g| g != 0.0), "{name}");
        assert!(once.iter().zip(twice).all(|(once, twice)| (2.0 * once - twice).abs() < 1e-12), "{name}");
    }
    let mut loss = |x: &Tensor<f64, N>| {
        let y = layer.forward(x.view()).unwrap();
        y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
    };
    for i in 0..x.len() {
        let held = x.as_slice()[i];
        x.as_mut_slice()[i] = held + 1e-5;
        let above = loss(&x);
        x.as_mut_slice()[i] = held - 1e-5;
        let below = loss(&x);
        x.as_mut_slice()[i] = held;
        let expected = (above - below) / 2e-5;
        assert!((dx.as_slice()[i] - expected).abs() < 1e-7, "{i}: {} {expected}", dx.as_slice()[i]);
    }
}

#[test]
fn gradients_add_up_and_are_those_of_finite_differences() {
    check(&mut LayerNorm::<f64, 3>::new(5).unwrap(), [2, 3, 5]);
    check(&mut RmsNorm::<f64, 2>::new(5).unwrap(), [3, 5]);
    check(&mut BatchNorm::<f64, 4>::new(3).unwrap(), [2, 3, 2, 2]);
    check(&mut InstanceNorm::<f64, 3>::new(3).unwrap(), [2, 3, 5]);
    check(&mut GroupNorm::<f64, 4>::new(2, 4).unwrap(), [2, 4, 2, 2]);
}

#[test]
fn parameters_have_the_usual_names() {
    let mut net = Sequential::<f64>::new()
        .push(LayerNorm::new(4).unwrap())
        .push(RmsNorm::new(4).unwrap())
        .push(BatchNorm::new(4).unwrap())
        .push(Dropout::new(0.5, 1).unwrap());
    let names: Vec<_> = gradients(&mut net).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["0.weight", "0.bias", "1.weight", "2.weight", "2.bias"]);
    let mut bare = LayerNorm::<f64>::from_parts(LayerNormalization::new(), None, None).unwrap();
    assert_eq!(bare.parameter_count(), 0);
    assert!(bare.weight().is_none() && bare.bias().is_none());
    let x = random(1, [2, 6]);
    let y = bare.forward(x.view()).unwrap();
    assert!(y == LayerNormalization::new().forward(x.view(), None, None).unwrap());
}

#[test]
fn residual_calls_are_the_parts_put_together() -> Result<()> {
    let (x, r, dy, dsum) = (random(1, [3, 7]), random(2, [3, 7]), random(3, [3, 7]), random(4, [3, 7]));
    let sum = Tensor::from_fn([3, 7], |at| x.get(at).unwrap() + r.get(at).unwrap())?;
    let (mut fused, mut plain) = (LayerNorm::<f64>::new(7)?, LayerNorm::<f64>::new(7)?);
    let (found, y) = fused.forward_residual(x.view(), r.view())?;
    assert!(found == sum && y == plain.forward(sum.view())?);
    let (dx, parts) = (fused.backward_residual(dy.view(), dsum.view())?, plain.backward(dy.view())?);
    let added = Tensor::from_fn([3, 7], |at| parts.get(at).unwrap() + dsum.get(at).unwrap())?;
    assert!(dx.view().all_close(added.view(), 0.0, 1e-14));
    assert_eq!(gradients(&mut fused), gradients(&mut plain));

    let (mut fused, mut plain) = (RmsNorm::<f64>::new(7)?, RmsNorm::<f64>::new(7)?);
    let (found, y) = fused.forward_residual(x.view(), r.view())?;
    assert!(found == sum && y == plain.forward(sum.view())?);
    let (dx, parts) = (fused.backward_residual(dy.view(), dsum.view())?, plain.backward(dy.view())?);
    let added = Tensor::from_fn([3, 7], |at| parts.get(at).unwrap() + dsum.get(at).unwrap())?;
    assert!(dx.view().all_close(added.view(), 0.0, 1e-14));
    assert_eq!(gradients(&mut fused), gradients(&mut plain));
    Ok(())
}

#[test]
fn running_statistics_follow_the_batches() -> Result<()> {
    let mut layer = BatchNorm::<f64, 3>::new(2)?.momentum(0.25)?;
    let (mut mean, mut variance) = ([0.0; 2], [1.0; 2]);
    for seed in 0..5 {
        let x = random(seed, [4, 2, 3]);
        layer.forward(x.view())?;
        for channel in 0..2 {
            let values: Vec<f64> = x.view().select::<2>(1, channel)?.iter().copied().collect();
            let m = values.iter().sum::<f64>() / 12.0;
            let v = values.iter().map(|x| (x - m).powi(2)).sum::<f64>() / 11.0;
            mean[channel] = 0.75 * mean[channel] + 0.25 * m;
            variance[channel] = 0.75 * variance[channel] + 0.25 * v;
        }
    }
    for channel in 0..2 {
        assert!((layer.running_mean()[channel] - mean[channel]).abs() < 1e-14);
        assert!((layer.running_variance()[channel] - variance[channel]).abs() < 1e-14);
    }
    // Inference uses them and leaves them.
    let x = random(9, [1, 2, 1]);
    let y = layer.infer(x.view())?;
    let expected = (x.as_slice()[1] - mean[1]) / (variance[1] + 1e-5).sqrt();
    assert!((y.as_slice()[1] - expected).abs() < 1e-13);
    // One element has no variance: refused, and nothing has changed.
    let kept = layer.running_mean().to_vec();
    let refused = layer.forward(x.view()).map(drop).unwrap_err().to_string();
    assert_eq!(refused, "BatchNorm::forward: elements of a channel of x is 1, expected at least 2");
    assert_eq!(layer.running_mean(), kept);
    assert!(layer.backward(random(1, [4, 2, 3]).view()).is_ok(), "what was kept is kept still");
    Ok(())
}

#[test]
fn dropout_drops_its_share_and_scales_the_rest() -> Result<()> {
    for (p, kept) in [(0.0, 1.0), (0.1, 1.0 / 0.9), (0.5, 2.0), (0.9, 1.0 / (1.0 - 0.9)), (1.0, 0.0)] {
        let n = 100_000;
        let mut layer = Dropout::<f64>::new(p, 5)?;
        let x = Tensor::full([n / 100, 100], 3.0)?;
        let y = layer.forward(x.view())?;
        let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64;
        assert!(y.iter().all(|&y| y == 0.0 || y == 3.0 * kept));
        // Five standard deviations.
        assert!((dropped - p * n as f64).abs() <= 5.0 * (n as f64 * p * (1.0 - p)).sqrt(), "{p}: {dropped}");
        assert!(layer.backward(x.view())? == y);
        assert!(layer.infer(x.view())? == x);
        let next = layer.forward(x.view())?;
        assert_eq!(next == y, p == 0.0 || p == 1.0, "each call draws anew");
    }
    Ok(())
}

#[test]
fn dropout_depends_on_seed_and_place_alone() -> Result<()> {
    let x = random(1, [300, 400]);
    let results = in_pools(|| Dropout::new(0.3, 9).unwrap().forward(x.view()).unwrap());
    assert!(results.iter().all(|y| *y == results[0]));
    // The same numbers in columns.
    let columns = x.view().transpose().to_tensor()?;
    assert!(Dropout::new(0.3, 9)?.forward(columns.view().transpose())? == results[0]);
    assert!(Dropout::new(0.3, 8)?.forward(x.view())? != results[0]);
    // What is dropped is 0, whatever it was.
    let odd = Tensor::full([10, 10], f64::NAN)?;
    assert!(Dropout::new(1.0, 1)?.forward(odd.view())?.iter().all(|&y| y == 0.0));
    Ok(())
}

#[test]
fn flattening_keeps_the_order_of_indices() -> Result<()> {
    let x = Tensor::<f32, 4>::from_fn([2, 3, 2, 2], |[b, c, h, w]| (1000 * b + 100 * c + 10 * h + w) as f32)?;
    let last = x.view().permute([0, 2, 3, 1])?.to_tensor()?;
    let mut layer = Flatten::<4>::new();
    let flat = layer.forward(last.view().permute([0, 3, 1, 2])?)?;
    assert_eq!(flat.as_slice(), x.as_slice());
    let back: Tensor<f32, 4> = layer.backward(flat.view())?;
    assert!(back == x);
    let rows = Tensor::<f32, 1>::zeros([3])?;
    assert_eq!(Flatten::<1>::new().infer(rows.view())?.shape(), [3, 1]);
    assert_eq!(Flatten::<3>::new().infer(Tensor::<f32, 3>::zeros([0, 4, 5])?.view())?.shape(), [0, 20]);
    Ok(())
}

#[test]
fn layers_name_what_does_not_fit() -> Result<()> {
    fn text<X>(result: Result<X>) -> String {
        result.map(drop).unwrap_err().to_string()
    }
    let missing = "the input of forward is missing, expected a call of forward before";
    let dy = Tensor::<f64, 2>::zeros([2, 5])?;
    assert_eq!(text(LayerNorm::new(5)?.backward(dy.view())), format!("LayerNorm::backward: {missing}"));
    assert_eq!(text(Dropout::new(0.5, 1)?.backward(dy.view())), format!("Dropout::backward: {missing}"));
    let mut flatten = Flatten::<3>::new();
    let refused = Layer::<f64, 3, 2>::backward(&mut flatten, dy.view());
    assert_eq!(text(refused), format!("Flatten::backward: {missing}"));
    flatten.forward(Tensor::<f64, 3>::zeros([2, 2, 3])?.view())?;
    let refused = Layer::<f64, 3, 2>::backward(&mut flatten, dy.view());
    assert_eq!(text(refused), "Flatten::backward: dy has shape [2, 5], expected [2, 6]");
    let mut norm = RmsNorm::<f64>::new(6)?;
    assert_eq!(text(norm.forward(dy.view())), "RmsNormalization::forward: scale has shape [6], expected [5]");
    norm.forward(Tensor::zeros([2, 6])?.view())?;
    assert_eq!(text(norm.backward(dy.view())), "RmsNorm::backward: dy has shape [2, 5], expected [2, 6]");
    for p in [-0.1, 1.1, f64::NAN] {
        assert_eq!(
            text(Dropout::<f64>::new(p, 1)),
            format!("Dropout::new: probability is {p}, expected from 0 to 1")
        );
    }
    let mut dropout = Dropout::<f64>::new(0.5, 1)?;
    dropout.forward(Tensor::zeros([2, 6])?.view())?;
    assert_eq!(text(dropout.backward(dy.view())), "Dropout::backward: dy has shape [2, 5], expected [2, 6]");
    assert_eq!(
        text(BatchNorm::<f64>::new(3)?.momentum(2.0)),
        "BatchNorm::momentum: momentum is 2, expected from 0 to 1"
    );
    let running = [Tensor::zeros([3])?, Tensor::zeros([2])?];
    assert_eq!(
        text(BatchNorm::<f64>::from_parts(BatchNormalization::new(), None, None, running)),
        "BatchNorm::from_parts: running_variance has shape [2], expected [3]"
    );
    let huge = TensorView::as_strided(&[0.0f64][..0], [0, 1 << 40, 1 << 40], [0, 0, 0]);
    if let Ok(huge) = huge {
        assert!(text(Flatten::<3>::new().infer(huge)).contains("overflow"));
    }
    assert!(text(LayerNorm::<f64>::new(usize::MAX)).contains("overflow"));
    Ok(())
}

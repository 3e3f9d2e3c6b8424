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

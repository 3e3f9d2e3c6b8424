//! Attention.

use tilewise::Tensor;
use tilewise::attention::{Align, Attention, AttentionGradientsMut};

use super::vectors::{Case, each};

#[test]
fn attention() {
    each(&[("attention", 17)], run);
}

fn run(case: &Case) {
    let (q, k, v, dy) = (case.view::<4>("q"), case.view("k"), case.view("v"), case.view("d_y"));
    let mut options = Attention::new();
    let mask = case
        .maybe::<4>("mask")
        .map(|mask| Tensor::from_fn(mask.shape(), |at| mask.get(at) == Some(&1.0)).unwrap());
    if let Some(mask) = &mask {
        options = options.mask(mask.view());
    }
    if let Some(bias) = case.maybe("bias") {
        options = options.bias(bias);
    }
    if let Some(slopes) = case.maybe("slopes") {
        options = options.alibi(slopes);
    }
    if let Some(scale) = case.number("scale") {
        options = options.scale(scale);
    }
    if let Some(cap) = case.number("cap") {
        options = options.soft_cap(cap);
    }
    match case.text("causal") {
        Some("start") => options = options.causal(Align::Start),
        Some(_) => options = options.causal(Align::End),
        None => {}
    }
    if case.text("window").is_some() {
        options = options.window(case.size("window"));
    }
    let lengths = case.list("lengths");
    if let Some(lengths) = &lengths {
        options = options.key_lengths(lengths);
    }
    let saved = options.forward_saving(q, k, v).unwrap();
    case.check("y", saved.output.as_slice());
    case.check("y", options.forward(q, k, v).unwrap().as_slice());
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|view| Tensor::zeros(view.shape()).unwrap());
    let mut bias = case.maybe::<4>("bias").map(|bias| Tensor::zeros(bias.shape()).unwrap());
    let gradients = AttentionGradientsMut {
        query: Some(dq.view_mut()),
        key: Some(dk.view_mut()),
        value: Some(dv.view_mut()),
        bias: bias.as_mut().map(Tensor::view_mut),
    };
    options.backward_into(q, k, v, saved.output.view(), saved.normalizer.view(), dy, gradients).unwrap();
    case.check("d_q", dq.as_slice());
    case.check("d_k", dk.as_slice());
    case.check("d_v", dv.as_slice());
    if let Some(bias) = bias {
        case.check("d_bias", bias.as_slice());
    }
}

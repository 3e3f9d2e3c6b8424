//! Recurrent cells against what PyTorch and ONNX Runtime computed; `data/rnn.py` says how.

use std::collections::HashMap;

use tilewise::layer::{Layer, Parameters, Recurrent as Stack};
use tilewise::rnn::{
    Direction, DirectionWeights, Elman, Gru, Lstm, Recurrent, Reset, Sequence, WeightTensors,
    onnx_activations,
};
use tilewise::{Tensor, TensorView};

/// Arrays by their names.
struct Case(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Case {
    fn find(name: &str) -> Self {
        let mut found = None;
        for line in include_str!("../data/rnn.txt").lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let shape = words.get(1).map(|shape| shape.split('x').map(str::parse::<usize>));
            match (shape.map(|sizes| sizes.collect::<Result<Vec<_>, _>>()), &mut found) {
                (Some(Ok(shape)), Some(Case(arrays))) => {
                    let numbers = words[2..].iter().map(|word| word.parse().unwrap()).collect();
                    arrays.insert(words[0].to_owned(), (shape, numbers));
                }
                (Some(Ok(_)), None) => {}
                (_, Some(_)) => break,
                (_, None) if line == name => found = Some(Case(HashMap::new())),
                _ => {}
            }
        }
        found.unwrap_or_else(|| panic!("no case {name}"))
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn get<const N: usize>(&self, name: &str) -> Tensor<f64, N> {
        let (shape, numbers) = &self.0[name];
        Tensor::from_slice(numbers, shape.as_slice().try_into().unwrap()).unwrap()
    }

    fn view<const N: usize>(&self, name: &str) -> TensorView<'_, f64, N> {
        let (shape, numbers) = &self.0[name];
        TensorView::from_slice(numbers, shape.as_slice().try_into().unwrap()).unwrap()
    }
}

fn near<const N: usize>(
    what: &str,
    found: TensorView<'_, f64, N>,
    expected: TensorView<'_, f64, N>,
    by: f64,
) {
    assert!(found.all_close(expected, by, by), "{what}: {found:?}\nnot {expected:?}");
}

fn pytorch(name: &str, cell: impl Recurrent) {
    let case = Case::find(name);
    let direction = |suffix: &str| DirectionWeights {
        input: case.view(&format!("weight_ih_l0{suffix}")),
        recurrent: case.view(&format!("weight_hh_l0{suffix}")),
        bias: Some(case.view(&format!("bias_ih_l0{suffix}"))),
        recurrent_bias: Some(case.view(&format!("bias_hh_l0{suffix}"))),
        peephole: None,
        projection: case.has("weight_hr_l0").then(|| case.view(&format!("weight_hr_l0{suffix}"))),
    };
    let reverse = case.has("weight_ih_l0_reverse").then(|| direction("_reverse"));
    let weights = WeightTensors::from_pytorch(direction(""), reverse).unwrap();
    let mut layer = Stack::from_weights(cell, vec![weights]).unwrap();
    let (y, last) = layer.forward_from(case.view("x"), None, None).unwrap();
    // The numbers were written with nine digits.
    near("y", y.view(), case.view("y"), 1e-8);
    near("hidden", last.hidden[0].view(), case.view("hidden"), 1e-8);
    near("infer", layer.infer(case.view("x")).unwrap().view(), case.view("y"), 1e-8);
    let dx = layer.backward(case.view("dy")).unwrap();
    near("dx", dx.view(), case.view("dx"), 1e-7);
    layer.visit(&mut |name, parameter| {
        let theirs = match name {
            "0.input" => "d_weight_ih_l0",
            "0.recurrent" => "d_weight_hh_l0",
            "0.bias" => "d_bias_ih_l0",
            "0.recurrent_bias" => "d_bias_hh_l0",
            "0.projection" => "d_weight_hr_l0",
            other => panic!("{other}"),
        };
        let mut expected = case.0[theirs].1.clone();
        expected.extend(case.0.get(&format!("{theirs}_reverse")).map_or(&[][..], |(_, numbers)| numbers));
        for (found, expected) in parameter.gradient().iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-7 * (1.0 + expected.abs()), "{name}: {found} {expected}");
        }
        assert_eq!(parameter.len(), expected.len());
    });
}

#[test]
fn layers_compute_what_pytorch_computes() {
    let both = Direction::Bidirectional;
    pytorch("pytorch rnn", Elman::new());
    pytorch("pytorch lstm", Lstm::new().direction(both));
    pytorch("pytorch lstm projected", Lstm::new());
    pytorch("pytorch gru", Gru::new().direction(both));
}

fn onnx(name: &str, cell: impl Recurrent) {
    let case = Case::find(name);
    let p = case.has("p").then(|| case.view("p"));
    let weights =
        WeightTensors::from_onnx(cell, case.view("w"), case.view("r"), Some(case.view("b")), p).unwrap();
    let lengths: Vec<usize> = case.get::<1>("lengths").iter().map(|&length| length as usize).collect();
    let mut sequence = Sequence::new(case.view("x")).hidden(case.view("h")).lengths(&lengths);
    sequence.cell = case.has("c").then(|| case.view("c"));
    let out = cell.forward(sequence, weights.view()).unwrap();
    // They were computed in single precision.
    near("y", out.y.view(), case.view("y"), 2e-6);
    near("hidden", out.hidden.view(), case.view("last_hidden"), 2e-6);
    if let Some(cell) = out.cell {
        near("cell", cell.view(), case.view("last_cell"), 2e-6);
    }
}

#[test]
fn cells_compute_what_onnx_runtime_computes() {
    let both = Direction::Bidirectional;
    onnx("onnx rnn", Elman::new().direction(both));
    onnx("onnx lstm", Lstm::new().direction(both));
    onnx("onnx gru after", Gru::new().direction(both));
    onnx("onnx gru before", Gru::new().direction(both).reset(Reset::Before));
}

#[test]
fn options_of_onnx_compute_what_onnx_runtime_computes() {
    let both = Direction::Bidirectional;
    let pick = |names: &[&str], alphas: &[f64], betas: &[f64]| {
        onnx_activations(names.iter().copied(), alphas, betas).unwrap()
    };
    let names = ["LeakyRelu", "ScaledTanh"];
    let found = pick(&names, &[0.125, 1.25], &[0.5]);
    let elman = Elman::new().direction(both).activation(found[0]).reverse_activation(found[1]);
    onnx("onnx rnn activations", elman);
    let names = ["HardSigmoid", "Softsign", "Elu", "Sigmoid", "Affine", "ScaledTanh"];
    let found = pick(&names, &[0.25, 0.5, 0.75, 1.5], &[0.375, 0.125, 0.625]);
    let three = |at: usize| [found[at], found[at + 1], found[at + 2]];
    let lstm = Lstm::new().direction(both);
    onnx("onnx lstm activations", lstm.activations(three(0)).reverse_activations(three(3)));
    onnx("onnx lstm coupled", lstm.coupled(true));
    onnx("onnx lstm coupled, peepholes", lstm.coupled(true));
    onnx("onnx lstm clip", lstm.activation_clip(0.5));
    let gru = Gru::new().direction(both);
    onnx("onnx gru clip", gru.activation_clip(0.5));
    let found = pick(&["HardSigmoid", "Relu", "Softsign", "Softplus"], &[], &[]);
    let after = gru.activations([found[0], found[1]]).reverse_activations([found[2], found[3]]);
    onnx("onnx gru activations after", after);
    let found = pick(&["ThresholdedRelu", "Tanh", "HardSigmoid", "Elu"], &[0.25], &[]);
    let before = gru.activations([found[0], found[1]]).reverse_activations([found[2], found[3]]);
    onnx("onnx gru activations before", before.reset(Reset::Before));
}

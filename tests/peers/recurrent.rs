//! Stacks of recurrent layers.

use tilewise::activation::Activation;
use tilewise::layer::{Parameters, Recurrent as Stack, State};
use tilewise::rnn::{
    Direction, DirectionWeights, Elman, Gru, Lstm, Nonlinearity, Recurrent, Reset, WeightTensors,
    onnx_activations,
};
use tilewise::{Tensor, TensorView};

use super::vectors::{Case, each};

#[test]
fn recurrent_layers() {
    each(&[("tanh", 9), ("relu", 9), ("elman", 8), ("lstm", 25), ("gru", 22)], |case| {
        let direction = match (case.size("directions"), case.size("reverse")) {
            (2, _) => Direction::Bidirectional,
            (_, 1) => Direction::Reverse,
            _ => Direction::Forward,
        };
        match case.operation.as_str() {
            "tanh" | "elman" => {
                let mut cell = Elman::new().direction(direction);
                if let Some([[first], [last]]) = activations(case) {
                    cell = cell.activation(first).reverse_activation(last);
                }
                if let Some(clip) = case.number("activation_clip") {
                    cell = cell.activation_clip(clip);
                }
                run(case, cell);
            }
            "relu" => run(case, Elman::new().nonlinearity(Nonlinearity::Relu).direction(direction)),
            "lstm" => {
                let mut cell = Lstm::new().direction(direction).coupled(case.size("coupled") == 1);
                if let Some([first, last]) = activations(case) {
                    cell = cell.activations(first).reverse_activations(last);
                }
                if let Some(clip) = case.number("activation_clip") {
                    cell = cell.activation_clip(clip);
                }
                if let Some(clip) = case.number("clip") {
                    cell = cell.clip(clip);
                }
                run(case, cell);
                run(case, cell.recompute(true));
            }
            _ => {
                let reset = if case.size("before") == 1 { Reset::Before } else { Reset::After };
                let mut cell = Gru::new().direction(direction).reset(reset);
                if let Some([first, last]) = activations(case) {
                    cell = cell.activations(first).reverse_activations(last);
                }
                if let Some(clip) = case.number("activation_clip") {
                    cell = cell.activation_clip(clip);
                }
                run(case, cell);
                run(case, cell.recompute(true));
            }
        }
    });
}

/// Those that the case has in place of the usual ones: of the first direction and of the last, which may be one.
fn activations<const N: usize>(case: &Case) -> Option<[[Activation; N]; 2]> {
    let numbers = |option: &str| -> Vec<f64> {
        let text = case.text(option).unwrap_or("");
        text.split(',').filter(|x| !x.is_empty()).map(|x| x.parse().unwrap()).collect()
    };
    let (alphas, betas) = (numbers("alphas"), numbers("betas"));
    let all = onnx_activations(case.text("activations")?.split(','), &alphas, &betas).unwrap();
    assert_eq!(all.len(), N * case.size("directions"), "{}", case.name);
    Some([*all.first_chunk().unwrap(), *all.last_chunk().unwrap()])
}

/// A state of all layers, `[layers · directions, batch, …]` or without the first axis, by layers.
fn states(case: &Case, name: &str) -> Vec<Tensor<f64, 3>> {
    let (layers, directions) = (case.size("layers"), case.size("directions"));
    let (shape, numbers) = case.array(name);
    let shape = [directions, shape[shape.len() - 2], shape[shape.len() - 1]];
    let each = numbers.chunks_exact(numbers.len() / layers);
    each.map(|layer| Tensor::from_slice(layer, shape).unwrap()).collect()
}

fn joined(states: &[Tensor<f64, 3>]) -> Vec<f64> {
    states.iter().flat_map(|state| state.as_slice()).copied().collect()
}

fn run(case: &Case, cell: impl Recurrent) {
    let layers = (0..case.size("layers")).map(|layer| {
        let direction = |suffix: &str| {
            let name = |part: &str| format!("{part}_l{layer}{suffix}");
            DirectionWeights {
                input: case.view(&name("weight_ih")),
                recurrent: case.view(&name("weight_hh")),
                bias: case.maybe(&name("bias_ih")),
                recurrent_bias: case.maybe(&name("bias_hh")),
                peephole: case.maybe(&format!("peephole{suffix}")),
                projection: case.maybe(&name("weight_hr")),
            }
        };
        let reverse = (case.size("directions") == 2).then(|| direction("_reverse"));
        WeightTensors::from_pytorch(direction(""), reverse).unwrap()
    });
    let mut stack = Stack::from_weights(cell, layers.collect()).unwrap();
    let lengths = case.list("lengths");
    let of = |name: &str| if case.has(name) { states(case, name) } else { Vec::new() };
    let first = case.has("h0").then(|| State { hidden: of("h0"), cell: of("c0") });
    let x: TensorView<'_, f64, 3> = case.view("x");
    let (y, last) = stack.infer_from(x, first.as_ref(), lengths.as_deref()).unwrap();
    case.check("y", y.as_slice());
    case.check("h", &joined(&last.hidden));
    let (y, last) = stack.forward_from(x, first.as_ref(), lengths.as_deref()).unwrap();
    case.check("y", y.as_slice());
    case.check("h", &joined(&last.hidden));
    if case.has("c") {
        case.check("c", &joined(&last.cell));
    }
    let d_last = State { hidden: of("d_h"), cell: of("d_c") };
    let (dx, d_first) = stack.backward_from(case.view("d_y"), Some(&d_last)).unwrap();
    case.check("d_x", dx.as_slice());
    if case.has("h0") {
        case.check("d_h0", &joined(&d_first.hidden));
    }
    if case.has("c0") {
        case.check("d_c0", &joined(&d_first.cell));
    }
    stack.visit(&mut |name, parameter| {
        let (layer, part) = name.split_once('.').expect("layer.part");
        let theirs = match part {
            "input" => format!("d_weight_ih_l{layer}"),
            "recurrent" => format!("d_weight_hh_l{layer}"),
            "bias" => format!("d_bias_ih_l{layer}"),
            "recurrent_bias" => format!("d_bias_hh_l{layer}"),
            "projection" => format!("d_weight_hr_l{layer}"),
            "peephole" => "d_peephole".to_owned(),
            other => panic!("{other}"),
        };
        // The directions are one tensor here.
        let half = case.array(&theirs).1.len();
        let (forward, reverse) = parameter.gradient().split_at(half);
        case.check(&theirs, forward);
        if !reverse.is_empty() {
            case.check(&format!("{theirs}_reverse"), reverse);
        }
    });
}

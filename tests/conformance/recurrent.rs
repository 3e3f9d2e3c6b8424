//! Recurrent layers.

use tilewise::activation::Activation;
use tilewise::rnn::{
    Direction, Elman, Gru, Lstm, Recurrent, Reset, Sequence, WeightTensors, onnx_activations,
};
use tilewise::{Element, Tensor};

use super::{Array, Call, Result};

pub const OPERATORS: &[&str] = &["GRU", "LSTM", "RNN"];

pub fn run<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let direction = match call.text("direction").as_deref() {
        None | Some("forward") => Direction::Forward,
        Some("reverse") => Direction::Reverse,
        _ => Direction::Bidirectional,
    };
    let clip = call.attribute("clip").map(|_| call.float("clip", 0.0));
    let names = call.texts("activations");
    let (alphas, betas) = (call.floats("activation_alpha"), call.floats("activation_beta"));
    let found = onnx_activations(names.iter().map(String::as_str), &alphas, &betas)?;
    // Those of the direction that reads in reverse: of both directions, the second half.
    let (one, two) = match direction {
        Direction::Bidirectional => found.split_at(found.len() / 2),
        _ => (&found[..], &found[..]),
    };
    macro_rules! with {
        ($cell:expr, $one:expr, $two:expr, $set:ident, $reverse:ident) => {{
            let mut cell = $cell.direction(direction);
            if !found.is_empty() {
                cell = cell.$set($one).$reverse($two);
            }
            clip.map_or(cell, |clip| cell.activation_clip(clip))
        }};
    }
    match call.node.operator.as_str() {
        "RNN" => layer::<T>(call, with!(Elman::new(), one[0], two[0], activation, reverse_activation)),
        "LSTM" => {
            let three = |of: &[Activation]| [of[0], of[1], of[2]];
            let cell = Lstm::new().coupled(call.flag("input_forget"));
            layer::<T>(call, with!(cell, three(one), three(two), activations, reverse_activations))
        }
        _ => {
            let reset = if call.flag("linear_before_reset") { Reset::After } else { Reset::Before };
            let (cell, two_of) = (Gru::new().reset(reset), |of: &[Activation]| [of[0], of[1]]);
            layer::<T>(call, with!(cell, two_of(one), two_of(two), activations, reverse_activations))
        }
    }
}

fn layer<T: Element>(call: &Call, cell: impl Recurrent) -> Result<Vec<Array>> {
    // With layout 1 the batch is the first axis of everything.
    let batch_first = call.flag("layout");
    let swap = |x: &Array, axes: &[usize]| if batch_first { x.permute(axes) } else { x.clone() };
    let tensor = |at: usize| call.input(at).map(|x| swap(x, &[1, 0, 2]).tensor::<T, 3>()).transpose();
    let x = swap(call.need(0)?, &[1, 0, 2]).tensor::<T, 3>()?;
    let (w, r) = (call.need(1)?.tensor::<T, 3>()?, call.need(2)?.tensor::<T, 3>()?);
    let bias = call.input(3).map(Array::tensor::<T, 2>).transpose()?;
    let peephole = call.input(7).map(Array::tensor::<T, 2>).transpose()?;
    let lengths = call.input(4).map(Array::sizes);
    let (mut hidden, mut state) = (tensor(5)?, None);
    if call.node.operator == "LSTM" {
        state = tensor(6)?;
        // Either may be left out there, and both or none here.
        let zeros =
            |other: &Option<Tensor<T, 3>>| other.as_ref().map(|x| Tensor::zeros(x.shape())).transpose();
        hidden = if hidden.is_some() { hidden } else { zeros(&state)? };
        state = if state.is_some() { state } else { zeros(&hidden)? };
    }
    let weights = WeightTensors::from_onnx(
        cell,
        w.view(),
        r.view(),
        bias.as_ref().map(|bias| bias.view()),
        peephole.as_ref().map(|peephole| peephole.view()),
    )?;
    let mut sequence = Sequence::new(x.view());
    sequence.lengths = lengths.as_deref();
    sequence.hidden = hidden.as_ref().map(|hidden| hidden.view());
    sequence.cell = state.as_ref().map(|state| state.view());
    let found = cell.forward(sequence, weights.view())?;
    // y `[time, batch, directions · hidden]` is `[time, directions, batch, hidden]` there.
    let [time, batch, _] = found.y.shape();
    let directions = w.shape()[0];
    let y = found.y.reshape([time, batch, directions, r.shape()[2]])?;
    let y = Array::from(y.view().permute(if batch_first { [1, 0, 2, 3] } else { [0, 2, 1, 3] })?);
    let mut outputs = vec![y, swap(&found.hidden.into(), &[1, 0, 2])];
    outputs.extend(found.cell.map(|state| swap(&state.into(), &[1, 0, 2])));
    Ok(outputs)
}

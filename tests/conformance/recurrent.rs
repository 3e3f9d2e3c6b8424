//! Recurrent layers.

use tilewise::rnn::{Direction, Elman, Gru, Lstm, Nonlinearity, Recurrent, Reset, Sequence, WeightTensors};
use tilewise::{Element, Tensor};

use super::{Array, Call, Result, skip};

pub const OPERATORS: &[&str] = &["GRU", "LSTM", "RNN"];

pub fn run<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let direction = match call.text("direction").as_deref() {
        None | Some("forward") => Direction::Forward,
        Some("reverse") => Direction::Reverse,
        _ => Direction::Bidirectional,
    };
    if call.attribute("clip").is_some() {
        return skip("clip of what enters the gates");
    }
    let names = call.texts("activations");
    let given = |usual: &[&str]| names.iter().zip(usual.iter().cycle()).any(|(name, usual)| name != usual);
    match call.node.operator.as_str() {
        "RNN" => {
            let relu = names.first().is_some_and(|name| name == "Relu");
            if given(&[if relu { "Relu" } else { "Tanh" }]) {
                return skip(format!("activations {names:?}"));
            }
            let nonlinearity = if relu { Nonlinearity::Relu } else { Nonlinearity::Tanh };
            layer::<T>(call, Elman::new().nonlinearity(nonlinearity).direction(direction))
        }
        "LSTM" if given(&["Sigmoid", "Tanh", "Tanh"]) => skip(format!("activations {names:?}")),
        "LSTM" if call.flag("input_forget") => skip("coupled gates"),
        "LSTM" => layer::<T>(call, Lstm::new().direction(direction)),
        _ if given(&["Sigmoid", "Tanh"]) => skip(format!("activations {names:?}")),
        _ => {
            let after = call.flag("linear_before_reset");
            let reset = if after { Reset::After } else { Reset::Before };
            layer::<T>(call, Gru::new().reset(reset).direction(direction))
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

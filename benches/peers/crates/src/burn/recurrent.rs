use burn::module::Param;
use burn::nn::{GateController, Gru, GruConfig, Linear, Lstm, LstmConfig, LstmState};
use burn::tensor::{Device, Tensor};

use super::{all, back, device, gradient, read, take};
use crate::{Call, Problem, Read, Result};

/// Its gates are in PyTorch's order, time comes first.
pub trait Cell: Sized + 'static {
    type State: Clone;
    const GATES: usize;

    fn new(inputs: usize, size: usize, gates: Vec<GateController>, device: &Device) -> Self;
    fn gates(&self) -> Vec<&GateController>;
    fn forward(&self, x: Tensor<3>, state: Option<Self::State>) -> (Tensor<3>, Self::State);
}

impl Cell for Lstm {
    type State = LstmState<2>;
    const GATES: usize = 4;

    fn new(inputs: usize, size: usize, gates: Vec<GateController>, device: &Device) -> Self {
        let mut new = LstmConfig::new(inputs, size, true).with_batch_first(false).init(device);
        let [input, forget, cell, output] = gates.try_into().expect("4 gates");
        (new.input_gate, new.forget_gate) = (input, Some(forget));
        (new.cell_gate, new.output_gate) = (cell, output);
        new
    }

    fn gates(&self) -> Vec<&GateController> {
        let forget = self.forget_gate.as_ref().expect("it has one");
        vec![&self.input_gate, forget, &self.cell_gate, &self.output_gate]
    }

    fn forward(&self, x: Tensor<3>, state: Option<Self::State>) -> (Tensor<3>, Self::State) {
        self.forward(x, state)
    }
}

/// Its state is what it gave for the last step alone.
impl Cell for Gru {
    type State = Tensor<3>;
    const GATES: usize = 3;

    fn new(inputs: usize, size: usize, gates: Vec<GateController>, device: &Device) -> Self {
        // It resets after the product unless it is told otherwise.
        let mut new = GruConfig::new(inputs, size, true).init(device);
        [new.reset_gate, new.update_gate, new.new_gate] = gates.try_into().expect("3 gates");
        new
    }

    fn gates(&self) -> Vec<&GateController> {
        vec![&self.reset_gate, &self.update_gate, &self.new_gate]
    }

    fn forward(&self, x: Tensor<3>, state: Option<Self::State>) -> (Tensor<3>, Self::State) {
        let y = self.forward(x.swap_dims(0, 1), state.map(|h| h.squeeze_dim(1)));
        (y.clone().swap_dims(0, 1), y)
    }
}

/// A part for each gate, along the last axis.
fn split<const N: usize>(tensor: Tensor<N>, gates: usize) -> Vec<Param<Tensor<N>>> {
    let device = tensor.device();
    tensor.chunk(gates, N - 1).into_iter().map(|part| Param::from_data(part.into_data(), &device)).collect()
}

/// The gates' matrices below one another, with outputs first.
fn joined(parts: Vec<Tensor<2>>) -> Read {
    Box::new(move || read(Tensor::cat(parts, 1).transpose())())
}

pub fn prepare<C: Cell>(problem: &Problem) -> Result<Call> {
    let [time, batch, inputs, size] = problem.sizes()?;
    let rows = C::GATES * size;
    let (u, w) = (take(problem, [rows, inputs])?, take(problem, [rows, size])?);
    let (b, rb) = (take(problem, [rows])?, take(problem, [rows])?);
    let [u, w] = [u, w].map(|weights| split(weights.transpose(), C::GATES));
    let [b, rb] = [b, rb].map(|bias| split(bias, C::GATES));
    let linear = |(weight, bias)| Linear { weight, bias: Some(bias) };
    let [to_input, to_hidden] = [(u, b), (w, rb)].map(|(w, b)| w.into_iter().zip(b).map(linear));
    let gates = to_input.zip(to_hidden);
    let gates =
        gates.map(|(input_transform, hidden_transform)| GateController { input_transform, hidden_transform });
    let cell = C::new(inputs, size, gates.collect(), &device(problem));
    let (x, dy) = (take(problem, [time, batch, inputs])?, take(problem, [time, batch, size])?.detach());
    Ok(match problem.kind.as_str() {
        "forward" => Box::new(move || Ok(read(cell.forward(x.clone(), None).0))),
        "training" => Box::new(move || {
            let y = cell.forward(x.clone(), None).0;
            let gradients = back(&y, &dy);
            let (mut u, mut w) = (Vec::new(), Vec::new());
            for gate in cell.gates() {
                u.push(gradient(&gate.input_transform.weight.val(), &gradients)?);
                w.push(gradient(&gate.hidden_transform.weight.val(), &gradients)?);
            }
            Ok(all(vec![read(y), read(gradient(&x, &gradients)?), joined(u), joined(w)]))
        }),
        "step" => {
            let (x, mut state) = (x.narrow(0, 0, 1), None);
            Box::new(move || {
                let (y, next) = cell.forward(x.clone(), state.take());
                state = Some(next);
                Ok(read(y))
            })
        }
        _ => return problem.refuse(),
    })
}

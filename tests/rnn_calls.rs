//! Recurrent cells: central differences, threads, streams, and input that is refused.

mod common;

use common::{bits, in_pools, wave};
use tilewise::activation::Activation;
use tilewise::rnn::{
    Direction, Elman, Gru, Lstm, Nonlinearity, OutputGradients, OutputMut, Recurrent, Reset, Sequence,
    StateMut, Tape, Weights,
};
use tilewise::{Tensor, TensorView};

/// Everything that goes into a call.
#[derive(Clone, Copy)]
enum Part {
    X,
    Hidden,
    Cell,
    Input,
    Recurrent,
    Bias,
    RecurrentBias,
    Peephole,
    Projection,
}

const PARTS: [Part; 9] = [
    Part::X,
    Part::Hidden,
    Part::Cell,
    Part::Input,
    Part::Recurrent,
    Part::Bias,
    Part::RecurrentBias,
    Part::Peephole,
    Part::Projection,
];

struct Model {
    x: Tensor<f64, 3>,
    hidden: Tensor<f64, 3>,
    cell: Option<Tensor<f64, 3>>,
    input: Tensor<f64, 3>,
    recurrent: Tensor<f64, 3>,
    bias: Tensor<f64, 2>,
    recurrent_bias: Tensor<f64, 2>,
    peephole: Option<Tensor<f64, 2>>,
    projection: Option<Tensor<f64, 3>>,
    lengths: Option<Vec<usize>>,
}

impl Model {
    fn new(
        cell: impl Recurrent,
        [time, batch, inputs, hidden]: [usize; 4],
        directions: usize,
        project: Option<usize>,
        lengths: Option<&[usize]>,
    ) -> Self {
        let (rows, state, lstm) = (cell.gates() * hidden, project.unwrap_or(hidden), cell.gates() == 4);
        Self {
            x: wave([time, batch, inputs], 0.1),
            hidden: wave([directions, batch, state], 0.2),
            cell: lstm.then(|| wave([directions, batch, hidden], 0.3)),
            input: wave([directions, rows, inputs], 0.4),
            recurrent: wave([directions, rows, state], 0.5),
            bias: wave([directions, rows], 0.6),
            recurrent_bias: wave([directions, rows], 0.7),
            peephole: project.map(|_| wave([directions, 3 * hidden], 0.8)),
            projection: project.map(|state| wave([directions, state, hidden], 0.9)),
            lengths: lengths.map(<[usize]>::to_vec),
        }
    }

    fn sequence(&self) -> Sequence<'_, f64> {
        let sequence = Sequence::new(self.x.view()).hidden(self.hidden.view());
        Sequence { cell: self.cell.as_ref().map(Tensor::view), lengths: self.lengths.as_deref(), ..sequence }
    }

    fn weights(&self) -> Weights<'_, f64> {
        let weights = Weights::new(self.input.view(), self.recurrent.view());
        Weights {
            peephole: self.peephole.as_ref().map(Tensor::view),
            projection: self.projection.as_ref().map(Tensor::view),
            ..weights.bias(self.bias.view()).recurrent_bias(self.recurrent_bias.view())
        }
    }

    fn part(&mut self, part: Part) -> &mut [f64] {
        match part {
            Part::X => self.x.as_mut_slice(),
            Part::Hidden => self.hidden.as_mut_slice(),
            Part::Cell => self.cell.as_mut().map_or(&mut [], Tensor::as_mut_slice),
            Part::Input => self.input.as_mut_slice(),
            Part::Recurrent => self.recurrent.as_mut_slice(),
            Part::Bias => self.bias.as_mut_slice(),
            Part::RecurrentBias => self.recurrent_bias.as_mut_slice(),
            Part::Peephole => self.peephole.as_mut().map_or(&mut [], Tensor::as_mut_slice),
            Part::Projection => self.projection.as_mut().map_or(&mut [], Tensor::as_mut_slice),
        }
    }
}

fn gradients_are_differences(
    cell: impl Recurrent,
    directions: usize,
    project: Option<usize>,
    lengths: Option<&[usize]>,
) {
    let [time, batch, hidden] = [4, 3, 5];
    let mut model = Model::new(cell, [time, batch, 2, hidden], directions, project, lengths);
    let state = project.unwrap_or(hidden);
    // L = Σ R ⊙ y + Σ S ⊙ h + Σ Q ⊙ c, so that the gradients for the outputs are R, S and Q.
    let (r, s) = (wave([time, batch, directions * state], 1.0), wave([directions, batch, state], 1.1));
    let q = wave([directions, batch, hidden], 1.2);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let loss = |model: &Model| {
        let out = cell.forward(model.sequence(), model.weights()).unwrap();
        let c = out.cell.map_or(0.0, |c| dot(c.as_slice(), q.as_slice()));
        dot(out.y.as_slice(), r.as_slice()) + dot(out.hidden.as_slice(), s.as_slice()) + c
    };
    let mut tape = Tape::new();
    cell.forward_taped(model.sequence(), model.weights(), &mut tape).unwrap();
    let outputs = OutputGradients {
        y: Some(r.view()),
        hidden: Some(s.view()),
        cell: model.cell.is_some().then(|| q.view()),
    };
    let found = cell.backward(model.sequence(), model.weights(), &tape, outputs).unwrap();
    let none = Vec::new();
    let slice = |tensor: &Option<Tensor<f64, 3>>| {
        tensor.as_ref().map_or(none.clone(), |tensor| tensor.as_slice().to_vec())
    };
    let vector = |tensor: &Option<Tensor<f64, 2>>| {
        tensor.as_ref().map_or(none.clone(), |tensor| tensor.as_slice().to_vec())
    };
    let weights = &found.weights;
    let found = [
        found.x.as_slice().to_vec(),
        found.hidden.as_slice().to_vec(),
        slice(&found.cell),
        weights.input.as_slice().to_vec(),
        weights.recurrent.as_slice().to_vec(),
        vector(&weights.bias),
        vector(&weights.recurrent_bias),
        vector(&weights.peephole),
        slice(&weights.projection),
    ];
    // The error of the difference is about h² of the third derivative and ε/h of the loss.
    let h = 1e-5;
    for (part, found) in PARTS.into_iter().zip(&found) {
        assert_eq!(model.part(part).len(), found.len());
        for at in 0..found.len() {
            let value = model.part(part)[at];
            let [high, low] = [h, -h].map(|h| {
                model.part(part)[at] = value + h;
                loss(&model)
            });
            model.part(part)[at] = value;
            let expected = (high - low) / (2.0 * h);
            let error = (expected - found[at]).abs();
            assert!(
                error < 1e-7 * (1.0 + expected.abs()),
                "part {} at {at}: {} {expected}",
                part as u8,
                found[at]
            );
        }
    }
}

#[test]
fn gradients_are_central_differences() {
    let both = Direction::Bidirectional;
    gradients_are_differences(Elman::new(), 1, None, None);
    gradients_are_differences(Elman::new().direction(both), 2, None, Some(&[4, 0, 2]));
    gradients_are_differences(Lstm::new(), 1, None, Some(&[2, 3, 4]));
    gradients_are_differences(Lstm::new().direction(both), 2, Some(3), None);
    gradients_are_differences(Lstm::new().direction(both).recompute(true), 2, Some(7), Some(&[1, 4, 3]));
    // No cell state comes near this limit by chance, and some go beyond it.
    gradients_are_differences(Lstm::new().clip(0.7).direction(Direction::Reverse), 1, None, Some(&[3, 4, 1]));
    let scaled = Activation::ScaledTanh { alpha: 0.75, beta: 0.5 };
    gradients_are_differences(Elman::new().activation(Activation::Softplus), 1, None, None);
    gradients_are_differences(Lstm::new().coupled(true).direction(both), 2, None, Some(&[1, 4, 3]));
    let lstm = Lstm::new().activations([Activation::Softsign, Activation::Softplus, scaled]);
    gradients_are_differences(lstm.direction(both).recompute(true), 2, Some(3), Some(&[1, 4, 3]));
    for reset in [Reset::After, Reset::Before] {
        let gru = Gru::new().reset(reset);
        let other = gru.direction(both).activations([scaled, Activation::Softsign]);
        gradients_are_differences(other.reverse_activations([Activation::Sigmoid, scaled]), 2, None, None);
        gradients_are_differences(gru, 1, None, None);
        gradients_are_differences(gru.direction(both).recompute(true), 2, None, Some(&[0, 4, 2]));
    }
}

/// All results of a call forward and back, as bits.
fn results(cell: impl Recurrent, model: &Model) -> Vec<Vec<u64>> {
    let mut tape = Tape::new();
    let (sequence, weights) = (model.sequence(), model.weights());
    let out = cell.forward_taped(sequence, weights, &mut tape).unwrap();
    let alone = cell.forward(sequence, &cell.pack(weights).unwrap()).unwrap();
    let dy = wave(out.y.shape(), 2.0);
    let found = cell.backward(sequence, weights, &tape, dy.view()).unwrap();
    let weights = &found.weights;
    let bias = weights.bias.as_ref().unwrap();
    [
        out.y.as_slice(),
        out.hidden.as_slice(),
        alone.y.as_slice(),
        found.x.as_slice(),
        found.hidden.as_slice(),
        weights.input.as_slice(),
        weights.recurrent.as_slice(),
        bias.as_slice(),
    ]
    .map(bits)
    .into()
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    fn same(
        cell: impl Recurrent,
        sizes: [usize; 4],
        directions: usize,
        project: Option<usize>,
        lengths: bool,
    ) {
        let lengths: Option<Vec<usize>> =
            lengths.then(|| (0..sizes[1]).map(|entry| (entry * 5 + 1) % (sizes[0] + 1)).collect());
        let model = Model::new(cell, sizes, directions, project, lengths.as_deref());
        let found = in_pools(|| results(cell, &model));
        assert!(found.iter().all(|bits| *bits == found[0]));
    }
    let both = Direction::Bidirectional;
    // Tasks in a step; groups; both directions.
    same(Lstm::new(), [3, 16, 40, 330], 1, None, false);
    // A lone row over weights that L2 does not hold, or of which it holds a thread's share.
    same(Lstm::new(), [2, 1, 30, 420], 1, None, false);
    same(Lstm::new().direction(both), [4, 70, 33, 90], 2, Some(50), false);
    same(Lstm::new().recompute(true), [4, 40, 33, 150], 1, None, true);
    same(Gru::new().direction(both), [4, 70, 33, 110], 2, None, false);
    same(Gru::new().reset(Reset::Before).recompute(true), [4, 70, 50, 110], 1, None, false);
    same(Gru::new().reset(Reset::Before), [3, 9, 50, 400], 1, None, true);
    same(Elman::new().direction(Direction::Reverse), [5, 40, 100, 300], 1, None, false);
    // Copies of x and of its gradient that are cut.
    same(Gru::new().direction(both), [5, 64, 333, 20], 2, None, false);
    same(Elman::new(), [7, 64, 333, 20], 1, None, true);
}

#[test]
fn a_stream_has_the_bits_of_the_sequence() {
    fn same(cell: impl Recurrent, project: Option<usize>) {
        let model = Model::new(cell, [5, 3, 7, 37], 1, project, None);
        let packed = cell.pack(model.weights()).unwrap();
        let whole = cell.forward(model.sequence(), &packed).unwrap();
        let mut hidden = model.hidden.view().select::<2>(0, 0).unwrap().to_tensor().unwrap();
        let mut state =
            model.cell.as_ref().map(|cell| cell.view().select::<2>(0, 0).unwrap().to_tensor().unwrap());
        for time in 0..5 {
            let mut to = StateMut::new(hidden.view_mut());
            to.cell = state.as_mut().map(Tensor::view_mut);
            cell.step(model.x.view().select(0, time).unwrap(), &packed, to).unwrap();
            let y: TensorView<f64, 2> = whole.y.view().select(0, time).unwrap();
            assert_eq!(hidden.view(), y);
        }
        // A sequence alone has the bits that it has in its batch.
        let one = |view: TensorView<'_, f64, 3>| view.slice(1, 1..2, 1).unwrap().to_tensor().unwrap();
        let (x, h) = (one(model.x.view()), one(model.hidden.view()));
        let c = model.cell.as_ref().map(|cell| one(cell.view()));
        let sequence = Sequence {
            x: x.view(),
            hidden: Some(h.view()),
            cell: c.as_ref().map(Tensor::view),
            lengths: None,
        };
        let alone = cell.forward(sequence, &packed).unwrap();
        assert_eq!(alone.y, one(whole.y.view()));
    }
    same(Elman::new().nonlinearity(Nonlinearity::Relu), None);
    same(Lstm::new(), None);
    same(Lstm::new().clip(0.5), Some(11));
    same(Lstm::new().coupled(true).activation_clip(1.0), None);
    same(Gru::new(), None);
    same(Gru::new().reset(Reset::Before), None);
}

#[test]
fn recomputed_gates_have_the_same_bits() {
    fn same(cell: impl Recurrent, again: impl Recurrent) {
        // The second has several blocks of depth, in products of other shapes forward and back.
        for (shape, lengths) in [([6, 5, 7, 37], Some(&[6, 2, 0, 5, 5][..])), ([3, 40, 600, 33], None)] {
            let model = Model::new(cell, shape, 1, None, lengths);
            assert_eq!(results(cell, &model), results(again, &model));
        }
    }
    same(Lstm::new(), Lstm::new().recompute(true));
    same(Gru::new(), Gru::new().recompute(true));
    let before = Gru::new().reset(Reset::Before);
    same(before, before.recompute(true));
}

#[test]
fn carried_states_continue_a_sequence() {
    let lstm = Lstm::new();
    let model = Model::new(lstm, [8, 2, 3, 6], 1, None, None);
    let whole = lstm.forward(model.sequence(), model.weights()).unwrap();
    let (first, second) = model.x.view().split_at(0, 3).unwrap();
    let start = lstm.forward(Sequence { x: first, ..model.sequence() }, model.weights()).unwrap();
    let cell = start.cell.unwrap();
    let carried = Sequence::new(second).hidden(start.hidden.view()).cell(cell.view());
    let rest = lstm.forward(carried, model.weights()).unwrap();
    assert_eq!(rest.y.as_slice(), &whole.y.as_slice()[3 * 2 * 6..]);
    assert_eq!(rest.hidden, whole.hidden);
}

#[test]
fn values_behind_the_end_do_not_count() {
    let gru = Gru::new().direction(Direction::Bidirectional);
    let mut model = Model::new(gru, [4, 2, 3, 5], 2, None, Some(&[2, 4]));
    let clean = results(gru, &model);
    for t in 2..4 {
        (0..3).for_each(|i| *model.x.get_mut([t, 0, i]).unwrap() = f64::NAN);
    }
    assert_eq!(results(gru, &model), clean);
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let lstm = Lstm::new();
    let model = Model::new(lstm, [4, 2, 3, 5], 1, None, None);
    let (sequence, weights) = (model.sequence(), model.weights());
    let m = |shape: [usize; 3]| Tensor::<f64, 3>::full(shape, 1.0).unwrap();
    let v = |shape: [usize; 2]| Tensor::<f64, 2>::full(shape, 1.0).unwrap();
    let refused = |sequence: Sequence<'_, f64>, weights: Weights<'_, f64>, expected: &str| {
        assert_eq!(lstm.forward(sequence, weights).unwrap_err().to_string(), expected);
    };
    let x = m([4, 2, 4]);
    refused(
        Sequence { x: x.view(), ..sequence },
        weights,
        "rnn::forward: x has shape [4, 2, 4], expected [4, 2, 3]",
    );
    let h = m([1, 3, 5]);
    refused(
        Sequence { hidden: Some(h.view()), ..sequence },
        weights,
        "rnn::forward: hidden has shape [1, 3, 5], expected [1, 2, 5]",
    );
    refused(
        Sequence { cell: Some(h.view()), ..sequence },
        weights,
        "rnn::forward: cell has shape [1, 3, 5], expected [1, 2, 5]",
    );
    refused(
        Sequence { cell: None, ..sequence },
        weights,
        "rnn::forward: cell is missing, expected one beside the hidden state",
    );
    refused(
        Sequence { hidden: None, ..sequence },
        weights,
        "rnn::forward: hidden is missing, expected one beside the cell state",
    );
    refused(sequence.lengths(&[4]), weights, "rnn::forward: lengths has shape [1], expected [2]");
    refused(
        sequence.lengths(&[4, 5]),
        weights,
        "rnn::forward: lengths is 5, expected at most the steps of x",
    );
    let w = m([1, 21, 5]);
    refused(
        sequence,
        Weights { recurrent: w.view(), ..weights },
        "rnn::forward: recurrent has shape [1, 21, 5], expected [1, 20, 5]",
    );
    let w = m([2, 20, 5]);
    refused(
        sequence,
        Weights { recurrent: w.view(), ..weights },
        "rnn::forward: recurrent has shape [2, 20, 5], expected [1, 20, 5]",
    );
    let w = m([1, 20, 6]);
    refused(
        sequence,
        Weights { recurrent: w.view(), ..weights },
        "rnn::forward: recurrent has shape [1, 20, 6], expected [1, 20, 5]",
    );
    let u = m([1, 15, 3]);
    refused(
        sequence,
        Weights { input: u.view(), ..weights },
        "rnn::forward: input has shape [1, 15, 3], expected [1, 20, 3]",
    );
    let b = v([1, 15]);
    refused(sequence, weights.bias(b.view()), "rnn::forward: bias has shape [1, 15], expected [1, 20]");
    refused(
        sequence,
        weights.peephole(b.view().slice(1, ..14, 1).unwrap()),
        "rnn::forward: peephole has shape [1, 14], expected [1, 15]",
    );
    let clip = Elman::new().activation_clip(f64::NAN).forward(sequence, weights).unwrap_err().to_string();
    assert_eq!(clip, "rnn::forward: activation_clip is NaN, expected a number that is not negative");
    let leaky = |slope| Activation::LeakyRelu { slope };
    let [tanh, nan] = [Activation::Tanh, leaky(f64::NAN)];
    let expected =
        "rnn::forward: activation is LeakyRelu { slope: NaN }, expected one whose constants are numbers";
    for elman in [Elman::new().activation(nan), Elman::new().reverse_activation(nan)] {
        assert_eq!(elman.forward(sequence, weights).unwrap_err().to_string(), expected);
        assert!(elman.forward_taped(sequence, weights, &mut Tape::new()).is_err());
    }
    let lstm_with_nan = Lstm::new().activations([leaky(0.1), tanh, nan]);
    assert_eq!(lstm_with_nan.forward(sequence, weights).unwrap_err().to_string(), expected);
    let clip = Lstm::new().clip(-1.0).forward(sequence, weights).unwrap_err().to_string();
    assert_eq!(clip, "rnn::forward: clip is -1, expected a number that is not negative");

    // What is not an LSTM's.
    let elman = Elman::new();
    let other = Model::new(elman, [4, 2, 3, 5], 1, None, None);
    let sequence_with_c = Sequence { cell: sequence.cell, ..other.sequence() };
    let error = elman.forward(sequence_with_c, other.weights()).unwrap_err().to_string();
    assert_eq!(error, "rnn::forward: cell is given, expected none, but with an LSTM");
    let error = elman.forward(other.sequence(), other.weights().peephole(b.view())).unwrap_err().to_string();
    assert_eq!(error, "rnn::forward: peephole is given, expected none, but with an LSTM");

    // Weights packed for something else.
    let packed = elman.pack(other.weights()).unwrap();
    assert!(lstm.forward(sequence, &packed).unwrap_err().to_string().contains("was packed for"));

    // Outputs that do not fit are left as they are.
    let (mut y, mut hidden) = (m([4, 2, 5]), m([1, 2, 6]));
    let output = OutputMut { y: y.view_mut(), hidden: Some(hidden.view_mut()), cell: None };
    let error = lstm.forward_into(sequence, weights, output).unwrap_err().to_string();
    assert_eq!(error, "rnn::forward_into: output.hidden has shape [1, 2, 6], expected [1, 2, 5]");
    assert!(y.iter().chain(hidden.iter()).all(|&value| value == 1.0));

    // A stream knows no end to begin with.
    let reverse = lstm.direction(Direction::Reverse);
    let state = StateMut::new(hidden.view_mut().select(0, 0).unwrap());
    let error = reverse.step(model.x.view().select(0, 0).unwrap(), weights, state).unwrap_err().to_string();
    assert_eq!(error, "rnn::step: direction is Reverse, expected forward");
}

#[test]
fn a_tape_serves_its_own_call_only() {
    let lstm = Lstm::new();
    let model = Model::new(lstm, [4, 2, 3, 5], 1, None, None);
    let (sequence, weights) = (model.sequence(), model.weights());
    let dy = wave([4, 2, 5], 0.0);
    let mut tape = Tape::new();
    let refused = |lstm: Lstm, sequence: Sequence<'_, f64>, tape: &Tape<f64>, found: &str| {
        let error = lstm.backward(sequence, weights, tape, dy.view()).unwrap_err().to_string();
        let expected = "expected that of forward_taped with these options, sizes and lengths";
        assert_eq!(error, format!("rnn::backward: tape is {found}, {expected}"));
    };
    refused(lstm, sequence, &tape, "empty");
    lstm.forward_taped(sequence, weights, &mut tape).unwrap();
    refused(lstm.recompute(true), sequence, &tape, "that of another call");
    refused(lstm, sequence.lengths(&[4, 3]), &tape, "that of another call");
    assert!(lstm.backward(sequence, weights, &tape, dy.view()).is_ok());
    // A call that fails leaves none.
    assert!(lstm.forward_taped(sequence.lengths(&[5, 5]), weights, &mut tape).is_err());
    refused(lstm, sequence, &tape, "empty");
}

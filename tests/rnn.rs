//! Recurrent cells against their scalar twins, on every instruction set of this machine.

mod common;

use common::{CANARY, Strided, quickcheck, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::activation::Activation;
use tilewise::machine::{self, Isa};
use tilewise::reference::rnn as reference;
use tilewise::rnn::{
    Direction, Elman, Gradients, GradientsMut, Gru, Lstm, Nonlinearity, Operand, Output, OutputGradients,
    OutputMut, Recurrent, Reset, Sequence, Tape, WeightGradientsMut, Weights,
};
use tilewise::{Element, Tensor, TensorView};

/// One of the three, to be handed to code that is generic.
#[derive(Clone, Copy, Debug)]
enum Any {
    Elman(Elman),
    Lstm(Lstm),
    Gru(Gru),
}

macro_rules! with {
    ($any:expr, $cell:ident => $body:expr) => {
        match $any {
            Any::Elman($cell) => $body,
            Any::Lstm($cell) => $body,
            Any::Gru($cell) => $body,
        }
    };
}

#[derive(Clone, Debug)]
struct Case<T> {
    isa: Isa,
    cell: Any,
    twin: reference::Cell,
    /// Of the direction that reads forward, and of the other.
    functions: Option<[reference::Functions; 2]>,
    direction: Direction,
    x: Strided<T, 3>,
    hidden: Option<Strided<T, 3>>,
    cell_state: Option<Strided<T, 3>>,
    lengths: Option<Vec<usize>>,
    input: Strided<T, 3>,
    recurrent: Strided<T, 3>,
    bias: Option<Strided<T, 2>>,
    recurrent_bias: Option<Strided<T, 2>>,
    peephole: Option<Strided<T, 2>>,
    projection: Option<Strided<T, 3>>,
    y: Strided<T, 3>,
    last_hidden: Strided<T, 3>,
    last_cell: Strided<T, 3>,
    dy: Strided<T, 3>,
    d_hidden: Strided<T, 3>,
    d_cell: Strided<T, 3>,
    packed: bool,
    beta: T,
}

/// Sizes about vectors and tiles, none so large that a case takes long.
const SIZES: [usize; 14] = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33];

fn size(g: &mut Gen) -> usize {
    *g.choose(&SIZES).expect("not empty")
}

/// A view whose elements are at most `most` in magnitude.
fn small<T: Element, const N: usize>(g: &mut Gen, shape: [usize; N], most: f64) -> Strided<T, N> {
    let mut strided = Strided::random(g, shape);
    for element in &mut strided.data {
        if *element != T::from_f64(CANARY) {
            *element *= T::from_f64(most / 2.0);
        }
    }
    strided
}

/// ONNX's activations: for gates, which multiply, those that are bounded; for what is multiplied, any. In `f32` all are
/// smooth: rounding would decide for a side of a corner now and then.
fn activations<T: Element>(g: &mut Gen) -> [Activation; 3] {
    let gates = [
        Activation::Sigmoid,
        Activation::Softsign,
        Activation::ScaledTanh { alpha: 0.75, beta: 0.5 },
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
    ];
    let others = [
        Activation::Tanh,
        Activation::Affine { alpha: 0.5, beta: 0.25 },
        Activation::Softplus,
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.1 },
        Activation::ThresholdedRelu { threshold: 0.5 },
        Activation::Elu { alpha: 0.75 },
    ];
    let single = size_of::<T>() == 4;
    let gate = *g.choose(&gates[..if single { 3 } else { 4 }]).expect("not empty");
    let mut other = || *g.choose(&others[..if single { 3 } else { 7 }]).expect("not empty");
    [gate, other(), other()]
}

impl<T: Element> Arbitrary for Case<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let [inputs, hidden] = [size(g), size(g)];
        let (time, batch) = (within(g, 0..7), *g.choose(&[0, 1, 1, 2, 3, 5, 8, 13, 33]).expect("not empty"));
        let direction = *g
            .choose(&[Direction::Forward, Direction::Reverse, Direction::Bidirectional])
            .expect("not empty");
        let d = direction.count();
        let clip = bool::arbitrary(g).then_some(0.4);
        let (recompute, coupled) = (bool::arbitrary(g), u8::arbitrary(g).is_multiple_of(3));
        let functions = u8::arbitrary(g).is_multiple_of(3).then(|| {
            let clip = (size_of::<T>() == 8 && u8::arbitrary(g).is_multiple_of(3)).then_some(0.6);
            [(); 2].map(|()| reference::Functions { activations: activations::<T>(g), clip })
        });
        let (cell, twin) = match u8::arbitrary(g) % 6 {
            0 => {
                let relu = bool::arbitrary(g);
                let nonlinearity = if relu { Nonlinearity::Relu } else { Nonlinearity::Tanh };
                let mut elman = Elman::new().nonlinearity(nonlinearity).direction(direction);
                if let Some([one, two]) = functions {
                    elman = elman.activation(one.activations[1]).reverse_activation(two.activations[1]);
                    elman = one.clip.map_or(elman, |clip| elman.activation_clip(clip));
                }
                (Any::Elman(elman), reference::Cell::Elman { relu })
            }
            1..=3 => {
                let mut lstm = Lstm::new().direction(direction).recompute(recompute).coupled(coupled);
                lstm = clip.map_or(lstm, |clip| lstm.clip(clip));
                if let Some([one, two]) = functions {
                    lstm = lstm.activations(one.activations).reverse_activations(two.activations);
                    lstm = one.clip.map_or(lstm, |clip| lstm.activation_clip(clip));
                }
                (Any::Lstm(lstm), reference::Cell::Lstm { clip, coupled })
            }
            which => {
                let reset = if which == 4 { Reset::After } else { Reset::Before };
                let mut gru = Gru::new().reset(reset).direction(direction).recompute(recompute);
                if let Some([one, two]) = functions {
                    let two_of = |functions: reference::Functions| {
                        [functions.activations[0], functions.activations[1]]
                    };
                    gru = gru.activations(two_of(one)).reverse_activations(two_of(two));
                    gru = one.clip.map_or(gru, |clip| gru.activation_clip(clip));
                }
                (Any::Gru(gru), reference::Cell::Gru { reset_after: which == 4 })
            }
        };
        let lstm = matches!(cell, Any::Lstm(_));
        let rows = with!(cell, cell => cell.gates()) * hidden;
        let state = if lstm && u8::arbitrary(g).is_multiple_of(3) { size(g).max(1) } else { hidden };
        let project = state != hidden || (lstm && hidden > 0 && u8::arbitrary(g).is_multiple_of(8));
        let scale = |k: usize| 1.0 / (k.max(1) as f64).sqrt();
        let given = bool::arbitrary(g);
        Case {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            cell,
            twin,
            functions,
            direction,
            x: Strided::random(g, [time, batch, inputs]),
            hidden: given.then(|| small(g, [d, batch, state], 1.0)),
            cell_state: (given && lstm).then(|| small(g, [d, batch, hidden], 1.0)),
            lengths: bool::arbitrary(g).then(|| (0..batch).map(|_| within(g, 0..time + 1)).collect()),
            input: small(g, [d, rows, inputs], scale(inputs)),
            recurrent: small(g, [d, rows, state], scale(state)),
            bias: bool::arbitrary(g).then(|| small(g, [d, rows], 0.5)),
            recurrent_bias: bool::arbitrary(g).then(|| small(g, [d, rows], 0.5)),
            peephole: (lstm && bool::arbitrary(g)).then(|| small(g, [d, 3 * hidden], 0.5)),
            projection: project.then(|| small(g, [d, state, hidden], scale(hidden))),
            y: Strided::random(g, [time, batch, d * state]),
            last_hidden: Strided::random(g, [d, batch, state]),
            last_cell: Strided::random(g, [d, batch, hidden]),
            dy: small(g, [time, batch, d * state], 1.0),
            d_hidden: small(g, [d, batch, state], 1.0),
            d_cell: small(g, [d, batch, hidden], 1.0),
            packed: bool::arbitrary(g),
            beta: [T::ZERO, T::ONE, T::from_f64(-0.5)][usize::arbitrary(g) % 3],
        }
    }
}

impl<T: Element> Case<T> {
    fn weights(&self) -> Weights<'_, T> {
        let mut weights = Weights::new(self.input.view(), self.recurrent.view());
        weights.bias = self.bias.as_ref().map(Strided::view);
        weights.recurrent_bias = self.recurrent_bias.as_ref().map(Strided::view);
        weights.peephole = self.peephole.as_ref().map(Strided::view);
        weights.projection = self.projection.as_ref().map(Strided::view);
        weights
    }

    fn sequence(&self) -> Sequence<'_, T> {
        let mut sequence = Sequence::new(self.x.view());
        sequence.hidden = self.hidden.as_ref().map(Strided::view);
        sequence.cell = self.cell_state.as_ref().map(Strided::view);
        sequence.lengths = self.lengths.as_deref();
        sequence
    }

    fn twin(&self, direction: usize) -> (reference::Layer<'_, T>, reference::Sequence<'_, T>) {
        let (weights, sequence) = (self.weights(), self.sequence());
        let reverse = self.direction == Direction::Reverse || direction == 1;
        let layer = reference::Layer {
            cell: self.twin,
            functions: self.functions.map(|both| both[usize::from(reverse)]),
            reverse,
            input: weights.input.select(0, direction).unwrap(),
            recurrent: weights.recurrent.select(0, direction).unwrap(),
            bias: weights.bias.map(|view| view.select(0, direction).unwrap()),
            recurrent_bias: weights.recurrent_bias.map(|view| view.select(0, direction).unwrap()),
            peephole: weights.peephole.map(|view| view.select(0, direction).unwrap()),
            projection: weights.projection.map(|view| view.select(0, direction).unwrap()),
        };
        let sequence = reference::Sequence {
            x: sequence.x,
            hidden: sequence.hidden.map(|view| view.select(0, direction).unwrap()),
            cell: sequence.cell.map(|view| view.select(0, direction).unwrap()),
            lengths: sequence.lengths,
        };
        (layer, sequence)
    }

    /// Each step adds the rounding of its sums, of which the longest has this many terms, and hands on what it was given:
    /// the weights' rows are of length one at most.
    fn bound(&self) -> f64 {
        let ([time, ..], [_, rows, inputs]) = (self.x.shape, self.input.shape);
        let terms = inputs + rows + self.recurrent.shape[2] + 16;
        8.0 * T::EPSILON.to_f64() * terms as f64 * (time as f64 + 1.0)
    }
}

fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    bound: f64,
    expected: impl Fn([usize; N]) -> f64,
) {
    let shape = found.shape();
    Tensor::from_fn(shape, |index| {
        let (found, expected) = (found.get(index).expect("inside").to_f64(), expected(index));
        let bound = bound * expected.abs().max(1.0);
        assert!(
            (found - expected).abs() <= bound,
            "{what} {index:?} of {shape:?}: {found}, not {expected} ± {bound}"
        );
    })
    .expect("memory");
}

fn at<const N: usize>(tensor: &Tensor<f64, N>, index: [usize; N]) -> f64 {
    *tensor.get(index).expect("inside")
}

fn forward<T: Element>(case: Case<T>) -> bool {
    machine::with_isa(case.isa, || with!(case.cell, cell => run_forward(cell, case.clone())))
        .expect("supported")
}

fn run_forward<T: Element>(cell: impl Recurrent, mut case: Case<T>) -> bool {
    let twins: Vec<reference::Output> = (0..case.direction.count())
        .map(|direction| {
            let (layer, sequence) = case.twin(direction);
            reference::forward(&layer, &sequence).unwrap()
        })
        .collect();
    let (bound, state) = (case.bound(), case.recurrent.shape[2]);
    let y_at = |[t, b, j]: [usize; 3]| at(&twins[j / state.max(1)].y, [t, b, j % state.max(1)]);
    let check = |what: &str, out: &Output<T>| {
        near(&format!("{what} y"), out.y.view(), bound, y_at);
        near(&format!("{what} h"), out.hidden.view(), bound, |[d, b, j]| at(&twins[d].hidden, [b, j]));
        if let Some(c) = &out.cell {
            near(&format!("{what} c"), c.view(), bound, |[d, b, j]| at(&twins[d].cell, [b, j]));
        }
    };
    let out = cell.forward(case.sequence(), case.weights()).unwrap();
    check("owned", &out);
    let packed = cell.pack(case.weights()).unwrap();
    check("packed", &cell.forward(case.sequence(), &packed).unwrap());
    let mut tape = Tape::new();
    let taped = cell.forward_taped(case.sequence(), case.weights(), &mut tape).unwrap();
    assert_eq!((&taped.y, &taped.hidden), (&out.y, &out.hidden), "a tape changes nothing");

    // Into views that hold other things, and of any strides.
    case.y.view_mut().fill(T::NAN);
    case.last_hidden.view_mut().fill(T::NAN);
    case.last_cell.view_mut().fill(T::NAN);
    let copy = case.clone();
    let weights = if case.packed { Operand::Packed(&packed) } else { Operand::View(copy.weights()) };
    let output = OutputMut {
        y: case.y.view_mut(),
        hidden: Some(case.last_hidden.view_mut()),
        cell: out.cell.is_some().then(|| case.last_cell.view_mut()),
    };
    cell.forward_into(copy.sequence(), weights, output).unwrap();
    assert_eq!(case.y.view(), out.y.view());
    assert_eq!(case.last_hidden.view(), out.hidden.view());
    if let Some(c) = &out.cell {
        assert_eq!(case.last_cell.view(), c.view());
    }
    case.y.canaries_live() && case.last_hidden.canaries_live() && case.last_cell.canaries_live()
}

#[test]
fn forward_equals_the_reference_in_f32() {
    quickcheck(300, forward::<f32> as fn(Case<f32>) -> bool);
}

#[test]
fn forward_equals_the_reference_in_f64() {
    quickcheck(300, forward::<f64> as fn(Case<f64>) -> bool);
}

/// `found` = expected + beta · held.
fn with_beta<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    held: TensorView<'_, T, N>,
    beta: T,
    bound: f64,
    expected: impl Fn([usize; N]) -> f64,
) {
    near(what, found, bound, |index| {
        expected(index) + beta.to_f64() * held.get(index).expect("inside").to_f64()
    });
}

fn backward<T: Element>(case: Case<T>) -> bool {
    machine::with_isa(case.isa, || with!(case.cell, cell => run_backward(cell, case.clone())))
        .expect("supported")
}

fn run_backward<T: Element>(cell: impl Recurrent, case: Case<T>) -> bool {
    let (directions, state) = (case.direction.count(), case.recurrent.shape[2]);
    let lstm = matches!(case.cell, Any::Lstm(_));
    let zero = Tensor::<T, 2>::zeros([case.x.shape[1], case.last_cell.shape[2]]).unwrap();
    let twins: Vec<reference::Gradients> = (0..directions)
        .map(|direction| {
            let (layer, sequence) = case.twin(direction);
            let dy = case.dy.view().slice(2, direction * state..(direction + 1) * state, 1).unwrap();
            let dh = case.d_hidden.view().select(0, direction).unwrap();
            let dc = if lstm { case.d_cell.view().select(0, direction).unwrap() } else { zero.view() };
            reference::backward(&layer, &sequence, dy, dh, dc).unwrap()
        })
        .collect();
    // Sums over all steps and entries, of terms that have been handed on as often.
    let bound = 8.0 * case.bound() * (case.x.shape[0] * case.x.shape[1] + 1) as f64;
    let mut tape = Tape::new();
    cell.forward_taped(case.sequence(), case.weights(), &mut tape).unwrap();
    let outputs = OutputGradients {
        y: Some(case.dy.view()),
        hidden: Some(case.d_hidden.view()),
        cell: lstm.then(|| case.d_cell.view()),
    };
    let x_at = |index| twins.iter().map(|twin| at(&twin.x, index)).sum::<f64>();
    let found = cell.backward(case.sequence(), case.weights(), &tape, outputs).unwrap();
    let none = Tensor::<T, 3>::zeros(found.x.shape()).unwrap();
    with_beta("dx", found.x.view(), none.view(), T::ZERO, bound, x_at);
    let check = |found: &Gradients<T>, held: &Gradients<T>, beta: T| {
        with_beta("dx", found.x.view(), held.x.view(), beta, bound, x_at);
        let h = |[d, b, j]: [usize; 3]| at(&twins[d].hidden, [b, j]);
        with_beta("dh", found.hidden.view(), held.hidden.view(), beta, bound, h);
        if let (Some(found), Some(held)) = (&found.cell, &held.cell) {
            let c = |[d, b, j]: [usize; 3]| at(&twins[d].cell, [b, j]);
            with_beta("dc", found.view(), held.view(), beta, bound, c);
        }
        let (found, held) = (&found.weights, &held.weights);
        let u = |[d, i, j]: [usize; 3]| at(&twins[d].input, [i, j]);
        with_beta("dU", found.input.view(), held.input.view(), beta, bound, u);
        let w = |[d, i, j]: [usize; 3]| at(&twins[d].recurrent, [i, j]);
        with_beta("dW", found.recurrent.view(), held.recurrent.view(), beta, bound, w);
        let vectors: [(&str, _, _, fn(&reference::Gradients) -> &Tensor<f64, 1>); 3] = [
            ("db", &found.bias, &held.bias, |twin| &twin.bias),
            ("db of W", &found.recurrent_bias, &held.recurrent_bias, |twin| &twin.recurrent_bias),
            ("dp", &found.peephole, &held.peephole, |twin| &twin.peephole),
        ];
        for (what, found, held, of) in vectors {
            if let (Some(found), Some(held)) = (found, held) {
                with_beta(what, found.view(), held.view(), beta, bound, |[d, i]| at(of(&twins[d]), [i]));
            }
        }
        if let (Some(found), Some(held)) = (&found.projection, &held.projection) {
            let p = |[d, i, j]: [usize; 3]| at(&twins[d].projection, [i, j]);
            with_beta("dP", found.view(), held.view(), beta, bound, p);
        }
    };
    // Again, onto what is there: found, and then beta times it.
    let mut twice = cell.backward(case.sequence(), case.weights(), &tape, outputs).unwrap();
    cell.backward_into(case.sequence(), case.weights(), &tape, outputs, case.beta, twice.view_mut()).unwrap();
    check(&twice, &found, case.beta);

    // Into a view of any strides, alone.
    let mut dx = case.x.clone();
    dx.view_mut().fill(T::NAN);
    let gradients = GradientsMut { x: Some(dx.view_mut()), ..GradientsMut::default() };
    cell.backward_into(case.sequence(), case.weights(), &tape, outputs, T::ZERO, gradients).unwrap();
    near("strided dx", dx.view(), bound, x_at);
    let mut du = case.input.clone();
    du.view_mut().fill(T::NAN);
    let weights = WeightGradientsMut { input: Some(du.view_mut()), ..WeightGradientsMut::default() };
    let gradients = GradientsMut { weights, ..GradientsMut::default() };
    cell.backward_into(case.sequence(), case.weights(), &tape, outputs, T::ZERO, gradients).unwrap();
    near("strided dU", du.view(), bound, |[d, i, j]| at(&twins[d].input, [i, j]));
    dx.canaries_live() && du.canaries_live()
}

#[test]
fn backward_equals_the_reference_in_f32() {
    quickcheck(200, backward::<f32> as fn(Case<f32>) -> bool);
}

#[test]
fn backward_equals_the_reference_in_f64() {
    quickcheck(200, backward::<f64> as fn(Case<f64>) -> bool);
}

//! Recurrent calls of any sizes, lengths, strides and options, forward and back, against `tilewise::reference`; calls that
//! must be refused.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tilewise::machine;
use tilewise::reference::rnn as reference;
use tilewise::rnn::{
    Direction, Elman, Gru, Lstm, Nonlinearity, OutputGradients, OutputMut, Recurrent, Reset, Sequence, Tape,
    Weights,
};
use tilewise::{Tensor, TensorView, TensorViewMut};

#[derive(Arbitrary, Debug)]
struct Case {
    isa: u8,
    cell: Kind,
    direction: u8,
    recompute: bool,
    time: u8,
    batch: u8,
    inputs: u8,
    hidden: u8,
    project: Option<u8>,
    lengths: Option<Vec<u8>>,
    states: bool,
    biases: [bool; 2],
    peephole: bool,
    packed: bool,
    memory: Memory,
    /// A size that does not fit, put in place of one that does.
    wrong: Option<(u8, u8)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Elman { relu: bool },
    Lstm { clip: Option<u8>, coupled: bool },
    Gru { after: bool },
}

/// How x, y and the weights lie.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Memory {
    order: u8,
    gap: u8,
    flip: u8,
    seed: u64,
}

/// A buffer with a view of rank `N` of some axis order, gaps and directions.
struct Strided<const N: usize> {
    data: Vec<f64>,
    offset: usize,
    shape: [usize; N],
    strides: [isize; N],
}

/// What stands where no view reaches.
const CANARY: f64 = -3.5e200;

impl<const N: usize> Strided<N> {
    fn new(memory: &mut Memory, shape: [usize; N], most: f64) -> Self {
        let mut order: [usize; N] = std::array::from_fn(|axis| axis);
        order.rotate_left(usize::from(memory.order) % N);
        if memory.order & 64 != 0 {
            order.reverse();
        }
        let (mut strides, mut next, mut offset) = ([0; N], 1 + usize::from(memory.gap & 1), 0);
        for &axis in order.iter().rev() {
            let size = shape[axis].max(1);
            strides[axis] = next as isize;
            if memory.flip >> axis & 1 != 0 {
                offset += (size - 1) * next;
                strides[axis] = -strides[axis];
            }
            next = next * size + usize::from(memory.gap >> 1 & 3);
        }
        let mut strided = Self { data: vec![CANARY; offset + next], offset, shape, strides };
        strided.view_mut().fill(0.0);
        for element in strided.data.iter_mut().filter(|element| **element == 0.0) {
            memory.seed =
                memory.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *element = ((memory.seed >> 40) as f64 / (1 << 23) as f64 - 1.0) * most;
        }
        strided
    }

    fn view(&self) -> TensorView<'_, f64, N> {
        TensorView::as_strided_at(&self.data, self.offset, self.shape, self.strides).expect("inside")
    }

    fn view_mut(&mut self) -> TensorViewMut<'_, f64, N> {
        TensorViewMut::as_strided_at(&mut self.data, self.offset, self.shape, self.strides).expect("disjoint")
    }

    fn canaries(&mut self) -> usize {
        self.view_mut().fill(0.0);
        self.data.iter().filter(|&&element| element == CANARY).count()
    }
}

fn near<const N: usize>(what: &str, found: TensorView<'_, f64, N>, expected: impl Fn([usize; N]) -> f64) {
    Tensor::from_fn(found.shape(), |index| {
        let (found, expected) = (*found.get(index).expect("inside"), expected(index));
        assert!(
            (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
            "{what} {index:?}: {found} {expected}"
        );
    })
    .expect("memory");
}

fn at<const N: usize>(tensor: &Tensor<f64, N>, index: [usize; N]) -> f64 {
    *tensor.get(index).expect("inside")
}

fuzz_target!(|case: Case| {
    let isas = machine::supported();
    let isa = isas[usize::from(case.isa) % isas.len()];
    let direction =
        [Direction::Forward, Direction::Reverse, Direction::Bidirectional][usize::from(case.direction) % 3];
    machine::with_isa(isa, || match case.cell {
        Kind::Elman { relu } => {
            let nonlinearity = if relu { Nonlinearity::Relu } else { Nonlinearity::Tanh };
            let cell = Elman::new().nonlinearity(nonlinearity).direction(direction);
            run(cell, reference::Cell::Elman { relu }, direction, &case);
        }
        Kind::Lstm { clip, coupled } => {
            let clip = clip.map(|clip| f64::from(clip) / 100.0);
            let cell = Lstm::new().direction(direction).recompute(case.recompute).coupled(coupled);
            let cell = clip.map_or(cell, |clip| cell.clip(clip));
            run(cell, reference::Cell::Lstm { clip, coupled }, direction, &case);
        }
        Kind::Gru { after } => {
            let reset = if after { Reset::After } else { Reset::Before };
            let cell = Gru::new().reset(reset).direction(direction).recompute(case.recompute);
            run(cell, reference::Cell::Gru { reset_after: after }, direction, &case);
        }
    })
    .expect("supported");
});

fn run(cell: impl Recurrent, twin: reference::Cell, direction: Direction, case: &Case) {
    let (time, batch) = (usize::from(case.time % 5), usize::from(case.batch % 36));
    let (inputs, hidden) = (usize::from(case.inputs % 20), usize::from(case.hidden % 36));
    let (d, rows, lstm) = (direction.count(), cell.gates() * hidden, cell.gates() == 4);
    let project = case.project.filter(|_| lstm).map(|state| 1 + usize::from(state % 20));
    let state = project.unwrap_or(hidden);
    // What is wrong, and by how much.
    let off = |which: u8, size: usize| match case.wrong {
        Some((wrong, by)) if wrong % 8 == which => size + 1 + usize::from(by % 3),
        _ => size,
    };
    let mut memory = case.memory;
    let m = &mut memory;
    let scale = |k: usize| 1.0 / (k.max(1) as f64).sqrt();
    let x = Strided::new(m, [time, batch, off(0, inputs)], 1.0);
    let u = Strided::new(m, [d, rows, inputs], scale(inputs));
    let w = Strided::new(m, [off(1, d), rows, state], scale(state));
    let (h, c) =
        (Strided::new(m, [d, off(2, batch), state], 1.0), Strided::new(m, [d, batch, off(3, hidden)], 1.0));
    let (b, rb) = (Strided::new(m, [d, off(4, rows)], 0.5), Strided::new(m, [d, rows], 0.5));
    let p = Strided::new(m, [d, off(5, 3 * hidden)], 0.5);
    let projection = Strided::new(m, [d, state, off(6, hidden)], scale(hidden));
    let lengths: Option<Vec<usize>> = case.lengths.as_ref().map(|lengths| {
        let length =
            |entry: usize| lengths.get(entry).map_or(time, |&length| usize::from(length) % (time + 1));
        (0..batch).map(|entry| off(7, 0) + length(entry)).collect()
    });
    let mut weights = Weights::new(u.view(), w.view());
    weights.bias = case.biases[0].then(|| b.view());
    weights.recurrent_bias = case.biases[1].then(|| rb.view());
    weights.peephole = (lstm && case.peephole).then(|| p.view());
    weights.projection = project.map(|_| projection.view());
    let mut sequence = Sequence::new(x.view());
    sequence.hidden = case.states.then(|| h.view());
    sequence.cell = (case.states && lstm).then(|| c.view());
    sequence.lengths = lengths.as_deref();

    let fits = [
        inputs == x.shape[2],
        d == w.shape[0],
        !case.states || batch == h.shape[1],
        !case.states || !lstm || hidden == c.shape[2],
        !case.biases[0] || rows == b.shape[1],
        !(lstm && case.peephole) || 3 * hidden == p.shape[1],
        project.is_none() || hidden == projection.shape[2],
        lengths.as_ref().is_none_or(|lengths| lengths.iter().all(|&length| length <= time)),
    ]
    .iter()
    .all(|&fits| fits);
    let mut tape = Tape::new();
    let out = cell.forward_taped(sequence, weights, &mut tape);
    assert_eq!(out.is_ok(), fits, "{out:?}");
    let Ok(out) = out else { return };

    let reverse = direction == Direction::Reverse;
    let one = |direction: usize| {
        let layer = reference::Layer {
            cell: twin,
            functions: None,
            reverse: reverse || direction == 1,
            input: weights.input.select(0, direction).expect("it exists"),
            recurrent: weights.recurrent.select(0, direction).expect("it exists"),
            bias: weights.bias.map(|view| view.select(0, direction).expect("it exists")),
            recurrent_bias: weights.recurrent_bias.map(|view| view.select(0, direction).expect("it exists")),
            peephole: weights.peephole.map(|view| view.select(0, direction).expect("it exists")),
            projection: weights.projection.map(|view| view.select(0, direction).expect("it exists")),
        };
        let sequence = reference::Sequence {
            x: sequence.x,
            hidden: sequence.hidden.map(|view| view.select(0, direction).expect("it exists")),
            cell: sequence.cell.map(|view| view.select(0, direction).expect("it exists")),
            lengths: sequence.lengths,
        };
        (layer, sequence)
    };
    let twins: Vec<_> = (0..d)
        .map(|direction| {
            let (layer, sequence) = one(direction);
            reference::forward(&layer, &sequence).expect("it fits")
        })
        .collect();
    let y_at = |[t, b, j]: [usize; 3]| at(&twins[j / state.max(1)].y, [t, b, j % state.max(1)]);
    near("y", out.y.view(), y_at);
    near("h", out.hidden.view(), |[d, b, j]| at(&twins[d].hidden, [b, j]));
    if let Some(c) = &out.cell {
        near("c", c.view(), |[d, b, j]| at(&twins[d].cell, [b, j]));
    }
    let mut y = Strided::new(m, [time, batch, d * state], 1.0);
    y.view_mut().fill(f64::NAN);
    let canaries = y.data.iter().filter(|&&element| element == CANARY).count();
    match case.packed {
        true => {
            let packed = cell.pack(weights).expect("they fit");
            cell.forward_into(sequence, &packed, OutputMut::new(y.view_mut())).expect("it fits");
        }
        false => cell.forward_into(sequence, weights, OutputMut::new(y.view_mut())).expect("it fits"),
    }
    near("y in place", y.view(), y_at);
    assert_eq!(y.canaries(), canaries);

    let dy = Strided::new(m, [time, batch, d * state], 1.0);
    let (dh, dc) = (Strided::new(m, [d, batch, state], 1.0), Strided::new(m, [d, batch, hidden], 1.0));
    let outputs =
        OutputGradients { y: Some(dy.view()), hidden: Some(dh.view()), cell: lstm.then(|| dc.view()) };
    let found = cell.backward(sequence, weights, &tape, outputs).expect("it fits");
    let none = Tensor::zeros([batch, hidden]).expect("memory");
    let twins: Vec<_> = (0..d)
        .map(|direction| {
            let (layer, sequence) = one(direction);
            let dy = dy.view().slice(2, direction * state..(direction + 1) * state, 1).expect("inside");
            let dh = dh.view().select(0, direction).expect("it exists");
            let dc = if lstm { dc.view().select(0, direction).expect("it exists") } else { none.view() };
            reference::backward(&layer, &sequence, dy, dh, dc).expect("it fits")
        })
        .collect();
    near("dx", found.x.view(), |index| twins.iter().map(|twin| at(&twin.x, index)).sum());
    near("dh", found.hidden.view(), |[d, b, j]| at(&twins[d].hidden, [b, j]));
    near("dU", found.weights.input.view(), |[d, i, j]| at(&twins[d].input, [i, j]));
    near("dW", found.weights.recurrent.view(), |[d, i, j]| at(&twins[d].recurrent, [i, j]));
    if let Some(db) = &found.weights.recurrent_bias {
        near("db", db.view(), |[d, i]| at(&twins[d].recurrent_bias, [i]));
    }
}

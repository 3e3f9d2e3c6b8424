//! Recurrent cells step by step and entry by entry, forward and back through time, in `f64`.
//!
//! One direction of one layer; both directions are two of these. The formulas are those of [`crate::rnn`].

use super::{activation, at, expect};
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView};

/// Which cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// h = tanh(z), or max(z, 0).
    Elman {
        /// The latter.
        relu: bool,
    },
    /// Gates i, f, g, o.
    Lstm {
        /// The cell state is kept within ± this.
        clip: Option<f64>,
        /// f is 1 − i.
        coupled: bool,
    },
    /// Gates r, z, n.
    Gru {
        /// r multiplies W h + b, not h.
        reset_after: bool,
    },
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Elman { .. } => 1,
            Cell::Lstm { .. } => 4,
            Cell::Gru { .. } => 3,
        }
    }
}

/// Activations other than σ, tanh and tanh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Functions {
    /// Of the gates i, f, o, r and z; of g, n and the state of an Elman cell; of c on its way to h.
    pub activations: [Activation; 3],
    /// What enters one is kept within ± this, unless it is c.
    pub clip: Option<f64>,
}

impl Functions {
    fn clip(&self, which: usize) -> Option<f64> {
        if which == 2 { None } else { self.clip }
    }

    fn value(&self, which: usize, z: f64) -> f64 {
        activation::value(self.activations[which], self.clip(which).map_or(z, |clip| z.clamp(-clip, clip)))
    }

    fn slope(&self, which: usize, z: f64) -> f64 {
        match self.clip(which) {
            Some(clip) if z.abs() >= clip => 0.0,
            _ => activation::derivative(self.activations[which], z),
        }
    }
}

/// One direction of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a, T> {
    /// Which cell.
    pub cell: Cell,
    /// The activations, where they are not the cell's usual ones.
    pub functions: Option<Functions>,
    /// From the last step to the first.
    pub reverse: bool,
    /// U, `[gates·hidden, inputs]`.
    pub input: TensorView<'a, T, 2>,
    /// W, `[gates·hidden, state]`.
    pub recurrent: TensorView<'a, T, 2>,
    /// Added to U x, `[gates·hidden]`.
    pub bias: Option<TensorView<'a, T, 1>>,
    /// Added to W h, `[gates·hidden]`.
    pub recurrent_bias: Option<TensorView<'a, T, 1>>,
    /// From the cell to the gates i, f and o, `[3·hidden]`.
    pub peephole: Option<TensorView<'a, T, 1>>,
    /// From o ⊙ tanh c to h, `[state, hidden]`.
    pub projection: Option<TensorView<'a, T, 2>>,
}

/// What goes in.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a, T> {
    /// `[time, batch, inputs]`.
    pub x: TensorView<'a, T, 3>,
    /// h before the first step, `[batch, state]`; 0 unless given.
    pub hidden: Option<TensorView<'a, T, 2>>,
    /// c before the first step, `[batch, hidden]`; 0 unless given.
    pub cell: Option<TensorView<'a, T, 2>>,
    /// Steps of each entry of the batch; all unless given.
    pub lengths: Option<&'a [usize]>,
}

/// What comes out.
#[derive(Debug)]
pub struct Output {
    /// `[time, batch, state]`; 0 behind the end of an entry.
    pub y: Tensor<f64, 3>,
    /// h after the last step, `[batch, state]`.
    pub hidden: Tensor<f64, 2>,
    /// c after the last step, `[batch, hidden]`; 0 where the cell has none.
    pub cell: Tensor<f64, 2>,
}

/// The gradients for all that goes in.
#[derive(Debug)]
#[allow(missing_docs)] // named as what they are gradients for
pub struct Gradients {
    pub x: Tensor<f64, 3>,
    pub hidden: Tensor<f64, 2>,
    pub cell: Tensor<f64, 2>,
    pub input: Tensor<f64, 2>,
    pub recurrent: Tensor<f64, 2>,
    pub bias: Tensor<f64, 1>,
    pub recurrent_bias: Tensor<f64, 1>,
    pub peephole: Tensor<f64, 1>,
    pub projection: Tensor<f64, 2>,
}

/// The twin of [`Recurrent::forward`](crate::rnn::Recurrent::forward) for one direction.
///
/// # Errors
/// [`Error::Shape`] where shapes do not fit, [`Error::Alloc`] where there is no memory.
///
/// ```
/// use tilewise::{TensorView, reference::rnn::{self, Cell, Layer, Sequence}};
/// let one = TensorView::from_slice(&[1.0], [1, 1])?;
/// let cell = Cell::Elman { relu: true };
/// let layer = Layer {
///     cell, functions: None, reverse: false, input: one, recurrent: one, bias: None, recurrent_bias: None, peephole: None,
///     projection: None,
/// };
/// let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [3, 1, 1])?;
/// let out = rnn::forward(&layer, &Sequence { x, hidden: None, cell: None, lengths: None })?;
/// assert_eq!(out.y.as_slice(), [1.0, 3.0, 6.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn forward<T: Element>(layer: &Layer<'_, T>, sequence: &Sequence<'_, T>) -> Result<Output> {
    let sizes = Sizes::of(layer, sequence)?;
    let mut out = Output {
        y: Tensor::zeros([sizes.time, sizes.batch, sizes.state])?,
        hidden: Tensor::zeros([sizes.batch, sizes.state])?,
        cell: Tensor::zeros([sizes.batch, sizes.hidden])?,
    };
    for entry in 0..sizes.batch {
        let steps = run(layer, sequence, sizes, entry);
        for step in &steps {
            (0..sizes.state).for_each(|j| *at_mut(&mut out.y, [step.time, entry, j]) = step.h[j]);
        }
        let (h, c) = steps
            .last()
            .map_or_else(|| initial(sequence, sizes, entry), |last| (last.h.clone(), last.c.clone()));
        (0..sizes.state).for_each(|j| *at_mut(&mut out.hidden, [entry, j]) = h[j]);
        (0..sizes.hidden).for_each(|j| *at_mut(&mut out.cell, [entry, j]) = c[j]);
    }
    Ok(out)
}

/// The twin of [`Recurrent::backward`](crate::rnn::Recurrent::backward) for one direction: back-propagation through
/// time of the gradients for y, for the last h and for the last c.
///
/// # Errors
/// As [`forward`].
///
/// ```
/// use tilewise::{Tensor, TensorView, reference::rnn::{self, Cell, Layer, Sequence}};
/// let one = TensorView::from_slice(&[1.0], [1, 1])?;
/// let cell = Cell::Elman { relu: true };
/// let layer = Layer {
///     cell, functions: None, reverse: false, input: one, recurrent: one, bias: None, recurrent_bias: None, peephole: None,
///     projection: None,
/// };
/// let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [3, 1, 1])?;
/// let dy = TensorView::from_slice(&[0.0, 0.0, 1.0], [3, 1, 1])?;
/// let nothing = Tensor::zeros([1, 1])?;
/// let sequence = Sequence { x, hidden: None, cell: None, lengths: None };
/// let gradients = rnn::backward(&layer, &sequence, dy, nothing.view(), nothing.view())?;
/// assert_eq!(gradients.input.as_slice(), [6.0]); // d(x₁ + x₂ + x₃)·u / du
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn backward<T: Element>(
    layer: &Layer<'_, T>,
    sequence: &Sequence<'_, T>,
    dy: TensorView<'_, T, 3>,
    d_hidden: TensorView<'_, T, 2>,
    d_cell: TensorView<'_, T, 2>,
) -> Result<Gradients> {
    let sizes = Sizes::of(layer, sequence)?;
    let Sizes { time, batch, inputs, hidden, state, gates } = sizes;
    expect(OP, "dy", &dy.shape(), &[time, batch, state])?;
    expect(OP, "d_hidden", &d_hidden.shape(), &[batch, state])?;
    expect(OP, "d_cell", &d_cell.shape(), &[batch, hidden])?;
    let mut out = Gradients {
        x: Tensor::zeros([time, batch, inputs])?,
        hidden: Tensor::zeros([batch, state])?,
        cell: Tensor::zeros([batch, hidden])?,
        input: Tensor::zeros([gates * hidden, inputs])?,
        recurrent: Tensor::zeros([gates * hidden, state])?,
        bias: Tensor::zeros([gates * hidden])?,
        recurrent_bias: Tensor::zeros([gates * hidden])?,
        peephole: Tensor::zeros([3 * hidden])?,
        projection: Tensor::zeros(layer.projection.map_or([0, 0], |p| p.shape()))?,
    };
    for entry in 0..batch {
        let mut dh: Vec<f64> = (0..state).map(|j| at(d_hidden, [entry, j])).collect();
        let mut dc: Vec<f64> = (0..hidden).map(|j| at(d_cell, [entry, j])).collect();
        for step in run(layer, sequence, sizes, entry).iter().rev() {
            (0..state).for_each(|j| dh[j] += at(dy, [step.time, entry, j]));
            let back = back(layer, sizes, step, &dh, &mut dc, &mut out);
            let Back { dx_side, dh_side, dh_direct, h_side } = back;
            for row in 0..gates * hidden {
                *at_mut(&mut out.bias, [row]) += dx_side[row];
                *at_mut(&mut out.recurrent_bias, [row]) += dh_side[row];
                for i in 0..inputs {
                    *at_mut(&mut out.input, [row, i]) += dx_side[row] * step.x[i];
                    *at_mut(&mut out.x, [step.time, entry, i]) += dx_side[row] * at(layer.input, [row, i]);
                }
                for j in 0..state {
                    *at_mut(&mut out.recurrent, [row, j]) += dh_side[row] * h_side[row / hidden][j];
                }
            }
            dh = dh_direct;
        }
        (0..state).for_each(|j| *at_mut(&mut out.hidden, [entry, j]) = dh[j]);
        (0..hidden).for_each(|j| *at_mut(&mut out.cell, [entry, j]) = dc[j]);
    }
    Ok(out)
}

const OP: &str = "reference::rnn";

#[derive(Clone, Copy)]
struct Sizes {
    time: usize,
    batch: usize,
    inputs: usize,
    hidden: usize,
    state: usize,
    gates: usize,
}

impl Sizes {
    fn of<T: Element>(layer: &Layer<'_, T>, sequence: &Sequence<'_, T>) -> Result<Self> {
        let ([time, batch, inputs], [rows, state]) = (sequence.x.shape(), layer.recurrent.shape());
        let gates = layer.cell.gates();
        let hidden = rows / gates;
        let rows = gates * hidden;
        expect(
            OP,
            "recurrent",
            &layer.recurrent.shape(),
            &[rows, layer.projection.map_or(hidden, |p| p.shape()[0])],
        )?;
        expect(OP, "input", &layer.input.shape(), &[rows, inputs])?;
        for (arg, vector, len) in [
            ("bias", layer.bias, rows),
            ("recurrent_bias", layer.recurrent_bias, rows),
            ("peephole", layer.peephole, 3 * hidden),
        ] {
            vector.map_or(Ok(()), |vector| expect(OP, arg, &vector.shape(), &[len]))?;
        }
        layer.projection.map_or(Ok(()), |p| expect(OP, "projection", &p.shape(), &[state, hidden]))?;
        sequence.hidden.map_or(Ok(()), |h| expect(OP, "hidden", &h.shape(), &[batch, state]))?;
        sequence.cell.map_or(Ok(()), |c| expect(OP, "cell", &c.shape(), &[batch, hidden]))?;
        if let Some(lengths) = sequence.lengths {
            expect(OP, "lengths", &[lengths.len()], &[batch])?;
            if let Some(&length) = lengths.iter().find(|&&length| length > time) {
                return Err(Error::argument(OP, "lengths", length, "at most the number of steps"));
            }
        }
        Ok(Self { time, batch, inputs, hidden, state, gates })
    }
}

/// All about one step of one entry of the batch.
struct Step {
    time: usize,
    x: Vec<f64>,
    h_prev: Vec<f64>,
    c_prev: Vec<f64>,
    /// What enters the activations of the gates, and what comes out, gate after gate.
    arguments: Vec<Vec<f64>>,
    gates: Vec<Vec<f64>>,
    /// GRU, reset after: W h + b of gate n.
    q: Vec<f64>,
    /// The cell before the clip, and behind it.
    c_free: Vec<f64>,
    c: Vec<f64>,
    h: Vec<f64>,
}

impl<T> Layer<'_, T> {
    fn functions(&self) -> Functions {
        let candidate =
            if self.cell == (Cell::Elman { relu: true }) { Activation::Relu } else { Activation::Tanh };
        let activations = [Activation::Sigmoid, candidate, Activation::Tanh];
        self.functions.unwrap_or(Functions { activations, clip: None })
    }
}

fn at_mut<const N: usize>(tensor: &mut Tensor<f64, N>, index: [usize; N]) -> &mut f64 {
    tensor.get_mut(index).expect("shapes have been checked")
}

fn initial<T: Element>(sequence: &Sequence<'_, T>, sizes: Sizes, entry: usize) -> (Vec<f64>, Vec<f64>) {
    let row = |view: Option<TensorView<'_, T, 2>>, len: usize| {
        (0..len).map(|j| view.map_or(0.0, |view| at(view, [entry, j]))).collect::<Vec<_>>()
    };
    (row(sequence.hidden, sizes.state), row(sequence.cell, sizes.hidden))
}

/// All steps of one entry of the batch, in the order in which they are made.
fn run<T: Element>(
    layer: &Layer<'_, T>,
    sequence: &Sequence<'_, T>,
    sizes: Sizes,
    entry: usize,
) -> Vec<Step> {
    let Sizes { time, inputs, hidden, state, .. } = sizes;
    let (mut h, mut c) = initial(sequence, sizes, entry);
    let length = sequence.lengths.map_or(time, |lengths| lengths[entry]);
    let mut steps = Vec::new();
    for step in 0..length {
        let time = if layer.reverse { length - 1 - step } else { step };
        let x: Vec<f64> = (0..inputs).map(|i| at(sequence.x, [time, entry, i])).collect();
        let bias = |bias: Option<TensorView<'_, T, 1>>, row: usize| bias.map_or(0.0, |bias| at(bias, [row]));
        let dot = |matrix, row: usize, v: &[f64]| -> f64 {
            v.iter().enumerate().map(|(j, v)| at::<T, 2>(matrix, [row, j]) * v).sum()
        };
        // U x + b and W v + b for one unit of one gate.
        let from_x = |gate: usize, j: usize| {
            dot(layer.input, gate * hidden + j, &x) + bias(layer.bias, gate * hidden + j)
        };
        let from = |v: &[f64], gate: usize, j: usize| {
            dot(layer.recurrent, gate * hidden + j, v) + bias(layer.recurrent_bias, gate * hidden + j)
        };
        let each = |f: &dyn Fn(usize) -> f64| (0..hidden).map(f).collect::<Vec<f64>>();
        let (h_prev, c_prev) = (h, c);
        let (mut q, mut c_free) = (Vec::new(), vec![0.0; hidden]);
        let functions = layer.functions();
        let values =
            |which: usize, z: &[f64]| z.iter().map(|&z| functions.value(which, z)).collect::<Vec<f64>>();
        let (arguments, gates);
        c = vec![0.0; hidden];
        match layer.cell {
            Cell::Elman { .. } => {
                let z = each(&|j| from_x(0, j) + from(&h_prev, 0, j));
                h = values(1, &z);
                (arguments, gates) = (vec![z], Vec::new());
            }
            Cell::Lstm { clip, coupled } => {
                let peep = |gate: usize, j: usize| bias(layer.peephole, gate * hidden + j);
                let z = |gate: usize, j: usize| from_x(gate, j) + from(&h_prev, gate, j);
                let z_i = each(&|j| z(0, j) + peep(0, j) * c_prev[j]);
                let z_f = each(&|j| z(1, j) + peep(1, j) * c_prev[j]);
                let z_g = each(&|j| z(2, j));
                let (i, g) = (values(0, &z_i), values(1, &z_g));
                let f = if coupled { each(&|j| 1.0 - i[j]) } else { values(0, &z_f) };
                c_free = each(&|j| f[j] * c_prev[j] + i[j] * g[j]);
                c = each(&|j| clip.map_or(c_free[j], |clip| c_free[j].clamp(-clip, clip)));
                let z_o = each(&|j| z(3, j) + peep(2, j) * c[j]);
                let o = values(0, &z_o);
                let m = each(&|j| o[j] * functions.value(2, c[j]));
                h = match layer.projection {
                    Some(projection) => (0..state).map(|row| dot(projection, row, &m)).collect(),
                    None => m,
                };
                (arguments, gates) = (vec![z_i, z_f, z_g, z_o], vec![i, f, g, o]);
            }
            Cell::Gru { reset_after } => {
                let z_r = each(&|j| from_x(0, j) + from(&h_prev, 0, j));
                let z_z = each(&|j| from_x(1, j) + from(&h_prev, 1, j));
                let (r, z) = (values(0, &z_r), values(0, &z_z));
                let z_n = if reset_after {
                    q = each(&|j| from(&h_prev, 2, j));
                    each(&|j| from_x(2, j) + r[j] * q[j])
                } else {
                    let reset = each(&|j| r[j] * h_prev[j]);
                    each(&|j| from_x(2, j) + from(&reset, 2, j))
                };
                let n = values(1, &z_n);
                h = each(&|j| (1.0 - z[j]) * n[j] + z[j] * h_prev[j]);
                (arguments, gates) = (vec![z_r, z_z, z_n], vec![r, z, n]);
            }
        }
        steps.push(Step { time, x, h_prev, c_prev, arguments, gates, q, c_free, c: c.clone(), h: h.clone() });
    }
    steps
}

/// What a step hands back.
struct Back {
    /// The gradient for U x + b, by row.
    dx_side: Vec<f64>,
    /// The gradient for W v + b, by row.
    dh_side: Vec<f64>,
    /// What W multiplies, by gate.
    h_side: Vec<Vec<f64>>,
    /// The gradient for the h before.
    dh_direct: Vec<f64>,
}

fn back<T: Element>(
    layer: &Layer<'_, T>,
    sizes: Sizes,
    step: &Step,
    dh: &[f64],
    dc: &mut [f64],
    out: &mut Gradients,
) -> Back {
    let Sizes { hidden, state, gates, .. } = sizes;
    let (h, gate, functions) = (&step.h_prev, &step.gates, layer.functions());
    // Of a gate and a unit.
    let slope = |which: usize, k: usize, j: usize| functions.slope(which, step.arguments[k][j]);
    // Σ over rows of some gates of d[row] · W[row, j].
    let through = |d: &[f64], gates: std::ops::Range<usize>, j: usize| -> f64 {
        (gates.start * hidden..gates.end * hidden).map(|row| d[row] * at(layer.recurrent, [row, j])).sum()
    };
    let mut h_side = vec![h.clone(); gates];
    match layer.cell {
        Cell::Elman { .. } => {
            let d: Vec<f64> = (0..hidden).map(|j| dh[j] * slope(1, 0, j)).collect();
            let dh_direct = (0..state).map(|j| through(&d, 0..1, j)).collect();
            Back { dx_side: d.clone(), dh_side: d, h_side, dh_direct }
        }
        Cell::Lstm { clip, coupled } => {
            let peep = |gate: usize, j: usize| layer.peephole.map_or(0.0, |p| at(p, [gate * hidden + j]));
            let mut d = vec![0.0; 4 * hidden];
            let mut dm = dh.to_vec();
            if let Some(projection) = layer.projection {
                dm = (0..hidden).map(|j| (0..state).map(|p| dh[p] * at(projection, [p, j])).sum()).collect();
                for p in 0..state {
                    for j in 0..hidden {
                        *at_mut(&mut out.projection, [p, j]) +=
                            dh[p] * gate[3][j] * functions.value(2, step.c[j]);
                    }
                }
            }
            for j in 0..hidden {
                let [i, f, g, o] = [0, 1, 2, 3].map(|k| gate[k][j]);
                let (c, c_prev, t) = (step.c[j], step.c_prev[j], functions.value(2, step.c[j]));
                let d_o = dm[j] * t * slope(0, 3, j);
                let mut dcell = dc[j] + dm[j] * o * functions.slope(2, c) + d_o * peep(2, j);
                if clip.is_some_and(|clip| step.c_free[j].abs() >= clip) {
                    dcell = 0.0;
                }
                let by_i = if coupled { g - c_prev } else { g };
                let d_i = dcell * by_i * slope(0, 0, j);
                let d_f = if coupled { 0.0 } else { dcell * c_prev * slope(0, 1, j) };
                let d_g = dcell * i * slope(1, 2, j);
                dc[j] = dcell * f + d_i * peep(0, j) + d_f * peep(1, j);
                for (k, value) in [d_i, d_f, d_g, d_o].into_iter().enumerate() {
                    d[k * hidden + j] = value;
                }
                for (k, value) in [d_i * c_prev, d_f * c_prev, d_o * c].into_iter().enumerate() {
                    *at_mut(&mut out.peephole, [k * hidden + j]) += value;
                }
            }
            let dh_direct = (0..state).map(|j| through(&d, 0..4, j)).collect();
            Back { dx_side: d.clone(), dh_side: d, h_side, dh_direct }
        }
        Cell::Gru { reset_after } => {
            let mut d = vec![0.0; 3 * hidden];
            for j in 0..hidden {
                let [_, z, n] = [0, 1, 2].map(|k| gate[k][j]);
                d[hidden + j] = dh[j] * (h[j] - n) * slope(0, 1, j);
                d[2 * hidden + j] = dh[j] * (1.0 - z) * slope(1, 2, j);
            }
            let mut dh_side = d.clone();
            let mut dh_direct: Vec<f64> = (0..hidden).map(|j| dh[j] * gate[1][j]).collect();
            if reset_after {
                for j in 0..hidden {
                    let r = gate[0][j];
                    d[j] = d[2 * hidden + j] * step.q[j] * slope(0, 0, j);
                    (dh_side[j], dh_side[2 * hidden + j]) = (d[j], d[2 * hidden + j] * r);
                }
                (0..state).for_each(|j| dh_direct[j] += through(&dh_side, 0..3, j));
            } else {
                for j in 0..hidden {
                    let (r, dreset) = (gate[0][j], through(&d, 2..3, j));
                    dh_side[j] = dreset * h[j] * slope(0, 0, j);
                    dh_direct[j] += dreset * r;
                    h_side[2][j] = r * h[j];
                }
                d[..hidden].copy_from_slice(&dh_side[..hidden]);
                (0..state).for_each(|j| dh_direct[j] += through(&d, 0..2, j));
            }
            Back { dx_side: d, dh_side, h_side, dh_direct }
        }
    }
}

//! Recurrent cells on the sizes of real networks, as a share of the multiply-adds that the machine does in registers.
//!
//! Forward runs over packed weights; forward and backward over weights as they lie, which change with each step of
//! training, and counts three times the multiplications of forward.
//!
//! `benches/peers/python/recurrent.py` runs this program beside other libraries: with `--measure CELL`, it answers each line
//! `SIZE KIND SECONDS` with the time of a call (kind 0 is forward, 1 forward and backward, 2 a step of a stream), and with
//! `--export CELL SIZE FILE` it writes what goes in and what comes out, all `f32`. `--peaks` prints what the machine does at
//! most on as many threads: GFLOP/s in registers, GB/s read and copied.

#[path = "../examples/support/measure.rs"]
mod measure;
mod support;

use std::env;
use std::error::Error;

use criterion::Criterion;
use rayon::ThreadPoolBuilder;
use support::peak::{Memory, Peak};
use support::{Bound, bench, pools, random};
use tilewise::rnn::{Elman, Gru, Lstm, OutputMut, Recurrent, StateMut, Tape, Weights};
use tilewise::{Tensor, TensorView};

/// Time, batch, inputs, hidden.
const SIZES: &[[usize; 4]] =
    &[[25, 16, 512, 512], [50, 32, 256, 256], [100, 1, 512, 512], [25, 64, 1024, 1024]];

/// Multiply-adds of a forward pass, counted as two.
fn flops(cell: impl Recurrent, [time, batch, inputs, hidden]: [usize; 4]) -> u64 {
    2 * (time * batch * cell.gates() * hidden * (inputs + hidden)) as u64
}

/// Weights as a layer has them at first: rows of length about one.
fn weights<const N: usize>(shape: [usize; N], hidden: usize) -> Tensor<f32, N> {
    let mut weights = random::<f32, N>(shape);
    let most = 1.0 / (hidden as f32).sqrt();
    weights.as_mut_slice().iter_mut().for_each(|weight| *weight *= most);
    weights
}

fn sequences(c: &mut Criterion, name: &str, cell: impl Recurrent) {
    support::measure_peaks();
    let mut group = c.benchmark_group(format!("{name} f32"));
    for &sizes in SIZES {
        let [time, batch, inputs, hidden] = sizes;
        let rows = cell.gates() * hidden;
        let (u, w) = (weights([1, rows, inputs], hidden), weights([1, rows, hidden], hidden));
        let (b, rb) = (weights([1, rows], hidden), weights([1, rows], hidden));
        let weights = Weights::new(u.view(), w.view()).bias(b.view()).recurrent_bias(rb.view());
        let packed = cell.pack(weights).expect("memory");
        let (x, dy) = (random::<f32, 3>([time, batch, inputs]), random::<f32, 3>([time, batch, hidden]));
        let mut y = Tensor::<f32, 3>::zeros([time, batch, hidden]).expect("memory");
        let mut tape = Tape::new();
        cell.forward_taped(x.view(), weights, &mut tape).expect("shapes fit");
        let mut gradients = cell.backward(x.view(), weights, &tape, dy.view()).expect("shapes fit");
        for pool in pools() {
            let work = (Bound::FlopsF32, flops(cell, sizes));
            let what = format!("{name} T {time} B {batch} I {inputs} H {hidden}");
            bench(&mut group, &pool, &format!("{what} forward"), work, || {
                cell.forward_into(x.view(), &packed, OutputMut::new(y.view_mut())).expect("shapes fit");
            });
            let work = (Bound::FlopsF32, 3 * flops(cell, sizes));
            bench(&mut group, &pool, &format!("{what} forward + backward"), work, || {
                let output = OutputMut::new(y.view_mut());
                cell.forward_taped_into(x.view(), weights, &mut tape, output).expect("shapes fit");
                let to = gradients.view_mut();
                cell.backward_into(x.view(), weights, &tape, dy.view(), 0.0, to).expect("shapes fit");
            });
        }
    }
    group.finish();
}

/// One step of a stream: bound by reading the weights.
fn steps(c: &mut Criterion, name: &str, cell: impl Recurrent) {
    support::measure_peaks();
    let mut group = c.benchmark_group(format!("{name} steps f32"));
    for hidden in [256, 512] {
        let rows = cell.gates() * hidden;
        let (u, w) = (weights([1, rows, hidden], hidden), weights([1, rows, hidden], hidden));
        let packed = cell.pack(Weights::new(u.view(), w.view())).expect("memory");
        let x = random::<f32, 2>([1, hidden]);
        let x: TensorView<f32, 2> = x.view();
        let zeros = || Tensor::<f32, 2>::zeros([1, hidden]).expect("memory");
        let (mut h, mut c) = (zeros(), zeros());
        for pool in pools() {
            let bytes = (Bound::Read, 4 * 2 * (rows * hidden) as u64);
            bench(&mut group, &pool, &format!("{name} step I H {hidden}"), bytes, || {
                let mut state = StateMut::new(h.view_mut());
                state.cell = (cell.gates() == 4).then(|| c.view_mut());
                cell.step(x, &packed, state).expect("shapes fit");
            });
        }
    }
    group.finish();
}

/// What a layer of a size reads.
struct Problem {
    u: Tensor<f32, 3>,
    w: Tensor<f32, 3>,
    b: Tensor<f32, 2>,
    rb: Tensor<f32, 2>,
    x: Tensor<f32, 3>,
    dy: Tensor<f32, 3>,
}

impl Problem {
    fn new(cell: impl Recurrent, [time, batch, inputs, hidden]: [usize; 4]) -> Self {
        let rows = cell.gates() * hidden;
        Self {
            u: weights([1, rows, inputs], hidden),
            w: weights([1, rows, hidden], hidden),
            b: weights([1, rows], hidden),
            rb: weights([1, rows], hidden),
            x: random([time, batch, inputs]),
            dy: random([time, batch, hidden]),
        }
    }

    fn weights(&self) -> Weights<'_, f32> {
        Weights::new(self.u.view(), self.w.view()).bias(self.b.view()).recurrent_bias(self.rb.view())
    }
}

fn prepare<'w>(cell: impl Recurrent, size: usize, kind: usize) -> Result<measure::Work<'w>, Box<dyn Error>> {
    let problem = Problem::new(cell, *SIZES.get(size).ok_or("no such size")?);
    let packed = cell.pack(problem.weights())?;
    let mut y = Tensor::<f32, 3>::zeros(problem.dy.shape())?;
    let [_, batch, hidden] = problem.dy.shape();
    match kind {
        0 => Ok(Box::new(move || {
            Ok(cell.forward_into(problem.x.view(), &packed, OutputMut::new(y.view_mut()))?)
        })),
        1 => {
            let mut tape = Tape::new();
            cell.forward_taped(problem.x.view(), problem.weights(), &mut tape)?;
            let mut gradients =
                cell.backward(problem.x.view(), problem.weights(), &tape, problem.dy.view())?;
            Ok(Box::new(move || {
                let (x, weights) = (problem.x.view(), problem.weights());
                cell.forward_taped_into(x, weights, &mut tape, OutputMut::new(y.view_mut()))?;
                let to = gradients.view_mut();
                Ok(cell.backward_into(x, weights, &tape, problem.dy.view(), 0.0, to)?)
            }))
        }
        2 => {
            let mut h = Tensor::<f32, 2>::zeros([batch, hidden])?;
            let mut c = Tensor::<f32, 2>::zeros([batch, hidden])?;
            Ok(Box::new(move || {
                let mut state = StateMut::new(h.view_mut());
                state.cell = (cell.gates() == 4).then(|| c.view_mut());
                Ok(cell.step(problem.x.view().select(0, 0)?, &packed, state)?)
            }))
        }
        _ => Err("no such kind".into()),
    }
}

fn export(cell: impl Recurrent, size: usize, file: &str) -> Result<(), Box<dyn Error>> {
    let problem = Problem::new(cell, *SIZES.get(size).ok_or("no such size")?);
    let (x, weights, mut tape) = (problem.x.view(), problem.weights(), Tape::new());
    let out = cell.forward_taped(x, weights, &mut tape)?;
    let gradients = cell.backward(x, weights, &tape, problem.dy.view())?;
    let Problem { u, w, b, rb, x, dy } = &problem;
    let to = &gradients.weights;
    let numbers = [
        u.as_slice(),
        w.as_slice(),
        b.as_slice(),
        rb.as_slice(),
        x.as_slice(),
        dy.as_slice(),
        out.y.as_slice(),
        gradients.x.as_slice(),
        to.input.as_slice(),
        to.recurrent.as_slice(),
    ];
    let bytes: Vec<u8> = numbers.iter().flat_map(|part| part.iter()).flat_map(|x| x.to_le_bytes()).collect();
    Ok(std::fs::write(file, bytes)?)
}

/// `body` with the cell of that name.
macro_rules! with_cell {
    ($name:expr, |$cell:ident| $body:expr) => {
        match $name {
            "elman" => Ok({
                let $cell = Elman::new();
                $body
            }),
            "lstm" => Ok({
                let $cell = Lstm::new();
                $body
            }),
            "gru" => Ok({
                let $cell = Gru::new();
                $body
            }),
            name => Err(format!("there is no cell {name}")),
        }
    };
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--measure", name] => {
            let pool = ThreadPoolBuilder::new().build()?;
            pool.install(|| {
                let serve =
                    || with_cell!(name, |cell| measure::serve(|size, kind| prepare(cell, size, kind)));
                serve().map_err(|e| e.to_string()).and_then(|done| done.map_err(|e| e.to_string()))
            })?;
        }
        ["--export", name, size, file] => with_cell!(name, |cell| export(cell, size.parse()?, file))??,
        ["--peaks"] => {
            let (isa, threads) = (tilewise::machine::isa()?.to_string(), rayon::current_num_threads());
            let peak = Peak::measure(&isa, threads, &mut Memory::new());
            println!("{} {} {}", peak.flops_f32, peak.read, peak.copy);
        }
        _ => {
            let mut criterion = support::criterion();
            sequences(&mut criterion, "Elman", Elman::new());
            sequences(&mut criterion, "LSTM", Lstm::new());
            sequences(&mut criterion, "GRU", Gru::new());
            steps(&mut criterion, "Elman", Elman::new());
            steps(&mut criterion, "LSTM", Lstm::new());
            steps(&mut criterion, "GRU", Gru::new());
            criterion.final_summary();
            support::table();
        }
    }
    Ok(())
}

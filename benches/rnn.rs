//! Recurrent cells on the sizes of real networks, as a share of the multiply-adds that the machine does in registers.
//!
//! Forward runs over packed weights; forward and backward over weights as they lie, which change with each step of
//! training, and counts three times the multiplications of forward.

mod support;

use criterion::Criterion;
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
            let bytes = (Bound::Bytes, 4 * 2 * (rows * hidden) as u64);
            bench(&mut group, &pool, &format!("{name} step I H {hidden}"), bytes, || {
                let mut state = StateMut::new(h.view_mut());
                state.cell = (cell.gates() == 4).then(|| c.view_mut());
                cell.step(x, &packed, state).expect("shapes fit");
            });
        }
    }
    group.finish();
}

fn main() {
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

//! Recurrent cells.

use tilewise::Element;
use tilewise::activation::Activation;
use tilewise::rnn::{
    Direction, Elman, Gru, Lstm, Operand, OutputMut, Recurrent, Reset, Sequence, StateMut, Tape, Weights,
};

use super::{Measure, matrix};

/// Forward, back and step by step.
pub fn calls<T: Element>(call: &mut Measure) {
    fn each<T: Element>(
        name: &str,
        cell: impl Recurrent,
        directions: usize,
        lengths: Option<&[usize]>,
        call: &mut Measure,
    ) {
        let (time, batch, inputs, hidden) = (4, 34, 21, 40);
        let tensor = |[a, b, c]: [usize; 3]| matrix::<T>([a, b * c]).reshape([a, b, c]).unwrap();
        let rows = cell.gates() * hidden;
        let (u, w) = (tensor([directions, rows, inputs]), tensor([directions, rows, hidden]));
        let (x, mut y) = (tensor([time, batch, inputs]), tensor([time, batch, directions * hidden]));
        let weights = Weights::new(u.view(), w.view());
        let sequence = Sequence { lengths, ..Sequence::new(x.view()) };
        let (packed, mut tape) = (cell.pack(weights).unwrap(), Tape::new());
        call(&format!("{name}, packed"), &mut || {
            cell.forward_into(sequence, &packed, OutputMut::new(y.view_mut())).unwrap();
        });
        call(name, &mut || {
            cell.forward_taped_into(sequence, weights, &mut tape, OutputMut::new(y.view_mut())).unwrap();
        });
        // Those without lengths read forward.
        if lengths.is_none() {
            let (x, mut h, mut c) =
                (matrix::<T>([batch, inputs]), matrix::<T>([batch, hidden]), matrix::<T>([batch, hidden]));
            for (name, weights) in
                [("step", Operand::from(weights)), ("step, packed", Operand::from(&packed))]
            {
                call(name, &mut || {
                    let state = StateMut::new(h.view_mut());
                    let state = if cell.gates() == 4 { state.cell(c.view_mut()) } else { state };
                    cell.step(x.view(), weights, state).unwrap();
                });
            }
        }
        let mut gradients = cell.backward(sequence, weights, &tape, y.view()).unwrap();
        call(&format!("{name}, back"), &mut || {
            cell.backward_into(sequence, weights, &tape, y.view(), T::ONE, gradients.view_mut()).unwrap();
        });
    }
    let lengths: Vec<usize> = (0..34).map(|entry| entry % 5).collect();
    each::<T>("Elman", Elman::new(), 1, None, call);
    each::<T>("LSTM", Lstm::new().direction(Direction::Bidirectional), 2, Some(&lengths), call);
    each::<T>("LSTM", Lstm::new().clip(0.5), 1, None, call);
    let chosen = Elman::new().activation(Activation::Softsign).activation_clip(0.75);
    each::<T>("Elman of another activation", chosen, 1, None, call);
    each::<T>("GRU", Gru::new().reset(Reset::Before).recompute(true), 1, None, call);
    each::<T>("GRU", Gru::new().direction(Direction::Reverse), 1, Some(&lengths), call);
}

//! Recurrent layers and embeddings: gradients, states, streams, dropout, and input that is refused.

use tilewise::layer::{
    Embedding, Gru, Init, Layer, Lstm, Parameters, Recurrent as Stack, RecurrentSizes, Rnn,
};
use tilewise::random::Rng;
use tilewise::rnn::{self, Direction, Recurrent};
use tilewise::{Tensor, TensorView};

fn random<const N: usize>(shape: [usize; N], seed: u64) -> Tensor<f64, N> {
    let mut rng = Rng::seed(seed);
    Tensor::from_fn(shape, |_| rng.uniform(-1.0, 1.0)).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn stacked<C: Recurrent>(cell: C, directions: usize) -> Stack<C, f64> {
    let sizes = RecurrentSizes { inputs: 2, hidden: 3, layers: 2, directions };
    Stack::stacked(cell, sizes, &mut Rng::seed(3)).unwrap()
}

fn gradients_are_differences<C: Recurrent>(mut layers: Stack<C, f64>) {
    let mut x = random([4, 3, 2], 1);
    let lengths = [4, 1, 3];
    let (y, _) = layers.forward_from(x.view(), None, Some(&lengths)).unwrap();
    let r = random(y.shape(), 2);
    layers.zero_gradients();
    let dx = layers.backward(r.view()).unwrap();
    let h = 1e-6;
    let loss = |layers: &Stack<C, f64>, x: &Tensor<f64, 3>| {
        dot(layers.infer_from(x.view(), None, Some(&lengths)).unwrap().0.as_slice(), r.as_slice())
    };
    for i in 0..x.len() {
        let value = x.as_slice()[i];
        let [high, low] = [h, -h].map(|h| {
            x.as_mut_slice()[i] = value + h;
            loss(&layers, &x)
        });
        x.as_mut_slice()[i] = value;
        let expected = (high - low) / (2.0 * h);
        assert!((dx.as_slice()[i] - expected).abs() < 1e-7, "x {i}: {} {expected}", dx.as_slice()[i]);
    }
    // Each parameter's first and last number.
    let mut found = Vec::new();
    layers.visit(&mut |name, parameter| {
        for i in [0, parameter.len() - 1] {
            found.push((name.to_owned(), i, parameter.gradient()[i]));
        }
    });
    assert_eq!(found.len(), 2 * 2 * 4);
    for (name, i, found) in found {
        let mut shifted = |by: f64| {
            layers.visit_mut(&mut |other, parameter| {
                if other == name {
                    parameter.value_mut()[i] += by;
                }
            });
            loss(&layers, &x)
        };
        let (high, low) = (shifted(h), shifted(-2.0 * h));
        shifted(h);
        let expected = (high - low) / (2.0 * h);
        assert!((found - expected).abs() < 1e-7, "{name} {i}: {found} {expected}");
    }
}

#[test]
fn gradients_are_central_differences() {
    gradients_are_differences(stacked(rnn::Elman::new(), 1));
    gradients_are_differences(stacked(rnn::Lstm::new().direction(Direction::Bidirectional), 2));
    gradients_are_differences(stacked(rnn::Gru::new().recompute(true), 1));
}

#[test]
fn gradients_are_added_up_and_backward_may_be_called_again() {
    let mut layers = stacked(rnn::Lstm::new(), 1);
    let x = random([3, 2, 2], 1);
    let y = layers.forward(x.view()).unwrap();
    let once = layers.backward(y.view()).unwrap();
    let mut first = Vec::new();
    layers.visit(&mut |_, parameter| first.extend_from_slice(parameter.gradient()));
    assert_eq!(layers.backward(y.view()).unwrap(), once);
    let mut twice = Vec::new();
    layers.visit(&mut |_, parameter| twice.extend_from_slice(parameter.gradient()));
    assert!(first.iter().zip(&twice).all(|(once, twice)| (2.0 * once - twice).abs() < 1e-12));
}

#[test]
fn pieces_and_steps_give_the_whole() {
    let layers = stacked(rnn::Lstm::new(), 1);
    let x = random([6, 2, 2], 1);
    let (whole, end) = layers.infer_from(x.view(), None, None).unwrap();
    let (first, second) = x.view().split_at(0, 2).unwrap();
    let (_, state) = layers.infer_from(first, None, None).unwrap();
    let (rest, last) = layers.infer_from(second, Some(&state), None).unwrap();
    assert_eq!(rest.as_slice(), &whole.as_slice()[2 * 2 * 3..]);
    assert_eq!(last.cell[1], end.cell[1]);

    let packed = layers.pack().unwrap();
    let mut state = layers.zero_state(2).unwrap();
    for t in 0..6 {
        let y = layers.step(&packed, x.view().select(0, t).unwrap(), &mut state).unwrap();
        let expected: TensorView<f64, 2> = whole.view().select(0, t).unwrap();
        assert!(y.view().all_close(expected, 1e-14, 1e-14));
    }
    assert!(layers.step(&packed[..1], x.view().select(0, 0).unwrap(), &mut state).is_err());
}

#[test]
fn a_refused_call_leaves_what_was_kept() {
    let mut layers = stacked(rnn::Lstm::new(), 1);
    let x = random([3, 2, 2], 1);
    let y = layers.forward(x.view()).unwrap();
    let expected = layers.backward(y.view()).unwrap();
    let mut state = layers.zero_state(2).unwrap();
    state.hidden[1] = Tensor::zeros([1, 2, 4]).unwrap();
    assert!(layers.forward_from(x.view(), Some(&state), None).is_err());
    assert!(layers.forward_from(x.view(), None, Some(&[1, 4])).is_err());
    assert!(layers.forward(random([3, 2, 5], 1).view()).is_err());
    assert_eq!(layers.backward(y.view()).unwrap(), expected);
}

#[test]
fn gradients_for_the_last_states_reach_the_first() {
    let mut layers = stacked(rnn::Gru::new(), 1);
    let x = random([3, 2, 2], 1);
    let state = layers.zero_state(2).unwrap();
    let (y, mut last) = layers.forward_from(x.view(), Some(&state), None).unwrap();
    let nothing = Tensor::zeros(y.shape()).unwrap();
    let (dx, first) = layers.backward_from(nothing.view(), Some(&last)).unwrap();
    assert!(dx.iter().any(|&dx| dx != 0.0) && first.hidden[0].iter().any(|&dh| dh != 0.0));
    // The bottom layer alone, without the top's.
    last.hidden[1].as_mut_slice().fill(0.0);
    let (_, first) = layers.backward_from(nothing.view(), Some(&last)).unwrap();
    assert!(first.hidden[0].iter().any(|&dh| dh != 0.0) && first.hidden[1].iter().all(|&dh| dh == 0.0));
}

#[test]
fn dropout_acts_between_layers_in_training_only() {
    let mut layers = stacked(rnn::Gru::new(), 1).dropout(0.5, 9).unwrap();
    let x = random([5, 4, 2], 1);
    let clean = layers.infer(x.view()).unwrap();
    let (one, two) = (layers.forward(x.view()).unwrap(), layers.forward(x.view()).unwrap());
    assert!(one != clean && one != two);
    let dx = layers.backward(two.view()).unwrap();
    assert_eq!(dx.shape(), x.shape());
    assert_eq!(layers.infer(x.view()).unwrap(), clean);
    for bad in [-0.1, 1.0, f64::NAN] {
        assert!(stacked(rnn::Gru::new(), 1).dropout(bad, 1).is_err());
    }
}

#[test]
fn a_sequence_is_learned() {
    use tilewise::layer::optimizer::{Adam, Optimizer};
    use tilewise::loss::MeanSquared;
    // The sum of what was read so far, which no step can know alone.
    let x = random([6, 32, 1], 1);
    let mut sum = [0.0; 32];
    let t = Tensor::from_fn([6, 32, 1], |[time, entry, _]| {
        sum[entry] = if time == 0 { 0.0 } else { sum[entry] } + 0.3 * x.get([time, entry, 0]).unwrap();
        sum[entry]
    })
    .unwrap();
    let t = t.reshape([6 * 32, 1]).unwrap();
    let mut rng = Rng::seed(1);
    let mut lstm = Lstm::<f64>::new(1, 8, &mut rng).unwrap();
    let mut head = tilewise::layer::Linear::<f64>::new(8, 1, Init::xavier_uniform(), &mut rng).unwrap();
    let (mut for_lstm, mut for_head) = (Adam::new(0.02), Adam::new(0.02));
    let mut losses = Vec::new();
    for _ in 0..150 {
        lstm.zero_gradients();
        head.zero_gradients();
        let y = lstm.forward(x.view()).unwrap();
        let y = head.forward(y.view().reshape([6 * 32, 8]).unwrap()).unwrap();
        let (loss, dy) = MeanSquared::new().forward_backward(y.view(), t.view()).unwrap();
        let dy = head.backward(dy.view()).unwrap().reshape([6, 32, 8]).unwrap();
        lstm.backward(dy.view()).unwrap();
        for_lstm.step(&mut lstm).unwrap();
        for_head.step(&mut head).unwrap();
        losses.push(loss);
    }
    assert!(losses[149] < 0.02 * losses[0], "{} {}", losses[0], losses[149]);
}

#[test]
fn bad_input_is_refused() {
    let mut layers = Rnn::<f32>::new(3, 4, &mut Rng::seed(1)).unwrap();
    let x = Tensor::<f32, 3>::zeros([2, 5, 3]).unwrap();
    let text = |result: tilewise::Result<Tensor<f32, 3>>| result.unwrap_err().to_string();
    assert_eq!(
        text(layers.backward(x.view())),
        "Recurrent::backward: the input of forward is missing, expected a call of forward before"
    );
    let y = layers.forward(x.view()).unwrap();
    assert_eq!(
        text(layers.backward(x.view())),
        "Recurrent::backward: dy has shape [2, 5, 3], expected [2, 5, 4]"
    );
    assert!(layers.backward(y.view()).is_ok());
    assert!(layers.forward(y.view()).is_err());
    assert!(layers.weights(1).is_err());
    let sizes = RecurrentSizes { inputs: 3, hidden: 4, layers: 1, directions: 2 };
    assert!(Gru::<f32>::stacked(rnn::Gru::new(), sizes, &mut Rng::seed(1)).is_err());
    let huge = RecurrentSizes { inputs: usize::MAX / 2, hidden: usize::MAX / 2, layers: 1, directions: 1 };
    assert!(Gru::<f32>::stacked(rnn::Gru::new(), huge, &mut Rng::seed(1)).is_err());
}

#[test]
fn embeddings_refuse_what_they_have_no_row_for() {
    let mut table = Embedding::<f32>::new(5, 3, Init::xavier_uniform(), &mut Rng::seed(1)).unwrap();
    assert_eq!(
        table.forward(&[0, 5]).unwrap_err().to_string(),
        "Embedding::forward: numbers is 5 at index 1 for a table of 5 rows, expected less than its rows"
    );
    let dy = Tensor::<f32, 2>::zeros([2, 3]).unwrap();
    assert!(table.backward(dy.view()).is_err());
    table.forward(&[1]).unwrap();
    assert_eq!(
        table.backward(dy.view()).unwrap_err().to_string(),
        "Embedding::backward: dy has shape [2, 3], expected [1, 3]"
    );
    assert_eq!(table.forward(&[]).unwrap().shape(), [0, 3]);
}

//! Of operands without elements, whose other sizes may be anything.

use tilewise::conv::{Convolution, ConvolutionTranspose};
use tilewise::{Element, Tensor, TensorView, TensorViewMut, machine};

use super::DEEP;

/// A view of any shape without elements.
fn nothing<const N: usize>(shape: [usize; N]) -> TensorView<'static, f32, N> {
    TensorView::as_strided(&[], shape, [0; N]).unwrap()
}

/// Queries and keys were walked, however many of them were empty.
#[test]
fn attention_over_nothing_ends() {
    use tilewise::attention::{Align, Attention, AttentionGradientsMut};
    let plain = Attention::<f32>::new();
    let few = nothing([1, 1, 5, 0]);
    for (q, kv) in [(nothing([1, 1, DEEP, 0]), few), (few, nothing([1, 1, DEEP, 0]))] {
        assert_eq!(plain.forward(q, kv, kv).unwrap().shape(), q.shape());
    }
    // Scores of keys without elements are 0: the normaliser is the logarithm of their number.
    let normalizers = |options: Attention<'_, f32>, keys: usize| {
        let (q, kv) = (nothing([1, 2, 3, 0]), nothing([1, 1, keys, 0]));
        options.forward_saving(q, kv, kv).unwrap().normalizer.as_slice().to_vec()
    };
    let far = 60.0 * 2f32.ln();
    for options in [plain, plain.causal(Align::End)] {
        assert!(normalizers(options, DEEP).iter().all(|found| (found - far).abs() < 1e-5 * far));
    }
    let counts: Vec<f32> = [1.0f32, 2.0, 3.0, 1.0, 2.0, 3.0].map(f32::ln).to_vec();
    assert_eq!(normalizers(plain.causal(Align::Start), 5), counts);
    assert_eq!(normalizers(plain, 0), [f32::NEG_INFINITY; 6]);
    assert_eq!(normalizers(plain.linear(), DEEP), [0.0; 6]);
    // Backward, where no gradient has an element, and where Y has none.
    let one = [1.0f32];
    let many = TensorView::from_slice(&one, [1; 4]).unwrap().broadcast([DEEP, 1, 1, 1]).unwrap();
    let normalizer = many.select::<3>(3, 0).unwrap();
    let q = nothing([DEEP, 1, 1, 0]);
    let none = || TensorViewMut::from_slice(&mut [], [DEEP, 1, 1, 0]).ok();
    let gradients = || AttentionGradientsMut { query: none(), key: none(), value: None, bias: None };
    plain.backward_into(q, q, many, many, normalizer, many, gradients()).unwrap();
    let (q, kv) = (nothing([1, 1, 1, 0]), nothing([1, 1, DEEP, 0]));
    let normalizer = TensorView::from_slice(&one, [1; 3]).unwrap();
    let bias = TensorView::from_slice(&one, [1; 4]).unwrap();
    let mut dbias = Tensor::full([1; 4], f32::NAN).unwrap();
    let gradients =
        AttentionGradientsMut { query: None, key: None, value: None, bias: Some(dbias.view_mut()) };
    plain.bias(bias).backward_into(q, kv, kv, q, normalizer, q, gradients).unwrap();
    assert_eq!(dbias.as_slice(), [0.0]);
}

/// Memory was asked for by sizes of empty operands, or they were multiplied.
#[test]
fn calls_that_write_nothing_need_no_memory() {
    use tilewise::norm::{
        BatchNormalization, GroupNormalization, LayerNormalization, NormGradientsMut, RmsGradientsMut,
        RmsNormalization,
    };
    let x = nothing([0, DEEP]);
    let none = || TensorViewMut::from_slice(&mut [], [0, DEEP]).ok();
    let wanted = || NormGradientsMut { input: none(), scale: None, shift: None };
    let one = [1.0f32];
    let scale = TensorView::from_slice(&one, [1]).unwrap().broadcast([DEEP]).unwrap();
    let batch_norm = BatchNormalization::new();
    batch_norm.backward_into(x, None, Some(scale), x, 0.0, wanted()).unwrap();
    batch_norm.backward_inference_into(x, scale, scale, None, x, 0.0, wanted()).unwrap();
    GroupNormalization::new(4).backward_into(x, Some(scale), x, 0.0, wanted()).unwrap();
    LayerNormalization::new().backward_into(x, Some(scale), x, 0.0, wanted()).unwrap();
    let gradients = RmsGradientsMut { input: none(), scale: None };
    RmsNormalization::new().backward_into(x, Some(scale), x, 0.0, gradients).unwrap();
    // Nor do those that nothing is wanted of.
    let all = TensorView::from_slice(&one, [1, 1]).unwrap().broadcast([1, DEEP]).unwrap();
    let unwanted = || NormGradientsMut { input: None, scale: None, shift: None };
    batch_norm.backward_into(all, None, None, all, 0.0, unwanted()).unwrap();
    LayerNormalization::new().backward_into(all, Some(scale), all, 0.0, unwanted()).unwrap();
}

/// The batch of a sequence without steps was walked, multiplied, and had memory for its states.
#[test]
fn sequences_without_steps_keep_their_states() {
    use tilewise::rnn::{
        Direction, Gru, Lstm, OutputGradients, OutputMut, Recurrent, Sequence, Tape, Weights,
    };
    fn check(cell: impl Recurrent, batch: usize) {
        let rows = cell.gates();
        let w = Tensor::<f32, 3>::full([1, rows, 1], 0.5).unwrap();
        let weights = Weights::new(w.view(), w.view());
        let y = || TensorViewMut::from_slice(&mut [], [0, batch, 1]).unwrap();
        let x = nothing([0, batch, 1]);
        cell.forward_into(x, weights, OutputMut::new(y())).unwrap();
        let mut tape = Tape::new();
        cell.forward_taped_into(x, weights, &mut tape, OutputMut::new(y())).unwrap();
        let mut dw = Tensor::full([1, rows, 1], 3.0f32).unwrap();
        let mut gradients = tilewise::rnn::GradientsMut::default();
        gradients.weights.input = Some(dw.view_mut());
        cell.backward_into(x, weights, &tape, y_gradient(batch), 0.5, gradients).unwrap();
        assert!(dw.iter().all(|&dw| dw == 1.5));
    }
    fn y_gradient(batch: usize) -> OutputGradients<'static, f32> {
        nothing([0, batch, 1]).into()
    }
    for batch in [1 << 40, 1 << 62] {
        check(Gru::new(), batch);
        check(Lstm::new(), batch);
        check(Gru::new().direction(Direction::Reverse), batch);
    }
    // The last states are the first ones, and so are their gradients.
    let lstm = Lstm::new();
    let w = Tensor::<f32, 3>::full([1, 4, 1], 0.5).unwrap();
    let weights = Weights::new(w.view(), w.view());
    let states = Tensor::from_slice(&[2.0f32, 3.0], [1, 2, 1]).unwrap();
    let x = nothing([0, 2, 1]);
    let sequence = Sequence::new(x).hidden(states.view()).cell(states.view());
    let mut tape = Tape::new();
    let out = lstm.forward_taped(sequence, weights, &mut tape).unwrap();
    assert!(out.hidden == states && out.cell.unwrap() == states);
    let outputs = OutputGradients { hidden: Some(states.view()), ..nothing([0, 2, 1]).into() };
    let gradients = lstm.backward(sequence, weights, &tape, outputs).unwrap();
    assert!(gradients.hidden == states && gradients.cell.unwrap().iter().all(|&dc| dc == 0.0));
    assert!(lstm.forward(x, weights).unwrap().hidden.iter().all(|&h| h == 0.0));
}

/// A residue of a stride without taps, and groups without input channels, are single taps over an image of no channels: its rows were
/// looked for in it from the second box on.
#[test]
fn rows_of_an_image_without_channels_may_be_long() {
    fn check<T: Element>() {
        let ones = |shape| Tensor::<T, 3>::full(shape, T::ONE).unwrap();
        for kernel in [1, 2] {
            let (x, w) = (ones([1, 8, 2100]), ones([8, 9, kernel]));
            let transposed = ConvolutionTranspose::<1>::new().stride([3]);
            let conv = Convolution::<1>::new().stride([3]);
            let length = 3 * 2099 + kernel;
            for y in [
                transposed.forward(x.view(), w.view(), None).unwrap(),
                conv.backward_input(x.view(), w.view(), [length]).unwrap(),
            ] {
                assert_eq!(y.shape(), [1, 9, length]);
                let expected = |at: usize| if at % length % 3 < kernel { 8.0 } else { 0.0 };
                assert!(y.iter().enumerate().all(|(at, y)| y.to_f64() == expected(at)), "{kernel}");
            }
        }
        let conv = Convolution::<2>::new().groups(2);
        let packed = conv.pack(Tensor::<T, 4>::zeros([2, 0, 1, 1]).unwrap().view()).unwrap();
        let bias = Tensor::full([2], T::ONE).unwrap();
        let x = Tensor::<T, 4>::zeros([1, 0, 64, 64]).unwrap();
        let y = conv.forward(x.view(), &packed, Some(bias.view())).unwrap();
        assert!(y.shape() == [1, 2, 64, 64] && y.iter().all(|&y| y == T::ONE));
    }
    for &isa in machine::supported() {
        machine::with_isa(isa, || {
            check::<f32>();
            check::<f64>();
        })
        .unwrap();
    }
}

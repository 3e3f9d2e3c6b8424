//! Of operands without elements, whose other sizes may be anything.

use tilewise::{Tensor, TensorView, TensorViewMut};

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

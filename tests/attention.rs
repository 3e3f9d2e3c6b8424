//! Attention against its scalar twin, on every instruction set of this machine.

mod common;

use common::{Strided, bits, in_pools, quickcheck, size, wave, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::attention::{Align, Attention, AttentionGradientsMut, KvCache, Stage};
use tilewise::machine::{self, Isa};
use tilewise::reference::attention as twin;
use tilewise::{Element, Tensor, TensorView};

#[derive(Clone, Debug)]
struct Case<T> {
    isa: Isa,
    q: Strided<T, 4>,
    k: Strided<T, 4>,
    v: Strided<T, 4>,
    dy: Strided<T, 4>,
    y: Strided<T, 4>,
    dq: Strided<T, 4>,
    dk: Strided<T, 4>,
    dv: Strided<T, 4>,
    scale: Option<f64>,
    soft_cap: Option<f64>,
    slopes: Option<Strided<T, 1>>,
    bias: Option<Strided<T, 4>>,
    mask: Option<(Vec<bool>, [usize; 4])>,
    causal: bool,
    window: Option<usize>,
    align: Align,
    lengths: Option<Vec<usize>>,
    dropout: Option<(f64, u64)>,
}

impl<T: Element> Arbitrary for Case<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let length = |g: &mut Gen| match u8::arbitrary(g) % 8 {
            0 => within(g, 65..300),
            _ => size(g),
        };
        let (queries, keys) = (length(g), length(g));
        let keys = if bool::arbitrary(g) { queries } else { keys };
        let queries = if u8::arbitrary(g).is_multiple_of(4) { within(g, 0..4) } else { queries };
        // The twin is slow.
        let few = queries * keys > 65 * 65;
        let (batch, kv_heads) = if few { (1, 1) } else { (within(g, 0..3), within(g, 1..3)) };
        let heads = kv_heads * within(g, 1..4);
        let dim = if u8::arbitrary(g).is_multiple_of(8) { within(g, 1..257) } else { size(g) };
        let value_dim = if bool::arbitrary(g) { dim } else { size(g) };
        // Half of the calls with few queries are the kind that decoding takes.
        let decode = queries <= 4 && bool::arbitrary(g);
        // Products then read the operands in place.
        let whole = decode || u8::arbitrary(g).is_multiple_of(4);
        let dim = if whole { 16 * within(g, 1..9) } else { dim };
        let value_dim = if whole { 16 * within(g, 1..9) } else { value_dim };
        let keys = if decode && bool::arbitrary(g) { within(g, 1..1500) } else { keys };
        let rows = |g: &mut Gen, shape| {
            if whole { Strided::rows(g, shape, 0, false) } else { Strided::random(g, shape) }
        };
        let some = |g: &mut Gen| u8::arbitrary(g).is_multiple_of(4);
        let broadcast = |g: &mut Gen| {
            [batch, heads, queries, keys]
                .map(|size| if u8::arbitrary(g).is_multiple_of(3) { 1 } else { size })
        };
        Case {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            q: rows(g, [batch, heads, queries, dim]),
            k: rows(g, [batch, kv_heads, keys, dim]),
            v: rows(g, [batch, kv_heads, keys, value_dim]),
            dy: rows(g, [batch, heads, queries, value_dim]),
            y: Strided::random(g, [batch, heads, queries, value_dim]),
            dq: Strided::random(g, [batch, heads, queries, dim]),
            dk: Strided::random(g, [batch, kv_heads, keys, dim]),
            dv: Strided::random(g, [batch, kv_heads, keys, value_dim]),
            scale: some(g).then_some(0.3),
            soft_cap: some(g).then_some(1.5),
            slopes: some(g).then(|| Strided::random(g, [heads])),
            bias: some(g).then(|| {
                let shape = broadcast(g);
                let mut bias = Strided::random(g, shape);
                let mut view = bias.view_mut();
                for index in shape[3].min(1)..shape[3] {
                    if index % 3 == 0 && shape[..3].iter().all(|&n| n > 0) {
                        *view.get_mut([0, 0, 0, index]).unwrap() = T::NEG_INFINITY;
                    }
                }
                bias
            }),
            mask: some(g).then(|| {
                let shape = broadcast(g);
                let dense = bool::arbitrary(g);
                let flag = |_| if dense { u8::arbitrary(g) > 30 } else { u8::arbitrary(g) < 30 };
                ((0..shape.iter().product()).map(flag).collect(), shape)
            }),
            causal: bool::arbitrary(g),
            window: some(g).then(|| within(g, 1..80)),
            align: *g.choose(&[Align::Start, Align::End, Align::At(3)]).expect("some"),
            lengths: some(g).then(|| (0..batch).map(|_| within(g, 0..keys + 1)).collect()),
            dropout: some(g).then(|| (0.25, u64::arbitrary(g))),
        }
    }
}

impl<T: Element> Case<T> {
    /// `f` with the options and their twin.
    fn with_options<R>(&self, f: impl FnOnce(Attention<'_, T>, twin::Attention<'_, T>) -> R) -> R {
        let dim = self.q.shape[3];
        let scale = T::from_f64(self.scale.unwrap_or(1.0 / (dim.max(1) as f64).sqrt()));
        let mut options = Attention::new();
        let mut expected = twin::Attention::new(scale.to_f64());
        if self.scale.is_some() {
            options = options.scale(scale);
        }
        if let Some(cap) = self.soft_cap {
            options = options.soft_cap(T::from_f64(cap));
            expected.soft_cap = Some(cap);
        }
        if let Some(slopes) = &self.slopes {
            options = options.alibi(slopes.view());
            expected.slopes = Some(slopes.view());
        }
        if let Some(bias) = &self.bias {
            options = options.bias(bias.view());
            expected.bias = Some(bias.view());
        }
        if let Some((mask, shape)) = &self.mask {
            let mask = TensorView::from_slice(mask, *shape).unwrap();
            options = options.mask(mask);
            expected.mask = Some(mask);
        }
        options = if self.causal { options.causal(self.align) } else { options.align(self.align) };
        expected.causal = self.causal;
        expected.align_end = self.align == Align::End;
        expected.first = if let Align::At(first) = self.align { first } else { 0 };
        if let Some(window) = self.window {
            options = options.window(window);
            expected.window = Some(window);
        }
        if let Some(lengths) = &self.lengths {
            options = options.key_lengths(lengths);
            expected.lengths = Some(lengths);
        }
        if let Some((rate, seed)) = self.dropout {
            options = options.dropout(rate, seed);
        }
        let factor_of = options;
        let factor_of = move |index| factor_of.dropout_factor(index).to_f64();
        expected.factor = Some(&factor_of);
        f(options, expected)
    }
}

/// |found − expected| ≤ bound for each element.
fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    bound: f64,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let shape = expected.shape();
    for (at, (found, &expected)) in found.iter().zip(expected).enumerate() {
        let found = found.to_f64();
        let close = found == expected || (found - expected).abs() <= bound * (1.0 + expected.abs());
        assert!(close, "{what} element {at} of {shape:?}: {found} {expected} ± {bound}");
    }
}

fn check<T: Element>(case: Case<T>) -> bool {
    machine::with_isa(case.isa, || run(case)).expect("supported")
}

fn run<T: Element>(mut case: Case<T>) -> bool {
    let nothing = || Strided::random(&mut Gen::new(1), [0; 4]);
    let mut outputs = [&mut case.y, &mut case.dq, &mut case.dk, &mut case.dv].map(|output| {
        output.view_mut().fill(T::NAN);
        std::mem::replace(output, nothing())
    });
    let [y, dq, dk, dv] = &mut outputs;
    let (q, k, v, dy) = (case.q.view(), case.k.view(), case.v.view(), case.dy.view());
    let ([_, _, queries, dim], [_, _, keys, value_dim]) = (q.shape(), v.shape());
    case.with_options(|options, expected| {
        let twin = expected.forward(q, k, v).unwrap();
        // Scores have at most dim · 4 · scale, and their errors are relative errors of weights, which are averages of
        // values of at most 2, or a third more with dropout.
        let scale = case.scale.unwrap_or(1.0 / (dim.max(1) as f64).sqrt());
        let scores = 8.0 + 4.0 * dim as f64 * scale + case.slopes.as_ref().map_or(0.0, |_| 600.0);
        let bound = T::EPSILON.to_f64() * (40.0 + (dim as f64).sqrt() * scores);
        options.forward_into(q, k, v, y.view_mut()).unwrap();
        near("y", y.view(), &twin.output, 3.0 * bound);
        let saved = options.forward_saving(q, k, v).unwrap();
        near("saved y", saved.output.view(), &twin.output, 3.0 * bound);
        near("normalizer", saved.normalizer.view(), &twin.normalizer, bound);

        if (queries + keys).is_multiple_of(4) {
            let [masked, weights] = expected.scores(q, k).unwrap();
            near("scores", options.scores(q, k, Stage::Masked).unwrap().view(), &masked, bound);
            near("weights", options.scores(q, k, Stage::Weights).unwrap().view(), &weights, bound);
        }

        // dA is at most 4 · value_dim · 4/3; a sum over queries of such terms times weights times values of at most 2.
        let twin = expected.backward(q, k, v, dy).unwrap();
        let da = 6.0 * (value_dim as f64).sqrt() * (dim as f64).sqrt().max(1.0);
        let many = (case.q.shape[1] * queries) as f64;
        let bounds =
            [bound * da * (1.0 + scale), bound * da * (1.0 + scale) * many.sqrt(), bound * many.sqrt()];
        let mut bias = case.bias.as_ref().map(|bias| Tensor::full(bias.shape, T::NAN).unwrap());
        let gradients = AttentionGradientsMut {
            query: Some(dq.view_mut()),
            key: Some(dk.view_mut()),
            value: Some(dv.view_mut()),
            bias: bias.as_mut().map(Tensor::view_mut),
        };
        options.backward_into(q, k, v, saved.output.view(), saved.normalizer.view(), dy, gradients).unwrap();
        near("dq", dq.view(), &twin.query, bounds[0]);
        near("dk", dk.view(), &twin.key, 4.0 * bounds[1]);
        near("dv", dv.view(), &twin.value, 8.0 * bounds[2]);
        if let Some(bias) = bias {
            let shape = bias.shape();
            let mut sums = Tensor::<f64, 4>::zeros(shape).unwrap();
            let full = twin.bias.shape();
            Tensor::<f64, 4>::from_fn(full, |index| {
                let to = std::array::from_fn(|axis| if shape[axis] == 1 { 0 } else { index[axis] });
                *sums.get_mut(to).unwrap() += twin.bias.get(index).unwrap();
                0.0
            })
            .unwrap();
            let terms = full.iter().product::<usize>() as f64 / shape.iter().product::<usize>().max(1) as f64;
            near("bias gradient", bias.view(), &sums, bound * da * 4.0 * terms.sqrt().max(1.0));
        }
        let owned = options.backward(q, k, v, &saved, dy).unwrap();
        assert!(keys == 0 || bits(&dense(dq.view())) == bits(owned.query.as_slice()));
    });
    outputs.iter().all(Strided::canaries_live)
}

/// The elements in order.
fn dense<T: Element>(view: TensorView<'_, T, 4>) -> Vec<T> {
    view.iter().copied().collect()
}

#[test]
fn equals_the_reference_in_f32() {
    quickcheck(200, check::<f32> as fn(Case<f32>) -> bool);
}

#[test]
fn equals_the_reference_in_f64() {
    quickcheck(200, check::<f64> as fn(Case<f64>) -> bool);
}

#[test]
fn gradients_are_central_differences() {
    let (q, k, v, bias) = (
        wave::<f64, 4>([2, 4, 7, 5], 0.1),
        wave([2, 2, 9, 5], 0.2),
        wave([2, 2, 9, 3], 0.3),
        wave([1, 4, 7, 9], 0.4),
    );
    let (r, slopes) = (wave::<f64, 4>([2, 4, 7, 3], 0.5), wave([4], 0.6));
    // Positive scores for the linear form: there sums near 0 have no derivative to speak of.
    let plain = Attention::new();
    let capped = Attention::new().soft_cap(0.8).alibi(slopes.view()).dropout(0.2, 3);
    for options in [plain, capped.causal(Align::End), plain.window(3).align(Align::End), plain.linear()] {
        let offset = if options.dropout_factor([0; 4]) == 1.0 { 3.0 } else { 0.0 };
        let lift = |t: &Tensor<f64, 4>| Tensor::from_fn(t.shape(), |i| t.get(i).unwrap() + offset).unwrap();
        let mut tensors = [lift(&q), lift(&k), lift(&v), lift(&bias)];
        let loss = |[q, k, v, bias]: &[Tensor<f64, 4>; 4]| {
            let y = options.bias(bias.view()).forward(q.view(), k.view(), v.view()).unwrap();
            y.iter().zip(&r).map(|(y, r)| y * r).sum::<f64>()
        };
        let gradients = {
            let [q, k, v, bias] = &tensors;
            let options = options.bias(bias.view());
            let saved = options.forward_saving(q.view(), k.view(), v.view()).unwrap();
            let mut all = tensors.each_ref().map(|t| Tensor::<f64, 4>::zeros(t.shape()).unwrap());
            let [dq, dk, dv, dbias] = &mut all;
            let gradients = AttentionGradientsMut {
                query: Some(dq.view_mut()),
                key: Some(dk.view_mut()),
                value: Some(dv.view_mut()),
                bias: Some(dbias.view_mut()),
            };
            let (y, normalizer) = (saved.output.view(), saved.normalizer.view());
            options.backward_into(q.view(), k.view(), v.view(), y, normalizer, r.view(), gradients).unwrap();
            all
        };
        let h = 1e-5;
        for which in 0..4 {
            for i in (0..tensors[which].len()).step_by(3) {
                let [high, low] = [h, -h].map(|h| {
                    tensors[which].as_mut_slice()[i] += h;
                    let loss = loss(&tensors);
                    tensors[which].as_mut_slice()[i] -= h;
                    loss
                });
                let (found, gradient) = ((high - low) / (2.0 * h), gradients[which].as_slice()[i]);
                let error = (found - gradient).abs();
                assert!(error < 1e-7 * (1.0 + gradient.abs()), "{which} {i}: {found} {gradient}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (q, kv, step) = (
        wave::<f32, 4>([2, 4, 300, 64], 0.1),
        wave([2, 2, 300, 64], 0.2),
        wave::<f32, 4>([2, 4, 1, 64], 0.3),
    );
    let long = wave::<f32, 4>([2, 2, 3000, 64], 0.4);
    let results = in_pools(|| {
        let options = Attention::new().causal(Align::End).dropout(0.1, 1);
        let saved = options.forward_saving(q.view(), kv.view(), kv.view()).unwrap();
        let gradients = options.backward(q.view(), kv.view(), kv.view(), &saved, q.view()).unwrap();
        let decoded = Attention::new().forward(step.view(), long.view(), long.view()).unwrap();
        [saved.output, gradients.query, gradients.key, gradients.value, decoded].map(|t| bits(t.as_slice()))
    });
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn extreme_scores_stay_finite() {
    let scale = |factor: f32| {
        let t = wave::<f32, 4>([1, 1, 40, 16], 0.1);
        Tensor::from_fn([1, 1, 40, 16], |i| factor * t.get(i).unwrap()).unwrap()
    };
    let (big, v) = (scale(100.0), scale(1.0));
    let options = Attention::new().scale(1.0);
    let saved = options.forward_saving(big.view(), big.view(), v.view()).unwrap();
    let gradients = options.backward(big.view(), big.view(), v.view(), &saved, v.view()).unwrap();
    for tensor in [&saved.output, &gradients.query, &gradients.key, &gradients.value] {
        assert!(tensor.iter().all(|x| x.is_finite()));
    }
    assert!(saved.normalizer.iter().any(|&x| x > 1e4));
}

#[test]
fn a_query_without_keys_gets_zeros() {
    let (q, k) = (wave::<f32, 4>([1, 1, 5, 16], 0.1), wave::<f32, 4>([1, 1, 3, 16], 0.2));
    let all = [false; 15];
    let mask = TensorView::from_slice(&all, [1, 1, 5, 3]).unwrap();
    let bias = Tensor::full([1, 1, 5, 3], f32::NEG_INFINITY).unwrap();
    let none = Attention::new().key_lengths(&[0]);
    for options in [Attention::new().mask(mask), Attention::new().bias(bias.view()), none] {
        for options in [options, options.linear()] {
            let saved = options.forward_saving(q.view(), k.view(), k.view()).unwrap();
            let gradients = options.backward(q.view(), k.view(), k.view(), &saved, q.view()).unwrap();
            for tensor in [&saved.output, &gradients.query, &gradients.key, &gradients.value] {
                assert!(tensor.iter().all(|&x| x == 0.0));
            }
        }
    }
    // Aligned at the end, the first two of five queries stand before the first of three keys.
    let y = Attention::new().causal(Align::End).forward(q.view(), k.view(), k.view()).unwrap();
    assert!(y.as_slice()[..32].iter().all(|&x| x == 0.0) && y.as_slice()[32..].iter().all(|&x| x != 0.0));
}

/// Rows of five keys that are there, have a NaN score or are hidden, in every order; `apart` from each other, with
/// hidden ones between.
fn orders_of_nan<T: Element>(apart: usize) {
    const KEYS: usize = 5;
    let (rows, keys) = (3usize.pow(KEYS as u32), KEYS * apart);
    let state = |row: usize, key: usize| row / 3usize.pow(key as u32) % 3;
    let bias = Tensor::from_fn([rows, 1, 1, keys], |[row, _, _, key]| {
        let hidden = T::NEG_INFINITY;
        let state = if key % apart == apart / 2 { state(row, key / apart) } else { 2 };
        [T::ZERO, T::NAN, hidden][state]
    });
    let (bias, one) = (bias.unwrap(), [T::ONE]);
    let ones = |shape| TensorView::from_slice(&one, [1; 4]).unwrap().broadcast(shape).unwrap();
    for dim in [16, 17] {
        let kv = Tensor::full([1, 1, keys, dim], T::ONE).unwrap();
        // Of the rows, queries of one head are lanes of tiles; entries of a batch are what decoding takes.
        let together = bias.view().permute([1, 2, 0, 3]).unwrap();
        for bias in [together, bias.view()] {
            let [batch, _, queries, _] = bias.shape();
            let (q, kv) =
                (ones([batch, 1, queries, dim]), kv.view().broadcast([batch, 1, keys, dim]).unwrap());
            let plain = Attention::new().bias(bias);
            for options in [plain, plain.dropout(0.3, 1), plain.linear()] {
                let saved = options.forward_saving(q, kv, kv).unwrap();
                let gradients = options.backward(q, kv, kv, &saved, q).unwrap();
                for row in 0..rows {
                    let has = |wanted| (0..KEYS).any(|key| state(row, key) == wanted);
                    let y = &saved.output.as_slice()[row * dim..][..dim];
                    let dq = &gradients.query.as_slice()[row * dim..][..dim];
                    let normalizer = saved.normalizer.as_slice()[row];
                    if has(1) {
                        assert!(
                            normalizer.is_nan() && y.iter().chain(dq).all(|x| x.is_nan()),
                            "{row}: {y:?}"
                        );
                    } else {
                        assert!(y.iter().chain(dq).all(|x| x.is_finite()), "{row}: {y:?} {dq:?}");
                        assert!(has(0) || y.iter().chain(dq).all(|&x| x == T::ZERO));
                        assert_eq!(normalizer.is_finite(), has(0) || (normalizer == T::ZERO), "{row}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_nan_score_makes_its_row_nan_wherever_it_stands() {
    for &isa in machine::supported() {
        let each = || {
            orders_of_nan::<f32>(1);
            orders_of_nan::<f32>(250);
            orders_of_nan::<f64>(1);
        };
        machine::with_isa(isa, each).expect("supported");
    }
}

#[test]
fn a_masked_key_has_weight_0_whatever_its_score() {
    let mask = [true, false, true];
    let mask = TensorView::from_slice(&mask, [1, 1, 1, 3]).unwrap();
    for &isa in machine::supported() {
        let each = || {
            for dim in [4, 16] {
                let q = Tensor::<f32, 4>::full([1, 1, 1, dim], 1.0).unwrap();
                let keys =
                    |scores: [f32; 3]| Tensor::from_fn([1, 1, 3, dim], |[_, _, j, _]| scores[j]).unwrap();
                for options in [Attention::new().mask(mask), Attention::new().mask(mask).linear()] {
                    let weights = |scores| {
                        options
                            .scores(q.view(), keys(scores).view(), Stage::Weights)
                            .unwrap()
                            .as_slice()
                            .to_vec()
                    };
                    let nan = weights([f32::NAN, 1.0, 1.0]);
                    assert!(nan[0].is_nan() && nan[1] == 0.0 && nan[2].is_nan(), "{nan:?}");
                    for hidden in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        assert_eq!(weights([1.0, hidden, 1.0]), [0.5, 0.0, 0.5]);
                        let (k, v) = (keys([1.0, hidden, 1.0]), keys([1.0, 7.0, 3.0]));
                        let y = options.forward(q.view(), k.view(), v.view()).unwrap();
                        assert!(y.iter().all(|y| (y - 2.0).abs() < 1e-6), "{isa} {hidden}: {y:?}");
                    }
                }
            }
        };
        machine::with_isa(isa, each).expect("supported");
    }
}

#[test]
fn what_is_hidden_has_gradients_of_0() {
    let mask = [true, false, false, false];
    let mask = TensorView::from_slice(&mask, [1, 1, 2, 2]).unwrap();
    for &isa in machine::supported() {
        let each = || {
            for dim in [1, 16, 17] {
                let q = Tensor::<f32, 4>::full([1, 1, 2, dim], 1.0).unwrap();
                // dA of the hidden key overflows; the second query has no key, and a dY of NaN.
                let v = Tensor::from_fn([1, 1, 2, 1], |[_, _, j, _]| [1.0, 1e30][j]).unwrap();
                let dy = Tensor::from_fn([1, 1, 2, 1], |[_, _, i, _]| [1e10, f32::NAN][i]).unwrap();
                for options in [Attention::new().mask(mask), Attention::new().mask(mask).soft_cap(2.0)] {
                    let saved = options.forward_saving(q.view(), q.view(), v.view()).unwrap();
                    let gradients =
                        options.backward(q.view(), q.view(), v.view(), &saved, dy.view()).unwrap();
                    for gradient in [&gradients.query, &gradients.key] {
                        assert!(gradient.iter().all(|&x| x == 0.0), "{isa} {dim}: {gradient:?}");
                    }
                }
            }
        };
        machine::with_isa(isa, each).expect("supported");
    }
}

#[test]
fn soft_caps_that_cannot_be_computed_are_refused() {
    fn check<T: Element>(refused: &[T], taken: [T; 2]) {
        let x = wave::<T, 4>([1, 1, 5, 16], 0.1);
        let forward = |options: Attention<'_, T>| {
            options.forward(x.view(), x.view(), x.view()).map(|y| y.as_slice().to_vec())
        };
        for &cap in refused {
            let error = forward(Attention::new().soft_cap(cap)).unwrap_err().to_string();
            assert!(error.starts_with("Attention::forward: soft_cap is"), "{error}");
        }
        let free = forward(Attention::new()).unwrap();
        let [least, most] = taken.map(|cap| forward(Attention::new().soft_cap(cap)).unwrap());
        assert!(least.iter().all(|y| y.is_finite()));
        let close = |(a, b): (&T, &T)| (*a - *b).abs() <= T::from_f64(64.0) * T::EPSILON;
        assert!(most.iter().zip(&free).all(close));
    }
    for &isa in machine::supported() {
        let each = || {
            check(&[f32::MAX, 2.4e38, 1e-39, f32::INFINITY, f32::NAN, 0.0], [2.7e-23, 1.8e19]);
            check(&[f64::MAX, 1e-320, f64::INFINITY, f64::NAN], [1.6e-162, 1.3e154]);
        };
        machine::with_isa(isa, each).expect("supported");
    }
}

#[test]
fn a_cache_is_appended_to_in_place() {
    let (q, k, v) = (
        wave::<f32, 4>([2, 4, 9, 16], 0.1),
        wave::<f32, 4>([2, 2, 9, 16], 0.2),
        wave::<f32, 4>([2, 2, 9, 32], 0.3),
    );
    let all = Attention::new().causal(Align::Start).forward(q.view(), k.view(), v.view()).unwrap();
    let mut cache = KvCache::new([2, 2], 9, [16, 32]).unwrap();
    let mut place = None;
    for (from, to) in [(0, 4), (4, 5), (5, 9)] {
        let part = |t: &Tensor<f32, 4>| t.view().slice(2, from..to, 1).unwrap().to_tensor().unwrap();
        cache.append(part(&k).view(), part(&v).view()).unwrap();
        assert_eq!(*place.get_or_insert(cache.keys().unwrap().as_ptr()), cache.keys().unwrap().as_ptr());
        let options = Attention::new().causal(Align::End);
        let y = options.forward(part(&q).view(), cache.keys().unwrap(), cache.values().unwrap()).unwrap();
        assert!(y.view().all_close(part(&all).view(), 1e-5, 1e-5));
    }
    let full = cache.append(k.view(), v.view()).unwrap_err().to_string();
    assert_eq!(full, "KvCache::append: the number of positions is 9, expected at most the room that is left");
    assert_eq!(cache.len(), 9);
    assert!(cache.truncate(10).is_err());
    cache.truncate(2).unwrap();
    assert_eq!(cache.keys().unwrap().shape(), [2, 2, 2, 16]);
    let refused = |capacity| KvCache::<f32>::new([1, 1], capacity, [2, 2]).map(drop).unwrap_err().to_string();
    let sizes = format!("the sizes of shape [1, 1, {}, 2] overflow", usize::MAX);
    assert_eq!(refused(usize::MAX), format!("KvCache::new: {sizes}"));
    assert_eq!(refused(1 << 60), "KvCache::new: more bytes than there are addresses");
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let t = |shape| Tensor::<f32, 4>::full(shape, 1.0).unwrap();
    let (q, k, v) = (t([2, 6, 5, 8]), t([2, 3, 7, 8]), t([2, 3, 7, 4]));
    let refused = |options: Attention<'_, f32>, [q, k, v]: [&Tensor<f32, 4>; 3]| {
        options.forward(q.view(), k.view(), v.view()).unwrap_err().to_string()
    };
    let good = Attention::new();
    let op = "Attention::forward:";
    let cases = [
        (
            refused(good, [&t([2, 5, 5, 8]), &k, &v]),
            "heads of q is 5, expected a multiple of the heads of k, which are as many or fewer",
        ),
        (refused(good, [&q, &t([2, 3, 7, 9]), &v]), "k has shape [2, 3, 7, 9], expected [2, 3, 7, 8]"),
        (refused(good, [&q, &k, &t([2, 3, 6, 4])]), "v has shape [2, 3, 6, 4], expected [2, 3, 7, 4]"),
        (refused(good.window(0), [&q, &k, &v]), "window is 0, expected at least 1"),
        (
            refused(good.soft_cap(-1.0), [&q, &k, &v]),
            "soft_cap is -1, expected positive, with a square that is neither 0 nor infinite",
        ),
        (
            refused(good.dropout(1.0, 0), [&q, &k, &v]),
            "the rate of dropout is 1, expected at least 0 and less than 1",
        ),
        (refused(good.key_lengths(&[3]), [&q, &k, &v]), "key_lengths has shape [1], expected [2]"),
        (
            refused(good.key_lengths(&[3, 8]), [&q, &k, &v]),
            "key_lengths is 8, expected at most the number of keys",
        ),
        (
            refused(good.bias(t([2, 4, 5, 7]).view()), [&q, &k, &v]),
            "bias has shape [2, 4, 5, 7], expected [2, 6, 5, 7]",
        ),
        (
            refused(good.causal(Align::End).align(Align::Start), [&q, &k, &v]),
            "align is Start, expected that of causal",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, format!("{op} {expected}"));
    }
    let mut y = t([2, 6, 5, 8]);
    let error = good.forward_into(q.view(), k.view(), v.view(), y.view_mut()).unwrap_err().to_string();
    assert_eq!(error, "Attention::forward_into: y has shape [2, 6, 5, 8], expected [2, 6, 5, 4]");
    let saved = good.forward_saving(q.view(), k.view(), v.view()).unwrap();
    let (mut dq, mut dv) = (t([2, 6, 5, 8]), t([2, 3, 7, 5]));
    let gradients = AttentionGradientsMut {
        query: Some(dq.view_mut()),
        key: None,
        value: Some(dv.view_mut()),
        bias: None,
    };
    let (sy, normalizer, dy) = (saved.output.view(), saved.normalizer.view(), saved.output.view());
    let error = good.backward_into(q.view(), k.view(), v.view(), sy, normalizer, dy, gradients).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Attention::backward_into: gradients.value has shape [2, 3, 7, 5], expected [2, 3, 7, 4]"
    );
    assert!([&y, &dq, &dv].iter().all(|t| t.iter().all(|&x| x == 1.0)));
}

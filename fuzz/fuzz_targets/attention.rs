//! Attention with any numbers for options, over views of any strides, on every instruction set, against the scalar twin;
//! the cache of keys and values.
//!
//! Buffers end exactly where the views do, so that AddressSanitizer sees one element too many; gaps between the elements
//! of outputs hold canaries.
#![no_main]

mod support;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use support::{Lie, Number, Stored, Values, WORK, near, product, stored, too_large, with_some_isa};
use tilewise::attention::{Align, Attention, AttentionGradientsMut, KvCache};
use tilewise::reference::attention as twin;
use tilewise::{Element, Tensor};

#[derive(Arbitrary, Debug)]
struct Input {
    double: bool,
    isa: u8,
    batch: u8,
    kv_heads: u8,
    group: u8,
    queries: u8,
    keys: u16,
    dims: [u8; 2],
    /// Heads of whole vectors in rows, which decoding takes.
    whole: bool,
    /// A size that is made another one.
    wrong: Option<(u8, Number)>,
    lies: [Lie; 5],
    scale: Option<i8>,
    soft_cap: Option<i8>,
    alibi: bool,
    /// Axes along which it is broadcast.
    bias: Option<u8>,
    mask: Option<(u8, u64)>,
    causal: Option<bool>,
    align: Option<bool>,
    window: Option<Number>,
    lengths: Option<[u16; 2]>,
    dropout: Option<(u8, u64)>,
    linear: bool,
    cut: u16,
    seed: u32,
}

fuzz_target!(|input: Input| {
    with_some_isa(input.isa, || if input.double { run::<f64>(&input) } else { run::<f32>(&input) });
});

/// Where queries and keys meet.
fn align(end: bool) -> Align {
    if end { Align::End } else { Align::Start }
}

fn run<T: Element>(input: &Input) {
    let few = |x: u8, most: u8| usize::from(x % most);
    let (batch, kv_heads, group) = (few(input.batch, 3), few(input.kv_heads, 3), 1 + few(input.group, 4));
    let (queries, keys) = (few(input.queries, 40), usize::from(input.keys % 600));
    let [dim, value_dim] =
        input.dims.map(|dim| if input.whole { 16 * (1 + few(dim, 3)) } else { few(dim, 33) });
    let heads = kv_heads * group;
    let mut shapes = [
        [batch, heads, queries, dim],
        [batch, kv_heads, keys, dim],
        [batch, kv_heads, keys, value_dim],
        [batch, heads, queries, value_dim],
    ];
    if let Some((which, Number(size))) = input.wrong {
        shapes[usize::from(which % 4)][usize::from(which / 4 % 4)] = size;
    }
    let scores = [batch, heads, queries, keys];
    if product(&scores).is_none_or(|len| len.saturating_mul(dim + value_dim) > WORK) {
        return;
    }
    let values = &mut Values::seed(input.seed);
    let mut lies = input.lies;
    if input.whole {
        lies.iter_mut().for_each(|lie| *lie = Lie { last: false, back: [false; 5], strides: None, ..*lie });
    }
    let [Ok(q), Ok(k), Ok(v), Ok(dy)] = [0, 1, 2, 3].map(|i| stored::<T, 4>(shapes[i], lies[i], values))
    else {
        return;
    };
    // Sums of scores that are not positive divide by anything.
    let positive = |mut stored: Stored<T, 4>| {
        if input.linear {
            stored.data.iter_mut().for_each(|x| *x = x.abs() + T::from_f64(0.25));
        }
        stored
    };
    let (q, k) = (positive(q), positive(k));
    let scale = input.scale.map_or(1.0 / (dim.max(1) as f64).sqrt(), |scale| f64::from(scale) / 64.0);
    let scale = if input.linear { scale.abs().max(1.0 / 64.0) } else { scale };
    let broadcast =
        |ones: u8| std::array::from_fn(|axis| if ones >> axis & 1 == 1 { 1 } else { scores[axis] });
    let slopes = Tensor::from_fn([heads], |[h]| T::from_f64(0.5 / (1.0 + h as f64))).expect("memory");
    let bias = input.bias.map(|ones| positive(Stored::read(broadcast(ones), input.lies[4], values)));
    let mask = input.mask.map(|(ones, bits)| {
        let flag = |[b, h, i, j]: [usize; 4]| bits >> ((b + 5 * h + 3 * i + j) % 64) & 1 == 0;
        Tensor::from_fn(broadcast(ones), flag).expect("memory")
    });
    let lengths = input.lengths.map(|lengths| lengths.map(|length| usize::from(length) % (keys + 2)));
    let lengths = lengths.as_ref().map(|lengths| &lengths[..batch]);

    let mut options = Attention::<T>::new();
    let mut expected = twin::Attention::<T>::new(T::from_f64(scale).to_f64());
    if input.scale.is_some() || input.linear {
        options = options.scale(T::from_f64(scale));
    }
    if let Some(cap) = input.soft_cap {
        let cap = T::from_f64(f64::from(cap) / 16.0);
        options = options.soft_cap(cap);
        expected.soft_cap = Some(cap.to_f64());
    }
    if input.alibi {
        options = options.alibi(slopes.view());
        expected.slopes = Some(slopes.view());
    }
    if let Some(bias) = &bias {
        options = options.bias(bias.view());
        expected.bias = Some(bias.view());
    }
    if let Some(mask) = &mask {
        options = options.mask(mask.view());
        expected.mask = Some(mask.view());
    }
    if let Some(end) = input.causal {
        options = options.causal(align(end));
    }
    if let Some(end) = input.align {
        options = options.align(align(end));
    }
    expected.causal = input.causal.is_some();
    expected.align_end = input.causal.or(input.align).unwrap_or(false);
    if let Some(Number(window)) = input.window {
        options = options.window(window);
        expected.window = Some(window);
    }
    if let Some(lengths) = lengths {
        options = options.key_lengths(lengths);
        expected.lengths = Some(lengths);
    }
    if let Some((rate, seed)) = input.dropout {
        options = options.dropout(f64::from(rate) / 200.0, seed);
    }
    let with_dropout = options;
    let factor = |index| with_dropout.dropout_factor(index).to_f64();
    expected.factor = Some(&factor);
    if input.linear {
        options = options.linear();
        expected.linear = true;
    }

    let bad = input.window.is_some_and(|Number(window)| window == 0)
        || input.soft_cap.is_some_and(|cap| cap <= 0)
        || input.dropout.is_some_and(|(rate, _)| rate >= 200)
        || lengths.is_some_and(|lengths| lengths.iter().any(|&length| length > keys))
        || input.causal.zip(input.align).is_some_and(|(causal, align)| causal != align);
    let mut y = Stored::<T, 4>::written([batch, heads, queries, value_dim], input.lies[3]);
    let written = options.forward_into(q.view(), k.view(), v.view(), y.view_mut());
    if shapes != [0, 1, 2, 3].map(|i| [q.shape, k.shape, v.shape, dy.shape][i]) || bad || written.is_err() {
        let error = written.expect_err("a bad option was taken");
        assert!(error.to_string().starts_with("Attention::forward_into: ") && y.untouched());
        assert!(bad || input.wrong.is_some() || too_large(&error), "refused without a reason: {error}");
        return;
    }
    let twin = expected.forward(q.view(), k.view(), v.view()).expect("the library takes it");
    let saved = options.forward_saving(q.view(), k.view(), v.view()).expect("as before");
    // Scores are as exact as q·k, of at most 4 a term, and as distances.
    let size = 8.0 + 4.0 * scale.abs() * dim as f64 + if input.alibi { 300.0 } else { 0.0 };
    let kept = input.dropout.map_or(1.0, |(rate, _)| 1.0 / (1.0 - f64::from(rate) / 200.0));
    let bound = 40.0 * size * kept;
    // Sums that are near 0 without exponentials.
    let steady = !input.linear || (!input.alibi && dim > 0);
    let least = twin.normalizer.iter().filter(|&&sum| sum > 0.0).fold(1.0, |least: f64, &sum| least.min(sum));
    if steady {
        near("y", y.view(), &twin.output, bound);
        near("saved y", saved.output.view(), &twin.output, bound);
        near("normalizer", saved.normalizer.view(), &twin.normalizer, bound);
    }
    assert!(y.canaries_live(), "a gap of y was written");

    let [mut dq, mut dk, mut dv] = [(q.shape, 0), (k.shape, 1), (v.shape, 2)]
        .map(|(shape, i)| Stored::<T, 4>::written(shape, input.lies[i]));
    let mut dbias = bias.as_ref().map(|bias| Stored::<T, 4>::written(bias.shape, input.lies[4]));
    let gradients = AttentionGradientsMut {
        query: Some(dq.view_mut()),
        key: Some(dk.view_mut()),
        value: Some(dv.view_mut()),
        bias: dbias.as_mut().map(Stored::view_mut),
    };
    let (saved_y, normalizer) = (saved.output.view(), saved.normalizer.view());
    let result =
        options.backward_into(q.view(), k.view(), v.view(), saved_y, normalizer, dy.view(), gradients);
    if dy.shape != saved.output.shape() {
        assert!(result.is_err() && [&dq, &dk, &dv].iter().all(|gradient| gradient.untouched()));
        return;
    }
    result.expect("its shapes fit");
    assert!([&dq, &dk, &dv].iter().all(|gradient| gradient.canaries_live()), "a gap was written");
    assert!(dbias.as_ref().is_none_or(Stored::canaries_live), "a gap of the bias' gradient was written");
    if steady {
        let twin = expected.backward(q.view(), k.view(), v.view(), dy.view()).expect("as forward");
        let da = kept * (1.0 + 4.0 * value_dim as f64) * if input.linear { 1.0 + 1.0 / least } else { 1.0 };
        let many = 1.0 + (group * queries) as f64;
        near("dq", dq.view(), &twin.query, bound * da * (1.0 + scale.abs()));
        near("dk", dk.view(), &twin.key, bound * da * (1.0 + scale.abs()) * many);
        near("dv", dv.view(), &twin.value, bound * many);
        if let Some(dbias) = &dbias {
            let mut sums = Tensor::<f64, 4>::zeros(dbias.shape).expect("memory");
            let mut gradients = twin.bias.iter();
            Tensor::from_fn(twin.bias.shape(), |index: [usize; 4]| {
                let at = std::array::from_fn(|axis| if dbias.shape[axis] == 1 { 0 } else { index[axis] });
                *sums.get_mut(at).expect("inside") += gradients.next().expect("as many");
            })
            .expect("memory");
            let terms = 1.0 + scores.iter().product::<usize>() as f64;
            near("bias gradient", dbias.view(), &sums, bound * da * terms);
        }
    }
    cached(input, &k, &v);
}

/// Keys and values that come in two parts are what they are in one; no room is an error.
fn cached<T: Element>(input: &Input, k: &Stored<T, 4>, v: &Stored<T, 4>) {
    let ([batch, kv_heads, keys, dim], value_dim) = (k.shape, v.shape[3]);
    let (cut, Number(room)) = (usize::from(input.cut) % (keys + 1), input.window.unwrap_or(Number(keys)));
    // What a machine may have would all be taken.
    let len = product(&[batch, kv_heads, room, dim.max(value_dim)]);
    if len.is_some_and(|len| (WORK..1 << 40).contains(&len)) {
        return;
    }
    let mut cache = match KvCache::<T>::new([batch, kv_heads], room, [dim, value_dim]) {
        Ok(cache) => cache,
        Err(error) => return assert!(too_large(&error), "{error}"),
    };
    let mut held = 0;
    for part in [0..cut, cut..keys] {
        let count = part.len();
        let [k, v] = [k.view(), v.view()].map(|view| view.slice(2, part.clone(), 1).expect("inside"));
        let appended = cache.append(k, v);
        assert_eq!(appended.is_ok(), count <= room - held);
        if appended.is_err() {
            continue;
        }
        let [keys, values] = [cache.keys(), cache.values()].map(|held| held.expect("it holds them"));
        assert!(
            keys.slice(2, held.., 1).expect("inside") == k
                && values.slice(2, held.., 1).expect("inside") == v
        );
        held += count;
        assert_eq!(cache.len(), held);
    }
    assert!(cache.truncate(held + 1).is_err());
    cache.truncate(held / 2).expect("it holds more");
    assert_eq!(cache.keys().expect("a part").shape(), [batch, kv_heads, held / 2, dim]);
}

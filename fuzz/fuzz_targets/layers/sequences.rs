//! Layers over sequences: attention, whole blocks, recurrent stacks; tables of rows and encodings of positions.

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use tilewise::activation::Activation;
use tilewise::attention::{Align, KvCache};
use tilewise::layer::{
    Embedding, FeedForward, Layer, LayerNorm, MultiHeadAttention, NormOrder, Parameters, Recurrent,
    RecurrentSizes, RmsNorm, Rotary, TransformerBlock, sinusoidal as encoding,
};
use tilewise::random::Rng;
use tilewise::rnn::{self, Direction, Elman, Gru, Lstm};
use tilewise::{Result, Tensor, TensorView, reference};

use crate::drive::{Step, agree, drive, operand, parameter, refused};
use crate::support::{Few, Number, Stored, Values, near};
use crate::{Input, Kind, finite, probability, size};

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Heads {
    heads: u8,
    kv_heads: u8,
    /// A whole block around it, with its normalisation before the parts or behind them.
    block: Option<(bool, Few)>,
    causal: Option<bool>,
    /// For so many positions.
    rotary: Option<u8>,
    probability: u8,
    keys: Few,
    other: Option<(u8, Number)>,
    cut: u8,
    capacity: u8,
}

pub fn attention(input: &Input, options: Heads, shape: [usize; 3], rng: &mut Rng) -> Result<()> {
    let [heads, kv_heads] = [options.heads, options.kv_heads].map(|heads| usize::from(heads % 5));
    let [batch, length, width] = shape;
    // Most of them fit.
    let width = if options.heads < 200 { width / heads.max(1) * heads } else { width };
    let made = input.wrong.map_or(width, size);
    let mut layer = MultiHeadAttention::<f32>::grouped(made, heads, kv_heads, rng)?;
    if let Some(end) = options.causal {
        layer = layer.causal(if end { Align::End } else { Align::Start });
    }
    if let Some(positions) = options.rotary {
        layer = layer.rotary(Rotary::new(made / heads, usize::from(positions % 20), 10_000.0)?);
    }
    let rate = probability(options.probability);
    let mut layer = layer.dropout(rate, 5)?;
    let (shape, steady) = ([batch, length, width], rate == 0.0);
    let values = &mut Values::seed(input.seed);
    let Some(x) = operand(shape, None, input.lies[0], values) else { return Ok(()) };
    let Some(other) = operand(shape, options.other, input.lies[0], values) else { return Ok(()) };
    let capacity = usize::from(options.capacity % 40);
    let most = options.rotary.map_or(capacity, |positions| capacity.min(usize::from(positions % 20)));
    let Some((before, hidden)) = options.block else {
        let own = drive(input, &mut layer, shape, steady);
        cross(input, options, &mut layer, &x, own && made == width && steady);
        if let Ok(weights) = layer.weights(x.view()) {
            let rows = |[b, h, i]: [usize; 3]| (0..length).map(move |j| [b, h, i, j]);
            Tensor::from_fn([batch, heads, length], |at| {
                let sum: f32 = rows(at).map(|at| *weights.get(at).expect("inside")).sum();
                assert!(!own || (sum - 1.0).abs() < 1e-4, "weights add up to {sum}");
            })?;
        }
        let cache = layer.cache(batch, capacity)?;
        let expected = layer.infer(x.view()).ok().filter(|_| own && options.causal.is_some());
        decode(&|x, cache| layer.decode(x, cache), cache, [&x, &other], expected, [options.cut.into(), most]);
        return Ok(());
    };
    let feed_forward = FeedForward::new(made, hidden.0, Activation::Gelu, rng)?;
    let norms: [Box<dyn Layer<f32, 3, 3> + Send + Sync>; 2] =
        [Box::new(LayerNorm::new(made)?), Box::new(RmsNorm::new(made)?)];
    let order = if before { NormOrder::Pre } else { NormOrder::Post };
    let mut block = TransformerBlock::from_parts(layer, feed_forward, norms, order).dropout(rate, 9)?;
    let own = drive(input, &mut block, shape, steady);
    let cache = block.cache(batch, capacity)?;
    let expected = block.infer(x.view()).ok().filter(|_| own && options.causal.is_some());
    decode(&|x, cache| block.decode(x, cache), cache, [&x, &other], expected, [options.cut.into(), most]);
    if let Err(error) = block.attention_weights(other.view()) {
        refused(&error);
    }
    Ok(())
}

/// Keys and values of another sequence.
fn cross(input: &Input, options: Heads, layer: &mut MultiHeadAttention<f32>, x: &Stored<f32, 3>, fits: bool) {
    let [batch, length, width] = x.shape;
    let values = &mut Values::seed(!input.seed);
    let Some(context) = operand([batch, options.keys.0, width], options.other, input.lies[1], values) else {
        return;
    };
    let y = match layer.forward_cross(x.view(), context.view()) {
        Ok(y) => y,
        Err(error) => {
            refused(&error);
            let positions = options.rotary.map_or(usize::MAX, |positions| usize::from(positions % 20));
            let good =
                context.shape == [batch, options.keys.0, width] && length.max(options.keys.0) <= positions;
            return assert!(!fits || !good, "refused without a reason: {error}");
        }
    };
    if !fits {
        return;
    }
    agree("inference", layer.infer_cross(x.view(), context.view()).expect("as before").view(), y.view());
    let (dx, d_context) = layer.backward_cross(y.view()).expect("its own shape");
    let d_context = d_context.expect("there was a context");
    assert_eq!((dx.shape(), d_context.shape()), (x.shape, context.shape));
    assert!(finite(&dx) && finite(&d_context));
}

/// The next positions, from what a cache holds.
type Decode<'d> = dyn Fn(TensorView<'_, f32, 3>, &mut KvCache<f32>) -> Result<Tensor<f32, 3>> + 'd;

/// In two parts what `expected` has in one, where that can be foretold; what is refused is not in the cache.
fn decode(
    step: &Decode,
    mut cache: KvCache<f32>,
    [x, other]: [&Stored<f32, 3>; 2],
    expected: Option<Tensor<f32, 3>>,
    [cut, most]: [usize; 2],
) {
    let length = x.shape[1];
    let cut = cut % (length + 1);
    for part in [0..cut, cut..length] {
        let (held, count) = (cache.len(), part.len());
        let view = x.view().slice(1, part.clone(), 1).expect("inside");
        match step(view, &mut cache) {
            Ok(y) => {
                assert_eq!(cache.len(), held + count);
                if let Some(expected) = expected.as_ref().filter(|_| held == part.start) {
                    agree("decoded", y.view(), expected.view().slice(1, part, 1).expect("inside"));
                }
            }
            Err(error) => {
                refused(&error);
                assert_eq!(cache.len(), held, "what was refused is in the cache");
                let room = held + count <= most;
                assert!(expected.is_none() || !room, "refused without a reason: {error}");
            }
        }
        let held = cache.len();
        match step(other.view(), &mut cache) {
            Ok(_) => cache.truncate(held).expect("it holds more"),
            Err(error) => refused(&error),
        }
        assert_eq!(cache.len(), held);
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Cells {
    cell: u8,
    hidden: Few,
    layers: u8,
    direction: u8,
    /// Another number of directions than the cell's.
    directions: Option<u8>,
    probability: u8,
    lengths: Option<[u8; 4]>,
    /// Whether there are first states, of a shape of their own.
    states: Option<Option<(u8, Number)>>,
}

pub fn recurrent(input: &Input, options: Cells, shape: [usize; 3], rng: &mut Rng) -> Result<()> {
    let direction = [Direction::Forward, Direction::Reverse, Direction::Bidirectional]
        [usize::from(options.direction % 3)];
    match options.cell % 3 {
        0 => stack(input, options, Elman::new().direction(direction), direction, shape, rng),
        1 => stack(input, options, Lstm::new().direction(direction), direction, shape, rng),
        _ => stack(input, options, Gru::new().direction(direction), direction, shape, rng),
    }
}

fn stack(
    input: &Input,
    options: Cells,
    cell: impl rnn::Recurrent,
    direction: Direction,
    shape: [usize; 3],
    rng: &mut Rng,
) -> Result<()> {
    let [time, batch, inputs] = shape;
    let sizes = RecurrentSizes {
        inputs: input.wrong.map_or(inputs, size),
        hidden: options.hidden.0 % 12,
        layers: usize::from(options.layers % 3),
        directions: options.directions.map_or(cell.directions(), |count| usize::from(count % 4)),
    };
    let rate = probability(options.probability);
    let mut stack = Recurrent::<_, f32>::stacked(cell, sizes, rng)?.dropout(rate, 3)?;
    // A stack of no layers is the identity, and looks at nothing else.
    let own = drive(input, &mut stack, shape, rate == 0.0) && sizes.inputs == inputs && sizes.layers > 0;
    let values = &mut Values::seed(input.seed);
    let Some(x) = operand(shape, None, input.lies[0], values) else { return Ok(()) };

    let lengths: Option<Vec<usize>> = options.lengths.map(|tags| {
        let count = if tags[0] < 240 { batch } else { batch + 1 };
        (0..count)
            .map(|entry| usize::from(tags[entry % 4]) % (time + 1) + usize::from(tags[3] == 255))
            .collect()
    });
    let mut state = stack.zero_state(batch)?;
    let mut good =
        lengths.as_ref().is_none_or(|lengths| lengths.len() == batch && lengths.iter().all(|&n| n <= time));
    if let (Some(Some(other)), Some(last)) = (options.states, state.hidden.last_mut()) {
        let Some(odd) = operand(last.shape(), Some(other), input.lies[1], values) else { return Ok(()) };
        let Ok(odd) = odd.view().to_tensor() else { return Ok(()) };
        good &= odd.shape() == last.shape();
        *last = odd;
    }
    let state = options.states.map(|_| &state);
    match stack.forward_from(x.view(), state, lengths.as_deref()) {
        Ok((y, last)) => {
            assert!(good || !own, "a bad call was taken");
            if own && rate == 0.0 {
                let (found, _) = stack.infer_from(x.view(), state, lengths.as_deref()).expect("as before");
                agree("inference", found.view(), y.view());
            }
            let (dx, first) = stack.backward_from(y.view(), Some(&last)).expect("their own shapes");
            assert_eq!(dx.shape(), x.shape);
            assert!(!own || finite(&dx) && first.hidden.iter().all(finite));
        }
        Err(error) => {
            refused(&error);
            assert!(!good || !own, "refused without a reason: {error}");
        }
    }

    let mut state = stack.zero_state(batch)?;
    let all = stack.infer(x.view());
    let packed = match stack.pack() {
        Ok(packed) => packed,
        Err(error) => {
            refused(&error);
            assert!(!own, "weights are not packed: {error}");
            return Ok(());
        }
    };
    for at in 0..time {
        let x = x.view().select::<2>(0, at).expect("inside");
        match (stack.step(&packed, x, &mut state), &all) {
            (Ok(y), Ok(all)) if own => {
                agree("step", y.view(), all.view().select::<2>(0, at).expect("inside"));
            }
            (Ok(_), _) => {}
            (Err(error), _) => {
                refused(&error);
                assert!(!own || direction != Direction::Forward, "refused without a reason: {error}");
                break;
            }
        }
    }
    Ok(())
}

pub fn embedding(input: &Input, table: &mut Embedding<f32>, numbers: [usize; 4], dy: Option<usize>) {
    let values = &mut Values::seed(input.seed);
    let mut kept = false;
    for step in [None, Some(input.steps[0])] {
        // The table may become one of another shape between forward and backward, or before both.
        if let Some(Step::Exchange { rank, shape, .. }) = step {
            let mut new = Some(parameter(rank, shape));
            table.visit_mut(&mut |_, parameter| *parameter = new.take().expect("one"));
            let columns = shape[1].0 % 9;
            let Some(dy) = operand([4, columns], None, input.lies[1], values) else { return };
            if let Err(error) = table.backward(dy.view()) {
                refused(&error);
            }
            kept = false;
        }
        let shape = table.weight().shape().to_vec();
        let ([things, dimensions], fits) = match shape[..] {
            [things, dimensions] => ([things, dimensions], true),
            _ => ([0, 0], false),
        };
        let fits = fits && numbers.iter().all(|&number| number < things);
        match table.forward(&numbers) {
            Ok(y) => {
                assert!(fits, "a bad number was taken");
                let row = |number: usize| &table.weight().value()[number * dimensions..][..dimensions];
                let rows: Vec<f32> = numbers.iter().flat_map(|&number| row(number)).copied().collect();
                assert_eq!(y.as_slice(), rows);
                kept = true;
            }
            Err(error) => {
                refused(&error);
                assert!(!fits, "refused without a reason: {error}");
            }
        }
        let other = dy.map(|size| (0, Number(size)));
        let Some(dy) = operand([4, dimensions], other, input.lies[1], values) else { return };
        table.zero_gradients();
        match table.backward(dy.view()) {
            Ok(()) => {
                assert!(kept && dy.shape == [4, dimensions], "a gradient of another shape was taken");
                let sum = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(f64::from).sum::<f64>();
                let found = sum(&mut table.weight().gradient().iter().copied());
                let expected = sum(&mut dy.view().iter().copied());
                assert!((found - expected).abs() < 1e-4, "gradients add up to {found}, not {expected}");
            }
            Err(error) => {
                refused(&error);
                assert!(!kept || dy.shape != [4, dimensions], "what was kept is lost: {error}");
            }
        }
    }
}

pub fn rotary(input: &Input, shape: [usize; 4]) -> Result<()> {
    let Kind::Rotary { positions, first, interleaved, partial, given, dim } = input.kind else {
        return Ok(());
    };
    let [batch, _, length, all] = shape;
    let (dim, positions) = (dim.map_or(all, |dim| dim.0), usize::from(positions % 50));
    let mut rotary = Rotary::<f32>::new(dim, positions, 10_000.0)?;
    if interleaved {
        rotary = rotary.interleaved();
    }
    if partial {
        rotary = rotary.partial();
    }
    assert_eq!(rotary.dim(), dim);
    let mut x = Stored::<f32, 4>::written(shape, input.lies[0]);
    let values = &mut Values::seed(input.seed);
    let before = Tensor::from_fn(shape, |_| values.next())?;
    x.view_mut().assign(before.view())?;
    let fits = if partial { all >= dim } else { all == dim };
    let inside = first.0.checked_add(length).is_some_and(|end| end <= positions);
    let result = if given {
        // One position too few where there are any.
        let count = batch * length;
        let places: Vec<usize> = (0..count).map(|at| first.0.wrapping_add(at % length.max(1))).collect();
        if count > 0 {
            let result = rotary.apply_at(x.view_mut(), &places[1..]);
            assert!(result.is_err() && x.view() == before.view());
        }
        rotary.apply_at(x.view_mut(), &places)
    } else {
        rotary.apply(x.view_mut(), first.0)
    };
    assert!(x.canaries_live());
    if let Err(error) = result {
        refused(&error);
        assert!(x.view() == before.view(), "what was refused was turned");
        assert!(!fits || !inside, "refused without a reason: {error}");
        return Ok(());
    }
    let empty = before.is_empty();
    assert!(fits && (inside || empty), "a position that is not there was taken");
    if dim > 0 && !empty {
        let twin = reference::transformer::Rotary { base: 10_000.0, interleaved };
        let expected = twin.apply(before.view().slice(3, ..dim, 1)?, first.0)?;
        near("turned", x.view().slice(3, ..dim, 1)?, &expected, 100.0);
        assert!(
            x.view().slice(3, dim.., 1)? == before.view().slice(3, dim.., 1)?,
            "what is behind was turned"
        );
    }
    if !empty {
        rotary.revert(x.view_mut(), first.0)?;
        agree("turned back", x.view(), before.view());
    }
    Ok(())
}

pub fn sinusoidal(length: usize, dim: usize) -> Result<()> {
    let found = encoding::<f32>(length, dim)?;
    let expected = reference::transformer::sinusoidal(length, dim)?;
    near("encoding", found.view(), &expected, 100.0);
    Ok(())
}

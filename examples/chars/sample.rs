//! What a model writes.

use tilewise::Tensor;
use tilewise::attention::KvCache;
use tilewise::layer::{Layer, State};
use tilewise::random::Rng;
use tilewise::rnn::PackedWeights;

use crate::args::Args;
use crate::model::{Body, Model};

/// What a model knows of the characters so far.
enum Memory {
    Lstm { packed: Vec<PackedWeights<f32>>, state: State<f32> },
    Transformer { caches: Vec<KvCache<f32>>, seen: Vec<usize> },
}

impl Memory {
    fn new(model: &Model) -> tilewise::Result<Self> {
        Ok(match &model.body {
            Body::Lstm(lstm) => Self::Lstm { packed: lstm.pack()?, state: lstm.zero_state(1)? },
            Body::Transformer(decoder) => {
                Self::Transformer { caches: decoder.caches(model.options.context)?, seen: Vec::new() }
            }
        })
    }

    /// The scores of what follows one more character.
    fn read(&mut self, model: &Model, number: usize) -> tilewise::Result<Tensor<f32, 2>> {
        let y = match (self, &model.body) {
            (Self::Lstm { packed, state }, Body::Lstm(lstm)) => {
                lstm.step(packed, model.embedding.infer(&[number])?.view(), state)?
            }
            (Self::Transformer { caches, seen }, Body::Transformer(decoder)) => {
                let context = model.options.context;
                seen.push(number);
                let mut new = 1;
                if seen.len() > context {
                    // No room: the later half is read again, as if the text began there.
                    seen.drain(..seen.len() - context.div_ceil(2));
                    caches.iter_mut().try_for_each(|cache| cache.truncate(0))?;
                    new = seen.len();
                }
                let x = model.embedding.infer(&seen[seen.len() - new..])?;
                let [_, width] = x.shape();
                let y = decoder.decode(x.view().reshape([1, new, width])?, caches)?;
                y.view().select::<2>(0, 0)?.slice(0, new - 1.., 1)?.to_tensor()?
            }
            _ => Tensor::zeros([0, 0])?,
        };
        model.head.infer(y.view())
    }
}

/// The prompt and what the model goes on with.
pub fn write(model: &Model, args: &Args) -> Result<String, Box<dyn std::error::Error>> {
    if !args.temperature.is_finite() || args.temperature <= 0.0 {
        return Err(format!("--temperature {}: a positive number is needed", args.temperature).into());
    }
    let (mut memory, mut rng) = (Memory::new(model)?, Rng::seed(args.seed));
    let mut written = String::new();
    let mut scores = None;
    // What the model does not know, it cannot read.
    for (c, number) in args.prompt.chars().filter_map(|c| Some((c, model.alphabet.number(c)?))) {
        written.push(c);
        scores = Some(memory.read(model, number)?);
    }
    for _ in 0..args.length {
        let number = match &scores {
            Some(scores) => choose(scores.as_slice(), args.temperature, rng.unit()),
            None => rng.below(model.alphabet.len()),
        };
        written.push(model.alphabet.char(number));
        scores = Some(memory.read(model, number)?);
    }
    Ok(written)
}

/// One of the scores, by their softmax at a temperature; `at` is uniform from 0 to 1.
fn choose(scores: &[f32], temperature: f64, at: f64) -> usize {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |score: f32| (f64::from(score - most) / temperature).exp();
    let mut left = at * scores.iter().map(|&score| weight(score)).sum::<f64>();
    for (number, &score) in scores.iter().enumerate() {
        left -= weight(score);
        if left < 0.0 {
            return number;
        }
    }
    scores.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Net, Options};
    use crate::text::Alphabet;

    #[test]
    fn a_decoder_writes_more_than_it_sees() {
        let options =
            Options { net: Net::Transformer, hidden: 8, layers: 1, heads: 2, context: 4, dropout: 0.0 };
        let model = Model::new(Alphabet::from_sorted("abc").unwrap(), options, 1).unwrap();
        let mut memory = Memory::new(&model).unwrap();
        let text = [0, 1, 2, 0, 1, 2, 2, 1, 0, 0];
        let found: Vec<_> = text.iter().map(|&number| memory.read(&model, number).unwrap()).collect();
        // Where the fifth and the eighth find no room, it goes on from the last two.
        assert!(memory_after(&model, &text[3..5]).view().all_close(found[4].view(), 1e-5, 1e-5));
        assert!(memory_after(&model, &text[3..7]).view().all_close(found[6].view(), 1e-5, 1e-5));
        assert!(memory_after(&model, &text[6..8]).view().all_close(found[7].view(), 1e-5, 1e-5));
    }

    fn memory_after(model: &Model, text: &[usize]) -> Tensor<f32, 2> {
        let mut memory = Memory::new(model).unwrap();
        let scores = text.iter().map(|&number| memory.read(model, number).unwrap());
        scores.last().unwrap()
    }

    #[test]
    fn choices_follow_the_scores() {
        let scores = [0.0, 2f32.ln(), 0.0];
        assert_eq!([0.1, 0.3, 0.7, 0.8].map(|at| choose(&scores, 1.0, at)), [0, 1, 1, 2]);
        assert_eq!([0.01, 0.5, 0.99].map(|at| choose(&scores, 0.01, at)), [1, 1, 1]);
        assert_eq!(choose(&[f32::NEG_INFINITY, 1e30], 1.0, 0.0), 1);
    }
}

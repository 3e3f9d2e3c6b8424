//! What a model writes.

use tilewise::Tensor;
use tilewise::layer::Layer;
use tilewise::random::Rng;

use crate::args::Args;
use crate::model::Model;

/// The prompt and what the model goes on with.
pub fn write(model: &Model, args: &Args) -> Result<String, Box<dyn std::error::Error>> {
    if !args.temperature.is_finite() || args.temperature <= 0.0 {
        return Err(format!("--temperature {}: a positive number is needed", args.temperature).into());
    }
    let packed = model.lstm.pack()?;
    let mut state = model.lstm.zero_state(1)?;
    let mut rng = Rng::seed(args.seed);
    let mut read = |number: usize| -> tilewise::Result<Tensor<f32, 2>> {
        let x = model.embedding.infer(&[number])?;
        model.head.infer(model.lstm.step(&packed, x.view(), &mut state)?.view())
    };
    let mut written = String::new();
    let mut scores = None;
    // What the model does not know, it cannot read.
    for (c, number) in args.prompt.chars().filter_map(|c| Some((c, model.alphabet.number(c)?))) {
        written.push(c);
        scores = Some(read(number)?);
    }
    for _ in 0..args.length {
        let number = match &scores {
            Some(scores) => choose(scores.as_slice(), args.temperature, rng.unit()),
            None => rng.below(model.alphabet.len()),
        };
        written.push(model.alphabet.char(number));
        scores = Some(read(number)?);
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

    #[test]
    fn choices_follow_the_scores() {
        let scores = [0.0, 2f32.ln(), 0.0];
        assert_eq!([0.1, 0.3, 0.7, 0.8].map(|at| choose(&scores, 1.0, at)), [0, 1, 1, 2]);
        assert_eq!([0.01, 0.5, 0.99].map(|at| choose(&scores, 0.01, at)), [1, 1, 1]);
        assert_eq!(choose(&[f32::NEG_INFINITY, 1e30], 1.0, 0.0), 1);
    }
}

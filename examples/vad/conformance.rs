//! The real model, and the rule that finds segments, beside ONNX Runtime and the package that the model comes from.

use std::fs::{self, File};
use std::io::BufReader;

use crate::model::{CHUNK, Silero};
use crate::segments::Segments;
use crate::wav::Wav;
use crate::{WEIGHTS, expected, hear};

fn numbers(name: &str) -> Vec<f64> {
    let arrays = expected::lines("vad.txt");
    arrays
        .iter()
        .map(|line| expected::array(line))
        .find(|array| array.name == name)
        .expect("it is there")
        .numbers
}

fn flat(segments: impl IntoIterator<Item = crate::Segment>) -> Vec<f64> {
    segments.into_iter().flat_map(|segment| [segment.start as f64, segment.end as f64]).collect()
}

fn close(what: &str, ours: &[f32], theirs: &[f64], by: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (&a, &b)) in ours.iter().zip(theirs).enumerate() {
        assert!((f64::from(a) - b).abs() <= by * (1.0 + b.abs()), "{what} {i}: {a}, not {b}");
    }
}

#[test]
fn the_rule_is_that_of_the_package() {
    let mut segments = Segments::default();
    let mut found: Vec<_> = numbers("walk").iter().filter_map(|&p| segments.push(p as f32)).collect();
    found.extend(segments.finish(400 * 512 - 100));
    assert_eq!(flat(found), numbers("walk_segments"));
}

#[test]
fn speech_is_found_where_onnx_runtime_finds_it() {
    let Some(weights) = expected::model(WEIGHTS) else { return };
    let model = Silero::parse(&weights).unwrap();
    let sound = fs::read(expected::folder().join("speech.wav")).unwrap();
    let mut told = Vec::new();
    let found = |segment: &crate::Segment| {
        told.push(*segment);
        Ok(())
    };
    let heard = hear(&model, &sound[..], found).unwrap();
    close("probability", &heard.probabilities, &numbers("probabilities"), 1e-5);
    assert_eq!(flat(told), numbers("segments"));
    assert_eq!(flat(heard.segments), numbers("segments"));
}

#[test]
fn streams_side_by_side_do_not_hear_each_other() {
    let Some(weights) = expected::model(WEIGHTS) else { return };
    let model = Silero::parse(&weights).unwrap();
    let file = File::open(expected::folder().join("speech.wav")).unwrap();
    let mut wav = Wav::open(BufReader::new(file), crate::RATE).unwrap();
    let (mut both, mut alone) = (model.streams(3).unwrap(), model.streams(1).unwrap());
    let mut chunks = vec![0.0; 3 * CHUNK];
    for step in 0.. {
        let count = wav.read(&mut chunks[CHUNK..2 * CHUNK]).unwrap();
        if count == 0 {
            break;
        }
        chunks[CHUNK + count..2 * CHUNK].fill(0.0);
        chunks[2 * CHUNK..].fill(if step % 2 == 0 { 0.3 } else { -0.1 });
        let [_, middle, _] = *model.step(&chunks, &mut both).unwrap() else { panic!("three streams") };
        let single = model.step(&chunks[CHUNK..2 * CHUNK], &mut alone).unwrap()[0];
        assert!((middle - single).abs() < 1e-5, "step {step}: {middle}, alone {single}");
    }
    let [hidden, cell] = alone.state();
    close("hidden", hidden, &numbers("hidden"), 1e-4);
    close("cell", cell, &numbers("cell"), 1e-4);
}

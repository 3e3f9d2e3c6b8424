//! Training and testing one model.

use std::error::Error;
use std::time::{Duration, Instant};

use crate::idx::Digits;
use crate::model::{CLASSES, Drawing, Model, Samples};
use crate::models::Entry;
use crate::progress::Progress;

/// Keeps the order of the images apart from the weights, which come from the same seed.
const ORDER_STREAM: u64 = 0x6f72_6465_7220_6f66;

/// The digits as models take them.
pub struct Data {
    pub train: Samples,
    pub test: Samples,
    /// As many of the training set as the test set has: to measure the accuracy on all of it after
    /// every epoch would take longer than some models train.
    probe: Samples,
}

impl From<&Digits> for Data {
    fn from(digits: &Digits) -> Self {
        let (train, test) = (Samples::from(&digits.train), Samples::from(&digits.test));
        let probe = train.first(test.len());
        Self { train, test, probe }
    }
}

/// One pass over the training set, and how well the model read afterwards.
pub struct Epoch {
    pub loss: f64,
    pub train_accuracy: f64,
    pub test_accuracy: f64,
}

/// What became of one model.
pub struct Outcome {
    pub name: String,
    pub parameters: usize,
    pub epochs: Vec<Epoch>,
    /// Without the time for testing.
    pub train_time: Duration,
    pub train_images: usize,
    pub test: Reading,
    pub drawings: Vec<Drawing>,
}

/// How a model read a set.
pub struct Reading {
    /// Images by the digit shown, then by the digit read.
    pub confusion: [[usize; CLASSES]; CLASSES],
    /// The surest mistakes first.
    pub wrong: Vec<Wrong>,
    /// CRC-32 of the bits of all scores.
    pub checksum: u32,
}

/// A digit read wrongly.
pub struct Wrong {
    /// Which of the set.
    pub index: usize,
    pub label: usize,
    pub read: usize,
    /// By how much the score of the digit read exceeds that of the digit shown.
    pub margin: f32,
}

impl Reading {
    /// `scores` are rows of [`CLASSES`], one per label.
    fn new(scores: &[f32], labels: &[usize]) -> Self {
        assert_eq!(scores.len(), labels.len() * CLASSES, "a model returned another number of scores");
        let mut reading = Self { confusion: [[0; CLASSES]; CLASSES], wrong: Vec::new(), checksum: 0 };
        let mut crc = flate2::Crc::new();
        for (index, (row, &label)) in scores.chunks_exact(CLASSES).zip(labels).enumerate() {
            let read = (1..CLASSES).fold(0, |best, class| if row[class] > row[best] { class } else { best });
            reading.confusion[label][read] += 1;
            if read != label {
                reading.wrong.push(Wrong { index, label, read, margin: row[read] - row[label] });
            }
            row.iter().for_each(|score| crc.update(&score.to_le_bytes()));
        }
        reading.wrong.sort_by(|a, b| b.margin.total_cmp(&a.margin));
        reading.checksum = crc.sum();
        reading
    }

    pub fn count(&self) -> usize {
        self.confusion.as_flattened().iter().sum()
    }

    /// The share read rightly.
    pub fn accuracy(&self) -> f64 {
        let right: usize = (0..CLASSES).map(|class| self.confusion[class][class]).sum();
        right as f64 / self.count().max(1) as f64
    }
}

/// Trains a new model and tests it after every epoch.
pub fn run(
    entry: &Entry,
    data: &Data,
    epochs: Option<usize>,
    seed: u64,
    progress: Progress,
) -> Result<Outcome, Box<dyn Error>> {
    let mut model = (entry.build)(data.train.rows, data.train.cols, seed)?;
    train(model.as_mut(), data, epochs, seed, progress)
        .map_err(|error| format!("{}: {error}", entry.name).into())
}

fn train(
    model: &mut dyn Model,
    data: &Data,
    epochs: Option<usize>,
    seed: u64,
    progress: Progress,
) -> Result<Outcome, Box<dyn Error>> {
    let images = data.train.len();
    let count = epochs.unwrap_or_else(|| model.default_epochs());
    let mut orders = Orders::new(images, seed);
    let mut history = Vec::with_capacity(count);
    let mut train_time = Duration::ZERO;
    let mut last = None;
    for epoch in 1..=count {
        let order = orders.next();
        let bar = progress.epoch(model.name(), epoch, count, images);
        let started = Instant::now();
        let loss = model.train_epoch(&data.train, order, &mut |done, loss| bar.update(done, loss))?;
        let time = started.elapsed();
        train_time += time;
        if !loss.is_finite() {
            return Err(format!("the loss became {loss} in epoch {epoch}: training diverged").into());
        }
        let train_accuracy = Reading::new(&model.scores(&data.probe)?, &data.probe.labels).accuracy();
        let test = Reading::new(&model.scores(&data.test)?, &data.test.labels);
        history.push(Epoch { loss, train_accuracy, test_accuracy: test.accuracy() });
        bar.finish(images, loss, time, test.accuracy());
        last = Some(test);
    }
    Ok(Outcome {
        name: model.name().to_owned(),
        parameters: model.parameters(),
        epochs: history,
        train_time,
        train_images: images,
        test: last.ok_or("no epochs to train")?,
        drawings: model.drawings(&data.test)?,
    })
}

/// A new order of the images for every epoch, the same for every model.
struct Orders {
    random: fastrand::Rng,
    order: Vec<usize>,
}

impl Orders {
    fn new(images: usize, seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed ^ ORDER_STREAM), order: (0..images).collect() }
    }

    fn next(&mut self) -> &[usize] {
        // In 64 bits, so that the order is the same on a 32-bit machine.
        for last in (1..self.order.len()).rev() {
            self.order.swap(last, self.random.u64(..=last as u64) as usize);
        }
        &self.order
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::models::MODELS;

    /// An outcome with a mistake, to print.
    pub fn outcome(name: &str) -> Outcome {
        let mut scores = [0.0; 2 * CLASSES];
        scores[3] = 1.0;
        scores[CLASSES + 5] = 2.0;
        Outcome {
            name: name.to_owned(),
            parameters: 7850,
            epochs: vec![Epoch { loss: 0.5, train_accuracy: 0.75, test_accuracy: 0.5 }],
            train_time: Duration::from_millis(1500),
            train_images: 2,
            test: Reading::new(&scores, &[3, 6]),
            drawings: Vec::new(),
        }
    }

    /// Forty images of 4×4 that a model can tell apart.
    pub fn data() -> Data {
        let labels: Vec<usize> = (0..40).map(|index| index % CLASSES).collect();
        let pixels = labels.iter().flat_map(|&label| (0..16).map(move |at| f32::from(at == label)));
        let train = Samples { pixels: pixels.collect(), labels, rows: 4, cols: 4 };
        Data { test: train.first(20), probe: train.first(20), train }
    }

    #[test]
    fn readings_count_mistakes() {
        let reading = outcome("a").test;
        assert_eq!((reading.confusion[3][3], reading.confusion[6][5], reading.count()), (1, 1, 2));
        assert_eq!(reading.accuracy(), 0.5);
        let [wrong] = reading.wrong.as_slice() else { panic!("one mistake was made") };
        assert_eq!((wrong.index, wrong.label, wrong.read, wrong.margin), (1, 6, 5, 2.0));
    }

    #[test]
    fn surest_mistakes_come_first() {
        let mut scores = [0.0; 3 * CLASSES];
        (scores[1], scores[CLASSES + 2], scores[2 * CLASSES + 3]) = (1.0, 3.0, 2.0);
        let margins: Vec<_> = Reading::new(&scores, &[9, 9, 9]).wrong.iter().map(|w| w.margin).collect();
        assert_eq!(margins, [3.0, 2.0, 1.0]);
    }

    #[test]
    fn orders_are_permutations_fixed_by_the_seed() {
        let mut orders = Orders::new(10, 42);
        let first = orders.next().to_vec();
        let second = orders.next().to_vec();
        // A changed generator would change every model's bits: here it shows.
        assert_eq!(first, [4, 7, 1, 6, 3, 8, 9, 0, 5, 2]);
        assert_ne!(first, second);
        let mut sorted = second.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_ne!(Orders::new(10, 43).next(), first);
    }

    #[test]
    fn same_seed_same_bits() {
        let data = data();
        for entry in MODELS {
            let run = |seed| run(entry, &data, Some(2), seed, Progress::Quiet).unwrap();
            let (a, b) = (run(7), run(7));
            assert_eq!(a.test.checksum, b.test.checksum, "{}", entry.name);
            assert_eq!(a.epochs[1].loss.to_bits(), b.epochs[1].loss.to_bits(), "{}", entry.name);
            assert_eq!((a.name.as_str(), a.epochs.len()), (entry.name, 2));
        }
    }

    #[test]
    fn a_diverging_model_is_an_error() {
        struct Diverges;
        impl Model for Diverges {
            fn name(&self) -> &str {
                "diverges"
            }
            fn parameters(&self) -> usize {
                0
            }
            fn train_epoch(
                &mut self,
                _: &Samples,
                _: &[usize],
                _: &mut dyn FnMut(usize, f64),
            ) -> tilewise::Result<f64> {
                Ok(f64::NAN)
            }
            fn scores(&mut self, images: &Samples) -> tilewise::Result<Vec<f32>> {
                Ok(vec![0.0; images.len() * CLASSES])
            }
            fn default_epochs(&self) -> usize {
                1
            }
        }
        let error = train(&mut Diverges, &data(), None, 1, Progress::Quiet).err().unwrap();
        assert_eq!(error.to_string(), "the loss became NaN in epoch 1: training diverged");
    }
}

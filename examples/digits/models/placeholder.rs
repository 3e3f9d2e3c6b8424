//! PLACEHOLDER, to be replaced by models on the library's layers: softmax regression in plain Rust, at
//! two learning rates so that there are two models to compare.

use crate::model::{CLASSES, Drawing, Model, Picture, Samples};
use crate::models::Entry;

pub const QUICK: Entry = Entry {
    name: "placeholder",
    about: "softmax regression in plain Rust",
    build: |rows, cols, _seed| Ok(Box::new(Softmax::new("placeholder", rows, cols, 0.3))),
};

pub const SLOW: Entry = Entry {
    name: "placeholder-slow",
    about: "the same with a small learning rate",
    build: |rows, cols, _seed| Ok(Box::new(Softmax::new("placeholder-slow", rows, cols, 0.02))),
};

const BATCH: usize = 32;

struct Softmax {
    name: &'static str,
    rows: usize,
    cols: usize,
    rate: f32,
    /// `CLASSES` rows of `rows * cols`.
    weights: Vec<f32>,
    bias: [f32; CLASSES],
}

impl Softmax {
    fn new(name: &'static str, rows: usize, cols: usize, rate: f32) -> Self {
        Self { name, rows, cols, rate, weights: vec![0.0; CLASSES * rows * cols], bias: [0.0; CLASSES] }
    }

    fn forward(&self, image: &[f32]) -> [f32; CLASSES] {
        let mut scores = self.bias;
        for (score, row) in scores.iter_mut().zip(self.weights.chunks_exact(image.len())) {
            *score += row.iter().zip(image).map(|(w, x)| w * x).sum::<f32>();
        }
        scores
    }
}

impl Model for Softmax {
    fn name(&self) -> &str {
        self.name
    }

    fn parameters(&self) -> usize {
        self.weights.len() + self.bias.len()
    }

    fn train_epoch(
        &mut self,
        train: &Samples,
        order: &[usize],
        progress: &mut dyn FnMut(usize, f64),
    ) -> tilewise::Result<f64> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        let (mut done, mut sum) = (0, 0.0);
        for batch in order.chunks(BATCH) {
            train.gather(batch, &mut pixels, &mut labels);
            let mut gradients = Vec::with_capacity(batch.len());
            for (image, &label) in pixels.chunks_exact(train.image_len()).zip(&labels) {
                let mut p = self.forward(image);
                let top = p.iter().copied().fold(f32::MIN, f32::max);
                p.iter_mut().for_each(|p| *p = (*p - top).exp());
                let total: f32 = p.iter().sum();
                p.iter_mut().for_each(|p| *p /= total);
                sum -= f64::from(p[label].max(1e-12)).ln();
                p[label] -= 1.0;
                gradients.push(p);
            }
            let rate = self.rate / batch.len() as f32;
            for (image, gradient) in pixels.chunks_exact(train.image_len()).zip(&gradients) {
                for (class, row) in self.weights.chunks_exact_mut(image.len()).enumerate() {
                    self.bias[class] -= rate * gradient[class];
                    row.iter_mut().zip(image).for_each(|(w, x)| *w -= rate * gradient[class] * x);
                }
            }
            done += batch.len();
            progress(done, sum / done as f64);
        }
        Ok(sum / done as f64)
    }

    fn scores(&mut self, images: &Samples) -> tilewise::Result<Vec<f32>> {
        Ok((0..images.len()).flat_map(|index| self.forward(images.image(index))).collect())
    }

    fn default_epochs(&self) -> usize {
        5
    }

    fn drawings(&mut self, _test: &Samples) -> tilewise::Result<Vec<Drawing>> {
        let pictures = self.weights.chunks_exact(self.rows * self.cols).enumerate();
        let pictures = pictures.map(|(class, values)| Picture {
            caption: class.to_string(),
            rows: self.rows,
            cols: self.cols,
            values: values.to_vec(),
        });
        Ok(vec![Drawing { title: "Weights of each digit".to_owned(), pictures: pictures.collect() }])
    }
}

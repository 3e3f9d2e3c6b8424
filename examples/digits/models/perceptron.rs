//! Ten perceptrons, each telling one digit from the rest.

use tilewise::TensorView;
use tilewise::perceptron::{OneVsRest, Rule};

use crate::model::{CLASSES, Drawing, Model, Picture, Samples};
use crate::models::Entry;

pub const ENTRY: Entry = Entry {
    name: "perceptron",
    about: "ten perceptrons, one digit against the rest",
    build: |rows, cols, _seed| {
        Ok(Box::new(Perceptron { rows, cols, model: OneVsRest::new(CLASSES, rows * cols)? }))
    },
};

/// Images between two reports of progress.
const CHUNK: usize = 500;

struct Perceptron {
    rows: usize,
    cols: usize,
    model: OneVsRest<f32>,
}

impl Model for Perceptron {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn parameters(&self) -> usize {
        self.model.weights().len() + self.model.bias().len()
    }

    /// The loss is the number of mistakes per image, of ten possible.
    fn train_epoch(
        &mut self,
        train: &Samples,
        order: &[usize],
        progress: &mut dyn FnMut(usize, f64),
    ) -> tilewise::Result<f64> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        let (mut done, mut mistakes) = (0, 0);
        for chunk in order.chunks(CHUNK) {
            train.gather(chunk, &mut pixels, &mut labels);
            let x = TensorView::from_slice(&pixels, [chunk.len(), train.image_len()])?;
            let outcomes = self.model.fit(x, &labels, &Rule::new().max_passes(1))?;
            mistakes += outcomes.iter().map(|outcome| outcome.updates).sum::<usize>();
            done += chunk.len();
            progress(done, mistakes as f64 / done as f64);
        }
        Ok(mistakes as f64 / done.max(1) as f64)
    }

    fn scores(&mut self, images: &Samples) -> tilewise::Result<Vec<f32>> {
        let x = TensorView::from_slice(&images.pixels, [images.len(), images.image_len()])?;
        Ok(self.model.scores(x)?.as_slice().to_vec())
    }

    fn default_epochs(&self) -> usize {
        20
    }

    fn drawings(&mut self, _test: &Samples) -> tilewise::Result<Vec<Drawing>> {
        let weights = self.model.weights();
        let pictures = (0..CLASSES).map(|class| {
            let values = weights.select::<1>(0, class)?.iter().copied().collect();
            Ok(Picture { caption: class.to_string(), rows: self.rows, cols: self.cols, values })
        });
        let pictures = pictures.collect::<tilewise::Result<_>>()?;
        Ok(vec![Drawing { title: "Perceptron: the weights of each digit".to_owned(), pictures }])
    }
}

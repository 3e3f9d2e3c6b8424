//! What the runner asks of a model.

use crate::idx::Dataset;

/// The digits 0 to 9.
pub const CLASSES: usize = 10;

/// A model that reads digits. To add one: a file in `models/` and a line in [`crate::models::MODELS`].
pub trait Model {
    /// As in `--models`.
    fn name(&self) -> &str;

    /// Numbers that training changes.
    fn parameters(&self) -> usize;

    /// Passes once over the training set in the given order and returns the mean loss. Calls
    /// `progress` with the images done and the mean loss over them as often as it likes.
    fn train_epoch(
        &mut self,
        train: &Samples,
        order: &[usize],
        progress: &mut dyn FnMut(usize, f64),
    ) -> tilewise::Result<f64>;

    /// One row of [`CLASSES`] scores per image; the largest is the digit read.
    fn scores(&mut self, images: &Samples) -> tilewise::Result<Vec<f32>>;

    /// Passes over the training set when `--epochs` says nothing.
    fn default_epochs(&self) -> usize;

    /// Pictures of what the model has learned, for the report.
    fn drawings(&mut self, _test: &Samples) -> tilewise::Result<Vec<Drawing>> {
        Ok(Vec::new())
    }
}

/// A titled row of pictures.
pub struct Drawing {
    pub title: String,
    pub pictures: Vec<Picture>,
}

/// `rows * cols` values, row by row. Each picture is scaled to its own largest magnitude; negative
/// values show in another colour than positive ones.
pub struct Picture {
    pub caption: String,
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f32>,
}

/// Images and labels as a model takes them.
pub struct Samples {
    /// `len() * rows * cols` values from 0 (paper) to 1 (ink).
    pub pixels: Vec<f32>,
    /// Each less than [`CLASSES`].
    pub labels: Vec<usize>,
    pub rows: usize,
    pub cols: usize,
}

impl Samples {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Pixels of one image.
    pub fn image_len(&self) -> usize {
        self.rows * self.cols
    }

    pub fn image(&self, index: usize) -> &[f32] {
        &self.pixels[index * self.image_len()..][..self.image_len()]
    }

    /// Copies the images and labels at `indices` into a batch, replacing what it held.
    pub fn gather(&self, indices: &[usize], pixels: &mut Vec<f32>, labels: &mut Vec<usize>) {
        pixels.clear();
        labels.clear();
        for &index in indices {
            pixels.extend_from_slice(self.image(index));
            labels.push(self.labels[index]);
        }
    }

    /// The first `count` samples, or all if there are fewer.
    pub fn first(&self, count: usize) -> Self {
        let count = count.min(self.len());
        Self {
            pixels: self.pixels[..count * self.image_len()].to_vec(),
            labels: self.labels[..count].to_vec(),
            ..*self
        }
    }
}

impl From<&Dataset> for Samples {
    fn from(data: &Dataset) -> Self {
        Self {
            pixels: data.images.iter().map(|&grey| f32::from(grey) / 255.0).collect(),
            labels: data.labels.iter().map(|&label| usize::from(label)).collect(),
            rows: data.rows,
            cols: data.cols,
        }
    }
}

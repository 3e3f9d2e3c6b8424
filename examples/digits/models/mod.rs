//! The models, one file each.

mod cnn;
mod dense;
mod perceptron;
mod recurrent;
mod transformer;

use crate::model::Model;

/// A model that `--models` can name.
pub struct Entry {
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Makes an untrained model for images of `rows` by `cols`; the same seed makes the same model.
    pub build: fn(rows: usize, cols: usize, seed: u64) -> tilewise::Result<Box<dyn Model>>,
}

/// In the order in which they run when `--models` says nothing.
pub const MODELS: &[Entry] = &[
    perceptron::ENTRY,
    dense::ENTRY,
    cnn::ENTRY,
    recurrent::RNN,
    recurrent::LSTM,
    recurrent::GRU,
    transformer::ENTRY,
];

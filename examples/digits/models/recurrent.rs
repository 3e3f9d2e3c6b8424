//! Recurrent networks that read an image row by row, trained by AdamW on the softmax cross-entropy.

use tilewise::layer::optimizer::{AdamW, Optimizer};
use tilewise::layer::{
    Init, Layer, Linear, Parameter, Parameters, Recurrent, RecurrentSizes, clip_gradient_norm,
};
use tilewise::loss::CrossEntropy;
use tilewise::random::Rng;
use tilewise::rnn::{self, Elman, Gru, Lstm};
use tilewise::{Tensor, TensorView};

use crate::model::{CLASSES, Model, Samples};
use crate::models::Entry;

pub const RNN: Entry = Entry {
    name: "rnn",
    about: "an Elman network of 128 units that reads an image row by row",
    build: |_, cols, seed| Ok(Box::new(RowReader::new("rnn", Elman::new(), cols, seed)?)),
};

pub const LSTM: Entry = Entry {
    name: "lstm",
    about: "an LSTM of 128 units that reads an image row by row",
    build: |_, cols, seed| Ok(Box::new(RowReader::new("lstm", Lstm::new(), cols, seed)?)),
};

pub const GRU: Entry = Entry {
    name: "gru",
    about: "a GRU of 128 units that reads an image row by row",
    build: |_, cols, seed| Ok(Box::new(RowReader::new("gru", Gru::new(), cols, seed)?)),
};

const HIDDEN: usize = 128;
const BATCH: usize = 32;
const RATE: f64 = 2e-3;
/// Long products of slopes may explode.
const MAX_NORM: f64 = 1.0;
/// Images that are read at a time when nothing is learned.
const CHUNK: usize = 500;

struct RowReader<C> {
    name: &'static str,
    net: Net<C>,
    optimizer: AdamW<f32>,
}

/// A recurrent layer, and a dense one that reads its last state.
struct Net<C> {
    cells: Recurrent<C, f32>,
    head: Linear<f32>,
}

impl<C: rnn::Recurrent> Parameters<f32> for Net<C> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<f32>)) {
        self.cells.visit(&mut |name, parameter| f(&format!("cells.{name}"), parameter));
        self.head.visit(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f32>)) {
        self.cells.visit_mut(&mut |name, parameter| f(&format!("cells.{name}"), parameter));
        self.head.visit_mut(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }
}

impl<C: rnn::Recurrent> RowReader<C> {
    fn new(name: &'static str, cell: C, cols: usize, seed: u64) -> tilewise::Result<Self> {
        let mut rng = Rng::seed(seed);
        let sizes = RecurrentSizes { inputs: cols, hidden: HIDDEN, layers: 1, directions: 1 };
        let cells = Recurrent::stacked(cell, sizes, &mut rng)?;
        let head = Linear::new(HIDDEN, CLASSES, Init::xavier_uniform(), &mut rng)?;
        let net = Net { cells, head };
        Ok(Self { name, net, optimizer: AdamW::new(RATE) })
    }

    fn train(&mut self, rows: TensorView<'_, f32, 3>, labels: &[usize]) -> tilewise::Result<f32> {
        let (y, mut last) = self.net.cells.forward_from(rows, None, None)?;
        let logits = self.net.head.forward(last.hidden[0].view().select(0, 0)?)?;
        let (loss, d_logits) = CrossEntropy::new().forward_backward(logits.view(), labels)?;
        self.net.zero_gradients();
        let d_last = self.net.head.backward(d_logits.view())?;
        last.hidden[0].view_mut().select(0, 0)?.assign(d_last.view())?;
        last.cell.iter_mut().for_each(|cell| cell.as_mut_slice().fill(0.0));
        self.net.cells.backward_from(Tensor::zeros(y.shape())?.view(), Some(&last))?;
        clip_gradient_norm(&mut self.net, MAX_NORM)?;
        self.optimizer.step(&mut self.net)?;
        Ok(loss)
    }
}

/// The images as sequences of rows, `[row, image, column]`: a view.
fn rows_of(pixels: &[f32], [images, rows, cols]: [usize; 3]) -> tilewise::Result<TensorView<'_, f32, 3>> {
    TensorView::from_slice(pixels, [images, rows, cols])?.permute([1, 0, 2])
}

impl<C: rnn::Recurrent> Model for RowReader<C> {
    fn name(&self) -> &str {
        self.name
    }

    fn parameters(&self) -> usize {
        self.net.parameter_count()
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
            let rows = rows_of(&pixels, [batch.len(), train.rows, train.cols])?;
            let loss = self.train(rows, &labels)?;
            done += batch.len();
            sum += f64::from(loss) * batch.len() as f64;
            progress(done, sum / done as f64);
        }
        Ok(sum / done.max(1) as f64)
    }

    fn scores(&mut self, images: &Samples) -> tilewise::Result<Vec<f32>> {
        let mut scores = Vec::new();
        for chunk in images.pixels.chunks(CHUNK * images.image_len()) {
            let rows = rows_of(chunk, [chunk.len() / images.image_len(), images.rows, images.cols])?;
            let (_, last) = self.net.cells.infer_from(rows, None, None)?;
            let logits = self.net.head.infer(last.hidden[0].view().select(0, 0)?)?;
            scores.extend_from_slice(logits.as_slice());
        }
        Ok(scores)
    }

    fn default_epochs(&self) -> usize {
        10
    }
}

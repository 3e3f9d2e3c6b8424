//! A convolutional network, trained by AdamW on the softmax cross-entropy.

use tilewise::activation::Activation;
use tilewise::conv::Convolution;
use tilewise::layer::optimizer::{AdamW, Optimizer};
use tilewise::layer::{Activate, Conv2d, Init, Layer, Linear, Parameter, Parameters};
use tilewise::loss::CrossEntropy;
use tilewise::random::Rng;
use tilewise::{Tensor, TensorView};

use crate::model::{CLASSES, Drawing, Model, Picture, Samples};
use crate::models::Entry;

pub const ENTRY: Entry = Entry {
    name: "cnn",
    about: "a network of four convolutions, two of them with stride 2, and two dense layers",
    build: |rows, cols, seed| Ok(Box::new(Cnn::new(rows, cols, seed)?)),
};

/// Filters of the first layer, and taps along each of their sides.
const FILTERS: usize = 16;
const TAPS: usize = 5;
const HIDDEN: usize = 128;
const BATCH: usize = 32;
const EPOCHS: usize = 8;
/// Falls to nothing along half a cosine.
const RATE: f64 = 2e-3;
/// Images that are read at a time when nothing is learned.
const CHUNK: usize = 250;

struct Cnn {
    net: Net,
    optimizer: AdamW<f32>,
    /// Images learned from so far.
    seen: usize,
}

/// Convolutions, each rectified, and dense layers over all that they give.
struct Net {
    convolutions: Vec<Conv2d<f32>>,
    hidden: (Linear<f32>, Activate<f32>),
    head: Linear<f32>,
    /// Of what the last convolution gave.
    shape: [usize; 4],
}

impl Net {
    fn new(rows: usize, cols: usize, rng: &mut Rng) -> tilewise::Result<Self> {
        let init = Init::kaiming_normal();
        let (mut convolutions, mut image) = (Vec::new(), [1, 1, rows, cols]);
        for (filters, taps, stride) in [(FILTERS, TAPS, 1), (32, 3, 2), (32, 3, 1), (64, 3, 2)] {
            let options = Convolution::new().padding([taps / 2; 2]).stride([stride; 2]);
            let options = options.activation(Activation::Relu);
            let layer = Conv2d::new(image[1], filters, [taps; 2], options, init, rng)?;
            image = options.output_shape(image, [filters, image[1], taps, taps])?;
            convolutions.push(layer);
        }
        let inputs = image.iter().product();
        let hidden = (Linear::new(inputs, HIDDEN, init, rng)?, Activate::new(Activation::Relu));
        let head = Linear::new(HIDDEN, CLASSES, Init::xavier_uniform(), rng)?;
        Ok(Self { convolutions, hidden, head, shape: image })
    }
}

impl Parameters<f32> for Net {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<f32>)) {
        for (number, layer) in self.convolutions.iter().enumerate() {
            layer.visit(&mut |name, parameter| f(&format!("{number}.{name}"), parameter));
        }
        self.hidden.0.visit(&mut |name, parameter| f(&format!("hidden.{name}"), parameter));
        self.head.visit(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f32>)) {
        for (number, layer) in self.convolutions.iter_mut().enumerate() {
            layer.visit_mut(&mut |name, parameter| f(&format!("{number}.{name}"), parameter));
        }
        self.hidden.0.visit_mut(&mut |name, parameter| f(&format!("hidden.{name}"), parameter));
        self.head.visit_mut(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }
}

impl Net {
    /// The gradient for what the first convolution gave.
    fn backward_to_first(&mut self, dy: TensorView<'_, f32, 2>) -> tilewise::Result<Tensor<f32, 4>> {
        self.check_backward(dy.shape())?;
        let d = self.head.backward(dy)?;
        let d = self.hidden.1.backward(d.view())?;
        let d = self.hidden.0.backward_owned(d)?;
        let mut d = d.reshape(self.shape)?;
        for layer in self.convolutions[1..].iter_mut().rev() {
            d = layer.backward_owned(d)?;
        }
        Ok(d)
    }
}

/// From images `[batch, 1, rows, cols]` to scores `[batch, CLASSES]`.
impl Layer<f32, 4, 2> for Net {
    fn check_forward(&self, x: [usize; 4]) -> tilewise::Result<[usize; 2]> {
        let y = self.convolutions.iter().try_fold(x, |x, layer| layer.check_forward(x))?;
        self.head.check_forward(self.hidden.0.check_forward([y[0], y[1..].iter().product()])?)
    }

    fn check_backward(&self, dy: [usize; 2]) -> tilewise::Result<[usize; 4]> {
        self.hidden.0.check_backward(self.hidden.1.check_backward(self.head.check_backward(dy)?)?)?;
        self.convolutions.iter().rev().try_fold(self.shape, |d, layer| layer.check_backward(d))
    }

    fn forward(&mut self, x: TensorView<'_, f32, 4>) -> tilewise::Result<Tensor<f32, 2>> {
        self.check_forward(x.shape())?;
        let mut y = x.to_tensor()?;
        for layer in &mut self.convolutions {
            y = layer.forward_owned(y)?;
        }
        self.shape = y.shape();
        let flat = y.reshape([self.shape[0], self.shape[1..].iter().product()])?;
        let hidden = self.hidden.0.forward_owned(flat)?;
        let hidden = self.hidden.1.forward_owned(hidden)?;
        self.head.forward_owned(hidden)
    }

    fn infer(&self, x: TensorView<'_, f32, 4>) -> tilewise::Result<Tensor<f32, 2>> {
        let mut y = x.to_tensor()?;
        for layer in &self.convolutions {
            y = layer.infer(y.view())?;
        }
        let shape = y.shape();
        let flat = y.reshape([shape[0], shape[1..].iter().product()])?;
        let hidden = self.hidden.0.infer(flat.view())?;
        let hidden = self.hidden.1.infer(hidden.view())?;
        self.head.infer(hidden.view())
    }

    fn backward(&mut self, dy: TensorView<'_, f32, 2>) -> tilewise::Result<Tensor<f32, 4>> {
        let d = self.backward_to_first(dy)?;
        self.convolutions[0].backward_owned(d)
    }

    fn backward_parameters(&mut self, dy: TensorView<'_, f32, 2>) -> tilewise::Result<()> {
        let d = self.backward_to_first(dy)?;
        self.convolutions[0].backward_parameters_owned(d)
    }
}

impl Cnn {
    fn new(rows: usize, cols: usize, seed: u64) -> tilewise::Result<Self> {
        let net = Net::new(rows, cols, &mut Rng::seed(seed))?;
        Ok(Self { net, optimizer: AdamW::new(RATE), seen: 0 })
    }
}

impl Model for Cnn {
    fn name(&self) -> &str {
        ENTRY.name
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
            let x = TensorView::from_slice(&pixels, [batch.len(), 1, train.rows, train.cols])?;
            let logits = self.net.forward(x)?;
            let (loss, d_logits) = CrossEntropy::new().forward_backward(logits.view(), &labels)?;
            self.net.zero_gradients();
            self.net.backward_parameters(d_logits.view())?;
            let share = (self.seen as f64 / (EPOCHS * train.len()) as f64).min(0.98);
            self.optimizer.set_learning_rate(RATE * 0.5 * (1.0 + (std::f64::consts::PI * share).cos()));
            self.optimizer.step(&mut self.net)?;
            self.seen += batch.len();
            done += batch.len();
            sum += f64::from(loss) * batch.len() as f64;
            progress(done, sum / done as f64);
        }
        Ok(sum / done.max(1) as f64)
    }

    fn scores(&mut self, images: &Samples) -> tilewise::Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(images.len() * CLASSES);
        for chunk in images.pixels.chunks(CHUNK * images.image_len()) {
            let shape = [chunk.len() / images.image_len(), 1, images.rows, images.cols];
            scores.extend(self.net.infer(TensorView::from_slice(chunk, shape)?)?.iter());
        }
        Ok(scores)
    }

    fn default_epochs(&self) -> usize {
        EPOCHS
    }

    fn drawings(&mut self, _test: &Samples) -> tilewise::Result<Vec<Drawing>> {
        let weight = self.net.convolutions[0].weight();
        let pictures = weight.value().chunks_exact(TAPS * TAPS).enumerate().map(|(filter, taps)| Picture {
            caption: (filter + 1).to_string(),
            rows: TAPS,
            cols: TAPS,
            values: taps.to_vec(),
        });
        let title = "Convolutional network: the filters of the first layer".to_owned();
        Ok(vec![Drawing { title, pictures: pictures.collect() }])
    }
}
